//! What COPY takes: files of a build's folder, or of an image.
//!
//! Of a build's folder no path is followed that leaves it, whoever put which link where: the kernel keeps to it
//! (`openat2(2)`). Of an image this is done in a container that has nothing else.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::ignore::{Ignore, glob};
use crate::Error;
use crate::error::{shown, text};
use crate::tree::{Digest, MAX_PATH, Meta, join};

const MOST: usize = 1_000_000;
const BUFFER: usize = 256 << 10;
/// Of opening a path while the host is busy.
const MOST_TRIES: usize = 100_000;

/// Where files are taken from.
#[derive(Debug)]
pub struct Folder {
    root: Rc<OwnedFd>,
    path: PathBuf,
    /// `None`: it is the root of an image, in a container.
    ignore: Option<Ignore>,
}

/// Something that is copied.
#[derive(Debug, Clone)]
pub struct Picked {
    base: Rc<OwnedFd>,
    how: ResolveFlags,
    /// Below the base.
    path: Vec<u8>,
    /// Below the place that it is copied to; empty: the place itself.
    to: Vec<u8>,
    meta: Meta,
    /// A copy of the file, instead of it.
    frozen: Option<Rc<OwnedFd>>,
}

impl Folder {
    /// A build's folder.
    ///
    /// # Errors
    /// A folder that cannot be opened.
    pub fn open(path: &Path, ignore: Ignore) -> Result<Folder, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|c| Error::io("open", path, c))?;
        Ok(Folder { root: Rc::new(root), path: path.into(), ignore: Some(ignore) })
    }

    /// The image whose root is this container's.
    pub(super) fn of_container() -> Result<Folder, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, "/", flags, Mode::empty()).map_err(|c| Error::io("open", "/", c))?;
        Ok(Folder { root: Rc::new(root), path: "/".into(), ignore: None })
    }

    /// Links are followed in what the author names: within the folder, or within the image.
    fn how(&self) -> ResolveFlags {
        match self.ignore {
            Some(_) => ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
            // The root is the process's own: nothing has to keep to it.
            None => ResolveFlags::NO_MAGICLINKS,
        }
    }

    fn refused(&self, what: &str, why: impl Into<String>) -> Error {
        Error::Copy { what: text(what), why: why.into() }
    }

    /// What these sources take, in order.
    ///
    /// # Errors
    /// A source that is not there, leaves the folder, or is left out of it; and what cannot be read.
    pub fn pick(&self, sources: &[String]) -> Result<Vec<Picked>, Error> {
        let mut picked = Vec::new();
        for source in sources {
            let mut parts = Vec::new();
            for part in source.split('/').filter(|part| !matches!(*part, "" | ".")) {
                match part {
                    ".." if parts.pop().is_none() => {
                        return Err(self.refused(source, "it leads out of the build's folder"));
                    }
                    ".." => {}
                    part => parts.push(part),
                }
            }
            if parts.iter().any(|part| part.contains(['*', '?', '['])) {
                let found = self.matching(source, &parts)?;
                for path in &found {
                    self.source(source, path, &mut picked)?;
                }
                if found.is_empty() {
                    return Err(self.refused(source, "nothing there fits the pattern"));
                }
            } else {
                self.source(source, parts.join("/").as_bytes(), &mut picked)?;
            }
        }
        Ok(picked)
    }

    /// The paths that fit a pattern; links on the way there are not followed.
    fn matching(&self, source: &str, parts: &[&str]) -> Result<Vec<Vec<u8>>, Error> {
        let mut found: Vec<Vec<u8>> = vec![Vec::new()];
        for part in parts {
            let matcher = glob(part).map_err(|why| self.refused(source, why))?;
            let is_plain = !part.contains(['*', '?', '[']);
            let mut next = Vec::new();
            for folder in &found {
                let opened =
                    match open_below(&self.root, dot(folder), flags() | OFlags::DIRECTORY, Mode::empty(), self.how()) {
                        Ok(opened) => opened,
                        Err(Errno::NOENT | Errno::NOTDIR) => continue,
                        Err(cause) => return Err(Error::io("open", join(&self.path, folder), cause)),
                    };
                let names = match is_plain {
                    true => vec![part.as_bytes().to_vec()],
                    false => names(&opened).map_err(|cause| Error::io("list", join(&self.path, folder), cause))?,
                };
                let fits = |name: &Vec<u8>| is_plain || matcher.is_match(Path::new(std::ffi::OsStr::from_bytes(name)));
                next.extend(names.into_iter().filter(fits).map(|name| below(folder, &name)));
            }
            found = next;
        }
        let is_part = |path: &Vec<u8>| {
            let text = String::from_utf8_lossy(path);
            let is_there = rustix::fs::statat(&self.root, dot(path), AtFlags::SYMLINK_NOFOLLOW).is_ok();
            is_there && self.ignore.as_ref().is_none_or(|ignore| !ignore.leaves_out(&text))
        };
        found.retain(is_part);
        Ok(found)
    }

    /// Takes a file, or what is in a folder.
    fn source(&self, source: &str, path: &[u8], picked: &mut Vec<Picked>) -> Result<(), Error> {
        let opened = open_below(&self.root, dot(path), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), self.how());
        let opened = opened.map_err(|cause| match cause {
            Errno::NOENT | Errno::NOTDIR => self.refused(source, format!("it is not in {}", self.name())),
            Errno::XDEV => self.refused(source, "it is a link that leads out of the build's folder"),
            cause => Error::io("open", join(&self.path, path), cause),
        })?;
        let meta = Meta::from(rustix::fs::fstat(&opened).map_err(|c| Error::io("stat", join(&self.path, path), c))?);
        let real = self.real_path(&opened, path)?;
        if self.ignore.as_ref().is_some_and(|ignore| match meta.kind {
            FileType::Directory => ignore.leaves_all_out(&real),
            _ => ignore.leaves_out(&real),
        }) {
            return Err(self.refused(source, "it is left out by .dockerignore, or of ctst's own state"));
        }
        if meta.kind != FileType::Directory {
            let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
            let one = Picked {
                base: Rc::clone(&self.root),
                how: self.how(),
                path: path.into(),
                to: name.into(),
                meta,
                frozen: None,
            };
            return add(picked, one);
        }
        // By what was looked at: the path may lead elsewhere by now.
        let base = rustix::fs::openat(&opened, ".", flags() | OFlags::DIRECTORY, Mode::empty());
        let base = Rc::new(base.map_err(|cause| Error::io("open", join(&self.path, path), cause))?);
        self.below(&base, &real, &meta, picked)
    }

    fn name(&self) -> String {
        match self.ignore {
            Some(_) => format!("`{}`", shown(&self.path)),
            None => "the image".into(),
        }
    }

    /// Where something is that was reached by links, relative to the folder.
    fn real_path(&self, opened: &OwnedFd, path: &[u8]) -> Result<String, Error> {
        if self.ignore.is_none() {
            return Ok(String::from_utf8_lossy(path).into_owned());
        }
        let place = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let both = place(opened).and_then(|opened| Ok((opened, place(&self.root)?)));
        let (opened, root) = both.map_err(|e| Error::std("find", join(&self.path, path), &e))?;
        let relative = opened.strip_prefix(&root);
        let relative =
            relative.map_err(|_| self.refused(&String::from_utf8_lossy(path), "it was moved while it was read"))?;
        Ok(relative.to_string_lossy().into_owned())
    }

    /// Takes everything in a folder, in the order of names. `real`: its own place.
    fn below(&self, base: &Rc<OwnedFd>, real: &str, top: &Meta, picked: &mut Vec<Picked>) -> Result<(), Error> {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mut folders: Vec<(Vec<u8>, (u64, u64))> = vec![(Vec::new(), (top.dev, top.ino))];
        while let Some((folder, seen)) = folders.pop() {
            let place = || join(&self.path.join(real), &folder);
            let opened = open_below(base, dot(&folder), flags() | OFlags::DIRECTORY, Mode::empty(), how)
                .map_err(|cause| Error::io("open", place(), cause))?;
            // What stands there now may be something that is left out.
            let stat = rustix::fs::fstat(&opened).map_err(|cause| Error::io("stat", place(), cause))?;
            if (stat.st_dev, stat.st_ino) != seen {
                return Err(Error::Changed(place()));
            }
            let mut inner = Vec::new();
            for name in names(&opened).map_err(|cause| Error::io("list", place(), cause))? {
                let path = below(&folder, &name);
                if path.len() > MAX_PATH {
                    return Err(Error::Limit { path: place(), what: "paths below are longer than 4095 bytes" });
                }
                let stat = rustix::fs::statat(&opened, &*name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|cause| Error::io("stat", join(&self.path.join(real), &path), cause))?;
                let meta = Meta::from(stat);
                let whole = if real.is_empty() { String::new() } else { format!("{real}/") };
                let whole = format!("{whole}{}", String::from_utf8_lossy(&path));
                let is_folder = meta.kind == FileType::Directory;
                // In a container other file systems are the kernel's, or ours.
                if is_folder && self.ignore.is_none() && meta.dev != top.dev {
                    continue;
                }
                if let Some(ignore) = &self.ignore {
                    if is_folder && ignore.leaves_all_out(&whole) {
                        continue;
                    }
                    if ignore.leaves_out(&whole) {
                        if is_folder {
                            inner.push((path, (meta.dev, meta.ino)));
                        }
                        continue;
                    }
                }
                if is_folder {
                    inner.push((path.clone(), (meta.dev, meta.ino)));
                }
                add(picked, Picked { base: Rc::clone(base), how, path: path.clone(), to: path, meta, frozen: None })?;
            }
            folders.extend(inner.into_iter().rev());
        }
        Ok(())
    }
}

