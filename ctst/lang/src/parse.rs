//! The syntactic grammar: recursive descent over the lexical parsers of [`crate::lex`], with recovery.
//!
//! A broken entry is skipped up to the next line at the same depth, a broken statement up to the next line that begins
//! with a statement, so that one run finds the errors of a whole file. Each character is looked at a bounded number of
//! times, and depth is bounded by [`MAX_DEPTH`], so that no input takes the stack or more than linear time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;

use nom::bytes::complete::{take_while, take_while1};
use nom::character::complete::{char, digit1};
use nom::combinator::{opt, recognize};
use nom::sequence::{delimited, pair, preceded};

use crate::codes::Code;
use crate::diagnostic::{Diagnostic, Report, Span, nearest, shown};
use crate::lex;
use crate::model::Protocol;
use crate::syntax::*;

/// How deep lists and blocks may be nested.
pub const MAX_DEPTH: u32 = 64;

/// A file of so many bytes is read by two threads: a smaller one takes not much longer than to start a thread.
const WORTH_A_THREAD: usize = 1 << 19;

const STATEMENTS: &[&str] = &[
    "STACK",
    "PARAM",
    "IMPORT",
    "COMPONENT",
    "TEMPLATE",
    "JOB",
    "CONNECT",
    "EXPOSE",
    "NETWORK",
    "VOLUME",
    "SECRET",
    "CONFIG",
];

const FILE: &str = "a file consists of COMPONENT, CONNECT and EXPOSE statements";
const PROPERTY: &str = "a property is written `name = value` or `name { … }`";

/// How a statement is written.
fn form(keyword: &str) -> &'static str {
    match keyword {
        "STACK" => "write `STACK \"name\"`",
        "PARAM" => "write `PARAM name: type = value \"what it is for\"`",
        "IMPORT" => "write `IMPORT \"file.ctst\" AS name`",
        "COMPONENT" | "TEMPLATE" | "JOB" => "write `COMPONENT name { property = value … }`",
        "CONNECT" => "write `CONNECT a -> b, c WHEN healthy TIMEOUT 90s`; all after the names may be left out",
        "EXPOSE" => "write `EXPOSE 8080`, `EXPOSE 8080:80` or `EXPOSE 127.0.0.1:8080 -> web:80`",
        "NETWORK" => "write `NETWORK name { … }`",
        "VOLUME" => "write `VOLUME name { … }`",
        "SECRET" => "write `SECRET name FROM FILE \"path\"`, or ENV or COMMAND for FILE",
        "CONFIG" => "write `CONFIG name = \"content\"` or `CONFIG name = { file = \"path\" }`",
        _ => FILE,
    }
}

/// An error was reported and the current construct cannot be finished.
struct Broken;
type Parsed<T> = Result<T, Broken>;

/// Parses a file, which begins at `base` and ends with the text; what could not be read is reported and left out.
pub(crate) fn file<'t>(source: &str, base: usize, arena: &'t Arena, report: &mut Report) -> File<'t> {
    const MARK: char = '\u{feff}';
    let marked = source.get(base..).is_some_and(|text| text.starts_with(MARK));
    let at = base + if marked { MARK.len_utf8() } else { 0 };
    let mut parser = Parser {
        source,
        arena,
        at,
        end: at,
        fresh: true,
        depth: 0,
        open: 0,
        last_error: None,
        form: FILE,
        entries: Vec::new(),
        values: Vec::new(),
        report,
    };
    let mut file = File::default();
    loop {
        parser.trivia();
        if parser.rest().is_empty() || parser.report.full() {
            return file;
        }
        match parser.statement() {
            Ok(statement) => file.statements.push(statement),
            Err(Broken) => {
                file.partial = true;
                parser.recover_statement();
            }
        }
    }
}

/// Parses a file from its beginning. A second thread reads the second half of a large one, into an arena of its own.
pub(crate) fn whole_file<'t>(source: &str, arena: &'t Arena, second: &'t mut Arena, report: &mut Report) -> File<'t> {
    let large = source.len() >= WORTH_A_THREAD;
    let cut = if large { likely_boundary(source, source.len() / 2) } else { None };
    let halves = cut.and_then(|cut| file_in_halves(source, cut, arena, second));
    halves.unwrap_or_else(|| file(source, 0, arena, report))
}

/// Where a COMPONENT seems to begin, at or after a place.
fn likely_boundary(source: &str, from: usize) -> Option<usize> {
    const BEGINNING: &[u8] = b"\nCOMPONENT ";
    let after = source.as_bytes().get(from..)?;
    after.windows(BEGINNING.len()).position(|bytes| bytes == BEGINNING).map(|place| from + place + 1)
}

