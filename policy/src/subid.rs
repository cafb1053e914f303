//! Subordinate ids: what `/etc/subuid` and `/etc/subgid` (`subuid(5)`, `subgid(5)`) grant to a user, and the id maps that
//! are made of it. Pure functions of the files' bytes, because the kernel checks nothing of this: a process with
//! CAP_SETUID may map whatever it likes, so that in strict mode these rules are all that keeps a caller to his own ids.
//!
//! Only the files are looked at. Where `nsswitch.conf(5)` has another source under `subid:`, newuidmap asks that; a static
//! program cannot, and whoever is granted ids there alone is refused here.

use std::fmt;

/// Largest file that is read, in bytes.
pub const MAX_FILE: usize = 1 << 20;
/// Ids inside a user namespace, 0 included: those of images beyond are rare, and a host may grant more than anything needs.
pub const MAX_IDS: u32 = 65_536;
/// Most extents that a map may have.
pub const MAX_EXTENTS: usize = 8;

/// Consecutive ids of the host, at least one. The last is below 4294967295, which is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    first: u32,
    count: u32,
}

impl Range {
    /// None where it would be empty or reach beyond the ids that there are.
    #[must_use]
    pub fn new(first: u32, count: u32) -> Option<Self> {
        first.checked_add(count)?;
        (count > 0).then_some(Self { first, count })
    }

    /// The first id.
    #[must_use]
    pub fn first(self) -> u32 {
        self.first
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// The last id.
    #[must_use]
    pub fn last(self) -> u32 {
        self.first.saturating_add(self.count.saturating_sub(1))
    }

    /// Whether `id` is one of them.
    #[must_use]
    pub fn has(self, id: u32) -> bool {
        (self.first..=self.last()).contains(&id)
    }

    fn meets(self, other: Self) -> bool {
        self.first <= other.last() && other.first <= self.last()
    }
}

/// Why a file gives nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// This line, counted from 1, is not `owner:first:count`.
    Malformed(usize),
    /// This line grants ids of the host's root, or the caller's own.
    Reserved(usize),
    /// This line grants ids that another line grants to somebody else.
    Shared(usize, usize),
    /// No line is the caller's.
    None,
    /// The caller's line grants too few: at least this many are needed.
    TooFew(u32),
    /// The file has more bytes than [`MAX_FILE`].
    TooLarge,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(line) => write!(f, "line {line} is not owner:first:count"),
            Self::Reserved(line) => write!(f, "line {line} grants id 0, or the caller's own"),
            Self::Shared(line, other) => write!(f, "line {line} grants ids that line {other} grants to somebody else"),
            Self::None => f.write_str("no line grants ids to the caller"),
            Self::TooFew(needed) => write!(f, "the caller is granted fewer than {needed} ids"),
            Self::TooLarge => write!(f, "it has more than {MAX_FILE} bytes"),
        }
    }
}

/// The name of `uid` in `passwd(5)`: that of the first line with this number, as `getpwuid(3)` has it.
#[must_use]
pub fn user_name(passwd: &[u8], uid: u32) -> Option<&[u8]> {
    passwd.split(|b| *b == b'\n').find_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (number(fields.nth(1)?) == Some(uid)).then_some(name)
    })
}

/// The first range that `file` grants to the user with this number and name.
///
/// # Errors
/// Any line that cannot be understood, whosever it is; a range of the caller's that holds id 0 or his own id, or meets
/// somebody else's; no range.
pub fn granted(file: &[u8], uid: u32, name: Option<&[u8]>) -> Result<Range, Problem> {
    if file.len() > MAX_FILE {
        return Err(Problem::TooLarge);
    }
    let ours = |owner: &[u8]| number(owner) == Some(uid) || Some(owner) == name;
    let mut found = None;
    for (line, grant) in grants(file) {
        let (owner, range) = grant.ok_or(Problem::Malformed(line))?;
        if found.is_none() && ours(owner) {
            found = Some((line, range));
        }
    }
    let (line, range) = found.ok_or(Problem::None)?;
    if range.has(0) || range.has(uid) {
        return Err(Problem::Reserved(line));
    }
    for (other, grant) in grants(file) {
        if grant.is_some_and(|(owner, theirs)| !ours(owner) && theirs.meets(range)) {
            return Err(Problem::Shared(line, other));
        }
    }
    Ok(range)
}

