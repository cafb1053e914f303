//! Layers as one tree: for hosts where a container's root may not be an overlay.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::Error;
use crate::copy::{Copy, copy, find_hard_links, finish};
use crate::model::Ownership;
use crate::remove::remove_at;
use crate::tree::{self, Body, Item, join, open_dir};
use crate::unpack::OPAQUE_ATTRIBUTE;

/// Where a layer is copied to before it is merged. No image has such a file, or its container is not made.
const STAGING: &str = ".ctst-layer";
const OWNERSHIP: Ownership = Ownership::Shifted { base: 0, count: u32::MAX };

/// Copies `layers`, topmost first, into `target`, an empty folder, so that it shows what overlayfs would show of them:
/// owners as they are seen here, special files left out. Blocks are shared where the file system can. To be called as root
/// of a container that all of them are in.
///
/// # Errors
/// The kernel's, and [`Error::Limit`].
pub fn flatten(layers: &[PathBuf], target: &Path) -> Result<(), Error> {
    let mut rest = layers.iter().rev();
    if let Some(lowest) = rest.next() {
        crate::copy_folder(lowest, target)?;
    }
    let to = open(target)?;
    for layer in rest {
        add(&open(layer)?, layer, &to, target)?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|cause| Error::io("open", path, cause))
}

/// Lays one layer over what is in `to`.
fn add(from: &OwnedFd, layer: &Path, to: &OwnedFd, target: &Path) -> Result<(), Error> {
    let mut items = tree::scan(from, layer)?.items;
    for item in &items {
        if hides(from, item).map_err(|cause| Error::io("read", join(layer, &item.path), cause))? {
            remove(to, &item.path).map_err(|cause| Error::io("remove", join(target, &item.path), cause))?;
        }
    }
    items.retain(|item| item.body != Body::Special);
    find_hard_links(&mut items);
    let failed = |what| move |cause| Error::io(what, target.join(STAGING), cause);
    rustix::fs::mkdirat(to, STAGING, Mode::RWXU).map_err(failed("create"))?;
    let staging = open_dir(to, STAGING.as_bytes()).map_err(failed("open"))?;
    let path = target.join(STAGING);
    copy(&Copy { source: (from, layer), target: (&staging, &path), items: &items, ownership: OWNERSHIP }, &mut |_| {})?;

    // Sorted, so that a folder comes before what is below it.
    let mut moved: HashSet<&[u8]> = HashSet::new();
    let mut kept: Vec<&Item> = Vec::new();
    for item in &items {
        let mut above = item.path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &item.path[..at]);
        if above.any(|folder| moved.contains(folder)) {
            continue;
        }
        let placed = place(&staging, to, item);
        if placed.map_err(|cause| Error::io("move", join(target, &item.path), cause))? {
            kept.push(item);
        } else if item.body == Body::Directory {
            moved.insert(&item.path);
        }
    }
    remove_at(to, STAGING.as_bytes()).map_err(failed("remove"))?;
    let job = Copy { source: (from, layer), target: (to, target), items: &items, ownership: OWNERSHIP };
    for item in kept.into_iter().rev() {
        open_dir(to, &item.path)
            .and_then(|folder| finish(&job, &folder, item))
            .map_err(|cause| Error::io("finish directory", join(target, &item.path), cause))?;
    }
    Ok(())
}

