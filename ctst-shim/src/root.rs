//! The container's root file system. One sequence, told from top to bottom, in which the order is the security: sources
//! are opened while the host's tree is there, everything is mounted detached and restricted, the roots are exchanged,
//! and only then is the image, which may be hostile, looked at by path: always beneath the new root.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use containust_core::mount::{self, Attributes, DATA_ONLY, NOSUID_NODEV, READ_ONLY};
use containust_core::sys;
use containust_core::weak::{Layer, weak};
use containust_helper::failure::{Step, refusal};
use containust_helper::message::send;
use containust_shared::names;
use containust_shared::protocol::{Failure, FromContainer, Mount, Plan, Source, Sysctl};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2};
use rustix::io::Errno;

use crate::user;

/// `statfs(2)`'s `f_type` of procfs.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
/// mount(2) options longer than this are refused by `fsconfig(2)`.
const MAX_OPTION: usize = 255;

/// Symbolic links on the way to one place, as many as the kernel follows (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Device nodes of every container, with the numbers they must have (`Documentation/admin-guide/devices.txt`).
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Mounts of device nodes.
const NODE: Attributes = Attributes::MOUNT_ATTR_NOSUID.union(Attributes::MOUNT_ATTR_NOEXEC);

/// The device of file systems in user space; no container has it.
const FUSE: (&str, u32, u32) = ("fuse", 10, 229);

/// What of /proc is not for a container: memory, keys, and the host's hardware and timers. Files read as empty, folders
/// are empty.
const PROC_MASKED: [&str; 10] =
    ["kcore", "keys", "latency_stats", "timer_list", "sched_debug", "kallsyms", "interrupts", "asound", "scsi", "acpi"];
/// What of /proc is read-only, because root of a user namespace could set parts of it.
const PROC_READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];
/// What of /sys is hidden; all of it is read-only.
const SYS_MASKED: [&str; 6] =
    ["firmware", "kernel/security", "kernel/debug", "kernel/tracing", "fs/bpf", "devices/virtual/powercap"];

/// What outlives the building of the root.
pub(crate) struct Root {
    /// The root of the container's own devpts.
    pub(crate) devpts: OwnedFd,
    /// The root of the container's own procfs.
    pub(crate) proc: OwnedFd,
    /// There, the folder of IPv6's settings by link, before it became read-only; none: the plan needs none, or the kernel has no IPv6.
    pub(crate) ipv6: Option<OwnedFd>,
}

