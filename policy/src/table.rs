//! The base filters as data: `default`, and what `strict` and `compat` say instead. The build script compiles this file, the
//! library prints it.

/// A processor whose system calls the filter knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// One instruction of classic BPF, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// What a refused call fails with. The numbers are the same on both processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// "not permitted": the call exists and this container may not make it.
    Eperm = 1,
    /// "no such call": what a caller sees on an older kernel, so that it takes its fallback.
    Enosys = 38,
    /// "no such protocol": what `socket` says where the kernel has the type, but not by this protocol.
    Eprotonosupport = 93,
    /// "no such socket type": what `socket` says where no protocol of the family has the type.
    Esocktnosupport = 94,
    /// "no such address family": what `socket` says where the family is not built in.
    Eafnosupport = 97,
}

/// The test on one argument. Only its low 32 bits are compared: every argument tested here is an
/// `int` to the kernel, which drops the rest, so a filter that looked at all 64 could be passed by
/// setting one of them (CVE-2019-10063).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// None of these bits is set.
    WithoutBits(u32),
    /// What these bits of it are is one of these values.
    BitsIn(u32, &'static [u32]),
    /// The value is one of these.
    In(&'static [u32]),
    /// The value is none of these.
    NotIn(&'static [u32]),
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel carries it out.
    Allow,
    /// It fails without reaching the kernel.
    Refuse(Errno),
    /// Carried out if the argument passes the check, else refused.
    AllowIf {
        /// Which argument, counted from 0.
        argument: u8,
        /// What it must satisfy.
        check: Check,
        /// What the call fails with where it does not.
        otherwise: Errno,
    },
    /// Carried out if every clause holds, else refused by the first that does not.
    AllowIfAll(&'static [Clause]),
}

/// What holds if one of its tests does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Arguments, counted from 0, and what each must satisfy.
    pub any: &'static [(u8, Check)],
    /// What the call fails with where none does.
    pub otherwise: Errno,
}

/// A base filter. One of them is installed in every container before anything of the container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// What ordinary images need.
    Default,
    /// What ordinary services need: less of the kernel than [`Base::Default`].
    Strict,
    /// More than [`Base::Default`], for debuggers, jails and old programs.
    Compat,
}

impl Base {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Default, Self::Strict, Self::Compat];

    /// The name as a file has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Strict => "strict",
            Self::Compat => "compat",
        }
    }

    /// The rows that stand instead of those of [`DEFAULT`] that name the same calls.
    pub fn changes(self) -> &'static [Row] {
        match self {
            Self::Default => &[],
            Self::Strict => STRICT,
            Self::Compat => COMPAT,
        }
    }

    /// The row that decides about the call of this name.
    pub fn row(self, call: &str) -> Option<&'static Row> {
        let names = |row: &&Row| row.calls.split_ascii_whitespace().any(|name| name == call);
        self.changes().iter().chain(DEFAULT).find(names)
    }
}

/// Calls that share a verdict and the reason for it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Names as in the kernel's tables, separated by blanks.
    pub calls: &'static str,
    /// What happens to them.
    pub verdict: Verdict,
    /// Why, in one line.
    pub reason: &'static str,
}

/// x32 calls carry this bit in their number; the kernel's own tables end far below it.
pub const X32_BIT: u32 = 0x4000_0000;

/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}. NEWTIME shares its bit with the exit signal of
/// `clone` and exists for `clone3` and `unshare` only.
pub(crate) const NEW_NAMESPACES: u32 = 0x7e02_0000;

pub(crate) const AF_UNIX: u32 = 1;
pub(crate) const AF_INET: u32 = 2;
pub(crate) const AF_INET6: u32 = 10;
pub(crate) const AF_NETLINK: u32 = 16;

// linux/net.h
const SOCK_TYPE_MASK: u32 = 0xf;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;

const IPPROTO_IP: u32 = 0;
const IPPROTO_ICMP: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_ICMPV6: u32 = 58;

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
const TIOCCONS: u32 = 0x541d;
const TIOCSETD: u32 = 0x5423;

const PER_LINUX: u32 = 0;
const PER_LINUX32: u32 = 8;
const UNAME26: u32 = 0x2_0000;
const ADDR_NO_RANDOMIZE: u32 = 0x4_0000;
const PERSONALITY_QUERY: u32 = 0xffff_ffff;

