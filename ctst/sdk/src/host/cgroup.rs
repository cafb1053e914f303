//! Control groups, version 2 (`Documentation/admin-guide/cgroup-v2.rst`): where ours can be made, what they can limit, and
//! why not where they cannot.
//!
//! A process may divide a group that it can write, and in which no process is: the kernel takes controllers only to groups
//! below one without processes. So there are three ways to a place, and in strict mode a fourth, which is the only one there
//! (`ctst-shim/src/group.rs`): the administrator's group that the policy names, which the shim divides.
//! - root, on a host without systemd, divides the root group, which alone may hold processes all the same;
//! - under systemd, which owns the tree, a scope of its own is asked for (`Delegate=yes`), and the supervisor moves to a
//!   group below it;
//! - anybody divides the nearest group above his own that was given to him.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use containust_lang::model::{IoLimit, Limits};
use containust_policy::conf::PATH;
use containust_shared::protocol::{FromShim, Limit, ToShim, Unset, VERSION};
use rustix::fs::{Access, CWD, Mode, OFlags, accessat};
use rustix::process::getuid;

use crate::error::{Error, Result};
use crate::host::policy::Policy;
use crate::host::strict;
use crate::record::Incarnation;
use crate::shim::{self, Received};
use crate::status::{Measured, Stats, UNHELD};

/// The group that the supervisor itself is in, below one that it divides.
const SUPERVISOR: &str = "supervisor";
/// The group of all projects, below the one that is divided.
const OURS: &str = "containust";
/// What limits need.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// `statfs(2)`'s `f_type` of cgroup v2.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
/// The group in which the shim puts a project's pid 1, below the project's.
const SANDBOX: &str = "sandbox";
/// How often a group is made again that another project's end removed in the same moment.
const ATTEMPTS: u32 = 20;
/// How often the shim is asked to collect in one command.
const MAX_COLLECTIONS: u32 = 1000;

/// Why something cannot be had, and what would change that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    pub(crate) problem: String,
    pub(crate) fix: String,
}

impl Lack {
    fn new(problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { problem: problem.into(), fix: fix.into() }
    }
}

/// A limit that will not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unheld {
    /// Its name in a `.ctst` file.
    pub(crate) limit: &'static str,
    pub(crate) lack: Lack,
}

impl Unheld {
    /// For a person who asked for no more than what can be had.
    pub(crate) fn note(&self) -> String {
        format!("{UNHELD}{}` does not hold: {}", self.limit, self.lack.problem)
    }

    /// Why, in words that are the same for every controller that lacks for the same reason.
    pub(crate) fn reason(&self) -> String {
        let generic = |text: String, c: &str| text.replace(&format!("the {c} controller"), "its controller");
        CONTROLLERS.into_iter().fold(self.lack.problem.clone(), generic)
    }

    /// The refusal where it has to hold; none where nothing is missing.
    pub(crate) fn refuse(component: &str, unheld: &[Self]) -> Option<Error> {
        let first = unheld.first()?;
        let mut problems: Vec<&str> = Vec::new();
        let mut limits: Vec<&str> = Vec::new();
        for Self { limit, lack } in unheld {
            if !problems.contains(&lack.problem.as_str()) {
                problems.push(&lack.problem);
            }
            if !limits.contains(limit) {
                limits.push(limit);
            }
        }
        Some(Error::Limit {
            component: component.to_owned(),
            limits: limits.join(", "),
            problem: problems.join("; "),
            help: format!("{}; or do without: limits = \"best-effort\"", first.lack.fix),
        })
    }
}

/// Whether anything is limited.
pub(crate) fn any(limits: &Limits) -> bool {
    *limits != Limits { best_effort: limits.best_effort, ..Limits::default() }
}

/// A limit of the kernel's, and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    limit: &'static str,
    what: Limit,
    /// It limits something, and does not only take a limit back.
    wanted: bool,
}

impl Setting {
    fn controller(&self) -> &'static str {
        let name = self.what.file().split('.').next().unwrap_or_default();
        CONTROLLERS.into_iter().find(|c| *c == name).unwrap_or_default()
    }
}

