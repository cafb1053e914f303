//! The cgroups of containers that have limits: made before LAUNCH, changed, frozen and read while they run, removed after
//! the last process.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;

use containust_lang::model::Limits;
use containust_shared::exit;
use containust_shared::protocol::{Mount, Plan, ToSandbox};

use super::container::Live;
use super::poller::{Cid, Source};
use super::{Supervisor, say};
use crate::error::{During, Error, Report, Result};
use crate::event::EventKind;
use crate::host::cgroup::{self, Change, Division, Group, Lack, Outlook, Place, Unheld};
use crate::shim::describe;
use crate::spec::{ContainerSpec, Wanted};
use crate::status::State;
use crate::workers;

const SIGKILL: i32 = 9;
/// Where the file system of cgroups is mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

impl Supervisor {
    /// Refuses limits that this host cannot hold, unless their author is content with what can be had.
    pub(super) fn check_limits(&self, wanted: &[Wanted]) -> Result<()> {
        let mut limited = wanted.iter().filter(|w| cgroup::any(&w.spec.limits)).peekable();
        if limited.peek().is_none() {
            return Ok(());
        }
        let outlook = self.outlook();
        limited.try_for_each(|w| cgroup::check(&outlook, &w.spec.name, &w.spec.limits, self.project.folder()).map(drop))
    }

    fn outlook(&self) -> Outlook {
        Outlook::new(Some(self.own.pid))
    }

    /// The group in which a launch of a container begins; none where it has no limits, or can have none and may start all
    /// the same.
    pub(super) fn make_group(&mut self, cid: Cid, launch: u32) -> Result<Option<Group>> {
        let Some(container) = self.containers.get_mut(&cid) else { return Ok(None) };
        container.record.notes.clear();
        let (name, limits) = (container.record.spec.name.clone(), container.record.spec.limits.clone());
        if !cgroup::any(&limits) {
            return Ok(None);
        }
        let outlook = self.outlook();
        let folder = self.project.folder().to_owned();
        let mut unheld = cgroup::check(&outlook, &name, &limits, &folder)?;
        if !outlook.holds_any(&limits, &folder) {
            self.note_unheld(cid, &unheld);
            return Ok(None);
        }
        let made = match outlook.place {
            Ok(Place::Shim(_)) => self.have_group(launch, Change::new(&limits, &folder, None)),
            _ => self.division(&outlook).and_then(|d| d.group(&format!("{name}.{launch}"), &limits, &folder)),
        };
        let (group, more) = match made {
            Ok((group, more)) => (Some(group), more),
            Err(lack) => (None, Outlook { place: Err(lack), ..outlook }.unheld(&limits, &folder)),
        };
        for one in more {
            if !unheld.iter().any(|other| other.limit == one.limit) {
                unheld.push(one);
            }
        }
        if let Some(error) = Unheld::refuse(&name, &unheld).filter(|_| !limits.best_effort) {
            if let Some(group) = group {
                self.remove_group(group);
            }
            return Err(error);
        }
        self.note_unheld(cid, &unheld);
        Ok(group)
    }

    fn division(&mut self, outlook: &Outlook) -> Result<&mut Division, Lack> {
        let division = match self.division.take() {
            Some(division) => division,
            None => match outlook.place.clone()? {
                Place::Below(base) => Division::new(&base, &self.project.short_name(), self.own)?,
                Place::Scope | Place::Shim(_) => {
                    return Err(Lack { problem: "no scope was made".into(), fix: "start it anew".into() });
                }
            },
        };
        Ok(self.division.insert(division))
    }

    /// Has S make the group of a launch in strict mode, or set the limits of one that it made.
    fn have_group(&mut self, launch: u32, change: Change) -> Result<(Group, Vec<Unheld>), Lack> {
        let request = ToSandbox::Cgroup { id: launch, limits: change.limits() };
        let unset = self
            .sandbox
            .group(&mut self.poller, request)
            .map_err(|failure| Lack { problem: describe(&failure), fix: "see: ctst doctor".to_owned() })?;
        let lost =
            || Lack { problem: "find the project's control group".into(), fix: "start it anew: ctst stop".into() };
        let project = self.sandbox.pid().and_then(cgroup::group_of_sandbox).ok_or_else(lost)?;
        let group = Group::by_shim(&project, launch);
        let unheld = change.outcome(&group, &unset);
        Ok((group, unheld))
    }

    /// Sets limits in a group, and returns what does not hold.
    fn set_group(&mut self, cid: Cid, limits: &Limits) -> Vec<Unheld> {
        let folder = self.project.folder().to_owned();
        let group = self.containers.get(&cid).and_then(|c| c.live.as_ref()?.group.as_ref());
        let Some(group) = group else { return Vec::new() };
        let change = Change::new(limits, &folder, Some(group));
        let Some(id) = group.shim() else { return group.set(change) };
        match self.have_group(id, change) {
            Ok((_, unheld)) => unheld,
            Err(lack) => Outlook { place: Err(lack), ..self.outlook() }.unheld(limits, &folder),
        }
    }

