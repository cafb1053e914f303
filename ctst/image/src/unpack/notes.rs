//! What a person should know of an archive that was unpacked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::writer::{MAX_NAME, lossy};
use crate::error::list;
use crate::tree::{EXAMPLES, join};

/// What a person should know, counted.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// By what it is: how often, and the first few paths.
    tallies: BTreeMap<&'static str, (usize, Vec<PathBuf>)>,
    attributes: BTreeSet<String>,
    owners: (BTreeSet<u32>, BTreeSet<u32>),
    flattened: usize,
}

impl Notes {
    const LOST: &str = "attributes were left out";

    pub(crate) fn add(&mut self, what: &'static str, path: &[u8]) {
        let (count, examples) = self.tallies.entry(what).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(join(Path::new("/"), path));
        }
    }

    pub(crate) fn lost(&mut self, path: &[u8], attribute: &[u8]) {
        self.add(Self::LOST, path);
        if self.attributes.len() < EXAMPLES {
            self.attributes.insert(lossy(&attribute[..attribute.len().min(MAX_NAME)]));
        }
    }

    pub(crate) fn drop_xattrs(&mut self, path: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) {
        xattrs.iter().for_each(|(name, _)| self.lost(path, name));
    }

    pub(crate) fn flattened(&mut self, uid: u32, gid: u32) {
        self.flattened += usize::from(uid != 0 || gid != 0);
        for (ids, id) in [(&mut self.owners.0, uid), (&mut self.owners.1, gid)] {
            // One more than is shown.
            if id != 0 && ids.len() <= EXAMPLES {
                ids.insert(id);
            }
        }
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = Vec::new();
        for (what, (count, examples)) in &self.tallies {
            let attributes: Vec<&str> = self.attributes.iter().map(String::as_str).collect();
            let kinds = if *what == Self::LOST { format!(" ({})", attributes.join(", ")) } else { String::new() };
            texts.push(format!("{count} {what}{kinds}: {}", list(examples, *count)));
        }
        texts.extend(flattened_note(self.flattened, &self.owners.0, &self.owners.1));
        texts
    }
}

/// What a person should know whose container will not see the owners that the source has.
pub(crate) fn flattened_note(files: usize, uids: &BTreeSet<u32>, gids: &BTreeSet<u32>) -> Option<String> {
    let list = |what: &str, ids: &BTreeSet<u32>| {
        let names: Vec<String> = ids.iter().take(EXAMPLES).map(u32::to_string).collect();
        let more = if ids.len() > EXAMPLES { ", …" } else { "" };
        (!ids.is_empty()).then(|| format!("{what} {}{more}", names.join(", ")))
    };
    let owners: Vec<String> = [list("uid", uids), list("gid", gids)].into_iter().flatten().collect();
    (files > 0)
        .then(|| format!("{files} files of other owners ({}) belong to root inside the container", owners.join("; ")))
}
