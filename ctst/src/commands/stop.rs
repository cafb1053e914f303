//! `ctst stop`

use std::path::Path;
use std::time::Duration;

use containust_sdk::{Client, Project};

use super::{select, within};
use crate::args::Stop;
use crate::events;
use crate::failure::Outcome;

pub(crate) fn run(args: &Stop, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    // A name that does not exist is an error even if nothing runs.
    let mut status = within(&project, &args.components)?;
    if args.components.is_empty() {
        status.retain(|status| status.state.is_live());
    }
    let meant = select(&project, file, &args.components, &status)?;
    let none = meant.is_empty();
    let meant = if args.components.is_empty() { Vec::new() } else { meant };
    match Client::connect(&project)? {
        None => {
            project.tidy();
            talk!("nothing is running");
        }
        Some(mut client) => {
            // It is asked nevertheless: something may have been started since.
            if none {
                talk!("nothing of this file is running");
            }
            client.stop(&meant, args.time.map(Duration::from_secs), &mut |event| events::show(event))?;
        }
    }
    Ok(0)
}
