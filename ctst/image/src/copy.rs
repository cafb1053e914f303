//! Copies a tree into the store and computes its digest on the way.
//!
//! # The digest
//!
//! H, which is one of the functions of [`Algorithm`], over the line `containust-tree-1\n` and then, for each path in the
//! order of its bytes, where integers are little-endian and `bytes` is a 32-bit length followed by that many bytes:
//!
//! | field | content |
//! | --- | --- |
//! | kind | `d` directory, `f` file, `l` symbolic link, `h` hard link to an earlier path |
//! | path | bytes, relative to the root; empty for the root itself |
//! | mode | 32 bits: permissions with setuid, setgid and sticky; 0777 for symbolic links |
//! | uid, gid | 32 bits each; the importing caller's own count as 0 |
//! | for `f` | 64 bits of size, 32 bytes H of the content |
//! | for `l` | bytes: the target |
//! | for `h` | bytes: the first path of the same file |
//!
//! Times, extended attributes and special files are not part of it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::hash::{Algorithm, Hash};
use crate::model::Ownership;
use crate::tree::{self, Body, Digest, Item, MAX_THREADS, Meta, Unreadable, join, open_dir};
use crate::{Error, Progress};

/// Read, hashed and written at once; small enough to stay in a core's cache in between.
const BUFFER: usize = 256 << 10;
/// Holes take no space but as long to hash as data does: a file of nothing else must not keep the importer busy for days.
const MAX_BYTES: u64 = 4 << 40;
/// A thread takes files of one folder until it has this many, or this many bytes.
const CHUNK_FILES: usize = 64;
const CHUNK_BYTES: u64 = 8 << 20;

/// What is copied where.
pub(crate) struct Copy<'a> {
    /// The root of the source and its name in messages.
    pub(crate) source: (&'a OwnedFd, &'a Path),
    /// An empty directory that becomes the root, and its name in messages.
    pub(crate) target: (&'a OwnedFd, &'a Path),
    /// Sorted, parents included, without [`Body::Special`].
    pub(crate) items: &'a [Item],
    pub(crate) ownership: Ownership,
}

pub(crate) struct Copied {
    pub(crate) digest: Digest,
    /// Of the copy, as [`hash_tree`] computes it.
    pub(crate) tree: Digest,
    /// How many files had extended attributes of a kind that is not kept.
    pub(crate) xattrs: usize,
}

/// What had to be read to know an entry.
pub(crate) enum Content {
    Hash(Digest),
    Target(Vec<u8>),
}

/// What the threads share.
struct Shared<'a> {
    job: &'a Copy<'a>,
    chunks: &'a [&'a [usize]],
    next: AtomicUsize,
    files: AtomicU64,
    bytes: AtomicU64,
    xattrs: AtomicUsize,
    /// The first error; it stops all threads.
    failure: OnceLock<Error>,
    /// Cleared when the file systems turn out to share no blocks.
    reflink: AtomicBool,
}

#[derive(Default)]
struct Part {
    contents: Vec<(usize, Content)>,
    unreadable: Vec<usize>,
}

/// Replaces every path that is another name of an earlier one by a [`Body::Hard`].
pub(crate) fn find_hard_links(items: &mut [Item]) {
    let mut first = HashMap::new();
    for (index, item) in items.iter_mut().enumerate() {
        if item.body == Body::File && item.meta.nlink > 1 {
            let original = *first.entry((item.meta.dev, item.meta.ino)).or_insert(index);
            if original != index {
                item.body = Body::Hard(original);
            }
        }
    }
}

