//! Imports from `https://`: fetched once, kept by their digest, and held to the digest that somebody pinned or locked.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ureq::tls::{RootCerts, TlsConfig};

use crate::error::{During, Error, Result};
use crate::host::launch::being_offline;
use crate::project::{Project, read_bounded};

/// Version of [`Lock`]. An older one would be read here; a newer one is refused.
const VERSION: u64 = 1;
/// Of one imported file. The largest that people share are some kilobytes.
const MAX_IMPORT: u64 = 4 << 20;
/// For all of one file: name, connection, answer.
const TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: u32 = 5;

/// What may be fetched while a composition is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fetching {
    /// Nothing: what is not in `.containust/imports/` is missing.
    #[default]
    Never,
    /// What has a pin or an entry in `containust.lock`, and is not there yet.
    Known,
    /// Everything; the digests of what has no pin go into `containust.lock`. With `update` also of what has an entry.
    Lock {
        /// Whether entries are made anew.
        update: bool,
    },
}

/// `containust.lock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    version: u64,
    /// Digest by address.
    #[serde(default)]
    imports: BTreeMap<String, String>,
}

/// The remote imports of one reading of a composition.
#[derive(Debug)]
pub(crate) struct Imports<'a> {
    project: &'a Project,
    fetching: Fetching,
    offline: bool,
    lock: Mutex<Lock>,
    /// What `containust.lock` held before.
    before: Lock,
}

impl<'a> Imports<'a> {
    /// Reads the project's `containust.lock`.
    ///
    /// # Errors
    /// [`Error::Lock`], [`Error::NewerState`] and [`Error::Io`].
    pub(crate) fn new(project: &'a Project, fetching: Fetching, offline: bool) -> Result<Self> {
        let lock = read_lock(&project.import_lock())?;
        Ok(Self { project, fetching, offline, before: lock.clone(), lock: Mutex::new(lock) })
    }

    /// The imported file, from the folder of imports or from the network.
    ///
    /// # Errors
    /// Why it cannot be had, and what to do.
    pub(crate) fn fetch(&self, url: &str, pin: Option<&str>) -> Result<Vec<u8>, (String, String)> {
        let refuse = |cause: &str, help: String| Err((cause.to_owned(), help));
        let locked = self.known().imports.get(url).cloned();
        let anew = matches!(self.fetching, Fetching::Lock { update: true });
        let known = pin.map(str::to_owned).or(locked.filter(|_| !anew));
        let Some(digest) = known else {
            if !matches!(self.fetching, Fetching::Lock { .. }) {
                return refuse(
                    "nothing says which digest it has",
                    "write SHA256 \"…\" behind it, or run: ctst lock".to_owned(),
                );
            }
            let bytes = self.download(url)?;
            let digest = sha256(&bytes);
            self.keep(&digest, &bytes)?;
            self.known().imports.insert(url.to_owned(), digest);
            return Ok(bytes);
        };
        let path = self.project.imports_dir().join(&digest);
        match std::fs::read(&path) {
            Ok(bytes) if sha256(&bytes) == digest => return Ok(bytes),
            // Cut off or changed: as good as missing.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return refuse(&format!("read {}: {error}", path.display()), "mend that".to_owned()),
        }
        if self.fetching == Fetching::Never {
            return refuse("it was not fetched yet", "fetch it: ctst lock".to_owned());
        }
        if self.offline {
            let place = format!("bring the file as {}", path.display());
            return refuse(&format!("nothing is fetched{}", being_offline()), place);
        }
        let bytes = self.download(url)?;
        let found = sha256(&bytes);
        if found != digest {
            let by = if pin.is_some() { "the pin" } else { "containust.lock" };
            let help = if pin.is_some() {
                "see what has changed in it; if that is well, pin the new digest"
            } else {
                "see what has changed in it; if that is well: ctst lock --update"
            };
            return refuse(&format!("it has changed: its digest is {found}, and {digest} by {by}"), help.to_owned());
        }
        self.keep(&digest, &bytes)?;
        Ok(bytes)
    }

