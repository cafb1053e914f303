//! From the syntax tree to the composition, or to all that is wrong with it.
//!
//! The order: what is declared, what others may refer to (ports, image, host name, health), the connections, then each
//! component with its references and wiring, then the published ports. Whatever is refused or broken is reported
//! once and then treated as unknown, so that no error follows from another.

mod component;
mod connect;
mod declare;
mod expose;
mod image;
mod mounts;
mod properties;
mod resolve;
mod values;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use crate::codes::Code;
use crate::diagnostic::{Diagnostic, Report, Span, shown};
use crate::model;
use crate::syntax;

use properties::Settings;

/// What the checks share.
struct Checker<'a, 'r> {
    source: &'a str,
    env: &'r dyn Fn(&str) -> Option<String>,
    report: &'r mut Report,
    /// Everything that COMPONENT, TEMPLATE and JOB declare, in the file's order.
    declared: Vec<Declared<'a>>,
    by_name: HashMap<Cow<'a, str>, usize>,
    /// Names of PARAM statements.
    params: HashSet<Cow<'a, str>>,
    edges: Vec<connect::Edge>,
    connected: HashSet<(usize, usize)>,
    /// Pairs that a missing CONNECT was reported for.
    warned: HashSet<(usize, usize)>,
    /// Bytes that placeholders of the environment gave so far.
    expanded: usize,
    /// Whether a statement was dropped, so that a missing name may be one that could not be read.
    partial: bool,
}

/// A component as the others see it.
struct Declared<'a> {
    name: Cow<'a, str>,
    span: Span,
    /// Line of the statement, from 1.
    line: usize,
    syntax: &'a syntax::Component,
    settings: Settings<'a>,
    /// Whether something of it is refused or broken: then nothing is said about what it lacks.
    partial: bool,
    /// Declared ports; `None` if they are unknown because of an error.
    ports: Option<Vec<u16>>,
    image: Option<model::Image>,
    hostname: Option<String>,
    network: Option<model::Network>,
    healthcheck: bool,
    /// Of its connection string.
    scheme: &'static str,
}

impl Declared<'_> {
    /// The host name that the others reach it by.
    fn host(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| self.name.replace('_', "-"))
    }
}

/// Checks a tree. `None` if there is an error, which then is in the report.
pub(crate) fn composition<'a>(
    source: &'a str,
    file: &'a syntax::File,
    project: &str,
    env: &dyn Fn(&str) -> Option<String>,
    report: &mut Report,
) -> Option<model::Composition> {
    let mut checker = Checker {
        source,
        env,
        report,
        declared: Vec::new(),
        by_name: HashMap::new(),
        params: HashSet::new(),
        edges: Vec::new(),
        connected: HashSet::new(),
        warned: HashSet::new(),
        expanded: 0,
        partial: file.partial,
    };
    checker.declare(file);
    checker.facts();
    checker.collisions();
    checker.connections(file);
    let components = checker.components();
    let exposures = checker.exposures(file);
    if checker.report.has_errors() {
        return None;
    }
    Some(model::Composition { name: project.to_owned(), components, exposures })
}

impl Checker<'_, '_> {
    fn finding(&mut self, code: Code, span: Span, message: impl Into<String>) -> Finding<'_> {
        Finding { report: self.report, diagnostic: Some(Diagnostic::new(code, span, message)) }
    }

    fn not_supported(&mut self, span: Span, thing: &str) -> Finding<'_> {
        self.finding(Code::NotSupported, span, format!("{thing} is not supported yet")).with(|d| {
            d.label("not supported yet").help("remove it: this version of ctst refuses what it would not carry out")
        })
    }

    fn shown(&self, span: Span) -> String {
        shown(span.text(self.source))
    }
}

/// A diagnostic under construction; it is reported when it goes out of scope.
struct Finding<'r> {
    report: &'r mut Report,
    diagnostic: Option<Diagnostic>,
}

impl Finding<'_> {
    fn with(mut self, change: impl FnOnce(Diagnostic) -> Diagnostic) -> Self {
        self.diagnostic = self.diagnostic.take().map(change);
        self
    }

    fn label(self, label: impl Into<String>) -> Self {
        self.with(|d| d.label(label))
    }

    fn expected(self, expected: impl Into<String>) -> Self {
        self.with(|d| d.expected(expected))
    }

    fn help(self, help: impl Into<String>) -> Self {
        self.with(|d| d.help(help))
    }

    fn help_if(self, help: Option<String>) -> Self {
        self.with(|d| d.help_if(help))
    }

    fn related(self, span: Span, label: impl Into<String>) -> Self {
        self.with(|d| d.related(span, label))
    }
}

impl Drop for Finding<'_> {
    fn drop(&mut self) {
        if let Some(diagnostic) = self.diagnostic.take() {
            self.report.push(diagnostic);
        }
    }
}

/// `a, b, c and 7 more`
fn some_of<'n>(names: impl Iterator<Item = &'n str>) -> String {
    const SHOWN: usize = 8;
    let mut names = names.peekable();
    let list: Vec<&str> = names.by_ref().take(SHOWN).collect();
    match names.count() {
        0 => list.join(", "),
        more => format!("{} and {more} more", list.join(", ")),
    }
}
