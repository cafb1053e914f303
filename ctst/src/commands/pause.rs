//! `ctst pause` and `ctst unpause`

use std::path::Path;

use containust_sdk::{Client, Project, State};

use super::{select, within};
use crate::args::Pause;
use crate::failure::Outcome;

pub(crate) fn run(args: &Pause, file: Option<&Path>, paused: bool) -> Outcome {
    let project = Project::locate(file)?;
    let mut status = within(&project, &args.components)?;
    let from = if paused { State::Running } else { State::Paused };
    status.retain(|s| if args.components.is_empty() { s.state == from } else { s.state.is_live() });
    let names = select(&project, file, &args.components, &status)?;
    match Client::connect(&project)? {
        None => talk!("nothing is running"),
        Some(mut client) => client.pause(&names, paused)?,
    }
    Ok(0)
}
