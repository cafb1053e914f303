//! Copying files into and out of a container that runs.
//!
//! The part inside is done by this executable, started by EXEC from a copy in memory: so it has the container's root and no
//! right that the container lacks, and no path of a container is ever looked up outside of it. What comes out is a stream
//! that the container may have made up, and is unpacked without following anything in it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps, openat2};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::client::{Client, ExecSession};
use crate::error::{During, Error, Result};
use crate::project::Project;
use crate::run::ExecRequest;
use crate::shim;
use crate::worker;

/// More of what a worker says is not shown.
const MAX_WORDS: u64 = 4096;

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
    let (reader, writer) = pipe()?;
    let running = Running::start(project, component, vec!["send".into(), path.into()], writer)?;
    let reader = File::from(reader);
    let name = Path::new(path).file_name().unwrap_or(OsStr::new("root"));
    let done = match to {
        Host::Stream => io::copy(&mut { reader }, &mut io::stdout().lock()).map(|_| 0).map_err(|e| e.to_string()),
        Host::Path(to) => deliver(reader, to, name),
    };
    let ended = running.finish(component, path);
    match done {
        // What it says about that is only that we did not listen any more.
        Err(problem) if ended.as_ref().is_err_and(|error| error.to_string().contains(&broken_pipe())) => {
            Err(refused(component, path, &problem))
        }
        done => ended.and_then(|()| done.map_err(|problem| refused(component, path, &problem))),
    }
}

/// Copies from the host into a component that runs: into `path` where that is a folder, else as `path`. A stream comes from
/// standard input, and what is in it goes into the folder `path`. Files belong to root inside.
///
/// # Errors
/// As [`fetch`].
pub fn put(project: &Project, from: &Host<'_>, component: &str, path: &str) -> Result<()> {
    let (reader, writer) = pipe()?;
    let mut words = vec![OsString::from("unpack"), path.into()];
    let mut name = OsString::from("root");
    if let Host::Path(from) = from {
        // Before anything is started. The name of `.` is that of the folder.
        let whole = from.canonicalize().during(|| format!("copy {}", from.display()))?;
        name = from.file_name().or(whole.file_name()).map_or(name, OsStr::to_owned);
        words = vec!["receive".into(), path.into(), name.clone()];
    }
    let running = Running::start(project, component, words, reader)?;
    let writer = File::from(writer);
    let sent = match from {
        Host::Stream => io::copy(&mut io::stdin().lock(), &mut { writer }).map(drop),
        Host::Path(from) => pack(from, &name, writer),
    };
    running.finish(component, path)?;
    sent.during(|| format!("copy to {path} of {component}"))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).during(|| "make a pipe".to_owned())
}

fn broken_pipe() -> String {
    io::Error::from(Errno::PIPE).to_string()
}

fn refused(component: &str, path: &str, problem: &str) -> Error {
    Error::Invalid { component: component.to_owned(), problem: format!("copy {path}: {problem}") }
}

/// The part inside.
struct Running {
    session: ExecSession,
    words: OwnedFd,
}

impl Running {
    /// Starts it with its end of the data as standard output, whichever way the data goes: its standard input is the
    /// program.
    fn start(project: &Project, component: &str, words: Vec<OsString>, end: OwnedFd) -> Result<Self> {
        let client = Client::connect(project)?;
        let Some(client) = client else { return Err(Error::NotRunning { project: project.folder().to_owned() }) };
        let exe = std::env::current_exe().during(|| "find the running executable".to_owned())?;
        let program = shim::in_memory(&exe)?;
        let (errors, errors_end) = pipe()?;
        let status = project.status()?;
        // Where there is but one id, there may be no root.
        let single = status.iter().any(|s| s.component == component && s.ids.starts_with("single"));
        let argv = ["/proc/self/fd/0".to_owned(), worker::VERB.to_owned()].into_iter();
        let request = ExecRequest {
            component: component.to_owned(),
            argv: argv.chain(words.iter().map(|word| word.to_string_lossy().into_owned())).collect(),
            env: Vec::new(),
            user: (!single).then(|| "0".to_owned()),
            workdir: Some("/".to_owned()),
            tty: None,
        };
        let session = client.exec(&request, [program.as_fd(), end.as_fd(), errors_end.as_fd()])?;
        Ok(Self { session, words: errors })
    }

