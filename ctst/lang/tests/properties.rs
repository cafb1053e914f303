//! Whatever comes in, nothing panics, and what comes out holds together.

use containust_lang::{Inputs, Loader, Outcome, Severity, check_with};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const VALID: &[&str] = &[
    include_str!("corpus/valid/web.ctst"),
    include_str!("corpus/valid/tools.ctst"),
    include_str!("corpus/valid/inherit.ctst"),
    include_str!("corpus/valid/limits.ctst"),
    include_str!("corpus/invalid/limits.ctst"),
    include_str!("corpus/valid/stores.ctst"),
    include_str!("corpus/invalid/stores.ctst"),
    include_str!("corpus/invalid/inherit.ctst"),
    include_str!("corpus/invalid/params.ctst"),
    include_str!("corpus/invalid/later.ctst"),
    include_str!("corpus/invalid/strings.ctst"),
    include_str!("corpus/invalid/expose.ctst"),
];

/// Pieces of the language, to get deeper than random bytes do.
const TOKENS: &[&str] = &[
    "COMPONENT ",
    "TEMPLATE ",
    "JOB ",
    "CONNECT ",
    "EXPOSE ",
    "PARAM ",
    "SECRET ",
    "CONFIG ",
    "IMPORT ",
    "FROM ",
    "VOLUME ",
    "FILE ",
    "ENV ",
    "COMMAND ",
    "OPTIONAL",
    "completed",
    "WHEN ",
    "healthy",
    "TIMEOUT ",
    "PUBLIC",
    "UNSET ",
    "annotate ",
    "a",
    "IMPORT \"f.ctst\" AS b ",
    "IMPORT \"g\"\n",
    "STACK \"a\"",
    "PARAM a = ",
    ": port",
    "a(a)",
    "FROM a(a = ",
    "${a}",
    "${secret.a}",
    "env_file",
    "secrets",
    "configs",
    "replicas",
    "labels",
    "hosts",
    "ulimits",
    "sysctls",
    "io ",
    "stop",
    "memory",
    "cpu",
    "cpus",
    "\"/dev/a\"",
    "\"a=b\"",
    "\"a:/b:0400\"",
    "file",
    "0.5",
    "b-c",
    "a_b ",
    "image",
    "env",
    "healthcheck",
    "port",
    "ports ",
    "volumes",
    "tmpfs",
    "command",
    "http",
    "=",
    " = ",
    "+=",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    ".",
    ":",
    "->",
    "/tcp",
    "/udp",
    "\"",
    "\"\"\"",
    "\\",
    "\\u{e4}",
    "${",
    "${a.port}",
    "${env.X:-y}",
    "$${",
    "0",
    "80",
    "-1",
    "3000-3005",
    "127.0.0.1:",
    "[::1]:",
    "5s",
    "64MiB",
    "true",
    "\"file://./x\"",
    "\"host:///bin/x\"",
    "\"./a:/b:ro\"",
    "// x\n",
    "# y\n",
    "\n",
    "\r\n",
    " ",
    "ä",
    "\u{feff}",
    "\0",
    "\u{1b}[31m",
];

fn environment(name: &str) -> Option<String> {
    (name.len() < 3).then(|| "val ue'\"".to_owned())
}

/// Every file imports what is checked, by another name, so that broken imports and circles come by.
struct Itself<'a>(&'a [u8]);

impl Loader for Itself<'_> {
    fn load(&self, importing: &str, path: &str) -> Result<(String, Vec<u8>), String> {
        if importing.len() > 3 * path.len() { Err("too far".to_owned()) } else { Ok((path.repeat(2), self.0.to_vec())) }
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        match path.len() % 4 {
            0 => Err("unreadable".to_owned()),
            1 => Ok(None),
            2 => Ok(Some(b"A=1\nB='2'\n".to_vec())),
            _ => Ok(Some(self.0.to_vec())),
        }
    }
}

