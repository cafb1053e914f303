//! The host's policy, to say beforehand what `ctst-shim` would refuse. The verdict that counts is the shim's.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use containust_lang::model::{self, Component, Limits, Network, Protocol};
use containust_policy::conf::{self, Filter, MAX_SIZE, PATH, Rules};
use containust_policy::judge::{self, Caller, HostPath, Purpose, Spec};
use containust_policy::trust::{self, Seen};
use containust_shared::port::LIMIT;
use containust_shared::protocol::Plan;
use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::process::{getgid, getgroups, getuid};

use crate::error::{During, Error, Result};
use crate::host::strict;
use crate::rights;
use crate::spec::{Bind, Device, ROOT};
use crate::status::{HostPort, Published};

/// The policy, and whom it is about.
#[derive(Debug)]
pub(crate) struct Policy {
    /// None: there is no file, and the defaults hold.
    file: Option<Rules>,
    rules: Rules,
    caller: Caller,
    /// The shim has file capabilities.
    strict: bool,
}

impl Policy {
    /// Reads the file as the shim does.
    pub(crate) fn read() -> Result<Self> {
        let file = match open()? {
            None => None,
            Some(file) => {
                let mut bytes = Vec::new();
                let limit = MAX_SIZE as u64 + 1;
                file.take(limit).read_to_end(&mut bytes).during(|| format!("read {PATH}"))?;
                Some(conf::parse(&bytes).map_err(|error| Error::Policy { problem: error.to_string() })?)
            }
        };
        let rules = file.clone().unwrap_or_default();
        let names = |path: &str| match rules.allow.is_empty() && rules.offline.is_empty() {
            true => Vec::new(),
            false => std::fs::read(path).unwrap_or_default(),
        };
        let strict = strict::is_installed();
        let mut groups = getgroups().during(|| "read the groups of this process".to_owned())?;
        groups.push(getgid());
        let groups = groups.into_iter().map(rustix::fs::Gid::as_raw).collect();
        let caller = Caller::new(getuid().as_raw(), groups, &names("/etc/passwd"), &names("/etc/group"), strict);
        Ok(Self { file, rules, caller, strict })
    }

    /// Whether the root of containers is an overlay of their image. Only in strict mode is it something else where there may
    /// be none: elsewhere that is an exception, and told.
    pub(crate) fn has_overlay(&self) -> bool {
        !self.strict || self.rules.overlay(true)
    }

