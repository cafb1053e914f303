//! Talking to a project's supervisor.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{PidfdFlags, getuid, pidfd_open};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::doctor_net::Outlook;
use crate::error::{During, Error, Report, Result};
use crate::event::Event;
use crate::host::{cgroup, launch};
use crate::ipc::fdpass;
use crate::ipc::peer;
use crate::ipc::{Connection, Hello, Incoming, Reply, Request, VERSION};
use crate::project::{Project, check_private};
use crate::run::{ExecRequest, PAUSE, Session};
use crate::secrets::PREFIX;
use crate::status::{ContainerStatus, Stats};
use crate::supervisor;

/// A supervisor answers a greeting at once; one that does not within this is stopped or stuck.
const GREETING: Duration = Duration::from_secs(10);
/// How long a supervisor takes to end, at most: it gives clients and what leaves the project a second each.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often a client that met a supervisor on its way out looks again.
const ATTEMPTS: u32 = 500;

/// Version of this program, as told to supervisors and clients.
pub(crate) const BUILD: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn lost(project: &Project) -> Error {
    Error::Lost { log: project.supervisor_log() }
}

/// A connected socket and the process behind it; `None`: nothing listens.
pub(crate) fn dial(project: &Project) -> Result<Option<(OwnedFd, u32)>> {
    for path in project.sockets() {
        // Anybody may have made a folder of that name, and filled it.
        if path.parent().is_none_or(|dir| check_private(dir).is_err()) {
            continue;
        }
        if let Some(found) = dial_at(&path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The same of one place.
pub(crate) fn dial_at(path: &Path) -> Result<Option<(OwnedFd, u32)>> {
    let what = || format!("connect to {}", path.display());
    let address = SocketAddrUnix::new(path).during(what)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).during(what)?;
    // Whatever refuses (nobody there, not listening, not ours to enter): there is no supervisor of ours. Nor is who
    // listens inside a container.
    if connect(&socket, &address).is_err() {
        return Ok(None);
    }
    Ok(peer::trusted(&socket).ok().map(|pid| (socket, pid.as_raw_nonzero().get().unsigned_abs())))
}

/// A greeted or about-to-be-greeted connection.
pub(crate) struct Link {
    pub(crate) connection: Connection,
    /// The supervisor, where it was started for this connection.
    pub(crate) child: Option<Child>,
    pid: Option<u32>,
    project: Project,
    hello: Request,
}

impl Link {
    /// Connects to the project's supervisor, or starts one, which does not inherit the variables `hidden`. `run` is the
    /// number of components to come. `scoped`: where systemd owns the cgroups, in a scope of its own, which limits need.
    pub(crate) fn open(project: &Project, run: Option<usize>, hidden: &[&str], scoped: bool) -> Result<Self> {
        if let Some((socket, pid)) = dial(project)? {
            return Ok(Self::over(project, socket, pid, run));
        }
        let (ours, theirs) = fdpass::pair(SocketType::STREAM).during(|| "make a socket pair".to_owned())?;
        let (connection, hello) = (Connection::new(ours), hello(project, run));
        connection.send(&hello, &[])?;
        let scoped = scoped && cgroup::Outlook::new(None).place == Ok(cgroup::Place::Scope);
        let child = Some(spawn(project, theirs, hidden, scoped)?);
        Ok(Self { connection, child, pid: None, project: project.clone(), hello })
    }

    /// Greets who listens. That he ends right now is noticed by the answer.
    fn over(project: &Project, socket: OwnedFd, pid: u32, run: Option<usize>) -> Self {
        let (connection, hello) = (Connection::new(socket), hello(project, run));
        connection.send(&hello, &[]).ok();
        Self { connection, child: None, pid: Some(pid), project: project.clone(), hello }
    }

    /// Waits for the answer to the greeting. `false`: the supervisor was ending.
    pub(crate) fn greet(&mut self) -> Result<bool> {
        for _ in 0..ATTEMPTS {
            if !readable(&self.connection, GREETING)? {
                return Err(Error::protocol("the supervisor does not answer; it may be stopped or stuck"));
            }
            match self.connection.wait::<Reply>() {
                Ok(Some((Reply::Hello { version, build }, _))) if version == VERSION && build == BUILD => {
                    return Ok(true);
                }
                Ok(Some((Reply::Hello { build, .. }, _))) => {
                    return Err(Error::OtherVersion { theirs: build, ours: BUILD.to_owned() });
                }
                // Two were started at once, and this one was second.
                Ok(Some((Reply::Busy { .. }, _))) => {
                    reap(&mut self.child);
                    match dial(&self.project)? {
                        Some((socket, pid)) => {
                            self.connection = Connection::new(socket);
                            self.pid = Some(pid);
                            self.connection.send(&self.hello, &[]).ok();
                        }
                        None => std::thread::sleep(PAUSE),
                    }
                }
                Ok(Some((Reply::Refused(report), _))) => {
                    reap(&mut self.child);
                    return Err(Error::Reported(report));
                }
                // It ends, and says so to everybody who is connected.
                Ok(None | Some((Reply::Over { .. }, _))) if self.child.is_none() => return Ok(false),
                Ok(None) => return Err(self.unscoped().unwrap_or_else(|| lost(&self.project))),
                Err(Error::Io { .. }) if self.child.is_none() => return Ok(false),
                Ok(Some((other, _))) => return Err(Error::protocol(format!("unexpected {other:?}"))),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

impl Link {
    /// What systemd-run said instead of becoming the supervisor.
    fn unscoped(&mut self) -> Option<Error> {
        let mut child = self.child.take()?;
        let mut words = Vec::new();
        let stderr = child.stderr.take();
        child.wait().ok()?;
        // A part of its words is better than none.
        stderr?.take(4096).read_to_end(&mut words).ok();
        let words = String::from_utf8_lossy(&words);
        let problem = words.trim().escape_debug().to_string();
        Some(Error::NoScope { problem: if problem.is_empty() { "systemd-run failed".to_owned() } else { problem } })
    }
}

fn hello(project: &Project, run: Option<usize>) -> Request {
    Request::Hello(Hello { version: VERSION, build: BUILD.to_owned(), project: project.identity(), run })
}

fn reap(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        // It has said its last word, so that this does not wait for long; a failure would leave a zombie of ours only.
        child.wait().ok();
    }
}

/// Starts this executable again as the project's supervisor, with `channel` as its standard input.
fn spawn(project: &Project, channel: OwnedFd, hidden: &[&str], scoped: bool) -> Result<Child> {
    // A descriptor that a shell or CI left open in us would stay open as long as the project runs, and who waits for its
    // end would wait as long.
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    // systemd-run asks for the scope, and then becomes the supervisor.
    let words = cgroup::scope_command();
    let mut command = Command::new(if scoped { words[0] } else { "/proc/self/exe" });
    // It stays, and root may read what it was started with.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) || hidden.iter().any(|hidden| name == *hidden) {
            command.env_remove(name);
        }
    }
    if scoped {
        let exe = std::env::current_exe().during(|| "find the running executable".to_owned())?;
        if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
            command.env("XDG_RUNTIME_DIR", format!("/run/user/{}", getuid().as_raw()));
        }
        command
            .args(&words[1..])
            .arg(exe)
            .args([supervisor::VERB.as_ref(), project.file().as_os_str(), supervisor::SCOPED.as_ref()])
            .stdin(channel)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        return launch::spawn(command).during(|| format!("start {}", words[0]));
    }
    command
        .arg0("ctst")
        .arg(supervisor::VERB)
        .arg(project.file())
        .stdin(channel)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    launch::spawn(command).during(|| "start the project's supervisor".to_owned())
}

/// Whether there is something to read within this time.
pub(crate) fn readable(socket: &impl AsFd, within: Duration) -> Result<bool> {
    let timeout = within.try_into().ok();
    loop {
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other.during(|| "wait for the project's supervisor".to_owned())? > 0),
        }
    }
}

