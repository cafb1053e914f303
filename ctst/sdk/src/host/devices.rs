//! Devices of the host that components are given: which they are, and whether anything in a container could open them.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use containust_lang::model::{self, Component};
use rustix::fs::{Access, major, minor};
use rustix::process::getuid;

use crate::error::{Error, Result};
use crate::host::ids::{Ids, by_list};
use crate::spec::Device;

/// Looks up the devices of a component.
///
/// # Errors
/// [`Error::Source`] where one cannot be looked at, [`Error::Invalid`] where it is none that a container may have.
pub(crate) fn find(component: &Component) -> Result<Vec<Device>> {
    let find = |model::Device { source: path, target }: &model::Device| {
        let wrong = |source| Error::Source { component: component.name.clone(), path: path.into(), source };
        let source = Path::new(path).canonicalize().map_err(wrong)?;
        let meta = source.metadata().map_err(wrong)?;
        let problem = match source.to_str() {
            None => Some("its name is not UTF-8"),
            Some(_) => unfit(&meta),
        };
        match problem {
            None => Ok(Device { source, target: target.clone() }),
            Some(why) => Err(invalid(&component.name, path, why)),
        }
    };
    component.devices.iter().map(find).collect()
}

fn invalid(component: &str, path: impl AsRef<Path>, why: &str) -> Error {
    let problem = format!("give it the device {}: {why}", path.as_ref().display());
    Error::Invalid { component: component.to_owned(), problem }
}

fn unfit(meta: &Metadata) -> Option<&'static str> {
    let kind = meta.file_type();
    if kind.is_block_device() {
        return Some(
            "it is a block device, whose whole content would be the container's; mount what is on it, and that as a volume",
        );
    }
    if !kind.is_char_device() {
        return Some("it is no device; mount files and folders as volumes");
    }
    // Documentation/admin-guide/devices.txt: virtual consoles; the controlling terminal, the console and ptmx; pseudo-terminals.
    match (major(meta.rdev()), minor(meta.rdev())) {
        (4, ..64) | (5, ..3) | (136..144, _) => Some(
            "it is a terminal of this host, whose user's keystrokes the container would read; a container has terminals of its own",
        ),
        _ => None,
    }
}

/// Refuses a device that no id of a container with these `ids` may open, whichever process it is: what the caller may by a
/// group of his does not hold inside.
///
/// # Errors
/// [`Error::Source`], [`Error::Invalid`].
pub(crate) fn can_be_opened(component: &str, path: &Path, ids: &Ids) -> Result<()> {
    let wrong = |source| Error::Source { component: component.to_owned(), path: path.to_owned(), source };
    let meta = path.metadata().map_err(wrong)?;
    let (user, group) = ids.has(&meta);
    let may = |bits: u32, shift: u32| bits >> shift & 0o6 != 0;
    if may(meta.mode(), 0)
        || user && may(meta.mode(), 6)
        || group && may(meta.mode(), 3)
        || by_list(path, &[Access::READ_OK, Access::WRITE_OK])
    {
        return Ok(());
    }
    let (uid, gid, mode, caller) = (meta.uid(), meta.gid(), meta.mode() & 0o7777, getuid().as_raw());
    let why = format!(
        "no id of the container may open it: it belongs to user {uid} and group {gid} with mode {mode:04o}, and groups of yours stay \
         outside; have the administrator give it to you (setfacl -m u:{caller}:rw {}, or a rule of udev with TAG+=\"uaccess\")",
        path.display()
    );
    Err(invalid(component, path, &why))
}
