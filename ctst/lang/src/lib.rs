//! The `.ctst` language: from a file's bytes to a checked composition, or to all of its errors.
//!
//! [`check`] is the door. It does no I/O (the environment is a function that the caller hands in), never panics, and
//! takes time linear in the input. `LANGUAGE.md` beside this crate is the reference of what is carried out.
#![forbid(unsafe_code)]

mod check;
pub mod codes;
mod diagnostic;
mod lex;
pub mod model;
mod parse;
mod render;
pub mod syntax;
mod text;
mod units;

pub use codes::{CODES, Code, Severity};
pub use diagnostic::{Diagnostic, MAX_DIAGNOSTICS, Mark, Span};
pub use parse::MAX_DEPTH;
pub use render::render;

use diagnostic::Report;

/// Largest file that is looked at, in bytes. Spans are 32 bits wide, and no composition comes near it.
pub const MAX_SOURCE: usize = 1 << 30;

/// What a check found.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The composition; `None` if there is an error among the diagnostics.
    pub composition: Option<model::Composition>,
    /// Errors and warnings in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

/// What a caller may add to a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inputs<'a> {
    /// Values of parameters (`PARAM`) by name. Of two for one name the last counts. They never appear in a diagnostic.
    pub params: &'a [(String, String)],
}

/// Checks a file without anything from outside but the environment: [`check_with`] with empty [`Inputs`].
#[must_use]
pub fn check(name: &str, bytes: &[u8], project: &str, env: &dyn Fn(&str) -> Option<String>) -> Outcome {
    check_with(name, bytes, project, env, &Inputs::default())
}

/// Checks a file.
///
/// `name` is the file's name for messages, `project` the composition's name, and `env` looks up the variables that
/// `${env.X}` names. Their values go into the composition and never into a diagnostic.
#[must_use]
pub fn check_with(
    name: &str,
    bytes: &[u8],
    project: &str,
    env: &dyn Fn(&str) -> Option<String>,
    inputs: &Inputs<'_>,
) -> Outcome {
    let mut report = Report::default();
    let composition = source(bytes, &mut report).and_then(|source| {
        let file = parse::file(source, &mut report);
        check::composition(source, &file, project, env, inputs, &mut report)
    });
    Outcome { composition, diagnostics: report.finish(name, bytes) }
}

/// Parses a file without checking what it means; the tree is `None` if the file is not UTF-8 or too large.
#[must_use]
pub fn parse(name: &str, bytes: &[u8]) -> (Option<syntax::File>, Vec<Diagnostic>) {
    let mut report = Report::default();
    let file = source(bytes, &mut report).map(|source| parse::file(source, &mut report));
    (file, report.finish(name, bytes))
}

fn source<'a>(bytes: &'a [u8], report: &mut Report) -> Option<&'a str> {
    if bytes.len() > MAX_SOURCE {
        report.push(
            Diagnostic::new(
                Code::TooLarge,
                Span::default(),
                format!("the file has {} bytes, more than {MAX_SOURCE}", bytes.len()),
            )
            .help("give a .ctst file"),
        );
        return None;
    }
    match std::str::from_utf8(bytes) {
        Ok(source) => Some(source),
        Err(error) => {
            let at = error.valid_up_to();
            let end = at + error.error_len().unwrap_or(bytes.len() - at);
            report.push(
                Diagnostic::new(
                    Code::NotUtf8,
                    Span::new(at, end),
                    format!("the file is not UTF-8: invalid byte at offset {at}"),
                )
                .label("not a character")
                .expected("UTF-8")
                .help("save the file as UTF-8; a binary file is no composition"),
            );
            None
        }
    }
}
