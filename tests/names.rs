//! The project's name server, asked from inside of containers: by programs as they come, and by messages that nobody should
//! send.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use containust_tests::archive::Archive;
use containust_tests::{Caller, Project, eventually};

const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const NXDOMAIN: u8 = 3;

/// A server with three replicas, a component with other names, one that asks, and one that runs glibc's own programs.
const STACK: &str = r#"
COMPONENT web { image = "file://ROOTFS" command = ["/bin/ctst-probe", "serve", "80"] port = 80 replicas = 3 restart = "always" }
COMPONENT my_db { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] hostname = "db.example" }
COMPONENT user {
  image   = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  hosts   { "further.example" = "192.0.2.7", six = "2001:db8::1" }
}
COMPONENT glibc {
  image   = ["host:///bin/busybox", "host:///usr/bin/getent"]
  command = ["sleep", "1000000"]
}
"#;

/// A question (RFC 1035, 4.1).
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).expect("a short label"));
        message.extend(label.as_bytes());
    }
    message.extend([0, (kind >> 8) as u8, kind as u8, 0, 1]);
    message
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).expect("a short message").to_be_bytes(), message].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An answer: response code, the TC bit, and the addresses of its A records.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    code: u8,
    cut: bool,
    ips: Vec<String>,
}

fn answer(line: &str, question: &[u8]) -> Option<Answer> {
    let bytes: Vec<u8> = (0..line.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(line.get(at..at + 2)?, 16).ok())
        .collect::<Option<_>>()?;
    assert!(bytes.len() >= 12 && bytes[..2] == question[..2] && bytes[2] & 0x80 != 0, "{line}");
    let count = usize::from(u16::from_be_bytes([bytes[6], bytes[7]]));
    // Each is a pointer to the question's name, ten bytes, and the address.
    let end = bytes.iter().skip(12).position(|byte| *byte == 0).map_or(bytes.len(), |at| 12 + at + 5);
    let records = bytes.get(end..).unwrap_or_default().chunks_exact(16);
    let ips: Vec<_> = records.map(|r| format!("{}.{}.{}.{}", r[12], r[13], r[14], r[15])).collect();
    assert!(bytes[3] & 0xf != 0 || ips.len() == count || question.ends_with(&[0, 12, 0, 1]), "{line}");
    Some(Answer { code: bytes[3] & 0xf, cut: bytes[2] & 2 != 0, ips })
}

struct Inside<'a> {
    project: &'a Project,
    server: String,
}

impl<'a> Inside<'a> {
    fn new(project: &'a Project) -> Self {
        let text = project.ctst(["exec", "user", "cat", "/etc/resolv.conf"]).ok().stdout;
        let server = text.strip_prefix("nameserver ").unwrap_or_else(|| panic!("{text}")).trim().to_owned();
        Self { project, server }
    }

    /// What `user`'s probe hears, a line for each message.
    fn send(&self, how: &str, messages: &[Vec<u8>]) -> Vec<String> {
        let mut words = ["exec", "user", "/bin/ctst-probe", "dns", &self.server, how].map(str::to_owned).to_vec();
        words.extend(messages.iter().map(|message| hex(message)));
        self.project.ctst(words).ok().stdout.lines().map(str::to_owned).collect()
    }

    fn ask(&self, name: &str, kind: u16) -> Answer {
        let question = question(name, kind);
        let line = self.send("udp", std::slice::from_ref(&question)).swap_remove(0);
        answer(&line, &question).unwrap_or_else(|| panic!("{name}: {line}"))
    }

    fn ips(&self, name: &str) -> BTreeSet<String> {
        let answer = self.ask(name, A);
        assert_eq!(answer.code, 0, "{name}");
        answer.ips.into_iter().collect()
    }

    fn is_unknown(&self, name: &str) -> bool {
        self.ask(name, A) == Answer { code: NXDOMAIN, cut: false, ips: Vec::new() }
    }

