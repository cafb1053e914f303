//! `ctst doctor net`: asks for names, connects, and looks for the way out, from inside each container of a project that runs.
//!
//! Nothing of an image is needed, which may have neither a shell nor a resolver: pid 1 of the container, which is ours, makes TCP
//! sockets in its network namespace and hands them out, and this process uses them. What that tries is everything between a
//! program's system call and its answer: the container's device and routes, the project's bridges, what keeps networks apart, and the
//! name server. It does not try what a program does with a name before it asks, such as its C library's reading of
//! `/etc/resolv.conf` and `/etc/nsswitch.conf`, nor names by UDP: the same server answers both. Published ports of UDP are looked up in
//! the kernel's tables: what is behind one answers only what it understands.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use containust_lang::model::Protocol;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

use crate::doctor::Verdict;
use crate::error::{Error, Result};
use crate::host::launch::{being_offline, is_offline};
use crate::host::listening::Listening;
use crate::ipc::client::Client;
use crate::project::Project;
use crate::status::{ContainerStatus, Published, State};

/// Everything asked is within this host, but for the way out.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_OUTSIDE: Duration = Duration::from_secs(6);
/// Of names and addresses that are told in one line.
const MAX_TOLD: usize = 5;

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetCheck {
    /// From inside of which component; for a published port, whose it is.
    pub component: String,
    /// What: `names`, `way out`, or a port as `127.0.0.1:8080 -> 80`.
    pub about: String,
    /// How it is.
    pub status: Verdict,
    /// What was found, for a person.
    pub found: String,
    /// The one thing that makes it better.
    pub fix: Option<String>,
}

/// What the supervisor knows of a container's place in the networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outlook {
    /// Whom its `/etc/resolv.conf` names.
    pub(crate) resolvers: Vec<Ipv4Addr>,
    /// It is on a network with a way out.
    pub(crate) egress: bool,
    /// Whom it asks there, instead of this host's resolver.
    pub(crate) servers: Vec<Ipv4Addr>,
}

/// Tries the networks of a project that runs, from inside each of its containers that does, and its published ports from this host. A
/// service sees connections that say nothing.
///
/// # Errors
/// [`Error::NotRunning`], [`Error::Lost`].
pub fn examine(project: &Project) -> Result<Vec<NetCheck>> {
    let not_running = || Error::NotRunning { project: project.folder().to_owned() };
    let mut client = Client::connect(project)?.ok_or_else(not_running)?;
    let status = client.status()?;
    let mut checks = Vec::new();
    for from in status.iter().filter(|s| s.state == State::Running) {
        checks.extend(examine_one(&mut client, from, &status)?);
    }
    Ok(checks)
}

fn examine_one(client: &mut Client, from: &ContainerStatus, all: &[ContainerStatus]) -> Result<Vec<NetCheck>> {
    let mut checks = Vec::new();
    let mut tell = |about: &str, (status, found, fix): Finding| {
        checks.push(NetCheck { component: from.component.clone(), about: about.to_owned(), status, found, fix });
    };
    // `network = "host"` and `"none"` have no names of ours; and of the host's own namespace there is nothing to try.
    if from.addresses.is_empty() {
        return Ok(checks);
    }
    let (outlook, socket) = match client.sockets(&from.component, 1) {
        Ok((outlook, sockets)) => (outlook, sockets.into_iter().next()),
        Err(Error::Reported(report)) => {
            tell("names", bad(report.message, report.help.unwrap_or_default()));
            return Ok(checks);
        }
        Err(error) => return Err(error),
    };
    tell("names", names(socket, &outlook, &expected(from, all)));
    if outlook.egress {
        let socket = client.sockets(&from.component, 1)?.1.into_iter().next();
        tell("way out", way_out(socket, &outlook));
    }
    for published in &from.ports {
        let finding = match published.protocol {
            Protocol::Tcp => {
                let mut sockets = client.sockets(&from.component, 2)?.1.into_iter();
                port(published, from, [sockets.next(), sockets.next()])
            }
            Protocol::Udp => port_of_datagrams(published, from),
        };
        tell(&format!("{} -> {}", published.on_host(), published.port), finding);
    }
    Ok(checks)
}

type Finding = (Verdict, String, Option<String>);

fn good(found: String) -> Finding {
    (Verdict::Good, found, None)
}

fn bad(found: impl Into<String>, fix: impl Into<String>) -> Finding {
    (Verdict::Bad, found.into(), Some(fix.into()))
}

