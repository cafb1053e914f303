//! Runs a command under `ptrace(2)` and strikes one of its processes, or of those that it starts, at one chosen step.
//!
//! A step is the entry to a system call. Processes are told apart by their part in the whole (README.md of ctst-shim), so
//! that the same step is found again in another run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::project::{Done, Running, eventually, reader};

/// What happens at the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// The process is killed, and the system call is not carried out.
    Kill,
    /// The system call is not carried out and fails with this error number.
    Fail(i32),
}

/// Which step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Part of the process: `client`, `supervisor`, `P`, `S`, `C`, `X`, `mapper`, or `child` before it executes one of these.
    pub role: String,
    /// Number of the step among those that processes of this part have taken, from 0.
    pub number: usize,
    /// What happens.
    pub strike: Strike,
}

/// What came of it.
#[derive(Debug)]
pub struct Traced {
    /// How the command ended.
    pub done: Done,
    /// How many steps each part has taken; up to the strike, where it was a kill.
    pub steps: BTreeMap<String, usize>,
    /// What was struck: pid and number of the system call.
    pub struck: Option<(i32, i64)>,
}

/// Which system calls are steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// Those after which something outside of the process may be otherwise, repeats left out.
    Changes,
    /// Those for which a file system needs space.
    Space,
    /// Every one that can fail.
    All,
    /// Those that make a socket, counted under the part, the number of the family, and `here` in the network namespace of the
    /// tracer, `elsewhere` otherwise.
    Sockets,
}

/// So many of one kind in a row count.
const REPEATS: u32 = 3;

fn counts(steps: Steps, pid: Pid, registers: &libc::user_regs_struct) -> bool {
    let number = registers.orig_rax.cast_signed();
    use libc::{
        SYS_bind, SYS_capset, SYS_chdir, SYS_clone, SYS_clone3, SYS_connect, SYS_copy_file_range, SYS_execve, SYS_exit,
        SYS_exit_group, SYS_fchmod, SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_fdatasync, SYS_flock, SYS_fsconfig,
        SYS_fsmount, SYS_fsopen, SYS_fsync, SYS_ftruncate, SYS_ioctl, SYS_kill, SYS_landlock_restrict_self, SYS_linkat,
        SYS_listen, SYS_mkdirat, SYS_mount, SYS_mount_setattr, SYS_move_mount, SYS_open_tree, SYS_openat, SYS_openat2,
        SYS_pidfd_send_signal, SYS_pivot_root, SYS_prctl, SYS_pwrite64, SYS_renameat, SYS_renameat2, SYS_rt_sigreturn,
        SYS_seccomp, SYS_sendfile, SYS_sendmsg, SYS_sendto, SYS_setfsgid, SYS_setfsuid, SYS_setns, SYS_setresgid,
        SYS_setresuid, SYS_setsid, SYS_shutdown, SYS_socketpair, SYS_symlinkat, SYS_umount2, SYS_unlinkat, SYS_unshare,
        SYS_wait4, SYS_waitid, SYS_write, SYS_writev,
    };
    const CHANGES: &[i64] = &[
        SYS_bind,
        SYS_capset,
        SYS_chdir,
        SYS_clone,
        SYS_clone3,
        SYS_connect,
        SYS_copy_file_range,
        SYS_execve,
        SYS_exit_group,
        SYS_fchmod,
        SYS_fchmodat,
        SYS_fchown,
        SYS_fchownat,
        SYS_fdatasync,
        SYS_flock,
        SYS_fsconfig,
        SYS_fsmount,
        SYS_fsopen,
        SYS_fsync,
        SYS_ftruncate,
        SYS_ioctl,
        SYS_kill,
        SYS_landlock_restrict_self,
        SYS_linkat,
        SYS_listen,
        SYS_mkdirat,
        SYS_mount,
        SYS_mount_setattr,
        SYS_move_mount,
        SYS_open_tree,
        SYS_openat,
        SYS_openat2,
        SYS_pidfd_send_signal,
        SYS_pivot_root,
        SYS_prctl,
        SYS_pwrite64,
        SYS_renameat,
        SYS_renameat2,
        SYS_seccomp,
        SYS_sendfile,
        SYS_sendmsg,
        SYS_sendto,
        SYS_setfsgid,
        SYS_setfsuid,
        SYS_setns,
        SYS_setresgid,
        SYS_setresuid,
        SYS_setsid,
        SYS_shutdown,
        SYS_socketpair,
        SYS_symlinkat,
        SYS_umount2,
        SYS_unlinkat,
        SYS_unshare,
        SYS_wait4,
        SYS_waitid,
        SYS_write,
        SYS_writev,
    ];
    const OLDER: &[i64] = &[
        libc::SYS_open,
        libc::SYS_rename,
        libc::SYS_mkdir,
        libc::SYS_rmdir,
        libc::SYS_unlink,
        libc::SYS_link,
        libc::SYS_symlink,
        libc::SYS_chmod,
        libc::SYS_chown,
        libc::SYS_fork,
        libc::SYS_vfork,
    ];
    match steps {
        Steps::Changes => CHANGES.contains(&number) || OLDER.contains(&number),
        Steps::Space if number == SYS_openat => registers.rdx & u64::from(libc::O_CREAT.unsigned_abs()) != 0,
        Steps::Space if [SYS_write, SYS_pwrite64, SYS_writev, SYS_ftruncate, SYS_fsync].contains(&number) => {
            let file = std::fs::read_link(format!("/proc/{pid}/fd/{}", registers.rdi)).unwrap_or_default();
            file.is_absolute() && !file.starts_with("/dev") && !file.starts_with("/proc")
        }
        Steps::Space => {
            [SYS_mkdirat, SYS_renameat, SYS_renameat2, SYS_linkat, SYS_symlinkat].contains(&number)
                || [libc::SYS_mkdir, libc::SYS_rename, libc::SYS_link, libc::SYS_symlink].contains(&number)
        }
        Steps::Sockets => [libc::SYS_socket, libc::SYS_socketpair].contains(&number),
        // The first ones do not come back, brk(2) has no error number, and close(2) has let go of the descriptor whatever it says.
        Steps::All => {
            ![SYS_exit, SYS_exit_group, SYS_rt_sigreturn, SYS_execve, libc::SYS_brk, libc::SYS_close].contains(&number)
        }
    }
}

