//! The file system in user space: answers the kernel from an index and its archive. Nothing can be written.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request, Session, SessionACL,
};
use serde::{Deserialize, Serialize};

use super::index::{BLOCK, Body, Index, Node, State};
use crate::Error;
use crate::error::shown;
use crate::tree::Time;

/// Nothing ever changes, so that the kernel need not ask twice.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Requests that are answered at the same time: readers wait for a disk.
const THREADS: usize = 4;

/// What a server is told of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lazy {
    /// The archive, for messages.
    pub archive: PathBuf,
    /// The index's digest: `blake3:` and 64 hexadecimal digits.
    pub index: String,
}

/// Serves the file system of the FUSE device `device` from `archive` until it is unmounted everywhere. `owner`: whom everything
/// belongs to, by the ids of the mounting user namespace, instead of what the index says. `say` is told, once, why something
/// could not be read.
///
/// # Errors
/// An index that is not the one of that digest, an archive that is not the one that was indexed, and those of the device.
pub fn serve(
    lazy: &Lazy,
    device: OwnedFd,
    archive: OwnedFd,
    index: &OwnedFd,
    owner: Option<(u32, u32)>,
    say: fn(&str),
) -> Result<(), Error> {
    let place = Path::new(super::INDEX);
    let index = Index::read(index, place, &lazy.index)?;
    let served = Served::new(index, archive, lazy.archive.clone(), owner, say);
    served.check_state().map_err(|_| Error::Changed(lazy.archive.clone()))?;
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    let failed = |e: io::Error| Error::std("serve", "/dev/fuse", &e);
    Session::from_fd(served, device, SessionACL::All, config).map_err(failed)?.run().map_err(failed)
}

/// What a folder holds: names in order, and nodes.
type Entries = [(Vec<u8>, u32)];

struct Served {
    index: Index,
    archive: OwnedFd,
    name: PathBuf,
    owner: Option<(u32, u32)>,
    say: fn(&str),
    /// Some file has an extended attribute.
    has_attributes: bool,
    /// That something could not be read was told.
    is_broken: AtomicBool,
}

impl Served {
    fn new(index: Index, archive: OwnedFd, name: PathBuf, owner: Option<(u32, u32)>, say: fn(&str)) -> Served {
        let has_attributes = index.nodes.iter().any(|node| !node.xattrs.is_empty());
        Served { index, archive, name, owner, say, has_attributes, is_broken: AtomicBool::new(false) }
    }

