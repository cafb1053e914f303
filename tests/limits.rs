//! What a component may use of the host. Most of it needs the controllers of cgroup v2, and with them the test machine:
//! `make test-vm` runs what is ignored here, by `tests/vm/limits`, which says in CTST_LIMITS where it put this process.
#![expect(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use containust_tests::{Caller, Project, eventually};
use serde_json::Value;

/// A program that does nothing, for ever.
const SLEEP: &str = r#"image = "file://ROOTFS", command = ["sleep", "100000"]"#;
const BEST: &str = "limits = \"best-effort\"";

/// Where cgroup v2 is mounted.
fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(Into::into)
}

/// Whether this host's cgroup v2 has no memory controller, as a hybrid one's has not.
fn hybrid() -> bool {
    let controllers = mount().and_then(|mount| fs::read_to_string(mount.join("cgroup.controllers")).ok());
    let hybrid = !controllers.unwrap_or_default().split_whitespace().any(|name| name == "memory");
    if !hybrid {
        eprintln!("SKIPPED: needs a host whose memory controller belongs to cgroup v1");
    }
    hybrid
}

#[test]
fn a_limit_that_cannot_hold_is_refused_with_the_controller_and_the_fix() {
    if !hybrid() {
        return;
    }
    for caller in Caller::all() {
        let project = Project::new(&caller, &format!("COMPONENT hog {{ {SLEEP}, memory = 64MiB, pids = 9 }}"));
        for words in [&["plan"][..], &["run", "-d", "--yes"]] {
            let said = [
                "S0407",
                "component hog: limit its memory, pids: ",
                "memory controller",
                "help: boot with cgroup_no_v1",
            ];
            project.ctst(words).fails(125, &said);
        }
        assert!(project.ps().is_empty(), "nothing was made");
        project.assert_nothing_left();
        let checks = project.ctst(["doctor", "--format", "json"]).json();
        let check = checks.as_array().unwrap().iter().find(|check| check["name"] == "limits").unwrap().clone();
        assert_eq!(check["status"], "limited", "{check}");
        assert!(check["found"].as_str().unwrap().contains("memory") && check["fix"].is_string(), "{check}");
    }
}

#[test]
fn without_it_a_component_starts_where_its_author_is_content() {
    if !hybrid() {
        return;
    }
    for caller in Caller::all() {
        let text = format!(
            "COMPONENT hog {{ {SLEEP}, memory = 64MiB, {BEST} }}\nCOMPONENT free {{ {SLEEP} }}\n\
             COMPONENT more {{ {SLEEP}, memory = 64MiB, pids = 64, {BEST} }}"
        );
        let project = Project::new(&caller, &text);
        let said = "its limit `memory` does not hold: the memory controller";
        let plan = project.ctst(["plan"]).ok();
        let note = "limits that do not hold here: memory (hog, more), pids (more): its controller";
        assert!(plan.stdout.contains(note) && plan.stdout.matches("note: limits").count() == 1, "{plan}");
        let up = project.up();
        assert!(up.stderr.contains(note) && up.stderr.matches("not hold").count() == 1, "{up}");
        for again in [project.ctst(["run", "-d"]).ok(), project.ctst(["plan"]).ok(), project.ctst(["ps"]).ok()] {
            assert!(!format!("{again}").contains("not hold"), "{again}");
        }
        let status = project.status("hog");
        assert!(status["notes"][0].as_str().unwrap().starts_with(said), "{status}");
        assert!(project.status("free").get("notes").is_none());
        let stats = project.ctst(["stats", "hog", "--format", "json"]).ok().json();
        assert_eq!((&stats[0]["measured"], &stats[0]["processes"]), (&"processes".into(), &1.into()), "{stats}");
        project.ctst(["pause", "hog"]).fails(125, &["no cgroup", "no limit of it holds", "boot with cgroup"]);
        project.ctst(["pause", "free"]).fails(125, &["no cgroup", "pids = 4096"]);
        assert_eq!(project.status("hog")["state"], "running");
        project.ctst(["pause", "nobody"]).fails(125, &["S0202"]);
        project.stop();
        project.ctst(["unpause"]).fails(0, &["nothing is running"]);
    }
}