/// Parses what stands before and after `cut`, where a line begins with a statement unless that is inside of something
/// else. Then the half before it is not complete, so that it has a finding. `None`: there was one, and only the whole
/// file tells which it is.
fn file_in_halves<'t>(source: &str, cut: usize, arena: &'t Arena, second: &'t mut Arena) -> Option<File<'t>> {
    let before = source.get(..cut)?;
    let (mut report, mut other_report) = (Report::default(), Report::default());
    let other = &mut other_report;
    let (mut tree, after) = thread::scope(|scope| {
        let after = thread::Builder::new().spawn_scoped(scope, move || file(source, cut, second, other)).ok()?;
        let tree = file(before, 0, arena, &mut report);
        Some((tree, after.join().ok()?))
    })?;
    if !report.is_empty() || !other_report.is_empty() {
        return None;
    }
    tree.statements.extend(after.statements);
    Some(tree)
}

struct Parser<'a, 't, 'r> {
    source: &'a str,
    arena: &'t Arena,
    at: usize,
    /// Where the last token ended.
    end: usize,
    /// Whether the next token is the first of its line.
    fresh: bool,
    /// Lists and blocks that the value being read is nested in.
    depth: u32,
    /// Brackets open at `at`.
    open: u32,
    /// Where the last syntax error was: what follows from it at the same place is not news.
    last_error: Option<usize>,
    /// How what is being read is written, for help.
    form: &'static str,
    /// What the bodies and lists that are being read hold so far, the innermost last. Each goes into the arena
    /// when it is complete.
    entries: Vec<Entry<'t>>,
    values: Vec<Value<'t>>,
    report: &'r mut Report,
}

// Tokens.
impl<'a> Parser<'a, '_, '_> {
    fn rest(&self) -> &'a str {
        self.source.get(self.at..).unwrap_or_default()
    }

    fn here(&self) -> Span {
        Span::new(self.at, self.at)
    }

    fn advance(&mut self, to: usize) {
        self.at = to;
        self.end = to;
        self.fresh = false;
    }

    /// The next byte.
    fn next(&self) -> Option<u8> {
        self.source.as_bytes().get(self.at).copied()
    }

    #[inline]
    fn trivia(&mut self) {
        // Mostly there is none.
        if self.next().is_some_and(|byte| byte > b' ' && !matches!(byte, b'#' | b'/')) {
            return;
        }
        let (length, fresh) = lex::trivia(self.rest());
        self.at += length;
        self.fresh |= fresh;
    }

    /// What `parser` reads right here, if it does; moves behind it.
    fn take<O>(&mut self, mut parser: impl nom::Parser<&'a str, Output = O, Error = ()>) -> Option<(Span, O)> {
        let (left, output) = parser.parse(self.rest()).ok()?;
        let start = self.at;
        self.advance(self.source.len() - left.len());
        Some((Span::new(start, self.at), output))
    }

    /// Punctuation that stands right here.
    #[inline]
    fn mark(&mut self, text: &'static str) -> Option<Span> {
        let start = self.at;
        let stands = self.source.as_bytes().get(start..).is_some_and(|rest| rest.starts_with(text.as_bytes()));
        stands.then(|| {
            self.advance(start + text.len());
            Span::new(start, self.at)
        })
    }

    #[inline]
    fn punctuation(&mut self, text: &'static str) -> Option<Span> {
        self.trivia();
        self.mark(text)
    }

    fn want_punctuation(&mut self, text: &'static str, expected: &str) -> Parsed<Span> {
        self.punctuation(text).ok_or_else(|| self.missing(expected))
    }

    fn peek_word(&mut self) -> &'a str {
        self.trivia();
        lex::ident(self.rest()).map_or("", |(_, word)| word)
    }

    fn keyword(&mut self, keyword: &str) -> Option<Span> {
        self.trivia();
        if !self.rest().starts_with(keyword) || self.peek_word() != keyword || (self.fresh && self.at_statement()) {
            return None;
        }
        self.take(lex::ident).map(|(span, _)| span)
    }

    /// Whether the word `length` bytes long that stands here is a key, as opposed to the first word of a statement.
    fn is_key(&self, length: usize) -> bool {
        let next = lex::after_trivia(self.rest().get(length..).unwrap_or_default());
        next.starts_with('=') || next.starts_with("+=") || next.starts_with('{')
    }

    fn at_statement(&self) -> bool {
        self.next().is_some_and(|byte| byte.is_ascii_uppercase())
            && lex::ident(self.rest()).is_ok_and(|(_, word)| STATEMENTS.contains(&word) && !self.is_key(word.len()))
    }

    fn at_key(&self) -> bool {
        lex::ident(self.rest()).is_ok_and(|(_, word)| self.is_key(word.len()))
    }

    /// The next token's span and its name for a message.
    fn token(&self) -> (Span, String) {
        let rest = self.rest();
        let token = |length| Span::new(self.at, self.at + length);
        let Some(first) = rest.chars().next() else { return (self.here(), "the end of the file".into()) };
        if first == '"' {
            return (token(string_end(rest).0), "a string".into());
        }
        let text = lex::ident(rest).or_else(|_| lex::number(rest)).map_or(&rest[..first.len_utf8()], |(_, text)| text);
        (token(text.len()), shown(text))
    }

    fn report(&mut self, diagnostic: Diagnostic) -> Broken {
        let start = diagnostic.at.span.start as usize;
        if self.last_error.replace(start) != Some(start) {
            self.report.push(diagnostic);
        }
        Broken
    }

    /// The next token is not what can begin something here.
    fn unexpected(&mut self, expected: &str) -> Broken {
        self.trivia();
        let (span, found) = self.token();
        self.report(
            Diagnostic::new(Code::Unexpected, span, format!("expected {expected}, found {found}"))
                .label("unexpected")
                .expected(expected)
                .help(self.form),
        )
    }

    /// What was begun does not go on: said where it stops if the next token is on another line.
    fn missing(&mut self, expected: &str) -> Broken {
        self.trivia();
        if !self.fresh && !self.rest().is_empty() {
            return self.unexpected(expected);
        }
        let span = Span::new(self.end, self.end);
        self.report(
            Diagnostic::new(Code::Unexpected, span, format!("expected {expected} here"))
                .label("something is missing")
                .expected(expected)
                .help(self.form),
        )
    }
}

