//! Imports. A case is one text with several files, the first of which is checked; what comes out stands beside it, and
//! `CTST_UPDATE=1` writes that anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use containust_lang::{Code, Inputs, Loader, Outcome, check, check_with};

/// Files by their path from the project's folder.
struct Files(BTreeMap<String, Vec<u8>>);

fn joined(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Loader for Files {
    fn load(&self, importing: &str, path: &str) -> Result<(String, Vec<u8>), String> {
        let folder = importing.rsplit_once('/').map_or("", |(folder, _)| folder);
        [joined(folder, path), joined("", path)]
            .into_iter()
            .find_map(|name| self.0.get(&name).map(|bytes| (name.clone(), bytes.clone())))
            .ok_or_else(|| "no such file".to_owned())
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(self.0.get(&joined("", path)).cloned())
    }

    fn fetch(&self, url: &str, pin: Option<&str>) -> Result<Vec<u8>, (String, String)> {
        let help = "pin it".to_owned();
        match (self.0.get(url), pin) {
            (Some(bytes), Some(_)) => Ok(bytes.clone()),
            (Some(_), None) => Err(("nothing says which digest it has".to_owned(), help)),
            (None, _) => Err(("there is nothing".to_owned(), help)),
        }
    }
}

fn split(text: &str) -> (String, Files) {
    let mut files = BTreeMap::new();
    let mut first = None;
    for part in text.split("==== ").skip(1) {
        let (name, content) = part.split_once('\n').expect("a line with a name");
        first.get_or_insert(name.to_owned());
        files.insert(name.to_owned(), content.as_bytes().to_vec());
    }
    (first.expect("a first file"), Files(files))
}

fn run(text: &str) -> (Outcome, Vec<u8>) {
    let (name, files) = split(text);
    let source = files.0.get(&name).expect("the first file").clone();
    let inputs = Inputs { loader: Some(&files), ..Inputs::default() };
    (check_with(&name, &source, "project", &|_| None, &inputs), source)
}

#[test]
fn cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/imports");
    let mut cases: Vec<_> = fs::read_dir(&folder)
        .expect("a folder of cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    cases.sort();
    assert!(cases.len() > 3);
    for path in cases {
        let text = fs::read_to_string(&path).expect("a readable case");
        let (outcome, source) = run(&text);
        let mut found = outcome.render(&source, false);
        if let Some(composition) = &outcome.composition {
            found.push_str(&serde_json::to_string_pretty(&composition.components).expect("it can be serialised"));
        }
        assert!(outcome.diagnostics.iter().all(|diagnostic| diagnostic.help.is_some()));
        let expected = path.with_extension("expected");
        if std::env::var_os("CTST_UPDATE").is_some() {
            fs::write(&expected, &found).expect("the expectation can be written");
        }
        assert_eq!(fs::read_to_string(&expected).unwrap_or_default(), found, "{}", path.display());
    }
}

#[test]
fn a_finding_names_the_file_that_it_is_in() {
    let (outcome, source) = run("==== a.ctst\nIMPORT \"lib/b.ctst\" AS b\nCOMPONENT a FROM b { }\n\
         ==== lib/b.ctst\nCOMPONENT one {\n    image = \"file://./x\" command = \"x\" readonly = 1\n}\n");
    let found = &outcome.diagnostics[0];
    assert_eq!((found.at.file.as_str(), found.at.source, found.at.line, found.at.column), ("lib/b.ctst", 1, 2, 51));
    assert_eq!((found.related[0].file.as_str(), found.related[0].source), ("a.ctst", 0));
    assert_eq!(found.at.span.text(&outcome.imports[0].text), "1");
    let json = serde_json::to_value(found).expect("it can be serialised");
    assert_eq!(
        (&json["file"], &json["line"], &json["related"][0]["file"]),
        (&"lib/b.ctst".into(), &2.into(), &"a.ctst".into())
    );
    // Without the text of the import the place is still named.
    assert!(containust_lang::render(&outcome.diagnostics, &source, false).contains("lib/b.ctst:2:51"));
}

#[test]
fn what_cannot_be_read_is_refused() {
    let import = |bytes: &[u8]| {
        let files = Files(BTreeMap::from([("b".to_owned(), bytes.to_vec())]));
        let inputs = Inputs { loader: Some(&files), ..Inputs::default() };
        let outcome = check_with("a", b"IMPORT \"b\" AS b COMPONENT a FROM b { }", "p", &|_| None, &inputs);
        outcome.diagnostics.iter().map(|found| found.code).collect::<Vec<_>>()
    };
    assert_eq!(import(b"\xff"), [Code::BadImport]);
    assert_eq!(import(b"COMPONENT x { image = \"host:///bin/x\" }"), []);
    assert_eq!(import(b"COMPONENT x {"), [Code::Unclosed]);
    let without = check("a", b"IMPORT \"b\" AS b COMPONENT a FROM b { }", "p", &|_| None);
    assert_eq!(without.diagnostics.iter().map(|found| found.code).collect::<Vec<_>>(), [Code::NotSupported]);
}

#[test]
fn chains_and_crowds_have_an_end() {
    let mut files = BTreeMap::new();
    for number in 0..2000 {
        let deep = format!("IMPORT \"d{}\"\nTEMPLATE t{number} {{ }}", number + 1);
        files.insert(format!("d{number}"), deep.into_bytes());
        files.insert(format!("w{number}"), b"TEMPLATE t { }".to_vec());
    }
    let wide: String = (0..2000).map(|number| format!("IMPORT \"w{number}\" AS w{number}\n")).collect();
    let files = Files(files);
    for source in ["IMPORT \"d0\"\n", &wide] {
        let inputs = Inputs { loader: Some(&files), ..Inputs::default() };
        let source = format!("{source}COMPONENT c {{ image = \"host:///bin/true\" }}");
        let outcome = check_with("a", source.as_bytes(), "p", &|_| None, &inputs);
        assert!(outcome.diagnostics.iter().any(|found| found.code == Code::TooManyLevels));
    }
}
