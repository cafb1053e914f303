//! What has to hold for the tree itself: who may depend on whom, where unsafe code may be, what the README promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use containust_tests::escapes;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("run cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

/// Folder of each crate, and what of the workspace it may depend on: for tests and build scripts too.
const EDGES: [(&str, &str, &[&str]); 11] = [
    ("containust-core", "ctst-shim/core", &[]),
    ("containust-helper", "ctst-shim/helper", &["containust-core", "containust-policy", "containust-shared"]),
    ("containust-image", "ctst/image", &["containust-shared"]),
    ("containust-lang", "ctst/lang", &[]),
    ("containust-policy", "policy", &["containust-shared"]),
    ("containust-sdk", "ctst/sdk", &["containust-image", "containust-lang", "containust-policy", "containust-shared"]),
    ("containust-shared", "shared", &[]),
    ("containust-tests", "tests", &["containust-shared"]),
    ("ctst", "ctst", &["containust-sdk"]),
    ("ctst-port", "ctst-shim/port", &["containust-core", "containust-helper", "containust-shared"]),
    ("ctst-shim", "ctst-shim", &["containust-core", "containust-helper", "containust-policy", "containust-shared"]),
];

#[test]
fn crates_depend_on_each_other_only_as_drawn() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    let names: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    assert_eq!(names, EDGES.iter().map(|(name, ..)| *name).collect(), "a crate came or went: draw its edges here");
    for (name, folder, allowed) in EDGES {
        let package = packages.iter().find(|package| package["name"] == name).expect("checked above");
        let manifest = package["manifest_path"].as_str().expect("a path");
        assert_eq!(Path::new(manifest), root().join(folder).join("Cargo.toml"), "{name} moved");
        let depends = package["dependencies"].as_array().expect("dependencies").iter();
        for other in depends.filter_map(|dependency| dependency["name"].as_str()).filter(|other| names.contains(other))
        {
            // A crate names itself where its tests want a feature of it.
            assert!(other == name || allowed.contains(&other), "{name} -> {other} is not among {allowed:?}");
        }
    }
}

/// Files below `folder` that end in `.rs`, build products aside.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("read {}: {error}", folder.display())).flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Unsafe code is in one module of the shim's core, where an auditor reads it, and in test code that has to make system
/// calls which no safe interface offers.
#[test]
fn unsafe_code_is_where_it_is_looked_for() {
    let root = root();
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "found only {} sources", files.len());
    let mut users = BTreeMap::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("read a source");
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        // Put together at run time, so that this file does not find itself.
        let words = ["{", "fn", "impl", "extern"].map(|next| format!("{} {next}", "unsafe"));
        let count = code.filter(|line| words.iter().any(|word| line.contains(word.as_str()))).count();
        if count > 0 {
            users.insert(path.strip_prefix(&root).expect("below the root").display().to_string(), count);
        }
    }
    let allowed = |path: &str| {
        path == "ctst-shim/core/src/sys.rs"
            || path == "tests/src/bin/ctst-probe.rs"
            || path == "tests/src/bin/ctst-escape/sys.rs"
            || path.starts_with("policy/tests/")
    };
    let elsewhere: Vec<_> = users.iter().filter(|(path, _)| !allowed(path)).collect();
    assert!(elsewhere.is_empty(), "unsafe code in {elsewhere:?}");
}

#[test]
fn every_crate_forbids_or_denies_unsafe_code() {
    for (name, folder, _) in EDGES.iter().filter(|(name, ..)| *name != "containust-core") {
        let source = root().join(folder).join("src");
        for top in ["lib.rs", "main.rs"].map(|file| source.join(file)).into_iter().filter(|path| path.exists()) {
            let text = fs::read_to_string(&top).expect("read a source");
            let said = text.contains("#![forbid(unsafe_code)]") || text.contains("#![deny(unsafe_code)]");
            assert!(said, "{name}: {} does not forbid unsafe code", top.display());
        }
    }
}

#[test]
fn readme_names_what_there_is() {
    let readme = fs::read_to_string(root().join("README.md")).expect("read README.md");
    let makefile = fs::read_to_string(root().join("Makefile")).expect("read Makefile");
    for command in ["demo", "test"] {
        assert!(readme.contains(&format!("make {command}")), "README.md does not name make {command}");
        assert!(makefile.contains(&format!("\n{command}:")), "Makefile has no {command}");
    }
    for (name, folder, _) in EDGES {
        // The picture shows folders below each other.
        let drawn = format!(" {}/ ", folder.rsplit('/').next().expect("a folder has a name"));
        assert!(readme.contains(&drawn), "README.md does not say what {name} in {folder} is for");
    }
}

