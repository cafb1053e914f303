//! Health checks of every kind, and who waits for them.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Command;

use containust_tests::{Caller, Project, eventually, finish, programs};

/// A component that is unwell until there is a file `/tmp/well`, with this health check.
fn patient(check: &str) -> String {
    format!(
        r#"
COMPONENT patient {{
  image = "file://ROOTFS"
  command = ["/bin/sh", "-c", "while [ ! -e /tmp/well ]; do sleep 0.05; done; exec ctst-probe serve 8000"]
  port = 8000
  healthcheck {{ {check} interval = 100ms retries = 2 start_period = 60s }}
}}
COMPONENT visitor {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }}
CONNECT visitor -> patient
"#
    )
}

#[test]
fn who_depends_waits_until_the_check_succeeds() {
    for check in [
        r#"command = ["test", "-e", "/tmp/well"]"#,
        r#"command = "test -e /tmp/well""#,
        r#"http = "/""#,
        r#"tcp = 8000"#,
    ] {
        let project = Project::new(&Caller::ordinary(), &patient(check));
        let run = project.start(["run", "-d", "--wait", "--yes"]);
        eventually("patient runs", || {
            project.ps().iter().any(|row| row["component"] == "patient" && row["state"] == "running")
        });
        let visitor = || project.status("visitor")["state"].clone();
        assert_eq!(project.status("patient")["health"], "starting", "{check}");
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(visitor(), "waiting", "{check}");
        project.ctst(["exec", "patient", "touch", "/tmp/well"]).ok();
        run.wait(std::time::Duration::from_secs(60)).ok();
        assert_eq!(visitor(), "running", "{check}");
        assert_eq!(project.status("patient")["health"], "healthy", "{check}");
        project.stop();
    }
}

#[test]
fn an_unhealthy_one_is_told_with_its_last_output() {
    let text = r#"
COMPONENT ill {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  healthcheck { command = "echo a most peculiar pain; exit 1" interval = 100ms retries = 2 }
}"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["ill", "a most peculiar pain"]);
    assert_eq!(project.status("ill")["health"], "unhealthy");
    project.stop();
}

#[test]
fn an_http_status_of_500_is_not_healthy() {
    let text = r#"
COMPONENT ill {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "serve", "80"]
  port = 80
  healthcheck { http = "/fail" interval = 100ms retries = 2 }
}"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["ill", "500"]);
    project.stop();
}

#[test]
fn waiting_has_an_end() {
    let text = patient(r#"command = ["false"]"#)
        .replace("start_period = 60s", "start_period = 3s")
        .replace("CONNECT visitor -> patient", "CONNECT visitor -> patient TIMEOUT 1s");
    let project = Project::new(&Caller::ordinary(), &text);
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["visitor", "patient"]);
    assert_eq!(project.status("visitor")["state"], "failed");
    project.stop();
}

#[test]
fn a_check_that_hangs_counts_as_failed() {
    let text = r#"
COMPONENT ill {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  healthcheck { command = ["sleep", "1000"] interval = 100ms timeout = 200ms retries = 2 }
}"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["ill"]);
    // Its processes do not pile up.
    eventually("at most one check runs", || {
        project.ctst(["exec", "ill", "pidof", "sleep"]).stdout.split_whitespace().count() <= 1
    });
    project.stop();
}

#[test]
fn one_that_only_ever_ends_is_not_waited_for() {
    let text = r#"
COMPONENT ill {
  image = "file://ROOTFS"
  command = ["sh", "-c", "exit 3"]
  restart = "always"
  healthcheck { command = ["false"] }
}
COMPONENT visitor { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
CONNECT visitor -> ill
"#;
    let project = Project::new(&Caller::ordinary(), text);
    let told =
        ["wait for ill", "ended 8 times in a row, the last time with 3", "ctst logs ill", "visitor: wait for ill"];
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &told);
    // It may come up still.
    assert_ne!(project.status("ill")["state"], "exited");
    project.stop();
}

