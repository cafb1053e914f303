//! gzip that can be read from the middle: where a block of deflate ends and another begins, nothing but the last 32 KiB has to
//! be known of what came before (RFC 1951, RFC 1952).

use std::io::{Error as IoError, ErrorKind};

use flate2::Crc;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress, decompress_with_limit};

use super::index::Start;
use super::steps::{Point, SPACING, Step, Taken, cut_off};
use crate::Error;
use crate::archive::stream::{BUFFER, Chunk, Input, Meter, Pool, broken};

/// How far back a block may refer.
const WINDOW: usize = 32 << 10;
/// Most that is made at once.
const STEP: usize = 64 << 10;
/// More than it can take: no code has more than 15 bits for a byte, and the codes themselves are told in less than 1 KiB. The
/// decoder stops nowhere within a byte that it cannot give back as long as its input does not end.
const AHEAD: usize = 2 * STEP + 1024;
/// Where this much was made, it is handed on.
const ENOUGH: usize = BUFFER / 2;
/// CRC-32 and length.
const TRAILER: usize = 8;
/// Longest text in a header, and what is read of one at once.
const MAX_TEXT: usize = 65_535;
const HEADER: usize = 512;

enum At {
    Header,
    Blocks,
    Trailer,
}

/// Decompresses all members of a file.
pub(super) struct Gunzip<'a, I> {
    input: Taken<I>,
    at: At,
    inflate: Box<DecompressorOxide>,
    /// Of this member: what may be referred to, what is still to be handed on, and room.
    out: Vec<u8>,
    filled: usize,
    given: usize,
    crc: Crc,
    pool: Pool,
    meter: Meter<'a>,
    /// Made since the last point, and where that is.
    made: u64,
    from: Option<u64>,
    /// To be told before anything else.
    point: Option<(Point, u64)>,
    is_ended: bool,
}

impl<'a, I: Input> Gunzip<'a, I> {
    pub(super) fn new(input: Taken<I>, meter: Meter<'a>) -> Self {
        Gunzip {
            input,
            at: At::Header,
            inflate: Box::default(),
            out: vec![0; WINDOW + ENOUGH + STEP],
            filled: 0,
            given: 0,
            crc: Crc::new(),
            pool: Pool::default(),
            meter,
            made: 0,
            from: None,
            point: None,
            is_ended: false,
        }
    }

    fn step(&mut self) -> Result<Step, Error> {
        loop {
            // What was made comes before the point after it.
            let is_point = self.point.is_some() || !matches!(self.at, At::Blocks);
            if self.filled - self.given >= ENOUGH || (is_point && self.filled > self.given) {
                return self.hand_on().map(Step::Data);
            }
            if let Some((point, offset)) = self.point.take() {
                (self.from, self.made) = (Some(offset), 0);
                return Ok(Step::Point(point, offset));
            }
            match self.at {
                At::Header => {
                    let offset = self.input.offset();
                    if self.input.want(1)?.is_empty() {
                        self.is_ended = true;
                        return Ok(Step::End(offset));
                    }
                    if self.is_far(offset) {
                        self.point = Some((Point::Member, offset));
                        continue;
                    }
                    self.header()?;
                }
                At::Blocks => self.blocks()?,
                At::Trailer => self.trailer()?,
            }
        }
    }

    fn is_far(&self, offset: u64) -> bool {
        self.from.is_none_or(|from| from != offset && (offset - from >= SPACING || self.made >= SPACING))
    }

    fn hand_on(&mut self) -> Result<Chunk, Error> {
        let new = &self.out[self.given..self.filled];
        self.meter.made(new.len() as u64)?;
        let copied = self.pool.fill(|buffer| {
            buffer[..new.len()].copy_from_slice(new);
            Ok::<_, Error>(new.len())
        });
        self.given = self.filled;
        Ok(copied?.unwrap_or_default())
    }

    fn header(&mut self) -> Result<(), Error> {
        let mut most = HEADER;
        loop {
            let bytes = self.input.want(most)?;
            let (found, length) = (header(bytes), bytes.len());
            match found {
                Ok(Some(length)) => {
                    self.input.take(length);
                    break;
                }
                Ok(None) if self.input.is_at_end() => return Err(cut_off(self.meter.archive)),
                Ok(None) => most = length + MAX_TEXT,
                Err(why) => return Err(damaged(self.meter, why)),
            }
        }
        (*self.inflate, self.filled, self.given, self.at) = (DecompressorOxide::default(), 0, 0, At::Blocks);
        self.crc.reset();
        Ok(())
    }

