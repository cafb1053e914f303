//! Archives of any bytes are unpacked inside their folder or refused, cost no more than they may, and have the digest that is
//! found in their folder.

use std::fs;
use std::io::Write as _;

use containust_image::{Algorithm, Direct, Limits, Owners, Runner, UnpackJob};

/// So small that the largest archive that holds to them is done at once.
const LIMITS: Limits =
    Limits { bytes: 1 << 20, entries: 200, names: 10_000, ratio: 100, ratio_from: 100_000, layers: 4 };

pub(crate) fn run(bytes: &[u8]) {
    let scratch = tempfile::tempdir().expect("make a folder");
    let target = scratch.path().join("target");
    fs::create_dir(&target).expect("make the target");
    fs::write(scratch.path().join("canary"), "safe").expect("write the canary");
    let mut archive = tempfile::tempfile().expect("make the archive");
    archive.write_all(bytes).expect("write the archive");
    let job = UnpackJob {
        archive: "x".into(),
        owners: Owners::Flatten,
        limits: LIMITS,
        have: Vec::new(),
        partial: false,
        image: None,
    };
    let made = Direct.unpack(&job, archive.into(), &target, &mut |_| {});
    if let Ok(report) = &made {
        let size: u64 = report.layers.iter().filter_map(|layer| layer.made.as_ref()).map(|made| made.size).sum();
        assert!(size <= LIMITS.bytes * LIMITS.layers as u64, "{size} bytes");
        for made in report.layers.iter().filter_map(|layer| layer.made.as_ref()) {
            let tree = target.join(&made.folder).join("tree");
            // What is closed to its owner cannot be read.
            if let Ok(found) = Direct.digest(job.owners, Algorithm::Blake3, &tree) {
                assert_eq!(found, made.tree, "the digest is not that of what was unpacked");
            }
        }
    }
    assert_eq!(fs::read_to_string(scratch.path().join("canary")).expect("the canary is there"), "safe");
    let around = fs::read_dir(scratch.path()).expect("read the folder").count();
    assert_eq!(around, 2, "something outside the target came or went");
    // Unpacked folders may be closed to their owner.
    containust_image::remove_tree(&target).expect("remove the target");
}