/// What limits mean for the kernel. `all`: also what is not limited, to take back what was.
fn settings(limits: &Limits, folder: &Path, all: bool) -> (Vec<Setting>, Vec<Unheld>) {
    let mut settings = Vec::new();
    let mut set = |limit, wanted: bool, what| {
        if wanted || all {
            settings.push(Setting { limit, what, wanted });
        }
    };
    set("swap", limits.swap.is_some(), Limit::Swap(limits.swap));
    set("memory_high", limits.memory_high.is_some(), Limit::MemoryHigh(limits.memory_high));
    set("memory", limits.memory.is_some(), Limit::Memory(limits.memory));
    set("cpus", limits.cpu_millis.is_some(), Limit::Cpus(limits.cpu_millis));
    set("cpu", limits.cpu_weight.is_some(), Limit::CpuWeight(limits.cpu_weight.unwrap_or(100)));
    set("pids", limits.pids.is_some(), Limit::Pids(limits.pids));
    set("io", limits.io_weight.is_some(), Limit::IoWeight(limits.io_weight.unwrap_or(100)));
    let mut unheld = Vec::new();
    for io in &limits.io {
        match device(&folder.join(&io.path)) {
            Ok(device) => settings.push(Setting { limit: "io", what: rates(device, io), wanted: true }),
            Err(lack) => unheld.push(Unheld { limit: "io", lack }),
        }
    }
    (settings, unheld)
}

fn rates((major, minor): (u32, u32), io: &IoLimit) -> Limit {
    Limit::Io { major, minor, rates: [io.read_bytes, io.write_bytes, io.read_operations, io.write_operations] }
}

/// The whole disk behind a device node or a folder: limits are kept where the requests are queued, and a partition has no
/// queue of its own.
fn device(path: &Path) -> Result<(u32, u32), Lack> {
    let shown = path.display();
    let meta =
        path.metadata().map_err(|error| Lack::new(format!("open {shown}: {error}"), format!("correct {shown}")))?;
    let number = if meta.file_type().is_block_device() { meta.rdev() } else { meta.dev() };
    let number = (rustix::fs::major(number), rustix::fs::minor(number));
    let dir = PathBuf::from(format!("/sys/dev/block/{}:{}", number.0, number.1));
    // File systems of no single device have numbers of no device.
    if number.0 == 0 || !dir.exists() {
        let problem = format!("{shown} is not on a block device of its own");
        return Err(Lack::new(problem, "name the device that is meant, such as /dev/sda"));
    }
    if !dir.join("partition").exists() {
        return Ok(number);
    }
    let disk = dir.canonicalize().ok().and_then(|dir| fs::read_to_string(dir.parent()?.join("dev")).ok());
    let disk = disk.as_deref().and_then(|text| text.trim().split_once(':'));
    let parsed = disk.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| Lack::new(format!("find the disk of {shown} in /sys"), "name the whole disk"))
}

/// A cgroup2 file system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    /// Where.
    point: PathBuf,
    /// The group that is seen there.
    root: String,
}

impl Mount {
    /// The one that shows most (`proc_pid_mountinfo(5)`).
    fn find(mountinfo: &str) -> Option<Self> {
        let mounts = mountinfo.lines().filter_map(|line| {
            let (mount, system) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            let it = Self { point: unescape(point).into(), root: unescape(root) };
            (system.split(' ').next()? == "cgroup2").then_some(it)
        });
        mounts.min_by_key(|mount| mount.root.len())
    }

    /// Where a group is found, named as in `/proc/PID/cgroup`.
    fn dir(&self, group: &str) -> Option<PathBuf> {
        // Beyond the caller's cgroup namespace.
        if group.starts_with("/..") {
            return None;
        }
        let below = Path::new(group).strip_prefix(&self.root).ok()?;
        Some(self.point.join(below))
    }
}

/// Spaces and the like are octal in mountinfo.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                text += &part[3..];
            }
            None => {
                text.push('\\');
                text += part;
            }
        }
    }
    text
}

