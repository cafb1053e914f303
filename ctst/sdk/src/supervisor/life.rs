//! From LAUNCH to the last process of a container.

use std::fs::Permissions;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Instant;

use containust_lang::model::{Attachment, Restart, When};
use containust_shared::exit;
use containust_shared::protocol::{Ended, Failure, FromContainer, MAIN, ToContainer};
use mio::Token;
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};

use super::container::{
    Asked, BACKOFF_MAX, BACKOFF_MIN, BACKOFF_RESET, Container, Exec, FIRST_STEPS, GRACE, Live, Stop, Then,
};
use super::egress::Way;
use super::lazy::{Of, Server};
use super::network::Place;
use super::poller::{Cid, Source, Timer};
use super::volume::Provided;
use super::{Supervisor, limits, network, say};
use crate::error::{During, Error, Report, Result};
use crate::event::EventKind;
use crate::host::cgroup::Group;
use crate::host::fuse;
use crate::host::ids::{Ids, Range};
use crate::host::places::Places;
use crate::ipc::Reply;
use crate::logs::{self, Stream};
use crate::project::now;
use crate::secrets::write_configs;
use crate::shim::{self, Channel, Received, describe};
use crate::status::{Health, HostPort, Published, State};

/// Bytes read from one container before others have their turn.
const OUTPUT_TURN: usize = 256 * 1024;
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// Whether a dependency lets its dependent start.
enum Dependency {
    Met,
    /// Not yet; and not after this.
    Pending(Option<Instant>),
    Failed(Report),
}

impl Supervisor {
    /// Starts and stops what can be, now.
    pub(super) fn advance(&mut self) {
        let cids: Vec<Cid> = self.containers.keys().copied().collect();
        for &cid in &cids {
            self.advance_stop(cid);
        }
        for cid in cids {
            let waiting = |c: &super::Container| c.record.state == State::Waiting && c.stop.is_none();
            if self.containers.get(&cid).is_some_and(waiting) {
                self.advance_start(cid);
            }
        }
    }

    fn advance_start(&mut self, cid: Cid) {
        if let Some(report) = self.broken.clone() {
            return self.fail(cid, report);
        }
        let way = self.way_for(cid);
        if let Way::Refused(report) = way {
            return self.fail(cid, report);
        }
        let Some(container) = self.containers.get(&cid) else { return };
        let mut deadline = None;
        let mut waits = false;
        for dependency in container.record.spec.after.clone() {
            // That waits for health only where there is a check after all.
            let when = if dependency.implied { When::Healthy } else { dependency.when };
            match self.dependency(&dependency.on, when, dependency.timeout) {
                Dependency::Met => {}
                Dependency::Failed(why) if dependency.optional => self.do_without(cid, dependency.on, why),
                Dependency::Pending(until) => {
                    waits = true;
                    deadline = deadline.into_iter().chain(until).min();
                }
                Dependency::Failed(report) => return self.fail(cid, report),
            }
        }
        if !waits {
            return match self.provide_folders(cid) {
                // It goes on when there is one.
                Provided::There if matches!(way, Way::Coming) => {}
                Provided::There => self.begin(cid),
                Provided::Coming => {}
                Provided::Failed(problem) => {
                    let Some(container) = self.containers.get(&cid) else { return };
                    let component = container.name().to_owned();
                    self.fail(cid, Error::Invalid { component, problem }.report());
                }
            };
        }
        let Some(container) = self.containers.get_mut(&cid) else { return };
        if deadline != container.look
            && let Some(deadline) = deadline
        {
            container.look = Some(deadline);
            self.poller.at(deadline, Timer::Look);
        }
    }

