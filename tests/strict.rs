//! Strict mode from outside: a shim with file capabilities, and a caller who has nothing else of the host. Run in the test
//! machine too, on a kernel that forbids user namespaces to everybody without CAP_SYS_ADMIN (`tests/vm/strict`).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use containust_tests::{Caller, Done, Project, finish, install_strict, programs, strict_programs};
use serde_json::Value;

const STACK: &str = r#"
COMPONENT root {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
}
COMPONENT other {
  image = "file://ROOTFS"
  command = ["/bin/sh", "-c", "echo started; exec /bin/ctst-probe hold"]
  user = "somebody"
}
COMPONENT writes {
  image = "file://ROOTFS"
  readonly = false
  command = ["/bin/sh", "-c", "echo kept >> /file; exec /bin/ctst-probe hold"]
}"#;

fn shell(script: &str) -> Done {
    finish(Command::new("sh").args(["-c", script]))
}

/// setpriv itself keeps root's capabilities until it executes something.
fn setpriv(caller: &Caller) -> String {
    format!("setpriv --reuid={} --regid={} --clear-groups --", caller.uid, caller.gid)
}

/// S, the containers' pid 1 and what they run: everything of a project but its supervisor.
fn inside(project: &Project) -> BTreeSet<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user"));
    let ours = fs::read_link("/proc/self/ns/user").expect("read a link");
    let all = project.processes().into_keys().map(|(pid, _)| pid);
    all.filter(|pid| namespace(*pid).is_ok_and(|theirs| theirs != ours)).collect()
}

fn answers(done: &Done) -> BTreeMap<String, String> {
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("no answers ({error}):\n{done}"))
}

/// What the caller's attack on a process is answered.
fn attack(caller: &Caller, pid: i32) -> BTreeMap<String, String> {
    let outsider = programs().join("ctst-outsider");
    answers(&shell(&format!("{} {} attack {pid}", setpriv(caller), outsider.display())).ok())
}

#[test]
fn a_member_of_the_group_runs_a_stack() {
    let Some(caller) = Caller::strict() else { return };
    let project = Project::new(&caller, STACK);
    let plan = project.ctst(["plan"]).ok();
    assert!(plan.stdout.contains("ids: strict"), "{plan}");
    assert!(plan.stdout.contains("copy of its image"), "{plan}");
    project.up();
    let (first, count) = caller.range().expect("a range");
    let report = project.report(&[], "root");
    let own = i64::from(caller.uid);
    let rest = i64::from(count.min(65_536)) - 1;
    assert_eq!(format!("{:?}", report.uid_map), format!("{:?}", [[0, own, 1], [1, i64::from(first), rest]]));
    assert_eq!(project.ctst(["exec", "other", "id", "-u"]).ok().stdout.trim(), "1000");
    assert_eq!(project.logs("other").trim(), "started");
    let readonly = project.ctst(["exec", "root", "touch", "/file"]);
    assert!(readonly.code != 0 && readonly.stderr.contains("Read-only"), "{readonly}");
    project.ctst(["stop", "--time", "1"]).ok();
    project.up();
    assert_eq!(project.ctst(["exec", "writes", "cat", "/file"]).ok().stdout, "kept\nkept\n");
    project.ctst(["stop", "--time", "1"]).ok();
    project.assert_nothing_left();
    project.ctst(["rm", "root", "other", "writes"]).fails(125, &["S0602", "writes"]);
    project.ctst(["rm", "--allow-destroy", "root", "other", "writes"]).ok();
    let left: Vec<_> = fs::read_dir(project.folder().join(".containust/containers")).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn volumes_begin_with_what_the_image_has() {
    let Some(caller) = Caller::strict() else { return };
    let text = r#"
VOLUME data {}
COMPONENT one {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  volumes = ["data:/etc"]
}"#;
    let project = Project::new(&caller, text);
    project.up();
    let passwd = project.ctst(["exec", "one", "cat", "/etc/passwd"]).ok();
    assert!(passwd.stdout.contains("somebody"), "{passwd}");
    project.stop();
}

#[test]
fn the_caller_has_no_way_into_his_containers() {
    let Some(caller) = Caller::strict() else { return };
    // The control: without strict mode the same attack works, on the payload at least.
    let mut control = BTreeSet::new();
    if fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone").is_ok_and(|text| text.trim() == "0") {
        // There is no rootless mode to compare with.
    } else {
        let rootless = Caller::ranges().expect("strict needs ranges");
        let project = Project::new(&rootless, STACK);
        project.up();
        for pid in inside(&project) {
            control.extend(attack(&rootless, pid).into_iter().filter(|(_, no)| no.is_empty()).map(|(name, _)| name));
        }
        project.stop();
        for name in ["setns user", "ptrace", "AF_PACKET in its network", "read environ", "read the link root"] {
            assert!(control.contains(name), "the control finds {name} refused: {control:?}");
        }
    }

    let project = Project::new(&caller, STACK);
    project.up();
    let pids = inside(&project);
    assert!(pids.len() >= 7, "S, three pid 1 and three programs are {pids:?}");
    for pid in &pids {
        let worked: Vec<_> = attack(&caller, *pid).into_iter().filter(|(_, no)| no.is_empty()).collect();
        assert!(worked.is_empty(), "{worked:?} on process {pid}");
    }
    // No user namespace of the project belongs to the caller, whose it would be to enter.
    let (first, count) = caller.range().expect("a range");
    let owner = first + count - 1;
    for pid in &pids {
        let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("read a map");
        let ids =
            map.lines().map(|line| line.split_whitespace().map(|n| n.parse().expect("a number")).collect::<Vec<u32>>());
        for extent in ids {
            assert!(!(extent[1]..extent[1] + extent[2]).contains(&owner), "the owner is mapped: {map}");
        }
    }
    project.stop();
}

