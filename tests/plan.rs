//! What `ctst plan` says, and that `ctst run` does that and no more.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containust_tests::{Caller, Project, eventually, free_port};
use serde_json::Value;

/// `web` needs `app`, which needs `db`; `lone` needs nobody.
const STACK: &str = r#"
COMPONENT db {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  port = 5432
  env = { KEPT = "1", GOES = "hunter2" }
}
COMPONENT app { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] port = 8000 }
COMPONENT web { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
COMPONENT lone { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] restart = "never" }
CONNECT web -> app
CONNECT app -> db
"#;

/// The plan as JSON.
/// One component that does nothing.
const IDLE: &str = "COMPONENT idle { image = \"file://ROOTFS\", command = [\"/bin/ctst-probe\", \"hold\"] }\n";

fn plan(project: &Project) -> Value {
    project.ctst(["plan", "--format", "json"]).ok().json()
}

/// Component and action of each step that changes something.
fn actions(plan: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let steps = plan["steps"].as_array().expect("a list").iter();
    let mut actions: Vec<_> = steps.map(|step| (text(&step["component"]), text(&step["action"]))).collect();
    actions.retain(|(_, action)| action != "unchanged");
    actions
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, action)| ((*name).to_owned(), (*action).to_owned())).collect()
}

/// `field: message (old -> new)` for each cause of a component.
fn causes(plan: &Value, component: &str) -> Vec<String> {
    let step = plan["steps"].as_array().expect("a list").iter().find(|step| step["component"] == component);
    let causes = step.expect("a step")["causes"].as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    causes
        .map(|c| format!("{}: {} ({} -> {})", text(&c["field"]), text(&c["message"]), text(&c["old"]), text(&c["new"])))
        .collect()
}

fn drift(plan: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    plan["drift"].as_array().expect("a list").iter().map(|d| (text(&d["component"]), text(&d["kind"]))).collect()
}

/// Pids of the running components.
fn pids(project: &Project) -> BTreeMap<String, u64> {
    let pid = |row: &Value| Some((row["component"].as_str()?.to_owned(), row["pid"].as_u64()?));
    project.ps().iter().filter_map(pid).collect()
}

/// Every file below a folder: inode, size, times of writing and of change.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, (u64, u64, i64, i64, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        let meta = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).expect("list").flatten().map(|entry| entry.path()));
        }
        let times = (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        found.insert(path, times);
    }
    found
}

fn record(project: &Project, component: &str) -> PathBuf {
    project.folder().join(".containust/containers").join(component).join("record.json")
}

