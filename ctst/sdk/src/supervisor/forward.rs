//! Published TCP ports: what connects to a socket of the host is joined to a container by sockets that were born in the
//! project's network namespace.
//!
//! One thread serves all ports of a project from one event loop. Bytes are copied through one buffer that all connections
//! share; a connection owns memory only for what its receiver did not take yet, and while it does, nothing more is read
//! for that direction, so that a slow reader slows its sender as it would without us. (Splicing through pipes moves large
//! streams about a fifth faster, but costs four more descriptors and two pipes per connection, and the kernel shrinks a
//! user's pipes once they have taken 64 MiB together.)

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::host::confine;

/// Sockets for the containers' side are kept between these numbers while ports are published.
const POOL: std::ops::Range<usize> = 8..32;
/// Bytes moved in one go, and the most that is held for one direction of a connection.
const BUFFER: usize = 64 * 1024;
/// Buffers moved for one direction before other connections have their turn.
const ROUNDS: usize = 16;
/// Connections accepted on one port before others have their turn.
const ACCEPTS: usize = 64;
/// From accepting a connection to being connected to the container. Long enough for four retries of a service whose queue
/// of connections is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Accepting goes on after this where the process or the host ran out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
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
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Needs {
    count: AtomicUsize,
    event: OwnedFd,
}

#[derive(Debug)]
enum Command {
    Listen(u64, TcpListener),
    Unlisten(u64),
    Target(u64, Vec<SocketAddr>),
    Supply(Vec<OwnedFd>),
    Stop,
}

impl Forwarder {
    /// Starts the thread.
    ///
    /// # Errors
    /// Those of `epoll_create`, `eventfd` and of creating a thread.
    pub(crate) fn start() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let needs = Arc::new(Needs { count: AtomicUsize::new(0), event });
        let (commands, receiver) = channel();
        let state = State::new(poll, receiver, Arc::clone(&needs));
        let thread = confine::on_sockets("forward", move || state.run())?;
        Ok(Self { commands, waker, needs, thread: Some(thread) })
    }

    /// Publishes `address` (port 0: one that is free) under the caller's `id`, and returns the address in use. An IPv6
    /// address takes IPv6 only. A port of the same id is replaced. Until it has a [target](Self::target), connections to
    /// it are reset.
    ///
    /// # Errors
    /// Those of `socket`, `bind` (such as `AddrInUse`) and `listen`.
    pub(crate) fn listen(&self, id: u64, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = bind(address)?;
        let address = listener.local_addr()?;
        self.take(id, listener)?;
        Ok(address)
    }

    /// Publishes under `id` what a socket listens on that somebody else bound, as [`Self::listen`] does.
    ///
    /// # Errors
    /// Those of the thread's waker.
    pub(crate) fn take(&self, id: u64, listener: StdListener) -> io::Result<()> {
        self.send(Command::Listen(id, TcpListener::from_std(listener)))
    }

    /// Ends publishing `id`. Connections that move bytes go on.
    pub(crate) fn unlisten(&self, id: u64) {
        // The error says that the thread is gone, and the port with it.
        self.send(Command::Unlisten(id)).ok();
    }

    /// Says where connections to `id` go from now on, in turn where there are several; none: no container is up. Connections to a former target go on
    /// while they move bytes.
    pub(crate) fn target(&self, id: u64, targets: impl IntoIterator<Item = SocketAddr>) {
        self.send(Command::Target(id, targets.into_iter().collect())).ok();
    }

    /// Adds TCP sockets born in the project's network namespace, non-blocking and not connected. With an empty vector:
    /// none can be had now, and the connections that wait for one are reset.
    pub(crate) fn supply(&self, sockets: Vec<OwnedFd>) {
        self.send(Command::Supply(sockets)).ok();
    }

    /// How many sockets should be supplied. Call it when [`Self::as_fd`] gets readable, which it ends.
    #[must_use]
    pub(crate) fn needs(&self) -> usize {
        // An error says that it was not readable.
        rustix::io::read(&self.needs.event, &mut [0; 8]).ok();
        self.needs.count.load(Ordering::SeqCst)
    }

    fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| io::Error::other("the forwarder has stopped"))?;
        self.waker.wake()
    }
}

