//! The filter in a real kernel.

use std::io;
use std::process::Command;

use containust_policy::seccomp::{Base, HOST, Verdict, base_filter, numbers};

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

/// The kernel's own answer to every number that the table refuses whatever the arguments, and to those that it does not name.
/// What it allows is not called: that would do something.
#[test]
fn the_kernel_refuses_every_number_that_the_table_does() {
    let named: std::collections::BTreeMap<u32, &str> = numbers(HOST).collect();
    let mut refused = 0;
    for number in 0..600 {
        let verdict = named.get(&number).map(|name| Base::Default.row(name).expect("a row").verdict);
        let errno = match verdict {
            None => libc::ENOSYS,
            Some(Verdict::Refuse(errno)) => errno as i32,
            Some(_) => continue,
        };
        assert_eq!(call(number.into(), [-1; 3]), Err(errno), "{number} ({:?})", named.get(&number));
        refused += 1;
    }
    assert!(refused > 250, "only {refused} numbers are refused");
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

/// Interpreters and virtual machines that make threads, processes and sockets of their own. Those that this host has: one at least,
/// Perl, which Debian needs itself.
#[test]
fn runtimes_start_under_it() {
    let python = "import subprocess, threading, socket, ctypes, multiprocessing; t = threading.Thread(target=print); t.start(); t.join(); \
        a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'; assert subprocess.run(['true']).returncode == 0; print('works')";
    let perl = "my $p = fork; exit 0 unless $p; waitpid $p, 0; die if $?; system('true') == 0 or die; use Socket; \
        socketpair(A, B, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die; print 'works'";
    let node = "const { Worker } = require('worker_threads'); const w = new Worker('0', { eval: true }); w.on('exit', c => { \
        require('child_process').execFileSync('true'); require('net').createServer().listen(0, '127.0.0.1', function () { \
        this.close(); console.log(c === 0 ? 'works' : c); }); });";
    let mut ran = Vec::new();
    for (program, words, says) in [
        ("/usr/bin/perl", vec!["-e", perl], "works"),
        ("/usr/bin/python3", vec!["-c", python], "works"),
        ("/usr/bin/node", vec!["-e", node], "works"),
        ("/usr/bin/java", vec!["-Xshare:off", "--version"], ""),
    ] {
        if !std::path::Path::new(program).exists() {
            eprintln!("SKIPPED: needs {program}");
            continue;
        }
        let output = in_a_thread(|| {
            install(base_filter(Base::Default)).expect("this kernel has seccomp filters");
            Command::new(program).args(&words).output()
        });
        let output = output.expect("it starts");
        let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && told.contains(says), "{program}: {}: {told}", output.status);
        ran.push(program);
    }
    assert!(ran.contains(&"/usr/bin/perl"), "{ran:?}");
}
