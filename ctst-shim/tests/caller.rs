//! The hostile caller: everything somebody could do who executes the shim or holds the other end of its channel.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code")]

mod common;
mod policy;

use std::fs;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use common::{FIRST, Image, Project, SHIM, is_root, pair, receive, request, send, source, spawn_with};
use containust_core::channel;
use containust_shared::exit;
use containust_shared::protocol::{
    Ended, FromContainer, FromSandbox, FromShim, IdMap, MAIN, Mount, Plan, Rlimit, Sandbox, Sysctl, ToContainer,
    ToSandbox,
};
use containust_shared::wire;

fn refused(mut shim: Child) -> String {
    assert_eq!(shim.wait().unwrap().code(), Some(exit::TOOL));
    std::io::read_to_string(shim.stderr.take().unwrap()).unwrap()
}

#[test]
fn takes_no_argument_and_needs_its_channel() {
    let by_hand = |args: &[&str]| Command::new(SHIM).args(args).stderr(Stdio::piped()).spawn().unwrap();
    assert!(refused(by_hand(&["--help"])).contains("takes no arguments"));
    assert!(refused(by_hand(&[])).contains("descriptor 3 is not open"));

    let file = tempfile::tempfile().unwrap();
    assert!(refused(spawn_with(file.into())).contains("descriptor 3"));
    let (_ours, stream) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(refused(spawn_with(stream.into())).contains("not a unix SOCK_SEQPACKET socket"));
}

#[test]
fn a_first_request_that_is_not_exactly_one_is_refused() {
    let good = wire::encode(&request()).unwrap();
    let mut bad: Vec<Vec<u8>> = (1..good.len()).map(|n| good[..n].to_vec()).collect();
    bad.push([good.as_slice(), &[0]].concat());
    bad.push(vec![0xff; good.len()]);
    bad.push(vec![0; wire::MAX_MESSAGE]);
    let mut other_version = good.clone();
    other_version[0] += 1;
    bad.push(other_version);
    for bytes in bad {
        let (ours, theirs) = pair();
        let shim = spawn_with(theirs);
        channel::send(&ours, &bytes, &[]).unwrap();
        assert!(matches!(receive(&ours), Some((FromShim::Failed(_), fds)) if fds.is_empty()), "{bytes:?}");
        assert!(receive::<FromShim>(&ours).is_none());
        refused(shim);
    }
}

#[test]
fn a_first_request_with_a_descriptor_is_refused() {
    let (ours, theirs) = pair();
    let shim = spawn_with(theirs);
    send(&ours, &request(), &[ours.as_fd()]);
    assert!(matches!(receive(&ours), Some((FromShim::Failed(_), _))));
    refused(shim);
}

#[test]
fn ids_that_are_not_the_callers_are_refused() {
    let maps = if is_root() {
        vec![
            IdMap::Single,
            IdMap::Helper,
            IdMap::Range { first: 0, count: 1 },
            IdMap::Range { first: FIRST, count: 0 },
            IdMap::Range { first: u32::MAX, count: 2 },
        ]
    } else {
        vec![IdMap::Range { first: FIRST, count: 65536 }, IdMap::Range { first: 0, count: 1 }]
    };
    for map in maps {
        let (ours, theirs) = pair();
        let shim = spawn_with(theirs);
        send(&ours, &Sandbox { map, ..request() }, &[]);
        assert!(matches!(receive(&ours), Some((FromShim::Failed(_), _))), "{map:?}");
        refused(shim);
    }
}

#[test]
fn the_project_ends_with_its_channel() {
    let Project { channel, init, .. } = &Project::new();
    rustix::net::shutdown(channel, rustix::net::Shutdown::Both).unwrap();
    let mut fds = [rustix::event::PollFd::new(init, rustix::event::PollFlags::IN)];
    let five = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&five)).unwrap(), 1);
}

