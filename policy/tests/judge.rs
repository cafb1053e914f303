//! The verdict against a second opinion that is slow and plain: for each host path there could be, what a container that has it
//! mounted could reach.

use containust_policy::capabilities;
use containust_policy::conf::{Access, Filter, Rules, parse};
use containust_policy::judge::{Caller, HostPath, Limits, Port, Purpose, Spec, judge, tell};
use proptest::prelude::*;

/// Every path of up to three parts, of two names each.
fn universe() -> Vec<String> {
    let mut all = vec![String::new()];
    let mut last = all.clone();
    for _ in 0..3 {
        last = last.iter().flat_map(|path| ["a", "ab"].map(|name| format!("{path}/{name}"))).collect();
        all.extend(last.iter().cloned());
    }
    all.into_iter().map(|path| if path.is_empty() { "/".to_owned() } else { path }).collect()
}

/// Whether `path` is at or below `folder`, by taking parts off its end.
fn is_below(path: &str, folder: &str) -> bool {
    std::path::Path::new(path).ancestors().any(|above| above.as_os_str() == folder)
}

fn access(rules: &[(Access, String)], path: &str) -> Access {
    let over = rules.iter().filter(|(_, folder)| is_below(path, folder));
    over.max_by_key(|(_, folder)| std::path::Path::new(folder).components().count())
        .map_or(Access::ReadWrite, |(access, _)| *access)
}

fn rules() -> impl Strategy<Value = Vec<(Access, String)>> {
    let access = proptest::sample::select(vec![Access::Deny, Access::ReadOnly, Access::ReadWrite]);
    let rule = (access, proptest::sample::select(universe()));
    proptest::collection::vec(rule, 0..6).prop_map(|mut rules| {
        rules.sort_by(|a, b| a.1.cmp(&b.1));
        rules.dedup_by(|a, b| a.1 == b.1);
        rules
    })
}

fn text(rules: &[(Access, String)]) -> String {
    rules.iter().map(|(access, path)| format!("mount = {} {path}\n", access.name())).collect()
}

fn mounted(path: &[u8], writable: bool) -> Spec<'_> {
    let host = HostPath { path, writable, purpose: Purpose::Mount, target: b"/x" };
    Spec { paths: vec![host], ..Spec::nothing() }
}

proptest! {
    #[test]
    fn a_container_reaches_only_what_it_may(rules in rules()) {
        let stated = parse(text(&rules).as_bytes()).expect("rules as they are written");
        for path in universe() {
            for writable in [false, true] {
                let wanted = if writable { Access::ReadWrite } else { Access::ReadOnly };
                let all = universe();
                let mut reached = all.iter().filter(|other| is_below(other, &path));
                let allowed = reached.all(|other| access(&rules, other) >= wanted);
                let verdict = judge(&mounted(path.as_bytes(), writable), &stated, &Caller::default());
                prop_assert_eq!(verdict.is_ok(), allowed, "{} {:?} under {:?}: {:?}", path, wanted, rules, verdict);
            }
        }
    }

    /// Who does as a refusal says is not refused again for the same path.
    #[test]
    fn the_line_that_is_suggested_allows_it(rules in rules(), at in 0..15usize, writable in any::<bool>()) {
        let path = &universe()[at];
        let mut text = text(&rules);
        // Each round takes one obstacle away.
        for _ in 0..8 {
            let stated = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}:\n{text}"));
            let Err(denials) = judge(&mounted(path.as_bytes(), writable), &stated, &Caller::default()) else { return Ok(()) };
            let said = tell(&denials);
            let line = said.rsplit('`').nth(1).expect("a line to ask for").to_owned();
            let place = line.rsplit(' ').next().expect("a path");
            let kept: Vec<&str> = text.lines().filter(|line| line.rsplit(' ').next() != Some(place)).collect();
            text = kept.iter().map(|line| format!("{line}\n")).collect::<String>() + &line + "\n";
        }
        prop_assert!(false, "never allowed: {path} under\n{text}");
    }

    #[test]
    fn whatever_is_asked_for_has_a_verdict(
        policy in "(mount = (deny|ro|rw) /[a-c/]{0,6}\n|allow = group x\n|filter = strict\n|device = none\n|device = /[a-c/]{1,6}\n|overlay = no\n|fuse = no\n|publish = none\n|capability = none\n|max_pids = 3\n|egress = no\n|offline = everyone\n){0,6}",
        paths in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..40), any::<bool>()), 0..20),
        capabilities in any::<u64>(), overlay in any::<bool>(), fuse in any::<bool>(), port in any::<u16>(), uid in any::<u32>(),
        pids in any::<Option<u64>>(), names in proptest::collection::vec(any::<u8>(), 0..60), strict in any::<bool>(), egress in any::<bool>(),
    ) {
        let rules = parse(policy.as_bytes()).unwrap_or_default();
        let paths: Vec<_> = paths.iter().map(|(path, writable)| {
            HostPath { path, writable: *writable, purpose: Purpose::Layer, target: path }
        }).collect();
        let plain = paths.iter().all(|host| {
            let parts: Vec<&[u8]> = host.path.split(|b| *b == b'/').collect();
            let named = |part: &&[u8]| !matches!(*part, b"" | b"." | b"..");
            host.path == b"/" || (parts.len() > 1 && parts[0].is_empty() && parts[1..].iter().all(named))
        });
        let spec = Spec { paths, overlay, capabilities, filter: Filter::Compat, ports: vec![Port { place: ([0; 4], port).into(), udp: false }],
            egress, fuse, limits: Some(Limits { memory: None, cpu_millis: None, pids }) };
        let caller = Caller::new(uid, vec![uid], &names, &names, strict);
        match judge(&spec, &rules, &caller) {
            Ok(()) => {
                prop_assert!(plain);
                prop_assert_eq!(capabilities & !capabilities::CEILING, 0);
                prop_assert!(!overlay || rules.overlay(strict));
                prop_assert!(!fuse || rules.fuse(strict));
                prop_assert!(!egress || (rules.egress.is_none() && rules.offline.is_empty()));
            }
            Err(denials) => {
                prop_assert!(!denials.is_empty());
                let said = tell(&denials);
                prop_assert!(said.len() < 20_000 && !said.chars().any(char::is_control), "{}", said);
            }
        }
        if rules == Rules::default() && plain && capabilities & !capabilities::CEILING == 0 && !strict {
            prop_assert!(judge(&spec, &rules, &caller).is_ok());
        }
    }
}
