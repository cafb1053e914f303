//! A sandbox without a supervisor, for one command: containers run in it one after the other, and it ends with the command,
//! however that ends.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use containust_shared::protocol::{
    Address, Bridge, Ended, Failure, FromContainer, FromSandbox, FromShim, MAIN, Mapped, Plan, Sandbox, ToContainer,
    ToSandbox, ToShim, VERSION,
};
use containust_shared::wire::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{Signal, WaitId, WaitIdOptions, getgid, getuid, pidfd_send_signal, waitid};

use crate::egress::{Carry, Keeper, Offer, RESOLVER_OF_STEPS, Told};
use crate::error::{During, Error, Result};
use crate::host::ids::{Ids, Range};
use crate::host::launch;
use crate::ipc::Connection;
use crate::shim::{self, Channel, Received, describe};
use crate::supervisor::no_way_out;

/// Longer than any answer of the sandbox takes on a host that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// The sandbox. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Workshop {
    shim: Child,
    channel: Channel,
    init: Option<OwnedFd>,
    next: u32,
    way: Option<Way>,
}

/// A way out for containers that are to have one: as a project's.
#[derive(Debug)]
struct Way {
    /// Whose end is that of the process.
    connection: Option<Connection>,
    keeper: Option<Keeper>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.connection = None;
        if let Some(keeper) = self.keeper.take() {
            keeper.reap();
        }
    }
}

/// The one network of containers with a way out, and their address on it.
const BRIDGE: Bridge = Bridge { number: 1, address: Address { ip: [10, 89, 0, 1], prefix: 24 }, egress: true };
pub(crate) const ADDRESS: Address = Address { ip: [10, 89, 0, 2], prefix: 24 };

/// A container that was launched.
#[derive(Debug)]
pub(crate) struct Job {
    channel: Channel,
    /// Of the container's pid 1.
    init: Option<OwnedFd>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Its program did.
    Ended(Ended),
    /// It never started.
    Failed(Failure),
    /// It was killed.
    Killed,
}

impl Workshop {
    pub(crate) fn start(ids: &Ids) -> Result<Self> {
        let (shim, channel) = shim::spawn()?;
        set_socket_timeout(&channel, Timeout::Recv, Some(PATIENCE)).during(|| "set a timeout".to_owned())?;
        let mut workshop = Self { shim, channel, init: None, next: 0, way: None };
        let request = Sandbox { version: VERSION, map: ids.map(), grouped: false };
        workshop.channel.send(&ToShim::Sandbox(request), Vec::new())?;
        loop {
            match expect::<FromShim>(&workshop.channel)? {
                (FromShim::Created { pid }, fds) => {
                    workshop.init = fds.into_iter().next();
                    if let Ids::Helper { uids, gids, newuidmap, newgidmap } = ids {
                        map(newuidmap, pid, getuid().as_raw(), *uids)?;
                        map(newgidmap, pid, getgid().as_raw(), *gids)?;
                        workshop.channel.send(&Mapped { version: VERSION }, Vec::new())?;
                    }
                }
                (FromShim::Ready, _) => return Ok(workshop),
                (FromShim::Failed(failure), _) => {
                    return Err(shim::no_sandbox(&failure));
                }
                (FromShim::Collected { .. }, _) => {
                    return Err(Error::Sandbox("understand ctst-shim: unexpected Collected".to_owned()));
                }
            }
        }
    }

    /// Makes a way out, if there is none yet. `file`: the project's, by which people tell such processes apart.
    pub(crate) fn open_way(&mut self, file: &Path) -> Result<()> {
        if self.way.is_some() {
            return Ok(());
        }
        let offer = Offer::new()?;
        self.channel.send(&ToSandbox::Tap, Vec::new())?;
        let device = match expect::<FromSandbox>(&self.channel)? {
            (FromSandbox::Tapped, fds) => fds.into_iter().next(),
            (FromSandbox::TapFailed(failure), _) => return Err(Error::Reported(no_way_out(&failure))),
            (other, _) => return Err(Error::Sandbox(format!("make a way out: unexpected {other:?}"))),
        };
        let device = device.ok_or_else(|| Error::Sandbox("make a way out: no device came".to_owned()))?;
        let socket = offer.socket.try_clone().during(|| "copy a descriptor".to_owned())?;
        let (connection, keeper) = (Connection::new(socket), offer.start(file, RESOLVER_OF_STEPS)?);
        let way = self.way.insert(Way { connection: Some(connection), keeper: Some(keeper) });
        let problem = loop {
            let Some(connection) = &mut way.connection else { return Ok(()) };
            match connection.wait::<Told>()? {
                Some((Told::Started, _)) => connection.send(&Carry, &[device.as_fd()])?,
                Some((Told::Works, _)) => return Ok(()),
                Some((Told::Ended { problem }, _)) => break problem,
                None => break "the process for it ended".to_owned(),
            }
        };
        self.way = None;
        Err(Error::Egress { problem })
    }

