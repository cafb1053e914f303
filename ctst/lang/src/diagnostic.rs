//! Findings about a file: where, what, and what to do about it.

use std::collections::HashSet;

use serde::Serialize;

use crate::codes::{Code, Severity};

/// How many findings are kept. A binary file taken for a composition would otherwise have millions of them.
pub const MAX_DIAGNOSTICS: usize = 1000;

/// Bytes `start..end` of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// From byte offsets. Sources of more than 4 GiB are refused before the first span is made.
    pub(crate) fn new(start: usize, end: usize) -> Span {
        let narrow = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Span { start: narrow(start), end: narrow(end) }
    }

    /// From the start of `self` to the end of `other`.
    pub(crate) fn to(self, other: Span) -> Span {
        Span { start: self.start, end: other.end.max(self.start) }
    }

    /// Whether all of `other` is in it.
    pub(crate) fn contains(self, other: Span) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The bytes as a range of indices.
    #[must_use]
    pub fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The text it covers; empty if it does not fit the source.
    #[must_use]
    pub fn text(self, source: &str) -> &str {
        source.get(self.range()).unwrap_or_default()
    }
}

/// A place in the file with what there is to say about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The file's name: what [`crate::check`] was given, or what the loader calls an imported one.
    pub file: String,
    /// Which file: 0 is the one that is checked, any other number the one at that place, from 1, of
    /// [`crate::Outcome::imports`].
    #[serde(skip)]
    pub source: usize,
    /// The bytes of that file.
    #[serde(skip)]
    pub span: Span,
    /// Line of the first character, from 1.
    pub line: usize,
    /// Column of the first character, in characters from 1.
    pub column: usize,
    /// Line of the end.
    pub end_line: usize,
    /// Column one past the last character.
    pub end_column: usize,
    /// What is said beside the source line; may be empty.
    pub label: String,
}

impl Mark {
    fn new(span: Span, label: String) -> Mark {
        Mark { file: String::new(), source: 0, span, line: 0, column: 0, end_line: 0, end_column: 0, label }
    }
}

/// One finding. Its serialised form is an element of `--format json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Where.
    #[serde(flatten)]
    pub at: Mark,
    /// Which kind of finding.
    pub code: Code,
    /// How bad.
    pub severity: Severity,
    /// What is wrong, one line.
    pub message: String,
    /// What would have been right here.
    pub expected: Option<String>,
    /// How to mend it.
    pub help: Option<String>,
    /// Other places that have to do with it.
    pub related: Vec<Mark>,
}

impl Diagnostic {
    pub(crate) fn new(code: Code, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            at: Mark::new(span, String::new()),
            code,
            severity: code.severity(),
            message: message.into(),
            expected: None,
            help: None,
            related: Vec::new(),
        }
    }

    pub(crate) fn label(mut self, label: impl Into<String>) -> Diagnostic {
        self.at.label = label.into();
        self
    }

    pub(crate) fn expected(mut self, expected: impl Into<String>) -> Diagnostic {
        self.expected = Some(expected.into());
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn help_if(mut self, help: Option<String>) -> Diagnostic {
        self.help = help.or(self.help);
        self
    }

    pub(crate) fn related(mut self, span: Span, label: impl Into<String>) -> Diagnostic {
        self.related.push(Mark::new(span, label.into()));
        self
    }
}

/// Collects findings up to [`MAX_DIAGNOSTICS`].
#[derive(Debug, Default)]
pub(crate) struct Report {
    found: Vec<Diagnostic>,
    /// What was said where: a template's mistake is found with each of its heirs.
    said: HashSet<(Code, Span, String)>,
    errors: bool,
    overflow: Option<Span>,
    muted: bool,
}

impl Report {
    /// Whether findings are dropped, because they are made for a second time.
    pub(crate) fn mute(&mut self, muted: bool) {
        self.muted = muted;
    }

    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        if self.muted {
            return;
        }
        self.errors |= diagnostic.severity == Severity::Error;
        let key = (diagnostic.code, diagnostic.at.span, diagnostic.message.clone());
        if self.said.contains(&key) {
            return;
        }
        if self.found.len() < MAX_DIAGNOSTICS {
            self.said.insert(key);
            self.found.push(diagnostic);
        } else {
            self.overflow.get_or_insert(diagnostic.at.span);
        }
    }

    /// Whether more was found than is kept, so that looking further is useless.
    pub(crate) fn full(&self) -> bool {
        self.overflow.is_some()
    }

    /// Whether nothing was found at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.errors
    }

    /// All findings in the order of the files, with names, lines and columns. The files stand one behind the other in
    /// `text`; each has a name and a place where it begins.
    pub(crate) fn finish(mut self, text: &[u8], files: &[(&str, usize)]) -> Vec<Diagnostic> {
        if let Some(span) = self.overflow {
            self.found.push(
                Diagnostic::new(
                    Code::TooManyErrors,
                    span,
                    format!("more than {MAX_DIAGNOSTICS} findings; the rest is not shown"),
                )
                .help("mend the first ones and check again; if this is no .ctst file, give another one"),
            );
        }
        self.found.sort_by_key(|diagnostic| (diagnostic.code == Code::TooManyErrors, diagnostic.at.span.start));
        locate(&mut self.found, text);
        let lines: Vec<usize> = lines_before(text, files);
        for mark in marks(&mut self.found) {
            let source = files.partition_point(|(_, base)| *base <= mark.span.start as usize).saturating_sub(1);
            let Some((name, base)) = files.get(source) else { continue };
            (*name).clone_into(&mut mark.file);
            mark.source = source;
            mark.line -= lines[source];
            mark.end_line -= lines[source];
            let base = u32::try_from(*base).unwrap_or(u32::MAX);
            mark.span = Span { start: mark.span.start - base, end: mark.span.end - base };
        }
        self.found
    }
}

