//! Layers of steps, in the store.
//!
//! ```text
//! builds/<key>[-<map>].json     what a step has made: a layer, or nothing
//! caches/<digest>[-<map>]/data/ folders of RUN --mount=type=cache
//! ```

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::seal::Sealed;
use crate::Error;
use crate::Request;
use crate::catalogue::{LayerRecord, Record, SCHEMA};
use crate::distroless;
use crate::hash::Algorithm;
use crate::model::{Config, Declared, Image, Ownership};
use crate::source::{hex, is_digest, map_key};
use crate::store::{self, LAYER, LAYERS, Places, Staging, Store, has_tree, make_private, open_private};
use crate::unpack::{Runner, TREE, key};

pub(crate) const BUILDS: &str = "builds";
pub(crate) const CACHES: &str = "caches";
const DATA: &str = "data";
/// One that is being set up.
const NEW: &str = "new";
const WORK: &str = "work";
const MAX_RECORD: u64 = 64 << 10;

/// What a step has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    schema: u64,
    layer: Option<LayerRecord>,
}

/// What an image is built of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The lowest first.
    layers: Vec<LayerRecord>,
}

impl Built {
    /// Nothing.
    #[must_use]
    pub fn scratch() -> Self {
        Built { layers: Vec::new() }
    }

    /// How many layers there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.layers.len()
    }

    /// What their folders in the store are called.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.layers.iter().map(|layer| layer.name.as_str()).collect()
    }

    /// With what a step has made on top. Of two that are the same the upper one counts, as in images of archives: an overlay takes no folder
    /// twice, and what a layer does above itself is all that is seen of it.
    pub fn push(&mut self, step: Kept) {
        self.layers.retain(|below| step.layer.as_ref().is_none_or(|layer| layer.name != below.name));
        self.layers.extend(step.layer);
    }

    /// A step's layer alone.
    #[must_use]
    pub fn only(step: Kept) -> Self {
        Built { layers: step.layer.into_iter().collect() }
    }
}

impl Store {
    /// What a step of this key has made, if it is there. Reads only.
    ///
    /// # Errors
    /// A store that is not the caller's own.
    pub fn step(&self, key: &str, ownership: Ownership) -> Result<Option<Kept>, Error> {
        let Some(store) = self.open()? else { return Ok(None) };
        let path = self.dir().join(BUILDS);
        let Some(builds) = open_private(&store, BUILDS, &path)? else { return Ok(None) };
        let name = format!("{key}{}.json", map_key(ownership));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&builds, &*name, flags, Mode::empty()) else { return Ok(None) };
        let mut bytes = Vec::new();
        let read =
            std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::from(file), MAX_RECORD), &mut bytes);
        read.map_err(|e| Error::std("read", path.join(&name), &e))?;
        // One that is damaged, or another version's, is done again.
        let kept: Option<Kept> = serde_json::from_slice(&bytes).ok();
        let is_good = |layer: &LayerRecord| {
            layer.name.get(..64).is_some_and(is_digest)
                && !layer.name.contains('/')
                && Algorithm::of(&layer.tree).is_some()
                && has_tree(&store, &format!("{LAYERS}/{}", layer.name))
        };
        Ok(kept.filter(|kept| kept.schema == SCHEMA && kept.layer.as_ref().is_none_or(is_good)))
    }

    /// The folders of these layers, as [`Image::layers`] names them.
    ///
    /// # Errors
    /// A layer that is gone.
    pub fn folders(&self, built: &Built) -> Result<Vec<PathBuf>, Error> {
        let folder = |layer: &LayerRecord| {
            let tree = self.dir().join(LAYERS).join(&layer.name).join(TREE);
            tree.canonicalize().map_err(|e| Error::std("open", tree, &e))
        };
        built.layers.iter().rev().map(folder).collect()
    }

    /// Removes the caches that steps of builds have (`RUN --mount=type=cache`). No build begins meanwhile.
    ///
    /// # Errors
    /// [`Error::Busy`], and what cannot be removed.
    pub fn remove_caches(&self, runner: &dyn Runner) -> Result<(), Error> {
        let path = self.dir().join(CACHES);
        if self.open()?.map(|store| open_private(&store, CACHES, &path)).transpose()?.flatten().is_none() {
            return Ok(());
        }
        let places = Places::create(self.dir())?;
        let _guard = self.lock_idle(&places, runner)?;
        runner.remove(&path)
    }

    /// What an image of the store is made of, as [`Store::find`] finds it.
    ///
    /// # Errors
    /// [`Error::OnlyIndexed`], and as [`Store::list`].
    pub fn built_of(&self, request: &Request<'_>) -> Result<Option<Built>, Error> {
        let Some(record) = self.record(request)? else { return Ok(None) };
        if record.lazy.is_some() {
            return Err(Error::OnlyIndexed(record.reference));
        }
        Ok(Some(Built { layers: record.layer_records() }))
    }
}

