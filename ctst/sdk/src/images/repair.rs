//! Images of the store that are not what was imported, imported again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use containust_image::model::{Entry, Ownership};
use containust_image::{Damage, Error as ImageError, Request, Source};

use super::stock::Verified;
use super::{Progress, bring, tidy};
use crate::bundle::is_bundle;
use crate::error::{During, Error, Result};
use crate::host::ids::Ids;
use crate::project::Project;
use crate::workers::unpacker::Unpacker;

impl Project {
    /// As [`Project::verify_images`], and imports again what differs, where the source still gives the same. A layer of which a running
    /// container has files open is left as it is.
    ///
    /// # Errors
    /// As [`Project::verify_images`].
    pub fn repair_images(
        &self,
        which: &[String],
        found: &mut dyn FnMut(&Verified),
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Verified>> {
        let ids = Ids::detect()?;
        let unpacker = Unpacker::new(&ids);
        let store = |error: ImageError| Error::Store(Box::new(error));
        tidy(self, &unpacker)?;
        let busy = self.busy_layers()?;
        let entries = self.chosen(which)?;
        let mut damaged: Vec<(Entry, Vec<Damage>)> = Vec::new();
        for entry in &entries {
            let damages = self.store().damaged(&entry.reference, &unpacker).map_err(store)?;
            if !damages.is_empty() {
                damaged.push((entry.clone(), damages));
            }
        }
        let mut lacks = BTreeMap::new();
        for (entry, damages) in &damaged {
            // One before may have had the same layers.
            if self.store().verify(&entry.reference, &unpacker).is_ok() {
                continue;
            }
            if let Err(why) = self.repair(entry, damages, &busy, &ids, &unpacker, progress) {
                lacks.insert(&entry.reference, why);
            }
        }
        let mut all = Vec::new();
        for Entry { reference, digest, .. } in &entries {
            let was_damaged = damaged.iter().any(|(entry, _)| entry.reference == *reference);
            let problem = match was_damaged {
                true => self.store().damaged(reference, &unpacker).map_err(store)?.into_iter().next(),
                false => None,
            };
            let verified = Verified {
                reference: reference.clone(),
                digest: digest.clone(),
                repaired: was_damaged && problem.is_none(),
                lacks: problem.as_ref().and_then(|_| lacks.get(reference).cloned()),
                problem: problem.map(|damage| damage.why),
            };
            found(&verified);
            all.push(verified);
        }
        Ok(all)
    }

    /// Imports an image again; else why not.
    fn repair(
        &self,
        entry: &Entry,
        damages: &[Damage],
        busy: &BTreeMap<PathBuf, String>,
        ids: &Ids,
        unpacker: &Unpacker,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), String> {
        if damages.iter().any(|damage| damage.is_lazy) {
            return Err("its archive is not unpacked; remove it, and the next run indexes it again".to_owned());
        }
        let user = damages.iter().find_map(|damage| {
            let tree = self.state_dir().join("images/layers").join(&damage.layer).join("tree").canonicalize().ok()?;
            busy.get(&tree)
        });
        if let Some(user) = user {
            return Err(format!("{user} runs on it; first: ctst stop {user}"));
        }
        if entry.reference.starts_with("build://") {
            return Err("build it anew: ctst build --no-cache".to_owned());
        }
        if entry.reference.starts_with("distroless://") {
            return Err("strip it anew: ctst build --no-cache".to_owned());
        }
        let Some((source, project)) = self.source_of(&entry.reference) else {
            return Err("nothing says where it came from; import it again: ctst images import".to_owned());
        };
        let ownership = match source {
            Source::File(_) | Source::Host { .. } => ids.ownership(),
            _ => ids.archive_ownership(),
        };
        if let Some(damage) = damages.iter().find(|damage| damage.ownership != ownership) {
            let whose = match damage.ownership {
                Ownership::Caller => "the caller alone",
                Ownership::Shifted { .. } | Ownership::Subordinate { .. } => "another range of ids",
            };
            return Err(format!("it was imported for {whose}, which containers do not have now"));
        }
        let request = Request { source, ownership, pin: Some(entry.digest.trim_start_matches("sha256:")) };
        let replace: Vec<String> = damages.iter().map(|damage| damage.layer.clone()).collect();
        match bring(&project, &request, &entry.reference, &replace, unpacker, progress) {
            Ok(_) => Ok(()),
            Err(ImageError::Pin { found, .. }) => Err(format!("its source has another digest by now, sha256:{found}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The layers that running containers have, each with one of them.
    fn busy_layers(&self) -> Result<BTreeMap<PathBuf, String>> {
        let live: Vec<String> =
            self.status()?.into_iter().filter(|status| status.state.is_live()).map(|status| status.component).collect();
        let records = self.records()?.into_iter().filter(|record| live.contains(&record.spec.name));
        let layers = records.flat_map(|record| {
            let name = record.spec.name;
            record.spec.layers.into_iter().map(move |layer| (layer, name.clone()))
        });
        Ok(layers.collect())
    }

    /// What a reference of the store stands for, and the project from which it is imported: of an image of a bundle that is the bundle.
    fn source_of(&self, reference: &str) -> Option<(Source, Self)> {
        let (scheme, rest) = reference.split_once("://")?;
        let source = match scheme {
            "file" => Source::File(rest.into()),
            "tar" => Source::Tar(rest.into()),
            "oci" => match rest.split_once("@sha256:") {
                Some((name, digest)) => Source::Registry { name: name.to_owned(), digest: Some(digest.to_owned()) },
                None => Source::Registry { name: rest.to_owned(), digest: None },
            },
            "host" => {
                let (programs, include) = rest.split_once(" + ").unwrap_or((rest, ""));
                let include = include.split(", ").filter(|glob| !glob.is_empty()).map(str::to_owned).collect();
                Source::Host { programs: programs.split(',').map(PathBuf::from).collect(), include }
            }
            "bundle" => {
                let (image, digest) = rest.rsplit_once("@sha256:")?;
                let project = self.bundle_with(digest).ok()??;
                let source = Source::Bundled { image: image.to_owned(), digest: digest.to_owned() };
                return Some((source, project));
            }
            _ => return None,
        };
        Some((source, self.clone()))
    }

    /// The bundle of the folder that has the image of this digest.
    fn bundle_with(&self, digest: &str) -> Result<Option<Self>> {
        let list = std::fs::read_dir(self.folder()).during(|| format!("list {}", self.folder().display()))?;
        for path in list.flatten().map(|entry| entry.path()).filter(|path| is_bundle(path)) {
            let Ok(project) = Self::locate(Some(&path)) else { continue };
            // Another that is damaged is not the one that is looked for.
            if let Ok(Some(bundle)) = project.bundle()
                && bundle.manifest().images.iter().any(|image| image.digest == digest)
            {
                return Ok(Some(project));
            }
        }
        Ok(None)
    }
}
