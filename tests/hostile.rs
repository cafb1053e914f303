//! Containers that attack who runs them, and folders that others have prepared.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use containust_tests::{Caller, Project, eventually};
use rustix::process::{Pid, Signal, kill_process};

const SLEEP: &str = r#"COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }"#;

#[test]
fn a_volume_does_not_show_what_is_ours() {
    for caller in Caller::all() {
        let text =
            r#"COMPONENT one { image = "file://ROOTFS" volume = "./:/app" command = ["/bin/ctst-probe", "hold"] }"#;
        let project = Project::new(&caller, text);
        project.write("mine", "mine");
        fs::set_permissions(project.folder(), fs::Permissions::from_mode(0o755)).expect("set a mode");
        project.up();
        assert_eq!(project.ctst(["exec", "one", "cat", "/app/mine"]).ok().stdout, "mine");
        let seen = project.ctst(["exec", "one", "ls", "-A", "/app/.containust"]);
        assert!(seen.stdout.is_empty(), "{seen}");
        let gone = project.ctst(["exec", "one", "mv", "/app/.containust", "/app/other"]);
        assert_ne!(gone.code, 0, "{gone}");
        assert_eq!(project.status("one")["state"], "running");
        project.stop();

        project.write("stack.ctst", &text.replace("./:", "./.containust/containers:"));
        for command in [&["plan"][..], &["run", "-d", "--yes"]] {
            project.ctst(command).fails(125, &["component one", "belongs to ctst itself"]);
        }
        project.assert_nothing_left();
    }
}

#[test]
fn what_cannot_fit_is_refused_while_the_old_one_runs() {
    let project = Project::new(&Caller::ordinary(), SLEEP);
    project.up();
    let long = "x".repeat(40_000);
    let large = SLEEP.replace("command", &format!("env = {{ A = \"{long}\" B = \"{long}\" }} command"));
    project.write("stack.ctst", &large);
    for command in [&["plan"][..], &["run", "-d", "--yes"]] {
        project.ctst(command).fails(125, &["component one", "65536"]);
    }
    assert_eq!(project.status("one")["state"], "running");
    project.stop();
}

#[test]
fn a_stopped_sandbox_goes_away_on_stop() {
    let project = Project::new(&Caller::ordinary(), SLEEP);
    project.up();
    let pid = project.status("one")["pid"].as_i64().expect("a pid");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("read stat");
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
    kill_process(parent.and_then(Pid::from_raw).expect("a parent"), Signal::STOP).expect("stop pid 1 of the project");
    project.ctst(["stop", "-t", "0"]).ok();
    project.assert_nothing_left();
}

#[test]
fn a_lost_state_folder_ends_the_project() {
    let project = Project::new(&Caller::ordinary(), SLEEP);
    let running = project.start(["run", "--yes"]);
    eventually("it runs", || project.ps().iter().any(|row| row["state"] == "running"));
    project.note();
    fs::rename(project.folder().join(".containust"), project.folder().join("moved")).expect("move the state away");
    let done = running.wait(Duration::from_secs(60));
    assert_ne!(done.code, 0, "{done}");
    assert!(done.to_string().contains("removed or replaced"), "{done}");
    project.assert_nothing_left();
}

#[test]
fn stray_files_among_the_containers_are_nobodys() {
    let project = Project::new(&Caller::ordinary(), SLEEP);
    project.up();
    project.stop();
    project.write(".containust/containers/notes", "mine");
    assert_eq!(project.ps().len(), 1);
    project.ctst(["plan"]).ok();
    project.up();
    project.stop();
}

#[test]
fn a_folder_that_somebody_planted_is_passed_by() {
    let project = Project::new(&Caller::ordinary(), SLEEP);
    let runtime = project.folder().join("runtime");
    fs::create_dir(&runtime).expect("make a folder");
    // Of root, where root runs the tests; for everybody to read, where not.
    fs::create_dir(runtime.join("ctst")).expect("make a folder");
    fs::set_permissions(runtime.join("ctst"), fs::Permissions::from_mode(0o755)).expect("set a mode");
    let planted = containust_tests::finish(project.command(["ps"]).env("XDG_RUNTIME_DIR", &runtime));
    assert_eq!(planted.code, 0, "{planted}");
    fs::remove_dir(runtime.join("ctst")).expect("remove a folder");
    symlink("/tmp", runtime.join("ctst")).expect("make a link");
    let linked = containust_tests::finish(project.command(["ps"]).env("XDG_RUNTIME_DIR", &runtime));
    assert_eq!(linked.code, 0, "{linked}");
}

#[test]
fn the_callers_own_shim_cannot_be_changed_from_inside() {
    let Some(caller) = Caller::ranges() else { return };
    let project = Project::new(&caller, SLEEP);
    let programs = containust_tests::programs();
    let own = project.folder().join("bin");
    project.make_folder("bin");
    for name in ["ctst", "ctst-shim"] {
        project.write_bytes(&format!("bin/{name}"), &fs::read(programs.join(name)).expect("read a program"));
        fs::set_permissions(own.join(name), fs::Permissions::from_mode(0o755)).expect("set a mode");
    }
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(own.join("ctst"));
        let like = project.command(args);
        command.args(args).current_dir(project.folder()).env_clear();
        command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if rustix::process::getuid().is_root() {
            std::os::unix::process::CommandExt::uid(&mut command, caller.uid);
            std::os::unix::process::CommandExt::gid(&mut command, caller.gid);
        }
        containust_tests::finish(&mut command)
    };
    run(&["run", "-d", "--wait", "--yes"]).ok();
    project.note();
    let shim = own.join("ctst-shim").metadata().expect("look at the shim");
    let mut copies = 0;
    for ((pid, _), _) in project.processes() {
        let Ok(exe) = fs::metadata(format!("/proc/{pid}/exe")) else { continue };
        assert_ne!((exe.dev(), exe.ino()), (shim.dev(), shim.ino()), "process {pid} runs the file itself");
        let link = fs::read_link(format!("/proc/{pid}/exe")).expect("read a link");
        copies += u32::from(link.to_string_lossy().starts_with("/memfd:ctst-shim"));
    }
    assert!(copies >= 2, "S and C are to run the copy: {copies}");
    run(&["stop"]).ok();
    project.assert_nothing_left();
}

#[test]
fn a_lease_on_hosts_delays_nobody() {
    let text = r#"
COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "lease", "/etc/hosts"] }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.up();
    eventually("it has the lease", || project.logs("one").contains("leased"));
    project.write("stack.ctst", &format!("{text}{}", SLEEP.replace("one", "two")));
    let start = Instant::now();
    project.up();
    // The kernel's own patience is 45 s (/proc/sys/fs/lease-break-time).
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    project.ctst(["stop", "-t", "0"]).ok();
    project.assert_nothing_left();
}
