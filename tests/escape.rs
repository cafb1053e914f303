//! The escape suite: what an attacker in a container tries, looked at from inside. The list of all attempts, here and in
//! other tests, is ctst-shim/ESCAPES.md; `house` compares it with what there is.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use containust_tests::archive::Archive;
use containust_tests::{Caller, Project, escapes, eventually};
use tar::EntryType;

const HOLD: &str =
    r#"COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] env = { ONLY = "this" } }"#;

/// Ids and what became of them: `ok`, `BROKEN …` or `skipped …`.
type Verdicts = BTreeMap<String, String>;

/// What the probe is told about the outside.
fn facts(project: &Project, interfaces: &str, listener: &str) -> Vec<String> {
    let links = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).expect("read a link").display().to_string();
    let namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"].map(links).join(",");
    // With a single id nobody can give up the caller's groups; they have no name inside.
    let groups = if project.caller.single || project.caller.range().is_none() { "0,65534" } else { "0" };
    vec![
        format!("abstract={listener}"),
        format!("namespaces={namespaces}"),
        format!("groups={groups}"),
        format!("interfaces={interfaces}"),
        // The place of its own /etc/hosts in the host's file system is there to read, but nobody else's.
        format!("outside={}/,/root/,/etc/subuid", project.caller.home.display()),
    ]
}

/// Every attempt of the probe, and what a process finds itself to be that was not started by one of Rust, whose runtime
/// changes a signal.
fn attempts(project: &Project, interfaces: &str) -> Verdicts {
    let name = format!("ctst-escape-{}-{}", std::process::id(), project.folder().display());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("listen on an abstract socket");
    let facts = facts(project, interfaces, &name);
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

/// What the matrix is made of: one file for each kernel and mode.
fn folder() -> PathBuf {
    let folder =
        std::env::var_os("CTST_ESCAPE_DIR").map_or_else(|| containust_tests::target().join("escape"), Into::into);
    fs::create_dir_all(&folder).expect("make the folder for verdicts");
    folder
}

fn record(mode: &str, verdicts: &Verdicts) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("read the kernel's version");
    let kernel: Vec<&str> = kernel.trim().splitn(3, ['.', '-']).take(2).collect();
    let mut text = String::new();
    for (id, verdict) in verdicts {
        writeln!(text, "{id} {verdict}").expect("write to memory");
    }
    fs::write(folder().join(format!("{}.{mode}", kernel.join("."))), text).expect("write verdicts");
}

