//! Unpacks an archive into a folder.
//!
//! Every name is resolved beneath the layer's root by `openat2` without following any link, and only its last component is
//! created, so that an entry lands inside or is refused by its name. Nothing that an archive says is believed: not its
//! sizes, not its owners, not its digests.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::archive::image::{Blob, Selected};
use crate::archive::stream::{Chunk, Compression, FileInput, Hashed, Input, Meter, check_regular, decode};
use crate::archive::tar::{Entry, Kind, Tar};
use crate::archive::{Content as What, Limits, examine, plain};
use crate::copy::{self, Content, Ids, write_at};
use crate::error::{list, text};
use crate::hash::{Algorithm, Hash};
use crate::model::{Config, Declared};
use crate::source::hex;
use crate::tree::{self, Body, Digest, EXAMPLES, Time, join, open_dir};
use crate::{Error, Progress};

/// The folder of a layer that becomes its root.
pub(crate) const TREE: &str = "tree";
/// For the trees of layers.
const ALGORITHM: Algorithm = Algorithm::Blake3;
/// Chunks on their way between two threads.
const QUEUE: usize = 16;
/// Longest name of a file.
const MAX_NAME: usize = 255;
pub(crate) const WHITEOUT: &[u8] = b".wh.";
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
pub(crate) const OPAQUE_ATTRIBUTE: &str = "user.overlay.opaque";

/// Who owns what is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owners {
    /// Whoever unpacks, whatever the archive says.
    Flatten,
    /// Id `base + n` for id `n` of the archive, as seen by whoever unpacks. Ids at or above `count` are refused.
    Map {
        /// 0 inside a worker container.
        base: u32,
        /// Number of ids.
        count: u32,
    },
}

impl Owners {
    pub(crate) fn ids(self) -> Ids {
        match self {
            Owners::Flatten => Ids::Flat,
            Owners::Map { base, .. } => Ids::Above(base),
        }
    }
}

/// What is to be unpacked, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackJob {
    /// The archive's name in messages.
    pub archive: PathBuf,
    /// Who owns the files.
    pub owners: Owners,
    /// How much it may be.
    pub limits: Limits,
    /// Layers, as [`Layer::key`] names them, that are in the store and need not be unpacked.
    pub have: Vec<String>,
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// SHA-256 of the archive's file, 64 hexadecimal digits.
    pub digest: String,
    /// Names that the archive has for its image, as it writes them.
    #[serde(default)]
    pub names: Vec<String>,
    /// The lowest first.
    pub layers: Vec<Layer>,
    /// What the image says about how it is run.
    pub config: Config,
    /// What it declares beyond that.
    pub declared: Declared,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// One layer of a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// SHA-256 of the uncompressed layer, 64 hexadecimal digits.
    pub diff: String,
    /// Whether nothing is below: whiteouts have no meaning there and are left out.
    pub is_lowest: bool,
    /// What was made; `None` for a layer of [`UnpackJob::have`].
    pub made: Option<Made>,
}

/// A layer that was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The folder in the target; the layer's root is its folder `tree`.
    pub folder: String,
    /// Digest of the tree: `blake3:` and 64 hexadecimal digits.
    pub tree: String,
    /// Size of all files in bytes.
    pub size: u64,
}

impl Layer {
    /// The layer's name in the store, without the id map.
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.diff, self.is_lowest)
    }
}

fn key(diff: &str, is_lowest: bool) -> String {
    if is_lowest { format!("{diff}-lowest") } else { diff.to_owned() }
}

