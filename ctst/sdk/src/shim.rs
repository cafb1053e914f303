//! The caller's side of `ctst-shim`: finding it, starting it, and typed messages with it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use containust_shared::protocol::{CHANNEL_FD, Failure};
use containust_shared::wire::{self, MAX_MESSAGE, Message};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec};
use rustix::net::SocketType;
use rustix::process::getuid;

use crate::error::{During, Error, Result};
use crate::host::doctor::namespaces_fix;
use crate::host::launch;
use crate::host::policy::Policy;
use crate::host::strict;
use crate::ipc::fdpass;

const INSTALLED: &str = "/usr/libexec/ctst/ctst-shim";
/// With file capabilities, for members of a group: a package of its own.
const STRICT: &str = "/usr/libexec/ctst/strict/ctst-shim";
/// Bookkeeping of the kernel for one record and its descriptors comes on top of the record.
const BUFFER: usize = 2 * MAX_MESSAGE;

/// Most requests that wait for a container's pid 1.
const MAX_QUEUE: usize = 1000;
/// How long it may leave as many unread.
const PATIENCE: Duration = Duration::from_secs(5);

/// The helper beside this executable, else the installed one. Where the administrator has installed the one for strict mode,
/// it is everybody's but root's, who needs none.
pub(crate) fn locate() -> Result<PathBuf> {
    let exe = std::env::current_exe().during(|| "find the running executable".to_owned())?;
    let beside = exe.with_file_name("ctst-shim");
    if beside.is_file() {
        return Ok(beside);
    }
    let installed = if getuid().is_root() { &[INSTALLED][..] } else { &[STRICT, INSTALLED] };
    let found = installed.iter().map(Path::new).find(|path| path.exists());
    found.map(Path::to_owned).ok_or(Error::NoShim { beside })
}

/// Starts the helper and returns it with our end of its sandbox channel.
pub(crate) fn spawn() -> Result<(Child, Channel)> {
    spawn_on(seqpacket()?)
}

/// The same with a pair made before. If one of them is the very descriptor that the helper expects, which it is in a
/// process that has opened nothing yet, it is inherited as it is: that saves a fork.
pub(crate) fn spawn_on((a, b): (OwnedFd, OwnedFd)) -> Result<(Child, Channel)> {
    let path = locate()?;
    let (ours, theirs) = if a.as_raw_fd() == CHANNEL_FD { (b, a) } else { (a, b) };
    let copy = sealed(&path)?;
    let program = copy.as_ref().map_or(path.clone(), |copy| format!("/proc/self/fd/{}", copy.as_raw_fd()).into());
    let mut command = Command::new(program);
    command.arg0("ctst-shim").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let what = || format!("start {}", path.display());
    let child = if theirs.as_raw_fd() == CHANNEL_FD {
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).during(what)?;
        launch::spawn(command)
    } else {
        let mapping = FdMapping { parent_fd: theirs, child_fd: CHANNEL_FD };
        command.fd_mappings(vec![mapping]).map_err(|e| Error::Sandbox(e.to_string()))?;
        launch::spawn(command)
    };
    match child {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(strict::closed(&path, error)),
        child => Ok((child.during(what)?, Channel::new(ours))),
    }
}

/// A copy of the program in memory that nobody can change, where the file itself is not safe: its processes serve
/// containers, whose root is the file's owner and finds it at `/proc/PID/exe`.
fn sealed(path: &Path) -> Result<Option<OwnedFd>> {
    let meta = path.metadata().during(|| format!("copy {}", path.display()))?;
    if getuid().is_root() || meta.uid() == 0 { Ok(None) } else { in_memory(path).map(Some) }
}

/// A copy of a program in memory that nobody can change.
pub(crate) fn in_memory(path: &Path) -> Result<OwnedFd> {
    let what = || format!("copy {}", path.display());
    let mut program = File::open(path).during(what)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = match memfd_create("ctst-shim", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 every such file is executable.
        Err(Errno::INVAL) => memfd_create("ctst-shim", flags),
        other => other,
    };
    let memory = memory.map_err(|errno| Error::NoSandbox {
        problem: format!("{} into memory, to run it (vm.memfd_noexec?): {}", what(), io::Error::from(errno)),
        help: format!("give the file to root, which needs no copy: sudo chown root:root {}", path.display()),
    })?;
    // Not the number that the helper expects its channel at.
    let memory = fcntl_dupfd_cloexec(&memory, CHANNEL_FD + 1).during(what)?;
    let mut copy = File::from(memory);
    io::copy(&mut program, &mut copy).during(what)?;
    fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).during(what)?;
    Ok(copy.into())
}

