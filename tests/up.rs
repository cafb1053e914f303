//! What people who come from docker compose look for: `up`, `down`, `port`, `top`, `events`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use containust_tests::{Caller, Project, eventually, free_port};
use serde_json::Value;

fn hold(name: &str, more: &str) -> String {
    format!("COMPONENT {name} {{ image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"] {more} }}\n")
}

/// What is in the state folder, but for images and secrets.
fn state(project: &Project) -> Vec<String> {
    let mut left = Vec::new();
    for entry in fs::read_dir(project.folder().join(".containust")).into_iter().flatten().flatten() {
        left.push(entry.file_name().to_string_lossy().into_owned());
    }
    left.sort();
    left
}

#[test]
fn up_is_healthy_and_down_leaves_images_and_volumes() {
    let text = hold("web", "volume = \"data:/data\" healthcheck { command = [\"/bin/true\"] }")
        + &hold("scratch", "readonly = false");
    // In strict mode a writable root is a copy, in which nobody can tell what was written.
    for caller in Caller::all() {
        let project = Project::new(&caller, &text);
        project.ctst(["down"]).fails(0, &["nothing is left"]);
        assert_eq!(state(&project), [""; 0], "down makes nothing");
        // As fingers do that know compose.
        let done = project.ctst(["up", "-d"]).ok();
        assert!(done.stderr.contains("web healthy"), "{done}");
        assert_eq!(project.status("web")["health"], "healthy");
        project.ctst(["exec", "web", "/bin/sh", "-c", "echo kept > /data/kept"]).ok();
        let done = project.ctst(["down"]).ok();
        for word in ["web stopped", "web removed", "scratch removed"] {
            assert_eq!(done.stderr.matches(word).count(), 1, "{word}: {done}");
        }
        project.assert_nothing_left();
        assert_eq!(state(&project), [".gitignore", "images", "supervisor.lock", "volumes"], "{}", caller.name);
        assert!(project.ps().is_empty());

        project.ctst(["up"]).ok();
        assert_eq!(project.ctst(["exec", "web", "/bin/cat", "/data/kept"]).ok().stdout, "kept\n");
        let done = project.ctst(["down", "--volumes"]).ok();
        assert!(done.stderr.contains("volume data removed"), "{done}");
        assert_eq!(state(&project), [".gitignore", "images", "supervisor.lock"]);
        project.assert_nothing_left();
        project.ctst(["up", "nobody"]).fails(125, &["nobody"]);
    }
}

#[test]
fn down_loses_no_data_unless_it_may() {
    let text = hold("web", "readonly = false volume = \"data:/data\"");
    for caller in Caller::all().into_iter().chain(Caller::strict()) {
        let project = Project::new(&caller, &text);
        project.up();
        project.ctst(["exec", "web", "/bin/sh", "-c", "echo precious > /srv/written"]).ok();
        let pid = project.status("web")["pid"].clone();
        for words in [&["down"][..], &["down", "--volumes"]] {
            project.ctst(words).fails(125, &["S0602", "web", "--allow-destroy"]);
        }
        assert_eq!(project.status("web")["pid"], pid, "nothing was stopped");
        // Nor is it lost when nothing runs any more.
        project.ctst(["stop"]).ok();
        project.ctst(["down"]).fails(125, &["S0602"]);
        project.ctst(["rm"]).fails(125, &["S0602", "web"]);
        project.ctst(["rm", "web"]).fails(125, &["S0602", "--allow-destroy"]);
        project.up();
        assert_eq!(project.ctst(["exec", "web", "/bin/cat", "/srv/written"]).ok().stdout, "precious\n");
        project.stop();
        project.ctst(["rm", "--allow-destroy"]).ok();
        assert!(project.ps().is_empty());
        project.ctst(["down"]).ok();
        assert!(project.folder().join(".containust/volumes/data").is_dir(), "a volume is kept");
        project.assert_nothing_left();
    }
}

/// What is written between the look and the stop is seen before anything is removed.
#[test]
fn what_is_written_while_it_ends_is_kept_too() {
    let text = r#"
COMPONENT web {
  image    = "file://ROOTFS"
  command  = ["/bin/sh", "-c", "trap 'echo last > /srv/written; exit 0' TERM; echo ready; while :; do sleep 0.05; done"]
  readonly = false
}"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.up();
    eventually("it is ready", || project.logs("web").contains("ready"));
    project.ctst(["down"]).fails(125, &["S0602", "web"]);
    assert_eq!(project.status("web")["state"], "stopped");
    project.ctst(["down", "--allow-destroy"]).ok();
    project.assert_nothing_left();
}