/// Unpacks, in this process or elsewhere: an unpacker that is itself confined can do no harm even if one of its
/// decoders can be made to.
pub trait Runner {
    /// Unpacks `archive`, a regular file open for reading, into `target`, an empty folder of the caller's.
    ///
    /// # Errors
    /// See [`Error`]; what is in `target` then is removed by the caller.
    fn unpack(
        &self,
        job: &UnpackJob,
        archive: OwnedFd,
        target: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Report, Error>;

    /// The digest of an unpacked tree: the algorithm's name in lower case, `:`, and 64 hexadecimal digits.
    ///
    /// # Errors
    /// A tree that cannot be read.
    fn digest(&self, owners: Owners, algorithm: Algorithm, tree: &Path) -> Result<String, Error> {
        Direct.digest(owners, algorithm, tree)
    }

    /// Writes an unpacked tree to `out`, an open file, as the tar stream of a layer; its digest, 64 hexadecimal digits.
    ///
    /// # Errors
    /// A tree that cannot be read, a file that cannot be written.
    fn pack(&self, owners: Owners, tree: &Path, out: OwnedFd) -> Result<String, Error> {
        Direct.pack(owners, tree, out)
    }

    /// Removes a folder of the store and everything in it, whoever owns it.
    ///
    /// # Errors
    /// As [`remove_tree`](crate::remove_tree).
    fn remove(&self, folder: &Path) -> Result<(), Error> {
        crate::remove_tree(folder)
    }

    /// Whether it runs in a container with the id map of the request's ownership, where root's id is 0.
    fn is_mapped(&self) -> bool {
        false
    }
}

/// Unpacks in this process: for callers with a single id, and for tests. Root unpacks with its own rights, confined by
/// nothing but the way names are resolved; a container is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Direct;

impl Runner for Direct {
    fn unpack(
        &self,
        job: &UnpackJob,
        archive: OwnedFd,
        target: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Report, Error> {
        unpack(job, &archive, target, progress)
    }

    fn digest(&self, owners: Owners, algorithm: Algorithm, tree: &Path) -> Result<String, Error> {
        let digest = copy::hash_tree(algorithm, &open_tree(tree)?, tree, owners.ids())?;
        Ok(algorithm.text(&digest))
    }

    fn pack(&self, owners: Owners, tree: &Path, out: OwnedFd) -> Result<String, Error> {
        crate::pack::pack(&open_tree(tree)?, tree, owners, out).map(|digest| hex(&digest))
    }
}

fn open_tree(tree: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, tree, flags, Mode::empty()).map_err(|e| Error::io("open", tree, e))
}

/// What is sent from the thread that decompresses to the one that writes.
enum Feed {
    /// The layer of this index begins.
    Begin(usize),
    Data(Chunk),
    /// It ends. Its digest, where it differs from the archive's.
    End(Option<Digest>),
}

type Sender = SyncSender<Result<Feed, Error>>;

/// One thread reads and hashes the archive, one decompresses, one hashes what comes out, and this one writes and hashes
/// files: on two processors none has much more than half of the work.
pub(crate) fn unpack(
    job: &UnpackJob,
    file: &OwnedFd,
    target: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, Error> {
    let stat = check_regular(file, &job.archive)?;
    progress(Progress::Scanning);
    let what = examine(file, &job.archive, &job.limits)?;
    let mut layers = match &what {
        What::Root => vec![Layer { diff: String::new(), is_lowest: true, made: None }],
        What::Image(image) => {
            let layer = |(i, blob): (usize, &Blob)| Layer { diff: blob.diff.clone(), is_lowest: i == 0, made: None };
            image.layers.iter().enumerate().map(layer).collect()
        }
    };
    let wanted: Vec<bool> = layers.iter().map(|layer| !job.have.contains(&layer.key())).collect();

    let [read, made, outer] = [const { AtomicU64::new(0) }; 3];
    let meter = Meter { limits: &job.limits, read: &read, made: &made, archive: &job.archive };
    let mut notes = Notes::default();
    let mut ticker =
        Ticker { next: Instant::now(), read: &read, total: u64::try_from(stat.st_size).unwrap_or(0), progress };
    let (archive, written) = thread::scope(|scope| {
        let (sender, chunks) = sync_channel(QUEUE);
        let input = Hashed::new(FileInput::new(file, &job.archive), &read);
        let reader = scope.spawn(move || pass(input, &sender).digest());
        let (sender, feed) = sync_channel(QUEUE);
        let feeder = scope.spawn(|| {
            let sender = sender;
            let fed = match &what {
                What::Root => feed_root(chunks, meter, &sender),
                What::Image(image) => {
                    feed_image(chunks, Meter { made: &outer, ..meter }, meter, image, &wanted, &sender)
                }
            };
            if let Err(error) = fed {
                let _ = sender.send(Err(error));
            }
        });
        let written = write_layers(job, &layers, target, feed, &made, &mut notes, &mut ticker);
        feeder.join().unwrap_or_else(|panic| resume_unwind(panic));
        (reader.join().unwrap_or_else(|panic| resume_unwind(panic)), written)
    });
    for (index, diff, made) in written? {
        layers[index].diff = hex(&diff.unwrap_or(archive));
        layers[index].made = Some(made);
    }
    // What was there when the archive was listed must have been there when it was read.
    if layers.iter().zip(wanted).any(|(layer, wanted)| wanted && layer.made.is_none()) {
        return Err(Error::Changed(job.archive.clone()));
    }
    let (names, config, declared) = match what {
        What::Root => (Vec::new(), Config::default(), Declared::default()),
        What::Image(image) => (image.names, image.config, image.declared),
    };
    Ok(Report { digest: hex(&archive), names, layers, config, declared, notes: notes.texts() })
}

/// Tells how far the archive is read, about twenty times a second.
struct Ticker<'a> {
    next: Instant,
    read: &'a AtomicU64,
    total: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl Ticker<'_> {
    fn tick(&mut self, files: u64) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + Duration::from_millis(50);
            let bytes_done = self.read.load(Ordering::Relaxed);
            let (files_done, files_total, bytes_total) = (files, files, self.total);
            (self.progress)(Progress::Copying { files_done, files_total, bytes_done, bytes_total });
        }
    }
}

