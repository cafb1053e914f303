//! The administrator's policy (`policy/src/conf.rs`). The shim's P, or ctst-port, opens the file before anything else and makes
//! sure that only root can have written it. S and C inherit P's descriptor; C reads it and judges its plan before it touches
//! anything.

use std::os::fd::{BorrowedFd, OwnedFd};

use containust_policy::conf::{self, MAX_SIZE, PATH, Range, Rules};
pub use containust_policy::judge::Port;
use containust_policy::judge::{self, Caller, Spec};
use containust_policy::trust::{self, Seen};
use containust_shared::protocol::{Failure, Limit, Plan};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, openat2};
use rustix::io::Errno;

use crate::failure::{Step, refusal};

/// More of `passwd(5)` or `group(5)` than any host has.
const MAX_NAMES: usize = 1 << 20;

/// What judges: the caller, as the kernel knew him when the program was started, and the file.
#[derive(Debug)]
pub struct Policy {
    /// With what the kernel said of it when P opened it. None: there is no file, and the defaults hold.
    file: Option<(OwnedFd, Stat)>,
    uid: u32,
    groups: Vec<u32>,
    strict: bool,
}

impl Policy {
    /// Opens the file. `strict`: this program has file capabilities.
    ///
    /// # Errors
    /// A file, or a folder on the way, that others than root can write, and the kernel's.
    pub fn open(strict: bool) -> Result<Self, Failure> {
        let file = open_file()?;
        let mut groups = rustix::process::getgroups().step("read the groups of the caller", "")?;
        groups.push(rustix::process::getgid());
        let groups = groups.into_iter().map(rustix::fs::Gid::as_raw).collect();
        Ok(Self { file, uid: rustix::process::getuid().as_raw(), groups, strict })
    }

    /// Whether the caller has no power over the project's user namespace, and must not get any over one below it.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// What a forked child must not close.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|(fd, _)| std::os::fd::AsFd::as_fd(fd))
    }

    /// The host ids that containers of root have.
    ///
    /// # Errors
    /// As [`Policy::rules`].
    pub fn root_range(&self) -> Result<Range, Failure> {
        Ok(self.rules()?.root_range())
    }

    /// The verdict on a plan: none is a grant, else why not.
    ///
    /// # Errors
    /// As [`Policy::rules`].
    pub fn judge(&self, plan: &Plan) -> Result<Option<String>, Failure> {
        let rules = self.rules()?;
        let caller = self.caller(&rules)?;
        Ok(judge::judge(&Spec::of(plan), &rules, &caller).err().map(|denials| judge::tell(&denials)))
    }

    fn caller(&self, rules: &Rules) -> Result<Caller, Failure> {
        let (passwd, group) = if rules.allow.is_empty() && rules.offline.is_empty() {
            Default::default()
        } else {
            (names("/etc/passwd")?, names("/etc/group")?)
        };
        Ok(Caller::new(self.uid, self.groups.clone(), &passwd, &group, self.strict))
    }

    /// The verdict on a port that the kernel keeps from the caller: none is a grant, else why not.
    ///
    /// # Errors
    /// As [`Policy::rules`].
    pub fn judge_port(&self, port: Port) -> Result<Option<String>, Failure> {
        let rules = self.rules()?;
        let caller = self.caller(&rules)?;
        Ok(judge::low_port(port, &rules, &caller).err().map(|denials| judge::tell(&denials)))
    }

    /// What the policy asks every component to have, as limits of a group; empty where it asks for none.
    ///
    /// # Errors
    /// As [`Policy::rules`].
    pub fn most(&self) -> Result<Vec<Limit>, Failure> {
        let rules = self.rules()?;
        let memory = rules.max_memory.map(|line| Limit::Memory(Some(line.value)));
        let cpus = rules.max_cpus.map(|line| Limit::Cpus(Some(line.value)));
        let pids = rules.max_pids.map(|line| Limit::Pids(Some(line.value)));
        Ok([memory, cpus, pids].into_iter().flatten().collect())
    }

    /// The verdict on the limits of a container.
    ///
    /// # Errors
    /// Every reason why not, and as [`Policy::rules`].
    pub fn judge_limits(&self, limits: judge::Limits) -> Result<(), Failure> {
        judge::limits(limits, &self.rules()?)
            .map_err(|denials| refusal(&format!("go beyond the policy: {}", judge::tell(&denials)), ""))
    }

    /// The verdict on a way out of the caller's project.
    ///
    /// # Errors
    /// Every reason why not, and as [`Policy::rules`].
    pub fn judge_egress(&self) -> Result<(), Failure> {
        let rules = self.rules()?;
        judge::egress(&rules, &self.caller(&rules)?)
            .map_err(|denials| refusal(&format!("go beyond the policy: {}", judge::tell(&denials)), ""))
    }

    /// The file as it is understood now.
    ///
    /// # Errors
    /// A file that is not understood, or has changed since it was opened, and the kernel's.
    pub fn rules(&self) -> Result<Rules, Failure> {
        let bytes = match &self.file {
            Some((fd, _)) => read(fd, MAX_SIZE).step("read", PATH)?,
            None => Vec::new(),
        };
        // Afterwards, so that what was read is what was there.
        self.is_current()?;
        conf::parse(&bytes).map_err(|error| refusal(&format!("read {PATH}: {error}"), ""))
    }

    /// That the file is what P opened, unchanged, or still is not there. What is being written might lack the very line
    /// that forbids something, and only P can tell root's files from others.
    fn is_current(&self) -> Result<(), Failure> {
        let changed = || {
            refusal(
                &format!(
                    "start anything more in a project that was started before {PATH} was changed (first: ctst stop)"
                ),
                "",
            )
        };
        let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let now = match openat2(CWD, PATH, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how) {
            Ok(now) => Some(rustix::fs::fstat(&now).step("inspect", PATH)?),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error).step("open", PATH),
        };
        match (&self.file, now) {
            (None, None) => Ok(()),
            (Some((_, then)), Some(now)) if same(then, &now) => Ok(()),
            _ => Err(changed()),
        }
    }
}

