//! The groups of a project and of its containers: made, written to, read and removed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use containust_lang::model::{IoLimit, Limits};
use containust_shared::protocol::{Limit, Unset};
use rustix::fs::{Mode, OFlags};

use super::settings::{Setting, Unheld, rates, settings};
use super::{ATTEMPTS, CONTROLLERS, Lack, OURS, Outlook, Place, move_fix, put, words};
use crate::record::Incarnation;
use crate::status::{Measured, Stats};

/// The group of a project, in which those of its containers are made.
#[derive(Debug)]
pub(crate) struct Division {
    dir: PathBuf,
    /// What its groups have.
    controllers: BTreeSet<String>,
    /// Groups that ended and could not be removed at once.
    left: Vec<PathBuf>,
}

impl Division {
    /// Makes it below `base`. `project`: what tells projects apart.
    pub(crate) fn new(base: &Path, project: &str, owner: Incarnation) -> Result<Self, Lack> {
        let ours = base.join(OURS);
        let dir = ours.join(format!("{project}.{}.{}", owner.pid, owner.start));
        let failed = |error: io::Error| Lack::new(format!("make {}: {error}", dir.display()), move_fix(base));
        divide(base)?;
        for _ in 0..ATTEMPTS {
            make(&ours).map_err(failed)?;
            divide(&ours)?;
            match make(&dir) {
                // The last of other projects ended right now.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                result => result.map_err(failed)?,
            }
            divide(&dir)?;
            let controllers = words(&dir.join("cgroup.subtree_control"));
            return Ok(Self { dir, controllers, left: Vec::new() });
        }
        Err(failed(ErrorKind::NotFound.into()))
    }

    /// Makes the group of a container and sets its limits. Returns what does not hold.
    pub(crate) fn group(&mut self, name: &str, limits: &Limits, folder: &Path) -> Result<(Group, Vec<Unheld>), Lack> {
        let dir = self.dir.join(name);
        let failed = |error: io::Error| Lack::new(format!("make {}: {error}", dir.display()), "see: ctst doctor");
        make(&dir).map_err(failed)?;
        let group = Group::at(dir.clone());
        // A process of a group that is out of memory is no use to the others: all of them end, as one.
        if self.controllers.contains("memory")
            && let Err(error) = put(&dir, "memory.oom.group", "1")
        {
            self.remove(group);
            return Err(failed(error));
        }
        let unheld = group.set(Change::new(limits, folder, None));
        Ok((group, unheld))
    }

    /// Removes the group of a container that has ended; later if a process of it has not quite.
    pub(crate) fn remove(&mut self, group: Group) {
        self.left.push(group.dir);
        self.tidy();
    }

    /// Removes what could not be removed before. Returns whether anything is left.
    pub(crate) fn tidy(&mut self) -> bool {
        self.left.retain(|dir| !removed(dir));
        !self.left.is_empty()
    }
}