/// A connection to the supervisor of a project that runs.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    pid: Option<u32>,
    project: Project,
}

impl Client {
    /// Connects; `None`: nothing of the project runs.
    ///
    /// # Errors
    /// [`Error::OtherVersion`], [`Error::Untrusted`], [`Error::Protocol`].
    pub fn connect(project: &Project) -> Result<Option<Self>> {
        for _ in 0..ATTEMPTS {
            let Some((socket, pid)) = dial(project)? else { return Ok(None) };
            let mut link = Link::over(project, socket, pid, None);
            if link.greet()? {
                return Ok(Some(Self { connection: link.connection, pid: link.pid, project: project.clone() }));
            }
            // It is ending; soon nobody listens.
            std::thread::sleep(PAUSE);
        }
        Err(lost(project))
    }

    /// Stops components, dependents first, and returns when they are gone: the stop signal of each, and SIGKILL after its
    /// own grace, or after `grace`. No names: all of the project's file. With the last container the supervisor goes too.
    ///
    /// # Errors
    /// [`Error::Reported`] for a name that does not run.
    pub fn stop(&mut self, names: &[String], grace: Option<Duration>, on_event: &mut dyn FnMut(&Event)) -> Result<()> {
        self.connection.send(&Request::Attach, &[])?;
        self.connection
            .send(&Request::Stop { names: names.to_vec(), file: Some(self.project.file_name()), grace }, &[])?;
        loop {
            match self.connection.wait::<Reply>()? {
                Some((Reply::Event(event), _)) => on_event(&event),
                Some((Reply::Done, _)) => return Ok(()),
                Some((Reply::Over { .. }, _)) | None => break,
                Some((Reply::Refused(report), _)) => return Err(Error::Reported(report)),
                Some((other, _)) => return Err(Error::protocol(format!("unexpected {other:?}"))),
            }
        }
        self.wait_gone()
    }

