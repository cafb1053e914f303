//! Signals as something to wait for beside descriptors.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::failure::Failure;

/// Signals that arrive here instead of doing what they usually do, for the rest of the process.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Takes over these signals. The program has one thread, and what it starts gets an empty mask from the standard
    /// library.
    pub(crate) fn take(signals: &[Signal]) -> Result<Self, Failure> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block().map_err(|e| Failure::io("block signals", e))?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map(Self)
            .map_err(|e| Failure::io("open a signalfd", e))
    }

    /// The next one that arrived.
    pub(crate) fn next(&self) -> Result<Option<Signal>, Failure> {
        let info = self.0.read_signal().map_err(|e| Failure::io("read from a signalfd", e))?;
        Ok(info.and_then(|info| Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
