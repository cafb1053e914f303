//! Starting a process in the container: what happens between fork and execve.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use containust_core::sys::{self, Alone, Arguments, Filter};
use containust_core::weak::{Layer, weak};
use containust_helper::failure::{Step, refusal};
use containust_shared::exit;
use containust_shared::protocol::{Failure, Process, Rlimit};
use rustix::fs::{FileType, Gid, Uid};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;

use crate::user;

/// `statfs(2)`'s `f_type` of anonymous pipes.
const PIPEFS_MAGIC: i64 = 0x5049_5045;

/// What every process of a container gets, the first one and those of EXEC alike.
pub(crate) struct Confines {
    /// Capabilities of root.
    pub(crate) capabilities: u64,
    /// What C has of capabilities beyond that.
    pub(crate) surplus: u64,
    /// A ruleset of landlock.
    pub(crate) landlock: Option<OwnedFd>,
    /// A filter of the author's, on top of the one that C has.
    pub(crate) profile: Option<Filter>,
    pub(crate) rlimits: Vec<Rlimit>,
    /// Whether the user namespace lets processes set their groups.
    pub(crate) setgroups: bool,
}

/// Standard streams of a new process.
pub(crate) enum Streams {
    Given([OwnedFd; 3]),
    /// A new terminal of the container's own devpts, which this descriptor is the root of.
    Terminal(OwnedFd),
}

/// A process that was forked and has not yet said whether it runs its program. Root of the container can stop it before
/// it does, so nothing waits for it.
pub(crate) struct Starting {
    pub(crate) pid: i32,
    /// Readable once it has said so.
    pub(crate) status: OwnedFd,
    /// The terminal's master side.
    pub(crate) master: Option<OwnedFd>,
    /// Whether landlock may be why it does not.
    restricted: bool,
    prepared: Prepared,
}

/// Forks a process that then executes. On failure also the exit code that `ctst` gives for it.
pub(crate) fn start(
    alone: &Alone,
    confines: &Confines,
    process: &Process,
    streams: Streams,
) -> Result<Starting, (i32, Failure)> {
    let tool = |failure| (exit::TOOL, failure);
    let prepared = Prepared::new(process).map_err(tool)?;
    if !confines.setgroups && !process.groups.is_empty() {
        return Err(tool(refusal("give groups where only one id is mapped", "")));
    }

    let (streams, master) = match streams {
        Streams::Given(streams) => (streams, None),
        Streams::Terminal(devpts) => {
            let (master, slave) = terminal(&devpts).map_err(tool)?;
            let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3).step("duplicate the terminal", "");
            ([copy(&slave).map_err(tool)?, copy(&slave).map_err(tool)?, slave], Some(master))
        }
    };
    give(&streams, &prepared).map_err(tool)?;

    let (status, status_end) = pipe_with(PipeFlags::CLOEXEC).step("make a pipe", "").map_err(tool)?;
    let argv = Arguments::new(&prepared.argv);
    let envp = Arguments::new(&prepared.env);
    match sys::fork(alone).step("fork", "").map_err(tool)? {
        None => {
            let error = run(confines, &prepared, &streams, master.is_some(), &argv, &envp);
            sys::exit_now(report(&status_end, error));
        }
        Some(pid) => {
            drop((argv, envp));
            Ok(Starting { pid, status, master, restricted: confines.landlock.is_some(), prepared })
        }
    }
}

impl Starting {
    /// What became of it, once `status` is readable: its pid and terminal, or why it does not run its program.
    pub(crate) fn outcome(self) -> Result<(i32, Option<OwnedFd>), (i32, Failure)> {
        let mut status = [0; REPORT];
        // A report is written at once, so that a pipe gives it at once (pipe(7)). None: a successful execve closed the
        // pipe, or the process was killed, which is told as its end.
        match rustix::io::read(&self.status, &mut status) {
            Ok(0) => Ok((self.pid, self.master)),
            Ok(_) => {
                let [at, a, b, c, d] = status;
                Err(self.prepared.failure(self.restricted, at, i32::from_ne_bytes([a, b, c, d])))
            }
            Err(error) => Err((exit::TOOL, io_failure("hear from the new process", b"", error.into()))),
        }
    }
}

/// Bytes of a report: the step and the errno.
const REPORT: usize = 5;

/// Everything that needs memory, made before the fork.
struct Prepared {
    user: user::User,
    argv: Vec<CString>,
    env: Vec<CString>,
    /// Programs to try, in order.
    programs: Vec<CString>,
    cwd: CString,
}

