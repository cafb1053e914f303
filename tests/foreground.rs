//! `run` in the foreground: what it stops, when it ends, and with which code; and several files of one folder.

use std::time::Duration;

use containust_tests::{Caller, Project, Running, eventually};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

fn sh(name: &str, script: &str) -> String {
    format!("COMPONENT {name} {{ image = \"file://ROOTFS\" command = [\"/bin/sh\", \"-c\", \"{script}\"] }}\n")
}

fn hold(name: &str) -> String {
    sh(name, "exec ctst-probe hold")
}

fn interrupt(running: &Running) {
    kill_process(Pid::from_raw(running.pid()).expect("a pid"), Signal::INT).expect("signal ctst");
}

fn runs(project: &Project, name: &str) -> bool {
    project.ps().iter().any(|row| row["component"] == name && row["state"] == "running")
}

#[test]
fn an_interrupt_stops_what_the_file_declares_and_no_more() {
    let project = Project::new(&Caller::ordinary(), &hold("other"));
    project.write("a.ctst", &(hold("one") + &hold("two")));
    let alone = project.start(["-f", "a.ctst", "run"]);
    eventually("both run", || runs(&project, "one") && runs(&project, "two"));
    project.up();
    let pid = project.status("other")["pid"].clone();
    interrupt(&alone);
    let done = alone.wait(PATIENCE).ok();
    assert!(done.stderr.contains("one stopped") && !done.stderr.contains("other stop"), "{done}");
    assert_eq!((&project.status("other")["state"], &project.status("other")["pid"]), (&"running".into(), &pid));
    assert_eq!(project.status("two")["state"], "stopped");

    // The same where it is the other that came second.
    let alone = project.start(["-f", "a.ctst", "run"]);
    eventually("it runs", || runs(&project, "two"));
    interrupt(&alone);
    interrupt(&alone);
    alone.wait(PATIENCE).ok();
    assert_eq!(project.status("other")["pid"], pid);
    // And where all of the file ended by itself.
    project.write("a.ctst", &sh("one", "exit 4"));
    project.ctst(["-f", "a.ctst", "run"]).fails(4, &[]);
    assert_eq!(project.status("other")["pid"], pid);
    project.stop();
}

#[test]
fn the_first_failure_ends_all() {
    let text = hold("stays")
        + &sh("good", "exit 0")
        + &sh("bad", "sleep 0.3; exit 7")
        + &sh("worse", "sleep 0.3; exec ctst-probe hold");
    for caller in Caller::all() {
        let project = Project::new(&caller, &text);
        let done = project.ctst(["run", "--abort-on-failure"]).fails(7, &["bad ended with 7", "stays stopped"]);
        assert!(!done.stderr.contains("good stopped"), "{done}");
        project.assert_nothing_left();
    }
    let again = text.replace("sleep 0.3; exit 7\"]", "exit 7\"] restart = \"on-failure\"");
    let project = Project::new(&Caller::ordinary(), &again);
    let running = project.start(["run", "--abort-on-failure"]);
    eventually("it was started again", || {
        project.ps().iter().any(|row| row["component"] == "bad" && row["restarts"].as_u64() > Some(1))
    });
    interrupt(&running);
    assert_eq!(running.wait(PATIENCE).code, 7);
    // What cannot be started is a failure, too.
    project.write("stack.ctst", &(hold("stays") + &hold("bad").replace("/bin/sh", "/bin/nothing")));
    project.ctst(["run", "--abort-on-failure"]).fails(127, &["stays stopped"]);
    project.assert_nothing_left();
    for words in [&["run", "-d", "--abort-on-failure"][..], &["run", "--wait", "--exit-code-from", "bad"]] {
        project.ctst(words).fails(125, &["cannot be used with"]);
    }
}

