//! Removing what containers left: by threads, and where files belong to other ids, by workers in containers.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use containust_shared::protocol::{FromContainer, MAIN, Plan, ToContainer};
use mio::Token;

use super::lazy::{Of, Server};
use super::life::log_pipe;
use super::poller::Source;
use super::{Supervisor, say};
use crate::error::{During, Error, Result};
use crate::host::confine;
use crate::shim::{self, Channel, Received};
use crate::workers;
use crate::workers::workshop::End;

/// Folders that wait to be removed begin with this, which no component's name does.
const RETIRED: &str = ".old-";

/// What became of a removal.
pub(super) struct Removed {
    path: PathBuf,
    result: Result<(), containust_image::Error>,
    /// A worker has been at it already.
    worked: bool,
}

/// What a worker does.
#[derive(Debug)]
pub(super) enum Task {
    /// Empties a folder, which is then removed.
    Remove,
    /// Makes a folder with the content of an image, for which it may have this scratch folder.
    Fill { scratch: Option<PathBuf> },
    /// Unpacks an archive, or removes what it has unpacked, for a thread that is told how it ended.
    Unpack { ended: Sender<Result<End>> },
    /// Serves a lazy image as long as somebody has it mounted.
    Serve {
        of: Of,
        /// What it said last.
        told: Option<String>,
    },
}

/// A container of our own, that works on a folder.
#[derive(Debug)]
pub(super) struct Worker {
    path: PathBuf,
    pub(super) task: Task,
    pub(super) channel: Channel,
    pub(super) token: Token,
    /// What it says, unless that goes to somebody else.
    pub(super) errors: Option<OwnedFd>,
    /// Of what is heard while it works.
    pub(super) words: Option<Token>,
    held: Vec<OwnedFd>,
    pub(super) pidfd: Option<OwnedFd>,
    /// What serves the image that it works in.
    pub(super) server: Option<Server>,
}

impl Worker {
    /// Whether it makes this folder.
    pub(super) fn fills(&self, place: &Path) -> bool {
        matches!(self.task, Task::Fill { .. }) && self.path == place
    }

    /// Whether it ends by itself, with nothing that runs on.
    pub(super) fn ends(&self) -> bool {
        !matches!(self.task, Task::Serve { .. })
    }
}

impl Supervisor {
    /// A name in a folder of containers or volumes for what nobody misses: a supervisor that finds it removes it.
    pub(super) fn retired(&mut self, parent: &Path) -> PathBuf {
        parent.join(format!("{RETIRED}{}", self.new_id()))
    }

    /// Takes a container's folder out of the way and removes it in the background; one that is not there is fine.
    pub(super) fn retire(&mut self, dir: &Path) -> Result<()> {
        let parent = dir.parent().unwrap_or(dir);
        loop {
            // Beside it: a folder that belongs to another id cannot be moved to another parent, because that writes its `..`.
            let aside = self.retired(parent);
            match std::fs::rename(dir, &aside) {
                Ok(()) => {
                    self.remove(aside, false);
                    return Ok(());
                }
                // Left by an earlier supervisor.
                Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(e).during(|| format!("move {} aside", dir.display())),
            }
        }
    }

    /// Removes what an earlier supervisor did not get to.
    pub(super) fn sweep(&mut self) {
        if std::mem::replace(&mut self.swept, true) {
            return;
        }
        for parent in [self.project.containers_dir(), self.project.volumes_dir()] {
            let Ok(entries) = std::fs::read_dir(&parent) else { continue };
            for entry in entries.flatten() {
                if entry.file_name().to_string_lossy().starts_with(RETIRED) {
                    self.remove(entry.path(), false);
                }
            }
        }
    }

