//! The project's networks: bridges in S's network namespace, a veth pair for each container on each of them, and sockets
//! born there.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};

use containust_core::link::{LOOPBACK, Links, MAIN_TABLE, Rule, TCP};
use containust_core::{nat, sys};
use containust_helper::failure::{Step, refusal};
use containust_shared::protocol::{self, Address, Bridge, Failure, egress};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Index of the device of TAP.
const EGRESS: u32 = 9_999;
/// Indexes of bridges, plus their numbers, of veths, and of `eth0` within a container. High ones, because a module like sit
/// may have put interfaces of its own at the low ones.
const BRIDGES: u32 = 10_000;
const VETHS: u32 = 20_000;
pub(crate) const ETH0: u32 = 10_000;

/// What keeps S from being a way from one network into another: it forwards nothing, whatever the host does, whose settings
/// a new namespace may inherit; it answers on a bridge for the address of that bridge only, not for its others; and it takes
/// no packet from a bridge whose sender is not reached over it. In this order: the first resets others (ip-sysctl.rst). Of UDP a
/// socket that is found before the routes would take it from any bridge. Of IPv6 it has nothing: bridges pass frames on without, and
/// who can forge a router's advertisement could give it addresses and ways, without end.
const APART: [(&str, &str); 5] = [
    ("/proc/sys/net/ipv4/ip_forward", "0"),
    ("/proc/sys/net/ipv4/conf/all/arp_ignore", "1"),
    ("/proc/sys/net/ipv4/conf/all/rp_filter", "1"),
    // The larger one of both counts, and 2 is looser.
    ("/proc/sys/net/ipv4/conf/default/rp_filter", "1"),
    ("/proc/sys/net/ipv4/udp_early_demux", "0"),
];

/// The project's network namespace, in which S lives.
#[derive(Default)]
pub(crate) struct Network {
    /// Once a container needed it.
    links: Option<Links>,
    /// Those that are up.
    bridges: BTreeMap<u8, Bridge>,
}

impl Network {
    /// Makes container `id`, whose pid 1 is `pid`, a port of each of these bridges.
    pub(crate) fn connect(&mut self, id: u32, pid: i32, wanted: &[Bridge]) -> Result<(), Failure> {
        for (bridge, port) in wanted.iter().zip(0u32..) {
            let (index, links) = self.bridge(bridge)?;
            let name = format!("veth{id}.{port}");
            // MAX_NETWORKS for each; the kernel refuses one that is too high.
            let own = id.saturating_mul(16).saturating_add(port).saturating_add(VETHS);
            let peer = (ETH0.saturating_add(port), &*format!("eth{port}"));
            let mtu = bridge.egress.then_some(egress::MTU);
            links.add_veth((own, &name), index, peer, pid, mtu).step("create the veth pair", &name)?;
        }
        Ok(())
    }

    /// Sockets for somebody outside to answer names on, at port 53 of the bridge: one of UDP, one of TCP.
    pub(crate) fn listen(&mut self, bridge: &Bridge) -> Result<Vec<OwnedFd>, Failure> {
        self.bridge(bridge)?;
        let device = format!("ctst{}", bridge.number);
        let place = SocketAddrV4::new(bridge.address.ip.into(), 53);
        let sockets = [SocketType::DGRAM, SocketType::STREAM].map(|kind| {
            let socket = rustix::net::socket_with(AddressFamily::INET, kind, FLAGS, None).step("make a socket", "")?;
            // A container can send what is for another bridge's address over its own.
            sys::bind_to_device(socket.as_fd(), &device).step("bind a socket to", &device)?;
            rustix::net::bind(&socket, &place).step("bind to a bridge", place.to_string())?;
            if kind == SocketType::STREAM {
                rustix::net::listen(&socket, 64).step("listen on a bridge", place.to_string())?;
            }
            Ok(socket)
        });
        sockets.into_iter().collect()
    }

    /// The index of the bridge, which is up.
    fn bridge(&mut self, bridge: &Bridge) -> Result<(u32, &mut Links), Failure> {
        let links = opened(&mut self.links)?;
        let (index, name) = (BRIDGES.saturating_add(bridge.number.into()), format!("ctst{}", bridge.number));
        match self.bridges.get(&bridge.number) {
            Some(known) if known == bridge => {}
            // Its author has changed his mind.
            Some(known) if known.address == bridge.address => {
                let_out(links, &name, bridge.egress)?;
                self.bridges.insert(bridge.number, *bridge);
            }
            Some(_) => return Err(refusal("give another address to the bridge", name)),
            None => {
                let Address { ip, prefix } = bridge.address;
                links.add_bridge(index, &name, hardware(ip)).step("create the bridge", &name)?;
                links.add_address(index, ip, prefix).step("give an address to the bridge", &name)?;
                let rule =
                    Rule { priority: 200, table: CLIENTS, link: Some(&name), protocol: Some(TCP), ..Rule::default() };
                links.add_rule(&rule).step("keep answers to clients here by", "a rule for routes")?;
                if bridge.egress {
                    let_out(links, &name, true)?;
                }
                self.bridges.insert(bridge.number, *bridge);
            }
        }
        Ok((index, links))
    }