/// The caller whom tests/vm/limits has made a place for.
fn caller() -> Caller {
    match std::env::var("CTST_LIMITS").as_deref() {
        Ok("root") => Caller::root().unwrap(),
        Ok("user" | "bare" | "systemd") => Caller::ranges().unwrap(),
        Ok("strict") => Caller::strict().unwrap(),
        other => panic!("tests/vm/limits sets CTST_LIMITS, not {other:?}"),
    }
}

/// The group that tests/vm/limits prepares for strict mode.
const PARENT: &str = "/sys/fs/cgroup/ctst";

/// Whether the shim makes the groups.
fn by_shim() -> bool {
    std::env::var("CTST_LIMITS").is_ok_and(|place| place == "strict")
}

/// The group of a component that runs, by its first process on the host.
fn group(project: &Project, component: &str) -> PathBuf {
    let pid = project.status(component)["pid"].as_u64().unwrap();
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    mount().unwrap().join(text.trim().strip_prefix("0::/").unwrap())
}

/// Stops everything, and makes sure that the project's own group is gone, which that of one component lies in.
fn stop(project: &Project, group: &std::path::Path) {
    project.stop();
    let own = group.parent().unwrap();
    eventually("the project's group is removed", || !own.exists());
}

fn stats(project: &Project, component: &str) -> Value {
    let stats = project.ctst(["stats", component, "--format", "json"]).ok().json();
    assert_eq!(stats[0]["measured"], "cgroup", "{stats}");
    stats[0].clone()
}

fn number(stats: &Value, key: &str) -> f64 {
    stats[key].as_f64().unwrap_or_else(|| panic!("no {key} in {stats}"))
}

/// How much a figure grew in a second, measured over about `seconds`.
fn rate(project: &Project, component: &str, key: &str, seconds: u64) -> f64 {
    let look = || (Instant::now(), number(&stats(project, component), key));
    // The time of a look lies before its figure at the beginning, and after it at the end.
    let (begin, before) = look();
    std::thread::sleep(Duration::from_secs(seconds));
    let after = number(&stats(project, component), key);
    (after - before) / begin.elapsed().as_secs_f64()
}

#[test]
#[ignore = "needs cgroup v2 with its controllers: make test-vm"]
fn who_needs_too_much_memory_ends_alone() {
    let hog = r#"image = "file://ROOTFS", command = ["tail", "/dev/zero"], memory = 32MiB, swap = 0"#;
    let project = Project::new(
        &caller(),
        &format!(
            "COMPONENT hog {{ {hog} }}\nCOMPONENT again {{ {hog}, restart = \"on-failure\" }}\n\
             COMPONENT other {{ {SLEEP}, memory = 32MiB }}\nCOMPONENT free {{ {SLEEP} }}"
        ),
    );
    project.ctst(["run", "-d"]).ok();
    eventually("the hog ends", || project.status("hog")["state"] == "exited");
    let status = project.status("hog");
    assert_eq!((&status["exit_code"], &status["failure"]["code"]), (&137.into(), &"S0506".into()), "{status}");
    let message = status["failure"]["message"].as_str().unwrap();
    assert_eq!(message, "out of memory: it needed more than its limit of 33554432 bytes");
    eventually("it starts again", || project.status("again")["restarts"].as_u64() > Some(0));
    for name in ["other", "free"] {
        assert_eq!(project.status(name)["state"], "running");
    }
    let used = stats(&project, "other");
    assert!(number(&used, "memory") > 0.0 && number(&used, "memory_limit") as u64 == 32 << 20, "{used}");
    let shown = &project.status("other")["usage"];
    assert!(number(shown, "memory") > 0.0 && project.ctst(["ps"]).ok().stdout.contains(" of 33.6 MB"), "{shown}");
    assert!(project.status("free").get("usage").is_none());
    stop(&project, &group(&project, "other"));
    // One that ends this way in the foreground says so.
    let done = project.ctst(["run", "--yes", "hog"]).fails(137, &["out of memory", "33.6 MB"]);
    assert!(done.stderr.contains("SIGKILL"), "{done}");
}