    pub(super) fn remove(&mut self, path: PathBuf, worked: bool) {
        self.removing += 1;
        let waker = match &self.waker {
            Some(waker) => Arc::clone(waker),
            None => match self.poller.waker() {
                Ok(waker) => Arc::clone(self.waker.insert(Arc::new(waker))),
                Err(error) => return self.give_up(&path, &error.to_string()),
            },
        };
        let sender = self.removals.clone();
        let place = path.clone();
        let folder = path.parent().unwrap_or(&path).to_owned();
        let spawned = confine::on_files("remove", &folder, move || {
            // What a worker has emptied may be closed to us, who are still allowed to remove it.
            let emptied = worked && std::fs::remove_dir(&path).is_ok();
            let result = if emptied { Ok(()) } else { containust_image::remove_tree(&path) };
            // The receiver lives as long as the supervisor; after it there is nobody to tell.
            sender.send(Removed { path, result, worked }).ok();
            waker.wake().ok();
        });
        if let Err(error) = spawned {
            self.give_up(&place, &error.to_string());
        }
    }

    fn give_up(&mut self, path: &Path, why: &str) {
        self.removing -= 1;
        let what = format!("remove {}: {why}", path.display());
        say(&format!("{what}; the next run tries again"));
        self.unremoved.push(what);
    }

    pub(super) fn on_removed(&mut self) {
        while let Ok(Removed { path, result, worked }) = self.removed.try_recv() {
            match result {
                Ok(()) => self.removing -= 1,
                // Files of the ids that only the project's user namespace has power over.
                Err(error) if !worked && self.ids.has_others() => {
                    let worker = workers::plan(&path, &["remove", workers::TARGET]);
                    let started =
                        worker.and_then(|planned| self.start_worker(&path, Task::Remove, planned, None).map(drop));
                    if let Err(second) = started {
                        self.give_up(&path, &format!("{error}; {second}"));
                    }
                }
                Err(error) => self.give_up(&path, &error.to_string()),
            }
        }
    }

    /// Starts a worker, with `input` as its standard input; its number.
    pub(super) fn start_worker(
        &mut self,
        path: &Path,
        task: Task,
        (plan, held): (Plan, Vec<OwnedFd>),
        input: Option<OwnedFd>,
    ) -> Result<u32> {
        let input = match input {
            Some(input) => input,
            None => std::fs::File::open("/dev/null").during(|| "open /dev/null".to_owned())?.into(),
        };
        let (errors, end) = log_pipe(&self.ids)?;
        let other = end.try_clone().during(|| "copy a descriptor".to_owned())?;
        self.launch_worker_on((path, task), (plan, held), [input, end, other], Some(errors))
    }

    /// Starts a worker for a thread, with these standard streams; its number.
    pub(super) fn launch_worker(
        &mut self,
        task: Task,
        planned: (Plan, Vec<OwnedFd>),
        streams: [OwnedFd; 3],
    ) -> Result<u32> {
        self.launch_worker_on((Path::new(""), task), planned, streams, None)
    }

    fn launch_worker_on(
        &mut self,
        (path, task): (&Path, Task),
        (plan, held): (Plan, Vec<OwnedFd>),
        streams: [OwnedFd; 3],
        errors: Option<OwnedFd>,
    ) -> Result<u32> {
        let id = self.new_id();
        let (ours, theirs) = shim::seqpacket()?;
        let mut channel = Channel::new(ours);
        channel.send(&ToContainer::Plan(Box::new(plan)), streams.into())?;
        self.sandbox.launch(id, Vec::new(), None, theirs, (false, None))?;
        let what = || "watch a worker".to_owned();
        let token = self.poller.add(&channel, Source::Worker(id)).during(what)?;
        let words = match (&task, &errors) {
            (Task::Serve { .. }, Some(errors)) => Some(self.poller.add_reader(errors, Source::Words(id)).during(what)?),
            _ => None,
        };
        let path = path.to_owned();
        let worker = Worker { path, task, channel, token, errors, words, held, pidfd: None, server: None };
        self.workers.insert(id, worker);
        Ok(id)
    }

