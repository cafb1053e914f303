//! What the tests of this crate share.
#![expect(dead_code, reason = "no test uses all of it")]

pub(crate) mod tarball;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use containust_image::model::{Image, Ownership};
use containust_image::{Error, Request, Source, Store};

pub(crate) fn file(path: &Path) -> Request<'static> {
    Request { source: Source::File(path.into()), ownership: Ownership::Caller, pin: None }
}

pub(crate) fn host(programs: &[&Path], include: &[&str]) -> Request<'static> {
    let source = Source::Host {
        programs: programs.iter().map(|path| path.to_path_buf()).collect(),
        include: include.iter().map(|glob| (*glob).to_owned()).collect(),
    };
    Request { source, ownership: Ownership::Caller, pin: None }
}

pub(crate) fn import(store: &Store, request: &Request<'_>) -> Result<Image, Error> {
    store.import(request, &mut |_| {})
}

pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A root file system with one of everything that a caller without privilege can make.
pub(crate) fn small_tree(root: &Path) {
    write(&root.join("bin/tool"), "#!/bin/sh\n");
    chmod(&root.join("bin/tool"), 0o755);
    write(&root.join("bin/su"), "setuid");
    chmod(&root.join("bin/su"), 0o4755);
    write(&root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n");
    write(&root.join("etc/empty"), "");
    write(&root.join("a/b/c/d/deep"), vec![7; 700_000]);
    write(&root.join("a-b"), "sorts between `a` and `a/b`");
    fs::hard_link(root.join("bin/tool"), root.join("bin/other-name")).unwrap();
    symlink("usr/lib", root.join("lib")).unwrap();
    symlink("/etc/passwd", root.join("etc/absolute")).unwrap();
    symlink("nowhere/at\nall", root.join("etc/dangling")).unwrap();
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    fs::create_dir(root.join("tmp")).unwrap();
    chmod(&root.join("tmp"), 0o1777);
    fs::create_dir(root.join("closed")).unwrap();
    fs::write(root.join("closed/inside"), "x").unwrap();
    chmod(&root.join("closed/inside"), 0o444);
    chmod(&root.join("closed"), 0o555);
}

/// Everything that an import must keep of one path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, i64),
    pub(crate) content: Vec<u8>,
    /// The first path of the same file.
    pub(crate) same_as: Option<PathBuf>,
}

/// All paths of a tree, the root as the empty one.
pub(crate) fn facts(root: &Path) -> BTreeMap<PathBuf, Fact> {
    let mut facts = BTreeMap::new();
    let mut files: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.unwrap();
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        let path = entry.path().strip_prefix(root).unwrap().to_path_buf();
        let content = if meta.is_file() {
            fs::read(entry.path()).unwrap()
        } else if meta.is_symlink() {
            fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        let same_as = match meta.is_file() && meta.nlink() > 1 {
            true => Some(files.entry(meta.ino()).or_insert(path.clone()).clone()),
            false => None,
        };
        let mtime = (meta.mtime(), meta.mtime_nsec());
        facts.insert(path, Fact { mode: meta.mode(), mtime, content, same_as });
    }
    facts
}

/// Names in a directory of the store, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Removes a test's folder, which may hold directories that are closed to their owner.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch(tempfile::tempdir().unwrap().keep().canonicalize().unwrap())
    }
}

impl std::ops::Deref for Scratch {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        containust_image::remove_tree(&self.0).unwrap();
    }
}

/// Runs `test` as an ordinary user, also when the tests are run by root: with root's capabilities, modes mean nothing.
pub(crate) fn as_user(test: impl FnOnce() + Send + 'static) {
    let run = || {
        use rustix::thread::{Gid, Uid};
        if rustix::process::geteuid().is_root() {
            // Per thread, and inherited by the threads it starts.
            let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        }
        test();
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}
