//! Copying files into and out of a container that runs.
//!
//! The part inside is done by this executable, started by EXEC from a copy in memory: so it has the container's root and no
//! right that the container lacks, and no path of a container is ever looked up outside of it. What comes out is a stream
//! that the container may have made up, and is unpacked without following anything in it.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::thread::JoinHandle;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Timespec, Timestamps, flock, fstat,
    openat2,
};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketType, shutdown};

use crate::error::{During, Error, Result};
use crate::ipc::client::Client;
use crate::ipc::fdpass;
use crate::project::Project;
use crate::run::ExecRequest;
use crate::shim;
use crate::workers;

/// More of what a worker says is not shown.
const MAX_WORDS: u64 = 4096;
/// The longest path in a stream that we write; Linux opens no longer ones.
const MAX_NAME: usize = 4096;
/// The largest entry of a stream that only says more of another one.
const MAX_EXTENSION: u64 = 64 << 10;
/// The most memory for folders of a stream that are not closed yet.
const MAX_REMEMBERED: usize = 64 << 20;
/// The most of a file that says it has no size.
const MAX_UNSIZED: u64 = 16 << 20;
/// So many zero bytes end a tar stream.
const END: usize = 1024;
/// How folders for what arrives are called, before six random characters.
const STAGING: &str = ".ctst-cp-";
const STAGING_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const SPARSE: &str = "read the stream: a sparse file is in it; make it without --sparse";

/// The end of a copy that is on the host.
#[derive(Debug)]
pub enum Host<'a> {
    /// A file or folder.
    Path(&'a Path),
    /// A tar stream.
    Stream,
}

/// Copies `path` of a component that runs to the host: into `to` where that is a folder, else as `to`. A stream goes to
/// standard output. Files belong to the caller, links are copied as links. Returns how many devices, FIFOs and sockets were
/// left out.
///
/// # Errors
/// [`Error::Invalid`] with what the part inside says, [`Error::NotRunning`], and [`Error::Io`] for the host's side.
pub fn fetch(project: &Project, component: &str, path: &str, to: &Host<'_>) -> Result<usize> {
    let (ours, theirs) = pair()?;
    let running = Running::start(project, component, vec!["send".into(), path.into()], &ours, theirs)?;
    let reader = File::from(ours.try_clone().during(|| format!("copy {path} of {component}"))?);
    let name = Path::new(path).file_name().unwrap_or(OsStr::new("root"));
    let done = match to {
        Host::Stream => io::copy(&mut { reader }, &mut io::stdout().lock()).map(|_| None).map_err(|e| e.to_string()),
        Host::Path(to) => deliver(reader, to, name).map(Some),
    };
    // It may be writing still, where we gave up.
    shutdown(&ours, Shutdown::Both).ok();
    // In its place is only what the part inside says is all.
    let ended = running.finish(component, path);
    match done {
        // What it says about that is only that we did not listen any more.
        Err(problem) if ended.as_ref().is_err_and(|error| error.to_string().contains(&broken_pipe())) => {
            Err(refused(component, path, &problem))
        }
        done => {
            ended?;
            let settled = done.and_then(|arrival| arrival.map_or(Ok(0), Arrival::settle));
            settled.map_err(|problem| refused(component, path, &problem))
        }
    }
}

/// Copies from the host into a component that runs: into `path` where that is a folder, else as `path`. A stream comes from
/// standard input, and what is in it goes into the folder `path`. Files belong to root inside.
///
/// # Errors
/// As [`fetch`].
pub fn put(project: &Project, from: &Host<'_>, component: &str, path: &str) -> Result<()> {
    let (ours, theirs) = pair()?;
    let mut words = vec![OsString::from("unpack"), path.into()];
    let mut name = OsString::from("root");
    if let Host::Path(from) = from {
        // Before anything is started. The name of `.` is that of the folder.
        let whole = from.canonicalize().during(|| format!("copy {}", from.display()))?;
        name = from.file_name().or(whole.file_name()).map_or(name, OsStr::to_owned);
        words = vec!["receive".into(), path.into(), name.clone()];
    }
    let running = Running::start(project, component, words, &ours, theirs)?;
    let mut writer = File::from(ours.try_clone().during(|| format!("copy to {path} of {component}"))?);
    let sent = match from {
        Host::Stream => io::copy(&mut io::stdin().lock(), &mut writer).map(drop),
        Host::Path(from) => pack(from, &name, writer),
    };
    // Even if somebody in the container has got hold of a copy of our end. The part inside may have ended already.
    shutdown(&ours, Shutdown::Write).ok();
    let ended = running.finish(component, path);
    match sent {
        // It says why it does not listen any more.
        Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) && ended.is_err() => ended,
        sent => sent.during(|| format!("copy to {path} of {component}")).and(ended),
    }
}

