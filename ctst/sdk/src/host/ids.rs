//! How the user ids of a project's containers map to the host's, and by whose leave.

use std::fmt;
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use containust_image::model::Ownership;
use containust_policy::conf;
use containust_shared::protocol::IdMap;
use rustix::fs::{Access, FileType, Gid, Uid};
use rustix::process::{getgid, getuid};

use crate::error::{Error, Result};
use crate::host::policy::Policy;
use crate::host::strict;
use crate::images::users;

/// Ids of an image beyond this are rare, and a host may grant more than anything needs.
const MAX_COUNT: u32 = 65_536;

/// `statfs(2)`'s `f_type` of anonymous pipes.
const PIPEFS_MAGIC: i64 = 0x5049_5045;

/// A part of the host's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

/// How ids are mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ids {
    /// Only root inside, who is the caller outside. The text says why not more.
    Single(String),
    /// The caller's subordinate ids, by the helpers at these paths.
    Helper { uids: Range, gids: Range, newuidmap: PathBuf, newgidmap: PathBuf },
    /// What the administrator's files grant, as the shim maps it in strict mode: 0 is the caller, then come these.
    /// `overlay`: a container's root may be one.
    Strict { uids: Range, gids: Range, overlay: bool },
    /// For root.
    Root(Range),
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(why) => write!(f, "single ({why})"),
            Self::Strict { uids: Range { first, count }, .. } => write!(f, "strict ({count} ids from {first})"),
            Self::Helper { uids: Range { first, count }, .. } | Self::Root(Range { first, count }) => {
                write!(f, "range ({count} ids from {first})")
            }
        }
    }
}

impl Ids {
    /// What this caller on this host gets. `CTST_IDS=single` in the environment asks for the least.
    pub(crate) fn detect() -> Result<Self> {
        let single = match std::env::var_os("CTST_IDS") {
            None => false,
            Some(value) if value.is_empty() => false,
            Some(value) if value == "single" => true,
            Some(value) => {
                return Err(Error::Sandbox(format!("map user ids: CTST_IDS is `{}`, not `single`", value.display())));
            }
        };
        let uid = getuid().as_raw();
        if uid == 0 {
            if single {
                return Err(Error::Sandbox(
                    "map user ids: CTST_IDS=single would make root inside root outside".to_owned(),
                ));
            }
            let conf::Range { first, count } = Policy::read()?.rules().root_range();
            return Ok(Self::Root(Range { first, count }));
        }
        if strict::is_installed() {
            if single {
                let text =
                    "map user ids: CTST_IDS is `single`, but the shim is in strict mode and maps what is granted";
                return Err(Error::Sandbox(text.to_owned()));
            }
            return strict::ids();
        }
        if single {
            return Ok(Self::Single("CTST_IDS".to_owned()));
        }
        Ok(subordinate(uid, Path::new("/etc")))
    }

    pub(crate) fn map(&self) -> IdMap {
        match self {
            Self::Single(_) => IdMap::Single,
            Self::Helper { .. } => IdMap::Helper,
            Self::Strict { .. } => IdMap::Granted,
            Self::Root(Range { first, count }) => IdMap::Range { first: *first, count: *count },
        }
    }

    /// Makes an anonymous pipe belong to root inside, who passes it on to the process's user. Only root's own pipes have
    /// an owner that does not exist inside. What has a name on the host is left as it is.
    pub(crate) fn give_pipe(&self, fd: &OwnedFd) -> rustix::io::Result<()> {
        let Self::Root(Range { first, .. }) = self else { return Ok(()) };
        if FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Fifo
            && rustix::fs::fstatfs(fd)?.f_type == PIPEFS_MAGIC
        {
            rustix::fs::fchown(fd, Some(Uid::from_raw(*first)), Some(Gid::from_raw(*first)))?;
        }
        Ok(())
    }

    /// Whether files of containers may belong to ids that only the project's user namespace has power over.
    pub(crate) fn has_others(&self) -> bool {
        matches!(self, Self::Helper { .. } | Self::Strict { .. })
    }

    /// Whether a container's root is an overlay of its image, and not a copy.
    pub(crate) fn has_overlay(&self) -> bool {
        !matches!(self, Self::Strict { overlay: false, .. })
    }

    pub(crate) fn ownership(&self) -> Ownership {
        match self {
            Self::Single(_) | Self::Helper { .. } | Self::Strict { .. } => Ownership::Caller,
            Self::Root(Range { first, count }) => Ownership::Shifted { base: *first, count: *count },
        }
    }

    /// The same of archives, which a worker with the project's map unpacks.
    pub(crate) fn archive_ownership(&self) -> Ownership {
        match self {
            Self::Helper { uids, gids, .. } | Self::Strict { uids, gids, .. } => {
                Ownership::Subordinate { uid: uids.first, gid: gids.first, count: self.count() }
            }
            Self::Single(_) | Self::Root(_) => self.ownership(),
        }
    }