    fn do_without(&mut self, cid: Cid, on: String, why: Report) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        if !container.without.contains(&on) {
            container.without.push(on.clone());
            self.event(cid, EventKind::Without { on, why });
        }
    }

    fn dependency(&self, on: &str, when: When, timeout: std::time::Duration) -> Dependency {
        let failed = |message: String, exit: i32| {
            let help = Some(format!("see what it says: ctst logs {on}"));
            Dependency::Failed(Report { code: "S0503".to_owned(), message, help, exit })
        };
        let Some(container) = self.names.get(on).and_then(|cid| self.containers.get(cid)) else {
            return failed(format!("wait for {on}: it was not started"), exit::TOOL);
        };
        let record = &container.record;
        let probe = || match &record.last_probe {
            Some(output) => format!("; its last probe: {}", output.trim()),
            None => String::new(),
        };
        let healthy = when == When::Healthy && record.spec.healthcheck.is_some();
        let completed = when == When::Completed;
        match record.state {
            State::Completed => return Dependency::Met,
            State::Running if completed => {}
            State::Running if !healthy || record.health == Some(Health::Healthy) => return Dependency::Met,
            State::Running if record.health == Some(Health::Unhealthy) => {
                return failed(format!("wait for {on} to be healthy: it is unhealthy{}", probe()), exit::TOOL);
            }
            State::Exited if !healthy && !completed && container.was_up => return Dependency::Met,
            State::Exited => {
                let code = record.exit_code.unwrap_or_default();
                let until = if completed { " to complete" } else { "" };
                return failed(format!("wait for {on}{until}: it exited with {code}{}", probe()), exit::TOOL);
            }
            State::Failed => {
                let why = record.failure.as_ref().map_or("it failed", |report| report.message.as_str());
                return failed(format!("wait for {on}: {why}"), exit::TOOL);
            }
            State::Stopped | State::Dead | State::Unknown => {
                return failed(format!("wait for {on}: it was stopped"), exit::TOOL);
            }
            State::Stopping => {
                let again = container.stop.as_ref().is_some_and(|stop| matches!(stop.then, Then::Start { .. }));
                if !again {
                    return failed(format!("wait for {on}: it is being stopped"), exit::TOOL);
                }
                return Dependency::Pending(None);
            }
            State::Restarting if let Some(why) = container.hopeless() => {
                return failed(format!("wait for {on}: {why}{}", probe()), exit::TOOL);
            }
            State::Waiting | State::Starting | State::Running | State::Paused | State::Restarting => {}
        }
        let deadline = container.began.and_then(|began| began.checked_add(timeout));
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            let what = match when {
                When::Completed => "completed",
                When::Healthy if healthy => "healthy",
                When::Healthy | When::Started => "started",
            };
            return failed(format!("wait for {on}: not {what} within {timeout:?}{}", probe()), exit::TOOL);
        }
        Dependency::Pending(deadline)
    }

    /// Starts a container whose dependencies are up.
    pub(super) fn begin(&mut self, cid: Cid) {
        if let Some(container) = self.containers.get_mut(&cid) {
            container.began.get_or_insert_with(Instant::now);
            container.record.state = State::Starting;
        }
        self.event(cid, EventKind::Starting);
        if let Err(error) = self.try_begin(cid) {
            self.fail(cid, error.report());
        }
    }

    fn try_begin(&mut self, cid: Cid) -> Result<()> {
        let id = self.new_id();
        let mut group = self.make_group(cid, id)?;
        let begun = self.launch(cid, id, &mut group);
        if let Some(group) = group {
            self.remove_group(group);
        }
        begun
    }

    /// Takes the group once there is a launch for it.
    fn launch(&mut self, cid: Cid, id: u32, group: &mut Option<Group>) -> Result<()> {
        let Some(container) = self.containers.get_mut(&cid) else { return Ok(()) };
        let (bridges, addresses) = self.networks.links(&container.places);
        let on = container.record.spec.network.attachments().into_iter().zip(&container.places);
        let named =
            |(on, place): (Attachment, &Place)| place.ips().map(move |ip| (on.network.clone(), ip)).collect::<Vec<_>>();
        container.record.addresses = on.flat_map(named).collect();
        let addresses6 = self.networks.links6(&container.places);
        if self.ids.has_overlay() {
            prepare(&container.dir, &self.ids)?;
        }
        let spec = &container.record.spec;
        let ips: Vec<IpAddr> = container.places.iter().flat_map(Place::ips).collect();
        for (file, text) in [
            ("hostname", format!("{}\n", spec.hostname)),
            ("hosts", network::hosts(&ips, &spec.name, &spec.hostname, &spec.hosts)),
            ("resolv.conf", network::resolv_conf(&bridges, &spec.dns)),
        ] {
            write_in_place(&container.dir.join(file), &text)?;
        }
        if let [name, ..] = container.secrets.missing(spec.secret_names())[..] {
            let problem = format!("start it: its secret {name} is not known here; bring it up again: ctst run -d");
            return Err(Error::Invalid { component: spec.name.clone(), problem });
        }
        write_configs(&container.dir, &spec.configs, |path| own_by_root(path, &self.ids))?;
        container.alone =
            spec.alone(&self.ids).map_err(|problem| Error::Invalid { component: spec.name.clone(), problem })?;
        // Root's own folders are closed to containers, whose ids are others; a cover might be out of their reach too.
        let private = if matches!(self.ids, Ids::Root(_)) { Vec::new() } else { self.project.private_dirs() };
        let places = Places::new(private);
        let (mut plan, mut held) =
            spec.plan(&container.dir, self.ids.has_overlay(), addresses, container.alone, &places, &container.secrets)?;
        plan.addresses6 = addresses6;
        let mut defaults = vec![network::ping(self.ids.gids(container.alone))];
        if bridges.len() > 1 {
            defaults.extend(network::apart());
        }
        plan.sysctls.splice(0..0, defaults);
        let entry = match group {
            Some(group) => limits::show(group, spec, &mut plan, &mut held)?,
            None => None,
        };
        let grouped = group.is_some();
        let (ours, theirs) = shim::seqpacket()?;
        let mut channel = Channel::new(ours);
        let null: OwnedFd = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .during(|| "open /dev/null".to_owned())?
            .into();
        let (out, out_end) = log_pipe(&self.ids)?;
        let (err, err_end) = log_pipe(&self.ids)?;
        let log = logs::Writer::open(&container.dir, spec.log_limits())
            .during(|| format!("open the log in {}", container.dir.display()))?;
        let lazy = spec.lazy.clone().zip(spec.index());
        let alone = container.alone;
        // It gets ready while C builds the root up to there.
        let server = match lazy {
            Some((lazy, index)) => Some(self.start_server(Of::Container(cid, id), &lazy, &index, alone)?),
            None => None,
        };
        // The plan waits in the channel for C to come and read it, which saves a round.
        channel.send(&ToContainer::Plan(Box::new(plan)), vec![null, out_end, err_end])?;
        self.listen_names(&bridges)?;
        let Some(container) = self.containers.get_mut(&cid) else { return Ok(()) };
        self.sandbox.launch(id, bridges, container.alone, theirs, (grouped, entry))?;

        let what = || "watch a container".to_owned();
        let token = self.poller.add(&channel, Source::Channel(cid)).during(what)?;
        let out_token = self.poller.add_reader(&out, Source::Output(cid, Stream::Out)).during(what)?;
        let err_token = self.poller.add_reader(&err, Source::Output(cid, Stream::Err)).during(what)?;
        container.live = Some(Live {
            id,
            channel: Some((channel, token)),
            pidfd: None,
            output: [Some((out, out_token)), Some((err, err_token))],
            log,
            group: group.take(),
            refusals: None,
            held,
            server,
            started: None,
            ended: None,
            failure: None,
            asked: std::collections::VecDeque::new(),
            execs: std::collections::HashMap::new(),
            next_exec: 0,
        });
        self.launches.insert(id, cid);
        let record = &mut container.record;
        record.supervisor = self.own;
        record.ids = self.ids.to_string();
        (record.pid, record.exit_code, record.health, record.failure) = (None, None, None, None);
        record.group = container.live.as_ref().and_then(|live| Some(live.group.as_ref()?.dir().to_owned()));
        self.save(cid);
        self.watch_group(cid)
    }

    pub(super) fn on_launched(&mut self, id: u32, pidfd: OwnedFd) {
        if self.workers.contains_key(&id) {
            return self.on_worker_launched(id, pidfd);
        }
        let Some(&cid) = self.launches.get(&id) else { return };
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let Some(live) = container.live.as_mut().filter(|live| live.id == id) else { return };
        match self.poller.add_reader(&pidfd, Source::Pid(cid)) {
            Ok(token) => {
                if live.channel.is_none() {
                    // It was given up meanwhile.
                    pidfd_send_signal(&pidfd, Signal::KILL).ok();
                }
                let started = live.started.is_some();
                let pid = pid_of(&pidfd);
                live.pidfd = Some((pidfd, token));
                container.record.pid = pid;
                if started {
                    // C was faster than S in telling.
                    self.save(cid);
                }
            }
            Err(error) => {
                say(&format!("watch {}: {error}", container.record.spec.name));
                pidfd_send_signal(&pidfd, Signal::KILL).ok();
                self.on_gone(cid);
            }
        }
    }

    pub(super) fn on_launch_failed(&mut self, id: u32, failure: &Failure) {
        let report = Error::Sandbox(describe(failure)).report();
        if self.workers.contains_key(&id) {
            return self.on_worker_failed(id, &report.message);
        }
        let Some(&cid) = self.launches.get(&id) else { return };
        if let Some(live) = self.containers.get_mut(&cid).and_then(|c| c.launch(id)) {
            live.failure = Some(report);
            self.on_gone(cid);
        }
    }

    pub(super) fn on_channel(&mut self, cid: Cid) {
        loop {
            let Some(live) = self.containers.get_mut(&cid).and_then(|c| c.live.as_mut()) else { return };
            let Some((channel, token)) = &mut live.channel else { return };
            let received = channel.flush().and_then(|()| channel.receive::<FromContainer>(&mut self.buffer));
            match received {
                Ok(Received::Message(message, fds)) => self.on_message(cid, message, fds),
                Ok(Received::Empty) => return,
                end => {
                    if let Err(error) = end {
                        say(&format!("{error}"));
                    }
                    // C is gone or about to be; its pidfd tells when all of the container is.
                    self.poller.remove(channel, *token);
                    live.channel = None;
                    if let Some((pidfd, _)) = &live.pidfd {
                        pidfd_send_signal(pidfd, Signal::KILL).ok();
                    }
                    // A process that waits for its answer cannot end before it has one.
                    if let Some(server) = live.server.take() {
                        self.end_server(server);
                    }
                    return;
                }
            }
        }
    }

    fn on_message(&mut self, cid: Cid, message: FromContainer, fds: Vec<OwnedFd>) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let Some(live) = container.live.as_mut() else { return };
        match message {
            FromContainer::Started { id: MAIN, .. } => self.on_started(cid),
            FromContainer::Exited { id: MAIN, ended } => live.ended = Some(ended.code()),
            FromContainer::Fuse => {
                let served = match (&live.server, &fds[..]) {
                    (Some(server), [device]) => Self::serve(server, device),
                    _ => Err(Error::protocol("a container has a file system that nobody serves")),
                };
                if let Err(error) = served {
                    live.failure = Some(error.report());
                    self.kill(cid);
                }
            }
            FromContainer::Failed { id: MAIN, code, failure } => {
                // What serves its root says more than C, which has no answer from it.
                let server = live.server.as_ref().map(Server::worker);
                if let Some(server) = server {
                    self.hear_server(server);
                }
                let told = server.and_then(|server| self.told_by(server));
                let Some(container) = self.containers.get_mut(&cid) else { return };
                let Some(live) = container.live.as_mut() else { return };
                if let Some(told) = told {
                    let name = &container.record.spec.name;
                    live.failure = Some(Error::Sandbox(format!("start {name}: {told}")).report());
                    return;
                }
                live.failure = Some(start_failure(container.record.spec.name.as_str(), code, &failure));
            }
            FromContainer::Denied { reasons } => {
                let component = Some(container.record.spec.name.clone());
                live.failure = Some(Error::Denied { component, reasons }.report());
            }
            FromContainer::Started { id, .. } => {
                if let Some(Exec::Client(client)) = live.execs.get(&id).copied() {
                    self.tell(client, &Reply::ExecStarted, fds);
                }
            }
            FromContainer::Exited { id, ended } => match live.execs.remove(&id) {
                Some(Exec::Client(client)) => self.tell(client, &Reply::ExecEnded { code: ended.code() }, Vec::new()),
                Some(Exec::Probe(number)) => self.on_probe_exit(cid, number, Ok(ended)),
                None => {}
            },
            FromContainer::Failed { id, code, failure } => match live.execs.remove(&id) {
                Some(Exec::Client(client)) => {
                    let report = exec_failure(code, &failure);
                    self.tell(client, &Reply::Refused(report), Vec::new());
                }
                Some(Exec::Probe(number)) => self.on_probe_exit(cid, number, Err(describe(&failure))),
                None => {}
            },
            FromContainer::Stat { processes, resident, cpu_ms } => {
                if let Some(Asked::Stat(client)) = live.asked.pop_front() {
                    self.on_stat(cid, client, Some((processes, resident, cpu_ms)));
                }
            }
            FromContainer::Dialed => match live.asked.pop_front() {
                Some(Asked::Dial(number)) => self.on_probe_dialed(cid, number, Ok(fds)),
                Some(Asked::Sockets(client)) => self.on_sockets(cid, client, Ok(fds)),
                Some(Asked::Stat(_)) | None => {}
            },
            FromContainer::Refused(failure) => match live.asked.pop_front() {
                Some(Asked::Dial(number)) => self.on_probe_dialed(cid, number, Err(failure)),
                Some(Asked::Stat(client)) => self.on_stat(cid, client, None),
                Some(Asked::Sockets(client)) => self.on_sockets(cid, client, Err(describe(&failure))),
                None => {}
            },
        }
    }

    fn on_started(&mut self, cid: Cid) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let Some(live) = container.live.as_mut() else { return };
        live.started = Some(Instant::now());
        live.held = Vec::new();
        let launch = live.id;
        let record = &mut container.record;
        (record.started, record.finished) = (Some(now()), None);
        container.was_up = true;
        let stopping = container.stop.is_some();
        if !stopping {
            record.state = State::Running;
        }
        let checked = record.spec.healthcheck.is_some();
        record.health = checked.then_some(Health::Starting);
        container.check.restart();
        self.retarget(cid);
        self.event(cid, EventKind::Started);
        self.save(cid);
        match checked {
            true if !stopping => self.probe(cid, launch),
            true => {}
            false => self.poller.after(FIRST_STEPS, Timer::Look),
        }
        self.dirty = true;
    }

    pub(super) fn on_output(&mut self, cid: Cid, stream: Stream, token: Token) {
        if self.read_output(cid, stream, OUTPUT_TURN) {
            self.poller.again(token);
        }
    }

    /// Moves output to the log; `true`: there may be more.
    fn read_output(&mut self, cid: Cid, stream: Stream, turn: usize) -> bool {
        let Some(live) = self.containers.get_mut(&cid).and_then(|c| c.live.as_mut()) else { return false };
        let slot = &mut live.output[stream as usize];
        let mut total = 0;
        while let Some((pipe, token)) = slot {
            match rustix::io::read(&*pipe, &mut self.buffer[..]) {
                Ok(0) => {
                    self.poller.remove(pipe, *token);
                    *slot = None;
                }
                Ok(n) => {
                    if let Err(error) = live.log.write(stream, &self.buffer[..n]) {
                        say(&format!("write a log: {error}"));
                    }
                    total += n;
                    if total >= turn {
                        return true;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// The last process of a container is gone.
    pub(super) fn on_gone(&mut self, cid: Cid) {
        self.on_channel(cid);
        for stream in [Stream::Out, Stream::Err] {
            // What is there now and no more: it may have given its end of the pipe to who goes on writing.
            let live = self.containers.get(&cid).and_then(|c| c.live.as_ref());
            let pipe = live.and_then(|live| live.output[stream as usize].as_ref());
            let rest = pipe.and_then(|(pipe, _)| rustix::io::ioctl_fionread(pipe).ok()).unwrap_or(0);
            self.read_output(cid, stream, usize::try_from(rest).unwrap_or(OUTPUT_TURN));
        }
        let starved = self.starved(cid);
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let Some(mut live) = container.live.take() else { return };
        self.launches.remove(&live.id);
        let started = live.started;
        live.failure = starved.or(live.failure);
        let (ended, failure) = (live.ended, live.failure.clone());
        self.bury(cid, live);
        self.finish(cid, started, ended, failure);
    }

    /// Lets go of everything that belonged to the processes.
    fn bury(&mut self, cid: Cid, mut live: Live) {
        self.bury_group(cid, &mut live);
        let Live { channel, pidfd, output, log, asked, execs, server, .. } = live;
        if let Some(server) = server {
            self.end_server(server);
        }
        if let Some((channel, token)) = channel {
            self.poller.remove(&channel, token);
        }
        if let Some((pidfd, token)) = pidfd {
            self.poller.remove(&pidfd, token);
        }
        for (pipe, token) in output.into_iter().flatten() {
            self.poller.remove(&pipe, token);
        }
        if let Err(error) = log.close() {
            say(&format!("write a log: {error}"));
        }
        self.cancel_probe(cid);
        for exec in execs.into_values() {
            if let Exec::Client(client) = exec {
                let code = Ended::Signaled(SIGKILL).code();
                self.tell(client, &Reply::ExecEnded { code }, Vec::new());
            }
        }
        for asked in asked {
            match asked {
                Asked::Stat(client) => self.on_stat(cid, client, None),
                Asked::Sockets(client) => self.on_sockets(cid, client, Err("its container has ended".to_owned())),
                Asked::Dial(_) => {}
            }
        }
    }

    /// Decides what follows the end of a container's processes.
    fn finish(&mut self, cid: Cid, started: Option<Instant>, ended: Option<i32>, failure: Option<Report>) {
        self.dirty = true;
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let record = &mut container.record;
        (record.pid, record.health) = (None, None);
        record.addresses.clear();
        record.finished = Some(now());
        let code = started.map(|_| ended.unwrap_or_else(|| Ended::Signaled(SIGKILL).code()));
        record.exit_code = code;
        if let Some(stop) = container.stop.take() {
            record.state = State::Stopped;
            container.in_vain = 0;
            self.event(cid, EventKind::Stopped { code: ended });
            self.save_stopped(cid, &stop.then);
            return self.after_stop(cid, stop.then);
        }
        let Some(code) = code else {
            let report = failure.unwrap_or_else(|| {
                Error::Sandbox(format!("start {}: its container was killed", record.spec.name)).report()
            });
            return self.fail(cid, report);
        };
        container.result = code;
        container.record.failure = failure;
        self.event(cid, EventKind::Exited { code });
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let again = match container.record.spec.restart {
            Restart::Never => false,
            Restart::OnFailure => code != 0,
            // A job has reached its end with 0.
            Restart::Always | Restart::UnlessStopped => code != 0 || !container.record.spec.job,
        };
        if !again || self.broken.is_some() || !self.sandbox.lives() {
            let completed = container.record.spec.job && code == 0;
            container.record.state = if completed { State::Completed } else { State::Exited };
            self.withdraw(cid);
            return self.save(cid);
        }
        if started.is_some_and(|started| started.elapsed() >= BACKOFF_RESET) {
            container.backoff = BACKOFF_MIN;
            if container.record.spec.healthcheck.is_none() {
                container.in_vain = 0;
            }
        }
        container.in_vain += 1;
        let pause = container.backoff;
        container.backoff = (pause * 2).min(BACKOFF_MAX);
        container.record.state = State::Restarting;
        container.record.restarts += 1;
        let count = container.record.restarts;
        self.retarget(cid);
        self.event(cid, EventKind::Restarting { after: pause, count });
        self.save(cid);
        self.poller.after(pause, Timer::Restart(cid, count));
    }

    pub(super) fn on_restart(&mut self, cid: Cid, count: u32) {
        let due = |c: &super::Container| c.record.state == State::Restarting && c.record.restarts == count;
        if self.containers.get(&cid).is_some_and(due) {
            self.begin(cid);
        }
    }

    /// A container cannot be started.
    pub(super) fn fail(&mut self, cid: Cid, report: Report) {
        self.dirty = true;
        if let Some(live) = self.containers.get_mut(&cid).and_then(|c| c.live.take()) {
            self.launches.remove(&live.id);
            self.bury(cid, live);
        }
        let Some(container) = self.containers.get_mut(&cid) else { return };
        container.record.state = State::Failed;
        container.record.failure = Some(report.clone());
        container.result = report.exit;
        let stop = container.stop.take();
        self.withdraw_but(cid, stop.as_ref().map_or(&[], |stop| stop.then.published()));
        self.event(cid, EventKind::Failed(report));
        self.save(cid);
        if let Some(stop) = stop {
            self.after_stop(cid, stop.then);
        }
    }

    /// The sandbox is gone, and the container with it.
    pub(super) fn on_swept_away(&mut self, cid: Cid, report: &Report) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        if let Some(live) = &mut container.live {
            live.failure.get_or_insert_with(|| report.clone());
            return self.on_gone(cid);
        }
        match container.record.state {
            State::Waiting | State::Starting => self.fail(cid, report.clone()),
            State::Restarting => {
                container.record.state = State::Exited;
                self.withdraw(cid);
                self.save(cid);
            }
            _ => {}
        }
    }

    /// Asks a container to stop, once nothing that depends on it is left of those that stop too.
    ///
    /// `grace`: from asking to SIGKILL, instead of what the component says.
    pub(super) fn request_stop(&mut self, cid: Cid, grace: Option<std::time::Duration>, then: Then) {
        self.dirty = true;
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let grace = grace.or(container.record.spec.stop.grace).unwrap_or(GRACE);
        if container.live.is_none() {
            if container.record.state.is_live() {
                container.record.state = State::Stopped;
                self.withdraw_but(cid, then.published());
                self.event(cid, EventKind::Stopped { code: None });
                self.save_stopped(cid, &then);
            }
            return self.after_stop(cid, then);
        }
        let published = then.published().to_vec();
        if let Some(stop) = &mut container.stop {
            // The later wish counts; a shorter grace too, also when the first has begun.
            stop.then = then;
            if stop.begun && grace < stop.grace {
                stop.grace = grace;
                self.arm(cid, grace);
            }
            return self.withdraw_but(cid, &published);
        }
        container.stop = Some(Stop { grace, begun: false, then });
        self.thaw(cid);
        let Some(container) = self.containers.get_mut(&cid) else { return };
        container.record.state = State::Stopping;
        self.event(cid, EventKind::Stopping { grace });
        self.withdraw_but(cid, &published);
        self.save(cid);
    }

    fn advance_stop(&mut self, cid: Cid) {
        let Some(container) = self.containers.get(&cid) else { return };
        if container.stop.as_ref().is_none_or(|stop| stop.begun) {
            return;
        }
        let name = container.name();
        let blocked = self.containers.values().any(|other| {
            other.stop.is_some() && other.live.is_some() && other.record.spec.after.iter().any(|d| d.on == name)
        });
        if blocked {
            return;
        }
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let (Some(stop), Some(live)) = (&mut container.stop, &mut container.live) else { return };
        stop.begun = true;
        let grace = stop.grace;
        let signal = container.record.spec.stop.signal.unwrap_or(SIGTERM);
        match &mut live.channel {
            Some((channel, _)) if live.started.is_some() && !grace.is_zero() => {
                if let Err(error) = channel.send(&ToContainer::Signal { id: MAIN, signal }, Vec::new()) {
                    say(&format!("{error}"));
                }
                self.arm(cid, grace);
            }
            _ => self.kill(cid),
        }
    }

    fn arm(&mut self, cid: Cid, grace: std::time::Duration) {
        if let Some(live) = self.containers.get(&cid).and_then(|c| c.live.as_ref()) {
            self.poller.after(grace, Timer::Kill(cid, live.id));
        }
    }

    /// Ends the containers of which this holds, because of that.
    pub(super) fn give_up_on(&mut self, report: &Report, are: impl Fn(&Container) -> bool) {
        let doomed = self.containers.iter_mut().filter(|(_, container)| are(container));
        let doomed: Vec<Cid> = doomed
            .filter_map(|(cid, container)| {
                container.live.as_mut()?.failure.get_or_insert_with(|| report.clone());
                Some(*cid)
            })
            .collect();
        for cid in doomed {
            self.kill(cid);
        }
    }

    /// Ends a container at once. What is left of it is told by its pidfd.
    pub(super) fn kill(&mut self, cid: Cid) {
        self.kill_group(cid);
        let Some(live) = self.containers.get_mut(&cid).and_then(|c| c.live.as_mut()) else { return };
        if let Some((channel, token)) = live.channel.take() {
            self.poller.remove(&channel, token);
        }
        if let Some((pidfd, _)) = &live.pidfd {
            // It may have ended by itself.
            pidfd_send_signal(pidfd, Signal::KILL).ok();
        }
        if let Some(server) = live.server.take() {
            self.end_server(server);
        }
    }

    /// Ends a container that has stopped reading what it is asked.
    pub(super) fn check_stuck(&mut self, cid: Cid) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let Some(live) = container.live.as_mut() else { return };
        let paused = container.record.state == State::Paused;
        if paused || !live.channel.as_ref().is_some_and(|(channel, _)| channel.is_stuck()) {
            return;
        }
        let name = &container.record.spec.name;
        let error = Error::Sandbox(format!("ask {name}: its pid 1 answers nothing any more; it is killed"));
        say(&format!("{error}"));
        let report = error.report();
        live.failure = Some(report.clone());
        self.event(cid, EventKind::Failed(report));
        self.kill(cid);
    }

    fn after_stop(&mut self, cid: Cid, then: Then) {
        match then {
            Then::Rest => {}
            Then::Remove => self.discard(cid),
            Then::Start { wanted, anew } => {
                if let Err(error) = self.adopt(cid, *wanted, anew) {
                    self.fail(cid, error.report());
                }
            }
        }
    }

    /// Points the container's published ports to where it is now, or nowhere.
    pub(super) fn retarget(&mut self, cid: Cid) {
        for key in self.ports.iter().filter(|(_, port)| port.is_of(cid)).map(|(key, _)| *key) {
            self.aim(key);
        }
    }

    /// Ends publishing the container's ports.
    pub(super) fn withdraw(&mut self, cid: Cid) {
        self.withdraw_but(cid, &[]);
    }

    /// The same without those that its next start has, too: they lead nowhere until then. Nobody can take them meanwhile, and one
    /// that this process could not bind again is not lost.
    fn withdraw_but(&mut self, cid: Cid, stay: &[Published]) {
        let stays = |key: &HostPort| stay.iter().any(|port| port.on_host() == *key);
        let own = self.ports.iter().filter(|(_, port)| port.is_of(cid)).map(|(key, _)| *key);
        for key in own.filter(|key| !stays(key)).collect::<Vec<_>>() {
            self.disown(key, cid);
        }
        self.retarget(cid);
        if let Some(container) = self.containers.get_mut(&cid) {
            container.record.published.retain(|port| stays(&port.on_host()));
        }
    }

    /// The same of one that has stopped. What is started again keeps its names meanwhile.
    fn save_stopped(&mut self, cid: Cid, then: &Then) {
        match then.wanted() {
            Some(_) => self.write(cid),
            None => self.save(cid),
        }
    }

    /// Writes a container's record. Failing to is not a reason to stop anything: `ps` asks who lives.
    pub(super) fn save(&mut self, cid: Cid) {
        // Whatever is to be known of it goes through here.
        self.tell_names(cid);
        self.write(cid);
    }

    fn write(&mut self, cid: Cid) {
        if self.lost {
            return;
        }
        if let Some(container) = self.containers.get_mut(&cid) {
            container.unsaved = false;
            if let Err(error) = container.record.write(&container.dir) {
                say(&format!("{error}"));
                self.guard();
            }
        }
    }
}

/// The folders that an overlay needs. Of root's containers they belong to root inside.
pub(crate) fn prepare(dir: &Path, ids: &Ids) -> Result<()> {
    for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
        let path = dir.join(name);
        match std::fs::DirBuilder::new().mode(mode).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            result => result.during(|| format!("create {}", path.display()))?,
        }
        let what = || format!("set up {}", path.display());
        // The caller's umask must not decide what is readable inside.
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).during(what)?;
        own_by_root(&path, ids)?;
    }
    Ok(())
}

