//! An image with only what its program needs.
//!
//! What that is, is found in a worker whose root is the image, so that no link leads out of it: the files that the dynamic loader
//! opens ([`crate::host`]), what scripts run ([`shell`]), the folders of interpreters ([`interpreters`]), what libraries read, and what
//! the author keeps. A command that only a running script knows is an error.

mod dropped;
mod interpreters;
mod shell;
mod wrappers;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use globset::GlobMatcher;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use crate::Error;
use crate::copy::{self, Copy};
use crate::error::shown;
use crate::host::{Collector, glob};
use crate::model::Ownership;
use crate::tree::Body;
use crate::unpack::{Owners, open_tree};

pub use dropped::Dropped;

/// A text file of which more is not read: scripts, and what libraries are configured by.
const MAX_TEXT: u64 = 1 << 20;
/// Folders below /var and /run that are kept, empty.
const MAX_FOLDERS: usize = 20_000;
/// What libraries read, and what tells what the image is.
const READ: [&str; 14] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/ld.so.conf",
    "/etc/localtime",
    "/etc/timezone",
    "/usr/share/zoneinfo/UTC",
    "/usr/share/zoneinfo/Etc/UTC",
    "/etc/os-release",
];
/// Where libraries that check certificates look for authorities: Debian and Alpine, Fedora.
const CERTIFICATES: [&str; 5] =
    ["/etc/ssl", "/usr/lib/ssl", "/etc/pki/tls", "/etc/pki/ca-trust/extracted", "/etc/crypto-policies"];
/// Folders that programs expect, where the image has them.
const EXPECTED: [&str; 11] =
    ["/dev", "/etc", "/home", "/mnt", "/opt", "/proc", "/root", "/run", "/srv", "/sys", "/tmp"];

/// Of which image what is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StripJob {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Commands that are run beside it, such as that of a health check.
    pub commands: Vec<Vec<String>>,
    /// Its environment, `NAME=value`, as far as something is found by it: see [`StripJob::counts`].
    pub env: Vec<String>,
    /// Its working directory.
    pub cwd: String,
    /// Folders that are kept whole: what becomes a volume begins with that.
    pub volumes: Vec<String>,
    /// Absolute globs of what else is kept.
    pub keep: Vec<String>,
    /// Who owns the files.
    pub owners: Owners,
}

impl StripJob {
    /// Whether something is found by a variable of this name.
    #[must_use]
    pub fn counts(name: &str) -> bool {
        name.starts_with("LC_")
            || [
                "PATH",
                "LANG",
                "LANGUAGE",
                "TZ",
                "LD_LIBRARY_PATH",
                "PYTHONPATH",
                "PYTHONHOME",
                "PERL5LIB",
                "RUBYLIB",
                "NODE_PATH",
                "VIRTUAL_ENV",
            ]
            .contains(&name)
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }

    /// The absolute paths of a list of them.
    fn paths(&self, name: &str) -> Vec<PathBuf> {
        let list = self.variable(name).unwrap_or_default();
        list.split(':').map(PathBuf::from).filter(|path| path.is_absolute()).collect()
    }
}

/// What was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stripped {
    /// Bytes of the files that were kept, and how many there are, links among them.
    pub size: u64,
    /// See above.
    pub files: u64,
    /// The same of the whole image.
    pub full_size: u64,
    /// See above.
    pub full_files: u64,
    /// The folders that lost most, the largest first.
    pub dropped: Vec<Dropped>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What was kept of which image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Reference of the image.
    pub of: String,
    /// How much.
    #[serde(flatten)]
    pub what: Stripped,
    /// Why it was not tried whether the program runs with that; `None`: it was, and it did.
    pub untried: Option<String>,
}