    /// How many ids there are inside.
    pub(crate) fn count(&self) -> u32 {
        match self {
            Self::Single(_) => 1,
            Self::Helper { uids, gids, .. } | Self::Strict { uids, gids, .. } => uids.count.min(gids.count) + 1,
            Self::Root(Range { count, .. }) => *count,
        }
    }

    /// The ids that the caller's only one stands for in a container of these layers that runs as `user`; `None`: the
    /// project's map, in which there is root.
    pub(crate) fn alone(&self, layers: &[PathBuf], user: &str) -> Result<Option<(u32, u32)>, String> {
        match self {
            Self::Single(_) => other_than_root(layers, user).map_err(|why| format!("run as user `{user}`: {why}")),
            Self::Helper { .. } | Self::Strict { .. } | Self::Root(_) => Ok(None),
        }
    }

    /// Whether the owner and the group of a file of the host exist inside.
    pub(crate) fn has(&self, meta: &Metadata) -> (bool, bool) {
        let within = |Range { first, count }: &Range, id: u32| (*first..first.saturating_add(*count)).contains(&id);
        let (own_uid, own_gid) = (getuid().as_raw() == meta.uid(), getgid().as_raw() == meta.gid());
        match self {
            Self::Single(_) => (own_uid, own_gid),
            Self::Helper { uids, gids, .. } | Self::Strict { uids, gids, .. } => {
                (own_uid || within(uids, meta.uid()), own_gid || within(gids, meta.gid()))
            }
            Self::Root(range) => (within(range, meta.uid()), within(range, meta.gid())),
        }
    }

    /// Why no process inside can write to a file or folder of the host, and what would let it; none: some can, by what its
    /// mode says. An access control list may say otherwise, so that this is no reason to refuse.
    pub(crate) fn cannot_write(&self, path: &Path) -> Option<String> {
        let meta = path.metadata().ok()?;
        let (user, group) = self.has(&meta);
        // Root inside has CAP_DAC_OVERRIDE over what belongs to ids that are both its namespace's (capabilities(7)).
        let may = |bits: u32| meta.mode() & bits != 0;
        if user && (group || may(0o200)) || group && may(0o020) || may(0o002) || by_list(path, &[Access::WRITE_OK]) {
            return None;
        }
        let (root, by) = match self {
            Self::Root(Range { first, .. }) => (*first, ""),
            Self::Single(_) | Self::Helper { .. } | Self::Strict { .. } => (getuid().as_raw(), "sudo "),
        };
        let (path, uid, gid, mode) = (path.display(), meta.uid(), meta.gid(), meta.mode() & 0o7777);
        Some(format!(
            "no process of it can write to {path}, which belongs to user {uid} and group {gid} of this host with mode {mode:04o}; \
             make root inside its owner: {by}chown {root} {path}"
        ))
    }

    /// The first and the last group of a container with these ids of [`Ids::alone`].
    pub(crate) fn gids(&self, alone: Option<(u32, u32)>) -> (u32, u32) {
        alone.map_or((0, self.count() - 1), |(_, gid)| (gid, gid))
    }

    /// Why no process can be `user`, as far as it is given by numbers.
    pub(crate) fn lacks(&self, user: &str) -> Option<String> {
        let (uid, gid) = match self {
            Self::Single(_) => return None,
            // 0 is the caller.
            Self::Helper { uids, gids, .. } | Self::Strict { uids, gids, .. } => (uids.count, gids.count),
            Self::Root(Range { count, .. }) => (count.saturating_sub(1), count.saturating_sub(1)),
        };
        let (part, most) =
            user.split(':').zip([uid, gid]).find(|(part, most)| part.parse().is_ok_and(|id: u32| id > *most))?;
        Some(format!("run as user `{user}`: no id of this host is given for {part}, only for 0 to {most}"))
    }

    /// Why there is no `user` in a container that was started with these ids of [`Ids::alone`].
    pub(crate) fn refuses(&self, layers: &[PathBuf], user: &str, alone: Option<(u32, u32)>) -> Option<String> {
        let Self::Single(why) = self else { return None };
        match other_than_root(layers, user) {
            Ok(ids) if ids == alone => None,
            Ok(_) => Some(format!("only one id is mapped, {why}")),
            Err(why) => Some(why),
        }
    }
}

/// Whether an access control list (acl(5)) may be what gives the caller, who is root inside, one of these. Root outside is
/// nobody there.
pub(crate) fn by_list(path: &Path, wanted: &[Access]) -> bool {
    let has = rustix::fs::getxattr(path, "system.posix_acl_access", &mut [0u8; 0]).is_ok();
    let may = |access: &Access| rustix::fs::access(path, *access).is_ok();
    has && !getuid().is_root() && wanted.iter().any(may)
}

/// The ids of `user` in a container of these layers; none: those of root.
fn other_than_root(layers: &[PathBuf], user: &str) -> Result<Option<(u32, u32)>, String> {
    if user.is_empty() || user.split(':').all(|part| matches!(part, "root" | "0")) {
        return Ok(None);
    }
    let ids = users::lookup(layers, user)?;
    Ok((ids != (0, 0)).then_some(ids))
}

