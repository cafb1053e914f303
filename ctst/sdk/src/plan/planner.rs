//! Making a plan: reading what is there, and writing nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containust_image::model::Image;
use containust_lang::model::{Component, Composition, Filter, Image as Reference, Lazy, SecretSource};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::builder;
use crate::egress;
use crate::error::{Error, Report, Result};
use crate::host::cgroup::{self, Outlook, Unheld};
use crate::host::devices;
use crate::host::fuse;
use crate::host::ids::Ids;
use crate::host::kernel;
use crate::host::listening::Listening;
use crate::host::low_port;
use crate::host::places::Places;
use crate::host::policy::Policy;
use crate::host::ways::Ways;
use crate::images;
use crate::ipc::client::{self, Client};
use crate::logs::escape;
use crate::plan::compare::{self, Verdict};
use crate::plan::graph::GraphResolver;
use crate::plan::layer;
use crate::plan::{Action, Cause, Drift, DriftKind, Grant, ImageState, Plan, Step};
use crate::project::{Project, check_private};
use crate::record::{self, Incarnation, Record, Stored};
use crate::rights;
use crate::run::{PAUSE, published};
use crate::secrets::{self, Values};
use crate::spec::{self, ContainerSpec};
use crate::status::{ContainerStatus, Health, HostPort, Published, State};

/// Everything that is known of a container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// What `ctst ps` tells.
    #[serde(flatten)]
    pub status: ContainerStatus,
    /// The `.ctst` file that it comes from.
    pub file: Option<String>,
    /// Its folder on the host: record, log, writable layer.
    pub folder: PathBuf,
    /// What it was made from, every default filled in; none where its record cannot be read. What a secret stands in is
    /// shown with the secret's name.
    pub spec: Option<serde_json::Value>,
}

/// How often records are read that change while they are read.
const ATTEMPTS: u32 = 5;

impl Project {
    /// What a run of `composition` would do now.
    ///
    /// # Errors
    /// What a run would be refused for: a missing volume source, an image that cannot be had, users that cannot be
    /// mapped, components that wait for each other. All that is wrong with components is told at once, in
    /// [`Error::Several`].
    pub fn plan(&self, composition: &Composition) -> Result<Plan> {
        self.plan_with(composition, composition, false)
    }

    /// The same of these components alone, among which is all that they need: what is wrong with others is not theirs.
    ///
    /// # Errors
    /// As [`Project::plan`].
    pub fn plan_some(&self, composition: &Composition, chosen: &HashSet<String>) -> Result<Plan> {
        let is_chosen = |name: &str| chosen.contains(name);
        if composition.components.iter().all(|component| is_chosen(&component.name)) {
            return self.plan(composition);
        }
        let Composition { name, components, exposures, volumes, secrets, labels } = composition;
        let part = Composition {
            name: name.clone(),
            components: components.iter().filter(|component| is_chosen(&component.name)).cloned().collect(),
            exposures: exposures.iter().filter(|exposure| is_chosen(&exposure.component)).cloned().collect(),
            volumes: volumes.clone(),
            secrets: secrets.clone(),
            labels: labels.clone(),
        };
        let mut plan = self.plan_with(&part, composition, false)?;
        // The others are not surplus.
        plan.steps.retain(|step| chosen.contains(&step.component));
        Ok(plan)
    }

