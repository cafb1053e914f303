//! `ctst logs`

use std::path::Path;

use containust_sdk::logs::POLL;
use containust_sdk::{Client, Polled, Project, Session};
use rustix::event::{PollFd, PollFlags, poll};

use super::select;
use crate::args::Logs;
use crate::failure::{Failure, Outcome};
use crate::printer::{Printer, open};

pub(crate) fn run(args: &Logs, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let status = project.status()?;
    let shown = select(&project, file, &args.components, &status)?;
    let all = status.into_iter().map(|s| s.component).collect();
    let mut printer = Printer::new(all, &shown, args.timestamps, !args.no_log_prefix);
    for name in &shown {
        printer.add(name, open(&project, name, args.tail, args.since.as_deref())?);
    }
    if args.follow
        && let Some(client) = Client::connect(&project)?
    {
        follow(&project, &mut client.attach()?, &shown, &mut printer)?;
    }
    // What was written before the last one ended.
    printer.drain()?;
    printer.finish()?;
    Ok(0)
}

/// Prints until none of the components is live.
fn follow(project: &Project, session: &mut Session, shown: &[String], printer: &mut Printer) -> Result<(), Failure> {
    let mut look = true;
    loop {
        if std::mem::take(&mut look) {
            let status = project.status()?;
            if !status.iter().any(|s| s.state.is_live() && shown.contains(&s.component)) {
                return Ok(());
            }
        }
        printer.drain()?;
        wait(session)?;
        loop {
            match session.poll_event() {
                Ok(Polled::Notice(_)) => look = true,
                Ok(Polled::Empty) => break,
                // Over, or the supervisor was killed and every container with it.
                Ok(Polled::End) | Err(_) => return Ok(()),
            }
        }
    }
}

/// Until there is news or a look at the logs is due.
fn wait(session: &Session) -> Result<(), Failure> {
    let timeout = POLL.try_into().ok();
    match poll(&mut [PollFd::new(session, PollFlags::IN)], timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(Failure::io("wait for the project's supervisor", e)),
    }
}
