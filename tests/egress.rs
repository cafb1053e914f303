//! What leaves a project, and what does not, with a world of its own around the host.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::process::Command;
use std::time::Duration;

use containust_tests::{Caller, Project, World, eventually, finish, inside};
use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_tcp_quickack};
use rustix::net::{
    AddressFamily, Protocol, RawProtocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

const KEEP: &str = r#"image = "file://ROOTFS" command = ["/bin/ctst-probe", "serve", "80", "::"]"#;

/// What comes of a connection: `reached`, `refused`, or `silent`, whatever says so.
fn reach(project: &Project, from: &str, address: &str, interface: Option<&str>) -> String {
    let mut args = vec!["exec", from, "/bin/ctst-probe", "reach", address];
    args.extend(interface);
    let said = project.ctst(args).ok().stdout;
    said.split([':', '\n']).next().unwrap_or_default().to_owned()
}

fn fetch(project: &Project, from: &str, host: &str) -> String {
    let url = format!("http://{host}/");
    project.ctst(["exec", from, "timeout", "10", "wget", "-q", "-O-", &url]).stdout.trim().to_owned()
}

/// The pids of this project's processes with this word as an argument, or as the name.
fn pids(project: &Project, word: &str) -> Vec<i32> {
    let is_it = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).take(2).any(|part| part.ends_with(word.as_bytes()))
    };
    let mut all: Vec<i32> = project.processes().into_keys().map(|(pid, _)| pid).collect();
    all.retain(is_it);
    all
}

fn kill(pid: i32) {
    finish(Command::new("kill").args(["-9", &pid.to_string()])).ok();
}

fn callers() -> Vec<Caller> {
    if Caller::root().is_none() {
        return Vec::new();
    }
    Caller::all().into_iter().chain(Caller::strict()).collect()
}

const STACK: &str = r#"
NETWORK out { internal = false, ipv6 = true }
NETWORK away { internal = false, subnet = "10.77.9.0/24" }
NETWORK back
COMPONENT web { KEEP network = "out" }
COMPONENT other { KEEP networks { away { address = "10.77.9.9" } } }
COMPONENT both { KEEP networks = ["back", "out"] }
COMPONENT inner { KEEP network = "back" }
COMPONENT plain { KEEP }
"#;

fn stack() -> String {
    STACK.replace("KEEP", KEEP)
}

#[test]
fn who_has_a_way_out_takes_it_and_nobody_else() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let project = Project::within(caller, &stack(), &world);
        let there = World::THERE.to_string();
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(plan.contains("web: a way out by the network out"), "{plan}");
        project.ctst(["run", "-d"]).fails(125, &["a way out by the network out", "--yes"]);
        project.up();
        for from in ["web", "both", "other"] {
            eventually("it gets out", || fetch(&project, from, &there) == format!("seen from {}", World::HOME));
            assert_eq!(fetch(&project, from, World::NAME), format!("seen from {}", World::HOME), "{from} by name");
            let unknown = project.ctst(["exec", from, "nslookup", "nobody.example"]);
            assert!(unknown.stdout.contains("NXDOMAIN"), "{unknown:?}");
        }
        let checks = project.ctst(["doctor", "net", "--format", "json"]).ok().json();
        let about = |name: &str| checks.as_array().expect("a list").iter().filter(|c| c["component"] == name).count();
        assert_eq!((about("web"), about("inner")), (2, 1), "names, and a way out where there is one: {checks:#}");
        // Names of the project are still its own.
        assert_eq!(fetch(&project, "web", "both"), "hello from both");
        for from in ["inner", "plain"] {
            assert_eq!(reach(&project, from, &format!("{there}:80"), None), "silent", "{from}");
            assert_eq!(reach(&project, from, &format!("{there}:80"), Some("eth0")), "silent", "{from}");
            let unknown = project.ctst(["exec", from, "nslookup", World::NAME]);
            assert!(unknown.stdout.contains("NXDOMAIN"), "{unknown:?}");
        }
        // Not the way to other networks, be they with a way out or without, nor what is the host's alone.
        let address = |component: &str, network: &str| {
            let row = project.status(component);
            let pairs = row["addresses"].as_array().cloned().unwrap_or_default();
            let pair = pairs.iter().find(|pair| pair[0] == network).expect("it is on it");
            format!("{}:80", pair[1].as_str().expect("an address"))
        };
        assert_eq!(reach(&project, "web", &address("both", "out"), None), "reached");
        // By IPv4 only: on the network itself there is IPv6, and no way from there.
        let pairs = project.status("both")["addresses"].as_array().cloned().unwrap_or_default();
        let six =
            pairs.iter().filter_map(|pair| pair[1].as_str()).find(|ip| ip.contains(':')).expect("an IPv6 address");
        assert_eq!(reach(&project, "web", &format!("[{six}]:9"), None), "refused");
        for target in ["[2001:db8::2]:80".to_owned(), format!("[{}]:80", World::HOME6)] {
            for interface in [None, Some("eth0")] {
                assert_eq!(reach(&project, "web", &target, interface), "silent", "{target} over {interface:?}");
            }
        }
        let loopback = world.on_loopback();
        for target in [
            "10.77.9.9:80".to_owned(),
            address("inner", "back"),
            address("plain", "bridge"),
            format!("{}:80", World::METADATA),
            format!("169.254.89.2:{loopback}"),
            format!("169.254.89.1:{loopback}"),
            format!("127.0.0.1:{loopback}"),
        ] {
            for interface in [None, Some("eth0")] {
                let result = reach(&project, "web", &target, interface);
                assert!(["silent", "refused"].contains(&&*result), "{target} over {interface:?}: {result}");
            }
        }
        // The project's name server is asked, and not passt, as which builds ask it: behind that may be a resolver on this host's loopback.
        let look_up = |more: &[&str]| {
            let words = [&["exec", "web", "timeout", "2", "nslookup", World::NAME][..], more].concat();
            project.ctst(words).stdout.contains(&World::THERE.to_string())
        };
        assert!(look_up(&[]));
        for passt in ["169.254.89.3", "192.0.0.8"] {
            assert!(!look_up(&[passt]), "{passt} answers");
        }
        project.stop();
        assert_eq!(project.ctst(["plan"]).ok().stdout.matches("a way out").count(), 0, "it was agreed to");
    });
}

