//! The caller's terminal: its size, and raw mode with a sure way back.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// The first of standard input, output and error that is a terminal.
fn any<T>(then: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let fd = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].into_iter().find(|fd| isatty(fd))?;
    Some(then(fd))
}

/// Rows and columns of the caller's terminal; none without one, or where it does not know.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = any(|fd| tcgetwinsize(fd))?.ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Raw mode of the terminal on standard input, until it is dropped or the program panics.
#[derive(Debug)]
pub(crate) struct RawMode(Arc<Saved>);

#[derive(Debug)]
struct Saved {
    /// A descriptor of its own: standard input may be closed by then.
    terminal: OwnedFd,
    modes: Termios,
}

impl RawMode {
    /// Switches it on.
    pub(crate) fn enter() -> io::Result<Self> {
        let terminal = io::stdin().as_fd().try_clone_to_owned()?;
        let modes = tcgetattr(&terminal)?;
        let saved = Arc::new(Saved { terminal, modes });
        // The released program aborts on a panic, where nothing is dropped.
        let (hook, for_hook) = (std::panic::take_hook(), Arc::clone(&saved));
        std::panic::set_hook(Box::new(move |info| {
            for_hook.restore();
            hook(info);
        }));
        let mut raw = saved.modes.clone();
        raw.make_raw();
        tcsetattr(&saved.terminal, OptionalActions::Drain, &raw)?;
        Ok(Self(saved))
    }
}

/// A line of the terminal on standard input that is not shown.
pub(crate) fn read_hidden() -> io::Result<String> {
    // As the terminal itself would take them.
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    const ERASE: [u8; 2] = [8, 127];
    const KILL: u8 = 21;
    let raw = RawMode::enter()?;
    let mut line = Vec::new();
    for byte in io::stdin().lock().bytes() {
        match byte? {
            b'\r' | b'\n' | END => break,
            INTERRUPT => return Err(io::ErrorKind::Interrupted.into()),
            byte if ERASE.contains(&byte) => drop(line.pop()),
            KILL => line.clear(),
            byte => line.push(byte),
        }
    }
    drop(raw);
    eprintln!();
    String::from_utf8(line).map_err(io::Error::other)
}

impl Drop for RawMode {
    fn drop(&mut self) {
        self.0.restore();
    }
}

impl Saved {
    fn restore(&self) {
        // It fails only if the terminal is gone.
        tcsetattr(&self.terminal, OptionalActions::Drain, &self.modes).ok();
    }
}
