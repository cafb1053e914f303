//! `ctst ps`

use std::path::Path;

use containust_sdk::logs::escape;
use containust_sdk::status::is_unheld;
use containust_sdk::{ContainerStatus, Health, Project, State};

use crate::args::{Format, Ps};
use crate::commands::stats::memory;
use crate::failure::Outcome;
use crate::output::{self, BAD, BOLD, Cell, DIM, GOOD, WARN, now, short_reference, span, table};

pub(crate) fn run(args: &Ps, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let mut status = project.status()?;
    let labelled = |s: &ContainerStatus, (name, value): &(String, Option<String>)| {
        s.labels.get(name).is_some_and(|found| value.as_ref().is_none_or(|value| found == value))
    };
    status.retain(|s| (args.all || s.state.is_live()) && args.filter.iter().all(|filter| labelled(s, filter)));
    match args.format {
        Format::Json => output::json(&status)?,
        Format::Text => {
            let now = now();
            let rows: Vec<_> = status.iter().map(|s| row(s, now, project.folder())).collect();
            output::print(&table(["NAME", "STATE", "HEALTH", "FOR", "MEMORY", "PORTS", "ADDRESS", "IMAGE"], &rows))?;
            for s in &status {
                // What does not hold is said when it starts, and stands in `ctst inspect`.
                for note in s.notes.iter().filter(|note| !is_unheld(note)) {
                    talk!("{BOLD}{}{BOLD:#} {WARN}note{WARN:#}: {}", s.component, escape(note.as_bytes()));
                }
                if let Some(failure) = &s.failure {
                    crate::failure::tell(failure, &s.component);
                }
            }
        }
    }
    Ok(0)
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
    let ports = published.iter().map(|p| format!("{}->{}", std::net::SocketAddr::new(p.address, p.host_port), p.port));
    [
        Cell(status.component.clone(), BOLD),
        Cell(state, style),
        health,
        since.map(|at| span(now.saturating_sub(at))).unwrap_or_default().into(),
        status.usage.as_ref().map(memory).unwrap_or_default().into(),
        ports.collect::<Vec<_>>().join(", ").into(),
        status.addresses.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>().join(", ").into(),
        short_reference(&status.image, folder).into(),
    ]
}
