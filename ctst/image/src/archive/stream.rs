//! Bytes on their way from the archive to the files: pieces of shared buffers, so that one thread can write what another
//! hashes, and nothing is copied in between.

use std::io::{self, BufRead, Read};
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;

use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::Limits;
use crate::Error;
use crate::tree::Digest;

/// Read, decompressed, hashed and written at once.
pub(crate) const BUFFER: usize = 256 << 10;
/// Read at once where only headers are wanted: a header, and those of some small files that follow.
const HEADERS: usize = 4 << 10;
/// Most memory that a decoder may ask for; `xz -9` needs 65 MiB, and a hostile header asks for 4 GiB.
const DECODER_MEMORY: u64 = 256 << 20;
/// As a power of two: the largest window that the `zstd` program, too, takes without being told to.
pub(crate) const ZSTD_WINDOW: u32 = 27;

/// A piece of a buffer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chunk {
    buffer: Arc<Vec<u8>>,
    start: usize,
    end: usize,
}

impl Deref for Chunk {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }
}

impl Chunk {
    /// Cuts the first `count` bytes off.
    fn split(&mut self, count: usize) -> Chunk {
        let middle = self.start + count.min(self.end - self.start);
        let first = Chunk { buffer: Arc::clone(&self.buffer), start: self.start, end: middle };
        self.start = middle;
        first
    }
}

/// Buffers that are used again when all their chunks are gone: the first that is free, so that few are, and in the cache.
#[derive(Default)]
pub(crate) struct Pool {
    buffers: Vec<Arc<Vec<u8>>>,
}

impl Pool {
    /// A chunk of what `fill` writes; `None` if that is nothing.
    pub(crate) fn fill<E>(&mut self, fill: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<Option<Chunk>, E> {
        let free = self.buffers.iter_mut().position(|buffer| Arc::get_mut(buffer).is_some());
        let at = free.unwrap_or_else(|| {
            self.buffers.push(Arc::new(vec![0; BUFFER]));
            self.buffers.len() - 1
        });
        let buffer = &mut self.buffers[at];
        let count = fill(Arc::get_mut(buffer).expect("nobody else holds it"))?;
        Ok((count > 0).then(|| Chunk { buffer: Arc::clone(buffer), start: 0, end: count }))
    }
}

/// Where bytes come from.
pub(crate) trait Input {
    /// The next bytes, never empty; `None` at the end.
    fn next(&mut self) -> Result<Option<Chunk>, Error>;

    /// Passes over up to `count` bytes without reading them, where that is possible; returns how many.
    fn skip(&mut self, _count: u64) -> u64 {
        0
    }
}

impl Input for Box<dyn Input + Send + '_> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        (**self).next()
    }
    fn skip(&mut self, count: u64) -> u64 {
        (**self).skip(count)
    }
}

impl<I: Input> Input for &mut I {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        (**self).next()
    }
    fn skip(&mut self, count: u64) -> u64 {
        (**self).skip(count)
    }
}

impl Input for Receiver<Result<Chunk, Error>> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        self.recv().ok().transpose()
    }
}

/// The archive, read by position: the descriptor's own one belongs to whoever gave it.
pub(crate) struct FileInput<'a> {
    file: &'a OwnedFd,
    name: &'a Path,
    at: u64,
    end: u64,
    most: usize,
    pool: Pool,
}

impl<'a> FileInput<'a> {
    pub(crate) fn new(file: &'a OwnedFd, name: &'a Path) -> FileInput<'a> {
        // A position beyond the end of the file reads as the end.
        FileInput { file, name, at: 0, end: i64::MAX as u64, most: BUFFER, pool: Pool::default() }
    }

    /// Only these bytes of it.
    pub(crate) fn part(file: &'a OwnedFd, name: &'a Path, part: Range<u64>) -> FileInput<'a> {
        let file = FileInput::new(file, name);
        FileInput { at: part.start.min(file.end), end: part.end.min(file.end), ..file }
    }

    /// For whoever passes over most of it.
    pub(crate) fn of_headers(file: &'a OwnedFd, name: &'a Path) -> FileInput<'a> {
        FileInput { most: HEADERS, ..FileInput::new(file, name) }
    }
}

impl Input for FileInput<'_> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        let most = usize::try_from(self.end - self.at).map_or(self.most, |left| left.min(self.most));
        let read = |buffer: &mut [u8]| {
            rustix::io::retry_on_intr(|| rustix::io::pread(self.file, &mut buffer[..most], self.at))
        };
        let chunk = self.pool.fill(read).map_err(|cause| Error::io("read", self.name, cause))?;
        self.at += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Ok(chunk)
    }

    fn skip(&mut self, count: u64) -> u64 {
        let count = count.min(self.end - self.at);
        self.at += count;
        count
    }
}