    /// The same of a part of the `whole`; `kept`: with what it takes to see later whether it still holds.
    pub(crate) fn plan_with(&self, composition: &Composition, whole: &Composition, kept: bool) -> Result<Plan> {
        let graph = GraphResolver::new(composition)?;
        let policy = Policy::read()?;
        policy.admit()?;
        let ids = Ids::detect()?;
        let published = published(composition)?;
        let expected = composition.components.iter().map(|component| component.name.as_str());
        let (mut known, serving) = self.known(&expected.collect::<Vec<_>>())?;
        let plan = Plan {
            project: composition.name.clone(),
            steps: Vec::with_capacity(composition.components.len()),
            grants: Vec::new(),
            drift: Vec::new(),
            ids: ids.to_string(),
            notes: Vec::new(),
            found: BTreeMap::new(),
            state: BTreeMap::new(),
        };
        let held = known.values().filter(|known| known.live).filter_map(Known::record);
        let held = held.flat_map(|record| record.published.iter().map(Published::on_host)).collect();
        let mut planner = Planner {
            project: self,
            policy,
            ids,
            places: Places::new(self.private_dirs()),
            kept,
            serving,
            held,
            listening: None,
            sources: composition.secrets.iter().filter_map(|s| Some((s.name.as_str(), s.source.as_ref()?))).collect(),
            images: HashMap::new(),
            renewed: HashMap::new(),
            ways: Ways::new(self, &whole.components),
            plan,
        };
        // Who may not write may not look a supervisor in the face either: its records name it.
        let named = || known.values().filter(|known| known.live).find_map(|known| Some(known.record()?.supervisor.pid));
        let unheld = limits_notes(composition, serving.or_else(named), self.folder())?;
        let by_name: HashMap<&str, &Component> =
            composition.components.iter().map(|component| (component.name.as_str(), component)).collect();
        let all: Vec<&Component> = composition.components.iter().collect();
        let mut errors: Vec<Error> = secrets::check(self, &all, &composition.secrets).err().into_iter().collect();
        for secret in &composition.secrets {
            if let Some(SecretSource::File(path)) = &secret.source {
                errors.extend(planner.ways.check(path, None).err());
            }
        }
        for name in graph.start_order() {
            let Some(&component) = by_name.get(name) else { continue };
            let ports = published.get(name).map(Vec::as_slice).unwrap_or_default();
            if let Err(error) = planner.component(component, ports, known.remove(name)) {
                errors.push(error);
            }
        }
        if let Some(error) = Error::several(errors) {
            return Err(error);
        }
        for (component, known) in known {
            planner.surplus(component, &known);
        }
        // Where nothing starts, it was said when it did.
        if planner.plan.changes() {
            planner.plan.notes.extend(unheld);
            let note = planner.alone(composition);
            planner.plan.notes.extend(note);
            if !planner.ids.has_overlay() {
                let note =
                    "each container has a copy of its image: policy.conf of this host allows no overlay in strict mode";
                planner.plan.notes.push(note.to_owned());
            }
        }
        Ok(planner.plan)
    }

    /// Whether the host's policy allows `composition`, as far as that can be told without its images and with the volumes
    /// that are there. A plan tells the rest.
    ///
    /// # Errors
    /// [`Error::Denied`], several as [`Error::Several`]; [`Error::Policy`] where the policy cannot be read.
    pub fn judge(&self, composition: &Composition) -> Result<()> {
        let policy = Policy::read()?;
        policy.admit()?;
        let (published, places) = (published(composition)?, Places::new(self.private_dirs()));
        let mut errors = Vec::new();
        for component in &composition.components {
            let name = component.name.as_str();
            let volume = |volume| spec::volume(self.folder(), name, volume, &places).ok();
            let volumes: Vec<_> = component.volumes.iter().filter_map(volume).collect();
            let given = devices::find(component).unwrap_or_default();
            let ports = published.get(name).map(Vec::as_slice).unwrap_or_default();
            errors.extend(policy.judge_parts(component, &self.container_dir(name), &volumes, &given, ports).err());
        }
        Error::several(errors).map_or(Ok(()), Err)
    }

    /// Every container of the project, alphabetically, running or not.
    ///
    /// # Errors
    /// [`Error::NewerState`], [`Error::Untrusted`], [`Error::Io`].
    pub fn status(&self) -> Result<Vec<ContainerStatus>> {
        let (known, _) = self.known(&[])?;
        Ok(known.into_iter().map(|(name, known)| known.status(name)).collect())
    }

    /// As [`Project::status`], of the containers that come from this project's file. One whose record cannot be read is of
    /// every file.
    ///
    /// # Errors
    /// As [`Project::status`].
    pub fn own_status(&self) -> Result<Vec<ContainerStatus>> {
        let (mut known, _) = self.known(&[])?;
        let file = self.file_name();
        known.retain(|_, known| known.record().is_none_or(|record| record.is_of(&file)));
        Ok(known.into_iter().map(|(name, known)| known.status(name)).collect())
    }

    /// Everything that is known of the project's containers, alphabetically. Of secrets the names only, of which nothing more
    /// is on any disk.
    ///
    /// # Errors
    /// As [`Project::status`].
    pub fn inspect(&self) -> Result<Vec<Inspection>> {
        let (known, _) = self.known(&[])?;
        let inspection = |(name, known): (String, Known)| {
            let record = known.record();
            let spec = record.map(|record| serde_json::to_value(&record.spec)).transpose();
            Ok(Inspection {
                file: record.map(|record| record.file.clone()),
                folder: self.container_dir(&name),
                spec: spec.map_err(|error| Error::protocol(error.to_string()))?,
                status: known.status(name),
            })
        };
        known.into_iter().map(inspection).collect()
    }

