//! The project's sandbox: S, its namespaces, and the id maps that the caller's helpers write.

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use containust_lang::model::Protocol;
use containust_shared::protocol::{
    Bridge, Failure, FromSandbox, FromShim, MAX_FDS, Mapped, Sandbox as Request, ToSandbox, ToShim, Unset, VERSION,
};
use mio::Token;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getgid, getuid, pidfd_open, pidfd_send_signal, waitid,
};

use super::poller::{Cid, Poller, Source};
use crate::error::{During, Error, Result};
use crate::host::confine::{self, Files};
use crate::host::ids::{Ids, Range};
use crate::shim::{self, Channel, Received};

/// Longer than the shim takes to make a sandbox and to answer, on a host that works.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom the sockets of a DIAL are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialer {
    Forwarder(Protocol),
    /// A container's probe with this number.
    Probe(Cid, u64),
}

/// What S answers.
#[derive(Debug)]
pub(super) enum Told {
    /// C of this launch runs.
    Launched(u32, OwnedFd),
    LaunchFailed(u32, Failure),
    Dialed(Dialer, Result<Vec<OwnedFd>, Failure>),
    /// Sockets of a network's name server.
    Listening(u8, Result<Vec<OwnedFd>, Failure>),
    /// The device by which the project is left, and a socket to ask names on.
    Tapped(Result<Vec<OwnedFd>, Failure>),
}

#[derive(Debug)]
enum Asked {
    Launch,
    Dial(Dialer),
    /// A request about a control group, whose asker waits.
    Group,
    Listen(u8),
    Tap,
}

/// A program that ends by itself: P, newuidmap, newgidmap.
#[derive(Debug)]
struct Helper {
    child: Child,
    pidfd: OwnedFd,
    token: Token,
    /// Its name where its success is needed.
    mapper: Option<String>,
}

#[derive(Debug)]
pub(super) struct Sandbox {
    ids: Ids,
    channel: Option<(Channel, Token)>,
    /// S: its pidfd.
    init: Option<(OwnedFd, Token)>,
    /// The same as a number.
    pid: Option<u32>,
    /// What S answered while somebody waited for another answer, and what went wrong with that.
    early: Vec<Told>,
    trouble: Option<Error>,
    /// What the one who waits is answered.
    grouped: Option<Result<Vec<Unset>, Failure>>,
    helpers: Vec<Option<Helper>>,
    /// Ids are mapped, or P does it: requests may be sent.
    open: bool,
    ready: bool,
    asked: VecDeque<Asked>,
    /// Requests that wait until it is open.
    held: Vec<(ToSandbox, Vec<OwnedFd>)>,
    buffer: Vec<u8>,
    /// What this process keeps once it is ready.
    files: Files,
}

impl Sandbox {
    /// Sends the request to the shim just started.
    pub(super) fn start(shim: (Child, Channel), ids: Ids) -> Result<Starting> {
        let (child, mut channel) = shim;
        let request = Request { version: VERSION, map: ids.map(), grouped: true };
        channel.send(&ToShim::Sandbox(request), Vec::new())?;
        Ok(Starting { child, channel, ids })
    }

    /// Whether there is, or may come to be, a process of it.
    pub(super) fn lives(&self) -> bool {
        self.channel.is_some() || self.init.is_some()
    }

    /// Whether S, which once worked, is gone, even if its end has not been told yet.
    pub(super) fn was_killed(&self) -> bool {
        let hung_up = |channel: &Channel| {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut channel = [PollFd::new(channel, PollFlags::empty())];
            poll(&mut channel, Some(&now)) == Ok(1)
        };
        self.ready && self.channel.as_ref().is_none_or(|(channel, _)| hung_up(channel))
    }

