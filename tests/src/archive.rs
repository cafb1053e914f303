//! Archives as other programs make them, and as nobody should.

use std::io::Write as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use crate::project::programs;

/// A tar stream that is being written.
pub struct Archive(tar::Builder<Vec<u8>>);

impl Default for Archive {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Archive {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry, whatever its name is. `owner` is a user and a group id.
    ///
    /// # Panics
    /// If it does not fit a header.
    #[must_use]
    pub fn entry(
        mut self,
        kind: EntryType,
        name: &str,
        mode: u32,
        owner: (u32, u32),
        link: &str,
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0.into());
        header.set_gid(owner.1.into());
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        // Not by the functions that check names: some of these are wrong on purpose.
        let gnu = header.as_gnu_mut().expect("it was made as one");
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).expect("write to memory");
        self
    }

    /// Adds a folder of root's.
    #[must_use]
    pub fn folder(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, 0o755, (0, 0), "", b"")
    }

    /// Adds a file of root's.
    #[must_use]
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, name, 0o644, (0, 0), "", content.as_ref())
    }

    /// Gives the next entry an extended attribute.
    ///
    /// # Panics
    /// If there is no memory.
    #[must_use]
    pub fn attribute(mut self, name: &str, value: &[u8]) -> Self {
        let key = format!("SCHILY.xattr.{name}");
        self.0.append_pax_extensions([(key.as_str(), value)]).expect("write to memory");
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, 0o777, (0, 0), target, b"")
    }

    /// All of it.
    ///
    /// # Panics
    /// If there is no memory.
    #[must_use]
    pub fn end(self) -> Vec<u8> {
        self.0.into_inner().expect("write to memory")
    }

    /// A root file system: busybox with a few applets, users, and files of several owners and kinds in `/srv`.
    ///
    /// # Panics
    /// If busybox cannot be read.
    #[must_use]
    pub fn root() -> Self {
        let read = |name: &str| {
            let path = programs().with_file_name("rootfs").join("bin").join(name);
            std::fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
        };
        let mut archive = Self::new();
        for folder in ["./", "bin/", "dev/", "etc/", "proc/", "run/", "srv/", "sys/", "tmp/", "var/", "var/tmp/"] {
            archive = archive.folder(folder);
        }
        let program = |archive: Self, name: &str| {
            archive.entry(EntryType::Regular, &format!("bin/{name}"), 0o755, (0, 0), "", &read(name))
        };
        archive = program(program(archive, "busybox"), "ctst-probe");
        for applet in ["cat", "echo", "env", "find", "id", "ls", "pwd", "sh", "sleep", "sort", "stat", "touch", "true"]
        {
            archive = archive.link(&format!("bin/{applet}"), "busybox");
        }
        archive
            .file("etc/passwd", "root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1001::/srv:/bin/sh\n")
            .file("etc/group", "root:x:0:\npeople:x:1001:\n")
            .entry(EntryType::Regular, "srv/owned", 0o640, (1000, 1001), "", b"owned\n")
            .entry(EntryType::Link, "srv/other-name", 0o640, (1000, 1001), "srv/owned", b"")
            .entry(EntryType::Regular, "srv/setuid", 0o4755, (0, 0), "", b"x")
            .entry(EntryType::Fifo, "srv/fifo", 0o600, (0, 0), "", b"")
    }
}

/// Compressed by gzip.
///
/// # Panics
/// If there is no memory.
#[must_use]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("write to memory")
}

/// Compressed by zstd.
///
/// # Panics
/// If there is no memory.
#[must_use]
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::stream::encode_all(bytes, 1).expect("write to memory")
}

/// Compressed by xz.
///
/// # Panics
/// If there is no memory.
#[must_use]
pub fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("write to memory")
}

/// SHA-256 in hexadecimal digits.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn document(layers: &[Vec<u8>], config: &Value) -> String {
    let diffs: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diffs },
    })
    .to_string()
}

/// As `docker save` writes an image named `app:1`.
#[must_use]
pub fn docker(layers: &[Vec<u8>], config: &Value) -> Vec<u8> {
    let document = document(layers, config);
    let name = format!("{}.json", sha256(document.as_bytes()));
    let mut archive = Archive::new();
    let mut names = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        archive = archive.folder(&format!("{number}/")).file(&format!("{number}/layer.tar"), layer);
        names.push(format!("{number}/layer.tar"));
    }
    let manifest = json!([{ "Config": name, "RepoTags": ["app:1"], "Layers": names }]).to_string();
    archive.file(&name, document).file("manifest.json", manifest).end()
}

/// An OCI layout whose layers are compressed by gzip.
#[must_use]
pub fn oci(layers: &[Vec<u8>], config: &Value) -> Vec<u8> {
    let mut archive = Archive::new().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let mut blob = |kind: &str, bytes: &[u8]| {
        let digest = sha256(bytes);
        archive = std::mem::take(&mut archive).file(&format!("blobs/sha256/{digest}"), bytes);
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    };
    let blobs: Vec<Value> = layers.iter().map(|layer| blob("layer.v1.tar+gzip", &gzip(layer))).collect();
    let config = blob("config.v1+json", document(layers, config).as_bytes());
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": blobs }).to_string();
    let manifest = blob("manifest.v1+json", manifest.as_bytes());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
    archive.file("index.json", index).end()
}