#[test]
fn every_change_is_named_with_its_cause() {
    let project = Project::new(&Caller::ordinary(), STACK);
    let first = plan(&project);
    assert_eq!(actions(&first).len(), 4);
    assert!(actions(&first).iter().all(|(_, action)| action == "create"));
    project.up();
    assert_eq!(actions(&plan(&project)), []);
    assert!(project.ctst(["plan"]).ok().stdout.contains("nothing to do"));
    let all = project.ctst(["plan", "--all"]).ok().stdout;
    assert!(["db", "app", "web", "lone"].iter().all(|name| all.contains(name)), "{all}");

    let changed = STACK.replace(r#"KEPT = "1", GOES = "hunter2""#, r#"KEPT = "hunter3", CAME = "hunter4""#);
    project.write("stack.ctst", &changed.replace("COMPONENT lone", "COMPONENT other"));
    let done = project.ctst(["plan", "--format", "json"]).ok();
    let plan = done.json();
    let expected = [("db", "replace"), ("app", "restart"), ("web", "restart"), ("other", "create"), ("lone", "remove")];
    let mut found = actions(&plan);
    found.sort();
    let mut wanted = pairs(&expected);
    wanted.sort();
    assert_eq!(found, wanted);
    assert_eq!(
        causes(&plan, "db"),
        [
            "env.GOES: env GOES removed (- -> -)",
            "env.KEPT: env KEPT changed (- -> -)",
            "env.CAME: env CAME added (- -> -)"
        ]
    );
    assert_eq!(causes(&plan, "app"), ["dependency: db is replaced (- -> -)"]);
    assert_eq!(causes(&plan, "web"), ["dependency: app is restarted (- -> -)"]);
    assert_eq!(causes(&plan, "lone"), ["file: the file no longer deploys it (- -> -)"]);
    let text = project.ctst(["plan"]).ok().stdout;
    for words in ["-/+  db", "~  app", "+  other", "-  lone", "db is replaced", "env CAME added"] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
    assert!(!text.contains("hunter") && !done.stdout.contains("hunter"), "{text}");
    project.stop();
}

#[test]
fn run_touches_what_changed_and_what_depends_on_it() {
    for caller in Caller::all() {
        let project = Project::new(&caller, STACK);
        project.up();
        let first = pids(&project);
        assert_eq!(first.len(), 4);
        let before = snapshot(&project.folder().join(".containust/containers"));
        // Nothing to do: no event, the same processes, no record written.
        let again = project.up();
        assert!(again.stderr.contains("nothing to do"), "{again}");
        for event in ["starting", "started", "stopping", "stopped", "changed"] {
            assert!(!again.stderr.contains(event), "{again}");
        }
        assert_eq!(pids(&project), first);
        let after = snapshot(&project.folder().join(".containust/containers"));
        let touched: Vec<_> = after.iter().filter(|(path, state)| before.get(*path) != Some(state)).collect();
        assert!(touched.is_empty() && after.len() == before.len(), "{touched:?}");

        let from_app = |name: &str| ["app", "web"].contains(&name);
        project.write("stack.ctst", &STACK.replace("port = 8000", "port = 8000 workdir = \"/srv\""));
        assert_eq!(actions(&plan(&project)), pairs(&[("app", "replace"), ("web", "restart")]));
        project.up();
        for (name, pid) in pids(&project) {
            assert_eq!(pid != first[&name], from_app(&name), "{name} ({})", caller.name);
        }
        assert_eq!(actions(&plan(&project)), []);
        project.stop();
    }
}

#[test]
fn properties_and_ports_change_while_it_runs() {
    let text = |more: &str, expose: &str| {
        format!(
            "COMPONENT web {{ image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"] port = 80 {more} }}\n\
             COMPONENT user {{ image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"] }}\n\
             CONNECT user -> web\n{expose}"
        )
    };
    let project = Project::new(&Caller::ordinary(), &text("restart = \"never\"", ""));
    project.up();
    let first = pids(&project);
    let port = free_port();
    let check =
        r#"restart = "on-failure" labels = { tier = "front" } healthcheck { command = ["/bin/true"] interval = 90s }"#;
    project.write("stack.ctst", &text(check, &format!("EXPOSE {port} -> web:80\n")));
    let changes = plan(&project);
    // With a health check, who needs it waits for its health.
    assert_eq!(actions(&changes), pairs(&[("web", "update"), ("user", "update")]));
    assert!(causes(&changes, "user")[0].starts_with("connect.web: connect web changed"));
    assert_eq!(
        causes(&changes, "web").iter().map(|cause| cause.split(':').next().unwrap_or_default()).collect::<Vec<_>>(),
        ["healthcheck", "labels.tier", "restart", "ports"]
    );
    assert!(causes(&changes, "web").contains(&"labels.tier: labels tier added (- -> front)".to_owned()));
    assert!(causes(&changes, "web").contains(&"restart: restart changed (never -> on-failure)".to_owned()));
    let done = project.up();
    assert!(done.stderr.contains("changed while it runs: healthcheck, labels.tier, restart"), "{done}");
    assert_eq!(pids(&project), first);
    assert_eq!(project.status("web")["health"], "healthy");
    assert_eq!(project.status("web")["labels"]["tier"], "front");
    assert_eq!(project.status("web")["ports"][0]["host_port"], port);
    assert_eq!(actions(&plan(&project)), []);

    // The new check counts, and the old one's timers do not.
    project.write("stack.ctst", &text(&check.replace("true", "false").replace("90s", "100ms retries = 2"), ""));
    let causes = causes(&plan(&project), "web");
    assert!(
        causes.iter().any(|cause| cause.starts_with("healthcheck.interval: ") && cause.ends_with("(90s -> 100ms)"))
    );
    assert!(causes.iter().any(|cause| cause.starts_with("ports: port withdrawn")), "{causes:?}");
    project.ctst(["run", "-d", "--yes"]).ok();
    eventually("it is unhealthy", || project.status("web")["health"] == "unhealthy");
    assert_eq!(drift(&plan(&project)), pairs(&[("web", "unhealthy")]));
    project.write("stack.ctst", &text("restart = \"on-failure\"", ""));
    project.up();
    assert!(project.status("web")["health"].is_null());
    assert_eq!(pids(&project), first);

    // The policy of now counts: it was `never` when it started.
    project.ctst(["exec", "web", "sh", "-c", "kill -KILL $(pidof ctst-probe)"]);
    eventually("it was started again", || project.status("web")["restarts"] == 1);
    project.stop();
}

#[test]
fn a_job_runs_again_for_what_it_was_run_for() {
    let text = |argument: &str| {
        format!(
            "COMPONENT db {{ image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\", \"{argument}\"] }}\n\
             JOB fill {{ image = \"file://ROOTFS\" command = [\"/bin/sh\", \"-c\", \"echo x >> /count/runs\"] volume = \"./count:/count\" }}\n\
             CONNECT fill -> db\n"
        )
    };
    let project = Project::new(&Caller::ordinary(), &text("a"));
    project.make_folder("count");
    let runs = || fs::read_to_string(project.folder().join("count/runs")).unwrap_or_default().lines().count();
    project.up();
    project.up();
    assert_eq!(runs(), 1);
    assert_eq!(actions(&plan(&project)), []);
    project.write("stack.ctst", &text("b"));
    let now = plan(&project);
    assert_eq!(actions(&now), pairs(&[("db", "replace"), ("fill", "start")]));
    assert_eq!(causes(&now, "fill"), ["dependency: db is replaced (- -> -)"]);
    project.up();
    assert_eq!(runs(), 2);
    assert_eq!(actions(&plan(&project)), []);
    project.stop();
}

