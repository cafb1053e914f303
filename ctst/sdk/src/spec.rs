//! A component with everything looked up: what a container is made from, and what decides whether it must be made anew.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use containust_image::Lazy;
use containust_image::model::{Config, Image};
use containust_lang::model::{
    Component, ConfigFile, Dependency, Dns, Healthcheck, Landlock, Limits, Logs, Network, Probe, Replica, Restart,
    SecretFile, SecretVariable, Stop, Tmpfs, Ulimit, Volume,
};
use containust_shared::protocol::{Address, Address6, Mount, Plan, Process, Source, Sysctl, ToContainer};
use containust_shared::wire::{self, MAX_MESSAGE, WireError};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat2};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::host::devices;
use crate::host::ids::Ids;
use crate::host::kernel;
use crate::host::places::Places;
use crate::images::declared;
use crate::logs;
use crate::rights::{self, Reading, Seccomp};
use crate::secrets::{self, Values};
use crate::status::Published;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What programs expect to be able to write, whatever the root file system is.
const WRITABLE: [(&str, u32); 3] = [("/run", 0o755), ("/tmp", 0o1777), ("/var/tmp", 0o1777)];

/// Of the empty file systems that hide what is not for containers, in bytes: one page.
const COVER_SIZE: u64 = 4096;

/// A component with everything looked up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    pub(crate) name: String,
    pub(crate) hostname: String,
    /// Reference of the image, for people.
    pub(crate) image: String,
    pub(crate) digest: String,
    pub(crate) layers: Vec<PathBuf>,
    /// What its root is read from, instead of the layers.
    #[serde(default)]
    pub(crate) lazy: Option<Lazy>,
    pub(crate) argv: Vec<String>,
    /// `NAME=value`, each name once.
    pub(crate) env: Vec<String>,
    /// Absolute; empty for `/`.
    pub(crate) cwd: String,
    pub(crate) user: String,
    pub(crate) readonly: bool,
    pub(crate) network: Network,
    pub(crate) volumes: Vec<Bind>,
    pub(crate) tmpfs: Vec<Tmpfs>,
    #[serde(default)]
    pub(crate) devices: Vec<Device>,
    pub(crate) restart: Restart,
    pub(crate) healthcheck: Option<Healthcheck>,
    pub(crate) after: Vec<Dependency>,
    #[serde(default)]
    pub(crate) job: bool,
    #[serde(default)]
    pub(crate) replica: Option<Replica>,
    /// Values are looked up at each start and never stand here.
    #[serde(default)]
    pub(crate) secret_env: Vec<SecretVariable>,
    #[serde(default)]
    pub(crate) secrets: Vec<SecretFile>,
    #[serde(default)]
    pub(crate) configs: Vec<ConfigFile>,
    #[serde(default)]
    pub(crate) limits: Limits,
    #[serde(default)]
    pub(crate) ulimits: Vec<Ulimit>,
    #[serde(default)]
    pub(crate) sysctls: Vec<(String, String)>,
    #[serde(default)]
    pub(crate) groups: Vec<String>,
    #[serde(default)]
    pub(crate) shm: Option<u64>,
    #[serde(default)]
    pub(crate) stop: Stop,
    #[serde(default)]
    pub(crate) labels: Vec<(String, String)>,
    #[serde(default)]
    pub(crate) hosts: Vec<(String, IpAddr)>,
    #[serde(default)]
    pub(crate) dns: Dns,
    #[serde(default)]
    pub(crate) logs: Logs,
    /// What its image wants to be volumes and a read-only root would keep it from writing: folders beside its writable layer,
    /// which begin with what the image has there.
    #[serde(default)]
    pub(crate) kept: Vec<String>,
    #[serde(default)]
    pub(crate) cap_add: Vec<String>,
    #[serde(default)]
    pub(crate) cap_drop: Vec<String>,
    #[serde(default)]
    pub(crate) seccomp: Seccomp,
    #[serde(default)]
    pub(crate) landlock: Option<Landlock>,
}

/// A host path mounted inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bind {
    /// Canonical; of a named volume its name.
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) readonly: bool,
    #[serde(default)]
    pub(crate) named: bool,
}

