//! The verdict against a second opinion, made of rules and wishes that the input chooses: a container is refused exactly
//! where some rule forbids what it asks for. The opinion is slow and plain, and shares no code with the verdict.

use std::net::Ipv4Addr;

use containust_policy::capabilities;
use containust_policy::conf::{Access, Filter, parse};
use containust_policy::judge::{Caller, HostPath, Limits, Port, Purpose, Spec, judge, tell};
use containust_shared::protocol::{Plan, ToContainer};
use containust_shared::wire::decode;

const ACCESS: [Access; 3] = [Access::Deny, Access::ReadOnly, Access::ReadWrite];
const FILTERS: [Filter; 3] = [Filter::Strict, Filter::Default, Filter::Compat];
const PORTS: [u16; 4] = [1, 79, 80, 65_535];
const ADDRESSES: [[u8; 4]; 3] = [[0, 0, 0, 0], [127, 0, 0, 1], [10, 0, 0, 1]];

/// Numbers taken from the input, 0 where it is at its end.
struct Choice<'a>(&'a [u8]);

impl Choice<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    fn is(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn maybe(&mut self) -> Option<u64> {
        let byte = self.byte();
        (byte > 63).then(|| u64::from(byte % 5) + 1)
    }

    /// Parts of a path: none to three, of two names where one begins the other.
    fn path(&mut self) -> Vec<&'static str> {
        (0..self.byte() % 4).map(|_| if self.is() { "ab" } else { "a" }).collect()
    }
}

fn written(path: &[&str]) -> String {
    format!("/{}", path.join("/"))
}

