//! System calls that neither nix nor rustix offers as a safe function. The only module with `unsafe`.
#![expect(
    unsafe_code,
    reason = "these calls have no safe wrapper in nix or rustix; every block says what it relies on"
)]

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null;

/// Proof that this process has one thread, so that a child made by [`clone3`] may go on running ordinary code:
/// another thread could have held a lock (the allocator's) at the moment of the copy, for ever.
#[derive(Debug)]
pub struct Alone(());

impl Alone {
    /// Counts the tasks of this process.
    ///
    /// # Errors
    /// When `/proc/self/task` cannot be read, or there is more than one thread.
    pub fn check() -> io::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
        let tasks: Vec<_> = std::fs::read_dir("/proc/self/task")?.collect::<io::Result<_>>()?;
        if tasks.len() == 1 { Ok(Self(())) } else { Err(io::Error::other("the process has more than one thread")) }
    }
}

/// Which of the two processes [`clone3`] returned in.
#[derive(Debug)]
pub enum Side {
    /// The one that called.
    Parent {
        /// The child's pid in the caller's pid namespace.
        pid: i32,
        /// Refers to the child, whatever becomes of its pid.
        pidfd: OwnedFd,
    },
    /// The new one.
    Child,
}

bitflags::bitflags! {
    /// What a new process does not share with its parent (`namespaces(7)`).
    #[derive(Debug, Clone, Copy)]
    pub struct Namespaces: u64 {
        /// The new process becomes a child of this process's parent.
        const OF_MY_PARENT = libc::CLONE_PARENT as u64;
        /// Mounts.
        const MOUNT = libc::CLONE_NEWNS as u64;
        /// Host name.
        const UTS = libc::CLONE_NEWUTS as u64;
        /// System V IPC and POSIX message queues.
        const IPC = libc::CLONE_NEWIPC as u64;
        /// Users and capabilities.
        const USER = libc::CLONE_NEWUSER as u64;
        /// Process ids; the new process is pid 1.
        const PID = libc::CLONE_NEWPID as u64;
        /// Network.
        const NET = libc::CLONE_NEWNET as u64;
    }
}

impl Namespaces {
    /// All that a container gets when it is cloned. Its cgroup namespace is not among them: clone3(2) would root that in
    /// the caller's cgroup, also with `CLONE_INTO_CGROUP`, so that the new process has to unshare it.
    #[must_use]
    pub fn of_a_container() -> Self {
        Self::MOUNT | Self::UTS | Self::IPC | Self::PID | Self::NET
    }
}

