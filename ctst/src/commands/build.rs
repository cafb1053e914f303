//! `ctst build`

use std::path::Path;

use containust_sdk::Fetching;

use super::{load, one_file};
use crate::args::Build;
use crate::failure::Outcome;
use crate::output::{self, BOLD, Cell, DIM, short_reference, size, table};
use crate::progress::Progress;

pub(crate) fn run(args: &Build, file: Option<&Path>) -> Outcome {
    let (project, composition) = load(one_file(file, args.file.as_deref())?, &args.inputs, Fetching::Known)?;
    let mut progress = Progress::new(project.folder());
    let mut show = |step| progress.show(&step);
    let imported = match args.no_cache {
        true => project.build_anew(&composition, &mut show),
        false => project.import(&composition, &mut show),
    };
    progress.clear();
    let rows: Vec<[Cell; 4]> = imported?
        .into_iter()
        .map(|(component, reference, image)| {
            [
                Cell(component, BOLD),
                short_reference(&reference, project.folder()).into(),
                size(image.size).into(),
                // Whole, because a pin needs all of it.
                Cell(image.digest, DIM),
            ]
        })
        .collect();
    output::print(&table(["COMPONENT", "REFERENCE", "SIZE", "DIGEST"], &rows))?;
    Ok(0)
}
