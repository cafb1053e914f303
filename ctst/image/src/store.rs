//! The store.
//!
//! ```text
//! images/                     0700, the caller's
//!   catalogue/<key>.json      one record for each reference and id map
//!   layers/<digest>[-<map>]/tree/   root file systems, by the digest of their tree
//!   layers/<diff>[-lowest][-<map>]/tree/   layers of archives, by the digest of the uncompressed layer
//!                                          and of builds
//!   layers/<index>-lazy[-<map>]/index      archives that are not unpacked, by the digest of the index; data has what cannot be
//!                                          read from them, tree/ what ctst reads
//!   builds/, caches/          what builds keep: build/kept.rs
//!   staging/lock              held while a staging folder is made or old ones are removed
//!   staging/<name>/           one running import; lock is held by it, so that a free one was left behind by a crash
//!     lock, layer/tree/ or unpacked/<n>/tree/, <key>.json
//! ```
//!
//! A layer gets its name by one rename, after all of it is on disk, and a record only after its layer: what is there
//! under its final name is whole. The folder around each tree is there because a directory whose owner may not write it
//! cannot be renamed.

mod content;
mod import;
mod staging;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::archive::{Limits, stream};
use crate::build;
use crate::bundle::Bundle;
use crate::catalogue::{self, LayerRecord, Record};
use crate::error::shown;
use crate::hash::Algorithm;
use crate::lazy::{self, Lazy};
use crate::model::{Entry, Image, Ownership};
use crate::pack::{self, Blob};
use crate::registry::Found;
use crate::source::{self, hex, is_digest};
use crate::tree::{self, Digest, Time};
use crate::unpack::{Direct, Owners, Runner, TREE};
use crate::{Error, Request, Source};

pub(crate) use import::{Import, Part, owners};
use staging::{LOCK, STAGING, lock, sweep};
pub(crate) use staging::{Places, Staging, make_private, open_private};

pub(crate) const CATALOGUE: &str = "catalogue";
pub(crate) const LAYERS: &str = "layers";
pub(crate) const LAYER: &str = "layer";
const UNPACKED: &str = "unpacked";
const LAYOUT: &str = "layout";
/// Layers that a worker is told of: its job is an argument, and must fit the 64 KiB in which a container is described. One
/// that it is not told of is unpacked again.
const MAX_HAVE: usize = 500;

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// The source is being listed and analysed.
    Scanning,
    /// Contents are being read, hashed and written. Of an archive, the bytes are those of its file, and how many files it has
    /// is not known before its end.
    Copying {
        /// Files and links that are finished.
        files_done: u64,
        /// All of them.
        files_total: u64,
        /// Bytes of content that are finished.
        bytes_done: u64,
        /// All of them.
        bytes_total: u64,
    },
    /// Everything is copied and is being brought to the disk.
    Syncing,
}

/// How an import is done.
#[derive(Clone, Copy)]
pub struct How<'a> {
    /// What unpacks archives, and removes what others than the caller own.
    pub runner: &'a dyn Runner,
    /// How much an archive may make.
    pub limits: Limits,
    /// What asks registries; `None`: nothing does.
    pub fetch: Option<&'a Fetch<'a>>,
    /// Where images of a bundle are.
    pub bundle: Option<&'a Bundle>,
    /// Layers of the store, by name, that are made anew because they are damaged. With any the image is imported although it is there.
    pub replace: &'a [String],
}

/// Has an image of a registry written into a file, as [`registry::client_main`] does, but for the layers that are named.
pub type Fetch<'a> = dyn Fn(OwnedFd, &[String]) -> Result<Found, Error> + 'a;

/// By [`Direct`], with the default limits.
impl Default for How<'_> {
    fn default() -> Self {
        How { runner: &Direct, limits: Limits::default(), fetch: None, bundle: None, replace: &[] }
    }
}

/// What a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images, as [`Store::list`] counts them.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Bytes of the files of all layers that belong to an image.
    pub bytes: u64,
    /// Layers that belong to none, which [`Store::prune`] removes.
    pub unused: usize,
}

