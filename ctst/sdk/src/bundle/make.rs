//! Making a bundle: everything that a composition is made from is noted while it is read, and carried.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component as Part, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use containust_image::{Carried, Fetched, Imported, Manifest, Packed, Read, member_of};
use containust_lang::Loader;
use containust_lang::model::{Composition, Image, Lazy, SecretSource};

use super::{LOCK, written};
use crate::error::{During, Error, Result};
use crate::host::ids::Ids;
use crate::images::{Progress, lock::Lock};
use crate::project::{Loaded, Project, read_bounded};
use crate::workers::unpacker::Unpacker;

/// A bundle that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundled {
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Its images.
    pub images: Vec<Packed>,
    /// What it does not hold, and what a person should know, each for a person.
    pub notes: Vec<String>,
}

/// What was read.
#[derive(Debug, Default)]
struct Seen {
    imports: BTreeSet<Imported>,
    fetched: BTreeSet<Fetched>,
    reads: BTreeMap<String, Option<String>>,
    /// By the names of their members.
    files: BTreeMap<String, Vec<u8>>,
}

/// Notes what another loader gives.
pub(crate) struct Noting<'a> {
    from: &'a dyn Loader,
    folder: &'a Path,
    seen: &'a Mutex<Seen>,
}

impl Noting<'_> {
    fn note(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Loader for Noting<'_> {
    fn load(&self, importing: &str, path: &str) -> std::result::Result<(String, Vec<u8>), String> {
        let (name, bytes) = self.from.load(importing, path)?;
        self.note(|seen| {
            let (by, path) = (importing.to_owned(), path.to_owned());
            seen.imports.insert(Imported { by, path, name: name.clone() });
            seen.files.insert(member_of(&name), bytes.clone());
        });
        Ok((name, bytes))
    }

    fn fetch(&self, url: &str, pin: Option<&str>) -> std::result::Result<Vec<u8>, (String, String)> {
        let bytes = self.from.fetch(url, pin)?;
        self.note(|seen| {
            let sha256 = crate::images::imports::sha256(&bytes);
            seen.files.insert(format!("imports/{sha256}"), bytes.clone());
            seen.fetched.insert(Fetched { url: url.to_owned(), sha256 });
        });
        Ok(bytes)
    }

    fn read(&self, path: &str) -> std::result::Result<Option<Vec<u8>>, String> {
        let bytes = self.from.read(path)?;
        self.note(|seen| seen.read(self.folder, path, bytes.as_deref()));
        Ok(bytes)
    }
}

impl Seen {
    fn read(&mut self, folder: &Path, path: &str, bytes: Option<&[u8]>) {
        let member = bytes.map(|bytes| {
            let member = member_of(&plain(folder, path));
            self.files.insert(member.clone(), bytes.to_vec());
            member
        });
        self.reads.insert(path.to_owned(), member);
    }
}

/// A path in the folder, without `.` and `..`, or an absolute one.
fn plain(folder: &Path, path: &str) -> String {
    let mut whole = PathBuf::new();
    for part in folder.join(path).components() {
        match part {
            Part::ParentDir => drop(whole.pop()),
            Part::CurDir => {}
            other => whole.push(other),
        }
    }
    whole.strip_prefix(folder).unwrap_or(&whole).to_string_lossy().into_owned()
}

