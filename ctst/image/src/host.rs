//! `host://`: an image of programs that are installed on this host, with what they need to run. The same of an image, where that
//! is the root of whoever looks (`strip`).
//!
//! Every look at the host goes through [`Collector::look`], which remembers it. The same looks, repeated, tell whether
//! anything that led to this image has changed, including files that were looked for in vain.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use rustix::fs::{AtFlags, CWD, FileType};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use walkdir::WalkDir;

use crate::elf::{self, Elf, Machine};
use crate::error::{list, shown, text};
use crate::model::Config;
use crate::tree::{Body, Digest, EXAMPLES, Item, MAX_PATH, Meta, Time, Unreadable};
use crate::{Error, ldcache};

/// Most entries below the literal beginning of one glob.
const MAX_WALK: usize = 200_000;
/// Most paths that are looked at: a stranger's program may name libraries without end.
const MAX_LOOKS: usize = 2_000_000;
/// The same, each as often as it is looked at: some seconds.
const MAX_REPEATED: usize = 20_000_000;
/// As the kernel (`path_resolution(7)`).
const MAX_LINKS: usize = 40;
/// Interpreters of interpreters; the kernel allows as many.
const MAX_SCRIPTS: usize = 4;
/// Where `#!/usr/bin/env NAME` is looked for.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Bundles of certificate authorities: Debian, Fedora, Alpine, SUSE.
const CA_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];
/// Libraries that glibc loads by itself: name services, and unwinding for `pthread_cancel`.
const LOADED_BY_GLIBC: [&str; 3] = ["libnss_files.so.2", "libnss_dns.so.2", "libgcc_s.so.1"];
const LD_CACHE: &str = "/etc/ld.so.cache";
/// Bytes of it that are read; common ones have 100 KB.
const MAX_CACHE: u64 = 64 << 20;
/// File systems of the kernel: their files are not content.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

/// An image, as a list of what to copy from `/`.
pub(crate) struct Host {
    pub(crate) items: Vec<Item>,
    pub(crate) watch: Watch,
    pub(crate) fingerprint: Digest,
    pub(crate) newest: Time,
    pub(crate) config: Config,
    pub(crate) notes: Vec<String>,
}

/// What was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Watch {
    /// Paths of which everything matters: files, links, absent ones, directories that were listed.
    pub(crate) whole: Vec<PathBuf>,
    /// Directories that were only passed through: type, mode and owner matter, what else they hold does not.
    pub(crate) passed: Vec<PathBuf>,
}

impl Watch {
    /// Looks again.
    pub(crate) fn fingerprint(&self) -> Result<Digest, Error> {
        let mut out = Vec::new();
        for (paths, whole) in [(&self.whole, true), (&self.passed, false)] {
            for path in paths {
                print(&mut out, path, lstat(path)?.as_ref(), whole);
            }
        }
        Ok(Sha256::digest(&out).into())
    }
}

fn print(out: &mut Vec<u8>, path: &Path, meta: Option<&Meta>, whole: bool) {
    let path = path.as_os_str().as_bytes();
    out.extend((path.len() as u32).to_le_bytes());
    out.extend(path);
    match meta {
        None => out.push(0),
        Some(meta) if whole => meta.print(out),
        Some(meta) => meta.print_identity(out),
    }
}

/// `None` for what is not there or not to be reached, which is the same for the loader.
fn lstat(path: &Path) -> Result<Option<Meta>, Error> {
    match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat.into())),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
        Err(cause) => Err(Error::io("stat", path, cause)),
    }
}

/// Collects the image of `programs` and of what matches `include`.
pub(crate) fn collect(programs: &[PathBuf], include: &[String]) -> Result<Host, Error> {
    let first = programs.first().ok_or(Error::NoProgram)?;
    let mut collector = Collector::new("on this host", PATH.map(PathBuf::from).into())?;
    for program in programs {
        collector.program(program, 0)?;
    }
    let mut included = Vec::new();
    for glob in include {
        included.extend(collector.include(glob)?);
    }
    collector.analyse_included(&included)?;
    std::mem::take(&mut collector.unreadable).check(Path::new("/"))?;
    collector.add_glibc_needs()?;
    if collector.checks_certificates() {
        collector.add_authorities()?;
    }
    for path in ["/usr/share/zoneinfo/UTC", "/usr/share/zoneinfo/Etc/UTC", "/etc/localtime"] {
        collector.take_if_there(Path::new(path))?;
    }
    collector.add_base();
    collector.add_accounts();
    collector.add_merged()?;
    collector.finish(first)
}

/// What the image has at a path.
#[derive(Debug)]
enum Node {
    /// The host's.
    Host(Meta),
    Directory(u32),
    File(Vec<u8>),
}