    /// Ends components that run and starts them again as they are, in the order of their dependencies; no names: all of
    /// the project's file that run. Returns when they were started, with what failed.
    ///
    /// # Errors
    /// [`Error::Reported`] for a name that does not run.
    pub fn restart(
        &mut self,
        names: &[String],
        grace: Option<Duration>,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<Vec<(String, Report)>> {
        self.connection
            .send(&Request::Restart { names: names.to_vec(), file: self.project.file_name(), grace }, &[])?;
        loop {
            match self.connection.wait::<Reply>()? {
                Some((Reply::Event(event), _)) => on_event(&event),
                Some((Reply::Settled { failed }, _)) => return Ok(failed),
                Some((Reply::Over { .. }, _)) => return Ok(Vec::new()),
                Some((Reply::Refused(report), _)) => return Err(Error::Reported(report)),
                Some((other, _)) => return Err(Error::protocol(format!("unexpected {other:?}"))),
                None => return Err(lost(&self.project)),
            }
        }
    }

    /// Forgets containers that do not run and removes their writable layers, logs and records, also what belongs to
    /// subordinate ids. No names: all of the project's file that do not run. Starts a supervisor for it where there is none.
    ///
    /// # Errors
    /// [`Error::Reported`] for a name that is unknown or runs, and for what could not be removed.
    pub fn remove(
        project: &Project,
        names: &[String],
        allow_destroy: bool,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<()> {
        let file = project.file_name();
        let request = Request::Remove { names: names.to_vec(), file, destroy: allow_destroy };
        Self::remove_by(project, &request, on_event)
    }

    /// Removes named volumes and all that is in them, whoever owns it inside. Starts a supervisor for it where there is
    /// none.
    ///
    /// # Errors
    /// [`Error::Reported`] for a volume that is not there or that a container has, and for what could not be removed.
    pub fn remove_volumes(project: &Project, names: &[String]) -> Result<()> {
        Self::remove_by(project, &Request::RemoveVolumes { names: names.to_vec() }, &mut |_| {})
    }

    pub(crate) fn remove_by(project: &Project, request: &Request, on_event: &mut dyn FnMut(&Event)) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let mut link = Link::open(project, Some(0), &[], false)?;
            if !link.greet()? || link.connection.send(request, &[]).is_err() {
                std::thread::sleep(PAUSE);
                continue;
            }
            let result = loop {
                match link.connection.wait::<Reply>()? {
                    Some((Reply::Event(event), _)) => on_event(&event),
                    Some((Reply::Done, _)) => break Some(Ok(())),
                    Some((Reply::Over { .. }, _)) => break None,
                    Some((Reply::Refused(report), _)) => break Some(Err(Error::Reported(report))),
                    Some((other, _)) => return Err(Error::protocol(format!("unexpected {other:?}"))),
                    None => return Err(lost(project)),
                }
            };
            drop(link.connection);
            reap_unless_kept(&mut link.child);
            match result {
                Some(result) => return result,
                None => std::thread::sleep(PAUSE),
            }
        }
        Err(lost(project))
    }

