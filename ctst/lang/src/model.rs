//! The resolved composition: what a `.ctst` file means once every reference is looked up and every default filled in.
//! The rest of the house works with these types and never with the syntax tree.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A checked composition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Composition {
    /// The project's name.
    pub name: String,
    /// The components to deploy, in the file's order. Names are unique, and so are their host names.
    pub components: Vec<Component>,
    /// Published ports, in the file's order; each names its component.
    pub exposures: Vec<Exposure>,
    /// Named volumes: what VOLUME declares, and what a component mounts by a name that nothing declares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<NamedVolume>,
    /// Secrets that something refers to, each once, in alphabetical order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// Labels of the project, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
}

/// A volume that is kept in `.containust/volumes/` until somebody removes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedVolume {
    /// Its name, made as that of a component.
    pub name: String,
    /// Labels, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
}

/// A secret. Its value is looked up at start and never stands in a composition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its name, made as that of a component.
    pub name: String,
    /// Where SECRET says that it comes from; none: from the places where secrets are looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SecretSource>,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    /// The content of a file, one line end at its end removed. Absolute, or relative to the file's folder.
    File(String),
    /// A variable of the environment `ctst` runs in.
    Env(String),
    /// What a command of the host prints, run by `/bin/sh -c` in the file's folder, one line end at its end removed.
    Command(String),
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
    /// Whether it starts before its archive is unpacked, and reads from that. Where its author does not say, that is up to who runs it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lazy: Option<Lazy>,
    /// Of its image only what its program needs is kept, and this; none: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distroless: Option<Box<Distroless>>,
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
    /// Devices of the host that it can open, as far as their files' permissions let it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// What must be up before it starts.
    pub after: Vec<Dependency>,
    /// Whether it is a JOB: it runs to completion, and its end with 0 is its success.
    #[serde(default, skip_serializing_if = "is_default")]
    pub job: bool,
    /// Which of several like it this is. Replicas are components of their own, named `web-1`, `web-2`, and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<Replica>,
    /// Variables that secrets stand in; none of them is in `env`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_env: Vec<SecretVariable>,
    /// Files made from secrets, readable inside and nowhere else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretFile>,
    /// Files made from CONFIG, read-only inside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub configs: Vec<ConfigFile>,
    /// What it may use of the host; none: as much as it likes. Behind a pointer, as few components have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Box<Limits>>,
    /// Resource limits of its processes (`setrlimit(2)`), each name once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
    /// Kernel settings of its own namespaces, such as `net.core.somaxconn`, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<(String, String)>,
    /// Supplementary groups, by name or number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Size of /dev/shm in bytes; none: 64 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm: Option<u64>,
    /// How it is stopped.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stop: Stop,
    /// Free text by name, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
    /// Further host names that it knows, with their addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<(String, IpAddr)>,
    /// Whom it asks for names that the project does not have, and how; none: the resolver of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Box<Dns>>,
    /// How much of its output is kept.
    #[serde(default, skip_serializing_if = "is_default")]
    pub logs: Logs,
    /// Whether the health check of the image is switched off. Without this and without a `healthcheck` it holds.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_healthcheck: bool,
    /// Capabilities that its root has beyond the usual ones, without `CAP_`, in alphabetical order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities of the usual ones that its root has not, likewise; `ALL` alone is all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// Which system calls its processes can make.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seccomp: Seccomp,
    /// What `landlock(7)` leaves to its processes; none: no further restriction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<Box<Landlock>>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Component {
    /// A component with the language's defaults.
    #[must_use]
    pub fn new(name: String, hostname: String, image: Image) -> Self {
        Self {
            name,
            line: 0,
            image,
            ports: Vec::new(),
            env: Vec::new(),
            command: None,
            entrypoint: None,
            readonly: true,
            lazy: None,
            distroless: None,
            workdir: None,
            user: None,
            hostname,
            restart: Restart::default(),
            network: Network::default(),
            healthcheck: None,
            volumes: Vec::new(),
            tmpfs: Vec::new(),
            devices: Vec::new(),
            after: Vec::new(),
            job: false,
            replica: None,
            secret_env: Vec::new(),
            secrets: Vec::new(),
            configs: Vec::new(),
            limits: None,
            ulimits: Vec::new(),
            sysctls: Vec::new(),
            groups: Vec::new(),
            shm: None,
            stop: Stop::default(),
            labels: Vec::new(),
            hosts: Vec::new(),
            dns: None,
            logs: Logs::default(),
            no_healthcheck: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            seccomp: Seccomp::default(),
            landlock: None,
        }
    }
}

