//! Writing bundles.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Seek as _, Write};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    BLOCK, END, INDEX, LAYOUT, MANIFEST, MAX_MANIFEST, MAX_MEMBERS, Manifest, Member, Packed, blob, header, is_name,
};
use crate::Error;
use crate::catalogue::Record;
use crate::model::Image;
use crate::pack::{self, Blob, Hashing, Layer};
use crate::source::hex;
use crate::store::{Places, Progress, Staging, Store, owners};
use crate::unpack::Runner;

/// An image that is to be carried.
#[derive(Debug, Clone)]
pub struct Carried {
    /// As the composition writes it.
    pub image: String,
    /// How other tools name it: the first component that has it.
    pub name: String,
    /// Its reference in the store.
    pub reference: String,
    /// As the store has it.
    pub found: Image,
}

/// A bundle that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// The images.
    pub images: Vec<Packed>,
}

/// What a member consists of.
enum Content {
    Bytes(Vec<u8>),
    Blob(Blob),
}

impl Content {
    fn describe(&self, name: &str) -> Member {
        let (size, sha256) = match self {
            Content::Bytes(bytes) => (bytes.len() as u64, sum(bytes)),
            Content::Blob(blob) => (blob.size, blob.digest.clone()),
        };
        Member { name: name.to_owned(), size, sha256 }
    }
}

fn sum(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes).into())
}

impl Store {
    /// Writes a bundle of these images and files, the latter by the names of their members. `manifest` says what the files are; what it
    /// holds of images and members is put in here.
    ///
    /// # Errors
    /// [`Error::NotInStore`], names that no member can have, what cannot be read or written, and as [`Store::list`].
    pub fn bundle(
        &self,
        mut manifest: Manifest,
        images: &[Carried],
        files: BTreeMap<String, Vec<u8>>,
        out: &mut dyn Write,
        runner: &dyn Runner,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Written, Error> {
        let places = Places::create(self.dir())?;
        let staging = Staging::create(&places, runner)?;
        let mut members: BTreeMap<String, Content> =
            files.into_iter().map(|(name, bytes)| (name, Content::Bytes(bytes))).collect();
        let records = self.records()?;
        let chosen = images.iter().map(|wanted| {
            for (_, record) in
                records.iter().filter(|(_, record)| record.reference == wanted.reference && record.lazy.is_none())
            {
                // In other id maps it has other layers.
                let has = |image: Image| {
                    (image.digest, image.layers) == (wanted.found.digest.clone(), wanted.found.layers.clone())
                };
                if self.image(record.clone()).is_ok_and(has) {
                    return Ok(record);
                }
            }
            Err(self.not_in_store(&wanted.reference))
        });
        let chosen: Vec<&Record> = chosen.collect::<Result<_, _>>()?;
        let sizes: BTreeMap<&str, u64> = chosen.iter().flat_map(|r| &r.layers).map(|l| (&*l.name, l.size)).collect();
        let bytes_total = sizes.values().sum();
        // By the names of layers: where several images have one it is packed once.
        let mut packed: BTreeMap<&str, Layer> = BTreeMap::new();
        let mut bytes_done = 0;
        let mut descriptors = BTreeMap::new();
        for (wanted, record) in images.iter().zip(&chosen) {
            let owners = owners(record.ownership, runner)?;
            let mut layers = Vec::new();
            for layer in &record.layers {
                if !packed.contains_key(&*layer.name) {
                    progress(Progress::Copying { files_done: 0, files_total: 0, bytes_done, bytes_total });
                    let made = self.pack_layer(&staging, &packed.len().to_string(), layer, owners, runner)?;
                    packed.insert(&layer.name, made.told());
                    members.insert(blob(&made.digest), Content::Blob(made));
                    bytes_done += layer.size;
                }
                layers.extend(packed.get(&*layer.name).cloned());
            }
            let documents = pack::documents(record, &layers);
            let digest = sum(documents.manifest.as_bytes());
            let size = documents.manifest.len() as u64;
            let mut descriptor = pack::descriptor("manifest.v1+json", &digest, size);
            descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": wanted.name });
            for document in [documents.config, documents.manifest] {
                members.insert(blob(&sum(document.as_bytes())), Content::Bytes(document.into_bytes()));
            }
            descriptors.insert(wanted.image.clone(), descriptor);
            manifest.images.push(Packed { image: wanted.image.clone(), digest, source: record.digest() });
        }
        manifest.images.sort_by(|a, b| a.image.cmp(&b.image));
        let index = pack::index(descriptors.into_values().collect());
        members.insert(INDEX.to_owned(), Content::Bytes(index.into_bytes()));
        members.insert(LAYOUT.to_owned(), Content::Bytes(pack::layout().into_bytes()));
        manifest.members = members.iter().map(|(name, content)| content.describe(name)).collect();
        check(&manifest)?;
        let images = manifest.images.clone();
        let (digest, size) = write(&manifest, members, out).map_err(|e| Error::std("write", "the bundle", &e))?;
        Ok(Written { digest, size, images })
    }
}

/// Refuses what could be written, and would not be read.
fn check(manifest: &Manifest) -> Result<(), Error> {
    let refused = |why: String| Err(Error::Unbundled(why));
    if let Some(member) = manifest.members.iter().find(|member| !is_name(&member.name)) {
        return refused(format!("a file cannot be carried under the name `{}`", member.name.escape_debug()));
    }
    let length = serde_json::to_vec(manifest).map_or(u64::MAX, |bytes| bytes.len() as u64);
    if manifest.members.len() > MAX_MEMBERS || length > MAX_MANIFEST {
        return refused(format!("it would have {} members, and a manifest of {length} bytes", manifest.members.len()));
    }
    manifest.problem().map_or(Ok(()), |problem| refused(format!("its manifest {problem}")))
}

fn write(manifest: &Manifest, members: BTreeMap<String, Content>, out: &mut dyn Write) -> io::Result<(String, u64)> {
    let mut out = Counting { inner: Hashing::new(io::BufWriter::with_capacity(256 << 10, out)), count: 0 };
    let bytes = serde_json::to_vec(manifest)?;
    let contents = std::iter::once((MANIFEST.to_owned(), Content::Bytes(bytes))).chain(members);
    for (name, content) in contents {
        let member = content.describe(&name);
        out.write_all(&header(&name, member.size)?)?;
        match content {
            Content::Bytes(bytes) => out.write_all(&bytes)?,
            Content::Blob(Blob { mut file, size, .. }) => {
                file.rewind()?;
                if io::copy(&mut file.take(size), &mut out)? != size {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        let padding = member.size.next_multiple_of(BLOCK) - member.size;
        io::copy(&mut io::repeat(0).take(padding), &mut out)?;
    }
    io::copy(&mut io::repeat(0).take(END), &mut out)?;
    out.flush()?;
    Ok((out.inner.digest(), out.count))
}

struct Counting<W> {
    inner: W,
    count: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.count += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
