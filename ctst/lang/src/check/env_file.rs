//! `env_file`: variables from files, as docker compose writes them.

use std::collections::HashMap;

use crate::codes::Code;
use crate::syntax::ValueKind;
use crate::text::Part;

use super::Checker;
use super::inherit::Settings;
use super::properties::ENV_FILE;
use super::resolve::Scope;
use super::values::{LONGEST_TEXT, Read};

impl<'a> Checker<'a, '_> {
    /// The variables of all files, each once: that of a later file counts.
    pub(super) fn env_files(&mut self, settings: &Settings<'a>, scope: Scope) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = Vec::new();
        let Some(setting) = settings.get("env_file") else { return all };
        let mut places: HashMap<String, usize> = HashMap::new();
        for item in self.items(setting, scope).into_iter().flatten() {
            let span = item.value.span;
            let Some((parts, required)) = self.env_file((setting.property, item), scope) else { continue };
            let Some(Some(bytes)) = self.file(span, &parts, required) else { continue };
            if !self.expands(span, bytes.len()) {
                break;
            }
            let read = match std::str::from_utf8(&bytes) {
                Ok(text) => read(text),
                Err(error) => Err((1 + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count(), NOT_UTF8)),
            };
            match read {
                Ok(variables) => {
                    for (name, value) in variables {
                        match places.get(&name) {
                            Some(&place) => all[place].1 = value,
                            None => {
                                places.insert(name.clone(), all.len());
                                all.push((name, value));
                            }
                        }
                    }
                }
                Err((line, what)) => {
                    let shown = self.shown(span);
                    self.finding(Code::BadEnvFile, span, format!("line {line} of {shown} {what}"))
                        .label("read here")
                        .expected("lines of the form `NAME=value`")
                        .help("mend the line; a `#` begins a comment, and quotes keep blanks and line ends");
                }
            }
        }
        all
    }

    /// The path in an entry, and whether there must be such a file.
    fn env_file(&mut self, (property, item): Read<'a>, scope: Scope) -> Option<(Vec<Part<'a>>, bool)> {
        let bound = self.follow(item, scope)?;
        let ValueKind::Body(body) = &bound.value.kind else {
            return Some((self.filled_parts((property, bound), scope)?.1, true));
        };
        let mut settings = Settings::default();
        let complete = self.merge(&mut settings, body, bound.origin, &ENV_FILE);
        let required = settings.get("required").map(|setting| self.boolean(setting.read(), scope));
        let Some(path) = settings.get("path") else {
            if complete {
                self.finding(Code::MissingProperty, bound.value.span, "the entry of `env_file` has no path")
                    .label("`path` is missing")
                    .help(format!("for example `{}`", property.example));
            }
            return None;
        };
        let (_, parts) = self.filled_parts(path.read(), scope)?;
        Some((parts, required.unwrap_or(Some(true))?))
    }
}

const NOT_UTF8: &str = "is not UTF-8";

/// The variables of a file, or the line that is wrong, from 1, and what is wrong with it. What stands in the file is not
/// in the message: it may be secret.
fn read(text: &str) -> Result<Vec<(String, String)>, (usize, &'static str)> {
    let mut variables = Vec::new();
    let mut left = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut line, mut counted) = (1, left);
    while !left.is_empty() {
        line += counted[..counted.len() - left.len()].matches('\n').count();
        counted = left;
        let wrong = |what| Err((line, what));
        let (first, rest) = left.split_once('\n').unwrap_or((left, ""));
        let trimmed = first.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            left = rest;
            continue;
        }
        let Some((name, _)) = first.split_once('=') else { return wrong("has no `=`") };
        let value = left[name.len() + 1..].trim_start_matches([' ', '\t']);
        let name = name.trim();
        let name = name.strip_prefix("export ").map_or(name, str::trim_start);
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control() || "\"'#".contains(c)) {
            return wrong("has a malformed name");
        }
        let (value, after) = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let Some((value, after)) = quoted(&value[1..], quote) else {
                    return wrong("has a quote that is not closed");
                };
                let (tail, after) = after.split_once('\n').unwrap_or((after, ""));
                if !(tail.trim().is_empty() || tail.trim_start().starts_with('#')) {
                    return wrong("has something after the closing quote");
                }
                (value, after)
            }
            _ => {
                let (value, after) = value.split_once('\n').unwrap_or((value, ""));
                // A comment has a blank before it; `a#b` is a value.
                let end = value.char_indices().find(|(at, c)| *c == '#' && value[..*at].ends_with([' ', '\t']));
                let empty = value.starts_with('#');
                let value = if empty { "" } else { &value[..end.map_or(value.len(), |(at, _)| at)] };
                (value.trim().to_owned(), after)
            }
        };
        if value.contains('\0') {
            return wrong("has a NUL character in it");
        }
        if value.len() > LONGEST_TEXT {
            return wrong("is longer than the kernel takes");
        }
        variables.push((name.to_owned(), value));
        left = after;
    }
    Ok(variables)
}

/// A text up to its closing quote, and what comes after that. In single quotes everything stands for itself.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            c if c == quote => return Some((value, &text[at + 1..])),
            '\\' if quote == '"' => match characters.next()?.1 {
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                't' => value.push('\t'),
                c @ ('"' | '\\' | '$') => value.push(c),
                other => value.extend(['\\', other]),
            },
            '\r' if text[at..].starts_with("\r\n") => {}
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn lines() {
        let text = "\u{feff}# comment\r\n\nA=1\r\nexport B = two words  # not this\n C='$x \\n'\nD=\"a\\n\\\"\\$\\x\n  b\" # c\nE=\nF=a#b\nG=#x\nH=a=b\nI=\"\"";
        let found = read(text).expect("it is well");
        let found: Vec<(&str, &str)> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            found,
            [
                ("A", "1"),
                ("B", "two words"),
                ("C", "$x \\n"),
                ("D", "a\n\"$\\x\n  b"),
                ("E", ""),
                ("F", "a#b"),
                ("G", ""),
                ("H", "a=b"),
                ("I", ""),
            ]
        );
    }

    #[test]
    fn what_is_wrong_has_a_line() {
        let line = |text: &str| read(text).map_err(|(line, _)| line);
        assert_eq!(line("A=1\nB"), Err(2));
        assert_eq!(line("A='\n\n'\n=x"), Err(4));
        assert_eq!(line("A=\"x"), Err(1));
        assert_eq!(line("A=\"x\\"), Err(1));
        assert_eq!(line("A='x'y"), Err(1));
        assert_eq!(line("A=\0"), Err(1));
        assert_eq!(line("A B=1"), Err(1));
        assert!(read(&"A=1\n".repeat(100_000)).is_ok());
    }
}