/// What is kept of an image beside what its program is known to need.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Distroless {
    /// Absolute globs of files. `*` stays within a folder, `**` does not; a folder that matches is kept with all below.
    pub keep: Vec<String>,
}

/// Which system calls a component's processes can make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Seccomp {
    /// A built-in filter.
    pub filter: Filter,
    /// A profile in docker's format on top of it. Absolute, or relative to the file's folder.
    pub profile: Option<String>,
}

/// A built-in filter of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// What ordinary images need.
    #[default]
    Default,
    /// What ordinary services need, and less of the kernel.
    Strict,
    /// More, for debuggers, jails and old programs.
    Compat,
}

impl Filter {
    /// The name as the file has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Strict => "strict",
            Self::Compat => "compat",
        }
    }
}

/// What `landlock(7)` leaves to a component's processes. Files are restricted where one of the first three is there, and the
/// rest where it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Landlock {
    /// Absolute paths inside of files and folders that can be read, with what is below.
    pub read: Option<Vec<String>>,
    /// Of those that can be read and changed.
    pub write: Option<Vec<String>>,
    /// Of those that can be read and executed.
    pub execute: Option<Vec<String>>,
    /// TCP ports that can be listened on.
    pub bind: Option<Vec<u16>>,
    /// TCP ports that can be connected to.
    pub connect: Option<Vec<u16>>,
    /// What does not reach beyond the process and those that it starts.
    pub scope: Vec<Scope>,
}

/// What can be kept to a process and those that it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Connections to abstract UNIX sockets.
    AbstractSockets,
    /// Signals.
    Signals,
}

/// One of several components that are alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The name in the file. It is a host name for all of them together, too.
    pub of: String,
    /// From 1.
    pub number: u32,
}

/// A variable that secrets stand in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretVariable {
    /// Its name.
    pub name: String,
    /// What its value is put together from.
    pub parts: Vec<Part>,
}

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// As it stands.
    Text(String),
    /// The value of the secret with this name.
    Secret(String),
}

/// A file made from a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFile {
    /// The secret's name.
    pub secret: String,
    /// Absolute path inside; `/run/secrets/NAME` unless the author says otherwise.
    pub target: String,
    /// Permission bits; default 0o400.
    pub mode: u32,
    /// `name`, `uid`, `name:group` or `uid:gid`; none: the component's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// A file made from a CONFIG.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// The config's name.
    pub config: String,
    /// Absolute path inside; `/NAME` unless the author says otherwise.
    pub target: String,
    /// Permission bits; default 0o444.
    pub mode: u32,
    /// As of [`SecretFile`], and then the file is in memory beside those; none: root, or with a secret in it the component's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What stands in it. `Part::Secret` puts it beside the secrets instead of on a disk.
    pub content: Vec<Part>,
}

/// What a component may use of the host (`Documentation/admin-guide/cgroup-v2.rst`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of memory (`memory.max`).
    pub memory: Option<u64>,
    /// Bytes from which it is slowed down (`memory.high`).
    pub memory_high: Option<u64>,
    /// Bytes of swap beside the memory (`memory.swap.max`).
    pub swap: Option<u64>,
    /// Thousandths of a processor (`cpu.max`).
    pub cpu_millis: Option<u64>,
    /// Weight against others, 1 to 10000, 100 is normal (`cpu.weight`).
    pub cpu_weight: Option<u64>,
    /// Number of processes and threads (`pids.max`).
    pub pids: Option<u64>,
    /// Of block devices (`io.max`).
    pub io: Vec<IoLimit>,
    /// Weight against others, 1 to 10000, 100 is normal (`io.weight`).
    pub io_weight: Option<u64>,
    /// Start without the limits that this host does not offer, instead of not at all.
    pub best_effort: bool,
}

