//! What leaves a project: a process of its own that carries frames between the project's network device, which S made, and a program
//! that makes ordinary connections of its user's of them: passt(1).
//!
//! The supervisor cannot start that program, because it has given up starting any before the first container was there, so that whoever
//! runs the project starts this process, once the supervisor wants it, and has handed its socket over before. It ends with that socket.

mod relay;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use containust_shared::exit;
use containust_shared::protocol::egress::{ADDRESS, ROUTER};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Result};
use crate::host::confine;
use crate::ipc::{Connection, Incoming, fdpass};
use crate::secrets;

use relay::{DEVICE, MAX_FRAME, SILENT, relay};

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

/// Whom steps of builds ask for names, which have no project's name server: passt at another address than a project's, because
/// nothing of a container reaches what is link-local. Nobody has it (the dummy address of IANA's IPv4 Special-Purpose Address
/// Registry). Only where builds have a way out, for behind it may be a resolver on the host's loopback.
pub(crate) const RESOLVER_OF_STEPS: [u8; 4] = [192, 0, 0, 8];

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

    /// `file`: the project's, by which people tell such processes apart. `resolver`: the address at which the program is asked for
    /// names.
    ///
    /// # Errors
    /// Those of starting a program.
    pub(crate) fn start(self, file: &Path, resolver: [u8; 4]) -> Result<Keeper> {
        // It stays, and who waits for the end of a descriptor that a shell left open in us would wait as long.
        close_fds::set_fds_cloexec_threadsafe(3, &[]);
        let child = Command::new("/proc/self/exe")
            .arg0("ctst")
            .arg(VERB)
            .arg(self.program)
            .arg(ip(resolver))
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
pub(crate) fn main(program: &Path, resolver: &str) -> i32 {
    secrets::no_core();
    // That we lead a group already is the only possible refusal.
    rustix::process::setsid().ok();
    rustix::thread::set_name(c"ctst").ok();
    match Connection::inherited().and_then(|supervisor| carry(supervisor, (program, resolver))) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("ctst: {error}; `{VERB}` is started by ctst itself");
            exit::TOOL
        }
    }
}

/// The device, once S has made it.
type Device = Arc<OnceLock<OwnedFd>>;

fn carry(mut supervisor: Connection, (program, resolver): (&Path, &str)) -> Result<()> {
    let device = Device::default();
    let mut pause = PAUSE;
    loop {
        // What the last one did not take may be what it could not bear.
        while device.get().is_some_and(|device| rustix::io::read(device, &mut [0; MAX_FRAME]).is_ok()) {}
        let began = Instant::now();
        let problem = match serve(&mut supervisor, (program, resolver), &device) {
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
fn serve(supervisor: &mut Connection, (program, resolver): (&Path, &str), device: &Device) -> Result<Option<String>> {
    let what = || format!("start {}", program.display());
    let (ours, theirs) = fdpass::pair(SocketType::STREAM).during(what)?;
    let (news, teller) = fdpass::pair(SocketType::STREAM).during(what)?;
    let mut child = Command::new(program)
        .args(arguments(resolver))
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
fn arguments(resolver: &str) -> Vec<String> {
    let plain = "--foreground --quiet --stderr --ipv4-only --no-map-gw --no-dhcp --no-dhcpv6 --no-ndp --no-ra --tcp-ports none \
                 --udp-ports none --fd 0";
    let mut words: Vec<String> = plain.split(' ').map(str::to_owned).collect();
    for (option, value) in [
        ("--address", ip(ADDRESS.ip)),
        ("--netmask", ADDRESS.prefix.to_string()),
        ("--gateway", ip(ROUTER)),
        ("--dns-forward", resolver.to_owned()),
    ] {
        words.extend([option.to_owned(), value]);
    }
    words
}

fn ip(ip: [u8; 4]) -> String {
    std::net::Ipv4Addr::from(ip).to_string()
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
