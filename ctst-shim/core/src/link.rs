//! Network links by rtnetlink (`rtnetlink(7)`, `linux/if_link.h`): a loopback, bridges, veth pairs and routes, no more.
//!
//! Interface indexes are chosen by us, so that no answer but the acknowledgement has to be parsed.

use std::io;

use crate::netlink::{CREATE_EXCL, Message, REQUEST_ACK, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTN_UNREACHABLE: u8 = 7;
const RT_SCOPE_HOST: u8 = 254;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_IP_PROTO: u16 = 22;
const FR_ACT_TO_TBL: u8 = 1;
const FRA_GOTO: u16 = 4;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_UNREACHABLE: u8 = 7;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFA_F_NODAD: u8 = 2;
/// `RT_TABLE_LOCAL`, and where it is looked up once senders were looked at.
const LOCAL_TABLE: u8 = 255;
const THEN: u32 = 20;
const IFF_UP: u32 = 1;

/// The protocol, as [`Rule`] has it (IANA's number).
pub const TCP: u8 = 6;
/// Index of the loopback in every network namespace.
pub const LOOPBACK: u32 = 1;
/// The table of routes that is looked up last (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u8 = 254;

/// Which packets are looked up in a table of routes: those of which all that is said here is true.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rule<'a> {
    /// Lower numbers are looked at first: 0 is the table of the namespace's own addresses, 32766 the main one.
    pub priority: u32,
    /// The table.
    pub table: u8,
    /// The link that they come from.
    pub link: Option<&'a str>,
    /// Their sender.
    pub from: Option<[u8; 4]>,
    /// Their protocol, as the header of IP has it. From Linux 4.17 on.
    pub protocol: Option<u8>,
    /// Their mark.
    pub mark: Option<u32>,
}

/// A socket to the kernel's routing subsystem in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Links(Socket);