/// passt tells of a segment that has no flags while what it has carried is not acknowledged, as is usual beyond one's own cable.
#[test]
fn who_is_acknowledged_late_is_answered() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let project = Project::within(caller, &stack(), &world);
        let listener = world.elsewhere(|| TcpListener::bind((World::THERE, 8081)).expect("bind"));
        // It is inherited, and has the kernel wait for 40 ms.
        set_tcp_quickack(&listener, false).expect("set an option");
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.expect("accept");
                set_tcp_quickack(&client, false).expect("set an option");
                let mut said = [0; 6];
                client.read_exact(&mut said).expect("read");
                std::thread::sleep(Duration::from_millis(300));
                client.write_all(b"heard ").and_then(|()| client.write_all(&said)).expect("write");
            }
        });
        project.up();
        for _ in 0..3 {
            let talk = format!("(sleep 0.2; echo hello; sleep 1) | timeout 10 nc {} 8081", World::THERE);
            assert_eq!(project.ctst(["exec", "web", "sh", "-c", &talk]).ok().stdout, "heard hello\n");
        }
        project.stop();
    });
}

/// What is refused changes nothing, also for who is started again later.
#[test]
fn a_refused_run_opens_no_network() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let text = |internal: bool, more: &str| {
            format!("NETWORK out {{ internal = {internal} }}\nCOMPONENT web {{ {KEEP} network = \"out\" }}\n{more}")
        };
        let script = "touch \"${0%/*}/was-started\"; exec /usr/bin/passt \"$@\"";
        let project = with_passt(caller, &world, &text(true, ""), script);
        project.up();
        // It is bound and does not listen, so that only who binds to it is told.
        let taken = world.at_home(|| {
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
            let socket = socket.expect("make a socket");
            rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("bind");
            TcpListener::from(socket)
        });
        let port = taken.local_addr().expect("an address").port();
        project.write("stack.ctst", &text(false, &format!("EXPOSE {port} -> web:80\n")));
        let done = project.ctst(["run", "-d", "--yes"]);
        assert!(done.code == 125 && done.stderr.contains(&port.to_string()), "{done}");
        assert!(!project.folder().join("was-started").exists(), "what would carry it was started");
        project.ctst(["restart", "web"]).ok();
        let outside = format!("{}:80", World::THERE);
        for interface in [None, Some("eth0")] {
            let result = reach(&project, "web", &outside, interface);
            assert!(["silent", "refused"].contains(&&*result), "over {interface:?}: {result}");
        }
        // What is not refused does.
        drop(taken);
        project.ctst(["run", "-d", "--wait", "--yes"]).ok();
        eventually("it gets out", || reach(&project, "web", &outside, None) == "reached");
        assert!(project.folder().join("was-started").exists());
        project.stop();
    });
}

