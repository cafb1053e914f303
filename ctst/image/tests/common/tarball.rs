//! Archives of every kind, good and bad, byte by byte.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// A tar stream that is being written.
#[derive(Default, Clone)]
pub(crate) struct Tarball(pub(crate) Vec<u8>);

/// A header's fields, with the usual values.
#[derive(Clone)]
pub(crate) struct Head<'a> {
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) link: &'a [u8],
    /// Instead of the data's length.
    pub(crate) size: Option<[u8; 12]>,
    pub(crate) device: (u32, u32),
}

impl Default for Head<'_> {
    fn default() -> Self {
        Head { kind: b'0', mode: 0o644, uid: 0, gid: 0, mtime: 1_000_000_000, link: b"", size: None, device: (0, 0) }
    }
}

pub(crate) fn of(kind: u8) -> Head<'static> {
    Head { kind, ..Head::default() }
}

impl Tarball {
    pub(crate) fn new() -> Tarball {
        Tarball::default()
    }

    /// A header block with a valid checksum.
    pub(crate) fn header(mut self, name: &[u8], head: &Head<'_>, size: u64) -> Self {
        let mut block = [0; 512];
        block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        let mut octal = |at: usize, width: usize, value: u64| {
            block[at..at + width - 1].copy_from_slice(format!("{value:0width$o}", width = width - 1).as_bytes());
        };
        octal(100, 8, head.mode.into());
        octal(108, 8, head.uid);
        octal(116, 8, head.gid);
        octal(136, 12, head.mtime);
        octal(329, 8, head.device.0.into());
        octal(337, 8, head.device.1.into());
        match head.size {
            Some(field) => block[124..136].copy_from_slice(&field),
            None => octal(124, 12, size),
        }
        block[156] = head.kind;
        block[157..157 + head.link.len()].copy_from_slice(head.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        self.0.extend(with_sum(block));
        self
    }

    pub(crate) fn add(self, name: &[u8], head: Head<'_>, data: &[u8]) -> Self {
        self.header(name, &head, data.len() as u64).data(data)
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.add(name.as_bytes(), Head { mode, ..of(b'5') }, b"")
    }

    pub(crate) fn file(self, name: &str, data: impl AsRef<[u8]>) -> Self {
        self.add(name.as_bytes(), Head::default(), data.as_ref())
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.add(name.as_bytes(), Head { link: target.as_bytes(), ..of(b'2') }, b"")
    }

    pub(crate) fn hard(self, name: &str, target: &str) -> Self {
        self.add(name.as_bytes(), Head { link: target.as_bytes(), ..of(b'1') }, b"")
    }

    /// An extended header of these records.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extended(b'x', records)
    }

    pub(crate) fn extended(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|n| *n == rest + n.to_string().len()).unwrap();
            data.extend(format!("{length} {key}=").as_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.add(b"PaxHeader", of(kind), &data)
    }

    /// A GNU long name (`L`) or long link target (`K`).
    pub(crate) fn long(self, kind: u8, name: &[u8]) -> Self {
        self.add(b"././@LongLink", of(kind), &[name, b"\0"].concat())
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A header block with its checksum.
pub(crate) fn with_sum(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

pub(crate) fn save(path: &Path, bytes: impl AsRef<[u8]>) -> PathBuf {
    fs::write(path, bytes).unwrap();
    path.to_path_buf()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::stream::encode_all(bytes, 1).unwrap()
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// This machine's, as images call it.
pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }
}

/// A configuration document for these uncompressed layers; `config` is JSON.
pub(crate) fn document(layers: &[Vec<u8>], config: &str) -> String {
    document_for("linux", architecture(), layers, config)
}

pub(crate) fn document_for(os: &str, architecture: &str, layers: &[Vec<u8>], config: &str) -> String {
    let diffs: Vec<String> = layers.iter().map(|layer| format!("\"sha256:{}\"", sha256(layer))).collect();
    format!(
        r#"{{"architecture":"{architecture}","os":"{os}","config":{config},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diffs.join(",")
    )
}

/// As `docker save` wrote for years: layers first, the manifest last.
pub(crate) fn docker(layers: &[Vec<u8>], config: &str) -> Vec<u8> {
    let document = document(layers, config);
    let name = format!("{}.json", sha256(document.as_bytes()));
    let mut tar = Tarball::new();
    let mut names = Vec::new();
    for layer in layers {
        let folder = sha256(format!("folder of {}", sha256(layer)).as_bytes());
        names.push(format!("\"{folder}/layer.tar\""));
        tar = tar.dir(&format!("{folder}/"), 0o755).file(&format!("{folder}/VERSION"), "1.0");
        tar = tar.file(&format!("{folder}/layer.tar"), layer);
    }
    let manifest = format!(r#"[{{"Config":"{name}","RepoTags":["app:1"],"Layers":[{}]}}]"#, names.join(","));
    tar.file(&name, document).file("manifest.json", manifest).file("repositories", "{}").end()
}

/// An OCI layout that is being written.
pub(crate) struct Oci {
    pub(crate) tar: Tarball,
    pub(crate) manifests: Vec<String>,
}

impl Oci {
    pub(crate) fn new() -> Oci {
        let tar = Tarball::new().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#).dir("blobs/", 0o755);
        Oci { tar: tar.dir("blobs/sha256/", 0o755), manifests: Vec::new() }
    }

    /// Adds a blob; its descriptor.
    pub(crate) fn blob(&mut self, kind: &str, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        let name = format!("blobs/sha256/{digest}");
        if !self.tar.0.windows(name.len()).any(|window| window == name.as_bytes()) {
            self.tar = std::mem::take(&mut self.tar).file(&name, bytes);
        }
        let kind = format!("application/vnd.oci.image.{kind}");
        format!(r#""mediaType":"{kind}","digest":"sha256:{digest}","size":{}"#, bytes.len())
    }

    /// Adds an image whose layers are compressed by `compress`.
    pub(crate) fn image(
        mut self,
        document: &str,
        layers: &[Vec<u8>],
        compress: fn(&[u8]) -> Vec<u8>,
        more: &str,
    ) -> Self {
        let layers: Vec<String> =
            layers.iter().map(|layer| format!("{{{}}}", self.blob("layer.v1.tar+x", &compress(layer)))).collect();
        let config = self.blob("config.v1+json", document.as_bytes());
        let manifest = format!(r#"{{"schemaVersion":2,"config":{{{config}}},"layers":[{}]}}"#, layers.join(","));
        let descriptor = self.blob("manifest.v1+json", manifest.as_bytes());
        self.manifests.push(format!("{{{descriptor}{more}}}"));
        self
    }

    pub(crate) fn end(self) -> Vec<u8> {
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, self.manifests.join(","));
        self.tar.file("index.json", index).end()
    }
}
