//! What a shell offers on TAB. The script that `ctst completions` prints calls this program again, with [`VARIABLE`] set and
//! the words of the line, and is answered with what fits: commands and options, and names of what there is in the project that the line
//! means.
//!
//! Nobody wants an error there, nor to wait: what cannot be said at once is not offered.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use clap::{Arg, Command, CommandFactory as _};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _};
use containust_sdk::lang::CODES;
use containust_sdk::{Project, codes};

use crate::args::{Args, meant_file};
use crate::failure::TOOL;
use crate::output::short_reference;

/// The name of the shell stands in it.
pub(crate) const VARIABLE: &str = "CTST_COMPLETE";
/// A person notices more. A supervisor that is stopped would be waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers, where a shell asks; the exit code.
pub(crate) fn answer() -> Option<i32> {
    let folder = std::env::current_dir().ok();
    match CompleteEnv::with_factory(command).var(VARIABLE).try_complete(std::env::args_os(), folder.as_deref()) {
        Ok(false) => None,
        Ok(true) => Some(0),
        Err(_) => Some(TOOL),
    }
}

/// The command line with what its values can be.
fn command() -> Command {
    named(Args::command(), "")
}

fn named(command: Command, above: &'static str) -> Command {
    let name = command.get_name().to_owned();
    let command = command.mut_args(|arg| match candidates(&arg, &name, above) {
        Some(completer) => arg.add(completer),
        None => arg,
    });
    let above = match name.as_str() {
        "images" => "images",
        _ => "",
    };
    command.mut_subcommands(|command| named(command, above))
}

/// By the name of the value, which is the same wherever the same is meant.
fn candidates(arg: &Arg, command: &str, above: &str) -> Option<ArgValueCompleter> {
    let value = arg.get_value_names()?.first()?.as_str();
    let components = match command {
        "run" | "up" | "plan" | "pull" => Components::Declared,
        "logs" | "inspect" | "rm" | "events" | "wait" => Components::There,
        _ => Components::Running,
    };
    Some(match (value, above) {
        // What follows the component is a command of its.
        ("COMPONENT", _) if command == "exec" => from(|| {
            let (names, line) = (Components::Running.names(), line());
            let chosen = line.iter().rev().skip(1).any(|word| names.iter().any(|name| *word == **name));
            if chosen { Vec::new() } else { names }
        }),
        ("COMPONENT" | "COMPONENT|IMAGE", _) => from(move || components.names()),
        ("FILE|COMPONENT", _) => ArgValueCompleter::new(move |current: &OsStr| {
            let mut all = offered(current, move || components.names());
            all.extend(compositions(&["ctst", "ctstar", "json"]).complete(current));
            all
        }),
        // `COMPONENT:PATH`, or a path here.
        ("SOURCE" | "TARGET", _) => ArgValueCompleter::new(move |current: &OsStr| {
            let places = move || components.names().into_iter().map(|name| name + ":").collect();
            let mut all = offered(current, places);
            all.extend(PathCompleter::any().complete(current));
            all
        }),
        ("VOLUME", _) => from(volumes),
        ("IMAGE", "images") => from(images),
        ("IMAGE", _) if command == "push" => from(images),
        ("CODE", _) => from(|| {
            let all = CODES.iter().map(|code| code.as_str()).chain(codes::titles().map(|(code, _)| code));
            all.map(str::to_owned).collect()
        }),
        ("FILE", _) if arg.get_id() == "file" || arg.get_id() == "files" => {
            ArgValueCompleter::new(compositions(&["ctst", "ctstar"]))
        }
        ("DIR", _) if arg.get_id() == "project" => ArgValueCompleter::new(PathCompleter::dir()),
        _ => return None,
    })
}

fn from(names: impl Fn() -> Vec<String> + Copy + Send + Sync + 'static) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| offered(current, names))
}

/// Folders, and files whose names end so.
fn compositions(ends: &'static [&'static str]) -> PathCompleter {
    let wanted = move |path: &std::path::Path| path.extension().is_some_and(|e| ends.iter().any(|end| e == *end));
    PathCompleter::any().filter(move |path| path.is_dir() || wanted(path))
}

