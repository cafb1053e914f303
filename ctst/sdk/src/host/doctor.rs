//! What this host has for containers, found by trying it.

use std::fs::{File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use containust_policy::conf::{PATH, Rules};
use containust_shared::protocol::Plan;
use rustix::process::getuid;
use serde::Serialize;

use crate::egress;
use crate::error::{During, Error, Result};
use crate::host::cgroup::{Outlook, Place};
use crate::host::confine;
use crate::host::fuse::{self, Problem};
use crate::host::getsubids;
use crate::host::ids::{self, Ids, Range};
use crate::host::low_port;
use crate::host::policy::Policy;
use crate::shim::{self, describe};
use crate::workers;
use crate::workers::workshop::{End, Workshop};

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
    pub(crate) fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Verdict::Good, found: found.into(), fix: None }
    }

    pub(crate) fn other(name: &'static str, status: Verdict, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Tries what containers need: starts a sandbox and two containers in it, and looks at what else the host has.
#[must_use]
pub fn examine() -> Vec<Check> {
    let mut checks = Vec::new();
    let mut strict = false;
    match shim::locate() {
        Ok(path) => {
            // Whatever is in there gives it a privilege over the host (capabilities(7)).
            strict = rustix::fs::getxattr(&path, c"security.capability", &mut [0_u8; 64]).is_ok();
            checks.push(Check::good("shim", path.display().to_string()));
            checks.push(Check::good("mode", mode(strict)));
        }
        Err(error) => {
            let fix = error.help().unwrap_or_default();
            checks.push(Check::other("shim", Verdict::Bad, error.to_string(), fix));
        }
    }
    let policy = policy(strict);
    let governed = policy.status != Verdict::Bad;
    checks.push(policy);
    checks.push(limits());
    checks.push(low_port::check());
    let closed = File::options().read(true).write(true).open(egress::TUN).err();
    let forbidden = Policy::read().ok().and_then(|policy| policy.egress().err());
    checks.push(way_out(&egress::find(), closed, forbidden));
    checks.push(landlock(
        Landlock {
            works: confine::works(),
            moves: confine::moves(),
            sees: confine::sees(std::os::unix::process::parent_id()),
        },
        strict || getuid().is_root(),
    ));
    if !getuid().is_root() {
        checks.extend(getsubids::check());
    }
    match Ids::detect() {
        Ok(ids) => {
            checks.push(user_ids(&ids));
            checks.push(lazy_images(ids.has_overlay(), fuse::problem()));
            // Else it was said why there is none.
            if governed {
                sandbox(&ids, &mut checks);
            }
        }
        Err(error) => {
            // What is wrong with the policy was said.
            if !matches!(error, Error::Policy { .. }) {
                let fix = match &error {
                    Error::NoSandbox { help, .. } => help.clone(),
                    _ => "unset CTST_IDS".to_owned(),
                };
                checks.push(Check::other("user ids", Verdict::Bad, error.to_string(), fix));
            }
        }
    }
    checks
}

/// What the kernel's landlock can do here.
#[derive(Debug, Clone, Copy)]
struct Landlock {
    /// It holds who asks for it.
    works: bool,
    /// [`confine::moves`].
    moves: bool,
    /// [`confine::sees`].
    sees: bool,
}

/// Whether the kernel holds ctst's processes to their own files. `needed`: nothing starts without.
fn landlock(found: Landlock, needed: bool) -> Check {
    const NAME: &str = "landlock";
    let fix = "boot a kernel with landlock: Linux 5.13 or newer, lsm=landlock,... on its command line";
    match found {
        Landlock { works: false, .. } if needed => {
            let found = "this kernel runs without it, and ctst-shim starts nothing that it could not give up files for";
            Check::other(NAME, Verdict::Bad, found, fix)
        }
        Landlock { works: false, .. } => {
            let found = "the kernel does not hold plan, check, supervisors and workers to their own files; they keep to them by themselves";
            Check::other(NAME, Verdict::Limited, found, fix)
        }
        Landlock { moves: false, .. } => {
            let found = "before Linux 5.19 it lets nobody move a file to another folder: supervisors and workers keep their user's files, plan and check do not";
            Check::other(NAME, Verdict::Limited, found, "boot Linux 5.19 or newer")
        }
        Landlock { sees: false, .. } => {
            let found = "/proc hides processes from whom landlock holds (hidepid): supervisors keep their user's files";
            let fix = "mount /proc with hidepid=0: sudo mount -o remount,hidepid=0 /proc";
            Check::other(NAME, Verdict::Limited, found, fix)
        }
        Landlock { .. } => Check::good(
            NAME,
            "plan and check run without the right to write files, supervisors and workers with their own",
        ),
    }
}

/// What the shim is between a caller and the host.
fn mode(strict: bool) -> &'static str {
    match strict {
        _ if getuid().is_root() => "called by root, whose containers have ids of their own",
        true => "strict: ctst-shim has file capabilities, and gives its callers nothing that the host took away",
        false => "rootless: ctst-shim has no privilege, and does what every user may do",
    }
}

