//! What leaves a project: a process of its own that carries frames between the project's network device, which S made, and a program
//! that makes ordinary connections of its user's of them: passt(1).
//!
//! The supervisor cannot start that program, because it has given up starting any before the first container was there, so that whoever
//! runs the project starts this process and hands its socket over. It ends with that socket.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use containust_shared::exit;
use containust_shared::protocol::egress::{ADDRESS, RESOLVER, ROUTER};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Result};
use crate::host::confine;
use crate::ipc::{Connection, fdpass};
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
/// Whoever lives as long has not refused to work: passt looks at the host, and for a user namespace of its own, first of all.
const SETTLED: Duration = Duration::from_secs(1);
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
    /// It has not ended at once, as it does where it cannot do its work.
    Works,
    /// It ended, and is started again. `refused`: by itself, before it worked.
    Ended { problem: String, refused: bool },
}

/// Where the program is.
///
/// # Errors
/// [`Error::NoEgress`].
pub(crate) fn find() -> Result<PathBuf> {
    which::which(PASST).map_err(|_| Error::NoEgress)
}

/// This process, started and not yet at work, and the socket that tells it to begin.
#[derive(Debug)]
pub(crate) struct Keeper {
    child: Child,
    /// None: it was handed over.
    pub(crate) socket: Option<OwnedFd>,
}

impl Keeper {
    /// `file`: the project's, by which people tell such processes apart.
    ///
    /// # Errors
    /// As of [`find`], and those of starting a program.
    pub(crate) fn start(file: &Path) -> Result<Self> {
        let program = find()?;
        let (ours, theirs) = fdpass::pair(SocketType::STREAM).during(|| "make a socket pair".to_owned())?;
        // It stays, and who waits for the end of a descriptor that a shell left open in us would wait as long.
        close_fds::set_fds_cloexec_threadsafe(3, &[]);
        let child = Command::new("/proc/self/exe")
            .arg0("ctst")
            .arg(VERB)
            .arg(program)
            .arg(file)
            .env_clear()
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .during(|| "start the process for what leaves the project".to_owned())?;
        Ok(Self { child, socket: Some(ours) })
    }

