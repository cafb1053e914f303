//! A caller who looks into his projects while they start and end: `ctst-onlooker quiet|harsh SEED PROGRAM [ARGUMENT…]` starts
//! a program and tries, in a loop without a pause, to look into every process below it that holds a privilege or came out of
//! one that does. It ends when nothing is left below it, and says as JSON what worked. `harsh`: it also stops and kills
//! them, and writes id maps.
//!
//! What counts is what is gained: a process that ends has files in /proc that open and are empty.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, Signal, pidfd_getfd, pidfd_open};
use serde_json::json;

/// For what is below after the program has ended.
const PATIENCE: Duration = Duration::from_secs(60);

const LINKS: [&str; 10] =
    ["root", "cwd", "exe", "ns/user", "ns/mnt", "ns/pid", "ns/net", "ns/ipc", "ns/uts", "ns/cgroup"];
const FILES: [&str; 9] =
    ["environ", "maps", "auxv", "io", "smaps_rollup", "syscall", "personality", "root/etc/passwd", "cwd/../etc/passwd"];
const DESCRIPTORS: i32 = 16;

struct Target {
    pid: i32,
    /// `P`, `S`, `C` or `X` (README.md of ctst-shim).
    part: &'static str,
    /// Its folder in /proc, and itself: not a stranger's who gets its pid later.
    folder: OwnedFd,
    process: OwnedFd,
    traced: bool,
    stopped: Option<Instant>,
}

#[derive(Default)]
struct Onlooker {
    targets: BTreeMap<i32, Target>,
    seen: BTreeMap<&'static str, u64>,
    /// Times, and what /proc said of whom it worked on first.
    gained: BTreeMap<String, (u64, String)>,
    tries: u64,
    stopped: u64,
    killed: u64,
    inside: bool,
    random: u64,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, how, seed, program, rest @ ..] = args.as_slice() else {
        eprintln!("ctst-onlooker quiet|harsh SEED PROGRAM [ARGUMENT…]");
        std::process::exit(64);
    };
    let harsh = how == "harsh";
    // Whose parent ends becomes a child of this process, and stays below it.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
    let child = Command::new(program).args(rest).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let child = i32::try_from(child.expect("start the program").id()).expect("a pid");
    // On a busy machine a short life of somebody else's would be missed.
    rustix::process::setpriority_process(rustix::process::Pid::from_raw(child), 10).expect("lower a priority");

    let mut onlooker = Onlooker { random: seed.parse::<u64>().expect("a seed") | 1, ..Onlooker::default() };
    let (mut code, mut ended) = (None, None);
    while let Some(news) = reap() {
        for (pid, status) in news {
            if pid == child {
                (code, ended) = (Some(status), Some(Instant::now()));
            }
        }
        if ended.is_some_and(|ended: Instant| ended.elapsed() > PATIENCE) {
            code = None;
            break;
        }
        onlooker.find();
        onlooker.pass(harsh);
    }
    let Onlooker { seen, gained, tries, stopped, killed, .. } = onlooker;
    let gained: BTreeMap<_, _> =
        gained.into_iter().map(|(what, (times, first))| (what, format!("{times} times, first {first}"))).collect();
    let report =
        json!({ "code": code, "seen": seen, "gained": gained, "tries": tries, "stopped": stopped, "killed": killed });
    println!("{report}");
}

/// Waits for what has ended and lets go of what is traced. None: there is nothing below any more.
fn reap() -> Option<Vec<(i32, i32)>> {
    let mut ended = Vec::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            Ok(WaitStatus::StillAlive) => return Some(ended),
            Ok(WaitStatus::Exited(pid, code)) => ended.push((pid.as_raw(), code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => ended.push((pid.as_raw(), 128 + signal as i32)),
            // It may have been killed meanwhile.
            Ok(WaitStatus::Stopped(pid, _) | WaitStatus::PtraceEvent(pid, ..)) => {
                ptrace::detach(pid, None).unwrap_or(())
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) if ended.is_empty() => return None,
            Err(Errno::ECHILD) => return Some(ended),
            Err(error) => panic!("wait: {error}"),
        }
    }
}

fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
}