/// A stream that nobody else can open by its place in `/proc`, as a pipe can be, so that it ends when we say so.
fn pair() -> Result<(OwnedFd, OwnedFd)> {
    fdpass::pair(SocketType::STREAM).during(|| "make a socket pair".to_owned())
}

fn broken_pipe() -> String {
    io::Error::from(Errno::PIPE).to_string()
}

fn refused(component: &str, path: &str, problem: &str) -> Error {
    Error::Invalid { component: component.to_owned(), problem: format!("copy {path}: {problem}") }
}

/// The part inside.
struct Running {
    ended: JoinHandle<Result<i32>>,
    words: OwnedFd,
}

impl Running {
    /// Starts it with its end of the data as standard output, whichever way the data goes: its standard input is the
    /// program. When it has ended, nothing more comes out of `ours` than is in it, and nothing goes in.
    fn start(
        project: &Project,
        component: &str,
        words: Vec<OsString>,
        ours: &OwnedFd,
        theirs: OwnedFd,
    ) -> Result<Self> {
        let words: Result<Vec<String>, OsString> = words.into_iter().map(OsString::into_string).collect();
        let words = words.map_err(|word| {
            // Requests are JSON.
            refused(component, &word.display().to_string(), "its name is not UTF-8; copy the folder that it is in")
        })?;
        let client = Client::connect(project)?;
        let Some(client) = client else { return Err(Error::NotRunning { project: project.folder().to_owned() }) };
        let exe = std::env::current_exe().during(|| "find the running executable".to_owned())?;
        let program = shim::in_memory(&exe)?;
        let (errors, errors_end) = pair()?;
        let status = project.status()?;
        // Where there is but one id, there may be no root.
        let single = status.iter().any(|s| s.component == component && s.ids.starts_with("single"));
        let argv = ["/proc/self/fd/0".to_owned(), workers::VERB.to_owned()].into_iter();
        let request = ExecRequest {
            component: component.to_owned(),
            argv: argv.chain(words).collect(),
            env: Vec::new(),
            user: (!single).then(|| "0".to_owned()),
            workdir: Some("/".to_owned()),
            tty: None,
        };
        let mut session = client.exec(&request, [program.as_fd(), theirs.as_fd(), errors_end.as_fd()])?;
        let copy = |fd: &OwnedFd| fd.try_clone().during(|| "copy a descriptor".to_owned());
        let streams = [copy(ours)?, copy(&errors)?];
        let watch = move || {
            let code = session.wait();
            // Whoever in the container holds an end of these must not make us wait for him.
            for stream in streams {
                shutdown(&stream, Shutdown::Both).ok();
            }
            code
        };
        let ended = std::thread::Builder::new().name("watch".into()).spawn(watch);
        Ok(Self { ended: ended.during(|| "start a thread".to_owned())?, words: errors })
    }

    fn finish(self, component: &str, path: &str) -> Result<()> {
        let mut words = Vec::new();
        File::from(self.words).take(MAX_WORDS).read_to_end(&mut words).during(|| format!("copy {path}"))?;
        match self.ended.join().unwrap_or_else(|_| Err(Error::protocol("the thread that waits has failed")))? {
            0 => Ok(()),
            code => {
                let words = String::from_utf8_lossy(&words).trim().to_owned();
                let problem = if words.is_empty() { format!("the part inside ended with {code}") } else { words };
                Err(refused(component, path, &problem))
            }
        }
    }
}

/// The part inside. Returns what went wrong.
pub(crate) fn inside(arguments: &[OsString]) -> Option<Result<(), String>> {
    let stream = || {
        let stream = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3);
        stream.map(File::from).map_err(|e| format!("use the stream: {e}"))
    };
    Some(match arguments {
        [verb, path] if verb == "send" => stream().and_then(|stream| {
            let path = Path::new(path);
            pack(path, path.file_name().unwrap_or(OsStr::new("root")), stream).map_err(|e| e.to_string())
        }),
        [verb, path, name] if verb == "receive" => {
            stream().and_then(|stream| deliver(stream, Path::new(path), name)?.settle().map(drop))
        }
        [verb, path] if verb == "unpack" => stream().and_then(|stream| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = openat2(CWD, Path::new(path), flags, Mode::empty(), ResolveFlags::empty());
            extract(stream, &folder.map_err(|e| format!("open the folder: {}", io::Error::from(e)))?, false).map(drop)
        }),
        _ => return None,
    })
}