// linux/prctl.h
const PR_SET_MM: u32 = 35;
const PR_SET_SYSCALL_USER_DISPATCH: u32 = 59;
const PR_SET_PTRACER: u32 = 0x5961_6d61;

const fn allow(calls: &'static str, reason: &'static str) -> Row {
    Row { calls, verdict: Verdict::Allow, reason }
}

const fn eperm(calls: &'static str, reason: &'static str) -> Row {
    Row { calls, verdict: Verdict::Refuse(Errno::Eperm), reason }
}

const fn enosys(calls: &'static str, reason: &'static str) -> Row {
    Row { calls, verdict: Verdict::Refuse(Errno::Enosys), reason }
}

const fn allow_if(calls: &'static str, argument: u8, check: Check, otherwise: Errno, reason: &'static str) -> Row {
    Row { calls, verdict: Verdict::AllowIf { argument, check, otherwise }, reason }
}

const fn allow_if_all(calls: &'static str, clauses: &'static [Clause], reason: &'static str) -> Row {
    Row { calls, verdict: Verdict::AllowIfAll(clauses), reason }
}

/// The families that are not of IP, and so have types and protocols of their own.
const NOT_IP: (u8, Check) = (0, Check::NotIn(&[AF_INET, AF_INET6]));
/// By 10 (SOCK_PACKET) AF_INET would become AF_PACKET, by 6 DCCP is loaded, by 5 SCTP is had where it is loaded.
pub(crate) const TYPES: Clause = Clause {
    any: &[NOT_IP, (1, Check::BitsIn(SOCK_TYPE_MASK, &[SOCK_STREAM, SOCK_DGRAM, SOCK_RAW]))],
    otherwise: Errno::Esocktnosupport,
};
/// A raw socket takes CAP_NET_RAW, and no protocol makes it another kind of socket.
pub(crate) const PROTOCOLS: Clause = Clause {
    any: &[
        NOT_IP,
        (1, Check::BitsIn(SOCK_TYPE_MASK, &[SOCK_RAW])),
        (2, Check::In(&[IPPROTO_IP, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMPV6])),
    ],
    otherwise: Errno::Eprotonosupport,
};

