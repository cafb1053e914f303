//! The one layout of a file. Line breaks stay where the author put them, so that nothing that a line break decides can
//! change; spaces, indentation and blank lines do not.

use crate::diagnostic::{Diagnostic, Report, Span};
use crate::lex;
use crate::parse;
use crate::syntax::{Arena, File, StatementKind};

/// Brings a file into the one layout: two spaces for each level, one between words, no more than one blank line, and
/// each statement on lines of its own. Comments are kept. A second time it changes nothing.
///
/// # Errors
/// What keeps the file from being parsed; `name` is its name for that.
pub fn format(name: &str, bytes: &[u8]) -> Result<String, Vec<Diagnostic>> {
    let mut report = Report::default();
    let arena = Arena::new();
    let parsed = crate::source(bytes, &mut report).map(|source| (source, parse::file(source, 0, &arena, &mut report)));
    match parsed {
        Some((source, file)) if !report.has_errors() => Ok(Layout::default().of(&tokens(source, &file))),
        _ => Err(report.finish(bytes, &[(name, 0)])),
    }
}

/// A token or a comment.
#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    /// Line ends before it.
    breaks: usize,
    /// Whether nothing at all stands before it.
    glued: bool,
    /// Whether a statement begins with it.
    statement: bool,
    /// Whether it is of an EXPOSE, whose parts stand without spaces.
    expose: bool,
}

impl Token<'_> {
    fn is_comment(&self) -> bool {
        self.text.starts_with("//") || self.text.starts_with('#')
    }

    fn opens(&self) -> bool {
        matches!(self.text, "{" | "[" | "(")
    }

    fn closes(&self) -> bool {
        matches!(self.text, "}" | "]" | ")")
    }
}

fn tokens<'a>(source: &'a str, file: &File<'_>) -> Vec<Token<'a>> {
    let mut statements = file.statements.iter().peekable();
    let mut exposes: Option<Span> = None;
    let mut tokens = Vec::new();
    let mut at = source.strip_prefix('\u{feff}').map_or(0, |rest| source.len() - rest.len());
    loop {
        let rest = &source[at..];
        let text = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let blank = &rest[..rest.len() - text.len()];
        at += blank.len();
        if text.is_empty() {
            return tokens;
        }
        let next = statements.next_if(|statement| statement.span.start as usize <= at);
        if let Some(statement) = next {
            exposes = Some(statement.span).filter(|_| matches!(statement.kind, StatementKind::Expose(_)));
        }
        let expose = exposes.is_some_and(|span| at < span.end as usize);
        let comment = text.starts_with("//") || text.starts_with('#');
        let length = match text.find('\n') {
            Some(end) if comment => end,
            None if comment => text.len(),
            _ if expose => expose_length(text),
            _ => length(text),
        };
        tokens.push(Token {
            text: if comment { text[..length].trim_end() } else { &text[..length] },
            breaks: blank.matches('\n').count(),
            glued: blank.is_empty(),
            statement: next.is_some(),
            expose: expose && !comment,
        });
        at += length;
    }
}

/// Length of the token that a text begins with.
fn length(text: &str) -> usize {
    if text.starts_with('"') {
        return parse::string_end(text).0;
    }
    let word = lex::path(text).or_else(|_| lex::number(text)).map(|(_, token)| token.len());
    word.unwrap_or_else(|_| match text {
        _ if text.starts_with("->") || text.starts_with("+=") => 2,
        _ => text.chars().next().map_or(0, char::len_utf8),
    })
}

/// The same within an EXPOSE: what stands together is one token, but for arrows and quoted names.
fn expose_length(text: &str) -> usize {
    if text.starts_with('"') || text.starts_with("->") {
        return length(text);
    }
    let ends = |(at, c): (usize, char)| {
        let rest = &text[at..];
        c.is_ascii_whitespace() || "\"#".contains(c) || rest.starts_with("->") || rest.starts_with("//")
    };
    text.char_indices().skip(1).find(|&place| ends(place)).map_or(text.len(), |(at, _)| at)
}

/// A bracket that is open.
struct Open {
    bracket: char,
    /// Level of the line that it is on.
    level: usize,
}

