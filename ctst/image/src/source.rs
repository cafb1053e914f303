//! What is asked of the store.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::error::{shown, text};
use crate::model::Ownership;
use crate::tree::Digest;

/// An image as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// Where it comes from.
    pub source: Source,
    /// Who owns the unpacked files.
    pub ownership: Ownership,
    /// The digest that it must have, 64 hexadecimal digits with or without `sha256:` before them.
    pub pin: Option<&'a str>,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory that holds a root file system. Absolute.
    File(PathBuf),
    /// An archive: plain, gzip, zstd or xz; a root file system, an image of `docker save` or an OCI layout. Absolute. The pin
    /// of such a request is the digest of the archive's file.
    Tar(PathBuf),
    /// Programs of this host with what they need.
    Host {
        /// Absolute paths; the first is the entrypoint.
        programs: Vec<PathBuf>,
        /// Absolute globs of further files. `*` stays within a folder, `**` does not; a directory that matches is taken with
        /// everything below.
        include: Vec<String>,
    },
}

/// As in a `.ctst` file.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => write!(f, "file://{}", shown(path)),
            Source::Tar(path) => write!(f, "tar://{}", shown(path)),
            Source::Host { programs, include } => {
                let programs: Vec<String> = programs.iter().map(|path| shown(path)).collect();
                write!(f, "host://{}", programs.join(","))?;
                if !include.is_empty() {
                    write!(f, " + {}", text(&include.join(", ")))?;
                }
                Ok(())
            }
        }
    }
}

impl Request<'_> {
    /// Checks what needs no look at the disk, and gives the pin in its normal form.
    pub(crate) fn check(&self) -> Result<Option<String>, Error> {
        match self.ownership {
            Ownership::Caller => {}
            Ownership::Shifted { base, count } => {
                if count == 0 || base.checked_add(count).is_none() {
                    return Err(Error::Range { base, count });
                }
                if !rustix::process::geteuid().is_root() {
                    return Err(Error::NotRoot);
                }
            }
            Ownership::Subordinate { uid, gid, count } => {
                for base in [uid, gid] {
                    if count == 0 || base == 0 || base.checked_add(count).is_none() {
                        return Err(Error::Range { base, count });
                    }
                }
                if !matches!(self.source, Source::Tar(_)) {
                    return Err(Error::NoWorker);
                }
            }
        }
        match &self.source {
            Source::File(path) | Source::Tar(path) if !path.is_absolute() => return Err(Error::Relative(path.clone())),
            Source::Host { programs, .. } if programs.is_empty() => return Err(Error::NoProgram),
            _ => {}
        }
        let Some(pin) = self.pin else { return Ok(None) };
        let digits = pin.strip_prefix("sha256:").unwrap_or(pin);
        match is_digest(digits) {
            true => Ok(Some(digits.to_ascii_lowercase())),
            false => Err(Error::PinFormat(text(pin))),
        }
    }

    /// Names the request's record: the pin does not count, because it does not change what is imported.
    pub(crate) fn key(&self) -> String {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        match &self.source {
            Source::File(path) => {
                part(b"file");
                part(path.as_os_str().as_bytes());
            }
            Source::Tar(path) => {
                part(b"tar");
                part(path.as_os_str().as_bytes());
            }
            Source::Host { programs, include } => {
                part(b"host");
                part(&(programs.len() as u64).to_le_bytes());
                programs.iter().for_each(|path| part(path.as_os_str().as_bytes()));
                include.iter().for_each(|glob| part(glob.as_bytes()));
            }
        }
        part(map_key(self.ownership).as_bytes());
        hex(&hash.finalize().into())
    }
}

/// The part of a layer's name that tells id maps apart.
pub(crate) fn map_key(ownership: Ownership) -> String {
    match ownership {
        Ownership::Caller => String::new(),
        Ownership::Shifted { base, count } => format!("-{base}-{count}"),
        Ownership::Subordinate { uid, gid, count } => format!("-{uid}-{gid}-{count}"),
    }
}

pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

pub(crate) fn hex(digest: &Digest) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    digest.iter().flat_map(|b| [b >> 4, b & 15]).map(|n| char::from(DIGITS[usize::from(n)])).collect()
}
