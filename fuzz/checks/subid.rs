//! What a file of subordinate ids grants to a caller, and the maps that are made of it: never root's ids, never somebody
//! else's, never more than a plain reading of the file finds under the caller's name.

use containust_policy::subid::{Map, Maps, Range, granted, user_name};

pub(crate) fn run(bytes: &[u8]) {
    let (head, file) = bytes.split_at(bytes.len().min(1));
    let uid = 1000 + u32::from(head.first().copied().unwrap_or(0) % 4);
    let name: Option<&[u8]> = (uid != 1003).then_some(b"ann");
    assert!(user_name(file, uid).is_none_or(|name| !name.is_empty() && !name.contains(&b':')));
    let Ok(range) = granted(file, uid, name) else { return };
    assert!(range.first() > 0 && !range.has(uid) && range.count() > 0 && range.last() < u32::MAX);
    // A second reading, line by line in text.
    let text = String::from_utf8_lossy(file);
    let mut is_ours = false;
    for line in text.split('\n').filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(':').collect();
        let [owner, first, count] = fields[..] else { panic!("granted beside {line:?}") };
        let number = |field: &str| field.parse::<u64>().unwrap_or_else(|_| panic!("granted beside {line:?}"));
        let (first, end) = (number(first), number(first) + number(count));
        assert!(end <= u64::from(u32::MAX), "{line}");
        let own = name.is_some_and(|name| owner.as_bytes() == name) || owner.parse() == Ok(uid);
        if own {
            is_ours |= first == u64::from(range.first()) && end == u64::from(range.last()) + 1;
        } else {
            assert!(end <= u64::from(range.first()) || first > u64::from(range.last()), "{line} is somebody else's");
        }
    }
    assert!(is_ours, "no line grants {range:?}");
    let Ok(maps) = Maps::new((uid, uid), range, range) else { return };
    assert_eq!(maps.owner, range.last());
    for (map, may_own) in [(&maps.uids, false), (&maps.gids, true)] {
        check(map, uid, range);
        let owner = map.extents().iter().any(|extent| maps.owner.wrapping_sub(extent.outside) < extent.count);
        assert!(may_own || !owner, "the owner's id is mapped");
    }
}

fn check(map: &Map, own: u32, range: Range) {
    for extent in map.extents() {
        let last = extent.outside + (extent.count - 1);
        let callers = extent.count == 1 && extent.outside == own;
        assert!(callers || (range.has(extent.outside) && range.has(last)), "{extent:?} is not granted");
        assert!(extent.outside != 0);
    }
}
