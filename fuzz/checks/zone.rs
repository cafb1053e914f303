//! Whatever is asked of the name server, the answer is one to that question, no longer than it may be, and tells who asks
//! nothing of networks that it is not on; only who is on a network with a way out is asked on for, as he asked.

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr};

use simple_dns::Packet;
use simple_dns::rdata::RData;

use super::zone::{Answer, Member, On, UDP_LIMIT, Zone};

/// Who asks, by network and the last byte of the address there: `front`, `both` on each of its networks, `back`, nobody.
const ASKING: [(u8, u8); 5] = [(1, 2), (1, 3), (2, 3), (2, 2), (1, 99)];
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

thread_local! {
    static ZONE: RefCell<Zone> = RefCell::new(zone());
}

fn zone() -> Zone {
    let mut zone = Zone::default();
    let on = |network, last, names: &[&str]| On {
        network,
        ip: Ipv4Addr::new(10, network, 0, last),
        // Network 1 has IPv6.
        ip6: (network == 1).then(|| Ipv6Addr::new(0xfd00, network.into(), 0, 0, 0, 0, 0, u16::from(last))),
        // Network 2 has a way out.
        egress: network == 2,
        names: names.iter().map(ToString::to_string).collect(),
    };
    let mut set = |cid, host: &str, on, hosts| {
        zone.set(cid, Some(Member { host: host.to_owned(), on, running: cid != 14, hosts, ..Member::default() }));
    };
    set(1, "front", vec![on(1, 2, &["front"])], vec![("own.example".to_owned(), OWN.into())]);
    set(2, "both", vec![on(1, 3, &["both", "proxy"]), on(2, 3, &["both", "upstream"])], Vec::new());
    set(3, "back", vec![on(2, 2, &["back", "web"])], Vec::new());
    for last in 10..60 {
        set(last.into(), "many", vec![on(1, last, &["web"])], Vec::new());
    }
    zone
}

pub(crate) fn run(bytes: &[u8]) {
    let [how, message @ ..] = bytes else { return };
    let (network, last) = ASKING[usize::from(how >> 1) % ASKING.len()];
    let limit = if how & 1 == 0 { UDP_LIMIT } else { 65_535 };
    let from = (network, Ipv4Addr::new(10, network, 0, last));
    let mut read = message.to_vec();
    let answer = ZONE.with_borrow_mut(|zone| zone.answer(&mut read, from, limit));
    let is_question = message.len() >= 12 && message[2] & 0x80 == 0;
    assert_eq!(answer != Answer::None, is_question, "an answer to no question, or none to one");
    let mut answer = match answer {
        Answer::Here(answer) => answer,
        Answer::Outside(end, _) => {
            assert!([(2, 2), (2, 3), (1, 3)].contains(&(network, last)) && message[2] & 1 == 1, "asked on");
            assert!(end <= message.len() && read == message, "another question");
            return;
        }
        Answer::None => return,
    };
    assert!((12..=limit).contains(&answer.len()), "{} bytes", answer.len());
    assert_eq!((&answer[..2], answer[2] & 0x80), (&message[..2], 0x80));
    let (questions, code) = (u16::from_be_bytes([answer[4], answer[5]]), answer[3] & 0xf);
    if questions == 0 {
        assert!(answer.len() == 12 && code != 0, "{answer:?}");
        return;
    }
    let mut end = 12;
    while message[end] != 0 {
        end += 1 + usize::from(message[end]);
    }
    end += 5;
    assert_eq!(answer[12..end], message[12..end], "another question");
    // The parser knows few kinds of questions.
    answer[end - 4..end].copy_from_slice(&[0, 1, 0, 1]);
    let packet = Packet::parse(&answer).expect("an answer that can be read");
    assert!(packet.answers.is_empty() || code == 0, "{packet:?}");
    assert!(last != 99 || code == 5, "an answer to a stranger: {packet:?}");
    let networks: &[u8] = match (network, last) {
        (_, 3) => &[1, 2],
        (1, _) => &[1],
        _ => &[2],
    };
    for record in &packet.answers {
        assert_eq!((&record.name, record.ttl), (&packet.questions[0].qname, 0));
        match &record.rdata {
            RData::A(a) => {
                let ip = Ipv4Addr::from(a.address);
                let near = ip.octets()[0] == 10 && networks.contains(&ip.octets()[1]);
                assert!(near || ip.is_loopback() || (ip == OWN && from == (1, Ipv4Addr::new(10, 1, 0, 2))), "{ip}");
            }
            RData::AAAA(a) => {
                let near = networks.contains(&1) && a.address >> 112 == 0xfd00;
                assert!(near || a.address == 1, "{}", Ipv6Addr::from(a.address));
            }
            RData::PTR(host) => {
                let host = host.0.to_string();
                let known: &[&str] = match networks {
                    [1] => &["front", "both", "many", "localhost"],
                    [2] => &["back", "both", "localhost"],
                    _ => &["front", "both", "back", "many", "localhost"],
                };
                assert!(known.contains(&host.as_str()), "{host}");
            }
            other => panic!("{other:?}"),
        }
    }
}