/// Whether it is the same file with the same content: nobody, root neither, sets a change time (inode(7)).
fn same(a: &Stat, b: &Stat) -> bool {
    let key = |s: &Stat| (s.st_dev, s.st_ino, s.st_size, s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec);
    key(a) == key(b)
}

/// Opens the file by way of folders that, like itself, are root's alone. None: there is none.
fn open_file() -> Result<Option<(OwnedFd, Stat)>, Failure> {
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder = rustix::fs::open("/", look | OFlags::DIRECTORY, Mode::empty()).step("open", "/")?;
    let mut problem = doubt("/", &folder, true)?;
    for (name, path) in [("etc", "/etc"), ("containust", "/etc/containust")] {
        folder = match rustix::fs::openat(&folder, name, look, Mode::empty()) {
            // Then it does not matter who may write the folders above.
            Err(Errno::NOENT) => return Ok(None),
            other => other.step("open", path)?,
        };
        problem = problem.or(doubt(path, &folder, true)?);
    }
    trusted(problem)?;
    // Looked at before it is opened, because opening a device or a FIFO does something.
    let found = match rustix::fs::openat(&folder, "policy.conf", look, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.step("open", PATH)?,
    };
    trusted(doubt(PATH, &found, false)?)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&folder, "policy.conf", flags, Mode::empty()).step("open", PATH)?;
    let (looked, stat) = (rustix::fs::fstat(&found), rustix::fs::fstat(&file).step("inspect", PATH)?);
    if !same(&looked.step("inspect", PATH)?, &stat) {
        return Err(refusal("use what is being changed this moment:", PATH));
    }
    Ok(Some((file, stat)))
}

fn doubt(path: &str, fd: &OwnedFd, folder: bool) -> Result<Option<String>, Failure> {
    let stat = rustix::fs::fstat(fd).step("inspect", path)?;
    let seen = Seen { mode: stat.st_mode, uid: stat.st_uid, size: u64::try_from(stat.st_size).unwrap_or(u64::MAX) };
    Ok(trust::problem(path, seen, folder, MAX_SIZE))
}

fn trusted(problem: Option<String>) -> Result<(), Failure> {
    match problem {
        Some(problem) => Err(refusal(&format!("use {PATH}: {problem}"), "")),
        None => Ok(()),
    }
}

/// A whole file, of which there may be one byte more than `max`.
fn read(fd: &OwnedFd, max: usize) -> rustix::io::Result<Vec<u8>> {
    let mut bytes = vec![0; max.saturating_add(1)];
    let mut len = 0usize;
    loop {
        let rest = bytes.get_mut(len..).unwrap_or_default();
        match rustix::io::pread(fd, rest, u64::try_from(len).unwrap_or(u64::MAX)) {
            Ok(0) => break,
            Ok(more) => len = len.saturating_add(more),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// A file of the host that says the names of ids; where there is none they have none.
fn names(path: &str) -> Result<Vec<u8>, Failure> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(CWD, path, flags, Mode::empty(), how) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other.step("open", path)?,
    };
    let stat = rustix::fs::fstat(&file).step("inspect", path)?;
    let bytes = read(&file, MAX_NAMES).step("read", path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || bytes.len() > MAX_NAMES {
        return Err(refusal("read names from what is no regular file, or too long:", path));
    }
    Ok(bytes)
}
