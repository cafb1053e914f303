//! Writes layers and images as archives: what `unpack` reads.

use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::archive::image::architecture;
use crate::catalogue::Record;
use crate::copy::{self, Ids};
use crate::model::{Config, Declared, Healthcheck};
use crate::source::hex;
use crate::tree::{self, Body, Digest, Item, join, open_dir};
use crate::unpack::{OPAQUE, OPAQUE_ATTRIBUTE, Owners, WHITEOUT};

/// Longest value and longest list of attributes that the kernel gives (`XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of
/// `linux/limits.h`).
const MAX_ATTRIBUTES: usize = 64 << 10;
const MEDIA: &str = "application/vnd.oci.image";

/// Keys and values of an extended header.
type Attributes = Vec<(String, Vec<u8>)>;

/// Hashes what passes.
pub(crate) struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W> Hashing<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// 64 hexadecimal digits.
    pub(crate) fn digest(self) -> String {
        hex(&self.hash.finalize().into())
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a layer of the store as the tar stream it could have come from; returns its digest.
pub(crate) fn pack(root: &OwnedFd, base: &Path, owners: Owners, out: OwnedFd) -> Result<Digest, Error> {
    let mut items = tree::scan(root, base)?.items;
    copy::find_hard_links(&mut items);
    let out = Hashing::new(BufWriter::with_capacity(256 << 10, std::fs::File::from(out)));
    let mut tar = tar::Builder::new(out);
    for item in &items {
        entry(&mut tar, root, base, &items, item, owners.ids())?;
    }
    let written = |e: io::Error| Error::std("pack", base, &e);
    let mut out = tar.into_inner().map_err(written)?;
    out.flush().map_err(written)?;
    Ok(out.hash.finalize().into())
}

fn entry<W: Write>(
    tar: &mut tar::Builder<W>,
    root: &OwnedFd,
    base: &Path,
    items: &[Item],
    item: &Item,
    ids: Ids,
) -> Result<(), Error> {
    let place = join(base, &item.path);
    let failed = |step| {
        let place = place.clone();
        move |cause: Errno| Error::io(step, place, cause)
    };
    let written = |e: io::Error| Error::std("pack", &place, &e);
    let path = join(Path::new(""), &item.path);
    let mut header = tar::Header::new_gnu();
    let (uid, gid) = ids.of_item(item);
    header.set_mode(item.meta.mode);
    header.set_uid(uid.into());
    header.set_gid(gid.into());
    header.set_mtime(u64::try_from(item.meta.mtime.0).unwrap_or(0));
    header.set_size(0);
    let (folder, name) = item.split();
    match &item.body {
        Body::Directory => {
            let directory = open_dir(root, &item.path).map_err(failed("open"))?;
            let (xattrs, is_opaque) = attributes(&directory).map_err(failed("read attributes of"))?;
            extend(tar, &xattrs).map_err(written)?;
            header.set_entry_type(tar::EntryType::Directory);
            if item.path.is_empty() {
                if let Some(gnu) = header.as_gnu_mut() {
                    gnu.name[..2].copy_from_slice(b"./");
                }
                header.set_cksum();
                tar.append(&header, io::empty()).map_err(written)?;
            } else {
                tar.append_data(&mut header, &path, io::empty()).map_err(written)?;
            }
            if is_opaque {
                let mark = path.join(text(OPAQUE));
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(0o644);
                tar.append_data(&mut header, mark, io::empty()).map_err(written)?;
            }
        }
        Body::File | Body::Made(_) => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = open_dir(root, folder)
                .and_then(|folder| rustix::fs::openat(folder, name, flags, Mode::empty()))
                .map_err(failed("open"))?;
            let (xattrs, _) = attributes(&file).map_err(failed("read attributes of"))?;
            extend(tar, &xattrs).map_err(written)?;
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(item.meta.size);
            let mut content = Counted { file: std::fs::File::from(file).take(item.meta.size), left: item.meta.size };
            tar.append_data(&mut header, &path, &mut content).map_err(written)?;
            if content.left > 0 {
                return Err(Error::Changed(place));
            }
        }
        Body::Symlink => {
            let target = open_dir(root, folder)
                .and_then(|folder| rustix::fs::readlinkat(folder, name, Vec::new()))
                .map_err(failed("read link"))?;
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, &path, join(Path::new(""), target.as_bytes())).map_err(written)?;
        }
        Body::Hard(first) => {
            header.set_entry_type(tar::EntryType::Link);
            tar.append_link(&mut header, &path, join(Path::new(""), &items[*first].path)).map_err(written)?;
        }
        Body::Special if item.meta.kind == FileType::Fifo => {
            header.set_entry_type(tar::EntryType::Fifo);
            tar.append_data(&mut header, &path, io::empty()).map_err(written)?;
        }
        Body::Special => {
            let stat = open_dir(root, folder)
                .and_then(|folder| rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW))
                .map_err(failed("stat"))?;
            if item.meta.kind != FileType::CharacterDevice || stat.st_rdev != 0 {
                return Err(Error::Changed(place));
            }
            let hidden = join(&join(Path::new(""), folder), &[WHITEOUT, name].concat());
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(0o644);
            tar.append_data(&mut header, hidden, io::empty()).map_err(written)?;
        }
    }
    Ok(())
}

