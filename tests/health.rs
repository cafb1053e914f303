//! Health checks of every kind, and who waits for them.
#![forbid(unsafe_code)]

use containust_tests::{Caller, Project, eventually};

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
