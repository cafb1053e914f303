//! NETWORK, `network` and `networks`: who is on which network, by which names and with which addresses.

use std::net::{IpAddr, Ipv4Addr};

use foldhash::{HashMap, HashMapExt as _, HashSet};

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};
use crate::model::{Attachment, BRIDGE, Network, Subnet, Subnet6, When};
use crate::syntax::{Body, ValueKind};

use super::declare::{is_host_name, well_formed};
use super::inherit::{Setting, Settings};
use super::properties::NETWORK;
use super::resolve::{MOST_COMPARED, Origin, Scope};
use super::values::Read;
use super::{Checker, Role, some_of};

/// Most networks of a composition, and of one component.
const MOST: usize = 255;
const MOST_OF_ONE: usize = 16;

/// What a NETWORK says.
#[derive(Clone, Copy)]
pub(super) struct Declaration<'a> {
    pub(super) body: Option<&'a Body<'a>>,
    /// Once the parameters are known.
    pub(super) subnet: Option<Subnet>,
    /// The same of `internal = false`.
    pub(super) egress: bool,
    /// Of `ipv6`, and of an IPv6 subnet.
    pub(super) ipv6: bool,
    pub(super) subnet6: Option<Subnet6>,
}

impl Declaration<'_> {
    fn attachment(self, name: &str) -> Attachment {
        let Self { subnet, egress, ipv6, subnet6, .. } = self;
        Attachment { subnet, egress, ipv6, subnet6, ..Attachment::new(name) }
    }
}

/// A subnet of either kind.
#[derive(Clone, Copy)]
enum Either {
    Four(Subnet),
    Six(Subnet6),
}

impl Either {
    fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Four(one), Self::Four(other)) => one.overlaps(other),
            (Self::Six(one), Self::Six(other)) => one.overlaps(other),
            (Self::Four(_), Self::Six(_)) | (Self::Six(_), Self::Four(_)) => false,
        }
    }
}

/// Whether a component with this network is on the one with this name.
fn is_on(network: &Network, name: &str) -> bool {
    match network {
        Network::Bridge => name == BRIDGE,
        Network::None => false,
        Network::Named(list) => list.iter().any(|attachment| attachment.network == name),
    }
}

fn have_common(one: &Network, other: &Network) -> bool {
    match (one, other) {
        (Network::Bridge, other) | (other, Network::Bridge) => is_on(other, BRIDGE),
        (Network::Named(list), other) => list.iter().any(|attachment| is_on(other, &attachment.network)),
        (Network::None, _) => false,
    }
}

/// Those that stand for something else in every namespace.
fn is_special(subnet: Subnet) -> bool {
    let link_local = Subnet::new(Ipv4Addr::new(169, 254, 0, 0), 16);
    matches!(subnet.at(0).octets()[0], 0 | 127 | 224..) || link_local.is_some_and(|other| other.overlaps(subnet))
}

/// Whether it is of addresses that are somebody's own (RFC 4193), or may be (RFC 4291, 2.4).
fn is_unicast(subnet: Subnet6) -> bool {
    matches!(subnet.at(0).segments()[0], 0xfc00..0xfe00 | 0x2000..0x4000)
}