/// Lines that are not empty and no comment, with their numbers.
fn grants(file: &[u8]) -> impl Iterator<Item = (usize, Option<(&[u8], Range)>)> {
    let lines = (1..).zip(file.split(|b| *b == b'\n'));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#")).map(|(number, line)| (number, grant(line)))
}

fn grant(line: &[u8]) -> Option<(&[u8], Range)> {
    let mut fields = line.split(|b| *b == b':');
    let (owner, first, count) = (fields.next()?, number(fields.next()?)?, number(fields.next()?)?);
    let name = !owner.is_empty() && !owner.iter().any(|b| b.is_ascii_control() || *b == b' ');
    if !name || fields.next().is_some() {
        return None;
    }
    Some((owner, Range::new(first, count)?))
}

/// Decimal digits and nothing else.
fn number(field: &[u8]) -> Option<u32> {
    if field.is_empty() || !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Consecutive ids inside, and what they are outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First id inside.
    pub inside: u32,
    /// First id of the host.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// A map of a user namespace (`user_namespaces(7)`) that was found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map(Vec<Extent>);

impl Map {
    /// Takes extents that map nothing but `own` and ids of `granted`: no id twice on either side, never host id 0.
    #[must_use]
    pub fn new(extents: &[Extent], own: u32, granted: Range) -> Option<Self> {
        if extents.is_empty() || extents.len() > MAX_EXTENTS {
            return None;
        }
        let mut seen: Vec<(Range, Range)> = Vec::new();
        for extent in extents {
            let inside = Range::new(extent.inside, extent.count)?;
            let outside = Range::new(extent.outside, extent.count)?;
            let callers = extent.count == 1 && extent.outside == own;
            let theirs = granted.has(outside.first()) && granted.has(outside.last());
            let twice = seen.iter().any(|(i, o)| i.meets(inside) || o.meets(outside));
            if outside.has(0) || twice || !(callers || theirs) {
                return None;
            }
            seen.push((inside, outside));
        }
        Some(Self(extents.to_vec()))
    }

    /// What it maps.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.0
    }
}

/// As the kernel reads it from `/proc/PID/uid_map`.
impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|Extent { inside, outside, count }| writeln!(f, "{inside} {outside} {count}"))
    }
}

/// The maps of a strict project, and the id that owns its user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maps {
    /// Of users: 0 is the caller, what follows his range but its last id.
    pub uids: Map,
    /// Of groups: 0 is the caller's, what follows his range.
    pub gids: Map,
    /// The last id of the caller's range, which nothing inside is mapped to: whoever has this id outside owns the namespace.
    pub owner: u32,
}

impl Maps {
    /// For the caller `own` (user and group) with these grants.
    ///
    /// # Errors
    /// [`Problem::TooFew`], [`Problem::Reserved`].
    pub fn new(own: (u32, u32), uids: Range, gids: Range) -> Result<Self, Problem> {
        let owner = uids.last();
        let users = uids.count().saturating_sub(1).min(MAX_IDS - 1);
        if users == 0 {
            return Err(Problem::TooFew(2));
        }
        let map = |own: u32, range: Range, count: u32| {
            let root = Extent { inside: 0, outside: own, count: 1 };
            let rest = Extent { inside: 1, outside: range.first(), count };
            Map::new(&[root, rest], own, range).ok_or(Problem::Reserved(0))
        };
        Ok(Self { uids: map(own.0, uids, users)?, gids: map(own.1, gids, gids.count().min(MAX_IDS - 1))?, owner })
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "test code")]
mod tests {
    use super::*;

