//! `cargo bench -p containust-lang`: megabytes a second, parsed and checked.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use containust_lang::syntax::Arena;

/// The best of so many counts.
const RUNS: usize = 200;

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

/// Plainer ones, without placeholders.
fn plain(components: usize) -> String {
    let mut source = String::new();
    for number in 0..components {
        write!(
            source,
            r#"// service number {number}, one of many that are alike
COMPONENT service{number} {{
    image   = "file:///srv/images/service"
    port    = 8080
    command = ["/usr/bin/serve", "--listen", "0.0.0.0:8080"]
    env {{
        LOG_LEVEL = "info"
        NAME      = "service{number}"
        WORKERS   = 4
    }}
    healthcheck {{ http = "/healthz", interval = 10s }}
    volumes  = ["./data/{number}:/data"]
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

/// Time that this thread has been on a processor, so that what else runs on the machine does not count.
fn on_processor() -> f64 {
    let figures = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    figures.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).unwrap_or_default() / 1e9
}

/// Of two threads the time on the processor is that of the first, waiting for the other one not included.
fn measure<T>(what: &str, source: &str, mut work: impl FnMut(&[u8]) -> T) {
    let (mut best, mut best_on_processor, mut best_freed) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        let (start, start_on_processor) = (Instant::now(), on_processor());
        let result = work(black_box(source.as_bytes()));
        best = best.min(start.elapsed().as_secs_f64());
        best_on_processor = best_on_processor.min(on_processor() - start_on_processor);
        let start = Instant::now();
        drop(black_box(result));
        best_freed = best_freed.min(start.elapsed().as_secs_f64());
    }
    let megabytes = source.len() as f64 / 1e6;
    println!(
        "{what}: {megabytes:.1} MB in {:.1} ms, {:.1} ms of them on the processor, {:.0} MB/s; {:.1} ms more to free it",
        best * 1e3,
        best_on_processor * 1e3,
        megabytes / best_on_processor,
        best_freed * 1e3
    );
}

fn main() {
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    let sources = if asked("--plain") { vec![plain(10_000)] } else { vec![composition(10_000), plain(10_000)] };
    if asked("--once") {
        // For counting instructions.
        let once = |source: &String| containust_lang::check("bench", source.as_bytes(), "bench", &|_| None);
        black_box(sources.iter().map(once).collect::<Vec<_>>());
        return;
    }
    for source in sources {
        measure("parse", &source, |bytes| {
            let arena = Arena::new();
            black_box(containust_lang::parse("bench", bytes, &arena));
            arena
        });
        measure("check", &source, |bytes| {
            let outcome = containust_lang::check("bench", bytes, "bench", &|_| None);
            assert!(outcome.composition.is_some());
            outcome
        });
    }
}
