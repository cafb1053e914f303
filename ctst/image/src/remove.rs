//! Removes trees whose directories may be closed to their owner.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use crate::Error;

/// Directories deeper than this are moved up before they are emptied: each level holds a descriptor.
const DEPTH: usize = 64;

/// Removes `path` and everything below, whatever the modes; a `path` that does not exist is fine. Symbolic links are
/// removed, not followed, and a file system mounted below stops it before anything in there is touched.
///
/// # Errors
/// [`Error::Io`] where the kernel refuses, such as files of other owners in a directory that is not the caller's.
pub fn remove_tree(path: &Path) -> Result<(), Error> {
    let failed = |cause| Error::io("remove", path, cause);
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| failed(Errno::INVAL))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(cause) => return Err(failed(cause)),
    };
    remove_at(&parent, name.as_bytes()).map_err(failed)
}

/// Removes the entry `name` of `parent`.
pub(crate) fn remove_at(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(cause) => return Err(cause),
    }
    let Some(top) = open_for_removal(parent, name)? else { return Ok(()) };
    let mut moved = 0;
    empty(&top, &top, 0, &mut moved)?;
    remove_directory(parent, name)
}

/// Removes everything in `directory`, which is `depth` levels below `top`.
fn empty(top: &OwnedFd, directory: &OwnedFd, depth: usize, moved: &mut u64) -> Result<(), Errno> {
    // Entries that are removed, or moved up to `top`, while a directory is read may or may not be listed again, so it
    // is read until a pass finds nothing.
    loop {
        let mut found = false;
        let mut buffer = [MaybeUninit::uninit(); 8 << 10];
        rustix::fs::seek(directory, rustix::fs::SeekFrom::Start(0))?;
        let mut entries = RawDir::new(directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // Somebody else has removed the directory meanwhile.
                Err(Errno::NOENT) => return Ok(()),
                entry => entry?,
            };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            found = true;
            match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {}
                Err(cause) => return Err(cause),
            }
            let Some(child) = open_for_removal(directory, name)? else { continue };
            if depth < DEPTH {
                empty(top, &child, depth + 1, moved)?;
                remove_directory(directory, name)?;
            } else {
                move_up(top, directory, name, moved)?;
            }
        }
        if !found {
            return Ok(());
        }
    }
}

/// Moves a directory to `top` under a name that is free there.
fn move_up(top: &OwnedFd, directory: &OwnedFd, name: &[u8], moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        let free = format!(".removed-{moved}");
        match rustix::fs::renameat_with(directory, name, top, &*free, rustix::fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

fn remove_directory(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Opens a directory on the same mount and makes it writable to its owner; `None` when it is gone.
fn open_for_removal(parent: &OwnedFd, name: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let open =
        |flags| rustix::fs::openat2(parent, name, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve);
    let place = match open(OFlags::PATH) {
        Ok(place) => place,
        Err(Errno::NOENT) => return Ok(None),
        Err(cause) => return Err(cause),
    };
    let mode = rustix::fs::fstat(&place)?.st_mode;
    if mode & 0o700 != 0o700 {
        // fchmod takes no O_PATH descriptor and chmod follows links; its name in /proc is this very directory.
        let name = CString::new(format!("/proc/self/fd/{}", place.as_fd().as_raw_fd())).expect("digits have no NUL");
        rustix::fs::chmodat(CWD, name, Mode::from_raw_mode(mode & 0o7777 | 0o700), AtFlags::empty())?;
    }
    match open(OFlags::RDONLY) {
        Err(Errno::NOENT) => Ok(None),
        other => other.map(Some),
    }
}
