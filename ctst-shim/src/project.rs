//! S: pid 1 of a project, with no capability outside the project's user namespace. It forks containers, gives each its
//! place on the bridge, and makes sockets; it reads no path, no name and no argument.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use containust_core::entry::Entered;
use containust_core::sys::{self, Alone, Namespaces, Side};
use containust_core::weak::{Layer, weak};
use containust_core::{channel, ids};
use containust_helper::failure::{Step, refusal};
use containust_helper::message::{crowded, is_crowded, send};
use containust_helper::policy::Policy;
use containust_shared::protocol::{Bridge, Failure, FromSandbox, FromShim, MAX_NETWORKS, ToSandbox};
use containust_shared::{exit, wire};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SocketType;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Signal};

use crate::group::{self, Groups, Place};
use crate::network::{Network, sockets, sockets_of_anybody};
use crate::{container, sandbox};

/// User namespaces that containers with an id of their own may take up, while S makes one.
const MAX_CONTAINERS: u32 = 4096;
/// `statfs(2)`'s `f_type` of cgroup v2.
pub(crate) const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
const ESRCH: i32 = rustix::io::Errno::SRCH.raw_os_error();

/// S: pid 1 of the project. Ends when its channel closes or its caller ends, and the kernel ends every container with it.
pub(crate) fn main(alone: &Alone, entered: &Entered, policy: &Policy, place: Option<Place>) -> i32 {
    let channel = &entered.channel;
    let prepared = prepare(policy.is_strict())
        .and_then(|()| place.as_ref().map(|place| Groups::open(place, policy)).transpose())
        .and_then(|groups| send(channel.as_fd(), &FromShim::Ready, &[]).step("answer", "").map(|()| groups));
    drop(place);
    let mut groups = match prepared {
        Ok(groups) => groups,
        Err(failure) => {
            sandbox::tell_failure(channel, failure);
            return exit::TOOL;
        }
    };
    let mut network = Network::default();
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    loop {
        // Not by its channel alone: a caller can hand his own end of it to a container, which would hold it open for ever.
        let mut fds = [PollFd::new(channel, PollFlags::IN), PollFd::new(&entered.caller, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(_) if fds.last().is_some_and(|caller| caller.revents().is_empty()) => {}
            Ok(_) => return 0,
            Err(_) => return exit::TOOL,
        }
        let (len, fds) = match channel::receive(channel, &mut buffer) {
            Ok(Some(message)) => message,
            Ok(None) => return 0,
            Err(_) => return exit::TOOL,
        };
        // Whatever is malformed, surplus or unknown is not from our supervisor: nothing is skipped, everything ends.
        let Ok(request) = wire::decode(buffer.get(..len).unwrap_or_default()) else { return exit::TOOL };
        let answered = match (request, fds.as_slice()) {
            (ToSandbox::Launch { id, networks, grouped, alone: ids }, [container, cgroup @ ..])
                // A user namespace of the container's own would belong to the caller.
                if cgroup.len() == usize::from(grouped && !policy.is_strict())
                    && !(policy.is_strict() && ids.is_some())
                    && are_distinct(&networks) =>
            {
                let entry = match &groups {
                    Some(groups) => groups.entry(id, grouped),
                    None if grouped && policy.is_strict() => Err(no_groups()),
                    None => Ok(None),
                };
                let launched = entry.and_then(|entry| {
                    let wish = Wish { id, networks: &networks, ids, cgroup: entry.as_ref().or(cgroup.first()) };
                    fork_container(alone, &mut network, container, &wish, policy)
                });
                match launched {
                    Ok(pidfd) => match send(channel.as_fd(), &FromSandbox::Launched { id }, &[pidfd.as_fd()]) {
                        Err(error) if is_crowded(&error) => {
                            match rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL) {
                                Ok(()) | Err(_) => {}
                            }
                            send(channel.as_fd(), &FromSandbox::LaunchFailed { id, failure: crowded(&error) }, &[])
                        }
                        sent => sent,
                    },
                    Err(failure) => send(channel.as_fd(), &FromSandbox::LaunchFailed { id, failure }, &[]),
                }
            }
            (ToSandbox::Dial { count, udp }, []) => {
                let made = if udp { sockets(count, SocketType::DGRAM) } else { sockets_of_anybody(count) };
                hand_over(channel, made, &FromSandbox::Dialed, FromSandbox::DialFailed)
            }
            (ToSandbox::Listen { bridge }, []) => {
                hand_over(channel, network.listen(&bridge), &FromSandbox::Listening, FromSandbox::ListenFailed)
            }
            (ToSandbox::Tap, []) => {
                let made = policy.judge_egress().and_then(|()| network.tap());
                hand_over(channel, made, &FromSandbox::Tapped, FromSandbox::TapFailed)
            }
            (
                request @ (ToSandbox::Cgroup { id, .. }
                | ToSandbox::Freeze { id }
                | ToSandbox::Thaw { id }
                | ToSandbox::Gc { id }),
                [],
            ) if policy.is_strict() => {
                let done = match (&mut groups, &request) {
                    (None, _) => Err(no_groups()),
                    (Some(groups), ToSandbox::Cgroup { limits, .. }) => groups.limit(id, limits, policy),
                    (Some(groups), ToSandbox::Gc { .. }) => groups.remove(id).map(|()| Vec::new()),
                    (Some(groups), _) => {
                        groups.freeze(id, matches!(request, ToSandbox::Freeze { .. })).map(|()| Vec::new())
                    }
                };
                send(channel.as_fd(), &group::answer(id, done), &[])
            }
            _ => return exit::TOOL,
        };
        if answered.is_err() {
            return exit::TOOL;
        }
    }
}