    /// Launches a container whose program has these standard streams; one that has an address has the way out.
    pub(crate) fn launch(&mut self, plan: Plan, streams: [OwnedFd; 3]) -> Result<Job> {
        let networks = if plan.addresses.is_empty() { Vec::new() } else { vec![BRIDGE] };
        let (ours, theirs) = shim::seqpacket()?;
        let mut channel = Channel::new(ours);
        channel.send(&ToContainer::Plan(Box::new(plan)), streams.into())?;
        self.next += 1;
        self.channel.send(&ToSandbox::Launch { id: self.next, networks, grouped: false, alone: None }, vec![theirs])?;
        match expect::<FromSandbox>(&self.channel)? {
            (FromSandbox::Launched { .. }, fds) => Ok(Job { channel, init: fds.into_iter().next() }),
            (FromSandbox::LaunchFailed { failure, .. }, _) => Err(Error::Sandbox(describe(&failure))),
            (other, _) => Err(Error::Sandbox(format!("start a container: unexpected {other:?}"))),
        }
    }
}

impl Job {
    /// Tells the container's pid 1 something.
    pub(crate) fn send(&mut self, message: &ToContainer, fds: Vec<OwnedFd>) -> Result<()> {
        self.channel.send(message, fds)
    }

    /// What it says next, waiting at most so long.
    pub(crate) fn receive(&self, limit: Duration) -> Result<Received<FromContainer>> {
        // None would wait for ever.
        let limit = limit.max(Duration::from_millis(1));
        set_socket_timeout(&self.channel, Timeout::Recv, Some(limit)).during(|| "set a timeout".to_owned())?;
        self.channel.wait::<FromContainer>()
    }

    /// Waits until every process of it is gone.
    pub(crate) fn wait_until_gone(&self) -> Result<()> {
        let limit = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        if let Some(init) = &self.init {
            let mut fds = [PollFd::new(init, PollFlags::IN)];
            // The kernel ends all processes of the container before it says that its pid 1 has (pid_namespaces(7)).
            let gone = retry_on_intr(|| poll(&mut fds, Some(&limit))).during(|| "wait for a container".to_owned())?;
            if gone == 0 {
                return Err(Error::Sandbox(format!("wait for a container: not ended within {PATIENCE:?}")));
            }
        }
        Ok(())
    }

    /// Waits for the end of its program, at most as long as a container that does nothing can take.
    pub(crate) fn wait_briefly(&self) -> Result<End> {
        set_socket_timeout(&self.channel, Timeout::Recv, Some(PATIENCE)).during(|| "set a timeout".to_owned())?;
        self.wait()
    }

    /// Waits for the end of its program, and of every process that this left.
    pub(crate) fn wait_for_all(&self) -> Result<End> {
        let end = self.wait()?;
        self.wait_until_gone()?;
        Ok(end)
    }

    /// Waits for the end of its program.
    pub(crate) fn wait(&self) -> Result<End> {
        loop {
            match self.channel.wait::<FromContainer>()? {
                Received::Message(FromContainer::Exited { id: MAIN, ended }, _) => return Ok(End::Ended(ended)),
                Received::Message(FromContainer::Failed { failure, .. }, _) => return Ok(End::Failed(failure)),
                Received::Message(FromContainer::Denied { reasons }, _) => {
                    return Err(Error::Denied { component: None, reasons });
                }
                Received::Message(..) => {}
                Received::End => return Ok(End::Killed),
                Received::Empty => {
                    return Err(Error::Sandbox(format!("wait for a container: not ended within {PATIENCE:?}")));
                }
            }
        }
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // Closing the channel ends S, unless somebody has stopped it. Both are our children, and have nothing more to do.
        if let Ok((closed, _)) = shim::seqpacket() {
            self.channel = Channel::new(closed);
        }
        match &self.init {
            Some(init) => {
                pidfd_send_signal(init, Signal::KILL).ok();
                waitid(WaitId::PidFd(init.as_fd()), WaitIdOptions::EXITED).ok();
            }
            None => drop(self.shim.kill()),
        }
        self.shim.wait().ok();
    }
}

fn expect<T: Message>(channel: &Channel) -> Result<(T, Vec<OwnedFd>)> {
    match channel.wait::<T>()? {
        Received::Message(message, fds) => Ok((message, fds)),
        Received::Empty => Err(Error::Sandbox(format!("wait for ctst-shim: no answer within {PATIENCE:?}"))),
        Received::End => Err(Error::Sandbox("wait for ctst-shim: it ended without a word".to_owned())),
    }
}

fn map(program: &Path, pid: u32, own: u32, range: Range) -> Result<()> {
    let numbers = [pid, 0, own, 1, 1, range.first, range.count].map(|n| n.to_string());
    let what = || format!("start {}", program.display());
    let mut command = Command::new(program);
    command.args(numbers).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = launch::spawn(command).and_then(Child::wait_with_output).during(what)?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(Error::Sandbox(format!("map user ids: {}: {}", program.display(), told.trim().escape_debug())))
}
