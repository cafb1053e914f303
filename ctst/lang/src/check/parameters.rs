//! Parameters: of templates, with the arguments that `FROM` gives them, and of files, with the values from outside.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use crate::Inputs;
use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};
use crate::syntax::{self, Quote, StatementKind, Value, ValueKind};
use crate::text::{self, Part, joined};
use crate::units;

use super::properties::PARAMETER;
use super::resolve::{Bound, Origin, Scope};
use super::values::LONGEST_TEXT;
use super::{Checker, some_of};

/// Most parameters of one template.
const MOST_PARAMETERS: usize = 64;

/// A PARAM statement, evaluated.
pub(super) struct Param<'a> {
    name: Cow<'a, str>,
    span: Span,
    /// For its kind, and where messages about it point.
    value: Value<'a>,
    /// What it stands for; `None` after an error.
    text: Option<String>,
    /// The file that this is written in.
    file: usize,
}

/// Types of a PARAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Text,
    Integer,
    Bool,
    Size,
    Duration,
    Port,
}

const TYPES: &[(&str, Type, &str)] = &[
    ("string", Type::Text, "a string"),
    ("int", Type::Integer, "a whole number"),
    ("bool", Type::Bool, "`true` or `false`"),
    ("size", Type::Size, "a size as `64MiB`"),
    ("duration", Type::Duration, "a duration as `1m30s`"),
    ("port", Type::Port, "a port from 1 to 65535"),
];

impl Type {
    fn wants(self) -> &'static str {
        TYPES.iter().find(|(_, kind, _)| *kind == self).map_or("", |(.., wants)| wants)
    }

    fn kind(self) -> ValueKind<'static> {
        match self {
            Type::Text => ValueKind::Text(Quote::Plain),
            Type::Integer | Type::Port => ValueKind::Integer,
            Type::Bool => ValueKind::Bool(false),
            Type::Size | Type::Duration => ValueKind::Quantity,
        }
    }

    /// Whether a text is of the type.
    fn holds(self, text: &str) -> bool {
        match self {
            Type::Text => true,
            Type::Integer => text.parse::<i64>().is_ok() && !text.starts_with('+'),
            Type::Bool => matches!(text, "true" | "false"),
            Type::Size => units::size(text).is_ok(),
            Type::Duration => units::duration(text).is_ok(),
            Type::Port => text.parse::<u16>().is_ok_and(|port| port > 0) && !text.starts_with('+'),
        }
    }
}

/// What a parameter stands for.
enum Parameter<'a> {
    Value(Bound<'a>),
    /// There is no value: it was reported, or nobody has inherited from the template yet.
    Unknown,
}