/// A device of the host, given to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    /// Canonical.
    pub(crate) source: PathBuf,
    pub(crate) target: String,
}

/// What a run wants of one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) spec: ContainerSpec,
    /// Not a part of the spec: ports are published and withdrawn while the container runs.
    pub(crate) published: Vec<Published>,
    /// Of the secrets that it refers to.
    pub(crate) secrets: Values,
    /// Name of the file that wants it: another file of the folder leaves it alone.
    pub(crate) file: String,
}

/// Looks a component's volumes up. None may lie within a private folder.
pub(crate) fn volumes(folder: &Path, component: &Component, places: &Places) -> Result<Vec<Bind>> {
    component.volumes.iter().map(|volume| self::volume(folder, &component.name, volume, places)).collect()
}

/// Looks up one volume of a component.
pub(crate) fn volume(folder: &Path, component: &str, volume: &Volume, places: &Places) -> Result<Bind> {
    let (target, readonly) = (volume.target.clone(), volume.readonly);
    if volume.named {
        return Ok(Bind { source: volume.source.clone().into(), target, readonly, named: true });
    }
    let path = folder.join(&volume.source);
    let (source, file) =
        places.canonical(&path).map_err(|source| Error::Source { component: component.to_owned(), path, source })?;
    if source.to_str().is_none() {
        let problem = format!("mount {}: its name is not UTF-8", source.display());
        return Err(Error::Invalid { component: component.to_owned(), problem });
    }
    places.shown_of(component, &source, file)?;
    Ok(Bind { source, target, readonly, named: false })
}

