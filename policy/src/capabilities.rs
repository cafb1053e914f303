//! The capabilities of root inside a container, all of them over the container's own user namespace
//! only.
#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "in constants, where it is checked when this is built"
)]

/// Whether a container's root holds a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// Unless the component drops it.
    Always,
    /// If the component asks for it.
    OnRequest,
    /// To no container.
    Never,
}

/// One capability of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Bit number in the kernel's sets (`linux/capability.h`).
    pub number: u8,
    /// Name without the `CAP_` prefix.
    pub name: &'static str,
    /// Whether a container's root holds it.
    pub given: Given,
    /// What a container does with it, or why none can.
    pub reason: &'static str,
}

impl Capability {
    /// Its bit in the kernel's sets.
    pub const fn bit(&self) -> u64 {
        1 << self.number
    }
}

const fn always(number: u8, name: &'static str, reason: &'static str) -> Capability {
    Capability { number, name, given: Given::Always, reason }
}

const fn on_request(number: u8, name: &'static str, reason: &'static str) -> Capability {
    Capability { number, name, given: Given::OnRequest, reason }
}

const fn never(number: u8, name: &'static str, reason: &'static str) -> Capability {
    Capability { number, name, given: Given::Never, reason }
}

/// Every capability of Linux 6.19, in the order of the numbers. A component that runs as another user than root gets none.
pub const TABLE: [Capability; 41] = [
    always(0, "CHOWN", "entrypoints hand their data directory to the user they are about to become"),
    always(1, "DAC_OVERRIDE", "root reads and writes files of the image's other users"),
    on_request(
        2,
        "DAC_READ_SEARCH",
        "backup programs read files of other users; the filters refuse file handles all the same",
    ),
    always(3, "FOWNER", "root changes mode and times of files of the image's other users"),
    always(4, "FSETID", "a set-group-id bit survives when root writes or changes mode"),
    always(5, "KILL", "a supervisor inside signals workers that run as other users"),
    always(6, "SETGID", "daemons drop their groups before they serve"),
    always(7, "SETUID", "daemons drop to their own user before they serve"),
    always(8, "SETPCAP", "a program gives up what it does not need: bounding set, securebits"),
    never(9, "LINUX_IMMUTABLE", "the kernel honours it from the host's user namespace only"),
    always(10, "NET_BIND_SERVICE", "port 80 inside the container's own network namespace"),
    never(11, "NET_BROADCAST", "no kernel asks for it"),
    never(
        12,
        "NET_ADMIN",
        "its container could take another one's address, and reach the kernel's packet filters and routing",
    ),
    on_request(13, "NET_RAW", "ping and traceroute; it can forge addresses within the project's network"),
    on_request(
        14,
        "IPC_LOCK",
        "System V shared memory may be locked; mlock(2) goes by ulimits { memlock } all the same",
    ),
    on_request(15, "IPC_OWNER", "System V objects of other users, within the container's own ipc namespace"),
    never(16, "SYS_MODULE", "loads code into the kernel"),
    never(17, "SYS_RAWIO", "reaches devices and physical memory"),
    always(
        18,
        "SYS_CHROOT",
        "kept so that the set is the usual one; of the filters only `compat` allows chroot itself",
    ),
    on_request(19, "SYS_PTRACE", "debuggers trace processes of the container's other users, under the filter `compat`"),
    never(20, "SYS_PACCT", "process accounting is the machine's"),
    never(21, "SYS_ADMIN", "mounts and namespaces: most of what has led out of containers began with it"),
    never(22, "SYS_BOOT", "restarts the machine"),
    on_request(
        23,
        "SYS_NICE",
        "databases set priority and processors of processes of other users; nobody gets above the caller's own",
    ),
    never(24, "SYS_RESOURCE", "the kernel honours it from the host's user namespace only; see `ulimits` and `limits`"),
    never(25, "SYS_TIME", "the clock is the machine's"),
    never(26, "SYS_TTY_CONFIG", "the consoles are the machine's"),
    on_request(27, "MKNOD", "asked for by habit; the kernel makes device nodes for the host's root only"),
    never(28, "LEASE", "the kernel honours it from the host's user namespace only"),
    on_request(
        29,
        "AUDIT_WRITE",
        "asked for by login programs, which go on when the kernel says that there is no audit here",
    ),
    never(30, "AUDIT_CONTROL", "the audit system is the machine's"),
    always(31, "SETFCAP", "package managers inside write file capabilities"),
    never(32, "MAC_OVERRIDE", "security labels are the machine's"),
    never(33, "MAC_ADMIN", "security labels are the machine's"),
    never(34, "SYSLOG", "the kernel's log is the machine's"),
    never(35, "WAKE_ALARM", "wakes the machine"),
    never(36, "BLOCK_SUSPEND", "keeps the machine awake"),
    never(37, "AUDIT_READ", "the audit system is the machine's"),
    never(38, "PERFMON", "counters of the whole machine"),
    never(39, "BPF", "programs in the kernel"),
    never(40, "CHECKPOINT_RESTORE", "chooses pids and reaches into the memory maps of others"),
];

const fn mask(requested: bool) -> u64 {
    let mut mask = 0;
    let mut i = 0;
    while i < TABLE.len() {
        match TABLE[i].given {
            Given::Always => mask |= TABLE[i].bit(),
            Given::OnRequest if requested => mask |= TABLE[i].bit(),
            Given::OnRequest | Given::Never => {}
        }
        i += 1;
    }
    mask
}

/// What root has where nothing else is said: bit n is capability number n.
pub const DEFAULT: u64 = mask(false);

/// The most that a container's root can have. Neither SYS_ADMIN nor NET_ADMIN is in it: with them an installed helper would
/// hand out what a host that restricts user namespaces has taken away.
pub const CEILING: u64 = mask(true);

/// The capability of this name, written with or without `CAP_`, in capital letters or not.
pub fn find(name: &str) -> Option<&'static Capability> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    TABLE.iter().find(|capability| capability.name == bare)
}

/// The names of the capabilities in `mask`, without the `CAP_` prefix.
pub fn names(mask: u64) -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(move |capability| capability.bit() & mask != 0).map(|capability| capability.name)
}

/// All names without the `CAP_` prefix, in the order of the numbers.
pub const NAMES: [&str; TABLE.len()] = {
    let mut names = [""; TABLE.len()];
    let mut i = 0;
    while i < TABLE.len() {
        names[i] = TABLE[i].name;
        i += 1;
    }
    names
};

/// The number of a capability by its name without `CAP_`, in capitals.
#[must_use]
pub fn number(name: &str) -> Option<u8> {
    TABLE.iter().find(|capability| capability.name == name).map(|capability| capability.number)
}

/// Its name; of a number that no kernel has yet a word that says so.
#[must_use]
pub fn name(number: u8) -> &'static str {
    TABLE.get(usize::from(number)).map_or("UNKNOWN", |capability| capability.name)
}

/// The table as text, one capability per line, for a person or a snapshot.
pub fn describe() -> String {
    let line = |c: &Capability| {
        let given = match c.given {
            Given::Always => "default",
            Given::OnRequest => "cap_add",
            Given::Never => "never",
        };
        format!("{:>2}  {:<18}  {:<7}  {}\n", c.number, c.name, given, c.reason)
    };
    TABLE.iter().map(line).collect()
}
