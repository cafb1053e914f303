//! Puts files into an image: in a container of which the image is the root, so that its links lead into itself.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicU64;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::pick::{Folder, is_one_file, pour};
use crate::Error;
use crate::archive::stream::{Chunk, Compression, FileInput, Input, Meter, decode};
use crate::archive::tar::{Entry, Kind, Tar};
use crate::archive::{Limits, plain};
use crate::copy::write_at;
use crate::error::text;
use crate::tree::{MAX_PATH, join};
use crate::unpack::writer::{lossy, split};

/// What is put where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceJob {
    /// Absolute; with a `/` at its end it is a folder. Without, one file is copied, which gets this name unless a folder has it.
    pub to: String,
    /// Of everything; `None`: as the stream says.
    pub owner: Option<(u32, u32)>,
    /// Permission bits of everything; `None`: as the stream says.
    pub mode: Option<u32>,
    /// Whether owners can be given at all: with a single id there is but one.
    pub owned: bool,
    /// What comes in: `None`: a tar stream of what is copied; a name: a file of that name, which is unpacked if it is an archive.
    pub archive: Option<String>,
}

/// What is taken out of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatherJob {
    /// Paths or patterns.
    pub sources: Vec<String>,
}

/// Writes a tar stream of what is taken to `out`; returns whether that is one file.
pub(crate) fn gather(job: &GatherJob, out: OwnedFd) -> Result<bool, Error> {
    let picked = Folder::of_container()?.pick(&job.sources)?;
    let mut out = std::io::BufWriter::with_capacity(256 << 10, std::fs::File::from(out));
    pour(&picked, true, Some(&mut out))?;
    Ok(is_one_file(&picked))
}

/// Makes a folder where there is none, and those above it.
pub(crate) fn make_folder(path: &str) -> Result<(), Error> {
    folder(path, None).map(drop)
}

/// Gives a folder its owner and permission bits.
pub(crate) fn own(folder: &Path, (uid, gid): (u32, u32), mode: u32) -> Result<(), Error> {
    let opened = crate::unpack::open_tree(folder)?;
    rustix::fs::fchown(&opened, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .and_then(|()| rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode)))
        .map_err(|cause| Error::io("change owner of", folder, cause))
}

/// Puts what is in `input`, a regular file, into its place.
pub(crate) fn place(job: &PlaceJob, input: &OwnedFd) -> Result<(), Error> {
    let name = Path::new(job.archive.as_deref().unwrap_or("what is copied"));
    let limits = Limits::default();
    let [read, made] = [const { AtomicU64::new(0) }; 2];
    let meter = Meter { limits: &limits, read: &read, made: &made, archive: name };
    let stream = || FileInput::new(input, name);
    let Some(archive) = &job.archive else {
        return Placer { job, archive: name }.all(&mut Tar::new(stream(), name, &limits));
    };
    let mut head = [0; 8];
    let count = rustix::io::pread(input, &mut head, 0).map_err(|cause| Error::io("read", name, cause))?;
    let is_archive = match Compression::of(&head[..count]) {
        Ok(_) => matches!(Tar::new(decode(stream(), meter)?.1, name, &limits).next(), Ok(Some(_))),
        // The one kind that docker unpacks and this does not.
        Err("bzip2") => {
            let why = "it is compressed with bzip2, which is not understood; compress it with gzip, zstd or xz".into();
            return Err(Error::Copy { what: text(archive), why });
        }
        Err(_) => false,
    };
    if is_archive {
        let meter = Meter { made: &AtomicU64::new(0), ..meter };
        let mut tar = Tar::new(decode(stream(), meter)?.1, name, &limits);
        let job = PlaceJob { to: format!("{}/", job.to.trim_end_matches('/')), ..job.clone() };
        return Placer { job: &job, archive: name }.all(&mut tar);
    }
    // As it is: one file.
    let stat = rustix::fs::fstat(input).map_err(|cause| Error::io("stat", name, cause))?;
    let placer = Placer { job, archive: name };
    let (parent, last) = placer.landing(archive.as_bytes())?;
    let owner = job.owner.or(Some((0, 0)));
    let mode = job.mode.unwrap_or(stat.st_mode & 0o7777);
    let attributes = Attributes { owner, mode, mtime: (stat.st_mtime, 0) };
    let mut chunks = stream();
    placer.file(&parent, &last, &attributes, || chunks.next()).map_err(|cause| placer.failed(&last, cause))?
}

