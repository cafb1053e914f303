//! Decompresses a stream and tells where one could begin to do so later.

use std::path::Path;

use ::zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::gzip::Gunzip;
use crate::Error;
use crate::archive::stream::{BUFFER, Chunk, Compression, Input, Meter, Pool, ZSTD_WINDOW, broken, decode};

/// Bytes, on either side of a decoder, between two places to begin at. A window of 32 KiB is kept for each.
pub(super) const SPACING: u64 = 1 << 20;

/// What a decoder does next.
pub(super) enum Step {
    /// What follows can be decompressed from this byte of the input on.
    Point(Point, u64),
    Data(Chunk),
    /// All of the input was taken: its length.
    End(u64),
}

/// What has to be known to begin there.
pub(super) enum Point {
    Member,
    Block {
        bits: u8,
        first: u8,
        window: Vec<u8>,
    },
    Frames,
    /// It cannot be done.
    Nowhere,
}

/// Of what this compression makes of `input`. The meter bounds what comes out.
pub(super) fn steps<'a>(
    compression: Compression,
    input: impl Input + Send + 'a,
    meter: Meter<'a>,
) -> Result<Box<dyn Iterator<Item = Result<Step, Error>> + Send + 'a>, Error> {
    Ok(match compression {
        Compression::Gzip => Box::new(Gunzip::new(Taken::new(input), meter)),
        Compression::Zstd => Box::new(Unzstd::new(Taken::new(input), meter)?),
        Compression::Xz | Compression::Plain => {
            let decoded = decode(input, meter)?.1;
            Box::new(Copied { decoded, is_begun: false, is_ended: false })
        }
    })
}

/// An input of which the next bytes can be had in one piece.
pub(super) struct Taken<I> {
    input: I,
    bytes: Vec<u8>,
    start: usize,
    is_at_end: bool,
    offset: u64,
}

impl<I: Input> Taken<I> {
    pub(super) fn new(input: I) -> Taken<I> {
        Taken { input, bytes: Vec::new(), start: 0, is_at_end: false, offset: 0 }
    }

    /// The next bytes: at least `count` of them, or all that are left.
    pub(super) fn want(&mut self, count: usize) -> Result<&[u8], Error> {
        while self.bytes.len() - self.start < count && !self.is_at_end {
            if self.start > 0 {
                self.bytes.drain(..self.start);
                self.start = 0;
            }
            match self.input.next()? {
                Some(chunk) => self.bytes.extend_from_slice(&chunk),
                None => self.is_at_end = true,
            }
        }
        Ok(&self.bytes[self.start..])
    }

    /// Whether nothing comes after what [`want`](Self::want) gave.
    pub(super) fn is_at_end(&self) -> bool {
        self.is_at_end
    }

    pub(super) fn take(&mut self, count: usize) {
        self.start += count;
        self.offset += count as u64;
    }

    /// Bytes that were taken.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }
}

/// zstd can begin at each of its frames; most programs make a single one.
struct Unzstd<'a, I> {
    input: Taken<I>,
    decoder: Decoder<'static>,
    pool: Pool,
    meter: Meter<'a>,
    is_in_frame: bool,
    /// Made since the last point, and where that is.
    made: u64,
    from: Option<u64>,
    is_ended: bool,
}

impl<'a, I: Input> Unzstd<'a, I> {
    fn new(input: Taken<I>, meter: Meter<'a>) -> Result<Self, Error> {
        let broken = |e| broken(meter.archive, e);
        let mut decoder = Decoder::new().map_err(broken)?;
        decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW)).map_err(broken)?;
        let pool = Pool::default();
        Ok(Unzstd { input, decoder, pool, meter, is_in_frame: false, made: 0, from: None, is_ended: false })
    }

    fn step(&mut self) -> Result<Step, Error> {
        loop {
            let is_empty = self.input.want(1)?.is_empty();
            if !self.is_in_frame {
                let offset = self.input.offset();
                if is_empty {
                    self.is_ended = true;
                    return Ok(Step::End(offset));
                }
                self.is_in_frame = true;
                if self.from.is_none_or(|from| offset - from >= SPACING || self.made >= SPACING) {
                    (self.from, self.made) = (Some(offset), 0);
                    return Ok(Step::Point(Point::Frames, offset));
                }
            }
            let Unzstd { input, decoder, pool, meter, is_in_frame, .. } = self;
            let bytes = input.want(1)?;
            let (mut taken, mut is_stuck) = (0, false);
            let chunk = pool.fill(|buffer| {
                let mut from = InBuffer::around(bytes);
                let mut to = OutBuffer::around(&mut buffer[..]);
                // Until there is a chunk, the frame ends or the input does.
                loop {
                    let before = (from.pos(), to.pos());
                    *is_in_frame = decoder.run(&mut from, &mut to)? > 0;
                    let is_full = to.pos() == BUFFER;
                    if !*is_in_frame || is_full || before == (from.pos(), to.pos()) {
                        is_stuck = before == (0, 0) && (from.pos(), to.pos()) == (0, 0);
                        break;
                    }
                }
                taken = from.pos();
                Ok::<_, std::io::Error>(to.pos())
            });
            let chunk = chunk.map_err(|e| broken(meter.archive, e))?;
            input.take(taken);
            if is_stuck && is_empty {
                return Err(cut_off(meter.archive));
            }
            if let Some(chunk) = chunk {
                meter.made(chunk.len() as u64)?;
                self.made += chunk.len() as u64;
                return Ok(Step::Data(chunk));
            }
        }
    }
}

impl<I: Input> Iterator for Unzstd<'_, I> {
    type Item = Result<Step, Error>;
    fn next(&mut self) -> Option<Self::Item> {
        (!self.is_ended).then(|| self.step())
    }
}

pub(super) fn cut_off(archive: &Path) -> Error {
    broken(archive, std::io::ErrorKind::UnexpectedEof.into())
}

/// What has no places to begin at.
struct Copied<I> {
    decoded: I,
    is_begun: bool,
    is_ended: bool,
}

impl<I: Input> Iterator for Copied<I> {
    type Item = Result<Step, Error>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.is_ended {
            return None;
        }
        if !std::mem::replace(&mut self.is_begun, true) {
            return Some(Ok(Step::Point(Point::Nowhere, 0)));
        }
        Some(self.decoded.next().map(|chunk| {
            self.is_ended = chunk.is_none();
            chunk.map_or(Step::End(0), Step::Data)
        }))
    }
}