/// What an onlooker says, which ends when nothing is left.
fn onlooker(project: &Project, how: &str, seed: u64) -> (Value, Done) {
    let script = r#""$0" run -d --wait --yes && "$0" exec root true && "$0" restart root --time 0; "$0" stop --time 0"#;
    let done = project.watched(how, seed, script).ok();
    (done.json(), done)
}

fn keys(report: &Value) -> BTreeSet<&str> {
    report.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// What is below his ctst, and only that, is what the caller looks into, in a loop without a pause: from P's first capability
/// until the last process has ended, and with each of them stopped or killed at some moment.
#[test]
fn the_caller_has_no_way_in_while_projects_start_and_end() {
    const ROUNDS: u64 = 6;
    const MOST: u64 = 50;
    let Some(caller) = Caller::strict() else { return };
    if fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone").is_ok_and(|text| text.trim() == "0") {
        // There is no rootless mode to compare with.
    } else {
        let project = Project::new(&Caller { strict: false, ..caller.clone() }, STACK);
        let (report, done) = onlooker(&project, "quiet", 1);
        let control = keys(&report["gained"]);
        for name in ["read the link root", "read environ", "read a link of fd", "pidfd_getfd", "open mem", "ptrace"] {
            assert!(control.contains(format!("X: {name}").as_str()), "the control finds {name} refused: {done}");
        }
        let entered = control.iter().any(|name| name.ends_with("enter the user namespace"));
        assert!(entered, "the control enters nothing: {done}");
    }

    let project = Project::new(&caller, STACK);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    let (mut seen, mut stopped, mut killed) = (BTreeMap::new(), 0, 0);
    for round in 0..MOST {
        let enough = ["P", "S", "C", "X"].iter().all(|part| seen.get(*part).is_some_and(|times| *times > 2));
        if enough && stopped > ROUNDS && killed > ROUNDS && round >= 2 * ROUNDS {
            break;
        }
        assert!(round + 1 < MOST, "seen {seen:?}, stopped {stopped}, killed {killed}");
        let how = if round < ROUNDS { "quiet" } else { "harsh" };
        let (report, done) = onlooker(&project, how, now + round);
        assert_eq!(report["gained"], serde_json::json!({}), "{how}, seed {}: {done}", now + round);
        // The script's code is that of its last command, which has nothing to do where a kill ended the project.
        assert!(report["code"] == 0 || how == "harsh" && !report["code"].is_null(), "{how}: {done}");
        for part in keys(&report["seen"]) {
            *seen.entry(part.to_owned()).or_insert(0) += report["seen"][part].as_u64().expect("a number");
        }
        stopped += report["stopped"].as_u64().expect("a number");
        killed += report["killed"].as_u64().expect("a number");
        project.assert_nothing_left();
    }
    eprintln!("seen {seen:?}, stopped {stopped}, killed {killed}");
    project.up();
    project.stop();
}

