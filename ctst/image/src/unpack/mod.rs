//! Unpacks an archive into a folder.
//!
//! Every name is resolved beneath the layer's root by `openat2` without following any link, and only its last component is
//! created, so that an entry lands inside or is refused by its name. Nothing that an archive says is believed: not its
//! sizes, not its owners, not its digests.

mod filler;
mod listing;
pub(crate) mod notes;
pub(crate) mod writer;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::archive::image::{Blob, Selected};
use crate::archive::stream::{
    Chunk, Compression, Counted, FileInput, Hashed, Input, Meter, check_regular, decode, digest,
};
use crate::archive::tar::{Current, Kind, Tar};
use crate::archive::tee::tee;
use crate::archive::{Content as What, Limits, Wanted, examine, plain};
use crate::copy::{self, Ids};
use crate::error::text;
use crate::hash::Algorithm;
use crate::lazy::{self, IndexJob, Indexed};
use crate::model::{Config, Declared};
use crate::source::hex;
use crate::tree::Digest;
use crate::{Error, Progress};
use filler::{fill, filler};
use notes::Notes;
use writer::Writer;

pub(crate) use notes::flattened_note;

/// The folder of a layer that becomes its root.
pub(crate) const TREE: &str = "tree";
/// For the trees of layers.
const ALGORITHM: Algorithm = Algorithm::Blake3;
/// Chunks on their way between two threads.
pub(crate) const QUEUE: usize = 16;
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
    /// Whether those may be missing in the archive: it was pulled without them.
    #[serde(default)]
    pub partial: bool,
    /// Of an archive with several images, the one whose manifest has this digest, 64 hexadecimal digits. The rest is not read, and the
    /// [`Report`] has this digest.
    #[serde(default)]
    pub image: Option<String>,
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

