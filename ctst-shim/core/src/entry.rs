//! What a program that may hold privilege does before it reads one byte of input.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{channel, sys};

/// Descriptors that the shim needs at the same time, with room.
const MIN_DESCRIPTORS: u64 = 64;

/// Brings the process into a known state, whatever its caller left it, and returns the descriptor `channel_fd` once it
/// has proved to be a `SOCK_SEQPACKET` socket of the same user. Everything above it is closed.
///
/// # Errors
/// A lower-case sentence that says which expectation the caller broke.
pub fn sanitise(channel_fd: i32) -> io::Result<OwnedFd> {
    sys::clear_environment();
    sys::reset_signals();
    sys::stop_timers();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    for standard in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        rustix::fs::fstat(standard).map_err(|_| io::Error::other("standard input, output or error is closed"))?;
    }
    let socket = sys::take_inherited(channel_fd)
        .map_err(|_| io::Error::other("descriptor 3 is not open: ctst-shim is started by ctst, not by hand"))?;
    sys::close_from(channel_fd.unsigned_abs() + 1)?;
    channel::check(socket.as_fd(), rustix::process::getuid().as_raw())
        .map_err(|error| io::Error::other(format!("descriptor 3: {error}")))?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;

    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < MIN_DESCRIPTORS {
        return Err(io::Error::other(format!("the limit of open files is {hard}, needed are {MIN_DESCRIPTORS}")));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    // A core file of the shim could hold a plan with secrets. The hard limit stays, because the payload gets those of its
    // plan and nobody could raise one again.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard)?;
    Ok(socket)
}
