//! The syntax tree. It keeps spans instead of copies: a text is read from the source when it is needed, so that a
//! tree costs little more than the file it stands for. Its nodes lie in an arena, one behind the other in the order in
//! which they are read, and are freed together.

use std::net::IpAddr;

use crate::diagnostic::Span;
use crate::model::Protocol;
use crate::text;

/// What the nodes of a tree lie in.
pub use bumpalo::Bump as Arena;

/// A parsed file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct File<'t> {
    /// Its statements, in order.
    pub statements: Vec<Statement<'t>>,
    /// Whether a statement was dropped because it could not be read.
    pub partial: bool,
}

/// One statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'t> {
    /// The word that it begins with.
    pub keyword: Span,
    /// All of it.
    pub span: Span,
    /// What it says.
    pub kind: StatementKind<'t>,
}

/// What a statement says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatementKind<'t> {
    /// `STACK "name" { … }`
    Stack {
        /// The project's name.
        name: Text,
        /// Settings of the whole project.
        body: Option<&'t Body<'t>>,
    },
    /// `PARAM name: type = value "help"`
    Param(&'t Param<'t>),
    /// `IMPORT "path" SHA256 "…" AS alias`
    Import {
        /// Path or URL.
        source: Text,
        /// Pinned digest.
        sha256: Option<Text>,
        /// Name under which it is used.
        alias: Option<Name>,
    },
    /// `COMPONENT`, `TEMPLATE` or `JOB`.
    Component(&'t Component<'t>),
    /// `CONNECT a -> b, c`
    Connect(&'t Connect<'t>),
    /// `EXPOSE 8080 -> web:80`
    Expose(&'t Expose),
    /// `NETWORK name { … }`
    Network {
        /// Its name.
        name: Name,
        /// Its properties.
        body: Option<&'t Body<'t>>,
    },
    /// `VOLUME name { … }`
    Volume {
        /// Its name.
        name: Name,
        /// Its properties.
        body: Option<&'t Body<'t>>,
    },
    /// `SECRET name FROM FILE "path"`
    Secret {
        /// Its name.
        name: Name,
        /// `FILE`, `ENV` or `COMMAND`.
        from: SecretFrom,
        /// Path, variable or command line.
        source: Text,
    },
    /// `CONFIG name = value`
    Config {
        /// Its name.
        name: Name,
        /// Its content.
        value: &'t Value<'t>,
    },
}

/// `PARAM`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param<'t> {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub kind: Option<Name>,
    /// Its default.
    pub default: Option<Value<'t>>,
    /// Whether `REQUIRED` stands there.
    pub required: bool,
    /// What it is for.
    pub help: Option<Text>,
}

/// Which word declared a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComponentKind {
    /// `COMPONENT`
    Component,
    /// `TEMPLATE`: only to inherit from.
    Template,
    /// `JOB`: runs to completion.
    Job,
}

/// `COMPONENT name(params) FROM base(args) { … }`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component<'t> {
    /// Which word it began with.
    pub kind: ComponentKind,
    /// Its name.
    pub name: Name,
    /// Its parameters.
    pub params: Option<&'t Arguments<'t>>,
    /// What it inherits from.
    pub base: Option<&'t Base<'t>>,
    /// Its properties.
    pub body: Body<'t>,
}

/// `(a = 1, b)`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arguments<'t> {
    /// Brackets included.
    pub span: Span,
    /// Names with defaults or values.
    pub list: &'t [(Name, Option<Value<'t>>)],
}

/// `FROM path(args)`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base<'t> {
    /// From `FROM` to the end.
    pub span: Span,
    /// `pg` or `pg.server`.
    pub path: Span,
    /// Values for the base's parameters.
    pub args: Option<Arguments<'t>>,
}

/// `CONNECT a -> b, c WHEN healthy TIMEOUT 30s OPTIONAL { … }`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect<'t> {
    /// Who waits.
    pub from: Name,
    /// For whom.
    pub to: &'t [Name],
    /// How far up they must be.
    pub when: Option<(Span, ConnectWhen)>,
    /// How long to wait.
    pub timeout: Option<Value<'t>>,
    /// Where `OPTIONAL` stands.
    pub optional: Option<Span>,
    /// Properties of the connection.
    pub body: Option<&'t Body<'t>>,
}

