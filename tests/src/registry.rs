//! Registries on the loopback: one of our own, which can be made to do what none should, and Debian's docker-registry.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::archive::{gzip, sha256};
use crate::project::{eventually, free_port, target};

/// Types of documents and blobs.
pub mod kind {
    /// An OCI index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An OCI manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An OCI configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer compressed by gzip.
    pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A layer compressed by zstd.
    pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// A plain layer.
    pub const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
    /// docker's list of manifests.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// docker's configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// docker's layer.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
}

/// This machine, as images call it.
#[must_use]
pub fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }
}

/// A request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Such as `GET`.
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Asked {
    /// A header's value, or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Such as 200.
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// What is sent.
    pub body: Vec<u8>,
    /// What length is announced, where that is another.
    pub announced: Option<usize>,
}

impl Answer {
    /// An empty one.
    #[must_use]
    pub fn of(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// The same with a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The same with a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// What a registry holds: bodies and their types by path.
pub type Content = BTreeMap<String, (String, Vec<u8>)>;

/// A descriptor.
#[must_use]
pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len() })
}

/// What is put together to an image.
pub struct Image {
    /// Types of manifest, configuration, and layers.
    pub kinds: [&'static str; 2],
    /// Of each layer: type, what is served, and what it is uncompressed.
    pub layers: Vec<(&'static str, Vec<u8>, Vec<u8>)>,
    /// How it is run.
    pub config: Value,
    /// For which machine.
    pub architecture: String,
}

impl Image {
    /// An OCI image of layers that are compressed by gzip.
    #[must_use]
    pub fn oci(layers: &[Vec<u8>], config: &Value) -> Self {
        Self {
            kinds: [kind::MANIFEST, kind::CONFIG],
            layers: layers.iter().map(|layer| (kind::GZIP, gzip(layer), layer.clone())).collect(),
            config: config.clone(),
            architecture: architecture().to_owned(),
        }
    }

    /// Its configuration.
    #[must_use]
    pub fn document(&self) -> String {
        let diffs: Vec<String> = self.layers.iter().map(|(_, _, layer)| format!("sha256:{}", sha256(layer))).collect();
        json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diffs },
        })
        .to_string()
    }

    /// Its manifest.
    #[must_use]
    pub fn manifest(&self) -> Value {
        let layers: Vec<Value> = self.layers.iter().map(|(kind, blob, _)| descriptor(kind, blob)).collect();
        let config = descriptor(self.kinds[1], self.document().as_bytes());
        json!({ "schemaVersion": 2, "mediaType": self.kinds[0], "config": config, "layers": layers })
    }

    /// Puts it into a registry's content, under its digest, which is returned, and its tag.
    pub fn put(&self, content: &mut Content, repository: &str, tag: &str) -> String {
        for (_, blob, _) in &self.layers {
            put_blob(content, repository, blob);
        }
        put_blob(content, repository, self.document().as_bytes());
        put_manifest(content, repository, tag, self.kinds[0], self.manifest().to_string().as_bytes())
    }
}

/// Puts a blob into a registry's content.
pub fn put_blob(content: &mut Content, repository: &str, bytes: &[u8]) {
    let path = format!("/v2/{repository}/blobs/sha256:{}", sha256(bytes));
    content.insert(path, ("application/octet-stream".to_owned(), bytes.to_vec()));
}

/// Puts a manifest or index into a registry's content, under its digest, which is returned, and a tag.
pub fn put_manifest(content: &mut Content, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> String {
    let digest = sha256(bytes);
    for name in [format!("sha256:{digest}"), tag.to_owned()] {
        content.insert(format!("/v2/{repository}/manifests/{name}"), (media_type.to_owned(), bytes.to_vec()));
    }
    digest
}

/// What is otherwise with a registry: what it answers instead of what it holds, if anything.
type Habit = dyn Fn(&Asked, usize) -> Option<Answer> + Send + Sync;

/// A registry of our own.
pub struct Registry {
    /// On 127.0.0.1.
    pub port: u16,
    content: Arc<Mutex<Content>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    habit: Arc<Mutex<Arc<Habit>>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// An empty one.
    ///
    /// # Panics
    /// If it cannot listen.
    #[must_use]
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let habit: Arc<Habit> = Arc::new(|_, _| None);
        let registry =
            Self { port, content: Arc::default(), asked: Arc::default(), habit: Arc::new(Mutex::new(habit)) };
        let (content, asked, habit) =
            (Arc::clone(&registry.content), Arc::clone(&registry.asked), Arc::clone(&registry.habit));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (content, asked, habit) = (Arc::clone(&content), Arc::clone(&asked), Arc::clone(&habit));
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    while let Some(request) = read(&mut stream) {
                        let before = {
                            let mut asked = asked.lock().expect("a lock");
                            let before = asked.iter().filter(|known| known.path == request.path).count();
                            asked.push(request.clone());
                            before
                        };
                        let habit = Arc::clone(&habit.lock().expect("a lock"));
                        let unusual = habit(&request, before);
                        let answer = unusual.unwrap_or_else(|| usual(&content.lock().expect("a lock"), &request));
                        if !send(stream.get_mut(), &request, &answer) {
                            break;
                        }
                    }
                });
            }
        });
        registry
    }

    /// As images call it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Changes what it holds.
    ///
    /// # Panics
    /// After another panic.
    pub fn fill<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        change(&mut self.content.lock().expect("a lock"))
    }

    /// From now on it answers this, where it is something. The number is how often the same was asked before.
    ///
    /// # Panics
    /// After another panic.
    pub fn behave(&self, habit: impl Fn(&Asked, usize) -> Option<Answer> + Send + Sync + 'static) {
        *self.habit.lock().expect("a lock") = Arc::new(habit);
    }

    /// What it was asked since the last time.
    ///
    /// # Panics
    /// After another panic.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().expect("a lock"))
    }
}

