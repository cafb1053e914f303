//! The resolved composition: what a `.ctst` file means once every reference is looked up and every default filled in.
//! The rest of the house works with these types and never with the syntax tree.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A checked composition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Composition {
    /// The project's name.
    pub name: String,
    /// The components to deploy, in the file's order. Names are unique, and so are their host names.
    pub components: Vec<Component>,
    /// Published ports, in the file's order; each names its component.
    pub exposures: Vec<Exposure>,
}

/// One component to deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Its name, `[A-Za-z][A-Za-z0-9_-]{0,62}`.
    pub name: String,
    /// Line of its declaration, from 1, for messages.
    pub line: usize,
    /// Where its root file system comes from.
    pub image: Image,
    /// Ports that it listens on inside.
    pub ports: Vec<u16>,
    /// Environment in the file's order, wiring of CONNECT included, every interpolation done. The image's own
    /// environment is not in it.
    pub env: Vec<(String, String)>,
    /// Arguments; replaces the image's default command.
    pub command: Option<Vec<String>>,
    /// Program and leading arguments; replaces the image's entrypoint (and drops its default command).
    pub entrypoint: Option<Vec<String>>,
    /// Whether the root file system is read-only.
    pub readonly: bool,
    /// Working directory.
    pub workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`.
    pub user: Option<String>,
    /// Host name inside.
    pub hostname: String,
    /// When to start it again.
    pub restart: Restart,
    /// Its network.
    pub network: Network,
    /// How to tell that it works.
    pub healthcheck: Option<Healthcheck>,
    /// Host directories and files mounted into it.
    pub volumes: Vec<Volume>,
    /// Memory file systems mounted into it, the defaults of a read-only root not among them.
    pub tmpfs: Vec<Tmpfs>,
    /// What must be up before it starts.
    pub after: Vec<Dependency>,
}

/// Where a root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Image {
    /// `file://`: a directory.
    File {
        /// As written after `file://`: absolute, or relative to the file's folder.
        path: String,
        /// Expected digest, 64 lower-case hexadecimal digits.
        sha256: Option<String>,
    },
    /// `host://`: programs of this host with what they need.
    Host {
        /// Absolute paths of the programs. The first is the entrypoint where the component names none.
        programs: Vec<String>,
        /// Globs of further host files.
        include: Vec<String>,
        /// Expected digest, 64 lower-case hexadecimal digits.
        sha256: Option<String>,
    },
}

/// `restart`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never again by itself.
    #[default]
    Never,
    /// After an exit code other than 0.
    OnFailure,
    /// After any exit.
    Always,
    /// After any exit, except when it was stopped by a person.
    UnlessStopped,
}

/// `network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// On the project's bridge.
    #[default]
    Bridge,
    /// A loopback of its own and nothing else.
    None,
}

/// `healthcheck`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// What is probed.
    pub probe: Probe,
    /// Time between probes. Default 30 s.
    pub interval: Duration,
    /// Time after which a probe counts as failed. Default 5 s.
    pub timeout: Duration,
    /// Failures in a row that make it unhealthy. Default 3.
    pub retries: u32,
    /// Time after the start in which failures do not count. Default 0 s.
    pub start_period: Duration,
}

/// What a health check does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// Run a command inside; healthy if it exits with 0. A string in the file becomes `/bin/sh -c STRING`.
    Command(Vec<String>),
    /// GET this path on `port`; healthy if the status is 200 to 399.
    Http {
        /// The container's port.
        port: u16,
        /// Path and query, beginning with `/`.
        path: String,
    },
    /// Connect to this port of the container.
    Tcp(u16),
}

/// A host path mounted into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// As written: absolute, or `./…` relative to the file's folder.
    pub source: String,
    /// Absolute path inside.
    pub target: String,
    /// Mounted read-only.
    pub readonly: bool,
}

/// A memory file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path inside.
    pub target: String,
    /// Size limit in bytes; none: the kernel's default.
    pub size: Option<u64>,
    /// Permission bits of its root; default 0o1777.
    pub mode: u32,
}

/// The right side of a CONNECT, seen from its left side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// Name of the component that must be up first.
    pub on: String,
    /// How far up.
    pub when: When,
    /// How long to wait for that, counted from when it was started. Default 5 minutes.
    pub timeout: Duration,
}

/// How far up a dependency must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// Its program runs.
    Started,
    /// Its health check succeeded.
    Healthy,
}

/// One published TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// Line in the file, from 1.
    pub line: usize,
    /// Address on the host: 127.0.0.1 unless the author says otherwise; PUBLIC is `0.0.0.0`.
    pub address: IpAddr,
    /// Port on the host.
    pub host_port: u16,
    /// Name of the component.
    pub component: String,
    /// Port of the container.
    pub port: u16,
}
