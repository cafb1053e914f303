//! Users of an image, for a caller whose one id has to stand for one of them.

use std::io::Read;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

/// More of `passwd(5)` or `group(5)` than any image has.
const MAX_FILE: u64 = 1 << 20;

/// User and group id that `user` (`name`, `uid`, `name:group` or `uid:gid`) has in an image; the error says what is
/// wrong with it. The image may be hostile: its files are found within it and read to a limit.
pub(crate) fn lookup(layers: &[PathBuf], user: &str) -> Result<(u32, u32), String> {
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let passwd = read(layers, "etc/passwd");
    let line = entry(&passwd, if name.parse::<u32>().is_ok() { 2 } else { 0 }, name);
    let uid = match (name.parse(), &line) {
        (Ok(uid), _) => uid,
        (Err(_), Some(fields)) => number(fields, 2)?,
        (Err(_), None) => return Err(format!("user `{name}` is not in the image's /etc/passwd")),
    };
    let gid = match group {
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => match entry(&read(layers, "etc/group"), 0, group) {
                Some(fields) => number(&fields, 2)?,
                None => return Err(format!("group `{group}` is not in the image's /etc/group")),
            },
        },
        None => line.map_or(Ok(0), |fields| number(&fields, 3))?,
    };
    Ok((uid, gid))
}

fn entry(file: &str, field: usize, value: &str) -> Option<Vec<String>> {
    let lines = file.lines().map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
    lines.into_iter().find(|fields| fields.get(field).is_some_and(|f| f == value))
}

fn number(fields: &[String], at: usize) -> Result<u32, String> {
    let text = fields.get(at).map(String::as_str).unwrap_or_default();
    text.parse().map_err(|_| format!("`{}` in the image's /etc/passwd or /etc/group is no id", text.escape_debug()))
}

/// A file of the topmost layer that has it; empty where none does.
fn read(layers: &[PathBuf], path: &str) -> String {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for layer in layers {
        let Ok(root) = openat2(CWD, layer, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty()) else {
            continue;
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        if let Ok(file) = openat2(&root, path, flags, Mode::empty(), how) {
            let file = std::fs::File::from(file);
            let mut bytes = Vec::new();
            // What cannot be read names nobody.
            if file.metadata().is_ok_and(|meta| meta.is_file()) && file.take(MAX_FILE).read_to_end(&mut bytes).is_ok() {
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            return String::new();
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_up_users_of_an_image() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/:\nredis:x:101:102::/:\nbad:x:y:z::/:\n").unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\ndata:x:7:redis\n").unwrap();
        let layers = [dir.path().to_owned()];
        let get = |user: &str| lookup(&layers, user);
        assert_eq!(get("redis"), Ok((101, 102)));
        assert_eq!(get("101"), Ok((101, 102)));
        assert_eq!(get("redis:data"), Ok((101, 7)));
        assert_eq!(get("1000"), Ok((1000, 0)));
        assert_eq!(get("1000:1001"), Ok((1000, 1001)));
        for bad in ["nobody", "redis:none", "bad", ":", "-1", "4294967296"] {
            assert!(get(bad).is_err(), "{bad}");
        }
        assert_eq!(lookup(&[], "5:6"), Ok((5, 6)));
    }

    #[test]
    fn does_not_leave_the_image() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../../../etc/group", dir.path().join("etc/group")).unwrap();
        assert!(lookup(&[dir.path().to_owned()], "root").is_err());
    }
}
