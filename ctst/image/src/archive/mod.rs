//! What an archive is: compressed how, and a root file system or an image, told by content.

pub(crate) mod image;
pub(crate) mod stream;
pub(crate) mod tar;
pub(crate) mod tee;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};

use crate::Error;
use image::Selected;
use stream::{Counted, FileInput, Meter};
use tar::{Kind, Tar};

/// Largest JSON document of an image that is read.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;
/// All of them together: which of them count is only known at the end of the archive.
const MAX_DOCUMENTS: u64 = 64 << 20;
/// Folders at the top of a root file system, which no image archive has.
const TOP: [&str; 22] = [
    "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt", "nix", "opt", "proc",
    "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var",
];

/// How much an archive may make. Nothing is ever allocated or reserved by what an archive says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes after decompression, holes of sparse files included.
    pub bytes: u64,
    /// Entries of one tar stream, extended headers included.
    pub entries: u64,
    /// Bytes of all paths of one layer.
    pub names: u64,
    /// Bytes that one byte of the archive may become...
    pub ratio: u64,
    /// ...when more than this many were made.
    pub ratio_from: u64,
    /// Layers of one image. The kernel takes 500.
    pub layers: usize,
}

/// 64 GiB, 4,000,000 entries with 256 MiB of names, 1000 times the archive's size after the first 100 MiB, 500 layers.
impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes: 64 << 30,
            entries: 4_000_000,
            names: 256 << 20,
            ratio: 1000,
            ratio_from: 100 << 20,
            layers: 500,
        }
    }
}

/// What an archive is.
#[derive(Debug)]
pub(crate) enum Content {
    /// A root file system.
    Root,
    /// An image with layers that are archives themselves.
    Image(Box<Selected>),
}

/// What is known of the archive's files.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Size of each regular file.
    pub(crate) files: HashMap<Vec<u8>, u64>,
    /// Targets of links.
    pub(crate) links: HashMap<Vec<u8>, Vec<u8>>,
    /// Contents of files that may be JSON.
    pub(crate) documents: HashMap<Vec<u8>, Vec<u8>>,
}

/// What is expected of an archive.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted<'a> {
    /// Layers that an image need not hold.
    pub(crate) absent: &'a [String],
    /// The image whose manifest has this digest; otherwise the only one.
    pub(crate) image: Option<&'a str>,
}

/// Looks at an archive until its kind is known: up to the first folder that only a root file system has, or to the end.
pub(crate) fn examine(file: &OwnedFd, archive: &Path, limits: &Limits, wanted: &Wanted<'_>) -> Result<Content, Error> {
    let (read, made) = (AtomicU64::new(0), AtomicU64::new(0));
    let meter = Meter { limits, read: &read, made: &made, archive };
    let compressed = {
        let mut head = [0; 8];
        let count = rustix::io::pread(file, &mut head, 0).map_err(|cause| Error::io("read", archive, cause))?;
        if count == 0 {
            return Err(Error::Archive { archive: archive.into(), why: "is empty".into() });
        }
        stream::Compression::of(&head[..count]) != Ok(stream::Compression::Plain)
    };
    let input = FileInput::new(file, archive);
    // Counting what is read makes skipping impossible, and without compression there is no ratio.
    let input = match compressed {
        true => stream::decode(Counted::new(input, &read), meter)?.1,
        false => Box::new(input),
    };
    let mut tar = Tar::new(input, archive, limits);
    let (mut listing, mut names, mut budget) = (Listing::default(), 0, MAX_DOCUMENTS);
    let mut twice = None;
    while let Some(entry) = tar.next()? {
        let path = plain(&entry.path);
        let top = path.split(|b| *b == b'/').next().unwrap_or_default();
        if wanted.image.is_none() && TOP.iter().any(|name| name.as_bytes() == top) {
            return Ok(Content::Root);
        }
        names += (path.len() + entry.link.len()) as u64;
        if names > limits.names {
            let what = format!("has names of more than {} bytes", limits.names);
            return Err(Error::TooLarge { archive: archive.into(), entry: None, what });
        }
        let is_twice = match entry.kind {
            Kind::File => {
                let is_document = entry.stretches.is_none() && entry.size <= MAX_DOCUMENT.min(budget);
                let mut content = if is_document { tar.read(1)? } else { Vec::new() };
                if matches!(content[..], [b'{' | b'[']) {
                    budget -= entry.size;
                    content.extend(tar.read(entry.size)?);
                    listing.documents.insert(path.clone(), content);
                }
                listing.links.contains_key(&path) || listing.files.insert(path, entry.size).is_some()
            }
            Kind::Symlink | Kind::Hard => {
                listing.files.contains_key(&path) || listing.links.insert(path, entry.link).is_some()
            }
            _ => false,
        };
        if is_twice {
            twice.get_or_insert(tar.refused("is there twice"));
        }
    }
    if tar.entries() == 0 {
        return Err(Error::Archive { archive: archive.into(), why: "holds nothing".into() });
    }
    match (image::select(&listing, archive, limits, wanted)?, twice) {
        (None, _) if wanted.image.is_some() => {
            Err(Error::Archive { archive: archive.into(), why: "holds no image".into() })
        }
        (None, _) => Ok(Content::Root),
        // A root file system may have a file twice, and the last one counts.
        (Some(_), Some(error)) => Err(error),
        (Some(image), None) => Ok(Content::Image(Box::new(image))),
    }
}

/// A name without `.`, empty components and slashes at its ends. `..` stays: whoever creates files refuses it.
pub(crate) fn plain(path: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    parts.join(&b'/')
}
