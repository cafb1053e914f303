//! Requests and replies of `ctst-shim`. Every message is one `SOCK_SEQPACKET` record ([`crate::wire`]); descriptors
//! travel beside it by `SCM_RIGHTS`, as many as the request says, no more and no fewer.
//!
//! Two kinds of channel exist. The *sandbox channel* is descriptor 3 of the shim: first the privileged-capable
//! process P reads one [`ToShim`] from it, later S (pid 1 of the project) reads [`ToSandbox`]. A *container channel*
//! is made by the supervisor for each container and passed with `Launch`: C (pid 1 of the container) reads
//! [`ToContainer`] from it. Closing a channel ends what reads it, and with it everything below.

use bincode::{Decode, Encode};

/// The protocol's version. Both ends are built together; another version is refused.
pub const VERSION: u32 = 14;
/// The descriptor on which the shim expects its sandbox channel.
pub const CHANNEL_FD: i32 = 3;
/// The id that names a container's main process in [`ToContainer::Signal`] and [`FromContainer::Exited`].
pub const MAIN: u32 = 0;
/// Most descriptors in one message.
pub const MAX_FDS: usize = 16;
/// Most networks of one container.
pub const MAX_NETWORKS: usize = 16;

/// How the project's user namespace gets its id maps (`user_namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum IdMap {
    /// Only the caller: 0 inside is the caller outside. Needs nothing from the host.
    Single,
    /// The caller runs newuidmap and newgidmap for the pid in [`FromShim::Created`], then sends [`Mapped`].
    Helper,
    /// Strict mode: the shim maps what `/etc/subuid` and `/etc/subgid` grant the caller, and lets the last id of his range
    /// own the namespace. Needs a shim with file capabilities, which takes no other map.
    Granted,
    /// A caller that is root: the range that the host's policy gives to root's containers, which the shim maps. The
    /// request says what the caller takes it for, and another than the policy's is refused.
    Range {
        /// First host id of the range, mapped to 0.
        first: u32,
        /// Number of ids.
        count: u32,
    },
}

/// The first message, to P. Integers only, and no descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ToShim {
    /// SANDBOX: make a project.
    Sandbox(Sandbox),
    /// GC: remove the control groups that the caller's ended projects left below the group that the policy names. Needs a shim
    /// with file capabilities; without, the caller's groups are his own.
    Gc {
        /// [`VERSION`] of the sender.
        version: u32,
    },
}

/// SANDBOX: supervisor to P.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Sandbox {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// How ids are mapped.
    pub map: IdMap,
    /// In strict mode: whether containers will have limits, so that the project needs a control group. Where the policy asks
    /// for limits it gets one in any case.
    pub grouped: bool,
}

/// Supervisor to P, after newuidmap and newgidmap succeeded. Only with [`IdMap::Helper`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Mapped {
    /// [`VERSION`], so that the message is not empty.
    pub version: u32,
}

/// P and S to the supervisor, before the first [`ToSandbox`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum FromShim {
    /// S exists, with this pid in the supervisor's pid namespace, and waits for its id maps. One descriptor: its pidfd.
    Created {
        /// S in the supervisor's pid namespace.
        pid: u32,
    },
    /// S is set up and takes requests.
    Ready,
    /// The sandbox could not be made, or nothing collected. The shim exits.
    Failed(Failure),
    /// GC's answer. The shim exits.
    Collected {
        /// Groups that are gone.
        removed: u32,
        /// Groups that are to be removed by the next one: one GC removes so many and no more.
        left: u32,
    },
}

/// One limit of a container: one value in one file of its control group (`Documentation/admin-guide/cgroup-v2.rst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Limit {
    /// `memory.max` in bytes; none: no limit.
    Memory(Option<u64>),
    /// `memory.high` in bytes.
    MemoryHigh(Option<u64>),
    /// `memory.swap.max` in bytes.
    Swap(Option<u64>),
    /// `cpu.max` in thousandths of a processor.
    Cpus(Option<u64>),
    /// `cpu.weight`, 1 to 10000.
    CpuWeight(u64),
    /// `pids.max`, the container's pid 1, which is ours, not counted.
    Pids(Option<u64>),
    /// `io.weight`, 1 to 10000.
    IoWeight(u64),
    /// `io.max` of one disk.
    Io {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
        /// Read bytes, written bytes, reads and writes in a second.
        rates: [Option<u64>; 4],
    },
}

