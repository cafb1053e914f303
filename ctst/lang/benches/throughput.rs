//! `cargo bench -p containust-lang`: megabytes a second, parsed and checked.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

fn composition(components: usize) -> String {
    let mut source = String::new();
    for number in 0..components {
        write!(
            source,
            r#"// service number {number}
COMPONENT service{number} {{
    image   = "file:///srv/images/service"
    port    = 8080
    command = ["/usr/bin/serve", "--listen", "0.0.0.0:8080", "--name", "service{number}"]
    env {{
        LOG_LEVEL = "${{env.LOG_LEVEL:-info}}"
        WORKERS   = 4
        UPSTREAM  = "http://${{service0.host}}:${{service0.port}}/v1"
    }}
    healthcheck {{ http = "/healthz", interval = 10s, timeout = 3s, retries = 5 }}
    volumes  = ["./data/{number}:/data", "/etc/ssl:/etc/ssl:ro"]
    tmpfs    = ["/cache:size=64MiB"]
    restart  = "on-failure"
    readonly = true
}}
CONNECT service{} -> service0 WHEN started
"#,
            number + 1
        )
        .expect("a string can be written to");
    }
    write!(source, "COMPONENT service{components} {{ image = \"host:///bin/true\" }}")
        .expect("a string can be written to");
    source
}

fn measure(what: &str, source: &str, mut work: impl FnMut(&[u8])) {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        work(black_box(source.as_bytes()));
        best = best.min(start.elapsed().as_secs_f64());
    }
    let megabytes = source.len() as f64 / 1e6;
    println!("{what}: {megabytes:.1} MB in {:.1} ms, {:.0} MB/s", best * 1e3, megabytes / best);
}

fn main() {
    let source = composition(10_000);
    measure("parse", &source, |bytes| {
        black_box(containust_lang::parse("bench", bytes));
    });
    measure("check", &source, |bytes| {
        let outcome = containust_lang::check("bench", bytes, "bench", &|_| None);
        assert!(outcome.composition.is_some());
    });
}
