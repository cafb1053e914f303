//! Components' images, from the project's store.

pub(crate) mod declared;
pub(crate) mod imports;
pub(crate) mod lock;
pub(crate) mod pull;
pub(crate) mod registry;
pub(crate) mod stock;
pub(crate) mod users;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use containust_image::model::Image;
use containust_image::registry::Part;
use containust_image::{How, Request, Source, Store};
use containust_lang::model::{Component, Composition, Image as Reference};

use crate::error::{Error, Result};
use crate::host::ids::Ids;
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

/// What a component asks of the store.
pub(crate) fn request<'a>(project: &Project, component: &'a Component, ids: &Ids) -> Result<Request<'a>> {
    let place = |path: &str| project.folder().join(path).components().collect();
    let (source, pin) = match &component.image {
        Reference::File { path, sha256 } => (Source::File(place(path)), sha256),
        Reference::Tar { path, sha256 } => {
            let ownership = ids.archive_ownership();
            let path = place(path);
            let source = if component.lazy { Source::Lazy(path) } else { Source::Tar(path) };
            return Ok(Request { source, ownership, pin: sha256.as_deref() });
        }
        Reference::Host { programs, include, sha256 } => {
            let programs = programs.iter().map(PathBuf::from).collect();
            (Source::Host { programs, include: include.clone() }, sha256)
        }
        Reference::Local { name, sha256 } => {
            let name = containust_image::name(name).map_err(|e| error(component, &e))?;
            return Ok(Request {
                source: Source::Local(name),
                ownership: ids.archive_ownership(),
                pin: sha256.as_deref(),
            });
        }
        Reference::Registry { name, sha256, locked } => {
            return Ok(Request {
                source: Source::Registry { name: name.clone(), digest: sha256.clone() },
                ownership: ids.archive_ownership(),
                pin: sha256.as_deref().or(locked.as_deref()),
            });
        }
    };
    Ok(Request { source, ownership: ids.ownership(), pin: pin.as_deref() })
}

/// The digest that a component's image has at its registry, if that is pinned or locked.
pub(crate) fn registry_digest(component: &Component) -> Option<&str> {
    match &component.image {
        Reference::Registry { sha256, locked, .. } => sha256.as_deref().or(locked.as_deref()),
        _ => None,
    }
}

/// The image as it is in the store; `None`: it must be imported. Reads only.
pub(crate) fn find(project: &Project, component: &Component, ids: &Ids) -> Result<(String, Option<Image>)> {
    let request = request(project, component, ids)?;
    let image = project.store().find(&request).map_err(|e| error(component, &e))?;
    Ok((request.source.to_string(), image))
}

/// The images of one run.
pub(crate) struct Images<'a> {
    project: &'a Project,
    plan: &'a Plan,
    ids: Ids,
    unpacker: Unpacker,
    /// Imported for this run: what it came from, and the image.
    imported: Vec<(Source, Image)>,
}

impl<'a> Images<'a> {
    pub(crate) fn new(project: &'a Project, plan: &'a Plan) -> Result<Self> {
        let ids = Ids::detect()?;
        let unpacker = Unpacker::new(&ids);
        tidy(project, &unpacker)?;
        Ok(Self { project, plan, ids, unpacker, imported: Vec::new() })
    }

    /// The component's image: that of the plan, or of a component before it, or else imported.
    pub(crate) fn ensure(
        &mut self,
        component: &Component,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(String, Image)> {
        let request = request(self.project, component, &self.ids)?;
        if let Some(image) = self.plan.found.get(&component.name) {
            return Ok((request.source.to_string(), (**image).clone()));
        }
        let known = self.imported.iter().find(|(source, _)| request.pin.is_none() && *source == request.source);
        if let Some((source, image)) = known {
            return Ok((source.to_string(), image.clone()));
        }
        let (reference, image) = import(self.project, component, &self.ids, &self.unpacker, progress)?;
        self.imported.push((request.source, image.clone()));
        Ok((reference, image))
    }
}

fn import(
    project: &Project,
    component: &Component,
    ids: &Ids,
    unpacker: &Unpacker,
    progress: &mut dyn FnMut(Progress),
) -> Result<(String, Image)> {
    let request = request(project, component, ids)?;
    let reference = request.source.to_string();
    let image = bring(project, &request, &component.name, unpacker, progress).map_err(|e| error(component, &e))?;
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

/// Imports an image, from a registry or otherwise. `what`: for whom, as progress names it.
fn bring(
    project: &Project,
    request: &Request<'_>,
    what: &str,
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
    let how = How { runner: unpacker, fetch: Some(&fetch), ..How::default() };
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

/// Removes what imports that were killed have left.
fn tidy(project: &Project, unpacker: &Unpacker) -> Result<()> {
    project.store().tidy(unpacker).map_err(|e| Error::Store(Box::new(e)))
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
    /// reference, image.
    ///
    /// # Errors
    /// [`Error::Image`] and [`Error::Untrusted`].
    pub fn import(
        &self,
        composition: &Composition,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<(String, String, Image)>> {
        self.import_of(&composition.components.iter().collect::<Vec<_>>(), progress)
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
        self.import_of(&components.collect::<Vec<_>>(), progress)?;
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
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<(String, String, Image)>> {
        self.create_state_dir()?;
        let ids = Ids::detect()?;
        let unpacker = Unpacker::new(&ids);
        tidy(self, &unpacker)?;
        // Which one a name of a registry means is asked once.
        let mut asked: Vec<(&Reference, Image)> = Vec::new();
        let have = |component: &'c Component| {
            let (reference, found) = find(self, component, &ids)?;
            let known = asked.iter().find(|(reference, _)| **reference == component.image).map(|(_, image)| image);
            let image = match found.or_else(|| known.cloned()) {
                Some(image) => image,
                None => import(self, component, &ids, &unpacker, progress)?.1,
            };
            asked.push((&component.image, image.clone()));
            Ok((component.name.clone(), reference, image))
        };
        components.iter().copied().map(have).collect()
    }
}
