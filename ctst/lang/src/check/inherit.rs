//! Inheritance: who inherits from whom, and what.
//!
//! What a component inherits does not depend on arguments, so each declaration is merged once, and its heirs copy it.
//! A value remembers which declaration wrote it; `parameters` finds what the parameters stand for there.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use crate::codes::Code;
use crate::diagnostic::{Span, shown};
use crate::syntax::{Action, Body, ComponentKind, Entry, File, StatementKind, Value, ValueKind};

use super::properties::{self, Property, Shape, VARIABLE};
use super::resolve::{Bound, Origin};
use super::{Checker, Role};

/// Longest chain of templates.
const MOST_LEVELS: usize = 64;
/// Most values that are copied from templates into their heirs, so that a small file cannot become a huge composition.
const MOST_COPIED: usize = 1 << 20;
const PROBES: [&str; 3] = ["command", "http", "tcp"];

/// The values of a body, by property.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings<'a> {
    list: Vec<Setting<'a>>,
    /// Whether something of it could not be read.
    pub(super) partial: bool,
}

/// A property with its value.
#[derive(Debug, Clone)]
pub(super) struct Setting<'a> {
    pub(super) property: &'static Property,
    /// The property's name, or that of a variable.
    pub(super) name: Cow<'a, str>,
    pub(super) key: Span,
    pub(super) value: Bound<'a>,
    /// Items that `+=` adds.
    pub(super) added: Vec<Bound<'a>>,
    /// What stands in the value if that is a block.
    pub(super) block: Settings<'a>,
    from: From,
}

/// Where a setting comes from, seen from the body that is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Base,
    Body,
    /// `UNSET` removed it.
    Nowhere,
}

impl<'a> Setting<'a> {
    pub(super) fn read(&self) -> (&'static Property, Bound<'a>) {
        (self.property, self.value)
    }
}

impl<'a> Settings<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&Setting<'a>> {
        self.list.iter().find(|setting| setting.name == name)
    }

    pub(super) fn key(&self, name: &str) -> Option<Span> {
        self.get(name).map(|setting| setting.key)
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Setting<'a>> {
        self.list.iter()
    }

    fn count(&self) -> usize {
        self.list.iter().map(|setting| 1 + setting.added.len() + setting.block.count()).sum()
    }

    fn become_base(&mut self) {
        for setting in &mut self.list {
            setting.from = From::Base;
            setting.block.become_base();
        }
    }
}

/// What a body is of.
#[derive(Clone, Copy)]
struct Kind {
    /// Empty for variables, which have any name.
    known: &'static [Property],
    name: &'static str,
}

const COMPONENT: Kind = Kind { known: properties::COMPONENT, name: "a component" };
const HEALTHCHECK: Kind = Kind { known: properties::HEALTHCHECK, name: "a health check" };
const VARIABLES: Kind = Kind { known: &[], name: "the environment" };

