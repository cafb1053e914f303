//! `ctst push`

use std::path::Path;

use containust_sdk::Project;
use containust_sdk::lang::registry_image;

use super::pull::tell;
use crate::args::Push;
use crate::failure::{Failure, Outcome};
use crate::progress::Progress;

pub(crate) fn run(args: &Push, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let target =
        registry_image(&args.target).filter(|_| args.target.starts_with("oci://") && !args.target.contains('@'));
    let target = target.ok_or_else(|| {
        Failure::new(
            format!("push to {}: that is no name at a registry", args.target.escape_debug()),
            "write it as oci://registry/name:tag".to_owned(),
        )
    })?;
    let mut progress = Progress::new(project.folder());
    let pushed = project.push(&args.image, &target, &mut |step| progress.show(&step));
    progress.clear();
    tell(&[pushed?])?;
    Ok(0)
}
