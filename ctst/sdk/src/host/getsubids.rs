//! What another source than the files grants of subordinate ids: `nsswitch.conf(5)` may name one under `subid:`, which newuidmap
//! asks, and which neither `ctst` nor `ctst-shim` can, being static programs. `getsubids(1)` tells what newuidmap is told.

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::getuid;

use super::ids::{self, Range};
use crate::host::doctor::Check;
use crate::host::doctor::Verdict::Limited;

const NAME: &str = "subordinate ids";

/// The files, and what asks `getsubids` for the same.
const KINDS: [(&str, &[&str]); 2] = [("/etc/subuid", &[]), ("/etc/subgid", &["-g"])];

/// Whether both say the same; none where nobody can tell: for want of `getsubids`, or of a name to ask for.
pub(crate) fn check() -> Option<Check> {
    let uid = getuid().as_raw();
    let getsubids = which::which("getsubids").ok()?;
    // Not from /etc/passwd, where a user of another source is not.
    let name = output(Command::new("id").arg("-un"))?.trim().to_owned();
    let mut differing = Vec::new();
    for (file, options) in KINDS {
        // With nothing to list it fails.
        let listed = output(Command::new(&getsubids).args(options).arg(&name)).unwrap_or_default();
        let (listed, granted) = (sorted(parse(&listed)), sorted(ids::all_granted(Path::new(file), uid)));
        if listed != granted {
            differing.push((file, listed, granted));
        }
    }
    if differing.is_empty() {
        return Some(Check::good(NAME, "getsubids lists what /etc/subuid and /etc/subgid grant"));
    }
    Some(differ(uid, &differing))
}

fn differ(uid: u32, differing: &[(&str, Vec<Range>, Vec<Range>)]) -> Check {
    let told: Vec<String> = differing
        .iter()
        .map(|(file, listed, granted)| format!("getsubids lists {}, and {file} grants {}", text(listed), text(granted)))
        .collect();
    let found = format!(
        "{}: newuidmap asks the one (subid: in /etc/nsswitch.conf), ctst and ctst-shim read the other",
        told.join("; ")
    );
    let missing = differing.iter().flat_map(|(file, listed, granted)| {
        let absent = listed.iter().filter(|range| !granted.contains(range));
        absent.map(move |Range { first, count }| format!("echo {uid}:{first}:{count} | sudo tee -a {file}"))
    });
    let missing: Vec<String> = missing.collect();
    let fix = if missing.is_empty() {
        "have newuidmap ask the files: sudo sed -i 's/^subid:.*/subid: files/' /etc/nsswitch.conf".to_owned()
    } else {
        format!("write what is listed into the files, unless it is somebody else's there: {}", missing.join("; "))
    };
    Check::other(NAME, Limited, found, fix)
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `0: ann 100000 65536`, a line for each range.
fn parse(text: &str) -> Vec<Range> {
    let range = |line: &str| {
        let mut fields = line.split_whitespace().rev();
        let (count, first) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        fields.next().map(|_| Range { first, count })
    };
    text.lines().filter_map(range).collect()
}

fn sorted(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_by_key(|range| (range.first, range.count));
    ranges.dedup();
    ranges
}

fn text(ranges: &[Range]) -> String {
    if ranges.is_empty() {
        return "none".to_owned();
    }
    let range = |Range { first, count }: &Range| format!("{count} from {first}");
    ranges.iter().map(range).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_getsubids_lists() {
        let range = |first, count| Range { first, count };
        assert_eq!(parse("0: ann 100000 65536\n1: ann 300000 10\n"), [range(100_000, 65_536), range(300_000, 10)]);
        assert_eq!(parse("0: DOM\\ann 100000 65536\n"), [range(100_000, 65_536)]);
        for none in ["", "Error fetching ranges", "0: ann x 1", "5 6", "0: ann 1"] {
            assert_eq!(parse(none), [], "{none}");
        }
    }

    #[test]
    fn says_which_is_missing_where() {
        let (a, b) = (Range { first: 100_000, count: 65_536 }, Range { first: 300_000, count: 10 });
        let check = differ(1000, &[("/etc/subuid", vec![a, b], vec![a]), ("/etc/subgid", vec![a], vec![])]);
        assert!(
            check.found.contains("65536 from 100000 and 10 from 300000, and /etc/subuid grants 65536 from 100000;"),
            "{check:?}"
        );
        let fix = check.fix.unwrap();
        assert!(
            fix.ends_with(
                "echo 1000:300000:10 | sudo tee -a /etc/subuid; echo 1000:100000:65536 | sudo tee -a /etc/subgid"
            ),
            "{fix}"
        );
        let check = differ(1000, &[("/etc/subuid", vec![], vec![a])]);
        assert!(
            check.found.starts_with("getsubids lists none, and /etc/subuid grants 65536 from 100000:"),
            "{check:?}"
        );
        assert!(check.fix.unwrap().contains("subid: files"));
    }
}