/// What a container should be told: of each component and of the replicas together, the addresses on networks that it is on, too. None:
/// it shares none with them.
fn expected(from: &ContainerStatus, all: &[ContainerStatus]) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let mut names: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    // By the first network that both are on.
    let address = |other: &ContainerStatus| -> Vec<IpAddr> {
        let on = |network: &String| {
            let there = other.addresses.iter().filter(|(theirs, _)| theirs == network).map(|(_, ip)| *ip);
            Some(there.collect::<Vec<_>>()).filter(|there| !there.is_empty())
        };
        from.addresses.iter().find_map(|(network, _)| on(network)).unwrap_or_default()
    };
    let running = all.iter().filter(|status| status.state == State::Running && !status.addresses.is_empty());
    for other in running {
        for name in [Some(&other.component), other.replica_of.as_ref()].into_iter().flatten() {
            names.entry(name.clone()).or_default().extend(address(other));
        }
    }
    names
}

/// A socket that is connected within this time.
fn connect(socket: OwnedFd, to: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(e) => return Err(e.into()),
    }
    let timeout = within.try_into().ok();
    if poll(&mut [PollFd::new(&socket, PollFlags::OUT)], timeout.as_ref())? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {within:?}")));
    }
    sockopt::socket_error(&socket)??;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    Ok(stream)
}

/// Asks one question by TCP (RFC 1035, 4.2.2).
fn ask(stream: &mut TcpStream, name: &str, kind: TYPE) -> io::Result<(RCODE, BTreeSet<IpAddr>)> {
    let invalid = |what: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
    let mut packet = Packet::new_query(1);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).map_err(|e| invalid(&e))?;
    packet.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    let question = packet.build_bytes_vec().map_err(|e| invalid(&e))?;
    let length = u16::try_from(question.len()).map_err(|e| invalid(&e))?;
    stream.write_all(&[&length.to_be_bytes()[..], &question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    let packet = Packet::parse(&answer).map_err(|e| invalid(&e))?;
    let addresses = packet.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(a) => Some(Ipv4Addr::from(a.address).into()),
        RData::AAAA(a) => Some(Ipv6Addr::from(a.address).into()),
        _ => None,
    });
    Ok((packet.rcode(), addresses.collect()))
}

/// Asks for every name, over one connection.
fn names(socket: Option<OwnedFd>, outlook: &Outlook, expected: &BTreeMap<String, BTreeSet<IpAddr>>) -> Finding {
    const FIX: &str = "start it again: ctst restart, and see .containust/supervisor.log";
    let (Some(socket), Some(&resolver)) = (socket, outlook.resolvers.first()) else {
        return bad("there is no name server on its networks", FIX);
    };
    let mut stream = match connect(socket, (resolver, 53).into(), PATIENCE) {
        Ok(stream) => stream,
        Err(error) => return bad(format!("the name server {resolver} cannot be reached from inside: {error}"), FIX),
    };
    let (mut known, mut apart, mut wrong) = (Vec::new(), 0, Vec::new());
    for (name, addresses) in expected {
        let both = ask(&mut stream, name, TYPE::A).and_then(|(code, mut told)| {
            told.extend(ask(&mut stream, name, TYPE::AAAA)?.1);
            Ok((code, told))
        });
        let told = match both {
            Ok(told) => told,
            Err(error) => return bad(format!("ask {resolver} for {name} from inside: {error}"), FIX),
        };
        match told {
            (RCODE::NoError, told) if told == *addresses && !told.is_empty() => known.push(name.as_str()),
            (RCODE::NameError, _) if addresses.is_empty() => apart += 1,
            (code, told) => {
                wrong.push(format!("{name} is {}, and should be {}", list(code, &told), list(code, addresses)))
            }
        }
    }
    if let [first, rest @ ..] = &wrong[..] {
        let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
        // Between the look and the question one may have been started, stopped or moved.
        return bad(
            format!("{resolver} says: {first}{more}"),
            "ask again: names follow what runs; if it stays: ctst restart",
        );
    }
    let more = if known.len() > MAX_TOLD { ", ..." } else { "" };
    let shown = known[..known.len().min(MAX_TOLD)].join(", ");
    let others =
        if apart == 0 { String::new() } else { format!("; {apart} on other networks unknown to it, as it should be") };
    good(format!("{resolver} knows {} from inside: {shown}{more}{others}", known.len()))
}

