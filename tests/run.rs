//! From a file to running containers and back, by every kind of caller.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use containust_tests::{Caller, Project, eventually};
use serde_json::Value;

const TWO: &str = r#"
COMPONENT db {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  port = 5432
}
COMPONENT app {
  image = "file://ROOTFS"
  command = ["/bin/sh", "-c", "echo $DB_HOST:$DB_PORT; echo trouble >&2; exec ctst-probe hold"]
  env = { SPELLED = "at ${db.host}" }
}
CONNECT app -> db
"#;

fn names(rows: &[Value], state: &str) -> Vec<String> {
    let mut names: Vec<_> = rows
        .iter()
        .filter(|row| row["state"] == state)
        .filter_map(|row| row["component"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}

#[test]
fn a_stack_runs_is_listed_and_leaves_nothing() {
    for caller in Caller::all() {
        let project = Project::new(&caller, TWO);
        project.up();
        let rows = project.ps();
        assert_eq!(names(&rows, "running"), ["app", "db"], "{}: {rows:#?}", caller.name);
        assert!(!project.processes().is_empty());
        eventually("app's output is in the log", || project.logs("app").contains("trouble"));
        let done = project.ctst(["logs", "app"]).ok();
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("db:5432\n", "trouble\n"));
        project.stop();
        assert_eq!(names(&project.ps(), "stopped"), ["app", "db"]);
        assert_eq!(project.ctst(["ps", "--format", "json"]).ok().json(), Value::Array(vec![]));
    }
}

#[test]
fn no_process_of_root_serves_an_ordinary_user() {
    let caller = Caller::single();
    let project = Project::new(&caller, TWO);
    project.up();
    for ((pid, _), name) in project.processes() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default().to_owned();
        let ids: Vec<u32> = ids.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        assert_eq!(ids, [caller.uid; 4], "{name}");
    }
    project.stop();
}

#[test]
fn who_has_one_id_is_told_before_what_wants_others_starts() {
    let text = r#"
COMPONENT db { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
COMPONENT app { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] user = 1000 }
"#;
    let told = "a program that begins as root can neither go on as another user nor give a file to one (db);";
    let project = Project::new(&Caller::single(), text);
    let plan = project.ctst(["plan"]).ok();
    assert!(plan.stdout.contains(told), "{plan}");
    let run = project.ctst(["run", "-d", "--wait"]).ok();
    assert!(run.stderr.contains(told), "{run}");
    // Nothing starts any more.
    let plan = project.ctst(["plan"]).ok();
    assert!(!plan.stdout.contains(told), "{plan}");
    project.stop();
    if let Some(caller) = Caller::ranges() {
        let plan = Project::new(&caller, text).ctst(["plan"]).ok();
        assert!(!plan.stdout.contains("one id"), "{plan}");
    }
}

#[test]
fn running_again_does_nothing_and_a_change_touches_what_it_changes() {
    let caller = Caller::ordinary();
    let project = Project::new(&caller, TWO);
    project.up();
    let pids = |project: &Project| ["db", "app"].map(|name| project.status(name)["pid"].as_u64().expect("a pid"));
    let first = pids(&project);
    project.up();
    assert_eq!(pids(&project), first);
    project.write("stack.ctst", &TWO.replace("SPELLED", "CHANGED"));
    project.up();
    let second = pids(&project);
    assert_eq!(second[0], first[0], "db did not change");
    assert_ne!(second[1], first[1], "app did");
    assert!(project.report(&[], "app").env.contains_key("DB_HOST"));
    project.write(
        "stack.ctst",
        &TWO.replace("COMPONENT db", "COMPONENT data").replace("-> db", "-> data").replace("{db.", "{data."),
    );
    project.up();
    assert_eq!(names(&project.ps(), "running"), ["app", "data"]);
    project.stop();
}

#[test]
fn plan_writes_nothing() {
    let project = Project::new(&Caller::ordinary(), TWO);
    let list = || {
        let mut found: Vec<_> =
            fs::read_dir(project.folder()).expect("list").flatten().map(|entry| entry.file_name()).collect();
        found.sort();
        found
    };
    let before = list();
    let plan = project.ctst(["plan"]).ok();
    assert!(plan.stdout.contains("app") && plan.stdout.contains("db"), "{plan}");
    project.ctst(["plan", "--detailed-exitcode"]).fails(2, &[]);
    assert!(!project.ctst(["plan", "--format", "json"]).ok().json().is_null());
    project.ctst(["check"]).ok();
    assert_eq!(list(), before);
    project.up();
    project.ctst(["plan", "--detailed-exitcode"]).ok();
    project.stop();
}

