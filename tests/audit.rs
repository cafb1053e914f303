//! What `ctst-shim/README.md` tells auditors, compared with the sources: the alarms, the unsafe code, every refusal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The sources that are linked into the shim and are ours.
const LINKED: [&str; 5] = ["ctst-shim/src", "ctst-shim/helper/src", "ctst-shim/core/src", "shared/src", "policy/src"];
/// Of these folders, what only `ctst` has: the filters of its own processes.
const ELSEWHERE: &str = "policy/src/own.rs";
/// Those of ctst-port alone.
const PORT: &str = "ctst-shim/port/src";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// The `.rs` files in a folder, which has no folders in it, with what is before their unit tests.
fn sources(folder: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("read {folder}: {error}"));
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.expect("a file");
        let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
        assert!(entry.file_type().expect("its type").is_file(), "{name} is not counted");
        let text = read(&name);
        let code = text.split("\n#[cfg(test)]\n").next().expect("split gives something").to_owned();
        found.insert(name, code);
    }
    assert!(!found.is_empty());
    found
}

/// Lines that are neither blank nor a comment.
fn lines(folder: &str) -> usize {
    let code = |text: &String| {
        let lines = text.lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !line.starts_with("//")).count()
    };
    sources(folder).iter().filter(|(name, _)| *name != ELSEWHERE).map(|(_, text)| code(text)).sum()
}

fn crates() -> usize {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let words = "tree -p ctst-shim -e normal,no-proc-macro --prefix none --format {p} --offline";
    let output = Command::new(cargo).args(words.split(' ')).current_dir(root()).output().expect("run cargo tree");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let names: BTreeSet<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    names.iter().filter(|name| !name.starts_with("containust-") && **name != "ctst-shim").count()
}

/// The one table of alarms: above these numbers a change needs a second thought, and an edit of the guide. It counts, too,
/// what `packaging/reproducible` compares: the size of the program.
#[test]
fn no_alarm() {
    let guide = read("ctst-shim/README.md");
    let section = guide.split("\n## Alarms\n").nth(1).expect("a section on alarms");
    let section = section.split("\n## ").next().expect("split gives something");
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let alarms: BTreeMap<&str, usize> = rows
        .skip(2)
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [what, alarm] = cells[..] else { panic!("{row}") };
            (what, alarm.replace(',', "").parse().unwrap_or_else(|error| panic!("{row}: {error}")))
        })
        .collect();

    let mut measured = BTreeMap::from([
        (
            "lines of the shim (`ctst-shim/src`, `helper/src`, `core/src`)",
            LINKED[..3].iter().map(|folder| lines(folder)).sum(),
        ),
        ("lines of ours linked into it, tables included", LINKED.iter().map(|folder| lines(folder)).sum()),
        ("lines of `ctst-port` (`port/src`)", lines(PORT)),
        ("system calls in its window", read("tests/window-port.strace").lines().count()),
        ("crates of others linked into it", crates()),
        ("`unsafe` blocks", unsafe_code().matches("\n  ").count()),
    ]);
    let window = root().join("tests/window.strace");
    if window.exists() {
        let files = ["tests/window.strace", "tests/window-group.strace", "tests/window-gc.strace"];
        let calls = files.iter().map(|file| read(file).lines().filter(|line| !line.is_empty()).count()).max();
        measured.insert("system calls in the privileged window", calls.unwrap_or_default());
    }
    for (what, number) in &measured {
        let alarm = alarms.get(what).unwrap_or_else(|| panic!("no alarm for {what}, which is {number}"));
        println!("{what}: {number} of {alarm}");
        assert!(number <= alarm, "{what}: {number}, alarm at {alarm}");
    }
    let others: Vec<_> = alarms.keys().filter(|what| !measured.contains_key(*what)).collect();
    assert_eq!(others, [&"bytes of the release build"], "nobody measures these");
}

/// Whoever reads in the guide's order has read everything.
#[test]
fn every_file_is_in_the_reading_order() {
    let guide = read("ctst-shim/README.md");
    let section = guide.split("\n## What to read, in order\n").nth(1).expect("a section on what to read");
    let section = section.split("\n## ").next().expect("split gives something");
    let words: BTreeSet<&str> = section.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    for name in LINKED.iter().chain([&PORT]).flat_map(|folder| sources(folder).into_keys()) {
        let stem = Path::new(&name).file_stem().expect("a name").to_string_lossy();
        assert!(stem == "lib" || words.contains(stem.as_ref()), "ctst-shim/README.md does not say when to read {name}");
    }
}

