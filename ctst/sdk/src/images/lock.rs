//! `containust.lock`: what was found on the network, by digest, so that everybody who has the file gets the same.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use containust_lang::model::{Composition, Image};
use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Result};
use crate::project::{Project, read_bounded};

/// Version of [`Lock`]. A newer one is refused. In 1 there are no images, and without any it is written still.
const VERSION: u64 = 2;

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lock {
    pub(super) version: u64,
    /// Digest by address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) imports: BTreeMap<String, String>,
    /// Digest of the manifest or index by `registry/repository:tag`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) images: BTreeMap<String, String>,
}

impl Lock {
    /// Reads it; one that is not there is empty.
    ///
    /// # Errors
    /// [`Error::Lock`], [`Error::NewerState`] and [`Error::Io`].
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = match read_bounded(path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other?,
        };
        Self::parse(bytes, path)
    }

    /// What stands in it. `path` is for messages.
    ///
    /// # Errors
    /// As [`Lock::read`].
    pub(crate) fn parse(bytes: Vec<u8>, path: &Path) -> Result<Self> {
        let text = String::from_utf8(bytes)
            .map_err(|error| Error::io(format!("read {}", path.display()), io::Error::other(error)))?;
        let broken = |problem: String| Error::Lock { path: path.to_owned(), problem };
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let message = |error: toml::de::Error| broken(error.message().to_owned());
        let Version { version } = toml::from_str(&text).map_err(message)?;
        if version > VERSION {
            return Err(Error::NewerState { path: path.to_owned(), found: version, known: VERSION });
        }
        let lock: Self = toml::from_str(&text).map_err(message)?;
        let good =
            |digest: &String| digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match lock.imports.iter().chain(&lock.images).find(|(_, digest)| !good(digest)) {
            Some((name, _)) => Err(broken(format!("the digest of {name} is not 64 lower-case hexadecimal digits"))),
            None => Ok(lock),
        }
    }

    /// Tells images of registries by which digests they are known.
    pub(crate) fn tell(&self, composition: &mut Composition) {
        for component in &mut composition.components {
            if let Image::Registry { name, locked, .. } = &mut component.image {
                *locked = self.images.get(name).cloned();
            }
        }
    }

    /// Makes these entries, and keeps all others that the file has by now.
    ///
    /// # Errors
    /// As [`Lock::read`].
    pub(crate) fn add(path: &Path, new: &Self) -> Result<()> {
        let mut lock = Self::read(path)?;
        lock.imports.extend(new.imports.clone());
        lock.images.extend(new.images.clone());
        lock.version = if lock.images.is_empty() { 1 } else { VERSION };
        let body = toml::to_string(&lock).map_err(|e| Error::protocol(e.to_string()))?;
        let text = format!("# Written by `ctst lock`; belongs under version control.\n{body}");
        write(path, text.as_bytes()).during(|| format!("write {}", path.display()))
    }
}

/// Replaces a file whole.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".new.").tempfile_in(folder)?;
    io::Write::write_all(&mut file, bytes)?;
    file.as_file().sync_all()?;
    // What is made in `.containust` is shut off by that folder; the lock file lies beside the composition.
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

impl Project {
    /// `containust.lock`, beside the file.
    #[must_use]
    pub fn import_lock(&self) -> PathBuf {
        self.folder().join("containust.lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(text: &str) -> Result<Lock> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("l"), text).unwrap();
        Lock::read(&dir.path().join("l"))
    }

    #[test]
    fn it_is_read_strictly() {
        assert_eq!(Lock::read(Path::new("/nowhere/at-all")).unwrap(), Lock::default());
        // A repository may hold a link to anything.
        assert!(Lock::read(Path::new("/dev/zero")).unwrap_err().to_string().contains("not a regular file"));
        let digest = "0123456789abcdef".repeat(4);
        let good = format!("version = 1\n[imports]\n\"https://a.example/b\" = \"{digest}\"\n");
        assert_eq!(lock(&good).unwrap().imports["https://a.example/b"], digest);
        let images = format!("version = 2\n[images]\n\"a.example/b:1\" = \"{digest}\"\n");
        assert_eq!(lock(&images).unwrap().images["a.example/b:1"], digest);
        assert!(matches!(lock("version = 3\nnew = 1\n"), Err(Error::NewerState { found: 3, .. })));
        for bad in [
            "",
            "version = 1\nother = 2\n",
            &good.replace("0123", "012"),
            &good.replace("abc", "ABC"),
            &images.replace("0123", "0l23"),
            "\u{0}",
        ] {
            assert!(matches!(lock(bad), Err(Error::Lock { .. })), "{bad}");
        }
    }

    #[test]
    fn entries_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("containust.lock");
        let entry = |name: &str, digit: &str| BTreeMap::from([(name.to_owned(), digit.repeat(64))]);
        Lock::add(&path, &Lock { imports: entry("https://a.example/b", "0"), ..Lock::default() }).unwrap();
        // Which older versions read, too.
        assert!(std::fs::read_to_string(&path).unwrap().contains("version = 1\n"));
        Lock::add(&path, &Lock { images: entry("a.example/b:1", "1"), ..Lock::default() }).unwrap();
        let lock = Lock::read(&path).unwrap();
        assert_eq!((lock.version, lock.imports.len(), lock.images.len()), (2, 1, 1));
    }
}
