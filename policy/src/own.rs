//! The filters of ctst's own processes, as what they say instead of [`STRICT`](super::seccomp::STRICT): a supervisor, once its
//! sandbox stands, and a worker, before it reads a byte. What they refuse fails; nothing is killed by it.

use super::table::{Base, Check, Errno, Row, Verdict};

/// A process of ctst's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Looks after a project; its children, ctst-shim and newuidmap, have been started.
    Supervisor,
    /// Reads an archive, copies or removes files, in a container of its own.
    Worker,
}

impl Own {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Supervisor, Self::Worker];

    /// The name in a snapshot.
    pub fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Worker => "worker",
        }
    }

    /// The rows that decide before those of the filter `strict`, the first ones first.
    pub fn changes(self) -> Vec<&'static [Row]> {
        match self {
            Self::Supervisor => vec![NO_CHILDREN, NO_NODES, Base::Strict.changes()],
            Self::Worker => vec![NO_CHILDREN, NO_NETWORK, Base::Strict.changes()],
        }
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

static NO_NETWORK: &[Row] = &[refuse(
    "socket socketpair bind listen accept accept4 connect",
    "its input and output are open; archives have no business with anybody else",
)];