/// Length of the string that `rest` begins with, and its form if it is closed. A plain one ends with its line.
pub(crate) fn string_end(rest: &str) -> (usize, Option<Quote>) {
    if let Some(inner) = rest.strip_prefix("\"\"\"") {
        return match inner.find("\"\"\"") {
            Some(length) => (3 + length + 3, Some(Quote::Triple)),
            None => (3, None),
        };
    }
    let (length, closed, _) = plain_string_end(rest);
    (length, closed.then_some(Quote::Plain))
}

/// The same for a string on one line: its length, whether it is closed, and whether it has escapes or NUL characters.
fn plain_string_end(rest: &str) -> (usize, bool, bool) {
    let inner = rest.as_bytes().get(1..).unwrap_or_default();
    let plain = inner.iter().position(|byte| matches!(byte, b'"' | b'\\' | b'\n' | b'\0')).unwrap_or(inner.len());
    let (mut escaped, mut special) = (false, false);
    for (at, byte) in rest.bytes().enumerate().skip(1 + plain) {
        match byte {
            b'\n' => return (at, false, special),
            b'\0' => (escaped, special) = (false, true),
            _ if escaped => escaped = false,
            b'\\' => (escaped, special) = (true, true),
            b'"' => return (at + 1, true, special),
            _ => {}
        }
    }
    (rest.len(), false, special)
}

// Recovery.
impl Parser<'_, '_, '_> {
    fn skip_token(&mut self) {
        let rest = self.rest();
        if rest.starts_with('"') {
            self.advance(self.at + string_end(rest).0);
        } else if self.take(lex::junk).is_none() {
            self.advance(self.source.len());
        }
    }

    fn recover_statement(&mut self) {
        self.open = 0;
        self.depth = 0;
        loop {
            self.trivia();
            if self.rest().is_empty() || (self.fresh && self.at_statement()) {
                return;
            }
            self.skip_token();
        }
    }

    /// Skips a broken entry of a body at bracket level `level` that began at `start`.
    fn recover_entry(&mut self, start: usize, level: u32) {
        let mut extra = self.open.saturating_sub(level);
        self.open = level;
        self.trivia();
        if self.at == start {
            self.skip_token();
        }
        loop {
            self.trivia();
            match self.next() {
                None => return,
                Some(_) if self.fresh && (extra == 0 || self.at_statement()) => return,
                Some(b'}') if extra == 0 => return,
                Some(b'[' | b'{' | b'(') => extra += 1,
                Some(b']' | b'}' | b')') => extra = extra.saturating_sub(1),
                Some(_) => {}
            }
            self.skip_token();
        }
    }
}

