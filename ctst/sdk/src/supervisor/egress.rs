//! The project's way out: the device that S makes, and the process that carries what comes from it.

use std::os::fd::OwnedFd;

use containust_shared::protocol::{Bridge, Failure};
use mio::Token;

use super::container::Container;
use super::poller::{Cid, Source};
use super::{Supervisor, say};
use crate::egress::{Carry, OPEN_TUN, TUN, Told};
use crate::error::{During, Error, Report, Result};
use crate::event::EventKind;
use crate::ipc::{Connection, Incoming};
use crate::shim::describe;

/// What there is of it.
#[derive(Debug, Default)]
pub(super) struct Egress {
    /// The process, while it lives.
    keeper: Option<(Connection, Token)>,
    /// The program that it has started last: its pidfd.
    program: Option<OwnedFd>,
    /// The device, once it is there.
    device: Option<OwnedFd>,
    /// S was asked for it.
    asked: bool,
    /// It has worked, so that what goes wrong may pass.
    worked: bool,
    /// Why nothing gets through, as it was told last.
    broken: Option<String>,
}

impl Supervisor {
    /// Takes the process that a client started, unless there is one.
    pub(super) fn offer_keeper(&mut self, socket: OwnedFd) -> Result<()> {
        if self.egress.keeper.is_some() {
            return Ok(());
        }
        let connection = Connection::new(socket);
        let token =
            self.poller.add(&connection, Source::Egress).during(|| "watch what leaves the project".to_owned())?;
        self.egress.keeper = Some((connection, token));
        self.carry()
    }

    /// Has S make the device before the first container that leaves by it is there.
    pub(super) fn want_egress(&mut self, bridges: &[Bridge]) -> Result<()> {
        if !self.egress.asked && bridges.iter().any(|bridge| bridge.egress) {
            self.sandbox.tap()?;
            self.egress.asked = true;
        }
        Ok(())
    }

    pub(super) fn on_tapped(&mut self, made: std::result::Result<Vec<OwnedFd>, Failure>) {
        let made = made.map_err(|failure| failed(&failure)).and_then(|fds| {
            let [device, names]: [OwnedFd; 2] =
                fds.try_into().map_err(|_| Error::protocol("S sent other than two descriptors").report())?;
            self.egress.device = Some(device);
            let asking = self.name_server.ask_on(names).during(|| "ask others for names".to_owned());
            asking.and_then(|()| self.carry()).map_err(|error| error.report())
        });
        let Err(report) = made else { return };
        self.egress.asked = false;
        // The next start tries again.
        self.give_up_on(&report, leaves);
    }

    /// Containers that leave the project, or are about to.
    fn leaving(&self) -> Vec<Cid> {
        self.containers.iter().filter(|(_, container)| leaves(container)).map(|(cid, _)| *cid).collect()
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
                    if let Some((keeper, token)) = self.egress.keeper.take() {
                        self.poller.remove(&keeper, token);
                    }
                    self.end_program();
                    let problem = "the process for it was killed; the next ctst run starts another".to_owned();
                    return self.cut_off(problem);
                }
            };
            match told {
                Told::Started => {}
                Told::Works => {
                    self.egress.worked = true;
                    if self.egress.broken.take().is_some() {
                        for cid in self.leaving() {
                            self.event(cid, EventKind::EgressBack);
                        }
                    }
                }
                // Asked for, and not to be had.
                Told::Ended { problem, refused: true } if !self.egress.worked => {
                    let report = Error::Egress { problem }.report();
                    say(&report.message);
                    self.give_up_on(&report, leaves);
                }
                Told::Ended { problem, .. } => self.cut_off(problem),
            }
        }
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
        let Some((mut keeper, token)) = self.egress.keeper.take() else { return };
        self.poller.remove(&keeper, token);
        if rustix::net::shutdown(&keeper, rustix::net::Shutdown::Write).is_err() {
            return;
        }
        let end = std::time::Instant::now() + std::time::Duration::from_secs(1);
        while let Ok(Incoming::Frame(..) | Incoming::Empty) = keeper.poll::<Told>()
            && std::time::Instant::now() < end
        {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.end_program();
    }
}

fn leaves(container: &Container) -> bool {
    container.is_active() && container.record.spec.network.attachments().iter().any(|on| on.egress)
}

/// Why there is no device.
fn failed(failure: &Failure) -> Report {
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
