//! Whatever stands in the files, no map that is accepted leaves what they grant.
#![expect(clippy::unwrap_used, reason = "test code")]

use containust_policy::subid::{Extent, Map, Maps, Range, granted};
use proptest::prelude::*;

fn ids() -> impl Strategy<Value = u32> {
    prop_oneof![0..20u32, 990..1010u32, Just(u32::MAX), u32::MAX - 5..u32::MAX, any::<u32>()]
}

fn line() -> impl Strategy<Value = String> {
    let owner = prop_oneof![Just("ann"), Just("bob"), Just("1000"), Just("01000"), Just(""), Just("#"), Just("an\0n")];
    let number = prop_oneof![ids().prop_map(|id| id.to_string()), Just("+1".to_owned()), Just("4294967296".to_owned())];
    let plain = (owner, number.clone(), number).prop_map(|(owner, first, count)| format!("{owner}:{first}:{count}"));
    prop_oneof![8 => plain, 1 => ".{0,12}", 1 => Just(String::new())]
}

fn outside(extent: &Extent) -> std::ops::RangeInclusive<u64> {
    u64::from(extent.outside)..=u64::from(extent.outside) + u64::from(extent.count) - 1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_accepted_map_leaves_the_granted_range(
        lines in prop::collection::vec(line(), 0..6),
        groups in prop::collection::vec(line(), 0..6),
        own in (ids(), ids()),
    ) {
        let (users, groups) = (lines.join("\n"), groups.join("\n"));
        let name = Some(b"ann".as_slice());
        let (Ok(uids), Ok(gids)) = (granted(users.as_bytes(), own.0, name), granted(groups.as_bytes(), own.0, name)) else {
            return Ok(());
        };
        // Some line of the caller's says exactly this.
        let said = |text: &str, range: Range| {
            text.lines().any(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                fields.len() == 3
                    && (fields[0] == "ann" || fields[0].parse() == Ok(own.0))
                    && fields[1].parse() == Ok(range.first())
                    && fields[2].parse() == Ok(range.count())
            })
        };
        prop_assert!(said(&users, uids) && said(&groups, gids));
        let Ok(maps) = Maps::new(own, uids, gids) else { return Ok(()) };
        prop_assert!(uids.has(maps.owner) && maps.owner != own.0);
        for (map, own, range) in [(&maps.uids, own.0, uids), (&maps.gids, own.1, gids)] {
            for extent in map.extents() {
                for id in [*outside(extent).start(), *outside(extent).end()] {
                    let id = u32::try_from(id).unwrap();
                    prop_assert!(id != 0 && (id == own || range.has(id)));
                }
            }
        }
        for extent in maps.uids.extents() {
            prop_assert!(!outside(extent).contains(&u64::from(maps.owner)));
        }
    }

    #[test]
    fn no_accepted_extents_overlap_or_overflow(
        extents in prop::collection::vec((ids(), ids(), ids()), 0..10),
        own in ids(),
        first in ids(),
        count in ids(),
    ) {
        let Some(range) = Range::new(first, count) else { return Ok(()) };
        let extents: Vec<Extent> =
            extents.into_iter().map(|(inside, outside, count)| Extent { inside, outside, count }).collect();
        let Some(map) = Map::new(&extents, own, range) else { return Ok(()) };
        prop_assert!((1..=8).contains(&map.extents().len()));
        for (at, one) in extents.iter().enumerate() {
            prop_assert!(one.count > 0 && u64::from(one.inside) + u64::from(one.count) <= u64::from(u32::MAX));
            prop_assert!(*outside(one).end() < u64::from(u32::MAX) && *outside(one).start() > 0);
            for id in [*outside(one).start(), *outside(one).end()] {
                prop_assert!(id == u64::from(own) || range.has(u32::try_from(id).unwrap()));
            }
            for other in &extents[at + 1..] {
                prop_assert!(outside(one).end() < outside(other).start() || outside(other).end() < outside(one).start());
            }
        }
    }

    #[test]
    fn never_panics(file in prop::collection::vec(any::<u8>(), 0..200), uid in any::<u32>()) {
        let name = containust_policy::subid::user_name(&file, uid);
        prop_assert!(name.is_none_or(|name| !name.is_empty()));
        prop_assert!(granted(&file, uid, name).is_ok() == granted(&file, uid, name).is_ok());
    }
}