#[test]
fn anything_unexpected_ends_the_project() {
    let launch = |grouped| wire::encode(&ToSandbox::Launch { id: 1, bridged: false, grouped, alone: None }).unwrap();
    let (launch, grouped) = (launch(false), launch(true));
    let dial = wire::encode(&ToSandbox::Dial { count: 1 }).unwrap();
    let cases: [(&[u8], usize); 9] = [
        (&launch, 0),
        (&launch, 2),
        (&grouped, 0),
        (&grouped, 1),
        (&grouped, 3),
        (&dial, 1),
        (&[9, 0, 0, 0], 0),
        (&[dial.as_slice(), &[0]].concat(), 0),
        (&launch[..launch.len() - 1], 1),
    ];
    for (bytes, fds) in cases {
        let project = Project::new();
        channel::send(&project.channel, bytes, &vec![project.channel.as_fd(); fds]).unwrap();
        assert!(project.ends(), "S survived {bytes:?} with {fds} descriptors");
    }
}

#[test]
fn dial_makes_as_many_sockets_as_asked_for() {
    let project = Project::new();
    for count in [1, 16] {
        send(&project.channel, &ToSandbox::Dial { count }, &[]);
        let (answer, fds) = receive::<FromSandbox>(&project.channel).unwrap();
        assert_eq!((answer, fds.len()), (FromSandbox::Dialed, usize::from(count)));
        assert!(fds.iter().all(|fd| rustix::net::sockopt::socket_type(fd) == Ok(rustix::net::SocketType::STREAM)));
    }
    for count in [0, 17, 255] {
        send(&project.channel, &ToSandbox::Dial { count }, &[]);
        assert!(matches!(receive(&project.channel), Some((FromSandbox::DialFailed(_), fds)) if fds.is_empty()));
    }
}

#[test]
fn a_container_starts_ends_and_leaves_others_alone() {
    let (image, other) = (Image::new(), Image::new());
    let mut project = Project::new();
    let waiting = project.launch();
    for image in [&image, &other] {
        let (answer, channel) = project.run(image.plan());
        assert!(matches!(answer, FromContainer::Started { id: MAIN, pid: 2 }), "{answer:?}");
        // The probe is the shim, which refuses to run without a channel.
        let ended = Ended::Exited(exit::TOOL);
        assert_eq!(receive::<FromContainer>(&channel).unwrap().0, FromContainer::Exited { id: MAIN, ended });
        assert!(receive::<FromContainer>(&channel).is_none());
    }
    send(&waiting, &ToContainer::Stat, &[]);
    assert!(
        matches!(receive(&waiting), Some((FromContainer::Failed { id: MAIN, .. }, _))),
        "no request before the plan"
    );
}

/// Where cgroup v2 is mounted.
fn cgroup2() -> Option<std::path::PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let place = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    place.and_then(|line| line.split(' ').nth(1)).map(Into::into)
}

#[test]
fn a_cgroup_that_is_none_or_not_the_callers_is_refused() {
    let mut project = Project::new();
    let folder = tempfile::tempdir().unwrap();
    let (directory, file) = (fs::File::open(folder.path()).unwrap(), fs::File::open("/proc/self/cgroup").unwrap());
    for wrong in [directory.as_fd(), file.as_fd()] {
        let (channel, answer, fds) = project.launch_in(wrong);
        let FromSandbox::LaunchFailed { id: 1 | 2, failure } = answer else { panic!("{answer:?}") };
        assert_eq!(
            (failure.step.as_str(), fds.len()),
            ("start a container in what is not a directory of cgroup v2", 0)
        );
        assert!(receive::<FromContainer>(&channel).is_none(), "there is no C");
    }
    // S holds no privilege over the host with which it could do what the caller cannot.
    if let (Some(mount), false) = (cgroup2(), is_root()) {
        let (_, answer, fds) = project.launch_in(fs::File::open(mount).unwrap().as_fd());
        let refused = matches!(answer, FromSandbox::LaunchFailed { id: 3, ref failure } if failure.errno == 13);
        assert!(refused && fds.is_empty(), "{answer:?}");
    }
    let image = Image::new();
    let (answer, _channel) = project.run(image.plan());
    assert!(matches!(answer, FromContainer::Started { id: MAIN, .. }), "S goes on: {answer:?}");
}

