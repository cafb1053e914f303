//! `kill -9` of any process at any moment: the next command works, `ps` is true, nothing is left.
//!
//! `CTST_TEST_SEED` repeats a run, `CTST_TEST_KILLS` changes the number of kills (200).
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containust_tests::{Caller, Project, eventually};
use rustix::process::{Pid, Signal, kill_process};

const TWO: &str = r#"
COMPONENT db {
  image = "file://ROOTFS"
  command = ["/bin/ctst-probe", "serve", "5432"]
  port = 5432
  healthcheck { tcp = 5432 interval = 50ms start_period = 60s }
}
COMPONENT app { image = "file://ROOTFS" command = ["/bin/sh", "-c", "sleep 1000; true"] }
CONNECT app -> db
"#;

/// xorshift64*: what matters is that a seed repeats it.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}

fn kill(pid: i32) {
    // It may have ended by itself since it was chosen.
    let _ = kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL);
}

/// One victim: while the project starts, runs or stops, at a random moment, one of its processes.
fn kill_one(project: &Project, random: &mut Random) -> String {
    let phase = random.below(3);
    let args: &[&str] = match phase {
        0 => &["run", "-d", "--wait", "--yes"],
        1 => &["exec", "app", "sleep", "0.3"],
        _ => &["stop"],
    };
    if phase > 0 {
        project.up();
    } else if random.below(3) > 0 {
        // Else there is nothing to start.
        project.ctst(["stop"]).ok();
    }
    let running = project.start(args);
    std::thread::sleep(Duration::from_millis(random.below(120)));
    let mut all: Vec<_> = project.processes().into_iter().collect();
    all.push(((running.pid(), 0), "ctst itself".into()));
    let index = usize::try_from(random.below(all.len() as u64)).expect("small");
    let ((pid, _), name) = &all[index];
    project.note();
    kill(*pid);
    // On a busy host the kernel takes its time, in which whoever looks still finds it alive.
    eventually(&format!("{name} ({pid}) has ended"), || !Path::new(&format!("/proc/{pid}/exe")).exists());
    // Whatever it says now, it ends.
    let done = running.wait(Duration::from_secs(60));
    assert!(!done.stderr.contains("panicked"), "{done}");
    format!("{name} ({pid}) during {}", args[0])
}

/// What `ps` says runs, runs, and nothing else does.
fn assert_ps_is_true(project: &Project, told: &str) {
    let rows = project.ps();
    let processes = project.processes();
    for row in &rows {
        let running = row["state"] == "running";
        let Some(pid) = row["pid"].as_i64() else {
            assert!(!running, "{told}: running without a pid: {row}");
            continue;
        };
        let there = processes.keys().any(|(other, _)| i64::from(*other) == pid);
        assert!(!running || there, "{told}: {row} is not there: {processes:?}");
    }
    // What the killed one had begun may go on for a while, or be about to end: in the end it is told or gone.
    if rows.iter().all(|row| row["state"] != "running") {
        let caller = &project.caller.name;
        eventually(&format!("{told}: nothing is left, or ps says that something runs, for {caller}"), || {
            project.left().is_empty() || project.ps().iter().any(|row| row["state"] == "running")
        });
    }
}

fn crash(caller: &Caller, kills: u64, seed: u64) {
    let project = Project::new(caller, TWO);
    let mut random = Random(seed | 1);
    for round in 0..kills {
        let told = format!("seed {seed}, round {round}: killed {}", kill_one(&project, &mut random));
        // An asynchronous end: the kernel takes a moment to end what hung on the process.
        std::thread::sleep(Duration::from_millis(50));
        assert_ps_is_true(&project, &told);
        let up = project.ctst(["run", "-d", "--wait", "--yes"]);
        assert_eq!(up.code, 0, "{told}: {up}");
        let rows = project.ps();
        assert!(rows.iter().all(|row| row["state"] == "running"), "{told}: {rows:?}");
        if round % 5 == 4 {
            let stop = project.ctst(["stop"]);
            assert_eq!(stop.code, 0, "{told}: {stop}");
            let left = project.left();
            assert!(left.is_empty(), "{told}: left behind {left:?}");
        }
    }
    project.stop();
}

#[test]
fn any_process_at_any_moment() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    let seed = setting("CTST_TEST_SEED", now);
    let kills = setting("CTST_TEST_KILLS", 200);
    println!("CTST_TEST_SEED={seed}");
    let callers: Vec<Caller> = Caller::all().into_iter().chain(Caller::strict()).collect();
    let each = kills.div_ceil(callers.len() as u64);
    Caller::at_once(callers, |caller| crash(caller, each, seed));
}

