//! Health checks.
//!
//! A container that was healthy once is probed every `interval`, and is unhealthy after `retries` failures in a row.
//! Before, while it starts, it is probed much more often, so that what waits for it need not wait for the interval: after
//! 50 ms, then with doubled pauses up to the interval or a second. Those failures are not counted; it is unhealthy when
//! it still fails after `start_period` and `retries` intervals, which is when docker would say so.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Poll;
use std::time::{Duration, Instant};

use containust_lang::model::Probe;
use containust_shared::protocol::{Ended, Failure, ToContainer};
use mio::Token;

use super::Supervisor;
use super::container::{Asked, Exec};
use super::life::log_pipe;
use super::poller::{Cid, Source, Timer};
use super::sandbox::Dialer;
use crate::error::{During, Error, Result};
use crate::event::EventKind;
use crate::shim::describe;
use crate::status::{Health, State};
use crate::supervisor::probe::{Http, Tcp};

/// How much of a probe's output is kept, in bytes.
const MAX_OUTPUT: usize = 4096;
const PACE_MIN: Duration = Duration::from_millis(50);
const PACE_MAX: Duration = Duration::from_secs(1);
const SIGKILL: i32 = 9;

/// The state of one container's health check.
#[derive(Debug, Default)]
pub(super) struct Check {
    failures: u32,
    /// When it took the place of another while the container ran.
    since: Option<Instant>,
    /// Pause before the next probe while it starts.
    pace: Duration,
    /// Of the last probe; grows for the container's life, so that late answers are recognised.
    number: u64,
    current: Option<Probing>,
}

#[derive(Debug)]
enum Probing {
    /// For the socket.
    Dialing,
    Tcp(Tcp, Token),
    Http(Http, Token),
    Command {
        exec: u32,
        pipe: OwnedFd,
        token: Token,
        output: Vec<u8>,
    },
}

impl AsFd for Probing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(probe, _) => probe.as_fd(),
            Self::Http(probe, _) => probe.as_fd(),
            Self::Command { pipe, .. } => pipe.as_fd(),
            Self::Dialing => rustix::stdio::stdin(),
        }
    }
}

impl Check {
    /// The container was started again.
    pub(super) fn restart(&mut self) {
        (self.failures, self.pace, self.since) = (0, PACE_MIN, None);
    }
}

impl Supervisor {
    /// The container has another health check than before, or none any more.
    pub(super) fn check_anew(&mut self, cid: Cid) {
        self.end_probe_command(cid);
        self.cancel_probe(cid);
        let Some(container) = self.containers.get_mut(&cid) else { return };
        container.check.restart();
        // What is under way or due belongs to the check before.
        container.check.number += 1;
        let number = container.check.number;
        let launch = container.live.as_ref().filter(|live| live.started.is_some()).map(|live| live.id);
        let launch = launch.filter(|_| container.record.spec.healthcheck.is_some());
        (container.record.health, container.record.last_probe) = (launch.map(|_| Health::Starting), None);
        if let Some(launch) = launch {
            container.check.since = Some(Instant::now());
            self.poller.after(PACE_MIN, Timer::Probe(cid, launch, number));
        }
    }

    /// The time for a probe has come, unless another was started since it was set.
    pub(super) fn on_probe_due(&mut self, cid: Cid, launch: u32, number: u64) {
        if self.containers.get(&cid).is_some_and(|container| container.check.number == number) {
            self.probe(cid, launch);
        }
    }