/// `WHEN …`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectWhen {
    /// `started`
    Started,
    /// `healthy`
    Healthy,
    /// `completed`
    Completed,
}

/// `EXPOSE 127.0.0.1:8080-8082 -> web:80-82/tcp`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expose {
    /// Address on the host.
    pub address: Option<(Span, IpAddr)>,
    /// Ports on the host, or on both sides if there are no others.
    pub host: Ports,
    /// The component.
    pub component: Option<Name>,
    /// Ports of the container.
    pub inside: Option<Ports>,
    /// What goes there.
    pub protocol: Protocol,
    /// Where `PUBLIC` stands.
    pub public: Option<Span>,
}

/// `80` or `3000-3005`; the spans cover the digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// First port.
    pub first: Span,
    /// Last port of a range.
    pub last: Option<Span>,
}

impl Ports {
    /// All of it.
    #[must_use]
    pub fn span(&self) -> Span {
        self.last.map_or(self.first, |last| self.first.to(last))
    }
}

/// Where a secret comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretFrom {
    /// `FILE`
    File,
    /// `ENV`
    Env,
    /// `COMMAND`
    Command,
}

/// A name or a key: a bare word or a quoted string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// Quotes included.
    pub span: Span,
    /// How it is written; `None` is a bare word.
    pub quote: Option<Quote>,
}

impl Name {
    /// The name without quotes and escapes. Placeholders in it mean nothing.
    #[must_use]
    pub fn text<'a>(&self, source: &'a str) -> std::borrow::Cow<'a, str> {
        match self.quote {
            None => self.span.text(source).into(),
            Some(quote) => text::unquoted(source, Text { span: self.span, quote }),
        }
    }
}

/// How a string is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quote {
    /// `"…"` with escapes, on one line.
    Plain,
    /// `"""…"""`, taken as it stands but for its indentation.
    Triple,
}

impl Quote {
    /// Length of the opening and of the closing quote.
    pub(crate) fn len(self) -> u32 {
        match self {
            Quote::Plain => 1,
            Quote::Triple => 3,
        }
    }
}

/// A string where nothing but a string may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text {
    /// Quotes included.
    pub span: Span,
    /// How it is quoted.
    pub quote: Quote,
}

/// `{ … }`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Body<'t> {
    /// Braces included.
    pub span: Span,
    /// What stands in it, in order.
    pub entries: &'t [Entry<'t>],
    /// Whether an entry was dropped because it could not be read.
    pub partial: bool,
}

/// One line of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'t> {
    /// The key.
    pub key: Name,
    /// What happens to it.
    pub action: Action<'t>,
}

/// What a body does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'t> {
    /// `key = value` or `key { … }`
    Set(Value<'t>),
    /// `key += [ … ]`
    Append(Value<'t>),
    /// `UNSET key`
    Unset,
    /// `annotate target { … }`: notes for an exporter.
    Annotate(Value<'t>),
}

/// A value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value<'t> {
    /// Quotes and brackets included.
    pub span: Span,
    /// What it is. Numbers and words are read from the span.
    pub kind: ValueKind<'t>,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind<'t> {
    /// A string.
    Text(Quote),
    /// `-5`, `80`
    Integer,
    /// `0.5`
    Decimal,
    /// `64MiB`, `1m30s`
    Quantity,
    /// `true`, `false`
    Bool(bool),
    /// `[ … ]`
    List(&'t &'t [Value<'t>]),
    /// `{ … }`
    Body(&'t Body<'t>),
    /// `name` or `name.field`, not in quotes.
    Path,
}

impl ValueKind<'_> {
    /// For messages.
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            ValueKind::Text(_) => "a string",
            ValueKind::Integer => "a whole number",
            ValueKind::Decimal => "a decimal number",
            ValueKind::Quantity => "a number with a unit",
            ValueKind::Bool(_) => "a truth value",
            ValueKind::List(_) => "a list",
            ValueKind::Body(_) => "a block",
            ValueKind::Path => "a bare word",
        }
    }
}
