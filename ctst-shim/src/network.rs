//! The project's networks: bridges in S's network namespace, a veth pair for each container on each of them, and sockets
//! born there.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use containust_core::link::{LOOPBACK, Links};
use containust_shared::protocol::{self, Address, Bridge, Failure};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::failure::{Step, refusal};

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
        let links = match &mut self.links {
            _ if wanted.is_empty() => return Ok(()),
            Some(links) => links,
            none => {
                keep_apart()?;
                let mut links = Links::open().step("open a netlink socket", "")?;
                links.up(LOOPBACK).step("set the link up", "lo")?;
                none.insert(links)
            }
        };
        for (&Bridge { number, address }, port) in wanted.iter().zip(0u32..) {
            let index = BRIDGES.saturating_add(number.into());
            let bridge = format!("ctst{number}");
            match self.bridges.get(&number) {
                Some(known) if *known == address => {}
                Some(_) => return Err(refusal("give another address to the bridge", bridge)),
                None => {
                    links.add_bridge(index, &bridge).step("create the bridge", &bridge)?;
                    links
                        .add_address(index, address.ip, address.prefix)
                        .step("give an address to the bridge", &bridge)?;
                    self.bridges.insert(number, address);
                }
            }
            let name = format!("veth{id}.{port}");
            // MAX_NETWORKS for each; the kernel refuses one that is too high.
            let own = id.saturating_mul(16).saturating_add(port).saturating_add(VETHS);
            let peer = (ETH0.saturating_add(port), &*format!("eth{port}"));
            links.add_veth((own, &name), index, peer, pid).step("create the veth pair", &name)?;
        }
        Ok(())
    }
}

fn keep_apart() -> Result<(), Failure> {
    for (file, value) in APART {
        #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
        std::fs::write(file, value).step("keep the networks apart by", file)?;
    }
    Ok(())
}

/// TCP sockets born in this process's network namespace, for somebody outside to connect.
pub(crate) fn sockets(count: u8) -> Result<Vec<OwnedFd>, Failure> {
    if count == 0 || usize::from(count) > protocol::MAX_FDS {
        return Err(refusal("make none or too many sockets", ""));
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    (0..count)
        .map(|_| {
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).step("make a socket", "")
        })
        .collect()
}
