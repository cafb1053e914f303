//! `ctst exec`

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use containust_sdk::{Client, ContainerStatus, Error, ExecRequest, ExecSession, Project, State};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe_with};
use rustix::termios::isatty;

use super::{expand, not_running};
use crate::args::Exec;
use crate::failure::{Failure, Outcome};
use crate::output::one_output;
use crate::signals::Signals;
use crate::terminal::{self, RawMode};

/// What a person can send a command from outside: all of them go to the process in the container.
const FORWARDED: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];
/// For a terminal whose size nobody knows.
const DEFAULT_SIZE: (u16, u16) = (24, 80);
/// Ctrl-D: what a terminal understands as the end of its input.
const END_OF_INPUT: u8 = 4;
/// What a pipe holds.
const BUFFER: usize = 64 * 1024;
/// What a pipe that is ready for writing takes without making us wait (`PIPE_BUF`, pipe(7)): signals are to be seen
/// meanwhile.
const PIECE: usize = 4096;

const STDOUT: &str = "standard output";
const STDERR: &str = "standard error";

pub(crate) fn run(args: Exec, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let mut words = args.words.into_iter();
    let mut component = words.next().unwrap_or_default();
    // Where other tools want it, before the command.
    let words = words.enumerate().filter(|(at, word)| *at > 0 || word != "--").map(|(_, word)| word);
    // Where there is no such component it may be one that has replicas: any that runs will do.
    if !project.log_dir(&component).exists() {
        let status = project.status()?;
        let running = expand(&component, &status).into_iter().find(|status| status.state == State::Running);
        component = running.map_or(component, |status| status.component.clone());
    }
    let request = ExecRequest {
        argv: words.collect(),
        env: args.env.iter().filter_map(|entry| variable(entry).transpose()).collect::<Result<_, _>>()?,
        user: args.user,
        workdir: args.workdir,
        tty: args.tty.then(|| terminal::size().unwrap_or(DEFAULT_SIZE)),
        component,
    };
    let client = Client::connect(&project)?;
    let live = |status: &ContainerStatus| status.component == request.component && status.state.is_live();
    let refused = |error: Option<Error>| match project.status() {
        Ok(status) if !status.iter().any(live) => {
            not_running(&project, file, &request.component, status.into_iter().map(|s| s.component).collect())
        }
        Ok(_) => error.unwrap_or_else(|| Error::NotRunning { project: project.folder().to_owned() }).into(),
        Err(error) => error.into(),
    };
    let Some(client) = client else { return Err(refused(None)) };
    // Signals are taken over only once there is a process to forward them to: until then they end us as usual, and a
    // process whose caller is gone is ended by the supervisor.
    if args.tty {
        let session = client.exec(&request, [io::stdin().as_fd(); 3]).map_err(|error| refused(Some(error)))?;
        with_terminal(session, args.interactive)
    } else {
        let (lent, copies) = streams(args.interactive).map_err(|e| Failure::io("make pipes", e))?;
        let session = client.exec(&request, lent.each_ref().map(AsFd::as_fd)).map_err(|error| refused(Some(error)))?;
        // The command has its ends now; it would never see the end of its input while we have them too.
        drop(lent);
        serve(session, &Signals::take(&FORWARDED)?, copies)
    }
}

/// `NAME=VALUE`, or `NAME` with the caller's value; none if the caller has none.
fn variable(entry: &str) -> Result<Option<(String, String)>, Failure> {
    let (name, value) = match entry.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (entry, std::env::var(entry).ok()),
    };
    if name.is_empty() {
        return Err(Failure::new(format!("set variable {entry}: it has no name"), "write NAME=VALUE".to_owned()));
    }
    Ok(value.map(|value| (name.to_owned(), value)))
}

fn with_terminal(session: ExecSession, interactive: bool) -> Outcome {
    let signals = Signals::take(&[&FORWARDED[..], &[Signal::SIGWINCH]].concat())?;
    // It may have changed before that.
    if let Some((rows, columns)) = terminal::size() {
        session.resize(rows, columns)?;
    }
    let no_terminal = || Failure::new("open a terminal in the container: none came with the process", None);
    let master = session.master().ok_or_else(no_terminal)?;
    let copies = terminal_copies(master, interactive).map_err(|e| Failure::io("use the container's terminal", e))?;
    let raw = interactive && isatty(io::stdin());
    let raw = raw.then(RawMode::enter).transpose().map_err(|e| Failure::io("set the terminal to raw mode", e))?;
    let outcome = serve(session, &signals, copies);
    drop(raw);
    outcome
}

fn terminal_copies(master: &OwnedFd, interactive: bool) -> io::Result<Vec<Copy>> {
    set_nonblocking(master)?;
    let mut copies = vec![Copy::output(master.try_clone()?, io::stdout().as_fd().try_clone_to_owned()?, STDOUT)];
    if interactive {
        let mut input = Copy::input(io::stdin().as_fd().try_clone_to_owned()?, master.try_clone()?);
        input.end = Some(END_OF_INPUT);
        copies.push(input);
    }
    Ok(copies)
}