/// The group of a process in cgroup v2.
fn group_of(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Whether systemd is this host's manager, and the only one who may divide groups that it has not given away
/// (`sd_booted(3)`).
fn systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Where groups can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Below this group.
    Below(PathBuf),
    /// Below a scope that systemd makes for the project's supervisor, when that is started.
    Scope,
    /// Below this group, where in strict mode the shim makes them.
    Shim(PathBuf),
}

/// What this host offers.
#[derive(Debug, Clone)]
pub(crate) struct Outlook {
    /// Where the file system is mounted.
    pub(crate) mount: Option<PathBuf>,
    pub(crate) place: Result<Place, Lack>,
    /// What the root group has.
    pub(crate) offered: BTreeSet<String>,
    /// What can be had at the place.
    pub(crate) given: BTreeSet<String>,
}

/// Where cgroup v2 is mounted.
pub(crate) fn mounted() -> Option<PathBuf> {
    Mount::find(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()).map(|mount| mount.point)
}

impl Outlook {
    /// Of a supervisor that runs with this pid; none: of one that would be started now.
    pub(crate) fn new(supervisor: Option<u32>) -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let Some(mount) = Mount::find(&mountinfo) else {
            let lack = Lack::new("this host has no cgroup v2", v2_fix());
            let (offered, given) = (BTreeSet::new(), BTreeSet::new());
            return Self { mount: None, place: Err(lack), offered, given };
        };
        let offered = words(&mount.point.join("cgroup.controllers"));
        let found = if strict::is_installed() { by_shim(&mount, supervisor) } else { place(&mount, supervisor) };
        let (place, given) = match found {
            Ok((place, given)) => (Ok(place), given),
            Err(lack) => (Err(lack), BTreeSet::new()),
        };
        Self { mount: Some(mount.point), place, offered, given }
    }

    /// The limits that would not hold.
    pub(crate) fn unheld(&self, limits: &Limits, folder: &Path) -> Vec<Unheld> {
        let (settings, mut unheld) = settings(limits, folder, false);
        for setting in settings {
            if let Err(lack) = self.has(setting.controller()) {
                unheld.push(Unheld { limit: setting.limit, lack });
            }
        }
        unheld
    }

    /// Whether any of them would.
    pub(crate) fn holds_any(&self, limits: &Limits, folder: &Path) -> bool {
        settings(limits, folder, false).0.iter().any(|setting| self.has(setting.controller()).is_ok())
    }

    fn has(&self, controller: &str) -> Result<(), Lack> {
        if self.mount.is_some() && !self.offered.contains(controller) {
            return Err(missing(controller));
        }
        let place = self.place.as_ref().map_err(Clone::clone)?;
        if self.given.contains(controller) {
            return Ok(());
        }
        Err(match place {
            Place::Below(base) if !systemd() => {
                let above = base.parent().unwrap_or(base);
                let problem = format!("the {controller} controller is not given to {}", base.display());
                let fix = format!("echo +{controller} | sudo tee {}/cgroup.subtree_control", above.display());
                Lack::new(problem, format!("give it: {fix}"))
            }
            Place::Shim(parent) => {
                let problem =
                    format!("the {controller} controller is not given to the groups below {}", parent.display());
                Lack::new(problem, self.prepare(parent))
            }
            Place::Below(_) | Place::Scope => {
                let problem = format!("systemd gives the {controller} controller to no user");
                Lack::new(problem, delegate_fix())
            }
        })
    }

    fn prepare(&self, parent: &Path) -> String {
        prepare_fix(self.mount.as_deref().unwrap_or(Path::new("/sys/fs/cgroup")), parent)
    }

    /// The controllers that limits need and nobody gives.
    pub(crate) fn missing(&self) -> Vec<(&'static str, Lack)> {
        CONTROLLERS.into_iter().filter_map(|c| self.has(c).err().map(|lack| (c, lack))).collect()
    }
}

/// Refuses limits that cannot hold, or names them where their author wants no more than what can be had.
pub(crate) fn check(outlook: &Outlook, component: &str, limits: &Limits, folder: &Path) -> Result<Vec<Unheld>> {
    let unheld = outlook.unheld(limits, folder);
    match Unheld::refuse(component, &unheld) {
        Some(error) if !limits.best_effort => Err(error),
        _ => Ok(unheld),
    }
}

