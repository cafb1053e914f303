//! Images that are built for components: what that depends on, what of it is there, and doing the rest in containers.
//!
//! Each step has a key of all that it depends on, which is known before anything is done: what is below it, what it does, and the
//! files that it copies. What a step of the same key has made is taken as it is.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component as Part, Path, PathBuf};

use containust_image::build::{
    Base, Building, Built, Cache, Copy, Evaluated, Folder, GatherJob, Ignore, Kept, Native, Origin, PlaceJob, Problem,
    Recipe, SCRIPT, SealJob, Step, Work, is_one_file, pour,
};
use containust_image::model::Image;
use containust_image::{Answer, Error as ImageError, Job, Owners, Request, Runner, Source};
use containust_lang::model::{Build, Component, Image as Reference};
use containust_lang::registry_image;
use containust_shared::protocol::{Ended, Filter, Mount, Plan, Process};
use containust_shared::wire::MAX_MESSAGE;
use sha2::{Digest as _, Sha256};

use super::lock::Lock;
use super::{Progress, bring, check_way, lock_image, request_of, users};
use crate::egress::RESOLVER_OF_STEPS;
use crate::error::{During, Error, Result};
use crate::host::ids::Ids;
use crate::host::ways::Ways;
use crate::logs::escape;
use crate::project::Project;
use crate::shim::describe;
use crate::supervisor::{own_by_root, prepare as prepare_folders};
use crate::workers;
use crate::workers::unpacker::{Unpacker, Writable};
use crate::workers::workshop::{ADDRESS, End};

/// overlayfs takes the names of so many layers at once, as the shim gives them; one more is what a container writes.
const MOST_LAYERS: usize = 12;
/// Of what a step that fails has written, the end.
const LAST_LINES: usize = 20;
/// More of a line is not shown.
const LONGEST_LINE: u64 = 4096;
/// Bytes of a step's words, script and environment: they travel in one message ([`MAX_MESSAGE`]), beside where its files are.
const LONGEST_STEP: usize = MAX_MESSAGE / 4 * 3;
/// Version of keys: with another one everything is built anew.
const KEYS: &str = "containust-build-2";
const DOCKERFILE: &str = "Dockerfile";
const IGNORE: &str = ".dockerignore";
/// What containers have everywhere, and a layer shall not have for it.
const MOUNTED: [&str; 6] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev", "/proc", "/sys"];

/// A build that was read.
struct Recipes<'a> {
    project: &'a Project,
    component: &'a str,
    recipe: Recipe,
    context: PathBuf,
    ignore: Ignore,
    /// What it is built from, for people.
    from: String,
    /// Images by how they are written.
    images: Vec<(String, Reference)>,
    /// Whether steps have a way out, as the component does.
    leaves: bool,
}

/// An image that a stage begins with.
struct Below {
    built: Built,
    evaluated: Evaluated,
    key: String,
}

/// A stage, with everything looked up.
struct Keyed {
    evaluated: Evaluated,
    /// Steps that make one layer, and the key of it.
    groups: Vec<(Vec<Step>, String)>,
    /// Of all of it.
    end: String,
}

/// The reference of what is built for a component.
pub(crate) fn reference(component: &Component) -> String {
    Source::Built { name: name(component).to_owned(), key: String::new() }.to_string()
}

pub(crate) fn name(component: &Component) -> &str {
    component.replica.as_ref().map_or(&component.name, |replica| &replica.of)
}

/// The references of images that a component's build needs, as far as it can be read.
pub(crate) fn needs(project: &Project, component: &Component, build: &Build, ids: &Ids) -> Vec<String> {
    let Ok(recipes) = Recipes::read(project, component, build, &Ways::new(project, &[])) else { return Vec::new() };
    let source = |(_, reference): &(String, Reference)| {
        request_of(project, reference, false, ids).map(|request| request.source.to_string()).ok()
    };
    recipes.images.iter().filter_map(source).collect()
}

/// The image, if all that it depends on is as it was when it was built. Reads only.
pub(crate) fn find(
    project: &Project,
    component: &Component,
    build: &Build,
    ids: &Ids,
    ways: &Ways<'_>,
) -> Result<Option<Image>> {
    let recipes = Recipes::read(project, component, build, ways)?;
    recipes.can_be_built(ids)?;
    let Some(below) = recipes.find_below(ids)? else { return Ok(None) };
    let keyed = recipes.keyed(&below)?;
    let request = request(component, &keyed, ids);
    project.store().find(&request).map_err(|e| recipes.failed(&e))
}

fn request(component: &Component, keyed: &[Keyed], ids: &Ids) -> Request<'static> {
    let key = keyed.last().map(|stage| stage.end.clone()).unwrap_or_default();
    let source = Source::Built { name: name(component).to_owned(), key };
    Request { source, ownership: ids.archive_ownership(), pin: None }
}

