//! The project's network: a bridge in S's network namespace, a veth pair for each container, and sockets born there.

use std::os::fd::OwnedFd;

use containust_core::link::{LOOPBACK, Links};
use containust_shared::protocol::{self, Address, Failure};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::failure::{Step, refusal};

/// Index and name of the project's bridge. Indexes are high, because a module like sit may have put interfaces of its own
/// at the low ones.
const BRIDGE: (u32, &str) = (10_000, "ctst0");
/// Index and name of a container's own interface.
pub(crate) const ETH0: (u32, &str) = (10_000, "eth0");

/// The project's network namespace, in which S lives.
pub(crate) struct Network {
    address: Address,
    /// With the bridge up, once a container needed it.
    links: Option<Links>,
}

impl Network {
    pub(crate) fn new(address: Address) -> Self {
        Self { address, links: None }
    }

    /// Makes container `id`, whose pid 1 is `pid`, a port of the bridge.
    pub(crate) fn connect(&mut self, id: u32, pid: i32) -> Result<(), Failure> {
        let links = match &mut self.links {
            Some(links) => links,
            none => {
                let mut links = Links::open().step("open a netlink socket", "")?;
                links.up(LOOPBACK).step("set the link up", "lo")?;
                links.add_bridge(BRIDGE.0, BRIDGE.1).step("create the bridge", BRIDGE.1)?;
                links
                    .add_address(BRIDGE.0, self.address.ip, self.address.prefix)
                    .step("give an address to the bridge", BRIDGE.1)?;
                none.insert(links)
            }
        };
        let name = format!("veth{id}");
        let index = BRIDGE.0.checked_add(id).ok_or_else(|| refusal("number the link", &name))?;
        links.add_veth((index, &name), BRIDGE.0, ETH0, pid).step("create the veth pair", &name)
    }
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
