//! The privileged window: the only lines that run with a capability over the host. It makes a control group for the project
//! where the policy names a place, clones S under another owner and writes the id maps; or, called for that alone, it removes
//! control groups of projects that ended. Nothing in it names a path, a name or a descriptor of the caller's: what it needs was read,
//! checked and laid out before, and the caller's one request is integers. `tests/window.strace` and the files beside it show it call by
//! call.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use containust_core::sys::{self, Alone, Namespaces, Side};
use containust_core::{capability, ids, lock};
use containust_helper::failure::{Step, refusal};
use containust_policy::window;
use containust_shared::protocol::Failure;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat2, unlinkat};
use rustix::io::Errno;
use rustix::process::{getgid, getpid, getuid};

use crate::group::{Parent, Place};
use crate::project::has_ended;

/// `statfs(2)`'s `f_type` of procfs.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
/// Of a path such as `4194304/uid_map` or `4294967294/cgroup.subtree_control`.
const MAX_PATH: usize = 64;
const ROOT: u32 = 0;
/// Of a group in which root and, by the group root, nobody but this process makes others.
const SHARED: Mode = Mode::from_raw_mode(0o775);

/// What the window carries out.
pub(crate) struct Wish {
    /// Capabilities to use, all of them permitted.
    pub(crate) held: u64,
    /// Who owns the user namespace; none: who called.
    pub(crate) owner: Option<u32>,
    /// As the kernel reads it from a file.
    pub(crate) uid_map: String,
    /// As the kernel reads it from a file.
    pub(crate) gid_map: String,
    /// Where the project's control group is made. Only with an owner.
    pub(crate) place: Option<Place>,
}

/// /proc of this process's pid namespace.
pub(crate) fn open_proc() -> Result<OwnedFd, Failure> {
    let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step("open", "/proc")?;
    if rustix::fs::fstatfs(&proc).step("inspect", "/proc")?.f_type != PROC_SUPER_MAGIC {
        return Err(refusal("find a proc file system at", "/proc"));
    }
    // That of other processes would have us write the maps of a stranger.
    let own = rustix::fs::readlinkat(&proc, "self", Vec::new()).step("read the link", "/proc/self")?;
    if own.to_bytes() != getpid().as_raw_nonzero().to_string().as_bytes() {
        return Err(refusal("find this process in", "/proc"));
    }
    Ok(proc)
}

/// Goes through the window. In S it returns at once; in P only when everything is given up, read back, and locked.
/// A failure is one of P, which has given up everything, too.
pub(crate) fn pass(alone: &Alone, proc: &OwnedFd, wish: &Wish) -> Result<Side, Failure> {
    let passed = privileged(alone, proc.as_fd(), wish);
    if matches!(passed, Ok(Side::Child)) {
        return passed;
    }
    close()?;
    passed
}

/// Removes control groups, all of them empty: the kernel keeps others. Returns how many are gone.
pub(crate) fn collect(held: u64, parent: &Parent, groups: &[String]) -> Result<u32, Failure> {
    let removed = remove(held, parent, groups);
    close()?;
    removed
}

/// Gives everything up, wherever the window ended, reads that back, and locks this process.
fn close() -> Result<(), Failure> {
    capability::renounce().step("give up the capabilities", "")?;
    // The real ids need no capability.
    ids::set_group_for_files(getgid().as_raw()).step("become the caller's group for files", "")?;
    ids::set_for_files(getuid().as_raw()).step("become the caller for files", "")?;
    lock::no_files().step("give up files", "")?;
    let filter = window::filter().into_iter().map(|i| (i.code, i.jt, i.jf, i.k));
    sys::Filter::new(filter).install().step("install the system call filter", "")
}

fn remove(held: u64, parent: &Parent, groups: &[String]) -> Result<u32, Failure> {
    capability::raise(held).step("raise the capabilities", "")?;
    ids::want_for_files(ROOT, Some(ROOT));
    let removed = groups.iter().filter(|name| unlinkat(&parent.dir, name.as_str(), AtFlags::REMOVEDIR).is_ok());
    Ok(u32::try_from(removed.count()).unwrap_or(u32::MAX))
}