pub(crate) fn key(diff: &str, is_lowest: bool) -> String {
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

    /// Indexes `archive`, a regular file open for reading, into `target`, an empty folder of the caller's.
    ///
    /// # Errors
    /// See [`Error`]; what is in `target` then is removed by the caller.
    fn index(&self, job: &IndexJob, archive: OwnedFd, target: &Path) -> Result<Indexed, Error> {
        Direct.index(job, archive, target)
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

    fn index(&self, job: &IndexJob, archive: OwnedFd, target: &Path) -> Result<Indexed, Error> {
        lazy::build(job, &archive, target)
    }

    fn digest(&self, owners: Owners, algorithm: Algorithm, tree: &Path) -> Result<String, Error> {
        let digest = copy::hash_tree(algorithm, &open_tree(tree)?, tree, owners.ids())?;
        Ok(algorithm.text(&digest))
    }

    fn pack(&self, owners: Owners, tree: &Path, out: OwnedFd) -> Result<String, Error> {
        crate::pack::pack(&open_tree(tree)?, tree, owners, out).map(|digest| hex(&digest))
    }
}

pub(crate) fn open_tree(tree: &Path) -> Result<OwnedFd, Error> {
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

/// One thread hashes the archive, this one makes files, and a third fills and hashes them; whichever of the first two is
/// ahead reads. What is compressed is decompressed by a fourth, and what comes out is hashed by a fifth. With two processors
/// both are busy to the end.
pub(crate) fn unpack(
    job: &UnpackJob,
    file: &OwnedFd,
    target: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, Error> {
    let stat = check_regular(file, &job.archive)?;
    progress(Progress::Scanning);
    let absent: &[String] = if job.partial { &job.have } else { &[] };
    let what = examine(file, &job.archive, &job.limits, &Wanted { absent, image: job.image.as_deref() })?;
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
    let total = u64::try_from(stat.st_size).unwrap_or(0);
    let ticker = Ticker { next: Instant::now(), read: &read, total, progress };
    let mut layer = LayerWriter { job, layers: &layers, target, made: &made, notes: &mut notes, ticker };
    let (archive, written) = thread::scope(|scope| {
        let input = Counted::new(FileInput::new(file, &job.archive), &read);
        let outer = Meter { made: &outer, ..meter };
        if let (Some(_), What::Image(image)) = (&job.image, &what) {
            return (Ok(None), write_image(input, outer, meter, image, &wanted, &mut layer));
        }
        let [hashed, input] = tee(input);
        let hasher = scope.spawn(move || digest(hashed));
        let written = match &what {
            What::Root => write_root(input, meter, &mut layer),
            What::Image(image) => write_image(input, outer, meter, image, &wanted, &mut layer),
        };
        (join(hasher).map(Some), written)
    });
    // First, because whoever unpacks only sees an end where the other cannot read.
    let archive = archive?.map(|digest| hex(&digest)).or_else(|| job.image.clone()).unwrap_or_default();
    for (index, diff, made) in written? {
        layers[index].diff = diff.map_or_else(|| archive.clone(), |diff| hex(&diff));
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
    Ok(Report { digest: archive, names, layers, config, declared, notes: notes.texts() })
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

/// Sends everything, up to the first error.
pub(crate) fn pass(mut input: impl Input, sender: &SyncSender<Result<Chunk, Error>>) {
    while let Some(chunk) = input.next().transpose() {
        let is_last = chunk.is_err();
        // Who does not listen any more has failed.
        if sender.send(chunk).is_err() || is_last {
            break;
        }
    }
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

/// What the thread returns.
pub(crate) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn write_root(input: impl Input + Send, meter: Meter<'_>, layer: &mut LayerWriter<'_>) -> Result<Written, Error> {
    let (compression, input) = decode(input, meter)?;
    if compression == Compression::Plain {
        return Ok(vec![(0, None, layer.write(0, input)?.0)]);
    }
    thread::scope(|scope| {
        let (sender, decoded) = sync_channel(QUEUE);
        scope.spawn(move || pass(input, &sender));
        let [hashed, decoded] = tee(decoded);
        let hasher = scope.spawn(move || digest(hashed));
        let written = layer.write(0, decoded);
        Ok(vec![(0, Some(join(hasher)?), written?.0)])
    })
}

fn write_image(
    input: impl Input + Send,
    outer: Meter<'_>,
    inner: Meter<'_>,
    image: &Selected,
    wanted: &[bool],
    layer: &mut LayerWriter<'_>,
) -> Result<Written, Error> {
    thread::scope(|scope| {
        let (sender, feed) = sync_channel(QUEUE);
        let feeder = scope.spawn(move || {
            if let Err(error) = feed_image(input, outer, inner, image, wanted, &sender) {
                let _ = sender.send(Err(error));
            }
        });
        let written = write_layers(feed, layer);
        join(feeder);
        written
    })
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
        let mut input = Hashed::new(Current(&mut tar));
        let (compression, mut decoded) = decode(&mut input, inner)?;
        let sent = match compression {
            Compression::Plain => send_all(&mut decoded, sender)?.then_some(None),
            _ => {
                let mut hashed = Hashed::new(&mut decoded);
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

fn write_layers(feed: Receiver<Result<Feed, Error>>, layer: &mut LayerWriter<'_>) -> Result<Written, Error> {
    let mut written = Written::new();
    while let Ok(message) = feed.recv() {
        let Feed::Begin(index) = message? else { continue };
        let (made, input) = layer.write(index, LayerInput { feed: &feed, end: None })?;
        written.push((index, input.end.flatten(), made));
    }
    Ok(written)
}

/// What all layers are written with.
struct LayerWriter<'a> {
    job: &'a UnpackJob,
    layers: &'a [Layer],
    target: &'a Path,
    made: &'a AtomicU64,
    notes: &'a mut Notes,
    ticker: Ticker<'a>,
}

impl LayerWriter<'_> {
    /// Writes one layer; returns the input, which is at its end.
    fn write<I: Input>(&mut self, index: usize, input: I) -> Result<(Made, I), Error> {
        let folder = index.to_string();
        let base = self.target.join(&folder).join(TREE);
        let root = make_root(self.target, &folder, &base)?;
        let LayerWriter { job, layers, made, notes, ticker, .. } = self;
        let mut tar = Tar::new(input, &job.archive, &job.limits);
        let (filler, steps) = filler();
        let mut writer = Writer::new(job, layers[index].is_lowest, &root, &base, made, notes, filler);
        let filled = thread::scope(|scope| {
            let filling = scope.spawn(|| fill(steps, &base));
            let mut write = || {
                while writer.is_heard()
                    && let Some(entry) = tar.next()?
                {
                    writer.entry(entry, &mut tar, ticker)?;
                }
                Ok(())
            };
            let written = write();
            writer.close();
            // What was filled came before what was made last.
            let filled = join(filling)?;
            written.map(|()| filled)
        })?;
        Ok((writer.finish(folder, &filled)?, tar.into_input()))
    }
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
