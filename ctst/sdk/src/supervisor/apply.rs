//! What clients want done: running, stopping.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use containust_lang::model::Attachment;
use containust_shared::{exit, names};

use super::container::{Container, Then};
use super::poller::Cid;
use super::{Given, Owner, Port, Supervisor};
use crate::error::{During, Error, Report, Result};
use crate::event::{Event, EventKind};
use crate::host::kernel;
use crate::host::low_port;
use crate::host::places::Places;
use crate::host::policy::Policy;
use crate::plan::compare::{self, Verdict};
use crate::plan::layer;
use crate::project::now;
use crate::record::{self, Record, Stored};
use crate::spec::Wanted;
use crate::status::{HostPort, Published, State};

/// What has to happen to a container to become what is wanted.
#[derive(Debug)]
enum Task {
    Keep,
    /// These fields change while it runs.
    Change(Vec<String>),
    /// It is made anew, without the writable layer that may be there.
    Anew,
}

impl Supervisor {
    /// Brings the wanted components up. Everything that can be refused is, before anything is touched: with it what would
    /// lose data, unless `destroy` allows it. `given`: sockets of ports that this process cannot bind. Returns whom the client waits for.
    pub(super) fn run_wanted(
        &mut self,
        wanted: Vec<Wanted>,
        prune: Option<&str>,
        destroy: bool,
        given: Given,
    ) -> Result<Vec<Cid>> {
        if let Some(report) = &self.broken {
            return Err(Error::Reported(report.clone()));
        }
        for Wanted { spec, .. } in &wanted {
            let alone = if names::is_name(&spec.name) { spec.alone(&self.ids) } else { Err("no name".into()) };
            let alone = alone.and_then(|_| {
                kernel::problem(&spec.ulimits, &spec.sysctls, &spec.groups, &self.ids).map_or(Ok(()), Err)
            });
            alone.map_err(|problem| Error::Invalid { component: spec.name.clone(), problem })?;
        }
        self.check_limits(&wanted)?;
        let places = Places::new(self.project.private_dirs());
        let policy = Policy::read()?;
        let mut denied = Vec::new();
        for Wanted { spec, secrets, published, .. } in &wanted {
            let plan =
                spec.unopened(&self.project.container_dir(&spec.name), self.ids.has_overlay(), &places, secrets)?;
            denied.extend(policy.judge(&spec.name, &plan, (&spec.limits, &spec.network), published).err());
        }
        if let Some(error) = Error::several(denied) {
            return Err(error);
        }
        let on_disk = record::list(&self.project.containers_dir())?;
        let mut stored = Vec::with_capacity(wanted.len());
        for Wanted { spec, .. } in &wanted {
            let known = self.names.contains_key(&spec.name);
            let dir = self.project.container_dir(&spec.name);
            stored.push(if known { None } else { record::read(&dir, self.project.identity())? });
        }
        self.check_networks(&wanted)?;
        let (tasks, renewed) = self.tasks(&wanted, &stored);
        if !destroy {
            self.check_loss(&wanted, &stored, &tasks, prune, &on_disk)?;
        }
        let mut cids: Vec<Cid> = wanted.iter().map(|w| self.number(&w.spec.name)).collect();
        if let Err(error) = self.publish_all(&cids, &wanted, given) {
            self.names.retain(|_, cid| self.containers.contains_key(cid));
            return Err(error);
        }
        let attachments: Vec<Attachment> = wanted.iter().flat_map(|w| w.spec.network.attachments()).collect();
        self.networks.open(attachments.iter());
        self.sweep();

        let keep: HashSet<String> = wanted.iter().map(|w| w.spec.name.clone()).collect();
        for (((wanted, task), stored), &cid) in wanted.into_iter().zip(tasks).zip(stored).zip(&cids) {
            let again = wanted.spec.after.iter().any(|dependency| renewed.contains(&dependency.on));
            self.want(cid, wanted, stored, task, again);
        }
        if let Some(file) = prune {
            let of_file = |cid: &Cid| self.containers.get(cid).is_some_and(|c| c.record.is_of(file));
            let mut surplus: Vec<Cid> =
                self.names.iter().filter(|(n, cid)| !keep.contains(*n) && of_file(cid)).map(|(_, cid)| *cid).collect();
            // What another file deploys, too, is from now on only that one's.
            surplus.retain(|cid| !self.leave(*cid, file));
            let known: HashSet<String> = self.names.keys().cloned().collect();
            for &cid in &surplus {
                self.request_stop(cid, None, Then::Remove);
            }
            // Who waits for what is wanted waits for the end of what is not: until then the run is not done.
            cids.extend(surplus);
            for name in on_disk {
                if keep.contains(&name) || known.contains(&name) {
                    continue;
                }
                let dir = self.project.container_dir(&name);
                match record::read(&dir, self.project.identity())? {
                    Some(Stored::Record(record)) if !record.is_of(file) => {}
                    Some(Stored::Record(mut record)) => {
                        if record.leave(file) {
                            record.write(&dir)?;
                        } else {
                            self.discard_folder(&name);
                        }
                    }
                    Some(Stored::Unknown(_)) | None => self.discard_folder(&name),
                }
            }
        }
        self.dirty = true;
        Ok(cids)
    }

