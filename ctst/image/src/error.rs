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
    /// An archive is not unpacked in the background where that would leave little room.
    #[error(
        "unpack `{}` in the background: the disk of the store has {} MiB free, and twice what its files take is {} MiB",
        shown(archive),
        free >> 20,
        wanted >> 20
    )]
    NoRoom {
        /// The archive.
        archive: PathBuf,
        /// Bytes that are free for this user.
        free: u64,
        /// Bytes that have to be.
        wanted: u64,
    },
    /// The source of a `file://` image does not exist.
    #[error("root file system `{}` does not exist", shown(.0))]
    SourceMissing(PathBuf),
    /// The source of a `file://` image is not a directory.
    #[error("root file system `{}` is not a directory", shown(.0))]
    NotADirectory(PathBuf),
    /// The source of a `file://` image is no root file system, but an OCI layout.
    #[error("`{}` is an OCI layout, which holds the layers of an image and no root file system", shown(.0))]
    LayoutFolder(PathBuf),
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
    /// Something is under way in the store that may count on what would be removed.
    #[error("image store `{}` is in use by an import, a build or the unpacking of an archive in the background", shown(.0))]
    Busy(PathBuf),
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
    /// A file cannot be copied into an image that is built.
    #[error("copy `{what}`: {why}")]
    Copy {
        /// The file, or how its author named it.
        what: String,
        /// What is wrong with it.
        why: String,
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
    #[error("library `{}`, needed by `{}`, is not {place}", text(name), shown(needed_by))]
    Library {
        /// `DT_NEEDED` of the dependent.
        name: String,
        /// Who needs it.
        needed_by: PathBuf,
        /// Where it was looked for: `on this host`.
        place: &'static str,
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
    /// It cannot be said what an image's program needs.
    #[error("{text}")]
    Strip {
        /// What, and why.
        text: String,
        /// What to do about it.
        help: String,
    },
    /// The file of a `tar://` image does not exist.
    #[error("archive `{}` does not exist", shown(.0))]
    ArchiveMissing(PathBuf),
    /// An archive is damaged, contradicts itself, or is of a kind that is not understood.
    #[error("archive `{}` {why}", shown(archive))]
    Archive {
        /// The archive.
        archive: PathBuf,
        /// What is wrong, such as `is empty`.
        why: String,
    },
    /// An entry of an archive is refused: it would land outside, or its meaning is not clear.
    #[error("archive `{}`: entry `{}` {why}", shown(archive), shown(entry))]
    Entry {
        /// The archive.
        archive: PathBuf,
        /// As the archive names it.
        entry: PathBuf,
        /// Why, such as `leads out of the image by ..`.
        why: String,
    },
    /// An archive makes more than [`Limits`](crate::Limits) allow.
    #[error("archive `{}`{} {what}", shown(archive), entry.as_ref().map_or(String::new(), |e| format!(": entry `{}`", shown(e))))]
    TooLarge {
        /// The archive.
        archive: PathBuf,
        /// Where one entry alone is too large.
        entry: Option<PathBuf>,
        /// What is, such as `has more than 4000000 entries`.
        what: String,
    },
    /// A blob inside an archive is not what its name or its image says.
    #[error("archive `{}`: `{blob}` has digest sha256:{found}, expected is sha256:{expected}", shown(archive))]
    BlobDigest {
        /// The archive.
        archive: PathBuf,
        /// The blob.
        blob: String,
        /// 64 hexadecimal digits.
        expected: String,
        /// 64 hexadecimal digits.
        found: String,
    },
    /// An archive has no image for this machine.
    #[error("archive `{}` has no image for {wanted}{}", shown(archive), if found.is_empty() { String::new() } else { format!(", only for {}", found.join(", ")) })]
    Platform {
        /// The archive.
        archive: PathBuf,
        /// This machine's platform.
        wanted: String,
        /// What there is.
        found: Vec<String>,
    },
    /// An archive has more than one image that could be meant.
    #[error("archive `{}` holds {} images: {}", shown(archive), names.len(), names.join(", "))]
    SeveralImages {
        /// The archive.
        archive: PathBuf,
        /// Their names, at most ten.
        names: Vec<String>,
    },
    /// An archive from which no container can be started before it is unpacked.
    #[error("archive `{}` cannot be started from lazily: it {why}", shown(archive))]
    NotLazy {
        /// The archive.
        archive: PathBuf,
        /// What it is, such as `has a layer that is a file with holes`.
        why: String,
    },
    /// A bundle is damaged, or not what `ctst bundle` writes.
    #[error("bundle `{}` {why}", shown(path))]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong, such as `is cut off`.
        why: String,
    },
    /// A bundle is of a newer version.
    #[error("bundle `{}` has version {found}, this ctst knows {known}", shown(path))]
    NewerBundle {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// A bundle is not the one that was meant.
    #[error("bundle `{}` has digest sha256:{found}, expected is sha256:{expected}", shown(path))]
    BundleDigest {
        /// The file.
        path: PathBuf,
        /// 64 hexadecimal digits.
        expected: String,
        /// 64 hexadecimal digits.
        found: String,
    },
    /// Something cannot be put into a bundle.
    #[error("make a bundle: {0}")]
    Unbundled(String),
    /// What is in the store of an image is an index of its archive.
    #[error("image `{}` is in the store as an index only: its archive was not unpacked", text(.0))]
    OnlyIndexed(String),
    /// The index of a lazy image cannot be used.
    #[error("index `{}` {why}", shown(path))]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The ownership can be given by a worker container only.
    #[error("files with the ids of a range can be unpacked in a worker container only")]
    NoWorker,
    /// A worker failed, or did not say what it should.
    #[error("{text}")]
    Worker {
        /// [`Error::code`] of the error inside the worker; `I040` where it has none.
        code: String,
        /// Its text.
        text: String,
        /// [`Error::help`] of it.
        help: Option<String>,
    },
    /// No image of this reference is in the store.
    #[error("no image `{}` is in the store", text(reference))]
    NotInStore {
        /// What was asked for.
        reference: String,
        /// What is there and sounds like it.
        near: Vec<String>,
    },
    /// An image is in the store for other ids than the caller's containers have now.
    #[error("image `{}` was imported for containers with other ids", text(.0))]
    OtherIds(String),
    /// Several images begin like this.
    #[error("`{}` may be {}", text(what), found.join(", "))]
    Ambiguous {
        /// What was asked for.
        what: String,
        /// References that it could mean.
        found: Vec<String>,
    },
    /// A name that no image can have.
    #[error("`{}` is no name of an image", text(.0))]
    Name(String),
    /// What is imported brings no name, and none was given.
    #[error("`{}` brings no name for its image", shown(.0))]
    Nameless(PathBuf),
    /// A registry does not give an image, or the process that asks it fails.
    #[error("{text}")]
    Registry {
        /// `I050` to `I055`, or that of what was found wrong with the image.
        code: &'static str,
        /// What was tried, and why it failed.
        text: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// An image of the store is not what was imported.
    #[error("image `{}` was changed in the store: {why}", text(reference))]
    Damaged {
        /// Its reference.
        reference: String,
        /// What differs.
        why: String,
    },
}

/// Codes of errors that come out of a worker.
const WORKER_CODES: [&str; 15] = [
    "I001", "I002", "I006", "I007", "I012", "I015", "I031", "I032", "I033", "I034", "I035", "I036", "I047", "I059",
    "I065",
];

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
            Error::NotADirectory(_) | Error::LayoutFolder(_) => "I004",
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
            Error::ArchiveMissing(_) => "I030",
            Error::Archive { .. } => "I031",
            Error::Entry { .. } => "I032",
            Error::TooLarge { .. } => "I033",
            Error::BlobDigest { .. } => "I034",
            Error::Platform { .. } => "I035",
            Error::SeveralImages { .. } => "I036",
            Error::NoWorker => "I037",
            Error::Worker { code, .. } => WORKER_CODES.iter().find(|known| *known == code).unwrap_or(&"I040"),
            Error::NotInStore { .. } => "I041",
            Error::Damaged { .. } => "I042",
            Error::OtherIds(_) => "I043",
            Error::Ambiguous { .. } => "I044",
            Error::Name(_) => "I045",
            Error::Nameless(_) => "I046",
            Error::Registry { code, .. } => code,
            Error::NotLazy { .. } => "I047",
            Error::Index { .. } => "I048",
            Error::OnlyIndexed(_) => "I049",
            Error::Copy { .. } => "I059",
            Error::Bundle { .. } => "I060",
            Error::NewerBundle { .. } => "I061",
            Error::BundleDigest { .. } => "I062",
            Error::Unbundled(_) => "I063",
            Error::NoRoom { .. } => "I064",
            Error::Strip { .. } => "I065",
            Error::Busy(_) => "I066",
        }
    }

    /// Whether it is [`Error::NotLazy`], here or in a worker.
    #[must_use]
    pub fn is_not_lazy(&self) -> bool {
        self.code() == "I047"
    }

    /// What to do about it, where there is something.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Error::Full { cause: Errno::DQUOT, .. } => "remove files of yours or have the quota raised".into(),
            Error::Full { path, .. } => format!("make room on the file system of `{}` (df -h shows it)", shown(path)),
            Error::SourceMissing(_) => "create it, or correct the path after `file://`".into(),
            Error::NotADirectory(_) => "`file://` takes a directory that holds a root file system".into(),
            Error::LayoutFolder(path) => format!("pack it for `tar://`: tar -C {0} -cf {0}.tar .", shown(path)),
            Error::Relative(_) => "write it from `/` on".into(),
            Error::Unreadable { root, .. } if root == Path::new("/") => {
                "narrow `include` to files that you may read".into()
            }
            Error::Unreadable { root, .. } => format!(
                "own the files you import: unpack `{}` as yourself, or have their owner run `chmod a+r` on these (as root: chown -R)",
                shown(root)
            ),
            Error::Changed(_) => "try again when nothing writes to the source".into(),
            Error::NoRoom { .. } => {
                "make room, or say `lazy = \"always\"` if it is to be read from its archive for good".into()
            }
            Error::Pin { .. } => "if the new content is wanted, put its digest into the pin".into(),
            Error::PinFormat(_) => "write `@sha256:` and the digest that `ctst images` shows".into(),
            Error::Store { path, .. } => {
                format!("remove `{0}`, or make it yours alone: `chown $(id -u) {0}` and `chmod 700 {0}`", shown(path))
            }
            Error::Busy(_) => "try again afterwards".into(),
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
            Error::ArchiveMissing(_) => "create it, or correct the path after `tar://`".into(),
            Error::Archive { .. } => "make or fetch the archive again; tar, gzip, zstd and xz are understood".into(),
            Error::Entry { .. } => {
                "ask whoever made the archive; one of `tar`, `docker save` or an OCI tool has no such entries".into()
            }
            Error::TooLarge { .. } => "if you trust the archive, unpack it yourself and use `file://`".into(),
            Error::BlobDigest { .. } => "fetch the archive again; if that does not help, do not trust it".into(),
            Error::Platform { .. } => {
                "save the image for this machine: `docker save --platform`, or `skopeo copy --override-arch`".into()
            }
            Error::SeveralImages { .. } => "save one image into the archive: `docker save NAME -o FILE`".into(),
            Error::NotLazy { .. } => {
                "remove `lazy = true`, or make it an archive that is not compressed as a whole: gunzip, unzstd or xz -d"
                    .into()
            }
            Error::OnlyIndexed(_) => "take the archive itself, or import it: `ctst images import FILE NAME`".into(),
            Error::Index { .. } => "make it anew: ctst images prune, and ctst run".into(),
            Error::Bundle { .. } => "copy it again from where it was made, and compare: sha256sum".into(),
            Error::NewerBundle { .. } => "use the ctst that made it, or a newer one".into(),
            Error::BundleDigest { .. } => "it is another, or was changed on its way: do not run it".into(),
            Error::NoWorker => "use the caller's ownership".into(),
            Error::Strip { help, .. } => help.clone(),
            Error::Worker { help, .. } | Error::Registry { help, .. } => return help.clone(),
            Error::NotInStore { near, .. } if !near.is_empty() => {
                let near: Vec<String> = near.iter().map(|near| format!("`{}`", text(near))).collect();
                format!("did you mean {}?", near.join(" or "))
            }
            Error::NotInStore { .. } => {
                "`ctst images ls` shows what is there; `ctst images import FILE NAME` adds an image".into()
            }
            Error::OtherIds(_) => "import it again: `ctst images import FILE NAME`".into(),
            Error::Ambiguous { .. } => "write more of it, or one of these".into(),
            Error::Name(_) => {
                "write letters, digits, `.`, `_`, `-` and `/`, and a tag after `:`, such as `team/app:1.0`".into()
            }
            Error::Nameless(_) => "give it one: `ctst images import FILE NAME`".into(),
            Error::Damaged { .. } => "remove the image and import it again".into(),
            Error::Io { cause: Errno::ACCESS | Errno::PERM, .. } => "check the permissions of the path".into(),
            Error::Io { .. } | Error::Limit { .. } | Error::Elf { .. } | Error::Copy { .. } | Error::Unbundled(_) => {
                return None;
            }
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
