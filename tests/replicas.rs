//! Several of one component: one name, one port, and one word for all of them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use containust_tests::{Caller, Project, eventually, free_port};

/// Each answers with its own name.
fn stack(replicas: u32, port: u16) -> String {
    format!(
        r#"
COMPONENT web {{
  image    = "file://ROOTFS"
  command  = ["/bin/sh", "-c", "echo $HOSTNAME > /tmp/name; exec nc -ll -p 80 -e cat /tmp/name"]
  port     = 80
  replicas = {replicas}
  healthcheck {{ tcp = 80 interval = 100ms }}
}}
COMPONENT user {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }}
CONNECT user -> web
EXPOSE {port} -> web:80
"#
    )
}

fn ask(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set a timeout");
    drop(stream.write_all(b""));
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let text = text.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Who answers, asked often enough for each to have its turn.
fn answering(port: u16) -> BTreeSet<String> {
    (0..12).filter_map(|_| ask(port)).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn replicas_share_a_name_and_a_port() {
    for caller in Caller::all() {
        let port = free_port();
        let project = Project::new(&caller, &stack(3, port));
        project.up();
        assert_eq!(answering(port), names(&["web-1", "web-2", "web-3"]), "{}", caller.name);
        let found = project.ctst(["exec", "user", "nslookup", "-type=a", "web"]).ok().stdout;
        let shared = found.lines().filter(|line| line.starts_with("Address: ")).count();
        assert_eq!(shared, 3, "{found}");
        let host = project.ctst(["exec", "user", "/bin/sh", "-c", "echo $WEB_HOST; nc $WEB_HOST 80"]).ok().stdout;
        assert!(host.starts_with("web\nweb-"), "{host}");

        // One that is gone is not asked any more, and the others go on.
        project.ctst(["stop", "web-2"]).ok();
        assert_eq!(answering(port), names(&["web-1", "web-3"]));
        project.ctst(["run", "-d", "--wait", "web-2"]).ok();
        assert_eq!(answering(port), names(&["web-1", "web-2", "web-3"]));
        project.stop();
        assert_eq!(ask(port), None);
    }
}

#[test]
fn their_number_changes_without_touching_those_that_stay() {
    let port = free_port();
    let project = Project::new(&Caller::ordinary(), &stack(1, port));
    project.up();
    let pid = |name: &str| project.status(name)["pid"].as_u64();
    let first = pid("web-1");
    project.write("stack.ctst", &stack(3, port));
    project.up();
    assert_eq!(answering(port), names(&["web-1", "web-2", "web-3"]));
    assert_eq!(pid("web-1"), first);
    project.write("stack.ctst", &stack(2, port));
    project.up();
    assert_eq!(answering(port), names(&["web-1", "web-2"]));
    assert_eq!(pid("web-1"), first);
    assert!(!project.ps().iter().any(|row| row["component"] == "web-3"));
    project.stop();
}

#[test]
fn one_word_means_all_of_them() {
    let port = free_port();
    let project = Project::new(&Caller::ordinary(), &stack(2, port));
    project.up();
    let row = project.status("web-1");
    assert_eq!(row["replica_of"], "web");
    let name = |component: &str| project.ctst(["exec", component, "cat", "/tmp/name"]).ok().stdout;
    assert_eq!((name("web-2").as_str(), name("web").as_str()), ("web-2\n", "web-1\n"));
    project.ctst(["stop", "web-1"]).ok();
    assert_eq!(name("web"), "web-2\n", "the first that runs");
    project.ctst(["run", "-d", "--wait", "web"]).ok();
    let pids = || ["web-1", "web-2"].map(|name| project.status(name)["pid"].as_u64());
    let before = pids();
    project.ctst(["restart", "web"]).ok();
    eventually("both run", || pids().iter().all(Option::is_some));
    assert!(before.iter().zip(pids()).all(|(old, new)| *old != new));
    project.ctst(["logs", "web"]).ok();
    project.ctst(["stop", "web"]).ok();
    let running: Vec<_> = project.ps().into_iter().filter(|row| row["state"] == "running").collect();
    assert!(running.len() == 1 && running[0]["component"] == "user", "{running:?}");
    project.ctst(["stop", "wep"]).fails(125, &["wep"]);
    project.ctst(["exec", "web", "true"]).fails(125, &["web"]);
    project.stop();
    project.ctst(["rm", "web"]).ok();
    assert_eq!(project.ps().len(), 1);
}