/// Gives to root inside what the caller made, where these are two.
pub(crate) fn own_by_root(path: &Path, ids: &Ids) -> Result<()> {
    match ids {
        Ids::Root(Range { first, .. }) => {
            chown(path, Some(*first), Some(*first)).during(|| format!("set up {}", path.display()))
        }
        Ids::Single(_) | Ids::Helper { .. } | Ids::Strict { .. } => Ok(()),
    }
}

/// Writes a file without a moment in which it is empty, and without giving it a new inode.
fn write_in_place(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let what = || format!("write {}", path.display());
    // A container may hold a lease on it (fcntl(2)), for whose end nobody waits.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = std::fs::File::options();
    let file = options.create(true).truncate(false).write(true).custom_flags(flags).open(path).during(what)?;
    file.set_permissions(Permissions::from_mode(0o644)).during(what)?;
    file.write_all_at(text.as_bytes(), 0).during(what)?;
    file.set_len(text.len() as u64).during(what)
}

/// A pipe of which our end does not wait.
pub(super) fn log_pipe(ids: &Ids) -> Result<(OwnedFd, OwnedFd)> {
    let what = || "make a pipe".to_owned();
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).during(what)?;
    ids.give_pipe(&theirs).during(what)?;
    rustix::fs::fcntl_setfl(&ours, OFlags::NONBLOCK).during(what)?;
    Ok((ours, theirs))
}

