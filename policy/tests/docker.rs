//! The filter `default` allows nothing that Docker's profile refuses to a container with our capabilities.

use std::collections::BTreeSet;

use containust_policy::seccomp::{Arch, Base, Check, Clause, Verdict, numbers};

/// What the profile of Docker 24 (moby/profiles/seccomp/default.json) allows on x86_64 or arm64 without a condition, or
/// on CAP_SYS_CHROOT, which our default set has.
const ALLOWED: &str = "accept accept4 access adjtimex alarm bind brk capget capset chdir chmod chown clock_adjtime \
    clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 \
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd \
    eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod \
    fchmodat fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs \
    fsync ftruncate futex futex_waitv futimesat getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups \
    getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit \
    get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getxattr \
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents \
    io_pgetevents ioprio_get ioprio_set io_setup io_submit io_uring_enter io_uring_register io_uring_setup kill \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr \
    llistxattr lremovexattr lseek lsetxattr lstat madvise membarrier memfd_create memfd_secret mincore mkdir mkdirat \
    mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend \
    mq_unlink mremap msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep \
    newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect \
    poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pwrite64 pwritev pwritev2 read \
    readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr rename renameat \
    renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
    rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam \
    sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop \
    sendfile sendmmsg sendmsg sendto setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid \
    setresgid setresuid setreuid setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid \
    setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs statx \
    symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun \
    timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname \
    unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev ptrace process_vm_readv \
    process_vm_writev arch_prctl modify_ldt chroot";
/// Allowed there with a condition on an argument.
const CONDITIONAL: &[(&str, &str)] = &[
    ("clone", "the same bits of new namespaces are refused"),
    ("personality", "the same five values"),
    ("socket", "every family but AF_VSOCK"),
];
/// Newer than that list; the profile has got them since, or the kernel makes them itself.
const NEWER: &str = "fchmodat2 cachestat map_shadow_stack mseal futex_wait futex_wake futex_requeue setxattrat getxattrat \
    listxattrat removexattrat uretprobe uprobe";

#[test]
fn default_is_at_least_as_strict() {
    let words = |text: &'static str| text.split_ascii_whitespace().collect::<BTreeSet<_>>();
    let theirs: BTreeSet<&str> =
        words(ALLOWED).into_iter().chain(words(NEWER)).chain(CONDITIONAL.iter().map(|(name, _)| *name)).collect();
    for arch in [Arch::X86_64, Arch::Aarch64] {
        for (_, name) in numbers(arch) {
            let row = Base::Default.row(name).expect("every call has a row");
            assert!(
                matches!(row.verdict, Verdict::Refuse(_)) || theirs.contains(name),
                "{arch:?}: {name} is allowed, and not by Docker"
            );
        }
    }
    for (name, why) in CONDITIONAL {
        let verdict = Base::Default.row(name).expect("it has a row").verdict;
        assert!(!matches!(verdict, Verdict::Allow), "{name}: {why}");
    }
    for base in [Base::Default, Base::Compat] {
        let families = match base.row("socket").expect("a row").verdict {
            Verdict::AllowIf { argument: 0, check: Check::In(families), .. } => families,
            Verdict::AllowIfAll([Clause { any: [(0, Check::In(families))], .. }, ..]) => families,
            _ => panic!("socket is no list of families"),
        };
        assert!(!families.contains(&40), "AF_VSOCK");
    }
    let Verdict::AllowIf { check, .. } = Base::Default.row("clone").expect("a row").verdict else {
        panic!("clone has no condition");
    };
    assert_eq!(check, Check::WithoutBits(2_114_060_288));
    let Verdict::AllowIf { check: Check::In(personas), .. } = Base::Default.row("personality").expect("a row").verdict
    else {
        panic!("personality has no condition");
    };
    assert!(personas.iter().all(|value| [0, 8, 131_072, 131_080, 4_294_967_295].contains(value)), "{personas:?}");
}
