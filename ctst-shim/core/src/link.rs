//! Network links by rtnetlink (`rtnetlink(7)`, `linux/if_link.h`): a loopback, a bridge and veth pairs, no more.
//!
//! Interface indexes are chosen by us, so that no answer but the acknowledgement has to be parsed.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const REQUEST_ACK: u16 = 0x01 | 0x04;
const CREATE_EXCL: u16 = 0x400 | 0x200;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFF_UP: u32 = 1;
const NESTED: u16 = 0x8000;

/// Index of the loopback in every network namespace.
pub const LOOPBACK: u32 = 1;

/// A socket to the kernel's routing subsystem in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Links {
    socket: OwnedFd,
    sequence: u32,
}

impl Links {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        // No protocol is protocol 0, which is NETLINK_ROUTE.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sets the link with this index up.
    ///
    /// # Errors
    /// The kernel's, such as ENODEV.
    pub fn up(&mut self, index: u32) -> io::Result<()> {
        let mut message = Message::link(REQUEST_ACK, index);
        self.request(&mut message)
    }

    /// Gives a link that is down a hardware address (Ethernet) and sets it up.
    ///
    /// # Errors
    /// The kernel's, such as ENODEV.
    pub fn up_as(&mut self, index: u32, hardware: [u8; 6]) -> io::Result<()> {
        let mut message = Message::link(REQUEST_ACK, index);
        message.attribute(IFLA_ADDRESS, &hardware);
        self.request(&mut message)
    }

    /// Creates a bridge that is up, with a hardware address (Ethernet) of its own: by itself it would have the lowest of its ports',
    /// and another whenever ports come and go, while its neighbours go on sending to the old one.
    ///
    /// # Errors
    /// EOPNOTSUPP where the kernel has no bridge module, EEXIST, and others.
    pub fn add_bridge(&mut self, index: u32, name: &str, hardware: [u8; 6]) -> io::Result<()> {
        let mut message = Message::link(REQUEST_ACK | CREATE_EXCL, index);
        message.attribute(IFLA_ADDRESS, &hardware);
        message.string(IFLA_IFNAME, name);
        message.nest(IFLA_LINKINFO, |info| info.string(IFLA_INFO_KIND, "bridge"));
        self.request(&mut message)
    }

    /// Creates a veth pair: one end `name` here as a port of the link `master`, the other `peer_name` with index
    /// `peer_index` born in the network namespace of the process `pid` (moving it there later takes 30 ms) and left down.
    ///
    /// # Errors
    /// EOPNOTSUPP where the kernel has no veth module, EEXIST, ESRCH when `pid` is gone, and others.
    pub fn add_veth(
        &mut self,
        (index, name): (u32, &str),
        master: u32,
        (peer_index, peer_name): (u32, &str),
        pid: i32,
    ) -> io::Result<()> {
        let mut message = Message::link(REQUEST_ACK | CREATE_EXCL, index);
        message.string(IFLA_IFNAME, name);
        message.attribute(IFLA_MASTER, &master.to_ne_bytes());
        message.nest(IFLA_LINKINFO, |info| {
            info.string(IFLA_INFO_KIND, "veth");
            info.nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    // Not up: the kernel makes it before it has a peer to be connected to (ENOTCONN).
                    peer.interface(peer_index, 0);
                    peer.string(IFLA_IFNAME, peer_name);
                    peer.attribute(IFLA_NET_NS_PID, &pid.to_ne_bytes());
                });
            });
        });
        self.request(&mut message)
    }

    /// Gives an IPv4 address to a link.
    ///
    /// # Errors
    /// ENODEV, EEXIST, and others.
    pub fn add_address(&mut self, index: u32, ip: [u8; 4], prefix: u8) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWADDR, REQUEST_ACK | CREATE_EXCL);
        message.bytes.extend([u8::try_from(libc::AF_INET).unwrap_or(2), prefix, 0, 0]);
        message.bytes.extend(index.to_ne_bytes());
        message.attribute(IFA_LOCAL, &ip);
        message.attribute(IFA_ADDRESS, &ip);
        self.request(&mut message)
    }

    fn request(&mut self, message: &mut Message) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        message.seal(self.sequence);
        rustix::net::send(&self.socket, &message.bytes, SendFlags::empty())?;
        let mut answer = [0u8; 4096];
        loop {
            let (len, _) = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
            let answer = answer.get(..len).unwrap_or_default();
            let (kind, sequence) = (short(answer, 4), word(answer, 8));
            if kind == Some(NLMSG_ERROR) && sequence == Some(self.sequence) {
                // struct nlmsgerr begins with a negative errno, 0 for an acknowledgement.
                return match word(answer, 16).map(u32::cast_signed) {
                    Some(0) => Ok(()),
                    Some(error) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
                    None => Err(io::Error::other("a short answer from rtnetlink")),
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
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        Self { bytes }
    }

    fn link(flags: u16, index: u32) -> Self {
        let mut message = Self::new(RTM_NEWLINK, flags);
        message.interface(index, IFF_UP);
        message
    }

    /// `struct ifinfomsg` of a link whose flags in `IFF_UP` are to be `flags`.
    fn interface(&mut self, index: u32, flags: u32) {
        self.bytes.extend([0; 4]);
        self.bytes.extend(index.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(IFF_UP.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn string(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
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