/// The length of a period of `cpu.max`, in microseconds; and the longest, for shares of which the kernel would find the
/// part of a normal one too short (1 ms).
const PERIOD: u64 = 100_000;
const LONG_PERIOD: u64 = 1_000_000;

impl Limit {
    /// The file that it is written to.
    #[must_use]
    pub fn file(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory.max",
            Self::MemoryHigh(_) => "memory.high",
            Self::Swap(_) => "memory.swap.max",
            Self::Cpus(_) => "cpu.max",
            Self::CpuWeight(_) => "cpu.weight",
            Self::Pids(_) => "pids.max",
            Self::IoWeight(_) => "io.weight",
            Self::Io { .. } => "io.max",
        }
    }

    /// What is written there.
    #[must_use]
    pub fn value(&self) -> String {
        let most = |value: Option<u64>| value.map_or("max".to_owned(), |n| n.to_string());
        match *self {
            Self::Memory(bytes) | Self::MemoryHigh(bytes) | Self::Swap(bytes) => most(bytes),
            Self::Cpus(None) => "max".to_owned(),
            Self::Cpus(Some(millis)) => {
                let period = if millis < 10 { LONG_PERIOD } else { PERIOD };
                format!("{} {period}", millis.max(1).saturating_mul(period / 1000))
            }
            Self::CpuWeight(weight) => weight.to_string(),
            Self::Pids(number) => most(number.map(|n| n.saturating_add(1))),
            Self::IoWeight(weight) => format!("default {weight}"),
            Self::Io { major, minor, rates: [rbps, wbps, riops, wiops] } => {
                let (rbps, wbps, riops, wiops) = (most(rbps), most(wbps), most(riops), most(wiops));
                format!("{major}:{minor} rbps={rbps} wbps={wbps} riops={riops} wiops={wiops}")
            }
        }
    }
}

/// Most limits in one request.
pub const MAX_LIMITS: usize = 256;

/// What failed, for a person: `step` on `subject`, with the kernel's `errno` (0: not the kernel's refusal).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Failure {
    /// Lower-case fragment, such as `mount overlay`.
    pub step: String,
    /// The object, such as a path inside the container. Bytes, because paths are.
    pub subject: Vec<u8>,
    /// `errno(3)`, or 0.
    pub errno: i32,
}

/// An IPv4 address with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Address {
    /// The four octets.
    pub ip: [u8; 4],
    /// Prefix length, 0 to 32.
    pub prefix: u8,
}

/// An IPv6 address with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Address6 {
    /// The sixteen octets.
    pub ip: [u8; 16],
    /// Prefix length, 0 to 128.
    pub prefix: u8,
}

/// A network of the project: a bridge in its network namespace, made when the first container needs it, and there until
/// S ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Bridge {
    /// Chosen by the supervisor; each number has one address as long as S lives.
    pub number: u8,
    /// What sockets born in the project's network namespace send from.
    pub address: Address,
    /// Whether what comes from it may leave the project, by the device of TAP. Of a container's networks it is the first such one that it
    /// takes.
    pub egress: bool,
}

/// The link between the project's network namespace and the program that forwards what leaves it, such as passt: of an address range that
/// no router forwards (RFC 3927), so that it hides no place that anybody could want to reach.
pub mod egress {
    use super::Address;

    /// The device in the project's network namespace.
    pub const DEVICE: &str = "egress";
    /// Its address. What leaves the project has this one as its sender.
    pub const ADDRESS: Address = Address { ip: [169, 254, 89, 2], prefix: 29 };
    /// The program's, as a router.
    pub const ROUTER: [u8; 4] = [169, 254, 89, 1];
    /// The program's, as a name server, which asks the host's.
    pub const RESOLVER: [u8; 4] = [169, 254, 89, 3];
    /// Longest packet on the device, and on networks that lead there, in bytes: each costs a way through two processes. Longer ones, which the
    /// kernel allows, are more than passt's windows hold at times, and slower by far.
    pub const MTU: u32 = 9000;
}

