//! What is known of an archive that is not unpacked.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::Stat;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::hash::Algorithm;
use crate::tree::{Digest, Time};
use crate::unpack::writer::MAX_NAME;

/// The name of its file, beside the folder [`TREE`](crate::unpack::TREE).
pub(crate) const INDEX: &str = "index";
/// The name of the file beside it with what cannot be read from the archive.
pub(crate) const DATA: &str = "data";
/// Bytes of an archive that have one digest. Small files are read, and checked, with their neighbours.
pub(crate) const BLOCK: u64 = 64 << 10;
/// Most bytes of one [`Piece`], which is decompressed as a whole.
pub(crate) const MAX_PIECE: u64 = 16 << 20;
/// Most bytes of the archive that are read for one: those of a block of deflate are at most twice what becomes of them, and
/// headers may be between.
pub(crate) const MAX_PACKED: u64 = 4 * MAX_PIECE;
/// Most of a [`Window`], as zstd compresses what it cannot.
const MAX_WINDOW: u32 = 33 << 10;
/// The version of the format. Another is made anew.
pub(crate) const VERSION: u32 = 2;
/// Largest file that is read: names of 256 MiB, and as many attributes.
const MAX_INDEX: u64 = 1 << 30;

/// The state of an archive's file, as far as its content can have changed: not its name, owner and mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
}

impl From<Stat> for State {
    fn from(stat: Stat) -> State {
        let meta = crate::tree::Meta::from(stat);
        State { dev: meta.dev, ino: meta.ino, size: meta.size, mtime: meta.mtime }
    }
}

/// One file, folder or link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    /// Ids inside the container.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Names of what is no folder.
    pub(crate) links: u32,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    Folder {
        parent: u32,
        /// Names in order, and which nodes they are.
        entries: Vec<(Vec<u8>, u32)>,
    },
    File {
        size: u64,
        /// In which stream its data is, and where it begins there.
        stream: u32,
        at: u64,
        /// Offset and length of the data of a file with holes, in order.
        stretches: Option<Vec<(u64, u64)>>,
    },
    Symlink(Vec<u8>),
    Fifo,
}

/// Bytes that files lie in: an archive, decompressed if it is compressed, or a layer of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stream {
    pub(crate) size: u64,
    pub(crate) form: Form,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Form {
    /// The archive as it is.
    Plain {
        /// BLAKE3 of each [`BLOCK`]; none of an archive without a pin.
        blocks: Option<Vec<Digest>>,
    },
    /// Pieces, in order and without gaps.
    Pieces(Vec<Piece>),
}

/// What is decompressed, and compared with its digest, at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// Where in the stream it begins.
    pub(crate) at: u64,
    pub(crate) start: Start,
    /// Where what it is made of begins, and how many bytes that has: in the archive, or of a copy in [`DATA`].
    pub(crate) from: u64,
    pub(crate) length: u64,
    /// BLAKE3.
    pub(crate) digest: Digest,
}

/// What has to be known at the beginning of a piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Start {
    /// The header of a member of a gzip file follows (RFC 1952).
    Member,
    /// A block of deflate (RFC 1951) follows: the first of its bits, which are the last of the byte before, and what it may
    /// refer to.
    Block { bits: u8, first: u8, window: Window },
    /// Frames of zstd (RFC 8878) follow.
    Frames,
    /// Nothing: it was decompressed already, because it cannot be done from here.
    Copy,
}

/// Up to 32 KiB that come before a block, compressed by zstd, in [`DATA`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) from: u64,
    pub(crate) length: u32,
    /// BLAKE3.
    pub(crate) digest: Digest,
}

/// All of an archive that is a root file system or an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    version: u32,
    pub(crate) archive: State,
    /// The first is the root.
    pub(crate) nodes: Vec<Node>,
    pub(crate) streams: Vec<Stream>,
}

impl Index {
    pub(crate) fn new(archive: State, nodes: Vec<Node>, streams: Vec<Stream>) -> Index {
        Index { version: VERSION, archive, nodes, streams }
    }

    /// The index as a file, and its digest; none if it is larger than any that is read.
    pub(crate) fn encode(&self) -> Option<(Vec<u8>, Digest)> {
        let bytes = postcard::to_allocvec(self).expect("an index is plain data");
        let digest = *blake3::hash(&bytes).as_bytes();
        (bytes.len() as u64 <= MAX_INDEX).then_some((bytes, digest))
    }

