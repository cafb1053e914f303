//! Questions about names that nobody in the project has, asked on: by one socket, to resolvers beyond the project's way out.
//!
//! A message is passed on as it is, but for its id: the answers to all come on one socket, and whoever guessed an id could answer for
//! another. They come from the way out alone, to whose device S bound the socket, and from who was asked.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use containust_shared::protocol::egress;
use mio::net::UdpSocket;
use rustix::rand::{GetRandomFlags, getrandom};

use super::zone::Servers;

/// Where name servers answer.
pub(super) const PORT: u16 = 53;
/// How long a resolver may take; those who ask give up after five seconds (resolv.conf(5)), and ask again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one may take before the next is asked, so that all of three are within that time.
const ONE: Duration = Duration::from_millis(1500);
/// Questions that wait at once, and of one address: who asks more loses what is too much.
const MAX_WAITING: usize = 2048;
const MAX_OF_ONE: usize = 256;
/// The longest answer that is passed on (RFC 6891 knows no longer one by UDP).
const MAX_ANSWER: usize = 65_535;
/// An OPT record that says how much may be answered by UDP (RFC 6891, 6.1.2), for who asked by TCP.
const ROOM: [u8; 11] = [0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0];
/// Response code of who cannot ask, and those of servers after which resolvers ask the next one (RFC 1035, 4.1.1).
const SERVER_FAILURE: u8 = 2;
const CANNOT_TELL: [u8; 3] = [SERVER_FAILURE, 4, 5];

/// Who gets the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// On the socket of the network with this index, who has this address.
    Udp(usize, SocketAddr),
    /// The connection with this number.
    Tcp(usize),
}

struct Waiting {
    asker: Asker,
    /// The asker's own.
    id: [u8; 2],
    /// As it was asked: an answer repeats it.
    question: Vec<u8>,
    /// The message, as long as one more can be asked.
    message: Vec<u8>,
    servers: Servers,
    /// So many of them were asked, and the next is at this time.
    asked: usize,
    next: Instant,
    until: Instant,
}

impl Waiting {
    fn has_more(&self) -> bool {
        self.asked < self.servers.len()
    }

    /// Asks the next one that can be; false: there is none.
    fn ask_next(&mut self, socket: &UdpSocket, now: Instant) -> bool {
        while let Some(server) = self.servers.get(self.asked) {
            self.asked += 1;
            if socket.send_to(&self.message, SocketAddr::V4(*server)).is_ok() {
                self.next = now + ONE;
                if !self.has_more() {
                    self.message = Vec::new();
                }
                return true;
            }
        }
        false
    }
}

/// What is asked on.
pub(super) struct Outside {
    socket: Option<UdpSocket>,
    /// The host's resolver, which whoever names no other asks.
    usual: Servers,
    waiting: HashMap<[u8; 2], Waiting>,
    buffer: Vec<u8>,
}

impl Default for Outside {
    fn default() -> Self {
        let usual = [SocketAddrV4::new(egress::RESOLVER.into(), PORT)];
        Self { socket: None, usual: Arc::new(usual), waiting: HashMap::new(), buffer: Vec::new() }
    }
}

impl Outside {
    pub(super) fn ask_on(&mut self, socket: UdpSocket) {
        self.socket = Some(socket);
        self.buffer.resize(MAX_ANSWER, 0);
    }

