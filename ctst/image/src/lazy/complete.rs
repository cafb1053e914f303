//! Unpacks an archive of which there is an index, while containers read from it, so that the next ones have its layers.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, fstatvfs, openat};
use rustix::io::Errno;

use super::Lazy;
use crate::archive::stream;
use crate::catalogue::Record;
use crate::model::Image;
use crate::source::hex;
use crate::store::{How, Import, LAYERS, Part, Places, Progress, archive_state, duplicate};
use crate::unpack::{Runner, TREE};
use crate::{Error, Request, Source, Store};

/// How often it is looked whether somebody else has unpacked an archive.
const LOOK: Duration = Duration::from_secs(1);
/// Times what an image's layers take that have to be free: somebody else needs room, too, and file systems more than files have.
const ROOM: u64 = 2;

impl Store {
    /// Unpacks an archive as [`Store::import`] does, from the file that was opened as `archive`, if that is what the index of
    /// `lazy` was made of: whoever asks for the image from then on gets layers, unless it is by [`Store::find_indexed`]. Waits
    /// while another process does the same, as long as `goes_on`. `false`: it did not go on.
    ///
    /// # Errors
    /// [`Error::NoRoom`], [`Error::Changed`], [`Error::NotInStore`] without that index, and as [`Store::import`]. Nothing of it stays.
    pub fn complete(
        &self,
        request: &Request<'_>,
        lazy: &Lazy,
        archive: &OwnedFd,
        how: How<'_>,
        goes_on: &dyn Fn() -> bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<bool, Error> {
        let path = &lazy.archive;
        let at = |source| Request { source, ..request.clone() };
        let (indexed, unpacked) = (at(Source::Lazy(path.clone())), at(Source::Tar(path.clone())));
        let missing = || self.not_in_store(&indexed.source.to_string());
        let index = self.record(&indexed)?.filter(|record| is_of(record, &lazy.index)).ok_or_else(missing)?;
        let folder_path = self.dir().join(LAYERS).join(&index.layers[0].name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder =
            openat(CWD, &folder_path, flags, Mode::empty()).map_err(|cause| Error::io("open", &folder_path, cause))?;
        loop {
            match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if goes_on() => std::thread::sleep(LOOK),
                Err(Errno::WOULDBLOCK) => return Ok(false),
                Err(cause) => return Err(Error::io("lock", &folder_path, cause)),
            }
        }
        let (state, _) = archive_state(archive, path)?;
        if hex(&state) != index.fingerprint {
            return Err(Error::Changed(path.clone()));
        }
        if self.record(&unpacked)?.is_some_and(|record| record.fingerprint == index.fingerprint) {
            return Ok(true);
        }
        let places = Places::create(self.dir())?;
        // Another command may have it for long, or be stopped.
        while !places.are_free()? {
            if !goes_on() {
                return Ok(false);
            }
            std::thread::sleep(LOOK / 10);
        }
        let import = Import::begin(self, &unpacked, &places, how)?;
        if !goes_on() {
            return Ok(false);
        }
        let stat = fstatvfs(places.store()).map_err(|cause| Error::io("stat", self.dir(), cause))?;
        let size = index.lazy.map_or(0, |lazy| lazy.unpacked).max(index.size);
        let (free, wanted) = (stat.f_bavail.saturating_mul(stat.f_frsize), size.saturating_mul(ROOM));
        if free < wanted {
            return Err(Error::NoRoom { archive: path.clone(), free, wanted });
        }
        let name = PathBuf::from(path.to_string_lossy().into_owned());
        let report = import.unpack(name, duplicate(archive, path)?, Part::All, how, progress)?;
        let is_other = index.lazy.is_some_and(|lazy| lazy.hashed) && report.digest != index.digest;
        if archive_state(archive, path)?.0 != state || is_other {
            return Err(Error::Changed(path.clone()));
        }
        if !goes_on() {
            return Ok(false);
        }
        let digest = (report.digest.clone(), index.fingerprint);
        self.keep(&unpacked, import, report, digest, None, progress)?;
        Ok(true)
    }

    /// The image as it is read from its archive by this index, which is not what [`Store::find`] gives once that was unpacked.
    ///
    /// # Errors
    /// As [`Store::find`].
    pub fn find_indexed(&self, request: &Request<'_>, index: &str) -> Result<Option<Image>, Error> {
        let Source::Lazy(path) = &request.source else { return Ok(None) };
        let archive = stream::open(path)?;
        let image = self.find_imported(request, request.check()?, Some(archive))?;
        Ok(image.filter(|image| image.lazy.as_ref().is_some_and(|lazy| lazy.index == index)))
    }

    /// Removes indexes of archives that were unpacked since, but for those among `keep`, as [`Image::layers`]
    /// names them. Returns the names of their folders.
    ///
    /// # Errors
    /// As [`Store::list`], and what cannot be removed.
    pub fn forget_indexes(&self, keep: &[PathBuf], runner: &dyn Runner) -> Result<Vec<String>, Error> {
        let records = self.records()?;
        let is_unpacked = |index: &Record| {
            let same = |record: &Record| {
                record.lazy.is_none()
                    && (&record.reference, record.ownership, &record.fingerprint)
                        == (&index.reference, index.ownership, &index.fingerprint)
            };
            records.iter().any(|(_, record)| same(record))
        };
        let folder = |index: &Record| self.dir().join(LAYERS).join(&index.layers[0].name);
        let is_kept = |index: &Record| folder(index).join(TREE).canonicalize().is_ok_and(|tree| keep.contains(&tree));
        let old: Vec<_> = records
            .iter()
            .filter(|(_, index)| {
                index.lazy.is_some() && !index.layers.is_empty() && is_unpacked(index) && !is_kept(index)
            })
            .collect();
        if old.is_empty() {
            return Ok(Vec::new());
        }
        let places = Places::create(self.dir())?;
        for (name, index) in &old {
            match rustix::fs::unlinkat(places.catalogue(), name.as_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => runner.remove(&folder(index))?,
                Err(cause) => return Err(Error::io("remove", self.dir().join(name), cause)),
            }
        }
        Ok(old.iter().map(|(_, index)| index.layers[0].name.clone()).collect())
    }
}

fn is_of(record: &Record, index: &str) -> bool {
    record.lazy.is_some() && matches!(&record.layers[..], [layer] if layer.tree == index)
}