/// A request, while there is one.
fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut words = line.split_ascii_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    std::io::copy(&mut stream.take(length), &mut std::io::sink()).ok()?;
    Some(Asked { method, path, headers })
}

/// What a good registry answers, ranges included.
fn usual(content: &Content, request: &Asked) -> Answer {
    let Some((media_type, body)) = content.get(&request.path) else {
        let code = if request.path.contains("/manifests/") { "MANIFEST_UNKNOWN" } else { "BLOB_UNKNOWN" };
        let errors = json!({ "errors": [{ "code": code, "message": "not here" }] });
        return Answer::of(404).body(errors.to_string());
    };
    let from = request.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')?.parse().ok());
    match from {
        Some(from) if from <= body.len() => Answer::of(206)
            .with("Content-Type", media_type)
            .with("Content-Range", format!("bytes {from}-{}/{}", body.len() - 1, body.len()))
            .body(&body[from..]),
        _ => Answer::of(200).with("Content-Type", media_type).body(body.clone()),
    }
}

/// Whether the connection can go on.
fn send(stream: &mut TcpStream, request: &Asked, answer: &Answer) -> bool {
    let announced = answer.announced.unwrap_or(answer.body.len());
    let mut head = format!("HTTP/1.1 {} Said\r\nContent-Length: {announced}\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let body: &[u8] = if request.method == "HEAD" { &[] } else { &answer.body };
    let sent = stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).is_ok();
    sent && announced == answer.body.len()
}

/// Debian's docker-registry, which ends with this.
pub struct Distribution {
    /// On 127.0.0.1.
    pub port: u16,
    process: Child,
    folder: TempDir,
}

/// One of the programs that `make test` unpacks or installs.
fn program(name: &str) -> PathBuf {
    let unpacked = target().join("registry/usr/bin").join(name);
    if unpacked.exists() { unpacked } else { Path::new("/usr/bin").join(name) }
}

/// What skopeo says.
///
/// # Panics
/// If it fails.
#[must_use]
pub fn skopeo(words: &[&str]) -> String {
    let done = Command::new(program("skopeo")).args(words).output().expect("run skopeo (make test brings it)");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

impl Distribution {
    /// An empty one. With `users`, lines of htpasswd(1), it wants to know who asks.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(users: Option<&str>) -> Self {
        Self::start_with(users, None)
    }

    /// The same by TLS, with a certificate and its key in PEM, if there are any.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start_with(users: Option<&str>, identity: Option<(&str, &str)>) -> Self {
        let folder = TempDir::new().expect("make a folder");
        let port = free_port();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            folder.path().join("data").display()
        );
        if let Some((certificate, key)) = identity {
            config += "  tls:\n";
            for (name, text) in [("certificate", certificate), ("key", key)] {
                let file = folder.path().join(name);
                fs::write(&file, text).expect("write a file");
                config += &format!("    {name}: {}\n", file.display());
            }
        }
        if let Some(users) = users {
            let file = folder.path().join("users");
            fs::write(&file, users).expect("write a file");
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display());
        }
        let file = folder.path().join("config.yml");
        fs::write(&file, config).expect("write a file");
        let mut command = Command::new(program("docker-registry"));
        command.arg("serve").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process =
            command.spawn().unwrap_or_else(|error| panic!("start docker-registry (make test brings it): {error}"));
        eventually("docker-registry listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { port, process, folder }
    }

    /// As images call it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Has skopeo push an OCI layout in a tar. `more`: its further options.
    ///
    /// # Panics
    /// If it does not.
    pub fn push(&self, layout: &[u8], name: &str, more: &[&str]) {
        let file = self.folder.path().join("push.tar");
        fs::write(&file, layout).expect("write a file");
        let (from, to) = (format!("oci-archive:{}", file.display()), format!("docker://{}/{name}", self.host()));
        let words = ["copy", "--quiet", "--dest-tls-verify=false", "--insecure-policy"];
        drop(skopeo(&[&words[..], more, &[&from, &to]].concat()));
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        self.stop();
    }
}
