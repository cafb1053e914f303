//! Ports that the kernel keeps from users (`net.ipv4.ip_unprivileged_port_start`, `ip(7)`), and `ctst-port`, which binds those of
//! them that the policy of the host grants. It is the client that asks it: a supervisor has given up starting programs.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use containust_lang::model::Protocol;
use containust_policy::conf::{PATH, Publish};
use containust_shared::port::{FromPort, LIMIT, ToPort, VERSION};
use containust_shared::protocol::CHANNEL_FD;
use rustix::fs::Access;
use rustix::thread::CapabilitySet;

use crate::error::{During, Error, Result};
use crate::host::doctor::Check;
use crate::host::doctor::Verdict::{Bad, Limited};
use crate::host::policy::Policy;
use crate::host::{launch, strict};
use crate::ipc::{Connection, Reply, Request};
use crate::shim::{self, Channel, Received, describe};
use crate::spec::Wanted;
use crate::status::HostPort;

const INSTALLED: &str = "/usr/libexec/ctst/ctst-port";
const SETTING: &str = "net.ipv4.ip_unprivileged_port_start";

/// Why a port cannot be had, and what changes it.
struct Lack {
    problem: String,
    fix: String,
}

/// The first port that everybody may bind.
fn first_open() -> u16 {
    let text = std::fs::read_to_string(format!("/proc/sys/{}", SETTING.replace('.', "/"))).unwrap_or_default();
    text.trim().parse().unwrap_or(LIMIT)
}

/// Whether the kernel would not let this process bind the port.
pub(crate) fn is_kept(port: u16) -> bool {
    port < first_open() && !is_capable()
}

fn is_capable() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_BIND_SERVICE))
}

/// The program beside this executable, else the installed one.
fn find() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name("ctst-port"));
    beside.into_iter().chain([INSTALLED.into()]).find(|path| path.is_file())
}

/// The program that would bind this port, as far as its file tells.
fn binder(wanted: HostPort) -> Result<PathBuf, Lack> {
    let (port, first) = (wanted.place.port(), first_open());
    let closed = format!("users may bind ports from {first} on only");
    let open = format!("sudo sysctl -w {SETTING}={port}");
    if port >= LIMIT {
        let fix = format!("publish a port from {first} on, or open it to every user: {open}");
        return Err(Lack { problem: format!("{closed} ({SETTING})"), fix });
    }
    let Some(path) = find() else {
        let address = Some(wanted.place.ip()).filter(|ip| !ip.is_unspecified());
        let wanted = Publish { address, udp: wanted.protocol == Protocol::Udp, first: port, last: port };
        let fix = format!(
            "install the package containust-port, which binds what {PATH} allows by `publish = {wanted}`; or open the port to \
             every user: {open}"
        );
        return Err(Lack { problem: format!("{closed}, and there is no ctst-port to bind it"), fix });
    };
    startable(&path)?;
    Ok(path)
}

/// That this user may start it, and that it has its capability then.
fn startable(path: &Path) -> Result<(), Lack> {
    let shown = path.display();
    if !strict::has_capabilities(path) {
        let problem = format!("{shown} has no file capabilities");
        return Err(Lack {
            problem,
            fix: format!("give it the one that it needs: sudo setcap cap_net_bind_service+p {shown}"),
        });
    }
    match rustix::fs::access(path, Access::EXEC_OK) {
        Ok(()) => Ok(()),
        Err(_) => {
            let (problem, fix) = strict::members_only(path);
            Err(Lack { problem: format!("start {shown}: {problem}"), fix })
        }
    }
}

fn refused(component: &str, place: HostPort, Lack { problem, fix }: Lack) -> Error {
    Error::LowPort { component: component.to_owned(), place, problem, help: fix }
}

/// Why a port that the kernel keeps cannot be published: what [`supply`] would say of it without asking `ctst-port`, and what
/// the policy says.
pub(crate) fn predict(policy: &Policy, component: &str, place: HostPort) -> Result<()> {
    binder(place).map_err(|lack| refused(component, place, lack))?;
    policy.judge_low_port(component, place)
}

/// What to say of one that the kernel refused a supervisor nevertheless.
pub(crate) fn not_given(component: &str, place: HostPort) -> Error {
    let lack = binder(place).err().unwrap_or_else(|| Lack {
        problem: "the kernel refuses it, and no socket came from ctst-port".to_owned(),
        fix: "see what is missing: ctst doctor".to_owned(),
    });
    refused(component, place, lack)
}

/// Ports that the kernel keeps from this user, each with a component that has it.
pub(crate) fn kept(wanted: &[Wanted]) -> BTreeMap<HostPort, String> {
    let all = wanted.iter().flat_map(|wanted| wanted.published.iter().map(|port| (&wanted.spec.name, port)));
    let kept = all.filter(|(_, port)| is_kept(port.host_port));
    kept.map(|(name, port)| (port.on_host(), name.clone())).collect()
}