impl<'a> Checker<'a, '_> {
    /// Looks up what each declaration inherits from, and refuses circles.
    pub(super) fn bases(&mut self) {
        for index in 0..self.declared.len() {
            if self.report.full() {
                return;
            }
            let declared = &self.declared[index];
            let base = match &declared.syntax.base {
                Some(base) => self.inherited_from(declared.file, base.path),
                None => None,
            };
            if let Some(base) = base {
                self.arguments_fit(index, base);
            }
            let declared = &mut self.declared[index];
            declared.base = base;
            declared.partial |= base.is_none() && declared.syntax.base.is_some();
        }
        self.inheritance_circles();
        for index in 0..self.declared.len() {
            if let Some(base) = self.declared[index].base {
                self.declared[base].inherited = true;
            }
        }
        self.levels();
    }

    /// Reports each circle once and takes it apart.
    fn inheritance_circles(&mut self) {
        const SHOWN: usize = 12;
        // The walk that came by, counted from 1.
        let mut seen = vec![0; self.declared.len()];
        for start in 0..self.declared.len() {
            let mut at = start;
            while seen[at] == 0 {
                seen[at] = start + 1;
                match self.declared[at].base {
                    Some(base) => at = base,
                    None => break,
                }
            }
            if seen[at] != start + 1 || self.declared[at].base.is_none() || self.report.full() {
                continue;
            }
            let mut circle = vec![at];
            while let Some(next) = self.declared[circle[circle.len() - 1]].base.filter(|next| *next != at) {
                circle.push(next);
            }
            let mut names: Vec<&str> =
                circle.iter().take(SHOWN).map(|&index| self.declared[index].name.as_ref()).collect();
            if circle.len() > SHOWN {
                names.push("…");
            }
            names.push(self.declared[at].name.as_ref());
            let message = format!("the components inherit from each other in a circle: {}", names.join(" -> "));
            let place = |index: &usize| self.declared[*index].syntax.base.as_ref().map(|base| base.path);
            let spans: Vec<Span> = circle.iter().take(SHOWN).filter_map(place).collect();
            let finding = self
                .finding(Code::InheritanceCircle, spans.first().copied().unwrap_or_default(), message)
                .label("begins here")
                .help("remove one of these `FROM`");
            spans.into_iter().skip(1).fold(finding, |finding, span| finding.related(span, "goes on here"));
            for index in circle {
                self.declared[index].base = None;
                self.declared[index].partial = true;
            }
        }
    }

    /// Counts the levels of every chain; one that is too long is cut.
    fn levels(&mut self) {
        for start in 0..self.declared.len() {
            let mut walk = Vec::new();
            let mut at = Some(start);
            while let Some(index) = at.filter(|&index| self.declared[index].depth == 0) {
                walk.push(index);
                at = self.declared[index].base;
            }
            let mut depth = at.map_or(0, |index| self.declared[index].depth);
            for index in walk.into_iter().rev() {
                depth += 1;
                if depth > MOST_LEVELS {
                    let span = self.declared[index].syntax.base.as_ref().map_or(Span::default(), |base| base.path);
                    self.finding(
                        Code::TooManyLevels,
                        span,
                        format!("more than {MOST_LEVELS} components inherit from each other in a row"),
                    )
                    .label("one level too many")
                    .help("inherit from fewer templates");
                    self.declared[index].base = None;
                    self.declared[index].partial = true;
                    depth = 1;
                }
                self.declared[index].depth = depth;
            }
        }
    }

    /// Who is deployed: components, but for those that others inherit from and that nothing names.
    pub(super) fn roles(&mut self, file: &File) {
        let mut named = HashSet::new();
        for statement in &file.statements {
            match &statement.kind {
                StatementKind::Connect(connect) => {
                    named.extend(std::iter::once(&connect.from).chain(&connect.to).map(|name| name.text(self.source)));
                }
                StatementKind::Expose(expose) => named.extend(expose.component.map(|name| name.text(self.source))),
                _ => {}
            }
        }
        for index in 0..self.declared.len() {
            let declared = &self.declared[index];
            if declared.role != Role::Deployed {
                continue;
            }
            if !declared.inherited || named.contains(&declared.name) {
                self.parameters_have_values(index);
                continue;
            }
            let (name, span) = (shown(&declared.name), declared.span);
            self.declared[index].role = Role::Template;
            self.finding(
                Code::ImpliedTemplate,
                span,
                format!("{name} is taken for a template: others inherit from it, and no CONNECT or EXPOSE names it"),
            )
            .label("not deployed")
            .help(format!("write `TEMPLATE {}`; to deploy it, name it in a CONNECT or EXPOSE", name.trim_matches('`')));
        }
        let deployed = self.declared.iter().any(|declared| declared.role != Role::Template);
        if !deployed && !self.report.has_errors() {
            let what = if self.declared.is_empty() { "no component" } else { "nothing but templates" };
            self.finding(Code::NothingDeclared, Span::default(), format!("the file declares {what}"))
                .help("write one: `COMPONENT web { image = \"file://./rootfs\" … }`");
        }
    }

    /// Gives every declaration what it inherits.
    pub(super) fn inherit(&mut self) {
        let mut order: Vec<usize> = (0..self.declared.len()).collect();
        order.sort_by_key(|&index| self.declared[index].depth);
        let mut copied = 0;
        for index in order {
            if self.report.full() {
                return;
            }
            let declared = &self.declared[index];
            let component = declared.syntax;
            if component.kind == ComponentKind::Job {
                continue;
            }
            let mut settings = Settings::default();
            let mut complete = true;
            if let Some(base) = declared.base.map(|base| &self.declared[base]) {
                complete &= !base.partial;
                copied += base.settings.count();
                if copied > MOST_COPIED {
                    let span = declared.span;
                    self.finding(Code::TooLong, span, format!("more than {MOST_COPIED} values are inherited in all"))
                        .label("too many from here on")
                        .help("inherit less, or from smaller templates");
                    self.declared.iter_mut().for_each(|declared| declared.partial = true);
                    return;
                }
                settings = base.settings.clone();
                settings.become_base();
            }
            complete &= self.merge(&mut settings, &component.body, Origin::Component(index), COMPONENT);
            let declared = &mut self.declared[index];
            declared.healthcheck = settings.get("healthcheck").is_some();
            declared.settings = settings;
            declared.partial |= !complete;
        }
    }

    /// Changes what is inherited as a body says. Whether all of the body could be read comes back.
    fn merge(&mut self, settings: &mut Settings<'a>, body: &'a Body, origin: Origin, kind: Kind) -> bool {
        let mut complete = !body.partial;
        // Only an environment can be large.
        let many = kind.known.is_empty() && body.entries.len() + settings.list.len() > 32;
        let mut places: Option<HashMap<Cow<'a, str>, usize>> = many
            .then(|| settings.list.iter().enumerate().map(|(place, setting)| (setting.name.clone(), place)).collect());
        settings.list.reserve(body.entries.len().min(1024));
        for entry in &body.entries {
            if self.report.full() {
                break;
            }
            let name = entry.key.text(self.source);
            let Some(property) = self.property(entry, &name, kind, &mut complete) else { continue };
            let place = match &places {
                Some(places) => places.get(&name).copied(),
                None if kind.known.is_empty() => settings.list.iter().position(|setting| setting.name == name),
                None => settings.list.iter().position(|setting| setting.property.slot == property.slot),
            };
            let place = match place {
                Some(place) => {
                    if let Some(first) = self.set_before(&settings.list[place], entry, &name) {
                        complete &= first;
                        continue;
                    }
                    place
                }
                None => settings.list.len(),
            };
            match self.change(settings, place, entry, property, name.clone(), origin) {
                Some(good) => complete &= good,
                None => complete = false,
            }
            if let Some(places) = places.as_mut().filter(|_| settings.list.len() > place) {
                places.insert(name, place);
            }
        }
        settings.list.retain(|setting| setting.from != From::Nowhere);
        if kind.name == HEALTHCHECK.name {
            one_probe(settings);
        }
        settings.partial |= !complete;
        complete
    }

    fn property(&mut self, entry: &Entry, name: &str, kind: Kind, complete: &mut bool) -> Option<&'static Property> {
        let span = entry.key.span;
        if matches!(entry.action, Action::Annotate(_)) {
            self.not_supported(span, "`annotate`");
            *complete = false;
            return None;
        }
        if kind.known.is_empty() {
            self.variable_name(span, name);
            return Some(&VARIABLE);
        }
        let found = kind.known.iter().find(|property| property.name == name);
        if found.is_none() && properties::comes_later(name) {
            self.not_supported(span, &shown(name));
            *complete = false;
        } else if found.is_none() {
            self.unknown_property(span, name, kind.known, kind.name);
        }
        found
    }

    fn variable_name(&mut self, span: Span, name: &str) {
        if name.is_empty() || name.contains(['=', '\0']) || name.contains("${") {
            self.finding(Code::BadVariableName, span, format!("{} is no name of a variable", shown(name)))
                .label("malformed variable name")
                .expected("a name without `=` and placeholders")
                .help("write `NAME = \"value\"`");
        }
    }

    /// Refuses what the same body has set already; whether the body can still be used comes back then.
    fn set_before(&mut self, setting: &Setting<'a>, entry: &Entry, name: &str) -> Option<bool> {
        if setting.from != From::Body {
            return None;
        }
        let (first, span) = (setting.key, entry.key.span);
        if setting.name != name {
            let plural = if name.ends_with('s') { name } else { &setting.name };
            self.finding(Code::Exclusive, span, format!("`{}` and `{name}` exclude each other", setting.name))
                .label("the other one")
                .related(first, "one of them")
                .help(format!("write one list: `{plural} = [ … ]`"));
            return Some(false);
        }
        let what =
            if setting.property.shape == Shape::Single && setting.property == &VARIABLE { "the variable " } else { "" };
        self.finding(Code::DuplicateProperty, span, format!("{what}{} is set twice", shown(name)))
            .label("set again")
            .related(first, "set here first")
            .help("keep one of them");
        Some(true)
    }

    /// Carries out one entry on the setting at `place`, which may be the one after the last. `None`: it was refused.
    fn change(
        &mut self,
        settings: &mut Settings<'a>,
        place: usize,
        entry: &'a Entry,
        property: &'static Property,
        name: Cow<'a, str>,
        origin: Origin,
    ) -> Option<bool> {
        let inherited = settings.list.get(place).is_some_and(|setting| setting.from == From::Base);
        let key = entry.key.span;
        match &entry.action {
            Action::Set(value) => {
                let (block, complete) = self.block(settings, place, property, value, origin);
                let value = Bound::new(value, origin);
                let setting = Setting { property, name, key, value, added: Vec::new(), block, from: From::Body };
                match settings.list.get_mut(place) {
                    Some(old) => *old = setting,
                    None => settings.list.push(setting),
                }
                Some(complete)
            }
            Action::Append(_) if property.shape != Shape::List => {
                self.finding(Code::WrongType, key, format!("`+=` adds to a list, and {} is none", shown(&name)))
                    .label("no list")
                    .expected(property.wants)
                    .help(format!("write `{name} = …`"));
                None
            }
            Action::Append(_) | Action::Unset if !inherited => {
                let verb = if matches!(entry.action, Action::Unset) { "removed" } else { "added to" };
                self.finding(
                    Code::NothingInherited,
                    key,
                    format!("nothing is inherited for {} that could be {verb}", shown(&name)),
                )
                .label("not inherited")
                .expected("a property that a template sets")
                .help(match verb {
                    "removed" => "remove this".to_owned(),
                    _ => format!("write `{name} = [ … ]`"),
                });
                None
            }
            Action::Append(value) => {
                let setting = settings.list.get_mut(place)?;
                let ValueKind::List(list) = &value.kind else { return None };
                setting.added.extend(list.iter().map(|value| Bound::new(value, origin)));
                (setting.key, setting.from) = (key, From::Body);
                Some(true)
            }
            Action::Unset => {
                settings.list.get_mut(place)?.from = From::Nowhere;
                Some(true)
            }
            Action::Annotate(_) => None,
        }
    }

    /// What stands in a value that is a block, merged with what is inherited.
    fn block(
        &mut self,
        settings: &mut Settings<'a>,
        place: usize,
        property: &Property,
        value: &'a Value,
        origin: Origin,
    ) -> (Settings<'a>, bool) {
        let kind = match property.shape {
            Shape::Variables => VARIABLES,
            Shape::Healthcheck => HEALTHCHECK,
            Shape::Single | Shape::List => return (Settings::default(), true),
        };
        let ValueKind::Body(body) = &value.kind else { return (Settings::default(), true) };
        let mut block = match settings.list.get_mut(place) {
            Some(setting) if setting.from == From::Base => std::mem::take(&mut setting.block),
            _ => Settings::default(),
        };
        let complete = self.merge(&mut block, body, origin, kind);
        (block, complete)
    }
}

/// A probe takes the place of the one that is inherited, and `port` goes with `http`.
fn one_probe(settings: &mut Settings<'_>) {
    let own =
        |settings: &Settings<'_>, name: &str| settings.get(name).is_some_and(|setting| setting.from == From::Body);
    if !PROBES.iter().any(|probe| own(settings, probe)) {
        return;
    }
    let http = own(settings, "http");
    settings.list.retain(|setting| {
        setting.from == From::Body || !(PROBES.contains(&setting.name.as_ref()) || (setting.name == "port" && !http))
    });
}
