//! Whether a program runs with what was kept for it: tried once, before that counts, in a container that nothing reaches.

use std::collections::VecDeque;
use std::fs::{File, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::task::Poll;
use std::time::{Duration, Instant};

use containust_image::model::Image;
use containust_lang::model::{Component, ConfigFile, Filter, Healthcheck, Network, Part, Probe};
use containust_shared::protocol::{Ended, FromContainer, MAIN, Process, ToContainer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{During, Error};
use crate::host::ids::Ids;
use crate::host::places::Places;
use crate::logs::escape;
use crate::project::Project;
use crate::secrets::Values;
use crate::shim::{Received, describe};
use crate::spec::{self, ContainerSpec, ROOT};
use crate::supervisor::probe;
use crate::workers::unpacker::Unpacker;
use crate::workers::workshop::Job;

/// Without a health check: who has not ended by then is taken to work.
const LIFE: Duration = Duration::from_secs(5);
/// Until it is healthy: at most this, whatever its author says.
const LONGEST: Duration = Duration::from_secs(120);
/// Probes follow each other sooner than while it serves.
const PAUSE: Duration = Duration::from_millis(200);
/// Shorter times than this, which an image may name, are taken for this.
const SHORTEST: Duration = Duration::from_millis(50);
/// For a killed process to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// A probe looks this often.
const STEP: Duration = Duration::from_millis(20);
/// The health check's process.
const CHECK: u32 = 1;
const SIGKILL: i32 = 9;
const LAST_LINES: usize = 20;

/// How it went.
pub(super) enum Outcome {
    Works,
    /// It cannot be tried, for this reason.
    Untried(String),
    /// It does not work: why, and what it wrote last.
    Fails(String, Vec<String>),
}

/// Why a component cannot run alone.
pub(super) fn obstacle(component: &Component) -> Option<String> {
    let has_secret = |config: &ConfigFile| config.content.iter().any(|part| matches!(part, Part::Secret(_)));
    let is_more = component.cap_add.len() + component.devices.len();
    let why = if !component.secret_env.is_empty()
        || !component.secrets.is_empty()
        || component.configs.iter().any(has_secret)
    {
        "it has secrets"
    } else if !component.after.is_empty() {
        "it needs other components"
    } else if !component.volumes.is_empty() {
        "it has volumes, which are not its alone"
    } else if is_more > 0 || component.seccomp.filter == Filter::Compat || component.seccomp.profile.is_some() {
        "it is given devices or rights beyond the usual ones"
    } else if component.limits.is_some() {
        "it has limits, which it would be tried without"
    } else if matches!(component.network, Network::Named(_)) {
        "it has networks of its own"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// Runs the component on `tree`: until its health check succeeds, or else until it ends with 0 or has lived for some seconds.
/// `folder`: a new one, for what the container needs.
pub(super) fn attempt(
    project: &Project,
    component: &Component,
    (whole, tree): (&Image, &Path),
    folder: &Path,
    (ids, unpacker): (&Ids, &Unpacker),
) -> crate::error::Result<Outcome> {
    if let Some(why) = obstacle(component) {
        return Ok(Outcome::Untried(why));
    }
    let tree = tree.canonicalize().during(|| format!("open {}", tree.display()))?;
    let image = Image { layers: vec![tree], lazy: None, ..whole.clone() };
    let read = |path: &str| project.read_named(path);
    let mut spec = spec::resolve((project.folder(), &read), component, "", &image, &Places::default())?;
    // What would become volumes is there as it is kept, and what is written to it is gone with the container.
    spec.readonly &= std::mem::take(&mut spec.kept).is_empty();
    let alone = match spec.alone(ids) {
        Ok(alone) if ids.lacks(&spec.user).is_none() => alone,
        _ => return Ok(Outcome::Untried("this host has not the user's id".to_owned())),
    };
    let dir = prepare(folder, &spec, (ids, unpacker))?;
    let (mut plan, held) =
        spec.plan(&dir, ids.has_overlay(), Vec::new(), alone, &Places::default(), &Values::default())?;
    // Those of the network want one.
    plan.sysctls.clear();
    let process = |argv: &[String]| spec.process(argv.to_vec(), alone, &Values::default());
    let (outcome, lines) = unpacker
        .attempt(plan, held, |job| Trial { job, process: &process, ended: None }.run(spec.healthcheck.as_ref()))?;
    Ok(match outcome {
        None => Outcome::Works,
        Some(why) => Outcome::Fails(why, telling(lines)),
    })
}

/// Whether a program says there that it does not find something.
pub(super) fn is_missing(line: &str) -> bool {
    line.contains("No such file") || line.contains("cannot open shared object")
}

/// What says that something is missing, and then what was written last.
fn telling(lines: VecDeque<String>) -> Vec<String> {
    let (mut told, others): (Vec<String>, Vec<String>) = lines.into_iter().partition(|line| is_missing(line));
    told.truncate(LAST_LINES);
    let skipped = others.len().saturating_sub(LAST_LINES - told.len());
    told.extend(others.into_iter().skip(skipped));
    told
}

/// The container's folder, as a supervisor makes it.
fn prepare(folder: &Path, spec: &ContainerSpec, (ids, unpacker): (&Ids, &Unpacker)) -> crate::error::Result<PathBuf> {
    let what = || format!("create {}", folder.display());
    std::fs::create_dir(folder).during(what)?;
    let dir = folder.canonicalize().during(what)?;
    crate::supervisor::prepare(&dir, ids)?;
    if !ids.has_overlay() {
        let root = dir.join(ROOT);
        std::fs::create_dir(&root).during(what)?;
        crate::supervisor::own_by_root(&root, ids)?;
        unpacker.flatten(&spec.layers, &root).map_err(|e| Error::Store(Box::new(e)))?;
    }
    let name = &spec.hostname;
    for (file, text) in [
        ("hosts", format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n")),
        ("hostname", format!("{name}\n")),
        ("resolv.conf", "# no network, no name server\n".to_owned()),
    ] {
        let path = dir.join(file);
        std::fs::write(&path, text).during(|| format!("write {}", path.display()))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o644))
            .during(|| format!("set up {}", path.display()))?;
    }
    crate::secrets::write_configs(&dir, &spec.configs, |path| crate::supervisor::own_by_root(path, ids))?;
    Ok(dir)
}

/// One that runs.
struct Trial<'a> {
    job: &'a mut Job,
    process: &'a dyn Fn(&[String]) -> Process,
    /// How its program has ended.
    ended: Option<Result<Ended, String>>,
}

impl Trial<'_> {
    /// Why it does not work; `None`: it does. What still runs is being killed.
    fn run(&mut self, check: Option<&Healthcheck>) -> crate::error::Result<Option<String>> {
        let begun = Instant::now();
        let limit = check.map_or(LIFE, |check| {
            let times = check.interval.saturating_mul(check.retries).saturating_add(check.timeout);
            check.start_period.saturating_add(times).min(LONGEST)
        });
        let mut last = "nothing was answered".to_owned();
        loop {
            match &self.ended {
                Some(Ok(Ended::Exited(0))) => return Ok(None),
                Some(Ok(ended)) => return Ok(Some(format!("its program ended with {}", ended.code()))),
                Some(Err(why)) => return Ok(Some(why.clone())),
                None => {}
            }
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            let Some(check) = check else {
                self.wait(left, |_, _| None::<()>)?;
                continue;
            };
            match self.probe(check, check.timeout.clamp(SHORTEST, left.max(SHORTEST)))? {
                Ok(()) => {
                    self.stop()?;
                    return Ok(None);
                }
                Err(why) => last = why,
            }
            self.wait(PAUSE.min(check.interval).max(SHORTEST), |_, _| None::<()>)?;
        }
        self.stop()?;
        let secs = limit.as_secs();
        Ok(check.map(|_| format!("its health check does not succeed within {secs} s: {}", escape(last.as_bytes()))))
    }

    fn stop(&mut self) -> crate::error::Result<()> {
        self.job.send(&ToContainer::Signal { id: MAIN, signal: SIGKILL }, Vec::new())?;
        self.wait(PATIENCE, |_, _| None::<()>).map(drop)
    }

    /// Receives until something is picked, the program has ended, or time is up.
    fn wait<T>(
        &mut self,
        timeout: Duration,
        mut pick: impl FnMut(FromContainer, Vec<OwnedFd>) -> Option<T>,
    ) -> crate::error::Result<Option<T>> {
        let end = Instant::now() + timeout;
        while self.ended.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match self.job.receive(left)? {
                Received::Message(FromContainer::Exited { id: MAIN, ended }, _) => self.ended = Some(Ok(ended)),
                Received::Message(FromContainer::Failed { id: MAIN, failure, .. }, _) => {
                    self.ended = Some(Err(describe(&failure)));
                }
                Received::Message(FromContainer::Denied { reasons }, _) => {
                    return Err(Error::Denied { component: None, reasons });
                }
                Received::Message(message, fds) => {
                    if let Some(picked) = pick(message, fds) {
                        return Ok(Some(picked));
                    }
                }
                Received::End => self.ended = Some(Err("it was killed".to_owned())),
                Received::Empty => break,
            }
        }
        Ok(None)
    }

    fn probe(&mut self, check: &Healthcheck, timeout: Duration) -> crate::error::Result<Result<(), String>> {
        let late = || Err("it takes too long".to_owned());
        match &check.probe {
            Probe::Command(argv) => {
                let open = |write: bool| File::options().read(!write).write(write).open("/dev/null").map(OwnedFd::from);
                let null = |write| open(write).during(|| "open /dev/null".to_owned());
                let process = (self.process)(argv);
                let streams = vec![null(false)?, null(true)?, null(true)?];
                self.job.send(&ToContainer::Exec { id: CHECK, process }, streams)?;
                let of_check = |message, _| match message {
                    FromContainer::Exited { id: CHECK, ended: Ended::Exited(0) } => Some(Ok(())),
                    FromContainer::Exited { id: CHECK, ended } => Some(Err(format!("it ends with {}", ended.code()))),
                    FromContainer::Failed { id: CHECK, failure, .. } => Some(Err(describe(&failure))),
                    _ => None,
                };
                if let Some(result) = self.wait(timeout, of_check)? {
                    return Ok(result);
                }
                self.job.send(&ToContainer::Signal { id: CHECK, signal: SIGKILL }, Vec::new())?;
                if self.wait(PATIENCE, of_check)?.is_none() && self.ended.is_none() {
                    self.ended = Some(Err("its health check does not end when it is killed".to_owned()));
                }
                Ok(late())
            }
            Probe::Tcp(port) => Ok(match self.dial(timeout)? {
                None => late(),
                Some(socket) => probe::Tcp::new(socket, ([127, 0, 0, 1], *port).into())
                    .and_then(|tcp| settle(timeout, tcp, probe::Tcp::ready)),
            }),
            Probe::Http { port, path } => Ok(match self.dial(timeout)? {
                None => late(),
                Some(socket) => probe::Http::new(socket, ([127, 0, 0, 1], *port).into(), path)
                    .and_then(|http| settle(timeout, http, probe::Http::ready)),
            }),
        }
    }

    /// A socket in the container's network namespace.
    fn dial(&mut self, timeout: Duration) -> crate::error::Result<Option<OwnedFd>> {
        self.job.send(&ToContainer::Dial { count: 1 }, Vec::new())?;
        let socket = self.wait(timeout, |message, fds| match message {
            FromContainer::Dialed => Some(fds.into_iter().next()),
            // It has no sockets left, which is a probe that fails.
            FromContainer::Refused(_) => Some(None),
            _ => None,
        })?;
        Ok(socket.flatten())
    }
}

/// Goes on with a probe until it knows.
fn settle<P: AsFd>(
    timeout: Duration,
    mut probe: P,
    ready: impl Fn(&mut P) -> Poll<Result<String, String>>,
) -> Result<(), String> {
    let end = Instant::now() + timeout;
    loop {
        if let Poll::Ready(result) = ready(&mut probe) {
            return result.map(drop);
        }
        let left = end.saturating_duration_since(Instant::now()).min(STEP);
        if left.is_zero() {
            return Err("it takes too long".to_owned());
        }
        let left = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        // Whatever it says, the probe looks for itself.
        poll(&mut [PollFd::new(&probe, PollFlags::IN)], Some(&left)).ok();
    }
}
