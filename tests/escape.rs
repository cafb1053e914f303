//! The escape suite: what an attacker in a container tries, looked at from inside. The list of all attempts, here and in
//! other tests, is ctst-shim/ESCAPES.md; `house` compares it with what there is.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use containust_tests::{Caller, Project};

const HOLD: &str = r#"COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] env = { ONLY = "this" } }"#;

/// Ids and what became of them: `ok`, `BROKEN …` or `skipped …`.
type Verdicts = BTreeMap<String, String>;

/// What the probe is told about the outside.
fn facts(project: &Project, listener: &str) -> Vec<String> {
    let links = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).expect("read a link").display().to_string();
    let namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"].map(links).join(",");
    // With a single id nobody can give up the caller's groups; they have no name inside.
    let groups = if project.caller.single || project.caller.range().is_none() { "0,65534" } else { "0" };
    vec![
        format!("abstract={listener}"),
        format!("namespaces={namespaces}"),
        format!("groups={groups}"),
        "interfaces=lo,eth0".to_owned(),
        // The place of its own /etc/hosts in the host's file system is there to read, but nobody else's.
        format!("outside={}/,/root,/etc/subuid", project.caller.home.display()),
    ]
}

/// Every attempt of the probe, and what a process finds itself to be that was not started by one of Rust, whose runtime
/// changes a signal.
fn attempts(project: &Project) -> Verdicts {
    let name = format!("ctst-escape-{}-{}", std::process::id(), project.folder().display());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("listen on an abstract socket");
    let facts = facts(project, &name);
    let args = ["exec", "one", "/bin/ctst-escape", "run"].into_iter().map(str::to_owned).chain(facts);
    let done = project.ctst(args).ok();
    let mut verdicts: Verdicts = done
        .stdout
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(id, verdict)| (id.to_owned(), verdict.to_owned()))
        .collect();

    let status = project.ctst(["exec", "one", "cat", "/proc/self/status"]).ok().stdout;
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
    };
    let bits = |name: &str| u64::from_str_radix(&field(name), 16).expect("a mask");
    let limits = project.ctst(["exec", "one", "cat", "/proc/self/limits"]).ok().stdout;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default().to_owned();
    let env = project.ctst(["exec", "one", "env"]).ok().stdout;
    let mut names: Vec<&str> = env.lines().filter_map(|line| line.split('=').next()).collect();
    names.sort_unstable();
    let mut put = |id: &str, holds: bool, otherwise: String| {
        verdicts.insert(id.to_owned(), if holds { "ok".to_owned() } else { format!("BROKEN {otherwise}") });
    };
    put("P17", bits("SigBlk") | bits("SigPnd") | bits("ShdPnd") == 0, field("SigBlk"));
    // SIGCHLD is 17, SIGPIPE 13.
    put("P18", bits("SigIgn") & 1 << 16 == 0, field("SigIgn"));
    put("P19", bits("SigIgn") == 0, field("SigIgn"));
    put("P20", names == ["HOME", "HOSTNAME", "ONLY", "PATH"], format!("{names:?}"));
    put("P21", core.split_whitespace().rev().nth(1) == Some("0"), core.clone());
    verdicts
}

/// Where the matrix is made of: one file for each kernel and mode.
fn record(mode: &str, verdicts: &Verdicts) {
    let folder = containust_tests::target().join("escape");
    fs::create_dir_all(&folder).expect("make target/escape");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("read the kernel's version");
    let kernel: Vec<&str> = kernel.trim().splitn(3, ['.', '-']).take(2).collect();
    let mut text = String::new();
    for (id, verdict) in verdicts {
        writeln!(text, "{id} {verdict}").expect("write to memory");
    }
    fs::write(folder.join(format!("{}.{mode}", kernel.join("."))), text).expect("write verdicts");
}

fn inside(mode: &str, caller: Option<Caller>) {
    let Some(caller) = caller else { return };
    let project = Project::new(&caller, HOLD);
    project.up();
    let verdicts = attempts(&project);
    record(mode, &verdicts);
    let broken: Vec<_> = verdicts.iter().filter(|(_, verdict)| verdict.starts_with("BROKEN")).collect();
    assert!(broken.is_empty(), "in mode {mode}: {broken:#?}");
    assert!(verdicts.len() > 100, "only {} attempts", verdicts.len());
    project.stop();
}

#[test]
fn inside_with_a_range() {
    inside("range", Caller::ranges());
}

#[test]
fn inside_with_a_single_id() {
    inside("single", Some(Caller::single()));
}

#[test]
fn inside_as_root() {
    inside("root", Caller::root());
}
