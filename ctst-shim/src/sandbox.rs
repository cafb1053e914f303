//! SANDBOX (process P) and what remains of it: S, pid 1 of the project.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use containust_core::link::{LOOPBACK, Links};
use containust_core::sys::{self, Alone, Side};
use containust_core::{capability, channel};
use containust_shared::exit;
use containust_shared::protocol::{self, Address, Failure, FromSandbox, FromShim, IdMap, Mapped, Sandbox, ToSandbox};
use containust_shared::wire;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::DumpableBehavior;

use crate::container;
use crate::failure::{Step, refusal};

const CLONE_PARENT: u64 = 0x0000_8000;
const CLONE_NEWNS: u64 = 0x0002_0000;
const CLONE_NEWCGROUP: u64 = 0x0200_0000;
const CLONE_NEWUTS: u64 = 0x0400_0000;
const CLONE_NEWIPC: u64 = 0x0800_0000;
const CLONE_NEWUSER: u64 = 0x1000_0000;
const CLONE_NEWPID: u64 = 0x2000_0000;
const CLONE_NEWNET: u64 = 0x4000_0000;

/// `statfs(2)`'s `f_type` of procfs.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// User namespaces that containers with an id of their own may take up, while S makes one.
const MAX_CONTAINERS: u32 = 4096;

/// Index and name of the project's bridge. Indexes are high, because a module like sit may have put interfaces of its own
/// at the low ones.
const BRIDGE: (u32, &str) = (10_000, "ctst0");
/// Index and name of a container's own interface.
pub(crate) const ETH0: (u32, &str) = (10_000, "eth0");

/// Serves one SANDBOX request on `channel`; in the process that becomes S this returns only when the project ends.
/// The result is an exit code.
pub(crate) fn serve(alone: &Alone, channel: OwnedFd) -> i32 {
    match create(alone, &channel) {
        Ok(code) => code,
        Err(failure) => {
            // If the supervisor is gone too there is nobody left to tell.
            match send(channel.as_fd(), &FromShim::Failed(failure), &[]) {
                Ok(()) | Err(_) => exit::TOOL,
            }
        }
    }
}

