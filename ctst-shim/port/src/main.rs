//! `ctst-port`: binds one port below 1024 for a caller to whom the administrator's policy grants it, and hands him the socket.
//! It is started by `ctst` as `ctst-shim` is, with one end of a socket pair as descriptor 3 and nothing else, and
//! serves one request. Its file has one capability, which is effective for one call.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use containust_core::capability;
use containust_core::entry::{self, Entered};
use containust_helper::failure::{Step, refusal};
use containust_helper::loss::{self, Program};
use containust_helper::message::{receive_one, send};
use containust_helper::policy::{Policy, Port};
use containust_shared::exit;
use containust_shared::port::{FromPort, LIMIT, ToPort, VERSION};
use containust_shared::protocol::{CHANNEL_FD, Failure};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// `capabilities(7)`: CAP_NET_BIND_SERVICE.
const CAPABILITY: u64 = 1 << 10;
/// This one.
const PROGRAM: Program =
    Program { name: "ctst-port", capabilities: &[(CAPABILITY, "cap_net_bind_service", "bind a port below 1024")] };
/// Connections that may wait to be accepted; the kernel takes `net.core.somaxconn` where that is less.
const BACKLOG: i32 = 4096;

fn main() {
    #[expect(clippy::disallowed_methods, reason = "counted, not read")]
    if std::env::args_os().count() > 1 {
        refuse("takes no arguments; it is started by ctst");
    }
    let entered = match entry::sanitise(CHANNEL_FD, CAPABILITY) {
        Ok(entered) => entered,
        Err(error) => refuse(&error.to_string()),
    };
    let (reply, socket) = match serve(&entered) {
        Ok(answer) => answer,
        Err(failure) => (FromPort::Failed(failure), None),
    };
    let fds: Vec<BorrowedFd<'_>> = socket.iter().map(AsFd::as_fd).collect();
    let sent = send(entered.channel.as_fd(), &reply, &fds);
    let done = sent.is_ok() && matches!(reply, FromPort::Bound | FromPort::Able);
    std::process::exit(if done { 0 } else { exit::TOOL })
}

fn refuse(why: &str) -> ! {
    eprintln!("ctst-port: {why}");
    std::process::exit(exit::TOOL)
}

fn serve(entered: &Entered) -> Result<(FromPort, Option<OwnedFd>), Failure> {
    let &Entered { ref channel, held, .. } = entered;
    let policy = Policy::open(false);
    let authority = entry::check_authority(held).step("use ctst-port", "");
    // Also where it is refused: who closes a socket with something unread takes its own last words back (unix(7)).
    let request: ToPort = receive_one(channel)?;
    let in_file = authority?;
    let (ToPort::Bind { version, .. } | ToPort::Check { version }) = request;
    if version != VERSION {
        return Err(refusal("serve another version of ctst: reinstall ctst and ctst-port together", ""));
    }
    if held != CAPABILITY {
        let cause = loss::cause(&PROGRAM, held, in_file)?;
        return Err(refusal(&format!("bind a port below {LIMIT}: {cause}"), ""));
    }
    let policy = policy.map_err(abroad)?;
    let ToPort::Bind { address, port, udp, .. } = request else {
        policy.rules()?;
        return Ok((FromPort::Able, None));
    };
    if port == 0 || port >= LIMIT {
        return Err(refusal("bind another port than one below 1024:", port.to_string()));
    }
    let wanted = Port { place: SocketAddr::new(address, port), udp };
    if let Some(reasons) = policy.judge_port(wanted)? {
        return Ok((FromPort::Denied { reasons }, None));
    }
    Ok((FromPort::Bound, Some(bind(wanted)?)))
}

/// The cause of what fails in a user namespace that is not the network's and in which the host's files are nobody's.
fn abroad(failure: Failure) -> Failure {
    match loss::is_of_the_host() {
        Ok(false) => {
            refusal("bind a port of the host from within a user namespace; start ctst outside of the container", "")
        }
        Ok(true) | Err(_) => failure,
    }
}

/// Nothing of it is the caller's choice but the address, the port and the protocol.
fn bind(Port { place, udp }: Port) -> Result<OwnedFd, Failure> {
    let family = if place.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = if udp { SocketType::DGRAM } else { SocketType::STREAM };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None).step("make a socket", "")?;
    if !udp {
        // Of UDP it would let others of the caller's take what comes (socket(7)).
        sockopt::set_socket_reuseaddr(&socket, true).step("set up a socket", "")?;
    }
    if place.is_ipv6() {
        // The policy judged an address of one family.
        sockopt::set_ipv6_v6only(&socket, true).step("set up a socket", "")?;
    }
    let bound = window(&socket, place)?;
    let denied = bound == Err(Errno::ACCESS);
    bound.step("bind", place.to_string()).map_err(|failure| if denied { abroad(failure) } else { failure })?;
    if !udp {
        rustix::net::listen(&socket, BACKLOG).step("listen on", place.to_string())?;
    }
    Ok(socket)
}

/// The privileged window: the only lines that run with the capability (`tests/window-port.strace`).
fn window(socket: &OwnedFd, place: SocketAddr) -> Result<rustix::io::Result<()>, Failure> {
    capability::raise(CAPABILITY).step("raise the capability", "")?;
    let bound = rustix::net::bind(socket, &place);
    capability::renounce().step("give up the capability", "")?;
    Ok(bound)
}
