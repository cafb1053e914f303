//! G: cgroups and what can be used up.

use std::fs;
use std::io::Write as _;

use libc::{EACCES, ENOENT, ENOSPC, EPERM, EROFS};

use crate::sys::mount;
use crate::{Broken, Check, Holds, Verdict, all, errno, read, refused, so};

pub(crate) const CHECKS: &[Check] = &[
    ("G01", |_| refused(errno(fs::create_dir("/sys/fs/cgroup/escape")), &[EROFS, EACCES, EPERM, ENOENT])),
    ("G02", |_| {
        let groups = read("/proc/self/cgroup");
        so(groups.lines().all(|line| line.ends_with(":/")), || groups.replace('\n', " "))
    }),
    ("G03", |_| {
        all([c"cgroup", c"cgroup2"]
            .map(|kind| (format!("{kind:?}"), refused(mount(c"none", c"/tmp", kind, 0), &[EPERM]))))
    }),
    ("G07", |_| memory()),
];

/// /dev/shm takes 64 MiB and no more, and one file cannot pretend to be larger.
fn memory() -> Verdict {
    let path = "/dev/shm/escape";
    let filled = fs::File::create(path).and_then(|mut file| {
        let block = vec![1; 1 << 20];
        (0..80).try_for_each(|_| file.write_all(&block))
    });
    let size = fs::metadata(path).map_or(0, |meta| meta.len());
    drop(fs::remove_file(path));
    match errno(filled) {
        Err(ENOSPC) if size <= 64 << 20 => Holds,
        other => Broken(format!("{other:?} after {size} bytes")),
    }
}