/// The image, built where it is not there. `anew`: nothing that earlier builds made is taken.
pub(crate) fn build(
    project: &Project,
    component: &Component,
    build: &Build,
    anew: bool,
    (ids, unpacker, ways): (&Ids, &Unpacker, &Ways<'_>),
    progress: &mut dyn FnMut(Progress),
) -> Result<Image> {
    let recipes = Recipes::read(project, component, build, ways)?;
    recipes.can_be_built(ids)?;
    let mut below = HashMap::new();
    for (written, reference) in &recipes.images {
        below.insert(written.clone(), recipes.import(written, reference, (ids, unpacker), progress)?);
    }
    let keyed = recipes.keyed(&below)?;
    let request = request(component, &keyed, ids);
    let store = project.store();
    if !anew && let Some(image) = store.find(&request).map_err(|e| recipes.failed(&e))? {
        return Ok(image);
    }
    progress(Progress::Building { component: component.name.clone(), from: recipes.from.clone() });
    let building = Building::begin(&store, ids.archive_ownership(), unpacker).map_err(|e| recipes.failed(&e))?;
    let stages = keyed.iter().map(|_| None).collect();
    let mut work = Worker { recipes: &recipes, keyed: &keyed, below: &below, building, stages, anew, ids, unpacker };
    let last = keyed.len() - 1;
    let mut built = work.stage(last, progress)?;
    work.bound(&mut built, &keyed[last].end)?;
    let evaluated = &keyed[last].evaluated;
    let says = (evaluated.config.clone(), evaluated.declared.clone());
    let origin = (recipes.from.clone(), keyed[last].end.clone());
    let image = work.building.finish(&request, built, says, origin).map_err(|e| recipes.failed(&e))?;
    progress(Progress::Built { component: component.name.clone(), digest: image.digest.clone() });
    Ok(image)
}

impl<'a> Recipes<'a> {
    fn read(project: &'a Project, component: &'a Component, build: &Build, ways: &Ways<'_>) -> Result<Self> {
        let source = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Source { component: component.name.clone(), path, source }
        };
        let context = project.folder().join(&build.context);
        let context = context.canonicalize().map_err(source(&context))?;
        ways.check(&build.context, Some(&context))?;
        let relative = |path: &Path| path.strip_prefix(project.folder()).unwrap_or(path).display().to_string();
        let mut recipes = Recipes {
            project,
            component: &component.name,
            recipe: Recipe::of_steps(Native::default()),
            ignore: Ignore::default(),
            from: relative(project.file()),
            context,
            images: Vec::new(),
            leaves: component.network.attachments().iter().any(|on| on.egress),
        };
        let component = component.name.as_str();
        let mut ignored = Vec::new();
        if let Some(steps) = &build.steps {
            // It has no other.
            let from = "from".to_owned();
            check_way(&steps.from, ways)?;
            recipes.images = vec![(from.clone(), steps.from.clone())];
            recipes.recipe = Recipe::of_steps(Native {
                from,
                env: steps.env.clone(),
                copy: steps.copy.clone(),
                run: steps.run.clone(),
                workdir: steps.workdir.clone(),
                user: steps.user.clone(),
                entrypoint: steps.entrypoint.clone(),
                command: steps.command.clone(),
            });
        } else {
            let asked = recipes.context.join(build.dockerfile.as_deref().unwrap_or(DOCKERFILE));
            let file = asked.canonicalize().map_err(source(&asked))?;
            ways.check(&asked, Some(&file))?;
            recipes.from = relative(&file);
            let text = read(&file).map_err(source(&file))?;
            let recipe = Recipe::read(&text, build.target.as_deref(), &build.args);
            recipes.recipe = recipe.map_err(|problems| recipes.wrong(problems))?;
            let images = recipes.recipe.images().map_err(|problem| recipes.wrong(vec![problem]))?;
            for image in images {
                let reference = reference_of(&image, &file)
                    .map_err(|why| recipes.wrong(vec![recipes.recipe.problem_of(&image, why, None)]))?;
                recipes.images.push((image, reference));
            }
            let mut own = file.into_os_string();
            own.push(IGNORE);
            ignored.push(PathBuf::from(own));
        }
        ignored.push(recipes.context.join(IGNORE));
        if let Some(file) = ignored.iter().find(|file| file.symlink_metadata().is_ok()) {
            let whole = file.canonicalize().map_err(source(file))?;
            ways.check(file, Some(&whole))?;
            let text = read(&whole).map_err(source(file))?;
            recipes.ignore = Ignore::read(&text).map_err(|(line, why)| Error::Dockerfile {
                component: component.to_owned(),
                file: relative(file),
                problems: vec![Problem {
                    line,
                    source: text.lines().nth(line - 1).unwrap_or_default().to_owned(),
                    text: why,
                    help: None,
                }],
            })?;
        }
        let lock = Lock::read(&project.import_lock())?;
        for (_, reference) in &mut recipes.images {
            if let Reference::Registry { name, locked, .. } = reference {
                *locked = lock.images.get(name).cloned();
            }
        }
        Ok(recipes)
    }

    fn wrong(&self, problems: Vec<Problem>) -> Error {
        Error::Dockerfile { component: self.component.to_owned(), file: self.from.clone(), problems }
    }

    fn failed(&self, error: &ImageError) -> Error {
        Error::Image { component: self.component.to_owned(), problem: error.to_string(), help: error.help() }
    }

    fn failed_at(&self, step: &Step, error: &ImageError) -> Error {
        self.wrong(vec![Problem { help: error.help(), ..step.problem(error.to_string()) }])
    }

    fn invalid(&self, problem: String) -> Error {
        Error::Invalid { component: self.component.to_owned(), problem }
    }

    fn can_be_built(&self, ids: &Ids) -> Result<()> {
        match ids.has_overlay() {
            true => Ok(()),
            false => Err(self.invalid(
                "build its image: that takes an overlay, and policy.conf of this host allows none in strict mode; ask the \
                 administrator for `overlay = yes`"
                    .to_owned(),
            )),
        }
    }

    /// What is below, if all of it is in the store.
    fn find_below(&self, ids: &Ids) -> Result<Option<HashMap<String, Below>>> {
        let mut found = HashMap::new();
        for (written, reference) in &self.images {
            let request = request_of(self.project, reference, false, ids).map_err(|e| self.at(written, &e))?;
            let image = self.project.store().find(&request).map_err(|e| self.at(written, &e))?;
            let Some(image) = image else { return Ok(None) };
            found.insert(written.clone(), self.below(written, &request, &image)?);
        }
        Ok(Some(found))
    }

    fn import(
        &self,
        written: &str,
        reference: &Reference,
        (ids, unpacker): (&Ids, &Unpacker),
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Below> {
        let request = request_of(self.project, reference, false, ids).map_err(|e| self.at(written, &e))?;
        let is_there = self.project.store().find(&request).map_err(|e| self.at(written, &e))?;
        let image = match is_there {
            Some(image) => image,
            None => {
                let image = bring(self.project, &request, self.component, &[], unpacker, progress);
                let image = image.map_err(|e| self.at(written, &e))?;
                if let Reference::Registry { name, sha256: None, locked: None } = reference {
                    lock_image(self.project, name, &image)?;
                }
                progress(Progress::Imported {
                    component: self.component.to_owned(),
                    reference: request.source.to_string(),
                    digest: image.digest.clone(),
                    notes: image.notes.clone(),
                });
                image
            }
        };
        self.below(written, &request, &image)
    }

    /// An error about an image, at the line that names it.
    fn at(&self, written: &str, error: &ImageError) -> Error {
        self.wrong(vec![self.recipe.problem_of(written, error.to_string(), error.help())])
    }

    fn below(&self, written: &str, request: &Request<'_>, image: &Image) -> Result<Below> {
        let built = self.project.store().built_of(request).map_err(|e| self.at(written, &e))?;
        let Some(built) = built else {
            return Err(self.invalid(format!("build on {}: it is no longer in the store", request.source)));
        };
        let evaluated = Evaluated::of_image(image.config.clone(), image.declared.clone());
        let key = hash(&[b"image", image.digest.as_bytes(), &json(&(&image.config, &image.declared))]);
        Ok(Below { built, evaluated, key })
    }

    /// Everything that can be known before something is done.
    fn keyed(&self, images: &HashMap<String, Below>) -> Result<Vec<Keyed>> {
        let folder = Folder::open(&self.context, self.ignore.clone()).map_err(|e| self.failed(&e))?;
        let mut stages: Vec<Keyed> = Vec::with_capacity(self.recipe.stages.len());
        for (place, stage) in self.recipe.stages.iter().enumerate() {
            let nothing = Evaluated::default();
            let (below, mut key) = match &stage.base {
                Base::Scratch => (&nothing, hash(&[b"scratch"])),
                Base::Stage(place) => (&stages[*place].evaluated, stages[*place].end.clone()),
                Base::Image(image) => {
                    let below = images.get(image).ok_or_else(|| Error::protocol("an image that nobody looked up"))?;
                    (&below.evaluated, below.key.clone())
                }
            };
            let evaluated = self.recipe.evaluate(place, below).map_err(|problems| self.wrong(problems))?;
            let mut groups: Vec<(Vec<Step>, String)> = Vec::new();
            for step in &evaluated.steps {
                let mut step = step.clone();
                let mut parts: Vec<Vec<u8>> = vec![key.clone().into_bytes(), json(&step.work)];
                let at = step.clone();
                if let Work::Copy(copy) = &mut step.work {
                    match &copy.from {
                        Origin::Context if copy.sources.is_empty() => {}
                        Origin::Context => {
                            let picked = folder.pick(&copy.sources).map_err(|e| self.failed_at(&at, &e))?;
                            let digest = pour(&picked, false, None).map_err(|e| self.failed_at(&at, &e))?;
                            parts.push(digest.to_vec());
                            copy.seen = Some(digest);
                        }
                        Origin::Stage(from) => parts.push(stages[*from].end.clone().into_bytes()),
                        Origin::Image(image) => {
                            parts.extend(images.get(image).map(|below| below.key.clone().into_bytes()));
                        }
                    }
                }
                key = hash(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
                // What is copied one after the other is one layer: a container is made of so many only.
                let is_run = |step: &Step| matches!(step.work, Work::Run { .. });
                match groups.last_mut() {
                    Some((steps, last)) if !is_run(&step) && !steps.iter().any(is_run) => {
                        steps.push(step);
                        last.clone_from(&key);
                    }
                    _ => groups.push((vec![step], key.clone())),
                }
            }
            let end = hash(&[key.as_bytes(), &json(&(&evaluated.config, &evaluated.declared))]);
            stages.push(Keyed { evaluated, groups, end });
        }
        Ok(stages)
    }
}

/// A file that people write, of at most a megabyte.
fn read(path: &Path) -> std::io::Result<String> {
    const MOST: u64 = 1 << 20;
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    file.take(MOST + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MOST {
        true => Err(std::io::Error::other("longer than a megabyte")),
        false => Ok(text),
    }
}

/// An image as a Dockerfile names it: as compositions do, paths relative to its own folder.
fn reference_of(text: &str, file: &Path) -> Result<Reference, String> {
    let (name, sha256) = match text.rsplit_once("@sha256:") {
        Some((name, digits)) if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            (name, Some(digits.to_ascii_lowercase()))
        }
        Some(_) => return Err("the digest is malformed: it has 64 hexadecimal digits".to_owned()),
        None => (text, None),
    };
    // A Dockerfile may be a stranger's, and is given nothing of the host but what is beside it.
    match name.split_once("://") {
        Some(("file", _)) => Err("nothing is built on a folder of this host by a Dockerfile: import it by `ctst images import FOLDER NAME`, and name \
                                  `image://NAME`; or write the steps into the composition, where `from` takes it"
            .to_owned()),
        Some(("tar", path)) => Ok(Reference::Tar { path: beside(file, path)?, sha256 }),
        Some(("image", name)) => Ok(Reference::Local { name: name.to_owned(), sha256 }),
        Some(("oci", _)) | None => {
            registry_image(text).ok_or_else(|| format!("`{}` is no name of an image", escape(text.as_bytes())))
        }
        Some((scheme, _)) => Err(format!("nothing is built on `{}://`", escape(scheme.as_bytes()))),
    }
}

/// The archive at `path`, relative to the folder of a Dockerfile, and below it.
fn beside(file: &Path, path: &str) -> Result<String, String> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    let wrong = |why: &str| Err(format!("the archive `{}` {why}", escape(path.as_bytes())));
    let inner = Path::new(path).components();
    if !inner.clone().all(|part| matches!(part, Part::Normal(_) | Part::CurDir)) {
        return wrong("is not below the Dockerfile's folder");
    }
    let whole = folder.join(path);
    match whole.canonicalize() {
        Ok(real) if !real.starts_with(folder) => return wrong("leads out of the Dockerfile's folder by a link"),
        Ok(real) if real.components().any(|part| part.as_os_str() == ".containust") => {
            return wrong("is of ctst's own state");
        }
        // What is not there is told of where it is opened.
        Ok(_) | Err(_) => {}
    }
    Ok(whole.display().to_string())
}

pub(super) fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Made of strings and numbers, so that serialising cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

pub(super) fn hash(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    hash.update(KEYS);
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A build under way.
struct Worker<'a> {
    recipes: &'a Recipes<'a>,
    keyed: &'a [Keyed],
    below: &'a HashMap<String, Below>,
    building: Building<'a>,
    /// Those that are built.
    stages: Vec<Option<Built>>,
    anew: bool,
    ids: &'a Ids,
    unpacker: &'a Unpacker,
}

impl Worker<'_> {
    fn failed(&self, error: &ImageError) -> Error {
        self.recipes.failed(error)
    }

    /// What a stage is made of; stages that only a kept step needed are not built.
    fn stage(&mut self, place: usize, progress: &mut dyn FnMut(Progress)) -> Result<Built> {
        if let Some(built) = &self.stages[place] {
            return Ok(built.clone());
        }
        let mut built = match &self.recipes.recipe.stages[place].base {
            Base::Scratch => Built::scratch(),
            Base::Stage(below) => self.stage(*below, progress)?,
            Base::Image(image) => self.below(image)?.built.clone(),
        };
        let groups = &self.keyed[place].groups;
        let mut before = String::new();
        for (steps, key) in groups {
            let label = steps.first().map(|step| step.source.clone()).unwrap_or_default();
            let line = steps.first().map_or(0, |step| step.line);
            let store = self.recipes.project.store();
            let kept = match self.anew {
                true => None,
                false => store.step(key, self.ids.archive_ownership()).map_err(|e| self.failed(&e))?,
            };
            let sources = match kept {
                Some(_) => HashMap::new(),
                // Told of, and done, before this one.
                None => self.sources(steps, progress)?,
            };
            let component = self.recipes.component.to_owned();
            progress(Progress::Step { component, line, source: label, kept: kept.is_some() });
            let kept = match kept {
                Some(kept) => kept,
                None => {
                    self.bound(&mut built, &before)?;
                    self.group(&built, (steps, &sources), key, progress)?
                }
            };
            built.push(kept);
            before.clone_from(key);
        }
        self.stages[place] = Some(built.clone());
        Ok(built)
    }

    fn below(&self, image: &str) -> Result<&Below> {
        self.below.get(image).ok_or_else(|| Error::protocol("an image that nobody looked up"))
    }

    /// Makes one layer of many where no container could be made of them.
    fn bound(&mut self, built: &mut Built, key: &str) -> Result<()> {
        if built.count() < MOST_LAYERS {
            return Ok(());
        }
        let names = built.names().join(" ");
        let key = hash(&[b"one", key.as_bytes(), names.as_bytes()]);
        let store = self.recipes.project.store();
        let ownership = self.ids.archive_ownership();
        let kept = match store.step(&key, ownership).map_err(|e| self.failed(&e))? {
            Some(kept) => kept,
            None => {
                let layers = store.folders(built).map_err(|e| self.failed(&e))?;
                let owners = owners(self.ids);
                let (unpacker, ids) = (self.unpacker, self.ids);
                let made = self.building.step(&key, true, |folder| {
                    let tree = folder.join("layer/tree");
                    own_by_root(&tree, ids)?;
                    unpacker.flatten(&layers, &tree)?;
                    Ok(unpacker.seal(SealJob { owners, is_lowest: true, mounted: Vec::new() }, &tree)?)
                });
                made.map_err(|e: Fault| e.of(self.recipes))?
            }
        };
        *built = Built::only(kept);
        Ok(())
    }

    /// The layers of stages that these steps copy from.
    fn sources(&mut self, steps: &[Step], progress: &mut dyn FnMut(Progress)) -> Result<HashMap<usize, Vec<PathBuf>>> {
        let mut sources = HashMap::new();
        for step in steps {
            if let Work::Copy(Copy { from: Origin::Stage(place), .. }) = &step.work {
                let mut from = self.stage(*place, progress)?;
                self.bound(&mut from, &self.keyed[*place].end)?;
                let folders = self.recipes.project.store().folders(&from).map_err(|e| self.failed(&e))?;
                sources.insert(*place, folders);
            }
        }
        Ok(sources)
    }

    fn group(
        &mut self,
        built: &Built,
        (steps, sources): (&[Step], &HashMap<usize, Vec<PathBuf>>),
        key: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Kept> {
        let layers = self.recipes.project.store().folders(built).map_err(|e| self.failed(&e))?;
        let is_lowest = layers.is_empty();
        let caches = self.caches(steps)?;
        let mut spools: Vec<File> = Vec::new();
        for _ in steps {
            spools.push(self.building.spool().map_err(|e| self.failed(&e))?);
        }
        let owners = owners(self.ids);
        let (recipes, ids, unpacker, below) = (self.recipes, self.ids, self.unpacker, self.below);
        let made = self.building.step(key, is_lowest, |folder| {
            let (tree, work) = (folder.join("layer/tree"), folder.join("work"));
            own_by_root(&tree, ids)?;
            own_by_root(&work, ids)?;
            let mut under = layers.clone();
            if under.is_empty() {
                // overlayfs wants something below.
                let empty = folder.join("empty");
                std::fs::DirBuilder::new().mode(0o755).create(&empty).during(|| "create an empty layer".to_owned())?;
                own_by_root(&empty, ids)?;
                under.push(empty);
            }
            let image = Writable { layers: &under, upper: &tree, work: &work };
            let mut mounted: Vec<String> = Vec::new();
            for (step, spool) in steps.iter().zip(spools) {
                let done = Doing { recipes, ids, unpacker, below, image, folder, step };
                match &step.work {
                    Work::Run { .. } => {
                        mounted.extend(caches.iter().map(|(_, target)| target.clone()));
                        done.run(&caches, progress)?;
                    }
                    Work::Copy(copy) => done.copy(copy, sources, spool)?,
                    Work::Folder { path } => done.job(&Job::Folder(path.clone()), null()?)?,
                }
            }
            mounted.extend(MOUNTED.map(str::to_owned));
            Ok(unpacker.seal(SealJob { owners, is_lowest, mounted }, &tree)?)
        });
        made.map_err(|e: Fault| e.of(self.recipes))
    }

    /// The folders of a step's caches, and where they are seen.
    fn caches(&self, steps: &[Step]) -> Result<Vec<(PathBuf, String)>> {
        let mut found = Vec::new();
        for step in steps {
            let Work::Run { caches, .. } = &step.work else { continue };
            for Cache { id, target, mode, owner } in caches {
                let set_up = |path: &Path| -> Result<(), Fault> {
                    let permissions = std::fs::Permissions::from_mode(*mode);
                    std::fs::set_permissions(path, permissions).during(|| format!("set up {}", path.display()))?;
                    own_by_root(path, self.ids)?;
                    match *owner {
                        (0, 0) => Ok(()),
                        owner => Ok(self.unpacker.own(&Job::Own { owner, mode: *mode }, path)?),
                    }
                };
                let path = self.building.cache(id, set_up).map_err(|e| match e {
                    Fault::Ours(error) => error,
                    Fault::Image(error) => self.recipes.failed_at(step, &error),
                })?;
                found.push((path, target.clone()));
            }
        }
        Ok(found)
    }
}

pub(super) fn owners(ids: &Ids) -> Owners {
    match ids {
        Ids::Single(_) => Owners::Flatten,
        // As a worker sees them.
        _ => Owners::Map { base: 0, count: ids.count() },
    }
}

fn null() -> Result<OwnedFd> {
    File::open("/dev/null").map(OwnedFd::from).during(|| "open /dev/null".to_owned())
}

/// What keeps a layer from being made: both kinds of errors come from there.
pub(super) enum Fault {
    Ours(Error),
    Image(ImageError),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl From<ImageError> for Fault {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl Fault {
    fn of(self, recipes: &Recipes<'_>) -> Error {
        match self {
            Self::Ours(error) => error,
            Self::Image(error) => recipes.failed(&error),
        }
    }
}

/// A step that is being done.
struct Doing<'a> {
    recipes: &'a Recipes<'a>,
    ids: &'a Ids,
    unpacker: &'a Unpacker,
    below: &'a HashMap<String, Below>,
    image: Writable<'a>,
    /// For its files.
    folder: &'a Path,
    step: &'a Step,
}

impl Doing<'_> {
    fn failed(&self, error: &ImageError) -> Error {
        self.recipes.failed_at(self.step, error)
    }

    fn wrong(&self, text: String, help: Option<String>) -> Error {
        self.recipes.wrong(vec![Problem { help, ..self.step.problem(text) }])
    }

    fn job(&self, job: &Job, input: OwnedFd) -> Result<()> {
        self.unpacker.within(self.image, job, "build", input).map(drop).map_err(|e| self.failed(&e))
    }

    /// Numbers of a user and a group of the image.
    fn owner(&self, owner: &str) -> Result<(u32, u32)> {
        // What this very layer says of users counts first.
        let layers: Vec<PathBuf> =
            std::iter::once(self.image.upper.to_owned()).chain(self.image.layers.to_vec()).collect();
        let ids = match owner.parse::<u32>() {
            // As docker has it.
            Ok(id) => Ok((id, id)),
            Err(_) => users::lookup(&layers, owner),
        };
        let ids = ids.map_err(|why| self.wrong(format!("`--chown={owner}`: {why}"), None))?;
        if ids.0 == u32::MAX || ids.1 == u32::MAX {
            return Err(self.wrong(format!("`--chown={owner}`: {} is no id, but stands for none", u32::MAX), None));
        }
        if let (Ids::Single(why), true) = (self.ids, ids != (0, 0)) {
            let text = format!("`--chown={owner}`: only one id is mapped here, {why}");
            let help = "`ctst doctor` says how to have more ids".to_owned();
            return Err(self.wrong(text, Some(help)));
        }
        Ok(ids)
    }

    fn copy(&self, copy: &Copy, sources: &HashMap<usize, Vec<PathBuf>>, spool: File) -> Result<()> {
        let owner = copy.owner.as_deref().map(|owner| self.owner(owner)).transpose()?;
        let owned = !matches!(self.ids, Ids::Single(_));
        let as_folder = || match copy.to.ends_with('/') {
            true => copy.to.clone(),
            false => format!("{}/", copy.to),
        };
        let place = |to: String, archive: Option<String>, input: OwnedFd| {
            self.job(&Job::Place(PlaceJob { to, owner, mode: copy.mode, owned, archive }), input)
        };
        for (name, content) in &copy.documents {
            let mut file = tempfile::tempfile_in(self.folder).during(|| "make a file".to_owned())?;
            std::io::Write::write_all(&mut file, content.as_bytes()).during(|| "write a file".to_owned())?;
            file.set_permissions(std::fs::Permissions::from_mode(0o644)).during(|| "make a file".to_owned())?;
            place(copy.to.clone(), Some(name.clone()), file.into())?;
        }
        if copy.sources.is_empty() {
            return Ok(());
        }
        let copied = || spool.try_clone().map(OwnedFd::from).during(|| "copy a descriptor".to_owned());
        let layers = match &copy.from {
            Origin::Context => {
                let recipes = self.recipes;
                let folder = Folder::open(&recipes.context, recipes.ignore.clone()).map_err(|e| self.failed(&e))?;
                let mut picked = folder.pick(&copy.sources).map_err(|e| self.failed(&e))?;
                // The key was made of what was seen then.
                let is_seen = |digest| match copy.seen == Some(digest) {
                    true => Ok(()),
                    false => Err(self.failed(&ImageError::Changed(recipes.context.clone()))),
                };
                if copy.unpack {
                    // Each that is named may be an archive, which is for the container to see.
                    for one in picked.iter_mut().filter(|one| one.is_named()) {
                        let to = tempfile::tempfile_in(self.folder).during(|| "make a file".to_owned())?;
                        one.freeze(to).map_err(|e| self.failed(&e))?;
                    }
                    is_seen(pour(&picked, false, None).map_err(|e| self.failed(&e))?)?;
                    for one in picked.iter().filter(|one| one.is_named()) {
                        let name = String::from_utf8_lossy(one.to()).into_owned();
                        if let Some(file) = one.open().map_err(|e| self.failed(&e))? {
                            place(copy.to.clone(), Some(name), file)?;
                        }
                    }
                    let named = picked.iter().any(|one| one.is_named());
                    picked.retain(|one| !one.is_named());
                    if picked.is_empty() && named {
                        return Ok(());
                    }
                }
                let mut out = BufWriter::with_capacity(256 << 10, &spool);
                let digest = pour(&picked, false, Some(&mut out)).map_err(|e| self.failed(&e))?;
                drop(out);
                if !copy.unpack {
                    is_seen(digest)?;
                }
                let to = if is_one_file(&picked) { copy.to.clone() } else { as_folder() };
                return place(to, None, copied()?);
            }
            Origin::Stage(from) => sources.get(from).cloned().unwrap_or_default(),
            Origin::Image(image) => {
                let below = self.below.get(image).ok_or_else(|| Error::protocol("an image that nobody looked up"))?;
                self.recipes.project.store().folders(&below.built).map_err(|e| self.failed(&e))?
            }
        };
        if layers.is_empty() {
            return Err(self.wrong("nothing is in there: it is an empty stage".to_owned(), None));
        }
        // Nothing is written there.
        let scratch = tempfile::Builder::new().prefix("from").tempdir_in(self.folder);
        let scratch = scratch.during(|| "make a folder".to_owned())?;
        prepare_folders(scratch.path(), self.ids)?;
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        let from = Writable { layers: &layers, upper: &upper, work: &work };
        let job = Job::Gather(GatherJob { sources: copy.sources.clone() });
        let gathered = self.unpacker.within(from, &job, "build", copied()?).map_err(|e| self.failed(&e));
        // Root of the container has made folders in there to mount on.
        let path = scratch.keep();
        self.unpacker.remove(&path).map_err(|e| self.failed(&e))?;
        let to = match gathered? {
            Answer::Gathered(true) => copy.to.clone(),
            Answer::Gathered(false) => as_folder(),
            _ => return Err(Error::protocol("a worker that answers something else")),
        };
        place(to, None, copied()?)
    }

    fn run(&self, caches: &[(PathBuf, String)], progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let Work::Run { argv, env, cwd, user, script, network, .. } = &self.step.work else {
            return Err(Error::protocol("a step that runs nothing"));
        };
        let is_root = user.is_empty() || user.split(':').all(|part| matches!(part, "root" | "0"));
        if let (Ids::Single(why), false) = (self.ids, is_root) {
            let text = format!("it runs as `{user}`, and only one id is mapped here, {why}");
            return Err(self.wrong(text, Some("`ctst doctor` says how to have more ids".to_owned())));
        }
        if let Some(problem) = self.ids.lacks(user) {
            return Err(self.wrong(problem, None));
        }
        let words = argv.iter().chain(env).chain(script);
        let size: usize = words.map(String::len).sum();
        if size > LONGEST_STEP {
            let text = format!("what it runs takes {size} bytes with its environment, and a step has {LONGEST_STEP}");
            return Err(self.wrong(text, Some("copy it into the image as a file, and run that".to_owned())));
        }
        let leaves = *network && self.recipes.leaves;
        let resolver = match leaves {
            true => format!("nameserver {}\n", std::net::Ipv4Addr::from(RESOLVER_OF_STEPS)),
            false => "# no network, no name server\n".to_owned(),
        };
        let mut held = Vec::new();
        let mut open = |path: &Path| -> Result<_> {
            let (source, fd) = workers::source(path)?;
            held.push(fd);
            Ok(source)
        };
        let mut mounts = Vec::new();
        for (name, text) in [
            ("hosts", format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {HOSTNAME}\n")),
            ("hostname", format!("{HOSTNAME}\n")),
            ("resolv.conf", resolver),
        ] {
            let path = self.folder.join(name);
            std::fs::write(&path, text).during(|| format!("write {}", path.display()))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
                .during(|| format!("set up {}", path.display()))?;
            let target = format!("/etc/{name}").into_bytes();
            mounts.push(Mount::Bind { source: open(&path)?, target, readonly: true });
        }
        for (path, target) in caches {
            let path = path.canonicalize().during(|| format!("open {}", path.display()))?;
            let target = target.clone().into_bytes();
            mounts.push(Mount::Bind { source: open(&path)?, target, readonly: false });
        }
        if let Some(script) = script {
            let (target, content) = (SCRIPT.as_bytes().to_vec(), script.clone().into_bytes());
            mounts.push(Mount::File { target, mode: 0o555, owner: Vec::new(), content });
        }
        let plan = Plan {
            hostname: HOSTNAME.into(),
            layers: self.image.layers.iter().map(|layer| open(layer)).collect::<Result<_>>()?,
            fuse: false,
            upper: Some(open(self.image.upper)?),
            work: Some(open(self.image.work)?),
            readonly: false,
            mounts,
            addresses: if leaves { vec![ADDRESS] } else { Vec::new() },
            addresses6: Vec::new(),
            capabilities: containust_policy::capabilities::DEFAULT,
            filter: Filter::Default,
            profile: Vec::new(),
            landlock: None,
            rlimits: Vec::new(),
            sysctls: Vec::new(),
            shm: 0,
            process: Process {
                argv: argv.iter().map(|word| word.clone().into_bytes()).collect(),
                env: env.iter().map(|entry| entry.clone().into_bytes()).collect(),
                cwd: if cwd == "/" { Vec::new() } else { cwd.clone().into_bytes() },
                user: user.clone().into_bytes(),
                groups: Vec::new(),
                tty: false,
            },
        };
        let mut last: Vec<String> = Vec::new();
        let end = self.unpacker.step(plan, held, self.recipes.project.file(), &mut |out| {
            let mut out = BufReader::new(File::from(out));
            let mut line = Vec::new();
            // What ends in the middle of something is told up to there.
            while (&mut out).take(LONGEST_LINE).read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text = escape(String::from_utf8_lossy(&line).trim_end().as_bytes());
                line.clear();
                progress(Progress::Output { component: self.recipes.component.to_owned(), line: text.clone() });
                if last.len() == LAST_LINES {
                    last.remove(0);
                }
                last.push(text);
            }
        })?;
        let problem = match end {
            End::Ended(Ended::Exited(0)) => return Ok(()),
            End::Ended(ended) => format!("it ended with {}", ended.code()),
            End::Failed(failure) => describe(&failure),
            End::Killed => "it was killed".to_owned(),
        };
        // As programs say that there is no network.
        let wants = ["resolv", "bad address", "unreachable", "name or service", "unknown host"];
        let wants_network = last.iter().any(|line| wants.iter().any(|words| line.to_lowercase().contains(words)));
        let help = (!leaves && wants_network).then(|| {
            "steps have no network here; without --offline, `NETWORK bridge { internal = false }` gives them one"
                .to_owned()
        });
        Err(Error::Step {
            component: self.recipes.component.to_owned(),
            file: self.recipes.from.clone(),
            problem: Box::new(Problem { help, ..self.step.problem(problem) }),
            output: last,
        })
    }
}

const HOSTNAME: &str = "build";
