//! What the project's name server knows, and its answers: from bytes to bytes, without input or output.
//!
//! What it does not know does not exist, but for who is on a network with a way out: then somebody outside may know it. Of a message
//! that a container sent only the question is parsed; what follows it (EDNS, mostly) asks for nothing that there is here.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::sync::Arc;

use simple_dns::rdata::{A, AAAA, PTR, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, RCODE, ResourceRecord};

use super::poller::Cid;

/// Most of an answer by UDP to who said nothing of more (RFC 1035, 2.3.4).
pub(super) const UDP_LIMIT: usize = 512;
/// Of a message (RFC 1035, 4.1.1), before its question.
const HEADER: usize = 12;
/// Type and class of a question.
const KIND: usize = 4;
/// An answer whose name is a pointer to that of the question, without its data.
const RECORD: usize = 12;
/// Nobody keeps an answer: a name is right at the moment in which it is asked for.
const TTL: u32 = 0;

const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
const TYPE_AAAA: u16 = 28;
const ANY: u16 = 255;

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Member {
    /// Its host name, for who has the address only.
    pub(super) host: String,
    /// Its networks, in its own order.
    pub(super) on: Vec<On>,
    /// Of those with one name, those that do not run are told only where none does.
    pub(super) running: bool,
    /// Further names that it alone sees.
    pub(super) hosts: Vec<(String, IpAddr)>,
    /// Whom to ask outside, one after another; none: who is usually asked.
    pub(super) servers: Servers,
}

/// Name servers, in the order in which they are asked.
pub(super) type Servers = Arc<[SocketAddrV4]>;

/// What it has on one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct On {
    /// The network's number.
    pub(super) network: u8,
    pub(super) ip: Ipv4Addr,
    pub(super) ip6: Option<Ipv6Addr>,
    /// The network has a way out of the project.
    pub(super) egress: bool,
    /// All by which it is found there, in lower case. Several members may have the same.
    pub(super) names: Vec<String>,
}

impl On {
    /// Its addresses, each with the network.
    fn places(&self) -> impl Iterator<Item = (u8, IpAddr)> + use<> {
        let network = self.network;
        let ips = [Some(self.ip.into()), self.ip6.map(IpAddr::from)];
        ips.into_iter().flatten().map(move |ip| (network, ip))
    }
}

/// What is said to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// This, in whole.
    Here(Vec<u8>),
    /// What one of these says to it, whose first so many bytes are header and question.
    Outside(usize, Servers),
    /// Nothing.
    None,
}

/// Why there are no records.
enum Lack {
    Code(RCODE),
    Outside(Servers),
}

impl From<RCODE> for Lack {
    fn from(code: RCODE) -> Self {
        Self::Code(code)
    }
}

#[derive(Debug, Default)]
pub(super) struct Zone {
    members: HashMap<Cid, Member>,
    names: HashMap<Vec<u8>, BTreeSet<Cid>>,
    addresses: HashMap<(u8, IpAddr), Cid>,
    /// Count answers, those to questions for IPv6 by themselves: who is named first is next in turn. Resolvers ask for both kinds at once, and
    /// would with one count, and two members, always be told of the same one first.
    turns: [usize; 2],
}

impl Zone {
    /// Says who the container is from now on; none: it is not there.
    pub(super) fn set(&mut self, cid: Cid, member: Option<Member>) {
        if self.members.get(&cid) == member.as_ref() {
            return;
        }
        for on in self.members.remove(&cid).into_iter().flat_map(|old| old.on) {
            for place in on.places() {
                if self.addresses.get(&place) == Some(&cid) {
                    self.addresses.remove(&place);
                }
            }
            let On { names, .. } = on;
            for name in names {
                if let Some(cids) = self.names.get_mut(name.as_bytes()) {
                    cids.remove(&cid);
                    if cids.is_empty() {
                        self.names.remove(name.as_bytes());
                    }
                }
            }
        }
        if let Some(member) = member {
            for on in &member.on {
                self.addresses.extend(on.places().map(|place| (place, cid)));
                for name in &on.names {
                    self.names.entry(name.clone().into_bytes()).or_default().insert(cid);
                }
            }
            self.members.insert(cid, member);
        }
    }

