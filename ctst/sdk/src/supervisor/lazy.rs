//! Lazy images: for each root that is read from an archive there is a worker that serves it, in a container of its own, and a
//! descriptor of the archive, which a client has opened.

use std::os::fd::OwnedFd;
use std::path::Path;

use containust_image::Lazy;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::SocketType;
use rustix::process::{Signal, pidfd_send_signal};

use super::background::Archive;
use super::poller::Cid;
use super::retire::{Task, Worker};
use super::{Supervisor, say};
use crate::error::{During, Error, Result};
use crate::ipc::fdpass;
use crate::logs::Stream;
use crate::workers::server;

/// Archives that clients may have opened for one project.
const MAX_ARCHIVES: usize = 4096;
/// Longest word of a server's that is told.
const MAX_WORDS: usize = 4096;

/// Whose root a server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// A container's, of this launch.
    Container(Cid, u32),
    /// The worker's with this number.
    Worker(u32),
}

/// A server that was started, and waits for the device or has it.
#[derive(Debug)]
pub(super) struct Server {
    /// Number of the worker.
    worker: u32,
    /// Its standard input.
    socket: OwnedFd,
    archive: OwnedFd,
    index: OwnedFd,
    /// What is kept beside the index.
    data: OwnedFd,
}

impl Server {
    /// Number of its worker.
    pub(super) fn worker(&self) -> u32 {
        self.worker
    }
}

impl Supervisor {
    /// Takes an archive that a client has opened, by the digest of its index, and whether it is to be unpacked in the background.
    pub(super) fn take_archive(&mut self, index: String, file: OwnedFd, completes: bool) -> Result<()> {
        if self.archives.len() >= MAX_ARCHIVES && !self.archives.contains_key(&index) {
            return Err(Error::protocol("more archives than a project may have"));
        }
        let unpacked = self.archives.get(&index).and_then(|archive| archive.unpacked);
        // What failed is tried again.
        let waits = completes && unpacked.is_none_or(|unpacked| !unpacked.is_done());
        self.archives.insert(index, Archive { file, waits, unpacked });
        Ok(())
    }

    /// Lets go of archives that nothing is started from any more.
    pub(super) fn forget_archives(&mut self) {
        let containers = &self.containers;
        self.archives.retain(|index, _| {
            containers.values().any(|container| {
                let next = container.stop.as_ref().and_then(|stop| stop.then.wanted());
                let specs = next.map(|wanted| &wanted.spec).into_iter().chain([&container.record.spec]);
                specs.filter_map(|spec| spec.lazy.as_ref()).any(|lazy| lazy.index == *index)
            })
        });
    }

    /// Starts the server of an image with this index, which is ready when the device comes. `owner`: as of [`server::plan`].
    pub(super) fn start_server(
        &mut self,
        of: Of,
        lazy: &Lazy,
        index: &Path,
        owner: Option<(u32, u32)>,
    ) -> Result<Server> {
        let Some(archive) = self.archives.get(&lazy.index) else {
            let archive = lazy.archive.display();
            return Err(Error::Sandbox(format!(
                "read the archive {archive}: it is not open here any more; bring it up again: ctst run -d"
            )));
        };
        let what = || "copy a descriptor".to_owned();
        let archive = archive.file.try_clone().during(what)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |path: &Path| {
            rustix::fs::openat(CWD, path, flags, Mode::empty()).during(|| format!("open the index {}", path.display()))
        };
        let (index, data) = (open(index)?, open(&index.with_file_name("data"))?);
        let (socket, theirs) = fdpass::pair(SocketType::SEQPACKET).during(|| "make a socket pair".to_owned())?;
        let (plan, held) = server::plan(lazy, owner)?;
        let worker = self.start_worker(Path::new(""), Task::Serve { of, told: None }, (plan, held), Some(theirs))?;
        Ok(Server { worker, socket, archive, index, data })
    }

    /// Hands a server what it serves.
    pub(super) fn serve(server: &Server, device: &OwnedFd) -> Result<()> {
        use std::os::fd::AsFd;
        let fds = [device.as_fd(), server.archive.as_fd(), server.index.as_fd(), server.data.as_fd()];
        fdpass::send(&server.socket, &[0], &fds)
            .map(drop)
            .map_err(|e| Error::io("hand a file system to whoever serves it", e))
    }

    /// Ends a server. What still waits for its answers gets an error.
    pub(super) fn end_server(&mut self, server: Server) {
        if let Some(worker) = self.workers.remove(&server.worker) {
            self.bury_worker(worker);
        }
    }

    /// Ends what is left of a worker.
    pub(super) fn bury_worker(&mut self, worker: Worker) {
        let Worker { channel, token, errors, words, pidfd, .. } = worker;
        self.poller.remove(&channel, token);
        if let (Some(errors), Some(words)) = (errors, words) {
            self.poller.remove(&errors, words);
        }
        if let Some(pidfd) = pidfd {
            // It may have ended.
            pidfd_send_signal(pidfd, Signal::KILL).ok();
        }
    }

    /// Passes on what a server says.
    pub(super) fn hear_server(&mut self, id: u32) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let Task::Serve { of, told } = &mut worker.task else { return };
        let mut words = vec![0; MAX_WORDS];
        let length = worker.errors.as_ref().map_or(0, |errors| rustix::io::read(errors, &mut words[..]).unwrap_or(0));
        let words = String::from_utf8_lossy(&words[..length]).trim().escape_debug().to_string();
        if words.is_empty() {
            return;
        }
        let of = *of;
        *told = Some(words.clone());
        self.tell_of_image(of, &words);
    }

    /// What a server said last.
    pub(super) fn told_by(&self, worker: u32) -> Option<String> {
        match &self.workers.get(&worker)?.task {
            Task::Serve { told, .. } => told.clone(),
            Task::Remove | Task::Fill { .. } | Task::Unpack { .. } => None,
        }
    }

    /// A server ended, by itself or killed. What it had served gives errors from now on.
    pub(super) fn on_server_gone(&mut self, of: Of, told: Option<String>, why: &str) {
        let known = told.is_some();
        let why = told.unwrap_or_else(|| format!("the process that serves its image ended ({why})"));
        match of {
            Of::Worker(id) => self.on_worker_failed(id, &why),
            Of::Container(cid, launch) => {
                let Some(live) = self.containers.get_mut(&cid).and_then(|c| c.launch(launch)) else { return };
                live.server = None;
                if live.started.is_none() {
                    live.failure.get_or_insert_with(|| Error::Sandbox(why.clone()).report());
                    return self.kill(cid);
                }
                if !known {
                    let what = "files of the image that were not read before give errors; start it again: ctst restart";
                    self.tell_of_image(of, &format!("{why}: {what}"));
                }
            }
        }
    }

    /// Puts a line about its image where whoever looks after a container looks: into its log, and beside it in `ps`.
    fn tell_of_image(&mut self, of: Of, text: &str) {
        say(text);
        let Of::Container(cid, launch) = of else { return };
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let Some(live) = container.live.as_mut().filter(|live| live.id == launch && live.started.is_some()) else {
            return;
        };
        if let Err(error) = live.log.write(Stream::Err, format!("ctst: {text}\n").as_bytes()) {
            say(&format!("write a log: {error}"));
        }
        container.record.notes.push(text.to_owned());
        self.save(cid);
    }
}
