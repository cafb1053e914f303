//! Making a plan: reading what is there, and writing nothing.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use containust_lang::model::{Component, Composition};

use crate::builder;
use crate::cgroup::{self, Outlook};
use crate::client::{self, Client};
use crate::error::{Error, Report, Result};
use crate::graph::GraphResolver;
use crate::ids::Ids;
use crate::images;
use crate::kernel;
use crate::logs::escape;
use crate::plan::{Action, Grant, ImageState, Plan, Step};
use crate::project::{Project, check_private};
use crate::record::{self, Incarnation, Record, Stored};
use crate::run::published;
use crate::spec::{self, ContainerSpec};
use crate::status::{ContainerStatus, Published, State};

impl Project {
    /// What a run of `composition` would do now.
    ///
    /// # Errors
    /// What a run would be refused for: a missing volume source, an image that cannot be had, users that cannot be
    /// mapped, components that wait for each other.
    pub fn plan(&self, composition: &Composition) -> Result<Plan> {
        let graph = GraphResolver::new(composition)?;
        let ids = Ids::detect()?;
        let published = published(composition)?;
        let private = self.private_dirs();
        let mut known = self.known()?;
        let mut plan = Plan {
            project: composition.name.clone(),
            steps: Vec::new(),
            grants: Vec::new(),
            ids: ids.to_string(),
            notes: Vec::new(),
            found: BTreeMap::new(),
        };
        let supervisor = known.values().find_map(Known::supervisor);
        plan.notes.extend(limits_notes(composition, supervisor, self.folder())?);
        for name in graph.start_order() {
            let Some(component) = composition.components.iter().find(|c| c.name == name) else { continue };
            let ports = published.get(name).map(Vec::as_slice).unwrap_or_default();
            let old = known.remove(name);
            self.plan_component(&mut plan, component, ports, old, &ids, &private)?;
        }
        for (component, known) in known {
            let causes = vec!["the file no longer has it".to_owned()];
            if let Stored::Record(record) = known.stored
                && record.file != self.file_name()
            {
                let file = escape(record.file.as_bytes());
                plan.notes
                    .push(format!("{component} is left alone: it belongs to {file}, another file of this folder"));
                continue;
            }
            plan.steps.push(Step { component, action: Action::Remove, causes, image: None });
        }
        Ok(plan)
    }

    fn plan_component(
        &self,
        plan: &mut Plan,
        component: &Component,
        ports: &[Published],
        old: Option<Known>,
        ids: &Ids,
        private: &[PathBuf],
    ) -> Result<()> {
        let kernel = || kernel::problem(&component.ulimits, &component.sysctls, &component.groups, ids);
        if let Some(problem) = builder::problem(component).or_else(kernel) {
            return Err(Error::Invalid { component: component.name.clone(), problem });
        }
        let (reference, image) = images::find(self, component, ids)?;
        let spec = match &image {
            Some(image) => Some(spec::resolve(self.folder(), component, &reference, image, private)?),
            None => None,
        };
        if let Some(spec) = &spec {
            spec.check_size(&self.container_dir(&spec.name), private)?;
            ids.alone(&spec.layers, &spec.user)
                .map_err(|problem| Error::Invalid { component: component.name.clone(), problem })?;
        }
        let had = match &old {
            Some(Known { stored: Stored::Record(record), .. }) => Some(record.as_ref()),
            _ => None,
        };
        let volumes = spec::volumes(self.folder(), component, private)?;
        // A named volume is the project's own, not the host's.
        for volume in volumes.into_iter().filter(|volume| !volume.named) {
            let new = !had.is_some_and(|record| record.spec.volumes.contains(&volume));
            plan.grants.push(Grant::Mount {
                component: component.name.clone(),
                source: volume.source,
                target: volume.target,
                readonly: volume.readonly,
                new,
            });
        }
        let live = old.as_ref().is_some_and(|known| known.live);
        for port in ports {
            plan.grants.push(Grant::Publish {
                component: component.name.clone(),
                address: port.address,
                host_port: port.host_port,
                port: port.port,
                public: !port.address.is_loopback(),
                new: !had.is_some_and(|record| record.published.contains(port)),
            });
        }
        let (action, causes) = decide(spec.as_ref(), old.as_ref(), ports, live);
        let state = match &image {
            Some(image) => ImageState::Present { reference, digest: image.digest.clone(), size: image.size },
            None => ImageState::Import { reference },
        };
        plan.steps.push(Step { component: component.name.clone(), action, causes, image: Some(state) });
        if let Some(image) = image {
            plan.notes.extend(image.notes.iter().map(|note| format!("{}: {note}", component.name)));
            plan.found.insert(component.name.clone(), image);
        }
        Ok(())
    }