/// Joins a component with its image, as docker does: an entrypoint of the component's own drops the image's default
/// command; variables of the component win.
pub(crate) fn resolve(
    (folder, read): (&Path, &Reading<'_>),
    component: &Component,
    reference: &str,
    image: &Image,
    places: &Places,
) -> Result<ContainerSpec> {
    let config = &image.config;
    let invalid = |problem| Error::Invalid { component: component.name.clone(), problem };
    let argv = argv(component, config);
    if argv.is_empty() {
        return Err(invalid("start it: neither it nor its image says a command; add `command = [ … ]`".to_owned()));
    }
    let mut env = environment(component, config);
    if !env.iter().any(|entry| entry.starts_with("HOSTNAME=")) {
        env.push(format!("HOSTNAME={}", component.hostname));
    }
    Ok(ContainerSpec {
        name: component.name.clone(),
        hostname: component.hostname.clone(),
        image: reference.to_owned(),
        digest: image.digest.clone(),
        layers: image.layers.clone(),
        lazy: image.lazy.clone(),
        argv,
        env,
        cwd: workdir(component, config),
        user: component.user.clone().or_else(|| config.user.clone()).unwrap_or_default(),
        readonly: component.readonly,
        network: component.network.clone(),
        volumes: volumes(folder, component, places)?,
        tmpfs: component.tmpfs.clone(),
        devices: devices::find(component)?,
        restart: component.restart,
        healthcheck: match &component.healthcheck {
            None if !component.no_healthcheck => declared::healthcheck(&image.declared).map_err(invalid)?,
            own => own.clone(),
        },
        after: component.after.clone(),
        job: component.job,
        replica: component.replica.clone(),
        secret_env: component.secret_env.clone(),
        secrets: component.secrets.clone(),
        configs: component.configs.clone(),
        limits: component.limits.as_deref().cloned().unwrap_or_default(),
        ulimits: component.ulimits.clone(),
        sysctls: component.sysctls.clone(),
        groups: component.groups.clone(),
        shm: component.shm,
        stop: Stop {
            signal: match component.stop.signal {
                None => declared::stop_signal(&image.declared).map_err(invalid)?,
                own => own,
            },
            ..component.stop.clone()
        },
        labels: component.labels.clone(),
        hosts: component.hosts.clone(),
        dns: component.dns.as_deref().cloned().unwrap_or_default(),
        logs: component.logs.clone(),
        kept: match component.readonly {
            true => kept(component, image).map_err(invalid)?,
            // Its writable layer is as much its own, lasts as long, and begins with the image, too.
            false => Vec::new(),
        },
        cap_add: component.cap_add.clone(),
        cap_drop: component.cap_drop.clone(),
        seccomp: rights::seccomp(read, component)?,
        landlock: component.landlock.as_deref().cloned(),
    })
}

/// Program and arguments.
pub(crate) fn argv(component: &Component, config: &Config) -> Vec<String> {
    match (&component.entrypoint, &component.command) {
        (Some(entrypoint), command) => entrypoint.iter().chain(command.iter().flatten()).cloned().collect(),
        (None, Some(command)) => config.entrypoint.iter().chain(command).cloned().collect(),
        (None, None) => config.entrypoint.iter().chain(&config.command).cloned().collect(),
    }
}

/// `NAME=value`, each name once, without what is not said by either.
pub(crate) fn environment(component: &Component, config: &Config) -> Vec<String> {
    let mut env = vec![PATH.to_owned()];
    let own = component.env.iter().map(|(name, value)| format!("{name}={value}"));
    for entry in config.env.iter().cloned().chain(own) {
        set(&mut env, entry);
    }
    env
}

/// Absolute; empty for `/`.
pub(crate) fn workdir(component: &Component, config: &Config) -> String {
    let workdir = component.workdir.as_deref().or(config.workdir.as_deref()).unwrap_or_default();
    let workdir = workdir.trim_matches('/');
    if workdir.is_empty() { String::new() } else { format!("/{workdir}") }
}

/// The volumes of an image on which the component mounts nothing itself.
fn kept(component: &Component, image: &Image) -> Result<Vec<String>, String> {
    let mut kept = declared::volumes(&image.declared)?;
    let own = component.volumes.iter().map(|v| &v.target).chain(component.tmpfs.iter().map(|t| &t.target));
    let own: Vec<&str> = own.map(|target| target.trim_end_matches('/')).collect();
    kept.retain(|path| !own.contains(&path.as_str()));
    Ok(kept)
}

/// Sets `NAME=value` in an environment.
pub(crate) fn set(env: &mut Vec<String>, entry: String) {
    let name = |e: &str| e.split('=').next().unwrap_or_default().to_owned();
    let wanted = name(&entry);
    match env.iter_mut().find(|e| name(e) == wanted) {
        Some(old) => *old = entry,
        None => env.push(entry),
    }
}

/// Where in a container's folder the copy of its image is, if its root is no overlay.
pub(crate) const ROOT: &str = "root";

impl ContainerSpec {
    /// SHA-256 of the spec as JSON, in hexadecimal digits.
    pub(crate) fn hash(&self) -> String {
        // A spec is made of strings and numbers, so that serialising cannot fail.
        let json = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(json).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn log_limits(&self) -> logs::Limits {
        let usual = logs::Limits::default();
        logs::Limits {
            max_size: self.logs.max_size.unwrap_or(usual.max_size),
            max_files: self.logs.max_files.unwrap_or(usual.max_files).max(1),
        }
    }

    /// What C needs, and the descriptors that keep the inodes of its sources from being reused until it has started.
    /// `overlay`: as in [`crate::host::ids::Ids::has_overlay`]. `alone`: as in [`crate::host::ids::Ids::alone`]. `places`: folders that volumes must not show.
    pub(crate) fn plan(
        &self,
        dir: &Path,
        overlay: bool,
        addresses: Vec<Address>,
        alone: Option<(u32, u32)>,
        places: &Places,
        values: &Values,
    ) -> Result<(Plan, Vec<OwnedFd>)> {
        let mut held = Vec::new();
        let mut open = |path: &Path| -> Result<Source> {
            let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let fd = openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how);
            let stat = fd.and_then(|fd| fstat(&fd).map(|stat| (fd, stat)));
            let (fd, stat) = stat.map_err(|source| Error::Source {
                component: self.name.clone(),
                path: path.to_owned(),
                source: source.into(),
            })?;
            held.push(fd);
            Ok(Source { path: path.as_os_str().as_bytes().to_vec(), dev: stat.st_dev, ino: stat.st_ino })
        };
        let mut plan = self.plan_with(dir, addresses, alone, places, values, &mut open)?;
        self.root(&mut plan, dir, overlay, &mut open)?;
        Ok((plan, held))
    }

    fn plan_with(
        &self,
        dir: &Path,
        addresses: Vec<Address>,
        alone: Option<(u32, u32)>,
        places: &Places,
        values: &Values,
        mut open: impl FnMut(&Path) -> Result<Source>,
    ) -> Result<Plan> {
        let invalid = |problem| Error::Invalid { component: self.name.clone(), problem };
        // Each with what covers parts of it, which must not end up below or above anything else.
        let mut mounts: Vec<Vec<Mount>> = Vec::new();
        for file in ["hosts", "hostname", "resolv.conf"] {
            let target = &format!("/etc/{file}");
            if !self.mounts_at(target) {
                let source = open(&dir.join(file))?;
                mounts.push(vec![Mount::Bind { source, target: target.clone().into(), readonly: true }]);
            }
        }
        for (target, mode) in WRITABLE {
            if self.readonly && !self.mounts_at(target) {
                mounts.push(vec![Mount::Tmpfs { target: target.into(), size: 0, mode }]);
            }
        }
        for tmpfs in &self.tmpfs {
            let target = tmpfs.target.clone().into_bytes();
            mounts.push(vec![Mount::Tmpfs { target, size: tmpfs.size.unwrap_or(0), mode: tmpfs.mode }]);
        }
        for (place, target) in self.kept_in(dir) {
            let source = open(&place)?;
            mounts.push(vec![Mount::Bind { source, target: target.into(), readonly: false }]);
        }
        for Bind { source, target, readonly, named } in &self.volumes {
            if *named {
                // Beside the containers, of which `dir` is one.
                let state = dir.ancestors().nth(2).unwrap_or(dir);
                let source = open(&state.join("volumes").join(source))?;
                mounts.push(vec![Mount::Bind { source, target: target.clone().into(), readonly: *readonly }]);
                continue;
            }
            let bind = Mount::Bind { source: open(source)?, target: target.clone().into(), readonly: *readonly };
            let covers = places.shown(&self.name, source)?.iter().map(|below| {
                let target = [target.trim_end_matches('/').as_bytes(), below.as_os_str().as_bytes()].join(&b'/');
                Mount::Tmpfs { target, size: COVER_SIZE, mode: 0 }
            });
            mounts.push([bind].into_iter().chain(covers).collect());
        }
        for Device { source, target } in &self.devices {
            mounts.push(vec![Mount::Device { source: open(source)?, target: target.clone().into() }]);
        }
        for (number, config) in self.configs.iter().enumerate() {
            let target = config.target.clone().into_bytes();
            mounts.push(vec![if secrets::is_in_memory(config) {
                let content = values.render(&config.content).to_vec();
                Mount::File { target, mode: config.mode, owner: owner(config.owner.as_deref()), content }
            } else {
                Mount::Bind { source: open(&secrets::config_path(dir, number))?, target, readonly: true }
            }]);
        }
        for secret in &self.secrets {
            let (target, content) = (secret.target.clone().into_bytes(), values.get(&secret.secret).to_vec());
            mounts.push(vec![Mount::File {
                target,
                mode: secret.mode,
                owner: owner(secret.owner.as_deref()),
                content,
            }]);
        }
        // Stable, so that the author's order stands where it matters.
        mounts.sort_by_key(|group| group.first().map_or(0, |mount| depth(target(mount))));
        let mounts = mounts.concat();

        Ok(Plan {
            hostname: self.hostname.clone().into_bytes(),
            layers: Vec::new(),
            fuse: false,
            upper: None,
            work: None,
            readonly: self.readonly,
            mounts,
            addresses,
            addresses6: Vec::new(),
            capabilities: rights::mask(&self.cap_add, &self.cap_drop).map_err(invalid)?,
            filter: rights::filter(self.seccomp.filter),
            profile: match &self.seccomp.profile {
                None => Vec::new(),
                Some(profile) => profile
                    .instructions()
                    .ok_or_else(|| invalid("read its seccomp profile from its record: it is damaged".to_owned()))?,
            },
            landlock: self.landlock.as_ref().map(rights::landlock),
            rlimits: kernel::rlimits(self),
            sysctls: self
                .sysctls
                .iter()
                .map(|(name, value)| Sysctl { name: name.clone().into(), value: value.clone().into() })
                .collect(),
            // Of a size of nothing there is none either.
            shm: self.shm.unwrap_or(0),
            process: self.process(self.argv.clone(), alone, values),
        })
    }

    /// What the root is made of.
    fn root(
        &self,
        plan: &mut Plan,
        dir: &Path,
        overlay: bool,
        mut open: impl FnMut(&Path) -> Result<Source>,
    ) -> Result<()> {
        if self.lazy.is_some() && !overlay {
            let problem =
                "read its archive lazily: that takes an overlay, which policy.conf of this host does not allow";
            return Err(Error::Invalid { component: self.name.clone(), problem: problem.to_owned() });
        }
        if overlay && self.lazy.is_some() {
            plan.fuse = true;
            plan.upper = Some(open(&dir.join("upper"))?);
            plan.work = Some(open(&dir.join("work"))?);
        } else if overlay {
            plan.layers = self.layers.iter().map(|layer| open(layer)).collect::<Result<_>>()?;
            plan.upper = Some(open(&dir.join("upper"))?);
            plan.work = Some(open(&dir.join("work"))?);
        } else {
            plan.layers = vec![open(&dir.join(ROOT))?];
        }
        Ok(())
    }

    /// What C will be told, with sources that nobody has opened yet. It, and a probe's command, must each fit one message.
    pub(crate) fn unopened(&self, dir: &Path, overlay: bool, places: &Places, values: &Values) -> Result<Plan> {
        let unopened = |path: &Path| Ok(Source { path: path.as_os_str().as_bytes().to_vec(), dev: 0, ino: 0 });
        // The longest that a container can get of what is not decided yet.
        let addresses = vec![Address { ip: [0; 4], prefix: 0 }; self.network.attachments().len()];
        let alone = self.user.len() < 21;
        let alone = alone.then_some((u32::MAX, u32::MAX));
        let mut plan = self.plan_with(dir, addresses, alone, places, values, unopened)?;
        let six = self.network.attachments().into_iter().filter(|on| on.ipv6);
        plan.addresses6 = six.map(|_| (u8::MAX, Address6 { ip: [u8::MAX; 16], prefix: u8::MAX })).collect();
        self.root(&mut plan, dir, overlay, unopened)?;
        let probe = match self.healthcheck.as_ref().map(|check| &check.probe) {
            Some(Probe::Command(argv)) => {
                Some(ToContainer::Exec { id: 0, process: self.process(argv.clone(), alone, values) })
            }
            _ => None,
        };
        let told = ToContainer::Plan(Box::new(plan));
        let requests = [("it", Some(&told)), ("its health check", probe.as_ref())];
        for (what, request) in requests {
            if let Some(Err(error)) = request.map(wire::encode) {
                let size = match error {
                    WireError::TooLarge(size) => size,
                    WireError::Malformed | WireError::Trailing(_) => usize::MAX,
                };
                let problem = format!(
                    "start {what}: command, environment, secrets and mounts take {size} bytes, and {MAX_MESSAGE} are the limit; \
                     put what is large into a file and mount that"
                );
                return Err(Error::Invalid { component: self.name.clone(), problem });
            }
        }
        match told {
            ToContainer::Plan(plan) => Ok(*plan),
            _ => Err(Error::protocol("a plan that is none")),
        }
    }

    /// As [`Ids::alone`]; an error also where files are to be given to whom these ids do not have.
    pub(crate) fn alone(&self, ids: &Ids) -> Result<Option<(u32, u32)>, String> {
        let alone = ids.alone(&self.layers, &self.user)?;
        let secrets = self.secrets.iter().map(|file| (&file.target, &file.owner));
        let configs = self.configs.iter().map(|file| (&file.target, &file.owner));
        for (target, owner) in secrets.chain(configs) {
            let Some(owner) = owner else { continue };
            if let Some(why) = ids.refuses(&self.layers, owner, alone) {
                return Err(format!("give {target} to `{owner}`: {why}"));
            }
        }
        Ok(alone)
    }

    /// The index of its lazy image.
    pub(crate) fn index(&self) -> Option<PathBuf> {
        self.lazy.as_ref()?;
        Some(self.layers.first()?.with_file_name("index"))
    }

    /// The secrets that it refers to.
    pub(crate) fn secret_names(&self) -> BTreeSet<&str> {
        secrets::names(&self.secret_env, &self.secrets, &self.configs)
    }

    /// The named volumes that it mounts.
    pub(crate) fn volume_names(&self) -> impl Iterator<Item = &str> {
        self.volumes.iter().filter(|bind| bind.named).filter_map(|bind| bind.source.to_str())
    }

    /// A process with the component's environment, user and working directory.
    pub(crate) fn process(&self, argv: Vec<String>, alone: Option<(u32, u32)>, values: &Values) -> Process {
        let of = |variable: &SecretVariable| format!("{}=", variable.name).into_bytes();
        let hidden: Vec<_> = self.secret_env.iter().map(of).collect();
        // One of the image that has the same name gives way.
        let plain = self.env.iter().map(|entry| entry.clone().into_bytes());
        let plain = plain.filter(|entry| !hidden.iter().any(|name| entry.starts_with(name)));
        let secret = self.secret_env.iter().map(|v| [of(v), values.render(&v.parts).to_vec()].concat());
        Process {
            argv: argv.into_iter().map(String::into_bytes).collect(),
            env: plain.chain(secret).collect(),
            cwd: self.cwd.clone().into_bytes(),
            user: alone.map_or_else(|| self.user.clone(), |(uid, gid)| format!("{uid}:{gid}")).into_bytes(),
            groups: self.groups.iter().map(|group| group.clone().into_bytes()).collect(),
            tty: false,
        }
    }

    /// The folders of [`ContainerSpec::kept`] in the container's own, and where they are seen inside.
    pub(crate) fn kept_in(&self, dir: &Path) -> Vec<(PathBuf, String)> {
        let place = |number: usize| dir.join("volumes").join(number.to_string());
        self.kept.iter().enumerate().map(|(number, target)| (place(number), target.clone())).collect()
    }

    pub(crate) fn mounts_at(&self, path: &str) -> bool {
        let targets = self.volumes.iter().map(|v| &v.target).chain(self.tmpfs.iter().map(|t| &t.target));
        let targets = targets.chain(self.devices.iter().map(|device| &device.target));
        let files = self.secrets.iter().map(|s| &s.target).chain(self.configs.iter().map(|c| &c.target));
        let mut targets = targets.chain(files).chain(&self.kept);
        targets.any(|target| target.trim_end_matches('/') == path)
    }
}

fn target(mount: &Mount) -> &[u8] {
    match mount {
        Mount::Bind { target, .. } | Mount::Device { target, .. } => target,
        Mount::Tmpfs { target, .. } | Mount::File { target, .. } => target,
    }
}

fn owner(owner: Option<&str>) -> Vec<u8> {
    owner.unwrap_or_default().into()
}

fn depth(path: &[u8]) -> usize {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty()).count()
}