#[test]
fn everything_at_once() {
    let project = Project::new(&Caller::ordinary(), TWO);
    project.up();
    for ((pid, _), _) in project.processes() {
        kill(pid);
    }
    project.assert_nothing_left();
    let rows = project.ps();
    assert!(rows.iter().all(|row| row["state"] == "dead"), "{rows:?}");
    project.up();
    project.stop();
}

#[test]
fn a_payload_that_is_killed_is_told_as_such() {
    let project = Project::new(&Caller::ordinary(), TWO);
    project.up();
    project.ctst(["exec", "app", "kill", "-9", "2"]);
    eventually("app has exited", || project.status("app")["state"] == "exited");
    assert_eq!(project.status("app")["exit_code"], 137);
    assert_eq!(project.status("db")["state"], "running");
    project.stop();
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("send a signal");
}

fn part(project: &Project, wanted: &str) -> i32 {
    let parts = project.parts();
    parts.iter().find(|(_, part)| *part == wanted).unwrap_or_else(|| panic!("no {wanted} in {parts:?}")).0
}

fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The supervisor is asked before it has come to notice.
#[test]
fn a_run_after_the_end_of_the_sandbox_starts_it_again() {
    for caller in Caller::all() {
        let project = Project::new(&caller, TWO);
        for words in [&["run", "-d", "--wait", "--yes"][..], &["rm"]] {
            project.up();
            project.note();
            let (supervisor, sandbox) = (part(&project, "supervisor"), part(&project, "S"));
            signal(supervisor, Signal::STOP);
            kill(sandbox);
            eventually("S is gone", || !is_alive(sandbox));
            let running = project.start(words);
            std::thread::sleep(Duration::from_millis(300));
            signal(supervisor, Signal::CONT);
            let done = running.wait(Duration::from_secs(60));
            assert_eq!(done.code, 0, "{} {words:?}: {done}", caller.name);
        }
        project.stop();
    }
}

fn children(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()).collect()
}

/// The supervisor is asked by somebody else before it has come to notice that its sandbox failed.
#[test]
fn a_run_beside_one_whose_sandbox_fails_makes_another() {
    for caller in Caller::all().into_iter().chain(Caller::strict()) {
        let project = Project::new(&caller, TWO);
        let first = project.start(["run", "-d", "--wait", "--yes"]);
        let mut shims = Vec::new();
        while shims.is_empty() {
            assert!(is_alive(first.pid()), "{}: the shim was not seen", caller.name);
            let supervisors = children(first.pid());
            shims.extend(supervisors.iter().flat_map(|pid| children(*pid).into_iter().map(|shim| (*pid, shim))));
        }
        let (supervisor, shim) = shims[0];
        // It may have become S and gone.
        let _ = kill_process(Pid::from_raw(shim).expect("a pid"), Signal::STOP);
        std::thread::sleep(Duration::from_millis(300));
        signal(supervisor, Signal::STOP);
        for pid in children(supervisor) {
            kill(pid);
        }
        let second = project.start(["run", "-d", "--wait", "--yes"]);
        std::thread::sleep(Duration::from_millis(300));
        signal(supervisor, Signal::CONT);
        let done = first.wait(Duration::from_secs(60));
        assert!(!done.stderr.contains("panicked"), "{}: {done}", caller.name);
        let done = second.wait(Duration::from_secs(60));
        assert_eq!(done.code, 0, "{}: {done}", caller.name);
        project.stop();
    }
}

/// K04: stopped processes are neither waited for without an end nor left behind.
#[test]
fn a_stopped_process_does_not_outlive_its_supervisor() {
    for caller in Caller::all() {
        let project = Project::new(&caller, TWO);
        for stopped in ["S", "C", "X"] {
            project.up();
            project.note();
            let (supervisor, stopped_pid) = (part(&project, "supervisor"), part(&project, stopped));
            signal(stopped_pid, Signal::STOP);
            kill(supervisor);
            eventually("the supervisor is gone", || !is_alive(supervisor));
            let up = project.ctst(["run", "-d", "--wait", "--yes"]);
            assert_eq!(up.code, 0, "{}, {stopped}: {up}", caller.name);
            assert!(!is_alive(stopped_pid), "{}: {stopped} is still there", caller.name);
            project.stop();
            // For a while, and on.
            project.up();
            let stopped_pid = part(&project, stopped);
            signal(stopped_pid, Signal::STOP);
            std::thread::sleep(Duration::from_millis(500));
            signal(stopped_pid, Signal::CONT);
            assert_eq!(project.ctst(["exec", "app", "true"]).code, 0);
            project.stop();
        }
    }
}