    /// Its address as `ps` has it.
    fn ip(&self, component: &str) -> String {
        self.project.status(component)["address"].as_str().expect("an address").to_owned()
    }
}

#[test]
fn programs_find_what_there_is_and_nothing_else() {
    for caller in Caller::all().into_iter().chain(Caller::strict()) {
        let project = Project::new(&caller, STACK);
        project.up();
        let inside = Inside::new(&project);
        let ip = |component: &str| inside.ip(component);
        let replicas: BTreeSet<String> = ["web-1", "web-2", "web-3"].map(ip).into();
        for (name, found) in
            [("my_db", "my_db"), ("my-db", "my_db"), ("MY-DB", "my_db"), ("db.Example.", "my_db"), ("Web-2", "web-2")]
        {
            assert_eq!(inside.ips(name), [ip(found)].into(), "{name} as {}", caller.name);
            assert_eq!(inside.ask(name, AAAA), Answer { code: 0, cut: false, ips: Vec::new() });
        }
        assert_eq!(inside.ips("web"), replicas);
        let firsts: BTreeSet<String> = (0..9).map(|_| inside.ask("web", A).ips.swap_remove(0)).collect();
        assert_eq!(firsts, replicas, "each has its turn");
        assert_eq!(inside.ips("localhost"), ["127.0.0.1".to_owned()].into());
        // Of `user` alone.
        assert_eq!(inside.ips("further.example"), ["192.0.2.7".to_owned()].into());
        assert_eq!(inside.ask("six", A), Answer { code: 0, cut: false, ips: Vec::new() });
        for name in ["nothing", "web-4", "example", "x.web", "debian.org", "my_db.local", "."] {
            assert!(inside.is_unknown(name), "{name}");
        }

        let run = |component: &str, words: &[&str]| project.ctst([&["exec", component], words].concat());
        let nslookup = run("user", &["nslookup", "-type=a", "MY-db"]).ok().stdout;
        assert!(nslookup.contains(&format!("Address: {}\n", ip("my_db"))), "{nslookup}");
        let start = Instant::now();
        let nothing = run("user", &["nslookup", "nothing"]);
        assert!(nothing.code != 0 && nothing.stdout.contains("NXDOMAIN"), "{nothing}");
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        let pointer = run("user", &["nslookup", &ip("my_db")]).ok().stdout;
        assert!(pointer.contains("name = db.example"), "{pointer}");
        assert_eq!(inside.ask("9.9.9.10.in-addr.arpa", PTR).code, NXDOMAIN);
        // getaddrinfo and getnameinfo, for whom /etc/hosts and DNS are one.
        for (name, found) in [("my_db", ip("my_db")), ("web-3", ip("web-3")), ("glibc", ip("glibc"))] {
            let got = run("glibc", &["getent", "ahostsv4", name]).ok().stdout;
            assert!(got.starts_with(&format!("{found} ")), "{name}: {got}");
        }
        let all = run("glibc", &["getent", "ahostsv4", "web"]).ok().stdout;
        let all: BTreeSet<String> = all.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect();
        assert_eq!(all, replicas);
        assert_eq!(
            run("glibc", &["getent", "hosts", &ip("web-1")]).ok().stdout.split_whitespace().last(),
            Some("web-1")
        );
        run("glibc", &["getent", "hosts", "further.example"]).fails(2, &[]);
        assert!(run("user", &["ping", "-c1", "-w1", "further.example"]).stdout.contains("(192.0.2.7)"));
        let start = Instant::now();
        run("glibc", &["getent", "hosts", "nothing"]).fails(2, &[]);
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        assert_eq!(run("user", &["wget", "-q", "-O-", "http://web-2/"]).ok().stdout, "hello from web-2\n");
        project.stop();
    }
}