/// Whether an entry of a layer takes away what lower layers have there (`Documentation/filesystems/overlayfs.rst`).
fn hides(layer: &OwnedFd, item: &Item) -> Result<bool, Errno> {
    match (&item.body, item.meta.kind) {
        (Body::Special, FileType::CharacterDevice) => {
            let (folder, name) = item.split();
            let stat = rustix::fs::statat(open_dir(layer, folder)?, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(stat.st_rdev == 0)
        }
        (Body::Directory, _) if !item.path.is_empty() => {
            let mut value = [0u8; 1];
            match rustix::fs::fgetxattr(open_dir(layer, &item.path)?, OPAQUE_ATTRIBUTE, &mut value[..]) {
                Ok(_) => Ok(value == *b"y"),
                Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
                Err(cause) => Err(cause),
            }
        }
        _ => Ok(false),
    }
}

/// Removes what is at `path`, if there is a way to it that leads over no link.
fn remove(root: &OwnedFd, path: &[u8]) -> Result<(), Errno> {
    let at = path.iter().rposition(|b| *b == b'/');
    let (folder, name) = at.map_or((&path[..0], path), |at| (&path[..at], &path[at + 1..]));
    match open_dir(root, folder) {
        Ok(folder) => remove_at(&folder, name),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
        Err(cause) => Err(cause),
    }
}

/// Moves an entry over what is there. True: both are folders, and the one that is there stays.
fn place(staging: &OwnedFd, to: &OwnedFd, item: &Item) -> Result<bool, Errno> {
    if item.path.is_empty() {
        return Ok(true);
    }
    let (folder, name) = item.split();
    let (from, to) = (open_dir(staging, folder)?, open_dir(to, folder)?);
    if item.body == Body::Directory {
        match rustix::fs::statat(&to, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(true),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(cause) => return Err(cause),
        }
    }
    remove_at(&to, name)?;
    rustix::fs::renameat(&from, name, &to, name)?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use rustix::fs::XattrFlags;

    use super::*;

    fn tree(at: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = at.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    /// Paths of everything in a folder, with the text of files and the targets of links.
    fn list(at: &Path) -> Vec<String> {
        fn walk(root: &Path, at: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(at).unwrap().flatten() {
                let path = entry.path();
                let name = path.strip_prefix(root).unwrap().display().to_string();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    found.push(format!("{name}/"));
                    walk(root, &path, found);
                } else if kind.is_symlink() {
                    found.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
                } else {
                    found.push(format!("{name}: {}", fs::read_to_string(&path).unwrap()));
                }
            }
        }
        let mut found = Vec::new();
        walk(at, at, &mut found);
        found.sort();
        found
    }

    #[test]
    fn shows_what_an_overlay_would() {
        let dir = tempfile::tempdir().unwrap();
        let [low, middle, top, target] = ["low", "middle", "top", "target"].map(|name| dir.path().join(name));
        tree(
            &low,
            &[("a/one", "1"), ("a/two", "2"), ("b/old", "o"), ("c", "c"), ("d/x", "x"), ("gone", ""), ("h/k", "")],
        );
        symlink("/etc", low.join("link")).unwrap();
        tree(&middle, &[("a/two", "22"), ("b/new", "n"), ("c/now/a/folder", "f"), ("link/inner", "i"), ("e", "e")]);
        fs::hard_link(middle.join("e"), middle.join("f")).unwrap();
        tree(&top, &[("d", "file"), ("a/three", "3")]);
        fs::set_permissions(top.join("a"), fs::Permissions::from_mode(0o1750)).unwrap();
        fs::create_dir(&target).unwrap();
        let whiteout = |path: &Path| {
            rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        };
        whiteout(&middle.join("gone"));
        whiteout(&top.join("h"));
        // Of what is not there.
        whiteout(&top.join("nothing"));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let b = rustix::fs::openat(CWD, middle.join("b"), flags, Mode::empty()).unwrap();
        rustix::fs::fsetxattr(&b, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty()).unwrap();

        flatten(&[top, middle, low.clone()], &target).unwrap();
        let expected = [
            "a/",
            "a/one: 1",
            "a/three: 3",
            "a/two: 22",
            "b/",
            "b/new: n",
            "c/",
            "c/now/",
            "c/now/a/",
            "c/now/a/folder: f",
            "d: file",
            "e: e",
            "f: e",
            "link/",
            "link/inner: i",
        ];
        assert_eq!(list(&target), expected);
        assert_eq!(target.join("a").metadata().unwrap().mode() & 0o7777, 0o1750);
        assert_eq!(target.join("e").metadata().unwrap().ino(), target.join("f").metadata().unwrap().ino());
        // The layers are as they were.
        assert_eq!(list(&low).len(), 12);
    }
}
