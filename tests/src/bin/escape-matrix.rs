//! Prints what became of every attempt of ctst-shim/ESCAPES.md, by kernel and mode: `escape-matrix FOLDER`. There the tests
//! leave `KERNEL.MODE` with the probe's verdicts, and `make` leaves `KERNEL.MODE.log` with what test programs said.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use containust_tests::escapes;

/// Results by test function or id.
type Column = BTreeMap<String, String>;

fn main() {
    let folder = std::env::args_os().nth(1).expect("escape-matrix FOLDER");
    let mut columns: BTreeMap<String, Column> = BTreeMap::new();
    for entry in fs::read_dir(Path::new(&folder)).expect("list the folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let text = fs::read_to_string(entry.path()).expect("read a file of results");
        let (column, results) = match name.strip_suffix(".log") {
            Some(column) => (column, functions(&text)),
            // `layers` and what else is not of a kernel.
            None if !name.starts_with(|c: char| c.is_ascii_digit()) => continue,
            None => (name.as_str(), verdicts(&text)),
        };
        columns.entry(column.to_owned()).or_default().extend(results);
    }

    print!("{:<5}", "");
    for name in columns.keys() {
        print!(" {name:>12}");
    }
    println!("  attempt");
    let mut counts: BTreeMap<&str, BTreeMap<&str, u32>> = BTreeMap::new();
    for row in escapes::rows() {
        print!("{:<5}", row.id);
        for (name, column) in &columns {
            let cell = cell(&row, column);
            *counts.entry(name).or_default().entry(cell).or_default() += 1;
            print!(" {cell:>12}");
        }
        println!("  {}", row.attempt);
    }
    println!();
    for (name, count) in counts {
        let count = |what: &str| count.get(what).copied().unwrap_or_default();
        let (ok, broken, skipped) = (count("ok"), count("BROKEN"), count("skipped"));
        println!("{name}: {ok} ok, {broken} broken, {skipped} skipped, {} not tried there", count("-"));
    }
}

fn cell(row: &escapes::Row, column: &Column) -> &'static str {
    let of = |test: &String| match test.as_str() {
        "inside" => column.get(&row.id),
        test => column.get(test.rsplit("::").next().unwrap_or(test)),
    };
    let found: Vec<&str> = row.tests.iter().filter_map(of).map(String::as_str).collect();
    match found.as_slice() {
        [] => "-",
        found if found.contains(&"BROKEN") => "BROKEN",
        found if found.contains(&"skipped") => "skipped",
        _ => "ok",
    }
}

/// `ID verdict details`.
fn verdicts(text: &str) -> Column {
    let words = text.lines().map(|line| line.split_whitespace());
    words.filter_map(|mut words| Some((words.next()?.to_owned(), words.next()?.to_owned()))).collect()
}

/// What libtest said: `test module::name ... ok`.
fn functions(text: &str) -> Column {
    let line = |line: &str| {
        let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
        let result = match result.split_whitespace().next()? {
            "ok" => "ok",
            "ignored," | "ignored" => "skipped",
            _ => "BROKEN",
        };
        Some((name.rsplit("::").next()?.to_owned(), result.to_owned()))
    };
    text.lines().filter_map(line).collect()
}