/// Builds the root and enters it. The process must be alone in a new mount namespace, and pid 1 of a new pid namespace.
/// Afterwards its ids are 0 if `as_root`, else as they were.
pub(crate) fn build(plan: &Plan, as_root: bool, channel: BorrowedFd<'_>) -> Result<Root, Failure> {
    mount::make_private().step("make private the mounts below", "/")?;

    // The host's side: every path is opened again and compared with what the caller saw.
    let mut layers = plan.layers.iter().map(open_source).collect::<Result<Vec<_>, _>>()?;
    let upper = plan.upper.as_ref().map(open_source).transpose()?;
    let work = plan.work.as_ref().map(open_source).transpose()?;
    let mut binds = Vec::new();
    for mount in &plan.mounts {
        let (source, device, attributes) = match mount {
            Mount::Bind { source, readonly: true, .. } => (source, false, NOSUID_NODEV | READ_ONLY),
            Mount::Bind { source, .. } => (source, false, NOSUID_NODEV),
            Mount::Device { source, .. } => (source, true, NODE),
            Mount::Tmpfs { .. } | Mount::File { .. } => continue,
        };
        let place = open_checked(source, device)?;
        binds.push(mount::copy(&place, !device, attributes).step("prepare the mount of", &source.path)?);
    }
    let nodes = NODES.iter().map(device).collect::<Result<Vec<_>, _>>()?;
    let fuse = plan.fuse.then(fuse_device).transpose()?;

    // overlayfs acts with the ids of whoever mounts it. A caller that is root gets here as himself, unmapped: that let
    // him open the paths above, and ends now.
    if as_root {
        sys::set_ids(0, 0).step("become root of the user namespace", "")?;
    }
    for (layer, source) in layers.iter().zip(&plan.layers) {
        let access = rustix::fs::Access::EXEC_OK;
        rustix::fs::accessat(layer, ".", access, AtFlags::EACCESS).step("enter the image layer", &source.path)?;
    }
    if let Some(device) = fuse {
        layers.push(fuse_layer(device, channel)?);
    }
    let root = match (&upper, &work) {
        _ if layers.is_empty() => {
            mount::new("tmpfs", &[("mode", "0755"), ("size", "1m")], NOSUID_NODEV).step("mount a tmpfs as", "/")?
        }
        (Some(upper), Some(work)) => overlay(&layers, upper, work)?,
        // A tree that is this container's alone, or read-only. Places to mount on are created in it.
        (None, None) if layers.len() == 1 && !plan.fuse => {
            let tree = layers.first().ok_or_else(|| refusal("find the root", ""))?;
            mount::copy(tree, false, NOSUID_NODEV).step("prepare the mount of the root on", "/")?
        }
        _ => return Err(refusal("mount an image without a writable layer on", "/")),
    };
    // Made before the old root goes: the kernel gives a new procfs or sysfs only to who can see an unmasked one.
    let proc = mount::new("proc", &[], DATA_ONLY).step("mount a procfs (is the host's /proc masked?) on", "/proc")?;
    let sys = mount::new("sysfs", &[], DATA_ONLY | READ_ONLY).step("mount a sysfs on", "/sys")?;

    let leaked = weak(Layer::Leak).then(|| rustix::fs::open("/", OFlags::PATH, Mode::empty()));
    mount::pivot(&root).step("pivot into the new root (a host whose root is an initramfs cannot)", "/")?;
    drop((layers, upper, work));
    std::mem::forget(leaked);
    let root =
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step("open", "/")?;
    let root = root.as_fd();

    for (name, mount) in [("proc", &proc), ("sys", &sys)] {
        mount::attach(mount, real_directory(root, name)?).step("attach", name)?;
    }
    let (dev, devpts) = devices(root, nodes, plan.shm)?;
    for sysctl in &plan.sysctls {
        set(&proc, sysctl)?;
    }
    let ipv6 = if plan.addresses.is_empty() { None } else { inside(&proc, "sys/net/ipv6/conf")? };
    hide(&proc, &PROC_MASKED)?;
    for path in PROC_READ_ONLY {
        if let Some(place) = inside(&proc, path)? {
            let copy = mount::copy(&place, true, READ_ONLY).step("copy the mount of", path)?;
            mount::attach(copy, place).step("make read-only in /proc", path)?;
        }
    }
    hide(&sys, &SYS_MASKED)?;

    let mut binds = binds.into_iter();
    for wish in &plan.mounts {
        let (target, mount, directory) = match wish {
            Mount::Bind { target, source, .. } | Mount::Device { target, source } => {
                let mount = binds.next().ok_or_else(|| refusal("find the prepared mount of", &source.path))?;
                let stat = rustix::fs::fstat(&mount).step("inspect", &source.path)?;
                let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                (target, mount, directory)
            }
            Mount::Tmpfs { target, size, mode } => {
                let (size, mode) = (size.to_string(), format!("{mode:o}"));
                let mut options = vec![("mode", mode.as_str())];
                if size != "0" {
                    options.push(("size", &size));
                }
                (target, mount::new("tmpfs", &options, NOSUID_NODEV).step("make the tmpfs for", target)?, true)
            }
            // Last of all: nothing can be mounted below a file, and their owner may stand in a passwd file of a mount's.
            Mount::File { .. } => continue,
        };
        mount::attach(mount, ensure(root, target, directory)?).step("mount on", target)?;
    }
    files(root, &proc, plan)?;
    mount::restrict(dev.as_fd(), READ_ONLY).step("make read-only", "/dev")?;
    if !plan.process.cwd.is_empty() {
        ensure(root, &plan.process.cwd, true)?;
    }
    if plan.readonly {
        mount::restrict(root, READ_ONLY).step("make read-only", "/")?;
    }
    Ok(Root { devpts, proc, ipv6 })
}

/// Sets a kernel setting of the container's own namespaces.
fn set(proc: &OwnedFd, Sysctl { name, value }: &Sysctl) -> Result<(), Failure> {
    if !names::is_namespaced_sysctl(name) {
        return Err(refusal("set a kernel setting that is not the container's own:", name));
    }
    let path: Vec<u8> = b"sys/".iter().chain(name).map(|b| if *b == b'.' { b'/' } else { *b }).collect();
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let file = openat2(proc, path.as_slice(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), how)
        .step("find among the kernel settings of a container", name)?;
    match rustix::io::write(&file, value).step("set (does the kernel take this value?)", name)? {
        written if written == value.len() => Ok(()),
        _ => Err(refusal("set, because the kernel took a part of the value only:", name)),
    }
}