/// A path with all links followed.
pub(crate) struct Found {
    /// The links on the way.
    links: Vec<PathBuf>,
    /// Without any link.
    pub(crate) real: PathBuf,
    pub(crate) meta: Meta,
}

/// One program or library in the order in which the loader meets them.
struct Object {
    /// By what name the loader opens it: `$ORIGIN` is its folder.
    path: PathBuf,
    /// The same without links.
    real: PathBuf,
    elf: Elf,
    /// Who needs it; `None` for the program.
    loader: Option<usize>,
}

/// What one process has loaded.
#[derive(Default)]
struct Process {
    objects: Vec<Object>,
    /// Names that are not searched again.
    names: HashSet<OsString>,
    is_musl: bool,
}

/// A script that is taken.
pub(crate) struct Script {
    /// Without links.
    pub(crate) real: PathBuf,
    /// The name of what interprets it, such as `sh`.
    pub(crate) interpreter: OsString,
}

#[derive(Default)]
pub(crate) struct Collector {
    /// Where it looks, for messages.
    place: &'static str,
    /// Where commands are looked for.
    pub(crate) path: Vec<PathBuf>,
    /// `LD_LIBRARY_PATH` (`ld.so(8)`).
    pub(crate) library_path: Vec<PathBuf>,
    /// Further libraries that glibc loads by itself, for `nsswitch.conf(5)`.
    pub(crate) services: Vec<OsString>,
    /// Whether files keep their owners.
    pub(crate) keeps_owners: bool,
    /// Programs that are taken with what they need, without links.
    done: BTreeSet<PathBuf>,
    pub(crate) scripts: Vec<Script>,
    /// ELF programs, without links.
    pub(crate) executables: Vec<PathBuf>,
    nodes: BTreeMap<PathBuf, Node>,
    seen: BTreeMap<PathBuf, Option<Meta>>,
    looks: usize,
    /// Directories that were listed.
    listed: BTreeSet<PathBuf>,
    cache: Vec<ldcache::Entry>,
    processes: Vec<Process>,
    /// Libraries that only included files miss.
    missing: BTreeSet<(OsString, PathBuf)>,
    special: BTreeSet<PathBuf>,
    pub(crate) unreadable: Unreadable,
    env: Vec<String>,
    pub(crate) notes: Vec<String>,
}

impl Collector {
    /// `place`: what `/` is of, for messages; `path`: where commands are looked for.
    pub(crate) fn new(place: &'static str, path: Vec<PathBuf>) -> Result<Self, Error> {
        let mut collector = Collector { place, path, ..Collector::default() };
        if let Some(found) = collector.resolve(Path::new(LD_CACHE))?.filter(|found| found.meta.size <= MAX_CACHE)
            && found.meta.kind == FileType::RegularFile
        {
            let cache = std::fs::read(&found.real).map_err(|e| Error::std("read", LD_CACHE, &e))?;
            collector.cache = ldcache::parse(&cache);
        }
        Ok(collector)
    }

    pub(crate) fn look(&mut self, path: &Path) -> Result<Option<Meta>, Error> {
        self.looks += 1;
        if self.looks > MAX_REPEATED {
            return Err(Error::Limit {
                path: path.into(),
                what: "programs and libraries name so many others that 20,000,000 looks do not find them",
            });
        }
        if let Some(meta) = self.seen.get(path) {
            return Ok(*meta);
        }
        if self.seen.len() == MAX_LOOKS {
            return Err(Error::Limit {
                path: path.into(),
                what: "more than 2,000,000 paths would have to be looked at",
            });
        }
        let meta = lstat(path)?;
        self.seen.insert(path.into(), meta);
        Ok(meta)
    }

