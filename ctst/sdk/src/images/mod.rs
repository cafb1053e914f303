//! Components' images, from the project's store.

pub(crate) mod build;
pub(crate) mod declared;
pub(crate) mod distroless;
pub(crate) mod imports;
pub(crate) mod lock;
pub(crate) mod pull;
pub(crate) mod registry;
pub(crate) mod repair;
pub(crate) mod stock;
mod trial;
pub(crate) mod users;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use containust_image::model::Image;
use containust_image::registry::Part;
use containust_image::{How, Kept, Request, Source, Store};
use containust_lang::model::{Component, Composition, Image as Reference, Lazy};

use crate::error::{Error, Result};
use crate::host::fuse;
use crate::host::ids::Ids;
use crate::host::policy::Policy;
use crate::host::ways::Ways;
use crate::images::lock::Lock;
use crate::images::pull::of_registries;
use crate::plan::{Action, Plan};
use crate::project::Project;
use crate::workers::unpacker::Unpacker;

/// What happens to images before a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// One is being imported.
    Importing {
        /// The first component that needs it.
        component: String,
        /// Its reference.
        reference: String,
        /// How far.
        detail: containust_image::Progress,
    },
    /// One is being pulled from a registry.
    Pulling {
        /// The first component that needs it.
        component: String,
        /// Its reference.
        reference: String,
        /// The layers that the store does not have.
        parts: Vec<Part>,
    },
    /// One is being pushed to a registry.
    Pushing {
        /// As it was asked for.
        component: String,
        /// Where to.
        reference: String,
        /// Its blobs.
        parts: Vec<Part>,
    },
    /// One is being exported.
    Exporting {
        /// As it was asked for.
        image: String,
        /// How far.
        detail: containust_image::Progress,
    },
    /// One is being built.
    Building {
        /// The component.
        component: String,
        /// What it is built from: a file.
        from: String,
    },
    /// A step of a build begins, or is passed over.
    Step {
        /// The component.
        component: String,
        /// The line of its instruction; 0: it has none.
        line: usize,
        /// As it is written.
        source: String,
        /// Whether an earlier build has done the same.
        kept: bool,
    },
    /// A step of a build has written a line.
    Output {
        /// The component.
        component: String,
        /// The line, fit for a terminal.
        line: String,
    },
    /// One was built.
    Built {
        /// The component.
        component: String,
        /// `sha256:…`.
        digest: String,
    },
    /// One is being stripped to what its program needs.
    Stripping {
        /// The component.
        component: String,
    },
    /// Its program is being tried with what was kept.
    Trying {
        /// The component.
        component: String,
    },
    /// One was stripped.
    Stripped {
        /// The component.
        component: String,
        /// What was kept.
        kept: Box<Kept>,
    },
    /// A bundle is being read before its images are unpacked.
    Verifying {
        /// Its file's name.
        bundle: String,
        /// How far.
        detail: containust_image::Progress,
    },
    /// A bundle is what it says that it is.
    Verified {
        /// Its file's name.
        bundle: String,
        /// SHA-256 of the file, 64 hexadecimal digits.
        digest: String,
    },
    /// One was imported.
    Imported {
        /// The first component that needs it.
        component: String,
        /// Its reference.
        reference: String,
        /// `sha256:…` of its content.
        digest: String,
        /// What a person should know, such as owners that were flattened.
        notes: Vec<String>,
    },
}

/// Archives from this size on are not unpacked before a component starts, where its author does not say `lazy`.
const LAZY_FROM: u64 = 256 << 20;

/// Whether a component reads from its archive, unless that was unpacked already.
pub(crate) fn is_lazy(project: &Project, component: &Component, ids: &Ids) -> bool {
    let (Reference::Tar { path, .. }, None) = (&component.image, &component.distroless) else { return false };
    component.lazy.map(Lazy::reads_archive).unwrap_or_else(|| {
        let size = std::fs::metadata(project.folder().join(path)).map_or(0, |meta| meta.len());
        size >= LAZY_FROM
            && ids.has_overlay()
            && fuse::problem().is_none()
            && Policy::read().is_ok_and(|policy| policy.fuse().is_ok())
    })
}

/// What a component asks of the store.
pub(crate) fn request<'a>(project: &Project, component: &'a Component, ids: &Ids) -> Result<Request<'a>> {
    request_of(project, &component.image, is_lazy(project, component, ids), ids).map_err(|e| error(component, &e))
}