/// Requests to S.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToSandbox {
    /// LAUNCH: fork C. First descriptor: C's end of the container channel, on which C then reads its [`Plan`] as
    /// [`ToContainer::Plan`]. Second, if `grouped` and not in strict mode: the directory of the cgroup that C begins its
    /// life in. In strict mode that is the one which CGROUP made for the same id.
    Launch {
        /// Chosen by the supervisor, unique in the project for the life of S; names the container in replies and its
        /// veths on the bridges.
        id: u32,
        /// The networks that the container gets a veth on, `eth0`, `eth1`, …, at most [`MAX_NETWORKS`], none twice.
        networks: Vec<Bridge>,
        /// Whether it has a cgroup of its own. Without, C stays in the cgroup of S, or in one that the policy limits.
        grouped: bool,
        /// With [`IdMap::Single`]: the one user and group id that exist inside, for a process that shall not be root.
        /// None: the project's map.
        alone: Option<(u32, u32)>,
    },
    /// DIAL: create sockets in the project's network namespace, not connected, which can have any address as theirs (IP_TRANSPARENT,
    /// `ip(7)`), so that containers see whose connection it is that a published port carries. No descriptors.
    Dial {
        /// How many, 1 to [`MAX_FDS`].
        count: u8,
        /// Of UDP instead of TCP.
        udp: bool,
    },
    /// LISTEN: make the sockets of a name server at port 53 of a bridge's address, for the supervisor. No descriptors.
    Listen {
        /// Which, as in `Launch`.
        bridge: Bridge,
    },
    /// TAP: make the device of [`egress`] and let pass what bridges with `egress` send, and nothing else. No descriptors.
    Tap,
    /// CGROUP, in strict mode alone, as all that follows: make a control group for the container with this id and set its
    /// limits, or set them anew where it has one. No descriptors.
    Cgroup {
        /// As in `Launch`.
        id: u32,
        /// All of them, at most [`MAX_LIMITS`]: the policy is asked of these alone.
        limits: Vec<Limit>,
    },
    /// FREEZE: stop everything in a container's group where it is. No descriptors.
    Freeze {
        /// As in `Launch`.
        id: u32,
    },
    /// THAW: let it go on. No descriptors.
    Thaw {
        /// As in `Launch`.
        id: u32,
    },
    /// GC: remove the group of a container that has ended. No descriptors.
    Gc {
        /// As in `Launch`.
        id: u32,
    },
}

/// A limit that was not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Unset {
    /// Which of those that were asked for, counted from 0.
    pub at: u32,
    /// Why: `errno(3)`.
    pub errno: i32,
}

/// Replies of S, in the order of the requests.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum FromSandbox {
    /// C runs. One descriptor: its pidfd.
    Launched {
        /// From the request.
        id: u32,
    },
    /// C could not be forked or connected.
    LaunchFailed {
        /// From the request.
        id: u32,
        /// Why.
        failure: Failure,
    },
    /// As many non-blocking sockets as asked for.
    Dialed,
    /// The sockets could not be created.
    DialFailed(Failure),
    /// Two descriptors: a UDP socket, and a TCP socket that listens. Both are non-blocking.
    Listening,
    /// They could not be made.
    ListenFailed(Failure),
    /// Two non-blocking descriptors: the device, as a file of whole Ethernet frames (`Documentation/networking/tuntap.rst`), and a UDP
    /// socket that is bound to it.
    Tapped,
    /// They could not be made.
    TapFailed(Failure),
    /// CGROUP, FREEZE, THAW or GC was done, but for these limits.
    Grouped {
        /// From the request.
        id: u32,
        /// Limits that do not hold.
        unset: Vec<Unset>,
    },
    /// It was not.
    GroupFailed {
        /// From the request.
        id: u32,
        /// Why.
        failure: Failure,
    },
}

/// A file or directory of the host, opened again by C by `path` and compared, so that a swap between the caller's
/// check and the mount is seen.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Source {
    /// Absolute, canonical: no symbolic link, no `.` or `..`.
    pub path: Vec<u8>,
    /// `stx_dev` as a raw device number.
    pub dev: u64,
    /// `stx_ino`.
    pub ino: u64,
}

