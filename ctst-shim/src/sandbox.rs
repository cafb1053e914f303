//! P: serves SANDBOX. One request of fixed size, one clone, the id maps, and the end. What remains is S (`project.rs`).

use std::os::fd::{AsFd, OwnedFd};

use containust_core::capability;
use containust_core::sys::{self, Alone, Namespaces, Side};
use containust_shared::exit;
use containust_shared::protocol::{self, Failure, FromShim, IdMap, Mapped, Sandbox};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::failure::{Step, refusal};
use crate::message::{receive_one, send};
use crate::policy::Policy;
use crate::project;

/// `statfs(2)`'s `f_type` of procfs.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Serves one SANDBOX request on `channel`; in the process that becomes S this returns only when the project ends.
/// The result is an exit code.
pub(crate) fn serve(alone: &Alone, channel: OwnedFd) -> i32 {
    match create(alone, &channel) {
        Ok(code) => code,
        Err(failure) => {
            tell_failure(&channel, failure);
            exit::TOOL
        }
    }
}

/// Says why there is no project. If the supervisor is gone too there is nobody left to tell.
pub(crate) fn tell_failure(channel: &OwnedFd, failure: Failure) {
    match send(channel.as_fd(), &FromShim::Failed(failure), &[]) {
        Ok(()) | Err(_) => {}
    }
}

fn create(alone: &Alone, channel: &OwnedFd) -> Result<i32, Failure> {
    let policy = Policy::open(false)?;
    let request: Sandbox = receive_one(channel)?;
    if request.version != protocol::VERSION {
        return Err(refusal("serve another version of ctst: reinstall ctst and ctst-shim together", ""));
    }
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let held = capability::permitted().step("read the capabilities of ctst-shim", "")?;
    if uid != 0 && held != 0 {
        return Err(refusal(
            "run with file capabilities (strict mode is not supported yet): remove them from",
            "ctst-shim",
        ));
    }
    match request.map {
        IdMap::Range { first, count } => {
            if uid != 0 {
                return Err(refusal("map a range of ids directly for a caller that is not root", ""));
            }
            let own = policy.root_range()?;
            if (first, count) != (own.first, own.count) {
                let wanted = format!("{count} ids from {first}");
                return Err(refusal(&format!("map other host ids than {} from {}:", own.count, own.first), wanted));
            }
        }
        IdMap::Single | IdMap::Helper if uid == 0 => {
            return Err(refusal("map root itself into a container", ""));
        }
        IdMap::Single | IdMap::Helper => {}
    }

    let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC).step("make a pipe", "")?;
    // With CLONE_PARENT S is the supervisor's child, not P's: P can exit, and the supervisor can wait for S.
    let namespaces = Namespaces::USER | Namespaces::PID | Namespaces::NET | Namespaces::OF_MY_PARENT;
    match sys::clone3(alone, namespaces, None).step("create the user, pid and network namespaces", "")? {
        Side::Child => {
            drop(go_write);
            let mut go = [0];
            // P's death before the maps are written closes the pipe, and there is no project.
            match rustix::io::read(&go_read, &mut go) {
                Ok(1) => Ok(project::main(alone, channel, request.bridge, &policy)),
                Ok(_) | Err(_) => Ok(exit::TOOL),
            }
        }
        Side::Parent { pid, pidfd } => {
            let created = FromShim::Created { pid: pid.unsigned_abs() };
            send(channel.as_fd(), &created, &[pidfd.as_fd()]).step("answer", "")?;
            match request.map {
                IdMap::Single => write_maps(pid, (uid, 1), (gid, 1), true)?,
                IdMap::Range { first, count } => write_maps(pid, (first, count), (first, count), false)?,
                IdMap::Helper => {
                    let mapped: Mapped = receive_one(channel)?;
                    if mapped.version != protocol::VERSION {
                        return Err(refusal("serve another version of ctst", ""));
                    }
                }
            }
            rustix::io::write(&go_write, &[1]).step("release the project", "")?;
            Ok(0)
        }
    }
}

/// Maps id 0 of the user namespace of `pid` and what follows to the host's ids (`user_namespaces(7)`).
fn write_maps(pid: i32, uids: (u32, u32), gids: (u32, u32), deny_setgroups: bool) -> Result<(), Failure> {
    let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step("open", "/proc")?;
    if rustix::fs::fstatfs(&proc).step("inspect", "/proc")?.f_type != PROC_SUPER_MAGIC {
        return Err(refusal("find a proc file system at", "/proc"));
    }
    let write = |file: &str, content: &str| {
        let path = format!("{pid}/{file}");
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        openat2(&proc, path.as_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), how)
            .and_then(|file| rustix::io::write(&file, content.as_bytes()))
            .map(drop)
            .step("write the id map", format!("/proc/{path}"))
    };
    if deny_setgroups {
        // Without CAP_SETGID the kernel takes a gid map only after this; else a caller could leave a group by which
        // something is forbidden to him.
        write("setgroups", "deny")?;
    }
    write("gid_map", &format!("0 {} {}\n", gids.0, gids.1))?;
    write("uid_map", &format!("0 {} {}\n", uids.0, uids.1))
}