/// A file of which all is expected to be there.
struct Counted {
    file: io::Take<std::fs::File>,
    left: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

/// Adds an extended header with attributes, as GNU tar and docker write them.
fn extend<W: Write>(tar: &mut tar::Builder<W>, xattrs: &[(String, Vec<u8>)]) -> io::Result<()> {
    if xattrs.is_empty() {
        return Ok(());
    }
    tar.append_pax_extensions(xattrs.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
}

/// The attributes that an import keeps, as names of records, and whether a folder hides what is below.
fn attributes(file: &OwnedFd) -> Result<(Attributes, bool), Errno> {
    let mut buffer = vec![0; MAX_ATTRIBUTES];
    let length = match rustix::fs::flistxattr(file, &mut buffer) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok((Vec::new(), false)),
        other => other?,
    };
    let names = buffer[..length].to_vec();
    let (mut kept, mut is_opaque) = (Vec::new(), false);
    for name in names.split(|b| *b == 0).filter(|name| name.starts_with(b"user.")) {
        let Ok(text) = std::str::from_utf8(name) else { continue };
        let length = rustix::fs::fgetxattr(file, text, &mut buffer)?;
        if text == OPAQUE_ATTRIBUTE {
            is_opaque = true;
        } else {
            kept.push((format!("SCHILY.xattr.{text}"), buffer[..length].to_vec()));
        }
    }
    Ok((kept, is_opaque))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A layer that was packed.
pub(crate) struct Blob {
    pub(crate) file: std::fs::File,
    /// Of the layer as it is unpacked.
    pub(crate) diff: String,
    /// Of the file.
    pub(crate) digest: String,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) is_compressed: bool,
}

impl Blob {
    pub(crate) fn told(&self) -> Layer {
        let Self { diff, digest, size, is_compressed, .. } = self;
        Layer { diff: diff.clone(), digest: digest.clone(), size: *size, is_compressed: *is_compressed }
    }

    /// The same compressed by gzip, which every registry and every program takes.
    pub(crate) fn compress(mut self, into: std::fs::File) -> io::Result<Self> {
        io::Seek::rewind(&mut self.file)?;
        let out = Hashing::new(BufWriter::with_capacity(256 << 10, into));
        let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
        io::copy(&mut self.file.take(self.size), &mut encoder)?;
        let mut out = encoder.finish()?;
        out.flush()?;
        let digest = hex(&out.hash.finalize().into());
        let file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
        let size = file.metadata()?.len();
        Ok(Self { file, diff: self.diff, digest, size, is_compressed: true })
    }
}

/// What the documents of an image say of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// Of the layer as it is unpacked.
    pub(crate) diff: String,
    /// Of the file.
    pub(crate) digest: String,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) is_compressed: bool,
}

/// The documents of an image.
pub(crate) struct Documents {
    pub(crate) config: String,
    pub(crate) manifest: String,
}

/// How an OCI document names another, or a blob.
pub(crate) fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": format!("{MEDIA}.{kind}"), "digest": format!("sha256:{digest}"), "size": size })
}

/// The `index.json` of these manifests.
pub(crate) fn index(manifests: Vec<Value>) -> String {
    json!({ "schemaVersion": 2, "mediaType": format!("{MEDIA}.index.v1+json"), "manifests": manifests }).to_string()
}

/// The `oci-layout` of every archive.
pub(crate) fn layout() -> String {
    json!({ "imageLayoutVersion": "1.0.0" }).to_string()
}

