//! The properties of a component that nobody else refers to.

use std::collections::HashSet;
use std::time::Duration;

use crate::codes::Code;
use crate::diagnostic::{Span, shown};
use crate::model::{self, Dependency, Healthcheck, Image, Probe, Restart};
use crate::syntax::{Action, ComponentKind, Value, ValueKind};

use super::Checker;
use super::declare::prefix;
use super::properties::{self, Property, Settings};
use super::resolve::Scope;

impl Checker<'_, '_> {
    /// All components; incomplete if there are errors.
    pub(super) fn components(&mut self) -> Vec<model::Component> {
        let mut edges_from: Vec<Vec<usize>> = vec![Vec::new(); self.declared.len()];
        for (number, edge) in self.edges.iter().enumerate() {
            edges_from[edge.from].push(number);
        }
        let mut components = Vec::new();
        for (index, edges) in edges_from.iter().enumerate() {
            if self.report.full() {
                break;
            }
            if self.declared[index].syntax.kind == ComponentKind::Component {
                components.extend(self.component(index, edges));
            }
        }
        components
    }

    fn component(&mut self, index: usize, edges: &[usize]) -> Option<model::Component> {
        let settings = std::mem::take(&mut self.declared[index].settings);
        let scope = Scope::Component(index);
        let mut env = self.variables(&settings, scope);
        self.wire(&mut env, edges);
        let command = settings.get("command").map(|setting| self.arguments(setting, scope));
        let entrypoint = settings.get("entrypoint").map(|setting| self.arguments(setting, scope));
        self.something_to_run(index, &settings, command.as_ref(), entrypoint.as_ref());
        let readonly = settings.get("readonly").and_then(|setting| self.boolean(setting)).unwrap_or(true);
        let workdir = settings.get("workdir").and_then(|setting| {
            let path = self.filled(setting, scope)?;
            self.absolute(setting.1.span, "workdir", &path)
        });
        let user = settings.get("user").and_then(|setting| self.user(setting, scope));
        let restart = settings.get("restart").and_then(|setting| self.restart(setting, scope)).unwrap_or_default();
        let healthcheck = settings.get("healthcheck").and_then(|setting| self.healthcheck(setting, index));
        let (volumes, tmpfs) = self.mounts(&settings, scope);
        let after = edges.iter().map(|&number| self.dependency(number)).collect();
        let declared = &mut self.declared[index];
        Some(model::Component {
            name: declared.name.clone().into_owned(),
            line: declared.line,
            image: declared.image.take()?,
            ports: declared.ports.clone().unwrap_or_default(),
            env,
            command: command.flatten(),
            entrypoint: entrypoint.flatten(),
            readonly,
            workdir,
            user,
            hostname: declared.hostname.clone()?,
            restart,
            network: declared.network?,
            healthcheck,
            volumes,
            tmpfs,
            after,
        })
    }

    fn dependency(&self, number: usize) -> Dependency {
        let edge = &self.edges[number];
        Dependency { on: self.declared[edge.to].name.clone().into_owned(), when: edge.when, timeout: edge.timeout }
    }

    fn variables(&mut self, settings: &Settings<'_>, scope: Scope) -> Vec<(String, String)> {
        let Some((property, value)) = settings.get("env") else { return Vec::new() };
        let ValueKind::Body(body) = &value.kind else {
            self.wrong_type(property, value);
            return Vec::new();
        };
        let mut env = Vec::new();
        let mut seen = std::collections::HashMap::new();
        for entry in &body.entries {
            if self.report.full() {
                break;
            }
            let (key, span) = (entry.key.text(self.source), entry.key.span);
            let value = match &entry.action {
                Action::Set(value) => value,
                Action::Append(_) => {
                    self.not_supported(span, "`+=`, which adds to what is inherited,");
                    continue;
                }
                Action::Unset => {
                    self.not_supported(span, "`UNSET`, which removes what is inherited,");
                    continue;
                }
                Action::Annotate(_) => {
                    self.not_supported(span, "`annotate`");
                    continue;
                }
            };
            if key.is_empty() || key.contains(['=', '\0']) || key.contains("${") {
                self.finding(Code::BadVariableName, span, format!("{} is no name of a variable", shown(&key)))
                    .label("malformed variable name")
                    .expected("a name without `=` and placeholders")
                    .help("write `NAME = \"value\"`");
            }
            if let Some(first) = seen.insert(key.clone(), span) {
                self.finding(Code::DuplicateProperty, span, format!("the variable {} is set twice", shown(&key)))
                    .label("set again")
                    .related(first, "set here first")
                    .help("keep one of them");
            }
            if let Some(text) = self.variable_value(value, scope) {
                env.push((key.into_owned(), text));
            }
        }
        env
    }