#[test]
fn names_follow_what_happens() {
    let project = Project::new(&Caller::ordinary(), STACK);
    project.up();
    let inside = Inside::new(&project);
    let all = inside.ips("web");
    assert_eq!(all.len(), 3);
    // Stopped: at once.
    let second = inside.ip("web-2");
    project.ctst(["stop", "web-2"]).ok();
    assert!(inside.is_unknown("web-2"));
    let mut rest = all.clone();
    rest.remove(&second);
    assert_eq!(inside.ips("web"), rest);
    project.ctst(["run", "-d", "--wait", "--yes", "web-2"]).ok();
    assert_eq!(inside.ips("web").len(), 3);
    // Restarted by us and by itself: never unknown.
    let steady = |what: &str, doing: &mut dyn FnMut() -> bool| loop {
        let done = doing();
        assert_eq!(inside.ips("web-1").len(), 1, "{what}");
        assert!(!inside.ips("web").is_empty(), "{what}");
        if done {
            break;
        }
    };
    let mut restart = project.start(["restart", "web-1"]);
    steady("a restart", &mut || restart.child().try_wait().expect("wait").is_some());
    project.ctst(["exec", "web-1", "kill", "-9", "2"]);
    steady("an end", &mut || {
        let row = project.status("web-1");
        row["state"] == "running" && row["restarts"] == 1
    });
    eventually("all are in the group again", || inside.ips("web").len() == 3);
    // Replaced, and one more; another is gone.
    let changed = STACK
        .replace("replicas = 3", "replicas = 3 env = { NEW = \"1\" }")
        .replace("COMPONENT my_db", "COMPONENT other");
    project.write("stack.ctst", &changed.replace("db.example", "other.example"));
    let mut run = project.start(["run", "-d", "--wait", "--yes"]);
    steady("a replacement", &mut || run.child().try_wait().expect("wait").is_some());
    assert!(inside.is_unknown("my_db") && inside.is_unknown("db.example"));
    assert_eq!(inside.ips("other"), [inside.ip("other")].into());
    assert_eq!(inside.ips("other.example"), inside.ips("other"));
    let ips: BTreeSet<String> = ["web-1", "web-2", "web-3"].map(|name| inside.ip(name)).into();
    assert_eq!(inside.ips("web"), ips);
    // All of a group.
    project.ctst(["stop", "web"]).ok();
    assert!(inside.is_unknown("web") && inside.is_unknown("web-1"));
    project.stop();
}

