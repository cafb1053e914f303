//! Imports from `https://`: fetched once, kept by their digest, and held to the digest that somebody pinned or locked.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::tls::{RootCerts, TlsConfig};

use super::lock::{Lock, write};
use crate::error::{During, Result};
use crate::host::launch::being_offline;
use crate::project::Project;

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
        let lock = Lock::read(&project.import_lock())?;
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

    /// What `containust.lock` holds.
    pub(crate) fn locked(&self) -> &Lock {
        &self.before
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
            let entries = Lock { imports: new.iter().cloned().collect(), ..Lock::default() };
            Lock::add(&self.project.import_lock(), &entries)?;
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

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Project {
    fn imports_dir(&self) -> PathBuf {
        self.state_dir().join("imports")
    }
}
