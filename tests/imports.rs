//! Imports from the network, against a server of our own on the loopback.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::{Arc, Mutex};

use containust_tests::{Caller, Done, Project, finish, free_port, programs};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};

const TEMPLATE: &str = "COMPONENT idle {\n  image = \"file://ROOT\"\n  command = [\"sleep\", \"1000\"]\n}\n";

/// What an address answers: a body, or a redirection.
#[derive(Clone)]
enum Answer {
    Body(Vec<u8>),
    To(String),
}

struct Server {
    port: u16,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    /// Paths that were asked for.
    asked: Arc<Mutex<Vec<String>>>,
    authority: String,
}

impl Server {
    fn new() -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).expect("make a certificate");
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a certificate");
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let server = Self { port, answers: Arc::default(), asked: Arc::default(), authority: cert.pem() };
        let (answers, asked) = (Arc::clone(&server.answers), Arc::clone(&server.asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
                let mut stream = BufReader::new(StreamOwned::new(connection, stream));
                let mut request = String::new();
                if stream.read_line(&mut request).is_err() {
                    continue;
                }
                let mut header = String::new();
                while stream.read_line(&mut header).is_ok_and(|length| length > 2) {
                    header.clear();
                }
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let answer = answers.lock().expect("a lock").get(&path).cloned();
                asked.lock().expect("a lock").push(path);
                let (head, body) = match answer {
                    Some(Answer::Body(body)) => ("200 OK".to_owned(), body),
                    Some(Answer::To(url)) => (format!("302 Found\r\nLocation: {url}"), Vec::new()),
                    None => ("404 Not Found".to_owned(), Vec::new()),
                };
                let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let stream = stream.get_mut();
                drop(stream.write_all(&[head.as_bytes(), &body].concat()));
                stream.conn.send_close_notify();
                drop(stream.flush());
            }
        });
        server
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    fn serve(&self, path: &str, body: &str) -> String {
        self.answers.lock().expect("a lock").insert(path.to_owned(), Answer::Body(body.into()));
        Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn asked(&self) -> usize {
        self.asked.lock().expect("a lock").len()
    }

    /// A project that trusts this server.
    fn project(&self, text: &str) -> Project {
        let project = Project::new(&Caller::ordinary(), text);
        project.write("ca.pem", &self.authority);
        project
    }
}

fn template() -> String {
    TEMPLATE.replace("ROOT", &programs().with_file_name("rootfs").display().to_string())
}

fn trusting(project: &Project, args: &[&str]) -> Command {
    let mut command = project.command(args);
    command.env("SSL_CERT_FILE", project.folder().join("ca.pem"));
    command
}

fn ctst(project: &Project, args: &[&str]) -> Done {
    let done = finish(&mut trusting(project, args));
    project.note();
    done
}

fn stack(url: &str, pin: &str) -> String {
    format!("IMPORT \"{url}\" {pin} AS lib\nCOMPONENT web FROM lib {{ }}\n")
}

#[test]
fn a_pinned_file_is_fetched_once() {
    let server = Server::new();
    let digest = server.serve("/idle.ctst", &template());
    let project = server.project(&stack(&server.url("/idle.ctst"), &format!("SHA256 \"{digest}\"")));
    // Neither check nor plan fetches or writes.
    for command in ["check", "plan"] {
        ctst(&project, &[command]).fails(125, &["E0221", "not fetched yet", "ctst lock"]);
    }
    assert!(!project.folder().join(".containust").exists());
    assert_eq!(server.asked(), 0);
    ctst(&project, &["build", "--offline"]).fails(125, &["--offline", ".containust/imports/", &digest]);
    assert_eq!(server.asked(), 0);
    ctst(&project, &["run", "-d"]).ok();
    assert_eq!(project.status("web")["state"], "running");
    assert_eq!(server.asked(), 1);
    for args in [&["check"][..], &["plan"], &["build", "--offline"], &["run", "-d"], &["stop"], &["rm"]] {
        ctst(&project, args).ok();
    }
    assert_eq!(server.asked(), 1);
    assert!(!project.folder().join("containust.lock").exists(), "a pin needs no lock");
    // A copy that was damaged is fetched again.
    let kept = project.folder().join(".containust/imports").join(&digest);
    project.write_bytes(&format!(".containust/imports/{digest}"), b"COMPONENT evil { }");
    ctst(&project, &["check"]).fails(125, &["not fetched yet"]);
    ctst(&project, &["lock"]).ok();
    assert_eq!(fs::read(kept).expect("it is there"), template().as_bytes());
    assert_eq!(project.left(), Vec::<String>::new());
}

