//! One blow at one step: any process of a command is killed at a system call, or a system call of it fails. Whatever it was,
//! the next commands work, nothing is left, and what was kept is whole.
//!
//! `CTST_TEST_STEPS` is the number of steps of each part of each command (2), or `all`; `CTST_TEST_SEED` repeats a run;
//! `CTST_TEST_ONLY` is `command` or `command/part`, `CTST_TEST_CALLER` one of the callers as it is told. Needs root, who can trace
//! what is not dumpable, and whose tracing leaves file capabilities as they are (`ptrace(2)`).
#![forbid(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use containust_tests::tracer::{Step, Steps, Strike, trace};
use containust_tests::{Caller, Project, eventually};

const STACK: &str = r#"
VOLUME data {}
COMPONENT db {
  image = "file://./root"
  command = ["/bin/busybox", "sleep", "1000"]
  volume = "data:/srv/data"
}
COMPONENT app { image = "file://./root" command = ["/bin/busybox", "sleep", "1000"] readonly = false }
CONNECT app -> db
"#;
const LIMIT: Duration = Duration::from_secs(120);
/// A process that does something after the command has ended comes to its step or not.
const ATTEMPTS: u32 = 3;

/// What is struck: the words, and what comes before.
struct Scenario {
    name: &'static str,
    words: &'static [&'static str],
    before: fn(&Project),
}

fn stopped(project: &Project) {
    project.ctst(["stop"]).ok();
}

fn running(project: &Project) {
    project.up();
}

fn emptied(project: &Project) {
    project.ctst(["stop"]).ok();
    project.ctst(["rm", "--allow-destroy"]).ok();
    project.ctst(["volumes", "rm", "data"]);
}

fn without_images(project: &Project) {
    emptied(project);
    project.ctst(["images", "prune", "-a", "--yes"]);
    let images = project.folder().join(".containust/images");
    if images.exists() {
        fs::remove_dir_all(images).expect("remove the images");
    }
}

const SCENARIOS: [Scenario; 7] = [
    Scenario { name: "run", words: &["run", "-d", "--wait", "--yes"], before: stopped },
    Scenario { name: "fill", words: &["run", "-d", "--wait", "--yes"], before: emptied },
    Scenario { name: "exec", words: &["exec", "app", "/bin/busybox", "true"], before: running },
    Scenario { name: "cp", words: &["cp", "app:/srv/data", "copied"], before: running },
    Scenario { name: "stop", words: &["stop"], before: running },
    Scenario { name: "rm", words: &["rm", "--allow-destroy"], before: stopped },
    Scenario { name: "build", words: &["build"], before: without_images },
];

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).expect("31 bits") % limit
    }
}

fn project(caller: &Caller) -> Project {
    let project = Project::new(caller, STACK);
    for folder in ["root", "root/bin", "root/srv", "root/srv/data", "root/srv/data/inner"] {
        project.make_folder(folder);
        set_mode(&project.folder().join(folder));
    }
    project.write_bytes("root/bin/busybox", &fs::read("/bin/busybox").expect("read busybox"));
    set_mode(&project.folder().join("root/bin/busybox"));
    project.write("root/srv/data/first", "of the image\n");
    project.write("root/srv/data/inner/file", "x");
    project
}

fn set_mode(path: &Path) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set a mode");
}

/// What there is of the project on disk, without what containers and images hold.
fn on_disk(project: &Project) -> BTreeSet<String> {
    fn walk(folder: &Path, depth: usize, found: &mut BTreeSet<String>, top: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let shown = path.strip_prefix(top).expect("below it").display().to_string();
            if depth < 3 && path.is_dir() && !path.is_symlink() {
                walk(&path, depth + 1, found, top);
            }
            found.insert(shown);
        }
    }
    let mut found = BTreeSet::new();
    walk(&project.folder().join(".containust"), 0, &mut found, &project.folder().join(".containust"));
    for entry in fs::read_dir(project.folder()).into_iter().flatten().flatten() {
        found.insert(entry.file_name().to_string_lossy().into_owned());
    }
    // The log of the supervisor is there when there is something to say.
    found.remove("supervisor.log");
    found
}

