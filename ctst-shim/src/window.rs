//! The privileged window: the only lines that run with a capability over the host. It clones S under another owner and
//! writes the id maps, and nothing in it names a path, a name or a descriptor of the caller's: what it needs was read,
//! checked and laid out before, and the caller's one request is integers. `tests/window.strace` shows it call by call.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use containust_core::sys::{self, Alone, Namespaces, Side};
use containust_core::{capability, ids, lock};
use containust_policy::window;
use containust_shared::protocol::Failure;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::process::{getpid, getuid};

use crate::failure::{Step, refusal};

/// `statfs(2)`'s `f_type` of procfs.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
/// Of a path such as `4194304/uid_map`.
const MAX_PATH: usize = 32;
const ROOT: u32 = 0;

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
    capability::renounce().step("give up the capabilities", "")?;
    let passed = passed?;
    lock::no_files().step("give up files", "")?;
    let filter = window::filter().into_iter().map(|i| (i.code, i.jt, i.jf, i.k));
    sys::Filter::new(filter).install().step("install the system call filter", "")?;
    Ok(passed)
}

fn privileged(alone: &Alone, proc: BorrowedFd<'_>, wish: &Wish) -> Result<Side, Failure> {
    let own = getuid().as_raw();
    capability::raise(wish.held).step("raise the capabilities", "")?;
    // The effective id is what the kernel notes as the owner of a new user namespace.
    if let Some(owner) = wish.owner {
        ids::set_effective(owner).step("become the owner of the user namespace", "")?;
    }
    // With CLONE_PARENT S is the supervisor's child, not P's: P can exit, and the supervisor can wait for S.
    let namespaces = Namespaces::USER | Namespaces::PID | Namespaces::NET | Namespaces::OF_MY_PARENT;
    let side = sys::clone3(alone, namespaces, None).step("create the user, pid and network namespaces", "")?;
    let Side::Parent { pid, .. } = &side else { return Ok(side) };
    if wish.owner.is_some() {
        ids::set_effective(own).step("become the caller again", "")?;
    }
    // S is not dumpable: its map files belong to root.
    ids::set_for_files(ROOT).step("become root for files", "")?;
    // Groups first: with a user map S could already be somebody.
    write(proc, *pid, "gid_map", &wish.gid_map)?;
    write(proc, *pid, "uid_map", &wish.uid_map)?;
    ids::set_for_files(own).step("become the caller for files", "")?;
    Ok(side)
}

/// Writes a file of the process `pid`. Allocates nothing where it succeeds.
pub(crate) fn write(proc: BorrowedFd<'_>, pid: i32, name: &str, content: &str) -> Result<(), Failure> {
    let mut path = [0; MAX_PATH];
    let mut rest = path.as_mut_slice();
    write!(rest, "{pid}/{name}").step("name the file", name)?;
    let length = MAX_PATH.saturating_sub(rest.len());
    let path = path.get(..length).unwrap_or_default();
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = openat2(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), how).step("open", path)?;
    match rustix::io::write(&file, content.as_bytes()).step("write the id map", path)? {
        written if written == content.len() => Ok(()),
        _ => Err(refusal("write all of the id map", path)),
    }
}