    /// Starts a process in a container. With a terminal the three descriptors are not used.
    ///
    /// # Errors
    /// [`Error::Reported`]: the component does not run, or the program is not there (127) or not executable (126).
    pub fn exec(self, request: &ExecRequest, stdio: [BorrowedFd<'_>; 3]) -> Result<ExecSession> {
        let fds: &[BorrowedFd<'_>] = if request.tty.is_some() { &[] } else { &stdio };
        let mut connection = self.connection;
        connection.send(&Request::Exec(request.clone()), fds)?;
        match connection.wait::<Reply>()? {
            Some((Reply::ExecStarted, fds)) => {
                let master = fds.into_iter().next();
                if let (Some(master), Some((rows, columns))) = (&master, request.tty) {
                    resize(master, rows, columns)?;
                }
                Ok(ExecSession { connection, master, code: None })
            }
            // Killed at once, with its container.
            Some((Reply::ExecEnded { code }, _)) => Ok(ExecSession { connection, master: None, code: Some(code) }),
            Some((Reply::Refused(report), _)) => Err(Error::Reported(report)),
            Some((other, _)) => Err(Error::protocol(format!("unexpected {other:?}"))),
            None => Err(lost(&self.project)),
        }
    }

    /// What every running container uses, in the file's order.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn stats(&mut self) -> Result<Vec<Stats>> {
        self.connection.send(&Request::Stats, &[])?;
        match self.connection.wait::<Reply>()? {
            Some((Reply::Stats(stats), _)) => Ok(stats),
            Some((other, _)) => Err(Error::protocol(format!("unexpected {other:?}"))),
            None => Err(lost(&self.project)),
        }
    }

    /// The containers as the supervisor knows them.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn status(&mut self) -> Result<Vec<ContainerStatus>> {
        self.connection.send(&Request::Status, &[])?;
        match self.connection.wait::<Reply>()? {
            Some((Reply::Status(status), _)) => Ok(status),
            Some((other, _)) => Err(Error::protocol(format!("unexpected {other:?}"))),
            None => Err(lost(&self.project)),
        }
    }

    /// TCP sockets in a container's network namespace, non-blocking and not connected, and what it has of networks.
    pub(crate) fn sockets(&mut self, component: &str, count: u8) -> Result<(Outlook, Vec<OwnedFd>)> {
        self.connection.send(&Request::Sockets { component: component.to_owned(), count }, &[])?;
        // The container's pid 1 is asked, which may have been frozen just now.
        if !readable(&self.connection, GREETING)? {
            return Err(Error::protocol(format!("the pid 1 of {component} does not answer")));
        }
        match self.connection.wait::<Reply>()? {
            Some((Reply::Sockets(outlook), sockets)) => Ok((outlook, sockets)),
            Some((Reply::Refused(report), _)) => Err(Error::Reported(report)),
            Some((other, _)) => Err(Error::protocol(format!("unexpected {other:?}"))),
            None => Err(lost(&self.project)),
        }
    }

    /// Freezes components, or lets frozen ones go on: all of them, or none where one cannot.
    ///
    /// # Errors
    /// [`Error::Reported`] for one that does not run, or has no cgroup, which it has where it has limits.
    pub fn pause(&mut self, names: &[String], paused: bool) -> Result<()> {
        self.connection.send(&Request::Pause { names: names.to_vec(), paused }, &[])?;
        match self.connection.wait::<Reply>()? {
            Some((Reply::Done, _)) => Ok(()),
            Some((Reply::Refused(report), _)) => Err(Error::Reported(report)),
            Some((other, _)) => Err(Error::protocol(format!("unexpected {other:?}"))),
            None => Err(lost(&self.project)),
        }
    }

