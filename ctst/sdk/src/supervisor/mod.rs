//! The supervisor: one unprivileged process per project, gone with its last container.
//!
//! One thread and one loop. Nothing in it waits for a single container: each has a state, every message, exit and time
//! moves one of them on, and [`Supervisor::advance`] then starts and stops what this made possible.

mod apply;
mod background;
mod clients;
mod container;
mod egress;
mod forward;
#[cfg(test)]
mod fuzz;
mod health;
mod lazy;
mod life;
mod limits;
mod names;
mod network;
mod outside;
mod poller;
pub(crate) mod probe;
mod publisher;
mod retire;
mod sandbox;
mod volume;
mod zone;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{File, Metadata};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use containust_lang::model::Protocol;
use containust_shared::exit;
use containust_shared::wire::MAX_MESSAGE;
use mio::Token;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use self::background::{Archive, Background};
use self::clients::Client;
use self::container::Container;
use self::egress::Egress;
use self::forward::Forwarder;
use self::names::Names;
use self::network::Networks;
use self::poller::{Cid, News, Poller, Source, Timer};
use self::publisher::Publisher;
use self::retire::{Removed, Worker};
use self::sandbox::{Sandbox, Told};
use crate::error::{During, Error, Report, Result};
use crate::event::{Event, EventKind};
use crate::host::cgroup::{self, Division};
use crate::host::confine;
use crate::host::ids::Ids;
use crate::ipc::client;
use crate::ipc::{Connection, Hello, Reply, Request, VERSION};
use crate::project::{Identity, Project, check_private, now};
use crate::record::Incarnation;
use crate::secrets;
use crate::shim;
use crate::status::HostPort;

pub(crate) use self::egress::failed as no_way_out;
pub(crate) use self::life::{own_by_root, prepare};

/// The hidden verb of this executable.
pub(crate) const VERB: &str = "supervise";
/// After the file: that it is started in a scope of its own.
pub(crate) const SCOPED: &str = "scoped";
/// How often the state folder is looked at.
const GUARD: Duration = Duration::from_secs(5);
/// How many events are remembered. The longest that come often, of health checks, have 4 KiB of output.
const MAX_HISTORY: usize = 1000;
/// The supervisor's own log starts over when it is longer.
const MAX_LOG: u64 = 1 << 20;

/// Runs as the supervisor of the project of `file`, for the client on standard input. Returns the exit code.
///
/// `scoped`: it was started in a scope of systemd's for its limits.
pub(crate) fn main(file: &Path, scoped: bool) -> i32 {
    secrets::no_core();
    // First of all, for the number that its descriptors get.
    let pair = shim::seqpacket();
    let (mut connection, pair) = match Connection::inherited().and_then(|connection| Ok((connection, pair?))) {
        Ok(ready) => ready,
        Err(error) => {
            eprintln!("ctst: {error}; `{VERB}` is started by ctst itself");
            return exit::TOOL;
        }
    };
    match start(file, scoped, &mut connection, pair) {
        Ok(Started::Serve(supervisor)) => supervisor.run(connection),
        Ok(Started::Busy(socket)) => {
            let busy = Reply::Busy { socket: socket.display().to_string() };
            // A client that is gone needs no answer.
            connection.send(&busy, &[]).ok();
            0
        }
        Err(error) => {
            say(&format!("{error}"));
            connection.send(&Reply::Refused(error.report()), &[]).ok();
            exit::TOOL
        }
    }
}

enum Started {
    Serve(Box<Supervisor>),
    Busy(PathBuf),
}