    /// Writes `containust.lock` where entries came or changed, and gives those that did.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn save(self) -> Result<Vec<(String, String)>> {
        let lock = self.lock.into_inner().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<(String, String)> =
            lock.imports.iter().filter(|entry| self.before.imports.get(entry.0) != Some(entry.1)).map(own).collect();
        if !new.is_empty() {
            let path = self.project.import_lock();
            let body = toml::to_string(&lock).map_err(|e| Error::protocol(e.to_string()))?;
            let text = format!("# Written by `ctst lock`; belongs under version control.\n{body}");
            write(&path, text.as_bytes()).during(|| format!("write {}", path.display()))?;
        }
        Ok(new)
    }

    fn known(&self) -> MutexGuard<'_, Lock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn download(&self, url: &str) -> Result<Vec<u8>, (String, String)> {
        if self.offline {
            let help =
                "have somebody call it once who is not offline, and bring containust.lock and .containust/imports";
            return Err((format!("nothing is fetched{}", being_offline()), help.to_owned()));
        }
        get(url).map_err(|cause| (cause, "see whether the address is right and the host is reached".to_owned()))
    }

    fn keep(&self, digest: &str, bytes: &[u8]) -> Result<(), (String, String)> {
        let dir = self.project.imports_dir();
        let kept = self.project.create_state_dir().and_then(|()| {
            std::fs::create_dir_all(&dir).during(|| format!("create {}", dir.display()))?;
            write(&dir.join(digest), bytes).during(|| format!("write into {}", dir.display()))
        });
        kept.map_err(|error| (error.to_string(), error.help().unwrap_or_else(|| "mend that".to_owned())))
    }
}

fn own(entry: (&String, &String)) -> (String, String) {
    (entry.0.clone(), entry.1.clone())
}

fn read_lock(path: &Path) -> Result<Lock> {
    let bytes = match read_bounded(path) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Lock { version: VERSION, imports: BTreeMap::new() });
        }
        other => other?,
    };
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
    let lock: Lock = toml::from_str(&text).map_err(message)?;
    let good = |digest: &String| digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match lock.imports.iter().find(|(_, digest)| !good(digest)) {
        Some((url, _)) => Err(broken(format!("the digest of {url} is not 64 lower-case hexadecimal digits"))),
        None => Ok(lock),
    }
}

/// Replaces a file whole.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".new.").tempfile_in(folder)?;
    io::Write::write_all(&mut file, bytes)?;
    file.as_file().sync_all()?;
    // What is made in `.containust` is shut off by that folder; the lock file lies beside the composition.
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

fn get(url: &str) -> Result<Vec<u8>, String> {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    let config = ureq::Agent::config_builder()
        .https_only(true)
        .max_redirects(MAX_REDIRECTS)
        .timeout_global(Some(TIMEOUT))
        .user_agent(concat!("ctst/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build();
    let mut response = ureq::Agent::new_with_config(config).get(url).call().map_err(|error| error.to_string())?;
    response.body_mut().with_config().limit(MAX_IMPORT).read_to_vec().map_err(|error| match error {
        ureq::Error::BodyExceedsLimit(limit) => format!("it is larger than {limit} bytes"),
        error => error.to_string(),
    })
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Project {
    /// `containust.lock`, beside the file.
    #[must_use]
    pub fn import_lock(&self) -> PathBuf {
        self.folder().join("containust.lock")
    }

    fn imports_dir(&self) -> PathBuf {
        self.state_dir().join("imports")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(text: &str) -> Result<Lock> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("l"), text).unwrap();
        read_lock(&dir.path().join("l"))
    }

    #[test]
    fn the_lock_file_is_read_strictly() {
        assert_eq!(read_lock(Path::new("/nowhere/at-all")).unwrap().imports.len(), 0);
        // A repository may hold a link to anything.
        assert!(read_lock(Path::new("/dev/zero")).unwrap_err().to_string().contains("not a regular file"));
        let digest = "0123456789abcdef".repeat(4);
        let good = format!("version = 1\n[imports]\n\"https://a.example/b\" = \"{digest}\"\n");
        assert_eq!(lock(&good).unwrap().imports["https://a.example/b"], digest);
        assert!(matches!(lock("version = 2\nnew = 1\n"), Err(Error::NewerState { found: 2, .. })));
        for bad in ["", "version = 1\nother = 2\n", &good.replace("0123", "012"), &good.replace("abc", "ABC"), "\u{0}"]
        {
            assert!(matches!(lock(bad), Err(Error::Lock { .. })), "{bad}");
        }
    }
}