/// Limits of one block device, per second.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IoLimit {
    /// A device node such as `/dev/sda`, or a folder, which means the device that it is on.
    pub path: String,
    /// Bytes read.
    pub read_bytes: Option<u64>,
    /// Bytes written.
    pub write_bytes: Option<u64>,
    /// Read operations.
    pub read_operations: Option<u64>,
    /// Write operations.
    pub write_operations: Option<u64>,
}

/// A resource limit of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// `nofile`, `nproc`, `core` and so on: the name of `RLIMIT_*` in lower case.
    pub name: String,
    /// Soft limit; `u64::MAX` is none.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is none.
    pub hard: u64,
}

/// How a component is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Stop {
    /// Number of the signal that asks it to end; none: the image's, else SIGTERM.
    pub signal: Option<i32>,
    /// How long it has before SIGKILL; none: 10 s.
    pub grace: Option<Duration>,
}

/// How a component finds names that the project does not have (resolv.conf(5)).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Whom to ask, at port 53, by the project's way out: each where those before it do not answer. Without any it is the resolver
    /// of this host.
    pub servers: Vec<Ipv4Addr>,
    /// Domains in which names with few dots are looked for.
    pub search: Vec<String>,
    /// Options of its resolver, such as `ndots:1`, each name once.
    pub options: Vec<String>,
}

/// How much of a component's output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Logs {
    /// Bytes of one log file; none: 10 MiB.
    pub max_size: Option<u64>,
    /// Number of log files, the current one included; none: 3.
    pub max_files: Option<u32>,
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
    /// `tar://`: an archive with a root file system, a `docker save` archive or an OCI layout.
    Tar {
        /// As written after `tar://`: absolute, or relative to the file's folder.
        path: String,
        /// Expected digest of the archive's file, 64 lower-case hexadecimal digits.
        sha256: Option<String>,
    },
    /// `oci://registry/repository[:tag]`: from a registry.
    Registry {
        /// `registry/repository:tag`; the tag is `latest` where none is written.
        name: String,
        /// Expected digest of its manifest or index, 64 lower-case hexadecimal digits.
        sha256: Option<String>,
        /// The digest that `containust.lock` has for it, which holds where none is written. None: nobody has asked the registry yet.
        locked: Option<String>,
    },
    /// One that came in a bundle (`ctst bundle`). No file says this: it stands for what the file of a bundle says.
    Bundled {
        /// As the file says it.
        image: String,
        /// Digest of its manifest in the bundle, 64 lower-case hexadecimal digits.
        sha256: String,
    },
    /// `image://name[:tag]`: by the name that it has in the store.
    Local {
        /// `name:tag`; the tag is `latest` where none is written.
        name: String,
        /// Expected digest, 64 lower-case hexadecimal digits.
        sha256: Option<String>,
    },
    /// `build`: built for the component.
    Build(Box<Build>),
}

/// What an image is built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// The folder that files are copied from: absolute, or relative to the file's folder.
    pub context: String,
    /// Absolute, or relative to the context; none: `Dockerfile`, where there are no steps.
    pub dockerfile: Option<String>,
    /// The stage of the Dockerfile that is wanted; none: the last.
    pub target: Option<String>,
    /// Values for its ARGs.
    pub args: Vec<(String, String)>,
    /// Instead of a Dockerfile.
    pub steps: Option<Box<BuildSteps>>,
}