/// The three streams for a process without a terminal, and what is to be copied meanwhile.
///
/// They are pipes of our own, and nothing of the caller's is handed over. A process in the container can open anything
/// that it holds once more, through /proc/self/fd, with any rights that the file's mode gives its user, who may be the
/// caller: a file that was opened for reading could be written; a folder would be a way out, and a terminal could be fed
/// with input. And what it leaves running would hold the caller's pipes open.
fn streams(interactive: bool) -> io::Result<([OwnedFd; 3], Vec<Copy>)> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let (input, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut copies = Vec::new();
    // Without a copy its writing end is closed at once: there is no input.
    if interactive {
        set_nonblocking(&writer)?;
        copies.push(Copy::input(stdin.as_fd().try_clone_to_owned()?, writer));
    }
    let mut output = |to: BorrowedFd<'_>, name| -> io::Result<OwnedFd> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        set_nonblocking(&reader)?;
        copies.push(Copy::output(reader, to.try_clone_to_owned()?, name));
        Ok(writer)
    };
    let out = output(stdout.as_fd(), STDOUT)?;
    // In one pipe, what is written to either stays in order.
    let err = if one_output() { out.try_clone()? } else { output(stderr.as_fd(), STDERR)? };
    Ok(([input, out, err], copies))
}

/// For an end that only we have: the flag belongs to the open file, which the other end does not share.
fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

/// Copies and forwards until the process ends.
fn serve(mut session: ExecSession, signals: &Signals, mut copies: Vec<Copy>) -> Outcome {
    loop {
        if let Some(code) = session.try_wait()? {
            // A process that it left behind may hold its streams open for long. What it wrote itself is there by now.
            for copy in copies.iter_mut().filter(|copy| copy.output.is_some()) {
                if let Some(signal) = copy.finish(signals)? {
                    return Ok(128 + signal as i32);
                }
            }
            return copies.iter_mut().find_map(Copy::failure).map_or(Ok(code), Err);
        }
        while let Some(signal) = signals.next()? {
            match signal {
                Signal::SIGWINCH => {
                    if let Some((rows, columns)) = terminal::size() {
                        session.resize(rows, columns)?;
                    }
                }
                signal => session.signal(signal as i32)?,
            }
        }
        let mut fds = vec![PollFd::new(&session, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        fds.extend(copies.iter().filter_map(Copy::awaits));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Failure::io("wait for the process", e)),
        }
        let ready: Vec<bool> = fds[2..].iter().map(|fd| !fd.revents().is_empty()).collect();
        let waiting = copies.iter_mut().filter(|copy| copy.awaits().is_some());
        for (copy, _) in waiting.zip(ready).filter(|(_, ready)| *ready) {
            // Without a terminal the process notices by itself, as in a pipeline.
            if copy.step() == Step::ReceiverGone && copy.output.is_some() && session.master().is_some() {
                return Err(copy.failure().unwrap_or(Failure::BrokenPipe));
            }
        }
    }
}

/// One stream on its way, with one buffer.
#[derive(Debug)]
struct Copy {
    from: Option<File>,
    to: Option<File>,
    held: Vec<u8>,
    /// Written at the end of `from`; otherwise `to` is closed there.
    end: Option<u8>,
    /// What `to` is called, if it is the caller's.
    output: Option<&'static str>,
    /// Why `to` takes no more; none where only nobody reads it.
    failed: Option<io::Error>,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Done,
    ReceiverGone,
}

impl Copy {
    fn input(from: OwnedFd, to: OwnedFd) -> Self {
        Self { from: Some(from.into()), to: Some(to.into()), held: Vec::new(), end: None, output: None, failed: None }
    }

    /// `from` must not block.
    fn output(from: OwnedFd, to: OwnedFd, name: &'static str) -> Self {
        Self { output: Some(name), ..Self::input(from, to) }
    }