/// Sends everything, up to the first error; returns the input.
fn pass<I: Input>(mut input: I, sender: &SyncSender<Result<Chunk, Error>>) -> I {
    while let Some(chunk) = input.next().transpose() {
        let is_last = chunk.is_err();
        // Who does not listen any more has failed.
        if sender.send(chunk).is_err() || is_last {
            break;
        }
    }
    input
}

/// Sends everything; false when nobody listens any more.
fn send_all(input: &mut dyn Input, sender: &Sender) -> Result<bool, Error> {
    while let Some(chunk) = input.next()? {
        if sender.send(Ok(Feed::Data(chunk))).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn feed_root(chunks: impl Input + Send, meter: Meter<'_>, sender: &Sender) -> Result<(), Error> {
    let (compression, mut input) = decode(chunks, meter)?;
    let count = AtomicU64::new(0);
    let is_heard = sender.send(Ok(Feed::Begin(0))).is_ok();
    let (is_heard, digest) = match compression {
        Compression::Plain => (is_heard && send_all(&mut input, sender)?, None),
        _ => thread::scope(|scope| {
            let (out, decoded) = sync_channel(QUEUE);
            let count = &count;
            let hasher = scope.spawn(move || {
                let mut input = Hashed::new(decoded, count);
                Ok((is_heard && send_all(&mut input, sender)?, Some(input.digest())))
            });
            pass(input, &out);
            drop(out);
            hasher.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?,
    };
    if is_heard {
        let _ = sender.send(Ok(Feed::End(digest)));
    }
    Ok(())
}

/// The content of a tar stream's current entry.
struct Current<'t, 'a, I>(&'t mut Tar<'a, I>);

impl<I: Input> Input for Current<'_, '_, I> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        self.0.data(u64::MAX)
    }
}

fn feed_image(
    chunks: impl Input + Send,
    outer: Meter<'_>,
    inner: Meter<'_>,
    image: &Selected,
    wanted: &[bool],
    sender: &Sender,
) -> Result<(), Error> {
    let layers = image.layers.iter().enumerate().filter(|(i, _)| wanted[*i]);
    let layers: HashMap<&[u8], (usize, &Blob)> = layers.map(|(i, blob)| (&blob.name[..], (i, blob))).collect();
    let mut tar = Tar::new(decode(chunks, outer)?.1, outer.archive, outer.limits);
    while let Some(entry) = tar.next()? {
        let Some((index, blob)) = layers.get(&plain(&entry.path)[..]).filter(|_| entry.kind == Kind::File) else {
            continue;
        };
        if sender.send(Ok(Feed::Begin(*index))).is_err() {
            return Ok(());
        }
        let [raw, diffed] = [const { AtomicU64::new(0) }; 2];
        let mut input = Hashed::new(Current(&mut tar), &raw);
        let (compression, mut decoded) = decode(&mut input, inner)?;
        let sent = match compression {
            Compression::Plain => send_all(&mut decoded, sender)?.then_some(None),
            _ => {
                let mut hashed = Hashed::new(&mut decoded, &diffed);
                send_all(&mut hashed, sender)?.then(|| Some(hashed.digest()))
            }
        };
        drop(decoded);
        let Some(diff) = sent else { return Ok(()) };
        let digest = input.digest();
        let diff = diff.unwrap_or(digest);
        for (expected, found) in [(blob.digest.as_ref(), digest), (Some(&blob.diff), diff)] {
            let found = hex(&found);
            if let Some(expected) = expected.filter(|expected| **expected != found) {
                let blob = text(&String::from_utf8_lossy(&blob.name));
                let (archive, expected) = (outer.archive.into(), expected.clone());
                return Err(Error::BlobDigest { archive, blob, expected, found });
            }
        }
        if sender.send(Ok(Feed::End(Some(diff)))).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// One layer's part of the feed.
struct LayerInput<'a> {
    feed: &'a Receiver<Result<Feed, Error>>,
    /// What came with the end, when it came.
    end: Option<Option<Digest>>,
}

impl Input for LayerInput<'_> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        if self.end.is_some() {
            return Ok(None);
        }
        match self.feed.recv() {
            Ok(Ok(Feed::Data(chunk))) => Ok(Some(chunk)),
            Ok(Ok(Feed::End(digest))) => {
                self.end = Some(digest);
                Ok(None)
            }
            Ok(Err(error)) => Err(error),
            // Only a thread that panics ends in the middle of a layer, and joining it tells.
            Ok(Ok(Feed::Begin(_))) | Err(_) => Ok(None),
        }
    }
}

type Written = Vec<(usize, Option<Digest>, Made)>;

