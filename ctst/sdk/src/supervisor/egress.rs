//! The project's way out: the device that S makes, and the process that carries what comes from it.

use std::os::fd::OwnedFd;

use containust_shared::protocol::Failure;
use mio::Token;

use super::container::Container;
use super::poller::{Cid, Source};
use super::{Supervisor, say};
use crate::egress::{Carry, OPEN_TUN, TUN, Told};
use crate::error::{During, Error, Report, Result};
use crate::event::EventKind;
use crate::ipc::{Connection, Incoming};
use crate::shim::describe;
use crate::spec::ContainerSpec;

/// What there is of it.
#[derive(Debug, Default)]
pub(super) struct Egress {
    /// The process, while it lives.
    keeper: Option<(Connection, Token)>,
    /// Its program has answered once, so that what goes wrong may pass.
    answered: bool,
    /// Why there is no way out, and will be none until the next run.
    refused: Option<Report>,
    /// The program that it has started last: its pidfd.
    program: Option<OwnedFd>,
    /// The device, once it is there.
    device: Option<OwnedFd>,
    /// S was asked for it.
    asked: bool,
    /// Why nothing gets through, as it was told last.
    broken: Option<String>,
    /// Processes that were told to end, and may not have yet.
    ending: Vec<Connection>,
}

/// For whom leaves the project.
pub(super) enum Way {
    /// It was there once, and is mended if it breaks.
    Open,
    Coming,
    Refused(Report),
}

impl Supervisor {
    /// Takes the socket of a process that a client will start, and has S make the device, unless they are there. Returns whether the
    /// client is to start it.
    pub(super) fn take_keeper(&mut self, socket: OwnedFd) -> Result<bool> {
        if self.egress.keeper.is_some() {
            return Ok(false);
        }
        let connection = Connection::new(socket);
        let token =
            self.poller.add(&connection, Source::Egress).during(|| "watch what leaves the project".to_owned())?;
        self.egress.keeper = Some((connection, token));
        (self.egress.answered, self.egress.refused) = (false, None);
        self.want_device()?;
        self.carry()?;
        Ok(true)
    }

    fn want_device(&mut self) -> Result<()> {
        // Without a sandbox nothing is started.
        if !self.egress.asked && self.sandbox.lives() {
            self.sandbox.tap()?;
            self.egress.asked = true;
        }
        Ok(())
    }

    pub(super) fn way_for(&self, cid: Cid) -> Way {
        let Egress { keeper, answered, refused, device, .. } = &self.egress;
        if !self.containers.get(&cid).is_some_and(leaves) {
            return Way::Open;
        }
        match refused {
            Some(report) => Way::Refused(report.clone()),
            None if keeper.is_some() && !(*answered && device.is_some()) => Way::Coming,
            None => Way::Open,
        }
    }

    pub(super) fn on_tapped(&mut self, made: std::result::Result<Vec<OwnedFd>, Failure>) {
        let made = made.map_err(|failure| failed(&failure)).and_then(|fds| {
            let [device, names]: [OwnedFd; 2] =
                fds.try_into().map_err(|_| Error::protocol("S sent other than two descriptors").report())?;
            self.egress.device = Some(device);
            let asking = self.name_server.ask_on(names).during(|| "ask others for names".to_owned());
            asking.and_then(|()| self.carry()).map_err(|error| error.report())
        });
        self.dirty = true;
        if let Err(report) = made {
            // The next run tries again.
            self.egress.asked = false;
            self.refuse_egress(report);
        }
    }

    /// Containers that leave the project, or are about to.
    fn leaving(&self) -> Vec<Cid> {
        self.containers.iter().filter(|(_, container)| leaves(container)).map(|(cid, _)| *cid).collect()
    }

    /// Ends the process where the last container has ended that wanted a way out, and others go on. A run that wants one offers
    /// another.
    pub(super) fn tend_egress(&mut self) {
        let goes_on = || self.containers.values().any(Container::is_active);
        if self.egress.keeper.is_some() && goes_on() && !self.containers.values().any(may_leave) {
            self.dismiss_keeper();
            // After that, or it would be started again.
            self.end_program();
            self.egress.broken = None;
        }
        self.egress.ending.retain_mut(has_not_ended);
    }

    /// Hands the device to the process, once both are there.
    fn carry(&mut self) -> Result<()> {
        let (Some((keeper, _)), Some(device)) = (&mut self.egress.keeper, &self.egress.device) else { return Ok(()) };
        keeper.post(&Carry, vec![device.try_clone().during(|| "copy a descriptor".to_owned())?])
    }

