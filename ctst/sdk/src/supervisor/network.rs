//! The project's networks, and who has which address on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use containust_lang::model::{Attachment, BRIDGE, Subnet};
use containust_shared::protocol::{Address, Bridge, Sysctl};
use sha2::{Digest, Sha256};

use super::poller::Cid;
use crate::project::Identity;

/// Of a /24: network, bridge and broadcast are taken.
const SMALL: usize = 253;

/// The project's networks since its sandbox was made.
#[derive(Debug)]
pub(super) struct Networks {
    project: Identity,
    /// There are too many components for a /24.
    large: bool,
    list: Vec<Network>,
}

#[derive(Debug)]
struct Network {
    number: u8,
    name: String,
    /// What its author wants.
    wanted: Option<Subnet>,
    subnet: Subnet,
    /// It has a way out of the project.
    egress: bool,
    /// A container had an address on it: its bridge may be there, and stays.
    made: bool,
    /// Who has which.
    taken: BTreeMap<u32, Cid>,
    /// What authors chose for somebody.
    chosen: BTreeSet<u32>,
}

/// What a container has on one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Of the network.
    pub(super) number: u8,
    pub(super) ip: Ipv4Addr,
}

impl Networks {
    /// `components`: how many there may be.
    pub(super) fn new(project: Identity, components: usize) -> Self {
        Self { project, large: components > SMALL, list: Vec::new() }
    }

