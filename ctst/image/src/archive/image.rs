//! The JSON documents of images: `docker save` (`manifest.json`) and OCI layouts (`index.json`).

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

use super::{Limits, Listing, MAX_DOCUMENT, Wanted, plain};
use crate::Error;
use crate::error::text;
use crate::model::{Config, Declared, Healthcheck};
use crate::source::{hex, is_digest};
use crate::unpack;

/// An index may name an index; more than this many levels is a joke.
pub(crate) const MAX_INDEX_DEPTH: usize = 4;
/// Symbolic links from one layer of an archive to another.
const MAX_LINKS: usize = 8;
/// How many of an archive's images or platforms an error names.
const MAX_NAMED: usize = 10;

/// The image of an archive that is to be imported.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selected {
    /// As the archive writes them.
    pub(crate) names: Vec<String>,
    pub(crate) config: Config,
    pub(crate) declared: Declared,
    /// The lowest first; none is there twice.
    pub(crate) layers: Vec<Blob>,
}

/// A layer's archive inside the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    /// In the outer archive.
    pub(crate) name: Vec<u8>,
    /// SHA-256 of the uncompressed layer.
    pub(crate) diff: String,
    /// SHA-256 of the blob as it is, where the image tells.
    pub(crate) digest: Option<String>,
}

#[derive(Deserialize)]
struct DockerManifest {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<Unique<String>>,
}

#[derive(Deserialize, Clone, PartialEq, Eq)]
pub(crate) struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    pub(crate) variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", text(&self.os), text(&self.architecture))?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{}", text(variant)))
    }
}

impl Platform {
    pub(crate) fn is_ours(&self) -> bool {
        self.os == "linux" && self.architecture == architecture()
    }
}

#[derive(Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// The configuration document, the same for both kinds.
#[derive(Deserialize)]
struct Document {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    config: Option<Settings>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    working_dir: Option<String>,
    exposed_ports: Option<Unique<Option<Nothing>>>,
    volumes: Option<Unique<Option<Nothing>>>,
    labels: Option<Unique<String>>,
    stop_signal: Option<String>,
    healthcheck: Option<Check>,
}

#[derive(Deserialize, Clone)]
struct Nothing {}

/// A list; very old images have a single word.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    List(Vec<String>),
    One(String),
}

impl Words {
    fn list(self) -> Vec<String> {
        match self {
            Words::List(words) => words,
            Words::One(word) => vec![word],
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    test: Option<Vec<String>>,
    interval: Option<i64>,
    timeout: Option<i64>,
    start_period: Option<i64>,
    start_interval: Option<i64>,
    retries: Option<i64>,
}

/// A map in which no key is there twice: programs differ in which one they would take.
#[derive(Debug, Clone)]
struct Unique<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
            type Value = Unique<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Unique<T>, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = entries.next_entry::<String, T>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format!("duplicate key `{key}`")));
                    }
                    map.insert(key, value);
                }
                Ok(Unique(map))
            }
        }
        deserializer.deserialize_map(Map(PhantomData))
    }
}

/// Of layers with these digests, those that count, the lowest first: the kernel takes no folder twice, and what a layer does above
/// itself is all that is seen of it.
pub(crate) fn kept(diffs: &[String]) -> Vec<usize> {
    (0..diffs.len()).filter(|index| !diffs[index + 1..].contains(&diffs[*index])).collect()
}

/// The image that is in an archive; `None`: it holds files that are none.
pub(crate) fn select(
    listing: &Listing,
    archive: &Path,
    limits: &Limits,
    wanted: &Wanted<'_>,
) -> Result<Option<Selected>, Error> {
    let reader = Reader { listing, archive, limits, wanted: *wanted };
    let has = |name: &str| listing.documents.contains_key(name.as_bytes());
    match (has("oci-layout") && has("index.json"), listing.documents.get(&b"manifest.json"[..]).map(Vec::as_slice)) {
        (true, _) => reader.oci().map(Some),
        // Other programs' manifests are objects.
        (false, Some([b'[', ..])) => reader.docker().map(Some),
        // Without its list an image would become a root file system of archives, in which nothing can be started.
        _ if listing.files.keys().any(|path| path.starts_with(b"blobs/sha256/") || path.ends_with(b".tar"))
            && ["manifest.json", "index.json", "oci-layout", "repositories"]
                .iter()
                .any(|name| listing.files.contains_key(name.as_bytes())) =>
        {
            Err(reader.bad("has layers of an image and no list of them that is understood"))
        }
        _ => Ok(None),
    }
}

