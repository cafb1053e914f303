//! A page on each diagnostic code.

use crate::codes::CODES;

/// Each section is a code, what there is to say, and an example that is wrong and one that is right.
const PAGES: &str = include_str!("explain.txt");

/// The page on a code such as `E0101`, upper case or lower; `None` if there is no such code.
///
/// It is plain text: what the code means and why, then an example that yields it and one that does not. Lines that
/// begin with `==== ` in an example name a further file.
#[must_use]
pub fn explain(code: &str) -> Option<String> {
    let code = CODES.iter().find(|known| known.as_str().eq_ignore_ascii_case(code.trim()))?;
    let (words, examples) = section(code.as_str())?;
    let mut page = format!("{}: {}\n\n{words}\n", code.as_str(), code.title());
    for example in examples {
        let (head, source) = example.split_once('\n').unwrap_or((example, ""));
        let mut head = head.split(' ');
        page.push_str(if head.next() == Some("bad") { "\nwrong" } else { "\nright" });
        match (head.next(), head.next()) {
            (Some("set"), Some(value)) => page.push_str(&format!(", with the parameter {value}")),
            (Some("profile"), Some(name)) => page.push_str(&format!(", with the profile {name}")),
            _ => {}
        }
        page.push_str(":\n\n");
        for line in source.lines() {
            page.push_str(&format!("    {line}\n"));
        }
    }
    Some(page)
}

/// The words on a code, and its examples, each with a line before it.
fn section(code: &str) -> Option<(&'static str, impl Iterator<Item = &'static str>)> {
    let (_, after) = PAGES.split_once(&format!("## {code}\n"))?;
    let mut parts = after.split("\n## ").next().unwrap_or(after).trim_end().split("\n--- ");
    Some((parts.next()?, parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Inputs, Loader};

    const ENDLESS: &str = "every other file, which imports yet another one";

    /// The further files of an example.
    struct Files<'a>(Vec<(&'a str, &'a str)>);

    impl Loader for Files<'_> {
        fn load(&self, _: &str, path: &str) -> Result<(String, Vec<u8>), String> {
            let found = self.0.iter().find(|(name, _)| *name == path || *name == ENDLESS);
            let (name, content) = found.ok_or_else(|| "no such file".to_owned())?;
            let next = format!("IMPORT \"x{path}\"\n");
            Ok((path.to_owned(), if *name == ENDLESS { next.into_bytes() } else { content.as_bytes().to_vec() }))
        }

        fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
            let found = self.0.iter().find(|(name, _)| *name == path.trim_start_matches("./"));
            Ok(found.map(|(_, content)| content.as_bytes().to_vec()))
        }
    }

    /// The codes that an example yields.
    fn codes(example: &str) -> Vec<&'static str> {
        let (head, source) = example.split_once('\n').unwrap_or_default();
        let mut files = source.split("==== ");
        let main = files.next().unwrap_or_default();
        let files = files.map(|file| file.split_once('\n').unwrap_or((file, "")));
        // The end of a section is trimmed, and a pin counts the line end.
        let files: Vec<(&str, String)> = files.map(|(name, text)| (name, format!("{}\n", text.trim_end()))).collect();
        let files = Files(files.iter().map(|(name, text)| (*name, text.as_str())).collect());
        let given = |what: &str| head.split_once(what).map(|(_, value)| value.trim().to_owned());
        let params: Vec<(String, String)> =
            given("set").iter().filter_map(|set| set.split_once('=')).map(|(a, b)| (a.into(), b.into())).collect();
        let profiles: Vec<String> = given("profile").into_iter().collect();
        let inputs = Inputs { params: &params, profiles: &profiles, loader: Some(&files) };
        let outcome = crate::check_with("f", main.as_bytes(), "p", &|_| None, &inputs);
        outcome.diagnostics.iter().map(|found| found.code.as_str()).collect()
    }

    #[test]
    fn every_code_has_a_page_with_examples_that_are_true() {
        // Too large, too many or not text at all: tested in tests/limits.rs.
        let without = ["E0001", "E0002", "E0003"];
        for code in CODES.iter().map(|code| code.as_str()) {
            let (words, examples) = section(code).unwrap_or_else(|| panic!("no page on {code}"));
            assert!(words.len() > 60, "{code}");
            let examples: Vec<&str> = examples.collect();
            if without.contains(&code) {
                assert!(examples.is_empty());
                continue;
            }
            let [bad, good] = examples.as_slice() else { panic!("{code} has not two examples") };
            assert!(bad.starts_with("bad") && good.starts_with("good"), "{code}");
            assert!(codes(bad).contains(&code), "{code}: {:?}", codes(bad));
            assert_eq!(codes(good), Vec::<&str>::new(), "{code}");
        }
        assert_eq!(PAGES.matches("\n## ").count() + 1, CODES.len());
    }

    #[test]
    fn a_page() {
        let page = explain("w0005").unwrap_or_default();
        assert!(page.starts_with("W0005: a parameter is used nowhere\n\nNothing refers"), "{page}");
        assert!(page.contains("\nwrong:\n\n    PARAM level"), "{page}");
        assert!(explain("E0220").is_some_and(|page| page.contains("right, with the parameter level=debug:")));
        assert_eq!(explain("E9999"), None);
        assert_eq!(explain(""), None);
    }
}