/// What the verdict should be, and the file that says the rules.
pub(crate) fn run(bytes: &[u8]) {
    plan(bytes);
    let from = &mut Choice(bytes);
    let mut text = String::new();
    let (uid, group, strict) = (u32::from(from.byte() % 3), 10 + u32::from(from.byte() % 3), from.is());
    let mut allowed = true;

    let admitted: Vec<(bool, u32)> = (0..from.byte() % 3).map(|_| (from.is(), u32::from(from.byte() % 13))).collect();
    if !admitted.is_empty() {
        let named = |&(is_user, id): &(bool, u32)| if is_user { id == uid } else { id == group };
        allowed &= uid == 0 || admitted.iter().any(named);
    }
    let mut admitted = admitted;
    admitted.sort_unstable();
    admitted.dedup();
    for (is_user, id) in &admitted {
        text += &format!("allow = {} {id}\n", if *is_user { "user" } else { "group" });
    }

    let mut mounts: Vec<(Vec<&str>, Access)> = (0..from.byte() % 6).map(|_| (from.path(), from.of(&ACCESS))).collect();
    mounts.sort_by(|a, b| a.0.cmp(&b.0));
    mounts.dedup_by(|a, b| a.0 == b.0);
    for (path, access) in &mounts {
        text += &format!("mount = {} {}\n", access.name(), written(path));
    }
    let given = |path: &[&str]| {
        // The longest that is the path or above it.
        let above = mounts.iter().filter(|(of, _)| path.len() >= of.len() && path[..of.len()] == of[..]);
        above.max_by_key(|(of, _)| of.len()).map_or(Access::ReadWrite, |(_, access)| *access)
    };
    let wished: Vec<(Vec<&str>, bool)> = (0..from.byte() % 5).map(|_| (from.path(), from.is())).collect();
    for (path, is_writable) in &wished {
        let wanted = if *is_writable { Access::ReadWrite } else { Access::ReadOnly };
        // It is mounted with all that is below it.
        let mut below = mounts.iter().filter(|(of, _)| of.len() > path.len() && of[..path.len()] == path[..]);
        allowed &= given(path) >= wanted && below.all(|(_, access)| *access >= wanted);
    }

    let extra: Vec<u8> = (0..64).filter(|n| capabilities::CEILING & !capabilities::DEFAULT & 1 << n != 0).collect();
    let mut rights: Vec<u8> = (0..from.byte() % 3).map(|_| from.of(&extra)).collect();
    rights.sort_unstable();
    rights.dedup();
    let none = rights.is_empty() && from.is();
    if none {
        text += "capability = none\n";
    }
    for number in &rights {
        text += &format!("capability = {}\n", capabilities::name(*number));
    }
    let asked = (0..from.byte() % 4).fold(0u64, |mask, _| mask | 1 << (from.byte() % 64));
    for number in (0..64u8).filter(|n| asked & 1 << n != 0) {
        let usual = capabilities::DEFAULT & 1 << number != 0;
        let extra = extra.contains(&number) && (rights.contains(&number) || (rights.is_empty() && !none));
        allowed &= usual || extra;
    }

    let filter = from.of(&FILTERS);
    let loosest = match from.byte() % 4 {
        0 => FILTERS[if strict { 1 } else { 2 }],
        n => {
            text += &format!("filter = {}\n", FILTERS[usize::from(n) - 1].name());
            FILTERS[usize::from(n) - 1]
        }
    };
    let order = |filter| FILTERS.iter().position(|other| *other == filter);
    allowed &= order(filter) <= order(loosest);

    let overlay = from.is();
    let overlays = match from.byte() % 3 {
        0 => !strict,
        n => {
            text += if n == 1 { "overlay = yes\n" } else { "overlay = no\n" };
            n == 1
        }
    };
    allowed &= !overlay || overlays;

    let mut published: Vec<([u8; 4], bool, u16, u16)> = (0..from.byte() % 3)
        .map(|_| {
            let (address, a, b) = (from.of(&ADDRESSES), from.of(&PORTS), from.of(&PORTS));
            (address, from.is(), a.min(b), a.max(b))
        })
        .collect();
    published.sort_unstable();
    published.dedup();
    let nowhere = published.is_empty() && from.is();
    if nowhere {
        text += "publish = none\n";
    }
    for (address, udp, first, last) in &published {
        let at = if *address == [0; 4] { "any".to_owned() } else { Ipv4Addr::from(*address).to_string() };
        text += &format!("publish = {at} {first}-{last}{}\n", if *udp { "/udp" } else { "" });
    }
    let ports: Vec<([u8; 4], bool, u16)> =
        (0..from.byte() % 3).map(|_| (from.of(&ADDRESSES), from.is(), from.of(&PORTS))).collect();
    for (address, udp, port) in &ports {
        let fits = |(at, of, first, last): &([u8; 4], bool, u16, u16)| {
            (*at == [0; 4] || at == address) && of == udp && (*first..=*last).contains(port)
        };
        allowed &= published.iter().any(fits) || (published.is_empty() && !nowhere);
    }

    let limits = from.is().then(|| [from.maybe(), from.maybe(), from.maybe()]);
    let most = [from.maybe(), from.maybe(), from.maybe()];
    for (key, most) in ["max_memory", "max_cpus", "max_pids"].iter().zip(most) {
        if let Some(most) = most {
            text += &format!("{key} = {most}\n");
        }
    }
    if let Some(own) = limits {
        for (index, (own, most)) in own.iter().zip(most).enumerate() {
            let most = most.map(|most| if index == 1 { most * 1000 } else { most });
            allowed &= most.is_none_or(|most| own.is_some_and(|own| own <= most));
        }
    }

    let egress = from.is();
    match from.byte() % 3 {
        0 => {}
        n => {
            text += if n == 1 { "egress = yes\n" } else { "egress = no\n" };
            allowed &= !egress || n == 1;
        }
    }
    let mut kept: Vec<(u8, u32)> =
        (0..from.byte() % 3).map(|_| (from.byte() % 3, u32::from(from.byte() % 13))).collect();
    kept.iter_mut().filter(|(kind, _)| *kind == 0).for_each(|(_, id)| *id = 0);
    kept.sort_unstable();
    kept.dedup();
    for (kind, id) in &kept {
        let (who, fits) = match kind {
            0 => ("everyone".to_owned(), true),
            1 => (format!("user {id}"), *id == uid),
            _ => (format!("group {id}"), *id == group),
        };
        text += &format!("offline = {who}\n");
        allowed &= !(egress && fits);
    }

    let rules = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}:\n{text}"));
    let paths: Vec<(String, bool)> = wished.iter().map(|(path, writable)| (written(path), *writable)).collect();
    let host = |(path, writable): &'_ (String, bool)| (path.clone(), *writable);
    let owned: Vec<(String, bool)> = paths.iter().map(host).collect();
    let spec = Spec {
        paths: owned
            .iter()
            .map(|(path, writable)| HostPath {
                path: path.as_bytes(),
                writable: *writable,
                purpose: Purpose::Mount,
                target: b"/x",
            })
            .collect(),
        overlay,
        fuse: false,
        capabilities: asked,
        filter,
        ports: ports.iter().map(|&(address, udp, port)| Port { place: (address, port).into(), udp }).collect(),
        egress,
        limits: limits.map(|[memory, cpu_millis, pids]| Limits { memory, cpu_millis, pids }),
    };
    let caller = Caller::new(uid, vec![group], b"", b"", strict);
    let verdict = judge(&spec, &rules, &caller);
    assert_eq!(verdict.is_ok(), allowed, "{spec:?}\n{text}uid {uid} group {group} strict {strict}: {verdict:?}");
}

/// What C does with a message: any plan has a verdict, which a person can read.
fn plan(bytes: &[u8]) {
    let Ok(ToContainer::Plan(plan)) = decode::<ToContainer>(bytes) else { return };
    let plan: &Plan = &plan;
    let rules = parse(b"mount = deny /\nmount = ro /a\noverlay = no\n").expect("rules as they are written");
    let caller = Caller::new(1, vec![1], b"", b"", true);
    match judge(&Spec::of(plan), &rules, &caller) {
        Ok(()) => {
            let inside = |path: &[u8]| path == b"/a" || path.starts_with(b"/a/");
            let sources = plan.layers.iter().chain(&plan.upper).chain(&plan.work);
            assert!(sources.map(|source| source.path.as_slice()).all(inside));
            assert_eq!(plan.capabilities & !capabilities::CEILING, 0);
        }
        Err(denials) => {
            let said = tell(&denials);
            assert!(!denials.is_empty() && said.len() < 20_000 && !said.chars().any(char::is_control), "{said}");
        }
    }
}