fn write_layers(
    job: &UnpackJob,
    layers: &[Layer],
    target: &Path,
    feed: Receiver<Result<Feed, Error>>,
    made: &AtomicU64,
    notes: &mut Notes,
    ticker: &mut Ticker<'_>,
) -> Result<Written, Error> {
    let mut written = Written::new();
    while let Ok(message) = feed.recv() {
        let Feed::Begin(index) = message? else { continue };
        let folder = index.to_string();
        let base = target.join(&folder).join(TREE);
        let root = make_root(target, &folder, &base)?;
        let mut tar = Tar::new(LayerInput { feed: &feed, end: None }, &job.archive, &job.limits);
        let mut writer = Writer::new(job, layers[index].is_lowest, &root, &base, made, notes);
        while let Some(entry) = tar.next()? {
            writer.entry(entry, &mut tar, ticker)?;
        }
        let made = writer.finish(folder)?;
        written.push((index, tar.into_input().end.flatten(), made));
    }
    Ok(written)
}

/// Makes the folder of one layer and the root in it.
fn make_root(target: &Path, folder: &str, base: &Path) -> Result<OwnedFd, Error> {
    let failed = |cause| Error::io("create directory", base, cause);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(CWD, target, flags, Mode::empty()).map_err(failed)?;
    rustix::fs::mkdirat(&target, folder, Mode::RWXU).map_err(failed)?;
    let folder = rustix::fs::openat(&target, folder, flags, Mode::empty()).map_err(failed)?;
    rustix::fs::mkdirat(&folder, TREE, Mode::RWXU).map_err(failed)?;
    rustix::fs::openat(&folder, TREE, flags, Mode::empty()).map_err(failed)
}

/// What a directory gets when everything in it is there.
#[derive(Debug, Clone, Copy)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
}

/// Writes one layer.
struct Writer<'a> {
    job: &'a UnpackJob,
    is_lowest: bool,
    root: &'a OwnedFd,
    /// Its name in messages.
    base: &'a Path,
    /// Every directory of the layer; until the end, all are open to their owner.
    folders: BTreeMap<Vec<u8>, Attributes>,
    /// The directory of the last entry.
    current: Option<(Vec<u8>, Arc<OwnedFd>)>,
    /// Of the content that was last written under an inode number: a file that is replaced frees its own.
    digests: HashMap<u64, Digest>,
    /// At the beginning of a file.
    hash: Hash,
    /// Entries, and directories that no entry describes.
    count: u64,
    /// Bytes of names, and of holes in sparse files.
    names: u64,
    holes: u64,
    made: &'a AtomicU64,
    notes: &'a mut Notes,
}

