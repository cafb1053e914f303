//! One pull: from a tag or digest to a manifest for this machine, and from there to its blobs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ureq::http::header;

use super::http::{Prepared, Session, TRIES, pause, read};
use super::layout::{self, DOCKER_INDEX, DOCKER_MANIFEST, END, HEAD, OCI_INDEX, OCI_MANIFEST, is_index, is_known};
use super::{Found, Part, PullJob, Task, push};
use crate::Error;
use crate::archive::MAX_DOCUMENT;
use crate::archive::image::{Descriptor, Index, MAX_INDEX_DEPTH, Manifest, Platform, architecture, kept};
use crate::error::text;
use crate::source::{hex, is_digest};

/// Largest manifest or index: what registries themselves take at most (distribution specification, "Pushing Manifests").
const MAX_MANIFEST: u64 = 4 << 20;
/// Blobs that are fetched at once.
pub(super) const AT_ONCE: usize = 4;
/// A try that brought so much was none in vain.
const PROGRESS: u64 = 1 << 20;
pub(super) const TELL_EVERY: Duration = Duration::from_millis(100);
/// Platforms that an error names.
const MAX_NAMED: usize = 10;

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

/// A manifest or an index.
struct Document {
    found: Found,
    bytes: Vec<u8>,
}

/// Where blobs go.
struct Layout<'a> {
    out: &'a File,
    /// Where the next one begins.
    end: u64,
}

impl Layout<'_> {
    /// Writes a blob's header, and gives the place of its content.
    fn place(&mut self, digest: &str, size: u64) -> Result<u64, Error> {
        let header = layout::header(&format!("blobs/sha256/{digest}"), size);
        self.out.write_all_at(&header, self.end).map_err(written)?;
        let place = self.end + header.len() as u64;
        self.end += layout::room(size);
        Ok(place)
    }

    fn add(&mut self, digest: &str, bytes: &[u8]) -> Result<(), Error> {
        let place = self.place(digest, bytes.len() as u64)?;
        self.out.write_all_at(bytes, place).map_err(written)
    }
}

fn written(error: std::io::Error) -> Error {
    Error::std("write", "what is pulled", &error)
}

pub(super) fn pull(
    prepared: &Prepared,
    job: &PullJob,
    out: &File,
    begin: &(dyn Fn(Vec<Part>) + Sync),
    tell: &(dyn Fn(usize, u64) + Sync),
) -> Result<Option<Found>, Error> {
    let sessions: Vec<Session<'_>> =
        job.endpoints.iter().map(|endpoint| Session::new(prepared, endpoint, &job.what)).collect();
    let asked = Asked { job, sessions };
    let (wanted, have) = match &job.task {
        Task::Login => return asked.first(|session| session.enter()).map(|()| None),
        Task::Push { tag } => {
            let [session] = &asked.sessions[..] else { return Err(asked.bad("has no registry of its own".to_owned())) };
            return push::push(session, out, tag, begin, tell).map(Some);
        }
        Task::Resolve { wanted } => return Ok(Some(asked.document(wanted, None)?.found)),
        Task::Pull { wanted, have } => (wanted, have),
    };
    let top = asked.document(wanted, None)?;
    let found = top.found.clone();
    let mut layout = Layout { out, end: HEAD };
    let manifest = asked.manifest(top, &mut layout)?;
    let config = asked.config(&manifest.config)?;
    layout.add(&asked.sha256(&manifest.config.digest)?, &config)?;
    let layers = asked.layers(&manifest, &config, have)?;
    let mut parts = Vec::new();
    let mut places = Vec::new();
    for (digest, size) in layers {
        places.push(layout.place(&digest, size)?);
        parts.push(Part { digest, done: 0, total: size });
    }
    out.set_len(layout.end + END).map_err(written)?;
    asked.fetch(&parts, &places, out, begin, tell)?;
    Ok(Some(found))
}

struct Asked<'a> {
    job: &'a PullJob,
    /// Mirrors, and the registry.
    sessions: Vec<Session<'a>>,
}

