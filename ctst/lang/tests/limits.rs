//! Inputs that are too large, too deep or too many: an answer in linear time, on a small stack, without a panic.

use std::fmt::Write as _;

use containust_lang::{Code, MAX_DIAGNOSTICS, MAX_SOURCE, Outcome, check, render};

const LARGE: usize = 50 << 20;

fn run(bytes: &[u8]) -> Outcome {
    check("f.ctst", bytes, "p", &|_| None)
}

fn codes(outcome: &Outcome) -> Vec<Code> {
    outcome.diagnostics.iter().map(|diagnostic| diagnostic.code).collect()
}

fn repeated(pattern: &str, size: usize) -> Vec<u8> {
    pattern.as_bytes().repeat(size / pattern.len())
}

#[test]
fn fifty_megabytes_that_are_no_composition() {
    for pattern in ["\0", "\"", "{", "[", "x", "\\\" ", "a = ", "\u{1F600}\n", "\"\"\"\"\n"] {
        let bytes = repeated(pattern, LARGE);
        let outcome = run(&bytes);
        assert_eq!(outcome.composition, None, "{pattern:?}");
        assert!(outcome.diagnostics.len() <= MAX_DIAGNOSTICS + 1);
        let rendered = render(&outcome.diagnostics, &bytes, true);
        assert!(rendered.len() < 5 << 20, "{} bytes for {pattern:?}", rendered.len());
    }
}

#[test]
fn a_binary_file_has_one_error() {
    let mut bytes = vec![b' '; LARGE];
    bytes[LARGE - 7] = 0xff;
    let outcome = run(&bytes);
    assert_eq!(codes(&outcome), [Code::NotUtf8]);
    assert!(outcome.diagnostics[0].message.contains(&(LARGE - 7).to_string()));
    assert_eq!(outcome.diagnostics[0].at.column, LARGE - 6);
    assert_eq!(codes(&run(b"COMPONENT a { image = \"\xe2\x82")), [Code::NotUtf8]);
}

#[test]
fn a_file_beyond_the_limit_is_refused() {
    assert_eq!(codes(&run(&vec![0; MAX_SOURCE + 1])), [Code::TooLarge]);
}

#[test]
fn fifty_megabytes_of_comments_are_fine() {
    let mut bytes = repeated("// COMPONENT b { }\n", LARGE);
    bytes.extend_from_slice(b"COMPONENT a { image = \"host:///bin/true\" }");
    let composition = run(&bytes).composition.expect("a composition");
    assert_eq!(composition.components[0].line, LARGE / 19 + 1);
}

#[test]
fn a_large_body() {
    let mut source = String::from("COMPONENT a { image = \"host:///bin/true\" env {");
    for number in 0..500_000 {
        writeln!(source, "A{number} = {number}").expect("a string can be written to");
    }
    source.push_str("} }");
    let composition = run(source.as_bytes()).composition.expect("a composition");
    assert_eq!(composition.components[0].env.len(), 500_000);
}

#[test]
fn many_components_in_a_chain() {
    let mut source = String::new();
    for number in 0..50_000 {
        writeln!(
            source,
            "COMPONENT c{number} {{ image = \"host:///bin/true\" port = 80 env {{ NEXT = \"${{c{}.host}}\" }} }}",
            number + 1
        )
        .expect("a string can be written to");
        writeln!(source, "CONNECT c{number} -> c{}", number + 1).expect("a string can be written to");
    }
    let mut circle = source.clone();
    source.push_str("COMPONENT c50000 { image = \"host:///bin/true\" }");
    circle.push_str("COMPONENT c50000 { image = \"host:///bin/true\" } CONNECT c50000 -> c0");
    assert_eq!(run(source.as_bytes()).composition.expect("a composition").components.len(), 50_001);
    let outcome = run(circle.as_bytes());
    assert_eq!(codes(&outcome), [Code::Circle]);
    assert!(outcome.diagnostics[0].message.len() < 200, "{}", outcome.diagnostics[0].message);
}

#[test]
fn many_errors_are_cut() {
    let outcome = run(&repeated("CONNECT a -> b\n", 1 << 20));
    assert_eq!(outcome.diagnostics.len(), MAX_DIAGNOSTICS + 1);
    assert_eq!(outcome.diagnostics.last().map(|diagnostic| diagnostic.code), Some(Code::TooManyErrors));
}

#[test]
fn small_files_do_not_become_large_compositions() {
    let mut ranges = String::from("COMPONENT a { image = \"host:///bin/true\" }\n");
    for address in 0..200 {
        writeln!(ranges, "EXPOSE 127.0.1.{address}:1-65535 -> a:1-65535").expect("a string can be written to");
    }
    assert!(codes(&run(ranges.as_bytes())).contains(&Code::TooManyPorts));

    let mut expanded = String::from("COMPONENT a { image = \"host:///bin/true\" env {");
    for number in 0..10_000 {
        write!(expanded, "A{number} = \"${{env.LONG}}\" ").expect("a string can be written to");
    }
    expanded.push_str("} }");
    let long = "x".repeat(100_000);
    let outcome = check("f", expanded.as_bytes(), "p", &|_| Some(long.clone()));
    assert!(codes(&outcome).contains(&Code::TooLong));
}

