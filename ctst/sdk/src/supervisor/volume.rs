//! Folders that keep what containers write: made when one first wants them, and filled with what its image has there.

use std::path::{Path, PathBuf};

use containust_image::Lazy;
use containust_lang::model::NamedVolume;

use super::Supervisor;
use super::lazy::Of;
use super::life::{own_by_root, prepare};
use super::retire::Task;
use crate::error::{During, Error, Result};
use crate::spec::ROOT;
use crate::volumes;
use crate::workers;

/// What there is of a folder that a container wants.
pub(super) enum Provided {
    There,
    /// It is being filled; the supervisor looks again when it is.
    Coming,
    /// Why there will be none.
    Failed(String),
}

/// What a folder is filled with.
#[derive(Clone, Copy)]
enum Content<'a> {
    /// A whole image of these layers.
    Image(&'a [PathBuf]),
    /// What such an image, or one that is read from its archive, has at this path.
    InLayers(&'a [PathBuf], Option<&'a Lazy>, &'a str),
    /// What this copy of an image has at this path.
    InTree(&'a Path, &'a str),
}

impl Supervisor {
    /// What there is of the folders of a container: the copy of its image, if its root is no overlay, its named volumes and
    /// those of its image. What is not there is begun to be made.
    pub(super) fn provide_folders(&mut self, cid: super::Cid) -> Provided {
        let Some(container) = self.containers.get(&cid) else { return Provided::There };
        let (layers, dir) = (container.record.spec.layers.clone(), container.dir.clone());
        let lazy = container.record.spec.lazy.clone();
        let spec = &container.record.spec;
        let named = spec.volumes.iter().filter(|bind| bind.named);
        let named = named.map(|bind| (self.project.volumes_dir().join(&bind.source), bind.target.clone()));
        let wanted: Vec<(PathBuf, String)> = named.chain(spec.kept_in(&dir)).collect();
        let root = dir.join(ROOT);
        let overlay = self.ids.has_overlay();
        if !overlay {
            match self.provide(&root, Content::Image(&layers)) {
                Provided::There => {}
                other => return other,
            }
        }
        let mut coming = false;
        for (place, inside) in wanted {
            let content = if overlay {
                Content::InLayers(&layers, lazy.as_ref(), &inside)
            } else {
                Content::InTree(&root, &inside)
            };
            match self.provide(&place, content) {
                Provided::There => {}
                Provided::Coming => coming = true,
                Provided::Failed(why) => return Provided::Failed(why),
            }
        }
        if coming { Provided::Coming } else { Provided::There }
    }

    /// Makes the folder `place` with this content, by a container of its own: owners are those of the image, and its links
    /// lead nowhere but into itself. Either all of it is there in the end, or nothing.
    fn provide(&mut self, place: &Path, content: Content<'_>) -> Provided {
        match place.symlink_metadata() {
            Ok(meta) if meta.is_dir() => return Provided::There,
            Ok(_) => return Provided::Failed(format!("use {}: it is not a folder", place.display())),
            Err(_) => {}
        }
        if self.workers.values().any(|worker| worker.fills(place)) {
            return Provided::Coming;
        }
        if let Some(why) = self.unfilled.get(place) {
            return Provided::Failed(why.clone());
        }
        match self.start_filling(place, content) {
            Ok(()) => Provided::Coming,
            Err(error) => Provided::Failed(error.to_string()),
        }
    }

    fn start_filling(&mut self, place: &Path, content: Content<'_>) -> Result<()> {
        let parent = place.parent().unwrap_or(Path::new("/"));
        volumes::create_dir(parent, 0o700)?;
        let staging = staging(place);
        self.retire(&staging)?;
        volumes::create_dir(&staging, 0o755)?;
        own_by_root(&staging, &self.ids)?;
        let mut scratch = None;
        let mut served = None;
        let planned = match content {
            Content::Image(layers) => workers::flatten_plan(layers, &staging)?,
            Content::InTree(tree, inside) => workers::fill_from_tree_plan(tree, &staging, inside)?,
            Content::InLayers(layers, lazy, inside) => {
                served = lazy.zip(layers.first().map(|tree| tree.with_file_name("index")));
                // Named so that a later supervisor removes it, should this one not come to it.
                let scratch = scratch.insert(self.scratch()?);
                prepare(scratch, &self.ids)?;
                workers::fill_plan(lazy.is_none().then_some(layers), scratch, &staging, inside)?
            }
        };
        let id = self.start_worker(place, Task::Fill { scratch }, planned, None)?;
        if let Some((lazy, index)) = served {
            let server = self.start_server(Of::Worker(id), lazy, &index, None)?;
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.server = Some(server);
            }
        }
        Ok(())
    }

    /// A worker has filled a folder, or says why not.
    pub(super) fn on_filled(&mut self, place: &Path, scratch: Option<PathBuf>, result: Result<(), String>) {
        self.dirty = true;
        let staging = staging(place);
        let result = result.and_then(|()| {
            std::fs::rename(&staging, place).map_err(|error| format!("rename {}: {error}", staging.display()))
        });
        if let Err(why) = result {
            self.unfilled.insert(place.to_owned(), format!("fill {} from the image: {why}", place.display()));
            if let Err(error) = self.retire(&staging) {
                super::say(&format!("{error}"));
            }
        }
        if let Some(scratch) = scratch {
            self.remove(scratch, false);
        }
    }

    /// Takes note of the volumes of a composition, and tries again what failed.
    pub(super) fn want_volumes(&mut self, wanted: &[NamedVolume]) -> Result<()> {
        self.unfilled.clear();
        for volume in wanted {
            volumes::note(&self.project, volume)?;
        }
        Ok(())
    }

    /// Removes volumes that no container has, with what is in them.
    pub(super) fn remove_volumes(&mut self, names: &[String]) -> Result<()> {
        self.sweep();
        let known = volumes::names(&self.project)?;
        let users = volumes::users(&self.project)?;
        for name in names {
            if !known.contains(name) {
                return Err(Error::UnknownVolume { name: name.clone(), known });
            }
            let place = self.project.volumes_dir().join(name);
            let used = users.get(name).cloned().unwrap_or_default();
            if !used.is_empty() || self.workers.values().any(|worker| worker.fills(&place)) {
                return Err(Error::VolumeInUse { name: name.clone(), by: used });
            }
        }
        for name in names {
            self.retire(&self.project.volumes_dir().join(name))?;
            volumes::forget(&self.project, name)?;
        }
        Ok(())
    }

    fn scratch(&mut self) -> Result<PathBuf> {
        loop {
            let path = self.retired(&self.project.containers_dir());
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(path),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).during(|| format!("create {}", path.display())),
            }
        }
    }
}

/// Where a folder is until it is filled: no volume's name begins with a dot.
fn staging(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!(".new-{name}"))
}