impl Drop for Division {
    fn drop(&mut self) {
        // The sandbox is gone, and with it the last process.
        for _ in 0..ATTEMPTS {
            if !self.tidy() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        removed(&self.dir);
        // Other projects may be in there: then it stays.
        if let Some(ours) = self.dir.parent() {
            removed(ours);
        }
    }
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Whether a group is gone now.
fn removed(dir: &Path) -> bool {
    fs::remove_dir(dir).map_or_else(|error| error.kind() == ErrorKind::NotFound, |()| true)
}

/// Gives the controllers that a group has to those below it.
fn divide(group: &Path) -> Result<(), Lack> {
    let file = "cgroup.subtree_control";
    let (has, gives) = (words(&group.join("cgroup.controllers")), words(&group.join(file)));
    let new = CONTROLLERS.iter().filter(|c| has.contains(**c) && !gives.contains(**c));
    let change: Vec<String> = new.map(|c| format!("+{c}")).collect();
    if change.is_empty() {
        return Ok(());
    }
    put(group, file, &change.join(" ")).map_err(|error| {
        let problem =
            format!("give controllers to the groups below {} ({}): {error}", group.display(), change.join(" "));
        Lack::new(problem, move_fix(group))
    })
}

/// Removes the groups of projects whose supervisor was killed: empty ones, for nothing in them outlives it.
pub(crate) fn sweep() {
    let Ok(Place::Below(base)) = Outlook::new(Some(std::process::id())).place else { return };
    let ours = base.join(OURS);
    let Ok(projects) = fs::read_dir(&ours) else { return };
    for project in projects.flatten() {
        let name = project.file_name();
        let mut fields = name.to_str().unwrap_or_default().rsplitn(3, '.').map(str::parse);
        let (Some(Ok(start)), Some(Ok(pid))) = (fields.next(), fields.next()) else { continue };
        let Ok(pid) = u32::try_from(pid) else { continue };
        if (Incarnation { pid, start }).lives() {
            continue;
        }
        for group in fs::read_dir(project.path()).into_iter().flatten().flatten() {
            if group.file_type().is_ok_and(|kind| kind.is_dir()) {
                removed(&group.path());
            }
        }
        removed(&project.path());
    }
    removed(&ours);
}

/// The group of one container.
#[derive(Debug)]
pub(crate) struct Group {
    dir: PathBuf,
    /// How many forks were refused, as far as was told.
    refused: u64,
    /// Its id with the shim, where that made it and writes to it.
    shim: Option<u32>,
}

/// What is to be set in a group, and what could not be said to the kernel at all.
pub(crate) struct Change {
    settings: Vec<Setting>,
    unheld: Vec<Unheld>,
}

impl Change {
    /// `all`: takes back limits that are no more, of this group.
    pub(crate) fn new(limits: &Limits, folder: &Path, all: Option<&Group>) -> Self {
        let (mut settings, unheld) = settings(limits, folder, all.is_some());
        if let Some(group) = all {
            // Devices that are no longer limited.
            let number = |setting: &Setting| match setting.what {
                Limit::Io { major, minor, .. } => Some((major, minor)),
                _ => None,
            };
            let wanted: Vec<(u32, u32)> = settings.iter().filter_map(number).collect();
            let now = group.read("io.max").unwrap_or_default();
            let devices = now.lines().filter_map(|line| {
                let (major, minor) = line.split(' ').next()?.split_once(':')?;
                Some((major.parse().ok()?, minor.parse().ok()?))
            });
            let freed: Vec<(u32, u32)> = devices.filter(|device| !wanted.contains(device)).collect();
            settings.extend(freed.into_iter().map(|device| Setting {
                limit: "io",
                what: rates(device, &IoLimit::default()),
                wanted: false,
            }));
        }
        Self { settings, unheld }
    }

    /// As the shim takes it.
    pub(crate) fn limits(&self) -> Vec<Limit> {
        self.settings.iter().map(|setting| setting.what).collect()
    }

    /// What does not hold in this group, of which the shim could not set these.
    pub(crate) fn outcome(self, group: &Group, unset: &[Unset]) -> Vec<Unheld> {
        let mut unheld = self.unheld;
        for Unset { at, errno } in unset {
            if let Some(setting) = usize::try_from(*at).ok().and_then(|at| self.settings.get(at)) {
                unheld.extend(group.missed(setting, &io::Error::from_raw_os_error(*errno)));
            }
        }
        unheld
    }
}

impl Group {
    fn at(dir: PathBuf) -> Self {
        Self { dir, refused: 0, shim: None }
    }

    /// The one that the shim made in its project's `dir` for this id.
    pub(crate) fn by_shim(dir: &Path, id: u32) -> Self {
        Self { shim: Some(id), ..Self::at(dir.join(id.to_string())) }
    }

    /// Its id with the shim; none where it is ours.
    pub(crate) fn shim(&self) -> Option<u32> {
        self.shim
    }

    /// Its directory, as a path of the host.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory, for who puts a process there.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.dir, flags, Mode::empty())?)
    }

    /// Sets limits, and returns what does not hold. Of a group of ours.
    pub(crate) fn set(&self, change: Change) -> Vec<Unheld> {
        let Change { settings, mut unheld } = change;
        for setting in settings {
            if let Err(error) = put(&self.dir, setting.what.file(), &setting.what.value()) {
                unheld.extend(self.missed(&setting, &error));
            }
        }
        unheld
    }

    fn missed(&self, setting: &Setting, error: &io::Error) -> Option<Unheld> {
        // What is not there limits nothing.
        let nothing = error.kind() == ErrorKind::NotFound && !setting.wanted;
        (!nothing).then(|| Unheld { limit: setting.limit, lack: self.cannot(setting, error) })
    }

    fn cannot(&self, setting: &Setting, error: &io::Error) -> Lack {
        let (file, value) = (setting.what.file(), setting.what.value());
        if error.kind() != ErrorKind::NotFound {
            let problem = format!("write {value} to {}: {error}", self.dir.join(file).display());
            return Lack::new(problem, "correct the limit");
        }
        let controller = setting.controller();
        if !words(&self.dir.join("cgroup.controllers")).contains(controller) {
            return Lack::new(
                format!("the {controller} controller is not given to {}", self.dir.display()),
                "see: ctst doctor",
            );
        }
        let fix = match file {
            "memory.swap.max" => "boot with swapaccount=1 on the kernel's command line",
            "io.weight" => "use a kernel with CONFIG_BLK_CGROUP_IOCOST",
            "io.max" => "use a kernel with CONFIG_BLK_DEV_THROTTLING",
            _ => "use a kernel that has it",
        };
        Lack::new(format!("the kernel has no {file}"), fix)
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.dir.join(file))
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.read(file).ok()?.trim().parse().ok()
    }

