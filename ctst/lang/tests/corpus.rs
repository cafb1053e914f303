//! Files with what is said about them. `CTST_UPDATE=1 cargo test -p containust-lang --test corpus` writes the
//! expectations anew; the difference is then for a person to read.

use std::fs;
use std::path::{Path, PathBuf};

use containust_lang::{Diagnostic, Inputs, Loader, Outcome, check, check_with, render};

fn corpus(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()))
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ctst"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {}", folder.display());
    files
}

/// The environment of all corpus files. No diagnostic may show the secret.
const SECRET: &str = "s3cr3t!value";

fn environment(name: &str) -> Option<String> {
    match name {
        "SECRET" => Some(SECRET.to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

/// The folder that files beside the corpus are in. Nothing is imported.
struct Files;

impl Loader for Files {
    fn load(&self, _: &str, _: &str) -> Result<(String, Vec<u8>), String> {
        Err("no such file".to_owned())
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        match fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/files").join(path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.kind().to_string()),
        }
    }
}

/// Values for the parameters of all corpus files that have these.
const PARAMS: &[(&str, &str)] = &[("given", "g\"i$v{e}n ${x}"), ("given_port", "8081"), ("given_bad", SECRET)];

fn run(path: &Path, bytes: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(bytes);
    let params: Vec<(String, String)> = PARAMS
        .iter()
        .filter(|(name, _)| text.contains(&format!("PARAM {name}")))
        .map(|(name, value)| (String::from(*name), String::from(*value)))
        .collect();
    let profiles = usize::from(text.contains("\"active\""));
    check_with(
        &name(path),
        bytes,
        "project",
        &environment,
        &Inputs { params: &params, profiles: &["active".to_owned()][..profiles], loader: Some(&Files) },
    )
}

fn name(path: &Path) -> String {
    path.file_name().expect("a file name").to_string_lossy().into_owned()
}

fn compare(path: &Path, found: &str) -> Result<(), String> {
    let expected_path = path.with_extension("expected");
    if std::env::var_os("CTST_UPDATE").is_some() {
        fs::write(&expected_path, found).expect("the expectation can be written");
        return Ok(());
    }
    let expected = fs::read_to_string(&expected_path).unwrap_or_default();
    if expected == found {
        return Ok(());
    }
    Err(format!("{} differs\n--- expected\n{expected}\n--- found\n{found}", expected_path.display()))
}

fn compare_all(folder: &str, describe: impl Fn(&Path, &[u8]) -> String) {
    let failures: Vec<String> = corpus(folder)
        .iter()
        .filter_map(|path| {
            let bytes = fs::read(path).expect("a readable file");
            compare(path, &describe(path, &bytes)).err()
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn assert_no_secret(found: &[Diagnostic], rendered: &str) {
    let json = serde_json::to_string(found).expect("diagnostics can be serialised");
    assert!(!json.contains(SECRET) && !rendered.contains(SECRET), "a value of the environment is shown: {rendered}");
}

#[test]
fn invalid_files() {
    compare_all("invalid", |path, bytes| {
        let outcome = run(path, bytes);
        assert_eq!(outcome.composition, None, "{}", path.display());
        let rendered = render(&outcome.diagnostics, bytes, false);
        assert_no_secret(&outcome.diagnostics, &rendered);
        let helpless = outcome.diagnostics.iter().find(|diagnostic| diagnostic.help.is_none());
        assert_eq!(helpless, None, "no help");
        rendered
    });
}

#[test]
fn warnings() {
    compare_all("warnings", |path, bytes| {
        let outcome = run(path, bytes);
        let rendered = render(&outcome.diagnostics, bytes, false);
        assert!(outcome.composition.is_some(), "{rendered}");
        rendered
    });
}

#[test]
fn valid_files() {
    compare_all("valid", |path, bytes| {
        let outcome = run(path, bytes);
        let rendered = render(&outcome.diagnostics, bytes, false);
        assert_eq!(rendered, "", "{}", path.display());
        let composition = outcome.composition.expect("a composition");
        let mut json = serde_json::to_string_pretty(&composition).expect("a composition can be serialised");
        json.push('\n');
        json
    });
}

/// Every code is shown by a file, so that its text has been read once.
#[test]
fn every_code_has_an_example() {
    const ELSEWHERE: &[&str] = &["E0001", "E0002", "E0003", "E0224"];
    let mut seen = String::new();
    let imports = ["bad", "circle", "warnings"]
        .map(|case| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/imports").join(case));
    for path in corpus("invalid").iter().chain(&corpus("warnings")).chain(&imports) {
        seen.push_str(&fs::read_to_string(path.with_extension("expected")).unwrap_or_default());
    }
    let missing: Vec<&str> = containust_lang::CODES
        .iter()
        .map(|code| code.as_str())
        .filter(|code| !ELSEWHERE.contains(code) && !seen.contains(&format!("[{code}]")))
        .collect();
    assert!(missing.is_empty(), "no example of {missing:?}");
}

#[test]
fn a_value_for_nothing() {
    let source = b"PARAM level = 1\nCOMPONENT a { image = \"host:///bin/x\" user = level }";
    let given = |name: &str| vec![(name.to_owned(), "2".to_owned()), (name.to_owned(), "3".to_owned())];
    let outcome = |params: &[(String, String)]| {
        check_with("f", source, "p", &environment, &Inputs { params, ..Inputs::default() })
    };
    let composition = outcome(&given("level")).composition.expect("a composition");
    assert_eq!(composition.components[0].user.as_deref(), Some("3"));
    let found = outcome(&given("levle")).diagnostics;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].code.as_str(), found[0].help.as_deref()), ("E0219", Some("did you mean `level`?")));
}

#[test]
fn a_profile_that_nobody_has() {
    let profile = |name: &str, source: &str| {
        let profiles = [name.to_owned()];
        let inputs = Inputs { profiles: &profiles, ..Inputs::default() };
        let outcome = check_with("f", source.as_bytes(), "p", &environment, &inputs);
        let codes = outcome.diagnostics.iter().map(|found| found.code.as_str()).collect::<Vec<_>>().join(" ");
        (codes, outcome.composition.map_or(0, |composition| composition.components.len()))
    };
    let source =
        "COMPONENT a { image = \"host:///bin/x\" } COMPONENT b { image = \"host:///bin/x\" profiles = \"debug\" }";
    assert_eq!(profile("debug", source), (String::new(), 2));
    assert_eq!(profile("degub", source), ("E0224".to_owned(), 0));
    let only = "COMPONENT b { image = \"host:///bin/x\" profiles = [\"debug\"] }";
    assert_eq!(check("f", only.as_bytes(), "p", &environment).diagnostics[0].code.as_str(), "E0212");
}

/// What `--format json` shows of a finding.
#[test]
fn diagnostics_are_data() {
    let source = b"COMPONENT web {\n    image = \"host:///bin/true\"\n    restart = \"alway\"\n}\n";
    let outcome = check("stack.ctst", source, "project", &environment);
    let found = serde_json::to_value(&outcome.diagnostics).expect("diagnostics can be serialised");
    let expected = serde_json::json!([{
        "file": "stack.ctst",
        "line": 3, "column": 15, "end_line": 3, "end_column": 22,
        "code": "E0302",
        "severity": "error",
        "message": "`\"alway\"` is no value of `restart`",
        "label": "unknown value",
        "expected": "`never`, `on-failure`, `always` or `unless-stopped` in quotes",
        "help": "did you mean `\"always\"`?",
        "related": [],
    }]);
    assert_eq!(found, expected);
}
