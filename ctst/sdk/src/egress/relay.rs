//! Carries frames between the project's device and the program, and asks that for a sign of life in between.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use containust_shared::protocol::egress::{ADDRESS, ROUTER};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::until;

/// Header and payload of an Ethernet frame, in bytes: the program's frames are as long as IP allows, whatever the device's MTU.
pub(super) const MAX_FRAME: usize = 14 + 65_535;
/// Before each frame on the program's socket: its length, big-endian.
const PREFIX: usize = 4;
/// Frames of one direction that are carried at once, in bytes.
const BATCH: usize = 4 * MAX_FRAME;

/// What the relay is told, and what it tells: the device is there; the program answers; it answers nothing any more.
pub(super) const DEVICE: u8 = b'd';
const WORKS: u8 = b'w';
pub(super) const SILENT: u8 = b's';

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
pub(super) fn relay(device: &OnceLock<OwnedFd>, socket: &OwnedFd, keeper: &OwnedFd) {
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
