//! C: pid 1 of a container. It builds the root, gives up what the container shall not have, starts the main process, and
//! then stays: a reaper that is never executed anew, and serves EXEC by forking. So a process that is started later has
//! the same namespaces, bounding set, filter and root as the first, and nothing from outside ever joins.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use containust_core::landlock::{self, Missing};
use containust_core::link::{LOOPBACK, Links, MAIN_TABLE, Rule};
use containust_core::sys::{self, Alone, Filter};
use containust_core::weak::{Layer, weak};
use containust_core::{capability, channel};
use containust_helper::failure::{Step, refusal};
use containust_helper::message::{crowded, is_crowded, send};
use containust_helper::policy::Policy;
use containust_policy::seccomp::{self, Base};
use containust_shared::protocol::{
    self, Beneath, Bridge, Ended, Failure, FromContainer, MAIN, MAX_INSTRUCTIONS, Plan, Process, Rlimit, ToContainer,
};
use containust_shared::{exit, names, wire};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::net::SocketType;
use rustix::process::{DumpableBehavior, Pid, WaitOptions};

use crate::network::{ETH0, hardware, sockets};
use crate::process::{Confines, Starting, Streams};
use crate::project::{Wish, limit_user_namespaces};
use crate::{process, root};

/// What C itself keeps to start processes under other ids, give them their streams, and signal them: CAP_CHOWN, CAP_KILL,
/// CAP_SETGID, CAP_SETUID, CAP_SETPCAP. Processes of a container that drops them do not get them.
const NEEDED: u64 = 1 << 0 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;

/// Longer than any honest process takes from fork to execve.
const PATIENCE: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;
/// `getrlimit(2)`: no process of a container writes a core file unless the plan says so.
const RLIMIT_CORE: u32 = 4;

/// Runs the container on its channel and returns C's exit code. Called in the child that S cloned.
pub(crate) fn main(alone: &Alone, channel: &OwnedFd, go: &OwnedFd, wish: &Wish<'_>, policy: &Policy) -> i32 {
    sys::reset_signals();
    // What C creates is for the container's users, and its processes inherit the mask: the usual one, not the caller's.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    match run(alone, channel.as_fd(), go, wish, policy) {
        Ok(code) => code,
        Err((code, failure)) => match send(channel.as_fd(), &FromContainer::Failed { id: MAIN, code, failure }, &[]) {
            Ok(()) | Err(_) => exit::TOOL,
        },
    }
}

fn run(
    alone: &Alone,
    channel: BorrowedFd<'_>,
    go: &OwnedFd,
    wish: &Wish<'_>,
    policy: &Policy,
) -> Result<i32, (i32, Failure)> {
    let tool = |failure| (exit::TOOL, failure);
    if policy.is_strict() {
        // S has the id of the namespace's owner, which is nobody in it.
        sys::set_ids(0, 0).step("become root of the user namespace", "").map_err(tool)?;
    }
    let (plan, fds) = receive_plan(channel).map_err(tool)?;
    if let Some(reasons) = policy.judge(&plan).map_err(tool)? {
        send(channel, &FromContainer::Denied { reasons }, &[]).step("tell the supervisor", "").map_err(tool)?;
        return Ok(exit::TOOL);
    }
    if let Some((uid, gid)) = wish.ids {
        exist_as(uid, gid).map_err(tool)?;
    }
    // The cgroup that C was born in becomes `/` for everything in the container.
    if !weak(Layer::CgroupNamespace) {
        unshare(CloneFlags::CLONE_NEWCGROUP)
            .map_err(std::io::Error::from)
            .step("make the cgroup namespace", "")
            .map_err(tool)?;
    }
    let held = prepare(&plan, go, wish, channel).map_err(tool)?;

    let mut container = Container { alone, channel, held, starting: Vec::new(), children: Vec::new() };
    container.start(MAIN, &plan.process, fds)?;
    drop(plan);
    container.serve()
}

/// The table of routes for answers to clients of published ports, by which these go back to S. What begins here is looked up before it
/// has an address, and does not find it.
const ANSWERS: u8 = 100;