#[test]
fn foreground_shows_output_and_ends_with_the_components_exit_code() {
    let text = r#"COMPONENT one { image = "file://ROOTFS" command = ["/bin/sh", "-c", "echo spoken; exit 3"] }"#;
    for caller in Caller::all() {
        let project = Project::new(&caller, text);
        let done = project.ctst(["run", "--yes"]).fails(3, &[]);
        assert!(done.stdout.contains("spoken"), "{done}");
        project.assert_nothing_left();
        assert_eq!(project.status("one")["exit_code"], 3);
    }
}

#[test]
fn a_signal_in_the_foreground_stops_gracefully_and_a_second_one_kills() {
    let text = r#"
COMPONENT polite {
  image = "file://ROOTFS"
  command = ["/bin/sh", "-c", "trap 'echo farewell; exit 0' TERM; echo ready; while :; do sleep 0.05; done"]
}
COMPONENT stubborn {
  image = "file://ROOTFS"
  command = ["/bin/sh", "-c", "trap '' TERM INT; echo ready; while :; do sleep 0.05; done"]
}"#;
    let project = Project::new(&Caller::ordinary(), text);
    let interrupt = |pid: i32| {
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signal ctst");
    };
    let polite = project.start(["run", "--yes", "polite"]);
    eventually("polite is ready", || project.ps().len() == 1 && project.logs("polite").contains("ready"));
    interrupt(polite.pid());
    let done = polite.wait(Duration::from_secs(60));
    assert!(done.stdout.contains("farewell"), "{done}");
    project.assert_nothing_left();

    let stubborn = project.start(["run", "--yes", "stubborn"]);
    eventually("stubborn is ready", || {
        project.ps().iter().any(|row| row["component"] == "stubborn") && project.logs("stubborn").contains("ready")
    });
    interrupt(stubborn.pid());
    std::thread::sleep(Duration::from_millis(300));
    interrupt(stubborn.pid());
    // Well before the ten seconds that a graceful stop gives.
    drop(stubborn.wait(Duration::from_secs(8)));
    project.assert_nothing_left();
}

#[test]
fn starts_in_order_and_stops_in_reverse() {
    let text = ["a", "b", "c"].map(|name| {
        format!(
            r#"COMPONENT {name} {{
  image = "file://ROOTFS"
  command = ["/bin/sh", "-c", "trap 'echo -{name} >> /order/list; exit 0' TERM; echo +{name} >> /order/list; touch /tmp/up; while :; do sleep 0.05; done"]
  volume = "./order:/order"
  healthcheck {{ command = ["test", "-e", "/tmp/up"] interval = 100ms }}
}}
"#
        )
    });
    let project = Project::new(&Caller::ordinary(), &(text.concat() + "CONNECT a -> b\nCONNECT b -> c\n"));
    project.make_folder("order");
    project.up();
    project.stop();
    let order = fs::read_to_string(project.folder().join("order/list")).expect("read the list");
    assert_eq!(order.split_whitespace().collect::<Vec<_>>(), ["+c", "+b", "+a", "-a", "-b", "-c"]);
}

#[test]
fn restarts_as_told() {
    let text = r#"
COMPONENT flaky {
  image = "file://ROOTFS"
  command = ["/bin/sh", "-c", "echo x >> /state/starts; [ $(wc -l < /state/starts) -ge 3 ] || exit 1; exec ctst-probe hold"]
  volume = "./state:/state"
  restart = "on-failure"
}
COMPONENT done { image = "file://ROOTFS" command = ["/bin/true"] restart = "on-failure" }
COMPONENT never { image = "file://ROOTFS" command = ["/bin/false"] }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.make_folder("state");
    project.ctst(["run", "-d", "--yes"]);
    eventually("the third start lasts", || {
        let row = project.status("flaky");
        row["state"] == "running" && row["restarts"] == 2
    });
    assert_eq!(project.status("done")["restarts"], 0);
    assert_eq!(project.status("never")["restarts"], 0);
    assert_eq!(project.status("never")["exit_code"], 1);
    project.stop();
}

#[test]
fn volumes_are_of_the_caller_and_read_only_where_said() {
    let text = r#"
COMPONENT one {
  image = "file://ROOTFS"
  command = ["/bin/sh", "-c", "cat /in; echo data > /out/file; echo x > /in; echo no $? >&2; exec ctst-probe hold"]
  volumes = ["./in:/in:ro", "./out:/out"]
}"#;
    for caller in Caller::all().into_iter().filter(|caller| caller.uid != 0) {
        let project = Project::new(&caller, text);
        project.write("in", "given\n");
        project.make_folder("out");
        project.up();
        eventually("it wrote", || project.logs("one").contains("no 1"));
        assert!(project.logs("one").contains("given"));
        project.stop();
        let file = project.folder().join("out/file");
        assert_eq!(fs::read_to_string(&file).expect("read what it wrote"), "data\n");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&file.metadata().expect("look")), caller.uid);
        assert_eq!(fs::read_to_string(project.folder().join("in")).expect("read"), "given\n");
    }
}

