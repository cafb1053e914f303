//! Imports of images, told on standard error: on one line that changes, on a terminal; else when one begins and ends.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use containust_sdk::Progress as Step;
use containust_sdk::image;
use containust_sdk::logs::escape;

use crate::output::{BOLD, DIM, WARN, short_reference, size, talk};

/// A line that changes more often cannot be read, and slows the import.
const PERIOD: Duration = Duration::from_millis(50);
/// Where it is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct Progress<'a> {
    /// The project's.
    folder: &'a Path,
    terminal: bool,
    /// Something stands in the line.
    open: bool,
    shown: Option<Instant>,
    /// Of which component the beginning was told.
    begun: Option<String>,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(folder: &'a Path) -> Self {
        Self { folder, terminal: io::stderr().is_terminal(), open: false, shown: None, begun: None }
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
                if self.terminal && (first || self.shown.is_none_or(|at| at.elapsed() >= PERIOD)) {
                    self.shown = Some(Instant::now());
                    self.open = true;
                    clear_line();
                    talk(&format!("{what} {DIM}{}{DIM:#}", progress(detail)));
                }
            }
            Step::Exporting { image, detail } => {
                let first = self.begun.is_none();
                self.begun = Some(image.clone());
                if self.terminal && (first || self.shown.is_none_or(|at| at.elapsed() >= PERIOD)) {
                    self.shown = Some(Instant::now());
                    self.open = true;
                    clear_line();
                    let image = escape(image.as_bytes());
                    talk(&format!("{BOLD}{image}{BOLD:#} exporting {DIM}{}{DIM:#}", progress(detail)));
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

    /// Makes the line free for something else.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.open) {
            clear_line();
        }
    }
}

/// Not through anstream, which takes escapes away where no colours are wanted.
fn clear_line() {
    // As with all that is told.
    io::stderr().write_all(b"\r\x1b[K").ok();
}

fn progress(detail: &image::Progress) -> String {
    match detail {
        image::Progress::Copying { bytes_done, bytes_total, .. } if *bytes_total > 0 => {
            let percent = bytes_done.saturating_mul(100) / bytes_total;
            format!("{percent}% of {}", size(*bytes_total))
        }
        image::Progress::Syncing => "writing to disk".to_owned(),
        _ => "looking".to_owned(),
    }
}
