//! What is asked of the store.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::error::{shown, text as clean};
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
    /// The same archive, which is not unpacked: containers read from it. One that was unpacked already is taken as it is.
    Lazy(PathBuf),
    /// What was imported under this name ([`Store::import_as`](crate::Store::import_as)), as [`name`] writes it. The ownership of
    /// such a request is that of archives.
    Local(String),
    /// An image of a registry. The pin of such a request is the digest of its manifest or index, as registries know it, and without
    /// a pin it is never found: which one a tag means only its registry knows.
    Registry {
        /// `registry/repository:tag`.
        name: String,
        /// The digest where the author of the request wrote one, 64 hexadecimal digits: another digest is another source.
        digest: Option<String>,
    },
    /// An image of a bundle ([`Bundle`](crate::Bundle)). It is what its digest says, wherever the bundle is by now.
    Bundled {
        /// As the bundle's composition writes it.
        image: String,
        /// The digest of its manifest in the bundle, 64 hexadecimal digits.
        digest: String,
    },
    /// What is built for this component.
    Built {
        /// The component.
        name: String,
        /// The key of all that it depends on, 64 hexadecimal digits: what was built with another is not this image.
        key: String,
    },
    /// What is kept of an image for this component.
    Stripped {
        /// The component.
        name: String,
        /// As of [`Source::Built`].
        key: String,
    },
    /// Programs of this host with what they need.
    Host {
        /// Absolute paths; the first is the entrypoint.
        programs: Vec<PathBuf>,
        /// Absolute globs of further files. `*` stays within a folder, `**` does not; a directory that matches is taken with
        /// everything below.
        include: Vec<String>,
    },
}

impl Source {
    /// The same, without reading from an archive.
    #[must_use]
    pub fn unpacked(&self) -> Source {
        match self {
            Source::Lazy(path) => Source::Tar(path.clone()),
            other => other.clone(),
        }
    }
}

/// As in a `.ctst` file.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => write!(f, "file://{}", shown(path)),
            Source::Tar(path) | Source::Lazy(path) => write!(f, "tar://{}", shown(path)),
            Source::Local(name) => write!(f, "image://{}", clean(name)),
            Source::Built { name, .. } => write!(f, "build://{}", clean(name)),
            Source::Stripped { name, .. } => write!(f, "distroless://{}", clean(name)),
            Source::Registry { name, digest: None } => write!(f, "oci://{}", clean(name)),
            Source::Registry { name, digest: Some(digest) } => {
                write!(f, "oci://{}@sha256:{}", clean(name), clean(digest))
            }
            Source::Bundled { image, digest } => write!(f, "bundle://{}@sha256:{}", clean(image), clean(digest)),
            Source::Host { programs, include } => {
                let programs: Vec<String> = programs.iter().map(|path| shown(path)).collect();
                write!(f, "host://{}", programs.join(","))?;
                if !include.is_empty() {
                    write!(f, " + {}", clean(&include.join(", ")))?;
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
                if let Source::File(_) | Source::Host { .. } = self.source {
                    return Err(Error::NoWorker);
                }
            }
        }
        match &self.source {
            Source::File(path) | Source::Tar(path) | Source::Lazy(path) if !path.is_absolute() => {
                return Err(Error::Relative(path.clone()));
            }
            Source::Host { programs, .. } if programs.is_empty() => return Err(Error::NoProgram),
            _ => {}
        }
        if let Source::Bundled { digest, .. } = &self.source
            && !is_digest(digest)
        {
            return Err(Error::PinFormat(clean(digest)));
        }
        let Some(pin) = self.pin else { return Ok(None) };
        let digits = pin.strip_prefix("sha256:").unwrap_or(pin);
        match is_digest(digits) {
            true => Ok(Some(digits.to_ascii_lowercase())),
            false => Err(Error::PinFormat(clean(pin))),
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
            Source::Lazy(path) => {
                part(b"lazy");
                part(path.as_os_str().as_bytes());
            }
            Source::Built { name, .. } => {
                part(b"build");
                part(name.as_bytes());
            }
            Source::Stripped { name, .. } => {
                part(b"distroless");
                part(name.as_bytes());
            }
            Source::Local(name) => {
                part(b"image");
                part(name.as_bytes());
            }
            Source::Registry { name, digest } => {
                part(b"oci");
                part(name.as_bytes());
                part(digest.as_deref().unwrap_or_default().as_bytes());
            }
            Source::Bundled { image, digest } => {
                part(b"bundle");
                part(image.as_bytes());
                part(digest.as_bytes());
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

/// The name of an image in its one form: with a tag, and without what docker adds to the names of its own registry.
///
/// # Errors
/// [`Error::Name`].
pub fn name(text: &str) -> Result<String, Error> {
    let plain = text.strip_prefix("docker.io/").unwrap_or(text);
    let plain = plain.strip_prefix("library/").unwrap_or(plain);
    let (path, tag) = match plain.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (plain, "latest"),
    };
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let mut parts = path.split('/');
    // The name of a registry may have a port.
    let first = parts.next().unwrap_or_default();
    let host =
        first.split_once(':').map_or(first, |(host, port)| if port.parse::<u16>().is_ok() { host } else { first });
    match text.len() < 256 && is_word(host) && parts.all(is_word) && is_word(tag) {
        true => Ok(format!("{path}:{tag}")),
        false => Err(Error::Name(text.into())),
    }
}

/// What of `known` may be meant by a reference that is not among them: the same name with another tag, or a slip.
pub(crate) fn near(reference: &str, known: impl Iterator<Item = String>) -> Vec<String> {
    const MOST: usize = 3;
    let plain = |text: &str| text.strip_prefix("image://").unwrap_or(text).to_owned();
    let wanted = plain(reference);
    let path = wanted.rsplit_once(':').map_or(&*wanted, |(path, _)| path);
    let mut near: Vec<(usize, String)> = known
        .filter(|known| known.starts_with("image://"))
        .filter_map(|known| {
            let name = plain(&known);
            let other = name.rsplit_once(':').map_or(&*name, |(path, _)| path);
            let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
            let distance = match last(path) == last(other) {
                true => 0,
                false => strsim::damerau_levenshtein(path, other),
            };
            (distance <= 1 + path.len() / 5).then_some((distance, name))
        })
        .collect();
    near.sort();
    near.into_iter().map(|(_, name)| name).take(MOST).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_form() {
        for (text, form) in [
            ("app", "app:latest"),
            ("app:1.0", "app:1.0"),
            ("docker.io/library/redis:7", "redis:7"),
            ("docker.io/team/app", "team/app:latest"),
            ("localhost:5000/team/app", "localhost:5000/team/app:latest"),
            ("localhost:5000/app:x", "localhost:5000/app:x"),
        ] {
            assert_eq!(name(text).unwrap(), form, "{text}");
            assert_eq!(name(form).unwrap(), form, "{form}");
        }
        let long = "a".repeat(300);
        for bad in [
            "",
            ":",
            "a:",
            ":b",
            "a b",
            "a//b",
            "/a",
            "a/",
            "../a",
            "a:b:c",
            "a@sha256:0",
            "\u{1b}",
            "a/b:c/d:e:",
            &long,
        ] {
            assert!(matches!(name(bad), Err(Error::Name(_))), "{bad}");
        }
    }
}
