//! Lines of a Dockerfile: instructions with their flags and here-documents.
//!
//! What is meant by them is found where they are carried out, because variables depend on the image below.

use std::fmt;

use super::words::split;

/// Largest Dockerfile.
const MAX_FILE: usize = 1 << 20;

/// Something that is wrong in a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1; 0: no line's.
    pub line: usize,
    /// The line as it is written.
    pub source: String,
    /// What is wrong.
    pub text: String,
    /// What mends it.
    pub help: Option<String>,
}

/// With the line below it.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return match self.source.lines().next() {
                Some(step) => write!(f, "`{}`: {}", crate::error::text(step), self.text),
                None => write!(f, "{}", self.text),
            };
        }
        let (line, margin) = (self.line, " ".repeat(self.line.to_string().len()));
        let source = crate::error::text(self.source.trim_end());
        write!(f, "line {line}: {}\n{margin} |\n{line} | {source}\n{margin} |", self.text)
    }
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins, counted from 1.
    pub(super) number: usize,
    /// Its first line as it is written.
    pub(super) source: String,
    /// In upper case.
    pub(super) keyword: String,
    /// `--name` or `--name=value`, without the hyphens.
    pub(super) flags: Vec<(String, Option<String>)>,
    /// What follows, continued lines put together.
    pub(super) rest: String,
    pub(super) documents: Vec<Document>,
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    /// As it stands in the instruction.
    pub(super) word: String,
    /// What ends it.
    pub(super) name: String,
    /// Whether variables are filled in.
    pub(super) expands: bool,
    pub(super) content: String,
}

impl Line {
    pub(super) fn problem(&self, text: impl Into<String>) -> Problem {
        Problem { line: self.number, source: self.source.clone(), text: text.into(), help: None }
    }

    pub(super) fn problem_with(&self, text: impl Into<String>, help: impl Into<String>) -> Problem {
        Problem { help: Some(help.into()), ..self.problem(text) }
    }

    /// The words of a list in brackets.
    pub(super) fn list(&self) -> Option<Vec<String>> {
        list(&self.rest)
    }
}

