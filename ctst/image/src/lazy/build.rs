//! Makes the index of an archive: what [`unpack`](crate::unpack) would make of it, without doing so. What that refuses is
//! refused here by the same words.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::sync_channel;
use std::thread;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::index::{BLOCK, Body, DATA, Form, INDEX, Index, Node, State, Stream};
use super::pieces::{Data, Pieces};
use super::read::{Reader, Trouble as Unread};
use super::steps::steps;
use crate::Error;
use crate::archive::image::{Blob, Selected};
use crate::archive::stream::{Chunk, Compression, Counted, FileInput, Hashed, Input, Meter, check_regular, digest};
use crate::archive::tar::{Current, Entry, Kind, Tar};
use crate::archive::tee::tee;
use crate::archive::{Content, Limits, Wanted, examine, plain};
use crate::error::text;
use crate::hash::Algorithm;
use crate::model::{Config, Declared};
use crate::source::hex;
use crate::tree::{Digest, Time, join};
use crate::unpack::notes::Notes;
use crate::unpack::writer::{MAX_NAME, check_names, hidden_name, inside, lossy, split};
use crate::unpack::{OPAQUE, Owners, QUEUE, TREE, WHITEOUT, join as join_thread, pass};

/// Longest value of an extended attribute that Linux takes (xattr(7)).
const MAX_VALUE: usize = 64 << 10;
/// What ctst itself reads of an image, to know users and where a link leads: copied beside the index.
const KEPT: [&[u8]; 3] = [b"etc/passwd", b"etc/group", b"etc/resolv.conf"];
/// More of them than any image has.
const MAX_KEPT: u32 = 1 << 20;

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
    /// The same of all layers, with files that others hide.
    #[serde(default)]
    pub unpacked: u64,
    /// What the image says about how it is run.
    #[serde(default)]
    pub config: Config,
    /// What it declares beyond that.
    #[serde(default)]
    pub declared: Declared,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Indexes `file` into the folder `target`.
pub(crate) fn build(job: &IndexJob, file: &OwnedFd, target: &Path) -> Result<Indexed, Error> {
    let state = State::from(check_regular(file, &job.archive)?);
    let head = compression(file, job, 0..state.size)?;
    let what = examine(file, &job.archive, &job.limits, &Wanted::default())?;
    let (listed, hashes) = thread::scope(|scope| {
        // Of what is compressed, the pieces have digests.
        let hashing = (job.hash && head == Compression::Plain).then(|| {
            let [whole, blocks] = tee(FileInput::new(file, &job.archive));
            (scope.spawn(move || digest(whole)), scope.spawn(move || hash_blocks(blocks)))
        });
        let builder = Builder::new(job, file, target);
        let listed = builder.and_then(|builder| builder.list(head, state.size, &what));
        (listed, hashing.map(|(whole, blocks)| (join_thread(whole), join_thread(blocks))))
    });
    let (tree, mut streams, read) = listed?;
    let whole = match hashes {
        None => read.map(|digest| hex(&digest)),
        // First that of the one who may have seen only an end where the other could not read.
        Some((Err(error), _) | (_, Err(error))) => return Err(error),
        Some((Ok(whole), Ok(blocks))) => {
            streams[0].form = Form::Plain { blocks: Some(blocks) };
            Some(hex(&whole))
        }
    };
    let Tree { nodes, notes, bytes: unpacked } = tree;
    let index = Index::new(state, nodes, streams);
    let size = index.nodes.iter().map(|node| if let Body::File { size, .. } = node.body { size } else { 0 }).sum();
    let Some((bytes, own)) = index.encode() else {
        let what = "needs an index of more than 1 GiB".into();
        return Err(Error::TooLarge { archive: job.archive.clone(), entry: None, what });
    };
    let path = target.join(INDEX);
    std::fs::write(&path, bytes).map_err(|e| Error::std("write", path, &e))?;
    keep(index, file, job, target)?;
    let (config, declared) = match what {
        Content::Root => (Config::default(), Declared::default()),
        Content::Image(image) => (image.config, image.declared),
    };
    let (index, notes) = (Algorithm::Blake3.text(&own), notes.texts());
    Ok(Indexed { digest: whole, index, size, unpacked, config, declared, notes })
}

