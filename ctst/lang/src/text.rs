//! Strings: from the source's characters to what they mean, and command lines to words.

use std::borrow::Cow;

use nom::Parser;
use nom::bytes::complete::tag;
use nom::combinator::{all_consuming, opt, rest};
use nom::sequence::{pair, preceded};

use crate::diagnostic::Span;
use crate::lex;
use crate::syntax::{Quote, Text};

/// A string's content, cut at its placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Literal(Cow<'a, str>),
    /// `${…}` at this span.
    Placeholder(Span, Placeholder<'a>),
    /// `${` without a form that is known.
    Malformed(Span),
}

/// `${path:-default}`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placeholder<'a> {
    /// Names with `.` between them.
    pub(crate) path: &'a str,
    pub(crate) default: Option<Cow<'a, str>>,
}

/// The string without quotes and escapes; placeholders stay as they are written.
pub(crate) fn unquoted(source: &str, text: Text) -> Cow<'_, str> {
    let lines = lines(source, text);
    match (text.quote, lines.as_slice()) {
        (_, []) => Cow::Borrowed(""),
        (_, [only]) if !(only.escapes && only.raw.contains('\\')) => Cow::Borrowed(only.raw),
        (_, lines) => Cow::Owned(lines.iter().map(|line| unescape(line.raw, line.escapes)).collect()),
    }
}

/// A string that means what it looks like: without escapes and placeholders, on one line.
pub(crate) fn simple(source: &str, text: Text) -> Option<&str> {
    let quote = text.quote.len();
    let inner = Span { start: text.span.start + quote, end: text.span.end.saturating_sub(quote) }.text(source);
    let simple = text.quote == Quote::Plain && !inner.bytes().any(|byte| byte == b'$' || byte == b'\\');
    simple.then_some(inner)
}

/// The string cut at its placeholders. Adjacent literals are joined, so that most strings are one piece.
pub(crate) fn pieces(source: &str, text: Text) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    match text.quote {
        Quote::Plain => cut(&whole(source, text), &mut pieces),
        Quote::Triple => lines(source, text).iter().for_each(|line| cut(line, &mut pieces)),
    }
    pieces
}

/// A stretch of a string that stands in the source as one.
struct Line<'a> {
    raw: &'a str,
    /// Offset in the source.
    start: usize,
    escapes: bool,
}

fn lines(source: &str, text: Text) -> Vec<Line<'_>> {
    let whole = whole(source, text);
    match text.quote {
        Quote::Plain => vec![whole],
        Quote::Triple => block(whole.raw, whole.start),
    }
}

/// All that stands between the quotes.
fn whole(source: &str, text: Text) -> Line<'_> {
    let quote = text.quote.len();
    let inner = Span { start: text.span.start + quote, end: text.span.end.saturating_sub(quote) };
    Line { raw: inner.text(source), start: inner.start as usize, escapes: text.quote == Quote::Plain }
}

/// A block string's lines without the indentation that all of them share. A first line that is blank is dropped,
/// and so is the indentation before closing quotes that stand alone on the last line.
fn block(raw: &str, start: usize) -> Vec<Line<'_>> {
    let blank = |line: &str| line.chars().all(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
    let mut lines = Vec::new();
    let mut at = start;
    for raw in raw.split_inclusive('\n') {
        lines.push(Line { raw, start: at, escapes: false });
        at += raw.len();
    }
    let opened = lines.first().is_some_and(|line| line.raw.ends_with('\n') && blank(line.raw));
    let first = usize::from(opened);
    let indentation = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
    // Text beside the opening quotes has no indentation to compare with.
    let compared = lines.iter().skip(1);
    let closing = lines.last().filter(|line| lines.len() > 1 && !line.raw.ends_with('\n') && blank(line.raw));
    let common = compared
        .filter(|line| !blank(line.raw))
        .chain(closing)
        .map(|line| indentation(line.raw))
        .min()
        .unwrap_or_default();

    let mut out = Vec::with_capacity(lines.len());
    for (number, line) in lines.iter().enumerate().skip(first) {
        let cut = if number == 0 { 0 } else { common.min(indentation(line.raw)) };
        let raw = line.raw.get(cut..).unwrap_or_default();
        match raw.strip_suffix("\r\n") {
            None if blank(raw) && !raw.ends_with('\n') => {}
            None => out.push(Line { raw, start: line.start + cut, escapes: false }),
            Some(text) => {
                out.push(Line { raw: text, start: line.start + cut, escapes: false });
                out.push(Line { raw: "\n", start: line.start + cut + text.len() + 1, escapes: false });
            }
        }
    }
    out
}