    /// Waits for its end, after that of the project.
    pub(crate) fn reap(mut self) {
        self.socket = None;
        self.child.wait().ok();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Who has the socket decides when it ends; without anybody that is now.
        let refused = self.socket.take().is_some();
        if refused {
            self.child.wait().ok();
        } else {
            self.child.try_wait().ok();
        }
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

fn carry(mut supervisor: Connection, program: &Path) -> Result<()> {
    let Some((Carry, fds)) = supervisor.wait::<Carry>()? else { return Ok(()) };
    let [device]: [OwnedFd; 1] = fds.try_into().map_err(|_| Error::protocol("not the device"))?;
    let mut pause = PAUSE;
    loop {
        // What the last one did not take may be what it could not bear.
        while rustix::io::read(&device, &mut [0; MAX_FRAME]).is_ok() {}
        let began = Instant::now();
        let (problem, refused) = match serve(&mut supervisor, program, &device) {
            Ok(None) => return Ok(()),
            Ok(Some(ended)) => ended,
            Err(error) => (error.to_string(), true),
        };
        supervisor.send(&Told::Ended { problem, refused }, &[])?;
        if began.elapsed() > pause {
            pause = PAUSE;
        }
        if ends_within(&supervisor, pause)? {
            return Ok(());
        }
        pause = (2 * pause).min(MAX_PAUSE);
    }
}

/// Whether the supervisor closes its end within this time: it says nothing else.
fn ends_within(supervisor: &Connection, time: Duration) -> Result<bool> {
    let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
    let told = poll(&mut [PollFd::new(supervisor, PollFlags::IN)], Some(&time));
    Ok(told.during(|| "wait for the supervisor".to_owned())? > 0)
}

/// The program from its start to its end. Returns what it said last, and whether it refused to work; none: the supervisor is gone.
fn serve(supervisor: &mut Connection, program: &Path, device: &OwnedFd) -> Result<Option<(String, bool)>> {
    let what = || format!("start {}", program.display());
    let (ours, theirs) = fdpass::pair(SocketType::STREAM).during(what)?;
    let device = device.try_clone().during(what)?;
    let mut child = Command::new(program)
        .args(arguments())
        .env_clear()
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .during(what)?;
    let served = (|| {
        let relay = confine::on_sockets("egress", move || relay(&device, &ours)).during(what)?;
        let gone = watch(supervisor, &mut child)?;
        Ok::<_, Error>((relay, gone))
    })();
    // Whatever happened: nothing of it stays. Its end ends the relay.
    child.kill().ok();
    let status = child.wait().during(what)?;
    let (relay, words) = served?;
    relay.join().ok();
    Ok(words.map(|(words, worked)| {
        // Where nothing reads /dev/log it says so for each line that it says.
        let words: Vec<&str> = words.lines().filter(|line| !line.contains(" to syslog")).map(str::trim).collect();
        let words = words.join(" ");
        let words = words.trim();
        let problem = if words.is_empty() {
            format!("{PASST} ended: {status}")
        } else {
            format!("{PASST}: {} ({status})", words.escape_debug())
        };
        // A signal is somebody else's will.
        (problem, !worked && status.code().is_some())
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

/// Waits for the end of the program, and returns what it said last, and whether it worked; none: the supervisor is gone.
fn watch(supervisor: &mut Connection, child: &mut Child) -> Result<Option<(String, bool)>> {
    let what = || format!("watch {PASST}");
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::protocol("no pid"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).during(what)?;
    let mut stderr: Option<ChildStderr> = child.stderr.take();
    let mut words = Vec::new();
    supervisor.send(&Told::Started, &[pidfd.as_fd()])?;
    let (settled, mut worked) = (Instant::now() + SETTLED, false);
    loop {
        let mut fds = vec![PollFd::new(&*supervisor, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        fds.extend(stderr.as_ref().map(|stderr| PollFd::new(stderr, PollFlags::IN)));
        let left = settled.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, (!worked).then_some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) => {
                worked = true;
                supervisor.send(&Told::Works, &[])?;
                continue;
            }
            told => told.during(what)?,
        };
        let [gone, ended, said] = [0, 1, 2].map(|at| fds.get(at).is_some_and(|fd| !fd.revents().is_empty()));
        if gone {
            return Ok(None);
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
            return Ok(Some((String::from_utf8_lossy(&words).into_owned(), worked)));
        }
    }
}

/// Header and payload of an Ethernet frame, in bytes: the program's frames are as long as IP allows, whatever the device's MTU.
const MAX_FRAME: usize = 14 + 65_535;
/// Before each frame on the program's socket: its length, big-endian.
const PREFIX: usize = 4;
/// Frames of one direction that are carried at once, in bytes.
const BATCH: usize = 4 * MAX_FRAME;

/// Carries frames until one side is gone.
fn relay(device: &OwnedFd, socket: &OwnedFd) {
    let mut up = Up { bytes: vec![0; BATCH + PREFIX + MAX_FRAME], filled: 0, sent: 0 };
    let mut down = Down { bytes: vec![0; BATCH + PREFIX + MAX_FRAME], filled: 0 };
    loop {
        let full = up.sent < up.filled;
        let (from_device, to_socket) =
            if full { (PollFlags::empty(), PollFlags::OUT) } else { (PollFlags::IN, PollFlags::empty()) };
        let mut fds = [PollFd::new(device, from_device), PollFd::new(socket, PollFlags::IN | to_socket)];
        let carried = match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => up.go_on(device, socket).and_then(|()| down.go_on(socket, device)),
        };
        if carried.is_err() {
            return;
        }
    }
}

/// Frames on their way out.
struct Up {
    bytes: Vec<u8>,
    filled: usize,
    sent: usize,
}

impl Up {
    fn go_on(&mut self, device: &OwnedFd, socket: &OwnedFd) -> io::Result<()> {
        if self.sent == self.filled {
            (self.filled, self.sent) = (0, 0);
            while self.filled < BATCH {
                let start = self.filled + PREFIX;
                match rustix::io::read(device, &mut self.bytes[start..start + MAX_FRAME]) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(length) => {
                        let prefix = u32::try_from(length).map_err(io::Error::other)?.to_be_bytes();
                        self.bytes[self.filled..start].copy_from_slice(&prefix);
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
    fn go_on(&mut self, socket: &OwnedFd, device: &OwnedFd) -> io::Result<()> {
        match recv(socket, &mut self.bytes[self.filled..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((length, _)) => self.filled += length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        let mut at = 0;
        while let Some((prefix, rest)) = self.bytes[at..self.filled].split_first_chunk::<PREFIX>() {
            let length = usize::try_from(u32::from_be_bytes(*prefix)).map_err(io::Error::other)?;
            if length > MAX_FRAME {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let Some(frame) = rest.get(..length) else { break };
            // Like a wire, it drops what cannot be taken.
            match rustix::io::write(device, frame) {
                Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::INVAL) => {}
                Err(errno) => return Err(errno.into()),
            }
            at += PREFIX + length;
        }
        self.bytes.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }
}