#[test]
#[ignore = "needs cgroup v2 with its controllers: make test-vm"]
fn who_forks_too_much_is_refused() {
    // The shell in the middle ends when it cannot fork; its children stay, and the outer one needs no fork any more.
    let bomb = "(while :; do sleep 100000 & done) 2>/dev/null; exec sleep 100000";
    let text = format!(
        "COMPONENT bomb {{ image = \"file://ROOTFS\", command = [\"sh\", \"-c\", \"{bomb}\"], pids = 20 }}\n\
         COMPONENT other {{ {SLEEP}, pids = 20 }}"
    );
    let project = Project::new(&caller(), &text);
    project.ctst(["run", "-d"]).ok();
    eventually("forks are refused", || project.status("bomb").get("notes").is_some());
    let note = project.status("bomb")["notes"][0].as_str().unwrap().to_owned();
    assert_eq!(note, "it was refused more processes than its limit of 20");
    let used = stats(&project, "bomb");
    assert!(number(&used, "refused_forks") > 0.0 && number(&used, "processes") <= 20.0, "{used}");
    assert_eq!(number(&used, "processes_limit") as u64, 20);
    let more = project.ctst(["exec", "bomb", "sh", "-c", "true & true & true & true & wait"]);
    assert!(more.code != 0 && more.stderr.contains("fork"), "{more}");
    project.ctst(["exec", "other", "true"]).ok();
    let (place, start) = (group(&project, "bomb"), Instant::now());
    project.ctst(["stop", "-t", "0"]).ok();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    stop(&project, &place);
}

#[test]
#[ignore = "needs cgroup v2 with its controllers: make test-vm"]
fn who_computes_too_much_waits_and_can_be_frozen() {
    let text = "COMPONENT hog { image = \"file://ROOTFS\", command = [\"sh\", \"-c\", \"while :; do :; done\"], \
                cpus = 0.2 }";
    let project = Project::new(&caller(), text);
    project.ctst(["run", "-d"]).ok();
    // A fifth, and what the end of a period lets through. It would take all of one.
    let share = rate(&project, "hog", "cpu_ms", 3) / 1000.0;
    assert!(share > 0.01 && share < 0.3, "{share}");
    assert!(number(&stats(&project, "hog"), "throttled_ms") > 0.0);

    project.ctst(["pause"]).ok();
    assert_eq!(project.status("hog")["state"], "paused");
    let frozen = group(&project, "hog").join("cgroup.events");
    eventually("it is frozen", || fs::read_to_string(&frozen).unwrap().contains("frozen 1"));
    assert_eq!(rate(&project, "hog", "cpu_ms", 1), 0.0);
    project.ctst(["exec", "hog", "true"]).fails(125, &["it is paused", "ctst unpause hog"]);
    project.ctst(["pause", "hog"]).ok();
    project.ctst(["run", "-d"]).ok();
    assert_eq!(project.status("hog")["state"], "paused", "a run changes nothing");
    project.ctst(["unpause", "hog"]).ok();
    assert_eq!(project.status("hog")["state"], "running");
    assert!(rate(&project, "hog", "cpu_ms", 1) > 0.0);
    project.ctst(["exec", "hog", "true"]).ok();
    // It is let go on to hear of its stop.
    project.ctst(["pause"]).ok();
    let start = Instant::now();
    stop(&project, frozen.parent().unwrap());
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
}

#[test]
#[ignore = "needs cgroup v2 with its controllers: make test-vm"]
fn who_writes_too_much_waits() {
    let write = "while :; do dd if=/dev/zero of=/file bs=65536 count=32 conv=fsync 2>/dev/null; done";
    let text = format!(
        "COMPONENT hog {{ image = \"file://ROOTFS\", command = [\"sh\", \"-c\", \"{write}\"], readonly = false, \
         io {{ \"/var/tmp\" {{ write = 1MiB }} }} }}"
    );
    let project = Project::new(&caller(), &text);
    project.ctst(["run", "-d"]).ok();
    let limit = fs::read_to_string(group(&project, "hog").join("io.max")).unwrap();
    assert!(limit.contains("wbps=1048576") && limit.contains("rbps=max"), "{limit}");
    eventually("it writes", || number(&stats(&project, "hog"), "written_bytes") > 1e6);
    let rate = rate(&project, "hog", "written_bytes", 5) / 1_048_576.0;
    assert!(rate > 0.05 && rate < 1.8, "{rate} MiB in a second");
    let place = group(&project, "hog");
    project.ctst(["stop", "-t", "0"]).ok();
    stop(&project, &place);
}

