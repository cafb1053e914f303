//! The hostile caller: everything somebody could do who executes the shim or holds the other end of its channel.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code"
)]

mod common;
mod policy;
mod strict;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use common::{
    FIRST, Image, Project, first, is_root, network, pair, receive, request, send, send_plan, shim, source, spawn_by,
    spawn_with,
};
use containust_core::channel;
use containust_shared::exit;
use containust_shared::protocol::{
    Address, Beneath, Bridge, Ended, FromContainer, FromSandbox, FromShim, IdMap, Instruction, Landlock, MAIN, Mount,
    Plan, Rlimit, Sandbox, Sysctl, ToContainer, ToSandbox, ToShim, VERSION,
};
use containust_shared::wire;

fn refused(mut shim: Child) -> String {
    assert_eq!(shim.wait().unwrap().code(), Some(exit::TOOL));
    std::io::read_to_string(shim.stderr.take().unwrap()).unwrap()
}

#[test]
fn takes_no_argument_and_needs_its_channel() {
    let by_hand = |args: &[&str]| Command::new(shim()).args(args).stderr(Stdio::piped()).spawn().unwrap();
    assert!(refused(by_hand(&["--help"])).contains("takes no arguments"));
    assert!(refused(by_hand(&[""])).contains("takes no arguments"));
    let unnamed =
        std::os::unix::process::CommandExt::arg0(&mut Command::new(shim()), "").stderr(Stdio::piped()).spawn();
    assert!(refused(unnamed.unwrap()).contains("descriptor 3 is not open"));
    assert!(refused(by_hand(&[])).contains("descriptor 3 is not open"));

    let file = tempfile::tempfile().unwrap();
    assert!(refused(spawn_with(file.into())).contains("descriptor 3"));
    let (_ours, stream) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(refused(spawn_with(stream.into())).contains("not a unix SOCK_SEQPACKET socket"));
}

#[test]
fn a_first_request_that_is_not_exactly_one_is_refused() {
    let good = wire::encode(&first()).unwrap();
    let mut bad: Vec<Vec<u8>> = (1..good.len()).map(|n| good[..n].to_vec()).collect();
    bad.push([good.as_slice(), &[0]].concat());
    bad.push(vec![0xff; good.len()]);
    bad.push(vec![0; wire::MAX_MESSAGE]);
    let mut other_version = good.clone();
    // After the number of the request.
    other_version[4] += 1;
    bad.push(other_version);
    // Without file capabilities the caller's groups are his own.
    bad.push(wire::encode(&ToShim::Gc { version: VERSION }).unwrap());
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
    send(&ours, &first(), &[ours.as_fd()]);
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
        send(&ours, &ToShim::Sandbox(Sandbox { map, ..request() }), &[]);
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
    let launch =
        |grouped| wire::encode(&ToSandbox::Launch { id: 1, networks: Vec::new(), grouped, alone: None }).unwrap();
    let (launch, grouped) = (launch(false), launch(true));
    let dial = wire::encode(&ToSandbox::Dial { count: 1, udp: false }).unwrap();
    // Outside of strict mode the supervisor makes groups himself.
    let group = wire::encode(&ToSandbox::Cgroup { id: 1, limits: Vec::new() }).unwrap();
    let freeze = wire::encode(&ToSandbox::Freeze { id: 1 }).unwrap();
    let on = |networks| wire::encode(&ToSandbox::Launch { id: 1, networks, grouped: false, alone: None }).unwrap();
    let many = on((0..17).map(network).collect());
    let twice = on(vec![network(3), network(4), network(3)]);
    let listen = wire::encode(&ToSandbox::Listen { bridge: network(1) }).unwrap();
    let cases: [(&[u8], usize); 15] = [
        (&many, 1),
        (&twice, 1),
        (&group, 0),
        (&freeze, 0),
        (&launch, 0),
        (&launch, 2),
        (&grouped, 0),
        (&grouped, 1),
        (&grouped, 3),
        (&dial, 1),
        (&listen, 1),
        (&[listen.as_slice(), &[0]].concat(), 0),
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
        send(&project.channel, &ToSandbox::Dial { count, udp: false }, &[]);
        let (answer, fds) = receive::<FromSandbox>(&project.channel).unwrap();
        assert_eq!((answer, fds.len()), (FromSandbox::Dialed, usize::from(count)));
        assert!(fds.iter().all(|fd| rustix::net::sockopt::socket_type(fd) == Ok(rustix::net::SocketType::STREAM)));
        send(&project.channel, &ToSandbox::Dial { count, udp: true }, &[]);
        let (answer, fds) = receive::<FromSandbox>(&project.channel).unwrap();
        assert_eq!((answer, fds.len()), (FromSandbox::Dialed, usize::from(count)));
        assert!(fds.iter().all(|fd| rustix::net::sockopt::socket_type(fd) == Ok(rustix::net::SocketType::DGRAM)));
        // They can be anybody.
        for (fd, last) in fds.iter().zip(1..) {
            let client = std::net::SocketAddrV4::new([203, 0, 113, last].into(), 0);
            assert_eq!(rustix::net::bind(fd, &client), Ok(()));
        }
    }
    for count in [0, 17, 255] {
        send(&project.channel, &ToSandbox::Dial { count, udp: false }, &[]);
        assert!(matches!(receive(&project.channel), Some((FromSandbox::DialFailed(_), fds)) if fds.is_empty()));
    }
}

