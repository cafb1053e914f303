//! Whether containers can read their image from its archive: whoever makes them opens `/dev/fuse` (fuse(4)) as the caller.

use std::path::Path;

use rustix::fs::Access;
use rustix::io::Errno;

/// The device.
pub(crate) const DEVICE: &str = "/dev/fuse";
const LOAD: &str = "sudo modprobe fuse";
const OPEN: &str = "sudo chmod 0666 /dev/fuse";

/// What keeps containers from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// For a sentence that begins with what was tried.
    pub(crate) why: String,
    /// The one thing that helps.
    pub(crate) fix: &'static str,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}, or remove `lazy = true`", self.why, self.fix)
    }
}

/// Why there can be no FUSE file system here; none: there can be.
pub(crate) fn problem() -> Option<Problem> {
    problem_of(Path::new(DEVICE))
}

fn problem_of(device: &Path) -> Option<Problem> {
    let (why, fix) = match rustix::fs::access(device, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => return None,
        Err(Errno::NOENT) => ("is not there".to_owned(), LOAD),
        Err(Errno::ACCESS | Errno::PERM) => ("is not open to this user".to_owned(), OPEN),
        Err(cause) => (format!("cannot be looked at ({cause})"), OPEN),
    };
    Some(Problem { why: format!("{} {why}", device.display()), fix })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("fuse");
        assert!(problem_of(&device).unwrap().to_string().contains("is not there: sudo modprobe fuse"));
        std::fs::write(&device, "").unwrap();
        assert_eq!(problem_of(&device), None);
    }
}
