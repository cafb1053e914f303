//! Control groups in strict mode (`Documentation/admin-guide/cgroup-v2.rst`). Below the group that the administrator
//! prepared and the policy names, a caller has one by his user id, a project one in it by P's pid and the moment, a
//! container one in that by its id:
//!
//! ```text
//! PARENT                  the administrator's, with limits for all
//!   UID                   root's, made in the window
//!     PID.NANOSECONDS     the owner's of the project's user namespace, made in the window
//!       sandbox           root's; S is born here, and whatever has no group of its own stays
//!       rest              made by S where the policy demands limits: what would else stay in `sandbox`
//!       ID                made by S, which keeps the owner's id for files
//! ```
//!
//! Nobody else is the owner: not the caller, and nothing in a container, where his id is not mapped. So S alone divides the
//! project's group and writes limits, and the caller, who may read all of it, changes nothing. To move a process is to write
//! to `cgroup.procs` of the nearest common group, too, so that none leaves the project's.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use containust_helper::failure::{Step, refusal};
use containust_helper::policy::Policy;
use containust_policy::conf::{PATH, Rules};
use containust_policy::judge;
use containust_shared::protocol::{Failure, FromSandbox, Limit, MAX_LIMITS, Unset};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, getpid, test_kill_process};
use rustix::time::{ClockId, clock_gettime};

use crate::project::CGROUP2_SUPER_MAGIC;

/// What limits need.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// Where S is born, and where containers without a group of their own go.
const SANDBOX: &str = "sandbox";
const REST: &str = "rest";
/// More groups than one user's projects have at a time. The kernel has 65,535 with limits of memory, for the whole host.
const MAX_GROUPS: u64 = 4096;
/// Most groups that one GC removes, so that its window is short.
const MAX_COLLECTED: usize = 16;
/// Larger than any list of controllers or line of `/proc/PID/stat`.
const MAX_TEXT: usize = 4096;
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Everybody may see what is used; nobody but its owner may change it.
const MODE: Mode = Mode::from_raw_mode(0o755);

/// The group that the policy names.
pub(crate) struct Parent {
    pub(crate) dir: OwnedFd,
    /// As `cgroup.subtree_control` takes it: the controllers that limits need and that are given here.
    pub(crate) given: String,
}

/// Where a project's group is made. The names are of integers alone.
pub(crate) struct Place {
    pub(crate) parent: Parent,
    /// The caller's, below the parent.
    pub(crate) user: String,
    /// The project's.
    pub(crate) own: String,
    /// That in which S is born.
    pub(crate) leaf: String,
}

impl Parent {
    /// The one that the policy names, if it can be used. Where the policy demands limits it has to be.
    pub(crate) fn find(rules: &Rules) -> Result<Option<Self>, Failure> {
        let found = match &rules.cgroup_parent {
            Some(line) => Self::open(&line.value).map_err(|problem| format!("{}: {problem}", line.value)),
            None => Err(format!("{PATH} names no cgroup_parent")),
        };
        match (found, rules.demands()) {
            (Ok(parent), _) => Ok(Some(parent)),
            (Err(_), None) => Ok(None),
            (Err(problem), Some(key)) => {
                Err(refusal(&format!("hold containers to {key} of {PATH}, because no group is below {problem}"), ""))
            }
        }
    }

