//! The project's networks: bridges in S's network namespace, a veth pair for each container on each of them, and sockets
//! born there.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use containust_core::link::{LOOPBACK, Links};
use containust_helper::failure::{Step, refusal};
use containust_shared::protocol::{self, Address, Bridge, Failure};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Indexes of bridges, plus their numbers, of veths, and of `eth0` within a container. High ones, because a module like sit
/// may have put interfaces of its own at the low ones.
const BRIDGES: u32 = 10_000;
const VETHS: u32 = 20_000;
pub(crate) const ETH0: u32 = 10_000;

/// What keeps S from being a way from one network into another: it forwards nothing, whatever the host does, whose settings
/// a new namespace may inherit; it answers on a bridge for the address of that bridge only, not for its others; and it takes
/// no packet from a bridge whose sender is not reached over it. In this order: the first resets others (ip-sysctl.rst). Of IPv6
/// it has addresses of the links only, which nobody forwards.
const APART: [(&str, &str); 3] = [
    ("/proc/sys/net/ipv4/ip_forward", "0"),
    ("/proc/sys/net/ipv4/conf/all/arp_ignore", "1"),
    ("/proc/sys/net/ipv4/conf/all/rp_filter", "1"),
];

/// The project's network namespace, in which S lives.
#[derive(Default)]
pub(crate) struct Network {
    /// Once a container needed it.
    links: Option<Links>,
    /// Those that are up.
    bridges: BTreeMap<u8, Address>,
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
            links.add_veth((own, &name), index, peer, pid).step("create the veth pair", &name)?;
        }
        Ok(())
    }

    /// Sockets for somebody outside to answer names on, at port 53 of the bridge: one of UDP, one of TCP.
    pub(crate) fn listen(&mut self, bridge: &Bridge) -> Result<Vec<OwnedFd>, Failure> {
        self.bridge(bridge)?;
        let place = SocketAddrV4::new(bridge.address.ip.into(), 53);
        let sockets = [SocketType::DGRAM, SocketType::STREAM].map(|kind| {
            let socket = rustix::net::socket_with(AddressFamily::INET, kind, FLAGS, None).step("make a socket", "")?;
            rustix::net::bind(&socket, &place).step("bind to a bridge", place.to_string())?;
            if kind == SocketType::STREAM {
                rustix::net::listen(&socket, 64).step("listen on a bridge", place.to_string())?;
            }
            Ok(socket)
        });
        sockets.into_iter().collect()
    }

    /// The index of the bridge, which is up.
    fn bridge(&mut self, &Bridge { number, address }: &Bridge) -> Result<(u32, &mut Links), Failure> {
        let links = match &mut self.links {
            Some(links) => links,
            none => {
                keep_apart()?;
                let mut links = Links::open().step("open a netlink socket", "")?;
                links.up(LOOPBACK).step("set the link up", "lo")?;
                none.insert(links)
            }
        };
        let (index, name) = (BRIDGES.saturating_add(number.into()), format!("ctst{number}"));
        match self.bridges.get(&number) {
            Some(known) if *known == address => {}
            Some(_) => return Err(refusal("give another address to the bridge", name)),
            None => {
                links.add_bridge(index, &name, hardware(address.ip)).step("create the bridge", &name)?;
                links.add_address(index, address.ip, address.prefix).step("give an address to the bridge", &name)?;
                self.bridges.insert(number, address);
            }
        }
        Ok((index, links))
    }
}

/// The hardware address of who has this IP address, now and whenever it is made anew: neighbours remember it for a minute.
pub(crate) fn hardware([a, b, c, d]: [u8; 4]) -> [u8; 6] {
    [0x02, 0x42, a, b, c, d]
}

fn keep_apart() -> Result<(), Failure> {
    for (file, value) in APART {
        #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
        std::fs::write(file, value).step("keep the networks apart by", file)?;
    }
    Ok(())
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// TCP sockets born in this process's network namespace, for somebody outside to connect.
pub(crate) fn sockets(count: u8) -> Result<Vec<OwnedFd>, Failure> {
    if count == 0 || usize::from(count) > protocol::MAX_FDS {
        return Err(refusal("make none or too many sockets", ""));
    }
    (0..count)
        .map(|_| {
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, None).step("make a socket", "")
        })
        .collect()
}
