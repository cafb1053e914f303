//! Giving up rights that a process of ctst's own has no use for: of `plan` and `check` before they look at anything, of a
//! worker and of who asks registries before they read a byte, of a supervisor and its threads once the sandbox stands. SECURITY.md has the table.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use containust_policy::seccomp::{self, HOST, Own};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use seccompiler::sock_filter;

use crate::error::{Error, Result};

/// The newest version of landlock whose rights are given up; an older kernel gives up those that it knows.
const NEWEST: ABI = ABI::V6;

/// Takes from this process, for good, every right to make, change, rename or remove files, whatever their modes say
/// (`landlock(7)`). What is open stays open. Returns whether the kernel holds us to it: one without landlock does not, and
/// then it is only our code that does not write.
///
/// To be called before threads are started: others keep their rights.
///
/// # Errors
/// [`Error::Confine`] where the kernel has landlock and refuses.
pub fn no_writes() -> Result<bool> {
    let refused = |error: landlock::RulesetError| Error::Confine { problem: error.to_string() };
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_write(NEWEST))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.restrict_self())
        .map_err(refused)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// Whether this kernel holds processes to what they give up: tried in a thread, which ends with it.
pub(crate) fn works() -> bool {
    std::thread::spawn(|| no_writes().is_ok_and(|held| held)).join().unwrap_or(false)
}

/// Whether a process that landlock confines still finds others in /proc: with `hidepid` (proc(5)) it does not, because it
/// may trace none. Tried in a thread with the process `pid`, which lives.
pub(crate) fn sees(pid: u32) -> bool {
    let look = move || no_writes().is_ok() && Path::new(&format!("/proc/{pid}/stat")).exists();
    std::thread::spawn(look).join().unwrap_or(false)
}

/// Whether who is held may still move files to another folder: before Linux 5.19 nobody could, even where he may write.
pub(crate) fn moves() -> bool {
    Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::Refer).is_ok()
}

/// What landlock leaves of files: a place, with all below it, and the rights there. A place that is not there needs none.
type Rule<'a> = (&'a Path, BitFlags<AccessFs>);

/// Takes from this thread, and those that it will start, every right over files but these, and those to reach abstract
/// sockets of others. With `apart` also those to bind, to connect, and to signal others.
fn landlocked(handled: BitFlags<AccessFs>, rules: &[Rule<'_>], apart: bool) -> Result<bool> {
    if !moves() {
        return Ok(false);
    }
    let refused = |error: landlock::RulesetError| Error::Confine { problem: error.to_string() };
    let scope = if apart { Scope::from_all(NEWEST) } else { Scope::AbstractUnixSocket.into() };
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).scope(scope).map_err(refused)?;
    if !handled.is_empty() {
        ruleset = ruleset.handle_access(handled).map_err(refused)?;
    }
    if apart {
        ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST)).map_err(refused)?;
    }
    let mut created = ruleset.create().map_err(refused)?;
    for (place, rights) in rules {
        let Ok(opened) = PathFd::new(place) else { continue };
        let rights = if place.is_dir() { *rights } else { *rights & AccessFs::from_file(NEWEST) };
        created = created.add_rule(PathBeneath::new(opened, rights)).map_err(refused)?;
    }
    let status = created.restrict_self().map_err(refused)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// Puts a filter of system calls on this thread and those that it will start, and no_new_privs.
fn filtered(own: Own) -> Result<()> {
    let program: Vec<sock_filter> = seccomp::own_filter_for(own, HOST)
        .iter()
        .map(|i| sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k })
        .collect();
    seccompiler::apply_filter(&program).map_err(|error| Error::Confine { problem: error.to_string() })
}

/// Keeps of this thread's capabilities at most these. An ordinary user's process has none.
fn capable(of: CapabilitySet) -> Result<()> {
    let refused = |errno: rustix::io::Errno| Error::Confine { problem: format!("lower the capabilities: {errno}") };
    let now = rustix::thread::capabilities(None).map_err(refused)?;
    let keep = now.permitted & of;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(refused)
}

/// What a supervisor keeps of files.
#[derive(Debug)]
pub(crate) struct Files {
    /// To read and write, with all below: the project's state.
    pub(crate) state: PathBuf,
    /// Where its socket is, which it removes.
    pub(crate) sockets: Option<PathBuf>,
    /// Where cgroup v2 is mounted.
    pub(crate) cgroups: Option<PathBuf>,
}

/// What the supervisor of a project gives up once nothing is left to be started by it: programs, processes, other identities,
/// and files but these. `init` is the project's pid 1. Returns what the host does not hold it to, for its log.
///
/// # Errors
/// [`Error::Confine`] where the kernel refuses.
pub(crate) fn supervisor(files: &Files, init: Option<u32>) -> Result<Option<&'static str>> {
    let missing = keep(files, init)?;
    filtered(Own::Supervisor)?;
    Ok(missing)
}