impl Links {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        Socket::open(None).map(Self)
    }

    /// Sets the link with this index up.
    ///
    /// # Errors
    /// The kernel's, such as ENODEV.
    pub fn up(&mut self, index: u32) -> io::Result<()> {
        self.0.request(&mut [link(REQUEST_ACK, index)])
    }

    /// Sets the link up, with packets of at most this many bytes.
    ///
    /// # Errors
    /// The kernel's, such as ENODEV.
    pub fn up_with_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        let mut message = link(REQUEST_ACK, index);
        message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        self.0.request(&mut [message])
    }

    /// Gives a link that is down a hardware address (Ethernet) and sets it up.
    ///
    /// # Errors
    /// The kernel's, such as ENODEV.
    pub fn up_as(&mut self, index: u32, hardware: [u8; 6]) -> io::Result<()> {
        let mut message = link(REQUEST_ACK, index);
        message.attribute(IFLA_ADDRESS, &hardware);
        self.0.request(&mut [message])
    }

    /// Creates a bridge that is up, with a hardware address (Ethernet) of its own: by itself it would have the lowest of its ports',
    /// and another whenever ports come and go, while its neighbours go on sending to the old one.
    ///
    /// # Errors
    /// EOPNOTSUPP where the kernel has no bridge module, EEXIST, and others.
    pub fn add_bridge(&mut self, index: u32, name: &str, hardware: [u8; 6]) -> io::Result<()> {
        let mut message = link(REQUEST_ACK | CREATE_EXCL, index);
        message.attribute(IFLA_ADDRESS, &hardware);
        message.string(IFLA_IFNAME, name);
        message.nest(IFLA_LINKINFO, |info| info.string(IFLA_INFO_KIND, "bridge"));
        self.0.request(&mut [message])
    }

    /// Creates a veth pair: one end `name` here as a port of the link `master`, the other `peer_name` with index
    /// `peer_index` born in the network namespace of the process `pid` (moving it there later takes 30 ms) and left down. `mtu`: the longest packet in bytes; none: the kernel's usual one.
    ///
    /// # Errors
    /// EOPNOTSUPP where the kernel has no veth module, EEXIST, ESRCH when `pid` is gone, and others.
    pub fn add_veth(
        &mut self,
        (index, name): (u32, &str),
        master: u32,
        (peer_index, peer_name): (u32, &str),
        pid: i32,
        mtu: Option<u32>,
    ) -> io::Result<()> {
        let mut message = link(REQUEST_ACK | CREATE_EXCL, index);
        message.string(IFLA_IFNAME, name);
        message.attribute(IFLA_MASTER, &master.to_ne_bytes());
        if let Some(mtu) = mtu {
            message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        message.nest(IFLA_LINKINFO, |info| {
            info.string(IFLA_INFO_KIND, "veth");
            info.nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    // Not up: the kernel makes it before it has a peer to be connected to (ENOTCONN).
                    interface(peer, peer_index, 0);
                    peer.string(IFLA_IFNAME, peer_name);
                    if let Some(mtu) = mtu {
                        peer.attribute(IFLA_MTU, &mtu.to_ne_bytes());
                    }
                    peer.attribute(IFLA_NET_NS_PID, &pid.to_ne_bytes());
                });
            });
        });
        self.0.request(&mut [message])
    }

    /// Gives an IPv4 address to a link.
    ///
    /// # Errors
    /// ENODEV, EEXIST, and others.
    pub fn add_address(&mut self, index: u32, ip: [u8; 4], prefix: u8) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWADDR, REQUEST_ACK | CREATE_EXCL);
        message.bytes.extend([AF_INET, prefix, 0, 0]);
        message.bytes.extend(index.to_ne_bytes());
        message.attribute(IFA_LOCAL, &ip);
        message.attribute(IFA_ADDRESS, &ip);
        self.0.request(&mut [message])
    }

    /// Gives an IPv6 address to a link that is up. It is used at once: nobody is asked whether he has it (RFC 4862, 5.4).
    ///
    /// # Errors
    /// EACCES where the link has no IPv6, EEXIST, and others.
    pub fn add_address6(&mut self, index: u32, ip: [u8; 16], prefix: u8) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWADDR, REQUEST_ACK | CREATE_EXCL);
        message.bytes.extend([AF_INET6, prefix, IFA_F_NODAD, 0]);
        message.bytes.extend(index.to_ne_bytes());
        message.attribute(IFA_LOCAL, &ip);
        message.attribute(IFA_ADDRESS, &ip);
        self.0.request(&mut [message])
    }

    /// Sends IPv6 packets of this namespace's own only from these addresses and from the loopback's. By itself the kernel, which asks that of
    /// IPv4, lets any socket have any address as its own (IPV6_FREEBIND, `ipv6(7)`). Once in a namespace.
    ///
    /// # Errors
    /// EAFNOSUPPORT or EOPNOTSUPP where the kernel has no IPv6, or none by rules; and others.
    pub fn send_only_from(&mut self, own: &[[u8; 16]]) -> io::Result<()> {
        let local = |kind, flags, priority: u32| {
            let mut message = Message::new(kind, flags);
            message.bytes.extend([AF_INET6, 0, 0, 0, LOCAL_TABLE, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0]);
            message.attribute(FRA_PRIORITY, &priority.to_ne_bytes());
            message
        };
        // That table has multicast addresses, too, so that it cannot stay before what asks for senders.
        self.0.request(&mut [local(RTM_NEWRULE, REQUEST_ACK | CREATE_EXCL, THEN)])?;
        let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
        for from in own.iter().chain([&loopback]) {
            let mut message = own_sender(1, FR_ACT_GOTO, *from, 128);
            message.attribute(FRA_GOTO, &THEN.to_ne_bytes());
            self.0.request(&mut [message])?;
        }
        // In two halves: with a prefix of no bits it would be for packets that have no sender yet, too, and get one by their route.
        for first in [0, 0x80] {
            let mut half = [0; 16];
            half[0] = first;
            self.0.request(&mut [own_sender(2, FR_ACT_UNREACHABLE, half, 1)])?;
        }
        self.0.request(&mut [local(RTM_DELRULE, REQUEST_ACK, 0)])
    }

    /// Sends what is for nowhere else to this neighbour, by a table of routes.
    ///
    /// # Errors
    /// ENETUNREACH where no link reaches it, EEXIST, and others.
    pub fn add_default_route(&mut self, table: u8, gateway: [u8; 4]) -> io::Result<()> {
        let mut message = route(table, 0, RTN_UNICAST, 0);
        message.attribute(RTA_GATEWAY, &gateway);
        self.0.request(&mut [message])
    }

    /// Answers what is for these addresses, where a table of routes has no better one, with ICMP's "host unreachable".
    ///
    /// # Errors
    /// The kernel's. That it is there already is none.
    pub fn add_unreachable(&mut self, table: u8, ip: [u8; 4], prefix: u8) -> io::Result<()> {
        let mut message = route(table, prefix, RTN_UNREACHABLE, 0);
        message.attribute(RTA_DST, &ip);
        message.attribute(RTA_PRIORITY, &u32::MAX.to_ne_bytes());
        unless_there(self.0.request(&mut [message]))
    }

    /// Takes whatever is looked up in a table of routes for the namespace's own, whomever it is for.
    ///
    /// # Errors
    /// EEXIST, and others.
    pub fn add_local_route(&mut self, table: u8) -> io::Result<()> {
        let mut message = route(table, 0, RTN_LOCAL, RT_SCOPE_HOST);
        message.attribute(RTA_OIF, &LOOPBACK.to_ne_bytes());
        self.0.request(&mut [message])
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// The kernel's. That it is there already is none.
    pub fn add_rule(&mut self, rule: &Rule<'_>) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWRULE, REQUEST_ACK | CREATE_EXCL);
        let bits = if rule.from.is_some() { 32 } else { 0 };
        message.bytes.extend([AF_INET, 0, bits, 0, rule.table, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0]);
        message.attribute(FRA_PRIORITY, &rule.priority.to_ne_bytes());
        if let Some(link) = rule.link {
            message.string(FRA_IIFNAME, link);
        }
        if let Some(from) = rule.from {
            message.attribute(FRA_SRC, &from);
        }
        if let Some(protocol) = rule.protocol {
            message.attribute(FRA_IP_PROTO, &[protocol]);
        }
        if let Some(mark) = rule.mark {
            message.attribute(FRA_FWMARK, &mark.to_ne_bytes());
        }
        unless_there(self.0.request(&mut [message]))
    }
}

