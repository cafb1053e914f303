//! Strict mode as its caller sees it: the shim that was found has file capabilities, maps the ids that the administrator's
//! files grant, and lets nobody of the caller's into the project.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use containust_policy::subid::{self, Maps};
use rustix::io::Errno;
use rustix::process::{getgid, getuid};

use crate::error::{Error, Result};
use crate::host::ids::{Ids, Range};
use crate::host::policy::Policy;
use crate::shim;

/// Whether the shim that would be started has capabilities in its file (`xattr(7)`). Everybody may see that.
pub(crate) fn is_installed() -> bool {
    !getuid().is_root() && shim::locate().is_ok_and(|path| has_capabilities(&path))
}

/// Whether a program gives capabilities to who starts it.
pub(crate) fn has_capabilities(path: &Path) -> bool {
    let mut value = [0u8; 64];
    matches!(rustix::fs::getxattr(path, "security.capability", &mut value[..]), Ok(_) | Err(Errno::RANGE))
}

/// The ids that the shim will map, by the same rules as it has.
pub(crate) fn ids() -> Result<Ids> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let read = |name: &str| {
        let path = format!("/etc/{name}");
        std::fs::read(&path).map_err(|error| Error::Sandbox(format!("map user ids: read {path}: {error}")))
    };
    let passwd = read("passwd")?;
    let name = subid::user_name(&passwd, uid);
    let granted = |file: &str| {
        subid::granted(&read(file)?, uid, name).map_err(|problem| {
            let help = match problem {
                subid::Problem::None | subid::Problem::TooFew(_) => give(),
                _ => format!("have the administrator correct /etc/{file}"),
            };
            refused(&format!("/etc/{file}: {problem}"), help)
        })
    };
    let (uids, gids) = (granted("subuid")?, granted("subgid")?);
    let maps = Maps::new((uid, gid), uids, gids).map_err(|problem| refused(&problem.to_string(), give()))?;
    let range = |map: &subid::Map| {
        let rest = map.extents().iter().find(|extent| extent.inside == 1);
        rest.map_or(Range { first: 0, count: 0 }, |rest| Range { first: rest.outside, count: rest.count })
    };
    Ok(Ids::Strict { uids: range(&maps.uids), gids: range(&maps.gids), overlay: Policy::read()?.has_overlay() })
}

/// Why the shim at `path` could not be started: where a group may, who is in it decides.
pub(crate) fn closed(path: &Path, error: std::io::Error) -> Error {
    let shown = path.display();
    if !has_capabilities(path) {
        return Error::io(format!("start {shown}"), error);
    }
    let (problem, help) = members_only(path);
    Error::NoSandbox { problem: format!("start {shown}: {problem}"), help }
}

/// Why somebody may not start a program that only a group may, and what changes it.
pub(crate) fn members_only(path: &Path) -> (String, String) {
    let gid = path.metadata().map_or(0, |meta| meta.gid());
    let name = |file: &str, id: u32| {
        let text = std::fs::read(file).unwrap_or_default();
        // group(5) begins as passwd(5) does: name, password, number.
        let name = subid::user_name(&text, id).map(|name| String::from_utf8_lossy(name).into_owned());
        name.unwrap_or_else(|| id.to_string()).escape_debug().to_string()
    };
    let (group, user) = (name("/etc/group", gid), name("/etc/passwd", getuid().as_raw()));
    let help = format!("have the administrator let you in: sudo usermod -aG {group} {user}; then log in again");
    (format!("only members of group {group} may"), help)
}

fn refused(problem: &str, help: String) -> Error {
    Error::NoSandbox { problem: format!("map the ids that the administrator grants: {problem}"), help }
}

/// How a user gets subordinate ids.
fn give() -> String {
    super::doctor::give_ids()
}
