//! The file that is checked and what it imports.
//!
//! All of them stand one behind the other in one text, so that a span says which file it is in.

use std::borrow::Cow;
use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::codes::Code;
use crate::diagnostic::{Diagnostic, Report, Span, shown};
use crate::parse;
use crate::syntax::{self, Arena, StatementKind, Text};
use crate::text;
use crate::{Loader, MAX_SOURCE};

/// Most files that one composition is made of.
const MOST_FILES: usize = 1024;
/// Longest chain of imports.
const MOST_LEVELS: usize = 64;

/// One file.
pub(crate) struct Source<'t> {
    pub(crate) name: String,
    /// Where it begins in the text.
    pub(crate) base: usize,
    pub(crate) length: usize,
    pub(crate) tree: syntax::File<'t>,
    /// Its IMPORT statements, in order.
    pub(crate) imports: Vec<Import>,
}

/// An IMPORT statement.
pub(crate) struct Import {
    pub(crate) span: Span,
    pub(crate) alias: Option<syntax::Name>,
    /// The file; `None` after an error.
    pub(crate) target: Option<usize>,
}

/// Reads a file and all that it imports. The text of all of them comes with them. The trees lie in the two arenas.
pub(crate) fn read<'s, 't>(
    name: &str,
    main: &'s str,
    loader: Option<&dyn Loader>,
    (arena, second): (&'t Arena, &'t mut Arena),
    report: &mut Report,
) -> (Cow<'s, str>, Vec<Source<'t>>) {
    let tree = parse::whole_file(main, arena, second, report);
    let first = Source { name: name.to_owned(), base: 0, length: main.len(), tree, imports: Vec::new() };
    let mut reader = Reader {
        text: Cow::Borrowed(main),
        files: vec![first],
        by_name: HashMap::from([(name.to_owned(), 0)]),
        chain: vec![0],
        loader,
        arena,
        report,
    };
    reader.imports(0);
    (reader.text, reader.files)
}

struct Reader<'s, 't, 'r> {
    text: Cow<'s, str>,
    files: Vec<Source<'t>>,
    by_name: HashMap<String, usize>,
    /// The files whose imports are being read, from the first on.
    chain: Vec<usize>,
    loader: Option<&'r dyn Loader>,
    arena: &'t Arena,
    report: &'r mut Report,
}

