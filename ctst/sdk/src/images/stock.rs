//! The project's image store, looked after: what is in it, what of it is used, what comes in and goes out.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use containust_image::model::{Entry, Image};
use containust_image::{Error as ImageError, How, Progress, Request, Source};
use containust_lang::model::Image as Reference;
use serde::Serialize;

use crate::bundle::is_bundle;
use crate::error::{During, Error, Result};
use crate::host::ids::Ids;
use crate::images;
use crate::ipc::client;
use crate::project::Project;
use crate::record::{self, Record, Stored};
use crate::workers::unpacker::Unpacker;

/// What became of a look at an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Its reference.
    pub reference: String,
    /// `sha256:…`.
    pub digest: String,
    /// What differs from what was imported; none: nothing.
    pub problem: Option<String>,
    /// Whether something differed, and was imported again.
    pub repaired: bool,
    /// Where it was to be repaired and was not: why.
    pub lacks: Option<String>,
}

/// What was removed from the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// References of images.
    pub images: Vec<String>,
    /// Folders of layers.
    pub layers: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

fn store(error: ImageError) -> Error {
    Error::Store(Box::new(error))
}

impl Project {
    /// The image that is meant by a reference as the store or a file of the project has it, a name, or a digest's beginning.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn select_image(&self, what: &str) -> Result<Entry> {
        self.store().select(&self.written_out(what)).map_err(store)
    }

    /// The same among all that the store has a record of.
    fn select_recorded(&self, what: &str) -> Result<Entry> {
        self.store().select_of_all(&self.written_out(what)).map_err(store)
    }

    /// A reference as the store has it.
    fn written_out(&self, what: &str) -> String {
        let relative = ["file://", "tar://"].into_iter().find_map(|scheme| {
            let path = what.strip_prefix(scheme)?;
            Some(format!("{scheme}{}", self.folder().join(path).components().collect::<PathBuf>().display()))
        });
        relative.unwrap_or_else(|| what.to_owned())
    }

    /// Imports a directory or an archive under a name, or under those that it brings itself; returns the references.
    ///
    /// # Errors
    /// [`Error::Store`] and [`Error::Untrusted`].
    pub fn import_image(
        &self,
        path: &Path,
        name: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<String>, Image)> {
        let path = std::path::absolute(path).during(|| format!("open {}", path.display()))?;
        let path: PathBuf = path.components().collect();
        self.create_state_dir()?;
        let ids = Ids::detect()?;
        let unpacker = Unpacker::new(&ids);
        let (source, ownership) = match path.is_dir() {
            true => (Source::File(path), ids.ownership()),
            false => (Source::Tar(path), ids.archive_ownership()),
        };
        let request = Request { source, ownership, pin: None };
        let how = How { runner: &unpacker, ..How::default() };
        self.store().import_as(&request, name, ids.archive_ownership(), how, progress).map_err(store)
    }

    /// Writes an image as an archive: an OCI layout that `docker load` takes, too. A file is replaced when all is written.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::Io`] where the file cannot be written.
    pub fn export_image(&self, what: &str, file: Option<&Path>, progress: &mut dyn FnMut(Progress)) -> Result<Entry> {
        let entry = self.select_image(what)?;
        let unpacker = Unpacker::new(&Ids::detect()?);
        let mut export =
            |out: &mut dyn Write| self.store().export(&entry.reference, out, false, &unpacker, progress).map_err(store);
        let Some(file) = file else {
            export(&mut io::stdout().lock())?;
            return Ok(entry);
        };
        let what = || format!("write {}", file.display());
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut new = tempfile::NamedTempFile::new_in(folder).during(what)?;
        export(new.as_file_mut())?;
        new.persist(file).map_err(|e| e.error).during(what)?;
        Ok(entry)
    }

    /// Reads images and compares them with what was imported; none named: all.
    ///
    /// # Errors
    /// [`Error::Store`] where an image is not there or cannot be read.
    pub fn verify_images(&self, which: &[String], found: &mut dyn FnMut(&Verified)) -> Result<Vec<Verified>> {
        let unpacker = Unpacker::new(&Ids::detect()?);
        let mut all = Vec::new();
        for Entry { reference, digest, .. } in self.chosen(which)? {
            let problem = match self.store().verify(&reference, &unpacker) {
                Ok(()) => None,
                Err(ImageError::Damaged { why, .. }) => Some(why),
                Err(other) => return Err(store(other)),
            };
            let verified = Verified { reference, digest, problem, repaired: false, lacks: None };
            found(&verified);
            all.push(verified);
        }
        Ok(all)
    }

    pub(super) fn chosen(&self, which: &[String]) -> Result<Vec<Entry>> {
        match which {
            [] => self.store().list_all().map_err(store),
            some => some.iter().map(|what| self.select_recorded(what)).collect(),
        }
    }

    /// Removes images, and those of their layers that nothing else has. None that a container was made of.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::ImageInUse`], after which nothing was removed.
    pub fn remove_images(&self, which: &[String]) -> Result<Removed> {
        let records = self.records()?;
        let entries: Vec<Entry> = which.iter().map(|what| self.select_recorded(what)).collect::<Result<_>>()?;
        for entry in &entries {
            let users: Vec<String> =
                records.iter().filter(|record| uses(record, entry)).map(|record| record.spec.name.clone()).collect();
            if !users.is_empty() {
                return Err(Error::ImageInUse { reference: entry.reference.clone(), users });
            }
        }
        let mut removed = Removed::default();
        let references: BTreeSet<String> = entries.into_iter().map(|entry| entry.reference).collect();
        for reference in references {
            self.store().remove(&reference).map_err(store)?;
            removed.images.push(reference);
        }
        self.remove_layers(&records, &mut removed)?;
        Ok(removed)
    }

    /// Removes what neither a container was made of nor a file of the folder names, and what killed imports left. Images
    /// with a name of their own are kept, unless `all` is to go; those whose layers are gone are not.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::Invalid`] where the project's file has errors.
    pub fn prune_images(&self, all: bool) -> Result<Removed> {
        let records = self.records()?;
        let mut removed = Removed::default();
        let named = self.named(&mut removed.notes)?;
        let entries = self.store().list_all().map_err(store)?;
        // After that, so that what is imported meanwhile is among them.
        let whole: BTreeSet<String> =
            self.store().list().map_err(store)?.into_iter().map(|entry| entry.reference).collect();
        for entry in entries {
            // One whose layers are gone cannot be run, under whatever name.
            let is_kept = whole.contains(&entry.reference)
                && (named.contains(&entry.reference) || !all && entry.reference.starts_with("image://"))
                || records.iter().any(|record| uses(record, &entry));
            if !is_kept && !removed.images.contains(&entry.reference) {
                self.store().remove(&entry.reference).map_err(store)?;
                removed.images.push(entry.reference);
            }
        }
        self.remove_layers(&records, &mut removed)?;
        if all {
            match self.store().remove_caches(&Unpacker::new(&Ids::detect()?)) {
                Ok(()) => {}
                Err(error @ ImageError::Busy(_)) => {
                    removed.notes.push(format!("caches are left: {error}; remove them by `ctst images prune --all`"));
                }
                Err(error) => return Err(store(error)),
            }
        }
        Ok(removed)
    }

    /// The references that the compositions of the folder name.
    fn named(&self, notes: &mut Vec<String>) -> Result<BTreeSet<String>> {
        let ids = Ids::detect()?;
        let mut named = BTreeSet::new();
        let list = std::fs::read_dir(self.folder()).during(|| format!("list {}", self.folder().display()))?;
        let mut files: Vec<PathBuf> = list
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "ctst") || is_bundle(path))
            .filter(|path| path.is_file() && path != self.file())
            .collect();
        files.sort();
        for file in [self.file().to_owned()].into_iter().chain(files) {
            let project = Self::locate(Some(&file))?;
            match project.load()?.outcome.composition {
                Some(composition) => {
                    for component in &composition.components {
                        if component.distroless.is_some() {
                            named.insert(images::distroless::reference(component));
                        }
                        match &component.image {
                            Reference::Build(build) => {
                                named.insert(images::build::reference(component));
                                named.extend(images::build::needs(&project, component, build, &ids));
                            }
                            _ => {
                                named.insert(images::request(&project, component, &ids)?.source.to_string());
                            }
                        }
                    }
                }
                None if file == self.file() => {
                    return Err(Error::Unchecked { file });
                }
                None => notes.push(format!(
                    "{} has errors alone, or nothing to deploy: what only it names is not kept",
                    file.file_name().unwrap_or_default().display()
                )),
            }
        }
        Ok(named)
    }

    fn remove_layers(&self, records: &[Record], removed: &mut Removed) -> Result<()> {
        let keep: Vec<PathBuf> = records.iter().flat_map(|record| record.spec.layers.clone()).collect();
        let unpacker = Unpacker::new(&Ids::detect()?);
        removed.layers = self.store().forget_indexes(&keep, &unpacker).map_err(store)?;
        match self.store().prune(&keep, &unpacker) {
            Ok(layers) => removed.layers.extend(layers),
            Err(error @ ImageError::Busy(_)) if !removed.images.is_empty() => {
                removed.notes.push(format!("layers are left: {error}; remove them by `ctst images prune`"));
            }
            Err(error) => return Err(store(error)),
        }
        Ok(())
    }

    /// The records of the project's containers, of whatever file.
    pub(super) fn records(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for name in record::list(&self.containers_dir())? {
            match record::read(&self.container_dir(&name), self.identity())? {
                Some(Stored::Record(record)) => records.push(*record),
                // What does not run is replaced at its next start, so that it needs no image.
                Some(Stored::Unknown(why)) if client::dial(self)?.is_some() => {
                    let problem = format!("see what image it needs: {why}; first: ctst stop {name}");
                    return Err(Error::Invalid { component: name, problem });
                }
                Some(Stored::Unknown(_)) | None => {}
            }
        }
        Ok(records)
    }
}

/// Whether a container was made of the image, under this name.
fn uses(record: &Record, entry: &Entry) -> bool {
    record.spec.image == entry.reference && record.spec.digest == entry.digest
}
