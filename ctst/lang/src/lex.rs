//! The lexical grammar, as nom parsers over the rest of the source.

use nom::branch::alt;
use nom::bytes::complete::{tag, take_while, take_while_m_n, take_while1};
use nom::character::complete::{alpha1, char, digit1, one_of, satisfy};
use nom::combinator::{all_consuming, map_opt, opt, recognize, value};
use nom::multi::many1_count;
use nom::sequence::{delimited, pair, preceded};
use nom::{IResult, Parser};

/// What a lexical parser gives. Errors carry nothing: the syntactic parser knows what it wanted and where.
pub(crate) type Lexed<'a, O> = IResult<&'a str, O, ()>;

/// Length of the white space and comments that a text begins with, and whether a line ends in them.
pub(crate) fn trivia(input: &str) -> (usize, bool) {
    let bytes = input.as_bytes();
    let (mut at, mut fresh) = (0, false);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b' ' | b'\t' | b'\r' => at += 1,
            b'\n' => (at, fresh) = (at + 1, true),
            b'#' => at = line_end(input, at),
            b'/' if bytes.get(at + 1) == Some(&b'/') => at = line_end(input, at),
            _ => break,
        }
    }
    (at, fresh)
}

fn line_end(input: &str, at: usize) -> usize {
    input[at..].find('\n').map_or(input.len(), |length| at + length)
}

/// What is left after white space and comments.
pub(crate) fn after_trivia(input: &str) -> &str {
    &input[trivia(input).0..]
}

/// Whether a byte is a letter, a digit or `_`. A table, because words are a third of a file.
const WORD: [bool; 256] = {
    let mut word = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        word[byte as usize] = byte.is_ascii_alphanumeric() || byte == b'_';
        byte += 1;
    }
    word
};

/// A letter, then letters, digits, `_`, and `-` where another of these follows: `a->b` begins with `a`.
pub(crate) fn ident(input: &str) -> Lexed<'_, &str> {
    let bytes = input.as_bytes();
    if !bytes.first().is_some_and(u8::is_ascii_alphabetic) {
        return Err(nom::Err::Error(()));
    }
    let mut length = 0;
    loop {
        length += bytes[length..].iter().take_while(|byte| WORD[usize::from(**byte)]).count();
        match bytes.get(length..) {
            Some([b'-', next, ..]) if WORD[usize::from(*next)] => length += 1,
            _ => return Ok((&input[length..], &input[..length])),
        }
    }
}

/// `ident { "." ident }`
pub(crate) fn path(input: &str) -> Lexed<'_, &str> {
    let (mut left, _) = ident(input)?;
    while let Some(after) = left.strip_prefix('.') {
        match ident(after) {
            Ok((next, _)) => left = next,
            Err(_) => break,
        }
    }
    Ok((left, &input[..input.len() - left.len()]))
}

/// Everything that begins like a number, up to what cannot belong to one; [`number_kind`] says what it is.
pub(crate) fn number(input: &str) -> Lexed<'_, &str> {
    recognize((opt(char('-')), digit1, take_while(|c: char| c.is_ascii_alphanumeric() || c == '.'))).parse(input)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberKind {
    Integer,
    Decimal,
    Quantity,
}

/// What a [`number`] is, if it is one.
pub(crate) fn number_kind(text: &str) -> Option<NumberKind> {
    let signed = |input| -> Lexed<'_, _> { preceded(opt(char('-')), digit1).parse(input) };
    let integer = all_consuming(signed).map(|_| NumberKind::Integer);
    let decimal = all_consuming(pair(signed, pair(char('.'), digit1))).map(|_| NumberKind::Decimal);
    let quantity = all_consuming(many1_count(quantity)).map(|_| NumberKind::Quantity);
    alt((integer, decimal, quantity)).parse(text).ok().map(|(_, kind)| kind)
}

/// A number with a unit: whole part, fraction, unit.
pub(crate) fn quantity(input: &str) -> Lexed<'_, (&str, Option<&str>, &str)> {
    (digit1, opt(preceded(char('.'), digit1)), alpha1).parse(input)
}

/// What follows a backslash in a plain string.
pub(crate) fn escape(input: &str) -> Lexed<'_, char> {
    let hex = |c: char| c.is_ascii_hexdigit();
    let code_point = map_opt(delimited(tag("u{"), take_while_m_n(1, 6, hex), char('}')), |digits: &str| {
        u32::from_str_radix(digits, 16).ok().and_then(char::from_u32)
    });
    alt((
        value('"', char('"')),
        value('\\', char('\\')),
        value('\n', char('n')),
        value('\t', char('t')),
        value('\r', char('r')),
        code_point,
    ))
    .parse(input)
}

/// `name`, `name.field`, `env.X`: what may stand before `:-` in a placeholder.
pub(crate) fn placeholder_path(input: &str) -> Lexed<'_, &str> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let (mut end, mut before) = (0, b'.');
    for byte in input.bytes() {
        if !(word(byte) || (byte == b'.' && before != b'.')) {
            break;
        }
        (end, before) = (end + 1, byte);
    }
    match before {
        b'.' => Err(nom::Err::Error(())),
        _ => Ok((&input[end..], &input[..end])),
    }
}

/// Anything at all, for skipping over what could not be read: a run of plain characters or a single special one.
pub(crate) fn junk(input: &str) -> Lexed<'_, &str> {
    const SPECIAL: &str = "\"[]{}()#/";
    let plain = take_while1(|c: char| !c.is_ascii_whitespace() && !SPECIAL.contains(c));
    alt((plain, recognize(one_of(SPECIAL)), recognize(satisfy(|_| true)))).parse(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_ends_a_word() {
        assert_eq!(ident("a->b"), Ok(("->b", "a")));
        assert_eq!(ident("a-b_c-->d"), Ok(("-->d", "a-b_c")));
        assert_eq!(ident("-a"), Err(nom::Err::Error(())));
    }

    #[test]
    fn numbers() {
        let kinds = ["80", "-5", "0.5", "64MiB", "1m30s", "1.5s", "127.0.0.1", "1.", "5s3", "-5s"].map(number_kind);
        use NumberKind::{Decimal, Integer, Quantity};
        assert_eq!(
            kinds,
            [
                Some(Integer),
                Some(Integer),
                Some(Decimal),
                Some(Quantity),
                Some(Quantity),
                Some(Quantity),
                None,
                None,
                None,
                None
            ]
        );
    }

    #[test]
    fn comments_and_space() {
        assert_eq!(after_trivia(" // a\n\r\n# b\n\tx"), "x");
        assert_eq!(after_trivia("/x"), "/x");
    }
}
