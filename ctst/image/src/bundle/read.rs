//! Reading bundles, of which nothing is believed.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{BLOCK, END, FORMAT, MANIFEST, MAX_MANIFEST, Manifest, VERSION, header, platform};
use crate::Error;
use crate::archive::stream::{self, Stream};
use crate::archive::stream::{FileInput, Input as _};
use crate::source::hex;
use crate::store::{Progress, archive_state};
use crate::tree::Digest;
use crate::unpack::join;

/// Read and hashed at once.
const PIECE: u64 = 1 << 20;
/// Of a file that is read into memory.
const MAX_FILE: u64 = 64 << 20;

/// A bundle that is open. What its manifest says of its members is compared with it when they are read.
#[derive(Debug)]
pub struct Bundle {
    file: OwnedFd,
    path: PathBuf,
    manifest: Manifest,
    identity: String,
    /// Where the manifest ends.
    begin: u64,
    /// Where members begin, their headers included.
    places: Vec<u64>,
    size: u64,
    state: Digest,
    /// SHA-256 of the file, once all of it was read and found whole.
    whole: OnceLock<String>,
}

impl Bundle {
    /// Opens a bundle, and sees that it has the members that it should have, and no others.
    ///
    /// # Errors
    /// [`Error::Bundle`], [`Error::NewerBundle`], [`Error::Platform`], and a file that cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = stream::open(path)?;
        let (state, _) = archive_state(&file, path)?;
        let size = u64::try_from(stream::check_regular(&file, path)?.st_size).unwrap_or(0);
        let bad = |why: &str| Error::Bundle { path: path.into(), why: why.to_owned() };
        let none = || bad(&format!("is none: it does not begin with `{MANIFEST}`"));
        let mut head = [0; BLOCK as usize];
        read_exactly(&file, path, &mut head, 0)?.ok_or_else(none)?;
        let length = tar::Header::from_byte_slice(&head).entry_size().map_err(|_| none())?;
        if header(MANIFEST, length).ok() != Some(head) {
            return Err(none());
        }
        if length > MAX_MANIFEST {
            return Err(bad(&format!("has a manifest of {length} bytes, {MAX_MANIFEST} are the most")));
        }
        let cut = || bad("is cut off");
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        read_exactly(&file, path, &mut bytes, BLOCK)?.ok_or_else(cut)?;
        let manifest = understand(&bytes, path)?;
        let too_large = || bad("tells of more bytes than a file can have");
        let mut at = BLOCK + length.next_multiple_of(BLOCK);
        let mut places = Vec::with_capacity(manifest.members.len());
        for member in &manifest.members {
            if at >= size {
                return Err(cut());
            }
            let mut found = [0; BLOCK as usize];
            read_exactly(&file, path, &mut found, at)?.ok_or_else(cut)?;
            let expected = header(&member.name, member.size).map_err(|_| none())?;
            if found != expected {
                return Err(bad(&format!("has something else at byte {at} than `{}`", member.name.escape_debug())));
            }
            places.push(at);
            at = member.room().and_then(|room| at.checked_add(room)).ok_or_else(too_large)?;
        }
        let end = at.checked_add(END).ok_or_else(too_large)?;
        match size.cmp(&end) {
            std::cmp::Ordering::Less => return Err(cut()),
            std::cmp::Ordering::Greater => return Err(bad(&format!("goes on behind its end, at byte {end}"))),
            std::cmp::Ordering::Equal => {}
        }
        if manifest.platform != platform() {
            let (wanted, found) = (platform(), vec![crate::error::text(&manifest.platform)]);
            return Err(Error::Platform { archive: path.into(), wanted, found });
        }
        let (identity, begin) = (hex(&Sha256::digest(&bytes).into()), BLOCK + length);
        Ok(Self { file, path: path.into(), manifest, identity, begin, places, size, state, whole: OnceLock::new() })
    }

    /// What it says that it holds.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's digest: bundles that have the same one are the same, or one of them is damaged.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The archive, and how it is called in messages.
    pub(crate) fn archive(&self) -> (&OwnedFd, &Path) {
        (&self.file, &self.path)
    }

    /// The content of a member; `None`: there is none of this name.
    ///
    /// # Errors
    /// [`Error::Bundle`] where it is not what the manifest says, or larger than what is read into memory.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(at) = self.manifest.member(name) else { return Ok(None) };
        let member = &self.manifest.members[at];
        if member.size > MAX_FILE {
            let size = member.size;
            return Err(self.bad(format!("has a file `{}` of {size} bytes, {MAX_FILE} are the most", member.name)));
        }
        let mut bytes = vec![0; usize::try_from(member.size).unwrap_or_default()];
        read_exactly(&self.file, &self.path, &mut bytes, self.places[at] + BLOCK)?
            .ok_or_else(|| self.bad("is cut off".to_owned()))?;
        self.compare(at, hex(&Sha256::digest(&bytes).into()))?;
        Ok(Some(bytes))
    }

    /// Reads all of it, and compares every member with the manifest, and the file with `expected`: 64 hexadecimal digits. Gives its
    /// digest. What was read once is not read again.
    ///
    /// # Errors
    /// [`Error::Bundle`], [`Error::BundleDigest`], [`Error::Changed`].
    pub fn verify(&self, expected: Option<&str>, progress: &mut dyn FnMut(Progress)) -> Result<String, Error> {
        let found = match self.whole.get() {
            Some(found) => found.clone(),
            None => {
                let found = self.look_through(progress)?;
                self.whole.get_or_init(|| found).clone()
            }
        };
        match expected.filter(|expected| !expected.eq_ignore_ascii_case(&found)) {
            Some(expected) => {
                Err(Error::BundleDigest { path: self.path.clone(), expected: expected.to_ascii_lowercase(), found })
            }
            None => Ok(found),
        }
    }

    /// Whether all of it was read already.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.whole.get().is_some()
    }

    fn look_through(&self, progress: &mut dyn FnMut(Progress)) -> Result<String, Error> {
        let (members, whole) = thread::scope(|scope| {
            // What one thread has read, the other finds in memory.
            let whole = scope.spawn(|| stream::digest(FileInput::new(&self.file, &self.path)));
            (self.members(progress), join(whole))
        });
        // Of a file that is not whole that is what a person wants to know.
        members?;
        self.check_unchanged()?;
        Ok(hex(&whole?))
    }

    fn members(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), Error> {
        let mut input = FileInput::new(&self.file, &self.path);
        input.skip(self.begin);
        let mut stream = Stream::new(input);
        let mut done = self.begin;
        self.expect_zeros(&mut stream, padding(self.begin))?;
        for (at, member) in self.manifest.members.iter().enumerate() {
            let mut block = [0; BLOCK as usize];
            stream.fill(&mut block)?;
            let mut hash = Sha256::new();
            let mut left = member.size;
            while left > 0 {
                let piece = stream.piece(left.min(PIECE))?;
                if piece.is_empty() {
                    return Err(self.bad("is cut off".to_owned()));
                }
                hash.update(&*piece);
                left -= piece.len() as u64;
                done += piece.len() as u64;
                let (files_done, files_total) = (at as u64, self.places.len() as u64);
                progress(Progress::Copying { files_done, files_total, bytes_done: done, bytes_total: self.size });
            }
            self.compare(at, hex(&hash.finalize().into()))?;
            self.expect_zeros(&mut stream, padding(member.size))?;
        }
        self.expect_zeros(&mut stream, END as usize)
    }

    fn expect_zeros(&self, stream: &mut Stream<FileInput<'_>>, count: usize) -> Result<(), Error> {
        let mut bytes = vec![1; count];
        stream.fill(&mut bytes)?;
        match bytes.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(self.bad("has something between its members".to_owned())),
        }
    }

    fn compare(&self, at: usize, found: String) -> Result<(), Error> {
        let member = &self.manifest.members[at];
        match found == member.sha256 {
            true => Ok(()),
            false => Err(Error::BlobDigest {
                archive: self.path.clone(),
                blob: member.name.clone(),
                expected: member.sha256.clone(),
                found,
            }),
        }
    }

    /// Fails if the file is not what it was when it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<(), Error> {
        match archive_state(&self.file, &self.path)?.0 == self.state {
            true => Ok(()),
            false => Err(Error::Changed(self.path.clone())),
        }
    }

    fn bad(&self, why: String) -> Error {
        Error::Bundle { path: self.path.clone(), why }
    }
}

fn understand(bytes: &[u8], path: &Path) -> Result<Manifest, Error> {
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: u64,
    }
    let bad = |why: String| Error::Bundle { path: path.into(), why };
    let unread = |e: serde_json::Error| bad(format!("has a bad manifest: {}", crate::error::text(&e.to_string())));
    let Head { format, version } = serde_json::from_slice(bytes).map_err(unread)?;
    if format == FORMAT && version > VERSION {
        return Err(Error::NewerBundle { path: path.into(), found: version, known: VERSION });
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(unread)?;
    manifest.problem().map_or(Ok(manifest), |why| Err(bad(why)))
}

/// Bytes between the end of a content of this size and the next header.
fn padding(size: u64) -> usize {
    usize::try_from(size.next_multiple_of(BLOCK) - size).expect("it is less than a block")
}

/// `None`: the file ends before.
fn read_exactly(file: &OwnedFd, path: &Path, buffer: &mut [u8], at: u64) -> Result<Option<()>, Error> {
    let mut done = 0;
    while done < buffer.len() {
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut buffer[done..], at + done as u64));
        match read.map_err(|cause| Error::io("read", path, cause))? {
            0 => return Ok(None),
            count => done += count,
        }
    }
    Ok(Some(()))
}