    /// When there is something to do.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.values().filter(|waiting| waiting.has_more()).map(|waiting| waiting.next).min()
    }

    /// Forgets what was not answered in time, and asks the next server of what was not yet.
    pub(super) fn go_on(&mut self, now: Instant) {
        self.waiting.retain(|_, waiting| waiting.until > now);
        let Some(socket) = &self.socket else { return };
        for waiting in self.waiting.values_mut().filter(|waiting| waiting.has_more() && waiting.next <= now) {
            // Where none is left, one of those before may still answer.
            waiting.ask_next(socket, now);
        }
    }

    /// Asks a message on, whose header and question are `end` bytes long. Returns what is answered at once: that nobody can be asked.
    pub(super) fn ask(&mut self, message: &[u8], end: usize, servers: Servers, asker: Asker) -> Option<Vec<u8>> {
        let (header, rest) = message.split_first_chunk::<12>()?;
        let question = rest.get(..end.checked_sub(12)?)?.to_vec();
        let id = [header[0], header[1]];
        let Some(socket) = &self.socket else { return Some(failure(header, &question)) };
        let alike = |other: &&Waiting| match (other.asker, asker) {
            (Asker::Udp(_, one), Asker::Udp(_, other)) => one.ip() == other.ip(),
            (one, other) => one == other,
        };
        if self.waiting.len() >= MAX_WAITING || self.waiting.values().filter(alike).count() >= MAX_OF_ONE {
            return None;
        }
        let mut own = [0; 2];
        // Few are in use; a kernel without randomness has not started yet.
        while getrandom(&mut own, GetRandomFlags::empty()) != Ok(2) || self.waiting.contains_key(&own) {}
        let mut message = message.to_vec();
        message[..2].copy_from_slice(&own);
        if matches!(asker, Asker::Tcp(_)) && message.len() == end && message[6..12] == [0; 6] {
            message[11] = 1;
            message.extend(ROOM);
        }
        let servers = if servers.is_empty() { Arc::clone(&self.usual) } else { servers };
        let now = Instant::now();
        let mut waiting = Waiting { asker, id, question, message, servers, asked: 0, next: now, until: now + PATIENCE };
        if !waiting.ask_next(socket, now) {
            return Some(failure(header, &waiting.question));
        }
        self.waiting.insert(own, waiting);
        None
    }

    /// The next answer, and for whom; none: it was for nobody.
    ///
    /// # Errors
    /// `WouldBlock` where there is none.
    pub(super) fn hear(&mut self) -> io::Result<Option<(Asker, Vec<u8>)>> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::WouldBlock.into()) };
        let (length, from) = match socket.recv_from(&mut self.buffer) {
            Ok((length, SocketAddr::V4(from))) => (length, from),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(e),
            Ok(_) | Err(_) => return Ok(None),
        };
        let answer = self.buffer.get(..length).unwrap_or_default();
        let Some((header, rest)) = answer.split_first_chunk::<12>() else { return Ok(None) };
        let own = [header[0], header[1]];
        let is_answer = header[2] & 0x80 != 0;
        let Some(waiting) = self.waiting.get_mut(&own) else { return Ok(None) };
        let asked = &waiting.servers[..waiting.asked];
        if !(is_answer && asked.contains(&from) && is_same(rest, &waiting.question)) {
            return Ok(None);
        }
        // Of who was asked before, another one was already asked instead.
        if CANNOT_TELL.contains(&(header[3] & 0xf))
            && (asked.last() != Some(&from) || waiting.ask_next(socket, Instant::now()))
        {
            return Ok(None);
        }
        let Some(waiting) = self.waiting.remove(&own) else { return Ok(None) };
        let mut answer = answer.to_vec();
        answer[..2].copy_from_slice(&waiting.id);
        Ok(Some((waiting.asker, answer)))
    }
}

/// Whether an answer begins with this question; resolvers may change the case of letters.
fn is_same(answer: &[u8], question: &[u8]) -> bool {
    // One that refuses may leave the question out, which cannot be told from one that is for nobody.
    answer.get(..question.len()).is_some_and(|start| start.eq_ignore_ascii_case(question))
}

