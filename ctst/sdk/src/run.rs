//! Bringing a composition up and watching it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use containust_lang::model::{Component, Composition, Lazy, Network};
use containust_shared::protocol::egress::RESOLVER;

use serde::{Deserialize, Serialize};

use crate::egress::{Keeper, Offer};
use crate::error::{Error, Report, Result};
use crate::event::{Event, EventListener};
use crate::host::cgroup;
use crate::host::low_port;
use crate::host::places::Places;
use crate::host::ways::Ways;
use crate::images::{Images, Progress};
use crate::ipc::client::{Link, lost};
use crate::ipc::{Connection, Incoming, Reply, Request};
use crate::plan::graph::GraphResolver;
use crate::plan::{Action, Plan};
use crate::project::Project;
use crate::secrets;
use crate::spec::{self, Wanted};
use crate::status::{HostPort, Published};

/// How often a run tries again when the supervisor that it reached was just ending, and how long it pauses then.
const ATTEMPTS: u32 = 200;
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// How a composition is brought up.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// [`Notice::Settled`] waits until what has a health check is healthy, jobs have completed, and anything else has run
    /// for 0.1 s, instead of until everything was started; what ended with another code than 0 has failed then.
    pub wait: bool,
    /// Only these components and what they need; components that the file no longer has are left alone. Empty: all.
    pub only: Vec<String>,
    /// Whether a container may be replaced or removed although files were written into it. Without, [`up`] refuses with
    /// [`Error::DataLoss`] and changes nothing.
    pub allow_destroy: bool,
}

/// A process to start in a container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The component.
    pub component: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the component's environment.
    pub env: Vec<(String, String)>,
    /// Instead of the component's user.
    pub user: Option<String>,
    /// Instead of the component's working directory.
    pub workdir: Option<String>,
    /// Rows and columns of a new terminal; none: the caller's streams.
    pub tty: Option<(u16, u16)>,
}

/// What a session tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Something happened to a component.
    Event(Event),
    /// Everything asked for is up, or failed. Told once.
    Settled {
        /// What is not up, and why.
        failed: Vec<(String, Report)>,
    },
    /// The last container that the run is about is gone. Nothing follows.
    Over {
        /// The exit code of the first of them in the file's order whose program or start failed by itself; else 0.
        code: i32,
    },
}

/// What a session has to tell now.
#[derive(Debug)]
pub enum Polled {
    /// This.
    Notice(Notice),
    /// Nothing yet.
    Empty,
    /// Nothing any more.
    End,
}

/// A connection to the supervisor that runs the composition. Dropping it leaves everything running.
#[derive(Debug)]
pub struct Session {
    link: Connection,
    over: bool,
    /// Reaped when the session ends, where it was we who started it.
    supervisor: Option<std::process::Child>,
    /// The same of the process that carries what leaves the project.
    keeper: Option<Keeper>,
    /// What was told before that process was started.
    early: VecDeque<Notice>,
    log: std::path::PathBuf,
}