fn create(alone: &Alone, channel: &OwnedFd) -> Result<i32, Failure> {
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
            if first == 0 || count == 0 || first.checked_add(count).is_none() {
                return Err(refusal("map host id 0, no id, or ids beyond 4294967295", ""));
            }
        }
        IdMap::Single | IdMap::Helper if uid == 0 => {
            return Err(refusal("map root itself into a container", ""));
        }
        IdMap::Single | IdMap::Helper => {}
    }

    let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC).step("make a pipe", "")?;
    // With CLONE_PARENT S is the supervisor's child, not P's: P can exit, and the supervisor can wait for S.
    let namespaces = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_PARENT;
    match sys::clone3(alone, namespaces).step("create the user, pid and network namespaces", "")? {
        Side::Child => {
            drop(go_write);
            let mut go = [0];
            // P's death before the maps are written closes the pipe, and there is no project.
            match rustix::io::read(&go_read, &mut go) {
                Ok(1) => Ok(init(alone, channel, request.bridge)),
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

/// S: pid 1 of the project. Ends when its channel closes, and the kernel ends every container with it.
fn init(alone: &Alone, channel: &OwnedFd, address: Address) -> i32 {
    match prepare().and_then(|()| send(channel.as_fd(), &FromShim::Ready, &[]).step("answer", "")) {
        Ok(()) => {}
        Err(failure) => {
            return match send(channel.as_fd(), &FromShim::Failed(failure), &[]) {
                Ok(()) | Err(_) => exit::TOOL,
            };
        }
    }
    let mut network = Network { address, links: None };
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    loop {
        let (len, fds) = match channel::receive(channel, &mut buffer) {
            Ok(Some(message)) => message,
            Ok(None) => return 0,
            Err(_) => return exit::TOOL,
        };
        // Whatever is malformed, surplus or unknown is not from our supervisor: nothing is skipped, everything ends.
        let Ok(request) = wire::decode(buffer.get(..len).unwrap_or_default()) else { return exit::TOOL };
        let answered = match (request, fds.as_slice()) {
            (ToSandbox::Launch { id, bridged, alone: ids }, [container]) => {
                match fork_container(alone, &mut network, container, id, bridged, ids) {
                    Ok(pidfd) => send(channel.as_fd(), &FromSandbox::Launched { id }, &[pidfd.as_fd()]),
                    Err(failure) => send(channel.as_fd(), &FromSandbox::LaunchFailed { id, failure }, &[]),
                }
            }
            (ToSandbox::Dial { count }, []) => match sockets(count) {
                Ok(sockets) => {
                    let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
                    send(channel.as_fd(), &FromSandbox::Dialed, &fds)
                }
                Err(failure) => send(channel.as_fd(), &FromSandbox::DialFailed(failure), &[]),
            },
            _ => return exit::TOOL,
        };
        if answered.is_err() {
            return exit::TOOL;
        }
    }
}

fn prepare() -> Result<(), Failure> {
    // A tracer of this process would have all capabilities of the project: not even the caller shall be one.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("become undumpable", "")?;
    rustix::thread::set_no_new_privs(true).step("set no_new_privs", "")?;
    // Nobody here waits for a container's pid 1: the supervisor has its pidfd.
    sys::reap_automatically();
    limit_user_namespaces(0)
}

/// How many user namespaces there may be below the one of this process (namespaces(7)). With 0 no container makes
/// another, even if its filter let it try.
pub(crate) fn limit_user_namespaces(limit: u32) -> Result<(), Failure> {
    let file = "/proc/sys/user/max_user_namespaces";
    std::fs::write(file, limit.to_string()).step("limit nested user namespaces by", file)
}

fn fork_container(
    alone: &Alone,
    network: &mut Network,
    container: &OwnedFd,
    id: u32,
    bridged: bool,
    ids: Option<(u32, u32)>,
) -> Result<OwnedFd, Failure> {
    let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC).step("make a pipe", "")?;
    let mut namespaces = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
    if ids.is_some() {
        namespaces |= CLONE_NEWUSER;
        limit_user_namespaces(MAX_CONTAINERS)?;
    }
    let cloned = sys::clone3(alone, namespaces).step("create the container's namespaces", "");
    if ids.is_some() && !matches!(cloned, Ok(Side::Child)) {
        limit_user_namespaces(0)?;
    }
    match cloned? {
        Side::Child => {
            let kept = sys::close_all_but(&[container.as_fd(), go_read.as_fd()]);
            sys::exit_now(if kept.is_ok() { container::main(alone, container, &go_read, ids) } else { exit::TOOL });
        }
        Side::Parent { pid, pidfd } => {
            if bridged && let Err(failure) = network.connect(id, pid) {
                // The container waits for the byte below; without it, it ends by itself.
                drop(go_write);
                return Err(failure);
            }
            rustix::io::write(&go_write, &[1]).step("release the container", "")?;
            Ok(pidfd)
        }
    }
}

/// The project's network namespace, in which S lives.
struct Network {
    address: Address,
    /// With the bridge up, once a container needed it.
    links: Option<Links>,
}

impl Network {
    fn connect(&mut self, id: u32, pid: i32) -> Result<(), Failure> {
        let links = match &mut self.links {
            Some(links) => links,
            none => {
                let mut links = Links::open().step("open a netlink socket", "")?;
                links.up(LOOPBACK).step("set the link up", "lo")?;
                links.add_bridge(BRIDGE.0, BRIDGE.1).step("create the bridge", BRIDGE.1)?;
                links
                    .add_address(BRIDGE.0, self.address.ip, self.address.prefix)
                    .step("give an address to the bridge", BRIDGE.1)?;
                none.insert(links)
            }
        };
        let name = format!("veth{id}");
        let index = BRIDGE.0.checked_add(id).ok_or_else(|| refusal("number the link", &name))?;
        links.add_veth((index, &name), BRIDGE.0, ETH0, pid).step("create the veth pair", &name)
    }
}

/// TCP sockets born in this process's network namespace, for somebody outside to connect.
pub(crate) fn sockets(count: u8) -> Result<Vec<OwnedFd>, Failure> {
    if count == 0 || usize::from(count) > protocol::MAX_FDS {
        return Err(refusal("make none or too many sockets", ""));
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    (0..count)
        .map(|_| {
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).step("make a socket", "")
        })
        .collect()
}

/// The one message of type `T` that may come now, without descriptors.
fn receive_one<T: wire::Message>(channel: &OwnedFd) -> Result<T, Failure> {
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    match channel::receive(channel, &mut buffer).step("receive the request", "")? {
        Some((len, fds)) if fds.is_empty() => wire::decode(buffer.get(..len).unwrap_or_default())
            .map_err(|error| refusal(&format!("read the request ({error})"), "")),
        Some(_) => Err(refusal("take a request with descriptors", "")),
        None => Err(refusal("wait for a request: the caller is gone", "")),
    }
}

/// Encodes and sends one message.
pub(crate) fn send<T: wire::Message>(channel: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = wire::encode(message).map_err(io::Error::other)?;
    channel::send(channel, &bytes, fds)
}