fn no_groups() -> Failure {
    refusal("make a control group: the project has none of its own; start it anew: ctst stop, and ctst run", "")
}

/// Answers with sockets, or with why there are none.
fn hand_over(
    channel: &OwnedFd,
    sockets: Result<Vec<OwnedFd>, Failure>,
    made: &FromSandbox,
    failed: fn(Failure) -> FromSandbox,
) -> io::Result<()> {
    let failure = match sockets {
        Ok(sockets) => match send(channel.as_fd(), made, &sockets.iter().map(AsFd::as_fd).collect::<Vec<_>>()) {
            Err(error) if is_crowded(&error) => crowded(&error),
            sent => return sent,
        },
        Err(failure) => failure,
    };
    send(channel.as_fd(), &failed(failure), &[])
}

fn prepare(strict: bool) -> Result<(), Failure> {
    if strict {
        // S was born with the effective id of the namespace's owner, which is nobody in it, and keeps that for files: with it
        // alone the project's control groups are made. Where there are some it was born with root's for files, which goes.
        ids::follow_effective_for_files(1).step("become the owner for files", "")?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    }
    // The end of the channel ends us too, unless the caller has stopped this process, which then never reads of it. Whoever
    // can do that has our real user id, in strict mode as well, and so the signal of his end reaches us.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("follow the supervisor", "")?;
    // A tracer of this process would have all capabilities of the project: not even the caller shall be one.
    if !weak(Layer::Dumpable) {
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("become undumpable", "")?;
    }
    if !weak(Layer::NoNewPrivs) {
        rustix::thread::set_no_new_privs(true).step("set no_new_privs", "")?;
    }
    // Nobody here waits for a container's pid 1: the supervisor has its pidfd.
    sys::reap_automatically();
    limit_user_namespaces(0)
}

/// How many user namespaces there may be below the one of this process (namespaces(7)). With 0 no container makes
/// another, even if its filter let it try.
pub(crate) fn limit_user_namespaces(limit: u32) -> Result<(), Failure> {
    if weak(Layer::UserNamespaces) {
        return Ok(());
    }
    let file = "/proc/sys/user/max_user_namespaces";
    #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
    std::fs::write(file, limit.to_string()).step("limit nested user namespaces by", file)
}

fn are_distinct(networks: &[Bridge]) -> bool {
    let numbers: std::collections::BTreeSet<u8> = networks.iter().map(|network| network.number).collect();
    networks.len() <= MAX_NETWORKS && numbers.len() == networks.len()
}

/// What a LAUNCH asks for.
pub(crate) struct Wish<'a> {
    id: u32,
    pub(crate) networks: &'a [Bridge],
    pub(crate) ids: Option<(u32, u32)>,
    cgroup: Option<&'a OwnedFd>,
}

fn fork_container(
    alone: &Alone,
    network: &mut Network,
    container: &OwnedFd,
    wish: &Wish<'_>,
    policy: &Policy,
) -> Result<OwnedFd, Failure> {
    let &Wish { id, networks, ids, cgroup } = wish;
    // clone3(2) would say EBADF.
    if let Some(cgroup) = cgroup
        && rustix::fs::fstatfs(cgroup).step("inspect the container's cgroup", "")?.f_type != CGROUP2_SUPER_MAGIC
    {
        return Err(refusal("start a container in what is not a directory of cgroup v2", ""));
    }
    let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC).step("make a pipe", "")?;
    let mut namespaces = Namespaces::of_a_container();
    if weak(Layer::Network) && networks.is_empty() {
        namespaces.remove(Namespaces::NET);
    }
    if ids.is_some() {
        namespaces |= Namespaces::USER;
        limit_user_namespaces(MAX_CONTAINERS)?;
    }
    let step =
        if cgroup.is_some() { "create the container in its cgroup" } else { "create the container's namespaces" };
    let cloned = sys::clone3(alone, namespaces, cgroup.map(AsFd::as_fd)).step(step, "");
    if ids.is_some() && !matches!(cloned, Ok(Side::Child)) {
        limit_user_namespaces(0)?;
    }
    match cloned? {
        Side::Child => {
            let needed: Vec<_> = [container.as_fd(), go_read.as_fd()].into_iter().chain(policy.fd()).collect();
            let kept = sys::close_all_but(&needed);
            let run = || container::main(alone, container, &go_read, wish, policy);
            sys::exit_now(if kept.is_ok() { run() } else { exit::TOOL });
        }
        Side::Parent { pid, pidfd } => {
            let connected = network.connect(id, pid, networks);
            let released = connected.and_then(|()| {
                // Without this byte the container ends by itself.
                rustix::io::write(&go_write, &[1]).map(drop).step("release the container", "")
            });
            // A container that has ended, or is about to (it has lost its namespaces), says why on its own channel.
            match released {
                Err(failure) if failure.errno != ESRCH && !has_ended(&pidfd) => Err(failure),
                Ok(()) | Err(_) => Ok(pidfd),
            }
        }
    }
}

/// Whether a process has ended, be it waited for or not.
pub(crate) fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) == Ok(1)
}
