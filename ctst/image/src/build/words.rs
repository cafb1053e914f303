//! Words of a Dockerfile: quotes, the escape character, and `${x:-y}`.

/// Deepest `${a:-${b:-…}}`.
const MOST_DEPTH: usize = 20;
/// Longest word once names are filled in, in bytes: more than a container can be told of all of them.
const MOST_WORD: usize = 64 << 10;
/// Longest here-document, likewise.
const MOST_DOCUMENT: usize = 1 << 20;

/// What a name stands for; `None`: nothing.
pub(super) type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Splits at white space outside of quotes. The quotes stay.
pub(super) fn split(text: &str, escape: char) -> Vec<&str> {
    let (mut words, mut start, mut quote) = (Vec::new(), None, None);
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => words.extend(start.take().map(|start| &text[start..at])),
            _ => {
                start.get_or_insert(at);
                match quote {
                    _ if c == escape && quote != Some('\'') => drop(chars.next()),
                    Some(open) if c == open => quote = None,
                    None if matches!(c, '"' | '\'') => quote = Some(c),
                    _ => {}
                }
            }
        }
    }
    words.extend(start.map(|start| &text[start..]));
    words
}

/// Takes the quotes away and fills in what names stand for.
pub(super) fn expand(word: &str, escape: char, lookup: &Lookup<'_>) -> Result<String, String> {
    let mut reader = Reader { chars: word.chars().peekable(), escape, lookup, depth: 0, quotes: true, most: MOST_WORD };
    reader.until(None)
}

/// The same of the content of a here-document, in which quotes mean nothing.
pub(super) fn expand_text(text: &str, escape: char, lookup: &Lookup<'_>) -> Result<String, String> {
    let chars = text.chars().peekable();
    Reader { chars, escape, lookup, depth: 0, quotes: false, most: MOST_DOCUMENT }.until(None)
}

struct Reader<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    escape: char,
    lookup: &'a Lookup<'a>,
    depth: usize,
    quotes: bool,
    /// Bytes that may come out.
    most: usize,
}

impl Reader<'_> {
    /// Up to `end`, which is taken, or the end of the text.
    fn until(&mut self, end: Option<char>) -> Result<String, String> {
        let mut out = String::new();
        loop {
            self.bounded(&out)?;
            let Some(c) = self.chars.next() else {
                return match end {
                    None => Ok(out),
                    Some(end) => Err(format!("`{end}` is missing")),
                };
            };
            match c {
                c if Some(c) == end => return Ok(out),
                '\'' if self.quotes => self.literally(&mut out)?,
                '"' if self.quotes => self.quoted(&mut out)?,
                '$' => out.push_str(&self.variable()?),
                // In a text only what would mean something otherwise is escaped.
                c if c == self.escape && (self.quotes || self.chars.peek() == Some(&'$')) => {
                    out.push(self.chars.next().unwrap_or(c));
                }
                c => out.push(c),
            }
        }
    }

    /// Each name can stand for much, and one line can make it twice as much.
    fn bounded(&self, out: &str) -> Result<(), String> {
        match out.len() > self.most {
            true => Err(format!("it becomes longer than {} KiB", self.most >> 10)),
            false => Ok(()),
        }
    }

    fn literally(&mut self, out: &mut String) -> Result<(), String> {
        loop {
            match self.chars.next() {
                None => return Err("a quote is not closed".into()),
                Some('\'') => return Ok(()),
                Some(c) => out.push(c),
            }
        }
    }

    fn quoted(&mut self, out: &mut String) -> Result<(), String> {
        loop {
            self.bounded(out)?;
            match self.chars.next() {
                None => return Err("a quote is not closed".into()),
                Some('"') => return Ok(()),
                Some('$') => out.push_str(&self.variable()?),
                Some(c) if c == self.escape => match self.chars.next() {
                    Some(next) if matches!(next, '"' | '$') || next == c => out.push(next),
                    Some(next) => out.extend([c, next]),
                    None => return Err("a quote is not closed".into()),
                },
                Some(c) => out.push(c),
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) =
            self.chars.next_if(|c| *c == '_' || c.is_ascii_alphabetic() || !name.is_empty() && c.is_ascii_digit())
        {
            name.push(c);
        }
        name
    }

    /// What stands after a `$`.
    fn variable(&mut self) -> Result<String, String> {
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            return Ok(match name.is_empty() {
                true => "$".into(),
                false => (self.lookup)(&name).unwrap_or_default(),
            });
        }
        let name = self.name();
        if name.is_empty() {
            return Err("`${` has no name after it".into());
        }
        let value = (self.lookup)(&name);
        let with_empty = self.chars.next_if_eq(&':').is_some();
        let is_set = value.as_ref().is_some_and(|value| !with_empty || !value.is_empty());
        match self.chars.next() {
            Some('}') if !with_empty => Ok(value.unwrap_or_default()),
            Some(kind @ ('-' | '+' | '?')) => {
                self.depth += 1;
                if self.depth > MOST_DEPTH {
                    return Err("variables are nested too deeply".into());
                }
                let word = self.until(Some('}'))?;
                self.depth -= 1;
                match (kind, is_set) {
                    ('-', false) | ('+', true) => Ok(word),
                    ('+', false) => Ok(String::new()),
                    ('?', false) if word.is_empty() => Err(format!("`{name}` is not set")),
                    ('?', false) => Err(format!("`{name}` is not set: {word}")),
                    _ => Ok(value.unwrap_or_default()),
                }
            }
            None => Err(format!("`${{{name}` is not closed")),
            Some(c) => Err(format!("`${{{name}{c}` is not understood: there are :- - :+ + :? and ?")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "a" => Some("1".into()),
            "empty" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn words_are_split_outside_of_quotes() {
        assert_eq!(split(" a  b\\ c 'd e' \"f \\\" g\"h ", '\\'), ["a", "b\\ c", "'d e'", "\"f \\\" g\"h"]);
        assert_eq!(split("a=C:\\x` y", '`'), ["a=C:\\x` y"]);
        assert!(split(" \t", '\\').is_empty());
    }

    #[test]
    fn variables_are_filled_in() {
        for (word, expected) in [
            ("$a", "1"),
            ("x${a}y", "x1y"),
            ("$a_b", ""),
            ("\\$a", "$a"),
            ("'$a'", "$a"),
            ("\"$a \\\"b\\n\"", "1 \"b\\n"),
            ("${none:-x $a}", "x 1"),
            ("${empty:-y}", "y"),
            ("${empty-y}", ""),
            ("${a:+z}", "z"),
            ("${empty:+z}", ""),
            ("${empty+z}", "z"),
            ("${none+z}", ""),
            ("${none:-${none:-${a}}}", "1"),
            ("${a:?no}", "1"),
            ("$", "$"),
            ("a$ b", "a$ b"),
        ] {
            assert_eq!(expand(word, '\\', &lookup).as_deref(), Ok(expected), "{word}");
        }
        for word in ["'a", "\"a", "${", "${}", "${a", "${a#b}", "${none:?gone}", "${none:-x"] {
            assert!(expand(word, '\\', &lookup).is_err(), "{word}");
        }
        let deep = format!("{}x{}", "${n:-".repeat(100), "}".repeat(100));
        assert!(expand(&deep, '\\', &lookup).is_err());
        assert_eq!(expand_text("'$a' \\$a \\n \"", '\\', &lookup).as_deref(), Ok("'1' $a \\n \""));
    }
}