/// Kills what carries the project's packets, from the outside in.
#[test]
fn a_way_that_breaks_is_mended() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let project = Project::within(caller, &stack(), &world);
        project.up();
        let there = World::THERE.to_string();
        let gets_out = || fetch(&project, "web", &there) == format!("seen from {}", World::HOME);
        eventually("it gets out", gets_out);
        let [passt] = pids(&project, "/passt")[..].try_into().unwrap_or([0]);
        kill(passt);
        eventually("another takes its place", || pids(&project, "/passt").iter().any(|pid| *pid != passt));
        eventually("it gets out again", gets_out);
        let log =
            || std::fs::read_to_string(project.folder().join(".containust/supervisor.log")).expect("read the log");
        assert!(log().contains("nothing leaves the project: passt") && log().contains("signal: 9"), "{}", log());

        let [keeper] = pids(&project, "egress")[..].try_into().unwrap_or([0]);
        kill(keeper);
        eventually("passt ends with it", || pids(&project, "/passt").is_empty());
        eventually("it is told", || log().contains("the process for it was killed"));
        let started = project.status("web")["started"].clone();
        project.up();
        eventually("the next run mends it", gets_out);
        assert_eq!(project.status("web")["started"], started, "nothing was started anew");

        // With the supervisor goes everything.
        let supervisor = project.parts().into_iter().find(|(_, part)| *part == "supervisor").expect("it runs").0;
        project.note();
        kill(supervisor);
        project.assert_nothing_left();
    });
}

#[test]
fn a_way_that_nobody_wants_any_more_is_closed() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let project = Project::within(caller, &stack(), &world);
        project.up();
        let there = World::THERE.to_string();
        let gets_out = || fetch(&project, "web", &there) == format!("seen from {}", World::HOME);
        let is_open = || !pids(&project, "egress").is_empty() || !pids(&project, "/passt").is_empty();
        eventually("it gets out", gets_out);
        project.write("stack.ctst", &stack().replace("internal = false", "internal = true"));
        project.up();
        eventually("nobody carries anything", || !is_open());
        assert_eq!(reach(&project, "web", &format!("{there}:80"), None), "silent");
        project.write("stack.ctst", &stack());
        project.up();
        eventually("it gets out once more", gets_out);
        project.ctst(["stop", "web", "other", "both"]).ok();
        eventually("nobody carries anything any more", || !is_open());
        project.stop();
    });
}

#[test]
fn offline_there_is_none() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let project = Project::within(caller, &stack(), &world);
        let up = project.ctst(["run", "-d", "--wait", "--offline"]).ok();
        assert!(up.stderr.contains("offline: no way out by away, out\n"), "{up:?}");
        assert!(pids(&project, "egress").is_empty(), "nothing is there that could carry it");
        for from in ["web", "both", "other"] {
            assert_eq!(reach(&project, from, &format!("{}:80", World::THERE), Some("eth0")), "silent", "{from}");
            let unknown = project.ctst(["exec", from, "nslookup", World::NAME]);
            assert!(unknown.stdout.contains("NXDOMAIN"), "{unknown:?}");
        }
        assert_eq!(fetch(&project, "web", "both"), "hello from both");
        // Back on the network they are others.
        project.ctst(["run", "-d", "--wait", "--yes"]).ok();
        eventually("it gets out", || fetch(&project, "web", World::NAME) == format!("seen from {}", World::HOME));
        project.stop();
    });
}

#[test]
fn what_is_missing_is_named() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let mut project = Project::within(caller, &stack(), &world);
        for command in [&["plan"][..], &["run", "-d", "--yes"]] {
            "PATH=/nonexistent".clone_into(&mut project.prelude);
            project.ctst(command).fails(125, &["S0411", "passt is not installed", "apt install passt"]);
        }
        // It would do the work, and not be confined as much.
        let other = project.folder().join("only");
        std::fs::create_dir(&other).expect("make a folder");
        std::os::unix::fs::symlink("/bin/true", other.join("slirp4netns")).expect("make a link");
        project.prelude = format!("PATH={}", other.display());
        let words = ["S0411", "passt is not installed, and slirp4netns, which is,", "apt install passt"];
        project.ctst(["run", "-d", "--yes"]).fails(125, &words);
        let doctor = project.ctst(["doctor"]).stdout;
        let line = doctor.lines().find(|line| line.starts_with("way out")).unwrap_or_default();
        assert!(line.contains("slirp4netns, which is,"), "{doctor}");
        "mount --bind /dev/null /dev/net/tun".clone_into(&mut project.prelude);
        let done = project.ctst(["run", "-d", "--wait", "--yes"]);
        assert!(done.code != 0, "{done:?}");
        for words in ["give the project a way out", "/dev/net/tun"] {
            assert!(done.stderr.contains(words), "{done:?}");
        }
        project.ctst(["stop"]);
        project.assert_nothing_left();
    });
}

