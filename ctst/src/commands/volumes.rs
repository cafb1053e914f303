//! `ctst volumes`

use std::path::Path;

use containust_sdk::logs::escape;
use containust_sdk::{Client, Project};

use crate::args::{Format, Volumes, VolumesAction};
use crate::failure::Outcome;
use crate::output::{self, BOLD, Cell, now, span, table};

pub(crate) fn run(args: &Volumes, file: Option<&Path>) -> Outcome {
    let project = Project::locate_folder(file)?;
    match &args.action {
        None => list(&project, args.format),
        Some(VolumesAction::Ls { format }) => list(&project, *format),
        Some(VolumesAction::Rm { names }) => {
            Client::remove_volumes(&project, names)?;
            Ok(0)
        }
    }
}

fn list(project: &Project, format: Format) -> Outcome {
    let volumes = project.volumes()?;
    match format {
        Format::Json => output::json(&volumes)?,
        Format::Text => {
            let now = now();
            let rows: Vec<[Cell; 4]> = volumes
                .iter()
                .map(|volume| {
                    let labels = volume.labels.iter().map(|(name, value)| format!("{name}={value}"));
                    [
                        Cell(volume.name.clone(), BOLD),
                        volume.used_by.join(", ").into(),
                        volume.created.map(|at| span(now.saturating_sub(at))).unwrap_or_default().into(),
                        escape(labels.collect::<Vec<_>>().join(", ").as_bytes()).into(),
                    ]
                })
                .collect();
            output::print(&table(["NAME", "USED BY", "FOR", "LABELS"], &rows))?;
        }
    }
    Ok(0)
}
