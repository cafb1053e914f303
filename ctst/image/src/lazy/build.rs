//! Makes the index of an archive: what [`unpack`](crate::unpack) would make of it, without doing so. What that refuses is
//! refused here by the same words.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;

use serde::{Deserialize, Serialize};

use super::index::{BLOCK, Body, INDEX, Index, Node, State};
use crate::Error;
use crate::archive::stream::{Compression, FileInput, Input, check_regular, digest};
use crate::archive::tar::{Entry, Kind, Tar};
use crate::archive::tee::tee;
use crate::archive::{Content, Limits, examine};
use crate::hash::Algorithm;
use crate::source::hex;
use crate::tree::{Digest, Time, join};
use crate::unpack::notes::Notes;
use crate::unpack::writer::{MAX_NAME, check_names, hidden_name, inside, lossy, split};
use crate::unpack::{Owners, TREE, WHITEOUT, join as join_thread};

/// Longest value of an extended attribute that Linux takes (xattr(7)).
const MAX_VALUE: usize = 64 << 10;
/// What ctst itself reads of an image, to know users and where a link leads: copied beside the index.
const KEPT: [&[u8]; 3] = [b"etc/passwd", b"etc/group", b"etc/resolv.conf"];
/// More of them than any image has.
const MAX_KEPT: u64 = 1 << 20;

/// What is to be indexed, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexJob {
    /// The archive's name in messages.
    pub archive: PathBuf,
    /// Who owns the files. `base` counts inside the container, where it is 0.
    pub owners: Owners,
    /// How much it may be.
    pub limits: Limits,
    /// Whether all of it is hashed, because there is a pin.
    pub hash: bool,
}

/// What was indexed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indexed {
    /// SHA-256 of the archive's file, 64 hexadecimal digits, where it was asked for.
    pub digest: Option<String>,
    /// Digest of the index: `blake3:` and 64 hexadecimal digits.
    pub index: String,
    /// Size of all files in bytes.
    pub size: u64,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Indexes `file` into the folder `target`.
pub(crate) fn build(job: &IndexJob, file: &OwnedFd, target: &Path) -> Result<Indexed, Error> {
    let state = State::from(check_regular(file, &job.archive)?);
    let unfit = |why: &str| Err(Error::NotLazy { archive: job.archive.clone(), why: why.into() });
    let mut head = [0; 8];
    let count = rustix::io::pread(file, &mut head, 0).map_err(|cause| Error::io("read", job.archive.clone(), cause))?;
    match Compression::of(&head[..count]) {
        Ok(Compression::Plain) => {}
        Ok(Compression::Gzip) => return unfit("is compressed with gzip"),
        Ok(Compression::Zstd) => return unfit("is compressed with zstd"),
        Ok(Compression::Xz) => return unfit("is compressed with xz"),
        Err(name) => return unfit(&format!("is compressed with {name}")),
    }
    if let Content::Image(_) = examine(file, &job.archive, &job.limits, &[])? {
        return unfit("is an image of layers");
    }
    let (tree, hashes) = thread::scope(|scope| {
        let hashing = job.hash.then(|| {
            let [whole, blocks] = tee(FileInput::new(file, &job.archive));
            (scope.spawn(move || digest(whole)), scope.spawn(move || hash_blocks(blocks)))
        });
        let tree = list(job, file);
        (tree, hashing.map(|(whole, blocks)| (join_thread(whole), join_thread(blocks))))
    });
    let tree = tree?;
    let (whole, blocks) = match hashes {
        None => (None, None),
        // First that of the one who may have seen only an end where the other could not read.
        Some((Err(error), _) | (_, Err(error))) => return Err(error),
        Some((Ok(whole), Ok(blocks))) => (Some(hex(&whole)), Some(blocks)),
    };
    keep(&tree, file, job, target)?;
    let Tree { nodes, notes, .. } = tree;
    let index = Index::new(state, nodes, blocks);
    let size = index.nodes.iter().map(|node| if let Body::File { size, .. } = node.body { size } else { 0 }).sum();
    let (bytes, own) = index.encode();
    let path = target.join(INDEX);
    std::fs::write(&path, bytes).map_err(|e| Error::std("write", path, &e))?;
    Ok(Indexed { digest: whole, index: Algorithm::Blake3.text(&own), size, notes: notes.texts() })
}

