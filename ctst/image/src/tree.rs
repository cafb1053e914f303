//! A tree of files as the kernel describes it, without its contents: what `find` compares and what `import` copies.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::Error;

/// Most entries of one tree.
const MAX_ENTRIES: usize = 4_000_000;
/// Longest path inside a tree, in bytes, so that every entry can be named in one system call (`PATH_MAX` with its NUL).
pub(crate) const MAX_PATH: usize = 4095;
/// How many paths an error or a note names.
pub(crate) const EXAMPLES: usize = 5;
/// Coarsest clock tick by which a kernel may stamp `ctime` (10 ms at 100 Hz), doubled.
const TICK: Duration = Duration::from_millis(20);

/// More threads than this wait for the disk and the directory locks only.
pub(crate) const MAX_THREADS: usize = 4;
/// Directories of one level from which on it is listed by several threads: starting one takes as long as listing three.
const PARALLEL: usize = 24;

pub(crate) type Digest = [u8; 32];

/// Seconds and nanoseconds since 1970.
pub(crate) type Time = (i64, u32);

/// What `stat` tells of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) kind: FileType,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) nlink: u64,
    pub(crate) blocks: u64,
}

impl From<Stat> for Meta {
    fn from(stat: Stat) -> Meta {
        // The fields' widths differ between architectures; negative sizes do not exist.
        Meta {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            ctime: (stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap_or(0)),
            dev: stat.st_dev,
            ino: stat.st_ino,
            nlink: widen(stat.st_nlink),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        }
    }
}

/// `st_nlink` has 64 bits on x86-64 and 32 on arm64.
fn widen(nlink: impl Into<u64>) -> u64 {
    nlink.into()
}

impl Meta {
    /// A file of ours that exists nowhere yet.
    pub(crate) fn made(kind: FileType, mode: u32, size: usize) -> Meta {
        Meta {
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: size as u64,
            mtime: (0, 0),
            ctime: (0, 0),
            dev: 0,
            ino: 0,
            nlink: 1,
            blocks: u64::MAX,
        }
    }

    /// Whether a file that was opened is the one that was listed, and unchanged.
    pub(crate) fn is_same_file(&self, listed: &Meta) -> bool {
        let key = |m: &Meta| (m.kind, m.mode, m.size, m.mtime, m.ctime, m.dev, m.ino);
        key(self) == key(listed)
    }

    /// Adds everything that changes with the file to `out`. The size of a directory says nothing that its times do not.
    pub(crate) fn print(&self, out: &mut Vec<u8>) {
        self.print_identity(out);
        let size = if self.kind == FileType::Directory { 0 } else { self.size };
        out.extend(size.to_le_bytes());
        for (seconds, nanoseconds) in [self.mtime, self.ctime] {
            out.extend(seconds.to_le_bytes());
            out.extend(nanoseconds.to_le_bytes());
        }
    }

    /// Adds type, mode and owners only: for a directory whose other content does not matter.
    pub(crate) fn print_identity(&self, out: &mut Vec<u8>) {
        out.extend((self.kind.as_raw_mode() | self.mode).to_le_bytes());
        out.extend(self.uid.to_le_bytes());
        out.extend(self.gid.to_le_bytes());
    }
}

/// Where the content of an entry comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Directory,
    /// Read from the source at the same path.
    File,
    /// The same.
    Symlink,
    /// Written by us: what a file holds, or where a link leads to.
    Made(Vec<u8>),
    /// The same file as the item of this index.
    Hard(usize),
    /// A device node, FIFO or socket: part of the manifest, not of the image.
    Special,
}

/// One path of a tree.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// Relative to the root, without leading slash; empty for the root itself.
    pub(crate) path: Vec<u8>,
    pub(crate) meta: Meta,
    pub(crate) body: Body,
}

impl Item {
    /// Folder and name.
    pub(crate) fn split(&self) -> (&[u8], &[u8]) {
        match self.path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&self.path[..at], &self.path[at + 1..]),
            None => (&[], &self.path),
        }
    }
}

/// A directory and everything below it.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Sorted by the bytes of the path.
    pub(crate) items: Vec<Item>,
    /// Directories of other file systems, which are taken as empty.
    pub(crate) mounts: Vec<PathBuf>,
}

impl Scan {
    /// Tells one state of the tree from every other without reading contents: path, type, mode, owners, size, mtime
    /// and ctime of each entry.
    pub(crate) fn fingerprint(&self) -> Digest {
        let mut out = Vec::with_capacity(self.items.len() * 96);
        for Item { path, meta, .. } in &self.items {
            out.extend((path.len() as u32).to_le_bytes());
            out.extend(path);
            meta.print(&mut out);
        }
        Sha256::digest(&out).into()
    }

    /// The last change of any entry.
    pub(crate) fn newest(&self) -> Time {
        self.items.iter().map(|item| item.meta.ctime).max().unwrap_or_default()
    }
}