    /// Follows all links, as the kernel does.
    pub(crate) fn resolve(&mut self, path: &Path) -> Result<Option<Found>, Error> {
        let mut rest: Vec<OsString> = components(path);
        let (mut real, mut links) = (PathBuf::from("/"), Vec::new());
        while let Some(name) = rest.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&name);
            let Some(meta) = self.look(&next)? else { return Ok(None) };
            if meta.kind != FileType::Symlink {
                real = next;
                continue;
            }
            if links.len() == MAX_LINKS || magic(&next) {
                return Ok(None);
            }
            let target = std::fs::read_link(&next).map_err(|e| Error::std("read link", &next, &e))?;
            if target.is_absolute() {
                real = "/".into();
            }
            rest.extend(components(&target));
            links.push(next);
        }
        Ok(self.look(&real)?.map(|meta| Found { links, real, meta }))
    }

    /// Puts a path that has no link on its way, and its folders, into the image.
    pub(crate) fn put(&mut self, real: &Path) -> Result<(), Error> {
        for path in real.ancestors().filter(|path| path.parent().is_some()) {
            if self.nodes.contains_key(path) {
                break;
            }
            if path.as_os_str().len() > MAX_PATH {
                return Err(Error::Limit { path: path.into(), what: "the path is longer than 4095 bytes" });
            }
            match self.look(path)? {
                Some(meta) => self.nodes.insert(path.into(), Node::Host(meta)),
                None => return Err(Error::Changed(path.into())),
            };
        }
        Ok(())
    }

    /// Puts what was found into the image, with the links that lead there.
    pub(crate) fn take(&mut self, found: &Found) -> Result<(), Error> {
        for link in &found.links {
            self.put(link)?;
        }
        match found.meta.kind {
            FileType::RegularFile | FileType::Directory if !is_kernel(&found.real) => self.put(&found.real),
            _ => {
                self.special.insert(found.real.clone());
                Ok(())
            }
        }
    }

    /// A folder alone, with the links that lead there.
    pub(crate) fn take_folder(&mut self, found: &Found) -> Result<(), Error> {
        found.links.iter().try_for_each(|link| self.put(link))?;
        if is_kernel(&found.real) { Ok(()) } else { self.put(&found.real) }
    }

    pub(crate) fn take_if_there(&mut self, path: &Path) -> Result<bool, Error> {
        let Some(found) = self.resolve(path)? else { return Ok(false) };
        self.take(&found)?;
        Ok(found.meta.kind == FileType::RegularFile)
    }

    pub(crate) fn program(&mut self, path: &Path, scripts: usize) -> Result<(), Error> {
        let refused = |why: String| Error::Program { path: path.into(), why };
        if !path.is_absolute() {
            return Err(Error::Relative(path.into()));
        }
        let found = self.resolve(path)?.ok_or_else(|| refused("does not exist".into()))?;
        if found.meta.kind != FileType::RegularFile {
            return Err(refused("is not a file".into()));
        }
        if found.meta.mode & 0o111 == 0 {
            return Err(refused("is not executable".into()));
        }
        self.take(&found)?;
        if self.done.contains(&found.real) {
            return Ok(());
        }
        let mut file = File::open(&found.real).map_err(|e| match e.kind() {
            std::io::ErrorKind::PermissionDenied => refused("may be executed but not read by you".into()),
            _ => Error::std("open", &found.real, &e),
        })?;
        if let Some(elf) = Elf::read(&file, &found.real)? {
            self.done.insert(found.real.clone());
            self.executables.push(found.real.clone());
            return self.executable(elf, &found.real, true);
        }
        let mut start = Vec::new();
        (&mut file).take(4096).read_to_end(&mut start).map_err(|e| Error::std("read", &found.real, &e))?;
        let Some(line) = start.strip_prefix(b"#!").and_then(|rest| rest.split(|b| *b == b'\n').next()) else {
            return Err(refused("is neither an ELF file nor a script".into()));
        };
        if scripts == MAX_SCRIPTS {
            return Err(refused("is a script whose interpreters do not end".into()));
        }
        let mut words = line.split(|b| b" \t\r".contains(b)).filter(|word| !word.is_empty()).map(OsStr::from_bytes);
        let interpreter = words.next().map(Path::new).filter(|path| path.is_absolute());
        let interpreter = interpreter.ok_or_else(|| refused("names no interpreter by an absolute path".into()))?;
        self.program(interpreter, scripts + 1)?;
        let mut name = interpreter.file_name().unwrap_or_default();
        if name == "env" {
            let named = words.find(|word| !word.as_bytes().starts_with(b"-") && !word.as_bytes().contains(&b'='));
            name = named.ok_or_else(|| refused("names no program for env".into()))?;
            let Some(program) = self.find(name)? else {
                let folders: Vec<String> = self.path.iter().map(|folder| shown(folder)).collect();
                let name = shown(Path::new(name));
                return Err(refused(format!("runs `{name}`, which is in none of {}", folders.join(", "))));
            };
            self.program(&program, scripts + 1)?;
        }
        // Not before: one that is its own interpreter is told of.
        if self.done.insert(found.real.clone()) {
            self.scripts.push(Script { real: found.real, interpreter: name.to_owned() });
        }
        Ok(())
    }

    /// Where the command `name` is, as a shell finds it; an absolute one is there or not.
    pub(crate) fn find(&mut self, name: &OsStr) -> Result<Option<PathBuf>, Error> {
        let candidates: Vec<PathBuf> = match Path::new(name).is_absolute() {
            true => vec![name.into()],
            false if name.as_bytes().contains(&b'/') || name.is_empty() => Vec::new(),
            false => self.path.iter().map(|folder| folder.join(name)).collect(),
        };
        for candidate in candidates {
            if self
                .resolve(&candidate)?
                .is_some_and(|f| f.meta.kind == FileType::RegularFile && f.meta.mode & 0o111 != 0)
            {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }

    /// A program with everything that the loader loads for it. A library that is not there is an error if `strict`,
    /// else remembered.
    fn executable(&mut self, elf: Elf, real: &Path, strict: bool) -> Result<(), Error> {
        let mut process = Process { objects: Vec::new(), names: HashSet::new(), is_musl: false };
        if let Some(interpreter) = elf.interpreter.clone() {
            let name = interpreter.file_name().unwrap_or_default().to_owned();
            process.is_musl = name.as_bytes().starts_with(b"ld-musl");
            match self.resolve(&interpreter)?.filter(|found| found.meta.kind == FileType::RegularFile) {
                Some(found) => self.take(&found)?,
                None => self.miss(interpreter.as_os_str(), real, strict)?,
            }
            process.names.insert(name);
        }
        process.objects.push(Object { path: real.into(), real: real.into(), elf, loader: None });
        self.load_needed(&mut process, 0, strict)?;
        self.processes.push(process);
        Ok(())
    }

    /// Loads what the objects from `next` on need, breadth first.
    fn load_needed(&mut self, process: &mut Process, mut next: usize, strict: bool) -> Result<(), Error> {
        while next < process.objects.len() {
            for name in process.objects[next].elf.needed.clone() {
                let is_libc = process.is_musl && (name == "libc.so" || name.as_bytes().starts_with(b"libc.musl-"));
                if is_libc || process.names.contains(&name) {
                    continue;
                }
                match self.search(process, next, &name)? {
                    Some(object) => add(process, name, object),
                    None => {
                        let needed_by = process.objects[next].real.clone();
                        self.miss(&name, &needed_by, strict)?;
                        process.names.insert(name);
                    }
                }
            }
            next += 1;
        }
        Ok(())
    }

    fn miss(&mut self, name: &OsStr, needed_by: &Path, strict: bool) -> Result<(), Error> {
        if strict {
            let (name, place) = (name.to_string_lossy().into(), self.place);
            return Err(Error::Library { name, needed_by: needed_by.into(), place });
        }
        self.missing.insert((name.into(), needed_by.into()));
        Ok(())
    }

    /// Finds the library `name` for object `by` in the order of `ld.so(8)`, or of musl's loader.
    fn search(&mut self, process: &Process, by: usize, name: &OsStr) -> Result<Option<Object>, Error> {
        let machine = process.objects[0].elf.machine;
        let object = &process.objects[by];
        if name.as_bytes().contains(&b'/') {
            for path in expand(name, object) {
                if let Some((real, elf)) = self.try_library(&path, machine)? {
                    return Ok(Some(Object { path, real, elf, loader: Some(by) }));
                }
            }
            return Ok(None);
        }
        let mut folders = Vec::new();
        let mut add_all = |list: &[OsString], object| folders.extend(list.iter().flat_map(|dir| expand(dir, object)));
        let chain = std::iter::successors(Some(object), |o| o.loader.map(|loader| &process.objects[loader]));
        if process.is_musl {
            chain.for_each(|o| add_all(o.elf.runpath.as_ref().unwrap_or(&o.elf.rpath), o));
            folders.splice(0..0, self.library_path.iter().cloned());
            folders.extend(self.musl_folders(machine)?);
        } else if let Some(runpath) = &object.elf.runpath {
            add_all(runpath, object);
            folders.splice(0..0, self.library_path.iter().cloned());
        } else {
            chain.filter(|o| o.elf.runpath.is_none()).for_each(|o| add_all(&o.elf.rpath, o));
            folders.extend(self.library_path.iter().cloned());
        }
        let mut candidates: Vec<PathBuf> = folders.into_iter().map(|folder| folder.join(name)).collect();
        if !process.is_musl && !object.elf.no_default {
            candidates.extend(self.cache.iter().filter(|e| e.name == name.as_bytes()).map(|e| path_of(&e.path)));
            candidates.extend(default_folders(machine).into_iter().map(|folder| folder.join(name)));
        }
        for path in candidates {
            if let Some((real, elf)) = self.try_library(&path, machine)? {
                return Ok(Some(Object { path, real, elf, loader: Some(by) }));
            }
        }
        Ok(None)
    }

    /// Takes the library at `path` if there is one for this machine; the loader passes over others.
    fn try_library(&mut self, path: &Path, machine: Machine) -> Result<Option<(PathBuf, Elf)>, Error> {
        if !path.is_absolute() {
            return Ok(None);
        }
        let Some(found) = self.resolve(path)?.filter(|found| found.meta.kind == FileType::RegularFile) else {
            return Ok(None);
        };
        let Ok(file) = File::open(&found.real) else { return Ok(None) };
        let elf = Elf::read(&file, &found.real)?.filter(|elf| elf.machine == machine);
        let Some(elf) = elf else { return Ok(None) };
        self.take(&found)?;
        Ok(Some((found.real, elf)))
    }

    /// `/etc/ld-musl-ARCH.path` or its default.
    fn musl_folders(&mut self, machine: Machine) -> Result<Vec<PathBuf>, Error> {
        let arch = platform(machine).map_or("", |(arch, _)| arch);
        let list = PathBuf::from(format!("/etc/ld-musl-{arch}.path"));
        if !self.take_if_there(&list)? {
            return Ok(["/lib", "/usr/local/lib", "/usr/lib"].map(PathBuf::from).into());
        }
        let mut text = Vec::new();
        File::open(&list)
            .and_then(|file| file.take(64 << 10).read_to_end(&mut text))
            .map_err(|e| Error::std("read", &list, &e))?;
        Ok(text.split(|b| b":\n".contains(b)).filter(|part| !part.is_empty()).map(path_of).collect())
    }

    /// Takes what matches `glob`; a directory that matches is taken with everything below. Returns the regular files.
    pub(crate) fn include(&mut self, glob: &str) -> Result<Vec<PathBuf>, Error> {
        let refused = |why: String| Error::Include { glob: glob.into(), why };
        let matcher = self::glob(glob)?;
        let is_literal = |part: &Component<'_>| !part.as_os_str().as_bytes().iter().any(|b| b"*?[]{}\\".contains(b));
        let prefix: PathBuf = Path::new(glob).components().take_while(is_literal).collect();
        let Some(base) = self.resolve(&prefix)? else { return Err(refused("matches nothing".into())) };
        if is_kernel(&base.real) {
            return Err(refused("lies in a file system of the kernel, which is not content".into()));
        }

        let mut files = Vec::new();
        let (mut matched, mut below) = (false, None);
        let walk = WalkDir::new(&base.real).follow_links(false).into_iter();
        for (count, entry) in walk.filter_entry(|entry| !is_kernel(entry.path())).enumerate() {
            if count == MAX_WALK {
                return Err(refused(format!("walks through more than {MAX_WALK} files: begin it with a longer path")));
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => match (e.path(), e.io_error()) {
                    (Some(path), Some(cause)) if cause.kind() == std::io::ErrorKind::PermissionDenied => {
                        self.unreadable.add(path.into());
                        continue;
                    }
                    (path, Some(cause)) => return Err(Error::std("list", path.unwrap_or(&base.real), cause)),
                    (path, None) => return Err(Error::Changed(path.unwrap_or(&base.real).into())),
                },
            };
            let path = entry.path();
            if entry.file_type().is_dir() {
                self.look(path)?;
                self.listed.insert(path.into());
            }
            if below.is_some_and(|depth| entry.depth() <= depth) {
                below = None;
            }
            if below.is_none() {
                // The glob is written for the path before links were followed.
                let within = path.strip_prefix(&base.real).unwrap_or(Path::new(""));
                let named = if within.as_os_str().is_empty() { prefix.clone() } else { prefix.join(within) };
                if !matcher.is_match(&named) {
                    continue;
                }
                if entry.file_type().is_dir() {
                    below = Some(entry.depth());
                }
            }
            if !matched {
                matched = true;
                self.take(&base)?;
            }
            if entry.file_type().is_symlink() {
                self.put(path)?;
                // Where it leads to nothing, so it does on the host.
                if let Some(target) = self.resolve(path)? {
                    self.take(&target)?;
                    if target.meta.kind == FileType::RegularFile {
                        files.push(target.real);
                    }
                }
            } else if entry.file_type().is_file() {
                self.put(path)?;
                files.push(path.into());
            } else if entry.file_type().is_dir() {
                self.put(path)?;
            } else {
                self.special.insert(path.into());
            }
        }
        if matched { Ok(files) } else { Err(refused("matches nothing".into())) }
    }

    /// Takes what included programs and plug-ins need. One that lacks a library does not run here either, and a
    /// collection of plug-ins often has such: that is worth a note, not an error.
    pub(crate) fn analyse_included(&mut self, files: &[PathBuf]) -> Result<(), Error> {
        let (mut programs, mut plugins) = (Vec::new(), Vec::new());
        for path in files {
            let file = match File::open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                    self.unreadable.add(path.clone());
                    continue;
                }
                Err(e) => return Err(Error::std("open", path, &e)),
            };
            // A damaged one is content like any other: nobody said that it is to be run.
            match Elf::read(&file, path) {
                Ok(Some(elf)) if elf.interpreter.is_some() => programs.push((path, elf)),
                Ok(Some(elf)) => plugins.push((path, elf)),
                Ok(None) | Err(Error::Elf { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        for (path, elf) in programs {
            self.executable(elf, path, false)?;
        }
        for (path, elf) in plugins {
            // A plug-in is loaded into a program: the first one it fits, whose search paths count for it too.
            let host = self.processes.iter().position(|process| process.objects[0].elf.machine == elf.machine);
            let mut process = match host {
                Some(index) => self.processes.swap_remove(index),
                None => Process { objects: Vec::new(), names: HashSet::new(), is_musl: false },
            };
            let loader = if process.objects.is_empty() { None } else { Some(0) };
            process.objects.push(Object { path: path.clone(), real: path.clone(), elf, loader });
            let last = process.objects.len() - 1;
            self.load_needed(&mut process, last, false)?;
            self.processes.push(process);
            let (last, index) = (self.processes.len() - 1, host.unwrap_or(self.processes.len() - 1));
            self.processes.swap(index, last);
        }
        Ok(())
    }

    /// Takes libraries whose names stand in programs and libraries that are taken, for `dlopen(3)`.
    pub(crate) fn add_opened(&mut self) -> Result<(), Error> {
        let mut read = HashSet::new();
        for index in 0..self.processes.len() {
            let mut process = std::mem::take(&mut self.processes[index]);
            let mut at = 0;
            while at < process.objects.len() {
                let real = process.objects[at].real.clone();
                at += 1;
                if !read.insert(real.clone()) {
                    continue;
                }
                let file = File::open(&real).map_err(|e| Error::std("open", &real, &e))?;
                for name in elf::library_names(&file, &real)? {
                    if !process.names.contains(&name)
                        && let Some(object) = self.search(&process, at - 1, &name)?
                    {
                        add(&mut process, name, object);
                        let last = process.objects.len() - 1;
                        self.load_needed(&mut process, last, false)?;
                    }
                }
            }
            self.processes[index] = process;
        }
        Ok(())
    }

    /// Libraries that glibc opens by itself, its C.UTF-8 locale, and a cache of the libraries taken: the host's names
    /// all of the host's, and without any the loader finds nothing outside of its own default directories.
    pub(crate) fn add_glibc_needs(&mut self) -> Result<(), Error> {
        let uses_glibc = |process: &Process| process.names.contains(OsStr::new("libc.so.6"));
        let Some(index) = self.processes.iter().position(uses_glibc) else { return Ok(()) };
        let mut process = self.processes.swap_remove(index);
        let services = std::mem::take(&mut self.services).into_iter();
        for name in LOADED_BY_GLIBC.map(OsString::from).into_iter().chain(services) {
            if !process.names.contains(&name)
                && let Some(object) = self.search(&process, 0, &name)?
            {
                add(&mut process, name, object);
                let last = process.objects.len() - 1;
                self.load_needed(&mut process, last, false)?;
            }
        }
        self.processes.push(process);

        if let Some(locale) = self.resolve(Path::new("/usr/lib/locale/C.utf8"))? {
            self.take(&locale)?;
            self.include("/usr/lib/locale/C.utf8")?;
        }
        let mut cache = std::mem::take(&mut self.cache);
        let names: HashSet<Vec<u8>> = self
            .processes
            .iter()
            .flat_map(|process| process.names.iter().map(|name| name.as_bytes().to_vec()))
            .chain(self.nodes.keys().filter_map(|path| path.file_name()).map(|name| name.as_bytes().to_vec()))
            .collect();
        let mut kept = Vec::new();
        for entry in cache.drain(..).filter(|entry| names.contains(&entry.name)) {
            if let Some(found) = self.resolve(&path_of(&entry.path))?
                && self.nodes.contains_key(&found.real)
            {
                self.take(&found)?;
                kept.push(entry);
            }
        }
        if !kept.is_empty() {
            self.generate(LD_CACHE, ldcache::write(&kept));
        }
        Ok(())
    }

    /// Whether a library that does was taken.
    pub(crate) fn checks_certificates(&self) -> bool {
        let checks = |name: &[u8]| {
            [&b"libssl.so"[..], b"libgnutls.so", b"libgnutls-", b"libcurl.so", b"libcurl-"]
                .iter()
                .any(|lib| name.starts_with(lib))
        };
        self.nodes.keys().filter_map(|path| path.file_name()).any(|name| checks(name.as_bytes()))
    }

    /// Certificate authorities.
    fn add_authorities(&mut self) -> Result<(), Error> {
        for bundle in CA_BUNDLES {
            if self.take_if_there(Path::new(bundle))? {
                // OpenSSL looks for hashed names in a directory by default, of which a host has hundreds.
                self.env.push(format!("SSL_CERT_FILE={bundle}"));
                return Ok(());
            }
        }
        self.notes
            .push("no certificate authorities were found on this host: TLS connections will not be trusted".into());
        Ok(())
    }

    /// Directories that every program may expect. What is there already stays, and in what a link leads to nothing is made.
    pub(crate) fn add_base(&mut self) {
        for (path, mode) in [
            ("/dev", 0o755),
            ("/etc", 0o755),
            ("/proc", 0o555),
            ("/root", 0o700),
            ("/run", 0o755),
            ("/sys", 0o555),
            ("/tmp", 0o1777),
            ("/var", 0o755),
            ("/var/tmp", 0o1777),
        ] {
            let path = Path::new(path);
            let above = path.parent().and_then(|parent| self.nodes.get(parent));
            if !matches!(above, Some(Node::Host(meta)) if meta.kind == FileType::Symlink) {
                self.nodes.entry(path.into()).or_insert(Node::Directory(mode));
            }
        }
    }

    /// Files that libraries read. What `include` brought stays.
    fn add_accounts(&mut self) {
        self.generate(
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        );
        self.generate("/etc/group", "root:x:0:\nnogroup:x:65534:\n");
        self.generate("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n");
        self.generate("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
    }

    /// With merged /usr, programs are known by both names.
    pub(crate) fn add_merged(&mut self) -> Result<(), Error> {
        for name in ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"].map(Path::new) {
            if self.look(name)?.is_some_and(|meta| meta.kind == FileType::Symlink)
                && let Some(found) = self.resolve(name)?
                && self.nodes.contains_key(&found.real)
            {
                self.take(&found)?;
            }
        }
        Ok(())
    }

    fn generate(&mut self, path: &str, content: impl Into<Vec<u8>>) {
        self.nodes.entry(path.into()).or_insert_with(|| Node::File(content.into()));
    }

    pub(crate) fn finish(mut self, first: &Path) -> Result<Host, Error> {
        for (name, by) in &self.missing {
            let name = text(&name.to_string_lossy());
            self.notes.push(format!("library `{name}`, needed by `{}`, is not {}", shown(by), self.place));
        }
        if !self.special.is_empty() {
            let examples: Vec<PathBuf> = self.special.iter().take(EXAMPLES).cloned().collect();
            let names = list(&examples, self.special.len());
            self.notes.push(format!("device nodes, sockets, pipes and files of the kernel were left out: {names}"));
        }
        let mut items =
            vec![Item { path: Vec::new(), meta: Meta::made(FileType::Directory, 0o755, 0), body: Body::Directory }];
        for (path, node) in self.nodes {
            let path = path.into_os_string().into_vec().split_off(1);
            let (meta, body) = match node {
                Node::Host(meta) => {
                    let body = match meta.kind {
                        FileType::Directory => Body::Directory,
                        FileType::Symlink => Body::Symlink,
                        _ => Body::File,
                    };
                    // Packages own their files as root; what else is on the host means nothing in the image.
                    let (uid, gid) = if self.keeps_owners { (meta.uid, meta.gid) } else { (0, 0) };
                    (Meta { uid, gid, ..meta }, body)
                }
                Node::Directory(mode) => (Meta::made(FileType::Directory, mode, 0), Body::Directory),
                Node::File(content) => (Meta::made(FileType::RegularFile, 0o644, content.len()), Body::Made(content)),
            };
            items.push(Item { path, meta, body });
        }
        items.sort_unstable_by(|a, b| a.path.cmp(&b.path));

        let mut watch = Watch::default();
        let (mut whole, mut passed) = (Vec::new(), Vec::new());
        let mut newest = Time::default();
        for (path, meta) in self.seen {
            let is_passed = meta.is_some_and(|meta| meta.kind == FileType::Directory) && !self.listed.contains(&path);
            let (print_to, paths) = match is_passed {
                true => (&mut passed, &mut watch.passed),
                false => (&mut whole, &mut watch.whole),
            };
            print(print_to, &path, meta.as_ref(), !is_passed);
            if let Some(meta) = meta.filter(|_| !is_passed) {
                newest = newest.max(meta.ctime);
            }
            paths.push(path);
        }
        whole.extend(passed);
        Ok(Host {
            items,
            watch,
            fingerprint: Sha256::digest(&whole).into(),
            newest,
            config: Config { entrypoint: vec![entrypoint(first)?], env: self.env, ..Config::default() },
            notes: self.notes,
        })
    }
}

/// A glob of files.
pub(crate) fn glob(text: &str) -> Result<GlobMatcher, Error> {
    let refused = |why: String| Error::Include { glob: text.into(), why };
    if !text.starts_with('/') {
        return Err(refused("is not absolute".into()));
    }
    if Path::new(text).components().any(|part| part == Component::ParentDir) {
        return Err(refused("has a `..`".into()));
    }
    let glob = GlobBuilder::new(text.trim_end_matches('/')).literal_separator(true).backslash_escape(true).build();
    Ok(glob.map_err(|e| refused(format!("is not a glob: {}", e.kind())))?.compile_matcher())
}

fn add(process: &mut Process, name: OsString, object: Object) {
    process.names.extend(object.elf.soname.clone());
    process.names.insert(name);
    process.objects.push(object);
}

/// A configuration is text.
fn entrypoint(path: &Path) -> Result<String, Error> {
    let refused = || Error::Program { path: path.into(), why: "has a name that is not UTF-8".into() };
    path.to_str().map(str::to_owned).ok_or_else(refused)
}

fn path_of(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes).into()
}

/// Names from the last to the first.
fn components(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    parts
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|p| p.as_os_str().into())
        .collect()
}

pub(crate) fn is_kernel(path: &Path) -> bool {
    KERNEL.iter().any(|kernel| path.starts_with(kernel))
}

/// Links of /proc lead where their text does not say.
fn magic(path: &Path) -> bool {
    path.starts_with("/proc")
}

/// `$PLATFORM` and Debian's name of the architecture.
fn platform(machine: Machine) -> Option<(&'static str, &'static str)> {
    use goblin::elf::header::{EM_386, EM_AARCH64, EM_ARM, EM_PPC64, EM_RISCV, EM_S390, EM_X86_64};
    Some(match (machine.machine, machine.is_64) {
        (EM_X86_64, true) => ("x86_64", "x86_64-linux-gnu"),
        (EM_X86_64, false) => ("x86_64", "x86_64-linux-gnux32"),
        (EM_386, _) => ("i686", "i386-linux-gnu"),
        (EM_AARCH64, _) => ("aarch64", "aarch64-linux-gnu"),
        (EM_ARM, _) => ("v7l", "arm-linux-gnueabihf"),
        (EM_RISCV, true) => ("riscv64", "riscv64-linux-gnu"),
        (EM_PPC64, _) => ("power9", "powerpc64le-linux-gnu"),
        (EM_S390, true) => ("z15", "s390x-linux-gnu"),
        _ => return None,
    })
}

/// The directories that glibc searches last; each distribution compiles in a few of these.
fn default_folders(machine: Machine) -> Vec<PathBuf> {
    let multiarch = platform(machine).map(|(_, triple)| [format!("/lib/{triple}"), format!("/usr/lib/{triple}")]);
    let wide = if machine.is_64 { ["/lib64", "/usr/lib64"] } else { ["/lib32", "/usr/lib32"] };
    let folders = multiarch.into_iter().flatten().map(PathBuf::from);
    folders.chain(wide.into_iter().chain(["/lib", "/usr/lib"]).map(PathBuf::from)).collect()
}

/// Replaces `$ORIGIN`, `$LIB` and `$PLATFORM`, with or without braces, by every value that they may have.
fn expand(text: &OsStr, object: &Object) -> Vec<PathBuf> {
    let origin = object.path.parent().unwrap_or(Path::new("/")).as_os_str().as_bytes().to_vec();
    let (platform, triple) = platform(object.elf.machine).unwrap_or(("", ""));
    let libs = [format!("lib/{triple}"), "lib64".into(), "lib".into()].map(String::into_bytes);
    let mut texts = vec![text.as_bytes().to_vec()];
    let values = [("ORIGIN", vec![origin]), ("LIB", libs.into()), ("PLATFORM", vec![platform.into()])];
    for (name, values) in values {
        for token in [format!("${{{name}}}"), format!("${name}")].map(String::into_bytes) {
            if texts.iter().any(|text| position(text, &token).is_some()) {
                texts = texts.iter().flat_map(|text| values.iter().map(|v| replace(text, &token, v))).collect();
            }
        }
    }
    texts.into_iter().map(|text| OsString::from_vec(text).into()).collect()
}

fn position(text: &[u8], token: &[u8]) -> Option<usize> {
    text.windows(token.len()).position(|window| window == token)
}

fn replace(mut text: &[u8], token: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(at) = position(text, token) {
        out.extend(&text[..at]);
        out.extend(value);
        text = &text[at + token.len()..];
    }
    out.extend(text);
    out
}