/// Steps of a build, in the order in which they are done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSteps {
    /// The image that it begins with.
    pub from: Image,
    /// Variables, in order.
    pub env: Vec<(String, String)>,
    /// What is copied where: a path from the context on, and an absolute one.
    pub copy: Vec<(String, String)>,
    /// Commands for `/bin/sh`, as root.
    pub run: Vec<String>,
    /// For the commands and the image.
    pub workdir: Option<String>,
    /// Of the image.
    pub user: Option<String>,
    /// Of the image; none: that of the one it begins with.
    pub entrypoint: Option<Vec<String>>,
    /// Of the image, likewise.
    pub command: Option<Vec<String>>,
}

/// `lazy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "LazyText", try_from = "LazyText")]
pub enum Lazy {
    /// `false`: its archive is unpacked before it starts.
    No,
    /// `true`: that is done while it runs.
    Yes,
    /// `"always"`: that is not done.
    Always,
}

impl Lazy {
    /// Whether it starts before its archive is unpacked.
    #[must_use]
    pub fn reads_archive(self) -> bool {
        self != Self::No
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum LazyText {
    Bool(bool),
    Word(String),
}

const ALWAYS: &str = "always";

impl From<Lazy> for LazyText {
    fn from(lazy: Lazy) -> Self {
        match lazy {
            Lazy::No => Self::Bool(false),
            Lazy::Yes => Self::Bool(true),
            Lazy::Always => Self::Word(ALWAYS.to_owned()),
        }
    }
}

impl TryFrom<LazyText> for Lazy {
    type Error = &'static str;

    fn try_from(text: LazyText) -> Result<Self, Self::Error> {
        match text {
            LazyText::Bool(false) => Ok(Self::No),
            LazyText::Bool(true) => Ok(Self::Yes),
            LazyText::Word(word) if word == ALWAYS => Ok(Self::Always),
            LazyText::Word(_) => Err("neither a truth value nor `always`"),
        }
    }
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

/// `network` or `networks`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// On the project's own network, whose name is `bridge`.
    #[default]
    Bridge,
    /// A loopback of its own and nothing else.
    None,
    /// On these, one at least: `eth0`, `eth1`, and so on.
    Named(Vec<Attachment>),
}

/// The name of the network that everything is on unless it says otherwise.
pub const BRIDGE: &str = "bridge";

impl Network {
    /// All that it is on.
    #[must_use]
    pub fn attachments(&self) -> Vec<Attachment> {
        match self {
            Self::Bridge => vec![Attachment::new(BRIDGE)],
            Self::None => Vec::new(),
            Self::Named(list) => list.clone(),
        }
    }
}

/// What a component has on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The subnet that NETWORK gives it; none: one is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
    /// It has a way out of the project: NETWORK says `internal = false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub egress: bool,
    /// It has IPv6 beside IPv4: NETWORK says `ipv6 = true`, or an IPv6 subnet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ipv6: bool,
    /// The IPv6 subnet that NETWORK gives it; none, with `ipv6`: one is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Subnet6>,
    /// Further host names that others on it find the component by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The component's address on it; none: one is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The same of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
}

impl Attachment {
    /// On a network without saying more.
    #[must_use]
    pub fn new(network: &str) -> Self {
        Self {
            network: network.to_owned(),
            subnet: None,
            egress: false,
            ipv6: false,
            subnet6: None,
            aliases: Vec::new(),
            address: None,
            address6: None,
        }
    }
}

/// An IPv4 subnet, written `10.1.2.0/24`: of 4 addresses at least, and of 2²⁴ at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

impl Subnet {
    /// Of the address and the length of its prefix; none where bits are set behind that, or the length is not 8 to 30.
    #[must_use]
    pub fn new(base: Ipv4Addr, prefix: u8) -> Option<Self> {
        let base = u32::from(base);
        ((8..=30).contains(&prefix) && base & (u32::MAX >> prefix) == 0).then_some(Self { base, prefix })
    }