#[test]
fn the_lock_holds_what_is_not_pinned() {
    let server = Server::new();
    let digest = server.serve("/idle.ctst", &template());
    let url = server.url("/idle.ctst");
    let project = server.project(&stack(&url, ""));
    for command in ["check", "run", "build"] {
        ctst(&project, &[command]).fails(125, &["E0221", "nothing says which digest", "ctst lock"]);
    }
    assert_eq!(server.asked(), 0);
    let done = ctst(&project, &["lock"]).ok();
    assert_eq!(done.stdout, format!("{digest}  {url}\n"));
    let lock = fs::read_to_string(project.folder().join("containust.lock")).expect("it was written");
    assert!(lock.contains(&digest) && lock.contains(&url), "{lock}");
    ctst(&project, &["check"]).ok();
    assert_eq!(ctst(&project, &["lock"]).ok().stdout, "", "nothing is new");

    // The file changes under the lock: elsewhere, with the lock and without what was fetched.
    let changed = server.serve("/idle.ctst", &(template() + "// changed\n"));
    fs::remove_dir_all(project.folder().join(".containust/imports")).expect("forget what was fetched");
    for command in ["build", "lock"] {
        ctst(&project, &[command]).fails(125, &["E0221", "has changed", &changed, &digest, "ctst lock --update"]);
    }
    assert_eq!(fs::read_to_string(project.folder().join("containust.lock")).expect("still there"), lock);
    assert_eq!(ctst(&project, &["lock", "--update"]).ok().stdout, format!("{changed}  {url}\n"));
    ctst(&project, &["check"]).ok();

    for (broken, says) in [
        ("version = 9\n", "newer"),
        ("version = 1\nimport = 1\n", "unknown field"),
        (&lock.replace(&digest, "12"), "hexadecimal"),
    ] {
        project.write("containust.lock", broken);
        ctst(&project, &["check"]).fails(125, &["containust.lock", says]);
    }
}

#[test]
fn what_the_network_does_wrong() {
    let server = Server::new();
    let large = "/".repeat(5 << 20);
    let digest = server.serve("/large.ctst", &large);
    let plain = format!("http://localhost:{}/large.ctst", server.port);
    server.answers.lock().expect("a lock").insert("/plain".into(), Answer::To(plain));
    server.answers.lock().expect("a lock").insert("/circle".into(), Answer::To(server.url("/circle")));
    let pin = format!("SHA256 \"{digest}\"");
    let closed = format!("https://localhost:{}/x", free_port());
    for (url, says) in [
        (server.url("/large.ctst"), "larger than"),
        (server.url("/missing"), "404"),
        (server.url("/plain"), "https"),
        (server.url("/circle"), "redirect"),
        (closed, "refused"),
        ("https://name.invalid/x".to_owned(), "name.invalid"),
    ] {
        let project = server.project(&stack(&url, &pin));
        ctst(&project, &["lock"]).fails(125, &["E0221", says]);
        // A certificate that nobody vouches for.
        let mut stranger = trusting(&project, &["lock"]);
        finish(stranger.env("SSL_CERT_FILE", "/etc/hostname")).fails(125, &["E0221"]);
        assert!(!project.folder().join("containust.lock").exists());
        assert!(!project.folder().join(".containust").exists());
    }
}

#[test]
fn parameters_come_from_files() {
    let text = "PARAM greeting REQUIRED\nPARAM other = \"x\"\nCOMPONENT web {\n  image = \"file://ROOTFS\"\n  \
                command = [\"sh\", \"-c\", \"echo $G$O\"]\n  env { G = \"${greeting}\", O = \"${other}\" }\n}\n";
    let project = Project::new(&Caller::ordinary(), text);
    project.write("a.params", "# values\n\ngreeting = from a file\nother=1\n");
    project.write("b.params", "other=2\n");
    project.ctst(["run", "--params", "a.params", "--params", "b.params", "--set", "other=3"]).ok();
    assert_eq!(project.logs("web"), "from a file3\n");
    project.write("bad.params", "greeting=x\nsecret-without-a-name\n");
    let done = project.ctst(["check", "--params", "bad.params"]).fails(125, &["bad.params", "line 2"]);
    assert!(!done.stderr.contains("secret-without"), "{done}");
    project.ctst(["check", "--params", "none.params"]).fails(125, &["none.params"]);
}

#[test]
fn a_bundle_has_what_was_fetched() {
    let server = Server::new();
    server.serve("/idle.ctst", &template());
    let project = server.project(&stack(&server.url("/idle.ctst"), ""));
    ctst(&project, &["lock"]).ok();
    finish(&mut trusting(&project, &["bundle", "-o", "x.ctstar"])).ok();
    let asked = server.asked();
    let there = Project::new(&Caller::ordinary(), "");
    fs::remove_file(there.folder().join("stack.ctst")).expect("remove a file");
    there.write_bytes("x.ctstar", &fs::read(project.folder().join("x.ctstar")).expect("read the bundle"));
    there.ctst(["--offline", "check"]).ok();
    there.ctst(["--offline", "up", "--yes"]).ok();
    assert_eq!(there.status("web")["state"], "running");
    assert_eq!(server.asked(), asked);
    there.stop();
    there.assert_nothing_left();
}