/// Each unsafe block by function, with the reason that stands above it.
fn unsafe_code() -> String {
    // Put together at run time, so that this file is not taken for unsafe code.
    let opens = format!("{} {{", "unsafe");
    let mut text = String::new();
    for (name, code) in sources("ctst-shim/core/src") {
        let (mut function, mut comment) = (String::new(), String::new());
        for line in code.lines().map(str::trim) {
            let words = line.split_once("fn ").filter(|_| !line.starts_with("//"));
            if let Some((_, rest)) = words.filter(|_| line.ends_with('{') || line.ends_with('(')) {
                function = rest.split(['(', '<']).next().expect("split gives something").to_owned();
            }
            if let Some(said) = line.strip_prefix("// SAFETY: ") {
                comment = said.to_owned();
            } else if let Some(more) = line.strip_prefix("// ") {
                if !comment.is_empty() {
                    comment = format!("{comment} {more}");
                }
            } else if line.contains(&opens) {
                assert!(!comment.is_empty(), "{name}: no reason above {line}");
                text.push_str(&format!("{name} {function}\n  {comment}\n"));
                comment.clear();
            }
        }
    }
    text
}

#[test]
fn unsafe_code_is_listed_with_its_reasons() {
    let (path, text) = ("ctst-shim/snapshots/unsafe.txt", unsafe_code());
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::create_dir_all(root().join("ctst-shim/snapshots")).expect("make the folder");
        fs::write(root().join(path), &text).expect("write the list");
    }
    let kept = fs::read_to_string(root().join(path)).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).find(|(old, new)| old != new);
    assert!(kept == text, "{path} differs from the sources, first here: {differs:?}; run `make snapshots`");
}

/// The texts of `refusal("…` in the shim and in ctst-port.
fn refusals() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (name, code) in [LINKED[0], LINKED[1], PORT].into_iter().flat_map(sources) {
        let calls = code.replace("fn refusal(", "");
        for rest in calls.split("refusal(").skip(1) {
            let start = rest.find('"').unwrap_or_else(|| panic!("{name}: a refusal without a text"));
            let before = rest[..start].replace("format!(", "");
            assert!(before.chars().all(|c| c == '&' || c.is_whitespace()), "{name}: {before}");
            let text = rest[start + 1..].split('"').next().expect("split gives something");
            found.insert(text.to_owned());
        }
    }
    found
}

#[test]
fn every_refusal_is_provoked_by_a_test() {
    let list = read("ctst-shim/tests/refusals.txt");
    let mut listed = BTreeMap::new();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let (text, by) = line.rsplit_once(" = ").unwrap_or_else(|| panic!("{line}"));
        assert!(listed.insert(text.to_owned(), by).is_none(), "twice: {text}");
    }
    let real = refusals();
    assert!(real.len() > 20, "{real:?}");
    let missing: Vec<_> = real.iter().filter(|text| !listed.contains_key(*text)).collect();
    assert!(missing.is_empty(), "not in ctst-shim/tests/refusals.txt: {missing:?}");
    let gone: Vec<_> = listed.keys().filter(|text| !real.contains(*text)).collect();
    assert!(gone.is_empty(), "no longer refused: {gone:?}");
    let tests: String = [
        "ctst-shim/tests/caller.rs",
        "ctst-shim/tests/policy/mod.rs",
        "ctst-shim/tests/strict/mod.rs",
        "ctst-shim/src/group.rs",
        "tests/strict.rs",
        "tests/limits.rs",
        "tests/port.rs",
    ]
    .iter()
    .filter_map(|path| fs::read_to_string(root().join(path)).ok())
    .collect();
    for (text, by) in &listed {
        let known =
            by.strip_prefix("not: ").map_or_else(|| tests.contains(&format!("fn {by}()")), |why| why.len() > 20);
        assert!(known, "{text}: there is no test {by}");
    }
}