    /// What is known of the project's containers, as true as it was when this was called, and the pid of the supervisor
    /// that serves the project. Of the `expected` ones there are containers, where they are not just being made anew.
    fn known(&self, expected: &[&str]) -> Result<(BTreeMap<String, Known>, Option<u32>)> {
        let mut missed = 0;
        for _ in 0..ATTEMPTS {
            let (known, serving) = self.read_known()?;
            let served = serving.is_some() || known.values().any(|known| known.live);
            let missing = expected.iter().filter(|name| served && !known.contains_key(**name)).count();
            if missing == missed && !known.values().any(|known| known.is_behind(served)) {
                return Ok((known, serving));
            }
            missed = missing;
            // A container ended or is being made this moment. Its supervisor answers after having taken note of it; if it
            // does not answer, it is gone too, and then the records say so. Who has given up the right to write is not let
            // near enough to other processes to trust one, and waits instead.
            match Client::connect(self) {
                Ok(Some(mut client)) => drop(client.status()),
                _ => std::thread::sleep(PAUSE),
            }
        }
        self.read_known()
    }

    fn read_known(&self) -> Result<(BTreeMap<String, Known>, Option<u32>)> {
        let dir = self.state_dir();
        if dir.symlink_metadata().is_ok() {
            check_private(&dir)?;
        }
        let names = record::list(&self.containers_dir())?;
        if names.is_empty() {
            return Ok((BTreeMap::new(), None));
        }
        let serving = client::dial(self)?.map(|(_, pid)| pid);
        let mut alive = HashSet::new();
        let mut known = BTreeMap::new();
        for name in names {
            let dir = self.container_dir(&name);
            let stored = match record::read(&dir, self.identity())? {
                Some(stored) => stored,
                // It was removed since it was listed.
                None if dir.symlink_metadata().is_err() => continue,
                // Its supervisor was killed before there was anything in it.
                None if serving.is_none() && std::fs::read_dir(&dir).is_ok_and(|mut list| list.next().is_none()) => {
                    continue;
                }
                None => Stored::Unknown(NO_RECORD.to_owned()),
            };
            let live = match &stored {
                Stored::Record(record) if record.state.is_live() => {
                    let pid = record.supervisor.pid;
                    serving == Some(pid) || alive.contains(&pid) || (record.supervisor.lives() && alive.insert(pid))
                }
                _ => false,
            };
            known.insert(name, Known { stored, live });
        }
        Ok((known, serving))
    }
}

const NO_RECORD: &str = "it has no record";

/// A container of which something is on disk.
struct Known {
    stored: Stored,
    /// Its record says that it runs, and is believed.
    live: bool,
}

/// What of the limits does not hold here, where their authors are content with that: one note for each reason.
fn limits_notes(composition: &Composition, supervisor: Option<u32>, folder: &Path) -> Result<Vec<String>> {
    let limits = composition.components.iter().filter_map(|c| Some((c.name.as_str(), c.limits.as_deref()?)));
    let mut limited = limits.filter(|(_, limits)| cgroup::any(limits)).peekable();
    if limited.peek().is_none() {
        return Ok(Vec::new());
    }
    let outlook = Outlook::new(supervisor);
    let mut reasons: BTreeMap<String, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for (name, limits) in limited {
        for unheld in cgroup::check(&outlook, name, limits, folder)? {
            let Unheld { limit, .. } = unheld;
            let components = reasons.entry(unheld.reason()).or_default().entry(limit).or_default();
            if components.last() != Some(&name) {
                components.push(name);
            }
        }
    }
    let note = |(reason, limits): (String, BTreeMap<&str, Vec<&str>>)| {
        let limits = limits.iter().map(|(limit, components)| format!("{limit} ({})", components.join(", ")));
        format!("limits that do not hold here: {}: {reason}", limits.collect::<Vec<_>>().join(", "))
    };
    Ok(reasons.into_iter().map(note).collect())
}

impl Known {
    fn record(&self) -> Option<&Record> {
        match &self.stored {
            Stored::Record(record) => Some(record),
            Stored::Unknown(_) => None,
        }
    }

    /// Whether the record is not yet, or no longer, what the supervisor would say: it says that a process runs which does
    /// not, or is still to be written.
    fn is_behind(&self, served: bool) -> bool {
        match &self.stored {
            Stored::Record(_) => self.is_gone(),
            Stored::Unknown(why) => served && why == NO_RECORD,
        }
    }

    /// Whether the record says that a process runs which does not.
    fn is_gone(&self) -> bool {
        let running = self.record().filter(|record| self.live && record.state == State::Running);
        running.is_some_and(|record| record.pid.and_then(Incarnation::of).is_none())
    }

    /// Whether it is a job that has done its work.
    fn is_completed(&self) -> bool {
        self.record().is_some_and(|record| record.state == State::Completed)
    }