/// A mount that the author asked for, made in order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Mount {
    /// A file or directory of the host.
    Bind {
        /// What.
        source: Source,
        /// Where: absolute path inside; created if missing.
        target: Vec<u8>,
        /// Mounted read-only.
        readonly: bool,
    },
    /// A character device of the host, whose file's permissions hold.
    Device {
        /// What.
        source: Source,
        /// Where: absolute path inside; created if missing.
        target: Vec<u8>,
    },
    /// A fresh tmpfs, nosuid and nodev.
    Tmpfs {
        /// Where: absolute path inside; created if missing.
        target: Vec<u8>,
        /// Size limit in bytes; 0 is the kernel's default (half of the memory).
        size: u64,
        /// Permission bits of its root, such as 0o1777.
        mode: u32,
    },
    /// A file that is nowhere but in memory, never swapped out, and read-only.
    File {
        /// Where: absolute path inside; created if missing.
        target: Vec<u8>,
        /// Permission bits, such as 0o400.
        mode: u32,
        /// Whose it is, as [`Process::user`] says who that is; empty: the main process's user's.
        owner: Vec<u8>,
        /// What it holds.
        content: Vec<u8>,
    },
}

/// The process to start, as the main process or by EXEC.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Process {
    /// Program and arguments; a program without `/` is looked up in PATH of `env`, inside the container.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value` entries. HOME is added from the container's passwd file where missing.
    pub env: Vec<Vec<u8>>,
    /// Working directory, absolute; empty means `/`. Created if missing for the main process.
    pub cwd: Vec<u8>,
    /// `name`, `uid`, `name:group`, `uid:gid`; empty means 0:0. Names are looked up in the container's own files.
    pub user: Vec<u8>,
    /// Further groups, by name (looked up in the container's own file) or number. Needs a map with more than one id.
    pub groups: Vec<Vec<u8>>,
    /// With a new pseudo-terminal as controlling terminal and standard streams.
    pub tty: bool,
}

/// A resource limit for every process of the container (`setrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Rlimit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A setting of the kernel for the container's own namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Sysctl {
    /// With dots, such as `net.core.somaxconn`; [`crate::names::is_namespaced_sysctl`] holds.
    pub name: Vec<u8>,
    /// As it is written into the file below `/proc/sys`.
    pub value: Vec<u8>,
}

/// The built-in filter of system calls that everything in a container runs under (`policy/snapshots`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Filter {
    /// What ordinary images need.
    Default,
    /// What ordinary services need.
    Strict,
    /// More than the default, for debuggers, jails and old programs.
    Compat,
}

/// One instruction of classic BPF, the kernel's `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to skip where the comparison holds.
    pub jt: u8,
    /// How many to skip where it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// Most instructions of a filter (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// A file or directory that stays accessible under [`Landlock`], with everything below it, for reading at least.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Beneath {
    /// Absolute path inside.
    pub path: Vec<u8>,
    /// For changing, creating and removing files, too.
    pub write: bool,
    /// For executing files, too.
    pub execute: bool,
}

/// What `landlock(7)` leaves to the processes of a container. `None`: not restricted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct Landlock {
    /// Files.
    pub files: Option<Vec<Beneath>>,
    /// TCP ports to bind.
    pub bind: Option<Vec<u16>>,
    /// TCP ports to connect to.
    pub connect: Option<Vec<u16>>,
    /// Only abstract UNIX sockets of its own and of the processes that it starts.
    pub abstract_sockets: bool,
    /// Signals only to itself and to the processes that it starts.
    pub signals: bool,
}