/// TCP of no connection (SYN and FIN at once) from this address to [`World::THERE`].
fn stray(from: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(from.octets());
    packet.extend(World::THERE.octets());
    packet.extend([0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x03, 0x10, 0, 0, 0, 0, 0]);
    packet
}

/// Conntrack does not translate what belongs to no connection, and passt sends answers to who sent last.
#[test]
fn nothing_leaves_in_the_name_of_a_container() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let project = Project::within(caller, &stack(), &world);
        project.up();
        eventually("it gets out", || fetch(&project, "web", World::NAME) == format!("seen from {}", World::HOME));
        let sandbox = project.parts().into_iter().find(|(_, part)| *part == "S").expect("S runs").0;
        let all = Protocol::from_raw(RawProtocol::new(3_u32.to_be() >> 16).expect("not zero"));
        let tap = inside(sandbox, || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket =
                socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(all)).expect("a packet socket");
            // What the bridges' IPv6 says in their first seconds fills the usual one.
            set_socket_recv_buffer_size_force(&socket, 16 << 20).expect("have a large buffer");
            socket
        });
        let pid = i32::try_from(project.status("web")["pid"].as_i64().expect("a pid")).expect("a pid");
        let own: Ipv4Addr =
            project.status("web")["address"].as_str().expect("an address").parse().expect("one of IPv4");
        let sent = inside(pid, || {
            let raw = Protocol::from_raw(RawProtocol::new(255).expect("not zero"));
            let socket = socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(raw));
            let socket = socket.expect("a raw socket");
            let to = SocketAddrV4::new(World::THERE, 0);
            for _ in 0..10 {
                sendto(&socket, &stray(own), SendFlags::empty(), &to).expect("send");
            }
            // What is not translated because it has the right sender already comes over the wrong link.
            sendto(&socket, &stray(Ipv4Addr::new(169, 254, 89, 2)), SendFlags::empty(), &to).is_ok()
        });
        assert!(sent, "the packets were sent");
        assert_eq!(fetch(&project, "web", &World::THERE.to_string()), format!("seen from {}", World::HOME));
        let (mut own_name, mut translated, mut buffer) = (0, 0, [0; 65_536]);
        while let Ok((length, _)) = recv(&tap, &mut buffer[..], RecvFlags::empty()) {
            let frame = &buffer[..length];
            // Bridges, and who is on them, have hardware addresses that begin so.
            let leaves = length >= 34 && frame[12..14] == [8, 0] && frame[..2] != [0x02, 0x42] && frame[0] & 1 == 0;
            if leaves && frame[30..34] == World::THERE.octets() {
                let source = &frame[26..30];
                own_name += usize::from(source == own.octets());
                translated += usize::from(source == [169, 254, 89, 2]);
            }
        }
        assert!(own_name == 0 && translated > 0, "{own_name} as the container, {translated} as the project");
        project.stop();
    });
}

/// A project whose passt is this script.
fn with_passt<'a>(caller: &'a Caller, world: &'a World, text: &str, script: &str) -> Project {
    let mut project = Project::within(caller, text, world);
    project.write("passt", &format!("#!/bin/sh\n{script}\n"));
    let fake = project.folder().join("passt");
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set a mode");
    project.prelude = format!("PATH={}:$PATH", project.folder().display());
    project
}

