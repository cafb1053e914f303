//! Images that are read from their archive while containers run on them: an index of the archive's headers is made once, and
//! a file system in user space (fuse(4)) shows what it describes.
//!
//! What a pinned archive holds is known by its digest before the first container starts, and each block that is read later is
//! compared with a digest of its own, which was taken of the very bytes that the pin was compared with. Of one without a pin
//! nobody said what it holds: there it is made sure only that it is the file that was indexed, by its size and time of
//! modification, whenever something was read.
//!
//! A compressed archive is decompressed once, when it is indexed. Where its decoder could begin again is kept (gzip: between
//! blocks, zstd: between frames), and what lies between has a digest, with a pin or without. Where it could not, what comes out
//! is kept itself.

mod build;
mod complete;
mod gzip;
mod index;
mod pieces;
mod read;
mod serve;
mod steps;

pub(crate) use build::build;
pub use build::{IndexJob, Indexed};
pub(crate) use index::{DATA, INDEX, VERSION};
pub use serve::{Lazy, serve};

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::Error;

/// Makes sure that the index in `folder` has this digest and fits together, and that what is beside it is as it was.
pub(crate) fn verify(folder: &Path, digest: &str) -> Result<(), Error> {
    let open = |name: &str| {
        let path = folder.join(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, &path, flags, Mode::empty());
        file.map(|file| (file, path.clone())).map_err(|cause| Error::io("open", path, cause))
    };
    let ((file, path), (data, data_path)) = (open(INDEX)?, open(DATA)?);
    let index = index::Index::read(&file, &path, digest)?;
    // Nothing of the archive is looked at.
    match read::Reader::new(index, file, data).verify() {
        Ok(()) => Ok(()),
        Err(read::Trouble::Refused(cause)) => Err(Error::io("read", data_path, cause)),
        Err(_) => Err(Error::Index { path: data_path, why: "is not what was made".into() }),
    }
}
