//! Workers: this executable inside a container of its own, for work on files that belong to other ids than the caller's.
//! A worker has an empty root, itself at `/ctst`, and one folder of the host at `/target`.

pub(crate) mod server;
pub mod transfer;
pub(crate) mod unpacker;
pub(crate) mod workshop;

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use containust_shared::exit;
use containust_shared::protocol::{Filter, Mount, Plan, Process, Source};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use crate::error::{During, Result};
use crate::host::confine;
use crate::workers::unpacker::Writable;

/// The hidden verb of this executable.
pub(crate) const VERB: &str = "worker";
/// Where the folder is.
pub(crate) const TARGET: &str = "/target";
const PROGRAM: &str = "/ctst";
/// The worker's verb for jobs of the image store.
pub(crate) const IMAGE: &str = "image";
/// Behind a job: that it takes what others leave of processors and disks.
pub(crate) const BACKGROUND: &str = "background";
/// Nice value (setpriority(2)): a tenth of what others get. With 19 a host that is busy all the time would never be done.
const NICE: i32 = 10;
/// The same within an image that is its root.
const BUILD: &str = "build";
/// The same, with a folder beside it.
const STRIP: &str = "strip";
const BESIDE: &str = "/dev/shm/target";
/// Where the program is there, on the container's own tmpfs: anywhere else an image may have put a link, or a file.
const INSIDE: &str = "/dev/shm/ctst";

/// What C needs to run a worker on `target`, and the descriptors to hold until it has started.
pub(crate) fn plan(target: &Path, arguments: &[&str]) -> Result<(Plan, Vec<OwnedFd>)> {
    let (folder, folder_fd) = source(target)?;
    let argv: Vec<&str> = [PROGRAM, VERB].into_iter().chain(arguments.iter().copied()).collect();
    let (mut plan, mut held) = with_program(bare(&argv))?;
    plan.mounts.push(Mount::Bind { source: folder, target: TARGET.into(), readonly: false });
    held.push(folder_fd);
    Ok((plan, held))
}

/// The same plan with this executable in it.
fn with_program(mut plan: Plan) -> Result<(Plan, Vec<OwnedFd>)> {
    let exe = std::env::current_exe().during(|| "find the running executable".to_owned())?;
    let (source, fd) = source(&exe)?;
    plan.mounts.push(Mount::Bind { source, target: PROGRAM.into(), readonly: true });
    Ok((plan, vec![fd]))
}

/// What C needs to run a worker within an image of these layers, that copies what is at `inside` into `target`; none: of the one
/// that the FUSE device which C sends is served with. `scratch` has the folders `upper` and `work`.
pub(crate) fn fill_plan(
    layers: Option<&[PathBuf]>,
    scratch: &Path,
    target: &Path,
    inside: &str,
) -> Result<(Plan, Vec<OwnedFd>)> {
    const PROGRAM: &str = INSIDE;
    const TARGET: &str = BESIDE;
    let exe = std::env::current_exe().during(|| "find the running executable".to_owned())?;
    let mut held = Vec::new();
    let mut open = |path: &Path| -> Result<Source> {
        let (source, fd) = source(path)?;
        held.push(fd);
        Ok(source)
    };
    let mut plan = bare(&[PROGRAM, VERB, "fill", inside, TARGET]);
    plan.mounts = vec![
        Mount::Bind { source: open(&exe)?, target: PROGRAM.into(), readonly: true },
        Mount::Bind { source: open(target)?, target: TARGET.into(), readonly: false },
    ];
    plan.fuse = layers.is_none();
    plan.layers = layers.unwrap_or_default().iter().map(|layer| open(layer)).collect::<Result<_>>()?;
    plan.upper = Some(open(&scratch.join("upper"))?);
    plan.work = Some(open(&scratch.join("work"))?);
    Ok((plan, held))
}

/// What C needs to run a worker within a writable image, that has this job of the image store.
pub(crate) fn image_plan(image: Writable<'_>, job: &str) -> Result<(Plan, Vec<OwnedFd>)> {
    let mut held = Vec::new();
    let mut open = |path: &Path| -> Result<Source> {
        let (source, fd) = source(path)?;
        held.push(fd);
        Ok(source)
    };
    let exe = std::env::current_exe().during(|| "find the running executable".to_owned())?;
    let mut plan = bare(&[INSIDE, VERB, BUILD, job]);
    plan.mounts = vec![Mount::Bind { source: open(&exe)?, target: INSIDE.into(), readonly: true }];
    plan.readonly = false;
    plan.layers = image.layers.iter().map(|layer| open(layer)).collect::<Result<_>>()?;
    (plan.upper, plan.work) = (Some(open(image.upper)?), Some(open(image.work)?));
    Ok((plan, held))
}

