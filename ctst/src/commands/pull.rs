//! `ctst pull`

use std::path::Path;

use containust_sdk::lang::model::Image;
use containust_sdk::lang::registry_image;
use containust_sdk::{Error, Fetching, Project, Pulled, of_registries};

use super::load;
use crate::args::Pull;
use crate::failure::{Failure, Outcome};
use crate::output::{print, short_digest};
use crate::progress::Progress;

pub(crate) fn run(args: &Pull, file: Option<&Path>) -> Outcome {
    // The names of components have neither.
    let is_image = |word: &&String| word.contains(['/', ':']);
    let mut images = Vec::new();
    for word in args.what.iter().filter(is_image) {
        images.push(registry_image(word).ok_or_else(|| {
            Failure::new(
                format!("pull {}: that is no image of a registry", word.escape_debug()),
                "write it as oci://registry/name:tag".to_owned(),
            )
        })?);
    }
    let names: Vec<&String> = args.what.iter().filter(|word| !is_image(word)).collect();
    let project = match args.what.is_empty() || !names.is_empty() {
        true => {
            let (project, mut composition) = load(file, &args.inputs, Fetching::Known)?;
            let known: Vec<String> = composition.components.iter().map(|component| component.name.clone()).collect();
            if let Some(name) = names.iter().find(|name| !known.contains(name)) {
                return Err(Error::UnknownComponent { name: (*name).clone(), known }.into());
            }
            composition.components.retain(|component| names.is_empty() || names.contains(&&component.name));
            images.extend(of_registries(&composition));
            project
        }
        false => Project::locate(file)?,
    };
    let mut progress = Progress::new(project.folder());
    let pulled = project.pull(&images, args.update, &mut |step| progress.show(&step));
    progress.clear();
    tell(&pulled?)?;
    if images.iter().all(|image| !matches!(image, Image::Registry { .. })) {
        talk!("no image comes from a registry");
    }
    Ok(0)
}

/// As `ctst lock` does: digest and reference on standard output, and what has changed beside it.
pub(super) fn tell(pulled: &[Pulled]) -> Result<(), Failure> {
    for Pulled { reference, digest, before } in pulled {
        print(&format!("{}  {reference}\n", digest.trim_start_matches("sha256:")))?;
        if let Some(before) = before {
            talk!("{reference} was {} before", short_digest(before));
        }
    }
    Ok(())
}
