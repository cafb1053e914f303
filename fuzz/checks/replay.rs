//! What a fuzzer found worth keeping is tried by ordinary tests, too: whole, cut and changed.

use std::fs;
use std::path::Path;

/// Runs `check` on every file of `folder`, a path from the top of the checkout, on `cuts` shorter versions of each and on as
/// many with one other byte.
pub(crate) fn replay(folder: &str, cuts: usize, check: impl Fn(&[u8])) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|above| above.join("fuzz/corpus").is_dir());
    let folder = top.expect("a folder fuzz/corpus").join(folder);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("read {}: {error}", folder.display())) {
        let bytes = fs::read(entry.expect("a file").path()).expect("read a file of the corpus");
        check(&bytes);
        for cut in 0..cuts {
            let at = bytes.len() * cut / cuts;
            check(&bytes[..at]);
            let mut other = bytes.clone();
            if let Some(byte) = other.get_mut(at) {
                *byte ^= 1 << (cut % 8);
                check(&other);
            }
        }
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}
