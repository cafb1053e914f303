//! The order in which components start and stop.

use std::collections::HashMap;

use containust_lang::model::{Component, Composition};
use petgraph::Direction;
use petgraph::algo::{tarjan_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};

use crate::error::{Error, Result};

/// Answers what starts before what. An edge goes from a dependency to what depends on it.
///
/// ```
/// use containust_lang::model::{Composition, Image, When};
/// use containust_sdk::{ContainerBuilder, GraphResolver};
///
/// let image = || Image::File { path: "/srv/rootfs".into(), sha256: None };
/// let db = ContainerBuilder::new("db", image()).build()?;
/// let app = ContainerBuilder::new("app", image()).after("db", When::Started).build()?;
/// let stack = Composition { name: "shop".into(), components: vec![app, db], ..Composition::default() };
/// let graph = GraphResolver::new(&stack)?;
/// assert_eq!(graph.start_order(), ["db", "app"]);
/// assert_eq!(graph.stop_order(), ["app", "db"]);
/// assert_eq!(graph.dependents_of("db"), ["app"]);
/// # Ok::<(), containust_sdk::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct GraphResolver {
    graph: DiGraph<String, ()>,
    nodes: HashMap<String, NodeIndex>,
    order: Vec<NodeIndex>,
}

impl GraphResolver {
    /// Builds the graph.
    ///
    /// # Errors
    /// [`Error::Circle`] where components wait for each other, [`Error::UnknownComponent`] where one waits for a
    /// component that does not exist.
    pub fn new(composition: &Composition) -> Result<Self> {
        Self::of(&composition.components)
    }

    /// The same over components without a composition around them.
    ///
    /// # Errors
    /// As [`GraphResolver::new`].
    pub fn of<'a>(components: impl IntoIterator<Item = &'a Component> + Clone) -> Result<Self> {
        let mut graph = DiGraph::new();
        let mut nodes = HashMap::new();
        for component in components.clone() {
            nodes.insert(component.name.clone(), graph.add_node(component.name.clone()));
        }
        for component in components.clone() {
            let node = nodes[&component.name];
            // Two edges for one dependency change nothing, and to look for the first takes long where many depend on one.
            for dependency in &component.after {
                let Some(&on) = nodes.get(&dependency.on) else {
                    if dependency.optional {
                        continue;
                    }
                    let known = components.into_iter().map(|c| c.name.clone()).collect();
                    return Err(Error::UnknownComponent { name: dependency.on.clone(), known });
                };
                graph.add_edge(on, node, ());
            }
        }
        // toposort visits depth-first from the last node: the order must be the file's where the edges leave it open.
        if toposort(&graph, None).is_err() {
            return Err(Error::Circle { circle: circle(&graph) });
        }
        let order = stable_order(&graph);
        Ok(Self { graph, nodes, order })
    }

    /// All names, dependencies first; otherwise in the file's order.
    #[must_use]
    pub fn start_order(&self) -> Vec<&str> {
        self.order.iter().map(|&n| self.graph[n].as_str()).collect()
    }

    /// All names, dependents first.
    #[must_use]
    pub fn stop_order(&self) -> Vec<&str> {
        self.order.iter().rev().map(|&n| self.graph[n].as_str()).collect()
    }

    /// What `name` waits for, directly. Empty for an unknown name.
    #[must_use]
    pub fn dependencies_of(&self, name: &str) -> Vec<&str> {
        self.neighbours(name, Direction::Incoming)
    }

    /// What waits for `name`, directly. Empty for an unknown name.
    #[must_use]
    pub fn dependents_of(&self, name: &str) -> Vec<&str> {
        self.neighbours(name, Direction::Outgoing)
    }

    /// `names` and everything they need, in start order.
    ///
    /// # Errors
    /// [`Error::UnknownComponent`].
    pub fn closure(&self, names: &[String]) -> Result<Vec<&str>> {
        let mut wanted = vec![false; self.graph.node_count()];
        let mut open = Vec::new();
        for name in names {
            open.push(*self.nodes.get(name).ok_or_else(|| Error::UnknownComponent {
                name: name.clone(),
                known: self.graph.node_weights().cloned().collect(),
            })?);
        }
        while let Some(node) = open.pop() {
            if !std::mem::replace(&mut wanted[node.index()], true) {
                open.extend(self.graph.neighbors_directed(node, Direction::Incoming));
            }
        }
        Ok(self.order.iter().filter(|n| wanted[n.index()]).map(|&n| self.graph[n].as_str()).collect())
    }

    fn neighbours(&self, name: &str, direction: Direction) -> Vec<&str> {
        let Some(&node) = self.nodes.get(name) else { return Vec::new() };
        let mut found: Vec<_> = self.graph.neighbors_directed(node, direction).collect();
        found.sort_unstable();
        found.dedup();
        found.into_iter().map(|n| self.graph[n].as_str()).collect()
    }
}