/// What of it each thread gives up for itself.
fn keep(files: &Files, init: Option<u32>) -> Result<Option<&'static str>> {
    // Root's: own files of other ids, end containers.
    let kept = CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER | CapabilitySet::KILL;
    capable(kept)?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|errno| Error::Confine { problem: format!("set no_new_privs: {errno}") })?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let all = AccessFs::from_all(NEWEST);
    let mut rules: Vec<Rule<'_>> = vec![
        (&files.state, all & !BitFlags::from(AccessFs::Execute)),
        (Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile),
        (Path::new("/proc"), read),
        (Path::new("/sys"), read),
        (Path::new("/etc"), read),
    ];
    rules.extend(files.sockets.as_deref().map(|place| (place, read | AccessFs::RemoveFile)));
    let group = read | AccessFs::WriteFile | AccessFs::MakeDir | AccessFs::RemoveDir | AccessFs::Truncate;
    rules.extend(files.cgroups.as_deref().map(|place| (place, group)));
    if works() && init.is_some_and(|pid| !sees(pid)) {
        return Ok(Some(
            "/proc hides processes (hidepid) from whom landlock holds: the supervisor keeps its user's files",
        ));
    }
    let held = landlocked(all, &rules, false)?;
    Ok((!held)
        .then_some("this kernel has no landlock, or one before Linux 5.19: the supervisor keeps its user's files"))
}

/// Starts a thread that works on sockets it is given: before it begins it has given up files, programs, and sockets of its own.
///
/// # Errors
/// Those of creating a thread, and where the kernel refuses.
pub(crate) fn on_sockets(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    confined(name, || without_files(CapabilitySet::empty(), Own::Sockets), work)
}

/// Starts a thread that makes the sockets of published ports: it can open no connection. To be called before this one gives up
/// making them.
///
/// # Errors
/// Those of creating a thread, and where the kernel refuses.
pub(crate) fn on_ports(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    confined(name, || without_files(CapabilitySet::NET_BIND_SERVICE, Own::Ports), work)
}

/// Starts a thread of the supervisor's that removes what is in this folder, and reaches no other file. The supervisor itself
/// may not have given anything up yet.
///
/// # Errors
/// Those of creating a thread, and where the kernel refuses.
pub(crate) fn on_files(name: &str, folder: &Path, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let folder = folder.to_owned();
    // Root's: files of all owners, whatever their modes say.
    let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
    // What lies too deep is moved up before it is removed.
    let rights = AccessFs::ReadDir | AccessFs::RemoveFile | AccessFs::RemoveDir | AccessFs::MakeDir | AccessFs::Refer;
    confined(name, move || with_files(&[(folder.as_path(), rights)], kept, Own::Supervisor), work)
}

/// Starts a thread of the supervisor's that keeps an image in this folder, which is the store's, and reaches no other file.
///
/// # Errors
/// Those of creating a thread, and where the kernel refuses.
pub(crate) fn on_store(name: &str, store: &Path, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let store = store.to_owned();
    // Root's: files of all owners, whatever their modes say.
    let kept = CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
    let rights = AccessFs::from_all(NEWEST) & !BitFlags::from(AccessFs::Execute);
    confined(
        name,
        move || {
            let rules = [(store.as_path(), rights), (Path::new("/dev/null"), AccessFs::ReadFile.into())];
            with_files(&rules, kept, Own::Supervisor)
        },
        work,
    )
}

fn confined(
    name: &str,
    confine: impl FnOnce() -> Result<()> + Send + 'static,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (ready, confined) = channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let held = confine();
        let goes_on = held.is_ok();
        // Whoever started it waits.
        ready.send(held).ok();
        if goes_on {
            work();
        }
    })?;
    confined.recv().map_err(io::Error::other)?.map_err(io::Error::other)?;
    Ok(thread)
}

fn without_files(keep: CapabilitySet, own: Own) -> Result<()> {
    with_files(&[], keep, own)
}

fn with_files(rules: &[Rule<'_>], keep: CapabilitySet, own: Own) -> Result<()> {
    capable(keep)?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|errno| Error::Confine { problem: format!("set no_new_privs: {errno}") })?;
    landlocked(AccessFs::from_all(NEWEST), rules, false)?;
    filtered(own)
}

/// Sockets by which something beyond this host can be reached. What this thread starts cannot gain privileges any more.
pub(super) fn beyond() -> Result<()> {
    rustix::thread::set_no_new_privs(true)
        .map_err(|errno| Error::Confine { problem: format!("set no_new_privs: {errno}") })?;
    filtered(Own::Offline)
}

/// What is read while a name is looked up, by whatever the host has set for it (`nsswitch.conf(5)`).
const RESOLVER: [&str; 10] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/ld.so.cache",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
];

