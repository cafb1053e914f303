//! Placeholders.

use std::borrow::Cow;
use std::sync::Arc;

use foldhash::HashMap;

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};
use crate::syntax::{Text, Value};
use crate::text::{self, Part, Piece, Placeholder};

use super::{Checker, Role};

/// Most bytes that placeholders may add to a file, so that a small file cannot become a huge one.
pub(super) const MOST_EXPANDED: usize = 16 << 20;
/// Names compared for a spelling; beyond that the suggestion is left out.
pub(super) const MOST_COMPARED: usize = 1000;
const FIELDS: &[&str] = &["host", "port", "connection_string"];

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scope {
    /// The component that a value is looked up for.
    pub(super) of: Option<usize>,
    /// Whether others refer to the property, which therefore must not refer to others.
    pub(super) facts: bool,
    /// Whether the text may hold secrets.
    pub(super) secrets: bool,
}

impl Scope {
    /// A property of this component.
    pub(super) fn component(index: usize) -> Scope {
        Scope { of: Some(index), facts: false, secrets: false }
    }

    /// A property that others refer to.
    pub(super) fn facts(index: usize) -> Scope {
        Scope { of: Some(index), facts: true, secrets: false }
    }

    /// Outside of components.
    pub(super) const FILE: Scope = Scope { of: None, facts: true, secrets: false };

    /// The same where secrets may stand.
    pub(super) fn with_secrets(self) -> Scope {
        Scope { secrets: true, ..self }
    }
}

/// Where a value is written, which says what the parameters in it are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// In this declaration.
    Component(usize),
    /// Outside of declarations of this file.
    File(usize),
    /// Where there are no parameters yet, in this file.
    Param(usize),
}

/// A value and where it is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound<'a> {
    pub(super) value: &'a Value<'a>,
    pub(super) origin: Origin,
    /// What a PARAM stands for, instead of the value's own text.
    pub(super) given: Option<&'a String>,
}

impl<'a> Bound<'a> {
    pub(super) fn new(value: &'a Value<'a>, origin: Origin) -> Bound<'a> {
        Bound { value, origin, given: None }
    }
}

/// Texts that parameters stand for, by who wrote the parameter, its name, and whether components may be referred to and
/// secrets may stand there. Without it parameters that repeat each other would double the work at each level.
pub(super) type Memo<'a> = HashMap<(Origin, String, bool, bool), Option<Arc<Vec<Part<'a>>>>>;

