//! Giving what leaves a network namespace by one link that link's own address as its sender, by nftables (`nft(8)`,
//! `linux/netfilter/nf_tables.h`).

use std::io;

use crate::netlink::{CREATE, CREATE_EXCL, Message, REQUEST, REQUEST_ACK, Socket};

const NETFILTER: rustix::net::Protocol = rustix::net::netlink::NETFILTER;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
const APPEND: u16 = 0x800;
/// `NFPROTO_IPV4`
const IPV4: u8 = 2;

const TABLE: &str = "ctst";
const CHAIN: &str = "postrouting";

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const META_DREG: u16 = 1;
const META_KEY: u16 = 2;
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const DATA_VALUE: u16 = 1;

/// `NF_INET_POST_ROUTING`, and where source addresses are translated there.
const POSTROUTING: u32 = 4;
const SRCNAT: u32 = 100;
/// `NFT_REG_1`, `NFT_META_OIF`, `NFT_CMP_EQ`
const REGISTER: u32 = 1;
const OUTGOING: u32 = 5;
const EQUAL: u32 = 0;

/// Masquerades what leaves by the link with the index `out`. Once in a network namespace.
///
/// # Errors
/// EOPNOTSUPP or ENOENT where the kernel has no nf_tables, or no nft_masq, module; EEXIST, and others.
pub fn masquerade(out: u32) -> io::Result<()> {
    let mut table = message(NEWTABLE, REQUEST | CREATE_EXCL);
    table.string(TABLE_NAME, TABLE);
    let mut chain = message(NEWCHAIN, REQUEST | CREATE);
    chain.string(CHAIN_TABLE, TABLE);
    chain.string(CHAIN_NAME, CHAIN);
    chain.string(CHAIN_TYPE, "nat");
    chain.nest(CHAIN_HOOK, |place| {
        number(place, HOOK_NUMBER, POSTROUTING);
        number(place, HOOK_PRIORITY, SRCNAT);
    });
    let mut rule = message(NEWRULE, REQUEST_ACK | CREATE | APPEND);
    rule.string(RULE_TABLE, TABLE);
    rule.string(RULE_CHAIN, CHAIN);
    rule.nest(RULE_EXPRESSIONS, |list| {
        expression(list, "meta", |data| {
            number(data, META_DREG, REGISTER);
            number(data, META_KEY, OUTGOING);
        });
        expression(list, "cmp", |data| {
            number(data, CMP_SREG, REGISTER);
            number(data, CMP_OP, EQUAL);
            data.nest(CMP_DATA, |value| value.attribute(DATA_VALUE, &out.to_ne_bytes()));
        });
        expression(list, "masq", |_| {});
    });
    let mut batch = [batch(BATCH_BEGIN), table, chain, rule, batch(BATCH_END)];
    Socket::open(Some(NETFILTER))?.request(&mut batch)
}

/// One with `struct nfgenmsg`.
fn message(kind: u16, flags: u16) -> Message {
    let mut message = Message::new(kind, flags);
    message.bytes.extend([IPV4, 0, 0, 0]);
    message
}

fn batch(kind: u16) -> Message {
    let mut message = Message::new(kind, REQUEST);
    message.bytes.extend([0, 0]);
    message.bytes.extend(SUBSYSTEM.to_be_bytes());
    message
}

/// Netfilter's numbers are big-endian.
fn number(message: &mut Message, kind: u16, value: u32) {
    message.attribute(kind, &value.to_be_bytes());
}

fn expression(list: &mut Message, name: &str, data: impl FnOnce(&mut Message)) {
    list.nest(LIST_ELEMENT, |expression| {
        expression.string(EXPRESSION_NAME, name);
        expression.nest(EXPRESSION_DATA, data);
    });
}