    /// Every container of the project, alphabetically, running or not.
    ///
    /// # Errors
    /// [`Error::NewerState`], [`Error::Untrusted`], [`Error::Io`].
    pub fn status(&self) -> Result<Vec<ContainerStatus>> {
        let known = self.known()?;
        Ok(known.into_iter().map(|(name, known)| known.status(name)).collect())
    }

    /// What is known of the project's containers, as true as it was when this was called.
    fn known(&self) -> Result<BTreeMap<String, Known>> {
        let known = self.read_known()?;
        if !known.values().any(Known::is_behind) {
            return Ok(known);
        }
        // A container ended this moment. Its supervisor answers after having taken note of it; if it does not answer, it
        // is gone too, and then the records say so.
        if let Ok(Some(mut client)) = Client::connect(self) {
            client.status().ok();
        }
        self.read_known()
    }

    fn read_known(&self) -> Result<BTreeMap<String, Known>> {
        let dir = self.state_dir();
        if dir.symlink_metadata().is_ok() {
            check_private(&dir)?;
        }
        let names = record::list(&self.containers_dir())?;
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let listening = client::dial(self)?.map(|(_, pid)| pid);
        let mut alive = HashSet::new();
        let mut known = BTreeMap::new();
        for name in names {
            let dir = self.container_dir(&name);
            let stored =
                record::read(&dir, self.identity())?.unwrap_or_else(|| Stored::Unknown("it has no record".to_owned()));
            let live = match &stored {
                Stored::Record(record) if record.state.is_live() => {
                    let believed = listening == Some(record.supervisor.pid)
                        || alive.contains(&record.supervisor.pid)
                        || record.supervisor.lives();
                    if believed {
                        alive.insert(record.supervisor.pid);
                    }
                    believed
                }
                _ => false,
            };
            known.insert(name, Known { stored, live });
        }
        Ok(known)
    }
}

/// A container of which something is on disk.
struct Known {
    stored: Stored,
    /// Its record says that it runs, and is believed.
    live: bool,
}

/// What of the limits does not hold here, where their authors are content with that.
fn limits_notes(composition: &Composition, supervisor: Option<u32>, folder: &Path) -> Result<Vec<String>> {
    let mut limited = composition.components.iter().filter(|c| cgroup::any(&c.limits)).peekable();
    if limited.peek().is_none() {
        return Ok(Vec::new());
    }
    let outlook = Outlook::new(supervisor);
    let mut notes = Vec::new();
    for component in limited {
        let unheld = cgroup::check(&outlook, &component.name, &component.limits, folder)?;
        notes.extend(unheld.iter().map(|one| format!("{}: {}", component.name, one.note())));
    }
    Ok(notes)
}

impl Known {
    /// Pid of the supervisor that runs it.
    fn supervisor(&self) -> Option<u32> {
        match &self.stored {
            Stored::Record(record) if self.live => Some(record.supervisor.pid),
            _ => None,
        }
    }

    /// Whether the record says that a process runs which does not.
    fn is_behind(&self) -> bool {
        match &self.stored {
            Stored::Record(record) if self.live && record.state == State::Running => {
                record.pid.and_then(Incarnation::of).is_none()
            }
            _ => false,
        }
    }