    fn variable_value(&mut self, value: &Value, scope: Scope) -> Option<String> {
        const VARIABLE: Property = Property {
            name: "env",
            wants: "a string, a number or a truth value",
            example: r#"env { MODE = "production" }"#,
        };
        match value.kind {
            ValueKind::Integer | ValueKind::Decimal | ValueKind::Quantity | ValueKind::Bool(_) => {
                Some(value.span.text(self.source).to_owned())
            }
            _ => self.text((&VARIABLE, value), scope),
        }
    }

    /// The variables that CONNECT gives; what the author set stays.
    fn wire(&self, env: &mut Vec<(String, String)>, edges: &[usize]) {
        let own: HashSet<String> = env.iter().map(|(name, _)| name.clone()).collect();
        for &number in edges {
            let target = &self.declared[self.edges[number].to];
            let (prefix, host) = (prefix(&target.name), target.host());
            let mut wiring = vec![(format!("{prefix}_HOST"), host.clone())];
            if let Some(port) = target.ports.as_ref().and_then(|ports| ports.first()) {
                wiring.push((format!("{prefix}_PORT"), port.to_string()));
                wiring.push((format!("{prefix}_CONNECTION_STRING"), format!("{}://{host}:{port}", target.scheme)));
            }
            env.extend(wiring.into_iter().filter(|(name, _)| !own.contains(name)));
        }
    }

    /// A bare directory has no program of its own, and an empty list takes away the one that an image has.
    fn something_to_run(
        &mut self,
        index: usize,
        settings: &Settings<'_>,
        command: Option<&Option<Vec<String>>>,
        entrypoint: Option<&Option<Vec<String>>>,
    ) {
        // An argument list that was refused counts as there.
        let empty =
            |words: Option<&Option<Vec<String>>>| words.is_none_or(|words| words.as_ref().is_some_and(Vec::is_empty));
        let program = matches!(self.declared[index].image, Some(Image::Host { .. }) | None) && entrypoint.is_none();
        if program || !empty(command) || !empty(entrypoint) || self.declared[index].partial {
            return;
        }
        let name = shown(&self.declared[index].name);
        let span = settings
            .get("entrypoint")
            .or_else(|| settings.get("image"))
            .map_or(self.declared[index].span, |(_, value)| value.span);
        self.finding(Code::NothingToRun, span, format!("{name} has no program to run"))
            .label("names no program")
            .expected("`command` or `entrypoint`")
            .help("add for example `command = [\"/bin/app\"]`");
    }

    fn user(&mut self, (property, value): (&Property, &Value), scope: Scope) -> Option<String> {
        let user = match value.kind {
            ValueKind::Integer => value.span.text(self.source).to_owned(),
            _ => self.filled((property, value), scope)?,
        };
        let id = |part: &str| {
            if part.bytes().all(|byte| byte.is_ascii_digit()) {
                // The highest one means "no change" to the kernel.
                part.parse::<u32>().is_ok_and(|id| id != u32::MAX)
            } else {
                part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                    && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.$".contains(&byte))
            }
        };
        let good = match user.split_once(':') {
            None => id(&user),
            Some((name, group)) => id(name) && id(group),
        };
        if !good {
            let shown = self.shown(value.span);
            self.finding(Code::BadUser, value.span, format!("{shown} is no user"))
                .label("malformed user")
                .expected("`name`, `uid`, `name:group` or `uid:gid`, ids from 0 to 4294967294")
                .help(format!("for example `{}`", property.example));
            return None;
        }
        Some(user)
    }

    fn restart(&mut self, setting: (&Property, &Value), scope: Scope) -> Option<Restart> {
        let choices = [Restart::Never, Restart::OnFailure, Restart::Always, Restart::UnlessStopped];
        let index = self.choice(setting, &["never", "on-failure", "always", "unless-stopped"], scope)?;
        choices.get(index).copied()
    }

