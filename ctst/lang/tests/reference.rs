//! The examples of LANGUAGE.md do what the page says.

use containust_lang::{Code, Inputs, Loader, Severity, check, check_with, render};

const PAGE: &str = include_str!("../LANGUAGE.md");

fn examples(kind: &str) -> Vec<&'static str> {
    let fence = format!("```{kind}\n");
    let found: Vec<&str> =
        PAGE.split(&fence).skip(1).map(|after| after.split("```").next().expect("text after a fence")).collect();
    assert!(!found.is_empty(), "no example of the kind {kind}");
    found
}

/// Files that the page shows under their name.
struct Page;

impl Loader for Page {
    fn load(&self, _: &str, path: &str) -> Result<(String, Vec<u8>), String> {
        let found = PAGE.split_once(&format!("```ctst {path}\n")).and_then(|(_, after)| after.split_once("```"));
        found.map(|(file, _)| (path.to_owned(), file.as_bytes().to_vec())).ok_or_else(|| "not on this page".to_owned())
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        Ok((path != "./local.env").then(|| b"A=1\n".to_vec()))
    }
}

#[test]
fn examples_are_carried_out() {
    for example in examples("ctst") {
        let inputs = Inputs { loader: Some(&Page), ..Inputs::default() };
        let outcome = check_with("LANGUAGE.md", example.as_bytes(), "example", &|_| None, &inputs);
        let said = render(&outcome.diagnostics, example.as_bytes(), false);
        assert!(outcome.composition.is_some() && said.is_empty(), "{example}\n{said}");
    }
}

#[test]
fn what_is_refused_is_refused_as_not_supported() {
    for example in examples("ctst refused") {
        let outcome = check("LANGUAGE.md", example.as_bytes(), "example", &|_| None);
        let said = render(&outcome.diagnostics, example.as_bytes(), false);
        let errors: Vec<Code> = outcome
            .diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.severity == Severity::Error)
            .map(|diagnostic| diagnostic.code)
            .collect();
        assert!(outcome.composition.is_none() && errors.iter().all(|code| *code == Code::NotSupported), "{said}");
        for (number, line) in example.lines().enumerate() {
            assert!(
                outcome.diagnostics.iter().any(|diagnostic| diagnostic.at.line == number + 1),
                "nothing about {line}"
            );
        }
    }
}