/// The pid behind a pidfd, in our pid namespace (`pidfd_open(2)`, `proc_pid_fdinfo(5)`).
pub(super) fn pid_of(pidfd: &OwnedFd) -> Option<u32> {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}

fn start_failure(name: &str, code: i32, failure: &Failure) -> Report {
    Report {
        code: failure_code(code),
        message: format!("start {name}: {}", describe(failure)),
        help: match code {
            exit::NOT_FOUND => Some("correct its command, or put the program into its image".to_owned()),
            exit::NOT_EXECUTABLE => {
                Some("make it executable in the image (chmod +x), and see that its interpreter is there".to_owned())
            }
            _ if failure.subject == fuse::DEVICE.as_bytes() => {
                let problem = fuse::problem().map(|problem| problem.to_string());
                Some(problem.unwrap_or_else(|| "load the kernel's module: sudo modprobe fuse".to_owned()))
            }
            _ => stranger_help(failure),
        },
        exit: code,
    }
}

fn exec_failure(code: i32, failure: &Failure) -> Report {
    Report { code: failure_code(code), message: describe(failure), help: stranger_help(failure), exit: code }
}

/// Where the container's files do not know a user or a group.
fn stranger_help(failure: &Failure) -> Option<String> {
    let file = ["/etc/passwd", "/etc/group"].into_iter().find(|file| failure.step.contains(file))?;
    Some(format!("add it to {file} of the image, or name its number, such as 1000:1000"))
}

fn failure_code(code: i32) -> String {
    match code {
        exit::NOT_FOUND => "S0404",
        exit::NOT_EXECUTABLE => "S0403",
        _ => "S0405",
    }
    .to_owned()
}