/// Copies what is kept of the image that is the root into `target`, an empty folder.
pub(crate) fn strip(job: &StripJob, target: &Path) -> Result<Stripped, Error> {
    let host = Closure::new(job)?.collect()?;
    let mut items = host.items;
    copy::find_hard_links(&mut items);
    let ownership = match job.owners {
        Owners::Flatten => Ownership::Caller,
        Owners::Map { base, count } => Ownership::Shifted { base, count },
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, "/", flags, Mode::empty()).map_err(|cause| Error::io("open", "/", cause))?;
    let made =
        Copy { source: (&root, Path::new("/")), target: (&open_tree(target)?, target), items: &items, ownership };
    copy::copy(&made, &mut |_| {})?;
    let kept = items.iter().filter(|item| item.body != Body::Directory);
    let size = items.iter().filter(|i| matches!(i.body, Body::File | Body::Made(_))).map(|i| i.meta.size).sum();
    let (files, paths) = (kept.count() as u64, items.iter().map(|item| item.path.as_slice()).collect());
    let (full_size, full_files, dropped) = dropped::compare(&root, &paths)?;
    Ok(Stripped { size, files, full_size, full_files, dropped, notes: host.notes })
}

fn failed(text: String, help: impl Into<String>) -> Error {
    Error::Strip { text, help: help.into() }
}

/// What only running scripts know.
#[derive(Default)]
struct Unknown {
    scripts: BTreeSet<String>,
    /// In the order in which it was found; not more than are told.
    texts: Vec<String>,
    count: usize,
}

impl Unknown {
    const MOST_TOLD: usize = 20;

    /// `file`: the script; `None`: the text is an argument of a command.
    fn add(&mut self, file: Option<&Path>, text: String) {
        if self.texts.contains(&text) {
            return;
        }
        self.count += 1;
        if self.texts.len() < Self::MOST_TOLD {
            self.texts.push(text);
            self.scripts.extend(file.map(|file| format!("`{}`", shown(file))));
        }
    }

    fn check(&self) -> Result<(), Error> {
        if self.count == 0 {
            return Ok(());
        }
        let more = match self.count - self.texts.len() {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let scripts = self.scripts.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let help = match self.scripts.len() {
            0 => "name the program itself as the command, or put the text into a script of the image".to_owned(),
            1 => format!("see what it runs, and name that and the script in `keep`: {scripts}, …"),
            _ => format!("see what they run, and name that and the scripts in `keep`: {scripts}, …"),
        };
        Err(failed(format!("{}{more}", self.texts.join("; ")), help))
    }
}

const SEE_IMAGE: &str = "correct the command, or put the file into the image";

/// What is kept, while it is found.
struct Closure<'a> {
    job: &'a StripJob,
    files: Collector,
    /// [`StripJob::keep`].
    kept: Vec<GlobMatcher>,
    /// Scripts that were read.
    read: BTreeSet<PathBuf>,
    /// Commands that scripts name and the image does not have, with one of the scripts.
    absent: BTreeSet<(String, String)>,
    unknown: Unknown,
    /// Interpreters whose folders are kept.
    interpreters: BTreeSet<String>,
    /// Files that may be ELF, and are taken.
    data: Vec<PathBuf>,
}

impl<'a> Closure<'a> {
    fn new(job: &'a StripJob) -> Result<Self, Error> {
        let mut files = Collector::new("in the image", job.paths("PATH"))?;
        files.library_path = job.paths("LD_LIBRARY_PATH");
        files.keeps_owners = true;
        let kept = job.keep.iter().map(|text| glob(text)).collect::<Result<_, _>>().map_err(plain)?;
        Ok(Closure {
            job,
            files,
            kept,
            read: BTreeSet::new(),
            absent: BTreeSet::new(),
            unknown: Unknown::default(),
            interpreters: BTreeSet::new(),
            data: Vec::new(),
        })
    }

