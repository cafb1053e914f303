//! `ctst stop`

use std::path::Path;
use std::time::Duration;

use containust_sdk::{Client, Project};

use super::select;
use crate::args::Stop;
use crate::events;
use crate::failure::Outcome;

pub(crate) fn run(args: &Stop, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    // A name that does not exist is an error even if nothing runs.
    let meant = select(&project, file, &args.components, &project.status()?)?;
    let meant = if args.components.is_empty() { Vec::new() } else { meant };
    match Client::connect(&project)? {
        None => {
            project.tidy();
            talk!("nothing is running");
        }
        Some(mut client) => {
            client.stop(&meant, args.time.map(Duration::from_secs), &mut |event| events::show(event))?;
        }
    }
    Ok(0)
}
