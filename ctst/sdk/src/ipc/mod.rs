//! Frames between `ctst` and a project's supervisor, over a UNIX stream socket between processes of one user.
//!
//! A frame is a header of eight bytes (length of the body, little-endian; number of descriptors; three zero bytes) and
//! a body of JSON. Descriptors travel with the header.

pub(crate) mod client;
pub(crate) mod fdpass;
pub(crate) mod peer;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use containust_lang::model::NamedVolume;
use containust_shared::protocol::MAX_FDS;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::doctor_net::Outlook;
use crate::error::{During, Error, Report, Result};
use crate::event::Event;
use crate::project::Identity;
use crate::projects::Served;
use crate::run::ExecRequest;
use crate::spec::Wanted;
use crate::status::{ContainerStatus, HostPort, Stats};

/// Version of these messages. [`Hello`] and [`Reply::Hello`] never change their shape, so that another version can be
/// told so.
pub(crate) const VERSION: u32 = 7;
/// The largest body. A composition of ten thousand components takes about a third.
pub(crate) const MAX_BODY: usize = 16 << 20;
/// What a peer that does not read may leave in our memory before it is dropped.
const MAX_BACKLOG: usize = 2 * (MAX_BODY + HEADER);
const HEADER: usize = 8;

/// First frame of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version: u32,
    pub(crate) build: String,
    pub(crate) project: Identity,
    /// A run will follow: do not end before. Its number of components, which decides how large the network is.
    pub(crate) run: Option<usize>,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    Hello(Hello),
    /// Bring these up. Answered by `Accepted` or `Refused`, then events, `Settled`, and `Over` at the
    /// end.
    Run {
        wanted: Vec<Wanted>,
        /// The named volumes of the composition.
        volumes: Vec<NamedVolume>,
        /// Stop and remove the components of this file that are not wanted.
        prune: Option<String>,
        /// What the run is about: `Ended` is said when these have, where something else runs on.
        own: Vec<String>,
        /// Whether writable layers that hold data may go.
        destroy: bool,
        /// Whether `Settled` waits for health and for the end of what runs to completion.
        wait: bool,
        /// Whether one descriptor comes with it: the socket of the process that carries what leaves the project, which the client
        /// starts once `Keeper` tells it to. It is told after `Accepted`, unless the run is refused.
        keeper: bool,
    },
    /// Which of these ports the supervisor holds no socket for. Answered by `Unheld`.
    Unheld(Vec<HostPort>),
    /// One descriptor: a socket that is bound there, of TCP one that listens, for the `Run` that follows. Not answered.
    Port(HostPort),
    /// One descriptor: the archive of a lazy image, by the digest of its index, for the `Run` that follows, and whether it is to be
    /// unpacked in the background. Not answered.
    Archive {
        index: String,
        completes: bool,
    },
    /// Send events from now on, and `Over` at the end.
    Attach,
    /// Send the events since then, in milliseconds since 1970, as far as they are remembered, then `Done`, and go on as for `Attach`.
    Events {
        since: u64,
    },
    /// Empty: all of this file, or what this connection's run is about, or all. Answered by `Done`, or by `Over` where nothing is
    /// left.
    Stop {
        names: Vec<String>,
        file: Option<String>,
        /// From asking to SIGKILL, instead of what each component says.
        grace: Option<Duration>,
    },
    /// End those that run and start them again as they are, in the order of their dependencies. Empty: all of this file
    /// that run. Answered by events and `Settled`, or `Refused`.
    Restart {
        names: Vec<String>,
        file: String,
        /// As of `Stop`.
        grace: Option<Duration>,
    },
    /// Forget containers that do not run, with all that is on disk of them. Empty: all of those that are of
    /// this file. Answered by `Done` or `Over`, or `Refused`.
    Remove {
        names: Vec<String>,
        file: String,
        /// Whether writable layers that hold data may go. Without, all stays where one does.
        destroy: bool,
    },
    /// Remove volumes that no container has. Answered as `Remove`.
    RemoveVolumes {
        names: Vec<String>,
    },
    /// Three descriptors unless it has a terminal. Answered by `ExecStarted` and `ExecEnded`, or `Refused`.
    Exec(ExecRequest),
    /// To the process started by this connection's `Exec`.
    Signal(i32),
    Stats,
    Status,
    /// Make as many TCP sockets in a container's network namespace, not connected. Answered by `Sockets` or `Refused`.
    Sockets {
        component: String,
        count: u8,
    },
    /// Which project this is, for a client that greeted with [`Identity::ANY`].
    Project,
    /// Freeze these, or let them go on. Answered by `Done` or `Refused`.
    Pause {
        names: Vec<String>,
        paused: bool,
    },
}