impl<'a> Writer<'a> {
    fn new(
        job: &'a UnpackJob,
        is_lowest: bool,
        root: &'a OwnedFd,
        base: &'a Path,
        made: &'a AtomicU64,
        notes: &'a mut Notes,
    ) -> Self {
        let folders = BTreeMap::from([(Vec::new(), Attributes { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) })]);
        let (digests, hash) = (HashMap::new(), ALGORITHM.start());
        let (current, count, names, holes) = (None, 0, 0, 0);
        Writer { job, is_lowest, root, base, folders, current, digests, hash, count, names, holes, made, notes }
    }

    /// Makes one entry.
    fn entry<I: Input>(&mut self, entry: Entry, tar: &mut Tar<'_, I>, ticker: &mut Ticker<'_>) -> Result<(), Error> {
        ticker.tick(self.count);
        let path = self.inside(&entry.path).map_err(|why| tar.refused(&why))?;
        self.account(&path, tar)?;
        let attributes = Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime };
        self.check_owner(&path, attributes)?;
        if let Some((name, _)) = entry.xattrs.iter().find(|(name, _)| name.starts_with(b"user.overlay.")) {
            let name = text(&String::from_utf8_lossy(name));
            return Err(tar.refused(&format!("has the attribute `{name}`, by which it would steer the overlay")));
        }
        let (folder, name) = split(&path);
        if folder.split(|b| *b == b'/').any(|part| part.starts_with(WHITEOUT)) {
            return Err(tar.refused("lies below a whiteout"));
        }
        if name.starts_with(WHITEOUT) {
            return self.whiteout(folder, name, &entry, tar);
        }
        for name in &entry.lost {
            self.notes.lost(&path, name);
        }
        if path.is_empty() {
            return match entry.kind {
                Kind::Directory => {
                    self.folders.insert(path.clone(), attributes);
                    self.set_xattrs(self.root, &path, &entry.xattrs)
                }
                _ => Err(tar.refused("would replace the root of the image")),
            };
        }
        if matches!(entry.kind, Kind::Character | Kind::Block) {
            self.notes.add("device nodes were left out", &path);
            return Ok(());
        }
        let parent = self.enter(folder, entry.mtime).map_err(|why| why.at(tar, self.base, &path))?;
        let failed = |step| move |cause| Trouble::Failed(step, cause);
        match entry.kind {
            Kind::Directory => self.directory(&parent, &path, attributes, &entry.xattrs),
            Kind::File => return self.file(&parent, &path, &entry, attributes, tar, ticker),
            Kind::Symlink => self
                .replace(&parent, &path, |name| rustix::fs::symlinkat(&entry.link[..], &parent, name))
                .and_then(|()| {
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    if let Some((uid, gid)) = self.owner(attributes) {
                        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), flags)
                            .map_err(failed("change owner of"))?;
                    }
                    rustix::fs::utimensat(&parent, name, &times(entry.mtime), flags).map_err(failed("set times of"))
                })
                .map(|()| self.notes.drop_xattrs(&path, &entry.xattrs)),
            Kind::Hard => self.hard_link(&parent, &path, &entry.link),
            Kind::Fifo => self
                .replace(&parent, &path, |name| {
                    rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                })
                .and_then(|()| {
                    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let fifo = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(failed("open"))?;
                    self.dress(&fifo, attributes).map_err(failed("set attributes of"))
                })
                .map(|()| self.notes.drop_xattrs(&path, &entry.xattrs)),
            Kind::Character | Kind::Block => Ok(()),
        }
        .map_err(|why| why.at(tar, self.base, &path))
    }

    /// The path of an entry or of a link's target in the layer.
    fn inside(&self, path: &[u8]) -> Result<Vec<u8>, String> {
        let path = plain(path);
        for part in path.split(|b| *b == b'/') {
            if part == b".." {
                return Err("leads out of its folder by `..`".into());
            }
            if part.len() > MAX_NAME {
                return Err(format!("has a name of {} bytes, {MAX_NAME} are the most", part.len()));
            }
        }
        Ok(path)
    }

    fn account<I: Input>(&mut self, path: &[u8], tar: &Tar<'_, I>) -> Result<(), Error> {
        self.count += 1;
        self.names += path.len() as u64;
        self.check_limits().map_err(|why| why.at(tar, self.base, path))
    }

    fn check_limits(&self) -> Result<(), Trouble> {
        let Limits { entries, names, bytes, .. } = self.job.limits;
        if self.count > entries {
            return Err(Trouble::TooLarge(format!("has more than {entries} files")));
        }
        if self.names > names {
            return Err(Trouble::TooLarge(format!("has names of more than {names} bytes")));
        }
        if self.holes.saturating_add(self.made.load(Ordering::Relaxed)) > bytes {
            return Err(Trouble::TooLarge(format!("unpacks to more than {bytes} bytes")));
        }
        Ok(())
    }

    fn check_owner(&mut self, path: &[u8], Attributes { uid, gid, .. }: Attributes) -> Result<(), Error> {
        match self.job.owners {
            Owners::Flatten => self.notes.flattened(uid, gid),
            Owners::Map { base, count } => {
                let fits = |id: u32| id < count && base.checked_add(id).is_some_and(|id| id != u32::MAX);
                if let Some(id) = [uid, gid].into_iter().find(|id| !fits(*id)) {
                    return Err(Error::OwnerRange { path: join(&self.job.archive, path), id, count });
                }
            }
        }
        Ok(())
    }

    fn owner(&self, Attributes { uid, gid, .. }: Attributes) -> Option<(Uid, Gid)> {
        match self.job.owners {
            Owners::Flatten => None,
            // Checked for every entry.
            Owners::Map { base, .. } => Some((Uid::from_raw(base + uid), Gid::from_raw(base + gid))),
        }
    }

    /// Owner first: giving a file away clears setuid and setgid.
    fn dress(&self, file: impl AsFd, attributes: Attributes) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.owner(attributes) {
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(attributes.mode))?;
        rustix::fs::futimens(&file, &times(attributes.mtime))
    }

    /// Opens a directory of the layer; makes what is missing on the way.
    fn enter(&mut self, path: &[u8], time: Time) -> Result<Arc<OwnedFd>, Trouble> {
        if let Some((current, folder)) = &self.current
            && current == path
        {
            return Ok(Arc::clone(folder));
        }
        let folder = match open_dir(self.root, path) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.make_folders(path, time)?,
            Err(cause) => return Err(Trouble::Failed("open", cause)),
        };
        let folder = Arc::new(folder);
        self.current = Some((path.to_vec(), Arc::clone(&folder)));
        Ok(folder)
    }

    fn make_folders(&mut self, path: &[u8], time: Time) -> Result<OwnedFd, Trouble> {
        let mut folder = open_dir(self.root, b"").map_err(|cause| Trouble::Failed("open", cause))?;
        let mut end = 0;
        for name in path.split(|b| *b == b'/') {
            end += name.len() + usize::from(end > 0);
            let here = &path[..end];
            folder = match open_dir(&folder, name) {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    let is_whiteout = match stat(&folder, name)? {
                        None => false,
                        Some(stat) if is_whiteout(&stat) => true,
                        Some(stat) => {
                            let what = match FileType::from_raw_mode(stat.st_mode) {
                                FileType::Symlink => "a symbolic link",
                                _ => "no folder",
                            };
                            return Err(Trouble::Refused(format!("lies below `{}`, which is {what}", lossy(here))));
                        }
                    };
                    self.count += 1;
                    self.names += here.len() as u64;
                    self.check_limits()?;
                    if !self.is_lowest {
                        self.notes.add("folders are not described by their layer and were made with mode 0755", here);
                    }
                    let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime: time };
                    self.make_folder(&folder, here, name, attributes, is_whiteout)?
                }
                Err(cause) => return Err(Trouble::Failed("open", cause)),
            };
        }
        Ok(folder)
    }

    /// Makes a directory where nothing or a whiteout is. What was hidden by the whiteout stays hidden.
    fn make_folder(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        name: &[u8],
        attributes: Attributes,
        is_whiteout: bool,
    ) -> Result<OwnedFd, Trouble> {
        if is_whiteout {
            rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(|cause| Trouble::Failed("replace", cause))?;
        }
        rustix::fs::mkdirat(parent, name, Mode::RWXU).map_err(|cause| Trouble::Failed("create directory", cause))?;
        let folder = open_dir(parent, name).map_err(|cause| Trouble::Failed("open", cause))?;
        self.folders.insert(path.to_vec(), attributes);
        if is_whiteout {
            hide_below(&folder)?;
        }
        Ok(folder)
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        attributes: Attributes,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), Trouble> {
        let (_, name) = split(path);
        let was_whiteout = match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => false,
            Err(Errno::EXIST) => {
                let old = stat(parent, name)?;
                let is_directory = old.is_some_and(|old| FileType::from_raw_mode(old.st_mode).is_dir());
                let is_whiteout = old.is_some_and(|old| is_whiteout(&old));
                if !is_directory {
                    self.clear(parent, path)?;
                    rustix::fs::mkdirat(parent, name, Mode::RWXU)
                        .map_err(|cause| Trouble::Failed("create directory", cause))?;
                }
                is_whiteout
            }
            Err(cause) => return Err(Trouble::Failed("create directory", cause)),
        };
        self.folders.insert(path.to_vec(), attributes);
        if was_whiteout || !xattrs.is_empty() {
            let folder = open_dir(parent, name).map_err(|cause| Trouble::Failed("open", cause))?;
            if was_whiteout {
                hide_below(&folder)?;
            }
            self.set_xattrs(&folder, path, xattrs).map_err(Trouble::Error)?;
        }
        Ok(())
    }

    /// Makes something that is no directory, in the place of what is there.
    fn replace<T>(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        make: impl Fn(&[u8]) -> Result<T, Errno>,
    ) -> Result<T, Trouble> {
        let (_, name) = split(path);
        let made = match make(name) {
            Err(Errno::EXIST) => {
                self.clear(parent, path)?;
                make(name)
            }
            made => made,
        };
        made.map_err(|cause| Trouble::Failed("create", cause))
    }

    /// Removes what is at `path`, if it holds nothing.
    fn clear(&mut self, parent: &OwnedFd, path: &[u8]) -> Result<(), Trouble> {
        let (_, name) = split(path);
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            other => return other.map_err(|cause| Trouble::Failed("replace", cause)),
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.folders.remove(path);
                self.current = None;
                Ok(())
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                Err(Trouble::Refused("would replace a folder that is not empty".into()))
            }
            Err(cause) => Err(Trouble::Failed("replace", cause)),
        }
    }

    fn hard_link(&mut self, parent: &OwnedFd, path: &[u8], link: &[u8]) -> Result<(), Trouble> {
        let refused = |why: &str| Trouble::Refused(format!("is a hard link to `{}`, which {why}", lossy(link)));
        let target = self.inside(link).map_err(|why| refused(&why))?;
        let (folder, target_name) = split(&target);
        if target.is_empty() {
            return Err(refused("is the root"));
        }
        let folder = open_dir(self.root, folder).map_err(|cause| match cause {
            Errno::NOENT => refused("does not exist"),
            Errno::NOTDIR | Errno::LOOP => refused("lies behind a link or a file"),
            cause => Trouble::Failed("open target of hard link", cause),
        })?;
        let Some(original) = stat(&folder, target_name)? else { return Err(refused("does not exist")) };
        match FileType::from_raw_mode(original.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            _ => return Err(refused("is no file")),
        }
        let (_, name) = split(path);
        if stat(parent, name)?.is_some_and(|old| (old.st_dev, old.st_ino) == (original.st_dev, original.st_ino)) {
            return Ok(());
        }
        self.replace(parent, path, |name| rustix::fs::linkat(&folder, target_name, parent, name, AtFlags::empty()))
    }

    fn file<I: Input>(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        entry: &Entry,
        attributes: Attributes,
        tar: &mut Tar<'_, I>,
        ticker: &mut Ticker<'_>,
    ) -> Result<(), Error> {
        let place = || join(self.base, path);
        let failed = |cause| Error::io("write", join(self.base, path), cause);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |name: &[u8]| rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
        let file = self.replace(parent, path, open).map_err(|why| why.at(tar, self.base, path))?;
        let inode = rustix::fs::fstat(&file).map_err(|cause| Error::io("stat", place(), cause))?.st_ino;
        let whole = [(0, entry.size)];
        let stretches = entry.stretches.as_deref().unwrap_or(&whole);
        let holes = entry.size - stretches.iter().map(|(_, length)| length).sum::<u64>();
        self.holes = self.holes.saturating_add(holes);
        self.check_limits().map_err(|why| why.at(tar, self.base, path))?;

        let mut at = 0;
        for (offset, length) in stretches.iter().copied().chain([(entry.size, 0)]) {
            self.hash.update_zeros(offset - at);
            at = offset;
            while at < offset + length {
                let Some(piece) = tar.data(offset + length - at)? else { break };
                write_at(&file, &piece, at).map_err(failed)?;
                at += piece.len() as u64;
                self.hash.update(&piece);
                ticker.tick(self.count);
            }
        }
        if holes > 0 {
            rustix::fs::ftruncate(&file, entry.size).map_err(failed)?;
        }
        self.digests.insert(inode, self.hash.take());
        self.set_xattrs(&file, path, &entry.xattrs)?;
        self.dress(&file, attributes).map_err(|cause| Error::io("set attributes of", place(), cause))
    }

    /// Keeps `user.*` where the file system does; the rest would be a privilege, or another host's.
    fn set_xattrs(&mut self, file: impl AsFd, path: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Error> {
        for (name, value) in xattrs {
            let is_kept = name.starts_with(b"user.") && !name.contains(&0);
            let set = || rustix::fs::fsetxattr(&file, &name[..], value, XattrFlags::empty());
            match is_kept.then(set) {
                Some(Ok(())) => {}
                None
                | Some(Err(Errno::NOTSUP | Errno::RANGE | Errno::TOOBIG | Errno::INVAL | Errno::PERM | Errno::NOSPC)) => {
                    self.notes.lost(path, name)
                }
                Some(Err(cause)) => return Err(Error::io("set attribute of", join(self.base, path), cause)),
            }
        }
        Ok(())
    }

    /// `.wh.NAME` hides NAME in the layers below, `.wh..wh..opq` everything in its folder.
    fn whiteout<I: Input>(&mut self, folder: &[u8], name: &[u8], entry: &Entry, tar: &Tar<'_, I>) -> Result<(), Error> {
        let path = [folder, name].join(&b'/');
        if !matches!(entry.kind, Kind::File | Kind::Hard) || entry.size > 0 {
            return Err(tar.refused("has the name of a whiteout and is no empty file"));
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(tar.refused("is a whiteout of nothing that can be hidden"));
        }
        if self.is_lowest {
            self.notes.add("whiteouts were left out, because nothing is below them", &path);
            return Ok(());
        }
        if name.starts_with(b".wh..wh.") && name != OPAQUE {
            self.notes.add("records of aufs were left out", &path);
            return Ok(());
        }
        if name == OPAQUE && folder.is_empty() {
            return Err(tar.refused("hides all layers below, which an overlay cannot do"));
        }
        let made = self.enter(folder, entry.mtime).and_then(|parent| {
            if name == OPAQUE {
                return hide_below(&parent);
            }
            match rustix::fs::mknodat(&parent, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
                Ok(()) => {
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    let root = Attributes { mode: 0, uid: 0, gid: 0, mtime: entry.mtime };
                    if let Some((uid, gid)) = self.owner(root) {
                        rustix::fs::chownat(&parent, hidden, Some(uid), Some(gid), flags)
                            .map_err(|cause| Trouble::Failed("change owner of", cause))?;
                    }
                    rustix::fs::utimensat(&parent, hidden, &times(entry.mtime), flags)
                        .map_err(|cause| Trouble::Failed("set times of", cause))
                }
                // What the layer itself has there hides what is below, except for a folder's content.
                Err(Errno::EXIST) => match open_dir(&parent, hidden) {
                    Ok(folder) => hide_below(&folder),
                    Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(()),
                    Err(cause) => Err(Trouble::Failed("open", cause)),
                },
                Err(cause) => Err(Trouble::Failed("create whiteout", cause)),
            }
        });
        made.map_err(|why| why.at(tar, self.base, &path))
    }

    /// Gives directories their attributes, the deepest first, and computes the digest.
    fn finish(self, folder: String) -> Result<Made, Error> {
        let Writer { root, base, .. } = self;
        // Before the first directory is closed to its owner, as those of the archive may be.
        let mut items = tree::scan(root, base)?.items;
        for item in items.iter_mut().filter(|item| item.body == Body::Directory) {
            let Some(attributes) = self.folders.get(&item.path) else {
                return Err(Error::Changed(join(base, &item.path)));
            };
            item.meta.mode = attributes.mode;
            if let Some((uid, gid)) = self.owner(*attributes) {
                (item.meta.uid, item.meta.gid) = (uid.as_raw(), gid.as_raw());
            }
        }
        copy::find_hard_links(&mut items);
        let mut size = 0;
        let mut contents = Vec::with_capacity(items.len());
        for item in &items {
            contents.push(match item.body {
                Body::File => {
                    size += item.meta.size;
                    let digest = self.digests.get(&item.meta.ino);
                    Some(Content::Hash(*digest.ok_or_else(|| Error::Changed(join(base, &item.path)))?))
                }
                Body::Symlink => {
                    let target = open_dir(root, item.split().0)
                        .and_then(|folder| rustix::fs::readlinkat(folder, item.split().1, Vec::new()))
                        .map_err(|cause| Error::io("read link", join(base, &item.path), cause))?;
                    Some(Content::Target(target.into_bytes()))
                }
                _ => None,
            });
        }
        for (path, attributes) in self.folders.iter().rev() {
            open_dir(root, path)
                .and_then(|folder| self.dress(folder, *attributes))
                .map_err(|cause| Error::io("set attributes of", join(base, path), cause))?;
        }
        let tree = copy::digest(ALGORITHM, &items, &contents, self.job.owners.ids());
        Ok(Made { folder, tree: ALGORITHM.text(&tree), size })
    }
}