impl AsFd for Forwarder {
    /// A descriptor that gets readable when sockets are wanted.
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

fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // Publishing more than what was written, an IPv4 port, would be a surprise.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(socket.into())
}

const WAKE: Token = Token(usize::MAX);

/// Tokens are `4 * id` plus one of these. Ids are never used again, so an event that comes late finds nothing.
const LISTENER: usize = 0;
const CLIENT: usize = 1;
const BACKEND: usize = 2;
/// Both sides of a connection.
const BOTH: usize = 3;

#[derive(Debug)]
struct State {
    poll: Poll,
    commands: Receiver<Command>,
    needs: Arc<Needs>,
    /// The supervisor was asked for sockets and has not answered.
    asked: bool,
    ask_after: Option<Instant>,
    next_id: usize,
    /// By token id.
    ports: HashMap<usize, Port>,
    connections: HashMap<usize, Connection>,
    pool: Vec<OwnedFd>,
    /// Connections that wait for a socket, the oldest first. May name some that are gone.
    waiting: VecDeque<usize>,
    /// When connecting times out, the soonest first. May name some that are gone or connected.
    connecting: VecDeque<(Instant, usize)>,
    /// Tokens with more to do than they were given time for.
    again: Vec<Token>,
    accept_after: Option<(Instant, Vec<usize>)>,
    sweep_at: Option<Instant>,
    buffer: Box<[u8]>,
}

#[derive(Debug)]
struct Port {
    caller_id: u64,
    listener: TcpListener,
    targets: Vec<Target>,
    /// Counts connections: which target is next.
    turn: usize,
    /// Counts targets that came: a container that is started again is another one at the same address.
    generation: u64,
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
}

#[derive(Debug)]
struct Connection {
    port: usize,
    target: Target,
    client: TcpStream,
    backend: Backend,
    up: Flow,
    down: Flow,
    /// Bytes were moved since the last look for orphans.
    moved: bool,
}

#[derive(Debug)]
enum Backend {
    Waiting,
    Connecting(TcpStream),
    Connected(TcpStream),
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// Read but not taken by the receiver yet.
    held: Vec<u8>,
    /// How much of `held` was taken.
    taken: usize,
    /// The source announced its end, so a short read is not a sign that no event is missed.
    closing: bool,
    ended: bool,
    passed_on: bool,
}

enum Pumped {
    /// One side has to get ready first, or the direction has ended.
    Waits,
    More,
}

impl Pumped {
    fn or(self, other: Self) -> Self {
        if let Self::More = self { self } else { other }
    }
}