fn start(file: &Path, scoped: bool, connection: &mut Connection, pair: (OwnedFd, OwnedFd)) -> Result<Started> {
    // From here on the client's terminal cannot signal us. That we lead a group already is the only possible refusal.
    rustix::process::setsid().ok();
    // It would be `exe` otherwise, after the link in /proc.
    rustix::thread::set_name(c"ctst").ok();
    let Some((Request::Hello(hello), _)) = connection.wait::<Request>()? else {
        return Err(Error::protocol("the client did not greet"));
    };
    let project = Project::locate(Some(file))?;
    if hello.project != project.identity() {
        return Err(Error::protocol("the project's folder was replaced just now"));
    }
    project.create_state_dir()?;
    let state = folder_id(&project.state_dir()).ok_or_else(|| Error::protocol("the state folder is gone"))?;
    let lock = match lock(&project)? {
        Lock::Ours(lock) => lock,
        Lock::Theirs(socket) => return Ok(Started::Busy(socket)),
    };
    if scoped {
        cgroup::enter().map_err(|lack| Error::NoScope { problem: lack.problem })?;
    }
    let networks = Networks::new(project.identity(), hello.run.unwrap_or(0));
    // Before anything else, because it takes longest: the sandbox is being made while we set up the rest.
    let ids = Ids::detect()?;
    let sandbox = Sandbox::start(shim::spawn_on(pair)?, ids.clone())?;

    open_log(&project);
    rustix::process::chdir("/").during(|| "leave the project's folder".to_owned())?;
    raise_limit();
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block().map_err(std::io::Error::from).during(|| "block signals".to_owned())?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(std::io::Error::from)
        .during(|| "make a signalfd".to_owned())?;
    let (listener, socket) = listen(&project)?;
    let mut poller = Poller::new().during(|| "make an epoll".to_owned())?;
    let what = || "watch a descriptor".to_owned();
    let files = confine::Files {
        state: project.state_dir(),
        sockets: socket.parent().map(Path::to_owned),
        cgroups: cgroup::mounted(),
    };
    let publisher = Publisher::start().during(|| "start the thread that publishes ports".to_owned())?;
    let sandbox = sandbox.watch(&mut poller, files)?;
    poller.add_reader(&signals, Source::Signals).during(what)?;
    let listening = poller.add_reader(&listener, Source::Listener).during(what)?;
    let own = Incarnation::of(std::process::id())
        .ok_or_else(|| Error::Sandbox("find this process in /proc: it is not mounted".to_owned()))?;
    let (removals, removed) = mpsc::channel();
    let mut supervisor = Supervisor {
        project,
        own,
        ids,
        networks,
        name_server: Names::default(),
        egress: Egress::default(),
        sandbox,
        signals,
        listener: Some((listener, listening, socket)),
        _lock: lock,
        waker: None,
        publisher,
        forwarder: None,
        dialing: Vec::new(),
        hungry: false,
        ports: HashMap::new(),
        next_port: 0,
        containers: BTreeMap::new(),
        names: HashMap::new(),
        launches: HashMap::new(),
        next_id: 0,
        clients: HashMap::new(),
        next_client: 0,
        refused: false,
        history: VecDeque::new(),
        workers: HashMap::new(),
        archives: HashMap::new(),
        background: Background::default(),
        unfilled: HashMap::new(),
        division: None,
        left_groups: Vec::new(),
        swept: false,
        removing: 0,
        unremoved: Vec::new(),
        removals,
        removed,
        buffer: vec![0; MAX_MESSAGE],
        poller,
        dirty: false,
        broken: None,
        state,
        lost: false,
        ending: false,
    };
    supervisor.greet(connection, &hello)?;
    Ok(Started::Serve(Box::new(supervisor)))
}

enum Lock {
    /// Held until this file is closed.
    Ours(File),
    /// Another supervisor serves the project on this socket.
    Theirs(PathBuf),
}

