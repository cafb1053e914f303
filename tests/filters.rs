//! Filters of system calls, capabilities and landlock, from inside of containers.
#![forbid(unsafe_code)]

use containust_tests::{Caller, Project};

/// One component under each base filter.
const THREE: &str = r#"
TEMPLATE base { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
COMPONENT default FROM base { seccomp = "default" }
COMPONENT strict FROM base { seccomp = "strict" }
COMPONENT compat FROM base { seccomp = "compat" }
"#;

const EPERM: i32 = libc::EPERM;
const ENOSYS: i32 = libc::ENOSYS;
const EFAULT: i32 = libc::EFAULT;
const EAFNOSUPPORT: i32 = libc::EAFNOSUPPORT;

/// A call, its arguments, and the error under `default`, `strict` and `compat`. What gets through to the kernel has arguments
/// with which it fails in a way of its own, or changes nothing.
type Row = (&'static str, i64, &'static [i64], [i32; 3]);

fn rows() -> Vec<Row> {
    const HIGH: i64 = 1 << 32;
    let mut rows: Vec<Row> = vec![
        ("ptrace(TRACEME)", libc::SYS_ptrace, &[0], [EPERM, EPERM, 0]),
        ("ptrace(ATTACH, 1)", libc::SYS_ptrace, &[16, 1], [EPERM; 3]),
        ("process_vm_readv", libc::SYS_process_vm_readv, &[1, 0, 0, 0, 0, 1], [EPERM, EPERM, libc::EINVAL]),
        ("chroot", libc::SYS_chroot, &[], [EPERM, EPERM, EFAULT]),
        ("name_to_handle_at", libc::SYS_name_to_handle_at, &[-100], [EPERM, EPERM, EFAULT]),
        ("personality(no randomisation)", libc::SYS_personality, &[0x4_0000], [EPERM, EPERM, 0]),
        ("the same with high bits", libc::SYS_personality, &[HIGH | 0x4_0000], [EPERM, EPERM, 0]),
        ("personality(UNAME26)", libc::SYS_personality, &[0x2_0000], [0, EPERM, 0]),
        ("personality(0)", libc::SYS_personality, &[0], [0; 3]),
        ("socket(netlink)", libc::SYS_socket, &[16, 3, 0], [0, EAFNOSUPPORT, 0]),
        ("the same with high bits", libc::SYS_socket, &[HIGH | 16, 3, 0], [0, EAFNOSUPPORT, 0]),
        ("socket(inet)", libc::SYS_socket, &[2, 1, 0], [0; 3]),
        ("socket(inet, TCP, close-on-exec)", libc::SYS_socket, &[2, 0x8_0001, 6], [0; 3]),
        ("socket(inet, UDP)", libc::SYS_socket, &[2, 2, 17], [0; 3]),
        ("socket(inet, ping)", libc::SYS_socket, &[2, 2, 1], [0; 3]),
        ("socket(inet, raw)", libc::SYS_socket, &[2, 3, 255], [EPERM; 3]),
        ("io_setup", libc::SYS_io_setup, &[], [EFAULT, ENOSYS, EFAULT]),
        ("msgget", libc::SYS_msgget, &[0, 0], [0, ENOSYS, 0]),
        ("mq_open", libc::SYS_mq_open, &[], [EFAULT, ENOSYS, EFAULT]),
        ("execveat", libc::SYS_execveat, &[-1], [EFAULT, ENOSYS, EFAULT]),
        ("adjtimex", libc::SYS_adjtimex, &[], [EFAULT, EPERM, EFAULT]),
        ("ioprio_get", libc::SYS_ioprio_get, &[1, 0], [0, EPERM, 0]),
        ("prctl(SET_SYSCALL_USER_DISPATCH, off)", libc::SYS_prctl, &[59], [0, EPERM, 0]),
        ("prctl(GET_DUMPABLE)", libc::SYS_prctl, &[3], [0; 3]),
        // A program may confine itself further, whatever it runs under.
        ("seccomp(SET_MODE_FILTER, null)", libc::SYS_seccomp, &[1], [EFAULT; 3]),
        ("seccomp(SET_MODE_FILTER with TSYNC, null)", libc::SYS_seccomp, &[1, 1], [EFAULT; 3]),
        ("seccomp(SET_MODE_FILTER with NEW_LISTENER, null)", libc::SYS_seccomp, &[1, 8], [EFAULT; 3]),
        ("TIOCSTI", libc::SYS_ioctl, &[0, 0x5412], [EPERM; 3]),
        ("TIOCSTI with high bits", libc::SYS_ioctl, &[0, HIGH | 0x5412], [EPERM; 3]),
        ("TIOCLINUX", libc::SYS_ioctl, &[0, 0x541c], [EPERM; 3]),
        ("clone(NEWUSER)", libc::SYS_clone, &[libc::CLONE_NEWUSER as i64], [EPERM; 3]),
        ("the same with high bits", libc::SYS_clone, &[HIGH | libc::CLONE_NEWUSER as i64], [EPERM; 3]),
        ("unshare", libc::SYS_unshare, &[libc::CLONE_NEWUSER as i64], [EPERM; 3]),
        ("prlimit(1)", libc::SYS_prlimit64, &[1, 7], [EPERM; 3]),
        ("the same with high bits", libc::SYS_prlimit64, &[HIGH | 1, 7], [EPERM; 3]),
        ("clone3", libc::SYS_clone3, &[], [ENOSYS; 3]),
        ("io_uring_setup", libc::SYS_io_uring_setup, &[1], [ENOSYS; 3]),
        ("io_uring_enter", libc::SYS_io_uring_enter, &[-1], [ENOSYS; 3]),
        ("io_uring_register", libc::SYS_io_uring_register, &[-1], [ENOSYS; 3]),
        ("a number of the future", 9999, &[], [ENOSYS; 3]),
    ];
    // Each socket family that reaches past the network namespace or is hardly tested: PACKET, ALG, VSOCK, XDP, KEY, BLUETOOTH,
    // CAN, TIPC, RDS, SMC, AX25, X25, APPLETALK, IPX, RXRPC, NFC, KCM, QIPCRTR, PPPOX, MCTP.
    const FAMILIES: [[i64; 1]; 20] = [
        [17],
        [38],
        [40],
        [44],
        [15],
        [31],
        [29],
        [30],
        [21],
        [43],
        [3],
        [9],
        [5],
        [4],
        [33],
        [39],
        [41],
        [42],
        [24],
        [45],
    ];
    rows.extend(FAMILIES.iter().map(|family| ("socket", libc::SYS_socket, family.as_slice(), [EAFNOSUPPORT; 3])));
    let refused = [
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("keyctl", libc::SYS_keyctl),
        ("add_key", libc::SYS_add_key),
        ("request_key", libc::SYS_request_key),
        ("kexec_load", libc::SYS_kexec_load),
        ("kexec_file_load", libc::SYS_kexec_file_load),
        ("init_module", libc::SYS_init_module),
        ("finit_module", libc::SYS_finit_module),
        ("delete_module", libc::SYS_delete_module),
        ("reboot", libc::SYS_reboot),
        ("acct", libc::SYS_acct),
        ("clock_settime", libc::SYS_clock_settime),
        ("settimeofday", libc::SYS_settimeofday),
        ("syslog", libc::SYS_syslog),
        ("vhangup", libc::SYS_vhangup),
        ("move_pages", libc::SYS_move_pages),
        ("migrate_pages", libc::SYS_migrate_pages),
        ("quotactl_fd", libc::SYS_quotactl_fd),
        ("swapoff", libc::SYS_swapoff),
        ("mount", libc::SYS_mount),
        ("umount2", libc::SYS_umount2),
        ("pivot_root", libc::SYS_pivot_root),
        ("open_tree", libc::SYS_open_tree),
        ("move_mount", libc::SYS_move_mount),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("fsopen", libc::SYS_fsopen),
        ("setns", libc::SYS_setns),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("fanotify_init", libc::SYS_fanotify_init),
        ("sethostname", libc::SYS_sethostname),
    ];
    rows.extend(refused.map(|(name, number)| (name, number, &[][..], [EPERM; 3])));
    #[cfg(target_arch = "x86_64")]
    rows.extend([
        ("iopl", libc::SYS_iopl, &[3][..], [EPERM; 3]),
        ("ioperm", libc::SYS_ioperm, &[0, 1, 1], [EPERM; 3]),
        ("uselib", libc::SYS_uselib, &[], [ENOSYS; 3]),
        ("x32 getpid", 0x4000_0000 | libc::SYS_getpid, &[], [ENOSYS; 3]),
        ("x32 ioctl", 0x4000_0000 | 514, &[], [ENOSYS; 3]),
    ]);
    rows
}

/// A call, as the probe is told of it.
fn word((_, number, arguments, _): &Row) -> String {
    let all: Vec<String> = std::iter::once(number).chain(*arguments).map(i64::to_string).collect();
    all.join(":")
}

/// What the kernel answers to these calls in a component.
fn answers(project: &Project, component: &str, rows: &[Row]) -> Vec<i32> {
    let words: Vec<String> = rows.iter().map(word).collect();
    let args = ["exec", component, "ctst-probe", "calls"].into_iter().map(str::to_owned).chain(words);
    let done = project.ctst(args).ok();
    done.stdout.lines().map(|line| line.parse().expect("a number")).collect()
}

#[test]
fn each_filter_answers_as_its_table_says() {
    for caller in Caller::all() {
        let project = Project::new(&caller, THREE);
        project.up();
        let rows = rows();
        for (at, name) in ["default", "strict", "compat"].into_iter().enumerate() {
            let found = answers(&project, name, &rows);
            assert_eq!(found.len(), rows.len());
            let wrong: Vec<String> = rows
                .iter()
                .zip(found)
                .filter(|((.., wanted), found)| wanted[at] != *found)
                .map(|((call, _, arguments, wanted), found)| {
                    format!("{call} {arguments:?}: {found}, not {}", wanted[at])
                })
                .collect();
            assert!(wrong.is_empty(), "{name} as {}: {wrong:#?}", caller.name);
            if cfg!(target_arch = "x86_64") {
                let done = project.ctst(["exec", name, "ctst-probe", "i386"]);
                // A kernel without IA32 emulation sends SIGSEGV before any filter is asked.
                assert!([128 + libc::SIGSYS, 128 + libc::SIGSEGV].contains(&done.code), "{name}: {done}");
                assert!(!done.stdout.contains("carried out"), "{done}");
            }
        }
        project.stop();
    }
}

/// Protocols of IP that the kernel would load for whoever asks. Under `compat` the answer is this host's own.
#[test]
fn odd_protocols_of_ip_are_for_compat_alone() {
    const NET_RAW: &str = r#"cap_add = ["NET_RAW"] "#;
    let (eproto, etype) = (libc::EPROTONOSUPPORT, libc::ESOCKTNOSUPPORT);
    let socket = libc::SYS_socket;
    let mut rows: Vec<Row> = Vec::new();
    for (name, arguments, error) in [
        ("SCTP", &[2_i64, 1, 132][..], eproto),
        ("SCTP by its type", &[2, 5, 0], etype),
        ("MPTCP", &[2, 1, 262], eproto),
        ("MPTCP with high bits", &[2 | 1 << 32, 1 | 1 << 40, 262 | 1 << 63], eproto),
        ("MPTCP of IPv6, close-on-exec", &[10, 0x8_0001, 262], eproto),
        ("SMC", &[2, 1, 256], eproto),
        ("UDPLITE", &[2, 2, 136], eproto),
        ("DCCP", &[2, 6, 33], etype),
        ("DCCP by its type", &[2, 6, 0], etype),
        // With NET_RAW this would be a socket of AF_PACKET.
        ("SOCK_PACKET", &[2, 10, 0x300], etype),
    ] {
        rows.push((name, socket, arguments, [error; 3]));
    }
    rows.push(("raw, with NET_RAW", socket, &[2, 3, 255], [0; 3]));
    rows.push(("raw ICMP, with NET_RAW", socket, &[2, 0x8_0003, 1], [0; 3]));
    let caller = Caller::ordinary();
    let project = Project::new(&caller, &THREE.replace("command", &format!("{NET_RAW}command")));
    project.up();
    for name in ["default", "strict"] {
        for (row, found) in rows.iter().zip(answers(&project, name, &rows)) {
            assert_eq!(found, row.3[0], "{} under {name}", row.0);
        }
    }
    let compat = answers(&project, "compat", &rows);
    assert_eq!(compat[9], 0, "SOCK_PACKET");
    // The filter is in the way of none of them, whatever this kernel has.
    let host = std::process::Command::new(containust_tests::programs().with_file_name("rootfs").join("bin/ctst-probe"))
        .args(["calls"].map(str::to_owned).into_iter().chain(rows[..9].iter().map(word)))
        .output()
        .expect("run the probe");
    let host = String::from_utf8(host.stdout).expect("text");
    let host: Vec<i32> = host.lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(compat[..9], host);
    project.stop();
}

#[test]
fn a_looser_filter_wants_a_yes_and_a_change_a_new_container() {
    let text = THREE.replace("COMPONENT default", "TEMPLATE default").replace("COMPONENT strict", "TEMPLATE strict");
    let project = Project::new(&Caller::ordinary(), &text);
    let plan = project.ctst(["plan"]).ok().stdout;
    assert!(plan.contains("compat: the filter compat") && plan.contains("(new)"), "{plan}");
    project.ctst(["run", "-d"]).fails(125, &["a person has to allow", "the filter compat", "--yes"]);
    project.up();
    let plan = project.ctst(["plan"]).ok().stdout;
    assert!(plan.contains("nothing to do"), "{plan}");
    project.ctst(["run", "-d"]).ok();
    project.write("stack.ctst", &project_text(&project).replace("\"compat\"", "\"strict\""));
    let plan = project.ctst(["plan"]).ok().stdout;
    assert!(plan.contains("replace") && plan.contains("seccomp filter changed: compat -> strict"), "{plan}");
    project.ctst(["run", "-d", "--wait", "--allow-destroy"]).ok();
    assert_eq!(answers(&project, "compat", &[("chroot", libc::SYS_chroot, &[], [0; 3])]), [EPERM]);
    project.stop();
}

fn project_text(project: &Project) -> String {
    std::fs::read_to_string(project.folder().join("stack.ctst")).expect("read the file")
}

/// Programs of this host and busybox, with threads, children, sockets, names, files and signals.
#[test]
fn programs_work_under_strict() {
    const PYTHON: &str = "
import os, socket, subprocess, sys, tempfile, threading, signal, time, json, select, ctypes.util
out = []
t = threading.Thread(target=lambda: out.append('thread')); t.start(); t.join()
out.append(subprocess.run([sys.executable, '-c', 'print(6*7)'], capture_output=True, text=True).stdout.strip())
s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()
c = socket.create_connection(s.getsockname()); a, _ = s.accept(); a.sendall(b'tcp'); out.append(c.recv(9).decode())
out.append(socket.getaddrinfo('localhost', 80, type=socket.SOCK_STREAM)[0][4][0])
with tempfile.NamedTemporaryFile() as f: f.write(b'x' * 70000); f.flush(); out.append(str(os.stat(f.name).st_size))
a, b = socket.socketpair(); a.send(b'1'); e = select.epoll(); e.register(b, select.EPOLLIN); out.append(str(len(e.poll(1))))
signal.signal(signal.SIGALRM, lambda *_: out.append('alarm')); signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(0.2)
os.mkfifo('/tmp/fifo'); os.chmod('/tmp/fifo', 0o600); os.rename('/tmp/fifo', '/tmp/other')
print('python', *out)
";
    const PERL: &str = "use Socket; socketpair(A, B, AF_UNIX, SOCK_STREAM, 0) or die $!; syswrite(A, 'ok'); sysread(B, $_, 2); \
        my $p = fork // die; exit 7 unless $p; waitpid($p, 0); my $c = $? >> 8; my $n = gethostbyname('localhost'); \
        print join(' ', 'perl', $_, $c, inet_ntoa($n)), qq(\\n);";
    const SHELL: &str = "set -e; mkfifo /tmp/p; (echo fifo > /tmp/p) & read x < /tmp/p; wait; tar -cf /tmp/t.tar /etc; \
        y=$(printf 'b\\na\\n' | sort | head -n1); z=$(su somebody -s /bin/sh -c 'id -u'); nc -l -p 7777 -e echo tcp & sleep 1; \
        w=$(nc 127.0.0.1 7777 < /dev/null); echo busybox $x $y $z $w";
    let text = format!(
        r#"
TEMPLATE base {{ seccomp = "strict" network = "none" }}
JOB python FROM base {{ image = "host:///usr/bin/python3" include = ["/usr/lib/python3*/**"] command = ["-c", """{PYTHON}"""] }}
JOB perl FROM base {{ image = "host:///usr/bin/perl" include = ["/usr/share/perl/**", "/usr/lib/*-linux-gnu/perl*/**"] command = ["-e", """{perl}"""] }}
JOB shell FROM base {{ image = "file://ROOTFS" command = ["/bin/sh", "-c", """{shell}"""] }}
"#,
        perl = PERL.replace("${", "$${"),
        shell = SHELL.replace("${", "$${"),
    );
    for caller in [Caller::ordinary()] {
        let project = Project::new(&caller, &text);
        let done = project.ctst(["run", "--yes"]);
        assert_eq!(done.code, 0, "{done}");
        for (job, said) in [
            ("python", "python thread 42 tcp 127.0.0.1 70000 1 alarm"),
            ("perl", "perl ok 7 127.0.0.1"),
            ("shell", "busybox fifo a 1000 tcp"),
        ] {
            let log = project.logs(job);
            assert!(log.contains(said) || (job == "python" && log.contains("::1")), "{job}: {log}");
        }
        project.assert_nothing_left();
    }
}

#[test]
fn a_profile_narrows_and_cannot_widen() {
    let text = r#"
COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] seccomp = "./profile.json" readonly = false }
"#;
    let profile = |errno: u32| {
        format!(
            r#"{{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
  {{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": {errno} }},
  {{ "names": ["mount", "ptrace", "unshare", "clone3"], "action": "SCMP_ACT_ALLOW" }},
  {{ "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "args": [{{ "index": 0, "value": 10, "op": "SCMP_CMP_EQ" }}] }},
  {{ "names": ["acct"], "action": "SCMP_ACT_KILL_PROCESS" }}
] }}"#
        )
    };
    let rows: [Row; 7] = [
        ("mkdir", libc::SYS_mkdirat, &[-1], [22; 3]),
        ("mount", libc::SYS_mount, &[], [EPERM; 3]),
        ("ptrace", libc::SYS_ptrace, &[], [EPERM; 3]),
        ("clone3", libc::SYS_clone3, &[], [ENOSYS; 3]),
        ("socket(inet6)", libc::SYS_socket, &[10, 1], [95; 3]),
        ("the same with high bits", libc::SYS_socket, &[1 << 32 | 10, 1], [95; 3]),
        ("socket(inet)", libc::SYS_socket, &[2, 1], [0; 3]),
    ];
    for caller in Caller::all() {
        let project = Project::new(&caller, text);
        project.ctst(["plan"]).fails(125, &["one", "seccomp profile ./profile.json", "No such file"]);
        project.write(
            "profile.json",
            "{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\",\n  \"syscalls\": [{ \"names\": 5 }]\n}",
        );
        project.ctst(["plan"]).fails(125, &["./profile.json", "line 3 column", "invalid type"]);
        project.write("profile.json", &profile(99999));
        project.ctst(["run", "-d", "--yes"]).fails(125, &["syscalls[0].errnoRet is 99999"]);

        project.write("profile.json", &profile(22));
        project.up();
        let found = answers(&project, "one", &rows);
        assert_eq!(found, rows.map(|(.., wanted)| wanted[0]), "as {}", caller.name);
        let done = project.ctst(["exec", "one", "ctst-probe", "calls", &libc::SYS_acct.to_string()]);
        assert_eq!(done.code, 128 + libc::SIGSYS, "{done}");
        // The base filter and the profile (proc_pid_status(5)).
        let status = project.ctst(["exec", "one", "grep", "^Seccomp", "/proc/self/status"]).ok().stdout;
        assert!(status.contains("Seccomp:\t2") && status.contains("Seccomp_filters:\t2"), "{status}");

        // Other bytes are another container; the same ones are not.
        project.ctst(["run", "-d"]).ok();
        project.write("profile.json", &profile(28));
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(plan.contains("replace") && plan.contains("seccomp profile changed: ./profile.json (sha256"), "{plan}");
        project.ctst(["run", "-d", "--wait", "--allow-destroy"]).ok();
        assert_eq!(answers(&project, "one", &rows[..1]), [28]);
        // The program is in the record: a start needs no file.
        project.ctst(["stop", "one"]).ok();
        project.write("profile.json", &profile(28));
        project.ctst(["run", "-d", "--wait"]).ok();
        assert_eq!(answers(&project, "one", &rows[..1]), [28]);
        project.stop();
    }
}

