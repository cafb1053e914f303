//! What a person wants to know of a container.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use containust_lang::model::Protocol;
use serde::{Deserialize, Serialize};

use crate::error::Report;

/// How a note begins that tells of a limit that does not hold.
pub(crate) const UNHELD: &str = "its limit `";

/// Whether a note of [`ContainerStatus::notes`] tells of a limit that does not hold here, and so of nothing that happened.
#[must_use]
pub fn is_unheld(note: &str) -> bool {
    note.starts_with(UNHELD)
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// For what it depends on.
    Waiting,
    /// Being made.
    Starting,
    /// Its program runs.
    Running,
    /// Frozen until it is unpaused.
    Paused,
    /// Being stopped.
    Stopping,
    /// Ended, and about to be started again.
    Restarting,
    /// Its program ended by itself.
    Exited,
    /// It is a JOB, and its program ended with 0. The same again is not run again.
    Completed,
    /// It could not be started.
    Failed,
    /// Stopped by a person.
    Stopped,
    /// Its record says that it runs, but its supervisor is gone: something killed it.
    Dead,
    /// Its record cannot be read.
    Unknown,
}

impl State {
    /// The name as shown and as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
        }
    }

    /// Whether there is, or is about to be, a process of it.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(
            self,
            Self::Waiting | Self::Starting | Self::Running | Self::Paused | Self::Stopping | Self::Restarting
        )
    }
}

/// What the health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No probe succeeded yet.
    Starting,
    /// The last probe succeeded, or not yet `retries` in a row failed.
    Healthy,
    /// `retries` probes in a row failed.
    Unhealthy,
}

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Published {
    /// Address on the host.
    pub address: IpAddr,
    /// Port on the host.
    pub host_port: u16,
    /// Port of the container.
    pub port: u16,
    /// What goes there.
    #[serde(default)]
    pub protocol: Protocol,
}

impl Published {
    /// The host's side of it.
    #[must_use]
    pub fn on_host(&self) -> HostPort {
        HostPort { protocol: self.protocol, place: SocketAddr::new(self.address, self.host_port) }
    }
}

/// A port of the host. Shown as people write it: `127.0.0.1:80`, `[::1]:53/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// What comes there.
    pub protocol: Protocol,
    /// Address and number.
    pub place: SocketAddr,
}

impl HostPort {
    /// What shows a person who has it.
    pub(crate) fn shown_by(&self) -> &'static str {
        match self.protocol {
            Protocol::Tcp => "ss -ltnp",
            Protocol::Udp => "ss -lunp",
        }
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.place, self.protocol.suffix())
    }
}

/// One row of `ctst ps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The component's name.
    pub component: String,
    /// Where it is in its life.
    pub state: State,
    /// What its health check says; none without a check or when it does not run.
    pub health: Option<Health>,
    /// Output or error of the last probe that failed; none where the one after it succeeded.
    pub last_probe: Option<String>,
    /// Process id of the container's pid 1 on the host, while it runs.
    pub pid: Option<u32>,
    /// Exit code of the last run of its program.
    pub exit_code: Option<i32>,
    /// When its program was last started, in milliseconds since 1970.
    pub started: Option<u64>,
    /// When it last ended, in milliseconds since 1970.
    pub finished: Option<u64>,
    /// How often it was started again by itself since the last `run`.
    pub restarts: u32,
    /// Reference of its image, such as `file:///srv/rootfs`.
    pub image: String,
    /// `sha256:…` of its image's content, or `blake3:…` of the index of one that is not unpacked.
    pub digest: String,
    /// Whether it reads its image from the archive, which is not unpacked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lazy: bool,
    /// How much of the archive was unpacked since, for the next container; none where that is not done, or not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked: Option<Unpacked>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Address on the first of its networks, while it runs there.
    pub address: Option<Ipv4Addr>,
    /// All of its networks in their order, each with its address on it, while it runs there; once more with that of IPv6, if it has one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<(String, IpAddr)>,
    /// Ports published on the host.
    pub ports: Vec<Published>,
    /// How user ids are mapped, such as `range (65536 ids from 100000)` or
    /// `single (newuidmap not found; install uidmap)`.
    pub ids: String,
    /// The component that it is a replica of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica_of: Option<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What else a person should know: limits that do not hold, forks that were refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What it uses, where it has a cgroup; [`crate::Client::stats`] asks the others, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Stats>,
    /// Why it is failed or unknown, or ended where that says more than its exit code.
    pub failure: Option<Report>,
}

/// How much of an archive is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Bytes of its file that are.
    pub done_bytes: u64,
    /// All of them. With as many done the store has the image as layers.
    pub total_bytes: u64,
}

impl Unpacked {
    /// In percent, 100 only when it is done.
    #[must_use]
    pub fn percent(self) -> u64 {
        self.done_bytes.saturating_mul(100).checked_div(self.total_bytes).unwrap_or(0)
    }

    pub(crate) fn is_done(self) -> bool {
        self.done_bytes == self.total_bytes
    }
}

/// What the processes of one container use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The component's name.
    pub component: String,
    /// What the figures come from.
    pub measured: Measured,
    /// Number of processes, the container's own pid 1 not counted; of processes and threads, where a cgroup counts.
    pub processes: u32,
    /// The most there may be of them.
    pub processes_limit: Option<u64>,
    /// How often there were not to be more.
    pub refused_forks: Option<u64>,
    /// Bytes of memory, caches of its files included; without a cgroup the sum of resident set sizes, in which pages
    /// that processes share count for each. None where nobody counts.
    pub memory: Option<u64>,
    /// The most there may be.
    pub memory_limit: Option<u64>,
    /// User and system CPU time in milliseconds.
    pub cpu_ms: u64,
    /// Milliseconds for which it was denied the processor.
    pub throttled_ms: Option<u64>,
    /// Bytes read from block devices.
    pub read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub written_bytes: Option<u64>,
}

/// What figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measured {
    /// The container's cgroup. It has one where it has limits.
    Cgroup,
    /// A look at each of its processes.
    Processes,
}

impl Stats {
    /// Without a cgroup.
    pub(crate) fn of_processes(component: String, processes: u32, resident: u64, cpu_ms: u64) -> Self {
        Self {
            component,
            measured: Measured::Processes,
            processes,
            processes_limit: None,
            refused_forks: None,
            memory: Some(resident),
            memory_limit: None,
            cpu_ms,
            throttled_ms: None,
            read_bytes: None,
            written_bytes: None,
        }
    }
}