    /// The device by which what bridges with egress send leaves the project, as a file for somebody outside, and a socket for his
    /// questions about names, to whomever lies beyond.
    pub(crate) fn tap(&mut self) -> Result<Vec<OwnedFd>, Failure> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let tap = rustix::fs::open(TUN, flags, Mode::empty()).step("open", TUN)?;
        let links = opened(&mut self.links)?;
        sys::make_tap(tap.as_fd(), EGRESS, egress::DEVICE).step("make a network device by", TUN)?;
        let Address { ip, prefix } = egress::ADDRESS;
        links.add_address(EGRESS, ip, prefix).step("give an address to", egress::DEVICE)?;
        links.up_with_mtu(EGRESS, egress::MTU).step("set the link up", egress::DEVICE)?;
        for table in [MAIN_TABLE, LEAVING] {
            links.add_default_route(table, egress::ROUTER).step("add the default route", "")?;
            // Of links the host has its own, with what is for it alone on them, such as its cloud's metadata (RFC 3927, 7).
            links.add_unreachable(table, [169, 254, 0, 0], 16).step("keep what is link-local apart", "")?;
        }
        nat::masquerade(EGRESS).step("translate addresses by nftables", "")?;
        for (setting, seconds) in REMEMBERED {
            #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
            std::fs::write(setting, seconds).step("have connections remembered by", setting)?;
        }
        let rule = Rule { priority: 50, table: CLIENTS, mark: Some(nat::ANSWER), ..Rule::default() };
        links.add_rule(&rule).step("keep answers to clients here by", "a rule for routes")?;
        forward_from(egress::DEVICE, true)?;
        let names =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, None).step("make a socket", "")?;
        // What bridges bring in a resolver's name is not for it.
        sys::bind_to_device(names.as_fd(), egress::DEVICE).step("bind a socket to", egress::DEVICE)?;
        Ok(vec![tap, names])
    }
}

/// What changes links; the first time it sets up what all of them need.
fn opened(links: &mut Option<Links>) -> Result<&mut Links, Failure> {
    Ok(match links {
        Some(links) => links,
        none => {
            keep_apart()?;
            let mut links = Links::open().step("open a netlink socket", "")?;
            links.up(LOOPBACK).step("set the link up", "lo")?;
            links.add_local_route(CLIENTS).step("keep answers to clients here by", "a table of routes")?;
            none.insert(links)
        }
    })
}

/// The hardware address of who has this IP address, now and whenever it is made anew: neighbours remember it for a minute.
pub(crate) fn hardware([a, b, c, d]: [u8; 4]) -> [u8; 6] {
    [0x02, 0x42, a, b, c, d]
}

/// Where the kernel gives out network devices that are files.
const TUN: &str = "/dev/net/tun";

/// The table of routes for what may leave the project: there is nothing in it but the way out. Without that nothing is reached,
/// instead of what the main table has, which are the project's other networks.
const LEAVING: u8 = 100;

/// The table of routes for answers to clients of the host's published ports, whose addresses sockets have here (IP_TRANSPARENT): it takes
/// whatever comes. By itself that is all that bridges bring which is for nobody here: what is for no such socket is dropped, because
/// nothing can answer in the name of an address that is not here. Of a bridge with a way out it is what answers (`nat`).
const CLIENTS: u8 = 101;

/// How long the kernel remembers what it translates and marks, in seconds, here and nowhere else (nf_conntrack-sysctl.rst). What answers
/// something forgotten is lost: TCP of which one direction was closed is as long in coming as any, and passt keeps UDP so long.
const REMEMBERED: [(&str, &str); 3] = [
    ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", "432000"),
    ("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "180"),
    ("/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", "180"),
];

/// Whether what comes from this bridge may leave the project.
fn let_out(links: &mut Links, bridge: &str, leaves: bool) -> Result<(), Failure> {
    if leaves {
        links.add_unreachable(LEAVING, [0; 4], 0).step("keep the networks apart by", "a table of routes")?;
        let rule = Rule { priority: 100, table: LEAVING, link: Some(bridge), ..Rule::default() };
        links.add_rule(&rule).step("keep the networks apart by", "a rule for routes")?;
    }
    forward_from(bridge, leaves)
}

/// Whether what comes from this link may be forwarded; by itself nothing is.
fn forward_from(link: &str, pass: bool) -> Result<(), Failure> {
    let file = format!("/proc/sys/net/ipv4/conf/{link}/forwarding");
    #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
    std::fs::write(&file, if pass { "1" } else { "0" }).step("let packets pass, or not, by", file)
}

fn keep_apart() -> Result<(), Failure> {
    for (file, value) in APART {
        #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
        std::fs::write(file, value).step("keep the networks apart by", file)?;
    }
    for links in ["all", "default"] {
        let file = format!("/proc/sys/net/ipv6/conf/{links}/disable_ipv6");
        #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
        match std::fs::write(&file, "1") {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            done => done.step("keep what routers tell away by", file)?,
        }
    }
    Ok(())
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Sockets born in this process's network namespace, for somebody outside to connect.
pub(crate) fn sockets(count: u8, kind: SocketType) -> Result<Vec<OwnedFd>, Failure> {
    if count == 0 || usize::from(count) > protocol::MAX_FDS {
        return Err(refusal("make none or too many sockets", ""));
    }
    (0..count)
        .map(|_| rustix::net::socket_with(AddressFamily::INET, kind, FLAGS, None).step("make a socket", ""))
        .collect()
}

/// The same of TCP, which can have any address as theirs.
pub(crate) fn sockets_of_anybody(count: u8) -> Result<Vec<OwnedFd>, Failure> {
    let sockets = sockets(count, SocketType::STREAM)?;
    for socket in &sockets {
        sys::let_be_anybody(socket.as_fd()).step("let a socket have any address", "")?;
    }
    Ok(sockets)
}