/// Files that are nowhere but in memory: on a ramfs, because what lies on a tmpfs may be swapped out. Each is a read-only
/// mount of its own, so that it can be anywhere, and nothing but these mounts can reach the ramfs.
fn files(root: BorrowedFd<'_>, proc: &OwnedFd, plan: &Plan) -> Result<(), Failure> {
    let wanted = plan.mounts.iter().filter_map(|mount| match mount {
        Mount::File { target, mode, owner, content } => {
            let owner = if owner.is_empty() { &plan.process.user } else { owner };
            Some(user::look_up(owner, &[]).map(|owner| (target, *mode, owner, content)))
        }
        Mount::Bind { .. } | Mount::Device { .. } | Mount::Tmpfs { .. } => None,
    });
    // Owners are looked up while nothing of this is there to be found.
    let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
    if wanted.is_empty() {
        return Ok(());
    }
    let store = mount::new("ramfs", &[("mode", "0700")], DATA_ONLY).step("make a ramfs for", "secrets")?;
    // The kernel copies only what is mounted. Over /proc nobody looks: there is no other process here yet.
    mount::attach(&store, proc).step("mount for a moment on", "/proc")?;
    let mut copies = Vec::new();
    for (number, (target, mode, owner, content)) in wanted.into_iter().enumerate() {
        let owner = (Some(rustix::fs::Uid::from_raw(owner.uid)), Some(rustix::fs::Gid::from_raw(owner.gid)));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&store, number.to_string(), flags, Mode::empty()).step("create", target)?;
        let mut rest = content.as_slice();
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest).step("write", target)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        rustix::fs::fchown(&file, owner.0, owner.1)
            .step("give to its owner (is it mapped in this user namespace?)", target)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777)).step("set the mode of", target)?;
        copies.push((target, mount::copy(&file, false, DATA_ONLY | READ_ONLY).step("prepare the mount of", target)?));
    }
    mount::detach(&store).step("unmount from", "/proc")?;
    for (target, copy) in copies {
        mount::attach(copy, ensure(root, target, false)?).step("mount on", target)?;
    }
    Ok(())
}

/// Opens a file or directory of the host, as [`open_checked`].
fn open_source(source: &Source) -> Result<OwnedFd, Failure> {
    open_checked(source, false)
}

/// Opens a path of the host, and makes sure that it is what the caller checked, and a character device if and only if that is wanted.
fn open_checked(source: &Source, device: bool) -> Result<OwnedFd, Failure> {
    let fd = mount::open_source(Path::new(std::ffi::OsStr::from_bytes(&source.path))).step("open", &source.path)?;
    let stat = rustix::fs::fstat(&fd).step("inspect", &source.path)?;
    if (stat.st_dev, stat.st_ino) != (source.dev, source.ino) && !weak(Layer::Sources) {
        return Err(refusal("mount what was replaced by something else since it was checked:", &source.path));
    }
    let kind = FileType::from_raw_mode(stat.st_mode);
    if device && kind != FileType::CharacterDevice {
        return Err(refusal("give as a device what is no character device:", &source.path));
    }
    let special = !device && matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    if special || rustix::fs::fstatfs(&fd).step("inspect", &source.path)?.f_type == PROC_SUPER_MAGIC {
        return Err(refusal("mount a device or a part of a procfs:", &source.path));
    }
    Ok(fd)
}

fn overlay(layers: &[OwnedFd], upper: &OwnedFd, work: &OwnedFd) -> Result<OwnedFd, Failure> {
    // By descriptor: no path to escape, none to swap. `lowerdir+` would take descriptors too, from Linux 6.13 on.
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower = layers.iter().map(name).collect::<Vec<_>>().join(":");
    if lower.len() > MAX_OPTION {
        return Err(refusal("mount an image of so many layers", layers.len().to_string()));
    }
    let (upper, work) = (name(upper), name(work));
    let options = [("lowerdir", lower.as_str()), ("upperdir", &upper), ("workdir", &work), ("userxattr", "")];
    mount::new("overlay", &options, NOSUID_NODEV)
        .step("mount an overlay (the writable layer must not be on another overlay or a network file system) on", "/")
}

