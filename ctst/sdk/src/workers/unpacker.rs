//! What unpacks, reads and removes the files of strangers: workers in containers with an empty root, the project's id map,
//! one folder, no network, and limits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use containust_image::build::{SealJob, Sealed};
use containust_image::{
    Algorithm, Answer, Error, IndexJob, Indexed, Job, Owners, Progress, Report, Runner, StripJob, Stripped, UnpackJob,
    read_answer, remove_tree,
};
use containust_shared::protocol::{Ended, Mount, Plan, Rlimit};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, getrlimit};

use crate::error::{During, Result};
use crate::host::ids::Ids;
use crate::logs::escape;
use crate::shim::describe;
use crate::supervisor::prepare;
use crate::workers;
use crate::workers::workshop::{self, End, Workshop};

/// What a worker may use. Four million files with the longest names that are taken need less than half of the address
/// space, and 64 GiB, more than which is not unpacked, some minutes of processor time. A worker holds folders open down to
/// a depth of 64.
const LIMITS: [(Resource, u64); 5] = [
    (Resource::As, 4 << 30),
    (Resource::Cpu, 3600),
    (Resource::Fsize, 64 << 30),
    (Resource::Nofile, 1024),
    (Resource::Core, 0),
];
/// Bytes of what a worker says on its standard error.
const WORDS: u64 = 1024;

const SIGABRT: i32 = 6;
const SIGXCPU: i32 = 24;
const SIGXFSZ: i32 = 25;

/// Of what a container writes, the end, and as much of a line.
const KEPT_LINES: usize = 200;
const LONGEST_LINE: u64 = 4096;

/// Starts workers, and before the first of them a sandbox.
pub(crate) struct Unpacker {
    ids: Ids,
    workshop: RefCell<Option<Workshop>>,
    elsewhere: Option<Box<Launch>>,
}

/// Launches a container with these standard streams, and what it has open, in a sandbox of somebody else, who tells how it ended;
/// that it was killed, where it [makes](Work::makes) something that nobody wants any more.
pub(crate) type Launch = dyn Fn(Plan, Vec<OwnedFd>, [OwnedFd; 3], bool) -> Result<Receiver<Result<End>>>;

/// What a worker is started for.
struct Work {
    /// For people.
    name: String,
    plan: Plan,
    /// Until it has started.
    held: Vec<OwnedFd>,
    input: OwnedFd,
    /// It makes something, which nobody may want any more before it is done; the others clean up.
    makes: bool,
}

/// An image, and the folders by which overlayfs makes it writable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writable<'a> {
    /// Topmost first.
    pub(crate) layers: &'a [PathBuf],
    pub(crate) upper: &'a Path,
    pub(crate) work: &'a Path,
}

/// A worker on one folder.
fn on_folder(target: &Path, arguments: &[&str], writes: bool) -> Result<(Plan, Vec<OwnedFd>)> {
    let target = target.canonicalize().during(|| format!("open {}", target.display()))?;
    let (mut plan, held) = workers::plan(&target, arguments)?;
    for mount in &mut plan.mounts {
        if let Mount::Bind { target, readonly, .. } = mount
            && target == workers::TARGET.as_bytes()
        {
            *readonly = !writes;
        }
    }
    Ok((plan, held))
}

/// Reads what a container writes, to its end; the last lines.
fn last_lines(out: OwnedFd) -> VecDeque<String> {
    let mut out = BufReader::new(File::from(out));
    let (mut lines, mut line) = (VecDeque::new(), Vec::new());
    while (&mut out).take(LONGEST_LINE).read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(escape(String::from_utf8_lossy(&line).trim_end().as_bytes()));
        line.clear();
    }
    lines
}

fn canonical(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(|e| failed(&format!("open `{}`: {e}", path.display().to_string().escape_debug()), None))
}

fn unstarted(error: &crate::error::Error) -> Error {
    failed(&error.to_string(), error.help())
}

impl Unpacker {
    pub(crate) fn new(ids: &Ids) -> Self {
        Self { ids: ids.clone(), workshop: RefCell::new(None), elsewhere: None }
    }

    /// One that starts no sandbox, and whose workers take what others leave of processors and disks.
    pub(crate) fn in_background(ids: &Ids, launch: Box<Launch>) -> Self {
        Self { elsewhere: Some(launch), ..Self::new(ids) }
    }

