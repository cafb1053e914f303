//! Imports of images, told on standard error: on lines that change, on a terminal; else when one begins and ends.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use containust_sdk::Progress as Step;
use containust_sdk::image::{self, registry::Part};
use containust_sdk::logs::escape;

use crate::output::{self, BOLD, DIM, WARN, short_digest, short_reference, size, talk};

/// A line that changes more often cannot be read, and slows the import.
const PERIOD: Duration = Duration::from_millis(50);
/// Layers that are shown one by one, and how wide.
const BARS: usize = 8;
const WIDTH: usize = 30;
/// Where it is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct Progress<'a> {
    /// The project's.
    folder: &'a Path,
    terminal: bool,
    /// Lines in which something stands that is to be taken away.
    open: usize,
    shown: Option<Instant>,
    /// Of which component the beginning was told.
    begun: Option<String>,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(folder: &'a Path) -> Self {
        Self { folder, terminal: io::stderr().is_terminal(), open: 0, shown: None, begun: None }
    }

    pub(crate) fn show(&mut self, step: &Step) {
        match step {
            Step::Importing { component, reference, detail } => {
                let what = format!("{BOLD}{component}{BOLD:#} importing {}", short_reference(reference, self.folder));
                let first = self.begun.as_ref() != Some(component);
                if first {
                    self.begun = Some(component.clone());
                    self.shown = Some(Instant::now());
                    if !self.terminal {
                        talk!("{what}");
                    }
                } else if !self.terminal && self.shown.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                    self.shown = Some(Instant::now());
                    talk!("{what}, {}", progress(detail));
                }
                self.draw(first, || vec![format!("{what} {DIM}{}{DIM:#}", progress(detail))]);
            }
            Step::Pulling { component, reference, parts } | Step::Pushing { component, reference, parts } => {
                let doing = if matches!(step, Step::Pulling { .. }) { "pulling" } else { "pushing" };
                let name = escape(component.as_bytes());
                let what = format!("{BOLD}{name}{BOLD:#} {doing} {}", short_reference(reference, self.folder));
                let begun = format!("{doing} {component}");
                let first = self.begun.as_ref() != Some(&begun);
                self.begun = Some(begun);
                let (done, total) = parts.iter().fold((0_u64, 0_u64), |(done, total), part| {
                    (done.saturating_add(part.done), total.saturating_add(part.total))
                });
                let all = share(done, total);
                if !self.terminal && (first || self.shown.is_none_or(|at| at.elapsed() >= TELL_EVERY)) {
                    self.shown = Some(Instant::now());
                    talk!("{what}{}", if first { String::new() } else { format!(", {all}") });
                }
                self.draw(first, || {
                    // What is finished, or not begun, needs no line of its own.
                    let under_way = parts.iter().filter(|part| part.done > 0 && part.done < part.total);
                    let lines =
                        under_way.take(BARS).map(|part| format!("  {} {}", short_digest(&part.digest), bar(part)));
                    std::iter::once(format!("{what} {DIM}{all}{DIM:#}")).chain(lines).collect()
                });
            }
            Step::Exporting { image, detail } => {
                let first = self.begun.is_none();
                self.begun = Some(image.clone());
                self.draw(first, || {
                    let image = escape(image.as_bytes());
                    vec![format!("{BOLD}{image}{BOLD:#} exporting {DIM}{}{DIM:#}", progress(detail))]
                });
            }
            Step::Verifying { bundle, detail } => {
                let first = self.begun.as_ref() != Some(bundle);
                self.begun = Some(bundle.clone());
                self.draw(first, || {
                    vec![format!(
                        "{BOLD}{}{BOLD:#} reading {DIM}{}{DIM:#}",
                        escape(bundle.as_bytes()),
                        progress(detail)
                    )]
                });
            }
            Step::Verified { bundle, digest } => {
                self.clear();
                self.begun = None;
                talk!("{BOLD}{}{BOLD:#} is whole: sha256:{digest}", escape(bundle.as_bytes()));
            }
            Step::Building { component, from } => {
                self.clear();
                talk!("{BOLD}{component}{BOLD:#} building from {}", escape(from.as_bytes()));
            }
            Step::Step { component, line, source, kept } => {
                self.clear();
                let place = if *line == 0 { String::new() } else { format!("{line}: ") };
                let kept = if *kept { format!(" {DIM}(as before){DIM:#}") } else { String::new() };
                talk!("{BOLD}{component}{BOLD:#} {place}{}{kept}", escape(source.trim().as_bytes()));
            }
            Step::Output { component, line } => {
                self.clear();
                talk!("{BOLD}{component}{BOLD:#} {DIM}| {line}{DIM:#}");
            }
            Step::Built { component, digest } => {
                self.clear();
                self.begun = None;
                talk!("{BOLD}{component}{BOLD:#} built {}", short_digest(digest));
            }
            Step::Stripping { component } => {
                self.clear();
                talk!("{BOLD}{component}{BOLD:#} stripping its image to what its program needs");
            }
            Step::Trying { component } => {
                self.clear();
                talk!("{BOLD}{component}{BOLD:#} trying its program with that");
            }
            Step::Stripped { component, kept } => {
                self.clear();
                self.begun = None;
                talk!("{BOLD}{component}{BOLD:#} stripped: {}", output::kept(kept));
                if let Some(why) = &kept.untried {
                    talk!("  {WARN}note{WARN:#}: not tried: {}", escape(why.as_bytes()));
                }
                for note in &kept.what.notes {
                    talk!("  {WARN}note{WARN:#}: {}", escape(note.as_bytes()));
                }
            }
            Step::Imported { component, reference, notes, .. } => {
                self.clear();
                self.begun = None;
                talk!("{BOLD}{component}{BOLD:#} imported {}", short_reference(reference, self.folder));
                for note in notes {
                    talk!("  {WARN}note{WARN:#}: {}", escape(note.as_bytes()));
                }
            }
        }
    }

    /// Shows these lines instead of those before, on a terminal.
    fn draw(&mut self, first: bool, lines: impl FnOnce() -> Vec<String>) {
        if !self.terminal || !first && self.shown.is_some_and(|at| at.elapsed() < PERIOD) {
            return;
        }
        self.clear();
        let lines = lines();
        self.shown = Some(Instant::now());
        self.open = lines.len();
        talk(&lines.join("\n"));
    }

    /// Makes the lines free for something else.
    pub(crate) fn clear(&mut self) {
        let lines = std::mem::take(&mut self.open);
        if lines > 0 {
            // Not through anstream, which takes escapes away where no colours are wanted. As with all that is told.
            io::stderr().write_all(format!("{}\r\x1b[J", "\x1b[A".repeat(lines - 1)).as_bytes()).ok();
        }
    }
}

/// `40% of 12 MiB`.
fn share(done: u64, total: u64) -> String {
    match total {
        0 => "looking".to_owned(),
        _ => format!("{}% of {}", done.saturating_mul(100) / total, size(total)),
    }
}

fn bar(part: &Part) -> String {
    let full = usize::try_from(part.done.saturating_mul(WIDTH as u64) / part.total.max(1)).unwrap_or(0).min(WIDTH);
    format!("[{}{}] {DIM}{}{DIM:#}", "=".repeat(full), " ".repeat(WIDTH - full), share(part.done, part.total))
}

fn progress(detail: &image::Progress) -> String {
    match detail {
        image::Progress::Copying { bytes_done, bytes_total, .. } => share(*bytes_done, *bytes_total),
        image::Progress::Syncing => "writing to disk".to_owned(),
        _ => "looking".to_owned(),
    }
}
