//! What this host has for containers, found by trying it.

use std::fs::{File, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use containust_shared::protocol::{
    Address, FromContainer, FromSandbox, FromShim, MAIN, Mapped, Plan, Sandbox, ToContainer, ToSandbox, VERSION,
};
use containust_shared::wire::Message;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{WaitId, WaitIdOptions, getgid, getuid, waitid};
use serde::Serialize;

use crate::error::{During, Error, Result};
use crate::ids::{self, Ids, Range};
use crate::shim::{self, Channel, Received, describe};
use crate::worker;

/// Longer than any of this takes on a host that works.
const PATIENCE: Duration = Duration::from_secs(10);

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it is.
    pub status: Verdict,
    /// What was found, for a person.
    pub found: String,
    /// The one thing that makes it better.
    pub fix: Option<String>,
}

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Containers run, with less.
    Limited,
    /// No container runs.
    Bad,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Verdict::Good, found: found.into(), fix: None }
    }

    fn other(name: &'static str, status: Verdict, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Tries what containers need: starts a sandbox and two containers in it, and looks at what else the host has.
#[must_use]
pub fn examine() -> Vec<Check> {
    let mut checks = Vec::new();
    match shim::locate() {
        Ok(path) => checks.push(Check::good("shim", path.display().to_string())),
        Err(error) => {
            let fix = error.help().unwrap_or_default();
            checks.push(Check::other("shim", Verdict::Bad, error.to_string(), fix));
        }
    }
    match Ids::detect() {
        Ok(ids) => {
            checks.push(user_ids(&ids));
            sandbox(&ids, &mut checks);
        }
        Err(error) => {
            checks.push(Check::other("user ids", Verdict::Bad, error.to_string(), "unset CTST_IDS"));
        }
    }
    checks
}

fn user_ids(ids: &Ids) -> Check {
    let Ids::Single(why) = ids else { return Check::good("user ids", ids.to_string()) };
    let fix = if why.contains("newuidmap") {
        "install newuidmap: apt install uidmap".to_owned()
    } else if why.contains("CTST_IDS") {
        "unset CTST_IDS".to_owned()
    } else {
        let first = [Path::new("/etc/subuid"), Path::new("/etc/subgid")].map(ids::end_of_grants);
        let first = first.into_iter().max().unwrap_or_default().max(100_000);
        let (range, uid) = (format!("{first}-{}", first + 65_535), getuid().as_raw());
        format!("give yourself ids: sudo usermod --add-subuids {range} --add-subgids {range} $(id -un {uid})")
    };
    Check::other(
        "user ids",
        Verdict::Limited,
        format!("{ids}: a container has one user, and its image cannot switch to another"),
        fix,
    )
}

fn sandbox(ids: &Ids, checks: &mut Vec<Check>) {
    let mut trial = match Trial::start(ids) {
        Ok(trial) => trial,
        Err(error) => {
            let fix = error.help().unwrap_or_default();
            return checks.push(Check::other("user namespaces", Verdict::Bad, error.to_string(), fix));
        }
    };
    checks.push(Check::good("user namespaces", "a sandbox was made"));
    match trial.run_worker() {
        Ok(0) => checks.push(Check::good("container", "a program ran in one")),
        Ok(code) => {
            let fix = "see the kernel's log: dmesg | tail";
            checks.push(Check::other("container", Verdict::Bad, format!("a program in one exited with {code}"), fix));
        }
        Err(error) => {
            let fix = "see the kernel's log: dmesg | tail";
            return checks.push(Check::other("container", Verdict::Bad, error.to_string(), fix));
        }
    }
    let folder = std::env::temp_dir();
    let name = "overlayfs";
    match trial.run_overlay(ids, &folder) {
        Ok(0) => checks.push(Check::good(name, format!("mounted in {}", folder.display()))),
        Ok(code) => checks.push(Check::other(
            name,
            Verdict::Bad,
            format!("a program on one exited with {code}"),
            "see the kernel's log: dmesg | tail",
        )),
        Err(error) => checks.push(Check::other(
            name,
            Verdict::Bad,
            format!("{error} (in {})", folder.display()),
            "load it: sudo modprobe overlay; or set TMPDIR to a local disk and try again",
        )),
    }
}

/// The setting that forbids user namespaces, where it can be seen.
pub(crate) fn namespaces_fix() -> String {
    let setting = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    if setting("/proc/sys/user/max_user_namespaces") == "0" {
        "allow them: sudo sysctl -w user.max_user_namespaces=15000".to_owned()
    } else if setting("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        "allow them: sudo sysctl -w kernel.unprivileged_userns_clone=1".to_owned()
    } else if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        "allow them: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0".to_owned()
    } else {
        "see the kernel's log, and whether this runs in a container that forbids it".to_owned()
    }
}

/// A sandbox that is only tried. Dropping it ends it.
struct Trial {
    shim: Child,
    channel: Channel,
    init: Option<OwnedFd>,
    next: u32,
}

