//! `ctst inspect`

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use containust_sdk::logs::escape;
use containust_sdk::{Inspection, Project};
use serde_json::Value;

use super::select;
use crate::args::{Format, Inspect};
use crate::failure::{Failure, Outcome};
use crate::output::{self, BOLD, moment};

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
    let mut value = serde_json::to_value(inspection).map_err(|e| Failure::new(e.to_string(), None))?;
    // What it was made from says again what it is.
    if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
        spec.retain(|name, _| !matches!(name.as_str(), "name" | "image" | "digest" | "labels"));
    }
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
        if let Some(text) = written(&name, value) {
            writeln!(out, "{indent}{name} {}", escape(text.as_bytes())).ok();
            continue;
        }
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

/// What people write in one word: times, durations, pairs.
fn written(name: &str, value: &Value) -> Option<String> {
    match value {
        Value::Number(number) if matches!(name, "started:" | "finished:") => Some(moment(number.as_u64()?)),
        Value::Number(mode) if name == "mode:" => Some(format!("{:04o}", mode.as_u64()?)),
        Value::Object(map) if map.len() == 2 && map.contains_key("secs") && map.contains_key("nanos") => {
            let seconds = map["secs"].as_u64()?;
            let nanos = u32::try_from(map["nanos"].as_u64()?).ok()?;
            let duration = Duration::new(seconds, nanos);
            Some(if duration.is_zero() { "0s".to_owned() } else { format!("{duration:?}") })
        }
        Value::Array(list) if name == "addresses:" && !list.is_empty() => {
            let pairs =
                list.iter().filter_map(|pair| Some(format!("{} {}", pair.get(0)?.as_str()?, pair.get(1)?.as_str()?)));
            Some(pairs.collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) if name == "labels:" && !map.is_empty() => {
            let pairs = map.iter().filter_map(|(label, value)| Some(format!("{label}={}", value.as_str()?)));
            Some(pairs.collect::<Vec<_>>().join(", "))
        }
        _ => None,
    }
}
