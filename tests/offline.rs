//! `--offline`: the kernel keeps ctst, and what it starts, from opening a connection to anything beyond this host.

use std::collections::BTreeSet;
use std::time::Duration;

use containust_tests::archive::Archive;
use containust_tests::tracer::{Steps, trace};
use containust_tests::{Caller, Project, free_port};

const LIMIT: Duration = Duration::from_secs(120);

fn callers() -> Vec<Caller> {
    Caller::all().into_iter().chain(Caller::strict()).collect()
}

/// The sockets that a command makes, as `part family place`.
fn sockets(project: &Project, words: &[&str]) -> BTreeSet<String> {
    let traced = trace(project.gate(words), &project.parts(), Steps::Sockets, None, LIMIT);
    project.note();
    assert_eq!(traced.done.code, 0, "{words:?}: {}", traced.done);
    traced.steps.into_keys().collect()
}

/// Of any family but AF_UNIX and AF_NETLINK, where others than this host are reached.
fn outside(found: &BTreeSet<String>) -> Vec<&str> {
    let local = |socket: &str| [" 1 ", " 16 "].iter().any(|family| socket.contains(family));
    found.iter().map(String::as_str).filter(|socket| socket.ends_with(" here") && !local(socket)).collect()
}

const STACK: &str = r#"
COMPONENT server {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "serve", "8000"]
  port = 8000
  healthcheck { tcp = 8000 interval = 100ms }
}
COMPONENT packed { image = "tar://./a.tar" command = ["/x"] restart = "never" }
COMPONENT asks {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  healthcheck { command = ["/bin/true"] }
}
CONNECT asks -> server
"#;

/// Root alone may trace them all.
#[test]
fn a_build_and_a_run_make_no_socket_but_local_ones() {
    if Caller::root().is_none() {
        return;
    }
    for caller in callers() {
        let published = format!("{STACK}EXPOSE {} -> server:8000\n", free_port());
        for (text, expected) in [(STACK, &[][..]), (&published[..], &["supervisor 2 here"][..])] {
            let project = Project::new(&caller, text);
            project.write_bytes("a.tar", &Archive::root().end());
            let told = format!("as {}", caller.name);
            assert_eq!(outside(&sockets(&project, &["--offline", "build"])), [""; 0], "{told}");
            let found = sockets(&project, &["--offline", "run", "-d", "--yes", "--wait", "server", "asks"]);
            assert_eq!(outside(&found), expected, "{told}: {found:?}");
            // The tracer sees those that are made in the project's network.
            assert!(found.iter().any(|socket| socket.ends_with(" 2 elsewhere")), "{told}: {found:?}");
            for words in [&["exec", "asks", "true"][..], &["ps"], &["restart", "server"], &["stop"]] {
                let words = [&["--offline"], words].concat();
                assert_eq!(outside(&sockets(&project, &words)), [""; 0], "{told}: {words:?}");
            }
            project.assert_nothing_left();
        }
    }
}

/// What a secret's command is told when it makes sockets: of IP, of the host of a virtual machine, a local one, and a ring, which
/// would make them past a filter.
fn told(caller: &Caller, flags: &[&str]) -> String {
    let calls = [
        format!("{}:{}:{}:0", libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM),
        format!("{}:{}:{}:0", libc::SYS_socket, libc::AF_INET6, libc::SOCK_DGRAM),
        format!("{}:{}:{}:0", libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM),
        format!("{}:{}:{}:0", libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM),
        format!("{}:0:0", libc::SYS_io_uring_setup),
    ];
    let text = format!(
        r#"
SECRET tries FROM COMMAND "ROOTFS/bin/ctst-probe calls {}"
COMPONENT one {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] secrets = ["tries"] }}
"#,
        calls.join(" ")
    );
    let project = Project::new(caller, &text);
    project.ctst([flags, &["run", "-d", "--wait", "--yes"]].concat()).ok();
    let answers = project.ctst([flags, &["exec", "one", "cat", "/run/secrets/tries"]].concat()).ok();
    project.stop();
    answers.stdout
}

#[test]
fn what_is_started_cannot_either() {
    for caller in callers() {
        let free = told(&caller, &[]);
        let held = told(&caller, &["--offline"]);
        // EFAULT: a ring would be made.
        assert_eq!(free, "0\n0\n0\n0\n14", "as {}", caller.name);
        assert_eq!(held, "1\n1\n1\n0\n38", "as {}", caller.name);
    }
}

/// It may stand behind each, and in the environment.
#[test]
fn what_would_be_fetched_is_named() {
    let pinned = format!("IMPORT \"https://localhost:1/a.ctst\" SHA256 \"{}\"\n", "0".repeat(64));
    let project = Project::new(&Caller::ordinary(), &pinned);
    for words in [["run"], ["build"], ["lock"]] {
        if words == ["lock"] {
            project.write("stack.ctst", "IMPORT \"https://localhost:1/a.ctst\"\n");
        }
        let mut command = project.command(words);
        command.env("CONTAINUST_OFFLINE", "1");
        for done in [project.ctst([&words[..], &["--offline"]].concat()), containust_tests::finish(&mut command)] {
            let named = done.stderr.contains("a.ctst") && done.stderr.contains("--offline");
            assert!(done.code == 125 && named, "{words:?}: {done}");
        }
    }
}