fn interfaces() -> BTreeSet<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

struct Bench {
    project: Project,
    disk: BTreeSet<String>,
    interfaces: BTreeSet<String>,
}

impl Bench {
    fn new(caller: &Caller) -> Self {
        let project = project(caller);
        let interfaces = interfaces();
        // Twice, because a second start removes what the first has left for it.
        for _ in 0..2 {
            project.up();
            project.ctst(["cp", "app:/srv/data", "copied"]).ok();
            fs::remove_dir_all(project.folder().join("copied")).expect("remove a copy");
            project.stop();
        }
        Self { disk: on_disk(&project), project, interfaces }
    }

    /// What the next commands say and leave.
    fn check(&self, told: &str) {
        let project = &self.project;
        let rows = project.ps();
        for row in &rows {
            assert_ne!(row["state"], "unknown", "{told}: a record cannot be read: {row}");
        }
        let up = project.ctst(["run", "-d", "--wait", "--yes"]);
        assert_eq!(up.code, 0, "{told}: the next run: {up}");
        let kept = project.ctst(["exec", "db", "/bin/busybox", "cat", "/srv/data/first", "/srv/data/inner/file"]);
        assert_eq!((kept.code, kept.stdout.as_str()), (0, "of the image\nx"), "{told}: {kept}");
        let rows = project.ps();
        assert!(rows.iter().all(|row| row["state"] == "running"), "{told}: {rows:?}");
        let verify = project.ctst(["images", "verify"]);
        assert_eq!(verify.code, 0, "{told}: {verify}");
        let again = project.ctst(["cp", "app:/srv/data", "copied2"]);
        assert_eq!(again.code, 0, "{told}: {again}");
        for copied in ["copied", "copied2"] {
            let copied = project.folder().join(copied);
            if copied.exists() {
                let text = fs::read_to_string(copied.join("inner/file"));
                assert!(text.as_deref().is_ok_and(|text| text == "x"), "{told}: half a copy: {text:?}");
                fs::remove_dir_all(copied).expect("remove a copy");
            }
        }
        let stop = project.ctst(["stop"]);
        assert_eq!(stop.code, 0, "{told}: {stop}");
        let left = project.left();
        assert!(left.is_empty(), "{told}: left behind {left:?}");
        let disk = on_disk(project);
        let surplus: Vec<_> = disk.difference(&self.disk).collect();
        assert!(surplus.is_empty(), "{told}: left on disk {surplus:?}");
        assert_eq!(interfaces(), self.interfaces, "{told}");
        let log = fs::read_to_string(project.folder().join(".containust/supervisor.log")).unwrap_or_default();
        assert!(!log.contains("panicked"), "{told}: {log}");
    }

    /// One blow. What is told of it.
    fn strike(&self, scenario: &Scenario, steps: Steps, step: &Step, seed: u64) -> bool {
        let project = &self.project;
        (scenario.before)(project);
        let traced = trace(project.gate(scenario.words), &project.parts(), steps, Some(step.clone()), LIMIT);
        project.note();
        let Some((pid, call)) = traced.struck else {
            // What goes on after the command was not waited for. Then there is nothing to do for the next one until this.
            self.check(&format!("{}, {}: {step:?} was not reached", label(&project.caller), scenario.name));
            return false;
        };
        let told = format!(
            "seed {seed}, {}, {}: {step:?} (system call {call} of {pid})",
            label(&project.caller),
            scenario.name
        );
        assert!(!traced.done.stderr.contains("panicked"), "{told}: {}", traced.done);
        if step.strike == Strike::Kill {
            eventually("the killed process is gone", || !is_alive(pid));
        } else {
            let clean = traced.done.code == 0 || !traced.done.stderr.is_empty() || scenario.name == "exec";
            assert!(clean, "{told}: no word of what went wrong: {}", traced.done);
        }
        self.check(&told);
        true
    }