    /// What has to get ready before [`Self::step`]; none: it is over.
    fn awaits(&self) -> Option<PollFd<'_>> {
        match (&self.from, &self.to) {
            (_, Some(to)) if !self.held.is_empty() => Some(PollFd::new(to, PollFlags::OUT)),
            (Some(from), Some(_)) => Some(PollFd::new(from, PollFlags::IN)),
            _ => None,
        }
    }

    /// Reads or writes once. Whichever side fails, both are closed, so that the other one notices.
    fn step(&mut self) -> Step {
        let reading = self.held.is_empty();
        match if reading { self.read().map(drop) } else { self.write() } {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Step::Done,
            Ok(()) => Step::Done,
            Err(e) => {
                (self.from, self.to, self.held) = (None, None, Vec::new());
                if reading {
                    return Step::Done;
                }
                self.failed = Some(e).filter(|e| e.kind() != io::ErrorKind::BrokenPipe);
                Step::ReceiverGone
            }
        }
    }

    fn read(&mut self) -> io::Result<usize> {
        let Some(from) = &mut self.from else { return Ok(0) };
        self.held.resize(BUFFER, 0);
        let read = from.read(&mut self.held);
        self.held.truncate(*read.as_ref().unwrap_or(&0));
        if let Ok(0) = read {
            self.from = None;
            match self.end.take() {
                Some(end) => self.held.push(end),
                None => self.to = None,
            }
        }
        read
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(to) = &mut self.to else { return Ok(()) };
        let (piece, mut written) = (if self.output.is_some() { PIECE } else { BUFFER }, 0);
        let result = loop {
            let held = &self.held[written..];
            match to.write(&held[..piece.min(held.len())]) {
                Ok(count) => written += count,
                Err(e) => break Err(e),
            }
            let ready = |to: &File| poll(&mut [PollFd::new(to, PollFlags::OUT)], Some(&Timespec::default()));
            if written == self.held.len() || !matches!(ready(to), Ok(1)) {
                break Ok(());
            }
        };
        self.held.drain(..written);
        result
    }

    /// Moves what is there, and waits only for the caller to take it; gives the signal that ended that. What still comes
    /// meanwhile is of processes that were left behind, and may never end.
    fn finish(&mut self, signals: &Signals) -> Result<Option<Signal>, Failure> {
        let held = self.from.as_ref().map(|from| fcntl_getpipe_size(from).unwrap_or(BUFFER));
        let mut left = held.unwrap_or(0);
        loop {
            while let (false, Some(to)) = (self.held.is_empty(), &self.to) {
                let mut fds = [PollFd::new(to, PollFlags::OUT), PollFd::new(signals, PollFlags::IN)];
                // An interrupted wait is the same as one that was too short.
                poll(&mut fds, None).ok();
                let ready = !fds[0].revents().is_empty();
                match signals.next()? {
                    None | Some(Signal::SIGWINCH) => {}
                    signal => return Ok(signal),
                }
                if ready {
                    self.step();
                }
            }
            match self.read() {
                Ok(read @ 1..) if left > 0 => left = left.saturating_sub(read),
                _ => return Ok(None),
            }
        }
    }

    /// Why the caller did not get everything, other than by its own will.
    fn failure(&mut self) -> Option<Failure> {
        let name = self.output?;
        self.failed.take().map(|e| Failure::io(&format!("write to {name}"), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn a_copy_passes_bytes_and_the_end() {
        let ((in_reader, in_writer), (out_reader, out_writer)) = (pipe(), pipe());
        let mut copy = Copy::input(in_reader, out_writer);
        File::from(in_writer).write_all(b"hello").unwrap();
        while copy.awaits().is_some() {
            copy.step();
        }
        let mut got = String::new();
        File::from(out_reader).read_to_string(&mut got).unwrap();
        assert_eq!(got, "hello");
    }

    #[test]
    fn a_copy_closes_its_source_when_nobody_reads() {
        let ((in_reader, in_writer), (out_reader, out_writer)) = (pipe(), pipe());
        let mut copy = Copy::input(in_reader, out_writer);
        let mut writer = File::from(in_writer);
        writer.write_all(b"hello").unwrap();
        drop(out_reader);
        assert_eq!(copy.step(), Step::Done);
        assert_eq!(copy.step(), Step::ReceiverGone);
        assert!(copy.awaits().is_none());
        assert_eq!(writer.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_receiver_that_fails_is_told_of_and_one_that_left_is_not() {
        let give = |to: OwnedFd| {
            let (reader, writer) = pipe();
            let mut copy = Copy::output(reader, to, STDOUT);
            File::from(writer).write_all(b"hello").unwrap();
            assert_eq!(copy.step(), Step::Done);
            assert_eq!(copy.step(), Step::ReceiverGone);
            copy.failure()
        };
        let full = File::options().write(true).open("/dev/full").unwrap();
        let Some(Failure::Error(report)) = give(full.into()) else { panic!("not told") };
        assert!(report.message.starts_with("write to standard output: "), "{}", report.message);
        let (reader, writer) = pipe();
        drop(reader);
        assert!(give(writer).is_none());
    }

    #[test]
    fn the_end_waits_for_no_process_that_writes_for_ever() {
        let (reader, writer) = pipe();
        let to = File::options().write(true).open("/dev/null").unwrap();
        let mut copy = Copy::output(reader, to.into(), STDOUT);
        let flood =
            std::thread::spawn(move || while File::from(writer.try_clone().unwrap()).write_all(&[0; 9]).is_ok() {});
        assert_eq!(copy.finish(&Signals::take(&[]).unwrap()).unwrap(), None);
        drop(copy);
        flood.join().unwrap();
    }

    #[test]
    fn variables() {
        assert_eq!(variable("A=b=c").unwrap(), Some(("A".into(), "b=c".into())));
        assert_eq!(variable("A=").unwrap(), Some(("A".into(), String::new())));
        assert_eq!(variable("PATH").unwrap().unwrap().0, "PATH");
        assert_eq!(variable("SURELY_NOT_SET_ANYWHERE").unwrap(), None);
        assert!(variable("=x").is_err());
    }
}