/// Every call the tables below know is in exactly one row; the build stops where one is missing or
/// named twice.
pub static DEFAULT: &[Row] = &[
    // Decided by an argument.
    allow_if(
        "clone",
        0,
        Check::WithoutBits(NEW_NAMESPACES),
        Errno::Eperm,
        "processes and threads, but no new namespace: a user namespace inside opens most of the kernel",
    ),
    allow_if_all(
        "socket socketpair",
        &[
            Clause {
                any: &[(0, Check::In(&[AF_UNIX, AF_INET, AF_INET6, AF_NETLINK]))],
                otherwise: Errno::Eafnosupport,
            },
            TYPES,
            PROTOCOLS,
        ],
        "the families that programs use, AF_VSOCK reaches past the network namespace, the rest are hardly tested; of IP: TCP, \
         UDP, ping, and raw by CAP_NET_RAW, because asking for others (SCTP, DCCP, MPTCP, SMC, UDP-Lite) loads the host's \
         modules, and landlock's rules on ports hold for TCP alone",
    ),
    allow_if(
        "ioctl",
        1,
        Check::NotIn(&[TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD]),
        Errno::Eperm,
        "no typing into a terminal (TIOCSTI, TIOCLINUX), no taking the console's output, no new line discipline",
    ),
    allow_if(
        "personality",
        0,
        Check::In(&[PER_LINUX, PER_LINUX32, UNAME26, UNAME26 | PER_LINUX32, PERSONALITY_QUERY]),
        Errno::Eperm,
        "what uname reports may change; address randomisation and mapping at 0 may not",
    ),
    allow_if(
        "prlimit64",
        0,
        Check::NotIn(&[1]),
        Errno::Eperm,
        "limits of a container's own processes, but not of its pid 1, which starts what `ctst exec` asks for",
    ),
    // Allowed.
    allow(
        "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close \
         close_range dup dup2 dup3 fcntl flock",
        "open descriptors",
    ),
    allow(
        "open openat openat2 creat access faccessat faccessat2 stat lstat fstat newfstatat \
         statx readlink readlinkat getdents getdents64 statfs fstatfs",
        "finding, opening and reading files",
    ),
    allow(
        "mkdir mkdirat rmdir rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat",
        "changing directories of the container's own file systems",
    ),
    allow("mknod mknodat", "FIFOs and sockets; the kernel itself refuses device nodes in a user namespace"),
    allow(
        "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat umask",
        "owner, mode and times of files; ids stay within the container's map",
    ),
    allow(
        "setxattr lsetxattr fsetxattr setxattrat getxattr lgetxattr fgetxattr getxattrat \
         listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr \
         removexattrat",
        "extended attributes; the kernel checks trusted.* and security.* by namespace",
    ),
    allow(
        "truncate ftruncate fallocate sync syncfs fsync fdatasync sync_file_range fadvise64 readahead cachestat",
        "file sizes, durability and caching",
    ),
    allow(
        "sendfile copy_file_range splice tee vmsplice",
        "copying without a round trip through the program: web servers, coreutils",
    ),
    allow("chdir fchdir getcwd", "the working directory; none outside the root is reachable"),
    allow(
        "pipe pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait \
         epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4 timerfd_create \
         timerfd_settime timerfd_gettime inotify_init inotify_init1 inotify_add_watch \
         inotify_rm_watch",
        "event loops",
    ),
    allow(
        "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents",
        "kernel AIO: nginx and databases; io_uring, its successor, is refused",
    ),
    allow(
        "mmap munmap mremap mprotect madvise brk msync mincore mlock mlock2 mlockall munlock \
         munlockall remap_file_pages memfd_create mseal pkey_alloc pkey_free pkey_mprotect \
         map_shadow_stack membarrier",
        "a program's own memory",
    ),
    allow(
        "fork vfork execve execveat exit exit_group wait4 waitid set_tid_address \
         set_robust_list get_robust_list futex futex_wait futex_wake futex_requeue futex_waitv \
         rseq restart_syscall",
        "processes and threads",
    ),
    allow(
        "arch_prctl prctl",
        "thread-local storage, names, subreapers, dropping the bounding set; nothing here regains a privilege",
    ),
    allow(
        "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
        "a program may confine itself further: the strictest verdict of all filters counts",
    ),
    allow(
        "uretprobe uprobe",
        "made by the kernel's trampolines where the host traces a program, and exempt from filters since Linux 6.14",
    ),
    allow(
        "getpid getppid gettid getpgid getpgrp setpgid getsid setsid",
        "process identity and job control, within the pid namespace",
    ),
    allow(
        "getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid \
         setregid setresuid setresgid setfsuid setfsgid setgroups capget capset",
        "entrypoints that start as root drop to a user of the container (gosu, su, nginx, postgres)",
    ),
    allow(
        "kill tkill tgkill rt_sigaction rt_sigprocmask rt_sigpending rt_sigqueueinfo \
         rt_tgsigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait sigaltstack pause \
         pidfd_open pidfd_send_signal process_mrelease",
        "signals; targets outside the pid namespace have no number",
    ),
    allow(
        "nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time alarm getitimer \
         setitimer times timer_create timer_delete timer_getoverrun timer_gettime timer_settime",
        "reading clocks and waiting",
    ),
    allow(
        "adjtimex clock_adjtime",
        "reading the clock's state; changing it takes CAP_SYS_TIME over the host, which no container has",
    ),
    allow(
        "sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam \
         sched_getscheduler sched_setscheduler sched_getattr sched_setattr \
         sched_get_priority_max sched_get_priority_min sched_rr_get_interval getpriority \
         setpriority ioprio_get ioprio_set getcpu",
        "scheduling; raising one's own share needs a capability over the host",
    ),
    allow(
        "getrlimit setrlimit getrusage sysinfo uname getrandom",
        "limits and facts about the machine that runtimes size themselves by",
    ),
    allow(
        "bind listen accept accept4 connect shutdown getsockname getpeername getsockopt \
         setsockopt sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg",
        "sockets of the families allowed above",
    ),
    allow(
        "shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl \
         mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr",
        "System V and POSIX queues, semaphores and shared memory, within the ipc namespace",
    ),
    // Refused so that the caller takes its fallback.
    enosys(
        "clone3",
        "its flags lie behind a pointer that a filter cannot follow; glibc, musl and Go fall back to clone",
    ),
    enosys(
        "io_uring_setup io_uring_enter io_uring_register",
        "its operations bypass this filter and its record of holes is long; libraries fall back to epoll or AIO",
    ),
    enosys(
        "memfd_secret lsm_get_self_attr lsm_set_self_attr lsm_list_modules statmount listmount \
         file_getattr file_setattr listns",
        "newer than the programs we run need; they ask /proc or the older calls instead",
    ),
    enosys(
        "_sysctl create_module get_kernel_syms query_module nfsservctl getpmsg putpmsg \
         afs_syscall tuxcall security set_thread_area get_thread_area lookup_dcookie \
         epoll_ctl_old epoll_wait_old vserver uselib",
        "gone from the kernel or never in it",
    ),
    // Refused.
    eperm(
        "mount umount2 pivot_root open_tree open_tree_attr move_mount mount_setattr fsopen fsconfig fsmount fspick",
        "the tree of mounts is built before the program starts and does not change",
    ),
    eperm(
        "chroot",
        "the classic way around a lookup's root; programs that jail themselves (sshd, postfix) need a looser filter",
    ),
    eperm("unshare setns", "no new namespace, no other one"),
    eperm(
        "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp",
        "reaching into another process; debuggers need a looser filter",
    ),
    eperm(
        "name_to_handle_at open_by_handle_at",
        "a file handle names any file of the file system, whatever the mounts show",
    ),
    eperm("fanotify_init fanotify_mark", "watches whole file systems, beyond what the container sees"),
    eperm("bpf perf_event_open", "programs and counters in the kernel"),
    eperm("userfaultfd", "stops the kernel in the middle of a copy, which is how races are won"),
    eperm("add_key request_key keyctl", "keyrings are shared with every process of the same host user"),
    eperm(
        "kexec_load kexec_file_load reboot init_module finit_module delete_module acct swapon \
         swapoff quotactl quotactl_fd syslog vhangup iopl ioperm",
        "administers the machine, not the container",
    ),
    eperm(
        "settimeofday clock_settime sethostname setdomainname",
        "the clock is the machine's, the host name is the composition's",
    ),
    eperm(
        "mbind set_mempolicy get_mempolicy set_mempolicy_home_node migrate_pages move_pages",
        "memory placement takes from other containers and has had holes",
    ),
    eperm("modify_ldt", "segments for 16-bit programs, a source of holes in the kernel's entry code"),
    eperm("ustat sysfs", "superseded by statfs and /proc, and tested by nobody"),
];