#[test]
fn the_exit_code_is_that_of_the_component_that_is_named() {
    let text = hold("stays") + &sh("early", "exit 3") + &sh("test", "sleep 0.3; exit 5");
    let project = Project::new(&Caller::ordinary(), &text);
    let done = project.ctst(["run", "--exit-code-from", "test"]).fails(5, &["stays stopped", "early ended with 3"]);
    assert!(done.stderr.contains("test ended with 5"), "{done}");
    project.assert_nothing_left();
    project.write("stack.ctst", &text.replace("exit 5", "exit 0"));
    project.ctst(["run", "--exit-code-from", "test"]).ok();
    project.assert_nothing_left();
    // Of both the first counts.
    project.ctst(["run", "--abort-on-failure", "--exit-code-from", "test"]).fails(3, &[]);
    project.ctst(["run", "--exit-code-from", "nobody"]).fails(125, &["nobody", "early, stays, test"]);
    // A job that is done is not run again, and has ended.
    project.write("stack.ctst", &(hold("stays") + &sh("test", "exit 0").replace("COMPONENT", "JOB")));
    project.ctst(["run", "--exit-code-from", "test"]).ok();
    let done = project.ctst(["run", "--exit-code-from", "test"]).ok();
    assert!(done.stderr.contains("stays stopped"), "{done}");
    // Interrupted, it says how that one ended.
    project.write(
        "stack.ctst",
        &(hold("stays") + &sh("test", "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")),
    );
    let running = project.start(["run", "--exit-code-from", "test"]);
    eventually("it is up", || runs(&project, "test") && project.logs("test").contains("up"));
    interrupt(&running);
    assert_eq!(running.wait(PATIENCE).code, 9);
    project.assert_nothing_left();
}

#[test]
fn lines_have_names_and_times_as_wanted() {
    let text = sh("one", "echo from one") + &sh("second", "echo from two");
    let project = Project::new(&Caller::ordinary(), &text);
    let lines = |words: &[&str]| {
        let mut lines: Vec<String> = project.ctst(words).ok().stdout.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&["run"]), ["one    | from one", "second | from two"]);
    assert_eq!(lines(&["logs", "-n", "1"]), ["one    | from one", "second | from two"]);
    assert_eq!(lines(&["run", "--no-log-prefix"]), ["from one", "from two"]);
    assert_eq!(lines(&["logs", "-n", "1", "--no-log-prefix"]), ["from one", "from two"]);
    for line in lines(&["run", "--no-log-prefix", "--timestamps"]) {
        let (time, words) = line.split_once(' ').expect("a time");
        assert!(time.ends_with('Z') && time.starts_with("20") && words.starts_with("from"), "{line}");
    }
    assert!(lines(&["run", "--timestamps"])[0].starts_with("one    | 20"));
    project.ctst(["run", "-d", "--timestamps"]).fails(125, &["cannot be used with"]);
    project.assert_nothing_left();
}

#[test]
fn a_component_of_two_files_is_of_both() {
    let project = Project::new(&Caller::ordinary(), "");
    project.write("a.ctst", &(hold("a") + &hold("g")));
    project.write("b.ctst", &(hold("b") + &hold("g")));
    let (a, b) = (|word| project.ctst(["-f", "a.ctst", word]).ok(), |word| project.ctst(["-f", "b.ctst", word]).ok());
    a("up");
    let pid = project.status("g")["pid"].clone();
    b("up");
    assert_eq!(project.status("g")["pid"], pid, "it is the same in both files");
    // Whose run was last does not count.
    a("stop");
    for (name, state) in [("a", "stopped"), ("g", "stopped"), ("b", "running")] {
        assert_eq!(project.status(name)["state"], state, "{name}");
    }
    a("up");
    b("stop");
    assert_eq!(project.status("g")["state"], "stopped");
    // Also from one supervisor to the next.
    a("stop");
    project.assert_nothing_left();
    b("up");
    a("stop");
    assert_eq!(project.status("g")["state"], "stopped");

    // Who no longer declares it leaves it to the other.
    a("up");
    b("up");
    let pid = project.status("g")["pid"].clone();
    project.write("a.ctst", &hold("a"));
    let plan = project.ctst(["-f", "a.ctst", "plan"]).ok().stdout;
    assert!(plan.contains("g is left alone: it belongs to b.ctst"), "{plan}");
    a("up");
    a("stop");
    assert_eq!((&project.status("g")["state"], &project.status("g")["pid"]), (&"running".into(), &pid));
    project.write("b.ctst", &hold("b"));
    let done = b("up");
    assert_eq!(done.stderr.matches("g removed").count(), 1, "{done}");
    // What nobody declares any more and does not run is told of once as well.
    project.write("b.ctst", &(hold("b") + &hold("g")));
    b("up");
    project.ctst(["-f", "b.ctst", "stop", "g"]).ok();
    project.write("b.ctst", &hold("b"));
    let done = b("up");
    assert_eq!(done.stderr.matches("g removed").count(), 1, "{done}");
    b("down");
    a("down");
    project.assert_nothing_left();
    assert!(project.ps().is_empty());
}
