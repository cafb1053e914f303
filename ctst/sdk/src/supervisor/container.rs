//! One container as the supervisor sees it.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mio::Token;

use super::health::Check;
use super::lazy::Server;
use super::network::Place;
use crate::error::Report;
use crate::host::cgroup::Group;
use crate::logs;
use crate::record::Record;
use crate::secrets::Values;
use crate::shim::Channel;
use crate::spec::Wanted;
use crate::status::{Published, State};

/// First pause before a restart; doubled each time up to [`BACKOFF_MAX`].
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(100);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// From asking a program to end to SIGKILL, where nobody says otherwise.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// Nobody goes on waiting for a container that has ended so often in a row: 13 seconds of pauses.
const HOPELESS: u32 = 8;
/// Who waits for a container without a health check waits until it has run this long: most programs that cannot work with
/// what they were given end before.
pub(super) const FIRST_STEPS: Duration = Duration::from_millis(100);
/// A container that ran this long starts over with [`BACKOFF_MIN`].
pub(super) const BACKOFF_RESET: Duration = Duration::from_secs(10);

/// A container of the project.
#[derive(Debug)]
pub(super) struct Container {
    /// What is on disk of it, and most of what is known.
    pub(super) record: Record,
    pub(super) dir: PathBuf,
    /// Only here, for every start and exec.
    pub(super) secrets: Values,
    /// Its processes, from LAUNCH until the last is gone.
    pub(super) live: Option<Live>,
    /// It is to be stopped, or being stopped.
    pub(super) stop: Option<Stop>,
    /// Its addresses, in the order of its networks.
    pub(super) places: Vec<Place>,
    /// The only ids inside, where the caller has but one.
    pub(super) alone: Option<(u32, u32)>,
    pub(super) backoff: Duration,
    /// Ends since it was last healthy or, without a check, since it last ran for [`BACKOFF_RESET`].
    pub(super) in_vain: u32,
    /// When it was last begun to start.
    pub(super) began: Option<Instant>,
    /// Its program ran since the last `run` that wanted it.
    pub(super) was_up: bool,
    /// Components that it starts without, which was told.
    pub(super) without: Vec<String>,
    pub(super) check: Check,
    /// When it will be looked at again while it waits.
    pub(super) look: Option<Instant>,
    /// Its record differs from the one on disk.
    pub(super) unsaved: bool,
    /// Why it runs on without what the last run wanted of it.
    pub(super) unchanged: Option<Report>,
    /// What a foreground run returns for it: the exit code of an end that nobody asked for.
    pub(super) result: i32,
}

/// A stop under way.
#[derive(Debug)]
pub(super) struct Stop {
    pub(super) grace: Duration,
    /// SIGTERM was sent; before that, its dependents are waited for.
    pub(super) begun: bool,
    pub(super) then: Then,
}

/// What follows a stop.
#[derive(Debug)]
pub(super) enum Then {
    Rest,
    Remove,
    /// Start with what another run wants; anew, or with the writable layer that is there.
    Start {
        wanted: Box<Wanted>,
        anew: bool,
    },
}

impl Then {
    /// What it is started with.
    pub(super) fn wanted(&self) -> Option<&Wanted> {
        match self {
            Self::Rest | Self::Remove => None,
            Self::Start { wanted, .. } => Some(wanted),
        }
    }

    /// The ports that stay published.
    pub(super) fn published(&self) -> &[Published] {
        match self {
            Self::Rest | Self::Remove => &[],
            Self::Start { wanted, .. } => &wanted.published,
        }
    }
}

/// Processes of a container.
#[derive(Debug)]
pub(super) struct Live {
    /// Id of its LAUNCH.
    pub(super) id: u32,
    /// None once it closed, or was closed to end the container.
    pub(super) channel: Option<(Channel, Token)>,
    /// Of C, once S told.
    pub(super) pidfd: Option<(OwnedFd, Token)>,
    pub(super) output: [Option<(OwnedFd, Token)>; 2],
    pub(super) log: logs::Writer,
    /// Where it has limits.
    pub(super) group: Option<Group>,
    /// Tells of forks that the group refuses.
    pub(super) refusals: Option<(OwnedFd, Token)>,
    /// Keeps the inodes of mount sources until C has opened them.
    pub(super) held: Vec<OwnedFd>,
    /// What serves its image, where that is read from its archive.
    pub(super) server: Option<Server>,
    pub(super) started: Option<Instant>,
    /// Exit code of the main process.
    pub(super) ended: Option<i32>,
    pub(super) failure: Option<Report>,
    /// Requests that C answers in order.
    pub(super) asked: VecDeque<Asked>,
    pub(super) execs: HashMap<u32, Exec>,
    pub(super) next_exec: u32,
}

/// What was asked of C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// By this client.
    Stat(u64),
    /// By the probe with this number.
    Dial(u64),
    /// Sockets, by this client.
    Sockets(u64),
}

/// A process started by EXEC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exec {
    /// For this client.
    Client(u64),
    /// The command of the probe with this number.
    Probe(u64),
}

impl Container {
    /// Why nobody should wait any longer for it to come up, if so. It is started again all the same.
    pub(super) fn hopeless(&self) -> Option<String> {
        let code = self.record.exit_code.unwrap_or_default();
        let times = self.in_vain;
        (times >= HOPELESS).then(|| format!("it has ended {times} times in a row, the last time with {code}"))
    }

    /// Whether its program began so short a time ago that it may yet find out that it cannot work.
    pub(super) fn takes_first_steps(&self) -> bool {
        let started = self.live.as_ref().and_then(|live| live.started);
        started.is_some_and(|started| started.elapsed() < FIRST_STEPS)
    }

    /// Its address for what comes from outside: on the network by which it answers whoever is on none, as C sets its routes.
    pub(super) fn door(&self) -> Option<Ipv4Addr> {
        let networks = self.record.spec.network.attachments();
        let leaving = networks.iter().zip(&self.places).find(|(on, _)| on.egress).map(|(_, place)| place);
        leaving.or(self.places.first()).map(|place| place.ip)
    }

    pub(super) fn new(record: Record, dir: PathBuf) -> Self {
        Self {
            record,
            dir,
            secrets: Values::default(),
            live: None,
            stop: None,
            places: Vec::new(),
            alone: None,
            backoff: BACKOFF_MIN,
            in_vain: 0,
            began: None,
            was_up: false,
            without: Vec::new(),
            check: Check::default(),
            look: None,
            unsaved: false,
            unchanged: None,
            result: 0,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.record.spec.name
    }

    /// Whether it runs, or will without anybody's doing.
    pub(super) fn is_active(&self) -> bool {
        self.live.is_some() || self.record.state.is_live()
    }

    /// Whether what waits for its start need not wait.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.record.state, State::Running | State::Completed)
    }

    pub(super) fn is_running(&self) -> bool {
        self.record.state == State::Running
    }

    /// The launch that runs now, if it is this one.
    pub(super) fn launch(&mut self, id: u32) -> Option<&mut Live> {
        self.live.as_mut().filter(|live| live.id == id)
    }
}

impl Live {
    /// An id for an exec; [`containust_shared::protocol::MAIN`] is never one.
    pub(super) fn exec_id(&mut self) -> u32 {
        loop {
            self.next_exec = self.next_exec.wrapping_add(1).max(1);
            if !self.execs.contains_key(&self.next_exec) {
                return self.next_exec;
            }
        }
    }
}
