//! `ctst top`

use std::path::Path;

use containust_sdk::{Client, Process, Project};

use super::select;
use crate::args::{self, Format};
use crate::failure::Outcome;
use crate::output::{self, BOLD, Cell, now, plain, size, span, table};

pub(crate) fn run(args: &args::Top, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let mut status = project.status()?;
    status.retain(|s| s.state.is_live());
    let meant = select(&project, file, &args.components, &status)?;
    let mut processes = match Client::connect(&project)? {
        None => Vec::new(),
        Some(mut client) => client.processes()?,
    };
    processes.retain(|process| meant.contains(&process.component));
    match args.format {
        Format::Json => output::json(&processes)?,
        Format::Text => {
            let now = now();
            let rows: Vec<_> = processes.iter().map(|process| row(process, now)).collect();
            let header = ["COMPONENT", "PID", "INSIDE", "USER", "STATE", "CPU TIME", "MEMORY", "FOR", "COMMAND"];
            output::print(&table(header, &rows))?;
        }
    }
    Ok(0)
}

fn row(process: &Process, now: u64) -> [Cell; 9] {
    [
        Cell(process.component.clone(), BOLD),
        process.pid.to_string().into(),
        process.inside.to_string().into(),
        process.user.map_or_else(|| "?".to_owned(), |user| user.to_string()).into(),
        process.state.to_string().into(),
        format!("{:.2} s", process.cpu_ms as f64 / 1000.0).into(),
        size(process.memory).into(),
        span(now.saturating_sub(process.started)).into(),
        plain(&process.command.join(" ")).into(),
    ]
}