pub(super) fn list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// All instructions, and the escape character.
pub(super) fn lines(text: &str) -> Result<(Vec<Line>, char), Problem> {
    let nowhere = |text: String| Problem { line: 0, source: String::new(), text, help: None };
    if text.len() > MAX_FILE {
        return Err(nowhere(format!("it has more than {MAX_FILE} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut physical = text.lines().enumerate().map(|(at, line)| (at + 1, line)).peekable();
    let mut escape = '\\';
    while let Some((number, line)) = physical.peek() {
        let directive = line.trim_start().strip_prefix('#').and_then(|line| line.split_once('='));
        let directive = directive.map(|(key, value)| (key.trim().to_ascii_lowercase(), value.trim()));
        match directive {
            Some((key, value)) if key == "escape" => {
                escape = match value {
                    "\\" => '\\',
                    "`" => '`',
                    _ => {
                        let (line, source) = (*number, (*line).to_owned());
                        let text = "the escape character is `\\` or a backtick".to_owned();
                        return Err(Problem { line, source, text, help: None });
                    }
                }
            }
            Some((key, _)) if matches!(key.as_str(), "syntax" | "check") => {}
            _ => break,
        }
        physical.next();
    }
    let mut lines = Vec::new();
    while let Some((number, first)) = physical.next() {
        if is_passed_over(first) {
            continue;
        }
        let mut whole = String::new();
        let mut part = first;
        loop {
            let (text, goes_on) = continued(part, escape);
            whole.push_str(text);
            // Comments and empty lines within an instruction are none of it.
            let next = goes_on.then(|| physical.by_ref().find(|(_, line)| !is_passed_over(line))).flatten();
            match next {
                Some((_, next)) => part = next,
                None => break,
            }
        }
        let mut line = instruction(number, first, whole.trim(), escape);
        for (word, tabs) in documents(&line, escape) {
            let (name, expands) = delimiter(&word[word.find("<<").unwrap_or(0) + 2 + usize::from(tabs)..]);
            let mut content = String::new();
            loop {
                let Some((_, text)) = physical.next() else {
                    return Err(line.problem(format!("the here-document `{name}` does not end")));
                };
                let text = if tabs { text.trim_start_matches('\t') } else { text };
                if text == name {
                    break;
                }
                content.push_str(text);
                content.push('\n');
            }
            line.documents.push(Document { word, name, expands, content });
        }
        lines.push(line);
    }
    Ok((lines, escape))
}

fn is_passed_over(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// A line without the escape character at its end, and whether there was one.
fn continued(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t', '\r']).strip_suffix(escape) {
        Some(text) => (text, true),
        None => (line.trim_end_matches('\r'), false),
    }
}

fn instruction(number: usize, source: &str, whole: &str, escape: char) -> Line {
    let (keyword, mut rest) = whole.split_once(char::is_whitespace).unwrap_or((whole, ""));
    let mut flags = Vec::new();
    loop {
        rest = rest.trim_start();
        let Some(flag) = rest.strip_prefix("--").and_then(|_| split(rest, escape).first().copied()) else { break };
        rest = &rest[flag.len()..];
        let (name, value) = match flag[2..].split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (&flag[2..], None),
        };
        flags.push((name.to_owned(), value));
    }
    let keyword = keyword.to_ascii_uppercase();
    let (source, rest) = (source.to_owned(), rest.to_owned());
    Line { number, source, keyword, flags, rest, documents: Vec::new() }
}

/// The words that begin a here-document, and whether it is without the tabs at its lines' beginnings.
fn documents(line: &Line, escape: char) -> Vec<(String, bool)> {
    if !matches!(line.keyword.as_str(), "RUN" | "COPY" | "ADD") || line.list().is_some() {
        return Vec::new();
    }
    let begins = |word: &&str| {
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<");
        rest.is_some_and(|rest| !rest.contains('<') && !rest.trim_start_matches('-').is_empty())
    };
    let words = split(&line.rest, escape).into_iter().filter(begins);
    words.map(|word| (word.to_owned(), word.contains("<<-"))).collect()
}

fn delimiter(written: &str) -> (String, bool) {
    let name: String = written.chars().filter(|c| !matches!(c, '"' | '\'' | '\\')).collect();
    let expands = name.len() == written.len();
    (name, expands)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<Line> {
        lines(text).unwrap().0
    }

    #[test]
    fn lines_are_put_together() {
        let text =
            "# syntax=docker/dockerfile:1\n\n# a comment\nfrom  x AS y\r\nRUN a \\\n  # within\n\n  && b\\\n c\n";
        let lines = of(text);
        assert_eq!((lines[0].number, lines[0].keyword.as_str(), lines[0].rest.as_str()), (4, "FROM", "x AS y"));
        assert_eq!((lines[1].number, lines[1].rest.as_str()), (5, "a   && b c"));
        assert_eq!(lines.len(), 2);
        let (lines, escape) = lines_with_escape("# escape=`\nRUN a `\n b\\\nUSER c");
        assert_eq!((lines.len(), lines[0].rest.as_str(), escape), (2, "a  b\\", '`'));
    }

    fn lines_with_escape(text: &str) -> (Vec<Line>, char) {
        lines(text).unwrap()
    }

    #[test]
    fn flags_and_documents_are_found() {
        let text = "COPY --from=a --chown=1:2 <<A <<-'B' /x/\none $x\nA\n\t\ttwo\n\tB\nRUN cat <<EOF > /y && echo <<< z\nz\nEOF\nRUN [\"a\", \"<<B\"]\n";
        let lines = of(text);
        let flags = [("from".to_owned(), Some("a".to_owned())), ("chown".to_owned(), Some("1:2".to_owned()))];
        assert_eq!(lines[0].flags, flags);
        let documents: Vec<_> =
            lines[0].documents.iter().map(|d| (d.name.as_str(), d.expands, d.content.as_str())).collect();
        assert_eq!(documents, [("A", true, "one $x\n"), ("B", false, "two\n")]);
        assert_eq!((lines[1].number, lines[1].documents[0].content.as_str()), (6, "z\n"));
        assert_eq!(lines[1].documents.len(), 1);
        assert_eq!(lines[2].list().unwrap(), ["a", "<<B"]);
        assert_eq!(super::lines("FROM x\nRUN <<E\na\n").unwrap_err().line, 2);
        assert_eq!(super::lines("# escape=x\n").unwrap_err().line, 1);
    }
}
