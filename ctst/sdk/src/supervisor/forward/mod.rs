//! Published ports: what comes to a socket of the host is joined to a container by sockets that were born in the project's
//! network namespace.
//!
//! One thread serves all ports of a project from one event loop: connections ([`tcp`]) and datagrams ([`udp`]).

mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use containust_lang::model::{Protocol, Subnet};
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use self::tcp::Connection;
use self::udp::{Door, Flows};
use super::publisher::Publisher;
use crate::host::confine;
use crate::status::HostPort;

/// Sockets for the containers' side are kept between these numbers while ports are published, of each protocol.
const POOL: std::ops::Range<usize> = 8..32;
/// Bytes moved in one go, the most that is held for one direction of a connection, and more than any datagram.
const BUFFER: usize = 64 * 1024;
/// After a failed supply, time until sockets are asked for again.
const SUPPLY_PAUSE: Duration = Duration::from_secs(1);
/// A connection to a container that is gone ends after moving nothing for this long. Its last bytes may still be under way
/// to a slow client, while the container, whose network is gone with it, may have no way to tell its end.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(5);

/// Joins published ports to containers. Dropping it closes all of them.
#[derive(Debug)]
pub(crate) struct Forwarder {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    needs: Arc<Needs>,
    publisher: Publisher,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Needs {
    tcp: AtomicUsize,
    udp: AtomicUsize,
    /// Ports whose clients wait, by the caller's ids, and why.
    full: Mutex<Vec<(u64, String)>>,
    event: OwnedFd,
}

impl Needs {
    fn of(&self, protocol: Protocol) -> &AtomicUsize {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }
}

#[derive(Debug)]
enum Command {
    Listen(u64, Protocol, OwnedFd),
    Unlisten(u64),
    Target(u64, Vec<SocketAddr>),
    Supply(Protocol, Vec<OwnedFd>),
    Networks(Vec<Subnet>),
    Stop,
}

impl Forwarder {
    /// Starts the thread.
    ///
    /// # Errors
    /// Those of `epoll_create`, `eventfd` and of creating a thread.
    pub(crate) fn start(publisher: Publisher) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let needs =
            Arc::new(Needs { tcp: AtomicUsize::new(0), udp: AtomicUsize::new(0), full: Mutex::default(), event });
        let (commands, receiver) = channel();
        let state = State::new(poll, receiver, Arc::clone(&needs));
        let thread = confine::on_sockets("forward", move || state.run())?;
        Ok(Self { commands, waker, needs, publisher, thread: Some(thread) })
    }

    /// Publishes a port (number 0: one that is free) under the caller's `id`, and returns the address in use. An IPv6
    /// address takes IPv6 only. A port of the same id is replaced. Until it has a [target](Self::target), connections to
    /// it are reset, and datagrams are lost.
    ///
    /// # Errors
    /// Those of `socket`, `bind` (such as `AddrInUse`) and `listen`.
    pub(crate) fn listen(&self, id: u64, port: HostPort) -> io::Result<SocketAddr> {
        let socket = self.publisher.make(move || bind(port))?;
        let address = rustix::net::getsockname(&socket)?.try_into()?;
        self.take(id, port.protocol, socket)?;
        Ok(address)
    }

    /// Publishes under `id` what comes to a socket that somebody else bound, as [`Self::listen`] does.
    ///
    /// # Errors
    /// Those of the thread's waker.
    pub(crate) fn take(&self, id: u64, protocol: Protocol, socket: OwnedFd) -> io::Result<()> {
        self.send(Command::Listen(id, protocol, socket))
    }

    /// Ends publishing `id`. Connections that move bytes go on.
    pub(crate) fn unlisten(&self, id: u64) {
        // The error says that the thread is gone, and the port with it.
        self.send(Command::Unlisten(id)).ok();
    }

    /// Says where connections to `id` go from now on, in turn where there are several; none: no container is up. Connections to a former target go on
    /// while they move bytes; datagrams go there no more.
    pub(crate) fn target(&self, id: u64, targets: impl IntoIterator<Item = SocketAddr>) {
        self.send(Command::Target(id, targets.into_iter().collect())).ok();
    }