// Statements.
impl<'t> Parser<'_, 't, '_> {
    fn statement(&mut self) -> Parsed<Statement<'t>> {
        self.form = FILE;
        let Some((keyword, word)) = self.take(lex::ident) else {
            let broken = self.unexpected("a statement");
            self.skip_token();
            return Err(broken);
        };
        self.form = form(word);
        let kind = match word {
            "STACK" => {
                StatementKind::Stack { name: self.text("the project's name in quotes")?, body: self.optional_body()? }
            }
            "PARAM" => self.param()?,
            "IMPORT" => self.import()?,
            "COMPONENT" => self.component(ComponentKind::Component)?,
            "TEMPLATE" => self.component(ComponentKind::Template)?,
            "JOB" => self.component(ComponentKind::Job)?,
            "CONNECT" => self.connect()?,
            "EXPOSE" => self.expose()?,
            "NETWORK" => StatementKind::Network { name: self.name("the network's name")?, body: self.optional_body()? },
            "VOLUME" => StatementKind::Volume { name: self.name("the volume's name")?, body: self.optional_body()? },
            "SECRET" => self.secret()?,
            "CONFIG" => {
                let name = self.name("the config's name")?;
                self.want_punctuation("=", "`=`")?;
                StatementKind::Config { name, value: self.arena.alloc(self.value()?) }
            }
            _ => return Err(self.unknown_statement(keyword, word)),
        };
        Ok(Statement { keyword, span: keyword.to(Span::new(self.end, self.end)), kind })
    }

    fn unknown_statement(&mut self, span: Span, word: &str) -> Broken {
        let meant = STATEMENTS.iter().find(|known| known.eq_ignore_ascii_case(word)).copied();
        let help = match meant.or_else(|| nearest(word, STATEMENTS.iter().copied())) {
            Some(meant) => format!("write `{meant}`"),
            None if matches!(word, "services" | "version") && self.rest().starts_with(':') => {
                let help = "this looks like a Compose file, which is another language: write `COMPONENT name { image = … }` for \
                            each service";
                help.into()
            }
            None if word == "FROM" => {
                let help = "this looks like a Dockerfile: name it in a component, as in `build { dockerfile = \"./Dockerfile\" }`";
                help.into()
            }
            None if self.is_key(0) => "a property stands in the block of a component: `COMPONENT name { … }`".into(),
            None => FILE.into(),
        };
        self.report(
            Diagnostic::new(Code::UnknownStatement, span, format!("{} begins no statement", shown(word)))
                .label("not a statement")
                .expected(STATEMENTS.join(", "))
                .help(help),
        )
    }

    fn param(&mut self) -> Parsed<StatementKind<'t>> {
        let name = self.name("the parameter's name")?;
        let kind = match self.punctuation(":") {
            Some(_) => Some(self.name("a type")?),
            None => None,
        };
        let default = match self.punctuation("=") {
            Some(_) => Some(self.value()?),
            None => None,
        };
        let required = default.is_none() && self.keyword("REQUIRED").is_some();
        let help = self.optional_text()?;
        Ok(StatementKind::Param(self.arena.alloc(Param { name, kind, default, required, help })))
    }

    fn import(&mut self) -> Parsed<StatementKind<'t>> {
        let source = self.text("a path or URL in quotes")?;
        let sha256 = match self.keyword("SHA256") {
            Some(_) => Some(self.text("a digest in quotes")?),
            None => None,
        };
        let alias = match self.keyword("AS") {
            Some(_) => Some(self.name("a name")?),
            None => None,
        };
        Ok(StatementKind::Import { source, sha256, alias })
    }

    fn component(&mut self, kind: ComponentKind) -> Parsed<StatementKind<'t>> {
        let name = self.name("the component's name")?;
        let params = self.arguments(false)?.map(|params| &*self.arena.alloc(params));
        let base = match self.keyword("FROM") {
            Some(from) => {
                self.trivia();
                let (path, _) = self.take(lex::path).ok_or_else(|| self.missing("what to inherit from"))?;
                let args = self.arguments(true)?;
                Some(&*self.arena.alloc(Base { span: from.to(Span::new(self.end, self.end)), path, args }))
            }
            None => None,
        };
        self.trivia();
        if self.next() != Some(b'{') {
            return Err(self.missing("`{`"));
        }
        let body = self.body()?;
        Ok(StatementKind::Component(self.arena.alloc(Component { kind, name, params, base, body })))
    }

    fn arguments(&mut self, values: bool) -> Parsed<Option<Arguments<'t>>> {
        let Some(start) = self.punctuation("(") else { return Ok(None) };
        let mut list = Vec::new();
        loop {
            if let Some(end) = self.punctuation(")") {
                return Ok(Some(Arguments { span: start.to(end), list: self.arena.alloc_slice_copy(&list) }));
            }
            let name = self.name("a parameter's name or `)`")?;
            let value = match self.punctuation("=") {
                Some(_) => Some(self.value()?),
                None if values => return Err(self.missing("`=`")),
                None => None,
            };
            list.push((name, value));
            if self.punctuation(",").is_none() && self.next() != Some(b')') {
                return Err(self.missing("`,` or `)`"));
            }
        }
    }

    fn connect(&mut self) -> Parsed<StatementKind<'t>> {
        let from = self.name("the component that waits")?;
        self.want_punctuation("->", "`->`")?;
        let mut to = vec![self.name("the component to wait for")?];
        while self.punctuation(",").is_some() {
            to.push(self.name("a further component")?);
        }
        let when = match self.keyword("WHEN") {
            Some(_) => Some(self.when()?),
            None => None,
        };
        let timeout = match self.keyword("TIMEOUT") {
            Some(_) => Some(self.value()?),
            None => None,
        };
        let optional = self.keyword("OPTIONAL");
        let to = self.arena.alloc_slice_copy(&to);
        let body = self.optional_body()?;
        Ok(StatementKind::Connect(self.arena.alloc(Connect { from, to, when, timeout, optional, body })))
    }

    fn when(&mut self) -> Parsed<(Span, ConnectWhen)> {
        let when = match self.peek_word() {
            "started" => ConnectWhen::Started,
            "healthy" => ConnectWhen::Healthy,
            "completed" => ConnectWhen::Completed,
            _ => return Err(self.missing("`started`, `healthy` or `completed`")),
        };
        let span = self.take(lex::ident).map_or(self.here(), |(span, _)| span);
        Ok((span, when))
    }

    fn secret(&mut self) -> Parsed<StatementKind<'t>> {
        let name = self.name("the secret's name")?;
        if self.keyword("FROM").is_none() {
            return Err(self.missing("`FROM`"));
        }
        let from = match self.peek_word() {
            "FILE" => SecretFrom::File,
            "ENV" => SecretFrom::Env,
            "COMMAND" => SecretFrom::Command,
            _ => return Err(self.missing("`FILE`, `ENV` or `COMMAND`")),
        };
        self.take(lex::ident);
        Ok(StatementKind::Secret { name, from, source: self.text("a string")? })
    }
}

