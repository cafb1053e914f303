//! Makes pieces of what a decoder gives, in the same pass in which its files are listed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use super::index::{Form, MAX_PACKED, MAX_PIECE, Piece, Start, Stream, Window};
use super::steps::{Point, Step};
use crate::Error;
use crate::archive::stream::{BUFFER, Chunk, Input};

/// Bytes of one piece of a copy.
const COPY: u64 = 256 << 10;
/// Of a larger frame a copy is kept, too: all of it would have to be decompressed for a few bytes.
const MAX_FRAME: u64 = 4 << 20;
/// Chunks that are smaller are copied when they are held, for each of them keeps a whole buffer from being used again: of
/// members of some bytes there are tens of thousands in one piece.
const SMALL: usize = BUFFER / 8;

/// The file with what cannot be read from the archive.
pub(super) struct Data {
    file: File,
    path: PathBuf,
    length: u64,
}

impl Data {
    pub(super) fn create(path: &Path) -> Result<Data, Error> {
        let file = File::create_new(path).map_err(|e| Error::std("create", path, &e))?;
        Ok(Data { file, path: path.into(), length: 0 })
    }

    /// Where it was put.
    fn append(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        self.file.write_all(bytes).map_err(|e| Error::std("write", self.path.clone(), &e))?;
        let at = self.length;
        self.length += bytes.len() as u64;
        Ok(at)
    }
}

enum Held {
    Chunk(Chunk),
    Copied(Vec<u8>),
}

/// A piece that has not ended.
struct Open {
    start: Start,
    from: u64,
    /// What was made of it, as long as it may have to be copied.
    held: Vec<Held>,
    length: u64,
    hash: blake3::Hasher,
}

/// What a decoder gives, which is cut into pieces on its way.
pub(super) struct Pieces {
    steps: Receiver<Result<Step, Error>>,
    data: Data,
    /// Where in the archive the decoder's input begins.
    base: u64,
    done: Vec<Piece>,
    open: Open,
    size: u64,
}

impl Pieces {
    pub(super) fn new(steps: Receiver<Result<Step, Error>>, data: Data, base: u64) -> Self {
        Pieces { steps, data, base, done: Vec::new(), open: Open::new(Start::Copy, 0), size: 0 }
    }

    /// What is known after the end.
    pub(super) fn finish(self) -> (Stream, Data) {
        (Stream { size: self.size, form: Form::Pieces(self.done) }, self.data)
    }

    /// Ends a piece of which the archive's bytes end at `end`.
    fn close(&mut self, end: u64) -> Result<(), Error> {
        if self.open.start != Start::Copy && end - self.open.from > MAX_PACKED {
            self.copy()?;
        }
        if self.open.length > 0 {
            let Open { start, from, hash, .. } = &self.open;
            let (from, length) = match start {
                Start::Copy => (*from, self.open.length),
                _ => (self.base + from, end - from),
            };
            let (start, digest) = (start.clone(), *hash.finalize().as_bytes());
            self.done.push(Piece { at: self.size - self.open.length, start, from, length, digest });
        }
        Ok(())
    }

    /// Keeps what was made of a piece that has become too large.
    fn copy(&mut self) -> Result<(), Error> {
        let held = std::mem::take(&mut self.open.held);
        self.size -= self.open.length;
        self.open = Open::new(Start::Copy, 0);
        held.iter().try_for_each(|held| match held {
            Held::Chunk(chunk) => self.append(chunk),
            Held::Copied(bytes) => self.append(bytes),
        })
    }

    /// Adds to a copy.
    fn append(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let most = usize::try_from(COPY - self.open.length).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(most.min(bytes.len()));
            let at = self.data.append(now)?;
            if self.open.length == 0 {
                self.open.from = at;
            }
            self.open.hash.update(now);
            self.open.length += now.len() as u64;
            self.size += now.len() as u64;
            if self.open.length == COPY {
                self.close(self.open.from)?;
                self.open = Open::new(Start::Copy, 0);
            }
            bytes = later;
        }
        Ok(())
    }

    fn begin(&mut self, point: Point, offset: u64) -> Result<(), Error> {
        let start = match point {
            Point::Member => Start::Member,
            Point::Frames => Start::Frames,
            Point::Nowhere => Start::Copy,
            Point::Block { bits, first, window } => {
                // Only what compresses nothing is longer than what it was.
                let packed = zstd::bulk::compress(&window, 1);
                let packed = packed.map_err(|e| Error::std("compress for", self.data.path.clone(), &e))?;
                let (from, digest) = (self.data.append(&packed)?, *blake3::hash(&packed).as_bytes());
                let length = u32::try_from(packed.len()).unwrap_or(u32::MAX);
                Start::Block { bits, first, window: Window { from, length, digest } }
            }
        };
        self.open = Open::new(start, offset);
        Ok(())
    }
}

impl Open {
    fn new(start: Start, from: u64) -> Open {
        Open { start, from, held: Vec::new(), length: 0, hash: blake3::Hasher::new() }
    }

    fn hold(&mut self, chunk: &Chunk) {
        match self.held.last_mut() {
            _ if chunk.len() >= SMALL => self.held.push(Held::Chunk(chunk.clone())),
            Some(Held::Copied(bytes)) => bytes.extend_from_slice(chunk),
            _ => self.held.push(Held::Copied(chunk.to_vec())),
        }
    }
}

impl Input for Pieces {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        loop {
            match self.steps.recv() {
                Ok(Ok(Step::Data(chunk))) => {
                    let most = match self.open.start {
                        Start::Copy => u64::MAX,
                        Start::Frames => MAX_FRAME,
                        _ => MAX_PIECE,
                    };
                    if self.open.length + chunk.len() as u64 > most {
                        self.copy()?;
                    }
                    match self.open.start {
                        Start::Copy => self.append(&chunk)?,
                        _ => {
                            self.open.hash.update(&chunk);
                            self.open.length += chunk.len() as u64;
                            self.size += chunk.len() as u64;
                            self.open.hold(&chunk);
                        }
                    }
                    return Ok(Some(chunk));
                }
                Ok(Ok(Step::Point(point, offset))) => {
                    self.close(offset)?;
                    self.begin(point, offset)?;
                }
                Ok(Ok(Step::End(offset))) => {
                    self.close(offset)?;
                    self.open = Open::new(Start::Copy, 0);
                    return Ok(None);
                }
                Ok(Err(error)) => return Err(error),
                // After the end, or a thread that panics, which joining it tells.
                Err(_) => return Ok(None),
            }
        }
    }
}
