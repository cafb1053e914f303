//! What the caller of a project may do to its processes from outside. `attack PID` tries one thing after the other and says
//! as JSON what the kernel answered to each: an empty text where it worked. `host` tries what a host without user namespaces
//! forbids its users.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{IoSliceMut, Read};
use std::os::fd::OwnedFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

type Answer = Result<(), String>;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let answers = match args.get(1).map(String::as_str) {
        Some("attack") => attack(args[2].parse().expect("attack takes a pid")),
        Some("host") => host(),
        // One attempt, which changes who tries the next where it works.
        Some("try") => {
            let pid = args[3].parse().expect("try takes a pid");
            match attempt(&args[2], pid) {
                Ok(()) => {}
                Err(error) => print!("{error}"),
            }
            return;
        }
        other => {
            eprintln!("ctst-outsider: attack PID or host, not {other:?}");
            std::process::exit(64);
        }
    };
    let answers: BTreeMap<_, _> =
        answers.into_iter().map(|(name, answer)| (name, answer.err().unwrap_or_default())).collect();
    println!("{}", serde_json::to_string(&answers).expect("texts are valid JSON"));
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn attack(pid: i32) -> Vec<(String, Answer)> {
    let mut answers: Vec<(String, Answer)> = Vec::new();
    for name in ["root", "exe", "cwd", "ns/user", "ns/net", "ns/mnt", "ns/pid"] {
        let answer = fs::read_link(format!("/proc/{pid}/{name}")).map(drop);
        answers.push((format!("read the link {name}"), answer.map_err(text)));
    }
    for name in ["environ", "mem", "maps", "auxv", "io"] {
        let answer = fs::File::open(format!("/proc/{pid}/{name}")).and_then(|mut file| {
            // A process of its own may be without any.
            if name == "mem" { Ok(()) } else { file.read(&mut [0; 16]).map(drop) }
        });
        answers.push((format!("read {name}"), answer.map_err(text)));
    }
    for number in 0..3 {
        let answer = fs::read_link(format!("/proc/{pid}/fd/{number}")).map(drop);
        answers.push((format!("read the link fd/{number}"), answer.map_err(text)));
    }
    let at = |path: &str| fs::File::open(format!("/proc/{pid}/{path}"));
    answers.push(("enter the root by /proc".to_owned(), at("root/etc/passwd").map(drop).map_err(text)));

    let process = pidfd_open(rustix::process::Pid::from_raw(pid).expect("a pid"), PidfdFlags::empty());
    let process: OwnedFd = process.expect("open a pidfd");
    let got = pidfd_getfd(&process, 0, PidfdGetfdFlags::empty()).map(drop);
    answers.push(("pidfd_getfd".to_owned(), got.map_err(text)));
    let target = Pid::from_raw(pid);
    let mut byte = [0; 1];
    let read = process_vm_readv(target, &mut [IoSliceMut::new(&mut byte)], &[RemoteIoVec { base: 0x1000, len: 1 }]);
    // No memory there is no refusal.
    let read = read.map(drop).or_else(|error| if error == nix::errno::Errno::EFAULT { Ok(()) } else { Err(error) });
    answers.push(("process_vm_readv".to_owned(), read.map_err(text)));
    let seized = ptrace::seize(target, ptrace::Options::empty()).and_then(|()| ptrace::detach(target, None));
    let seized = seized.or_else(|error| if error == nix::errno::Errno::ESRCH { Ok(()) } else { Err(error) });
    answers.push(("ptrace".to_owned(), seized.map_err(text)));

    for name in ["setns user", "setns net", "setns mnt", "setns pid", "AF_PACKET in its network"] {
        answers.push((name.to_owned(), elsewhere(name, pid)));
    }
    answers
}

fn host() -> Vec<(String, Answer)> {
    let names = ["unshare user", "unshare mnt", "unshare net", "AF_PACKET", "mount"];
    names.into_iter().map(|name| (name.to_owned(), elsewhere(name, 1))).collect()
}

fn elsewhere(name: &str, pid: i32) -> Answer {
    let output = Command::new("/proc/self/exe").args(["try", name, &pid.to_string()]).output().map_err(text)?;
    assert!(output.status.success(), "try {name} ended with {}", output.status);
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    if answer.is_empty() { Ok(()) } else { Err(answer) }
}

fn attempt(name: &str, pid: i32) -> nix::Result<()> {
    let join = |flags| {
        let process = pidfd_open(rustix::process::Pid::from_raw(pid).expect("a pid"), PidfdFlags::empty());
        setns(process.map_err(errno)?, flags)
    };
    match name {
        "setns user" => join(CloneFlags::CLONE_NEWUSER),
        "setns net" => join(CloneFlags::CLONE_NEWNET),
        "setns mnt" => join(CloneFlags::CLONE_NEWNS),
        "setns pid" => join(CloneFlags::CLONE_NEWPID),
        "AF_PACKET in its network" => {
            join(CloneFlags::CLONE_NEWUSER)?;
            join(CloneFlags::CLONE_NEWNET)?;
            packet_socket()
        }
        "unshare user" => unshare(CloneFlags::CLONE_NEWUSER),
        "unshare mnt" => unshare(CloneFlags::CLONE_NEWNS),
        "unshare net" => unshare(CloneFlags::CLONE_NEWNET),
        "AF_PACKET" => packet_socket(),
        "mount" => {
            let opened = rustix::mount::fsopen("tmpfs", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC);
            opened.map(drop).map_err(errno)
        }
        other => panic!("no attempt is called {other}"),
    }
}

fn errno(error: rustix::io::Errno) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error())
}

fn packet_socket() -> nix::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None);
    socket.map(drop).map_err(errno)
}
