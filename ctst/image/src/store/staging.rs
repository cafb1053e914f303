//! Where an import happens: a folder that is locked as long as it runs, from which what is whole gets its name by one rename.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{CATALOGUE, LAYERS, has_tree};
use crate::Error;
use crate::catalogue::Record;
use crate::unpack::Runner;

pub(super) const STAGING: &str = "staging";
pub(super) const LOCK: &str = "lock";

/// Opens a directory that must be the caller's alone; `None` when it is not there.
pub(crate) fn open_private(
    parent: impl std::os::fd::AsFd,
    name: impl rustix::path::Arg,
    path: &Path,
) -> Result<Option<OwnedFd>, Error> {
    let wrong = |why| Err(Error::Store { path: path.into(), why });
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => return wrong("is not a directory"),
        Err(cause) => return Err(Error::io("open", path, cause)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|cause| Error::io("stat", path, cause))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return wrong("belongs to another user");
    }
    if stat.st_mode & 0o077 != 0 {
        return wrong("is open to other users");
    }
    Ok(Some(fd))
}

/// The same, made if need be.
pub(crate) fn make_private(
    parent: impl std::os::fd::AsFd,
    name: impl rustix::path::Arg + std::marker::Copy,
    path: &Path,
) -> Result<OwnedFd, Error> {
    let made = match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(cause) => return Err(Error::io("create directory", path, cause)),
    };
    let fd = open_private(&parent, name, path)?.ok_or_else(|| Error::io("open", path, Errno::NOENT))?;
    if made {
        // A setgid parent hands its group and bit on, and with them every file below would get another group.
        let group = Some(rustix::process::getegid());
        rustix::fs::fchown(&fd, None, group)
            .and_then(|()| rustix::fs::fchmod(&fd, Mode::RWXU))
            .map_err(|cause| Error::io("create directory", path, cause))?;
    }
    Ok(fd)
}

/// The store's folders, open for writing.
pub(crate) struct Places {
    store: OwnedFd,
    pub(super) catalogue: OwnedFd,
    pub(super) layers: OwnedFd,
    pub(super) staging: OwnedFd,
    dir: PathBuf,
}

impl Places {
    pub(crate) fn create(dir: &Path) -> Result<Places, Error> {
        if let Some(parent) = dir.parent() {
            std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
                .recursive(true)
                .create(parent)
                .map_err(|e| Error::std("create directory", parent, &e))?;
        }
        let store = make_private(CWD, dir, dir)?;
        let make = |name: &str| make_private(&store, name, &dir.join(name));
        let (catalogue, layers, staging) = (make(CATALOGUE)?, make(LAYERS)?, make(STAGING)?);
        Ok(Places { store, catalogue, layers, staging, dir: dir.into() })
    }

