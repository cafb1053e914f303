//! Health probes over TCP: state machines for the supervisor's event loop. The caller makes the socket (in the project's
//! or the container's network namespace), waits for events, and counts the time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Poll;

use rustix::net::sockopt;

use crate::logs::Escaped;

/// How much of an answer is read, in bytes. The status line has to end within it.
const MAX_ANSWER: usize = 4096;
/// How much of a status line is told, in bytes.
const MAX_SHOWN: usize = 200;

/// Healthy if a connection can be made.
#[derive(Debug)]
pub(crate) struct Tcp {
    stream: TcpStream,
    address: SocketAddr,
}

impl Tcp {
    /// Starts connecting `socket`, which must be non-blocking, to `address`.
    ///
    /// # Errors
    /// What the probe found, if the kernel refuses at once.
    pub(crate) fn new(socket: OwnedFd, address: SocketAddr) -> Result<Self, String> {
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(Self { stream: socket.into(), address }),
            Err(e) => Err(connect_error(address, &e.into())),
        }
    }

    /// Goes on after an event: `Ok` says that it is healthy, `Err` why not. Not to be called after that.
    pub(crate) fn ready(&mut self) -> Poll<Result<String, String>> {
        match self.connected() {
            Ok(false) => Poll::Pending,
            Ok(true) => Poll::Ready(Ok(format!("connected to {}", self.address))),
            Err(e) => Poll::Ready(Err(connect_error(self.address, &e))),
        }
    }

    fn connected(&self) -> io::Result<bool> {
        sockopt::socket_error(&self.stream)??;
        match self.stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Tcp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn connect_error(address: SocketAddr, error: &io::Error) -> String {
    format!("connect to {address}: {error}")
}

/// Healthy if a GET request is answered with a status of 200 to 399.
#[derive(Debug)]
pub(crate) struct Http {
    tcp: Tcp,
    url: String,
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
    connected: bool,
}

impl Http {
    /// Starts connecting `socket`, which must be non-blocking, to `address` to ask for `path`, a path and query that
    /// begins with `/`. The service is asked as `localhost`, as a check inside its container would.
    ///
    /// # Errors
    /// What the probe found, if the kernel refuses at once, or that `path` is none.
    pub(crate) fn new(socket: OwnedFd, address: SocketAddr, path: &str) -> Result<Self, String> {
        if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("{path:?} is not a path of a URL: it begins with / and has other bytes as %XX"));
        }
        let tcp = Tcp::new(socket, address)?;
        let port = address.port();
        let host = if port == 80 { "localhost".to_owned() } else { format!("localhost:{port}") };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ctst-healthcheck\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        let url = format!("http://{address}{path}");
        Ok(Self { tcp, url, request: request.into_bytes(), sent: 0, answer: Vec::new(), connected: false })
    }

    /// As [`Tcp::ready`]; both texts tell the status line where there is one.
    pub(crate) fn ready(&mut self) -> Poll<Result<String, String>> {
        if !self.connected {
            match self.tcp.connected() {
                Ok(false) => return Poll::Pending,
                Ok(true) => self.connected = true,
                Err(e) => return Poll::Ready(Err(connect_error(self.tcp.address, &e))),
            }
        }
        match self.exchange() {
            Ok(answer) => Poll::Ready(answer.map_err(|why| format!("GET {}: {why}", self.url))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(e) => Poll::Ready(Err(format!("GET {}: {e}", self.url))),
        }
    }

    fn exchange(&mut self) -> io::Result<Result<String, String>> {
        while self.sent < self.request.len() {
            match self.tcp.stream.write(&self.request[self.sent..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                sent => self.sent += sent?,
            }
        }
        loop {
            let mut buffer = [0; MAX_ANSWER];
            let room = MAX_ANSWER - self.answer.len();
            let read = match self.tcp.stream.read(&mut buffer[..room]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            self.answer.extend_from_slice(&buffer[..read]);
            if let Some(status) = final_status(&self.answer) {
                return Ok(judge(status));
            }
            if read == 0 {
                let told = if self.answer.is_empty() { "connection closed" } else { "answer ends" };
                return Ok(Err(format!("{told} before the end of the status line")));
            }
            if self.answer.len() == MAX_ANSWER {
                return Ok(Err(format!("no status line in the first {MAX_ANSWER} bytes of the answer")));
            }
        }
    }
}

impl AsFd for Http {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

/// The status line that counts: those of status 1xx (RFC 9110, 15.2) come before another one.
fn final_status(mut answer: &[u8]) -> Option<&[u8]> {
    loop {
        let end = answer.iter().position(|b| *b == b'\n')?;
        let status = &answer[..end];
        if !code(status).is_some_and(|code| (100..200).contains(&code) && code != 101) {
            return Some(status.strip_suffix(b"\r").unwrap_or(status));
        }
        let blank = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
        answer = &answer[blank + 4..];
    }
}

fn judge(status: &[u8]) -> Result<String, String> {
    let shown = Escaped(&status[..status.len().min(MAX_SHOWN)]).to_string();
    match code(status) {
        Some(200..=399) => Ok(shown),
        Some(_) => Err(shown),
        None => Err(format!("not an answer of HTTP: {shown}")),
    }
}

/// The code of `HTTP/1.1 200 OK`; the reason may be missing.
fn code(status: &[u8]) -> Option<u16> {
    let rest = status.strip_prefix(b"HTTP/1.")?;
    let [_, b' ', digits @ ..] = rest else { return None };
    let digits = digits.get(..3).filter(|_| matches!(digits.get(3), None | Some(b' ' | b'\r')))?;
    std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    fn socket() -> OwnedFd {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap()
    }

    /// Runs a probe with the edge-triggered events that the supervisor has.
    fn run<P: AsFd>(mut probe: P, ready: impl Fn(&mut P) -> Poll<Result<String, String>>) -> Result<String, String> {
        use rustix::event::epoll::{CreateFlags, Event, EventData, EventFlags, add, create, wait};
        let epoll = create(CreateFlags::CLOEXEC).unwrap();
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        add(&epoll, &probe, EventData::new_u64(0), flags).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            let mut events = Vec::<Event>::with_capacity(1);
            let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
            if wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)).unwrap() > 0
                && let Poll::Ready(result) = ready(&mut probe)
            {
                return result;
            }
        }
        panic!("no result");
    }

    /// Asks a server that answers with these pieces and closes.
    fn http(path: &str, pieces: &[&[u8]]) -> (Result<String, String>, String) {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let (mut stream, _) = server.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                for piece in pieces {
                    std::thread::sleep(Duration::from_millis(5));
                    // The probe may have heard enough.
                    stream.write_all(piece).ok();
                }
                String::from_utf8(request).unwrap().replace(&address.to_string(), "ADDRESS")
            });
            let probe = Http::new(socket(), address, path).unwrap();
            let result = run(probe, Http::ready);
            let result = result.map_err(|e| e.replace(&address.to_string(), "ADDRESS"));
            (result, asked.join().unwrap())
        })
    }

    #[test]
    fn tcp() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let connect = || Tcp::new(socket(), address).and_then(|probe| run(probe, Tcp::ready));
        assert_eq!(connect().unwrap(), format!("connected to {address}"));
        drop(server);
        assert_eq!(connect().unwrap_err(), format!("connect to {address}: Connection refused (os error 111)"));
    }

    #[test]
    fn tcp_waits_for_the_other_side() {
        // A full queue of connections leaves the probe without an answer.
        let server = socket();
        rustix::net::bind(&server, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        rustix::net::listen(&server, 0).unwrap();
        let address: SocketAddr = TcpListener::from(server.try_clone().unwrap()).local_addr().unwrap();
        let _full: Vec<_> = (0..3).map(|_| Tcp::new(socket(), address).unwrap()).collect();
        let mut probe = Tcp::new(socket(), address).unwrap();
        let mut fds = [PollFd::new(&probe, PollFlags::OUT)];
        assert_eq!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 })).unwrap(), 0);
        assert_eq!(probe.ready(), Poll::Pending);
    }

    #[test]
    fn http_statuses() {
        let (result, request) = http("/healthz?full=1", &[b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]);
        assert_eq!(result.unwrap(), "HTTP/1.1 200 OK");
        assert!(request.starts_with("GET /healthz?full=1 HTTP/1.1\r\nHost: localhost:"), "{request}");
        assert!(request.contains("\r\nConnection: close\r\n"), "{request}");
        for good in ["HTTP/1.0 204\r\n", "HTTP/1.1 399 \r\n", "HTTP/1.1 302 Found\n"] {
            assert!(http("/", &[good.as_bytes()]).0.is_ok(), "{good}");
        }
        let unhealthy = |answer: &[u8]| http("/x", &[answer]).0.unwrap_err();
        assert_eq!(unhealthy(b"HTTP/1.1 503 Not yet\r\n"), "GET http://ADDRESS/x: HTTP/1.1 503 Not yet");
        assert!(unhealthy(b"HTTP/1.1 404 Not Found\r\n").ends_with("404 Not Found"));
        assert!(unhealthy(b"HTTP/1.1 400 \x1b[31m\r\n").ends_with("400 \\x1b[31m"));
        for bad in ["HTTP/1.1 2000 x\r\n", "HTTP/1.1 +20 x\r\n", "HTTP/2 200\r\n", "SSH-2.0-OpenSSH\r\n", "\r\n"] {
            assert!(unhealthy(bad.as_bytes()).contains("not an answer of HTTP"), "{bad}");
        }
    }

    #[test]
    fn http_in_pieces_and_after_interim_answers() {
        let (result, _) =
            http("/", &[b"HT", b"TP/1.1 1", b"03 Early\r\nLink: x\r\n", b"\r\nHTTP/1.1 200", b" OK\r", b"\n"]);
        assert_eq!(result.unwrap(), "HTTP/1.1 200 OK");
    }

    #[test]
    fn http_answers_that_never_get_to_the_point() {
        let error = |pieces: &[&[u8]]| http("/", pieces).0.unwrap_err();
        assert_eq!(error(&[]), "GET http://ADDRESS/: connection closed before the end of the status line");
        assert_eq!(error(&[b"HTTP/1.1 200"]), "GET http://ADDRESS/: answer ends before the end of the status line");
        let long = error(&[&[b'x'; 10_000]]);
        assert_eq!(long, "GET http://ADDRESS/: no status line in the first 4096 bytes of the answer");
    }

    #[test]
    fn http_paths_cannot_smuggle() {
        for path in ["", "x", "/a b", "/a\r\nX: y", "/\u{e4}", "/\u{7f}"] {
            assert!(Http::new(socket(), "127.0.0.1:1".parse().unwrap(), path).is_err(), "{path:?}");
        }
    }
}
