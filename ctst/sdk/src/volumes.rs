//! Named volumes: folders in `.containust/volumes/` that are kept until somebody removes them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use containust_lang::model::NamedVolume;
use containust_shared::names::is_name;
use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Result};
use crate::project::{Project, now};
use crate::record::{self, Stored};

/// Version of [`Note`].
const SCHEMA: u64 = 1;

/// One row of `ctst volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Where it is on the host.
    pub path: PathBuf,
    /// When it was first wanted, in milliseconds since 1970.
    pub created: Option<u64>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Components of which there is a container with it, running or not.
    pub used_by: Vec<String>,
}

/// What is kept beside a volume's folder, in `NAME.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    schema: u64,
    created: u64,
    labels: BTreeMap<String, String>,
}

impl Project {
    pub(crate) fn volumes_dir(&self) -> PathBuf {
        self.state_dir().join("volumes")
    }

    /// The named volumes of the project, alphabetically.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::NewerState`].
    pub fn volumes(&self) -> Result<Vec<VolumeStatus>> {
        let mut users = users(self)?;
        let status = |name: String| {
            let note = read_note(self, &name)?;
            let used_by = users.remove(&name).unwrap_or_default();
            let path = self.volumes_dir().join(&name);
            let (created, labels) = note.map_or((None, BTreeMap::new()), |note| (Some(note.created), note.labels));
            Ok(VolumeStatus { name, path, created, labels, used_by })
        };
        names(self)?.into_iter().map(status).collect()
    }
}

/// Volumes of which there is a folder, alphabetically.
pub(crate) fn names(project: &Project) -> Result<Vec<String>> {
    record::list(&project.volumes_dir())
}

/// Which containers use a volume, as far as their records tell.
pub(crate) fn users(project: &Project) -> Result<BTreeMap<String, Vec<String>>> {
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in record::list(&project.containers_dir())? {
        if let Some(Stored::Record(record)) = record::read(&project.container_dir(&name), project.identity())? {
            for volume in record.spec.volume_names() {
                let users = users.entry(volume.to_owned()).or_default();
                if !users.contains(&name) {
                    users.push(name.clone());
                }
            }
        }
    }
    Ok(users)
}

fn note_path(project: &Project, name: &str) -> PathBuf {
    project.volumes_dir().join(format!("{name}.json"))
}

/// A note that cannot be read says nothing, and is written anew.
fn read_note(project: &Project, name: &str) -> Result<Option<Note>> {
    let path = note_path(project, name);
    let bytes = match std::fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.during(|| format!("read {}", path.display()))?,
    };
    match serde_json::from_slice::<Note>(&bytes) {
        Ok(note) if note.schema > SCHEMA => Err(Error::NewerState { path, found: note.schema, known: SCHEMA }),
        Ok(note) => Ok(Some(note)),
        Err(_) => Ok(None),
    }
}

/// Remembers a volume of a composition and its labels.
pub(crate) fn note(project: &Project, volume: &NamedVolume) -> Result<()> {
    if !is_name(&volume.name) {
        return Err(Error::protocol(format!("`{}` is no name of a volume", volume.name.escape_debug())));
    }
    let labels = volume.labels.iter().cloned().collect();
    let old = read_note(project, &volume.name)?;
    if old.as_ref().is_some_and(|old| old.labels == labels) {
        return Ok(());
    }
    let note = Note { schema: SCHEMA, created: old.map_or_else(now, |old| old.created), labels };
    create_dir(&project.volumes_dir(), 0o700)?;
    let path = note_path(project, &volume.name);
    let temporary = path.with_extension("tmp");
    let what = || format!("write {}", path.display());
    let json = serde_json::to_vec(&note).map_err(|e| Error::protocol(e.to_string()))?;
    let mut options = std::fs::File::options();
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut file = options
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .custom_flags(flags)
        .open(&temporary)
        .during(what)?;
    file.write_all(&json).and_then(|()| std::fs::rename(&temporary, &path)).during(what)
}

/// Forgets what [`note`] remembered.
pub(crate) fn forget(project: &Project, name: &str) -> Result<()> {
    let path = note_path(project, name);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.during(|| format!("remove {}", path.display())),
    }
}

/// Makes a folder of exactly this mode; one that is there is fine.
pub(crate) fn create_dir(path: &Path, mode: u32) -> Result<()> {
    let what = || format!("create {}", path.display());
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        // The caller's umask must not decide what is readable inside.
        other => other.and_then(|()| std::fs::set_permissions(path, PermissionsExt::from_mode(mode))).during(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_labels_and_when() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("stack.ctst"), "").unwrap();
        let project = Project::locate(Some(&dir.path().join("stack.ctst"))).unwrap();
        project.create_state_dir().unwrap();
        assert_eq!(project.volumes().unwrap(), []);
        let volume = |value: &str| NamedVolume { name: "data".into(), labels: vec![("a".into(), value.into())] };
        note(&project, &volume("1")).unwrap();
        assert_eq!(project.volumes().unwrap(), [], "nothing is there yet");
        std::fs::create_dir(project.volumes_dir().join("data")).unwrap();
        std::fs::create_dir(project.volumes_dir().join(".new-other")).unwrap();
        let first = project.volumes().unwrap();
        assert_eq!((first.len(), first[0].labels["a"].as_str()), (1, "1"));
        note(&project, &volume("2")).unwrap();
        let second = project.volumes().unwrap();
        assert_eq!((second[0].created, second[0].labels["a"].as_str()), (first[0].created, "2"));
        std::fs::write(project.volumes_dir().join("data.json"), "{").unwrap();
        assert_eq!(project.volumes().unwrap()[0].created, None);
        std::fs::write(project.volumes_dir().join("data.json"), r#"{"schema":2,"created":0,"labels":{}}"#).unwrap();
        assert!(matches!(project.volumes(), Err(Error::NewerState { .. })));
        forget(&project, "data").unwrap();
        forget(&project, "data").unwrap();
        assert!(note(&project, &NamedVolume { name: "../x".into(), labels: vec![] }).is_err());
    }
}
