//! The tables as text, kept beside the code: whoever changes what a container may do changes a file
//! that reads like a list of rights. `UPDATE_SNAPSHOTS=1 cargo test -p containust-policy` writes
//! them anew.

use std::{env, fs, path::Path};

use containust_policy::{capabilities, seccomp};

fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots").join(name);
    if env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, text).expect("the snapshot can be written");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).find(|(old, new)| old != new);
    assert!(
        kept == text,
        "snapshots/{name} differs from the table, first here: {differs:?}; if the change of authority is meant, \
         run again with UPDATE_SNAPSHOTS=1 and commit the file"
    );
}

#[test]
fn system_calls() {
    for base in seccomp::Base::ALL {
        check(&format!("seccomp-{}.txt", base.name()), &seccomp::describe(base));
    }
}

#[test]
fn capability_set() {
    check("capabilities.txt", &capabilities::describe());
}