/// Writes a tar stream of `path`, called `name` in it. Links are not followed, and no folder is looked up twice: where
/// somebody else can write, as a container in its volume, a link put in its place meanwhile leads nowhere.
fn pack(path: &Path, name: &OsStr, to: File) -> io::Result<()> {
    let mut tar = tar::Builder::new(Gate { to: BufWriter::new(to), shut: false });
    if let Err(error) = add(&mut tar, CWD, path.as_os_str(), Path::new(name)) {
        // Dropped, it would write the end mark, and half of a folder would pass for all of it.
        tar.get_mut().shut = true;
        return Err(error);
    }
    tar.into_inner()?.to.flush()
}

/// Lets nothing more through once it is shut.
struct Gate {
    to: BufWriter<File>,
    shut: bool,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shut { Err(io::ErrorKind::BrokenPipe.into()) } else { self.to.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Adds the entry `name` of `parent`, with what is below it, as `path`.
fn add(tar: &mut tar::Builder<Gate>, parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> io::Result<()> {
    let named =
        |e: io::Error| io::Error::new(e.kind(), format!("read {}: {e}", path.display().to_string().escape_debug()));
    let failed = |e: Errno| named(e.into());
    if path.as_os_str().len() > MAX_NAME {
        return Err(named(Errno::NAMETOOLONG.into()));
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let told = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(told.st_mode & 0o7777);
    header.set_mtime(u64::try_from(told.st_mtime).unwrap_or(0));
    match FileType::from_raw_mode(told.st_mode) {
        FileType::Directory => {
            let folder = rustix::fs::openat(parent, name, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, path, io::empty())?;
            let entries = Dir::read_from(&folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed)?;
            for entry in entries {
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name != "." && name != ".." {
                    add(tar, folder.as_fd(), name, &path.join(name))?;
                }
            }
            Ok(())
        }
        FileType::RegularFile => {
            let file = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed)?;
            let stat = rustix::fs::fstat(&file).map_err(failed)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(named(io::Error::other("it was replaced while it was read")));
            }
            let mut file = File::from(file);
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            header.set_entry_type(tar::EntryType::Regular);
            if size > 0 {
                header.set_size(size);
                return tar.append_data(&mut header, path, Exactly { file, left: size }).map_err(named);
            }
            // Files of procfs have no size and yet a content.
            let mut content = Vec::new();
            (&mut file).take(MAX_UNSIZED + 1).read_to_end(&mut content).map_err(named)?;
            if content.len() as u64 > MAX_UNSIZED {
                return Err(named(io::Error::other("it does not say how large it is, and does not end")));
            }
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, content.as_slice())
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(failed)?;
            header.set_entry_type(tar::EntryType::Symlink);
            // As it stands: the library would put in order what it takes for a path.
            if header.set_link_name_literal(target.to_bytes()).is_ok() {
                return tar.append_data(&mut header, path, io::empty());
            }
            tar.append_link(&mut header, path, OsStr::from_bytes(target.to_bytes()))
        }
        // Counted by the reader, and left out. Sockets have no type of their own.
        _ => {
            header.set_entry_type(tar::EntryType::Fifo);
            tar.append_data(&mut header, path, io::empty())
        }
    }
}

/// As many bytes of a file as its entry says: it may grow or shrink meanwhile.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&self.file).take(self.left).read(buffer)?;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// What has arrived, in a folder of its own beside its place. All by descriptors: the place may be in a container's
/// volume, and the container may put links where we made folders. Dropped, it is removed.
struct Arrival {
    parent: OwnedFd,
    staging: OwnedFd,
    path: tempfile::TempDir,
    /// The one entry.
    entry: OsString,
    top: Option<Folder>,
    place: PathBuf,
    left_out: usize,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // Whatever the modes in it; what remains, TempDir tries.
        containust_image::remove_tree(self.path.path()).ok();
    }
}

