//! `ctst exec`: exit codes, streams, options, terminals; and that it gives nothing that the container has not. And what
//! terminals and streams of the caller that fail do to other commands.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containust_tests::{Caller, Project};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

const ONE: &str = r#"
COMPONENT one {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  env = { COLOUR = "green" }
  workdir = "/srv"
}"#;

#[test]
fn exit_codes() {
    for caller in Caller::all() {
        let project = Project::new(&caller, ONE);
        project.up();
        let exec = |command: &[&str]| project.ctst([&["exec", "one"], command].concat());
        exec(&["true"]).ok();
        exec(&["sh", "-c", "exit 7"]).fails(7, &[]);
        exec(&["sh", "-c", "kill -9 $$"]).fails(137, &[]);
        exec(&["no-such-program"]).fails(127, &["no-such-program"]);
        exec(&["/no/such/program"]).fails(127, &["/no/such/program"]);
        exec(&["/bin/not-executable"]).fails(126, &["/bin/not-executable"]);
        exec(&["/srv"]).fails(126, &["/srv"]);
        project.ctst(["exec", "two", "true"]).fails(125, &["two", "one"]);
        project.stop();
        exec(&["true"]).fails(125, &["not running", "ctst run -d one"]);
        project.ctst(["-f", "./stack.ctst", "exec", "one", "true"]).fails(125, &["ctst -f ./stack.ctst run -d one"]);
    }
}

#[test]
fn streams_are_apart_and_input_goes_in() {
    let project = Project::new(&Caller::ordinary(), ONE);
    project.up();
    let done = project.ctst(["exec", "one", "sh", "-c", "echo out; echo err >&2"]).ok();
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\n", "err\n"));

    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut sum = project.start(["exec", "-i", "one", "md5sum"]);
    let mut input = sum.child().stdin.take().expect("a pipe");
    input.write_all(&bytes).expect("write to exec");
    drop(input);
    let inside = sum.wait(Duration::from_secs(60)).ok().stdout;
    let mut outside = Command::new("/bin/busybox")
        .arg("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run md5sum");
    outside.stdin.take().expect("a pipe").write_all(&bytes).expect("write to md5sum");
    let outside = outside.wait_with_output().expect("wait for md5sum");
    assert_eq!(inside.trim(), String::from_utf8_lossy(&outside.stdout).trim());

    // Without -i nothing of the caller's input is taken.
    let done = project.ctst(["exec", "one", "cat"]).ok();
    assert_eq!(done.stdout, "");
    project.stop();
}

#[test]
fn environment_user_and_folder() {
    let Some(caller) = Caller::ranges() else { return };
    let project = Project::new(&caller, ONE);
    project.up();
    let say = |options: &[&str], script: &str| {
        let args = [&["exec"], options, &["one", "sh", "-c", script]].concat();
        project.ctst(args).ok().stdout.trim().to_owned()
    };
    assert_eq!(say(&[], "echo $COLOUR; pwd; id -u"), "green\n/srv\n0");
    assert_eq!(say(&["-e", "COLOUR=red", "-e", "NEW=1"], "echo $COLOUR $NEW"), "red 1");
    assert_eq!(say(&["-w", "/tmp"], "pwd"), "/tmp");
    assert_eq!(say(&["-u", "somebody"], "id -u; id -g; id -G; echo $HOME"), "1000\n1000\n1000 1001\n/srv");
    assert_eq!(say(&["-u", "12:34"], "id -u; id -g"), "12\n34");
    project.ctst(["exec", "-u", "stranger", "one", "true"]).fails(125, &["stranger"]);
    project.stop();
}