#[test]
fn a_plan_says_that_nobody_inside_can_write_to_a_folder() {
    // Whoever runs this cannot give a folder away unless it is root.
    let Some(root) = Caller::root() else { return };
    let text = r#"
COMPONENT one { image = "file://ROOTFS" command = ["ctst-probe", "hold"] volumes = ["./theirs:/theirs", "./seen:/seen:ro"] }
"#;
    for (caller, by) in [(root, ""), (Caller::ordinary(), "sudo ")] {
        let project = Project::new(&caller, text);
        for name in ["theirs", "seen"] {
            fs::create_dir(project.folder().join(name)).expect("make a folder of root's");
        }
        let folder = project.folder().join("theirs").display().to_string();
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(
            plan.contains(&format!("one: no process of it can write to {folder}, which belongs to user 0")),
            "{plan}"
        );
        assert!(!plan.contains("write to seen"), "{plan}");
        let command =
            plan.split("make root inside its owner: ").nth(1).expect("a command").lines().next().expect("one");
        let owner = command.strip_prefix(by).and_then(|rest| rest.strip_prefix("chown ")).expect("a command");
        let owner: u32 = owner.split(' ').next().and_then(|owner| owner.parse().ok()).expect("a number");
        std::os::unix::fs::chown(&folder, Some(owner), None).expect("give it away");
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(!plan.contains("no process of it"), "{plan}");
        project.up();
        project.ctst(["exec", "one", "touch", "/theirs/file"]).ok();
        project.stop();
    }
}

#[test]
fn programs_of_the_host_run_without_their_host() {
    let text = r#"
COMPONENT one {
  image = ["host:///usr/bin/env", "host:///usr/bin/sleep", "host:///usr/bin/ls"]
  entrypoint = ["/usr/bin/env", "MARK=1", "/usr/bin/sleep", "1000"]
}"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.up();
    let listed = project.ctst(["exec", "one", "/usr/bin/ls", "/", "/usr/bin"]).ok();
    assert!(listed.stdout.contains("sleep") && !listed.stdout.contains("bash"), "{listed}");
    project.ctst(["exec", "one", "/bin/sh"]).fails(127, &[]);
    project.stop();
}

#[test]
fn a_writable_root_keeps_nothing_of_it_in_the_image() {
    let text = r#"
COMPONENT one {
  image = "file://ROOTFS"
  command = ["/bin/sh", "-c", "echo x > /srv/file && rm /bin/not-executable && exec ctst-probe hold"]
  readonly = false
}
COMPONENT two { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.up();
    project.ctst(["exec", "one", "test", "-e", "/srv/file"]).ok();
    project.ctst(["exec", "two", "test", "-e", "/srv/file"]).fails(1, &[]);
    project.ctst(["exec", "two", "test", "-e", "/bin/not-executable"]).ok();
    project.stop();
}

#[test]
fn images_are_imported_once_and_again_when_they_change() {
    let project = Project::new(
        &Caller::ordinary(),
        r#"COMPONENT one { image = "file://./root" command = ["/bin/busybox", "sleep", "1000"] }"#,
    );
    project.make_folder("root");
    project.make_folder("root/bin");
    fs::copy("/bin/busybox", project.folder().join("root/bin/busybox")).expect("copy busybox");
    fs::set_permissions(project.folder().join("root/bin/busybox"), fs::Permissions::from_mode(0o755))
        .expect("set a mode");
    let digests = || {
        project.ctst(["build"]).ok();
        let images = project.ctst(["images", "--format", "json"]).ok().json();
        images
            .as_array()
            .expect("a list")
            .iter()
            .map(|image| image["digest"].as_str().expect("a digest").to_owned())
            .collect::<Vec<_>>()
    };
    let first = digests();
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(first[0].starts_with("sha256:"), "{first:?}");
    assert_eq!(digests(), first);
    project.write("root/new", "a file");
    let second = digests();
    assert!(second.iter().any(|digest| !first.contains(digest)), "{first:?} {second:?}");
}

#[test]
fn a_copied_project_does_not_believe_that_it_runs() {
    let project = Project::new(&Caller::ordinary(), TWO);
    project.up();
    let copy = Project::new(&project.caller, TWO);
    // The kernel's own work folder is closed to everybody, and cp says so.
    let cp = std::process::Command::new("cp")
        .arg("-a")
        .arg(project.folder().join(".containust"))
        .arg(copy.folder().join(".containust"))
        .output();
    let copied = copy.folder().join(".containust/containers/app/record.json");
    assert!(copied.exists(), "{cp:?}");
    assert_eq!(names(&copy.ps(), "running"), [""; 0]);
    copy.ctst(["stop"]).ok();
    assert_eq!(names(&project.ps(), "running"), ["app", "db"]);
    project.stop();
}

#[test]
fn logs_by_time_and_number() {
    let text = r#"COMPONENT one { image = "file://ROOTFS" command = ["/bin/sh", "-c", "seq 1 50; sleep 2; echo late; exec ctst-probe hold"] }"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.up();
    eventually("it wrote", || project.logs("one").contains("50"));
    assert_eq!(project.logs("one").lines().filter(|line| line.contains('7')).count(), 5);
    let tail = project.ctst(["logs", "--tail", "3", "one"]).ok().stdout;
    assert_eq!(tail.lines().count(), 3, "{tail}");
    let mut follow = project.start(["logs", "-f", "one"]);
    eventually("the late line", || project.logs("one").contains("late"));
    let since = project.ctst(["logs", "--since", "1s", "one"]).ok().stdout;
    assert!(since.contains("late") && !since.contains("49"), "{since}");
    project.stop();
    let followed = follow.child().stdout.take().map(|mut pipe| {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut pipe, &mut text).expect("read the log");
        text
    });
    assert!(followed.is_some_and(|text| text.contains("late") && text.contains("50")));
}

