//! What the loop waits for: descriptors and times.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::logs::Stream;

/// Number of a container, for the supervisor's life.
pub(super) type Cid = u32;

/// Where an event came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Signals,
    Wake,
    Listener,
    Forwarder,
    /// The sandbox channel.
    Shim,
    /// The pidfd of the project's pid 1.
    Init,
    /// The pidfd of newuidmap or newgidmap.
    Mapper(usize),
    Client(u64),
    /// A container's channel.
    Channel(Cid),
    /// The pidfd of a container's pid 1.
    Pid(Cid),
    Output(Cid, Stream),
    /// The socket of a probe under way.
    Probe(Cid),
    /// What a probe's command writes.
    ProbeOutput(Cid),
    /// A worker's channel.
    Worker(u32),
    /// What a worker says that serves an image.
    Words(u32),
    /// What a container's cgroup refuses.
    Group(Cid),
    /// The process that carries what leaves the project.
    Egress,
}

/// What is due at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// Look at what waits.
    Look,
    /// See whether the project's state folder is still there.
    Guard,
    /// The grace of a stop is over, for this launch.
    Kill(Cid, u32),
    /// Start it again, if it still waits for this restart.
    Restart(Cid, u32),
    /// Probe its health, for this launch, if that of this number was the last probe.
    Probe(Cid, u32, u64),
    /// The probe with this number took too long.
    ProbeTimeout(Cid, u64),
}

/// What the loop has to do.
pub(super) struct News {
    pub(super) happened: Vec<(Token, Source)>,
    pub(super) due: Vec<Timer>,
}

#[derive(Debug)]
pub(super) struct Poller {
    poll: Poll,
    events: Events,
    sources: HashMap<Token, Source>,
    next: usize,
    timers: BTreeMap<(Instant, u64), Timer>,
    timer: u64,
    /// What was left half-read so that others have their turn: events are edge-triggered.
    again: Vec<Token>,
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(256),
            sources: HashMap::new(),
            next: 0,
            timers: BTreeMap::new(),
            timer: 0,
            again: Vec::new(),
        })
    }

    /// A waker, which needs no registration of a descriptor.
    pub(super) fn waker(&mut self) -> io::Result<mio::Waker> {
        let token = self.token(Source::Wake);
        mio::Waker::new(self.poll.registry(), token)
    }

    fn token(&mut self, source: Source) -> Token {
        self.next += 1;
        let token = Token(self.next);
        self.sources.insert(token, source);
        token
    }

    /// Waits for `fd` to be readable, or writable after it was not.
    pub(super) fn add(&mut self, fd: &impl AsFd, source: Source) -> io::Result<Token> {
        self.add_for(fd, source, Interest::READABLE | Interest::WRITABLE)
    }

    /// The same for reading only, which is all that a pidfd, a signalfd or the end of a pipe can do.
    pub(super) fn add_reader(&mut self, fd: &impl AsFd, source: Source) -> io::Result<Token> {
        self.add_for(fd, source, Interest::READABLE)
    }

    /// Waits for a file of a cgroup to change, which is told as POLLPRI.
    pub(super) fn add_priority(&mut self, fd: &impl AsFd, source: Source) -> io::Result<Token> {
        self.add_for(fd, source, Interest::PRIORITY)
    }

    fn add_for(&mut self, fd: &impl AsFd, source: Source, interest: Interest) -> io::Result<Token> {
        let token = self.token(source);
        let registered = self.poll.registry().register(&mut SourceFd(&fd.as_fd().as_raw_fd()), token, interest);
        if registered.is_err() {
            self.sources.remove(&token);
        }
        registered.map(|()| token)
    }

    /// To be called before `fd` is closed: a descriptor whose description lives on elsewhere would go on telling.
    pub(super) fn remove(&mut self, fd: &impl AsFd, token: Token) {
        if self.sources.remove(&token).is_some() {
            // It was registered, so that this cannot fail.
            self.poll.registry().deregister(&mut SourceFd(&fd.as_fd().as_raw_fd())).ok();
        }
    }

    /// Tells of this source again after all others.
    pub(super) fn again(&mut self, token: Token) {
        self.again.push(token);
    }

    pub(super) fn at(&mut self, when: Instant, timer: Timer) {
        self.timer += 1;
        self.timers.insert((when, self.timer), timer);
    }

    pub(super) fn after(&mut self, pause: Duration, timer: Timer) {
        // Beyond what an Instant can hold is never.
        if let Some(when) = Instant::now().checked_add(pause) {
            self.at(when, timer);
        }
    }

    /// Waits until something happens.
    pub(super) fn wait(&mut self) -> io::Result<News> {
        let timeout = if self.again.is_empty() {
            let next = self.timers.keys().next().map(|(when, _)| *when);
            next.map(|when| when.saturating_duration_since(Instant::now()))
        } else {
            Some(Duration::ZERO)
        };
        match self.poll.poll(&mut self.events, timeout) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let mut tokens: Vec<Token> = self.events.iter().map(mio::event::Event::token).collect();
        tokens.append(&mut self.again);
        let happened = tokens.into_iter().filter_map(|t| self.sources.get(&t).map(|s| (t, *s))).collect();
        let now = Instant::now();
        let mut due = Vec::new();
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now
        {
            due.push(entry.remove());
        }
        Ok(News { happened, due })
    }

    /// Whether the source is still there: what was handled before it may have closed it.
    pub(super) fn holds(&self, token: Token) -> bool {
        self.sources.contains_key(&token)
    }
}
