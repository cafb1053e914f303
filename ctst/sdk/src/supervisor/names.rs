//! The project's name server: on sockets that S made in the project's network namespace, one of UDP and one of TCP for each
//! network, bound to the address of its bridge.
//!
//! One thread answers for all networks. What a container can make it hold is bounded: by UDP some questions that are asked on
//! ([`outside`](super::outside)); by TCP some connections, each with one question and one answer. A flood keeps this thread busy, and
//! the questions of others wait or are lost meanwhile; nothing else of the supervisor does.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use containust_shared::names::host_name;
use containust_shared::protocol::{Bridge, Failure};
use mio::net::{TcpListener, TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Token, Waker};

use super::Supervisor;
use super::outside::{Asker, Outside, PORT};
use super::poller::Cid;
use super::zone::{Answer, Member, On, Servers, UDP_LIMIT, Zone};
use crate::error::Error;
use crate::host::confine;
use crate::shim::describe;

/// Messages answered on one socket before others have their turn.
const TURN: usize = 64;
/// The longest question that is read. EDNS with padding takes less (RFC 8467).
const MAX_QUESTION: usize = 2048;
/// Connections by TCP at once, and of one address. Whoever opens more loses his oldest.
const MAX_CONNECTIONS: usize = 128;
const MAX_OF_ONE: usize = 8;
/// From connecting, or an answer, to the end of the next question and answer (RFC 7766, 6.2.3, has a few seconds).
const PATIENCE: Duration = Duration::from_secs(10);
/// Accepting goes on after this where the process or the host ran out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the project's networks answer, and, once there are sockets, who does. Dropping it ends that.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Changed before anybody can be told of the change, so that no answer is ever late.
    zone: Arc<Mutex<Zone>>,
    server: Option<Server>,
    /// Networks whose sockets were asked for, or are here.
    asked: Vec<u8>,
}

#[derive(Debug)]
struct Server {
    commands: Sender<Command>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Command {
    Serve(u8, UdpSocket, TcpListener),
    /// Ask what is not known here on this socket.
    AskOn(UdpSocket),
    Stop,
}

fn locked(zone: &Mutex<Zone>) -> MutexGuard<'_, Zone> {
    zone.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Names {
    /// Says who the container is from now on; none: it is not there.
    pub(super) fn set(&self, cid: Cid, member: Option<Member>) {
        locked(&self.zone).set(cid, member);
    }

    /// Answers on these sockets: non-blocking, of UDP and of TCP, which listens.
    ///
    /// # Errors
    /// Those of `epoll_create` and of creating a thread; or these are other sockets.
    fn serve(&mut self, network: u8, sockets: Vec<OwnedFd>) -> io::Result<()> {
        let [udp, tcp]: [OwnedFd; 2] =
            sockets.try_into().map_err(|_| io::Error::other("S sent other than two sockets"))?;
        let (udp, tcp) = (UdpSocket::from_std(udp.into()), TcpListener::from_std(tcp.into()));
        self.server()?.send(Command::Serve(network, udp, tcp))
    }
}

impl Names {
    /// Asks what is not known here on this non-blocking UDP socket, which is bound to the way out.
    ///
    /// # Errors
    /// As of [`Names::serve`].
    pub(super) fn ask_on(&mut self, socket: OwnedFd) -> io::Result<()> {
        let socket = UdpSocket::from_std(socket.into());
        self.server()?.send(Command::AskOn(socket))
    }

    fn server(&mut self) -> io::Result<&Server> {
        Ok(match &mut self.server {
            Some(server) => server,
            none => none.insert(Server::start(Arc::clone(&self.zone))?),
        })
    }
}

impl Server {
    fn start(zone: Arc<Mutex<Zone>>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let (commands, receiver) = channel();
        let state = State {
            poll,
            commands: receiver,
            zone,
            outside: Outside::default(),
            networks: Vec::new(),
            connections: BTreeMap::new(),
            next: CONNECTIONS,
            again: Vec::new(),
            accept_at: None,
            buffer: vec![0; MAX_QUESTION].into_boxed_slice(),
        };
        let thread = confine::on_sockets("names", move || state.run())?;
        Ok(Self { commands, waker, thread: Some(thread) })
    }

    fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| io::Error::other("the name server has stopped"))?;
        self.waker.wake()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.send(Command::Stop).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

const WAKE: Token = Token(usize::MAX);
const OUTSIDE: Token = Token(usize::MAX - 1);
/// Below are the sockets of networks: `2 * n` of UDP, one more of TCP. Numbers of connections are never used again.
const CONNECTIONS: usize = 1 << 32;

struct State {
    poll: Poll,
    commands: Receiver<Command>,
    zone: Arc<Mutex<Zone>>,
    outside: Outside,
    networks: Vec<(u8, UdpSocket, TcpListener)>,
    /// The oldest first.
    connections: BTreeMap<usize, Connection>,
    next: usize,
    /// Tokens with more to do than they were given time for.
    again: Vec<Token>,
    accept_at: Option<(Instant, Token)>,
    buffer: Box<[u8]>,
}

struct Connection {
    network: u8,
    from: Ipv4Addr,
    stream: TcpStream,
    /// Read and not answered yet: a length and as much as that.
    input: Vec<u8>,
    /// The answer, as far as it was not taken.
    output: Vec<u8>,
    /// Its question was asked on, and no other is read before the answer.
    waits: bool,
    until: Instant,
}

/// How far a connection came.
enum Step {
    /// There may be more to do.
    More,
    /// This question is to be asked on, of these; so many bytes of it are header and question.
    AskOn(Vec<u8>, usize, Servers),
    End,
}

impl State {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let now = Instant::now();
            let timeout = if self.again.is_empty() {
                let times = self.connections.values().map(|c| c.until).chain(self.outside.next());
                times
                    .chain(self.accept_at.as_ref().map(|(at, _)| *at))
                    .min()
                    .map(|at| at.saturating_duration_since(now))
            } else {
                Some(Duration::ZERO)
            };
            match self.poll.poll(&mut events, timeout) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Only a programming error is left.
                Err(_) => return,
                Ok(()) => {}
            }
            let again = std::mem::take(&mut self.again);
            for token in again.into_iter().chain(events.iter().map(mio::event::Event::token)) {
                match token {
                    WAKE if !self.obey() => return,
                    WAKE => {}
                    OUTSIDE => self.hear(),
                    Token(number) if number < CONNECTIONS && number % 2 == 0 => self.answer(number / 2),
                    Token(number) if number < CONNECTIONS => self.accept(number / 2),
                    Token(number) => self.converse(number),
                }
            }
            let now = Instant::now();
            self.connections.retain(|_, connection| connection.until > now);
            self.outside.go_on(now);
            if let Some((_, Token(number))) = self.accept_at.take_if(|(at, _)| *at <= now) {
                self.accept(number / 2);
            }
        }
    }

    /// Carries out the commands that are there; false: the last one was to stop.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            let registry = self.poll.registry();
            let (network, mut udp, mut tcp) = match command {
                Command::Serve(network, udp, tcp) => (network, udp, tcp),
                Command::AskOn(mut socket) => {
                    match registry.register(&mut socket, OUTSIDE, Interest::READABLE) {
                        Ok(()) => self.outside.ask_on(socket),
                        Err(error) => super::say(&format!("ask others for names: {error}")),
                    }
                    continue;
                }
                Command::Stop => return false,
            };
            let number = 2 * self.networks.len();
            // Only a full epoll limit of the user refuses.
            if let Err(error) = registry
                .register(&mut udp, Token(number), Interest::READABLE)
                .and_then(|()| registry.register(&mut tcp, Token(number + 1), Interest::READABLE))
            {
                super::say(&format!("answer names on a network: {error}"));
            }
            self.networks.push((network, udp, tcp));
        }
        true
    }

    fn answer(&mut self, index: usize) {
        let Some((network, udp, _)) = self.networks.get(index) else { return };
        for _ in 0..TURN {
            match udp.recv_from(&mut self.buffer) {
                Ok((length, from)) => {
                    let IpAddr::V4(ip) = from.ip() else { continue };
                    // One that is longer than the buffer arrives cut, which its question is not.
                    let question = self.buffer.get_mut(..length).unwrap_or_default();
                    let answer = locked(&self.zone).answer(question, (*network, ip), UDP_LIMIT);
                    let answer = match answer {
                        Answer::Here(answer) => Some(answer),
                        Answer::Outside(end, servers) => {
                            self.outside.ask(question, end, servers, Asker::Udp(index, from))
                        }
                        Answer::None => None,
                    };
                    if let Some(answer) = answer {
                        // Whoever does not get it asks again.
                        udp.send_to(&answer, from).ok();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // The error of an answer that nobody took.
                Err(_) => {}
            }
        }
        self.again.push(Token(2 * index));
    }

    /// Passes on what others answer.
    fn hear(&mut self) {
        for _ in 0..TURN {
            match self.outside.hear() {
                Ok(None) => {}
                Ok(Some((Asker::Udp(index, from), answer))) => {
                    if let Some((_, udp, _)) = self.networks.get(index) {
                        udp.send_to(&answer, from).ok();
                    }
                }
                Ok(Some((Asker::Tcp(number), answer))) => {
                    // It may have been closed meanwhile.
                    if let Some(connection) = self.connections.get_mut(&number) {
                        connection.tell(&answer);
                        self.again.push(Token(number));
                    }
                }
                Err(_) => return,
            }
        }
        self.again.push(OUTSIDE);
    }

    fn accept(&mut self, index: usize) {
        let token = Token(2 * index + 1);
        for _ in 0..TURN {
            let Some((network, _, tcp)) = self.networks.get(index) else { return };
            match tcp.accept() {
                Ok((stream, SocketAddr::V4(from))) => self.admit(*network, *from.ip(), stream),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    self.accept_at = Some((Instant::now() + ACCEPT_PAUSE, token));
                    return;
                }
            }
        }
        self.again.push(token);
    }

    fn admit(&mut self, network: u8, from: Ipv4Addr, mut stream: TcpStream) {
        let alike = self.connections.iter().filter(|(_, c)| (c.network, c.from) == (network, from));
        let oldest = if alike.clone().count() >= MAX_OF_ONE { alike.map(|(n, _)| *n).next() } else { None };
        let full = self.connections.len() >= MAX_CONNECTIONS;
        if let Some(number) = oldest.or_else(|| self.connections.keys().next().copied().filter(|_| full)) {
            self.connections.remove(&number);
        }
        let number = self.next;
        self.next += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        // Refused, it is closed.
        if self.poll.registry().register(&mut stream, Token(number), interest).is_ok() {
            let until = Instant::now() + PATIENCE;
            let (input, output) = (Vec::new(), Vec::new());
            let connection = Connection { network, from, stream, input, output, waits: false, until };
            self.connections.insert(number, connection);
        }
    }

    fn converse(&mut self, number: usize) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        match connection.go_on(&self.zone, &mut self.buffer) {
            Ok(Step::More) => self.again.push(Token(number)),
            Ok(Step::AskOn(question, end, servers)) => {
                if let Some(answer) = self.outside.ask(&question, end, servers, Asker::Tcp(number)) {
                    connection.tell(&answer);
                    self.again.push(Token(number));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok(Step::End) | Err(_) => drop(self.connections.remove(&number)),
        }
    }
}

impl Connection {
    fn tell(&mut self, answer: &[u8]) {
        // A UDP message is no longer.
        self.output.extend(u16::try_from(answer.len()).unwrap_or(u16::MAX).to_be_bytes());
        self.output.extend(answer);
        self.waits = false;
        self.until = Instant::now() + PATIENCE;
    }

    /// Answers what can be answered now.
    fn go_on(&mut self, zone: &Mutex<Zone>, buffer: &mut [u8]) -> io::Result<Step> {
        for _ in 0..TURN {
            while !self.output.is_empty() {
                match self.stream.write(&self.output) {
                    Ok(written) => drop(self.output.drain(..written)),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            if !self.waits
                && let Some((length, rest)) = self.input.split_first_chunk::<2>()
            {
                let length = usize::from(u16::from_be_bytes(*length));
                if length > MAX_QUESTION {
                    return Ok(Step::End);
                }
                if rest.len() >= length {
                    let mut question: Vec<u8> = self.input.drain(..2 + length).skip(2).collect();
                    let from = (self.network, self.from);
                    let answer = locked(zone).answer(&mut question, from, usize::from(u16::MAX));
                    match answer {
                        Answer::Here(answer) => self.tell(&answer),
                        Answer::Outside(end, servers) => {
                            self.waits = true;
                            return Ok(Step::AskOn(question, end, servers));
                        }
                        Answer::None => return Ok(Step::End),
                    }
                    continue;
                }
            }
            match self.stream.read(buffer) {
                Ok(0) => return Ok(Step::End),
                // What is sent while it waits, beyond one question, is more than anybody needs.
                Ok(_) if self.waits && self.input.len() > 2 * MAX_QUESTION => return Ok(Step::End),
                Ok(length) => self.input.extend(buffer.get(..length).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Step::More)
    }
}

impl Supervisor {
    /// Has S make the sockets of the name server on these bridges, before the first container is there.
    pub(super) fn listen_names(&mut self, bridges: &[Bridge]) -> Result<(), Error> {
        for bridge in bridges {
            if !self.name_server.asked.contains(&bridge.number) {
                self.sandbox.listen(*bridge)?;
                self.name_server.asked.push(bridge.number);
            }
        }
        Ok(())
    }

    pub(super) fn on_listening(&mut self, network: u8, sockets: Result<Vec<OwnedFd>, Failure>) {
        let served = sockets.map_err(|failure| describe(&failure)).and_then(|sockets| {
            self.name_server.serve(network, sockets).map_err(|error| format!("start the name server: {error}"))
        });
        let Err(problem) = served else { return };
        self.name_server.asked.retain(|asked| *asked != network);
        // Who is being started would find nobody. The next start tries again.
        let report = Error::Sandbox(problem).report();
        self.give_up_on(&report, |container| container.places.iter().any(|place| place.number == network));
    }

    /// Has the name server know the container as it is now: from being wanted to the end of its processes.
    pub(super) fn tell_names(&self, cid: Cid) {
        let member = self.containers.get(&cid).filter(|container| container.is_active()).map(|container| {
            let spec = &container.record.spec;
            let group = spec.replica.as_ref().map(|replica| replica.of.as_str());
            let of = [Some(spec.name.as_str()), group];
            let mut own = vec![spec.hostname.clone()];
            own.extend(of.into_iter().flatten().flat_map(|name| [name.to_owned(), host_name(name)]));
            let on = container.places.iter().zip(spec.network.attachments()).map(|(place, attachment)| {
                let names = own.iter().chain(&attachment.aliases).map(|name| name.to_ascii_lowercase()).collect();
                On { network: place.number, ip: place.ip, ip6: place.ip6, egress: attachment.egress, names }
            });
            let servers = spec.dns.servers.iter().map(|ip| SocketAddrV4::new(*ip, PORT)).collect();
            let (on, running, hosts) = (on.collect(), container.is_running(), spec.hosts.clone());
            Member { host: spec.hostname.clone(), on, running, hosts, servers }
        });
        self.name_server.set(cid, member);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server on the loopback, with one member that asks from there.
    fn serving() -> (Names, SocketAddr, SocketAddr) {
        let mut names = Names::default();
        let on =
            vec![On { network: 7, ip: Ipv4Addr::LOCALHOST, ip6: None, egress: false, names: vec!["me".to_owned()] }];
        names.set(1, Some(Member { on, running: true, ..Member::default() }));
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        udp.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let addresses = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        names.serve(7, vec![udp.into(), tcp.into()]).unwrap();
        (names, addresses.0, addresses.1)
    }

    const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x02me\0\0\x01\0\x01";
    const ANSWER: &[u8] =
        b"\x12\x34\x85\x80\0\x01\0\x01\0\0\0\0\x02me\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04\x7f\0\0\x01";

    fn ask(stream: &mut std::net::TcpStream) -> io::Result<Vec<u8>> {
        stream.write_all(&[0, QUESTION.len() as u8])?;
        stream.write_all(QUESTION)?;
        let mut answer = vec![0; 2 + ANSWER.len()];
        stream.read_exact(&mut answer)?;
        Ok(answer.split_off(2))
    }

    #[test]
    fn answers_by_both_and_forgets_what_is_too_much() {
        let (names, udp, tcp) = serving();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut buffer = [0; 512];
        for junk in [&[][..], &[0; 11], &[0xff; 3000], QUESTION] {
            socket.send_to(junk, udp).unwrap();
        }
        let (length, _) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], ANSWER);

        let connect = || {
            let stream = std::net::TcpStream::connect(tcp).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream
        };
        let mut first = connect();
        for _ in 0..3 {
            assert_eq!(ask(&mut first).unwrap(), ANSWER);
        }
        // What was opened last is served, the oldest is closed.
        let mut many: Vec<_> = (0..50).map(|_| connect()).collect();
        assert_eq!(ask(many.last_mut().unwrap()).unwrap(), ANSWER);
        assert!(ask(&mut first).is_err());
        let open = many.iter_mut().filter_map(|stream| ask(stream).ok()).count();
        assert_eq!(open, MAX_OF_ONE);
        // A length that nobody needs, an answer instead of a question, and an end.
        for (bytes, end) in [(&[0xff, 0xff][..], false), (&[&[0, 29], ANSWER].concat(), false), (&[0, 9, 1], true)] {
            let mut stream = connect();
            stream.write_all(bytes).unwrap();
            if end {
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            }
            let closed = stream.read(&mut buffer);
            assert!(matches!(&closed, Ok(0) | Err(_)) && !closed.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock));
        }
        // Pieces, and two at once.
        let mut stream = connect();
        let twice = [&[0, QUESTION.len() as u8], QUESTION].concat().repeat(2);
        for byte in twice {
            stream.write_all(&[byte]).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut both = Vec::new();
        stream.read_to_end(&mut both).unwrap();
        assert_eq!(both, [&[0, ANSWER.len() as u8], ANSWER].concat().repeat(2));
        drop(names);
        assert!(std::net::TcpStream::connect(tcp).is_err(), "dropping it closes the sockets");
    }
}
