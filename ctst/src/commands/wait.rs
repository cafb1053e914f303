//! `ctst wait`

use std::path::Path;

use containust_sdk::{Client, ContainerStatus, Polled, Project, State};
use rustix::event::{PollFd, PollFlags, poll};

use super::select;
use crate::args::Wait;
use crate::failure::{Failure, Outcome, TOOL};
use crate::output::{self, DIM};

pub(crate) fn run(args: &Wait, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let mut status = project.status()?;
    let meant = select(&project, file, &args.components, &status)?;
    // Before the next look, so that no end is missed between the two.
    if let Some(client) = Client::connect(&project)? {
        let mut session = client.attach()?;
        let mut told = false;
        loop {
            status = project.status()?;
            let live = |name: &&String| status.iter().any(|s| s.component == **name && s.state.is_live());
            let live: Vec<&str> = meant.iter().filter(live).map(String::as_str).collect();
            if live.is_empty() {
                break;
            }
            if !std::mem::replace(&mut told, true) {
                talk!("{DIM}waits for {} to end{DIM:#}", live.join(", "));
            }
            match poll(&mut [PollFd::new(&session, PollFlags::IN)], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Failure::io("wait for the project's supervisor", e)),
            }
            while let Ok(Polled::Notice(_)) = session.poll_event() {}
            if let Ok(Polled::End) | Err(_) = session.poll_event() {
                status = project.status()?;
                break;
            }
        }
    }
    let codes: Vec<i32> = meant.iter().map(|name| code(status.iter().find(|s| s.component == *name))).collect();
    let lines: String = codes.iter().map(|code| format!("{code}\n")).collect();
    output::print(&lines)?;
    Ok(codes.into_iter().find(|code| *code != 0).unwrap_or(0))
}

/// How a container ended, as `run` would say.
pub(super) fn code(status: Option<&ContainerStatus>) -> i32 {
    let Some(status) = status else { return TOOL };
    match (status.state, status.exit_code, &status.failure) {
        (State::Failed, _, Some(report)) => report.exit,
        (_, Some(code), _) => code,
        // It was killed together with everything that could have noted how it ended.
        (State::Dead, None, _) => 128 + 9,
        _ => TOOL,
    }
}
