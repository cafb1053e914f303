//! What a composition keeps beside its containers: named volumes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};
use crate::model::NamedVolume;
use crate::syntax::{Body, Name};

use super::Checker;
use super::declare::well_formed;

/// The VOLUME statements, and the volumes that something mounts.
#[derive(Default)]
pub(super) struct Volumes<'a> {
    declared: Vec<Volume<'a>>,
    by_name: HashMap<Cow<'a, str>, usize>,
    /// With the first place that mounts it.
    mounted: BTreeMap<String, Span>,
}

struct Volume<'a> {
    name: Cow<'a, str>,
    span: Span,
    file: usize,
    body: Option<&'a Body>,
    labels: Vec<(String, String)>,
}

impl<'a> Checker<'a, '_> {
    pub(super) fn declare_volume(&mut self, file: usize, name: Name, body: Option<&'a Body>) {
        let (text, span) = (name.text(self.source), name.span);
        self.store_name(span, &text, "volume");
        match self.volumes.by_name.get(&text).map(|&first| &self.volumes.declared[first]) {
            // That of the main file counts, whatever the templates that it imports say.
            Some(first) if first.file == 0 && file != 0 => return,
            Some(first) => {
                let first = first.span;
                self.declared_twice(span, first, &text, "volume");
                return;
            }
            None => {}
        }
        self.volumes.by_name.insert(text.clone(), self.volumes.declared.len());
        self.volumes.declared.push(Volume { name: text, span, file, body, labels: Vec::new() });
    }

    fn store_name(&mut self, span: Span, name: &str, what: &str) {
        if !well_formed(name) {
            self.finding(Code::BadName, span, format!("{} is no name", shown(name)))
                .label(format!("cannot be a {what}'s name"))
                .expected("a letter, then letters, digits, `_` and `-`, 63 characters at most")
                .help("give it another name");
        }
    }

    fn declared_twice(&mut self, span: Span, first: Span, name: &str, what: &str) {
        self.finding(Code::DuplicateName, span, format!("the {what} {} is declared twice", shown(name)))
            .label("declared again")
            .related(first, "declared here first")
            .help("give one of them another name");
    }

    /// Notes that a component mounts a volume by its name.
    pub(super) fn mounted(&mut self, span: Span, name: &str) {
        if !self.volumes.mounted.contains_key(name) {
            self.volumes.mounted.insert(name.to_owned(), span);
        }
    }

    /// All volumes by name: what is declared, and what is only mounted. Of imported files, what is mounted.
    pub(super) fn named_volumes(&mut self) -> Vec<NamedVolume> {
        let mut names: BTreeSet<String> = self.volumes.mounted.keys().cloned().collect();
        for place in 0..self.volumes.declared.len() {
            let Volume { ref name, span, file, body, .. } = self.volumes.declared[place];
            if file == 0 && !names.contains(name.as_ref()) {
                let name = name.clone().into_owned();
                names.insert(name.clone());
                self.store_unused(span, &name, "VOLUME", "mounts");
            }
            self.volumes.declared[place].labels = self.labels_of(file, body);
        }
        names
            .into_iter()
            .map(|name| match self.volumes.by_name.get(name.as_str()) {
                Some(&place) => NamedVolume { labels: std::mem::take(&mut self.volumes.declared[place].labels), name },
                None => {
                    self.nearly_declared(&name);
                    NamedVolume { name, labels: Vec::new() }
                }
            })
            .collect()
    }

    /// A volume that nothing declares is made all the same, but may have been meant to be one that is declared.
    fn nearly_declared(&mut self, name: &str) {
        let Some(meant) = nearest(name, self.volumes.by_name.keys().map(AsRef::as_ref)) else { return };
        let (at, meant) = (self.volumes.declared[self.volumes.by_name[meant]].span, meant.to_owned());
        let Some(span) = self.volumes.mounted.get(name).copied() else { return };
        self.finding(
            Code::UndeclaredVolume,
            span,
            format!("no VOLUME is named {}, so that it is made anew", shown(name)),
        )
        .label("not declared")
        .related(at, "declared with a name like it")
        .help(format!("did you mean `{meant}`? Otherwise declare it: `VOLUME {name}`"));
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
}