#[test]
fn a_caller_of_one_id_can_be_another_user_inside() {
    if is_root() {
        eprintln!("skipped: root always has a range");
        return;
    }
    let image = Image::new();
    let mut plan = image.plan();
    plan.process.user = b"1000:2000".into();
    let mut project = Project::new();
    let channel = project.launch_as(Some((1000, 2000)));
    common::send_plan(&channel, plan.clone());
    assert!(matches!(receive(&channel), Some((FromContainer::Started { id: MAIN, .. }, _))));
    plan.process.user = b"0".into();
    let channel = project.launch_as(Some((1000, 2000)));
    common::send_plan(&channel, plan);
    assert!(matches!(receive(&channel), Some((FromContainer::Failed { id: MAIN, .. }, _))), "0 does not exist there");
}

#[test]
fn a_truncated_plan_starts_nothing() {
    let image = Image::new();
    let good = wire::encode(&ToContainer::Plan(Box::new(image.plan()))).unwrap();
    let mut project = Project::new();
    for len in (1..good.len()).step_by(13) {
        let channel = project.launch();
        channel::send(&channel, &good[..len], &[]).unwrap();
        assert!(matches!(receive(&channel), Some((FromContainer::Failed { id: MAIN, code: 125, .. }, _))), "{len}");
        assert!(receive::<FromContainer>(&channel).is_none());
    }
}

/// Changes a good plan, and expects a refusal whose step or subject contains a text.
fn refuses(change: impl FnOnce(&mut Plan, &Image), code: i32, text: &str) {
    let image = Image::new();
    let mut plan = image.plan();
    change(&mut plan, &image);
    let (answer, channel) = Project::new().run(plan);
    let (got, said) = match answer {
        FromContainer::Failed { id: MAIN, code, failure } => {
            (code, format!("{} {} ({})", failure.step, String::from_utf8_lossy(&failure.subject), failure.errno))
        }
        FromContainer::Denied { reasons } => (exit::TOOL, reasons),
        answer => panic!("{text}: {answer:?}"),
    };
    assert!(got == code && said.contains(text), "expected {code} {text}, got {got} {said}");
    assert!(receive::<FromContainer>(&channel).is_none(), "C ends after a refusal");
}

#[test]
fn plans_that_ask_for_too_much_are_refused() {
    refuses(|plan, _| plan.capabilities = u64::MAX, 125, "no container is given it");
    refuses(|plan, _| plan.capabilities |= 1 << 21, 125, "give root CAP_SYS_ADMIN");
    refuses(|plan, _| plan.capabilities = 0, 125, "lacks CAP_KILL");
    refuses(|plan, _| plan.hostname = b"a_b".into(), 125, "host name");
    refuses(|plan, _| plan.process.argv.clear(), 125, "no command");
    refuses(|plan, _| plan.process.argv[0] = b"/pro\0be".into(), 125, "NUL");
    refuses(|plan, _| plan.process.env.push(b"ODD".into()), 125, "ODD");
    refuses(|plan, _| plan.process.user = b"nobody".into(), 125, "nobody");
    refuses(|plan, _| plan.process.user = b"4294967295".into(), 125, "4294967295");
    refuses(|plan, _| plan.process.user = b"3000000000".into(), 125, "3000000000");
    refuses(|plan, _| plan.process.tty = true, 125, "descriptors");
    refuses(|plan, _| plan.upper = None, 125, "writable layer");
    let sysctl = |name: &str, value: &str| Sysctl { name: name.into(), value: value.into() };
    for name in ["kernel.core_pattern", "net/../kernel/core_pattern", "net...kernel", "vm.swappiness"] {
        refuses(|plan, _| plan.sysctls.push(sysctl(name, "1")), 125, "not the container's own");
    }
    refuses(|plan, _| plan.sysctls.push(sysctl("net.core.nothing", "1")), 125, "net.core.nothing");
    refuses(|plan, _| plan.sysctls.push(sysctl("net.ipv4.ip_forward", "many")), 125, "net.ipv4.ip_forward");
    refuses(|plan, _| plan.process.groups = vec![b"none".to_vec()], 125, "group");
    refuses(|plan, _| plan.process.groups = vec![b"1".to_vec(); 65], 125, "group");
    refuses(
        |plan, _| plan.rlimits.push(Rlimit { resource: 7, soft: u64::MAX, hard: u64::MAX }),
        125,
        "resource limits",
    );
}