/// A layer that is not what was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Its name.
    pub layer: String,
    /// What is wrong with it.
    pub why: String,
    /// Of whose ids the image is that has it.
    pub ownership: Ownership,
    /// Whether it is the index of an archive.
    pub is_lazy: bool,
    /// Digest of the image, as [`Entry::digest`].
    pub digest: String,
}

/// The images of one project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The store at `dir`, usually `<project>/.containust/images`. Does not look at the disk; the directory is made by the
    /// first import.
    #[must_use]
    pub fn at(dir: &Path) -> Store {
        Store { dir: dir.into() }
    }

    /// What is in the store, by reference. Writes nothing; a store that is not there is empty.
    ///
    /// # Errors
    /// A store that is not the caller's own, or a record of a newer version.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let Some(store) = self.open()? else { return Ok(Vec::new()) };
        let records: Vec<Record> =
            self.records()?.into_iter().map(|(_, record)| record).filter(|record| has_layers(&store, record)).collect();
        Ok(entries(&records))
    }

    /// As [`Store::list`], and the images of which layers are gone, which nothing else takes for there.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub fn list_all(&self) -> Result<Vec<Entry>, Error> {
        let records: Vec<Record> = self.records()?.into_iter().map(|(_, record)| record).collect();
        Ok(entries(&records))
    }

    /// The image that is meant by a reference, by a name, or by the first digits of a digest (at least six).
    ///
    /// # Errors
    /// [`Error::NotInStore`], [`Error::Ambiguous`], and as [`Store::list`].
    pub fn select(&self, what: &str) -> Result<Entry, Error> {
        self.select_of(self.list()?, what)
    }

    /// The same of [`Store::list_all`].
    ///
    /// # Errors
    /// As [`Store::select`].
    pub fn select_of_all(&self, what: &str) -> Result<Entry, Error> {
        self.select_of(self.list_all()?, what)
    }

    fn select_of(&self, mut entries: Vec<Entry>, what: &str) -> Result<Entry, Error> {
        let by_name = source::name(what).map(|name| Source::Local(name).to_string());
        let exact =
            |entry: &Entry| entry.reference == what || by_name.as_ref().is_ok_and(|name| *name == entry.reference);
        if let Some(at) = entries.iter().position(exact) {
            return Ok(entries.swap_remove(at));
        }
        let plain = |digest: &str| digest.trim_start_matches("sha256:").trim_start_matches("blake3:").to_owned();
        let digits = plain(what);
        let is_digits = digits.len() >= 6 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let mut found: Vec<Entry> =
            entries.into_iter().filter(|entry| is_digits && plain(&entry.digest).starts_with(&digits)).collect();
        match (found.pop(), found.first()) {
            (None, _) => Err(self.not_in_store(what)),
            (Some(one), None) => Ok(one),
            (Some(last), Some(_)) => {
                let found = found.into_iter().chain([last]).map(|entry| entry.reference).collect();
                Err(Error::Ambiguous { what: what.into(), found })
            }
        }
    }

    pub(crate) fn not_in_store(&self, reference: &str) -> Error {
        let known = self.list().unwrap_or_default().into_iter().map(|entry| entry.reference);
        let near = source::near(reference, known);
        Error::NotInStore { reference: reference.into(), near }
    }

    /// The image, if it was imported and its source has not changed since. Looks at names and attributes of the source,
    /// reads none of its contents, and writes nothing.
    ///
    /// # Errors
    /// A source that is not there, an image that is there and is not the pinned one, and as [`Store::list`].
    pub fn find(&self, request: &Request<'_>) -> Result<Option<Image>, Error> {
        let pin = request.check()?;
        let root = match &request.source {
            Source::File(path) => Some(self.open_source(path)?),
            Source::Tar(path) => Some(stream::open(path)?),
            Source::Lazy(path) => {
                let unpacked = Request { source: request.source.unpacked(), ..*request };
                if let Some(image) = self.find(&unpacked)? {
                    return Ok(Some(image));
                }
                Some(stream::open(path)?)
            }
            Source::Local(_) => return self.find_local(request, pin).map(Some),
            Source::Registry { .. } => return self.find_pulled(request, pin),
            Source::Bundled { digest, .. } => return self.find_pulled(request, Some(digest.clone())),
            Source::Built { key, .. } | Source::Stripped { key, .. } => {
                let record = self.record(request)?.filter(|record| record.fingerprint == *key);
                return record.map(|record| self.image(record)).transpose();
            }
            Source::Host { programs, .. } => {
                programs.iter().try_for_each(|path| host_program_exists(path))?;
                None
            }
        };
        self.find_imported(request, pin, root)
    }

    /// The image, if it was imported from `root`, which is open, as that is.
    pub(crate) fn find_imported(
        &self,
        request: &Request<'_>,
        pin: Option<String>,
        root: Option<OwnedFd>,
    ) -> Result<Option<Image>, Error> {
        let Some(store) = self.open()? else { return Ok(None) };
        let path = self.dir.join(CATALOGUE);
        let Some(catalogue) = open_private(&store, CATALOGUE, &path)? else { return Ok(None) };
        let Some(record) = catalogue::read(&catalogue, &path, &record_name(request))? else { return Ok(None) };
        if record.ownership != request.ownership || !has_layers(&store, &record) {
            return Ok(None);
        }
        let now = match (&request.source, &root, &record.watch) {
            (Source::File(path), Some(root), _) => tree::scan(root, path)?.fingerprint(),
            (Source::Tar(path) | Source::Lazy(path), Some(archive), _) => archive_state(archive, path)?.0,
            (_, _, Some(watch)) => watch.read().fingerprint()?,
            _ => return Ok(None),
        };
        // Nobody has compared with a pin what was not read.
        let is_unread = pin.is_some() && record.lazy.is_some_and(|lazy| !lazy.hashed);
        let is_old = record.lazy.is_some_and(|lazy| lazy.format != lazy::VERSION);
        if hex(&now) != record.fingerprint || is_unread || is_old {
            return Ok(None);
        }
        check_pin(request, pin, &record.digest)?;
        self.image_of(request, record).map(Some)
    }

    /// The record of an image, if it is there whole: whether its source has changed since is not looked at.
    pub(crate) fn record(&self, request: &Request<'_>) -> Result<Option<Record>, Error> {
        let Some(store) = self.open()? else { return Ok(None) };
        let path = self.dir.join(CATALOGUE);
        let Some(catalogue) = open_private(&store, CATALOGUE, &path)? else { return Ok(None) };
        let record = catalogue::read(&catalogue, &path, &record_name(request))?;
        // What was imported from a folder under a name has the caller's owners.
        let is_named = matches!(request.source, Source::Local(_));
        Ok(record.filter(|r| (is_named || r.ownership == request.ownership) && has_layers(&store, r)))
    }

    fn find_pulled(&self, request: &Request<'_>, pin: Option<String>) -> Result<Option<Image>, Error> {
        let Some(pin) = pin else { return Ok(None) };
        let record = self.record(request)?.filter(|record| record.digest == pin);
        record.map(|record| self.image(record)).transpose()
    }

    fn find_local(&self, request: &Request<'_>, pin: Option<String>) -> Result<Image, Error> {
        let reference = request.source.to_string();
        let Some(store) = self.open()? else { return Err(self.not_in_store(&reference)) };
        let path = self.dir.join(CATALOGUE);
        let record = match open_private(&store, CATALOGUE, &path)? {
            Some(catalogue) => catalogue::read(&catalogue, &path, &record_name(request))?,
            None => None,
        };
        match record.filter(|record| has_layers(&store, record)) {
            Some(record) => {
                check_pin(request, pin, &record.digest)?;
                self.image(record)
            }
            None if self.list()?.iter().any(|entry| entry.reference == reference) => Err(Error::OtherIds(reference)),
            None => Err(self.not_in_store(&reference)),
        }
    }

    /// The image of a record that this request has.
    fn image_of(&self, request: &Request<'_>, record: Record) -> Result<Image, Error> {
        let index = record.layers.first().map(|layer| layer.tree.clone());
        let mut image = self.image(record)?;
        if let (Source::Lazy(archive), Some(index)) = (&request.source, index) {
            image.lazy = Some(Lazy { archive: archive.clone(), index });
        }
        Ok(image)
    }

    pub(crate) fn image(&self, record: Record) -> Result<Image, Error> {
        let layers = record.layers().into_iter().rev().map(|name| {
            let layer = self.dir.join(LAYERS).join(name).join(TREE);
            layer.canonicalize().map_err(|e| Error::std("open", layer, &e))
        });
        Ok(Image {
            digest: record.digest(),
            lazy: None,
            layers: layers.collect::<Result<_, _>>()?,
            config: record.config,
            declared: record.declared,
            size: record.size,
            notes: record.notes,
        })
    }

    /// Forgets an image, in all its id maps; returns how many there were. Its layers stay until [`Store::prune`].
    ///
    /// # Errors
    /// [`Error::NotInStore`], and as [`Store::list`].
    pub fn remove(&self, reference: &str) -> Result<usize, Error> {
        let path = self.dir.join(CATALOGUE);
        let names: Vec<String> = self
            .records()?
            .into_iter()
            .filter(|(_, record)| record.reference == reference)
            .map(|(name, _)| name)
            .collect();
        if names.is_empty() {
            return Err(self.not_in_store(reference));
        }
        let places = Places::create(&self.dir)?;
        for name in &names {
            match rustix::fs::unlinkat(&places.catalogue, &**name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(cause) => return Err(Error::io("remove", path.join(name), cause)),
            }
        }
        rustix::fs::fsync(&places.catalogue).map_err(|cause| Error::io("sync", path, cause))?;
        Ok(names.len())
    }

    /// Removes what crashed imports left, if there is any. Waits for no import.
    ///
    /// # Errors
    /// What cannot be removed.
    pub fn tidy(&self, runner: &dyn Runner) -> Result<(), Error> {
        let path = self.dir.join(STAGING);
        let Some(store) = self.open()? else { return Ok(()) };
        let Some(staging) = open_private(&store, STAGING, &path)? else { return Ok(()) };
        let mut entries = std::fs::read_dir(&path).map_err(|e| Error::std("list", &path, &e))?.flatten();
        if entries.all(|entry| entry.file_name() == LOCK) {
            return Ok(());
        }
        match lock(&staging, &path, FlockOperation::NonBlockingLockExclusive) {
            Ok(_guard) => sweep(&staging, &path, runner).map(drop),
            // An import begins just now, and does the same.
            Err(Error::Io { cause: Errno::WOULDBLOCK, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Keeps imports and builds from beginning for as long as the descriptor is open.
    ///
    /// # Errors
    /// [`Error::Busy`] where one is under way, and what crashed ones left and cannot be removed.
    pub(crate) fn lock_idle(&self, places: &Places, runner: &dyn Runner) -> Result<OwnedFd, Error> {
        let staging = self.dir.join(STAGING);
        let guard = lock(&places.staging, &staging, FlockOperation::LockExclusive)?;
        match sweep(&places.staging, &staging, runner)? {
            true => Err(Error::Busy(self.dir.clone())),
            false => Ok(guard),
        }
    }

    /// Removes layers that belong to no image, unless they are among `keep`, as [`Image::layers`] names them: containers may
    /// still run on layers of an image that was removed. Also what crashed imports left, and what builds keep of steps whose layers
    /// are gone. Returns the names of the layers.
    ///
    /// # Errors
    /// [`Error::Busy`], because what runs may count on a layer, and what cannot be removed.
    pub fn prune(&self, keep: &[PathBuf], runner: &dyn Runner) -> Result<Vec<String>, Error> {
        if self.open()?.is_none() {
            return Ok(Vec::new());
        }
        let places = Places::create(&self.dir)?;
        let _guard = self.lock_idle(&places, runner)?;
        let used = self.known_layers()?;
        let layers = self.dir.join(LAYERS);
        let mut removed = Vec::new();
        for entry in std::fs::read_dir(&layers).map_err(|e| Error::std("list", &layers, &e))? {
            let entry = entry.map_err(|e| Error::std("list", &layers, &e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let tree = entry.path().join(TREE).canonicalize();
            if !used.contains_key(&name) && !tree.is_ok_and(|tree| keep.contains(&tree)) {
                runner.remove(&entry.path())?;
                removed.push(name);
            }
        }
        build::prune(self)?;
        removed.sort();
        Ok(removed)
    }

    /// Reads all of an image and compares it with what was imported.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::NotInStore`], files that cannot be read, and as [`Store::list`].
    pub fn verify(&self, reference: &str, runner: &dyn Runner) -> Result<(), Error> {
        match self.damaged(reference, runner)?.into_iter().next() {
            Some(Damage { why, .. }) => Err(Error::Damaged { reference: reference.into(), why }),
            None => Ok(()),
        }
    }

    /// The same of all of its layers; what differs from what was imported.
    ///
    /// # Errors
    /// As [`Store::verify`], but for [`Error::Damaged`].
    pub fn damaged(&self, reference: &str, runner: &dyn Runner) -> Result<Vec<Damage>, Error> {
        let records = self.records()?.into_iter().map(|(_, record)| record);
        let records: Vec<Record> = records.filter(|record| record.reference == reference).collect();
        if records.is_empty() {
            return Err(self.not_in_store(reference));
        }
        let mut damages = Vec::new();
        for record in records {
            let mut note = |layer: &str, why: String| {
                let (layer, ownership, is_lazy) = (layer.to_owned(), record.ownership, record.lazy.is_some());
                damages.push(Damage { layer, why, ownership, is_lazy, digest: record.digest() });
            };
            if record.layers.is_empty() && record.built.is_none() {
                note(&record.digest, "an older version imported it and kept no digest".into());
            }
            let owners = owners(record.ownership, runner)?;
            for layer in &record.layers {
                let tree = self.dir.join(LAYERS).join(&layer.name).join(TREE);
                if !tree.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                    note(&layer.name, format!("layer {} is missing", layer.name));
                    continue;
                }
                let algorithm = Algorithm::of(&layer.tree).expect("checked where the record was read");
                if record.lazy.is_some() {
                    if let Err(error) = lazy::verify(&self.dir.join(LAYERS).join(&layer.name), &layer.tree) {
                        note(&layer.name, error.to_string());
                    }
                    let archive = record.reference.trim_start_matches("tar://");
                    let now =
                        stream::open(Path::new(archive)).and_then(|file| archive_state(&file, Path::new(archive)));
                    match now {
                        Ok((now, _)) if hex(&now) == record.fingerprint => {}
                        Ok(_) => note(
                            &layer.name,
                            format!("archive {archive}, which it is read from, was changed since it was indexed"),
                        ),
                        Err(error) => note(&layer.name, format!("{error}, and it is read from there")),
                    }
                    continue;
                }
                let found = runner.digest(owners, algorithm, &tree)?;
                if found != layer.tree {
                    note(&layer.name, format!("layer {} has digest {found}, not {}", layer.name, layer.tree));
                }
            }
        }
        Ok(damages)
    }

    /// Writes an image to `out` as an archive that is both an OCI layout and what `docker save` makes. Its layers' digests are
    /// others than those of the archive that it was imported from. With `compress` its layers are compressed by gzip.
    ///
    /// # Errors
    /// [`Error::NotInStore`], what cannot be read or written, and as [`Store::list`].
    pub fn export(
        &self,
        reference: &str,
        out: &mut dyn std::io::Write,
        compress: bool,
        runner: &dyn Runner,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        let mut records = self.records()?.into_iter().map(|(_, record)| record);
        let Some(record) = records.find(|record| record.reference == reference && !record.layers.is_empty()) else {
            return Err(self.not_in_store(reference));
        };
        if record.lazy.is_some() {
            return Err(Error::OnlyIndexed(reference.into()));
        }
        let places = Places::create(&self.dir)?;
        let staging = Staging::create(&places, runner)?;
        let owners = owners(record.ownership, runner)?;
        let (mut layers, mut bytes_done) = (Vec::new(), 0);
        for (index, layer) in record.layers.iter().enumerate() {
            progress(Progress::Copying {
                files_done: 0,
                files_total: 0,
                bytes_done,
                bytes_total: record.layers.iter().map(|layer| layer.size).sum(),
            });
            let name = index.to_string();
            let blob = self.pack_layer(&staging, &name, layer, owners, runner)?;
            let path = staging.path.join(&name);
            layers.push(match compress {
                true => {
                    blob.compress(staging.file(&format!("{name}.gz"))?).map_err(|e| Error::std("write", &path, &e))?
                }
                false => blob,
            });
            if compress {
                // What was compressed is not needed any more.
                rustix::fs::unlinkat(&staging.fd, &*name, AtFlags::empty())
                    .map_err(|cause| Error::io("remove", &path, cause))?;
            }
            bytes_done += layer.size;
        }
        pack::image(&record, layers, out).map_err(|e| Error::std("write", "the archive", &e))
    }

    /// Writes a layer into a new file of the staging folder.
    pub(crate) fn pack_layer(
        &self,
        staging: &Staging<'_>,
        name: &str,
        layer: &LayerRecord,
        owners: Owners,
        runner: &dyn Runner,
    ) -> Result<Blob, Error> {
        let failed = |e: std::io::Error| Error::std("write", staging.path.join(name), &e);
        let file = staging.file(name)?;
        let tree = self.dir.join(LAYERS).join(&layer.name).join(TREE);
        let digest = runner.pack(owners, &tree, file.try_clone().map_err(failed)?.into())?;
        let size = file.metadata().map_err(failed)?.len();
        if !is_digest(&digest) {
            let text = format!("pack `{}`: the worker gives no digest", shown(&tree));
            return Err(Error::Worker { code: String::new(), text, help: None });
        }
        Ok(Blob { file, diff: digest.clone(), digest, size, is_compressed: false })
    }

    /// Its folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the store holds. Writes nothing.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub fn df(&self) -> Result<Usage, Error> {
        let Some(store) = self.open()? else { return Ok(Usage::default()) };
        let used = self.known_layers()?;
        let mut usage = Usage { images: self.list()?.len(), ..Usage::default() };
        let layers = self.dir.join(LAYERS);
        if open_private(&store, LAYERS, &layers)?.is_some() {
            for entry in std::fs::read_dir(&layers).map_err(|e| Error::std("list", &layers, &e))? {
                let entry = entry.map_err(|e| Error::std("list", &layers, &e))?;
                usage.layers += 1;
                match used.get(&*entry.file_name().to_string_lossy()) {
                    Some(layer) => usage.bytes += layer.size,
                    None => usage.unused += 1,
                }
            }
        }
        Ok(usage)
    }

    /// All records, with their files' names.
    pub(crate) fn records(&self) -> Result<Vec<(String, Record)>, Error> {
        let Some(store) = self.open()? else { return Ok(Vec::new()) };
        let path = self.dir.join(CATALOGUE);
        let Some(catalogue) = open_private(&store, CATALOGUE, &path)? else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        for name in std::fs::read_dir(&path).map_err(|e| Error::std("list", &path, &e))? {
            let name = name.map_err(|e| Error::std("list", &path, &e))?.file_name();
            let Some(name) = name.to_str().filter(|name| name.ends_with(".json")) else { continue };
            if let Some(record) = catalogue::read(&catalogue, &path, name)? {
                records.push((name.to_owned(), record));
            }
        }
        Ok(records)
    }

    /// The layers that records name, by name.
    fn known_layers(&self) -> Result<BTreeMap<String, LayerRecord>, Error> {
        let records = self.records()?.into_iter();
        let layers = records.flat_map(|(_, record)| record.layer_records());
        Ok(layers.map(|layer| (layer.name.clone(), layer)).collect())
    }

    pub(crate) fn open(&self) -> Result<Option<OwnedFd>, Error> {
        open_private(CWD, &self.dir, &self.dir)
    }

    /// Opens the directory of a `file://` image.
    fn open_source(&self, path: &Path) -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|cause| match cause {
            Errno::NOENT => Error::SourceMissing(path.into()),
            Errno::NOTDIR => Error::NotADirectory(path.into()),
            cause => Error::io("open", path, cause),
        })?;
        if ["oci-layout", "index.json"].iter().all(|name| rustix::fs::statat(&root, *name, AtFlags::empty()).is_ok()) {
            return Err(Error::LayoutFolder(path.into()));
        }
        let parent = self.dir.ancestors().find_map(|path| path.canonicalize().ok());
        let source = path.canonicalize().map_err(|e| Error::std("open", path, &e))?;
        match parent {
            Some(parent) if parent.starts_with(&source) => {
                Err(Error::HoldsStore { root: path.into(), store: self.dir.clone() })
            }
            _ => Ok(root),
        }
    }
}

pub(crate) fn duplicate(archive: &OwnedFd, path: &Path) -> Result<OwnedFd, Error> {
    archive.try_clone().map_err(|e| Error::std("open", path, &e))
}

/// Tells one state of an archive's file from every other, and when it last changed.
pub(crate) fn archive_state(archive: &OwnedFd, path: &Path) -> Result<(Digest, Time), Error> {
    let meta = tree::Meta::from(stream::check_regular(archive, path)?);
    let mut state = Vec::new();
    meta.print(&mut state);
    state.extend(meta.dev.to_le_bytes());
    state.extend(meta.ino.to_le_bytes());
    Ok((Sha256::digest(&state).into(), meta.ctime))
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

fn host_program_exists(path: &Path) -> Result<(), Error> {
    if !path.is_absolute() {
        return Err(Error::Relative(path.into()));
    }
    match path.metadata() {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::Program { path: path.into(), why: "does not exist".into() })
        }
        Err(e) => Err(Error::std("stat", path, &e)),
    }
}

