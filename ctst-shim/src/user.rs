//! Users and groups as the container's own files name them (`passwd(5)`, `group(5)`), read as hostile input.

use containust_helper::failure::{Step, refusal};
use containust_shared::protocol::Failure;
use rustix::fs::{FileType, Mode, OFlags};

const MAX_FILE: usize = 1 << 20;
const MAX_GROUPS: usize = 64;

/// Who a process runs as.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Vec<u8>,
}

/// Resolves `name`, `uid`, `name:group` or `uid:gid`; empty means root. `more` are further groups.
pub(crate) fn look_up(spec: &[u8], more: &[Vec<u8>]) -> Result<User, Failure> {
    let (name, group) = match spec.iter().position(|b| *b == b':') {
        Some(at) => (spec.get(..at).unwrap_or_default(), spec.get(at.saturating_add(1)..)),
        None => (spec, None),
    };
    let name = if name.is_empty() { b"0".as_slice() } else { name };
    let passwd = read("/etc/passwd")?;
    let wanted = number(name);
    let entry = fields(&passwd).find(|f| match wanted {
        Some(uid) => f.get(2).copied().and_then(number) == Some(uid),
        None => f.first() == Some(&name),
    });
    let field = |at: usize| entry.as_ref().and_then(|f| f.get(at)).copied();
    let uid = wanted
        .or_else(|| field(2).and_then(number))
        .ok_or_else(|| refusal("find in the container's /etc/passwd the user", name))?;
    let home = field(5).filter(|home| home.first() == Some(&b'/'));
    let home = home.unwrap_or(if uid == 0 { b"/root" } else { b"/" }).to_vec();

    let group_file = read("/etc/group")?;
    let group_id = |group: &[u8]| {
        number(group)
            .or_else(|| fields(&group_file).find(|f| f.first() == Some(&group)).and_then(|f| number(f.get(2)?)))
            .ok_or_else(|| refusal("find in the container's /etc/group the group", group))
    };
    let gid = match group {
        Some(group) => group_id(group)?,
        None => field(3).and_then(number).unwrap_or(0),
    };
    // As with docker: a group that is named alone stands alone, otherwise the user's memberships come along.
    let mut groups = vec![gid];
    if group.is_none()
        && let Some(login) = field(0)
    {
        let memberships = fields(&group_file)
            .filter(|f| f.get(3).is_some_and(|members| members.split(|b| *b == b',').any(|member| member == login)))
            .filter_map(|f| number(f.get(2)?));
        for membership in memberships.take(MAX_GROUPS) {
            if !groups.contains(&membership) {
                groups.push(membership);
            }
        }
    }
    if more.len() > MAX_GROUPS {
        return Err(refusal("give so many groups:", more.len().to_string()));
    }
    for group in more {
        let id = group_id(group)?;
        if !groups.contains(&id) {
            groups.push(id);
        }
    }
    Ok(User { uid, gid, groups, home })
}

/// `(uid_t)-1` means "unchanged" to the kernel, so it is no id.
fn number(text: &[u8]) -> Option<u32> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten().filter(|id| *id != u32::MAX)
}

fn fields(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|b| *b == b'\n').map(|line| line.split(|b| *b == b':').collect())
}

/// The file's content; empty if it does not exist. A container that is already running may have put anything there.
fn read(path: &str) -> Result<Vec<u8>, Failure> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
        other => other.step("open in the container", path)?,
    };
    let stat = rustix::fs::fstat(&file).step("inspect in the container", path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refusal("read from the container what is not a regular file:", path));
    }
    let mut content = vec![0; MAX_FILE];
    let mut len = 0;
    while let Some(rest) = content.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(&file, rest).step("read in the container", path)? {
            0 => {
                content.truncate(len);
                return Ok(content);
            }
            n => len = len.saturating_add(n),
        }
    }
    Err(refusal("read from the container a file of more than 1 MiB:", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0"), Some(0));
        assert_eq!(number(b"4294967294"), Some(4_294_967_294));
        for bad in [b"".as_slice(), b"-1", b"+1", b"4294967295", b"4294967296", b"0x0", b" 0", b"1a"] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }
}
