//! What is imported of folders and of this host's programs: listed, and looked at again when it is copied.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use super::Store;
use crate::copy;
use crate::error::list;
use crate::host::{self, Watch};
use crate::model::Config;
use crate::tree::{self, Body, Digest, EXAMPLES, Item, Time, join};
use crate::unpack::flattened_note;
use crate::{Error, Source};

/// How often a source that was changed a moment ago is looked at again before it is copied as it is.
pub(super) const SETTLE: usize = 3;

/// What is to be imported, as it was when it was listed.
pub(super) struct Content {
    pub(super) root: OwnedFd,
    pub(super) base: PathBuf,
    pub(super) items: Vec<Item>,
    pub(super) fingerprint: Digest,
    /// Only `host://`.
    pub(super) watch: Option<Watch>,
    pub(super) config: Config,
    pub(super) notes: Vec<String>,
}

impl Content {
    pub(super) fn gather(store: &Store, source: &Source) -> Result<Content, Error> {
        let mut left = SETTLE;
        loop {
            let (content, newest) = match source {
                Source::File(path) => Content::from_directory(store.open_source(path)?, path)?,
                Source::Host { programs, include } => Content::from_host(programs, include)?,
                // Not copied but unpacked.
                Source::Tar(path) | Source::Lazy(path) => return Err(Error::NotADirectory(path.clone())),
                // Found or not.
                Source::Local(_)
                | Source::Registry { .. }
                | Source::Bundled { .. }
                | Source::Built { .. }
                | Source::Stripped { .. } => {
                    return Err(store.not_in_store(&source.to_string()));
                }
            };
            match tree::unsettled(newest) {
                Some(pause) if left > 0 => std::thread::sleep(pause),
                _ => return Ok(content),
            }
            left -= 1;
        }
    }

    fn from_directory(root: OwnedFd, base: &Path) -> Result<(Content, Time), Error> {
        let scan = tree::scan(&root, base)?;
        let (fingerprint, newest) = (scan.fingerprint(), scan.newest());
        let mut notes = Vec::new();
        let (special, mut items): (Vec<Item>, Vec<Item>) =
            scan.items.into_iter().partition(|item| item.body == Body::Special);
        if !special.is_empty() {
            let examples: Vec<PathBuf> = special.iter().take(EXAMPLES).map(|item| path_in(&item.path)).collect();
            let names = list(&examples, special.len());
            notes.push(format!("{} device nodes, sockets and pipes were left out: {names}", special.len()));
        }
        if !scan.mounts.is_empty() {
            let names = list(&scan.mounts[..scan.mounts.len().min(EXAMPLES)], scan.mounts.len());
            notes.push(format!("other file systems that are mounted inside were left out: {names}"));
        }
        copy::find_hard_links(&mut items);
        let config = Config::default();
        Ok((Content { root, base: base.into(), items, fingerprint, watch: None, config, notes }, newest))
    }

    fn from_host(programs: &[PathBuf], include: &[String]) -> Result<(Content, Time), Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, "/", flags, Mode::empty()).map_err(|cause| Error::io("open", "/", cause))?;
        let mut host = host::collect(programs, include)?;
        copy::find_hard_links(&mut host.items);
        let content = Content {
            root,
            base: "/".into(),
            items: host.items,
            fingerprint: host.fingerprint,
            watch: Some(host.watch),
            config: host.config,
            notes: host.notes,
        };
        Ok((content, host.newest))
    }

    /// Fails if the source is not what it was.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        if let Some(watch) = &self.watch {
            return match watch.fingerprint()? == self.fingerprint {
                true => Ok(()),
                false => Err(Error::Changed(self.base.clone())),
            };
        }
        let now = tree::scan(&self.root, &self.base)?;
        if now.fingerprint() == self.fingerprint {
            return Ok(());
        }
        let known = |items: &[Item], item: &Item| {
            let same = items.binary_search_by(|other| other.path.cmp(&item.path));
            same.is_ok_and(|at| items[at].meta.is_same_file(&item.meta))
        };
        // A new or changed path; where there is none, one was removed or a special file changed.
        let is_new = |item: &&Item| item.body != Body::Special && !known(&self.items, item);
        let files = now.items.iter().filter(|item| item.body != Body::Directory).find(is_new);
        let culprit = files.or_else(|| now.items.iter().find(is_new));
        Err(Error::Changed(culprit.map_or(self.base.clone(), |item| join(&self.base, &item.path))))
    }

    /// Bytes of content; each file counts once, however many names it has.
    pub(super) fn size(&self) -> u64 {
        self.items.iter().filter(|i| matches!(i.body, Body::File | Body::Made(_))).map(|i| i.meta.size).sum()
    }

    /// What a person should know whose container will not see the owners that the source has.
    pub(super) fn flattened(&self) -> Option<String> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let is_foreign = |id: u32, own: u32| id != 0 && id != own;
        let (mut uids, mut gids, mut files) = (BTreeSet::new(), BTreeSet::new(), 0);
        for Item { meta, .. } in &self.items {
            uids.extend(is_foreign(meta.uid, uid).then_some(meta.uid));
            gids.extend(is_foreign(meta.gid, gid).then_some(meta.gid));
            files += usize::from(is_foreign(meta.uid, uid) || is_foreign(meta.gid, gid));
        }
        flattened_note(files, &uids, &gids)
    }
}

fn path_in(path: &[u8]) -> PathBuf {
    join(Path::new("/"), path)
}
