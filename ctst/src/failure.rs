//! Errors of a command as a person sees them.

use std::io;

use anstyle::{AnsiColor, Style};
use containust_sdk::Report;
use containust_sdk::image;
use containust_sdk::logs::escape;

/// `ctst` itself failed (`containust_shared::exit`).
pub(crate) const TOOL: i32 = 125;

/// How a command ended other than by doing what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Tell this.
    Error(Box<Report>),
    /// Everything was told.
    Told(i32),
    /// Nobody reads our output any more.
    BrokenPipe,
}

/// What a command returns: its exit code, or why there is none of its own.
pub(crate) type Outcome = Result<i32, Failure>;

impl Failure {
    /// An error of the command line, without a code.
    pub(crate) fn new(message: impl Into<String>, help: impl Into<Option<String>>) -> Self {
        let report = Report { code: String::new(), message: message.into(), help: help.into(), exit: TOOL };
        Self::Error(Box::new(report))
    }

    /// A system call of ours failed.
    pub(crate) fn io(what: &str, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::new(format!("{what}: {error}"), None),
        }
    }

    /// The image store refused.
    pub(crate) fn image(error: image::Error) -> Self {
        let report = Report { code: error.code().into(), message: error.to_string(), help: error.help(), exit: TOOL };
        Self::Error(Box::new(report))
    }

    /// Shows it, and gives the exit code.
    pub(crate) fn tell(&self) -> i32 {
        match self {
            Self::Error(report) => {
                tell(report, "");
                report.exit
            }
            Self::Told(code) => *code,
            // As if SIGPIPE, which Rust ignores, had ended us.
            Self::BrokenPipe => 128 + 13,
        }
    }
}

/// Only writing our own output gives errors without a name.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::io("write to standard output", error)
    }
}

impl From<containust_sdk::Error> for Failure {
    fn from(error: containust_sdk::Error) -> Self {
        Self::Error(Box::new(error.report()))
    }
}

/// Shows an error with what it is about, for example a component's name.
pub(crate) fn tell(report: &Report, about: &str) {
    let error = AnsiColor::Red.on_default().bold();
    let help = AnsiColor::Cyan.on_default().bold();
    let bold = Style::new().bold();
    let code = if report.code.is_empty() { String::new() } else { format!("[{}]", report.code) };
    let about = if about.is_empty() { String::new() } else { format!("{}: ", escape(about.as_bytes())) };
    let mut lines = report.message.lines().map(|line| escape(line.as_bytes()));
    let first = lines.next().unwrap_or_default();
    talk!("{error}error{code}{error:#}{bold}: {about}{first}{bold:#}");
    lines.for_each(|line| talk!("  {line}"));
    if let Some(text) = &report.help {
        talk!("  {help}help{help:#}: {}", escape(text.as_bytes()));
    }
}
