//! Images of registries, pulled and locked because somebody says so, and not because a run needs them.

use std::io;

use containust_image::registry::Part;
use containust_image::{Request, Source};
use containust_lang::model::{Composition, Image as Reference};

use super::lock::Lock;
use super::{Progress, bring, lock_image, registry, tidy};
use crate::error::{During, Error, Result};
use crate::host::ids::Ids;
use crate::project::Project;
use crate::workers::unpacker::Unpacker;

/// What a name of a registry means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// `oci://…`.
    pub reference: String,
    /// `sha256:…` of its manifest or index.
    pub digest: String,
    /// What was locked before, where that is another.
    pub before: Option<String>,
}

/// The images of registries that a composition names, each once.
#[must_use]
pub fn of_registries(composition: &Composition) -> Vec<Reference> {
    let mut images: Vec<Reference> = Vec::new();
    for component in &composition.components {
        if matches!(component.image, Reference::Registry { .. }) && !images.contains(&component.image) {
            images.push(component.image.clone());
        }
    }
    images
}

impl Project {
    /// Pulls images of registries into the store, as they are pinned or locked; with `update` as the registry has them now. What a name
    /// without a pin means is locked. Images of other kinds are passed over.
    ///
    /// # Errors
    /// [`Error::Store`], and those of `containust.lock`.
    pub fn pull(&self, images: &[Reference], update: bool, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Pulled>> {
        self.create_state_dir()?;
        let ids = Ids::detect()?;
        let unpacker = Unpacker::new(&ids);
        tidy(self, &unpacker)?;
        let lock = Lock::read(&self.import_lock())?;
        let mut pulled = Vec::new();
        for image in images {
            let Reference::Registry { name, sha256, .. } = image else { continue };
            let locked = lock.images.get(name).filter(|_| sha256.is_none());
            let source = Source::Registry { name: name.clone(), digest: sha256.clone() };
            let pin = sha256.as_deref().or(locked.filter(|_| !update).map(String::as_str));
            let request = Request { source, ownership: ids.archive_ownership(), pin };
            let found = bring(self, &request, name, &[], &unpacker, progress).map_err(|e| Error::Store(Box::new(e)))?;
            let reference = request.source.to_string();
            let (component, digest, notes) = (name.clone(), found.digest.clone(), found.notes.clone());
            progress(Progress::Imported { component, reference: reference.clone(), digest, notes });
            let locked = locked.map(|digest| format!("sha256:{digest}"));
            if sha256.is_none() && locked.as_ref() != Some(&found.digest) {
                lock_image(self, name, &found)?;
            }
            let before = locked.filter(|locked| *locked != found.digest);
            pulled.push(Pulled { reference, digest: found.digest, before });
        }
        Ok(pulled)
    }

    /// Pushes an image of the store, as [`Project::select_image`] means it, to a registry. Gives the digest of its manifest, which is another than
    /// that of what was imported: the layers are packed anew.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::Invalid`] where `to` is not an image of a registry.
    pub fn push(&self, what: &str, to: &Reference, progress: &mut dyn FnMut(Progress)) -> Result<Pulled> {
        let Reference::Registry { name, sha256: None, .. } = to else {
            let problem = "push: where to is written as oci://registry/name:tag, without a digest".to_owned();
            return Err(Error::Invalid { component: what.to_owned(), problem });
        };
        let entry = self.select_image(what)?;
        self.create_state_dir()?;
        let unpacker = Unpacker::new(&Ids::detect()?);
        let failed = |e: containust_image::Error| Error::Store(Box::new(e));
        let dir = self.state_dir();
        let mut layout = tempfile::tempfile_in(&dir).during(|| format!("write into {}", dir.display()))?;
        let image = what.to_owned();
        let mut exporting = |detail| progress(Progress::Exporting { image: image.clone(), detail });
        self.store().export(&entry.reference, &mut layout, true, &unpacker, &mut exporting).map_err(failed)?;
        let reference = format!("oci://{name}");
        let mut pushing = |parts: &[Part]| {
            let (component, reference) = (image.clone(), reference.clone());
            progress(Progress::Pushing { component, reference, parts: parts.to_vec() });
        };
        io::Seek::rewind(&mut layout).during(|| format!("write into {}", dir.display()))?;
        let found = registry::push(name, layout.into(), &mut pushing).map_err(failed)?;
        Ok(Pulled { reference, digest: format!("sha256:{}", found.digest), before: None })
    }

    /// Asks registries what these names mean now, and locks it, without pulling it; with `update` also of those that are locked.
    ///
    /// # Errors
    /// As [`Project::pull`].
    pub fn lock_images(&self, images: &[Reference], update: bool) -> Result<Vec<Pulled>> {
        let lock = Lock::read(&self.import_lock())?;
        let mut new = Lock::default();
        let mut found = Vec::new();
        for image in images {
            let Reference::Registry { name, sha256: None, .. } = image else { continue };
            let locked = lock.images.get(name);
            if locked.is_some() && !update {
                continue;
            }
            let now = registry::resolve(name).map_err(|e| Error::Store(Box::new(e)))?;
            if locked != Some(&now.digest) {
                let before = locked.map(|digest| format!("sha256:{digest}"));
                let (reference, digest) = (format!("oci://{name}"), format!("sha256:{}", now.digest));
                found.push(Pulled { reference, digest, before });
                new.images.insert(name.clone(), now.digest);
            }
        }
        if !new.images.is_empty() {
            Lock::add(&self.import_lock(), &new)?;
        }
        Ok(found)
    }
}
