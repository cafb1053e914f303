//! A sandbox without a supervisor, for one command: containers run in it one after the other, and it ends with the command,
//! however that ends.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use containust_shared::protocol::{
    Ended, Failure, FromContainer, FromSandbox, FromShim, MAIN, Mapped, Plan, Sandbox, ToContainer, ToSandbox, ToShim,
    VERSION,
};
use containust_shared::wire::Message;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{Signal, WaitId, WaitIdOptions, getgid, getuid, pidfd_send_signal, waitid};

use crate::error::{During, Error, Result};
use crate::host::ids::{Ids, Range};
use crate::host::launch;
use crate::shim::{self, Channel, Received, describe};

/// Longer than any answer of the sandbox takes on a host that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// The sandbox. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Workshop {
    shim: Child,
    channel: Channel,
    init: Option<OwnedFd>,
    next: u32,
}

/// A container that was launched.
#[derive(Debug)]
pub(crate) struct Job {
    channel: Channel,
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
        let mut workshop = Self { shim, channel, init: None, next: 0 };
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

    /// Launches a container whose program has these standard streams.
    pub(crate) fn launch(&mut self, plan: Plan, streams: [OwnedFd; 3]) -> Result<Job> {
        let (ours, theirs) = shim::seqpacket()?;
        let mut channel = Channel::new(ours);
        channel.send(&ToContainer::Plan(Box::new(plan)), streams.into())?;
        self.next += 1;
        self.channel.send(
            &ToSandbox::Launch { id: self.next, networks: Vec::new(), grouped: false, alone: None },
            vec![theirs],
        )?;
        match expect::<FromSandbox>(&self.channel)? {
            (FromSandbox::Launched { .. }, _) => Ok(Job { channel }),
            (FromSandbox::LaunchFailed { failure, .. }, _) => Err(Error::Sandbox(describe(&failure))),
            (other, _) => Err(Error::Sandbox(format!("start a container: unexpected {other:?}"))),
        }
    }
}

impl Job {
    /// Waits for the end of its program, at most as long as a container that does nothing can take.
    pub(crate) fn wait_briefly(&self) -> Result<End> {
        set_socket_timeout(&self.channel, Timeout::Recv, Some(PATIENCE)).during(|| "set a timeout".to_owned())?;
        self.wait()
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
