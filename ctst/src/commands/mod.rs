//! One module a command. Each has `run`, which returns the exit code.

use std::iter;
use std::path::Path;

use containust_sdk::lang::model::Composition;
use containust_sdk::lang::{Diagnostic, Severity};
use containust_sdk::logs::escape;
use containust_sdk::{ContainerStatus, Error, Fetching, Loaded, Project, Report};

use crate::args::{Inputs, Pin};
use crate::failure::{Failure, TOOL};
use crate::output::{talk, tame};
use crate::progress::Progress;

pub(crate) mod build;
pub(crate) mod bundle;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod cp;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod fmt;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod lock;
pub(crate) mod login;
pub(crate) mod logs;
pub(crate) mod pause;
pub(crate) mod plan;
pub(crate) mod port;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod restart;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod top;
pub(crate) mod volumes;
pub(crate) mod wait;

/// The project that is meant, with its checked composition. Warnings and errors of the file are shown.
fn load(file: Option<&Path>, inputs: &Inputs, fetching: Fetching) -> Result<(Project, Composition), Failure> {
    let (project, loaded) = read(file, inputs, fetching)?;
    let composition = loaded.outcome.composition.ok_or(Failure::Told(TOOL))?;
    Ok((project, composition))
}

/// The same with all that was read; it has a composition.
fn read(file: Option<&Path>, inputs: &Inputs, fetching: Fetching) -> Result<(Project, Loaded), Failure> {
    read_held(file, inputs, &Pin::default(), fetching)
}

/// The same of a bundle that has to have this digest.
fn read_held(
    file: Option<&Path>,
    inputs: &Inputs,
    pin: &Pin,
    fetching: Fetching,
) -> Result<(Project, Loaded), Failure> {
    let project = Project::locate(file)?;
    hold(&project, pin)?;
    let loaded =
        project.load_fetching(&parameters(inputs)?, &inputs.profile, fetching, containust_sdk::is_offline())?;
    show_diagnostics(&loaded);
    if !loaded.closed.is_empty() {
        let why = containust_sdk::kept_offline().map(|why| format!(" ({why})")).unwrap_or_default();
        talk!("offline: no way out by {}{why}", loaded.closed.join(", "));
    }
    if loaded.outcome.composition.is_some() { Ok((project, loaded)) } else { Err(Failure::Told(TOOL)) }
}

/// Reads a bundle whole where somebody was told its digest, and refuses another.
fn hold(project: &Project, pin: &Pin) -> Result<(), Failure> {
    let Some(sha256) = &pin.sha256 else { return Ok(()) };
    let mut progress = Progress::new(project.folder());
    let verified = project.verify_bundle(Some(sha256), &mut |step| progress.show(&step));
    progress.clear();
    verified?;
    Ok(())
}

/// The values of parameters, the last of which counts: from files, then from the command line.
fn parameters(inputs: &Inputs) -> Result<Vec<(String, String)>, Failure> {
    let mut values = Vec::new();
    for path in &inputs.params {
        let what = |problem: String| format!("read {}: {problem}", path.display());
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::new(what(error.to_string()), "give a file of NAME=VALUE lines".to_owned()))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // Without the line itself, which may be a secret.
            let (name, value) = line.split_once('=').ok_or_else(|| {
                let problem = format!("line {} has no `=`", number + 1);
                Failure::new(what(problem), "write NAME=VALUE, and comments behind `#`".to_owned())
            })?;
            values.push((name.trim_end().to_owned(), value.trim().to_owned()));
        }
    }
    values.extend(inputs.set.iter().cloned());
    Ok(values)
}

/// Shows what was found in a file, on standard error.
fn show_diagnostics(loaded: &Loaded) {
    let found = &loaded.outcome.diagnostics;
    if !found.is_empty() {
        show(&loaded.outcome.render(&loaded.source, true), &count(found), &loaded.name);
    }
}

/// Shows rendered diagnostics of a file and how many they are.
fn show(rendered: &str, counts: &str, name: &str) {
    // The renderer leaves some control characters of the file and of its name as they are.
    talk(&tame(rendered));
    talk!("{}: {counts}", escape(name.as_bytes()));
}

