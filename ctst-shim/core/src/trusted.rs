//! Files of the administrator's, for a reader who may have more rights than who started it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2};

/// Opens the file `name` of `folder` for reading. Both belong to root and only root may write to them; the file is a regular
/// one, and nothing on the way is a symbolic link.
///
/// # Errors
/// Which of these does not hold, and the kernel's.
pub fn open(folder: &str, name: &str) -> io::Result<OwnedFd> {
    let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat2(CWD, folder, path, Mode::empty(), how)?;
    // It may be a FIFO, whose other end nobody has.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat2(&folder, name, flags, Mode::empty(), how | ResolveFlags::BENEATH)?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is not a regular file"));
    }
    if !is_roots(&fstat(&folder)?) || !is_roots(&stat) {
        return Err(io::Error::other("it, or its folder, does not belong to root, or others may write to it"));
    }
    Ok(file)
}

fn is_roots(stat: &Stat) -> bool {
    stat.st_uid == 0 && stat.st_mode & 0o022 == 0
}

/// The content of a file that [`open`] opened.
///
/// # Errors
/// A file of more than `limit` bytes, and the kernel's.
pub fn read(file: impl AsFd, limit: usize) -> io::Result<Vec<u8>> {
    let mut content = vec![0; limit.saturating_add(1)];
    let mut length = 0;
    loop {
        let rest = content.get_mut(length..).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::Error::other(format!("it has more than {limit} bytes")));
        }
        match rustix::io::read(&file, rest) {
            Ok(0) => break,
            Ok(n) => length = length.saturating_add(n),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    content.truncate(length);
    Ok(content)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "test code")]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn takes_roots_files_only() {
        assert!(open("/etc", "passwd").is_ok_and(|file| read(file, 1 << 20).is_ok_and(|text| !text.is_empty())));
        assert!(open("/etc", "passwd").is_ok_and(|file| read(file, 3).is_err()));
        assert!(open("/etc", "../etc/passwd").is_err());
        assert!(open("/dev", "null").is_err_and(|e| e.to_string().contains("regular")));
        // Root's folder, which others may write to.
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let path = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        assert!(open(path, "link").is_err());
        assert!(open(path, "none").is_err());
        rustix::fs::mknodat(CWD, dir.path().join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(open(path, "fifo").is_err_and(|e| e.to_string().contains("regular")));
        let owned = rustix::process::getuid().is_root();
        assert_eq!(open(path, "file").is_ok(), owned);
        std::fs::set_permissions(dir.path().join("file"), PermissionsExt::from_mode(0o664)).unwrap();
        assert!(open(path, "file").is_err());
        std::fs::set_permissions(dir.path().join("file"), PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(open(path, "file").is_err());
    }
}