/// What the supervisor says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Hello {
        version: u32,
        build: String,
    },
    /// Another supervisor serves the project, at this path.
    Busy {
        socket: String,
    },
    Unheld(Vec<HostPort>),
    Accepted,
    /// Whether to start the process whose socket came with `Run`; else there is one.
    Keeper {
        start: bool,
    },
    Refused(Report),
    Event(Event),
    Settled {
        failed: Vec<(String, Report)>,
    },
    Done,
    /// What the run is about has ended; other containers may run.
    Ended {
        code: i32,
    },
    /// The last container is gone, and so is the supervisor.
    Over {
        code: i32,
    },
    /// One descriptor with a terminal: its master side.
    ExecStarted,
    ExecEnded {
        code: i32,
    },
    Stats(Vec<Stats>),
    Status(Vec<ContainerStatus>),
    Project(Served),
    /// As many descriptors as sockets were asked for, non-blocking, and what they may be used for.
    Sockets(Outlook),
}

/// What came in.
pub(crate) enum Incoming<T> {
    Frame(T, Vec<OwnedFd>),
    /// Nothing complete yet.
    Empty,
    End,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    input: Vec<u8>,
    used: usize,
    fds: VecDeque<OwnedFd>,
    output: VecDeque<Frame>,
    backlog: usize,
    ended: bool,
}

#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            input: Vec::new(),
            used: 0,
            fds: VecDeque::new(),
            output: VecDeque::new(),
            backlog: 0,
            ended: false,
        }
    }

    /// The socket that came as standard input; /dev/null takes its place there.
    pub(crate) fn inherited() -> Result<Self> {
        let what = || "take over standard input".to_owned();
        let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).during(what)?;
        rustix::net::sockopt::socket_type(&socket).during(what)?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null").during(what)?).during(what)?;
        Ok(Self::new(socket))
    }

    /// Sends now, waiting for room; for clients.
    pub(crate) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = frame(message, fds.len())?;
        let mut sent = 0;
        while sent < bytes.len() {
            let rights = if sent == 0 { fds } else { &[] };
            sent += fdpass::send_waiting(&self.socket, &bytes[sent..], rights)
                .map_err(|e| Error::io("write to the project's supervisor", e))?;
        }
        Ok(())
    }

    /// Sends as much as fits now and keeps the rest for [`Connection::flush`]; for the supervisor.
    pub(crate) fn post<T: Serialize>(&mut self, message: &T, fds: Vec<OwnedFd>) -> Result<()> {
        let bytes = frame(message, fds.len())?;
        self.backlog += bytes.len();
        if self.backlog > MAX_BACKLOG {
            return Err(Error::protocol("the client does not read"));
        }
        self.output.push_back(Frame { bytes, sent: 0, fds });
        self.flush()
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        while let Some(front) = self.output.front_mut() {
            let rights: Vec<_> = front.fds.iter().map(AsFd::as_fd).collect();
            match fdpass::send(&self.socket, &front.bytes[front.sent..], &rights) {
                Ok(sent) => {
                    front.sent += sent;
                    front.fds.clear();
                    if front.sent == front.bytes.len() {
                        self.backlog -= front.bytes.len();
                        self.output.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(Error::io("write to a client", e)),
            }
        }
        Ok(())
    }

    /// Whether everything posted has been sent.
    pub(crate) fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// The next frame, without waiting.
    pub(crate) fn poll<T: DeserializeOwned>(&mut self) -> Result<Incoming<T>> {
        self.next(false)
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) fn wait<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        match self.next(true)? {
            Incoming::Frame(message, fds) => Ok(Some((message, fds))),
            Incoming::Empty | Incoming::End => Ok(None),
        }
    }

    fn next<T: DeserializeOwned>(&mut self, waiting: bool) -> Result<Incoming<T>> {
        loop {
            if let Some((message, fds)) = self.take()? {
                return Ok(Incoming::Frame(message, fds));
            }
            if self.ended {
                return if self.used == self.input.len() {
                    Ok(Incoming::End)
                } else {
                    Err(Error::protocol("the connection ended inside a message"))
                };
            }
            let mut chunk = [0; 16384];
            let receive = if waiting { fdpass::receive_waiting } else { fdpass::receive };
            match receive(&self.socket, &mut chunk, &mut self.fds) {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    self.input.drain(..std::mem::take(&mut self.used));
                    self.input.extend_from_slice(&chunk[..n]);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Incoming::Empty),
                Err(e) => return Err(Error::io("read from the project's socket", e)),
            }
            if self.fds.len() > 2 * MAX_FDS {
                return Err(Error::protocol("more descriptors than any message takes"));
            }
        }
    }

    /// A complete frame of what was read.
    fn take<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        let rest = &self.input[self.used..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
        let (length, count) = parse_header(*header)?;
        if rest.len() < length {
            return Ok(None);
        }
        if self.fds.len() < count {
            return Err(Error::protocol("a message came without its descriptors"));
        }
        let message = serde_json::from_slice(&rest[..length]).map_err(|e| Error::protocol(format!("{e}")))?;
        self.used += HEADER + length;
        Ok(Some((message, self.fds.drain(..count).collect())))
    }
}

