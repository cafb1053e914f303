//! Folders of the host that components mount: looked up once each, and kept apart from what is for no container.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Device and inode: a bind mount of the host gives a folder other paths.
type Id = (u64, u64);

/// The folders that no container may see ([`crate::project::Project::private_dirs`]), and what was found on the way to
/// others. For one run or plan: what was looked up may change.
#[derive(Debug, Default)]
pub(crate) struct Places {
    private: Vec<(PathBuf, Id)>,
    /// Folders above a private one: what of theirs is private.
    above: HashMap<Id, Vec<PathBuf>>,
    canonical: RefCell<HashMap<PathBuf, PathBuf>>,
    /// By folder, the private folder that it is or lies in.
    within: RefCell<HashMap<PathBuf, Option<usize>>>,
}

impl Places {
    pub(crate) fn new(private: Vec<PathBuf>) -> Self {
        let private: Vec<(PathBuf, Id)> =
            private.into_iter().filter_map(|place| id(&place).map(|id| (place, id))).collect();
        let mut above: HashMap<Id, Vec<PathBuf>> = HashMap::new();
        for (place, own) in &private {
            let mut seen = vec![*own];
            for folder in place.ancestors().skip(1) {
                if let (Some(id), Ok(below)) = (id(folder), place.strip_prefix(folder))
                    && !seen.contains(&id)
                {
                    seen.push(id);
                    above.entry(id).or_default().push(below.to_owned());
                }
            }
        }
        Self { private, above, ..Self::default() }
    }

    /// As `std::fs::canonicalize`, and which file it is; many paths in one folder cost little more than one.
    pub(crate) fn canonical(&self, path: &Path) -> io::Result<(PathBuf, Id)> {
        let elsewhere = || path.canonicalize().and_then(|whole| whole.metadata().map(|meta| (whole, of(&meta))));
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return elsewhere() };
        let known = self.canonical.borrow().get(parent).map(|folder| folder.join(name));
        let whole = match known {
            Some(whole) => whole,
            None => {
                let folder = parent.canonicalize()?;
                let whole = folder.join(name);
                self.canonical.borrow_mut().insert(parent.to_owned(), folder);
                whole
            }
        };
        let meta = whole.symlink_metadata()?;
        if meta.is_symlink() { elsewhere() } else { Ok((whole, of(&meta))) }
    }

    /// What a mount of `source`, which is canonical, would show of the private folders, as paths below it.
    pub(crate) fn shown(&self, component: &str, source: &Path) -> Result<&[PathBuf]> {
        id(source).map_or(Ok(&[]), |own| self.shown_of(component, source, own))
    }

    /// The same where it is known which file it is.
    pub(crate) fn shown_of(&self, component: &str, source: &Path, own: Id) -> Result<&[PathBuf]> {
        let inside = self.private.iter().position(|(_, id)| *id == own);
        let inside = inside.or_else(|| source.parent().and_then(|folder| self.within(folder)));
        if let Some((place, _)) = inside.and_then(|index| self.private.get(index)) {
            let (source, place) = (source.display(), place.display());
            let problem = format!("mount {source}: {place} belongs to ctst itself; choose another folder");
            return Err(Error::Invalid { component: component.to_owned(), problem });
        }
        Ok(self.above.get(&own).map(Vec::as_slice).unwrap_or_default())
    }

    fn within(&self, folder: &Path) -> Option<usize> {
        if let Some(known) = self.within.borrow().get(folder) {
            return *known;
        }
        let ids: Vec<Id> = folder.ancestors().filter_map(id).collect();
        let found = self.private.iter().position(|(_, id)| ids.contains(id));
        self.within.borrow_mut().insert(folder.to_owned(), found);
        found
    }
}

fn id(path: &Path) -> Option<Id> {
    path.metadata().ok().as_ref().map(of)
}

fn of(meta: &Metadata) -> Id {
    (meta.dev(), meta.ino())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn paths_are_those_of_the_standard_library() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/file"), "").unwrap();
        std::os::unix::fs::symlink("b", dir.join("a/link")).unwrap();
        std::os::unix::fs::symlink("a", dir.join("way")).unwrap();
        let places = Places::default();
        for path in ["a", "a/b", "a/file", "a/link", "way/link", "way/file", "a/../way", "a/b/..", "."] {
            let path = dir.join(path);
            let expected = path.canonicalize().unwrap();
            let file = id(&expected).unwrap();
            assert_eq!(places.canonical(&path).unwrap(), (expected, file), "{}", path.display());
        }
        for path in ["none", "a/none", "none/a", "a/file/x"] {
            let path = dir.join(path);
            let (ours, theirs) = (places.canonical(&path).unwrap_err(), path.canonicalize().unwrap_err());
            assert_eq!(ours.kind(), theirs.kind(), "{}", path.display());
        }
    }
}
