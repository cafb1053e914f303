//! What leaves a project: a process of its own that carries frames between the project's network device, which S made, and a program
//! that makes ordinary connections of its user's of them: passt(1).
//!
//! The supervisor cannot start that program, because it has given up starting any before the first container was there, so that whoever
//! runs the project starts this process, once the supervisor wants it, and has handed its socket over before. It ends with that socket.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use containust_shared::exit;
use containust_shared::protocol::egress::{ADDRESS, RESOLVER, ROUTER};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Result};
use crate::host::confine;
use crate::ipc::{Connection, Incoming, fdpass};
use crate::secrets;

/// The hidden verb of this executable.
pub(crate) const VERB: &str = "egress";
/// Where the kernel gives out network devices that are files, and what makes it do so.
pub(crate) const TUN: &str = "/dev/net/tun";
pub(crate) const OPEN_TUN: &str = "let users open it: sudo modprobe tun && sudo chmod 666 /dev/net/tun";
/// The program.
pub(crate) const PASST: &str = "passt";
/// It is started again after this time, twice as long each time, and as before after it has worked for as long.
const PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// What it said last, for the message.
const WORDS: usize = 1024;

/// Supervisor to this process, once. One descriptor: the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Carry;

/// This process to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Told {
    /// The program was started. One descriptor: its pidfd, for the case that this process cannot end it.
    Started,
    /// It answers.
    Works,
    /// It ended, or was ended because it answered nothing, and is started again.
    Ended { problem: String },
}

/// Where the program is.
///
/// # Errors
/// [`Error::NoEgress`].
pub(crate) fn find() -> Result<PathBuf> {
    which::which(PASST).map_err(|_| Error::NoEgress { slirp4netns: which::which("slirp4netns").is_ok() })
}

/// This process before it is started.
#[derive(Debug)]
pub(crate) struct Offer {
    program: PathBuf,
    /// The socket by which the supervisor speaks to it.
    pub(crate) socket: OwnedFd,
    other: OwnedFd,
}

impl Offer {
    /// # Errors
    /// As of [`find`], and those of making sockets.
    pub(crate) fn new() -> Result<Self> {
        let program = find()?;
        let (socket, other) = fdpass::pair(SocketType::STREAM).during(|| "make a socket pair".to_owned())?;
        Ok(Self { program, socket, other })
    }

    /// `file`: the project's, by which people tell such processes apart.
    ///
    /// # Errors
    /// Those of starting a program.
    pub(crate) fn start(self, file: &Path) -> Result<Keeper> {
        // It stays, and who waits for the end of a descriptor that a shell left open in us would wait as long.
        close_fds::set_fds_cloexec_threadsafe(3, &[]);
        let child = Command::new("/proc/self/exe")
            .arg0("ctst")
            .arg(VERB)
            .arg(self.program)
            .arg(file)
            .env_clear()
            .current_dir("/")
            .stdin(self.other)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .during(|| "start the process for what leaves the project".to_owned())?;
        Ok(Keeper(child))
    }
}

/// This process, which ends when the supervisor says so.
#[derive(Debug)]
pub(crate) struct Keeper(Child);

impl Keeper {
    /// Waits for its end, after that of the project.
    pub(crate) fn reap(mut self) {
        self.0.wait().ok();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.try_wait().ok();
    }
}

/// Runs as that process. Returns the exit code.
pub(crate) fn main(program: &Path) -> i32 {
    secrets::no_core();
    // That we lead a group already is the only possible refusal.
    rustix::process::setsid().ok();
    rustix::thread::set_name(c"ctst").ok();
    match Connection::inherited().and_then(|supervisor| carry(supervisor, program)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("ctst: {error}; `{VERB}` is started by ctst itself");
            exit::TOOL
        }
    }
}

/// The device, once S has made it.
type Device = Arc<OnceLock<OwnedFd>>;

fn carry(mut supervisor: Connection, program: &Path) -> Result<()> {
    let device = Device::default();
    let mut pause = PAUSE;
    loop {
        // What the last one did not take may be what it could not bear.
        while device.get().is_some_and(|device| rustix::io::read(device, &mut [0; MAX_FRAME]).is_ok()) {}
        let began = Instant::now();
        let problem = match serve(&mut supervisor, program, &device) {
            Ok(None) => return Ok(()),
            Ok(Some(problem)) => problem,
            Err(error) => error.to_string(),
        };
        supervisor.send(&Told::Ended { problem }, &[])?;
        if began.elapsed() > pause {
            pause = PAUSE;
        }
        if ends_within(&mut supervisor, &device, pause)? {
            return Ok(());
        }
        pause = (2 * pause).min(MAX_PAUSE);
    }
}