fn holds(bytes: &[u8]) -> Outcome {
    let loader = Itself(bytes);
    let inputs = Inputs { loader: Some(&loader), ..Inputs::default() };
    let outcome = check_with("f.ctst", bytes, "p", &environment, &inputs);
    let errors = outcome.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error);
    assert_eq!(outcome.composition.is_none(), errors);
    for diagnostic in &outcome.diagnostics {
        for mark in std::iter::once(&diagnostic.at).chain(&diagnostic.related) {
            let range = mark.span.range();
            assert!(range.start <= range.end && range.end <= bytes.len(), "{mark:?} in {} bytes", bytes.len());
            assert!((mark.line, mark.column) <= (mark.end_line, mark.end_column), "{mark:?}");
            assert!(mark.line >= 1 && mark.column >= 1);
            if let Ok(source) = std::str::from_utf8(bytes) {
                assert!(source.is_char_boundary(range.start) && source.is_char_boundary(range.end), "{mark:?}");
                assert_eq!(mark.line, 1 + source[..range.start].matches('\n').count());
            }
        }
        assert!(diagnostic.help.is_some(), "no help: {diagnostic:?}");
    }
    for color in [false, true] {
        let rendered = outcome.render(bytes, color);
        assert_eq!(rendered.is_empty(), outcome.diagnostics.is_empty());
        assert!(color || !rendered.contains('\u{1b}'), "an escape sequence of the file reaches the terminal");
    }
    serde_json::to_string(&outcome.diagnostics).expect("diagnostics can be serialised");
    if let Some(composition) = &outcome.composition {
        let known = |name: &str| composition.components.iter().any(|component| component.name == name);
        assert!(composition.exposures.iter().all(|exposure| known(&exposure.component) && exposure.port > 0));
        assert!(composition.components.iter().all(|component| component.after.iter().all(|after| known(&after.on))));
        assert!(!composition.components.is_empty());
    }
    outcome
}

#[derive(Debug, Clone)]
enum Mutation {
    Delete(Index, usize),
    Insert(Index, Vec<u8>),
    Token(Index, &'static str),
    Copy(Index, Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<Index>(), 1..20usize).prop_map(|(at, length)| Mutation::Delete(at, length)),
        (any::<Index>(), vec(any::<u8>(), 1..4)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (any::<Index>(), select(TOKENS)).prop_map(|(at, token)| Mutation::Token(at, token)),
        (any::<Index>(), any::<Index>(), 1..80usize).prop_map(|(from, to, length)| Mutation::Copy(from, to, length)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    let insert = |bytes: &mut Vec<u8>, at: usize, new: &[u8]| drop(bytes.splice(at..at, new.iter().copied()));
    let positions = bytes.len() + 1;
    match mutation {
        Mutation::Delete(at, length) => {
            let at = at.index(positions);
            bytes.drain(at..(at + length).min(bytes.len()));
        }
        Mutation::Insert(at, new) => insert(bytes, at.index(positions), new),
        Mutation::Token(at, token) => insert(bytes, at.index(positions), token.as_bytes()),
        Mutation::Copy(from, to, length) => {
            let from = from.index(positions);
            let copy = bytes[from..(from + length).min(bytes.len())].to_vec();
            insert(bytes, to.index(positions), &copy);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..300)) {
        holds(&bytes);
    }

    #[test]
    fn any_text(text in "\\PC{0,200}") {
        holds(text.as_bytes());
    }

    #[test]
    fn any_tokens(tokens in vec(select(TOKENS), 0..60)) {
        holds(tokens.concat().as_bytes());
    }

    #[test]
    fn mutated_files(file in select(VALID), mutations in vec(mutation(), 1..8)) {
        let mut bytes = file.as_bytes().to_vec();
        for mutation in &mutations {
            mutate(&mut bytes, mutation);
        }
        holds(&bytes);
    }
}

#[test]
fn every_prefix_of_a_file() {
    for file in VALID {
        for end in 0..file.len() {
            holds(&file.as_bytes()[..end]);
        }
    }
}

#[test]
fn white_space_and_comments_change_nothing() {
    let plain = VALID[0];
    let dressed = plain.replace('\n', " \t\r\n# comment \"{\n// another }\n");
    let mut found = holds(dressed.as_bytes()).composition.expect("a composition");
    let expected = holds(plain.as_bytes()).composition.expect("a composition");
    for (found, expected) in found.components.iter_mut().zip(&expected.components) {
        found.line = expected.line;
    }
    for (found, expected) in found.exposures.iter_mut().zip(&expected.exposures) {
        found.line = expected.line;
    }
    assert_eq!(found, expected);
}