fn inside(mode: &str, caller: Option<Caller>) {
    let Some(caller) = caller else { return };
    let project = Project::new(&caller, HOLD);
    project.up();
    let verdicts = attempts(&project, "lo,eth0");
    record(mode, &verdicts);
    let broken: Vec<_> = verdicts.iter().filter(|(_, verdict)| verdict.starts_with("BROKEN")).collect();
    assert!(broken.is_empty(), "in mode {mode}: {broken:#?}");
    assert!(verdicts.len() >= 100, "only {} attempts", verdicts.len());
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
fn inside_strict() {
    inside("strict", Caller::strict());
}

#[test]
fn inside_as_root() {
    inside("root", Caller::root());
}

/// The table of layers in ctst-shim/ESCAPES.md: without them the attempts of its line work, and no others.
#[test]
fn without_a_layer_the_attempts_that_it_stops_work() {
    let Some(caller) = Caller::ranges() else { return };
    let mut wrong = Vec::new();
    let mut seen = String::new();
    for (layers, expected) in escapes::layers() {
        if layers.iter().any(|layer| ["Sources", "Targets"].contains(layer)) {
            // without_a_layer_of_mounts_the_test_of_its_row_fails
            continue;
        }
        // Who has no network of its own is to see that of the project, with a bridge because of another component.
        let network = layers.contains(&"Network");
        let other = HOLD.replace("one", "two") + &HOLD.replace("command", "network = \"none\" command");
        let mut project = Project::new(&caller, if network { &other } else { HOLD });
        project.programs = containust_tests::weakened(&layers);
        project.up();
        let verdicts = attempts(&project, if network { "lo" } else { "lo,eth0" });
        let broken: Vec<&str> =
            verdicts.iter().filter(|(_, verdict)| verdict.starts_with("BROKEN")).map(|(id, _)| id.as_str()).collect();
        writeln!(seen, "{}: {}", layers.join(" "), broken.join(" ")).expect("write to memory");
        if broken != expected {
            let told =
                verdicts.iter().filter(|(id, _)| broken.contains(&id.as_str()) != expected.contains(&id.as_str()));
            wrong.push(format!("{layers:?}: {broken:?}: {:?}", told.collect::<Vec<_>>()));
        }
        project.ctst(["stop", "-t", "0"]).ok();
    }
    fs::write(folder().join("layers"), seen).expect("write what was seen");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The two layers that no probe sees from inside, because they are about what a plan may ask for: without each of them exactly
/// the test of its row fails, of all those of hostile mounts.
#[test]
fn without_a_layer_of_mounts_the_test_of_its_row_fails() {
    let rows = escapes::rows();
    // What is swapped in a race may or may not be noticed by another layer.
    let tests: Vec<&str> = rows
        .iter()
        .filter(|row| row.id.starts_with('F'))
        .flat_map(|row| &row.tests)
        .filter_map(|test| test.strip_prefix("caller::"))
        .filter(|test| !test.contains("swapped"))
        .collect();
    assert!(tests.len() >= 5, "{tests:?}");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let failed = |shim: &Path| {
        let done = containust_tests::finish(
            std::process::Command::new(&cargo)
                // Of one package it would be built again, with other features.
                .args(["test", "--offline", "--workspace", "--test", "caller", "--", "--exact"])
                .args(&tests)
                .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent"))
                .env("CTST_SHIM", shim),
        );
        let lines = |end: &str| -> std::collections::BTreeSet<String> {
            let names = done.stdout.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(end));
            names.map(|name| name.trim_end_matches(" ...").to_owned()).collect()
        };
        let (failed, held) = (lines(" FAILED"), lines(" ok"));
        let all: std::collections::BTreeSet<String> = tests.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(failed.union(&held).cloned().collect::<std::collections::BTreeSet<_>>(), all, "{done}");
        failed
    };
    let whole = failed(&containust_tests::programs().join("ctst-shim"));
    assert!(whole.is_empty(), "with every layer {whole:?} fail");
    for layer in ["Sources", "Targets"] {
        let layers = escapes::layers();
        let (_, ids) = layers.iter().find(|(layers, _)| layers == &[layer]).expect("a line of the table");
        let of_row = |id: &&str| rows.iter().find(|row| row.id == **id).map(|row| row.tests.clone());
        let wanted = ids.iter().filter_map(of_row).flatten();
        let wanted: std::collections::BTreeSet<String> =
            wanted.map(|test| test.trim_start_matches("caller::").to_owned()).collect();
        assert_eq!(failed(&containust_tests::weakened(&[layer]).join("ctst-shim")), wanted, "without {layer}");
    }
}

/// Whether the longer runs are asked for (`make test-long`).
fn long() -> bool {
    std::env::var_os("CTST_LONG").is_some()
}

/// Kills the supervisor of a project, and nobody else.
fn kill_supervisor(project: &Project) {
    project.note();
    let supervisors: Vec<i32> =
        project.processes().into_iter().filter(|(_, name)| name == "ctst").map(|((pid, _), _)| pid).collect();
    assert!(!supervisors.is_empty(), "no supervisor");
    for pid in supervisors.into_iter().filter_map(rustix::process::Pid::from_raw) {
        // Helpers of its own may end with it.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[test]
fn a_signal_to_all_stays_inside() {
    for caller in Caller::all() {
        let attacker = HOLD.replace("one", "two").replace(
            r#"["/bin/ctst-probe", "hold"]"#,
            r#"["/bin/sh", "-c", "mkfifo /run/go; sleep 1000 & read x < /run/go"]"#,
        );
        let project = Project::new(&caller, &format!("{HOLD}\n{attacker}"));
        project.up();
        // Root of the container, with CAP_KILL: everything in it but its pid 1 and itself.
        drop(project.ctst(["exec", "two", "/bin/ctst-escape", "kill-all"]));
        eventually("the attacker has killed itself", || project.status("two")["state"] == "exited");
        assert_eq!(project.status("one")["state"], "running", "as {}", caller.name);
        project.ctst(["exec", "one", "true"]).ok();
        project.stop();
    }
}

/// The kernel lets every process of a user change the limits of another one (prlimit(2)): what then fails is told, and
/// nothing is left.
#[test]
fn limits_that_are_taken_from_the_running_shim_leave_nothing_behind() {
    let callers: Vec<Caller> = [Caller::ordinary()].into_iter().chain(Caller::strict()).collect();
    for (limit, caller) in ["--nofile=4:4", "--fsize=0:0", "--nproc=1:1", "--as=1000000:1000000"]
        .into_iter()
        .flat_map(|limit| callers.iter().map(move |caller| (limit, caller)))
    {
        let project = Project::new(caller, HOLD);
        project.up();
        project.note();
        for ((pid, _), _) in project.processes().into_iter().filter(|(_, name)| name == "ctst-shim") {
            let mut command = std::process::Command::new("prlimit");
            caller.login(&mut command);
            let done = containust_tests::finish(command.args(["--pid", &pid.to_string(), limit]));
            // It takes the same ids, and no right over what is in the process. S of strict mode keeps one that is not the caller's.
            let refused = caller.strict && project.parts().contains(&(pid, "S"));
            let told = done.stderr.contains("Operation not permitted");
            assert_eq!(
                (done.code, told),
                (i32::from(refused), refused),
                "{limit} of {pid}, strict {}: {done}",
                caller.strict
            );
        }
        let done = project.ctst(["exec", "one", "true"]);
        // The exec works, is refused, or ends with a container whose pid 1 can no longer do its work.
        assert!([0, 125, 137].contains(&done.code), "{limit}: {done}");
        assert!(!done.stderr.contains("panicked"), "{limit}: {done}");
        project.ctst(["stop", "-t", "0"]).ok();
        project.assert_nothing_left();
    }
}

#[test]
fn who_ignores_every_signal_ends_with_its_supervisor() {
    for caller in Caller::all() {
        let text = HOLD.replace(r#""/bin/ctst-probe", "hold""#, r#""/bin/ctst-escape", "unkillable""#);
        let project = Project::new(&caller, &text);
        project.up();
        eventually("it is deaf", || project.logs("one").contains("deaf"));
        kill_supervisor(&project);
        project.assert_nothing_left();
    }
}

#[test]
fn orphans_are_reaped() {
    let count = if long() { "10000" } else { "1000" };
    let text = HOLD.replace(r#""/bin/ctst-probe", "hold""#, &format!(r#""/bin/ctst-escape", "orphans", "{count}""#));
    let project = Project::new(&Caller::ordinary(), &text);
    let done = project.ctst(["run", "--yes"]);
    assert_eq!(done.code, 42, "{done}");
    project.assert_nothing_left();
}

#[test]
fn a_working_directory_leads_nowhere_else() {
    let caller = Caller::ordinary();
    let project = Project::new(&caller, &HOLD.replace("env =", "readonly = false env ="));
    project.up();
    project.ctst(["exec", "one", "ln", "-s", "../../../../../..", "/srv/up"]).ok();
    let root = project.ctst(["exec", "one", "stat", "-c", "%d:%i", "/"]).ok().stdout;
    let ways = ["/proc/self/cwd", "/proc/self/root", "/srv/up", "/proc/1/cwd", "/proc/1/root", "/proc/self/fd/.."];
    let numbers: Vec<String> = (3..20).map(|number| format!("/proc/self/fd/{number}")).collect();
    for way in ways.into_iter().chain(numbers.iter().map(String::as_str)) {
        let done = project.ctst(["exec", "-w", way, "one", "sh", "-c", "stat -c %d:%i ../../../.. && pwd -P"]);
        if done.code == 0 {
            assert!(done.stdout.starts_with(&root), "{way} leads out: {done}");
            assert!(done.stdout.lines().nth(1).is_some_and(|path| path.starts_with('/')), "{way}: {done}");
        }
    }
    project.stop();

    // As the plan's own: created where it does not exist, inside.
    for way in ["/proc/self/fd/7", "/proc/1/cwd", "/proc/sys"] {
        let text = HOLD.replace("env =", &format!("workdir = \"{way}\" env ="));
        let project = Project::new(&caller, &text);
        let done = project.ctst(["run", "-d", "--wait", "--yes"]);
        assert_eq!(done.code, 125, "{way}: {done}");
        project.assert_nothing_left();
    }
}

/// A root with the escape probe, and whatever else.
fn image(add: impl FnOnce(Archive) -> Archive) -> Vec<u8> {
    let probe = fs::read(containust_tests::programs().with_file_name("rootfs").join("bin/ctst-escape"));
    let probe = probe.expect("read the probe");
    let archive = Archive::root().entry(EntryType::Regular, "bin/ctst-escape", 0o755, (0, 0), "", &probe);
    add(archive).end()
}

const FROM_TAR: &str =
    r#"COMPONENT one { image = "tar://./a.tar" command = ["/bin/ctst-probe", "hold"] env = { ONLY = "this" } }"#;

#[test]
fn an_image_with_devices_of_its_own_gets_ours() {
    let project = Project::new(&Caller::ordinary(), FROM_TAR);
    let hostile = image(|archive| {
        archive
            .link("dev/null", "/etc/passwd")
            .link("dev/console", "/proc/self/exe")
            .file("dev/zero", "not a device")
            .link("dev/pts", "/etc")
            .folder("dev/random/")
            .link("dev/shm", "../../..")
            .file("proc/kcore", "planted")
            .file("sys/firmware", "planted")
    });
    project.write_bytes("a.tar", &hostile);
    project.up();
    let verdicts = attempts(&project, "lo,eth0");
    let broken: Vec<_> = verdicts.iter().filter(|(_, verdict)| verdict.starts_with("BROKEN")).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    project.stop();
}

/// While something in the container does what it can to /dev/pts, terminals are made: each is a terminal, and its name is
/// below /dev/pts.
#[test]
fn a_terminal_is_the_one_that_was_made() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    project.up();
    let attack = "while :; do for n in 0 1 2; do rm -f /dev/pts/$n; mv /dev/pts/$n /tmp/x; ln -sf /etc/passwd /dev/pts/$n; \
                  done; rm -f /dev/ptmx; ln -sf /etc/passwd /dev/ptmx; done 2>/dev/null";
    let attacker = project.start(["exec", "one", "sh", "-c", attack]);
    for _ in 0..if long() { 200 } else { 10 } {
        let ask = "tty; stat -L -c %t:%F /proc/self/fd/0; head -c 1 /etc/passwd";
        let done = on_a_terminal(&project, &["exec", "-t", "one", "sh", "-c", ask]);
        let lines: Vec<&str> = done.split_whitespace().collect();
        assert!(lines.first().is_some_and(|name| name.starts_with("/dev/pts/")), "{done}");
        // 0x88 is 136, the major number of pseudo-terminals (devices.txt).
        assert!(lines.get(1).is_some_and(|kind| kind.starts_with("88:character")), "{done}");
    }
    drop(attacker);
    project.ctst(["stop", "-t", "0"]).ok();
    project.assert_nothing_left();
}

/// Runs `ctst` with a terminal, and returns what it showed.
fn on_a_terminal(project: &Project, args: &[&str]) -> String {
    let plain = project.command(args);
    let words: Vec<String> = std::iter::once(plain.get_program())
        .chain(plain.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let mut command = std::process::Command::new("script");
    command.args(["-q", "-e", "-c", &words.join(" "), "/dev/null"]);
    project.caller.login(&mut command);
    command
        .envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .current_dir(project.folder())
        .env("TERM", "xterm");
    containust_tests::finish(&mut command).ok().stdout
}

/// What root covered on the host is not uncovered by a mount of the folder around it.
#[test]
fn what_the_host_has_covered_stays_covered() {
    if Caller::root().is_none() {
        return;
    }
    let Some(caller) = Caller::ranges() else { return };
    let project = Project::new(&caller, &HOLD.replace("env =", "volume = \"./host:/host\" env ="));
    project.make_folder("host");
    project.make_folder("host/covered");
    project.write("host/covered/secret", "secret");
    let run = project.command(["run", "-d", "--wait", "--yes"]);
    let mut command = std::process::Command::new("unshare");
    let script = format!(
        "mount -t tmpfs none host/covered && exec setpriv --reuid {} --regid {} --clear-groups \"$@\"",
        caller.uid, caller.gid
    );
    command.args(["--mount", "sh", "-c", &script, "sh"]).arg(run.get_program()).args(run.get_args());
    command.env_clear().envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    containust_tests::finish(command.current_dir(project.folder())).ok();
    let seen = project.ctst(["exec", "one", "ls", "-A", "/host/covered"]).ok();
    assert_eq!(seen.stdout, "");
    assert_eq!(project.ctst(["exec", "one", "ls", "/host"]).ok().stdout, "covered\n");
    project.stop();
}

#[test]
fn a_privileged_program_of_the_host_gains_nothing() {
    if Caller::root().is_none() {
        return;
    }
    let Some(caller) = Caller::ranges() else { return };
    let project = Project::new(&caller, &HOLD.replace("env =", "volume = \"./host:/host\" env ="));
    project.make_folder("host");
    let probe = containust_tests::programs().with_file_name("rootfs").join("bin/ctst-escape");
    for name in ["setuid", "capable"] {
        let path = project.folder().join("host").join(name);
        fs::copy(&probe, &path).expect("copy the probe");
        fs::set_permissions(&path, fs::Permissions::from_mode(if name == "setuid" { 0o6755 } else { 0o755 }))
            .expect("set a mode");
    }
    // VFS_CAP_REVISION_2 without the effective bit: all capabilities permitted.
    let value: Vec<u8> = [0x0200_0000_u32, u32::MAX, 0, 0x1ff, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let capable = project.folder().join("host/capable");
    rustix::fs::setxattr(&capable, "security.capability", &value, rustix::fs::XattrFlags::empty()).expect("set it");
    project.up();
    for name in ["setuid", "capable"] {
        let path = format!("/host/{name}");
        let done = project.ctst(["exec", "-u", "somebody", "one", &path, "ids"]).ok();
        assert_eq!(
            done.stdout.split_whitespace().collect::<Vec<_>>(),
            ["1000", "1000", "1000", "1000", "0000000000000000"]
        );
    }
    project.stop();
}

#[test]
fn nobody_else_reaches_what_a_container_made() {
    let (Some(_), Some(caller)) = (Caller::root(), Caller::ranges()) else { return };
    let project = Project::new(&caller, &HOLD.replace("env =", "readonly = false env ="));
    project.up();
    project.ctst(["exec", "one", "sh", "-c", "cp /bin/busybox /srv/open; chmod 4755 /srv/open"]).ok();
    // However open the folders around it are.
    fs::set_permissions(project.folder(), fs::Permissions::from_mode(0o755)).expect("open the project's folder");
    let upper = walk(&project.folder().join(".containust"))
        .into_iter()
        .find(|path| path.ends_with("srv/open"))
        .expect("it lies in the writable layer");
    assert_eq!(fs::metadata(&upper).expect("look at it").permissions().mode() & 0o7777, 0o4755);
    let mut other = std::process::Command::new(&upper);
    Caller::single().login(&mut other);
    let error = other.arg("true").spawn().map(|_| ()).expect_err("it runs");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
    project.stop();
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(walk(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn special_files_are_no_volumes() {
    let caller = Caller::ordinary();
    let refused = |source: &str| {
        let project = Project::new(&caller, &HOLD.replace("env =", &format!("volume = \"{source}:/there\" env =")));
        let done = project.ctst(["run", "-d", "--wait", "--yes"]);
        assert_eq!(done.code, 125, "{source}: {done}");
        project.assert_nothing_left();
    };
    for source in ["/dev/zero", "/dev/null", "/proc/self/mem", "/proc"] {
        refused(source);
    }
    // A socket is mounted only where the file names it, and the plan shows it before anything starts.
    let project = Project::new(&caller, &HOLD.replace("env =", "volume = \"./host:/host\" env ="));
    project.make_folder("host");
    let plan = project.ctst(["plan"]).ok();
    assert!(plan.stdout.contains("./host") || plan.stdout.contains("/host"), "{plan}");
    project.assert_nothing_left();
}

/// What `ctst-escape overwrite` says: the file it got hold of, and the answers to opening it for writing and to writing.
fn overwritten(said: &str) -> (String, Vec<String>) {
    let (file, answers) = said.lines().find_map(|line| line.strip_prefix("held ")?.split_once(": ")).expect(said);
    (file.to_owned(), answers.split(", ").map(str::to_owned).collect())
}

/// The control of the next one: against a program that belongs to whom the attacker is, and that is executed from its file, the
/// same attack works.
#[test]
fn a_plain_program_is_overwritten_by_what_it_starts() {
    let Some(caller) = Caller::ranges() else { return };
    let project = Project::new(&caller, HOLD);
    let installed = containust_tests::programs();
    let before = fs::read(installed.join("ctst-shim")).expect("read the shim");
    for (name, from) in [("ctst-shim", installed), ("ctst-escape", &installed.with_file_name("rootfs").join("bin"))] {
        project.write_bytes(name, &fs::read(from.join(name)).expect("read a program"));
        fs::set_permissions(project.folder().join(name), fs::Permissions::from_mode(0o755)).expect("set a mode");
    }
    let mut attack = std::process::Command::new("unshare");
    // The attacker is pid 2. The program dies within a millisecond, and is executed until he has got hold of it: nobody executes
    // the file any more then, so that he can write to it however late he comes.
    let script = "mkdir run; ./ctst-escape overwrite run > said & until [ -e run/looks ]; do :; done; n=0; \
                  until [ -e run/held ] || [ $n = 10000 ]; do ./ctst-shim; n=$((n + 1)); done; \
                  [ -e run/held ] || touch run/stop; wait; cat said";
    attack.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "sh", "-c", script]);
    caller.login(&mut attack);
    attack.current_dir(project.folder());
    let done = containust_tests::finish(&mut attack);
    let (file, answers) = overwritten(&done.stdout);
    assert!(file.ends_with("/ctst-shim"), "{file}");
    assert!(answers.iter().any(|answer| answer == "written"), "{answers:?}");
    assert!(fs::read(project.folder().join("ctst-shim")).expect("read the shim") != before, "no harm was done");
}

/// An image that has the shim execute itself, and a process that gets hold of what runs then and writes to it as soon as the
/// kernel lets it (CVE-2019-5736).
#[test]
fn the_shim_cannot_be_overwritten_by_what_it_starts() {
    let Some(caller) = Caller::ranges() else { return };
    let installed = containust_tests::programs().to_owned();
    for (owned, entrypoint) in [(true, "/link"), (true, "/script"), (false, "/link"), (false, "/script")] {
        let mut project = Project::new(&caller, FROM_TAR);
        let hostile = image(|archive| {
            archive.link("link", "/proc/self/exe").entry(
                EntryType::Regular,
                "script",
                0o755,
                (0, 0),
                "",
                b"#!/proc/self/exe\n",
            )
        });
        project.write_bytes("a.tar", &hostile);
        if owned {
            project.make_folder("programs");
            for name in ["ctst", "ctst-shim"] {
                let to = format!("programs/{name}");
                project.write_bytes(&to, &fs::read(installed.join(name)).expect("read a program"));
                fs::set_permissions(project.folder().join(&to), fs::Permissions::from_mode(0o755)).expect("set a mode");
            }
            project.programs = project.folder().join("programs");
        }
        project.up();
        let before = fs::read(project.programs.join("ctst-shim")).expect("read the shim");
        let attacker = project.start(["exec", "one", "/bin/ctst-escape", "overwrite", "/run"]);
        eventually("the attacker looks", || project.ctst(["exec", "one", "cat", "/run/looks"]).code == 0);
        // It dies within a millisecond of being executed: not every one of them is caught.
        let mut caught = false;
        for _ in 0..200 {
            let done = project.ctst(["exec", "one", entrypoint]);
            assert!(done.code == 125 && done.stderr.contains("ctst-shim: "), "the shim was not executed: {done}");
            caught = project.ctst(["exec", "one", "cat", "/run/held"]).code == 0;
            if caught {
                break;
            }
        }
        assert!(caught, "the attacker never got hold of the shim");
        project.ctst(["exec", "one", "touch", "/run/stop"]).ok();
        let attack = attacker.wait(std::time::Duration::from_secs(60)).ok();
        let (file, answers) = overwritten(&attack.stdout);
        eprintln!("{owned} {entrypoint}: {file}: {answers:?}");
        assert!(file.contains("ctst-shim"), "{file}");
        assert_eq!(file.starts_with("/memfd:"), owned, "{file}");
        // ETXTBSY: as long as there is the container, its pid 1 executes that very file. EACCES: it is root's.
        let refusal = if owned { "error 26" } else { "error 13" };
        assert_eq!(answers, [refusal], "{file}");
        // And whoever could open it could not write.
        let sandbox = project.parts().into_iter().find(|(_, part)| *part == "S").expect("there is an S").0;
        if owned && containust_tests::Caller::root().is_some() {
            let file = fs::File::open(format!("/proc/{sandbox}/exe")).expect("open what S executes");
            let seals = rustix::fs::fcntl_get_seals(&file).expect("it is in memory");
            use rustix::fs::SealFlags;
            let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
            assert!(seals.contains(all), "{seals:?}");
        }
        assert!(fs::read(project.programs.join("ctst-shim")).expect("read the shim") == before, "it was overwritten");
        project.stop();
    }
}

#[test]
fn an_entrypoint_that_is_the_shim_gains_nothing() {
    let caller = Caller::ordinary();
    let scratch = tempfile::tempdir().expect("make a folder");
    let (source, program) = (scratch.path().join("a.c"), scratch.path().join("a"));
    fs::write(&source, "int main(void) { return 0; }\n").expect("write a source");
    let compiled = containust_tests::finish(
        std::process::Command::new("gcc")
            .args(["-Wl,--dynamic-linker=/proc/self/exe", "-o"])
            .arg(&program)
            .arg(&source),
    );
    assert_eq!(compiled.code, 0, "{compiled}");
    let interpreted = fs::read(&program).expect("read a program");
    let hostile = image(|archive| {
        archive
            .link("link", "/proc/self/exe")
            .entry(EntryType::Regular, "script", 0o755, (0, 0), "", b"#!/proc/self/exe\n")
            .entry(EntryType::Regular, "interpreted", 0o755, (0, 0), "", &interpreted)
            .link("descriptor", "/proc/self/fd/3")
            .link("parent", "/proc/1/exe")
    });
    for entrypoint in
        ["/link", "/script", "/interpreted", "/descriptor", "/parent", "/proc/self/exe", "/proc/self/fd/4"]
    {
        let project =
            Project::new(&caller, &FROM_TAR.replace(r#""/bin/ctst-probe", "hold""#, &format!("{entrypoint:?}")));
        project.write_bytes("a.tar", &hostile);
        let done = project.ctst(["run", "--yes"]);
        // The shim refuses to work without its channel; a static program is no interpreter for another.
        let harmless = [125, 126, 127, 139].contains(&done.code);
        assert!(harmless, "{entrypoint}: {done}");
        assert!(!done.to_string().contains("panicked"), "{entrypoint}: {done}");
        project.assert_nothing_left();
    }
}

/// S and C, looked at by another process of the same user. (A payload's own namespaces are the caller's to enter where no
/// privilege is involved: he could have made them himself.)
#[test]
fn nobody_of_the_same_user_looks_into_the_shim() {
    for caller in [Caller::ranges(), Some(Caller::single())].into_iter().flatten() {
        let project = Project::new(&caller, HOLD);
        project.up();
        project.note();
        let shims: Vec<i32> =
            project.processes().into_iter().filter(|(_, name)| name == "ctst-shim").map(|((pid, _), _)| pid).collect();
        assert!(shims.len() >= 2, "S and C are two: {shims:?}");
        for pid in shims {
            let files = ["environ", "auxv", "maps", "mem", "exe", "cwd", "root", "fd/3", "ns/user", "ns/mnt", "ns/pid"];
            for file in files {
                let mut look = std::process::Command::new("cat");
                caller.login(&mut look);
                let done = containust_tests::finish(look.arg(format!("/proc/{pid}/{file}")));
                assert!(
                    done.code != 0 && done.stderr.contains("Permission denied"),
                    "{file} as {}: {done}",
                    caller.name
                );
            }
            let attacks = [
                format!("nsenter --target {pid} --user true"),
                format!("nsenter --target {pid} --mount true"),
                format!("nsenter --target {pid} --all true"),
                format!("timeout 5 strace -f -p {pid}"),
                format!("gdb -p {pid} -batch"),
            ];
            for attack in attacks {
                let mut command = std::process::Command::new("sh");
                caller.login(&mut command);
                let done = containust_tests::finish(command.args(["-c", &attack]));
                assert_ne!(done.code, 0, "{attack} as {}: {done}", caller.name);
            }
        }
        project.ctst(["exec", "one", "true"]).ok();
        project.stop();
    }
}
