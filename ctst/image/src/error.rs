//! What can go wrong while an image is looked up or imported.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why an image cannot be had. The text is a lower-case fragment; [`Error::help`] says what to do about it and
/// [`Error::code`] is stable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a call.
    #[error("{step} `{}`: {cause}", shown(path))]
    Io {
        /// What was tried, such as `open`.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: Errno,
    },
    /// No space or quota is left where the store is.
    #[error("{step} `{}`: {}", shown(path), if *cause == Errno::DQUOT { "the disk quota is used up" } else { "the disk is full" })]
    Full {
        /// What was tried, such as `write`.
        step: &'static str,
        /// What was being written.
        path: PathBuf,
        /// `ENOSPC` or `EDQUOT`.
        cause: Errno,
    },
    /// The source of a `file://` image does not exist.
    #[error("root file system `{}` does not exist", shown(.0))]
    SourceMissing(PathBuf),
    /// The source of a `file://` image is not a directory.
    #[error("root file system `{}` is not a directory", shown(.0))]
    NotADirectory(PathBuf),
    /// A path that must be absolute is not.
    #[error("path `{}` is not absolute", shown(.0))]
    Relative(PathBuf),
    /// The caller may not read files of the source.
    #[error("{count} of the files in `{}` cannot be read: {}", shown(root), list(examples, *count))]
    Unreadable {
        /// The source.
        root: PathBuf,
        /// The first few of them.
        examples: Vec<PathBuf>,
        /// How many there are.
        count: usize,
    },
    /// A file of the source was written, replaced or removed while it was being imported.
    #[error("`{}` changed while it was read", shown(.0))]
    Changed(PathBuf),
    /// The content is not the pinned one.
    #[error("`{reference}` has digest sha256:{found}, pinned is sha256:{expected}")]
    Pin {
        /// What was imported.
        reference: String,
        /// From the request, 64 hexadecimal digits.
        expected: String,
        /// Of the content, 64 hexadecimal digits.
        found: String,
    },
    /// A pin is not a SHA-256 digest.
    #[error("pin `{0}` is not a digest of 64 hexadecimal digits")]
    PinFormat(String),
    /// The store is not a private directory of the caller.
    #[error("image store `{}` {why}", shown(path))]
    Store {
        /// The store or one of its folders.
        path: PathBuf,
        /// What is wrong, such as `belongs to another user`.
        why: &'static str,
    },
    /// A catalogue record was written by a newer version.
    #[error("catalogue record `{}` has schema {found}, this ctst knows {known}", shown(path))]
    Newer {
        /// The record.
        path: PathBuf,
        /// Its schema.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// A file's owner does not fit in the id range.
    #[error("`{}` belongs to id {id}, the range has {count} ids", shown(path))]
    OwnerRange {
        /// The file.
        path: PathBuf,
        /// Its user or group id.
        id: u32,
        /// Ids in the range.
        count: u32,
    },
    /// Only root may give files away ([`crate::model::Ownership::Shifted`]).
    #[error("files of an image can be given to other ids by root only")]
    NotRoot,
    /// The id range is empty or reaches beyond the last id.
    #[error("id range {base}+{count} is empty or too large")]
    Range {
        /// First host id.
        base: u32,
        /// Number of ids.
        count: u32,
    },
    /// The source is larger than what can be handled.
    #[error("`{}`: {what}", shown(path))]
    Limit {
        /// Where.
        path: PathBuf,
        /// Which limit.
        what: &'static str,
    },
    /// The source directory contains the store, which would then be imported into itself.
    #[error("root file system `{}` contains the image store `{}`", shown(root), shown(store))]
    HoldsStore {
        /// The source.
        root: PathBuf,
        /// The store.
        store: PathBuf,
    },
    /// A `host://` request names no program.
    #[error("`host://` names no program")]
    NoProgram,
    /// A program of a `host://` image cannot be used.
    #[error("program `{}` {why}", shown(path))]
    Program {
        /// The program.
        path: PathBuf,
        /// What is wrong, such as `does not exist`.
        why: String,
    },
    /// A shared library is nowhere on this host.
    #[error("library `{}`, needed by `{}`, is not on this host", text(name), shown(needed_by))]
    Library {
        /// `DT_NEEDED` of the dependent.
        name: String,
        /// Who needs it.
        needed_by: PathBuf,
    },
    /// An ELF file is damaged or of a kind that is not understood.
    #[error("ELF file `{}` {why}", shown(path))]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// An `include` glob cannot be used.
    #[error("include `{}` {why}", text(glob))]
    Include {
        /// The glob.
        glob: String,
        /// What is wrong, such as `matches nothing`.
        why: String,
    },
}

