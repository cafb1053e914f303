//! The project's networks, and who has which address on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use containust_lang::model::{Attachment, BRIDGE, Dns, Subnet, Subnet6};
use containust_shared::protocol::{Address, Address6, Bridge, Sysctl};
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
    wanted: Wanted,
    subnet: Subnet,
    subnet6: Option<Subnet6>,
    /// It has a way out of the project.
    egress: bool,
    /// A container had an address on it: its bridge may be there, and stays.
    made: bool,
    /// Who has which.
    taken: BTreeMap<u32, Cid>,
    /// What authors chose for somebody.
    chosen: BTreeSet<u32>,
    /// The same of IPv6.
    taken6: BTreeMap<u128, Cid>,
    chosen6: BTreeSet<u128>,
}

/// The IPv4 subnet, whether there is IPv6, and its subnet.
type Wanted = (Option<Subnet>, bool, Option<Subnet6>);

fn wants(attachment: &Attachment) -> Wanted {
    (attachment.subnet, attachment.ipv6, attachment.subnet6)
}

/// What a container has on one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Of the network.
    pub(super) number: u8,
    pub(super) ip: Ipv4Addr,
    pub(super) ip6: Option<Ipv6Addr>,
}

impl Place {
    /// Its addresses.
    pub(super) fn ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(self.ip.into()), self.ip6.map(IpAddr::from)].into_iter().flatten()
    }
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
        let (own, others): (Vec<_>, Vec<_>) = wanted.partition(|on| on.subnet.is_some() || on.subnet6.is_some());
        for attachment in own.into_iter().chain(others) {
            let index = match self.index(attachment) {
                Some(index) => index,
                None => self.add(attachment)?,
            };
            let network = &mut self.list[index];
            network.chosen.extend(attachment.address.and_then(|address| network.subnet.number(address)));
            let number6 = |address| network.subnet6.and_then(|subnet| subnet.number(address));
            network.chosen6.extend(attachment.address6.and_then(number6));
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
        self.list.iter().position(|network| network.name == wanted.network && network.wanted == wants(wanted))
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
        let overlaps6 = |subnet: &Subnet6| {
            self.list.iter().find(|network| network.subnet6.is_some_and(|other| other.overlaps(*subnet)))
        };
        let subnet6 = match wanted.subnet6 {
            Some(subnet) => match overlaps6(&subnet) {
                None => Some(subnet),
                Some(other) => {
                    let other = &other.name;
                    return Err(format!(
                        "give {subnet} to the network {name}: {other} has had addresses of it since the project was started; stop the \
                         project first (ctst stop), or choose another subnet"
                    ));
                }
            },
            None if wanted.ipv6 => {
                let found = self.candidates6(name).find(|subnet| overlaps6(subnet).is_none());
                Some(
                    found
                        .ok_or_else(|| format!("find an IPv6 subnet for the network {name}: the others leave none"))?,
                )
            }
            None => None,
        };
        let number = (0..=u8::MAX).find(|number| self.list.iter().all(|network| network.number != *number));
        let number = number.ok_or_else(|| {
            format!(
                "make the network {name}: 256 have been made since the project was started; stop it first (ctst stop)"
            )
        })?;
        self.list.push(Network {
            number,
            name: name.clone(),
            wanted: wants(wanted),
            subnet,
            subnet6,
            egress: wanted.egress,
            made: false,
            taken: BTreeMap::new(),
            chosen: BTreeSet::new(),
            taken6: BTreeMap::new(),
            chosen6: BTreeSet::new(),
        });
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

    /// IPv6 subnets that nobody chose, the same in every run: of the project's own prefix (RFC 4193), one for each name.
    fn candidates6(&self, name: &str) -> impl Iterator<Item = Subnet6> + use<> {
        let Identity { dev, ino } = self.project;
        let project = Sha256::digest(format!("{dev}:{ino}"));
        let [first, second] = [0, 1].map(|at| u16::from(Sha256::digest(format!("{dev}:{ino}:{name}"))[at]));
        let of = move |at: usize| u16::from_be_bytes([project[at], project[at + 1]]);
        let prefix = [0xfd00 | of(2) & 0xff, of(4), of(6)];
        (0..=u16::MAX).filter_map(move |step| {
            let own = (first << 8 | second).wrapping_add(step);
            Subnet6::new(Ipv6Addr::new(prefix[0], prefix[1], prefix[2], own, 0, 0, 0, 0), 64)
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
        let Network { number, subnet, subnet6, made, taken, chosen, taken6, chosen6, .. } = &mut self.list[index];
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
        let host6 = match (*subnet6, wanted.address6) {
            (None, _) => None,
            (Some(subnet), Some(address)) => {
                let host = subnet.number(address).filter(|host| *host >= 2);
                let host = host.ok_or_else(|| format!("give it {address} on {name}: that is not in {subnet}"))?;
                if taken6.contains_key(&host) {
                    return Err(format!("give it {address} on {name}: another component has it; stop that first"));
                }
                Some(host)
            }
            (Some(subnet), None) => {
                // That of its IPv4 address, unless an author chose it for somebody.
                let mut free = (u128::from(host)..=subnet.last()).chain(2..u128::from(host));
                let found =
                    free.find(|host| *host <= subnet.last() && !taken6.contains_key(host) && !chosen6.contains(host));
                Some(found.ok_or_else(|| format!("give it an address: the network {name}, {subnet}, is full"))?)
            }
        };
        *made = true;
        taken.insert(host, cid);
        taken6.extend(host6.map(|host| (host, cid)));
        let ip6 = subnet6.zip(host6).map(|(subnet, host)| subnet.at(host));
        Ok(Place { number: *number, ip: subnet.at(host), ip6 })
    }

    pub(super) fn release(&mut self, cid: Cid, places: &[Place]) {
        for place in places {
            let Some(network) = self.list.iter_mut().find(|network| network.number == place.number) else { continue };
            if let Some(host) = network.subnet.number(place.ip)
                && network.taken.get(&host) == Some(&cid)
            {
                network.taken.remove(&host);
            }
            if let Some(host) = network.subnet6.zip(place.ip6).and_then(|(subnet, ip)| subnet.number(ip))
                && network.taken6.get(&host) == Some(&cid)
            {
                network.taken6.remove(&host);
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

    /// The same of IPv6, for those that have it.
    pub(super) fn links6(&self, places: &[Place]) -> Vec<(u8, Address6)> {
        let address = |(place, port): (&Place, u8)| {
            let network = self.list.iter().find(|network| network.number == place.number)?;
            Some((port, Address6 { ip: place.ip6?.octets(), prefix: network.subnet6?.prefix() }))
        };
        places.iter().zip(0..).filter_map(address).collect()
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

/// Lets everybody inside send echo requests without CAP_NET_RAW, as docker and podman do. A value with a group that does not
/// exist in the container's user namespace is refused by the kernel (ip-sysctl.rst).
pub(super) fn ping((first, last): (u32, u32)) -> Sysctl {
    Sysctl { name: "net.ipv4.ping_group_range".into(), value: format!("{first} {last}").into() }
}

/// `/etc/hosts` of a container with these addresses: itself, and what its component adds. Of others the name server knows, which
/// this could not say without growing stale.
pub(super) fn hosts(ips: &[IpAddr], name: &str, hostname: &str, more: &[(String, IpAddr)]) -> String {
    let name = if name == hostname { String::new() } else { format!(" {name}") };
    let alone = [Ipv4Addr::new(127, 0, 1, 1).into()];
    let own = if ips.is_empty() { &alone[..] } else { ips };
    let own: String = own.iter().map(|ip| format!("{ip} {hostname}{name}\n")).collect();
    let more: String = more.iter().map(|(name, ip)| format!("{ip} {name}\n")).collect();
    format!("127.0.0.1 localhost\n::1 localhost\n{own}{more}")
}

/// `/etc/resolv.conf` of a container on these bridges, each of which tells of all of them: as many as resolvers ask
/// (resolv.conf(5)). Without any there is nobody to ask, and what the image has there is of another network. With domains to
/// search, names of the project come before those in there, unless the author says otherwise.
pub(super) fn resolv_conf(bridges: &[Bridge], dns: &Dns) -> String {
    if bridges.is_empty() {
        return "# no network, no name server\n".to_owned();
    }
    let mut text = String::new();
    if !dns.servers.is_empty() {
        let servers: Vec<String> = dns.servers.iter().map(ToString::to_string).collect();
        text = format!("# names outside of the project are asked of {}\n", servers.join(", "));
    }
    text.extend(bridges.iter().take(3).map(|bridge| format!("nameserver {}\n", Ipv4Addr::from(bridge.address.ip))));
    let mut options = dns.options.clone();
    if !dns.search.is_empty() {
        text.push_str(&format!("search {}\n", dns.search.join(" ")));
        if !options.iter().any(|option| option.starts_with("ndots:")) {
            options.insert(0, "ndots:0".to_owned());
        }
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
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
    fn gives_out_addresses_of_both_kinds() {
        let six = |network: &str, subnet: Option<&str>, address: Option<&str>| Attachment {
            ipv6: true,
            subnet6: subnet.map(|subnet| Subnet6::try_from(subnet.to_owned()).unwrap()),
            address6: address.map(|ip| ip.parse().unwrap()),
            ..Attachment::new(network)
        };
        let ip6 = |place: &[Place]| place[0].ip6.unwrap().to_string();
        let mut networks = Networks::new(PROJECT, 3);
        let (own, third) = (six("a", Some("fd00:1::/64"), None), six("a", Some("fd00:1::/64"), Some("fd00:1::3")));
        networks.prepare([&own, &third, &six("b", None, None), &Attachment::new("c")].into_iter()).unwrap();
        // The number of the IPv4 address, unless it is another's.
        let place = networks.take(1, std::slice::from_ref(&own), &[]).unwrap();
        assert_eq!((place[0].ip.octets()[3], ip6(&place)), (2, "fd00:1::2".to_owned()));
        let place = networks.take(2, std::slice::from_ref(&own), &[]).unwrap();
        assert_eq!((place[0].ip.octets()[3], ip6(&place)), (3, "fd00:1::4".to_owned()));
        assert_eq!(ip6(&networks.take(3, std::slice::from_ref(&third), &[]).unwrap()), "fd00:1::3");
        assert!(networks.take(4, &[third], &[]).unwrap_err().contains("another component has it"));
        // Who is made anew has the same, and what nobody has any more is given again.
        assert_eq!(networks.take(2, std::slice::from_ref(&own), &place).unwrap(), place);
        networks.release(2, &place);
        assert_eq!(ip6(&networks.take(5, std::slice::from_ref(&own), &place).unwrap()), "fd00:1::4");
        // Chosen ones are the project's own, the same in every run, and of one prefix.
        let chosen = |networks: &mut Networks, name| networks.take(9, &[six(name, None, None)], &[]).unwrap()[0].ip6;
        let first = chosen(&mut networks, "b").unwrap();
        let again = chosen(&mut Networks::new(PROJECT, 3), "b");
        let other = chosen(&mut networks, "d").unwrap();
        assert!(first.is_unique_local() && again == Some(first), "{first} {again:?}");
        assert_eq!((first.segments()[..3].to_vec(), first == other), (other.segments()[..3].to_vec(), false));
        let elsewhere = chosen(&mut Networks::new(Identity { dev: 1, ino: 3 }, 3), "b").unwrap();
        assert_ne!(elsewhere.segments()[..3], first.segments()[..3]);
        // Where there is none nobody has one; and none is in two networks.
        let plain = networks.take(6, &[Attachment::new("c")], &[]).unwrap();
        assert!(plain[0].ip6.is_none() && networks.links6(&plain).is_empty());
        let both = networks.take(7, &[Attachment::new("c"), six("b", None, None)], &[]).unwrap();
        assert_eq!(networks.links6(&both).iter().map(|(port, six)| (*port, six.prefix)).collect::<Vec<_>>(), [(1, 64)]);
        assert!(
            networks.prepare([&six("e", Some("fd00:1::/32"), None)].into_iter()).unwrap_err().contains("a has had")
        );
    }

    #[test]
    fn writes_what_resolvers_read() {
        let (ip, more) = (Ipv4Addr::new(10, 89, 0, 2).into(), [("six".to_owned(), "2001:db8::1".parse().unwrap())]);
        let text = hosts(&[ip], "my_db", "my-db", &more);
        assert_eq!(text, "127.0.0.1 localhost\n::1 localhost\n10.89.0.2 my-db my_db\n2001:db8::1 six\n");
        assert!(hosts(&[], "x", "x", &[]).ends_with("\n127.0.1.1 x\n"));
        let bridge =
            |number| Bridge { number, address: Address { ip: [10, 89, number, 1], prefix: 24 }, egress: false };
        let many: Vec<Bridge> = (0..5).map(bridge).collect();
        let plain = Dns::default();
        assert_eq!(resolv_conf(&many[..1], &plain), "nameserver 10.89.0.1\n");
        assert!(resolv_conf(&many, &plain).lines().count() == 3 && !resolv_conf(&[], &plain).contains("nameserver "));
        let mut dns = Dns { search: vec!["a.example".into(), "b".into()], ..plain };
        assert!(resolv_conf(&many, &dns).ends_with("\nsearch a.example b\noptions ndots:0\n"));
        dns.options = vec!["rotate".into(), "ndots:2".into()];
        assert!(resolv_conf(&many, &dns).ends_with("\noptions rotate ndots:2\n"));
        dns.search.clear();
        dns.servers = vec![Ipv4Addr::new(192, 0, 2, 53)];
        let text = resolv_conf(&many[..1], &dns);
        assert!(text.contains(" 192.0.2.53\nnameserver 10.89.0.1\noptions rotate"), "{text}");
    }
}