/// Takes the project's lock. Who holds it listens, or is about to listen or to end: neither takes long.
fn lock(project: &Project) -> Result<Lock> {
    let path = project.lock_file();
    let what = || format!("lock {}", path.display());
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).custom_flags(nofollow).open(&path);
    let file = file.during(what)?;
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock::Ours(file)),
            Err(std::fs::TryLockError::WouldBlock) => {}
            Err(std::fs::TryLockError::Error(e)) => return Err(Error::io(what(), e)),
        }
        if client::dial(project)?.is_some() {
            return Ok(Lock::Theirs(project.sockets().into_iter().next().unwrap_or_default()));
        }
        if Instant::now() > end {
            let problem = "another supervisor holds it and does not listen; end that process".to_owned();
            return Err(Error::Untrusted { path, problem });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Device and inode of a folder; none where it is not one.
fn folder_id(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().filter(Metadata::is_dir).map(|meta| (meta.dev(), meta.ino()))
}

/// Listens at the first place that can be used. Whoever holds the lock may replace what is left there.
fn listen(project: &Project) -> Result<(UnixListener, PathBuf)> {
    let mut last = Error::protocol("no place for a socket: every path is too long");
    for path in project.sockets() {
        match listen_at(&path) {
            Ok(listener) => return Ok((listener, path)),
            Err(error) => last = error,
        }
    }
    // The last place is in /tmp, where anybody may have been first.
    let help = "set XDG_RUNTIME_DIR to a folder that is yours alone (mode 0700)".to_owned();
    Err(Error::Reported(Report { help: Some(help), ..last.report() }))
}

fn listen_at(path: &Path) -> Result<UnixListener> {
    let what = || format!("listen on {}", path.display());
    let dir = path.parent().unwrap_or(Path::new("/"));
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io(what(), e)),
        Ok(()) | Err(_) => check_private(dir)?,
    }
    if let Err(e) = std::fs::remove_file(path)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        return Err(Error::io(what(), e));
    }
    let listener = UnixListener::bind(path).during(what)?;
    listener.set_nonblocking(true).during(what)?;
    Ok(listener)
}

/// Standard error becomes the project's supervisor.log, for what has no other place: panics and lost clients.
fn open_log(project: &Project) {
    let path = project.supervisor_log();
    let long = path.metadata().is_ok_and(|meta| meta.len() > MAX_LOG);
    let mut options = File::options();
    options.create(true).mode(0o600);
    let options = if long { options.write(true).truncate(true) } else { options.append(true) };
    // Without a log it works as well.
    if let Ok(file) = options.open(&path) {
        rustix::stdio::dup2_stderr(file).ok();
    }
}

/// A line for supervisor.log.
fn say(text: &str) {
    eprintln!(
        "{} ctst[{}]: {text}",
        jiff::Timestamp::now().round(jiff::Unit::Millisecond).unwrap_or_default(),
        std::process::id()
    );
}

/// Each container takes about six descriptors. What it started with stays the limit of the containers, because the
/// sandbox has been started before.
fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).ok();
}

/// Sockets that are bound to ports of the host.
type Given = HashMap<HostPort, OwnedFd>;

/// A port that is published.
#[derive(Debug)]
struct Port {
    /// The forwarder's name for it.
    id: u64,
    /// One container, or replicas of one component, that share it.
    owners: Vec<Owner>,
}

#[derive(Debug)]
struct Owner {
    cid: Cid,
    /// The component that it is a replica of.
    group: Option<String>,
    /// Of the container.
    port: u16,
}

impl Port {
    fn is_of(&self, cid: Cid) -> bool {
        self.owners.iter().any(|owner| owner.cid == cid)
    }
}

struct Supervisor {
    project: Project,
    own: Incarnation,
    ids: Ids,
    networks: Networks,
    name_server: Names,
    egress: Egress,
    sandbox: Sandbox,
    signals: SignalFd,
    listener: Option<(UnixListener, Token, PathBuf)>,
    /// Released by the end of this process.
    _lock: File,
    waker: Option<std::sync::Arc<mio::Waker>>,
    publisher: Publisher,
    forwarder: Option<Forwarder>,
    /// Sockets for the forwarder are on their way.
    dialing: Vec<Protocol>,
    /// It asked for more meanwhile.
    hungry: bool,
    ports: HashMap<HostPort, Port>,
    next_port: u64,
    containers: BTreeMap<Cid, Container>,
    names: HashMap<String, Cid>,
    /// By id of LAUNCH.
    launches: HashMap<u32, Cid>,
    /// For containers, launches, workers and probes alike.
    next_id: u32,
    clients: HashMap<u64, Client>,
    next_client: u64,
    /// Somebody was refused, and it was told.
    refused: bool,
    /// What happened last, the oldest first.
    history: VecDeque<Event>,
    workers: HashMap<u32, Worker>,
    /// Of lazy images, opened by clients, by the digest of their index.
    archives: HashMap<String, Archive>,
    background: Background,
    /// Folders that could not be made, and why, until the next run tries again.
    unfilled: HashMap<PathBuf, String>,
    /// The cgroup of the project, once a container has limits.
    division: Option<Division>,
    /// Groups that S made, and that could not be removed at once when their containers ended.
    left_groups: Vec<u32>,
    /// What an earlier supervisor left was looked for.
    swept: bool,
    /// Removals under way.
    removing: usize,
    /// What could not be removed, for whom asked to.
    unremoved: Vec<String>,
    removals: mpsc::Sender<Removed>,
    removed: mpsc::Receiver<Removed>,
    buffer: Vec<u8>,
    poller: Poller,
    /// Something changed that others may wait for.
    dirty: bool,
    /// Why nothing can be started.
    broken: Option<Report>,
    /// Device and inode of the state folder.
    state: (u64, u64),
    /// It is no longer there.
    lost: bool,
    ending: bool,
}

