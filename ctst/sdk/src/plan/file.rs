//! A plan kept in a file, to be looked at by others and then carried out as it stands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use containust_lang::model::Composition;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::error::{During, Error, Result};
use crate::ipc::client::BUILD;
use crate::plan::Plan;
use crate::project::{Identity, Loaded, Project, read_bounded};

/// Version of [`SavedPlan`]. A newer one is refused.
const SCHEMA: u64 = 1;
const KIND: &str = "plan of ctst";
/// A plan of ten thousand components has about a quarter of that.
const MAX_PLAN: u64 = 128 << 20;

/// A plan as it stands in a file.
///
/// The digest in it tells a file that somebody edited from one that `ctst` wrote. It is no signature: who edits the file
/// can compute it, too.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPlan {
    schema: u64,
    kind: String,
    /// Version of the ctst that made it.
    ctst: String,
    project: Identity,
    /// The composition's file, absolute.
    file: PathBuf,
    /// SHA-256 of the composition's file and of what it imports, by name.
    sources: BTreeMap<String, String>,
    /// What it was made from besides, by component.
    state: BTreeMap<String, String>,
    /// With every parameter and reference resolved. Secrets stand in it by name only.
    pub composition: Composition,
    /// What was shown.
    pub plan: Plan,
}

impl Project {
    /// What a run of the loaded composition would do, with what it takes to keep it in a file.
    ///
    /// # Errors
    /// As [`Project::plan`], and [`Error::PlanFile`] for a composition with errors.
    pub fn plan_to_keep(&self, loaded: &Loaded) -> Result<SavedPlan> {
        let Some(composition) = loaded.outcome.composition.clone() else {
            let problem = "the composition has errors".to_owned();
            return Err(Error::PlanFile { path: self.file().to_owned(), problem });
        };
        let mut plan = self.plan_with(&composition, &composition, true)?;
        plan.tell(loaded);
        let imports = loaded.outcome.imports.iter().map(|import| (import.name.clone(), hex(import.text.as_bytes())));
        let own = (loaded.name.clone(), hex(&loaded.source));
        let sources = match self.bundle()? {
            // Its manifest has the digests of all that is in it.
            Some(bundle) => BTreeMap::from([(self.file_name(), bundle.identity().to_owned())]),
            None => std::iter::once(own).chain(imports).collect(),
        };
        Ok(SavedPlan {
            schema: SCHEMA,
            kind: KIND.to_owned(),
            ctst: BUILD.to_owned(),
            project: self.identity(),
            file: self.file().to_owned(),
            sources,
            state: plan.state.clone(),
            composition,
            plan,
        })
    }
}

impl SavedPlan {
    /// The content of its file.
    ///
    /// # Errors
    /// [`Error::Protocol`], which no plan gives.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut value = serde_json::to_value(self).map_err(|e| Error::protocol(e.to_string()))?;
        let digest = seal(&value);
        if let Value::Object(fields) = &mut value {
            fields.insert("digest".to_owned(), digest.into());
        }
        let mut bytes = serde_json::to_vec_pretty(&value).map_err(|e| Error::protocol(e.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// [`Error::PlanFile`] for what is none or was edited, [`Error::NewerState`], and [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self> {
        let what = || format!("read {}", path.display());
        let wrong = |problem: &str| Error::PlanFile { path: path.to_owned(), problem: problem.to_owned() };
        let meta = path.metadata().during(what)?;
        // Opening a FIFO would wait for a writer.
        if !meta.is_file() {
            return Err(wrong("it is not a regular file"));
        }
        if meta.len() > MAX_PLAN {
            return Err(Error::TooLarge { path: path.to_owned(), size: meta.len(), limit: MAX_PLAN });
        }
        let bytes = std::fs::read(path).during(what)?;
        let mut value: Value = serde_json::from_slice(&bytes).map_err(|_| wrong("it is no plan of ctst"))?;
        if value["kind"] != KIND {
            return Err(wrong("it is no plan of ctst"));
        }
        if let Some(found) = value["schema"].as_u64().filter(|schema| *schema > SCHEMA) {
            return Err(Error::NewerState { path: path.to_owned(), found, known: SCHEMA });
        }
        let told = value.as_object_mut().and_then(|fields| fields.remove("digest"));
        if told != Some(Value::from(seal(&value))) {
            return Err(wrong("it was changed after ctst wrote it"));
        }
        serde_json::from_value(value).map_err(|e| wrong(&format!("it is a plan of another version ({e})")))
    }

    /// The project that it is about.
    ///
    /// # Errors
    /// [`Error::PlanStale`] where the folder was replaced, copied or moved, and [`Error::Io`].
    pub fn project(&self) -> Result<Project> {
        let project = Project::locate(Some(&self.file))?;
        if project.identity() != self.project {
            return Err(stale(format!("{} is another folder now", project.folder().display())));
        }
        Ok(project)
    }

    /// The same plan made anew, with what a run needs of it, if it still holds.
    ///
    /// # Errors
    /// [`Error::PlanStale`] where a source, an image, a container or the caller's ids are not as they were, and as
    /// [`Project::plan`].
    pub fn hold(&self, project: &Project) -> Result<Plan> {
        let bundle = project.bundle()?;
        for (name, digest) in self.sources.iter().filter(|(name, _)| !name.contains("://")) {
            let found = match bundle {
                Some(bundle) => Some(bundle.identity().to_owned()),
                None => read_bounded(&project.folder().join(name)).ok().map(|bytes| hex(&bytes)),
            };
            if found.as_ref() != Some(digest) {
                return Err(stale(format!("{name} has changed")));
            }
        }
        let now = project.plan_with(&self.composition, &self.composition, true)?;
        let names: BTreeSet<&String> = now.state.keys().chain(self.state.keys()).collect();
        let moved: Vec<&str> = names
            .into_iter()
            .filter(|name| now.state.get(*name) != self.state.get(*name))
            .map(String::as_str)
            .collect();
        match moved.as_slice() {
            [] if now.ids != self.plan.ids => Err(stale(format!("user ids are mapped as {} now", now.ids))),
            [] => Ok(now),
            [one] => Err(stale(format!("{one} is not as it was"))),
            many => Err(stale(format!("{} are not as they were", many.join(", ")))),
        }
    }
}

fn stale(problem: String) -> Error {
    Error::PlanStale { problem }
}

/// Digest of a plan, whatever its layout: the keys of an object are in order.
fn seal(value: &Value) -> String {
    format!("sha256:{}", hex(value.to_string().as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