#[test]
fn what_was_written_is_not_lost_without_leave() {
    let text = |command: &str| {
        format!(
            "COMPONENT one {{ image = \"file://ROOTFS\" readonly = false command = [\"/bin/sh\", \"-c\", \"{command}\"] }}\n\
             COMPONENT two {{ image = \"file://ROOTFS\" readonly = false command = [\"/bin/ctst-probe\", \"hold\"] }}\n"
        )
    };
    for caller in Caller::all() {
        let project = Project::new(&caller, &text("[ -e /srv/f ] || echo mine > /srv/f; exec ctst-probe hold"));
        project.up();
        project.ctst(["exec", "one", "test", "-e", "/srv/f"]).ok();
        let first = pids(&project);
        // Kept by a mere start.
        project.ctst(["stop"]).ok();
        let start = plan(&project);
        assert_eq!(actions(&start), pairs(&[("one", "start"), ("two", "start")]));
        assert!(start["steps"].as_array().expect("a list").iter().all(|step| step["data_loss"] == false));
        project.up();
        assert_eq!(project.ctst(["exec", "one", "cat", "/srv/f"]).ok().stdout, "mine\n");
        assert_ne!(pids(&project), first);

        let first = pids(&project);
        project.write("stack.ctst", &text("exec ctst-probe hold"));
        let shown = project.ctst(["plan"]).ok().stdout;
        assert!(shown.contains("is lost") && shown.contains("--allow-destroy"), "{shown}");
        let before = snapshot(&record(&project, "one"));
        project.ctst(["run", "-d", "--yes"]).fails(125, &["S0602", "one", "--allow-destroy"]);
        assert_eq!((pids(&project), snapshot(&record(&project, "one"))), (first.clone(), before));
        // Removing is losing, too; what nothing was written into is no loss.
        project.write(
            "stack.ctst",
            "COMPONENT three { image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"] }",
        );
        let plan = plan(&project);
        let loss = |name: &str| {
            let step = plan["steps"].as_array().expect("a list").iter().find(|step| step["component"] == name);
            step.expect("a step")["data_loss"].clone()
        };
        assert_eq!((loss("one"), loss("two"), loss("three")), (true.into(), false.into(), false.into()));
        project.ctst(["run", "-d", "--yes"]).fails(125, &["S0602", "one"]);
        assert_eq!(pids(&project), first);
        // Of some, it is what a run of these does.
        let shown = project.ctst(["plan", "three"]).ok().stdout;
        assert!(!shown.contains("remove"), "{shown}");
        project.ctst(["run", "-d", "--yes", "--allow-destroy"]).ok();
        eventually("only the third is left", || pids(&project).keys().eq(["three"]));
        project.stop();
    }
}

#[test]
fn a_plan_of_components_is_what_a_run_of_them_does() {
    let project = Project::new(&Caller::ordinary(), STACK);
    let plan = |words: &[&str]| {
        let words = [&["plan", "--format", "json"], words].concat();
        let mut found: Vec<String> =
            actions(&project.ctst(&words).ok().json()).into_iter().map(|(component, _)| component).collect();
        found.sort();
        found
    };
    assert_eq!(plan(&["app"]), ["app", "db"]);
    assert_eq!(plan(&["lone", "db", "stack.ctst"]), ["db", "lone"]);
    project.ctst(["run", "-d", "--wait", "--yes", "app", "lone"]).ok();
    assert_eq!(pids(&project).into_keys().collect::<Vec<_>>(), ["app", "db", "lone"]);
    assert_eq!(plan(&["app"]), [""; 0]);
    assert_eq!(plan(&["web"]), ["web"]);
    assert_eq!(plan(&[]), ["web"]);
    // What the file no longer deploys is removed by a run of everything only.
    project.write(
        "stack.ctst",
        &STACK.replace("COMPONENT lone", "COMPONENT other").replace("KEPT = \"1\"", "KEPT = \"2\""),
    );
    assert_eq!(plan(&["other"]), ["other"]);
    assert_eq!(plan(&["app"]), ["app", "db"]);
    assert_eq!(plan(&[]), ["app", "db", "lone", "other", "web"]);
    project.ctst(["plan", "--detailed-exitcode", "other"]).fails(2, &[]);

    project.ctst(["plan", "nobody"]).fails(125, &["nobody"]);
    project.ctst(["plan", "--detailed-exitcode", "nobody"]).fails(1, &["nobody"]);
    project.ctst(["plan", "-o", "plan.json", "app"]).fails(125, &["a plan is kept and carried out as a whole"]);
    assert!(!project.folder().join("plan.json").exists());
    project.stop();
}