    /// The value of a key in a file of such lines.
    fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        let text = self.read(file).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// How many of its processes were killed for want of memory.
    pub(crate) fn out_of_memory(&self) -> u64 {
        self.keyed("memory.events", "oom_kill").unwrap_or(0)
    }

    /// How many forks were refused, when this was last looked at.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// How many were refused since then.
    pub(crate) fn newly_refused(&mut self) -> u64 {
        let now = self.keyed("pids.events", "max").unwrap_or(0);
        now.saturating_sub(std::mem::replace(&mut self.refused, now))
    }

    /// The file that can be polled for forks that were refused (POLLPRI); none without the controller.
    pub(crate) fn refusals(&self) -> Option<OwnedFd> {
        fs::File::open(self.dir.join("pids.events")).ok().map(Into::into)
    }

    /// Kills all processes in it at once, frozen ones too (Linux 5.14).
    pub(crate) fn kill(&self) -> io::Result<()> {
        put(&self.dir, "cgroup.kill", "1")
    }

    /// Stops all processes in it where they are, or lets them go on.
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        put(&self.dir, "cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// What its container uses.
    pub(crate) fn stats(&self, component: String) -> Stats {
        let io = |key: &str| {
            let text = self.read("io.stat").ok()?;
            let values = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
            Some(values.fold(0, u64::saturating_add))
        };
        let tasks = self
            .number("pids.current")
            .unwrap_or_else(|| self.read("cgroup.threads").map_or(0, |text| text.lines().count() as u64));
        Stats {
            component,
            measured: Measured::Cgroup,
            // Its pid 1 is ours.
            processes: u32::try_from(tasks.saturating_sub(1)).unwrap_or(u32::MAX),
            processes_limit: self.number("pids.max").map(|n| n.saturating_sub(1)),
            refused_forks: self.keyed("pids.events", "max"),
            memory: self.number("memory.current"),
            memory_limit: self.number("memory.max"),
            cpu_ms: self.keyed("cpu.stat", "usage_usec").unwrap_or(0) / 1000,
            throttled_ms: self.keyed("cpu.stat", "throttled_usec").map(|n| n / 1000),
            read_bytes: io("rbytes="),
            written_bytes: io("wbytes="),
        }
    }
}

/// What the container of a group uses, which may have ended meanwhile.
pub(crate) fn stats_at(group: &Path, component: &str) -> Option<Stats> {
    let group = Group::at(group.to_owned());
    let stats = group.stats(component.to_owned());
    group.dir.exists().then_some(stats)
}
