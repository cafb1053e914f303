//! What a container looks like from the inside, by whoever it was started.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use containust_tests::probe::Report;
use containust_tests::{Caller, Project};

const ONE: &str = r#"
COMPONENT one {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  env = { ONLY = "this" }
}"#;

/// The 11 capabilities of the default profile: the set is policy/snapshots/capabilities.txt.
const DEFAULT: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31;

fn inside(caller: &Caller) -> (Project, Report) {
    let project = Project::new(caller, ONE);
    project.up();
    let report = project.report(&[], "one");
    (project, report)
}

#[test]
fn rights() {
    for caller in Caller::all() {
        let (project, report) = inside(&caller);
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(report.capabilities(set) & !DEFAULT, 0, "{set} as {}", caller.name);
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(report.capabilities(set), 0, "{set} as {}", caller.name);
        }
        assert_eq!(report.status["NoNewPrivs"], "1");
        assert_eq!(report.status["Seccomp"], "2");
        project.stop();
    }
}

#[test]
fn an_ordinary_user_inside_has_no_right_at_all() {
    let Some(caller) = Caller::ranges() else { return };
    let project = Project::new(&caller, ONE);
    project.up();
    let report = project.report(&["-u", "somebody"], "one");
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(report.capabilities(set), 0, "{set}");
    }
    assert_eq!(report.status["Uid"].split_whitespace().collect::<Vec<_>>(), ["1000"; 4]);
    project.stop();
}

#[test]
fn ids_map_to_the_caller_and_to_nobody_who_matters() {
    for caller in Caller::all() {
        let (project, report) = inside(&caller);
        let host = report.uid_map.iter().find(|line| line[0] == 0).expect("root is mapped")[1];
        let pid = project.status("one")["pid"].as_u64().expect("a pid");
        let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("read the map from outside");
        assert_ne!(host, 0, "root inside is root outside as {}:\n{map}", caller.name);
        let count: u32 = report.uid_map.iter().map(|line| line[2]).sum();
        match (&caller, caller.single) {
            (caller, false) if caller.uid == 0 => assert!(count > 1000, "{map}"),
            (caller, false) if caller.range().is_some() => {
                let (first, available) = caller.range().expect("just seen");
                assert_eq!(host, caller.uid);
                let rest = report.uid_map.iter().find(|line| line[0] == 1).expect("the range is mapped");
                assert_eq!(rest[1], first);
                assert!(rest[2] <= available);
            }
            (caller, _) => assert_eq!((host, count), (caller.uid, 1)),
        }
        project.stop();
    }
}

#[test]
fn every_namespace_is_its_own() {
    for caller in Caller::all() {
        let (project, report) = inside(&caller);
        for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            let outside =
                std::fs::read_link(format!("/proc/self/ns/{name}")).expect("read a link").display().to_string();
            assert_ne!(report.namespaces[name], outside, "{name} as {}", caller.name);
        }
        assert_eq!(report.hostname, "one");
        // Nobody but pid 1, the main process, this one.
        assert!(report.processes.len() <= 3 && report.processes.contains(&1), "{:?}", report.processes);
        project.stop();
    }
}

#[test]
fn nothing_of_the_caller_comes_along() {
    for caller in Caller::all() {
        let project = Project::new(&caller, ONE);
        let mut run = project.command(["run", "-d", "--wait", "--yes"]);
        run.env("SECRET_OF_THE_CALLER", "x");
        containust_tests::finish(&mut run).ok();
        let report = project.report(&[], "one");
        let names: BTreeSet<&str> = report.env.keys().map(String::as_str).collect();
        assert_eq!(names, BTreeSet::from(["HOME", "ONLY", "PATH", "HOSTNAME"]).intersection(&names).copied().collect());
        assert!(names.contains("PATH") && names.contains("HOME") && names.contains("ONLY"), "{names:?}");
        assert_eq!(report.descriptors.keys().collect::<Vec<_>>(), [&0, &1, &2], "{:?}", report.descriptors);
        assert_eq!(report.cwd, "/");
        project.stop();
    }
}

#[test]
fn mounts_are_few_and_tight() {
    for caller in Caller::all() {
        let (project, report) = inside(&caller);
        let mount = |target: &str| report.mount(target).unwrap_or_else(|| panic!("{target} is not mounted"));
        let has = |target: &str, wanted: &[&str]| {
            let options = &mount(target).options;
            assert!(
                wanted.iter().all(|option| options.iter().any(|o| o == option)),
                "{target}: {options:?} lacks {wanted:?}"
            );
        };
        assert_eq!(mount("/").kind, "overlay");
        has("/", &["ro"]);
        for target in ["/run", "/tmp", "/var/tmp"] {
            assert_eq!(mount(target).kind, "tmpfs");
            has(target, &["rw", "nosuid", "nodev"]);
        }
        assert_eq!(mount("/proc").kind, "proc");
        has("/proc", &["nosuid", "nodev", "noexec"]);
        has("/dev", &["nosuid"]);
        has("/dev/shm", &["nosuid", "nodev"]);
        assert_eq!(mount("/dev/pts").kind, "devpts");
        for mount in report.mounts.iter().filter(|mount| mount.kind == "sysfs" || mount.kind == "cgroup2") {
            assert!(mount.options.iter().any(|option| option == "ro"), "{mount:?}");
        }
        // The host's own mounts are gone, not hidden.
        let folder = project.folder().display().to_string();
        assert!(
            !report
                .mounts
                .iter()
                .any(|mount| mount.target.starts_with("/oldroot") || mount.target.starts_with(&folder))
        );
        project.stop();
    }
}