impl Prepared {
    fn new(process: &Process) -> Result<Self, Failure> {
        let user = user::look_up(&process.user, &process.groups)?;
        let string = |bytes: &[u8]| CString::new(bytes).map_err(|_| refusal("pass a string with a NUL byte", ""));
        let name =
            process.argv.first().filter(|name| !name.is_empty()).ok_or_else(|| refusal("start no command", ""))?;
        let mut env = process.env.clone();
        if let Some(odd) = env.iter().find(|entry| !entry.contains(&b'=')) {
            let name: Vec<u8> = odd.iter().copied().take(64).collect();
            return Err(refusal("set an environment entry without =:", name));
        }
        if !env.iter().any(|entry| entry.starts_with(b"HOME=")) {
            env.push([b"HOME=", user.home.as_slice()].concat());
        }
        let programs = if name.contains(&b'/') {
            vec![string(name)?]
        } else {
            let path = env.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or_default();
            path.split(|b| *b == b':')
                .filter(|folder| folder.first() == Some(&b'/'))
                .map(|folder| string(&[folder, b"/", name].concat()))
                .collect::<Result<_, _>>()?
        };
        Ok(Self {
            argv: process.argv.iter().map(|arg| string(arg)).collect::<Result<_, _>>()?,
            env: env.iter().map(|entry| string(entry)).collect::<Result<_, _>>()?,
            programs,
            cwd: string(if process.cwd.is_empty() { b"/" } else { &process.cwd })?,
            user,
        })
    }

    /// Explains what the child reported.
    fn failure(&self, restricted: bool, step: u8, errno: i32) -> (i32, Failure) {
        let error = io::Error::from_raw_os_error(errno);
        let command = self.argv.first().map(|arg| arg.as_bytes()).unwrap_or_default();
        let ids = format!("{}:{}", self.user.uid, self.user.gid);
        let at = |step: &str, subject: &[u8]| io_failure(step, subject, io::Error::from_raw_os_error(errno));
        match ChildStep::from_code(step) {
            ChildStep::Execute if error.kind() == io::ErrorKind::NotFound => {
                let exists =
                    self.programs.iter().any(|p| rustix::fs::access(p.as_c_str(), rustix::fs::Access::EXISTS).is_ok());
                let what = if exists { "find the interpreter of the command" } else { "find the command" };
                (exit::NOT_FOUND, at(what, command))
            }
            ChildStep::Execute if restricted && error.kind() == io::ErrorKind::PermissionDenied => {
                (exit::NOT_EXECUTABLE, at("execute (does `landlock` allow it, and its interpreter?)", command))
            }
            ChildStep::Execute => (exit::NOT_EXECUTABLE, at("execute", command)),
            ChildStep::Session => (exit::TOOL, at("start a session for", command)),
            ChildStep::Streams => (exit::TOOL, at("connect the standard streams of", command)),
            ChildStep::Groups => (exit::TOOL, at("set the groups of user", ids.as_bytes())),
            ChildStep::Ids => (exit::TOOL, at("switch to user (is it mapped in this user namespace?)", ids.as_bytes())),
            ChildStep::Capabilities => (exit::TOOL, at("set the capabilities of", command)),
            ChildStep::Limits => (exit::TOOL, at("set the resource limits of", command)),
            ChildStep::Directory => (exit::TOOL, at("enter the working directory", self.cwd.as_bytes())),
            ChildStep::Descriptors => (exit::TOOL, at("close the descriptors of", command)),
            ChildStep::Landlock => (exit::TOOL, at("restrict by landlock", command)),
            ChildStep::Profile => (exit::TOOL, at("install the seccomp profile for", command)),
        }
    }
}

#[derive(Clone, Copy)]
#[repr(u8)]
enum ChildStep {
    Session = 1,
    Streams,
    Limits,
    Groups,
    Ids,
    Capabilities,
    Directory,
    Landlock,
    Descriptors,
    Profile,
    Execute,
}

impl ChildStep {
    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Session,
            2 => Self::Streams,
            3 => Self::Limits,
            4 => Self::Groups,
            5 => Self::Ids,
            6 => Self::Capabilities,
            7 => Self::Directory,
            8 => Self::Landlock,
            9 => Self::Descriptors,
            10 => Self::Profile,
            _ => Self::Execute,
        }
    }
}