fn hash_blocks(mut input: impl Input) -> Result<Vec<Digest>, Error> {
    let mut blocks = Vec::new();
    let mut hash = blake3::Hasher::new();
    let mut left = BLOCK as usize;
    while let Some(chunk) = input.next()? {
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(left.min(rest.len()));
            hash.update(now);
            (left, rest) = (left - now.len(), later);
            if left == 0 {
                blocks.push(*hash.finalize().as_bytes());
                hash.reset();
                left = BLOCK as usize;
            }
        }
    }
    if left < BLOCK as usize {
        blocks.push(*hash.finalize().as_bytes());
    }
    Ok(blocks)
}

fn list(job: &IndexJob, file: &OwnedFd) -> Result<Tree, Error> {
    let mut tar = Tar::new(FileInput::of_headers(file, &job.archive), &job.archive, &job.limits);
    let mut tree = Drafts::new();
    while let Some(entry) = tar.next()? {
        let at = tar.position();
        tree.entry(job, entry, at).map_err(|trouble| match trouble {
            Trouble::Refused(why) => tar.refused(&why),
            Trouble::TooLarge(what) => tar.too_large(what),
            Trouble::Error(error) => error,
        })?;
    }
    Ok(tree.finish())
}

/// Copies the files that ctst itself reads, as far as the image has them as plain files.
fn keep(tree: &Tree, file: &OwnedFd, job: &IndexJob, target: &Path) -> Result<(), Error> {
    let root = target.join(TREE);
    let failed = |path: &Path, e: &std::io::Error| Error::std("write", path, e);
    std::fs::create_dir(&root).map_err(|e| failed(&root, &e))?;
    for path in KEPT {
        let place = join(&root, path);
        match tree.find(path).map(|node| &node.body) {
            Some(Body::File { size, at, stretches: None }) if *size <= MAX_KEPT => {
                let mut bytes = vec![0; usize::try_from(*size).unwrap_or(0)];
                let mut filled = 0;
                while filled < bytes.len() {
                    let count = rustix::io::pread(file, &mut bytes[filled..], at + filled as u64)
                        .map_err(|cause| Error::io("read", job.archive.clone(), cause))?;
                    if count == 0 {
                        return Err(Error::Changed(job.archive.clone()));
                    }
                    filled += count;
                }
                let folder = place.parent().unwrap_or(&root);
                std::fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
                std::fs::write(&place, bytes).map_err(|e| failed(&place, &e))?;
            }
            Some(Body::Symlink(to)) if path == KEPT[2] => {
                let folder = place.parent().unwrap_or(&root);
                std::fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
                std::os::unix::fs::symlink(join(Path::new(""), to), &place).map_err(|e| failed(&place, &e))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A tree without what was replaced.
struct Tree {
    nodes: Vec<Node>,
    notes: Notes,
}

impl Tree {
    /// What is at `path`, behind no link.
    fn find(&self, path: &[u8]) -> Option<&Node> {
        path.split(|b| *b == b'/').try_fold(self.nodes.first()?, |node, name| {
            let Body::Folder { entries, .. } = &node.body else { return None };
            let at = entries.binary_search_by(|(other, _)| other[..].cmp(name)).ok()?;
            self.nodes.get(entries[at].1 as usize)
        })
    }
}

enum Trouble {
    Refused(String),
    TooLarge(String),
    Error(Error),
}

fn refused<T>(why: impl Into<String>) -> Result<T, Trouble> {
    Err(Trouble::Refused(why.into()))
}

/// A node as long as its place may change.
struct Draft {
    node: Node,
    /// Of a folder.
    entries: BTreeMap<Vec<u8>, usize>,
}

impl Draft {
    fn is_folder(&self) -> bool {
        matches!(self.node.body, Body::Folder { .. })
    }
}

/// The tree as the entries so far have made it.
struct Drafts {
    all: Vec<Draft>,
    /// The folder of the last entry.
    current: (Vec<u8>, usize),
    count: u64,
    names: u64,
    bytes: u64,
    notes: Notes,
}

const NO_FOLDER: Body = Body::Folder { parent: 0, entries: Vec::new() };

impl Drafts {
    fn new() -> Drafts {
        let mut drafts =
            Drafts { all: Vec::new(), current: (Vec::new(), 0), count: 0, names: 0, bytes: 0, notes: Notes::default() };
        drafts.add(Node { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), links: 1, xattrs: Vec::new(), body: NO_FOLDER });
        drafts
    }

    fn add(&mut self, node: Node) -> usize {
        self.all.push(Draft { node, entries: BTreeMap::new() });
        self.all.len() - 1
    }

    fn entry(&mut self, job: &IndexJob, entry: Entry, at: u64) -> Result<(), Trouble> {
        let path = inside(&entry.path).map_err(Trouble::Refused)?;
        self.account(&path, job)?;
        let (uid, gid) = self.owner(&path, &entry, job)?;
        check_names(&path, &entry).map_err(Trouble::Refused)?;
        let (folder, name) = split(&path);
        if name.starts_with(WHITEOUT) {
            hidden_name(name, &entry).map_err(|why| Trouble::Refused(why.into()))?;
            self.notes.add("whiteouts were left out, because nothing is below them", &path);
            return Ok(());
        }
        for name in &entry.lost {
            self.notes.lost(&path, name);
        }
        if matches!(entry.kind, Kind::Character | Kind::Block) && !path.is_empty() {
            self.notes.add("device nodes were left out", &path);
            return Ok(());
        }
        let mut node = Node {
            mode: entry.mode,
            uid,
            gid,
            mtime: entry.mtime,
            links: 1,
            xattrs: Vec::new(),
            body: match entry.kind {
                Kind::File => Body::File { size: entry.size, at, stretches: entry.stretches.clone() },
                Kind::Symlink => Body::Symlink(entry.link.clone()),
                Kind::Fifo => Body::Fifo,
                _ => NO_FOLDER,
            },
        };
        if path.is_empty() {
            return match entry.kind {
                Kind::Directory => {
                    self.dress(0, node, &path, &entry.xattrs);
                    Ok(())
                }
                _ => refused("would replace the root of the image"),
            };
        }
        let parent = self.enter(folder, entry.mtime, job)?;
        match entry.kind {
            Kind::Directory => {
                let old = self.all[parent].entries.get(name).copied();
                let number = match old {
                    Some(old) if self.all[old].is_folder() => old,
                    _ => {
                        let number = self.add(node.clone());
                        self.replace(parent, name, number)?;
                        number
                    }
                };
                self.dress(number, node, &path, &entry.xattrs);
            }
            Kind::Hard => {
                let target = self.hard_link(&entry.link)?;
                if self.all[parent].entries.get(name) != Some(&target) {
                    self.replace(parent, name, target)?;
                    self.all[target].node.links += 1;
                }
            }
            Kind::File => {
                let number = self.add(node);
                self.replace(parent, name, number)?;
                self.bytes = self.bytes.saturating_add(entry.size);
                self.check_limits(job)?;
                self.set_xattrs(number, &path, &entry.xattrs);
            }
            _ => {
                if entry.kind == Kind::Symlink {
                    node.mode = 0o777;
                }
                let number = self.add(node);
                self.replace(parent, name, number)?;
                self.notes.drop_xattrs(&path, &entry.xattrs);
            }
        }
        Ok(())
    }

    /// Gives a folder its attributes; those that it had of the extended ones stay, as they do on a disk.
    fn dress(&mut self, number: usize, node: Node, path: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) {
        let old = &mut self.all[number].node;
        (old.mode, old.uid, old.gid, old.mtime) = (node.mode, node.uid, node.gid, node.mtime);
        self.set_xattrs(number, path, xattrs);
    }

    /// Keeps `user.*`, as [`Writer`](crate::unpack::writer) does.
    fn set_xattrs(&mut self, number: usize, path: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) {
        for (name, value) in xattrs {
            let is_kept = name.starts_with(b"user.")
                && name.len() > b"user.".len()
                && name.len() <= MAX_NAME
                && !name.contains(&0)
                && value.len() <= MAX_VALUE;
            if !is_kept {
                self.notes.lost(path, name);
                continue;
            }
            let own = &mut self.all[number].node.xattrs;
            match own.iter_mut().find(|(other, _)| other == name) {
                Some((_, old)) => old.clone_from(value),
                None => own.push((name.clone(), value.clone())),
            }
        }
    }

    fn account(&mut self, path: &[u8], job: &IndexJob) -> Result<(), Trouble> {
        self.count += 1;
        self.names += path.len() as u64;
        self.check_limits(job)
    }

    fn check_limits(&self, job: &IndexJob) -> Result<(), Trouble> {
        let Limits { entries, names, bytes, .. } = job.limits;
        let too_large = |what| Err(Trouble::TooLarge(what));
        if self.count > entries {
            return too_large(format!("has more than {entries} files"));
        }
        if self.names > names {
            return too_large(format!("has names of more than {names} bytes"));
        }
        if self.bytes > bytes {
            return too_large(format!("unpacks to more than {bytes} bytes"));
        }
        Ok(())
    }

    fn owner(&mut self, path: &[u8], entry: &Entry, job: &IndexJob) -> Result<(u32, u32), Trouble> {
        let (uid, gid) = (entry.uid, entry.gid);
        match job.owners {
            Owners::Flatten => {
                self.notes.flattened(uid, gid);
                Ok((0, 0))
            }
            Owners::Map { count, .. } => match [uid, gid].into_iter().find(|id| *id >= count) {
                Some(id) => Err(Trouble::Error(Error::OwnerRange { path: join(&job.archive, path), id, count })),
                None => Ok((uid, gid)),
            },
        }
    }

    /// The folder at `path`; what is missing on the way is made.
    fn enter(&mut self, path: &[u8], time: Time, job: &IndexJob) -> Result<usize, Trouble> {
        if self.current.0 == path {
            return Ok(self.current.1);
        }
        let mut here = 0;
        let mut end = 0;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            end += name.len() + usize::from(end > 0);
            here = match self.all[here].entries.get(name).copied() {
                Some(next) if self.all[next].is_folder() => next,
                Some(next) => {
                    let what = match self.all[next].node.body {
                        Body::Symlink(_) => "a symbolic link",
                        _ => "no folder",
                    };
                    return refused(format!("lies below `{}`, which is {what}", lossy(&path[..end])));
                }
                None => {
                    self.account(&path[..end], job)?;
                    let xattrs = Vec::new();
                    let made = Node { mode: 0o755, uid: 0, gid: 0, mtime: time, links: 1, xattrs, body: NO_FOLDER };
                    let next = self.add(made);
                    self.all[here].entries.insert(name.into(), next);
                    next
                }
            };
        }
        self.current = (path.into(), here);
        Ok(here)
    }

    /// Puts a node where nothing is, or something that holds nothing.
    fn replace(&mut self, parent: usize, name: &[u8], number: usize) -> Result<(), Trouble> {
        if let Some(old) = self.all[parent].entries.get(name).copied() {
            if !self.all[old].entries.is_empty() {
                return refused("would replace a folder that is not empty");
            }
            if self.all[old].is_folder() {
                self.current = (Vec::new(), 0);
            }
            self.all[old].node.links -= 1;
        }
        self.all[parent].entries.insert(name.into(), number);
        Ok(())
    }

    fn hard_link(&self, link: &[u8]) -> Result<usize, Trouble> {
        let why_not = |why: &str| refused(format!("is a hard link to `{}`, which {why}", lossy(link)));
        let target = match inside(link) {
            Ok(target) => target,
            Err(why) => return why_not(&why),
        };
        if target.is_empty() {
            return why_not("is the root");
        }
        let mut here = 0;
        for name in target.split(|b| *b == b'/') {
            if !self.all[here].is_folder() {
                return why_not("lies behind a link or a file");
            }
            match self.all[here].entries.get(name) {
                Some(next) => here = *next,
                None => return why_not("does not exist"),
            }
        }
        match self.all[here].is_folder() {
            true => why_not("is no file"),
            false => Ok(here),
        }
    }

    /// Numbers what is left from the root on.
    fn finish(mut self) -> Tree {
        let mut nodes: Vec<Node> = Vec::new();
        let mut numbers: BTreeMap<usize, u32> = BTreeMap::new();
        // In the order of their numbers: which draft, and the folder that it was found in first.
        let mut order = vec![(0, 0)];
        let mut at = 0;
        while let Some((draft, parent)) = order.get(at).copied() {
            // There are at most as many as an archive has entries.
            let own = u32::try_from(at).unwrap_or(u32::MAX);
            let below = std::mem::take(&mut self.all[draft].entries);
            let mut node = self.all[draft].node.clone();
            if let Body::Folder { .. } = node.body {
                let mut entries = Vec::with_capacity(below.len());
                for (name, draft) in below {
                    let next = u32::try_from(order.len()).unwrap_or(u32::MAX);
                    let number = *numbers.entry(draft).or_insert_with(|| {
                        order.push((draft, own));
                        next
                    });
                    entries.push((name, number));
                }
                node.body = Body::Folder { parent, entries };
            }
            nodes.push(node);
            at += 1;
        }
        Tree { nodes, notes: self.notes }
    }
}
