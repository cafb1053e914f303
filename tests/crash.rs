//! `kill -9` of any process at any moment: the next command works, `ps` is true, nothing is left.
//!
//! `CTST_TEST_SEED` repeats a run, `CTST_TEST_KILLS` changes the number of kills (200).
#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containust_tests::{Caller, Project};
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
    if rows.iter().all(|row| row["state"] != "running") {
        project.assert_nothing_left();
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
    let callers = Caller::all();
    for caller in &callers {
        crash(caller, kills.div_ceil(callers.len() as u64), seed);
    }
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
    containust_tests::eventually("app has exited", || project.status("app")["state"] == "exited");
    assert_eq!(project.status("app")["exit_code"], 137);
    assert_eq!(project.status("db")["state"], "running");
    project.stop();
}