#[test]
fn a_container_has_as_many_links_as_networks() {
    let image = Image::new();
    let mut project = Project::new();
    let addresses = |numbers: &[u8]| -> Vec<Address> {
        numbers.iter().map(|number| Address { ip: [10, 89, *number, 2], prefix: 24 }).collect()
    };
    for numbers in [&[][..], &[7], &[255, 7], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]] {
        project.networks = numbers.iter().map(|number| network(*number)).collect();
        let mut plan = image.plan();
        plan.addresses = addresses(numbers);
        let (answer, _channel) = project.run(plan);
        assert!(matches!(answer, FromContainer::Started { .. }), "{numbers:?}: {answer:?}");
    }
    // An address more than there are links, or many more; or one of another network than the link is on.
    project.networks = vec![network(7)];
    for (numbers, text) in [(&[7, 8][..], "eth1"), (&[1; 300], "eth1"), (&[1], "the default route")] {
        let mut plan = image.plan();
        plan.addresses = addresses(numbers);
        let FromContainer::Failed { failure, .. } = project.run(plan).0 else { panic!("{numbers:?} was taken") };
        let told = format!("{} {}", failure.step, String::from_utf8_lossy(&failure.subject));
        assert!(told.contains(text), "{told}");
    }
    // A number has one address, and what is none makes no bridge.
    for (number, prefix, text) in [(7, 16, "another address"), (9, 24, ""), (77, 33, "address")] {
        let (_ours, theirs) = pair();
        project.next += 1;
        let networks = vec![Bridge { number, address: Address { ip: [10, 89, number, 1], prefix }, egress: false }];
        let launch = ToSandbox::Launch { id: project.next, networks, grouped: false, alone: None };
        send(&project.channel, &launch, &[theirs.as_fd()]);
        match receive(&project.channel).unwrap().0 {
            FromSandbox::Launched { .. } => assert_eq!(text, ""),
            FromSandbox::LaunchFailed { failure, .. } => {
                assert!(!text.is_empty() && failure.step.contains(text), "{failure:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    project.networks = vec![network(0)];
    serves(&mut project);
}

#[test]
fn listen_makes_the_sockets_of_one_name_server() {
    use rustix::net::{SocketType, getsockname, sockopt};
    let mut project = Project::new();
    let listen = |project: &Project| {
        send(&project.channel, &ToSandbox::Listen { bridge: project.networks[0] }, &[]);
        receive::<FromSandbox>(&project.channel).unwrap()
    };
    let (answer, fds) = listen(&project);
    assert_eq!(answer, FromSandbox::Listening);
    let kinds: Vec<_> = fds.iter().map(|fd| sockopt::socket_type(fd).unwrap()).collect();
    assert_eq!(kinds, [SocketType::DGRAM, SocketType::STREAM]);
    assert_eq!(fds.iter().map(|fd| sockopt::socket_acceptconn(fd).unwrap()).collect::<Vec<_>>(), [false, true]);
    for fd in &fds {
        let place = std::net::SocketAddrV4::try_from(getsockname(fd).unwrap()).unwrap();
        let bridge = std::net::Ipv4Addr::from(project.networks[0].address.ip);
        assert_eq!(place, std::net::SocketAddrV4::new(bridge, 53));
        assert!(rustix::fs::fcntl_getfl(fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    }
    // A second one has no place, and the first is no worse for it.
    let (answer, none) = listen(&project);
    assert!(matches!(&answer, FromSandbox::ListenFailed(failure) if failure.errno == 98), "{answer:?}");
    assert!(none.is_empty());
    drop(fds);
    assert_eq!(listen(&project).0, FromSandbox::Listening);
    // The bridge has been made; one with another address is none.
    let mut bridge = project.networks[0];
    bridge.address.ip[3] = 7;
    send(&project.channel, &ToSandbox::Listen { bridge }, &[]);
    let (answer, _) = receive::<FromSandbox>(&project.channel).unwrap();
    assert!(
        matches!(&answer, FromSandbox::ListenFailed(failure) if failure.step.contains("another address")),
        "{answer:?}"
    );
    serves(&mut project);
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

/// Version of the kernel.
fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn a_fuse_file_system_is_waited_for_and_its_device_given_away() {
    let image = Image::new();
    let told = |plan: Plan| {
        let mut project = Project::new();
        let channel = project.launch();
        send_plan(&channel, plan);
        let first = receive::<FromContainer>(&channel);
        let Some((FromContainer::Fuse, fds)) = first else {
            panic!("{first:?} (is /dev/fuse open? make test opens it)");
        };
        // The last descriptor that there is: with it goes whoever could answer.
        let [device] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(device);
        match receive::<FromContainer>(&channel) {
            Some((FromContainer::Failed { code: 125, failure, .. }, _)) => failure,
            other => panic!("{other:?}"),
        }
    };
    let failure = told(Plan { fuse: true, layers: Vec::new(), ..image.plan() });
    assert!(failure.step.starts_with("mount an overlay"), "{failure:?}");
    let failure = told(Plan { fuse: true, layers: Vec::new(), upper: None, work: None, ..image.plan() });
    assert!(failure.step.contains("without a writable layer"), "{failure:?}");
}

#[test]
fn plans_that_ask_for_too_much_are_refused() {
    refuses(|plan, _| plan.capabilities = u64::MAX, 125, "no container is given it");
    refuses(|plan, _| plan.capabilities |= 1 << 21, 125, "give root CAP_SYS_ADMIN");
    refuses(|plan, _| plan.capabilities |= 1 << 12, 125, "give root CAP_NET_ADMIN");
    let profile = |count, code| vec![Instruction { code, jt: 0, jf: 0, k: 0x7fff_0000 }; count];
    refuses(|plan, _| plan.profile = profile(4097, 6), 125, "instructions: 4097");
    refuses(|plan, _| plan.profile = profile(4096, 0xffff), 125, "seccomp profile");
    // A load of what lies beyond struct seccomp_data, and a program that does not end in a return.
    refuses(|plan, _| plan.profile = profile(1, 0x20), 125, "seccomp profile");
    let landlock = |path: &str| {
        let beneath = Beneath { path: path.into(), write: false, execute: true };
        Some(Landlock { files: Some(vec![beneath]), ..Landlock::default() })
    };
    refuses(|plan, _| plan.landlock = landlock("srv"), 125, "absolute path: srv");
    refuses(|plan, _| plan.landlock = landlock("/none"), 125, "/none");
    refuses(|plan, _| plan.landlock = landlock("/proc/self/exe"), 125, "/proc/self/exe");
    let (code, text) = if kernel() >= (6, 2) { (126, "landlock") } else { (125, "landlock, which takes Linux 6.2") };
    refuses(|plan, _| plan.landlock = landlock("/dev"), code, text);
    refuses(|plan, _| plan.hostname = b"a_b".into(), 125, "host name");
    refuses(|plan, _| plan.process.argv.clear(), 125, "no command");
    refuses(|plan, _| plan.process.argv[0] = b"/pro\0be".into(), 125, "NUL");
    refuses(|plan, _| plan.process.env.push(b"ODD".into()), 125, "ODD");
    refuses(|plan, _| plan.process.user = b"nobody".into(), 125, "nobody");
    refuses(|plan, _| plan.process.user = b"4294967295".into(), 125, "4294967295");
    refuses(|plan, _| plan.process.user = b"3000000000".into(), 125, "3000000000");
    refuses(|plan, _| plan.process.tty = true, 125, "descriptors");
    refuses(|plan, _| plan.upper = None, 125, "writable layer");
    refuses(|plan, _| plan.layers = vec![plan.layers[0].clone(); 300], 125, "so many layers 300");
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
    let file =
        |target: &str, mode| Mount::File { target: target.into(), mode, owner: Vec::new(), content: b"canary".into() };
    for target in ["/", "relative", "/a/../b", ""] {
        refuses(|plan, _| plan.mounts.push(file(target, 0o400)), 125, "plain path");
    }
    refuses(|plan, _| plan.mounts.push(file("/proc/version", 0o400)), 125, "/proc");
    for (owner, why) in [
        ("unheard", "passwd the user unheard"),
        ("0:unheard", "group the group unheard"),
        ("4294967295", "the user 4294967295"),
        ("3000000000", "give to its owner"),
    ] {
        let owned = Mount::File { target: "/x".into(), mode: 0o400, owner: owner.into(), content: b"canary".into() };
        refuses(|plan, _| plan.mounts.push(owned), 125, why);
    }
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
    let device = |place: &str| Mount::Device { source: source(place.as_ref()), target: b"/dev/x".into() };
    refuses(|plan, _| plan.mounts.push(device("/")), 125, "no character device");
    refuses(|plan, _| plan.mounts.push(device("/proc/version")), 125, "no character device");
    refuses(
        |plan, _| {
            let Mount::Device { mut source, target } = device("/dev/null") else { return };
            source.ino += 1;
            plan.mounts.push(Mount::Device { source, target });
        },
        125,
        "replaced",
    );
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

/// A copy of the shim that everybody can execute, in a folder of its own.
fn copy(name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = folder.path().join(name);
    // By another process: a descriptor of ours that is open for writing would be inherited by what another test forks, and
    // the copy could not be executed as long as that lives.
    assert!(Command::new("install").args(["-m", "755"]).args([&shim(), &path]).status().unwrap().success());
    (folder, path)
}

#[test]
fn the_channel_of_another_user_is_refused() {
    if !is_root() {
        eprintln!("skipped: needs two users, so root");
        return;
    }
    let (_folder, path) = copy("ctst-shim");
    let (_ours, theirs) = pair();
    let mut command = Command::new(path);
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    std::os::unix::process::CommandExt::gid(&mut command, 65534);
    command.stderr(Stdio::piped());
    command_fds::CommandFdExt::fd_mappings(
        &mut command,
        vec![command_fds::FdMapping { parent_fd: theirs, child_fd: 3 }],
    )
    .unwrap();
    assert!(refused(command.spawn().unwrap()).contains("the peer is another user"));
}

#[test]
fn under_another_name_it_is_the_same() {
    let (_folder, path) = copy("something else");
    let (channel, theirs) = pair();
    let mut command = Command::new(&path);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command_fds::CommandFdExt::fd_mappings(
        &mut command,
        vec![command_fds::FdMapping { parent_fd: theirs, child_fd: 3 }],
    )
    .unwrap();
    let mut shim = command.spawn().unwrap();
    send(&channel, &first(), &[]);
    assert!(matches!(receive(&channel), Some((FromShim::Created { .. }, _))));
    assert_eq!(receive(&channel).map(|(message, _)| message), Some(FromShim::Ready));
    assert!(shim.wait().unwrap().success());
}

/// What a container of this project does is what it always does.
fn serves(project: &mut Project) {
    let image = Image::new();
    let (answer, channel) = project.run(image.plan());
    assert!(matches!(answer, FromContainer::Started { id: MAIN, .. }), "{answer:?}");
    let ended = Ended::Exited(exit::TOOL);
    assert_eq!(receive::<FromContainer>(&channel).unwrap().0, FromContainer::Exited { id: MAIN, ended });
}

#[test]
fn an_environment_has_no_effect() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let variables = [
        "LD_PRELOAD=/nowhere.so",
        "LD_LIBRARY_PATH=/tmp",
        "LD_AUDIT=/nowhere.so",
        "GLIBC_TUNABLES=glibc.malloc.check=3:glibc.rtld.nns=x",
        "LOCPATH=/tmp",
        "RUST_BACKTRACE=full",
        "RUST_MIN_STACK=1",
        "TMPDIR=/nowhere",
    ]
    .map(str::to_owned);
    let more = [format!("MALLOC_TRACE={}", trace.display()), format!("HUGE={}", "x".repeat(100_000))];
    let words: Vec<&str> = ["env", "-i"]
        .into_iter()
        .chain(variables.iter().map(String::as_str))
        .chain(more.iter().map(String::as_str))
        .collect();
    serves(&mut Project::by(&words));
    assert!(!trace.exists());
}

#[test]
fn closed_streams_are_replaced_and_surplus_descriptors_closed() {
    // The runtime opens /dev/null in place of a closed one before the first line of ours.
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let script = format!("exec \"$0\" {closed}");
        serves(&mut Project::by(&["sh", "-c", &script]));
    }
    // Whoever still holds the other side of this pipe keeps it open.
    let (end, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (channel, theirs) = pair();
    let mut command = Command::new(shim());
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut mappings = vec![command_fds::FdMapping { parent_fd: theirs, child_fd: 3 }];
    for number in 4..500 {
        mappings.push(command_fds::FdMapping { parent_fd: held.try_clone().unwrap(), child_fd: number });
    }
    drop(held);
    command_fds::CommandFdExt::fd_mappings(&mut command, mappings).unwrap();
    let mut shim = command.spawn().unwrap();
    drop(command);
    send(&channel, &first(), &[]);
    assert!(matches!(receive(&channel), Some((FromShim::Created { .. }, _))));
    assert_eq!(receive(&channel).map(|(message, _)| message), Some(FromShim::Ready));
    assert!(shim.wait().unwrap().success());
    let mut fds = [rustix::event::PollFd::new(&end, rustix::event::PollFlags::IN)];
    let five = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&five)).unwrap(), 1, "S still holds a descriptor of its caller's");
    assert!(fds[0].revents().contains(rustix::event::PollFlags::HUP));
}

#[test]
fn signals_and_timers_of_the_caller_have_no_effect() {
    let all = ["env", "--block-signal", "--ignore-signal"];
    serves(&mut Project::by(&all));
    // An alarm survives execve(2), and its signal would end whoever has the default action.
    let mut project = Project::by(&["perl", "-e", "alarm 1; exec @ARGV"]);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    serves(&mut project);
    // A signal that waits ends the shim, or does not: never something between.
    let (ours, theirs) = pair();
    let mut shim = spawn_by(&["env", "--block-signal=TERM", "sh", "-c", "kill -TERM $$; exec \"$0\""], theirs);
    assert!(!shim.wait().unwrap().success());
    assert!(receive::<FromShim>(&ours).is_none());
}

/// Starts a project under a limit, and says whether that went as far as [`FromShim::Ready`]. Whatever happens, everything
/// has ended soon after the channel is closed.
fn under(limit: &str) -> bool {
    let (ours, theirs) = pair();
    let mut shim = spawn_by(&["prlimit", limit], theirs);
    // It may have ended before it read anything.
    let sent = channel::send(&ours, &wire::encode(&first()).unwrap(), &[]);
    let mut init = None;
    let mut ready = false;
    while let (Ok(()), Ok(Some((message, mut fds)))) = (&sent, std::panic::catch_unwind(|| receive::<FromShim>(&ours)))
    {
        match message {
            FromShim::Created { .. } => init = fds.pop(),
            FromShim::Ready => {
                ready = true;
                break;
            }
            FromShim::Failed(_) | FromShim::Collected { .. } => break,
        }
    }
    let code = shim.wait().unwrap();
    assert!(ready == code.success(), "{limit}: ready: {ready}, {code}");
    drop(ours);
    if let Some(init) = init {
        let mut fds = [rustix::event::PollFd::new(&init, rustix::event::PollFlags::IN)];
        let five = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&five)).unwrap(), 1, "{limit}: S is still there");
    }
    ready
}