    /// Says which addresses are those of the project's networks: no client is shown to a container as one of them.
    pub(crate) fn networks(&self, subnets: Vec<Subnet>) {
        self.send(Command::Networks(subnets)).ok();
    }

    /// Adds sockets born in the project's network namespace, non-blocking and not connected, which can have any address. With an empty vector:
    /// none can be had now, and the connections that wait for one are reset.
    pub(crate) fn supply(&self, protocol: Protocol, sockets: Vec<OwnedFd>) {
        self.send(Command::Supply(protocol, sockets)).ok();
    }

    /// Ends that [`Self::as_fd`] is readable, before [`Self::needs`] is asked.
    pub(crate) fn noticed(&self) {
        // An error says that it was not readable.
        rustix::io::read(&self.needs.event, &mut [0; 8]).ok();
    }

    /// How many sockets should be supplied.
    #[must_use]
    pub(crate) fn needs(&self, protocol: Protocol) -> usize {
        self.needs.of(protocol).load(Ordering::SeqCst)
    }

    /// Ports whose clients have to wait, by their ids, and why: each once a minute at most.
    pub(crate) fn full(&self) -> Vec<(u64, String)> {
        std::mem::take(&mut *self.needs.full.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| io::Error::other("the forwarder has stopped"))?;
        self.waker.wake()
    }
}

impl AsFd for Forwarder {
    /// A descriptor that gets readable when sockets are wanted, or clients wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.needs.event.as_fd()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.send(Command::Stop).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn bind(HostPort { protocol, place }: HostPort) -> io::Result<OwnedFd> {
    let family = if place.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if place.is_ipv6() {
        // Publishing more than what was written, an IPv4 port, would be a surprise.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    match protocol {
        Protocol::Tcp => {
            sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &place)?;
            rustix::net::listen(&socket, 4096)?;
        }
        // With SO_REUSEADDR two would have the port, and one of them would get nothing (socket(7)).
        Protocol::Udp => rustix::net::bind(&socket, &place)?,
    }
    Ok(socket)
}

/// Whom a container shall see: the client, where his address means to the container what it means here. That of this host's
/// loopback would be the container's own, one of the project's networks another component's, a link-local one somebody else's on its
/// link; and containers have no IPv6.
fn shown(client: SocketAddr, subnets: &[Subnet]) -> Option<SocketAddr> {
    let IpAddr::V4(ip) = client.ip() else { return None };
    let is_ours = subnets.iter().any(|subnet| subnet.number(ip).is_some());
    let plain = !(ip.is_loopback()
        || ip.is_link_local()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip == Ipv4Addr::BROADCAST);
    (plain && !is_ours).then_some(client)
}

/// Gives a socket the address that a container shall see, with the same port if nobody has it there.
fn show_as(socket: &OwnedFd, client: Option<SocketAddr>) -> io::Result<()> {
    let Some(client) = client else { return Ok(()) };
    if rustix::net::bind(socket, &client).is_err() {
        rustix::net::bind(socket, &SocketAddr::new(client.ip(), 0))?;
    }
    Ok(())
}

const WAKE: Token = Token(usize::MAX);

/// Tokens are `4 * id` plus one of these. Ids are never used again, so an event that comes late finds nothing.
const DOOR: usize = 0;
const CLIENT: usize = 1;
const BACKEND: usize = 2;
/// Both sides of a connection.
const BOTH: usize = 3;

#[derive(Debug)]
struct State {
    poll: Poll,
    commands: Receiver<Command>,
    is_stopped: bool,
    needs: Arc<Needs>,
    next_id: usize,
    /// By token id.
    ports: HashMap<usize, Port>,
    connections: HashMap<usize, Connection>,
    /// Connections that wait for a socket, the oldest first. May name some that are gone.
    waiting: VecDeque<usize>,
    /// When connecting times out, the soonest first. May name some that are gone or connected.
    connecting: VecDeque<(Instant, usize)>,
    accept_after: Option<(Instant, Vec<usize>)>,
    flows: Flows,
    /// Addresses that belong to the project.
    subnets: Vec<Subnet>,
    tcp: Pool,
    udp: Pool,
    /// Tokens with more to do than they were given time for.
    again: Vec<Token>,
    sweep_at: Option<Instant>,
    buffer: Box<[u8]>,
}