/// A build under way. While it is there nothing is removed from the store.
pub struct Building<'a> {
    store: &'a Store,
    places: Places,
    staging: Staging<'a>,
    ownership: Ownership,
    runner: &'a dyn Runner,
    builds: OwnedFd,
    count: usize,
}

impl std::fmt::Debug for Building<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Building").field("store", &self.store).finish_non_exhaustive()
    }
}

impl<'a> Building<'a> {
    /// Begins one; removes what killed ones left.
    ///
    /// # Errors
    /// Those of making folders.
    pub fn begin(store: &'a Store, ownership: Ownership, runner: &'a dyn Runner) -> Result<Self, Error> {
        let places = Places::create(store.dir())?;
        let staging = Staging::create(&places, runner)?;
        let builds = make_private(places.store(), BUILDS, &store.dir().join(BUILDS))?;
        Ok(Building { store, places, staging, ownership, runner, builds, count: 0 })
    }

    /// Does a step and keeps what it made. `work` is given a folder in which `layer/tree` is to be filled, and `work` is there
    /// for overlayfs.
    ///
    /// # Errors
    /// Those of `work`, and of writing.
    pub fn step<E: From<Error>>(
        &mut self,
        key: &str,
        is_lowest: bool,
        work: impl FnOnce(&Path) -> Result<Sealed, E>,
    ) -> Result<Kept, E> {
        self.count += 1;
        let name = self.count.to_string();
        let path = self.staging.path().join(&name);
        let folder = make_private(self.staging.fd(), name.as_str(), &path)?;
        let layer = make_private(&folder, LAYER, &path.join(LAYER))?;
        let tree = make_private(&layer, TREE, &path.join(LAYER).join(TREE))?;
        rustix::fs::fchmod(&tree, Mode::from_raw_mode(0o755))
            .map_err(|cause| Error::io("set the mode of", path.join(LAYER).join(TREE), cause))?;
        make_private(&folder, WORK, &path.join(WORK))?;
        let sealed = work(&path)?;
        let contradicts = || Error::Worker {
            code: String::new(),
            text: "make a layer: the worker's report contradicts itself".into(),
            help: None,
        };
        if Algorithm::of(&sealed.tree).is_none() || sealed.diff.as_ref().is_some_and(|diff| !is_digest(diff)) {
            return Err(contradicts().into());
        }
        let map = map_key(self.ownership);
        let layer = sealed.diff.map(|diff| {
            let name = format!("{}{map}", self::key(&diff, is_lowest));
            LayerRecord { name, tree: sealed.tree, size: sealed.size }
        });
        let made: Vec<(String, String)> =
            layer.iter().map(|layer| (format!("{name}/{LAYER}"), layer.name.clone())).collect();
        let kept = Kept { schema: SCHEMA, layer };
        let json = serde_json::to_vec(&kept).map_err(|e| Error::std("write", &path, &e.into()))?;
        let record = (format!("{key}{map}.json"), json);
        self.staging.publish_in(&self.places, (&self.builds, BUILDS), &[record], (&made, &[]))?;
        // Its work folder, and a layer that is nothing.
        self.runner.remove(&path)?;
        Ok(kept)
    }