fn words(path: &Path) -> BTreeSet<String> {
    fs::read_to_string(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn v2_fix() -> String {
    let word = if systemd() { "systemd.unified_cgroup_hierarchy=1" } else { "cgroup_no_v1=all" };
    format!("boot with {word} on the kernel's command line")
}

fn delegate_fix() -> String {
    "give all to users: sudo systemctl edit user@.service, with the lines [Service] and \
     Delegate=cpu cpuset io memory pids; then log in again"
        .to_owned()
}

/// Why the root group lacks a controller (`/proc/cgroups`: name, hierarchy, number of groups, enabled).
fn missing(controller: &str) -> Lack {
    let old = if controller == "io" { "blkio" } else { controller };
    let list = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let row =
        list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|row| row.first() == Some(&old));
    match row.as_deref() {
        Some([_, hierarchy, ..]) if *hierarchy != "0" => {
            Lack::new(format!("the {controller} controller belongs to cgroup v1 on this host"), v2_fix())
        }
        Some([.., "0"]) => Lack::new(
            format!("the {controller} controller is switched off"),
            format!("boot with cgroup_enable={old} on the kernel's command line"),
        ),
        Some(_) => Lack::new(
            format!("the {controller} controller is not given to this container"),
            "give it from outside: run the container that this is with a cgroup of its own to divide",
        ),
        None => Lack::new(format!("the kernel has no {controller} controller"), "use a kernel that has it"),
    }
}

/// Where a supervisor with this pid, or one that starts now, can divide a group, and what it finds there.
fn place(mount: &Mount, supervisor: Option<u32>) -> Result<(Place, BTreeSet<String>), Lack> {
    let root = getuid().is_root();
    let own = group_of(supervisor.unwrap_or_else(std::process::id)).and_then(|group| mount.dir(&group));
    let below = |base: PathBuf| {
        let given = words(&base.join("cgroup.controllers"));
        Ok((Place::Below(base), given))
    };
    let inner = own.as_deref().filter(|own| own.file_name().is_some_and(|name| name == SUPERVISOR));
    if let Some(scope) = inner.and_then(Path::parent)
        && is_ours(scope)
    {
        return below(scope.to_owned());
    }
    if systemd() {
        if supervisor.is_some() {
            let problem = "the project was started without limits, and outside of any place for them";
            return Err(Lack::new(problem, "start it anew: ctst stop, and ctst run"));
        }
        return scope(mount, root).map(|given| (Place::Scope, given));
    }
    if root && is_ours(&mount.point) {
        if !is_divisible(&mount.point) {
            let problem = format!("processes are in {}, the group that would be divided", mount.point.display());
            return Err(Lack::new(problem, move_fix(&mount.point)));
        }
        return below(mount.point.clone());
    }
    let mut above = own.as_deref().map(Path::ancestors).into_iter().flatten();
    let own = above.next().map(Path::to_owned);
    for group in above.take_while(|group| group.starts_with(&mount.point) && is_ours(group)) {
        if is_divisible(group) {
            return below(group.to_owned());
        }
    }
    if let Some(own) = own.filter(|own| is_ours(own)) {
        let problem = format!("processes are in {}, the group that would be divided", own.display());
        return Err(Lack::new(problem, move_fix(&own)));
    }
    let user = users_name();
    let group = mount.point.join(format!("ctst-{user}"));
    let (group, point) = (group.display(), mount.point.display());
    Err(Lack::new(
        format!("no group of {point} is given to this user"),
        format!(
            "give one to this shell: sudo sh -c 'echo +cpu +io +memory +pids > {point}/cgroup.subtree_control; mkdir -p \
             {group}/session && echo +cpu +io +memory +pids > {group}/cgroup.subtree_control && chown -R {user} {group} \
             && echo '$$' > {group}/session/cgroup.procs'"
        ),
    ))
}

/// The group that the policy names for strict mode, as the shim will find it. `supervisor`: of the project, if it runs.
fn by_shim(mount: &Mount, supervisor: Option<u32>) -> Result<(Place, BTreeSet<String>), Lack> {
    let usual = mount.point.join("ctst");
    let named = Policy::read().ok().and_then(|policy| policy.rules().cgroup_parent.clone());
    let Some(named) = named else {
        let problem =
            format!("ctst-shim has file capabilities, and no line of {PATH} says below which group limits may hold");
        let fix = format!(
            "have the administrator write `cgroup_parent = {}` there, and make that group: {}",
            usual.display(),
            prepare(&mount.point, &usual)
        );
        return Err(Lack::new(problem, fix));
    };
    let parent = PathBuf::from(named.value);
    let shown = parent.display();
    let line = format!("line {} of {PATH} says `cgroup_parent = {shown}`", named.number);
    let fix = prepare_fix(&mount.point, &parent);
    let meta =
        parent.symlink_metadata().map_err(|error| Lack::new(format!("{line}, which is not there: {error}"), &fix))?;
    let kind = rustix::fs::statfs(&parent).map(|found| found.f_type);
    if kind != Ok(CGROUP2_SUPER_MAGIC) || !meta.is_dir() {
        let fix = format!("have the administrator name another there, such as {}", usual.display());
        return Err(Lack::new(format!("{line}, which is no group of cgroup v2"), fix));
    }
    if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        let fix = format!("give it to root: sudo sh -c 'chown root:root {shown}; chmod 0755 {shown}'");
        return Err(Lack::new(format!("{line}, which does not belong to root, or others may write to it"), fix));
    }
    let given = words(&parent.join("cgroup.subtree_control"));
    if !CONTROLLERS.iter().any(|controller| given.contains(*controller)) {
        return Err(Lack::new(format!("{line}, which gives no controller to the groups below it"), fix));
    }
    if let Some(init) = supervisor.and_then(sandbox_of)
        && group_of_sandbox(init).is_none()
    {
        let problem = "the project was started without limits, and outside of any place for them";
        return Err(Lack::new(problem, "start it anew: ctst stop, and ctst run"));
    }
    Ok((Place::Shim(parent), given))
}