impl Asked<'_> {
    /// What the first gives that gives anything. What the registry itself says is what counts where none does.
    fn first<T>(&self, mut get: impl FnMut(&Session<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let mut last = None;
        for session in &self.sessions {
            match get(session) {
                Ok(got) => return Ok(got),
                // Nothing that another could give would fit there.
                Err(error @ (Error::Full { .. } | Error::Io { .. })) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.bad("has no registry".to_owned())))
    }

    fn bad(&self, why: String) -> Error {
        let help = Some("ask whoever made it; images of docker and of OCI tools are understood".to_owned());
        Error::Registry { code: "I054", text: format!("{}: it {why}", self.job.what), help }
    }

    fn sha256(&self, digest: &str) -> Result<String, Error> {
        let digits = digest.strip_prefix("sha256:").filter(|digits| is_digest(digits));
        digits.map(str::to_ascii_lowercase).ok_or_else(|| {
            self.bad(format!("names a digest that is not sha256 and 64 hexadecimal digits: `{}`", text(digest)))
        })
    }

    /// A manifest or index by tag or digest. `size`: as announced.
    fn document(&self, wanted: &str, size: Option<u64>) -> Result<Document, Error> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
        self.first(|session| {
            let mut response = session.get(&format!("manifests/{wanted}"), &accept, 0)?;
            let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let (kind, told) = (header("content-type"), header("docker-content-digest"));
            let bytes = read(&mut response, MAX_MANIFEST)
                .map_err(|failure| session.cut_off("its manifest", &failure.to_string()))?
                .ok_or_else(|| session.wrong(format!("sends a manifest of more than {MAX_MANIFEST} bytes")))?;
            if let Some(size) = size.filter(|size| *size != bytes.len() as u64) {
                return Err(
                    session.wrong(format!("sends a manifest of {} bytes, where {size} are announced", bytes.len()))
                );
            }
            let digest = hex(&Sha256::digest(&bytes).into());
            let expected = match wanted.strip_prefix("sha256:") {
                Some(expected) => Some(expected.to_owned()),
                None => told.as_deref().and_then(|told| told.strip_prefix("sha256:")).map(str::to_owned),
            };
            if let Some(expected) = expected.filter(|expected| *expected != digest) {
                let expected = text(&expected.chars().take(64).collect::<String>());
                return Err(session
                    .wrong(format!("sends a manifest with digest sha256:{digest}, expected is sha256:{expected}")));
            }
            let media_type = media_type(kind.as_deref(), &bytes);
            if !is_known(&media_type) {
                let shown: String = media_type.chars().take(100).collect();
                return Err(self.bad(format!("is of type `{}`, which is no image", text(&shown))));
            }
            let size = bytes.len() as u64;
            Ok(Document { found: Found { digest, media_type, size }, bytes })
        })
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|e| self.bad(format!("has a bad document: {}", text(&e.to_string()))))
    }

    /// The manifest for this machine, at the end of the indexes that lead to it, all of which go into the layout.
    fn manifest(&self, top: Document, layout: &mut Layout<'_>) -> Result<Manifest, Error> {
        let mut document = top;
        for _ in 0..=MAX_INDEX_DEPTH {
            layout.add(&document.found.digest, &document.bytes)?;
            if !is_index(&document.found.media_type) {
                return self.parse(&document.bytes);
            }
            let index: Index = self.parse(&document.bytes)?;
            let next = self.choose(&index)?;
            let digest = self.sha256(&next.digest)?;
            document = self.document(&format!("sha256:{digest}"), Some(next.size))?;
        }
        Err(self.bad(format!("has indexes more than {MAX_INDEX_DEPTH} levels deep")))
    }

    /// The entry for this machine, or else an index in which there may be one.
    fn choose<'i>(&self, index: &'i Index) -> Result<&'i Descriptor, Error> {
        let ours = index.manifests.iter().filter(|entry| entry.platform.as_ref().is_some_and(Platform::is_ours));
        // What has no variant, or the lowest one, is for every processor of the kind.
        let variant = |entry: &&Descriptor| entry.platform.as_ref().and_then(|platform| platform.variant.clone());
        let unknown = || index.manifests.iter().find(|entry| entry.platform.is_none());
        ours.min_by_key(variant).or_else(unknown).ok_or_else(|| {
            let platforms = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
            let found = platforms.filter(|platform| platform.os != "unknown").map(ToString::to_string).collect();
            self.other_platform(found)
        })
    }

    fn other_platform(&self, mut found: Vec<String>) -> Error {
        found.sort();
        found.dedup();
        found.truncate(MAX_NAMED);
        let only = if found.is_empty() { String::new() } else { format!(", only for {}", found.join(", ")) };
        let text = format!("{}: it has no image for linux/{}{only}", self.job.what, architecture());
        Error::Registry { code: "I035", text, help: Some("name an image that is made for this machine".to_owned()) }
    }

    fn config(&self, config: &Descriptor) -> Result<Vec<u8>, Error> {
        let kind = &config.media_type;
        if !["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"]
            .contains(&&**kind)
        {
            return Err(self.bad(format!("has a configuration of type `{}`, which is no image's", text(kind))));
        }
        let digest = self.sha256(&config.digest)?;
        if config.size > MAX_DOCUMENT {
            return Err(self.bad(format!("has a configuration of {} bytes, {MAX_DOCUMENT} are the most", config.size)));
        }
        self.first(|session| {
            let mut response = session.get(&format!("blobs/sha256:{digest}"), "*/*", 0)?;
            let bytes = read(&mut response, config.size)
                .map_err(|failure| session.cut_off("its configuration", &failure.to_string()))?;
            let bytes = bytes.filter(|bytes| hex(&Sha256::digest(bytes).into()) == digest);
            bytes.ok_or_else(|| session.wrong(format!("sends another configuration than sha256:{digest}")))
        })
    }

    /// Digests and sizes of the blobs of layers that the store does not have.
    fn layers(&self, manifest: &Manifest, config: &[u8], have: &[String]) -> Result<BTreeMap<String, u64>, Error> {
        let config: Config = self.parse(config)?;
        if !config.platform.is_ours() {
            return Err(self.other_platform(vec![config.platform.to_string()]));
        }
        let count = manifest.layers.len();
        if count > self.job.limits.layers {
            let text = format!("{}: it has {count} layers, {} are the most", self.job.what, self.job.limits.layers);
            return Err(Error::Registry {
                code: "I033",
                text,
                help: Some("make it anew with fewer layers".to_owned()),
            });
        }
        let diffs = config.rootfs.diff_ids.unwrap_or_default();
        if diffs.len() != count {
            return Err(self.bad(format!("has {count} layers and a config for {}", diffs.len())));
        }
        let diffs = diffs.iter().map(|diff| self.sha256(diff)).collect::<Result<Vec<_>, _>>()?;
        let mut wanted = BTreeMap::new();
        for (place, index) in kept(&diffs).into_iter().enumerate() {
            let layer = &manifest.layers[index];
            if have.contains(&crate::unpack::key(&diffs[index], place == 0)) {
                continue;
            }
            let kind = &layer.media_type;
            if !kind.contains("tar") || kind.contains("encrypted") {
                return Err(self.bad(format!("has a layer of type `{}`, which is not understood", text(kind))));
            }
            let digest = self.sha256(&layer.digest)?;
            if *wanted.entry(digest).or_insert(layer.size) != layer.size {
                return Err(self.bad("announces a layer with two sizes".to_owned()));
            }
        }
        let most = self.job.limits.bytes;
        let all = wanted.values().try_fold(0_u64, |sum, size| sum.checked_add(*size)).filter(|sum| *sum <= most);
        if all.is_none() {
            let text = format!("{}: its layers have more than {most} bytes", self.job.what);
            return Err(Error::Registry { code: "I033", text, help: None });
        }
        Ok(wanted)
    }

    fn fetch(
        &self,
        parts: &[Part],
        places: &[u64],
        out: &File,
        begin: &(dyn Fn(Vec<Part>) + Sync),
        tell: &(dyn Fn(usize, u64) + Sync),
    ) -> Result<(), Error> {
        begin(parts.to_vec());
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let (Some(part), Some(place)) = (parts.get(at), places.get(at)) else { break };
                let mut told = Instant::now();
                let mut progress = |done: u64| {
                    if told.elapsed() >= TELL_EVERY || done == part.total {
                        told = Instant::now();
                        tell(at, done);
                    }
                };
                let mut fetched = Blob { part, place: *place, out, done: 0, hash: Sha256::new() };
                let got = self.first(|session| fetched.fetch(session, &mut progress));
                if let Err(error) = got {
                    failed.lock().expect("nobody panics with it").get_or_insert(error);
                    // The others end with what they have.
                    next.store(parts.len(), Ordering::Relaxed);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(parts.len()) {
                scope.spawn(work);
            }
        });
        failed.into_inner().expect("nobody panics with it").map_or(Ok(()), Err)
    }
}

