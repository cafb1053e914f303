//! Writes one layer of an archive into its folder.

use std::collections::{BTreeMap, HashMap};
use std::mem::take;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::filler::{Dress, Filled, Filler, Target};
use super::listing::Listing;
use super::notes::Notes;
use super::{ALGORITHM, Made, OPAQUE, OPAQUE_ATTRIBUTE, Owners, Ticker, UnpackJob, WHITEOUT};
use crate::Error;
use crate::archive::stream::Input;
use crate::archive::tar::{Entry, Kind, Tar};
use crate::archive::{Limits, plain};
use crate::copy::{self, Content};
use crate::error::text;
use crate::tree::{self, Body, Digest, Item, Meta, Time, join, open_dir};

/// Longest name of a file.
pub(crate) const MAX_NAME: usize = 255;

/// What a directory gets when everything in it is there.
#[derive(Debug, Clone, Copy)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
}

/// Writes one layer.
pub(super) struct Writer<'a> {
    job: &'a UnpackJob,
    is_lowest: bool,
    root: &'a OwnedFd,
    /// Its name in messages.
    base: &'a Path,
    /// Who unpacks.
    own: (Uid, Gid),
    /// Every directory of the layer; until the end, all are open to their owner.
    folders: BTreeMap<Vec<u8>, Attributes>,
    /// `None` from the first name on that is not made once.
    listing: Option<Listing>,
    /// The directory of the last entry.
    current: Option<(Vec<u8>, Arc<OwnedFd>)>,
    filler: Filler,
    /// Entries, and directories that no entry describes.
    count: u64,
    /// Bytes of names, and of holes in sparse files.
    names: u64,
    holes: u64,
    made: &'a AtomicU64,
    notes: &'a mut Notes,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        job: &'a UnpackJob,
        is_lowest: bool,
        root: &'a OwnedFd,
        base: &'a Path,
        made: &'a AtomicU64,
        notes: &'a mut Notes,
        filler: Filler,
    ) -> Self {
        let folders = BTreeMap::from([(Vec::new(), Attributes { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) })]);
        let (current, count, names, holes) = (None, 0, 0, 0);
        let own = (rustix::process::geteuid(), rustix::process::getegid());
        let listing = Some(Listing::default());
        Writer { job, is_lowest, root, base, own, folders, listing, current, filler, count, names, holes, made, notes }
    }

    /// Makes one entry.
    pub(super) fn entry<I: Input>(
        &mut self,
        entry: Entry,
        tar: &mut Tar<'_, I>,
        ticker: &mut Ticker<'_>,
    ) -> Result<(), Error> {
        ticker.tick(self.count);
        let path = inside(&entry.path).map_err(|why| tar.refused(&why))?;
        self.account(&path, tar)?;
        let attributes = Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime };
        self.check_owner(&path, attributes)?;
        check_names(&path, &entry).map_err(|why| tar.refused(&why))?;
        let (folder, name) = split(&path);
        if name.starts_with(WHITEOUT) {
            return self.whiteout(folder, name, &entry, tar);
        }
        for name in &entry.lost {
            self.notes.lost(&path, name);
        }
        if path.is_empty() {
            return match entry.kind {
                Kind::Directory => {
                    self.folders.insert(path.clone(), attributes);
                    self.set_xattrs(self.root, &path, &entry.xattrs)
                }
                _ => Err(tar.refused("would replace the root of the image")),
            };
        }
        if matches!(entry.kind, Kind::Character | Kind::Block) {
            self.notes.add("device nodes were left out", &path);
            return Ok(());
        }
        let parent = self.enter(folder, entry.mtime).map_err(|why| why.at(tar, self.base, &path))?;
        let failed = |step| move |cause| Trouble::Failed(step, cause);
        match entry.kind {
            Kind::Directory => self.directory(&parent, &path, attributes, &entry.xattrs),
            Kind::File => return self.file(&parent, &path, &entry, attributes, tar, ticker),
            Kind::Symlink => self
                .replace(&parent, &path, |name| rustix::fs::symlinkat(&entry.link[..], &parent, name))
                .and_then(|()| {
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    if let Some((uid, gid)) = self.owner(attributes) {
                        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), flags)
                            .map_err(failed("change owner of"))?;
                    }
                    rustix::fs::utimensat(&parent, name, &times(entry.mtime), flags).map_err(failed("set times of"))
                })
                .map(|()| {
                    self.notes.drop_xattrs(&path, &entry.xattrs);
                    let owner = self.raw_owner(attributes);
                    if let Some(listing) = &mut self.listing {
                        listing.symlink(&path, owner, &entry.link);
                    }
                }),
            Kind::Hard => self.hard_link(&parent, &path, &entry.link),
            Kind::Fifo => self
                .replace(&parent, &path, |name| {
                    rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                })
                .and_then(|()| {
                    self.listing = None;
                    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let fifo = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(failed("open"))?;
                    self.dress(attributes).put_on(&fifo, None).map_err(failed("set attributes of"))
                })
                .map(|_| self.notes.drop_xattrs(&path, &entry.xattrs)),
            Kind::Character | Kind::Block => Ok(()),
        }
        .map_err(|why| why.at(tar, self.base, &path))
    }

    fn account<I: Input>(&mut self, path: &[u8], tar: &Tar<'_, I>) -> Result<(), Error> {
        self.count += 1;
        self.names += path.len() as u64;
        self.check_limits().map_err(|why| why.at(tar, self.base, path))
    }

    fn check_limits(&self) -> Result<(), Trouble> {
        let Limits { entries, names, bytes, .. } = self.job.limits;
        if self.count > entries {
            return Err(Trouble::TooLarge(format!("has more than {entries} files")));
        }
        if self.names > names {
            return Err(Trouble::TooLarge(format!("has names of more than {names} bytes")));
        }
        if self.holes.saturating_add(self.made.load(Ordering::Relaxed)) > bytes {
            return Err(Trouble::TooLarge(format!("unpacks to more than {bytes} bytes")));
        }
        Ok(())
    }

    fn check_owner(&mut self, path: &[u8], Attributes { uid, gid, .. }: Attributes) -> Result<(), Error> {
        match self.job.owners {
            Owners::Flatten => self.notes.flattened(uid, gid),
            Owners::Map { base, count } => {
                let fits = |id: u32| id < count && base.checked_add(id).is_some_and(|id| id != u32::MAX);
                if let Some(id) = [uid, gid].into_iter().find(|id| !fits(*id)) {
                    return Err(Error::OwnerRange { path: join(&self.job.archive, path), id, count });
                }
            }
        }
        Ok(())
    }

    fn owner(&self, Attributes { uid, gid, .. }: Attributes) -> Option<(Uid, Gid)> {
        match self.job.owners {
            Owners::Flatten => None,
            // Checked for every entry.
            Owners::Map { base, .. } => Some((Uid::from_raw(base + uid), Gid::from_raw(base + gid))),
        }
    }

    /// As [`owner`](Self::owner); 0 where nobody will ask.
    fn raw_owner(&self, attributes: Attributes) -> (u32, u32) {
        self.owner(attributes).map_or((0, 0), |(uid, gid)| (uid.as_raw(), gid.as_raw()))
    }

    fn dress(&self, attributes: Attributes) -> Dress {
        let owner = self.owner(attributes);
        Dress { owner, is_own: owner == Some(self.own), mode: attributes.mode, mtime: attributes.mtime }
    }

    /// Whether it is worth while to go on: a file that could not be filled is told of by whoever fills.
    pub(super) fn is_heard(&self) -> bool {
        self.filler.is_heard()
    }

    /// The last file is made.
    pub(super) fn close(&mut self) {
        self.filler.close();
    }

    /// Opens a directory of the layer; makes what is missing on the way.
    fn enter(&mut self, path: &[u8], time: Time) -> Result<Arc<OwnedFd>, Trouble> {
        if let Some((current, folder)) = &self.current
            && current == path
        {
            return Ok(Arc::clone(folder));
        }
        let folder = match self.folders.contains_key(path) {
            true => open_dir(self.root, path).map_err(|cause| Trouble::Failed("open", cause))?,
            false => self.make_folders(path, time)?,
        };
        let folder = Arc::new(folder);
        self.current = Some((path.to_vec(), Arc::clone(&folder)));
        Ok(folder)
    }

    fn make_folders(&mut self, path: &[u8], time: Time) -> Result<OwnedFd, Trouble> {
        let mut known = path;
        while !self.folders.contains_key(known) {
            known = split(known).0;
        }
        let mut folder = open_dir(self.root, known).map_err(|cause| Trouble::Failed("open", cause))?;
        let mut end = known.len();
        let rest = path[end..].strip_prefix(b"/").unwrap_or(&path[end..]);
        for name in rest.split(|b| *b == b'/') {
            end += name.len() + usize::from(end > 0);
            let here = &path[..end];
            folder = match open_dir(&folder, name) {
                Ok(next) => {
                    self.listing = None;
                    next
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    let is_whiteout = match stat(&folder, name)? {
                        None => false,
                        Some(stat) if is_whiteout(&stat) => true,
                        Some(stat) => {
                            let what = match FileType::from_raw_mode(stat.st_mode) {
                                FileType::Symlink => "a symbolic link",
                                _ => "no folder",
                            };
                            return Err(Trouble::Refused(format!("lies below `{}`, which is {what}", lossy(here))));
                        }
                    };
                    self.count += 1;
                    self.names += here.len() as u64;
                    self.check_limits()?;
                    if !self.is_lowest {
                        self.notes.add("folders are not described by their layer and were made with mode 0755", here);
                    }
                    let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime: time };
                    self.make_folder(&folder, here, name, attributes, is_whiteout)?
                }
                Err(cause) => return Err(Trouble::Failed("open", cause)),
            };
        }
        Ok(folder)
    }

    /// Makes a directory where nothing or a whiteout is. What was hidden by the whiteout stays hidden.
    fn make_folder(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        name: &[u8],
        attributes: Attributes,
        is_whiteout: bool,
    ) -> Result<OwnedFd, Trouble> {
        if is_whiteout {
            rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(|cause| Trouble::Failed("replace", cause))?;
        }
        rustix::fs::mkdirat(parent, name, Mode::RWXU).map_err(|cause| Trouble::Failed("create directory", cause))?;
        let folder = open_dir(parent, name).map_err(|cause| Trouble::Failed("open", cause))?;
        self.folders.insert(path.to_vec(), attributes);
        if is_whiteout {
            hide_below(&folder)?;
        }
        Ok(folder)
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        attributes: Attributes,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), Trouble> {
        let (_, name) = split(path);
        let was_whiteout = match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => false,
            Err(Errno::EXIST) => {
                if !self.folders.contains_key(path) {
                    self.listing = None;
                }
                let old = stat(parent, name)?;
                let is_directory = old.is_some_and(|old| FileType::from_raw_mode(old.st_mode).is_dir());
                let is_whiteout = old.is_some_and(|old| is_whiteout(&old));
                if !is_directory {
                    self.clear(parent, path)?;
                    rustix::fs::mkdirat(parent, name, Mode::RWXU)
                        .map_err(|cause| Trouble::Failed("create directory", cause))?;
                }
                is_whiteout
            }
            Err(cause) => return Err(Trouble::Failed("create directory", cause)),
        };
        self.folders.insert(path.to_vec(), attributes);
        if was_whiteout || !xattrs.is_empty() {
            let folder = open_dir(parent, name).map_err(|cause| Trouble::Failed("open", cause))?;
            if was_whiteout {
                hide_below(&folder)?;
            }
            self.set_xattrs(&folder, path, xattrs).map_err(Trouble::Error)?;
        }
        Ok(())
    }

    /// Makes something that is no directory, in the place of what is there.
    fn replace<T>(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        make: impl Fn(&[u8]) -> Result<T, Errno>,
    ) -> Result<T, Trouble> {
        let (_, name) = split(path);
        let made = match make(name) {
            Err(Errno::EXIST) => {
                self.clear(parent, path)?;
                make(name)
            }
            made => made,
        };
        made.map_err(|cause| Trouble::Failed("create", cause))
    }

    /// Removes what is at `path`, if it holds nothing.
    fn clear(&mut self, parent: &OwnedFd, path: &[u8]) -> Result<(), Trouble> {
        let (_, name) = split(path);
        self.listing = None;
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            other => return other.map_err(|cause| Trouble::Failed("replace", cause)),
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.folders.remove(path);
                self.current = None;
                Ok(())
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                Err(Trouble::Refused("would replace a folder that is not empty".into()))
            }
            Err(cause) => Err(Trouble::Failed("replace", cause)),
        }
    }

    fn hard_link(&mut self, parent: &OwnedFd, path: &[u8], link: &[u8]) -> Result<(), Trouble> {
        let refused = |why: &str| Trouble::Refused(format!("is a hard link to `{}`, which {why}", lossy(link)));
        let target = inside(link).map_err(|why| refused(&why))?;
        let (folder, target_name) = split(&target);
        if target.is_empty() {
            return Err(refused("is the root"));
        }
        let folder = open_dir(self.root, folder).map_err(|cause| match cause {
            Errno::NOENT => refused("does not exist"),
            Errno::NOTDIR | Errno::LOOP => refused("lies behind a link or a file"),
            cause => Trouble::Failed("open target of hard link", cause),
        })?;
        let Some(original) = stat(&folder, target_name)? else { return Err(refused("does not exist")) };
        match FileType::from_raw_mode(original.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            _ => return Err(refused("is no file")),
        }
        let (_, name) = split(path);
        if stat(parent, name)?.is_some_and(|old| (old.st_dev, old.st_ino) == (original.st_dev, original.st_ino)) {
            return Ok(());
        }
        self.replace(parent, path, |name| rustix::fs::linkat(&folder, target_name, parent, name, AtFlags::empty()))?;
        self.listing.take_if(|listing| !listing.hard_link(path, original.st_ino));
        Ok(())
    }

    fn file<I: Input>(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        entry: &Entry,
        attributes: Attributes,
        tar: &mut Tar<'_, I>,
        ticker: &mut Ticker<'_>,
    ) -> Result<(), Error> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Most often nothing is left to change.
        let mode = Mode::from_raw_mode(attributes.mode & 0o777);
        let open = |name: &[u8]| rustix::fs::openat(parent, name, flags, mode);
        let file = self.replace(parent, path, open).map_err(|why| why.at(tar, self.base, path))?;
        let stat = rustix::fs::fstat(&file).map_err(|cause| Error::io("stat", join(self.base, path), cause))?;
        let whole = [(0, entry.size)];
        let stretches = entry.stretches.as_deref().unwrap_or(&whole);
        let holes = entry.size - stretches.iter().map(|(_, length)| length).sum::<u64>();
        self.holes = self.holes.saturating_add(holes);
        self.check_limits().map_err(|why| why.at(tar, self.base, path))?;
        self.set_xattrs(&file, path, &entry.xattrs)?;

        let (now, size, has_holes) = (Some((&stat).into()), entry.size, holes > 0);
        let (inode, dress) = (stat.st_ino, self.dress(attributes));
        let (uid, gid) = self.raw_owner(attributes);
        if let Some(listing) = &mut self.listing {
            listing.file(path, Meta { mode: attributes.mode, uid, gid, size, ..stat.into() });
        }
        self.filler.begin(Target { file, inode, now, path: path.into(), size, has_holes, dress });
        for (offset, length) in stretches {
            let mut at = *offset;
            while at < offset + length
                && let Some(piece) = tar.data(offset + length - at)?
            {
                let next = at + piece.len() as u64;
                self.filler.data(at, piece);
                at = next;
                if !self.filler.is_heard() {
                    return Ok(());
                }
                ticker.tick(self.count);
            }
        }
        self.filler.end();
        Ok(())
    }

    /// Keeps `user.*` where the file system does; the rest would be a privilege, or another host's.
    fn set_xattrs(&mut self, file: impl AsFd, path: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Error> {
        for (name, value) in xattrs {
            let is_kept = name.starts_with(b"user.") && !name.contains(&0);
            let set = || rustix::fs::fsetxattr(&file, &name[..], value, XattrFlags::empty());
            match is_kept.then(set) {
                Some(Ok(())) => {}
                None
                | Some(Err(Errno::NOTSUP | Errno::RANGE | Errno::TOOBIG | Errno::INVAL | Errno::PERM | Errno::NOSPC)) => {
                    self.notes.lost(path, name)
                }
                Some(Err(cause)) => return Err(Error::io("set attribute of", join(self.base, path), cause)),
            }
        }
        Ok(())
    }

    /// `.wh.NAME` hides NAME in the layers below, `.wh..wh..opq` everything in its folder.
    fn whiteout<I: Input>(&mut self, folder: &[u8], name: &[u8], entry: &Entry, tar: &Tar<'_, I>) -> Result<(), Error> {
        let path = [folder, name].join(&b'/');
        let hidden = hidden_name(name, entry).map_err(|why| tar.refused(why))?;
        if self.is_lowest {
            self.notes.add("whiteouts were left out, because nothing is below them", &path);
            return Ok(());
        }
        if name.starts_with(b".wh..wh.") && name != OPAQUE {
            self.notes.add("records of aufs were left out", &path);
            return Ok(());
        }
        if name == OPAQUE && folder.is_empty() {
            return Err(tar.refused("hides all layers below, which an overlay cannot do"));
        }
        self.listing = None;
        let made = self.enter(folder, entry.mtime).and_then(|parent| {
            if name == OPAQUE {
                return hide_below(&parent);
            }
            match rustix::fs::mknodat(&parent, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
                Ok(()) => {
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    let root = Attributes { mode: 0, uid: 0, gid: 0, mtime: entry.mtime };
                    if let Some((uid, gid)) = self.owner(root) {
                        rustix::fs::chownat(&parent, hidden, Some(uid), Some(gid), flags)
                            .map_err(|cause| Trouble::Failed("change owner of", cause))?;
                    }
                    rustix::fs::utimensat(&parent, hidden, &times(entry.mtime), flags)
                        .map_err(|cause| Trouble::Failed("set times of", cause))
                }
                // What the layer itself has there hides what is below, except for a folder's content.
                Err(Errno::EXIST) => match open_dir(&parent, hidden) {
                    Ok(folder) => hide_below(&folder),
                    Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(()),
                    Err(cause) => Err(Trouble::Failed("open", cause)),
                },
                Err(cause) => Err(Trouble::Failed("create whiteout", cause)),
            }
        });
        made.map_err(|why| why.at(tar, self.base, &path))
    }

    /// Gives directories their attributes, the deepest first, and computes the digest.
    pub(super) fn finish(mut self, folder: String, Filled { digests, is_other }: &Filled) -> Result<Made, Error> {
        // Before the first directory is closed to its owner, as those of the archive may be.
        let items = match self.listing.take().filter(|_| !is_other) {
            Some(listing) => {
                let items = self.complete(listing);
                debug_assert_eq!(self.digest(items.clone(), digests)?, self.digest(self.scan()?, digests)?);
                items
            }
            None => self.scan()?,
        };
        let (tree, size) = thread::scope(|scope| {
            let dressing = scope.spawn(|| self.dress_folders());
            let digest = self.digest(items, digests);
            super::join(dressing).and(digest)
        })?;
        Ok(Made { folder, tree: ALGORITHM.text(&tree), size })
    }

    fn dress_folders(&self) -> Result<(), Error> {
        for (path, attributes) in self.folders.iter().rev() {
            open_dir(self.root, path)
                .and_then(|folder| self.dress(*attributes).put_on(folder, None))
                .map_err(|cause| Error::io("set attributes of", join(self.base, path), cause))?;
        }
        Ok(())
    }

    /// What the layer has, as it was listed.
    fn complete(&self, listing: Listing) -> Vec<Item> {
        let mut items = listing.into_items();
        items.extend(self.folders.iter().map(|(path, attributes)| {
            let (uid, gid) = self.raw_owner(*attributes);
            let meta = Meta { uid, gid, ..Meta::made(FileType::Directory, attributes.mode, 0) };
            Item { path: path.clone(), meta, body: Body::Directory }
        }));
        items.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        items
    }

    /// What the layer has, as the kernel lists it; directories as they will be.
    fn scan(&self) -> Result<Vec<Item>, Error> {
        let mut items = tree::scan(self.root, self.base)?.items;
        for item in &mut items {
            match item.body {
                Body::Directory => {
                    let Some(attributes) = self.folders.get(&item.path) else {
                        return Err(Error::Changed(join(self.base, &item.path)));
                    };
                    item.meta.mode = attributes.mode;
                    (item.meta.uid, item.meta.gid) = self.raw_owner(*attributes);
                }
                Body::Symlink => {
                    let (folder, name) = item.split();
                    let target = open_dir(self.root, folder)
                        .and_then(|folder| rustix::fs::readlinkat(folder, name, Vec::new()))
                        .map_err(|cause| Error::io("read link", join(self.base, &item.path), cause))?;
                    item.body = Body::Made(target.into_bytes());
                }
                _ => {}
            }
        }
        Ok(items)
    }

    /// The digest of the tree, and the size of its files.
    fn digest(&self, mut items: Vec<Item>, digests: &HashMap<u64, Digest>) -> Result<(Digest, u64), Error> {
        copy::find_hard_links(&mut items);
        let mut size = 0;
        let mut contents = Vec::with_capacity(items.len());
        for item in &mut items {
            contents.push(match &mut item.body {
                Body::File => {
                    size += item.meta.size;
                    let digest = digests.get(&item.meta.ino);
                    Some(Content::Hash(*digest.ok_or_else(|| Error::Changed(join(self.base, &item.path)))?))
                }
                Body::Made(target) => Some(Content::Target(take(target))),
                _ => None,
            });
        }
        Ok((copy::digest(ALGORITHM, &items, &contents, self.job.owners.ids()), size))
    }
}

