//! What ctst's own processes may still do, looked at from outside: by /proc, and by what they ask of the kernel. SECURITY.md
//! has the table, which is held to it here.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use containust_tests::archive::Archive;
use containust_tests::registry::Registry;
use containust_tests::{Caller, Project, eventually};
use tar::EntryType;

/// A field of proc_pid_status(5).
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

fn capabilities(status: &str) -> u64 {
    u64::from_str_radix(field(status, "CapEff"), 16).expect("a mask")
}

/// CHOWN, DAC_OVERRIDE, FOWNER, KILL.
const OF_ROOT: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5;
const NET_BIND_SERVICE: u64 = 1 << 10;

/// The row of SECURITY.md that begins with this name.
fn row(name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../SECURITY.md");
    let text = fs::read_to_string(path).expect("read SECURITY.md");
    let line = text.lines().find(|line| line.starts_with(&format!("| {name} |")));
    let line = line.unwrap_or_else(|| panic!("SECURITY.md has no row for {name}"));
    line.split('|').map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect()
}

/// A port of this host that nobody listens on.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

#[test]
fn the_supervisor_has_given_up_what_it_needs_no_more() {
    let rows =
        [("ctst", "supervisor"), ("forward", "forwarder"), ("names", "name server"), ("ports", "publisher of ports")];
    let rows = rows.map(|(thread, name)| (thread, row(name)));
    let rows = BTreeMap::from(rows);
    for caller in Caller::all().into_iter().chain(Caller::strict()) {
        let text = format!(
            r#"
COMPONENT web {{
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  healthcheck {{ command = ["/bin/true"] }}
}}
EXPOSE {} -> web:8000
"#,
            free_port()
        );
        let project = Project::new(&caller, &text);
        project.up();
        let found = project.processes();
        let pids: Vec<i32> = found.into_iter().filter(|(_, name)| name == "ctst").map(|((pid, _), _)| pid).collect();
        let [pid] = pids[..] else { panic!("not one supervisor: {pids:?}") };
        let mut threads = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("list threads").flatten() {
            let read = |name: &str| fs::read_to_string(thread.path().join(name)).expect("read of a thread");
            threads.insert(read("comm").trim().to_owned(), read("status"));
        }
        assert_eq!(threads.keys().collect::<Vec<_>>(), ["ctst", "forward", "names", "ports"]);
        for (name, status) in &threads {
            let row = &rows[name.as_str()];
            assert_eq!((row[2].as_str(), field(status, "NoNewPrivs")), ("yes", "1"), "{name} as {}", caller.name);
            // The filter of this name, and of a thread that was started later that of the supervisor, too.
            let filter = match name.as_str() {
                "ctst" => "supervisor",
                "ports" => "ports",
                _ => "sockets",
            };
            assert_eq!((row[3].as_str(), field(status, "Seccomp")), (filter, "2"), "{name} as {}", caller.name);
            assert!(["1", "2"].contains(&field(status, "Seccomp_filters")), "{status}");
            let all = match (name.as_str(), caller.uid) {
                ("ctst", 0) => OF_ROOT,
                ("ports", 0) => NET_BIND_SERVICE,
                _ => 0,
            };
            assert_eq!(capabilities(status), all, "{name} as {}", caller.name);
        }
        let log = fs::read_to_string(project.folder().join(".containust/supervisor.log")).unwrap_or_default();
        assert!(!log.contains("keeps its user's files"), "{log}");
        // It still can do all it has to: a restart, an exec, a port, and the end.
        project.ctst(["restart", "web"]).ok();
        project.ctst(["exec", "web", "true"]).ok();
        project.stop();
    }
}

/// An image that takes a while to be unpacked.
fn large() -> Vec<u8> {
    let mut bytes = vec![0_u8; 64 << 20];
    let mut state = 1_u64;
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        word.copy_from_slice(&state.to_le_bytes());
    }
    Archive::root().entry(EntryType::Regular, "large", 0o644, (0, 0), "", &bytes).end()
}