#[test]
fn what_was_written_since_the_plan_is_not_lost_either() {
    let text = |argument: &str| {
        format!(
            "COMPONENT one {{ image = \"file://./root\" readonly = false command = [\"/bin/ctst-probe\", \"hold\", \"{argument}\"] }}"
        )
    };
    let project = Project::new(&Caller::ordinary(), &text("a").replace("./root", "ROOTFS"));
    project.up();
    project.write("stack.ctst", &text("b").replace("./root", "ROOTFS"));
    assert_eq!(plan(&project)["steps"][0]["data_loss"], false);
    project.ctst(["exec", "one", "sh", "-c", "echo x > /srv/late"]).ok();
    project.ctst(["run", "-d", "--yes"]).fails(125, &["S0602"]);
    project.ctst(["exec", "one", "test", "-e", "/srv/late"]).ok();
    project.stop();
}

#[test]
fn a_source_that_was_touched_replaces_nothing_unless_its_content_changed() {
    let text = r#"
COMPONENT one { image = "file://./root" readonly = false command = ["/bin/busybox", "sleep", "100000"] port = 80 }
COMPONENT two { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
CONNECT two -> one
"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.make_folder("root");
    project.make_folder("root/bin");
    let busybox = project.folder().join("root/bin/busybox");
    fs::copy("/bin/busybox", &busybox).expect("copy busybox");
    project.up();
    project.ctst(["exec", "one", "/bin/busybox", "touch", "/written"]).ok();
    let written = || project.ctst(["exec", "one", "/bin/busybox", "test", "-e", "/written"]).code == 0;
    let pids = || ["one", "two"].map(|name| project.status(name)["pid"].clone());
    let before = pids();
    let touch = || {
        let file = fs::File::options().write(true).open(&busybox).expect("open busybox");
        file.set_modified(std::time::SystemTime::now()).expect("touch busybox");
    };
    let open = pairs(&[("one", "unknown"), ("two", "unknown")]);

    touch();
    let now = plan(&project);
    assert_eq!((actions(&now), &now["steps"][0]["data_loss"]), (open.clone(), &Value::Bool(false)), "{now}");
    assert_eq!(causes(&now, "two"), ["dependency: one may be replaced (- -> -)"]);
    let shown = project.ctst(["plan"]).ok().stdout;
    assert!(shown.contains("2 unknown until import") && !shown.contains("--allow-destroy"), "{shown}");
    let done = project.ctst(["run", "-d"]).ok();
    assert!(done.stderr.contains("nothing to do"), "{done}");
    assert_eq!((pids(), written()), (before.clone(), true));
    assert_eq!(actions(&plan(&project)), []);

    touch();
    project.ctst(["plan", "-o", "kept.json"]).ok();
    project.ctst(["run", "-d", "kept.json"]).ok();
    assert_eq!((pids(), written()), (before.clone(), true));

    project.write("root/new", "a file");
    assert_eq!(actions(&plan(&project)), open);
    project.ctst(["run", "-d"]).fails(125, &["S0602", "replace or remove one"]);
    assert_eq!((pids(), written()), (before, true));
    let now = plan(&project);
    assert_eq!(actions(&now), pairs(&[("one", "replace"), ("two", "restart")]), "{now}");
    assert_eq!(now["steps"][0]["data_loss"], true);
    project.ctst(["run", "-d", "--allow-destroy"]).ok();
    project.ctst(["exec", "one", "/bin/busybox", "test", "-e", "/new"]).ok();
    assert!(!written());
    project.stop();
}

#[test]
fn drift_is_shown() {
    let text = r#"
COMPONENT ends { image = "file://ROOTFS" command = ["/bin/sh", "-c", "exit 3"] }
COMPONENT stays { image = "file://./root" command = ["/bin/busybox", "sleep", "100000"] port = 80 }
EXPOSE PORT -> stays:80
"#;
    let port = free_port();
    let project = Project::new(&Caller::ordinary(), &text.replace("PORT", &port.to_string()));
    project.make_folder("root");
    project.make_folder("root/bin");
    fs::copy("/bin/busybox", project.folder().join("root/bin/busybox")).expect("copy busybox");
    let taken = TcpListener::bind(("127.0.0.1", port)).expect("take the port");
    assert_eq!(drift(&plan(&project)), pairs(&[("stays", "port")]));
    project.ctst(["run", "-d", "--yes"]).fails(125, &["S0501"]);
    drop(taken);
    project.ctst(["run", "-d", "--yes"]).ok();
    eventually("it ended", || project.status("ends")["state"] == "exited");
    let now = plan(&project);
    assert_eq!(drift(&now), pairs(&[("ends", "exited")]), "its own port is no drift: {now}");
    assert_eq!(causes(&now, "ends"), ["state: it ended with 3 (- -> -)"]);

    project.write("root/new", "a file");
    let now = plan(&project);
    assert!(drift(&now).contains(&("stays".to_owned(), "image".to_owned())), "{now}");
    assert_eq!(
        causes(&now, "stays"),
        ["image: its image has to be imported: it is replaced if the content is another (- -> -)"]
    );
    fs::remove_file(project.folder().join("root/new")).expect("remove");

    // Whoever kills the supervisor kills everything.
    for ((pid, _), name) in project.processes() {
        if name == "ctst" {
            // It may be gone by now.
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid).expect("a pid"),
                rustix::process::Signal::KILL,
            );
        }
    }
    eventually("it is seen as dead", || project.status("stays")["state"] == "dead");
    let now = plan(&project);
    assert!(drift(&now).contains(&("stays".to_owned(), "killed".to_owned())), "{now}");

    fs::write(record(&project, "stays"), "{").expect("damage a record");
    let now = plan(&project);
    assert!(drift(&now).contains(&("stays".to_owned(), "record".to_owned())), "{now}");
    assert!(actions(&now).contains(&("stays".to_owned(), "replace".to_owned())), "{now}");
    assert!(project.ctst(["plan"]).ok().stdout.contains("to look at"));
    project.assert_nothing_left();
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let text = r#"
COMPONENT one { image = "file://./none" command = ["/bin/true"] }
COMPONENT two { image = "host:///bin/none" }
COMPONENT three { image = "file://ROOTFS" command = ["/bin/true"] volume = "./nowhere:/data" }
COMPONENT four { image = "file://ROOTFS" command = ["/bin/true"] }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    for command in [&["plan"][..], &["run", "-d", "--yes"]] {
        let done =
            project.ctst(command).fails(125, &["S0601", "one", "/none`", "two", "/bin/none", "three", "nowhere"]);
        assert!(!done.stderr.contains("four"), "{done}");
    }
    assert!(!project.folder().join(".containust").exists());
}

