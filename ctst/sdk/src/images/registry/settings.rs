//! `registries.toml`: what is otherwise than usual with a registry. The user's own file counts before that of the host.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use containust_image::Error;
use containust_image::registry::{Credentials, Endpoint, Name};
use serde::Deserialize;

use super::credentials;
use crate::project::read_bounded;

/// The host's.
const SYSTEM: &str = "/etc/containust/registries.toml";
/// docker's registry, and where it is.
const DOCKER: (&str, &str) = ("docker.io", "registry-1.docker.io");

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    registry: BTreeMap<String, Registry>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registry {
    /// Hosts that have its images, too, each with a path in front of the image's if it wants one. They are asked before it, in this order.
    #[serde(default)]
    mirrors: Vec<String>,
    /// A file of certificates in PEM that are trusted there beside the system's.
    ca: Option<PathBuf>,
}

fn wrong(path: &Path, problem: &str) -> Error {
    Error::Registry {
        code: "I057",
        text: format!("read {}: {problem}", path.display()),
        help: Some("correct it; ctst-pull(1) has an example".to_owned()),
    }
}

/// Whether it is a host, with a port if need be, and with a path behind it if that may be.
fn is_place(place: &str, with_path: bool) -> bool {
    let mut parts = place.split('/');
    let authority = parts.next().unwrap_or_default();
    let (host, port) = authority.split_once(':').unwrap_or((authority, "443"));
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let path: Vec<&str> = parts.collect();
    is_word(host) && port.parse::<u16>().is_ok() && (with_path || path.is_empty()) && path.into_iter().all(is_word)
}

impl Settings {
    fn read(path: &Path) -> Result<Self, Error> {
        let bytes = match read_bounded(path) {
            Err(crate::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(crate::Error::Io { source, .. }) => return Err(wrong(path, &source.to_string())),
            other => other.map_err(|error| wrong(path, &error.to_string()))?,
        };
        let text = String::from_utf8(bytes).map_err(|error| wrong(path, &error.to_string()))?;
        let settings: Self = toml::from_str(&text).map_err(|error| wrong(path, error.message()))?;
        let mirrors = settings.registry.values().flat_map(|registry| &registry.mirrors);
        let hosts =
            settings.registry.keys().map(|host| (host.as_str(), false)).chain(mirrors.map(|m| (m.as_str(), true)));
        for (place, with_path) in hosts {
            if !is_place(place, with_path) {
                return Err(wrong(path, &format!("`{}` is no host with a port if need be", place.escape_debug())));
            }
        }
        Ok(settings)
    }

    fn load() -> Result<Self, Error> {
        let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
        let folder = folder.or_else(|| std::env::home_dir().map(|home| home.join(".config")));
        let mut settings = Self::read(Path::new(SYSTEM))?;
        if let Some(folder) = folder {
            settings.registry.extend(Self::read(&folder.join("containust/registries.toml"))?.registry);
        }
        Ok(settings)
    }

    fn endpoint(&self, host: &str, repository: String, problems: &mut Vec<String>) -> Result<Endpoint, Error> {
        let ca = self.registry.get(host).and_then(|registry| registry.ca.as_deref());
        let authority = ca.map(|path| {
            let bytes = read_bounded(path).map_err(|error| wrong(path, &error.to_string()))?;
            match String::from_utf8(bytes) {
                Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => Ok(text),
                _ => Err(wrong(path, "it has no certificate in PEM")),
            }
        });
        let authority = authority.transpose()?;
        let scheme = if Name::is_loopback(host) && authority.is_none() { "http" } else { "https" };
        let place = if host == DOCKER.0 { DOCKER.1 } else { host };
        let credentials = credentials::find(host, problems);
        Ok(Endpoint { base: format!("{scheme}://{place}"), repository, authority, credentials })
    }
}

/// The registry itself, asked as these.
pub(super) fn endpoint_as(host: &str, credentials: Credentials) -> Result<Endpoint, Error> {
    let endpoint = Settings::load()?.endpoint(host, String::new(), &mut Vec::new())?;
    Ok(Endpoint { credentials: Some(credentials), ..endpoint })
}

/// Where an image may be: the mirrors of its registry, and that itself as the last; and why credentials could not be had.
pub(super) fn endpoints(name: Name<'_>) -> Result<(Vec<Endpoint>, Vec<String>), Error> {
    let settings = Settings::load()?;
    let mut problems = Vec::new();
    let mut endpoints = Vec::new();
    for mirror in settings.registry.get(name.registry).into_iter().flat_map(|registry| &registry.mirrors) {
        let (host, path) = mirror.split_once('/').unwrap_or((mirror, ""));
        let separator = if path.is_empty() { "" } else { "/" };
        let repository = format!("{path}{separator}{}", name.repository);
        endpoints.push(settings.endpoint(host, repository, &mut problems)?);
    }
    endpoints.push(settings.endpoint(name.registry, name.repository.to_owned(), &mut problems)?);
    Ok((endpoints, problems))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_strictly() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(dir.path().join("r"), text).unwrap();
            Settings::read(&dir.path().join("r"))
        };
        assert_eq!(Settings::read(&dir.path().join("none")).unwrap(), Settings::default());
        let good =
            read("[registry.\"docker.io\"]\nmirrors = [\"mirror.example:5000/hub\"]\nca = \"/etc/ca.pem\"\n").unwrap();
        assert_eq!(good.registry["docker.io"].mirrors, ["mirror.example:5000/hub"]);
        for bad in [
            "[registries]\n",
            "[registry.\"docker.io\"]\nmirror = []\n",
            "[registry.\"https://docker.io\"]\n",
            "[registry.\"docker.io\"]\nmirrors = [\"https://mirror.example\"]\n",
            "[registry.\"docker.io\"]\nmirrors = [\"mirror.example/\"]\n",
            "[registry.\"docker.io\"]\nmirrors = [\"user@mirror.example\"]\n",
            "[registry.\"\"]\n",
            "\u{0}",
        ] {
            assert_eq!(read(bad).unwrap_err().code(), "I057", "{bad}");
        }
    }
}