fn parse_header(header: [u8; HEADER]) -> Result<(usize, usize)> {
    let [a, b, c, d, count, 0, 0, 0] = header else {
        return Err(Error::protocol("not a message of ctst"));
    };
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_BODY || usize::from(count) > MAX_FDS {
        return Err(Error::protocol(format!("a message of {length} bytes and {count} descriptors is too large")));
    }
    Ok((length, usize::from(count)))
}

fn frame<T: Serialize>(message: &T, fds: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, message).map_err(|e| Error::protocol(e.to_string()))?;
    let length = bytes.len() - HEADER;
    match (u32::try_from(length), u8::try_from(fds)) {
        (Ok(length32), Ok(fds)) if length <= MAX_BODY && usize::from(fds) <= MAX_FDS => {
            bytes[..4].copy_from_slice(&length32.to_le_bytes());
            bytes[4] = fds;
            Ok(bytes)
        }
        _ => Err(Error::protocol(format!("a message of {length} bytes and {fds} descriptors is too large"))),
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::SocketType;

    use super::*;

    fn pair() -> (Connection, Connection) {
        let (a, b) = fdpass::pair(SocketType::STREAM).unwrap();
        (Connection::new(a), Connection::new(b))
    }

    fn raw(to: &Connection, bytes: &[u8]) {
        assert_eq!(fdpass::send(to, bytes, &[]).unwrap(), bytes.len());
    }

    #[test]
    fn carries_messages_and_their_descriptors() {
        let (a, mut b) = pair();
        let file = tempfile::tempfile().unwrap();
        a.send(&Request::Signal(2), &[]).unwrap();
        a.send(&Request::Attach, &[file.as_fd(), file.as_fd()]).unwrap();
        a.send(&Request::Stats, &[file.as_fd()]).unwrap();
        drop(a);
        let got: Vec<_> = std::iter::from_fn(|| b.wait::<Request>().unwrap()).map(|(m, f)| (m, f.len())).collect();
        assert_eq!(got, [(Request::Signal(2), 0), (Request::Attach, 2), (Request::Stats, 1)]);
    }

    #[test]
    fn sends_what_does_not_fit_at_once() {
        let (mut a, mut b) = pair();
        let long = "x".repeat(3 << 20);
        a.post(&long, vec![tempfile::tempfile().unwrap().into()]).unwrap();
        a.post(&"end", vec![]).unwrap();
        assert!(!a.is_flushed());
        let mut got = Vec::new();
        while got.len() < 2 {
            a.flush().unwrap();
            if let Incoming::Frame(text, fds) = b.poll::<String>().unwrap() {
                got.push((text.len(), fds.len()));
            }
        }
        assert!(a.is_flushed());
        assert_eq!(got, [(3 << 20, 1), (3, 0)]);
    }

    #[test]
    fn refuses_what_is_not_a_frame() {
        let huge = [0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0];
        let many = [2, 0, 0, 0, 17, 0, 0, 0];
        for header in [huge, many, *b"GET / HT"] {
            let (a, mut b) = pair();
            raw(&a, &header);
            assert!(matches!(b.poll::<Request>(), Err(Error::Protocol { .. })), "{header:?}");
        }
        let (a, mut b) = pair();
        raw(&a, &[2, 0, 0, 0, 1, 0, 0, 0, b'{', b'}']);
        assert!(matches!(b.poll::<Request>(), Err(Error::Protocol { problem }) if problem.contains("descriptors")));
        let (a, mut b) = pair();
        raw(&a, &[3, 0, 0, 0, 0, 0, 0, 0, b'"', b'x']);
        assert!(matches!(b.poll::<String>(), Ok(Incoming::Empty)));
        drop(a);
        assert!(matches!(b.poll::<String>(), Err(Error::Protocol { .. })));
        assert!(frame(&"x".repeat(MAX_BODY), 0).is_err() && frame(&"", MAX_FDS + 1).is_err());
    }

    #[test]
    fn drops_a_client_that_does_not_read() {
        let (mut a, _b) = pair();
        let long = "x".repeat(MAX_BODY - 2);
        let results: Vec<_> = (0..4).map(|_| a.post(&long, vec![]).is_ok()).collect();
        assert_eq!(results, [true, true, false, false].map(|ok: bool| ok), "{:?}", a.backlog);
    }
}
