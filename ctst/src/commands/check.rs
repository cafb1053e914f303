//! `ctst check`

use std::path::Path;

use containust_sdk::Project;
use containust_sdk::logs::escape;

use super::{hold, one_file, parameters, show_diagnostics};
use crate::args::{Check, Format};
use crate::failure::{Outcome, TOOL};
use crate::output;
use crate::progress::Progress;

pub(crate) fn run(args: &Check, file: Option<&Path>, offline: bool) -> Outcome {
    containust_sdk::no_writes()?;
    if offline {
        containust_sdk::offline()?;
    }
    let project = Project::locate(one_file(file, args.file.as_deref())?)?;
    hold(&project, &args.pin)?;
    let loaded = project.load_with(&parameters(&args.inputs)?, &args.inputs.profile)?;
    let whole = match project.bundle()? {
        Some(_) => {
            let mut progress = Progress::new(project.folder());
            let verified = project.verify_bundle(None, &mut |step| progress.show(&step));
            progress.clear();
            Some(verified?)
        }
        None => None,
    };
    let good = loaded.outcome.composition.is_some();
    let allowed = loaded.outcome.composition.as_ref().map_or(Ok(()), |composition| project.judge(composition));
    match args.format {
        Format::Json => output::json(&loaded.outcome.diagnostics)?,
        Format::Text => {
            show_diagnostics(&loaded);
            if let Some(composition) = loaded.outcome.composition.as_ref().filter(|_| allowed.is_ok()) {
                let count = composition.components.len();
                let plural = if count == 1 { "" } else { "s" };
                let name = escape(loaded.name.as_bytes());
                let whole = whole.map(|digest| format!(", whole: sha256:{digest}")).unwrap_or_default();
                output::print(&format!("{name}: ok, {count} component{plural}{whole}\n"))?;
            }
        }
    }
    allowed?;
    Ok(if good { 0 } else { TOOL })
}
