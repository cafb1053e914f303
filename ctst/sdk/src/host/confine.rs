//! Giving up rights that a command has no use for, before it looks at anything.

use landlock::{ABI, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus};

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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{ErrorKind, Write};

    use super::*;

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
