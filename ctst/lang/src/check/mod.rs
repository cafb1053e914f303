//! From the syntax tree to the composition, or to all that is wrong with it.
//!
//! The order: what is declared, who inherits what, what others may refer to (ports, image, host name, health), the
//! connections, then each component with its references and wiring, then the published ports. Whatever is refused or
//! broken is reported once and then treated as unknown, so that no error follows from another.

mod build;
mod component;
mod connect;
mod declare;
mod dns;
mod env_file;
mod expose;
mod files;
pub(crate) mod image;
mod inherit;
mod limits;
mod mounts;
mod networks;
mod parameters;
mod profiles;
mod properties;
mod replicas;
mod resolve;
mod rights;
mod runtime;
mod stores;
mod threads;
mod values;

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;

use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};

use crate::Inputs;
use crate::codes::Code;
use crate::diagnostic::{Diagnostic, Report, Span, shown};
use crate::model;
use crate::sources::Source;
use crate::syntax;

use inherit::Settings;
use parameters::Param;
use resolve::Memo;

/// What the checks share.
struct Checker<'a, 'r> {
    source: &'a str,
    env: &'r (dyn Fn(&str) -> Option<String> + Sync),
    report: &'r mut Report,
    /// Everything that COMPONENT, TEMPLATE and JOB declare, in the file's order.
    declared: Cow<'r, [Declared<'a>]>,
    files: &'a [Source<'a>],
    /// The project's name, if a STACK says it.
    stack: Option<(Span, Cow<'a, str>, Option<&'a syntax::Body<'a>>)>,
    stores: Cow<'r, stores::Stores<'a>>,
    loader: Option<&'r dyn crate::Loader>,
    /// Files that were read, by their paths.
    read: HashMap<String, files::Content>,
    /// What each file declares.
    by_name: Cow<'r, [Names<'a>]>,
    /// What each file calls its imports, by their place.
    aliases: Cow<'r, [Names<'a>]>,
    /// Imports that something inherits from, by file and place.
    used_imports: HashSet<(usize, usize)>,
    /// What PARAM statements declare.
    params: &'a [Param<'a>],
    params_by_name: Cow<'r, [Names<'a>]>,
    edges: Cow<'r, [connect::Edge]>,
    /// Who is connected to whom, and where that is said.
    connected: Cow<'r, HashMap<(usize, usize), Span>>,
    /// Pairs that a missing CONNECT was reported for.
    warned: HashSet<(usize, usize)>,
    /// Values of parameters for the component that is looked at.
    memo: Memo<'a>,
    uses: Uses,
    /// The component that is looked at: a finding in what it inherits names it.
    current: Option<usize>,
    /// Whether a statement was dropped, so that a missing name may be one that could not be read.
    partial: bool,
}

/// Places by name.
type Names<'a> = HashMap<Cow<'a, str>, usize>;

/// What is noted of the components that are looked at, beside findings.
#[derive(Default)]
struct Uses {
    /// Bytes that placeholders gave so far, where they stand for more than a reference.
    expanded: usize,
    /// Parameters of templates that something refers to, by the template and their place.
    parameters: HashSet<(usize, usize)>,
    /// Places of PARAM statements that something refers to.
    params: HashSet<usize>,
    /// Volumes that are mounted, with the first place that does so.
    mounted: BTreeMap<String, Span>,
    /// Secrets and configs that something refers to.
    secrets: HashSet<String>,
    configs: HashSet<String>,
    /// Networks that somebody is on.
    networks: HashSet<String>,
}

impl Uses {
    /// Adds what was noted of components that come later.
    fn add(&mut self, later: Uses) {
        self.expanded += later.expanded;
        self.parameters.extend(later.parameters);
        self.params.extend(later.params);
        for (name, span) in later.mounted {
            self.mounted.entry(name).or_insert(span);
        }
        self.secrets.extend(later.secrets);
        self.configs.extend(later.configs);
        self.networks.extend(later.networks);
    }
}

/// What becomes of a declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It becomes a component of the composition.
    Deployed,
    /// It is there to inherit from.
    Template,
    /// None of its profiles is active.
    Inactive,
}

/// A component as the others see it.
#[derive(Clone)]
struct Declared<'a> {
    file: usize,
    name: Cow<'a, str>,
    span: Span,
    /// The whole statement.
    whole: Span,
    /// Line of the statement, from 1.
    line: usize,
    syntax: &'a syntax::Component<'a>,
    role: Role,
    /// What it inherits from.
    base: Option<usize>,
    /// Length of the chain that it inherits from.
    depth: usize,
    /// Whether another one inherits from it.
    inherited: bool,
    /// What it sets and inherits, where others inherit that from it.
    settings: Option<Box<Settings<'a>>>,
    /// Whether its body was merged with what it inherits.
    merged: bool,
    /// Whether it is known what others may refer to, which are the fields from `hostname_at` on but `healthcheck`.
    known: bool,
    has_profiles: bool,
    has_replicas: bool,
    /// Where its host name is written, if it is.
    hostname_at: Option<Span>,
    /// Whether something of it is refused or broken: then nothing is said about what it lacks.
    partial: bool,
    /// Declared ports; `None` if they are unknown because of an error.
    ports: Option<Vec<u16>>,
    image: Option<model::Image>,
    /// Its host name, if it is not made from its name.
    hostname: Option<String>,
    network: Option<model::Network>,
    /// Where each network that it is on is written.
    networks_at: Vec<Span>,
    healthcheck: bool,
    /// Whether the image's health check is switched off.
    no_healthcheck: bool,
    /// How many like it there are, if it is said; their names then have numbers.
    replicas: Option<u32>,
    /// Of its connection string.
    scheme: &'static str,
}