/// What is asked of the store for an image.
pub(crate) fn request_of<'a>(
    project: &Project,
    image: &'a Reference,
    lazy: bool,
    ids: &Ids,
) -> Result<Request<'a>, containust_image::Error> {
    let place = |path: &str| project.folder().join(path).components().collect();
    let (source, pin) = match image {
        Reference::File { path, sha256 } => (Source::File(place(path)), sha256),
        Reference::Tar { path, sha256 } => {
            let ownership = ids.archive_ownership();
            let path = place(path);
            let source = if lazy { Source::Lazy(path) } else { Source::Tar(path) };
            return Ok(Request { source, ownership, pin: sha256.as_deref() });
        }
        Reference::Host { programs, include, sha256 } => {
            let programs = programs.iter().map(PathBuf::from).collect();
            (Source::Host { programs, include: include.clone() }, sha256)
        }
        Reference::Local { name, sha256 } => {
            let name = containust_image::name(name)?;
            return Ok(Request {
                source: Source::Local(name),
                ownership: ids.archive_ownership(),
                pin: sha256.as_deref(),
            });
        }
        Reference::Bundled { image, sha256 } => {
            let source = Source::Bundled { image: image.clone(), digest: sha256.clone() };
            return Ok(Request { source, ownership: ids.archive_ownership(), pin: None });
        }
        Reference::Registry { name, sha256, locked } => {
            return Ok(Request {
                source: Source::Registry { name: name.clone(), digest: sha256.clone() },
                ownership: ids.archive_ownership(),
                pin: sha256.as_deref().or(locked.as_deref()),
            });
        }
        // What is built is asked for by whoever builds it.
        Reference::Build(_) => return Err(containust_image::Error::Name("build".to_owned())),
    };
    Ok(Request { source, ownership: ids.ownership(), pin: pin.as_deref() })
}

/// The digest that a component's image has at its registry, if that is pinned or locked, or in its bundle.
pub(crate) fn known_digest(component: &Component) -> Option<&str> {
    match &component.image {
        Reference::Bundled { sha256, .. } => Some(sha256),
        Reference::Registry { sha256, locked, .. } => sha256.as_deref().or(locked.as_deref()),
        _ => None,
    }
}

/// The image as it is in the store; `None`: it must be imported. Reads only.
pub(crate) fn find(
    project: &Project,
    component: &Component,
    ids: &Ids,
    ways: &Ways<'_>,
) -> Result<(String, Option<Image>)> {
    let (reference, whole) = find_whole(project, component, ids, ways)?;
    let Some(asked) = &component.distroless else { return Ok((reference, whole)) };
    let stripped = whole.map(|whole| distroless::find(project, component, asked, &whole, ids)).transpose()?.flatten();
    Ok((distroless::reference(component), stripped))
}

/// The same, before it is stripped.
fn find_whole(project: &Project, component: &Component, ids: &Ids, ways: &Ways<'_>) -> Result<(String, Option<Image>)> {
    check_way(&component.image, ways)?;
    if let Reference::Build(built) = &component.image {
        return Ok((build::reference(component), build::find(project, component, built, ids, ways)?));
    }
    let request = request(project, component, ids)?;
    let image = project.store().find(&request).map_err(|e| error(component, &e))?;
    Ok((request.source.to_string(), image))
}

/// The image as a container with this index was made of it, if that is what it is still, although its archive may be unpacked by now.
pub(crate) fn find_indexed(
    project: &Project,
    component: &Component,
    ids: &Ids,
    index: &str,
) -> Result<Option<(String, Image)>> {
    let request = request(project, component, ids)?;
    // Whatever is wrong with it is told where it is asked for otherwise.
    let image = project.store().find_indexed(&request, index).ok().flatten();
    Ok(image.map(|image| (request.source.to_string(), image)))
}

/// [`Ways::check`] of an image of the host.
fn check_way(image: &Reference, ways: &Ways<'_>) -> Result<()> {
    match image {
        Reference::File { path, .. } | Reference::Tar { path, .. } => ways.check(path, None),
        _ => Ok(()),
    }
}

/// The images of one run.
pub(crate) struct Images<'a> {
    project: &'a Project,
    plan: &'a Plan,
    ways: &'a Ways<'a>,
    ids: Ids,
    unpacker: Unpacker,
    /// Imported for this run: what it came from, and the image.
    imported: Vec<(Source, Image)>,
}

impl<'a> Images<'a> {
    pub(crate) fn new(project: &'a Project, plan: &'a Plan, ways: &'a Ways<'a>) -> Result<Self> {
        let ids = Ids::detect()?;
        let unpacker = Unpacker::new(&ids);
        tidy(project, &unpacker)?;
        Ok(Self { project, plan, ways, ids, unpacker, imported: Vec::new() })
    }