/// Who owns the namespaces of a project's processes, each kind that there is.
fn owners(project: &Project) -> BTreeSet<u32> {
    let kinds = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let files = inside(project).into_iter().flat_map(|pid| kinds.map(|kind| format!("/proc/{pid}/ns/{kind}")));
    // S is still in some of the host's.
    let own = |path: &String| {
        let kind = path.rsplit('/').next().expect("a name");
        fs::read_link(path).ok() != fs::read_link(format!("/proc/self/ns/{kind}")).ok()
    };
    let files = files.filter(own);
    let probe = programs().with_file_name("rootfs").join("bin/ctst-escape");
    let done = finish(Command::new(probe).arg("owners").args(files)).ok();
    let found = done.stdout.lines().filter_map(|line| line.rsplit_once(' ')?.1.parse().ok());
    found.collect()
}

#[test]
fn no_namespace_belongs_to_the_caller() {
    let Some(caller) = Caller::strict() else { return };
    let owned = |caller: &Caller| {
        let project = Project::new(caller, STACK);
        project.up();
        let owners = owners(&project);
        project.stop();
        owners
    };
    let (first, count) = caller.range().expect("a range");
    assert_eq!(owned(&caller), BTreeSet::from([first + count - 1]));
    if fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone").is_ok_and(|text| text.trim() == "0") {
        // There is no rootless mode to compare with.
        return;
    }
    assert_eq!(owned(&Caller { strict: false, ..caller.clone() }), BTreeSet::from([caller.uid]));
}

/// Permitted and effective capabilities; and the real, effective and saved user id, and that for files.
type Held = ((u64, u64), Vec<u32>);

/// What a process of the host holds.
fn held(pid: &str) -> Option<Held> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let mask = |name: &str| u64::from_str_radix(line(name)?.trim(), 16).ok();
    let ids = line("Uid")?.split_whitespace().map(|id| id.parse().ok());
    Some(((mask("CapPrm")?, mask("CapEff")?), ids.collect::<Option<_>>()?))
}

/// SETGID, SETUID and SYS_ADMIN, and not SETFCAP, without which the kernel maps no id 0 (user_namespaces(7)).
const THREE: u64 = 1 << 6 | 1 << 7 | 1 << 21;