fn add(picked: &mut Vec<Picked>, one: Picked) -> Result<(), Error> {
    if picked.len() >= MOST {
        return Err(Error::Limit {
            path: join(Path::new(""), &one.path),
            what: "more than 1,000,000 files are copied",
        });
    }
    // Sockets and the like are nothing that an image holds.
    if matches!(one.meta.kind, FileType::Directory | FileType::RegularFile | FileType::Symlink) {
        picked.push(one);
    }
    Ok(())
}

/// `openat2(2)`, which answers EAGAIN to a `..` in a link while anything is renamed or mounted anywhere on the host. For somebody who does
/// nothing else it is still rare.
fn open_below(base: impl AsFd, path: &[u8], flags: OFlags, mode: Mode, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    for _ in 0..MOST_TRIES {
        match openat2(&base, path, flags, mode, how) {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

fn dot(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

fn below(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, name].join(&b'/') }
}

fn names(folder: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let entries = Dir::read_from(folder)?.map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_vec()));
    let mut names = entries.collect::<Result<Vec<_>, _>>()?;
    names.retain(|name| !matches!(name.as_slice(), b"." | b".."));
    names.sort_unstable();
    Ok(names)
}

/// Reads what was picked; writes it to `out` as a tar stream, if there is one. Returns the digest of names, modes, contents and links, and
/// with `owned` of owners, too.
///
/// # Errors
/// What cannot be read, or changes meanwhile; what cannot be written.
pub fn pour(picked: &[Picked], owned: bool, out: Option<&mut dyn Write>) -> Result<Digest, Error> {
    let mut hash = Sha256::new();
    let mut tar = out.map(tar::Builder::new);
    for one in picked {
        let place = join(Path::new(""), &one.path);
        let failed = |step: &'static str| {
            let place = place.clone();
            move |cause| Error::io(step, place, cause)
        };
        let written = |e: io::Error| Error::std("read", &place, &e);
        let (uid, gid) = if owned { (one.meta.uid, one.meta.gid) } else { (0, 0) };
        let mut header = tar::Header::new_gnu();
        header.set_mode(one.meta.mode);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(u64::try_from(one.meta.mtime.0).unwrap_or(0));
        header.set_size(0);
        let name = Path::new(std::ffi::OsStr::from_bytes(&one.to));
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(&one.to);
        // A file and what is in a folder go to other places.
        field(if one.is_named() { b"named" } else { b"within" });
        for number in [one.meta.mode, uid, gid] {
            field(&number.to_le_bytes());
        }
        match one.meta.kind {
            FileType::Directory => {
                field(b"directory");
                header.set_entry_type(tar::EntryType::Directory);
                if let Some(tar) = &mut tar {
                    tar.append_data(&mut header, name, io::empty()).map_err(written)?;
                }
            }
            FileType::Symlink => {
                // Below a folder that was opened, so that no other link is on the way.
                let (folder, last) = match one.path.iter().rposition(|b| *b == b'/') {
                    Some(at) => (&one.path[..at], &one.path[at + 1..]),
                    None => (&b""[..], &one.path[..]),
                };
                let folder = open_below(
                    &one.base,
                    dot(folder),
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                    one.how,
                );
                let folder = folder.map_err(failed("open"))?;
                let stat = rustix::fs::statat(&folder, last, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("stat"))?;
                if !one.is(&Meta::from(stat)) {
                    return Err(Error::Changed(place));
                }
                let target = rustix::fs::readlinkat(folder, last, Vec::new()).map_err(failed("read link"))?;
                field(b"link");
                field(target.as_bytes());
                header.set_entry_type(tar::EntryType::Symlink);
                if let Some(tar) = &mut tar {
                    tar.append_link(&mut header, name, Path::new(std::ffi::OsStr::from_bytes(target.as_bytes())))
                        .map_err(written)?;
                }
            }
            _ => {
                let (file, meta) = one.regular()?;
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(meta.size);
                let (mut content, mut left) = (Sha256::new(), meta.size);
                let mut reader =
                    Counting { file: std::fs::File::from(file).take(meta.size), hash: &mut content, left: &mut left };
                match &mut tar {
                    Some(tar) => tar.append_data(&mut header, name, &mut reader).map_err(written)?,
                    None => drop(io::copy(&mut reader, &mut io::sink()).map_err(written)?),
                }
                if left > 0 {
                    return Err(Error::Changed(place));
                }
                field(b"file");
                field(&meta.size.to_le_bytes());
                field(&content.finalize());
            }
        }
    }
    if let Some(tar) = tar {
        tar.into_inner().and_then(|out| out.flush()).map_err(|e| Error::std("write", "a copy", &e))?;
    }
    Ok(hash.finalize().into())
}