    pub(super) fn on_worker_launched(&mut self, id: u32, pidfd: OwnedFd) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.pidfd = Some(pidfd);
        }
    }

    pub(super) fn on_worker_failed(&mut self, id: u32, why: &str) {
        self.hear_server(id);
        if let Some((path, task)) = self.end_worker(id) {
            match task {
                Task::Remove => self.give_up(&path, why),
                Task::Fill { scratch } => self.on_filled(&path, scratch, Err(why.to_owned())),
                Task::Serve { of, told } => self.on_server_gone(of, told, why),
                // The thread has not ended before it has an answer.
                Task::Unpack { ended } => drop(ended.send(Ok(End::Killed))),
            }
        }
    }

    /// Forgets a worker, and ends it if it has not; its folder, and what it was there for.
    fn end_worker(&mut self, id: u32) -> Option<(PathBuf, Task)> {
        let mut worker = self.workers.remove(&id)?;
        if let Some(server) = worker.server.take() {
            self.end_server(server);
        }
        let (path, task) = (std::mem::take(&mut worker.path), std::mem::replace(&mut worker.task, Task::Remove));
        self.bury_worker(worker);
        Some((path, task))
    }

    pub(super) fn on_worker(&mut self, id: u32) {
        loop {
            let Some(worker) = self.workers.get_mut(&id) else { return };
            let received =
                worker.channel.flush().and_then(|()| worker.channel.receive::<FromContainer>(&mut self.buffer));
            match received {
                Ok(Received::Empty) => return,
                Ok(Received::Message(FromContainer::Started { .. }, _)) => worker.held = Vec::new(),
                Ok(Received::Message(FromContainer::Fuse, fds)) => {
                    let served = match (&worker.server, &fds[..]) {
                        (Some(server), [device]) => Self::serve(server, device),
                        _ => Err(Error::protocol("a worker has a file system that nobody serves")),
                    };
                    if let Err(error) = served {
                        return self.on_worker_failed(id, &error.to_string());
                    }
                }
                Ok(Received::Message(message, _)) if matches!(worker.task, Task::Unpack { .. }) => {
                    let end = match message {
                        FromContainer::Exited { id: MAIN, ended } => Ok(End::Ended(ended)),
                        FromContainer::Failed { failure, .. } => Ok(End::Failed(failure)),
                        FromContainer::Denied { reasons } => Err(Error::Denied { component: None, reasons }),
                        _ => continue,
                    };
                    if let Some((_, Task::Unpack { ended })) = self.end_worker(id) {
                        ended.send(end).ok();
                    }
                    return;
                }
                Ok(Received::Message(FromContainer::Exited { id: MAIN, ended }, _)) if ended.code() == 0 => {
                    self.hear_server(id);
                    return match self.end_worker(id) {
                        Some((path, Task::Remove)) => {
                            self.removing -= 1;
                            // What is left belongs to us.
                            self.remove(path, true);
                        }
                        Some((path, Task::Fill { scratch })) => self.on_filled(&path, scratch, Ok(())),
                        // Nothing is left that it served.
                        Some((_, Task::Serve { .. } | Task::Unpack { .. })) | None => {}
                    };
                }
                Ok(Received::Message(FromContainer::Failed { failure, .. }, _)) => {
                    return self.on_worker_failed(id, &shim::describe(&failure));
                }
                Ok(Received::Message(FromContainer::Denied { reasons }, _)) => {
                    return self.on_worker_failed(id, &reasons);
                }
                Ok(Received::Message(FromContainer::Exited { ended, .. }, _))
                    if matches!(worker.task, Task::Serve { .. }) =>
                {
                    return self.on_worker_failed(id, &format!("it ended with {}", ended.code()));
                }
                Ok(Received::Message(..)) => {
                    let mut words = [0; 1024];
                    let length =
                        worker.errors.as_ref().map_or(0, |errors| rustix::io::read(errors, &mut words).unwrap_or(0));
                    let why = String::from_utf8_lossy(&words[..length]).trim().to_owned();
                    return self.on_worker_failed(id, &why);
                }
                Ok(Received::End) => return self.on_worker_failed(id, "the worker was killed"),
                Err(error) => return self.on_worker_failed(id, &error.to_string()),
            }
        }
    }
}
