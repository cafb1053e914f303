//! What a file declares, and what others may refer to.

use std::borrow::Cow;

use foldhash::{HashMap, HashMapExt as _};

use crate::codes::Code;
use crate::diagnostic::{Cursor, Span, shown};
use crate::model::{Image, Network};
use crate::syntax::{self, Body, ComponentKind, Name, StatementKind, Text, ValueKind};

use super::inherit::{Setting, Settings};
use super::properties::LABELLED;
use super::resolve::{Origin, Scope};
use super::{Checker, Declared, Role, image};

/// The beginning of the variables that CONNECT sets: `my-db` gives `MY_DB`.
pub(super) fn prefix(name: &str) -> String {
    let mut prefix = String::with_capacity(name.len());
    prefix.extend(name.chars().map(|c| if matches!(c, '-' | '.') { '_' } else { c.to_ascii_uppercase() }));
    prefix
}

pub(super) fn well_formed(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Where a host name comes from.
#[derive(Clone, Copy)]
enum Host {
    /// The component's name.
    Name,
    /// `hostname`.
    Own,
    /// The name and number of a replica.
    Replica,
}

/// What others may refer to: see the fields of [`Declared`].
pub(super) struct Facts {
    pub(super) ports: Option<Vec<u16>>,
    pub(super) image: Option<Image>,
    pub(super) network: Option<Network>,
    pub(super) networks_at: Vec<Span>,
    pub(super) hostname: Option<String>,
    pub(super) hostname_at: Option<Span>,
    pub(super) scheme: &'static str,
    pub(super) no_healthcheck: bool,
}

/// Whether a name can be that of a host (RFC 1123), and is not the one that every container has for itself.
pub(super) fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label) && !name.eq_ignore_ascii_case("localhost")
}