impl<'a> Checker<'a, '_> {
    /// Reads what the NETWORK statements say.
    pub(super) fn declared_networks(&mut self) {
        let mut said: Vec<(Either, Span)> = Vec::new();
        for place in 0..self.stores.networks.list.len() {
            let entry = &self.stores.networks.list[place];
            let (span, file, body) = (entry.span, entry.file, entry.what.body);
            if self.report.full() {
                return;
            }
            if place == MOST {
                self.finding(Code::OutOfRange, span, format!("there are more than {MOST} networks"))
                    .label("too many from here on")
                    .help("declare fewer");
                return;
            }
            let Some(body) = body else { continue };
            let mut settings = Settings::default();
            self.merge(&mut settings, body, Origin::File(file), &NETWORK);
            if let Some(setting) = settings.get("internal") {
                let egress = self.boolean(setting.read(), Scope::FILE) == Some(false);
                self.stores.to_mut().networks.list[place].what.egress = egress;
            }
            let wants = settings.get("ipv6").and_then(|setting| self.boolean(setting.read(), Scope::FILE));
            let (mut subnet, mut subnet6) = (None, None);
            if let Some(setting) = settings.get("subnet") {
                for item in self.items(setting, Scope::FILE).into_iter().flatten() {
                    let at = item.value.span;
                    let Some(written) = self.subnet((setting.property, item)) else { continue };
                    if let Some(&(_, other)) = said.iter().find(|(other, _)| other.overlaps(written)) {
                        self.finding(Code::BadSubnet, at, "two networks have addresses in common")
                            .label("overlaps")
                            .related(other, "with this one")
                            .help("give them subnets that do not overlap, or leave `subnet` out to have one chosen");
                        continue;
                    }
                    said.push((written, at));
                    let twice = match written {
                        Either::Four(four) => subnet.replace(four).is_some(),
                        Either::Six(six) => subnet6.replace(six).is_some(),
                    };
                    if twice {
                        self.finding(Code::BadSubnet, at, "a network has one subnet of IPv4, and one of IPv6")
                            .label("another one")
                            .help("declare another network for it");
                    }
                    if wants == Some(false) && matches!(written, Either::Six(_)) {
                        self.finding(Code::BadSubnet, at, "an IPv6 subnet is given to a network with `ipv6 = false`")
                            .label("no IPv6 there")
                            .help("leave out one of the two");
                    }
                }
            }
            let what = &mut self.stores.to_mut().networks.list[place].what;
            (what.subnet, what.subnet6, what.ipv6) = (subnet, subnet6, wants == Some(true) || subnet6.is_some());
        }
    }

    fn subnet(&mut self, setting: Read<'a>) -> Option<Either> {
        let span = setting.1.value.span;
        let text = self.filled(setting, Scope::FILE)?.into_owned();
        let subnet = if text.contains(':') {
            Subnet6::try_from(text).ok().filter(|subnet| is_unicast(*subnet)).map(Either::Six)
        } else {
            Subnet::try_from(text).ok().filter(|subnet| !is_special(*subnet)).map(Either::Four)
        };
        if subnet.is_none() {
            let written = self.shown(span);
            self.finding(Code::BadSubnet, span, format!("{written} is no subnet for a network"))
                .label("malformed or reserved")
                .expected(
                    "an IPv4 address and the length of its prefix, 8 to 30, or an IPv6 address in fc00::/7 or 2000::/3 and that, 8 to \
                     112, with no bit set behind it",
                )
                .help(format!("for example `{}`", setting.0.example));
        }
        subnet
    }

    /// What a component is on, and where that is written.
    pub(super) fn network(&mut self, scope: Scope, settings: &Settings<'a>) -> Option<(Network, Vec<Span>)> {
        if settings.get("networks").is_some() {
            return self.networks(scope, settings);
        }
        let Some(setting) = settings.get("network") else {
            let Some(entry) = self.stores.networks.get(BRIDGE) else { return Some((Network::Bridge, Vec::new())) };
            let (attachment, at) = (entry.what.attachment(BRIDGE), entry.span);
            self.uses.networks.insert(BRIDGE.to_owned());
            return Some((simplest(vec![attachment]), vec![at]));
        };
        let span = setting.value.value.span;
        match self.filled(setting.read(), scope)?.as_ref() {
            "none" => Some((Network::None, Vec::new())),
            "host" => {
                self.not_supported(span, "the host's network").help(
                    "leave it out; EXPOSE publishes its ports, and shows it its clients; `NETWORK outside { internal = false }` lets it \
                     reach others",
                );
                None
            }
            name => Some((simplest(vec![self.attachment(span, name)?]), vec![span])),
        }
    }

    fn networks(&mut self, scope: Scope, settings: &Settings<'a>) -> Option<(Network, Vec<Span>)> {
        let span = settings.key("networks").unwrap_or_default();
        let block = self.block_of(settings, "networks")?;
        let (mut list, mut places, mut complete) = (Vec::new(), Vec::new(), !block.partial);
        for entry in block.iter() {
            if self.report.full() {
                return None;
            }
            let Some(mut attachment) = self.attachment(entry.key, &entry.name) else {
                complete = false;
                continue;
            };
            if !entry.is_listed() {
                let value = entry.value.value;
                if !matches!(value.kind, ValueKind::Body(_)) {
                    self.wrong_type(entry.property, value);
                    complete = false;
                    continue;
                }
                let details = entry.block();
                if let Some(setting) = details.get("aliases") {
                    attachment.aliases = self.network_aliases(setting, scope);
                }
                if let Some(setting) = details.get("address") {
                    self.own_addresses(&mut attachment, setting, scope);
                }
            }
            list.push(attachment);
            places.push(entry.key);
        }
        if list.is_empty() && complete {
            self.finding(Code::OutOfRange, span, "`networks` names no network")
                .label("empty")
                .help("write `network = \"none\"` for a component without one");
        }
        if list.len() > MOST_OF_ONE {
            self.finding(Code::OutOfRange, span, format!("a component is on more than {MOST_OF_ONE} networks"))
                .label("too many")
                .help("put it on fewer");
            return None;
        }
        (!list.is_empty()).then(|| (simplest(list), places))
    }

    /// A component's place on a network, if there is such a one. Where no NETWORK stands in any file, as in those for the
    /// language's predecessor, every name is that of one; otherwise all are declared.
    fn attachment(&mut self, span: Span, name: &str) -> Option<Attachment> {
        if !well_formed(name) || matches!(name, "none" | "host") {
            let written = self.shown(span);
            self.finding(Code::BadName, span, format!("{written} cannot be the name of a network"))
                .label("malformed or reserved")
                .expected("a letter, then letters, digits, `_` and `-`, 63 characters at most")
                .help("declare it with `NETWORK backend`, and name that");
            return None;
        }
        let declared = self.stores.networks.get(name).map(|entry| entry.what);
        if declared.is_none() && name != BRIDGE && !self.stores.networks.list.is_empty() {
            if !self.partial {
                self.unknown_network(span);
            }
            return None;
        }
        if !self.uses.networks.contains(name) {
            self.uses.networks.insert(name.to_owned());
        }
        Some(declared.map_or_else(|| Attachment::new(name), |said| said.attachment(name)))
    }

    fn unknown_network(&mut self, span: Span) {
        let written = self.shown(span);
        let names = || self.stores.networks.list.iter().map(|network| network.name.as_ref()).chain([BRIDGE]);
        // The spelling of a value that came from the environment stays unsaid.
        let meant = nearest(span.text(self.source).trim_matches('"'), names().take(MOST_COMPARED));
        let (meant, list) = (meant.map(|meant| format!("did you mean `{meant}`?")), some_of(names()));
        self.finding(Code::UnknownNetwork, span, format!("there is no network {written}"))
            .label("unknown network")
            .expected(format!("one of {list}"))
            .help("declare it: `NETWORK name`")
            .help_if(meant);
    }

    fn network_aliases(&mut self, setting: &Setting<'a>, scope: Scope) -> Vec<String> {
        let mut aliases: Vec<String> = Vec::new();
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(alias) = self.filled((setting.property, item), scope) else { continue };
            let span = item.value.span;
            if !is_host_name(&alias) {
                let written = self.shown(span);
                self.finding(Code::BadHostname, span, format!("{written} is no host name"))
                    .label("malformed or reserved")
                    .expected("letters, digits and inner `-`, in parts separated by `.`")
                    .help(format!("for example `{}`", setting.property.example));
            } else if aliases.iter().any(|other| other.eq_ignore_ascii_case(&alias)) {
                self.duplicate(span, "aliases");
            } else {
                aliases.push(alias.into_owned());
            }
        }
        aliases
    }

    fn own_addresses(&mut self, attachment: &mut Attachment, setting: &Setting<'a>, scope: Scope) {
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(text) = self.filled((setting.property, item), scope) else { continue };
            let span = item.value.span;
            let twice = match text.parse() {
                Ok(IpAddr::V4(address)) => attachment.address.replace(address).is_some(),
                Ok(IpAddr::V6(address)) => attachment.address6.replace(address).is_some(),
                Err(_) => {
                    let written = self.shown(span);
                    self.finding(Code::BadAddress, span, format!("{written} is no IP address"))
                        .label("malformed address")
                        .expected(setting.property.wants)
                        .help(format!("for example `{}`", setting.property.example));
                    continue;
                }
            };
            if twice {
                self.finding(Code::BadNetworkAddress, span, "a component has one address of each kind on a network")
                    .label("another one")
                    .help("leave it out");
            }
        }
    }

    /// Looks for addresses and aliases that cannot be given, because they are others' or the network has none such.
    pub(super) fn neighbours(&mut self) {
        let mut sizes: HashMap<String, (u64, Subnet, Span)> = HashMap::new();
        let mut taken: HashMap<(String, IpAddr), Span> = HashMap::new();
        let mut aliases: Vec<(String, String, usize, Span)> = Vec::new();
        for index in 0..self.declared.len() {
            let declared = &self.declared[index];
            let Some(Network::Named(list)) = &declared.network else { continue };
            if declared.role != Role::Deployed {
                continue;
            }
            let (list, places, replicas) = (list.clone(), declared.networks_at.clone(), declared.replicas);
            for (attachment, span) in list.into_iter().zip(places) {
                let Attachment { network, subnet, subnet6, aliases: own, address, address6, .. } = attachment;
                if self.report.full() {
                    return;
                }
                if let Some(subnet) = subnet {
                    let size = sizes.entry(network.clone()).or_insert((0, subnet, span));
                    size.0 += u64::from(replicas.unwrap_or(1));
                }
                let in_subnet =
                    |subnet: Subnet, ip| subnet.number(ip).is_some_and(|n| (2..=subnet.last()).contains(&n));
                let in_subnet6 = |subnet: Subnet6, ip| subnet.number(ip).is_some_and(|n| n >= 2);
                let four = address.map(|ip| (IpAddr::V4(ip), subnet.map(|subnet| in_subnet(subnet, ip))));
                let six = address6.map(|ip| (IpAddr::V6(ip), subnet6.map(|subnet| in_subnet6(subnet, ip))));
                for (address, is_in) in four.into_iter().chain(six) {
                    if self.is_possible(index, span, is_in, address)
                        && let Some(first) = taken.insert((network.clone(), address), span)
                    {
                        self.finding(
                            Code::BadNetworkAddress,
                            span,
                            "two components have the same address on a network",
                        )
                        .label("the same address")
                        .related(first, "as here")
                        .help("give them different addresses, or leave one out to have it chosen");
                    }
                }
                let lower = own.iter().map(|alias| alias.to_ascii_lowercase());
                aliases.extend(lower.map(|alias| (network.clone(), alias, index, span)));
            }
        }
        for (count, subnet, span) in sizes.into_values() {
            let room = u64::from(subnet.last()) - 1;
            if count > room {
                let message = format!("{count} containers are on a network that has addresses for {room}");
                self.finding(Code::OutOfRange, span, message)
                    .label("too many")
                    .help("give the network a larger `subnet`, or leave that out to have one chosen");
            }
        }
        self.aliases_are_distinct(&aliases);
    }

    /// `is_in`: whether it is one for components in the subnet of its kind, if there is one.
    fn is_possible(&mut self, index: usize, span: Span, is_in: Option<bool>, address: IpAddr) -> bool {
        let Some(possible) = is_in else {
            let example = if address.is_ipv4() { "10.1.2.0/24" } else { "fd12:3456:789a::/64" };
            self.finding(Code::BadNetworkAddress, span, "an address is given on a network whose subnet is not")
                .label("it may be any")
                .help(format!("say it: `NETWORK backend {{ subnet = \"{example}\" }}`"));
            return false;
        };
        if self.declared[index].replicas.is_some() {
            self.finding(Code::BadNetworkAddress, span, "replicas cannot all have one address")
                .label("the same for each")
                .help("leave it out: each is found by its name");
            return false;
        }
        if !possible {
            self.finding(Code::BadNetworkAddress, span, "the network has no such address for a component")
                .label("not in its subnet, or not for components")
                .expected(
                    "an address of the subnet, but for the first two and IPv4's last, which are the network's own",
                )
                .help("choose another one, or leave it out");
        }
        possible
    }

    /// An alias is nobody else's name, host name or alias on the same network.
    fn aliases_are_distinct(&mut self, aliases: &[(String, String, usize, Span)]) {
        if aliases.is_empty() {
            return;
        }
        let networks: HashSet<&str> = aliases.iter().map(|(network, ..)| network.as_str()).collect();
        let mut names: HashMap<(&str, String), usize> = HashMap::new();
        for (index, declared) in self.declared.iter().enumerate() {
            let Some(network) = declared.network.as_ref().filter(|_| declared.role == Role::Deployed) else { continue };
            let own = declared.name.to_ascii_lowercase();
            let host = own.replace('_', "-");
            let replicas = (1..=declared.replicas.unwrap_or(0)).map(|number| format!("{host}-{number}"));
            let all: Vec<_> = replicas.chain([declared.host().to_ascii_lowercase(), own, host.clone()]).collect();
            for name in networks.iter().filter(|name| is_on(network, name)) {
                names.extend(all.iter().map(|own| ((*name, own.clone()), index)));
            }
        }
        for (network, alias, index, span) in aliases {
            if self.report.full() {
                return;
            }
            let other = *names.entry((network, alias.clone())).or_insert(*index);
            if other != *index {
                let (name, at) = (shown(&self.declared[other].name), self.declared[other].span);
                self.finding(Code::NameCollision, *span, format!("an alias here means {name} on the same network"))
                    .label("the same name")
                    .related(at, "as for this one")
                    .help("choose another alias");
            }
        }
    }

    /// A connection leads to what can be reached, unless it is only waited for.
    pub(super) fn reachable(&mut self, span: Span, from: usize, to: usize, when: When) {
        if from == to {
            return;
        }
        let network = |index: usize| self.declared[index].network.as_ref();
        let lonely = [from, to].into_iter().find(|&index| network(index) == Some(&Network::None));
        if let Some(lonely) = lonely {
            let name = shown(&self.declared[lonely].name);
            self.finding(
                Code::Unreachable,
                span,
                format!("{name} has `network = \"none\"`: the connection only orders the start"),
            )
            .label("cannot be reached")
            .help("remove `network = \"none\"` if they are to talk to each other");
            return;
        }
        let (Some(one), Some(other)) = (network(from), network(to)) else { return };
        // Who waits for a JOB's end does not talk to it.
        if when == When::Completed || have_common(one, other) {
            return;
        }
        let [from, to] = [from, to].map(|index| (shown(&self.declared[index].name), self.declared[index].span));
        self.finding(Code::NoCommonNetwork, span, format!("{} and {} are on no network together", from.0, to.0))
            .label("cannot be reached")
            .related(from.1, "from this one")
            .related(to.1, "this one")
            .help(format!(
                "put {} on a network of {} too, `networks = [\"its own\", \"the other's\"]`, or wait only for the end of a \
                 JOB with `WHEN completed`",
                from.0, to.0
            ));
    }
}

/// The project's own network without anything else has a word of its own.
fn simplest(list: Vec<Attachment>) -> Network {
    match list.as_slice() {
        [only] if *only == Attachment::new(BRIDGE) => Network::Bridge,
        _ => Network::Named(list),
    }
}