#[test]
fn down_is_of_one_file() {
    let project = Project::new(&Caller::ordinary(), &hold("mine", "volume = \"shared:/a\""));
    project.write("b.ctst", &hold("other", "volume = [\"shared:/a\", \"own:/b\"]"));
    project.up();
    project.ctst(["-f", "b.ctst", "up"]).ok();
    let pid = project.status("mine")["pid"].clone();
    let done = project.ctst(["-f", "b.ctst", "down", "--volumes"]).ok();
    assert!(
        done.stderr.contains("volume own removed") && done.stderr.contains("volume shared stays: mine has it"),
        "{done}"
    );
    assert_eq!(project.ps().len(), 1);
    assert_eq!(project.status("mine")["pid"], pid);
    assert!(state(&project).contains(&"supervisor.log".to_owned()));
    // A file with errors says whose folder it is all the same; its volumes it cannot say.
    project.write("stack.ctst", "COMPONENT {");
    project.ctst(["down", "--volumes"]).fails(125, &["stack.ctst"]);
    assert_eq!(project.status("mine")["pid"], pid);
    project.ctst(["down"]).ok();
    project.assert_nothing_left();
    project.ctst(["-f", "none.ctst", "down"]).fails(125, &["none.ctst"]);
}

#[test]
fn down_keeps_what_another_file_stores() {
    let both = hold("both", "volume = \"data:/a\"");
    let project = Project::new(&Caller::ordinary(), &both);
    project.write("b.ctst", &both);
    project.up();
    project.ctst(["-f", "b.ctst", "up"]).ok();
    let done = project.ctst(["down", "--volumes"]).ok();
    assert!(done.stderr.contains("volume data stays: both has it"), "{done}");
    project.ctst(["-f", "b.ctst", "up"]).ok();
    let done = project.ctst(["-f", "b.ctst", "down", "--volumes"]).ok();
    assert!(done.stderr.contains("volume data removed"), "{done}");
    // Of one whose record cannot be read nobody knows what it has.
    project.up();
    project.stop();
    fs::write(project.folder().join(".containust/containers/both/record.json"), "{").expect("damage a record");
    let done = project.ctst(["down", "--volumes", "--allow-destroy"]).ok();
    assert!(done.stderr.contains("volume data stays: both has it"), "{done}");
    project.assert_nothing_left();
}

#[test]
fn ports_are_listed() {
    let (one, two) = (free_port(), free_port());
    let text = hold("web", "ports = [80, 443]")
        + &hold("quiet", "")
        + &format!("EXPOSE {one} -> web:80\nEXPOSE 0.0.0.0:{two} -> web:443\nEXPOSE {one} -> web:80/udp\n");
    let project = Project::new(&Caller::ordinary(), &text);
    assert_eq!(project.ctst(["port"]).ok().stdout, "");
    project.ctst(["port", "web"]).fails(125, &["web", "not running"]);
    project.up();
    let lines = format!("0.0.0.0:{two} -> web:443\n127.0.0.1:{one} -> web:80\n127.0.0.1:{one} -> web:80/udp\n");
    assert_eq!(project.ctst(["port"]).ok().stdout, lines);
    assert_eq!(project.ctst(["port", "web"]).ok().stdout, lines);
    assert_eq!(project.ctst(["port", "web", "80"]).ok().stdout, format!("127.0.0.1:{one}\n127.0.0.1:{one}/udp\n"));
    assert_eq!(project.ctst(["port", "web", "80/tcp"]).ok().stdout, format!("127.0.0.1:{one}\n"));
    assert_eq!(project.ctst(["port", "web", "80/udp"]).ok().stdout, format!("127.0.0.1:{one}/udp\n"));
    project.ctst(["port", "web", "443/udp"]).fails(125, &["port 443/udp of web", "web:443/udp"]);
    project.ctst(["port", "web", "80/sctp"]).fails(125, &["tcp or udp"]);
    assert_eq!(project.ctst(["port", "quiet"]).ok().stdout, "");
    project.ctst(["port", "web", "81"]).fails(125, &["port 81 of web", "EXPOSE"]);
    project.ctst(["port", "quiet", "80"]).fails(125, &["not published"]);
    project.ctst(["port", "nobody"]).fails(125, &["nobody"]);
    project.ctst(["port", "web", "http"]).fails(125, &["http"]);
    let rows = project.ctst(["port", "--format", "json"]).ok().json();
    assert_eq!(rows[1]["component"], "web");
    assert_eq!((rows[1]["address"].as_str(), rows[1]["host_port"].as_u64()), (Some("127.0.0.1"), Some(one.into())));
    assert_eq!(rows[1]["port"], 80);
    // A port once agreed to is not new when it starts again.
    project.ctst(["stop"]).ok();
    assert_eq!(project.ctst(["port"]).ok().stdout, "");
    let plan = project.ctst(["plan", "-a"]).ok().stdout;
    assert!(plan.contains(&format!("0.0.0.0:{two}")) && !plan.contains("(new)"), "{plan}");
    project.ctst(["run", "-d"]).ok();
    project.stop();
}