    /// Lets go of a container that the file no longer deploys. `false`: no other file does either.
    fn leave(&mut self, cid: Cid, file: &str) -> bool {
        let left = self.containers.get_mut(&cid).is_some_and(|container| container.record.leave(file));
        if left {
            self.save(cid);
        }
        left
    }

    /// Refuses a network that another file of the project wants to be another one while that runs, and what has no room
    /// beside those that there are.
    fn check_networks(&mut self, wanted: &[Wanted]) -> Result<()> {
        let own: Vec<(&str, Vec<Attachment>)> =
            wanted.iter().map(|wanted| (wanted.spec.name.as_str(), wanted.spec.network.attachments())).collect();
        let names: HashSet<&str> = own.iter().map(|(name, _)| *name).collect();
        let mut others = HashMap::new();
        for container in self.containers.values().filter(|c| c.is_active() && !names.contains(c.name())) {
            for on in container.record.spec.network.attachments() {
                others.insert(on.network.clone(), (on, container.name()));
            }
        }
        for (name, attachments) in &own {
            for on in attachments {
                let said = |on: &Attachment| (on.subnet, on.egress, on.ipv6, on.subnet6);
                if let Some((theirs, other)) = others.get(&on.network).filter(|(theirs, _)| said(theirs) != said(on)) {
                    let network = &on.network;
                    let said = |on: &Attachment| {
                        let subnet = on.subnet.map_or("none".to_owned(), |subnet| subnet.to_string());
                        let six = match on.subnet6 {
                            Some(subnet) => format!(", {subnet}"),
                            None if on.ipv6 => ", IPv6".to_owned(),
                            None => String::new(),
                        };
                        format!("the subnet {subnet}{six} and {} way out", if on.egress { "a" } else { "no" })
                    };
                    let problem = format!(
                        "put it on the network {network} with {}: {other}, which runs, is on it with {}; say the \
                         same in both files, or stop {other} first",
                        said(on),
                        said(theirs)
                    );
                    return Err(Error::Invalid { component: (*name).to_owned(), problem });
                }
            }
        }
        let attachments = own.iter().flat_map(|(_, attachments)| attachments);
        self.networks.prepare(attachments).map_err(Error::Sandbox)?;
        if let Some(forwarder) = &self.forwarder {
            forwarder.networks(self.networks.subnets());
        }
        Ok(())
    }

    fn number(&mut self, name: &str) -> Cid {
        if let Some(&cid) = self.names.get(name) {
            return cid;
        }
        let cid = self.new_id();
        self.names.insert(name.to_owned(), cid);
        cid
    }