#[test]
fn a_plan_during_a_run_is_consistent() {
    let text = |argument: &str| STACK.replace("\"hold\"]", &format!("\"hold\", \"{argument}\"]"));
    let project = Project::new(&Caller::ordinary(), &text("0"));
    project.up();
    for round in 1..6 {
        project.write("stack.ctst", &text(&round.to_string()));
        let run = project.start(["run", "-d", "--wait", "--yes"]);
        let mut run = Some(run);
        loop {
            let over = run.as_mut().is_some_and(|run| matches!(run.child().try_wait(), Ok(Some(_))));
            let plan = plan(&project);
            for step in plan["steps"].as_array().expect("a list") {
                let action = step["action"].as_str().expect("an action");
                assert!(["replace", "restart", "start", "unchanged"].contains(&action), "{step}");
                assert!(!step["causes"].to_string().contains("record"), "{step}");
            }
            if over {
                assert_eq!(actions(&plan), [], "{plan}");
                break;
            }
        }
        let done = run.take().expect("a run").wait(std::time::Duration::from_secs(60));
        assert_eq!(done.code, 0, "{done}");
    }
    project.stop();
}

/// Compares a value with the part of JSON Schema that ours uses.
fn fits(value: &Value, schema: &Value, root: &Value) -> Result<(), String> {
    let fail = |what: &str| Err(format!("{what}: {value} does not fit {schema}"));
    if let Some(reference) = schema["$ref"].as_str() {
        return fits(value, root.pointer(reference.trim_start_matches('#')).expect("a definition"), root);
    }
    if let Some(ways) = schema["anyOf"].as_array() {
        return if ways.iter().any(|way| fits(value, way, root).is_ok()) { Ok(()) } else { fail("anyOf") };
    }
    if let Some(allowed) = schema["enum"].as_array() {
        return if allowed.contains(value) { Ok(()) } else { fail("enum") };
    }
    match schema["type"].as_str().expect("a type") {
        "string" if value.is_string() => Ok(()),
        "boolean" if value.is_boolean() => Ok(()),
        "null" if value.is_null() => Ok(()),
        "integer" if value.is_u64() => Ok(()),
        "array" if value.is_array() => {
            value.as_array().into_iter().flatten().try_for_each(|item| fits(item, &schema["items"], root))
        }
        "object" if value.is_object() => {
            let value = value.as_object().expect("checked");
            let required: Vec<&str> =
                schema["required"].as_array().expect("a list").iter().flat_map(Value::as_str).collect();
            if required.len() != value.len() || !required.iter().all(|name| value.contains_key(*name)) {
                return fail("required");
            }
            value.iter().try_for_each(|(name, value)| fits(value, &schema["properties"][name], root))
        }
        _ => fail("type"),
    }
}