#[test]
fn has_nothing_that_the_first_process_lacks() {
    let text =
        ONE.replace(r#""/bin/ctst-probe", "hold""#, r#""/bin/sh", "-c", "ctst-probe report; exec ctst-probe hold""#);
    for caller in Caller::all() {
        let project = Project::new(&caller, &text);
        project.up();
        containust_tests::eventually("the report is in the log", || project.logs("one").contains("attempts"));
        let log = project.logs("one");
        let json = &log[log.find('{').expect("JSON")..=log.rfind('}').expect("JSON")];
        let main: containust_tests::probe::Report =
            serde_json::from_str(json).expect("the report of the first process");
        let exec = project.report(&[], "one");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(exec.capabilities(set) & !main.capabilities(set), 0, "{set} as {}", caller.name);
        }
        for field in ["Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters"] {
            assert_eq!(exec.status[field], main.status[field], "{field} as {}", caller.name);
        }
        assert_eq!(exec.namespaces, main.namespaces);
        assert_eq!(exec.limits, main.limits);
        assert_eq!(exec.uid_map, main.uid_map);
        assert_eq!(exec.attempts, main.attempts);
        assert_eq!(exec.descriptors.keys().collect::<Vec<_>>(), [&0, &1, &2], "{:?}", exec.descriptors);
        project.stop();
    }
}

/// A terminal of 80 by 24: its master, and `ctst` on its other side as the leader of a session of its own.
fn on_a_terminal(project: &Project, args: &[&str]) -> (OwnedFd, std::process::Child) {
    let master =
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("open a terminal");
    rustix::pty::unlockpt(&master).expect("unlock the terminal");
    let name = rustix::pty::ptsname(&master, Vec::new()).expect("name of the terminal");
    let slave =
        || File::options().read(true).write(true).open(name.to_str().expect("a path")).expect("open the other side");
    std::os::unix::fs::chown(name.to_str().expect("a path"), Some(project.caller.uid), None).ok();
    resize(&master, 24, 80);
    let plain = project.command(args);
    let mut command = Command::new("/usr/bin/setsid");
    command.args(["--ctty", "--wait"]).arg(plain.get_program()).args(plain.get_args());
    project.caller.login(&mut command);
    command
        .envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .current_dir(project.folder())
        .env("TERM", "xterm");
    let child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().expect("run setsid");
    (master, child)
}

fn resize(terminal: impl AsFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).expect("set the size");
}

/// Reads until `word` was shown.
fn read_until(master: &mut File, shown: &mut String, word: &str) {
    let start = Instant::now();
    let mut buffer = [0; 4096];
    while !shown.contains(word) {
        assert!(start.elapsed() < Duration::from_secs(60), "no {word:?} in {shown:?}");
        match master.read(&mut buffer) {
            Ok(0) => panic!("the terminal closed before {word:?}: {shown:?}"),
            Ok(count) => shown.push_str(&String::from_utf8_lossy(&buffer[..count])),
            // The other side was closed.
            Err(error) => panic!("{error} before {word:?}: {shown:?}"),
        }
    }
}

#[test]
fn a_real_terminal_with_size_resize_and_interrupt() {
    for caller in Caller::all() {
        let project = Project::new(&caller, ONE);
        project.up();
        let (master, mut child) = on_a_terminal(&project, &["exec", "-it", "one", "sh"]);
        let mut master = File::from(master);
        let mut shown = String::new();
        master.write_all(b"tty; stty size; echo one-$((1+1))\n").expect("type");
        read_until(&mut master, &mut shown, "one-2");
        assert!(shown.contains("/dev/pts/") && shown.contains("24 80"), "{shown:?}");
        resize(&master, 30, 100);
        // The size arrives by a signal.
        std::thread::sleep(Duration::from_millis(500));
        master.write_all(b"stty size; echo two-$((1+2))\n").expect("type");
        read_until(&mut master, &mut shown, "two-3");
        assert!(shown.contains("30 100"), "{shown:?}");
        master.write_all(b"sleep 1000\n").expect("type");
        std::thread::sleep(Duration::from_millis(500));
        master.write_all(b"\x03echo three-$((1+3))\n").expect("type");
        read_until(&mut master, &mut shown, "three-4");
        master.write_all(b"exit 9\n").expect("type");
        assert_eq!(child.wait().expect("wait for exec").code(), Some(9));
        project.stop();
    }
}

#[test]
fn a_terminal_that_goes_away_stops_what_ran_in_its_foreground() {
    let project = Project::new(&Caller::ordinary(), ONE);
    let (master, mut child) = on_a_terminal(&project, &["run", "--yes"]);
    containust_tests::eventually("one runs", || project.ps().iter().any(|row| row["state"] == "running"));
    project.note();
    drop(master);
    child.wait().expect("wait for run");
    project.assert_nothing_left();
}

