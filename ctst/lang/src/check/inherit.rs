//! Inheritance: who inherits from whom, and what.
//!
//! What a component inherits does not depend on arguments, so each declaration is merged once, and its heirs copy it.
//! A value remembers which declaration wrote it; `parameters` finds what the parameters stand for there.

use std::borrow::Cow;

use foldhash::{HashMap, HashSet, HashSetExt as _};

use crate::codes::Code;
use crate::diagnostic::{Span, shown};
use crate::syntax::{Action, Body, Entry, File, StatementKind, Text, Value, ValueKind};
use crate::text;

use super::declare::Facts;
use super::properties::{self, COMPONENT, HEALTHCHECK, Keys, Kind, Property, Shape};
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
    /// A bit for each name and slot that was ever in the list, which others may share: most of what is asked for is not
    /// there.
    names: u64,
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
    /// What most do not have, out of the way.
    extra: Option<Box<Extra<'a>>>,
    from: From,
}

#[derive(Debug, Clone, Default)]
struct Extra<'a> {
    added: Vec<Bound<'a>>,
    block: Settings<'a>,
}

/// Where a setting comes from, seen from the body that is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Base,
    Body,
    /// `UNSET` removed it.
    Nowhere,
}

/// What a declaration gives to others, and what is to be known of it early.
struct Inheritable<'a> {
    /// What others may refer to, where that is settled already.
    facts: Option<Facts>,
    /// What it sets and inherits, if others inherit from it.
    settings: Option<Box<Settings<'a>>>,
    has_healthcheck: bool,
    has_profiles: bool,
    has_replicas: bool,
    /// Whether all of its body could be read.
    complete: bool,
}

impl<'a> Setting<'a> {
    pub(super) fn read(&self) -> (&'static Property, Bound<'a>) {
        (self.property, self.value)
    }

    /// Items that `+=` adds.
    pub(super) fn added(&self) -> &[Bound<'a>] {
        self.extra.as_ref().map_or(&[], |extra| &extra.added)
    }

    /// What stands in the value if that is a block.
    pub(super) fn block(&self) -> &Settings<'a> {
        static EMPTY: Settings<'static> = Settings { list: Vec::new(), names: 0, partial: false };
        self.extra.as_ref().map_or(&EMPTY, |extra| &extra.block)
    }

    /// Whether it is written as an item of a list, `key=value` in one string.
    pub(super) fn is_listed(&self) -> bool {
        self.key == self.value.value.span
    }
}

/// Whether two names are equal. Most are not, and then their lengths or first letters say so without a call.
#[inline]
fn equal(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.as_bytes().first() == other.as_bytes().first() && one == other
}

/// A bit that depends on a name.
#[inline]
fn bit(name: &str) -> u64 {
    let first = name.as_bytes().first().copied().unwrap_or_default();
    1 << ((usize::from(first) + 7 * name.len()) % 64)
}

