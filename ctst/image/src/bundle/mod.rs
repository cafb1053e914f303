//! Bundles: a composition, the files that it is made from and its images in one file.
//!
//! ```text
//! containust-bundle.json   the manifest: size and SHA-256 of every other member, in their order
//! blobs/sha256/…           of its images: layers, not compressed, each once; configurations and manifests
//! files/…                  of the project's folder, by their paths in it
//! imports/…                what it imports from `https://`, by digest
//! index.json, oci-layout   so that it is an OCI layout, too
//! outside/…                files elsewhere, by their absolute paths
//! ```
//!
//! It is a plain tar, of which there is one for each manifest: members are sorted by name, and their headers have nothing
//! in them but name and size. So a reader has nothing to interpret: it writes the header that has to stand there, and
//! compares. Links, members twice or too many, and names that lead elsewhere are no cases of their own.

mod read;
mod write;

use serde::{Deserialize, Serialize};

pub use read::Bundle;
pub use write::{Carried, Written};

use crate::archive::image::architecture;
use crate::source::is_digest;

/// Name of the manifest, which is the first member.
pub(crate) const MANIFEST: &str = "containust-bundle.json";
/// Name of what makes the archive an OCI layout, too.
const INDEX: &str = "index.json";
const LAYOUT: &str = "oci-layout";
const FORMAT: &str = "containust bundle";
/// Version of [`Manifest`]. A newer one is refused.
const VERSION: u64 = 1;
/// Bytes of the largest manifest that is read, and members of the largest bundle: 10,000 of either are some 1.5 MB.
const MAX_MANIFEST: u64 = 8 << 20;
const MAX_MEMBERS: usize = 50_000;
const BLOCK: u64 = 512;
/// The two blocks of zeros that end an archive.
const END: u64 = 2 * BLOCK;

/// What a bundle holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u64,
    /// Where its images run, such as `linux/amd64`.
    pub platform: String,
    /// Name of the composition's file, which is the member `files/` and this name.
    pub composition: String,
    /// The images.
    pub images: Vec<Packed>,
    /// What IMPORT finds.
    pub imports: Vec<Imported>,
    /// What is found at addresses.
    pub fetched: Vec<Fetched>,
    /// Other files that the composition is made from.
    pub reads: Vec<Read>,
    members: Vec<Member>,
}

/// An image of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packed {
    /// As the composition writes it.
    pub image: String,
    /// SHA-256 of its manifest in the bundle, 64 hexadecimal digits.
    pub digest: String,
    /// Digest of what was imported where the bundle was made. Nothing here can be compared with it.
    pub source: String,
}

/// A local file that is imported.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imported {
    /// The file that imports it.
    pub by: String,
    /// As it is written there.
    pub path: String,
    /// By what name the file goes.
    pub name: String,
}

/// A file from the network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fetched {
    /// Its address.
    pub url: String,
    /// Its digest; the member is `imports/` and this.
    pub sha256: String,
}

/// A file that is read otherwise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Read {
    /// As it is asked for.
    pub path: String,
    /// Its member; none: there was no such file, and none was needed.
    pub member: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    name: String,
    size: u64,
    sha256: String,
}

impl Member {
    /// Bytes that it takes in the archive.
    fn room(&self) -> Option<u64> {
        self.size.checked_next_multiple_of(BLOCK)?.checked_add(BLOCK)
    }
}

/// This machine's platform, as manifests have it.
pub(crate) fn platform() -> String {
    format!("linux/{}", architecture())
}

/// The one header that a member has.
fn header(name: &str, size: u64) -> std::io::Result<[u8; BLOCK as usize]> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// Whether a bundle may have a member of this name: below its folder, and to be shown as it is.
fn is_name(name: &str) -> bool {
    let is_good = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control);
    name != MANIFEST && name.split('/').all(is_good) && header(name, 0).is_ok()
}

impl Manifest {
    /// That of a composition; the rest is empty.
    #[must_use]
    pub fn new(composition: &str) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            platform: platform(),
            composition: composition.to_owned(),
            ..Self::default()
        }
    }

    /// What is wrong with it, but for the platform.
    fn problem(&self) -> Option<String> {
        let Self { format, images, fetched, members, .. } = self;
        if format != FORMAT {
            return Some("has another format".to_owned());
        }
        if members.len() > MAX_MEMBERS {
            return Some(format!("has {} members, {MAX_MEMBERS} are the most", members.len()));
        }
        if let Some(member) = members.iter().find(|member| !is_name(&member.name)) {
            return Some(format!("has a member `{}`, which no bundle has", member.name.escape_debug()));
        }
        if let Some(pair) = members.windows(2).find(|pair| pair[0].name >= pair[1].name) {
            return Some(format!("has its member `{}` out of order, or twice", pair[1].name.escape_debug()));
        }
        let digests = members.iter().map(|member| &member.sha256).chain(images.iter().map(|image| &image.digest));
        let is_bad = |digest: &&String| !is_digest(digest) || digest.contains(|c: char| c.is_ascii_uppercase());
        if digests.chain(fetched.iter().map(|file| &file.sha256)).any(|digest| is_bad(&digest)) {
            return Some("has a digest that is not 64 lower-case hexadecimal digits".to_owned());
        }
        let missing = |name: &String| self.member(name).is_none();
        let named = [format!("files/{}", self.composition), INDEX.to_owned(), LAYOUT.to_owned()].into_iter();
        let named = named.chain(images.iter().map(|image| blob(&image.digest)));
        let named = named.chain(fetched.iter().map(|file| format!("imports/{}", file.sha256)));
        let named = named.chain(self.imports.iter().map(|file| member_of(&file.name)));
        let mut named = named.chain(self.reads.iter().filter_map(|file| file.member.clone()));
        named.find(missing).map(|name| format!("lacks `{}`, which it names", name.escape_debug()))
    }

    fn member(&self, name: &str) -> Option<usize> {
        self.members.binary_search_by(|member| member.name.as_str().cmp(name)).ok()
    }
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

/// The member of a file that goes by this name: a path in the project's folder, or an absolute one.
#[must_use]
pub fn member_of(name: &str) -> String {
    match name.strip_prefix('/') {
        Some(path) => format!("outside/{path}"),
        None => format!("files/{}", name.strip_prefix("./").unwrap_or(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["files/stack.ctst", "outside/srv/a b/ü.env", "blobs/sha256/00", "x"] {
            assert!(is_name(good), "{good}");
        }
        let (long, deep) = ("x".repeat(101), format!("{}/x", "d/".repeat(80)));
        for bad in ["", "/x", "x/", "a//b", "./x", "a/../b", "..", MANIFEST, "a\nb", "a\0b", &long, &deep] {
            assert!(!is_name(bad), "{bad}");
        }
        assert_eq!(member_of("a/b.ctst"), "files/a/b.ctst");
        assert_eq!(member_of("/a/b.ctst"), "outside/a/b.ctst");
    }
}
