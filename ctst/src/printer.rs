//! Logs of several containers as one stream.

use std::io::{self, Write};

use anstyle::Style;
use containust_sdk::Project;
use containust_sdk::logs::{Escaped, Line, Reader, Stream, parse_since};

use crate::failure::Failure;
use crate::output::{DIM, component_style, one_output};

/// What a component printed, read ahead by one line so that several can be merged by time.
struct Source {
    name: String,
    style: Style,
    reader: Reader,
    ahead: Option<Line>,
}

/// Shows the logs of components.
pub(crate) struct Printer {
    /// Names of the project, which decide the colours.
    all: Vec<String>,
    sources: Vec<Source>,
    out: Sink,
    /// For what containers wrote to standard error; none: `out` is the same file, where the order of time is kept.
    err: Option<Sink>,
}

/// Standard output or error.
struct Sink {
    form: Form,
    /// The source and stream of the unfinished line that the cursor stands in.
    open: Option<(usize, Stream)>,
}

impl Sink {
    fn new(stream: &impl anstream::stream::RawStream, timestamps: bool, names: Option<usize>) -> Self {
        let color = anstream::AutoStream::choice(stream) != anstream::ColorChoice::Never;
        Self { form: Form { escape: stream.is_terminal(), color, timestamps, names }, open: None }
    }

    /// Whether an unfinished line has to be ended, on a terminal.
    fn finish(&mut self) -> bool {
        self.form.escape && self.open.take().is_some()
    }
}

#[derive(Clone, Copy)]
struct Form {
    /// Containers must not be able to steer the terminal. Files and pipes get every byte as it was.
    escape: bool,
    color: bool,
    timestamps: bool,
    /// Width of the names before the lines; none: no names.
    names: Option<usize>,
}

impl Printer {
    /// For `shown` of `all` components of a project. `named`: with the components' names before the lines, where there are several.
    pub(crate) fn new(all: Vec<String>, shown: &[String], timestamps: bool, named: bool) -> Self {
        let width = shown.iter().map(String::len).max().unwrap_or(0);
        let names = (named && shown.len() > 1).then_some(width);
        let err = (!one_output()).then(|| Sink::new(&io::stderr(), timestamps, names));
        Self { all, sources: Vec::new(), out: Sink::new(&io::stdout(), timestamps, names), err }
    }

    /// Adds a component's log.
    pub(crate) fn add(&mut self, name: &str, reader: Reader) {
        let place = self.all.iter().filter(|other| other.as_str() < name).count();
        self.sources.push(Source { name: name.to_owned(), style: component_style(place), reader, ahead: None });
    }

    /// Prints what is there by now, in the order of time, each line to where the container wrote it.
    pub(crate) fn drain(&mut self) -> Result<(), Failure> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let mut err = io::BufWriter::new(io::stderr().lock());
        loop {
            for source in &mut self.sources {
                if source.ahead.is_none() {
                    let read = source.reader.next_line();
                    source.ahead = read.map_err(|e| Failure::io(&format!("read the log of {}", source.name), e))?;
                }
            }
            let times = self.sources.iter().enumerate().filter_map(|(n, s)| Some((s.ahead.as_ref()?.time, n)));
            let Some((_, next)) = times.min() else { break };
            let Some(line) = self.sources[next].ahead.take() else { break };
            let source = &self.sources[next];
            match &mut self.err {
                Some(Sink { form, open }) if line.stream == Stream::Err => {
                    form.write(&mut err, &source.name, source.style, &line, open, next).map_err(to_stderr)?;
                }
                _ => {
                    let Sink { form, open } = &mut self.out;
                    form.write(&mut out, &source.name, source.style, &line, open, next)?;
                }
            }
        }
        err.flush().map_err(to_stderr)?;
        Ok(out.flush()?)
    }

    /// Ends an unfinished line on a terminal.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        if self.err.as_mut().is_some_and(Sink::finish) {
            io::stderr().write_all(b"\n").map_err(to_stderr)?;
        }
        if self.out.finish() {
            io::stdout().write_all(b"\n")?;
        }
        Ok(())
    }
}

