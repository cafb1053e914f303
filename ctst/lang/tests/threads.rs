//! A composition of many components is checked by two threads, which nobody may notice.

use std::fmt::Write as _;

use containust_lang::{Outcome, check};

/// As many as two threads look at, and more.
const MANY: usize = 3000;

/// Components with these numbers, one line each, with what they have in common before them.
fn source(numbers: std::ops::Range<usize>) -> String {
    let mut text = "PARAM level = \"info\" TEMPLATE base(size = 1MiB) { image = \"file://./i\" shm = size env { L = \"${level}\" } }\n\
        SECRET token FROM ENV \"TOKEN\" CONFIG motd = \"hello\" COMPONENT hub { image = \"file://./hub\" port = 80 command = [\"/hub\"] }\n"
        .to_owned();
    for n in numbers {
        let line = match n % 5 {
            0 => format!(
                "COMPONENT c{n} {{ image = \"file://./{n}\" command = [\"/c\", \"${{hub.host}}\"] volumes = [\"v{n}:/v\"] }}"
            ),
            1 => format!("COMPONENT c{n} FROM base {{ command = \"/c --n {n}\" configs = [\"motd\"] }}"),
            2 => format!("COMPONENT c{n} FROM base(size = {n}MiB) {{ command = \"/c\" secrets = [\"token\"] }}"),
            3 => format!(
                "COMPONENT c{n} {{ image = \"host:///c{n}\" env {{ T = \"${{secret.token}}\" E = \"${{env.E}}\" }} }}"
            ),
            _ if n % 1000 == 4 => format!("COMPONENT c{n} {{ image = \"tar://c.tar\" replicas = 3 }}"),
            _ => format!("JOB c{n} {{ image = \"image://c\" tmpfs = [\"/t\"] ports = [{}, 9] }}", 100 + n),
        };
        writeln!(text, "{line} CONNECT c{n} -> hub").expect("a string can be written to");
    }
    text
}

fn checked(source: &str) -> Outcome {
    check("f", source.as_bytes(), "p", &|name| (name == "E").then(|| "e".to_owned()))
}

#[test]
fn many_components_are_what_few_are() {
    let outcome = checked(&source(0..MANY));
    assert_eq!(outcome.diagnostics, []);
    let whole = outcome.composition.expect("it is well");
    let (mut components, mut volumes) = (Vec::new(), Vec::new());
    for first in (0..MANY).step_by(100) {
        let few = checked(&source(first..first + 100)).composition.expect("it is well");
        let skipped = usize::from(first > 0);
        components.extend(few.components.into_iter().skip(skipped).map(|mut component| {
            component.line += if component.name == "hub" { 0 } else { first };
            component
        }));
        volumes.extend(few.volumes);
        assert_eq!(few.secrets, whole.secrets);
    }
    volumes.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    assert_eq!(whole.components, components);
    assert_eq!(whole.volumes, volumes);
}

#[test]
fn findings_are_those_of_one_thread() {
    let mut text = source(0..MANY);
    for (from, to) in [("file://./10\"", "\""), ("tmpfs = [\"/t\"] ports = [3099", "tmpfs = [\"t\"] ports = [3099")] {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    text.push_str("COMPONENT last { image = \"file://./l\" port = 0 command = [\"${c1.host}\"] }");
    let outcome = checked(&text);
    assert!(outcome.composition.is_none());
    let found: Vec<(String, usize)> =
        outcome.diagnostics.iter().map(|d| (format!("{:?}", d.code), d.at.line)).collect();
    let kept =
        |line: &&str| !line.contains("> hub") || ["c1 ", "c10 ", "c2999 "].iter().any(|name| line.contains(name));
    let few = checked(&text.lines().filter(kept).collect::<Vec<_>>().join("\n"));
    let messages = |outcome: &Outcome| {
        let texts = outcome.diagnostics.iter().map(|d| format!("{:?} {} {:?}", d.code, d.message, d.related.len()));
        texts.collect::<Vec<_>>()
    };
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(messages(&outcome), messages(&few));
}

#[test]
fn what_is_too_much_in_all_is_refused() {
    let value = "x".repeat(100_000);
    let mut text = String::new();
    for n in 0..1100 {
        // Each half alone would do.
        let value = if n % 6 == 0 { "${env.E}" } else { "x" };
        writeln!(text, "COMPONENT c{n} {{ image = \"host:///c\" env {{ A = \"{value}\" }} }}")
            .expect("a string can be written to");
    }
    let outcome = check("f", text.as_bytes(), "p", &|_| Some(value.clone()));
    let found: Vec<_> = outcome.diagnostics.iter().map(|d| (format!("{:?}", d.code), d.at.line)).collect();
    // 16 MiB are 167 of these values and some bytes, so that the 168th is too much.
    assert_eq!(found.first().map(|(_, line)| *line), Some(6 * 167 + 1), "{found:?}");
}