#[derive(Debug)]
struct Port {
    caller_id: u64,
    socket: Socket,
    targets: Vec<Target>,
    /// Counts connections: which target is next.
    turn: usize,
    /// Counts targets that came: a container that is started again is another one at the same address.
    generation: u64,
    /// When it was told that its clients wait.
    told_full: Option<Instant>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(Door),
}

/// An address, and when it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target(SocketAddr, u64);

impl Port {
    /// Where the next connection goes.
    fn next(&mut self) -> Option<Target> {
        let target = self.targets.get(self.turn.checked_rem(self.targets.len())?).copied();
        self.turn = self.turn.wrapping_add(1);
        target
    }

    fn aim(&mut self, addresses: &[SocketAddr]) -> bool {
        let known = |targets: &[Target], address| targets.iter().find(|target| target.0 == address).copied();
        let mut targets = Vec::with_capacity(addresses.len());
        for address in addresses {
            targets.push(known(&self.targets, *address).unwrap_or_else(|| {
                self.generation += 1;
                Target(*address, self.generation)
            }));
        }
        let changed = targets != self.targets;
        self.targets = targets;
        changed
    }

    fn protocol(&self) -> Protocol {
        match self.socket {
            Socket::Tcp(_) => Protocol::Tcp,
            Socket::Udp(_) => Protocol::Udp,
        }
    }
}

/// Sockets of the containers' side that wait to be used.
#[derive(Debug, Default)]
struct Pool {
    sockets: Vec<OwnedFd>,
    /// The supervisor was asked for more and has not answered.
    asked: bool,
    ask_after: Option<Instant>,
}

