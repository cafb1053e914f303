//! The tar of an OCI layout into which blobs are written side by side.
//!
//! The first [`HEAD`] bytes are `oci-layout` and `index.json`, which name what was asked for and are written by who asked. Behind them each
//! blob has its header and room for its content, so that several are fetched at once, and each is resumed where it was cut off.

use serde_json::json;

use super::Found;

/// Bytes before the first blob.
pub(crate) const HEAD: u64 = 4096;
const BLOCK: u64 = 512;
/// The two blocks of zeros that end an archive.
pub(crate) const END: u64 = 2 * BLOCK;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Whether it is the type of a manifest or an index.
pub(crate) fn is_known(media_type: &str) -> bool {
    [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].contains(&media_type)
}

/// Whether it is that of an index.
pub(crate) fn is_index(media_type: &str) -> bool {
    [OCI_INDEX, DOCKER_INDEX].contains(&media_type)
}

/// The header of a file.
pub(crate) fn header(name: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).expect("the name of a blob fits a header");
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// How much room a blob takes.
pub(crate) fn room(size: u64) -> u64 {
    BLOCK + size.div_ceil(BLOCK) * BLOCK
}

/// The beginning, [`HEAD`] bytes, of a layout that holds what was found.
pub(crate) fn head(found: &Found) -> Vec<u8> {
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let descriptor =
        json!({ "mediaType": found.media_type, "digest": format!("sha256:{}", found.digest), "size": found.size });
    let mut index = json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string().into_bytes();
    let space = HEAD - 3 * BLOCK;
    // White space is allowed behind a document.
    index.resize(usize::try_from(space).expect("it is small"), b' ');
    let mut head = header("oci-layout", layout.len() as u64);
    head.extend(layout);
    head.resize(usize::try_from(2 * BLOCK).expect("it is small"), 0);
    head.extend(header("index.json", space));
    head.extend(index);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_has_its_size() {
        let found = Found { digest: "0".repeat(64), media_type: DOCKER_INDEX.into(), size: u64::MAX };
        assert_eq!(head(&found).len() as u64, HEAD);
        assert_eq!((room(0), room(1), room(512), room(513)), (512, 1024, 1024, 1536));
        let mut archive = tar::Archive::new(std::io::Cursor::new(head(&found)));
        let names: Vec<String> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["oci-layout", "index.json"]);
    }
}