    fn status(self, name: String) -> ContainerStatus {
        match self.stored {
            Stored::Record(record) if self.live => {
                let usage = record.group.as_deref().and_then(|group| cgroup::stats_at(group, &name));
                ContainerStatus { usage, ..record.status() }
            }
            Stored::Record(record) => record.dead(),
            Stored::Unknown(why) => ContainerStatus {
                component: name,
                state: State::Unknown,
                health: None,
                last_probe: None,
                pid: None,
                exit_code: None,
                started: None,
                finished: None,
                restarts: 0,
                image: String::new(),
                digest: String::new(),
                command: Vec::new(),
                address: None,
                ports: Vec::new(),
                ids: String::new(),
                notes: Vec::new(),
                usage: None,
                labels: BTreeMap::new(),
                failure: Some(Report {
                    code: "S0107".to_owned(),
                    message: why,
                    help: Some("the next `ctst run` replaces it".to_owned()),
                    exit: containust_shared::exit::TOOL,
                }),
            },
        }
    }
}

fn decide(spec: Option<&ContainerSpec>, old: Option<&Known>, ports: &[Published], live: bool) -> (Action, Vec<String>) {
    let record: &Record = match old {
        None => return (Action::Create, Vec::new()),
        Some(Known { stored: Stored::Unknown(why), .. }) => return (Action::Replace, vec![why.clone()]),
        Some(Known { stored: Stored::Record(record), .. }) => record,
    };
    let Some(spec) = spec else { return (Action::Replace, vec!["its image is imported anew".to_owned()]) };
    if spec.hash() != record.hash {
        return (Action::Replace, spec.differences(&record.spec));
    }
    if !live && record.state == State::Completed {
        return (Action::Unchanged, Vec::new());
    }
    if !live {
        let cause = match record.dead().state {
            State::Exited => format!("it exited with {}", record.exit_code.unwrap_or_default()),
            State::Dead => "it was killed".to_owned(),
            state => format!("it is {}", state.name()),
        };
        return (Action::Start, vec![cause]);
    }
    if record.published == ports {
        (Action::Unchanged, Vec::new())
    } else {
        (Action::Update, vec!["published ports changed".to_owned()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{PROJECT, spec};

    fn known(state: State, live: bool) -> Known {
        let mut record =
            Record::new(PROJECT, "stack.ctst".into(), spec("web"), String::new(), Incarnation { pid: 1, start: 0 });
        record.state = state;
        record.exit_code = Some(3);
        Known { stored: Stored::Record(Box::new(record)), live }
    }

    #[test]
    fn decides() {
        let spec = spec("web");
        let ports = [Published { address: [127, 0, 0, 1].into(), host_port: 80, port: 80 }];
        let decide = |old: Option<Known>, ports: &[Published]| {
            let live = old.as_ref().is_some_and(|k| k.live);
            super::decide(Some(&spec), old.as_ref(), ports, live)
        };
        assert_eq!(decide(None, &[]), (Action::Create, vec![]));
        assert_eq!(decide(Some(known(State::Running, true)), &[]), (Action::Unchanged, vec![]));
        assert_eq!(decide(Some(known(State::Running, true)), &ports).0, Action::Update);
        assert_eq!(decide(Some(known(State::Running, false)), &[]), (Action::Start, vec!["it was killed".into()]));
        assert_eq!(decide(Some(known(State::Exited, false)), &[]), (Action::Start, vec!["it exited with 3".into()]));
        assert_eq!(decide(Some(known(State::Completed, false)), &[]), (Action::Unchanged, vec![]));
        let unknown = Known { stored: Stored::Unknown("damaged".into()), live: false };
        assert_eq!(decide(Some(unknown), &[]), (Action::Replace, vec!["damaged".into()]));
        let mut other = crate::record::tests::spec("web");
        other.argv.push("x".into());
        let old = known(State::Running, true);
        assert_eq!(
            super::decide(Some(&other), Some(&old), &[], true),
            (Action::Replace, vec!["command changed".into()])
        );
        assert_eq!(super::decide(None, Some(&old), &[], true).0, Action::Replace);
    }

    #[test]
    fn a_dead_record_is_shown_as_dead() {
        assert_eq!(known(State::Running, false).status("web".into()).state, State::Dead);
        assert_eq!(known(State::Running, true).status("web".into()).state, State::Running);
        assert_eq!(known(State::Exited, false).status("web".into()).exit_code, Some(3));
    }
}
