//! Which way a path of the author's takes: not by a link that a container of his own made.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use containust_lang::model;

use crate::error::{Error, Result};
use crate::project::Project;
use crate::record::{self, Stored};

/// As many links as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Checks the ways of paths that a composition names.
pub(crate) struct Ways<'a> {
    project: &'a Project,
    components: &'a [model::Component],
    /// [`writable`], once somebody wants to know.
    writable: OnceCell<Vec<(PathBuf, String)>>,
}

impl<'a> Ways<'a> {
    /// `components`: all of the composition.
    pub(crate) fn new(project: &'a Project, components: &'a [model::Component]) -> Self {
        Self { project, components, writable: OnceCell::new() }
    }

    /// [`check`] of a path, relative to the project's folder, which led to `whole`, or leads there now.
    ///
    /// # Errors
    /// [`Error::Led`].
    pub(crate) fn check(&self, path: impl AsRef<Path>, whole: Option<&Path>) -> Result<()> {
        let path = self.project.folder().join(path);
        let now = if whole.is_none() { path.canonicalize().ok() } else { None };
        match whole.or(now.as_deref()) {
            Some(whole) if path != whole => {
                check(&path, whole, self.writable.get_or_init(|| writable(self.project, self.components)))
            }
            _ => Ok(()),
        }
    }
}

/// Folders of the host that components can write, canonical, each with the component: those of these, and those of
/// containers that there are, of whatever file, which may have written before somebody changed his mind.
pub(crate) fn writable<'a>(
    project: &Project,
    components: impl IntoIterator<Item = &'a model::Component>,
) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for component in components {
        for volume in component.volumes.iter().filter(|volume| !volume.readonly && !volume.named) {
            let place = project.folder().join(&volume.source).canonicalize();
            found.extend(place.ok().map(|place| (place, component.name.clone())));
        }
    }
    for name in record::list(&project.containers_dir()).unwrap_or_default() {
        if let Ok(Some(Stored::Record(record))) = record::read(&project.container_dir(&name), project.identity()) {
            let binds = record.spec.volumes.iter().filter(|bind| !bind.readonly && !bind.named);
            found.extend(binds.map(|bind| (bind.source.clone(), name.clone())));
        }
    }
    found
}

/// Refuses a path that leaves a folder by a link in it, where a component can write that folder: it would decide what of the host
/// it, or another, is given. `whole`: to what it led when it was opened or looked up. A link that has gone since shows by that alone.
///
/// # Errors
/// [`Error::Led`].
pub(crate) fn check(path: &Path, whole: &Path, writable: &[(PathBuf, String)]) -> Result<()> {
    let places = links(path).into_iter().chain([normal(path)]);
    for place in places {
        let left = writable.iter().find(|(folder, _)| place.starts_with(folder) && !whole.starts_with(folder));
        if let Some((folder, component)) = left {
            let (path, to, folder) = (path.to_owned(), whole.to_owned(), folder.clone());
            return Err(Error::Led { path, to, folder, component: component.clone() });
        }
    }
    Ok(())
}

/// As it would be without links: `..` takes back what is before it.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

/// The folders, canonical, of all links on the way to `path`.
fn links(path: &Path) -> Vec<PathBuf> {
    let words = |path: &Path| path.components().map(|part| part.as_os_str().to_owned()).collect::<Vec<OsString>>();
    let mut todo = VecDeque::from(words(path));
    let (mut at, mut found) = (PathBuf::from("/"), Vec::new());
    while let Some(word) = todo.pop_front() {
        match Path::new(&word).components().next() {
            Some(Component::RootDir) => at = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(at.pop()),
            Some(Component::Normal(name)) => match at.join(name).read_link() {
                Ok(to) if found.len() < MOST_LINKS => {
                    found.push(at.clone());
                    words(&to).into_iter().rev().for_each(|word| todo.push_front(word));
                }
                _ => at.push(name),
            },
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_in_a_folder_that_a_component_writes_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for folder in ["out/inner", "else", "own"] {
            std::fs::create_dir_all(dir.join(folder)).unwrap();
        }
        let writable = [(dir.join("out"), "builder".to_owned())];
        symlink("../else", dir.join("out/away")).unwrap();
        symlink("inner", dir.join("out/within")).unwrap();
        symlink(dir.join("out/away"), dir.join("own/by")).unwrap();
        symlink("../else", dir.join("own/else")).unwrap();
        symlink("loop", dir.join("out/loop")).unwrap();
        let led = |path: &str, whole: &Path| check(&dir.join(path), whole, &writable).is_err();
        for path in ["out", "out/inner", "out/within", "own/else", "out/../else"] {
            assert!(!led(path, &dir.join(path).canonicalize().unwrap()), "{path}");
        }
        for path in ["out/away", "own/by", "out/within/../away/."] {
            let whole = dir.join(path).canonicalize().unwrap();
            assert!(led(path, &whole), "{path}");
        }
        // One that was there for a moment only.
        assert!(led("out/inner", &dir.join("else")));
        assert!(!led("out/loop", &dir.join("out/loop")));
    }
}
