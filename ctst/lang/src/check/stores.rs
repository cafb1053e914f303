//! What a composition has beside its containers: named volumes, secrets, and texts that become files.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};
use crate::model::{self, ConfigFile, NamedVolume, Secret, SecretFile, SecretSource};
use crate::syntax::{Body, Name, SecretFrom, Text, Value, ValueKind};
use crate::text::{Part, joined};

use super::Checker;
use super::declare::well_formed;
use super::inherit::Settings;
use super::mounts::Targets;
use super::networks::Declaration;
use super::properties::{CONTENT, MOUNTED, PARAMETER};
use super::resolve::{Bound, MOST_COMPARED, Origin, Scope};
use super::values::Read;

/// Longest content of a CONFIG from a file. More is data, which belongs into a volume.
const LONGEST_CONFIG: usize = 1 << 20;

/// The statements NETWORK, VOLUME, SECRET and CONFIG.
#[derive(Default, Clone)]
pub(super) struct Stores<'a> {
    pub(super) networks: Table<'a, Declaration<'a>>,
    volumes: Table<'a, Option<&'a Body<'a>>>,
    secrets: Table<'a, (SecretFrom, Text)>,
    configs: Table<'a, &'a Value<'a>>,
}

/// What one kind of statement declares. These names are those of the whole composition.
#[derive(Clone)]
pub(super) struct Table<'a, T> {
    pub(super) list: Vec<Entry<'a, T>>,
    by_name: HashMap<Cow<'a, str>, usize>,
}

#[derive(Clone)]
pub(super) struct Entry<'a, T> {
    pub(super) name: Cow<'a, str>,
    pub(super) span: Span,
    pub(super) file: usize,
    pub(super) what: T,
}

impl<T> Default for Table<'_, T> {
    fn default() -> Self {
        Self { list: Vec::new(), by_name: HashMap::new() }
    }
}

impl<'a, T> Table<'a, T> {
    pub(super) fn get(&self, name: &str) -> Option<&Entry<'a, T>> {
        self.by_name.get(name).map(|&place| &self.list[place])
    }

    /// Adds what is new; the first one of two comes back. Those of the main file come first and count, whatever the
    /// templates that it imports say.
    fn add(&mut self, entry: Entry<'a, T>) -> Option<Span> {
        match self.get(&entry.name) {
            Some(first) if first.file == 0 && entry.file != 0 => None,
            Some(first) => Some(first.span),
            None => {
                self.by_name.insert(entry.name.clone(), self.list.len());
                self.list.push(entry);
                None
            }
        }
    }
}

/// A text for the model: adjacent pieces become one.
pub(super) fn model_parts(parts: Vec<Part<'_>>) -> Vec<model::Part> {
    let mut out: Vec<model::Part> = Vec::with_capacity(1);
    for part in parts {
        match (part.secret, out.last_mut()) {
            (true, _) => out.push(model::Part::Secret(part.text.into_owned())),
            (false, Some(model::Part::Text(last))) => last.push_str(&part.text),
            (false, _) => out.push(model::Part::Text(part.text.into_owned())),
        }
    }
    out
}