/// Where what is on none of the container's networks goes: by the first with a way out, else nowhere but for answers, which go back by
/// the first of all.
fn add_routes(links: &mut Links, plan: &Plan, networks: &[Bridge]) -> Result<(), Failure> {
    let mut own = plan.addresses.iter().zip(networks);
    let leaving = own.clone().find(|(_, bridge)| bridge.egress);
    let Some((address, bridge)) = leaving.or_else(|| own.next()) else { return Ok(()) };
    let table = if bridge.egress { MAIN_TABLE } else { ANSWERS };
    links.add_default_route(table, bridge.address.ip).step("add the default route", "")?;
    if !bridge.egress {
        // After the main table, which has the networks.
        let answers = Rule { priority: 40_000, table, from: Some(address.ip), ..Rule::default() };
        links.add_rule(&answers).step("send answers back by", "a rule for routes")?;
    }
    Ok(())
}

/// What a link with an IPv6 address has of the kernel's settings: no address that is not the plan's, a link-local one neither, and
/// nothing that a neighbour tells, who may be another container that can forge packets.
const IPV6: [(&str, &str); 4] =
    [("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_redirects", "0")];
/// Others have no IPv6: what came by them could say where packets go, and fill the kernel's tables.
const NO_IPV6: [(&str, &str); 1] = [("disable_ipv6", "1")];