/// Why an entry cannot be made.
enum Trouble {
    Refused(String),
    TooLarge(String),
    /// The kernel's answer to what was tried.
    Failed(&'static str, Errno),
    Error(Error),
}

impl Trouble {
    fn at<I: Input>(self, tar: &Tar<'_, I>, base: &Path, path: &[u8]) -> Error {
        match self {
            Trouble::Refused(why) => tar.refused(&why),
            Trouble::TooLarge(what) => tar.too_large(what),
            Trouble::Failed(step, cause) => Error::io(step, join(base, path), cause),
            Trouble::Error(error) => error,
        }
    }
}

/// What a person should know, counted.
#[derive(Default)]
struct Notes {
    /// By what it is: how often, and the first few paths.
    tallies: BTreeMap<&'static str, (usize, Vec<PathBuf>)>,
    attributes: BTreeSet<String>,
    owners: (BTreeSet<u32>, BTreeSet<u32>),
    flattened: usize,
}

impl Notes {
    const LOST: &str = "attributes were left out";

    fn add(&mut self, what: &'static str, path: &[u8]) {
        let (count, examples) = self.tallies.entry(what).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(join(Path::new("/"), path));
        }
    }

    fn lost(&mut self, path: &[u8], attribute: &[u8]) {
        self.add(Self::LOST, path);
        if self.attributes.len() < EXAMPLES {
            self.attributes.insert(lossy(&attribute[..attribute.len().min(MAX_NAME)]));
        }
    }

