//! Placeholders.

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};
use crate::syntax::Text;
use crate::text::{self, Part, Piece, Placeholder};

use super::Checker;

/// Most bytes that placeholders of the environment may add to a file, so that a small file cannot become a huge one.
const MOST_EXPANDED: usize = 16 << 20;
/// Names compared for a spelling; beyond that the suggestion is left out.
const MOST_COMPARED: usize = 1000;
const FIELDS: &[&str] = &["host", "port", "connection_string"];

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// A property that others refer to, which must not refer to others.
    Facts,
    /// A property of this component.
    Component(usize),
}

impl Checker<'_, '_> {
    /// A string with its placeholders looked up; `None` if one of them cannot be, which is reported.
    pub(super) fn interpolate(&mut self, text: Text, scope: Scope) -> Option<Vec<Part>> {
        let mut parts = Some(Vec::new());
        for piece in text::pieces(self.source, text) {
            let part = match piece {
                Piece::Literal(text) => Some(Part { text, literal: true }),
                Piece::Placeholder(span, placeholder) => {
                    self.placeholder(span, placeholder, scope).map(|text| Part { text, literal: false })
                }
                Piece::Malformed(span) => {
                    let shown = self.shown(span);
                    self.finding(Code::BadPlaceholder, span, format!("{shown} is no placeholder"))
                        .label("not understood")
                        .expected("`${name.host}`, `${name.port}`, `${name.connection_string}`, `${env.X}` or `${env.X:-default}`")
                        .help("write `$${` for a literal `${`; placeholders cannot be nested");
                    None
                }
            };
            match (part, &mut parts) {
                (Some(part), Some(parts)) => parts.push(part),
                _ => parts = None,
            }
        }
        parts
    }

    fn placeholder(&mut self, span: Span, placeholder: Placeholder<'_>, scope: Scope) -> Option<String> {
        let Placeholder { path, default } = placeholder;
        match path.as_slice() {
            ["env", variable] => self.variable(span, variable, default),
            ["secret", _] => {
                self.not_supported(span, "a secret");
                None
            }
            _ if default.is_some() => {
                self.finding(Code::BadPlaceholder, span, "only a variable of the environment can have a default")
                    .label("no default here")
                    .help(format!("write `${{{}}}` for a component, `${{env.X:-…}}` for a variable", path.join(".")));
                None
            }
            [component, field] => self.field(span, component, field, scope),
            [name] => {
                self.bare(span, name, scope);
                None
            }
            _ => {
                self.unknown(span, &path.join("."), "a placeholder has two parts: `${name.host}` or `${env.X}`".into());
                None
            }
        }
    }

    fn variable(&mut self, span: Span, variable: &str, default: Option<String>) -> Option<String> {
        if !variable.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || variable.contains('-') {
            self.finding(Code::BadPlaceholder, span, format!("{} is no name of a variable", shown(variable)))
                .label("malformed variable name")
                .expected("letters, digits and `_`")
                .help("a default is written `${env.X:-default}`");
            return None;
        }
        let value = (self.env)(variable);
        let text = match (value, default) {
            (Some(value), _) if !value.is_empty() => value,
            (_, Some(default)) => default,
            (Some(empty), None) => empty,
            (None, None) => {
                self.finding(Code::UnsetVariable, span, format!("the environment variable `{variable}` is not set"))
                    .label("not set")
                    .help(format!("set it, or give a default: `${{env.{variable}:-default}}`"));
                return None;
            }
        };
        self.expanded = self.expanded.saturating_add(text.len());
        if self.expanded > MOST_EXPANDED || text.contains('\0') {
            self.finding(
                Code::TooLong,
                span,
                format!("the values from the environment are longer than {MOST_EXPANDED} bytes or hold a NUL"),
            )
            .label("this one cannot be taken")
            .help("put long texts into a file and mount that as a volume");
            return None;
        }
        Some(text)
    }

    fn field(&mut self, span: Span, name: &str, field: &str, scope: Scope) -> Option<String> {
        let Some(&index) = self.by_name.get(name) else {
            if !self.partial {
                self.unknown_component(Code::UnknownReference, span, name);
            }
            return None;
        };
        let Scope::Component(from) = scope else {
            self.finding(Code::UnknownReference, span, "components cannot be referred to here")
                .label("not in this property")
                .expected("a text, with `${env.X}` if wanted")
                .help("others refer to image, ports and host names, so these cannot refer to others");
            return None;
        };
        if from != index && !self.connected.contains(&(from, index)) && self.warned.insert((from, index)) {
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

    /// `${name}`: a parameter, if there is one.
    fn bare(&mut self, span: Span, name: &str, scope: Scope) {
        let own = match scope {
            Scope::Component(index) => self.declared[index].syntax.params.as_ref(),
            Scope::Facts => None,
        };
        let source = self.source;
        if self.params.contains(name)
            || own.is_some_and(|args| args.list.iter().any(|(param, _)| param.text(source) == name))
        {
            self.not_supported(span, "a parameter");
        } else if self.by_name.contains_key(name) {
            self.unknown(
                span,
                name,
                format!("say what of it: `${{{name}.host}}`, `${{{name}.port}}` or `${{{name}.connection_string}}`"),
            );
        } else {
            self.unknown(
                span,
                name,
                format!("for a variable of the environment write `${{env.{}}}`", shown(name).trim_matches('`')),
            );
        }
    }

    fn unknown(&mut self, span: Span, name: &str, help: String) {
        self.finding(Code::UnknownReference, span, format!("there is no {}", shown(name)))
            .label("unknown reference")
            .expected("`${name.host}`, `${name.port}`, `${name.connection_string}` or `${env.X}`")
            .help(help);
    }

    pub(super) fn unknown_component(&mut self, code: Code, span: Span, name: &str) {
        let meant = nearest(name, self.declared.iter().take(MOST_COMPARED).map(|declared| declared.name.as_ref()));
        let help = meant.map(|meant| format!("did you mean `{meant}`?"));
        let expected = match self.declared.is_empty() {
            true => "the name of a COMPONENT; the file declares none".to_owned(),
            false => format!("one of {}", super::some_of(self.declared.iter().map(|declared| declared.name.as_ref()))),
        };
        self.finding(code, span, format!("there is no component {}", shown(name)))
            .label("unknown component")
            .expected(expected)
            .help("declare it with `COMPONENT name { … }`")
            .help_if(help);
    }
}