#[test]
fn what_is_no_question_harms_nobody() {
    let project = Project::new(&Caller::ordinary(), STACK);
    project.up();
    let inside = Inside::new(&project);
    let good = question("web-1", A);
    let with = |at: usize, to: u8| {
        let mut message = good.clone();
        message[at] = to;
        message
    };
    let mut pointer = good[..12].to_vec();
    pointer.extend([0xc0, 12, 0, 1, 0, 1]);
    let mut chain = good[..12].to_vec();
    (0..600u16).for_each(|n| chain.extend((0xc000 | (12 + 2 * n)).to_be_bytes()));
    let mut edns = with(11, 1);
    edns.extend([0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let long = [&good[..12], &[63; 3000]].concat();
    let cases: Vec<(&str, Vec<u8>, Option<u8>)> = vec![
        ("nothing", vec![], None),
        ("half a header", good[..11].to_vec(), None),
        ("an answer", with(2, 0x81), None),
        ("zeros", vec![0; 512], Some(1)),
        ("a header alone", good[..12].to_vec(), Some(1)),
        ("half a name", good[..15].to_vec(), Some(1)),
        ("half a type", good[..good.len() - 3].to_vec(), Some(1)),
        ("two questions", with(5, 2), Some(1)),
        ("65280 questions", with(4, 0xff), Some(1)),
        ("a pointer to itself", pointer, Some(1)),
        ("a chain of pointers", chain, Some(1)),
        ("a name without an end", long, Some(1)),
        ("an update", with(2, 0x28), Some(4)),
        ("another class", with(good.len() - 1, 4), Some(5)),
        ("records that are not there", with(6, 0xff), Some(0)),
        ("EDNS with a cookie", edns.clone(), Some(0)),
        ("EDNS and 20 kB behind it", [edns, vec![0xff; 20_000]].concat(), Some(0)),
    ];
    let messages: Vec<Vec<u8>> = cases.iter().map(|(_, message, _)| message.clone()).collect();
    for how in ["udp", "tcp"] {
        let sent: Vec<Vec<u8>> =
            if how == "udp" { messages.clone() } else { messages.iter().map(|message| framed(message)).collect() };
        for ((what, message, code), line) in cases.iter().zip(inside.send(how, &sent)) {
            // By TCP there is one to hang up on, and nobody needs so much.
            let silence = if how == "udp" { "none" } else { "closed" };
            match code {
                Some(code) if how == "udp" || message.len() <= 2048 => {
                    let answer = answer(&line, message).unwrap_or_else(|| panic!("{what} by {how}: {line}"));
                    assert_eq!(answer.code, *code, "{what} by {how}");
                }
                _ => assert_eq!(line, silence, "{what} by {how}"),
            }
        }
    }
    // Somebody who begins to ask and does not go on.
    let lines = inside.send("tcp", &[vec![], vec![0], vec![0, 40, 1, 2], vec![0xff, 0xff, 1]]);
    assert_eq!(lines, ["none", "none", "none", "closed"]);
    assert_eq!(inside.ips("web-1"), [inside.ip("web-1")].into());
    project.stop();
}

/// Bytes that the supervisor has in memory.
fn memory(project: &Project) -> (i32, u64) {
    let (pid, _) = *project.parts().iter().find(|(_, part)| *part == "supervisor").expect("a supervisor");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read of the supervisor");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    (pid, line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024)
}

#[test]
fn a_flood_takes_neither_the_server_nor_the_supervisor() {
    let project = Project::new(&Caller::ordinary(), STACK);
    project.up();
    let inside = Inside::new(&project);
    let (pid, before) = memory(&project);
    let floods: Vec<_> = (1..=3)
        .map(|n| project.start(["exec", &format!("web-{n}"), "/bin/ctst-probe", "flood", &inside.server, "6"]))
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    for _ in 0..5 {
        assert!(!project.ps().is_empty());
        project.ctst(["exec", "my_db", "true"]).ok();
    }
    project.ctst(["restart", "my_db"]).ok();
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    // Connections are for everybody, however many somebody opens.
    let good = question("web-1", A);
    let lines = inside.send("tcp", &vec![framed(&good); 3]);
    assert!(lines.iter().all(|line| answer(line, &good).is_some_and(|answer| answer.code == 0)), "{lines:?}");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("list descriptors").count();
    assert!(open < 250, "{open} descriptors");
    for flood in floods {
        let done = flood.wait(Duration::from_secs(60)).ok();
        assert!(done.stdout.trim().parse::<u64>().expect("a number") > 10_000, "{done}");
    }
    let (same, after) = memory(&project);
    assert!(same == pid && after < before + (8 << 20), "{before} {after}");
    assert_eq!(inside.ips("web-1"), [inside.ip("web-1")].into());
    project.stop();
}

#[test]
fn ten_thousand_questions_under_load_have_ten_thousand_answers() {
    let project = Project::new(&Caller::ordinary(), STACK);
    project.up();
    let inside = Inside::new(&project);
    let busy: Vec<_> = (1..=2)
        .map(|n| {
            project.start(["exec", &format!("web-{n}"), "/bin/sh", "-c", "timeout 120 sh -c 'while :; do :; done'"])
        })
        .collect();
    let done = project
        .ctst(["exec", "user", "/bin/ctst-probe", "look-up", &inside.server, &hex(&question("web", A)), "10000", "8"])
        .ok();
    assert_eq!(done.stdout.split(' ').next(), Some("10000"), "{done}");
    drop(busy);
    project.ctst(["stop", "-t", "0"]).ok();
    project.assert_nothing_left();
}

#[test]
fn a_hundred_replicas_are_told_by_tcp() {
    let project = Project::new(&Caller::ordinary(), &STACK.replace("replicas = 3", "replicas = 100"));
    project.up();
    let inside = Inside::new(&project);
    let cut = inside.ask("web", A);
    assert!(cut.cut && cut.ips.len() == 30, "{cut:?}");
    let question = question("web", A);
    let line = inside.send("tcp", &[framed(&question)]).swap_remove(0);
    let whole = answer(&line, &question).expect("an answer");
    assert!(!whole.cut);
    assert_eq!(whole.ips.into_iter().collect::<BTreeSet<_>>().len(), 100);
    let all = project.ctst(["exec", "glibc", "getent", "ahostsv4", "web"]).ok().stdout;
    let all: BTreeSet<&str> = all.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(all.len(), 100);
    project.ctst(["stop", "-t", "0"]).ok();
    project.assert_nothing_left();
}

#[test]
fn it_ends_with_its_project() {
    let project = Project::new(&Caller::ordinary(), STACK);
    project.up();
    let inside = Inside::new(&project);
    assert!(!inside.ips("web").is_empty());
    let (pid, _) = memory(&project);
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill the supervisor");
    project.assert_nothing_left();
    project.up();
    assert_eq!(Inside::new(&project).ips("web").len(), 3);
    project.stop();
}

#[test]
fn images_have_the_file_as_they_have_hosts() {
    let stack = |more: &str| {
        format!(
            r#"
COMPONENT user {{ image = "tar://./a.tar" command = ["/bin/sleep", "1000000"] {more} }}
COMPONENT other {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }}
"#
        )
    };
    let caller = Caller::ordinary();
    for (link, more) in [
        (None, ""),
        (None, "readonly = false"),
        (Some("../run/systemd/resolve/stub-resolv.conf"), ""),
        (Some("../run/systemd/resolve/stub-resolv.conf"), "readonly = false"),
        (Some("/../../../srv/elsewhere"), ""),
    ] {
        let project = Project::new(&caller, &stack(more));
        let archive = Archive::root();
        let archive = link.map_or(Archive::root(), |to| archive.link("etc/resolv.conf", to));
        project.write_bytes("a.tar", &archive.end());
        project.up();
        let text = project.ctst(["exec", "user", "cat", "/etc/resolv.conf"]).ok().stdout;
        assert!(text.starts_with("nameserver 10."), "{link:?} {more}: {text}");
        project.ctst(["exec", "user", "/bin/sh", "-c", "echo nameserver 192.0.2.1 > /etc/resolv.conf"]).fails(1, &[]);
        // Nothing of the container's was lost by what was made to mount on.
        project.write("stack.ctst", &stack(&format!("{more} env = {{ NEW = \"1\" }}")));
        project.up();
        project.stop();
    }
    for name in ["resolv.conf", "hosts"] {
        let project = Project::new(&caller, &stack(""));
        project.write_bytes("a.tar", &Archive::root().link(&format!("etc/{name}"), "/proc/self/environ").end());
        project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["mount over a part of /proc"]);
        project.ctst(["stop"]);
    }
    let project = Project::new(&caller, &stack(r#"network = "none""#));
    project.write_bytes("a.tar", &Archive::root().file("etc/resolv.conf", "nameserver 192.0.2.1\n").end());
    project.up();
    let text = project.ctst(["exec", "user", "cat", "/etc/resolv.conf"]).ok().stdout;
    assert!(!text.contains("nameserver "), "{text}");
    project.stop();
    // The author's own file stands.
    let project = Project::new(&caller, &stack(r#"volume = "./mine:/etc/resolv.conf:ro""#));
    project.write("mine", "nameserver 192.0.2.1\n");
    project.write_bytes("a.tar", &Archive::root().end());
    project.up();
    let text = project.ctst(["exec", "user", "cat", "/etc/resolv.conf"]).ok().stdout;
    assert_eq!(text, "nameserver 192.0.2.1\n");
    project.stop();
}