    /// Has a job done, and gives the answer.
    fn ask(
        &self,
        job: &Job,
        name: String,
        target: &Path,
        input: OwnedFd,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Answer, Error> {
        let argument = job.to_argument();
        let writes = matches!(job, Job::Unpack(_) | Job::Index(_) | Job::Seal(_) | Job::Own { .. });
        let background = self.elsewhere.as_ref().map(|_| workers::BACKGROUND);
        let arguments: Vec<&str> = [workers::IMAGE, &argument].into_iter().chain(background).collect();
        let (plan, held) = on_folder(target, &arguments, writes).map_err(|e| unstarted(&e))?;
        let mut answer = None;
        self.work(Work { name, plan, held, input, makes: true }, &mut |out| {
            answer = Some(read_answer(BufReader::new(File::from(out)), progress));
        })?;
        // It calls the folder by the name that this has in its container.
        let inside = format!("`{}/", workers::TARGET);
        let outside =
            |text: String| text.replace(&inside, &format!("`{}/", target.display().to_string().escape_debug()));
        answer.unwrap_or_else(|| Err(failed("ask a worker", None))).map_err(|error| match error {
            Error::Worker { code, text, help } => Error::Worker { code, text: outside(text), help: help.map(outside) },
            other => other,
        })
    }

    /// Has a job done in an image that is the worker's root, and gives the answer.
    pub(crate) fn within(&self, image: Writable<'_>, job: &Job, name: &str, input: OwnedFd) -> Result<Answer, Error> {
        let (plan, held) = workers::image_plan(image, &job.to_argument()).map_err(|e| unstarted(&e))?;
        let mut answer = None;
        self.work(Work { name: name.to_owned(), plan, held, input, makes: true }, &mut |out| {
            answer = Some(read_answer(BufReader::new(File::from(out)), &mut |_| {}));
        })?;
        answer.unwrap_or_else(|| Err(failed("ask a worker", None)))
    }

    /// Makes a layer of what a step of a build has written.
    pub(crate) fn seal(&self, job: SealJob, tree: &Path) -> Result<Sealed, Error> {
        let sink = File::options().write(true).open("/dev/null");
        let sink = sink.map_err(|e| failed(&format!("open /dev/null: {e}"), None))?;
        let name = format!("read `{}`", tree.display().to_string().escape_debug());
        match self.ask(&Job::Seal(job), name, tree, sink.into(), &mut |_| {})? {
            Answer::Sealed(sealed) => Ok(sealed),
            _ => Err(failed("make a layer: the worker answers something else", None)),
        }
    }

    /// Copies what is kept of an image of these layers into `target`. `scratch`: an empty folder.
    pub(crate) fn strip(
        &self,
        job: StripJob,
        layers: &[PathBuf],
        scratch: &Path,
        target: &Path,
    ) -> Result<Stripped, Error> {
        prepare(scratch, &self.ids).map_err(|e| unstarted(&e))?;
        let (job, target) = (Job::Strip(job).to_argument(), canonical(target)?);
        let scratch = canonical(scratch)?;
        let planned = match self.ids.has_overlay() {
            true => workers::strip_plan(layers, Some(&scratch), &target, &job),
            false => {
                let whole = scratch.join("upper");
                self.flatten(layers, &whole)?;
                workers::strip_plan(&[whole], None, &target, &job)
            }
        };
        let (plan, held) = planned.map_err(|e| unstarted(&e))?;
        let mut answer = None;
        let (name, input) = ("look through the image".to_owned(), null()?);
        self.work(Work { name, plan, held, input, makes: true }, &mut |out| {
            answer = Some(read_answer(BufReader::new(File::from(out)), &mut |_| {}));
        })?;
        match answer.unwrap_or_else(|| Err(failed("ask a worker", None)))? {
            Answer::Stripped(stripped) => Ok(*stripped),
            _ => Err(failed("look through an image: the worker answers something else", None)),
        }
    }

    /// Gives a folder its owner inside.
    pub(crate) fn own(&self, job: &Job, folder: &Path) -> Result<(), Error> {
        let name = format!("set up `{}`", folder.display().to_string().escape_debug());
        self.ask(job, name, folder, null()?, &mut |_| {}).map(drop)
    }

    /// Copies an image of these layers into `target` as one tree.
    pub(crate) fn flatten(&self, layers: &[PathBuf], target: &Path) -> Result<(), Error> {
        let (plan, held) = workers::flatten_plan(layers, target).map_err(|e| unstarted(&e))?;
        let name = format!("flatten `{}`", target.display().to_string().escape_debug());
        self.work(Work { name, plan, held, input: null()?, makes: true }, &mut |out| drop(out))
    }

    /// Runs a container to its end, and that of all that it started. `read` reads what it writes. `file`: the project's. A
    /// container with an address has a way out.
    pub(crate) fn step(
        &self,
        plan: Plan,
        held: Vec<OwnedFd>,
        file: &Path,
        read: &mut dyn FnMut(OwnedFd),
    ) -> Result<End> {
        if !plan.addresses.is_empty() {
            let workshop = self.workshop.borrow_mut().take();
            let mut workshop = workshop.map_or_else(|| Workshop::start(&self.ids), Ok)?;
            workshop.open_way(file)?;
            *self.workshop.borrow_mut() = Some(workshop);
        }
        let (out, out_end) = pipe_with(PipeFlags::CLOEXEC).during(|| "make a pipe".to_owned())?;
        self.ids.give_pipe(&out_end).during(|| "give a pipe to root inside".to_owned())?;
        let errors = out_end.try_clone().during(|| "copy a descriptor".to_owned())?;
        let input = File::open("/dev/null").during(|| "open /dev/null".to_owned())?;
        let (end, workshop) = self.launch(plan, [input.into(), out_end, errors], |job| {
            read(out);
            job.wait_for_all()
        })?;
        drop(held);
        if matches!(end, End::Ended(_)) {
            *self.workshop.borrow_mut() = Some(workshop);
        }
        Ok(end)
    }

    /// Runs a container while `look` looks at it, and ends it. Gives what that says, and what it wrote last.
    pub(crate) fn attempt<T>(
        &self,
        plan: Plan,
        held: Vec<OwnedFd>,
        look: impl FnOnce(&mut workshop::Job) -> Result<T>,
    ) -> Result<(T, VecDeque<String>)> {
        let (out, out_end) = pipe_with(PipeFlags::CLOEXEC).during(|| "make a pipe".to_owned())?;
        self.ids.give_pipe(&out_end).during(|| "give a pipe to root inside".to_owned())?;
        let errors = out_end.try_clone().during(|| "copy a descriptor".to_owned())?;
        let input = File::open("/dev/null").during(|| "open /dev/null".to_owned())?;
        let reader = std::thread::spawn(|| last_lines(out));
        let (seen, workshop) = self.launch(plan, [input.into(), out_end, errors], |job| {
            let seen = look(job)?;
            job.wait_until_gone()?;
            Ok(seen)
        })?;
        drop(held);
        *self.workshop.borrow_mut() = Some(workshop);
        Ok((seen, reader.join().unwrap_or_default()))
    }

    fn launch<T>(
        &self,
        plan: Plan,
        streams: [OwnedFd; 3],
        wait: impl FnOnce(&mut workshop::Job) -> Result<T>,
    ) -> Result<(T, Workshop)> {
        let workshop = self.workshop.borrow_mut().take();
        let mut workshop = match workshop {
            Some(workshop) => workshop,
            None => Workshop::start(&self.ids)?,
        };
        let mut job = workshop.launch(plan, streams)?;
        Ok((wait(&mut job)?, workshop))
    }

    /// Runs a worker to its end. `read` reads what it says; its error counts only where the worker ended as it should.
    fn work(&self, work: Work, read: &mut dyn FnMut(OwnedFd)) -> Result<(), Error> {
        let name = work.name.clone();
        let (end, words) = self.run(work, read).map_err(|e| unstarted(&e))?;
        let said = if words.is_empty() { String::new() } else { format!(": {words}") };
        let too_large = || Some("if you trust the archive, unpack it yourself and use `file://`".to_owned());
        match end {
            // The answer says whether it was a success.
            End::Ended(Ended::Exited(0 | 125)) => Ok(()),
            End::Ended(Ended::Signaled(SIGXCPU)) => Err(failed(
                &format!("{name}: it takes more than an hour of processor time, which is the limit"),
                too_large(),
            )),
            End::Ended(Ended::Signaled(SIGABRT)) => Err(failed(
                &format!("{name}: the worker broke off, for want of memory (4 GiB are the limit) or by a fault{said}"),
                too_large(),
            )),
            End::Ended(Ended::Signaled(SIGXFSZ)) => {
                Err(failed(&format!("{name}: a file has more than 64 GiB, which is the limit"), too_large()))
            }
            End::Ended(ended) => Err(failed(
                &format!("{name}: the worker ended with {}{said}", ended.code()),
                Some("see whether the kernel was out of memory: dmesg | tail".to_owned()),
            )),
            End::Failed(failure) => Err(failed(&format!("{name}: {}", describe(&failure)), None)),
            End::Killed => Err(failed(
                &format!("{name}: the worker was killed{said}"),
                Some("see whether the kernel was out of memory: dmesg | tail".to_owned()),
            )),
        }
    }

    fn run(&self, work: Work, read: &mut dyn FnMut(OwnedFd)) -> Result<(End, String)> {
        let Work { mut plan, held, input, makes, .. } = work;
        plan.rlimits = limits_of(&LIMITS);
        let pipe = || pipe_with(PipeFlags::CLOEXEC).during(|| "make a pipe".to_owned());
        let ((out, out_end), (errors, errors_end)) = (pipe()?, pipe()?);
        let input = input.try_clone().during(|| "copy a descriptor".to_owned())?;
        let streams = [input, out_end, errors_end];
        let end = match &self.elsewhere {
            Some(launch) => {
                let ended = launch(plan, held, streams, makes)?;
                read(out);
                ended.recv().unwrap_or(Ok(End::Killed))?
            }
            None => {
                let (end, workshop) = self.launch(plan, streams, |job| {
                    read(out);
                    job.wait()
                })?;
                drop(held);
                // Whoever killed a container may have killed what it was in.
                if matches!(end, End::Ended(_)) {
                    *self.workshop.borrow_mut() = Some(workshop);
                }
                end
            }
        };
        let mut words = Vec::new();
        // A part of its words is better than none.
        File::from(errors).take(WORDS).read_to_end(&mut words).ok();
        Ok((end, String::from_utf8_lossy(&words).trim().escape_debug().to_string()))
    }
}

/// These limits, as far as the caller himself may have them.
pub(super) fn limits_of(limits: &[(Resource, u64)]) -> Vec<Rlimit> {
    limits
        .iter()
        .map(|&(resource, limit)| {
            let limit = getrlimit(resource).maximum.map_or(limit, |most| limit.min(most));
            Rlimit { resource: resource as u32, soft: limit, hard: limit }
        })
        .collect()
}

fn failed(text: &str, help: Option<String>) -> Error {
    Error::Worker { code: String::new(), text: text.to_owned(), help }
}

fn null() -> Result<OwnedFd, Error> {
    File::open("/dev/null").map(OwnedFd::from).map_err(|e| failed(&format!("open /dev/null: {e}"), None))
}

impl Runner for Unpacker {
    fn unpack(
        &self,
        job: &UnpackJob,
        archive: OwnedFd,
        target: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Report, Error> {
        let name = format!("unpack `{}`", job.archive.display().to_string().escape_debug());
        match self.ask(&Job::Unpack(job.clone()), name, target, archive, progress)? {
            Answer::Report(report) => Ok(*report),
            _ => Err(failed("unpack an archive: the worker answers something else", None)),
        }
    }

    fn index(&self, job: &IndexJob, archive: OwnedFd, target: &Path) -> Result<Indexed, Error> {
        let name = format!("index `{}`", job.archive.display().to_string().escape_debug());
        match self.ask(&Job::Index(job.clone()), name, target, archive, &mut |_| {})? {
            Answer::Indexed(indexed) => Ok(*indexed),
            _ => Err(failed("index an archive: the worker answers something else", None)),
        }
    }

    fn digest(&self, owners: Owners, algorithm: Algorithm, tree: &Path) -> Result<String, Error> {
        let name = format!("read `{}`", tree.display().to_string().escape_debug());
        match self.ask(&Job::Digest(owners, algorithm), name, tree, null()?, &mut |_| {})? {
            Answer::Digest(digest) => Ok(digest),
            _ => Err(failed("read a layer: the worker answers something else", None)),
        }
    }

    fn pack(&self, owners: Owners, tree: &Path, out: OwnedFd) -> Result<String, Error> {
        let name = format!("read `{}`", tree.display().to_string().escape_debug());
        match self.ask(&Job::Pack(owners), name, tree, out, &mut |_| {})? {
            Answer::Digest(digest) => Ok(digest),
            _ => Err(failed("read a layer: the worker answers something else", None)),
        }
    }

    fn remove(&self, folder: &Path) -> Result<(), Error> {
        match remove_tree(folder) {
            // Files of the ids that only a container has power over.
            Err(_) if self.ids.has_others() => {
                let name = format!("remove `{}`", folder.display().to_string().escape_debug());
                let (plan, held) = on_folder(folder, &["remove", workers::TARGET], true).map_err(|e| unstarted(&e))?;
                // It says nothing on its standard output.
                self.work(Work { name, plan, held, input: null()?, makes: false }, &mut |out| drop(out))?;
                remove_tree(folder)
            }
            other => other,
        }
    }

    fn is_mapped(&self) -> bool {
        true
    }
}