impl Project {
    /// Reads the file as [`Project::load_fetching`] does, imports its images, and writes a bundle of all of it to `file`, which is
    /// replaced when all is written. `None`: the file has errors, which are in what comes with it.
    ///
    /// # Errors
    /// As [`Project::load_fetching`] and [`Project::import`]; [`Error::Store`]; [`Error::NoBundle`] where the project is a bundle itself.
    pub fn write_bundle(
        &self,
        params: &[(String, String)],
        profiles: &[String],
        offline: bool,
        file: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Loaded, Option<Bundled>)> {
        if self.bundle()?.is_some() {
            let problem = format!("make a bundle of {}: it is one", self.file_name());
            return Err(Error::Store(Box::new(containust_image::Error::Unbundled(problem))));
        }
        let seen = Mutex::default();
        let noting = |from: &dyn Loader, read: &mut dyn FnMut(&dyn Loader)| {
            read(&Noting { from, folder: self.folder(), seen: &seen });
        };
        let loaded = self.load_by(params, profiles, crate::Fetching::Known, offline, &noting)?;
        let Some(composition) = loaded.outcome.composition.clone() else { return Ok((loaded, None)) };
        let mut seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        for path in composition.components.iter().filter_map(|component| component.seccomp.profile.as_ref()) {
            let bytes = read_bounded(&self.folder().join(path))?;
            seen.read(self.folder(), path, Some(&bytes));
        }
        let carried = self.images_to_carry(&composition, progress)?;
        seen.files.insert(member_of(&loaded.name), loaded.source.clone());
        let lock = self.import_lock();
        if lock.exists() {
            seen.files.insert(LOCK.to_owned(), read_bounded(&lock)?);
        }
        let mut manifest = Manifest::new(&loaded.name);
        manifest.imports = seen.imports.into_iter().collect();
        manifest.fetched = seen.fetched.into_iter().collect();
        manifest.reads = seen.reads.into_iter().map(|(path, member)| Read { path, member }).collect();
        let notes = notes(&composition, &loaded);
        let what = || format!("write {}", file.display());
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut new = tempfile::NamedTempFile::new_in(folder).during(what)?;
        let unpacker = Unpacker::new(&Ids::detect()?);
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut told = |detail| progress(Progress::Exporting { image: name.clone(), detail });
        let written = self.store().bundle(manifest, &carried, seen.files, new.as_file_mut(), &unpacker, &mut told);
        let written = written.map_err(|error| Error::Store(Box::new(error)))?;
        new.as_file().sync_all().during(what)?;
        new.persist(file).map_err(|e| e.error).during(what)?;
        let bundled = Bundled { digest: written.digest, size: written.size, images: written.images, notes };
        Ok((loaded, Some(bundled)))
    }

    /// The images of a composition, each once, from the store, into which they are brought.
    fn images_to_carry(&self, composition: &Composition, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Carried>> {
        let mut composition = composition.clone();
        // An index is no image that could be carried.
        composition.components.iter_mut().for_each(|component| component.lazy = Some(Lazy::No));
        let imported = self.import(&composition, progress)?;
        // What was pulled is locked by now.
        Lock::read(&self.import_lock())?.tell(&mut composition);
        let mut carried: Vec<Carried> = Vec::new();
        for (component, (_, reference, found)) in composition.components.iter().zip(imported) {
            let image = written(component);
            if !carried.iter().any(|known| known.image == image) {
                carried.push(Carried { image, name: component.name.clone(), reference, found });
            }
        }
        Ok(carried)
    }
}

/// What stays here, and is wanted there.
fn notes(composition: &Composition, loaded: &Loaded) -> Vec<String> {
    let mut notes = Vec::new();
    for component in &composition.components {
        for volume in component.volumes.iter().filter(|volume| !volume.named) {
            let (name, source, target) = (&component.name, &volume.source, &volume.target);
            notes.push(format!("not carried: {source} of this host, which {name} has at {target}"));
        }
    }
    for component in &composition.components {
        for device in &component.devices {
            let (name, source) = (&component.name, &device.source);
            notes.push(format!("not carried: the device {source} of this host, which {name} has"));
        }
    }
    for secret in &composition.secrets {
        let name = &secret.name;
        notes.push(match &secret.source {
            None => format!("not carried: the secret {name}, which is looked up where it runs"),
            Some(SecretSource::File(path)) => format!("not carried: the secret {name}, of the file {path}"),
            Some(SecretSource::Env(variable)) => format!("not carried: the secret {name}, of the variable {variable}"),
            Some(SecretSource::Command(_)) => {
                format!("not carried: the secret {name}, which a command gives where it runs")
            }
        });
    }
    let host = composition.components.iter().filter(|component| matches!(component.image, Image::Host { .. }));
    notes.extend(host.map(|component| format!("{}: its image has the programs of this host", component.name)));
    notes.extend(loaded.taken.iter().map(|taken| format!("the composition {taken}")));
    notes
}