/// How a part of the archive is compressed.
fn compression(file: &OwnedFd, job: &IndexJob, part: Range<u64>) -> Result<Compression, Error> {
    let mut head = [0; 8];
    let most = usize::try_from(part.end - part.start).map_or(head.len(), |most| most.min(head.len()));
    let count = rustix::io::pread(file, &mut head[..most], part.start)
        .map_err(|cause| Error::io("read", job.archive.clone(), cause))?;
    Compression::of(&head[..count]).map_err(|name| Error::Archive {
        archive: job.archive.clone(),
        why: format!("is compressed with {name}, which is not understood"),
    })
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

/// Lists what is in an archive.
struct Builder<'a> {
    job: &'a IndexJob,
    file: &'a OwnedFd,
    /// Away while a decoder writes to it.
    data: Option<Data>,
    streams: Vec<Stream>,
    notes: Notes,
    /// Bytes of the files of all layers.
    bytes: u64,
    read: AtomicU64,
    made: AtomicU64,
}

type Listed = (Tree, Vec<Stream>, Option<Digest>);

impl<'a> Builder<'a> {
    fn new(job: &'a IndexJob, file: &'a OwnedFd, target: &Path) -> Result<Self, Error> {
        Ok(Builder {
            job,
            file,
            data: Some(Data::create(&target.join(DATA))?),
            streams: Vec::new(),
            notes: Notes::default(),
            bytes: 0,
            read: AtomicU64::new(0),
            made: AtomicU64::new(0),
        })
    }

    /// All of it; also its digest, if it is compressed and has a pin.
    fn list(mut self, compression: Compression, size: u64, what: &Content) -> Result<Listed, Error> {
        let name = &self.job.archive;
        let mut drafts = Vec::new();
        let mut digest = None;
        if compression == Compression::Plain {
            self.streams.push(Stream { size, form: Form::Plain { blocks: None } });
            let input = FileInput::of_headers(self.file, name);
            match what {
                Content::Root => drafts.push(Some(self.tree_in(0, input, true, 0)?.0)),
                Content::Image(image) => drafts = self.layers(image, input)?,
            }
        } else {
            let (found, stream, whole) =
                self.decoded(compression, 0..size, self.job.hash, |this, pieces| match what {
                    Content::Root => Ok(vec![Some(this.tree(pieces, true, 0)?.0)]),
                    Content::Image(image) => this.nested_layers(image, pieces),
                })?;
            (drafts, digest) = (found, whole);
            self.streams.push(stream);
        }
        let mut merged: Option<Drafts> = None;
        for layer in drafts {
            // What was there when the archive was listed first must have been there the second time.
            let layer = layer.ok_or_else(|| Error::Changed(name.clone()))?;
            merged = Some(match merged {
                None => layer,
                Some(below) => below.under(layer),
            });
        }
        let nodes = merged.unwrap_or_else(|| Drafts::new(true, Notes::default(), 0)).finish();
        Ok((Tree { nodes, notes: self.notes, bytes: self.bytes }, self.streams, digest))
    }

    /// Lists a tar stream that lies in the stream which is kept next, from `base` on.
    fn tree<I: Input>(&mut self, input: I, is_lowest: bool, base: u64) -> Result<(Drafts, I), Error> {
        let number = u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
        self.tree_in(number, input, is_lowest, base)
    }

    fn tree_in<I: Input>(&mut self, stream: u32, input: I, is_lowest: bool, base: u64) -> Result<(Drafts, I), Error> {
        let mut tar = Tar::new(input, &self.job.archive, &self.job.limits);
        let mut tree = Drafts::new(is_lowest, std::mem::take(&mut self.notes), self.bytes);
        while let Some(entry) = tar.next()? {
            let place = (stream, base + tar.position());
            tree.entry(self.job, entry, place).map_err(|trouble| match trouble {
                Trouble::Refused(why) => tar.refused(&why),
                Trouble::TooLarge(what) => tar.too_large(what),
                Trouble::Error(error) => error,
            })?;
        }
        (self.notes, self.bytes) = (std::mem::take(&mut tree.notes), tree.bytes);
        Ok((tree, tar.into_input()))
    }

