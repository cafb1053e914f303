//! `ctst bundle`

use std::path::Path;

use containust_sdk::Project;
use containust_sdk::logs::escape;

use super::{command_line, one_file, parameters, show_diagnostics};
use crate::args::{Bundle, Format};
use crate::failure::{Failure, Outcome, TOOL};
use crate::output::{self, BOLD, DIM, WARN, counted, size};
use crate::progress::Progress;

pub(crate) fn run(args: &Bundle, file: Option<&Path>) -> Outcome {
    let out = args.out.to_string_lossy();
    if args.out.extension().is_none_or(|extension| extension != "ctstar") {
        let problem = format!("make the bundle {out}: `ctst run` knows a bundle by its name in .ctstar");
        return Err(Failure::new(problem, format!("name it {out}.ctstar")));
    }
    let project = Project::locate(one_file(file, args.file.as_deref())?)?;
    let mut progress = Progress::new(project.folder());
    let (params, offline) = (parameters(&args.inputs)?, containust_sdk::is_offline());
    let made =
        project.write_bundle(&params, &args.inputs.profile, offline, &args.out, &mut |step| progress.show(&step));
    progress.clear();
    let (loaded, bundled) = made?;
    show_diagnostics(&loaded);
    let bundled = bundled.ok_or(Failure::Told(TOOL))?;
    for note in &bundled.notes {
        talk!("  {WARN}note{WARN:#}: {}", escape(note.as_bytes()));
    }
    let images = counted(bundled.images.len(), "image");
    talk!("{BOLD}{}{BOLD:#} has {images}, {}", escape(out.as_bytes()), size(bundled.size));
    let mut words = vec!["run".to_owned(), out.to_string(), "--sha256".to_owned(), bundled.digest.clone()];
    words.extend(args.inputs.set.iter().flat_map(|(name, value)| ["--set".to_owned(), format!("{name}={value}")]));
    let files = args.inputs.params.iter().map(|file| file.to_string_lossy().into_owned());
    words.extend(files.flat_map(|file| ["--params".to_owned(), file]));
    words.extend(args.inputs.profile.iter().flat_map(|name| ["--profile".to_owned(), name.clone()]));
    talk!("{DIM}elsewhere: {}{DIM:#}", escape(command_line(words.iter().map(String::as_str)).as_bytes()));
    match args.format {
        Format::Json => output::json(&serde_json::json!({
            "digest": format!("sha256:{}", bundled.digest),
            "size": bundled.size,
            "images": bundled.images,
            "notes": bundled.notes,
        }))?,
        // As `sha256sum` does, so that `sha256sum -c` takes it.
        Format::Text => output::print(&format!("{}  {}\n", bundled.digest, escape(out.as_bytes())))?,
    }
    Ok(0)
}