fn privileged(alone: &Alone, proc: BorrowedFd<'_>, wish: &Wish) -> Result<Side, Failure> {
    let own_group = getgid().as_raw();
    capability::raise(wish.held).step("raise the capabilities", "")?;
    let mut leaf = None;
    if let Some(owner) = wish.owner {
        if let Some(Place { parent, user, .. }) = &wish.place {
            ids::want_for_files(ROOT, Some(ROOT));
            make(parent, user)?;
            put(parent.dir.as_fd(), user.as_bytes(), "cgroup.subtree_control", &parent.given, "divide the group")?;
        }
        // The effective id is what the kernel notes as the owner of a new user namespace, and makes that for files, too. It stays
        // to P's end: of a process that ends, and has no memory any more, kernels forget that it is not dumpable, and whoever
        // has all of its ids could take its descriptors from it.
        ids::set_effective(owner).step("become the owner of the user namespace", "")?;
        if let Some(Place { parent, own, leaf: inner, .. }) = &wish.place {
            make(parent, own)?;
            // To put a process into a group takes the right to write to that, and to the one that it shares with where the
            // process comes from, which is root's. So S is born with root's id for files, and gives it up first of all.
            ids::want_for_files(ROOT, None);
            make(parent, inner)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            leaf = Some(openat2(&parent.dir, inner.as_str(), flags, Mode::empty(), WITHIN).step("open", inner)?);
            ids::set_group_for_files(own_group).step("become the caller's group for files", "")?;
        }
    }
    // With CLONE_PARENT S is the supervisor's child, not P's: P can exit, and the supervisor can wait for S.
    let namespaces = Namespaces::USER | Namespaces::PID | Namespaces::NET | Namespaces::OF_MY_PARENT;
    let side = sys::clone3(alone, namespaces, leaf.as_ref().map(AsFd::as_fd))
        .step("create the user, pid and network namespaces", "")?;
    let Side::Parent { pid, pidfd } = &side else { return Ok(side) };
    // S is not dumpable: its map files belong to root.
    ids::set_for_files(ROOT).step("become root for files", "")?;
    let maps = (open_of(proc, *pid, "gid_map")?, open_of(proc, *pid, "uid_map")?);
    // The caller can kill S and wait for it, and then its pid can be a stranger's. Who lives now had it all the time.
    if has_ended(pidfd) {
        return Err(refusal("write the id maps: the project's pid 1 was killed", ""));
    }
    // Groups first: with a user map S could already be somebody.
    write_all(&maps.0, &wish.gid_map, "write the id map", b"gid_map")?;
    write_all(&maps.1, &wish.uid_map, "write the id map", b"uid_map")?;
    Ok(side)
}

/// How names below a directory are followed here.
const WITHIN: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// Makes a control group; that of the caller is there from his first project on.
fn make(parent: &Parent, path: &str) -> Result<(), Failure> {
    match mkdirat(&parent.dir, path, SHARED) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).step("make the control group", path),
    }
}

/// Writes a file of the process `pid`. Allocates nothing where it succeeds.
pub(crate) fn write(proc: BorrowedFd<'_>, pid: i32, name: &str, content: &str) -> Result<(), Failure> {
    write_all(&open_of(proc, pid, name)?, content, "write the id map", name.as_bytes())
}

/// Opens a file of the process `pid` for writing.
fn open_of(proc: BorrowedFd<'_>, pid: i32, name: &str) -> Result<OwnedFd, Failure> {
    let mut digits = [0; MAX_PATH];
    let mut rest = digits.as_mut_slice();
    write!(rest, "{pid}").step("name the file", name)?;
    let length = MAX_PATH.saturating_sub(rest.len());
    open_in(proc, digits.get(..length).unwrap_or_default(), name)
}

/// Writes the file `name` of a folder in `dir`, at once.
fn put(dir: BorrowedFd<'_>, folder: &[u8], name: &str, content: &str, what: &str) -> Result<(), Failure> {
    write_all(&open_in(dir, folder, name)?, content, what, name.as_bytes())
}

fn open_in(dir: BorrowedFd<'_>, folder: &[u8], name: &str) -> Result<OwnedFd, Failure> {
    let mut path = [0; MAX_PATH];
    let mut rest = path.as_mut_slice();
    rest.write_all(folder).and_then(|()| write!(rest, "/{name}")).step("name the file", name)?;
    let length = MAX_PATH.saturating_sub(rest.len());
    let path = path.get(..length).unwrap_or_default();
    openat2(dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), WITHIN).step("open", path)
}

fn write_all(file: &OwnedFd, content: &str, what: &str, name: &[u8]) -> Result<(), Failure> {
    match rustix::io::write(file, content.as_bytes()).step(what, name)? {
        written if written == content.len() => Ok(()),
        _ => Err(refusal("write all of what is to be written to", name)),
    }
}
