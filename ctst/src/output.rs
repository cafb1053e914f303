//! Small things that several commands show: data on standard output, tables, sizes and times.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anstyle::{AnsiColor, Color, Style};
use containust_sdk::logs::{escape, is_harmless};
use jiff::Timestamp;
use rustix::fs::fstat;
use serde::Serialize;

use crate::failure::Failure;

/// Colours for components: they can be told apart on dark and light backgrounds, and none of them means an error.
const COLORS: [AnsiColor; 6] =
    [AnsiColor::Cyan, AnsiColor::Yellow, AnsiColor::Green, AnsiColor::Magenta, AnsiColor::Blue, AnsiColor::BrightCyan];

pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const GOOD: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Green)));
pub(crate) const WARN: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Yellow)));
pub(crate) const BAD: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Red)));

/// Style of the component at this place among the project's names in alphabetical order, so that it is the same in every
/// command.
pub(crate) fn component_style(place: usize) -> Style {
    COLORS[place % COLORS.len()].on_default()
}

/// Writes text to standard output at once, without styles where they are not wanted.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    // Taken off first: the stream that does it writes each piece between two styles by itself.
    let plain = match anstream::AutoStream::choice(&io::stdout()) {
        anstream::ColorChoice::Never => Some(anstream::adapter::strip_str(text).to_string()),
        _ => None,
    };
    let mut out = io::stdout().lock();
    out.write_all(plain.as_deref().unwrap_or(text).as_bytes())?;
    Ok(out.flush()?)
}

/// Writes text to standard error at once, without styles where they are not wanted. Nobody can be told that it cannot be
/// written, and a terminal that went away is no reason to leave something undone.
pub(crate) fn talk(text: &str) {
    anstream::stderr().lock().write_all(text.as_bytes()).ok();
}

/// [`talk`]s a line, as `eprintln!` does, which panics where it cannot write.
macro_rules! talk {
    ($($words:tt)*) => { $crate::output::talk(&format!("{}\n", format_args!($($words)*))) };
}

/// Whether standard output and standard error are the same file, such as a terminal or a pipe.
pub(crate) fn one_output() -> bool {
    let id = |fd: BorrowedFd<'_>| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    id(io::stdout().as_fd()) == id(io::stderr().as_fd())
}

/// Writes `value` as JSON and a newline.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    Ok(io::stdout().lock().write_all(tame_json(text).as_bytes())?)
}

/// What would steer a terminal, or turn around what it shows, as JSON writes it: it can stand in texts only, whose other control characters
/// are escaped already.
fn tame_json(text: String) -> String {
    let mut tamed = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c == '\n' || is_harmless(c) {
            true => tamed.push(c),
            false => write!(tamed, "\\u{:04x}", u32::from(c)).unwrap_or_default(),
        }
    }
    tamed.push('\n');
    tamed
}

/// A text of several lines with styles (`ESC [ … m`), which are kept, and foreign parts, whose other escapes are shown.
pub(crate) fn tame(text: &str) -> String {
    let style = |text: &str| {
        let length = text.strip_prefix("\x1b[")?.find(|c: char| !matches!(c, '0'..='9' | ';'))? + "\x1b[m".len();
        text.get(..length).filter(|style| style.ends_with('m')).map(str::len)
    };
    let mut tamed = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (mut rest, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        while let Some(at) = rest.find('\x1b') {
            let (foreign, escape_on) = rest.split_at(at);
            let (styled, after) = escape_on.split_at(style(escape_on).unwrap_or(0));
            tamed += &escape(foreign.as_bytes());
            tamed += if styled.is_empty() { "\\x1b" } else { styled };
            rest = after.strip_prefix('\x1b').filter(|_| styled.is_empty()).unwrap_or(after);
        }
        tamed += &escape(rest.as_bytes());
        tamed += end;
    }
    tamed
}

/// A cell of a table.
pub(crate) struct Cell(pub(crate) String, pub(crate) Style);

impl<S: Into<String>> From<S> for Cell {
    fn from(text: S) -> Self {
        Self(text.into(), Style::new())
    }
}