/// The parser has reported escapes that do not exist; here they only must not do harm.
fn unescape(raw: &str, escapes: bool) -> Cow<'_, str> {
    if !escapes || !raw.contains('\\') {
        return Cow::Borrowed(raw);
    }
    let mut out = String::with_capacity(raw.len());
    let mut left = raw;
    while let Some((before, after)) = left.split_once('\\') {
        out.push_str(before);
        left = match lex::escape(after) {
            Ok((next, character)) => {
                out.push(character);
                next
            }
            Err(_) => after,
        };
    }
    out.push_str(left);
    Cow::Owned(out)
}

fn cut<'a>(line: &Line<'a>, pieces: &mut Vec<Piece<'a>>) {
    let mut left = line.raw;
    let literal = |text: &'a str, pieces: &mut Vec<Piece<'a>>| {
        let text = unescape(text, line.escapes);
        match pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Literal(last)) => last.to_mut().push_str(&text),
            _ => pieces.push(Piece::Literal(text)),
        }
    };
    let opening = |left: &str| {
        let mut dollars = left.bytes().enumerate().filter(|(_, byte)| *byte == b'$').map(|(at, _)| at);
        dollars.find(|at| left.as_bytes().get(at + 1) == Some(&b'{'))
    };
    while let Some(dollar) = opening(left) {
        let before = &left[..dollar];
        if let Some(before) = before.strip_suffix('$') {
            literal(before, pieces);
            literal("${", pieces);
            left = &left[dollar + 2..];
            continue;
        }
        literal(before, pieces);
        let from = line.start + (line.raw.len() - left.len()) + dollar;
        let inner = &left[dollar + 2..];
        let Some(end) = inner.find('}') else {
            pieces.push(Piece::Malformed(Span::new(from, line.start + line.raw.trim_end().len())));
            return;
        };
        let span = Span::new(from, from + 2 + end + 1);
        pieces.push(match placeholder(&inner[..end], line.escapes) {
            Some(placeholder) => Piece::Placeholder(span, placeholder),
            None => Piece::Malformed(span),
        });
        left = &inner[end + 1..];
    }
    literal(left, pieces);
}

fn placeholder(inner: &str, escapes: bool) -> Option<Placeholder<'_>> {
    let default = opt(preceded(tag(":-"), rest));
    let (_, (path, default)) = all_consuming(pair(lex::placeholder_path, default)).parse(inner).ok()?;
    if default.is_some_and(|text: &str| text.contains("${")) {
        return None;
    }
    Some(Placeholder { path, default: default.map(|text| unescape(text, escapes)) })
}

/// A part of a string after interpolation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part<'a> {
    pub(crate) text: Cow<'a, str>,
    /// Whether the author wrote it, as opposed to a placeholder's value.
    pub(crate) literal: bool,
    /// The file that it is written in.
    pub(crate) file: usize,
    /// Whether it is the name of a secret that stands there, whose value nobody knows yet.
    pub(crate) secret: bool,
}

/// The parts as one text.
pub(crate) fn joined<'a>(parts: &[Part<'a>]) -> Cow<'a, str> {
    match parts {
        [only] => only.text.clone(),
        parts => {
            let mut text = String::with_capacity(parts.iter().map(|part| part.text.len()).sum());
            parts.iter().for_each(|part| text.push_str(&part.text));
            text.into()
        }
    }
}

/// Words of a command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) words: Vec<String>,
    /// A character that a shell would act on and that stands in no quotes.
    pub(crate) operator: Option<char>,
}

