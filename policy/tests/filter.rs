//! The compiled filters do what the table says.

use std::collections::{BTreeMap, BTreeSet};

use containust_policy::capabilities;
use containust_policy::seccomp::{
    Arch, Base, Check, Clause, DEFAULT, Errno, Instruction, Own, Verdict, X32_BIT, filter_for, numbers, own_filter_for,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

mod bpf;
use bpf::{ALLOW, AUDIT_ARM, AUDIT_I386, KILL_PROCESS, audit, fails, run};

const ARCHES: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];

/// Every base filter on every processor.
fn all() -> impl Iterator<Item = (Base, Arch)> {
    Base::ALL.into_iter().flat_map(|base| ARCHES.map(|arch| (base, arch)))
}

/// The table, keyed by number.
fn table(base: Base, arch: Arch) -> BTreeMap<u32, (&'static str, Verdict)> {
    let verdict = |name| base.row(name).unwrap_or_else(|| panic!("no row names {name}")).verdict;
    numbers(arch).map(|(number, name)| (number, (name, verdict(name)))).collect()
}

fn number(arch: Arch, name: &str) -> u32 {
    numbers(arch).find(|&(_, known)| known == name).unwrap_or_else(|| panic!("no call is named {name}")).0
}

fn with_argument(index: u8, value: u64) -> [u64; 6] {
    let mut args = [0; 6];
    args[usize::from(index)] = value;
    args
}

/// What the table says of a call, evaluated without the compiler.
fn expected(verdict: Option<Verdict>, args: [u64; 6]) -> u32 {
    match verdict {
        None => fails(Errno::Enosys),
        Some(Verdict::Allow) => ALLOW,
        Some(Verdict::Refuse(errno)) => fails(errno),
        Some(Verdict::AllowIf { argument, check, otherwise }) => {
            if passes(argument, check, args) {
                ALLOW
            } else {
                fails(otherwise)
            }
        }
        Some(Verdict::AllowIfAll(clauses)) => {
            let holds = |clause: &Clause| clause.any.iter().any(|&(argument, check)| passes(argument, check, args));
            clauses.iter().find(|clause| !holds(clause)).map_or(ALLOW, |clause| fails(clause.otherwise))
        }
    }
}

fn passes(argument: u8, check: Check, args: [u64; 6]) -> bool {
    let value = args[usize::from(argument)] as u32;
    match check {
        Check::WithoutBits(mask) => value & mask == 0,
        Check::BitsIn(mask, values) => values.contains(&(value & mask)),
        Check::In(values) => values.contains(&value),
        Check::NotIn(values) => !values.contains(&value),
    }
}

#[test]
fn every_number_gets_the_verdict_of_the_table() {
    for (base, arch) in all() {
        let (program, table) = (filter_for(base, arch), table(base, arch));
        let far = [X32_BIT - 1, X32_BIT, X32_BIT + 39, X32_BIT + 512, X32_BIT * 2, u32::MAX];
        for number in (0..1024).chain(X32_BIT..X32_BIT + 1024).chain(far) {
            let verdict = table.get(&number).map(|&(_, verdict)| verdict);
            for args in [[0; 6], [u64::MAX; 6]] {
                let (answer, _) = run(program, audit(arch), number, args);
                assert_eq!(answer, expected(verdict, args), "{base:?} {arch:?} {number} {args:x?}");
            }
        }
    }
}

