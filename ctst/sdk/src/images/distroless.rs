//! Images of which only what a component's program needs is kept.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component as Part, Path};

use containust_image::build::{Building, Built, SealJob};
use containust_image::model::Image;
use containust_image::{Error as ImageError, Kept, Request, Source, StripJob, has};
use containust_lang::model::{Component, Distroless, Probe};

use super::build::{Fault, hash, json, name, owners};
use super::trial::{self, Outcome};
use super::{Progress, declared};
use crate::error::{During, Error, Result};
use crate::host::ids::Ids;
use crate::project::Project;
use crate::spec;
use crate::supervisor::own_by_root;
use crate::workers::unpacker::Unpacker;

/// Version of keys: with another one everything is stripped anew.
const KEYS: &str = "containust-distroless-2";

/// Files or folders that are told at once.
const MOST_MISSED: usize = 10;

/// The reference of what is kept for a component.
pub(crate) fn reference(component: &Component) -> String {
    Source::Stripped { name: name(component).to_owned(), key: String::new() }.to_string()
}

/// What is kept of an image, if that was found out. Reads only.
pub(super) fn find(
    project: &Project,
    component: &Component,
    asked: &Distroless,
    whole: &Image,
    ids: &Ids,
) -> Result<Option<Image>> {
    let job = job(component, asked, whole, ids)?;
    project.store().find(&request(component, &key(component, whole, &job), ids)).map_err(|e| failed(component, &e))
}

/// Keeps of the image `of` what the component's program needs, unless that was done. `anew`: whether it was or not.
pub(super) fn strip(
    project: &Project,
    component: &Component,
    asked: &Distroless,
    (of, whole): (&str, &Image),
    (ids, unpacker): (&Ids, &Unpacker),
    anew: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<(String, Image)> {
    let job = job(component, asked, whole, ids)?;
    let key = key(component, whole, &job);
    let request = request(component, &key, ids);
    let store = project.store();
    let wrong = |e: ImageError| failed(component, &e);
    if !anew && let Some(image) = store.find(&request).map_err(wrong)? {
        return Ok((request.source.to_string(), image));
    }
    progress(Progress::Stripping { component: component.name.clone() });
    let mut building = Building::begin(&store, ids.archive_ownership(), unpacker).map_err(wrong)?;
    let mut kept = None;
    let made = building.step(&key, true, |folder| {
        let tree = folder.join("layer/tree");
        own_by_root(&tree, ids)?;
        let what = unpacker.strip(job, &whole.layers, &make(&folder.join("scratch"))?, &tree)?;
        if trial::obstacle(component).is_none() {
            progress(Progress::Trying { component: component.name.clone() });
        }
        let untried = match trial::attempt(project, component, (whole, &tree), &folder.join("trial"), (ids, unpacker))?
        {
            Outcome::Works => None,
            Outcome::Untried(why) => Some(why),
            Outcome::Fails(problem, output) => {
                let help = Some(format!("name the files that it misses in `keep`: {}", missed(&output, whole)));
                let problem = format!("tried with what was kept, {problem}");
                let component = component.name.clone();
                return Err(Fault::Ours(Error::Distroless { component, problem, output, help }));
            }
        };
        kept = Some(Kept { of: of.to_owned(), what, untried });
        Ok(unpacker.seal(SealJob { owners: owners(ids), is_lowest: true, mounted: Vec::new() }, &tree)?)
    });
    let made = made.map_err(|fault| match fault {
        Fault::Ours(error) => error,
        Fault::Image(error) => failed(component, &error),
    })?;
    let kept = kept.ok_or_else(|| Error::protocol("a layer that nobody made"))?;
    let image = building.finish_stripped(&request, Built::only(made), whole, key, kept.clone()).map_err(wrong)?;
    progress(Progress::Stripped { component: component.name.clone(), kept: Box::new(kept) });
    Ok((request.source.to_string(), image))
}

/// What keeps the files of the image that its program has said it does not find; an example where it named none.
fn missed(output: &[String], whole: &Image) -> String {
    let lines = output.iter().filter(|line| trial::is_missing(line));
    let words = lines.flat_map(|line| line.split(|c: char| c.is_whitespace() || "\"'`():,;".contains(c)));
    let mut globs = BTreeSet::new();
    for path in words.filter(|word| word.starts_with('/') && !word.contains(['*', '?', '[', ']', '{', '}', '\\'])) {
        let path = Path::new(path);
        let is_plain = path.components().skip(1).all(|part| matches!(part, Part::Normal(_)));
        if !is_plain || !has(&whole.layers, path) {
            continue;
        }
        // What lies beside a configuration is read after it.
        let folder = path.parent().filter(|folder| folder.starts_with("/etc/") || folder.starts_with("/usr/share/"));
        let folder = folder.filter(|folder| !["/etc", "/usr/share"].iter().any(|shared| *folder == Path::new(shared)));
        globs.insert(folder.map_or(format!("\"{}\"", path.display()), |folder| format!("\"{}/**\"", folder.display())));
    }
    let globs: Vec<String> = globs.into_iter().take(MOST_MISSED).collect();
    match globs.is_empty() {
        true => "distroless { keep = [\"/etc/app/**\"] }".to_owned(),
        false => format!("distroless {{ keep = [{}] }}", globs.join(", ")),
    }
}

fn make(folder: &Path) -> Result<std::path::PathBuf> {
    std::fs::DirBuilder::new().mode(0o700).create(folder).during(|| format!("create {}", folder.display()))?;
    Ok(folder.to_owned())
}

fn request(component: &Component, key: &str, ids: &Ids) -> Request<'static> {
    let source = Source::Stripped { name: name(component).to_owned(), key: key.to_owned() };
    Request { source, ownership: ids.archive_ownership(), pin: None }
}

/// Of all that decides about what is kept, and about how it is tried.
fn key(component: &Component, whole: &Image, job: &StripJob) -> String {
    let says = json(&(&whole.config, &whole.declared));
    let run = json(&(&component.env, &component.user, component.readonly, &component.tmpfs, &component.configs));
    let tried = json(&(&component.healthcheck, component.no_healthcheck, trial::obstacle(component)));
    hash(&[KEYS.as_bytes(), whole.digest.as_bytes(), &says, &json(job), &run, &tried])
}

/// What is to be found out about an image.
fn job(component: &Component, asked: &Distroless, whole: &Image, ids: &Ids) -> Result<StripJob> {
    let invalid = |problem| Error::Invalid { component: component.name.clone(), problem };
    let argv = spec::argv(component, &whole.config);
    if argv.is_empty() {
        return Err(invalid("start it: neither it nor its image says a command; add `command = [ … ]`".to_owned()));
    }
    let check = match &component.healthcheck {
        None if !component.no_healthcheck => declared::healthcheck(&whole.declared).map_err(invalid)?,
        own => own.clone(),
    };
    let commands = check.into_iter().filter_map(|check| match check.probe {
        Probe::Command(argv) => Some(argv),
        _ => None,
    });
    let env = spec::environment(component, &whole.config).into_iter();
    let counts = |entry: &String| StripJob::counts(entry.split('=').next().unwrap_or_default());
    Ok(StripJob {
        argv,
        commands: commands.collect(),
        env: env.filter(counts).collect(),
        cwd: spec::workdir(component, &whole.config),
        volumes: declared::volumes(&whole.declared).map_err(invalid)?,
        keep: asked.keep.clone(),
        owners: owners(ids),
    })
}

fn failed(component: &Component, error: &ImageError) -> Error {
    let (component, problem, help) = (component.name.clone(), error.to_string(), error.help());
    Error::Distroless { component, problem, output: Vec::new(), help }
}