impl Reader<'_, '_, '_> {
    fn imports(&mut self, file: usize) {
        let statements = &self.files[file].tree.statements;
        let found: Vec<_> = statements
            .iter()
            .filter_map(|statement| match &statement.kind {
                StatementKind::Import { source, sha256, alias } => Some((statement.keyword, *source, *sha256, *alias)),
                _ => None,
            })
            .collect();
        for (keyword, source, sha256, alias) in found {
            if self.report.full() {
                return;
            }
            let target = self.import(file, keyword, source, sha256);
            self.files[file].imports.push(Import { span: source.span, alias, target });
        }
    }

    fn import(&mut self, file: usize, keyword: Span, source: Text, sha256: Option<Text>) -> Option<usize> {
        let later = |span, what: &str| {
            Diagnostic::new(Code::NotSupported, span, format!("{what} is not supported yet"))
                .label("not supported yet")
                .help("remove it: this version of ctst refuses what it would not carry out")
        };
        let Some(loader) = self.loader else {
            self.report.push(later(keyword, "`IMPORT`"));
            return None;
        };
        let path = text::unquoted(&self.text, source).into_owned();
        let pin = match sha256 {
            Some(pin) => Some((pin.span, self.pin(pin)?)),
            None => None,
        };
        if path.starts_with("http://") {
            let message = "what comes over http:// can be changed by anybody on the way";
            self.failed(source.span, message, "import from https://, or a local file");
            return None;
        }
        let remote = path.starts_with("https://");
        let from_remote = self.files[file].name.starts_with("https://");
        let address = path.strip_prefix("https://").unwrap_or(&path);
        if address.is_empty()
            || address.contains("://")
            || path.contains("${")
            || path.contains(|c: char| c == '\0' || remote && (c.is_whitespace() || c.is_control() || c == '#'))
        {
            let help = "give a path as `\"templates/db.ctst\"`, or an address as `\"https://example.org/db.ctst\"`";
            self.failed(source.span, "this is neither the path of a file nor an https:// address", help);
            return None;
        }
        if from_remote && !remote {
            let message = "a file from the network imports no file of this host";
            self.failed(source.span, message, "give a whole https:// address");
            return None;
        }
        let loaded = if remote {
            let fetched = loader.fetch(&path, pin.as_ref().map(|(_, digest)| digest.as_str()));
            fetched.map(|bytes| (path.clone(), bytes))
        } else {
            loader.load(&self.files[file].name, &path).map_err(|cause| {
                (cause, "the path is relative to this file, or else to the project's folder".to_owned())
            })
        };
        let (name, bytes) = match loaded {
            Ok(loaded) => loaded,
            Err((cause, help)) => {
                self.failed(source.span, &format!("cannot import {}: {cause}", shown(&path)), &help);
                return None;
            }
        };
        if let Some((span, expected)) = pin {
            let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            if found != expected {
                self.report.push(
                    Diagnostic::new(Code::WrongPin, span, format!("{} has another digest: {found}", shown(&path)))
                        .label("pinned to this")
                        .help("see what has changed in it; if that is well, pin the new digest"),
                );
                return None;
            }
        }
        match self.by_name.get(&name).copied() {
            Some(known) if self.chain.contains(&known) => {
                self.circle(source.span, known);
                None
            }
            Some(known) => Some(known),
            None => self.add(source.span, name, &bytes),
        }
    }

    fn pin(&mut self, pin: Text) -> Option<String> {
        let text = text::unquoted(&self.text, pin);
        let good = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digest = good.then(|| text.to_ascii_lowercase());
        if digest.is_none() {
            self.report.push(
                Diagnostic::new(Code::BadDigest, pin.span, "the digest is malformed")
                    .label("malformed digest")
                    .expected("64 hexadecimal digits")
                    .help("take what `sha256sum` says of the file"),
            );
        }
        digest
    }

    fn failed(&mut self, span: Span, message: &str, help: &str) {
        self.report.push(Diagnostic::new(Code::BadImport, span, message).label("not imported").help(help));
    }

    fn circle(&mut self, span: Span, known: usize) {
        let from = self.chain.iter().position(|&file| file == known).unwrap_or_default();
        let names: Vec<&str> =
            self.chain[from..].iter().chain([&known]).map(|&file| self.files[file].name.as_str()).collect();
        let message = format!("the files import each other in a circle: {}", names.join(" -> "));
        self.report.push(
            Diagnostic::new(Code::ImportCircle, span, message)
                .label("leads back")
                .help("remove one of these IMPORT; what both need goes into a third file"),
        );
    }

    fn add(&mut self, span: Span, name: String, bytes: &[u8]) -> Option<usize> {
        if self.chain.len() >= MOST_LEVELS || self.files.len() >= MOST_FILES {
            let message =
                format!("imports go more than {MOST_LEVELS} levels deep, or are more than {MOST_FILES} files");
            self.report
                .push(Diagnostic::new(Code::TooManyLevels, span, message).label("one too many").help("import less"));
            return None;
        }
        if self.text.len() + bytes.len() >= MAX_SOURCE {
            self.failed(span, "the files together are too large", "import smaller files");
            return None;
        }
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("{} is not UTF-8: invalid byte at offset {}", shown(&name), error.valid_up_to());
                self.failed(span, &message, "save it as UTF-8");
                return None;
            }
        };
        // A byte between two files, so that the end of one is not the beginning of the next.
        let all = self.text.to_mut();
        all.push('\n');
        let base = all.len();
        all.push_str(text);
        let tree = parse::file(&self.text, base, self.arena, self.report);
        let index = self.files.len();
        self.by_name.insert(name.clone(), index);
        self.files.push(Source { name, base, length: text.len(), tree, imports: Vec::new() });
        self.chain.push(index);
        self.imports(index);
        self.chain.pop();
        Some(index)
    }
}