    /// The component's image: that of the plan, or of a component before it, or else imported.
    pub(crate) fn ensure(
        &mut self,
        component: &Component,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(String, Image)> {
        if let Some(image) = self.plan.found.get(&component.name) {
            return Ok((reference(self.project, component, &self.ids)?, (**image).clone()));
        }
        let (reference, whole) = self.ensure_whole(component, progress)?;
        let Some(asked) = &component.distroless else { return Ok((reference, whole)) };
        let of = (&*reference, &whole);
        distroless::strip(self.project, component, asked, of, (&self.ids, &self.unpacker), false, progress)
    }

    /// The same, before it is stripped.
    fn ensure_whole(&mut self, component: &Component, progress: &mut dyn FnMut(Progress)) -> Result<(String, Image)> {
        if let Reference::Build(_) = &component.image {
            return import(self.project, component, self.ways, (&self.ids, &self.unpacker), false, progress);
        }
        let request = request(self.project, component, &self.ids)?;
        if component.distroless.is_some()
            && let Some(image) = self.project.store().find(&request).map_err(|e| error(component, &e))?
        {
            return Ok((request.source.to_string(), image));
        }
        let known = self.imported.iter().find(|(source, _)| request.pin.is_none() && *source == request.source);
        if let Some((source, image)) = known {
            return Ok((source.to_string(), image.clone()));
        }
        let (reference, image) =
            import(self.project, component, self.ways, (&self.ids, &self.unpacker), false, progress)?;
        self.imported.push((request.source, image.clone()));
        Ok((reference, image))
    }
}

/// The reference of a component's image.
fn reference(project: &Project, component: &Component, ids: &Ids) -> Result<String> {
    Ok(match (&component.distroless, &component.image) {
        (Some(_), _) => distroless::reference(component),
        (None, Reference::Build(_)) => build::reference(component),
        (None, _) => request(project, component, ids)?.source.to_string(),
    })
}

/// Imports an image, or builds it.
fn import(
    project: &Project,
    component: &Component,
    ways: &Ways<'_>,
    (ids, unpacker): (&Ids, &Unpacker),
    anew: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<(String, Image)> {
    check_way(&component.image, ways)?;
    if let Reference::Build(built) = &component.image {
        let image = build::build(project, component, built, anew, (ids, unpacker, ways), progress)?;
        return Ok((build::reference(component), image));
    }
    let request = request(project, component, ids)?;
    let reference = request.source.to_string();
    let image = match bring(project, &request, &component.name, &[], unpacker, progress) {
        // Nobody has asked for it.
        Err(e) if e.is_not_lazy() && component.lazy.is_none() => {
            let request = Request { source: request.source.unpacked(), ..request.clone() };
            let image = bring(project, &request, &component.name, &[], unpacker, progress);
            image.map(|image| Image { notes: [image.notes, vec![format!("it was unpacked: {e}")]].concat(), ..image })
        }
        image => image,
    };
    let image = image.map_err(|e| error(component, &e))?;
    if let Reference::Registry { name, sha256: None, locked: None } = &component.image {
        lock_image(project, name, &image)?;
    }
    progress(Progress::Imported {
        component: component.name.clone(),
        reference: reference.clone(),
        digest: image.digest.clone(),
        notes: image.notes.clone(),
    });
    Ok((reference, image))
}

/// Imports an image, from a registry or otherwise. `what`: for whom, as progress names it; `replace`: layers that are made anew.
fn bring(
    project: &Project,
    request: &Request<'_>,
    what: &str,
    replace: &[String],
    unpacker: &Unpacker,
    progress: &mut dyn FnMut(Progress),
) -> Result<Image, containust_image::Error> {
    let (component, reference) = (what.to_owned(), request.source.to_string());
    let progress = RefCell::new(progress);
    let fetch = |to: OwnedFd, have: &[String]| {
        let Source::Registry { name, .. } = &request.source else {
            return Err(containust_image::Error::Name(reference.clone()));
        };
        let mut told = |parts: &[Part]| {
            let (component, reference) = (component.clone(), reference.clone());
            progress.borrow_mut()(Progress::Pulling { component, reference, parts: parts.to_vec() });
        };
        registry::fetch(&registry::Wanted { name, digest: request.pin }, to, have, &mut told)
    };
    let bundle = match (&request.source, project.bundle()) {
        (Source::Bundled { .. }, Ok(Some(bundle))) => {
            crate::bundle::look_through(project, bundle, None, *progress.borrow_mut())?;
            Some(bundle)
        }
        _ => None,
    };
    let how = How { runner: unpacker, fetch: Some(&fetch), bundle, replace, ..How::default() };
    project.store().import_with(request, how, &mut |detail| {
        let (component, reference) = (component.clone(), reference.clone());
        progress.borrow_mut()(Progress::Importing { component, reference, detail });
    })
}

/// Writes into `containust.lock` what a name of a registry meant.
fn lock_image(project: &Project, name: &str, image: &Image) -> Result<()> {
    let digest = image.digest.trim_start_matches("sha256:").to_owned();
    let new = Lock { images: BTreeMap::from([(name.to_owned(), digest)]), ..Lock::default() };
    Lock::add(&project.import_lock(), &new)
}

/// Removes what imports that were killed have left, and indexes that nothing needs any more.
fn tidy(project: &Project, unpacker: &Unpacker) -> Result<()> {
    let tidied = project.store().tidy(unpacker).and_then(|()| match project.records() {
        Ok(records) => {
            let keep: Vec<PathBuf> = records.into_iter().flat_map(|record| record.spec.layers).collect();
            project.store().forget_indexes(&keep, unpacker).map(drop)
        }
        // Who has it is not known.
        Err(_) => Ok(()),
    });
    tidied.map_err(|e| Error::Store(Box::new(e)))
}

fn error(component: &Component, error: &containust_image::Error) -> Error {
    Error::Image { component: component.name.clone(), problem: error.to_string(), help: error.help() }
}

impl Project {
    /// The project's images.
    #[must_use]
    pub fn store(&self) -> Store {
        Store::at(&self.state_dir().join("images"))
    }

    /// Imports the images that the composition names and the store does not have, and gives all of them: component,
    /// reference, image. Archives are unpacked, whatever their size, but where a component says `lazy = true`: nobody waits for a start.
    ///
    /// # Errors
    /// [`Error::Image`] and [`Error::Untrusted`].
    pub fn import(
        &self,
        composition: &Composition,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<(String, String, Image)>> {
        self.import_all(composition, false, progress)
    }

    /// The same; what is built is built anew, whatever earlier builds have made.
    ///
    /// # Errors
    /// As [`Project::import`].
    pub fn build_anew(
        &self,
        composition: &Composition,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<(String, String, Image)>> {
        self.import_all(composition, true, progress)
    }

    fn import_all(
        &self,
        composition: &Composition,
        anew: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<(String, String, Image)>> {
        let mut components = composition.components.clone();
        for component in &mut components {
            component.lazy.get_or_insert(Lazy::No);
        }
        let ways = Ways::new(self, &composition.components);
        self.import_of(&components.iter().collect::<Vec<_>>(), &ways, anew, progress)
    }

    /// Decides what [`Action::Unknown`] leaves open in `plan` of these components: imports their images, by which nothing is
    /// lost, and gives the plan made anew; `None` where nothing was open. A source that is touched again meanwhile is
    /// unknown still.
    ///
    /// # Errors
    /// As [`Project::import`] and [`Project::plan`].
    pub fn settle(
        &self,
        composition: &Composition,
        plan: &Plan,
        chosen: &HashSet<String>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<Plan>> {
        let unknown = plan.steps.iter().filter(|s| s.action == Action::Unknown && chosen.contains(&s.component));
        let unknown: HashSet<&str> = unknown.map(|step| step.component.as_str()).collect();
        if unknown.is_empty() {
            return Ok(None);
        }
        let components = composition.components.iter().filter(|component| unknown.contains(component.name.as_str()));
        self.import_of(&components.collect::<Vec<_>>(), &Ways::new(self, &composition.components), false, progress)?;
        if of_registries(composition).is_empty() {
            return self.plan_some(composition, chosen).map(Some);
        }
        // What was pulled is locked by now.
        let mut composition = composition.clone();
        Lock::read(&self.import_lock())?.tell(&mut composition);
        self.plan_some(&composition, chosen).map(Some)
    }

    fn import_of<'c>(
        &self,
        components: &[&'c Component],
        ways: &Ways<'_>,
        anew: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<(String, String, Image)>> {
        self.create_state_dir()?;
        let ids = Ids::detect()?;
        let unpacker = Unpacker::new(&ids);
        tidy(self, &unpacker)?;
        // Which one a name of a registry means is asked once.
        let mut asked: Vec<(&Reference, Image)> = Vec::new();
        let have = |component: &'c Component| {
            let (reference, image) = if let Reference::Build(_) = &component.image {
                import(self, component, ways, (&ids, &unpacker), anew, progress)?
            } else {
                let (reference, found) = find_whole(self, component, &ids, ways)?;
                let known = asked.iter().find(|(reference, _)| **reference == component.image).map(|(_, image)| image);
                let image = match found.or_else(|| known.cloned()) {
                    Some(image) => image,
                    None => import(self, component, ways, (&ids, &unpacker), false, progress)?.1,
                };
                asked.push((&component.image, image.clone()));
                (reference, image)
            };
            let (reference, image) = match &component.distroless {
                None => (reference, image),
                Some(kept) => {
                    let of = (&*reference, &image);
                    distroless::strip(self, component, kept, of, (&ids, &unpacker), anew, progress)?
                }
            };
            Ok((component.name.clone(), reference, image))
        };
        components.iter().copied().map(have).collect()
    }
}
