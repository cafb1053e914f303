//! The grammar is that of the parser, and the schema that of the model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use containust_lang::syntax::Arena;
use containust_lang::{Inputs, Loader, check, check_with, grammar, model_schema, parse};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;

/// A production, as the page writes it.
#[derive(Debug, Clone)]
enum Rule {
    Word(String),
    Name(String),
    Sequence(Vec<Rule>),
    Choice(Vec<Rule>),
    Maybe(Box<Rule>),
    Many(Box<Rule>),
}

fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut left = text.trim_start();
    while let Some(first) = left.chars().next() {
        let length = match first {
            '"' => 2 + left[1..].find('"').expect("a closing quote"),
            c if c.is_ascii_alphanumeric() => left.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(left.len()),
            _ => 1,
        };
        tokens.push(left[..length].to_owned());
        left = left[length..].trim_start();
    }
    tokens
}

fn choice(tokens: &mut std::iter::Peekable<std::vec::IntoIter<String>>) -> Rule {
    let mut choices = Vec::new();
    let mut sequence = Vec::new();
    while let Some(token) = tokens.next_if(|token| !matches!(token.as_str(), "]" | "}" | ")")) {
        let mut inner = |close: &str| {
            let rule = Box::new(choice(tokens));
            assert_eq!(tokens.next().as_deref(), Some(close));
            rule
        };
        sequence.push(match token.as_str() {
            "|" => {
                choices.push(Rule::Sequence(std::mem::take(&mut sequence)));
                continue;
            }
            "[" => Rule::Maybe(inner("]")),
            "{" => Rule::Many(inner("}")),
            "(" => *inner(")"),
            word if word.starts_with('"') => Rule::Word(word.trim_matches('"').to_owned()),
            name => Rule::Name(name.to_owned()),
        });
    }
    choices.push(Rule::Sequence(sequence));
    Rule::Choice(choices)
}

fn rules() -> BTreeMap<String, Rule> {
    let lines = grammar().lines().filter(|line| line.contains(" = ") && line.contains(" ;"));
    lines
        .map(|line| {
            let (name, rule) = line.split_once('=').expect("a production");
            let (rule, _) = rule.rsplit_once(" ;").expect("an end");
            (name.trim().to_owned(), choice(&mut tokens(rule).into_iter().peekable()))
        })
        .collect()
}

/// Writes a sentence; `picks` says which way at each fork, and the shortest one when they are used up.
struct Writer<'a> {
    rules: &'a BTreeMap<String, Rule>,
    picks: Vec<Index>,
    out: Vec<String>,
}

impl Writer<'_> {
    fn pick(&mut self, ways: usize) -> usize {
        self.picks.pop().map_or(0, |pick| pick.index(ways))
    }

    fn write(&mut self, rule: &Rule) {
        match rule {
            Rule::Word(word) => self.out.push(word.clone()),
            Rule::Sequence(list) => list.iter().for_each(|rule| self.write(rule)),
            Rule::Choice(list) => {
                let way = self.pick(list.len());
                self.write(&list[way]);
            }
            Rule::Maybe(rule) => {
                if self.pick(2) == 1 {
                    self.write(rule);
                }
            }
            Rule::Many(rule) => {
                for _ in 0..self.pick(3) {
                    self.write(rule);
                }
            }
            Rule::Name(name) => {
                let words: &[&str] = match name.as_str() {
                    "name" => &["web", "my-db", "\"quoted\"", "a_1", "env"],
                    "path" => &["base", "pg.server"],
                    "string" => &["\"text\"", "\"\\u{e4} ${env.X:-y}\"", "\"\"\"\n  block\n  \"\"\""],
                    "integer" => &["80", "-1"],
                    "decimal" => &["0.5"],
                    "port" => &["80", "65535"],
                    "size" => &["64MiB", "1.5g"],
                    "duration" => &["500ms", "1m30s"],
                    "ipv4" => &["127.0.0.1"],
                    "ipv6" => &["::1", "::ffff:127.0.0.1"],
                    _ => {
                        let rule = self.rules.get(name).unwrap_or_else(|| panic!("no rule for {name}"));
                        return self.write(rule);
                    }
                };
                let way = self.pick(words.len());
                self.out.push(words[way].to_owned());
            }
        }
    }

    /// The parts of an EXPOSE stand without blanks.
    fn text(&self) -> String {
        let mut text = String::new();
        let mut expose = false;
        for (place, word) in self.out.iter().enumerate() {
            match word.as_str() {
                "EXPOSE" => expose = true,
                upper if upper != "PUBLIC" && upper.chars().all(|c| c.is_ascii_uppercase()) => expose = false,
                _ => {}
            }
            let back = |steps| place.checked_sub(steps).map_or("", |before: usize| self.out[before].as_str());
            let before = back(1);
            if word == "{" && matches!(before, "base" | "pg.server" | "true" | "false") && back(2) != "FROM" {
                text.push(',');
            }
            let tight = |word: &str| matches!(word, ":" | "[" | "]" | "-" | "/");
            if !(expose && ((tight(word) && before != "EXPOSE") || tight(before))) {
                text.push(' ');
            }
            text.push_str(word);
        }
        text
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the grammar allows, the parser reads.
    #[test]
    fn sentences_of_the_grammar(picks in prop::collection::vec(any::<Index>(), 0..60), statement in any::<Index>()) {
        let rules = rules();
        let Some(Rule::Choice(statements)) = rules.get("statement") else { panic!("no statements") };
        let mut writer = Writer { rules: &rules, picks, out: Vec::new() };
        writer.write(statement.get(statements));
        let text = writer.text();
        let found = parse("f", text.as_bytes(), &Arena::new()).1;
        prop_assert!(found.is_empty(), "{text}\n{found:?}");
    }
}