#[test]
fn the_json_is_as_its_schema_says() {
    let port = free_port();
    let exposed = format!("{STACK}EXPOSE {port} -> app:8000\n");
    let project =
        Project::new(&Caller::ordinary(), &exposed.replace("COMPONENT lone {", "COMPONENT lone { volume = \"./v:/v\""));
    project.make_folder("v");
    let schema = project.ctst(["schema", "--plan"]).ok().json();
    let check = || {
        let plan = plan(&project);
        assert_eq!(fits(&plan, &schema, &schema), Ok(()));
        plan
    };
    assert_eq!(check()["grants"].as_array().map(Vec::len), Some(2));
    project.up();
    check();
    project.write("stack.ctst", &exposed.replace("\"1\"", "\"2\"").replace("COMPONENT lone", "COMPONENT new"));
    project.ctst(["stop", "web"]).ok();
    assert_eq!(check()["steps"].as_array().map(Vec::len), Some(5));
    // A schema that allows anything would fit, too.
    let wrong: Value =
        serde_json::from_str(&plan(&project).to_string().replace("\"replace\"", "\"explode\"")).expect("JSON");
    assert!(fits(&wrong, &schema, &schema).is_err());
    project.stop();
}

/// `ctst plan -o plan.json`, which has to work.
fn keep(project: &Project) {
    project.ctst(["plan", "-o", "plan.json"]).ok();
}

#[test]
fn a_kept_plan_is_carried_out_as_it_stands() {
    for caller in Caller::all() {
        let project = Project::new(&caller, &STACK.replace("COMPONENT lone {", "COMPONENT lone { volume = \"./v:/v\""));
        project.make_folder("v");
        project.ctst(["build"]).ok();
        keep(&project);
        let file = project.folder().join("plan.json");
        assert_eq!(file.metadata().expect("look").mode() & 0o7777, 0o600);
        project.ctst(["run", "-d", "--wait", "plan.json"]).fails(125, &["a person has to allow"]);
        project.ctst(["run", "-d", "--wait", "--yes", "plan.json"]).ok();
        assert_eq!(pids(&project).len(), 4);
        // What it was made for is done now.
        project.ctst(["run", "-d", "--yes", "plan.json"]).fails(125, &["S0604", "plan again"]);
        keep(&project);
        assert!(project.ctst(["run", "-d", "--wait", "--yes", "plan.json"]).ok().stderr.contains("nothing to do"));
        project.stop();
    }
}

#[test]
fn a_plan_is_kept_under_a_name_that_run_knows() {
    let project = Project::new(&Caller::ordinary(), IDLE);
    project.ctst(["plan", "-o", "plan.txt"]).fails(125, &["plan.txt", ".json"]);
    assert!(!project.folder().join("plan.txt").exists());
    let said = project.ctst(["plan", "-o", "plan.json"]).ok().stderr;
    assert!(said.contains("ctst run plan.json"), "{said}");
}

/// Who waits for a run finds what it was to remove removed.
#[test]
fn a_run_is_not_done_before_what_it_removes_is_gone() {
    let slow = r#"
COMPONENT slow {
  image   = "file://ROOTFS"
  command = ["/bin/sh", "-c", "trap 'sleep 2; exit 0' TERM; touch /tmp/ready; while :; do sleep 0.1; done"]
  healthcheck { command = ["/bin/test", "-e", "/tmp/ready"], interval = 100ms }
}
"#;
    for caller in Caller::all() {
        let project = Project::new(&caller, &format!("{IDLE}{slow}"));
        project.up();
        project.write("stack.ctst", IDLE);
        let said = project.ctst(["run", "-d"]).ok().stderr;
        assert!(said.contains("slow removed"), "{said}");
        assert_eq!(project.ps().len(), 1);
        project.ctst(["plan", "--detailed-exitcode"]).ok();
        project.stop();
    }
}

