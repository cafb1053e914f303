//! Archives that containers are read from are unpacked while they run, for the next ones: one at a time, once everything is up, by a
//! worker like that of an import. What it made is kept by a thread, which waits for it.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use containust_image::{Error as ImageError, How, Lazy, Progress, Request, Source};
use containust_shared::protocol::Plan;
use mio::Waker;

use super::retire::Task;
use super::{Supervisor, say};
use crate::error::{During, Result};
use crate::event::EventKind;
use crate::host::confine;
use crate::host::ids::Ids;
use crate::project::Project;
use crate::status::{Health, State, Unpacked};
use crate::workers::unpacker::Unpacker;
use crate::workers::workshop::End;

/// How long everything has to be up before: what ends again soon is not worth it.
const PAUSE: Duration = Duration::from_secs(3);

/// An archive that a client has opened.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) file: OwnedFd,
    /// Whether it is still to be unpacked.
    pub(super) waits: bool,
    /// How much of it is.
    pub(super) unpacked: Option<Unpacked>,
}

/// What the thread tells.
#[derive(Debug)]
pub(super) enum News {
    /// It wants a worker.
    Launch {
        plan: Box<Plan>,
        held: Vec<OwnedFd>,
        streams: [OwnedFd; 3],
        /// It unpacks; others clean up.
        unpacks: bool,
        ended: Sender<Result<End>>,
    },
    Progress(Unpacked),
    /// Nothing follows. `false`: it was told to stop.
    Over(Result<bool, ImageError>),
}

/// The one archive that is being unpacked.
#[derive(Debug)]
struct Current {
    index: String,
    stopped: Arc<AtomicBool>,
    /// Number of the worker that unpacks.
    worker: Option<u32>,
    is_told: bool,
}

#[derive(Debug)]
pub(super) struct Background {
    current: Option<Current>,
    /// Since when everything is up.
    quiet: Option<Instant>,
    sender: Sender<News>,
    news: Receiver<News>,
}

impl Default for Background {
    fn default() -> Self {
        let (sender, news) = channel();
        Self { current: None, quiet: None, sender, news }
    }
}

impl Background {
    pub(super) fn is_idle(&self) -> bool {
        self.current.is_none()
    }
}

impl Supervisor {
    /// Begins to unpack an archive where it is time to, and stops where nobody runs from it any more.
    pub(super) fn tend_archives(&mut self) {
        self.show_unpacked();
        let running = self.containers.values().filter(|container| container.is_running());
        let read: HashSet<&str> =
            running.filter_map(|container| Some(container.record.spec.lazy.as_ref()?.index.as_str())).collect();
        if let Some(current) = &self.background.current {
            let is_read = self.containers.values().any(|container| {
                let index = container.record.spec.lazy.as_ref().map(|lazy| &lazy.index);
                container.is_active() && index == Some(&current.index)
            });
            if !is_read {
                self.stop_unpacking();
            }
            return;
        }
        let waiting = self.archives.iter().find(|(index, archive)| archive.waits && read.contains(index.as_str()));
        let Some(index) = waiting.map(|(index, _)| index.clone()).filter(|_| self.is_everything_up()) else {
            self.background.quiet = None;
            return;
        };
        match self.background.quiet {
            None => {
                self.background.quiet = Some(Instant::now());
                self.poller.after(PAUSE, super::Timer::Look);
            }
            Some(since) if since.elapsed() >= PAUSE => {
                self.background.quiet = None;
                if let Err(error) = self.start_unpacking(&index) {
                    self.on_unpacked(&index, Err(error.to_string()));
                }
            }
            Some(_) => {}
        }
    }

    fn is_everything_up(&self) -> bool {
        let moves = |state| matches!(state, State::Waiting | State::Starting | State::Stopping | State::Restarting);
        self.containers
            .values()
            .all(|container| !moves(container.record.state) && container.record.health != Some(Health::Starting))
    }

    fn start_unpacking(&mut self, index: &str) -> Result<()> {
        let specs = self.containers.values().filter_map(|container| container.record.spec.lazy.as_ref());
        let lazy = specs.clone().find(|lazy| lazy.index == index).cloned();
        let (Some(lazy), Some(archive)) = (lazy, self.archives.get(index)) else { return Ok(()) };
        let archive = archive.file.try_clone().during(|| "copy a descriptor".to_owned())?;
        let waker = match &self.waker {
            Some(waker) => Arc::clone(waker),
            None => Arc::clone(self.waker.insert(Arc::new(self.poller.waker().during(|| "make a waker".to_owned())?))),
        };
        let stopped = Arc::new(AtomicBool::new(false));
        let work = Unpacking {
            project: self.project.clone(),
            ids: self.ids.clone(),
            lazy,
            archive,
            stopped: Arc::clone(&stopped),
            teller: Teller { sender: self.background.sender.clone(), waker },
        };
        let store = self.project.state_dir().join("images");
        confine::on_store("unpack", &store, move || work.run()).during(|| "start a thread".to_owned())?;
        self.background.current = Some(Current { index: index.to_owned(), stopped, worker: None, is_told: false });
        Ok(())
    }

    /// Ends it. What was made of it is removed before [`News::Over`] comes.
    pub(super) fn stop_unpacking(&mut self) {
        let Some(current) = &mut self.background.current else { return };
        if !current.stopped.swap(true, Ordering::Relaxed)
            && let Some(worker) = current.worker.take()
        {
            self.on_worker_failed(worker, "nobody needs it any more");
        }
    }

