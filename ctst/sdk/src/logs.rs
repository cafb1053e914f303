//! What containers print, kept line by line with time and stream, capped by rotation.
//!
//! A record is one line of the file, in the format that Kubernetes' container runtimes use (CRI logging), so that
//! grep and every log shipper read it:
//!
//! ```text
//! 2026-11-23T16:33:29.123456789Z stdout F the text, byte for byte
//! ```
//!
//! `F` ends a line of the container, `P` says that the line goes on in the next record of the same stream: it was longer
//! than [`MAX_PARTIAL`], or the stream ended without a newline. The newest file is `log`; `log.1` and so on are older.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SpanRelativeTo, Timestamp};
use rustix::fs::OFlags;

/// How much of an unfinished line is held back before it is written as a `P` record, in bytes.
pub const MAX_PARTIAL: usize = 16 * 1024;
/// How often [`Reader::follow`] looks for more.
pub const POLL: Duration = Duration::from_millis(50);

/// Longer records than this were not written by [`Writer`].
const MAX_RECORD: usize = MAX_PARTIAL + 64;

/// Which of its streams the container wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
        }
    }
}

/// How much is kept of one container's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A file is not written beyond this size, in bytes.
    pub max_size: u64,
    /// Number of files, the current one included; at least 1.
    pub max_files: u32,
}

impl Default for Limits {
    /// Three files of 10 MiB.
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 3 }
    }
}

fn path(dir: &Path, age: u32) -> PathBuf {
    if age == 0 { dir.join("log") } else { dir.join(format!("log.{age}")) }
}

/// Writes one container's log.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    limits: Limits,
    file: File,
    size: u64,
    /// The file ends inside a record: a full disk or a crash cut the last one short.
    torn: bool,
    /// Unfinished lines of [`Stream::Out`] and [`Stream::Err`].
    partial: [Vec<u8>; 2],
}

impl Writer {
    /// Continues the log in `dir`, which must exist.
    ///
    /// # Errors
    /// Those of opening and reading `dir`/`log`.
    pub fn open(dir: &Path, limits: Limits) -> io::Result<Self> {
        let mut file = create(&path(dir, 0))?;
        let size = file.metadata()?.len();
        let torn = size > 0 && {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            last != *b"\n"
        };
        Ok(Self { dir: dir.to_owned(), limits, file, size, torn, partial: [Vec::new(), Vec::new()] })
    }