const DEFAULT: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31;

#[test]
fn capabilities_are_those_that_were_asked_for() {
    const RAW: u64 = 1 << 13;
    let text = r#"
TEMPLATE base { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] stop { grace = 1s } }
COMPONENT none FROM base { cap_drop = ["ALL"] }
COMPONENT some FROM base { cap_drop = "all" cap_add = ["CAP_CHOWN", "net_raw"] }
COMPONENT fewer FROM base { cap_drop = ["SETPCAP", "CAP_KILL", "SETUID"] }
COMPONENT more FROM base { cap_add = ["NET_RAW"] }
"#;
    for caller in Caller::all() {
        let project = Project::new(&caller, text);
        project.ctst(["run", "-d"]).fails(125, &["a person has to allow", "more: the capability NET_RAW", "--yes"]);
        project.up();
        for (component, wanted) in
            [("none", 0), ("some", 1 | RAW), ("fewer", DEFAULT & !(1 << 8 | 1 << 5 | 1 << 7)), ("more", DEFAULT | RAW)]
        {
            let report = project.report(&[], component);
            // The main process, too.
            let main = project.ctst(["exec", component, "grep", "^Cap", "/proc/2/status"]);
            for set in ["CapBnd", "CapPrm", "CapEff"] {
                assert_eq!(report.capabilities(set), wanted, "{component} {set} as {}", caller.name);
                assert!(main.stdout.contains(&format!("{set}:\t{wanted:016x}")), "{component} {main}");
            }
            for set in ["CapInh", "CapAmb"] {
                assert_eq!(report.capabilities(set), 0, "{component} {set}");
            }
            let raw =
                answers(&project, component, &[("socket(inet, raw, icmp)", libc::SYS_socket, &[2, 3, 1], [0; 3])]);
            assert_eq!(raw, [if wanted & RAW == 0 { EPERM } else { 0 }], "{component} as {}", caller.name);
            assert_ne!(report.attempts["read /proc/1/environ"], 0);
            assert_ne!(report.attempts["write /proc/1/mem"], 0);
        }
        if caller.range().is_some() || caller.uid == 0 {
            let report = project.report(&["-u", "somebody"], "none");
            assert_eq!((report.capabilities("CapBnd"), report.capabilities("CapEff")), (0, 0));
            let report = project.report(&["-u", "somebody"], "more");
            assert_eq!((report.capabilities("CapBnd"), report.capabilities("CapEff")), (DEFAULT | RAW, 0));
        }
        // What its root may not do, its pid 1 still can.
        let before = std::time::Instant::now();
        project.ctst(["stop"]).ok();
        assert!(before.elapsed() < std::time::Duration::from_secs(60));
        project.stop();
    }
}

