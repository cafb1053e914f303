//! What is in an image and not kept of it.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::shown;
use crate::host::is_kernel;
use crate::tree::{self, Body};

/// Folders that are told.
const MOST: usize = 10;

/// A folder of which something was not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its path. Where the folder itself was kept, what counts are the files in it and not those in folders below.
    pub path: String,
    /// Files that were not kept.
    pub files: u64,
    /// Their bytes.
    pub size: u64,
}

/// Bytes and files of all of the image, and the folders that lost most, the largest first. `kept`: paths relative to the root.
pub(super) fn compare(root: &OwnedFd, kept: &HashSet<&[u8]>) -> Result<(u64, u64, Vec<Dropped>), Error> {
    let scan = tree::scan(root, Path::new("/"))?;
    let (mut size, mut files) = (0, 0);
    let mut lost: HashMap<PathBuf, (u64, u64)> = HashMap::new();
    let mut counted = HashSet::new();
    for item in &scan.items {
        let path = tree::join(Path::new("/"), &item.path);
        if item.body == Body::Directory || item.body == Body::Special || is_kernel(&path) {
            continue;
        }
        // Each file counts once, however many names it has.
        let is_new = item.body != Body::File || item.meta.nlink < 2 || counted.insert((item.meta.dev, item.meta.ino));
        let bytes = if item.body == Body::File && is_new { item.meta.size } else { 0 };
        files += 1;
        size += bytes;
        if kept.contains(item.path.as_slice()) {
            continue;
        }
        // The uppermost folder of which nothing is left, or the one that it lay in.
        let mut top = item.split().0;
        let mut above = top;
        while !above.is_empty() && !kept.contains(above) {
            top = above;
            above = above.iter().rposition(|b| *b == b'/').map_or(&[][..], |at| &above[..at]);
        }
        let (files, size) = lost.entry(tree::join(Path::new("/"), top)).or_default();
        *files += 1;
        *size += bytes;
    }
    let mut dropped: Vec<Dropped> =
        lost.into_iter().map(|(path, (files, size))| Dropped { path: shown(&path), files, size }).collect();
    dropped.sort_by(|a, b| (b.size, b.files, &a.path).cmp(&(a.size, a.files, &b.path)));
    dropped.truncate(MOST);
    Ok((size, files, dropped))
}