/// Says that the question could not be answered.
fn failure(header: &[u8; 12], question: &[u8]) -> Vec<u8> {
    let mut answer = header.to_vec();
    answer[2] = 0x80 | header[2] & 1;
    answer[3] = 0x80 | SERVER_FAILURE;
    answer[4..].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    answer.extend(question);
    answer
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";

    fn pair() -> (Outside, std::net::UdpSocket) {
        let resolver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        resolver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        resolver.connect(socket.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut outside = Outside { usual: [place(&resolver)].into(), ..Outside::default() };
        outside.ask_on(UdpSocket::from_std(socket));
        (outside, resolver)
    }

    fn place(resolver: &std::net::UdpSocket) -> SocketAddrV4 {
        match resolver.local_addr().unwrap() {
            SocketAddr::V4(place) => place,
            SocketAddr::V6(place) => panic!("{place}"),
        }
    }

    fn ask(outside: &mut Outside, asker: Asker) -> Option<Vec<u8>> {
        outside.ask(QUESTION, QUESTION.len(), Servers::default(), asker)
    }

    fn hear(outside: &mut Outside) -> Option<(Asker, Vec<u8>)> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match outside.hear() {
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                other => return other.unwrap(),
            }
        }
    }

    fn udp(last: u8, port: u16) -> Asker {
        Asker::Udp(0, SocketAddr::new(IpAddr::from([10, 89, 0, last]), port))
    }

    #[test]
    fn answers_come_back_to_who_asked() {
        let (mut outside, resolver) = pair();
        let mut buffer = [0; 512];
        assert_eq!(ask(&mut outside, udp(2, 1)), None);
        let length = resolver.recv(&mut buffer).unwrap();
        assert_eq!(buffer[2..length], QUESTION[2..]);
        let mut answer = buffer[..length].to_vec();
        let own = [answer[0], answer[1]];
        answer[2] |= 0x80;
        // Another id, another question, no answer, nothing.
        let mut others = vec![answer.clone(); 3];
        others[0][0] ^= 1;
        others[1][14] ^= 1;
        others[2][2] &= 0x7f;
        for other in others.iter().map(Vec::as_slice).chain([&answer[..11], &[]]) {
            resolver.send(other).unwrap();
            assert_eq!(hear(&mut outside), None, "{other:?}");
        }
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.connect(outside.socket.as_ref().unwrap().local_addr().unwrap()).unwrap();
        stranger.send(&answer).unwrap();
        assert_eq!(hear(&mut outside), None, "of somebody else");
        answer[13] = b'E';
        resolver.send(&answer).unwrap();
        let (asker, heard) = hear(&mut outside).unwrap();
        assert_eq!((asker, &heard[..2], &heard[2..]), (udp(2, 1), &QUESTION[..2], &answer[2..]));
        // Once.
        resolver.send(&answer).unwrap();
        assert_eq!(hear(&mut outside), None, "{own:?}");
        // By TCP with more room.
        assert_eq!(ask(&mut outside, Asker::Tcp(7)), None);
        let length = resolver.recv(&mut buffer).unwrap();
        assert_eq!((length, buffer[11], &buffer[length - 11..length]), (QUESTION.len() + 11, 1, &ROOM[..]));
    }

    #[test]
    fn holds_so_much_and_no_more() {
        let (mut outside, _resolver) = pair();
        for port in 0..300 {
            ask(&mut outside, udp(2, port));
        }
        assert_eq!(outside.waiting.len(), MAX_OF_ONE);
        for last in 3..30 {
            for port in 0..256 {
                ask(&mut outside, udp(last, port));
            }
        }
        assert_eq!(outside.waiting.len(), MAX_WAITING);
        outside.go_on(Instant::now() + PATIENCE);
        assert!(outside.waiting.is_empty());
    }

    #[test]
    fn says_that_nobody_can_be_asked() {
        let told = ask(&mut Outside::default(), udp(2, 1)).unwrap();
        assert_eq!(
            (&told[..2], told[2] & 0x80, told[3] & 0xf, &told[12..]),
            (&QUESTION[..2], 0x80, 2, &QUESTION[12..])
        );
        for end in [0, 11, QUESTION.len() + 1] {
            assert_eq!(Outside::default().ask(QUESTION, end, Servers::default(), udp(2, 1)), None);
        }
    }

    #[test]
    fn asks_one_server_after_another() {
        let (mut outside, usual) = pair();
        let others = [0; 3].map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let to = outside.socket.as_ref().unwrap().local_addr().unwrap();
        for other in &others {
            other.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            other.connect(to).unwrap();
        }
        let servers: Servers = others.iter().map(place).collect();
        assert_eq!(outside.ask(QUESTION, QUESTION.len(), servers, udp(2, 1)), None);
        let mut buffer = [0; 512];
        let mut answer_of = |number: usize, code: u8| {
            let length = others[number].recv(&mut buffer).unwrap();
            let mut answer = buffer[..length].to_vec();
            (answer[2], answer[3]) = (answer[2] | 0x80, code);
            answer
        };
        let first = answer_of(0, 5);
        // Silent for a while.
        let now = Instant::now();
        assert!(outside.next().is_some_and(|next| next > now));
        outside.go_on(now);
        outside.go_on(now + ONE);
        let second = answer_of(1, 2);
        // Too late to count, and then the last one.
        others[0].send(&first).unwrap();
        assert_eq!(hear(&mut outside), None);
        others[1].send(&second).unwrap();
        assert_eq!(hear(&mut outside), None);
        let third = answer_of(2, 3);
        assert_eq!(outside.next(), None, "nobody is left");
        others[2].send(&third).unwrap();
        assert_eq!(hear(&mut outside).map(|(asker, answer)| (asker, answer[3])), Some((udp(2, 1), 3)));
        usual.set_nonblocking(true).unwrap();
        assert!(usual.recv(&mut buffer).is_err(), "it was not asked");
    }
}
