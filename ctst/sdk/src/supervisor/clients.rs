//! Connections of `ctst` to the supervisor.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use containust_lang::model::Protocol;
use containust_shared::exit;
use containust_shared::protocol::{MAX_FDS, ToContainer};
use mio::Token;
use rustix::fs::OFlags;
use rustix::net::{SocketType, sockopt};

use super::container::{Asked, Container, Exec, Then};
use super::poller::{Cid, Source};
use super::retire::Worker;
use super::{Given, Supervisor, say};
use crate::doctor_net::Outlook;
use crate::error::{During, Error, Report, Result};
use crate::ipc::peer;
use crate::ipc::{Connection, Hello, Incoming, Reply, Request};
use crate::projects::Served;
use crate::run::ExecRequest;
use crate::spec::set;
use crate::status::{HostPort, State, Stats};

/// Connections of one user at one time.
const MAX_CLIENTS: usize = 1024;
/// Frames of one client before others have their turn.
const TURN: usize = 64;
/// Ports that a client may have bound at one time: those that ctst-port is for, on a few addresses.
const MAX_PORTS: usize = 4096;
const SIGHUP: i32 = 1;
/// The client that the supervisor was started for.
const FIRST: u64 = 0;

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: Connection,
    token: Token,
    greeted: bool,
    /// It said that a run follows, for which we stay.
    pub(super) expected: bool,
    /// It is sent events.
    pub(super) attached: bool,
    /// What its run wanted, until that is reached.
    settling: Option<(Vec<Cid>, bool)>,
    /// What its run is about: when they have ended, so has the run.
    own: Option<Vec<Cid>>,
    /// That was told.
    ended: bool,
    /// The launches that its stop wanted gone, until they are, whatever others start meanwhile; and whether it named nothing.
    stopping: Option<(Vec<(Cid, u32)>, bool)>,
    /// Ports that it had bound for its run.
    given: Given,
    /// It waits until all removals are done.
    removing: bool,
    /// Its process: container, launch, exec.
    exec: Option<(Cid, u32, u32)>,
    /// Containers still to answer, and the answers.
    stats: Option<(usize, Vec<(Cid, Stats)>)>,
}

/// A socket that a client had bound, made sure that it is what it is for and that nobody waits for it.
fn bound(socket: OwnedFd, port: HostPort) -> Result<OwnedFd> {
    let what = || "look at a port's socket".to_owned();
    let bound = rustix::net::getsockname(&socket).during(what)?;
    let fits = match port.protocol {
        Protocol::Tcp => sockopt::socket_acceptconn(&socket).during(what)?,
        Protocol::Udp => sockopt::socket_type(&socket).during(what)? == SocketType::DGRAM,
    };
    if !fits || SocketAddr::try_from(bound).ok() != Some(port.place) {
        return Err(Error::protocol(format!("not a socket for {port}")));
    }
    rustix::fs::fcntl_setfl(&socket, OFlags::NONBLOCK).during(what)?;
    Ok(socket)
}