impl<'a> Settings<'a> {
    #[inline]
    pub(super) fn get(&self, name: &str) -> Option<&Setting<'a>> {
        self.place(name, |setting| &setting.name).and_then(|place| self.list.get(place))
    }

    /// Where the setting is that is called so.
    #[inline]
    fn place(&self, name: &str, called: impl for<'s> Fn(&'s Setting<'a>) -> &'s str) -> Option<usize> {
        if self.names & bit(name) == 0 {
            return None;
        }
        self.list.iter().position(|setting| equal(called(setting), name))
    }

    pub(super) fn key(&self, name: &str) -> Option<Span> {
        self.get(name).map(|setting| setting.key)
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Setting<'a>> {
        self.list.iter()
    }

    fn push(&mut self, setting: Setting<'a>) {
        self.names |= bit(&setting.name) | bit(setting.property.slot);
        self.list.push(setting);
    }

    fn count(&self) -> usize {
        self.list.iter().map(|setting| 1 + setting.added().len() + setting.block().count()).sum()
    }

    /// Where each name is.
    fn places(&self) -> HashMap<Cow<'a, str>, usize> {
        self.list.iter().enumerate().map(|(place, setting)| (setting.name.clone(), place)).collect()
    }

    fn become_base(&mut self) {
        for setting in &mut self.list {
            setting.from = From::Base;
            if let Some(extra) = &mut setting.extra {
                extra.block.become_base();
            }
        }
    }
}

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
            let declared = &mut self.declared.to_mut()[index];
            declared.base = base;
            declared.partial |= base.is_none() && declared.syntax.base.is_some();
        }
        self.inheritance_circles();
        for index in 0..self.declared.len() {
            if let Some(base) = self.declared[index].base {
                self.declared.to_mut()[base].inherited = true;
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
                self.declared.to_mut()[index].base = None;
                self.declared.to_mut()[index].partial = true;
            }
        }
    }

    /// Counts the levels of every chain; one that is too long is cut.
    fn levels(&mut self) {
        let mut walk = Vec::new();
        for start in 0..self.declared.len() {
            let mut at = Some(start);
            while let Some(index) = at.filter(|&index| self.declared[index].depth == 0) {
                walk.push(index);
                at = self.declared[index].base;
            }
            let mut depth = at.map_or(0, |index| self.declared[index].depth);
            for index in walk.drain(..).rev() {
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
                    self.declared.to_mut()[index].base = None;
                    self.declared.to_mut()[index].partial = true;
                    depth = 1;
                }
                self.declared.to_mut()[index].depth = depth;
            }
        }
    }

    /// Who is deployed: components, but for those that others inherit from and that nothing names.
    pub(super) fn roles(&mut self, file: &File<'_>) {
        let mut named = HashSet::new();
        let some_inherit = self.declared.iter().any(|declared| declared.inherited);
        for statement in file.statements.iter().filter(|_| some_inherit) {
            match &statement.kind {
                StatementKind::Connect(connect) => {
                    named.extend(std::iter::once(&connect.from).chain(connect.to).map(|name| name.text(self.source)));
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
            self.declared.to_mut()[index].role = Role::Template;
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
        // All that inherits from nothing comes first.
        let (first, heirs) = order.split_at(order.partition_point(|&index| self.declared[index].base.is_none()));
        let merged = self.each(first, |checker, index| Some(checker.inheritable(*index)));
        for (index, inheritable) in first.iter().zip(merged.into_iter().flatten()) {
            self.inherits(*index, inheritable);
        }
        let mut copied = 0;
        for &index in heirs {
            if self.report.full() {
                return;
            }
            let declared = &self.declared[index];
            let mut complete = true;
            if let Some(base) = declared.base.map(|base| &self.declared[base]) {
                complete &= !base.partial;
                copied += base.settings.as_ref().map_or(0, |settings| settings.count());
                if copied > MOST_COPIED {
                    let span = declared.span;
                    self.finding(Code::TooLong, span, format!("more than {MOST_COPIED} values are inherited in all"))
                        .label("too many from here on")
                        .help("inherit less, or from smaller templates");
                    self.declared.to_mut().iter_mut().for_each(|declared| declared.partial = true);
                    return;
                }
            }
            let mut inheritable = self.inheritable(index);
            inheritable.complete &= complete;
            self.inherits(index, inheritable);
        }
    }

    fn inheritable(&mut self, index: usize) -> Inheritable<'a> {
        let (settings, complete) = self.merged(index);
        let has_profiles = settings.get("profiles").is_some();
        let has_replicas = settings.get("replicas").is_some();
        let declared = &self.declared[index];
        // Most components are as they stand. What these say is looked up while their settings are there.
        let settled = declared.base.is_none() && !declared.inherited && !has_profiles && !has_replicas;
        let partial = declared.partial || !complete;
        let facts = settled.then(|| {
            self.examine_with(index, &settings, |checker, settings| checker.facts_of(index, settings, partial))
        });
        Inheritable {
            facts,
            has_healthcheck: settings.get("healthcheck").is_some(),
            has_profiles,
            has_replicas,
            settings: self.declared[index].inherited.then(|| Box::new(settings)),
            complete,
        }
    }

    fn inherits(&mut self, index: usize, inheritable: Inheritable<'a>) {
        let declared = &mut self.declared.to_mut()[index];
        declared.healthcheck = inheritable.has_healthcheck;
        declared.has_profiles = inheritable.has_profiles;
        declared.has_replicas = inheritable.has_replicas;
        declared.settings = inheritable.settings;
        declared.merged = true;
        declared.partial |= !inheritable.complete;
        if let Some(facts) = inheritable.facts {
            declared.learn(facts);
        }
    }

    /// What a declaration sets and inherits, and whether all of its body could be read. What it inherits from is merged
    /// already.
    fn merged(&mut self, index: usize) -> (Settings<'a>, bool) {
        let declared = &self.declared[index];
        let body = &declared.syntax.body;
        let base = declared.base.and_then(|base| self.declared[base].settings.as_ref());
        let mut settings = base.map(|settings| Settings::clone(settings)).unwrap_or_default();
        settings.become_base();
        let complete = self.merge(&mut settings, body, Origin::Component(index), &COMPONENT);
        (settings, complete)
    }

    /// The same once more, with nothing said that was said then: to keep it for each component would take several times
    /// the memory of the file.
    pub(super) fn settings(&mut self, index: usize) -> Settings<'a> {
        let declared = &self.declared[index];
        if let Some(settings) = &declared.settings {
            return Settings::clone(settings);
        }
        if !declared.merged {
            return Settings::default();
        }
        self.report.mute(true);
        let (settings, _) = self.merged(index);
        self.report.mute(false);
        settings
    }

    /// Changes what is inherited as a body says. Whether all of the body could be read comes back.
    pub(super) fn merge(
        &mut self,
        settings: &mut Settings<'a>,
        body: &'a Body<'a>,
        origin: Origin,
        kind: &'static Kind,
    ) -> bool {
        let mut complete = !body.partial;
        // Only what has keys of the author's choice can be large.
        let many = kind.other.is_some() && body.entries.len() + settings.list.len() > 32;
        let mut places = many.then(|| settings.places());
        settings.list.reserve(body.entries.len().min(1024));
        for entry in body.entries {
            if self.report.full() {
                break;
            }
            let name = entry.key.text(self.source);
            let Some((property, known)) = self.property(entry, &name, kind, &mut complete) else { continue };
            let place = match &places {
                Some(places) => places.get(&name).copied(),
                None if known => settings.place(property.slot, |setting| setting.property.slot),
                None => settings.place(&name, |setting| &setting.name),
            };
            let place = match place {
                Some(place) => {
                    if let Some(first) = self.set_before(&settings.list[place], entry.key.span, &name, kind) {
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
        if std::ptr::eq(kind, &HEALTHCHECK) {
            one_probe(settings);
        } else if std::ptr::eq(kind, &COMPONENT) {
            self.one_number_of_processors(settings);
        }
        settings.partial |= !complete;
        complete
    }

    /// The same for a list of `key=value` that stands for a block.
    fn merge_list(
        &mut self,
        settings: &mut Settings<'a>,
        list: &'a [Value<'a>],
        origin: Origin,
        kind: &'static Kind,
    ) -> bool {
        let Some((property, keys)) = kind.other else { return false };
        let separator = keys.separator();
        if separator.is_none() && keys != Keys::Networks {
            return false;
        }
        let mut complete = true;
        let mut places = settings.places();
        for item in list {
            if self.report.full() {
                break;
            }
            let name = match item.kind {
                ValueKind::Text(quote) => {
                    let text = text::unquoted(self.source, Text { span: item.span, quote });
                    match (text, separator) {
                        (text, None) => Some(text),
                        (Cow::Borrowed(text), Some(separator)) => {
                            text.split_once(separator).map(|(name, _)| Cow::Borrowed(name))
                        }
                        (Cow::Owned(text), Some(separator)) => {
                            text.split_once(separator).map(|(name, _)| Cow::Owned(name.to_owned()))
                        }
                    }
                }
                _ => None,
            };
            let Some(name) = name else {
                let what = property.name;
                let form = separator.map_or("name".to_owned(), |separator| format!("name{separator}value"));
                self.finding(Code::WrongType, item.span, format!("an item of `{what}` is not of the form `{form}`"))
                    .label("not understood")
                    .expected(format!("`{form}` in quotes"))
                    .help(format!("for example `{}`", property.example));
                complete = false;
                continue;
            };
            self.key(item.span, &name, keys);
            let value = Bound::new(item, origin);
            let (key, from) = (item.span, From::Body);
            let setting = Setting { property, name: name.clone(), key, value, extra: None, from };
            match places.get(&name).copied() {
                Some(place) => match self.set_before(&settings.list[place], item.span, &name, kind) {
                    Some(first) => complete &= first,
                    None => settings.list[place] = setting,
                },
                None => {
                    places.insert(name, settings.list.len());
                    settings.push(setting);
                }
            }
        }
        settings.partial |= !complete;
        complete
    }

    /// The property that a key names, and whether it is one of those that there are, as opposed to a key of the
    /// author's choice.
    fn property(
        &mut self,
        entry: &Entry<'_>,
        name: &str,
        kind: &'static Kind,
        complete: &mut bool,
    ) -> Option<(&'static Property, bool)> {
        let span = entry.key.span;
        if matches!(entry.action, Action::Annotate(_)) {
            self.not_supported(span, "`annotate`");
            *complete = false;
            return None;
        }
        if let Some(found) = kind.known.iter().find(|property| equal(property.name, name)) {
            return Some((found, true));
        }
        match kind.other {
            Some((property, keys)) if keys != Keys::Devices || name.starts_with('/') => {
                self.key(span, name, keys);
                return Some((property, false));
            }
            _ if std::ptr::eq(kind, &COMPONENT) && properties::comes_later(name) => {
                self.not_supported(span, &shown(name));
                *complete = false;
            }
            _ => self.unknown_property(span, name, kind),
        }
        None
    }

    /// Looks at a key of the author's choice.
    fn key(&mut self, span: Span, name: &str, keys: Keys) {
        match keys {
            Keys::Variables => self.variable_name(span, name),
            Keys::Sysctls => self.sysctl_name(span, name),
            Keys::Hosts => self.host_name(span, name),
            // When it is known which there are.
            Keys::Networks => {}
            Keys::Devices => drop(self.absolute(span, "io", name)),
            Keys::Labels => {
                if name.is_empty() || name.contains("${") {
                    self.finding(Code::BadName, span, format!("{} is no name of a label", shown(name)))
                        .label("empty, or with a placeholder")
                        .expected("a text without placeholders")
                        .help("for example `labels { team = \"storage\" }`");
                }
            }
        }
    }

    fn variable_name(&mut self, span: Span, name: &str) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !name.is_empty() && name.bytes().all(plain) {
            return;
        }
        if name.is_empty() || name.contains(['=', '\0']) || name.contains("${") {
            self.finding(Code::BadVariableName, span, format!("{} is no name of a variable", shown(name)))
                .label("malformed variable name")
                .expected("a name without `=` and placeholders")
                .help("write `NAME = \"value\"`");
        }
    }

    /// Refuses what the same body has set already; whether the body can still be used comes back then.
    fn set_before(&mut self, setting: &Setting<'a>, span: Span, name: &str, kind: &Kind) -> Option<bool> {
        if setting.from != From::Body {
            return None;
        }
        let first = setting.key;
        if setting.name != name {
            let plural = if name.ends_with('s') { name } else { &setting.name };
            self.finding(Code::Exclusive, span, format!("`{}` and `{name}` exclude each other", setting.name))
                .label("the other one")
                .related(first, "one of them")
                .help(format!("write one list: `{plural} = [ … ]`"));
            return Some(false);
        }
        let what = kind.other.map_or("", |(_, keys)| keys.noun());
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
        entry: &'a Entry<'a>,
        property: &'static Property,
        name: Cow<'a, str>,
        origin: Origin,
    ) -> Option<bool> {
        let inherited = settings.list.get(place).is_some_and(|setting| setting.from == From::Base);
        let key = entry.key.span;
        match &entry.action {
            Action::Set(value) => {
                let (extra, complete) = match property.shape {
                    Shape::Block(kind) => {
                        let (block, complete) = self.block(settings, place, kind, value, origin);
                        (Some(Box::new(Extra { added: Vec::new(), block })), complete)
                    }
                    Shape::Single | Shape::List => (None, true),
                };
                let value = Bound::new(value, origin);
                let setting = Setting { property, name, key, value, extra, from: From::Body };
                match settings.list.get_mut(place) {
                    Some(old) => {
                        settings.names |= bit(&setting.name);
                        *old = setting;
                    }
                    None => settings.push(setting),
                }
                Some(complete)
            }
            Action::Append(_) if !matches!(property.shape, Shape::List) => {
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
                let extra = setting.extra.get_or_insert_default();
                extra.added.extend(list.iter().map(|value| Bound::new(value, origin)));
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
        kind: &'static Kind,
        value: &'a Value<'a>,
        origin: Origin,
    ) -> (Settings<'a>, bool) {
        if !matches!(value.kind, ValueKind::Body(_) | ValueKind::List(_)) {
            return (Settings::default(), true);
        }
        // A list of networks is all that there is: who is on one by inheritance would be reached from it unawares.
        let is_whole = matches!(value.kind, ValueKind::List(_)) && matches!(kind.other, Some((_, Keys::Networks)));
        let block = match settings.list.get_mut(place) {
            Some(setting) if setting.from == From::Base && !is_whole => setting.extra.take().map(|extra| extra.block),
            _ => None,
        };
        let mut block = block.unwrap_or_default();
        let complete = match &value.kind {
            ValueKind::Body(body) => self.merge(&mut block, body, origin, kind),
            ValueKind::List(list) => self.merge_list(&mut block, list, origin, kind),
            _ => true,
        };
        (block, complete)
    }

    /// `cpus`, and `cpu` where that is a number of processors, take the place of the other one that is inherited.
    fn one_number_of_processors(&self, settings: &mut Settings<'a>) {
        let counts =
            |setting: &Setting<'a>| setting.name != "cpu" || setting.value.value.span.text(self.source).contains('.');
        let own = settings.list.iter().find(|s| s.from == From::Body && matches!(s.name.as_ref(), "cpu" | "cpus"));
        let Some(own) = own.filter(|own| counts(own)).map(|own| own.property.slot) else { return };
        settings.list.retain(|s| {
            s.from == From::Body || s.property.slot == own || !matches!(s.name.as_ref(), "cpu" | "cpus") || !counts(s)
        });
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