impl<'a> Checker<'a, '_> {
    /// A string with its placeholders looked up; `None` if one of them cannot be, which is reported.
    pub(super) fn interpolate(&mut self, text: Text, origin: Origin, scope: Scope) -> Option<Vec<Part<'a>>> {
        let file = self.file_of(origin);
        let pieces = text::pieces(self.source, text);
        let mut parts = Vec::with_capacity(pieces.len());
        let mut complete = true;
        for piece in pieces {
            complete &= match piece {
                Piece::Literal(text) => {
                    parts.push(Part { text, literal: true, file, secret: false });
                    true
                }
                Piece::Placeholder(span, placeholder) => {
                    self.placeholder(span, placeholder, origin, scope, &mut parts).is_some()
                }
                Piece::Malformed(span) => {
                    let shown = self.shown(span);
                    self.finding(Code::BadPlaceholder, span, format!("{shown} is no placeholder"))
                        .label("not understood")
                        .expected("`${name.host}`, `${name.port}`, `${name.connection_string}`, `${parameter}`, `${secret.x}`, `${env.X}` or `${env.X:-default}`")
                        .help("write `$${` for a literal `${`; placeholders cannot be nested");
                    false
                }
            };
        }
        complete.then_some(parts)
    }

    /// Adds what a placeholder stands for.
    fn placeholder(
        &mut self,
        span: Span,
        placeholder: Placeholder<'a>,
        origin: Origin,
        scope: Scope,
        parts: &mut Vec<Part<'a>>,
    ) -> Option<()> {
        let Placeholder { path, default } = placeholder;
        let mut secret = false;
        let text = match path.split_once('.').filter(|(_, rest)| !rest.contains('.')) {
            Some(("env", variable)) => self.variable(span, variable, default),
            Some(("secret", name)) if default.is_none() => {
                secret = true;
                self.secret(span, name, scope).map(Cow::Owned)
            }
            _ if default.is_some() => {
                self.finding(Code::BadPlaceholder, span, "only a variable of the environment can have a default")
                    .label("no default here")
                    .help(format!("write `${{{path}}}` for a component, `${{env.X:-…}}` for a variable"));
                None
            }
            Some((component, field)) => self.field(span, component, field, scope).map(Cow::Owned),
            None if path.contains('.') => {
                self.unknown(span, path, "a placeholder has two parts: `${name.host}` or `${env.X}`".into());
                None
            }
            None => {
                parts.extend(self.parameter_text(span, path, origin, scope)?);
                return Some(());
            }
        };
        parts.push(Part { text: text?, literal: false, file: self.file_of(origin), secret });
        Some(())
    }

    fn variable(&mut self, span: Span, variable: &str, default: Option<Cow<'a, str>>) -> Option<Cow<'a, str>> {
        if !variable.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || variable.contains('-') {
            self.finding(Code::BadPlaceholder, span, format!("{} is no name of a variable", shown(variable)))
                .label("malformed variable name")
                .expected("letters, digits and `_`")
                .help("a default is written `${env.X:-default}`");
            return None;
        }
        let value = (self.env)(variable);
        let text = match (value, default) {
            (Some(value), _) if !value.is_empty() => value.into(),
            (_, Some(default)) => default,
            (Some(empty), None) => empty.into(),
            (None, None) => {
                self.finding(Code::UnsetVariable, span, format!("the environment variable `{variable}` is not set"))
                    .label("not set")
                    .help(format!("set it, or give a default: `${{env.{variable}:-default}}`"));
                return None;
            }
        };
        (self.expands(span, text.len()) && self.no_nul(span, &text)).then_some(text)
    }

    /// Counts what a placeholder adds, and refuses it when all of them add too much.
    pub(super) fn expands(&mut self, span: Span, bytes: usize) -> bool {
        self.uses.expanded = self.uses.expanded.saturating_add(bytes);
        if self.uses.expanded > MOST_EXPANDED {
            self.finding(
                Code::TooLong,
                span,
                format!("what placeholders, files and replicas add is longer than {MOST_EXPANDED} bytes in all"),
            )
            .label("too much from here on")
            .help("put long texts into a file and mount that as a volume");
        }
        self.uses.expanded <= MOST_EXPANDED
    }

    fn no_nul(&mut self, span: Span, text: &str) -> bool {
        let good = !text.contains('\0');
        if !good {
            self.finding(Code::NulCharacter, span, "a value from outside holds a NUL character")
                .label("this one")
                .help("remove it there: the kernel takes it for the end of the text");
        }
        good
    }

    fn field(&mut self, span: Span, name: &str, field: &str, scope: Scope) -> Option<String> {
        let Some(&index) = self.by_name[0].get(name) else {
            // A template that nobody inherits from may be for compositions that have such a component.
            let elsewhere = scope.of.is_some_and(|from| self.declared[from].file != 0);
            if !self.partial && !elsewhere {
                self.unknown_component(Code::UnknownReference, span, name);
            }
            return None;
        };
        let (false, Some(from)) = (scope.facts, scope.of) else {
            self.finding(Code::UnknownReference, span, "components cannot be referred to here")
                .label("not in this property")
                .expected("a text, with `${env.X}` if wanted")
                .help("others refer to image, ports and host names, so these cannot refer to others");
            return None;
        };
        let deployed = self.declared[from].role == Role::Deployed;
        match self.declared[index].role {
            Role::Template if from != index => {
                self.template_named(span, index);
                return None;
            }
            Role::Inactive if deployed => {
                self.inactive_named(span, index);
                return None;
            }
            _ => {}
        }
        if deployed
            && from != index
            && !self.connected.contains_key(&(from, index))
            && self.warned.insert((from, index))
        {
            let (asking, asked) = (shown(&self.declared[from].name), shown(&self.declared[index].name));
            let (plain, target) = (self.declared[from].name.clone(), self.declared[index].name.clone());
            self.finding(Code::Unconnected, span, format!("{asking} refers to {asked} but is not connected to it"))
                .label("may not be up yet")
                .help(format!("add `CONNECT {plain} -> {target}` so that it is started first"));
        }
        match field {
            "host" => Some(self.declared[index].host()),
            "port" => self.first_port(span, index).map(|port| port.to_string()),
            "connection_string" => {
                let port = self.first_port(span, index)?;
                let target = &self.declared[index];
                Some(format!("{}://{}:{port}", target.scheme, target.host()))
            }
            _ => {
                let meant = nearest(field, FIELDS.iter().copied()).unwrap_or("host");
                self.unknown(span, &format!("{name}.{field}"), format!("did you mean `${{{name}.{meant}}}`?"));
                None
            }
        }
    }

    fn first_port(&mut self, span: Span, index: usize) -> Option<u16> {
        let target = &self.declared[index];
        let first = target.ports.as_ref()?.first().copied();
        if first.is_none() && !target.partial {
            let (name, at) = (shown(&target.name), target.span);
            self.finding(Code::UnknownReference, span, format!("{name} declares no port"))
                .label("has no port")
                .related(at, "declared here")
                .help("give it one: `port = 80`");
        }
        first
    }

    /// `${name}` where no parameter has that name.
    pub(super) fn no_parameter(&mut self, span: Span, name: &str, parameters: &[&str]) {
        let help = if self.by_name[0].contains_key(name) {
            format!("say what of it: `${{{name}.host}}`, `${{{name}.port}}` or `${{{name}.connection_string}}`")
        } else if let Some(meant) = nearest(name, parameters.iter().copied()) {
            format!("did you mean `${{{meant}}}`?")
        } else {
            format!("for a variable of the environment write `${{env.{}}}`", shown(name).trim_matches('`'))
        };
        self.unknown(span, name, help);
    }

    /// A template stands where a component is needed.
    pub(super) fn template_named(&mut self, span: Span, index: usize) {
        let (name, at) = (shown(&self.declared[index].name), self.declared[index].span);
        self.finding(Code::TemplateNamed, span, format!("{name} is a template, which is not deployed"))
            .label("not a component")
            .related(at, "declared here")
            .expected("a component")
            .help("name a component that inherits from it");
    }

    fn unknown(&mut self, span: Span, name: &str, help: String) {
        self.finding(Code::UnknownReference, span, format!("there is no {}", shown(name)))
            .label("unknown reference")
            .expected("`${name.host}`, `${name.port}`, `${name.connection_string}`, `${parameter}`, `${secret.x}` or `${env.X}`")
            .help(help);
    }

    pub(super) fn unknown_component(&mut self, code: Code, span: Span, name: &str) {
        let candidates = || {
            let deployed = self.declared.iter().filter(|declared| declared.role == Role::Deployed);
            deployed.map(|declared| declared.name.as_ref())
        };
        let meant = nearest(name, candidates().take(MOST_COMPARED));
        let help = meant.map(|meant| format!("did you mean `{meant}`?"));
        let expected = match candidates().next().is_none() {
            true => "the name of a COMPONENT; the file declares none".to_owned(),
            false => format!("one of {}", super::some_of(candidates())),
        };
        self.finding(code, span, format!("there is no component {}", shown(name)))
            .label("unknown component")
            .expected(expected)
            .help("declare it with `COMPONENT name { … }`")
            .help_if(help);
    }
}