impl Arrival {
    /// Puts it into its place. Returns how many entries were left out.
    fn settle(self) -> Result<usize, String> {
        let name = self.place.file_name().unwrap_or_default();
        rustix::fs::renameat(&self.staging, &self.entry, &self.parent, name)
            .map_err(|e| format!("put it in place as {}: {}", self.place.display(), io::Error::from(e)))?;
        // Not before: who is not root cannot move a folder that he may not write.
        if let Some(top) = &self.top {
            top.close().map_err(|e| format!("finish {}: {}", self.place.display(), io::Error::from(e)))?;
        }
        Ok(self.left_out)
    }
}

/// A folder whose mode and times are set when all is in it.
struct Folder {
    fd: OwnedFd,
    mode: Mode,
    times: Timestamps,
}

impl Folder {
    fn close(&self) -> Result<(), Errno> {
        rustix::fs::fchmod(&self.fd, self.mode).and_then(|()| rustix::fs::futimens(&self.fd, &self.times))
    }
}

/// Unpacks a stream of [`pack`], with one file or folder, for the place `to`, or `name` in the folder `to`.
fn deliver(input: File, to: &Path, name: &OsStr) -> Result<Arrival, String> {
    let at = |what: &str, path: &Path, e: io::Error| format!("{what} {}: {e}", path.display());
    let place = if to.is_dir() { to.join(name) } else { to.to_owned() };
    let parent = match place.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) if place.file_name().is_some() => parent,
        _ => return Err("give the place a name".to_owned()),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent_fd =
        rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(|e| at("write to", parent, e.into()))?;
    sweep(&parent_fd, parent);
    let (path, staging) = stage(&parent_fd, parent).map_err(|e| at("write to", parent, e))?;
    let mut arrival =
        Arrival { parent: parent_fd, staging, path, entry: OsString::new(), top: None, place, left_out: 0 };
    let ended = Cell::new(0);
    (arrival.left_out, arrival.top) = extract(Tail { input, zeros: &ended }, &arrival.staging, true)?;
    if ended.get() < END {
        return Err("the stream was cut off".to_owned());
    }
    let entries = Dir::read_from(&arrival.staging).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|e| at("list", arrival.path.path(), e.into()))?;
    let mut entries =
        entries.iter().map(|entry| entry.file_name().to_bytes()).filter(|name| !matches!(*name, b"." | b".."));
    let (Some(entry), None) = (entries.next(), entries.next()) else {
        return Err("it is not one file or folder (a device, FIFO or socket is not copied)".to_owned());
    };
    arrival.entry = OsStr::from_bytes(entry).to_owned();
    Ok(arrival)
}

/// A folder for what arrives, locked as long as we are at it.
fn stage(parent_fd: &OwnedFd, parent: &Path) -> io::Result<(tempfile::TempDir, OwnedFd)> {
    loop {
        // Without the name of ours that tempfile adds.
        let bare = |e: io::Error| {
            io::Error::new(e.kind(), e.to_string().split(" at path ").next().unwrap_or_default().to_owned())
        };
        let path = tempfile::Builder::new().prefix(STAGING).tempdir_in(parent).map_err(bare)?;
        let name = path.path().file_name().unwrap_or_default().to_owned();
        let open = || rustix::fs::openat(parent_fd, &*name, STAGING_FLAGS, Mode::empty());
        let staging = match open() {
            Ok(staging) => staging,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        // Refused by some network file systems, where a killed copy leaves its folder.
        flock(&staging, FlockOperation::LockExclusive).ok();
        // Another copy may have taken it for left behind before it was locked.
        match open().and_then(|again| Ok(fstat(&again)?.st_ino == fstat(&staging)?.st_ino)) {
            Ok(true) => return Ok((path, staging)),
            Ok(false) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Removes what copies to this folder left that were killed.
fn sweep(parent_fd: &OwnedFd, parent: &Path) {
    let Ok(entries) = Dir::read_from(parent_fd) else { return };
    for entry in entries.flatten() {
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let random = name.as_bytes().strip_prefix(STAGING.as_bytes());
        if !random.is_some_and(|random| random.len() == 6 && random.iter().all(u8::is_ascii_alphanumeric)) {
            continue;
        }
        let Ok(staging) = rustix::fs::openat(parent_fd, name, STAGING_FLAGS, Mode::empty()) else { continue };
        let own = fstat(&staging).is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw());
        if own && flock(&staging, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // What cannot be removed harms nobody.
            containust_image::remove_tree(&parent.join(name)).ok();
        }
    }
}

/// Counts the zero bytes at the end of what was read: a stream that has [`END`] of them is whole.
struct Tail<'a> {
    input: File,
    zeros: &'a Cell<usize>,
}

impl Read for Tail<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        let zeros = buffer[..count].iter().rev().take_while(|byte| **byte == 0).count();
        self.zeros.set(if zeros == count { self.zeros.get().saturating_add(count) } else { zeros });
        Ok(count)
    }
}

