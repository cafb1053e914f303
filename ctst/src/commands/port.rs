//! `ctst port`

use std::net::SocketAddr;
use std::path::Path;

use containust_sdk::lang::model::Protocol;
use containust_sdk::{ContainerStatus, Project, Published};
use serde::Serialize;

use super::expand;
use crate::args::{self, Format};
use crate::failure::{Failure, Outcome};
use crate::output;

/// One port of this host.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Row<'a> {
    component: &'a str,
    #[serde(flatten)]
    published: Published,
}

pub(crate) fn run(args: &args::Port, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let mut status = project.status()?;
    let known: Vec<String> = status.iter().map(|s| s.component.clone()).collect();
    // Of the others they are only what will be published when they run again.
    status.retain(|s| s.state.is_live());
    let meant: Vec<&ContainerStatus> = match &args.component {
        None => status.iter().collect(),
        Some(name) => {
            let found = expand(name, &status);
            if found.is_empty() {
                return Err(super::not_running(&project, file, name, known));
            }
            found
        }
    };
    let rows = rows(&meant, args.port);
    if let (Some(name), Some((port, protocol)), []) = (&args.component, args.port, &rows[..]) {
        let kind = protocol.map(Protocol::suffix).unwrap_or_default();
        let problem = format!("find port {port}{kind} of {name} on this host: it is not published");
        return Err(Failure::new(problem, format!("publish it in the file: EXPOSE {port} -> {name}:{port}{kind}")));
    }
    match args.format {
        Format::Json => output::json(&rows)?,
        Format::Text => output::print(&text(&rows, args.port.is_some()))?,
    }
    Ok(0)
}

/// Replicas share a port, each with a row of its own.
fn rows<'a>(meant: &[&'a ContainerStatus], port: Option<(u16, Option<Protocol>)>) -> Vec<Row<'a>> {
    let ports = meant.iter().flat_map(|status| status.ports.iter().map(|published| (&status.component, published)));
    let wanted = ports.filter(|(_, published)| {
        port.is_none_or(|(port, kind)| published.port == port && kind.is_none_or(|kind| published.protocol == kind))
    });
    let mut rows: Vec<Row> = wanted.map(|(component, &published)| Row { component, published }).collect();
    rows.sort();
    rows
}

/// `127.0.0.1:8080 -> web:80`, or of one port the addresses alone.
fn text(rows: &[Row<'_>], bare: bool) -> String {
    let mut lines: Vec<String> = Vec::with_capacity(rows.len());
    for Row { component, published } in rows {
        let address = SocketAddr::new(published.address, published.host_port);
        let protocol = published.protocol.suffix();
        let line = if bare {
            format!("{address}{protocol}\n")
        } else {
            format!("{address} -> {component}:{}{protocol}\n", published.port)
        };
        if lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_the_file_has_them() {
        let published = |address: &str, host_port| -> Published {
            let text = format!(r#"{{ "address": "{address}", "host_port": {host_port}, "port": 80 }}"#);
            serde_json::from_str(&text).unwrap()
        };
        let row = |component, published| Row { component, published };
        let rows = [row("web", published("127.0.0.1", 8080)), row("web", published("::1", 8080))];
        assert_eq!(text(&rows, false), "127.0.0.1:8080 -> web:80\n[::1]:8080 -> web:80\n");
        let replicas = [row("web-1", published("127.0.0.1", 8080)), row("web-2", published("127.0.0.1", 8080))];
        assert_eq!(text(&replicas, true), "127.0.0.1:8080\n");
    }
}