fn unless_there(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
}

/// A rule for IPv6 packets that are sent from here by who has an address in this prefix.
fn own_sender(priority: u32, action: u8, from: [u8; 16], prefix: u8) -> Message {
    let mut message = Message::new(RTM_NEWRULE, REQUEST_ACK | CREATE_EXCL);
    message.bytes.extend([AF_INET6, 0, prefix, 0, 0, 0, 0, action, 0, 0, 0, 0]);
    message.attribute(FRA_PRIORITY, &priority.to_ne_bytes());
    message.attribute(FRA_SRC, &from);
    // What is sent from here comes by it, as rules see it.
    message.string(FRA_IIFNAME, "lo");
    message
}

/// `struct rtmsg` of an IPv4 route of this kind to a destination with a prefix.
fn route(table: u8, prefix: u8, kind: u8, scope: u8) -> Message {
    let mut message = Message::new(RTM_NEWROUTE, REQUEST_ACK | CREATE_EXCL);
    message.bytes.extend([AF_INET, prefix, 0, 0, table, RTPROT_BOOT, scope, kind, 0, 0, 0, 0]);
    message
}

fn link(flags: u16, index: u32) -> Message {
    let mut message = Message::new(RTM_NEWLINK, flags);
    interface(&mut message, index, IFF_UP);
    message
}

/// `struct ifinfomsg` of a link whose flags in `IFF_UP` are to be `flags`.
fn interface(message: &mut Message, index: u32, flags: u32) {
    message.bytes.extend([0; 4]);
    message.bytes.extend(index.to_ne_bytes());
    message.bytes.extend(flags.to_ne_bytes());
    message.bytes.extend(IFF_UP.to_ne_bytes());
}
