//! One module a command. Each has `run`, which returns the exit code.

use std::path::Path;

use containust_sdk::lang::Severity;
use containust_sdk::lang::model::Composition;
use containust_sdk::logs::escape;
use containust_sdk::{ContainerStatus, Error, Loaded, Project};

use crate::failure::{Failure, TOOL};
use crate::output::{talk, tame};

pub(crate) mod build;
pub(crate) mod check;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod images;
pub(crate) mod logs;
pub(crate) mod plan;
pub(crate) mod ps;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod stop;

/// The project that is meant, with its checked composition. Warnings and errors of the file are shown.
fn load(file: Option<&Path>) -> Result<(Project, Composition), Failure> {
    let project = Project::locate(file)?;
    let loaded = project.load()?;
    show_diagnostics(&loaded);
    let composition = loaded.outcome.composition.ok_or(Failure::Told(TOOL))?;
    Ok((project, composition))
}

/// Shows what was found in a file, on standard error.
fn show_diagnostics(loaded: &Loaded) {
    let found = &loaded.outcome.diagnostics;
    if found.is_empty() {
        return;
    }
    // The renderer leaves some control characters of the file and of its name as they are.
    talk(&tame(&loaded.outcome.render(&loaded.source, true)));
    let count = |severity| found.iter().filter(|d| d.severity == severity).count();
    let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let counts = match (count(Severity::Error), count(Severity::Warning)) {
        (0, warnings) => plural(warnings, "warning"),
        (errors, 0) => plural(errors, "error"),
        (errors, warnings) => format!("{} and {}", plural(errors, "error"), plural(warnings, "warning")),
    };
    talk!("{}: {counts}", escape(loaded.name.as_bytes()));
}

/// The positional file or that of `-f`.
fn one_file<'a>(option: Option<&'a Path>, positional: Option<&'a Path>) -> Result<Option<&'a Path>, Failure> {
    match (option, positional) {
        (Some(one), Some(two)) => {
            let both = format!("choose a composition: both {} and {} are named", one.display(), two.display());
            Err(Failure::new(both, "name one".to_owned()))
        }
        (one, two) => Ok(one.or(two)),
    }
}

/// The components that are meant: those named, which must exist, or all.
fn select(named: &[String], status: &[ContainerStatus]) -> Result<Vec<String>, Failure> {
    let known: Vec<String> = status.iter().map(|s| s.component.clone()).collect();
    match named.iter().find(|name| !known.contains(name)) {
        Some(name) => Err(Error::UnknownComponent { name: name.clone(), known }.into()),
        None if named.is_empty() => Ok(known),
        None => Ok(named.to_vec()),
    }
}