/// What the administrator of this host says, and whether it is for this caller.
fn policy(strict: bool) -> Check {
    const NAME: &str = "policy";
    let policy = match Policy::read() {
        Ok(policy) => policy,
        Err(error) => {
            let fix = format!("as root, mend {PATH} as it says; until then no container starts");
            return Check::other(NAME, Verdict::Bad, error.to_string(), fix);
        }
    };
    let holds = match strict {
        true => "ctst-shim holds every caller to it",
        // A caller could use another shim.
        false => "ctst keeps to it; without file capabilities of ctst-shim nothing makes others do so",
    };
    match (policy.admit(), policy.file().map(Rules::summary)) {
        (Err(error), _) => {
            let fix = format!("have the administrator add the line to {PATH}");
            Check::other(NAME, Verdict::Bad, error.to_string(), fix)
        }
        (Ok(()), None) => Check::good(NAME, format!("there is no {PATH}: the defaults hold")),
        (Ok(()), Some(rules)) if rules.is_empty() => Check::good(NAME, format!("{PATH} changes nothing ({holds})")),
        (Ok(()), Some(rules)) => Check::good(NAME, format!("{PATH}: {rules} ({holds})")),
    }
}

/// Whether networks can have a way out of their project. `closed`: why the kernel's device for it cannot be opened; `forbidden`: what the
/// policy says against it.
fn way_out(passt: &Result<PathBuf>, closed: Option<std::io::Error>, forbidden: Option<String>) -> Check {
    const NAME: &str = "way out";
    if let Some(why) = forbidden {
        return Check::good(NAME, format!("no project of yours may {why}"));
    }
    let without = "NETWORK with internal = false is refused";
    match (passt, closed) {
        (Err(error), _) => Check::other(NAME, Verdict::Limited, error.to_string(), "install it: apt install passt"),
        (Ok(_), Some(error)) => Check::other(
            NAME,
            Verdict::Limited,
            format!("{} cannot be opened ({error}): {without}", egress::TUN),
            egress::OPEN_TUN,
        ),
        (Ok(passt), None) => Check::good(NAME, format!("{}, for networks that have one", passt.display())),
    }
}

/// Whether components can start before their archives are unpacked. `problem`: what [`fuse::problem`] says.
fn lazy_images(has_overlay: bool, problem: Option<Problem>) -> Check {
    const NAME: &str = "lazy images";
    let forbidden = Policy::read().ok().and_then(|policy| policy.fuse().err());
    match (forbidden, problem) {
        (Some(why), _) => Check::good(NAME, format!("no container of yours may {why}")),
        (None, _) if !has_overlay => {
            Check::good(NAME, "no container of yours may have an overlay, which they take: `lazy = true` is refused")
        }
        (None, Some(Problem { why, fix })) => {
            Check::other(NAME, Verdict::Limited, format!("{why}: `lazy = true` is refused"), fix)
        }
        (None, None) => Check::good(NAME, format!("{} is open, for `lazy = true`", fuse::DEVICE)),
    }
}

/// Where limits can hold, and which.
fn limits() -> Check {
    const NAME: &str = "limits";
    let outlook = Outlook::new(None);
    let place = match (&outlook.mount, &outlook.place) {
        (Some(_), Ok(Place::Below(group))) => format!("below {}", group.display()),
        (Some(_), Ok(Place::Shim(group))) => format!("below {}, by ctst-shim", group.display()),
        (Some(_), Ok(Place::Scope)) => "in a scope that systemd makes".to_owned(),
        (Some(mount), Err(_)) => format!("cgroup v2 is at {}", mount.display()),
        (None, _) => "no cgroup v2".to_owned(),
    };
    let missing = outlook.missing();
    let Some((_, first)) = missing.first() else {
        let given: Vec<&str> = outlook.given.iter().map(String::as_str).collect();
        return Check::good(NAME, format!("{place}: {}", given.join(" ")));
    };
    let names: Vec<&str> = missing.iter().map(|(controller, _)| *controller).collect();
    let found = format!("{place}: no {} for containers: {}", names.join(", "), first.problem);
    Check::other(NAME, Verdict::Limited, found, first.fix.clone())
}

fn user_ids(ids: &Ids) -> Check {
    let Ids::Single(why) = ids else { return Check::good("user ids", ids.to_string()) };
    let fix = if why.contains("newuidmap") {
        "install newuidmap: apt install uidmap".to_owned()
    } else if why.contains("CTST_IDS") {
        "unset CTST_IDS".to_owned()
    } else {
        give_ids()
    };
    Check::other(
        "user ids",
        Verdict::Limited,
        format!("{ids}: a container has one user, and its image cannot switch to another"),
        fix,
    )
}