#[test]
fn tiny_limits_are_told_or_do_no_harm() {
    for limit in ["--nofile=5:5", "--nofile=63:63"] {
        assert!(!under(limit), "{limit}");
    }
    let memory = ["--as=1000000", "--as=3000000", "--as=4000000", "--data=1", "--stack=65536", "--memlock=0"];
    let others = ["--fsize=0", "--core=0", "--sigpending=0", "--msgqueue=0", "--locks=0", "--nproc=1", "--rttime=1"];
    for limit in memory.into_iter().chain(others) {
        under(limit);
    }
}

#[test]
fn records_of_any_size_but_the_right_one_end_their_reader() {
    let sizes = [0, 1, 3, 65_535, 65_536, 65_537, 100_000];
    for size in sizes {
        let (ours, theirs) = pair();
        let mut shim = spawn_with(theirs);
        channel::send(&ours, &vec![0; size], &[]).unwrap();
        assert!(!matches!(receive(&ours), Some((FromShim::Created { .. }, _))), "{size}");
        assert_eq!(shim.wait().unwrap().code(), Some(exit::TOOL), "{size}");

        let project = Project::new();
        channel::send(&project.channel, &vec![0; size], &[]).unwrap();
        assert!(project.ends(), "S survived {size} bytes");

        let mut project = Project::new();
        let container = project.launch();
        channel::send(&container, &vec![0; size], &[]).unwrap();
        let answer = receive(&container);
        assert!(matches!(answer, Some((FromContainer::Failed { id: MAIN, .. }, _)) | None), "{size}: {answer:?}");
        serves(&mut project);
    }
    // The end of the channel before the first record.
    let (ours, theirs) = pair();
    let mut shim = spawn_with(theirs);
    drop(ours);
    shim.wait().unwrap();
}