    /// Holds from the next record on. Files beyond a smaller number go with the rotations to come.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Appends what the container wrote. Lines that end in `bytes` are on the file when this returns.
    ///
    /// # Errors
    /// Those of writing and renaming; the log stays readable and the next call starts a new record.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut partial = std::mem::take(&mut self.partial[stream as usize]);
        let mut batch = Batch::new(stream);
        let mut result = Ok(());
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (mut text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            while partial.len() + text.len() > MAX_PARTIAL {
                let (head, rest) = text.split_at(MAX_PARTIAL - partial.len());
                result = result.and(batch.push(self, &partial, head, false));
                partial.clear();
                text = rest;
            }
            if ends {
                result = result.and(batch.push(self, &partial, text, true));
                partial.clear();
            } else {
                partial.extend_from_slice(text);
            }
        }
        if partial.is_empty() {
            partial = Vec::new();
        }
        self.partial[stream as usize] = partial;
        result.and(self.append(&batch.records))
    }

    /// Writes the unfinished lines, at the end of both streams.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn close(mut self) -> io::Result<()> {
        self.flush_partial()
    }

    fn flush_partial(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        for stream in [Stream::Out, Stream::Err] {
            let partial = std::mem::take(&mut self.partial[stream as usize]);
            if !partial.is_empty() {
                let mut batch = Batch::new(stream);
                result = result.and(batch.push(self, &partial, b"", false)).and(self.append(&batch.records));
            }
        }
        result
    }

    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        if self.torn {
            self.file.write_all(b"\n")?;
            self.size += 1;
            self.torn = false;
        }
        let written = self.file.write_all(records);
        match written {
            Ok(()) => self.size += records.len() as u64,
            Err(_) => {
                self.torn = true;
                self.size = self.file.metadata().map_or(self.size, |m| m.len());
            }
        }
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        let oldest = self.limits.max_files.max(1) - 1;
        for age in (0..oldest).rev() {
            match std::fs::rename(path(&self.dir, age), path(&self.dir, age + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        if oldest == 0 {
            std::fs::remove_file(path(&self.dir, 0))?;
        }
        self.file = create(&path(&self.dir, 0))?;
        self.size = self.file.metadata()?.len();
        self.torn = false;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // There is no one left to tell; `close` tells.
        drop(self.flush_partial());
    }
}

fn create(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(path)
}

/// Records of one call, written together; all of them have the time of the call.
struct Batch {
    header: String,
    records: Vec<u8>,
}

impl Batch {
    fn new(stream: Stream) -> Self {
        Self { header: format!("{:.9} {}", Timestamp::now(), stream.name()), records: Vec::new() }
    }

    fn push(&mut self, writer: &mut Writer, head: &[u8], tail: &[u8], ends: bool) -> io::Result<()> {
        let length = (self.header.len() + 3 + head.len() + tail.len() + 1) as u64;
        let before = writer.size + self.records.len() as u64;
        let result = if before > 0 && before + length > writer.limits.max_size {
            let records = std::mem::take(&mut self.records);
            writer.append(&records).and_then(|()| writer.rotate())
        } else {
            Ok(())
        };
        self.records.extend_from_slice(self.header.as_bytes());
        self.records.extend_from_slice(if ends { b" F " } else { b" P " });
        self.records.extend_from_slice(head);
        self.records.extend_from_slice(tail);
        self.records.push(b'\n');
        result
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When the supervisor read it.
    pub time: Timestamp,
    /// Where the container wrote it.
    pub stream: Stream,
    /// What it wrote, without the newline. Show it on a terminal through [`Escaped`] only.
    pub text: Vec<u8>,
    /// Whether a newline followed; if not, the next record of the stream goes on with the same line.
    pub complete: bool,
}

impl Line {
    /// A record without its newline; none if it is none.
    fn parse(record: &[u8]) -> Option<Self> {
        let mut fields = record.splitn(4, |b| *b == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let stream = match fields.next()? {
            b"stdout" => Stream::Out,
            b"stderr" => Stream::Err,
            _ => return None,
        };
        let complete = match fields.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { time, stream, text: fields.next()?.to_vec(), complete })
    }
}

/// Reads one container's log, while it is written or afterwards.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    since: Option<Timestamp>,
    current: Option<Source>,
    /// There is a newer file, so the current one gets no more records once its end is reached again.
    sealed: Option<Source>,
}

impl Reader {
    /// Reads the log in `dir`, which need not exist yet: only the last `tail` lines (counted at this moment), only those
    /// written at `since` or later.
    ///
    /// # Errors
    /// Those of opening and reading the files.
    pub fn open(dir: &Path, tail: Option<usize>, since: Option<Timestamp>) -> io::Result<Self> {
        let mut files = scan(dir)?;
        if let Some(tail) = tail {
            files = last_lines(files, tail, since)?;
        }
        let current = files.pop_front();
        Ok(Self { dir: dir.to_owned(), since, current, sealed: None })
    }

    /// The next record that is there by now; none: ask again later.
    ///
    /// # Errors
    /// Those of opening and reading the files.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            let Some(current) = &mut self.current else {
                self.current = scan(&self.dir)?.pop_front();
                if self.current.is_none() {
                    return Ok(None);
                }
                continue;
            };
            if let Some(record) = current.record()? {
                if let Some(line) = Line::parse(record)
                    && self.since.is_none_or(|since| line.time >= since)
                {
                    return Ok(Some(line));
                }
            } else if let Some(next) = self.sealed.take() {
                self.current = Some(next);
            } else if std::fs::metadata(path(&self.dir, 0)).is_ok_and(|m| (m.dev(), m.ino()) == current.id) {
                return Ok(None);
            } else {
                // Records may have been added between the end that was just seen and the rotation, so a file is left
                // only at an end that is reached after its successor was seen.
                let id = current.id;
                self.sealed = successor(scan(&self.dir)?, id);
                if self.sealed.is_none() {
                    return Ok(None);
                }
            }
        }
    }

    /// The next record, waiting for it until `gone` says that the container writes no more; none: that was all.
    ///
    /// # Errors
    /// As [`Self::next_line`].
    pub fn follow(&mut self, mut gone: impl FnMut() -> bool) -> io::Result<Option<Line>> {
        loop {
            let last = gone();
            if let Some(line) = self.next_line()? {
                return Ok(Some(line));
            }
            if last {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }
}

/// The file after the one with this id, oldest first. A reader that is so slow that its file has been deleted goes on
/// with the oldest that is left.
fn successor(mut files: VecDeque<Source>, id: (u64, u64)) -> Option<Source> {
    match files.iter().position(|f| f.id == id) {
        Some(at) => files.remove(at + 1),
        None => files.pop_front(),
    }
}

/// Opens the files, oldest first. It looks from the newest on, because renaming moves files towards the older names: one
/// that is renamed meanwhile is seen twice but not missed.
fn scan(dir: &Path) -> io::Result<VecDeque<Source>> {
    let mut files = VecDeque::<Source>::new();
    // A crash while rotating may leave one name free; two free names end the sequence.
    let mut missing = 0;
    for age in 0.. {
        // Where somebody put a link or a fifo there, it is not followed and not waited for.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        match OpenOptions::new().read(true).custom_flags(flags).open(path(dir, age)) {
            Ok(file) => {
                let source = Source::new(file)?;
                if files.iter().all(|f| f.id != source.id) {
                    files.push_front(source);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                missing += 1;
                if missing == 2 {
                    break;
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(files)
}

/// The same files, beginning with the last `count` lines.
fn last_lines(files: VecDeque<Source>, count: usize, since: Option<Timestamp>) -> io::Result<VecDeque<Source>> {
    let mut starts = VecDeque::new();
    let mut goes_on = [false; 2];
    let mut files: Vec<Source> = files.into();
    let end = (files.len().saturating_sub(1), 0);
    for (index, file) in files.iter_mut().enumerate() {
        loop {
            let start = file.position();
            let Some(record) = file.record()? else { break };
            let Some(line) = Line::parse(record) else { continue };
            let begins = !std::mem::replace(&mut goes_on[line.stream as usize], !line.complete);
            if begins && since.is_none_or(|since| line.time >= since) {
                starts.push_back((index, start));
                if starts.len() > count {
                    starts.pop_front();
                }
            }
        }
    }
    let (index, start) = match starts.front() {
        Some(start) => *start,
        None => (end.0, files.last().map_or(0, Source::position)),
    };
    let mut files: VecDeque<Source> = files.drain(index.min(files.len())..).collect();
    for (n, file) in files.iter_mut().enumerate() {
        file.seek(if n == 0 { start } else { 0 })?;
    }
    Ok(files)
}

/// One file of the log.
#[derive(Debug)]
struct Source {
    file: File,
    /// Device and inode. The open file keeps the inode from being used again.
    id: (u64, u64),
    buffer: Vec<u8>,
    /// Start of the unread part of `buffer`.
    start: usize,
    /// How much of that has been searched for a newline.
    searched: usize,
    /// Offset in the file of the end of `buffer`.
    offset: u64,
}

impl Source {
    fn new(file: File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self { file, id: (meta.dev(), meta.ino()), buffer: Vec::new(), start: 0, searched: 0, offset: 0 })
    }

    /// Offset in the file of the next record.
    fn position(&self) -> u64 {
        self.offset - (self.buffer.len() - self.start) as u64
    }

    fn seek(&mut self, offset: u64) -> io::Result<()> {
        self.offset = self.file.seek(SeekFrom::Start(offset))?;
        self.buffer.clear();
        (self.start, self.searched) = (0, 0);
        Ok(())
    }

    /// The next record that ends with a newline. What is left at the end of a file is not one yet, or never becomes one.
    fn record(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            let from = self.start + self.searched;
            if let Some(length) = self.buffer[from..].iter().position(|b| *b == b'\n') {
                let record = self.start..from + length;
                (self.start, self.searched) = (record.end + 1, 0);
                return Ok(Some(&self.buffer[record]));
            }
            self.buffer.drain(..self.start);
            (self.start, self.searched) = (0, self.buffer.len());
            if self.searched > MAX_RECORD {
                // Not ours; what follows up to the next newline does not parse either.
                self.buffer.clear();
                self.searched = 0;
            }
            let old = self.buffer.len();
            self.buffer.resize(old + 64 * 1024, 0);
            let read = self.file.read(&mut self.buffer[old..]);
            self.buffer.truncate(old + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => {
                    self.buffer.shrink_to(MAX_RECORD);
                    return Ok(None);
                }
                Ok(n) => self.offset += n as u64,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// The moment that a person means by `10m`, `1h30m` (so long ago) or `2026-11-23T16:33:29Z`.
///
/// # Errors
/// A fragment saying what is expected.
pub fn parse_since(text: &str) -> Result<Timestamp, String> {
    before(text, Timestamp::now())
}

fn before(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    text.parse::<jiff::Span>()
        .ok()
        .filter(|span| !span.is_negative())
        .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok())
        .and_then(|duration| now.checked_sub(duration).ok())
        .ok_or_else(|| "expected a duration such as 10m or a time such as 2026-11-23T16:33:29Z".to_owned())
}

/// Foreign bytes made safe to show on a terminal, on one line: whatever could move the cursor, change the terminal's
/// state or reorder text (control characters but the tab, C1, bidirectional overrides, bytes that are not UTF-8) is shown
/// as `\x1b` or `\u{202e}`. One carriage return at the end is dropped: it is half of a line end.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.strip_suffix(b"\r").unwrap_or(self.0).utf8_chunks() {
            let text = chunk.valid();
            let mut shown = 0;
            for (at, c) in text.char_indices().filter(|(_, c)| !is_harmless(*c)) {
                f.write_str(&text[shown..at])?;
                shown = at + c.len_utf8();
                match c as u32 {
                    byte @ 0..=0x7f => write!(f, "\\x{byte:02x}")?,
                    code => write!(f, "\\u{{{code:x}}}")?,
                }
            }
            f.write_str(&text[shown..])?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Whether a character can be shown as it is: it neither steers a terminal nor turns around what stands beside it.
#[must_use]
pub fn is_harmless(c: char) -> bool {
    c == '\t'
        || !(c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
}

/// [`Escaped`] as a string.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    Escaped(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limits = Limits { max_size: 4096, max_files: 3 };

    fn all(reader: &mut Reader) -> Vec<Line> {
        std::iter::from_fn(|| reader.next_line().unwrap()).collect()
    }

    fn texts(lines: &[Line]) -> Vec<&[u8]> {
        lines.iter().map(|l| &l.text[..]).collect()
    }

    /// What the container wrote to `stream`, put together again.
    fn bytes(lines: &[Line], stream: Stream) -> Vec<u8> {
        let mut bytes = Vec::new();
        for line in lines.iter().filter(|l| l.stream == stream) {
            bytes.extend_from_slice(&line.text);
            if line.complete {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    #[test]
    fn streams_and_unfinished_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), Limits::default()).unwrap();
        writer.write(Stream::Out, b"one\ntw").unwrap();
        writer.write(Stream::Err, b"oops\n").unwrap();
        writer.write(Stream::Out, b"o\n\nthr").unwrap();
        let mut reader = Reader::open(dir.path(), None, None).unwrap();
        assert_eq!(texts(&all(&mut reader)), [&b"one"[..], b"oops", b"two", b""]);
        writer.close().unwrap();
        let rest = all(&mut reader);
        assert_eq!(texts(&rest), [b"thr"]);
        assert!(!rest[0].complete);
        let on_disk = std::fs::read_to_string(dir.path().join("log")).unwrap();
        let first = on_disk.lines().next().unwrap();
        assert!(
            first.ends_with("Z stdout F one") && first.len() == "2026-11-23T16:33:29.123456789Z stdout F one".len()
        );
        let mode = std::fs::metadata(dir.path().join("log")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn every_byte_and_every_split_survives() {
        let dir = tempfile::tempdir().unwrap();
        let mut data: Vec<u8> = (0..=255).collect();
        for length in [MAX_PARTIAL - 1, MAX_PARTIAL, MAX_PARTIAL + 1, 2 * MAX_PARTIAL, 100_000] {
            data.extend(std::iter::repeat_n(b'x', length));
            data.extend(b"\n\n");
        }
        data.extend(b"\r\x1b]52;c;aGk=\x07 \x9b31m no newline");
        for step in [1, 7, 4096, MAX_PARTIAL, 65_536, data.len()] {
            let dir = dir.path().join(step.to_string());
            std::fs::create_dir(&dir).unwrap();
            let mut writer = Writer::open(&dir, Limits::default()).unwrap();
            for piece in data.chunks(step) {
                writer.write(Stream::Err, piece).unwrap();
            }
            writer.close().unwrap();
            let lines = all(&mut Reader::open(&dir, None, None).unwrap());
            assert!(bytes(&lines, Stream::Err) == data, "step {step}");
            assert!(lines.iter().all(|l| l.text.len() <= MAX_PARTIAL));
        }
    }

    #[test]
    fn rotation_is_capped_and_followed_without_gap() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), SMALL).unwrap();
        let mut reader = Reader::open(dir.path(), None, None).unwrap();
        let mut seen = Vec::new();
        for n in 0..2000 {
            writer.write(Stream::Out, format!("line {n}\n").as_bytes()).unwrap();
            if n % 60 == 0 {
                seen.extend(all(&mut reader));
            }
        }
        seen.extend(all(&mut reader));
        let expected: Vec<String> = (0..2000).map(|n| format!("line {n}")).collect();
        assert_eq!(texts(&seen), expected.iter().map(String::as_bytes).collect::<Vec<_>>());
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        for name in names {
            assert!(std::fs::metadata(dir.path().join(name)).unwrap().len() <= SMALL.max_size);
        }
    }

    #[test]
    fn a_follower_in_another_thread_sees_each_line_once_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let gone = std::sync::atomic::AtomicBool::new(false);
        let limits = Limits { max_size: 50_000, max_files: 50 };
        std::thread::scope(|scope| {
            let follower = scope.spawn(|| {
                let mut reader = Reader::open(dir.path(), None, None).unwrap();
                let mut seen = Vec::new();
                while let Some(line) = reader.follow(|| gone.load(std::sync::atomic::Ordering::SeqCst)).unwrap() {
                    seen.push(line);
                }
                seen
            });
            let mut writer = Writer::open(dir.path(), limits).unwrap();
            for n in 0..20_000 {
                writer.write(Stream::Out, format!("{n}\n").as_bytes()).unwrap();
            }
            writer.close().unwrap();
            gone.store(true, std::sync::atomic::Ordering::SeqCst);
            let seen = follower.join().unwrap();
            let expected: Vec<u8> = (0..20_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
            assert!(bytes(&seen, Stream::Out) == expected);
        });
        assert!(dir.path().join("log.5").exists(), "the test rotated");
    }

    #[test]
    fn a_reader_that_was_overtaken_goes_on_with_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), SMALL).unwrap();
        writer.write(Stream::Out, b"first\n").unwrap();
        let mut reader = Reader::open(dir.path(), None, None).unwrap();
        assert_eq!(texts(&all(&mut reader)), [b"first"]);
        for n in 0..2000 {
            writer.write(Stream::Out, format!("line {n}\n").as_bytes()).unwrap();
        }
        let seen = all(&mut reader);
        // The rest of the deleted file is still readable, then comes the oldest that is left.
        assert_eq!(seen[0].text, b"line 0");
        assert_eq!(seen.last().unwrap().text, b"line 1999");
        assert!(seen.len() < 2000);
    }

    #[test]
    fn tail_and_since() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Reader::open(dir.path(), Some(3), None).unwrap().next_line().unwrap(), None);
        let mut writer = Writer::open(dir.path(), SMALL).unwrap();
        for n in 0..400 {
            writer.write(Stream::Out, format!("line {n}\n").as_bytes()).unwrap();
        }
        let tail = |n, since| all(&mut Reader::open(dir.path(), Some(n), since).unwrap());
        assert_eq!(texts(&tail(2, None)), [b"line 398", b"line 399"]);
        assert_eq!(tail(150, None).len(), 150, "over two files");
        assert_eq!(texts(&tail(0, None)), [] as [&[u8]; 0]);
        assert!(tail(100_000, None).len() < 400, "some are rotated away");

        let mut none_yet = Reader::open(dir.path(), Some(0), None).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        let since = Timestamp::now();
        writer.write(Stream::Out, &[b'a'; MAX_PARTIAL + 5]).unwrap();
        writer.write(Stream::Out, b"\nlast\n").unwrap();
        assert_eq!(all(&mut none_yet).len(), 3);
        assert_eq!(all(&mut Reader::open(dir.path(), None, Some(since)).unwrap()).len(), 3);
        assert_eq!(texts(&tail(1, Some(since))), [b"last"]);
        assert_eq!(tail(2, None).len(), 3, "a long line counts once");
        assert_eq!(tail(1, Some(Timestamp::now() + jiff::SignedDuration::from_secs(9))), []);
    }

    #[test]
    fn a_torn_end_is_tolerated_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let whole = b"2026-11-23T16:33:29.123456789Z stdout F whole\n2026-11-23T16:33:30Z stderr F torn";
        for cut in 0..=whole.len() {
            std::fs::write(&log, &whole[..cut]).unwrap();
            let expected = usize::from(cut > 45);
            assert_eq!(all(&mut Reader::open(dir.path(), None, None).unwrap()).len(), expected, "cut at {cut}");
            Writer::open(dir.path(), SMALL).unwrap().write(Stream::Out, b"next\n").unwrap();
            let lines = all(&mut Reader::open(dir.path(), None, None).unwrap());
            assert_eq!(lines.last().unwrap().text, b"next", "cut at {cut}");
        }
        std::fs::write(&log, vec![b'z'; 300_000]).unwrap();
        Writer::open(dir.path(), Limits::default()).unwrap().write(Stream::Out, b"next\n").unwrap();
        assert_eq!(texts(&all(&mut Reader::open(dir.path(), None, None).unwrap())), [b"next"]);
    }

    #[test]
    fn a_rotation_cut_short_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), SMALL).unwrap();
        writer.write(Stream::Out, b"old\n").unwrap();
        drop(writer);
        std::fs::rename(dir.path().join("log"), dir.path().join("log.2")).unwrap();
        Writer::open(dir.path(), SMALL).unwrap().write(Stream::Out, b"new\n").unwrap();
        assert_eq!(texts(&all(&mut Reader::open(dir.path(), None, None).unwrap())), [b"old", b"new"]);
    }

    #[test]
    fn a_full_disk_is_an_error_and_not_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), SMALL).unwrap();
        writer.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(writer.write(Stream::Out, b"a\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        std::fs::remove_file(dir.path().join("log")).unwrap();
        writer.file = create(&dir.path().join("log")).unwrap();
        writer.write(Stream::Out, b"b\n").unwrap();
        assert_eq!(texts(&all(&mut Reader::open(dir.path(), None, None).unwrap())), [b"b"]);
    }

    #[test]
    fn a_link_in_place_of_the_log_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "mine\n").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("log")).unwrap();
        assert!(Writer::open(dir.path(), SMALL).is_err());
        assert!(Reader::open(dir.path(), None, None).is_err());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine\n");
    }

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(escape(b"plain \t \xc3\xa4 \xe6\xbc\xa2"), "plain \t ä 漢");
        assert_eq!(escape(b"\x1b[31mred\x1b[0m"), "\\x1b[31mred\\x1b[0m");
        assert_eq!(escape(b"a\rb\r"), "a\\x0db");
        assert_eq!(escape("\u{9b}31m \u{202e}x\u{2066}".as_bytes()), "\\u{9b}31m \\u{202e}x\\u{2066}");
        assert_eq!(escape(b"\x9b31m\xff\0\x7f\x08"), "\\x9b31m\\xff\\x00\\x7f\\x08");
        for byte in 0..=255u8 {
            let shown = escape(&[b'a', byte, b'b']);
            assert!(shown.chars().all(|c| c == '\t' || !c.is_control()), "{byte}");
        }
    }

    #[test]
    fn since_is_a_duration_or_a_time() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let since = |text| before(text, now).map(|t| t.to_string());
        assert_eq!(since("10m").unwrap(), "2026-11-23T11:50:00Z");
        assert_eq!(since("1h30m").unwrap(), "2026-11-23T10:30:00Z");
        assert_eq!(since("2d").unwrap(), "2026-11-21T12:00:00Z");
        assert_eq!(since("2026-11-23T13:00:00+02:00").unwrap(), "2026-11-23T11:00:00Z");
        for bad in ["", "-5m", "10", "yesterday", "9999999999999h"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }
}
