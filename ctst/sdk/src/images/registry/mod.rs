//! Images of registries, as this side sees them: whom to ask and as whom, the process that asks, and what it brings.

mod credentials;
mod settings;

use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use containust_image::registry::{Credentials, Found, Name, Part, Prepared, PullJob, Task, client_main, read_found};
use containust_image::{Error, Limits};
use containust_shared::exit;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};

use crate::host::confine;
use crate::host::launch::{being_offline, is_offline};

/// The hidden verb of this executable.
pub(crate) const VERB: &str = "registry";
/// What of the environment says how hosts are reached, and whom to trust.
const VARIABLES: [&str; 11] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "RES_OPTIONS",
];
/// What the process may use: the largest manifests in memory, and files as large as may be unpacked.
const LIMITS: [(Resource, u64); 4] =
    [(Resource::As, 4 << 30), (Resource::Fsize, 65 << 30), (Resource::Nofile, 256), (Resource::Core, 0)];
/// Of a job, whose largest part is what the store has.
const MAX_JOB: u64 = 8 << 20;

/// What is pulled.
pub(crate) struct Wanted<'a> {
    /// `registry/repository:tag`.
    pub(crate) name: &'a str,
    /// Instead of what the tag means now: 64 hexadecimal digits.
    pub(crate) digest: Option<&'a str>,
}

impl Wanted<'_> {
    fn reference(&self) -> String {
        let Self { name, digest } = self;
        digest.map_or_else(|| format!("oci://{name}"), |digest| format!("oci://{name}@sha256:{digest}"))
    }

    fn at_registry(&self, name: Name<'_>) -> String {
        self.digest.map_or_else(|| name.tag.to_owned(), |digest| format!("sha256:{digest}"))
    }
}

/// Has an image written to `to`, as a layout, but for the layers of `have`.
///
/// # Errors
/// [`Error::Registry`].
pub(crate) fn fetch(
    wanted: &Wanted<'_>,
    to: OwnedFd,
    have: &[String],
    progress: &mut dyn FnMut(&[Part]),
) -> Result<Found, Error> {
    let name = Name::parse(wanted.name)?;
    let task = Task::Pull { wanted: wanted.at_registry(name), have: have.to_vec() };
    found(ask(name, format!("pull {}", wanted.reference()), task, Some(to), progress)?)
}

/// Asks what a tag means.
///
/// # Errors
/// [`Error::Registry`].
pub(crate) fn resolve(name: &str) -> Result<Found, Error> {
    let wanted = Wanted { name, digest: None };
    let name = Name::parse(name)?;
    let task = Task::Resolve { wanted: wanted.at_registry(name) };
    found(ask(name, format!("lock {}", wanted.reference()), task, None, &mut |_| {})?)
}

/// Sees whether a registry lets in who says this of himself, and stores it where docker, podman and skopeo find it, too. Gives the place, for people.
///
/// # Errors
/// [`Error::Registry`] where it does not, or where nothing can be stored.
pub fn login(host: &str, user: &str, password: &str) -> Result<String, crate::Error> {
    let store = |error| crate::Error::Store(Box::new(error));
    let what = format!("log in to {host}");
    refuse_offline(&what).map_err(store)?;
    let credentials = Credentials::Password { user: user.to_owned(), password: password.to_owned() };
    let endpoint = settings::endpoint_as(host, credentials).map_err(store)?;
    let job = PullJob { what, endpoints: vec![endpoint], task: Task::Login, limits: Limits::default() };
    talk(&job, None, &mut |_| {}).map_err(store)?;
    credentials::store(host, user, password).map_err(store)
}

/// Forgets as whom a registry is asked, wherever it is stored. Gives the places, for people.
///
/// # Errors
/// [`Error::Registry`] where something cannot be removed.
pub fn logout(host: &str) -> Result<Vec<String>, crate::Error> {
    credentials::erase(host).map_err(|error| crate::Error::Store(Box::new(error)))
}