    /// Its pid, as the kernel says it.
    pub(crate) fn supervisor(&self) -> Option<u32> {
        self.pid
    }

    /// Watches what runs.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn attach(self) -> Result<Session> {
        self.connection.send(&Request::Attach, &[])?;
        Ok(Session::attached(self.connection, self.project.supervisor_log()))
    }

    /// What happened since then, in milliseconds since 1970, and a session that goes on from there. The supervisor remembers the last
    /// thousand events, and nobody does once it is gone with the last container.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn events(mut self, since: u64) -> Result<(Vec<Event>, Session)> {
        self.connection.send(&Request::Events { since }, &[])?;
        let mut past = Vec::new();
        loop {
            match self.connection.wait::<Reply>()? {
                Some((Reply::Event(event), _)) => past.push(event),
                Some((Reply::Done, _)) => break,
                Some((Reply::Over { .. }, _)) | None => return Err(lost(&self.project)),
                Some((other, _)) => return Err(Error::protocol(format!("unexpected {other:?}"))),
            }
        }
        Ok((past, Session::attached(self.connection, self.project.supervisor_log())))
    }

    /// Waits until the process is gone, so that a look at the process table after a stop finds nothing.
    fn wait_gone(&self) -> Result<()> {
        let Some(pid) = self.pid.and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)) else {
            return Ok(());
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => readable(&pidfd, GREETING).map(drop),
            Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(Error::io("wait for the project's supervisor", e)),
        }
    }
}

/// A process started by [`Client::exec`]. Dropping it before its end sends it SIGHUP, as a terminal that goes away does.
#[derive(Debug)]
pub struct ExecSession {
    connection: Connection,
    master: Option<OwnedFd>,
    code: Option<i32>,
}

impl AsFd for ExecSession {
    /// Readable when the process may have ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// Waits for a supervisor that was started to remove something: with nothing to run it ends at once, once we are gone; but somebody
/// may have had it run something meanwhile.
fn reap_unless_kept(child: &mut Option<Child>) {
    let Some(mut child) = child.take() else { return };
    let end = Instant::now() + LAST_WORDS;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl ExecSession {
    /// The terminal's master side, where one was asked for.
    #[must_use]
    pub fn master(&self) -> Option<&OwnedFd> {
        self.master.as_ref()
    }

    /// Tells the terminal its size.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        self.master.as_ref().map_or(Ok(()), |master| resize(master, rows, columns))
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// [`Error::Io`] where the supervisor is gone.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        self.connection.send(&Request::Signal(signal), &[])
    }

    /// Waits for the end of the process and returns its exit code, as shells give it.
    ///
    /// # Errors
    /// [`Error::Protocol`].
    pub fn wait(&mut self) -> Result<i32> {
        loop {
            if let Some(code) = self.code {
                return Ok(code);
            }
            let reply = self.connection.wait::<Reply>()?.map(|(reply, _)| reply);
            self.take(reply)?;
        }
    }

    /// The same without waiting; `None`: it runs.
    ///
    /// # Errors
    /// [`Error::Protocol`].
    pub fn try_wait(&mut self) -> Result<Option<i32>> {
        while self.code.is_none() {
            match self.connection.poll::<Reply>()? {
                Incoming::Frame(reply, _) => self.take(Some(reply))?,
                Incoming::End => self.take(None)?,
                Incoming::Empty => break,
            }
        }
        Ok(self.code)
    }

    fn take(&mut self, reply: Option<Reply>) -> Result<()> {
        match reply {
            Some(Reply::ExecEnded { code }) => self.code = Some(code),
            // The supervisor was killed, and the container with it.
            None => self.code = Some(containust_shared::exit::SIGNAL_BASE + 9),
            Some(Reply::Over { .. }) => {}
            Some(other) => return Err(Error::protocol(format!("unexpected {other:?}"))),
        }
        Ok(())
    }
}

fn resize(master: &OwnedFd, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).map_err(|e| Error::io("resize the terminal", io::Error::from(e)))
}