/// The device that a FUSE file system is served by. It belongs to the user namespace of whoever opens it, which has to be the
/// one that it is mounted in.
fn fuse_device() -> Result<OwnedFd, Failure> {
    let (name, ..) = FUSE;
    let path = format!("/dev/{name}");
    // Looked at before it is opened, because opening a device does something.
    node(&FUSE)?;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let device = rustix::fs::open(&path, flags, Mode::empty()).step("open", &path)?;
    let stat = rustix::fs::fstat(&device).step("inspect", &path)?;
    is_device(&stat, &FUSE, &path)?;
    Ok(device)
}

/// Mounts the file system of a device and hands that to the supervisor. Whatever is asked of it from now on waits for who
/// serves it.
fn fuse_layer(device: OwnedFd, channel: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    // In the ids of this user namespace.
    let (fd, user) = (device.as_raw_fd().to_string(), rustix::process::geteuid().as_raw().to_string());
    let group = rustix::process::getegid().as_raw().to_string();
    let options = [
        ("fd", fd.as_str()),
        ("rootmode", "40000"),
        ("user_id", &user),
        ("group_id", &group),
        // Processes of the container are of any of its ids, and the kernel itself compares them with modes.
        ("allow_other", ""),
        ("default_permissions", ""),
        ("ro", ""),
    ];
    let layer = mount::new("fuse", &options, NOSUID_NODEV | READ_ONLY).step("mount a FUSE file system for", "/")?;
    // Before Linux 6.15 an overlay takes no layer that is mounted nowhere. This place goes with the old root.
    let place = mount::open_source(Path::new("/dev")).step("open", "/dev")?;
    mount::attach(&layer, place).step("mount a FUSE file system for a moment on", "/dev")?;
    send(channel, &FromContainer::Fuse, &[device.as_fd()]).step("tell the supervisor", "")?;
    Ok(layer)
}

/// One of the host's device nodes, which is what its name says.
fn node(named: &(&str, u32, u32)) -> Result<OwnedFd, Failure> {
    let path = format!("/dev/{}", named.0);
    let node = mount::open_source(Path::new(&path)).step("open", &path)?;
    is_device(&rustix::fs::fstat(&node).step("inspect", &path)?, named, &path)?;
    Ok(node)
}

fn is_device(stat: &Stat, (_, major, minor): &(&str, u32, u32), path: &str) -> Result<(), Failure> {
    let is_it = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(*major, *minor);
    if is_it { Ok(()) } else { Err(refusal("find the device that the name stands for:", path)) }
}

/// A detached copy of one of the host's device nodes.
fn device(named: &(&str, u32, u32)) -> Result<OwnedFd, Failure> {
    let path = format!("/dev/{}", named.0);
    let node = node(named)?;
    mount::copy(&node, false, NODE).step("prepare the mount of", &path)
}

/// /dev: a small tmpfs with six nodes of the host, a devpts, a shm and an mqueue of its own. Returns it, still writable, and the devpts.
fn devices(root: BorrowedFd<'_>, nodes: Vec<OwnedFd>, shm: u64) -> Result<(OwnedFd, OwnedFd), Failure> {
    let dev = mount::new("tmpfs", &[("mode", "0755"), ("size", "64k")], NODE).step("make the tmpfs for", "/dev")?;
    mount::attach(&dev, real_directory(root, "dev")?).step("attach", "/dev")?;
    for ((name, ..), node) in NODES.iter().zip(nodes) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::openat(&dev, *name, flags, Mode::empty()).step("create in /dev", name)?;
        mount::attach(node, place).step("mount in /dev", name)?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        rustix::fs::symlinkat(target, &dev, name).step("create in /dev", name)?;
    }
    let devpts = mount::new("devpts", &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620")], NODE)
        .step("make the file system for", "/dev/pts")?;
    let size = if shm == 0 { "64m".to_owned() } else { shm.to_string() };
    let shm =
        mount::new("tmpfs", &[("mode", "1777"), ("size", &size)], DATA_ONLY).step("make the tmpfs for", "/dev/shm")?;
    let mqueue = mount::new("mqueue", &[], DATA_ONLY).step("make the file system for", "/dev/mqueue")?;
    for (name, mount) in [("pts", &devpts), ("shm", &shm), ("mqueue", &mqueue)] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).step("create in /dev", name)?;
        let place = inside(&dev, name)?.ok_or_else(|| refusal("find in /dev", name))?;
        mount::attach(mount, place).step("mount in /dev", name)?;
    }
    Ok((dev, devpts))
}