/// `2 errors and 1 warning`.
fn count(found: &[Diagnostic]) -> String {
    let count = |severity| found.iter().filter(|d| d.severity == severity).count();
    let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    match (count(Severity::Error), count(Severity::Warning)) {
        (0, warnings) => plural(warnings, "warning"),
        (errors, 0) => plural(errors, "error"),
        (errors, warnings) => format!("{} and {}", plural(errors, "error"), plural(warnings, "warning")),
    }
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

/// The containers among which those are that are meant: all of the project, or where none is named those of its file.
fn within(project: &Project, named: &[String]) -> Result<Vec<ContainerStatus>, Error> {
    if named.is_empty() { project.own_status() } else { project.status() }
}

/// The components that are meant: those named, of which something must be there, or all.
fn select(
    project: &Project,
    file: Option<&Path>,
    named: &[String],
    status: &[ContainerStatus],
) -> Result<Vec<String>, Failure> {
    let known: Vec<String> = status.iter().map(|s| s.component.clone()).collect();
    if named.is_empty() {
        return Ok(known);
    }
    let mut meant = Vec::new();
    for name in named {
        let found = expand(name, status);
        if found.is_empty() {
            return Err(not_running(project, file, name, known));
        }
        meant.extend(found.into_iter().map(|status| status.component.clone()));
    }
    let mut seen = std::collections::HashSet::new();
    meant.retain(|name| seen.insert(name.clone()));
    Ok(meant)
}

/// What a name stands for: a component, or all replicas of one.
fn expand<'a>(name: &str, status: &'a [ContainerStatus]) -> Vec<&'a ContainerStatus> {
    match status.iter().find(|s| s.component == name) {
        Some(one) => vec![one],
        None => status.iter().filter(|s| s.replica_of.as_deref() == Some(name)).collect(),
    }
}

/// A component of which there is no container, or none that runs: `known` are those of which there is one.
fn not_running(project: &Project, file: Option<&Path>, name: &str, mut known: Vec<String>) -> Failure {
    // A file that cannot be read or has errors names nothing; what is asked here is not about them.
    let composition = project.load().ok().and_then(|loaded| loaded.outcome.composition);
    let components: Vec<_> = composition.into_iter().flat_map(|composition| composition.components).collect();
    let is_job = components.iter().any(|component| component.job && component.name == name);
    known.extend(components.into_iter().flat_map(|c| iter::once(c.name).chain(c.replica.map(|replica| replica.of))));
    known.sort();
    known.dedup();
    let name = name.to_owned();
    if !known.contains(&name) {
        return Error::UnknownComponent { name, known }.into();
    }
    let file = file.map(|file| file.to_string_lossy().into_owned());
    let words = |verb: &[&'static str]| {
        command_line(file.iter().flat_map(|file| ["-f", file]).chain(verb.iter().copied()).chain([&*name]))
    };
    let help = match is_job && project.log_dir(&name).exists() {
        // It has completed, and then a run does nothing.
        true => format!("start it again: {} && {}", words(&["rm"]), words(&["run", "-d"])),
        false => format!("start it: {}", words(&["run", "-d"])),
    };
    let message = format!("component {name}: not running");
    Failure::Error(Box::new(Report { code: "S0301".to_owned(), message, help: Some(help), exit: TOOL }))
}

/// The command that the caller gave, with one word more.
fn again_with(option: &str) -> String {
    repeated(std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect(), option)
}

fn repeated(mut words: Vec<String>, option: &str) -> String {
    // Values of parameters may be secret, and errors are kept in logs.
    for n in 0..words.len() {
        let value = if n > 0 && words[n - 1] == "--set" { Some(&*words[n]) } else { words[n].strip_prefix("--set=") };
        if let Some((_, secret)) = value.and_then(|value| value.split_once('=')) {
            let kept = words[n].len() - secret.len();
            words[n].truncate(kept);
            words[n].push_str("...");
        }
    }
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    words.insert(end, option.to_owned());
    command_line(words.iter().map(String::as_str))
}

/// `ctst` and these arguments, for a shell.
fn command_line<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c);
    words.fold("ctst".to_owned(), |line, word| {
        if !word.is_empty() && word.chars().all(plain) {
            return line + " " + word;
        }
        line + " '" + &word.replace('\'', r"'\''") + "'"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_repeated_without_values() {
        let again = |words: &[&str]| repeated(words.iter().map(ToString::to_string).collect(), "--yes");
        assert_eq!(again(&["-f", "a.ctst", "run", "-d"]), "ctst -f a.ctst run -d --yes");
        assert_eq!(
            again(&["run", "--set", "A=x=y", "--set=B=z", "--", "db"]),
            "ctst run --set A=... --set=B=... --yes -- db"
        );
    }

    #[test]
    fn command_lines_are_for_a_shell() {
        let line = |words: &[&str]| command_line(words.iter().copied());
        assert_eq!(line(&["-f", "./a.ctst", "run", "-d"]), "ctst -f ./a.ctst run -d");
        assert_eq!(line(&["-f", "it's a file", "", "$x"]), r"ctst -f 'it'\''s a file' '' '$x'");
    }
}
