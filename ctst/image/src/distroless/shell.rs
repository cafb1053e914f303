//! What shell scripts run: the words in the place of a command, as far as they are known before the script runs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use brush_parser::ast::{
    AndOr, AssignmentValue, Command, CommandPrefixOrSuffixItem, CompoundCommand, CompoundList, ExtendedTestExpr,
    IoFileRedirectTarget, IoRedirect, Program, SimpleCommand, Word,
};
use brush_parser::word::{self, ParameterExpr, WordPiece, WordPieceWithSource};
use brush_parser::{ParseError, Parser, ParserOptions, SourceInfo};

use super::interpreters::Language;
use super::wrappers::{self, Runs};
use super::{Closure, failed};
use crate::Error;
use crate::error::{shown, text};

/// Scripts that run scripts, and texts within texts.
const MOST_NESTED: usize = 16;
/// Brackets in brackets of one word.
const MOST_SUBSCRIPTS: usize = 3;
/// Brackets, operators and keywords of one text.
const MOST_OPENINGS: usize = 1 << 16;
const STACK: usize = 8 << 20;
/// About three times of what was measured.
const STACK_OF_LEVEL: usize = 16 << 10;
/// For the words of one text.
const MOST_TIME: Duration = Duration::from_secs(60);
const SHELLS: [&str; 7] = ["sh", "bash", "dash", "ash", "ksh", "zsh", "mksh"];
/// What a shell does itself.
const BUILTINS: [&str; 59] = [
    ".",
    ":",
    "[",
    "alias",
    "bg",
    "bind",
    "break",
    "caller",
    "case",
    "cd",
    "compgen",
    "complete",
    "continue",
    "declare",
    "dirs",
    "disown",
    "echo",
    "enable",
    "exit",
    "export",
    "false",
    "fc",
    "fg",
    "getopts",
    "hash",
    "help",
    "history",
    "jobs",
    "kill",
    "let",
    "local",
    "logout",
    "mapfile",
    "popd",
    "printf",
    "pushd",
    "pwd",
    "read",
    "readarray",
    "readonly",
    "return",
    "set",
    "shift",
    "shopt",
    "source",
    "suspend",
    "test",
    "times",
    "trap",
    "true",
    "type",
    "typeset",
    "ulimit",
    "umask",
    "unalias",
    "unset",
    "wait",
    "select",
    "[[",
];
/// Every argument of the script or function.
const ARGUMENTS: [&str; 6] = ["\"$@\"", "$@", "\"$*\"", "$*", "\"${@}\"", "${@}"];

/// A text of a shell's.
struct Text<'t> {
    /// The file; `None`: it is an argument of a command.
    file: Option<&'t Path>,
    /// Its arguments, where they are known.
    arguments: Option<&'t [String]>,
    /// Its functions and aliases; those functions that run their arguments.
    functions: BTreeSet<String>,
    forwarding: BTreeSet<String>,
    /// The function that is looked at.
    within: Option<String>,
    /// Lines before it, where it stands in another text.
    line: usize,
    depth: usize,
    /// Somebody answers for what is not known of it.
    is_vouched_for: bool,
}

/// A word as far as it is known.
#[derive(Debug, Clone)]
struct Known {
    /// As it is written.
    written: String,
    /// What it stands for.
    literal: Option<String>,
    line: usize,
}

