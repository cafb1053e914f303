//! `ctst inspect`

use std::fmt::Write as _;
use std::path::Path;

use containust_sdk::logs::escape;
use containust_sdk::{Inspection, Project};
use serde_json::Value;

use super::select;
use crate::args::{Format, Inspect};
use crate::failure::{Failure, Outcome};
use crate::output::{self, BOLD};

pub(crate) fn run(args: &Inspect, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let mut found = project.inspect()?;
    let status: Vec<_> = found.iter().map(|inspection| inspection.status.clone()).collect();
    let meant = select(&project, file, &args.components, &status)?;
    found.retain(|inspection| meant.contains(&inspection.status.component));
    match args.format {
        Format::Json => output::json(&found)?,
        Format::Text => {
            let texts = found.iter().map(text).collect::<Result<Vec<_>, _>>()?;
            output::print(&texts.join("\n"))?;
        }
    }
    Ok(0)
}

fn text(inspection: &Inspection) -> Result<String, Failure> {
    let value = serde_json::to_value(inspection).map_err(|e| Failure::new(e.to_string(), None))?;
    let mut out = format!("{BOLD}{}{BOLD:#}\n", escape(inspection.status.component.as_bytes()));
    write_fields(&mut out, &value, 1);
    Ok(out)
}

/// Fields that say something, one a line, deeper ones further in.
fn write_fields(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(name, value)| (format!("{name}:"), value)).collect(),
        Value::Array(list) => list.iter().map(|value| ("-".to_owned(), value)).collect(),
        _ => Vec::new(),
    };
    for (name, value) in entries {
        // Writing into a String cannot fail.
        match value {
            Value::Null => {}
            Value::Object(map) if map.is_empty() => {}
            Value::Array(list) if list.is_empty() => {}
            Value::Object(_) | Value::Array(_) => {
                writeln!(out, "{indent}{name}").ok();
                write_fields(out, value, depth + 1);
            }
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => drop(writeln!(out, "{indent}{name} {}", escape(text.as_bytes()))),
            other => drop(writeln!(out, "{indent}{name} {other}")),
        }
    }
}
