//! Runs inside a container and tries to get out: `run FACT=VALUE...` makes every attempt of the tables below and prints a
//! line for each, `ID ok`, `ID BROKEN what happened` or `ID skipped why`. The list of all attempts, with those that are made
//! from outside, is ctst-shim/ESCAPES.md.
//!
//! Each attempt is made by a process of its own, so that one that succeeds, or is killed, says nothing about the others.
#![deny(unsafe_code)]

mod calls;
mod files;
mod namespaces;
mod network;
mod privileges;
mod resources;
mod sys;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What came out of one attempt.
enum Verdict {
    /// The container held.
    Holds,
    /// It did not, or not in the way it should.
    Broken(String),
    /// It cannot be tried here.
    Skipped(String),
}

use Verdict::{Broken, Holds, Skipped};

/// What only the outside knows, by name.
type Facts = BTreeMap<String, String>;

/// An attempt: its id in the list, and how it is made.
type Check = (&'static str, fn(&Facts) -> Verdict);

/// Longer than any attempt takes, also on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["run", facts @ ..] => run(facts),
        ["check", id, facts @ ..] => check(id, facts),
        ["list"] => checks().for_each(|(id, _)| println!("{id}")),
        // Helpers that some attempts start, and tests from outside.
        ["int80"] => sys::int80(),
        ["ids"] => println!("{} {}", privileges::status("Uid"), privileges::status("CapEff")),
        ["capabilities"] => println!("{}", privileges::status("CapEff")),
        ["kill-all"] => println!("{:?}", sys::call(libc::SYS_kill, &[-1, libc::SIGKILL.into()])),
        ["unkillable"] => sys::ignore_everything(),
        ["orphans", count] => sys::orphans(count.parse().expect("orphans takes a number")),
        ["swap", folder, rounds] => files::swap(folder, rounds.parse().expect("swap takes a number")),
        ["overwrite", folder] => files::overwrite(folder),
        ["owners", files @ ..] => namespaces::owners(files),
        other => {
            eprintln!("ctst-escape: run FACT=VALUE..., list, or a helper, not {other:?}");
            std::process::exit(64);
        }
    }
}

fn checks() -> impl Iterator<Item = Check> {
    [namespaces::CHECKS, files::CHECKS, privileges::CHECKS, calls::CHECKS, resources::CHECKS, network::CHECKS]
        .into_iter()
        .flatten()
        .copied()
}

fn check(id: &str, facts: &[&str]) {
    let facts: Facts =
        facts.iter().filter_map(|fact| fact.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    // Where a layer is left out attempts work: what they do to mounts is not for the next one to stumble over. Everywhere
    // else this is refused.
    let _ = sys::call(libc::SYS_unshare, &[libc::CLONE_NEWNS.into()]);
    let (_, attempt) = checks().find(|(name, _)| *name == id).expect("an id of the list");
    match attempt(&facts) {
        Holds => println!("ok"),
        Broken(what) => println!("BROKEN {what}"),
        Skipped(why) => println!("skipped {why}"),
    }
}

fn run(facts: &[&str]) {
    for (id, _) in checks() {
        println!("{id} {}", attempt(id, facts));
    }
}

/// Lets a new process make the attempt, and returns its line.
fn attempt(id: &str, facts: &[&str]) -> String {
    let command = Command::new("/proc/self/exe")
        .args(["check", id])
        .args(facts)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = match command {
        Ok(child) => child,
        Err(error) => return format!("BROKEN cannot start the attempt: {error}"),
    };
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(1)),
            Ok(None) | Err(_) => {
                drop(child.kill());
                return "BROKEN it does not end".to_owned();
            }
        }
    };
    let said = child.stdout.take().map(std::io::read_to_string).and_then(Result::ok).unwrap_or_default();
    match (said.trim(), status.signal()) {
        ("", Some(signal)) => format!("BROKEN the attempt was killed by signal {signal}"),
        ("", None) => format!("BROKEN the attempt said nothing and ended with {status}"),
        (line, _) => line.replace('\n', " "),
    }
}

/// Holds if the attempt failed with one of these errors.
fn refused<T>(result: Result<T, i32>, expected: &[i32]) -> Verdict {
    match result {
        Ok(_) => Broken("it works".to_owned()),
        Err(error) if expected.contains(&error) => Holds,
        Err(error) => {
            let name = |number: &i32| std::io::Error::from_raw_os_error(*number).to_string();
            let expected: Vec<String> = expected.iter().map(name).collect();
            Broken(format!("{}, where it should be {}", name(&error), expected.join(" or ")))
        }
    }
}

/// Holds if all of them do; else says of each that does not.
fn all(verdicts: impl IntoIterator<Item = (String, Verdict)>) -> Verdict {
    let mut broken = Vec::new();
    for (what, verdict) in verdicts {
        match verdict {
            Holds => {}
            Broken(how) => broken.push(format!("{what}: {how}")),
            Skipped(why) => return Skipped(format!("{what}: {why}")),
        }
    }
    if broken.is_empty() { Holds } else { Broken(broken.join("; ")) }
}

/// Holds if it is so; else says what there is instead.
fn so(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Holds } else { Broken(otherwise()) }
}

/// The kernel's error number of a failed operation.
fn errno<T>(result: std::io::Result<T>) -> Result<T, i32> {
    result.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {path}: {error}"))
}
