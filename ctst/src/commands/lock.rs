//! `ctst lock`

use std::path::Path;

use containust_sdk::lang::Code;
use containust_sdk::{Fetching, Project, of_registries};

use super::pull::tell;
use super::{one_file, show_diagnostics};
use crate::args::Lock;
use crate::failure::{Outcome, TOOL};
use crate::output::print;

pub(crate) fn run(args: &Lock, file: Option<&Path>) -> Outcome {
    let project = Project::locate(one_file(file, args.file.as_deref())?)?;
    let loaded =
        project.load_fetching(&[], &[], Fetching::Lock { update: args.update }, containust_sdk::is_offline())?;
    for (url, digest) in &loaded.locked {
        print(&format!("{digest}  {url}\n"))?;
    }
    // Parameters without a value are no business of this command, but what could not be fetched is.
    let failed = loaded.outcome.diagnostics.iter().any(|found| found.code == Code::BadImport);
    if failed {
        show_diagnostics(&loaded);
    }
    match &loaded.outcome.composition {
        Some(composition) => tell(&project.lock_images(&of_registries(composition), args.update)?)?,
        // Which images there are is not known then.
        None if !failed => {
            talk!("no image was locked, because the file has errors, or parameters want values: ctst check")
        }
        None => {}
    }
    Ok(if failed { TOOL } else { 0 })
}