    /// What a plan depends on, as a text that is the same as long as it is.
    fn fingerprint(&self) -> String {
        match &self.stored {
            Stored::Record(record) => {
                let state = if self.live { "live" } else { record.state.name() };
                format!("{} {state} {:?} {:?} {:?}", record.hash, record.published, record.file, record.also)
            }
            Stored::Unknown(why) => why.clone(),
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
                lazy: false,
                unpacked: None,
                command: Vec::new(),
                address: None,
                addresses: Vec::new(),
                ports: Vec::new(),
                ids: String::new(),
                notes: Vec::new(),
                usage: None,
                replica_of: None,
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

/// A plan in the making.
struct Planner<'a> {
    project: &'a Project,
    policy: Policy,
    ids: Ids,
    places: Places,
    kept: bool,
    /// The supervisor that serves the project.
    serving: Option<u32>,
    /// Ports that the project itself publishes now.
    held: HashSet<HostPort>,
    /// Sockets of this host that listen, once somebody wants to know.
    listening: Option<Listening>,
    /// By image as JSON: its reference, and the image if it is in the store.
    images: HashMap<String, (String, Option<Arc<Image>>)>,
    /// What is replaced or restarted, so that its dependents are.
    renewed: HashMap<String, Action>,
    /// Where secrets come from, as far as the composition says it.
    sources: HashMap<&'a str, &'a SecretSource>,
    ways: Ways<'a>,
    plan: Plan,
}

impl Planner<'_> {
    fn component(&mut self, component: &Component, ports: &[Published], old: Option<Known>) -> Result<()> {
        let kernel = || kernel::problem(&component.ulimits, &component.sysctls, &component.groups, &self.ids);
        let rights = || rights::problem(component);
        if let Some(problem) = builder::problem(component).or_else(kernel).or_else(rights) {
            return Err(Error::Invalid { component: component.name.clone(), problem });
        }
        let name = &component.name;
        let (reference, image) = match self.kept_image(component, old.as_ref())? {
            Some((reference, image)) => (reference, Some(Arc::new(image))),
            None => self.image(component)?,
        };
        let reads_archive = match &image {
            Some(image) => image.lazy.is_some(),
            None => images::is_lazy(self.project, component, &self.ids),
        };
        if reads_archive {
            self.can_be_lazy(name)?;
        }
        let (folder, project) = (self.project.folder(), self.project);
        let read = |path: &str| project.read_named(path);
        let spec = match &image {
            Some(image) => Some(spec::resolve((folder, &read), component, &reference, image, &self.places)?),
            // A profile that cannot be used is told of before its image is fetched.
            None => rights::seccomp(&read, component).map(|_| None)?,
        };
        if let Some(spec) = &spec {
            let plan = spec.unopened(
                &self.project.container_dir(name),
                self.ids.has_overlay(),
                &self.places,
                &Values::default(),
            )?;
            self.policy.judge(name, &plan, (&spec.limits, &spec.network), ports)?;
            let invalid = |problem| Error::Invalid { component: name.clone(), problem };
            spec.alone(&self.ids).map_err(invalid)?;
            self.ids.lacks(&spec.user).map_or(Ok(()), |problem| Err(invalid(problem)))?;
        }
        self.kept_ports(name, ports)?;
        let had = old.as_ref().and_then(Known::record);
        // A named volume is the project's own, not the host's.
        let (volumes, given) = match &spec {
            Some(spec) => (spec.volumes.clone(), spec.devices.clone()),
            None => {
                let (volumes, given) = (spec::volumes(folder, component, &self.places)?, devices::find(component)?);
                let dir = self.project.container_dir(name);
                self.policy.judge_parts(component, &dir, &volumes, &given, ports)?;
                (volumes, given)
            }
        };
        for (asked, found) in component.devices.iter().zip(&given) {
            self.ways.check(&asked.source, Some(&found.source))?;
            devices::can_be_opened(name, &found.source, &self.ids)?;
        }
        for (asked, found) in component.volumes.iter().zip(&volumes).filter(|(volume, _)| !volume.named) {
            self.ways.check(&asked.source, Some(&found.source))?;
        }
        if let Some(profile) = &component.seccomp.profile
            && self.project.bundle()?.is_none()
        {
            self.ways.check(profile, None)?;
        }
        for volume in volumes.into_iter().filter(|volume| !volume.named) {
            let new = !had.is_some_and(|record| record.spec.volumes.contains(&volume));
            if new
                && !volume.readonly
                && let Some(why) = self.ids.cannot_write(&volume.source)
            {
                self.plan.notes.push(format!("{name}: {why}"));
            }
            self.plan.grants.push(Grant::Mount {
                component: name.clone(),
                source: volume.source,
                target: volume.target,
                readonly: volume.readonly,
                new,
            });
        }
        for device in given {
            let new = !had.is_some_and(|record| record.spec.devices.contains(&device));
            let spec::Device { source, target } = device;
            self.plan.grants.push(Grant::Device { component: name.clone(), source, target, new });
        }
        for port in ports {
            self.plan.grants.push(Grant::Publish {
                component: name.clone(),
                address: port.address,
                host_port: port.host_port,
                port: port.port,
                protocol: port.protocol,
                public: !port.address.is_loopback(),
                new: !had.is_some_and(|record| record.published.contains(port) || record.granted.contains(port)),
            });
        }
        if let Some(on) = component.network.attachments().into_iter().find(|on| on.ipv6)
            && !Path::new("/proc/sys/net/ipv6").exists()
        {
            return Err(Error::NoIpv6 { component: name.clone(), network: on.network });
        }
        for on in component.network.attachments().into_iter().filter(|on| on.egress) {
            // A run would find the same.
            egress::find()?;
            let known = |record: &Record| {
                record.spec.network.attachments().iter().any(|had| had.egress && had.network == on.network)
            };
            let (component, new) = (name.clone(), !had.is_some_and(known));
            self.plan.grants.push(Grant::Egress { component, network: on.network, new });
        }
        for capability in rights::beyond(&component.cap_add) {
            let known = |record: &Record| rights::beyond(&record.spec.cap_add).any(|known| known == capability);
            let (component, new) = (name.clone(), !had.is_some_and(known));
            self.plan.grants.push(Grant::Capability { component, capability: capability.to_owned(), new });
        }
        if component.seccomp.filter == Filter::Compat {
            let new = !had.is_some_and(|record| record.spec.seccomp.filter == Filter::Compat);
            let filter = Filter::Compat.name().to_owned();
            self.plan.grants.push(Grant::Filter { component: name.clone(), filter, new });
        }
        for secret in secrets::names(&component.secret_env, &component.secrets, &component.configs) {
            if let Some(&source) = self.sources.get(secret) {
                let new = had.is_none() || matches!(source, SecretSource::Command(_));
                let (component, secret) = (name.clone(), secret.to_owned());
                self.plan.grants.push(Grant::Secret { component, secret, source: source.clone(), new });
            }
        }
        let hash = spec.as_ref().filter(|_| self.kept || had.is_some()).map(ContainerSpec::hash).unwrap_or_default();
        let (mut action, mut causes) = match (&spec, had) {
            (None, Some(_)) if component.distroless.is_some() => {
                let cause = "what is kept of its image has to be found out and tried first: it is replaced if that or anything else is another";
                (Action::Unknown, vec![Cause::of("image", cause)])
            }
            (None, Some(record)) if matches!(component.image, Reference::Registry { .. }) => absent(component, record),
            (None, Some(_)) if matches!(component.image, Reference::Build(_)) => {
                let cause = "its image has to be built: it is replaced if the content is another";
                (Action::Unknown, vec![Cause::of("image", cause)])
            }
            _ => decide(spec.as_ref(), &hash, old.as_ref(), ports),
        };
        let renewed = component.after.iter().filter_map(|d| Some((&d.on, *self.renewed.get(&d.on)?)));
        // What is certain first.
        if let Some((on, how)) = renewed.min_by_key(|(_, how)| *how == Action::Unknown)
            && matches!(action, Action::Unchanged | Action::Update)
        {
            let live = old.as_ref().is_some_and(|known| known.live);
            let (now, how) = match how {
                Action::Unknown => (Action::Unknown, "may be replaced"),
                Action::Replace if live => (Action::Restart, "is replaced"),
                Action::Replace => (Action::Start, "is replaced"),
                _ if live => (Action::Restart, "is restarted"),
                _ => (Action::Start, "is restarted"),
            };
            action = now;
            causes.push(Cause::of("dependency", format!("{on} {how}")));
        }
        if action.renews() || action == Action::Unknown {
            self.renewed.insert(name.clone(), action);
        }
        if let Some(known) = &old {
            self.drift(component, known, &reference, image.is_some());
        }
        self.taken_ports(name, ports)?;
        let data_loss = action == Action::Replace && self.loses(name, old.as_ref());
        if self.kept {
            let old = old.as_ref().map(Known::fingerprint);
            let print = format!("{hash} {old:?} {action:?} {data_loss} {ports:?}");
            self.plan.state.insert(name.clone(), digits(&print));
        }
        let state = match &image {
            Some(image) => {
                let (digest, size) = (image.digest.clone(), image.size);
                ImageState::Present { reference, digest, size, lazy: reads_archive }
            }
            None => {
                // That of the image before it is stripped says nothing of what it becomes.
                let digest = images::known_digest(component).filter(|_| component.distroless.is_none());
                let digest = digest.map(|digest| format!("sha256:{digest}"));
                ImageState::Import { reference, digest, lazy: reads_archive }
            }
        };
        self.plan.steps.push(Step { component: name.clone(), action, causes, data_loss, image: Some(state) });
        if let Some(image) = image {
            self.plan.found.insert(name.clone(), image);
        }
        Ok(())
    }

    /// Refuses a component that would read from its archive where nothing can.
    fn can_be_lazy(&self, component: &str) -> Result<()> {
        let overlay = "it takes an overlay, and policy.conf of this host allows none in strict mode; ask the administrator \
                       for `overlay = yes` and `fuse = yes`, or remove `lazy = true`";
        let problem = match self.ids.has_overlay() {
            true => fuse::problem().map(|problem| problem.to_string()),
            false => Some(overlay.to_owned()),
        };
        problem.map_or(Ok(()), |why| {
            Err(Error::Invalid { component: component.to_owned(), problem: format!("read its archive lazily: {why}") })
        })
    }

    /// What a container goes on to be read from, because another one would cost something: it runs, or is not run again, or holds data.
    fn kept_image(&self, component: &Component, old: Option<&Known>) -> Result<Option<(String, Image)>> {
        let Some((known, record)) = old.and_then(|known| Some((known, known.record()?))) else { return Ok(None) };
        let Some(lazy) = &record.spec.lazy else { return Ok(None) };
        let is_lazy = component.lazy != Some(Lazy::No) && matches!(component.image, Reference::Tar { .. });
        let costs = known.live && !known.is_gone() || known.is_completed() || self.loses(&component.name, old);
        match is_lazy && costs {
            true => images::find_indexed(self.project, component, &self.ids, &lazy.index),
            false => Ok(None),
        }
    }

    /// Each image is looked up once, and what a person should know of it is said once.
    fn image(&mut self, component: &Component) -> Result<(String, Option<Arc<Image>>)> {
        // An image is made of strings, so that serialising cannot fail.
        let own = matches!(component.image, Reference::Build(_)) || component.distroless.is_some();
        let own = own.then_some(&component.name);
        let key = serde_json::to_string(&(&component.image, component.lazy, own)).unwrap_or_default();
        if let Some((reference, image)) = self.images.get(&key) {
            return Ok((reference.clone(), image.clone()));
        }
        let (reference, image) = images::find(self.project, component, &self.ids, &self.ways)?;
        for note in image.iter().flat_map(|image| &image.notes) {
            self.plan.notes.push(format!("{}: {note}", component.name));
        }
        let image = image.map(Arc::new);
        self.images.insert(key, (reference.clone(), image.clone()));
        Ok((reference, image))
    }

    /// Who is root of a whole image, and may find that there is nobody else to be.
    fn alone(&self, composition: &Composition) -> Option<String> {
        let Ids::Single(why) = &self.ids else { return None };
        let root = |component: &&Component| {
            let user = component.user.as_deref().unwrap_or_default();
            matches!(component.image, Reference::File { .. }) && matches!(user, "" | "0" | "root")
        };
        let names: Vec<&str> = composition.components.iter().filter(root).map(|c| c.name.as_str()).collect();
        (!names.is_empty()).then(|| {
            format!(
                "only one id is mapped here, {why}: a program that begins as root can neither go on as another user nor give a file to \
                 one ({}); `ctst doctor` says how to have more ids, or give it a number as `user`, which then stands for you",
                names.join(", ")
            )
        })
    }

    /// A container that the file does not name.
    fn surplus(&mut self, component: String, known: &Known) {
        let own = self.project.file_name();
        if let Some(record) = known.record()
            && let Some(other) = std::iter::once(&record.file).chain(&record.also).find(|file| **file != own)
        {
            let file = escape(other.as_bytes());
            self.plan
                .notes
                .push(format!("{component} is left alone: it belongs to {file}, another file of this folder"));
            return;
        }
        let data_loss = self.loses(&component, Some(known));
        if self.kept {
            self.plan.state.insert(component.clone(), digits(&format!("{} {data_loss}", known.fingerprint())));
        }
        let causes = vec![Cause::of("file", "the file no longer deploys it")];
        self.plan.steps.push(Step { component, action: Action::Remove, causes, data_loss, image: None });
    }

    fn loses(&self, name: &str, old: Option<&Known>) -> bool {
        let spec = old.and_then(Known::record).map(|record| &record.spec);
        old.is_some() && layer::holds_data(&self.project.container_dir(name), spec)
    }

    /// What is otherwise than the last run left it.
    fn drift(&mut self, component: &Component, known: &Known, reference: &str, in_store: bool) {
        let name = &component.name;
        let mut say = |kind, message: String| {
            self.plan.drift.push(Drift { component: name.to_owned(), kind, message });
        };
        let record = match &known.stored {
            Stored::Record(record) => record,
            Stored::Unknown(why) => return say(DriftKind::Record, why.clone()),
        };
        match record.state {
            state if state.is_live() && !known.live => {
                say(DriftKind::Killed, "it was killed, and its supervisor with it".to_owned());
            }
            _ if known.is_gone() => say(DriftKind::Killed, "its processes are gone".to_owned()),
            State::Exited => {
                say(DriftKind::Exited, format!("it ended with {}", record.exit_code.unwrap_or_default()));
            }
            State::Failed => {
                let why = record.failure.as_ref().map_or("it could not be started", |report| &report.message);
                say(DriftKind::Failed, why.to_owned());
            }
            _ => {}
        }
        if known.live && record.health == Some(Health::Unhealthy) {
            say(DriftKind::Unhealthy, "its health check fails".to_owned());
        }
        if let Some(pid) = self.serving.filter(|pid| known.live && *pid != record.supervisor.pid) {
            let writer = record.supervisor.pid;
            say(DriftKind::Record, format!("process {writer} wrote its record, and process {pid} serves the project"));
        }
        if !in_store && record.spec.image == reference {
            let whole = record.spec.layers.iter().all(|layer| layer.is_dir());
            let message = match (&component.image, images::known_digest(component)) {
                _ if component.distroless.is_some() => "what its image is stripped of, or what is kept, was changed",
                // Another digest is a change, and told as one.
                (Reference::Registry { .. }, Some(digest)) if record.spec.digest != format!("sha256:{digest}") => {
                    return;
                }
                (Reference::Registry { .. }, None) => "containust.lock no longer says which image it has",
                (Reference::Registry { .. } | Reference::Bundled { .. }, _) => "the store no longer has its image",
                (Reference::Build(_), _) if whole => "what its image is built from was changed since it was built",
                _ if whole => "the source of its image was touched since it was imported",
                _ => "the store no longer has its image",
            };
            say(DriftKind::Image, message.to_owned());
        }
    }

    /// Ports that are wanted, that the project does not hold, and that the kernel keeps from this user.
    fn kept_ports(&mut self, name: &str, ports: &[Published]) -> Result<()> {
        let new = ports.iter().map(Published::on_host).filter(|port| !self.held.contains(port));
        for place in new.filter(|port| low_port::is_kept(port.place.port())) {
            low_port::predict(&self.policy, name, place)?;
            self.plan.notes.push(format!("{name}: ctst-port binds {place}, because the policy of this host allows it"));
        }
        Ok(())
    }

    /// Ports that are wanted and that somebody else holds.
    fn taken_ports(&mut self, name: &str, ports: &[Published]) -> Result<()> {
        for port in ports.iter().map(Published::on_host).filter(|port| !self.held.contains(port)) {
            let listening = match &self.listening {
                Some(listening) => listening,
                None => self.listening.insert(Listening::read()?),
            };
            if listening.blocks(port) {
                let message = format!("another process listens on {port}, which it publishes");
                self.plan.drift.push(Drift { component: name.to_owned(), kind: DriftKind::Port, message });
            }
        }
        Ok(())
    }
}

/// Sixteen digits that stand for a text.
fn digits(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What happens to a component by itself. `hash` is that of `spec`.
fn decide(spec: Option<&ContainerSpec>, hash: &str, old: Option<&Known>, ports: &[Published]) -> (Action, Vec<Cause>) {
    let (known, record) = match old {
        None => return (Action::Create, Vec::new()),
        Some(Known { stored: Stored::Unknown(why), .. }) => return (Action::Replace, vec![Cause::of("record", why)]),
        Some(known @ Known { stored: Stored::Record(record), .. }) => (known, record),
    };
    let Some(spec) = spec else {
        let cause = "its image has to be imported: it is replaced if the content is another";
        return (Action::Unknown, vec![Cause::of("image", cause)]);
    };
    let mut causes = match compare::judge(spec, hash, record) {
        Verdict::Replace(causes) => return (Action::Replace, causes),
        Verdict::InPlace(causes) => causes,
        Verdict::Same => Vec::new(),
    };
    if known.is_completed() {
        return (if causes.is_empty() { Action::Unchanged } else { Action::Update }, causes);
    }
    if !known.live || known.is_gone() {
        let cause = match record.dead().state {
            _ if known.live => "its processes are gone".to_owned(),
            State::Exited => format!("it ended with {}", record.exit_code.unwrap_or_default()),
            State::Dead => "it was killed".to_owned(),
            state => format!("it is {}", state.name()),
        };
        causes.insert(0, Cause::of("state", cause));
        return (Action::Start, causes);
    }
    let text = |port: &Published| format!("{} -> {}", port.on_host(), port.port);
    for port in record.published.iter().filter(|port| !ports.contains(port)) {
        causes.push(Cause { old: Some(text(port)), in_place: true, ..Cause::of("ports", "port withdrawn") });
    }
    for port in ports.iter().filter(|port| !record.published.contains(port)) {
        causes.push(Cause { new: Some(text(port)), in_place: true, ..Cause::of("ports", "port published") });
    }
    (if causes.is_empty() { Action::Unchanged } else { Action::Update }, causes)
}

/// What happens to a component whose image is in a registry, and not in the store.
fn absent(component: &Component, record: &Record) -> (Action, Vec<Cause>) {
    let same_name = matches!(&component.image, Reference::Registry { name, .. }
        if record.spec.image.strip_prefix("oci://").and_then(|image| image.split('@').next()) == Some(name));
    match images::known_digest(component).map(|digest| format!("sha256:{digest}")) {
        Some(digest) if digest != record.spec.digest && same_name => {
            let (old, new) = (Some(record.spec.digest.clone()), Some(digest));
            (
                Action::Replace,
                vec![Cause { old, new, ..Cause::of("image", "another digest of its image is locked or pinned") }],
            )
        }
        Some(_) => {
            let cause = "its image has to be pulled: it is replaced if the content is another";
            (Action::Unknown, vec![Cause::of("image", cause)])
        }
        None => {
            let cause =
                "no digest of its image is locked, so the registry is asked: it is replaced if that has another";
            (Action::Unknown, vec![Cause::of("image", cause)])
        }
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
        record.pid = Some(std::process::id());
        Known { stored: Stored::Record(Box::new(record)), live }
    }

    #[test]
    fn decides() {
        let spec = spec("web");
        let ports = [Published {
            address: [127, 0, 0, 1].into(),
            host_port: 80,
            port: 80,
            protocol: containust_lang::model::Protocol::Tcp,
        }];
        let decide = |spec: Option<&ContainerSpec>, old: Option<Known>, ports: &[Published]| {
            let hash = spec.map(ContainerSpec::hash).unwrap_or_default();
            let (action, causes) = super::decide(spec, &hash, old.as_ref(), ports);
            (action, causes.into_iter().map(|cause| cause.message).collect::<Vec<_>>())
        };
        let same = Some(&spec);
        assert_eq!(decide(same, None, &[]), (Action::Create, vec![]));
        assert_eq!(decide(same, Some(known(State::Running, true)), &[]), (Action::Unchanged, vec![]));
        assert_eq!(
            decide(same, Some(known(State::Running, true)), &ports),
            (Action::Update, vec!["port published".into()])
        );
        assert_eq!(
            decide(same, Some(known(State::Running, false)), &[]),
            (Action::Start, vec!["it was killed".into()])
        );
        assert_eq!(decide(same, Some(known(State::Exited, false)), &[]).1, ["it ended with 3"]);
        let unknown = Known { stored: Stored::Unknown("damaged".into()), live: false };
        assert_eq!(decide(same, Some(unknown), &[]), (Action::Replace, vec!["damaged".into()]));
        let mut other = spec.clone();
        other.argv.push("x".into());
        other.labels.push(("a".into(), "b".into()));
        let (action, causes) = decide(Some(&other), Some(known(State::Running, true)), &[]);
        assert_eq!((action, causes.len()), (Action::Replace, 2));
        other.argv.pop();
        assert_eq!(decide(Some(&other), Some(known(State::Running, true)), &[]).0, Action::Update);
        assert_eq!(decide(Some(&other), Some(known(State::Stopped, false)), &[]).0, Action::Start);
        assert_eq!(decide(None, Some(known(State::Running, true)), &[]).0, Action::Unknown);
        assert_eq!(decide(same, Some(known(State::Completed, false)), &[]).0, Action::Unchanged);
        let mut gone = known(State::Running, true);
        if let Stored::Record(record) = &mut gone.stored {
            record.pid = None;
        }
        assert_eq!(decide(same, Some(gone), &[]), (Action::Start, vec!["its processes are gone".into()]));
    }

    #[test]
    fn a_dead_record_is_shown_as_dead() {
        assert_eq!(known(State::Running, false).status("web".into()).state, State::Dead);
        assert_eq!(known(State::Running, true).status("web".into()).state, State::Running);
        assert_eq!(known(State::Exited, false).status("web".into()).exit_code, Some(3));
    }
}
