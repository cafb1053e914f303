//! ctst-shim/ESCAPES.md as data: what is tried, by which test, and what works without a layer.

/// One attempt.
#[derive(Debug)]
pub struct Row {
    /// Such as `F01`.
    pub id: String,
    /// What is tried.
    pub attempt: String,
    /// `inside`, `file::function`, or `–`.
    pub tests: Vec<String>,
}

const LIST: &str = include_str!("../../ctst-shim/ESCAPES.md");

fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.trim_end().strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// Every attempt of the list, in its order.
#[must_use]
pub fn rows() -> Vec<Row> {
    let id = |text: &str| {
        let (group, number) = text.split_at_checked(1)?;
        (number.len() == 2 && group.chars().all(char::is_uppercase) && number.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.to_owned())
    };
    let row = |line: &str| {
        let cells = cells(line)?;
        let [first, attempt, _, tests] = cells.as_slice() else { return None };
        let tests = tests.split(", ").map(str::to_owned).collect();
        Some(Row { id: id(first)?, attempt: (*attempt).to_owned(), tests })
    };
    LIST.lines().filter_map(row).collect()
}

/// Sets of layers, and the ids of what works without them.
///
/// # Panics
/// If the list has no such table.
#[must_use]
pub fn layers() -> Vec<(Vec<&'static str>, Vec<&'static str>)> {
    let (_, table) = LIST.split_once("\n## Layers\n").expect("the list has a table of layers");
    let words = |text: &'static str| text.split_whitespace().collect();
    table
        .lines()
        .filter_map(cells)
        .skip(2)
        .filter_map(|cells| match cells.as_slice() {
            [layers, ids] => Some((words(layers), words(ids))),
            _ => None,
        })
        .collect()
}