/// Sends more descriptors than the product's own function would.
fn send_many(to: &std::os::fd::OwnedFd, bytes: &[u8], fd: std::os::fd::BorrowedFd<'_>, count: usize) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let fds = vec![fd; count];
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
    rustix::net::sendmsg(to, &[std::io::IoSlice::new(bytes)], &mut control, rustix::net::SendFlags::NOSIGNAL).unwrap();
}

#[test]
fn any_number_of_descriptors_but_the_right_one_is_refused_and_none_is_kept() {
    for count in [1, 2, 16, 17, 33, 253] {
        let (end, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let closed = || {
            let mut fds = [rustix::event::PollFd::new(&end, rustix::event::PollFlags::IN)];
            let five = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&five)).unwrap() == 1
        };
        let (ours, theirs) = pair();
        let shim = spawn_with(theirs);
        send_many(&ours, &wire::encode(&first()).unwrap(), held.as_fd(), count);
        assert!(!matches!(receive(&ours), Some((FromShim::Created { .. }, _))), "{count}");
        refused(shim);

        let project = Project::new();
        let dial = wire::encode(&ToSandbox::Dial { count: 1, udp: false }).unwrap();
        send_many(&project.channel, &dial, held.as_fd(), count);
        assert!(project.ends(), "S survived {count} descriptors");

        if count != 3 {
            let image = Image::new();
            let mut project = Project::new();
            let container = project.launch();
            let plan = wire::encode(&ToContainer::Plan(Box::new(image.plan()))).unwrap();
            send_many(&container, &plan, held.as_fd(), count);
            let answer = receive(&container);
            assert!(!matches!(answer, Some((FromContainer::Started { .. }, _))), "{count}: {answer:?}");
        }
        drop(held);
        assert!(closed(), "somebody still holds one of {count} descriptors");
    }
}