impl Declared<'_> {
    /// The host name that the others reach it by.
    fn host(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| self.name.replace('_', "-"))
    }

    fn learn(&mut self, facts: declare::Facts) {
        self.known = true;
        (self.ports, self.image) = (facts.ports, facts.image);
        (self.network, self.networks_at) = (facts.network, facts.networks_at);
        (self.hostname, self.hostname_at) = (facts.hostname, facts.hostname_at);
        self.scheme = facts.scheme;
        self.no_healthcheck = facts.no_healthcheck;
        self.healthcheck &= !facts.no_healthcheck;
    }

    fn is_job(&self) -> bool {
        self.syntax.kind == syntax::ComponentKind::Job
    }

    /// Whether its own properties are looked up: those of a template are with each of its heirs.
    fn is_examined(&self) -> bool {
        match self.role {
            Role::Deployed | Role::Inactive => true,
            Role::Template => !self.inherited,
        }
    }
}

/// Checks a tree. `None` if there is an error, which then is in the report.
pub(crate) fn composition<'a>(
    source: &'a str,
    files: &'a [Source<'a>],
    project: &str,
    env: &(dyn Fn(&str) -> Option<String> + Sync),
    inputs: &Inputs<'_>,
    report: &mut Report,
) -> Option<model::Composition> {
    let params = OnceCell::new();
    let [main, ..] = files else { return None };
    let file = &main.tree;
    let names = || Cow::Owned(files.iter().map(|_| HashMap::new()).collect());
    let mut checker = Checker {
        source,
        env,
        report,
        declared: Cow::Owned(Vec::new()),
        files,
        stack: None,
        stores: Cow::Owned(stores::Stores::default()),
        loader: inputs.loader,
        read: HashMap::new(),
        by_name: names(),
        aliases: names(),
        used_imports: HashSet::new(),
        params: &[],
        params_by_name: names(),
        edges: Cow::Owned(Vec::new()),
        connected: Cow::Owned(HashMap::new()),
        warned: HashSet::new(),
        memo: Memo::default(),
        uses: Uses::default(),
        current: None,
        partial: file.partial,
    };
    for number in 0..files.len() {
        checker.declare(number);
    }
    checker.imports();
    let declared = checker.declared_params(inputs);
    checker.params = params.get_or_init(|| declared);
    checker.declared_networks();
    checker.bases();
    checker.roles(file);
    checker.inherit();
    checker.profiles(inputs);
    checker.replicas();
    checker.something_is_active();
    checker.facts();
    checker.collisions();
    checker.neighbours();
    checker.connections(file);
    let components = checker.components();
    let exposures = checker.exposures(file);
    let volumes = checker.named_volumes();
    let labels = checker.stack_labels();
    let secrets = checker.secrets(&components);
    checker.unused_configs();
    checker.unused_networks();
    checker.unused_parameters();
    checker.unused_imports();
    if checker.report.has_errors() {
        return None;
    }
    let name = checker.stack.as_ref().map_or(project, |(_, name, _)| name).to_owned();
    Some(model::Composition { name, components, exposures, volumes, secrets, labels })
}

impl<'a> Checker<'a, '_> {
    fn finding(&mut self, code: Code, span: Span, message: impl Into<String>) -> Finding<'_> {
        let heir = self.current.map(|index| &self.declared[index]).filter(|heir| !heir.whole.contains(span));
        let mut diagnostic = Diagnostic::new(code, span, message);
        if let Some(heir) = heir {
            diagnostic = diagnostic.related(heir.span, "in this component");
        }
        Finding { report: self.report, diagnostic: Some(diagnostic) }
    }

    fn not_supported(&mut self, span: Span, thing: &str) -> Finding<'_> {
        self.finding(Code::NotSupported, span, format!("{thing} is not supported yet")).with(|d| {
            d.label("not supported yet").help("remove it: this version of ctst refuses what it would not carry out")
        })
    }

    fn shown(&self, span: Span) -> String {
        shown(span.text(self.source))
    }

    /// Looks at a component: findings name it, and its parameters have the values that it gives.
    fn examine<T>(&mut self, index: usize, look: impl FnOnce(&mut Self, &Settings<'a>) -> T) -> T {
        let settings = self.settings(index);
        self.examine_with(index, &settings, look)
    }

    /// The same where its settings are at hand.
    fn examine_with<T>(
        &mut self,
        index: usize,
        settings: &Settings<'a>,
        look: impl FnOnce(&mut Self, &Settings<'a>) -> T,
    ) -> T {
        self.current = Some(index);
        self.memo.clear();
        let seen = look(self, settings);
        self.current = None;
        seen
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