/// What `strict` refuses beyond [`DEFAULT`]: what a server that answers requests and keeps files has no use for. Whoever
/// starts the processes of a container runs under it, too, so that execve, capset and the like stay.
pub static STRICT: &[Row] = &[
    allow_if_all(
        "socket socketpair",
        &[
            Clause { any: &[(0, Check::In(&[AF_UNIX, AF_INET, AF_INET6]))], otherwise: Errno::Eafnosupport },
            TYPES,
            PROTOCOLS,
        ],
        "no netlink, behind which most of the kernel's network code lies; looking up addresses does without",
    ),
    allow_if(
        "personality",
        0,
        Check::In(&[PER_LINUX, PERSONALITY_QUERY]),
        Errno::Eperm,
        "asking, and staying what one is",
    ),
    allow_if(
        "prctl",
        0,
        Check::NotIn(&[PR_SET_MM, PR_SET_SYSCALL_USER_DISPATCH, PR_SET_PTRACER]),
        Errno::Eperm,
        "not for moving a program's own segments, emulating other systems, or letting others trace it",
    ),
    enosys(
        "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents",
        "kernel AIO has had holes, and databases that use it go on without",
    ),
    enosys(
        "msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr",
        "message queues: next to unused, and the usual way to lay out the kernel's memory for an attack",
    ),
    enosys("tee vmsplice", "lend pages of a program to a pipe, where the kernel has lost track of them before"),
    enosys("execveat", "running a file that has no name; fexecve(3) falls back to /proc/self/fd"),
    enosys(
        "remap_file_pages process_mrelease cachestat",
        "for programs that steer the kernel's memory, not for services",
    ),
    eperm("sched_setattr ioprio_set ioprio_get", "classes of scheduling that only a host's administrator gives"),
    eperm("adjtimex clock_adjtime", "for time servers, which no container is"),
    eperm("setfsuid setfsgid", "for servers of files that act for others within one process, such as NFS"),
];

