//! Whether a container's writable layer holds something that would be missed.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::error::Result;
use crate::project::Project;
use crate::record::{self, Stored};
use crate::spec::{ContainerSpec, ROOT};

/// A layer with more folders and files than this, all empty, is taken for one with data.
const MAX_ENTRIES: usize = 10_000;

/// Whether replacing or removing the container in `dir` loses data: the volumes of its image hold anything that the image has
/// not, or its root was writable, and in its layer is anything but folders and the empty files that were made to mount on. What cannot be looked into counts as data, and so does
/// everything of a container whose record cannot be read (`spec` is none), except empty files.
pub(crate) fn holds_data(dir: &Path, spec: Option<&ContainerSpec>) -> bool {
    let mut places: HashSet<PathBuf> = ["etc/hosts", "etc/hostname", "etc/resolv.conf"].map(PathBuf::from).into();
    if let Some(spec) = spec {
        // Where an image has a link to what systemd-resolved would write, the mount is on what that leads to.
        let links = spec.layers.iter().filter_map(|layer| std::fs::read_link(layer.join("etc/resolv.conf")).ok());
        places.extend(links.map(|to| within(Path::new("etc"), &to)));
        let is_new = |(place, target): &(PathBuf, String)| {
            place.symlink_metadata().is_ok() && !is_copy(place, target, &spec.layers)
        };
        if spec.kept_in(dir).iter().any(is_new) {
            return true;
        }
        if spec.readonly {
            return false;
        }
        // Nor can it in a copy of the whole image.
        if dir.join(ROOT).symlink_metadata().is_ok() {
            return true;
        }
        let targets = spec.volumes.iter().map(|volume| &volume.target);
        let targets = targets.chain(spec.secrets.iter().map(|file| &file.target));
        let targets = targets.chain(spec.configs.iter().map(|file| &file.target));
        places.extend(targets.map(|target| PathBuf::from(target.trim_matches('/'))));
    }
    let upper = dir.join("upper");
    let mut open = vec![PathBuf::new()];
    let mut seen = 0;
    while let Some(folder) = open.pop() {
        let entries = match std::fs::read_dir(upper.join(&folder)) {
            Ok(entries) => entries,
            // A running container changes what is looked at, and one that never started has no layer.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => return true,
        };
        for entry in entries {
            let Ok(entry) = entry else { return true };
            let path = folder.join(entry.file_name());
            seen += 1;
            match entry.file_type() {
                _ if seen > MAX_ENTRIES => return true,
                Ok(kind) if kind.is_dir() => open.push(path),
                Ok(kind) if kind.is_file() && (spec.is_none() || places.contains(&path)) => {
                    if !entry.metadata().is_ok_and(|meta| meta.len() == 0) {
                        return true;
                    }
                }
                _ => return true,
            }
        }
    }
    false
}

/// Whether a volume holds only what the image has at `target`, which was copied there with its times. What cannot be looked
/// into is taken for other.
fn is_copy(volume: &Path, target: &str, layers: &[PathBuf]) -> bool {
    let mut open = vec![PathBuf::new()];
    let mut seen = 0;
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(volume.join(&folder)) else { return false };
        for entry in entries {
            let Ok(entry) = entry else { return false };
            let path = folder.join(entry.file_name());
            seen += 1;
            let of = Path::new(target.trim_matches('/')).join(&path);
            let original =
                layers.iter().find_map(|layer| Some(layer.join(&of)).filter(|of| of.symlink_metadata().is_ok()));
            let Some(original) = original.filter(|_| seen <= MAX_ENTRIES) else { return false };
            let (Ok(meta), Ok(was)) = (entry.metadata(), original.symlink_metadata()) else { return false };
            let is_same = match meta.file_type() {
                kind if kind != was.file_type() => false,
                kind if kind.is_dir() => {
                    open.push(path);
                    true
                }
                kind if kind.is_symlink() => std::fs::read_link(entry.path())
                    .ok()
                    .is_some_and(|to| std::fs::read_link(&original).is_ok_and(|was| was == to)),
                kind if kind.is_file() => {
                    (meta.len(), meta.mtime(), meta.mtime_nsec()) == (was.len(), was.mtime(), was.mtime_nsec())
                }
                _ => false,
            };
            if !is_same {
                return false;
            }
        }
    }
    true
}

