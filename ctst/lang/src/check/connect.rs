//! CONNECT: order and wiring.

use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};
use petgraph::algo::{kosaraju_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};

use crate::codes::Code;
use crate::diagnostic::{Span, shown};
use crate::model::{Image, When};
use crate::syntax::{Connect, ConnectWhen, File, Name, Statement, StatementKind};

use super::Checker;
use super::Role;
use super::properties::{Property, Shape};
use super::resolve::{Bound, Origin, Scope};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
const TIMEOUT: Property = Property {
    name: "TIMEOUT",
    wants: "a duration",
    example: "CONNECT a -> b TIMEOUT 90s",
    shape: Shape::Single,
    slot: "TIMEOUT",
};

/// `from` waits for `to`.
#[derive(Clone)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) when: When,
    /// Whether the image may bring a health check that is to be waited for.
    pub(super) implied: bool,
    pub(super) timeout: Duration,
    pub(super) optional: bool,
    span: Span,
}

impl<'a> Checker<'a, '_> {
    /// Reads the connections and looks for circles.
    pub(super) fn connections(&mut self, file: &'a File<'a>) {
        let connects = |statement: &&Statement<'_>| matches!(statement.kind, StatementKind::Connect(_));
        let count = file.statements.iter().filter(connects).count();
        self.edges.to_mut().reserve(count);
        self.connected.to_mut().reserve(count);
        for statement in &file.statements {
            if self.report.full() {
                return;
            }
            if let StatementKind::Connect(connect) = &statement.kind {
                self.connection(connect);
            }
        }
        self.circles();
    }

    fn connection(&mut self, connect: &'a Connect<'a>) {
        if let Some(body) = &connect.body {
            self.not_supported(body.span, "a block after CONNECT");
        }
        let when = match connect.when {
            Some((span, ConnectWhen::Completed)) => Some((span, When::Completed)),
            Some((span, ConnectWhen::Started)) => Some((span, When::Started)),
            Some((span, ConnectWhen::Healthy)) => Some((span, When::Healthy)),
            None => None,
        };
        let timeout = match &connect.timeout {
            Some(value) => self.duration((&TIMEOUT, Bound::new(value, Origin::File(0))), false, Scope::FILE),
            None => None,
        };
        let from = self.component_named(connect.from);
        for name in connect.to {
            if self.report.full() {
                return;
            }
            let (Some(to), Some(from)) = (self.component_named(*name), from) else { continue };
            if self.declared[from].role == Role::Inactive {
                continue;
            }
            if self.declared[to].role == Role::Inactive {
                if connect.optional.is_none() {
                    self.inactive_named(name.span, to);
                }
                continue;
            }
            if let Some(first) = self.connected.get(&(from, to)).copied() {
                let (a, b) = (shown(&self.declared[from].name), shown(&self.declared[to].name));
                self.finding(Code::DuplicateConnect, name.span, format!("{a} is connected to {b} twice"))
                    .label("connected again")
                    .related(first, "connected here first")
                    .help("keep one of them");
                continue;
            }
            self.connected.to_mut().insert((from, to), name.span);
            let implied = when.is_none() && self.image_may_check(to);
            let when = self.condition(name.span, to, when);
            self.reachable(name.span, from, to, when);
            let (timeout, optional) = (timeout.unwrap_or(DEFAULT_TIMEOUT), connect.optional.is_some());
            self.edges.to_mut().push(Edge { from, to, when, implied, timeout, optional, span: name.span });
        }
    }

    fn component_named(&mut self, name: Name) -> Option<usize> {
        let text = name.text(self.source);
        let found = self.by_name[0].get(&text).copied();
        if found.is_none() && !self.partial {
            self.unknown_component(Code::UnknownComponent, name.span, &text);
        }
        if let Some(index) = found.filter(|&index| self.declared[index].role == Role::Template) {
            self.template_named(name.span, index);
            return None;
        }
        found
    }

    /// Whether the image of a component that says nothing about its health may bring a health check.
    fn image_may_check(&self, index: usize) -> bool {
        let declared = &self.declared[index];
        let image = matches!(
            declared.image,
            Some(Image::Tar { .. } | Image::Local { .. } | Image::Registry { .. } | Image::Build(_))
        );
        image && !declared.healthcheck && !declared.no_healthcheck && !declared.is_job()
    }

    fn condition(&mut self, span: Span, to: usize, when: Option<(Span, When)>) -> When {
        let target = &self.declared[to];
        match when {
            Some((_, When::Started)) => When::Started,
            Some((when, When::Completed)) => {
                if !target.is_job() {
                    let (name, declared) = (shown(&target.name), target.span);
                    self.finding(Code::NotAJob, when, format!("{name} is no JOB, so it is not expected to complete"))
                        .label("waits for its end")
                        .related(span, "for this one")
                        .related(declared, "declared here")
                        .help("declare it with JOB, or write `WHEN started`");
                }
                When::Completed
            }
            None if target.is_job() => When::Completed,
            None if target.healthcheck => When::Healthy,
            None => When::Started,
            Some((when, When::Healthy)) => {
                if !target.healthcheck && !target.partial && !self.image_may_check(to) {
                    let (name, declared) = (shown(&target.name), target.span);
                    self.finding(
                        Code::NoHealthcheck,
                        when,
                        format!("{name} has no health check, so it never becomes healthy"),
                    )
                    .label("waits forever")
                    .related(span, "for this one")
                    .related(declared, "declared here")
                    .help("give it a `healthcheck { … }`, or write `WHEN started`");
                }
                When::Healthy
            }
        }
    }

    /// Reports one circle of every set of components that all wait for each other.
    fn circles(&mut self) {
        let mut graph = DiGraph::<(), ()>::with_capacity(self.declared.len(), self.edges.len());
        let nodes: Vec<NodeIndex> = self.declared.iter().map(|_| graph.add_node(())).collect();
        for edge in self.edges.iter() {
            graph.add_edge(nodes[edge.from], nodes[edge.to], ());
        }
        if toposort(&graph, None).is_ok() {
            return;
        }
        // Kosaraju's algorithm, because petgraph's other one recurses as deep as the longest chain.
        let mut set_of = vec![0; nodes.len()];
        let sets = kosaraju_scc(&graph);
        for (number, set) in sets.iter().enumerate() {
            set.iter().for_each(|node| set_of[node.index()] = number);
        }
        let mut next: Vec<Option<usize>> = vec![None; nodes.len()];
        for (number, edge) in self.edges.iter().enumerate() {
            if set_of[edge.from] == set_of[edge.to] {
                next[edge.from].get_or_insert(number);
            }
        }
        for set in sets {
            let first = set.iter().map(|node| node.index()).min();
            if let Some(first) = first.filter(|_| !self.report.full()) {
                self.circle(first, &next);
            }
        }
    }

    /// Follows the connections within a set, which must come round, unless it is one component that waits for none.
    fn circle(&mut self, start: usize, next: &[Option<usize>]) {
        const SHOWN: usize = 12;
        let mut met = HashMap::new();
        let mut edges = Vec::new();
        let mut at = start;
        let begin = loop {
            if let Some(&position) = met.get(&at) {
                break position;
            }
            let Some(number) = next[at] else { return };
            met.insert(at, edges.len());
            edges.push(number);
            at = self.edges[number].to;
        };
        let circle: Vec<&Edge> = edges[begin..].iter().map(|&number| &self.edges[number]).collect();
        let mut names: Vec<&str> =
            circle.iter().take(SHOWN).map(|edge| self.declared[edge.from].name.as_ref()).collect();
        if circle.len() > SHOWN {
            names.push("…");
        }
        names.push(self.declared[at].name.as_ref());
        let message = format!("the components wait for each other in a circle: {}", names.join(" -> "));
        let spans: Vec<Span> = circle.iter().take(SHOWN).map(|edge| edge.span).collect();
        let finding = self
            .finding(Code::Circle, spans.first().copied().unwrap_or_default(), message)
            .label("begins here")
            .help("remove one of these connections; a reference such as `${name.host}` wires without ordering");
        spans.into_iter().skip(1).fold(finding, |finding, span| finding.related(span, "goes on here"));
    }
}
