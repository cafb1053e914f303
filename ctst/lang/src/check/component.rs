//! The properties of a component that nobody else refers to.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use crate::codes::Code;
use crate::diagnostic::{Span, shown};
use crate::model::{self, Dependency, Distroless, Healthcheck, Image, Lazy, Limits, Probe, Restart, SecretVariable};
use crate::syntax::ValueKind;
use crate::text::joined;

use super::connect::Edge;
use super::declare::prefix;
use super::inherit::{Setting, Settings};
use super::mounts::Targets;
use super::resolve::Scope;
use super::stores::model_parts;
use super::values::Read;
use super::{Checker, Role};

/// How many variables a CONNECT gives.
const WIRED: usize = 3;

/// The value of a variable.
enum Variable {
    Plain(String),
    Secret(Vec<model::Part>),
}

/// `name`, `id`, and both with a group behind a colon.
pub(super) fn is_account(text: &str) -> bool {
    let id = |part: &str| {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            // The highest one means "no change" to the kernel.
            part.parse::<u32>().is_ok_and(|id| id != u32::MAX)
        } else {
            part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.$".contains(&byte))
        }
    };
    match text.split_once(':') {
        None => id(text),
        Some((name, group)) => id(name) && id(group),
    }
}

impl<'a> Checker<'a, '_> {
    /// All components; incomplete if there are errors.
    pub(super) fn components(&mut self) -> Vec<model::Component> {
        let mut edges: Vec<usize> = (0..self.edges.len()).collect();
        edges.sort_by_key(|&number| self.edges[number].from);
        let mut edges = edges.as_slice();
        let mut examined = Vec::with_capacity(self.declared.len());
        for (index, declared) in self.declared.iter().enumerate() {
            let own;
            (own, edges) = edges.split_at(edges.iter().take_while(|&&number| self.edges[number].from == index).count());
            if declared.is_examined() {
                examined.push((index, own));
            }
        }
        let mut found = self.each(&examined, |checker, &(index, edges)| {
            checker.examine(index, |checker, settings| checker.component(index, settings, edges))
        });
        let declared = self.declared.to_mut();
        for ((index, _), component) in examined.iter().zip(&mut found) {
            if let Some((component, image)) = component.as_mut().zip(declared[*index].image.take()) {
                component.image = image;
            }
        }
        if self.declared.iter().all(|declared| declared.replicas.is_none()) {
            #[expect(
                clippy::filter_map_identity,
                reason = "the vector stays where it is, while `flatten` makes another"
            )]
            return found.into_iter().filter_map(|component| component).collect();
        }
        let mut components = Vec::new();
        for ((index, _), component) in examined.iter().zip(found) {
            component.into_iter().for_each(|component| self.deploy(*index, component, &mut components));
        }
        components
    }

    fn component(&mut self, index: usize, settings: &Settings<'a>, edges: &[usize]) -> Option<model::Component> {
        let scope = Scope::component(index);
        let (mut env, secret_env) = self.variables(settings, scope, edges);
        self.wire(&mut env, &secret_env, edges);
        let command = settings.get("command").map(|setting| self.arguments(setting, scope));
        let entrypoint = settings.get("entrypoint").map(|setting| self.arguments(setting, scope));
        self.something_to_run(index, settings, command.as_ref(), entrypoint.as_ref());
        let readonly = settings.get("readonly").and_then(|setting| self.boolean(setting.read(), scope)).unwrap_or(true);
        let lazy = self.lazy(index, settings);
        let distroless = self.distroless(index, settings, lazy);
        let workdir = settings.get("workdir").and_then(|setting| {
            let path = self.filled(setting.read(), scope)?;
            self.absolute(setting.value.value.span, "workdir", &path)
        });
        let user = settings.get("user").and_then(|setting| self.user(setting.read(), scope));
        let restart = settings.get("restart").and_then(|setting| self.restart(setting, index)).unwrap_or_default();
        let checked = settings.get("healthcheck").filter(|_| !self.declared[index].no_healthcheck);
        let healthcheck = checked.and_then(|setting| self.healthcheck(setting, index));
        let mut targets = Targets::new();
        let (volumes, tmpfs) = self.mounts(settings, scope, &mut targets);
        let devices = self.devices(settings, scope, &mut targets);
        let secrets = self.secret_files(settings, scope, &mut targets);
        let configs = self.config_files(settings, scope, &mut targets);
        let places = volumes.iter().map(|volume| &volume.target).chain(tmpfs.iter().map(|tmpfs| &tmpfs.target));
        let places = places.chain(devices.iter().map(|device| &device.target));
        let places = places.chain(secrets.iter().map(|file| &file.target));
        let places = places.chain(configs.iter().map(|file| &file.target)).map(String::as_str);
        self.places_are_distinct(places, &targets);
        let limits = self.limits(settings, scope);
        let limits = (limits != Limits::default()).then(|| Box::new(limits));
        let ulimits = self.ulimits(settings, scope);
        let sysctls = self.sysctls(settings, scope);
        let groups = self.groups(settings, scope);
        let shm = settings.get("shm").and_then(|setting| self.size(setting.read(), 1, scope));
        let stop = self.stop(settings, scope);
        let labels = self.labels(settings, scope);
        let hosts = self.hosts(settings, scope);
        let dns = self.dns(index, settings);
        let logs = self.logs(settings, scope);
        self.always(settings, scope);
        let (cap_add, cap_drop) = self.capabilities(settings, scope);
        let seccomp = self.seccomp(settings, scope);
        let landlock = self.landlock(settings, scope);
        let span = self.declared[index].span;
        let replicas = edges.iter().filter_map(|&number| self.declared[self.edges[number].to].replicas);
        let replicas = replicas.map(|count| count as usize * size_of::<Dependency>()).sum();
        let edges = if replicas > 0 && !self.expands(span, replicas) { &[] } else { edges };
        let mut after = Vec::with_capacity(edges.len());
        after.extend(edges.iter().flat_map(|&number| self.dependencies(number)));
        let declared = &self.declared[index];
        if declared.role != Role::Deployed || declared.image.is_none() {
            return None;
        }
        // Declarations are shared here. The image moves from there at the end, as a copy would cost memory.
        let image = Image::File { path: String::new(), sha256: None };
        let component = model::Component {
            line: declared.line,
            ports: declared.ports.clone().unwrap_or_default(),
            env,
            command: command.flatten(),
            entrypoint: entrypoint.flatten(),
            readonly,
            lazy,
            distroless: distroless.map(Box::new),
            workdir,
            user,
            restart,
            network: declared.network.clone()?,
            healthcheck,
            volumes,
            tmpfs,
            devices,
            after,
            job: declared.is_job(),
            secret_env,
            secrets,
            configs,
            limits,
            ulimits,
            sysctls,
            groups,
            shm,
            stop,
            labels,
            hosts,
            dns,
            logs,
            no_healthcheck: declared.no_healthcheck,
            cap_add,
            cap_drop,
            seccomp,
            landlock: landlock.map(Box::new),
            ..model::Component::new(declared.name.clone().into_owned(), declared.host(), image)
        };
        self.can_be_copied(index, &component).then_some(component)
    }

    /// Only what is an archive can be read from one.
    fn lazy(&mut self, index: usize, settings: &Settings<'a>) -> Option<Lazy> {
        let setting = settings.get("lazy");
        let lazy = setting.and_then(|setting| self.laziness(setting.read(), Scope::component(index)));
        let image = self.declared[index].image.as_ref();
        if let (Some(Lazy::Yes | Lazy::Always), Some(key), Some(image)) = (lazy, settings.key("lazy"), image)
            && !matches!(image, Image::Tar { .. })
        {
            self.finding(Code::Exclusive, key, "`lazy` is for `tar://` archives only")
                .label("not with this image")
                .help(
                    "remove it: other images are not unpacked when a component starts; `UNSET lazy` if it is inherited",
                );
        }
        lazy
    }

    fn laziness(&mut self, (property, bound): Read<'a>, scope: Scope) -> Option<Lazy> {
        let value = self.follow(bound, scope)?.value;
        match value.kind {
            ValueKind::Bool(false) => Some(Lazy::No),
            ValueKind::Bool(true) => Some(Lazy::Yes),
            ValueKind::Text(_) => self.choice((property, bound), &["always"], scope).map(|_| Lazy::Always),
            _ => {
                self.wrong_type(property, value);
                None
            }
        }
    }

    /// What is kept of the image, if not all of it.
    fn distroless(&mut self, index: usize, settings: &Settings<'a>, lazy: Option<Lazy>) -> Option<Distroless> {
        let (setting, scope) = (settings.get("distroless")?, Scope::component(index));
        let keep = match setting.value.value.kind {
            ValueKind::Body(_) => {
                let block = self.block_of(settings, "distroless")?;
                block.get("keep").map_or(Some(Vec::new()), |keep| self.globs(keep, scope))?
            }
            _ => match self.boolean(setting.read(), scope)? {
                true => Vec::new(),
                false => return None,
            },
        };
        let key = settings.key("distroless")?;
        if let Some(Image::Host { .. }) = self.declared[index].image {
            self.finding(Code::Exclusive, key, "an image of `host://` programs has only what they need already")
                .label("not with this image")
                .help("remove it; `UNSET distroless` if it is inherited, and `include` adds files");
            return None;
        }
        if let Some(lazy) = settings.key("lazy").filter(|_| lazy.is_some_and(Lazy::reads_archive)) {
            self.finding(Code::Exclusive, key, "`distroless` and `lazy` exclude each other")
                .label("has all of the image read")
                .related(lazy, "has it read as it is needed")
                .help("keep one of them");
            return None;
        }
        Some(Distroless { keep })
    }

    fn dependencies(&self, number: usize) -> impl Iterator<Item = Dependency> {
        let Edge { to, when, timeout, implied, optional, .. } = self.edges[number];
        self.deployed_names(to).map(move |on| Dependency { on, when, timeout, implied, optional })
    }

    /// Variables without and with secrets in them. Those of `env` count more than those of files.
    fn variables(
        &mut self,
        settings: &Settings<'a>,
        scope: Scope,
        edges: &[usize],
    ) -> (Vec<(String, String)>, Vec<SecretVariable>) {
        let mut env = self.env_files(settings, scope);
        let mut secret_env = Vec::new();
        let Some(block) = self.block_of(settings, "env") else { return (env, secret_env) };
        if !env.is_empty() {
            let own: HashSet<&str> = block.iter().map(|variable| variable.name.as_ref()).collect();
            env.retain(|(name, _)| !own.contains(name.as_str()));
        }
        env.reserve_exact(block.iter().len() + WIRED * edges.len());
        for variable in block.iter() {
            if self.report.full() {
                break;
            }
            let name = || variable.name.clone().into_owned();
            match self.own_variable(variable, scope) {
                Some(Variable::Plain(text)) => env.push((name(), text)),
                Some(Variable::Secret(parts)) => secret_env.push(SecretVariable { name: name(), parts }),
                None => {}
            }
        }
        (env, secret_env)
    }

    fn own_variable(&mut self, variable: &Setting<'a>, scope: Scope) -> Option<Variable> {
        let bound = self.follow(variable.value, scope)?;
        if !matches!(bound.value.kind, ValueKind::Text(_)) || self.is_simple(bound) {
            return self.entry(variable, scope).map(Variable::Plain);
        }
        let parts = self.parts((variable.property, bound), scope.with_secrets())?;
        Some(match parts.iter().any(|part| part.secret) {
            true => Variable::Secret(model_parts(parts)),
            false => Variable::Plain(joined(&parts).into_owned()),
        })
    }

    /// The variables that CONNECT gives; what the author set stays.
    fn wire(&self, env: &mut Vec<(String, String)>, secret_env: &[SecretVariable], edges: &[usize]) {
        if edges.is_empty() {
            return;
        }
        let written = env.len();
        env.reserve_exact(WIRED * edges.len());
        let secret = secret_env.iter().map(|variable| &variable.name);
        let many: Option<HashSet<String>> = (written + secret_env.len() > 32)
            .then(|| env.iter().map(|(name, _)| name.clone()).chain(secret.clone().cloned()).collect());
        let own = |env: &[(String, String)], name: &String| match &many {
            Some(names) => names.contains(name),
            None => env[..written].iter().any(|(other, _)| other == name) || secret.clone().any(|other| other == name),
        };
        for &number in edges {
            let target = &self.declared[self.edges[number].to];
            let (prefix, host) = (prefix(&target.name), target.host());
            let wire = |env: &mut Vec<(String, String)>, field: &str, value: String| {
                let name = [prefix.as_str(), field].concat();
                if !own(env, &name) {
                    env.push((name, value));
                }
            };
            if let Some(port) = target.ports.as_ref().and_then(|ports| ports.first()) {
                let port = port.to_string();
                let url = [target.scheme, "://", &host, ":", &port].concat();
                wire(env, "_HOST", host);
                wire(env, "_PORT", port);
                wire(env, "_CONNECTION_STRING", url);
            } else {
                wire(env, "_HOST", host);
            }
        }
    }

    /// A bare directory has no program of its own, and an empty list takes away the one that an image has.
    fn something_to_run(
        &mut self,
        index: usize,
        settings: &Settings<'a>,
        command: Option<&Option<Vec<String>>>,
        entrypoint: Option<&Option<Vec<String>>>,
    ) {
        // An argument list that was refused counts as there.
        let empty =
            |words: Option<&Option<Vec<String>>>| words.is_none_or(|words| words.as_ref().is_some_and(Vec::is_empty));
        let program = !matches!(self.declared[index].image, Some(Image::File { .. })) && entrypoint.is_none();
        let declared = &self.declared[index];
        if program || !empty(command) || !empty(entrypoint) || declared.partial || declared.role != Role::Deployed {
            return;
        }
        let name = shown(&self.declared[index].name);
        let span = settings
            .get("entrypoint")
            .or_else(|| settings.get("image"))
            .map_or(self.declared[index].span, |setting| setting.value.value.span);
        self.finding(Code::NothingToRun, span, format!("{name} has no program to run"))
            .label("names no program")
            .expected("`command` or `entrypoint`")
            .help("add for example `command = [\"/bin/app\"]`");
    }

    pub(super) fn user(&mut self, setting: Read<'a>, scope: Scope) -> Option<String> {
        let user = self.account(setting, scope)?;
        if !is_account(&user) {
            let (property, span) = (setting.0, setting.1.value.span);
            let shown = self.shown(span);
            self.finding(Code::BadUser, span, format!("{shown} is no user"))
                .label("malformed user")
                .expected("`name`, `uid`, `name:group` or `uid:gid`, ids from 0 to 4294967294")
                .help(format!("for example `{}`", property.example));
            return None;
        }
        Some(user.into_owned())
    }

    /// The text of a user or a group, which may also be a bare number.
    pub(super) fn account(&mut self, (property, bound): Read<'a>, scope: Scope) -> Option<Cow<'a, str>> {
        let bound = self.follow(bound, scope)?;
        match bound.value.kind {
            ValueKind::Integer => Some(self.raw(bound).into()),
            _ => self.filled((property, bound), scope),
        }
    }

    fn restart(&mut self, setting: &Setting<'a>, index: usize) -> Option<Restart> {
        let choices = [Restart::Never, Restart::OnFailure, Restart::Always, Restart::UnlessStopped];
        let words = &["never", "on-failure", "always", "unless-stopped"];
        let chosen = self.choice(setting.read(), words, Scope::component(index))?;
        let restart = choices.get(chosen).copied();
        if self.declared[index].is_job() && matches!(restart, Some(Restart::Always | Restart::UnlessStopped)) {
            self.finding(
                Code::Exclusive,
                setting.value.value.span,
                "a JOB runs to completion, and this would start it again",
            )
            .label("never completes")
            .expected("`never` or `on-failure` in quotes")
            .help("write `restart = \"on-failure\"`, or make it a COMPONENT");
        }
        restart
    }

    fn healthcheck(&mut self, setting: &Setting<'a>, index: usize) -> Option<Healthcheck> {
        let scope = Scope::component(index);
        let value = setting.value.value;
        if !matches!(value.kind, ValueKind::Body(_)) {
            return None;
        }
        let settings = setting.block();
        let complete = !settings.partial && self.declared[index].role == Role::Deployed;
        let probe = self.probe(settings, value.span, index, complete);
        let mut time = |name, default, zero| match settings.get(name) {
            Some(setting) => self.duration(setting.read(), zero, scope),
            None => Some(Duration::from_secs(default)),
        };
        let (interval, timeout, start_period) =
            (time("interval", 30, false), time("timeout", 5, false), time("start_period", 0, true));
        let retries = match settings.get("retries") {
            Some(setting) => self.positive(setting.read(), u32::MAX, scope),
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

    fn probe(&mut self, settings: &Settings<'a>, span: Span, index: usize, complete: bool) -> Option<Probe> {
        let scope = Scope::component(index);
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
        let tcp = settings.get("tcp").map(|setting| self.port(setting.read(), scope));
        let http = settings.get("http").map(|setting| self.probe_http(setting, settings, index));
        command.or(http).or(tcp.map(|port| port.map(Probe::Tcp))).flatten()
    }

    fn probe_command(&mut self, setting: &Setting<'a>, scope: Scope) -> Option<Probe> {
        let property = setting.property;
        let bound = self.follow(setting.value, scope)?;
        let value = bound.value;
        let command = match value.kind {
            ValueKind::List(_) => self.arguments(setting, scope)?,
            _ if setting.added().is_empty() => {
                vec!["/bin/sh".into(), "-c".into(), self.filled((property, bound), scope)?.into_owned()]
            }
            _ => {
                self.finding(
                    Code::WrongType,
                    setting.key,
                    "`+=` adds to a list, and the inherited `command` is a string",
                )
                .label("no list")
                .related(value.span, "inherited")
                .help("write `command = [ … ]`");
                return None;
            }
        };
        if command.first().is_none_or(String::is_empty) {
            self.finding(Code::NothingToRun, value.span, "the health check names no program")
                .label("empty")
                .help(format!("for example `{}`", property.example));
            return None;
        }
        Some(Probe::Command(command))
    }

    fn probe_http(&mut self, setting: &Setting<'a>, settings: &Settings<'a>, index: usize) -> Option<Probe> {
        let scope = Scope::component(index);
        let path = self.filled(setting.read(), scope)?;
        let span = setting.value.value.span;
        if !path.starts_with('/') || path.contains(|c: char| c.is_control() || c == ' ') {
            let shown = self.shown(span);
            self.finding(Code::BadPath, span, format!("{shown} is no path to ask for"))
                .label("malformed path")
                .expected(setting.property.wants)
                .help(format!(
                    "for example `{}`, with `port = 8080` if it is not the component's first",
                    setting.property.example
                ));
            return None;
        }
        let port = match settings.get("port") {
            Some(setting) => self.port(setting.read(), scope)?,
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
        Some(Probe::Http { port, path: path.into_owned() })
    }
}