    /// What the file says; none where there is no file.
    pub(crate) fn file(&self) -> Option<&Rules> {
        self.file.as_ref()
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether the caller may have containers at all.
    pub(crate) fn admit(&self) -> Result<()> {
        judge::admit(&self.rules, &self.caller)
            .map_err(|denial| Error::Denied { component: None, reasons: denial.to_string() })
    }

    /// What of the policy keeps the caller offline, in words.
    pub(crate) fn offline(&self) -> Option<String> {
        judge::offline(&self.rules, &self.caller)
    }

    /// The verdict on a way out of the caller's projects.
    pub(crate) fn egress(&self) -> std::result::Result<(), String> {
        judge::egress(&self.rules, &self.caller).map_err(|denials| judge::tell(&denials))
    }

    /// The verdict on images that containers read from their archives.
    pub(crate) fn fuse(&self) -> std::result::Result<(), String> {
        judge::fuse(&self.rules, &self.caller).map_err(|denials| judge::tell(&denials))
    }

    /// The verdict on a port that the kernel keeps from the caller, as `ctst-port` will give it.
    pub(crate) fn judge_low_port(&self, component: &str, port: HostPort) -> Result<()> {
        judge::low_port(judged(port), &self.rules, &self.caller)
            .map_err(|denials| Error::Denied { component: Some(component.to_owned()), reasons: judge::tell(&denials) })
    }

    /// What is granted of the ports that `ctst-port` is for, as the file says it.
    pub(crate) fn low_ports(&self) -> Vec<String> {
        let granted = self.rules.publish.iter().filter_map(|line| line.value);
        granted.filter(|publish| publish.first < LIMIT).map(|publish| publish.to_string()).collect()
    }

    /// The verdict on what C will be told of a component, and on what C does not see of it.
    pub(crate) fn judge(
        &self,
        component: &str,
        plan: &Plan,
        (limits, network): (&Limits, &Network),
        ports: &[Published],
    ) -> Result<()> {
        self.judge_spec(component, Spec::of(plan), (limits, network), ports)
    }

    /// The same of a component whose image is not there yet: without what is known only with it. `dir`: its container's.
    pub(crate) fn judge_parts(
        &self,
        component: &Component,
        dir: &Path,
        volumes: &[Bind],
        devices: &[Device],
        ports: &[Published],
    ) -> Result<()> {
        let mounts = volumes.iter().filter(|bind| !bind.named).map(|bind| HostPath {
            path: bind.source.as_os_str().as_bytes(),
            writable: !bind.readonly,
            purpose: Purpose::Mount,
            target: bind.target.as_bytes(),
        });
        let devices = devices.iter().map(|device| HostPath {
            path: device.source.as_os_str().as_bytes(),
            writable: true,
            purpose: Purpose::Device,
            target: device.target.as_bytes(),
        });
        let overlay = self.has_overlay();
        let upper = dir.join(if overlay { "upper" } else { ROOT });
        let layer =
            HostPath { path: upper.as_os_str().as_bytes(), writable: true, purpose: Purpose::Layer, target: b"" };
        let paths = std::iter::once(layer).chain(mounts).chain(devices).collect();
        // A name that is none is told of elsewhere.
        let capabilities = rights::mask(&component.cap_add, &component.cap_drop).unwrap_or_default();
        let filter = match component.seccomp.filter {
            model::Filter::Default => Filter::Default,
            model::Filter::Strict => Filter::Strict,
            model::Filter::Compat => Filter::Compat,
        };
        let spec = Spec { paths, overlay, capabilities, filter, ..Spec::nothing() };
        let limits = component.limits.as_deref().cloned().unwrap_or_default();
        self.judge_spec(&component.name, spec, (&limits, &component.network), ports)
    }

    fn judge_spec(
        &self,
        component: &str,
        mut spec: Spec<'_>,
        (limits, network): (&Limits, &Network),
        ports: &[Published],
    ) -> Result<()> {
        spec.egress = network.attachments().iter().any(|on| on.egress);
        spec.limits = Some(judge::Limits { memory: limits.memory, cpu_millis: limits.cpu_millis, pids: limits.pids });
        spec.ports = ports.iter().map(|port| judged(port.on_host())).collect();
        judge::judge(&spec, &self.rules, &self.caller)
            .map_err(|denials| Error::Denied { component: Some(component.to_owned()), reasons: judge::tell(&denials) })
    }
}

fn judged(port: HostPort) -> judge::Port {
    judge::Port { place: port.place, udp: port.protocol == Protocol::Udp }
}

/// What keeps the caller of this process offline, in words; none: nothing does. A file that is not understood does: it may say so.
pub(crate) fn keeps_offline() -> Option<String> {
    let read = open().and_then(|file| file.map(|_| Policy::read()).transpose());
    match read {
        Ok(policy) => policy?.offline(),
        Err(error) => Some(error.to_string()),
    }
}

/// Opens the file by way of folders that, like itself, are root's alone. None: there is none.
fn open() -> Result<Option<File>> {
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let at = |folder: &OwnedFd, name: &str, path: &str| opened(path, openat(folder, name, look, Mode::empty()));
    let mut folder = rustix::fs::open("/", look | OFlags::DIRECTORY, Mode::empty()).during(|| "open /".to_owned())?;
    let mut problem = doubt("/", &folder, true)?;
    for (name, path) in [("etc", "/etc"), ("containust", "/etc/containust")] {
        let Some(next) = at(&folder, name, path)? else { return Ok(None) };
        folder = next;
        problem = problem.or(doubt(path, &folder, true)?);
    }
    let trusted = |problem: Option<String>| problem.map_or(Ok(()), |problem| Err(Error::Policy { problem }));
    trusted(problem)?;
    let Some(found) = at(&folder, "policy.conf", PATH)? else { return Ok(None) };
    trusted(doubt(PATH, &found, false)?)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(opened(PATH, openat(&folder, "policy.conf", flags, Mode::empty()))?.map(File::from))
}

fn opened(path: &str, result: rustix::io::Result<OwnedFd>) -> Result<Option<OwnedFd>> {
    match result {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::ACCESS) => {
            let problem = format!("user {} may not read {path} (chmod a+rX /etc/containust {PATH})", getuid().as_raw());
            Err(Error::Policy { problem })
        }
        Err(error) => Err(Error::io(format!("open {path}"), error)),
    }
}

fn doubt(path: &str, fd: &OwnedFd, folder: bool) -> Result<Option<String>> {
    let stat = fstat(fd).during(|| format!("inspect {path}"))?;
    let seen = Seen { mode: stat.st_mode, uid: stat.st_uid, size: u64::try_from(stat.st_size).unwrap_or(u64::MAX) };
    Ok(trust::problem(path, seen, folder, MAX_SIZE))
}
