//! `ctst images`

use std::path::Path;

use containust_sdk::image::Dropped;
use containust_sdk::image::model::Entry;
use containust_sdk::{Progress as Step, Project, Removed, Verified};

use crate::args::{Export, Format, Images, ImagesCommand, Import, InspectImage, List, Prune, RmImages, Verify};
use crate::failure::{Failure, Outcome};
use crate::output::{self, BAD, Cell, DIM, GOOD, WARN, counted, now, short_digest, short_reference, size, span, table};
use crate::progress::Progress;

/// An image differs from what was imported.
const DIFFERENT: i32 = 1;

pub(crate) fn run(args: &Images, file: Option<&Path>) -> Outcome {
    let project = Project::locate_folder(file)?;
    match &args.command {
        None => list(&args.list, &project),
        Some(ImagesCommand::Ls(args)) => list(args, &project),
        Some(ImagesCommand::Inspect(args)) => inspect(args, &project),
        Some(ImagesCommand::Import(args)) => import(args, &project),
        Some(ImagesCommand::Export(args)) => export(args, &project),
        Some(ImagesCommand::Verify(args)) => verify(args, &project),
        Some(ImagesCommand::Df(args)) => df(args, &project),
        Some(ImagesCommand::Rm(args)) => rm(args, &project),
        Some(ImagesCommand::Prune(args)) => prune(args, &project),
    }
}

fn list(args: &List, project: &Project) -> Outcome {
    let images = project.store().list().map_err(Failure::image)?;
    match args.format {
        Format::Json => output::json(&images)?,
        Format::Text => {
            let now = now();
            let row = |image: &Entry| {
                let from =
                    image.built.as_ref().map(|from| format!(" from {}", output::plain(from))).unwrap_or_default();
                [
                    format!("{}{from}", short_reference(&image.reference, project.folder())).into(),
                    Cell(short_digest(&image.digest).to_owned(), DIM),
                    size(image.size).into(),
                    format!("{} ago", span(now.saturating_sub(image.imported.saturating_mul(1000)))).into(),
                ]
            };
            let rows: Vec<[Cell; 4]> = images.iter().map(row).collect();
            output::print(&table(["REFERENCE", "DIGEST", "SIZE", "IMPORTED"], &rows))?;
        }
    }
    Ok(0)
}

fn inspect(args: &InspectImage, project: &Project) -> Outcome {
    let image = project.select_image(&args.image)?;
    if args.format == Format::Json {
        output::json(&image)?;
        return Ok(0);
    }
    let reference = |text: &str| short_reference(text, project.folder());
    let words = |argv: &[String]| output::plain(&argv.join(" "));
    let mut rows: Vec<[Cell; 2]> = Vec::new();
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push([Cell(name.to_owned(), DIM), value.into()]);
        }
    };
    row("reference", reference(&image.reference));
    row("digest", image.digest.clone());
    row("size", size(image.size));
    row("built from", output::plain(image.built.as_deref().unwrap_or_default()));
    row("entrypoint", words(&image.config.entrypoint));
    row("command", words(&image.config.command));
    row("user", output::plain(image.config.user.as_deref().unwrap_or_default()));
    row("workdir", output::plain(image.config.workdir.as_deref().unwrap_or_default()));
    row("ports", words(&image.declared.ports));
    row("volumes", words(&image.declared.volumes));
    if let Some(kept) = &image.stripped {
        row("stripped of", reference(&kept.of));
        row("kept", output::kept(kept));
        row(
            "dropped",
            counted(
                usize::try_from(kept.what.full_files.saturating_sub(kept.what.files)).unwrap_or(usize::MAX),
                "file",
            ),
        );
        row("tried", kept.untried.as_ref().map_or("it runs".to_owned(), |why| format!("no: {}", output::plain(why))));
    }
    output::print(&table(["FIELD", "VALUE"], &rows))?;
    let Some(kept) = &image.stripped else { return Ok(0) };
    let row = |dropped: &Dropped| {
        let files = counted(usize::try_from(dropped.files).unwrap_or(usize::MAX), "file");
        [output::plain(&dropped.path).into(), size(dropped.size).into(), files.into()]
    };
    let rows: Vec<[Cell; 3]> = kept.what.dropped.iter().map(row).collect();
    output::print(&format!("\n{}", table(["DROPPED", "SIZE", "FILES"], &rows)))?;
    for note in &kept.what.notes {
        output::print(&format!("{WARN}note{WARN:#}: {}\n", output::plain(note)))?;
    }
    Ok(0)
}