impl Supervisor {
    fn run(mut self: Box<Self>, first: Connection) -> i32 {
        self.poller.after(GUARD, Timer::Guard);
        if let Err(error) = self.admit(first, true) {
            say(&format!("{error}"));
        }
        loop {
            self.settle();
            if self.ending && !self.sandbox.lives() {
                break;
            }
            let News { happened, due } = match self.poller.wait() {
                Ok(news) => news,
                Err(error) => {
                    say(&format!("wait for events: {error}"));
                    return exit::TOOL;
                }
            };
            for (token, source) in happened {
                if self.poller.holds(token) {
                    self.on_source(token, source);
                }
            }
            for timer in due {
                self.on_timer(timer);
            }
        }
        self.farewell();
        self.tidy_groups();
        0
    }

    fn on_source(&mut self, token: Token, source: Source) {
        match source {
            Source::Signals => {
                while matches!(self.signals.read_signal(), Ok(Some(_))) {}
                self.stop_all();
            }
            Source::Wake => {
                self.on_removed();
                self.on_background();
            }
            Source::Listener => self.on_listener(),
            Source::Forwarder => self.on_forwarder(),
            Source::Shim => self.on_shim(),
            Source::Init => {
                self.sandbox.init_event(&mut self.poller);
                self.on_sandbox_gone();
            }
            Source::Mapper(index) => {
                if let Err(error) = self.sandbox.helper_event(&mut self.poller, index) {
                    self.break_sandbox(&error);
                }
            }
            Source::Client(id) => self.on_client(id),
            Source::Channel(cid) => self.on_channel(cid),
            Source::Pid(cid) => self.on_gone(cid),
            Source::Output(cid, stream) => self.on_output(cid, stream, token),
            Source::Probe(cid) => self.on_probe_socket(cid),
            Source::ProbeOutput(cid) => self.on_probe_output(cid),
            Source::Worker(id) => self.on_worker(id),
            Source::Words(id) => self.hear_server(id),
            Source::Group(cid) => self.on_group(cid),
            Source::Egress => self.on_keeper(),
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Look => self.dirty = true,
            Timer::Guard => {
                self.guard();
                self.tidy_groups();
                self.poller.after(GUARD, Timer::Guard);
            }
            Timer::Kill(cid, launch) => {
                if self.containers.get_mut(&cid).is_some_and(|c| c.launch(launch).is_some()) {
                    self.kill(cid);
                }
            }
            Timer::Restart(cid, count) => self.on_restart(cid, count),
            Timer::Probe(cid, launch, number) => self.on_probe_due(cid, launch, number),
            Timer::ProbeTimeout(cid, number) => self.on_probe_timeout(cid, number),
        }
    }

    /// Stops everything when the state folder is gone or another has taken its place: nothing that is written there says
    /// what runs any more, and the next `ctst run` would not know of it.
    fn guard(&mut self) {
        if self.ending || self.lost || folder_id(&self.project.state_dir()) == Some(self.state) {
            return;
        }
        self.lost = true;
        let path = self.project.state_dir();
        let problem = "it was removed or replaced while the project ran, so everything is stopped".to_owned();
        let report = Error::Untrusted { path, problem }.report();
        say(&report.message);
        self.broken.get_or_insert_with(|| report.clone());
        let cids: Vec<Cid> = self.containers.iter().filter(|(_, c)| c.is_active()).map(|(cid, _)| *cid).collect();
        for cid in cids {
            if let Some(container) = self.containers.get_mut(&cid) {
                container.result = report.exit;
            }
            self.event(cid, EventKind::Failed(report.clone()));
        }
        self.stop_all();
    }

