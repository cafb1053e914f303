//! F: files, mounts and devices.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use libc::{EACCES, EINVAL, ENODEV, ENOENT, ENOTDIR, EPERM, EROFS, c_long};

use crate::sys::{call, mount, pointer, pointer_mut};
use crate::{Broken, Check, Facts, Holds, Skipped, Verdict, all, errno, read, refused, so};

/// Our own six nodes, by number.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

pub(crate) const CHECKS: &[Check] = &[
    ("F01", |_| refused(errno(fs::create_dir("/escape")), &[EROFS])),
    ("F02", |_| refused(mount(c"none", c"/tmp", c"tmpfs", 0), &[EPERM])),
    ("F03", |_| refused(mount(c"/", c"/tmp", c"none", libc::MS_BIND | libc::MS_REC), &[EPERM])),
    ("F04", |_| {
        all([c"/", c"/proc/sys", c"/sys", c"/dev"].map(|place| {
            (format!("{place:?}"), refused(mount(c"none", place, c"none", libc::MS_REMOUNT | libc::MS_BIND), &[EPERM]))
        }))
    }),
    ("F05", |_| {
        let places = [c"/proc/kcore", c"/proc/keys", c"/proc/timer_list", c"/sys/firmware", c"/proc"];
        let there = places.into_iter().filter(|place| place.to_str().is_ok_and(|path| Path::new(path).exists()));
        all(there.map(|place| (format!("{place:?}"), refused(call(libc::SYS_umount2, &[pointer(place), 0]), &[EPERM]))))
    }),
    ("F06", |_| refused(call(libc::SYS_pivot_root, &[pointer(c"/tmp"), pointer(c"/tmp")]), &[EPERM])),
    ("F07", |_| refused(call(libc::SYS_chroot, &[pointer(c"/tmp")]), &[EPERM])),
    ("F08", |_| {
        all([c"tmpfs", c"proc", c"overlay"]
            .map(|kind| (format!("{kind:?}"), refused(call(libc::SYS_fsopen, &[pointer(kind), 0]), &[EPERM]))))
    }),
    // AT_FDCWD and OPEN_TREE_CLONE, with AT_RECURSIVE.
    ("F09", |_| refused(call(libc::SYS_open_tree, &[-100, pointer(c"/"), 1 | 0x8000]), &[EPERM])),
    ("F10", |_| refused(call(libc::SYS_move_mount, &[-100, pointer(c"/tmp"), -100, pointer(c"/run"), 0]), &[EPERM])),
    ("F11", |_| {
        // Clears MOUNT_ATTR_RDONLY.
        let attributes = [0_u64, 1, 0, 0];
        refused(call(libc::SYS_mount_setattr, &[-100, pointer(c"/"), 0, pointer(&attributes), 32]), &[EPERM])
    }),
    ("F12", |_| {
        all([c"/proc/sys", c"/dev/null", c"/"].map(|place| {
            (
                format!("{place:?}"),
                refused(call(libc::SYS_umount2, &[pointer(place), libc::MNT_DETACH.into()]), &[EPERM]),
            )
        }))
    }),
    ("F13", open_by_handle),
    ("F14", |_| {
        let cwd = errno(std::env::current_dir());
        so(cwd.as_ref().is_ok_and(|cwd| cwd.is_absolute()), || format!("{cwd:?}"))
    }),
    ("F15", |_| above_root()),
    ("F16", |_| descriptors()),
    ("F17", |_| through_descriptors()),
    ("F18", |_| masked()),
    ("F19", |_| settings()),
    ("F20", |_| node("sda", libc::S_IFBLK, 8, 0)),
    ("F21", |_| node("mem", libc::S_IFCHR, 1, 1)),
    ("F22", |_| node("kmsg", libc::S_IFCHR, 1, 11)),
    ("F23", |_| dev_list()),
    ("F24", |_| {
        all(NODES.map(|(name, major, minor)| {
            let path = format!("/dev/{name}");
            let right = fs::metadata(&path)
                .is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == libc::makedev(major, minor));
            (path, so(right, || "it is something else".to_owned()))
        }))
    }),
    ("F25", |_| absent("/dev/fuse")),
    ("F26", |_| absent("/dev/kvm")),
    ("F27", |_| absent("/dev/vsock")),
    ("F28", |_| absent("/dev/net/tun")),
    ("F29", |_| {
        let loose: Vec<String> =
            mounts().into_iter().filter(|mount| !mount.has("nosuid")).map(|mount| mount.target).collect();
        so(loose.is_empty(), || format!("{loose:?}"))
    }),
    ("F30", |_| {
        // What lies over a masked file is the container's /dev/null.
        let ours = |mount: &Mount| mount.target == "/dev" || mount.target.starts_with("/dev/") || mount.root == "/null";
        let loose: Vec<String> = mounts()
            .into_iter()
            .filter(|mount| !mount.has("nodev") && !ours(mount))
            .map(|mount| mount.target)
            .collect();
        so(loose.is_empty(), || format!("{loose:?}"))
    }),
    ("F31", |facts| {
        let text = read("/proc/self/mountinfo");
        let mut foreign = facts.get("outside").map(String::as_str).unwrap_or_default().split(',');
        let found = foreign.find(|path| !path.is_empty() && text.contains(path));
        so(found.is_none() && facts.contains_key("outside"), || format!("{found:?}"))
    }),
    ("F32", |_| {
        let text = read("/proc/self/mountinfo");
        let tied: Vec<&str> =
            text.lines().filter(|line| line.contains(" shared:") || line.contains(" master:")).collect();
        so(tied.is_empty(), || format!("{tied:?}"))
    }),
    ("F33", |_| so(mounts().len() < 64, || format!("{}", mounts().len()))),
    ("F34", |_| file_capability()),
    ("F35", |_| {
        let path = fresh("trusted");
        let set = set_attribute(&path, c"trusted.overlay.opaque", b"y");
        drop(fs::remove_file(&path));
        refused(set, &[EPERM])
    }),
    ("F36", |_| refused(call(libc::SYS_swapon, &[pointer(c"/dev/zero"), 0]), &[EPERM])),
    ("F37", |_| refused(call(libc::SYS_quotactl, &[0x80_0002 << 8, pointer(c"/dev/root"), 0, 0]), &[EPERM])),
    ("F38", |_| {
        let (mut handle, mut id) = ([128_u32; 34], 0_i32);
        let arguments = [-100, pointer(c"/"), pointer_mut(&mut handle), pointer_mut(&mut id), 0];
        refused(call(libc::SYS_name_to_handle_at, &arguments), &[EPERM])
    }),
    ("F39", |_| refused(call(libc::SYS_fanotify_init, &[0, 0]), &[EPERM])),
    ("F55", |_| {
        let kinds = [c"ext4", c"squashfs", c"erofs", c"debugfs", c"tracefs", c"bpf", c"securityfs", c"devtmpfs"];
        all(kinds.map(|kind| (format!("{kind:?}"), refused(mount(c"/dev/zero", c"/tmp", kind, 0), &[EPERM, ENODEV]))))
    }),
];

