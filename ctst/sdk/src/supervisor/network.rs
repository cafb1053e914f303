//! The project's addresses.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use containust_shared::protocol::Address;
use sha2::{Digest, Sha256};

use crate::project::Identity;

/// Addresses of one project's bridge: `10.89.N.0/24`, or a /16 for a project too large for that. Projects may have the
/// same, because their networks are not connected to anything.
#[derive(Debug)]
pub(super) struct Subnet {
    base: u32,
    prefix: u8,
    used: BTreeSet<u32>,
}

/// Of a /24: network, bridge and broadcast are taken.
const SMALL: usize = 253;

impl Subnet {
    pub(super) fn new(project: Identity, containers: usize) -> Self {
        let digest = Sha256::digest(format!("{}:{}", project.dev, project.ino));
        let (second, third, prefix) =
            if containers <= SMALL { (89, digest[0], 24) } else { (128 | digest[0] & 63, 0, 16) };
        Self { base: u32::from(Ipv4Addr::new(10, second, third, 0)), prefix, used: BTreeSet::new() }
    }

    pub(super) fn bridge(&self) -> Address {
        self.address(1)
    }

    pub(super) fn address(&self, host: u32) -> Address {
        Address { ip: self.ip(host).octets(), prefix: self.prefix }
    }

    pub(super) fn ip(&self, host: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base | host)
    }

    /// The next host number that was never used, else the lowest that is free.
    pub(super) fn take(&mut self) -> Option<u32> {
        let last = (1 << (32 - self.prefix)) - 2;
        let next = self.used.last().map_or(2, |host| host + 1);
        let host = if next <= last { Some(next) } else { (2..=last).find(|host| !self.used.contains(host)) }?;
        self.used.insert(host);
        Some(host)
    }

    pub(super) fn release(&mut self, host: u32) {
        self.used.remove(&host);
    }
}

/// `/etc/hosts` of a container.
///
/// Of the others: address, name, host name, and the host name that it shares with other replicas.
pub(super) fn hosts<'a>(
    own: Option<&str>,
    others: impl Iterator<Item = (Ipv4Addr, &'a str, &'a str, Option<String>)>,
) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    // Writing into a String cannot fail.
    if let Some(own) = own {
        writeln!(text, "127.0.1.1 {own}").ok();
    }
    for (ip, name, hostname, group) in others {
        let hostname = if name == hostname { String::new() } else { format!(" {hostname}") };
        let group = group.map_or_else(String::new, |group| format!(" {group}"));
        writeln!(text, "{ip} {name}{hostname}{group}").ok();
    }
    text
}

/// What a component adds to it.
pub(super) fn more_hosts(hosts: &[(String, IpAddr)]) -> String {
    hosts.iter().map(|(name, ip)| format!("{ip} {name}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROJECT: Identity = Identity { dev: 1, ino: 2 };

    #[test]
    fn gives_out_addresses() {
        let mut small = Subnet::new(PROJECT, 3);
        assert_eq!(small.bridge().ip[..2], [10, 89]);
        assert_eq!((small.bridge().ip[3], small.bridge().prefix), (1, 24));
        let hosts: Vec<_> = std::iter::from_fn(|| small.take()).collect();
        assert_eq!(hosts, (2..=254).collect::<Vec<_>>());
        small.release(7);
        assert_eq!((small.take(), small.take()), (Some(7), None));
        assert_eq!(Subnet::new(PROJECT, 3).bridge(), small.bridge());
    }

    #[test]
    fn grows_for_many() {
        let mut large = Subnet::new(PROJECT, 254);
        assert_eq!((large.bridge().ip[2..].to_vec(), large.bridge().prefix), (vec![0, 1], 16));
        let last = std::iter::from_fn(|| large.take()).last().unwrap();
        assert_eq!(large.ip(last).octets()[2..], [255, 254]);
    }

    #[test]
    fn writes_hosts() {
        let ip = Ipv4Addr::new(10, 89, 0, 2);
        let text = hosts(
            None,
            [(ip, "my_db", "my-db", None), (ip, "web", "web", None), (ip, "a_b-1", "a-b-1", Some("a-b".into()))]
                .into_iter(),
        );
        assert!(
            text.ends_with("::1 localhost\n10.89.0.2 my_db my-db\n10.89.0.2 web\n10.89.0.2 a_b-1 a-b-1 a-b\n"),
            "{text}"
        );
        assert!(hosts(Some("x"), std::iter::empty()).ends_with("127.0.1.1 x\n"));
    }
}
