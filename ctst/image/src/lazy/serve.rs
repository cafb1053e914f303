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

use super::index::{Body, Index, Node};
use super::read::{Reader, Trouble};
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

/// Serves the file system of the FUSE device `device` from `archive`, and `data`, which was made with the index, until it is unmounted everywhere. `owner`: whom everything
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
    data: OwnedFd,
    owner: Option<(u32, u32)>,
    say: fn(&str),
) -> Result<(), Error> {
    let place = Path::new(super::INDEX);
    let index = Index::read(index, place, &lazy.index)?;
    let served = Served::new(Reader::new(index, archive, data), lazy.archive.clone(), owner, say);
    served.reader.check_state().map_err(|_| Error::Changed(lazy.archive.clone()))?;
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    let failed = |e: io::Error| Error::std("serve", "/dev/fuse", &e);
    Session::from_fd(served, device, SessionACL::All, config).map_err(failed)?.run().map_err(failed)
}

/// What a folder holds: names in order, and nodes.
type Entries = [(Vec<u8>, u32)];

struct Served {
    reader: Reader,
    name: PathBuf,
    owner: Option<(u32, u32)>,
    say: fn(&str),
    /// Some file has an extended attribute.
    has_attributes: bool,
    /// That something could not be read was told.
    is_broken: AtomicBool,
}

impl Served {
    fn new(reader: Reader, name: PathBuf, owner: Option<(u32, u32)>, say: fn(&str)) -> Served {
        let has_attributes = reader.index.nodes.iter().any(|node| !node.xattrs.is_empty());
        Served { reader, name, owner, say, has_attributes, is_broken: AtomicBool::new(false) }
    }