/// T01, T02: whatever a state file holds, it is told or made anew, and nothing panics.
#[test]
fn damaged_state_files() {
    let project = Project::new(&Caller::ordinary(), TWO);
    let seed = setting("CTST_TEST_SEED", 1);
    let mut random = Random(seed | 1);
    project.up();
    project.ctst(["plan", "-o", "plan.json"]).ok();
    project.stop();
    let state = project.folder().join(".containust");
    let mut files = vec![project.folder().join("plan.json")];
    let mut folders = vec![state];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("list").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("a type"));
            // What images and containers hold is no state.
            let content = ["tree", "upper", "work"].iter().any(|name| path.ends_with(name));
            if kind.is_dir() && !content {
                folders.push(path);
            } else if kind.is_file() && path.metadata().is_ok_and(|meta| meta.len() > 0) {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() > 4, "{files:?}");
    for path in files {
        let whole = std::fs::read(&path).expect("read");
        // All of them in the long run.
        let first = random.below(6);
        for how in 0..6 {
            if how != first && std::env::var_os("CTST_TEST_STEPS").is_none() {
                continue;
            }
            let at = usize::try_from(random.below(whole.len() as u64)).expect("small");
            let mut bad = whole.clone();
            match how {
                0 => bad.clear(),
                1 | 2 => bad.truncate(at),
                _ => bad[at] ^= 1 << random.below(8),
            }
            let told = format!("seed {seed}: {} with {how} at {at}", path.display());
            // In place: owner and mode stay.
            std::fs::write(&path, &bad).expect("write");
            let looks: [&[&str]; 6] = [
                &["ps", "-a"],
                &["images"],
                &["images", "verify"],
                &["plan"],
                &["run", "plan.json", "-d", "--yes"],
                &["run", "-d", "--wait", "--yes"],
            ];
            for words in looks {
                let done = project.ctst(words);
                assert!(!done.stderr.contains("panicked") && done.code < 128, "{told}, {words:?}: {done}");
                assert!(done.code == 0 || done.stderr.contains("error"), "{told}, {words:?}: {done}");
            }
            assert_eq!(project.ctst(["stop"]).code, 0, "{told}");
            project.assert_nothing_left();
            if path.exists() {
                std::fs::write(&path, &whole).expect("write");
            }
        }
    }
    project.up();
    project.stop();
}

/// T03: many at once, some killed: a record is an old or a new one.
#[test]
fn commands_at_once_some_killed() {
    let project = Project::new(&Caller::ordinary(), TWO);
    let seed = setting("CTST_TEST_SEED", 1);
    let mut random = Random(seed | 1);
    for round in 0..4 {
        let commands: [&[&str]; 5] =
            [&["run", "-d", "--yes"], &["run", "-d", "--wait", "--yes"], &["stop"], &["ps", "-a"], &["restart"]];
        let running: Vec<_> = (0..8).map(|index| commands[index % commands.len()]).collect();
        let running: Vec<_> = running.into_iter().map(|words| (words, project.start(words))).collect();
        std::thread::sleep(Duration::from_millis(random.below(150)));
        for (_, one) in &running {
            let pid = one.pid();
            if random.below(3) == 0 {
                kill(pid);
            }
        }
        for (words, mut one) in running {
            let start = std::time::Instant::now();
            while one.child().try_wait().expect("wait").is_none() {
                let told = || format!("seed {seed}, round {round}: {words:?} hangs: {:?}", project.ps());
                assert!(start.elapsed() < Duration::from_secs(60), "{}", told());
                std::thread::sleep(Duration::from_millis(10));
            }
            let done = one.wait(Duration::from_secs(60));
            assert!(!done.stderr.contains("panicked"), "seed {seed}, round {round}: {words:?}: {done}");
        }
        let rows = project.ps();
        assert!(rows.iter().all(|row| row["state"] != "unknown"), "seed {seed}, round {round}: {rows:?}");
        assert_ps_is_true(&project, &format!("seed {seed}, round {round}"));
    }
    project.up();
    project.stop();
}
