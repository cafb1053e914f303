//! Questions about names that nobody in the project has, asked on: by one socket, to the resolver beyond the project's way out.
//!
//! A message is passed on as it is, but for its id: the answers to all come on one socket, and whoever guessed an id could answer for
//! another. They come from the way out alone: S bound the socket to its device.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use rustix::rand::{GetRandomFlags, getrandom};

/// How long a resolver may take; those who ask give up after five seconds (resolv.conf(5)), and ask again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions that wait at once, and of one address: who asks more loses what is too much.
const MAX_WAITING: usize = 2048;
const MAX_OF_ONE: usize = 256;
/// The longest answer that is passed on (RFC 6891 knows no longer one by UDP).
const MAX_ANSWER: usize = 65_535;
/// An OPT record that says how much may be answered by UDP (RFC 6891, 6.1.2), for who asked by TCP.
const ROOM: [u8; 11] = [0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0];
/// Response code of who cannot ask (RFC 1035, 4.1.1).
const SERVER_FAILURE: u8 = 2;

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
    until: Instant,
}

/// What is asked on.
#[derive(Default)]
pub(super) struct Outside {
    socket: Option<UdpSocket>,
    waiting: HashMap<[u8; 2], Waiting>,
    buffer: Vec<u8>,
}

impl Outside {
    pub(super) fn ask_on(&mut self, socket: UdpSocket) {
        self.socket = Some(socket);
        self.buffer.resize(MAX_ANSWER, 0);
    }

    /// Forgets what was not answered in time.
    pub(super) fn forget(&mut self, now: Instant) {
        self.waiting.retain(|_, waiting| waiting.until > now);
    }

    /// Asks a message on, whose header and question are `end` bytes long. Returns what is answered at once: that nobody can be asked.
    pub(super) fn ask(&mut self, message: &mut [u8], end: usize, asker: Asker) -> Option<Vec<u8>> {
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
        let mut asked = message.to_vec();
        asked[..2].copy_from_slice(&own);
        if matches!(asker, Asker::Tcp(_)) && asked.len() == end && asked[6..12] == [0; 6] {
            asked[11] = 1;
            asked.extend(ROOM);
        }
        match socket.send(&asked) {
            Ok(_) => {
                let until = Instant::now() + PATIENCE;
                self.waiting.insert(own, Waiting { asker, id, question, until });
                None
            }
            Err(_) => Some(failure(message.first_chunk()?, &question)),
        }
    }

    /// The next answer, and for whom; none: it was for nobody.
    ///
    /// # Errors
    /// `WouldBlock` where there is none.
    pub(super) fn hear(&mut self) -> io::Result<Option<(Asker, Vec<u8>)>> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::WouldBlock.into()) };
        let length = match socket.recv(&mut self.buffer) {
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(e),
            // The resolver is not there: who asked hears nothing, and asks again.
            Err(_) => return Ok(None),
        };
        let answer = self.buffer.get(..length).unwrap_or_default();
        let Some((header, rest)) = answer.split_first_chunk::<12>() else { return Ok(None) };
        let own = [header[0], header[1]];
        let is_answer = header[2] & 0x80 != 0;
        let fits = |waiting: &Waiting| is_answer && is_same(rest, &waiting.question);
        if !self.waiting.get(&own).is_some_and(fits) {
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
        socket.connect(resolver.local_addr().unwrap()).unwrap();
        resolver.connect(socket.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut outside = Outside::default();
        outside.ask_on(UdpSocket::from_std(socket));
        (outside, resolver)
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
        assert_eq!(outside.ask(&mut QUESTION.to_vec(), QUESTION.len(), udp(2, 1)), None);
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
        answer[13] = b'E';
        resolver.send(&answer).unwrap();
        let (asker, heard) = hear(&mut outside).unwrap();
        assert_eq!((asker, &heard[..2], &heard[2..]), (udp(2, 1), &QUESTION[..2], &answer[2..]));
        // Once.
        resolver.send(&answer).unwrap();
        assert_eq!(hear(&mut outside), None, "{own:?}");
        // By TCP with more room.
        assert_eq!(outside.ask(&mut QUESTION.to_vec(), QUESTION.len(), Asker::Tcp(7)), None);
        let length = resolver.recv(&mut buffer).unwrap();
        assert_eq!((length, buffer[11], &buffer[length - 11..length]), (QUESTION.len() + 11, 1, &ROOM[..]));
    }

    #[test]
    fn holds_so_much_and_no_more() {
        let (mut outside, _resolver) = pair();
        for port in 0..300 {
            outside.ask(&mut QUESTION.to_vec(), QUESTION.len(), udp(2, port));
        }
        assert_eq!(outside.waiting.len(), MAX_OF_ONE);
        for last in 3..30 {
            for port in 0..256 {
                outside.ask(&mut QUESTION.to_vec(), QUESTION.len(), udp(last, port));
            }
        }
        assert_eq!(outside.waiting.len(), MAX_WAITING);
        outside.forget(Instant::now() + PATIENCE);
        assert!(outside.waiting.is_empty());
    }

    #[test]
    fn says_that_nobody_can_be_asked() {
        let told = Outside::default().ask(&mut QUESTION.to_vec(), QUESTION.len(), udp(2, 1)).unwrap();
        assert_eq!(
            (&told[..2], told[2] & 0x80, told[3] & 0xf, &told[12..]),
            (&QUESTION[..2], 0x80, 2, &QUESTION[12..])
        );
        for end in [0, 11, QUESTION.len() + 1] {
            assert_eq!(Outside::default().ask(&mut QUESTION.to_vec(), end, udp(2, 1)), None);
        }
    }
}