/// Those of the names that begin so, if they can be had in time.
fn offered(current: &OsStr, names: impl FnOnce() -> Vec<String> + Send + 'static) -> Vec<CompletionCandidate> {
    let (sender, receiver) = mpsc::channel();
    // It ends with this program. Without a thread nothing is offered.
    let started = std::thread::Builder::new().spawn(move || sender.send(names()).ok());
    let names = started.ok().and_then(|_| receiver.recv_timeout(PATIENCE).ok()).unwrap_or_default();
    let begin = current.to_string_lossy();
    names.into_iter().filter(|name| name.starts_with(&*begin)).map(CompletionCandidate::new).collect()
}

/// Which components are meant.
#[derive(Debug, Clone, Copy)]
enum Components {
    /// What the file has.
    Declared,
    /// Of which there is a container.
    There,
    Running,
}

impl Components {
    fn names(self) -> Vec<String> {
        let Some(project) = project() else { return Vec::new() };
        let mut names = BTreeSet::new();
        match self {
            Self::Declared => {
                let composition = project.load().ok().and_then(|loaded| loaded.outcome.composition);
                for component in composition.into_iter().flat_map(|composition| composition.components) {
                    names.extend(component.replica.map(|replica| replica.of));
                    names.insert(component.name);
                }
            }
            Self::There | Self::Running => {
                let status = project.status().unwrap_or_default();
                for status in status.into_iter().filter(|s| matches!(self, Self::There) || s.state.is_live()) {
                    names.extend(status.replica_of);
                    names.insert(status.component);
                }
            }
        }
        names.into_iter().collect()
    }
}

fn volumes() -> Vec<String> {
    let volumes = project().and_then(|project| project.volumes().ok()).unwrap_or_default();
    volumes.into_iter().map(|volume| volume.name).collect()
}

fn images() -> Vec<String> {
    let Some(project) = project() else { return Vec::new() };
    let images = project.store().list().unwrap_or_default();
    let name = |reference: &str| match reference.strip_prefix("image://") {
        Some(name) => name.to_owned(),
        None => short_reference(reference, project.folder()),
    };
    images.iter().map(|image| name(&image.reference)).collect()
}

/// The one that the line means.
fn project() -> Option<Project> {
    Project::locate(named_file(&line()).as_deref()).ok()
}

/// The words as far as they are written, after the script's own arguments.
fn line() -> Vec<OsString> {
    std::env::args_os().skip_while(|word| word != "--").skip(1).collect()
}

/// As `--file` and `--project` say it, which stand before the command.
fn named_file(words: &[OsString]) -> Option<PathBuf> {
    let (mut file, mut project) = (None, None);
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        let word = word.to_str()?;
        let (option, value) = match word.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(OsString::from(value))),
            _ if word.starts_with("--") || word.len() == 2 => (word, None),
            _ => (word.get(..2).unwrap_or_default(), word.get(2..).map(OsString::from)),
        };
        let place = match option {
            "-f" | "--file" => &mut file,
            "-p" | "--project" => &mut project,
            "--offline" => continue,
            _ => break,
        };
        *place = Some(PathBuf::from(value.or_else(|| words.next().cloned())?));
    }
    meant_file(project, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_which_project() {
        let file = |line: &str| named_file(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for (line, wanted) in [
            ("ctst logs -f web", None),
            ("ctst", None),
            ("ctst -f", None),
            ("ctst -f a.ctst logs", Some("a.ctst")),
            ("ctst -fa.ctst logs", Some("a.ctst")),
            ("ctst --file=a.ctst -p shop logs", Some("shop/a.ctst")),
            ("ctst --offline -f a.ctst logs", Some("a.ctst")),
            ("ctst --project shop logs -f x", Some("shop")),
        ] {
            assert_eq!(file(line), wanted.map(PathBuf::from), "{line}");
        }
    }

    /// Whatever is named like something that there are names for can be completed.
    #[test]
    fn names_are_offered_wherever_one_is_wanted() {
        let mut with = 0;
        for command in command().get_subcommands() {
            for arg in command.get_arguments() {
                let wants = arg.get_value_names().is_some_and(|names| names[0].as_str().contains("COMPONENT"));
                let has = arg.get::<ArgValueCompleter>().is_some();
                assert!(has || !wants, "{} {arg}", command.get_name());
                with += usize::from(has);
            }
        }
        assert!(with > 15, "{with}");
    }
}