/// The commands that make a group below which limits can hold.
fn prepare(mount: &Path, parent: &Path) -> String {
    let mut above: Vec<&Path> = parent.ancestors().skip(1).take_while(|dir| dir.starts_with(mount)).collect();
    above.reverse();
    let give = |dir: &Path| format!("echo +cpu +io +memory +pids > {}/cgroup.subtree_control", dir.display());
    let gives: Vec<String> = above.into_iter().chain([parent]).map(give).collect();
    format!("sudo sh -c 'mkdir -p -m 0755 {}; {}'", parent.display(), gives.join("; "))
}

fn prepare_fix(mount: &Path, parent: &Path) -> String {
    format!("have the administrator make it: {}", prepare(mount, parent))
}

/// The pid 1 of a supervisor's project: of its children the one in a pid namespace of its own (`proc_pid_status(5)`).
fn sandbox_of(supervisor: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
    let is_first = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        pids.is_some_and(|pids| pids.split_whitespace().nth(1).is_some())
    };
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_first)
}

/// The project's group that the shim made around this pid 1; none where it made none.
pub(crate) fn group_of_sandbox(init: u32) -> Option<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let dir = Mount::find(&mountinfo)?.dir(&group_of(init)?)?;
    let uid = getuid().as_raw().to_string();
    let project = dir.parent().filter(|_| dir.file_name().is_some_and(|name| name == SANDBOX))?;
    project.parent().filter(|user| user.file_name().is_some_and(|name| name == uid.as_str()))?;
    Some(project.to_owned())
}

