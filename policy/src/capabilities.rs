//! The capabilities of root inside a container, all of them over the container's own user namespace
//! only.

/// One capability that a container's root holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Bit number in the kernel's sets (`linux/capability.h`).
    pub number: u8,
    /// Name without the `CAP_` prefix.
    pub name: &'static str,
    /// What an ordinary image needs it for.
    pub reason: &'static str,
}

const fn row(number: u8, name: &'static str, reason: &'static str) -> Capability {
    Capability { number, name, reason }
}

/// The default set, in the order of the numbers. A component that runs as another user than root
/// gets none.
pub const TABLE: [Capability; 11] = [
    row(0, "CHOWN", "entrypoints hand their data directory to the user they are about to become"),
    row(1, "DAC_OVERRIDE", "root reads and writes files of the image's other users"),
    row(3, "FOWNER", "root changes mode and times of files of the image's other users"),
    row(4, "FSETID", "a set-group-id bit survives when root writes or changes mode"),
    row(5, "KILL", "a supervisor inside signals workers that run as other users"),
    row(6, "SETGID", "daemons drop their groups before they serve"),
    row(7, "SETUID", "daemons drop to their own user before they serve"),
    row(8, "SETPCAP", "a program gives up what it does not need: bounding set, securebits"),
    row(10, "NET_BIND_SERVICE", "port 80 inside the container's own network namespace"),
    row(18, "SYS_CHROOT", "kept so that the set is the usual one; the `default` filter refuses chroot itself"),
    row(31, "SETFCAP", "package managers inside write file capabilities"),
];

/// [`TABLE`] as a mask: bit n is capability number n.
pub const DEFAULT: u64 = {
    let mut mask = 0;
    let mut i = 0;
    while i < TABLE.len() {
        mask |= 1 << TABLE[i].number;
        i += 1;
    }
    mask
};

/// The most that a container's root can have: beside the default set DAC_READ_SEARCH, NET_RAW, IPC_LOCK, IPC_OWNER, SYS_PTRACE,
/// SYS_NICE, MKNOD and AUDIT_WRITE. Neither SYS_ADMIN nor NET_ADMIN is in it: with them an installed helper would hand out
/// what a host that restricts user namespaces has taken away.
pub const CEILING: u64 = DEFAULT | 1 << 2 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 19 | 1 << 23 | 1 << 27 | 1 << 29;

/// The names in [`TABLE`], without the `CAP_` prefix.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|capability| capability.name)
}

/// Every capability of Linux 6.18 without the `CAP_` prefix, in the order of the numbers (`linux/capability.h`).
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of a capability by its name without `CAP_`, in capitals.
#[must_use]
pub fn number(name: &str) -> Option<u8> {
    NAMES.iter().position(|known| *known == name).and_then(|at| u8::try_from(at).ok())
}

/// Its name; of a number that no kernel has yet a word that says so.
#[must_use]
pub fn name(number: u8) -> &'static str {
    NAMES.get(usize::from(number)).copied().unwrap_or("UNKNOWN")
}

/// The table as text, one capability per line, for a person or a snapshot.
pub fn describe() -> String {
    let line = |c: &Capability| format!("{:>2}  {:<16}  {}\n", c.number, c.name, c.reason);
    TABLE.iter().map(line).collect()
}