    fn finish(mut self, component: &str, path: &str) -> Result<()> {
        let mut words = Vec::new();
        File::from(self.words).take(MAX_WORDS).read_to_end(&mut words).during(|| format!("copy {path}"))?;
        match self.session.wait()? {
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
            stream().and_then(|stream| deliver(stream, Path::new(path), name).map(drop))
        }
        [verb, path] if verb == "unpack" => stream().and_then(|stream| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = openat2(CWD, Path::new(path), flags, Mode::empty(), ResolveFlags::empty());
            extract(stream, &folder.map_err(|e| format!("open the folder: {}", io::Error::from(e)))?).map(drop)
        }),
        _ => return None,
    })
}

/// Writes a tar stream of `path`, called `name` in it. Links are not followed.
fn pack(path: &Path, name: &OsStr, to: File) -> io::Result<()> {
    let mut tar = tar::Builder::new(BufWriter::new(to));
    tar.follow_symlinks(false);
    if path.symlink_metadata()?.is_dir() {
        tar.append_dir_all(name, path)?;
    } else {
        tar.append_path_with_name(path, name)?;
    }
    tar.into_inner()?.flush()
}

/// Unpacks a stream with one file or folder as `to`, or as `name` in the folder `to`. Until all of it is there, it is in a
/// folder of its own.
fn deliver(input: File, to: &Path, name: &OsStr) -> Result<usize, String> {
    let at = |what: &str, path: &Path, e: io::Error| format!("{what} {}: {e}", path.display());
    let place = if to.is_dir() { to.join(name) } else { to.to_owned() };
    let parent = match place.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err("give the place a name".to_owned()),
    };
    let staging =
        tempfile::Builder::new().prefix(".ctst-cp-").tempdir_in(parent).map_err(|e| at("write to", parent, e))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, staging.path(), flags, Mode::empty())
        .map_err(|e| at("open", staging.path(), e.into()))?;
    let left_out = extract(input, &folder)?;
    let mut entries = std::fs::read_dir(staging.path()).map_err(|e| at("list", staging.path(), e))?;
    let (Some(Ok(entry)), None) = (entries.next(), entries.next()) else {
        return Err("it is not one file or folder (a device, FIFO or socket is not copied)".to_owned());
    };
    std::fs::rename(entry.path(), &place).map_err(|e| at("put it in place as", &place, e))?;
    Ok(left_out)
}

/// Unpacks a stream below `root`. The kernel keeps everything in there: no link is followed on any way, whether the stream
/// or somebody else made it. Returns how many entries are of a kind that is not copied.
fn extract(input: File, root: &OwnedFd) -> Result<usize, String> {
    let mut left_out = 0;
    let mut folders = Vec::new();
    let mut archive = tar::Archive::new(BufReader::new(&input));
    for entry in archive.entries().map_err(|e| e.to_string())? {
        let mut entry = entry.map_err(|e| format!("read the stream: {e}"))?;
        let path = entry.path().map_err(|e| format!("read the stream: {e}"))?.into_owned();
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
                // Closed only when everything is in it.
                folders.push(([parents, vec![name]].concat(), mode, times, shown));
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                clear(&parent)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, &*name, flags, Mode::RUSR | Mode::WUSR);
                let mut file = File::from(file.map_err(|e| failed(e.into()))?);
                io::copy(&mut entry, &mut file).map_err(failed)?;
                let done = rustix::fs::fchmod(&file, mode).and_then(|()| rustix::fs::futimens(&file, &times));
                done.map_err(|e| failed(e.into()))?;
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                clear(&parent)?;
                rustix::fs::symlinkat(target, &parent, &*name).map_err(|e| failed(e.into()))?;
            }
            tar::EntryType::Link => {
                let target = entry.link_name().map_err(failed)?.unwrap_or_default().into_owned();
                let (target_parents, target_name) = split(&target)?;
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
    io::copy(&mut &input, &mut io::sink()).map_err(|e| format!("read the stream: {e}"))?;
    for (path, mode, times, shown) in folders.into_iter().rev() {
        let done = enter(root, &path)
            .and_then(|folder| rustix::fs::fchmod(&folder, mode).and_then(|()| rustix::fs::futimens(&folder, &times)));
        done.map_err(|e| format!("finish {}: {}", shown.escape_debug(), io::Error::from(e)))?;
    }
    Ok(left_out)
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

    #[test]
    fn a_folder_arrives_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::create_dir_all(from.join("a")).unwrap();
        std::fs::write(from.join("a/file"), "text").unwrap();
        std::fs::set_permissions(from.join("a/file"), PermissionsExt::from_mode(0o640)).unwrap();
        std::fs::set_permissions(from.join("a"), PermissionsExt::from_mode(0o500)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
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
        assert_eq!(std::fs::read_link(dir.path().join("to/link")).unwrap(), Path::new("/etc/passwd"));
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
}