// EXPOSE, whose parts stand without spaces and would be other tokens elsewhere.
impl<'t> Parser<'_, 't, '_> {
    fn expose(&mut self) -> Parsed<StatementKind<'t>> {
        self.trivia();
        let start = self.at;
        let address = self.address()?;
        let host = self.ports("a port or an address")?;
        let (component, inside) = if self.mark(":").is_some() {
            let inside = self.ports("the container's port")?;
            if let Some(arrow) = self.punctuation("->") {
                return Err(self.port_before_component(start, host, inside, arrow));
            }
            (None, Some(inside))
        } else if self.punctuation("->").is_some() {
            let component = self.name("a component")?;
            if self.mark(":").is_none() {
                self.form = "write the port on which it listens behind the component: `EXPOSE 8080 -> web:80`";
                return Err(self.missing("`:` and the container's port"));
            }
            (Some(component), Some(self.ports("the container's port")?))
        } else {
            (None, None)
        };
        let protocol = self.protocol()?;
        let public = self.keyword("PUBLIC");
        Ok(StatementKind::Expose(self.arena.alloc(Expose { address, host, component, inside, protocol, public })))
    }

    /// `EXPOSE 8080:80 -> web`, as people write it who think of docker.
    fn port_before_component(&mut self, start: usize, host: Ports, inside: Ports, arrow: Span) -> Broken {
        let end = |ports: Ports| ports.last.unwrap_or(ports.first).end as usize;
        let (outside, inside) =
            (&self.source[start..end(host)], &self.source[inside.first.start as usize..end(inside)]);
        let component = match self.name("a component") {
            Ok(name) => self.source[name.span.start as usize..name.span.end as usize].to_owned(),
            Err(broken) => return broken,
        };
        self.report(
            Diagnostic::new(Code::Unexpected, arrow, "the container's port stands behind the component")
                .label("behind a port of the container")
                .help(format!("write `EXPOSE {outside} -> {component}:{inside}`")),
        )
    }

    fn address(&mut self) -> Parsed<Option<(Span, IpAddr)>> {
        if self.next() == Some(b'[') {
            let literal =
                delimited(char('['), take_while(|c: char| c.is_ascii_hexdigit() || ":.".contains(c)), char(']'));
            let ip = |(span, text): (Span, &str)| Some((span, text.parse::<Ipv6Addr>().ok()?));
            let before = self.at;
            let Some((span, ip)) = self.take(literal).and_then(ip) else {
                self.at = before;
                return Err(self.unexpected("an IPv6 address in brackets"));
            };
            self.mark(":").ok_or_else(|| self.missing("`:` and a port"))?;
            return Ok(Some((span, ip.into())));
        }
        let dotted =
            recognize(pair(digit1, preceded(char('.'), take_while1(|c: char| c.is_ascii_digit() || c == '.'))));
        let before = self.at;
        let Some((span, text)) = self.take(dotted) else { return Ok(None) };
        let Ok(ip) = text.parse::<Ipv4Addr>() else {
            self.at = before;
            return Err(self.unexpected("an IPv4 address"));
        };
        self.mark(":").ok_or_else(|| self.missing("`:` and a port"))?;
        Ok(Some((span, ip.into())))
    }

    fn ports(&mut self, expected: &str) -> Parsed<Ports> {
        let start = self.at;
        let range = pair(recognize(digit1), opt(preceded(char('-'), digit1)));
        let (span, (first, last)) = self.take(range).ok_or_else(|| self.missing(expected))?;
        if self.rest().starts_with(|c: char| c.is_ascii_alphanumeric() || "._".contains(c)) {
            self.at = start;
            return Err(self.missing(expected));
        }
        let first_span = Span::new(start, start + first.len());
        let last = last.map(|last: &str| Span::new(span.end as usize - last.len(), span.end as usize));
        Ok(Ports { first: first_span, last })
    }

    fn protocol(&mut self) -> Parsed<Protocol> {
        if self.next() != Some(b'/') || self.rest().starts_with("//") {
            return Ok(Protocol::default());
        }
        self.mark("/");
        match self.take(lex::ident) {
            Some((_, "tcp")) => Ok(Protocol::Tcp),
            Some((_, "udp")) => Ok(Protocol::Udp),
            Some((span, _)) => {
                self.at = span.start as usize;
                Err(self.missing("`tcp` or `udp`"))
            }
            None => Err(self.missing("`tcp` or `udp`")),
        }
    }
}