    /// Decompresses a part of the archive, which `list` takes; also gives the part's digest, if that is wanted.
    fn decoded<T>(
        &mut self,
        compression: Compression,
        part: Range<u64>,
        hash: bool,
        list: impl FnOnce(&mut Self, &mut Pieces) -> Result<T, Error>,
    ) -> Result<(T, Stream, Option<Digest>), Error> {
        let (job, file) = (self.job, self.file);
        let (read, made) = (std::mem::take(&mut self.read), std::mem::take(&mut self.made));
        let start = part.start;
        let (result, digest) = thread::scope(|scope| {
            let (sender, decoded) = sync_channel(QUEUE);
            let meter = Meter { limits: &job.limits, read: &read, made: &made, archive: &job.archive };
            // Reading and hashing does not wait for the decoder, which takes longest.
            let (packed_sender, packed) = sync_channel(QUEUE);
            let reader = scope.spawn(move || {
                let input = Counted::new(FileInput::part(file, &job.archive, part), meter.read);
                let mut input = SometimesHashed { input, hash: hash.then(Sha256::new) };
                pass(&mut input, &packed_sender);
                input.hash.map(|hash| hash.finalize().into())
            });
            let decoder = scope.spawn(move || {
                let mut send = |step: Result<_, Error>| {
                    let is_last = step.is_err();
                    // Who does not listen any more has failed.
                    sender.send(step).is_ok() && !is_last
                };
                match steps(compression, packed, meter) {
                    Ok(mut steps) => steps.all(&mut send),
                    Err(error) => send(Err(error)),
                }
            });
            let data = self.data.take().expect("only one decoder runs at a time");
            let mut pieces = Pieces::new(decoded, data, start);
            let listed = list(self, &mut pieces);
            let (stream, data) = pieces.finish();
            self.data = Some(data);
            join_thread(decoder);
            (listed.map(|listed| (listed, stream)), join_thread(reader))
        });
        (self.read, self.made) = (read, made);
        let (listed, stream) = result?;
        Ok((listed, stream, digest))
    }

    /// Lists the layers of an image whose archive is not compressed.
    fn layers(&mut self, image: &Selected, input: impl Input) -> Result<Layers, Error> {
        let mut outer = Tar::new(input, &self.job.archive, &self.job.limits);
        let mut found: Layers = image.layers.iter().map(|_| None).collect();
        while let Some(entry) = outer.next()? {
            let Some((index, blob)) = self.layer(image, &entry)? else { continue };
            let part = outer.position()..outer.position().saturating_add(entry.size);
            let (tree, digest, diff) = match compression(self.file, self.job, part.clone())? {
                Compression::Plain => {
                    let tree = self.tree_in(0, Current(&mut outer), index == 0, part.start)?.0;
                    let input = FileInput::part(self.file, &self.job.archive, part);
                    let digest = if self.job.hash { Some(digest(input)?) } else { None };
                    (tree, digest, digest)
                }
                compression => {
                    let ((tree, diff), stream, digest) = self.decoded(compression, part, true, |this, pieces| {
                        let (tree, input) = this.tree(Hashed::new(pieces), index == 0, 0)?;
                        Ok((tree, input.digest()))
                    })?;
                    self.streams.push(stream);
                    (tree, digest, Some(diff))
                }
            };
            self.check(blob, digest, diff)?;
            found[index] = Some(tree);
        }
        Ok(found)
    }

    /// Lists the layers of an image whose archive is compressed.
    fn nested_layers(&mut self, image: &Selected, input: impl Input) -> Result<Layers, Error> {
        let mut outer = Tar::new(input, &self.job.archive, &self.job.limits);
        let mut found: Layers = image.layers.iter().map(|_| None).collect();
        while let Some(entry) = outer.next()? {
            let Some((index, blob)) = self.layer(image, &entry)? else { continue };
            let base = outer.position();
            let mut content = Current(&mut outer);
            let first = content.next()?;
            if Compression::of(first.as_deref().unwrap_or_default()) != Ok(Compression::Plain) {
                return Err(self.unfit("is compressed, and so are the layers in it"));
            }
            let (tree, input) = self.tree(Hashed::new(Begun { first, rest: content }), index == 0, base)?;
            let digest = Some(input.digest());
            self.check(blob, digest, digest)?;
            found[index] = Some(tree);
        }
        Ok(found)
    }

    /// Which layer an entry of the archive is.
    fn layer<'i>(&self, image: &'i Selected, entry: &Entry) -> Result<Option<(usize, &'i Blob)>, Error> {
        let name = plain(&entry.path);
        let found = image.layers.iter().enumerate().find(|(_, blob)| entry.kind == Kind::File && blob.name == name);
        match found {
            Some(_) if entry.stretches.is_some() => Err(self.unfit("has a layer that is a file with holes")),
            found => Ok(found),
        }
    }

    fn unfit(&self, why: &str) -> Error {
        Error::NotLazy { archive: self.job.archive.clone(), why: why.into() }
    }

    /// Compares the digests of a layer that was read with what the image says.
    fn check(&self, blob: &Blob, digest: Option<Digest>, diff: Option<Digest>) -> Result<(), Error> {
        for (expected, found) in [(blob.digest.as_ref(), digest), (Some(&blob.diff), diff)] {
            if let (Some(expected), Some(found)) = (expected, found.map(|found| hex(&found)))
                && *expected != found
            {
                let blob = text(&String::from_utf8_lossy(&blob.name));
                let (archive, expected) = (self.job.archive.clone(), expected.clone());
                return Err(Error::BlobDigest { archive, blob, expected, found });
            }
        }
        Ok(())
    }
}

