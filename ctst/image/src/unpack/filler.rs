//! Fills and hashes files in a thread of its own, while the next ones are made: where an archive holds many small files
//! that takes longer than hashing the archive, where it holds large ones the opposite, and no processor waits for another.

use std::collections::HashMap;
use std::mem::take;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::fs::{Gid, Mode, Stat, Uid};
use rustix::io::Errno;

use super::ALGORITHM;
use super::writer::times;
use crate::Error;
use crate::archive::stream::Chunk;
use crate::copy::write_at;
use crate::tree::{Digest, Time, join};

/// A file that was made and is still empty.
pub(super) struct Target {
    pub(super) file: OwnedFd,
    pub(super) inode: u64,
    pub(super) now: Option<Now>,
    /// In the layer, for messages.
    pub(super) path: Vec<u8>,
    pub(super) size: u64,
    pub(super) has_holes: bool,
    pub(super) dress: Dress,
}

/// What a file gets in the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dress {
    pub(super) owner: Option<(Uid, Gid)>,
    /// Whether `owner` is who unpacks.
    pub(super) is_own: bool,
    pub(super) mode: u32,
    pub(super) mtime: Time,
}

impl Dress {
    /// Owner first: giving a file away clears setuid and setgid. What `now` has already is not set. Returns whether the file
    /// has it in the end: the kernel takes setgid away without a word from whoever is not in the group, and some file systems
    /// keep neither owners nor modes.
    pub(super) fn put_on(&self, file: impl AsFd, now: Option<Now>) -> Result<bool, Errno> {
        let mut is_as_asked = true;
        if let Some((uid, gid)) = self.owner {
            // Any id that has no number here looks like the same one, and our own have.
            let has_it = self.is_own && now.is_some_and(|now| (now.0, now.1) == (uid.as_raw(), gid.as_raw()));
            if !has_it {
                rustix::fs::fchown(&file, Some(uid), Some(gid))?;
                is_as_asked = false;
            }
        }
        if !is_as_asked || now.is_none_or(|now| now.2 != self.mode) {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(self.mode))?;
            let Now(uid, gid, mode) = (&rustix::fs::fstat(&file)?).into();
            let has_owner = self.owner.is_none_or(|owner| (owner.0.as_raw(), owner.1.as_raw()) == (uid, gid));
            is_as_asked = has_owner && mode == self.mode;
        }
        rustix::fs::futimens(&file, &times(self.mtime))?;
        Ok(is_as_asked)
    }
}

/// What it has already: owner, group and mode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now(u32, u32, u32);

impl From<&Stat> for Now {
    fn from(stat: &Stat) -> Now {
        Now(stat.st_uid, stat.st_gid, stat.st_mode & 0o7777)
    }
}

enum Step {
    Begin(Target),
    /// Content from this offset on.
    Data(u64, Chunk),
    End,
}

/// The end of it where files are made.
pub(super) struct Filler {
    /// Until it is closed, or nobody listens any more.
    sender: Option<SyncSender<Vec<Step>>>,
    batch: Vec<Step>,
    /// Bytes of the batch's content.
    bytes: usize,
}

/// What [`fill`] is given.
pub(super) struct Steps(Receiver<Vec<Step>>);

/// Steps are sent together: waking a thread takes longer than making a small file.
const BATCH: usize = 128 << 10;
const MOST_STEPS: usize = 96;
/// Batches on their way. Each may hold 32 files open and two of the stream's buffers.
const QUEUE: usize = 6;

pub(super) fn filler() -> (Filler, Steps) {
    let (sender, steps) = sync_channel(QUEUE);
    (Filler { sender: Some(sender), batch: Vec::new(), bytes: 0 }, Steps(steps))
}

impl Filler {
    pub(super) fn begin(&mut self, target: Target) {
        self.push(Step::Begin(target));
    }

    /// In ascending order; what is between is a hole.
    pub(super) fn data(&mut self, at: u64, chunk: Chunk) {
        self.bytes += chunk.len();
        self.push(Step::Data(at, chunk));
    }

    pub(super) fn end(&mut self) {
        self.push(Step::End);
    }

    /// False when a file could not be filled, of which [`fill`] tells the error.
    pub(super) fn is_heard(&self) -> bool {
        self.sender.is_some()
    }

    fn push(&mut self, step: Step) {
        self.batch.push(step);
        if self.bytes >= BATCH || self.batch.len() >= MOST_STEPS {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.bytes = 0;
        let batch = take(&mut self.batch);
        self.sender = self.sender.take().filter(|sender| sender.send(batch).is_ok());
    }

    /// Sends the last steps: what is filled is complete.
    pub(super) fn close(&mut self) {
        self.flush();
        self.sender = None;
    }
}

/// What was filled.
#[derive(Default)]
pub(super) struct Filled {
    /// Of the contents that were last written under each inode number: a file that is replaced frees its own when it is
    /// closed.
    pub(super) digests: HashMap<u64, Digest>,
    /// Whether some file has not the owner and the mode that it was given.
    pub(super) is_other: bool,
}

/// Fills files until the [`Filler`] is closed. `base` is the layer's name in messages.
pub(super) fn fill(steps: Steps, base: &Path) -> Result<Filled, Error> {
    let mut filled = Filled::default();
    let mut hash = ALGORITHM.start();
    let mut current: Option<(Target, u64)> = None;
    for step in steps.0.into_iter().flatten() {
        match (step, &mut current) {
            (Step::Begin(target), _) => current = Some((target, 0)),
            (Step::Data(offset, chunk), Some((target, at))) => {
                write_at(&target.file, &chunk, offset)
                    .map_err(|cause| Error::io("write", join(base, &target.path), cause))?;
                hash.update_zeros(offset - *at);
                hash.update(&chunk);
                *at = offset + chunk.len() as u64;
            }
            (Step::End, Some((target, at))) => {
                let failed = |step, cause| Error::io(step, join(base, &target.path), cause);
                hash.update_zeros(target.size - *at);
                if target.has_holes {
                    rustix::fs::ftruncate(&target.file, target.size).map_err(|cause| failed("write", cause))?;
                }
                filled.digests.insert(target.inode, hash.take());
                let is_as_asked = target.dress.put_on(&target.file, target.now);
                filled.is_other |= !is_as_asked.map_err(|cause| failed("set attributes of", cause))?;
                current = None;
            }
            (Step::Data(..) | Step::End, None) => {}
        }
    }
    Ok(filled)
}