/// Copies, and reports progress on the calling thread.
pub(crate) fn copy(job: &Copy<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Copied, Error> {
    for item in job.items {
        owner(job.ownership, &item.meta).map_err(|id| outside(job, item, id))?;
    }
    make_directories(job)?;

    let mut leaves: Vec<usize> = (0..job.items.len())
        .filter(|i| matches!(job.items[*i].body, Body::File | Body::Symlink | Body::Made(_)))
        .collect();
    leaves.sort_by_key(|i| job.items[*i].split().0);
    let chunks = chunks(job.items, &leaves);
    let shared = Shared {
        job,
        chunks: &chunks,
        next: AtomicUsize::new(0),
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        xattrs: AtomicUsize::new(0),
        failure: OnceLock::new(),
        reflink: AtomicBool::new(true),
    };
    let files_total = leaves.len() as u64;
    let contents = leaves.iter().map(|i| &job.items[*i]).filter(|item| item.body != Body::Symlink);
    let bytes_total = contents.fold(0, |sum: u64, item| sum.saturating_add(item.meta.size));
    if bytes_total > MAX_BYTES {
        return Err(Error::Limit {
            path: job.source.1.into(),
            what: "its files are larger than 4 TiB, holes included",
        });
    }
    let mut report = |shared: &Shared<'_>| {
        progress(Progress::Copying {
            files_done: shared.files.load(Ordering::Relaxed),
            files_total,
            bytes_done: shared.bytes.load(Ordering::Relaxed),
            bytes_total,
        });
    };

    let threads = thread::available_parallelism().map_or(1, usize::from).clamp(1, MAX_THREADS).min(chunks.len());
    let parts = thread::scope(|scope| {
        let (running, ended) = mpsc::channel::<()>();
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let (running, shared) = (running.clone(), &shared);
                scope.spawn(move || {
                    let mut part = Part::default();
                    if let Err(error) = work(shared, &mut part) {
                        // Later ones may follow from the first.
                        let _ = shared.failure.set(error);
                    }
                    drop(running);
                    part
                })
            })
            .collect();
        drop(running);
        while ended.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout) {
            report(&shared);
        }
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect::<Vec<Part>>()
    });
    report(&shared);
    let xattrs = shared.xattrs.into_inner();
    if let Some(error) = shared.failure.into_inner() {
        return Err(error);
    }

    let mut unreadable = Unreadable::default();
    let mut contents: Vec<Option<Content>> = (0..job.items.len()).map(|_| None).collect();
    for part in parts {
        part.unreadable.iter().for_each(|i| unreadable.add(join(job.source.1, &job.items[*i].path)));
        part.contents.into_iter().for_each(|(i, content)| contents[i] = Some(content));
    }
    unreadable.check(job.source.1)?;

    link_hard(job)?;
    finish_directories(job)?;
    let source = digest(Algorithm::Sha256, job.items, &contents, Ids::Source);
    let tree = match job.ownership {
        Ownership::Caller => digest(Algorithm::Sha256, job.items, &contents, Ids::Flat),
        _ => source,
    };
    Ok(Copied { digest: source, tree, xattrs })
}

