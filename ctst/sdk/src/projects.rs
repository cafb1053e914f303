//! All projects of the caller that run, wherever their folders are.
//!
//! The folders in which supervisors listen are the index: a socket is there as long as its project runs, nobody else can put
//! one there, and of one that a killed supervisor left the kernel says that nobody listens. So nothing is written, nothing grows
//! old, and nothing but what a supervisor says itself is believed.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Report, Result};
use crate::ipc::client::{BUILD, dial_at, readable};
use crate::ipc::{Connection, Hello, Reply, Request, VERSION};
use crate::project::{Identity, check_private, short_name, socket_dirs};
use crate::status::ContainerStatus;

/// A supervisor that runs answers at once. One that does not must not keep the others from being listed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A project that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningProject {
    /// Its folder, as it was called when it was started; none where its supervisor does not tell.
    pub folder: Option<PathBuf>,
    /// The file in it for which it was started.
    pub file: Option<String>,
    /// Process id of its supervisor.
    pub supervisor: u32,
    /// Its containers that the supervisor knows, running or not, in the order in which they came.
    pub containers: Vec<ContainerStatus>,
    /// Why the supervisor does not tell, such as that it is another version's.
    pub problem: Option<Report>,
}

/// What a supervisor says of its project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) identity: Identity,
    pub(crate) folder: PathBuf,
    pub(crate) file: String,
}

/// The caller's projects that run, by folder. One whose supervisor does not answer is told of as such.
///
/// # Errors
/// [`Error::Io`] where a folder of sockets cannot be listed.
pub fn running() -> Result<Vec<RunningProject>> {
    let mut found: Vec<RunningProject> = Vec::new();
    for dir in socket_dirs() {
        // One that somebody else made, or that is not there, holds no project of ours.
        if check_private(&dir).is_err() {
            continue;
        }
        let list = std::fs::read_dir(&dir).map_err(|e| Error::io(format!("list {}", dir.display()), e))?;
        for path in
            list.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "sock"))
        {
            // Nobody listens, or not one of ours.
            let Ok(Some((socket, pid))) = dial_at(&path) else { continue };
            if found.iter().any(|other| other.supervisor == pid) {
                continue;
            }
            let mut project =
                RunningProject { folder: None, file: None, supervisor: pid, containers: Vec::new(), problem: None };
            match ask(socket, &path) {
                Ok(None) => continue,
                Ok(Some((served, containers))) => {
                    (project.folder, project.file) = (Some(served.folder), Some(served.file));
                    project.containers = containers;
                }
                Err(error) => project.problem = Some(error.report()),
            }
            found.push(project);
        }
    }
    found.sort_by(|a, b| (&a.folder, a.supervisor).cmp(&(&b.folder, b.supervisor)));
    Ok(found)
}

/// Asks the supervisor that listens on `path`. None: it is ending.
fn ask(socket: OwnedFd, path: &Path) -> Result<Option<(Served, Vec<ContainerStatus>)>> {
    let mut connection = Connection::new(socket);
    let hello = Hello { version: VERSION, build: BUILD.to_owned(), project: Identity::ANY, run: None };
    match answer(&mut connection, &Request::Hello(hello))? {
        Some(Reply::Hello { version: VERSION, build }) if build == BUILD => {}
        Some(Reply::Hello { build, .. }) => {
            return Err(Error::OtherVersion { theirs: build, ours: BUILD.to_owned() });
        }
        Some(Reply::Refused(report)) => return Err(Error::Reported(report)),
        Some(Reply::Over { .. }) | None => return Ok(None),
        Some(other) => return Err(Error::protocol(format!("unexpected {other:?}"))),
    }
    let Some(Reply::Project(served)) = answer(&mut connection, &Request::Project)? else { return Ok(None) };
    if path.file_stem().is_none_or(|stem| *stem != *short_name(served.identity)) {
        let problem = format!("{} is the socket of another project than the one that is served there", path.display());
        return Err(Error::protocol(problem));
    }
    let Some(Reply::Status(containers)) = answer(&mut connection, &Request::Status)? else { return Ok(None) };
    Ok(Some((served, containers)))
}

fn answer(connection: &mut Connection, request: &Request) -> Result<Option<Reply>> {
    // One that is ending closes while we ask.
    if connection.send(request, &[]).is_err() {
        return Ok(None);
    }
    if !readable(connection, PATIENCE)? {
        return Err(Error::protocol("the supervisor does not answer; it may be stopped or stuck"));
    }
    Ok(connection.wait::<Reply>()?.map(|(reply, _)| reply))
}
