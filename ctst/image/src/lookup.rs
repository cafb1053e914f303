//! What overlayfs would show of layers, without a mount of them.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::unpack::OPAQUE_ATTRIBUTE;

/// As many links as the kernel follows for one path (`path_resolution(7)`).
const MOST_LINKS: usize = 40;

/// Whether something is at `path` in `layers`, topmost first, as far as this process may see them. Links lead to what the layers
/// have and never to files of this host.
#[must_use]
pub fn has(layers: &[PathBuf], path: &Path) -> bool {
    let mut path = path.strip_prefix("/").unwrap_or(path).to_owned();
    for _ in 0..=MOST_LINKS {
        match walk(layers, &path) {
            Some(Way::There) => return true,
            Some(Way::Elsewhere(target)) => path = target,
            None => return false,
        }
    }
    false
}

enum Way {
    There,
    /// Where the first link of it leads.
    Elsewhere(PathBuf),
}

fn walk(layers: &[PathBuf], path: &Path) -> Option<Way> {
    // The folders that are one there, topmost first.
    let mut here = layers.to_vec();
    let mut before = PathBuf::new();
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else { return None };
        let (mut folders, mut other) = (Vec::new(), None);
        for folder in &here {
            let path = folder.join(name);
            let Ok(meta) = path.symlink_metadata() else { continue };
            let kind = meta.file_type();
            if kind.is_dir() {
                let is_opaque = is_opaque(&path);
                folders.push(path);
                if is_opaque {
                    break;
                }
                continue;
            }
            let is_whiteout = kind.is_char_device() && meta.rdev() == 0;
            if folders.is_empty() && !is_whiteout {
                other = Some((path, kind));
            }
            break;
        }
        let rest = parts.as_path();
        if let Some((path, kind)) = other {
            if kind.is_symlink() {
                return Some(Way::Elsewhere(led(before, &path.read_link().ok()?)?.join(rest)));
            }
            return rest.as_os_str().is_empty().then_some(Way::There);
        }
        if folders.is_empty() {
            return None;
        }
        before.push(name);
        here = folders;
    }
    Some(Way::There)
}

/// Where a link in `folder` leads to. `None`: `..` stands behind a name, which may be that of another link.
fn led(mut folder: PathBuf, target: &Path) -> Option<PathBuf> {
    let mut is_below = false;
    for part in target.components() {
        match part {
            Component::RootDir => folder.clear(),
            Component::ParentDir if is_below => return None,
            Component::ParentDir => drop(folder.pop()),
            Component::Normal(name) => {
                is_below = true;
                folder.push(name);
            }
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(folder)
}

/// Whether a folder takes away what lower layers have in it (`Documentation/filesystems/overlayfs.rst`).
fn is_opaque(folder: &Path) -> bool {
    let mut value = [0_u8; 1];
    rustix::fs::lgetxattr(folder, OPAQUE_ATTRIBUTE, &mut value[..]).is_ok() && value == *b"y"
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

    use super::*;

    fn seen(layers: &[PathBuf], path: &str) -> bool {
        has(layers, Path::new(path))
    }

    #[test]
    fn links_stay_in_the_layers_and_never_lead_to_this_host() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("host");
        fs::create_dir(&host).unwrap();
        fs::write(host.join("secret"), "").unwrap();
        let layers = [dir.path().join("top"), dir.path().join("low")];
        fs::create_dir_all(layers[0].join("app")).unwrap();
        fs::create_dir_all(layers[1].join("usr/lib")).unwrap();
        fs::write(layers[1].join("usr/lib/x.so"), "").unwrap();
        for (link, target) in [
            ("app/out", host.to_str().unwrap()),
            ("app/up", "../../host"),
            ("app/circle", "circle"),
            ("app/odd", "out/../usr"),
            ("app/last", "/none"),
            ("app/lib", "../lib"),
            ("lib", "usr/lib"),
        ] {
            symlink(target, layers[0].join(link)).unwrap();
        }
        assert!(layers[0].join("app/out/secret").exists() && layers[0].join("app/up/secret").exists());
        for path in [
            "/app/out/secret",
            "/app/up/secret",
            "/app/circle",
            "/app/odd/lib",
            "/usr/lib/x.so/y",
            "/a/../lib",
            "/app/last",
        ] {
            assert!(!seen(&layers, path), "{path}");
        }
        for path in ["/lib/x.so", "/app/lib/x.so", "/app/lib", "usr/lib"] {
            assert!(seen(&layers, path), "{path}");
        }
    }

    #[test]
    fn what_an_upper_layer_hides_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let layers = ["top", "middle", "low"].map(|name| dir.path().join(name));
        for (layer, file) in [
            (2, "etc/gone"),
            (2, "etc/kept"),
            (2, "srv/below"),
            (2, "opt/file/x"),
            (2, "back"),
            (1, "srv/middle"),
            (1, "opt/file"),
            (0, "srv/top"),
            (0, "etc/top"),
            (0, "back"),
        ] {
            let path = layers[layer].join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        setxattr(layers[1].join("srv"), OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty()).unwrap();
        setxattr(layers[1].join("opt"), OPAQUE_ATTRIBUTE, b"x", XattrFlags::empty()).unwrap();
        for there in ["etc/kept", "etc/top", "srv/top", "srv/middle", "opt/file", "back"] {
            assert!(seen(&layers, there), "{there}");
        }
        for hidden in ["srv/below", "opt/file/x"] {
            assert!(!seen(&layers, hidden), "{hidden}");
        }
        fs::create_dir_all(layers[1].join("etc")).unwrap();
        for gone in ["etc/gone", "back"] {
            let made = mknodat(CWD, layers[1].join(gone), FileType::CharacterDevice, Mode::empty(), 0);
            made.expect("make a whiteout, which everybody may since Linux 5.8");
        }
        assert!(!seen(&layers, "etc/gone") && seen(&layers, "back"));
    }
}
