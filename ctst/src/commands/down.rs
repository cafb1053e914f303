//! `ctst down`

use std::path::Path;
use std::time::Duration;

use containust_sdk::{Down, Fetching, Project};

use super::load;
use crate::args;
use crate::events;
use crate::failure::Outcome;

pub(crate) fn run(args: &args::Down, file: Option<&Path>) -> Outcome {
    let (project, volumes) = if args.volumes {
        let (project, composition) = load(file, &args.inputs, Fetching::Known)?;
        (project, Some(composition))
    } else {
        // A file with errors, or without values for its parameters, names its folder all the same.
        (Project::locate(file)?, None)
    };
    let grace = args.time.map(Duration::from_secs);
    let mut told = false;
    let downed = project.down(&Down { grace, allow_destroy: args.allow_destroy, volumes }, &mut |event| {
        told = true;
        events::show(event);
    })?;
    for volume in &downed.removed {
        talk!("volume {volume} removed");
    }
    for (volume, by) in &downed.kept {
        talk!("volume {volume} stays: {} has it", by.join(", "));
    }
    if !told && downed.removed.is_empty() {
        talk!("nothing is left of this file");
    }
    Ok(0)
}