#[test]
#[ignore = "needs cgroup v2 with its controllers: make test-vm"]
fn a_container_begins_in_its_group_and_sees_no_other() {
    let look = "cat /proc/self/cgroup /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; mkdir /sys/fs/cgroup/x; \
                echo max > /sys/fs/cgroup/memory.max; echo 1 > /sys/fs/cgroup/cgroup.freeze; exec sleep 100000";
    let text = format!(
        "COMPONENT web {{ image = \"file://ROOTFS\", command = [\"sh\", \"-c\", \"{look}\"], memory = 64MiB, pids = 30, \
         cpu = 0.5, memory_high = 48MiB }}\nCOMPONENT free {{ {SLEEP} }}"
    );
    let project = Project::new(&caller(), &text);
    project.up();
    eventually("it has looked", || project.logs("web").matches("Read-only file system").count() == 3);
    let log = project.logs("web");
    assert!(log.starts_with("0::/\n67108864\n31\n"), "{log}");
    let place = group(&project, "web");
    if by_shim() {
        let user = PathBuf::from(PARENT).join(caller().uid.to_string());
        assert_eq!(place.ancestors().nth(2), Some(user.as_path()));
    } else {
        assert!(place.file_name().unwrap().to_str().unwrap().starts_with("web."), "{}", place.display());
        assert!(place.parent().unwrap().parent().unwrap().ends_with("containust"), "{}", place.display());
    }
    let read = |file: &str| fs::read_to_string(place.join(file)).unwrap();
    assert_eq!(read("memory.max"), "67108864\n");
    assert_eq!(read("memory.high"), "50331648\n");
    assert_eq!(read("memory.oom.group"), "1\n");
    assert_eq!(read("cpu.max"), "50000 100000\n");
    // Its first process is there, and so is what was started later.
    project.ctst(["exec", "web", "sh", "-c", "sleep 100000 & "]).ok();
    assert_eq!(read("cgroup.procs").lines().count(), 3);
    // One without limits stays where its supervisor is.
    assert!(!group(&project, "free").ends_with("free"));
    let groups = fs::read_dir(place.parent().unwrap()).unwrap().flatten().filter(|e| e.path().is_dir()).count();
    // Beside it is that of the project's pid 1, where it has one.
    assert_eq!(groups, if by_shim() { 2 } else { 1 });
    let inside = project.ctst(["exec", "free", "cat", "/proc/self/cgroup"]).ok();
    assert_eq!(inside.stdout, "0::/\n");
    stop(&project, &place);
}

#[test]
#[ignore = "needs cgroup v2 with its controllers: make test-vm"]
fn what_cannot_hold_is_refused_and_the_rest_holds() {
    // No file system of a disk.
    let io = "io { \"/proc\" { write = 1MiB } }";
    let project = Project::new(&caller(), &format!("COMPONENT web {{ {SLEEP}, memory = 64MiB, {io} }}"));
    let said = ["S0407", "component web: limit its io: /proc is not on a block device", "name the device"];
    project.ctst(["plan"]).fails(125, &said);
    project.ctst(["run", "-d"]).fails(125, &said);
    project.write("stack.ctst", &format!("COMPONENT web {{ {SLEEP}, memory = 64MiB, {io}, {BEST} }}"));
    project.ctst(["run", "-d"]).ok();
    let status = project.status("web");
    assert_eq!(status["notes"].as_array().unwrap().len(), 1, "{status}");
    assert!(status["notes"][0].as_str().unwrap().starts_with("its limit `io` does not hold: /proc"), "{status}");
    let place = group(&project, "web");
    assert_eq!(fs::read_to_string(place.join("memory.max")).unwrap(), "67108864\n");
    stop(&project, &place);
}