/// Splits `leaves`, which are sorted by folder, into pieces of work that each lie in one folder.
fn chunks<'a>(items: &[Item], leaves: &'a [usize]) -> Vec<&'a [usize]> {
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, leaf) in leaves.iter().enumerate() {
        let other_folder = items[*leaf].split().0 != items[leaves[start]].split().0;
        if other_folder || at - start >= CHUNK_FILES || bytes >= CHUNK_BYTES {
            chunks.push(&leaves[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += items[*leaf].meta.size;
    }
    if start < leaves.len() {
        chunks.push(&leaves[start..]);
    }
    chunks
}

fn make_directories(job: &Copy<'_>) -> Result<(), Error> {
    // The target holds nothing but directories of ours yet, so that no component of a path can be a link.
    for item in job.items.iter().filter(|item| item.body == Body::Directory && !item.path.is_empty()) {
        rustix::fs::mkdirat(job.target.0, &item.path[..], Mode::RWXU)
            .map_err(|cause| Error::io("create directory", join(job.target.1, &item.path), cause))?;
    }
    Ok(())
}

/// One thread: takes chunks until there are none.
fn work(shared: &Shared<'_>, part: &mut Part) -> Result<(), Error> {
    let job = shared.job;
    let mut buffer = vec![0; BUFFER];
    while shared.failure.get().is_none() {
        let Some(chunk) = shared.chunks.get(shared.next.fetch_add(1, Ordering::Relaxed)) else { break };
        let folder = job.items[chunk[0]].split().0;
        let target =
            open_dir(job.target.0, folder).map_err(|cause| Error::io("open", join(job.target.1, folder), cause))?;
        // A folder of generated files need not exist in the source.
        let source = match chunk.iter().all(|i| matches!(job.items[*i].body, Body::Made(_))) {
            true => None,
            false => Some(open_dir(job.source.0, folder).map_err(|cause| vanished(job, folder, cause))?),
        };
        for &index in *chunk {
            let item = &job.items[index];
            let name = item.split().1;
            let content = match (&item.body, &source) {
                (Body::Made(bytes), _) => Some(write_made(job, &target, item, name, bytes)?),
                (Body::Symlink, Some(source)) => Some(copy_link(job, source, &target, item, name)?),
                (Body::File, Some(source)) => copy_file(shared, source, &target, item, name, &mut buffer)?,
                _ => None,
            };
            match content {
                Some(content) => part.contents.push((index, content)),
                None => part.unreadable.push(index),
            }
            if let Body::Made(bytes) = &item.body {
                shared.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            shared.files.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn copy_link(job: &Copy<'_>, source: &OwnedFd, target: &OwnedFd, item: &Item, name: &[u8]) -> Result<Content, Error> {
    let link = rustix::fs::readlinkat(source, name, Vec::new()).map_err(|cause| vanished(job, &item.path, cause))?;
    let failed = |cause| Error::io("create symbolic link", join(job.target.1, &item.path), cause);
    rustix::fs::symlinkat(&*link, target, name).map_err(failed)?;
    if let Some((uid, gid)) = mapped(job, item) {
        rustix::fs::chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    }
    rustix::fs::utimensat(target, name, &times(&item.meta), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    Ok(Content::Target(link.into_bytes()))
}

fn write_made(job: &Copy<'_>, target: &OwnedFd, item: &Item, name: &[u8], bytes: &[u8]) -> Result<Content, Error> {
    let failed = |cause| Error::io("write", join(job.target.1, &item.path), cause);
    let file = create(target, name).map_err(failed)?;
    write_at(&file, bytes, 0).map_err(failed)?;
    finish(job, &file, item).map_err(failed)?;
    Ok(Content::Hash(Sha256::digest(bytes).into()))
}

/// Copies one regular file; `None` when the caller may not read it.
fn copy_file(
    shared: &Shared<'_>,
    source: &OwnedFd,
    target: &OwnedFd,
    item: &Item,
    name: &[u8],
    buffer: &mut [u8],
) -> Result<Option<Content>, Error> {
    let job = shared.job;
    // Not blocking, because a FIFO may have taken the file's place.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = match rustix::fs::openat(source, name, flags, Mode::empty()) {
        Ok(from) => from,
        Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
        Err(cause) => return Err(vanished(job, &item.path, cause)),
    };
    let broken = |cause| Error::io("read", join(job.source.1, &item.path), cause);
    let now = Meta::from(rustix::fs::fstat(&from).map_err(broken)?);
    if !now.is_same_file(&item.meta) {
        return Err(Error::Changed(join(job.source.1, &item.path)));
    }
    if has_lost_attributes(&from) {
        shared.xattrs.fetch_add(1, Ordering::Relaxed);
    }
    let failed = |cause| Error::io("write", join(job.target.1, &item.path), cause);
    let to = create(target, name).map_err(failed)?;

    let cloned = shared.reflink.load(Ordering::Relaxed) && now.size > 0 && {
        let done = rustix::fs::ioctl_ficlone(&to, &from).is_ok();
        shared.reflink.store(done, Ordering::Relaxed);
        done
    };
    let sparse = now.blocks.saturating_mul(512) < now.size;
    let mut hash = Sha256::new();
    let mut at = 0;
    // A thread that has failed makes the rest of this file pointless too.
    while at < now.size && shared.failure.get().is_none() {
        let (data, end) = if sparse { extent(&from, at, now.size).map_err(broken)? } else { (at, now.size) };
        if data > at {
            buffer.fill(0);
        }
        while at < data {
            let count = (data - at).min(buffer.len() as u64);
            hash.update(&buffer[..count as usize]);
            at += count;
            shared.bytes.fetch_add(count, Ordering::Relaxed);
        }
        while at < end && shared.failure.get().is_none() {
            let want = (end - at).min(buffer.len() as u64) as usize;
            let count =
                rustix::io::retry_on_intr(|| rustix::io::pread(&from, &mut buffer[..want], at)).map_err(broken)?;
            if count == 0 {
                return Err(Error::Changed(join(job.source.1, &item.path)));
            }
            if !cloned {
                write_at(&to, &buffer[..count], at).map_err(failed)?;
            }
            hash.update(&buffer[..count]);
            at += count as u64;
            shared.bytes.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
    if sparse && !cloned {
        rustix::fs::ftruncate(&to, now.size).map_err(failed)?;
    }
    finish(job, &to, item).map_err(failed)?;
    Ok(Some(Content::Hash(hash.finalize().into())))
}

/// The first stretch of data at or after `at`; empty at the end of the file where only a hole is left.
fn extent(file: &OwnedFd, at: u64, end: u64) -> Result<(u64, u64), Errno> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) if data < end => Ok((data, rustix::fs::seek(file, SeekFrom::Hole(data))?.min(end))),
        Ok(_) | Err(Errno::NXIO) => Ok((end, end)),
        // A file system without holes.
        Err(Errno::INVAL) => Ok((at, end)),
        Err(cause) => Err(cause),
    }
}

fn create(target: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR)
}

pub(crate) fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::pwrite(file, bytes, at))? {
            0 => return Err(Errno::IO),
            count => {
                bytes = &bytes[count..];
                at += count as u64;
            }
        }
    }
    Ok(())
}

/// Owner first: giving a file away clears setuid and setgid.
pub(crate) fn finish(job: &Copy<'_>, file: &OwnedFd, item: &Item) -> Result<(), Errno> {
    if let Some((uid, gid)) = mapped(job, item) {
        rustix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(item.meta.mode))?;
    rustix::fs::futimens(file, &times(&item.meta))
}

fn link_hard(job: &Copy<'_>) -> Result<(), Error> {
    for item in job.items {
        if let Body::Hard(first) = item.body {
            let first = &job.items[first].path[..];
            rustix::fs::linkat(job.target.0, first, job.target.0, &item.path[..], AtFlags::empty())
                .map_err(|cause| Error::io("create hard link", join(job.target.1, &item.path), cause))?;
        }
    }
    Ok(())
}

/// Gives directories their modes and times, the deepest first: one that its owner may not write or enter is closed
/// only when nothing in it is left to do.
fn finish_directories(job: &Copy<'_>) -> Result<(), Error> {
    for item in job.items.iter().rev().filter(|item| item.body == Body::Directory) {
        open_dir(job.target.0, &item.path)
            .and_then(|directory| finish(job, &directory, item))
            .map_err(|cause| Error::io("finish directory", join(job.target.1, &item.path), cause))?;
    }
    Ok(())
}

/// Which owners a digest tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// Those of a source; the importing caller's own count as 0.
    Source,
    /// None: everything is the caller's.
    Flat,
    /// Those of a copy, less this.
    Above(u32),
}