/// Counts what passes.
pub(crate) struct Counted<'a, I> {
    input: I,
    count: &'a AtomicU64,
}

impl<'a, I: Input> Counted<'a, I> {
    pub(crate) fn new(input: I, count: &'a AtomicU64) -> Self {
        Counted { input, count }
    }
}

impl<I: Input> Input for Counted<'_, I> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        let chunk = self.input.next()?;
        self.count.fetch_add(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64), Ordering::Relaxed);
        Ok(chunk)
    }

    fn skip(&mut self, count: u64) -> u64 {
        self.input.skip(count)
    }
}

/// Hashes what passes.
pub(crate) struct Hashed<I> {
    input: I,
    hash: Sha256,
}

impl<I: Input> Hashed<I> {
    pub(crate) fn new(input: I) -> Self {
        Hashed { input, hash: Sha256::new() }
    }

    pub(crate) fn digest(self) -> Digest {
        self.hash.finalize().into()
    }
}

impl<I: Input> Input for Hashed<I> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        let chunk = self.input.next()?;
        if let Some(chunk) = &chunk {
            self.hash.update(&**chunk);
        }
        Ok(chunk)
    }
}

/// The digest of all of it.
pub(crate) fn digest(input: impl Input) -> Result<Digest, Error> {
    let mut input = Hashed::new(input);
    while input.next()?.is_some() {}
    Ok(input.digest())
}

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
    Xz,
}

impl Compression {
    /// By the first bytes; the name of one that is not understood as error.
    pub(crate) fn of(head: &[u8]) -> Result<Compression, &'static str> {
        match head {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok(Compression::Xz),
            [b'B', b'Z', b'h', ..] => Err("bzip2"),
            [0x04, 0x22, 0x4d, 0x18, ..] => Err("lz4"),
            [0x5d, 0, 0, ..] => Err("lzma"),
            [b'P', b'K', 3, 4, ..] => Err("zip"),
            _ => Ok(Compression::Plain),
        }
    }
}

/// What bounds a decompressed stream: the limits, and how much was read and made of it so far.
#[derive(Clone, Copy)]
pub(crate) struct Meter<'a> {
    pub(crate) limits: &'a Limits,
    /// Bytes read from the archive's file.
    pub(crate) read: &'a AtomicU64,
    /// Bytes after the last decompression.
    pub(crate) made: &'a AtomicU64,
    pub(crate) archive: &'a Path,
}

impl Meter<'_> {
    /// Counts; fails where an archive is larger than it may be.
    pub(crate) fn made(&self, count: u64) -> Result<(), Error> {
        let made = self.made.fetch_add(count, Ordering::Relaxed).saturating_add(count);
        let Limits { bytes, ratio, ratio_from, .. } = *self.limits;
        let too_large = |what| Error::TooLarge { archive: self.archive.into(), entry: None, what };
        if made > bytes {
            return Err(too_large(format!("unpacks to more than {bytes} bytes")));
        }
        if made > ratio_from && made / ratio.max(1) > self.read.load(Ordering::Relaxed) {
            return Err(too_large(format!("unpacks to more than {ratio} times its size")));
        }
        Ok(())
    }
}

/// The same bytes, decompressed if they are compressed.
pub(crate) fn decode<'a>(
    mut input: impl Input + Send + 'a,
    meter: Meter<'a>,
) -> Result<(Compression, Box<dyn Input + Send + 'a>), Error> {
    let first = input.next()?.unwrap_or_default();
    let compression = Compression::of(&first).map_err(|name| Error::Archive {
        archive: meter.archive.into(),
        why: format!("is compressed with {name}, which is not understood"),
    })?;
    let bytes = Bytes { input: Box::new(input), chunk: first };
    let broken = |e| broken(meter.archive, e);
    let reader: Box<dyn Read + Send> = match compression {
        Compression::Plain => return Ok((compression, Box::new(Plain { bytes, meter }))),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(bytes)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(broken)?;
            decoder.window_log_max(ZSTD_WINDOW).map_err(broken)?;
            Box::new(decoder)
        }
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(DECODER_MEMORY, liblzma::stream::CONCATENATED)
                .map_err(|e| broken(e.into()))?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(bytes, stream))
        }
    };
    Ok((compression, Box::new(Decoded { reader, pool: Pool::default(), meter })))
}

