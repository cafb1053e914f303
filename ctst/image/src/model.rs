//! What the rest of the house knows of an image.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Who owns the files of an unpacked layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ownership {
    /// The caller, whatever the source says: root inside is the caller outside.
    Caller,
    /// Host id `base + n` for id `n` of the source; only root can give files away. Ids at or above `count` are refused.
    Shifted {
        /// First host id of the range.
        base: u32,
        /// Number of ids.
        count: u32,
    },
}

/// An image of the store, ready to be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:` and 64 lower-case hexadecimal digits: the digest of the image's content (paths, types, modes, owners,
    /// file bytes, link targets), the same on every host and for every [`Ownership`].
    pub digest: String,
    /// Directories to use as overlay layers, topmost first. Absolute and canonical.
    pub layers: Vec<PathBuf>,
    /// What the image says about how it is run.
    pub config: Config,
    /// Size of all files in bytes.
    pub size: u64,
    /// What a person should know about the import, such as owners that were flattened.
    pub notes: Vec<String>,
}

/// What an image says about how it is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Program and leading arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`.
    pub user: Option<String>,
    /// Working directory.
    pub workdir: Option<String>,
}

/// One row of `ctst images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The reference it was imported by, such as `file:///srv/rootfs`.
    pub reference: String,
    /// As in [`Image::digest`].
    pub digest: String,
    /// Size of all files in bytes.
    pub size: u64,
    /// When it was imported, in seconds since 1970.
    pub imported: u64,
}