#[test]
fn arguments_are_compared_by_their_low_32_bits_and_no_others_are_looked_at() {
    let mut seen = BTreeSet::new();
    for (base, arch) in all() {
        for (&number, &(name, verdict)) in &table(base, arch) {
            let Verdict::AllowIf { argument, check, .. } = verdict else { continue };
            seen.insert((base.name(), name));
            let listed: Vec<u32> = match check {
                Check::WithoutBits(mask) | Check::BitsIn(mask, _) => vec![mask],
                Check::In(values) | Check::NotIn(values) => values.to_vec(),
            };
            let near = listed.iter().flat_map(|&v| [v, v.wrapping_sub(1), v.wrapping_add(1)]);
            let bits = (0..32).map(|bit| 1 << bit);
            for low in near.chain(bits).chain(0..256) {
                let want = expected(Some(verdict), with_argument(argument, low.into()));
                for high in [0, 1, 0x8000_0000, 0xffff_ffff_u64] {
                    for others in [0, u64::MAX] {
                        let mut args = [others; 6];
                        args[usize::from(argument)] = high << 32 | u64::from(low);
                        let (answer, _) = run(filter_for(base, arch), audit(arch), number, args);
                        assert_eq!(answer, want, "{base:?} {arch:?} {name} {args:x?}");
                    }
                }
            }
        }
    }
    let judged = ["clone", "ioctl", "personality", "prlimit64"];
    let mut known: BTreeSet<_> = judged.iter().flat_map(|&name| Base::ALL.map(|base| (base.name(), name))).collect();
    known.extend([("strict", "prctl"), ("compat", "socket"), ("compat", "socketpair")]);
    assert_eq!(seen, known);
}

/// Every combination of family, type and protocol that could matter, against what is written here: not by the table.
#[test]
fn sockets_are_of_these_families_types_and_protocols() {
    const NOT: [Errno; 3] = [Errno::Eafnosupport, Errno::Esocktnosupport, Errno::Eprotonosupport];
    for (base, arch) in all() {
        let ip = |family: u32| [libc::AF_INET, libc::AF_INET6].contains(&(family as i32));
        let want = |family: u32, kind: u32, protocol: u32| {
            let netlink = family == libc::AF_NETLINK as u32;
            if !(ip(family) || family == libc::AF_UNIX as u32 || netlink && base != Base::Strict) {
                fails(NOT[0])
            } else if base == Base::Compat || !ip(family) {
                ALLOW
            } else if ![libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW].contains(&(kind as i32 & 0xf)) {
                fails(NOT[1])
            } else if kind & 0xf != 3 && ![0, 1, 6, 17, 58].contains(&protocol) {
                fails(NOT[2])
            } else {
                ALLOW
            }
        };
        let flags = [0, libc::SOCK_CLOEXEC as u32, libc::SOCK_NONBLOCK as u32, 0x10, 1 << 31];
        let (bits, more) = ((0..32).map(|bit| 1 << bit), [255, 256, 262, 263, u32::MAX]);
        let protocols: Vec<u32> = (0..=140).chain(bits).chain(more).collect();
        for name in ["socket", "socketpair"] {
            let number = number(arch, name);
            for family in (0..50).chain([0x102, 1 << 16 | 2, 1 << 31 | 2, u32::MAX]) {
                for kind in (0..16).flat_map(|kind| flags.map(|flags| kind | flags)) {
                    for &protocol in &protocols {
                        for high in [0, 1 << 32, u64::MAX << 32] {
                            let args = [family, kind, protocol, 9, 9, 9].map(|low| u64::from(low) | high);
                            let (answer, _) = run(filter_for(base, arch), audit(arch), number, args);
                            assert_eq!(answer, want(family, kind, protocol), "{base:?} {arch:?} {name} {args:x?}");
                        }
                    }
                }
            }
        }
    }
}