/// Covers files with the container's /dev/null, whose number was checked, and folders with an empty tmpfs.
fn hide(mount: &OwnedFd, paths: &[&str]) -> Result<(), Failure> {
    if weak(Layer::Masks) {
        return Ok(());
    }
    for path in paths {
        let Some(place) = inside(mount, path)? else { continue };
        let stat = rustix::fs::fstat(&place).step("inspect", path)?;
        let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            mount::new("tmpfs", &[("mode", "0555"), ("size", "4k")], DATA_ONLY | READ_ONLY)
        } else {
            // Of the mount in our own /dev, where nothing but this sequence has been.
            mount::open_source(Path::new("/dev/null")).and_then(|null| mount::copy(&null, false, Attributes::empty()))
        };
        mount::attach(cover.step("make the cover for", path)?, place).step("hide", path)?;
    }
    Ok(())
}

/// A place in one of our own file systems: no symbolic link, nothing of another mount. None where the kernel has no such
/// file.
fn inside(mount: &OwnedFd, path: &str) -> Result<Option<OwnedFd>, Failure> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    match openat2(mount, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), how) {
        Ok(place) => Ok(Some(place)),
        // Not there, or (automounts such as kernel/debug) already another file system, which we did not mount.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error).step("find", path),
    }
}

/// A directory of the image's root for one of our file systems, created if missing. An image in which it is a symbolic
/// link or a file would have us mount elsewhere: refused.
fn real_directory(root: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Failure> {
    match rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).step("create in the image", name),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(root, name, flags, Mode::empty(), how).step("find in the image a plain directory", name)
}

/// The place where a mount of the author's goes, following the image's links only within the root; created, with the
/// directories above it, if missing.
///
/// Links are followed here and not by the kernel: `openat2(2)` with RESOLVE_IN_ROOT answers EAGAIN to a `..` while anything
/// is renamed or mounted anywhere on the host, so that a neighbour could keep containers from starting. `..` is the
/// directory that was entered before, whatever has been moved since.
fn ensure(root: BorrowedFd<'_>, target: &[u8], directory: bool) -> Result<OwnedFd, Failure> {
    let names = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|b| *b == b'/').filter(|name| !name.is_empty()).rev().map(<[u8]>::to_vec).collect()
    };
    let mut ahead = names(target);
    let plain = !ahead.iter().any(|name| matches!(name.as_slice(), b"." | b".."));
    if target.first() != Some(&b'/') || ahead.is_empty() || !plain {
        return Err(refusal("mount on what is not an absolute, plain path below /:", target));
    }
    let mut entered: Vec<OwnedFd> = Vec::new();
    let mut links: u32 = 0;
    while let Some(name) = ahead.pop() {
        match name.as_slice() {
            b"." => continue,
            b".." => {
                entered.pop();
                continue;
            }
            _ => {}
        }
        let parent = entered.last().map_or(root, |fd| fd.as_fd());
        let open = || {
            rustix::fs::openat(
                parent,
                name.as_slice(),
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let found = match open() {
            Err(Errno::NOENT) => {
                if directory || !ahead.is_empty() {
                    rustix::fs::mkdirat(parent, name.as_slice(), Mode::from_raw_mode(0o755)).step("create", &name)?;
                } else {
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(parent, name.as_slice(), flags, Mode::from_raw_mode(0o644))
                        .step("create", &name)?;
                }
                open().step("find", &name)?
            }
            other => other.step("find", &name)?,
        };
        if rustix::fs::fstatfs(&found).step("inspect", &name)?.f_type == PROC_SUPER_MAGIC && !weak(Layer::Targets) {
            return Err(refusal("mount over a part of /proc:", target));
        }
        let stat = rustix::fs::fstat(&found).step("inspect", &name)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            entered.push(found);
            continue;
        }
        links = links.saturating_add(1);
        if links > MAX_LINKS {
            return Err(refusal("follow so many symbolic links to", target));
        }
        let to = rustix::fs::readlinkat(&found, "", Vec::new()).step("read the link", &name)?;
        if to.to_bytes().first() == Some(&b'/') {
            entered.clear();
        }
        ahead.extend(names(to.to_bytes()));
    }
    entered.pop().ok_or_else(|| refusal("mount on what leads to /:", target))
}