fn list(code: RCODE, addresses: &BTreeSet<IpAddr>) -> String {
    if addresses.is_empty() {
        return if code == RCODE::NoError { "nothing".to_owned() } else { "unknown".to_owned() };
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Asks for the name servers of the root, which everybody knows, and which says nothing of whoever asks.
fn way_out(socket: Option<OwnedFd>, outlook: &Outlook) -> Finding {
    let (Some(socket), Some(&resolver)) = (socket, outlook.resolvers.first()) else {
        return bad("there is no name server on its networks", "start it again: ctst restart");
    };
    if is_offline() {
        return good(format!("it has one, which is not tried{}", being_offline()));
    }
    let answer =
        connect(socket, (resolver, 53).into(), PATIENCE_OUTSIDE).and_then(|mut stream| ask(&mut stream, ".", TYPE::NS));
    let (who, fix) = if outlook.servers.is_empty() {
        (
            "this host's resolver".to_owned(),
            "see whether this host itself resolves names (getent hosts example.org), and what .containust/supervisor.log says of passt",
        )
    } else {
        let servers: Vec<String> = outlook.servers.iter().map(ToString::to_string).collect();
        (
            servers.join(" or "),
            "see whether this host reaches what `dns` names, and what .containust/supervisor.log says of passt",
        )
    };
    match answer {
        // That there is none would be a strange thing to say, but somebody outside says it.
        Ok((RCODE::NoError | RCODE::NameError, _)) => good(format!("{who} answers from inside")),
        Ok((code, _)) => bad(format!("{who}, asked from inside, refuses: {code:?}"), fix),
        Err(error) => bad(format!("ask {who} from inside: {error}"), fix),
    }
}

/// A published port: from this host, and what answers inside.
fn port(published: &Published, of: &ContainerStatus, [direct, loopback]: [Option<OwnedFd>; 2]) -> Finding {
    let (name, port) = (&of.component, published.port);
    let host = SocketAddr::new(reachable(published.address), published.host_port);
    let Some(ip) = of.address else {
        return bad("it is on no network", "put it on one: network = [\"...\"]");
    };
    let inside = |socket: Option<OwnedFd>, to: Ipv4Addr| {
        let socket = socket.ok_or_else(|| io::Error::other("no socket"))?;
        connect(socket, (to, port).into(), PATIENCE).map(drop)
    };
    if let Err(error) = inside(direct, ip) {
        if inside(loopback, Ipv4Addr::LOCALHOST).is_ok() {
            let found = format!("{name} listens on port {port} of its own loopback only, where nobody else reaches it");
            return bad(found, format!("have it listen on 0.0.0.0:{port}"));
        }
        let found = format!("nothing in {name} answers on port {port}: {error}");
        return bad(found, format!("see what it says: ctst logs {name}"));
    }
    if is_offline() {
        let told = being_offline();
        return good(format!("it answers inside on {ip}:{port}; {host} of this host is not tried{told}"));
    }
    match TcpStream::connect_timeout(&host, PATIENCE) {
        Ok(_) => good(format!("it answers on {host} of this host, and inside on {ip}:{port}")),
        Err(error) => bad(
            format!("it answers inside on {ip}:{port}, and not on {host} of this host: {error}"),
            format!("start it again: ctst restart {name}"),
        ),
    }
}

/// A published port of UDP: whether sockets have it, on this host and inside.
fn port_of_datagrams(published: &Published, of: &ContainerStatus) -> Finding {
    let (name, port, host) = (&of.component, published.port, published.on_host());
    let pid = of.pid.map(|pid| pid.to_string()).unwrap_or_default();
    let inside = match Listening::of(&pid) {
        Ok(inside) => inside,
        // It has ended, or /proc hides it.
        Err(error) => return bad(error.to_string(), "see whether /proc hides processes: ctst doctor"),
    };
    let holders = inside.holders(Protocol::Udp, port);
    if holders.is_empty() {
        let found = format!("nothing in {name} takes datagrams on port {port}");
        return bad(found, format!("see what it says: ctst logs {name}"));
    }
    if holders.iter().all(IpAddr::is_loopback) {
        let found =
            format!("{name} takes datagrams on port {port} of its own loopback only, where nobody else reaches it");
        return bad(found, format!("have it listen on 0.0.0.0:{port}"));
    }
    match Listening::read() {
        Ok(here) if here.holders(Protocol::Udp, host.place.port()).contains(&host.place.ip()) => {
            good(format!("a socket takes datagrams on {host} of this host, and one on port {port} inside"))
        }
        Ok(_) => bad(
            format!("a socket takes datagrams on port {port} inside, and none on {host} of this host"),
            format!("start it again: ctst restart {name}"),
        ),
        Err(error) => bad(error.to_string(), "see whether /proc is mounted: ctst doctor"),
    }
}

/// Where a port that is published everywhere is found by whoever is here.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}