    fn node(&self, ino: INodeNo) -> Result<&Node, Errno> {
        let at = ino.0.checked_sub(1).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.reader.index.nodes.get(at)).ok_or(Errno::ESTALE)
    }

    fn entries(&self, ino: INodeNo) -> Result<(&Entries, u32), Errno> {
        match &self.node(ino)?.body {
            Body::Folder { entries, parent } => Ok((entries, *parent)),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn attributes(&self, number: u32) -> Result<FileAttr, Errno> {
        let node = self.reader.index.nodes.get(number as usize).ok_or(Errno::ESTALE)?;
        let (kind, size, nlink) = match &node.body {
            Body::Folder { entries, .. } => {
                let is_folder = |number: &u32| {
                    let below = self.reader.index.nodes.get(*number as usize);
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

    fn tell(&self, trouble: &Trouble) {
        if self.is_broken.swap(true, Ordering::Relaxed) {
            return;
        }
        let archive = shown(&self.name);
        let why = match trouble {
            Trouble::Changed => format!("archive `{archive}` was changed after the container was started on it"),
            Trouble::Damaged => {
                format!("what the image store keeps of archive `{archive}` is damaged (ctst images verify)")
            }
            Trouble::Refused(cause) => format!("read archive `{archive}`: {cause}"),
        };
        (self.say)(&format!(
            "{why}: files of the image that were not read before give input/output errors from now on; bring it up again: \
             ctst run -d"
        ));
    }
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
        match self.reader.content(&node.body, offset, size) {
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
        let (blocks, files) = (self.reader.index.archive.size.div_ceil(4096), self.reader.index.nodes.len() as u64);
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
    use std::io::Read as _;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
    use std::process::Command;

    use super::*;
    use sha2::{Digest as _, Sha256};

    use crate::lazy::index::{DATA, Form, Start, State, Stream};
    use crate::lazy::{IndexJob, build};
    use crate::source::hex;
    use crate::unpack::{Direct, Owners, Runner, UnpackJob};
    use crate::{Limits, remove_tree};

    fn said(_: &str) {}

    /// What can be seen of a file: kind and mode, size, time, names, content or target.
    type Fact = (u32, u64, (i64, u32), u64, Vec<u8>);

    fn served(archive: &Path, hash: bool) -> Served {
        let folder = archive.parent().unwrap();
        let file = || OwnedFd::from(File::open(archive).unwrap());
        let target = folder.join(format!("index-{hash}"));
        fs::create_dir(&target).unwrap();
        let job = IndexJob { archive: archive.into(), owners: Owners::Flatten, limits: Limits::default(), hash };
        let made = build(&job, &file(), &target).unwrap();
        let digest = hash.then(|| hex(&Sha256::digest(fs::read(archive).unwrap()).into()));
        assert_eq!(made.digest, digest);
        super::super::verify(&target, &made.index).unwrap();
        let path = target.join(super::super::INDEX);
        let index = Index::read(&File::open(&path).unwrap().into(), &path, &made.index).unwrap();
        let data = File::open(target.join(DATA)).unwrap().into();
        assert_eq!(fs::read_to_string(target.join("tree/etc/passwd")).unwrap(), PASSWD);
        Served::new(Reader::new(index, file(), data), archive.into(), Some((5, 6)), said)
    }

    const PASSWD: &str = "root:x:0:0::/:/bin/sh\n";

    fn pack(root: &Path, archive: &Path, more: &[&str]) {
        let tar = Command::new("tar").args(more).arg("-cf").arg(archive).arg("-C").arg(root).arg(".").status();
        assert!(tar.unwrap().success());
    }

    const FORMS: [&str; 7] =
        ["gzip", "stored gzip", "members of gzip", "small members of gzip", "zstd", "frames of zstd", "xz"];

    /// The same archive in another form.
    fn compressed(archive: &Path, form: &str) -> PathBuf {
        let bytes = fs::read(archive).unwrap();
        let gzip = |bytes: &[u8], level| {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
            std::io::Write::write_all(&mut packed, bytes).unwrap();
            packed.finish().unwrap()
        };
        let members = |size| bytes.chunks(size).flat_map(|part| gzip(part, 6)).collect();
        let packed = match form {
            "gzip" => gzip(&bytes, 6),
            "stored gzip" => gzip(&bytes, 0),
            "members of gzip" => members(300_000),
            "small members of gzip" => members(3000),
            "zstd" => zstd::bulk::compress(&bytes, 3).unwrap(),
            "frames of zstd" => {
                let frames = bytes.chunks(700_000).flat_map(|part| zstd::bulk::compress(part, 3).unwrap());
                // And one that a reader passes over, as seek tables are.
                frames.chain([0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]).collect()
            }
            _ => {
                let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
                std::io::Write::write_all(&mut xz, &bytes).unwrap();
                xz.finish().unwrap()
            }
        };
        let path = archive.with_extension(form.replace(' ', "-"));
        fs::write(&path, packed).unwrap();
        path
    }

    fn walk(served: &Served, number: u32, path: &Path, facts: &mut BTreeMap<PathBuf, Fact>) {
        let node = &served.reader.index.nodes[number as usize];
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
                let piece =
                    |at| served.reader.content(&node.body, at, 70_001).unwrap_or_else(|_| panic!("read {path:?}"));
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
        let large: Vec<u8> =
            (0..1_200_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> (n % 32)).to_le_bytes()).collect();
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
            pack(&root, &archive, &["--sparse", "--format", format]);
            let target = dir.join(format);
            fs::create_dir(&target).unwrap();
            let (owners, limits) = (Owners::Flatten, Limits::default());
            let job =
                UnpackJob { archive: archive.clone(), owners, limits, have: Vec::new(), partial: false, image: None };
            Direct.unpack(&job, File::open(&archive).unwrap().into(), &target, &mut |_| {}).unwrap();
            let mut expected = BTreeMap::new();
            look(&target.join("0/tree"), Path::new(""), &mut expected);
            assert!(expected.len() > 310);
            for form in FORMS.into_iter().chain(["plain"]) {
                let archive = if form == "plain" { archive.clone() } else { compressed(&archive, form) };
                for hash in [false, true] {
                    let mut facts = BTreeMap::new();
                    let served = served(&archive, hash);
                    walk(&served, 0, Path::new(""), &mut facts);
                    assert!(facts == expected, "{format} {form} {hash}");
                    let kept = served.reader.index.streams.iter().map(|stream| match &stream.form {
                        Form::Pieces(pieces) => pieces.iter().filter(|piece| piece.start == Start::Copy).count(),
                        Form::Plain { .. } => 0,
                    });
                    // Only what has no places to begin at.
                    assert_eq!(kept.sum::<usize>() > 0, matches!(form, "zstd" | "xz"), "{form}");
                    fs::remove_dir_all(dir.join(format!("index-{hash}"))).unwrap();
                }
            }
            remove_tree(&target).unwrap();
        }
    }

    /// An image of these layers, the lowest first, as `docker save` writes it.
    fn image(dir: &Path, layers: &[PathBuf]) -> PathBuf {
        let image = dir.join("image");
        fs::create_dir(&image).unwrap();
        let (mut names, mut diffs) = (Vec::new(), Vec::new());
        for (number, layer) in layers.iter().enumerate() {
            let bytes = fs::read(layer).unwrap();
            let mut plain = Vec::new();
            match bytes[..2] {
                [0x1f, 0x8b] => drop(flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap()),
                [0x28, 0xb5] => zstd::stream::copy_decode(&bytes[..], &mut plain).unwrap(),
                _ => plain.clone_from(&bytes),
            }
            diffs.push(format!("sha256:{}", hex(&Sha256::digest(&plain).into())));
            names.push(format!("{number}/layer.tar"));
            fs::create_dir(image.join(number.to_string())).unwrap();
            fs::write(image.join(&names[number]), bytes).unwrap();
        }
        let config = serde_json::json!({
            "architecture": crate::archive::image::architecture(), "os": "linux", "rootfs": { "diff_ids": diffs },
            "config": { "Entrypoint": ["/bin/app"], "Env": ["A=b"] },
        });
        fs::write(image.join("config.json"), config.to_string()).unwrap();
        let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": ["app:1"], "Layers": names }]);
        fs::write(image.join("manifest.json"), manifest.to_string()).unwrap();
        let archive = dir.join("image.tar");
        pack(&image, &archive, &["--sort=name"]);
        fs::remove_dir_all(&image).unwrap();
        archive
    }

    #[test]
    fn shows_what_an_overlay_of_the_layers_shows() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let large: Vec<u8> =
            (0..800_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> (n % 32)).to_le_bytes()).collect();
        type Files<'a> = &'a [(&'a str, &'a [u8])];
        let layer = |name: &str, files: Files<'_>| {
            let root = dir.join("root");
            for (path, bytes) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            fs::set_permissions(root.join("etc"), fs::Permissions::from_mode(0o750)).ok();
            let archive = dir.join(name);
            pack(&root, &archive, &["--mtime=@1000000000"]);
            fs::remove_dir_all(&root).unwrap();
            archive
        };
        let low: Files<'_> = &[
            ("etc/passwd", PASSWD.as_bytes()),
            ("srv/large", &large),
            ("srv/old/one", b"1"),
            ("srv/old/deep/two", b"2"),
            ("srv/gone", b"x"),
            ("srv/folder/x", b"x"),
            ("srv/opaque/below", b"x"),
            ("srv/file", b"was a file"),
            ("usr/kept", b"k"),
        ];
        let middle: Files<'_> = &[
            ("srv/.wh.gone", b""),
            ("srv/old/.wh.deep", b""),
            ("srv/opaque/.wh..wh..opq", b""),
            ("srv/opaque/new", b"n"),
            ("srv/folder", b"now a file"),
            ("srv/file/is/a/folder", b"f"),
            ("srv/middle", &large[..70_000]),
            // Of what is not there.
            ("srv/.wh.never", b""),
            ("usr/.wh.kept", b""),
            ("usr/kept/in", b"a folder again"),
        ];
        let top: Files<'_> = &[
            ("srv/.wh.folder", b""),
            ("srv/large", &large[5..]),
            ("srv/gone", b"back"),
            ("srv/old/deep/three", b"3"),
            ("srv/.wh..wh.aufs", b""),
            ("srv/opaque/.wh.new", b""),
        ];
        let layers = [layer("low.tar", low), layer("middle.tar", middle), layer("top.tar", top)];
        let [low, middle, top] = &layers;
        let forms = [
            layers.to_vec(),
            vec![compressed(low, "gzip"), compressed(middle, "members of gzip"), compressed(top, "gzip")],
            vec![compressed(low, "zstd"), middle.clone(), compressed(top, "frames of zstd")],
        ];
        for (number, layers) in forms.iter().enumerate() {
            let archive = image(dir, layers);
            let (target, flat) = (dir.join("target"), dir.join("flat"));
            fs::create_dir(&target).unwrap();
            fs::create_dir(&flat).unwrap();
            let (owners, limits) = (Owners::Flatten, Limits::default());
            let job =
                UnpackJob { archive: archive.clone(), owners, limits, have: Vec::new(), partial: false, image: None };
            let report = Direct.unpack(&job, File::open(&archive).unwrap().into(), &target, &mut |_| {}).unwrap();
            let trees: Vec<PathBuf> = (0..3).rev().map(|number| target.join(format!("{number}/tree"))).collect();
            crate::flatten(&trees, &flat).unwrap();
            let mut expected = BTreeMap::new();
            look(&flat, Path::new(""), &mut expected);
            assert!(expected.contains_key(Path::new("srv/file/is/a/folder")) && expected.len() > 15, "{expected:?}");
            // Only one that is compressed once can be read.
            let whole = if number == 0 { &["gzip", "frames of zstd", "xz"][..] } else { &[] };
            for form in whole.iter().chain(&["plain"]) {
                let archive = if *form == "plain" { archive.clone() } else { compressed(&archive, form) };
                for hash in [false, true] {
                    let served = served(&archive, hash);
                    let mut facts = BTreeMap::new();
                    walk(&served, 0, Path::new(""), &mut facts);
                    for (path, fact) in &expected {
                        assert!(facts.get(path) == Some(fact), "{number} {form} {hash} {path:?}");
                    }
                    assert_eq!(facts.len(), expected.len(), "{number} {form} {hash}");
                    let target = dir.join(format!("index-{hash}"));
                    fs::remove_dir_all(&target).unwrap();
                    fs::create_dir(&target).unwrap();
                    let job = IndexJob { archive: archive.clone(), owners, limits, hash };
                    let made = build(&job, &File::open(&archive).unwrap().into(), &target).unwrap();
                    assert_eq!(
                        (made.config, made.declared, made.notes),
                        (report.config.clone(), report.declared.clone(), report.notes.clone())
                    );
                    fs::remove_dir_all(&target).unwrap();
                }
            }
            remove_tree(&target).unwrap();
            remove_tree(&flat).unwrap();
        }
    }

    #[test]
    fn serves_nothing_else_than_what_was_indexed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::create_dir_all(dir.join("root/etc")).unwrap();
        fs::write(dir.join("root/etc/passwd"), PASSWD).unwrap();
        fs::write(dir.join("root/file"), vec![7; 200_000]).unwrap();
        pack(&dir.join("root"), &dir.join("a.tar"), &[]);
        let body = |served: &Served| {
            let files = served.reader.index.nodes.iter().map(|node| &node.body);
            files.clone().find(|body| matches!(body, Body::File { size: 200_000, .. })).unwrap().clone()
        };
        let (plain, pinned) = (served(&dir.join("a.tar"), false), served(&dir.join("a.tar"), true));
        let read = |served: &Served| served.reader.content(&body(served), 100_000, 10);
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
        let file = |size, at| node(Body::File { size, stream: 0, at, stretches: None });
        let read = |nodes: Vec<Node>| {
            let whole = Stream { size: state.size, form: Form::Plain { blocks: None } };
            let (bytes, digest) = Index::new(state, nodes, vec![whole]).encode().unwrap();
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