#[test]
#[ignore = "needs cgroup v2 with its controllers: make test-vm"]
fn limits_change_while_it_runs() {
    let with = |limits: &str| format!("COMPONENT web {{ {SLEEP}, {limits} }}\nCOMPONENT free {{ {SLEEP} }}");
    let project = Project::new(&caller(), &with("memory = 64MiB, pids = 9, io { \"/var/tmp\" { read = 9MiB } }"));
    project.up();
    let (place, pid) = (group(&project, "web"), project.status("web")["pid"].clone());
    let read = |file: &str| fs::read_to_string(place.join(file)).unwrap();
    let files = || ["memory.max", "pids.max", "cpu.max", "io.max"].map(|file| read(file).trim().to_owned());
    let device = read("io.max").split(' ').next().unwrap().to_owned();
    let rate = |read: &str| format!("{device} rbps={read} wbps=max riops=max wiops=max");
    assert_eq!(files(), ["67108864", "10", "max 100000", &rate("9437184")]);
    for (limits, wanted) in [
        ("memory = 96MiB, cpus = 0.5", ["100663296", "max", "50000 100000", ""]),
        ("pids = 20, io { \"/var/tmp\" { read = 1MiB } }", ["max", "21", "max 100000", &rate("1048576")]),
        ("restart = \"never\"", ["max", "max", "max 100000", ""]),
    ] {
        project.write("stack.ctst", &with(limits));
        let plan = project.ctst(["plan", "--format", "json"]).ok().json();
        let step = plan["steps"].as_array().unwrap().iter().find(|step| step["component"] == "web").unwrap();
        assert_eq!(step["action"], "update", "{step}");
        project.ctst(["run", "-d", "--yes"]).ok();
        assert_eq!(files(), wanted, "{limits}");
        assert_eq!(project.status("web")["pid"], pid);
        let again = project.ctst(["plan", "--detailed-exitcode"]);
        assert_eq!(again.code, 0, "{again}");
    }
    // A device that is none leaves everything as it was.
    project.write("stack.ctst", &with("pids = 5, io { \"/proc\" { read = 1MiB } }"));
    project.ctst(["run", "-d", "--yes"]).fails(125, &["S0407"]);
    assert_eq!(files(), ["max", "max", "max 100000", ""]);
    stop(&project, &place);
}

#[test]
#[ignore = "needs cgroup v2 with its controllers: make test-vm"]
fn what_a_killed_supervisor_leaves_is_removed() {
    let project = Project::new(&caller(), &format!("COMPONENT web {{ {SLEEP}, memory = 64MiB }}"));
    project.up();
    let first = group(&project, "web");
    for round in 0..2 {
        if round == 1 {
            // Frozen processes end, too.
            project.ctst(["pause"]).ok();
        }
        project.note();
        kill_supervisor(&project);
        eventually("the container ends", || project.status("web")["state"] == "dead");
        project.assert_nothing_left();
        project.up();
    }
    eventually("the groups of the first are gone", || !first.parent().unwrap().exists());
    let last = group(&project, "web");
    project.note();
    kill_supervisor(&project);
    project.assert_nothing_left();
    eventually("the groups of the last are gone", || {
        project.ctst(["stop"]).ok();
        !last.parent().unwrap().exists()
    });
}

fn kill_supervisor(project: &Project) {
    let folder = project.folder().display().to_string();
    let supervisors: Vec<i32> = project
        .processes()
        .into_keys()
        .map(|(pid, _)| pid)
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("supervise") && line.contains(&folder)
        })
        .collect();
    let [pid] = supervisors[..] else { panic!("not one supervisor: {supervisors:?}") };
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

#[test]
#[ignore = "needs a user whom no group is given to: make test-vm"]
fn bare_of_a_group_it_is_refused_with_the_command_that_gives_one() {
    let project = Project::new(&caller(), &format!("COMPONENT web {{ {SLEEP}, memory = 64MiB }}"));
    let said = ["S0407", "web: limit its memory: no group of /sys/fs/cgroup is given to this user", "sudo sh -c"];
    project.ctst(["plan"]).fails(125, &said);
    project.ctst(["run", "-d"]).fails(125, &said);
    let doctor = project.ctst(["doctor"]);
    assert!(doctor.stdout.contains("cgroup v2 is at /sys/fs/cgroup: no cpu, io, memory, pids"), "{doctor}");
    assert!(doctor.stdout.contains("session/cgroup.procs"), "{doctor}");
    project.write("stack.ctst", &format!("COMPONENT web {{ {SLEEP}, memory = 64MiB, {BEST} }}"));
    let up = project.up();
    assert!(up.stderr.contains("limits that do not hold here: memory (web): no group"), "{up}");
    project.stop();
}

