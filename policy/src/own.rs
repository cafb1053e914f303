//! The filters of ctst's own processes and threads, as what they say instead of [`STRICT`](super::seccomp::STRICT): of a supervisor,
//! once its sandbox stands, of a worker, and of who asks registries, before they read a byte; and what a command gives up that was told to stay offline. What
//! they refuse fails; nothing is killed by it.

use super::table::{
    AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, Base, Check, Clause, Errno, PROTOCOLS, Row, TYPES, Verdict,
};

/// A process or thread of ctst's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Looks after a project; its children, ctst-shim and newuidmap, have been started.
    Supervisor,
    /// A thread of the supervisor's that publishes ports, and does nothing else.
    Ports,
    /// A thread that works on sockets which it is given.
    Sockets,
    /// Reads an archive, copies or removes files, in a container of its own.
    Worker,
    /// Asks registries.
    Client,
    /// A command with `--offline`, and what it starts but ctst-shim, the supervisor, and those who map ids.
    Offline,
}

impl Own {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Supervisor, Self::Ports, Self::Sockets, Self::Worker, Self::Client, Self::Offline];

    /// The name in a snapshot.
    pub fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Ports => "ports",
            Self::Sockets => "sockets",
            Self::Worker => "worker",
            Self::Client => "client",
            Self::Offline => "offline",
        }
    }

    /// The rows that decide first, the first ones before the others.
    pub fn changes(self) -> Vec<&'static [Row]> {
        match self {
            Self::Supervisor => vec![LOCAL, NO_CHILDREN, NO_NODES, Base::Strict.changes()],
            Self::Ports => vec![LISTENING, NO_CHILDREN, NO_NODES, Base::Strict.changes()],
            Self::Sockets => vec![NO_SOCKETS, NO_CHILDREN, NO_NODES, Base::Strict.changes()],
            Self::Worker => vec![NO_NETWORK, NO_CHILDREN, Base::Strict.changes()],
            Self::Client => vec![CONNECTING, NO_CHILDREN, NO_NODES, Base::Strict.changes()],
            Self::Offline => vec![INSIDE],
        }
    }

    /// Whether what no row decides is allowed, instead of what [`DEFAULT`](super::seccomp::DEFAULT) says.
    pub fn is_open(self) -> bool {
        self == Self::Offline
    }
}

const CLONE_THREAD: u32 = 0x1_0000;

const fn refuse(calls: &'static str, reason: &'static str) -> Row {
    Row { calls, verdict: Verdict::Refuse(Errno::Eperm), reason }
}

static NO_CHILDREN: &[Row] = &[
    refuse("execve execveat fork vfork", "it has no program to start: probes and commands run in containers"),
    Row {
        calls: "clone",
        verdict: Verdict::AllowIf {
            argument: 0,
            check: Check::BitsIn(CLONE_THREAD | super::table::NEW_NAMESPACES, &[CLONE_THREAD]),
            otherwise: Errno::Eperm,
        },
        reason: "threads, and no process",
    },
    refuse("kill tkill rt_sigqueueinfo rt_tgsigqueueinfo", "it signals by pidfd, and itself by tgkill"),
    refuse(
        "setuid setgid setreuid setregid setresuid setresgid setgroups",
        "whoever it is now it is for good; capabilities it can only give up",
    ),
    Row {
        calls: "prlimit64",
        verdict: Verdict::AllowIf { argument: 0, check: Check::In(&[0]), otherwise: Errno::Eperm },
        reason: "its own limits",
    },
    refuse("shmget shmat shmdt shmctl semget semop semtimedop semctl", "it shares no memory"),
];

static NO_NODES: &[Row] = &[refuse("mknod mknodat", "it makes files, folders and links")];

/// Who makes a socket that reaches others cannot connect it, and who connects one did not make it.
static LOCAL: &[Row] = &[Row {
    calls: "socket socketpair",
    verdict: Verdict::AllowIf { argument: 0, check: Check::In(&[AF_UNIX]), otherwise: Errno::Eperm },
    reason: "what it connects was born in the project's network, and what it listens on another thread has made",
}];

/// Of IPv4 and IPv6, and nothing raw.
const INTERNET: Verdict = Verdict::AllowIfAll(&[
    Clause { any: &[(0, Check::In(&[AF_INET, AF_INET6]))], otherwise: Errno::Eperm },
    TYPES,
    PROTOCOLS,
]);

static LISTENING: &[Row] = &[
    Row { calls: "socket", verdict: INTERNET, reason: "for the ports that the project publishes" },
    refuse("socketpair connect sendto sendmsg sendmmsg", "others come to them"),
];

static CONNECTING: &[Row] = &[
    Row { calls: "socket", verdict: INTERNET, reason: "to registries, and to those who know their addresses" },
    refuse("socketpair bind listen accept accept4", "nobody comes to it"),
];

static NO_SOCKETS: &[Row] =
    &[refuse("socket socketpair", "what it connects was born in the project's network, or came from outside")];

static INSIDE: &[Row] = &[
    Row {
        calls: "socket socketpair",
        verdict: Verdict::AllowIf { argument: 0, check: Check::In(&[AF_UNIX, AF_NETLINK]), otherwise: Errno::Eperm },
        reason: "other processes of this host, and the kernel",
    },
    Row {
        calls: "io_uring_setup io_uring_enter io_uring_register",
        verdict: Verdict::Refuse(Errno::Enosys),
        reason: "makes sockets past this filter",
    },
];

static NO_NETWORK: &[Row] = &[refuse(
    "socket socketpair bind listen accept accept4 connect",
    "its input and output are open; archives have no business with anybody else",
)];