    fn note_unheld(&mut self, cid: Cid, unheld: &[Unheld]) {
        if let Some(container) = self.containers.get_mut(&cid) {
            container.record.notes = unheld.iter().map(Unheld::note).collect();
        }
        for one in unheld {
            let (limit, problem) = (one.limit.to_owned(), one.lack.problem.clone());
            self.event(cid, EventKind::Unheld { limit, problem });
        }
    }

    /// Watches for what a group refuses.
    pub(super) fn watch_group(&mut self, cid: Cid) -> Result<()> {
        let Some(live) = self.containers.get_mut(&cid).and_then(|c| c.live.as_mut()) else { return Ok(()) };
        if let Some(file) = live.group.as_ref().and_then(Group::refusals) {
            let token = self.poller.add_priority(&file, Source::Group(cid)).during(|| "watch a cgroup".to_owned())?;
            live.refusals = Some((file, token));
        }
        Ok(())
    }

    /// Forks of a container were refused.
    pub(super) fn on_group(&mut self, cid: Cid) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        let Some(group) = container.live.as_mut().and_then(|live| live.group.as_mut()) else { return };
        let first = group.refused() == 0;
        // A fork bomb is told of once, and counted in `stats`.
        if group.newly_refused() == 0 || !first {
            return;
        }
        let limit = container.record.spec.limits.pids.unwrap_or_default();
        container.record.notes.push(format!("it was refused more processes than its limit of {limit}"));
        self.event(cid, EventKind::ForksRefused { limit });
        self.save(cid);
    }

    /// Takes what a container's end says of its forks, and removes its group.
    pub(super) fn bury_group(&mut self, cid: Cid, live: &mut Live) {
        self.on_group(cid);
        if let Some((file, token)) = live.refusals.take() {
            self.poller.remove(&file, token);
        }
        if let Some(group) = live.group.take() {
            self.remove_group(group);
        }
    }

    /// Whether a container's processes were killed for want of memory: the reason, for a person.
    pub(super) fn starved(&mut self, cid: Cid) -> Option<Report> {
        let container = self.containers.get(&cid)?;
        if container.live.as_ref()?.group.as_ref()?.out_of_memory() == 0 {
            return None;
        }
        let spec = &container.record.spec;
        let limit = spec.limits.memory;
        let mut message = "out of memory: it needed more than ".to_owned();
        match limit {
            // Writing to a string cannot fail.
            Some(limit) => write!(message, "its limit of {limit} bytes").ok(),
            None => write!(message, "this host had to give").ok(),
        };
        let help = Some(format!("raise its `memory`, or see what it did: ctst logs {}", spec.name));
        self.event(cid, EventKind::OutOfMemory { limit });
        let exit = exit::SIGNAL_BASE + SIGKILL;
        Some(Report { code: "S0506".to_owned(), message, help, exit })
    }

    pub(super) fn remove_group(&mut self, group: Group) {
        if let Some(id) = group.shim() {
            self.left_groups.push(id);
            return self.tidy_shims_groups();
        }
        if let Some(division) = &mut self.division {
            division.remove(group);
        }
    }

    /// Removes groups that could not be removed when their containers ended, and those of supervisors that were killed.
    pub(super) fn tidy_groups(&mut self) {
        self.tidy_shims_groups();
        if let Some(division) = &mut self.division {
            division.tidy();
        }
        cgroup::sweep();
    }

    /// The same of those that S made, which end with S at the latest: then a command removes them.
    fn tidy_shims_groups(&mut self) {
        for id in std::mem::take(&mut self.left_groups) {
            if self.sandbox.lives() && self.sandbox.group(&mut self.poller, ToSandbox::Gc { id }).is_err() {
                self.left_groups.push(id);
            }
        }
    }

    /// Kills everything in a container's group at once, where it has one of ours.
    pub(super) fn kill_group(&self, cid: Cid) {
        let group = self.containers.get(&cid).and_then(|c| c.live.as_ref()?.group.as_ref());
        // In strict mode its pid 1 takes the others with it, as it does before Linux 5.14.
        let group = group.filter(|group| group.shim().is_none());
        // Before Linux 5.14 its pid 1, which is killed too, takes the others with it.
        if let Some(Err(error)) = group.map(Group::kill)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            say(&format!("kill a cgroup: {error}"));
        }
    }

    /// Gives a running container other limits without touching its processes. Where the new ones cannot hold, it keeps
    /// those that it has.
    pub(super) fn set_limits(&mut self, cid: Cid, limits: &Limits) -> Result<()> {
        let outlook = self.outlook();
        let Some(container) = self.containers.get(&cid) else { return Ok(()) };
        let (spec, folder) = (&container.record.spec, self.project.folder());
        let mut unheld = cgroup::check(&outlook, &spec.name, limits, folder)?;
        let groupless = container.live.as_ref().is_some_and(|live| live.group.is_none());
        if groupless && outlook.holds_any(limits, folder) {
            let name = &spec.name;
            let problem = format!(
                "limit it while it runs: it was started where no limit could hold; start it anew: ctst stop {name}, and \
                 ctst run"
            );
            return Err(Error::Invalid { component: name.clone(), problem });
        }
        if !groupless {
            let (name, old) = (spec.name.clone(), spec.limits.clone());
            for one in self.set_group(cid, limits) {
                if !unheld.iter().any(|other| other.limit == one.limit) {
                    unheld.push(one);
                }
            }
            if let Some(error) = Unheld::refuse(&name, &unheld).filter(|_| !limits.best_effort) {
                for one in self.set_group(cid, &old) {
                    say(&format!("{name}: {}", one.note()));
                }
                return Err(error);
            }
        }
        if let Some(container) = self.containers.get_mut(&cid) {
            container.record.spec.limits = limits.clone();
            container.record.hash = container.record.spec.hash();
        }
        self.note_unheld(cid, &unheld);
        self.save(cid);
        Ok(())
    }

    /// Freezes the named containers, or lets them go on: all of them or none.
    pub(super) fn pause(&mut self, names: &[String], paused: bool) -> Result<()> {
        let (from, to) = if paused { (State::Running, State::Paused) } else { (State::Paused, State::Running) };
        let mut cids = Vec::new();
        for name in names {
            let known = || self.containers.values().map(|c| c.name().to_owned()).collect();
            let Some(cid) = self.names.get(name) else {
                return Err(Error::UnknownComponent { name: name.clone(), known: known() });
            };
            let Some(container) = self.containers.get(cid) else { continue };
            let invalid = |problem: String| Error::Invalid { component: name.clone(), problem };
            let verb = if paused { "pause" } else { "unpause" };
            if container.record.state == to {
                continue;
            }
            if container.record.state != from {
                return Err(invalid(format!("{verb} it: it is {}", container.record.state.name())));
            }
            if container.live.as_ref().is_none_or(|live| live.group.is_none()) {
                let why = self.no_group(&container.record.spec.limits);
                return Err(invalid(format!("{verb} it: it has no cgroup to be frozen in: {why}")));
            }
            cids.push(*cid);
        }
        for (done, &cid) in cids.iter().enumerate() {
            if let Err(error) = self.freeze(cid, paused) {
                for &cid in &cids[..done] {
                    self.freeze(cid, !paused).ok();
                }
                return Err(error);
            }
        }
        for cid in cids {
            self.on_paused(cid, to);
        }
        Ok(())
    }

    /// Why a running container has no group, and what would give it one.
    fn no_group(&self, limits: &Limits) -> String {
        if !cgroup::any(limits) {
            return "it has no limit; give it one, such as `pids = 4096`".to_owned();
        }
        match self.outlook().unheld(limits, self.project.folder()).into_iter().next() {
            Some(Unheld { limit, lack }) => {
                format!("no limit of it holds; `{limit}`: {}; {}", lack.problem, lack.fix)
            }
            None => "no limit of it could hold when it started; start it anew: ctst restart".to_owned(),
        }
    }

    fn freeze(&mut self, cid: Cid, frozen: bool) -> Result<()> {
        let group = self.containers.get(&cid).and_then(|c| c.live.as_ref()?.group.as_ref());
        let Some(group) = group else { return Ok(()) };
        let Some(id) = group.shim() else {
            return group.freeze(frozen).during(|| format!("write to {}/cgroup.freeze", group.dir().display()));
        };
        let request = if frozen { ToSandbox::Freeze { id } } else { ToSandbox::Thaw { id } };
        let done = self.sandbox.group(&mut self.poller, request);
        done.map(drop).map_err(|failure| Error::Sandbox(describe(&failure)))
    }

    fn on_paused(&mut self, cid: Cid, state: State) {
        let Some(container) = self.containers.get_mut(&cid) else { return };
        container.record.state = state;
        if state == State::Paused {
            // It could not answer.
            self.postpone_probe(cid);
        }
        self.event(cid, if state == State::Paused { EventKind::Paused } else { EventKind::Unpaused });
        self.save(cid);
        self.dirty = true;
    }

    /// Lets a container go on that is to be stopped: frozen it would not hear of it.
    pub(super) fn thaw(&mut self, cid: Cid) {
        if self.containers.get(&cid).is_some_and(|c| c.record.state == State::Paused)
            && let Err(error) = self.freeze(cid, false)
        {
            say(&format!("{error}"));
        }
    }
}

/// Mounts a container's group where programs look for their limits, and returns its directory for LAUNCH: none where S
/// knows it.
pub(super) fn show(
    group: &Group,
    spec: &ContainerSpec,
    plan: &mut Plan,
    held: &mut Vec<OwnedFd>,
) -> Result<Option<OwnedFd>> {
    let what = || format!("open {}", group.dir().display());
    // A cgroup2 of its own would take 10 ms to mount, and show no more: this group is `/` for whoever looks.
    if !spec.mounts_at(CGROUPS) {
        let (source, fd) = workers::source(group.dir())?;
        held.push(fd);
        plan.mounts.push(Mount::Bind { source, target: CGROUPS.into(), readonly: true });
    }
    if group.shim().is_some() { Ok(None) } else { group.open().during(what).map(Some) }
}