/// In the child: the steps whose order is the confinement, then the program. It already has the container's namespaces,
/// no_new_privs and filter from C. Returns only on failure. Allocates nothing.
fn run(
    confines: &Confines,
    prepared: &Prepared,
    streams: &[OwnedFd; 3],
    terminal: bool,
    argv: &Arguments<'_>,
    envp: &Arguments<'_>,
) -> (ChildStep, io::Error) {
    let steps = || -> Result<(), (ChildStep, io::Error)> {
        let at = |step| move |error| (step, error);
        sys::reset_signals();
        rustix::process::setsid().map_err(|e| (ChildStep::Session, e.into()))?;
        for (number, stream) in (0..).zip(streams) {
            sys::duplicate_to(stream, number).map_err(at(ChildStep::Streams))?;
        }
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(|e| (ChildStep::Session, e.into()))?;
        }
        for limit in &confines.rlimits {
            sys::set_rlimit(limit.resource, limit.soft, limit.hard).map_err(at(ChildStep::Limits))?;
        }
        if confines.setgroups {
            sys::set_groups(&prepared.user.groups).map_err(at(ChildStep::Groups))?;
        }
        sys::drop_from_bounding_set(confines.surplus).map_err(at(ChildStep::Capabilities))?;
        sys::set_ids(prepared.user.uid, prepared.user.gid).map_err(at(ChildStep::Ids))?;
        // For another user than root the kernel has cleared them with the change of ids; said again, not assumed.
        let capabilities = if prepared.user.uid == 0 { confines.capabilities } else { 0 };
        if !weak(Layer::Capabilities) {
            sys::set_capabilities(capabilities).map_err(at(ChildStep::Capabilities))?;
        }
        rustix::process::chdir(prepared.cwd.as_c_str()).map_err(|e| (ChildStep::Directory, e.into()))?;
        if let Some(ruleset) = &confines.landlock {
            sys::restrict_by_landlock(ruleset.as_fd()).map_err(at(ChildStep::Landlock))?;
        }
        if !weak(Layer::Descriptors) {
            sys::cloexec_from(3).map_err(at(ChildStep::Descriptors))?;
        }
        // Last, because it may refuse any of the above.
        confines.profile.as_ref().map_or(Ok(()), Filter::install).map_err(at(ChildStep::Profile))
    };
    if let Err(failure) = steps() {
        return failure;
    }
    let mut error = io::Error::from(rustix::io::Errno::NOENT);
    for program in &prepared.programs {
        let this = sys::execute(program, argv, envp);
        match this.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            // Like execvp(3): a program that may not be executed is remembered, the search goes on.
            Some(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
            Some(rustix::io::Errno::ACCESS) => error = this,
            _ => return (ChildStep::Execute, this),
        }
    }
    (ChildStep::Execute, error)
}

fn report(status: &OwnedFd, (step, error): (ChildStep, io::Error)) -> i32 {
    let [a, b, c, d] = error.raw_os_error().unwrap_or(0).to_ne_bytes();
    match rustix::io::write(status, &[step as u8, a, b, c, d]) {
        Ok(_) | Err(_) => exit::NOT_FOUND,
    }
}

/// Gives pipes and the terminal to the process's user: opening /dev/stdout again asks for the file's permissions.
/// Never anything with a name on the host.
fn give(streams: &[OwnedFd; 3], prepared: &Prepared) -> Result<(), Failure> {
    if prepared.user.uid == 0 {
        return Ok(());
    }
    for stream in streams {
        let stat = rustix::fs::fstat(stream).step("inspect a standard stream", "")?;
        let anonymous_pipe = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo
            && rustix::fs::fstatfs(stream).step("inspect a standard stream", "")?.f_type == PIPEFS_MAGIC;
        if anonymous_pipe || rustix::termios::isatty(stream) {
            let (uid, gid) = (Uid::from_raw(prepared.user.uid), Gid::from_raw(prepared.user.gid));
            rustix::fs::fchown(stream, Some(uid), Some(gid)).step("give a standard stream to user", ids(prepared))?;
        }
    }
    Ok(())
}

fn ids(prepared: &Prepared) -> String {
    format!("{} (is it mapped in this user namespace?)", prepared.user.uid)
}

/// Master and slave of a new terminal, reached through descriptors only: a path under /dev is the container's to change.
fn terminal(devpts: &OwnedFd) -> Result<(OwnedFd, OwnedFd), Failure> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let master = rustix::fs::openat(devpts, "ptmx", flags, rustix::fs::Mode::empty()).step("open", "/dev/pts/ptmx")?;
    rustix::pty::unlockpt(&master).step("unlock the terminal", "")?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, peer).step("open the terminal's other side", "")?;
    Ok((master, slave))
}

fn io_failure(step: &str, subject: &[u8], error: io::Error) -> Failure {
    Failure { step: step.into(), subject: subject.into(), errno: error.raw_os_error().unwrap_or(0) }
}

/// Whether the user namespace of this process lets `setgroups(2)` work.
pub(crate) fn setgroups_allowed(proc: BorrowedFd<'_>) -> Result<bool, Failure> {
    let how = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, "self/setgroups", how, rustix::fs::Mode::empty())
        .step("open", "/proc/self/setgroups")?;
    let mut word = [0; 5];
    let len = rustix::io::read(&file, &mut word).step("read", "/proc/self/setgroups")?;
    Ok(word.get(..len) == Some(b"allow"))
}