    fn open(path: &str) -> Result<Self, String> {
        let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let dir = openat2(CWD, path, DIRECTORY, Mode::empty(), how).map_err(|error| error.to_string())?;
        let stat = rustix::fs::fstat(&dir).map_err(|error| error.to_string())?;
        if rustix::fs::fstatfs(&dir).map_err(|error| error.to_string())?.f_type != CGROUP2_SUPER_MAGIC {
            return Err("it is no group of cgroup v2".to_owned());
        }
        if stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
            return Err("it does not belong to root, or others may write to it".to_owned());
        }
        let given = controllers(dir.as_fd(), "cgroup.subtree_control").map_err(|error| error.to_string())?;
        if given.is_empty() {
            return Err("it gives no controller to the groups below it".to_owned());
        }
        Ok(Self { dir, given })
    }

    /// A place for a project of this caller that P is about to make. No other has its name: this process has its pid now.
    pub(crate) fn place(self, uid: u32) -> Result<Place, Failure> {
        let (pid, now) = (getpid().as_raw_nonzero(), clock_gettime(ClockId::Boottime));
        let user = uid.to_string();
        let file = format!("{user}/cgroup.stat");
        match read(self.dir.as_fd(), &file) {
            Err(Errno::NOENT) => {}
            text => has_room(&text.step("read", file)?)?,
        }
        let own = format!("{user}/{pid}.{}", nanoseconds(now.tv_sec, now.tv_nsec));
        let leaf = format!("{own}/{SANDBOX}");
        Ok(Place { parent: self, user, own, leaf })
    }

    /// What the caller's ended projects left, each after what is in it: at most [`MAX_COLLECTED`], and how many more.
    pub(crate) fn dead(&self, uid: u32) -> Result<(Vec<String>, u32), Failure> {
        let user = uid.to_string();
        let mut dead = Vec::new();
        for name in folders(self.dir.as_fd(), &user)? {
            let parts = name.split_once('.').and_then(|(pid, born)| Some((number(pid)?, number(born)?)));
            let Some((pid, born)) = parts else { continue };
            let own = format!("{user}/{pid}.{born}");
            if is_being_made(pid, born) || is_populated(self.dir.as_fd(), &own) {
                continue;
            }
            for name in folders(self.dir.as_fd(), &own)? {
                match number::<u32>(&name) {
                    Some(id) => dead.push(format!("{own}/{id}")),
                    None if name == SANDBOX => dead.push(format!("{own}/{SANDBOX}")),
                    None if name == REST => dead.push(format!("{own}/{REST}")),
                    None => {}
                }
            }
            dead.push(own);
        }
        let left = u32::try_from(dead.len().saturating_sub(MAX_COLLECTED)).unwrap_or(u32::MAX);
        dead.truncate(MAX_COLLECTED);
        Ok((dead, left))
    }
}

fn nanoseconds(seconds: i64, rest: i64) -> u64 {
    let seconds = u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000_000);
    seconds.saturating_add(u64::try_from(rest).unwrap_or(0))
}

/// A number as we write it.
fn number<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number: &T| number.to_string() == text)
}

