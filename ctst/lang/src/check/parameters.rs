//! Parameters: of templates, with the arguments that `FROM` gives them.

use std::rc::Rc;

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};
use crate::syntax::{self, ValueKind};
use crate::text::Part;

use super::resolve::{Bound, Origin, Scope};
use super::{Checker, Role, some_of};

/// Most parameters of one template.
const MOST_PARAMETERS: usize = 64;

/// What a parameter stands for.
enum Parameter<'a> {
    Value(Bound<'a>),
    /// There is no value: it was reported, or nobody has inherited from the template yet.
    Unknown,
}

impl<'a> Checker<'a, '_> {
    /// Checks the parameters that a declaration lists.
    pub(super) fn parameters_are_good(&mut self, component: &'a syntax::Component) {
        let Some(params) = &component.params else { return };
        if params.list.len() > MOST_PARAMETERS {
            self.finding(Code::OutOfRange, params.span, format!("there are more than {MOST_PARAMETERS} parameters"))
                .label("too many")
                .help("make several templates of it");
            return;
        }
        for (place, (name, default)) in params.list.iter().enumerate() {
            let text = name.text(self.source);
            let source = self.source;
            if let Some((first, _)) = params.list[..place].iter().find(|(other, _)| other.text(source) == text) {
                self.finding(
                    Code::DuplicateName,
                    name.span,
                    format!("the parameter {} is declared twice", shown(&text)),
                )
                .label("declared again")
                .related(first.span, "declared here first")
                .help("remove one of them");
            }
            if let Some(default) = default {
                self.no_block(default);
            }
        }
    }

    fn no_block(&mut self, value: &syntax::Value) {
        if matches!(value.kind, ValueKind::Body(_)) {
            self.finding(Code::WrongType, value.span, "a parameter cannot be a block")
                .label("a block")
                .expected("a string, a number, a truth value or a list")
                .help("write the block into the component that inherits: `env` and `healthcheck` are merged");
        }
    }

    /// Compares what `FROM` gives with what the template takes.
    pub(super) fn arguments_fit(&mut self, heir: usize, template: usize) {
        let (heir, template) = (self.declared[heir].syntax, &self.declared[template]);
        let (Some(base), name) = (&heir.base, shown(&template.name)) else { return };
        let (params, at) = (template.syntax.params.as_ref(), template.span);
        let params = params.map_or(&[] as &[_], |params| params.list.as_slice());
        let args = base.args.as_ref().map_or(&[] as &[_], |args| args.list.as_slice());
        if params.len() > MOST_PARAMETERS {
            return;
        }
        let source = self.source;
        let names: Vec<_> = params.iter().map(|(param, _)| param.text(source)).collect();
        let mut given: Vec<Option<Span>> = vec![None; params.len()];
        for (arg, value) in args {
            if self.report.full() {
                return;
            }
            let text = arg.text(source);
            let Some(place) = names.iter().position(|param| *param == text) else {
                let meant = nearest(&text, names.iter().map(AsRef::as_ref));
                let list = some_of(names.iter().map(AsRef::as_ref));
                self.finding(Code::BadArguments, arg.span, format!("{name} has no parameter {}", shown(&text)))
                    .label("unknown parameter")
                    .expected(if list.is_empty() { "no arguments".to_owned() } else { format!("one of {list}") })
                    .related(at, "declared here")
                    .help("remove it")
                    .help_if(meant.map(|meant| format!("did you mean `{meant}`?")));
                continue;
            };
            if let Some(first) = given[place].replace(arg.span) {
                self.finding(Code::BadArguments, arg.span, format!("{} is given twice", shown(&text)))
                    .label("given again")
                    .related(first, "given here first")
                    .help("keep one of them");
            }
            if let Some(value) = value {
                self.no_block(value);
            }
        }
        let missing = params
            .iter()
            .zip(&names)
            .zip(&given)
            .filter(|(((_, default), _), given)| default.is_none() && given.is_none());
        let missing: Vec<&str> = missing.map(|((_, name), _)| name.as_ref()).collect();
        if !missing.is_empty() {
            let example: Vec<String> = missing.iter().map(|name| format!("{name} = …")).collect();
            let plain = name.trim_matches('`').to_owned();
            self.finding(
                Code::BadArguments,
                base.args.as_ref().map_or(base.path, |args| args.span),
                format!("{name} needs a value for {}", missing.join(", ")),
            )
            .label("not given here")
            .related(at, "declared here")
            .help(format!("write `FROM {plain}({})`, or give the parameter a default", example.join(", ")));
        }
    }

    /// A component that is deployed must know the values of its own parameters.
    pub(super) fn parameters_have_values(&mut self, index: usize) {
        let Some(params) = &self.declared[index].syntax.params else { return };
        if let Some((param, _)) = params.list.iter().find(|(_, default)| default.is_none()) {
            let text = shown(&param.text(self.source));
            self.declared[index].partial = true;
            self.finding(Code::BadArguments, param.span, format!("nobody gives {text} a value"))
                .label("has no default")
                .help("give it a default, or write TEMPLATE and inherit from it");
        }
    }

    /// Looks up a parameter where `origin` was written; `None` if there is none of that name.
    fn parameter(&mut self, name: &str, origin: Origin, scope: Scope) -> Option<Parameter<'a>> {
        let Origin::Component(owner) = origin else { return None };
        let source = self.source;
        let params = self.declared[owner].syntax.params.as_ref()?;
        let place = params.list.iter().take(MOST_PARAMETERS).position(|(param, _)| param.text(source) == name)?;
        self.used.insert((owner, place));
        let default = params.list[place].1.as_ref().map(|value| Bound { value, origin: Origin::File });
        Some(self.argument(name, owner, scope).or(default).map_or(Parameter::Unknown, Parameter::Value))
    }

    /// What the heir in the chain of the component that is looked at gives.
    fn argument(&self, name: &str, owner: usize, scope: Scope) -> Option<Bound<'a>> {
        let mut heir = scope.of?;
        while self.declared[heir].base? != owner {
            heir = self.declared[heir].base?;
        }
        let args = self.declared[heir].syntax.base.as_ref()?.args.as_ref()?;
        let (_, value) = args.list.iter().find(|(arg, _)| arg.text(self.source) == name)?;
        Some(Bound { value: value.as_ref()?, origin: Origin::Component(heir) })
    }

    /// Goes from a bare word to the value of the parameter that it names. `None` if that is not known.
    pub(super) fn follow(&mut self, mut bound: Bound<'a>, scope: Scope) -> Option<Bound<'a>> {
        while bound.value.kind == ValueKind::Path {
            match self.parameter(bound.value.span.text(self.source), bound.origin, scope) {
                Some(Parameter::Value(value)) => bound = value,
                Some(Parameter::Unknown) => return None,
                None => break,
            }
        }
        Some(bound)
    }

    /// `${name}`
    pub(super) fn parameter_text(&mut self, span: Span, name: &str, origin: Origin, scope: Scope) -> Option<Vec<Part>> {
        let key = (origin, name.to_owned(), scope.facts);
        let known = self.memo.get(&key).cloned();
        let parts = match known {
            Some(parts) => parts,
            None => {
                let parts = self.parameter_parts(span, name, origin, scope).map(Rc::new);
                self.memo.insert(key, parts.clone());
                parts
            }
        }?;
        self.expands(span, parts.iter().map(|part| part.text.len()).sum()).then(|| parts.to_vec())
    }

    fn parameter_parts(&mut self, span: Span, name: &str, origin: Origin, scope: Scope) -> Option<Vec<Part>> {
        let bound = match self.parameter(name, origin, scope) {
            Some(Parameter::Value(bound)) => self.follow(bound, scope)?,
            Some(Parameter::Unknown) => return None,
            None => {
                let source = self.source;
                let params = match origin {
                    Origin::Component(owner) => self.declared[owner].syntax.params.as_ref(),
                    Origin::File => None,
                };
                let names: Vec<_> =
                    params.iter().flat_map(|params| &params.list).map(|(name, _)| name.text(source)).collect();
                self.no_parameter(span, name, &names.iter().map(AsRef::as_ref).collect::<Vec<_>>());
                return None;
            }
        };
        match bound.value.kind {
            ValueKind::Text(_) => {
                let mut parts = self.parts((&super::properties::PARAMETER, bound), scope)?;
                parts.iter_mut().for_each(|part| part.literal = false);
                Some(parts)
            }
            ValueKind::Integer | ValueKind::Decimal | ValueKind::Quantity | ValueKind::Bool(_) => {
                let text = bound.value.span.text(self.source).to_owned();
                Some(vec![Part { text, literal: false }])
            }
            ValueKind::List(_) | ValueKind::Body(_) | ValueKind::Path => {
                let what = bound.value.kind.describe();
                self.finding(Code::WrongType, span, format!("{} is {what}, which cannot stand in a text", shown(name)))
                    .label("put into a text")
                    .related(bound.value.span, "its value")
                    .expected("a string, a number or a truth value")
                    .help(format!("write it without quotes, as `ports = {name}`"));
                None
            }
        }
    }

    /// Warns about parameters of templates that are used nowhere.
    pub(super) fn unused_parameters(&mut self) {
        if self.report.has_errors() {
            return;
        }
        for index in 0..self.declared.len() {
            if self.declared[index].role == Role::Refused || self.report.full() {
                continue;
            }
            let Some(params) = &self.declared[index].syntax.params else { continue };
            for (place, (name, _)) in params.list.iter().enumerate() {
                if !self.used.contains(&(index, place)) {
                    let text = shown(&name.text(self.source));
                    self.finding(Code::UnusedParameter, name.span, format!("the parameter {text} is used nowhere"))
                        .label("not used")
                        .help(format!("remove it, or use it: `${{{}}}`", text.trim_matches('`')));
                }
            }
        }
    }
}