#[test]
fn one_that_is_ill_later_becomes_unhealthy_and_recovers() {
    let project = Project::new(
        &Caller::ordinary(),
        &patient(r#"command = ["test", "-e", "/tmp/well"]"#).replace("start_period = 60s", "start_period = 1s"),
    );
    let run = project.start(["run", "-d", "--wait", "--yes"]);
    eventually("patient runs", || project.ctst(["exec", "patient", "touch", "/tmp/well"]).code == 0);
    run.wait(std::time::Duration::from_secs(60)).ok();
    project.ctst(["exec", "patient", "rm", "/tmp/well"]).ok();
    eventually("it is unhealthy", || project.status("patient")["health"] == "unhealthy");
    project.ctst(["exec", "patient", "touch", "/tmp/well"]).ok();
    eventually("it is healthy", || project.status("patient")["health"] == "healthy");
    project.stop();
}

/// An archive as `docker save` writes it, of the tests' root file system with this configuration.
fn saved(project: &Project, name: &str, config: &str) {
    let work = tempfile::tempdir().expect("make a folder");
    let tar = |from: &Path, to: &Path, what: &[&str]| {
        finish(Command::new("tar").arg("-C").arg(from).arg("-cf").arg(to).args(what)).ok();
    };
    tar(&programs().with_file_name("rootfs"), &work.path().join("layer.tar"), &["."]);
    let sum = finish(Command::new("sha256sum").arg(work.path().join("layer.tar"))).ok().stdout;
    let layer = sum.split(' ').next().unwrap_or_default();
    let rootfs = format!(r#"{{"type":"layers","diff_ids":["sha256:{layer}"]}}"#);
    let config = format!(r#"{{"architecture":"amd64","os":"linux","config":{config},"rootfs":{rootfs}}}"#);
    fs::write(work.path().join("config.json"), config).expect("write");
    let manifest = r#"[{"Config":"config.json","RepoTags":["saved:1"],"Layers":["layer.tar"]}]"#;
    fs::write(work.path().join("manifest.json"), manifest).expect("write");
    let archive = work.path().join("saved.tar");
    tar(work.path(), &archive, &["manifest.json", "config.json", "layer.tar"]);
    project.write_bytes(name, &fs::read(&archive).expect("read"));
}

#[test]
fn a_check_that_the_image_brings_is_waited_for() {
    let text = r#"
COMPONENT patient { image = "tar://./saved.tar" }
COMPONENT visitor { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
CONNECT visitor -> patient
"#;
    let project = Project::new(&Caller::ordinary(), text);
    let config = r#"{"Cmd":["/bin/ctst-probe","hold"],"Healthcheck":{"Test":["CMD","test","-e","/tmp/well"],"Interval":100000000,"StartPeriod":60000000000}}"#;
    saved(&project, "saved.tar", config);
    let run = project.start(["run", "-d", "--wait", "--yes"]);
    eventually("patient runs", || {
        project.ps().iter().any(|row| row["component"] == "patient" && row["state"] == "running")
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(project.status("visitor")["state"], "waiting");
    project.ctst(["exec", "patient", "touch", "/tmp/well"]).ok();
    run.wait(std::time::Duration::from_secs(60)).ok();
    assert_eq!(project.status("visitor")["state"], "running");
    project.stop();

    // Nobody waits for a check that is switched off.
    project.write("stack.ctst", &text.replace("saved.tar\"", "saved.tar\" healthcheck = \"none\""));
    project.ctst(["run", "-d", "--wait", "--yes"]).ok();
    assert_eq!(project.status("visitor")["state"], "running");
    project.stop();
}

#[test]
fn a_wait_says_what_it_waits_for() {
    let text = r#"
COMPONENT db {
  image   = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  healthcheck { command = ["/bin/sh", "-c", "echo not yet; exit 4"] interval = 1h }
}
COMPONENT app { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
CONNECT app -> db
JOB slow { image = "file://ROOTFS" command = ["/bin/sleep", "1000"] }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    let done = project.ctst(["up", "--wait-timeout", "5"]).fails(
        125,
        &[
            "after 3 s: waits for db to be healthy; its last probe: exited with 4: not yet",
            "after 3 s: waits for slow to complete",
            "it is not after 5 s",
            "it waited for db to be healthy; its last probe: exited with 4: not yet",
            "it waited for slow to complete",
        ],
    );
    assert!(!done.stderr.contains("waits for app"), "{done}");
    // Without waiting for health there is nothing to wait for but who waits for it.
    let waiting = project.start(["wait", "slow"]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let done = project.ctst(["stop", "-t", "7"]).fails(0, &["db stopping, to be killed in 7s"]);
    assert!(!done.stderr.contains("app stopping, to be killed in 10s"), "{done}");
    let done = waiting.wait(std::time::Duration::from_secs(20));
    assert!(done.stderr.contains("waits for slow to end"), "{done}");
    project.assert_nothing_left();
}

#[test]
fn one_without_a_check_that_soon_ends_was_not_up() {
    for caller in Caller::all() {
        let text = r#"
COMPONENT steady { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
COMPONENT brief { image = "file://ROOTFS" command = ["/bin/sh", "-c", "sleep 0.03; echo no such file; exit 3"] }
"#;
        let project = Project::new(&caller, text);
        project.ctst(["up"]).fails(125, &["S0504", "wait for brief: it exited with 3", "ctst logs brief"]);
        project.write("stack.ctst", &text.replace("exit 3", "exit 0"));
        project.ctst(["up", "--yes"]).ok();
        project.stop();
    }
}