    /// Starts a probe of this launch, unless one is under way.
    pub(super) fn probe(&mut self, cid: Cid, launch: u32) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        if container.record.state == State::Paused {
            let number = container.check.number;
            return self.poller.after(PACE_MAX, Timer::Probe(cid, launch, number));
        }
        let running = container.is_running() && container.launch(launch).is_some();
        let Some(check) = container.record.spec.healthcheck.clone().filter(|_| running) else { return };
        if container.check.current.is_some() {
            return;
        }
        let execs = container.live.iter().flat_map(|live| live.execs.values());
        if execs.into_iter().any(|exec| matches!(exec, Exec::Probe(_))) {
            self.check_stuck(cid);
            return self.probed(cid, Err("the command of the last probe was killed and has not ended".to_owned()));
        }
        container.check.number += 1;
        let number = container.check.number;
        self.poller.after(check.timeout, Timer::ProbeTimeout(cid, number));
        if let Err(error) = self.start_probe(cid, number, &check.probe) {
            self.probed(cid, Err(error.to_string()));
        }
    }

    fn start_probe(&mut self, cid: Cid, number: u64, probe: &Probe) -> Result<()> {
        let gone = || Error::protocol("the container is gone");
        let container = self.containers.get_mut(&cid).ok_or_else(gone)?;
        let live = container.live.as_mut().ok_or_else(gone)?;
        let exec = live.exec_id();
        let (channel, _) = live.channel.as_mut().ok_or_else(gone)?;
        match probe {
            Probe::Command(argv) => {
                let null: OwnedFd = std::fs::File::open("/dev/null").during(|| "open /dev/null".to_owned())?.into();
                let (pipe, end) = log_pipe(&self.ids)?;
                let other = end.try_clone().during(|| "copy a descriptor".to_owned())?;
                let token =
                    self.poller.add_reader(&pipe, Source::ProbeOutput(cid)).during(|| "watch a probe".to_owned())?;
                let process = container.record.spec.process(argv.clone(), container.alone, &container.secrets);
                channel.offer(&ToContainer::Exec { id: exec, process }, vec![null, end, other])?;
                live.execs.insert(exec, Exec::Probe(number));
                container.check.current = Some(Probing::Command { exec, pipe, token, output: Vec::new() });
            }
            Probe::Http { .. } | Probe::Tcp(_) => {
                if container.record.address().is_some() {
                    self.sandbox.dial(Dialer::Probe(cid, number), 1)?;
                } else {
                    channel.offer(&ToContainer::Dial { count: 1 }, Vec::new())?;
                    live.asked.push_back(Asked::Dial(number));
                }
                container.check.current = Some(Probing::Dialing);
            }
        }
        Ok(())
    }

    pub(super) fn on_probe_dialed(&mut self, cid: Cid, number: u64, sockets: Result<Vec<OwnedFd>, Failure>) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        if container.check.number != number || !matches!(container.check.current, Some(Probing::Dialing)) {
            return;
        }
        let socket = match sockets.map(|sockets| sockets.into_iter().next()) {
            Ok(Some(socket)) => socket,
            Ok(None) => return self.probed(cid, Err("make a socket: none came".to_owned())),
            Err(failure) => return self.probed(cid, Err(describe(&failure))),
        };
        let ip = container.record.address().unwrap_or(std::net::Ipv4Addr::LOCALHOST);
        let probe = container.record.spec.healthcheck.as_ref().map(|check| &check.probe);
        let watched = match probe {
            Some(Probe::Tcp(port)) => Tcp::new(socket, (ip, *port).into()).and_then(|probe| {
                let token = self.poller.add(&probe, Source::Probe(cid)).map_err(|e| e.to_string())?;
                Ok(Probing::Tcp(probe, token))
            }),
            Some(Probe::Http { port, path }) => Http::new(socket, (ip, *port).into(), path).and_then(|probe| {
                let token = self.poller.add(&probe, Source::Probe(cid)).map_err(|e| e.to_string())?;
                Ok(Probing::Http(probe, token))
            }),
            Some(Probe::Command(_)) | None => return,
        };
        match watched {
            Ok(probing) => container.check.current = Some(probing),
            Err(why) => self.probed(cid, Err(why)),
        }
    }

    pub(super) fn on_probe_socket(&mut self, cid: Cid) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let ready = match &mut container.check.current {
            Some(Probing::Tcp(probe, _)) => probe.ready(),
            Some(Probing::Http(probe, _)) => probe.ready(),
            _ => return,
        };
        if let Poll::Ready(result) = ready {
            self.probed(cid, result);
        }
    }

    pub(super) fn on_probe_output(&mut self, cid: Cid) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let Some(Probing::Command { pipe, output, .. }) = &mut container.check.current else { return };
        let mut buffer = [0; MAX_OUTPUT];
        // A command that never stops writing is bounded by its timeout, and by leaving the rest to the next turn.
        for _ in 0..16 {
            match rustix::io::read(&*pipe, &mut buffer) {
                Ok(0) => return,
                Ok(n) => {
                    let room = MAX_OUTPUT - output.len();
                    output.extend_from_slice(&buffer[..n.min(room)]);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
        let Some(Probing::Command { token, .. }) = container.check.current else { return };
        self.poller.again(token);
    }

    /// The command of a probe ended, or could not be started.
    pub(super) fn on_probe_exit(&mut self, cid: Cid, number: u64, result: Result<Ended, String>) {
        self.on_probe_output(cid);
        let Some(container) = self.containers.get_mut(&cid) else { return };
        if container.check.number != number {
            return;
        }
        let Some(Probing::Command { output, .. }) = &container.check.current else { return };
        let output = String::from_utf8_lossy(output).into_owned();
        let result = match result {
            Ok(ended) if ended.code() == 0 => Ok(output),
            Ok(ended) if output.trim().is_empty() => Err(format!("exited with {}", ended.code())),
            Ok(ended) => Err(format!("exited with {}: {}", ended.code(), output.trim())),
            Err(why) => Err(why),
        };
        self.probed(cid, result);
    }

    pub(super) fn on_probe_timeout(&mut self, cid: Cid, number: u64) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        if container.check.number != number {
            return;
        }
        let timeout = container.record.spec.healthcheck.as_ref().map(|check| check.timeout).unwrap_or_default();
        let mut why = format!("no answer within {timeout:?}");
        match &container.check.current {
            None => return,
            Some(Probing::Command { output, .. }) => {
                if !output.is_empty() {
                    why = format!("{why}: {}", String::from_utf8_lossy(output).trim());
                }
                self.end_probe_command(cid);
            }
            Some(_) => {}
        }
        self.probed(cid, Err(why));
    }

    pub(super) fn postpone_probe(&mut self, cid: Cid) {
        let Some(container) = self.containers.get(&cid) else { return };
        if let (Some(_), Some(live)) = (&container.check.current, &container.live) {
            self.poller.after(PACE_MAX, Timer::Probe(cid, live.id, container.check.number));
        }
        self.cancel_probe(cid);
    }

    fn end_probe_command(&mut self, cid: Cid) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let Some(Probing::Command { exec, .. }) = &container.check.current else { return };
        let kill = ToContainer::Signal { id: *exec, signal: SIGKILL };
        if let Some((channel, _)) = container.live.as_mut().and_then(|live| live.channel.as_mut()) {
            // A channel that cannot be written to is about to be noticed as closed.
            channel.offer(&kill, Vec::new()).ok();
        }
    }

    pub(super) fn cancel_probe(&mut self, cid: Cid) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        if let Some(probing) = container.check.current.take() {
            match &probing {
                Probing::Tcp(_, token) | Probing::Http(_, token) | Probing::Command { token, .. } => {
                    self.poller.remove(&probing, *token);
                }
                Probing::Dialing => {}
            }
        }
    }

    /// A probe is over.
    fn probed(&mut self, cid: Cid, result: Result<String, String>) {
        self.cancel_probe(cid);
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let Some(check) = container.record.spec.healthcheck.clone() else { return };
        let Some(live) = &container.live else { return };
        let (launch, started) = (live.id, container.check.since.or(live.started));
        let before = container.record.health;
        let starting = before == Some(Health::Starting);
        let told = match result {
            Ok(_) => {
                container.check.failures = 0;
                container.in_vain = 0;
                container.record.health = Some(Health::Healthy);
                // What failed before is no news of who is healthy.
                container.record.last_probe = None;
                EventKind::Healthy
            }
            Err(output) => {
                container.check.failures += 1;
                container.record.last_probe = Some(output.clone());
                let retries = check.retries.max(1);
                let given_up = if starting {
                    let patience = check.start_period.saturating_add(check.interval.saturating_mul(retries));
                    started.is_some_and(|started| started.elapsed() >= patience)
                } else {
                    container.check.failures >= retries
                };
                if given_up {
                    container.record.health = Some(Health::Unhealthy);
                }
                EventKind::Unhealthy { output }
            }
        };
        let pause = if container.record.health == Some(Health::Starting) {
            let pace = container.check.pace;
            container.check.pace = (pace * 2).min(PACE_MAX);
            pace.min(check.interval)
        } else {
            check.interval
        };
        let number = container.check.number;
        if container.record.health != before {
            self.dirty = true;
            self.event(cid, told);
            self.save(cid);
        }
        let soon = Instant::now().checked_add(pause.max(Duration::from_millis(1)));
        if let Some(soon) = soon {
            self.poller.at(soon, Timer::Probe(cid, launch, number));
        }
    }
}