/// The systemd is a false one: a folder that says it runs, and a `systemd-run` that makes a group and goes there.
#[test]
#[ignore = "needs what stands for a systemd: make test-vm"]
fn scope_of_systemd_is_asked_for_and_divided() {
    let limited = format!("COMPONENT web {{ {SLEEP}, memory = 64MiB }}");
    let project = Project::new(&caller(), &limited);
    let doctor = project.ctst(["doctor"]);
    assert!(doctor.stdout.contains("in a scope that systemd makes: cpu"), "{doctor}");
    project.ctst(["plan"]).ok();
    project.up();
    let place = group(&project, "web");
    let scope = place.ancestors().nth(3).unwrap();
    assert!(scope.file_name().unwrap().to_str().unwrap().ends_with(".scope"), "{}", place.display());
    assert_eq!(fs::read_to_string(place.join("memory.max")).unwrap(), "67108864\n");
    let supervisor = fs::read_to_string(scope.join("supervisor/cgroup.procs")).unwrap();
    assert!(supervisor.lines().count() >= 2, "the supervisor and the project's pid 1: {supervisor}");
    project.ctst(["run", "-d"]).ok();
    stop(&project, &place);

    // One that was started without limits is not where they could hold.
    project.write("stack.ctst", &format!("COMPONENT web {{ {SLEEP} }}"));
    project.up();
    project.write("stack.ctst", &limited);
    project.ctst(["plan"]).fails(125, &["started without limits", "ctst stop"]);
    project.ctst(["run", "-d", "--yes"]).fails(125, &["started without limits", "ctst stop"]);
    assert_eq!(project.status("web")["state"], "running");
    project.stop();

    // What systemd-run says is passed on, and no reason not to start for who is content.
    project.write("stack.ctst", &limited);
    fs::write("/run/systemd/refuse", "").unwrap();
    project.ctst(["run", "-d"]).fails(125, &["S0408", "Failed to connect to bus", "systemctl --user status"]);
    project.write("stack.ctst", &format!("COMPONENT web {{ {SLEEP}, memory = 64MiB, {BEST} }}"));
    let up = project.up();
    assert!(up.stderr.contains("not hold"), "{up}");
    project.stop();
    fs::remove_file("/run/systemd/refuse").unwrap();
}

/// Whatever the caller of strict mode has, it is not the owner of the groups.
#[test]
#[ignore = "needs a prepared group and a shim with file capabilities: make test-vm"]
fn strict_the_caller_cannot_raise_leave_or_remove() {
    let project = Project::new(&caller(), &format!("COMPONENT web {{ {SLEEP}, memory = 64MiB, pids = 20 }}"));
    project.up();
    let place = group(&project, "web");
    let pid = project.status("web")["pid"].as_u64().unwrap();
    let (place, own) = (place.display().to_string(), place.parent().unwrap().display().to_string());
    let user = format!("{PARENT}/{}", project.caller.uid);
    let setpriv = format!("setpriv --reuid={0} --regid={1} --clear-groups --", project.caller.uid, project.caller.gid);
    let mut tried = 0;
    for script in [
        format!("echo max > {place}/memory.max"),
        format!("echo max > {place}/pids.max"),
        format!("echo 1 > {place}/cgroup.freeze"),
        format!("echo 1 > {place}/cgroup.kill"),
        format!("echo -memory > {own}/cgroup.subtree_control"),
        format!("echo {pid} > {PARENT}/cgroup.procs"),
        format!("echo {pid} > {own}/sandbox/cgroup.procs"),
        format!("echo $$ > {place}/cgroup.procs"),
        format!("mkdir {place}/x"),
        format!("mkdir {own}/x"),
        format!("mkdir {user}/x"),
        format!("mkdir {PARENT}/x"),
        format!("rmdir {place}"),
        format!("chmod 777 {place}"),
        format!("chown $(id -u) {place}/memory.max"),
    ] {
        let mut words = std::process::Command::new("sh");
        let done = containust_tests::finish(words.args(["-c", &format!("{setpriv} sh -c '{script}'")]));
        let refused =
            ["Permission denied", "not permitted", "cannot create"].iter().any(|word| done.stderr.contains(word));
        assert!(done.code != 0 && refused, "{script}: {done}");
        tried += 1;
    }
    assert_eq!(tried, 15);
    // Nor does a container, whose root has power over every id that is mapped in it, where the group is mounted writable.
    let text = format!(
        "COMPONENT web {{ {SLEEP}, memory = 64MiB, pids = 20 }}\nCOMPONENT other {{ {SLEEP}, volumes = [\"{own}:/own\"] }}"
    );
    project.write("stack.ctst", &text);
    project.ctst(["run", "-d", "--yes"]).ok();
    let id = place.rsplit('/').next().unwrap();
    for script in
        [format!("echo max > /own/{id}/pids.max"), "mkdir /own/x".into(), "echo 1 > /own/sandbox/cgroup.procs".into()]
    {
        let done = project.ctst(["exec", "other", "sh", "-c", &script]);
        assert!(done.code != 0, "{script}: {done}");
    }
    project.ctst(["exec", "other", "test", "-f", &format!("/own/{id}/pids.max")]).ok();
    assert_eq!(fs::read_to_string(format!("{place}/pids.max")).unwrap(), "21\n");
    project.stop();
}