    fn blocks(&mut self) -> Result<(), Error> {
        if self.filled + STEP > self.out.len() {
            // All of it was handed on but for less than ENOUGH.
            let start = self.given.min(self.filled.saturating_sub(WINDOW));
            self.out.copy_within(start..self.filled, 0);
            (self.filled, self.given) = (self.filled - start, self.given - start);
        }
        let is_at_end;
        let (status, taken, made) = {
            let Gunzip { input, inflate, out, filled, .. } = self;
            input.want(AHEAD)?;
            is_at_end = input.is_at_end();
            let more = if is_at_end { 0 } else { TINFL_FLAG_HAS_MORE_INPUT };
            let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY | more;
            decompress_with_limit(inflate, input.want(AHEAD)?, out, *filled, STEP, flags)
        };
        self.input.take(taken);
        self.crc.update(&self.out[self.filled..self.filled + made]);
        self.filled += made;
        self.made += made as u64;
        match status {
            TINFLStatus::Done => self.at = At::Trailer,
            TINFLStatus::BlockBoundary => {
                let offset = self.input.offset();
                if self.is_far(offset)
                    && let Some(state) = self.inflate.block_boundary_state()
                {
                    let window = self.out[self.filled.saturating_sub(WINDOW)..self.filled].to_vec();
                    let point = Point::Block { bits: state.num_bits, first: state.bit_buf, window };
                    self.point = Some((point, offset));
                }
            }
            TINFLStatus::HasMoreOutput => {}
            TINFLStatus::NeedsMoreInput | TINFLStatus::FailedCannotMakeProgress if is_at_end => {
                return Err(cut_off(self.meter.archive));
            }
            _ => return Err(damaged(self.meter, "corrupt deflate stream")),
        }
        Ok(())
    }

    fn trailer(&mut self) -> Result<(), Error> {
        let bytes = self.input.want(TRAILER)?;
        let Some((trailer, _)) = bytes.split_first_chunk::<TRAILER>() else {
            return Err(cut_off(self.meter.archive));
        };
        let own = [self.crc.sum().to_le_bytes(), self.crc.amount().to_le_bytes()].concat();
        if own != trailer {
            return Err(damaged(self.meter, "corrupt gzip stream does not have a matching checksum"));
        }
        self.input.take(TRAILER);
        self.at = At::Header;
        Ok(())
    }
}

impl<I: Input> Iterator for Gunzip<'_, I> {
    type Item = Result<Step, Error>;
    fn next(&mut self) -> Option<Self::Item> {
        (!self.is_ended).then(|| self.step())
    }
}

fn damaged(meter: Meter<'_>, why: &'static str) -> Error {
    broken(meter.archive, IoError::new(ErrorKind::InvalidInput, why))
}

/// The length of a member's header; `None` if it is longer than these bytes.
fn header(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
    const CRC: u8 = 1 << 1;
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    const RESERVED: u8 = 0b1110_0000;
    let Some(fixed) = bytes.first_chunk::<10>() else { return Ok(None) };
    let flags = fixed[3];
    if fixed[..3] != [0x1f, 0x8b, 8] || flags & RESERVED != 0 {
        return Err("invalid gzip header");
    }
    let mut length = fixed.len();
    if flags & EXTRA != 0 {
        let Some(extra) = bytes.get(length..).and_then(<[u8]>::first_chunk::<2>) else { return Ok(None) };
        length += 2 + usize::from(u16::from_le_bytes(*extra));
    }
    for flag in [NAME, COMMENT] {
        if flags & flag != 0 {
            let text = bytes.get(length..).unwrap_or_default();
            match text.iter().take(MAX_TEXT + 1).position(|b| *b == 0) {
                Some(end) => length += end + 1,
                None if text.len() > MAX_TEXT => return Err("gzip header field too long"),
                None => return Ok(None),
            }
        }
    }
    if flags & CRC != 0 {
        let Some((text, rest)) = bytes.split_at_checked(length) else { return Ok(None) };
        let Some(own) = rest.first_chunk::<2>() else { return Ok(None) };
        let mut crc = Crc::new();
        crc.update(text);
        if crc.sum().to_le_bytes()[..2] != *own {
            return Err("corrupt gzip stream does not have a matching checksum");
        }
        length += own.len();
    }
    Ok((length <= bytes.len()).then_some(length))
}

/// `length` bytes of what `input` becomes, from a place where one can begin; whether they are the right ones tells a digest.
pub(super) fn inflate(start: &Start, window: &[u8], input: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut out = [window, &vec![0; length]].concat();
    let (mut from, mut filled) = (0, window.len());
    let mut inflate: Box<DecompressorOxide> = match start {
        Start::Block { bits, first, .. } => {
            let state = BlockBoundaryState { num_bits: *bits, bit_buf: *first, ..BlockBoundaryState::default() };
            Box::new(DecompressorOxide::from_block_boundary_state(&state))
        }
        _ => {
            from = header(input).ok()??;
            Box::default()
        }
    };
    // Nothing refers to another member.
    let mut member = 0;
    while filled < out.len() {
        let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let rest = input.get(from..)?;
        let (status, taken, made) = decompress(&mut inflate, rest, &mut out[member..], filled - member, flags);
        (from, filled) = (from + taken, filled + made);
        if filled < out.len() {
            let TINFLStatus::Done = status else { return None };
            from += TRAILER;
            from += header(input.get(from..)?).ok()??;
            (inflate, member) = (Box::default(), filled);
        }
    }
    out.drain(..window.len());
    Some(out)
}