fn import(args: &Import, project: &Project) -> Outcome {
    let mut progress = Progress::new(project.folder());
    let what = args.path.file_name().unwrap_or(args.path.as_os_str()).to_string_lossy().into_owned();
    let reference = args.name.clone().unwrap_or_else(|| args.path.display().to_string());
    let imported = project.import_image(&args.path, args.name.as_deref(), &mut |detail| {
        progress.show(&Step::Importing { component: what.clone(), reference: reference.clone(), detail });
    });
    progress.clear();
    let (references, image) = imported?;
    let notes = image.notes;
    for (number, reference) in references.into_iter().enumerate() {
        let notes = if number == 0 { notes.clone() } else { Vec::new() };
        progress.show(&Step::Imported { component: what.clone(), reference, digest: image.digest.clone(), notes });
    }
    output::print(&format!("{}\n", image.digest))?;
    Ok(0)
}

fn export(args: &Export, project: &Project) -> Outcome {
    let mut progress = Progress::new(project.folder());
    let file = (args.archive != Path::new("-")).then_some(&*args.archive);
    let what = args.image.clone();
    let done = project.export_image(&args.image, file, &mut |detail| {
        progress.show(&Step::Exporting { image: what.clone(), detail });
    });
    progress.clear();
    done?;
    Ok(0)
}

fn verify(args: &Verify, project: &Project) -> Outcome {
    let text = args.format == Format::Text;
    let mut printed = Ok(());
    let mut progress = Progress::new(project.folder());
    let mut found = |image: &Verified| {
        if text && printed.is_ok() {
            let reference = short_reference(&image.reference, project.folder());
            let lacks = image.lacks.iter().map(|lacks| format!("; not repaired: {}", output::plain(lacks)));
            let lacks: String = lacks.collect();
            printed = output::print(&match &image.problem {
                None if image.repaired => format!("{GOOD}repaired{GOOD:#} {reference}\n"),
                None => format!("{GOOD}whole{GOOD:#}    {reference}\n"),
                Some(why) => format!("{BAD}changed{BAD:#}  {reference}: {}{lacks}\n", output::plain(why)),
            });
        }
    };
    let all = match args.repair {
        true => project.repair_images(&args.images, &mut found, &mut |step| progress.show(&step)),
        false => project.verify_images(&args.images, &mut found),
    };
    progress.clear();
    let all = all?;
    printed?;
    if !text {
        output::json(&all)?;
    }
    Ok(if all.iter().any(|image| image.problem.is_some()) { DIFFERENT } else { 0 })
}

fn df(args: &List, project: &Project) -> Outcome {
    let store = project.store();
    let (images, usage) = (store.list().map_err(Failure::image)?, store.df().map_err(Failure::image)?);
    if args.format == Format::Json {
        output::json(&serde_json::json!({
            "images": images.iter().map(|image| serde_json::json!({
                "reference": image.reference, "digest": image.digest, "size": image.stored, "shared": image.shared,
            })).collect::<Vec<_>>(),
            "layers": usage.layers,
            "bytes": usage.bytes,
            "unused_layers": usage.unused,
        }))?;
        return Ok(0);
    }
    let row = |image: &Entry| {
        [
            short_reference(&image.reference, project.folder()).into(),
            size(image.stored).into(),
            size(image.shared).into(),
            size(image.stored.saturating_sub(image.shared)).into(),
        ]
    };
    let rows: Vec<[Cell; 4]> = images.iter().map(row).collect();
    output::print(&table(["REFERENCE", "SIZE", "SHARED", "OWN"], &rows))?;
    let unused = match usage.unused {
        0 => String::new(),
        count => format!(", and {} that no image has: ctst images prune", counted(count, "layer")),
    };
    output::print(&format!("{DIM}{}, {}{unused}{DIM:#}\n", counted(usage.layers, "layer"), size(usage.bytes)))?;
    Ok(0)
}

fn rm(args: &RmImages, project: &Project) -> Outcome {
    tell(&project.remove_images(&args.images)?, project);
    Ok(0)
}

fn prune(args: &Prune, project: &Project) -> Outcome {
    let removed = project.prune_images(args.all)?;
    match args.format {
        Format::Json => output::json(&removed)?,
        Format::Text => tell(&removed, project),
    }
    Ok(0)
}

fn tell(removed: &Removed, project: &Project) {
    for reference in &removed.images {
        talk!("{} removed", short_reference(reference, project.folder()));
    }
    let (images, layers) = (counted(removed.images.len(), "image"), counted(removed.layers.len(), "layer"));
    talk!("{images} and {layers} removed");
    for note in &removed.notes {
        talk!("  {WARN}note{WARN:#}: {}", output::plain(note));
    }
}