/// Names of the folders in a group; none where there is no such group.
fn folders(dir: BorrowedFd<'_>, path: &str) -> Result<Vec<String>, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let list = match openat2(dir, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        list => list.and_then(rustix::fs::Dir::new).step("list the control group", path)?,
    };
    let mut names = Vec::new();
    for entry in list {
        let entry = entry.step("list the control group", path)?;
        if entry.file_type() == rustix::fs::FileType::Directory
            && let Ok(name) = entry.file_name().to_str()
            && !name.starts_with('.')
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Whether the P that began to make a group at that moment is still at it: nothing may be in the group yet. Another process
/// that has its pid by now is younger than the group.
fn is_being_made(pid: i32, born: u64) -> bool {
    let Some(process) = Pid::from_raw(pid) else { return false };
    if test_kill_process(process) == Err(Errno::SRCH) {
        return false;
    }
    #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field, the command in parentheses, may hold anything; the 22nd is the start in ticks since boot.
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // It has ended, and its parent has not asked how.
    if after.trim_start().starts_with('Z') {
        return false;
    }
    let ticks = after.split_ascii_whitespace().nth(19).and_then(|field| field.parse::<u64>().ok());
    let second = rustix::param::clock_ticks_per_second().max(1);
    let started = ticks.and_then(|ticks| ticks.saturating_mul(1_000_000_000).checked_div(second));
    started.is_none_or(|started| started <= born)
}

fn is_populated(dir: BorrowedFd<'_>, group: &str) -> bool {
    let events = read(dir, &format!("{group}/cgroup.events"));
    events.is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

fn read(dir: BorrowedFd<'_>, path: &str) -> rustix::io::Result<String> {
    let file = openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = vec![0; MAX_TEXT];
    let length = rustix::io::read(&file, &mut bytes)?;
    bytes.truncate(length);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn put(dir: BorrowedFd<'_>, file: &str, value: &str) -> rustix::io::Result<()> {
    let file = openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes()).map(drop)
}

/// Those of a list that limits need, as they are given on.
fn controllers(dir: BorrowedFd<'_>, file: &str) -> rustix::io::Result<String> {
    let list = read(dir, file)?;
    let ours = CONTROLLERS.into_iter().filter(|name| list.split_ascii_whitespace().any(|given| given == *name));
    Ok(ours.map(|name| format!("+{name}")).collect::<Vec<_>>().join(" "))
}

/// The project's group, in the hands of S.
pub(crate) struct Groups {
    dir: OwnedFd,
    rest: Option<OwnedFd>,
    made: BTreeSet<u32>,
}

impl Groups {
    /// Takes the group in which this process was born over, with the id of its owner.
    pub(crate) fn open(place: &Place, policy: &Policy) -> Result<Self, Failure> {
        let parent = &place.parent.dir;
        let dir = openat(parent, place.own.as_str(), DIRECTORY, Mode::empty()).step("open", &place.own)?;
        put(dir.as_fd(), "cgroup.subtree_control", &place.parent.given).step("divide", &place.own)?;
        let mut groups = Self { dir, rest: None, made: BTreeSet::new() };
        let most = policy.most()?;
        if !most.is_empty() {
            let rest = groups.make(REST).step("make the control group", REST)?;
            for limit in most {
                put(rest.as_fd(), limit.file(), &limit.value()).step("set by the policy's limits", limit.file())?;
            }
            groups.rest = Some(rest);
        }
        Ok(groups)
    }

    /// The group that a container begins in; none: that of S.
    pub(crate) fn entry(&self, id: u32, grouped: bool) -> Result<Option<OwnedFd>, Failure> {
        if grouped && !self.made.contains(&id) {
            return Err(refusal("start a container in a group that was not made", ""));
        }
        let name = id.to_string();
        let entry = match (grouped, &self.rest) {
            (true, _) => openat(&self.dir, name.as_str(), DIRECTORY, Mode::empty()),
            (false, Some(rest)) => rustix::io::fcntl_dupfd_cloexec(rest, 3),
            (false, None) => return Ok(None),
        };
        entry.map(Some).step("open the container's group", name)
    }

    /// CGROUP.
    pub(crate) fn limit(&mut self, id: u32, limits: &[Limit], policy: &Policy) -> Result<Vec<Unset>, Failure> {
        if limits.len() > MAX_LIMITS {
            return Err(refusal("set so many limits", ""));
        }
        policy.judge_limits(asked(limits)?)?;
        let name = id.to_string();
        let new = !self.made.contains(&id);
        if new {
            has_room(&read(self.dir.as_fd(), "../cgroup.stat").step("read", "cgroup.stat")?)?;
        }
        let group = if new { self.make(&name) } else { openat(&self.dir, name.as_str(), DIRECTORY, Mode::empty()) };
        let group = group.step("make the control group", &name)?;
        let set = self.set(group.as_fd(), new, limits, policy);
        if new {
            match &set {
                Ok(_) => drop(self.made.insert(id)),
                Err(_) => unlinkat(&self.dir, name.as_str(), AtFlags::REMOVEDIR).step("remove the group", &name)?,
            }
        }
        set
    }

    fn set(&self, group: BorrowedFd<'_>, new: bool, limits: &[Limit], policy: &Policy) -> Result<Vec<Unset>, Failure> {
        // A process of a group that is out of memory is no use to the others: all of them end, as one.
        if new {
            match put(group, "memory.oom.group", "1") {
                // Without the controller there is no such file.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error).step("write to", "memory.oom.group"),
            }
        }
        let demanded = policy.most()?;
        let mut unset = Vec::new();
        for (at, limit) in (0..).zip(limits) {
            let Err(error) = put(group, limit.file(), &limit.value()) else { continue };
            if demanded.iter().any(|most| most.file() == limit.file()) {
                return Err(error).step("set what the policy demands by", limit.file());
            }
            unset.push(Unset { at, errno: error.raw_os_error() });
        }
        Ok(unset)
    }

    /// FREEZE and THAW.
    pub(crate) fn freeze(&self, id: u32, frozen: bool) -> Result<(), Failure> {
        let file = format!("{id}/cgroup.freeze");
        put(self.dir.as_fd(), &file, if frozen { "1" } else { "0" }).step("write to", file)
    }

    /// GC of one group.
    pub(crate) fn remove(&mut self, id: u32) -> Result<(), Failure> {
        let name = id.to_string();
        match unlinkat(&self.dir, name.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {
                self.made.remove(&id);
                Ok(())
            }
            Err(error) => Err(error).step("remove the control group", name),
        }
    }

    fn make(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        mkdirat(&self.dir, name, MODE)?;
        openat(&self.dir, name, DIRECTORY, Mode::empty())
    }
}

/// Whether a user whose group has this `cgroup.stat` may have one more below it.
fn has_room(stat: &str) -> Result<(), Failure> {
    let number = stat.lines().find_map(|line| line.strip_prefix("nr_descendants ")?.parse::<u64>().ok());
    match number {
        Some(number) if number < MAX_GROUPS => Ok(()),
        _ => Err(refusal("make more control groups than one user may have:", MAX_GROUPS.to_string())),
    }
}

/// What the policy is asked about. Each limit stands once: of two, the first would hold until the second is written, which
/// may be long enough for more processes than the policy allows, who stay.
fn asked(limits: &[Limit]) -> Result<judge::Limits, Failure> {
    let mut asked = judge::Limits::default();
    let mut seen = Vec::new();
    for limit in limits {
        match *limit {
            Limit::Memory(bytes) => asked.memory = bytes,
            Limit::Cpus(millis) => asked.cpu_millis = millis,
            Limit::Pids(number) => asked.pids = number,
            // One of each disk.
            Limit::Io { .. } => continue,
            _ => {}
        }
        if seen.contains(&limit.file()) {
            return Err(refusal("set a limit twice by one request:", limit.file()));
        }
        seen.push(limit.file());
    }
    Ok(asked)
}

/// The answer to a request about one group.
pub(crate) fn answer(id: u32, done: Result<Vec<Unset>, Failure>) -> FromSandbox {
    match done {
        Ok(unset) => FromSandbox::Grouped { id, unset },
        Err(failure) => FromSandbox::GroupFailed { id, failure },
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_groups_and_no_more() {
        let stat = |number| format!("nr_descendants {number}\nnr_dying_descendants 70000\n");
        has_room(&stat(0)).unwrap();
        has_room(&stat(MAX_GROUPS - 1)).unwrap();
        assert_eq!(has_room(&stat(MAX_GROUPS)).unwrap_err().subject, b"4096");
        has_room("").unwrap_err();
    }

    #[test]
    fn a_limit_is_asked_for_once() {
        let (memory, pids, cpus) = (Limit::Memory(Some(5)), Limit::Pids(Some(7)), Limit::Cpus(Some(9)));
        let io = |minor| Limit::Io { major: 8, minor, rates: [None; 4] };
        let all = judge::Limits { memory: Some(5), cpu_millis: Some(9), pids: Some(7) };
        assert_eq!(asked(&[memory, pids, cpus, io(0), io(1), Limit::Swap(None)]).unwrap(), all);
        // The last one alone would be judged, and the first one written.
        for wide in [Limit::Memory(None), Limit::Pids(Some(1 << 20)), Limit::Cpus(None)] {
            let failure = asked(&[wide, memory, pids, cpus]).unwrap_err();
            assert_eq!(failure.subject, wide.file().as_bytes(), "{failure:?}");
        }
    }
}
