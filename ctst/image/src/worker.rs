//! Both ends of a [`Runner`](crate::Runner) in another process: the job is an argument, the archive is the standard input,
//! and the answer comes as lines of JSON on the standard output.

use std::io::{BufRead, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::build::{self, GatherJob, PlaceJob, SealJob, Sealed};
use crate::distroless::{self, StripJob, Stripped};
use crate::error::text;
use crate::hash::Algorithm;
use crate::lazy::{IndexJob, Indexed};
use crate::unpack::{Direct, Owners, Report, Runner, UnpackJob, open_tree};
use crate::{Error, Progress};

/// Longest line of an answer: a report with 500 layers and the largest configuration.
const MAX_LINE: u64 = 32 << 20;
/// Most notes that are taken from a worker, and characters of each text.
const MAX_NOTES: usize = 100;
const MAX_TEXT: usize = 8 << 10;

/// What a worker does in its one folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// [`Runner::unpack`] of the standard input.
    Unpack(UnpackJob),
    /// [`Runner::index`] of the standard input.
    Index(IndexJob),
    /// [`Runner::digest`].
    Digest(Owners, Algorithm),
    /// [`Runner::pack`] to the standard input, which is open for writing.
    Pack(Owners),
    /// Of what a step of a build has written a layer is made; the standard input is `/dev/null`, open for writing.
    Seal(SealJob),
    /// Files of the image that is the worker's root are written to the standard input, which is open for writing.
    Gather(GatherJob),
    /// The standard input is put into the image that is the worker's root.
    Place(PlaceJob),
    /// What is kept of the image that is the worker's root is copied into the worker's folder.
    Strip(StripJob),
    /// A folder is made in it.
    Folder(String),
    /// The worker's folder gets an owner and permission bits.
    Own {
        /// User and group.
        owner: (u32, u32),
        /// The bits.
        mode: u32,
    },
}

impl Job {
    /// The job as one argument for [`worker_main`], below 128 KiB as the kernel wants it.
    #[must_use]
    pub fn to_argument(&self) -> String {
        serde_json::to_string(self).expect("a job is plain data")
    }
}

/// What a worker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Job::Unpack`].
    Report(Box<Report>),
    /// To [`Job::Index`].
    Indexed(Box<Indexed>),
    /// To [`Job::Digest`] and [`Job::Pack`].
    Digest(String),
    /// To [`Job::Seal`].
    Sealed(Sealed),
    /// To [`Job::Strip`].
    Stripped(Box<Stripped>),
    /// To [`Job::Gather`]: whether what was taken is one file that was named.
    Gathered(bool),
    /// To the others.
    Done,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Progress(Progress),
    Answer(Box<Answer>),
    Error { code: String, text: String, help: Option<String> },
}

/// Does a job inside a container: reads the archive from the standard input, works in `target`, and writes its answer to
/// the standard output. Returns the exit code: 0, or 125 after an error, which is in the answer.
#[must_use]
pub fn worker_main(job: &str, target: &Path) -> i32 {
    let mut out = std::io::stdout().lock();
    let mut say = |line: &Line| {
        let mut json = serde_json::to_vec(line).expect("an answer is plain data");
        json.push(b'\n');
        out.write_all(&json).and_then(|()| out.flush())
    };
    let done = serde_json::from_str(job)
        .map_err(|e| Error::Worker { code: String::new(), text: format!("read the worker's job: {e}"), help: None })
        .and_then(|job| match job {
            Job::Unpack(job) => {
                let archive = input(&job.archive)?;
                // Whoever does not read any more has ended, and this process's container with it.
                let mut progress = |progress| drop(say(&Line::Progress(progress)));
                Direct.unpack(&job, archive, target, &mut progress).map(|report| Answer::Report(Box::new(report)))
            }
            Job::Index(job) => {
                Direct.index(&job, input(&job.archive)?, target).map(|indexed| Answer::Indexed(Box::new(indexed)))
            }
            Job::Digest(owners, algorithm) => Direct.digest(owners, algorithm, target).map(Answer::Digest),
            Job::Pack(owners) => Direct.pack(owners, target, input(target)?).map(Answer::Digest),
            Job::Seal(job) => build::seal(&job, &open_tree(target)?, target, input(target)?).map(Answer::Sealed),
            Job::Gather(job) => build::gather(&job, input(target)?).map(Answer::Gathered),
            Job::Place(job) => build::place(&job, &input(target)?).map(|()| Answer::Done),
            Job::Strip(job) => distroless::strip(&job, target).map(|stripped| Answer::Stripped(Box::new(stripped))),
            Job::Own { owner, mode } => build::own(target, owner, mode).map(|()| Answer::Done),
            Job::Folder(path) => build::make_folder(&path).map(|()| Answer::Done),
        });
    let code = if done.is_ok() { 0 } else { 125 };
    let line = match done {
        Ok(answer) => Line::Answer(Box::new(answer)),
        Err(error) => Line::Error { code: error.code().into(), text: error.to_string(), help: error.help() },
    };
    if say(&line).is_err() { 125 } else { code }
}

/// The standard input as a descriptor of our own; `name` is for messages.
fn input(name: &Path) -> Result<OwnedFd, Error> {
    std::io::stdin().as_fd().try_clone_to_owned().map_err(|e| Error::std("open", name, &e))
}

/// Reads what [`worker_main`] writes, up to its answer. Nothing in it is believed: the worker has read a stranger's
/// archive.
///
/// # Errors
/// [`Error::Worker`]: the worker's own error, or that it ended without an answer.
pub fn read_answer(mut out: impl BufRead, progress: &mut dyn FnMut(Progress)) -> Result<Answer, Error> {
    let silent = |text: &str| Error::Worker { code: String::new(), text: text.into(), help: None };
    loop {
        let mut line = Vec::new();
        let read = (&mut out).take(MAX_LINE).read_until(b'\n', &mut line);
        read.map_err(|e| silent(&format!("read a worker's answer: {e}")))?;
        if line.pop() != Some(b'\n') {
            return Err(silent("a worker ended without an answer"));
        }
        let line = serde_json::from_slice(&line).map_err(|_| silent("a worker's answer is not understood"))?;
        let clean = |dirty: String| text(&dirty.chars().take(MAX_TEXT).collect::<String>());
        match line {
            Line::Progress(done) => progress(done),
            Line::Answer(mut answer) => {
                let notes = match &mut *answer {
                    Answer::Report(report) => {
                        report.names.truncate(MAX_NOTES);
                        Some(&mut report.notes)
                    }
                    Answer::Indexed(indexed) => Some(&mut indexed.notes),
                    Answer::Stripped(stripped) => {
                        stripped.dropped.truncate(MAX_NOTES);
                        stripped
                            .dropped
                            .iter_mut()
                            .for_each(|dropped| dropped.path = clean(std::mem::take(&mut dropped.path)));
                        Some(&mut stripped.notes)
                    }
                    Answer::Digest(_) | Answer::Sealed(_) | Answer::Gathered(_) | Answer::Done => None,
                };
                if let Some(notes) = notes {
                    notes.truncate(MAX_NOTES);
                    notes.iter_mut().for_each(|note| *note = clean(std::mem::take(note)));
                }
                return Ok(*answer);
            }
            Line::Error { code, text, help } => {
                return Err(Error::Worker { code, text: clean(text), help: help.map(clean) });
            }
        }
    }
}