    /// How many steps each part takes.
    fn count(&self, scenario: &Scenario, steps: Steps) -> BTreeMap<String, usize> {
        (scenario.before)(&self.project);
        let traced = trace(self.project.gate(scenario.words), &self.project.parts(), steps, None, LIMIT);
        assert_eq!(traced.done.code, 0, "{}: {}", scenario.name, traced.done);
        self.check(&format!("{} of {}, traced only", scenario.name, self.project.caller.name));
        traced.steps
    }
}

fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn label(caller: &Caller) -> String {
    let strict = if caller.strict { " (strict)" } else { "" };
    format!("{}{strict}", caller.name)
}

fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    std::env::var("CTST_TEST_SEED").map_or(now, |seed| seed.parse().expect("CTST_TEST_SEED is a number")) | 1
}

/// `None`: all.
fn wanted_steps() -> Option<usize> {
    match std::env::var("CTST_TEST_STEPS").as_deref() {
        Ok("all") => None,
        Ok(number) => Some(number.parse().expect("CTST_TEST_STEPS is a number or all")),
        Err(_) => Some(1),
    }
}

/// Numbers below `count`, one of each of `wanted` equal parts.
fn spread(random: &mut Random, count: usize, wanted: Option<usize>) -> Vec<usize> {
    let wanted = wanted.unwrap_or(count).min(count);
    (0..wanted)
        .map(|part| {
            let (from, to) = (part * count / wanted, (part + 1) * count / wanted);
            from + random.below(to - from)
        })
        .collect()
}

fn strike_all(roles: &[&str], kind: Steps, strikes: &[Strike]) {
    let Some(root) = Caller::root() else { return };
    drop(root);
    let (seed, only) = (seed(), std::env::var("CTST_TEST_ONLY").unwrap_or_default());
    let mut random = Random(seed);
    let wanted = wanted_steps();
    let (mut struck, mut missed) = (0, 0);
    let start = Instant::now();
    let all: Vec<Caller> = Caller::all().into_iter().chain(Caller::strict()).collect();
    // Of a sample, each caller gets its share of the commands.
    for (turn, caller) in all.iter().enumerate() {
        if std::env::var("CTST_TEST_CALLER").is_ok_and(|name| name != label(caller)) {
            continue;
        }
        let bench = Bench::new(caller);
        for (index, scenario) in SCENARIOS.iter().enumerate() {
            let chosen = only.is_empty() || only.split('/').next() == Some(scenario.name);
            if !chosen || (only.is_empty() && wanted == Some(1) && index % all.len() != turn) {
                continue;
            }
            let counts = bench.count(scenario, kind);
            eprintln!("seed {seed}, {}, {}: steps {counts:?}", label(caller), scenario.name);
            for (role, count) in counts.iter().filter(|(role, _)| roles.contains(&role.as_str())) {
                if only.split_once('/').is_some_and(|(_, part)| part != role) {
                    continue;
                }
                for number in spread(&mut random, *count, wanted) {
                    let strike = strikes[random.below(strikes.len())];
                    let step = Step { role: role.clone(), number, strike };
                    let hit = (0..ATTEMPTS).any(|_| bench.strike(scenario, kind, &step, seed));
                    if hit { struck += 1 } else { missed += 1 }
                }
            }
        }
    }
    eprintln!("{struck} struck, {missed} not reached, in {:?}", start.elapsed());
    assert!(struck > 0, "nothing was struck");
}

/// K03: killed at a step.
#[test]
fn killed_at_a_step() {
    strike_all(&["client", "supervisor", "child", "mapper", "P", "S", "C", "X"], Steps::Changes, &[Strike::Kill]);
}

/// K05: a system call of the shim fails.
#[test]
fn a_system_call_of_the_shim_fails() {
    let strikes = [libc::EMFILE, libc::ENOMEM, libc::EINTR, libc::ENOSPC].map(Strike::Fail);
    strike_all(&["P", "S", "C"], Steps::All, &strikes);
}

/// T04: the disk is full at a step.
#[test]
fn no_space_at_a_step() {
    let strikes = [libc::ENOSPC, libc::EDQUOT, libc::EROFS].map(Strike::Fail);
    strike_all(&["client", "supervisor", "X"], Steps::Space, &strikes);
}