/// Whether all of it is one file that its author named.
#[must_use]
pub fn is_one_file(picked: &[Picked]) -> bool {
    matches!(picked, [one] if one.is_named())
}

struct Counting<'a> {
    file: io::Take<std::fs::File>,
    hash: &'a mut Sha256,
    left: &'a mut u64,
}

impl Read for Counting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(BUFFER);
        let count = self.file.read(&mut buffer[..most])?;
        self.hash.update(&buffer[..count]);
        *self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

impl Picked {
    /// Below the place that it is copied to.
    #[must_use]
    pub fn to(&self) -> &[u8] {
        &self.to
    }

    /// Whether this is what was picked: a path may lead elsewhere by now.
    fn is(&self, found: &Meta) -> bool {
        (found.kind, found.dev, found.ino) == (self.meta.kind, self.meta.dev, self.meta.ino)
    }

    /// The file, of the size that it had.
    fn regular(&self) -> Result<(OwnedFd, Meta), Error> {
        let place = || join(Path::new(""), &self.path);
        if let Some(frozen) = &self.frozen {
            // A description of its own, at its beginning.
            let file = std::fs::File::open(format!("/proc/self/fd/{}", frozen.as_raw_fd()));
            return file.map(|file| (file.into(), self.meta)).map_err(|e| Error::std("open", place(), &e));
        }
        let opened = open_below(&self.base, dot(&self.path), flags(), Mode::empty(), self.how);
        let file = opened.map_err(|cause| Error::io("open", place(), cause))?;
        let meta = Meta::from(rustix::fs::fstat(&file).map_err(|cause| Error::io("stat", place(), cause))?);
        match self.is(&meta) && meta.size == self.meta.size {
            true => Ok((file, meta)),
            false => Err(Error::Changed(place())),
        }
    }