struct Attributes {
    owner: Option<(u32, u32)>,
    mode: u32,
    mtime: (i64, u32),
}

struct Placer<'a> {
    job: &'a PlaceJob,
    archive: &'a Path,
}

impl Placer<'_> {
    fn failed(&self, path: &[u8], cause: Errno) -> Error {
        let path = join(Path::new(self.job.to.trim_end_matches('/')), path);
        let why = match cause {
            Errno::INVAL => "its owner is none of the container's ids".to_owned(),
            Errno::LOOP => "a link of the image is on the way".to_owned(),
            Errno::NOTDIR => "what is no folder is on the way, or in its place".to_owned(),
            Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST => "a folder is in its place".to_owned(),
            cause => return Error::io("write", path, cause),
        };
        Error::Copy { what: text(&path.to_string_lossy()), why }
    }

    /// The folder that a source lands in, and its name there.
    fn landing(&self, name: &[u8]) -> Result<(OwnedFd, Vec<u8>), Error> {
        let to = self.job.to.as_str();
        let is_there = || {
            let found = rustix::fs::statat(CWD, to, AtFlags::empty());
            found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
        };
        if to.ends_with('/') || is_there() {
            return Ok((folder(to, self.job.owner)?, name.to_vec()));
        }
        let (parent, last) = to.rsplit_once('/').unwrap_or(("", to));
        Ok((folder(&format!("{parent}/"), self.job.owner)?, last.as_bytes().to_vec()))
    }

    fn all<I: Input>(&self, tar: &mut Tar<'_, I>) -> Result<(), Error> {
        let mut folders: Vec<(Vec<u8>, Attributes)> = Vec::new();
        let mut root = None;
        let mut rename = None;
        while let Some(entry) = tar.next()? {
            let path = plain(&entry.path);
            if path.len() > MAX_PATH || path.split(|b| *b == b'/').any(|part| part == b"..") {
                return Err(tar.refused("leads out of its folder by `..`"));
            }
            // Without a `/` at its end, one file is what is copied.
            let base = match &root {
                Some(root) => root,
                None => {
                    let (folder, name) = self.landing(&path)?;
                    rename = (name != path).then_some(name);
                    root.insert(folder)
                }
            };
            let path = rename.clone().unwrap_or(path);
            self.entry(base, &path, entry, tar, &mut folders)?;
        }
        let Some(root) = root else {
            // An empty folder was copied.
            return folder(&format!("{}/", self.job.to.trim_end_matches('/')), self.job.owner).map(drop);
        };
        for (path, attributes) in folders.iter().rev() {
            enter(&root, path, None)
                .and_then(|folder| dress(&folder, attributes))
                .map_err(|cause| self.failed(path, cause))?;
        }
        Ok(())
    }

    fn attributes(&self, entry: &Entry) -> Attributes {
        let owner = self.job.owner.or(Some((entry.uid, entry.gid)));
        Attributes {
            owner: owner.filter(|_| self.job.owned),
            mode: self.job.mode.unwrap_or(entry.mode),
            mtime: entry.mtime,
        }
    }

    fn entry<I: Input>(
        &self,
        root: &OwnedFd,
        path: &[u8],
        entry: Entry,
        tar: &mut Tar<'_, I>,
        folders: &mut Vec<(Vec<u8>, Attributes)>,
    ) -> Result<(), Error> {
        let attributes = self.attributes(&entry);
        if path.is_empty() {
            return Ok(());
        }
        let failed = |cause| self.failed(path, cause);
        let (above, name) = split(path);
        let parent = enter(root, above, Some(self.made(attributes.owner))).map_err(failed)?;
        match entry.kind {
            Kind::Directory => match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) => folders.push((path.to_vec(), attributes)),
                // One that is there stays as it is.
                Err(Errno::EXIST) => drop(enter(&parent, name, None).map_err(failed)?),
                Err(cause) => return Err(failed(cause)),
            },
            Kind::File => {
                return self.file(&parent, name, &attributes, || tar.data(u64::MAX)).map_err(failed)?;
            }
            Kind::Symlink => {
                clear(&parent, name).map_err(failed)?;
                rustix::fs::symlinkat(&entry.link[..], &parent, name).map_err(failed)?;
                if let Some((uid, gid)) = attributes.owner {
                    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                    rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(failed)?;
                }
            }
            Kind::Hard => {
                let target = plain(&entry.link);
                let (folder, last) = split(&target);
                let from = enter(root, folder, None).map_err(failed)?;
                clear(&parent, name).map_err(failed)?;
                rustix::fs::linkat(&from, last, &parent, name, AtFlags::empty()).map_err(failed)?;
            }
            Kind::Fifo | Kind::Character | Kind::Block => {
                return Err(Error::Copy {
                    what: lossy(path),
                    why: format!("it is a pipe or device of `{}`, which no step can make", self.archive.display()),
                });
            }
        }
        Ok(())
    }

    fn made(&self, owner: Option<(u32, u32)>) -> Attributes {
        Attributes { owner: self.job.owner.and(owner), mode: 0o755, mtime: (0, 0) }
    }

    /// Two results: what the kernel says of the place, and what is wrong with the content.
    fn file(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        attributes: &Attributes,
        mut next: impl FnMut() -> Result<Option<Chunk>, Error>,
    ) -> Result<Result<(), Error>, Errno> {
        clear(parent, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
        let mut at = 0;
        loop {
            match next() {
                Ok(Some(chunk)) => {
                    write_at(&file, &chunk, at)?;
                    at += chunk.len() as u64;
                }
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
        let owner = attributes.owner.filter(|_| self.job.owned);
        dress(&file, &Attributes { owner, ..*attributes }).map(Ok)
    }
}

/// Gives a file its owner, mode and time.
fn dress(file: impl AsFd, Attributes { owner, mode, mtime: (tv_sec, nanoseconds) }: &Attributes) -> Result<(), Errno> {
    if let Some((uid, gid)) = owner {
        rustix::fs::fchown(&file, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))?;
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode))?;
    let time = Timespec { tv_sec: *tv_sec, tv_nsec: (*nanoseconds).into() };
    rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
}

