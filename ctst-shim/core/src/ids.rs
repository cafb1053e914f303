//! Effective and file system user id (`credentials(7)`) of this process, which has one thread. The real id never changes.

use std::io;

use nix::unistd::{Uid, getresgid, getresuid, setfsuid};

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