#[derive(Default)]
struct Layout {
    out: String,
    open: Vec<Open>,
    /// Level of the current line.
    level: usize,
}

impl Layout {
    fn of(mut self, tokens: &[Token<'_>]) -> String {
        let mut before: Option<&Token<'_>> = None;
        for token in tokens {
            match before {
                None => {}
                Some(before) if self.breaks(before, token) => self.line(before, token),
                Some(before) if spaced(before, token) => self.out.push(' '),
                Some(_) => {}
            }
            if token.closes() {
                self.open.pop();
            }
            self.out.push_str(token.text);
            if token.opens() {
                self.open.extend(token.text.chars().map(|bracket| Open { bracket, level: self.level }));
            }
            before = Some(token);
        }
        if !self.out.is_empty() {
            self.out.push('\n');
        }
        self.out
    }

    /// Whether a token goes to a new line.
    fn breaks(&self, before: &Token<'_>, token: &Token<'_>) -> bool {
        if before.is_comment() || token.statement {
            return true;
        }
        if token.breaks == 0 {
            return false;
        }
        let in_list = self.open.last().is_some_and(|open| open.bracket == '[');
        let joined = match token.text {
            _ if token.is_comment() => false,
            "=" | "+=" | "->" | "(" | "," | ":" => true,
            "{" => !in_list,
            _ => matches!(before.text, "=" | "+=" | "->"),
        };
        !joined
    }

    fn line(&mut self, before: &Token<'_>, token: &Token<'_>) {
        self.out.push('\n');
        if token.breaks > 1 && !before.opens() && !token.closes() {
            self.out.push('\n');
        }
        self.level = match self.open.last() {
            Some(open) if token.closes() => open.level,
            Some(open) => open.level + 1,
            // What goes on with a statement.
            None => usize::from(!token.statement && !token.is_comment()),
        };
        self.out.extend(std::iter::repeat_n("  ", self.level));
    }
}

fn spaced(before: &Token<'_>, token: &Token<'_>) -> bool {
    if token.is_comment() {
        return true;
    }
    if before.expose && token.expose {
        return !token.glued || before.text == "->" || token.text == "->";
    }
    !(matches!(before.text, "(" | "[")
        || matches!(token.text, ")" | "]" | "," | ":" | "(")
        || (before.text == "{" && token.text == "}"))
}

#[cfg(test)]
mod tests {
    use super::format;

    #[test]
    fn layout() {
        let untidy = "\u{feff}\n\n// one\nSTACK   \"x\"\n\n\n\nPARAM a :int=1   // two  \nTEMPLATE t( a ,b=[ 1,2 ] ) \n{ image=\"i\" env { }\n\n  # three\n\n\tcommand = [\"a\"\n\"b\",\n]\n\n}\nCOMPONENT c FROM  t (a = 1)\n{ ports=\n[80]}CONNECT c->d,\ne\nEXPOSE  [::1]:80->\"c\":80/tcp   PUBLIC# four";
        let tidy = "// one\nSTACK \"x\"\n\nPARAM a: int = 1 // two\nTEMPLATE t(a, b = [1, 2]) { image = \"i\" env {}\n\n  # three\n\n  command = [\"a\"\n    \"b\",\n  ]\n}\nCOMPONENT c FROM t(a = 1) { ports = [80] }\nCONNECT c -> d,\n  e\nEXPOSE [::1]:80 -> \"c\":80/tcp PUBLIC # four\n";
        assert_eq!(format("f", untidy.as_bytes()).as_deref(), Ok(tidy));
        assert_eq!(format("f", tidy.as_bytes()).as_deref(), Ok(tidy));
        assert_eq!(format("f", b" \n"), Ok(String::new()));
        assert_eq!(format("f", b"COMPONENT a {").map_err(|found| found.len()), Err(1));
    }

    #[test]
    fn block_strings_stay_as_they_are() {
        let source = "CONFIG  x = \"\"\"\r\n      a\n    b  \n  \"\"\"\n";
        assert_eq!(format("f", source.as_bytes()), Ok(source.replace("  x", " x")));
    }
}