/// What `compat` allows beyond [`DEFAULT`]. It opens no way to the host by itself, but more of the kernel.
pub static COMPAT: &[Row] = &[
    allow_if(
        "socket socketpair",
        0,
        Check::In(&[AF_UNIX, AF_INET, AF_INET6, AF_NETLINK]),
        Errno::Eafnosupport,
        "as docker has it: every protocol of IP that the host has or loads, such as SCTP and MPTCP",
    ),
    allow_if(
        "personality",
        0,
        Check::In(&[
            PER_LINUX,
            PER_LINUX32,
            UNAME26,
            UNAME26 | PER_LINUX32,
            ADDR_NO_RANDOMIZE,
            ADDR_NO_RANDOMIZE | PER_LINUX32,
            PERSONALITY_QUERY,
        ]),
        Errno::Eperm,
        "debuggers switch address randomisation off for what they start",
    ),
    allow(
        "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp",
        "debuggers and tracers, for processes that the kernel lets them trace: never a container's pid 1",
    ),
    allow("chroot", "programs that jail themselves: sshd, postfix, vsftpd; takes CAP_SYS_CHROOT"),
    allow("name_to_handle_at", "telling mounts apart, as systemd does; opening what a handle names stays refused"),
    allow(
        "mbind set_mempolicy get_mempolicy set_mempolicy_home_node",
        "placing one's own memory on the nodes of a large machine: databases, Java, numactl",
    ),
    allow("modify_ldt", "16-bit segments for old programs in emulators such as Wine"),
];