/// Gives the supervisor a socket for each of these ports that it does not hold. `false`: it was ending.
pub(crate) fn supply(connection: &mut Connection, ports: &BTreeMap<HostPort, String>) -> Result<bool> {
    if connection.send(&Request::Unheld(ports.keys().copied().collect()), &[]).is_err() {
        return Ok(false);
    }
    let unheld = match connection.wait::<Reply>() {
        Ok(Some((Reply::Unheld(unheld), _))) => unheld,
        Ok(None | Some((Reply::Over { .. }, _))) => return Ok(false),
        Ok(Some((Reply::Refused(report), _))) => return Err(Error::Reported(report)),
        Ok(Some((other, _))) => return Err(Error::protocol(format!("unexpected {other:?}"))),
        Err(error) => return Err(error),
    };
    for key in unheld {
        let component = ports.get(&key).ok_or_else(|| Error::protocol("a port that nobody named"))?;
        let socket = bind(component, key)?;
        if connection.send(&Request::Port(key), &[socket.as_fd()]).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A socket for this port.
fn bind(component: &str, wanted: HostPort) -> Result<OwnedFd> {
    let path = binder(wanted).map_err(|lack| refused(component, wanted, lack))?;
    let failed = |problem: String| {
        let fix = "see what is missing: ctst doctor".to_owned();
        refused(component, wanted, Lack { problem, fix })
    };
    let (HostPort { protocol, place }, version) = (wanted, VERSION);
    let (address, port, udp) = (place.ip(), place.port(), protocol == Protocol::Udp);
    let (reply, mut fds) = ask(&path, ToPort::Bind { version, address, port, udp })?;
    match (reply, fds.pop()) {
        (FromPort::Bound, Some(socket)) if fds.is_empty() => Ok(socket),
        (FromPort::Denied { reasons }, None) => Err(Error::Denied { component: Some(component.to_owned()), reasons }),
        (FromPort::Failed(failure), None) if failure.errno == rustix::io::Errno::ADDRINUSE.raw_os_error() => {
            let shown = wanted.shown_by();
            let fix = format!("stop what listens on {wanted} ({shown} shows it), or publish another port");
            Err(refused(component, wanted, Lack { problem: describe(&failure), fix }))
        }
        (FromPort::Failed(failure), None) => Err(failed(describe(&failure))),
        (other, _) => Err(failed(format!("ctst-port answers {other:?}"))),
    }
}

fn ask(path: &Path, request: ToPort) -> Result<(FromPort, Vec<OwnedFd>)> {
    let what = || format!("start {}", path.display());
    let (ours, theirs) = shim::seqpacket()?;
    let mut command = Command::new(path);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mapping = FdMapping { parent_fd: theirs, child_fd: CHANNEL_FD };
    command.fd_mappings(vec![mapping]).map_err(|error| Error::Sandbox(error.to_string()))?;
    // Our copy of its end is gone with the command: else we would wait for an answer of one that has ended.
    let mut child = launch::spawn(command).during(what)?;
    let mut channel = Channel::new(ours);
    let answer = channel.send(&request, Vec::new()).and_then(|()| channel.wait::<FromPort>());
    // It ends once it has answered; a failure would leave a zombie of ours only.
    child.wait().ok();
    match answer? {
        Received::Message(reply, fds) => Ok((reply, fds)),
        Received::Empty | Received::End => {
            let problem = format!("{} ended without an answer; start it by hand to see why", path.display());
            Err(Error::Sandbox(problem))
        }
    }
}

/// Whether ports below 1024 can be published here, and by what.
pub(crate) fn check() -> Check {
    const NAME: &str = "low ports";
    let first = first_open();
    if is_capable() {
        return Check::good(NAME, "every port: this user has CAP_NET_BIND_SERVICE");
    }
    if first <= 1 {
        return Check::good(NAME, format!("every port: {SETTING} is {first}"));
    }
    let closed = format!("ports from {first} on only");
    let limited = |found: String, fix: String| Check::other(NAME, Limited, format!("{closed}: {found}"), fix);
    let Some(path) = find() else {
        let found = format!("{SETTING} is {first}, and there is no ctst-port");
        let fix = format!(
            "install the package containust-port, which binds what {PATH} allows; or open them to every user: sudo sysctl -w \
             {SETTING}=80"
        );
        return limited(found, fix);
    };
    if let Err(Lack { problem, fix }) = startable(&path) {
        return limited(problem, fix);
    }
    match ask(&path, ToPort::Check { version: VERSION }) {
        Ok((FromPort::Able, _)) => {}
        Ok((FromPort::Failed(failure), _)) => {
            let found = describe(&failure);
            return limited(found, format!("as it says; see {PATH} and {}", path.display()));
        }
        Ok((other, _)) => {
            return Check::other(NAME, Bad, format!("ctst-port answers {other:?}"), "reinstall containust-port");
        }
        Err(error) => return limited(error.to_string(), "reinstall containust-port".to_owned()),
    }
    let granted = Policy::read().map(|policy| policy.low_ports());
    match granted {
        Ok(granted) if !granted.is_empty() => {
            let found = format!("{}, by {}; else {closed}", granted.join(", "), path.display());
            Check::good(NAME, found)
        }
        Ok(_) => {
            let fix = format!("have the administrator add a line to {PATH}, such as `publish = 127.0.0.1 80`");
            limited(format!("no line of {PATH} allows ctst-port another"), fix)
        }
        Err(error) => limited(error.to_string(), format!("as root, mend {PATH} as it says")),
    }
}