#[cfg(test)]
mod tests {
    use containust_lang::model::Image as Reference;

    use super::*;
    use crate::builder::ContainerBuilder;

    fn builder() -> ContainerBuilder {
        ContainerBuilder::new("web", Reference::File { path: "/srv".into(), sha256: None })
    }

    fn image() -> Image {
        Image {
            declared: containust_image::model::Declared::default(),
            digest: "sha256:00".into(),
            layers: vec!["/".into()],
            lazy: None,
            config: Config {
                entrypoint: vec!["/entry".into()],
                command: vec!["serve".into()],
                env: vec!["A=image".into(), "B=image".into()],
                user: Some("daemon".into()),
                workdir: Some("app".into()),
            },
            size: 0,
            notes: vec![],
        }
    }

    fn resolved(builder: ContainerBuilder) -> ContainerSpec {
        resolve(
            (Path::new("/"), &|_| Err(String::new())),
            &builder.build().unwrap(),
            "file:///srv",
            &image(),
            &Places::default(),
        )
        .unwrap()
    }

    #[test]
    fn joins_with_the_image_as_docker_does() {
        assert_eq!(resolved(builder()).argv, ["/entry", "serve"]);
        assert_eq!(resolved(builder().command(["x"])).argv, ["/entry", "x"]);
        assert_eq!(resolved(builder().entrypoint(["/e"])).argv, ["/e"]);
        assert_eq!(resolved(builder().entrypoint(["/e"]).command(["x"])).argv, ["/e", "x"]);
        let spec = resolved(builder().env("B", "own").env("C", "1"));
        assert_eq!(spec.env, [PATH, "A=image", "B=own", "C=1", "HOSTNAME=web"]);
        assert_eq!((spec.user.as_str(), spec.cwd.as_str()), ("daemon", "/app"));
        assert_eq!(resolved(builder().workdir("/").user("0")).cwd, "");
        let mut empty = image();
        empty.config = Config::default();
        assert!(
            resolve(
                (Path::new("/"), &|_| Err(String::new())),
                &builder().build().unwrap(),
                "",
                &empty,
                &Places::default()
            )
            .is_err()
        );
    }

