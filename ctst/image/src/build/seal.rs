//! Makes a layer of what a step has written: in a worker, on the folder that overlayfs wrote to.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::copy;
use crate::hash::Algorithm;
use crate::pack;
use crate::source::hex;
use crate::tree::{self, Body, join, open_dir};
use crate::unpack::{OPAQUE_ATTRIBUTE, Owners};

const ALGORITHM: Algorithm = Algorithm::Blake3;
/// The kernel gives no longer list (`XATTR_LIST_MAX` of `linux/limits.h`).
const MAX_NAMES: usize = 64 << 10;

/// What a layer is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealJob {
    /// Who owns the files.
    pub owners: Owners,
    /// Nothing is below it, so that there is nothing to hide.
    pub is_lowest: bool,
    /// Where something was mounted, absolute: empty files and folders there were made for that.
    pub mounted: Vec<String>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// SHA-256 of it as a tar stream, 64 hexadecimal digits. `None`: nothing was written.
    pub diff: Option<String>,
    /// Digest of the tree: `blake3:` and 64 hexadecimal digits.
    pub tree: String,
    /// Size of all files in bytes.
    pub size: u64,
}

/// Takes away what only overlayfs had a use for, and computes the digests. `sink`: `/dev/null`, open for writing.
pub(crate) fn seal(job: &SealJob, root: &OwnedFd, base: &Path, sink: OwnedFd) -> Result<Sealed, Error> {
    for place in &job.mounted {
        unmount(root, place.trim_matches('/').as_bytes())
            .map_err(|cause| Error::io("clean up", base.join(place), cause))?;
    }
    let scan = tree::scan(root, base)?;
    for item in &scan.items {
        let failed = |step| move |cause| Error::io(step, join(base, &item.path), cause);
        let refused = |why: &str| Error::Copy {
            what: crate::error::text(&String::from_utf8_lossy(&item.path)),
            why: why.to_owned(),
        };
        // As a stream the layer, which is known by its digest, would be one that hides something.
        if item.split().1.starts_with(b".wh.") {
            return Err(refused("its name begins with `.wh.`, which hides files in layers"));
        }
        match item.body {
            Body::Directory => {
                let folder = open_dir(root, &item.path).map_err(failed("open"))?;
                strip(&folder, job.is_lowest).map_err(failed("remove attributes of"))?;
            }
            Body::File => {
                let (folder, name) = item.split();
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                open_dir(root, folder)
                    .and_then(|folder| rustix::fs::openat(folder, name, flags, Mode::empty()))
                    .and_then(|file| strip(&file, true))
                    .map_err(failed("remove attributes of"))?;
            }
            Body::Special => {
                let (folder, name) = item.split();
                let folder = open_dir(root, folder).map_err(failed("open"))?;
                let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("stat"))?;
                let is_whiteout = item.meta.kind == FileType::CharacterDevice && stat.st_rdev == 0;
                // A socket is nothing without who listens on it.
                if item.meta.kind == FileType::Socket || is_whiteout && job.is_lowest {
                    rustix::fs::unlinkat(&folder, name, AtFlags::empty()).map_err(failed("remove"))?;
                } else if !is_whiteout && item.meta.kind != FileType::Fifo {
                    return Err(refused("it is a device, which no layer holds"));
                } else if item.meta.kind == FileType::Fifo {
                    strip_lists(&folder, name).map_err(failed("remove attributes of"))?;
                }
            }
            _ => {}
        }
    }
    let scan = tree::scan(root, base)?;
    // Only the root, which every layer has.
    let is_empty = scan.items.len() <= 1;
    let size = scan.items.iter().filter(|item| item.body == Body::File).map(|item| item.meta.size).sum();
    let tree = ALGORITHM.text(&copy::hash_tree(ALGORITHM, root, base, job.owners.ids())?);
    let diff = match is_empty {
        true => None,
        false => Some(hex(&pack::pack(root, base, job.owners, sink)?)),
    };
    Ok(Sealed { diff, tree, size })
}

/// Removes an empty file or folder.
fn unmount(root: &OwnedFd, path: &[u8]) -> Result<(), Errno> {
    let (folder, name) = match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b""[..], path),
    };
    // Behind a link it is left, which does no harm.
    let folder = match open_dir(root, folder) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        other => other?,
    };
    let stat = match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => match rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            other => other,
        },
        FileType::RegularFile if stat.st_size == 0 => rustix::fs::unlinkat(&folder, name, AtFlags::empty()),
        _ => Ok(()),
    }
}

/// Attributes beside those of users that a file can have and a stream of a layer does not: capabilities, which nothing in a container gets by
/// executing a file, and access control lists (acl(5)).
const UNPACKED: [&str; 3] = ["security.capability", "system.posix_acl_access", "system.posix_acl_default"];

/// Takes the access control lists of a pipe, which nobody wants to open.
fn strip_lists(folder: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pipe = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    let place = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    for name in UNPACKED {
        match rustix::fs::removexattr(&*place, name) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

/// Takes away overlayfs's attributes, but for the one by which a folder hides what is below, and what the layer's digest would not tell of.
fn strip(file: &OwnedFd, also_opaque: bool) -> Result<(), Errno> {
    let mut names = vec![0; MAX_NAMES];
    let length = match rustix::fs::flistxattr(file, &mut names) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    names.truncate(length);
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let is_untold = name.starts_with(b"user.") && std::str::from_utf8(name).is_err();
        if is_untold || UNPACKED.iter().any(|other| other.as_bytes() == name) {
            rustix::fs::fremovexattr(file, name)?;
            continue;
        }
        if !name.starts_with(b"user.overlay.") {
            continue;
        }
        if name != OPAQUE_ATTRIBUTE.as_bytes() || also_opaque {
            rustix::fs::fremovexattr(file, name)?;
        } else {
            // The one value that layers of archives have.
            rustix::fs::fsetxattr(file, name, b"y", XattrFlags::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_stream_tells_of_goes() {
        // Here, because not every /tmp has lists.
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        let file: OwnedFd = std::fs::File::open(&path).unwrap().into();
        // acl(5) as linux/posix_acl_xattr.h has it: user::rw-, user:65534:rw-, group::---, mask::rw-, other::---.
        let mut list = 2u32.to_le_bytes().to_vec();
        for (tag, bits, id) in
            [(1u16, 6u16, u32::MAX), (2, 6, 65534), (4, 0, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)]
        {
            list.extend([tag.to_le_bytes(), bits.to_le_bytes()].concat());
            list.extend(id.to_le_bytes());
        }
        rustix::fs::fsetxattr(&file, "system.posix_acl_access", &list, XattrFlags::empty()).unwrap();
        rustix::fs::fsetxattr(&file, "user.kept", b"1", XattrFlags::empty()).unwrap();
        rustix::fs::fsetxattr(&file, b"user.\xff".as_slice(), b"1", XattrFlags::empty()).unwrap();
        rustix::fs::fsetxattr(&file, "user.overlay.x", b"1", XattrFlags::empty()).unwrap();
        strip(&file, true).unwrap();
        let mut names = vec![0; 4096];
        let length = rustix::fs::flistxattr(&file, &mut names).unwrap();
        assert_eq!(&names[..length], b"user.kept\0");
    }
}