#[test]
fn devices_are_the_harmless_ones() {
    for caller in Caller::all() {
        let (project, report) = inside(&caller);
        let allowed =
            BTreeSet::from(["char 1:3", "char 1:5", "char 1:7", "char 1:8", "char 1:9", "char 5:0", "char 5:2"]);
        for (path, kind) in &report.devices {
            let harmless = !kind.starts_with("block")
                && (!kind.starts_with("char") || allowed.contains(kind.as_str()) || path.starts_with("/dev/pts/"));
            assert!(harmless, "{path} is {kind} as {}", caller.name);
        }
        for (path, kind) in [
            ("/dev/null", "char 1:3"),
            ("/dev/zero", "char 1:5"),
            ("/dev/urandom", "char 1:9"),
            ("/dev/tty", "char 5:0"),
        ] {
            assert_eq!(report.devices.get(path).map(String::as_str), Some(kind), "{path} as {}", caller.name);
        }
        for link in ["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/ptmx"] {
            assert!(report.devices.contains_key(link), "{link}");
        }
        project.stop();
    }
}

#[test]
fn attempts_to_leave_fail() {
    for caller in Caller::all() {
        let (project, report) = inside(&caller);
        for (name, error) in &report.attempts {
            match name.strip_prefix("may ") {
                Some(name) => assert_eq!(*error, 0, "{name} fails as {}", caller.name),
                None => assert_ne!(*error, 0, "{name} works as {}", caller.name),
            }
        }
        // Where the filter decides, its answer: a program tells a refusal (EPERM) from an old kernel (ENOSYS) by it.
        for (name, error) in [
            ("clone3", libc::ENOSYS),
            ("io_uring_setup", libc::ENOSYS),
            ("x32 getpid", libc::ENOSYS),
            ("unshare user", libc::EPERM),
            ("unshare net", libc::EPERM),
            ("mount tmpfs", libc::EPERM),
            ("bpf", libc::EPERM),
            ("keyctl", libc::EPERM),
            ("ptrace pid 1", libc::EPERM),
            ("perf_event_open", libc::EPERM),
            ("userfaultfd", libc::EPERM),
            ("ioctl TIOCSTI", libc::EPERM),
            ("socket alg", libc::EAFNOSUPPORT),
            ("socket vsock", libc::EAFNOSUPPORT),
            ("write /", libc::EROFS),
        ] {
            if let Some(found) = report.attempts.get(name) {
                assert_eq!(*found, error, "{name} as {}", caller.name);
            }
        }
        project.stop();
    }
}

/// An image whose entrypoint starts as root, gives its data folder away and drops to its own user, as those of redis and
/// postgres do.
#[test]
fn an_entrypoint_that_drops_its_rights_works() {
    let Some(caller) = Caller::ranges() else { return };
    let text = r#"
COMPONENT one {
  image = "file://ROOTFS"
  command = ["/bin/sh", "-c", "mkdir /run/data && chown somebody:somebody /run/data && exec su somebody -s /bin/sh -c 'id -u > /run/data/id; exec ctst-probe hold'"]
}"#;
    let project = Project::new(&caller, text);
    project.up();
    containust_tests::eventually("it wrote as its user", || {
        project.ctst(["exec", "-u", "somebody", "one", "cat", "/run/data/id"]).stdout.trim() == "1000"
    });
    let owner = project.ctst(["exec", "one", "stat", "-c", "%u:%g", "/run/data/id"]).ok().stdout;
    assert_eq!(owner.trim(), "1000:1000");
    project.stop();
}

#[test]
fn a_set_user_id_program_gains_nothing() {
    let Some(caller) = Caller::ranges() else { return };
    let text = ONE.replace(r#"env = { ONLY = "this" }"#, "readonly = false");
    let project = Project::new(&caller, &text);
    project.up();
    project.ctst(["exec", "one", "sh", "-c", "cp /bin/busybox /srv/id && chmod 4755 /srv/id"]).ok();
    let done = project.ctst(["exec", "-u", "somebody", "one", "/srv/id", "id", "-u"]);
    assert_ne!(done.stdout.trim(), "0", "{done}");
    project.stop();
}