    /// S, once there is one.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Asks S about a control group and waits for its answer, as long as S may take to be made and no longer. S serves one
    /// request after the other, none of which waits for a container.
    pub(super) fn group(&mut self, poller: &mut Poller, request: ToSandbox) -> Result<Vec<Unset>, Failure> {
        let failed = |step: &str| Failure { step: step.to_owned(), subject: Vec::new(), errno: 0 };
        self.asked.push_back(Asked::Group);
        // A late answer to somebody who has given up.
        self.grouped = None;
        if self.ask(request, Vec::new()).is_err() {
            self.asked.pop_back();
            return Err(failed("make a control group: the project's sandbox is gone"));
        }
        let end = Instant::now() + PATIENCE;
        loop {
            let mut told = std::mem::take(&mut self.early);
            let result = self.channel_event(poller, &mut told);
            self.early = told;
            if let Some(answer) = self.grouped.take() {
                self.trouble = result.err();
                return answer;
            }
            let left = end.saturating_duration_since(Instant::now());
            let timeout =
                Timespec { tv_sec: left.as_secs().try_into().unwrap_or(0), tv_nsec: left.subsec_nanos().into() };
            match (result, &self.channel) {
                (Err(error), _) => {
                    let failure = failed(&format!("make a control group: {error}"));
                    self.trouble = Some(error);
                    return Err(failure);
                }
                (Ok(()), Some((channel, _))) if !left.is_zero() => {
                    // Interrupted or not: what is there is looked for.
                    poll(&mut [PollFd::new(channel, PollFlags::IN)], Some(&timeout)).ok();
                }
                (Ok(()), Some(_)) => return Err(failed("make a control group: the project's pid 1 does not answer")),
                (Ok(()), None) => return Err(failed("make a control group: the project's sandbox is gone")),
            }
        }
    }

    /// Whether something was said that has not been told.
    pub(super) fn has_early(&self) -> bool {
        !self.early.is_empty() || self.trouble.is_some()
    }

    /// `grouped`: it has a cgroup of its own, with the directory of it where S does not know it.
    pub(super) fn launch(
        &mut self,
        id: u32,
        networks: Vec<Bridge>,
        alone: Option<(u32, u32)>,
        channel: OwnedFd,
        (grouped, cgroup): (bool, Option<OwnedFd>),
    ) -> Result<()> {
        self.asked.push_back(Asked::Launch);
        let request = ToSandbox::Launch { id, networks, grouped, alone };
        self.ask(request, std::iter::once(channel).chain(cgroup).collect())
    }

    pub(super) fn dial(&mut self, dialer: Dialer, count: usize) -> Result<()> {
        let count = u8::try_from(count.clamp(1, MAX_FDS)).unwrap_or(1);
        let udp = dialer == Dialer::Forwarder(Protocol::Udp);
        self.asked.push_back(Asked::Dial(dialer));
        self.ask(ToSandbox::Dial { count, udp }, Vec::new())
    }

    pub(super) fn listen(&mut self, bridge: Bridge) -> Result<()> {
        self.asked.push_back(Asked::Listen(bridge.number));
        self.ask(ToSandbox::Listen { bridge }, Vec::new())
    }

    pub(super) fn tap(&mut self) -> Result<()> {
        self.asked.push_back(Asked::Tap);
        self.ask(ToSandbox::Tap, Vec::new())
    }

    fn ask(&mut self, request: ToSandbox, fds: Vec<OwnedFd>) -> Result<()> {
        match &mut self.channel {
            Some((channel, _)) if self.open => channel.send(&request, fds),
            Some(_) => {
                self.held.push((request, fds));
                Ok(())
            }
            None => Err(Error::Sandbox("start a container: the project's sandbox is gone".to_owned())),
        }
    }

    /// Ends S, and with it everything in the project.
    pub(super) fn close(&mut self, poller: &mut Poller) {
        if let Some((channel, token)) = self.channel.take() {
            poller.remove(&channel, token);
        }
        if let Some((pidfd, _)) = &self.init {
            // It ends with its channel, unless somebody has stopped it. It may have ended.
            pidfd_send_signal(pidfd, Signal::KILL).ok();
        }
        self.held.clear();
    }

