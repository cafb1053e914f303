//! What the rest of the house knows of an image.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::distroless::Kept;
use crate::lazy::Lazy;

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
    /// Ids inside the worker container that unpacks, where 0 is the caller and `n` is host id `uid + n - 1`, or `gid + n -
    /// 1`. Ids at or above `count` are refused. Only for archives, and with a [`Runner`](crate::Runner) that has such a
    /// container.
    Subordinate {
        /// First subordinate user id on the host.
        uid: u32,
        /// First subordinate group id on the host.
        gid: u32,
        /// Number of ids, the caller's included.
        count: u32,
    },
}

/// An image of the store, ready to be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:` and 64 lower-case hexadecimal digits: the digest of the image's content (paths, types, modes, owners,
    /// file bytes, link targets), the same on every host and for every [`Ownership`]. Of a `tar://` image: the digest of
    /// the archive's file, as `sha256sum` computes it. Of one that was built: of its layers and of what it says of itself. Of a lazy one that has no pin: `blake3:` and that of its index, because
    /// nobody has read all of the archive.
    pub digest: String,
    /// Directories to use as overlay layers, topmost first. Absolute and canonical. Of a lazy image: one with copies of the few
    /// files that are looked at from outside, which is not what containers see.
    pub layers: Vec<PathBuf>,
    /// Where it is not unpacked: what containers read from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lazy: Option<Lazy>,
    /// What the image says about how it is run.
    pub config: Config,
    /// What it declares beyond that.
    pub declared: Declared,
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

/// What an image declares beyond [`Config`]; only images of `docker save` and OCI do. All of it is a wish of the image's
/// author, and none is checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Declared {
    /// `80`, `80/tcp` or `53/udp`, sorted.
    pub ports: Vec<String>,
    /// Paths that should be volumes, sorted.
    pub volumes: Vec<String>,
    /// `SIGTERM`, `TERM` or a number.
    pub stop_signal: Option<String>,
    /// How to see whether it works.
    pub healthcheck: Option<Healthcheck>,
    /// Free text by name.
    pub labels: BTreeMap<String, String>,
}

/// As in a Dockerfile. Times are in nanoseconds; `None` is the reader's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Healthcheck {
    /// `NONE`, or `CMD` and words, or `CMD-SHELL` and one text. Empty: inherited.
    pub test: Vec<String>,
    /// Between two checks.
    pub interval: Option<u64>,
    /// After which a check has failed.
    pub timeout: Option<u64>,
    /// In which failures do not count.
    pub start_period: Option<u64>,
    /// Between two checks in the start period.
    pub start_interval: Option<u64>,
    /// Failures in a row that count as unhealthy.
    pub retries: Option<u32>,
}

/// One row of `ctst images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The reference it was imported by, such as `file:///srv/rootfs`, or `image://` and its name.
    pub reference: String,
    /// As in [`Image::digest`].
    pub digest: String,
    /// Size of all files in bytes.
    pub size: u64,
    /// Bytes that it takes in the store: of an index only those.
    pub stored: u64,
    /// Bytes of layers that other images have, too.
    pub shared: u64,
    /// When it was imported, in seconds since 1970.
    pub imported: u64,
    /// Names of its layers' folders in the store, the lowest first.
    pub layers: Vec<String>,
    /// As in [`Image::config`].
    pub config: Config,
    /// As in [`Image::declared`].
    pub declared: Declared,
    /// Whether it is an index only, and its archive not unpacked.
    pub lazy: bool,
    /// What it was built from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<String>,
    /// What was kept of which image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stripped: Option<Kept>,
}