/// A blob on its way into the layout.
struct Blob<'a> {
    part: &'a Part,
    place: u64,
    out: &'a File,
    done: u64,
    hash: Sha256,
}

impl Blob<'_> {
    fn begin(&mut self) {
        self.done = 0;
        self.hash = Sha256::new();
    }

    /// Fetches all of it, going on where it was cut off.
    fn fetch(&mut self, session: &Session<'_>, progress: &mut dyn FnMut(u64)) -> Result<(), Error> {
        let Part { digest, total, .. } = self.part;
        self.begin();
        let mut tries = 0;
        loop {
            let before = self.done;
            let cut = match self.go_on(session, progress)? {
                None => break,
                Some(cut) => cut,
            };
            tries = if self.done >= before.saturating_add(PROGRESS) { 1 } else { tries + 1 };
            if tries >= TRIES {
                return Err(session.cut_off(&format!("layer sha256:{digest}"), &cut));
            }
            thread::sleep(pause(tries));
        }
        let found = hex(&self.hash.clone().finalize().into());
        if found != *digest {
            return Err(session.wrong(format!("sends a layer with digest sha256:{found}, expected is sha256:{digest}")));
        }
        progress(*total);
        Ok(())
    }

    /// One try: `None` at the end of the blob, else why it broke off.
    fn go_on(&mut self, session: &Session<'_>, progress: &mut dyn FnMut(u64)) -> Result<Option<String>, Error> {
        let Part { digest, total, .. } = self.part;
        let mut response = session.get(&format!("blobs/sha256:{digest}"), "*/*", self.done)?;
        let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let goes_on =
            response.status() == 206 && range.is_some_and(|r| r.starts_with(&format!("bytes {}-", self.done)));
        if !goes_on {
            self.begin();
        }
        let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) if self.done == *total => return Ok(None),
                Ok(0) => return Ok(Some(format!("{} of {total} bytes came", self.done))),
                Ok(count) => count,
                Err(error) => return Ok(Some(text(&error.to_string()))),
            };
            if count as u64 > total - self.done {
                return Err(session.wrong(format!("sends more than {total} bytes of layer sha256:{digest}")));
            }
            self.out.write_all_at(&buffer[..count], self.place + self.done).map_err(written)?;
            self.hash.update(&buffer[..count]);
            self.done += count as u64;
            progress(self.done);
        }
    }
}

/// The type of a document: as the registry says, or else as the document itself does.
fn media_type(header: Option<&str>, bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: String,
    }
    let told = header.and_then(|kind| kind.split(';').next()).map(|kind| kind.trim().to_ascii_lowercase());
    match told {
        Some(told) if is_known(&told) => told,
        told => serde_json::from_slice::<Typed>(bytes).map_or(told.unwrap_or_default(), |typed| typed.media_type),
    }
}
