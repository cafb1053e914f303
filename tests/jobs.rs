//! Work that is done once, and what waits for it; what a component can do without.

use std::fs;

use containust_tests::{Caller, Project, eventually};

const WORK: &str = r#"
JOB migrate {
  image   = "file://ROOTFS"
  command = ["/bin/sh", "-c", "echo run >> /state/runs; sleep 0.3; echo done > /state/done"]
  volume  = "./state:/state"
}
COMPONENT app {
  image   = "file://ROOTFS"
  command = ["/bin/sh", "-c", "cat /state/done && exec ctst-probe hold"]
  volume  = "./state:/state"
}
CONNECT app -> migrate
"#;

fn runs(project: &Project) -> usize {
    fs::read_to_string(project.folder().join("state/runs")).expect("read").lines().count()
}

#[test]
fn a_job_runs_once_and_its_dependents_after_it() {
    for caller in Caller::all() {
        // Files of root's containers belong to nobody here.
        if caller.uid == 0 {
            continue;
        }
        let project = Project::new(&caller, WORK);
        project.make_folder("state");
        project.up();
        assert_eq!(project.status("migrate")["state"], "completed");
        assert_eq!(project.status("app")["state"], "running");
        assert_eq!(runs(&project), 1);
        let text = project.ctst(["plan", "--detailed-exitcode"]).ok().stdout;
        assert!(!text.contains("start"), "{text}");
        project.up();
        project.stop();
        // By a supervisor of its own, too, which has it from the record only.
        project.up();
        assert_eq!((runs(&project), project.status("app")["state"].as_str()), (1, Some("running")));
        project.write("stack.ctst", &WORK.replace("sleep 0.3", "sleep 0.2"));
        project.ctst(["plan", "--detailed-exitcode"]).fails(2, &[]);
        project.up();
        assert_eq!(runs(&project), 2);
        // What the error advises runs it once more.
        project.ctst(["restart", "migrate"]).fails(125, &["ctst rm migrate && ctst run -d migrate"]);
        project.ctst(["rm", "migrate"]).ok();
        project.ctst(["run", "-d", "--wait", "--yes", "migrate"]).ok();
        assert_eq!(runs(&project), 3);
        project.stop();
        assert_eq!(project.status("migrate")["state"], "completed");
    }
}

#[test]
fn a_run_of_jobs_alone_ends_with_them() {
    let text = r#"JOB one { image = "file://ROOTFS" command = ["/bin/sh", "-c", "echo spoken"] }"#;
    let project = Project::new(&Caller::ordinary(), text);
    assert!(project.ctst(["run"]).ok().stdout.contains("spoken"));
    project.assert_nothing_left();
    assert_eq!(project.ctst(["run"]).ok().stdout, "", "it is not run again");
    project.ctst(["run", "--wait"]).ok();
    project.ctst(["rm", "one"]).ok();
    assert!(project.ctst(["run"]).ok().stdout.contains("spoken"));
}

#[test]
fn a_job_that_fails_fails_what_waits_for_it() {
    let text = WORK.replace("sleep 0.3", "exit 7");
    let project = Project::new(&Caller::ordinary(), &text);
    project.make_folder("state");
    let done = project
        .ctst(["run", "-d", "--wait", "--yes"])
        .fails(125, &["wait for migrate to complete: it exited with 7", "ctst logs migrate"]);
    assert!(done.stderr.contains("S0503"), "{done}");
    assert_eq!(project.status("migrate")["state"], "exited");
    assert_eq!(project.status("app")["state"], "failed");
    // What failed is tried again.
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["exited with 7"]);
    assert_eq!(runs(&project), 2);
    assert_eq!(project.ctst(["run", "--yes"]).code, 7);
}

#[test]
fn a_job_is_tried_again_until_it_succeeds() {
    let text = WORK
        .replace("sleep 0.3", "[ $(wc -l < /state/runs) -ge 3 ] || exit 1")
        .replace("JOB migrate {", "JOB migrate {\n  restart = \"on-failure\"");
    let project = Project::new(&Caller::ordinary(), &text);
    project.make_folder("state");
    project.up();
    assert_eq!((runs(&project), project.status("migrate")["state"].as_str()), (3, Some("completed")));
    assert_eq!(project.status("app")["state"], "running");
    project.stop();
}

#[test]
fn a_job_that_takes_too_long_is_not_waited_for() {
    let text = WORK.replace("sleep 0.3", "sleep 1000").replace("-> migrate", "-> migrate TIMEOUT 300ms");
    let project = Project::new(&Caller::ordinary(), &text);
    project.make_folder("state");
    project.ctst(["run", "-d", "--yes"]).fails(125, &["wait for migrate: not completed within 300ms"]);
    project.stop();
}

#[test]
fn what_is_optional_does_not_hold_anything_up() {
    let text = r#"
COMPONENT tracing { image = "file://ROOTFS" command = ["/bin/nothing"] }
COMPONENT other { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] profiles = ["debug"] }
COMPONENT app { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
CONNECT app -> tracing OPTIONAL
CONNECT app -> other OPTIONAL
"#;
    let project = Project::new(&Caller::ordinary(), text);
    let done = project.ctst(["run", "-d", "--yes"]).fails(127, &["starts without tracing: ", "find the command"]);
    assert_eq!(done.stderr.matches("starts without").count(), 1, "{done}");
    eventually("app runs", || project.status("app")["state"] == "running");
    assert_eq!(project.status("tracing")["state"], "failed");
    project.stop();
}
