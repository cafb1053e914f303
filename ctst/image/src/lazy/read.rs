//! Reads what files hold: from the archive, through decoders where it is compressed, and compared with the index's digests.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::gzip::inflate;
use super::index::{BLOCK, Body, Form, Index, Piece, Start, State, Stream, Window};
use crate::tree::Digest;

/// Bytes of pieces that are kept, decompressed, after they were read.
const KEPT: usize = 64 << 20;
/// What the smallest of them counts as.
const LEAST: usize = 64 << 10;
/// Most of a [`Window`].
const WINDOW: usize = 32 << 10;

/// What of an image is read.
pub(crate) struct Reader {
    pub(super) index: Index,
    archive: OwnedFd,
    data: OwnedFd,
    pieces: Mutex<Kept>,
}

/// Why something cannot be read.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The archive is not what was indexed.
    Changed,
    /// What the store keeps beside the index is not what was put there.
    Damaged,
    Refused(Errno),
}

/// A piece, while it is made and after; whoever wants it in between waits.
type Slot = Arc<Mutex<Option<Arc<Vec<u8>>>>>;

#[derive(Default)]
struct Kept {
    /// By stream and number: the piece, what it counts as, and when it was wanted last.
    slots: HashMap<(u32, usize), (Slot, usize, u64)>,
    bytes: usize,
    clock: u64,
}

impl Kept {
    fn slot(&mut self, key: (u32, usize)) -> Slot {
        self.clock += 1;
        let (slot, _, last) = self.slots.entry(key).or_default();
        *last = self.clock;
        Arc::clone(slot)
    }

    /// Counts a piece that was made, and lets others go for it.
    fn made(&mut self, key: (u32, usize), size: usize) {
        let Some((_, counted, _)) = self.slots.get_mut(&key) else { return };
        self.bytes += size - *counted;
        *counted = size;
        while self.bytes > KEPT {
            let others = self.slots.iter().filter(|(other, (_, counted, _))| **other != key && *counted > 0);
            let Some(oldest) = others.min_by_key(|(_, (_, _, last))| *last).map(|(key, _)| *key) else { break };
            self.forget(oldest);
        }
    }

    fn forget(&mut self, key: (u32, usize)) {
        if let Some((_, counted, _)) = self.slots.remove(&key) {
            self.bytes -= counted;
        }
    }
}

impl Reader {
    pub(super) fn new(index: Index, archive: OwnedFd, data: OwnedFd) -> Reader {
        Reader { index, archive, data, pieces: Mutex::default() }
    }

    /// That the archive is the file that was indexed, as far as its size and times tell.
    pub(super) fn check_state(&self) -> Result<(), Trouble> {
        let stat = rustix::fs::fstat(&self.archive).map_err(Trouble::Refused)?;
        if State::from(stat) == self.index.archive { Ok(()) } else { Err(Trouble::Changed) }
    }

    /// Up to `size` bytes of a file from `offset` on.
    pub(super) fn content(&self, body: &Body, offset: u64, size: u32) -> Result<Vec<u8>, Trouble> {
        let Body::File { size: length, stream, at, stretches } = body else { return Ok(Vec::new()) };
        let end = length.min(&offset.saturating_add(size.into())).max(&offset).to_owned();
        let mut out = vec![0; usize::try_from(end - offset).unwrap_or(0)];
        let whole = [(0, *length)];
        let mut data = *at;
        for (start, length) in stretches.as_deref().unwrap_or(&whole) {
            let (from, to) = (offset.max(*start), end.min(start + length));
            if from < to {
                let part = &mut out[(from - offset) as usize..(to - offset) as usize];
                self.fill(*stream, data + (from - start), part)?;
            }
            data += length;
        }
        Ok(out)
    }

    /// Fills `buffer` with what a stream has from `at` on.
    fn fill(&self, stream: u32, at: u64, buffer: &mut [u8]) -> Result<(), Trouble> {
        match &self.index.streams[stream as usize].form {
            Form::Plain { blocks: None } => {
                pread(&self.archive, at, buffer, Trouble::Changed)?;
                // Afterwards: what was read is from before any change that this does not see.
                self.check_state()
            }
            Form::Plain { blocks: Some(blocks) } => self.fill_from_blocks(blocks, at, buffer),
            Form::Pieces(pieces) => {
                let end = at + buffer.len() as u64;
                let mut number = pieces.partition_point(|piece| piece.at <= at).saturating_sub(1);
                while let Some(piece) = pieces.get(number).filter(|piece| piece.at < end) {
                    let bytes = self.piece(stream, number, piece)?;
                    let (from, to) = (at.max(piece.at), end.min(piece.at + bytes.len() as u64));
                    let wanted = &bytes[(from - piece.at) as usize..(to - piece.at) as usize];
                    buffer[(from - at) as usize..(to - at) as usize].copy_from_slice(wanted);
                    number += 1;
                }
                Ok(())
            }
        }
    }

