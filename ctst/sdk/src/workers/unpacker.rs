//! What unpacks, reads and removes the files of strangers: workers in containers with an empty root, the project's id map,
//! one folder, no network, and limits.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use containust_image::{
    Algorithm, Answer, Error, IndexJob, Indexed, Job, Owners, Progress, Report, Runner, UnpackJob, read_answer,
    remove_tree,
};
use containust_shared::protocol::{Ended, Mount, Rlimit};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, getrlimit};

use crate::error::{During, Result};
use crate::host::ids::Ids;
use crate::shim::describe;
use crate::workers;
use crate::workers::workshop::{End, Workshop};

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

/// Starts workers, and before the first of them a sandbox.
#[derive(Debug)]
pub(crate) struct Unpacker {
    ids: Ids,
    workshop: RefCell<Option<Workshop>>,
}

/// What a worker is started for.
struct Work<'a> {
    /// For people.
    name: String,
    target: &'a Path,
    arguments: [&'a str; 2],
    writes: bool,
    input: OwnedFd,
}

impl Unpacker {
    pub(crate) fn new(ids: &Ids) -> Self {
        Self { ids: ids.clone(), workshop: RefCell::new(None) }
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
        let writes = matches!(job, Job::Unpack(_) | Job::Index(_));
        let arguments = [workers::IMAGE, &argument];
        let mut answer = None;
        self.work(Work { name, target, arguments, writes, input }, &mut |out| {
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

    /// Runs a worker to its end. `read` reads what it says; its error counts only where the worker ended as it should.
    fn work(&self, work: Work<'_>, read: &mut dyn FnMut(OwnedFd)) -> Result<(), Error> {
        let (end, words) = self.run(&work, read).map_err(|e| failed(&e.to_string(), e.help()))?;
        let name = work.name;
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

    fn run(&self, work: &Work<'_>, read: &mut dyn FnMut(OwnedFd)) -> Result<(End, String)> {
        let target = work.target.canonicalize().during(|| format!("open {}", work.target.display()))?;
        let (mut plan, held) = workers::plan(&target, &work.arguments)?;
        for mount in &mut plan.mounts {
            if let Mount::Bind { target, readonly, .. } = mount
                && target == workers::TARGET.as_bytes()
            {
                *readonly = !work.writes;
            }
        }
        plan.rlimits = limits_of(&LIMITS);
        let pipe = || pipe_with(PipeFlags::CLOEXEC).during(|| "make a pipe".to_owned());
        let ((out, out_end), (errors, errors_end)) = (pipe()?, pipe()?);
        let input = work.input.try_clone().during(|| "copy a descriptor".to_owned())?;
        let mut slot = self.workshop.borrow_mut();
        let mut workshop = match slot.take() {
            Some(workshop) => workshop,
            None => Workshop::start(&self.ids)?,
        };
        let job = workshop.launch(plan, [input, out_end, errors_end])?;
        read(out);
        let end = job.wait()?;
        drop(held);
        // Whoever killed a container may have killed what it was in.
        if matches!(end, End::Ended(_)) {
            *slot = Some(workshop);
        }
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
            Answer::Indexed(indexed) => Ok(indexed),
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
                let arguments = ["remove", workers::TARGET];
                let work = Work { name, target: folder, arguments, writes: true, input: null()? };
                // It says nothing on its standard output.
                self.work(work, &mut |out| drop(out))?;
                remove_tree(folder)
            }
            other => other,
        }
    }

    fn is_mapped(&self) -> bool {
        true
    }
}