    fn on_shim(&mut self) {
        let mut told = Vec::new();
        let result = self.sandbox.channel_event(&mut self.poller, &mut told);
        for message in told {
            match message {
                Told::Launched(id, pidfd) => self.on_launched(id, pidfd),
                Told::LaunchFailed(id, failure) => self.on_launch_failed(id, &failure),
                Told::Dialed(dialer, sockets) => self.on_dialed(dialer, sockets),
                Told::Listening(network, sockets) => self.on_listening(network, sockets),
                Told::Tapped(made) => self.on_tapped(made),
            }
        }
        if let Err(error) = result {
            self.break_sandbox(&error);
        } else if !self.sandbox.lives() {
            self.on_sandbox_gone();
        }
    }

    fn break_sandbox(&mut self, error: &Error) {
        say(&format!("{error}"));
        self.broken = Some(error.report());
        self.sandbox.close(&mut self.poller);
        if !self.sandbox.lives() {
            self.on_sandbox_gone();
        }
    }

    /// S ended, and the kernel has ended every container with it. Nothing is started again: a supervisor serves one
    /// sandbox.
    fn on_sandbox_gone(&mut self) {
        if self.ending {
            return;
        }
        let report = self.broken.get_or_insert_with(|| {
            Error::Sandbox("run the project: its sandbox was killed, and all containers with it".to_owned()).report()
        });
        let report = report.clone();
        let cids: Vec<Cid> = self.containers.keys().copied().collect();
        for cid in cids {
            self.on_swept_away(cid, &report);
        }
        let workers: Vec<u32> = self.workers.keys().copied().collect();
        for id in workers {
            self.on_worker_failed(id, "the worker was killed");
        }
        self.dirty = true;
    }

    /// Lets everything happen that is possible now, and ends when nothing is left.
    fn settle(&mut self) {
        loop {
            while std::mem::take(&mut self.dirty) {
                self.advance();
            }
            if !self.sandbox.has_early() {
                break;
            }
            self.on_shim();
        }
        self.tend_archives();
        self.tend_egress();
        self.check_end();
        self.answer_waiting();
    }

    fn check_end(&mut self) {
        let expecting = self.clients.values().any(|client| client.expected);
        let active = self.containers.values().any(Container::is_active);
        if self.ending || expecting || active || self.removing > 0 || self.workers.values().any(Worker::ends) {
            return;
        }
        if !self.background.is_idle() {
            // It tells when all is removed that it made.
            return self.stop_unpacking();
        }
        self.ending = true;
        // Who connects from now on finds nobody, and starts a new supervisor that waits for our lock.
        if let Some((listener, token, path)) = self.listener.take() {
            self.poller.remove(&listener, token);
            if let Err(error) = std::fs::remove_file(&path) {
                say(&format!("remove {}: {error}", path.display()));
            }
        }
        self.forwarder = None;
        self.sandbox.close(&mut self.poller);
        self.end_egress();
    }