impl<'a> Checker<'a, '_> {
    /// Collects the components and refuses the statements that are not carried out.
    pub(super) fn declare(&mut self, number: usize) {
        let files = self.files;
        let file = &files[number].tree;
        let mut cursor = Cursor::new(self.source.as_bytes());
        let components = |statement: &&syntax::Statement<'_>| matches!(statement.kind, StatementKind::Component(_));
        let count = file.statements.iter().filter(components).count();
        self.declared.to_mut().reserve(count);
        self.by_name.to_mut()[number].reserve(count);
        for statement in &file.statements {
            if self.report.full() {
                return;
            }
            match &statement.kind {
                StatementKind::Connect(_)
                | StatementKind::Expose(_)
                | StatementKind::Param(_)
                | StatementKind::Import { .. } => continue,
                // That of an imported file has no effect, which is warned about elsewhere.
                StatementKind::Stack { name, body } => {
                    if number == 0 {
                        self.stack(*name, *body);
                    }
                }
                StatementKind::Component(component) => {
                    let line = cursor.line(statement.span.start);
                    self.declare_component(number, component, statement.span, line);
                }
                StatementKind::Volume { name, body } => self.declare_volume(number, *name, *body),
                StatementKind::Secret { name, from, source } => self.declare_secret(number, *name, *from, *source),
                StatementKind::Config { name, value } => self.declare_config(number, *name, value),
                StatementKind::Network { name, body } => self.declare_network(number, *name, *body),
            }
        }
    }

    /// The project's name.
    fn stack(&mut self, name: Text, body: Option<&'a Body<'a>>) {
        let text = crate::text::unquoted(self.source, name);
        if let Some((first, ..)) = self.stack {
            self.finding(Code::DuplicateName, name.span, "the project has two names")
                .label("named again")
                .related(first, "named here first")
                .help("keep one STACK");
        } else if !well_formed(&text) {
            self.finding(Code::BadName, name.span, format!("{} is no name", shown(&text)))
                .label("cannot be a project's name")
                .expected("a letter, then letters, digits, `_` and `-`, 63 characters at most")
                .help("write for example `STACK \"shop\"`");
        }
        self.stack.get_or_insert((name.span, text, body));
    }

    /// The labels in a block outside of components, those of a STACK or a VOLUME.
    pub(super) fn labels_of(&mut self, file: usize, body: Option<&'a Body<'a>>) -> Vec<(String, String)> {
        let Some(body) = body else { return Vec::new() };
        let mut settings = Settings::default();
        self.merge(&mut settings, body, Origin::File(file), &LABELLED);
        self.labels(&settings, Scope::FILE)
    }

    fn declare_component(&mut self, file: usize, component: &'a syntax::Component<'a>, whole: Span, line: usize) {
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
        if let Some(&first) = self.by_name[file].get(&name) {
            let first = self.declared[first].span;
            self.finding(Code::DuplicateName, span, format!("the component {} is declared twice", shown(&name)))
                .label("declared again")
                .related(first, "declared here first")
                .help("give one of them another name");
        }
        self.parameters_are_good(component);
        let index = self.declared.len();
        self.by_name.to_mut()[file].entry(name.clone()).or_insert(index);
        self.declared.to_mut().push(Declared {
            file,
            name,
            span,
            whole,
            line,
            syntax: component,
            role: match component.kind {
                ComponentKind::Component | ComponentKind::Job if file == 0 => Role::Deployed,
                ComponentKind::Component | ComponentKind::Job | ComponentKind::Template => Role::Template,
            },
            base: None,
            depth: 0,
            inherited: false,
            healthcheck: false,
            no_healthcheck: false,
            replicas: None,
            settings: None,
            merged: false,
            known: false,
            has_profiles: false,
            has_replicas: false,
            hostname_at: None,
            partial: false,
            ports: Some(Vec::new()),
            image: None,
            hostname: None,
            network: Some(Network::Bridge),
            networks_at: Vec::new(),
            scheme: "http",
        });
    }

    /// Looks up what others may refer to, where that is not known yet.
    pub(super) fn facts(&mut self) {
        let examined = |index: &usize| self.declared[*index].is_examined() && !self.declared[*index].known;
        let examined: Vec<usize> = (0..self.declared.len()).filter(examined).collect();
        let facts = self.each(&examined, |checker, &index| {
            let partial = checker.declared[index].partial;
            Some(checker.examine(index, |checker, settings| checker.facts_of(index, settings, partial)))
        });
        let all = self.declared.to_mut();
        for (index, facts) in examined.into_iter().zip(facts.into_iter().flatten()) {
            all[index].learn(facts);
        }
    }

    /// `partial`: something of it is refused or broken.
    pub(super) fn facts_of(&mut self, index: usize, settings: &Settings<'a>, partial: bool) -> Facts {
        let scope = Scope::facts(index);
        let ports = self.ports(scope, settings);
        let image = self.image(scope, settings);
        let hostname = self.hostname(scope, settings);
        let (network, networks_at) = self.network(scope, settings).unzip();
        let networks_at = networks_at.unwrap_or_default();
        let no_healthcheck = settings.get("healthcheck").is_some_and(|setting| self.is_switched_off(scope, setting));
        let declared = &self.declared[index];
        let scheme = image::scheme(&declared.name, image.as_ref());
        let says_image = settings.get("image").or_else(|| settings.get("build")).is_some();
        let lacks_image = !says_image && !partial && declared.role == Role::Deployed;
        let hostname_at = settings.get("hostname").map(|setting| setting.value.value.span);
        self.host_name_of_replicas(index, settings);
        if lacks_image {
            let declared = &self.declared[index];
            let (name, span) = (shown(&declared.name), declared.span);
            self.finding(Code::MissingProperty, span, format!("the component {name} has no image"))
                .label("`image` is missing")
                .expected("`image`")
                .help("add `image = \"file://./rootfs\"`, `image = \"tar://./image.tar\"`, `image = \"host:///usr/bin/program\"` or `build { dockerfile = \"Dockerfile\" }`");
        }
        Facts { ports, image, network, networks_at, hostname, hostname_at, scheme, no_healthcheck }
    }

    fn ports(&mut self, scope: Scope, settings: &Settings<'a>) -> Option<Vec<u16>> {
        let Some(setting) = settings.get("port").or_else(|| settings.get("ports")) else {
            return Some(Vec::new());
        };
        let mut ports = Some(Vec::new());
        let items = self.items(setting, scope)?;
        let mut seen = std::collections::HashSet::new();
        let several = items.clone().nth(1).is_some();
        for item in items {
            let port = self.port((setting.property, item), scope);
            match (port, &mut ports) {
                (Some(port), _) if several && !seen.insert(port) => {
                    self.duplicate(item.value.span, setting.property.name);
                    ports = None;
                }
                (Some(port), Some(ports)) => ports.push(port),
                _ => ports = None,
            }
        }
        ports
    }

    fn hostname(&mut self, scope: Scope, settings: &Settings<'a>) -> Option<String> {
        let setting = settings.get("hostname")?;
        let value = setting.value.value;
        let hostname = self.filled(setting.read(), scope)?;
        // 64 is what uname(2) holds.
        if hostname.len() > 64 || !is_host_name(&hostname) {
            let shown = self.shown(value.span);
            self.finding(Code::BadHostname, value.span, format!("{shown} is no host name"))
                .label("malformed or reserved")
                .expected(
                    "letters, digits and inner `-`, in parts of at most 63 characters separated by `.`, 64 in all",
                )
                .help("leave it out to use the component's name");
            return None;
        }
        Some(hostname.into_owned())
    }

    /// Whether `healthcheck` is `"none"` instead of a block.
    fn is_switched_off(&mut self, scope: Scope, setting: &Setting<'a>) -> bool {
        match self.follow(setting.value, scope).map(|bound| &bound.value.kind) {
            Some(ValueKind::Text(_)) => self.choice(setting.read(), &["none"], scope).is_some(),
            Some(ValueKind::Body(_)) | None => false,
            Some(_) => {
                self.wrong_type(setting.property, setting.value.value);
                false
            }
        }
    }

    /// Names that are different but become one host name or one variable. Both come from a name in the same way, up to
    /// upper and lower case, so one table serves them.
    pub(super) fn collisions(&mut self) {
        let mut hosts: HashMap<Cow<'_, str>, (usize, Host)> = HashMap::with_capacity(self.declared.len());
        for index in 0..self.declared.len() {
            let declared = &self.declared[index];
            if declared.role != Role::Deployed || self.by_name[0].get(&declared.name) != Some(&index) {
                continue;
            }
            let (span, replicas) = (declared.span, declared.replicas);
            let from_name = match declared.name.bytes().any(|byte| byte == b'_' || byte.is_ascii_uppercase()) {
                true => declared.name.replace('_', "-").to_ascii_lowercase().into(),
                false => declared.name.clone(),
            };
            let of_replicas = (1..=replicas.unwrap_or(0)).map(|number| Cow::Owned(format!("{from_name}-{number}")));
            let names = of_replicas.map(|name| (name, Host::Replica)).collect::<Vec<_>>();
            for (name, what) in std::iter::once((from_name, Host::Name)).chain(names) {
                let (other, others) = *hosts.entry(name).or_insert((index, what));
                if other != index {
                    self.collide(index, span, what, other, others);
                    break;
                }
            }
            let declared = &self.declared[index];
            let Some(at) = declared.hostname_at else { continue };
            let hostname = declared.host();
            let (other, others) = *hosts.entry(hostname.to_ascii_lowercase().into()).or_insert((index, Host::Own));
            if other != index {
                self.collide(index, at, Host::Own, other, others);
            }
        }
    }

    fn collide(&mut self, index: usize, at: Span, what: Host, other: usize, others: Host) {
        let name = self.declared[index].name.clone();
        let (other_name, other_span) = (shown(&self.declared[other].name), self.declared[other].span);
        match (what, others) {
            (Host::Name, Host::Name) => {
                let name_of_variable = format!("{}_HOST", prefix(&name));
                let message = format!("{} and {other_name} both give the variable `{name_of_variable}`", shown(&name));
                self.finding(Code::NameCollision, at, message)
                    .label("the same variable")
                    .related(other_span, "as for this one")
                    .help("give one of them another name");
            }
            (Host::Own, _) | (_, Host::Own) => self.same_host(&name, at, other),
            (Host::Replica, _) | (_, Host::Replica) => {
                let message = format!("a replica would have the same name: {} and {other_name}", shown(&name));
                self.finding(Code::NameCollision, at, message)
                    .label("replicas are named with numbers")
                    .related(other_span, "the other one")
                    .help("give one of them another name");
            }
        }
    }

    fn same_host(&mut self, name: &str, at: Span, other: usize) {
        let (other_name, other_span) = (shown(&self.declared[other].name), self.declared[other].span);
        self.finding(Code::NameCollision, at, format!("{} has the same host name as {other_name}", shown(name)))
            .label("the same host name")
            .related(other_span, "as this one")
            .help("give one of them another name or `hostname`");
    }
}