/// Makes links that are down ready for the plan's IPv6 addresses, or takes IPv6 from them. `settings`: `/proc/sys/net/ipv6/conf`, which
/// can be written, so that no process of the container may find it in C.
fn prepare_ipv6(plan: &Plan, settings: Option<OwnedFd>) -> Result<(), Failure> {
    let Some(settings) = settings else {
        return match plan.addresses6.is_empty() {
            true => Ok(()),
            false => Err(refusal("give an IPv6 address: this kernel has no IPv6", "")),
        };
    };
    for (_, port) in plan.addresses.iter().zip(0u8..) {
        let has_address = plan.addresses6.iter().any(|(on, _)| *on == port);
        for (setting, value) in if has_address { &IPV6[..] } else { &NO_IPV6[..] } {
            let path = format!("eth{port}/{setting}");
            let file = rustix::fs::openat(&settings, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .step("find the setting of IPv6", &path)?;
            rustix::io::write(&file, value.as_bytes()).step("set IPv6's", &path)?;
        }
    }
    Ok(())
}

/// Gives the plan's IPv6 addresses to links that are up, and has nothing sent from any other.
fn add_ipv6(links: &mut Links, plan: &Plan) -> Result<(), Failure> {
    if plan.addresses6.is_empty() {
        return Ok(());
    }
    for (port, address) in &plan.addresses6 {
        let index = ETH0.saturating_add((*port).into());
        let step = "give an IPv6 address to";
        links.add_address6(index, address.ip, address.prefix).step(step, format!("eth{port}"))?;
    }
    let own: Vec<_> = plan.addresses6.iter().map(|(_, address)| address.ip).collect();
    links.send_only_from(&own).step("keep packets with others' IPv6 addresses back by", "rules for routes")
}

fn receive_plan(channel: BorrowedFd<'_>) -> Result<(Plan, Vec<OwnedFd>), Failure> {
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    let (len, fds) = channel::receive(channel, &mut buffer)
        .step("receive the plan", "")?
        .ok_or_else(|| refusal("wait for the plan: the supervisor is gone", ""))?;
    match wire::decode(buffer.get(..len).unwrap_or_default()) {
        Ok(ToContainer::Plan(plan)) => Ok((*plan, fds)),
        Ok(_) => Err(refusal("take another request before the plan", "")),
        Err(error) => Err(refusal(&format!("read the plan ({error})"), "")),
    }
}

/// Maps the caller, who is 0 in the project's user namespace, to the ids that this container's own one has.
fn exist_as(uid: u32, gid: u32) -> Result<(), Failure> {
    // The map files of a process that is not dumpable belong to the host's root.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).step("become dumpable", "")?;
    #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
    std::fs::write("/proc/self/gid_map", format!("{gid} 0 1\n")).step("map the group", gid.to_string())?;
    #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
    std::fs::write("/proc/self/uid_map", format!("{uid} 0 1\n")).step("map the user", uid.to_string())?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("become undumpable", "")?;
    limit_user_namespaces(0)
}

/// Everything between the plan and the first process, in the order in which it must happen.
fn prepare(plan: &Plan, go: &OwnedFd, wish: &Wish<'_>, channel: BorrowedFd<'_>) -> Result<Held, Failure> {
    if !names::is_host_name(&plan.hostname) {
        return Err(refusal("set the host name", &plan.hostname));
    }
    if plan.profile.len() > MAX_INSTRUCTIONS {
        return Err(refusal("install a seccomp profile of so many instructions:", plan.profile.len().to_string()));
    }
    rustix::system::sethostname(&plan.hostname).step("set the host name", &plan.hostname)?;
    let mut root = root::build(plan, wish.ids.is_none(), channel)?;

    // S has put our ends of the veths here, or there are none; it dies or closes the pipe if it could not.
    let mut byte = [0];
    if rustix::io::read(go, &mut byte).step("wait for the network", "")? != 1 {
        return Err(refusal("wait for the network: the project's pid 1 is gone", ""));
    }
    let mut links = Links::open().step("open a netlink socket", "")?;
    links.up(LOOPBACK).step("set the link up", "lo")?;
    prepare_ipv6(plan, root.ipv6.take())?;
    for (address, port) in plan.addresses.iter().zip(0u32..) {
        let (index, name) = (ETH0.saturating_add(port), format!("eth{port}"));
        links.add_address(index, address.ip, address.prefix).step("give an address to", &name)?;
        links.up_as(index, hardware(address.ip)).step("set the link up", &name)?;
    }
    add_routes(&mut links, plan, wish.networks)?;
    add_ipv6(&mut links, plan)?;
    drop(links);

    let setgroups = process::setgroups_allowed(root.proc.as_fd())?;
    // While nothing of the container runs that could move a path: every process gets this one ruleset.
    let landlock = plan.landlock.as_ref().map(ruleset).transpose()?;
    // From here on C is confined, too: it cannot mount, nor make namespaces, nor get anything back.
    capability::confine(plan.capabilities | NEEDED).step("drop the capabilities", "")?;
    let base = match plan.filter {
        protocol::Filter::Default => Base::Default,
        protocol::Filter::Strict => Base::Strict,
        protocol::Filter::Compat => Base::Compat,
    };
    let base = seccomp::base_filter(base).iter().map(|i| (i.code, i.jt, i.jf, i.k));
    if !weak(Layer::Filter) {
        Filter::new(base).install().step("install the system call filter", "")?;
    }
    let profile = plan.profile.iter().map(|i| (i.code, i.jt, i.jf, i.k));
    let mut rlimits = plan.rlimits.clone();
    if !rlimits.iter().any(|limit| limit.resource == RLIMIT_CORE) {
        rlimits.push(Rlimit { resource: RLIMIT_CORE, soft: 0, hard: 0 });
    }
    let confines = Confines {
        capabilities: plan.capabilities,
        surplus: NEEDED & !plan.capabilities,
        landlock,
        profile: (!plan.profile.is_empty()).then(|| Filter::new(profile)),
        rlimits,
        setgroups,
    };
    Ok(Held { confines, root })
}

/// The author's landlock. Its paths are looked up within the root that was entered, as everything in the container sees
/// them.
fn ruleset(wanted: &protocol::Landlock) -> Result<OwnedFd, Failure> {
    let mut places = Vec::new();
    for beneath in wanted.files.iter().flatten() {
        if beneath.path.first() != Some(&b'/') {
            return Err(refusal("restrict by landlock to what is not an absolute path:", &beneath.path));
        }
        let how = ResolveFlags::NO_MAGICLINKS;
        let place = openat2(CWD, beneath.path.as_slice(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how)
            .step("restrict by landlock to", &beneath.path)?;
        places.push((place, beneath));
    }
    let files = places.iter().map(|(place, Beneath { write, execute, .. })| landlock::Beneath {
        place: place.as_fd(),
        write: *write,
        execute: *execute,
    });
    let restriction = landlock::Restriction {
        files: wanted.files.is_some().then(|| files.collect()),
        bind: wanted.bind.as_deref(),
        connect: wanted.connect.as_deref(),
        abstract_sockets: wanted.abstract_sockets,
        signals: wanted.signals,
    };
    landlock::ruleset(&restriction).map_err(|missing| match missing {
        Missing::Kernel { what, since } => {
            let host = rustix::system::uname();
            refusal(
                &format!("restrict {what} by landlock, which takes Linux {since} with landlock on; this is Linux"),
                host.release().to_bytes(),
            )
        }
        Missing::Refused(error) => refusal(&format!("restrict by landlock ({error})"), ""),
    })
}

/// What C holds while the container lives.
struct Held {
    confines: Confines,
    root: root::Root,
}

struct Container<'a> {
    alone: &'a Alone,
    channel: BorrowedFd<'a>,
    held: Held,
    /// What was forked and has not executed yet, with the moment until which it has to.
    starting: Vec<(u32, Starting, Instant)>,
    /// Id and pid of what the supervisor asked for and has not heard the end of.
    children: Vec<(u32, i32)>,
}

impl Container<'_> {
    fn start(&mut self, id: u32, process: &Process, fds: Vec<OwnedFd>) -> Result<(), (i32, Failure)> {
        let streams = match (process.tty, <[OwnedFd; 3]>::try_from(fds)) {
            (false, Ok(streams)) => Streams::Given(streams),
            (true, Err(fds)) if fds.is_empty() => {
                let copy = rustix::io::fcntl_dupfd_cloexec(&self.held.root.devpts, 3);
                Streams::Terminal(copy.step("reach the devpts", "").map_err(|failure| (exit::TOOL, failure))?)
            }
            _ => return Err((exit::TOOL, refusal("take that number of descriptors", ""))),
        };
        let starting = process::start(self.alone, &self.held.confines, process, streams)?;
        let now = Instant::now();
        self.starting.push((id, starting, now.checked_add(PATIENCE).unwrap_or(now)));
        Ok(())
    }

    /// Tells what became of a process that was starting. An error is the main process's, and the container's end.
    fn conclude(&mut self, at: usize) -> Result<(), (i32, Failure)> {
        let (id, starting, _) = self.starting.swap_remove(at);
        let told = match starting.outcome() {
            Ok((pid, master)) => {
                let master: Vec<_> = master.iter().map(AsFd::as_fd).collect();
                match send(self.channel, &FromContainer::Started { id, pid: pid.unsigned_abs() }, &master) {
                    Err(error) if is_crowded(&error) && id != MAIN => {
                        let failure = crowded(&error);
                        // Nobody would ever read what it writes. It has been forked here, and is not reaped yet.
                        sys::kill(pid, SIGKILL)
                            .step("end a process", "")
                            .and_then(|()| self.tell(&FromContainer::Failed { id, code: exit::TOOL, failure }, &[]))
                    }
                    told => {
                        self.children.push((id, pid));
                        told.step("tell the supervisor", "")
                    }
                }
            }
            Err(failure) if id == MAIN => return Err(failure),
            Err((code, failure)) => self.tell(&FromContainer::Failed { id, code, failure }, &[]),
        };
        told.map_err(|failure| (exit::TOOL, failure))
    }

    fn tell(&self, message: &FromContainer, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        send(self.channel, message, fds).step("tell the supervisor", "")
    }

    /// Reaps and serves until the main process ends or the supervisor is gone. Nothing in here waits for a process of
    /// the container: its root could make that take for ever.
    fn serve(&mut self) -> Result<i32, (i32, Failure)> {
        let tool = |failure| (exit::TOOL, failure);
        let signals = child_signals().map_err(tool)?;
        let mut buffer = vec![0; wire::MAX_MESSAGE];
        // Children may have ended before SIGCHLD was blocked.
        let mut reap = true;
        loop {
            if reap && let Some(ended) = self.reap()? {
                // The end of this process ends all that is left in the container.
                self.tell(&FromContainer::Exited { id: MAIN, ended }, &[]).map_err(tool)?;
                return Ok(0);
            }
            // In this order: a process closes its status before SIGCHLD tells of its end, so that whoever is seen to
            // have ended has been seen to report.
            let mut fds = vec![PollFd::new(&signals, PollFlags::IN), PollFd::new(&self.channel, PollFlags::IN)];
            fds.extend(self.starting.iter().map(|(_, starting, _)| PollFd::new(&starting.status, PollFlags::IN)));
            let next = self.starting.iter().map(|(.., until)| until.saturating_duration_since(Instant::now())).min();
            let timeout =
                next.map(|left| Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(0), tv_nsec: 1_000_000 });
            match poll(&mut fds, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.step("wait for requests", "").map_err(tool)?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let is = |at: usize| ready.get(at).copied().unwrap_or_default();
            reap = is(0);
            if reap {
                while signals
                    .read_signal()
                    .map_err(std::io::Error::from)
                    .step("read the signalfd", "")
                    .map_err(tool)?
                    .is_some()
                {}
            }
            for at in (0..self.starting.len()).rev() {
                if is(at.saturating_add(2)) {
                    self.conclude(at)?;
                }
            }
            self.end_laggards().map_err(tool)?;
            if is(1) {
                match channel::receive(self.channel, &mut buffer).step("receive a request", "").map_err(tool)? {
                    None => return Ok(0),
                    Some((len, fds)) => {
                        let Ok(request) = wire::decode(buffer.get(..len).unwrap_or_default()) else {
                            return Err(tool(refusal("read a malformed request", "")));
                        };
                        self.request(request, fds).map_err(tool)?;
                    }
                }
            }
        }
    }

    /// Kills what was stopped on its way to execve; its end is told like any other.
    fn end_laggards(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        for (_, starting, until) in &mut self.starting {
            if *until <= now {
                sys::kill(starting.pid, SIGKILL).step("end a process that does not start", "")?;
                *until = now.checked_add(PATIENCE).unwrap_or(now);
            }
        }
        Ok(())
    }

    /// Waits for every child that has ended, ours and orphans. Some: the main process was among them.
    fn reap(&mut self) -> Result<Option<Ended>, (i32, Failure)> {
        let tool = |failure| (exit::TOOL, failure);
        loop {
            let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(None),
                Err(error) => return Err(error).step("wait for processes", "").map_err(tool),
            };
            let ended = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ended::Exited(code),
                (None, Some(signal)) => Ended::Signaled(signal),
                (None, None) => continue,
            };
            let pid = pid.as_raw_nonzero().get();
            if let Some(at) = self.starting.iter().position(|(_, starting, _)| starting.pid == pid) {
                self.conclude(at)?;
            }
            let Some(at) = self.children.iter().position(|(_, child)| *child == pid) else { continue };
            match self.children.swap_remove(at) {
                (MAIN, _) => return Ok(Some(ended)),
                (id, _) => self.tell(&FromContainer::Exited { id, ended }, &[]).map_err(tool)?,
            }
        }
    }

    /// The request table. An error here ends the container: what is not expected is not from our supervisor.
    fn request(&mut self, request: ToContainer, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        match request {
            ToContainer::Exec { id, process } if id != MAIN && self.pid(id).is_none() => {
                match self.start(id, &process, fds) {
                    Ok(()) => Ok(()),
                    Err((code, failure)) => self.tell(&FromContainer::Failed { id, code, failure }, &[]),
                }
            }
            ToContainer::Signal { id, signal } if fds.is_empty() && (1..=64).contains(&signal) => {
                let target = self.pid(id).and_then(Pid::from_raw);
                if let Some(pid) = target {
                    match sys::kill(pid.as_raw_nonzero().get(), signal) {
                        // It has ended and is about to be reaped.
                        Ok(()) => {}
                        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                        Err(error) => return Err(error).step("send the signal", signal.to_string()),
                    }
                }
                Ok(())
            }
            ToContainer::Stat if fds.is_empty() => match self.stat() {
                Ok(stat) => self.tell(&stat, &[]),
                Err(failure) => self.tell(&FromContainer::Refused(failure), &[]),
            },
            ToContainer::Dial { count } if fds.is_empty() => match sockets(count, SocketType::STREAM) {
                Ok(sockets) => {
                    let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
                    match send(self.channel, &FromContainer::Dialed, &fds) {
                        Err(error) if is_crowded(&error) => self.tell(&FromContainer::Refused(crowded(&error)), &[]),
                        told => told.step("tell the supervisor", ""),
                    }
                }
                Err(failure) => self.tell(&FromContainer::Refused(failure), &[]),
            },
            _ => Err(refusal("take that request now", "")),
        }
    }

    fn pid(&self, id: u32) -> Option<i32> {
        let starting = self.starting.iter().map(|(child, starting, _)| (*child, starting.pid));
        self.children.iter().copied().chain(starting).find(|(child, _)| *child == id).map(|(_, pid)| pid)
    }

    /// Adds up `/proc/PID/stat` (proc_pid_stat(5)) of all processes but this one.
    fn stat(&self) -> Result<FromContainer, Failure> {
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let (mut processes, mut resident, mut cpu) = (0u32, 0u64, 0u64);
        let proc = &self.held.root.proc;
        // What fsmount(2) gave can be looked up in, but not read.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let list = rustix::fs::openat(proc, ".", flags, Mode::empty()).and_then(rustix::fs::Dir::new);
        let list = list.step("list", "/proc")?;
        for entry in list {
            let entry = entry.step("list", "/proc")?;
            let pid = entry.file_name().to_bytes();
            if pid == b"1" || !pid.iter().all(u8::is_ascii_digit) {
                continue;
            }
            // A process that ends meanwhile is not there any more.
            let Ok(stat) = read_stat(proc.as_fd(), pid) else { continue };
            // The second field is the command in parentheses and may hold anything, parentheses too.
            let Some(end) = stat.iter().rposition(|b| *b == b')') else { continue };
            let fields = stat.get(end..).unwrap_or_default().split(|b| *b == b' ');
            let numbers: Vec<u64> =
                fields.map(|f| std::str::from_utf8(f).ok().and_then(|f| f.parse().ok()).unwrap_or(0)).collect();
            // Counted from the state, which is field 3: utime 14, stime 15, cutime 16, cstime 17, rss 24.
            let field = |number: usize| number.checked_sub(2).and_then(|at| numbers.get(at)).copied().unwrap_or(0);
            processes = processes.saturating_add(1);
            resident = resident.saturating_add(field(24).saturating_mul(page));
            cpu = [14, 15, 16, 17].iter().fold(cpu, |sum, n| sum.saturating_add(field(*n)));
        }
        let reaped = sys::children_cpu_ms();
        let cpu_ms = cpu.saturating_mul(1000).checked_div(ticks).unwrap_or(0).saturating_add(reaped);
        Ok(FromContainer::Stat { processes, resident, cpu_ms })
    }
}

/// SIGCHLD as a descriptor.
fn child_signals() -> Result<SignalFd, Failure> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().map_err(std::io::Error::from).step("block SIGCHLD", "")?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(std::io::Error::from)
        .step("make a signalfd", "")
}

fn read_stat(proc: BorrowedFd<'_>, pid: &[u8]) -> rustix::io::Result<Vec<u8>> {
    let path = [pid, b"/stat"].concat();
    let file = rustix::fs::openat(proc, path.as_slice(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = vec![0; 1024];
    let len = rustix::io::read(&file, &mut content)?;
    content.truncate(len);
    Ok(content)
}