/// The packages that are linked into the shim: its whole trusted base apart from this workspace. A new one is argued for
/// in ctst-shim/README.md and added here in the same commit.
#[test]
fn shim_links_few_crates_and_names_them() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "tree",
            "-p",
            "ctst-shim",
            "-e",
            "normal,no-proc-macro",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("run cargo tree");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let linked: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| !name.starts_with("containust-") && *name != "ctst-shim")
        .collect();
    let readme = fs::read_to_string(root().join("ctst-shim/README.md")).expect("read ctst-shim/README.md");
    let words: BTreeSet<&str> = readme.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').collect();
    let unnamed: Vec<_> = linked.difference(&words).collect();
    assert!(unnamed.is_empty(), "ctst-shim/README.md does not argue for {unnamed:?}");
    assert!(linked.len() <= 12, "{linked:?}");
}

/// Test functions of one file.
fn functions(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    let mut found = Vec::new();
    let mut test = false;
    for line in text.lines() {
        if line.starts_with("#[test]") {
            test = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            if test {
                found.extend(rest.split('(').next().map(str::to_owned));
            }
            test = false;
        }
    }
    found
}

/// ctst-shim/ESCAPES.md: ids are unique and without gaps, the tests are there, and the probe tries what the list says.
#[test]
fn every_way_out_has_its_test() {
    let rows = escapes::rows();
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    for pair in ids.windows(2).filter(|pair| pair[0][..1] == pair[1][..1]) {
        assert!(pair[0] < pair[1], "{} stands before {}", pair[0], pair[1]);
    }
    // Of images, crashes, state and secrets one row stands for several ids, or another file has them.
    for group in ["N", "F", "P", "S", "G", "W", "E", "A", "C", "D", "L", "X"] {
        let numbers: Vec<&str> = ids.iter().filter(|id| id.starts_with(group)).map(|id| &id[1..]).collect();
        let wanted: Vec<String> = (1..=numbers.len()).map(|number| format!("{number:02}")).collect();
        assert_eq!(numbers, wanted, "group {group} has a gap");
    }

    let mut inside: BTreeSet<&str> = BTreeSet::new();
    for row in &rows {
        for test in row.tests.iter().filter(|test| !test.starts_with('–')) {
            if test == "inside" {
                inside.insert(&row.id);
                continue;
            }
            let (file, function) = test.rsplit_once("::").expect("file::function");
            let folders: &[&str] = match file.split_once("::") {
                Some(("image", _)) => &["ctst/image/tests"],
                _ => &["tests", "ctst-shim/tests", "policy/tests"],
            };
            let name = format!("{}.rs", file.rsplit("::").next().expect("a name"));
            let module = format!("{}/mod.rs", name.trim_end_matches(".rs"));
            let there = folders.iter().flat_map(|folder| [&name, &module].map(|name| root().join(folder).join(name)));
            let there = there.filter(|path| path.exists());
            let found = there.flat_map(|path| functions(&path)).any(|known| known == function);
            assert!(found, "{}: there is no test {function} in {name}", row.id);
        }
    }
    let probe = Command::new(env!("CARGO_BIN_EXE_ctst-escape")).arg("list").output().expect("run the probe");
    let probe = String::from_utf8(probe.stdout).expect("text");
    // Those last ones are read off by the test itself, because the probe's runtime changes them.
    let tried: BTreeSet<&str> = probe.lines().chain(["P17", "P18", "P19", "P20", "P21"]).collect();
    assert_eq!(tried, inside, "the probe and ctst-shim/ESCAPES.md differ");
    for (layers, ids) in escapes::layers() {
        let unknown: Vec<_> = ids.iter().filter(|id| !rows.iter().any(|row| row.id == **id)).collect();
        assert!(unknown.is_empty(), "without {layers:?}: {unknown:?}");
    }
}

/// Layers of the confinement can be left out in a build for tests, and in no other.
#[test]
fn no_ordinary_shim_can_be_weakened() {
    let shim = containust_tests::programs().join("ctst-shim");
    let bytes = fs::read(&shim).expect("read the shim");
    let mark = [b"ctst-weakened".as_slice(), b"-shim"].concat();
    assert!(!bytes.windows(mark.len()).any(|window| window == mark), "{} can be weakened", shim.display());

    // Nothing in the tree sets it: one file depends on it, one lint knows it, the tests' own build says it.
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let manifests = EDGES.iter().map(|(_, folder, _)| root().join(folder).join("Cargo.toml"));
    let others = ["Cargo.toml", ".cargo/config.toml", "Makefile", "tests/setup.sh"];
    files.extend(manifests.chain(others.iter().map(|name| root().join(name))).filter(|path| path.exists()));
    let word = ["wea", "ken"].concat();
    let flags = [format!("cfg({word}"), format!("cfg(not({word}"), format!("cfg {word}"), format!("\"{word}\"")];
    let found: BTreeSet<String> = files
        .iter()
        .filter(|path| {
            let text = fs::read_to_string(path).expect("read a source");
            flags.iter().any(|flag| text.contains(flag.as_str()))
        })
        .map(|path| path.strip_prefix(root()).expect("below the root").display().to_string())
        .collect();
    let allowed = ["Cargo.toml", "ctst-shim/core/src/weak.rs", "tests/src/project.rs"].map(str::to_owned);
    assert_eq!(found, BTreeSet::from(allowed));
}