#[test]
fn a_kept_plan_holds_only_while_nothing_moved() {
    let project = Project::new(&Caller::ordinary(), STACK);
    project.up();
    let again = |words: &[&str]| {
        let first = pids(&project);
        project.ctst(["run", "-d", "--yes", "plan.json"]).fails(125, &[&["S0604"], words].concat());
        assert_eq!(pids(&project), first);
    };
    keep(&project);
    project.write("stack.ctst", &format!("{STACK}\n"));
    again(&["stack.ctst has changed"]);
    keep(&project);
    project.ctst(["stop", "web"]).ok();
    again(&["web is not as it was"]);
    keep(&project);
    project.ctst(["rm", "web"]).ok();
    again(&["web is not as it was"]);

    project.write("part.ctst", "COMPONENT part { image = \"file://ROOTFS\" command = [\"/bin/true\"] }\n");
    project.write("stack.ctst", &format!("IMPORT \"part.ctst\"\n{STACK}"));
    keep(&project);
    project.write("part.ctst", "COMPONENT part { image = \"file://ROOTFS\" command = [\"/bin/false\"] }\n");
    again(&["part.ctst has changed"]);

    // A copy of the folder is another project.
    keep(&project);
    let copy = Project::new(&project.caller, STACK);
    let text = fs::read_to_string(project.folder().join("plan.json")).expect("read the plan");
    copy.write("plan.json", &text);
    copy.ctst(["-f", "stack.ctst", "run", "-d", "--yes", "plan.json"]).fails(125, &["plan.json"]);
    copy.ctst(["run", "-d", "--yes", "lone", "plan.json"]).fails(125, &["as a whole"]);
    copy.ctst(["run", "-d", "--yes", "--set", "A=1", "plan.json"]).fails(125, &["as a whole"]);
    assert!(copy.ps().is_empty());
    project.stop();
    let elsewhere = project.folder().with_extension("moved");
    fs::rename(project.folder(), &elsewhere).expect("move the project");
    fs::create_dir(project.folder()).expect("make a folder");
    std::os::unix::fs::chown(project.folder(), Some(project.caller.uid), Some(project.caller.gid))
        .expect("give it away");
    project.write("stack.ctst", STACK);
    project.write("plan.json", &text);
    project.ctst(["run", "-d", "--yes", "plan.json"]).fails(125, &["S0604", "another folder"]);
    fs::remove_dir_all(&elsewhere).expect("remove");
}

#[test]
fn a_plan_that_was_edited_is_refused() {
    let project = Project::new(&Caller::ordinary(), STACK);
    project.ctst(["build"]).ok();
    keep(&project);
    let text = fs::read_to_string(project.folder().join("plan.json")).expect("read the plan");
    let refused = |text: &str, words: &[&str]| {
        project.write("plan.json", text);
        project.ctst(["run", "-d", "--yes", "plan.json"]).fails(125, words);
        assert!(project.ps().is_empty());
    };
    assert!(text.contains("ctst-probe"));
    refused(&text.replacen("ctst-probe", "busybox", 1), &["S0603", "plan.json", "changed after ctst wrote it"]);
    refused(&text.replacen("\"schema\": 1", "\"schema\": 2", 1), &["S0106", "newer"]);
    refused(&text.replacen("\"kind\"", "\"more\": 1, \"kind\"", 1), &["S0603", "changed after ctst wrote it"]);
    for broken in ["", "{", "[]", "null", "{\"schema\": 1}", &text[..text.len() / 2]] {
        refused(broken, &["S0603", "no plan of ctst"]);
    }
    project.ctst(["run", "-d", "--yes", "none.json"]).fails(125, &["none.json"]);
    // Its layout is nobody's business.
    let compact: Value = serde_json::from_str(&text).expect("JSON");
    project.write("plan.json", &compact.to_string());
    project.ctst(["run", "-d", "--wait", "--yes", "plan.json"]).ok();
    project.stop();
    // A plan that cannot be made leaves the old one.
    project.write("stack.ctst", "COMPONENT {");
    project.ctst(["plan", "-o", "plan.json"]).fails(125, &["stack.ctst"]);
    assert_eq!(fs::read_to_string(project.folder().join("plan.json")).expect("read"), compact.to_string());
}

/// What system calls that were traced would have changed.
fn writes(trace: &str) -> Vec<&str> {
    let changing = [
        "mkdir",
        "rename",
        "unlink",
        "rmdir",
        "link",
        "symlink",
        "truncate",
        "chmod",
        "fchmod",
        "chown",
        "fchown",
        "lchown",
        "utime",
        "mknod",
        "setxattr",
        "lsetxattr",
        "removexattr",
        "creat",
        "mount",
        "bind",
        "listen",
        "execve",
        "kill",
        "ptrace",
    ];
    let line = |line: &&str| {
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        let name = call.split('(').next().unwrap_or_default();
        let opens =
            name.starts_with("open") && ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|f| call.contains(f));
        let talks = name == "socket" && !call.contains("AF_UNIX");
        opens || talks || changing.iter().any(|prefix| name.starts_with(prefix) && !name.starts_with("readlink"))
    };
    trace.lines().filter(line).collect()
}

