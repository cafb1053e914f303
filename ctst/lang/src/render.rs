//! Diagnostics as text for a person.

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::codes::Severity;
use crate::diagnostic::{Diagnostic, Mark};

/// How much of a line is shown on either side of a mark, in bytes.
const CONTEXT: usize = 100;

/// Renders diagnostics with the source lines that they are about; `source` is what was checked. Of imported files only
/// the place is shown: see [`crate::Outcome::render`].
#[must_use]
pub fn render(diagnostics: &[Diagnostic], source: &[u8], color: bool) -> String {
    render_sources(diagnostics, &[source], color)
}

/// Renders diagnostics with the lines of several files: the one that was checked, then what it imports.
#[must_use]
pub fn render_sources(diagnostics: &[Diagnostic], sources: &[&[u8]], color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for diagnostic in diagnostics {
        out.push_str(&one(&renderer, diagnostic, sources));
        out.push_str("\n\n");
    }
    out
}

fn one(renderer: &Renderer, diagnostic: &Diagnostic, sources: &[&[u8]]) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(diagnostic.message.as_str()).id(diagnostic.code.as_str());
    let mut group = Group::with_title(title);
    let related = diagnostic.related.iter().map(|mark| (mark, AnnotationKind::Context));
    for (mark, kind) in std::iter::once((&diagnostic.at, AnnotationKind::Primary)).chain(related) {
        let origin = Origin::path(mark.file.as_str()).line(mark.line).char_column(mark.column);
        let Some(source) = sources.get(mark.source) else {
            group = group.element(origin);
            continue;
        };
        let (snippet, whole) = snippet(mark, source, kind);
        group = if whole {
            group.element(snippet.path(mark.file.as_str()))
        } else {
            // The renderer would count columns from where the line was cut.
            group.element(origin).element(snippet)
        };
    }
    if let Some(expected) = diagnostic.expected.as_ref().filter(|expected| !diagnostic.message.contains(*expected)) {
        group = group.element(Level::NOTE.message(format!("expected {expected}")));
    }
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    renderer.render(&[group] as &[Group<'_>])
}

/// The first line of what is marked, or a stretch of it: lines of a file that is no composition can be as long as the
/// file. Whether the line is there from its beginning comes with it.
fn snippet<'a>(mark: &'a Mark, source: &[u8], kind: AnnotationKind) -> (Snippet<'a, Annotation<'a>>, bool) {
    let start = (mark.span.start as usize).min(source.len());
    let before = &source[start.saturating_sub(CONTEXT)..start];
    let before = before.iter().rposition(|&byte| byte == b'\n').map_or(before, |newline| &before[newline + 1..]);
    let after = &source[start..source.len().min(start + 2 * CONTEXT)];
    let after = after.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let marked = after.len().min((mark.span.end as usize).saturating_sub(start));
    let [before, marked, rest] = [before, &after[..marked], &after[marked..]].map(String::from_utf8_lossy);
    let span = before.len()..before.len() + marked.len();
    let annotation = kind.span(span).label(Some(mark.label.as_str()).filter(|label| !label.is_empty()));
    let line = format!("{before}{marked}{}", rest.trim_end_matches('\r'));
    let whole = before.chars().count() + 1 == mark.column;
    (Snippet::source(line).line_start(mark.line).annotation(annotation), whole)
}