/// Makes room for something that is no folder.
fn clear(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Opens a folder below another, without following a link. `made`: how one is made that is missing.
fn enter(root: &OwnedFd, path: &[u8], made: Option<Attributes>) -> Result<OwnedFd, Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open =
        |at: &OwnedFd, path: &[u8]| openat2(at, if path.is_empty() { b"." } else { path }, flags, Mode::empty(), how);
    match (open(root, path), made) {
        (Err(Errno::NOENT), Some(made)) => {
            let mut folder = open(root, b"")?;
            for part in path.split(|b| *b == b'/') {
                folder = match open(&folder, part) {
                    Err(Errno::NOENT) => {
                        rustix::fs::mkdirat(&folder, part, Mode::RWXU)?;
                        let new = open(&folder, part)?;
                        rustix::fs::fchmod(&new, Mode::from_raw_mode(made.mode))?;
                        if let Some((uid, gid)) = made.owner {
                            rustix::fs::fchown(&new, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
                        }
                        new
                    }
                    other => other?,
                };
            }
            Ok(folder)
        }
        (opened, _) => opened,
    }
}

/// Opens a folder of the image by its path, links of the image's followed; makes what is missing.
fn folder(path: &str, owner: Option<(u32, u32)>) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let shown = || std::path::PathBuf::from(path);
    let open = |path: &str| rustix::fs::openat(CWD, path, flags, Mode::empty());
    let failed = |cause| match cause {
        Errno::NOTDIR => Error::Copy { what: text(path), why: "what is no folder is on the way".into() },
        Errno::LOOP => Error::Copy { what: text(path), why: "links of the image lead in a circle".into() },
        cause => Error::io("open", shown(), cause),
    };
    match open(path) {
        Err(Errno::NOENT) => {}
        other => return other.map_err(failed),
    }
    let mut so_far = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        so_far.push('/');
        so_far.push_str(part);
        match rustix::fs::mkdirat(CWD, so_far.as_str(), Mode::RWXU) {
            Ok(()) => {
                let new = open(&so_far).map_err(failed)?;
                rustix::fs::fchmod(&new, Mode::from_raw_mode(0o755)).map_err(failed)?;
                if let Some((uid, gid)) = owner {
                    rustix::fs::fchown(&new, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(failed)?;
                }
            }
            Err(Errno::EXIST) => {}
            Err(cause) => return Err(failed(cause)),
        }
    }
    open(path).map_err(|cause| match cause {
        Errno::NOENT => Error::Copy { what: text(path), why: "a link of the image on the way leads nowhere".into() },
        cause => failed(cause),
    })
}