/// Has the shim remove the groups of the caller's projects that ended. Does nothing where there are none, and where this
/// process may not start the shim any more.
pub(crate) fn collect() -> Result<()> {
    if !strict::is_installed() || rustix::thread::no_new_privs().unwrap_or(true) {
        return Ok(());
    }
    let Some(parent) = Policy::read()?.rules().cgroup_parent.clone() else { return Ok(()) };
    let user = Path::new(&parent.value).join(getuid().as_raw().to_string());
    let ended = |group: fs::DirEntry| {
        let populated = fs::read_to_string(group.path().join("cgroup.events"));
        group.file_type().is_ok_and(|kind| kind.is_dir()) && populated.is_ok_and(|text| text.contains("populated 0"))
    };
    // Each time it removes so many and no more.
    for _ in 0..MAX_COLLECTIONS {
        if !fs::read_dir(&user).is_ok_and(|groups| groups.flatten().any(ended)) {
            break;
        }
        let (mut child, mut channel) = shim::spawn()?;
        channel.send(&ToShim::Gc { version: VERSION }, Vec::new())?;
        let answer = channel.wait::<FromShim>();
        // It has answered, or ended.
        child.wait().ok();
        match answer? {
            Received::Message(FromShim::Collected { removed, left }, _) if removed > 0 && left > 0 => {}
            Received::Message(FromShim::Failed(failure), _) => {
                let problem = shim::describe(&failure);
                return Err(Error::Sandbox(format!("remove the control groups of projects that ended: {problem}")));
            }
            _ => break,
        }
    }
    Ok(())
}

fn users_name() -> String {
    std::env::var("USER").unwrap_or_else(|_| getuid().as_raw().to_string())
}

fn move_fix(group: &Path) -> String {
    let group = group.display();
    format!(
        "move them: mkdir {group}/session; for p in $(cat {group}/cgroup.procs); do echo $p > \
         {group}/session/cgroup.procs; done"
    )
}

/// What a scope of systemd's would have.
fn scope(mount: &Mount, root: bool) -> Result<BTreeSet<String>, Lack> {
    if which::which("systemd-run").is_err() {
        return Err(Lack::new(
            "systemd owns the cgroups of this host, and systemd-run is not in PATH",
            "install systemd",
        ));
    }
    if root {
        return Ok(words(&mount.point.join("cgroup.controllers")));
    }
    let uid = getuid().as_raw();
    let manager = mount.point.join(format!("user.slice/user-{uid}.slice/user@{uid}.service"));
    if !manager.is_dir() {
        let problem = "systemd owns the cgroups of this host, and has no manager for this user";
        return Err(Lack::new(problem, format!("start it: sudo loginctl enable-linger {}", users_name())));
    }
    Ok(words(&manager.join("cgroup.controllers")))
}

/// Whether this process may make groups in it and move processes there.
fn is_ours(group: &Path) -> bool {
    ["", "cgroup.procs", "cgroup.subtree_control"]
        .iter()
        .all(|file| accessat(CWD, group.join(file), Access::WRITE_OK, rustix::fs::AtFlags::EACCESS).is_ok())
}

/// Whether controllers can be given to the groups below it. The root group, which has no type, may hold processes.
fn is_divisible(group: &Path) -> bool {
    let is_root = !group.join("cgroup.type").exists();
    is_root || fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| text.is_empty())
}

/// The words before which a supervisor is started where it shall have a scope of its own: a transient one, which systemd
/// forgets with its last process.
pub(crate) fn scope_command() -> Vec<&'static str> {
    let mut words = vec!["systemd-run"];
    if !getuid().is_root() {
        words.push("--user");
    }
    words.extend(["--scope", "--quiet", "--collect", "--property=Delegate=yes", "--"]);
    words
}

/// Moves this process, which is alone in a scope, to a group below it, so that the scope can be divided.
pub(crate) fn enter() -> Result<(), Lack> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = group_of(std::process::id());
    let own = Mount::find(&mountinfo).zip(own).and_then(|(mount, own)| mount.dir(&own));
    let own = own.ok_or_else(|| Lack::new("this process is in no visible cgroup", "see /proc/self/cgroup"))?;
    let inner = own.join(SUPERVISOR);
    let entered = fs::create_dir(&inner).and_then(|()| put(&inner, "cgroup.procs", "0"));
    entered.map_err(|e| Lack::new(format!("move to {}: {e}", inner.display()), "see what systemd says: journalctl"))
}

