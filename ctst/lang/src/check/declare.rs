//! What a file declares, and what others may refer to.

use std::collections::HashMap;

use crate::codes::Code;
use crate::diagnostic::{Cursor, Span, shown};
use crate::model::Network;
use crate::syntax::{self, ComponentKind, File, Name, StatementKind};

use super::properties::{self, Settings};
use super::resolve::Scope;
use super::{Checker, Declared, image};

/// The beginning of the variables that CONNECT sets: `my-db` gives `MY_DB`.
pub(super) fn prefix(name: &str) -> String {
    name.to_ascii_uppercase().replace(['-', '.'], "_")
}

fn well_formed(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

impl<'a> Checker<'a, '_> {
    /// Collects the components and refuses the statements that are not carried out.
    pub(super) fn declare(&mut self, file: &'a File) {
        let mut cursor = Cursor::new(self.source.as_bytes());
        for statement in &file.statements {
            if self.report.full() {
                return;
            }
            match &statement.kind {
                StatementKind::Connect(_) | StatementKind::Expose(_) => continue,
                StatementKind::Component(component) => {
                    let (line, _) = cursor.advance(statement.span.start);
                    if component.kind != ComponentKind::Component {
                        self.refuse(statement.keyword);
                    }
                    self.declare_component(component, line);
                }
                StatementKind::Param(param) => {
                    self.params.insert(param.name.text(self.source));
                    self.refuse(statement.keyword);
                }
                _ => self.refuse(statement.keyword),
            }
        }
        if self.declared.is_empty() && !self.report.has_errors() {
            self.finding(Code::NothingDeclared, Span::default(), "the file declares no component")
                .help("write one: `COMPONENT web { image = \"file://./rootfs\" … }`");
        }
    }

    fn refuse(&mut self, keyword: Span) {
        let shown = self.shown(keyword);
        self.not_supported(keyword, &shown);
    }

    fn declare_component(&mut self, component: &'a syntax::Component, line: usize) {
        let Name { span, .. } = component.name;
        let name = component.name.text(self.source);
        let good = well_formed(&name);
        if !good || name.eq_ignore_ascii_case("localhost") {
            let what = if good { "is reserved" } else { "is no name" };
            self.finding(Code::BadName, span, format!("{} {what}", shown(&name)))
                .label("cannot be a component's name")
                .expected("a letter, then letters, digits, `_` and `-`, 63 characters at most")
                .help("give the component another name");
        }
        if let Some(&first) = self.by_name.get(&name) {
            let first = self.declared[first].span;
            self.finding(Code::DuplicateName, span, format!("the component {} is declared twice", shown(&name)))
                .label("declared again")
                .related(first, "declared here first")
                .help("give one of them another name");
        }
        let mut partial = component.kind != ComponentKind::Component;
        if let Some(params) = &component.params {
            self.not_supported(params.span, "a parameter of a component");
            partial = true;
        }
        if let Some(base) = &component.base {
            self.not_supported(base.span, "`FROM`");
            partial = true;
        }
        let mut settings = Settings::default();
        if component.kind == ComponentKind::Component {
            let (read, complete) = self.settings(&component.body, properties::COMPONENT, "a component");
            partial |= !complete;
            settings = read;
        }
        let index = self.declared.len();
        self.by_name.entry(name.clone()).or_insert(index);
        self.declared.push(Declared {
            name,
            span,
            line,
            syntax: component,
            healthcheck: settings.get("healthcheck").is_some(),
            settings,
            partial,
            ports: Some(Vec::new()),
            image: None,
            hostname: None,
            network: Some(Network::Bridge),
            scheme: "http",
        });
    }

    /// Looks up what others may refer to.
    pub(super) fn facts(&mut self) {
        for index in 0..self.declared.len() {
            if self.report.full() {
                return;
            }
            let settings = std::mem::take(&mut self.declared[index].settings);
            let ports = self.ports(&settings);
            let image = self.image(&settings);
            let hostname = self.hostname(&settings);
            let network = self.network(&settings);
            let declared = &mut self.declared[index];
            declared.scheme = image::scheme(&declared.name, image.as_ref());
            (declared.ports, declared.image, declared.network) = (ports, image, network);
            declared.hostname = hostname.or_else(|| Some(declared.host()));
            let lacks_image = settings.get("image").is_none() && !declared.partial;
            declared.settings = settings;
            if lacks_image {
                let (name, span) = (shown(&declared.name), declared.span);
                self.finding(Code::MissingProperty, span, format!("the component {name} has no image"))
                    .label("`image` is missing")
                    .expected("`image`")
                    .help("add `image = \"file://./rootfs\"` or `image = \"host:///usr/bin/program\"`");
            }
        }
    }

    fn ports(&mut self, settings: &Settings<'_>) -> Option<Vec<u16>> {
        let Some((property, value)) = settings.get("port").or_else(|| settings.get("ports")) else {
            return Some(Vec::new());
        };
        let mut ports = Some(Vec::new());
        let mut seen = std::collections::HashSet::new();
        for item in self.items(value) {
            let port = self.port((property, item), Scope::Facts);
            match (port, &mut ports) {
                (Some(port), _) if !seen.insert(port) => {
                    self.duplicate(item.span, property.name);
                    ports = None;
                }
                (Some(port), Some(ports)) => ports.push(port),
                _ => ports = None,
            }
        }
        ports
    }

    fn hostname(&mut self, settings: &Settings<'_>) -> Option<String> {
        let (property, value) = settings.get("hostname")?;
        let hostname = self.filled((property, value), Scope::Facts)?;
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // 64 is what uname(2) holds.
        if hostname.len() > 64 || !hostname.split('.').all(label) || hostname.eq_ignore_ascii_case("localhost") {
            let shown = self.shown(value.span);
            self.finding(Code::BadHostname, value.span, format!("{shown} is no host name"))
                .label("malformed or reserved")
                .expected(
                    "letters, digits and inner `-`, in parts of at most 63 characters separated by `.`, 64 in all",
                )
                .help("leave it out to use the component's name");
            return None;
        }
        Some(hostname)
    }

    fn network(&mut self, settings: &Settings<'_>) -> Option<Network> {
        let Some((property, value)) = settings.get("network") else { return Some(Network::Bridge) };
        let text = self.filled((property, value), Scope::Facts)?;
        match text.as_str() {
            "bridge" => Some(Network::Bridge),
            "none" => Some(Network::None),
            _ => {
                let what =
                    if text == "host" { "the host's network" } else { "a network other than `bridge` and `none`" };
                self.not_supported(value.span, what).help("use `bridge`, the default, or `none`");
                None
            }
        }
    }

    /// Names that are different but become one host name or one variable.
    pub(super) fn collisions(&mut self) {
        let mut prefixes: HashMap<String, usize> = HashMap::new();
        let mut hosts: HashMap<String, usize> = HashMap::new();
        for index in 0..self.declared.len() {
            let declared = &self.declared[index];
            if self.by_name.get(&declared.name) != Some(&index) {
                continue;
            }
            let (name, span) = (declared.name.clone(), declared.span);
            let own = declared.settings.get("hostname").map(|(_, value)| value.span);
            let prefix = prefix(&name);
            if let Some(&other) = prefixes.get(&prefix) {
                let (other_name, other_span) = (shown(&self.declared[other].name), self.declared[other].span);
                self.finding(
                    Code::NameCollision,
                    span,
                    format!("{} and {other_name} both give the variable `{prefix}_HOST`", shown(&name)),
                )
                .label("the same variable")
                .related(other_span, "as for this one")
                .help("give one of them another name");
                continue;
            }
            prefixes.insert(prefix, index);
            let hosts_of = [Some(declared.name.replace('_', "-")), declared.hostname.clone()];
            for (host, at) in hosts_of.into_iter().flatten().zip([span, own.unwrap_or(span)]) {
                let other = *hosts.entry(host.to_ascii_lowercase()).or_insert(index);
                if other != index {
                    let (other_name, other_span) = (shown(&self.declared[other].name), self.declared[other].span);
                    self.finding(
                        Code::NameCollision,
                        at,
                        format!("{} has the same host name as {other_name}", shown(&name)),
                    )
                    .label("the same host name")
                    .related(other_span, "as this one")
                    .help("give one of them another name or `hostname`");
                    break;
                }
            }
        }
    }
}