    /// The file itself, where it is one, as it was frozen.
    ///
    /// # Errors
    /// One that cannot be opened.
    pub fn open(&self) -> Result<Option<OwnedFd>, Error> {
        match self.meta.kind {
            FileType::RegularFile => self.regular().map(|(file, _)| Some(file)),
            _ => Ok(None),
        }
    }

    /// Copies a file to `to`, which is what is read from now on: nobody else can write it.
    ///
    /// # Errors
    /// What cannot be read, or changes meanwhile; what cannot be written.
    pub fn freeze(&mut self, mut to: std::fs::File) -> Result<(), Error> {
        if self.meta.kind != FileType::RegularFile {
            return Ok(());
        }
        let place = || join(Path::new(""), &self.path);
        let (file, _) = self.regular()?;
        let copied = io::copy(&mut std::fs::File::from(file).take(self.meta.size), &mut to);
        match copied.map_err(|e| Error::std("copy", place(), &e))? == self.meta.size {
            true => self.frozen = Some(Rc::new(to.into())),
            false => return Err(Error::Changed(place())),
        }
        Ok(())
    }

    /// Whether the author named it, and not a folder that it is in.
    #[must_use]
    pub fn is_named(&self) -> bool {
        !self.how.contains(ResolveFlags::NO_SYMLINKS)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(folder: &Folder, sources: &[&str]) -> Result<Vec<String>, String> {
        let sources: Vec<String> = sources.iter().map(|source| (*source).to_owned()).collect();
        let picked = folder.pick(&sources).map_err(|e| e.to_string())?;
        Ok(picked.iter().map(|one| String::from_utf8_lossy(&one.to).into_owned()).collect())
    }

    #[test]
    fn takes_what_is_named_and_leaves_out_what_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("src/deep")).unwrap();
        fs::create_dir_all(root.join(".containust/secrets")).unwrap();
        for file in ["a.txt", "b.txt", "src/c.rs", "src/deep/d.rs", "src/x.log", ".containust/secrets/s"] {
            fs::write(root.join(file), file).unwrap();
        }
        symlink("a.txt", root.join("link")).unwrap();
        symlink("src", root.join("there")).unwrap();
        symlink("/etc/passwd", root.join("out")).unwrap();
        symlink("../..", root.join("up")).unwrap();
        symlink(".containust", root.join("state")).unwrap();
        let folder = Folder::open(root, Ignore::read("**/*.log\nb.txt\n").unwrap()).unwrap();
        let all = |sources: &[&str]| names(&folder, sources);
        assert_eq!(all(&["a.txt", "/src/"]).unwrap(), ["a.txt", "c.rs", "deep", "deep/d.rs"]);
        assert_eq!(all(&["*.txt"]).unwrap(), ["a.txt"]);
        assert_eq!(all(&["s*/deep"]).unwrap(), ["d.rs"]);
        assert_eq!(all(&["src/../link"]).unwrap(), ["link"]);
        assert_eq!(all(&["there"]).unwrap(), ["c.rs", "deep", "deep/d.rs"]);
        assert_eq!(
            all(&["."]).unwrap().iter().filter(|name| name.contains("containust") || name.contains("b.txt")).count(),
            0
        );
        for bad in [
            "../x",
            "b.txt",
            "none",
            "none*",
            "out",
            "up",
            "state",
            "state/secrets/s",
            ".containust/secrets/s",
            "src/x.log",
            "src/[",
        ] {
            assert!(all(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_poured_is_what_was_picked() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "text").unwrap();
        symlink("f", dir.path().join("d/l")).unwrap();
        let folder = Folder::open(dir.path(), Ignore::default()).unwrap();
        let picked = || folder.pick(&[".".into()]).unwrap();
        let mut out = Vec::new();
        let digest = pour(&picked(), false, Some(&mut out)).unwrap();
        assert_eq!(pour(&picked(), false, None).unwrap(), digest);
        let mut archive = tar::Archive::new(out.as_slice());
        let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [Path::new("d"), Path::new("d/f"), Path::new("d/l")]);
        fs::write(dir.path().join("d/f"), "test").unwrap();
        assert_ne!(pour(&picked(), false, None).unwrap(), digest);
        let old = picked();
        fs::write(dir.path().join("d/f"), "longer").unwrap();
        assert!(matches!(pour(&old, false, None), Err(Error::Changed(_))));
    }

    #[test]
    fn a_host_that_is_busy_keeps_nobody_from_a_link() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("file"), "text").unwrap();
        symlink("../../file", dir.path().join("a/b/link")).unwrap();
        let folder = Folder::open(dir.path(), Ignore::default()).unwrap();
        let busy = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, other) = (dir.path().join("one"), dir.path().join("other"));
                fs::write(&one, "").unwrap();
                while busy.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::rename(&one, &other).and_then(|()| fs::rename(&other, &one)).unwrap();
                }
            });
            let found = (0..2000).all(|_| names(&folder, &["a/b/link"]).is_ok_and(|names| names == ["link"]));
            busy.store(false, std::sync::atomic::Ordering::Relaxed);
            assert!(found);
        });
    }
}