    pub(super) fn on_background(&mut self) {
        while let Ok(news) = self.background.news.try_recv() {
            let Some(current) = &mut self.background.current else { return };
            let index = current.index.clone();
            let is_stopped = current.stopped.load(Ordering::Relaxed);
            match news {
                // Between the thread's last look and this.
                News::Launch { unpacks: true, ended, .. } if is_stopped => drop(ended.send(Ok(End::Killed))),
                News::Launch { plan, held, streams, unpacks, ended } => {
                    let is_new = unpacks && !std::mem::replace(&mut current.is_told, true);
                    let task = Task::Unpack { ended: ended.clone() };
                    match self.launch_worker(task, (*plan, held), streams) {
                        Ok(worker) => {
                            if let Some(current) = self.background.current.as_mut().filter(|_| unpacks) {
                                current.worker = Some(worker);
                            }
                        }
                        // Whoever asked has not ended before he has an answer.
                        Err(error) => drop(ended.send(Err(error))),
                    }
                    if is_new {
                        self.tell_readers(&index, &EventKind::Unpacking);
                    }
                }
                News::Progress(unpacked) => self.note_unpacked(&index, Some(unpacked)),
                News::Over(result) => {
                    self.background.current = None;
                    self.dirty = true;
                    match result {
                        Ok(true) => self.on_unpacked(&index, Ok(())),
                        Ok(false) => self.note_unpacked(&index, None),
                        // Its worker was killed for that.
                        Err(_) if is_stopped => self.note_unpacked(&index, None),
                        Err(error) => self.on_unpacked(&index, Err(error.to_string())),
                    }
                }
            }
        }
    }

    fn on_unpacked(&mut self, index: &str, result: Result<(), String>) {
        if let Some(archive) = self.archives.get_mut(index) {
            archive.waits = false;
        }
        match result {
            Ok(()) => {
                let total = self.archives.get(index).map_or(0, |archive| {
                    rustix::fs::fstat(&archive.file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
                });
                self.note_unpacked(index, Some(Unpacked { done_bytes: total, total_bytes: total }));
                self.tell_readers(index, &EventKind::Unpacked);
            }
            Err(why) => {
                say(&why);
                self.note_unpacked(index, None);
                self.tell_readers(index, &EventKind::NotUnpacked { why });
            }
        }
    }

    fn note_unpacked(&mut self, index: &str, unpacked: Option<Unpacked>) {
        if let Some(archive) = self.archives.get_mut(index) {
            archive.unpacked = unpacked;
            self.show_unpacked();
        }
    }

    /// Has it in the records, for `ps`.
    fn show_unpacked(&mut self) {
        let of = |container: &super::Container| {
            let lazy = container.record.spec.lazy.as_ref()?;
            self.archives.get(&lazy.index).map(|archive| archive.unpacked)
        };
        let differ: Vec<_> = self
            .containers
            .iter()
            .filter_map(|(cid, container)| Some((*cid, of(container)?)))
            .filter(|(cid, unpacked)| self.containers[cid].record.unpacked != *unpacked)
            .collect();
        for (cid, unpacked) in differ {
            if let Some(container) = self.containers.get_mut(&cid) {
                container.record.unpacked = unpacked;
            }
            self.save(cid);
        }
    }

    /// Tells of the containers that read from an archive.
    fn tell_readers(&mut self, index: &str, kind: &EventKind) {
        let reads = |container: &super::Container| {
            container.is_active() && container.record.spec.lazy.as_ref().is_some_and(|lazy| lazy.index == index)
        };
        let cids: Vec<_> = self.containers.iter().filter(|(_, c)| reads(c)).map(|(cid, _)| *cid).collect();
        for cid in cids {
            self.event(cid, kind.clone());
        }
    }
}

/// How the thread is heard.
#[derive(Clone)]
struct Teller {
    sender: Sender<News>,
    waker: Arc<Waker>,
}

impl Teller {
    fn tell(&self, news: News) {
        // The receiver lives as long as the supervisor; after it there is nobody to tell.
        self.sender.send(news).ok();
        self.waker.wake().ok();
    }
}

/// What the thread does.
struct Unpacking {
    project: Project,
    ids: Ids,
    lazy: Lazy,
    archive: OwnedFd,
    stopped: Arc<AtomicBool>,
    teller: Teller,
}

impl Unpacking {
    fn run(self) {
        let launcher = self.teller.clone();
        let launch = move |plan, held, streams, unpacks| {
            let (ended, end) = channel();
            launcher.tell(News::Launch { plan: Box::new(plan), held, streams, unpacks, ended });
            Ok(end)
        };
        let unpacker = Unpacker::in_background(&self.ids, Box::new(launch));
        let ownership = self.ids.archive_ownership();
        let request = Request { source: Source::Lazy(self.lazy.archive.clone()), ownership, pin: None };
        let how = How { runner: &unpacker, ..How::default() };
        let mut last = None;
        let mut progress = |progress| {
            let Progress::Copying { bytes_done, bytes_total, .. } = progress else { return };
            // All of it is not there before it has its place.
            let unpacked =
                Unpacked { done_bytes: bytes_done.min(bytes_total.saturating_sub(1)), total_bytes: bytes_total };
            if last.replace(unpacked.percent()) != Some(unpacked.percent()) {
                self.teller.tell(News::Progress(unpacked));
            }
        };
        let goes_on = || !self.stopped.load(Ordering::Relaxed);
        let result = self.project.store().complete(&request, &self.lazy, &self.archive, how, &goes_on, &mut progress);
        self.teller.tell(News::Over(result));
    }
}
