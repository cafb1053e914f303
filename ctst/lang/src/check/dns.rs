//! `dns`, `dns_search` and `dns_options`: whom a component asks for names that the project does not have, and how.

use std::net::{IpAddr, Ipv4Addr};

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};
use crate::model::{Dns, Network};

use super::Checker;
use super::declare::is_host_name;
use super::inherit::{Setting, Settings};
use super::resolve::Scope;

/// As many as C libraries ask (`MAXNS`, resolv.conf(5)).
const MOST_SERVERS: usize = 3;
/// All of musl's and, before 2.26, of the GNU C library's list (resolv.conf(5)).
const LONGEST_SEARCH: usize = 256;

/// What resolv.conf(5) knows, and the largest number where there is one.
const OPTIONS: [(&str, Option<u8>); 14] = [
    ("attempts", Some(5)),
    ("debug", None),
    ("edns0", None),
    ("inet6", None),
    ("ndots", Some(15)),
    ("no-aaaa", None),
    ("no-check-names", None),
    ("no-reload", None),
    ("no-tld-query", None),
    ("rotate", None),
    ("single-request", None),
    ("single-request-reopen", None),
    ("timeout", Some(30)),
    ("use-vc", None),
];

/// Whether it is written as resolvers read it.
fn is_option(text: &str) -> bool {
    let (name, number) = text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number)));
    OPTIONS.iter().any(|(known, most)| match (name == *known, most, number) {
        (true, Some(most), Some(number)) => {
            !number.starts_with('+') && number.parse::<u8>().is_ok_and(|number| number <= *most)
        }
        (same, None, None) => same,
        _ => false,
    })
}

/// Whether it means the same server to whoever asks, wherever that is.
fn is_server(ip: Ipv4Addr) -> bool {
    !(ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.octets()[0] == 0 || ip.octets()[0] >= 240)
}

