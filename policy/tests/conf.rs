//! The grammar of policy.conf: the example that is installed, and what nobody would write.

use containust_policy::capabilities;
use containust_policy::conf::{KEYS, MAX_SIZE, Rules, parse};
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../policy.conf");

/// The example with its rules made to count.
fn examples() -> String {
    let shown = |line: &str| match line.strip_prefix('#') {
        Some(rule) if rule.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{rule}\n"),
        _ => format!("{line}\n"),
    };
    EXAMPLE.lines().map(shown).collect()
}

#[test]
fn the_example_changes_nothing_as_it_stands() {
    assert_eq!(parse(EXAMPLE.as_bytes()), Ok(Rules::default()));
}

#[test]
fn the_example_documents_every_key_and_its_rules_are_understood() {
    let text = examples();
    let rules = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rules.mounts.len(), 4);
    for (name, list) in KEYS {
        assert!(text.lines().any(|line| line.starts_with(&format!("{} = ", name))), "no example of {}", name);
        let heads: Vec<_> = EXAMPLE.lines().filter(|line| line.starts_with(&format!("# {} = ", name))).collect();
        assert!(!heads.is_empty(), "{} is not explained", name);
        let repeated = heads.iter().any(|line| line.ends_with("(may be repeated)"));
        assert_eq!(repeated, *list, "{}", name);
    }
    let named =
        |line: &str| line.strip_prefix("# ").and_then(|line| line.split_once(" = ")).map(|(key, _)| key.to_owned());
    for name in
        EXAMPLE.lines().filter_map(named).filter(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    {
        assert!(KEYS.iter().any(|(key, _)| *key == name), "the example explains {name}, which is no key");
    }
}

#[test]
fn names_of_capabilities_are_the_kernels() {
    for (number, name) in (0..).zip(capabilities::NAMES) {
        let theirs: caps::Capability = format!("CAP_{name}").parse().expect("a capability's name");
        assert_eq!(theirs.index(), number, "{name}");
        assert_eq!((capabilities::number(name), capabilities::name(number)), (Some(number), name));
    }
    assert_eq!(capabilities::number("ALL"), None);
}

/// The example names what a component may ask for where no line says otherwise.
#[test]
fn the_example_names_the_capabilities_on_request() {
    for number in 0..64u8 {
        let requested = capabilities::CEILING & !capabilities::DEFAULT & 1 << number != 0;
        let name = capabilities::name(number);
        let explained = EXAMPLE.lines().skip_while(|line| !line.starts_with("# What root inside may have"));
        let named = explained
            .take_while(|line| line.starts_with("# "))
            .any(|line| line.split(|c: char| !c.is_ascii_uppercase() && c != '_').any(|word| word == name));
        assert_eq!(named, requested, "{name}");
    }
}

fn line() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        proptest::sample::select(KEYS.iter().map(|(key, _)| (*key).to_owned()).collect::<Vec<_>>()),
        "[a-z_]{0,12}",
    ];
    let value = prop_oneof![
        "(user|group|deny|ro|rw|any|none|everyone|127.0.0.1|yes|no|compat)",
        "(user|group|deny|ro|rw|any|127.0.0.1) [/a-z0-9.-]{0,20}",
        "[0-9]{0,20}(KiB|MiB|GiB|TiB|[. ][0-9]{0,11})?",
        "\\PC{0,20}",
    ];
    (key, " ?=? ?", value).prop_map(|(key, equals, value)| format!("{key}{equals}{value}"))
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let lines = bytes.iter().filter(|b| **b == b'\n').count() as u32 + 1;
        if let Err(error) = parse(&bytes) {
            prop_assert!(error.line <= lines && !error.problem.is_empty() && !error.fix.is_empty());
            prop_assert!(!error.to_string().chars().any(char::is_control), "{error}");
        }
    }

    /// Whatever is said of it, no path that is accepted leads elsewhere than it says.
    #[test]
    fn lines_are_read_or_refused(lines in proptest::collection::vec(line(), 0..20)) {
        match parse(lines.join("\n").as_bytes()) {
            Ok(rules) => {
                let stated = lines.iter().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).count();
                let single = [rules.filter.is_some(), rules.max_memory.is_some(), rules.max_cpus.is_some(),
                    rules.max_pids.is_some(), rules.cgroup_parent.is_some(), rules.overlay.is_some(), rules.fuse.is_some(), rules.egress.is_some(), rules.root_range.is_some()];
                let read = rules.allow.len() + rules.mounts.len() + rules.capabilities.len() + rules.publish.len()
                    + rules.offline.len() + rules.devices.len();
                prop_assert_eq!(read + single.iter().filter(|is| **is).count(), stated);
                for rule in &rules.mounts {
                    let path = &rule.value.path;
                    prop_assert!(path.starts_with('/') && !path.split('/').any(|part| part == ".." || part == "."));
                }
                let range = rules.root_range();
                prop_assert!(range.first >= 65_536 && range.count > 0 && range.first.checked_add(range.count).is_some());
                let longest = lines.join("\n").len();
                prop_assert!(rules.summary().len() < 200 + 4 * longest);
            }
            Err(error) => prop_assert!(1 <= error.line && error.line as usize <= lines.len().max(1), "{}", error),
        }
    }

    /// A byte of the example that is another leaves it a policy or an error with its line.
    #[test]
    fn a_changed_example_is_read_or_refused(at in 0..EXAMPLE.len(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = examples().into_bytes();
        let at = at.min(bytes.len() - 1);
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        let line = bytes[..at.min(bytes.len())].iter().filter(|b| **b == b'\n').count() as u32 + 1;
        if let Err(error) = parse(&bytes) {
            // A rule that is changed may contradict a later one.
            prop_assert!(error.line >= line.saturating_sub(1) || error.problem.contains("line "), "{}", error);
        }
    }
}

#[test]
fn a_large_file_is_refused_unread() {
    assert!(parse(&vec![b'#'; MAX_SIZE]).is_ok());
    assert_eq!(parse(&vec![0xff; MAX_SIZE + 1]).expect_err("too large").line, 0);
}
