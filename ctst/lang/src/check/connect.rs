//! CONNECT: order and wiring.

use std::collections::HashMap;
use std::time::Duration;

use crate::codes::Code;
use crate::diagnostic::{Span, shown};
use crate::model::{Network, When};
use crate::syntax::{Connect, ConnectWhen, File, Name, StatementKind};

use super::Checker;
use super::properties::Property;
use super::resolve::Scope;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
const TIMEOUT: Property = Property { name: "TIMEOUT", wants: "a duration", example: "CONNECT a -> b TIMEOUT 90s" };

/// `from` waits for `to`.
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) when: When,
    pub(super) timeout: Duration,
    span: Span,
}

impl Checker<'_, '_> {
    /// Reads the connections and looks for circles.
    pub(super) fn connections(&mut self, file: &File) {
        let mut seen: HashMap<(usize, usize), Span> = HashMap::new();
        for statement in &file.statements {
            if self.report.full() {
                return;
            }
            if let StatementKind::Connect(connect) = &statement.kind {
                self.connection(connect, &mut seen);
            }
        }
        self.connected = seen.into_keys().collect();
        self.circles();
    }

    fn connection(&mut self, connect: &Connect, seen: &mut HashMap<(usize, usize), Span>) {
        if let Some(body) = &connect.body {
            self.not_supported(body.span, "a block after CONNECT");
        }
        if let Some(optional) = connect.optional {
            self.not_supported(optional, "`OPTIONAL`");
        }
        let when = match connect.when {
            Some((span, ConnectWhen::Completed)) => {
                self.not_supported(span, "`WHEN completed`");
                None
            }
            Some((span, ConnectWhen::Started)) => Some((span, When::Started)),
            Some((span, ConnectWhen::Healthy)) => Some((span, When::Healthy)),
            None => None,
        };
        let timeout = match &connect.timeout {
            Some(value) => self.duration((&TIMEOUT, value), false, Scope::Facts),
            None => None,
        };
        let from = self.component_named(connect.from);
        for name in &connect.to {
            if self.report.full() {
                return;
            }
            let (Some(to), Some(from)) = (self.component_named(*name), from) else { continue };
            if let Some(first) = seen.get(&(from, to)).copied() {
                let (a, b) = (shown(&self.declared[from].name), shown(&self.declared[to].name));
                self.finding(Code::DuplicateConnect, name.span, format!("{a} is connected to {b} twice"))
                    .label("connected again")
                    .related(first, "connected here first")
                    .help("keep one of them");
                continue;
            }
            seen.insert((from, to), name.span);
            let when = self.condition(name.span, to, when);
            self.reachable(name.span, from, to);
            self.edges.push(Edge { from, to, when, timeout: timeout.unwrap_or(DEFAULT_TIMEOUT), span: name.span });
        }
    }

    fn component_named(&mut self, name: Name) -> Option<usize> {
        let text = name.text(self.source);
        let found = self.by_name.get(&text).copied();
        if found.is_none() && !self.partial {
            self.unknown_component(Code::UnknownComponent, name.span, &text);
        }
        found
    }

    fn condition(&mut self, span: Span, to: usize, when: Option<(Span, When)>) -> When {
        let target = &self.declared[to];
        match when {
            Some((_, When::Started)) => When::Started,
            None if target.healthcheck => When::Healthy,
            None => When::Started,
            Some((when, When::Healthy)) => {
                if !target.healthcheck && !target.partial {
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

    fn reachable(&mut self, span: Span, from: usize, to: usize) {
        let lonely = [from, to].into_iter().find(|&index| self.declared[index].network == Some(Network::None));
        if let Some(lonely) = lonely
            && from != to
        {
            let name = shown(&self.declared[lonely].name);
            self.finding(
                Code::Unreachable,
                span,
                format!("{name} has `network = \"none\"`: the connection only orders the start"),
            )
            .label("cannot be reached")
            .help("remove `network = \"none\"` if they are to talk to each other");
        }
    }

    /// Reports each circle once. What is left after all that waits for nothing was taken away, again and again, waits
    /// for something that is left too, so that following it must come round.
    fn circles(&mut self) {
        let count = self.declared.len();
        let mut waits = vec![0usize; count];
        let mut waited_for_by: Vec<Vec<usize>> = vec![Vec::new(); count];
        for edge in &self.edges {
            waits[edge.from] += 1;
            waited_for_by[edge.to].push(edge.from);
        }
        let mut free: Vec<usize> = (0..count).filter(|&index| waits[index] == 0).collect();
        while let Some(index) = free.pop() {
            for &waiting in &waited_for_by[index] {
                waits[waiting] -= 1;
                if waits[waiting] == 0 {
                    free.push(waiting);
                }
            }
        }
        let mut next: Vec<Option<usize>> = vec![None; count];
        for (number, edge) in self.edges.iter().enumerate() {
            if waits[edge.from] > 0 && waits[edge.to] > 0 {
                next[edge.from].get_or_insert(number);
            }
        }
        // The walk that a component was first met on.
        let mut walk: Vec<Option<usize>> = vec![None; count];
        for start in 0..count {
            let mut at = start;
            while walk[at].is_none() {
                let Some(edge) = next[at] else { break };
                walk[at] = Some(start);
                at = self.edges[edge].to;
            }
            if walk[at] == Some(start) && waits[start] > 0 && !self.report.full() {
                self.circle(at, &next, &mut walk);
            }
        }
    }

    fn circle(&mut self, start: usize, next: &[Option<usize>], walk: &mut [Option<usize>]) {
        const SHOWN: usize = 12;
        let mut edges = Vec::new();
        let mut at = start;
        while let Some(number) = next[at] {
            // No later walk may take this circle for one of its own.
            walk[at] = Some(usize::MAX);
            edges.push(number);
            at = self.edges[number].to;
            if at == start {
                break;
            }
        }
        let mut names: Vec<&str> =
            edges.iter().take(SHOWN).map(|&number| self.declared[self.edges[number].from].name.as_ref()).collect();
        if edges.len() > SHOWN {
            names.push("…");
        }
        names.push(self.declared[start].name.as_ref());
        let message = format!("the components wait for each other in a circle: {}", names.join(" -> "));
        let related: Vec<Span> = edges.iter().skip(1).take(SHOWN).map(|&number| self.edges[number].span).collect();
        let first = edges.first().map(|&number| self.edges[number].span).unwrap_or_default();
        let finding = self
            .finding(Code::Circle, first, message)
            .label("begins here")
            .help("remove one of these connections; a reference such as `${name.host}` wires without ordering");
        related.into_iter().fold(finding, |finding, span| finding.related(span, "goes on here"));
    }
}