    /// Has a network for each of these, so that what the authors want is known before anybody is given an address.
    /// The error says what was tried, and why it cannot be.
    pub(super) fn prepare<'a>(&mut self, wanted: impl Iterator<Item = &'a Attachment> + Clone) -> Result<(), String> {
        // What an earlier run wanted and no container ever came to is nobody's.
        self.list.retain(|network| network.made);
        let (own, others): (Vec<_>, Vec<_>) = wanted.partition(|attachment| attachment.subnet.is_some());
        for attachment in own.into_iter().chain(others) {
            let index = match self.index(attachment) {
                Some(index) => index,
                None => self.add(attachment)?,
            };
            let network = &mut self.list[index];
            network.chosen.extend(attachment.address.and_then(|address| network.subnet.number(address)));
        }
        Ok(())
    }

    /// Opens and closes networks as these say, once nothing can refuse the run any more. Who is on them is made anew for that,
    /// and whoever is made first tells S.
    pub(super) fn open<'a>(&mut self, wanted: impl Iterator<Item = &'a Attachment>) {
        for attachment in wanted {
            if let Some(index) = self.index(attachment) {
                self.list[index].egress = attachment.egress;
            }
        }
    }

    fn index(&self, wanted: &Attachment) -> Option<usize> {
        self.list.iter().position(|network| network.name == wanted.network && network.wanted == wanted.subnet)
    }

    fn add(&mut self, wanted: &Attachment) -> Result<usize, String> {
        let name = &wanted.network;
        let overlapping = |subnet: Subnet| self.list.iter().find(|network| network.subnet.overlaps(subnet));
        let subnet = match wanted.subnet {
            Some(subnet) => match overlapping(subnet) {
                None => subnet,
                Some(other) => {
                    let (other, theirs) = (&other.name, other.subnet);
                    return Err(format!(
                        "give {subnet} to the network {name}: {other} has had {theirs} since the project was started; stop \
                         the project first (ctst stop), or choose another subnet"
                    ));
                }
            },
            None => self
                .candidates(name)
                .find(|subnet| overlapping(*subnet).is_none())
                .ok_or_else(|| format!("find a subnet for the network {name}: the others leave none"))?,
        };
        let number = (0..=u8::MAX).find(|number| self.list.iter().all(|network| network.number != *number));
        let number = number.ok_or_else(|| {
            format!(
                "make the network {name}: 256 have been made since the project was started; stop it first (ctst stop)"
            )
        })?;
        let (taken, chosen) = (BTreeMap::new(), BTreeSet::new());
        let (egress, made) = (wanted.egress, false);
        let network =
            Network { number, name: name.clone(), wanted: wanted.subnet, subnet, egress, made, taken, chosen };
        self.list.push(network);
        Ok(self.list.len() - 1)
    }

    /// Subnets that nobody chose, the same in every run: `10.89.N.0/24` for the network that every project has, others for
    /// those that have names; each a /16 for a project too large for that. Projects may have the same, because their
    /// networks are not connected to anything.
    fn candidates(&self, name: &str) -> impl Iterator<Item = Subnet> {
        let Identity { dev, ino } = self.project;
        let digest = match name {
            BRIDGE => Sha256::digest(format!("{dev}:{ino}")),
            name => Sha256::digest(format!("{dev}:{ino}:{name}")),
        };
        let [first, second] = [digest[0], digest[1]].map(u32::from);
        // Where they begin, as the first 16 or 24 bits, how many there are, and where the search begins.
        let (begin, count, at, prefix) = match (self.large, name) {
            (false, BRIDGE) => (10 << 16 | 89 << 8, 256, first, 24),
            (true, BRIDGE) => (10 << 8 | 128, 64, first & 63, 16),
            (false, _) => (10 << 16 | 90 << 8, 38 << 8, (second % 38) << 8 | first, 24),
            (true, _) => (10 << 8 | 192, 64, first & 63, 16),
        };
        (0..count).filter_map(move |step| {
            Subnet::new(Ipv4Addr::from((begin + (at + step) % count) << (32 - u32::from(prefix))), prefix)
        })
    }

    /// Gives a container its addresses, or none where one of them cannot be given. Those that it has on the same networks
    /// stay unless another is wanted. The error says what was tried, and why it cannot be.
    pub(super) fn take(&mut self, cid: Cid, wanted: &[Attachment], old: &[Place]) -> Result<Vec<Place>, String> {
        self.release(cid, old);
        let mut places = Vec::with_capacity(wanted.len());
        for attachment in wanted {
            match self.take_one(cid, attachment, old) {
                Ok(place) => places.push(place),
                Err(problem) => {
                    self.release(cid, &places);
                    return Err(problem);
                }
            }
        }
        Ok(places)
    }

    fn take_one(&mut self, cid: Cid, wanted: &Attachment, old: &[Place]) -> Result<Place, String> {
        let name = &wanted.network;
        let index = match self.index(wanted) {
            Some(index) => index,
            None => self.add(wanted)?,
        };
        let Network { number, subnet, made, taken, chosen, .. } = &mut self.list[index];
        let is_free = |host: &u32| !taken.contains_key(host) && !chosen.contains(host);
        let host = match wanted.address {
            Some(address) => {
                let host = subnet.number(address).filter(|host| (2..=subnet.last()).contains(host));
                let host = host.ok_or_else(|| format!("give it {address} on {name}: that is not in {subnet}"))?;
                if taken.contains_key(&host) {
                    return Err(format!("give it {address} on {name}: another component has it; stop that first"));
                }
                host
            }
            None => {
                let kept = old.iter().filter(|place| place.number == *number).find_map(|place| subnet.number(place.ip));
                // The next that was never used, else the lowest that is free.
                let next = taken.last_key_value().map_or(2, |(host, _)| host + 1);
                let free = kept.into_iter().chain(next..=subnet.last()).find(is_free);
                let free = free.or_else(|| (2..=subnet.last()).find(is_free));
                free.ok_or_else(|| {
                    format!(
                        "give it an address: the network {name}, {subnet}, is full; give that a larger subnet, or stop \
                         the project to get one"
                    )
                })?
            }
        };
        *made = true;
        taken.insert(host, cid);
        Ok(Place { number: *number, ip: subnet.at(host) })
    }

    pub(super) fn release(&mut self, cid: Cid, places: &[Place]) {
        for place in places {
            if let Some(network) = self.list.iter_mut().find(|network| network.number == place.number)
                && let Some(host) = network.subnet.number(place.ip)
                && network.taken.get(&host) == Some(&cid)
            {
                network.taken.remove(&host);
            }
        }
    }

    /// The addresses of all of them.
    pub(super) fn subnets(&self) -> Vec<Subnet> {
        self.list.iter().map(|network| network.subnet).collect()
    }

    /// What S and C are told of a container's places.
    pub(super) fn links(&self, places: &[Place]) -> (Vec<Bridge>, Vec<Address>) {
        let link = |place: &Place| {
            let network = self.list.iter().find(|network| network.number == place.number)?;
            let (subnet, egress) = (network.subnet, network.egress);
            let address = |ip: Ipv4Addr| Address { ip: ip.octets(), prefix: subnet.prefix() };
            Some((Bridge { number: place.number, address: address(subnet.at(1)), egress }, address(place.ip)))
        };
        places.iter().filter_map(link).unzip()
    }
}