/// How the caller gets subordinate ids.
pub(crate) fn give_ids() -> String {
    let first = [Path::new("/etc/subuid"), Path::new("/etc/subgid")].map(ids::end_of_grants);
    let first = first.into_iter().max().unwrap_or_default().max(100_000);
    let (range, uid) = (format!("{first}-{}", first + 65_535), getuid().as_raw());
    format!("give yourself ids: sudo usermod --add-subuids {range} --add-subgids {range} $(id -un {uid})")
}

fn sandbox(ids: &Ids, checks: &mut Vec<Check>) {
    let mut workshop = match Workshop::start(ids) {
        Ok(workshop) => workshop,
        Err(error) => {
            let fix = error.help().unwrap_or_default();
            return checks.push(Check::other("user namespaces", Verdict::Bad, error.to_string(), fix));
        }
    };
    checks.push(Check::good("user namespaces", "a sandbox was made"));
    match run_worker(&mut workshop) {
        Ok(0) => checks.push(Check::good("container", "a program ran in one")),
        Ok(code) => {
            let fix = "see the kernel's log: dmesg | tail";
            checks.push(Check::other("container", Verdict::Bad, format!("a program in one exited with {code}"), fix));
        }
        Err(Error::Denied { reasons, .. }) => {
            let found = format!("not tried in {}: {reasons}", std::env::temp_dir().display());
            let fix = "to have it tried, set TMPDIR to a folder that the policy lets containers see";
            return checks.push(Check::other("container", Verdict::Limited, found, fix));
        }
        Err(error) => {
            let fix = "see the kernel's log: dmesg | tail";
            return checks.push(Check::other("container", Verdict::Bad, error.to_string(), fix));
        }
    }
    let folder = std::env::temp_dir();
    let name = "overlayfs";
    if !ids.has_overlay() {
        let found = "policy.conf allows none in strict mode: each container gets a copy of its image";
        let fix = "to share images, have the administrator write overlay = yes into /etc/containust/policy.conf";
        return checks.push(Check::other(name, Verdict::Limited, found, fix));
    }
    match run_overlay(&mut workshop, ids, &folder) {
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

fn run_worker(workshop: &mut Workshop) -> Result<i32> {
    let folder = tempfile::tempdir().during(|| "make a folder".to_owned())?;
    let path = folder.path().canonicalize().during(|| "find a folder".to_owned())?;
    let (plan, held) = workers::plan(&path, &["probe"])?;
    let code = run(workshop, plan);
    drop(held);
    code
}

fn run_overlay(workshop: &mut Workshop, ids: &Ids, place: &Path) -> Result<i32> {
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
    let (mut plan, mut held) = workers::plan(&dirs[0], &["probe"])?;
    let mut take = |path: &Path| workers::source(path).map(|(source, fd)| (source, held.push(fd)).0);
    plan.layers = vec![take(&dirs[1])?];
    plan.upper = Some(take(&dirs[2])?);
    plan.work = Some(take(&dirs[3])?);
    let code = run(workshop, plan);
    // The overlay leaves a closed folder in `work`, which the temporary folder could not remove.
    if containust_image::remove_tree(&path).is_ok() {
        // Nothing is left for it to remove.
        folder.close().ok();
    }
    code
}

/// Runs a container to its end.
fn run(workshop: &mut Workshop, plan: Plan) -> Result<i32> {
    let null = || -> Result<OwnedFd> {
        let null = File::options().read(true).write(true).open("/dev/null");
        null.map(OwnedFd::from).during(|| "open /dev/null".to_owned())
    };
    match workshop.launch(plan, [null()?, null()?, null()?])?.wait_briefly()? {
        End::Ended(ended) => Ok(ended.code()),
        End::Failed(failure) => Err(Error::Sandbox(describe(&failure))),
        End::Killed => Err(Error::Sandbox("run a container: it was killed".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whichever kernel this runs on: those of 5.13 to 5.18 have landlock, and yet leave a supervisor its user's files.
    #[test]
    fn what_landlock_cannot_do_is_named() {
        let told = |works, moves, sees, needed| {
            let check = landlock(Landlock { works, moves, sees }, needed);
            (check.status, check.found, check.fix.unwrap_or_default())
        };
        assert_eq!(told(true, true, true, true).0, Verdict::Good);
        for (found, verdict, words, fix) in [
            (told(true, false, true, true), Verdict::Limited, "before Linux 5.19", "5.19"),
            (told(true, false, false, false), Verdict::Limited, "before Linux 5.19", "5.19"),
            (told(true, true, false, false), Verdict::Limited, "hidepid", "hidepid=0"),
            (told(false, false, false, false), Verdict::Limited, "by themselves", "5.13"),
            (told(false, false, false, true), Verdict::Bad, "without it", "5.13"),
        ] {
            assert_eq!(found.0, verdict, "{found:?}");
            assert!(found.1.contains(words) && found.2.contains(fix), "{found:?}");
        }
    }
}