/// Everything C needs to build and start one container.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Plan {
    /// Host name, `[A-Za-z0-9.-]{1,63}`.
    pub hostname: Vec<u8>,
    /// Layers of the image, topmost first; empty, and no `fuse`: the root is an empty tmpfs (worker containers).
    pub layers: Vec<Source>,
    /// FUSE: below these layers is a file system that whoever gets its device ([`FromContainer::Fuse`]) serves. It is
    /// mounted read-only, without setuid programs and devices. With a writable layer only.
    pub fuse: bool,
    /// Writable layer. Required with layers.
    pub upper: Option<Source>,
    /// overlayfs's work directory, on the same file system as `upper`.
    pub work: Option<Source>,
    /// The root file system is read-only once everything is mounted.
    pub readonly: bool,
    /// The author's mounts, in order.
    pub mounts: Vec<Mount>,
    /// Addresses of `eth0`, `eth1`, …, one for each network of its LAUNCH; none: only a loopback.
    pub addresses: Vec<Address>,
    /// IPv6 addresses of some of these: which, counted from 0, and the address. It is used at once, without asking whether
    /// somebody has it, and on its link there is no other, not a link-local one either. None: the kernel does as it likes.
    pub addresses6: Vec<(u8, Address6)>,
    /// Capabilities of root in the container, as a bit mask of `capabilities(7)` numbers.
    pub capabilities: u64,
    /// The filter of system calls.
    pub filter: Filter,
    /// A further one, at most [`MAX_INSTRUCTIONS`] long, for the container's processes: it can only narrow. Empty: none.
    pub profile: Vec<Instruction>,
    /// A further restriction of the container's processes.
    pub landlock: Option<Landlock>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Set before /proc/sys becomes read-only, and before there is any interface but `lo`.
    pub sysctls: Vec<Sysctl>,
    /// Size limit of /dev/shm in bytes; 0: 64 MiB.
    pub shm: u64,
    /// The main process.
    pub process: Process,
}

/// Requests to C.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToContainer {
    /// Once, first. Descriptors: standard input, output and error of the main process (none with `tty`).
    Plan(Box<Plan>),
    /// EXEC: start another process. Descriptors: its standard input, output and error (none with `tty`).
    Exec {
        /// Chosen by the supervisor, not [`MAIN`], not in use.
        id: u32,
        /// What to start.
        process: Process,
    },
    /// SIGNAL. No descriptors. To a process that is gone: no effect.
    Signal {
        /// [`MAIN`] or the id of an exec.
        id: u32,
        /// Signal number, 1 to 64.
        signal: i32,
    },
    /// STAT. No descriptors.
    Stat,
    /// DIAL in the container's own network namespace, to reach its loopback. No descriptors.
    Dial {
        /// How many, 1 to [`MAX_FDS`].
        count: u8,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Ended {
    /// By `exit`, with this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl Ended {
    /// The exit code as shells give it: the status, or 128 and the signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(status) => status,
            Self::Signaled(signal) => crate::exit::SIGNAL_BASE.saturating_add(signal),
        }
    }
}

/// Replies and events of C.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum FromContainer {
    /// The file system of [`Plan::fuse`] is mounted, and C goes on when it is served. One descriptor: its device, of which C keeps
    /// none, so that whoever waits for an answer gets ENOTCONN when the last one is closed (`fuse(4)`).
    Fuse,
    /// The process with this id runs its program. One descriptor with `tty`: the terminal's master side.
    Started {
        /// [`MAIN`] or the id of the exec.
        id: u32,
        /// Its pid inside the container.
        pid: u32,
    },
    /// The process could not be started. For [`MAIN`] C exits after this.
    Failed {
        /// [`MAIN`] or the id of the exec.
        id: u32,
        /// Exit code for this failure: 125, 126 or 127 (see [`crate::exit`]).
        code: i32,
        /// Why.
        failure: Failure,
    },
    /// The process ended. After [`MAIN`] C exits, which ends all others.
    Exited {
        /// [`MAIN`] or the id of the exec.
        id: u32,
        /// How.
        ended: Ended,
    },
    /// STAT's answer, over all processes of the container.
    Stat {
        /// Number of processes, C not counted.
        processes: u32,
        /// Sum of resident set sizes, in bytes; pages shared between processes count for each.
        resident: u64,
        /// User and system CPU time of living and reaped processes, in milliseconds.
        cpu_ms: u64,
    },
    /// As many non-blocking TCP sockets as asked for.
    Dialed,
    /// A STAT or DIAL that could not be answered.
    Refused(Failure),
    /// The host's policy forbids what the plan asks for. C exits after this, having touched nothing.
    Denied {
        /// Every reason, for a person.
        reasons: String,
    },
}