    fn healthcheck(&mut self, (property, value): (&'static Property, &Value), index: usize) -> Option<Healthcheck> {
        let scope = Scope::Component(index);
        let ValueKind::Body(body) = &value.kind else {
            self.wrong_type(property, value);
            return None;
        };
        let (settings, complete) = self.settings(body, properties::HEALTHCHECK, "a health check");
        let probe = self.probe(&settings, value.span, index, complete);
        let mut time = |name, default, zero| match settings.get(name) {
            Some(setting) => self.duration(setting, zero, scope),
            None => Some(Duration::from_secs(default)),
        };
        let (interval, timeout, start_period) =
            (time("interval", 30, false), time("timeout", 5, false), time("start_period", 0, true));
        let retries = match settings.get("retries") {
            Some(setting) => self.positive(setting, u32::MAX, scope),
            None => Some(3),
        };
        Some(Healthcheck {
            probe: probe?,
            interval: interval?,
            timeout: timeout?,
            retries: retries?,
            start_period: start_period?,
        })
    }

    fn probe(&mut self, settings: &Settings<'_>, span: Span, index: usize, complete: bool) -> Option<Probe> {
        let scope = Scope::Component(index);
        let mut kinds: Vec<Span> = ["command", "http", "tcp"].iter().filter_map(|kind| settings.key(kind)).collect();
        kinds.sort_unstable();
        match *kinds.as_slice() {
            [] if complete => {
                self.finding(Code::MissingProperty, span, "the health check probes nothing")
                    .label("no probe")
                    .expected("`command`, `http` or `tcp`")
                    .help("add for example `http = \"/healthz\"` or `tcp = 5432`");
                return None;
            }
            [] => return None,
            [first, second, ..] => {
                self.finding(Code::Exclusive, second, "a health check has one probe only")
                    .label("a second probe")
                    .related(first, "the first one")
                    .expected("one of `command`, `http` and `tcp`")
                    .help("keep one of them");
            }
            [_] => {}
        }
        if let (Some(port), None) = (settings.key("port"), settings.key("http")) {
            self.finding(Code::Exclusive, port, "`port` in a health check belongs to `http`")
                .label("has no use here")
                .help("for a TCP probe write `tcp = 5432`");
        }
        let command = settings.get("command").map(|setting| self.probe_command(setting, scope));
        let tcp = settings.get("tcp").map(|setting| self.port(setting, scope));
        let http = settings.get("http").map(|setting| self.probe_http(setting, settings, index));
        command.or(http).or(tcp.map(|port| port.map(Probe::Tcp))).flatten()
    }

    fn probe_command(&mut self, (property, value): (&'static Property, &Value), scope: Scope) -> Option<Probe> {
        let command = match value.kind {
            ValueKind::List(_) => self.arguments((property, value), scope)?,
            _ => vec!["/bin/sh".into(), "-c".into(), self.filled((property, value), scope)?],
        };
        if command.first().is_none_or(String::is_empty) {
            self.finding(Code::NothingToRun, value.span, "the health check names no program")
                .label("empty")
                .help(format!("for example `{}`", property.example));
            return None;
        }
        Some(Probe::Command(command))
    }

    fn probe_http(
        &mut self,
        setting: (&'static Property, &Value),
        settings: &Settings<'_>,
        index: usize,
    ) -> Option<Probe> {
        let scope = Scope::Component(index);
        let path = self.filled(setting, scope)?;
        let span = setting.1.span;
        if !path.starts_with('/') || path.contains(|c: char| c.is_control() || c == ' ') {
            let shown = self.shown(span);
            self.finding(Code::BadPath, span, format!("{shown} is no path to ask for"))
                .label("malformed path")
                .expected(setting.0.wants)
                .help(format!(
                    "for example `{}`, with `port = 8080` if it is not the component's first",
                    setting.0.example
                ));
            return None;
        }
        let port = match settings.get("port") {
            Some(setting) => self.port(setting, scope)?,
            None => match self.declared[index].ports.as_ref()?.first() {
                Some(port) => *port,
                None => {
                    self.finding(Code::MissingProperty, span, "the health check has no port to ask")
                        .label("on which port?")
                        .expected("`port` here or in the component")
                        .help("add `port = 8080`");
                    return None;
                }
            },
        };
        Some(Probe::Http { port, path })
    }
}
