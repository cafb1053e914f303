//! No input makes the parser, the checker, the renderer or the formatter panic; no span leaves the file; and the layout of a
//! file is reached in one step and means the same.

use containust_lang::{Severity, check, format, render};

pub(crate) fn run(bytes: &[u8]) {
    let env = |name: &str| (name.len() < 3).then(|| name.repeat(3));
    let outcome = check("fuzz.ctst", bytes, "fuzz", &env);
    let errors = outcome.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error);
    assert_eq!(outcome.composition.is_none(), errors);
    for diagnostic in &outcome.diagnostics {
        for mark in std::iter::once(&diagnostic.at).chain(&diagnostic.related) {
            let range = mark.span.range();
            assert!(range.start <= range.end && range.end <= bytes.len());
        }
    }
    assert_eq!(render(&outcome.diagnostics, bytes, true).is_empty(), outcome.diagnostics.is_empty());

    let Ok(once) = format("fuzz.ctst", bytes) else { return };
    let twice = format("fuzz.ctst", once.as_bytes());
    assert_eq!(twice.as_ref(), Ok(&once), "a second time changes something");
    let again = check("fuzz.ctst", once.as_bytes(), "fuzz", &env);
    assert_eq!(again.composition.is_some(), outcome.composition.is_some(), "{once}");
}
