//! Records of the catalogue: one JSON file for each reference and id map.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::distroless::Kept;
use crate::hash::Algorithm;
use crate::host::Watch;
use crate::model::{Config, Declared, Ownership};
use crate::source::{is_digest, map_key};

/// Version of [`Record`]. A newer one is refused. In 1, the digests of trees were SHA-256 and did not say so.
pub(crate) const SCHEMA: u64 = 2;
/// Largest record that is read. One of a host image with 100,000 files has 8 MB.
const MAX_RECORD: u64 = 256 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) schema: u64,
    pub(crate) reference: String,
    /// 64 hexadecimal digits.
    pub(crate) digest: String,
    pub(crate) ownership: Ownership,
    pub(crate) config: Config,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) notes: Vec<String>,
    /// Seconds since 1970.
    pub(crate) imported: u64,
    /// The state of the source, 64 hexadecimal digits.
    pub(crate) fingerprint: String,
    /// Only `host://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) watch: Option<WatchRecord>,
    /// The lowest first. Empty in records of older versions: one layer, named by the image's digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<LayerRecord>,
    #[serde(default)]
    pub(crate) declared: Declared,
    /// Its one layer is an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lazy: Option<LazyRecord>,
    /// What it was built from, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) built: Option<String>,
    /// What was kept of which image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stripped: Option<Kept>,
}

/// What is known of an archive that was not unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LazyRecord {
    /// Whether all of it was read: the digest is the archive's then, and the index's otherwise.
    pub(crate) hashed: bool,
    /// The version of the index. Another than ours is made anew.
    #[serde(default)]
    pub(crate) format: u32,
    /// Bytes that it takes unpacked: files of all layers, those that are hidden, too.
    #[serde(default)]
    pub(crate) unpacked: u64,
}

/// One folder of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// The folder's name.
    pub(crate) name: String,
    /// Digest of the tree, or of the index, as [`Algorithm::text`] writes it.
    pub(crate) tree: String,
    /// Bytes.
    pub(crate) size: u64,
}

/// [`Watch`] as text: a `%` and bytes that are not UTF-8 are written as `%` and two digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WatchRecord {
    whole: Vec<String>,
    passed: Vec<String>,
}

impl From<&Watch> for WatchRecord {
    fn from(watch: &Watch) -> WatchRecord {
        let text = |paths: &[PathBuf]| paths.iter().map(|path| escape(path)).collect();
        WatchRecord { whole: text(&watch.whole), passed: text(&watch.passed) }
    }
}

impl WatchRecord {
    pub(crate) fn read(&self) -> Watch {
        let paths = |texts: &[String]| texts.iter().map(|text| unescape(text)).collect();
        Watch { whole: paths(&self.whole), passed: paths(&self.passed) }
    }
}

impl Record {
    /// The digest as people see it.
    pub(crate) fn digest(&self) -> String {
        let algorithm = if self.lazy.is_some_and(|lazy| !lazy.hashed) { "blake3" } else { "sha256" };
        format!("{algorithm}:{}", self.digest)
    }

    /// The layers, the lowest first.
    pub(crate) fn layer_records(self) -> Vec<LayerRecord> {
        match self.layers.is_empty() && self.built.is_none() {
            true => {
                let (tree, size) = (format!("sha256:{}", self.digest), self.size);
                self.layers().into_iter().map(|name| LayerRecord { name, tree: tree.clone(), size }).collect()
            }
            false => self.layers,
        }
    }

    /// The names of the layers' folders, the lowest first.
    pub(crate) fn layers(&self) -> Vec<String> {
        match self.layers.is_empty() && self.built.is_none() {
            true => vec![format!("{}{}", self.digest, map_key(self.ownership))],
            false => self.layers.iter().map(|layer| layer.name.clone()).collect(),
        }
    }
}

/// Reads the record `name` of the directory `catalogue`, which is called `path` in messages. A damaged record, such as
/// one that a power failure cut, is the same as none: its image is imported again.
pub(crate) fn read(catalogue: &OwnedFd, path: &Path, name: &str) -> Result<Option<Record>, Error> {
    #[derive(Deserialize)]
    struct Head {
        schema: u64,
    }
    let place = || path.join(name);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(catalogue, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
        Err(cause) => return Err(Error::io("open", place(), cause)),
    };
    let stat = rustix::fs::fstat(&file).map_err(|cause| Error::io("stat", place(), cause))?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() || size > MAX_RECORD {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(size as usize + 1);
    std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::from(file), MAX_RECORD), &mut bytes)
        .map_err(|e| Error::std("read", place(), &e))?;
    match serde_json::from_slice::<Head>(&bytes) {
        Ok(Head { schema }) if schema > SCHEMA => {
            return Err(Error::Newer { path: place(), found: schema, known: SCHEMA });
        }
        Ok(_) => {}
        Err(_) => return Ok(None),
    }
    let mut record: Option<Record> = serde_json::from_slice(&bytes).ok();
    if let Some(record) = record.as_mut().filter(|record| record.schema == 1) {
        record.schema = SCHEMA;
        record.layers.iter_mut().for_each(|layer| layer.tree.insert_str(0, "sha256:"));
    }
    Ok(record.filter(|record| {
        let is_name = |name: &str| name.get(..64).is_some_and(is_digest) && !name.contains('/');
        record.schema == SCHEMA
            && is_digest(&record.digest)
            && is_digest(&record.fingerprint)
            && record.layers.iter().all(|layer| is_name(&layer.name) && Algorithm::of(&layer.tree).is_some())
    }))
}

fn escape(path: &Path) -> String {
    let mut out = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        out.push_str(&chunk.valid().replace('%', "%25"));
        chunk.invalid().iter().for_each(|b| out.push_str(&format!("%{b:02x}")));
    }
    out
}

fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive() {
        for bytes in [&b"/usr/lib"[..], b"/a%b", b"/\xff\xfe/%25", b"/\xc3\xa4%", b"/%2"] {
            let path = PathBuf::from(OsString::from_vec(bytes.to_vec()));
            assert_eq!(unescape(&escape(&path)), path);
        }
    }
}