#[test]
fn files_in_memory_are_files_and_stay_inside() {
    let file = |target: &str, mode| Mount::File { target: target.into(), mode, content: b"canary".into() };
    for target in ["/", "relative", "/a/../b", ""] {
        refuses(|plan, _| plan.mounts.push(file(target, 0o400)), 125, "plain path");
    }
    refuses(|plan, _| plan.mounts.push(file("/proc/version", 0o400)), 125, "/proc");
    refuses(|plan, _| plan.mounts.push(file("/probe/x", 0o400)), 125, "find");
    refuses(
        |plan, image| {
            fs::create_dir(image.root().join("folder")).unwrap();
            plan.mounts.push(file("/folder", 0o400));
        },
        125,
        "/folder",
    );
    let image = Image::new();
    let mut plan = image.plan();
    plan.sysctls.push(Sysctl { name: b"net.ipv4.ip_unprivileged_port_start".into(), value: b"0".into() });
    plan.shm = 4096;
    plan.mounts.push(file("/srv/secret", 0o400));
    plan.mounts.push(file("/run/secrets/x", 0o7777));
    plan.mounts.push(Mount::Tmpfs { target: b"/run/secrets".into(), size: 0, mode: 0o755 });
    let (answer, _channel) = Project::new().run(plan);
    assert!(matches!(answer, FromContainer::Started { .. }), "{answer:?}");
    // What is left in the writable layer is a place to mount on.
    assert_eq!(fs::read(image.folder.path().join("upper/srv/secret")).unwrap(), b"");
}

#[test]
fn commands_that_cannot_run_have_their_codes() {
    refuses(|plan, _| plan.process.argv[0] = b"/nowhere".into(), 127, "find the command /nowhere");
    refuses(|plan, _| plan.process.argv[0] = b"nowhere".into(), 127, "find the command nowhere");
    refuses(|plan, _| plan.process.argv[0] = b"/proc".into(), 126, "execute /proc");
    let write = |image: &Image, content: &str, mode| {
        let path = image.root().join("script");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        common::own(&path);
    };
    let run_script = |plan: &mut Plan| plan.process.argv[0] = b"/script".into();
    refuses(
        |plan, image| {
            write(image, "#!/no/interpreter\n", 0o755);
            run_script(plan);
        },
        127,
        "interpreter",
    );
    refuses(
        |plan, image| {
            write(image, "not a program", 0o755);
            run_script(plan);
        },
        126,
        "execute",
    );
    refuses(
        |plan, image| {
            write(image, "#!/probe\n", 0o644);
            run_script(plan);
        },
        126,
        "execute",
    );
}

#[test]
fn mounts_stay_inside_and_off_proc() {
    let tmpfs = |target: &str| Mount::Tmpfs { target: target.into(), size: 0, mode: 0o755 };
    for target in ["/", "relative", "/a/../b", "/./a", ""] {
        refuses(|plan, _| plan.mounts.push(tmpfs(target)), 125, "plain path");
    }
    for target in ["/proc", "/proc/self/attr", "/proc/sys", "/proc/1"] {
        refuses(|plan, _| plan.mounts.push(tmpfs(target)), 125, "/proc");
    }
    refuses(
        |plan, image| {
            std::os::unix::fs::symlink("/proc/1", image.root().join("link")).unwrap();
            plan.mounts.push(tmpfs("/link"));
        },
        125,
        "/proc",
    );
    let link = |to: &'static str| {
        move |plan: &mut Plan, image: &Image| {
            std::os::unix::fs::symlink(to, image.root().join("link")).unwrap();
            plan.mounts.push(Mount::Tmpfs { target: b"/link".into(), size: 0, mode: 0o755 });
        }
    };
    refuses(link("link"), 125, "links");
    refuses(link("../.."), 125, "leads to /");
    refuses(link("dev/../proc/self"), 125, "/proc");
    // Links of the image lead to the image's own places.
    let image = Image::new();
    std::os::unix::fs::symlink("../../../../etc", image.root().join("link")).unwrap();
    fs::create_dir(image.root().join("etc")).unwrap();
    common::own(&image.root().join("etc"));
    let mut plan = image.plan();
    plan.mounts.push(tmpfs("/link/inner"));
    let (answer, _channel) = Project::new().run(plan);
    assert!(matches!(answer, FromContainer::Started { .. }), "{answer:?}");
    assert!(image.folder.path().join("upper/etc/inner").is_dir());
    assert!(!fs::exists("/etc/inner").unwrap());
}