impl Closure<'_> {
    /// Takes a program with what it needs, and what it runs if it is a script, a shell, or runs other commands.
    pub(super) fn run(&mut self, program: &Path, argv: &[String], depth: usize) -> Result<(), Error> {
        self.files.program(program, 0)?;
        let Some(found) = self.files.resolve(program)? else { return Ok(()) };
        let interpreter =
            self.files.scripts.iter().find(|script| script.real == found.real).map(|script| script.interpreter.clone());
        let arguments = argv.get(1..).unwrap_or_default();
        if let Some(interpreter) = interpreter {
            if is_shell(&interpreter) {
                return self.script(&found.real, Some(arguments), depth);
            }
            if let Some(language) = Language::of(&interpreter) {
                self.beside(language, program)?;
                self.beside(language, &found.real)?;
            }
            return self.interpreters();
        }
        let name = program.file_name().unwrap_or_default();
        if let Some(language) = Language::of(name) {
            self.beside(language, program)?;
            let script = arguments.iter().find(|word| !word.starts_with('-'));
            if let Some(script) = script.map(|word| self.cwd().join(word))
                && let Some(script) =
                    self.files.resolve(&script)?.filter(|f| f.meta.kind == rustix::fs::FileType::RegularFile)
            {
                self.files.take(&script)?;
                self.beside(language, &script.real)?;
            }
            return self.interpreters();
        }
        let (name, arguments) = match arguments.split_first() {
            Some((applet, rest)) if name == "busybox" => (OsStr::new(applet), rest),
            _ => (name, arguments),
        };
        if is_shell(name) {
            return self.shell(arguments, depth);
        }
        let name = name.to_str().unwrap_or_default();
        for runs in wrappers::runs(name, arguments, |word| Some(word.as_str())) {
            match runs {
                Runs::Command(range) => self.command(&arguments[range], depth)?,
                Runs::Text(at) => {
                    self.shell_of(name, arguments)?;
                    self.text_of(&arguments[at], None, None, 0, depth + 1)?;
                }
            }
        }
        Ok(())
    }

    /// Takes the shell that a program gives a text to: `su(1)` that of the account, others `sh`.
    fn shell_of(&mut self, name: &str, arguments: &[String]) -> Result<(), Error> {
        let mut shell = "sh".to_owned();
        if name == "su" {
            let accounts = self.text(Path::new("/etc/passwd"))?.unwrap_or_default();
            let of = |user: &str| {
                let line = accounts.lines().find(|line| line.split(':').next() == Some(user))?;
                line.split(':').nth(6).filter(|shell| !shell.is_empty()).map(str::to_owned)
            };
            let named = arguments.iter().find_map(|word| of(word));
            shell = named.or_else(|| of("root")).unwrap_or(shell);
        }
        match self.locate(&shell)? {
            Some(shell) => self.files.program(&shell, 0),
            None => Ok(()),
        }
    }

    /// The command that a program runs which was given it as arguments.
    fn command(&mut self, argv: &[String], depth: usize) -> Result<(), Error> {
        let Some(first) = argv.first() else { return Ok(()) };
        if depth >= MOST_NESTED {
            return Err(failed(
                format!("`{}` is run by a command that is run by one, and so on, {MOST_NESTED} times", text(first)),
                "leave `distroless` out",
            ));
        }
        match self.locate(first)? {
            Some(program) => self.run(&program, argv, depth + 1),
            None => {
                self.absent.insert((text(first), "as an argument".to_owned()));
                Ok(())
            }
        }
    }

    /// `sh FILE …`, `sh -c TEXT …`.
    fn shell(&mut self, arguments: &[String], depth: usize) -> Result<(), Error> {
        let mut is_text = false;
        let mut rest = arguments;
        while let Some((word, after)) = rest.split_first() {
            match word.as_bytes() {
                b"--" => {
                    rest = after;
                    break;
                }
                [b'-' | b'+', b'o'] => rest = after.get(1..).unwrap_or_default(),
                [b'-' | b'+', letters @ ..] if !letters.is_empty() => {
                    is_text |= letters.contains(&b'c') && letters.first() != Some(&b'-');
                    rest = after;
                }
                _ => break,
            }
        }
        let Some((first, rest)) = rest.split_first() else { return Ok(()) };
        if is_text {
            // The word after the text is its $0.
            return self.text_of(first, None, Some(rest.get(1..).unwrap_or_default()), 0, depth);
        }
        let file = self.cwd().join(first);
        match self.files.resolve(&file)? {
            Some(found) => {
                self.files.take(&found)?;
                self.script(&found.real, Some(rest), depth)
            }
            None => Ok(()),
        }
    }

    /// Takes what a script runs, as far as it is known.
    fn script(&mut self, file: &Path, arguments: Option<&[String]>, depth: usize) -> Result<(), Error> {
        if !self.read.insert(file.into()) {
            return Ok(());
        }
        match self.text(file) {
            Ok(Some(text)) => self.text_of(&text, Some(file), arguments, 0, depth),
            Err(Error::Strip { .. }) if self.is_vouched_for(file) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Notes what only a running script knows, unless somebody answers for the script.
    fn unknown(&mut self, at: &Text<'_>, line: usize, word: &str, why: &str) {
        if at.is_vouched_for {
            return;
        }
        let line = match line {
            0 => String::new(),
            line => format!("line {} of ", line + at.line),
        };
        let word = text(&word.chars().take(200).collect::<String>());
        self.unknown.add(at.file, format!("{line}{}: `{word}` {why}", place(at)));
    }

    fn text_of(
        &mut self,
        source: &str,
        file: Option<&Path>,
        arguments: Option<&[String]>,
        line: usize,
        depth: usize,
    ) -> Result<(), Error> {
        let mut text = Text {
            file,
            arguments,
            functions: BTreeSet::new(),
            forwarding: BTreeSet::new(),
            within: None,
            line,
            depth,
            is_vouched_for: file.is_some_and(|file| self.is_vouched_for(file)),
        };
        self.look_through(source, &mut text)
    }

    fn look_through(&mut self, source: &str, text: &mut Text<'_>) -> Result<(), Error> {
        if text.depth >= MOST_NESTED {
            self.unknown(text, 0, "commands within commands", "are nested too deeply to be looked through");
            return Ok(());
        }
        // The parser, and what reads its tree, call themselves for each level.
        let levels = openings(source);
        if levels > MOST_OPENINGS {
            let why = "may be in each other, and are too many to be looked through";
            self.unknown(text, 0, &format!("{levels} brackets, operators and keywords"), why);
            return Ok(());
        }
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK + levels * STACK_OF_LEVEL);
            let looking = thread.spawn_scoped(scope, || self.look_through_here(source, text)).map_err(|e| {
                failed(
                    format!("look through a script of {levels} levels: {e}"),
                    "build it without `distroless`, or with a shorter script",
                )
            })?;
            looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn look_through_here(&mut self, source: &str, text: &mut Text<'_>) -> Result<(), Error> {
        let program = match parse(source) {
            Ok(program) => program,
            Err(ParseError::ParsingNearToken(token)) => {
                self.unknown(text, token.location().start.line, token.to_str(), "is not understood");
                return Ok(());
            }
            Err(ParseError::Tokenizing { position, .. }) => {
                self.unknown(text, position.map_or(0, |at| at.line), "its syntax", "is not understood");
                return Ok(());
            }
            Err(ParseError::ParsingAtEndOfInput) => {
                self.unknown(text, 0, "its syntax", "is not understood at its end");
                return Ok(());
            }
        };
        let mut commands = Commands::default();
        for list in &program.complete_commands {
            commands.list(list);
        }
        text.functions.extend(commands.functions.keys().cloned());
        for (name, simple) in &commands.functions {
            if simple.iter().any(|words| words.first().is_some_and(|word| is_arguments(&word.written))) {
                text.forwarding.insert(name.clone());
            }
        }
        for words in &commands.simple {
            self.simple(words, text)?;
        }
        for (name, simple) in &commands.functions {
            text.within = Some(name.clone());
            for words in simple {
                self.simple(words, text)?;
            }
        }
        text.within = None;
        for (inner, line) in &commands.inner {
            let before = text.line;
            text.line += line.saturating_sub(1);
            text.depth += 1;
            self.look_through(inner, text)?;
            text.depth -= 1;
            text.line = before;
        }
        Ok(())
    }

    /// Takes what the words of one command run.
    fn simple(&mut self, words: &[Known], text: &mut Text<'_>) -> Result<(), Error> {
        let Some((first, rest)) = words.split_first() else { return Ok(()) };
        if is_arguments(&first.written) {
            // What a function is called with is looked at where it is called.
            return match (&text.within, text.arguments) {
                (Some(_), _) => Ok(()),
                (None, Some(arguments)) => self.command(arguments, text.depth),
                (None, None) => {
                    self.unknown(text, first.line, &first.written, "runs what is not known before");
                    Ok(())
                }
            };
        }
        // The script itself, once more.
        if matches!(first.written.as_str(), "\"$0\"" | "$0" | "\"${0}\"" | "${0}") {
            return Ok(());
        }
        let Some(name) = &first.literal else {
            self.unknown(text, first.line, &first.written, "runs what is not known before");
            return Ok(());
        };
        match name.as_str() {
            "." | "source" => return self.source(rest, text),
            "eval" => return self.quoted(rest, text),
            "trap" => return self.quoted(rest.get(..1).unwrap_or_default(), text),
            "alias" => return self.aliases(rest, text),
            "set" => {
                // set -- PROGRAM "$@"
                let after = rest.iter().skip_while(|word| word.written.starts_with('-'));
                let named = after.take(1).filter_map(|word| word.literal.clone()).next();
                return match named {
                    Some(name) => match self.locate(&name)? {
                        Some(program) => self.run(&program, &[name], text.depth + 1),
                        None => Ok(()),
                    },
                    None => Ok(()),
                };
            }
            "command" if rest.first().is_some_and(|word| matches!(word.written.as_str(), "-v" | "-V")) => return Ok(()),
            _ => {}
        }
        if text.functions.contains(name) {
            return match text.forwarding.contains(name) && text.within.as_ref() != Some(name) {
                true => self.simple(rest, text),
                false => Ok(()),
            };
        }
        let is_builtin = BUILTINS.contains(&name.as_str()) || matches!(name.as_str(), "exec" | "command" | "builtin");
        let program = if is_builtin { None } else { self.locate(name)? };
        if program.is_none() && !is_builtin {
            self.absent.insert((self::text(name), place(text)));
            return Ok(());
        }
        if is_shell(OsStr::new(name.rsplit('/').next().unwrap_or(name)))
            && rest.iter().any(|word| word.literal.is_none() && !is_arguments(&word.written))
        {
            let word = rest.iter().find(|word| word.literal.is_none() && !is_arguments(&word.written));
            let written = word.map_or("", |word| &word.written);
            self.unknown(text, first.line, written, "has a shell do what is not known before");
            return Ok(());
        }
        if let Some(program) = program {
            let argv: Vec<String> = words.iter().map_while(|word| word.literal.clone()).collect();
            let plain = name.rsplit('/').next().unwrap_or(name);
            match wrappers::is_wrapper(plain) {
                true => self.files.program(&program, 0)?,
                false => self.run(&program, &argv, text.depth + 1)?,
            }
        }
        let plain = name.rsplit('/').next().unwrap_or(name);
        for runs in wrappers::runs(plain, rest, |word: &Known| word.literal.as_deref()) {
            if text.depth >= MOST_NESTED {
                self.unknown(text, first.line, &first.written, "is nested too deeply to be looked through");
                return Ok(());
            }
            text.depth += 1;
            let done = match runs {
                Runs::Command(range) => self.simple(&rest[range], text),
                Runs::Text(at) => {
                    let known: Vec<String> = rest.iter().filter_map(|word| word.literal.clone()).collect();
                    self.shell_of(plain, &known)?;
                    self.quoted(&rest[at..=at], text)
                }
            };
            text.depth -= 1;
            done?;
        }
        Ok(())
    }

    /// `. FILE`.
    fn source(&mut self, rest: &[Known], text: &mut Text<'_>) -> Result<(), Error> {
        let Some(file) = rest.first() else { return Ok(()) };
        let Some(name) = &file.literal else {
            self.unknown(text, file.line, &file.written, "is read as a script, and which is not known before");
            return Ok(());
        };
        let path = match name.contains('/') {
            true => Some(self.cwd().join(name)),
            false => self.locate(name)?,
        };
        let path: Option<PathBuf> = path;
        let Some(path) = path else { return Ok(()) };
        let Some(found) = self.files.resolve(&path)? else { return Ok(()) };
        if !self.files.take_if_there(&path)? || !self.read.insert(found.real.clone()) {
            return Ok(());
        }
        let is_vouched_for = self.is_vouched_for(&found.real);
        let source = match self.text(&found.real) {
            Err(Error::Strip { .. }) if is_vouched_for => return Ok(()),
            other => other?.unwrap_or_default(),
        };
        let mut inner = Text {
            file: Some(&found.real),
            arguments: text.arguments,
            functions: text.functions.clone(),
            forwarding: text.forwarding.clone(),
            within: None,
            line: 0,
            depth: text.depth + 1,
            is_vouched_for,
        };
        self.look_through(&source, &mut inner)?;
        text.functions = inner.functions;
        text.forwarding = inner.forwarding;
        Ok(())
    }

    /// `alias NAME=TEXT …`.
    fn aliases(&mut self, words: &[Known], text: &mut Text<'_>) -> Result<(), Error> {
        for word in words {
            let Some((name, value)) = word.written.split_once('=') else { continue };
            let literal = Commands::default().word(&Word::new(value)).literal;
            self.quoted(&[Known { written: value.to_owned(), literal, line: word.line }], text)?;
            text.functions.insert(name.to_owned());
        }
        Ok(())
    }

    /// A text that the shell reads as commands.
    fn quoted(&mut self, words: &[Known], text: &mut Text<'_>) -> Result<(), Error> {
        let mut source = String::new();
        for word in words {
            let Some(literal) = &word.literal else {
                self.unknown(text, word.line, &word.written, "is run, and what it is is not known before");
                return Ok(());
            };
            source.push_str(literal);
            source.push(' ');
        }
        if source.trim().is_empty() || source.trim() == "-" {
            return Ok(());
        }
        text.depth += 1;
        let done = self.look_through(&source, text);
        text.depth -= 1;
        done
    }
}

fn place(text: &Text<'_>) -> String {
    text.file.map_or_else(|| "the shell's text".to_owned(), |file| format!("`{}`", shown(file)))
}

fn is_shell(name: &OsStr) -> bool {
    SHELLS.iter().any(|shell| name == *shell)
}

fn is_arguments(written: &str) -> bool {
    ARGUMENTS.contains(&written)
}

/// How many brackets are open at once, at most.
fn nested(word: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in word.bytes() {
        match byte {
            b'[' => open += 1,
            b']' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// No fewer than its syntax tree has levels, whatever of it is quoted or a comment.
fn openings(source: &str) -> usize {
    let brackets = source.bytes().filter(|byte| b"({`!&|".contains(byte)).count();
    let words = source.split(|c: char| !c.is_ascii_alphabetic());
    let keywords =
        words.filter(|word| ["if", "elif", "for", "while", "until", "select", "case"].contains(word)).count();
    brackets + keywords
}

fn parse(source: &str) -> Result<Program, ParseError> {
    Parser::new(source.as_bytes(), &ParserOptions::default(), &SourceInfo::default()).parse_program()
}

/// All commands of a program.
#[derive(Default)]
struct Commands {
    simple: Vec<Vec<Known>>,
    /// Those in functions, by the name of the function.
    functions: BTreeMap<String, Vec<Vec<Known>>>,
    /// The function that is looked at.
    within: Option<String>,
    /// Texts of command substitutions, with their lines.
    inner: Vec<(String, usize)>,
    /// When the first word was parsed.
    begun: Option<Instant>,
}

impl Commands {
    fn list(&mut self, list: &CompoundList) {
        for item in &list.0 {
            let and_or = &item.0;
            let others = and_or.additional.iter().map(|(AndOr::And(pipeline) | AndOr::Or(pipeline))| pipeline);
            for pipeline in std::iter::once(&and_or.first).chain(others) {
                pipeline.seq.iter().for_each(|command| self.command(command));
            }
        }
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::Simple(simple) => self.simple(simple),
            Command::Compound(compound, redirects) => {
                self.compound(compound);
                redirects.iter().flat_map(|list| &list.0).for_each(|redirect| self.redirect(redirect));
            }
            Command::Function(function) => {
                let before = self.within.replace(function.fname.value.clone());
                self.functions.entry(function.fname.value.clone()).or_default();
                self.compound(&function.body.0);
                function.body.1.iter().flat_map(|list| &list.0).for_each(|redirect| self.redirect(redirect));
                self.within = before;
            }
            Command::ExtendedTest(test) => self.test(&test.expr),
        }
    }

    fn compound(&mut self, compound: &CompoundCommand) {
        match compound {
            CompoundCommand::Arithmetic(arithmetic) => self.expansions(&arithmetic.expr.value, 0),
            CompoundCommand::ArithmeticForClause(clause) => self.list(&clause.body.list),
            CompoundCommand::BraceGroup(group) => self.list(&group.list),
            CompoundCommand::Subshell(subshell) => self.list(&subshell.list),
            CompoundCommand::ForClause(clause) => {
                clause.values.iter().flatten().for_each(|value| drop(self.word(value)));
                self.list(&clause.body.list);
            }
            CompoundCommand::CaseClause(clause) => {
                self.word(&clause.value);
                for case in &clause.cases {
                    case.cmd.iter().for_each(|list| self.list(list));
                }
            }
            CompoundCommand::IfClause(clause) => {
                self.list(&clause.condition);
                self.list(&clause.then);
                for other in clause.elses.iter().flatten() {
                    other.condition.iter().for_each(|list| self.list(list));
                    self.list(&other.body);
                }
            }
            CompoundCommand::WhileClause(clause) | CompoundCommand::UntilClause(clause) => {
                self.list(&clause.0);
                self.list(&clause.1.list);
            }
        }
    }

    fn simple(&mut self, simple: &SimpleCommand) {
        let mut words: Vec<Known> = Vec::new();
        simple.prefix.iter().flat_map(|prefix| &prefix.0).for_each(|item| drop(self.item(item)));
        words.extend(simple.word_or_name.as_ref().map(|word| self.word(word)));
        for item in simple.suffix.iter().flat_map(|suffix| &suffix.0) {
            words.extend(self.item(item));
        }
        if words.is_empty() {
            return;
        }
        match &self.within {
            Some(function) => self.functions.entry(function.clone()).or_default().push(words),
            None => self.simple.push(words),
        }
    }

    /// The word that it is to the command, if it is one.
    fn item(&mut self, item: &CommandPrefixOrSuffixItem) -> Option<Known> {
        match item {
            CommandPrefixOrSuffixItem::IoRedirect(redirect) => {
                self.redirect(redirect);
                None
            }
            CommandPrefixOrSuffixItem::Word(word) => Some(self.word(word)),
            CommandPrefixOrSuffixItem::AssignmentWord(assignment, word) => {
                match &assignment.value {
                    AssignmentValue::Scalar(value) => drop(self.word(value)),
                    AssignmentValue::Array(values) => values.iter().for_each(|(_, value)| drop(self.word(value))),
                }
                let line = word.loc.as_ref().map_or(0, |span| span.start.line);
                Some(Known { written: word.value.clone(), literal: Some(word.value.clone()), line })
            }
            CommandPrefixOrSuffixItem::ProcessSubstitution(_, subshell) => {
                self.list(&subshell.list);
                None
            }
        }
    }

    fn redirect(&mut self, redirect: &IoRedirect) {
        match redirect {
            IoRedirect::File(_, _, target) => match target {
                IoFileRedirectTarget::Filename(word) | IoFileRedirectTarget::Duplicate(word) => drop(self.word(word)),
                IoFileRedirectTarget::ProcessSubstitution(_, subshell) => self.list(&subshell.list),
                IoFileRedirectTarget::Fd(_) => {}
            },
            IoRedirect::HereDocument(_, document) if document.requires_expansion => {
                let line = document.doc.loc.as_ref().map_or(0, |span| span.start.line);
                self.expansions(&document.doc.value, line);
            }
            IoRedirect::HereDocument(..) => {}
            IoRedirect::HereString(_, word) | IoRedirect::OutputAndError(word, _) => drop(self.word(word)),
        }
    }

    fn test(&mut self, expression: &ExtendedTestExpr) {
        match expression {
            ExtendedTestExpr::And(a, b) | ExtendedTestExpr::Or(a, b) => {
                self.test(a);
                self.test(b);
            }
            ExtendedTestExpr::Not(a) | ExtendedTestExpr::Parenthesized(a) => self.test(a),
            ExtendedTestExpr::UnaryTest(_, word) => drop(self.word(word)),
            ExtendedTestExpr::BinaryTest(_, a, b) => {
                self.word(a);
                self.word(b);
            }
        }
    }

    fn word(&mut self, word: &Word) -> Known {
        let line = word.loc.as_ref().map_or(0, |span| span.start.line);
        // What is no word to the parser is nothing that is known.
        let literal = self.parsed(&word.value).and_then(|pieces| self.pieces(&pieces, line));
        Known { written: word.value.clone(), literal, line }
    }

    fn expansions(&mut self, written: &str, line: usize) {
        if let Some(pieces) = self.parsed(written) {
            self.pieces(&pieces, line);
        }
    }

    /// The parser takes several times as long for each subscript in a subscript: what would take too long is not known.
    fn parsed(&mut self, written: &str) -> Option<Vec<WordPieceWithSource>> {
        let begun = *self.begun.get_or_insert_with(Instant::now);
        if nested(written) > MOST_SUBSCRIPTS || begun.elapsed() > MOST_TIME {
            return None;
        }
        word::parse(written, &ParserOptions::default()).ok()
    }

    /// Notes the commands in them; what they stand for, if that is known.
    fn pieces(&mut self, pieces: &[WordPieceWithSource], line: usize) -> Option<String> {
        let mut literal = Some(String::new());
        let mut add = |text: Option<&str>| match (&mut literal, text) {
            (Some(literal), Some(text)) => literal.push_str(text),
            _ => literal = None,
        };
        for piece in pieces {
            match &piece.piece {
                WordPiece::Text(text) | WordPiece::SingleQuotedText(text) => add(Some(text)),
                WordPiece::EscapeSequence(text) => add(Some(text.strip_prefix('\\').unwrap_or(text))),
                WordPiece::DoubleQuotedSequence(inner) | WordPiece::GettextDoubleQuotedSequence(inner) => {
                    let inner = self.pieces(inner, line);
                    add(inner.as_deref());
                }
                WordPiece::AnsiCQuotedText(_) | WordPiece::TildePrefix(_) => add(None),
                WordPiece::CommandSubstitution(text) | WordPiece::BackquotedCommandSubstitution(text) => {
                    self.inner.push((text.clone(), line));
                    add(None);
                }
                WordPiece::ArithmeticExpression(expression) => {
                    self.expansions(&expression.value, line);
                    add(None);
                }
                WordPiece::ParameterExpansion(expansion) => {
                    if let ParameterExpr::UseDefaultValues { default_value: Some(value), .. }
                    | ParameterExpr::AssignDefaultValues { default_value: Some(value), .. }
                    | ParameterExpr::UseAlternativeValue { alternative_value: Some(value), .. }
                    | ParameterExpr::IndicateErrorIfNullOrUnset { error_message: Some(value), .. } = expansion
                    {
                        self.expansions(value, line);
                    }
                    add(None);
                }
            }
        }
        literal
    }
}