#[test]
fn top_shows_who_runs_inside() {
    let text = r#"
COMPONENT busy {
  image   = "file://ROOTFS"
  command = ["/bin/sh", "-c", "sleep 1000 & i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; exec ctst-probe hold"]
}
COMPONENT other { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] user = "1000:1000" }
"#;
    for caller in Caller::all().into_iter().chain(Caller::strict()) {
        let project = Project::new(&caller, text);
        project.ctst(["top", "busy"]).fails(125, &["busy"]);
        assert_eq!(project.ctst(["top"]).ok().stdout.lines().count(), 1);
        project.up();
        eventually("it has worked", || project.logs("busy").contains("done"));
        let rows = project.ctst(["top", "--format", "json"]).ok().json();
        let rows: Vec<Value> = rows.as_array().expect("a list").clone();
        assert_eq!(rows.len(), 3, "{rows:#?}");
        for row in &rows {
            let pid = row["pid"].as_u64().expect("a pid");
            let owner = fs::metadata(format!("/proc/{pid}")).expect("it is a process of this host").uid();
            let outside = fs::read_to_string(format!("/proc/{pid}/status")).expect("read its status");
            let uid = outside.lines().find_map(|line| line.strip_prefix("Uid:")).expect("a user");
            let effective = uid.split_whitespace().nth(1).expect("an effective one");
            let single = caller == Caller::single();
            let user = if row["component"] == "other" { 1000 } else { 0 };
            assert_eq!(row["user"], user, "{} {row} {effective} {owner} {single}", caller.name);
        }
        let sleeps = rows.iter().find(|row| row["command"][0] == "sleep").expect("the sleeping one");
        assert_eq!((&sleeps["component"], &sleeps["command"][1]), (&"busy".into(), &"1000".into()));
        let inside = project.ctst(["exec", "busy", "/bin/pidof", "sleep"]).ok().stdout;
        assert_eq!(inside.trim(), sleeps["inside"].to_string());
        let main = rows.iter().find(|row| row["component"] == "busy" && row["inside"] == 2).expect("the main one");
        assert!(main["cpu_ms"].as_u64() > Some(0) && main["memory"].as_u64() > Some(0), "{main}");
        let started = main["started"].as_u64().expect("a time");
        let now = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_millis() as u64;
        assert!(now.abs_diff(started) < 300_000, "{started} {now}");
        let text = project.ctst(["top", "other"]).ok().stdout;
        assert!(text.contains("ctst-probe hold") && !text.contains("sleep"), "{text}");
        project.ctst(["top", "nobody"]).fails(125, &["nobody"]);
        project.stop();
    }
}

#[test]
fn events_are_remembered_while_the_project_runs() {
    let text = hold("web", "") + &hold("db", "");
    let project = Project::new(&Caller::ordinary(), &text);
    project.ctst(["events"]).fails(125, &["S0301"]);
    project.up();
    let done = project.ctst(["events"]).ok();
    for word in ["web starting", "web started", "db started"] {
        assert!(done.stdout.contains(word), "{word}: {done}");
    }
    let following = project.start(["events", "-f", "web", "--since", "0s", "--format", "json"]);
    std::thread::sleep(Duration::from_millis(300));
    let later = project.ctst(["events", "--since", "2000-01-01T00:00:00Z", "db", "--format", "json"]).ok().stdout;
    let rows: Vec<Value> = later.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert!(rows.len() >= 2 && rows.iter().all(|row| row["component"] == "db"), "{later}");
    assert_eq!(rows.last().map(|row| &row["event"]), Some(&"started".into()));
    assert_eq!(project.ctst(["events", "--since", "2100-01-01T00:00:00Z"]).ok().stdout, "");
    project.ctst(["events", "--since", "yesterday"]).fails(125, &["--since"]);
    project.ctst(["events", "nobody"]).fails(125, &["nobody"]);
    project.ctst(["restart", "web"]).ok();
    project.stop();
    let done = following.wait(Duration::from_secs(20)).ok();
    let rows: Vec<Value> = done.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told: Vec<&str> = rows.iter().filter_map(|row| row["event"].as_str()).collect();
    let restart = ["stopping", "stopped", "starting", "started", "stopping", "stopped"];
    assert_eq!(told, restart, "{done}");
    // Nobody remembers any more.
    project.ctst(["events"]).fails(125, &["S0301"]);
}

/// Who takes a project down starts a supervisor where none runs, and another command may have that run something.
#[test]
fn who_takes_down_what_somebody_starts_does_not_wait_for_its_end() {
    let project = Project::new(
        &Caller::ordinary(),
        "COMPONENT a { image = \"file://ROOTFS\" command = [\"sleep\", \"1000\"] }\n",
    );
    for round in 0..12 {
        project.up();
        project.ctst(["stop", "-t", "0"]).ok();
        let down = project.start(["down"]);
        std::thread::sleep(Duration::from_millis(2 * round));
        // Whoever comes first, both come to their end.
        let run = project.start(["run", "-d"]);
        let _ = down.wait(Duration::from_secs(20));
        let _ = run.wait(Duration::from_secs(20));
    }
    project.ctst(["down"]).ok();
    project.assert_nothing_left();
}