struct Mount {
    root: String,
    target: String,
    options: Vec<String>,
}

impl Mount {
    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|other| other == option)
    }
}

fn mounts() -> Vec<Mount> {
    let text = read("/proc/self/mountinfo");
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let field = |at: usize| fields.get(at).map(|field| (*field).to_owned()).unwrap_or_default();
        Mount { root: field(3), target: field(4), options: field(5).split(',').map(str::to_owned).collect() }
    };
    text.lines().map(line).collect()
}

/// "Shocker": a handle made up for the root directory of a file system.
fn open_by_handle(_: &Facts) -> Verdict {
    // Eight bytes, FILEID_INO32_GEN, inode 2, any generation.
    let handle = [8_u32, 1, 2, 0];
    let Ok(root) = call(libc::SYS_open, &[pointer(c"/tmp"), 0, 0]) else { return Broken("no /tmp".to_owned()) };
    refused(call(libc::SYS_open_by_handle_at, &[root, pointer(&handle), 0]), &[EPERM])
}

fn inode(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn above_root() -> Verdict {
    let root = inode("/");
    let ways = ["/..", "/../../../..", "/proc/self/root/..", "/proc/self/cwd/../../..", "/tmp/../..", "/dev/../.."];
    all(ways.map(|way| (way.to_owned(), so(inode(way) == root && root.is_some(), || format!("{:?}", inode(way))))))
}

fn descriptors() -> Verdict {
    // The list's own descriptor is a link to itself.
    let own = format!("/proc/{}/fd", std::process::id());
    let open: Vec<String> = fs::read_dir("/proc/self/fd")
        .expect("list descriptors")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().parse::<i32>().is_ok_and(|number| number > 2))
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.display().to_string())
        .filter(|target| *target != own)
        .collect();
    so(open.is_empty(), || format!("{open:?}"))
}