impl Ids {
    fn of(self, id: u32, own: u32) -> u32 {
        match self {
            Ids::Source if id == own => 0,
            Ids::Source => id,
            Ids::Flat => 0,
            Ids::Above(base) => id.wrapping_sub(base),
        }
    }
}

impl Ids {
    /// The owners that are told.
    pub(crate) fn of_item(self, item: &Item) -> (u32, u32) {
        let (own_uid, own_gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        (self.of(item.meta.uid, own_uid), self.of(item.meta.gid, own_gid))
    }
}

/// The digest of what is described above. Of a tree in the store, special files are part of it, too: kind `s`, and a mode
/// that says which.
pub(crate) fn digest(algorithm: Algorithm, items: &[Item], contents: &[Option<Content>], ids: Ids) -> Digest {
    let (own_uid, own_gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut hash = algorithm.start();
    hash.update(b"containust-tree-1\n");
    let mut out = Vec::new();
    let bytes = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
    };
    for (item, content) in items.iter().zip(contents) {
        let (kind, mode) = match (&item.body, content) {
            (Body::Hard(_), _) => (b'h', item.meta.mode),
            (Body::Special, _) => (b's', item.meta.kind.as_raw_mode() | item.meta.mode),
            (_, None) => (b'd', item.meta.mode),
            (_, Some(Content::Hash(_))) => (b'f', item.meta.mode),
            // Some file systems answer other bits; the kernel never looks at them.
            (_, Some(Content::Target(_))) => (b'l', 0o777),
        };
        out.push(kind);
        bytes(&mut out, &item.path);
        out.extend(mode.to_le_bytes());
        for (id, own) in [(item.meta.uid, own_uid), (item.meta.gid, own_gid)] {
            out.extend(ids.of(id, own).to_le_bytes());
        }
        match (&item.body, content) {
            (Body::Hard(first), _) => bytes(&mut out, &items[*first].path),
            (_, Some(Content::Hash(digest))) => {
                out.extend(item.meta.size.to_le_bytes());
                out.extend(digest);
            }
            (_, Some(Content::Target(target))) => bytes(&mut out, target),
            (_, None) => {}
        }
        // Long stretches are hashed many blocks at a time.
        if out.len() >= BUFFER {
            hash.update(&out);
            out.clear();
        }
    }
    hash.update(&out);
    hash.take()
}

/// The digest of a tree of the store.
pub(crate) fn hash_tree(algorithm: Algorithm, root: &OwnedFd, base: &Path, ids: Ids) -> Result<Digest, Error> {
    let mut items = tree::scan(root, base)?.items;
    find_hard_links(&mut items);
    let next = AtomicUsize::new(0);
    let read = || {
        let mut part = Part::default();
        let mut buffer = vec![0; BUFFER];
        let mut hash = algorithm.start();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return Ok(part) };
            let failed = |cause| Error::io("read", join(base, &item.path), cause);
            let (folder, name) = item.split();
            let content = match item.body {
                Body::File => hash_file(root, folder, name, &mut hash, &mut buffer),
                Body::Symlink => open_dir(root, folder)
                    .and_then(|folder| rustix::fs::readlinkat(folder, name, Vec::new()))
                    .map(|target| Some(Content::Target(target.into_bytes()))),
                _ => continue,
            };
            match content.map_err(failed)? {
                Some(content) => part.contents.push((index, content)),
                None => part.unreadable.push(index),
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).clamp(1, MAX_THREADS);
    let parts: Vec<Result<Part, Error>> = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(read)).collect();
        let own = read();
        others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic))).chain([own]).collect()
    });
    let mut unreadable = Unreadable::default();
    let mut contents: Vec<Option<Content>> = items.iter().map(|_| None).collect();
    for part in parts {
        let part = part?;
        part.unreadable.iter().for_each(|i| unreadable.add(join(base, &items[*i].path)));
        part.contents.into_iter().for_each(|(i, content)| contents[i] = Some(content));
    }
    unreadable.check(base)?;
    Ok(digest(algorithm, &items, &contents, ids))
}