fn marks(found: &mut [Diagnostic]) -> impl Iterator<Item = &mut Mark> {
    found.iter_mut().flat_map(|d| std::iter::once(&mut d.at).chain(d.related.iter_mut()))
}

/// How many lines stand before each file.
fn lines_before(text: &[u8], files: &[(&str, usize)]) -> Vec<usize> {
    let mut cursor = Cursor::new(text);
    let bases = files.iter().map(|(_, base)| u32::try_from(*base).unwrap_or(u32::MAX));
    bases.map(|base| cursor.advance(base).0 - 1).collect()
}

/// Fills lines and columns in one walk over the source, however long its lines are.
fn locate(found: &mut [Diagnostic], source: &[u8]) {
    let mut offsets: Vec<u32> = marks(found).flat_map(|mark| [mark.span.start, mark.span.end]).collect();
    offsets.sort_unstable();
    offsets.dedup();
    let mut cursor = Cursor::new(source);
    let places: Vec<(usize, usize)> = offsets.iter().map(|&offset| cursor.advance(offset)).collect();
    let place = |offset: u32| offsets.binary_search(&offset).map_or((1, 1), |index| places[index]);
    for mark in marks(found) {
        (mark.line, mark.column) = place(mark.span.start);
        (mark.end_line, mark.end_column) = place(mark.span.end);
    }
}

/// Walks forward through a source and knows line and column.
pub(crate) struct Cursor<'a> {
    source: &'a [u8],
    at: usize,
    line: usize,
    column: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(source: &'a [u8]) -> Cursor<'a> {
        Cursor { source, at: 0, line: 1, column: 1 }
    }

    /// The line, from 1, of an offset that is not before the last one. The column is not known after that.
    pub(crate) fn line(&mut self, offset: u32) -> usize {
        let to = (offset as usize).clamp(self.at, self.source.len());
        // Stretches whose counts fit into a byte: of these a processor adds up many at once.
        let stretches = self.source[self.at..to].chunks(255);
        let ends = |stretch: &[u8]| stretch.iter().map(|byte| u8::from(*byte == b'\n')).sum::<u8>();
        self.line += stretches.map(|stretch| usize::from(ends(stretch))).sum::<usize>();
        self.at = to;
        self.line
    }

    /// Line and column, both from 1, of an offset that is not before the last one.
    pub(crate) fn advance(&mut self, offset: u32) -> (usize, usize) {
        let to = (offset as usize).clamp(self.at, self.source.len());
        for &byte in &self.source[self.at..to] {
            if byte == b'\n' {
                self.line += 1;
                self.column = 1;
            } else if byte & 0xC0 != 0x80 {
                self.column += 1;
            }
        }
        self.at = to;
        (self.line, self.column)
    }
}

/// A piece of the author's text for a message: in backticks, without control characters, cut where it is long.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut out = String::from("`");
    for (count, character) in text.chars().enumerate() {
        if count == LONGEST {
            out.push('…');
            break;
        }
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out.push('`');
    out
}

/// The candidate that `word` was probably meant to be.
pub(crate) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // Distances are quadratic in the lengths, and nothing that can be meant is longer than a name.
    if word.len() > 64 {
        return None;
    }
    let lower = word.to_ascii_lowercase();
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(word.len()) <= allowed && *candidate != word)
        .map(|candidate| (strsim::osa_distance(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_characters() {
        let source = "äö\nüx\n";
        let mut report = Report::default();
        report.push(Diagnostic::new(Code::Unexpected, Span::new(7, 8), "x"));
        report.push(Diagnostic::new(Code::Unexpected, Span::new(2, 4), "ö"));
        let found = report.finish(source.as_bytes(), &[("f", 0)]);
        let places: Vec<_> = found.iter().map(|d| (d.at.line, d.at.column, d.at.end_line, d.at.end_column)).collect();
        assert_eq!(places, [(1, 2, 1, 3), (2, 2, 2, 3)]);
    }

    #[test]
    fn nearest_spelling() {
        assert_eq!(nearest("enviroment", ["image", "environment"]), Some("environment"));
        assert_eq!(nearest("COMPONENT", ["component"]), Some("component"));
        assert_eq!(nearest("dbb", ["db", "web"]), Some("db"));
        assert_eq!(nearest("web", ["db", "cache"]), None);
    }

    #[test]
    fn shown_text_is_short_and_tame() {
        assert_eq!(shown("a\u{1b}[31m"), "`a\\u{1b}[31m`");
        assert!(shown(&"x".repeat(1_000_000)).chars().count() < 70);
    }
}