    /// What the pin was compared with, whatever became of the file.
    fn fill_from_blocks(&self, blocks: &[Digest], at: u64, buffer: &mut [u8]) -> Result<(), Trouble> {
        let end = at + buffer.len() as u64;
        let mut block = vec![0; BLOCK as usize];
        for number in at / BLOCK..end.div_ceil(BLOCK) {
            let start = number * BLOCK;
            let block = &mut block[..BLOCK.min(self.index.archive.size - start) as usize];
            pread(&self.archive, start, block, Trouble::Changed)?;
            let digest = usize::try_from(number).ok().and_then(|number| blocks.get(number));
            if digest != Some(blake3::hash(block).as_bytes()) {
                return Err(Trouble::Changed);
            }
            let (from, to) = (at.max(start), end.min(start + block.len() as u64));
            let wanted = &block[(from - start) as usize..(to - start) as usize];
            buffer[(from - at) as usize..(to - at) as usize].copy_from_slice(wanted);
        }
        Ok(())
    }

    /// A piece: one that is kept, or made and kept.
    fn piece(&self, stream: u32, number: usize, piece: &Piece) -> Result<Arc<Vec<u8>>, Trouble> {
        let key = (stream, number);
        let kept = || self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = kept().slot(key);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = &*slot {
            return Ok(Arc::clone(bytes));
        }
        let Stream { size, form: Form::Pieces(pieces) } = &self.index.streams[stream as usize] else {
            return Err(Trouble::Damaged);
        };
        let end = pieces.get(number + 1).map_or(*size, |next| next.at);
        match self.make(piece, usize::try_from(end - piece.at).unwrap_or(0)) {
            Ok(bytes) => {
                let bytes = Arc::new(bytes);
                *slot = Some(Arc::clone(&bytes));
                kept().made(key, bytes.len().max(LEAST));
                Ok(bytes)
            }
            Err(trouble) => {
                kept().forget(key);
                Err(trouble)
            }
        }
    }

    fn make(&self, piece: &Piece, size: usize) -> Result<Vec<u8>, Trouble> {
        let (file, other) = match piece.start {
            Start::Copy => (&self.data, Trouble::Damaged),
            _ => (&self.archive, Trouble::Changed),
        };
        let mut packed = vec![0; usize::try_from(piece.length).unwrap_or(0)];
        pread(file, piece.from, &mut packed, other)?;
        let made = match &piece.start {
            Start::Copy => Some(packed),
            Start::Frames => zstd::bulk::decompress(&packed, size).ok(),
            Start::Member => inflate(&piece.start, &[], &packed, size),
            Start::Block { window, .. } => inflate(&piece.start, &self.window(window)?, &packed, size),
        };
        let is_right = |bytes: &Vec<u8>| bytes.len() == size && *blake3::hash(bytes).as_bytes() == piece.digest;
        made.filter(is_right).ok_or(if piece.start == Start::Copy { Trouble::Damaged } else { Trouble::Changed })
    }

    fn window(&self, window: &Window) -> Result<Vec<u8>, Trouble> {
        zstd::bulk::decompress(&self.packed_window(window)?, WINDOW).map_err(|_| Trouble::Damaged)
    }

    fn packed_window(&self, window: &Window) -> Result<Vec<u8>, Trouble> {
        let mut packed = vec![0; window.length as usize];
        pread(&self.data, window.from, &mut packed, Trouble::Damaged)?;
        if *blake3::hash(&packed).as_bytes() == window.digest { Ok(packed) } else { Err(Trouble::Damaged) }
    }

    /// Makes sure that what is kept beside the index is what was put there.
    pub(super) fn verify(&self) -> Result<(), Trouble> {
        for stream in &self.index.streams {
            let Form::Pieces(pieces) = &stream.form else { continue };
            for piece in pieces {
                match &piece.start {
                    Start::Copy => drop(self.make(piece, usize::try_from(piece.length).unwrap_or(0))?),
                    Start::Block { window, .. } => drop(self.packed_window(window)?),
                    Start::Member | Start::Frames => {}
                }
            }
        }
        Ok(())
    }
}

/// Fills `buffer`; `short` if the file ends before.
fn pread(file: &OwnedFd, at: u64, buffer: &mut [u8], short: Trouble) -> Result<(), Trouble> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(file, &mut buffer[done..], at + done as u64) {
            Ok(0) => return Err(short),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(cause) => return Err(Trouble::Refused(cause)),
        }
    }
    Ok(())
}