pub(crate) fn record_name(request: &Request<'_>) -> String {
    format!("{}.json", request.key())
}

fn entries(records: &[Record]) -> Vec<Entry> {
    // Two names of one image do not share it.
    let mut users: BTreeMap<String, BTreeSet<&String>> = BTreeMap::new();
    for record in records {
        for layer in record.layers() {
            users.entry(layer).or_default().insert(&record.digest);
        }
    }
    let is_shared = |layer: &LayerRecord| users.get(&layer.name).is_some_and(|users| users.len() > 1);
    let entry = |record: &Record| Entry {
        reference: record.reference.clone(),
        digest: record.digest(),
        size: record.size,
        stored: match record.lazy {
            Some(_) => record.layers.iter().map(|layer| layer.size).sum(),
            None => record.size,
        },
        shared: record.layers.iter().filter(|layer| is_shared(layer)).map(|layer| layer.size).sum(),
        imported: record.imported,
        layers: record.layers(),
        config: record.config.clone(),
        declared: record.declared.clone(),
        lazy: record.lazy.is_some(),
        built: record.built.clone(),
        stripped: record.stripped.clone(),
    };
    let mut entries: Vec<Entry> = records.iter().map(entry).collect();
    // The newest of those that differ in their id map only.
    entries.sort_by(|a, b| (&a.reference, &a.digest, b.imported).cmp(&(&b.reference, &b.digest, a.imported)));
    entries.dedup_by(|a, b| (&a.reference, &a.digest) == (&b.reference, &b.digest));
    entries
}

fn check_pin(request: &Request<'_>, pin: Option<String>, found: &str) -> Result<(), Error> {
    match pin {
        Some(expected) if expected != found => {
            Err(Error::Pin { reference: request.source.to_string(), expected, found: found.into() })
        }
        _ => Ok(()),
    }
}

fn has_layers(store: &OwnedFd, record: &Record) -> bool {
    record.layers().iter().all(|name| has_tree(store, &format!("{LAYERS}/{name}")))
}

pub(crate) fn has_tree(folder: &OwnedFd, layer: &str) -> bool {
    rustix::fs::statat(folder, format!("{layer}/{TREE}"), AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}
