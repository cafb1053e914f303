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

mod group;
mod settings;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use containust_lang::model::Limits;
use containust_policy::conf::PATH;
use containust_shared::protocol::{FromShim, ToShim, VERSION};
use rustix::fs::{Access, CWD, accessat};
use rustix::process::getuid;

use crate::error::{Error, Result};
use crate::host::policy::Policy;
use crate::host::strict;
use crate::shim::{self, Received};

pub(crate) use group::{Change, Division, Group, stats_at, sweep};
use settings::settings;
pub(crate) use settings::{Unheld, any};

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
}