/// Brings `composition` up as `plan` says: imports what is missing, starts the project's supervisor unless it runs, and
/// hands the composition over.
///
/// # Errors
/// Everything that is found before the supervisor takes over. What it refuses as a whole, such as a port that is taken, is
/// the first error of the session, or of this; what fails later is told by events.
pub fn up(
    project: &Project,
    composition: &Composition,
    plan: &Plan,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Session> {
    let graph = GraphResolver::new(composition)?;
    let names: Vec<&str> = if options.only.is_empty() {
        composition.components.iter().map(|c| c.name.as_str()).collect()
    } else {
        graph.closure(&options.only)?
    };
    let chosen: Vec<&Component> = composition.components.iter().filter(|c| names.contains(&c.name.as_str())).collect();
    let published = published(composition)?;
    let values = secrets::look_up(project, &chosen, &composition.secrets)?;
    let hidden = secrets::variables(&composition.secrets);
    project.create_state_dir()?;
    // First, so that the sandbox is being made while the images are looked after.
    let limits = chosen.iter().filter_map(|component| component.limits.as_deref());
    let limits = limits.filter(|limits| cgroup::any(limits));
    let mut scoped = limits.clone().next().is_some();
    let content = limits.into_iter().all(|limits| limits.best_effort);
    let mut link = Link::open(project, Some(composition.components.len()), &hidden, scoped)?;
    let mut wanted = Vec::with_capacity(chosen.len());
    let ways = Ways::new(project, &composition.components);
    let mut images = Images::new(project, plan, &ways)?;
    let places = Places::new(project.private_dirs());
    for component in &chosen {
        let (reference, image) = images.ensure(component, progress)?;
        let published = published.get(component.name.as_str()).cloned().unwrap_or_default();
        let read = |path: &str| project.read_named(path);
        let spec = spec::resolve((project.folder(), &read), component, &reference, &image, &places)?;
        // Images may have taken a while since the plan looked.
        let volumes = component.volumes.iter().zip(&spec.volumes).filter(|(volume, _)| !volume.named);
        let volumes = volumes.map(|(asked, found)| (&asked.source, &found.source));
        let devices = component.devices.iter().zip(&spec.devices).map(|(asked, found)| (&asked.source, &found.source));
        volumes.chain(devices).try_for_each(|(asked, found)| ways.check(asked, Some(found)))?;
        let secrets = values.only(&spec.secret_names());
        wanted.push(Wanted { spec, published, secrets, file: project.file_name() });
    }
    let mut own = options.only.clone();
    if own.is_empty() {
        own = names.iter().map(|name| (*name).to_owned()).collect();
    } else {
        let started = plan.steps.iter().filter(|step| step.action != Action::Unchanged).map(|step| &step.component);
        own.extend(started.filter(|name| names.contains(&name.as_str()) && !options.only.contains(name)).cloned());
    }
    let leaves = chosen.iter().flat_map(|component| component.network.attachments()).any(|on| on.egress);
    let offer = leaves.then(Offer::new).transpose()?;
    let prune = options.only.is_empty().then(|| project.file_name());
    let (volumes, destroy, wait) = (composition.volumes.clone(), options.allow_destroy, options.wait);
    let low = low_port::kept(&wanted);
    let archives = open_archives(&wanted, &chosen)?;
    let request = Request::Run { wanted, volumes, prune, own, destroy, wait, keeper: leaves };
    let socket = offer.as_ref().map(|offer| offer.socket.as_fd());
    for _ in 0..ATTEMPTS {
        match hand_over(link, &request, socket.as_slice(), (&low, &archives)) {
            Ok(Some(link)) => {
                let mut session = Session::attached(link.connection, project.supervisor_log());
                session.supervisor = link.child;
                if let Some(offer) = offer {
                    session.keep(offer, project.file())?;
                }
                return Ok(session);
            }
            Ok(None) => std::thread::sleep(PAUSE),
            // Each says for itself then which limits do not hold.
            Err(Error::NoScope { .. }) if scoped && content => scoped = false,
            Err(error) => return Err(error),
        }
        link = Link::open(project, Some(composition.components.len()), &hidden, scoped)?;
    }
    Err(lost(project))
}

/// The archive of a lazy image.
struct OpenArchive {
    index: String,
    file: File,
    /// It is unpacked in the background.
    completes: bool,
}

/// Archives of lazy images: the supervisor has given up the caller's files. Whether they are still
/// what was indexed is seen by whoever serves them.
fn open_archives(wanted: &[Wanted], chosen: &[&Component]) -> Result<Vec<OpenArchive>> {
    let mut archives: Vec<OpenArchive> = Vec::new();
    for (Wanted { spec, .. }, component) in wanted.iter().zip(chosen) {
        let Some(lazy) = &spec.lazy else { continue };
        let completes = component.lazy != Some(Lazy::Always);
        match archives.iter_mut().find(|archive| archive.index == lazy.index) {
            // Its room is taken anyway.
            Some(known) => known.completes |= completes,
            None => {
                let path = &lazy.archive;
                let file = File::open(path).map_err(|source| Error::Source {
                    component: spec.name.clone(),
                    path: path.clone(),
                    source,
                })?;
                archives.push(OpenArchive { index: lazy.index.clone(), file, completes });
            }
        }
    }
    Ok(archives)
}

/// `None`: the supervisor was ending.
fn hand_over(
    mut link: Link,
    request: &Request,
    fds: &[BorrowedFd<'_>],
    (low, archives): (&BTreeMap<HostPort, String>, &[OpenArchive]),
) -> Result<Option<Link>> {
    if !link.greet()? {
        return Ok(None);
    }
    if !low.is_empty() && !low_port::supply(&mut link.connection, low)? {
        return Ok(None);
    }
    for OpenArchive { index, file, completes } in archives {
        let request = Request::Archive { index: index.clone(), completes: *completes };
        if link.connection.send(&request, &[file.as_fd()]).is_err() {
            return Ok(None);
        }
    }
    if link.connection.send(request, fds).is_err() {
        return Ok(None);
    }
    match link.connection.wait::<Reply>() {
        Ok(Some((Reply::Accepted, _))) => Ok(Some(link)),
        Ok(Some((Reply::Refused(report), _))) => Err(Error::Reported(report)),
        Ok(None | Some((Reply::Over { .. }, _))) => Ok(None),
        Ok(Some((other, _))) => Err(Error::protocol(format!("unexpected {other:?}"))),
        Err(error) => Err(error),
    }
}

/// The ports to publish, by component.
pub(crate) fn published(composition: &Composition) -> Result<BTreeMap<&str, Vec<Published>>> {
    let mut by_component: BTreeMap<&str, Vec<Published>> = BTreeMap::new();
    if composition.exposures.is_empty() {
        return Ok(by_component);
    }
    let by_name: HashMap<&str, &Component> = composition.components.iter().map(|c| (c.name.as_str(), c)).collect();
    for exposure in &composition.exposures {
        let Some(component) = by_name.get(exposure.component.as_str()) else {
            let known = composition.components.iter().map(|c| c.name.clone()).collect();
            return Err(Error::UnknownComponent { name: exposure.component.clone(), known });
        };
        if component.network == Network::None {
            let problem = format!("publish port {}: it has `network = none`", exposure.port);
            return Err(Error::Invalid { component: component.name.clone(), problem });
        }
        by_component.entry(&component.name).or_default().push(Published {
            address: exposure.address,
            host_port: exposure.host_port,
            port: exposure.port,
            protocol: exposure.protocol,
        });
    }
    Ok(by_component)
}

impl AsFd for Session {
    /// Readable when there may be something to tell.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

impl Session {
    pub(crate) fn attached(link: Connection, log: std::path::PathBuf) -> Self {
        Self { link, over: false, supervisor: None, keeper: None, early: VecDeque::new(), log }
    }

    /// Starts the process that carries what leaves the project once the run is not refused.
    fn keep(&mut self, offer: Offer, file: &std::path::Path) -> Result<()> {
        while !self.over {
            let Some((reply, _)) = self.link.wait::<Reply>()? else { return Err(self.lost()) };
            if let Reply::Keeper { start } = reply {
                self.keeper = start.then(|| offer.start(file, RESOLVER)).transpose()?;
                break;
            }
            let notice = self.notice(reply)?;
            self.early.extend(notice);
        }
        Ok(())
    }

    /// Waits for the next notice; `None` after [`Notice::Over`].
    ///
    /// # Errors
    /// [`Error::Lost`] where the supervisor was killed: the project's containers are gone with it.
    pub fn next_event(&mut self) -> Result<Option<Notice>> {
        if let Some(notice) = self.early.pop_front() {
            return Ok(Some(notice));
        }
        if self.over {
            return Ok(None);
        }
        loop {
            let Some((reply, _)) = self.link.wait::<Reply>()? else { return Err(self.lost()) };
            if let Some(notice) = self.notice(reply)? {
                return Ok(Some(notice));
            }
        }
    }

    /// The same without waiting. To be called until [`Polled::Empty`] whenever the descriptor is readable, and once
    /// before the first wait.
    ///
    /// # Errors
    /// As [`Session::next_event`].
    pub fn poll_event(&mut self) -> Result<Polled> {
        if let Some(notice) = self.early.pop_front() {
            return Ok(Polled::Notice(notice));
        }
        if self.over {
            return Ok(Polled::End);
        }
        loop {
            match self.link.poll::<Reply>()? {
                Incoming::Frame(reply, _) => {
                    if let Some(notice) = self.notice(reply)? {
                        return Ok(Polled::Notice(notice));
                    }
                }
                Incoming::Empty => return Ok(Polled::Empty),
                Incoming::End => return Err(self.lost()),
            }
        }
    }

    /// Tells `listener` of every event until everything is over, and returns the exit code of [`Notice::Over`].
    ///
    /// # Errors
    /// As [`Session::next_event`].
    pub fn listen(&mut self, listener: &mut dyn EventListener) -> Result<i32> {
        loop {
            match self.next_event()? {
                Some(Notice::Event(event)) => listener.on_event(&event),
                Some(Notice::Settled { .. }) => {}
                Some(Notice::Over { code }) => return Ok(code),
                None => return Ok(0),
            }
        }
    }

    /// Asks to stop what the run is about, dependents first: the stop signal of each, and SIGKILL after its own grace, or
    /// after `grace`. Returns at once. That is all components of its composition, or those of [`Options::only`] and what was started
    /// for them; a session that only watches stops the whole project.
    ///
    /// # Errors
    /// [`Error::Io`] where the supervisor is gone.
    pub fn stop(&mut self, grace: Option<Duration>) -> Result<()> {
        self.link.send(&Request::Stop { names: Vec::new(), file: None, grace }, &[])
    }

    /// The same without grace.
    ///
    /// # Errors
    /// [`Error::Io`] where the supervisor is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.stop(Some(Duration::ZERO))
    }

    fn notice(&mut self, reply: Reply) -> Result<Option<Notice>> {
        Ok(Some(match reply {
            Reply::Event(event) => Notice::Event(event),
            Reply::Settled { failed } => Notice::Settled { failed },
            Reply::Ended { code } => {
                (self.over, self.supervisor, self.keeper) = (true, None, None);
                Notice::Over { code }
            }
            Reply::Over { code } => {
                self.over = true;
                Notice::Over { code }
            }
            Reply::Refused(report) => return Err(Error::Reported(report)),
            // The answer to `stop`; the events tell the same.
            Reply::Done => return Ok(None),
            other => return Err(Error::protocol(format!("unexpected {other:?}"))),
        }))
    }

    fn lost(&mut self) -> Error {
        self.over = true;
        Error::Lost { log: self.log.clone() }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It said that it ends, which takes it no time: who looks now finds no process of the project, and a program that
        // embeds us keeps no zombie.
        if self.over
            && let Some(mut child) = self.supervisor.take()
        {
            child.wait().ok();
        }
        if self.over
            && let Some(keeper) = self.keeper.take()
        {
            keeper.reap();
        }
    }
}
