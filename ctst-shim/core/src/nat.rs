//! Giving what leaves a network namespace by one link that link's own address as its sender, by nftables (`nft(8)`,
//! `linux/netfilter/nf_tables.h`), and letting nothing pass there that belongs to no connection: that would keep its sender.

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
const LEAVE: &str = "postrouting";
const PASS: &str = "forward";

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

const CT_DREG: u16 = 1;
const CT_KEY: u16 = 2;
const BITWISE_SREG: u16 = 1;
const BITWISE_DREG: u16 = 2;
const BITWISE_LEN: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const IMMEDIATE_DREG: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;

/// `NF_INET_FORWARD`, `NF_INET_POST_ROUTING`, and the places of filters and of the translation of source addresses there.
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
const FILTER: u32 = 0;
const SRCNAT: u32 = 100;
/// `NFT_REG_VERDICT`, `NFT_REG_1`, `NFT_META_IIF`, `NFT_META_OIF`, `NFT_CT_STATE`, `NFT_CMP_EQ`, `NF_DROP`
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const INCOMING: u32 = 4;
const OUTGOING: u32 = 5;
const STATE: u32 = 0;
const EQUAL: u32 = 0;
const DROP: u32 = 0;
/// `NF_CT_STATE_BIT` of `IP_CT_ESTABLISHED` and `IP_CT_RELATED`, and of `IP_CT_NEW`: what is of none is invalid.
const ANSWERS: u32 = 2 | 4;
const NEW: u32 = 8;

/// Masquerades what leaves by the link with the index `out`, and drops what would leave there without, and what comes from there and
/// answers nothing. Once in a network namespace.
///
/// # Errors
/// EOPNOTSUPP or ENOENT where the kernel has no nf_tables, or no nft_masq, module; EEXIST, and others.
pub fn masquerade(out: u32) -> io::Result<()> {
    let mut table = message(NEWTABLE, REQUEST | CREATE_EXCL);
    table.string(TABLE_NAME, TABLE);
    let pass = chain(PASS, "filter", (FORWARD, FILTER));
    let leave = chain(LEAVE, "nat", (POSTROUTING, SRCNAT));
    let invalid = rule(REQUEST, PASS, |list| {
        is_link(list, OUTGOING, out);
        is_in_no_state(list, ANSWERS | NEW);
        drops(list);
    });
    let unasked = rule(REQUEST, PASS, |list| {
        is_link(list, INCOMING, out);
        is_in_no_state(list, ANSWERS);
        drops(list);
    });
    let masquerades = rule(REQUEST_ACK, LEAVE, |list| {
        is_link(list, OUTGOING, out);
        expression(list, "masq", |_| {});
    });
    let mut batch = [batch(BATCH_BEGIN), table, pass, leave, invalid, unasked, masquerades, batch(BATCH_END)];
    Socket::open(Some(NETFILTER))?.request(&mut batch)
}

fn chain(name: &str, kind: &str, (hook, priority): (u32, u32)) -> Message {
    let mut chain = message(NEWCHAIN, REQUEST | CREATE);
    chain.string(CHAIN_TABLE, TABLE);
    chain.string(CHAIN_NAME, name);
    chain.string(CHAIN_TYPE, kind);
    chain.nest(CHAIN_HOOK, |place| {
        number(place, HOOK_NUMBER, hook);
        number(place, HOOK_PRIORITY, priority);
    });
    chain
}

fn rule(flags: u16, chain: &str, expressions: impl FnOnce(&mut Message)) -> Message {
    let mut rule = message(NEWRULE, flags | CREATE | APPEND);
    rule.string(RULE_TABLE, TABLE);
    rule.string(RULE_CHAIN, chain);
    rule.nest(RULE_EXPRESSIONS, expressions);
    rule
}

/// Goes on where the packet's link of this kind has that index.
fn is_link(list: &mut Message, key: u32, index: u32) {
    expression(list, "meta", |data| {
        number(data, META_DREG, REGISTER);
        number(data, META_KEY, key);
    });
    equals(list, index);
}

/// Goes on where the packet's connection is in none of these states.
fn is_in_no_state(list: &mut Message, states: u32) {
    expression(list, "ct", |data| {
        number(data, CT_DREG, REGISTER);
        number(data, CT_KEY, STATE);
    });
    expression(list, "bitwise", |data| {
        number(data, BITWISE_SREG, REGISTER);
        number(data, BITWISE_DREG, REGISTER);
        number(data, BITWISE_LEN, 4);
        data.nest(BITWISE_MASK, |mask| mask.attribute(DATA_VALUE, &states.to_ne_bytes()));
        data.nest(BITWISE_XOR, |xor| xor.attribute(DATA_VALUE, &[0; 4]));
    });
    equals(list, 0);
}

fn equals(list: &mut Message, value: u32) {
    expression(list, "cmp", |data| {
        number(data, CMP_SREG, REGISTER);
        number(data, CMP_OP, EQUAL);
        data.nest(CMP_DATA, |data| data.attribute(DATA_VALUE, &value.to_ne_bytes()));
    });
}

fn drops(list: &mut Message) {
    expression(list, "immediate", |data| {
        number(data, IMMEDIATE_DREG, VERDICT);
        data.nest(IMMEDIATE_DATA, |data| data.nest(DATA_VERDICT, |verdict| number(verdict, VERDICT_CODE, DROP)));
    });
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