    pub(super) fn on_keeper(&mut self) {
        loop {
            let Some((keeper, _)) = &mut self.egress.keeper else { return };
            let told = match keeper.flush().and_then(|()| keeper.poll::<Told>()) {
                Ok(Incoming::Empty) => return,
                Ok(Incoming::Frame(told, fds)) => {
                    self.egress.program = fds.into_iter().next().or(self.egress.program.take());
                    told
                }
                Ok(Incoming::End) | Err(_) => {
                    self.drop_keeper();
                    self.end_program();
                    let problem = "the process for it was killed; the next ctst run starts another".to_owned();
                    return self.on_broken(problem);
                }
            };
            match told {
                Told::Started => {}
                Told::Works => {
                    (self.egress.answered, self.dirty) = (true, true);
                    if self.egress.broken.take().is_some() {
                        for cid in self.leaving() {
                            self.event(cid, EventKind::EgressBack);
                        }
                    }
                }
                Told::Ended { problem } => self.on_broken(problem),
            }
        }
    }

    /// Nothing gets through: for now, or, where nothing ever has, at all.
    fn on_broken(&mut self, problem: String) {
        if self.egress.answered {
            self.cut_off(problem);
        } else {
            self.refuse_egress(Error::Egress { problem }.report());
        }
    }

    /// What was to be started is not, and what runs is told.
    fn refuse_egress(&mut self, report: Report) {
        self.dirty = true;
        self.drop_keeper();
        let waits = |container: &Container| container.live.is_none();
        let runs = self.leaving().iter().any(|cid| !self.containers.get(cid).is_some_and(waits));
        if runs {
            self.cut_off(report.message.clone());
        } else {
            say(&report.message);
        }
        self.egress.refused = Some(report);
    }

    fn cut_off(&mut self, problem: String) {
        if self.egress.broken.as_ref() == Some(&problem) {
            return;
        }
        say(&format!("nothing leaves the project: {problem}"));
        for cid in self.leaving() {
            self.event(cid, EventKind::CutOff { why: problem.clone() });
        }
        self.egress.broken = Some(problem);
    }

    /// Ends the process, without waiting for it.
    fn drop_keeper(&mut self) {
        if let Some((keeper, token)) = self.egress.keeper.take() {
            self.poller.remove(&keeper, token);
        }
    }

    /// Tells the process to end.
    fn dismiss_keeper(&mut self) {
        if let Some((keeper, token)) = self.egress.keeper.take() {
            self.poller.remove(&keeper, token);
            rustix::net::shutdown(&keeper, rustix::net::Shutdown::Write).ok();
            self.egress.ending.push(keeper);
        }
    }

    /// Ends the program of a process that could not: one that hangs does not notice that its socket is closed.
    fn end_program(&mut self) {
        if let Some(program) = self.egress.program.take() {
            // It may have ended, or be root's while we have given up the right.
            rustix::process::pidfd_send_signal(program, rustix::process::Signal::KILL).ok();
        }
    }

    /// Ends the process, and waits for its end, so that nobody who looks afterwards finds any of the project.
    pub(super) fn end_egress(&mut self) {
        self.egress.device = None;
        self.dismiss_keeper();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(1);
        loop {
            self.egress.ending.retain_mut(has_not_ended);
            if self.egress.ending.is_empty() || std::time::Instant::now() >= end {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.end_program();
    }
}

/// Whether a process that was told to end has its end of the socket.
fn has_not_ended(keeper: &mut Connection) -> bool {
    matches!(keeper.poll::<Told>(), Ok(Incoming::Frame(..) | Incoming::Empty))
}

fn leaves(container: &Container) -> bool {
    container.is_active() && has_egress(&container.record.spec)
}

/// It does, or will once it is started again.
fn may_leave(container: &Container) -> bool {
    let next = container.stop.as_ref().and_then(|stop| stop.then.wanted());
    leaves(container) || next.is_some_and(|wanted| has_egress(&wanted.spec))
}

fn has_egress(spec: &ContainerSpec) -> bool {
    spec.network.attachments().iter().any(|on| on.egress)
}

/// Why there is no way out, where S could not make its end of one.
pub(crate) fn failed(failure: &Failure) -> Report {
    let help = if failure.subject == TUN.as_bytes() {
        OPEN_TUN
    } else if failure.step.contains("nftables") {
        "load what it needs: sudo modprobe -a nf_tables nft_masq nft_chain_nat nf_conntrack"
    } else {
        "see what is missing: ctst doctor"
    };
    let message = format!("give the project a way out: {}", describe(failure));
    Report { help: Some(help.to_owned()), message, ..Error::Sandbox(String::new()).report() }
}