/// What C needs to run a worker within an image, that has this job of the image store and writes into `target`. `scratch` has the
/// folders `upper` and `work`; none: the image is one folder.
pub(crate) fn strip_plan(
    layers: &[PathBuf],
    scratch: Option<&Path>,
    target: &Path,
    job: &str,
) -> Result<(Plan, Vec<OwnedFd>)> {
    let mut held = Vec::new();
    let mut open = |path: &Path| -> Result<Source> {
        let (source, fd) = source(path)?;
        held.push(fd);
        Ok(source)
    };
    let exe = std::env::current_exe().during(|| "find the running executable".to_owned())?;
    let mut plan = bare(&[INSIDE, VERB, STRIP, job]);
    plan.mounts = vec![
        Mount::Bind { source: open(&exe)?, target: INSIDE.into(), readonly: true },
        Mount::Bind { source: open(target)?, target: BESIDE.into(), readonly: false },
    ];
    plan.layers = layers.iter().map(|layer| open(layer)).collect::<Result<_>>()?;
    if let Some(scratch) = scratch {
        plan.upper = Some(open(&scratch.join("upper"))?);
        plan.work = Some(open(&scratch.join("work"))?);
    }
    Ok((plan, held))
}

/// What C needs to run a worker that copies an image of these layers into `target`, as one tree.
pub(crate) fn flatten_plan(layers: &[PathBuf], target: &Path) -> Result<(Plan, Vec<OwnedFd>)> {
    with_layers(layers, target, &["flatten", &layers.len().to_string()])
}

/// What C needs to run a worker that copies what is at `inside` in an image that was made one `tree` into `target`.
pub(crate) fn fill_from_tree_plan(tree: &Path, target: &Path, inside: &str) -> Result<(Plan, Vec<OwnedFd>)> {
    with_layers(&[tree.to_owned()], target, &["fill-from-tree", inside])
}

fn with_layers(layers: &[PathBuf], target: &Path, arguments: &[&str]) -> Result<(Plan, Vec<OwnedFd>)> {
    let (mut plan, mut held) = plan(target, arguments)?;
    for (number, layer) in layers.iter().enumerate() {
        let (source, fd) = source(layer)?;
        held.push(fd);
        plan.mounts.push(Mount::Bind { source, target: layer_at(number).into_bytes(), readonly: true });
    }
    Ok((plan, held))
}

/// Where a worker finds a layer.
fn layer_at(number: usize) -> String {
    format!("/layer{number}")
}

/// A container of nothing that runs this.
fn bare(argv: &[&str]) -> Plan {
    Plan {
        hostname: b"worker".to_vec(),
        layers: Vec::new(),
        fuse: false,
        upper: None,
        work: None,
        readonly: true,
        mounts: Vec::new(),
        addresses: Vec::new(),
        addresses6: Vec::new(),
        capabilities: containust_policy::capabilities::DEFAULT,
        filter: Filter::Strict,
        profile: Vec::new(),
        landlock: None,
        rlimits: Vec::new(),
        sysctls: Vec::new(),
        shm: 0,
        process: Process {
            argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
            env: Vec::new(),
            cwd: Vec::new(),
            user: Vec::new(),
            groups: Vec::new(),
            tty: false,
        },
    }
}

pub(crate) fn source(path: &Path) -> Result<(Source, OwnedFd)> {
    let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let what = || format!("open {}", path.display());
    let fd = openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how).during(what)?;
    let stat = fstat(&fd).during(what)?;
    Ok((Source { path: path.as_os_str().as_bytes().to_vec(), dev: stat.st_dev, ino: stat.st_ino }, fd))
}