#[test]
fn requests_out_of_their_time_end_their_reader() {
    // P takes one request, then at most that the maps are written, and only where it waits for that.
    let (ours, theirs) = pair();
    let shim = spawn_with(theirs);
    let mapped = containust_shared::protocol::Mapped { version: containust_shared::protocol::VERSION };
    send(&ours, &mapped, &[]);
    assert!(matches!(receive(&ours), Some((FromShim::Failed(_), _))));
    refused(shim);

    // Twice the first request: the second one goes to S.
    let project = Project::new();
    send(&project.channel, &first(), &[]);
    assert!(project.ends());

    let image = Image::new();
    let mut project = Project::new();
    let early = |message: ToContainer| {
        move |project: &mut Project| {
            let channel = project.launch();
            send(&channel, &message, &[]);
            let answer = receive(&channel);
            assert!(matches!(answer, Some((FromContainer::Failed { id: MAIN, .. }, _))), "{answer:?}");
            assert!(receive::<FromContainer>(&channel).is_none());
        }
    };
    let process = image.plan().process;
    early(ToContainer::Stat)(&mut project);
    early(ToContainer::Signal { id: MAIN, signal: 9 })(&mut project);
    early(ToContainer::Dial { count: 1 })(&mut project);
    early(ToContainer::Exec { id: 1, process })(&mut project);

    // A second plan, after the first.
    let channel = project.launch();
    let hold = |plan: &mut Plan| plan.process.tty = true;
    let mut plan = image.plan();
    hold(&mut plan);
    send(&channel, &ToContainer::Plan(Box::new(plan)), &[]);
    common::send_plan(&channel, image.plan());
    let mut answers = 0;
    while receive::<FromContainer>(&channel).is_some() {
        answers += 1;
        assert!(answers < 4, "C goes on after a second plan");
    }
    serves(&mut project);
}