/// The administrator's limits hold for a caller who speaks to the shim himself.
#[test]
#[ignore = "needs a prepared group and a shim with file capabilities: make test-vm"]
fn strict_the_policy_is_held_by_the_shim() {
    use containust_shared::protocol::{FromSandbox, FromShim, IdMap, Limit, Sandbox, ToSandbox, ToShim, VERSION};
    let policy = format!("cgroup_parent = {PARENT}\nmax_memory = 64MiB\nmax_pids = 20\n");
    let project =
        Project::governed(&caller(), &format!("COMPONENT web {{ {SLEEP}, memory = 96MiB, pids = 9 }}"), &policy, &[]);
    project.ctst(["run", "-d", "--yes"]).fails(125, &["limit its memory to 96MiB", "max_memory = 64MiB"]);
    let shim = project.raw_shim();
    // Also where he says that he needs no group.
    shim.send(&ToShim::Sandbox(Sandbox { version: VERSION, map: IdMap::Granted, grouped: false }));
    let Some(FromShim::Created { pid }) = shim.receive() else { panic!("no sandbox") };
    assert_eq!(shim.receive(), Some(FromShim::Ready));
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = mount().unwrap().join(own.trim().strip_prefix("0::/").unwrap());
    assert!(own.ends_with("sandbox"), "{}", own.display());
    let project_group = own.parent().unwrap();
    let read = |file: &str| fs::read_to_string(project_group.join(file)).unwrap();
    assert_eq!((read("rest/memory.max").as_str(), read("rest/pids.max").as_str()), ("67108864\n", "21\n"));
    let ask = |limits: &[Limit]| {
        shim.send(&ToSandbox::Cgroup { id: 1, limits: limits.to_vec() });
        shim.receive::<FromSandbox>().unwrap()
    };
    let (memory, pids) = (Limit::Memory(Some(64 << 20)), Limit::Pids(Some(20)));
    for bad in [&[][..], &[memory], &[pids], &[Limit::Memory(Some((64 << 20) + 1)), pids], &[memory, Limit::Pids(None)]]
    {
        let answer = ask(bad);
        assert!(
            matches!(&answer, FromSandbox::GroupFailed { failure, .. } if failure.step.contains("policy.conf")),
            "{answer:?}"
        );
        assert!(!project_group.join("1").exists(), "{bad:?}");
    }
    assert_eq!(ask(&[memory, pids]), FromSandbox::Grouped { id: 1, unset: vec![] });
    let answer = ask(&[memory, Limit::Pids(Some(21))]);
    assert!(matches!(answer, FromSandbox::GroupFailed { .. }), "{answer:?}");
    assert_eq!(read("1/pids.max"), "21\n");
    // Of two, the first would hold for as long as what is written between them takes, and processes would stay.
    let twice = ask(&[Limit::Pids(Some(1000)), Limit::MemoryHigh(Some(0)), memory, pids]);
    assert!(matches!(&twice, FromSandbox::GroupFailed { failure, .. } if failure.step.contains("twice")), "{twice:?}");
    let many = vec![memory; containust_shared::protocol::MAX_LIMITS + 1];
    assert!(matches!(ask(&many), FromSandbox::GroupFailed { failure, .. } if failure.step.contains("so many")));
    // A group that was not made.
    let launch = ToSandbox::Launch { id: 7, networks: Vec::new(), grouped: true, alone: None };
    shim.send_with(&launch, std::fs::File::open("/dev/null").unwrap().into());
    let answer = shim.receive::<FromSandbox>();
    assert!(
        matches!(&answer, Some(FromSandbox::LaunchFailed { id: 7, failure }) if failure.step.contains("not made")),
        "{answer:?}"
    );
    shim.send(&ToSandbox::Freeze { id: 7 });
    assert!(matches!(shim.receive::<FromSandbox>(), Some(FromSandbox::GroupFailed { id: 7, .. })));
    drop(shim);
    eventually("the project's groups are collected", || {
        project.ctst(["ps"]).ok();
        !project_group.exists()
    });
}