/// `None` when the caller may not read it.
fn hash_file(
    root: &OwnedFd,
    folder: &[u8],
    name: &[u8],
    hash: &mut Hash,
    buffer: &mut [u8],
) -> Result<Option<Content>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(open_dir(root, folder)?, name, flags, Mode::empty()) {
        Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
        file => file?,
    };
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut *buffer))? {
            0 => return Ok(Some(Content::Hash(hash.take()))),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Whether a file has attributes that an image does not keep: `user.*` (of which overlayfs would take `user.overlay.*`
/// for its own), file capabilities, access lists. Labels of security modules are the host's and are not counted.
fn has_lost_attributes(file: &OwnedFd) -> bool {
    let mut names = [0; 1024];
    match rustix::fs::flistxattr(file.as_fd(), &mut names) {
        Ok(0) | Err(Errno::NOTSUP) => false,
        Ok(length) => names[..length].split(|b| *b == 0).any(|name| {
            name.starts_with(b"user.") || name == b"security.capability" || name.starts_with(b"system.posix_acl_")
        }),
        // More names than fit: surely not only a label.
        Err(_) => true,
    }
}

/// Host ids for a source's owners, where files are given away; the id that does not fit as error.
fn owner(ownership: Ownership, meta: &Meta) -> Result<Option<(u32, u32)>, u32> {
    // `Subordinate` is refused for what is copied.
    let Ownership::Shifted { base, count } = ownership else { return Ok(None) };
    let shift = |id: u32| if id < count { base.checked_add(id).ok_or(id) } else { Err(id) };
    Ok(Some((shift(meta.uid)?, shift(meta.gid)?)))
}

fn outside(job: &Copy<'_>, item: &Item, id: u32) -> Error {
    let count = match job.ownership {
        Ownership::Shifted { count, .. } | Ownership::Subordinate { count, .. } => count,
        Ownership::Caller => 0,
    };
    Error::OwnerRange { path: join(job.source.1, &item.path), id, count }
}

fn mapped(job: &Copy<'_>, item: &Item) -> Option<(Uid, Gid)> {
    // Checked for every item before the first was copied.
    let (uid, gid) = owner(job.ownership, &item.meta).ok().flatten()?;
    Some((Uid::from_raw(uid), Gid::from_raw(gid)))
}

fn times(meta: &Meta) -> Timestamps {
    let time = Timespec { tv_sec: meta.mtime.0, tv_nsec: meta.mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// An entry that was listed and cannot be opened any more was changed; anything else is the kernel's refusal.
fn vanished(job: &Copy<'_>, path: &[u8], cause: Errno) -> Error {
    let path = join(job.source.1, path);
    match cause {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL => Error::Changed(path),
        cause => Error::io("open", path, cause),
    }
}
