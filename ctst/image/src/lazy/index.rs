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
/// Bytes of the archive that have one digest. Small files are read, and checked, with their neighbours.
pub(crate) const BLOCK: u64 = 64 << 10;
/// The version of the format. Another is made anew.
const VERSION: u32 = 1;
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
        /// Where in the archive its data begins.
        at: u64,
        /// Offset and length of the data of a file with holes, in order.
        stretches: Option<Vec<(u64, u64)>>,
    },
    Symlink(Vec<u8>),
    Fifo,
}

/// All of an archive that is a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    version: u32,
    pub(crate) archive: State,
    /// The first is the root.
    pub(crate) nodes: Vec<Node>,
    /// BLAKE3 of each [`BLOCK`]; none of an archive without a pin.
    pub(crate) blocks: Option<Vec<Digest>>,
}

impl Index {
    pub(crate) fn new(archive: State, nodes: Vec<Node>, blocks: Option<Vec<Digest>>) -> Index {
        Index { version: VERSION, archive, nodes, blocks }
    }

    /// The index as a file, and its digest.
    pub(crate) fn encode(&self) -> (Vec<u8>, Digest) {
        let bytes = postcard::to_allocvec(self).expect("an index is plain data");
        let digest = *blake3::hash(&bytes).as_bytes();
        (bytes, digest)
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
                Body::File { size, at, stretches } => {
                    let end = |start: u64, length: u64| start.checked_add(length);
                    match stretches {
                        None => end(*at, *size).is_some_and(|end| end <= self.archive.size),
                        Some(stretches) => {
                            let mut last = 0;
                            let mut data = *at;
                            stretches.iter().all(|(offset, length)| {
                                let fits = *offset >= last && end(*offset, *length).is_some_and(|stop| stop <= *size);
                                last = offset.saturating_add(*length);
                                data = data.saturating_add(*length);
                                fits
                            }) && data <= self.archive.size
                        }
                    }
                }
                Body::Symlink(_) | Body::Fifo => true,
            };
            if !fits {
                return false;
            }
        }
        self.blocks.as_ref().is_none_or(|blocks| blocks.len() as u64 == self.archive.size.div_ceil(BLOCK))
    }
}