    fn collect(mut self) -> Result<crate::host::Host, Error> {
        let first = self.job.argv.first().cloned().unwrap_or_default();
        for argv in std::iter::once(&self.job.argv).chain(&self.job.commands) {
            self.argv(argv).map_err(plain)?;
        }
        self.unknown.check()?;
        self.interpreters()?;
        for folder in &self.job.volumes {
            self.folder(Path::new(folder))?;
        }
        let cwd = PathBuf::from(&self.job.cwd);
        if !is_shared(&cwd) {
            self.folder(&cwd)?;
        }
        for glob in &self.job.keep {
            let files = self.files.include(glob).map_err(plain)?;
            self.data.extend(files);
        }
        let data = std::mem::take(&mut self.data);
        self.files.analyse_included(&data)?;
        std::mem::take(&mut self.files.unreadable).check(Path::new("/"))?;
        self.files.add_opened()?;
        self.name_services()?;
        self.files.add_glibc_needs()?;
        if self.files.checks_certificates() {
            for folder in CERTIFICATES {
                self.folder(Path::new(folder))?;
            }
        }
        self.locales()?;
        for path in READ {
            self.files.take_if_there(Path::new(path))?;
        }
        self.folders()?;
        self.files.add_base();
        self.files.add_merged()?;
        if !self.absent.is_empty() {
            let names: Vec<String> =
                self.absent.iter().take(20).map(|(name, script)| format!("`{name}` ({script})")).collect();
            let more = self.absent.len().saturating_sub(names.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let note = format!("commands that scripts name and the image does not have: {}{more}", names.join(", "));
            self.files.notes.push(note);
        }
        let program = self.files.find(first.as_ref())?.unwrap_or_else(|| first.into());
        self.files.finish(&program)
    }

    /// Takes a command that is run as it stands.
    fn argv(&mut self, argv: &[String]) -> Result<(), Error> {
        let Some(first) = argv.first() else { return Ok(()) };
        let Some(program) = self.locate(first)? else {
            let folders = self.files.path.iter().map(|folder| shown(folder)).collect::<Vec<_>>().join(":");
            let place = if first.contains('/') { String::new() } else { format!(", on PATH {folders}") };
            let text = format!("program `{}` is not in the image{place}", shown(Path::new(first)));
            return Err(failed(text, SEE_IMAGE));
        };
        for word in &argv[1..] {
            self.argument(word)?;
        }
        self.run(&program, argv, 0)
    }

    /// Where a command is; a path that is not absolute begins at the working directory.
    fn locate(&mut self, name: &str) -> Result<Option<PathBuf>, Error> {
        let from_cwd = name.contains('/') && !name.starts_with('/');
        let name = if from_cwd { self.cwd().join(name).into_os_string() } else { OsString::from(name) };
        self.files.find(&name)
    }

    fn cwd(&self) -> PathBuf {
        Path::new("/").join(&self.job.cwd)
    }

    /// Takes a file that an argument names, or all of a folder: `/etc/app.conf`, `--config=/etc/app.conf`, `app.py`.
    fn argument(&mut self, word: &str) -> Result<(), Error> {
        let value = word.split_once('=').map_or(word, |(_, value)| value);
        for text in [word, value] {
            if text.is_empty() || text.starts_with('-') || text.contains('\0') || text.len() > 4096 {
                continue;
            }
            let path = self.cwd().join(text);
            let Some(found) = self.files.resolve(&path)? else { continue };
            match found.meta.kind {
                FileType::RegularFile => {
                    self.files.take(&found)?;
                    self.data.push(found.real);
                }
                FileType::Directory if !is_shared(&found.real) => self.folder(&found.real)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes a folder with all below, where the image has it.
    fn folder(&mut self, path: &Path) -> Result<(), Error> {
        let Some(found) = self.files.resolve(path)?.filter(|found| found.meta.kind == FileType::Directory) else {
            return Ok(());
        };
        self.files.take(&found)?;
        let Some(text) = found.real.to_str() else { return Ok(()) };
        let files = self.files.include(&globset::escape(text)).map_err(plain)?;
        self.data.extend(files);
        Ok(())
    }

    /// A text file of the image's; `None`: there is none.
    fn text(&mut self, path: &Path) -> Result<Option<String>, Error> {
        let Some(found) = self.files.resolve(path)?.filter(|found| found.meta.kind == FileType::RegularFile) else {
            return Ok(None);
        };
        if found.meta.size > MAX_TEXT {
            return Err(failed(
                format!("`{}` has more than a megabyte, which is not looked through", shown(path)),
                format!("name it, and all that it needs, in `keep`: `{}`", shown(path)),
            ));
        }
        let mut text = Vec::new();
        File::open(&found.real)
            .and_then(|file| file.take(MAX_TEXT).read_to_end(&mut text))
            .map_err(|e| Error::std("read", path, &e))?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }

    /// What `nsswitch.conf(5)` has loaded.
    fn name_services(&mut self) -> Result<(), Error> {
        let text = self.text(Path::new("/etc/nsswitch.conf"))?.unwrap_or_default();
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let words = lines.filter_map(|line| line.split_once(':')).flat_map(|(_, words)| words.split_whitespace());
        let is_name = |word: &&str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && word.len() < 64;
        let names: BTreeSet<&str> = words.filter(is_name).collect();
        self.files.services = names.into_iter().map(|name| format!("libnss_{name}.so.2").into()).collect();
        Ok(())
    }

    /// What LANG, LC_* and TZ name.
    fn locales(&mut self) -> Result<(), Error> {
        let names = self.job.env.iter().filter_map(|entry| entry.split_once('='));
        let names = names.filter(|(name, _)| *name == "LANG" || name.starts_with("LC_")).map(|(_, value)| value);
        let is_built_in = |name: &str| matches!(name, "" | "C" | "POSIX") || name.starts_with("C.");
        let mut names: Vec<String> = names.filter(|name| !is_built_in(name)).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        if !names.is_empty() {
            self.files.take_if_there(Path::new("/usr/lib/locale/locale-archive"))?;
        }
        for name in names.iter().filter(|name| !name.contains('/')) {
            // As setlocale(3) finds `en_US.UTF-8`: in `en_US.utf8`.
            let normal = name.replace("UTF-8", "utf8");
            for name in [name, &normal] {
                self.folder(&Path::new("/usr/lib/locale").join(name))?;
            }
        }
        if self.job.variable("TZ").is_some_and(|zone| !zone.is_empty()) {
            self.folder(Path::new("/usr/share/zoneinfo"))?;
        }
        Ok(())
    }

    /// Folders that programs write into or expect: homes, and what is below /var and /run, without files.
    fn folders(&mut self) -> Result<(), Error> {
        let accounts = self.text(Path::new("/etc/passwd"))?.unwrap_or_default();
        let homes = accounts.lines().filter_map(|line| line.split(':').nth(5)).filter(|home| home.starts_with('/'));
        let places: BTreeSet<PathBuf> =
            homes.map(PathBuf::from).chain(EXPECTED.map(PathBuf::from)).chain([self.cwd()]).collect();
        for place in places {
            if let Some(found) = self.files.resolve(&place)?.filter(|found| found.meta.kind == FileType::Directory) {
                self.files.take_folder(&found)?;
            }
        }
        for top in ["/var", "/run"] {
            // Where it is a link, that is kept as one.
            let found = self.files.resolve(Path::new(top))?.filter(|found| found.meta.kind == FileType::Directory);
            let Some(found) = found else { continue };
            self.files.take_folder(&found)?;
            let folders =
                WalkDir::new(&found.real).follow_links(false).into_iter().filter_entry(|e| !e.file_type().is_file());
            for entry in folders.take(MAX_FOLDERS).flatten() {
                if entry.file_type().is_dir() {
                    self.files.put(entry.path())?;
                } else if entry.file_type().is_symlink() && entry.depth() == 1 {
                    // /var/run.
                    self.files.take_if_there(entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Whether the author has said that he looked into a script, by keeping it.
    fn is_vouched_for(&self, script: &Path) -> bool {
        self.kept.iter().any(|glob| script.ancestors().any(|path| glob.is_match(path)))
    }
}

/// Errors of what is collected, in words for somebody whose image it is.
fn plain(error: Error) -> Error {
    match error {
        Error::Program { .. } => failed(error.to_string(), SEE_IMAGE),
        Error::Library { .. } | Error::Elf { .. } => {
            failed(error.to_string(), "put what it needs into the image, or keep all of it: leave `distroless` out")
        }
        Error::Include { glob, why } => failed(
            format!("keep `{}` {why}", shown(Path::new(&glob))),
            "write an absolute glob that matches files of the image",
        ),
        other => other,
    }
}

/// Whether a folder holds what belongs to many programs.
fn is_shared(path: &Path) -> bool {
    const WITHIN: [&str; 4] = ["/", "/usr", "/usr/local", "/var"];
    const NAMES: [&str; 26] = [
        "bin", "boot", "cache", "dev", "etc", "home", "include", "lib", "lib32", "lib64", "libexec", "libx32", "local",
        "log", "mail", "media", "mnt", "proc", "run", "sbin", "share", "spool", "sys", "tmp", "usr", "var",
    ];
    let name = path.file_name().unwrap_or_default().as_bytes();
    let is_within = |parent: &Path| WITHIN.iter().any(|within| Path::new(within) == parent);
    path.parent().is_none_or(|parent| is_within(parent) && NAMES.iter().any(|known| known.as_bytes() == name))
}