/// Not compressed: only counted.
struct Plain<'a> {
    bytes: Bytes<'a>,
    meter: Meter<'a>,
}

impl Input for Plain<'_> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        let chunk = match self.bytes.chunk.is_empty() {
            true => self.bytes.input.next()?,
            false => Some(std::mem::take(&mut self.bytes.chunk)),
        };
        self.meter.made(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64))?;
        Ok(chunk)
    }

    fn skip(&mut self, count: u64) -> u64 {
        let here = self.bytes.chunk.split(usize::try_from(count).unwrap_or(usize::MAX)).len() as u64;
        here + self.bytes.input.skip(count - here)
    }
}

struct Decoded<'a> {
    reader: Box<dyn Read + Send + 'a>,
    pool: Pool,
    meter: Meter<'a>,
}

impl Input for Decoded<'_> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        let Decoded { reader, pool, meter } = self;
        let chunk = pool.fill(|buffer| reader.read(buffer)).map_err(|e| broken(meter.archive, e))?;
        meter.made(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64))?;
        Ok(chunk)
    }
}

/// An error of a decoder, or one of ours that went through it.
pub(crate) fn broken(archive: &Path, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(e) => {
            let why = match e.kind() {
                io::ErrorKind::UnexpectedEof => "ends in the middle of its compressed data".to_owned(),
                _ => format!("holds damaged compressed data: {}", crate::error::text(&e.to_string())),
            };
            Error::Archive { archive: archive.into(), why }
        }
    }
}

/// An [`Input`] as the decoders want it.
struct Bytes<'a> {
    input: Box<dyn Input + Send + 'a>,
    chunk: Chunk,
}

impl BufRead for Bytes<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() {
            self.chunk = self.input.next().map_err(io::Error::other)?.unwrap_or_default();
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, count: usize) {
        self.chunk.split(count);
    }
}

impl Read for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// An input of which any number of bytes can be taken.
pub(crate) struct Stream<I> {
    input: I,
    chunk: Chunk,
    position: u64,
}

impl<I: Input> Stream<I> {
    pub(crate) fn new(input: I) -> Stream<I> {
        Stream { input, chunk: Chunk::default(), position: 0 }
    }

    /// How many bytes were taken or passed over.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn into_input(self) -> I {
        self.input
    }

    /// Between 1 and `max` bytes; none at the end, or if `max` is 0.
    pub(crate) fn piece(&mut self, max: u64) -> Result<Chunk, Error> {
        if self.chunk.is_empty() && max > 0 {
            self.chunk = self.input.next()?.unwrap_or_default();
        }
        let piece = self.chunk.split(usize::try_from(max).unwrap_or(usize::MAX));
        self.position += piece.len() as u64;
        Ok(piece)
    }

    /// Passes over up to `count` bytes without reading any; returns how many.
    pub(crate) fn pass(&mut self, count: u64) -> u64 {
        let here = self.chunk.split(usize::try_from(count).unwrap_or(usize::MAX)).len() as u64;
        let passed = here + self.input.skip(count - here);
        self.position += passed;
        passed
    }

    /// Fills `buffer` as far as there are bytes; returns how many.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut done = 0;
        while done < buffer.len() {
            let piece = self.piece((buffer.len() - done) as u64)?;
            if piece.is_empty() {
                break;
            }
            buffer[done..done + piece.len()].copy_from_slice(&piece);
            done += piece.len();
        }
        Ok(done)
    }

    /// Passes over up to `count` bytes; returns how many.
    pub(crate) fn skip(&mut self, count: u64) -> Result<u64, Error> {
        let mut left = count;
        while left > 0 {
            left -= self.pass(left);
            let piece = self.piece(left)?;
            if piece.is_empty() {
                break;
            }
            left -= piece.len() as u64;
        }
        Ok(count - left)
    }
}

/// Opens the archive at `path`, which must be a regular file: it is read twice where its kind is not told by its first
/// entries.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, Error> {
    use rustix::fs::{CWD, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|cause| match cause {
        Errno::NOENT => Error::ArchiveMissing(path.into()),
        cause => Error::io("open", path, cause),
    })?;
    check_regular(&file, path)?;
    Ok(file)
}

pub(crate) fn check_regular(file: impl AsFd, path: &Path) -> Result<rustix::fs::Stat, Error> {
    let stat = rustix::fs::fstat(file).map_err(|cause| Error::io("stat", path, cause))?;
    match rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        true => Ok(stat),
        false => Err(Error::Archive { archive: PathBuf::from(path), why: "is not a regular file".into() }),
    }
}
