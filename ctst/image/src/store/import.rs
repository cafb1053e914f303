//! Bringing images into the store: from folders, programs, archives, registries and bundles.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::content::{Content, SETTLE};
use super::staging::{Places, Staging, make_private};
use super::{
    Fetch, How, LAYER, LAYOUT, MAX_HAVE, Progress, Store, UNPACKED, archive_state, check_pin, duplicate, has_tree, now,
    record_name,
};
use crate::archive::stream;
use crate::catalogue::{LayerRecord, LazyRecord, Record, SCHEMA};
use crate::copy::{self, Copy};
use crate::error::shown;
use crate::hash::Algorithm;
use crate::lazy::{self, DATA, INDEX, IndexJob};
use crate::model::{Declared, Image, Ownership};
use crate::registry;
use crate::source::{self, hex, is_digest, map_key};
use crate::tree::{self, Digest, open_dir};
use crate::unpack::{Owners, Report, Runner, TREE, UnpackJob};
use crate::{Error, Request, Source};

impl Store {
    /// The image, imported if [`Store::find`] does not have it. `progress` is called on this thread, about twenty times a
    /// second.
    ///
    /// # Errors
    /// Everything that keeps the image from being in the store whole: see [`Error`]. Nothing of a failed import stays.
    pub fn import(&self, request: &Request<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Image, Error> {
        self.import_with(request, How::default(), progress)
    }

    /// As [`Store::import`], in another way than in this process.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn import_with(
        &self,
        request: &Request<'_>,
        how: How<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Image, Error> {
        if how.replace.is_empty()
            && let Some(image) = self.find(request)?
        {
            return Ok(image);
        }
        self.import_under(request, None, how, progress).map(|(_, image)| image)
    }

    /// Imports a directory or an archive under a name, which [`Source::Local`] finds from then on whatever becomes of the
    /// source; without a name under those that the archive itself has. What had the name before loses it. `ownership` is that
    /// of archives. Returns the references.
    ///
    /// # Errors
    /// [`Error::Name`] and [`Error::Nameless`], and as [`Store::import`].
    pub fn import_as(
        &self,
        request: &Request<'_>,
        name: Option<&str>,
        ownership: Ownership,
        how: How<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<String>, Image), Error> {
        let name = name.map(source::name).transpose()?;
        if let (Source::File(path), None) = (&request.source, &name) {
            return Err(Error::Nameless(path.clone()));
        }
        self.import_under(request, Some(Naming { name, ownership }), how, progress)
    }

    fn import_under(
        &self,
        request: &Request<'_>,
        naming: Option<Naming>,
        how: How<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<String>, Image), Error> {
        match &request.source {
            Source::Tar(path) => return self.import_archive(request, path, naming, how, progress),
            Source::Bundled { digest, .. } => return self.import_bundled(request, digest, naming, how, progress),
            Source::Lazy(path) => return self.import_index(request, path, how, progress),
            _ => {}
        }
        if let Source::Registry { .. } = &request.source {
            let Some(fetch) = how.fetch else { return Err(self.not_in_store(&request.source.to_string())) };
            return self.import_pulled(request, fetch, naming, how, progress);
        }
        let pin = request.check()?;
        progress(Progress::Scanning);
        let content = Content::gather(self, &request.source)?;
        let mut notes = content.notes.clone();
        if request.ownership == Ownership::Caller {
            notes.extend(content.flattened());
        }

        let places = Places::create(&self.dir)?;
        let staging = Staging::create(&places, how.runner)?;
        let layer = make_private(&staging.fd, LAYER, &staging.path.join(LAYER))?;
        let tree_path = staging.path.join(LAYER).join(TREE);
        let tree = make_private(&layer, TREE, &tree_path)?;
        let copied = copy::copy(
            &Copy {
                source: (&content.root, &content.base),
                target: (&tree, &tree_path),
                items: &content.items,
                ownership: request.ownership,
            },
            progress,
        )?;
        content.check_unchanged()?;
        let digest = hex(&copied.digest);
        check_pin(request, pin, &digest)?;
        if copied.xattrs > 0 {
            let what = "extended attributes, capabilities or access lists, which an image does not keep";
            notes.push(format!("{} files have {what}", copied.xattrs));
        }

        let record = Record {
            layers: vec![LayerRecord {
                name: format!("{digest}{}", map_key(request.ownership)),
                tree: Algorithm::Sha256.text(&copied.tree),
                size: content.size(),
            }],
            schema: SCHEMA,
            reference: request.source.to_string(),
            digest,
            ownership: request.ownership,
            config: content.config.clone(),
            size: content.size(),
            notes,
            imported: now(),
            fingerprint: hex(&content.fingerprint),
            watch: content.watch.as_ref().map(Into::into),
            declared: Declared::default(),
            lazy: None,
            built: None,
            stripped: None,
        };
        progress(Progress::Syncing);
        let made = [(LAYER.to_owned(), record.layers[0].name.clone())];
        let records = named(request, record, naming, Vec::new())?;
        staging.publish(&places, &records, &made, how.replace)?;
        self.published(records)
    }

    fn import_archive(
        &self,
        request: &Request<'_>,
        path: &Path,
        naming: Option<Naming>,
        how: How<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<String>, Image), Error> {
        let (archive, fingerprint) = open_settled(path)?;
        let places = Places::create(&self.dir)?;
        let import = Import::begin(self, request, &places, how)?;
        // A worker's job is JSON.
        let name = PathBuf::from(path.to_string_lossy().into_owned());
        let report = import.unpack(name, duplicate(&archive, path)?, Part::All, how, progress)?;
        if archive_state(&archive, path)?.0 != fingerprint {
            return Err(Error::Changed(path.into()));
        }
        let (digest, fingerprint) = (report.digest.clone(), hex(&fingerprint));
        self.keep(request, import, report, (digest, fingerprint), naming, progress)
    }

    fn import_pulled(
        &self,
        request: &Request<'_>,
        fetch: &Fetch<'_>,
        naming: Option<Naming>,
        how: How<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<String>, Image), Error> {
        let pin = request.check()?;
        let places = Places::create(&self.dir)?;
        let import = Import::begin(self, request, &places, how)?;
        let path = import.staging.path.join(LAYOUT);
        let failed = |step| {
            let path = path.clone();
            move |cause| Error::io(step, path, cause)
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let layout =
            rustix::fs::openat(&import.staging.fd, LAYOUT, flags, Mode::RUSR | Mode::WUSR).map_err(failed("create"))?;
        rustix::fs::unlinkat(&import.staging.fd, LAYOUT, AtFlags::empty()).map_err(failed("remove"))?;
        let copy = || layout.try_clone().map_err(|e| Error::std("open", &path, &e));
        let found = fetch(copy()?, &import.have)?;
        check_pin(request, pin, &found.digest)?;
        // What the image is held to is not written by who fetched it.
        rustix::io::pwrite(&layout, &registry::layout::head(&found), 0).map_err(failed("write"))?;
        let report = import.unpack(request.source.to_string().into(), copy()?, Part::Missing, how, progress)?;
        let digest = (found.digest.clone(), found.digest);
        self.keep(request, import, report, digest, naming, progress)
    }

    fn import_bundled(
        &self,
        request: &Request<'_>,
        digest: &str,
        naming: Option<Naming>,
        how: How<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<String>, Image), Error> {
        let Some(bundle) = how.bundle else { return Err(self.not_in_store(&request.source.to_string())) };
        bundle.verify(None, progress)?;
        let places = Places::create(&self.dir)?;
        let import = Import::begin(self, request, &places, how)?;
        let (file, path) = bundle.archive();
        let name = PathBuf::from(path.to_string_lossy().into_owned());
        let report = import.unpack(name, duplicate(file, path)?, Part::Image(digest), how, progress)?;
        bundle.check_unchanged()?;
        if report.digest != digest {
            let text = format!("unpack {}: the worker's report contradicts itself", request.source);
            return Err(Error::Worker { code: String::new(), text, help: None });
        }
        let digest = (digest.to_owned(), digest.to_owned());
        self.keep(request, import, report, digest, naming, progress)
    }

    /// Keeps what was unpacked. `state`: the digest that stands for it, and the state of its source.
    pub(crate) fn keep(
        &self,
        request: &Request<'_>,
        import: Import<'_>,
        report: Report,
        state: (String, String),
        naming: Option<Naming>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<String>, Image), Error> {
        let Import { places, staging, target, target_path, owners: _, known, have, map, replace } = import;
        let is_possible = report.layers.iter().enumerate().all(|(index, layer)| {
            is_digest(&layer.diff)
                && layer.is_lowest == (index == 0)
                && layer.made.as_ref().map_or(have.contains(&layer.key()), |made| Algorithm::of(&made.tree).is_some())
        });
        let diffs: BTreeSet<&String> = report.layers.iter().map(|layer| &layer.diff).collect();
        let is_repeated = diffs.len() < report.layers.len();
        if !is_possible || is_repeated || diffs.is_empty() || !is_digest(&report.digest) {
            let text = format!("unpack {}: the worker's report contradicts itself", request.source);
            return Err(Error::Worker { code: String::new(), text, help: None });
        }
        let (digest, fingerprint) = state;
        check_pin(request, request.check()?, &digest)?;

        let (mut layers, mut made) = (Vec::new(), Vec::new());
        for layer in &report.layers {
            let name = format!("{}{map}", layer.key());
            match &layer.made {
                None => layers.extend(known.get(&name).cloned()),
                Some(new) => {
                    let folder_path = target_path.join(&new.folder);
                    let folder = open_dir(&target, new.folder.as_bytes())
                        .and_then(|folder| open_dir(&folder, TREE.as_bytes()).map(|_| folder))
                        .map_err(|cause| Error::io("open", &folder_path, cause))?;
                    give(&folder, rustix::process::geteuid().as_raw(), &folder_path)?;
                    made.push((format!("{UNPACKED}/{}", new.folder), name.clone()));
                    layers.push(LayerRecord { name, tree: new.tree.clone(), size: new.size });
                }
            }
        }
        let record = Record {
            schema: SCHEMA,
            reference: request.source.to_string(),
            digest,
            ownership: request.ownership,
            config: report.config,
            size: layers.iter().map(|layer| layer.size).sum(),
            notes: report.notes,
            imported: now(),
            fingerprint,
            watch: None,
            layers,
            declared: report.declared,
            lazy: None,
            built: None,
            stripped: None,
        };
        let records = named(request, record, naming, report.names)?;
        progress(Progress::Syncing);
        staging.publish(places, &records, &made, replace)?;
        self.published(records)
    }

    /// Indexes an archive.
    fn import_index(
        &self,
        request: &Request<'_>,
        path: &Path,
        how: How<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<String>, Image), Error> {
        let pin = request.check()?;
        let (archive, fingerprint) = open_settled(path)?;
        let places = Places::create(&self.dir)?;
        let staging = Staging::create(&places, how.runner)?;
        let target_path = staging.path.join(UNPACKED);
        let target = make_private(&staging.fd, UNPACKED, &target_path)?;
        let owners = owners(request.ownership, how.runner)?;
        if let (Ownership::Shifted { base, .. }, true) = (request.ownership, how.runner.is_mapped()) {
            give(&target, base, &target_path)?;
        }
        progress(Progress::Scanning);
        let name = PathBuf::from(path.to_string_lossy().into_owned());
        let job = IndexJob { archive: name, owners, limits: how.limits, hash: pin.is_some() };
        let report = how.runner.index(&job, duplicate(&archive, path)?, &target_path)?;
        if archive_state(&archive, path)?.0 != fingerprint {
            return Err(Error::Changed(path.into()));
        }
        give(&target, rustix::process::geteuid().as_raw(), &target_path)?;
        let own = report.index.strip_prefix("blake3:").filter(|digits| is_digest(digits));
        let digest = report.digest.as_deref().filter(|digits| is_digest(digits));
        let (Some(own), true) = (own, digest.is_some() == job.hash && report.digest.is_some() == job.hash) else {
            let text = format!("index `{}`: the worker's report contradicts itself", shown(path));
            return Err(Error::Worker { code: String::new(), text, help: None });
        };
        let digest = digest.unwrap_or(own).to_owned();
        check_pin(request, pin, &digest)?;
        let size = |name: &str| {
            let stat = rustix::fs::statat(&target, name, AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(|cause| Error::io("stat", target_path.join(name), cause))?;
            Ok::<_, Error>(u64::try_from(stat.st_size).unwrap_or_default())
        };
        let name = format!("{own}-lazy{}", map_key(request.ownership));
        let layer = LayerRecord { name: name.clone(), tree: report.index, size: size(INDEX)? + size(DATA)? };
        let record = Record {
            schema: SCHEMA,
            reference: request.source.to_string(),
            digest,
            ownership: request.ownership,
            config: report.config,
            size: report.size,
            notes: report.notes,
            imported: now(),
            fingerprint: hex(&fingerprint),
            watch: None,
            layers: vec![layer],
            declared: report.declared,
            lazy: Some(LazyRecord { hashed: job.hash, format: lazy::VERSION, unpacked: report.unpacked }),
            built: None,
            stripped: None,
        };
        let records = vec![(record_name(request), record.clone())];
        progress(Progress::Syncing);
        staging.publish(&places, &records, &[(UNPACKED.to_owned(), name)], how.replace)?;
        Ok((vec![record.reference.clone()], self.image_of(request, record)?))
    }

    fn published(&self, records: Vec<(String, Record)>) -> Result<(Vec<String>, Image), Error> {
        let references = records.iter().map(|(_, record)| record.reference.clone()).collect();
        let record = records.into_iter().next().map(|(_, record)| record);
        let image = self.image(record.expect("an import has a name"))?;
        Ok((references, image))
    }
}

/// What of an archive is unpacked.
pub(crate) enum Part<'a> {
    /// The one image that it is.
    All,
    /// What the store does not have, and the archive has nothing else.
    Missing,
    /// The image whose manifest has this digest.
    Image(&'a str),
}

/// The import of something that is unpacked.
pub(crate) struct Import<'a> {
    places: &'a Places,
    staging: Staging<'a>,
    /// Where layers are unpacked.
    target: OwnedFd,
    target_path: PathBuf,
    owners: Owners,
    /// The layers of the store by name, and those of them that need not be unpacked by their keys.
    known: BTreeMap<String, LayerRecord>,
    have: Vec<String>,
    map: String,
    replace: &'a [String],
}

impl<'a> Import<'a> {
    pub(crate) fn begin(store: &Store, request: &Request<'_>, places: &'a Places, how: How<'a>) -> Result<Self, Error> {
        request.check()?;
        let map = map_key(request.ownership);
        let staging = Staging::create(places, how.runner)?;
        let target_path = staging.path.join(UNPACKED);
        let target = make_private(&staging.fd, UNPACKED, &target_path)?;
        let owners = owners(request.ownership, how.runner)?;
        if let (Ownership::Shifted { base, .. }, true) = (request.ownership, how.runner.is_mapped()) {
            give(&target, base, &target_path)?;
        }
        let known = store.known_layers()?;
        let have = known.keys().filter(|name| !how.replace.contains(name) && has_tree(&places.layers, name));
        let have = have.filter_map(|name| name.strip_suffix(&map).map(str::to_owned)).take(MAX_HAVE).collect();
        Ok(Import { places, staging, target, target_path, owners, known, have, map, replace: how.replace })
    }

    pub(crate) fn unpack(
        &self,
        archive: PathBuf,
        file: OwnedFd,
        part: Part<'_>,
        how: How<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Report, Error> {
        let (partial, image) = match part {
            Part::All => (false, None),
            Part::Missing => (true, None),
            Part::Image(digest) => (false, Some(digest.to_owned())),
        };
        let (owners, limits, have) = (self.owners, how.limits, self.have.clone());
        let job = UnpackJob { archive, owners, limits, have, partial, image };
        how.runner.unpack(&job, file, &self.target_path, progress)
    }
}

/// Who owns what `runner` unpacks.
pub(crate) fn owners(ownership: Ownership, runner: &dyn Runner) -> Result<Owners, Error> {
    match (ownership, runner.is_mapped()) {
        (Ownership::Caller, _) => Ok(Owners::Flatten),
        (Ownership::Shifted { count, .. } | Ownership::Subordinate { count, .. }, true) => {
            Ok(Owners::Map { base: 0, count })
        }
        (Ownership::Shifted { base, count }, false) => Ok(Owners::Map { base, count }),
        (Ownership::Subordinate { .. }, false) => Err(Error::NoWorker),
    }
}

/// Makes `id` the owner of a folder, if it is not.
fn give(folder: &OwnedFd, id: u32, path: &Path) -> Result<(), Error> {
    use rustix::fs::{Gid, Uid, fchown, fstat};
    let failed = |cause| Error::io("change owner of", path, cause);
    match fstat(folder).map_err(failed)?.st_uid == id {
        true => Ok(()),
        false => fchown(folder, Some(Uid::from_raw(id)), Some(Gid::from_raw(id))).map_err(failed),
    }
}

/// Opens an archive, once a further change of it would show.
fn open_settled(path: &Path) -> Result<(OwnedFd, Digest), Error> {
    let archive = stream::open(path)?;
    let (mut fingerprint, mut newest) = archive_state(&archive, path)?;
    for _ in 0..SETTLE {
        let Some(pause) = tree::unsettled(newest) else { break };
        std::thread::sleep(pause);
        (fingerprint, newest) = archive_state(&archive, path)?;
    }
    Ok((archive, fingerprint))
}

/// Under which names of its own an image is to be found.
pub(crate) struct Naming {
    name: Option<String>,
    ownership: Ownership,
}

/// The records of an import by their files' names: one for its source, or one for each name.
fn named(
    request: &Request<'_>,
    record: Record,
    naming: Option<Naming>,
    names: Vec<String>,
) -> Result<Vec<(String, Record)>, Error> {
    let Some(Naming { name, ownership }) = naming else { return Ok(vec![(record_name(request), record)]) };
    let names = match name {
        Some(name) => vec![name],
        None => names.iter().map(|name| source::name(name)).collect::<Result<_, _>>()?,
    };
    let path = match &request.source {
        Source::File(path) | Source::Tar(path) | Source::Lazy(path) => path.clone(),
        Source::Host { .. }
        | Source::Local(_)
        | Source::Registry { .. }
        | Source::Bundled { .. }
        | Source::Built { .. }
        | Source::Stripped { .. } => PathBuf::new(),
    };
    if names.is_empty() {
        return Err(Error::Nameless(path));
    }
    let entry = |name: String| {
        let request = Request { source: Source::Local(name), ownership, pin: None };
        (record_name(&request), Record { reference: request.source.to_string(), ..record.clone() })
    };
    Ok(names.into_iter().map(entry).collect())
}