#[test]
fn a_worker_has_given_up_what_it_needs_no_more() {
    let (row, archive) = (row("worker"), large());
    for caller in Caller::all() {
        // It locks itself, works and ends within less than a second, in which a busy host may not look.
        let seen = (0..10).find_map(|_| {
            let project = Project::new(&caller, r#"COMPONENT one { image = "tar://./a.tar" command = ["/bin/true"] }"#);
            project.write_bytes("a.tar", &archive);
            let mut building = project.start(["build"]);
            let mut seen = None;
            while seen.is_none() && building.child().try_wait().expect("it is a child").is_none() {
                seen = project.processes().into_keys().find_map(|(pid, _)| {
                    let place = Path::new("/proc").join(pid.to_string());
                    let words = fs::read(place.join("cmdline")).unwrap_or_default();
                    let status = fs::read_to_string(place.join("status")).ok()?;
                    let is_it = words.starts_with(b"/ctst\0worker\0image") && field(&status, "Seccomp_filters") == "2";
                    is_it.then_some(status)
                });
            }
            building.wait(std::time::Duration::from_secs(60)).ok();
            seen
        });
        let status = seen.expect("it was seen");
        assert_eq!((row[2].as_str(), field(&status, "NoNewPrivs")), ("yes", "1"));
        assert_eq!((row[3].as_str(), field(&status, "Seccomp")), ("strict, worker", "2"));
        // The eleven of a container, over its own user namespace.
        assert_eq!(capabilities(&status).count_ones(), 11, "{}", field(&status, "CapEff"));
    }
}

#[test]
fn the_registry_client_has_given_up_what_it_needs_no_more() {
    let row = row("registry client");
    let mut callers = Caller::all();
    callers.extend(Caller::root());
    for caller in callers {
        // It waits, confined, for an answer that does not come.
        let registry = Registry::new();
        registry.behave(|_, _| {
            std::thread::sleep(std::time::Duration::from_secs(5));
            None
        });
        let image = format!("oci://{}/app:1", registry.host());
        let project = Project::new(&caller, &format!("COMPONENT one {{ image = \"{image}\" }}"));
        let mut command = project.command(["pull"]);
        command.env("UNSEEN_BY_IT", "1").env("NO_PROXY", "seen");
        let mut pulling = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start ctst");
        eventually("it asks", || !registry.asked().is_empty());
        let children = format!("/proc/{0}/task/{0}/children", pulling.id());
        let children = fs::read_to_string(children).expect("read children");
        let is_client = |pid: &&str| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.starts_with(b"ctst\0registry\0"))
        };
        let pid = children.split_ascii_whitespace().find(is_client).expect("a client").to_owned();
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).expect("read of the client");
        let status = read("status");
        assert_eq!((row[2].as_str(), field(&status, "NoNewPrivs")), ("yes", "1"), "as {}", caller.name);
        assert_eq!((row[3].as_str(), field(&status, "Seccomp")), ("client", "2"), "as {}", caller.name);
        assert_eq!((row[5].as_str(), capabilities(&status)), ("none", 0), "as {}", caller.name);
        let variables = read("environ");
        assert!(variables.contains("NO_PROXY=seen") && !variables.contains("UNSEEN_BY_IT"), "{variables}");
        // The file that it writes has no name, and beside it there are pipes and its connection.
        let open: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("list descriptors")
            .flatten()
            .map(|entry| fs::read_link(entry.path()).unwrap_or_default().display().to_string())
            .collect();
        let allowed = |place: &&String| {
            place.starts_with("pipe:")
                || place.starts_with("socket:")
                || place.starts_with("anon_inode:")
                || place.ends_with(" (deleted)")
        };
        assert!(open.iter().all(|place| allowed(&place)), "{open:?}");
        assert!(pulling.wait().expect("wait for ctst").code() == Some(125), "there is no such image");
    }
}

/// The calls in strace's output, each with its process: one during which another process's was shown stands in two lines.
fn whole_calls(trace: &str) -> Vec<(&str, String)> {
    let mut begun = HashMap::new();
    let mut calls = Vec::new();
    for (pid, call) in trace.lines().filter_map(|line| line.split_once(' ')) {
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(pid, start);
        } else if let Some((_, end)) = call.strip_prefix("<... ").and_then(|call| call.split_once(" resumed>")) {
            calls.push((pid, format!("{}{end}", begun.remove(pid).unwrap_or_default())));
        } else {
            calls.push((pid, call.to_owned()));
        }
    }
    calls
}

