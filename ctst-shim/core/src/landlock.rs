//! Rulesets of `landlock(7)`, made in one process and put on others later. Nothing is left out that the kernel does not
//! have: it is an error.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use rustix::fs::{FileType, fstat};

/// The version whose rights over files are handled, all of them. Before it the kernel let anybody truncate. Later ones add
/// `ioctl(2)` on devices and sockets by path, which "read, write, execute" say nothing of.
const FILES: ABI = ABI::V3;

/// A file or directory, with all that is below it, that stays accessible. Reading always is allowed.
#[derive(Debug)]
pub struct Beneath<'a> {
    /// Opened with `O_PATH`.
    pub place: BorrowedFd<'a>,
    /// Changing, creating and removing files, too.
    pub write: bool,
    /// Executing files, too.
    pub execute: bool,
}

/// What a process may still do. `None`: not restricted.
#[derive(Debug, Default)]
pub struct Restriction<'a> {
    /// Files.
    pub files: Option<Vec<Beneath<'a>>>,
    /// TCP ports to bind.
    pub bind: Option<&'a [u16]>,
    /// TCP ports to connect to, on whatever host.
    pub connect: Option<&'a [u16]>,
    /// No connection to abstract UNIX sockets of processes that are not as restricted.
    pub abstract_sockets: bool,
    /// No signals to processes that are not as restricted.
    pub signals: bool,
}

/// Why there is no ruleset.
#[derive(Debug)]
pub enum Missing {
    /// This kernel cannot restrict that; from this version of Linux on it could.
    Kernel {
        /// What was to be restricted.
        what: &'static str,
        /// Version of Linux.
        since: &'static str,
    },
    /// It refused.
    Refused(io::Error),
}

/// A ruleset, to be put on processes with [`crate::sys::restrict_by_landlock`].
///
/// # Errors
/// [`Missing`].
pub fn ruleset(wanted: &Restriction<'_>) -> Result<OwnedFd, Missing> {
    let refused = |error: &dyn Display| Missing::Refused(io::Error::other(error.to_string()));
    let kernel = |what, since| Missing::Kernel { what, since };
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if wanted.files.is_some() {
        ruleset = ruleset.handle_access(AccessFs::from_all(FILES)).map_err(|_| kernel("files", "6.2"))?;
    }
    let ports = [(wanted.bind, AccessNet::BindTcp), (wanted.connect, AccessNet::ConnectTcp)];
    for (_, access) in ports.iter().filter(|(ports, _)| ports.is_some()) {
        ruleset = ruleset.handle_access(*access).map_err(|_| kernel("TCP ports", "6.7"))?;
    }
    let scopes = [(wanted.abstract_sockets, Scope::AbstractUnixSocket), (wanted.signals, Scope::Signal)];
    for (_, scope) in scopes.iter().filter(|(wanted, _)| *wanted) {
        ruleset = ruleset.scope(*scope).map_err(|_| kernel("abstract sockets and signals", "6.12"))?;
    }
    let mut ruleset = ruleset.create().map_err(|error| refused(&error))?;
    for beneath in wanted.files.iter().flatten() {
        let rights = rights(beneath).map_err(Missing::Refused)?;
        ruleset = ruleset.add_rule(PathBeneath::new(beneath.place, rights)).map_err(|error| refused(&error))?;
    }
    for (ports, access) in ports {
        for port in ports.into_iter().flatten() {
            ruleset = ruleset.add_rule(NetPort::new(*port, access)).map_err(|error| refused(&error))?;
        }
    }
    Option::<OwnedFd>::from(ruleset).ok_or_else(|| refused(&"no landlock among the kernel's security modules"))
}

/// The rights that a rule gives: of a plain file those that a file has.
fn rights(beneath: &Beneath<'_>) -> io::Result<BitFlags<AccessFs>> {
    let mut rights = AccessFs::ReadFile | AccessFs::ReadDir;
    if beneath.write {
        rights |= AccessFs::from_write(FILES);
    }
    if beneath.execute {
        rights |= AccessFs::Execute;
    }
    let directory = FileType::from_raw_mode(fstat(beneath.place.as_fd())?.st_mode) == FileType::Directory;
    Ok(if directory { rights } else { rights & AccessFs::from_file(FILES) })
}