/// The path of an entry or of a link's target in the layer.
pub(crate) fn inside(path: &[u8]) -> Result<Vec<u8>, String> {
    let path = plain(path);
    for part in path.split(|b| *b == b'/') {
        if part == b".." {
            return Err("leads out of its folder by `..`".into());
        }
        if part.len() > MAX_NAME {
            return Err(format!("has a name of {} bytes, {MAX_NAME} are the most", part.len()));
        }
    }
    Ok(path)
}

/// Refuses what would mean something to the overlay, or lies where nothing is made.
pub(crate) fn check_names(path: &[u8], entry: &Entry) -> Result<(), String> {
    if let Some((name, _)) = entry.xattrs.iter().find(|(name, _)| name.starts_with(b"user.overlay.")) {
        let name = text(&String::from_utf8_lossy(name));
        return Err(format!("has the attribute `{name}`, by which it would steer the overlay"));
    }
    match split(path).0.split(|b| *b == b'/').any(|part| part.starts_with(WHITEOUT)) {
        true => Err("lies below a whiteout".into()),
        false => Ok(()),
    }
}

/// What the whiteout `name` hides.
pub(crate) fn hidden_name<'n>(name: &'n [u8], entry: &Entry) -> Result<&'n [u8], &'static str> {
    if !matches!(entry.kind, Kind::File | Kind::Hard) || entry.size > 0 {
        return Err("has the name of a whiteout and is no empty file");
    }
    match &name[WHITEOUT.len()..] {
        b"" | b"." | b".." => Err("is a whiteout of nothing that can be hidden"),
        hidden => Ok(hidden),
    }
}

/// Why an entry cannot be made.
enum Trouble {
    Refused(String),
    TooLarge(String),
    /// The kernel's answer to what was tried.
    Failed(&'static str, Errno),
    Error(Error),
}

impl Trouble {
    fn at<I: Input>(self, tar: &Tar<'_, I>, base: &Path, path: &[u8]) -> Error {
        match self {
            Trouble::Refused(why) => tar.refused(&why),
            Trouble::TooLarge(what) => tar.too_large(what),
            Trouble::Failed(step, cause) => Error::io(step, join(base, path), cause),
            Trouble::Error(error) => error,
        }
    }
}

/// Hides what the layers below have in a folder.
fn hide_below(folder: &OwnedFd) -> Result<(), Trouble> {
    rustix::fs::fsetxattr(folder, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
        .map_err(|cause| Trouble::Failed("mark as opaque", cause))
}

fn stat(folder: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Trouble> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(cause) => Err(Trouble::Failed("stat", cause)),
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0
}

/// Folder and name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

pub(crate) fn lossy(bytes: &[u8]) -> String {
    text(&String::from_utf8_lossy(bytes))
}

pub(super) fn times((tv_sec, nanoseconds): Time) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
