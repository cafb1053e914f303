//! The tables as text, kept beside the code: whoever changes what a container may do changes a file
//! that reads like a list of rights. `UPDATE_SNAPSHOTS=1 cargo test -p containust-policy` writes
//! them anew.

use std::{env, fs, path::Path};

use containust_policy::{capabilities, seccomp, window};

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
    for own in seccomp::Own::ALL {
        check(&format!("own-{}.txt", own.name()), &seccomp::describe_own(own));
    }
}

#[test]
fn capability_set() {
    check("capabilities.txt", &capabilities::describe());
}

/// Who may hold what at most: a container's root without being asked, when asked, and the shim over the host.
#[test]
fn rights() {
    let names = |mask: u64| {
        let numbers = (0..64u8).filter(|number| mask >> number & 1 == 1);
        numbers.map(|number| format!("  {}\n", capabilities::name(number))).collect::<String>()
    };
    let text = format!(
        "root of a container, over its own user namespace\n{}\nthe same, where its plan asks for it and the policy lets it\n{}\n\
         the shim with file capabilities, over the host, for the window's system calls\n{}",
        names(capabilities::DEFAULT),
        names(capabilities::CEILING & !capabilities::DEFAULT),
        names(window::CAPABILITIES),
    );
    check("rights.txt", &text);
}
