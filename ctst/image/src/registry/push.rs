//! One push: the blobs of a layout that the registry does not have, and then the manifest that names them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use super::http::{Sent, Session};
use super::layout::OCI_MANIFEST;
use super::pull::{AT_ONCE, TELL_EVERY};
use super::{Found, Part};
use crate::Error;
use crate::archive::MAX_DOCUMENT;
use crate::archive::image::{Index, Manifest};

/// Where the content of each file of the layout is: its place and its size.
type Places = BTreeMap<String, (u64, u64)>;

fn unread(error: &std::io::Error) -> Error {
    Error::std("read", "what is pushed", error)
}

fn places(layout: &File) -> Result<Places, Error> {
    let mut archive = tar::Archive::new(layout);
    let mut places = Places::new();
    for entry in archive.entries_with_seek().map_err(|e| unread(&e))? {
        let entry = entry.map_err(|e| unread(&e))?;
        let path = entry.path().map_err(|e| unread(&e))?.to_string_lossy().into_owned();
        places.insert(path, (entry.raw_file_position(), entry.size()));
    }
    Ok(places)
}

/// Pushes the one image of a layout that the store wrote.
pub(super) fn push(
    session: &Session<'_>,
    layout: &File,
    tag: &str,
    begin: &(dyn Fn(Vec<Part>) + Sync),
    tell: &(dyn Fn(usize, u64) + Sync),
) -> Result<Found, Error> {
    let places = places(layout)?;
    let place = |name: &str| {
        let place = places.get(name).copied();
        place.ok_or_else(|| unread(&std::io::Error::from(std::io::ErrorKind::NotFound)))
    };
    let blob = |digest: &str| place(&format!("blobs/{}", digest.replacen(':', "/", 1)));
    let document = |(place, size): (u64, u64)| {
        let nobody = |_| {};
        let mut bytes = Vec::new();
        let mut all = Sent { file: layout, place, size, media_type: "", tell: &nobody, done: 0 };
        (&mut all).take(MAX_DOCUMENT).read_to_end(&mut bytes).map_err(|e| unread(&e))?;
        Ok::<_, Error>(bytes)
    };
    let broken = |e: serde_json::Error| unread(&e.into());
    let index: Index = serde_json::from_slice(&document(place("index.json")?)?).map_err(broken)?;
    let top = index.manifests.first().ok_or_else(|| unread(&std::io::Error::from(std::io::ErrorKind::NotFound)))?;
    let bytes = document(blob(&top.digest)?)?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(broken)?;

    let mut blobs: Vec<(Part, u64)> = Vec::new();
    for entry in manifest.layers.iter().chain([&manifest.config]) {
        if blobs.iter().all(|(part, _)| part.digest != entry.digest) {
            let (place, total) = blob(&entry.digest)?;
            blobs.push((Part { digest: entry.digest.clone(), done: 0, total }, place));
        }
    }
    begin(blobs.iter().map(|(part, _)| part.clone()).collect());
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((part, place)) = blobs.get(at) else { break };
            if let Err(error) = send(session, layout, part, *place, &|done| tell(at, done)) {
                failed.lock().expect("nobody panics with it").get_or_insert(error);
                next.store(blobs.len(), Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(blobs.len()) {
            scope.spawn(work);
        }
    });
    failed.into_inner().expect("nobody panics with it").map_or(Ok(()), Err)?;

    let (place, size) = blob(&top.digest)?;
    let nobody = |_| {};
    let sent = Sent { file: layout, place, size, media_type: OCI_MANIFEST, tell: &nobody, done: 0 };
    session.put(&session.url(&format!("manifests/{tag}")), sent)?;
    let digest = top.digest.trim_start_matches("sha256:").to_owned();
    Ok(Found { digest, media_type: OCI_MANIFEST.to_owned(), size })
}

/// Sends a blob in one piece, unless the registry has it.
fn send(session: &Session<'_>, layout: &File, part: &Part, place: u64, tell: &dyn Fn(u64)) -> Result<(), Error> {
    let Part { digest, total, .. } = part;
    if !session.has(&format!("blobs/{digest}"))? {
        let told = Cell::new(Instant::now());
        let progress = |done: u64| {
            if told.get().elapsed() >= TELL_EVERY {
                told.set(Instant::now());
                tell(done);
            }
        };
        let address = session.begin_upload()?;
        let separator = if address.contains('?') { '&' } else { '?' };
        let sent = Sent {
            file: layout,
            place,
            size: *total,
            media_type: "application/octet-stream",
            tell: &progress,
            done: 0,
        };
        session.put(&format!("{address}{separator}digest={digest}"), sent)?;
    }
    tell(*total);
    Ok(())
}