/// A generator of numbers that is the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    /// Changes some bytes of a good message, or cuts it, or makes another one.
    fn mutate(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        match self.below(4) {
            0 => bytes = (0..self.below(600)).map(|_| self.below(256) as u8).collect(),
            1 => bytes.truncate(self.below(good.len())),
            _ => {
                for _ in 0..=self.below(4) {
                    let at = self.below(bytes.len());
                    bytes[at] = [0, 1, 0x7f, 0x80, 0xff, self.below(256) as u8][self.below(6)];
                }
            }
        }
        bytes
    }
}

#[test]
fn mutated_messages_are_refused_or_mean_what_they_say() {
    let rounds = if std::env::var_os("CTST_LONG").is_some() { 2000 } else { 100 };
    let mut random = Random(4);
    let image = Image::new();
    let good = wire::encode(&first()).unwrap();
    for _ in 0..rounds {
        let (ours, theirs) = pair();
        let mut shim = spawn_with(theirs);
        let bytes = random.mutate(&good);
        channel::send(&ours, &bytes, &[]).unwrap();
        let created = matches!(receive(&ours), Some((FromShim::Created { .. }, _)));
        drop(ours);
        let code = shim.wait().unwrap().code();
        assert!(matches!(code, Some(0 | exit::TOOL)), "{bytes:?}: created: {created}, {code:?}");
    }
    let dial = wire::encode(&ToSandbox::Dial { count: 1, udp: false }).unwrap();
    let launch = wire::encode(&ToSandbox::Launch { id: 1, networks: Vec::new(), grouped: false, alone: None }).unwrap();
    for round in 0..rounds {
        let project = Project::new();
        let bytes = random.mutate(if round % 2 == 0 { &dial } else { &launch });
        channel::send(&project.channel, &bytes, &[]).unwrap();
        rustix::net::shutdown(&project.channel, rustix::net::Shutdown::Write).unwrap();
        assert!(project.ends(), "S hangs after {bytes:?}");
    }
    let plan = wire::encode(&ToContainer::Plan(Box::new(image.plan()))).unwrap();
    let mut project = Project::new();
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    for _ in 0..rounds {
        let container = project.launch();
        channel::send(&container, &random.mutate(&plan), &[null.as_fd(); 3]).unwrap();
        rustix::net::shutdown(&container, rustix::net::Shutdown::Write).unwrap();
        while receive::<FromContainer>(&container).is_some() {}
    }
    serves(&mut project);
}

/// Who asks and never listens blocks S, and nobody else; S ends with the channel all the same.
#[test]
fn a_caller_that_does_not_listen_harms_himself_only() {
    let deaf = Project::new();
    rustix::io::ioctl_fionbio(&deaf.channel, true).unwrap();
    let dial = wire::encode(&ToSandbox::Dial { count: 1, udp: false }).unwrap();
    while channel::send(&deaf.channel, &dial, &[]).is_ok() {}
    serves(&mut Project::new());
    rustix::net::shutdown(&deaf.channel, rustix::net::Shutdown::Both).unwrap();
    assert!(deaf.ends());
}

#[test]
fn many_projects_at_once_keep_apart() {
    let count = if std::env::var_os("CTST_LONG").is_some() { 200 } else { 40 };
    let mut projects: Vec<Project> = (0..count).map(|_| Project::new()).collect();
    for project in projects.iter_mut().step_by(8) {
        serves(project);
    }
    let last = projects.pop().unwrap();
    drop(projects);
    send(&last.channel, &ToSandbox::Dial { count: 1, udp: false }, &[]);
    assert!(matches!(receive(&last.channel), Some((FromSandbox::Dialed, _))));
}

/// Ancillary data of other kinds: the kernel drops what the reader has not asked for.
#[test]
fn credentials_and_descriptors_of_the_channel_itself_change_nothing() {
    let mut project = Project::new();
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let (pid, uid, gid) = (rustix::process::getpid(), rustix::process::getuid(), rustix::process::getgid());
    let credentials = rustix::net::UCred { pid, uid, gid };
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmCredentials(credentials)));
    let dial = wire::encode(&ToSandbox::Dial { count: 1, udp: false }).unwrap();
    let flags = rustix::net::SendFlags::NOSIGNAL;
    rustix::net::sendmsg(&project.channel, &[std::io::IoSlice::new(&dial)], &mut control, flags).unwrap();
    assert!(matches!(receive(&project.channel), Some((FromSandbox::Dialed, _))));
    let urgent = rustix::net::send(&project.channel, &dial, rustix::net::SendFlags::OOB);
    assert!(urgent.is_err(), "a record socket has no urgent data");
    serves(&mut project);
    // The caller's own end as a container's channel: C reads what S has for the caller, and what C says ends S.
    let launch = ToSandbox::Launch { id: 77, networks: Vec::new(), grouped: false, alone: None };
    send(&project.channel, &launch, &[project.channel.as_fd()]);
    assert!(project.ends());
}