/// A first number and the names that follow each other from there on.
type Block = (u32, &'static str);

/// The system calls of `arch`, as number and name, as of Linux 6.19.
pub fn numbers(arch: Arch) -> impl Iterator<Item = (u32, &'static str)> {
    let own = match arch {
        Arch::X86_64 => X86_64,
        Arch::Aarch64 => AARCH64,
    };
    own.iter().chain(COMMON).flat_map(|&(first, names)| (first..).zip(names.split_ascii_whitespace()))
}

/// `arch/x86/entry/syscalls/syscall_64.tbl`, up to where the common numbers begin.
const X86_64: &[Block] = &[(
    0,
    "read write open close stat fstat lstat poll lseek mmap mprotect munmap brk \
         rt_sigaction rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv writev access \
         pipe select sched_yield mremap msync mincore madvise shmget shmat shmctl dup dup2 \
         pause nanosleep getitimer alarm setitimer getpid sendfile socket connect accept sendto \
         recvfrom sendmsg recvmsg shutdown bind listen getsockname getpeername socketpair \
         setsockopt getsockopt clone fork vfork execve exit wait4 kill uname semget semop \
         semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock fsync fdatasync truncate \
         ftruncate getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink \
         readlink chmod fchmod chown fchown lchown umask gettimeofday getrlimit getrusage \
         sysinfo times ptrace getuid syslog getgid setuid setgid geteuid getegid setpgid \
         getppid getpgrp setsid setreuid setregid getgroups setgroups setresuid getresuid \
         setresgid getresgid getpgid setfsuid setfsgid getsid capget capset rt_sigpending \
         rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod uselib \
         personality ustat statfs fstatfs sysfs getpriority setpriority sched_setparam \
         sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max \
         sched_get_priority_min sched_rr_get_interval mlock munlock mlockall munlockall vhangup \
         modify_ldt pivot_root _sysctl prctl arch_prctl adjtimex setrlimit chroot sync acct \
         settimeofday mount umount2 swapon swapoff reboot sethostname setdomainname iopl ioperm \
         create_module init_module delete_module get_kernel_syms query_module quotactl \
         nfsservctl getpmsg putpmsg afs_syscall tuxcall security gettid readahead setxattr \
         lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr \
         removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity \
         sched_getaffinity set_thread_area io_setup io_destroy io_getevents io_submit io_cancel \
         get_thread_area lookup_dcookie epoll_create epoll_ctl_old epoll_wait_old \
         remap_file_pages getdents64 set_tid_address restart_syscall semtimedop fadvise64 \
         timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime \
         clock_gettime clock_getres clock_nanosleep exit_group epoll_wait epoll_ctl tgkill \
         utimes vserver mbind set_mempolicy get_mempolicy mq_open mq_unlink mq_timedsend \
         mq_timedreceive mq_notify mq_getsetattr kexec_load waitid add_key request_key keyctl \
         ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages \
         openat mkdirat mknodat fchownat futimesat newfstatat unlinkat renameat linkat \
         symlinkat readlinkat fchmodat faccessat pselect6 ppoll unshare set_robust_list \
         get_robust_list splice tee sync_file_range vmsplice move_pages utimensat epoll_pwait \
         signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime accept4 \
         signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev \
         rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64 \
         name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns getcpu \
         process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr \
         renameat2 seccomp getrandom memfd_create kexec_file_load bpf execveat userfaultfd \
         membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free \
         statx io_pgetevents rseq uretprobe uprobe",
)];

/// `scripts/syscall.tbl` for arm64, up to where the common numbers begin.
const AARCH64: &[Block] = &[
    (
        0,
        "io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr \
         getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr \
         fremovexattr getcwd lookup_dcookie eventfd2 epoll_create1 epoll_ctl epoll_pwait dup \
         dup3 fcntl inotify_init1 inotify_add_watch inotify_rm_watch ioctl ioprio_set \
         ioprio_get flock mknodat mkdirat unlinkat symlinkat linkat renameat umount2 mount \
         pivot_root nfsservctl statfs fstatfs truncate ftruncate fallocate faccessat chdir \
         fchdir chroot fchmod fchmodat fchownat fchown openat close vhangup pipe2 quotactl \
         getdents64 lseek read write readv writev pread64 pwrite64 preadv pwritev sendfile \
         pselect6 ppoll signalfd4 vmsplice splice tee readlinkat newfstatat fstat sync fsync \
         fdatasync sync_file_range timerfd_create timerfd_settime timerfd_gettime utimensat \
         acct capget capset personality exit exit_group waitid set_tid_address unshare futex \
         set_robust_list get_robust_list nanosleep getitimer setitimer kexec_load init_module \
         delete_module timer_create timer_gettime timer_getoverrun timer_settime timer_delete \
         clock_settime clock_gettime clock_getres clock_nanosleep syslog ptrace sched_setparam \
         sched_setscheduler sched_getscheduler sched_getparam sched_setaffinity \
         sched_getaffinity sched_yield sched_get_priority_max sched_get_priority_min \
         sched_rr_get_interval restart_syscall kill tkill tgkill sigaltstack rt_sigsuspend \
         rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigreturn \
         setpriority getpriority reboot setregid setgid setreuid setuid setresuid getresuid \
         setresgid getresgid setfsuid setfsgid times setpgid getpgid getsid setsid getgroups \
         setgroups uname sethostname setdomainname getrlimit setrlimit getrusage umask prctl \
         getcpu gettimeofday settimeofday adjtimex getpid getppid getuid geteuid getgid getegid \
         gettid sysinfo mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr \
         msgget msgctl msgrcv msgsnd semget semctl semtimedop semop shmget shmctl shmat shmdt \
         socket socketpair bind listen accept connect getsockname getpeername sendto recvfrom \
         setsockopt getsockopt shutdown sendmsg recvmsg readahead brk munmap mremap add_key \
         request_key keyctl clone execve mmap fadvise64 swapon swapoff mprotect msync mlock \
         munlock mlockall munlockall mincore madvise remap_file_pages mbind get_mempolicy \
         set_mempolicy migrate_pages move_pages rt_tgsigqueueinfo perf_event_open accept4 \
         recvmmsg",
    ),
    (
        260,
        "wait4 prlimit64 fanotify_init fanotify_mark name_to_handle_at open_by_handle_at \
         clock_adjtime syncfs setns sendmmsg process_vm_readv process_vm_writev kcmp \
         finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create bpf \
         execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect \
         pkey_alloc pkey_free statx io_pgetevents rseq kexec_file_load",
    ),
];

/// Since Linux 5.1 a new call has the same number on every processor.
const COMMON: &[Block] = &[(
    424,
    "pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount \
         fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd \
         faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd \
         landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret \
         process_mrelease futex_waitv set_mempolicy_home_node cachestat fchmodat2 \
         map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount \
         lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat \
         listxattrat removexattrat open_tree_attr file_getattr file_setattr listns",
)];
