//! `ctst restart`

use std::path::Path;
use std::time::Duration;

use containust_sdk::{Client, Project};

use super::{not_running, select, within};
use crate::args::Stop;
use crate::events;
use crate::failure::{self, Outcome, TOOL};

pub(crate) fn run(args: &Stop, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let status = within(&project, &args.components)?;
    let none = !status.iter().any(|status| status.state.is_live());
    let meant = select(&project, file, &args.components, &status)?;
    // Of several replicas all, or none.
    let runs = |name: &&String| status.iter().any(|s| s.component == **name && s.state.is_live());
    if !args.components.is_empty()
        && let Some(name) = meant.iter().find(|name| !runs(name))
    {
        return Err(not_running(&project, file, name, vec![name.clone()]));
    }
    let meant = if args.components.is_empty() { Vec::new() } else { meant };
    let client = Client::connect(&project)?.filter(|_| !none || !meant.is_empty());
    let Some(mut client) = client else {
        return Err(containust_sdk::Error::NotRunning { project: project.folder().to_owned() }.into());
    };
    let mut told = Vec::new();
    let failed = client.restart(&meant, args.time.map(Duration::from_secs), &mut |event| {
        if matches!(event.kind, containust_sdk::EventKind::Failed(_)) {
            told.push(event.component.clone());
        }
        events::show(event);
    })?;
    for (component, report) in failed.iter().filter(|(component, _)| !told.contains(component)) {
        failure::tell(report, component);
    }
    Ok(failed.first().map_or(0, |(_, report)| if report.exit == 0 { TOOL } else { report.exit }))
}
