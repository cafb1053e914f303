//! Whether containers can read their image from its archive: whoever makes them opens `/dev/fuse` (fuse(4)) as the caller.

use std::path::Path;

use rustix::fs::Access;
use rustix::io::Errno;

/// The device.
pub(crate) const DEVICE: &str = "/dev/fuse";

/// Why there can be no FUSE file system here, and what to do, for a sentence that begins with what was tried; none: there can be.
pub(crate) fn problem() -> Option<String> {
    problem_of(Path::new(DEVICE))
}

fn problem_of(device: &Path) -> Option<String> {
    let why = match rustix::fs::access(device, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => return None,
        Err(Errno::NOENT) => "is not there: sudo modprobe fuse",
        Err(Errno::ACCESS | Errno::PERM) => "is not open to this user: sudo chmod 0666 /dev/fuse",
        Err(cause) => return Some(format!("{} cannot be looked at ({cause})", device.display())),
    };
    Some(format!("{} {why}, or remove `lazy = true`", device.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("fuse");
        assert!(problem_of(&device).unwrap().contains("modprobe fuse"));
        std::fs::write(&device, "").unwrap();
        assert_eq!(problem_of(&device), None);
    }
}