#[test]
fn capabilities_beyond_the_ceiling_are_refused_with_the_reason() {
    for (name, why) in [
        ("SYS_ADMIN", "mounts and namespaces"),
        ("CAP_NET_ADMIN", "another one's address"),
        ("SYS_MODULE", "loads code into the kernel"),
        ("SYS_RESOURCE", "from the host's user namespace only"),
    ] {
        let text = format!(
            "COMPONENT one {{ image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"] cap_add = [\"{name}\"] }}"
        );
        let project = Project::new(&Caller::ordinary(), &text);
        let bare = name.trim_start_matches("CAP_");
        for args in [&["plan"][..], &["run", "-d", "--yes"]] {
            project.ctst(args).fails(125, &["component one: add the capability", bare, "no container gets it", why]);
        }
    }
}

#[test]
fn landlock_restricts_what_runs_inside() {
    let text = r#"
COMPONENT one {
  image    = "file://ROOTFS"
  command  = ["/bin/sh", "-c", "cat /etc/group > /tmp/main 2>&1; exec /bin/ctst-probe hold"]
  readonly = false
  landlock { execute = ["/bin"], read = "/etc/passwd", write = ["/tmp", "/dev", "/proc"], bind = 80, connect = [80, 81], scope = ["signals", "abstract_sockets"] }
  healthcheck { command = ["/bin/sh", "-c", "test -r /etc/passwd && ! cat /etc/group"], interval = 1s }
}
COMPONENT two { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] landlock { connect = [] } }
"#;
    for caller in Caller::all() {
        let project = Project::new(&caller, text);
        project.up();
        let sh = |component: &str, script: &str| project.ctst(["exec", component, "/bin/sh", "-c", script]);
        let allowed =
            |script: &str| assert_eq!(sh("one", script).code, 0, "{script} as {}: {}", caller.name, sh("one", script));
        let denied = |component: &str, script: &str, why: &str| {
            let done = sh(component, script);
            let said = format!("{}{}", done.stdout, done.stderr);
            assert!(done.code != 0 && said.contains(why), "{script} as {}: {done}", caller.name);
        };
        const DENIED: &str = "Permission denied";
        allowed("cat /etc/passwd");
        denied("one", "cat /etc/group", DENIED);
        denied("one", "ls /etc", DENIED);
        denied("one", "echo x > /srv/file", DENIED);
        denied("one", "echo x >> /etc/passwd", DENIED);
        denied("one", "mkdir /run/x", DENIED);
        allowed("echo x > /tmp/file && cat /tmp/file && mkdir /tmp/dir && mv /tmp/file /tmp/dir/ && rm -r /tmp/dir");
        // A program can be written, but not run from there.
        denied("one", "cp /bin/busybox /tmp/busybox && chmod 755 /tmp/busybox && /tmp/busybox true", DENIED);
        // The main process met the same.
        denied("one", "grep -v ^root /tmp/main | grep -c . && cat /tmp/main >&2; exit 1", DENIED);
        denied("one", "nc -l -p 81 < /dev/null", DENIED);
        denied("one", "nc 127.0.0.1 82 < /dev/null", DENIED);
        denied("one", "nc 127.0.0.1 81 < /dev/null", "refused");
        allowed("(sleep 1; nc 127.0.0.1 80 < /dev/null) & nc -l -p 80 < /dev/null");
        denied("two", "nc 127.0.0.1 80 < /dev/null", DENIED);
        allowed("sleep 9 & kill $!");
        denied("one", "kill -0 2", "not permitted");
        // No symbolic link of the container's leads further.
        denied("one", "ln -s /etc/group /tmp/link && cat /tmp/link", DENIED);
        assert_eq!(project.status("one")["health"], "healthy", "{}", project.status("one"));
        // pid 1 is not bound by it: it stops and counts what the processes among themselves may not.
        project.ctst(["stats", "--format", "json", "one"]).ok();
        project.stop();
    }
}

#[test]
fn landlock_that_cannot_be_had_is_refused() {
    let with = |landlock: &str| {
        format!("COMPONENT one {{ image = \"file://ROOTFS\" command = [\"/bin/true\"] landlock {{ {landlock} }} }}")
    };
    let project = Project::new(&Caller::ordinary(), &with("read = \"/none\""));
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["restrict by landlock to", "/none", "No such file"]);
    project.stop();
    let project = Project::new(&Caller::ordinary(), &with("read = \"/bin\""));
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(126, &["does `landlock` allow it"]);
    project.stop();
    let project = Project::new(&Caller::ordinary(), &with("execute = \"/proc/self/exe\""));
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["/proc/self/exe"]);
    project.stop();
}