#[test]
#[ignore = "needs a prepared group and a shim with file capabilities: make test-vm"]
fn strict_without_a_group_it_is_refused_with_the_command_that_makes_one() {
    let text = format!("COMPONENT web {{ {SLEEP}, memory = 64MiB }}");
    for (policy, word) in [
        ("overlay = yes", "no line of /etc/containust/policy.conf says below which group limits may hold"),
        (
            "cgroup_parent = /sys/fs/cgroup/nowhere",
            "line 1 of /etc/containust/policy.conf says `cgroup_parent = /sys/fs/cgroup/nowhere`, which is not there",
        ),
        ("cgroup_parent = /var/tmp", "which is no group of cgroup v2"),
    ] {
        let project = Project::governed(&caller(), &text, policy, &[]);
        let plan = project.ctst(["plan"]).fails(125, &["S0407", "component web: limit its memory: ", word]);
        let run = project.ctst(["run", "-d", "--yes"]).fails(125, &["S0407", word]);
        assert_eq!(plan.stderr, run.stderr);
        let doctor = project.ctst(["doctor"]);
        assert!(doctor.stdout.contains(word), "{doctor}");
        project.write("stack.ctst", &format!("COMPONENT web {{ {SLEEP}, memory = 64MiB, {BEST} }}"));
        project.up();
        project.stop();
        // What the administrator demands holds, or nothing starts.
        project.set_policy(&format!("{policy}\nmax_memory = 64MiB\n"));
        project.ctst(["run", "-d", "--yes"]).fails(125, &["hold containers to max_memory", "no group is below"]);
    }
    let project = Project::governed(&caller(), &text, &format!("cgroup_parent = {PARENT}"), &[]);
    let doctor = project.ctst(["doctor"]);
    assert!(doctor.stdout.contains(&format!("below {PARENT}, by ctst-shim: cpu io memory pids")), "{doctor}");
}

/// S, and with it everything, is killed; the next command of the caller removes what is left.
#[test]
#[ignore = "needs a prepared group and a shim with file capabilities: make test-vm"]
fn strict_what_a_killed_sandbox_leaves_is_collected() {
    use containust_shared::protocol::{FromSandbox, FromShim, IdMap, Sandbox, ToSandbox, ToShim, VERSION};
    let project = Project::new(&caller(), &format!("COMPONENT web {{ {SLEEP} }}"));
    let shim = project.raw_shim();
    shim.send(&ToShim::Sandbox(Sandbox { version: VERSION, map: IdMap::Granted, grouped: true }));
    let Some(FromShim::Created { pid }) = shim.receive() else { panic!("no sandbox") };
    assert_eq!(shim.receive(), Some(FromShim::Ready));
    // More than one GC removes.
    for id in 1..=20 {
        shim.send(&ToSandbox::Cgroup { id, limits: vec![] });
        assert_eq!(shim.receive(), Some(FromSandbox::Grouped { id, unset: vec![] }));
    }
    let place = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = mount().unwrap().join(place.trim().strip_prefix("0::/").unwrap()).parent().unwrap().to_owned();
    project.ctst(["ps"]).ok();
    assert!(own.join("20").is_dir(), "what lives is left alone");
    let init = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
    eventually("the groups are collected", || {
        project.ctst(["ps"]).ok();
        !own.exists()
    });
    let user = PathBuf::from(PARENT).join(project.caller.uid.to_string());
    assert!(user.is_dir(), "the caller's own group stays, with the limits that the administrator may have set");
}
