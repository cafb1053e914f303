//! `ctst rm`

use std::path::Path;

use containust_sdk::{Client, Project};

use super::{select, within};
use crate::args::Rm;
use crate::events;
use crate::failure::Outcome;

pub(crate) fn run(args: &Rm, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let meant = select(&project, file, &args.components, &within(&project, &args.components)?)?;
    if meant.is_empty() {
        talk!("nothing is left of any container");
        return Ok(0);
    }
    let meant = if args.components.is_empty() { Vec::new() } else { meant };
    Client::remove(&project, &meant, args.allow_destroy, &mut |event| events::show(event))?;
    Ok(0)
}
