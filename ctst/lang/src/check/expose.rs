//! EXPOSE: ports published on the host.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use crate::codes::Code;
use crate::diagnostic::{Cursor, Span, shown};
use crate::model::{Exposure, Network, Protocol};
use crate::syntax::{Expose, File, Ports, StatementKind};

use super::{Checker, Role, some_of};

/// Most ports that a file may publish: each is a socket of the supervisor.
const MOST_PORTS: usize = 4096;

/// Addresses in use on each port of the host.
type Taken = HashMap<(Protocol, u16), Vec<(IpAddr, Span)>>;

/// Whether binding one address keeps the other from being bound. Published is IPv6 without IPv4 (`IPV6_V6ONLY`).
fn overlap(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
}

impl Checker<'_, '_> {
    /// All published ports; incomplete if there are errors.
    pub(super) fn exposures(&mut self, file: &File<'_>) -> Vec<Exposure> {
        if !file.statements.iter().any(|statement| matches!(statement.kind, StatementKind::Expose(_))) {
            return Vec::new();
        }
        let mut by_port: HashMap<u16, Vec<usize>> = HashMap::new();
        let deployed = |(_, declared): &(usize, &super::Declared<'_>)| declared.role == Role::Deployed;
        for (index, declared) in self.declared.iter().enumerate().filter(deployed) {
            for &port in declared.ports.iter().flatten() {
                by_port.entry(port).or_default().push(index);
            }
        }
        let mut cursor = Cursor::new(self.source.as_bytes());
        let mut taken = Taken::new();
        let mut exposures = Vec::new();
        let mut published = 0;
        for statement in &file.statements {
            let StatementKind::Expose(expose) = &statement.kind else { continue };
            if self.report.full() {
                break;
            }
            let line = cursor.line(statement.span.start);
            let Some((address, host, inside)) = self.sides(expose) else { continue };
            published += host.len();
            if published > MOST_PORTS {
                self.finding(
                    Code::TooManyPorts,
                    expose.host.span(),
                    format!("more than {MOST_PORTS} ports are published"),
                )
                .label("one too many begins here")
                .help("publish fewer ports");
                break;
            }
            let protocol = expose.protocol;
            self.conflicts(expose.host.span(), address, (protocol, host.clone()), &mut taken);
            let Some(targets) = self.targets(expose, inside.clone(), &by_port) else { continue };
            for ((host_port, port), target) in host.zip(inside).zip(targets) {
                for component in self.deployed_names(target) {
                    exposures.push(Exposure { line, address, host_port, component, port, protocol });
                }
            }
        }
        exposures
    }

    /// Address and ports on the host, and ports inside.
    fn sides(&mut self, expose: &Expose) -> Option<(IpAddr, RangeInclusive<u16>, RangeInclusive<u16>)> {
        let address = match (expose.address, expose.public) {
            (Some((address, _)), Some(public)) => {
                self.finding(Code::PublicAddress, public, "PUBLIC and an address exclude each other")
                    .label("means the address 0.0.0.0")
                    .related(address, "the address")
                    .help("keep one of them");
                None
            }
            (Some((span, address)), None) => self.bound(span, address.to_canonical()),
            (None, Some(_)) => Some(Ipv4Addr::UNSPECIFIED.into()),
            (None, None) => Some(Ipv4Addr::LOCALHOST.into()),
        };
        let host = self.range(expose.host);
        let inside = match expose.inside {
            Some(ports) => self.range(ports),
            None => host.clone(),
        };
        let (host, inside) = (host?, inside?);
        if host.len() != inside.len() {
            let (ours, theirs) = (host.len(), inside.len());
            let at = expose.inside.unwrap_or(expose.host).span();
            self.finding(
                Code::RangeMismatch,
                at,
                format!("{ours} ports of the host are published for {theirs} of the container"),
            )
            .label("not as many")
            .related(expose.host.span(), "as here")
            .expected("as many ports on one side as on the other")
            .help("give both ranges the same length");
            return None;
        }
        Some((address?, host, inside))
    }

    /// Refuses addresses that no host has, or that mean nothing without a link.
    fn bound(&mut self, span: Span, address: IpAddr) -> Option<IpAddr> {
        let special = match address {
            IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_multicast() || ip.is_unicast_link_local(),
        };
        if special {
            let written = self.shown(span);
            self.finding(Code::BadAddress, span, format!("nothing can be published on {written}"))
                .label("multicast, broadcast, or of one link only")
                .expected("an address of this host, or PUBLIC")
                .help("leave it out for 127.0.0.1, or see which addresses this host has: ip address");
            return None;
        }
        Some(address)
    }

    fn range(&mut self, ports: Ports) -> Option<RangeInclusive<u16>> {
        let first = self.port_number(ports.first);
        let last = ports.last.map_or(first, |last| self.port_number(last));
        let (first, last) = (first?, last?);
        if first > last {
            self.finding(Code::RangeMismatch, ports.span(), "the range ends before it begins")
                .label("backwards")
                .expected("the lower port first")
                .help(format!("write `{last}-{first}`"));
            return None;
        }
        Some(first..=last)
    }

    fn port_number(&mut self, span: Span) -> Option<u16> {
        let port = span.text(self.source).parse::<u16>().ok().filter(|port| *port > 0);
        if port.is_none() {
            let shown = self.shown(span);
            self.finding(Code::OutOfRange, span, format!("{shown} is no port"))
                .label("out of range")
                .expected("a whole number from 1 to 65535")
                .help("for example `EXPOSE 8080 -> web:80`");
        }
        port
    }

    fn conflicts(
        &mut self,
        span: Span,
        address: IpAddr,
        (protocol, ports): (Protocol, RangeInclusive<u16>),
        taken: &mut Taken,
    ) {
        let mut conflict = None;
        for port in ports {
            let taken = taken.entry((protocol, port)).or_default();
            if let Some((_, first)) = taken.iter().find(|(other, _)| overlap(address, *other)) {
                conflict.get_or_insert((port, *first));
            }
            taken.push((address, span));
        }
        if let Some((port, first)) = conflict {
            self.finding(Code::PortConflict, span, format!("port {port} of the host is published twice"))
                .label("taken already")
                .related(first, "published here first")
                .help("use another port, or different addresses");
        }
    }

    /// For each port inside, the component it belongs to.
    fn targets(
        &mut self,
        expose: &Expose,
        ports: RangeInclusive<u16>,
        by_port: &HashMap<u16, Vec<usize>>,
    ) -> Option<Vec<usize>> {
        let targets = match expose.component {
            Some(name) => {
                let text = name.text(self.source);
                let Some(&index) = self.by_name[0].get(&text) else {
                    if !self.partial {
                        self.unknown_component(Code::UnknownComponent, name.span, &text);
                    }
                    return None;
                };
                if self.declared[index].role == Role::Template {
                    self.template_named(name.span, index);
                    return None;
                }
                if self.declared[index].role == Role::Inactive {
                    return None;
                }
                vec![index; ports.len()]
            }
            None => {
                let at = expose.inside.unwrap_or(expose.host).span();
                ports.map(|port| self.declares(at, port, by_port)).collect::<Option<Vec<_>>>()?
            }
        };
        let lonely = targets.iter().copied().find(|&index| self.declared[index].network == Some(Network::None));
        if let Some(index) = lonely {
            let (name, declared) = (shown(&self.declared[index].name), self.declared[index].span);
            self.finding(
                Code::NoNetwork,
                expose.host.span(),
                format!("{name} has `network = \"none\"`, so no port of it can be published"),
            )
            .label("cannot be published")
            .related(declared, "declared here")
            .help("remove `network = \"none\"`, or this EXPOSE");
            return None;
        }
        Some(targets)
    }

    fn declares(&mut self, at: Span, port: u16, by_port: &HashMap<u16, Vec<usize>>) -> Option<usize> {
        let owners = by_port.get(&port).map_or(&[] as &[usize], Vec::as_slice);
        match owners {
            [only] => Some(*only),
            [] => {
                // A port may be declared in what is set aside, is refused or could not be read.
                let aside = self.declared.iter().any(|declared| {
                    declared.role == Role::Inactive && declared.ports.iter().flatten().any(|&other| other == port)
                });
                if !aside
                    && !self.partial
                    && self.declared.iter().all(|declared| !declared.partial && declared.ports.is_some())
                {
                    let declared = self.declared.iter().filter(|declared| {
                        declared.role == Role::Deployed
                            && declared.ports.as_ref().is_some_and(|ports| !ports.is_empty())
                    });
                    let names = some_of(declared.map(|declared| declared.name.as_ref()));
                    let ports = if names.is_empty() {
                        "no component declares ports".to_owned()
                    } else {
                        format!("ports are declared by {names}")
                    };
                    self.finding(Code::NoSuchPort, at, format!("no component declares the port {port}"))
                        .label("whose port?")
                        .expected(format!("a port that one component declares; {ports}"))
                        .help(format!("say which one: `EXPOSE {port} -> name:{port}`, or give it `port = {port}`"));
                }
                None
            }
            several => {
                let names = some_of(several.iter().map(|&index| self.declared[index].name.as_ref()));
                self.finding(Code::AmbiguousPort, at, format!("several components declare the port {port}: {names}"))
                    .label("whose port?")
                    .expected("a port that one component declares")
                    .help(format!("say which one: `EXPOSE {port} -> name:{port}`"));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn wildcards_take_their_family() {
        let overlaps = |a: &str, b: &str| overlap(a.parse().expect("an address"), b.parse().expect("an address"));
        assert!(overlaps("127.0.0.1", "127.0.0.1"));
        assert!(!overlaps("127.0.0.1", "127.0.0.2"));
        assert!(overlaps("0.0.0.0", "127.0.0.2"));
        assert!(overlaps("::1", "::"));
        assert!(!overlaps("127.0.0.1", "::"));
        assert!(!overlaps("0.0.0.0", "::1"));
        assert!(!overlaps("0.0.0.0", "::"));
    }
}
