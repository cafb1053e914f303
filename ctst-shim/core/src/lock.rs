//! Giving up what a process needs no more: files, sockets and new privileges (`landlock(7)`, `PR_SET_NO_NEW_PRIVS`).

use std::io;

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};

/// The newest version of landlock whose rights are given up; an older kernel gives up those that it knows.
const NEWEST: ABI = ABI::V6;

/// Sets no_new_privs, and takes from this process every right to open, make or change a file, to bind or connect, and to
/// reach other processes. What is open stays open.
///
/// # Errors
/// When the kernel has no landlock or refuses, or no_new_privs is not set afterwards.
pub fn no_files() -> io::Result<()> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.restrict_self())
        .map_err(io::Error::other)?;
    if !rustix::thread::no_new_privs()? {
        return Err(io::Error::other("no_new_privs read back is not set"));
    }
    // An older landlock holds us to less; a filter of system calls holds P to all of it.
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(io::Error::other("this kernel runs without landlock: boot it with landlock in `lsm=`"));
    }
    Ok(())
}
