//! Copying a folder as it is, for volumes that begin with what an image has.

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::Error;
use crate::copy::{Copy, copy, find_hard_links};
use crate::model::Ownership;
use crate::tree::{self, Body};

/// Copies what is in the folder `source` into `target`, an empty folder, which then has the owner, mode and times of
/// `source`, too: owners as they are seen here, hard links and holes kept, extended attributes and special files left out.
/// Nothing happens where `source` is not a folder. To be called as root of a container that both are in, because paths of
/// images lead anywhere.
///
/// # Errors
/// The kernel's, and [`Error::Limit`].
pub fn copy_folder(source: &Path, target: &Path) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path, flags| rustix::fs::openat(CWD, path, flags, Mode::empty());
    let from = match open(source, flags) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        other => other.map_err(|cause| Error::io("open", source, cause))?,
    };
    let to = open(target, flags | OFlags::NOFOLLOW).map_err(|cause| Error::io("open", target, cause))?;
    let mut items = tree::scan(&from, source)?.items;
    items.retain(|item| item.body != Body::Special);
    find_hard_links(&mut items);
    let ownership = Ownership::Shifted { base: 0, count: u32::MAX };
    copy(&Copy { source: (&from, source), target: (&to, target), items: &items, ownership }, &mut |_| {}).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn copies_a_folder_and_nothing_that_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("a/b/file"), "text").unwrap();
        std::fs::hard_link(from.join("a/b/file"), from.join("again")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        rustix::fs::mkfifoat(CWD, from.join("fifo"), Mode::RWXU).unwrap();
        std::fs::set_permissions(&from, std::fs::Permissions::from_mode(0o1770)).unwrap();

        copy_folder(&dir.path().join("none"), &to).unwrap();
        copy_folder(&from.join("again"), &to).unwrap();
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0);

        copy_folder(&from, &to).unwrap();
        assert_eq!(std::fs::read(to.join("again")).unwrap(), b"text");
        let inode = |path: &str| to.join(path).metadata().unwrap().ino();
        assert_eq!(inode("again"), inode("a/b/file"));
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(to.join("fifo").symlink_metadata().is_err());
        assert_eq!(to.metadata().unwrap().mode() & 0o7777, 0o1770);
    }
}
