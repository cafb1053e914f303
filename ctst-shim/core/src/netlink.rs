//! Messages to the kernel by netlink (`netlink(7)`): a header, a fixed part, and attributes, each padded to four bytes.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
/// Of a request: answered by an acknowledgement.
pub(crate) const REQUEST_ACK: u16 = REQUEST | 0x04;
pub(crate) const REQUEST: u16 = 0x01;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const CREATE_EXCL: u16 = CREATE | 0x200;
const NESTED: u16 = 0x8000;

/// A socket to one of the kernel's subsystems in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// `protocol`: the subsystem; none is `NETLINK_ROUTE`.
    pub(crate) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends messages, of which only the last asks for an acknowledgement, and waits for that, or for the refusal of one of them.
    pub(crate) fn request(&mut self, messages: &mut [Message]) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            message.seal(self.sequence);
            bytes.extend_from_slice(&message.bytes);
        }
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
        let mut answer = [0u8; 4096];
        loop {
            let (len, _) = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
            let answer = answer.get(..len).unwrap_or_default();
            let (kind, sequence) = (short(answer, 4), word(answer, 8));
            if kind == Some(NLMSG_ERROR) && sequence.is_some_and(|sequence| (first..=self.sequence).contains(&sequence))
            {
                // struct nlmsgerr begins with a negative errno, 0 for an acknowledgement.
                return match word(answer, 16).map(u32::cast_signed) {
                    Some(0) => Ok(()),
                    Some(error) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
                    None => Err(io::Error::other("a short answer from netlink")),
                };
            }
        }
    }
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// `struct nlmsghdr`, a fixed part, and attributes, each padded to four bytes.
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        Self { bytes }
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub(crate) fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let mut inner = Self { bytes: Vec::new() };
        content(&mut inner);
        self.attribute(kind | NESTED, &inner.bytes);
    }

    fn seal(&mut self, sequence: u32) {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        for (place, value) in [(0..4, len), (8..12, sequence)] {
            if let Some(place) = self.bytes.get_mut(place) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        }
    }
}
