//! No input makes the parser, the checker or the renderer panic, and no span leaves the file.
#![no_main]

use containust_lang::{Severity, check, render};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let outcome = check("fuzz.ctst", bytes, "fuzz", &|name| (name.len() < 3).then(|| name.repeat(3)));
    let errors = outcome.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error);
    assert_eq!(outcome.composition.is_none(), errors);
    for diagnostic in &outcome.diagnostics {
        for mark in std::iter::once(&diagnostic.at).chain(&diagnostic.related) {
            let range = mark.span.range();
            assert!(range.start <= range.end && range.end <= bytes.len());
        }
    }
    assert_eq!(render(&outcome.diagnostics, bytes, true).is_empty(), outcome.diagnostics.is_empty());
});