/// libc's constant is an int, in which this bit has no place.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// clone3(2) with its own copy of the memory and `CLONE_PIDFD`. `cgroup`: the directory of the cgroup that the new
/// process is born in; none: that of this process.
///
/// # Errors
/// The kernel's: ENOSPC (`user.max_user_namespaces`), EPERM (user namespaces forbidden), EUSERS, ENOSYS, … For a cgroup
/// EBADF (none of cgroup v2), EACCES (not ours to move processes to), EBUSY (it has controllers enabled for groups below).
pub fn clone3(_alone: &Alone, namespaces: Namespaces, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    let mut pidfd: RawFd = -1;
    // CLONE_PARENT inherits the caller's exit signal and refuses one of its own.
    let exit_signal = if namespaces.contains(Namespaces::OF_MY_PARENT) { 0 } else { libc::SIGCHLD as u64 };
    let mut args = libc::clone_args {
        flags: namespaces.bits() | libc::CLONE_PIDFD as u64 | cgroup.map_or(0, |_| CLONE_INTO_CGROUP),
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    // SAFETY: without CLONE_VM and a stack the child continues here on a copy of this thread's memory, like fork(2);
    // `Alone` is the proof that no other thread's state is copied half-way. `args` and `pidfd` outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        0 => Ok(Side::Child),
        // SAFETY: on success the kernel stored a new descriptor of ours in `pidfd`.
        1.. => Ok(Side::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// fork(2): the child's pid, or none in the child. Unlike [`clone3`] it is allowed under the containers' filter.
///
/// # Errors
/// EAGAIN at a limit of processes, ENOMEM.
pub fn fork(_alone: &Alone) -> io::Result<Option<i32>> {
    // SAFETY: `Alone` is the proof that no other thread's state is copied half-way.
    match result(unsafe { libc::fork() }.into())? {
        0 => Ok(None),
        pid => Ok(Some(pid as i32)),
    }
}

/// kill(2).
///
/// # Errors
/// ESRCH, EPERM, EINVAL.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    result(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// User and system time of the children that this process has waited for, in milliseconds (getrusage(2)).
pub fn children_cpu_ms() -> u64 {
    // SAFETY: an all-zero rusage is valid, and the kernel fills it; RUSAGE_CHILDREN cannot fail.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let ms = |time: libc::timeval| (time.tv_sec as u64).saturating_mul(1000).saturating_add(time.tv_usec as u64 / 1000);
    ms(usage.ru_utime).saturating_add(ms(usage.ru_stime))
}

/// Takes ownership of an inherited descriptor, once, at the start of the program.
///
/// # Errors
/// EBADF when it is not open.
pub fn take_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(F_GETFD) only reads the descriptor table.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the callers (entry sequence) run before anything else could own it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes every descriptor from `first` on (close_range(2)).
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: callers own no descriptor from `first` on that they use afterwards: documented use is the entry sequence,
    // and a child that keeps its descriptors below `first`.
    result(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Closes every descriptor above 2 but those in `keep`: for a forked child that must not hold what its parent holds.
/// Values of the parent that own one of them must not be dropped in the child; end it with [`exit_now`].
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().filter(|fd| *fd > 2).chain([u32::MAX]) {
        if first < fd {
            // SAFETY: the child goes on with the kept descriptors only (see above).
            result(unsafe { libc::syscall(libc::SYS_close_range, first, fd.saturating_sub(1), 0) })?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// EINVAL before Linux 5.11.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: changes flags in the descriptor table, closes nothing now.
    result(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Forgets the environment.
pub fn clear_environment() {
    // SAFETY: called at entry while the process has one thread, so that nobody reads `environ` meanwhile.
    unsafe { libc::clearenv() };
}

/// Whether the kernel gave this process more than its caller has, and says so (`AT_SECURE`, getauxval(3)).
#[must_use]
pub fn is_secure_execution() -> bool {
    // SAFETY: reads a value that the kernel put beside the environment; takes no pointer.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Sets every signal to its default action and unblocks all: dispositions to ignore and the mask survive execve(2).
pub fn reset_signals() {
    // Not by signal(3), which refuses 32 and 33, that libc keeps for itself and a caller can still have had ignored.
    // The kernel's structure for SIG_DFL without flags and mask: all zero, of 32 bytes at most.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler of ours, and the structure is valid for the call; KILL and STOP answer EINVAL,
        // which is fine.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), null::<u64>(), size_of::<u64>()) };
    }
    // SAFETY: an all-zero sigset_t is the empty set on Linux; the pointer is valid for the call.
    unsafe {
        let empty: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
    }
}

/// Lets the kernel reap children by itself (SIGCHLD ignored, POSIX.1-2001).
pub fn reap_automatically() {
    // SAFETY: SIG_IGN installs no handler of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Switches off the three interval timers, which survive execve(2).
pub fn stop_timers() {
    let off = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: 0 },
    };
    for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        // SAFETY: `off` is a valid structure for the call.
        unsafe { libc::setitimer(timer as _, &raw const off, std::ptr::null_mut()) };
    }
}

/// mount_setattr(2) on the mount that `mount` refers to: sets `attributes` (`MOUNT_ATTR_*`), clears none.
///
/// # Errors
/// The kernel's: EPERM where a locked flag would be needed, EINVAL.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attributes: u64) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the empty path and `attr` are valid for the call, and the size says which version `attr` is.
    result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Makes `file`, which is `/dev/net/tun` opened in this network namespace, that of a new network device of whole Ethernet frames
/// (TUNSETIFINDEX and TUNSETIFF with `IFF_TAP`, `Documentation/networking/tuntap.rst`).
///
/// # Errors
/// EPERM without CAP_NET_ADMIN in the namespace, EBUSY where there is such a device or index, and others.
pub fn make_tap(file: BorrowedFd<'_>, index: u32, name: &str) -> io::Result<()> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    const TUNSETIFINDEX: libc::Ioctl = 0x4004_54da;
    /// `struct ifreq`
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    // The last byte stays zero.
    for (place, byte) in request.name.iter_mut().take(libc::IFNAMSIZ.saturating_sub(1)).zip(name.as_bytes()) {
        *place = *byte;
    }
    let index = (&raw const index).cast_mut().cast::<libc::c_void>();
    for (number, argument) in [(TUNSETIFINDEX, index), (TUNSETIFF, (&raw mut request).cast())] {
        // SAFETY: the first reads an integer; the second reads a structure of the kernel's layout and writes the device's name into
        // it. Both live through the calls.
        result(unsafe { libc::ioctl(file.as_raw_fd(), number, argument) }.into())?;
    }
    Ok(())
}

/// Has a socket send and receive by the network device of this name only (SO_BINDTODEVICE, `socket(7)`).
///
/// # Errors
/// ENODEV where there is no such device.
pub fn bind_to_device(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    set_option(socket, (libc::SOL_SOCKET, libc::SO_BINDTODEVICE), name.as_bytes())
}

/// Lets a socket have any address as its own, and take what answers it, if the routes bring it here (IP_TRANSPARENT, `ip(7)`).
///
/// # Errors
/// EPERM without CAP_NET_ADMIN over its network namespace.
pub fn let_be_anybody(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, (libc::IPPROTO_IP, libc::IP_TRANSPARENT), &1i32.to_ne_bytes())
}

fn set_option(socket: BorrowedFd<'_>, (level, option): (i32, i32), value: &[u8]) -> io::Result<()> {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    // SAFETY: the kernel reads `length` bytes of the value; a name need not end with a zero.
    result(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), length) }.into())
        .map(drop)
}

/// A seccomp filter, laid out for the kernel so that a child can install it without allocating.
#[derive(Debug)]
pub struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// From instructions of classic BPF: code, jump if true, jump if false, operand. They are checked when it is installed.
    pub fn new(program: impl Iterator<Item = (u16, u8, u8, u32)>) -> Self {
        Self(program.map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect())
    }

    /// Installs it on this process, for good; needs `no_new_privs`. Allocates nothing.
    ///
    /// # Errors
    /// EINVAL for a program that the kernel's checker refuses, EACCES without `no_new_privs`.
    pub fn install(&self) -> io::Result<()> {
        let len = u16::try_from(self.0.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let prog = libc::sock_fprog { len, filter: self.0.as_ptr().cast_mut() };
        // SAFETY: the kernel copies `len` instructions from `filter`, which is what the vector holds, and writes nothing.
        result(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const prog) }).map(drop)
    }
}