#[test]
fn who_did_not_start_it_is_no_caller() {
    // A shell that forks: it is the parent, but did not make the socket, and is no lasting process of the caller's.
    let (ours, theirs) = pair();
    let told = refused(spawn_by(&["sh", "-c", r#""$0"; exit $?"#], theirs));
    assert!(told.contains("the process that started this program has ended, or another one made the socket"), "{told}");
    assert!(receive::<FromShim>(&ours).is_none());
}

/// On a kernel without landlock P could not give up files: nothing starts. A tracer says what such a kernel says.
#[test]
fn nothing_starts_where_files_cannot_be_given_up() {
    // Others have no window.
    if !is_root() {
        return;
    }
    for (error, ends) in [("EOPNOTSUPP", false), ("ENOSYS", false), ("", true)] {
        let inject =
            if error.is_empty() { "read".to_owned() } else { format!("inject=landlock_create_ruleset:error={error}") };
        let (ours, theirs) = pair();
        // As a grandchild, so that the shim's parent is who made the socket.
        let mut shim = spawn_by(&["strace", "-D", "-o", "/dev/null", "-e", &inject], theirs);
        send(&ours, &first(), &[]);
        let answer = receive(&ours).unwrap().0;
        if ends {
            assert!(matches!(answer, FromShim::Created { .. }), "{answer:?}");
            assert!(shim.wait().unwrap().success());
            continue;
        }
        let FromShim::Failed(failure) = answer else { panic!("{error}: {answer:?}") };
        assert!(failure.step.starts_with("give up files (this kernel runs without landlock"), "{failure:?}");
        assert!(receive::<FromShim>(&ours).is_none(), "S lives");
        refused(shim);
    }
}

/// Exchanges `place` with each of `others`, back and forth, as fast as it can while `work` runs.
fn exchanging<T>(place: &std::path::Path, others: &[std::path::PathBuf], work: impl FnOnce() -> T) -> T {
    let busy = std::sync::atomic::AtomicBool::new(true);
    let exchange = |other: &std::path::Path| {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(rustix::fs::CWD, place, rustix::fs::CWD, other, flags).unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while busy.load(std::sync::atomic::Ordering::Relaxed) {
                for other in others {
                    exchange(other);
                    exchange(other);
                }
            }
        });
        let result = work();
        busy.store(false, std::sync::atomic::Ordering::Relaxed);
        result
    })
}