/// A pair of which each end takes the longest message.
pub(crate) fn seqpacket() -> Result<(OwnedFd, OwnedFd)> {
    let what = || "make a socket pair".to_owned();
    let (a, b) = fdpass::pair(SocketType::SEQPACKET).during(what)?;
    fdpass::want_buffer(&a, BUFFER).during(what)?;
    fdpass::want_buffer(&b, BUFFER).during(what)?;
    Ok((a, b))
}

/// One end of a channel to the helper. Sends what fits and keeps the rest for [`Channel::flush`].
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// When the queue last became shorter, or began.
    moved: Instant,
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Received<T> {
    Message(T, Vec<OwnedFd>),
    /// Nothing now.
    Empty,
    /// The other end is closed.
    End,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, queue: VecDeque::new(), moved: Instant::now() }
    }

    /// Whether the other end has left so many messages unread for so long that it never will read them.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_full() && self.moved.elapsed() > PATIENCE
    }

    fn is_full(&self) -> bool {
        self.queue.len() >= MAX_QUEUE
    }

    /// Sends what a container may be asked again and again, unless too much is waiting already.
    pub(crate) fn offer<T: Message>(&mut self, message: &T, fds: Vec<OwnedFd>) -> Result<()> {
        self.flush()?;
        if self.is_full() {
            return Err(Error::Sandbox(format!("ask the container: {MAX_QUEUE} requests wait for its pid 1 already")));
        }
        self.send(message, fds)
    }

    /// A peer that is gone is no error here: its end is received.
    pub(crate) fn send<T: Message>(&mut self, message: &T, fds: Vec<OwnedFd>) -> Result<()> {
        let bytes = wire::encode(message).map_err(|e| Error::Sandbox(format!("describe the container: {e}")))?;
        if self.queue.is_empty() {
            self.moved = Instant::now();
        }
        self.queue.push_back((bytes, fds));
        self.flush()
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        while let Some((bytes, fds)) = self.queue.front() {
            let rights: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match fdpass::send(&self.socket, bytes, &rights) {
                Ok(_) => {
                    self.queue.pop_front();
                    self.moved = Instant::now();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    self.queue.clear();
                }
                Err(e) => return Err(Error::io("write to ctst-shim", e)),
            }
        }
        Ok(())
    }

    /// The next message, without waiting. `buffer` has room for [`MAX_MESSAGE`] bytes.
    pub(crate) fn receive<T: Message>(&self, buffer: &mut [u8]) -> Result<Received<T>> {
        let mut fds = Vec::new();
        received(fdpass::receive(&self.socket, buffer, &mut fds), buffer, fds)
    }

    /// The next message.
    pub(crate) fn wait<T: Message>(&self) -> Result<Received<T>> {
        let (mut buffer, mut fds) = (vec![0; MAX_MESSAGE], Vec::new());
        received(fdpass::receive_waiting(&self.socket, &mut buffer, &mut fds), &buffer, fds)
    }
}

fn received<T: Message>(result: io::Result<usize>, buffer: &[u8], fds: Vec<OwnedFd>) -> Result<Received<T>> {
    match result {
        Ok(0) => Ok(Received::End),
        Ok(n) => match wire::decode(&buffer[..n]) {
            Ok(message) => Ok(Received::Message(message, fds)),
            Err(e) => Err(Error::Sandbox(format!("understand ctst-shim: {e}"))),
        },
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Received::Empty),
        Err(e) => Err(Error::io("read from ctst-shim", e)),
    }
}

/// Why there is no sandbox. What the host's policy is to blame for is said as of the policy.
pub(crate) fn no_sandbox(failure: &Failure) -> Error {
    match Policy::read() {
        Err(error @ Error::Policy { .. }) => error,
        Ok(_) | Err(_) => Error::NoSandbox { problem: describe(failure), help: namespaces_fix() },
    }
}

