//! `ctst images`

use std::path::Path;

use containust_sdk::Project;

use crate::args::{Format, Images};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Cell, DIM, now, short_digest, short_reference, size, span, table};

pub(crate) fn run(args: &Images, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let images = project.store().list().map_err(Failure::image)?;
    match args.format {
        Format::Json => output::json(&images)?,
        Format::Text => {
            let now = now();
            let rows: Vec<[Cell; 4]> = images
                .iter()
                .map(|image| {
                    [
                        short_reference(&image.reference, project.folder()).into(),
                        Cell(short_digest(&image.digest).to_owned(), DIM),
                        size(image.size).into(),
                        format!("{} ago", span(now.saturating_sub(image.imported.saturating_mul(1000)))).into(),
                    ]
                })
                .collect();
            output::print(&table(["REFERENCE", "DIGEST", "SIZE", "IMPORTED"], &rows))?;
        }
    }
    Ok(0)
}