impl State {
    fn new(poll: Poll, commands: Receiver<Command>, needs: Arc<Needs>) -> Self {
        Self {
            poll,
            commands,
            is_stopped: false,
            needs,
            next_id: 0,
            ports: HashMap::new(),
            connections: HashMap::new(),
            waiting: VecDeque::new(),
            connecting: VecDeque::new(),
            accept_after: None,
            flows: Flows::default(),
            subnets: Vec::new(),
            tcp: Pool::default(),
            udp: Pool::default(),
            again: Vec::new(),
            sweep_at: None,
            buffer: vec![0; BUFFER].into_boxed_slice(),
        }
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            let timeout = self.timeout(Instant::now());
            match self.poll.poll(&mut events, timeout) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Only a programming error is left; the next `listen` of the supervisor tells.
                Err(_) => return,
                Ok(()) => {}
            }
            for token in std::mem::take(&mut self.again) {
                self.ready(token, false);
            }
            for event in &events {
                if event.token() == WAKE {
                    self.obey();
                    continue;
                }
                if event.is_read_closed() {
                    self.note_closing(event.token());
                }
                self.ready(event.token(), event.is_error());
            }
            if self.is_stopped {
                return;
            }
            self.on_time(Instant::now());
            self.connect_waiting();
            self.send_waiting();
            self.ask(Protocol::Tcp);
            self.ask(Protocol::Udp);
        }
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let times = [
            self.tcp.ask_after,
            self.udp.ask_after,
            self.connecting.front().map(|(at, _)| *at),
            self.accept_after.as_ref().map(|(at, _)| *at),
            self.sweep_at,
            self.flows.next(),
        ];
        times.into_iter().flatten().min().map(|at| at.saturating_duration_since(now))
    }

    /// Where who has just come to this port is led. He may have come after a command that is not carried out yet.
    fn lead(&mut self, port: usize) -> Option<Target> {
        self.obey();
        self.ports.get_mut(&port)?.next()
    }

    /// Carries out the commands that are there.
    fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Listen(caller_id, protocol, socket) => self.add_port(caller_id, protocol, socket),
                Command::Unlisten(caller_id) => self.remove_port(caller_id),
                Command::Target(caller_id, targets) => {
                    let port = self.ports.iter_mut().find(|(_, port)| port.caller_id == caller_id);
                    if let Some((id, port)) = port
                        && port.aim(&targets)
                    {
                        let (id, targets) = (*id, port.targets.clone());
                        self.flows.keep(id, &targets);
                        self.sweep_soon();
                    }
                }
                Command::Supply(protocol, sockets) => {
                    let wanted = self.has(protocol);
                    let pool = self.pool(protocol);
                    pool.asked = false;
                    if sockets.is_empty() {
                        pool.ask_after = Some(Instant::now() + SUPPLY_PAUSE);
                    }
                    let none = sockets.is_empty();
                    if wanted {
                        pool.sockets.extend(sockets);
                    }
                    if none {
                        match protocol {
                            Protocol::Tcp => {
                                for id in std::mem::take(&mut self.waiting) {
                                    self.reset(id);
                                }
                            }
                            Protocol::Udp => self.flows.drop_waiting(),
                        }
                    }
                }
                Command::Networks(subnets) => self.subnets = subnets,
                Command::Stop => self.is_stopped = true,
            }
        }
    }

    fn pool(&mut self, protocol: Protocol) -> &mut Pool {
        match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
        }
    }

    fn has(&self, protocol: Protocol) -> bool {
        self.ports.values().any(|port| port.protocol() == protocol)
    }

    fn add_port(&mut self, caller_id: u64, protocol: Protocol, socket: OwnedFd) {
        self.remove_port(caller_id);
        self.next_id += 1;
        let id = self.next_id;
        let (registry, token) = (self.poll.registry(), Token(4 * id + DOOR));
        // Only a full epoll limit of the user refuses; the port is closed then, so that clients see it.
        let opened = match protocol {
            Protocol::Tcp => {
                let mut listener = TcpListener::from_std(socket.into());
                registry.register(&mut listener, token, Interest::READABLE).map(|()| Socket::Tcp(listener))
            }
            Protocol::Udp => Door::open(socket.into(), registry, token).map(Socket::Udp),
        };
        if let Ok(socket) = opened {
            self.ports
                .insert(id, Port { caller_id, socket, targets: Vec::new(), turn: 0, generation: 0, told_full: None });
        }
    }

    fn remove_port(&mut self, caller_id: u64) {
        let Some(id) = self.ports.iter().find(|(_, port)| port.caller_id == caller_id).map(|(id, _)| *id) else {
            return;
        };
        self.ports.remove(&id);
        self.flows.keep(id, &[]);
        self.sweep_soon();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            if !self.has(protocol) {
                self.pool(protocol).sockets.clear();
            }
        }
    }

    fn ready(&mut self, token: Token, failed: bool) {
        let (id, side) = (token.0 / 4, token.0 % 4);
        if side != DOOR {
            if self.flows.has(id) {
                self.answer(id);
            } else {
                self.move_on(id, side, failed);
            }
            return;
        }
        match self.ports.get(&id).map(Port::protocol) {
            Some(Protocol::Tcp) => self.accept(id),
            Some(Protocol::Udp) => self.receive(id),
            None => {}
        }
    }

    fn on_time(&mut self, now: Instant) {
        self.on_connect_time(now);
        self.flows.expire(now);
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep_at = None;
            self.sweep();
        }
    }

    fn ask(&mut self, protocol: Protocol) {
        let waiting = match protocol {
            Protocol::Tcp => self.waiting.len(),
            Protocol::Udp => self.flows.waiting(),
        };
        let wanted = self.has(protocol);
        let pool = self.pool(protocol);
        pool.sockets.truncate(POOL.end);
        if !wanted {
            pool.ask_after = None;
            return self.needs.of(protocol).store(0, Ordering::SeqCst);
        }
        let needs = (POOL.end + waiting).saturating_sub(pool.sockets.len());
        let soon = pool.sockets.len() < POOL.start || waiting > 0;
        let early = pool.ask_after.is_some_and(|at| at > Instant::now());
        if !early {
            pool.ask_after = None;
        }
        let asks = !early && !pool.asked && soon;
        self.needs.of(protocol).store(needs, Ordering::SeqCst);
        if asks {
            // The counter cannot overflow: it is written once between two answers.
            let asked = rustix::io::write(&self.needs.event, &1u64.to_ne_bytes()).is_ok();
            self.pool(protocol).asked = asked;
        }
    }
}