impl Supervisor {
    pub(super) fn on_listener(&mut self) {
        while let Some((listener, _, _)) = &self.listener {
            match listener.accept() {
                Ok((stream, _)) => {
                    if self.clients.len() >= MAX_CLIENTS {
                        continue;
                    }
                    if let Err(why) = peer::trusted(&stream) {
                        // Who only looked whether somebody listens, such as `ps`, is gone by now.
                        let gone = why.kind() == io::ErrorKind::NotConnected
                            || why.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error());
                        // Once: a container that tries again and again must not fill the disk.
                        if !gone && !std::mem::replace(&mut self.refused, true) {
                            say(&format!("refuse a client: {why}"));
                        }
                        continue;
                    }
                    if let Err(error) = self.admit(Connection::new(stream.into()), false) {
                        say(&format!("{error}"));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return say(&format!("accept a client: {error}")),
            }
        }
    }

    /// Serves a connection; the first, whose greeting is answered, is expected to send a run.
    pub(super) fn admit(&mut self, connection: Connection, first: bool) -> Result<()> {
        let id = self.next_client;
        self.next_client += 1;
        let token = self.poller.add(&connection, Source::Client(id)).during(|| "watch a client".to_owned())?;
        let client = Client {
            connection,
            token,
            greeted: first,
            expected: first,
            attached: false,
            settling: None,
            own: None,
            ended: false,
            stopping: None,
            given: Given::new(),
            removing: false,
            exec: None,
            stats: None,
        };
        self.clients.insert(id, client);
        Ok(())
    }

    pub(super) fn on_client(&mut self, id: u64) {
        for _ in 0..TURN {
            let Some(client) = self.clients.get_mut(&id) else { return };
            let incoming = client.connection.flush().and_then(|()| client.connection.poll::<Request>());
            let done = match incoming {
                Ok(Incoming::Empty) => return,
                Ok(Incoming::End) => return self.lose(id),
                Ok(Incoming::Frame(request, fds)) => self.on_request(id, request, fds),
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                say(&format!("serve a client: {error}"));
                return self.lose(id);
            }
        }
        if let Some(client) = self.clients.get(&id) {
            self.poller.again(client.token);
        }
    }

    /// What is refused is answered; an error here ends the connection.
    fn on_request(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) -> Result<()> {
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        match request {
            Request::Hello(hello) if !client.greeted => return self.on_hello(id, &hello),
            _ if !client.greeted => return Err(Error::protocol("a request came before the greeting")),
            Request::Hello(_) => return Err(Error::protocol("a second greeting")),
            // He starts another supervisor when this one, which has nothing left to run, is gone. Whom it was started for is told
            // why there is no sandbox instead: for him the next would be another attempt at the same.
            Request::Run { .. } | Request::Remove { .. } | Request::RemoveVolumes { .. }
                if self.sandbox.was_killed() || (id != FIRST && self.broken.is_some() && !self.lost) =>
            {
                client.expected = false;
                self.dirty = true;
                self.tell(id, &Reply::Over { code: 0 }, Vec::new());
            }
            Request::Run { wanted, volumes, prune, own, destroy, wait, keeper } => {
                (client.expected, client.attached) = (false, true);
                let given = std::mem::take(&mut client.given);
                let offered = match (keeper, <[OwnedFd; 1]>::try_from(fds)) {
                    (true, Ok([keeper])) => Some(keeper),
                    (false, Err(none)) if none.is_empty() => None,
                    _ => return Err(Error::protocol("a run came with other descriptors than it says")),
                };
                self.tell(id, &Reply::Accepted, Vec::new());
                let started = self
                    .want_volumes(&volumes)
                    .and_then(|()| self.run_wanted(wanted, prune.as_deref(), destroy, given));
                match started {
                    Ok(cids) => {
                        self.forget_archives();
                        if let Some(socket) = offered {
                            let start = self.take_keeper(socket)?;
                            self.tell(id, &Reply::Keeper { start }, Vec::new());
                        }
                        let own = own.iter().filter_map(|name| self.names.get(name).copied()).collect();
                        self.with(id, |client| (client.settling, client.own) = (Some((cids, wait)), Some(own)));
                    }
                    Err(error) => self.refuse(id, &error),
                }
            }
            Request::Unheld(mut ports) => {
                ports.retain(|key| !self.ports.contains_key(key));
                self.tell(id, &Reply::Unheld(ports), Vec::new());
            }
            Request::Port(port) => {
                let mut fds = fds.into_iter();
                let (Some(socket), None) = (fds.next(), fds.next()) else {
                    return Err(Error::protocol("a port comes with one socket"));
                };
                let socket = bound(socket, port)?;
                if client.given.len() >= MAX_PORTS {
                    return Err(Error::protocol("more ports than there are"));
                }
                client.given.insert(port, socket);
            }
            Request::Archive { index, completes } => {
                let mut fds = fds.into_iter();
                let (Some(archive), None) = (fds.next(), fds.next()) else {
                    return Err(Error::protocol("an archive comes with one file"));
                };
                self.take_archive(index, archive, completes)?;
            }
            Request::Attach => client.attached = true,
            Request::Events { since } => {
                client.attached = true;
                self.tell_history(id, since);
            }
            Request::Stop { names, file, grace } => match self.stop_for(id, &names, file.as_deref(), grace) {
                Ok(cids) => {
                    let live = |cid: Cid| Some((cid, self.containers.get(&cid)?.live.as_ref()?.id));
                    let launches = cids.into_iter().filter_map(live).collect();
                    self.with(id, |client| client.stopping = Some((launches, names.is_empty())));
                }
                Err(error) => self.refuse(id, &error),
            },
            Request::Restart { names, file, grace } => {
                client.attached = true;
                match self.restart_named(&names, &file, grace) {
                    Ok(cids) => self.with(id, |client| client.settling = Some((cids, false))),
                    Err(error) => self.refuse(id, &error),
                }
            }
            Request::Remove { names, file, destroy } => {
                (client.expected, client.attached) = (false, true);
                match self.remove_named(&names, &file, destroy) {
                    Ok(()) => self.with(id, |client| client.removing = true),
                    Err(error) => self.refuse(id, &error),
                }
            }
            Request::RemoveVolumes { names } => {
                client.expected = false;
                match self.remove_volumes(&names) {
                    Ok(()) => self.with(id, |client| client.removing = true),
                    Err(error) => self.refuse(id, &error),
                }
            }
            Request::Exec(request) => {
                if let Err(error) = self.exec(id, &request, fds) {
                    self.refuse(id, &error);
                }
            }
            Request::Signal(signal) => {
                if let Some((cid, launch, exec)) = client.exec {
                    self.signal(cid, launch, exec, signal);
                }
            }
            Request::Stats if client.stats.is_some() => {
                return Err(Error::protocol("a second question for statistics came before the answer"));
            }
            Request::Stats => self.ask_stats(id),
            Request::Pause { names, paused } => match self.pause(&names, paused) {
                Ok(()) => self.tell(id, &Reply::Done, Vec::new()),
                Err(error) => self.refuse(id, &error),
            },
            Request::Sockets { component, count } => {
                if let Err(error) = self.ask_sockets(id, &component, count) {
                    self.refuse(id, &error);
                }
            }
            Request::Project => {
                let (identity, folder) = (self.project.identity(), self.project.folder().to_owned());
                let served = Served { identity, folder, file: self.project.file_name() };
                self.tell(id, &Reply::Project(served), Vec::new());
            }
            Request::Status => {
                let status = self.containers.values().map(|container| container.record.status()).collect();
                self.tell(id, &Reply::Status(status), Vec::new());
            }
        }
        Ok(())
    }

    /// Stops what a client means. Where it names neither components nor a file, that is what its run is about, or all where it
    /// only watches.
    fn stop_for(&mut self, id: u64, names: &[String], file: Option<&str>, grace: Option<Duration>) -> Result<Vec<Cid>> {
        let own = self.clients.get(&id).and_then(|client| client.own.clone());
        match own.filter(|_| names.is_empty() && file.is_none()) {
            None => self.stop_named(names, file, grace),
            Some(own) => {
                for &cid in &own {
                    self.request_stop(cid, grace, Then::Rest);
                }
                Ok(own)
            }
        }
    }

    fn on_hello(&mut self, id: u64, hello: &Hello) -> Result<()> {
        let Some(mut client) = self.clients.remove(&id) else { return Ok(()) };
        let greeted = self.greet(&mut client.connection, hello);
        client.greeted = true;
        client.expected = hello.run.is_some() && greeted.is_ok();
        self.clients.insert(id, client);
        greeted
    }

    fn with(&mut self, id: u64, change: impl FnOnce(&mut Client)) {
        if let Some(client) = self.clients.get_mut(&id) {
            change(client);
        }
    }

    /// Sends to a client; one that cannot be sent to is lost.
    pub(super) fn tell(&mut self, id: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.connection.post(reply, fds).is_err() {
            self.lose(id);
        }
    }

    fn refuse(&mut self, id: u64, error: &Error) {
        self.tell(id, &Reply::Refused(error.report()), Vec::new());
    }

    fn lose(&mut self, id: u64) {
        let Some(client) = self.clients.remove(&id) else { return };
        self.poller.remove(&client.connection, client.token);
        if let Some((cid, launch, exec)) = client.exec {
            self.signal(cid, launch, exec, SIGHUP);
        }
    }

    fn exec(&mut self, client: u64, request: &ExecRequest, fds: Vec<OwnedFd>) -> Result<()> {
        let known = || self.containers.values().map(|c| c.name().to_owned()).collect();
        let name = &request.component;
        let Some(&cid) = self.names.get(name) else {
            return Err(Error::UnknownComponent { name: name.clone(), known: known() });
        };
        let invalid = |problem: String| Error::Invalid { component: name.clone(), problem };
        let Some(container) = self.containers.get_mut(&cid) else { return Ok(()) };
        let state = container.record.state;
        let spec = &container.record.spec;
        let mut environment = spec.clone();
        for (name, value) in &request.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(invalid(format!("environment variable `{}` cannot be set", name.escape_debug())));
            }
            set(&mut environment.env, format!("{name}={value}"));
            environment.secret_env.retain(|variable| variable.name != *name);
        }
        let mut process = environment.process(request.argv.clone(), container.alone, &container.secrets);
        if let Some(user) = &request.user {
            if let Some(why) = self.ids.refuses(&spec.layers, user, container.alone) {
                return Err(invalid(format!("run as user `{user}`: {why}")));
            }
            process.user = user.clone().into_bytes();
        }
        if let Some(workdir) = &request.workdir {
            process.cwd = workdir.clone().into_bytes();
        }
        process.tty = request.tty.is_some();
        if fds.len() != if process.tty { 0 } else { 3 } || request.argv.is_empty() {
            return Err(Error::protocol("an exec needs a command, and three descriptors or a terminal"));
        }
        if state == State::Paused {
            return Err(invalid(format!("run a command in it: it is paused; first: ctst unpause {name}")));
        }
        let live = container.live.as_mut().filter(|live| live.started.is_some());
        let Some((live, true)) = live.map(|live| (live, !state.is_live() || container.stop.is_none())) else {
            return Err(invalid(format!("run a command in it: it is {}", state.name())));
        };
        let id = live.exec_id();
        let launch = live.id;
        let Some((channel, _)) = &mut live.channel else {
            return Err(invalid("run a command in it: it is ending".to_owned()));
        };
        for fd in &fds {
            self.ids.give_pipe(fd).during(|| "give a pipe to the container".to_owned())?;
        }
        let offered = channel.offer(&ToContainer::Exec { id, process }, fds);
        if offered.is_ok() {
            live.execs.insert(id, Exec::Client(client));
            self.with(client, |client| client.exec = Some((cid, launch, id)));
        }
        self.check_stuck(cid);
        offered?;
        Ok(())
    }

    fn signal(&mut self, cid: Cid, launch: u32, exec: u32, signal: i32) {
        let Some(live) = self.containers.get_mut(&cid).and_then(|c| c.launch(launch)) else { return };
        // An unknown number would end the container: C takes nothing that we should not have sent.
        if !(1..=64).contains(&signal) || !live.execs.contains_key(&exec) {
            return;
        }
        if let Some((channel, _)) = &mut live.channel
            && let Err(error) = channel.offer(&ToContainer::Signal { id: exec, signal }, Vec::new())
        {
            say(&format!("{error}"));
        }
        self.check_stuck(cid);
    }

    fn ask_stats(&mut self, client: u64) {
        let (mut asked, mut answers) = (0, Vec::new());
        for (cid, container) in &mut self.containers {
            if !matches!(container.record.state, State::Running | State::Paused) {
                continue;
            }
            let Some(live) = &mut container.live else { continue };
            // Read from its cgroup, without asking who may be frozen or starved.
            if let Some(group) = &live.group {
                answers.push((*cid, group.stats(container.record.spec.name.clone())));
                continue;
            }
            let Some((channel, _)) = &mut live.channel else { continue };
            if channel.offer(&ToContainer::Stat, Vec::new()).is_ok() {
                live.asked.push_back(Asked::Stat(client));
                asked += 1;
            }
        }
        self.with(client, |client| client.stats = Some((asked, answers)));
        self.answer_stats(client);
        let cids: Vec<Cid> = self.containers.keys().copied().collect();
        for cid in cids {
            self.check_stuck(cid);
        }
    }

    /// Has the container's pid 1 make sockets in its network namespace for a client.
    fn ask_sockets(&mut self, client: u64, component: &str, count: u8) -> Result<()> {
        let invalid = |problem: &str| Error::Invalid { component: component.to_owned(), problem: problem.to_owned() };
        let Some(&cid) = self.names.get(component) else {
            let known = self.containers.values().map(|c| c.name().to_owned()).collect();
            return Err(Error::UnknownComponent { name: component.to_owned(), known });
        };
        let running = self.containers.get_mut(&cid).filter(|container| container.is_running());
        let live = running.and_then(|container| container.live.as_mut());
        let Some((live, channel)) = live.and_then(|live| Some((&mut live.asked, &mut live.channel.as_mut()?.0))) else {
            return Err(invalid("make sockets in it: it is not running"));
        };
        if !(1..=MAX_FDS).contains(&usize::from(count)) {
            return Err(Error::protocol(format!("{count} sockets are not as many as can be made at once")));
        }
        channel.offer(&ToContainer::Dial { count }, Vec::new())?;
        live.push_back(Asked::Sockets(client));
        self.check_stuck(cid);
        Ok(())
    }

    /// What came of it.
    pub(super) fn on_sockets(&mut self, cid: Cid, client: u64, sockets: std::result::Result<Vec<OwnedFd>, String>) {
        let Some(container) = self.containers.get(&cid) else { return };
        match sockets {
            Ok(sockets) => {
                let (bridges, _) = self.networks.links(&container.places);
                let resolvers = bridges.iter().take(3).map(|bridge| Ipv4Addr::from(bridge.address.ip)).collect();
                let egress = bridges.iter().any(|bridge| bridge.egress);
                let servers = container.record.spec.dns.servers.clone();
                self.tell(client, &Reply::Sockets(Outlook { resolvers, egress, servers }), sockets);
            }
            Err(problem) => {
                let component = container.name().to_owned();
                self.refuse(client, &Error::Invalid { component, problem: format!("make sockets in it: {problem}") });
            }
        }
    }

    /// One container's answer; none where it ended instead.
    pub(super) fn on_stat(&mut self, cid: Cid, client: u64, answer: Option<(u32, u64, u64)>) {
        let name = self.containers.get(&cid).map(|c| c.name().to_owned()).unwrap_or_default();
        self.with(client, |client| {
            if let Some((pending, answers)) = &mut client.stats {
                *pending = pending.saturating_sub(1);
                if let Some((processes, resident, cpu_ms)) = answer {
                    answers.push((cid, Stats::of_processes(name, processes, resident, cpu_ms)));
                }
            }
        });
        self.answer_stats(client);
    }

    fn answer_stats(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if let Some((_, mut answers)) = client.stats.take_if(|(pending, _)| *pending == 0) {
            answers.sort_by_key(|(cid, _)| *cid);
            self.tell(id, &Reply::Stats(answers.into_iter().map(|(_, stats)| stats).collect()), Vec::new());
        }
    }

    /// What a client's run returns: of the containers that it is about, or of all.
    pub(super) fn result_for(&self, client: &Client) -> i32 {
        let failed = |container: &Container| Some(container.result).filter(|code| *code != 0);
        let found = match &client.own {
            Some(own) => own.iter().filter_map(|cid| self.containers.get(cid)).find_map(failed),
            None => self.containers.values().find_map(failed),
        };
        found.unwrap_or(0)
    }

    /// Tells clients whose run or stop has reached its end. When the supervisor ends, that is said instead of a stop's end.
    pub(super) fn answer_waiting(&mut self) {
        let ids: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, c)| {
                c.settling.is_some() || c.stopping.is_some() || c.removing || (c.own.is_some() && !c.ended)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let Some(client) = self.clients.get(&id) else { continue };
            if let Some((cids, wait)) = &client.settling {
                let outcomes: Option<Vec<_>> =
                    cids.iter().map(|cid| self.outcome(*cid, *wait).map(|outcome| (*cid, outcome))).collect();
                if let Some(outcomes) = outcomes {
                    let failed = outcomes
                        .into_iter()
                        .filter_map(|(cid, outcome)| {
                            Some((self.containers.get(&cid)?.name().to_owned(), outcome.err()?))
                        })
                        .collect();
                    self.with(id, |client| client.settling = None);
                    self.tell(id, &Reply::Settled { failed }, Vec::new());
                }
            }
            let Some(client) = self.clients.get(&id) else { continue };
            let ended = |cid: &Cid| self.containers.get(cid).is_none_or(|container| !container.is_active());
            // Where nothing else runs either the supervisor's end says it.
            if !self.ending
                && !client.ended
                && client.settling.is_none()
                && client.own.as_ref().is_some_and(|own| own.iter().all(ended))
            {
                let code = self.result_for(client);
                self.with(id, |client| client.ended = true);
                self.tell(id, &Reply::Ended { code }, Vec::new());
            }
            let Some(client) = self.clients.get(&id) else { continue };
            if client.removing && self.removing == 0 && !self.workers.values().any(Worker::ends) {
                self.with(id, |client| client.removing = false);
                let left = std::mem::take(&mut self.unremoved);
                if left.is_empty() {
                    self.tell(id, &Reply::Done, Vec::new());
                } else {
                    let help = Some("remove it as root".to_owned());
                    let report = Report { code: "S0505".to_owned(), message: left.join("; "), help, exit: exit::TOOL };
                    self.tell(id, &Reply::Refused(report), Vec::new());
                }
            }
            let Some(client) = self.clients.get(&id) else { continue };
            let lives = |(cid, launch): &(Cid, u32)| {
                self.containers.get(cid).is_some_and(|c| c.live.as_ref().is_some_and(|live| live.id == *launch))
            };
            if let Some((launches, all)) = &client.stopping
                && !self.ending
                // Where nothing is left the end is near, and who stops all wants to hear of that.
                && (!all || self.containers.values().any(Container::is_active))
                && !launches.iter().any(lives)
            {
                self.with(id, |client| client.stopping = None);
                self.tell(id, &Reply::Done, Vec::new());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn a_ports_socket_is_bound_there_or_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap();
        let other = SocketAddr::new([127, 0, 0, 2].into(), place.port());
        let stream: OwnedFd = TcpStream::connect(place).unwrap().into();
        let datagrams = UdpSocket::bind(place).unwrap();
        let copy = || OwnedFd::from(listener.try_clone().unwrap());
        let udp = || OwnedFd::from(datagrams.try_clone().unwrap());
        let port = |protocol, place| HostPort { protocol, place };
        for (socket, place) in [(copy(), other), (stream, place), (udp(), place)] {
            assert!(bound(socket, port(Protocol::Tcp, place)).is_err());
        }
        for (socket, place) in [(udp(), other), (copy(), place)] {
            assert!(bound(socket, port(Protocol::Udp, place)).is_err());
        }
        assert!(bound(std::fs::File::open("/dev/null").unwrap().into(), port(Protocol::Tcp, place)).is_err());
        let taken = UdpSocket::from(bound(udp(), port(Protocol::Udp, place)).unwrap());
        assert_eq!(taken.recv(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let taken = TcpListener::from(bound(copy(), port(Protocol::Tcp, place)).unwrap());
        drop(taken.accept().unwrap());
        assert_eq!(taken.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
