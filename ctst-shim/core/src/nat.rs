//! Giving what leaves a network namespace by one link that link's own address as its sender, by nftables (`nft(8)`,
//! `linux/netfilter/nf_tables.h`), and letting nothing pass there that belongs to no connection: that would keep its sender.
//! And telling by a mark what answers connections of the namespace's own sockets, whose addresses may be somebody else's.

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
const ARRIVE: &str = "prerouting";
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
const META_SREG: u16 = 3;
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

/// `NF_INET_PRE_ROUTING`, `NF_INET_FORWARD`, `NF_INET_POST_ROUTING`, and the places there of what changes packets (-150), of
/// filters, and of the translation of source addresses.
const PREROUTING: u32 = 0;
const MANGLE: u32 = 0u32.wrapping_sub(150);
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
const FILTER: u32 = 0;
const SRCNAT: u32 = 100;
/// `NFT_REG_VERDICT`, `NFT_REG_1`, `NFT_META_MARK`, `NFT_META_IIF`, `NFT_META_OIF`, `NFT_CT_STATE`, `NFT_CT_DIRECTION`, `NFT_CMP_EQ`,
/// `NFT_CMP_NEQ`, `NF_DROP`
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const MARK: u32 = 3;
const INCOMING: u32 = 4;
const OUTGOING: u32 = 5;
const STATE: u32 = 0;
const DIRECTION: u32 = 1;
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
const DROP: u32 = 0;
/// `NF_CT_STATE_BIT` of `IP_CT_ESTABLISHED` and `IP_CT_RELATED`, and of `IP_CT_NEW`: what is of none is invalid.
const ANSWERS: u32 = 2 | 4;
const NEW: u32 = 8;
/// `IP_CT_DIR_REPLY`
const REPLY: u8 = 1;

/// The mark of what answers.
pub const ANSWER: u32 = 1;

/// Masquerades what leaves by the link with the index `out`, and drops what would leave there without, and what comes from there and
/// answers nothing. What comes from there and is no packet of any connection is dropped before this namespace would take it for its own
/// and reset a connection of somebody else's: `nf_conntrack` calls TCP segments without flags so, which passt 2023_03_09 sends. What
/// answers and does not come from there, and so is for a socket of this namespace, gets the mark [`ANSWER`]. Once in a network namespace.
///
/// # Errors
/// EOPNOTSUPP or ENOENT where the kernel has no nf_tables, or no nft_masq, module; EEXIST, and others.
pub fn masquerade(out: u32) -> io::Result<()> {
    let mut table = message(NEWTABLE, REQUEST | CREATE_EXCL);
    table.string(TABLE_NAME, TABLE);
    let arrive = chain(ARRIVE, "filter", (PREROUTING, MANGLE));
    let pass = chain(PASS, "filter", (FORWARD, FILTER));
    let leave = chain(LEAVE, "nat", (POSTROUTING, SRCNAT));
    let answers = rule(REQUEST, ARRIVE, |list| {
        load_link(list, INCOMING);
        compare(list, UNEQUAL, &out.to_ne_bytes());
        load_connection(list, DIRECTION);
        compare(list, EQUAL, &[REPLY]);
        marks(list);
    });
    let strange = |chain, link| {
        rule(REQUEST, chain, |list| {
            is_link(list, link, out);
            is_in_no_state(list, ANSWERS | NEW);
            drops(list);
        })
    };
    let (stray, invalid) = (strange(ARRIVE, INCOMING), strange(PASS, OUTGOING));
    let unasked = rule(REQUEST, PASS, |list| {
        is_link(list, INCOMING, out);
        is_in_no_state(list, ANSWERS);
        drops(list);
    });
    let masquerades = rule(REQUEST_ACK, LEAVE, |list| {
        is_link(list, OUTGOING, out);
        expression(list, "masq", |_| {});
    });
    let (begin, end) = (batch(BATCH_BEGIN), batch(BATCH_END));
    let mut batch = [begin, table, arrive, pass, leave, answers, stray, invalid, unasked, masquerades, end];
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
    load_link(list, key);
    compare(list, EQUAL, &index.to_ne_bytes());
}

fn load_link(list: &mut Message, key: u32) {
    expression(list, "meta", |data| {
        number(data, META_DREG, REGISTER);
        number(data, META_KEY, key);
    });
}

fn load_connection(list: &mut Message, key: u32) {
    expression(list, "ct", |data| {
        number(data, CT_DREG, REGISTER);
        number(data, CT_KEY, key);
    });
}

/// Goes on where the packet's connection is in none of these states.
fn is_in_no_state(list: &mut Message, states: u32) {
    load_connection(list, STATE);
    expression(list, "bitwise", |data| {
        number(data, BITWISE_SREG, REGISTER);
        number(data, BITWISE_DREG, REGISTER);
        number(data, BITWISE_LEN, 4);
        data.nest(BITWISE_MASK, |mask| mask.attribute(DATA_VALUE, &states.to_ne_bytes()));
        data.nest(BITWISE_XOR, |xor| xor.attribute(DATA_VALUE, &[0; 4]));
    });
    compare(list, EQUAL, &[0; 4]);
}

fn compare(list: &mut Message, how: u32, value: &[u8]) {
    expression(list, "cmp", |data| {
        number(data, CMP_SREG, REGISTER);
        number(data, CMP_OP, how);
        data.nest(CMP_DATA, |data| data.attribute(DATA_VALUE, value));
    });
}

fn marks(list: &mut Message) {
    expression(list, "immediate", |data| {
        number(data, IMMEDIATE_DREG, REGISTER);
        data.nest(IMMEDIATE_DATA, |data| data.attribute(DATA_VALUE, &ANSWER.to_ne_bytes()));
    });
    expression(list, "meta", |data| {
        number(data, META_KEY, MARK);
        number(data, META_SREG, REGISTER);
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