/// Restricts this process by a ruleset, for good (landlock_restrict_self(2)); needs `no_new_privs`. The `landlock` crate
/// does this only with a ruleset of its own, and allocates. Allocates nothing.
///
/// # Errors
/// EPERM without `no_new_privs`, E2BIG below 16 other restrictions.
pub fn restrict_by_landlock(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a descriptor and no flags.
    result(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) }).map(drop)
}

/// Removes the capabilities of `mask` from the bounding set (PR_CAPBSET_DROP, prctl(2)). Allocates nothing.
///
/// # Errors
/// EPERM without CAP_SETPCAP, EINVAL for one that the kernel does not know.
pub fn drop_from_bounding_set(mask: u64) -> io::Result<()> {
    for number in (0..64u32).filter(|number| mask >> number & 1 == 1) {
        // SAFETY: plain integers.
        result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) }.into())?;
    }
    Ok(())
}

/// Sets permitted and effective capabilities to `mask`, inheritable to none (capset(2), version 3). Allocates nothing.
///
/// # Errors
/// EPERM when `mask` holds what is not permitted now.
pub fn set_capabilities(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let (low, high) = (mask as u32, (mask >> 32) as u32);
    let data = [
        Data { effective: low, permitted: low, inheritable: 0 },
        Data { effective: high, permitted: high, inheritable: 0 },
    ];
    // SAFETY: both structures have the kernel's layout for version 3 and live through the call.
    result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Sets a resource limit of this process (setrlimit(2)). Allocates nothing.
///
/// # Errors
/// EPERM above the hard limit, EINVAL for an unknown resource.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is valid for the call; an unknown resource number is refused by the kernel.
    result(unsafe { libc::prlimit64(0, resource as _, &raw const limit, std::ptr::null_mut()) }.into()).map(drop)
}

/// Sets the supplementary groups (setgroups(2), this thread). Allocates nothing.
///
/// # Errors
/// EPERM where the user namespace denies it, EINVAL for an id without a mapping.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the kernel reads `len` ids from the slice.
    result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Sets real, effective and saved group, then user id (raw calls: this process has one thread). Allocates nothing.
///
/// # Errors
/// EINVAL for an id without a mapping, EPERM without CAP_SETUID or CAP_SETGID in the user namespace.
pub fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: plain integers, in both.
    unsafe {
        result(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        result(libc::syscall(libc::SYS_setresuid, uid, uid, uid)).map(drop)
    }
}

/// Pointers for execve(2), laid out before the fork so that the child allocates nothing.
#[derive(Debug)]
pub struct Arguments<'a> {
    pointers: Vec<*const libc::c_char>,
    _strings: std::marker::PhantomData<&'a CStr>,
}

impl<'a> Arguments<'a> {
    /// Borrows the strings for as long as the pointers live.
    pub fn new<S: AsRef<CStr>>(strings: &'a [S]) -> Self {
        let pointers = strings.iter().map(|s| s.as_ref().as_ptr()).chain([null()]).collect();
        Self { pointers, _strings: std::marker::PhantomData }
    }
}

/// execve(2). Returns only on failure. Allocates nothing.
pub fn execute(program: &CStr, arguments: &Arguments<'_>, environment: &Arguments<'_>) -> io::Error {
    // SAFETY: both arrays are null-terminated (`Arguments::new`) and point to strings that outlive them.
    unsafe { libc::execve(program.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process at once, running no destructor and no exit handler: in a forked child they are the parent's.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(status) }
}

/// Makes `from` also known as `to`, without close-on-exec (dup2(2)). Allocates nothing.
///
/// # Errors
/// EBADF.
pub fn duplicate_to(from: impl AsFd, to: RawFd) -> io::Result<()> {
    let from = from.as_fd().as_raw_fd();
    if from == to {
        // SAFETY: clears close-on-exec, which dup2 onto itself would leave.
        return result(unsafe { libc::fcntl(to, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: callers pass the standard descriptors as `to`, which no owned value of this process stands for.
    result(unsafe { libc::dup2(from, to) }.into()).map(drop)
}

fn result(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