    fn at(&self, network: u8, ip: IpAddr) -> Option<&Member> {
        self.members.get(self.addresses.get(&(network, ip))?)
    }

    /// The answer, at most `limit` bytes long, to a message from this address on this network. None: to what is no question nothing is said, so
    /// that no two servers ever talk to each other. Of the message nothing is left, unless it is asked on.
    pub(super) fn answer(&mut self, message: &mut [u8], from: (u8, Ipv4Addr), limit: usize) -> Answer {
        self.answered(message, from, limit).unwrap_or(Answer::None)
    }

    fn answered(&mut self, message: &mut [u8], from: (u8, Ipv4Addr), limit: usize) -> Option<Answer> {
        let header: [u8; HEADER] = *message.first_chunk()?;
        let [a, b, flags, _, many, one, ..] = header;
        if flags & 0x80 != 0 {
            return None;
        }
        let mut reply = Packet::new_reply(u16::from_be_bytes([a, b]));
        *reply.opcode_mut() = OPCODE::from(u16::from(flags >> 3 & 0xf));
        reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE);
        if flags & 1 != 0 {
            reply.set_flags(PacketFlag::RECURSION_DESIRED);
        }
        let mut refuse = |why| {
            *reply.rcode_mut() = why;
            reply.build_bytes_vec().ok().map(Answer::Here)
        };
        if flags >> 3 & 0xf != 0 {
            return refuse(RCODE::NotImplemented);
        }
        let (Some(end), [0, 1]) = (name_end(message), [many, one]) else { return refuse(RCODE::FormatError) };
        let Some([t0, t1, c0, c1]) = message.get(end..end + KIND).and_then(|kind| kind.first_chunk().copied()) else {
            return refuse(RCODE::FormatError);
        };
        // A kind that the parser does not know is none that is known here, and is put back into the answer.
        let asked = [t0, t1, c0, c1];
        message[end..end + KIND].copy_from_slice(&[0, 1, 0, 1]);
        message[3..HEADER].copy_from_slice(&[0, 0, 1, 0, 0, 0, 0, 0, 0]);
        let Ok(query) = Packet::parse(&message[..end + KIND]) else { return refuse(RCODE::FormatError) };
        let Some(question) = query.questions.into_iter().next() else { return refuse(RCODE::FormatError) };
        let (kind, class) = (u16::from_be_bytes([t0, t1]), u16::from_be_bytes([c0, c1]));
        let found = if class == u16::from(CLASS::IN) || class == ANY {
            self.look_up(&question.qname, kind, from)
        } else {
            Err(Lack::Code(RCODE::Refused))
        };
        match found {
            Ok(records) => {
                let mut room = limit.saturating_sub(end + KIND);
                for data in records {
                    let length = match &data {
                        RData::A(_) => 4,
                        RData::AAAA(_) => 16,
                        // Written out.
                        _ => 255,
                    };
                    let Some(left) = room.checked_sub(RECORD + length) else {
                        reply.set_flags(PacketFlag::TRUNCATION);
                        break;
                    };
                    room = left;
                    reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data));
                }
            }
            // RFC 1035, 4.1.1: whoever does not want it asked on says so.
            Err(Lack::Outside(_)) if flags & 1 == 0 => *reply.rcode_mut() = RCODE::NameError,
            Err(Lack::Outside(servers)) => {
                drop((question, reply));
                message[..HEADER].copy_from_slice(&header);
                message[end..end + KIND].copy_from_slice(&asked);
                return Some(Answer::Outside(end + KIND, servers));
            }
            Err(Lack::Code(why)) => *reply.rcode_mut() = why,
        }
        reply.questions.push(question);
        let mut bytes = reply.build_bytes_vec_compressed().ok()?;
        bytes.get_mut(end..end + KIND)?.copy_from_slice(&asked);
        Some(Answer::Here(bytes))
    }

    /// Records of this type, of all types with [`ANY`]; an error where there is no such name, or another has to be asked.
    fn look_up(
        &mut self,
        name: &Name<'_>,
        kind: u16,
        (network, from): (u8, Ipv4Addr),
    ) -> Result<Vec<RData<'static>>, Lack> {
        // Whoever is none of us has its address from nobody.
        let asking = self.at(network, from.into()).ok_or(RCODE::Refused)?;
        let key = name.as_bytes().map(<[u8]>::to_ascii_lowercase).collect::<Vec<_>>().join(&b'.');
        let addresses = |of: &[IpAddr]| -> Vec<RData<'static>> {
            let record = |ip: &IpAddr| match ip {
                IpAddr::V4(ip) if kind == TYPE_A || kind == ANY => Some(RData::A(A::from(*ip))),
                IpAddr::V6(ip) if kind == TYPE_AAAA || kind == ANY => Some(RData::AAAA(AAAA::from(*ip))),
                _ => None,
            };
            of.iter().filter_map(record).collect()
        };
        // RFC 6761, 6.3.
        if key == b"localhost" || key.ends_with(b".localhost") {
            return Ok(addresses(&[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]));
        }
        // A program that reads no /etc/hosts sees the same.
        let own = |(host, _): &&(String, IpAddr)| host.as_bytes().eq_ignore_ascii_case(&key);
        let own: Vec<IpAddr> = asking.hosts.iter().filter(own).map(|(_, ip)| *ip).collect();
        if !own.is_empty() {
            return Ok(addresses(&own));
        }
        let has_way = asking.on.iter().any(|mine| mine.egress);
        let lack = |elsewhere: bool| match elsewhere && has_way {
            true => Lack::Outside(Arc::clone(&asking.servers)),
            false => Lack::Code(RCODE::NameError),
        };
        if let Some(ip) = reversed(&key) {
            let of = asking.on.iter().find_map(|mine| self.at(mine.network, ip)).map(|member| member.host.as_str());
            let host = of.or(ip.is_loopback().then_some("localhost"));
            let host = host.ok_or_else(|| lack(is_public(ip)))?;
            let host = Name::new(host).map_err(|_| RCODE::NameError)?.into_owned();
            return Ok(if kind == TYPE_PTR || kind == ANY { vec![RData::PTR(PTR(host))] } else { Vec::new() });
        }
        // By the first network that both are on, if that is its name there.
        let place = |member: &Member| -> Option<[Option<IpAddr>; 2]> {
            let known = |on: &&On| on.names.iter().any(|name| name.as_bytes() == key);
            let common = |mine: &On| member.on.iter().filter(known).find(|on| on.network == mine.network);
            asking.on.iter().find_map(common).map(|on| [Some(on.ip.into()), on.ip6.map(IpAddr::from)])
        };
        let members = self.names.get(&key).into_iter().flatten().filter_map(|cid| self.members.get(cid));
        let mut told: Vec<_> = members.clone().filter(|m| m.running).filter_map(place).collect();
        if told.is_empty() {
            told = members.filter_map(place).collect();
        }
        if told.is_empty() {
            // What is known here is no business of others.
            return Err(lack(!self.names.contains_key(&key)));
        }
        if told.len() > 1 {
            let turn = &mut self.turns[usize::from(kind == TYPE_AAAA)];
            let first = *turn % told.len();
            told.rotate_left(first);
            *turn = turn.wrapping_add(1);
        }
        Ok(addresses(&told.into_iter().flatten().flatten().collect::<Vec<_>>()))
    }
}

