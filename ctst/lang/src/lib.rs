//! The `.ctst` language: from a file's bytes to a checked composition, or to all of its errors.
//!
//! [`check`] is the door. It does no I/O (the environment is a function that the caller hands in), never panics, and
//! takes time linear in the input. `LANGUAGE.md` beside this crate is the reference of what is carried out.
#![forbid(unsafe_code)]

mod check;
pub mod codes;
mod diagnostic;
mod explain;
mod format;
mod lex;
pub mod model;
mod parse;
mod render;
mod schema;
mod sources;
pub mod syntax;
mod text;
mod units;

pub use check::image::registry_image;
pub use codes::{CODES, Code, Severity};
pub use diagnostic::{Diagnostic, MAX_DIAGNOSTICS, Mark, Span};
pub use explain::explain;
pub use format::format;
pub use parse::MAX_DEPTH;
pub use render::{render, render_sources};
pub use schema::{grammar, model_schema};
pub use units::shown as shown_size;

use std::fmt;

use diagnostic::Report;

/// Largest file that is looked at, in bytes. Spans are 32 bits wide, and no composition comes near it.
pub const MAX_SOURCE: usize = 1 << 30;

/// What a check found.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The composition; `None` if there is an error among the diagnostics.
    pub composition: Option<model::Composition>,
    /// Errors and warnings in the order of the files.
    pub diagnostics: Vec<Diagnostic>,
    /// The files that were imported, for showing what is wrong in them.
    pub imports: Vec<Imported>,
}

impl Outcome {
    /// Renders the diagnostics with the lines that they are about; `source` is what was checked.
    #[must_use]
    pub fn render(&self, source: &[u8], color: bool) -> String {
        let imports = self.imports.iter().map(|import| import.text.as_bytes());
        render_sources(&self.diagnostics, &std::iter::once(source).chain(imports).collect::<Vec<_>>(), color)
    }
}

/// A file that was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// What the loader calls it.
    pub name: String,
    /// What stands in it.
    pub text: String,
}

/// Finds imported files. The language does no I/O of its own.
pub trait Loader: Sync {
    /// Reads the file that `path` means in an IMPORT of the file `importing`: relative to the folder of that file, or
    /// else to the project's folder.
    ///
    /// What comes back is a name and the bytes. The name says which file it is: the same name is the same file. It is a
    /// path, absolute or relative to the folder of the file that is checked, and relative paths in the file are taken
    /// relative to its folder. `importing` is the name given to [`check_with`] or one that the loader gave.
    ///
    /// # Errors
    /// Why the file cannot be read: a fragment for a message, such as `no such file`.
    fn load(&self, importing: &str, path: &str) -> Result<(String, Vec<u8>), String>;

    /// Reads a file that a composition is made from, such as that of an `env_file`. `path` is absolute, or relative to the
    /// folder of the file that is checked. `None`: there is no such file.
    ///
    /// # Errors
    /// Why it cannot be read: a fragment for a message.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        let _ = path;
        Err("no files are read here".to_owned())
    }

    /// Reads what is to be found at an `https://` address. Without a `pin` (64 lower-case hexadecimal digits) the loader has
    /// to know the digest from elsewhere, or refuse: what the network says today must be what it said when somebody
    /// looked. A `pin` is checked by the caller, too.
    ///
    /// # Errors
    /// Why it cannot be had, and what to do: a fragment for a message, and a whole line.
    fn fetch(&self, url: &str, pin: Option<&str>) -> Result<Vec<u8>, (String, String)> {
        let _ = (url, pin);
        Err(("nothing is fetched here".to_owned(), "import a local file".to_owned()))
    }
}

/// What a caller may add to a file.
#[derive(Clone, Copy, Default)]
pub struct Inputs<'a> {
    /// Values of parameters (`PARAM`) by name. Of two for one name the last counts. They never appear in a diagnostic.
    pub params: &'a [(String, String)],
    /// The profiles that are active. A component with `profiles` is deployed only if one of them is.
    pub profiles: &'a [String],
    /// Where imported files come from, and others that a composition is made from; without it both are refused.
    pub loader: Option<&'a dyn Loader>,
}

impl fmt::Debug for Inputs<'_> {
    /// Without the values, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.params.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Inputs")
            .field("params", &names)
            .field("profiles", &self.profiles)
            .field("loader", &self.loader.is_some())
            .finish()
    }
}

/// Checks a file without anything from outside but the environment: [`check_with`] with empty [`Inputs`].
#[must_use]
pub fn check(name: &str, bytes: &[u8], project: &str, env: &(dyn Fn(&str) -> Option<String> + Sync)) -> Outcome {
    check_with(name, bytes, project, env, &Inputs::default())
}

/// Checks a file.
///
/// `name` is the file's name for messages, `project` the composition's name where no STACK gives it one, and `env` looks up the variables that
/// `${env.X}` names. Their values go into the composition and never into a diagnostic.
#[must_use]
pub fn check_with(
    name: &str,
    bytes: &[u8],
    project: &str,
    env: &(dyn Fn(&str) -> Option<String> + Sync),
    inputs: &Inputs<'_>,
) -> Outcome {
    let mut report = Report::default();
    let Some(main) = source(bytes, &mut report) else {
        let diagnostics = report.finish(bytes, &[(name, 0)]);
        return Outcome { composition: None, diagnostics, imports: Vec::new() };
    };
    let (arena, mut second) = (syntax::Arena::new(), syntax::Arena::new());
    let (text, files) = sources::read(name, main, inputs.loader, (&arena, &mut second), &mut report);
    let composition = check::composition(&text, &files, project, env, inputs, &mut report);
    let places: Vec<(&str, usize)> = files.iter().map(|file| (file.name.as_str(), file.base)).collect();
    let diagnostics = report.finish(text.as_bytes(), &places);
    let imported = |file: &sources::Source<'_>| Imported {
        name: file.name.clone(),
        text: text[file.base..file.base + file.length].to_owned(),
    };
    Outcome { composition, diagnostics, imports: files.iter().skip(1).map(imported).collect() }
}

/// Parses a file without checking what it means; the tree, which lies in `arena`, is `None` if the file is not UTF-8 or
/// too large.
#[must_use]
pub fn parse<'t>(name: &str, bytes: &[u8], arena: &'t syntax::Arena) -> (Option<syntax::File<'t>>, Vec<Diagnostic>) {
    let mut report = Report::default();
    let file = source(bytes, &mut report).map(|source| parse::file(source, 0, arena, &mut report));
    (file, report.finish(bytes, &[(name, 0)]))
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