struct Reader<'a> {
    listing: &'a Listing,
    archive: &'a Path,
    limits: &'a Limits,
    wanted: Wanted<'a>,
}

impl Reader<'_> {
    fn docker(&self) -> Result<Selected, Error> {
        let manifests: Vec<DockerManifest> = self.document(b"manifest.json")?;
        let [manifest] = &manifests[..] else {
            return Err(self.several(
                manifests.iter().map(|m| m.tags.iter().flatten().map(|tag| text(tag)).collect::<Vec<_>>().join(" ")),
            ));
        };
        let name = plain(manifest.config.as_bytes());
        let digest = manifest.config.rsplit('/').next().unwrap_or_default();
        let digest = digest.strip_suffix(".json").unwrap_or(digest);
        if is_digest(digest) {
            self.check_document(&name, digest)?;
        }
        let document: Document = self.document(&name)?;
        let layers = manifest.layers.iter().flatten();
        let layers = layers.map(|layer| Ok((self.follow(layer)?, None))).collect::<Result<_, Error>>()?;
        let names = manifest.tags.iter().flatten().cloned().collect();
        self.selected(names, document, layers)
    }

    fn oci(&self) -> Result<Selected, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Layout {
            image_layout_version: String,
        }
        let layout: Layout = self.document(b"oci-layout")?;
        if !layout.image_layout_version.starts_with("1.") {
            return Err(self.bad(&format!(
                "is an OCI layout of version {}, which is not understood",
                text(&layout.image_layout_version)
            )));
        }
        let index: Index = self.document(b"index.json")?;
        let mut found = Vec::new();
        self.collect(&index, 0, &mut HashSet::new(), &mut found)?;
        if let Some(digest) = self.wanted.image {
            found.retain(|(descriptor, _)| descriptor.digest.strip_prefix("sha256:") == Some(digest));
            if found.is_empty() {
                return Err(self.bad(&format!("holds no image sha256:{}", text(digest))));
            }
        }
        let mut platforms = Vec::new();
        let mut ours = Vec::new();
        for (descriptor, name) in found {
            let manifest: Manifest = self.blob_document(&descriptor)?;
            // Attestations are manifests without a runnable platform.
            let platform = match descriptor.platform {
                Some(platform) => platform,
                None => self.blob_document(&manifest.config)?,
            };
            match platform.is_ours() {
                true => ours.push((manifest, name)),
                false => platforms.push(platform.to_string()),
            }
        }
        if ours.is_empty() {
            return Err(self.other_platform(platforms));
        }
        let [(manifest, name)] = &ours[..] else {
            return Err(self.several(ours.iter().map(|(_, name)| name.clone())));
        };
        let document: Document = self.blob_document(&manifest.config)?;
        let layers = manifest.layers.iter().map(|layer| {
            let kind = &layer.media_type;
            if !kind.contains("tar") || kind.contains("encrypted") {
                return Err(self.bad(&format!("has a layer of type `{}`, which is not understood", text(kind))));
            }
            let (name, digest) =
                match self.wanted.absent.is_empty() || self.listing.files.contains_key(&self.place(layer)?.0) {
                    true => self.blob(layer)?,
                    false => self.place(layer)?,
                };
            Ok((name, Some(digest)))
        });
        let layers = layers.collect::<Result<_, _>>()?;
        // Some programs write only a tag, and without a name there is a digest.
        let names = Some(name.clone()).filter(|name| name.contains(':') && !name.contains("sha256:"));
        self.selected(names.into_iter().collect(), document, layers)
    }

    /// All manifests below an index, with a name for messages.
    fn collect(
        &self,
        index: &Index,
        depth: usize,
        seen: &mut HashSet<String>,
        found: &mut Vec<(Descriptor, String)>,
    ) -> Result<(), Error> {
        for descriptor in &index.manifests {
            // The same image under two names, or an index that leads back to itself.
            if !seen.insert(descriptor.digest.clone()) {
                continue;
            }
            let kind = &descriptor.media_type;
            // A file of an image for many platforms keeps the index of all and the blobs of one.
            let is_there = self.blob(descriptor).is_ok();
            if !is_there && depth > 0 {
                continue;
            }
            if kind.ends_with(".index.v1+json") || kind.ends_with(".manifest.list.v2+json") {
                if depth == MAX_INDEX_DEPTH {
                    return Err(self.bad(&format!("has indexes more than {MAX_INDEX_DEPTH} levels deep")));
                }
                self.collect(&self.blob_document(descriptor)?, depth + 1, seen, found)?;
                continue;
            }
            if descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown") {
                continue;
            }
            let annotation = |key| descriptor.annotations.as_ref().and_then(|all| all.0.get(key));
            let name =
                annotation("io.containerd.image.name").or_else(|| annotation("org.opencontainers.image.ref.name"));
            found.push((descriptor.clone(), text(name.unwrap_or(&descriptor.digest))));
        }
        Ok(())
    }

    fn selected(
        &self,
        names: Vec<String>,
        document: Document,
        blobs: Vec<(Vec<u8>, Option<String>)>,
    ) -> Result<Selected, Error> {
        let platform = Platform {
            architecture: document.architecture.unwrap_or_default(),
            os: document.os.unwrap_or_default(),
            variant: document.variant,
        };
        if !platform.is_ours() {
            return Err(self.other_platform(vec![platform.to_string()]));
        }
        let diffs = document.rootfs.diff_ids.unwrap_or_default();
        if diffs.len() != blobs.len() {
            return Err(self.bad(&format!("has {} layers and a config for {}", blobs.len(), diffs.len())));
        }
        if blobs.len() > self.limits.layers {
            let what = format!("has {} layers, {} are the most", blobs.len(), self.limits.layers);
            return Err(Error::TooLarge { archive: self.archive.into(), entry: None, what });
        }
        if blobs.is_empty() {
            return Err(self.bad("has no layers"));
        }
        let diffs = diffs.iter().map(|diff| self.sha256(diff)).collect::<Result<Vec<_>, _>>()?;
        let mut layers: Vec<Blob> = Vec::new();
        for index in kept(&diffs) {
            let ((name, digest), diff) = (blobs[index].clone(), diffs[index].clone());
            let shown = || text(&String::from_utf8_lossy(&name)).to_owned();
            if layers.iter().any(|lower| lower.name == name) {
                return Err(self.bad(&format!("has one layer `{}` for two digests", shown())));
            }
            if !self.listing.files.contains_key(&name)
                && !self.wanted.absent.contains(&unpack::key(&diff, layers.is_empty()))
            {
                return Err(self.bad(&format!("lacks the layer `{}`", shown())));
            }
            layers.push(Blob { name, diff, digest });
        }
        let (config, declared) = settings(document.config.unwrap_or_default());
        Ok(Selected { names, config, declared, layers })
    }

    /// A regular file of the archive, behind symbolic links to it.
    fn follow(&self, name: &str) -> Result<Vec<u8>, Error> {
        let mut path = plain(name.as_bytes());
        for _ in 0..MAX_LINKS {
            if self.listing.files.contains_key(&path) {
                return Ok(path);
            }
            let Some(target) = self.listing.links.get(&path) else { break };
            let mut parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
            parts.pop();
            for part in target.split(|b| *b == b'/') {
                match part {
                    b"" | b"." => {}
                    b".." => drop(parts.pop()),
                    name => parts.push(name),
                }
            }
            path = parts.join(&b'/');
        }
        Err(self.bad(&format!("lacks `{}`, which its manifest names", text(name))))
    }

    fn sha256(&self, digest: &str) -> Result<String, Error> {
        let digits = digest.strip_prefix("sha256:").filter(|digits| is_digest(digits));
        digits.map(str::to_ascii_lowercase).ok_or_else(|| {
            self.bad(&format!("names a digest that is not sha256 and 64 hexadecimal digits: `{}`", text(digest)))
        })
    }

    /// The name of a blob and its digest.
    fn place(&self, descriptor: &Descriptor) -> Result<(Vec<u8>, String), Error> {
        let digest = self.sha256(&descriptor.digest)?;
        Ok((format!("blobs/sha256/{digest}").into_bytes(), digest))
    }

    /// The same, if it is there in the right size.
    fn blob(&self, descriptor: &Descriptor) -> Result<(Vec<u8>, String), Error> {
        let (name, digest) = self.place(descriptor)?;
        match self.listing.files.get(&name) {
            None => Err(self.bad(&format!("lacks the blob sha256:{digest}, which it names"))),
            Some(size) if *size != descriptor.size => {
                let wanted = descriptor.size;
                Err(self.bad(&format!("has a blob sha256:{digest} of {size} bytes, where {wanted} are announced")))
            }
            Some(_) => Ok((name, digest)),
        }
    }

    fn blob_document<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, Error> {
        let (name, digest) = self.blob(descriptor)?;
        self.check_document(&name, &digest)?;
        self.document(&name)
    }

    fn check_document(&self, name: &[u8], expected: &str) -> Result<(), Error> {
        let Some(bytes) = self.listing.documents.get(name) else { return Ok(()) };
        let found = hex(&Sha256::digest(bytes).into());
        match found.eq_ignore_ascii_case(expected) {
            true => Ok(()),
            false => Err(Error::BlobDigest {
                archive: self.archive.into(),
                blob: text(&String::from_utf8_lossy(name)),
                expected: expected.into(),
                found,
            }),
        }
    }

    fn document<T: DeserializeOwned>(&self, name: &[u8]) -> Result<T, Error> {
        let shown = text(&String::from_utf8_lossy(name));
        let Some(bytes) = self.listing.documents.get(name) else {
            return Err(match self.listing.files.get(name) {
                Some(size) if *size > MAX_DOCUMENT => {
                    self.bad(&format!("has a document `{shown}` of {size} bytes, {MAX_DOCUMENT} are the most"))
                }
                Some(_) => self.bad(&format!("has a file `{shown}` that is no JSON document, or too many of them")),
                None => self.bad(&format!("lacks `{shown}`, which its manifest names")),
            });
        };
        serde_json::from_slice(bytes)
            .map_err(|e| self.bad(&format!("has a bad document `{shown}`: {}", text(&e.to_string()))))
    }

    fn several(&self, names: impl Iterator<Item = String>) -> Error {
        let names: Vec<String> = names.take(MAX_NAMED).collect();
        match names.is_empty() {
            true => self.bad("holds no image"),
            false => Error::SeveralImages { archive: self.archive.into(), names },
        }
    }

    fn other_platform(&self, mut found: Vec<String>) -> Error {
        found.sort();
        found.dedup();
        found.truncate(MAX_NAMED);
        Error::Platform { archive: self.archive.into(), wanted: format!("linux/{}", architecture()), found }
    }

    fn bad(&self, why: &str) -> Error {
        Error::Archive { archive: self.archive.into(), why: why.into() }
    }
}

/// This machine's, as images call it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

fn settings(settings: Settings) -> (Config, Declared) {
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let keys = |map: Option<Unique<Option<Nothing>>>| map.map(|map| map.0.into_keys().collect()).unwrap_or_default();
    let config = Config {
        entrypoint: settings.entrypoint.map(Words::list).unwrap_or_default(),
        command: settings.cmd.map(Words::list).unwrap_or_default(),
        env: settings.env.unwrap_or_default(),
        user: some(settings.user),
        workdir: some(settings.working_dir),
    };
    let nanoseconds = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0);
    let healthcheck = settings.healthcheck.map(|check| Healthcheck {
        test: check.test.unwrap_or_default(),
        interval: nanoseconds(check.interval),
        timeout: nanoseconds(check.timeout),
        start_period: nanoseconds(check.start_period),
        start_interval: nanoseconds(check.start_interval),
        retries: check.retries.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0),
    });
    let declared = Declared {
        ports: keys(settings.exposed_ports),
        volumes: keys(settings.volumes),
        stop_signal: some(settings.stop_signal),
        healthcheck,
        labels: settings.labels.map(|labels| labels.0).unwrap_or_default(),
    };
    (config, declared)
}