impl Error {
    /// The refusal of one call; a full disk gets a variant of its own.
    pub(crate) fn io(step: &'static str, path: impl Into<PathBuf>, cause: Errno) -> Error {
        let path = path.into();
        match cause {
            Errno::NOSPC | Errno::DQUOT => Error::Full { step, path, cause },
            _ => Error::Io { step, path, cause },
        }
    }

    /// The same for an error of the standard library.
    pub(crate) fn std(step: &'static str, path: impl Into<PathBuf>, cause: &std::io::Error) -> Error {
        Error::io(step, path, Errno::from_io_error(cause).unwrap_or(Errno::IO))
    }

    /// A short code that does not change between versions.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Error::Io { .. } => "I001",
            Error::Full { .. } => "I002",
            Error::SourceMissing(_) => "I003",
            Error::NotADirectory(_) => "I004",
            Error::Relative(_) => "I005",
            Error::Unreadable { .. } => "I006",
            Error::Changed(_) => "I007",
            Error::Pin { .. } => "I008",
            Error::PinFormat(_) => "I009",
            Error::Store { .. } => "I010",
            Error::Newer { .. } => "I011",
            Error::OwnerRange { .. } => "I012",
            Error::NotRoot => "I013",
            Error::Range { .. } => "I014",
            Error::Limit { .. } => "I015",
            Error::HoldsStore { .. } => "I016",
            Error::NoProgram => "I020",
            Error::Program { .. } => "I021",
            Error::Library { .. } => "I022",
            Error::Elf { .. } => "I023",
            Error::Include { .. } => "I024",
        }
    }

    /// What to do about it, where there is something.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Error::Full { cause: Errno::DQUOT, .. } => "remove files of yours or have the quota raised".into(),
            Error::Full { path, .. } => format!("make room on the file system of `{}` (df -h shows it)", shown(path)),
            Error::SourceMissing(_) => "create it, or correct the path after `file://`".into(),
            Error::NotADirectory(_) => "`file://` takes a directory that holds a root file system".into(),
            Error::Relative(_) => "write it from `/` on".into(),
            Error::Unreadable { root, .. } if root == Path::new("/") => {
                "narrow `include` to files that you may read".into()
            }
            Error::Unreadable { root, .. } => format!(
                "own the files you import: unpack `{}` as yourself, or have their owner run `chmod a+r` on these (as root: chown -R)",
                shown(root)
            ),
            Error::Changed(_) => "try again when nothing writes to the source".into(),
            Error::Pin { .. } => "if the new content is wanted, put its digest into the pin".into(),
            Error::PinFormat(_) => "write `@sha256:` and the digest that `ctst images` shows".into(),
            Error::Store { path, .. } => {
                format!("remove `{0}`, or make it yours alone: `chown $(id -u) {0}` and `chmod 700 {0}`", shown(path))
            }
            Error::Newer { path, .. } => format!("use the newer ctst, or remove `{}` to import again", shown(path)),
            Error::OwnerRange { id, .. } => {
                format!("give the container a range of at least {} ids", u64::from(*id) + 1)
            }
            Error::NotRoot => "run as an ordinary user with the caller's ownership".into(),
            Error::Range { .. } => "name a range that ends below 4294967295".into(),
            Error::HoldsStore { .. } => "keep the root file system in a folder of its own".into(),
            Error::NoProgram => "name one, such as `host:///usr/bin/redis-server`".into(),
            Error::Program { .. } => {
                "name an installed program by its absolute path (`command -v NAME` shows it)".into()
            }
            Error::Library { name, .. } => format!(
                "install the package that has it: `apt-file search {0}` or `dnf provides '*/{0}'` names it",
                text(name)
            ),
            Error::Include { .. } => "write an absolute glob that matches files of this host".into(),
            Error::Io { cause: Errno::ACCESS | Errno::PERM, .. } => "check the permissions of the path".into(),
            Error::Io { .. } | Error::Limit { .. } | Error::Elf { .. } => return None,
        })
    }
}

/// A path for a terminal: file names are written by strangers and may hold escape sequences.
pub(crate) fn shown(path: &Path) -> String {
    text(&path.to_string_lossy())
}

/// The same for other strings from outside.
pub(crate) fn text(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c.is_control() {
            true => write!(out, "{}", c.escape_default()).expect("a string takes everything"),
            false => out.push(c),
        }
        out
    })
}

/// `a, b, c and 4 more`.
pub(crate) fn list(paths: &[PathBuf], count: usize) -> String {
    let names = paths.iter().map(|path| shown(path)).collect::<Vec<_>>().join(", ");
    match count.saturating_sub(paths.len()) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}