#[test]
fn the_grammar_is_whole_and_small() {
    assert!(rules().len() > 20);
    assert!(grammar().len() < 8000, "{} bytes are too many for a prompt", grammar().len());
    let (_, examples) = grammar().split_once("Examples\n").expect("examples");
    let outcome = check("grammar", examples.as_bytes(), "p", &|_| None);
    assert_eq!(outcome.render(examples.as_bytes(), false), "");
    assert!(outcome.composition.is_some());
    // Every property that an error offers is named.
    let source = b"COMPONENT a { x = 1 healthcheck { x = 1 } }";
    for found in check("f", source, "p", &|_| None).diagnostics {
        if let Some(list) = found.expected.as_ref().and_then(|expected| expected.strip_prefix("one of ")) {
            for property in list.split(", ") {
                assert!(grammar().contains(property), "{property}");
            }
        }
    }
    let statements = parse("f", b"x", &Arena::new()).1.remove(0).expected.expect("the statements");
    for statement in statements.split(", ") {
        assert!(grammar().contains(&format!("\"{statement}\"")), "{statement}");
    }
}

/// Compares a value with the part of JSON Schema that ours uses, and notes which properties it has seen.
fn fits(value: &Value, schema: &Value, root: &Value, seen: &mut BTreeSet<String>) -> Result<(), String> {
    let fail = |what: &str| Err(format!("{what}: {value} does not fit {schema}"));
    if let Some(reference) = schema["$ref"].as_str() {
        let target = root.pointer(reference.trim_start_matches('#')).expect("a definition");
        return fits(value, target, root, seen);
    }
    if let Some(ways) = schema["anyOf"].as_array() {
        return match ways.iter().any(|way| fits(value, way, root, seen).is_ok()) {
            true => Ok(()),
            false => fail("anyOf"),
        };
    }
    if let Some(allowed) = schema["enum"].as_array() {
        return if allowed.contains(value) { Ok(()) } else { fail("enum") };
    }
    match schema["type"].as_str().expect("a type") {
        "string" if value.is_string() => Ok(()),
        "boolean" if value.is_boolean() => Ok(()),
        "null" if value.is_null() => Ok(()),
        "integer" if value.is_u64() => {
            let number = value.as_u64().unwrap_or_default();
            let low = schema["minimum"].as_u64().unwrap_or(0);
            let high = schema["maximum"].as_u64().unwrap_or(u64::MAX);
            if (low..=high).contains(&number) { Ok(()) } else { fail("range") }
        }
        "array" if value.is_array() => {
            value.as_array().into_iter().flatten().try_for_each(|item| fits(item, &schema["items"], root, seen))
        }
        "object" if value.is_object() => {
            let (Some(value), Some(known)) = (value.as_object(), schema["properties"].as_object()) else {
                return fail("properties");
            };
            let mut required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            if !required.all(|name| value.contains_key(name)) || !value.keys().all(|name| known.contains_key(name)) {
                return fail("required");
            }
            for (name, value) in value {
                fits(value, &known[name], root, seen)?;
                seen.insert(format!("{}.{name}", schema["description"]));
            }
            Ok(())
        }
        _ => fail("type"),
    }
}

fn properties(schema: &Value, all: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(known) = map.get("properties").and_then(Value::as_object) {
                all.extend(known.keys().map(|name| format!("{}.{name}", map["description"])));
            }
            map.values().for_each(|value| properties(value, all));
        }
        Value::Array(list) => list.iter().for_each(|value| properties(value, all)),
        _ => {}
    }
}

/// Every file is there and empty.
struct Empty;

impl Loader for Empty {
    fn load(&self, _: &str, _: &str) -> Result<(String, Vec<u8>), String> {
        Err("nothing is imported".to_owned())
    }

    fn read(&self, _: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(Some(Vec::new()))
    }
}

#[test]
fn the_schema_is_that_of_the_model() {
    let schema: Value = serde_json::from_str(model_schema()).expect("the schema is JSON");
    let mut seen = BTreeSet::new();
    for folder in ["valid", "base/carried-out"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(folder);
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "ctst") {
                let bytes = fs::read(&path).expect("a file");
                let inputs = Inputs { loader: Some(&Empty), ..Inputs::default() };
                let Some(composition) = check_with("f", &bytes, "p", &|_| None, &inputs).composition else { continue };
                let value = serde_json::to_value(&composition).expect("it can be serialised");
                assert_eq!(fits(&value, &schema, &schema, &mut seen), Ok(()), "{}", path.display());
            }
        }
    }
    let mut all = BTreeSet::new();
    properties(&schema, &mut all);
    assert_eq!(all.difference(&seen).collect::<Vec<_>>(), Vec::<&String>::new(), "never seen in a composition");
}
