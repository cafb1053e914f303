//! `ctst cp`

use std::path::Path;

use containust_sdk::transfer::{self, Host};
use containust_sdk::{Project, State};

use super::{expand, not_running};
use crate::args::Cp;
use crate::failure::{Failure, Outcome};

pub(crate) fn run(args: &Cp, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    match (inside(&args.source), inside(&args.target)) {
        (Some((component, path)), None) => {
            let component = running(&project, file, component)?;
            let left_out = transfer::fetch(&project, &component, path, &host(&args.target))?;
            if left_out > 0 {
                talk!("left out {left_out} devices, FIFOs or sockets");
            }
            Ok(0)
        }
        (None, Some((component, path))) => {
            let component = running(&project, file, component)?;
            transfer::put(&project, &host(&args.source), &component, path)?;
            Ok(0)
        }
        (Some(_), Some(_)) => Err(Failure::new(
            format!("copy {} to {}: both are in containers, and one has to be on this host", args.source, args.target),
            format!("go through this host: ctst cp {} ./COPY, then: ctst cp ./COPY {}", args.source, args.target),
        )),
        (None, None) => Err(Failure::new(
            format!("copy {} to {}: one of them has to be in a container", args.source, args.target),
            "name it: COMPONENT:PATH; a path of this host with a colon: ./a:b".to_owned(),
        )),
    }
}

/// Component and absolute path. No component has a slash or a dot in its name.
fn inside(word: &str) -> Option<(&str, &str)> {
    word.split_once(':').filter(|(component, path)| !component.contains(['/', '.']) && path.starts_with('/'))
}

fn host(word: &str) -> Host<'_> {
    if word == "-" { Host::Stream } else { Host::Path(Path::new(word)) }
}

/// The component, or the first of its replicas that runs.
fn running(project: &Project, file: Option<&Path>, name: &str) -> Result<String, Failure> {
    let status = project.status()?;
    let found = expand(name, &status).into_iter().find(|status| status.state == State::Running);
    match found {
        Some(found) => Ok(found.component.clone()),
        None => Err(not_running(project, file, name, status.into_iter().map(|s| s.component).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_containers_from_files() {
        assert_eq!(inside("web:/etc/x:y"), Some(("web", "/etc/x:y")));
        for host in ["./a:/b", "/a:/b", "-", "a:b", "a", "a.b:/c"] {
            assert_eq!(inside(host), None, "{host}");
        }
    }
}