#[test]
fn planning_cannot_write_and_does_not_try() {
    for caller in Caller::all() {
        let port = free_port();
        let project = Project::new(&caller, &format!("{STACK}EXPOSE {port} -> app:8000\n"));
        let traced = |args: &[&str]| {
            let ctst = project.command(args);
            let trace = project.folder().join("trace");
            project.write("trace", "");
            let mut strace = std::process::Command::new("strace");
            project.caller.login(&mut strace);
            strace.env(
                "XDG_RUNTIME_DIR",
                ctst.get_envs().find(|(name, _)| *name == "XDG_RUNTIME_DIR").and_then(|(_, v)| v).expect("it is set"),
            );
            strace
                .current_dir(project.folder())
                .args(["-f", "-qq", "-o"])
                .arg(&trace)
                .arg(ctst.get_program())
                .args(args);
            let done = containust_tests::finish(&mut strace);
            (done.ok(), fs::read_to_string(&trace).expect("read the trace"))
        };
        let held = project.ctst(["doctor"]).stdout.contains("without the right to write files");
        let check = |args: &[&str], allowed: usize| {
            let before = snapshot(project.folder());
            let (done, trace) = traced(args);
            let after = snapshot(project.folder());
            let own = ["trace", "kept.json"].map(|name| project.folder().join(name));
            let differs = |path: &&PathBuf| {
                before.get(*path) != after.get(*path) && !own.contains(path) && **path != *project.folder()
            };
            let touched: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).filter(differs).collect();
            assert!(touched.is_empty(), "{args:?}: {touched:?}");
            let writes = writes(&trace);
            // The program itself is the one execve.
            assert_eq!(writes.len(), 1 + allowed, "{} {args:?}: {writes:#?}", project.caller.name);
            assert_eq!(trace.contains("landlock_restrict_self("), held, "{args:?}");
            done
        };
        let all = |expected: &str| {
            check(&["check"], 0);
            check(&["plan", "--format", "json"], 0);
            // Opened, and given its mode.
            check(&["plan", "-o", "kept.json"], 2);
            assert!(check(&["plan"], 0).stdout.contains(expected));
        };
        all("4 to create");
        project.up();
        all("nothing to do");
        project.write("stack.ctst", &STACK.replace("\"1\"", "\"2\"").replace("COMPONENT lone", "COMPONENT other"));
        all("1 to remove");
        project.stop();
        all("1 to remove");
    }
}

#[test]
fn a_plan_does_not_wait_for_the_reader_of_a_fifo() {
    let project =
        Project::new(&Caller::ordinary(), r#"COMPONENT one { image = "file://ROOTFS" command = ["/bin/true"] }"#);
    let fifo = project.folder().join("fifo");
    let made = std::process::Command::new("mkfifo").args(["-m", "666"]).arg(&fifo).status().expect("run mkfifo");
    assert!(made.success());
    project.start(["plan", "-o", "fifo"]).wait(Duration::from_secs(10)).fails(125, &["open fifo"]);
}

#[test]
fn what_is_wrong_with_others_stops_nobody() {
    for caller in Caller::all() {
        let project = Project::new(
            &caller,
            "SECRET token FROM FILE \"nothing\"\n\
             COMPONENT fine { image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"] }\n\
             COMPONENT user { image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"] }\n\
             COMPONENT lacking { image = \"host:///nowhere/at/all\" env { TOKEN = \"${secret.token}\" } }\n\
             CONNECT user -> fine",
        );
        for words in [&["plan"][..], &["run", "-d"], &["plan", "lacking"]] {
            project.ctst(words).fails(125, &["2 problems", "S0210", "/nowhere/at/all"]);
        }
        assert!(project.ctst(["plan", "user"]).ok().stdout.contains("2 to create"));
        project.ctst(["run", "-d", "user"]).ok();
        assert_eq!(project.ps().len(), 2);
        // Nor are they surplus for that.
        project.ctst(["plan", "fine"]).ok();
        assert_eq!(project.ctst(["run", "-d", "fine"]).ok().stderr.matches("remove").count(), 0);
        assert_eq!(project.ps().len(), 2);
        project.stop();
    }
}

/// Whoever did not write the file shall see what it takes along.
#[test]
fn what_is_taken_of_the_host_is_told() {
    for caller in Caller::all() {
        let text = r#"
COMPONENT one {
  image   = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  env       { WAY = "${env.PATH}", OTHER = "${env.NOBODY_SETS_THIS:-none}" }
  configs = ["conf", "own"]
}
CONFIG conf = { file = "/etc/passwd" }
CONFIG own = { file = "./own" }
"#;
        let project = Project::new(&caller, text);
        project.write("own", "of the project");
        let plan = project.ctst(["plan"]).ok().stdout;
        let json = project.ctst(["plan", "--format", "json"]).ok().stdout;
        let run = project.ctst(["run", "-d", "--wait", "--yes"]).ok().stderr;
        for told in [&plan, &json, &run] {
            assert!(told.contains("reads /etc/passwd, outside"), "{told}");
            assert!(told.contains("takes PATH from the environment"), "{told}");
            assert!(!told.contains("NOBODY_SETS_THIS") && !told.contains("/own,"), "{told}");
        }
        assert!(!project.ctst(["plan"]).ok().stdout.contains("takes PATH"));
        project.stop();
    }
}
