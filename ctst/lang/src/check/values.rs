//! Values of the types that properties want.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::codes::Code;
use crate::diagnostic::{Span, nearest};
use crate::syntax::{Text, Value, ValueKind};
use crate::text::{self, Part, Words};
use crate::units::{self, UnitError};

use super::Checker;
use super::inherit::{Setting, Settings};
use super::properties::{Keys, Property, Shape};
use super::resolve::{Bound, Scope};

/// A property and the value that it has.
pub(super) type Read<'a> = (&'static Property, Bound<'a>);

/// What the kernel takes as one argument or variable, its closing NUL not counted.
pub(super) const LONGEST_TEXT: usize = 128 * 1024 - 1;
/// Most processors in thousandths: more than Linux can have (`CONFIG_NR_CPUS`), and no number of microseconds overflows.
const MOST_MILLIS: u64 = 8192 * 1000;

/// Whether a path is absolute and has no parts that can be left out, nor `..`.
fn is_shortest(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.len() > 1
        && bytes[0] == b'/'
        && !path.ends_with('/')
        && !bytes.windows(2).any(|pair| pair[0] == b'/' && matches!(pair[1], b'/' | b'.'))
}

impl<'a> Checker<'a, '_> {
    pub(super) fn wrong_type(&mut self, property: &Property, value: &Value<'_>) {
        let source = value.span.text(self.source);
        let quoted = match value.kind {
            ValueKind::Path if source.len() < 60 => {
                // An address goes on where a bare word ends.
                let rest = self.source.get(value.span.start as usize..).unwrap_or_default();
                let address = rest.split(|c: char| c.is_whitespace() || "}],#".contains(c)).next().unwrap_or_default();
                let whole = address.strip_prefix(source).is_some_and(|more| more.starts_with("://"));
                let source = if whole && address.len() < 200 { address } else { source };
                let (head, field) = source.split_once('.').unwrap_or((source, ""));
                let text = if field.is_empty() || !self.by_name[0].contains_key(head) {
                    source.to_owned()
                } else {
                    format!("${{{source}}}")
                };
                Some(format!("put it in quotes: `\"{text}\"`"))
            }
            _ => None,
        };
        self.finding(Code::WrongType, value.span, format!("`{}` cannot be {}", property.name, value.kind.describe()))
            .label(value.kind.describe())
            .expected(property.wants)
            .help(format!("for example `{}`", property.example))
            .help_if(quoted);
    }

    /// The parts of a string, its placeholders looked up.
    pub(super) fn parts(&mut self, (property, bound): Read<'a>, scope: Scope) -> Option<Vec<Part<'a>>> {
        let Bound { value, origin, given } = self.follow(bound, scope)?;
        let ValueKind::Text(quote) = value.kind else {
            self.wrong_type(property, value);
            return None;
        };
        if let Some(text) = given {
            let file = self.file_of(origin);
            return Some(vec![Part { text: text.into(), literal: false, file, secret: false }]);
        }
        let text = Text { span: value.span, quote };
        let parts = match text::simple(self.source, text) {
            Some(text) => {
                vec![Part { text: text.into(), literal: true, file: self.file_of(origin), secret: false }]
            }
            None => self.interpolate(text, origin, scope)?,
        };
        let length: usize = parts.iter().map(|part| part.text.len()).sum();
        if length > LONGEST_TEXT {
            self.finding(
                Code::TooLong,
                value.span,
                format!("the text for `{}` is longer than {LONGEST_TEXT} bytes", property.name),
            )
            .label("too long")
            .expected(format!("at most {LONGEST_TEXT} bytes, which is what the kernel takes"))
            .help("put it into a file and mount that as a volume");
            return None;
        }
        Some(parts)
    }

    /// Whether a string means what it looks like.
    pub(super) fn is_simple(&self, bound: Bound<'a>) -> bool {
        match bound.value.kind {
            ValueKind::Text(quote) => text::simple(self.source, Text { span: bound.value.span, quote }).is_some(),
            _ => false,
        }
    }

    pub(super) fn text(&mut self, setting: Read<'a>, scope: Scope) -> Option<Cow<'a, str>> {
        let (_, Bound { value, given: None, .. }) = setting else { return self.joined(setting, scope) };
        if let ValueKind::Text(quote) = value.kind
            && let Some(text) = text::simple(self.source, Text { span: value.span, quote })
            && text.len() <= LONGEST_TEXT
        {
            return Some(text.into());
        }
        self.joined(setting, scope)
    }

    fn joined(&mut self, setting: Read<'a>, scope: Scope) -> Option<Cow<'a, str>> {
        Some(text::joined(&self.parts(setting, scope)?))
    }

    /// A string that is not empty, with its parts.
    pub(super) fn filled_parts(&mut self, setting: Read<'a>, scope: Scope) -> Option<(Cow<'a, str>, Vec<Part<'a>>)> {
        let parts = self.parts(setting, scope)?;
        let text = text::joined(&parts);
        self.not_empty(setting, &text).then_some((text, parts))
    }

    /// A string that is not empty.
    pub(super) fn filled(&mut self, setting: Read<'a>, scope: Scope) -> Option<Cow<'a, str>> {
        let text = self.text(setting, scope)?;
        self.not_empty(setting, &text).then_some(text)
    }

    fn not_empty(&mut self, setting: Read<'a>, text: &str) -> bool {
        if text.is_empty() {
            self.finding(Code::OutOfRange, setting.1.value.span, format!("`{}` is empty", setting.0.name))
                .label("empty")
                .expected(setting.0.wants)
                .help(format!("for example `{}`", setting.0.example));
        }
        !text.is_empty()
    }

    /// The characters of a number, a word or a truth value.
    pub(super) fn raw(&self, bound: Bound<'a>) -> &'a str {
        bound.given.map_or_else(|| bound.value.span.text(self.source), String::as_str)
    }

    /// One value or a list of them, as single values, with what `+=` adds.
    pub(super) fn items<'s>(
        &mut self,
        setting: &'s Setting<'a>,
        scope: Scope,
    ) -> Option<impl Iterator<Item = Bound<'a>> + Clone + use<'s, 'a>> {
        let bound = self.follow(setting.value, scope)?;
        let own: &'a [Value<'a>] = match &bound.value.kind {
            ValueKind::List(list) => list,
            _ => std::slice::from_ref(bound.value),
        };
        Some(own.iter().map(move |value| Bound { value, ..bound }).chain(setting.added().iter().copied()))
    }

    pub(super) fn boolean(&mut self, (property, bound): Read<'a>, scope: Scope) -> Option<bool> {
        let value = self.follow(bound, scope)?.value;
        match value.kind {
            ValueKind::Bool(value) => Some(value),
            _ => {
                self.wrong_type(property, value);
                None
            }
        }
    }

    /// The characters of a number, which may also stand in quotes, so that it can come from a placeholder.
    fn number(
        &mut self,
        (property, bound): Read<'a>,
        bare: impl Fn(&ValueKind<'_>) -> bool,
        scope: Scope,
    ) -> Option<Cow<'a, str>> {
        let bound = self.follow(bound, scope)?;
        match &bound.value.kind {
            ValueKind::Text(_) => self.text((property, bound), scope),
            kind if bare(kind) => Some(self.raw(bound).into()),
            _ => {
                self.wrong_type(property, bound.value);
                None
            }
        }
    }

    /// A whole number.
    pub(super) fn whole(&mut self, setting: Read<'a>, range: RangeInclusive<u64>, scope: Scope) -> Option<u64> {
        let text = self.number(setting, |kind| *kind == ValueKind::Integer, scope)?;
        let (property, Bound { value, .. }) = setting;
        if text.is_empty() || !text.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit()) {
            let shown = self.shown(value.span);
            self.finding(Code::WrongType, value.span, format!("{shown} is no whole number"))
                .label("not a whole number")
                .expected(property.wants)
                .help(format!("for example `{}`", property.example));
            return None;
        }
        let number = text.parse::<u64>().ok().filter(|number| range.contains(number));
        if number.is_none() {
            let shown = self.shown(value.span);
            self.finding(Code::OutOfRange, value.span, format!("{shown} is out of range for `{}`", property.name))
                .label("out of range")
                .expected(format!("a whole number from {} to {}", range.start(), range.end()))
                .help(format!("for example `{}`", property.example));
        }
        number
    }

    /// A whole number from 1 on.
    pub(super) fn positive(&mut self, setting: Read<'a>, most: u32, scope: Scope) -> Option<u32> {
        self.whole(setting, 1..=u64::from(most), scope).and_then(|number| u32::try_from(number).ok())
    }

    /// A number of bytes, not fewer than `least`.
    pub(super) fn size(&mut self, setting: Read<'a>, least: u64, scope: Scope) -> Option<u64> {
        let bare = |kind: &ValueKind| matches!(kind, ValueKind::Quantity | ValueKind::Integer);
        let text = self.number(setting, bare, scope)?;
        let (property, Bound { value, .. }) = setting;
        let size = if text == "0" { Ok(0) } else { units::size(&text) };
        match size {
            Ok(size) if size >= least => Some(size),
            Ok(_) => {
                let shown = self.shown(value.span);
                self.finding(Code::OutOfRange, value.span, format!("{shown} is too little for `{}`", property.name))
                    .label("too little")
                    .expected(format!("at least {}", units::shown(least)))
                    .help(format!("for example `{}`", property.example));
                None
            }
            Err(error) => {
                self.bad_unit(value.span, property.name, error, units::KNOWN_SIZES, property.example);
                None
            }
        }
    }

    /// A decimal number, whole ones included, in thousandths; further digits are cut off.
    pub(super) fn thousandths(&mut self, setting: Read<'a>, scope: Scope) -> Option<u64> {
        let bare = |kind: &ValueKind| matches!(kind, ValueKind::Decimal | ValueKind::Integer);
        let text = self.number(setting, bare, scope)?;
        let (property, Bound { value, .. }) = setting;
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let shown = self.shown(value.span);
        if !digits(whole.strip_prefix('-').unwrap_or(whole)) || !digits(fraction) {
            self.finding(Code::WrongType, value.span, format!("{shown} is no decimal number"))
                .label("not a number")
                .expected(property.wants)
                .help(format!("for example `{}`", property.example));
            return None;
        }
        let fraction: u64 = format!("{fraction:0<3}")[..3].parse().unwrap_or_default();
        let millis = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(1000)?.checked_add(fraction));
        let good = millis.filter(|millis| (10..=MOST_MILLIS).contains(millis));
        if good.is_none() {
            self.finding(Code::OutOfRange, value.span, format!("{shown} is out of range for `{}`", property.name))
                .label("out of range")
                .expected(format!("a number from 0.01 to {}", MOST_MILLIS / 1000))
                .help(format!("for example `{}`", property.example));
        }
        good
    }

    pub(super) fn port(&mut self, setting: Read<'a>, scope: Scope) -> Option<u16> {
        self.positive(setting, u32::from(u16::MAX), scope).and_then(|port| u16::try_from(port).ok())
    }

    pub(super) fn duration(&mut self, (property, bound): Read<'a>, zero: bool, scope: Scope) -> Option<Duration> {
        let bare = |kind: &ValueKind| matches!(kind, ValueKind::Quantity | ValueKind::Integer);
        let text = self.number((property, bound), bare, scope)?;
        let value = bound.value;
        match units::duration(&text) {
            Ok(duration) if zero || !duration.is_zero() => Some(duration),
            Ok(_) => {
                self.finding(Code::OutOfRange, value.span, format!("`{}` cannot be zero", property.name))
                    .label("zero")
                    .expected("a duration greater than zero")
                    .help(format!("for example `{}`", property.example));
                None
            }
            Err(error) => {
                self.bad_unit(
                    value.span,
                    property.name,
                    error,
                    "a number with ms, s, m, h or d, at most 365d",
                    property.example,
                );
                None
            }
        }
    }

    pub(super) fn bad_unit(&mut self, span: Span, name: &str, error: UnitError, expected: &str, example: &str) {
        let shown = self.shown(span);
        let (code, message, label) = match error {
            UnitError::NoUnit => (Code::BadUnit, format!("{shown} has no unit"), "a unit is missing"),
            UnitError::UnknownUnit => {
                (Code::BadUnit, format!("{shown} has a unit that `{name}` does not know"), "unknown unit")
            }
            UnitError::TooLarge => (Code::OutOfRange, format!("{shown} is too large for `{name}`"), "too large"),
            UnitError::Malformed => (Code::BadUnit, format!("{shown} is no number with a unit"), "not understood"),
        };
        self.finding(code, span, message).label(label).expected(expected).help(format!("for example `{example}`"));
    }

    /// One of a few words. Their place in `choices` comes back.
    pub(super) fn choice(&mut self, setting: Read<'a>, choices: &[&str], scope: Scope) -> Option<usize> {
        let text = self.text(setting, scope)?;
        let found = choices.iter().position(|choice| *choice == text);
        if found.is_none() {
            let (property, Bound { value, .. }) = setting;
            let shown = self.shown(value.span);
            // The spelling of a value that came from the environment stays unsaid.
            let meant = nearest(value.span.text(self.source).trim_matches('"'), choices.iter().copied());
            self.finding(Code::UnknownChoice, value.span, format!("{shown} is no value of `{}`", property.name))
                .label("unknown value")
                .expected(property.wants)
                .help(format!("for example `{}`", property.example))
                .help_if(meant.map(|meant| format!("did you mean `\"{meant}\"`?")));
        }
        found
    }

    /// The block of a property, if it has one; anything else in its place is reported.
    pub(super) fn block_of<'s>(&mut self, settings: &'s Settings<'a>, name: &str) -> Option<&'s Settings<'a>> {
        let setting = settings.get(name)?;
        let listed = || match setting.property.shape {
            Shape::Block(kind) => {
                kind.other.is_some_and(|(_, keys)| keys.separator().is_some() || keys == Keys::Networks)
            }
            Shape::Single | Shape::List => false,
        };
        match setting.value.value.kind {
            ValueKind::Body(_) => Some(setting.block()),
            ValueKind::List(_) if listed() => Some(setting.block()),
            _ => {
                self.wrong_type(setting.property, setting.value.value);
                None
            }
        }
    }

    /// The text of an entry of a block whose keys the author chooses: a string, a number or a truth value.
    pub(super) fn entry(&mut self, entry: &Setting<'a>, scope: Scope) -> Option<String> {
        let bound = self.follow(entry.value, scope)?;
        match bound.value.kind {
            ValueKind::Integer | ValueKind::Decimal | ValueKind::Quantity | ValueKind::Bool(_) => {
                Some(self.raw(bound).to_owned())
            }
            _ => {
                let text = self.text((entry.property, bound), scope)?;
                match entry.is_listed() {
                    // What is before the separator is the name, as it was found in there.
                    true => Some(text.get(entry.name.len() + 1..).unwrap_or_default().to_owned()),
                    false => Some(text.into_owned()),
                }
            }
        }
    }

    /// An argument vector: a list as it is, a string split into words, and then what `+=` adds.
    pub(super) fn arguments(&mut self, setting: &Setting<'a>, scope: Scope) -> Option<Vec<String>> {
        let property = setting.property;
        let bound = self.follow(setting.value, scope)?;
        let mut words = match &bound.value.kind {
            ValueKind::List(list) => self.words(property, list.iter().map(|value| Bound { value, ..bound }), scope),
            _ => self.split(property, bound, scope),
        };
        if let Some(added) = self.words(property, setting.added().iter().copied(), scope) {
            words.as_mut()?.extend(added);
        }
        words
    }

    fn words(
        &mut self,
        property: &'static Property,
        list: impl Iterator<Item = Bound<'a>>,
        scope: Scope,
    ) -> Option<Vec<String>> {
        let mut words = Some(Vec::with_capacity(list.size_hint().0));
        for item in list {
            match (self.text((property, item), scope), &mut words) {
                (Some(word), Some(words)) => words.push(word.into_owned()),
                _ => words = None,
            }
        }
        words
    }

    fn split(&mut self, property: &'static Property, bound: Bound<'a>, scope: Scope) -> Option<Vec<String>> {
        let value = bound.value;
        let parts = self.parts((property, bound), scope)?;
        let Some(Words { words, operator }) = text::words(&parts) else {
            self.finding(Code::BadWords, value.span, format!("a quote in `{}` is not closed", property.name))
                .label("cannot be split into words")
                .help(format!("close it, or write a list: `{}`", property.example));
            return None;
        };
        if let Some(operator) = operator {
            self.finding(
                Code::NoShell,
                value.span,
                format!("`{operator}` in `{}` is passed on as it is: no shell runs this", property.name),
            )
            .label("only split into words")
            .help(format!(
                "for a shell write `{} = [\"/bin/sh\", \"-c\", \"…\"]`; otherwise put the word in single quotes",
                property.name
            ));
        }
        Some(words)
    }

    /// An absolute path without `..`, in its shortest spelling.
    pub(super) fn absolute(&mut self, span: Span, name: &str, path: &str) -> Option<String> {
        if is_shortest(path) {
            return Some(path.to_owned());
        }
        let wrong = if path.starts_with('/') {
            path.split('/')
                .any(|part| part == "..")
                .then_some(("leads upwards", "write the path without `..`".to_owned()))
        } else {
            Some(("is relative", "begin it with `/`".to_owned()))
        };
        if let Some((what, help)) = wrong {
            let shown = self.shown(span);
            self.finding(Code::BadPath, span, format!("the path in {shown} {what}"))
                .label(format!("`{name}` wants an absolute path"))
                .expected("an absolute path without `..`")
                .help(help);
            return None;
        }
        let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        Some(format!("/{}", parts.join("/")))
    }
}