/// The rows that the escape suite relies on, written out: a slip in the table cannot move these
/// with it.
#[test]
fn the_dangerous_calls_are_refused_and_the_needed_ones_are_not() {
    let each = |names: &str, want| {
        for arch in ARCHES {
            for name in names.split_ascii_whitespace() {
                let (answer, _) = run(filter_for(Base::Default, arch), audit(arch), number(arch, name), [0; 6]);
                assert_eq!(answer, want, "{arch:?} {name}");
            }
        }
    };
    each(
        "bpf perf_event_open userfaultfd keyctl add_key request_key kexec_load kexec_file_load \
         init_module finit_module delete_module reboot acct clock_settime settimeofday syslog \
         vhangup move_pages migrate_pages mbind kcmp quotactl quotactl_fd swapon swapoff mount \
         umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree open_tree_attr \
         move_mount mount_setattr unshare setns open_by_handle_at name_to_handle_at \
         fanotify_init fanotify_mark ptrace process_vm_readv process_vm_writev pidfd_getfd \
         sethostname setdomainname",
        fails(Errno::Eperm),
    );
    each("clone3 io_uring_setup io_uring_enter io_uring_register", fails(Errno::Enosys));
    each(
        "read write openat openat2 close close_range fstat newfstatat statx getdents64 execve \
         execveat wait4 waitid kill exit_group recvmsg sendmsg ppoll signalfd4 pipe2 pidfd_open \
         pidfd_send_signal setuid setgid setgroups setresuid setresgid capget capset prctl \
         seccomp fchown landlock_create_ruleset landlock_add_rule landlock_restrict_self \
         sched_setaffinity futex futex_waitv futex_wait futex_wake futex_requeue rseq \
         membarrier memfd_create fchmodat2 cachestat mseal map_shadow_stack getxattrat \
         getrandom prlimit64 epoll_pwait2 timer_create mknodat accept4 shmget mq_open",
        ALLOW,
    );

    let ask = |name, index, value| {
        run(
            filter_for(Base::Default, Arch::X86_64),
            audit(Arch::X86_64),
            number(Arch::X86_64, name),
            with_argument(index, value),
        )
        .0
    };
    for request in [libc::TIOCSTI, libc::TIOCSTI | 1 << 32, libc::TIOCLINUX, libc::TIOCSETD] {
        assert_eq!(ask("ioctl", 1, request), fails(Errno::Eperm), "{request:#x}");
    }
    for request in [libc::TIOCGPTPEER, libc::TIOCSCTTY, libc::TIOCSWINSZ, libc::FIONREAD, libc::TCGETS] {
        assert_eq!(ask("ioctl", 1, request), ALLOW, "{request:#x}");
    }
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    for flag in namespaces {
        assert_eq!(ask("clone", 0, (flag | libc::SIGCHLD) as u64), fails(Errno::Eperm), "{flag:#x}");
    }
    let thread = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    assert_eq!(ask("clone", 0, thread as u64), ALLOW);
    assert_eq!(ask("clone", 0, (libc::CLONE_PIDFD | libc::CLONE_VFORK | libc::SIGCHLD) as u64), ALLOW);
    for (family, answer) in [
        (libc::AF_UNIX, ALLOW),
        (libc::AF_INET, ALLOW),
        (libc::AF_INET6, ALLOW),
        (libc::AF_NETLINK, ALLOW),
        (libc::AF_VSOCK, fails(Errno::Eafnosupport)),
        (libc::AF_PACKET, fails(Errno::Eafnosupport)),
        (libc::AF_ALG, fails(Errno::Eafnosupport)),
    ] {
        for name in ["socket", "socketpair"] {
            let (program, number) = (filter_for(Base::Default, Arch::X86_64), number(Arch::X86_64, name));
            let args = [family as u64, libc::SOCK_STREAM as u64, 0, 0, 0, 0];
            assert_eq!(run(program, audit(Arch::X86_64), number, args).0, answer, "family {family}");
        }
    }
    assert_eq!(ask("personality", 0, libc::ADDR_NO_RANDOMIZE as u64), fails(Errno::Eperm));
    assert_eq!(ask("personality", 0, 0xffff_ffff), ALLOW);
}

#[test]
fn a_foreign_processor_is_killed() {
    for (base, arch) in all() {
        for foreign in [AUDIT_I386, AUDIT_ARM, 0, u32::MAX, !audit(arch)] {
            for number in 0..1024 {
                assert_eq!(run(filter_for(base, arch), foreign, number, [0; 6]).0, KILL_PROCESS);
            }
        }
    }
    assert_eq!(run(filter_for(Base::Default, Arch::X86_64), audit(Arch::Aarch64), 0, [0; 6]).0, KILL_PROCESS);
    assert_eq!(run(filter_for(Base::Default, Arch::Aarch64), audit(Arch::X86_64), 0, [0; 6]).0, KILL_PROCESS);
}