/// What a container on several networks has for it not to be a way between them, unless its author says otherwise: a new
/// namespace may inherit from the host that it forwards, and an address of one network is none on the other.
pub(super) fn apart() -> Vec<Sysctl> {
    let settings = [
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv4.conf.all.arp_ignore", "1"),
        ("net.ipv4.conf.all.rp_filter", "1"),
        ("net.ipv4.conf.default.rp_filter", "1"),
        ("net.ipv6.conf.all.forwarding", "0"),
    ];
    let known = |name: &str| !name.starts_with("net.ipv6.") || std::path::Path::new("/proc/sys/net/ipv6").exists();
    let settings = settings.into_iter().filter(|(name, _)| known(name));
    settings.map(|(name, value)| Sysctl { name: name.into(), value: value.into() }).collect()
}

/// `/etc/hosts` of a container with these addresses: itself, and what its component adds. Of others the name server knows, which
/// this could not say without growing stale.
pub(super) fn hosts(ips: &[Ipv4Addr], name: &str, hostname: &str, more: &[(String, IpAddr)]) -> String {
    let name = if name == hostname { String::new() } else { format!(" {name}") };
    let alone = [Ipv4Addr::new(127, 0, 1, 1)];
    let own = if ips.is_empty() { &alone[..] } else { ips };
    let own: String = own.iter().map(|ip| format!("{ip} {hostname}{name}\n")).collect();
    let more: String = more.iter().map(|(name, ip)| format!("{ip} {name}\n")).collect();
    format!("127.0.0.1 localhost\n::1 localhost\n{own}{more}")
}