    /// Length of the prefix, 8 to 30.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Number of the last address that is no broadcast; 1 is the bridge's, and the first that a component can have is 2.
    #[must_use]
    pub fn last(self) -> u32 {
        (u32::MAX >> self.prefix) - 1
    }

    /// The address with this number.
    #[must_use]
    pub fn at(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base | number & (u32::MAX >> self.prefix))
    }

    /// The number of an address; none where it is not in it.
    #[must_use]
    pub fn number(self, address: Ipv4Addr) -> Option<u32> {
        let number = u32::from(address) ^ self.base;
        (number <= u32::MAX >> self.prefix).then_some(number)
    }

    /// Whether there are addresses in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let common = u32::MAX >> self.prefix.min(other.prefix);
        self.base & !common == other.base & !common
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed =
            text.split_once('/').and_then(|(base, prefix)| Self::new(base.parse().ok()?, prefix.parse().ok()?));
        parsed.ok_or_else(|| format!("{text} is no IPv4 subnet"))
    }
}

/// An IPv6 subnet, written `fd00:1:2:3::/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Subnet6 {
    base: u128,
    prefix: u8,
}

impl Subnet6 {
    /// Of the address and the length of its prefix; none where bits are set behind that, or the length is not 8 to 112.
    #[must_use]
    pub fn new(base: Ipv6Addr, prefix: u8) -> Option<Self> {
        let base = u128::from(base);
        ((8..=112).contains(&prefix) && base & (u128::MAX >> prefix) == 0).then_some(Self { base, prefix })
    }

    /// Length of the prefix, 8 to 112.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Number of the last address. The first that a component can have is 2: number 0 is that of all routers (RFC 4291, 2.6.1), and 1
    /// where people look for one.
    #[must_use]
    pub fn last(self) -> u128 {
        u128::MAX >> self.prefix
    }

    /// The address with this number.
    #[must_use]
    pub fn at(self, number: u128) -> Ipv6Addr {
        Ipv6Addr::from(self.base | number & self.last())
    }

    /// The number of an address; none where it is not in it.
    #[must_use]
    pub fn number(self, address: Ipv6Addr) -> Option<u128> {
        let number = u128::from(address) ^ self.base;
        (number <= self.last()).then_some(number)
    }

    /// Whether there are addresses in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let common = u128::MAX >> self.prefix.min(other.prefix);
        self.base & !common == other.base & !common
    }
}

impl std::fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from(self.base), self.prefix)
    }
}

impl From<Subnet6> for String {
    fn from(subnet: Subnet6) -> Self {
        subnet.to_string()
    }
}

impl TryFrom<String> for Subnet6 {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed =
            text.split_once('/').and_then(|(base, prefix)| Self::new(base.parse().ok()?, prefix.parse().ok()?));
        parsed.ok_or_else(|| format!("{text} is no IPv6 subnet"))
    }
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

/// A host path or a named volume mounted into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// As written: absolute, `./…` relative to the file's folder, or the name of a volume.
    pub source: String,
    /// Whether `source` is the name of one of [`Composition::volumes`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub named: bool,
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

/// A device of the host, seen inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute path of its file on the host.
    pub source: String,
    /// Absolute path inside.
    pub target: String,
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
    /// Whether `when` is only for want of a health check that the file knows of: where the image of `on` brings one, it
    /// is to be healthy.
    #[serde(default, skip_serializing_if = "is_default")]
    pub implied: bool,
    /// Whether it starts all the same when `on` is not deployed, or failed to come up.
    #[serde(default, skip_serializing_if = "is_default")]
    pub optional: bool,
}

/// How far up a dependency must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// Its program runs.
    Started,
    /// Its health check succeeded.
    Healthy,
    /// It is a JOB and ended with 0.
    Completed,
}

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// What stands behind a port: nothing for TCP, as in EXPOSE.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Tcp => "",
            Self::Udp => "/udp",
        }
    }
}

/// One published port.
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
    /// What goes there.
    pub protocol: Protocol,
}