    fn drop_xattrs(&mut self, path: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) {
        xattrs.iter().for_each(|(name, _)| self.lost(path, name));
    }

    fn flattened(&mut self, uid: u32, gid: u32) {
        self.flattened += usize::from(uid != 0 || gid != 0);
        for (ids, id) in [(&mut self.owners.0, uid), (&mut self.owners.1, gid)] {
            // One more than is shown.
            if id != 0 && ids.len() <= EXAMPLES {
                ids.insert(id);
            }
        }
    }

    fn texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = Vec::new();
        for (what, (count, examples)) in &self.tallies {
            let attributes: Vec<&str> = self.attributes.iter().map(String::as_str).collect();
            let kinds = if *what == Self::LOST { format!(" ({})", attributes.join(", ")) } else { String::new() };
            texts.push(format!("{count} {what}{kinds}: {}", list(examples, *count)));
        }
        texts.extend(flattened_note(self.flattened, &self.owners.0, &self.owners.1));
        texts
    }
}

/// What a person should know whose container will not see the owners that the source has.
pub(crate) fn flattened_note(files: usize, uids: &BTreeSet<u32>, gids: &BTreeSet<u32>) -> Option<String> {
    let list = |what: &str, ids: &BTreeSet<u32>| {
        let names: Vec<String> = ids.iter().take(EXAMPLES).map(u32::to_string).collect();
        let more = if ids.len() > EXAMPLES { ", …" } else { "" };
        (!ids.is_empty()).then(|| format!("{what} {}{more}", names.join(", ")))
    };
    let owners: Vec<String> = [list("uid", uids), list("gid", gids)].into_iter().flatten().collect();
    (files > 0)
        .then(|| format!("{files} files of other owners ({}) belong to root inside the container", owners.join("; ")))
}

/// Hides what the layers below have in a folder.
fn hide_below(folder: &OwnedFd) -> Result<(), Trouble> {
    rustix::fs::fsetxattr(folder, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
        .map_err(|cause| Trouble::Failed("mark as opaque", cause))
}

fn stat(folder: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Trouble> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(cause) => Err(Trouble::Failed("stat", cause)),
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0
}

/// Folder and name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn lossy(bytes: &[u8]) -> String {
    text(&String::from_utf8_lossy(bytes))
}

fn times((tv_sec, nanoseconds): Time) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