fn to_stderr(error: io::Error) -> Failure {
    Failure::io("write to standard error", error)
}

impl Form {
    fn write(
        self,
        out: &mut impl Write,
        name: &str,
        style: Style,
        line: &Line,
        open: &mut Option<(usize, Stream)>,
        source: usize,
    ) -> io::Result<()> {
        let goes_on = *open == Some((source, line.stream));
        let bare = self.names.is_none() && !self.timestamps;
        if open.is_some() && !goes_on && (self.escape || !bare) {
            out.write_all(b"\n")?;
        }
        if !goes_on {
            let style = if self.color { style } else { Style::new() };
            if let Some(width) = self.names {
                write!(out, "{style}{name:width$} |{style:#} ")?;
            }
            if self.timestamps {
                let dim = if self.color { DIM } else { Style::new() };
                write!(out, "{dim}{:.9}{dim:#} ", line.time)?;
            }
        }
        if self.escape {
            write!(out, "{}", Escaped(&line.text))?;
        } else {
            out.write_all(&line.text)?;
        }
        *open = if line.complete { None } else { Some((source, line.stream)) };
        if line.complete { out.write_all(b"\n") } else { Ok(()) }
    }
}

/// Opens the log of a component; see [`Reader::open`].
pub(crate) fn open(project: &Project, name: &str, tail: Option<usize>, since: Option<&str>) -> Result<Reader, Failure> {
    let since = since.map(parse_since).transpose();
    let since = since.map_err(|expected| Failure::new(format!("read --since: {expected}"), None))?;
    Reader::open(&project.log_dir(name), tail, since).map_err(|e| Failure::io(&format!("read the log of {name}"), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stream: Stream, text: &[u8], complete: bool) -> Line {
        Line { time: "2026-11-23T16:33:29.000000001Z".parse().unwrap(), stream, text: text.to_vec(), complete }
    }

    fn shown(form: Form, lines: &[(usize, Line)]) -> String {
        let (mut out, mut open) = (Vec::new(), None);
        for (source, line) in lines {
            let name = ["web", "db"][*source];
            form.write(&mut out, name, component_style(*source), line, &mut open, *source).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    const RAW: Form = Form { escape: false, color: false, timestamps: false, names: None };

    #[test]
    fn data_is_byte_exact_and_a_terminal_is_safe() {
        let lines = [
            (0, line(Stream::Out, b"a\x1b[2J\r", true)),
            (0, line(Stream::Out, b"half", false)),
            (0, line(Stream::Err, b"err\n", true)),
            (0, line(Stream::Out, b" whole", true)),
        ];
        assert_eq!(shown(RAW, &lines), "a\x1b[2J\r\nhalferr\n\n whole\n");
        assert_eq!(shown(Form { escape: true, ..RAW }, &lines[..2]), "a\\x1b[2J\nhalf");
    }

    #[test]
    fn names_are_padded_and_unfinished_lines_kept_apart() {
        let form = Form { names: Some(3), ..RAW };
        let lines = [
            (0, line(Stream::Out, b"one", true)),
            (1, line(Stream::Out, b"tw", false)),
            (1, line(Stream::Out, b"o", true)),
            (1, line(Stream::Out, b"half", false)),
            (0, line(Stream::Out, b"three", true)),
        ];
        assert_eq!(shown(form, &lines), "web | one\ndb  | two\ndb  | half\nweb | three\n");
        let form = Form { names: Some(3), timestamps: true, color: true, ..RAW };
        let text = shown(form, &lines[..1]);
        assert_eq!(text, "\x1b[36mweb |\x1b[0m \x1b[2m2026-11-23T16:33:29.000000001Z\x1b[0m one\n");
    }
}
