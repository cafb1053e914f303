//! P: serves SANDBOX. One request of integers, one clone, the id maps, and the end. What remains is S (`project.rs`). Or it
//! serves GC: some control groups removed, and the end.

use std::os::fd::{AsFd, OwnedFd};

use containust_core::entry::Entered;
use containust_core::sys::{self, Alone, Namespaces, Side};
use containust_core::{capability, entry, trusted};
use containust_helper::failure::{Step, refusal};
use containust_helper::loss::{self, Program};
use containust_helper::message::{receive_one, send};
use containust_helper::policy::Policy;
use containust_policy::subid::{self, MAX_FILE, Maps, Range};
use containust_policy::window::{CAPABILITIES, REASONS};
use containust_shared::exit;
use containust_shared::protocol::{self, Failure, FromShim, IdMap, Mapped, ToShim};
use rustix::fs::Mode;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::group::Parent;
use crate::project;
use crate::window::{self, Wish, open_proc};

/// This one.
const PROGRAM: Program = Program { name: "ctst-shim", capabilities: &REASONS };

/// Serves one request; in the process that becomes S this returns only when the project ends.
/// The result is an exit code.
pub(crate) fn serve(alone: &Alone, entered: &Entered) -> i32 {
    match create(alone, entered) {
        Ok(code) => code,
        Err(failure) => {
            tell_failure(&entered.channel, failure);
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

fn create(alone: &Alone, entered: &Entered) -> Result<i32, Failure> {
    let &Entered { ref channel, held, .. } = entered;
    let strict = held == CAPABILITIES && !rustix::process::getuid().is_root();
    let policy = Policy::open(strict);
    let authority = entry::check_authority(held).step("use ctst-shim", "");
    // Also where it is refused: who closes a socket with something unread takes its own last words back (unix(7)).
    let request: ToShim = receive_one(channel)?;
    let (in_file, policy) = (authority?, policy?);
    let (ToShim::Sandbox(protocol::Sandbox { version, .. }) | ToShim::Gc { version }) = request;
    if version != protocol::VERSION {
        return Err(refusal("serve another version of ctst: reinstall ctst and ctst-shim together", ""));
    }
    let request = match request {
        ToShim::Sandbox(request) => request,
        ToShim::Gc { .. } if strict => return collect(channel, held, &policy),
        ToShim::Gc { .. } => return Err(refusal("remove control groups without file capabilities", "")),
    };
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let proc = open_proc()?;
    let parent = if strict {
        let rules = policy.rules()?;
        if request.grouped || rules.demands().is_some() { Parent::find(&rules)? } else { None }
    } else {
        None
    };
    let place = parent.map(|parent| parent.place(uid)).transpose()?;
    let mut wish = Wish { held, owner: None, uid_map: String::new(), gid_map: String::new(), place };
    let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC).step("make a pipe", "")?;
    let side = match (request.map, uid) {
        (IdMap::Range { first, count }, 0) => {
            let own = policy.root_range()?;
            if (first, count) != (own.first, own.count) {
                let wanted = format!("{count} ids from {first}");
                return Err(refusal(&format!("map other host ids than {} from {}:", own.count, own.first), wanted));
            }
            let map = format!("0 {first} {count}\n");
            // What belongs to root is out of reach for everybody else anyway.
            (wish.uid_map, wish.gid_map) = (map.clone(), map);
            window::pass(alone, &proc, &wish)?
        }
        (IdMap::Granted, 1..) if strict => {
            let Maps { uids, gids, owner } = granted(uid, gid)?;
            (wish.owner, wish.uid_map, wish.gid_map) = (Some(owner), uids.to_string(), gids.to_string());
            if wish.place.is_some() {
                // What is made there has its mode from here; S and C have masks of their own.
                rustix::process::umask(Mode::empty());
            }
            window::pass(alone, &proc, &wish)?
        }
        (IdMap::Granted, 1..) => {
            let cause = loss::cause(&PROGRAM, held, in_file)?;
            return Err(refusal(&format!("run in strict mode: {cause}"), ""));
        }
        (IdMap::Single | IdMap::Helper, 1..) if strict => {
            return Err(refusal("map other ids than the granted ones in strict mode", ""));
        }
        (IdMap::Single | IdMap::Helper, 1..) => {
            capability::renounce().step("give up the capabilities", "")?;
            let namespaces = Namespaces::USER | Namespaces::PID | Namespaces::NET | Namespaces::OF_MY_PARENT;
            sys::clone3(alone, namespaces, None).step("create the user, pid and network namespaces", "")?
        }
        (_, 0) => return Err(refusal("map root itself into a container", "")),
        (IdMap::Range { .. }, _) => {
            return Err(refusal("map a range of ids directly for a caller that is not root", ""));
        }
    };
    match side {
        Side::Child => {
            drop((go_write, proc));
            let mut go = [0];
            // P's death before the maps are written closes the pipe, and there is no project.
            match rustix::io::read(&go_read, &mut go) {
                Ok(1) => Ok(project::main(alone, entered, &policy, wish.place)),
                Ok(_) | Err(_) => Ok(exit::TOOL),
            }
        }
        Side::Parent { pid, pidfd } => {
            let created = FromShim::Created { pid: pid.unsigned_abs() };
            send(channel.as_fd(), &created, &[pidfd.as_fd()]).step("answer", "")?;
            match request.map {
                IdMap::Range { .. } | IdMap::Granted => {}
                IdMap::Single => {
                    // Without CAP_SETGID the kernel takes a gid map only after this; else a caller could leave a group by
                    // which something is forbidden to him.
                    window::write(proc.as_fd(), pid, "setgroups", "deny")?;
                    window::write(proc.as_fd(), pid, "gid_map", &format!("0 {gid} 1\n"))?;
                    window::write(proc.as_fd(), pid, "uid_map", &format!("0 {uid} 1\n"))?;
                }
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

/// GC.
fn collect(channel: &OwnedFd, held: u64, policy: &Policy) -> Result<i32, Failure> {
    let (removed, left) = match Parent::find(&policy.rules()?)? {
        Some(parent) => {
            let (dead, left) = parent.dead(rustix::process::getuid().as_raw())?;
            (window::collect(held, &parent, &dead)?, left)
        }
        None => (0, 0),
    };
    send(channel.as_fd(), &FromShim::Collected { removed, left }, &[]).step("answer", "")?;
    Ok(0)
}

/// The maps that the administrator's files allow this caller.
fn granted(uid: u32, gid: u32) -> Result<Maps, Failure> {
    let read = |name: &str| {
        let path = format!("/etc/{name}");
        trusted::open("/etc", name).and_then(|file| trusted::read(file, MAX_FILE)).step("read", path)
    };
    let passwd = read("passwd")?;
    let name = subid::user_name(&passwd, uid);
    let range = |file: &str| -> Result<Range, Failure> {
        subid::granted(&read(file)?, uid, name)
            .map_err(|problem| refusal(&format!("map the ids that /etc/{file} grants: {problem}"), ""))
    };
    Maps::new((uid, gid), range("subuid")?, range("subgid")?)
        .map_err(|problem| refusal(&format!("map the ids of /etc/subuid and /etc/subgid: {problem}"), ""))
}