/// Takes what the supervisor has said. Returns whether it is gone.
fn listen(supervisor: &mut Connection, device: &Device) -> Result<bool> {
    loop {
        match supervisor.poll::<Carry>()? {
            Incoming::Empty => return Ok(false),
            Incoming::End => return Ok(true),
            Incoming::Frame(Carry, fds) => {
                let [given]: [OwnedFd; 1] = fds.try_into().map_err(|_| Error::protocol("not the device"))?;
                device.set(given).map_err(|_| Error::protocol("a second device"))?;
            }
        }
    }
}

/// Whether the supervisor closes its end within this time.
fn ends_within(supervisor: &mut Connection, device: &Device, time: Duration) -> Result<bool> {
    let end = Instant::now() + time;
    loop {
        let left = until(end);
        match poll(&mut [PollFd::new(&*supervisor, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => return Ok(false),
            told => {
                told.during(|| "wait for the supervisor".to_owned())?;
                if listen(supervisor, device)? {
                    return Ok(true);
                }
            }
        }
    }
}

fn until(end: Instant) -> Timespec {
    let left = end.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
}

/// The program from its start to its end. Returns why it ended; none: the supervisor is gone.
fn serve(supervisor: &mut Connection, program: &Path, device: &Device) -> Result<Option<String>> {
    let what = || format!("start {}", program.display());
    let (ours, theirs) = fdpass::pair(SocketType::STREAM).during(what)?;
    let (news, teller) = fdpass::pair(SocketType::STREAM).during(what)?;
    let mut child = Command::new(program)
        .args(arguments())
        .env_clear()
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .during(what)?;
    let served = (|| {
        let between = Arc::clone(device);
        let relay = confine::on_sockets("egress", move || relay(&between, &ours, &teller)).during(what)?;
        let end = watch(supervisor, &mut child, device, news)?;
        Ok::<_, Error>((relay, end))
    })();
    // Whatever happened: nothing of it stays. Its end ends the relay.
    child.kill().ok();
    let status = child.wait().during(what)?;
    let (relay, end) = served?;
    relay.join().ok();
    let Some(End { words, silent }) = end else { return Ok(None) };
    // Where nothing reads /dev/log it says so for each line that it says.
    let words: Vec<&str> = words.lines().filter(|line| !line.contains(" to syslog")).map(str::trim).collect();
    let words = words.join(" ");
    let words = words.trim().escape_debug();
    Ok(Some(match (silent, words.clone().next()) {
        (true, None) => format!("{PASST} answers nothing"),
        (true, Some(_)) => format!("{PASST} answers nothing, and said: {words}"),
        (false, None) => format!("{PASST} ended: {status}"),
        (false, Some(_)) => format!("{PASST}: {words} ({status})"),
    }))
}

/// One packet in each frame and nothing that is not for us: no address given out, nothing of this host's loopback, no port of it.
fn arguments() -> Vec<String> {
    let ip = |ip: [u8; 4]| std::net::Ipv4Addr::from(ip).to_string();
    let plain = "--foreground --quiet --stderr --ipv4-only --no-map-gw --no-dhcp --no-dhcpv6 --no-ndp --no-ra --tcp-ports none \
                 --udp-ports none --fd 0";
    let mut words: Vec<String> = plain.split(' ').map(str::to_owned).collect();
    for (option, value) in [
        ("--address", ip(ADDRESS.ip)),
        ("--netmask", ADDRESS.prefix.to_string()),
        ("--gateway", ip(ROUTER)),
        ("--dns-forward", ip(RESOLVER)),
    ] {
        words.extend([option.to_owned(), value]);
    }
    words
}

/// How the program came to its end.
struct End {
    /// What it said last.
    words: String,
    /// It has to be ended, because it answers nothing.
    silent: bool,
}

/// Waits for the end of the program; none: the supervisor is gone. `news`: of the relay.
fn watch(supervisor: &mut Connection, child: &mut Child, device: &Device, news: OwnedFd) -> Result<Option<End>> {
    let what = || format!("watch {PASST}");
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::protocol("no pid"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).during(what)?;
    let (mut stderr, mut news): (Option<ChildStderr>, _) = (child.stderr.take(), Some(news));
    let mut words = Vec::new();
    let end = |words: &[u8], silent| End { words: String::from_utf8_lossy(words).into_owned(), silent };
    supervisor.send(&Told::Started, &[pidfd.as_fd()])?;
    loop {
        let (told, said, ended, news_told) = {
            let mut fds = vec![PollFd::new(&*supervisor, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
            fds.extend(stderr.as_ref().map(|stderr| PollFd::new(stderr, PollFlags::IN)));
            fds.extend(news.as_ref().map(|news| PollFd::new(news, PollFlags::IN)));
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                told => told.during(what)?,
            };
            let happened = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
            let of_news = 2 + usize::from(stderr.is_some());
            (happened(0), stderr.is_some() && happened(2), happened(1), happened(of_news))
        };
        if told {
            let had = device.get().is_some();
            if listen(supervisor, device)? {
                return Ok(None);
            }
            if let Some(news) = news.as_ref().filter(|_| !had && device.get().is_some()) {
                // It may have ended.
                send(news, &[DEVICE], SendFlags::NOSIGNAL).ok();
            }
        }
        if news_told && let Some(from) = &news {
            let mut word = [0];
            match recv(from, &mut word[..], RecvFlags::empty()).during(what)? {
                (0, _) => news = None,
                _ if word == [SILENT] => return Ok(Some(end(&words, true))),
                _ => supervisor.send(&Told::Works, &[])?,
            }
        }
        if said && let Some(from) = &mut stderr {
            let mut buffer = [0; WORDS];
            match from.read(&mut buffer).during(what)? {
                0 => stderr = None,
                length => {
                    words.extend_from_slice(&buffer[..length]);
                    words.drain(..words.len().saturating_sub(WORDS));
                }
            }
            continue;
        }
        if ended {
            return Ok(Some(end(&words, false)));
        }
    }
}

/// Header and payload of an Ethernet frame, in bytes: the program's frames are as long as IP allows, whatever the device's MTU.
const MAX_FRAME: usize = 14 + 65_535;
/// Before each frame on the program's socket: its length, big-endian.
const PREFIX: usize = 4;
/// Frames of one direction that are carried at once, in bytes.
const BATCH: usize = 4 * MAX_FRAME;

/// What the relay is told, and what it tells: the device is there; the program answers; it answers nothing any more.
const DEVICE: u8 = b'd';
const WORKS: u8 = b'w';
const SILENT: u8 = b's';

/// The program is asked when it has sent nothing for so long.
const QUIET: Duration = Duration::from_secs(3);
/// It has so long for an answer until it is asked again, so often. By count, not by time alone: if it was stopped together with
/// this process it did not have that time.
const PATIENCE: Duration = Duration::from_secs(1);
const QUESTIONS: u32 = 7;

/// Whether the program does its work, which is known when something comes from it: an answer to who has the router's address (ARP)
/// comes from its loop, once that runs and as long as it does.
struct Pulse {
    /// When it is asked next.
    next: Instant,
    unanswered: u32,
    answered: bool,
}

impl Pulse {
    fn heard(&mut self) {
        (self.next, self.unanswered) = (Instant::now() + QUIET, 0);
    }

    /// Whether it is to be asked now. An error: it was, in vain.
    fn is_due(&mut self) -> Result<bool, ()> {
        if Instant::now() < self.next {
            return Ok(false);
        }
        if self.unanswered == QUESTIONS {
            return Err(());
        }
        self.unanswered += 1;
        self.next = Instant::now() + PATIENCE;
        Ok(true)
    }
}

/// Carries frames until one side is gone, or the program answers nothing.
fn relay(device: &OnceLock<OwnedFd>, socket: &OwnedFd, keeper: &OwnedFd) {
    let mut up = Up { bytes: vec![0; BATCH + PREFIX + MAX_FRAME + QUESTION], filled: 0, sent: 0, own: hardware() };
    let mut down = Down { bytes: vec![0; BATCH + PREFIX + MAX_FRAME], filled: 0 };
    let mut pulse = Pulse { next: Instant::now(), unanswered: 0, answered: false };
    let tell = |word| send(keeper, &[word], SendFlags::NOSIGNAL);
    loop {
        match pulse.is_due() {
            Ok(false) => {}
            Ok(true) => up.ask(),
            Err(()) => {
                tell(SILENT).ok();
                return;
            }
        }
        let device = device.get();
        let full = up.sent < up.filled;
        let (from_device, to_socket) =
            if full { (PollFlags::empty(), PollFlags::OUT) } else { (PollFlags::IN, PollFlags::empty()) };
        let mut fds = [
            PollFd::new(socket, PollFlags::IN | to_socket),
            PollFd::new(keeper, PollFlags::IN),
            PollFd::new(device.unwrap_or(keeper), from_device),
        ];
        let count = 2 + usize::from(device.is_some());
        match poll(&mut fds[..count], Some(&until(pulse.next))) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        // The device is there, or the end.
        if !fds[1].revents().is_empty() && !matches!(recv(keeper, &mut [0][..], RecvFlags::DONTWAIT), Ok((1, _))) {
            return;
        }
        match up.go_on(device, socket).and_then(|()| down.go_on(socket, device)) {
            Ok(false) => {}
            Ok(true) => {
                pulse.heard();
                if !std::mem::replace(&mut pulse.answered, true) && tell(WORKS).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// ARP over Ethernet for IPv4 (RFC 826): its type, and the beginning of each packet up to the operation.
const ARP: [u8; 2] = [0x08, 0x06];
const OVER_ETHERNET: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ASKS: [u8; 2] = [0, 1];
const ANSWERS: [u8; 2] = [0, 2];
/// Whoever asks from no address does not change what others know (RFC 5227), and can tell its answers from others'.
const NOBODY: [u8; 4] = [0; 4];
/// Bytes of a question, with what is before each frame.
const QUESTION: usize = PREFIX + 42;

/// The sender of questions before the device has sent anything.
fn hardware() -> [u8; 6] {
    let [a, b, c, d] = ADDRESS.ip;
    [0x02, 0x42, a, b, c, d]
}

/// The frame that asks for the router.
fn question(own: [u8; 6]) -> Vec<u8> {
    [&[0xff; 6][..], &own, &ARP, &OVER_ETHERNET, &ASKS, &own, &NOBODY, &[0; 6], &ROUTER].concat()
}

/// Whether a frame answers such a question, and nobody else's.
fn is_answer(frame: &[u8]) -> bool {
    let has = |at: usize, bytes: &[u8]| frame.get(at..at + bytes.len()) == Some(bytes);
    has(12, &ARP) && has(14, &OVER_ETHERNET) && has(20, &ANSWERS) && has(38, &NOBODY)
}

/// Frames on their way out.
struct Up {
    bytes: Vec<u8>,
    filled: usize,
    sent: usize,
    /// The device's hardware address: passt sends to whoever sent last.
    own: [u8; 6],
}

impl Up {
    /// Asks for the router, where there is room for it: else the program has enough to take already.
    fn ask(&mut self) {
        let frame = question(self.own);
        if let Some(room) = self.bytes.get_mut(self.filled..self.filled + QUESTION) {
            let prefix = 42_u32.to_be_bytes();
            room[..PREFIX].copy_from_slice(&prefix);
            room[PREFIX..].copy_from_slice(&frame);
            self.filled += QUESTION;
        }
    }

    fn go_on(&mut self, device: Option<&OwnedFd>, socket: &OwnedFd) -> io::Result<()> {
        if self.sent == self.filled {
            (self.filled, self.sent) = (0, 0);
            while let Some(device) = device.filter(|_| self.filled < BATCH) {
                let start = self.filled + PREFIX;
                match rustix::io::read(device, &mut self.bytes[start..start + MAX_FRAME]) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(length) => {
                        let prefix = u32::try_from(length).map_err(io::Error::other)?.to_be_bytes();
                        self.bytes[self.filled..start].copy_from_slice(&prefix);
                        if length >= 12 {
                            self.own.copy_from_slice(&self.bytes[start + 6..start + 12]);
                        }
                        self.filled = start + length;
                    }
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => break,
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        while self.sent < self.filled {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match send(socket, &self.bytes[self.sent..self.filled], flags) {
                Ok(length) => self.sent += length,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Frames on their way in.
struct Down {
    bytes: Vec<u8>,
    filled: usize,
}

impl Down {
    /// Returns whether anything came.
    fn go_on(&mut self, socket: &OwnedFd, device: Option<&OwnedFd>) -> io::Result<bool> {
        match recv(socket, &mut self.bytes[self.filled..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((length, _)) => self.filled += length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
        let mut at = 0;
        while let Some((prefix, rest)) = self.bytes[at..self.filled].split_first_chunk::<PREFIX>() {
            let length = usize::try_from(u32::from_be_bytes(*prefix)).map_err(io::Error::other)?;
            if length > MAX_FRAME {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let Some(frame) = rest.get(..length) else { break };
            if let Some(device) = device.filter(|_| !is_answer(frame)) {
                // Like a wire, it drops what cannot be taken.
                match rustix::io::write(device, frame) {
                    Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::INVAL) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            at += PREFIX + length;
        }
        self.bytes.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(true)
    }
}
