//! The filter in a real kernel.

use std::io;
use std::process::Command;

use containust_policy::seccomp::{Base, base_filter};

mod kernel;
use kernel::{in_a_thread, install};

const AF_UNIX: i64 = libc::AF_UNIX as i64;
const AF_INET: i64 = libc::AF_INET as i64;
const AF_VSOCK: i64 = libc::AF_VSOCK as i64;
const STREAM: i64 = libc::SOCK_STREAM as i64;

/// What a raw call answers under the filter, or its errno.
fn call(number: i64, args: [i64; 3]) -> Result<i64, i32> {
    in_a_thread(|| {
        install(base_filter(Base::Default)).expect("this kernel has seccomp filters");
        // SAFETY: every call in this file takes integers only or is refused before the kernel looks at an
        // argument; were one let through, it would be given null or a descriptor that does not exist.
        let value = unsafe { libc::syscall(number, args[0], args[1], args[2]) };
        if value == -1 { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(value) }
    })
}

#[test]
fn the_kernel_gives_the_verdicts_of_the_table() {
    let cases = [
        ("clone3", libc::SYS_clone3, [0; 3], libc::ENOSYS),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0], libc::ENOSYS),
        ("a number of the future", 9_999, [0; 3], libc::ENOSYS),
        ("mount", libc::SYS_mount, [0; 3], libc::EPERM),
        ("chroot", libc::SYS_chroot, [0; 3], libc::EPERM),
        ("ptrace", libc::SYS_ptrace, [-1, 0, 0], libc::EPERM),
        ("bpf", libc::SYS_bpf, [-1, 0, 0], libc::EPERM),
        ("unshare nothing", libc::SYS_unshare, [0; 3], libc::EPERM),
        ("clone with a user namespace", libc::SYS_clone, [libc::CLONE_NEWUSER.into(), 0, 0], libc::EPERM),
        ("socket(AF_VSOCK)", libc::SYS_socket, [AF_VSOCK, STREAM, 0], libc::EAFNOSUPPORT),
        ("socketpair(AF_VSOCK)", libc::SYS_socketpair, [AF_VSOCK, STREAM, 0], libc::EAFNOSUPPORT),
        ("TIOCSTI", libc::SYS_ioctl, [-1, libc::TIOCSTI as i64, 0], libc::EPERM),
        ("TIOCSTI, high bits", libc::SYS_ioctl, [-1, libc::TIOCSTI as i64 | 1 << 32, 0], libc::EPERM),
        ("another ioctl, of no descriptor", libc::SYS_ioctl, [-1, libc::TIOCGWINSZ as i64, 0], libc::EBADF),
        ("personality", libc::SYS_personality, [libc::ADDR_NO_RANDOMIZE.into(), 0, 0], libc::EPERM),
        ("close of no descriptor", libc::SYS_close, [-1, 0, 0], libc::EBADF),
    ];
    for (name, number, args, errno) in cases {
        assert_eq!(call(number, args), Err(errno), "{name}");
    }
    for (name, number, args) in [
        ("getppid", libc::SYS_getppid, [0; 3]),
        ("socket(AF_UNIX)", libc::SYS_socket, [AF_UNIX, STREAM, 0]),
        ("socket(AF_INET)", libc::SYS_socket, [AF_INET, STREAM, 0]),
        ("personality query", libc::SYS_personality, [0xffff_ffff, 0, 0]),
    ] {
        assert!(call(number, args).is_ok(), "{name}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_other_ways_into_the_kernel_are_closed() {
    assert_eq!(call(0x4000_0000 | libc::SYS_getpid, [0; 3]), Err(libc::ENOSYS), "x32");

    let mut status = 0;
    // SAFETY: the child makes system calls only and leaves by _exit, so it needs no lock that another thread
    // held when it was forked; the i386 getpid touches no memory and gives up eax; `status` may be written.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0, "fork: {}", io::Error::last_os_error());
        if child == 0 {
            if install(base_filter(Base::Default)).is_ok() {
                std::arch::asm!("int 0x80", inlateout("eax") 20 => _);
            }
            libc::_exit(0);
        }
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
    }
    assert!(libc::WIFSIGNALED(status), "an i386 call was carried out");
    // A kernel without IA32 emulation has no such gate: it sends SIGSEGV before any filter is asked.
    assert!([libc::SIGSYS, libc::SIGSEGV].contains(&libc::WTERMSIG(status)));
}

#[test]
fn programs_run_under_it() {
    let script = "set -e; test \"$(printf 'b\\na\\n' | sort | head -n1)\" = a; d=$(mktemp -d); mkfifo $d/p; \
        (echo hello > $d/p) & read y < $d/p; wait; rm -r $d; test $y = hello; ls -l / > /dev/null; \
        grep -q '^Seccomp:.*2' /proc/self/status";
    let status = in_a_thread(|| {
        install(base_filter(Base::Default)).expect("this kernel has seccomp filters");
        Command::new("/bin/sh").args(["-c", script]).status()
    });
    assert!(status.expect("a shell starts").success());
}
