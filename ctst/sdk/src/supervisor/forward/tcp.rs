//! Connections to published ports.
//!
//! Bytes are copied through one buffer that all connections share; a connection owns memory only for what its receiver did not
//! take yet, and while it does, nothing more is read for that direction, so that a slow reader slows its sender as it would
//! without us. (Splicing through pipes moves large streams about a fifth faster, but costs four more descriptors and two pipes
//! per connection, and the kernel shrinks a user's pipes once they have taken 64 MiB together.)

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustix::net::sockopt;

use super::{BACKEND, BOTH, CLIENT, DOOR, ORPHAN_TIMEOUT, Socket, State, Target, show_as, shown};

/// Buffers moved for one direction before other connections have their turn.
const ROUNDS: usize = 16;
/// Connections accepted on one port before others have their turn.
const ACCEPTS: usize = 64;
/// From accepting a connection to being connected to the container. Long enough for four retries of a service whose queue
/// of connections is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Accepting goes on after this where the process or the host ran out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// That clients of a port wait is told once in this time.
const TELL_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Connection {
    port: usize,
    target: Target,
    /// What the container shall see of the client.
    shown: Option<SocketAddr>,
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
    pub(super) fn sweep_soon(&mut self) {
        self.sweep_at.get_or_insert_with(|| Instant::now() + ORPHAN_TIMEOUT);
    }

    pub(super) fn note_closing(&mut self, token: Token) {
        if let Some(connection) = self.connections.get_mut(&(token.0 / 4)) {
            let flow = if token.0 % 4 == CLIENT { &mut connection.up } else { &mut connection.down };
            flow.closing = true;
        }
    }

    /// What an event of this side of a connection makes possible.
    pub(super) fn move_on(&mut self, id: usize, mut side: usize, failed: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
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

    pub(super) fn accept(&mut self, id: usize) {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        // Two descriptors each: half of them are for others, without which neither could anybody be connected.
        let most = limit.map_or(usize::MAX, |limit| usize::try_from(limit / 4).unwrap_or(usize::MAX));
        for _ in 0..ACCEPTS {
            if self.connections.len() >= most {
                let limit = limit.unwrap_or(u64::MAX);
                return self.wait_to_accept(
                    id,
                    format!("{most} connections are all that a limit of {limit} open files allows"),
                );
            }
            let Some(Socket::Tcp(listener)) = self.ports.get(&id).map(|port| &port.socket) else { return };
            let (client, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // The connection ended before it was accepted.
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => continue,
                Err(error) => return self.wait_to_accept(id, format!("take a connection: {error}")),
            };
            let Some(target) = self.lead(id) else {
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
                        shown: shown(from, &self.subnets),
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
        self.again.push(Token(4 * id + DOOR));
    }

    fn wait_to_accept(&mut self, id: usize, why: String) {
        let now = Instant::now();
        let (_, ports) = self.accept_after.get_or_insert_with(|| (now + ACCEPT_PAUSE, Vec::new()));
        // Others come meanwhile.
        if !ports.contains(&id) {
            ports.push(id);
        }
        let Some(port) = self.ports.get_mut(&id) else { return };
        if port.told_full.is_none_or(|told| told + TELL_PAUSE <= now) {
            port.told_full = Some(now);
            self.needs.full.lock().unwrap_or_else(PoisonError::into_inner).push((port.caller_id, why));
            // The counter cannot overflow: it is written once in that time.
            rustix::io::write(&self.needs.event, &1u64.to_ne_bytes()).ok();
        }
    }

    pub(super) fn connect_waiting(&mut self) {
        while !self.waiting.is_empty() && !self.tcp.sockets.is_empty() {
            let Some(id) = self.waiting.pop_front() else { return };
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            let current = self.ports.get_mut(&connection.port).and_then(|port| {
                // Another does as well, where the one that it was meant for has gone meanwhile.
                if port.targets.contains(&connection.target) { Some(connection.target) } else { port.next() }
            });
            let (Some(target), Some(socket)) = (current, self.tcp.sockets.pop()) else {
                self.reset(id);
                continue;
            };
            connection.target = target;
            match connect(socket, connection, self.poll.registry(), Token(4 * id + BACKEND)) {
                // Even if it is connected at once, the first event says so.
                Ok(stream) => connection.backend = Backend::Connecting(stream),
                Err(_) => self.reset(id),
            }
        }
    }

    /// Ends what took too long to connect, and accepts again.
    pub(super) fn on_connect_time(&mut self, now: Instant) {
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
    }

    pub(super) fn sweep(&mut self) {
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
    pub(super) fn reset(&mut self, id: usize) {
        if let Some(connection) = self.connections.remove(&id) {
            abort(&connection.client);
            if let Backend::Connecting(stream) | Backend::Connected(stream) = &connection.backend {
                abort(stream);
            }
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

fn connect(socket: OwnedFd, of: &Connection, registry: &Registry, token: Token) -> io::Result<TcpStream> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    show_as(&socket, of.shown)?;
    match rustix::net::connect(&socket, &of.target.0) {
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