/// Runs inside the container. Returns the exit code.
pub(crate) fn main(arguments: &[OsString]) -> i32 {
    let arguments = match arguments {
        [rest @ .., last] if last == BACKGROUND => {
            give_way();
            rest
        }
        all => all,
    };
    let place = match arguments {
        [verb, folder] if verb == "remove" => Some(folder.as_ref()),
        [verb, _, to] if verb == "fill" => Some(to.as_ref()),
        [verb, ..] if verb == "flatten" || verb == "fill-from-tree" || verb == IMAGE => Some(Path::new(TARGET)),
        // Of the host it has nothing but the layer that is being made.
        [verb, _] if verb == STRIP => Some(Path::new(BESIDE)),
        [verb, _] if verb == BUILD => Some(Path::new("/")),
        // It writes where a user of the container may.
        [verb, ..] if verb == "send" || verb == "receive" || verb == "unpack" => None,
        _ => Some(Path::new("/nowhere")),
    };
    if let Err(error) = confine::worker(place.as_ref().map(std::slice::from_ref)) {
        return finish(Err(error.to_string()));
    }
    work(arguments)
}

/// Lowers this process's share of processors, and with it that of disks, which follows (ioprio_set(2)). Nothing depends on it.
fn give_way() {
    rustix::process::setpriority_process(None, NICE).ok();
    // Among sessions the kernel may share by their own nice value (sched(7)). This one has nothing but this process.
    std::fs::write("/proc/self/autogroup", NICE.to_string()).ok();
}

fn work(arguments: &[OsString]) -> i32 {
    if let Some(result) = transfer::inside(arguments) {
        return finish(result);
    }
    match arguments {
        [verb, folder] if verb == "remove" => finish(empty(Path::new(folder))),
        [verb, from, to] if verb == "fill" => {
            finish(containust_image::copy_folder(Path::new(from), Path::new(to)).map_err(|error| error.to_string()))
        }
        [verb, count] if verb == "flatten" => {
            let count = count.to_str().and_then(|count| count.parse().ok()).unwrap_or(0);
            let layers: Vec<PathBuf> = (0..count).map(|number| layer_at(number).into()).collect();
            finish(containust_image::flatten(&layers, Path::new(TARGET)).map_err(|error| error.to_string()))
        }
        [verb, inside] if verb == "fill-from-tree" => finish(fill_from_tree(Path::new(inside))),
        [verb, job] if verb == STRIP => match job.to_str() {
            Some(job) => containust_image::worker_main(job, Path::new(BESIDE)),
            None => exit::TOOL,
        },
        [verb, job] if verb == BUILD => match job.to_str() {
            Some(job) => containust_image::worker_main(job, Path::new("/")),
            None => exit::TOOL,
        },
        [verb, job] if verb == IMAGE => match job.to_str() {
            Some(job) => containust_image::worker_main(job, Path::new(TARGET)),
            None => exit::TOOL,
        },
        [verb, lazy, owner] if verb == server::VERB => match (lazy.to_str(), owner.to_str()) {
            (Some(lazy), Some(owner)) => finish(server::serve(lazy, owner)),
            _ => exit::TOOL,
        },
        // Tells whoever started it that a container works.
        [verb] if verb == "probe" => 0,
        _ => {
            eprintln!("ctst: `{VERB}` is started by ctst itself");
            exit::TOOL
        }
    }
}

/// Links of the image lead nowhere but into itself.
fn fill_from_tree(inside: &Path) -> Result<(), String> {
    let what = |error: rustix::io::Errno| format!("open {}: {error}", inside.display());
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let tree = openat2(CWD, layer_at(0), path, Mode::empty(), ResolveFlags::empty()).map_err(what)?;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // Somebody renames something somewhere, and the kernel cannot say whether a `..` left the tree.
    let from = loop {
        match openat2(&tree, inside, path, Mode::empty(), how) {
            Err(Errno::AGAIN) => {}
            // The image has nothing there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            other => break other.map_err(what)?,
        }
    };
    let from = format!("/proc/self/fd/{}", from.as_raw_fd());
    containust_image::copy_folder(Path::new(&from), Path::new(TARGET)).map_err(|error| error.to_string())
}

fn finish(result: Result<(), String>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("{why}");
            exit::TOOL
        }
    }
}

/// Removes everything in `folder`, which itself is a mount point here.
fn empty(folder: &Path) -> Result<(), String> {
    let entries = std::fs::read_dir(folder).map_err(|e| e.to_string())?;
    for entry in entries {
        let path = entry.map_err(|e| e.to_string())?.path();
        containust_image::remove_tree(&path).map_err(|e| e.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empties_a_folder_and_refuses_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("c"), "").unwrap();
        assert_eq!(work(&["remove".into(), dir.path().into()]), 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(work(&["remove".into(), dir.path().join("none").into()]), exit::TOOL);
        assert_eq!(work(&["format".into()]), exit::TOOL);
        assert_eq!(work(&[]), exit::TOOL);
    }
}
