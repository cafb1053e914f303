//! Files as they are written for the language's public predecessor: all of them parse; what is carried out is accepted
//! whole, and the rest refused for what is not supported yet and for nothing else.

use std::fs;
use std::path::{Path, PathBuf};

use containust_lang::syntax::Arena;
use containust_lang::{Code, Inputs, Loader, Outcome, Severity, check_with, parse};

struct Disk(PathBuf);

impl Loader for Disk {
    fn load(&self, importing: &str, path: &str) -> Result<(String, Vec<u8>), String> {
        let folder = Path::new(importing).parent().unwrap_or(Path::new(""));
        let name = folder.join(path);
        let bytes = fs::read(self.0.join(&name)).map_err(|error| error.to_string())?;
        Ok((name.to_string_lossy().into_owned(), bytes))
    }

    fn fetch(&self, url: &str, pin: Option<&str>) -> Result<Vec<u8>, (String, String)> {
        let path = url.strip_prefix("https://example.org/").filter(|_| pin.is_some()).expect("a pinned file of ours");
        Ok(fs::read(self.0.join(path)).expect("what lies there"))
    }
}

fn each(folder: &str, mut look: impl FnMut(&str, Outcome, String)) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/base").join(folder);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            continue;
        }
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let bytes = fs::read(&path).expect("a readable file");
        assert_eq!(parse(&name, &bytes, &Arena::new()).1, [], "{name}");
        let disk = Disk(folder.clone());
        let inputs = Inputs { loader: Some(&disk), ..Inputs::default() };
        let outcome = check_with(&name, &bytes, "project", &|_| None, &inputs);
        let said = outcome.render(&bytes, false);
        look(&name, outcome, said);
        count += 1;
    }
    count
}

#[test]
fn what_is_carried_out_is_accepted() {
    let count = each("carried-out", |name, outcome, said| {
        assert!(outcome.composition.is_some(), "{name}\n{said}");
        let warnings: Vec<Code> = outcome.diagnostics.iter().map(|found| found.code).collect();
        assert!(warnings.iter().all(|code| *code == Code::ImpliedTemplate), "{name}\n{said}");
    });
    assert!(count >= 24, "{count}");
}

#[test]
fn the_rest_is_refused_as_not_supported_and_for_nothing_else() {
    let count = each("later", |name, outcome, said| {
        assert!(outcome.composition.is_none(), "{name}");
        let errors = outcome.diagnostics.iter().filter(|found| found.severity == Severity::Error);
        assert!(
            errors.clone().count() > 0 && errors.clone().all(|found| found.code == Code::NotSupported),
            "{name}\n{said}"
        );
    });
    assert!(count >= 2, "{count}");
}