/// Unpacks a stream below `root`. The kernel keeps everything in there: no link is followed on any way, whether the stream
/// or somebody else made it. Returns how many entries are of a kind that is not copied, and with `hold` a folder at the
/// top, which is not closed yet.
fn extract(input: impl Read, root: &OwnedFd, hold: bool) -> Result<(usize, Option<Folder>), String> {
    let mut left_out = 0;
    let mut folders = Vec::new();
    let mut remembered = 0;
    // Of the entries before one that say more of it.
    let (mut long_name, mut long_link) = (None, None);
    let mut input = BufReader::new(input);
    let mut archive = tar::Archive::new(&mut input);
    // Raw: the library would take names of any length into memory.
    for entry in archive.entries().map_err(|e| e.to_string())?.raw(true) {
        let mut entry = entry.map_err(|e| format!("read the stream: {e}"))?;
        match entry.header().entry_type() {
            tar::EntryType::GNULongName => {
                long_name = Some(until_nul(short(&mut entry)?));
                continue;
            }
            tar::EntryType::GNULongLink => {
                long_link = Some(until_nul(short(&mut entry)?));
                continue;
            }
            tar::EntryType::XHeader => {
                let content = short(&mut entry)?;
                for extension in tar::PaxExtensions::new(&content) {
                    let extension = extension.map_err(|e| format!("read the stream: {e}"))?;
                    match extension.key_bytes() {
                        b"path" => long_name = Some(extension.value_bytes().to_vec()),
                        b"linkpath" => long_link = Some(extension.value_bytes().to_vec()),
                        b"size" => return Err("read the stream: a file of 8 GiB or more in the PAX format".to_owned()),
                        key if key.starts_with(b"GNU.sparse") => return Err(SPARSE.to_owned()),
                        _ => {}
                    }
                }
                continue;
            }
            tar::EntryType::XGlobalHeader => continue,
            tar::EntryType::GNUSparse => return Err(SPARSE.to_owned()),
            _ => {}
        }
        let own = |bytes: Vec<u8>| OsString::from_vec(bytes);
        let link = long_link.take().map(own).or_else(|| entry.header().link_name_bytes().map(|b| own(b.into_owned())));
        let path = long_name.take().unwrap_or_else(|| entry.header().path_bytes().into_owned());
        let path = PathBuf::from(own(path));
        let shown = path.display().to_string();
        let failed = |e: io::Error| format!("write {}: {e}", shown.escape_debug());
        let (parents, name) = split(&path)?;
        // Of `./`, the folder itself.
        let Some(name) = name else { continue };
        let parent = enter(root, &parents).map_err(|e| failed(e.into()))?;
        let header = entry.header();
        let mode = Mode::from_raw_mode(header.mode().unwrap_or(0o600) & 0o777);
        let times = times(header.mtime().unwrap_or(0));
        let clear = |parent: &OwnedFd| match rustix::fs::unlinkat(parent, &*name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(failed(e.into())),
        };
        match header.entry_type() {
            tar::EntryType::Directory => {
                match rustix::fs::mkdirat(&parent, &*name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(failed(e.into())),
                }
                remembered += path.as_os_str().len() + size_of::<(PathBuf, Mode, Timestamps)>();
                if remembered > MAX_REMEMBERED {
                    return Err("read the stream: it has too many folders".to_owned());
                }
                // Closed only when everything is in it.
                folders.push((path, mode, times));
            }
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                clear(&parent)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, &*name, flags, Mode::RUSR | Mode::WUSR);
                let mut file = File::from(file.map_err(|e| failed(e.into()))?);
                io::copy(&mut entry, &mut file).map_err(failed)?;
                let done = rustix::fs::fchmod(&file, mode).and_then(|()| rustix::fs::futimens(&file, &times));
                done.map_err(|e| failed(e.into()))?;
            }
            tar::EntryType::Symlink => {
                clear(&parent)?;
                rustix::fs::symlinkat(link.unwrap_or_default(), &parent, &*name).map_err(|e| failed(e.into()))?;
            }
            tar::EntryType::Link => {
                let (target_parents, target_name) = split(Path::new(&link.unwrap_or_default()))?;
                let target_name = target_name.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
                let from = enter(root, &target_parents).map_err(|e| failed(e.into()))?;
                clear(&parent)?;
                let linked = rustix::fs::linkat(&from, &*target_name, &parent, &*name, AtFlags::empty());
                linked.map_err(|e| failed(e.into()))?;
            }
            _ => left_out += 1,
        }
    }
    // Whoever writes the stream writes all of it: what fills up its last block, too.
    io::copy(&mut input, &mut io::sink()).map_err(|e| format!("read the stream: {e}"))?;
    let mut top = None;
    for (path, mode, times) in folders.into_iter().rev() {
        let (mut parts, name) = split(&path)?;
        let at_top = parts.is_empty();
        parts.extend(name);
        let done = enter(root, &parts).map(|fd| Folder { fd, mode, times }).and_then(|folder| {
            if hold && at_top {
                top = Some(folder);
                return Ok(());
            }
            folder.close()
        });
        done.map_err(|e| format!("finish {}: {}", path.display().to_string().escape_debug(), io::Error::from(e)))?;
    }
    Ok((left_out, top))
}