/// The same table as a linear list by seccompiler alone, which shares no code with our tree.
#[test]
fn the_tree_agrees_with_a_linear_filter() {
    for (base, arch) in all() {
        let table = table(base, arch);
        let linear = |wanted: Verdict, answer: SeccompAction| {
            let rules = table
                .iter()
                .filter(|&(_, &(_, verdict))| verdict == wanted)
                .map(|(&number, _)| (i64::from(number), Vec::new()))
                .collect();
            let target = match arch {
                Arch::X86_64 => TargetArch::x86_64,
                Arch::Aarch64 => TargetArch::aarch64,
            };
            let filter = SeccompFilter::new(rules, SeccompAction::Trap, answer, target).expect("two different actions");
            let program: BpfProgram = filter.try_into().expect("within the kernel's limit");
            program
                .into_iter()
                .map(|op| Instruction { code: op.code, jt: op.jt, jf: op.jf, k: op.k })
                .collect::<Vec<_>>()
        };
        let allowed = linear(Verdict::Allow, SeccompAction::Allow);
        let eperm = linear(Verdict::Refuse(Errno::Eperm), SeccompAction::Errno(Errno::Eperm as u32));
        let (mut tree_steps, mut list_steps) = (0, 0);
        for number in 0..1024 {
            let ask = |program: &[Instruction]| run(program, audit(arch), number, [0; 6]).0;
            tree_steps += run(filter_for(base, arch), audit(arch), number, [0; 6]).1;
            list_steps += run(&allowed, audit(arch), number, [0; 6]).1;
            if matches!(table.get(&number), Some((_, Verdict::AllowIf { .. } | Verdict::AllowIfAll(_)))) {
                continue;
            }
            let tree = ask(filter_for(base, arch));
            assert_eq!(tree == ALLOW, ask(&allowed) == ALLOW, "{arch:?} {number}");
            assert_eq!(tree == fails(Errno::Eperm), ask(&eperm) == fails(Errno::Eperm), "{arch:?} {number}");
        }
        // The kernel runs a new filter for every number: this sum is what installing it costs.
        assert!(tree_steps * 20 < list_steps, "{arch:?}: {tree_steps} steps, {list_steps} for the list");
    }
}

/// `strict` takes away only, and `compat` gives only.
#[test]
fn the_three_are_ordered() {
    for arch in ARCHES {
        for number in 0..1024 {
            let mut arguments = vec![[0; 6], [u64::MAX; 6]];
            arguments.extend((0..64).map(|bit| [1 << bit; 6]));
            arguments.extend((0..64).flat_map(|value| [[value; 6], [value | 1 << 32; 6]]));
            for args in arguments {
                let allowed = |base| run(filter_for(base, arch), audit(arch), number, args).0 == ALLOW;
                let [default, strict, compat] = Base::ALL.map(allowed);
                assert!(!strict || default, "strict allows {arch:?} {number} {args:x?}");
                assert!(!default || compat, "compat refuses {arch:?} {number} {args:x?}");
            }
        }
    }
}

/// What `compat` must not open, whoever asks.
#[test]
fn compat_keeps_what_leads_out() {
    for arch in ARCHES {
        for name in "bpf perf_event_open userfaultfd keyctl add_key request_key mount umount2 pivot_root move_mount \
                     open_tree fsopen mount_setattr unshare setns open_by_handle_at kexec_load init_module finit_module \
                     reboot clock_settime syslog quotactl swapon clone3 io_uring_setup"
            .split_ascii_whitespace()
        {
            let (answer, _) = run(filter_for(Base::Compat, arch), audit(arch), number(arch, name), [0; 6]);
            assert_ne!(answer, ALLOW, "{arch:?} {name}");
        }
    }
}

/// What the kernel demands of a program (bpf_check_classic), for the processor we do not run on
/// too.
#[test]
fn the_programs_are_well_formed_short_and_shallow() {
    for (base, arch) in all() {
        let program = filter_for(base, arch);
        assert!(program.len() < 4096);
        for (at, op) in program.iter().enumerate() {
            let furthest = match op.code {
                0x05 => at + 1 + op.k as usize,
                code if code & 7 == 5 => at + 1 + usize::from(op.jt.max(op.jf)),
                _ => at,
            };
            assert!(furthest < program.len(), "{arch:?}: instruction {at} jumps to {furthest}");
        }
        assert_eq!(program.last().map(|op| op.code), Some(0x06), "{arch:?} ends in a return");

        let table = table(base, arch);
        let unconditional =
            |number: &u32| !matches!(table.get(number), Some((_, Verdict::AllowIf { .. } | Verdict::AllowIfAll(_))));
        let steps = |number| run(program, audit(arch), number, [u64::MAX; 6]).1;
        let lookup = (0..1024).filter(unconditional).map(steps).max().unwrap_or(0);
        let worst = (0..1024).map(steps).max().unwrap_or(0);
        println!(
            "{base:?} {arch:?}: {} instructions, at most {lookup} for a lookup, {worst} with an argument",
            program.len()
        );
        assert!(lookup <= 24 && worst <= 64, "{arch:?}: {lookup} and {worst} steps");
    }
}