fn subordinate(uid: u32, etc: &Path) -> Ids {
    let name = user_name(uid, &etc.join("passwd"));
    let uids = granted(&etc.join("subuid"), uid, name.as_deref());
    let gids = granted(&etc.join("subgid"), uid, name.as_deref());
    let (Some(uids), Some(gids)) = (uids, gids) else {
        return Ids::Single("no ids in /etc/subuid and /etc/subgid".to_owned());
    };
    match (which::which("newuidmap"), which::which("newgidmap")) {
        (Ok(newuidmap), Ok(newgidmap)) => Ids::Helper { uids, gids, newuidmap, newgidmap },
        _ => Ids::Single("newuidmap not found; install uidmap".to_owned()),
    }
}

/// The name of `uid` in `passwd(5)`. Not by NSS, which a static program cannot use.
fn user_name(uid: u32, passwd: &Path) -> Option<String> {
    let content = std::fs::read(passwd).ok()?;
    content.split(|b| *b == b'\n').find_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next()?;
        let id = std::str::from_utf8(fields.nth(1)?).ok()?;
        (id.parse() == Ok(uid)).then(|| String::from_utf8_lossy(name).into_owned())
    })
}

/// The first usable range of `subuid(5)` for this user; root's own id is never one.
fn granted(file: &Path, uid: u32, name: Option<&str>) -> Option<Range> {
    let content = std::fs::read_to_string(file).ok()?;
    let number = uid.to_string();
    let ours = |owner: &str| owner == number || Some(owner) == name;
    grants(&content)
        .find(|(owner, range)| ours(owner) && range.first != 0)
        .map(|(_, range)| Range { count: range.count.min(MAX_COUNT - 1), ..range })
}

/// All that the file grants to this user, as newuidmap counts it.
pub(crate) fn all_granted(file: &Path, uid: u32) -> Vec<Range> {
    let (content, number) = (std::fs::read_to_string(file).unwrap_or_default(), uid.to_string());
    let name = user_name(uid, Path::new("/etc/passwd"));
    let ours = |owner: &str| owner == number || Some(owner) == name.as_deref();
    grants(&content).filter(|(owner, _)| ours(owner)).map(|(_, range)| range).collect()
}

/// The first id after all that `file` grants to anybody.
pub(crate) fn end_of_grants(file: &Path) -> u32 {
    let content = std::fs::read_to_string(file).unwrap_or_default();
    grants(&content).map(|(_, range)| range.first + range.count).max().unwrap_or(0)
}

fn grants(content: &str) -> impl Iterator<Item = (&str, Range)> {
    content.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        let usable = count != 0 && first.checked_add(count).is_some();
        (usable && fields.next().is_none()).then_some((owner, Range { first, count }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_subordinate_ids() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("subuid");
        let get = |content: &str, name: Option<&str>| {
            std::fs::write(&file, content).unwrap();
            granted(&file, 1000, name).map(|r| (r.first, r.count))
        };
        assert_eq!(get("other:1:2\nann:100000:65536\n", Some("ann")), Some((100_000, 65_535)));
        assert_eq!(get("1000:200000:1000", None), Some((200_000, 1000)));
        for bad in
            ["", "ann", "ann:", "ann:x:1", "ann:1:", "ann:0:5", "ann:5:0", "ann:4294967295:2", "ann:1:2:3", "bob:1:2"]
        {
            assert_eq!(get(bad, Some("ann")), None, "{bad}");
        }
        assert_eq!(get("ann:1:2:3\nann:7:9", Some("ann")), Some((7, 9)));
        assert_eq!(granted(&dir.path().join("none"), 1000, None), None);
    }

    #[test]
    fn names_come_from_passwd() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("passwd");
        std::fs::write(&file, b"root:x:0:0::/:/bin/sh\n\xff:y\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n").unwrap();
        assert_eq!(user_name(1000, &file).as_deref(), Some("ann"));
        assert_eq!(user_name(1001, &file), None);
    }

    #[test]
    fn one_id_stands_for_one_user() {
        let single = Ids::Single("why".into());
        for root in ["", "0", "root", "0:0", "root:root"] {
            assert_eq!(single.alone(&[], root), Ok(None), "{root}");
            assert_eq!(single.refuses(&[], root, None), None, "{root}");
            assert!(single.refuses(&[], root, Some((5, 6))).is_some(), "{root}");
        }
        assert_eq!(single.alone(&[], "5:6"), Ok(Some((5, 6))));
        assert_eq!(single.refuses(&[], "5:6", Some((5, 6))), None);
        assert!(single.refuses(&[], "5:7", Some((5, 6))).is_some());
        assert!(single.alone(&[], "redis").is_err());
        let root = Ids::Root(Range { first: 1, count: 1 });
        assert_eq!((root.alone(&[], "redis"), root.refuses(&[], "redis", None)), (Ok(None), None));
    }
}