/// Templates multiply what they hold, and parameters that repeat each other would double it at each level.
#[test]
fn templates_do_not_multiply_without_end() {
    let mut doubling = String::from("TEMPLATE t0(a) { image = \"host:///bin/true\" command = \"${a}${a}\" }\n");
    for level in 1..60 {
        writeln!(doubling, "TEMPLATE t{level}(a) FROM t{}(a = \"${{a}}${{a}}\") {{ }}", level - 1)
            .expect("a string can be written to");
    }
    for (end, code) in [("x", Code::TooLong), ("${b}", Code::UnknownReference), ("${c.host}", Code::UnknownReference)] {
        let source = format!("{doubling}COMPONENT c FROM t59(a = \"{end}\") {{ image = \"file://${{a}}\" }}");
        assert!(codes(&run(source.as_bytes())).contains(&code), "{end}");
        let source = format!("{doubling}COMPONENT c FROM t59(a = \"{end}\") {{ }}");
        assert!(!codes(&run(source.as_bytes())).is_empty() || end == "${c.host}", "{end}");
    }

    let mut wide = String::from("TEMPLATE t { image = \"host:///bin/true\" env {");
    for number in 0..10_000 {
        write!(wide, "A{number} = 1 ").expect("a string can be written to");
    }
    wide.push_str("} }\n");
    for number in 0..10_000 {
        writeln!(wide, "COMPONENT c{number} FROM t {{ }}").expect("a string can be written to");
    }
    assert_eq!(codes(&run(wide.as_bytes())), [Code::TooLong]);

    let mut chain = String::from("COMPONENT c0 { image = \"host:///bin/true\" }\n");
    for number in 1..50_000 {
        writeln!(chain, "COMPONENT c{number} FROM c{} {{ env {{ A{number} = 1 }} }}", number - 1)
            .expect("a string can be written to");
    }
    assert!(codes(&run(chain.as_bytes())).contains(&Code::TooManyLevels));
    chain.push_str("COMPONENT z FROM z { }");
    let circle = chain.replacen("COMPONENT c0 {", "COMPONENT c0 FROM c49999 {", 1);
    assert!(codes(&run(circle.as_bytes())).contains(&Code::InheritanceCircle));
}

/// Two thousand times deeper than the limit, on a stack of a quarter of a megabyte.
#[test]
fn nesting_does_not_take_the_stack() {
    let deep = std::thread::Builder::new().stack_size(256 << 10).spawn(|| {
        for (open, close) in [("[", "]"), ("{ a = ", "}"), ("{ a ", "}"), ("{ a = [", "]}")] {
            let depth = 128_000;
            for source in [
                format!("COMPONENT a {{ image = {}1{} }}", open.repeat(depth), close.repeat(depth)),
                format!("COMPONENT a {{ image = {}", open.repeat(depth)),
            ] {
                assert!(codes(&run(source.as_bytes())).contains(&Code::TooDeep), "{open}");
            }
            let legal = format!("COMPONENT a {{ image = {}1{} }}", open.repeat(20), close.repeat(20));
            assert!(!codes(&run(legal.as_bytes())).contains(&Code::TooDeep), "{open}");
        }
    });
    deep.expect("a thread").join().expect("no overflow");
}

#[test]
fn crowds_in_lists() {
    let numbered = |form: &str, count: usize| -> String {
        (0..count).map(|number| form.replace('%', &number.to_string())).collect::<Vec<_>>().concat()
    };
    let groups = numbered("\"g%\",", 100_000);
    let secrets = numbered("E% = \"${secret.s}\" ", 100_000);
    let labels = numbered("\"l%=x\",", 100_000);
    let source = format!(
        "COMPONENT a {{ image = \"host:///bin/true\" groups = [{groups}] profiles = [{groups}] labels = [{labels}] env {{ {secrets} }} }}"
    );
    assert_eq!(
        codes(&run(source.replace("profiles", "include").replace("include = [\"g", "include = [\"/g").as_bytes()))
            .len(),
        1001
    );
    let source = source.replace(&format!("profiles = [{groups}]"), "");
    let composition = run(source.as_bytes()).composition.expect("a composition");
    assert_eq!((composition.components[0].groups.len(), composition.components[0].labels.len()), (100_000, 100_000));
    assert_eq!((composition.components[0].secret_env.len(), composition.secrets.len()), (100_000, 1));

    let volumes = format!(
        "{}COMPONENT a {{ image = \"host:///bin/true\" volumes = [{}] }}",
        numbered("VOLUME v%\n", 50_000),
        numbered("\"w%:/w%\",", 50_000)
    );
    assert!(run(volumes.as_bytes()).diagnostics.len() > 1000, "nothing mounts them");

    let configs = format!(
        "{}COMPONENT a {{ image = \"host:///bin/true\" configs = [{}] }}",
        numbered("CONFIG v% = \"x\"\n", 50_000),
        numbered("\"w%\",", 50_000)
    );
    assert!(run(configs.as_bytes()).diagnostics.len() > 1000);
}

#[test]
fn replicas_of_replicas_have_an_end() {
    let mut source = String::new();
    for number in 0..40 {
        writeln!(source, "COMPONENT r{number} {{ image = \"host:///bin/true\" replicas = 100 }}")
            .expect("a string can be written to");
    }
    let few = source.clone() + "CONNECT r0 -> r1, r2, r3";
    let composition = run(few.as_bytes()).composition.expect("a composition");
    assert_eq!((composition.components.len(), composition.components[99].after.len()), (4000, 300));
    for number in 0..10_000 {
        writeln!(source, "COMPONENT c{number} {{ image = \"host:///bin/true\" }}").expect("a string can be written to");
        let all: Vec<String> = (0..40).map(|replica| format!("r{replica}")).collect();
        writeln!(source, "CONNECT c{number} -> {}", all.join(", ")).expect("a string can be written to");
    }
    assert!(codes(&run(source.as_bytes())).contains(&Code::TooLong));
    let source: String = (0..50)
        .map(|number| format!("COMPONENT r{number} {{ image = \"host:///bin/true\" replicas = 100 }}\n"))
        .collect();
    assert_eq!(codes(&run(source.as_bytes())), [Code::OutOfRange]);
}