    fn node(&self, ino: INodeNo) -> Result<&Node, Errno> {
        let at = ino.0.checked_sub(1).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.index.nodes.get(at)).ok_or(Errno::ESTALE)
    }

    fn entries(&self, ino: INodeNo) -> Result<(&Entries, u32), Errno> {
        match &self.node(ino)?.body {
            Body::Folder { entries, parent } => Ok((entries, *parent)),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn attributes(&self, number: u32) -> Result<FileAttr, Errno> {
        let node = self.index.nodes.get(number as usize).ok_or(Errno::ESTALE)?;
        let (kind, size, nlink) = match &node.body {
            Body::Folder { entries, .. } => {
                let is_folder = |number: &u32| {
                    let below = self.index.nodes.get(*number as usize);
                    below.is_some_and(|node| matches!(node.body, Body::Folder { .. }))
                };
                let folders = entries.iter().filter(|(_, number)| is_folder(number)).count();
                (FileType::Directory, 0, u32::try_from(folders + 2).unwrap_or(u32::MAX))
            }
            Body::File { size, .. } => (FileType::RegularFile, *size, node.links),
            Body::Symlink(target) => (FileType::Symlink, target.len() as u64, node.links),
            Body::Fifo => (FileType::NamedPipe, 0, node.links),
        };
        let stored = match &node.body {
            Body::File { stretches: Some(stretches), .. } => stretches.iter().map(|(_, length)| length).sum(),
            _ => size,
        };
        let (uid, gid) = self.owner.unwrap_or((node.uid, node.gid));
        let time = time(node.mtime);
        Ok(FileAttr {
            ino: INodeNo(u64::from(number) + 1),
            size,
            blocks: stored.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            // Twelve bits.
            perm: u16::try_from(node.mode & 0o7777).unwrap_or(0),
            nlink,
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// That the archive is the file that was indexed, as far as its size and times tell.
    fn check_state(&self) -> Result<(), Trouble> {
        let stat = rustix::fs::fstat(&self.archive).map_err(Trouble::Refused)?;
        if State::from(stat) == self.index.archive { Ok(()) } else { Err(Trouble::Changed) }
    }

    /// Fills `buffer` with what the archive has from `at` on.
    fn read_archive(&self, at: u64, buffer: &mut [u8]) -> Result<(), Trouble> {
        let Some(blocks) = &self.index.blocks else {
            self.pread(at, buffer)?;
            // Afterwards: what was read is from before any change that this does not see.
            return self.check_state();
        };
        // What the pin was compared with, whatever became of the file.
        let end = at + buffer.len() as u64;
        let mut block = vec![0; BLOCK as usize];
        for number in at / BLOCK..end.div_ceil(BLOCK) {
            let start = number * BLOCK;
            let block = &mut block[..BLOCK.min(self.index.archive.size - start) as usize];
            self.pread(start, block)?;
            let digest = usize::try_from(number).ok().and_then(|number| blocks.get(number));
            if digest != Some(blake3::hash(block).as_bytes()) {
                return Err(Trouble::Changed);
            }
            let (from, to) = (at.max(start), end.min(start + block.len() as u64));
            let wanted = &block[(from - start) as usize..(to - start) as usize];
            buffer[(from - at) as usize..(to - at) as usize].copy_from_slice(wanted);
        }
        Ok(())
    }

    fn pread(&self, at: u64, buffer: &mut [u8]) -> Result<(), Trouble> {
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&self.archive, &mut buffer[done..], at + done as u64) {
                Ok(0) => return Err(Trouble::Changed),
                Ok(count) => done += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return Err(Trouble::Refused(cause)),
            }
        }
        Ok(())
    }

    /// Up to `size` bytes of a file from `offset` on.
    fn content(&self, body: &Body, offset: u64, size: u32) -> Result<Vec<u8>, Trouble> {
        let Body::File { size: length, at, stretches } = body else { return Ok(Vec::new()) };
        let end = length.min(&offset.saturating_add(size.into())).max(&offset).to_owned();
        let mut out = vec![0; usize::try_from(end - offset).unwrap_or(0)];
        let whole = [(0, *length)];
        let mut data = *at;
        for (start, length) in stretches.as_deref().unwrap_or(&whole) {
            let (from, to) = (offset.max(*start), end.min(start + length));
            if from < to {
                let part = &mut out[(from - offset) as usize..(to - offset) as usize];
                self.read_archive(data + (from - start), part)?;
            }
            data += length;
        }
        Ok(out)
    }

    fn tell(&self, trouble: &Trouble) {
        if self.is_broken.swap(true, Ordering::Relaxed) {
            return;
        }
        let archive = shown(&self.name);
        let why = match trouble {
            Trouble::Changed => format!("archive `{archive}` was changed after the container was started on it"),
            Trouble::Refused(cause) => format!("read archive `{archive}`: {cause}"),
        };
        (self.say)(&format!(
            "{why}: files of the image that were not read before give input/output errors from now on; bring it up again: \
             ctst run -d"
        ));
    }
}

enum Trouble {
    Changed,
    Refused(rustix::io::Errno),
}

fn time((seconds, nanoseconds): Time) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let whole = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    whole.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(UNIX_EPOCH)
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            // An older kernel does without.
            config.add_capabilities(capability).ok();
        }
        config.set_max_background(64).ok();
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.entries(parent).and_then(|(entries, _)| {
            let at = entries.binary_search_by(|(other, _)| other[..].cmp(name.as_bytes()));
            at.map_or(Ok(None), |at| self.attributes(entries[at].1).map(Some))
        });
        match found {
            Ok(Some(attributes)) => reply.entry(&FOREVER, &attributes, Generation(0)),
            Ok(None) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let number = self.node(ino).map(|_| u32::try_from(ino.0 - 1).unwrap_or(u32::MAX));
        match number.and_then(|number| self.attributes(number)) {
            Ok(attributes) => reply.attr(&FOREVER, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.node(ino).map(|node| &node.body) {
            Ok(Body::Symlink(target)) => reply.data(target),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        }
    }

    /// By this the kernel, since Linux 5.1 for folders too, learns never to ask again, and to keep what it has read.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(error),
        };
        match self.content(&node.body, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(trouble) => {
                self.tell(&trouble);
                reply.error(Errno::EIO);
            }
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.entries(ino) {
            Err(error) => reply.error(error),
            Ok((entries, parent)) => {
                for (name, number, next) in listing(ino, entries, parent, offset) {
                    let Ok(attributes) = self.attributes(number) else { continue };
                    if reply.add(attributes.ino, next, attributes.kind, OsStr::from_bytes(name)) {
                        break;
                    }
                }
                reply.ok();
            }
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        match self.entries(ino) {
            Err(error) => reply.error(error),
            Ok((entries, parent)) => {
                for (name, number, next) in listing(ino, entries, parent, offset) {
                    let Ok(attributes) = self.attributes(number) else { continue };
                    let name = OsStr::from_bytes(name);
                    if reply.add(attributes.ino, next, name, &FOREVER, &attributes, Generation(0)) {
                        break;
                    }
                }
                reply.ok();
            }
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (blocks, files) = (self.index.archive.size.div_ceil(4096), self.index.nodes.len() as u64);
        reply.statfs(blocks, 0, 0, files, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.has_attributes {
            // The kernel does not ask again.
            return reply.error(Errno::ENOSYS);
        }
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(error),
        };
        match node.xattrs.iter().find(|(other, _)| other[..] == *name.as_bytes()) {
            Some((_, value)) => answer(value, size, reply),
            None => reply.error(Errno::NO_XATTR),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.has_attributes {
            return reply.error(Errno::ENOSYS);
        }
        match self.node(ino) {
            Ok(node) => {
                let names: Vec<u8> = node.xattrs.iter().flat_map(|(name, _)| name.iter().copied().chain([0])).collect();
                answer(&names, size, reply);
            }
            Err(error) => reply.error(error),
        }
    }
}

/// What a folder holds from `offset` on: name, node, and the offset of what follows.
fn listing(ino: INodeNo, entries: &Entries, parent: u32, offset: u64) -> impl Iterator<Item = (&[u8], u32, u64)> {
    let own = u32::try_from(ino.0.saturating_sub(1)).unwrap_or(u32::MAX);
    let dots = [(&b"."[..], own), (&b".."[..], parent)];
    let all = dots.into_iter().chain(entries.iter().map(|(name, number)| (&name[..], *number)));
    all.zip(1u64..)
        .map(|((name, number), next)| (name, number, next))
        .skip(usize::try_from(offset).unwrap_or(usize::MAX))
}

/// A value, or its length where the caller has no room yet (`getxattr(2)`).
fn answer(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
    use std::process::Command;

    use super::*;
    use crate::lazy::{IndexJob, build};
    use crate::unpack::{Direct, Owners, Runner, UnpackJob};
    use crate::{Limits, remove_tree};

    fn said(_: &str) {}

    /// What can be seen of a file: kind and mode, size, time, names, content or target.
    type Fact = (u32, u64, (i64, u32), u64, Vec<u8>);

    fn served(folder: &Path, hash: bool) -> Served {
        let archive = folder.join("a.tar");
        let file = || OwnedFd::from(File::open(&archive).unwrap());
        let target = folder.join(format!("index-{hash}"));
        fs::create_dir(&target).unwrap();
        let job = IndexJob { archive: archive.clone(), owners: Owners::Flatten, limits: Limits::default(), hash };
        let made = build(&job, &file(), &target).unwrap();
        let path = target.join(super::super::INDEX);
        let index = Index::read(&File::open(&path).unwrap().into(), &path, &made.index).unwrap();
        assert_eq!(index.blocks.is_some(), hash);
        assert_eq!(fs::read_to_string(target.join("tree/etc/passwd")).unwrap(), "root:x:0:0::/:/bin/sh\n");
        Served::new(index, file(), archive.clone(), Some((5, 6)), said)
    }

    fn walk(served: &Served, number: u32, path: &Path, facts: &mut BTreeMap<PathBuf, Fact>) {
        let node = &served.index.nodes[number as usize];
        let attributes = served.attributes(number).unwrap();
        assert_eq!((attributes.uid, attributes.gid), (5, 6));
        let (kind, content) = match &node.body {
            Body::Folder { entries, .. } => {
                entries.iter().for_each(|(name, below)| {
                    walk(served, *below, &path.join(OsStr::from_bytes(name)), facts);
                });
                (0o040_000, Vec::new())
            }
            // In pieces that begin and end anywhere.
            Body::File { size, .. } => {
                let piece = |at| served.content(&node.body, at, 70_001).unwrap_or_else(|_| panic!("read {path:?}"));
                (0o100_000, (0..=*size).step_by(70_001).flat_map(piece).collect())
            }
            Body::Symlink(target) => (0o120_000, target.clone()),
            Body::Fifo => (0o010_000, Vec::new()),
        };
        let (size, links) = match &node.body {
            Body::Folder { .. } => (0, 0),
            _ => (attributes.size, attributes.nlink.into()),
        };
        facts.insert(path.into(), (kind | node.mode, size, node.mtime, links, content));
    }

    fn look(root: &Path, path: &Path, facts: &mut BTreeMap<PathBuf, Fact>) {
        let place = root.join(path);
        let meta = place.symlink_metadata().unwrap();
        let mut content = Vec::new();
        if meta.is_dir() {
            for entry in fs::read_dir(&place).unwrap() {
                look(root, &path.join(entry.unwrap().file_name()), facts);
            }
        } else if meta.is_symlink() {
            content = fs::read_link(&place).unwrap().into_os_string().into_encoded_bytes();
        } else if meta.is_file() {
            content = fs::read(&place).unwrap();
        }
        let (size, links) = if meta.is_dir() { (0, 0) } else { (meta.len(), meta.nlink()) };
        let mtime = (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap());
        facts.insert(path.into(), (meta.mode(), size, mtime, links, content));
    }

    #[test]
    fn shows_what_unpacking_makes() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, root) = (dir.path(), dir.path().join("root"));
        for folder in ["etc", "a/b/c", "many", "tmp"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        let large: Vec<u8> = (0..400_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        fs::write(root.join("a/large"), &large).unwrap();
        fs::hard_link(root.join("a/large"), root.join("a/b/same")).unwrap();
        fs::write(root.join(format!("a/b/c/{}", "long".repeat(60))), "x").unwrap();
        std::os::unix::fs::symlink("../a/large", root.join("tmp/link")).unwrap();
        (0..300).for_each(|n| fs::write(root.join(format!("many/{n}")), n.to_string().repeat(n)).unwrap());
        let sparse = File::create(root.join("sparse")).unwrap();
        sparse.write_all_at(b"begins", 0).unwrap();
        sparse.write_all_at(b"middle", 1 << 20).unwrap();
        sparse.set_len(3 << 20).unwrap();
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        for format in ["gnu", "pax"] {
            let archive = dir.join("a.tar");
            let tar = Command::new("tar")
                .args(["--sparse", "--format", format, "-cf"])
                .arg(&archive)
                .arg("-C")
                .arg(&root)
                .arg(".")
                .status();
            assert!(tar.unwrap().success());
            let target = dir.join(format);
            fs::create_dir(&target).unwrap();
            let (owners, limits) = (Owners::Flatten, Limits::default());
            let job = UnpackJob { archive: archive.clone(), owners, limits, have: Vec::new(), partial: false };
            Direct.unpack(&job, File::open(&archive).unwrap().into(), &target, &mut |_| {}).unwrap();
            let mut expected = BTreeMap::new();
            look(&target.join("0/tree"), Path::new(""), &mut expected);
            assert!(expected.len() > 310);
            for hash in [false, true] {
                let mut facts = BTreeMap::new();
                let served = served(dir, hash);
                walk(&served, 0, Path::new(""), &mut facts);
                assert!(facts == expected, "{format} {hash}");
                fs::remove_dir_all(dir.join(format!("index-{hash}"))).unwrap();
            }
            remove_tree(&target).unwrap();
        }
    }

    #[test]
    fn serves_nothing_else_than_what_was_indexed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::create_dir_all(dir.join("root/etc")).unwrap();
        fs::write(dir.join("root/etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        fs::write(dir.join("root/file"), vec![7; 200_000]).unwrap();
        let tar =
            Command::new("tar").arg("-cf").arg(dir.join("a.tar")).arg("-C").arg(dir.join("root")).arg(".").status();
        assert!(tar.unwrap().success());
        let body = |served: &Served| {
            let files = served.index.nodes.iter().map(|node| &node.body);
            files.clone().find(|body| matches!(body, Body::File { size: 200_000, .. })).unwrap().clone()
        };
        let (plain, pinned) = (served(dir, false), served(dir, true));
        let read = |served: &Served| served.content(&body(served), 100_000, 10);
        assert!(matches!((read(&plain), read(&pinned)), (Ok(a), Ok(b)) if a == [7; 10] && b == a));
        let archive = File::options().write(true).open(dir.join("a.tar")).unwrap();
        let Body::File { at, .. } = body(&plain) else { panic!("a file") };
        // With the same time, which only a digest tells from what it was.
        let time = archive.metadata().unwrap().modified().unwrap();
        archive.write_all_at(b"!", at + 100_005).unwrap();
        assert!(matches!((read(&plain), read(&pinned)), (Err(Trouble::Changed), Err(Trouble::Changed))));
        archive.set_modified(time).unwrap();
        assert!(matches!((read(&plain), read(&pinned)), (Ok(_), Err(Trouble::Changed))));
        archive.write_all_at(&[7], at + 100_005).unwrap();
        assert!(matches!((read(&plain), read(&pinned)), (Err(_), Ok(_))));
        archive.set_len(at + 50_000).unwrap();
        assert!(matches!((read(&plain), read(&pinned)), (Err(_), Err(_))));
    }

    #[test]
    fn an_index_that_was_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let state = State { dev: 1, ino: 2, size: 1000, mtime: (3, 4) };
        let node = |body| Node { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), links: 1, xattrs: Vec::new(), body };
        let folder = |parent, entries: &[(&str, u32)]| {
            let entries = entries.iter().map(|(name, number)| (name.as_bytes().to_vec(), *number)).collect();
            node(Body::Folder { parent, entries })
        };
        let file = |size, at| node(Body::File { size, at, stretches: None });
        let read = |nodes: Vec<Node>| {
            let (bytes, digest) = Index::new(state, nodes, None).encode();
            fs::write(&path, bytes).unwrap();
            let digest = crate::Algorithm::Blake3.text(&digest);
            Index::read(&File::open(&path).unwrap().into(), &path, &digest).map(|index| (index, digest))
        };
        let (_, digest) = read(vec![folder(0, &[("a", 1), ("b", 2)]), folder(0, &[]), file(10, 990)]).unwrap();
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            fs::write(&path, other).unwrap();
            let refused = Index::read(&File::open(&path).unwrap().into(), &path, &digest);
            assert!(matches!(refused, Err(Error::Index { .. })), "{at}");
        }
        for (what, nodes) in [
            ("nothing", vec![]),
            ("a root that is a file", vec![file(0, 0)]),
            ("an entry that is nowhere", vec![folder(0, &[("a", 1)])]),
            ("the root in itself", vec![folder(0, &[("a", 0)])]),
            ("a folder in two places", vec![folder(0, &[("a", 1), ("b", 1)]), folder(0, &[])]),
            ("folders in a circle", vec![folder(0, &[]), folder(2, &[("a", 2)]), folder(1, &[("a", 1)])]),
            ("names in another order", vec![folder(0, &[("b", 1), ("a", 1)]), file(0, 0)]),
            ("a name twice", vec![folder(0, &[("a", 1), ("a", 1)]), file(0, 0)]),
            ("..", vec![folder(0, &[("..", 1)]), file(0, 0)]),
            ("a slash", vec![folder(0, &[("a/b", 1)]), file(0, 0)]),
            ("a file beyond the end", vec![folder(0, &[("a", 1)]), file(11, 990)]),
            ("a file without an end", vec![folder(0, &[("a", 1)]), file(u64::MAX, 1)]),
        ] {
            let result = read(nodes);
            let circle = what == "folders in a circle";
            // Nothing leads into a circle, so that nobody gets there.
            assert!(circle == result.is_ok(), "{what}: {result:?}");
        }
    }
}