/// Opens a directory inside `root` by a relative path, following no symbolic link on the way.
pub(crate) fn open_dir(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        root,
        if path.is_empty() { b"." } else { path },
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// What one thread found.
#[derive(Default)]
struct Part {
    items: Vec<Item>,
    mounts: Vec<PathBuf>,
    unreadable: Unreadable,
}

/// Lists `root` and everything below, level by level. `base` is its name in messages.
///
/// One descriptor is open at a time, so depth is bounded by the length of a path and nothing else.
pub(crate) fn scan(root: &OwnedFd, base: &Path) -> Result<Scan, Error> {
    let top = Meta::from(rustix::fs::fstat(root).map_err(|cause| Error::io("stat", base, cause))?);
    let mut items = vec![Item { path: Vec::new(), meta: top, body: Body::Directory }];
    let mut mounts = Vec::new();
    let mut unreadable = Unreadable::default();
    let mut level = 0..1;
    while !level.is_empty() {
        let folders: Vec<&Item> = items[level].iter().filter(|item| item.body == Body::Directory).collect();
        let next = AtomicUsize::new(0);
        let walk = || {
            let mut part = Part::default();
            let mut buffer = Vec::with_capacity(32 << 10);
            while let Some(folder) = folders.get(next.fetch_add(1, Ordering::Relaxed)) {
                list_folder(root, base, folder, top.dev, &mut buffer, &mut part)?;
            }
            Ok(part)
        };
        let threads = match folders.len() {
            ..PARALLEL => 1,
            _ => thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS),
        };
        let parts: Vec<Result<Part, Error>> = thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(walk)).collect();
            let own = walk();
            let join = |other: ScopedJoinHandle<'_, _>| other.join().unwrap_or_else(|panic| resume_unwind(panic));
            others.into_iter().map(join).chain([own]).collect()
        });
        let start = items.len();
        for part in parts {
            let part = part?;
            items.extend(part.items);
            mounts.extend(part.mounts);
            unreadable.merge(part.unreadable);
        }
        if items.len() > MAX_ENTRIES {
            return Err(Error::Limit { path: base.into(), what: "has more than 4,000,000 entries" });
        }
        level = start..items.len();
    }
    unreadable.check(base)?;
    items.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    mounts.sort();
    Ok(Scan { items, mounts })
}

/// Adds the entries of one directory to `part`.
fn list_folder(
    root: &OwnedFd,
    base: &Path,
    folder: &Item,
    dev: u64,
    buffer: &mut Vec<u8>,
    part: &mut Part,
) -> Result<(), Error> {
    let place = || join(base, &folder.path);
    if folder.meta.dev != dev {
        part.mounts.push(place());
        return Ok(());
    }
    let fd = match open_dir(root, &folder.path) {
        Ok(fd) => fd,
        Err(Errno::ACCESS) => {
            part.unreadable.add(place());
            return Ok(());
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(Error::Changed(place())),
        Err(cause) => return Err(Error::io("open", place(), cause)),
    };
    let mut entries = RawDir::new(&fd, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(|cause| match cause {
            Errno::NOENT => Error::Changed(place()),
            cause => Error::io("list", place(), cause),
        })?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let mut path = Vec::with_capacity(folder.path.len() + 1 + name.len());
        if !folder.path.is_empty() {
            path.extend(&folder.path);
            path.push(b'/');
        }
        path.extend(name);
        if path.len() > MAX_PATH {
            return Err(Error::Limit { path: place(), what: "paths below are longer than 4095 bytes" });
        }
        let meta = match rustix::fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Meta::from(stat),
            Err(Errno::NOENT) => return Err(Error::Changed(join(base, &path))),
            // A directory with `r` and without `x` can be listed, its entries cannot be looked at.
            Err(Errno::ACCESS) => {
                part.unreadable.add(join(base, &path));
                continue;
            }
            Err(cause) => return Err(Error::io("stat", join(base, &path), cause)),
        };
        let body = match meta.kind {
            FileType::Directory => Body::Directory,
            FileType::RegularFile => Body::File,
            FileType::Symlink => Body::Symlink,
            _ => Body::Special,
        };
        part.items.push(Item { path, meta, body });
        if part.items.len() > MAX_ENTRIES {
            break;
        }
    }
    Ok(())
}

/// Paths that the caller may not read, of which the first few are named.
#[derive(Debug, Default)]
pub(crate) struct Unreadable {
    examples: Vec<PathBuf>,
    count: usize,
}

impl Unreadable {
    pub(crate) fn add(&mut self, path: PathBuf) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(path);
        }
    }

    fn merge(&mut self, other: Unreadable) {
        self.count += other.count;
        self.examples.extend(other.examples);
        self.examples.sort();
        self.examples.truncate(EXAMPLES);
    }

    pub(crate) fn check(mut self, root: &Path) -> Result<(), Error> {
        self.examples.sort();
        match self.count {
            0 => Ok(()),
            count => Err(Error::Unreadable { root: root.into(), examples: self.examples, count }),
        }
    }
}

/// `base/path`, for messages.
pub(crate) fn join(base: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { base.into() } else { base.join(OsStr::from_bytes(path)) }
}

/// How long to wait until a further change of a file that was last changed at `newest` is sure to give it another
/// `ctime`. Without that pause, a file that is written twice within one tick of the kernel's clock, once before and
/// once after it is read, would look unchanged for ever.
pub(crate) fn unsettled(newest: Time) -> Option<Duration> {
    let since = Duration::new(u64::try_from(newest.0).ok()?, newest.1);
    let age = SystemTime::now().duration_since(UNIX_EPOCH + since).ok()?;
    TICK.checked_sub(age)
}