/// The configuration and the manifest of an image of these layers, the lowest first.
pub(crate) fn documents(record: &Record, layers: &[Layer]) -> Documents {
    let sum = |bytes: &[u8]| hex(&Sha256::digest(bytes).into());
    let diffs: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.diff)).collect();
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": settings(&record.config, &record.declared),
        "rootfs": { "type": "layers", "diff_ids": diffs },
    })
    .to_string();
    let kind = |layer: &Layer| if layer.is_compressed { "layer.v1.tar+gzip" } else { "layer.v1.tar" };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": format!("{MEDIA}.manifest.v1+json"),
        "config": descriptor("config.v1+json", &sum(config.as_bytes()), config.len() as u64),
        "layers": layers.iter().map(|l| descriptor(kind(l), &l.digest, l.size)).collect::<Vec<_>>(),
    })
    .to_string();
    Documents { config, manifest }
}

/// Writes an archive that is an OCI layout, and what `docker save` writes.
pub(crate) fn image(record: &Record, layers: Vec<Blob>, out: &mut dyn Write) -> io::Result<()> {
    let sum = |bytes: &[u8]| hex(&Sha256::digest(bytes).into());
    let told: Vec<Layer> = layers.iter().map(Blob::told).collect();
    let Documents { config: document, manifest } = documents(record, &told);
    let name = record.reference.strip_prefix("image://");
    let mut entry = descriptor("manifest.v1+json", &sum(manifest.as_bytes()), manifest.len() as u64);
    if let Some(name) = name {
        let tag = name.rsplit(':').next().unwrap_or(name);
        entry["annotations"] = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
    }
    let index = index(vec![entry]);
    let blob = |digest: &str| format!("blobs/sha256/{digest}");
    let docker = json!([{
        "Config": blob(&sum(document.as_bytes())),
        "RepoTags": name.map(|name| vec![name]),
        "Layers": layers.iter().map(|layer| blob(&layer.digest)).collect::<Vec<_>>(),
    }]);

    let mut tar = tar::Builder::new(out);
    for (name, text) in [
        ("oci-layout".to_owned(), layout()),
        ("index.json".to_owned(), index),
        ("manifest.json".to_owned(), docker.to_string()),
        (blob(&sum(document.as_bytes())), document),
        (blob(&sum(manifest.as_bytes())), manifest),
    ] {
        tar.append_data(&mut plain(text.len() as u64), name, text.as_bytes())?;
    }
    for Blob { mut file, digest, size, .. } in layers {
        io::Seek::rewind(&mut file)?;
        tar.append_data(&mut plain(size), blob(&digest), file.take(size))?;
    }
    tar.into_inner()?.flush()
}

fn plain(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header
}

fn settings(config: &Config, declared: &Declared) -> Value {
    let keys = |names: &[String]| names.iter().map(|name| (name.clone(), json!({}))).collect::<Map<_, _>>();
    let mut settings = Map::new();
    let mut set = |name: &str, value: Value, is_there: bool| {
        if is_there {
            settings.insert(name.to_owned(), value);
        }
    };
    set("User", json!(config.user), config.user.is_some());
    set("Env", json!(config.env), !config.env.is_empty());
    set("Entrypoint", json!(config.entrypoint), !config.entrypoint.is_empty());
    set("Cmd", json!(config.command), !config.command.is_empty());
    set("WorkingDir", json!(config.workdir), config.workdir.is_some());
    set("ExposedPorts", Value::Object(keys(&declared.ports)), !declared.ports.is_empty());
    set("Volumes", Value::Object(keys(&declared.volumes)), !declared.volumes.is_empty());
    set("Labels", json!(declared.labels), !declared.labels.is_empty());
    set("StopSignal", json!(declared.stop_signal), declared.stop_signal.is_some());
    if let Some(Healthcheck { test, interval, timeout, start_period, start_interval, retries }) = &declared.healthcheck
    {
        let mut check = Map::from_iter([("Test".to_owned(), json!(test))]);
        let times = [
            ("Interval", interval),
            ("Timeout", timeout),
            ("StartPeriod", start_period),
            ("StartInterval", start_interval),
        ];
        for (name, time) in times {
            check.extend(time.map(|time| (name.to_owned(), json!(time))));
        }
        check.extend(retries.map(|retries| ("Retries".to_owned(), json!(retries))));
        set("Healthcheck", Value::Object(check), true);
    }
    Value::Object(settings)
}