    /// Keeps an image. `from`: what it was built from, for people; `fingerprint`: the key of its last step.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(
        &self,
        request: &Request<'_>,
        built: Built,
        says: (Config, Declared),
        (from, fingerprint): (String, String),
    ) -> Result<Image, Error> {
        self.keep(request, built, says, fingerprint, (Some(from), None))
    }

    /// Keeps what was kept of an image.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish_stripped(
        &self,
        request: &Request<'_>,
        built: Built,
        of: &Image,
        fingerprint: String,
        kept: distroless::Kept,
    ) -> Result<Image, Error> {
        self.keep(request, built, (of.config.clone(), of.declared.clone()), fingerprint, (None, Some(kept)))
    }

    fn keep(
        &self,
        request: &Request<'_>,
        built: Built,
        (config, declared): (Config, Declared),
        fingerprint: String,
        (from, stripped): (Option<String>, Option<distroless::Kept>),
    ) -> Result<Image, Error> {
        let mut record = Record {
            schema: SCHEMA,
            reference: request.source.to_string(),
            digest: String::new(),
            ownership: request.ownership,
            config,
            size: built.layers.iter().map(|layer| layer.size).sum(),
            notes: Vec::new(),
            imported: store::now(),
            fingerprint,
            watch: None,
            layers: built.layers,
            declared,
            lazy: None,
            built: from,
            stripped,
        };
        record.digest = digest(&record);
        let json = serde_json::to_vec(&record).map_err(|e| Error::std("write", "a record", &e.into()))?;
        let records = [(store::record_name(request), json)];
        self.staging.publish_in(&self.places, (self.places.catalogue(), store::CATALOGUE), &records, (&[], &[]))?;
        self.store.image(record)
    }

    /// The folder of a cache. Where there is none it is made, and `set_up` before it is taken for one.
    ///
    /// # Errors
    /// Those of making folders, and of `set_up`.
    pub fn cache<E: From<Error>>(&self, id: &str, set_up: impl FnOnce(&Path) -> Result<(), E>) -> Result<PathBuf, E> {
        let path = self.store.dir().join(CACHES);
        let caches = make_private(self.places.store(), CACHES, &path)?;
        let name = format!("{}{}", hex(&Sha256::digest(id).into()), map_key(self.ownership));
        let path = path.join(&name);
        let cache = make_private(&caches, name.as_str(), &path)?;
        let (new, data) = (path.join(NEW), path.join(DATA));
        // Other builds wait until it is set up: they would take it for one whose builder was killed.
        rustix::io::retry_on_intr(|| flock(&cache, FlockOperation::LockExclusive))
            .map_err(|cause| Error::io("lock", &path, cause))?;
        if rustix::fs::statat(&cache, DATA, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(data);
        }
        // One that is not as it should be, because whoever set it up was killed: empty, and perhaps not the caller's to look into.
        match rustix::fs::unlinkat(&cache, NEW, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(cause) => return Err(Error::io("remove", new, cause).into()),
        }
        rustix::fs::mkdirat(&cache, NEW, Mode::RWXU).map_err(|cause| Error::io("create directory", &new, cause))?;
        set_up(&new)?;
        rustix::fs::renameat(&cache, NEW, &cache, DATA).map_err(|cause| Error::io("rename", &data, cause))?;
        Ok(data)
    }

    /// A file without a name, for what is copied.
    ///
    /// # Errors
    /// Those of making it.
    pub fn spool(&self) -> Result<std::fs::File, Error> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = self.staging.path().join("spool");
        let file = rustix::fs::openat(self.staging.fd(), "spool", flags, Mode::RUSR | Mode::WUSR)
            .map_err(|cause| Error::io("create", &path, cause))?;
        rustix::fs::unlinkat(self.staging.fd(), "spool", AtFlags::empty())
            .map_err(|cause| Error::io("remove", path, cause))?;
        Ok(file.into())
    }
}

/// Of an image that was built: of its layers and of what it says of itself.
fn digest(record: &Record) -> String {
    let map = map_key(record.ownership);
    let layers: Vec<&str> =
        record.layers.iter().map(|layer| layer.name.strip_suffix(&map).unwrap_or(&layer.name)).collect();
    let json = serde_json::to_vec(&(layers, &record.config, &record.declared)).expect("a record is plain data");
    hex(&Sha256::digest(json).into())
}

/// Removes records of steps whose layers are gone.
pub(crate) fn prune(store: &Store) -> Result<(), Error> {
    let Some(opened) = store.open()? else { return Ok(()) };
    let path = store.dir().join(BUILDS);
    let Some(builds) = open_private(&opened, BUILDS, &path)? else { return Ok(()) };
    for entry in std::fs::read_dir(&path).map_err(|e| Error::std("list", &path, &e))? {
        let entry = entry.map_err(|e| Error::std("list", &path, &e))?;
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        let kept: Option<Kept> = serde_json::from_slice(&bytes).ok();
        let has_layer =
            |layer: Option<LayerRecord>| layer.is_none_or(|l| has_tree(&opened, &format!("{LAYERS}/{}", l.name)));
        if !kept.is_some_and(|kept| has_layer(kept.layer)) {
            rustix::fs::unlinkat(&builds, entry.file_name(), AtFlags::empty())
                .map_err(|cause| Error::io("remove", entry.path(), cause))?;
        }
    }
    Ok(())
}