// Bodies and values.
impl<'t> Parser<'_, 't, '_> {
    fn name(&mut self, expected: &str) -> Parsed<Name> {
        self.trivia();
        if self.next() == Some(b'"') {
            let text = self.string()?;
            return Ok(Name { span: text.span, quote: Some(text.quote) });
        }
        if self.fresh && self.at_statement() {
            return Err(self.missing(expected));
        }
        let (span, _) = self.take(lex::ident).ok_or_else(|| self.missing(expected))?;
        Ok(Name { span, quote: None })
    }

    fn text(&mut self, expected: &str) -> Parsed<Text> {
        self.optional_text()?.ok_or_else(|| self.missing(expected))
    }

    fn optional_text(&mut self) -> Parsed<Option<Text>> {
        self.trivia();
        if self.next() == Some(b'"') { self.string().map(Some) } else { Ok(None) }
    }

    fn string(&mut self) -> Parsed<Text> {
        let start = self.at;
        if !self.rest().starts_with("\"\"\"")
            && let (length, true, false) = plain_string_end(self.rest())
        {
            self.advance(start + length);
            return Ok(Text { span: Span::new(start, self.at), quote: Quote::Plain });
        }
        let (length, quote) = string_end(self.rest());
        let raw = &self.rest()[..length];
        self.advance(start + length);
        let span = Span::new(start, self.at);
        if let Some(nul) = raw.find('\0') {
            self.nul(Span::new(start + nul, start + nul + 1));
        }
        let Some(quote) = quote else {
            let end = start + raw.trim_end().len().max(1);
            let help = if raw == "\"\"\"" {
                "close it with `\"\"\"`"
            } else {
                "close it with `\"` on the same line, or use `\"\"\"` for several lines"
            };
            return Err(self.report(
                Diagnostic::new(Code::UnclosedString, Span::new(start, end), "the string is not closed")
                    .label("begins here")
                    .help(help),
            ));
        };
        if quote == Quote::Plain && raw.contains('\\') {
            self.escapes(raw, start);
        }
        Ok(Text { span, quote })
    }

    fn nul(&mut self, span: Span) {
        self.report(
            Diagnostic::new(Code::NulCharacter, span, "a NUL character cannot stand in a string")
                .label("here")
                .help("remove it: the kernel takes it for the end of the text"),
        );
    }

