//! Which way a path of the author's takes: not by a link that a container of his own made.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use containust_lang::model::Composition;

use crate::error::{Error, Result};

/// As many links as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Folders of the host that components can write, canonical, each with the component.
pub(crate) fn writable(folder: &Path, composition: &Composition) -> Vec<(PathBuf, String)> {
    let of = |component: &containust_lang::model::Component| {
        let name = component.name.clone();
        let volumes = component.volumes.iter().filter(|volume| !volume.readonly && !volume.named);
        let places: Vec<_> = volumes.filter_map(|volume| folder.join(&volume.source).canonicalize().ok()).collect();
        places.into_iter().map(move |place| (place, name.clone()))
    };
    composition.components.iter().flat_map(of).collect()
}

/// Whether a link may be on the way to `path`, below a folder that is canonical: most often there is none.
pub(crate) fn has_links(path: &Path) -> bool {
    let plain: PathBuf = path.components().collect();
    path.canonicalize().is_ok_and(|whole| whole != plain)
}

/// Refuses a path that leaves a folder by a link in it, where a component can write that folder: it would decide what of the host
/// it, or another, is given.
///
/// # Errors
/// [`Error::Untrusted`].
pub(crate) fn check(path: &Path, writable: &[(PathBuf, String)]) -> Result<()> {
    let Ok(whole) = path.canonicalize() else { return Ok(()) };
    for place in links(path) {
        let left = writable.iter().find(|(folder, _)| place.starts_with(folder) && !whole.starts_with(folder));
        if let Some((folder, component)) = left {
            let (whole, folder) = (whole.display(), folder.display());
            let problem = format!("it leads to {whole} by a link in {folder}, which component {component} can write");
            return Err(Error::Untrusted { path: path.to_owned(), problem });
        }
    }
    Ok(())
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
        let is_good = |path: &str| check(&dir.join(path), &writable).is_ok();
        for path in ["out", "out/inner", "out/within", "own/else", "out/../else", "none", "out/loop"] {
            assert!(is_good(path), "{path}");
        }
        for path in ["out/away", "own/by", "out/within/../away/."] {
            assert!(!is_good(path), "{path}");
            assert!(has_links(&dir.join(path)));
        }
        assert!(!has_links(&dir.join("./out/inner")));
    }
}