#[derive(Debug, Default)]
struct Tracee {
    role: String,
    entered: bool,
    last: (i64, u32),
    /// Its system call returns this instead of being carried out.
    answer: Option<i32>,
}

/// Runs `gate`, a shell that waits for a line on its standard input before it becomes what is traced, and strikes at `step`,
/// if there is one. Traced too are the processes `running`, each with its part. The tracer must be allowed to trace all of
/// them (root is).
///
/// # Panics
/// If the kernel refuses to trace, or the command does not end in time.
#[must_use]
pub fn trace(
    mut gate: Command,
    running: &[(i32, &'static str)],
    steps: Steps,
    step: Option<Step>,
    limit: Duration,
) -> Traced {
    gate.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (started, first) = mpsc::channel();
    let (ended, followed) = mpsc::channel();
    let told = format!("{step:?}");
    let running = running.to_vec();
    // A thread of its own: with its end the kernel lets go of all that it traces.
    let tracer = std::thread::spawn(move || {
        let mut child = gate.spawn().unwrap_or_else(|error| panic!("start {gate:?}: {error}"));
        let first = Pid::from_raw(i32::try_from(child.id()).expect("pids fit an i32"));
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC;
        let mut tracees = HashMap::new();
        let seize = |pid: Pid| ptrace::seize(pid, options).and_then(|()| ptrace::interrupt(pid));
        seize(first).expect("trace a process");
        tracees.insert(first, Tracee { role: "gate".into(), ..Tracee::default() });
        for (pid, role) in running {
            for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let thread = thread.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw);
                // One that ends just now needs no tracer.
                if let Some(thread) = thread.filter(|thread| seize(*thread).is_ok()) {
                    tracees.insert(thread, Tracee { role: role.into(), ..Tracee::default() });
                }
            }
        }
        child.stdin.take().expect("a pipe").write_all(b"\n").expect("open the gate");
        started.send((first, child.stdout.take(), child.stderr.take())).expect("somebody waits");
        let followed = follow(first, tracees, steps, step);
        ended.send((followed, child)).expect("somebody waits");
    });
    let (first, stdout, stderr) = first.recv().expect("the tracer has started it");
    let (stdout, stderr) = (reader(stdout), reader(stderr));
    let Ok(((code, steps, struck), child)) = followed.recv_timeout(limit) else {
        kill(first, Signal::SIGKILL).expect("kill a tracee");
        panic!("{told}: the command did not end within {limit:?}");
    };
    tracer.join().expect("the tracer has ended");
    eventually("the kernel has let go", || field(first, "TracerPid:").is_none_or(|tracer| tracer == 0));
    let code = code.unwrap_or_else(|| Running::new(child).wait(limit).code);
    let text = |reader: std::thread::JoinHandle<String>| reader.join().expect("a reader does not panic");
    Traced { done: Done { code, stdout: text(stdout), stderr: text(stderr) }, steps, struck }
}

type Followed = (Option<i32>, BTreeMap<String, usize>, Option<(i32, i64)>);