    /// The channel can be read or written. Answers are appended to `told`; an error says that there is no sandbox.
    pub(super) fn channel_event(&mut self, poller: &mut Poller, told: &mut Vec<Told>) -> Result<()> {
        told.append(&mut self.early);
        if let Some(error) = self.trouble.take() {
            return Err(error);
        }
        loop {
            let Some((channel, _)) = &mut self.channel else { return Ok(()) };
            channel.flush()?;
            if self.ready {
                match channel.receive::<FromSandbox>(&mut self.buffer)? {
                    Received::Message(message, fds) => told.extend(self.answer(message, fds)?),
                    Received::Empty => return Ok(()),
                    // S ends too; its pidfd tells when.
                    Received::End => {
                        self.close(poller);
                        return Ok(());
                    }
                }
                continue;
            }
            match channel.receive::<FromShim>(&mut self.buffer)? {
                Received::Message(FromShim::Created { pid }, fds) => self.created(poller, pid, fds)?,
                Received::Message(FromShim::Ready, _) => {
                    self.ready = true;
                    // The last program that we need, the setuid newgidmap, has done its work.
                    let init = self.init.as_ref().and_then(|(pidfd, _)| super::life::pid_of(pidfd));
                    if let Some(missing) = confine::supervisor(&self.files, init)? {
                        super::say(missing);
                    }
                }
                Received::Message(FromShim::Failed(failure), _) => {
                    self.close(poller);
                    return Err(shim::no_sandbox(&failure));
                }
                Received::Message(FromShim::Collected { .. }, _) => return Err(unexpected("Collected")),
                Received::Empty => return Ok(()),
                Received::End => {
                    self.close(poller);
                    return Err(Error::Sandbox(
                        "make the project's sandbox: ctst-shim ended without a word".to_owned(),
                    ));
                }
            }
        }
    }

    fn created(&mut self, poller: &mut Poller, pid: u32, fds: Vec<OwnedFd>) -> Result<()> {
        let [pidfd]: [OwnedFd; 1] = fds.try_into().map_err(|_| unexpected("Created"))?;
        let token = poller.add_reader(&pidfd, Source::Init).during(|| "watch the sandbox".to_owned())?;
        self.init = Some((pidfd, token));
        self.pid = Some(pid);
        let Ids::Helper { uids, gids, newuidmap, newgidmap } = self.ids.clone() else { return Ok(()) };
        self.map(poller, &newuidmap, pid, getuid().as_raw(), uids)?;
        self.map(poller, &newgidmap, pid, getgid().as_raw(), gids)
    }

    /// Root inside is the caller; what follows is the caller's subordinate range.
    fn map(&mut self, poller: &mut Poller, program: &Path, pid: u32, own: u32, range: Range) -> Result<()> {
        let map = [pid, 0, own, 1, 1, range.first, range.count].map(|n| n.to_string());
        let child = Command::new(program)
            .args(map)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .during(|| format!("start {}", program.display()))?;
        self.watch(poller, child, Some(program.display().to_string()))
    }

    fn watch(&mut self, poller: &mut Poller, child: Child, mapper: Option<String>) -> Result<()> {
        let what = || "watch a helper".to_owned();
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| unexpected("pid"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).during(what)?;
        let token = poller.add_reader(&pidfd, Source::Mapper(self.helpers.len())).during(what)?;
        self.helpers.push(Some(Helper { child, pidfd, token, mapper }));
        Ok(())
    }

    /// A helper ended. An error says that ids could not be mapped.
    pub(super) fn helper_event(&mut self, poller: &mut Poller, index: usize) -> Result<()> {
        let Some(mut helper) = self.helpers.get_mut(index).and_then(Option::take) else { return Ok(()) };
        poller.remove(&helper.pidfd, helper.token);
        let status = helper.child.wait().during(|| "wait for a helper".to_owned())?;
        let Some(name) = helper.mapper else { return Ok(()) };
        if !status.success() {
            self.close(poller);
            return Err(Error::Sandbox(format!("map user ids: {name}: {}", told_by(&mut helper.child, status))));
        }
        let mapping = self.helpers.iter().flatten().any(|helper| helper.mapper.is_some());
        if !mapping && let Some((channel, _)) = &mut self.channel {
            channel.send(&Mapped { version: VERSION }, Vec::new())?;
            self.open = true;
            for (request, fds) in std::mem::take(&mut self.held) {
                channel.send(&request, fds)?;
            }
        }
        Ok(())
    }