impl<'a> Checker<'a, '_> {
    pub(super) fn dns(&mut self, index: usize, settings: &Settings<'a>) -> Option<Box<Dns>> {
        let scope = Scope::component(index);
        let servers = settings.get("dns").map(|setting| self.name_servers(index, setting, scope));
        let search = settings.get("dns_search").map(|setting| self.search(setting, scope));
        let options = settings.get("dns_options").map(|setting| self.resolver_options(setting, scope));
        let asking = ["dns", "dns_search", "dns_options"].into_iter().find_map(|name| settings.get(name));
        if let Some(setting) = asking.filter(|_| self.declared[index].network == Some(Network::None)) {
            let name = setting.property.name;
            self.finding(Code::NoWayOut, setting.key, format!("`{name}` is said of a component without a network"))
                .label("asks nobody")
                .help("leave it out: nobody is there to ask for names");
        }
        let dns = Dns {
            servers: servers.unwrap_or_default(),
            search: search.unwrap_or_default(),
            options: options.unwrap_or_default(),
        };
        (dns != Dns::default()).then(|| Box::new(dns))
    }

    fn name_servers(&mut self, index: usize, setting: &Setting<'a>, scope: Scope) -> Vec<Ipv4Addr> {
        let mut servers: Vec<Ipv4Addr> = Vec::new();
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(text) = self.filled((setting.property, item), scope) else { continue };
            let span = item.value.span;
            let Some(server) = self.name_server(span, &text, setting.property.example) else { continue };
            if servers.contains(&server) {
                self.duplicate(span, "dns");
            } else if servers.len() == MOST_SERVERS {
                self.finding(Code::OutOfRange, span, format!("`dns` names more than {MOST_SERVERS} servers"))
                    .label("too many")
                    .help("leave out what is asked last: each is asked where those before it do not answer");
                break;
            } else {
                servers.push(server);
            }
        }
        let Some(network) = &self.declared[index].network else { return servers };
        if !matches!(network, Network::None) && !network.attachments().iter().any(|on| on.egress) {
            let (name, at) = (shown(&self.declared[index].name), self.declared[index].span);
            let first = network.attachments().first().map(|on| on.network.clone()).unwrap_or_default();
            self.finding(
                Code::NoWayOut,
                setting.key,
                format!("no network of {name} has a way out to its name servers"),
            )
            .label("cannot be asked")
            .related(at, "of this one")
            .help(format!("give one a way out, `NETWORK {first} {{ internal = false }}`, or leave `dns` out"));
        }
        servers
    }

    fn name_server(&mut self, span: Span, text: &str, example: &str) -> Option<Ipv4Addr> {
        let written = self.shown(span);
        let ip = match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => ip,
            Ok(IpAddr::V6(_)) => {
                self.finding(
                    Code::BadAddress,
                    span,
                    format!("{written} is an IPv6 address, and the way out is by IPv4"),
                )
                .label("cannot be reached")
                .expected("an IPv4 address")
                .help("name an IPv4 address of the same server");
                return None;
            }
            Err(_) => {
                self.finding(Code::BadAddress, span, format!("{written} is no IP address"))
                    .label("malformed address")
                    .expected("an IPv4 address")
                    .help(format!("for example `{example}`"));
                return None;
            }
        };
        if !is_server(ip) {
            self.finding(Code::BadAddress, span, format!("{written} is reached from nowhere else"))
                .label("loopback, link-local or reserved")
                .expected("an address that this host reaches over its network")
                .help("leave it out: without `dns` the resolver of this host is asked, wherever that is");
            return None;
        }
        let own =
            self.stores.networks.list.iter().find(|entry| entry.what.subnet.is_some_and(|s| s.number(ip).is_some()));
        if let Some(at) = own.map(|entry| entry.span) {
            self.finding(Code::BadAddress, span, format!("{written} is an address of the project's own networks"))
                .label("not beyond the way out")
                .related(at, "in this one")
                .help("name a server outside of the project; names of the project are known without one");
            return None;
        }
        Some(ip)
    }

    fn search(&mut self, setting: &Setting<'a>, scope: Scope) -> Vec<String> {
        let mut search: Vec<String> = Vec::new();
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(text) = self.filled((setting.property, item), scope) else { continue };
            let span = item.value.span;
            let domain = text.strip_suffix('.').unwrap_or(&text);
            if !is_host_name(domain) {
                let written = self.shown(span);
                self.finding(Code::BadHostname, span, format!("{written} is no domain"))
                    .label("malformed or reserved")
                    .expected("letters, digits and inner `-`, in parts separated by `.`")
                    .help(format!("for example `{}`", setting.property.example));
            } else if search.iter().any(|other| other.eq_ignore_ascii_case(domain)) {
                self.duplicate(span, "dns_search");
            } else if search.iter().map(|other| other.len() + 1).sum::<usize>() + domain.len() > LONGEST_SEARCH {
                self.finding(Code::OutOfRange, span, format!("`dns_search` is longer than {LONGEST_SEARCH} bytes"))
                    .label("too long from here on")
                    .help("leave some out: each is one more question for every name");
                break;
            } else {
                search.push(domain.to_owned());
            }
        }
        search
    }

    fn resolver_options(&mut self, setting: &Setting<'a>, scope: Scope) -> Vec<String> {
        let mut options: Vec<String> = Vec::new();
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(text) = self.filled((setting.property, item), scope) else { continue };
            let span = item.value.span;
            let name = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
            if !is_option(&text) {
                let written = self.shown(span);
                let meant =
                    nearest(&name(span.text(self.source).trim_matches('"')), OPTIONS.iter().map(|(name, _)| *name));
                self.finding(Code::UnknownChoice, span, format!("{written} is no option of a resolver"))
                    .label("unknown option, or number")
                    .expected("an option of resolv.conf(5) in quotes, with its number: `ndots` 0 to 15, `timeout` to 30, `attempts` to 5")
                    .help(format!("for example `{}`", setting.property.example))
                    .help_if(meant.map(|meant| format!("did you mean `{meant}`?")));
            } else if options.iter().any(|other| name(other) == name(&text)) {
                self.duplicate(span, "dns_options");
            } else {
                options.push(text.into_owned());
            }
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::{is_option, is_server};

    #[test]
    fn options() {
        let good = ["ndots:0", "ndots:15", "timeout:30", "attempts:5", "rotate", "use-vc", "no-aaaa"];
        assert!(good.iter().all(|text| is_option(text)));
        let bad = ["", "ndots", "ndots:", "ndots:16", "ndots:+1", "ndots:1:1", "rotate:1", "rotate\n", "NDOTS:1", "x"];
        assert!(bad.iter().all(|text| !is_option(text)));
    }

    #[test]
    fn servers() {
        let good = ["10.0.0.53", "192.0.2.53", "100.64.0.1", "8.8.8.8"];
        assert!(good.iter().all(|ip| is_server(ip.parse().unwrap())));
        let bad =
            ["127.0.0.53", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.251", "240.0.0.1", "255.255.255.255"];
        assert!(bad.iter().all(|ip| !is_server(ip.parse().unwrap())));
    }
}
