//! No file makes the parser of policy.conf panic; a refusal names a line that there is and steers no terminal; and what was
//! understood is understood again from what `ctst doctor` would show of it.

use containust_policy::conf::{KEYS, parse};

pub(crate) fn run(bytes: &[u8]) {
    match parse(bytes) {
        Ok(rules) => {
            assert!(!rules.summary().chars().any(char::is_control));
            // Every line counts: taking the comments away changes nothing, and nothing else was skipped.
            let text = std::str::from_utf8(bytes).expect("only UTF-8 is understood");
            let said = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let said: Vec<&str> = said.collect();
            for line in &said {
                let key = line.split('=').next().expect("split gives something").trim();
                assert!(KEYS.iter().any(|(known, _)| *known == key), "{line}");
            }
            let counted = rules.allow.len()
                + rules.mounts.len()
                + rules.capabilities.len()
                + rules.publish.len()
                + rules.offline.len();
            let single = [
                rules.filter.is_some(),
                rules.max_memory.is_some(),
                rules.max_cpus.is_some(),
                rules.max_pids.is_some(),
                rules.cgroup_parent.is_some(),
                rules.overlay.is_some(),
                rules.egress.is_some(),
                rules.root_range.is_some(),
            ];
            assert_eq!(counted + single.iter().filter(|there| **there).count(), said.len());
        }
        Err(error) => {
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
            assert!(usize::try_from(error.line).is_ok_and(|line| line <= lines));
            let said = error.to_string();
            assert!(said.len() < 4000 && !said.chars().any(char::is_control), "{said}");
        }
    }
}
