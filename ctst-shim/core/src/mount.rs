//! Mounts by descriptor (`fsopen(2)`, `open_tree(2)`, `move_mount(2)`, `mount_setattr(2)`): made detached, with all
//! their restrictions, and only then attached where somebody could see them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::sys;
use crate::weak::{Layer, weak};

pub use rustix::mount::MountAttrFlags as Attributes;

/// No setuid program, no device node.
pub const NOSUID_NODEV: Attributes = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);
/// No setuid program, no device node, no program at all.
pub const DATA_ONLY: Attributes = NOSUID_NODEV.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
/// Read-only.
pub const READ_ONLY: Attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;

/// `attributes`, but for those that a weakened build leaves out.
fn kept(mut attributes: Attributes) -> Attributes {
    attributes.set(READ_ONLY, attributes.contains(READ_ONLY) && !weak(Layer::ReadOnly));
    if weak(Layer::NosuidNodev) { attributes.difference(NOSUID_NODEV) } else { attributes }
}

/// Cuts all propagation of this mount namespace.
///
/// # Errors
/// The kernel's.
pub fn make_private() -> io::Result<()> {
    Ok(rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// A new file system, mounted nowhere yet.
///
/// # Errors
/// The kernel's: EPERM where the user namespace may not, EINVAL for an option, ENODEV for an unknown type.
pub fn new(kind: &str, options: &[(&str, &str)], attributes: Attributes) -> io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(&fs, *key)?;
        } else {
            rustix::mount::fsconfig_set_string(&fs, *key, *value)?;
        }
    }
    rustix::mount::fsconfig_create(&fs)?;
    Ok(rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, kept(attributes))?)
}

/// A copy of the mount tree below `place`, detached, with `attributes` on all of it.
///
/// # Errors
/// EINVAL for a descriptor of another mount namespace, and the kernel's others.
pub fn copy(place: impl AsFd, recursive: bool, attributes: Attributes) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(place, "", flags)?;
    if !attributes.is_empty() {
        sys::mount_setattr(tree.as_fd(), recursive, kept(attributes).bits().into())?;
    }
    Ok(tree)
}

/// Adds attributes to the mount (not to those below it) whose root `mount` refers to.
///
/// # Errors
/// The kernel's.
pub fn restrict(mount: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    sys::mount_setattr(mount, false, kept(attributes).bits().into())
}

/// Attaches a detached mount on `target`.
///
/// # Errors
/// ENOTDIR where one is a directory and the other is not, and the kernel's others.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// Makes the detached mount `root` the root of this mount namespace and lets go of the old one.
///
/// # Errors
/// EINVAL where the old root is an initramfs, and the kernel's others.
pub fn pivot(root: impl AsFd) -> io::Result<()> {
    // Any directory serves as the place from which to pivot, and /proc exists wherever we got this far.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&root, "", CWD, "/proc", flags)?;
    rustix::process::fchdir(&root)?;
    // pivot_root(2): with the same directory twice the old root lies over the new one, until it is detached.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Takes `mount`, which is attached where nothing else uses it, out of the tree; its descriptor goes on working. Afterwards
/// the working directory is `/`.
///
/// # Errors
/// The kernel's.
pub fn detach(mount: impl AsFd) -> io::Result<()> {
    rustix::process::fchdir(&mount)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Opens a host path for mounting: no symbolic link on the way, no magic link.
///
/// # Errors
/// ELOOP where the path holds a symbolic link, ENOENT, EACCES.
pub fn open_source(path: &Path) -> io::Result<OwnedFd> {
    let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how)?)
}