fn read(folder: &OwnedFd, name: &str) -> rustix::io::Result<String> {
    let file = openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = [0; 4096];
    let length = rustix::io::read(&file, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

impl Target {
    /// Some: it holds capabilities, over whatever, or is a child of one that counts already.
    fn new(pid: i32, of_one: bool) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
        let process = pidfd_open(rustix::process::Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let status = read(&folder, "status").ok()?;
        let holds = u64::from_str_radix(field(&status, "CapPrm"), 16).is_ok_and(|held| held != 0);
        let pids: Vec<&str> = field(&status, "NSpid").split_whitespace().collect();
        let part = match pids.as_slice() {
            [_] => "P",
            [_, _] => "S",
            [.., "1"] => "C",
            _ => "X",
        };
        (holds || of_one).then_some(Self { pid, part, folder, process, traced: false, stopped: None })
    }
}

impl Onlooker {
    fn find(&mut self) {
        let mut below: Vec<(i32, bool)> =
            children(std::process::id().cast_signed()).into_iter().map(|pid| (pid, false)).collect();
        while let Some((pid, of_one)) = below.pop() {
            if !self.targets.contains_key(&pid)
                && let Some(target) = Target::new(pid, of_one)
            {
                *self.seen.entry(target.part).or_default() += 1;
                self.targets.insert(pid, target);
            }
            let counts = self.targets.contains_key(&pid);
            below.extend(children(pid).into_iter().map(|child| (child, counts)));
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    /// Everything once, on everybody.
    fn pass(&mut self, harsh: bool) {
        for (pid, mut target) in std::mem::take(&mut self.targets) {
            let worked = self.look(&mut target, harsh);
            self.tries += 1;
            // Of a process that was waited for there is nothing, and its pid may be somebody else's.
            let Ok(status) = read(&target.folder, "status") else { continue };
            for what in worked {
                let entry = self.gained.entry(format!("{}: {what}", target.part)).or_default();
                entry.0 += 1;
                if entry.1.is_empty() {
                    for name in ["Name", "State", "Uid", "CapPrm"] {
                        write!(entry.1, "{name} {} ", field(&status, name).replace('\t', " "))
                            .expect("write to memory");
                    }
                }
            }
            if harsh {
                self.strike(&mut target);
            }
            self.targets.insert(pid, target);
        }
    }

    /// The kernel lets him: they have his real user id.
    fn strike(&mut self, target: &mut Target) {
        let signal = match target.stopped {
            Some(since) if since.elapsed() < Duration::from_millis(3) => return,
            Some(_) if self.below(8) == 0 => Signal::KILL,
            Some(_) => Signal::CONT,
            // P is over soon.
            None if self.below(if target.part == "P" { 2 } else { 100 }) == 0 => Signal::STOP,
            None => return,
        };
        target.stopped = (signal == Signal::STOP).then(Instant::now);
        self.stopped += u64::from(signal == Signal::STOP);
        self.killed += u64::from(signal == Signal::KILL);
        // It may have ended.
        let _ = rustix::process::pidfd_send_signal(&target.process, signal);
    }

    fn look(&mut self, target: &mut Target, harsh: bool) -> Vec<String> {
        let mut worked = Vec::new();
        let mut gained = |what: String, yes: bool| {
            if yes {
                worked.push(what)
            }
        };
        let &mut Target { pid: own, part, ref folder, ref process, ref mut traced, .. } = target;
        for name in LINKS {
            gained(format!("read the link {name}"), readlinkat(folder, name, Vec::new()).is_ok());
        }
        for name in FILES {
            gained(format!("read {name}"), read(folder, name).is_ok_and(|text| !text.is_empty()));
        }
        // An address without memory tells that there is memory elsewhere.
        let memory = openat(folder, "mem", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        gained("open mem".into(), memory.is_ok_and(|file| rustix::io::pread(&file, &mut [0u8; 1], 0) != Ok(0)));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let maps = openat(folder, "map_files", flags, Mode::empty()).and_then(rustix::fs::Dir::new);
        gained("list map_files".into(), maps.is_ok_and(|list| list.flatten().count() > 2));
        for number in 0..DESCRIPTORS {
            gained("read a link of fd".into(), readlinkat(folder, format!("fd/{number}"), Vec::new()).is_ok());
            gained("pidfd_getfd".into(), pidfd_getfd(process, number, PidfdGetfdFlags::empty()).is_ok());
        }
        let pid = Pid::from_raw(own);
        let mut byte = [0; 1];
        let there = [RemoteIoVec { base: 0x1000, len: 1 }];
        let answer = process_vm_readv(pid, &mut [IoSliceMut::new(&mut byte)], &there);
        gained("process_vm_readv".into(), matches!(answer, Ok(_) | Err(Errno::EFAULT)));
        if !*traced && ptrace::seize(pid, ptrace::Options::empty()).is_ok() {
            *traced = true;
            // It stops, and is let go by who waits for it.
            let _ = ptrace::interrupt(pid);
            gained("ptrace".into(), true);
        }
        if !self.inside && setns(process.as_fd(), CloneFlags::CLONE_NEWUSER).is_ok() {
            self.inside = true;
            gained("enter the user namespace".into(), true);
        }
        for (name, flag) in [("mnt", CloneFlags::CLONE_NEWNS), ("net", CloneFlags::CLONE_NEWNET)] {
            gained(format!("enter the namespace {name}"), !self.inside && setns(process.as_fd(), flag).is_ok());
        }
        if part == "S" {
            let limit = Rlimit { current: Some(0), maximum: Some(0) };
            let named = rustix::process::Pid::from_raw(own);
            gained("prlimit".into(), rustix::process::prlimit(named, Resource::Core, limit).is_ok());
        }
        if harsh {
            let uid = rustix::process::getuid().as_raw();
            for (name, text) in
                [("uid_map", format!("0 {uid} 1\n")), ("gid_map", format!("0 {uid} 1\n")), ("setgroups", "deny".into())]
            {
                let file = openat(folder, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
                let written = file.and_then(|file| rustix::io::write(&file, text.as_bytes()));
                gained(format!("write {name}"), written.is_ok());
            }
        }
        worked
    }
}