/// As passt ends on a host without user namespaces, or without a route; and one that does nothing at all.
#[test]
fn a_passt_that_refuses_stops_the_start() {
    Caller::at_once(callers(), |caller| {
        for (script, why) in [
            ("echo no user namespace for you >&2; exit 1", "passt: no user namespace for you"),
            ("exec sleep 1000", "passt answers nothing"),
            ("kill -SYS $$", "passt ended: signal: 31"),
        ] {
            let world = World::new();
            let mut project = with_passt(caller, &world, &stack(), script);
            project.ctst(["run", "-d", "--yes"]).fails(125, &["S0411", why, "ctst run --offline"]);
            let why = format!("give the project a way out: {why}");
            for name in ["web", "other", "both"] {
                let row = project.status(name);
                let told = row["failure"]["message"].as_str().is_some_and(|text| text.contains(&why));
                assert!(row["state"] == "failed" && row["started"].is_null() && told, "it never ran: {row:#}");
            }
            assert_eq!(project.status("inner")["state"], "running", "who does not leave is not concerned");
            eventually("nothing of it stays", || pids(&project, "egress").is_empty());
            // One that works is found by the next run, in the project that runs.
            project.prelude.clear();
            let started = project.status("inner")["started"].clone();
            project.up();
            eventually("it gets out", || fetch(&project, "web", World::NAME) == format!("seen from {}", World::HOME));
            assert_eq!(project.status("inner")["started"], started, "it is not concerned");
            project.stop();
        }
    });
}

/// One that is there and does nothing, as after a deadlock.
#[test]
fn a_passt_that_hangs_is_replaced() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let project = Project::within(caller, &stack(), &world);
        project.up();
        let gets_out = || fetch(&project, "web", World::NAME) == format!("seen from {}", World::HOME);
        eventually("it gets out", gets_out);
        let passt = pids(&project, "/passt")[0];
        finish(Command::new("kill").args(["-STOP", &passt.to_string()])).ok();
        eventually("another takes its place", || pids(&project, "/passt").iter().any(|pid| *pid != passt));
        eventually("it gets out again", gets_out);
        let log = std::fs::read_to_string(project.folder().join(".containust/supervisor.log")).expect("read the log");
        assert!(log.contains("nothing leaves the project: passt answers nothing"), "{log}");
        let told = project.ctst(["events"]).ok().stdout;
        assert!(told.contains("what leaves its networks gets through again"), "{told}");
        project.stop();
    });
}

/// What SECURITY.md says of them.
#[test]
fn who_carries_what_leaves_is_confined() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let project = Project::within(caller, &stack(), &world);
        project.up();
        eventually("it gets out", || fetch(&project, "web", World::NAME) == format!("seen from {}", World::HOME));
        let says = |file: String, line: &str| {
            let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("read {file}: {error}"));
            let found = text.lines().find_map(|entry| entry.strip_prefix(line)).map(|value| value.trim().to_owned());
            found.unwrap_or_else(|| panic!("no {line} in {file}"))
        };
        let none = "0000000000000000";
        let (passt, keeper) = (pids(&project, "/passt")[0], pids(&project, "egress")[0]);
        let status = |line: &str| says(format!("/proc/{passt}/status"), line);
        assert_eq!((&*status("NoNewPrivs:"), &*status("Seccomp:"), &*status("CapEff:")), ("1", "2", none));
        assert!(!status("Uid:").starts_with("0\t"), "passt is not root");
        let root = std::fs::read_dir(format!("/proc/{passt}/root")).expect("read its root").count();
        assert_eq!(root, 0, "its root is empty");
        let threads = std::fs::read_dir(format!("/proc/{keeper}/task")).expect("read its threads");
        let threads = threads.map(|thread| thread.expect("a thread").path().join("status").display().to_string());
        let mut threads = threads.filter(|status| says(status.clone(), "Name:") == "egress");
        let relay = threads.next().expect("it carries frames");
        assert_eq!((&*says(relay.clone(), "NoNewPrivs:"), &*says(relay, "CapEff:")), ("1", none));
        project.stop();
    });
}

/// One that does not notice that its socket is closed.
#[test]
fn a_hung_passt_goes_with_its_keeper() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let project = Project::within(caller, &stack(), &world);
        project.up();
        eventually("it is there", || pids(&project, "/passt").len() == 1);
        project.note();
        let passt = pids(&project, "/passt")[0];
        finish(Command::new("kill").args(["-STOP", &passt.to_string()])).ok();
        kill(pids(&project, "egress")[0]);
        eventually("it is ended", || pids(&project, "/passt").is_empty());
        project.stop();
    });
}

#[test]
fn a_plan_with_a_way_out_is_not_run_offline() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let project = Project::within(caller, &stack(), &world);
        project.ctst(["plan", "-o", "plan.json"]).ok();
        let words = ["run plan.json offline", "has a way out", "ctst plan --offline"];
        project.ctst(["run", "plan.json", "-d", "--yes", "--offline"]).fails(125, &words);
        project.ctst(["plan", "--offline", "-o", "plan.json"]).ok();
        project.ctst(["run", "plan.json", "-d", "--wait", "--offline"]).ok();
        assert!(pids(&project, "egress").is_empty());
        project.stop();
    });
}
