//! What a program that may hold privilege does before it reads one byte of input.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{capability, channel, ids, sys};

/// Descriptors that such a program needs at the same time, with room.
const MIN_DESCRIPTORS: u64 = 64;

/// `xattr(7)`: where a file's capabilities are.
const FILE_CAPABILITIES: &str = "security.capability";

/// What is left of what a caller hands over.
#[derive(Debug)]
pub struct Entered {
    /// To and from the caller.
    pub channel: OwnedFd,
    /// The caller's process ([`channel::caller`]).
    pub caller: OwnedFd,
    /// Which of the capabilities are permitted still.
    pub held: u64,
}

/// Brings the process into a known state, whatever its caller left it, and takes the descriptor `channel_fd` once it
/// has proved to be a `SOCK_SEQPACKET` socket of the same user. Everything above it is closed. Of its capabilities it keeps
/// those of `keep`, permitted but not effective.
///
/// # Errors
/// A lower-case sentence that says which expectation the caller broke.
pub fn sanitise(channel_fd: i32, keep: u64) -> io::Result<Entered> {
    sys::clear_environment();
    let held = capability::lower(keep)?;
    sys::reset_signals();
    sys::stop_timers();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    for standard in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        rustix::fs::fstat(standard).map_err(|_| io::Error::other("standard input, output or error is closed"))?;
    }
    let socket = sys::take_inherited(channel_fd)
        .map_err(|_| io::Error::other("descriptor 3 is not open: this program is started by ctst, not by hand"))?;
    sys::close_from(channel_fd.unsigned_abs().saturating_add(1))?;
    let caller = channel::check(socket.as_fd(), rustix::process::getuid().as_raw())
        .and_then(|()| channel::caller(socket.as_fd()))
        .map_err(|error| io::Error::other(format!("descriptor 3: {error}")))?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;

    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < MIN_DESCRIPTORS {
        return Err(io::Error::other(format!("the limit of open files is {hard}, needed are {MIN_DESCRIPTORS}")));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    // A core file could hold a plan with secrets. The hard limit stays, because the payload gets those of its
    // plan and nobody could raise one again.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard)?;
    Ok(Entered { channel: socket, caller, held })
}

/// Whether the file of this program has capabilities, whatever became of them. What it holds has to come from there, or from
/// a caller who is root.
///
/// # Errors
/// A lower-case sentence that says what else it comes from.
pub fn check_authority(held: u64) -> io::Result<bool> {
    ids::check_plain()?;
    let in_file = has_file_capabilities()?;
    let root = rustix::process::getuid().is_root();
    if root && in_file {
        return Err(io::Error::other("root needs no file capabilities: use a copy of this program without"));
    }
    // Without this the environment, the descriptors and a tracer would have been the caller's to choose.
    if held != 0 && !root && !sys::is_secure_execution() {
        return Err(io::Error::other("it has capabilities that are its caller's and not its file's"));
    }
    Ok(in_file)
}

fn has_file_capabilities() -> io::Result<bool> {
    let mut value = [0u8; 64];
    match rustix::fs::getxattr("/proc/self/exe", FILE_CAPABILITIES, &mut value[..]) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(false),
        Err(error) => Err(io::Error::other(format!("look for file capabilities at /proc/self/exe: {error}"))),
    }
}