#[test]
fn every_call_is_named_once_and_every_row_has_a_reason() {
    for base in [Base::Strict, Base::Compat] {
        let mut changed = BTreeSet::new();
        for row in base.changes() {
            assert!(row.reason.len() > 10, "{}", row.calls);
            for name in row.calls.split_ascii_whitespace() {
                assert!(changed.insert(name), "{name} is in two rows of {}", base.name());
                let before = Base::Default.row(name).unwrap_or_else(|| panic!("{name} is in no row")).verdict;
                assert_ne!(before, row.verdict, "{} says the same of {name} as the default", base.name());
            }
        }
    }
    let mut named = BTreeSet::new();
    for row in DEFAULT {
        assert!(row.reason.len() > 10, "{}", row.calls);
        assert!(!row.calls.is_empty(), "{}", row.reason);
        for name in row.calls.split_ascii_whitespace() {
            assert!(named.insert(name), "{name} is in two rows");
        }
    }
    let known: BTreeSet<&str> = ARCHES.iter().flat_map(|&arch| numbers(arch)).map(|(_, name)| name).collect();
    assert_eq!(named, known);
    for arch in ARCHES {
        let distinct: BTreeSet<&str> = numbers(arch).map(|(_, name)| name).collect();
        assert_eq!(distinct.len(), numbers(arch).count(), "{arch:?} has a name twice");
    }
}

/// The `syscalls` crate is generated from the kernel's sources; what it lacks is newer than it.
#[test]
fn numbers_and_names_are_the_kernels() {
    use syscalls::{aarch64, x86_64};

    for arch in ARCHES {
        let ours: BTreeMap<u32, &str> = numbers(arch).collect();
        for number in 0..1024 {
            let theirs = match arch {
                Arch::X86_64 => x86_64::Sysno::new(number).map(|call| call.name()),
                Arch::Aarch64 => aarch64::Sysno::new(number).map(|call| call.name()),
            };
            let theirs = match (arch, number) {
                (_, 470) => Some("listns"),
                // The crate names what 32-bit processors have at these numbers.
                (Arch::Aarch64, 79) => Some("newfstatat"),
                (Arch::Aarch64, 403..424) => None,
                _ => theirs,
            };
            assert_eq!(ours.get(&(number as u32)).copied(), theirs, "{arch:?} {number}");
        }
    }
}