/// Whether somebody outside may know whose address this is (RFC 6303, 4).
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_broadcast())
        }
        IpAddr::V6(ip) => {
            !(ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified())
        }
    }
}

/// Where the name of the first question ends. None where it does not, or is a pointer: there is nothing to point to before it.
fn name_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ ..64 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

/// The address that `4.3.2.1.in-addr.arpa` stands for (RFC 1035, 3.5), or one of 32 digits before `.ip6.arpa` (RFC 3596, 2.5).
fn reversed(name: &[u8]) -> Option<IpAddr> {
    let name = std::str::from_utf8(name).ok()?;
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        return digits.parse::<Ipv4Addr>().ok().map(|ip| Ipv4Addr::from(u32::from(ip).swap_bytes()).into());
    }
    let digits = name.strip_suffix(".ip6.arpa")?.split('.');
    let mut number = (0, 0u128);
    for digit in digits {
        let value =
            Some(digit).filter(|digit| digit.len() == 1).and_then(|digit| digit.chars().next()?.to_digit(16))?;
        number = (number.0 + 1, number.1 >> 4 | u128::from(value) << 124);
    }
    (number.0 == 32).then(|| Ipv6Addr::from(number.1).into())
}

#[cfg(test)]
mod tests {
    use simple_dns::{QCLASS, QTYPE, Question, TYPE};

