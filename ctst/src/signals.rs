//! Signals as something to wait for beside descriptors.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::failure::Failure;

/// Signals that arrive here instead of doing what they usually do, for the rest of the process.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Takes over these signals, those aside that the caller ignores, as `nohup` does: a signalfd would get them. The
    /// program has one thread, and what it starts gets an empty mask from the standard library.
    pub(crate) fn take(signals: &[Signal]) -> Result<Self, Failure> {
        let status =
            std::fs::read_to_string("/proc/self/status").map_err(|e| Failure::io("read /proc/self/status", e))?;
        let ignored = ignored(&status);
        let set: SigSet = signals.iter().copied().filter(|signal| ignored >> (*signal as u32 - 1) & 1 == 0).collect();
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

/// Bit n - 1 for signal n (`SigIgn` of proc_pid_status(5)).
fn ignored(status: &str) -> u64 {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_ignored() {
        assert_eq!(ignored("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"), 0x1001);
        assert_eq!(ignored(""), 0);
    }
}