/// The same of a component's container, by its record on disk.
pub(crate) fn loses(project: &Project, name: &str) -> Result<bool> {
    let dir = project.container_dir(name);
    Ok(match record::read(&dir, project.identity())? {
        Some(Stored::Record(record)) => holds_data(&dir, Some(&record.spec)),
        Some(Stored::Unknown(_)) | None => holds_data(&dir, None),
    })
}

/// Where a link in `folder` leads that says `to`, as the container sees it.
fn within(folder: &Path, to: &Path) -> PathBuf {
    let mut place = if to.is_absolute() { PathBuf::new() } else { folder.to_owned() };
    for part in to.components() {
        match part {
            Component::Normal(name) => place.push(name),
            Component::ParentDir => drop(place.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::spec;

    #[test]
    fn tells_what_an_image_has_from_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower, volume) = (dir.path().join("upper"), dir.path().join("lower"), dir.path().join("volumes/0"));
        for folder in [&upper.join("srv/data"), &lower.join("srv/data/sub"), &volume.join("sub")] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(lower.join("srv/data/seed"), "old").unwrap();
        std::fs::write(upper.join("srv/data/seed"), "seed").unwrap();
        std::os::unix::fs::symlink("seed", lower.join("srv/data/sub/link")).unwrap();
        let mut spec = spec("db");
        (spec.layers, spec.kept) = (vec![upper.clone(), lower], vec!["/srv/data".to_owned()]);
        let holds = || holds_data(dir.path(), Some(&spec));
        assert!(!holds());
        let seed = volume.join("seed");
        let copy = || {
            std::fs::write(&seed, "seed").unwrap();
            let time = upper.join("srv/data/seed").metadata().unwrap().modified().unwrap();
            std::fs::File::options().write(true).open(&seed).unwrap().set_modified(time).unwrap();
        };
        copy();
        std::os::unix::fs::symlink("seed", volume.join("sub/link")).unwrap();
        assert!(!holds());
        std::fs::write(&seed, "SEED").unwrap();
        assert!(holds());
        copy();
        assert!(!holds());
        std::fs::write(volume.join("sub/new"), "").unwrap();
        assert!(holds());
    }

    #[test]
    fn tells_data_from_places_to_mount_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut writable = spec("web");
        assert!(!holds_data(dir.path(), Some(&writable)) && !holds_data(dir.path(), None));
        writable.readonly = false;
        let upper = dir.path().join("upper");
        std::fs::create_dir_all(upper.join("etc")).unwrap();
        std::fs::create_dir_all(upper.join("run/empty")).unwrap();
        std::fs::write(upper.join("etc/hosts"), "").unwrap();
        assert!(!holds_data(dir.path(), Some(&writable)) && !holds_data(dir.path(), None));
        writable.layers = vec![dir.path().join("layer")];
        std::fs::create_dir_all(dir.path().join("layer/etc")).unwrap();
        let stub = "../run/systemd/resolve/stub-resolv.conf";
        std::os::unix::fs::symlink(stub, dir.path().join("layer/etc/resolv.conf")).unwrap();
        std::fs::create_dir_all(upper.join("run/systemd/resolve")).unwrap();
        std::fs::write(upper.join(&stub[3..]), "").unwrap();
        assert!(!holds_data(dir.path(), Some(&writable)));
        std::fs::write(upper.join("run/flag"), "").unwrap();
        assert!(holds_data(dir.path(), Some(&writable)));
        assert!(!holds_data(dir.path(), None) && !holds_data(dir.path(), Some(&spec("web"))));
        std::fs::write(upper.join("run/flag"), "x").unwrap();
        assert!(holds_data(dir.path(), None));
        std::fs::remove_file(upper.join("run/flag")).unwrap();
        std::os::unix::fs::symlink("nowhere", upper.join("link")).unwrap();
        assert!(holds_data(dir.path(), Some(&writable)));
    }
}