/// `/etc/resolv.conf` of a container on these bridges, each of which tells of all of them: as many as resolvers ask
/// (resolv.conf(5)). Without any there is nobody to ask, and what the image has there is of another network.
pub(super) fn resolv_conf(bridges: &[Bridge]) -> String {
    if bridges.is_empty() {
        return "# no network, no name server\n".to_owned();
    }
    bridges.iter().take(3).map(|bridge| format!("nameserver {}\n", Ipv4Addr::from(bridge.address.ip))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROJECT: Identity = Identity { dev: 1, ino: 2 };

    fn on(network: &str, subnet: Option<&str>, address: Option<&str>) -> Attachment {
        let subnet = subnet.map(|subnet| Subnet::try_from(subnet.to_owned()).unwrap());
        Attachment { subnet, address: address.map(|ip| ip.parse().unwrap()), ..Attachment::new(network) }
    }

    #[test]
    fn gives_out_addresses() {
        let mut small = Networks::new(PROJECT, 3);
        let bridge = [Attachment::new(BRIDGE)];
        let place = small.take(1, &bridge, &[]).unwrap();
        let (bridges, addresses) = small.links(&place);
        let Bridge { number, address: Address { ip: [10, 89, _, 1], prefix: 24 }, egress: false } = bridges[0] else {
            panic!("{bridges:?}")
        };
        assert_eq!((number, addresses[0].ip[3], addresses[0].prefix), (0, 2, 24));
        for cid in 2..254 {
            let place = small.take(cid, &bridge, &[]).unwrap();
            assert_eq!(u32::from(place[0].ip.octets()[3]), cid + 1);
        }
        assert!(small.take(254, &bridge, &[]).unwrap_err().contains("is full"));
        // Who is made anew keeps its address; a free one is given again.
        assert_eq!(small.take(1, &bridge, &place).unwrap(), place);
        small.release(1, &place);
        assert_eq!(small.take(300, &bridge, &[]).unwrap(), place);
        let again = Networks::new(PROJECT, 3).take(9, &bridge, &[]).unwrap();
        assert_eq!(again, place);
    }

    #[test]
    fn grows_for_many() {
        let mut large = Networks::new(PROJECT, 254);
        let places: Vec<_> = [BRIDGE, "b", "c"]
            .into_iter()
            .zip(1..)
            .map(|(name, cid)| large.take(cid, &[Attachment::new(name)], &[]).unwrap()[0].ip)
            .collect();
        assert!(places.iter().all(|ip| ip.octets()[2..] == [0, 2]), "{places:?}");
        assert!(large.list.iter().all(|network| network.subnet.last() == 65534));
    }

    #[test]
    fn keeps_networks_apart() {
        let mut networks = Networks::new(PROJECT, 3);
        let names: Vec<String> = (0..256).map(|number| format!("n{number}")).collect();
        let all: Vec<_> = names.iter().map(|name| Attachment::new(name)).collect();
        networks.prepare(all.iter()).unwrap();
        for (index, network) in networks.list.iter().enumerate() {
            assert!(networks.list[..index].iter().all(|other| !other.subnet.overlaps(network.subnet)));
            assert_eq!(usize::from(network.number), index);
        }
        assert!(networks.prepare(all.iter().chain([&Attachment::new("more")])).unwrap_err().contains("256"));
        // What nobody came to is forgotten; an automatic subnet gives way to what an author wants.
        let bridge = Attachment::new(BRIDGE);
        networks.prepare([&bridge].into_iter()).unwrap();
        let subnet = networks.list[0].subnet.to_string();
        let own = on("own", Some(&subnet), None);
        networks.prepare([&bridge, &own].into_iter()).unwrap();
        assert_eq!((networks.list.len(), networks.list[0].subnet.to_string()), (2, subnet));
        networks.take(1, &[bridge], &[]).unwrap();
        let refused = networks.prepare([&on("other", Some("10.0.0.0/8"), None)].into_iter()).unwrap_err();
        assert!(refused.contains("10.0.0.0/8") && refused.contains("bridge has had"), "{refused}");
    }

    #[test]
    fn keeps_what_authors_chose() {
        let mut networks = Networks::new(PROJECT, 3);
        let plain = on("a", Some("10.1.2.0/29"), None);
        let fixed = on("a", Some("10.1.2.0/29"), Some("10.1.2.2"));
        networks.prepare([&plain, &fixed].into_iter()).unwrap();
        let places = networks.take(1, std::slice::from_ref(&plain), &[]).unwrap();
        assert_eq!(places[0].ip, Ipv4Addr::new(10, 1, 2, 3));
        let fixed_places = networks.take(2, std::slice::from_ref(&fixed), &[]).unwrap();
        assert_eq!(fixed_places[0].ip, Ipv4Addr::new(10, 1, 2, 2));
        assert!(networks.take(3, std::slice::from_ref(&fixed), &[]).unwrap_err().contains("another component has it"));
        assert!(networks.take(3, &[plain.clone(), fixed], &[]).is_err());
        // Nothing of what was refused is kept.
        let more: Vec<_> =
            (4..7).map(|cid| networks.take(cid, std::slice::from_ref(&plain), &[]).unwrap()[0].ip).collect();
        assert_eq!(more, [4, 5, 6].map(|last| Ipv4Addr::new(10, 1, 2, last)));
        assert!(networks.take(9, &[on("a", Some("10.1.2.0/29"), Some("10.1.2.7"))], &[]).is_err());
    }

    #[test]
    fn writes_what_resolvers_read() {
        let (ip, more) = (Ipv4Addr::new(10, 89, 0, 2), [("six".to_owned(), "2001:db8::1".parse().unwrap())]);
        let text = hosts(&[ip], "my_db", "my-db", &more);
        assert_eq!(text, "127.0.0.1 localhost\n::1 localhost\n10.89.0.2 my-db my_db\n2001:db8::1 six\n");
        assert!(hosts(&[], "x", "x", &[]).ends_with("\n127.0.1.1 x\n"));
        let bridge =
            |number| Bridge { number, address: Address { ip: [10, 89, number, 1], prefix: 24 }, egress: false };
        let many: Vec<Bridge> = (0..5).map(bridge).collect();
        assert_eq!(resolv_conf(&many[..1]), "nameserver 10.89.0.1\n");
        assert!(resolv_conf(&many).lines().count() == 3 && !resolv_conf(&[]).contains("nameserver "));
    }
}