fn through_descriptors() -> Verdict {
    let root = inode("/");
    let outside: Vec<i32> = (0..64)
        .filter(|number| {
            let above = inode(&format!("/proc/self/fd/{number}/../../../.."));
            above.is_some() && above != root
        })
        .collect();
    so(outside.is_empty(), || format!("descriptors {outside:?} lead out"))
}

fn masked() -> Verdict {
    const FILES: [&str; 8] = [
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/proc/kallsyms",
        "/proc/interrupts",
        "/proc/kmsg",
    ];
    const FOLDERS: [&str; 8] = [
        "/proc/asound",
        "/proc/scsi",
        "/proc/acpi",
        "/sys/firmware",
        "/sys/kernel/security",
        "/sys/kernel/debug",
        "/sys/fs/bpf",
        "/sys/devices/virtual/powercap",
    ];
    let files = FILES.map(|path| {
        let verdict = match (fs::metadata(path), errno(fs::read(path))) {
            (Err(_), _) | (_, Err(EPERM | EACCES)) => Holds,
            (Ok(meta), Ok(bytes)) => so(bytes.is_empty() && meta.rdev() == libc::makedev(1, 3), || {
                format!("{} bytes come out of device {:#x}", bytes.len(), meta.rdev())
            }),
            (_, Err(error)) => Broken(format!("error {error}")),
        };
        (path.to_owned(), verdict)
    });
    let folders = FOLDERS.map(|path| {
        let count = fs::read_dir(path).map(Iterator::count);
        (path.to_owned(), so(!matches!(count, Ok(1..)), || format!("{count:?} entries")))
    });
    all(files.into_iter().chain(folders))
}

fn settings() -> Verdict {
    const FILES: [&str; 23] = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/shmmax",
        "/proc/sys/kernel/sysrq",
        "/proc/sys/vm/panic_on_oom",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sys/fs/mqueue/msg_max",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv4/conf/lo/forwarding",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/proc/acpi/wakeup",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/ksm/run",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
        "/sys/class/net/lo/mtu",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/release_agent",
        "/sys/fs/cgroup/memory.max",
        "/sys/module/kernel/parameters/panic",
    ];
    all(FILES.map(|path| {
        let opened = errno(OpenOptions::new().write(true).open(path));
        (path.to_owned(), refused(opened, &[EROFS, EACCES, EPERM, ENOENT]))
    }))
}

fn node(name: &str, kind: libc::mode_t, major: u32, minor: u32) -> Verdict {
    let path = format!("/tmp/escape-{name}\0");
    let (mode, device) = (c_long::from(kind | 0o666), libc::makedev(major, minor) as c_long);
    let made = call(libc::SYS_mknodat, &[-100, pointer(path.as_str()), mode, device]);
    drop(fs::remove_file(path.trim_end_matches('\0')));
    refused(made, &[EPERM])
}

fn dev_list() -> Verdict {
    let mut wanted: BTreeSet<String> = NODES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    wanted.extend(["fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm", "mqueue"].map(str::to_owned));
    let found: BTreeSet<String> = fs::read_dir("/dev")
        .expect("list /dev")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    so(found == wanted, || format!("{:?}", found.symmetric_difference(&wanted)))
}

fn absent(path: &str) -> Verdict {
    refused(errno(OpenOptions::new().read(true).write(true).open(path)), &[ENOENT, ENOTDIR])
}

/// An empty file of ours on a tmpfs.
fn fresh(name: &str) -> String {
    let path = format!("/tmp/escape-{name}");
    fs::write(&path, "").expect("write to /tmp");
    path
}

fn set_attribute(path: &str, name: &std::ffi::CStr, value: &[u8]) -> Result<c_long, i32> {
    let path = std::ffi::CString::new(path).expect("no NUL");
    let size = c_long::try_from(value.len()).expect("short");
    call(libc::SYS_setxattr, &[pointer(path.as_c_str()), pointer(name), pointer(value), size, 0])
}