impl<'a> Checker<'a, '_> {
    /// Reads the PARAM statements and gives them their values.
    pub(super) fn declared_params(&mut self, inputs: &Inputs<'_>) -> Vec<Param<'a>> {
        let given: HashMap<&str, &str> =
            inputs.params.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut params: Vec<Param<'a>> = Vec::new();
        let files = self.files;
        let all = files
            .iter()
            .enumerate()
            .flat_map(|(number, file)| file.tree.statements.iter().map(move |statement| (number, statement)));
        for (file, statement) in all {
            let StatementKind::Param(param) = &statement.kind else { continue };
            if self.report.full() {
                break;
            }
            let name = param.name.text(self.source);
            if let Some(&first) = self.params_by_name[file].get(&name) {
                let first = params[first].span;
                let text = shown(&name);
                self.finding(Code::DuplicateName, param.name.span, format!("the parameter {text} is declared twice"))
                    .label("declared again")
                    .related(first, "declared here first")
                    .help("remove one of them");
                continue;
            }
            let evaluated = self.param(file, param, name.clone(), given.get(name.as_ref()).copied());
            self.params_by_name.to_mut()[file].insert(name, params.len());
            params.push(evaluated);
        }
        for (name, _) in inputs.params {
            let unknown = !self.params_by_name.iter().any(|names| names.contains_key(name.as_str()));
            if unknown && !files.iter().any(|file| file.tree.partial) {
                let names = params.iter().map(|param| param.name.as_ref());
                let meant = nearest(name, names.clone()).map(|meant| format!("did you mean `{meant}`?"));
                let expected = match params.is_empty() {
                    true => "no value: the file has no PARAM".to_owned(),
                    false => format!("one of {}", some_of(names)),
                };
                let message = format!("a value is given for {}, which no PARAM declares", shown(name));
                self.finding(Code::UnknownParameter, Span::default(), message)
                    .expected(expected)
                    .help("leave it out, or declare it: `PARAM name = \"default\"`")
                    .help_if(meant);
            }
        }
        params
    }

    fn param(
        &mut self,
        file: usize,
        param: &'a syntax::Param<'a>,
        name: Cow<'a, str>,
        given: Option<&str>,
    ) -> Param<'a> {
        let span = param.name.span;
        let kind = self.param_type(param);
        let default = match (&param.default, kind) {
            (Some(value), Some(kind)) => self.param_default(file, value, kind),
            _ => None,
        };
        let text = match (given, kind) {
            (_, None) => None,
            (Some(text), Some(kind)) => {
                let good = kind.holds(text) && text.len() <= LONGEST_TEXT && !text.contains('\0');
                if !good {
                    let message = format!("the value given for {} is not {}", shown(&name), kind.wants());
                    self.finding(Code::WrongType, span, message)
                        .label("declared here")
                        .expected(format!("{}, at most {LONGEST_TEXT} bytes long and without NUL", kind.wants()))
                        .help("give another value");
                }
                good.then(|| text.to_owned())
            }
            (None, Some(_)) if param.default.is_some() => default,
            (None, Some(kind)) => {
                let what = param.help.map(|help| text::unquoted(self.source, help));
                let label = what.map_or("needs a value".to_owned(), |what| shown(&what).trim_matches('`').to_owned());
                self.finding(Code::MissingParameter, span, format!("the parameter {} has no value", shown(&name)))
                    .label(label)
                    .expected(kind.wants())
                    .help(format!(
                        "give it one: `--set {0}=…`, or a default here: `PARAM {0} = …`",
                        shown(&name).trim_matches('`')
                    ));
                None
            }
        };
        let at = match &param.default {
            Some(default) if given.is_none() => default.span,
            _ => span,
        };
        let kind = kind.map_or(ValueKind::Text(Quote::Plain), |kind| match kind {
            Type::Bool => ValueKind::Bool(text.as_deref() == Some("true")),
            kind => kind.kind(),
        });
        Param { name, span, value: Value { span: at, kind }, text, file: if given.is_some() { 0 } else { file } }
    }

    /// The type that is written there, or else the one that the default has.
    fn param_type(&mut self, param: &syntax::Param<'_>) -> Option<Type> {
        if let Some(kind) = param.kind {
            let text = kind.text(self.source);
            let found = TYPES.iter().find(|(name, ..)| *name == text).map(|(_, kind, _)| *kind);
            if found.is_none() {
                let names = TYPES.iter().map(|(name, ..)| *name);
                let meant = nearest(&text, names.clone()).map(|meant| format!("did you mean `{meant}`?"));
                self.finding(Code::UnknownChoice, kind.span, format!("{} is no type", shown(&text)))
                    .label("unknown type")
                    .expected(some_of(names))
                    .help("leave the type out for a string")
                    .help_if(meant);
            }
            return found;
        }
        match param.default.as_ref().map(|default| (&default.kind, default.span)) {
            None | Some((ValueKind::Text(_) | ValueKind::Decimal, _)) => Some(Type::Text),
            Some((ValueKind::Integer, _)) => Some(Type::Integer),
            Some((ValueKind::Bool(_), _)) => Some(Type::Bool),
            Some((kind, span)) => {
                let name = shown(&param.name.text(self.source)).trim_matches('`').to_owned();
                let help = match kind {
                    ValueKind::Quantity => format!("write `PARAM {name}: size` or `PARAM {name}: duration`"),
                    ValueKind::Path => "put it in quotes".to_owned(),
                    _ => "a list is an argument of a template: `FROM name(list = [ … ])`".to_owned(),
                };
                self.finding(Code::WrongType, span, format!("a PARAM without a type cannot be {}", kind.describe()))
                    .label(kind.describe())
                    .expected("a string, a number without a unit or a truth value")
                    .help(help);
                None
            }
        }
    }

    fn param_default(&mut self, file: usize, value: &'a Value<'a>, kind: Type) -> Option<String> {
        let text = match (&value.kind, kind) {
            (ValueKind::Text(_), Type::Bool) => None,
            (ValueKind::Text(_), _) => {
                let bound = Bound::new(value, Origin::Param(file));
                Some(joined(&self.parts((&PARAMETER, bound), Scope::FILE)?).into_owned())
            }
            (ValueKind::Integer, Type::Integer | Type::Port)
            | (ValueKind::Quantity, Type::Size | Type::Duration)
            | (ValueKind::Decimal, Type::Text)
            | (ValueKind::Bool(_), Type::Bool) => Some(value.span.text(self.source).to_owned()),
            _ => None,
        };
        let text = text.filter(|text| kind.holds(text));
        if text.is_none() {
            let shown = self.shown(value.span);
            self.finding(Code::WrongType, value.span, format!("{shown} is not {}", kind.wants()))
                .label("not of the parameter's type")
                .expected(kind.wants())
                .help("give another default or another type");
        }
        text
    }

    /// Checks the parameters that a declaration lists.
    pub(super) fn parameters_are_good(&mut self, component: &'a syntax::Component<'a>) {
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

    fn no_block(&mut self, value: &syntax::Value<'_>) {
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
        let params = params.map_or(&[] as &[_], |params| params.list);
        let args = base.args.as_ref().map_or(&[] as &[_], |args| args.list);
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
            self.declared.to_mut()[index].partial = true;
            self.finding(Code::BadArguments, param.span, format!("nobody gives {text} a value"))
                .label("has no default")
                .help("give it a default, or write TEMPLATE and inherit from it");
        }
    }

    /// Looks up a parameter where `origin` was written; `None` if there is none of that name.
    fn parameter(&mut self, name: &str, origin: Origin, scope: Scope) -> Option<Parameter<'a>> {
        if let Origin::Component(owner) = origin
            && let Some(found) = self.template_parameter(name, owner, scope)
        {
            return Some(found);
        }
        if matches!(origin, Origin::Param(_)) {
            return None;
        }
        let place = *self.params_by_name[self.file_of(origin)].get(name)?;
        self.uses.params.insert(place);
        let params = self.params;
        let param = params.get(place)?;
        let value = |text| Bound { value: &param.value, origin: Origin::File(param.file), given: Some(text) };
        Some(param.text.as_ref().map_or(Parameter::Unknown, |text| Parameter::Value(value(text))))
    }

    fn template_parameter(&mut self, name: &str, owner: usize, scope: Scope) -> Option<Parameter<'a>> {
        let source = self.source;
        let params = self.declared[owner].syntax.params.as_ref()?;
        let place = params.list.iter().take(MOST_PARAMETERS).position(|(param, _)| param.text(source) == name)?;
        self.uses.parameters.insert((owner, place));
        let default =
            params.list[place].1.as_ref().map(|value| Bound::new(value, Origin::File(self.declared[owner].file)));
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
        Some(Bound::new(value.as_ref()?, Origin::Component(heir)))
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
    pub(super) fn parameter_text(
        &mut self,
        span: Span,
        name: &str,
        origin: Origin,
        scope: Scope,
    ) -> Option<Vec<Part<'a>>> {
        let key = (origin, name.to_owned(), scope.facts, scope.secrets);
        let known = self.memo.get(&key).cloned();
        let parts = match known {
            Some(parts) => parts,
            None => {
                let parts = self.parameter_parts(span, name, origin, scope).map(Arc::new);
                self.memo.insert(key, parts.clone());
                parts
            }
        }?;
        self.expands(span, parts.iter().map(|part| part.text.len()).sum()).then(|| parts.to_vec())
    }

    fn parameter_parts(&mut self, span: Span, name: &str, origin: Origin, scope: Scope) -> Option<Vec<Part<'a>>> {
        let bound = match self.parameter(name, origin, scope) {
            Some(Parameter::Value(bound)) => self.follow(bound, scope)?,
            Some(Parameter::Unknown) => return None,
            None => {
                let source = self.source;
                let params = match origin {
                    Origin::Component(owner) => self.declared[owner].syntax.params.as_ref(),
                    Origin::File(_) | Origin::Param(_) => None,
                };
                let params_of_file = self.params;
                let names: Vec<_> =
                    params.iter().flat_map(|params| params.list).map(|(name, _)| name.text(source)).collect();
                let names = names.iter().map(AsRef::as_ref);
                let names: Vec<&str> = names.chain(params_of_file.iter().map(|param| param.name.as_ref())).collect();
                self.no_parameter(span, name, &names);
                return None;
            }
        };
        match bound.value.kind {
            ValueKind::Text(_) => {
                let mut parts = self.parts((&PARAMETER, bound), scope)?;
                parts.iter_mut().for_each(|part| part.literal = false);
                Some(parts)
            }
            ValueKind::Integer | ValueKind::Decimal | ValueKind::Quantity | ValueKind::Bool(_) => {
                let (text, file) = (self.raw(bound).into(), self.file_of(bound.origin));
                Some(vec![Part { text, literal: false, file, secret: false }])
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

    /// Warns about parameters that are used nowhere.
    pub(super) fn unused_parameters(&mut self) {
        if self.report.has_errors() {
            return;
        }
        let params = self.params;
        for (place, param) in params.iter().enumerate() {
            if !self.uses.params.contains(&place) && !self.report.full() {
                self.unused(param.span, &param.name);
            }
        }
        for index in 0..self.declared.len() {
            if self.report.full() {
                return;
            }
            let Some(params) = &self.declared[index].syntax.params else { continue };
            for (place, (name, _)) in params.list.iter().enumerate() {
                if !self.uses.parameters.contains(&(index, place)) {
                    self.unused(name.span, &name.text(self.source));
                }
            }
        }
    }

    fn unused(&mut self, span: Span, name: &str) {
        let text = shown(name);
        self.finding(Code::UnusedParameter, span, format!("the parameter {text} is used nowhere"))
            .label("not used")
            .help(format!("remove it, or use it: `${{{}}}`", text.trim_matches('`')));
    }
}