/// What they ask the kernel for: landlock shows in no file.
#[test]
fn landlock_holds_the_supervisor_its_threads_and_workers() {
    let caller = Caller::single();
    let text = format!(
        r#"
COMPONENT web {{ image = "tar://./a.tar" command = ["/bin/ctst-probe", "hold"] }}
EXPOSE {} -> web:8000
"#,
        free_port()
    );
    let project = Project::new(&caller, &text);
    project.write_bytes("a.tar", &Archive::root().end());
    // Left by an earlier supervisor: this one removes it before it has given up anything.
    for folder in [".containust", ".containust/containers", ".containust/containers/.old-7"] {
        project.make_folder(folder);
    }
    fs::set_permissions(project.folder().join(".containust"), fs::Permissions::from_mode(0o700)).expect("set a mode");
    project.write(".containust/containers/.old-7/file", "");
    let ctst = project.command(["run", "-d", "--wait", "--yes"]);
    let trace = project.folder().join("trace");
    project.write("trace", "");
    let mut strace = Command::new("strace");
    caller.login(&mut strace);
    let runtime = ctst.get_envs().find(|(name, _)| *name == "XDG_RUNTIME_DIR").and_then(|(_, value)| value);
    strace.env("XDG_RUNTIME_DIR", runtime.expect("it is set")).current_dir(project.folder());
    strace.args(["-f", "-qq", "-e", "trace=execve,landlock_add_rule,landlock_restrict_self,seccomp,prctl", "-o"]);
    strace.arg(&trace).arg(ctst.get_program()).args(ctst.get_args());
    // It follows the supervisor, too, which stays.
    let mut running = strace.spawn().expect("start strace");
    eventually("it runs", || project.ctst(["ps"]).stdout.contains("running"));
    project.ctst(["stop", "-t", "0"]).ok();
    assert!(running.wait().expect("wait for strace").success());

    let trace = fs::read_to_string(&trace).expect("read the trace");
    let calls = whole_calls(&trace);
    let of = |pid: &str| -> Vec<&str> {
        calls.iter().filter(|(other, _)| *other == pid).map(|(_, call)| call.as_str()).collect()
    };
    let locks = |calls: &[&str]| {
        let place = |name: &str| calls.iter().rposition(|call| call.starts_with(name) && call.ends_with("= 0"));
        (place("landlock_restrict_self("), place("seccomp(SECCOMP_SET_MODE_FILTER, 0"))
    };
    let pids = |shows: &dyn Fn(&str) -> bool| -> BTreeSet<&str> {
        calls.iter().filter(|(_, call)| shows(call)).map(|(pid, _)| *pid).collect()
    };
    let supervisors = pids(&|call| call.contains("execve(") && call.contains("\"supervise\""));
    // Of what a container executes the tracer sees no word, because nobody may look into its pid 1; the payload has no
    // landlock.
    let landlocked = pids(&|call| call.contains("landlock_restrict_self("));
    let workers: BTreeSet<&str> = pids(&|call| call.contains("execve(0x")).intersection(&landlocked).copied().collect();
    assert!(supervisors.len() == 1 && !workers.is_empty(), "{supervisors:?} {workers:?}: {trace}");
    for pid in supervisors.iter().chain(&workers) {
        let calls = of(pid);
        let (Some(files), Some(filter)) = locks(&calls) else { panic!("{pid} has not both: {calls:#?}") };
        assert!(files < filter, "{calls:#?}");
        assert!(calls[..files].iter().any(|call| call.starts_with("landlock_add_rule(")), "{calls:#?}");
        // Nothing is executed afterwards.
        assert!(!calls[filter..].iter().any(|call| call.starts_with("execve(")), "{calls:#?}");
    }
    // The forwarder and the name server keep no file: there is no rule.
    let forwarders =
        pids(&|call| ["forward", "names"].iter().any(|name| call.contains(&format!("PR_SET_NAME, \"{name}\""))));
    assert_eq!(forwarders.len(), 2, "{trace}");
    for pid in forwarders {
        let calls = of(pid);
        assert!(
            calls.iter().any(|call| call.starts_with("landlock_restrict_self(") && call.ends_with("= 0")),
            "{calls:#?}"
        );
        assert!(!calls.iter().any(|call| call.starts_with("landlock_add_rule(")), "{calls:#?}");
    }
    // Who removes has one folder.
    let removers = pids(&|call| call.contains("PR_SET_NAME, \"remove\""));
    assert!(!removers.is_empty() && !project.folder().join(".containust/containers/.old-7").exists(), "{trace}");
    for pid in removers {
        let calls = of(pid);
        let (Some(files), Some(filter)) = locks(&calls) else { panic!("{pid} has not both: {calls:#?}") };
        let rules = calls[..files].iter().filter(|call| call.starts_with("landlock_add_rule("));
        assert!(rules.count() == 1 && files < filter, "{calls:#?}");
    }
}