#[test]
fn capabilities_have_the_kernels_numbers_and_a_reason() {
    for (number, capability) in (0..).zip(capabilities::TABLE) {
        let theirs: caps::Capability = format!("CAP_{}", capability.name).parse().expect("a capability's name");
        assert_eq!((capability.number, number), (theirs.index(), theirs.index()), "{}", capability.name);
        assert!(capability.reason.len() > 10, "{}", capability.name);
        assert_eq!(capabilities::find(&format!("cap_{}", capability.name)), Some(&capability));
        assert_eq!(capabilities::find(capability.name), Some(&capability));
    }
    assert_eq!(capabilities::TABLE.len(), caps::all().len());
    assert_eq!(capabilities::DEFAULT.count_ones(), 11);
    assert_eq!(
        capabilities::names(capabilities::CEILING & !capabilities::DEFAULT).collect::<Vec<_>>(),
        ["DAC_READ_SEARCH", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_PTRACE", "SYS_NICE", "MKNOD", "AUDIT_WRITE"]
    );
    for name in ["SYS_ADMIN", "NET_ADMIN", "SYS_MODULE", "BPF"] {
        assert_eq!(capabilities::find(name).map(|found| found.bit() & capabilities::CEILING), Some(0), "{name}");
    }
    assert_eq!(capabilities::find("CAP_EVERYTHING"), None);
}

/// What ctst's own processes may do: less than `strict` lets a container, and no program, process or new identity.
#[test]
fn ctsts_own_processes_may_less_than_a_container() {
    for arch in ARCHES {
        for own in Own::ALL.into_iter().filter(|own| !own.is_open()) {
            let program = own_filter_for(own, arch);
            let ask = |number, args| run(program, audit(arch), number, args).0;
            for number in 0..1024 {
                for args in [[0; 6], [u64::MAX; 6]].into_iter().chain((0..64).map(|bit| [1 << bit; 6])) {
                    let strict = run(filter_for(Base::Strict, arch), audit(arch), number, args).0;
                    assert!(ask(number, args) != ALLOW || strict == ALLOW, "{own:?} {arch:?} {number} {args:x?}");
                }
            }
            assert_eq!(run(program, AUDIT_I386, 1, [0; 6]).0, KILL_PROCESS);
            for name in "execve execveat kill tkill setuid setresuid setgroups ptrace mount umount2 unshare setns bpf \
                         keyctl init_module finit_module kexec_load pidfd_getfd process_vm_writev perf_event_open"
                .split_ascii_whitespace()
            {
                assert_ne!(ask(number(arch, name), [0; 6]), ALLOW, "{own:?} {arch:?} {name}");
            }
            let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
            let clone = number(arch, "clone");
            let cases = [(thread, true), (libc::SIGCHLD as u64, false), (thread | libc::CLONE_NEWUSER as u64, false)];
            for (flags, allowed) in cases {
                assert_eq!(ask(clone, [flags, 0, 0, 0, 0, 0]) == ALLOW, allowed, "{own:?} {flags:x}");
            }
            assert_eq!(ask(number(arch, "prlimit64"), [7, 0, 0, 0, 0, 0]), fails(Errno::Eperm));
            // Who makes sockets that reach others connects none, but who asks registries, which gets none that were made by others.
            let socket =
                |family: i32| ask(number(arch, "socket"), [family as u64, libc::SOCK_STREAM as u64, 0, 0, 0, 0]);
            assert_eq!(socket(libc::AF_INET) == ALLOW, [Own::Ports, Own::Client].contains(&own), "{own:?}");
            assert_eq!(socket(libc::AF_UNIX) == ALLOW, own == Own::Supervisor, "{own:?}");
            for name in ["connect", "sendto", "sendmsg", "sendmmsg"] {
                let allowed = ask(number(arch, name), [0; 6]) == ALLOW;
                assert!(!allowed || own != Own::Ports, "{own:?} {name}");
            }
            for name in ["bind", "listen", "accept", "accept4"] {
                let allowed = ask(number(arch, name), [0; 6]) == ALLOW;
                assert!(!allowed || own != Own::Client, "{own:?} {name}");
            }
        }
    }
}

/// Offline everything is as it was, but for sockets that reach others.
#[test]
fn offline_only_sockets_are_refused() {
    for arch in ARCHES {
        let program = own_filter_for(Own::Offline, arch);
        let ask = |number, args| run(program, audit(arch), number, args).0;
        let sockets = ["socket", "socketpair"];
        for (number, name) in numbers(arch).filter(|(_, name)| !sockets.contains(name)) {
            let ring = name.starts_with("io_uring");
            let verdict = if ring { fails(Errno::Enosys) } else { ALLOW };
            assert_eq!(ask(number, [u64::MAX; 6]), verdict, "{arch:?} {name}");
        }
        for family in 0..64_u64 {
            let local = [libc::AF_UNIX as u64, libc::AF_NETLINK as u64].contains(&family);
            for name in sockets {
                let answer = ask(number(arch, name), [family, libc::SOCK_DGRAM as u64, 0, 0, 0, 0]);
                assert_eq!(answer, if local { ALLOW } else { fails(Errno::Eperm) }, "{arch:?} {name} {family}");
            }
        }
        assert_eq!(run(program, AUDIT_I386, 1, [0; 6]).0, KILL_PROCESS);
        assert_eq!(ask(1023, [0; 6]), fails(Errno::Enosys));
    }
}
