//! When a file of the administrator's is believed: that only root can have written it. Pure: whoever opens the file says what
//! the kernel says of it.

/// `inode(7)`: type and permission bits.
const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// What `fstat(2)` says of a file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `st_mode`.
    pub mode: u32,
    /// `st_uid`.
    pub uid: u32,
    /// `st_size`.
    pub size: u64,
}

/// Why a folder on the way, or a file of at most `max` bytes, is not believed, and the one thing that mends it. `path` is for
/// the text only.
#[must_use]
pub fn problem(path: &str, seen: Seen, folder: bool, max: usize) -> Option<String> {
    let (wanted, name) = if folder { (FOLDER, "folder") } else { (REGULAR, "regular file") };
    if seen.mode & TYPE == LINK {
        return Some(format!("{path} is a symbolic link (put the {name} itself there)"));
    }
    if seen.mode & TYPE != wanted {
        return Some(format!("{path} is no {name} (put one there, or nothing)"));
    }
    if seen.uid != 0 {
        return Some(format!("{path} belongs to user {}, not to root (chown root {path})", seen.uid));
    }
    if seen.mode & WRITABLE_BY_OTHERS != 0 {
        return Some(format!("others than root may write {path} (chmod go-w {path})"));
    }
    if !folder && usize::try_from(seen.size).map_or(true, |size| size > max) {
        return Some(format!("{path} is longer than {max} bytes (make it shorter)"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_root_alone_can_write() {
        let judged = |mode, uid, size, folder| problem("/x", Seen { mode, uid, size }, folder, 10).unwrap_or_default();
        assert_eq!(judged(0o100_644, 0, 10, false), "");
        assert_eq!(judged(0o100_400, 0, 0, false), "");
        assert_eq!(judged(0o040_755, 0, 4096, true), "");
        for (mode, uid, size, word) in [
            (0o100_664, 0, 1, "chmod go-w /x"),
            (0o100_646, 0, 1, "chmod go-w /x"),
            (0o100_644, 1, 1, "chown root /x"),
            (0o100_644, 65534, 1, "chown root /x"),
            (0o120_777, 0, 1, "symbolic link"),
            (0o010_644, 0, 0, "no regular file"),
            (0o020_644, 0, 0, "no regular file"),
            (0o140_644, 0, 0, "no regular file"),
            (0o040_755, 0, 0, "no regular file"),
            (0o100_644, 0, 11, "longer than 10"),
            (0o100_644, 0, u64::MAX, "longer than 10"),
        ] {
            assert!(judged(mode, uid, size, false).contains(word), "{mode:o} {uid} {size}");
        }
        for (mode, uid) in [(0o041_777, 0), (0o040_775, 0), (0o040_755, 1), (0o100_644, 0), (0o120_777, 0)] {
            assert_ne!(judged(mode, uid, 0, true), "", "{mode:o} {uid}");
        }
    }
}