/// Writes to a file of a group. It is there already, or the kernel lacks it.
fn put(group: &Path, file: &str, value: &str) -> io::Result<()> {
    // One write, which the kernel takes whole or refuses.
    fs::File::options().write(true).open(group.join(file))?.write_all(value.as_bytes())
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount_that_shows_most() {
        let text = "24 1 0:21 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro\n\
                    25 24 0:22 /user /mnt/a\\040b rw - cgroup2 none rw\n\
                    26 24 0:22 / /sys/fs/cgroup/unified rw shared:1 master:2 - cgroup2 none rw,nsdelegate\n";
        let mount = Mount::find(text).unwrap();
        assert_eq!((mount.point.to_str(), mount.root.as_str()), (Some("/sys/fs/cgroup/unified"), "/"));
        assert_eq!(mount.dir("/"), Some("/sys/fs/cgroup/unified/".into()));
        assert_eq!(mount.dir("/../x"), None);
        let mount = Mount::find(text.lines().nth(1).unwrap()).unwrap();
        assert_eq!(mount.dir("/user/one"), Some("/mnt/a b/one".into()));
        assert_eq!(mount.dir("/system"), None);
        assert_eq!(Mount::find("25 24 0:22 / /sys/fs/cgroup/memory rw - cgroup none rw\n"), None);
        assert_eq!(Mount::find("cgroup2\n - cgroup2\n"), None);
    }

    #[test]
    fn limits_become_files() {
        let limits = Limits {
            memory: Some(64 << 20),
            swap: Some(0),
            cpu_millis: Some(1500),
            pids: Some(10),
            io_weight: Some(50),
            ..Limits::default()
        };
        let lines = |all| {
            let (settings, unheld) = settings(&limits, Path::new("/"), all);
            assert!(unheld.is_empty());
            settings
                .into_iter()
                .map(|s| format!("{} {}={}", s.controller(), s.what.file(), s.what.value()))
                .collect::<Vec<_>>()
        };
        let wanted = [
            "memory memory.swap.max=0",
            "memory memory.max=67108864",
            "cpu cpu.max=150000 100000",
            "pids pids.max=11",
            "io io.weight=default 50",
        ];
        assert_eq!(lines(false), wanted);
        let all = lines(true);
        assert!(wanted.iter().all(|line| all.contains(&(*line).to_owned())));
        assert!(all.contains(&"memory memory.high=max".to_owned()) && all.contains(&"cpu cpu.weight=100".to_owned()));
        // The kernel takes no part of a period below a millisecond, and no period above a second.
        assert_eq!(
            [1, 9, 10, 1000, 64_000].map(|millis| Limit::Cpus(Some(millis)).value()),
            ["1000 1000000", "9000 1000000", "1000 100000", "100000 100000", "6400000 100000"]
        );
    }

    #[test]
    fn a_limit_needs_a_disk() {
        let limits =
            |path: &str| Limits { io: vec![IoLimit { path: path.into(), ..IoLimit::default() }], ..Limits::default() };
        let lack = |path: &str| {
            let (settings, unheld) = settings(&limits(path), Path::new("/proc"), false);
            assert!(settings.is_empty());
            unheld.into_iter().next().unwrap().lack.problem
        };
        assert_eq!(lack("self"), "/proc/self is not on a block device of its own");
        assert!(lack("/nowhere").starts_with("open /nowhere: No such file"));
    }

    #[test]
    fn a_refusal_names_every_limit_and_each_cause_once() {
        let lack = |problem: &str| Lack::new(problem, "buy another");
        let unheld = [("memory", "no memory"), ("swap", "no memory"), ("io", "no disk")]
            .map(|(limit, problem)| Unheld { limit, lack: lack(problem) });
        let error = Unheld::refuse("db", &unheld).unwrap();
        assert_eq!(error.to_string(), "component db: limit its memory, swap, io: no memory; no disk");
        assert_eq!(error.help().unwrap(), "buy another; or do without: limits = \"best-effort\"");
        assert!(Unheld::refuse("db", &[]).is_none());
    }
}