impl Trial {
    fn start(ids: &Ids) -> Result<Self> {
        let (shim, channel) = shim::spawn()?;
        set_socket_timeout(&channel, Timeout::Recv, Some(PATIENCE)).during(|| "set a timeout".to_owned())?;
        let mut trial = Self { shim, channel, init: None, next: 0 };
        let bridge = Address { ip: [10, 89, 0, 1], prefix: 24 };
        trial.channel.send(&Sandbox { version: VERSION, map: ids.map(), bridge }, Vec::new())?;
        loop {
            match expect::<FromShim>(&trial.channel)? {
                (FromShim::Created { pid }, fds) => {
                    trial.init = fds.into_iter().next();
                    if let Ids::Helper { uids, gids, newuidmap, newgidmap } = ids {
                        map(newuidmap, pid, getuid().as_raw(), *uids)?;
                        map(newgidmap, pid, getgid().as_raw(), *gids)?;
                        trial.channel.send(&Mapped { version: VERSION }, Vec::new())?;
                    }
                }
                (FromShim::Ready, _) => return Ok(trial),
                (FromShim::Failed(failure), _) => {
                    return Err(Error::NoSandbox { problem: describe(&failure), help: namespaces_fix() });
                }
            }
        }
    }

    fn run_worker(&mut self) -> Result<i32> {
        let folder = tempfile::tempdir().during(|| "make a folder".to_owned())?;
        let path = folder.path().canonicalize().during(|| "find a folder".to_owned())?;
        let (plan, held) = worker::plan(&path, &["probe"])?;
        let code = self.run(plan);
        drop(held);
        code
    }

    fn run_overlay(&mut self, ids: &Ids, place: &Path) -> Result<i32> {
        let what = || format!("make folders in {}", place.display());
        let folder = tempfile::tempdir_in(place).during(what)?;
        let path = folder.path().canonicalize().during(what)?;
        let dirs = ["target", "layer", "upper", "work"].map(|name| path.join(name));
        for dir in &dirs {
            std::fs::create_dir(dir).during(what)?;
            std::fs::set_permissions(dir, Permissions::from_mode(0o755)).during(what)?;
            if let Ids::Root(Range { first, .. }) = ids {
                chown(dir, Some(*first), Some(*first)).during(what)?;
            }
        }
        let (mut plan, mut held) = worker::plan(&dirs[0], &["probe"])?;
        let mut take = |path: &Path| worker::source(path).map(|(source, fd)| (source, held.push(fd)).0);
        plan.layers = vec![take(&dirs[1])?];
        plan.upper = Some(take(&dirs[2])?);
        plan.work = Some(take(&dirs[3])?);
        let code = self.run(plan);
        // The overlay leaves a closed folder in `work`, which the temporary folder could not remove.
        if containust_image::remove_tree(&path).is_ok() {
            // Nothing is left for it to remove.
            folder.close().ok();
        }
        code
    }

    /// Runs a container to its end.
    fn run(&mut self, plan: Plan) -> Result<i32> {
        let (ours, theirs) = shim::seqpacket()?;
        set_socket_timeout(&ours, Timeout::Recv, Some(PATIENCE)).during(|| "set a timeout".to_owned())?;
        let mut container = Channel::new(ours);
        let null: OwnedFd =
            File::options().read(true).write(true).open("/dev/null").during(|| "open /dev/null".to_owned())?.into();
        let copy = || null.try_clone().during(|| "copy a descriptor".to_owned());
        container.send(&ToContainer::Plan(Box::new(plan)), vec![copy()?, copy()?, copy()?])?;
        self.next += 1;
        self.channel
            .send(&ToSandbox::Launch { id: self.next, bridged: false, grouped: false, alone: None }, vec![theirs])?;
        match expect::<FromSandbox>(&self.channel)? {
            (FromSandbox::Launched { .. }, _) => {}
            (FromSandbox::LaunchFailed { failure, .. }, _) => return Err(Error::Sandbox(describe(&failure))),
            (other, _) => return Err(Error::Sandbox(format!("start a container: unexpected {other:?}"))),
        }
        loop {
            match expect::<FromContainer>(&container)? {
                (FromContainer::Exited { id: MAIN, ended }, _) => return Ok(ended.code()),
                (FromContainer::Failed { failure, .. }, _) => return Err(Error::Sandbox(describe(&failure))),
                _ => {}
            }
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // Closing the channel ends S. Both are our children, and have nothing more to do.
        if let Ok((closed, _)) = shim::seqpacket() {
            self.channel = Channel::new(closed);
        }
        if let Some(init) = &self.init {
            waitid(WaitId::PidFd(init.as_fd()), WaitIdOptions::EXITED).ok();
        }
        self.shim.wait().ok();
    }
}

fn expect<T: Message>(channel: &Channel) -> Result<(T, Vec<OwnedFd>)> {
    match channel.wait::<T>()? {
        Received::Message(message, fds) => Ok((message, fds)),
        Received::Empty => Err(Error::Sandbox(format!("wait for ctst-shim: no answer within {PATIENCE:?}"))),
        Received::End => Err(Error::Sandbox("wait for ctst-shim: it ended without a word".to_owned())),
    }
}

fn map(program: &Path, pid: u32, own: u32, range: Range) -> Result<()> {
    let numbers = [pid, 0, own, 1, 1, range.first, range.count].map(|n| n.to_string());
    let output = Command::new(program)
        .args(numbers)
        .stdin(Stdio::null())
        .output()
        .during(|| format!("start {}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(Error::Sandbox(format!("map user ids: {}: {}", program.display(), told.trim().escape_debug())))
}