    /// The last words to the clients.
    fn farewell(&mut self) {
        let codes: Vec<(u64, i32)> = self.clients.iter().map(|(id, client)| (*id, self.result_for(client))).collect();
        let end = Instant::now() + Duration::from_secs(1);
        for (id, code) in codes {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            // A client that is gone, or does not read within a second, does without.
            if client.connection.post(&Reply::Over { code }, Vec::new()).is_ok() {
                while !client.connection.is_flushed() && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(1));
                    if client.connection.flush().is_err() {
                        break;
                    }
                }
            }
        }
    }

    fn event(&mut self, cid: Cid, kind: EventKind) {
        let Some(container) = self.containers.get(&cid) else { return };
        self.spread(Event { at: now(), component: container.name().to_owned(), kind });
    }

    /// Tells of an event whoever wants to know, and remembers it for whoever will.
    fn spread(&mut self, event: Event) {
        if self.history.len() == MAX_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(event.clone());
        let reply = Reply::Event(event);
        let ids: Vec<u64> = self.clients.iter().filter(|(_, c)| c.attached).map(|(id, _)| *id).collect();
        for id in ids {
            self.tell(id, &reply, Vec::new());
        }
    }

    /// Tells a client what happened since then, in milliseconds since 1970, as far as that is remembered.
    fn tell_history(&mut self, client: u64, since: u64) {
        let past: Vec<Event> = self.history.iter().filter(|event| event.at >= since).cloned().collect();
        for event in past {
            self.tell(client, &Reply::Event(event), Vec::new());
        }
        self.tell(client, &Reply::Done, Vec::new());
    }

    fn new_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    /// Answers a greeting.
    fn greet(&mut self, connection: &mut Connection, hello: &Hello) -> Result<()> {
        // Who lists all projects does not know which one this is.
        let any = hello.project == Identity::ANY && hello.run.is_none();
        if hello.project != self.project.identity() && !any {
            let error = Error::protocol("this supervisor serves another project; is its socket where it belongs?");
            connection.post(&Reply::Refused(error.report()), Vec::new())?;
            return Err(error);
        }
        let told = Reply::Hello { version: VERSION, build: client::BUILD.to_owned() };
        connection.post(&told, Vec::new())?;
        if hello.version == VERSION && hello.build == client::BUILD {
            Ok(())
        } else {
            Err(Error::OtherVersion { theirs: hello.build.clone(), ours: client::BUILD.to_owned() })
        }
    }

    fn on_forwarder(&mut self) {
        let Some(forwarder) = &self.forwarder else { return };
        forwarder.noticed();
        for (id, why) in forwarder.full() {
            // It may have been withdrawn meanwhile.
            let Some((key, port)) = self.ports.iter().find(|(_, port)| port.id == id) else { continue };
            let place = key.to_string();
            say(&format!("clients of {place} wait: {why}"));
            for cid in port.owners.iter().map(|owner| owner.cid).collect::<Vec<_>>() {
                self.event(cid, EventKind::ClientsWait { place: place.clone(), why: why.clone() });
            }
        }
        self.feed_forwarder();
    }

    fn feed_forwarder(&mut self) {
        let Some(forwarder) = &self.forwarder else { return };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let needs = forwarder.needs(protocol);
            if needs == 0 {
                continue;
            }
            if self.dialing.contains(&protocol) {
                self.hungry = true;
                continue;
            }
            match self.sandbox.dial(sandbox::Dialer::Forwarder(protocol), needs) {
                Ok(()) => self.dialing.push(protocol),
                Err(_) => forwarder.supply(protocol, Vec::new()),
            }
        }
    }

    fn on_dialed(
        &mut self,
        dialer: sandbox::Dialer,
        sockets: Result<Vec<OwnedFd>, containust_shared::protocol::Failure>,
    ) {
        match dialer {
            sandbox::Dialer::Forwarder(protocol) => {
                self.dialing.retain(|other| *other != protocol);
                if let Some(forwarder) = &self.forwarder {
                    forwarder.supply(protocol, sockets.unwrap_or_default());
                }
                if std::mem::take(&mut self.hungry) {
                    self.feed_forwarder();
                }
            }
            sandbox::Dialer::Probe(cid, number) => self.on_probe_dialed(cid, number, sockets),
        }
    }

    /// The forwarder, started with the first port.
    fn forwarder(&mut self) -> Result<&Forwarder> {
        if self.forwarder.is_none() {
            let forwarder =
                Forwarder::start(self.publisher.clone()).during(|| "start the port forwarder".to_owned())?;
            self.poller
                .add_reader(&forwarder.as_fd(), Source::Forwarder)
                .during(|| "watch the port forwarder".to_owned())?;
            self.forwarder = Some(forwarder);
        }
        self.forwarder.as_ref().ok_or_else(|| Error::protocol("no forwarder"))
    }
}
