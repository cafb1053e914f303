//! Effective and file system user id (`credentials(7)`) of this process, which has one thread. The real id never changes.

use std::io;

use nix::unistd::{Gid, Uid, getresgid, getresuid, setfsgid, setfsuid};

/// No id: leaves one as it is.
const SAME: u32 = u32::MAX;

/// Checks that real, effective and saved ids are the same: this program has no setuid or setgid bit.
///
/// # Errors
/// When they are not, or cannot be read.
pub fn check_plain() -> io::Result<()> {
    let (users, groups) = (getresuid()?, getresgid()?);
    let plain = users.real == users.effective
        && users.real == users.saved
        && groups.real == groups.effective
        && groups.real == groups.saved;
    if plain { Ok(()) } else { Err(io::Error::other("started by a setuid or setgid file: remove those bits from it")) }
}

/// Sets the effective user id, and with it that for files.
///
/// # Errors
/// EPERM for an id that is not one of this process's own without CAP_SETUID.
pub fn set_effective(uid: u32) -> io::Result<()> {
    Ok(rustix::thread::set_thread_res_uid(None, rustix::process::Uid::from_raw(uid), None)?)
}

/// Sets the user id for files alone, and reads it back: setfsuid(2) tells nobody that it failed.
///
/// # Errors
/// When the id is another afterwards.
pub fn set_for_files(uid: u32) -> io::Result<()> {
    setfsuid(Uid::from_raw(uid));
    if setfsuid(Uid::from_raw(SAME)).as_raw() == uid {
        Ok(())
    } else {
        Err(io::Error::other("the user id for files could not be set"))
    }
}

/// The same of the group id.
///
/// # Errors
/// When the id is another afterwards.
pub fn set_group_for_files(gid: u32) -> io::Result<()> {
    setfsgid(Gid::from_raw(gid));
    if setfsgid(Gid::from_raw(SAME)).as_raw() == gid {
        Ok(())
    } else {
        Err(io::Error::other("the group id for files could not be set"))
    }
}

/// Sets the user id for files, and before it the group id if there is one, without reading back: for a step up, of which the
/// next call with a file says whether it was one.
pub fn want_for_files(uid: u32, gid: Option<u32>) {
    if let Some(gid) = gid {
        setfsgid(Gid::from_raw(gid));
    }
    setfsuid(Uid::from_raw(uid));
}

/// Makes the id for files the effective one again, whatever it is: where it has no number in this user namespace it can
/// only be got so, because setresuid(2) sets it whenever it changes an id. The saved id is changed to `other` and then to
/// 0, which both have to be mapped.
///
/// # Errors
/// EINVAL for an id that is not mapped, and when the saved one read back is another.
pub fn follow_effective_for_files(other: u32) -> io::Result<()> {
    for saved in [other, 0] {
        rustix::thread::set_thread_res_uid(None, None, rustix::process::Uid::from_raw(saved))?;
        if getresuid()?.saved.as_raw() != saved {
            return Err(io::Error::other("the saved user id could not be set"));
        }
    }
    Ok(())
}
