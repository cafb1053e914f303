//! `ctst ps`

use std::path::Path;

use containust_sdk::logs::escape;
use containust_sdk::status::is_unheld;
use containust_sdk::{ContainerStatus, Error, Health, Project, State, projects};
use serde::Serialize;

use crate::args::{Format, Ps};
use crate::commands::stats::memory;
use crate::failure::{Outcome, TOOL};
use crate::output::{self, BAD, BOLD, Cell, DIM, GOOD, WARN, now, plain, short_reference, span, table};

pub(crate) fn run(args: &Ps, file: Option<&Path>) -> Outcome {
    if args.all_projects {
        return all_projects(args);
    }
    let project = match Project::locate_folder(file) {
        Err(Error::NoFile { .. }) if file.is_none() => {
            if args.format == Format::Text {
                talk!("{DIM}no .ctst file is here: of all projects that run{DIM:#}");
            }
            return all_projects(args);
        }
        other => other?,
    };
    let mut status = project.status()?;
    status.retain(|s| is_wanted(args, s));
    match args.format {
        Format::Json => output::json(&status)?,
        Format::Text => {
            let now = now();
            let rows: Vec<_> = status.iter().map(|s| row(s, now, project.folder())).collect();
            output::print(&table(["NAME", "STATE", "HEALTH", "FOR", "MEMORY", "PORTS", "ADDRESS", "IMAGE"], &rows))?;
            status.iter().for_each(remark);
        }
    }
    Ok(0)
}

fn is_wanted(args: &Ps, status: &ContainerStatus) -> bool {
    let labelled = |(name, value): &(String, Option<String>)| {
        status.labels.get(name).is_some_and(|found| value.as_ref().is_none_or(|value| found == value))
    };
    (args.all || status.state.is_live()) && args.filter.iter().all(labelled)
}

/// What a person should know of a container beside its row.
fn remark(status: &ContainerStatus) {
    // What does not hold is said when it starts, and stands in `ctst inspect`.
    for note in status.notes.iter().filter(|note| !is_unheld(note)) {
        talk!("{BOLD}{}{BOLD:#} {WARN}note{WARN:#}: {}", status.component, escape(note.as_bytes()));
    }
    if let Some(failure) = &status.failure {
        crate::failure::tell(failure, &status.component);
    }
}

/// A container with its project, as JSON.
#[derive(Serialize)]
struct Placed<'a> {
    project: &'a Path,
    #[serde(flatten)]
    status: &'a ContainerStatus,
}

fn all_projects(args: &Ps) -> Outcome {
    let projects = projects::running()?;
    let mut placed = Vec::new();
    for project in &projects {
        let folder = project.folder.as_deref().unwrap_or(Path::new("?"));
        let wanted = project.containers.iter().filter(|status| is_wanted(args, status));
        placed.extend(wanted.map(|status| Placed { project: folder, status }));
    }
    match args.format {
        Format::Json => output::json(&placed)?,
        Format::Text => {
            let now = now();
            let rows: Vec<[Cell; 8]> = placed
                .iter()
                .map(|Placed { project, status }| {
                    let [name, state, health, since, _, ports, address, image] = row(status, now, project);
                    [plain(&project.to_string_lossy()).into(), name, state, health, since, ports, address, image]
                })
                .collect();
            output::print(&table(["PROJECT", "NAME", "STATE", "HEALTH", "FOR", "PORTS", "ADDRESS", "IMAGE"], &rows))?;
            placed.iter().for_each(|placed| remark(placed.status));
        }
    }
    // They are no rows, and nobody should take the list for a whole one.
    for project in &projects {
        if let Some(problem) = &project.problem {
            crate::failure::tell(problem, &format!("process {}", project.supervisor));
        }
    }
    Ok(if projects.iter().any(|project| project.problem.is_some()) { TOOL } else { 0 })
}

fn lazy(status: &ContainerStatus) -> String {
    match (status.lazy, status.unpacked) {
        (false, _) => String::new(),
        (true, None) => " (lazy)".to_owned(),
        (true, Some(unpacked)) => format!(" (lazy {}%)", unpacked.percent()),
    }
}

fn row(status: &ContainerStatus, now: u64, folder: &Path) -> [Cell; 8] {
    let mut state = status.state.name().to_owned();
    if let (false, Some(code)) = (status.state.is_live(), status.exit_code) {
        state += &format!(" ({code})");
    }
    if status.restarts > 0 {
        state += &format!(", {} restart{}", status.restarts, if status.restarts == 1 { "" } else { "s" });
    }
    let style = match status.state {
        State::Running => GOOD,
        State::Failed | State::Dead | State::Unknown => BAD,
        State::Exited if status.exit_code != Some(0) => BAD,
        State::Waiting | State::Starting | State::Paused | State::Stopping | State::Restarting => WARN,
        State::Exited | State::Completed | State::Stopped => DIM,
    };
    let health = match status.health {
        None => "".into(),
        Some(Health::Starting) => Cell("starting".into(), WARN),
        Some(Health::Healthy) => Cell("healthy".into(), GOOD),
        Some(Health::Unhealthy) => Cell("unhealthy".into(), BAD),
    };
    let since = if matches!(status.state, State::Running | State::Paused) {
        status.started
    } else {
        status.finished.or(status.started)
    };
    // Those of the others are only what will be published when they run again.
    let published = if status.state.is_live() { &status.ports[..] } else { &[] };
    let ports = published
        .iter()
        .map(|p| format!("{}->{}{}", std::net::SocketAddr::new(p.address, p.host_port), p.port, p.protocol.suffix()));
    [
        Cell(status.component.clone(), BOLD),
        Cell(state, style),
        health,
        since.map(|at| span(now.saturating_sub(at))).unwrap_or_default().into(),
        status.usage.as_ref().map(memory).unwrap_or_default().into(),
        ports.collect::<Vec<_>>().join(", ").into(),
        status.addresses.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>().join(", ").into(),
        format!("{}{}", short_reference(&status.image, folder), lazy(status)).into(),
    ]
}