fn follow(first: Pid, mut tracees: HashMap<Pid, Tracee>, steps: Steps, wanted: Option<Step>) -> Followed {
    let mut early: HashSet<Pid> = HashSet::new();
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    let mut struck = None;
    let go_on = |pid: Pid, signal: Option<Signal>| {
        // It may have been killed in its stop.
        ptrace::syscall(pid, signal).ok();
    };
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Ok(status) => status,
            Err(nix::errno::Errno::ECHILD) => return (None, taken, struck),
            // A signal that nix has no name for.
            Err(_) => continue,
        };
        match status {
            WaitStatus::Exited(pid, code) if pid == first => return (Some(code), taken, struck),
            WaitStatus::Signaled(pid, signal, _) if pid == first => return (Some(128 + signal as i32), taken, struck),
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) => drop(tracees.remove(&pid)),
            WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC) => {
                let role = tracees.get(&pid).map(|tracee| tracee.role.clone()).unwrap_or_default();
                let role = role_of_program(pid, &role);
                tracees.insert(pid, Tracee { role, ..Tracee::default() });
                go_on(pid, None);
            }
            WaitStatus::PtraceEvent(
                pid,
                _,
                libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK,
            ) => {
                if let Ok(new) = ptrace::getevent(pid) {
                    let new = Pid::from_raw(i32::try_from(new).expect("pids fit an i32"));
                    let parent = tracees.get(&pid).map(|tracee| tracee.role.clone()).unwrap_or_default();
                    let role = if is_thread(pid, new) { parent } else { role_of_child(&parent).to_owned() };
                    tracees.insert(new, Tracee { role, ..Tracee::default() });
                    if early.remove(&new) {
                        go_on(new, None);
                    }
                }
                go_on(pid, None);
            }
            WaitStatus::PtraceEvent(pid, signal, libc::PTRACE_EVENT_STOP) => {
                // A new one, the first one, or a group that was stopped, which is let stay stopped.
                let stopped = matches!(signal, Signal::SIGSTOP | Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU);
                if !tracees.contains_key(&pid) {
                    early.insert(pid);
                } else if stopped {
                    ptrace::cont(pid, None).ok();
                } else {
                    go_on(pid, None);
                }
            }
            WaitStatus::PtraceEvent(pid, ..) => go_on(pid, None),
            WaitStatus::PtraceSyscall(pid) => {
                if on_syscall(pid, steps, wanted.as_ref(), &mut tracees, &mut taken, &mut struck) {
                    return (None, taken, struck);
                }
                go_on(pid, None);
            }
            WaitStatus::Stopped(pid, signal) => go_on(pid, Some(signal)),
            WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
        }
    }
}

/// `true`: a process was killed, and that is it.
fn on_syscall(
    pid: Pid,
    steps: Steps,
    wanted: Option<&Step>,
    tracees: &mut HashMap<Pid, Tracee>,
    taken: &mut BTreeMap<String, usize>,
    struck: &mut Option<(i32, i64)>,
) -> bool {
    let Some(tracee) = tracees.get_mut(&pid) else { return false };
    let Ok(mut registers) = ptrace::getregs(pid) else { return false };
    tracee.entered = !tracee.entered;
    if !tracee.entered {
        if let Some(errno) = tracee.answer.take() {
            registers.rax = i64::from(-errno).cast_unsigned();
            // It may have been killed meanwhile.
            ptrace::setregs(pid, registers).ok();
        }
        return false;
    }
    let number = registers.orig_rax.cast_signed();
    if !counts(steps, pid, &registers) {
        return false;
    }
    tracee.last = if tracee.last.0 == number { (number, tracee.last.1 + 1) } else { (number, 1) };
    if steps == Steps::Changes && tracee.last.1 > REPEATS {
        return false;
    }
    let mut part = tracee.role.clone();
    if steps == Steps::Sockets {
        let net = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).expect("read a link");
        let place = if net(&pid.to_string()) == net("self") { "here" } else { "elsewhere" };
        part = format!("{part} {} {place}", registers.rdi);
    }
    let count = taken.entry(part).or_default();
    let this = *count;
    *count += 1;
    let Some(wanted) = wanted.filter(|wanted| struck.is_none() && wanted.role == tracee.role && wanted.number == this)
    else {
        return false;
    };
    match wanted.strike {
        Strike::Kill => {
            let group = group_of(pid).unwrap_or(pid);
            *struck = Some((group.as_raw(), number));
            kill(group, Signal::SIGKILL).expect("kill a tracee");
            true
        }
        Strike::Fail(errno) => {
            *struck = Some((pid.as_raw(), number));
            registers.orig_rax = u64::MAX;
            if ptrace::setregs(pid, registers).is_ok() {
                tracee.answer = Some(errno);
            }
            false
        }
    }
}

fn field(pid: Pid, name: &str) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn group_of(pid: Pid) -> Option<Pid> {
    field(pid, "Tgid:").map(Pid::from_raw)
}

fn is_thread(parent: Pid, new: Pid) -> bool {
    group_of(new).is_some_and(|group| Some(group) == group_of(parent))
}

fn role_of_child(parent: &str) -> &str {
    match parent {
        "P" => "S",
        "S" => "C",
        "C" | "X" => "X",
        // Until it executes something.
        _ => "child",
    }
}

fn role_of_program(pid: Pid, before: &str) -> String {
    if matches!(before, "C" | "X") {
        return "X".into();
    }
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let second = arguments.split(|byte| *byte == 0).nth(1).unwrap_or_default();
    match exe.file_name().and_then(|name| Path::new(name).to_str()) {
        Some("ctst") if second == b"supervise" => "supervisor",
        Some("ctst") => "client",
        Some("ctst-shim") => "P",
        Some("newuidmap" | "newgidmap") => "mapper",
        _ => before,
    }
    .to_owned()
}