/// By number.
type Layers = Vec<Option<Drafts>>;

/// An input of which the first chunk was looked at.
struct Begun<I> {
    first: Option<Chunk>,
    rest: I,
}

impl<I: Input> Input for Begun<I> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        match self.first.take() {
            None => self.rest.next(),
            first => Ok(first),
        }
    }
}

/// Hashes what passes, if anybody wants to know.
struct SometimesHashed<I> {
    input: I,
    hash: Option<Sha256>,
}

impl<I: Input> Input for SometimesHashed<I> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        let chunk = self.input.next()?;
        if let (Some(hash), Some(chunk)) = (&mut self.hash, &chunk) {
            hash.update(&**chunk);
        }
        Ok(chunk)
    }
}

/// Copies the files that ctst itself reads, as far as the image has them as plain files.
fn keep(index: Index, file: &OwnedFd, job: &IndexJob, target: &Path) -> Result<(), Error> {
    let root = target.join(TREE);
    let failed = |path: &Path, e: &std::io::Error| Error::std("write", path, e);
    std::fs::create_dir(&root).map_err(|e| failed(&root, &e))?;
    let archive = file.try_clone().map_err(|e| Error::std("open", job.archive.clone(), &e))?;
    let data = target.join(DATA);
    let data = File::open(&data).map_err(|e| Error::std("open", data, &e))?.into();
    let reader = Reader::new(index, archive, data);
    for path in KEPT {
        let place = join(&root, path);
        match find(&reader.index.nodes, path).map(|node| &node.body) {
            Some(body @ Body::File { size, stretches: None, .. }) if *size <= MAX_KEPT.into() => {
                let bytes = reader.content(body, 0, MAX_KEPT).map_err(|trouble| match trouble {
                    Unread::Changed | Unread::Damaged => Error::Changed(job.archive.clone()),
                    Unread::Refused(cause) => Error::io("read", job.archive.clone(), cause),
                })?;
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

/// What is at `path`, behind no link.
fn find<'n>(nodes: &'n [Node], path: &[u8]) -> Option<&'n Node> {
    path.split(|b| *b == b'/').try_fold(nodes.first()?, |node, name| {
        let Body::Folder { entries, .. } = &node.body else { return None };
        let at = entries.binary_search_by(|(other, _)| other[..].cmp(name)).ok()?;
        nodes.get(entries[at].1 as usize)
    })
}

/// A tree without what was replaced.
struct Tree {
    nodes: Vec<Node>,
    notes: Notes,
    /// Of the files of all layers.
    bytes: u64,
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
    /// Of what the layers below have at its place, nothing is seen: of a folder, nothing that is in it.
    hides: bool,
    /// It stands for that only.
    is_whiteout: bool,
}

impl Draft {
    fn is_folder(&self) -> bool {
        matches!(self.node.body, Body::Folder { .. })
    }
}

/// The tree as the entries so far have made it.
struct Drafts {
    is_lowest: bool,
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
    fn new(is_lowest: bool, notes: Notes, bytes: u64) -> Drafts {
        let (all, current) = (Vec::new(), (Vec::new(), 0));
        let mut drafts = Drafts { is_lowest, all, current, count: 0, names: 0, bytes, notes };
        drafts.add(Node { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), links: 1, xattrs: Vec::new(), body: NO_FOLDER });
        drafts
    }

    fn add(&mut self, node: Node) -> usize {
        self.all.push(Draft { node, entries: BTreeMap::new(), hides: false, is_whiteout: false });
        self.all.len() - 1
    }

    fn entry(&mut self, job: &IndexJob, entry: Entry, (stream, at): (u32, u64)) -> Result<(), Trouble> {
        let path = inside(&entry.path).map_err(Trouble::Refused)?;
        self.account(&path, job)?;
        let (uid, gid) = self.owner(&path, &entry, job)?;
        check_names(&path, &entry).map_err(Trouble::Refused)?;
        let (folder, name) = split(&path);
        if name.starts_with(WHITEOUT) {
            return self.whiteout(folder, name, &entry, job);
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
                Kind::File => Body::File { size: entry.size, stream, at, stretches: entry.stretches.clone() },
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
                    old => {
                        let number = self.add(node.clone());
                        self.replace(parent, name, number)?;
                        // What was hidden stays hidden.
                        self.all[number].hides = old.is_some_and(|old| self.all[old].is_whiteout);
                        number
                    }
                };
                self.dress(number, node, &path, &entry.xattrs);
            }
            Kind::Hard => {
                let target = self.hard_link(&entry.link)?;
                if self.all[parent].entries.get(name) != Some(&target) {
                    self.replace(parent, name, target)?;
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

    /// As [`Writer`](crate::unpack::writer) does it with files for the overlay.
    fn whiteout(&mut self, folder: &[u8], name: &[u8], entry: &Entry, job: &IndexJob) -> Result<(), Trouble> {
        let path = [folder, name].join(&b'/');
        let hidden = hidden_name(name, entry).map_err(|why| Trouble::Refused(why.into()))?;
        if self.is_lowest {
            self.notes.add("whiteouts were left out, because nothing is below them", &path);
            return Ok(());
        }
        if name.starts_with(b".wh..wh.") && name != OPAQUE {
            self.notes.add("records of aufs were left out", &path);
            return Ok(());
        }
        if name == OPAQUE && folder.is_empty() {
            return refused("hides all layers below, which an overlay cannot do");
        }
        let parent = self.enter(folder, entry.mtime, job)?;
        if name == OPAQUE {
            self.all[parent].hides = true;
            return Ok(());
        }
        match self.all[parent].entries.get(hidden).copied() {
            // What the layer itself has there hides what is below, except for a folder's content.
            Some(old) => self.all[old].hides |= self.all[old].is_folder(),
            None => {
                // Of what it would be, nothing is ever seen.
                let (mtime, xattrs) = (entry.mtime, Vec::new());
                let number = self.add(Node { mode: 0, uid: 0, gid: 0, mtime, links: 1, xattrs, body: Body::Fifo });
                self.all[number].is_whiteout = true;
                self.all[parent].entries.insert(hidden.into(), number);
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
                Some(next) if !self.all[next].is_whiteout => {
                    let what = match self.all[next].node.body {
                        Body::Symlink(_) => "a symbolic link",
                        _ => "no folder",
                    };
                    return refused(format!("lies below `{}`, which is {what}", lossy(&path[..end])));
                }
                old => {
                    let here_path = &path[..end];
                    self.account(here_path, job)?;
                    if !self.is_lowest {
                        self.notes
                            .add("folders are not described by their layer and were made with mode 0755", here_path);
                    }
                    let xattrs = Vec::new();
                    let made = Node { mode: 0o755, uid: 0, gid: 0, mtime: time, links: 1, xattrs, body: NO_FOLDER };
                    let next = self.add(made);
                    self.all[next].hides = old.is_some();
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
        match self.all[here].is_folder() || self.all[here].is_whiteout {
            true => why_not("is no file"),
            false => Ok(here),
        }
    }

    /// The same tree with a layer above it.
    fn under(mut self, layer: Drafts) -> Drafts {
        let first = self.all.len();
        self.all.extend(layer.all.into_iter().map(|mut draft| {
            draft.entries.values_mut().for_each(|number| *number += first);
            draft
        }));
        self.lay(first, 0);
        self
    }

    /// Lays a folder over another, as overlayfs does: of the lower one remains what is in it, unless the upper one hides that.
    fn lay(&mut self, over: usize, under: usize) {
        let Draft { node, entries, hides, .. } = &mut self.all[over];
        let (entries, hides) = (std::mem::take(entries), *hides);
        self.all[under].node = node.clone();
        if hides {
            self.all[under].entries.clear();
        }
        for (name, number) in entries {
            let below = self.all[under].entries.get(&name).copied();
            if self.all[number].is_whiteout {
                self.all[under].entries.remove(&name);
            } else if !self.all[number].is_folder() {
                self.all[under].entries.insert(name, number);
            } else {
                let below = below.filter(|below| self.all[*below].is_folder()).unwrap_or_else(|| {
                    let empty = self.add(self.all[number].node.clone());
                    self.all[under].entries.insert(name, empty);
                    empty
                });
                self.lay(number, below);
            }
        }
    }

    /// Numbers what is left from the root on.
    fn finish(mut self) -> Vec<Node> {
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
        let names = nodes.iter().filter_map(|node| match &node.body {
            Body::Folder { entries, .. } => Some(entries.iter().map(|(_, number)| *number as usize)),
            _ => None,
        });
        let mut links = vec![0; nodes.len()];
        names.flatten().for_each(|number| links[number] += 1);
        nodes.iter_mut().zip(links).for_each(|(node, links)| node.links = links);
        nodes
    }
}