    /// What has to happen to each component, and the names of those that are replaced or started again for it, whose
    /// dependents are started again in turn. The planner says the same of the same records.
    fn tasks(&self, wanted: &[Wanted], stored: &[Option<Stored>]) -> (Vec<Task>, HashSet<String>) {
        let mut tasks = Vec::with_capacity(wanted.len());
        for (wanted, stored) in wanted.iter().zip(stored) {
            let container = self.names.get(&wanted.spec.name).and_then(|cid| self.containers.get(cid));
            let record = match (container, stored) {
                (Some(container), _) => Some(&container.record),
                (None, Some(Stored::Record(record))) => Some(&**record),
                (None, _) => None,
            };
            let hash = wanted.spec.hash();
            tasks.push(match record.map(|record| compare::judge(&wanted.spec, &hash, record)) {
                None | Some(Verdict::Replace(_)) => Task::Anew,
                Some(Verdict::InPlace(causes)) => Task::Change(causes.into_iter().map(|cause| cause.field).collect()),
                Some(Verdict::Same) => Task::Keep,
            });
        }
        let mut renewed = HashSet::new();
        let by_name: HashMap<&str, usize> =
            wanted.iter().enumerate().map(|(index, wanted)| (wanted.spec.name.as_str(), index)).collect();
        let mut dependents: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, wanted) in wanted.iter().enumerate() {
            for dependency in &wanted.spec.after {
                dependents.entry(&dependency.on).or_default().push(index);
            }
        }
        let exists = |index: usize| self.names.contains_key(&wanted[index].spec.name) || stored[index].is_some();
        let active = |index: usize| {
            let container = self.names.get(&wanted[index].spec.name).and_then(|cid| self.containers.get(cid));
            container.is_some_and(Container::is_active)
        };
        let anew = by_name.values().filter(|index| matches!(tasks[**index], Task::Anew) && exists(**index));
        let mut open: Vec<usize> = anew.copied().collect();
        while let Some(index) = open.pop() {
            if renewed.insert(wanted[index].spec.name.clone()) {
                let next = dependents.get(wanted[index].spec.name.as_str()).into_iter().flatten();
                open.extend(next.copied().filter(|index| active(*index)));
            }
        }
        (tasks, renewed)
    }

    /// Refuses what would remove a writable layer that holds data.
    fn check_loss(
        &self,
        wanted: &[Wanted],
        stored: &[Option<Stored>],
        tasks: &[Task],
        prune: Option<&str>,
        on_disk: &[String],
    ) -> Result<()> {
        let mut lost = Vec::new();
        let mut look = |name: &str, record: Option<&Record>| {
            if layer::holds_data(&self.project.container_dir(name), record.map(|record| &record.spec)) {
                lost.push(name.to_owned());
            }
        };
        let known = |name: &str| self.names.get(name).and_then(|cid| self.containers.get(cid));
        for ((wanted, stored), task) in wanted.iter().zip(stored).zip(tasks) {
            let name = &wanted.spec.name;
            match (task, known(name), stored) {
                (Task::Anew, Some(container), _) => look(name, Some(&container.record)),
                (Task::Anew, None, Some(Stored::Record(record))) => look(name, Some(record)),
                (Task::Anew, None, _) if on_disk.contains(name) => look(name, None),
                _ => {}
            }
        }
        let keep: HashSet<&str> = wanted.iter().map(|wanted| wanted.spec.name.as_str()).collect();
        for name in on_disk.iter().filter(|name| prune.is_some() && !keep.contains(name.as_str())) {
            let read;
            let record = match known(name) {
                Some(container) => Some(&container.record),
                None => {
                    read = record::read(&self.project.container_dir(name), self.project.identity())?;
                    match &read {
                        Some(Stored::Record(record)) => Some(&**record),
                        _ => None,
                    }
                }
            };
            // Another file may deploy it, too.
            if record.is_none_or(|record| Some(record.file.as_str()) == prune && record.also.is_empty()) {
                look(name, record);
            }
        }
        if lost.is_empty() { Ok(()) } else { Err(Error::DataLoss { components: lost }) }
    }

    /// `again`: something that it depends on is replaced.
    fn want(&mut self, cid: Cid, wanted: Wanted, stored: Option<Stored>, task: Task, again: bool) {
        let kept = !again && !matches!(task, Task::Anew);
        let result = match self.containers.get_mut(&cid) {
            Some(container) if container.is_active() => {
                container.unchanged = None;
                if kept {
                    // For its next start, and for exec.
                    container.secrets = wanted.secrets.clone();
                }
                let anew = matches!(task, Task::Anew);
                match (&mut container.stop, task) {
                    (Some(stop), _) => stop.then = Then::Start { wanted: Box::new(wanted), anew },
                    (None, Task::Keep) if !again => {
                        // Published ports are the container's by now.
                        if container.record.file != wanted.file || container.unsaved {
                            container.record.belong(wanted.file);
                            self.save(cid);
                        }
                    }
                    (None, Task::Change(fields)) if !again => self.change_in_place(cid, wanted, fields),
                    (None, _) => self.request_stop(cid, None, Then::Start { wanted: Box::new(wanted), anew }),
                }
                Ok(())
            }
            Some(container) if container.record.state == State::Completed && kept => {
                self.keep_completed(cid, wanted, task);
                Ok(())
            }
            Some(_) => self.adopt(cid, wanted, matches!(task, Task::Anew)),
            None => {
                let completed = matches!(&stored, Some(Stored::Record(record)) if record.state == State::Completed);
                if let Some(Stored::Record(record)) = stored {
                    let dir = self.project.container_dir(&record.spec.name);
                    self.containers.insert(cid, Container::new(*record, dir));
                }
                if completed && kept {
                    self.keep_completed(cid, wanted, task);
                    Ok(())
                } else {
                    self.adopt(cid, wanted, matches!(task, Task::Anew))
                }
            }
        };
        if let Err(error) = result {
            self.fail(cid, error.report());
        }
    }

    /// A job that has done its work needs no more than to be known.
    fn keep_completed(&mut self, cid: Cid, wanted: Wanted, task: Task) {
        if let Task::Change(fields) = task {
            return self.change_in_place(cid, wanted, fields);
        }
        let Some(container) = self.containers.get_mut(&cid) else { return };
        if container.record.file != wanted.file {
            container.record.belong(wanted.file);
            self.save(cid);
        }
    }

    /// Gives a container what it can take while it runs ([`compare`] says which fields those are). What cannot be given is
    /// told and stays as it was, so that the next run tries again.
    fn change_in_place(&mut self, cid: Cid, wanted: Wanted, fields: Vec<String>) {
        let Some(container) = self.containers.get(&cid) else { return };
        if container.record.spec.limits != wanted.spec.limits
            && let Err(error) = self.set_limits(cid, &wanted.spec.limits)
        {
            let report = error.report();
            if let Some(container) = self.containers.get_mut(&cid) {
                container.unchanged = Some(report.clone());
            }
            return self.event(cid, EventKind::Unchanged(report));
        }
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let Wanted { spec, file, .. } = wanted;
        let checked_anew = container.record.spec.healthcheck != spec.healthcheck;
        if let Some(live) = container.live.as_mut() {
            live.log.limit(spec.log_limits());
        }
        let record = &mut container.record;
        record.hash = spec.hash();
        record.spec = spec;
        record.belong(file);
        self.event(cid, EventKind::Updated { fields });
        if checked_anew {
            self.check_anew(cid);
        }
        self.save(cid);
        // It may wait for something else now, or be waited for in another way.
        self.dirty = true;
    }

    /// Makes a container of what is wanted, to be started when its dependencies are up. `anew`: without the writable
    /// layer, log and record that may be there.
    pub(super) fn adopt(&mut self, cid: Cid, wanted: Wanted, anew: bool) -> Result<()> {
        let Wanted { spec, published, secrets, file } = wanted;
        let group = spec.replica.as_ref().map(|replica| replica.of.clone());
        let (name, after, attachments) = (spec.name.clone(), spec.after.clone(), spec.network.attachments());
        let dir = self.project.container_dir(&name);
        let old = self.containers.remove(&cid);
        let before = old.as_ref().map_or_else(|| file.clone(), |old| old.record.file.clone());
        let mut record = Record::new(self.project.identity(), before, spec, self.ids.to_string(), self.own);
        record.also = old.as_ref().map(|old| old.record.also.clone()).unwrap_or_default();
        record.belong(file);
        let mut container = Container::new(record, dir.clone());
        container.secrets = secrets;
        let old = old.map(|old| old.places).unwrap_or_default();
        let places = self.networks.take(cid, &attachments, &old);
        container.places = places.as_ref().cloned().unwrap_or_default();
        self.containers.insert(cid, container);
        self.dirty = true;
        if anew {
            self.retire(&dir)?;
        }
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.during(|| format!("create {}", dir.display()))?;
        if let Err(problem) = places {
            return Err(Error::Invalid { component: name, problem });
        }
        self.publish(cid, &name, group.as_deref(), &published)?;
        let on: Vec<String> = after.into_iter().map(|d| d.on).filter(|on| !self.is_up(on)).collect();
        if !on.is_empty() {
            self.event(cid, EventKind::Waiting { on });
        }
        // Who plans now sees what is coming, and no container without a record.
        self.save(cid);
        Ok(())
    }

    fn is_up(&self, name: &str) -> bool {
        self.names.get(name).and_then(|cid| self.containers.get(cid)).is_some_and(Container::is_up)
    }

    /// Takes the ports of all that are wanted, or none of them.
    fn publish_all(&mut self, cids: &[Cid], wanted: &[Wanted], mut given: Given) -> Result<()> {
        let before: HashSet<_> = self.ports.keys().copied().collect();
        for wanted in wanted {
            if let Err(error) = self.listen(&wanted.spec.name, &wanted.published, &mut given) {
                let new: Vec<_> = self.ports.keys().filter(|key| !before.contains(key)).copied().collect();
                for key in new {
                    self.unlisten(key);
                }
                return Err(error);
            }
        }
        // What is no longer wanted of them, or belongs to another now.
        for (cid, wanted) in cids.iter().zip(wanted) {
            let group = wanted.spec.replica.as_ref().map(|replica| replica.of.as_str());
            self.publish(*cid, &wanted.spec.name, group, &wanted.published)?;
        }
        Ok(())
    }

    /// Makes `published` the container's ports, which it shares with replicas of the same `group`.
    fn publish(&mut self, cid: Cid, name: &str, group: Option<&str>, published: &[Published]) -> Result<()> {
        self.listen(name, published, &mut Given::new())?;
        for wanted in published {
            if let Some(port) = self.ports.get_mut(&wanted.on_host()) {
                port.owners.retain(|owner| owner.cid != cid && group.is_some() && owner.group.as_deref() == group);
                port.owners.push(Owner { cid, group: group.map(str::to_owned), port: wanted.port });
                port.owners.sort_by_key(|owner| owner.cid);
            }
        }
        let wanted = |key: &HostPort| published.iter().any(|port| port.on_host() == *key);
        let surplus: Vec<_> =
            self.ports.iter().filter(|(key, port)| port.is_of(cid) && !wanted(key)).map(|(key, _)| *key).collect();
        for key in surplus {
            self.disown(key, cid);
        }
        if let Some(container) = self.containers.get_mut(&cid)
            && container.record.published != published
        {
            container.record.published = published.to_vec();
            container.unsaved = true;
        }
        if let Some(container) = self.containers.get_mut(&cid)
            && container.record.granted != published
        {
            container.record.granted = published.to_vec();
            container.unsaved = true;
        }
        self.retarget(cid);
        Ok(())
    }

    /// Takes ports that are not taken for the project yet.
    fn listen(&mut self, name: &str, published: &[Published], given: &mut Given) -> Result<()> {
        for wanted in published {
            let key = wanted.on_host();
            if self.ports.contains_key(&key) {
                continue;
            }
            let id = self.next_port;
            self.next_port += 1;
            let forwarder = self.forwarder()?;
            let taken = match given.remove(&key) {
                Some(socket) => forwarder.take(id, key.protocol, socket),
                None => forwarder.listen(id, key).map(drop),
            };
            taken.map_err(|error| unpublished(name, key, &error))?;
            self.ports.insert(key, Port { id, owners: Vec::new() });
        }
        Ok(())
    }

    /// Ends publishing a port for a container, and for all where it was the last that had it.
    pub(super) fn disown(&mut self, key: HostPort, cid: Cid) {
        let Some(port) = self.ports.get_mut(&key) else { return };
        port.owners.retain(|owner| owner.cid != cid);
        if port.owners.is_empty() {
            return self.unlisten(key);
        }
        self.aim(key);
    }

    /// Points a published port to the containers of it that run.
    pub(super) fn aim(&self, key: HostPort) {
        let (Some(port), Some(forwarder)) = (self.ports.get(&key), &self.forwarder) else { return };
        let target = |owner: &Owner| {
            let container = self.containers.get(&owner.cid).filter(|container| container.is_running())?;
            Some(SocketAddr::from((container.door()?, owner.port)))
        };
        // Some may be new.
        forwarder.networks(self.networks.subnets());
        forwarder.target(port.id, port.owners.iter().filter_map(target));
    }

    fn unlisten(&mut self, key: HostPort) {
        if let (Some(port), Some(forwarder)) = (self.ports.remove(&key), &self.forwarder) {
            forwarder.unlisten(port.id);
        }
    }

    /// Asks the named containers to stop, or all. Returns whom the client waits for.
    pub(super) fn stop_named(
        &mut self,
        names: &[String],
        file: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<Vec<Cid>> {
        let mut cids = Vec::new();
        for name in names {
            match self.names.get(name) {
                Some(&cid) => cids.push(cid),
                None if self.project.container_dir(name).is_dir() && names::is_name(name) => {}
                None => {
                    let known = self.containers.values().map(|c| c.name().to_owned()).collect();
                    return Err(Error::UnknownComponent { name: name.clone(), known });
                }
            }
        }
        if names.is_empty() {
            let of_file = |container: &Container| file.is_none_or(|file| container.record.is_of(file));
            cids = self.containers.iter().filter(|(_, c)| of_file(c)).map(|(cid, _)| *cid).collect();
        }
        for &cid in &cids {
            self.request_stop(cid, grace, Then::Rest);
        }
        Ok(cids)
    }

    /// Ends the named containers, or all of this file that run, and starts them again as they are. Returns whom the client waits for.
    pub(super) fn restart_named(&mut self, names: &[String], file: &str, grace: Option<Duration>) -> Result<Vec<Cid>> {
        let mut cids: Vec<Cid> =
            self.containers.iter().filter(|(_, c)| c.live.is_some()).map(|(cid, _)| *cid).collect();
        if names.is_empty() {
            cids.retain(|cid| self.containers.get(cid).is_some_and(|container| container.record.is_of(file)));
        } else {
            let live = std::mem::take(&mut cids);
            for name in names {
                match self.names.get(name).filter(|cid| live.contains(cid)) {
                    Some(cid) => cids.push(*cid),
                    None => {
                        let problem = format!("start it again: it does not run; start it: ctst run -d {name}");
                        return Err(Error::Invalid { component: name.clone(), problem });
                    }
                }
            }
        }
        for &cid in &cids {
            let Some(container) = self.containers.get(&cid) else { continue };
            let record = &container.record;
            let wanted = Wanted {
                spec: record.spec.clone(),
                published: record.published.clone(),
                secrets: container.secrets.clone(),
                file: record.file.clone(),
            };
            // What another run wants instead is what it becomes.
            if container.stop.as_ref().is_none_or(|stop| matches!(stop.then, Then::Rest)) {
                self.request_stop(cid, grace, Then::Start { wanted: Box::new(wanted), anew: false });
            }
        }
        Ok(cids)
    }

    pub(super) fn stop_all(&mut self) {
        let cids: Vec<Cid> = self.containers.keys().copied().collect();
        for cid in cids {
            self.request_stop(cid, None, Then::Rest);
        }
        // Nothing that is still to come from a client counts any more.
        for client in self.clients.values_mut() {
            client.expected = false;
        }
    }

    /// Forgets the named containers, which must not run, or all of this file that do not. A record that cannot be read is
    /// of every file. With what would lose data, unless `destroy` allows it, nothing is removed.
    pub(super) fn remove_named(&mut self, names: &[String], file: &str, destroy: bool) -> Result<()> {
        self.sweep();
        let on_disk = record::list(&self.project.containers_dir())?;
        let active = |name: &str| {
            let container = self.names.get(name).and_then(|cid| self.containers.get(cid));
            container.is_some_and(Container::is_active)
        };
        if let Some(name) = names.iter().find(|name| !on_disk.contains(name)) {
            return Err(Error::UnknownComponent { name: name.clone(), known: on_disk });
        }
        if let Some(name) = names.iter().find(|name| active(name)) {
            let problem = format!("remove it while it runs; first: ctst stop {name}");
            return Err(Error::Invalid { component: name.clone(), problem });
        }
        let of_file = |name: &str| -> Result<bool> {
            if let Some(container) = self.names.get(name).and_then(|cid| self.containers.get(cid)) {
                return Ok(container.record.is_of(file));
            }
            let stored = record::read(&self.project.container_dir(name), self.project.identity())?;
            Ok(!matches!(stored, Some(Stored::Record(record)) if !record.is_of(file)))
        };
        let mut chosen = Vec::new();
        for name in on_disk {
            let wanted = if names.is_empty() { !active(&name) && of_file(&name)? } else { names.contains(&name) };
            if wanted {
                chosen.push(name);
            }
        }
        if !destroy {
            let mut lost = Vec::new();
            for name in &chosen {
                if layer::loses(&self.project, name)? {
                    lost.push(name.clone());
                }
            }
            if !lost.is_empty() {
                return Err(Error::DataLoss { components: lost });
            }
        }
        for name in chosen {
            match self.names.get(&name) {
                Some(&cid) => self.discard(cid),
                None => self.discard_folder(&name),
            }
        }
        self.dirty = true;
        Ok(())
    }

    /// Forgets a container and removes what is on disk of it.
    pub(super) fn discard(&mut self, cid: Cid) {
        self.withdraw(cid);
        let Some(container) = self.containers.get(&cid) else { return };
        let dir = container.dir.clone();
        if let Err(error) = self.retire(&dir) {
            super::say(&format!("{error}"));
        }
        self.event(cid, EventKind::Removed);
        if let Some(container) = self.containers.remove(&cid) {
            self.names.remove(container.name());
            self.networks.release(cid, &container.places);
            self.tell_names(cid);
        }
    }

    /// The same for one that only the disk knows.
    fn discard_folder(&mut self, name: &str) {
        let dir = self.project.container_dir(name);
        if let Err(error) = self.retire(&dir) {
            return super::say(&format!("{error}"));
        }
        self.spread(Event { at: now(), component: name.to_owned(), kind: EventKind::Removed });
    }

    /// Whether what a run wanted of a container is reached; if it failed, why.
    pub(super) fn outcome(&self, cid: Cid, wait: bool) -> Option<Result<(), Report>> {
        let Some(container) = self.containers.get(&cid) else { return Some(Ok(())) };
        let record = &container.record;
        let name = container.name();
        let failed = |message: String| Report {
            code: "S0504".to_owned(),
            message,
            help: Some(format!("see what it says: ctst logs {name}")),
            exit: exit::TOOL,
        };
        match record.state {
            State::Failed => Some(Err(record.failure.clone().unwrap_or_else(|| failed(format!("start {name}"))))),
            State::Completed | State::Stopped | State::Dead | State::Unknown => Some(Ok(())),
            State::Exited => match record.exit_code {
                Some(code) if wait && code != 0 => Some(Err(failed(format!("wait for {name}: it exited with {code}")))),
                _ => Some(Ok(())),
            },
            State::Running if container.unchanged.is_some() => container.unchanged.clone().map(Err),
            State::Running if wait && record.spec.job => None,
            State::Running if wait && record.spec.healthcheck.is_some() => match record.health {
                Some(crate::Health::Healthy) => Some(Ok(())),
                Some(crate::Health::Unhealthy) => {
                    let output = record.last_probe.as_deref().unwrap_or_default().trim();
                    Some(Err(failed(format!(
                        "wait for {name} to be healthy: it is unhealthy; its last probe: {output}"
                    ))))
                }
                Some(crate::Health::Starting) | None => None,
            },
            State::Running if wait && container.takes_first_steps() => None,
            State::Running | State::Paused => Some(Ok(())),
            State::Restarting if !wait => Some(Ok(())),
            State::Restarting if let Some(why) = container.hopeless() => {
                Some(Err(failed(format!("wait for {name}: {why}"))))
            }
            State::Waiting | State::Starting | State::Stopping | State::Restarting => None,
        }
    }
}

fn unpublished(name: &str, port: HostPort, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return low_port::not_given(name, port);
    }
    let help = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("stop what listens on {port} ({} shows it), or publish another port", port.shown_by())
        }
        _ => "publish an address of this host".to_owned(),
    };
    Error::Reported(Report {
        code: "S0501".to_owned(),
        message: format!("publish {port} for {name}: {error}"),
        help: Some(help),
        exit: exit::TOOL,
    })
}