#[test]
fn a_signal_that_the_caller_ignores_is_ignored() {
    let project = Project::new(&Caller::ordinary(), ONE);
    let plain = project.command(["run", "--yes"]);
    let mut command = Command::new("/usr/bin/nohup");
    command.arg(plain.get_program()).args(plain.get_args());
    project.caller.login(&mut command);
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(project.folder());
    let mut run = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run nohup");
    let pid = rustix::process::Pid::from_raw(i32::try_from(run.id()).expect("a pid")).expect("a pid");
    containust_tests::eventually("one runs", || project.ps().iter().any(|row| row["state"] == "running"));
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("signal ctst");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(project.status("one")["state"], "running");
    assert!(run.try_wait().expect("look at run").is_none());
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal ctst");
    run.wait().expect("wait for run");
    project.assert_nothing_left();
}

#[test]
fn standard_error_that_takes_nothing_keeps_nobody_from_anything() {
    let project = Project::new(&Caller::ordinary(), ONE);
    let deaf = |args: &[&str]| {
        let full = || File::options().write(true).open("/dev/full").expect("open /dev/full");
        project.command(args).stderr(full()).output().expect("run ctst").status.code()
    };
    assert_eq!(deaf(&["run", "-d", "--wait", "--yes"]), Some(0));
    project.note();
    assert_eq!(deaf(&["exec", "one", "no-such-program"]), Some(127));
    assert_eq!(deaf(&["stop"]), Some(0));
    project.assert_nothing_left();
}

#[test]
fn output_that_cannot_be_written_is_an_error_and_nobody_waits_for_what_is_left_behind() {
    let project = Project::new(&Caller::ordinary(), ONE);
    project.up();
    let full = File::options().write(true).open("/dev/full").expect("open /dev/full");
    let done = project.command(["exec", "one", "echo", "hi"]).stdout(full).output().expect("run ctst");
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code() == Some(125) && told.contains("write to standard output: No space"), "{done:?}");

    let null = || File::options().write(true).open("/dev/null").expect("open /dev/null");
    let script = "yes & sleep 0.2; exit 3";
    let mut flooded =
        project.command(["exec", "one", "sh", "-c", script]).stdout(null()).stderr(null()).spawn().expect("run ctst");
    assert_eq!(flooded.wait().expect("wait for exec").code(), Some(3));

    // The caller's pipe is full, and nobody reads it. The first signal ends the process, the next one the wait for it.
    let mut stuck = project.start(["exec", "one", "yes"]);
    std::thread::sleep(Duration::from_secs(1));
    let pid = rustix::process::Pid::from_raw(stuck.pid()).expect("a pid");
    let start = Instant::now();
    while stuck.child().try_wait().expect("look at exec").is_none() {
        assert!(start.elapsed() < Duration::from_secs(10), "exec sees no signal while its output is stuck");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal ctst");
        std::thread::sleep(Duration::from_millis(100));
    }
    project.stop();
}

#[test]
fn an_exec_that_loses_its_caller_ends_with_the_container() {
    let project = Project::new(&Caller::ordinary(), ONE);
    project.up();
    let exec = project.start(["exec", "one", "sleep", "1000"]);
    containust_tests::eventually("sleep runs", || project.ctst(["exec", "one", "pidof", "sleep"]).code == 0);
    drop(exec);
    project.ctst(["exec", "one", "true"]).ok();
    project.stop();
}

#[test]
fn many_at_once() {
    let project = Project::new(&Caller::ordinary(), ONE);
    project.up();
    let running: Vec<_> = (0..20)
        .map(|n| {
            project.start(["exec".to_owned(), "one".into(), "sh".into(), "-c".into(), format!("sleep 0.2; exit {n}")])
        })
        .collect();
    for (n, exec) in running.into_iter().enumerate() {
        assert_eq!(exec.wait(Duration::from_secs(60)).code, i32::try_from(n).expect("small"));
    }
    // A zombie would be found, too: pid 1 reaps what exec started.
    project.ctst(["exec", "one", "pidof", "sh", "sleep"]).fails(1, &[]);
    project.stop();
}