/// Kahn's algorithm with the smallest index first.
fn stable_order(graph: &DiGraph<String, ()>) -> Vec<NodeIndex> {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;
    let mut missing: Vec<usize> =
        graph.node_indices().map(|n| graph.neighbors_directed(n, Direction::Incoming).count()).collect();
    let mut free: BinaryHeap<_> = graph.node_indices().filter(|n| missing[n.index()] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(graph.node_count());
    while let Some(Reverse(node)) = free.pop() {
        order.push(node);
        for next in graph.neighbors(node) {
            missing[next.index()] -= 1;
            if missing[next.index()] == 0 {
                free.push(Reverse(next));
            }
        }
    }
    order
}

/// One circle of a graph that has one, told along the dependencies: the first waits for the second.
fn circle(graph: &DiGraph<String, ()>) -> Vec<String> {
    let looped = |c: &Vec<NodeIndex>| c.len() > 1 || graph.contains_edge(c[0], c[0]);
    let Some(component) = tarjan_scc(graph).into_iter().find(looped) else { return Vec::new() };
    let mut path = vec![component[0]];
    loop {
        let last = path[path.len() - 1];
        let Some(next) = graph.neighbors_directed(last, Direction::Incoming).find(|n| component.contains(n)) else {
            return Vec::new();
        };
        if let Some(start) = path.iter().position(|&n| n == next) {
            path.push(next);
            return path[start..].iter().map(|&n| graph[n].clone()).collect();
        }
        path.push(next);
    }
}

#[cfg(test)]
mod tests {
    use containust_lang::model::{Image, When};

    use super::*;
    use crate::builder::ContainerBuilder;

    fn stack(edges: &[(&str, &[&str])]) -> Vec<Component> {
        let image = Image::File { path: "/".into(), sha256: None };
        edges
            .iter()
            .map(|(name, on)| {
                on.iter()
                    .fold(ContainerBuilder::new(*name, image.clone()), |b, d| b.after(*d, When::Started))
                    .build()
                    .unwrap()
            })
            .collect()
    }

    #[test]
    fn orders_by_dependency_then_by_file() {
        let stack = stack(&[("web", &["app"]), ("lone", &[]), ("app", &["db", "cache"]), ("cache", &[]), ("db", &[])]);
        let graph = GraphResolver::of(&stack).unwrap();
        assert_eq!(graph.start_order(), ["lone", "cache", "db", "app", "web"]);
        assert_eq!(graph.stop_order(), ["web", "app", "db", "cache", "lone"]);
        assert_eq!(graph.dependencies_of("app"), ["cache", "db"]);
        assert_eq!(graph.dependents_of("nobody"), Vec::<&str>::new());
        assert_eq!(graph.closure(&["app".into()]).unwrap(), ["cache", "db", "app"]);
        assert!(matches!(graph.closure(&["nope".into()]), Err(Error::UnknownComponent { .. })));
    }

    #[test]
    fn shows_the_circle() {
        let components = stack(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]);
        let Err(Error::Circle { circle }) = GraphResolver::of(&components) else { panic!("a circle was accepted") };
        assert!(circle == ["b", "c", "b"] || circle == ["c", "b", "c"], "{circle:?}");
        let own = stack(&[("a", &["a"])]);
        assert!(matches!(GraphResolver::of(&own), Err(Error::Circle { circle }) if circle == ["a", "a"]));
        let unknown = stack(&[("a", &["x"])]);
        assert!(matches!(GraphResolver::of(&unknown), Err(Error::UnknownComponent { name, .. }) if name == "x"));
    }
}