    /// S has ended: reaps it.
    pub(super) fn init_event(&mut self, poller: &mut Poller) {
        if let Some((pidfd, token)) = self.init.take() {
            poller.remove(&pidfd, token);
            // It is our child and has ended, so that this neither waits nor fails.
            waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)), WaitIdOptions::EXITED).ok();
        }
        self.close(poller);
    }

    /// Keeps an answer about a control group for who waits for it, who asked last: those before him have given up.
    fn keep(&mut self, answer: Result<Vec<Unset>, Failure>) {
        let is_last = !self.asked.iter().any(|asked| matches!(asked, Asked::Group));
        self.grouped = is_last.then_some(answer);
    }

    fn answer(&mut self, message: FromSandbox, fds: Vec<OwnedFd>) -> Result<Option<Told>> {
        let asked = self.asked.pop_front().ok_or_else(|| unexpected("answer"))?;
        match (message, asked) {
            (FromSandbox::Launched { id }, Asked::Launch) => {
                let [pidfd]: [OwnedFd; 1] = fds.try_into().map_err(|_| unexpected("Launched"))?;
                Ok(Some(Told::Launched(id, pidfd)))
            }
            (FromSandbox::LaunchFailed { id, failure }, Asked::Launch) => Ok(Some(Told::LaunchFailed(id, failure))),
            (FromSandbox::Dialed, Asked::Dial(dialer)) => Ok(Some(Told::Dialed(dialer, Ok(fds)))),
            (FromSandbox::DialFailed(failure), Asked::Dial(dialer)) => Ok(Some(Told::Dialed(dialer, Err(failure)))),
            (FromSandbox::Grouped { unset, .. }, Asked::Group) => {
                self.keep(Ok(unset));
                Ok(None)
            }
            (FromSandbox::GroupFailed { failure, .. }, Asked::Group) => {
                self.keep(Err(failure));
                Ok(None)
            }
            (FromSandbox::Tapped, Asked::Tap) => Ok(Some(Told::Tapped(Ok(fds)))),
            (FromSandbox::TapFailed(failure), Asked::Tap) => Ok(Some(Told::Tapped(Err(failure)))),
            (FromSandbox::Listening, Asked::Listen(network)) => Ok(Some(Told::Listening(network, Ok(fds)))),
            (FromSandbox::ListenFailed(failure), Asked::Listen(network)) => {
                Ok(Some(Told::Listening(network, Err(failure))))
            }
            _ => Err(unexpected("answer")),
        }
    }
}

/// The shim has its request; nothing watches it yet.
pub(super) struct Starting {
    child: Child,
    channel: Channel,
    ids: Ids,
}

impl Starting {
    pub(super) fn watch(self, poller: &mut Poller, files: Files) -> Result<Sandbox> {
        let token = poller.add(&self.channel, Source::Shim).during(|| "watch ctst-shim".to_owned())?;
        let mut sandbox = Sandbox {
            open: !matches!(self.ids, Ids::Helper { .. }),
            ids: self.ids,
            channel: Some((self.channel, token)),
            init: None,
            pid: None,
            early: Vec::new(),
            trouble: None,
            grouped: None,
            helpers: Vec::new(),
            ready: false,
            asked: VecDeque::new(),
            held: Vec::new(),
            buffer: vec![0; containust_shared::wire::MAX_MESSAGE],
            files,
        };
        sandbox.watch(poller, self.child, None)?;
        Ok(sandbox)
    }
}

fn told_by(child: &mut Child, status: ExitStatus) -> String {
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // A part of its words is better than none.
        stderr.take(4096).read_to_end(&mut text).ok();
    }
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    if text.is_empty() { status.to_string() } else { format!("{} ({status})", text.escape_debug()) }
}

fn unexpected(what: &str) -> Error {
    Error::Sandbox(format!("understand ctst-shim: unexpected {what}"))
}
