//! N: leaving the namespaces, or making others.

use std::fs;
use std::os::fd::AsRawFd as _;

use libc::{EACCES, ENOSPC, ENOSYS, EPERM, EROFS};

use crate::sys::{call, clone3, fork, pointer, pointer_mut};
use crate::{Broken, Check, Facts, Holds, Verdict, all, errno, read, refused, so};

pub(crate) const CHECKS: &[Check] = &[
    ("N01", processes),
    ("N03", ids),
    ("N04", |_| refused(call(libc::SYS_unshare, &[libc::CLONE_NEWUSER.into()]), &[EPERM, ENOSPC])),
    ("N05", |_| unshare()),
    ("N06", |_| refused(fork(libc::CLONE_NEWUSER), &[EPERM, ENOSPC])),
    ("N07", |_| refused(clone3(0), &[ENOSYS])),
    ("N08", |_| refused(clone3(libc::CLONE_NEWUSER as u64), &[ENOSYS])),
    ("N09", join_by_link),
    ("N10", join_by_pidfd),
    ("N11", |_| {
        let limit = read("/proc/sys/user/max_user_namespaces");
        so(limit.trim() == "0", || format!("it is {limit}"))
    }),
    ("N12", |_| refused(errno(fs::write("/proc/sys/user/max_user_namespaces", "9")), &[EROFS, EACCES])),
    ("N13", names_and_clock),
    ("N14", interprocess),
    ("N15", |_| {
        all([
            ("timens_offsets", errno(fs::write("/proc/self/timens_offsets", "monotonic 1000 0\n"))),
            ("ns_last_pid", errno(fs::write("/proc/sys/kernel/ns_last_pid", "1000"))),
        ]
        .map(|(file, result)| (file.to_owned(), refused(result, &[EPERM, EACCES, EROFS]))))
    }),
    ("N16", own_namespaces),
];

fn processes(_: &Facts) -> Verdict {
    let link = fs::read_link("/proc/self").map(|link| link.display().to_string()).unwrap_or_default();
    let me = std::process::id().to_string();
    let foreign: Vec<String> = fs::read_dir("/proc")
        .expect("list /proc")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !["ctst-shim", "ctst-probe", "ctst-escape", "exe"].contains(&name.as_str()))
        .collect();
    so(link == me && foreign.is_empty(), || format!("/proc/self is {link}, this is {me}, and there are {foreign:?}"))
}

fn ids(_: &Facts) -> Verdict {
    all(["uid_map", "gid_map"].map(|file| {
        let map = read(&format!("/proc/self/{file}"));
        let outer: Vec<&str> = map.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        let whole = map.lines().any(|line| line.trim_end().ends_with("4294967295"));
        (file.to_owned(), so(!outer.is_empty() && !outer.contains(&"0") && !whole, || format!("{map:?}")))
    }))
}

fn unshare() -> Verdict {
    let kinds = [libc::CLONE_NEWNS, libc::CLONE_NEWPID, libc::CLONE_NEWNET, libc::CLONE_NEWIPC, libc::CLONE_NEWUTS];
    all(kinds.map(|flag| (format!("{flag:#x}"), refused(call(libc::SYS_unshare, &[flag.into()]), &[EPERM]))))
}

const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

fn join_by_link(_: &Facts) -> Verdict {
    all(KINDS.map(|kind| {
        let opened = errno(fs::File::open(format!("/proc/1/ns/{kind}")));
        let entered = opened.map(|link| match call(libc::SYS_setns, &[link.as_raw_fd().into(), 0]) {
            Ok(_) => "entered",
            Err(_) => "opened",
        });
        let verdict = match entered {
            Ok(how) => Broken(how.to_owned()),
            Err(error) => refused(Err::<(), _>(error), &[EACCES, EPERM]),
        };
        (kind.to_owned(), verdict)
    }))
}

fn join_by_pidfd(_: &Facts) -> Verdict {
    match call(libc::SYS_pidfd_open, &[1, 0]) {
        Err(_) => Holds,
        Ok(pidfd) => all([libc::CLONE_NEWNS, libc::CLONE_NEWUSER, libc::CLONE_NEWNET]
            .map(|kind| (format!("{kind:#x}"), refused(call(libc::SYS_setns, &[pidfd, kind.into()]), &[EPERM])))),
    }
}

fn names_and_clock(_: &Facts) -> Verdict {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is after 1970");
    let time = [now.as_secs(), 0];
    let name = b"escaped";
    all([
        ("sethostname", call(libc::SYS_sethostname, &[pointer(name), 7])),
        ("setdomainname", call(libc::SYS_setdomainname, &[pointer(name), 7])),
        ("settimeofday", call(libc::SYS_settimeofday, &[pointer(&time), 0])),
        ("clock_settime", call(libc::SYS_clock_settime, &[0, pointer(&time)])),
    ]
    .map(|(name, result)| (name.to_owned(), refused(result, &[EPERM]))))
}

fn interprocess(_: &Facts) -> Verdict {
    let tables = ["shm", "msg", "sem"].map(|kind| {
        let table = read(&format!("/proc/sysvipc/{kind}"));
        (kind.to_owned(), so(table.lines().count() == 1, || table.clone()))
    });
    let queues = fs::read_dir("/dev/mqueue").map(Iterator::count);
    all(tables.into_iter().chain([("mqueue".to_owned(), so(matches!(queues, Ok(0)), || format!("{queues:?}")))]))
}

fn own_namespaces(facts: &Facts) -> Verdict {
    all(KINDS.into_iter().filter(|kind| *kind != "time").map(|kind| {
        let link = fs::read_link(format!("/proc/self/ns/{kind}")).expect("read a link").display().to_string();
        let foreign = facts.get("namespaces").is_some_and(|list| list.split(',').any(|other| other == link));
        (kind.to_owned(), so(!foreign && facts.contains_key("namespaces"), || format!("{link} is one of {facts:?}")))
    }))
}

/// Who owns each of these namespaces, as links of /proc/PID/ns: that of the user namespace itself, else of the one that it belongs
/// to (ioctl_nsfs(2)).
pub(crate) fn owners(files: &[&str]) {
    const NS_GET_USERNS: libc::c_long = 0xb701;
    const NS_GET_OWNER_UID: libc::c_long = 0xb704;
    for path in files {
        let Ok(file) = fs::File::open(path) else { continue };
        let mut fd = file.as_raw_fd().into();
        if !path.ends_with("/user") {
            fd = call(libc::SYS_ioctl, &[fd, NS_GET_USERNS]).unwrap_or_else(|error| panic!("{path}: error {error}"));
        }
        let mut owner = u32::MAX;
        let answer = call(libc::SYS_ioctl, &[fd, NS_GET_OWNER_UID, pointer_mut(&mut owner)]);
        answer.unwrap_or_else(|error| panic!("{path}: error {error}"));
        println!("{path} {owner}");
    }
}
