//! P: pid 1 and other processes, and what this one may.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;

use libc::{EACCES, EPERM, c_long};

use crate::sys::{call, pointer, pointer_mut};
use crate::{Check, Facts, Verdict, all, errno, read, refused, so};

/// The 11 capabilities of the default profile: the set is policy/snapshots/capabilities.txt.
const DEFAULT: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31;

pub(crate) const CHECKS: &[Check] = &[
    ("P01", |_| {
        let open = |flags| errno(OpenOptions::new().read(true).custom_flags(flags).open("/proc/1/exe"));
        all([
            ("write", errno(OpenOptions::new().write(true).open("/proc/1/exe")).map(drop)),
            ("O_PATH", open(libc::O_PATH).map(drop)),
            ("readlink", errno(fs::read_link("/proc/1/exe")).map(drop)),
        ]
        .map(|(how, result)| (how.to_owned(), refused(result, &[EACCES, EPERM]))))
    }),
    ("P02", |_| {
        all(["mem", "maps", "auxv"]
            .map(|file| (file.to_owned(), refused(errno(fs::read(format!("/proc/1/{file}"))), &[EACCES, EPERM]))))
    }),
    ("P03", |_| {
        let open = refused(errno(File::open("/proc/1/fd/3")), &[EACCES, EPERM]);
        all([("list".to_owned(), refused(errno(fs::read_dir("/proc/1/fd")), &[EACCES, EPERM])), ("3".to_owned(), open)])
    }),
    ("P04", |_| refused(errno(fs::read("/proc/1/environ")), &[EACCES, EPERM])),
    ("P05", |_| {
        all(["root", "cwd"]
            .map(|link| (link.to_owned(), refused(errno(fs::read_dir(format!("/proc/1/{link}/"))), &[EACCES, EPERM]))))
    }),
    ("P06", |_| {
        // Attaching would stop it: only where the gentler way is closed.
        match refused(ptrace(libc::PTRACE_SEIZE.into(), 1), &[EPERM]) {
            Verdict::Holds => refused(ptrace(libc::PTRACE_ATTACH.into(), 1), &[EPERM]),
            other => other,
        }
    }),
    ("P07", |_| refused(ptrace(libc::PTRACE_TRACEME.into(), 0), &[EPERM])),
    ("P08", |_| {
        let (mut byte, me) = ([0_u8], c_long::from(std::process::id()));
        let local = [pointer_mut(&mut byte), 1];
        let vector = [pointer(&local), 1, pointer(&local), 1, 0];
        all([("readv", libc::SYS_process_vm_readv), ("writev", libc::SYS_process_vm_writev)].map(|(how, number)| {
            let [a, b, c, d, e] = vector;
            (how.to_owned(), refused(call(number, &[me, a, b, c, d, e]), &[EPERM]))
        }))
    }),
    ("P09", |_| {
        let pidfd = call(libc::SYS_pidfd_open, &[std::process::id().into(), 0]).unwrap_or(-1);
        refused(call(libc::SYS_pidfd_getfd, &[pidfd, 1, 0]), &[EPERM])
    }),
    ("P10", |_| so(status("NoNewPrivs") == "1", || status("NoNewPrivs"))),
    ("P11", |_| all(["CapEff", "CapPrm"].map(|set| (set.to_owned(), within(set, DEFAULT))))),
    ("P12", |_| within("CapBnd", DEFAULT)),
    ("P13", |_| within("CapInh", 0)),
    ("P14", |_| within("CapAmb", 0)),
    ("P15", |_| refused(raise(), &[EPERM])),
    ("P16", groups),
];

pub(crate) fn status(field: &str) -> String {
    let text = read("/proc/self/status");
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap_or_default().trim().to_owned()
}

fn within(set: &str, allowed: u64) -> Verdict {
    let held = u64::from_str_radix(&status(set), 16).unwrap_or(u64::MAX);
    so(held & !allowed == 0, || format!("{held:#x}"))
}

fn ptrace(request: c_long, pid: c_long) -> Result<c_long, i32> {
    call(libc::SYS_ptrace, &[request, pid, 0, 0])
}

/// Tries to get every capability back.
fn raise() -> Result<c_long, i32> {
    // _LINUX_CAPABILITY_VERSION_3, this process; effective, permitted, inheritable, in two halves.
    let (header, data) = ([0x2008_0522_u32, 0], [u32::MAX, u32::MAX, 0, 0x1ff, 0x1ff, 0]);
    call(libc::SYS_capset, &[pointer(&header), pointer(&data)])
}

fn groups(facts: &Facts) -> Verdict {
    let allowed = facts.get("groups").map(String::as_str).unwrap_or_default();
    let held = status("Groups");
    let foreign: Vec<&str> =
        held.split_whitespace().filter(|group| !allowed.split(',').any(|other| other == *group)).collect();
    so(foreign.is_empty(), || format!("{foreign:?}"))
}