/// Pushes an image that was exported into a file under a name, `registry/repository:tag`.
///
/// # Errors
/// [`Error::Registry`].
pub(crate) fn push(name: &str, layout: OwnedFd, progress: &mut dyn FnMut(&[Part])) -> Result<Found, Error> {
    let parsed = Name::parse(name)?;
    let what = format!("push oci://{name}");
    refuse_offline(&what)?;
    let (endpoints, problems) = settings::endpoints(parsed)?;
    // Mirrors are for reading.
    let endpoints = endpoints.into_iter().last().into_iter().collect();
    let job = PullJob { what, endpoints, task: Task::Push { tag: parsed.tag.to_owned() }, limits: Limits::default() };
    found(talk(&job, Some(layout), progress).map_err(|error| explain(error, &problems))?)
}

fn found(found: Option<Found>) -> Result<Found, Error> {
    let nothing = || Error::Registry { code: "I050", text: "the registry client found nothing".to_owned(), help: None };
    found.ok_or_else(nothing)
}

fn ask(
    name: Name<'_>,
    what: String,
    task: Task,
    to: Option<OwnedFd>,
    progress: &mut dyn FnMut(&[Part]),
) -> Result<Option<Found>, Error> {
    refuse_offline(&what)?;
    let (endpoints, problems) = settings::endpoints(name)?;
    let job = PullJob { what, endpoints, task, limits: Limits::default() };
    talk(&job, to, progress).map_err(|error| explain(error, &problems))
}

/// Why there are no credentials is worth a word where they were missing.
fn explain(error: Error, problems: &[String]) -> Error {
    match error {
        Error::Registry { code: code @ ("I051" | "I052" | "I053"), text, .. } if !problems.is_empty() => {
            Error::Registry { code, text, help: Some(problems.join("; ")) }
        }
        other => other,
    }
}

fn refuse_offline(what: &str) -> Result<(), Error> {
    if !is_offline() {
        return Ok(());
    }
    let text = format!("{what}: nothing is fetched{}", being_offline());
    let help = "pull it before that: ctst pull; or bring it as an archive, for image = \"tar://…\"";
    Err(Error::Registry { code: "I056", text, help: Some(help.to_owned()) })
}

fn talk(job: &PullJob, to: Option<OwnedFd>, progress: &mut dyn FnMut(&[Part])) -> Result<Option<Found>, Error> {
    let failed = |error: io::Error| Error::Registry {
        code: "I050",
        text: format!("{}: start the process that asks registries: {error}", job.what),
        help: None,
    };
    Client(spawn(to).map_err(failed)?).talk(job, progress)
}

fn spawn(out: Option<OwnedFd>) -> io::Result<Child> {
    // What a shell left open in us is no business of its.
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    let variables = VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    Command::new("/proc/self/exe")
        .arg0("ctst")
        .arg(VERB)
        .env_clear()
        .envs(variables)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(out.map_or_else(Stdio::null, Stdio::from))
        .stderr(Stdio::piped())
        .spawn()
}

/// The process, which ends with us, and when nobody listens to it any more.
struct Client(Child);

impl Client {
    fn talk(&mut self, job: &PullJob, progress: &mut dyn FnMut(&[Part])) -> Result<Option<Found>, Error> {
        let job = serde_json::to_vec(job).expect("a job is plain data");
        if let Some(mut input) = self.0.stdin.take() {
            // One that ended says why.
            input.write_all(&job).ok();
        }
        let words = self.0.stderr.take().expect("it is a pipe");
        read_found(BufReader::new(words), progress)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// This process.
pub(crate) fn main() -> i32 {
    // Its parent may be killed, and nobody else would end it while a registry is silent.
    set_parent_process_death_signal(Some(Signal::KILL)).ok();
    let mut job = Vec::new();
    let read = io::stdin().lock().take(MAX_JOB).read_to_end(&mut job);
    let (Ok(_), Ok(job)) = (read, serde_json::from_slice::<PullJob>(&job)) else {
        eprintln!("ctst: `{VERB}` is started by ctst itself");
        return exit::TOOL;
    };
    let Ok(out) = io::stdout().as_fd().try_clone_to_owned() else { return exit::TOOL };
    let prepared = Prepared::new(&job);
    for (resource, limit) in LIMITS {
        let limit = getrlimit(resource).maximum.map_or(limit, |most| limit.min(most));
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) }).ok();
    }
    if let Err(error) = confine::client() {
        eprintln!("{error}");
        return exit::TOOL;
    }
    client_main(&prepared, &job, out)
}