    use super::*;

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 89, 0, last)
    }

    fn member(last: u8, names: &[&str], running: bool) -> Option<Member> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let host = names[0].clone();
        Some(Member {
            host,
            on: vec![On { network: 0, ip: ip(last), ip6: None, egress: false, names }],
            running,
            hosts: vec![("db.example".into(), Ipv4Addr::new(192, 0, 2, 7).into())],
            servers: Servers::default(),
        })
    }

    fn zone() -> Zone {
        let mut zone = Zone::default();
        zone.set(1, member(2, &["db-host", "my_db", "my-db"], true));
        for n in 1..=100u8 {
            zone.set(10 + u32::from(n), member(10 + n, &[&format!("web-{n}"), "web"], n != 50));
        }
        zone
    }

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut packet = Packet::new_query(0x1234);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(Question::new(
            Name::new(name).unwrap(),
            QTYPE::TYPE(TYPE::A),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        let mut bytes = packet.build_bytes_vec().unwrap();
        let at = bytes.len() - 4;
        bytes[at..at + 2].copy_from_slice(&kind.to_be_bytes());
        bytes
    }

    /// What is said, and which records come with it.
    fn ask(zone: &mut Zone, name: &str, kind: u16) -> (RCODE, Vec<String>) {
        let bytes = zone.answer(&mut query(name, kind), (0, ip(2)), 65535).here().unwrap();
        let packet = Packet::parse(&bytes).unwrap();
        assert!(packet.has_flags(PacketFlag::AUTHORITATIVE_ANSWER) && !packet.has_flags(PacketFlag::TRUNCATION));
        assert!(packet.answers.iter().all(|record| record.ttl == 0));
        let text = |record: &ResourceRecord<'_>| match &record.rdata {
            RData::A(a) => Ipv4Addr::from(a.address).to_string(),
            RData::AAAA(a) => Ipv6Addr::from(a.address).to_string(),
            RData::PTR(name) => name.to_string(),
            other => panic!("{other:?}"),
        };
        (packet.rcode(), packet.answers.iter().map(text).collect())
    }

    impl Answer {
        fn here(self) -> Option<Vec<u8>> {
            match self {
                Self::Here(bytes) => Some(bytes),
                Self::Outside(..) => panic!("asked outside"),
                Self::None => None,
            }
        }
    }

    fn found(records: &[&str]) -> (RCODE, Vec<String>) {
        (RCODE::NoError, records.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn knows_what_it_was_told() {
        let mut zone = zone();
        for name in ["my_db", "my-db", "db-host", "MY-db", "My_DB."] {
            assert_eq!(ask(&mut zone, name, TYPE_A), found(&["10.89.0.2"]), "{name}");
            assert_eq!(ask(&mut zone, name, TYPE_AAAA), found(&[]), "{name}");
            assert_eq!(ask(&mut zone, name, ANY), found(&["10.89.0.2"]), "{name}");
        }
        for name in
            ["other", "my-db.example", "web-101", ".", "in-addr.arpa", "x.in-addr.arpa", "9.0.89.10.in-addr.arpa"]
        {
            for kind in [TYPE_A, TYPE_AAAA, TYPE_PTR, ANY, 16] {
                assert_eq!(ask(&mut zone, name, kind), (RCODE::NameError, vec![]), "{name}");
            }
        }
        assert_eq!(ask(&mut zone, "2.0.89.10.IN-addr.arpa", TYPE_PTR), found(&["db-host"]));
        assert_eq!(ask(&mut zone, "2.0.89.10.in-addr.arpa", TYPE_A), found(&[]));
        assert_eq!(ask(&mut zone, "1.0.0.127.in-addr.arpa", TYPE_PTR), found(&["localhost"]));
        assert_eq!(ask(&mut zone, "localhost", TYPE_A), found(&["127.0.0.1"]));
        assert_eq!(ask(&mut zone, "localhost", TYPE_AAAA), found(&["::1"]));
        assert_eq!(ask(&mut zone, "DB.example", TYPE_A), found(&["192.0.2.7"]));
        assert_eq!(ask(&mut zone, "db.example", TYPE_AAAA), found(&[]));
        // One that does not run is found by itself, and among others only where none runs.
        assert_eq!(ask(&mut zone, "web-50", TYPE_A), found(&["10.89.0.60"]));
        let (_, all) = ask(&mut zone, "web", TYPE_A);
        assert!(all.len() == 99 && !all.contains(&"10.89.0.60".to_owned()), "{all:?}");
        let firsts: BTreeSet<String> = (0..99).map(|_| ask(&mut zone, "web", TYPE_A).1.swap_remove(0)).collect();
        assert_eq!(firsts.len(), 99);
        for n in (1..=100).filter(|n| *n != 50) {
            zone.set(10 + n, None);
        }
        assert_eq!(ask(&mut zone, "web", TYPE_A), found(&["10.89.0.60"]));
        zone.set(60, None);
        assert_eq!(ask(&mut zone, "web", TYPE_A), (RCODE::NameError, vec![]));
        assert_eq!(zone.names.len(), 3, "nothing is left of those that went");
    }

    #[test]
    fn tells_of_networks_that_both_are_on() {
        let mut zone = Zone::default();
        let on = |network, last, names: &[&str]| On {
            network,
            ip: Ipv4Addr::new(10, network, 0, last),
            ip6: None,
            egress: false,
            names: names.iter().map(ToString::to_string).collect(),
        };
        let mut set = |cid, host: &str, on| zone.set(cid, Some(Member { host: host.into(), on, ..Member::default() }));
        set(1, "front", vec![on(1, 2, &["front"])]);
        set(2, "both", vec![on(1, 3, &["both", "proxy"]), on(2, 3, &["both", "upstream"])]);
        set(3, "back", vec![on(2, 2, &["back"])]);
        let mut ask = |network, last, name: &str, kind| {
            let answer = zone
                .answer(&mut query(name, kind), (network, Ipv4Addr::new(10, network, 0, last)), 512)
                .here()
                .unwrap();
            (answer[3] & 0xf, answer[7], answer[answer.len() - 4..].to_vec())
        };
        // `both` asks any of its servers, and finds everybody.
        for network in [1, 2] {
            assert_eq!(ask(network, 3, "front", TYPE_A), (0, 1, vec![10, 1, 0, 2]));
            assert_eq!(ask(network, 3, "back", TYPE_A), (0, 1, vec![10, 2, 0, 2]));
            assert_eq!(ask(network, 3, "upstream", TYPE_A), (0, 1, vec![10, 2, 0, 3]));
            assert_eq!(ask(network, 3, "2.0.2.10.in-addr.arpa", TYPE_PTR).1, 1);
        }
        // The others find it where they are, by the names that it has there.
        assert_eq!(ask(1, 2, "both", TYPE_A), (0, 1, vec![10, 1, 0, 3]));
        assert_eq!(ask(2, 2, "both", TYPE_A), (0, 1, vec![10, 2, 0, 3]));
        assert_eq!(ask(1, 2, "proxy", TYPE_A).1, 1);
        for (network, name) in [(1, "back"), (1, "upstream"), (2, "front"), (2, "proxy"), (2, "2.0.1.10.in-addr.arpa")]
        {
            assert_eq!(ask(network, 2, name, TYPE_PTR).0, 3, "{name} on {network}");
            assert_eq!(ask(network, 2, name, TYPE_A).0, 3, "{name} on {network}");
        }
        // An address counts on its own network only.
        let mut question = query("back", TYPE_A);
        assert_eq!(zone.answer(&mut question, (1, Ipv4Addr::new(10, 2, 0, 3)), 512).here().unwrap()[3] & 0xf, 5);
    }

    #[test]
    fn asks_outside_for_who_has_a_way_there() {
        let mut zone = Zone::default();
        let on = |network: u8, last, name: &str| {
            let ip = Ipv4Addr::new(10, network, 0, last);
            On { network, ip, ip6: None, egress: network == 1, names: vec![name.to_owned()] }
        };
        let mut set = |cid, host: &str, on| zone.set(cid, Some(Member { host: host.into(), on, ..Member::default() }));
        set(1, "inner", vec![on(2, 2, "inner")]);
        set(2, "outer", vec![on(1, 2, "outer")]);
        set(3, "both", vec![on(2, 3, "both"), on(1, 3, "both")]);
        let mut ask = |network, last, mut message: Vec<u8>| {
            let before = message.clone();
            let answer = zone.answer(&mut message, (network, Ipv4Addr::new(10, network, 0, last)), 512);
            match answer {
                Answer::Outside(length, _) => {
                    assert_eq!((&message, length), (&before, before.len()));
                    None
                }
                other => other.here().map(|answer| answer[3] & 0xf),
            }
        };
        // Of any type, through whichever of its name servers.
        for (network, last) in [(1, 2), (1, 3), (2, 3)] {
            for name in ["example.org", "other", "1.1.1.1.in-addr.arpa", "x.ip6.arpa"] {
                for kind in [TYPE_A, TYPE_AAAA, TYPE_PTR, ANY, 65, 65_399] {
                    assert_eq!(ask(network, last, query(name, kind)), None, "{name}");
                }
            }
        }
        assert_eq!(ask(2, 2, query("example.org", TYPE_A)), Some(3), "no way out");
        // What others have here, and whose addresses these are, nobody outside is asked.
        for name in ["inner", "9.0.0.10.in-addr.arpa", "1.1.168.192.in-addr.arpa"] {
            assert_eq!(ask(1, 2, query(name, TYPE_A)), Some(3), "{name}");
        }
        assert_eq!(ask(1, 2, query("localhost", TYPE_A)), Some(0));
        let mut unasked = query("example.org", TYPE_A);
        unasked[2] &= !1;
        assert_eq!(ask(1, 2, unasked), Some(3), "without recursion");
    }

    #[test]
    fn tells_of_both_kinds_of_addresses() {
        let mut zone = Zone::default();
        let six = |last| Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, last);
        for last in [2, 3, 4] {
            let ip6 = (last != 4).then(|| six(last.into()));
            let on = vec![On { network: 0, ip: ip(last), ip6, egress: true, names: vec!["web".into()] }];
            let member = Member { host: format!("web-{last}"), on, running: true, ..Member::default() };
            zone.set(last.into(), Some(member));
        }
        // Each kind has its own turn.
        let firsts: Vec<_> =
            [TYPE_A, TYPE_AAAA, TYPE_A, TYPE_AAAA].map(|kind| ask(&mut zone, "web", kind).1.remove(0)).into();
        assert_eq!(firsts, ["10.89.0.2", "fd00:1:2:3::2", "10.89.0.3", "fd00:1:2:3::3"]);
        assert_eq!(ask(&mut zone, "web", ANY).1.len(), 5);
        let reverse = |ip: Ipv6Addr| {
            let digits = ip.octets().map(|octet| format!("{:x}.{:x}", octet & 0xf, octet >> 4));
            let digits: Vec<_> = digits.into_iter().rev().collect();
            format!("{}.ip6.arpa", digits.join("."))
        };
        assert_eq!(ask(&mut zone, &reverse(six(3)), TYPE_PTR), found(&["web-3"]));
        assert_eq!(ask(&mut zone, &reverse(Ipv6Addr::LOCALHOST), TYPE_PTR), found(&["localhost"]));
        // Of what is nobody's here, and of no other, nobody outside is asked.
        assert_eq!(ask(&mut zone, &reverse(six(9)), TYPE_PTR).0, RCODE::NameError);
        for name in [reverse("2001:db8::1".parse().unwrap()), reverse(six(3))[2..].to_owned(), "x.ip6.arpa".to_owned()]
        {
            let asked = zone.answer(&mut query(&name, TYPE_PTR), (0, ip(2)), 512);
            assert!(matches!(asked, Answer::Outside(..)), "{name}: {asked:?}");
        }
        // It is not found any more once it is gone.
        zone.set(3, None);
        assert_eq!(ask(&mut zone, &reverse(six(3)), TYPE_PTR).0, RCODE::NameError);
    }

    #[test]
    fn says_as_much_as_fits() {
        let mut zone = zone();
        let bytes = zone.answer(&mut query("WeB", TYPE_A), (0, ip(2)), UDP_LIMIT).here().unwrap();
        assert!((UDP_LIMIT - 16..=UDP_LIMIT).contains(&bytes.len()), "{}", bytes.len());
        let packet = Packet::parse(&bytes).unwrap();
        assert!(packet.has_flags(PacketFlag::TRUNCATION));
        assert_eq!((packet.answers.len(), packet.rcode()), (30, RCODE::NoError));
        assert_eq!(packet.questions[0].qname.to_string(), "WeB");
        let bytes = zone.answer(&mut query("web", TYPE_A), (0, ip(2)), 65535).here().unwrap();
        assert_eq!(Packet::parse(&bytes).unwrap().answers.len(), 99);
    }

    #[test]
    fn refuses_what_is_no_question() {
        let mut zone = zone();
        let good = query("my-db", TYPE_A);
        let rcode = |zone: &mut Zone, bytes: &[u8], from| {
            zone.answer(&mut bytes.to_vec(), (0, from), UDP_LIMIT).here().map(|answer| {
                assert_eq!((&answer[..2], answer[2] & 0x80), (&bytes[..2], 0x80));
                answer[3] & 0xf
            })
        };
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            bytes
        };
        assert_eq!(rcode(&mut zone, &good, ip(2)), Some(0));
        assert_eq!(rcode(&mut zone, &good, ip(9)), Some(5), "from somebody else");
        for length in 0..12 {
            assert_eq!(zone.answer(&mut good[..length].to_vec(), (0, ip(2)), 512), Answer::None);
        }
        for length in 12..good.len() {
            assert_eq!(rcode(&mut zone, &good[..length], ip(2)), Some(1), "{length}");
        }
        assert_eq!(rcode(&mut zone, &changed(2, 0x81), ip(2)), None, "an answer");
        assert_eq!(rcode(&mut zone, &changed(2, 0x20), ip(2)), Some(4), "a notification");
        assert_eq!(rcode(&mut zone, &changed(2, 0x78), ip(2)), Some(4), "no opcode that there is");
        for (at, to) in [(4, 1), (5, 0), (5, 2), (12, 0xc0), (12, 0x40), (12, 0x80), (12, 63), (18, 200)] {
            assert_eq!(rcode(&mut zone, &changed(at, to), ip(2)), Some(1), "{at} {to}");
        }
        let mut pointer = good[..12].to_vec();
        pointer.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(rcode(&mut zone, &pointer, ip(2)), Some(1), "a name that points to itself");
        let mut long = good[..12].to_vec();
        for _ in 0..5 {
            long.push(63);
            long.extend([b'x'; 63]);
        }
        long.extend([0, 0, 1, 0, 1]);
        assert_eq!(rcode(&mut zone, &long, ip(2)), Some(1), "a name that is too long");
        // Counts that nothing follows, EDNS and unknown kinds are no reason not to answer.
        for (at, to) in [(6, 0xff), (8, 0xff), (10, 0xff), (3, 0x70)] {
            assert_eq!(rcode(&mut zone, &changed(at, to), ip(2)), Some(0), "{at}");
        }
        let odd = zone.answer(&mut query("my-db", 65_399), (0, ip(2)), 512).here().unwrap();
        assert_eq!((odd[3] & 0xf, &odd[odd.len() - 4..]), (0, &[0xff, 0x77, 0, 1][..]));
        let class = good.len() - 1;
        assert_eq!(rcode(&mut zone, &changed(class, 3), ip(2)), Some(5), "another class");
    }

    #[test]
    fn stands_anything() {
        let mut zone = zone();
        let seeds = [query("my-db", TYPE_A), query("2.0.89.10.in-addr.arpa", TYPE_PTR), query("a.b.c.d.e.f", ANY)];
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for round in 0..200_000 {
            let mut bytes = seeds[round % 3].clone();
            for _ in 0..random() % 6 {
                let at = random() % bytes.len();
                match random() % 3 {
                    0 => bytes[at] = random() as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random() as u8),
                }
            }
            let answer = zone.answer(&mut bytes.clone(), (0, ip(2)), UDP_LIMIT).here();
            assert!(answer.is_none_or(|answer| answer.len() <= UDP_LIMIT && answer[..2] == bytes[..2]));
        }
    }
}