/// Columns padded to their widest cell, below a dimmed header.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[Cell; N]]) -> String {
    let length = |text: &str| text.chars().count();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| length(&row[column].0)).chain([length(header[column])]).max().unwrap_or(0)
    });
    let header = header.map(|title| Cell(title.to_owned(), DIM));
    let mut text = String::new();
    for row in std::iter::once(&header).chain(rows) {
        for (column, Cell(cell, style)) in row.iter().enumerate() {
            let pad = if column + 1 == N { 0 } else { widths[column] - length(cell) + 2 };
            // Writing to a string cannot fail.
            write!(text, "{style}{cell}{style:#}{:pad$}", "").ok();
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// `517.3 MB`, in powers of 1000 as disks are sold.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    // 999.95 would be shown as 1000.0.
    while value >= 999.95 {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 layer`, `2 layers`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Milliseconds since 1970 as RFC 3339 writes them, in UTC.
pub(crate) fn moment(millis: u64) -> String {
    let time = i64::try_from(millis).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
    time.map_or_else(|| millis.to_string(), |time| time.to_string())
}

/// Milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `5s`, `12m`, `3h 20m`, `8d 4h`: the two largest units from an hour on.
pub(crate) fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days}d {}h", hours % 24),
        () if hours > 0 => format!("{hours}h {}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m"),
        () => format!("{seconds}s"),
    }
}

/// Foreign text on one line, its escapes shown.
pub(crate) fn plain(text: &str) -> String {
    escape(text.as_bytes())
}

/// An image's reference as the file has it: relative to the project's folder where it lies in it.
pub(crate) fn short_reference(reference: &str, folder: &Path) -> String {
    let relative = |scheme: &str| {
        let path = reference.strip_prefix(scheme)?;
        Some(format!("{scheme}./{}", Path::new(path).strip_prefix(folder).ok()?.display()))
    };
    // The digest has a place of its own.
    let carried = || Some(reference.strip_prefix("bundle://")?.rsplit_once("@sha256:")?.0.to_owned() + " of a bundle");
    let short = relative("file://").or_else(|| relative("tar://")).or_else(carried);
    escape(short.unwrap_or_else(|| reference.to_owned()).as_bytes())
}

/// `118 MiB -> 12 MiB, 210 of 8200 files`.
pub(crate) fn kept(kept: &containust_sdk::image::Kept) -> String {
    let what = &kept.what;
    let (full, left) = (size(what.full_size), size(what.size));
    format!("{full} -> {left}, {} of {} files", what.files, what.full_files)
}

/// The first digits of a digest, enough to tell images apart.
pub(crate) fn short_digest(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_steers_no_terminal() {
        let value = serde_json::json!({ "a": "é\u{9b}31m\u{202e}\u{7f}\n\t\u{1b}", "b": [1, "ü"] });
        let text = tame_json(serde_json::to_string_pretty(&value).unwrap());
        assert!(
            text.chars().all(|c| c == '\n' || is_harmless(c)) && text.contains("é\\u009b31m\\u202e\\u007f"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn sizes_and_spans() {
        let sizes = [0, 999, 1000, 999_949, 999_950, 517_300_000, u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "517.3 MB", "18.4 EB"]);
        let spans = [0, 59_999, 60_000, 3_599_000, 12_000_000, 90_000_000, 705_600_000].map(span);
        assert_eq!(spans, ["0s", "59s", "1m", "59m", "3h 20m", "1d 1h", "8d 4h"]);
    }

    #[test]
    fn moments() {
        assert_eq!(moment(1_795_549_128_040), "2026-11-24T19:38:48.04Z");
        assert_eq!(moment(u64::MAX), u64::MAX.to_string());
    }

    #[test]
    fn tables_line_up() {
        let rows = [["web".into(), "running".into(), "".into()], ["database".into(), "up".into(), "x".into()]];
        let text = anstream::adapter::strip_str(&table(["NAME", "STATE", "PORTS"], &rows)).to_string();
        assert_eq!(text, "NAME      STATE    PORTS\nweb       running\ndatabase  up       x\n");
    }

    #[test]
    fn styles_pass_and_other_escapes_do_not() {
        let styled = "\x1b[1m\x1b[91merror\x1b[0m: ä\n\n  \x1b[0m|\n";
        assert_eq!(tame(styled), styled);
        assert_eq!(tame("a\x1b[2Jb\x1b[31\u{9b}\x1b"), "a\\x1b[2Jb\\x1b[31\\u{9b}\\x1b");
        assert_eq!(tame("\x1b]0;x\x07\x1b[1mbold\x1b[m\r\n"), "\\x1b]0;x\\x07\x1b[1mbold\x1b[m\n");
    }

    #[test]
    fn references() {
        let short = |reference| short_reference(reference, Path::new("/srv/shop"));
        assert_eq!(short("file:///srv/shop/rootfs/x"), "file://./rootfs/x");
        assert_eq!(short("file:///srv/shop"), "file://./");
        assert_eq!(short("file:///srv/shopping/x"), "file:///srv/shopping/x");
        assert_eq!(short("tar:///srv/shop/a.tar"), "tar://./a.tar");
        assert_eq!(short("host:///bin/true"), "host:///bin/true");
        assert_eq!(short("file:///srv/shop/\x1b"), "file://./\\x1b");
    }

    #[test]
    fn digests() {
        assert_eq!(short_digest("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_digest("odd"), "odd");
    }
}