    fn get(file: &str) -> Result<(u32, u32), Problem> {
        granted(file.as_bytes(), 1000, Some(b"ann")).map(|range| (range.first(), range.count()))
    }

    #[test]
    fn finds_a_callers_range_by_name_and_by_number() {
        assert_eq!(get("bob:300000:2\nann:100000:65536\n"), Ok((100_000, 65_536)));
        assert_eq!(get("1000:200000:1000"), Ok((200_000, 1000)));
        assert_eq!(get("# mine\n\nann:7:9\nann:100:5\n1000:7:9\n"), Ok((7, 9)));
        assert_eq!(granted(b"ann:5:5", 1000, None), Err(Problem::None));
        assert_eq!(get("ann:4294967290:5"), Ok((4_294_967_290, 5)));
    }

    #[test]
    fn refuses_what_is_not_plain() {
        for bad in [
            "ann",
            "ann:",
            "ann:1",
            "ann:1:",
            "ann:x:1",
            "ann:1:0",
            "ann:4294967295:1",
            "ann:4294967290:6",
            "ann:1:2:3",
            "ann:+1:2",
            "ann: 1:2",
            "ann:1:2 ",
            ":1:2",
            "ann:-1:2",
            "ann:1:99999999999",
            "an\0n:1:2",
            " ann:1:2",
            "ann:1:2\r",
        ] {
            assert_eq!(get(bad), Err(Problem::Malformed(1)), "{bad:?}");
            // Also where it is somebody else's.
            let file = format!("ann:100000:10\n{}", bad.replace("ann", "bob"));
            assert_eq!(get(&file), Err(Problem::Malformed(2)), "{file:?}");
        }
        assert_eq!(get("ann:0:5"), Err(Problem::Reserved(1)));
        assert_eq!(get("ann:999:5"), Err(Problem::Reserved(1)));
        assert_eq!(get("ann:10:5\nbob:14:1"), Err(Problem::Shared(1, 2)));
        assert_eq!(get("bob:1:4294967294\nann:10:5"), Err(Problem::Shared(2, 1)));
        assert_eq!(get("bob:15:1\nann:10:5"), Ok((10, 5)));
        assert_eq!(get(""), Err(Problem::None));
        assert_eq!(granted(&vec![b'\n'; MAX_FILE + 1], 1000, None), Err(Problem::TooLarge));
    }

    #[test]
    fn names_come_from_passwd() {
        let passwd =
            b"root:x:0:0::/:/bin/sh\n\xff:y\n:x:1000:1\nann:x:1000:1000:Ann:/home/ann:/bin/sh\nann2:x:1000:1::/:\n";
        assert_eq!(user_name(passwd, 1000), Some(b"ann".as_slice()));
        assert_eq!(user_name(passwd, 1001), None);
    }

    #[test]
    fn leaves_the_last_id_to_the_owner() {
        let range = Range::new(100_000, 65_536).expect("a range");
        let maps = Maps::new((1000, 1000), range, range).expect("maps");
        assert_eq!(maps.uids.to_string(), "0 1000 1\n1 100000 65535\n");
        assert_eq!(maps.gids.to_string(), "0 1000 1\n1 100000 65535\n");
        assert_eq!(maps.owner, 165_535);
        let large = Range::new(100_000, 1_000_000).expect("a range");
        let maps = Maps::new((1000, 1000), large, range).expect("maps");
        assert_eq!((maps.uids.to_string().as_str(), maps.owner), ("0 1000 1\n1 100000 65535\n", 1_099_999));
        let two = Range::new(5, 2).expect("a range");
        assert_eq!(Maps::new((1000, 1000), two, two).expect("maps").uids.to_string(), "0 1000 1\n1 5 1\n");
        let one = Range::new(5, 1).expect("a range");
        assert_eq!(Maps::new((1000, 1000), one, two), Err(Problem::TooFew(2)));
        assert!(Maps::new((0, 1000), two, two).is_err());
        assert!(Maps::new((1000, 0), two, two).is_err());
        assert!(Maps::new((1000, 6), two, two).is_err());
    }
}
