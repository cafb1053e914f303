//! `ctst events`

use std::path::Path;

use containust_sdk::logs::parse_since;
use containust_sdk::{Client, Error, Event, EventKind, Notice, Project};
use serde_json::{Value, json};

use super::select;
use crate::args::{self, Format};
use crate::events;
use crate::failure::{Failure, Outcome};
use crate::output::{self, DIM, moment};

pub(crate) fn run(args: &args::Events, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let since = args.since.as_deref().map(parse_since).transpose();
    let since = since.map_err(|expected| Failure::new(format!("read --since: {expected}"), None))?;
    let since = since.map_or(0, |since| u64::try_from(since.as_millisecond()).unwrap_or(0));
    let Some(client) = Client::connect(&project)? else {
        return Err(Error::NotRunning { project: project.folder().to_owned() }.into());
    };
    let meant = match &args.components[..] {
        [] => None,
        named => Some(select(&project, file, named, &project.status()?)?),
    };
    let show = |event: &Event| match &meant {
        Some(meant) if !meant.contains(&event.component) => Ok(()),
        _ => show(event, args.format),
    };
    let (past, mut session) = client.events(since)?;
    past.iter().try_for_each(show)?;
    if args.follow {
        while let Some(notice) = session.next_event()? {
            if let Notice::Event(event) = notice {
                show(&event)?;
            }
        }
    }
    Ok(0)
}

fn show(event: &Event, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::print(&(data(event)?.to_string() + "\n")),
        Format::Text => output::print(&format!("{DIM}{}{DIM:#} {}\n", moment(event.at), events::line(event))),
    }
}

/// As JSON, in which a field of one name is of one type: an error's code is not beside a program's.
fn data(event: &Event) -> Result<Value, Failure> {
    let unwritten = |error| Failure::new(format!("write an event: {error}"), None);
    match &event.kind {
        EventKind::Failed(why) | EventKind::Unchanged(why) => {
            let name = if matches!(event.kind, EventKind::Failed(_)) { "failed" } else { "unchanged" };
            Ok(json!({ "at": event.at, "component": event.component, "event": name, "why": why }))
        }
        _ => serde_json::to_value(event).map_err(unwritten),
    }
}

#[cfg(test)]
mod tests {
    use containust_sdk::Report;

    use super::*;

    #[test]
    fn what_is_told_as_data() {
        let event = |kind| data(&Event { at: 7, component: "web".into(), kind }).unwrap();
        assert_eq!(
            event(EventKind::Exited { code: 3 }),
            json!({ "at": 7, "component": "web", "event": "exited", "code": 3 })
        );
        let report = Report { code: "S0404".into(), message: "start web".into(), help: None, exit: 127 };
        let failed = event(EventKind::Failed(report));
        assert_eq!(
            (&failed["event"], &failed["why"]["code"], &failed["code"]),
            (&json!("failed"), &json!("S0404"), &Value::Null)
        );
    }
}