    /// Reads an index of which the digest is known, as [`Algorithm::text`] writes it, and makes sure that all of it fits together.
    pub(crate) fn read(file: &OwnedFd, path: &Path, digest: &str) -> Result<Index, Error> {
        let damaged = |why: &str| Error::Index { path: path.into(), why: why.into() };
        let stat = rustix::fs::fstat(file).map_err(|cause| Error::io("stat", path, cause))?;
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if size > MAX_INDEX {
            return Err(damaged("is larger than any index"));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::io::pread(file, &mut bytes[filled..], filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(cause) => return Err(Error::io("read", path, cause)),
            }
        }
        if filled < bytes.len() || Algorithm::Blake3.text(blake3::hash(&bytes).as_bytes()) != digest {
            return Err(damaged("is not the one that was made"));
        }
        let (index, rest): (Index, _) = postcard::take_from_bytes(&bytes).map_err(|_| damaged("is malformed"))?;
        match index.version == VERSION && rest.is_empty() && index.fits() {
            true => Ok(index),
            false => Err(damaged("contradicts itself")),
        }
    }

    /// Whether it is one tree, and nothing of it lies outside of the archive.
    fn fits(&self) -> bool {
        let mut is_placed = vec![false; self.nodes.len()];
        let Some(Node { body: Body::Folder { parent: 0, .. }, .. }) = self.nodes.first() else { return false };
        for (number, node) in self.nodes.iter().enumerate() {
            let fits = match &node.body {
                Body::Folder { entries, .. } => {
                    let in_order = entries.windows(2).all(|pair| pair[0].0 < pair[1].0);
                    in_order
                        && entries.iter().all(|(name, entry)| {
                            let is_name = (1..=MAX_NAME).contains(&name.len())
                                && !name.iter().any(|b| matches!(b, 0 | b'/'))
                                && !matches!(&name[..], b"." | b"..");
                            let entry = *entry as usize;
                            let below = self.nodes.get(entry).map(|node| &node.body);
                            let fits = match below {
                                // In one place only, so that none lies in itself.
                                Some(Body::Folder { parent, .. }) => {
                                    *parent as usize == number && entry > 0 && !is_placed[entry]
                                }
                                Some(_) => true,
                                None => false,
                            };
                            if fits {
                                is_placed[entry] = true;
                            }
                            is_name && fits
                        })
                }
                Body::File { size, stream, at, stretches } => {
                    let end = |start: u64, length: u64| start.checked_add(length);
                    let whole = self.streams.get(*stream as usize).map_or(0, |stream| stream.size);
                    match stretches {
                        None => end(*at, *size).is_some_and(|end| end <= whole),
                        Some(stretches) => {
                            let mut last = 0;
                            let mut data = *at;
                            stretches.iter().all(|(offset, length)| {
                                let fits = *offset >= last && end(*offset, *length).is_some_and(|stop| stop <= *size);
                                last = offset.saturating_add(*length);
                                data = data.saturating_add(*length);
                                fits
                            }) && data <= whole
                        }
                    }
                }
                Body::Symlink(_) | Body::Fifo => true,
            };
            if !fits {
                return false;
            }
        }
        self.streams.iter().all(|stream| stream.fits(self.archive.size))
    }
}

impl Stream {
    fn fits(&self, archive: u64) -> bool {
        match &self.form {
            Form::Plain { blocks } => {
                self.size == archive
                    && blocks.as_ref().is_none_or(|blocks| blocks.len() as u64 == archive.div_ceil(BLOCK))
            }
            Form::Pieces(pieces) => {
                let ends = pieces.iter().skip(1).map(|piece| piece.at).chain([self.size]);
                pieces.first().is_some_and(|piece| piece.at == 0)
                    && pieces.iter().zip(ends).all(|(piece, end)| {
                        let size = end.checked_sub(piece.at);
                        let is_there = piece.from.checked_add(piece.length).is_some_and(|end| end <= i64::MAX as u64);
                        let fits = match &piece.start {
                            Start::Copy => Some(piece.length) == size,
                            Start::Block { bits, window, .. } => *bits < 8 && window.length <= MAX_WINDOW,
                            Start::Member | Start::Frames => true,
                        };
                        size.is_some_and(|size| size <= MAX_PIECE) && piece.length <= MAX_PACKED && is_there && fits
                    })
            }
        }
    }
}