/// What the process that asks registries gives up: programs, processes, files but those by which names are looked up, capabilities, and
/// sockets but those that connect.
///
/// # Errors
/// [`Error::Confine`] where the kernel refuses.
pub(crate) fn client() -> Result<()> {
    capable(CapabilitySet::empty())?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|errno| Error::Confine { problem: format!("set no_new_privs: {errno}") })?;
    let rules: Vec<Rule<'_>> =
        RESOLVER.iter().map(|place| (Path::new(*place), AccessFs::ReadFile | AccessFs::ReadDir)).collect();
    landlocked(AccessFs::from_all(NEWEST), &rules, false)?;
    filtered(Own::Client)
}

/// What a worker gives up: programs, processes, the network, and writing to anything but these folders. `None`: it writes where
/// its user may.
///
/// # Errors
/// [`Error::Confine`] where the kernel refuses.
pub(crate) fn worker(writes: Option<&[&Path]>) -> Result<()> {
    let write = AccessFs::from_write(NEWEST);
    match writes {
        Some(places) => {
            let rules: Vec<Rule<'_>> = places.iter().map(|place| (*place, write)).collect();
            landlocked(write | AccessFs::Execute, &rules, true)?;
        }
        None => drop(landlocked(BitFlags::EMPTY, &[], true)?),
    }
    filtered(Own::Worker)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{ErrorKind, Write};

    use super::*;

    /// Not in this process as a whole, where other tests run.
    #[test]
    fn a_supervisor_keeps_its_own_files_only() {
        let dir = tempfile::tempdir().unwrap();
        let (state, other) = (dir.path().join("state"), dir.path().join("other"));
        for folder in [&state, &other] {
            fs::create_dir_all(folder.join("below")).unwrap();
            fs::write(folder.join("file"), "text").unwrap();
        }
        let files = Files { state: state.clone(), sockets: Some(other.join("below")), cgroups: None };
        fs::write(other.join("below/socket"), "").unwrap();
        let denied = |result: std::io::Result<()>| result.is_err_and(|e| e.kind() == ErrorKind::PermissionDenied);
        let held = std::thread::spawn(move || {
            let held = keep(&files, Some(std::os::unix::process::parent_id())).unwrap().is_none();
            fs::write(state.join("new"), "text").unwrap();
            fs::rename(state.join("new"), state.join("below/new")).unwrap();
            fs::read("/proc/self/stat").unwrap();
            fs::write("/dev/null", "text").unwrap();
            fs::remove_file(other.join("below/socket")).unwrap();
            if held {
                assert!(denied(fs::read(other.join("file")).map(drop)));
                assert!(denied(fs::read_dir(&other).map(drop)));
                assert!(denied(fs::write(other.join("new"), "")));
                assert!(denied(fs::write(other.join("below/new"), "")));
                assert!(denied(fs::rename(other.join("file"), state.join("file"))));
                assert!(denied(std::process::Command::new("/bin/true").status().map(drop)));
                // Its descriptor, as those of mounts, gives nothing but itself.
                rustix::fs::open(other.join("file"), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
            }
            without_files(CapabilitySet::empty(), Own::Sockets).unwrap();
            if held {
                assert!(denied(fs::read(state.join("file")).map(drop)));
                assert!(denied(fs::read("/proc/self/stat").map(drop)));
            }
            assert!(rustix::thread::capabilities(None).unwrap().effective.is_empty());
            held
        });
        assert_eq!(held.join().unwrap(), works());
    }

    #[test]
    fn nothing_can_be_written_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        fs::write(path.join("old"), "old").unwrap();
        let denied = |result: std::io::Result<()>| result.is_err_and(|e| e.kind() == ErrorKind::PermissionDenied);
        let held = std::thread::spawn(move || {
            let mut open = fs::File::create(path.join("open")).unwrap();
            let held = no_writes().unwrap();
            assert_eq!(fs::read_to_string(path.join("old")).unwrap(), "old");
            open.write_all(b"open").unwrap();
            open.set_len(2).unwrap();
            if held {
                assert!(denied(fs::write(path.join("new"), "")));
                assert!(denied(fs::write(path.join("old"), "")));
                assert!(denied(fs::create_dir(path.join("folder"))));
                assert!(denied(fs::rename(path.join("old"), path.join("new"))));
                assert!(denied(fs::remove_file(path.join("old"))));
                assert!(denied(std::os::unix::fs::symlink("old", path.join("link"))));
            }
            held
        });
        let held = held.join().unwrap();
        assert_eq!(held, works());
        assert_eq!(fs::read_to_string(dir.path().join("open")).unwrap(), "op");
        // Only that thread.
        fs::write(dir.path().join("new"), "").unwrap();
    }
}