/// The content of an entry that says more of another.
fn short(entry: &mut impl Read) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    entry.take(MAX_EXTENSION + 1).read_to_end(&mut content).map_err(|e| format!("read the stream: {e}"))?;
    if content.len() as u64 > MAX_EXTENSION {
        return Err(format!("read the stream: a name in it is longer than {MAX_EXTENSION} bytes"));
    }
    Ok(content)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}

/// Folders and name of a path of a stream; no name: it is the root itself.
fn split(path: &Path) -> Result<(Vec<OsString>, Option<OsString>), String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_owned()),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(format!("{} leads out of the stream's folder", path.display().to_string().escape_debug()));
            }
        }
    }
    let name = parts.pop();
    Ok((parts, name))
}

/// Opens a folder below `root`, which is made where it is missing.
fn enter(root: &OwnedFd, parts: &[OsString]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if parts.is_empty() { PathBuf::from(".") } else { parts.iter().collect() };
    match openat2(root, &path, flags, Mode::empty(), how) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let mut folder = openat2(root, ".", flags, Mode::empty(), how)?;
    for part in parts {
        match rustix::fs::mkdirat(&folder, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        folder = openat2(&folder, part.as_os_str(), flags, Mode::empty(), how)?;
    }
    Ok(folder)
}

fn times(mtime: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn stream(build: impl FnOnce(&mut tar::Builder<&File>)) -> File {
        let file = tempfile::tempfile().unwrap();
        let mut tar = tar::Builder::new(&file);
        build(&mut tar);
        tar.finish().unwrap();
        drop(tar);
        io::Seek::rewind(&mut &file).unwrap();
        file
    }

    /// An entry whose name the tar library would not write.
    fn entry(tar: &mut tar::Builder<&File>, name: &str, kind: tar::EntryType, link: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        let put = |field: &mut [u8], text: &str| field[..text.len()].copy_from_slice(text.as_bytes());
        put(&mut header.as_gnu_mut().unwrap().name, name);
        put(&mut header.as_gnu_mut().unwrap().linkname, link);
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }

    fn deliver(input: File, to: &Path, name: &OsStr) -> Result<usize, String> {
        super::deliver(input, to, name)?.settle()
    }

    fn extract(input: File, root: &OwnedFd) -> Result<usize, String> {
        super::extract(input, root, false).map(|(left_out, _)| left_out)
    }

    #[test]
    fn a_folder_arrives_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::create_dir_all(from.join("a")).unwrap();
        std::fs::write(from.join("a/file"), "text").unwrap();
        std::fs::set_permissions(from.join("a/file"), PermissionsExt::from_mode(0o640)).unwrap();
        std::fs::set_permissions(from.join("a"), PermissionsExt::from_mode(0o500)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        symlink("a//b/./c", from.join("odd")).unwrap();
        symlink("long/".repeat(60), from.join("long")).unwrap();
        let packed = tempfile::tempfile().unwrap();
        pack(&from, OsStr::new("from"), packed.try_clone().unwrap()).unwrap();
        let again = || {
            io::Seek::rewind(&mut &packed).unwrap();
            packed.try_clone().unwrap()
        };
        assert_eq!(deliver(again(), &dir.path().join("to"), OsStr::new("x")), Ok(0));
        assert_eq!(std::fs::read(dir.path().join("to/a/file")).unwrap(), b"text");
        let mode = |path: &str| dir.path().join(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("to/a/file"), mode("to/a")), (0o640, 0o500));
        let link = |name: &str| std::fs::read_link(dir.path().join("to").join(name)).unwrap().into_os_string();
        assert_eq!((link("link"), link("odd")), ("/etc/passwd".into(), "a//b/./c".into()));
        assert_eq!(link("long"), OsString::from("long/".repeat(60)));
        assert_eq!(deliver(again(), &dir.path().join("to"), OsStr::new("x")), Ok(0));
        assert!(dir.path().join("to/x/a/file").exists());
        assert!(deliver(again(), &dir.path().join("to"), OsStr::new("x")).is_err(), "it is there already");
        assert!(deliver(again(), &dir.path().join("none/to"), OsStr::new("x")).is_err());
        let left = std::fs::read_dir(dir.path()).unwrap().flatten().filter(|e| e.file_name().as_bytes()[0] == b'.');
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn nothing_leaves_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let link = outside.to_str().unwrap().to_owned();
        let unpack = |file: File| {
            let to = tempfile::tempdir_in(dir.path()).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::openat(CWD, to.path(), flags, Mode::empty()).unwrap();
            let result = extract(file, &root);
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
            (result, to)
        };
        use tar::EntryType as Kind;
        for name in ["../outside/x", "/etc/x", "a/../../outside/x"] {
            assert!(unpack(stream(|tar| entry(tar, name, Kind::Regular, "", b"x"))).0.is_err(), "{name}");
        }
        let through = stream(|tar| {
            entry(tar, "a", Kind::Symlink, &link, b"");
            entry(tar, "a/x", Kind::Regular, "", b"x");
        });
        assert!(unpack(through).0.is_err());
        let folder = stream(|tar| {
            entry(tar, "a", Kind::Symlink, &link, b"");
            entry(tar, "a", Kind::Directory, "", b"");
        });
        assert!(unpack(folder).0.is_err());
        let hard = stream(|tar| entry(tar, "a", Kind::Link, "../../outside", b""));
        assert!(unpack(hard).0.is_err());
        let over = stream(|tar| {
            entry(tar, "a", Kind::Symlink, &format!("{link}/x"), b"");
            entry(tar, "a", Kind::Regular, "", b"mine");
            entry(tar, "fifo", Kind::Fifo, "", b"");
            entry(tar, "device", Kind::Char, "", b"");
        });
        let (result, to) = unpack(over);
        assert_eq!(result, Ok(2));
        assert_eq!(std::fs::read(to.path().join("a")).unwrap(), b"mine");
        let mode = to.path().join("a").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "no setuid");
    }

    #[test]
    fn names_take_little_memory() {
        let to = tempfile::tempdir().unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, to.path(), flags, Mode::empty()).unwrap();
        use tar::EntryType as Kind;
        for kind in [Kind::GNULongName, Kind::GNULongLink, Kind::XHeader] {
            // It says that it is much longer than it is: what counts is what is read before it is refused.
            let content = vec![b'x'; 200 << 10];
            let file = stream(|tar| entry(tar, "long", kind, "", &content));
            assert!(extract(file, &root).unwrap_err().contains("longer than"), "{kind:?}");
        }
        let pax = |key: &str, value: &str| {
            let record = format!(" {key}={value}\n");
            let size = record.len() + 2;
            format!("{size}{record}")
        };
        let file = stream(|tar| {
            entry(tar, "x", Kind::XHeader, "", pax("path", "other").as_bytes());
            entry(tar, "name", Kind::Regular, "", b"text");
            entry(tar, "x", Kind::XHeader, "", pax("linkpath", "there").as_bytes());
            entry(tar, "link", Kind::Symlink, "", b"");
        });
        assert_eq!(extract(file, &root), Ok(0));
        assert_eq!(std::fs::read(to.path().join("other")).unwrap(), b"text");
        assert_eq!(std::fs::read_link(to.path().join("link")).unwrap(), Path::new("there"));
        for key in ["size", "GNU.sparse.major"] {
            let file = stream(|tar| entry(tar, "x", Kind::XHeader, "", pax(key, "123").as_bytes()));
            assert!(extract(file, &root).is_err(), "{key}");
        }
    }

    #[test]
    fn half_a_folder_is_not_put_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("file-of-some-length"), "text").unwrap();
        let packed = || {
            let file = tempfile::tempfile().unwrap();
            (file.try_clone().unwrap(), file)
        };
        // The folder itself is still short enough.
        let (file, writer) = packed();
        assert!(pack(&from, OsStr::new("x/".repeat(MAX_NAME / 2 - 5).trim_end_matches('/')), writer).is_err());
        io::Seek::rewind(&mut &file).unwrap();
        assert_eq!(deliver(file, &dir.path().join("to"), OsStr::new("x")), Err("the stream was cut off".to_owned()));
        // Whoever wrote it was killed between two entries.
        let (file, writer) = packed();
        pack(&from, OsStr::new("from"), writer).unwrap();
        file.set_len(512).unwrap();
        io::Seek::rewind(&mut &file).unwrap();
        assert_eq!(deliver(file, &dir.path().join("to"), OsStr::new("x")), Err("the stream was cut off".to_owned()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_has_no_size_and_what_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::create_dir(&from).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        std::fs::write(from.join("file"), "text").unwrap();
        let send = |path: &Path, to: &str| {
            let file = tempfile::tempfile().unwrap();
            pack(path, OsStr::new("x"), file.try_clone().unwrap()).unwrap();
            io::Seek::rewind(&mut &file).unwrap();
            deliver(file, &dir.path().join(to), OsStr::new("x"))
        };
        assert_eq!(send(&from, "to"), Ok(1));
        assert_eq!(std::fs::read_dir(dir.path().join("to")).unwrap().count(), 1);
        assert_eq!(send(Path::new("/proc/version"), "version"), Ok(0));
        let version = std::fs::read("/proc/version").unwrap();
        assert_eq!(std::fs::read(dir.path().join("version")).unwrap(), version);
        assert!(send(&from.join("socket"), "socket").unwrap_err().contains("not copied"));
        assert!(!dir.path().join("socket").exists());
    }

    #[test]
    fn what_a_killed_copy_left_is_removed_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let parent = rustix::fs::openat(CWD, dir.path(), STAGING_FLAGS, Mode::empty()).unwrap();
        let (kept, lock) = stage(&parent, dir.path()).unwrap();
        let left = dir.path().join(".ctst-cp-abc123");
        std::fs::create_dir_all(left.join("folder")).unwrap();
        std::fs::create_dir(dir.path().join(".ctst-cp-mine")).unwrap();
        symlink("/", dir.path().join(".ctst-cp-abc124")).unwrap();
        let file = stream(|tar| entry(tar, "x", tar::EntryType::Regular, "", b"text"));
        assert_eq!(deliver(file, &dir.path().join("to"), OsStr::new("x")), Ok(0));
        assert!(!left.exists());
        assert!(kept.path().exists(), "a copy that still runs");
        assert!(dir.path().join(".ctst-cp-mine").exists(), "not of ours");
        drop(lock);
        let file = stream(|tar| entry(tar, "x", tar::EntryType::Regular, "", b"text"));
        assert_eq!(deliver(file, &dir.path().join("to"), OsStr::new("x")), Ok(0));
        assert!(!kept.path().exists());
    }

    #[test]
    fn a_file_that_grows_or_shrinks_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "0123456789").unwrap();
        let read = |left| {
            let file = File::open(dir.path().join("file")).unwrap();
            let mut content = Vec::new();
            Exactly { file, left }.read_to_end(&mut content).map(|_| content)
        };
        assert_eq!(read(4).unwrap(), b"0123");
        assert_eq!(read(10).unwrap(), b"0123456789");
        assert!(read(11).unwrap_err().to_string().contains("shorter"));
    }

    #[test]
    fn nothing_is_taken_from_where_somebody_else_points() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("x"), "of the host").unwrap();
        let file = stream(|tar| entry(tar, "x", tar::EntryType::Regular, "", b"mine"));
        let arrival = super::deliver(file, &dir.path().join("to"), OsStr::new("x")).unwrap();
        // As a container does in a volume that is the place, too.
        let staging = arrival.path.path().to_owned();
        std::fs::rename(&staging, dir.path().join("away")).unwrap();
        symlink(outside.path(), &staging).unwrap();
        assert_eq!(arrival.settle(), Ok(0));
        assert_eq!(std::fs::read(outside.path().join("x")).unwrap(), b"of the host");
        assert_eq!(std::fs::read(dir.path().join("to")).unwrap(), b"mine");
    }
}