    /// Whether an import would begin at once, and not wait for another command.
    pub(crate) fn are_free(&self) -> Result<bool, Error> {
        match lock(&self.staging, &self.dir.join(STAGING), FlockOperation::NonBlockingLockExclusive) {
            Ok(_) => Ok(true),
            Err(Error::Io { cause: Errno::WOULDBLOCK, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn store(&self) -> &OwnedFd {
        &self.store
    }

    pub(crate) fn catalogue(&self) -> &OwnedFd {
        &self.catalogue
    }
}

/// The folder of one import. What is still in it when it is dropped is removed.
pub(crate) struct Staging<'a> {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
    runner: &'a dyn Runner,
    /// Held until the folder is gone.
    _lock: OwnedFd,
}

impl<'a> Staging<'a> {
    /// Removes what crashed imports left, and makes a folder.
    pub(crate) fn create(places: &Places, runner: &'a dyn Runner) -> Result<Staging<'a>, Error> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = places.dir.join(STAGING);
        let _guard = lock(&places.staging, &path, FlockOperation::LockExclusive)?;
        sweep(&places.staging, &path, runner)?;
        // Names of the living differ by pid; what could not be removed may have any.
        let path = loop {
            let path = path.join(format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
            if path.symlink_metadata().is_err() {
                break path;
            }
        };
        let name = path.file_name().unwrap_or_default();
        let fd = make_private(&places.staging, name, &path)?;
        let lock = lock(&fd, &path, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Staging { fd, path, runner, _lock: lock })
    }

    /// A new file in it.
    pub(super) fn file(&self, name: &str) -> Result<std::fs::File, Error> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR);
        file.map(std::fs::File::from).map_err(|cause| Error::io("create", self.path.join(name), cause))
    }

    /// Brings everything to the disk and then under its final name; `made` are the layers' folders in the staging folder
    /// and in the store; those of `replace` take the place of what is there.
    pub(super) fn publish(
        &self,
        places: &Places,
        records: &[(String, Record)],
        made: &[(String, String)],
        replace: &[String],
    ) -> Result<(), Error> {
        let json = |(name, record): &(String, Record)| {
            let json = serde_json::to_vec(record).map_err(|e| Error::std("write", self.path.join(name), &e.into()))?;
            Ok((name.clone(), json))
        };
        let records = records.iter().map(json).collect::<Result<Vec<_>, Error>>()?;
        self.publish_in(places, (&places.catalogue, CATALOGUE), &records, (made, replace))
    }

    /// The same with records, as they are written, for this folder of the store.
    pub(crate) fn publish_in(
        &self,
        places: &Places,
        (folder, folder_name): (&OwnedFd, &str),
        records: &[(String, Vec<u8>)],
        (made, replace): (&[(String, String)], &[String]),
    ) -> Result<(), Error> {
        for (name, json) in records {
            let path = self.path.join(name);
            let written = |cause| Error::io("write", &path, cause);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.fd, &**name, flags, Mode::RUSR | Mode::WUSR).map_err(written)?;
            std::io::Write::write_all(&mut &std::fs::File::from(file), json)
                .map_err(|e| Error::std("write", &path, &e))?;
        }
        // One pass over the file system instead of one for each of thousands of files.
        rustix::fs::syncfs(&self.fd).map_err(|cause| Error::io("sync", &self.path, cause))?;

        let layers = places.dir.join(LAYERS);
        for (from, layer) in made {
            let target = layers.join(layer);
            let moved = |cause| Error::io("publish", &target, cause);
            if replace.contains(layer) && has_tree(&places.layers, layer) {
                // At no moment there is none. What was there is removed with the staging folder.
                rustix::fs::renameat_with(&self.fd, from, &places.layers, layer, RenameFlags::EXCHANGE)
                    .map_err(moved)?;
                continue;
            }
            match rustix::fs::renameat(&self.fd, from, &places.layers, layer) {
                Ok(()) => {}
                // Another import was faster, or another reference has the same content.
                Err(Errno::EXIST | Errno::NOTEMPTY) => {
                    if !has_tree(&places.layers, layer) {
                        self.runner.remove(&target)?;
                        rustix::fs::renameat(&self.fd, from, &places.layers, layer).map_err(moved)?;
                    }
                }
                Err(cause) => return Err(moved(cause)),
            }
        }
        let moved = |cause| Error::io("publish", &layers, cause);
        rustix::fs::fsync(&places.layers).map_err(moved)?;
        let target = places.dir.join(folder_name);
        let published = |cause| Error::io("publish", &target, cause);
        for (name, _) in records {
            rustix::fs::renameat(&self.fd, &**name, folder, &**name).map_err(published)?;
        }
        rustix::fs::fsync(folder).map_err(published)
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next import.
        let _ = self.runner.remove(&self.path);
    }
}

/// Removes what crashed imports left; whether others are running. The caller holds the lock.
pub(super) fn sweep(staging: &OwnedFd, path: &Path, runner: &dyn Runner) -> Result<bool, Error> {
    let mut is_busy = false;
    for entry in std::fs::read_dir(path).map_err(|e| Error::std("list", path, &e))? {
        let name = entry.map_err(|e| Error::std("list", path, &e))?.file_name();
        if name == LOCK {
            continue;
        }
        let old = path.join(&name);
        let in_use = match open_private(staging, &name, &old) {
            Ok(Some(folder)) => lock(&folder, &old, FlockOperation::NonBlockingLockExclusive)
                .is_err_and(|e| matches!(e, Error::Io { cause: Errno::WOULDBLOCK, .. })),
            _ => false,
        };
        is_busy |= in_use;
        if !in_use {
            match runner.remove(&old) {
                // Of other ids than this runner's, which only a worker can remove.
                Err(Error::Io { cause: Errno::ACCESS | Errno::PERM, .. }) => {}
                other => other?,
            }
        }
    }
    Ok(is_busy)
}

/// Locks the file [`LOCK`] of a folder, for as long as the descriptor is open: the kernel frees it when the process ends,
/// however it ends.
pub(super) fn lock(folder: &OwnedFd, path: &Path, operation: FlockOperation) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = path.join(LOCK);
    let fd = rustix::fs::openat(folder, LOCK, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|cause| Error::io("open", &path, cause))?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, operation)).map_err(|cause| Error::io("lock", &path, cause))?;
    Ok(fd)
}