/// What P holds, one after the other, by pid: `ctst doctor` runs under a tracer that keeps P from going on where it clones S, and
/// before it ends, and does `more` to its system calls.
fn watched_window(caller: &Caller, more: &str) -> (Done, BTreeMap<String, Vec<Held>>) {
    let folder = tempfile::tempdir().expect("make a folder");
    let stops = "-e inject=clone3:delay_enter=300000 -e inject=exit_group:delay_enter=300000";
    let ctst = strict_programs(caller).join("ctst");
    let script = format!(
        "strace -f {stops} {more} -u {} -o {}/trace {} doctor",
        caller.name,
        folder.path().display(),
        ctst.display()
    );
    let ours = fs::read_link("/proc/self/ns/user").expect("read a link");
    let own = caller.uid.to_string();
    let running = std::thread::spawn(move || shell(&script));
    let mut seen: BTreeMap<String, Vec<Held>> = BTreeMap::new();
    while !running.is_finished() {
        for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
            let (pid, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            if !fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "ctst-shim") {
                continue;
            }
            // Outside of every project, and this caller's.
            let outside = fs::read_link(path.join("ns/user")).is_ok_and(|theirs| theirs == ours);
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")?.split('\t').next());
            if outside && uid == Some(own.as_str()) {
                let found = seen.entry(pid.clone()).or_default();
                found.extend(held(&pid).filter(|held| found.last() != Some(held)));
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    (running.join().expect("join a thread"), seen)
}

/// Whether P was seen to go through its window, and to have given up everything before it ends.
fn leaves_nothing(caller: &Caller, seen: &BTreeMap<String, Vec<Held>>) -> bool {
    // Where it has no capability any more, and in the end no memory, all that keeps the caller from its descriptors is an id.
    let (first, count) = caller.range().expect("a range");
    let last = ((0, 0), vec![caller.uid, first + count - 1, caller.uid, caller.uid]);
    // Others may have been looked at in the middle only; the traced one is kept until its end.
    let traced = |held: &Vec<Held>| held.iter().any(|(sets, _)| *sets == (THREE, THREE)) && held.last() == Some(&last);
    seen.values().any(traced)
}

/// On a busy host a look can come too late, for one P and not for each of five.
const LOOKS: usize = 5;

/// P is looked at from outside.
#[test]
fn the_window_holds_three_capabilities_and_leaves_none() {
    let Some(caller) = Caller::strict() else { return };
    let left = (0..LOOKS).any(|_| {
        let (done, seen) = watched_window(&caller, "");
        assert!(done.stdout.contains("a program ran in one"), "{done}");
        // Other tests of the same caller may run theirs meanwhile, which are over before they are looked at.
        let all: BTreeSet<(u64, u64)> = seen.values().flatten().map(|(sets, _)| *sets).collect();
        assert!(all.iter().all(|(permitted, effective)| (permitted | effective) & !THREE == 0), "{seen:x?}");
        leaves_nothing(&caller, &seen)
    });
    assert!(left, "no process was seen in the window and after it");
}

/// S seems to have ended when P, which is root for files, is about to write its maps.
#[test]
fn a_window_that_fails_leaves_no_more() {
    let Some(caller) = Caller::strict() else { return };
    let left = (0..LOOKS).any(|_| {
        let (done, seen) = watched_window(&caller, "-e inject=ppoll:retval=1:when=1");
        assert!(done.stdout.contains("write the id maps: the project's pid 1 was killed"), "{done}");
        leaves_nothing(&caller, &seen)
    });
    assert!(left, "no process was seen in the window and after it");
}

/// The caller speaks to the shim himself, so that only this judges the files: with host id 0 in the range, and without a range of
/// groups, without which nobody could be let change his groups: the shim starts no project then.
#[test]
fn the_shim_itself_refuses_id_0_and_a_missing_range_of_groups() {
    use containust_shared::protocol::{FromShim, IdMap, Sandbox, ToShim, VERSION};
    let Some(caller) = Caller::strict() else { return };
    let (first, count) = caller.range().expect("a range");
    let (name, good) = (&caller.name, format!("{}:{first}:{count}\n", caller.name));
    for (uids, gids, words) in [
        (good.clone(), good.clone(), None),
        (format!("{name}:0:65536\n"), good.clone(), Some("id 0")),
        (good.clone(), format!("{name}:0:65536\n"), Some("id 0")),
        (good.clone(), String::new(), Some("/etc/subgid")),
        (good.clone(), format!("somebody:{first}:{count}\n"), Some("/etc/subgid")),
    ] {
        let project = Project::governed(&caller, STACK, "", &[]);
        let etc = project.policy().ancestors().nth(2).expect("an /etc").to_owned();
        for (file, text) in [("subuid", &uids), ("subgid", &gids)] {
            fs::write(etc.join(file), text).expect("write a file");
        }
        let shim = project.raw_shim();
        shim.send(&ToShim::Sandbox(Sandbox { version: VERSION, map: IdMap::Granted, grouped: false }));
        match (shim.receive(), words) {
            (Some(FromShim::Created { pid }), None) => {
                // With a range of groups granted, the container's root may set them: the control.
                let setgroups = fs::read_to_string(format!("/proc/{pid}/setgroups")).expect("read it");
                assert_eq!(setgroups.trim(), "allow");
            }
            (Some(FromShim::Failed(failure)), Some(words)) => {
                let text = format!("{} {}", failure.step, String::from_utf8_lossy(&failure.subject));
                assert!(text.contains(words), "{uids:?} {gids:?}: {failure:?}");
            }
            (answer, _) => panic!("{answer:?} to {uids:?} and {gids:?}"),
        }
    }
}

/// Whoever is the owner's id in a user namespace of his own has no power over the project's, which is no child of that.
#[test]
fn the_owners_id_opens_nothing_in_another_namespace() {
    let Some(caller) = Caller::strict() else { return };
    if shell(&format!("{} unshare --user true", setpriv(&caller))).code != 0 {
        // The host forbids such a namespace to begin with.
        return;
    }
    let project = Project::new(&caller, STACK);
    project.up();
    let (first, count) = caller.range().expect("a range");
    let owner = first + count - 1;
    let pids = inside(&project);
    for pid in pids {
        let script = format!(
            "{} unshare --user --map-users={owner},0,1 --map-groups={first},0,1 --setuid 0 --setgid 0 {} attack {pid}",
            setpriv(&caller),
            programs().join("ctst-outsider").display()
        );
        let worked: Vec<_> = answers(&shell(&script).ok()).into_iter().filter(|(_, no)| no.is_empty()).collect();
        assert!(worked.is_empty(), "{worked:?} on process {pid}");
    }
    project.stop();
}

#[test]
fn who_is_not_in_the_group_gets_nothing() {
    let Some(caller) = Caller::strict() else { return };
    let folder = tempfile::tempdir_in("/var/tmp").expect("make a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("set a mode");
    let [ctst, shim] = ["ctst", "ctst-shim"].map(|name| folder.path().join(name));
    for to in [&ctst, &shim] {
        fs::copy(strict_programs(&caller).join(to.file_name().expect("a name")), to).expect("copy a program");
    }
    install_strict(&shim, &Caller { gid: 0, ..caller.clone() });
    let user = setpriv(&caller);
    let done = shell(&format!("{user} {} doctor", ctst.display()));
    assert!(done.stdout.contains("only members of group root may"), "{done}");
    assert!(done.stdout.contains(&format!("usermod -aG root {}", caller.name)), "{done}");
    shell(&format!("{user} sh -c {}", shim.display())).fails(126, &["Permission denied"]);
}

/// The kernel takes file capabilities away without a word in all of these.
#[test]
fn lost_capabilities_are_named_with_their_cause() {
    let Some(caller) = Caller::strict() else { return };
    let ctst = strict_programs(&caller).join("ctst");
    let (user, ctst) = (setpriv(&caller), ctst.display().to_string());
    let folder = Path::new(&ctst).parent().expect("a folder").display().to_string();
    let doctor = |before: &str| shell(&format!("{before} {ctst} doctor"));
    let privileges = user.trim_end_matches(" --");
    for (script, words) in [
        (format!("{privileges} --no-new-privs --"), "no_new_privs"),
        (format!("{privileges} --bounding-set=-sys_admin --"), "bounding set lacks cap_sys_admin"),
        (format!("{privileges} --bounding-set=-setgid --"), "bounding set lacks cap_setgid"),
        (
            format!(
                "unshare --mount sh -c 'mount --bind {folder} {folder} && mount -o remount,bind,nosuid {folder} && exec \"$@\"' - {user}"
            ),
            "mounted nosuid",
        ),
        (format!("{user} strace -f -o /dev/null"), "under a tracer"),
    ] {
        let done = doctor(&script);
        assert!(done.stdout.contains(words), "no {words:?} after {script}:\n{done}");
    }
    let done = doctor(&format!("{user} unshare --user --map-current-user"));
    // Where no such namespace can be made there is nothing to lose in it.
    assert!(done.stdout.contains("user namespace") || done.stderr.contains("unshare"), "{done}");
}

/// Everything that could be wrong with the files that say which ids are whose.
#[test]
fn ids_come_from_files_that_only_root_can_write() {
    let Some(caller) = Caller::strict() else { return };
    let ctst = strict_programs(&caller).join("ctst").display().to_string();
    let user = setpriv(&caller);
    let dir = tempfile::tempdir().expect("make a folder");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("set a mode");
    let file = dir.path().join("subuid");
    let name = &caller.name;
    let doctor = |content: &str, change: &str| {
        fs::write(&file, content).expect("write a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set a mode");
        let file = file.display();
        shell(&format!(
            "unshare --mount sh -c '{change} mount --bind {file} /etc/subuid && exec \"$@\"' - {user} {ctst} doctor"
        ))
    };
    let good = format!("{name}:100000:65536\n");
    assert!(doctor(&good, "").stdout.contains("strict (65535 ids from 100000)"));
    for (content, change, words) in [
        (format!("{name}:0:65536\n"), "", "id 0"),
        (format!("{name}:1:4294967295\n"), "", "owner:first:count"),
        (format!("{name}:100000:1\n"), "", "fewer than 2"),
        (format!("{name}:{}:5\n", caller.uid - 1), "", "caller"),
        (format!("{good}somebody:165535:1\n"), "", "somebody else"),
        (format!("{good}rubbish\n"), "", "line 2"),
        ("somebody:100000:65536\n".to_owned(), "", "no line"),
        (good.clone(), "chmod g+w FILE &&", "others may write"),
        (good.clone(), "chown NAME FILE &&", "does not belong to root"),
    ] {
        let change = change.replace("FILE", &file.display().to_string()).replace("NAME", name);
        let done = doctor(&content, &change);
        assert!(done.stdout.contains(words), "no {words:?} for {content:?} after {change:?}:\n{done}");
    }
}

#[test]
fn root_and_changed_bits_are_refused() {
    let Some(caller) = Caller::strict() else { return };
    let shim = strict_programs(&caller).join("ctst-shim");
    let done = shell(&shim.display().to_string());
    done.fails(125, &["descriptor 3"]);
    let root = Caller { strict: true, ..Caller::root().expect("strict tests run as root") };
    let project = Project::new(&root, STACK);
    let done = project.ctst(["run", "-d", "--yes"]);
    assert_eq!(done.code, 125, "{done}");
    assert!(done.stderr.contains("root needs no file capabilities"), "{done}");
    project.assert_nothing_left();
}

/// The calls of one process in a trace, each whole where others came between.
fn calls(trace: &str, pid: &str) -> Vec<String> {
    let mut calls: Vec<String> = Vec::new();
    for (_, text) in trace.lines().filter_map(|line| line.split_once(' ')).filter(|(own, _)| *own == pid) {
        let text = text.trim_start();
        match (text.strip_prefix("<... ").and_then(|text| text.split_once(" resumed>")), calls.last_mut()) {
            (Some((_, rest)), Some(last)) => *last = last.replace(" <unfinished ...>", rest),
            _ => calls.push(text.to_owned()),
        }
    }
    // A debug build looks whether a descriptor is open before it closes it.
    calls.retain(|text| !text.contains("F_GETFD"));
    calls
}

/// The calls of the first shim in a trace that raised its capabilities, from that on to having read back that they are gone;
/// and those after it.
fn window(trace: &str) -> (Vec<String>, Vec<String>) {
    let raised = |text: &str| text.contains("capset(") && text.contains("{effective=1<<CAP_SETGID");
    let shim = trace.lines().find(|line| raised(line)).and_then(|line| line.split(' ').next());
    let calls = calls(trace, shim.expect("capabilities are raised"));
    let first = calls.iter().position(|text| raised(text)).expect("found above");
    let given_up = |text: &&String| text.starts_with("capget(") && text.contains("effective=0, permitted=0");
    let last = first + calls[first..].iter().position(|text| given_up(&text)).expect("they are given up");
    (calls[first..=last].to_vec(), calls[last + 1..].to_vec())
}

/// Runs ctst with these words as the caller under a tracer that may trace anything, as root's, which leaves a program its
/// file capabilities; and returns what it traced.
fn traced(caller: &Caller, words: &str) -> (Done, String) {
    let ctst = strict_programs(caller).join("ctst");
    let folder = tempfile::tempdir().expect("make a folder");
    let trace = folder.path().join("trace");
    let done = shell(&format!("strace -f -u {} -o {} {} {words}", caller.name, trace.display(), ctst.display()));
    (done, fs::read_to_string(&trace).expect("read a trace"))
}

/// Compares a window with the one that was reviewed. Whatever it names is made of numbers and of our own words.
fn compare(window: &[String], reviewed: &str) {
    let names: Vec<&str> = window.iter().filter_map(|text| text.split('(').next()).collect();
    assert_eq!(names, reviewed.lines().collect::<Vec<_>>(), "{window:#?}");
    assert!(window.len() <= 30, "{window:#?}");
    let ours = ["uid_map", "gid_map", "cgroup.subtree_control", "sandbox", "rest", "+cpu +io +memory +pids"];
    for quoted in window.iter().flat_map(|text| text.split('"').skip(1).step_by(2)) {
        let parts = quoted.trim_end_matches("\\n").split('/');
        let known =
            |part: &str| ours.contains(&part) || part.chars().all(|c| c.is_ascii_digit() || ". \\n".contains(c));
        assert!(parts.into_iter().all(known), "{quoted:?} is named in the window");
    }
}

/// The privileged window, call by call: `tests/window.strace`. A changed line is a change of what is done with a capability
/// over the host.
#[test]
fn the_window_is_as_short_as_it_was_reviewed() {
    let Some(caller) = Caller::strict() else { return };
    let (done, trace) = traced(&caller, "doctor");
    assert!(done.stdout.contains("a program ran in one"), "{done}");
    let (calls, after) = window(&trace);
    compare(&calls, include_str!("window.strace"));
    // And P can do next to nothing afterwards.
    let after: BTreeSet<&str> = after.iter().filter_map(|text| text.split('(').next()).collect();
    let ids = ["getgid", "setfsgid", "getuid", "setfsuid"];
    let lock = ["landlock_create_ruleset", "prctl", "landlock_restrict_self", "close", "fcntl", "seccomp"];
    let answer = ["sendmsg", "write", "munmap", "sigaltstack", "exit_group", "+++ exited with 0 +++"];
    let odd: Vec<_> = after.iter().filter(|name| ![&ids[..], &lock, &answer].concat().contains(name)).collect();
    assert!(odd.is_empty(), "{odd:?} after the window");
}

/// The same where the policy names a group: with the project's made, and with those of an ended one removed.
#[test]
#[ignore = "needs a prepared control group: tests/vm/strict"]
fn grouped_windows_are_as_short_as_they_were_reviewed() {
    let caller = Caller::strict().expect("tests/vm/strict runs this as root");
    let project = Project::new(&caller, STACK);
    let file = project.folder().join("stack.ctst").display().to_string();
    // Two projects: what the first ends with is still to be collected when the trace begins.
    project.up();
    project.note();
    let user = format!("/sys/fs/cgroup/ctst/{}", caller.uid);
    let inside = shell(&format!("cat {user}/*/sandbox/cgroup.procs | sort -n | head -n 1")).ok();
    shell(&format!("kill -KILL {}", inside.stdout.trim())).ok();
    project.assert_nothing_left();
    let (done, trace) = traced(&caller, &format!("--file {file} ps"));
    let (collected, _) = window(&trace);
    compare(&collected, include_str!("window-gc.strace"));
    assert_eq!(shell(&format!("ls -d {user}/*/")).code, 2, "{done}");

    // In the foreground, and soon over: the tracer stays as long as anybody whom it traces.
    let project = Project::new(&caller, "COMPONENT quick { image = \"file://ROOTFS\", command = [\"true\"] }");
    let file = project.folder().join("stack.ctst").display().to_string();
    let (done, trace) = traced(&caller, &format!("--file {file} run --yes"));
    assert_eq!(done.code, 0, "{done}");
    let (made, _) = window(&trace);
    compare(&made, include_str!("window-group.strace"));
    // S is born with root's id for files, and gives it up before anything else that it does with a file.
    let made = made.iter().find(|text| text.starts_with("clone3(")).expect("S is cloned");
    let init = made.rsplit_once("= ").expect("a pid").1.trim();
    let own = calls(&trace, init);
    let given_up = own.iter().position(|text| text.starts_with("setresuid(-1, -1, 1)")).expect("S gives that id up");
    let harmless = |text: &String| ["close(", "read(", "<... ", "fcntl("].iter().any(|name| text.starts_with(name));
    assert!(own[..given_up].iter().all(harmless), "{:#?}", &own[..=given_up]);
}

/// A copy of the program is not the program: neither of its rights goes with it.
#[test]
fn a_copy_has_nothing() {
    let Some(caller) = Caller::strict() else { return };
    let folder = tempfile::tempdir_in("/var/tmp").expect("make a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("set a mode");
    let copy = folder.path().join("ctst-shim");
    fs::copy(strict_programs(&caller).join("ctst-shim"), &copy).expect("copy the shim");
    assert!(rustix::fs::getxattr(&copy, "security.capability", &mut [0u8; 64][..]).is_err());
    install_strict(&copy, &caller);
    assert_eq!(copy.metadata().expect("stat").mode() & 0o7777, 0o750);
    assert!(rustix::fs::getxattr(&copy, "security.capability", &mut [0u8; 64][..]).is_ok());
}

/// In the test machine, on a kernel with `kernel.unprivileged_userns_clone=0`: what the host took away stays away.
#[test]
#[ignore = "needs a host that forbids user namespaces to its users: tests/vm/strict"]
fn forbidden_the_caller_gets_nothing_else() {
    let caller = Caller::strict().expect("tests/vm/strict runs this as root");
    let host = || {
        let outsider = programs().join("ctst-outsider");
        let done = shell(&format!("{} sh -c '{} host'", setpriv(&caller), outsider.display())).ok();
        let worked: Vec<_> = answers(&done).into_iter().filter(|(_, no)| no.is_empty()).collect();
        assert!(worked.is_empty(), "{worked:?} worked");
    };
    host();
    let rootless = Project::new(&Caller { strict: false, ..caller.clone() }, STACK);
    rootless.ctst(["run", "-d", "--yes"]).fails(125, &["kernel.unprivileged_userns_clone=1"]);
    let project = Project::new(&caller, STACK);
    project.up();
    host();
    project.stop();
}

/// In the test machine, with `user.max_user_namespaces=0`.
#[test]
#[ignore = "needs a host without user namespaces: tests/vm/strict"]
fn nothing_goes_round_a_host_without_user_namespaces() {
    let caller = Caller::strict().expect("tests/vm/strict runs this as root");
    for caller in [caller, Caller::root().expect("root")] {
        let project = Project::new(&caller, STACK);
        project.ctst(["run", "-d", "--yes"]).fails(125, &["user.max_user_namespaces"]);
        project.assert_nothing_left();
    }
}
