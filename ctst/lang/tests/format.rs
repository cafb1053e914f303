//! Formatting changes nothing but the layout, and a second time nothing at all.

use std::fs;
use std::path::Path;

use containust_lang::syntax::Arena;
use containust_lang::{format, parse};
use proptest::prelude::*;
use proptest::sample::{Index, select};

fn all(folder: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "ctst") {
            files.push(fs::read_to_string(path).unwrap_or_default());
        }
    }
}

fn files() -> Vec<String> {
    let mut files = Vec::new();
    all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus"), &mut files);
    let page = include_str!("../LANGUAGE.md");
    files.extend(page.split("```ctst").skip(1).filter_map(|part| {
        let (_, example) = part.split_once('\n')?;
        Some(example.split("```").next()?.to_owned())
    }));
    assert!(files.len() > 50);
    files
}

/// The tree without its places, and all that is not blank.
fn meaning(source: &str) -> (String, String) {
    let arena = Arena::new();
    let (tree, found) = parse("f", source.as_bytes(), &arena);
    assert!(found.is_empty(), "{found:?}\n{source}");
    let tree = format!("{tree:?}");
    let mut shape = String::new();
    for part in tree.split("Span { ") {
        let places = part.starts_with("start: ");
        shape.push_str(if places { part.split_once('}').map_or(part, |(_, rest)| rest) } else { part });
    }
    let characters = source.trim_start_matches('\u{feff}').chars().filter(|c| !c.is_whitespace()).collect();
    (shape, characters)
}

fn holds(source: &str) {
    let Ok(formatted) = format("f", source.as_bytes()) else { return };
    assert_eq!(meaning(source), meaning(&formatted), "{source}\n---\n{formatted}");
    let again = format("f", formatted.as_bytes());
    assert_eq!(again.as_deref(), Ok(formatted.as_str()), "{source}");
    assert!(formatted.lines().all(|line| line.trim_end() == line || formatted.contains("\"\"\"")), "{formatted}");
}

#[test]
fn the_corpus() {
    let formatted = files().iter().filter(|file| format("f", file.as_bytes()).is_ok()).count();
    assert!(formatted > 45, "only {formatted} files can be parsed");
    files().iter().for_each(|file| holds(file));
}

const BLANKS: &[&str] = &[" ", "\n", "\n\n\n", "\t", "\r\n", " // x\n", "#\n", "\n  # { \" \n\n", ",", ""];

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// White space, comments and commas put in and taken out at any place where that leaves a file.
    #[test]
    fn dressed_files(file in select(files()), changes in prop::collection::vec((any::<Index>(), select(BLANKS)), 1..12)) {
        let mut source = file;
        for (at, blank) in changes {
            let gaps: Vec<usize> = source
                .char_indices()
                .filter(|(_, c)| c.is_whitespace() || "{}[]()=,".contains(*c))
                .map(|(at, _)| at)
                .collect();
            if gaps.is_empty() {
                break;
            }
            let at = *at.get(&gaps);
            let mut changed = source.clone();
            let end = if source[at..].starts_with(char::is_whitespace) { at + 1 } else { at };
            changed.replace_range(at..end, blank);
            if parse("f", changed.as_bytes(), &Arena::new()).1.is_empty() {
                source = changed;
            }
        }
        holds(&source);
    }
}