/// A program that asks for every capability. Root of a user namespace may write the attribute; it must do nothing.
fn file_capability() -> Verdict {
    let path = "/tmp/escape-capable";
    if let Err(error) = fs::copy("/proc/self/exe", path) {
        return Broken(format!("copy this program: {error}"));
    }
    drop(fs::set_permissions(path, fs::Permissions::from_mode(0o755)));
    // VFS_CAP_REVISION_2 with the effective bit; permitted and inheritable, in two halves.
    let value: Vec<u8> = [0x0200_0001_u32, u32::MAX, 0, 0x1ff, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let set = set_attribute(path, c"security.capability", &value);
    let ran = Command::new(path).arg("capabilities").output();
    drop(fs::remove_file(path));
    let held = match &ran {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        // It asks for more than there is.
        Err(error) if error.raw_os_error() == Some(EPERM) => return Holds,
        Err(error) => return Broken(format!("start it: {error}")),
    };
    let before = crate::privileges::status("CapEff");
    match set {
        Ok(_) | Err(EPERM) => {
            let mask = |hexadecimal: &str| u64::from_str_radix(hexadecimal, 16).unwrap_or(u64::MAX);
            so(mask(&held) & !mask(&before) == 0, || format!("{held}, more than {before}"))
        }
        Err(error) => Skipped(format!("no file capabilities on this tmpfs: error {error}")),
    }
}

/// Exchanges what `FOLDER/a` and `FOLDER/b` are, `rounds` times or, for 0, without an end.
pub(crate) fn swap(folder: &str, rounds: u64) {
    let path = |name: &str| format!("{}\0", Path::new(folder).join(name).display());
    let (a, b) = (path("a"), path("b"));
    println!("swapping");
    let mut round = 0;
    while rounds == 0 || round < rounds {
        // RENAME_EXCHANGE.
        let swapped = call(libc::SYS_renameat2, &[-100, pointer(a.as_str()), -100, pointer(b.as_str()), 2]);
        assert!(matches!(swapped, Ok(_) | Err(ENOENT | EINVAL)), "renameat2: {swapped:?}");
        round += 1;
    }
}

/// Gets hold of what the next process executes that is not of the image, and tries to write to it until that works or there is
/// a file `FOLDER/stop`; says what it was and what the kernel answered. `FOLDER/looks` and `FOLDER/held` say how far it is. What
/// it waits for lives for less than a millisecond: this tries the next pids instead of listing /proc.
pub(crate) fn overwrite(folder: &str) {
    let told = |name: &str| Path::new(folder).join(name);
    fs::write(told("looks"), "").expect("write a file");
    let mut next = std::process::id() + 1;
    let held = loop {
        if told("stop").exists() {
            return;
        }
        let look = |pid: u32| {
            // Not readable until it has executed something, and the file of whoever forked it before.
            while let Ok(file) =
                OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(format!("/proc/{pid}/exe"))
            {
                let target = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
                // From memory it is `/memfd:ctst-shim (deleted)`.
                if target.display().to_string().contains("ctst-shim") {
                    return Some((file, target));
                }
                if target.starts_with("/bin") || target.starts_with("/usr") {
                    break;
                }
            }
            None
        };
        if let Some(held) = (next..next + 64).find_map(look) {
            break held;
        }
        if let Some(pid) = (next..next + 64).rev().find(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
            next = pid;
        }
    };
    let (file, target) = held;
    fs::write(told("held"), "").expect("write a file");
    let mut answers: Vec<String> = Vec::new();
    loop {
        // Not O_TRUNC, which would empty it before the kernel says ETXTBSY.
        let opened = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let answer = match opened.and_then(|mut file| file.write_all(b"#!/bin/false\n")) {
            Ok(()) => "written".to_owned(),
            Err(error) => format!("error {}", error.raw_os_error().unwrap_or_default()),
        };
        if !answers.contains(&answer) {
            answers.push(answer);
        }
        if answers.iter().any(|answer| answer == "written") || told("stop").exists() {
            break;
        }
    }
    println!("held {}: {}", target.display(), answers.join(", "));
}