/// Starts containers for some seconds, each as far as its first program, which an empty root has not; how many came so far,
/// and how many were refused.
fn race(change: impl Fn(&mut Plan)) -> (u32, u32) {
    let seconds = if std::env::var_os("CTST_LONG").is_some() { 120 } else { 2 };
    let start = std::time::Instant::now();
    let (mut built, mut refused) = (0, 0);
    let mut plan = Image::new().plan();
    plan.layers.clear();
    (plan.upper, plan.work) = (None, None);
    plan.addresses.clear();
    change(&mut plan);
    let mut project = Project::new();
    project.networks.clear();
    // On a slow machine until there was a race at all.
    while start.elapsed().as_secs() < seconds || ((built == 0 || refused == 0) && start.elapsed().as_secs() < 40) {
        match project.run(plan.clone()).0 {
            FromContainer::Failed { code: exit::NOT_FOUND, .. } => built += 1,
            FromContainer::Failed { code: exit::TOOL, .. } => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    eprintln!("{built} built, {refused} refused");
    (built, refused)
}

fn folder(path: &std::path::Path) {
    fs::create_dir(path).unwrap();
    common::own(path);
}

/// Two containers share a folder, and one exchanges a folder in it with a link while the other starts with a mount below.
#[test]
fn links_that_are_swapped_lead_no_mount_out() {
    let scratch = tempfile::tempdir().unwrap();
    let (shared, canary) = (scratch.path().join("shared"), scratch.path().join("canary"));
    folder(&shared);
    folder(&canary);
    folder(&shared.join("a"));
    let links = [shared.join("absolute"), shared.join("up"), shared.join("proc")];
    std::os::unix::fs::symlink(&canary, &links[0]).unwrap();
    let up = "../".repeat(20) + canary.strip_prefix("/").unwrap().to_str().unwrap();
    std::os::unix::fs::symlink(up, &links[1]).unwrap();
    std::os::unix::fs::symlink("/proc/self/fd", &links[2]).unwrap();
    let (built, refused) = exchanging(&shared.join("a"), &links, || {
        race(|plan| {
            plan.mounts.push(Mount::Bind { source: source(&shared), target: b"/shared".into(), readonly: false });
            plan.mounts.push(Mount::Tmpfs { target: b"/shared/a/inner".into(), size: 0, mode: 0o755 });
            plan.mounts.push(Mount::File {
                target: b"/shared/a/file".into(),
                mode: 0o400,
                owner: Vec::new(),
                content: b"x".into(),
            });
        })
    });
    assert!(built > 0 && refused > 0, "{built} built, {refused} refused: there was no race");
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0, "a mount's place was made outside");
}

/// The source of a mount is exchanged with a link and with another folder, both of which lead to what is not to be had.
#[test]
fn a_source_that_is_swapped_is_never_mounted() {
    let scratch = tempfile::tempdir().unwrap();
    let scratch = scratch.path().canonicalize().unwrap();
    let (good, other, link) = (scratch.join("good"), scratch.join("other"), scratch.join("link"));
    folder(&good);
    folder(&other);
    let secret = scratch.join("secret");
    folder(&secret);
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    let checked = source(&good);
    // Whatever is mounted gets a file: the place of the mount in it.
    let (built, refused) = exchanging(&good, &[link, other.clone()], || {
        race(|plan| {
            plan.mounts.push(Mount::Bind { source: checked.clone(), target: b"/data".into(), readonly: false });
            plan.mounts.push(Mount::File {
                target: b"/data/mark".into(),
                mode: 0o400,
                owner: Vec::new(),
                content: b"x".into(),
            });
        })
    });
    assert!(built > 0 && refused > 0, "{built} built, {refused} refused: there was no race");
    assert!(good.join("mark").exists());
    for place in [&other, &secret] {
        assert_eq!(fs::read_dir(place).unwrap().count(), 0, "{} was mounted", place.display());
    }
}

#[test]
fn a_caller_that_leaves_ends_the_shim() {
    let (ours, theirs) = pair();
    let shim = spawn_with(theirs);
    drop(ours);
    refused(shim);
    let mut project = Project::new();
    let (ours, theirs) = pair();
    let launch = ToSandbox::Launch { id: 9, networks: Vec::new(), grouped: false, alone: None };
    send(&project.channel, &launch, &[theirs.as_fd()]);
    drop(theirs);
    let (answer, fds) = receive::<FromSandbox>(&project.channel).unwrap();
    assert_eq!((answer, fds.len()), (FromSandbox::Launched { id: 9 }, 1));
    drop(ours);
    let mut fds = [rustix::event::PollFd::new(&fds[0], rustix::event::PollFlags::IN)];
    let five = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&five)).unwrap(), 1, "C waits for a plan that nobody can send");
    serves(&mut project);
}

#[test]
fn groups_need_more_than_one_id() {
    if is_root() {
        eprintln!("skipped: root always has a range");
        return;
    }
    refuses(|plan, _| plan.process.groups = vec![b"0".to_vec()], 125, "only one id");
}

#[test]
fn another_version_after_the_maps_is_refused() {
    if is_root() {
        eprintln!("skipped: root maps its range itself");
        return;
    }
    let (ours, theirs) = pair();
    let shim = spawn_with(theirs);
    send(&ours, &ToShim::Sandbox(Sandbox { map: IdMap::Helper, ..request() }), &[]);
    assert!(matches!(receive(&ours), Some((FromShim::Created { .. }, fds)) if fds.len() == 1));
    send(&ours, &containust_shared::protocol::Mapped { version: 0 }, &[]);
    let Some((FromShim::Failed(failure), _)) = receive(&ours) else { panic!("no refusal") };
    assert!(failure.step.contains("another version"), "{failure:?}");
    refused(shim);
}

/// Descriptors that are on their way are counted for each user of the host, and a container's root can be the same one as S
/// and C: who uses all of them up keeps others from getting more, and ends nobody.
#[test]
fn descriptors_that_are_on_their_way_end_no_project() {
    let image = Image::new();
    // Others of this user have room enough: what is counted is compared with each process's own limit.
    let mut project = Project::by(&["prlimit", "--nofile=100:100"]);
    let waiting = project.launch();
    let (ours, theirs) = pair();
    let null = fs::File::open("/dev/null").unwrap();
    for _ in 0..2 {
        send_many(&ours, b"x", null.as_fd(), 100);
    }
    send(&project.channel, &ToSandbox::Dial { count: 1, udp: false }, &[]);
    let answer = receive(&project.channel);
    let errno = rustix::io::Errno::TOOMANYREFS.raw_os_error();
    assert!(matches!(&answer, Some((FromSandbox::DialFailed(failure), _)) if failure.errno == errno), "{answer:?}");
    let (container, c) = pair();
    let launch = ToSandbox::Launch { id: 77, networks: Vec::new(), grouped: false, alone: None };
    send(&project.channel, &launch, &[c.as_fd()]);
    drop(c);
    let answer = receive(&project.channel);
    assert!(matches!(&answer, Some((FromSandbox::LaunchFailed { id: 77, .. }, _))), "{answer:?}");
    assert!(receive::<FromContainer>(&container).is_none(), "a container goes on that nobody knows of");
    drop((ours, theirs));
    // The one that was there all the time, and a new one.
    common::send_plan(&waiting, image.plan());
    assert!(matches!(receive(&waiting), Some((FromContainer::Started { id: MAIN, .. }, _))));
    serves(&mut project);
}