/// The kernel gives up on `..` in a link when anything on the host is renamed meanwhile (openat2(2), EAGAIN).
#[test]
fn a_busy_host_keeps_no_link_from_being_followed() {
    let busy = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let folder = tempfile::tempdir().unwrap();
            let (a, b) = (folder.path().join("a"), folder.path().join("b"));
            fs::create_dir(&a).unwrap();
            while busy.load(std::sync::atomic::Ordering::Relaxed) {
                fs::rename(&a, &b).unwrap();
                fs::rename(&b, &a).unwrap();
            }
        });
        let image = Image::new();
        std::os::unix::fs::symlink("../../../../".repeat(20) + "etc", image.root().join("link")).unwrap();
        fs::create_dir(image.root().join("etc")).unwrap();
        common::own(&image.root().join("etc"));
        let answers: Vec<_> = (0..10)
            .map(|_| {
                let mut plan = image.plan();
                plan.mounts.push(Mount::Tmpfs { target: b"/link/inner".into(), size: 0, mode: 0o755 });
                Project::new().run(plan).0
            })
            .collect();
        busy.store(false, std::sync::atomic::Ordering::Relaxed);
        assert!(answers.iter().all(|answer| matches!(answer, FromContainer::Started { .. })), "{answers:?}");
    });
}

#[test]
fn a_source_that_is_not_what_was_checked_is_refused() {
    let bind = |source| Mount::Bind { source, target: b"/data".into(), readonly: false };
    refuses(
        |plan, image| {
            let mut source = source(image.folder.path());
            source.ino += 1;
            plan.mounts.push(bind(source));
        },
        125,
        "replaced",
    );
    refuses(
        |plan, image| {
            let mut source = source(image.folder.path());
            let link = image.folder.path().join("link");
            std::os::unix::fs::symlink(image.folder.path(), &link).unwrap();
            source.path = std::os::unix::ffi::OsStrExt::as_bytes(link.as_os_str()).into();
            plan.mounts.push(bind(source));
        },
        125,
        "open",
    );
    refuses(|plan, _| plan.mounts.push(bind(source("/dev/null".as_ref()))), 125, "device");
    refuses(|plan, _| plan.mounts.push(bind(source("/proc/sys".as_ref()))), 125, "procfs");
}

#[test]
fn an_image_whose_system_folders_are_links_or_files_is_refused() {
    for name in ["proc", "sys", "dev"] {
        refuses(|_, image| std::os::unix::fs::symlink("/etc", image.root().join(name)).unwrap(), 125, name);
        refuses(|_, image| std::os::unix::fs::symlink("../../..", image.root().join(name)).unwrap(), 125, name);
        refuses(|_, image| fs::write(image.root().join(name), "").unwrap(), 125, name);
    }
}

#[test]
fn etc_passwd_of_an_image_is_read_as_hostile() {
    let with = |make: fn(&std::path::Path)| {
        move |_: &mut Plan, image: &Image| {
            let etc = image.root().join("etc");
            fs::create_dir(&etc).unwrap();
            common::own(&etc);
            make(&etc.join("passwd"));
        }
    };
    refuses(with(|passwd| std::os::unix::fs::symlink("/proc/self/environ", passwd).unwrap()), 125, "/etc/passwd");
    let fifo = |path: &std::path::Path| {
        rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::from_raw_mode(0o666)).unwrap();
        common::own(path);
    };
    refuses(with(fifo), 125, "regular file");
    let large = |path: &std::path::Path| {
        fs::write(path, vec![b'a'; (1 << 20) + 1]).unwrap();
        common::own(path);
    };
    refuses(with(large), 125, "1 MiB");
}