    #[test]
    fn mounts_parents_first_and_leaves_the_authors_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for name in ["upper", "work", "data"] {
            std::fs::create_dir(dir.join(name)).unwrap();
        }
        for name in ["hosts", "hostname", "resolv.conf"] {
            std::fs::write(dir.join(name), "").unwrap();
        }
        let data = dir.join("data").to_str().unwrap().to_owned();
        let spec = resolved(
            builder()
                .volume(&data, "/srv/a/b", true)
                .tmpfs("/srv", Some(5))
                .tmpfs("/tmp/", None)
                .volume(&data, "/etc", true),
        );
        let (plan, held) = spec.plan(&dir, true, Vec::new(), None, &Places::default(), &Values::default()).unwrap();
        let targets: Vec<_> = plan.mounts.iter().map(|m| String::from_utf8_lossy(target(m)).into_owned()).collect();
        assert_eq!(
            targets,
            [
                "/run",
                "/srv",
                "/tmp/",
                "/etc",
                "/etc/hosts",
                "/etc/hostname",
                "/etc/resolv.conf",
                "/var/tmp",
                "/srv/a/b"
            ]
        );
        assert_eq!(held.len(), 8);
        std::fs::remove_dir(dir.join("data")).unwrap();
        assert!(
            matches!(spec.plan(&dir, true, Vec::new(), None, &Places::default(), &Values::default()), Err(Error::Source { path, .. }) if path == dir.join("data"))
        );
    }

    #[test]
    fn refuses_what_no_message_holds() {
        let dir = Path::new("/p/.containust/containers/web");
        let half = "x".repeat(40_000);
        resolved(builder().env("A", &half)).unopened(dir, true, &Places::default(), &Values::default()).unwrap();
        let error = resolved(builder().env("A", &half).env("B", &half))
            .unopened(dir, true, &Places::default(), &Values::default())
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("component web") && text.contains("65536") && text.contains(" 80"), "{text}");
    }

    #[test]
    fn covers_what_is_not_for_containers() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for name in ["upper", "work", "p/.containust/containers", "p/other"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        for name in ["hosts", "hostname", "resolv.conf"] {
            std::fs::write(dir.join(name), "").unwrap();
        }
        let private = [dir.join("p/.containust")];
        let (all, other) = (dir.to_str().unwrap(), dir.join("p/other").to_str().unwrap().to_owned());
        let spec = resolved(builder().volume(all, "/all/", true).volume(&other, "/all/p", false).readonly(false));
        let (plan, _) =
            spec.plan(&dir, true, Vec::new(), None, &Places::new(private.to_vec()), &Values::default()).unwrap();
        let targets: Vec<_> = plan.mounts.iter().map(|m| String::from_utf8_lossy(target(m)).into_owned()).collect();
        // Right after its mount: what the author mounts above it is none of its business.
        assert_eq!(
            targets,
            ["/all/", "/all/p/.containust", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/all/p"]
        );
        assert!(matches!(plan.mounts[1], Mount::Tmpfs { mode: 0, .. }));
        for inside in ["p/.containust", "p/.containust/containers"] {
            let path = dir.join(inside).to_str().unwrap().to_owned();
            let component = builder().volume(&path, "/x", true).build().unwrap();
            let refused = resolve(
                (Path::new("/"), &|_| Err(String::new())),
                &component,
                "",
                &image(),
                &Places::new(private.to_vec()),
            );
            assert!(matches!(refused, Err(Error::Invalid { problem, .. }) if problem.contains("belongs to ctst")));
        }
    }
}