/// A failure in words.
pub(crate) fn describe(failure: &Failure) -> String {
    let mut text = failure.step.clone();
    if !failure.subject.is_empty() {
        text.push(' ');
        text.extend(failure.subject.utf8_chunks().flat_map(|chunk| {
            let bytes = chunk.invalid().iter().map(|b| format!("\\x{b:02x}"));
            [chunk.valid().escape_debug().to_string()].into_iter().chain(bytes)
        }));
    }
    if failure.errno != 0 {
        let kernel = io::Error::from_raw_os_error(failure.errno).to_string();
        let words = kernel.split(" (os error").next().unwrap_or_default().to_owned();
        text.push_str(": ");
        text.push_str(&words);
    }
    text
}

#[cfg(test)]
mod tests {
    use containust_shared::protocol::{FromShim, ToSandbox};

    use super::*;

    #[test]
    fn describes() {
        let failure = Failure { step: "open".into(), subject: b"/a\xffb\n".to_vec(), errno: 2 };
        assert_eq!(describe(&failure), "open /a\\xffb\\n: No such file or directory");
        assert_eq!(describe(&Failure { step: "x".into(), subject: vec![], errno: 0 }), "x");
    }

    #[test]
    fn holds_so_much_and_no_more_for_who_does_not_read() {
        let (a, b) = seqpacket().unwrap();
        let mut a = Channel::new(a);
        while a.offer(&ToSandbox::Dial { count: 1, udp: false }, vec![]).is_ok() {
            assert!(a.queue.len() <= MAX_QUEUE);
        }
        assert!(a.is_full() && !a.is_stuck());
        a.moved = Instant::now().checked_sub(2 * PATIENCE).unwrap();
        assert!(a.is_stuck());
        let b = Channel::new(b);
        let Ok(Received::Message(ToSandbox::Dial { .. }, _)) = b.wait() else { panic!("no message") };
        a.offer(&ToSandbox::Dial { count: 1, udp: false }, vec![]).unwrap();
        assert!(!a.is_stuck());
    }

    #[test]
    fn hears_who_ended_before_it_read_everything() {
        let (a, b) = seqpacket().unwrap();
        let (mut a, mut b) = (Channel::new(a), Channel::new(b));
        let last = FromShim::Failed(Failure { step: "x".into(), subject: vec![], errno: 0 });
        b.send(&last, vec![]).unwrap();
        a.send(&ToSandbox::Dial { count: 1, udp: false }, vec![]).unwrap();
        drop(b);
        let mut buffer = vec![0; MAX_MESSAGE];
        let Ok(Received::Message(got, _)) = a.receive::<FromShim>(&mut buffer) else { panic!("no message") };
        assert!(got == last && matches!(a.receive::<FromShim>(&mut buffer), Ok(Received::End)));
    }

    #[test]
    fn takes_the_longest_message_and_knows_the_end() {
        let (a, b) = seqpacket().unwrap();
        let (mut a, b) = (Channel::new(a), Channel::new(b));
        let mut buffer = vec![0; MAX_MESSAGE];
        assert!(matches!(b.receive::<FromShim>(&mut buffer), Ok(Received::Empty)));
        let long = FromShim::Failed(Failure { step: "x".repeat(65_000), subject: vec![], errno: 0 });
        a.send(&long, vec![tempfile::tempfile().unwrap().into()]).unwrap();
        let Ok(Received::Message(got, fds)) = b.wait::<FromShim>() else { panic!("no message") };
        assert!(got == long && fds.len() == 1);
        a.send(&ToSandbox::Dial { count: 1, udp: false }, vec![]).unwrap();
        assert!(b.receive::<FromShim>(&mut buffer).is_err());
        let too_long = FromShim::Failed(Failure { step: "x".repeat(MAX_MESSAGE), subject: vec![], errno: 0 });
        assert!(a.send(&too_long, vec![]).is_err());
        drop(a);
        assert!(matches!(b.receive::<FromShim>(&mut buffer), Ok(Received::End)));
    }
}