    fn escapes(&mut self, raw: &str, start: usize) {
        let mut left = raw;
        while let Some((_, after)) = left.split_once('\\') {
            let at = start + raw.len() - after.len() - 1;
            left = match lex::escape(after) {
                Ok((next, '\0')) => {
                    self.nul(Span::new(at, start + raw.len() - next.len()));
                    next
                }
                Ok((next, _)) => next,
                Err(_) => {
                    let length = after.chars().next().map_or(0, char::len_utf8);
                    let text = &raw[at - start..at - start + 1 + length];
                    self.report(
                        Diagnostic::new(
                            Code::BadEscape,
                            Span::new(at, at + 1 + length),
                            format!("{} is no escape", shown(text)),
                        )
                        .label("unknown escape")
                        .expected(r#"`\"`, `\\`, `\n`, `\t`, `\r` or `\u{…}` with 1 to 6 hexadecimal digits"#)
                        .help(r"write `\\` for a backslash"),
                    );
                    &after[length..]
                }
            };
        }
    }

    fn optional_body(&mut self) -> Parsed<Option<&'t Body<'t>>> {
        self.trivia();
        if self.next() == Some(b'{') { Ok(Some(self.arena.alloc(self.body()?))) } else { Ok(None) }
    }

    /// Counts a level of nesting while `inner` reads what is in it.
    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            let (span, _) = self.token();
            return Err(self.report(
                Diagnostic::new(Code::TooDeep, span, format!("values are nested more than {MAX_DEPTH} deep"))
                    .label("one level too many")
                    .help("no property needs more than three levels"),
            ));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn body(&mut self) -> Parsed<Body<'t>> {
        self.nested(|parser| {
            let start = parser.mark("{").ok_or_else(|| parser.missing("`{`"))?;
            parser.open += 1;
            let level = parser.open;
            let first = parser.entries.len();
            let mut body = Body { span: start, entries: &[], partial: false };
            loop {
                parser.trivia();
                if let Some(end) = parser.mark("}") {
                    body.span = start.to(end);
                    break;
                }
                if parser.rest().is_empty() || parser.at_statement() {
                    parser.unclosed(start, "}");
                    body.span = start.to(Span::new(parser.end, parser.end));
                    body.partial = true;
                    break;
                }
                let before = parser.at;
                match parser.entry() {
                    Ok(entry) => {
                        parser.entries.push(entry);
                        parser.punctuation(",");
                    }
                    Err(Broken) => {
                        body.partial = true;
                        parser.recover_entry(before, level);
                    }
                }
                if parser.report.full() {
                    parser.entries.truncate(first);
                    return Err(Broken);
                }
            }
            body.entries = parser.arena.alloc_slice_copy(&parser.entries[first..]);
            parser.entries.truncate(first);
            parser.open -= 1;
            Ok(body)
        })
    }

    fn unclosed(&mut self, opened: Span, bracket: &str) {
        let (found, name) = self.token();
        let diagnostic = Diagnostic::new(Code::Unclosed, found, format!("expected `{bracket}`, found {name}"))
            .label(format!("`{bracket}` is missing before this"))
            .expected(format!("`{bracket}`"))
            .related(opened, "opened here")
            .help(format!("close it with `{bracket}`"));
        self.report(diagnostic);
    }