/// Splits a command line as a POSIX shell would, quoting and field splitting only: blanks separate, `'…'` takes all
/// as it stands, in `"…"` a backslash escapes `"`, `\`, `$` and a backquote, elsewhere it escapes whatever follows. A
/// placeholder's value is split at its blanks unless quoted; quotes inside of it mean nothing. `None`: a quote is
/// not closed.
pub(crate) fn words(parts: &[Part<'_>]) -> Option<Words> {
    #[derive(PartialEq, Clone, Copy)]
    enum Quoted {
        No,
        Single,
        Double,
    }
    let mut out = Words::default();
    let mut word: Option<String> = None;
    let mut quoted = Quoted::No;
    let mut characters = parts.iter().flat_map(|part| part.text.chars().map(|c| (c, part.literal))).peekable();
    while let Some((c, literal)) = characters.next() {
        match (quoted, c) {
            (Quoted::No, ' ' | '\t' | '\n' | '\r') => out.words.extend(word.take()),
            _ if !literal => word.get_or_insert_default().push(c),
            (Quoted::No, '\'') => {
                quoted = Quoted::Single;
                word.get_or_insert_default();
            }
            (Quoted::No, '"') => {
                quoted = Quoted::Double;
                word.get_or_insert_default();
            }
            (Quoted::Single, '\'') | (Quoted::Double, '"') => quoted = Quoted::No,
            (Quoted::No, '\\') => match characters.next() {
                Some((next, _)) => word.get_or_insert_default().push(next),
                None => return None,
            },
            (Quoted::Double, '\\') => {
                let next = characters.next_if(|(next, _)| matches!(next, '"' | '\\' | '$' | '`'));
                word.get_or_insert_default().push(next.map_or('\\', |(next, _)| next));
            }
            (Quoted::Single, c) => word.get_or_insert_default().push(c),
            (Quoted::No | Quoted::Double, c) => {
                let acts = match c {
                    '|' | '&' | ';' | '<' | '>' => quoted == Quoted::No,
                    '`' => true,
                    '$' => {
                        characters.peek().is_some_and(|(next, _)| next.is_ascii_alphabetic() || "_({".contains(*next))
                    }
                    _ => false,
                };
                if acts {
                    out.operator.get_or_insert(c);
                }
                word.get_or_insert_default().push(c);
            }
        }
    }
    if quoted != Quoted::No {
        return None;
    }
    out.words.extend(word);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(source: &str) -> Text {
        Text { span: Span::new(0, source.len()), quote: Quote::Plain }
    }

    fn triple(source: &str) -> String {
        unquoted(source, Text { span: Span::new(0, source.len()), quote: Quote::Triple }).into_owned()
    }

    #[test]
    fn escapes() {
        let source = r#""a\"b\\c\n\t\r\u{e4}\u{1F600}""#;
        assert_eq!(unquoted(source, plain(source)), "a\"b\\c\n\t\rä😀");
    }

    #[test]
    fn block_strings_lose_their_indentation() {
        assert_eq!(triple("\"\"\"\n    a\n      b\n\n    c\n    \"\"\""), "a\n  b\n\nc\n");
        assert_eq!(triple("\"\"\"\n    a\n  \"\"\""), "  a\n");
        assert_eq!(triple("\"\"\"a\n  b\"\"\""), "a\nb");
        assert_eq!(triple("\"\"\"a\\n\"\"\""), "a\\n");
        assert_eq!(triple("\"\"\"\r\n\ta\r\n\tb\r\n\t\"\"\""), "a\nb\n");
        assert_eq!(triple("\"\"\"\"\"\""), "");
        assert_eq!(triple("\"\"\"\n\"\"\""), "");
    }

    #[test]
    fn placeholders() {
        let source = r#""a${db.host}$${x}$y${env.X:-1\"2}""#;
        let placeholder = |from, to, path: &'static str, default: Option<&str>| {
            let placeholder = Placeholder { path, default: default.map(|text| text.to_owned().into()) };
            Piece::Placeholder(Span::new(from, to), placeholder)
        };
        assert_eq!(
            pieces(source, plain(source)),
            [
                Piece::Literal("a".into()),
                placeholder(2, 12, "db.host", None),
                Piece::Literal("${x}$y".into()),
                placeholder(19, 33, "env.X", Some("1\"2")),
            ]
        );
        for bad in [
            r#""${""#,
            r#""${}""#,
            r#""${a b}""#,
            r#""${env.A:-${env.B}}""#,
            r#""${env.A?x}""#,
            r#""${a.}""#,
            r#""${.a}""#,
            r#""${a..b}""#,
        ] {
            assert!(matches!(pieces(bad, plain(bad))[0], Piece::Malformed(_)), "{bad}");
        }
    }

    fn split(text: &str) -> Option<Vec<String>> {
        words(&[Part { text: text.into(), literal: true, file: 0, secret: false }]).map(|words| words.words)
    }

    #[test]
    fn words_are_split_like_a_shell_does() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("  a  b\tc\n", &["a", "b", "c"]),
            ("a 'b  c' \"d e\"f", &["a", "b  c", "d ef"]),
            ("a '' \"\"", &["a", "", ""]),
            (r"a\ b \'", &["a b", "'"]),
            (r#""a\"b\n\\""#, &[r#"a"b\n\"#]),
            (r"'a\'", &[r"a\"]),
        ];
        for (line, expected) in cases {
            assert_eq!(
                split(line).as_deref(),
                Some(expected.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>().as_slice())
            );
        }
        for open in ["'a", "\"a", "a\\"] {
            assert_eq!(split(open), None, "{open}");
        }
    }

    #[test]
    fn values_are_split_at_blanks_only() {
        let part = |text: &'static str, literal| Part { text: text.into(), literal, file: 0, secret: false };
        let line =
            [part("run ", true), part("a 'b c", false), part(" \"", true), part("d\" e", false), part("\"", true)];
        assert_eq!(words(&line).unwrap_or_default().words, ["run", "a", "'b", "c", "d\" e"]);
    }

    #[test]
    fn shell_operators_are_noticed() {
        let operator = |text: &str| {
            words(&[Part { text: text.into(), literal: true, file: 0, secret: false }]).and_then(|w| w.operator)
        };
        assert_eq!(operator("a | b"), Some('|'));
        assert_eq!(operator("a \"$HOME\""), Some('$'));
        assert_eq!(operator("a '$HOME' '|' \\| 5$ $"), None);
    }
}