#[test]
fn files_are_brought_into_the_one_layout_and_codes_are_explained() {
    let project = Project::new(&Caller::ordinary(), "COMPONENT one {image=\"file://ROOTFS\" command=\"true\"}\n");
    let before = fs::read(project.folder().join("stack.ctst")).expect("read");
    assert_eq!(project.ctst(["fmt", "--check", "stack.ctst"]).fails(1, &[]).stdout, "stack.ctst\n");
    assert_eq!(fs::read(project.folder().join("stack.ctst")).expect("read"), before);
    assert_eq!(project.ctst(["fmt", "stack.ctst"]).ok().stdout, "stack.ctst\n");
    assert_ne!(fs::read(project.folder().join("stack.ctst")).expect("read"), before);
    assert_eq!(project.ctst(["fmt", "--check"]).ok().stdout, "");
    project.ctst(["check"]).ok();
    project.write("bad.ctst", "COMPONENT {");
    let done = project.ctst(["fmt", "bad.ctst", "stack.ctst"]).fails(125, &["bad.ctst: 1 error"]);
    let code = done.stderr.split(['[', ']']).nth(1).expect("a code").to_owned();
    assert!(project.ctst(["explain", &code]).ok().stdout.starts_with(&code));
    assert!(project.ctst(["explain", "S0210"]).ok().stdout.contains(".containust/secrets/NAME"));
    project.ctst(["explain", "E9999"]).fails(125, &["E9999"]);
    assert!(project.ctst(["schema"]).ok().json().is_object());
}

#[test]
fn parameters_and_profiles_come_from_the_command_line() {
    let text = r#"
PARAM COLOUR
COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] env = { COLOUR = "${COLOUR}" } }
COMPONENT two { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] profiles = ["debug"] }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.ctst(["check"]).fails(125, &["COLOUR"]);
    project.ctst(["check", "--set", "COLOUR=red", "--set", "SIZE=1"]).fails(125, &["SIZE"]);
    project.ctst(["check", "--set", "COLOUR=red"]).ok();
    project.ctst(["run", "-d", "--wait", "--set", "COLOUR=a=b"]).ok();
    assert_eq!(project.report(&[], "one").env["COLOUR"], "a=b");
    assert_eq!(names(&project.ps(), "running"), ["one"]);
    project.ctst(["run", "-d", "--wait", "--set", "COLOUR=a=b", "--profile", "debug"]).ok();
    assert_eq!(names(&project.ps(), "running"), ["one", "two"]);
    project.stop();
}

#[test]
fn variables_come_from_files() {
    let text = r#"
COMPONENT one {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  env_file = ["./conf/common.env", { path = "local.env", required = false }]
  env = { LEVEL = "debug" }
}
"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.ctst(["check"]).fails(125, &["E0225", "conf/common.env", "no such file"]);
    project.make_folder("conf");
    project.write("conf/common.env", "LEVEL=info\nGREETING=\"hello\nworld\" # two lines\n");
    project.ctst(["check"]).ok();
    project.write("local.env", "NOT A SECRET BUT CLOSE\n");
    let done = project.ctst(["check"]).fails(125, &["E0226", "line 1"]);
    assert!(!done.stderr.contains("CLOSE"), "what stands in the file is shown: {}", done.stderr);
    project.write("local.env", "PRICE='$5'\n");
    project.up();
    let env = project.report(&[], "one").env;
    assert_eq!((env["LEVEL"].as_str(), env["GREETING"].as_str()), ("debug", "hello\nworld"));
    assert_eq!(env["PRICE"], "$5");
    project.stop();
}