    fn entry(&mut self) -> Parsed<Entry<'t>> {
        self.form = PROPERTY;
        let key = if self.next() == Some(b'"') {
            let text = self.string()?;
            Name { span: text.span, quote: Some(text.quote) }
        } else {
            // That no statement begins here is known.
            let (span, _) = self.take(lex::ident).ok_or_else(|| self.unexpected("a property or `}`"))?;
            Name { span, quote: None }
        };
        self.trivia();
        if self.mark("=").is_some() {
            return Ok(Entry { key, action: Action::Set(self.value()?) });
        }
        if self.mark("+=").is_some() {
            let value = self.value()?;
            if !matches!(value.kind, ValueKind::List(_)) {
                return Err(self.report(
                    Diagnostic::new(
                        Code::Unexpected,
                        value.span,
                        format!("expected a list, found {}", value.kind.describe()),
                    )
                    .label("not a list")
                    .expected("a list")
                    .help("`+=` adds the items of a list: write them in `[ … ]`"),
                ));
            }
            return Ok(Entry { key, action: Action::Append(value) });
        }
        if self.next() == Some(b'{') {
            return Ok(Entry { key, action: Action::Set(self.value()?) });
        }
        match (key.quote, key.span.text(self.source)) {
            (None, "UNSET") if !self.fresh => {
                Ok(Entry { key: self.name("the property to remove")?, action: Action::Unset })
            }
            (None, "annotate") if self.at_key() => {
                self.take(lex::ident);
                self.trivia();
                Ok(Entry { key, action: Action::Annotate(self.value()?) })
            }
            _ => Err(self.missing("`=`, `+=` or `{`")),
        }
    }

    fn value(&mut self) -> Parsed<Value<'t>> {
        self.trivia();
        let start = self.at;
        let kind = match self.next() {
            Some(b'"') => ValueKind::Text(self.string()?.quote),
            Some(b'[') => ValueKind::List(self.arena.alloc(self.list()?)),
            Some(b'{') => ValueKind::Body(self.arena.alloc(self.body()?)),
            Some(b'0'..=b'9' | b'-') => self.number()?,
            Some(byte) if byte.is_ascii_alphabetic() && !self.at_key() && !(self.fresh && self.at_statement()) => {
                match self.take(lex::path) {
                    Some((_, "true")) => ValueKind::Bool(true),
                    Some((_, "false")) => ValueKind::Bool(false),
                    Some(_) => ValueKind::Path,
                    None => return Err(self.missing("a value")),
                }
            }
            _ => return Err(self.missing("a value")),
        };
        Ok(Value { span: Span::new(start, self.end), kind })
    }

    fn number(&mut self) -> Parsed<ValueKind<'t>> {
        let (span, text) = self.take(lex::number).ok_or_else(|| self.missing("a value"))?;
        match lex::number_kind(text) {
            Some(lex::NumberKind::Integer) => Ok(ValueKind::Integer),
            Some(lex::NumberKind::Decimal) => Ok(ValueKind::Decimal),
            Some(lex::NumberKind::Quantity) => Ok(ValueKind::Quantity),
            None => Err(self.report(
                Diagnostic::new(Code::BadNumber, span, format!("{} is no number", shown(text)))
                    .label("malformed number")
                    .expected("a whole number, a decimal number, a size as `64MiB` or a duration as `1m30s`")
                    .help("put it in quotes if it is a text"),
            )),
        }
    }

    fn list(&mut self) -> Parsed<&'t [Value<'t>]> {
        self.nested(|parser| {
            let start = parser.mark("[").ok_or_else(|| parser.missing("`[`"))?;
            parser.open += 1;
            let first = parser.values.len();
            loop {
                parser.trivia();
                if parser.mark("]").is_some() {
                    break;
                }
                let next = parser.rest();
                let lost = parser.fresh && (parser.at_key() || parser.at_statement());
                if next.is_empty() || next.starts_with('}') || lost {
                    // What follows is no item, so the entry is over: go on there instead of hunting for a bracket.
                    parser.unclosed(start, "]");
                    break;
                }
                match parser.value() {
                    Ok(value) => parser.values.push(value),
                    Err(Broken) => {
                        parser.values.truncate(first);
                        return Err(Broken);
                    }
                }
                parser.punctuation(",");
            }
            parser.open -= 1;
            let values: &[_] = parser.arena.alloc_slice_copy(&parser.values[first..]);
            parser.values.truncate(first);
            Ok(values)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts a file wherever a COMPONENT seems to begin. How often the halves were good comes back.
    fn cut_everywhere(source: &str) -> usize {
        let arena = Arena::new();
        let mut report = Report::default();
        let whole = file(source, 0, &arena, &mut report);
        let (mut from, mut good) = (0, 0);
        while let Some(cut) = likely_boundary(source, from) {
            let (first, mut second) = (Arena::new(), Arena::new());
            if let Some(halves) = file_in_halves(source, cut, &first, &mut second) {
                assert!(report.is_empty(), "the whole has a finding, the halves at {cut} have none");
                assert_eq!(halves, whole, "cut at {cut}");
                good += 1;
            }
            from = cut;
        }
        good
    }

    #[test]
    fn halves_are_the_whole() {
        let source = "PARAM a\nCOMPONENT b { image = \"x\" }\nCONNECT b -> c\nCOMPONENT c FROM b { env { A = 1 } }\n\
            IMPORT \"x\"\nCOMPONENT d { command = \"\"\"\nCOMPONENT e {\n\"\"\" }\nEXPOSE 80\nCOMPONENT f { }\n# {\nCOMPONENT g { }";
        assert_eq!(cut_everywhere(source), 5);
    }

    #[test]
    fn a_cut_inside_of_something_is_noticed() {
        for source in [
            "COMPONENT a { command = \"\"\"\nCOMPONENT b { }\n\"\"\" }",
            "COMPONENT a { env {\nCOMPONENT = 1 } }\n",
            "COMPONENT a { env {\nCOMPONENT x = 1 } }",
            "CONNECT a -> b,\nCOMPONENT c { }",
            "CONNECT a ->\nCOMPONENT { }",
            "PARAM a =\nCOMPONENT b { }",
            "COMPONENT a { }\nCOMPONENT b {",
            "COMPONENT a { }\nCOMPONENT b { } }",
        ] {
            assert_eq!(cut_everywhere(source), 0, "{source}");
        }
    }
}