impl<'a> Checker<'a, '_> {
    pub(super) fn declare_volume(&mut self, file: usize, name: Name, body: Option<&'a Body<'a>>) {
        let entry = self.store("volume", file, name, body);
        let (name, span) = (entry.name.clone(), entry.span);
        let first = self.stores.to_mut().volumes.add(entry);
        self.declared_twice("volume", &name, span, first);
    }

    pub(super) fn declare_network(&mut self, file: usize, name: Name, body: Option<&'a Body<'a>>) {
        let entry = self.store(
            "network",
            file,
            name,
            Declaration { body, subnet: None, egress: false, ipv6: false, subnet6: None },
        );
        let (name, span) = (entry.name.clone(), entry.span);
        if matches!(name.as_ref(), "none" | "host") {
            self.finding(Code::BadName, span, format!("{} is reserved", shown(&name)))
                .label("means something else")
                .help("give the network another name");
        }
        let first = self.stores.to_mut().networks.add(entry);
        self.declared_twice("network", &name, span, first);
    }

    pub(super) fn declare_secret(&mut self, file: usize, name: Name, from: SecretFrom, source: Text) {
        let entry = self.store("secret", file, name, (from, source));
        let (name, span) = (entry.name.clone(), entry.span);
        if self.is_remote(file) {
            self.finding(
                Code::UnreadableFile,
                span,
                "a file from the network does not say where secrets of this host are",
            )
            .label("would be read, or run, here")
            .help("write this SECRET into the main file, if it is to be so");
        }
        let first = self.stores.to_mut().secrets.add(entry);
        self.declared_twice("secret", &name, span, first);
    }

    pub(super) fn declare_config(&mut self, file: usize, name: Name, value: &'a Value<'a>) {
        let entry = self.store("config", file, name, value);
        let (name, span) = (entry.name.clone(), entry.span);
        if !matches!(value.kind, ValueKind::Text(_) | ValueKind::Body(_) | ValueKind::Path) {
            self.wrong_type(&CONTENT, value);
        }
        let first = self.stores.to_mut().configs.add(entry);
        self.declared_twice("config", &name, span, first);
    }

    fn store<T>(&mut self, what: &str, file: usize, name: Name, content: T) -> Entry<'a, T> {
        let (text, span) = (name.text(self.source), name.span);
        self.store_name(span, &text, what);
        Entry { name: text, span, file, what: content }
    }

    fn store_name(&mut self, span: Span, name: &str, what: &str) -> bool {
        let good = well_formed(name);
        if !good {
            self.finding(Code::BadName, span, format!("{} is no name", shown(name)))
                .label(format!("cannot be a {what}'s name"))
                .expected("a letter, then letters, digits, `_` and `-`, 63 characters at most")
                .help("give it another name");
        }
        good
    }

    fn declared_twice(&mut self, what: &str, name: &str, span: Span, first: Option<Span>) {
        let Some(first) = first else { return };
        self.finding(Code::DuplicateName, span, format!("the {what} {} is declared twice", shown(name)))
            .label("declared again")
            .related(first, "declared here first")
            .help("give one of them another name");
    }

    fn store_unused(&mut self, span: Span, name: &str, statement: &str, verb: &str) {
        if self.report.has_errors() || self.report.full() {
            return;
        }
        self.finding(Code::UnusedDeclaration, span, format!("nothing {verb} the {statement} {}", shown(name)))
            .label("not used")
            .help("remove it");
    }

    pub(super) fn stack_labels(&mut self) -> Vec<(String, String)> {
        let body = self.stack.as_ref().and_then(|(.., body)| *body);
        self.labels_of(0, body)
    }

    /// Notes that a component mounts a volume by its name.
    pub(super) fn mounted(&mut self, span: Span, name: &str) {
        if !self.uses.mounted.contains_key(name) {
            self.uses.mounted.insert(name.to_owned(), span);
        }
    }

    /// All volumes by name: what the main file declares, and what is mounted.
    pub(super) fn named_volumes(&mut self) -> Vec<NamedVolume> {
        let mut names: BTreeSet<String> = self.uses.mounted.keys().cloned().collect();
        let mut labels = HashMap::new();
        for place in 0..self.stores.volumes.list.len() {
            let Entry { name, span, file, what: body } = &self.stores.volumes.list[place];
            let (name, span, file, body) = (name.clone(), *span, *file, *body);
            if file == 0 && names.insert(name.clone().into_owned()) {
                self.store_unused(span, &name, "VOLUME", "mounts");
            }
            labels.insert(name, self.labels_of(file, body));
        }
        // Each is compared with each, and a file may have any number of both.
        let few = names.len().saturating_mul(labels.len()) <= MOST_COMPARED * MOST_COMPARED / 10;
        names
            .into_iter()
            .map(|name| {
                let labels = labels.remove(name.as_str());
                if labels.is_none() && few {
                    self.nearly_declared(&name);
                }
                NamedVolume { labels: labels.unwrap_or_default(), name }
            })
            .collect()
    }

    /// A volume that nothing declares is made all the same, but may have been meant to be one that is declared.
    fn nearly_declared(&mut self, name: &str) {
        let volumes = &self.stores.volumes;
        let Some(meant) = nearest(name, volumes.by_name.keys().map(AsRef::as_ref)) else { return };
        let (Some(meant), Some(&span)) = (volumes.get(meant), self.uses.mounted.get(name)) else { return };
        let (at, help) = (meant.span, format!("did you mean `{}`? Otherwise declare it: `VOLUME {name}`", meant.name));
        self.finding(
            Code::UndeclaredVolume,
            span,
            format!("no VOLUME is named {}, so that it is made anew", shown(name)),
        )
        .label("not declared")
        .related(at, "declared with a name like it")
        .help(help);
    }

    /// `${secret.name}`: the name, if it may stand there.
    pub(super) fn secret(&mut self, span: Span, name: &str, scope: Scope) -> Option<String> {
        if !scope.secrets {
            self.finding(Code::SecretElsewhere, span, "a secret stands where others would see it")
                .label("not in this text")
                .expected("in a variable of `env`, or in a CONFIG")
                .help("give it to the program as a file, `secrets = [\"name\"]`, or in a variable of `env`");
            return None;
        }
        self.store_name(span, name, "secret").then(|| {
            self.uses.secrets.insert(name.to_owned());
            name.to_owned()
        })
    }

    /// The secrets that components refer to, by name, with where they come from.
    pub(super) fn secrets(&mut self, components: &[model::Component]) -> Vec<Secret> {
        let variables = components.iter().flat_map(|c| c.secret_env.iter().flat_map(|variable| &variable.parts));
        let contents = components.iter().flat_map(|c| c.configs.iter().flat_map(|config| &config.content));
        let names = variables.chain(contents).filter_map(|part| match part {
            model::Part::Secret(name) => Some(name.as_str()),
            model::Part::Text(_) => None,
        });
        let files = components.iter().flat_map(|c| c.secrets.iter().map(|file| file.secret.as_str()));
        let names: BTreeSet<&str> = names.chain(files).collect();
        let mut sources = HashMap::new();
        for place in 0..self.stores.secrets.list.len() {
            let Entry { name, span, file, what } = &self.stores.secrets.list[place];
            let (name, span, file, (from, source)) = (name.clone(), *span, *file, *what);
            if file == 0 && !self.uses.secrets.contains(name.as_ref()) {
                self.store_unused(span, &name, "SECRET", "refers to");
            }
            sources.insert(name, self.secret_source(file, from, source));
        }
        let secret = |name: &str| Secret { name: name.to_owned(), source: sources.remove(name).flatten() };
        names.into_iter().map(secret).collect()
    }

    fn secret_source(&mut self, file: usize, from: SecretFrom, source: Text) -> Option<SecretSource> {
        let parts = self.interpolate(source, Origin::File(file), Scope::FILE)?;
        let text = joined(&parts);
        let variable = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        match from {
            _ if text.is_empty() => {
                self.finding(Code::OutOfRange, source.span, "it is not said where the secret comes from")
                    .label("empty")
                    .help("for example `SECRET token FROM FILE \"./token\"`");
                None
            }
            SecretFrom::Env if !variable(&text) => {
                let shown = self.shown(source.span);
                self.finding(Code::BadVariableName, source.span, format!("{shown} is no name of a variable"))
                    .label("malformed variable name")
                    .expected("letters, digits and `_`")
                    .help("for example `SECRET token FROM ENV \"TOKEN\"`");
                None
            }
            SecretFrom::File => Some(SecretSource::File(self.seen_from_here(&text, &parts, 0))),
            SecretFrom::Env => Some(SecretSource::Env(text.into_owned())),
            SecretFrom::Command => Some(SecretSource::Command(text.into_owned())),
        }
    }

    /// Warns about CONFIG statements that nothing uses.
    pub(super) fn unused_configs(&mut self) {
        for place in 0..self.stores.configs.list.len() {
            let Entry { name, span, file, .. } = &self.stores.configs.list[place];
            if *file == 0 && !self.uses.configs.contains(name.as_ref()) {
                let (name, span) = (name.clone(), *span);
                self.store_unused(span, &name, "CONFIG", "uses");
            }
        }
    }

    /// Warns about NETWORK statements of what nothing is on.
    pub(super) fn unused_networks(&mut self) {
        for place in 0..self.stores.networks.list.len() {
            let Entry { name, span, file, .. } = &self.stores.networks.list[place];
            if *file == 0 && !self.uses.networks.contains(name.as_ref()) {
                let (name, span) = (name.clone(), *span);
                self.store_unused(span, &name, "NETWORK", "is on");
            }
        }
    }

    /// `secrets` of a component.
    pub(super) fn secret_files(
        &mut self,
        settings: &Settings<'a>,
        scope: Scope,
        targets: &mut Targets,
    ) -> Vec<SecretFile> {
        let mut files = Vec::new();
        let Some(setting) = settings.get("secrets") else { return files };
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(Mounted { name, target, mode, owner }) = self.mounted_file((setting.property, item), scope) else {
                continue;
            };
            let span = item.value.span;
            if !self.store_name(span, &name, "secret") {
                continue;
            }
            let target = target.unwrap_or_else(|| format!("/run/secrets/{name}"));
            self.uses.secrets.insert(name.clone());
            let Some(target) = self.target(span, "secrets", &target, targets) else { continue };
            files.push(SecretFile { secret: name, target, mode: mode.unwrap_or(0o400), owner });
        }
        files
    }

    /// `configs` of a component.
    pub(super) fn config_files(
        &mut self,
        settings: &Settings<'a>,
        scope: Scope,
        targets: &mut Targets,
    ) -> Vec<ConfigFile> {
        let mut files = Vec::new();
        let Some(setting) = settings.get("configs") else { return files };
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(Mounted { name, target, mode, owner }) = self.mounted_file((setting.property, item), scope) else {
                continue;
            };
            let span = item.value.span;
            let Some(config) = self.stores.configs.get(&name) else {
                if !self.partial {
                    self.unknown_config(span, &name);
                }
                continue;
            };
            let (file, value) = (config.file, config.what);
            self.uses.configs.insert(name.clone());
            let content = self.content(span, file, value, scope).unwrap_or_default();
            let target = target.unwrap_or_else(|| format!("/{name}"));
            if let Some(target) = self.target(span, "configs", &target, targets) {
                files.push(ConfigFile { config: name, target, mode: mode.unwrap_or(0o444), owner, content });
            }
        }
        files
    }

    fn unknown_config(&mut self, span: Span, name: &str) {
        let names = || self.stores.configs.list.iter().map(|config| config.name.as_ref());
        let meant = nearest(name, names().take(MOST_COMPARED)).map(|meant| format!("did you mean `{meant}`?"));
        let list = super::some_of(names());
        let expected =
            if list.is_empty() { "a CONFIG; the file has none".to_owned() } else { format!("one of {list}") };
        self.finding(Code::UnknownConfig, span, format!("there is no config {}", shown(name)))
            .label("unknown config")
            .expected(expected)
            .help("declare it with `CONFIG name = \"content\"`")
            .help_if(meant);
    }

    /// What stands in a CONFIG, as the component at `span` sees it.
    fn content(&mut self, span: Span, file: usize, value: &'a Value<'a>, scope: Scope) -> Option<Vec<model::Part>> {
        let bound = self.follow(Bound::new(value, Origin::File(file)), scope)?;
        let parts = match bound.value.kind {
            ValueKind::Text(quote) if bound.given.is_none() => {
                let text = Text { span: bound.value.span, quote };
                model_parts(self.interpolate(text, bound.origin, scope.with_secrets())?)
            }
            ValueKind::Text(_) => model_parts(self.parts((&PARAMETER, bound), scope)?),
            ValueKind::Body(body) => vec![model::Part::Text(self.content_of_file(file, body, scope)?)],
            _ => {
                self.wrong_type(&CONTENT, bound.value);
                return None;
            }
        };
        let length = parts.iter().map(|part| match part {
            model::Part::Text(text) | model::Part::Secret(text) => text.len(),
        });
        self.expands(span, length.sum()).then_some(parts)
    }

    fn content_of_file(&mut self, file: usize, body: &'a Body<'a>, scope: Scope) -> Option<String> {
        let mut settings = Settings::default();
        let complete = self.merge(&mut settings, body, Origin::File(file), &super::properties::CONFIG);
        let Some(setting) = settings.get("file") else {
            if complete {
                self.finding(Code::MissingProperty, body.span, "it is not said which file this is read from")
                    .label("`file` is missing")
                    .help(format!("for example `{}`", CONTENT.example));
            }
            return None;
        };
        let (_, parts) = self.filled_parts(setting.read(), Scope { of: None, ..scope })?;
        let span = setting.value.value.span;
        let bytes = self.file(span, &parts, true)??;
        let problem = match std::str::from_utf8(&bytes) {
            Ok(_) if bytes.len() > LONGEST_CONFIG => format!("is longer than {LONGEST_CONFIG} bytes"),
            Ok(text) if !text.contains('\0') => return Some(text.to_owned()),
            Ok(_) => "has a NUL character in it".to_owned(),
            Err(_) => "is not UTF-8".to_owned(),
        };
        let shown = self.shown(span);
        self.finding(Code::UnreadableFile, span, format!("{shown} {problem}"))
            .label("is no text for a CONFIG")
            .expected("a text of 1 MiB at most")
            .help("mount it as a volume: `volumes = [\"./file:/file:ro\"]`");
        None
    }

    /// `name`, `name:/path`, `name:/path:0440`, or a block with the same.
    fn mounted_file(&mut self, (property, item): Read<'a>, scope: Scope) -> Option<Mounted> {
        let bound = self.follow(item, scope)?;
        let span = bound.value.span;
        if let ValueKind::Body(body) = &bound.value.kind {
            let mut settings = Settings::default();
            let complete = self.merge(&mut settings, body, bound.origin, &MOUNTED);
            let mut text =
                |name: &str| settings.get(name).map(|setting| self.filled(setting.read(), scope).map(Cow::into_owned));
            let (source, target) = (text("source"), text("target"));
            let mode = settings.get("mode").map(|setting| {
                let bound = self.follow(setting.value, scope)?;
                let text = match bound.value.kind {
                    ValueKind::Integer => self.raw(bound).into(),
                    _ => self.text((setting.property, bound), scope)?,
                };
                self.mode(bound.value.span, setting.property, &text)
            });
            if source.is_none() && complete {
                self.finding(Code::MissingProperty, span, format!("the entry of `{}` names nothing", property.name))
                    .label("`source` is missing")
                    .help(format!("for example `{}`", property.example));
            }
            let owner = settings.get("owner").map(|setting| self.user(setting.read(), scope));
            let (target, mode) =
                (target.map_or(Some(None), |text| text.map(Some))?, mode.map_or(Some(None), |mode| mode.map(Some))?);
            return Some(Mounted {
                name: source??,
                target,
                mode,
                owner: owner.map_or(Some(None), |user| user.map(Some))?,
            });
        }
        let text = self.filled((property, bound), scope)?;
        let mut parts = text.splitn(3, ':');
        let name = parts.next().unwrap_or_default().to_owned();
        let target = parts.next().map(str::to_owned);
        let mode = match parts.next() {
            Some(mode) => Some(self.mode(span, property, mode)?),
            None => None,
        };
        Some(Mounted { name, target, mode, owner: None })
    }

    fn mode(&mut self, span: Span, property: &super::properties::Property, text: &str) -> Option<u32> {
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o777 && !text.starts_with('+'));
        if bits.is_none() {
            self.bad_mount(span, property, "the mode is no octal number up to 0777");
        }
        bits
    }
}

/// An entry of `secrets` or `configs`.
struct Mounted {
    name: String,
    target: Option<String>,
    mode: Option<u32>,
    owner: Option<String>,
}
