//! Images that are read from their archive while containers run on them: an index of the archive's headers is made once, and
//! a file system in user space (fuse(4)) shows what it describes.
//!
//! What a pinned archive holds is known by its digest before the first container starts, and each block that is read later is
//! compared with a digest of its own, which was taken of the very bytes that the pin was compared with. Of one without a pin
//! nobody said what it holds: there it is made sure only that it is the file that was indexed, by its size and time of
//! modification, whenever something was read.

mod build;
mod index;
mod serve;

pub(crate) use build::build;
pub use build::{IndexJob, Indexed};
pub(crate) use index::INDEX;
pub use serve::{Lazy, serve};

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::Error;

/// Makes sure that the index at `path` has this digest and fits together.
pub(crate) fn verify(path: &Path, digest: &str) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|cause| Error::io("open", path, cause))?;
    index::Index::read(&file, path, digest).map(drop)
}