impl State {
    fn new(poll: Poll, commands: Receiver<Command>, needs: Arc<Needs>) -> Self {
        Self {
            poll,
            commands,
            needs,
            asked: false,
            ask_after: None,
            next_id: 0,
            ports: HashMap::new(),
            connections: HashMap::new(),
            pool: Vec::new(),
            waiting: VecDeque::new(),
            connecting: VecDeque::new(),
            again: Vec::new(),
            accept_after: None,
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
                    if !self.obey() {
                        return;
                    }
                    continue;
                }
                if event.is_read_closed() {
                    self.note_closing(event.token());
                }
                self.ready(event.token(), event.is_error());
            }
            self.on_time(Instant::now());
            self.connect_waiting();
            self.ask(Instant::now());
        }
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let times = [
            self.ask_after,
            self.connecting.front().map(|(at, _)| *at),
            self.accept_after.as_ref().map(|(at, _)| *at),
            self.sweep_at,
        ];
        times.into_iter().flatten().min().map(|at| at.saturating_duration_since(now))
    }

    /// Carries out the commands that are there; false: the last one was to stop.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Listen(caller_id, listener) => self.add_port(caller_id, listener),
                Command::Unlisten(caller_id) => self.remove_port(caller_id),
                Command::Target(caller_id, targets) => {
                    let port = self.ports.values_mut().find(|p| p.caller_id == caller_id);
                    if port.is_some_and(|port| port.aim(&targets)) {
                        self.sweep_soon();
                    }
                }
                Command::Supply(sockets) => {
                    self.asked = false;
                    if sockets.is_empty() {
                        self.ask_after = Some(Instant::now() + SUPPLY_PAUSE);
                        for id in std::mem::take(&mut self.waiting) {
                            self.reset(id);
                        }
                    }
                    if !self.ports.is_empty() {
                        self.pool.extend(sockets);
                    }
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn add_port(&mut self, caller_id: u64, mut listener: TcpListener) {
        self.remove_port(caller_id);
        self.next_id += 1;
        let id = self.next_id;
        // Only a full epoll limit of the user refuses; the port is closed then, so that clients see it.
        if self.poll.registry().register(&mut listener, Token(4 * id + LISTENER), Interest::READABLE).is_ok() {
            self.ports.insert(id, Port { caller_id, listener, targets: Vec::new(), turn: 0, generation: 0 });
        }
    }

    fn remove_port(&mut self, caller_id: u64) {
        self.ports.retain(|_, port| port.caller_id != caller_id);
        self.sweep_soon();
        if self.ports.is_empty() {
            self.pool.clear();
        }
    }

    fn sweep_soon(&mut self) {
        self.sweep_at.get_or_insert_with(|| Instant::now() + ORPHAN_TIMEOUT);
    }

    fn note_closing(&mut self, token: Token) {
        if let Some(connection) = self.connections.get_mut(&(token.0 / 4)) {
            let flow = if token.0 % 4 == CLIENT { &mut connection.up } else { &mut connection.down };
            flow.closing = true;
        }
    }

    fn ready(&mut self, token: Token, failed: bool) {
        let (id, side) = (token.0 / 4, token.0 % 4);
        if side == LISTENER {
            return self.accept(id);
        }
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut side = side;
        if let Backend::Connecting(stream) = &connection.backend {
            match connected(stream) {
                Ok(true) => {}
                Ok(false) if !failed => return,
                _ => return self.reset(id),
            }
            if let Backend::Connecting(stream) = std::mem::replace(&mut connection.backend, Backend::Waiting) {
                connection.backend = Backend::Connected(stream);
            }
            side = BOTH;
        }
        let Connection { client, backend, up, down, moved, .. } = connection;
        let Backend::Connected(backend) = backend else {
            // What the client sent waits in the kernel for the container; only its giving up is seen now.
            if failed {
                self.reset(id);
            }
            return;
        };
        // An event of one side is about reading there, and about writing there where the other direction waits for it.
        let mut pumped = Ok(Pumped::Waits);
        if side != BACKEND || !up.held.is_empty() {
            pumped = up.pump(client, backend, &mut self.buffer, moved);
        }
        if side != CLIENT || !down.held.is_empty() {
            pumped = pumped.and_then(|up| Ok(up.or(down.pump(backend, client, &mut self.buffer, moved)?)));
        }
        match pumped {
            Ok(_) if up.passed_on && down.passed_on => {
                self.connections.remove(&id);
            }
            Ok(Pumped::More) => self.again.push(Token(4 * id + BOTH)),
            // An error that no read came across is one of a side that is not read from now.
            Ok(Pumped::Waits) if !failed => {}
            _ => self.reset(id),
        }
    }

    fn accept(&mut self, id: usize) {
        let Some(port) = self.ports.get_mut(&id) else { return };
        for _ in 0..ACCEPTS {
            let client = match port.listener.accept() {
                Ok((client, _)) => client,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // The connection ended before it was accepted.
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => continue,
                Err(_) => {
                    let at = Instant::now() + ACCEPT_PAUSE;
                    self.accept_after.get_or_insert_with(|| (at, Vec::new())).1.push(id);
                    return;
                }
            };
            let Some(target) = port.next() else {
                abort(&client);
                continue;
            };
            self.next_id += 1;
            let new = self.next_id;
            match prepare(client, self.poll.registry(), Token(4 * new + CLIENT)) {
                Ok(client) => {
                    let connection = Connection {
                        port: id,
                        target,
                        client,
                        backend: Backend::Waiting,
                        up: Flow::default(),
                        down: Flow::default(),
                        moved: false,
                    };
                    self.connections.insert(new, connection);
                    self.waiting.push_back(new);
                    self.connecting.push_back((Instant::now() + CONNECT_TIMEOUT, new));
                }
                // It was closed by dropping it: the client hung up, or epoll's limit is reached.
                Err(_) => continue,
            }
        }
        self.again.push(Token(4 * id + LISTENER));
    }

    fn connect_waiting(&mut self) {
        while !self.waiting.is_empty() && !self.pool.is_empty() {
            let Some(id) = self.waiting.pop_front() else { return };
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            let current = self.ports.get_mut(&connection.port).and_then(|port| {
                // Another does as well, where the one that it was meant for has gone meanwhile.
                if port.targets.contains(&connection.target) { Some(connection.target) } else { port.next() }
            });
            let (Some(target), Some(socket)) = (current, self.pool.pop()) else {
                self.reset(id);
                continue;
            };
            connection.target = target;
            match connect(socket, target.0, self.poll.registry(), Token(4 * id + BACKEND)) {
                // Even if it is connected at once, the first event says so.
                Ok(stream) => connection.backend = Backend::Connecting(stream),
                Err(_) => self.reset(id),
            }
        }
    }

    fn on_time(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.connecting.front() {
            let connected = self.connections.get(&id).is_none_or(|c| matches!(c.backend, Backend::Connected(_)));
            if !connected && at > now {
                break;
            }
            self.connecting.pop_front();
            if !connected {
                self.reset(id);
            }
        }
        if let Some((at, ports)) = self.accept_after.take() {
            if at > now {
                self.accept_after = Some((at, ports));
            } else {
                ports.into_iter().for_each(|port| self.accept(port));
            }
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep_at = None;
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        let mut dead = Vec::new();
        for (id, connection) in &mut self.connections {
            if self.ports.get(&connection.port).is_some_and(|port| port.targets.contains(&connection.target)) {
                continue;
            }
            if std::mem::take(&mut connection.moved) {
                self.sweep_at = Some(Instant::now() + ORPHAN_TIMEOUT);
            } else {
                dead.push(*id);
            }
        }
        dead.into_iter().for_each(|id| self.reset(id));
    }

    /// Ends a connection so that both ends see a reset and not an orderly end.
    fn reset(&mut self, id: usize) {
        if let Some(connection) = self.connections.remove(&id) {
            abort(&connection.client);
            if let Backend::Connecting(stream) | Backend::Connected(stream) = &connection.backend {
                abort(stream);
            }
        }
    }

    fn ask(&mut self, now: Instant) {
        self.pool.truncate(POOL.end);
        if self.ports.is_empty() {
            self.ask_after = None;
            return self.needs.count.store(0, Ordering::SeqCst);
        }
        let needs = (POOL.end + self.waiting.len()).saturating_sub(self.pool.len());
        self.needs.count.store(needs, Ordering::SeqCst);
        if self.ask_after.is_some_and(|at| at > now) {
            return;
        }
        self.ask_after = None;
        if !self.asked && (self.pool.len() < POOL.start || !self.waiting.is_empty()) {
            // The counter cannot overflow: it is written once between two answers.
            self.asked = rustix::io::write(&self.needs.event, &1u64.to_ne_bytes()).is_ok();
        }
    }
}

impl Flow {
    fn pump(
        &mut self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        buffer: &mut [u8],
        moved: &mut bool,
    ) -> io::Result<Pumped> {
        for _ in 0..ROUNDS {
            while self.taken < self.held.len() {
                match to.write(&self.held[self.taken..]) {
                    Ok(n) => self.taken += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Pumped::Waits),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
                *moved = true;
            }
            // An idle connection holds no memory.
            (self.held, self.taken) = (Vec::new(), 0);
            if self.ended {
                if !self.passed_on {
                    to.shutdown(Shutdown::Write)?;
                    self.passed_on = true;
                }
                return Ok(Pumped::Waits);
            }
            let read = match from.read(buffer) {
                Ok(0) => {
                    self.ended = true;
                    continue;
                }
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Pumped::Waits),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let written = match to.write(&buffer[..read]) {
                Ok(written) => written,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
                Err(e) => return Err(e),
            };
            *moved = true;
            if written < read {
                self.held = buffer[written..read].to_vec();
            } else if read < buffer.len() && !self.closing {
                // The queue is empty; whatever comes after this makes an event of its own.
                return Ok(Pumped::Waits);
            }
        }
        Ok(Pumped::More)
    }
}

fn prepare(mut client: TcpStream, registry: &Registry, token: Token) -> io::Result<TcpStream> {
    client.set_nodelay(true)?;
    // Finds clients that vanished without a word, after the kernel's two hours.
    sockopt::set_socket_keepalive(&client, true)?;
    registry.register(&mut client, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(client)
}

fn connect(socket: OwnedFd, target: SocketAddr, registry: &Registry, token: Token) -> io::Result<TcpStream> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(e) => return Err(e.into()),
    }
    let mut stream = TcpStream::from_std(StdStream::from(socket));
    registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

fn connected(stream: &TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes closing `stream` a reset.
fn abort(stream: &TcpStream) {
    // Refused only for what is no socket.
    sockopt::set_socket_linger(stream, Some(Duration::ZERO)).ok();
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::process::Command;
    use std::sync::atomic::AtomicBool;
    use std::thread::sleep;

    use super::*;

    const LOCAL: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A forwarder with a thread that supplies it as the supervisor does, from this namespace.
    struct Stage {
        forwarder: Arc<Forwarder>,
        address: SocketAddr,
        server: StdListener,
        stop: Arc<AtomicBool>,
        supplier: Option<JoinHandle<()>>,
    }

    impl Stage {
        fn new() -> Self {
            let forwarder = Arc::new(Forwarder::start().unwrap());
            let server = bind(LOCAL).unwrap();
            server.set_nonblocking(false).unwrap();
            let address = forwarder.listen(7, LOCAL).unwrap();
            forwarder.target(7, Some(server.local_addr().unwrap()));
            let stop = Arc::new(AtomicBool::new(false));
            let supplier = std::thread::spawn({
                let (forwarder, stop) = (Arc::clone(&forwarder), Arc::clone(&stop));
                move || {
                    while !stop.load(Ordering::SeqCst) {
                        if readable(&forwarder, Duration::from_millis(20)) {
                            for _ in 0..forwarder.needs().div_ceil(16) {
                                forwarder.supply((0..16).map(|_| socket()).collect());
                            }
                        }
                    }
                }
            });
            Self { forwarder, address, server, stop, supplier: Some(supplier) }
        }

        fn connect(&self) -> StdStream {
            let client = StdStream::connect(self.address).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.set_write_timeout(Some(PATIENCE)).unwrap();
            client
        }

        fn pair(&self) -> (StdStream, StdStream) {
            let client = self.connect();
            let (server, _) = self.server.accept().unwrap();
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            server.set_write_timeout(Some(PATIENCE)).unwrap();
            (client, server)
        }
    }

    impl Drop for Stage {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::SeqCst);
            self.supplier.take().unwrap().join().unwrap();
        }
    }

    fn socket() -> OwnedFd {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap()
    }

    fn readable(fd: &impl AsFd, wait: Duration) -> bool {
        let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&wait.try_into().unwrap())).unwrap() > 0
    }

    fn read_all(stream: &mut StdStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[track_caller]
    fn assert_reset(stream: &mut StdStream) {
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }

    fn eventually(condition: impl Fn() -> bool) -> bool {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if condition() {
                return true;
            }
            sleep(Duration::from_millis(10));
        }
        false
    }

    /// Bytes in which a shift or a swap of blocks shows.
    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
    }

    fn raise_descriptor_limit() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let hard = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    }

    /// Descriptors are counted in a process that runs nothing else.
    fn alone() -> bool {
        if std::env::var_os("FORWARD_TEST_ALONE").is_some() {
            return true;
        }
        let name = std::thread::current().name().unwrap().to_owned();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture"])
            .env("FORWARD_TEST_ALONE", "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        false
    }

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn two_thousand_at_once_and_no_descriptor_left() {
        if !alone() {
            return;
        }
        raise_descriptor_limit();
        let before_all = descriptors();
        let stage = Stage::new();
        assert!(eventually(|| descriptors() >= before_all + POOL.end));
        let before = descriptors();
        let mut clients: Vec<_> = (0..2000).map(|_| stage.connect()).collect();
        let mut servers: Vec<_> = (0..2000).map(|_| stage.server.accept().unwrap().0).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            write!(client, "{n:08}").unwrap();
        }
        for server in &mut servers {
            let mut hello = [0; 8];
            server.read_exact(&mut hello).unwrap();
            server.write_all(&hello).unwrap();
        }
        for (n, client) in clients.iter_mut().enumerate() {
            let mut answer = [0; 8];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(answer, format!("{n:08}").as_bytes());
        }
        // What is in the pool now may not be what was in it before.
        assert!(descriptors() >= before_all + 8000);
        // Ends of all kinds.
        for (n, (client, server)) in clients.into_iter().zip(servers).enumerate() {
            match n % 3 {
                0 => drop((client, server)),
                1 => drop((server, client)),
                _ => sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap(),
            }
        }
        let pooled = POOL.end - POOL.start;
        assert!(eventually(|| descriptors() <= before + pooled), "{} of {before} left", descriptors());
        drop(stage);
        assert_eq!(descriptors(), before_all);
    }

    #[test]
    fn each_direction_closes_by_itself() {
        let stage = Stage::new();
        for client_first in [true, false] {
            let (client, server) = stage.pair();
            let (mut first, mut second) = if client_first { (client, server) } else { (server, client) };
            first.write_all(b"question").unwrap();
            first.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&mut second), b"question");
            sleep(Duration::from_millis(30));
            let answer = pattern(1_000_000);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    second.write_all(&answer).unwrap();
                    second.shutdown(Shutdown::Write).unwrap();
                });
                assert!(read_all(&mut first) == answer);
            });
        }
    }

    #[test]
    fn large_streams_arrive_whole_in_both_directions_at_once() {
        let stage = Stage::new();
        let (client, server) = stage.pair();
        let data = pattern(32 << 20);
        std::thread::scope(|scope| {
            for mut stream in [client.try_clone().unwrap(), server.try_clone().unwrap()] {
                let data = &data;
                scope.spawn(move || {
                    // Odd lengths make partial reads and writes.
                    data.chunks(77_777).for_each(|chunk| stream.write_all(chunk).unwrap());
                    stream.shutdown(Shutdown::Write).unwrap();
                });
            }
            for mut stream in [client, server] {
                let data = &data;
                scope.spawn(move || assert!(read_all(&mut stream) == *data));
            }
        });
    }

    #[test]
    fn a_slow_reader_slows_its_sender_and_nobody_else() {
        if !alone() {
            return;
        }
        let stage = Stage::new();
        let (mut client, mut server) = stage.pair();
        server.set_nonblocking(true).unwrap();
        let chunk = pattern(1 << 20);
        let mut sent = 0;
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(300) {
            match server.write(&chunk[sent % chunk.len()..]) {
                Ok(n) => (sent, last) = (sent + n, Instant::now()),
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                    sleep(Duration::from_millis(5));
                }
            }
        }
        // What four socket buffers hold at most by tcp_rmem and tcp_wmem, and our one.
        assert!(sent < 40 << 20, "{sent} bytes taken from the sender");
        let cpu = cpu_time();
        let (mut other, mut other_server) = stage.pair();
        other.write_all(b"quick").unwrap();
        other_server.read_exact(&mut [0; 5]).unwrap();
        sleep(Duration::from_millis(500));
        assert!(cpu_time() - cpu < Duration::from_millis(100), "waiting takes no processor time");

        server.shutdown(Shutdown::Write).unwrap();
        let received = read_all(&mut client);
        assert_eq!(received.len(), sent);
        assert!(received.chunks(chunk.len()).all(|c| c == &chunk[..c.len()]));
    }

    /// Processor time of this process, which does nothing else. Needs no descriptor, of which there may be none.
    fn cpu_time() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.try_into().unwrap()
    }

    #[test]
    fn resets_are_passed_on() {
        let stage = Stage::new();
        for client_first in [true, false] {
            let (client, server) = stage.pair();
            let (first, mut second) = if client_first { (client, server) } else { (server, client) };
            sockopt::set_socket_linger(&first, Some(Duration::ZERO)).unwrap();
            drop(first);
            assert_reset(&mut second);
        }
        // While the forwarder holds bytes that the other side does not take.
        let (mut client, server) = stage.pair();
        client.set_nonblocking(true).unwrap();
        let (mut sent, mut last) = (0, Instant::now());
        while last.elapsed() < Duration::from_millis(100) {
            match client.write(&[0; 65_536]) {
                Ok(n) => (sent, last) = (sent + n, Instant::now()),
                Err(_) => sleep(Duration::from_millis(5)),
            }
        }
        assert!(sent > BUFFER);
        sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        assert!(eventually(|| server.take_error().unwrap().is_some()), "the reset arrives before the bytes are read");
    }

    #[test]
    fn no_container_no_listener_no_port() {
        let stage = Stage::new();
        stage.forwarder.target(7, None);
        assert_reset(&mut stage.connect());
        let refused = bind(LOCAL).unwrap().local_addr().unwrap();
        stage.forwarder.target(7, Some(refused));
        assert_reset(&mut stage.connect());
        stage.forwarder.target(7, Some("[::1]:1".parse().unwrap()));
        assert_reset(&mut stage.connect());
        stage.forwarder.target(7, Some(stage.server.local_addr().unwrap()));
        drop(stage.pair());
        stage.forwarder.unlisten(7);
        let refused = || StdStream::connect(stage.address).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        assert!(eventually(refused));
        assert_eq!(stage.forwarder.listen(7, stage.address).unwrap(), stage.address);
        let taken = stage.forwarder.listen(8, stage.address).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn connections_to_a_container_that_is_gone_end() {
        let stage = Stage::new();
        let (mut idle, _idle_server) = stage.pair();
        let (mut busy, mut busy_server) = stage.pair();
        stage.forwarder.target(7, None);
        stage.forwarder.target(7, Some(stage.server.local_addr().unwrap()));
        let until = Instant::now() + ORPHAN_TIMEOUT + Duration::from_secs(1);
        while Instant::now() < until {
            busy_server.write_all(b"x").unwrap();
            busy.read_exact(&mut [0]).unwrap();
            sleep(Duration::from_millis(100));
        }
        assert_reset(&mut idle);
        drop(stage.pair());
    }

    #[test]
    fn without_supply_clients_are_reset_and_the_asking_is_calm() {
        let forwarder = Forwarder::start().unwrap();
        assert!(!readable(&forwarder, Duration::from_millis(50)), "nothing is published yet");
        let address = forwarder.listen(1, LOCAL).unwrap();
        forwarder.target(1, Some(address));
        assert!(readable(&forwarder, PATIENCE));
        assert_eq!(forwarder.needs(), POOL.end);
        let mut client = StdStream::connect(address).unwrap();
        assert!(!readable(&forwarder, Duration::from_millis(50)), "asked for once");
        forwarder.supply(Vec::new());
        assert_reset(&mut client);
        assert!(!readable(&forwarder, SUPPLY_PAUSE / 2));
        assert!(readable(&forwarder, PATIENCE), "asked for again");
        forwarder.supply((0..POOL.end).map(|_| socket()).collect());
        assert!(eventually(|| forwarder.needs() == 0));
    }

    #[test]
    fn running_out_of_descriptors_is_survived() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        if !alone() {
            return;
        }
        let stage = Stage::new();
        drop(stage.pair());
        // The clients' descriptors are taken before the limit falls, so that only `accept` meets it.
        let flags = SocketFlags::CLOEXEC;
        let sockets: Vec<OwnedFd> = (0..50)
            .map(|_| rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap())
            .collect();
        let server = stage.server.try_clone().unwrap();
        let used = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().parse::<u64>().unwrap())
            .max()
            .unwrap();
        let limit = getrlimit(Resource::Nofile);
        // The supplier has to live on.
        stage.stop.store(true, Ordering::SeqCst);
        sleep(Duration::from_millis(50));
        setrlimit(Resource::Nofile, Rlimit { current: Some(used + 1), ..limit }).unwrap();
        for socket in &sockets {
            rustix::net::connect(socket, &stage.address).unwrap();
        }
        let cpu = cpu_time();
        sleep(Duration::from_millis(500));
        assert!(cpu_time() - cpu < Duration::from_millis(100), "running out is no busy loop");
        setrlimit(Resource::Nofile, limit).unwrap();
        let supplied = (0..64).map(|_| socket()).collect();
        stage.forwarder.supply(supplied);
        let mut clients: Vec<StdStream> = sockets.into_iter().map(StdStream::from).collect();
        for client in &mut clients {
            client.write_all(b"late").unwrap();
        }
        for _ in 0..50 {
            server.accept().unwrap().0.read_exact(&mut [0; 4]).unwrap();
        }
    }
}
