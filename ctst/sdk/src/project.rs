//! A project: a `.ctst` file and the folder beside it in which its state lives.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use containust_image::{Bundle, member_of};
use containust_lang::model::{Attachment, BRIDGE, Composition, Network};
use containust_lang::{Inputs, Loader, Outcome};
use containust_shared::names;
use rustix::fs::OFlags;
use rustix::process::getuid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bundle::{self, Carried, EXTENSION};
use crate::error::{During, Error, Result};
use crate::host::cgroup;
use crate::host::ways::Ways;
use crate::images::imports::{Fetching, Imports};
use crate::record::{self, Stored};
use crate::run::PAUSE;

/// A composition longer than this is a mistake: ten thousand components take 4.4 MB.
const MAX_FILE: u64 = 64 << 20;
/// From the end of a project's last container to that of its supervisor.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest path that fits `sockaddr_un` (`unix(7)`), its zero byte not counted.
const MAX_SOCKET_PATH: usize = 107;

/// What a project is, however it is called: device and inode of its folder. A copy is another project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl Identity {
    /// No project's: no file has the inode 0.
    pub(crate) const ANY: Self = Self { dev: 0, ino: 0 };
}

/// A project on disk.
#[derive(Debug, Clone)]
pub struct Project {
    file: PathBuf,
    folder: PathBuf,
    identity: Identity,
    bundle: bundle::Slot,
}

/// A file that was read and checked.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file's name as messages show it.
    pub name: String,
    /// Its bytes, for rendering diagnostics.
    pub source: Vec<u8>,
    /// The composition, or why there is none.
    pub outcome: Outcome,
    /// Entries of `containust.lock` that this reading made: address and digest.
    pub locked: Vec<(String, String)>,
    /// Networks that have no way out of the project although the file gives them one, because nothing is to be reached.
    pub closed: Vec<String>,
    /// What else of the host stands in the composition, each for a person: files outside of the project's folder, and variables.
    pub taken: Vec<String>,
}

/// Is given what finds files, and has the rest read by that, or by what it puts between.
pub(crate) type Between<'a> = dyn Fn(&dyn Loader, &mut dyn FnMut(&dyn Loader)) + 'a;

/// Imported files, named by their paths relative to the project's folder, or absolute ones outside of it.
struct Files<'a> {
    folder: &'a Path,
    remote: &'a Imports<'a>,
    /// What was read by way of links, and what that was.
    linked: Mutex<Vec<(PathBuf, PathBuf)>>,
    /// What was read elsewhere.
    outside: Mutex<BTreeSet<PathBuf>>,
}

impl Files<'_> {
    /// Reads a file, and notes where it was found if that is elsewhere.
    fn read_at(&self, path: PathBuf) -> Result<Vec<u8>> {
        let (bytes, whole) = read_found(&path)?;
        if path != whole {
            self.linked.lock().unwrap_or_else(PoisonError::into_inner).push((path, whole.clone()));
        }
        if !whole.starts_with(self.folder) {
            self.outside.lock().unwrap_or_else(PoisonError::into_inner).insert(whole);
        }
        Ok(bytes)
    }
}

impl Loader for Files<'_> {
    fn load(&self, importing: &str, path: &str) -> std::result::Result<(String, Vec<u8>), String> {
        let beside = self.folder.join(importing).with_file_name(path);
        let places = [beside, self.folder.join(path)].into_iter();
        let found =
            places.map(|place| (place.canonicalize(), place)).find_map(|(found, place)| Some((found.ok()?, place)));
        let (found, place) = found.ok_or_else(|| "no such file".to_owned())?;
        let bytes = self.read_at(place).map_err(|error| error.to_string())?;
        let name = found.strip_prefix(self.folder).unwrap_or(&found);
        let name = name.to_str().ok_or_else(|| "its path is not UTF-8".to_owned())?;
        Ok((name.to_owned(), bytes))
    }

    fn fetch(&self, url: &str, pin: Option<&str>) -> std::result::Result<Vec<u8>, (String, String)> {
        self.remote.fetch(url, pin)
    }

    fn read(&self, path: &str) -> std::result::Result<Option<Vec<u8>>, String> {
        match self.read_at(self.folder.join(path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Reads a file of the project's author: a regular one, of a size that a person could have written or a program may have.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    open_bounded(path).and_then(|file| read_open(path, file))
}

/// The same, and what was read, canonical: who can write a folder on the way may put another file there at any moment.
fn read_found(path: &Path) -> Result<(Vec<u8>, PathBuf)> {
    let file = open_bounded(path)?;
    let whole = found(&file).during(|| format!("find {}", path.display()))?;
    Ok((read_open(path, file)?, whole))
}

/// Where an open file is (proc_pid_fd(5)).
pub(crate) fn found(file: &std::fs::File) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn open_bounded(path: &Path) -> Result<std::fs::File> {
    let what = || format!("read {}", path.display());
    let check = |meta: std::fs::Metadata| {
        if !meta.is_file() {
            return Err(Error::io(what(), io::Error::other("not a regular file")));
        }
        if meta.len() > MAX_FILE {
            return Err(Error::TooLarge { path: path.to_owned(), size: meta.len(), limit: MAX_FILE });
        }
        Ok(())
    };
    // Opening a device does something.
    path.metadata().during(what).and_then(check)?;
    // Opening a FIFO, which may be there by now, would wait for a writer.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = std::fs::File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path).during(what)?;
    file.metadata().during(what).and_then(check)?;
    Ok(file)
}

fn read_open(path: &Path, file: std::fs::File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).during(|| format!("read {}", path.display()))?;
    match bytes.len() as u64 {
        size if size > MAX_FILE => Err(Error::TooLarge { path: path.to_owned(), size, limit: MAX_FILE }),
        _ => Ok(bytes),
    }
}

impl Project {
    /// Finds the project of `file`, which may be a folder, or that of the current folder. In a folder it is `stack.ctst`,
    /// `containust.ctst`, or the only file that ends in `.ctst`, or where there is none the only bundle. Does not read it. A file that is gone is found, too, while there
    /// are containers of it.
    ///
    /// # Errors
    /// [`Error::NoFile`], [`Error::ManyFiles`], and [`Error::Io`] for a file that is not there.
    pub fn locate(file: Option<&Path>) -> Result<Self> {
        let file = match file {
            Some(folder) if folder.is_dir() => default_file(folder)?,
            Some(file) => file.to_owned(),
            None => default_file(&std::env::current_dir().during(|| "find the current folder".to_owned())?)?,
        };
        let whole = match file.canonicalize() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => had_file(&file).ok_or(e),
            whole => whole,
        };
        let whole = whole.during(|| format!("open {}", file.display()))?;
        let folder = whole.parent().map(Path::to_owned).ok_or_else(|| {
            Error::io(format!("open {}", file.display()), io::Error::from(io::ErrorKind::IsADirectory))
        })?;
        let meta = folder.metadata().during(|| format!("open {}", folder.display()))?;
        let identity = Identity { dev: meta.dev(), ino: meta.ino() };
        let project = Self { file: whole, folder, identity, bundle: bundle::Slot::default() };
        project.check_places()?;
        Ok(project)
    }

    /// The same for what is of all files of a folder: any of them will do.
    ///
    /// # Errors
    /// As [`Project::locate`], but for [`Error::ManyFiles`].
    pub fn locate_folder(file: Option<&Path>) -> Result<Self> {
        match Self::locate(file) {
            Err(Error::ManyFiles { folder, names }) => {
                Self::locate(names.first().map(|name| folder.join(name)).as_deref())
            }
            other => other,
        }
    }

    pub(crate) fn slot(&self) -> &bundle::Slot {
        &self.bundle
    }

    /// The file, absolute and canonical.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The file's name within the folder.
    #[must_use]
    pub fn file_name(&self) -> String {
        self.file.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The file's folder: relative paths of the composition start here.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What distinguishes it from its copies.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// `.containust` beside the file. It need not exist.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join(".containust")
    }

    /// Where a component's log files are.
    #[must_use]
    pub fn log_dir(&self, component: &str) -> PathBuf {
        self.containers_dir().join(component)
    }

    /// The supervisor's own talk.
    #[must_use]
    pub fn supervisor_log(&self) -> PathBuf {
        self.state_dir().join("supervisor.log")
    }

    /// Removes what supervisors that were killed left of cgroups.
    pub fn tidy(&self) {
        cgroup::sweep();
    }

    /// Where no container is left and no supervisor runs: removes what supervisors left beside the containers' folders. The
    /// lock stays, because another could just be opening it.
    pub(crate) fn clear_away(&self) -> Result<()> {
        if !record::list(&self.containers_dir())?.is_empty() {
            return Ok(());
        }
        let lock = match std::fs::File::options().write(true).open(self.lock_file()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.during(|| format!("open {}", self.lock_file().display()))?,
        };
        // Without containers a supervisor ends by itself, unless it was asked for new ones meanwhile.
        let end = Instant::now() + PATIENCE;
        while lock.try_lock().is_err() {
            if Instant::now() > end {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        cgroup::sweep();
        let sockets = self.sockets().into_iter().filter(|path| path.parent().is_some_and(|d| check_private(d).is_ok()));
        for path in sockets.chain([self.supervisor_log()]) {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(e).during(|| format!("remove {}", path.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        for dir in [self.containers_dir(), self.volumes_dir()] {
            // What is still in one of them is somebody's.
            std::fs::remove_dir(dir).ok();
        }
        Ok(())
    }

    /// Reads and checks the file. A file with errors is a success here: see the outcome's diagnostics.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::TooLarge`].
    pub fn load(&self) -> Result<Loaded> {
        self.load_with(&[], &[])
    }

    /// The same with values for the file's parameters and with active profiles.
    ///
    /// # Errors
    /// As [`Project::load`].
    pub fn load_with(&self, params: &[(String, String)], profiles: &[String]) -> Result<Loaded> {
        self.load_fetching(params, profiles, Fetching::Never, false)
    }

    /// The same with files from the network. `offline`: nothing is fetched, whatever `fetching` says, and no network of the project has a
    /// way out.
    ///
    /// # Errors
    /// As [`Project::load`].
    pub fn load_fetching(
        &self,
        params: &[(String, String)],
        profiles: &[String],
        fetching: Fetching,
        offline: bool,
    ) -> Result<Loaded> {
        match self.bundle()? {
            Some(_) if matches!(fetching, Fetching::Lock { .. }) => Err(Error::IsBundle { file: self.file.clone() }),
            Some(bundle) => self.load_bundled(bundle, params, profiles, offline),
            None => self.load_by(params, profiles, fetching, offline, &|files, read| read(files)),
        }
    }

    /// The same of a file that is no bundle.
    pub(crate) fn load_by(
        &self,
        params: &[(String, String)],
        profiles: &[String],
        fetching: Fetching,
        offline: bool,
        by: &Between<'_>,
    ) -> Result<Loaded> {
        let source = read_bounded(&self.file)?;
        let remote = Imports::new(self, fetching, offline)?;
        let files =
            Files { folder: &self.folder, remote: &remote, linked: Mutex::default(), outside: Mutex::default() };
        let mut loaded = None;
        by(&files, &mut |loader| {
            loaded = Some(self.check(self.file_name(), &source, &Inputs { params, profiles, loader: Some(loader) }));
        });
        let mut loaded = loaded.expect("whoever gets a loader reads by one");
        if let Some(composition) = &mut loaded.outcome.composition {
            remote.locked().tell(composition);
            let linked = files.linked.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let ways = Ways::new(self, &composition.components);
            linked.iter().try_for_each(|(path, whole)| ways.check(path, Some(whole)))?;
            if offline {
                loaded.closed = stay_inside(composition);
            }
        }
        let outside = files.outside.into_inner().unwrap_or_else(PoisonError::into_inner);
        loaded.locked = remote.save()?;
        let read = outside.iter().map(|path| format!("reads {}, outside of the project's folder", path.display()));
        loaded.taken = read.chain(std::mem::take(&mut loaded.taken)).collect();
        Ok(loaded)
    }

    fn load_bundled(
        &self,
        bundle: &Bundle,
        params: &[(String, String)],
        profiles: &[String],
        offline: bool,
    ) -> Result<Loaded> {
        let manifest = bundle.manifest();
        let name = manifest.composition.clone();
        let source = bundle.read(&member_of(&name)).map_err(|error| Error::Store(Box::new(error)))?;
        let files = Carried(bundle);
        let inputs = Inputs { params, profiles, loader: Some(&files) };
        let mut loaded = self.check(name, &source.unwrap_or_default(), &inputs);
        if let Some(composition) = &mut loaded.outcome.composition {
            bundle::lock(bundle, &self.file)?.tell(composition);
            for component in &mut composition.components {
                bundle::take_image(manifest, component)?;
            }
            if offline {
                loaded.closed = stay_inside(composition);
            }
        }
        Ok(loaded)
    }

    /// Checks what was read, and notes what it takes of the environment.
    fn check(&self, name: String, source: &[u8], inputs: &Inputs<'_>) -> Loaded {
        let asked = Mutex::new(BTreeSet::new());
        let variable = |name: &str| {
            let value = std::env::var(name).ok()?;
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            if !asked.contains(name) {
                asked.insert(name.to_owned());
            }
            Some(value)
        };
        let mut outcome = containust_lang::check_with(&name, source, &self.default_name(), &variable, inputs);
        if let Some(composition) = &mut outcome.composition {
            label(composition);
        }
        let asked = asked.into_inner().unwrap_or_else(PoisonError::into_inner);
        let taken = asked.iter().map(|name| format!("takes {name} from the environment")).collect();
        Loaded { name, source: source.to_vec(), outcome, locked: Vec::new(), closed: Vec::new(), taken }
    }

    /// The folder's name as a project's name; `project` where it cannot be one.
    fn default_name(&self) -> String {
        let folder = self.folder.file_name().unwrap_or_default().to_string_lossy();
        let name: String = folder.chars().map(|c| if c == '.' || c == ' ' { '-' } else { c }).collect();
        if names::is_name(&name) { name } else { "project".to_owned() }
    }

    pub(crate) fn containers_dir(&self) -> PathBuf {
        self.state_dir().join("containers")
    }

    pub(crate) fn container_dir(&self, component: &str) -> PathBuf {
        self.containers_dir().join(component)
    }

    pub(crate) fn lock_file(&self) -> PathBuf {
        self.state_dir().join("supervisor.lock")
    }

    /// Refuses what would have us write and remove elsewhere: folders of the state that are links, as they can be in a project that
    /// somebody else made, or that a container could write.
    fn check_places(&self) -> Result<()> {
        let places = ["containers", "volumes", "secrets", "imports", "images", "supervisor.lock", "supervisor.log"];
        for path in [self.state_dir()].into_iter().chain(places.map(|name| self.state_dir().join(name))) {
            if path.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
                return Err(Error::Untrusted { path, problem: "it is a symbolic link".to_owned() });
            }
        }
        Ok(())
    }

    /// Refuses a folder that its owner, or that of one above it, or anybody, could exchange, or what is in it, while it is used.
    fn check_folder(&self) -> Result<()> {
        let uid = getuid().as_raw();
        for path in self.folder.ancestors() {
            let meta = path.metadata().during(|| format!("open {}", path.display()))?;
            let problem = if meta.uid() != uid && meta.uid() != 0 && is_somebody(meta.uid()) {
                format!("it belongs to user {}, who could exchange what is in it, and this is user {uid}", meta.uid())
            } else if meta.mode() & 0o1002 == 0o002 {
                format!("its mode is {:o}: anybody could exchange what is in it", meta.mode() & 0o7777)
            } else {
                continue;
            };
            return Err(Error::Untrusted { path: path.to_owned(), problem });
        }
        Ok(())
    }

    /// Makes the state folder, for the caller only and invisible to git; refuses one that is somebody else's.
    pub(crate) fn create_state_dir(&self) -> Result<()> {
        let dir = self.state_dir();
        self.check_folder()?;
        self.check_places()?;
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => std::fs::write(dir.join(".gitignore"), "*\n").during(|| format!("write into {}", dir.display())),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                check_private(&dir)?;
                // Made by hand, for secrets: git would take them.
                let ignore = dir.join(".gitignore");
                match std::fs::File::create_new(&ignore).and_then(|mut file| io::Write::write_all(&mut file, b"*\n")) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                        Err(e).during(|| format!("write {}", ignore.display()))
                    }
                    Ok(()) | Err(_) => Ok(()),
                }
            }
            Err(e) => Err(Error::io(format!("create {}", dir.display()), e)),
        }
    }

    /// Sixteen digits that stand for the project and its user.
    pub(crate) fn short_name(&self) -> String {
        short_name(self.identity)
    }

    /// Where a supervisor may listen, the preferred place first. A client looks in all of them, because a shell of cron
    /// or of `su` has another environment than that of a login.
    pub(crate) fn sockets(&self) -> Vec<PathBuf> {
        let paths = socket_dirs().into_iter().map(|dir| dir.join(self.short_name() + ".sock"));
        paths.filter(|path| path.as_os_str().len() <= MAX_SOCKET_PATH).collect()
    }

    /// The folders that no container may see, as far as they exist, canonical: who can write the project's state or
    /// reach a supervisor acts as the caller.
    pub(crate) fn private_dirs(&self) -> Vec<PathBuf> {
        let dirs = [self.state_dir()].into_iter().chain(socket_dirs());
        dirs.filter_map(|dir| dir.canonicalize().ok()).collect()
    }
}

/// [`Project::short_name`] of the project in this folder.
pub(crate) fn short_name(folder: Identity) -> String {
    let Identity { dev, ino } = folder;
    let hash = Sha256::digest(format!("{dev}:{ino}:{}", getuid().as_raw()));
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Where supervisors of this user may listen, whatever their project.
pub(crate) fn socket_dirs() -> Vec<PathBuf> {
    let uid = getuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let mut dirs: Vec<_> = runtime.into_iter().map(|dir| dir.join("ctst")).collect();
    dirs.push(format!("/run/user/{uid}/ctst").into());
    dirs.push(format!("/tmp/ctst-{uid}").into());
    dirs.dedup();
    dirs
}

/// Whether `dir` belongs to the caller and to nobody else.
pub(crate) fn check_private(dir: &Path) -> Result<()> {
    let meta = dir.symlink_metadata().during(|| format!("open {}", dir.display()))?;
    let uid = getuid().as_raw();
    let problem = if !meta.is_dir() {
        "it is not a folder".to_owned()
    } else if meta.uid() != uid {
        format!("it belongs to user {}, and this is user {uid}", meta.uid())
    } else if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o7777;
        format!("its mode is {mode:o}, and others must have no access (0700)")
    } else {
        return Ok(());
    };
    Err(Error::Untrusted { path: dir.to_owned(), problem })
}

fn default_file(folder: &Path) -> Result<PathBuf> {
    for name in ["stack.ctst", "containust.ctst"] {
        if folder.join(name).is_file() {
            return Ok(folder.join(name));
        }
    }
    let list = std::fs::read_dir(folder).during(|| format!("list {}", folder.display()))?;
    let (mut names, mut bundles) = (Vec::new(), Vec::new());
    for path in list.filter_map(|entry| entry.ok().map(|e| e.path())).filter(|path| path.is_file()) {
        match path.extension() {
            Some(extension) if extension == "ctst" => names.push(path),
            Some(extension) if extension == EXTENSION => bundles.push(path),
            _ => {}
        }
    }
    if names.is_empty() {
        names = bundles;
    }
    names.sort();
    if names.is_empty() {
        names = had_files(folder);
    }
    match names.as_slice() {
        [] => Err(Error::NoFile { folder: folder.to_owned() }),
        [one] => Ok(one.clone()),
        many => Err(Error::ManyFiles {
            folder: folder.to_owned(),
            names: many.iter().map(|p| p.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect(),
        }),
    }
}

/// Whether a process of this user namespace could be this user (user_namespaces(7)): within a container the owner of what is the
/// host's root's shows as nobody, who is not in its map.
fn is_somebody(uid: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut ranges = map.lines().map(|line| line.split_whitespace().filter_map(|word| word.parse::<u64>().ok()));
    map.is_empty()
        || ranges.any(|mut range| match (range.next(), range.nth(1)) {
            (Some(first), Some(count)) => (first..first + count).contains(&u64::from(uid)),
            _ => true,
        })
}

/// Of which files there are containers in a folder, by their records.
fn had_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(meta) = folder.metadata() else { return Vec::new() };
    let identity = Identity { dev: meta.dev(), ino: meta.ino() };
    let file = folder.join("stack.ctst");
    let project = Project { file, folder: folder.to_owned(), identity, bundle: bundle::Slot::default() };
    let names = record::list(&project.containers_dir()).unwrap_or_default();
    let mut files: Vec<PathBuf> = names
        .iter()
        .filter_map(|name| record::read(&project.container_dir(name), identity).ok().flatten())
        .filter_map(|stored| match stored {
            Stored::Record(record) => Some(record.file.clone()),
            Stored::Unknown(_) => None,
        })
        .filter(|file| Path::new(file).file_name().is_some_and(|name| name == file.as_str()))
        .map(|file| folder.join(file))
        .collect();
    files.sort();
    files.dedup();
    files
}

/// A file that is gone, in its canonical folder, if there are containers of it.
fn had_file(file: &Path) -> Option<PathBuf> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let whole = parent.canonicalize().ok()?.join(file.file_name()?);
    had_files(whole.parent()?).contains(&whole).then_some(whole)
}

/// Gives every component the labels of the project that it does not set itself: that is where they are looked for.
fn label(composition: &mut Composition) {
    for component in &mut composition.components {
        let own: Vec<_> = component.labels.iter().map(|(name, _)| name.clone()).collect();
        component.labels.extend(composition.labels.iter().filter(|(name, _)| !own.contains(name)).cloned());
        component.labels.sort();
    }
}

/// Takes its way out from every network. Returns the names of those that had one.
fn stay_inside(composition: &mut Composition) -> Vec<String> {
    let mut closed = BTreeSet::new();
    for component in &mut composition.components {
        let Network::Named(list) = &mut component.network else { continue };
        for on in list.iter_mut().filter(|on| on.egress) {
            on.egress = false;
            closed.insert(on.network.clone());
        }
        if *list == [Attachment::new(BRIDGE)] {
            component.network = Network::Bridge;
        }
    }
    closed.into_iter().collect()
}

/// Now, in milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn finds_the_file_of_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(default_file(dir.path()), Err(Error::NoFile { .. })));
        std::fs::write(dir.path().join("b.ctst"), "").unwrap();
        assert_eq!(default_file(dir.path()).unwrap(), dir.path().join("b.ctst"));
        std::fs::write(dir.path().join("a.ctst"), "").unwrap();
        assert!(
            matches!(default_file(dir.path()), Err(Error::ManyFiles { names, .. }) if names == ["a.ctst", "b.ctst"])
        );
        std::fs::write(dir.path().join("stack.ctst"), "").unwrap();
        assert_eq!(default_file(dir.path()).unwrap(), dir.path().join("stack.ctst"));
        assert!(Project::locate(Some(&dir.path().join("none.ctst"))).is_err());
    }

    #[test]
    fn a_supervisor_that_is_ending_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.ctst");
        std::fs::write(&file, "").unwrap();
        let project = Project::locate(Some(&file)).unwrap();
        project.create_state_dir().unwrap();
        std::fs::create_dir(project.containers_dir()).unwrap();
        std::fs::write(project.supervisor_log(), "").unwrap();
        let held = std::fs::File::create(project.lock_file()).unwrap();
        held.lock().unwrap();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(held);
        });
        project.clear_away().unwrap();
        ending.join().unwrap();
        assert!(!project.containers_dir().exists() && !project.supervisor_log().exists());
    }

    #[test]
    fn state_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.ctst");
        std::fs::write(&file, "").unwrap();
        let project = Project::locate(Some(&file)).unwrap();
        project.create_state_dir().unwrap();
        assert_eq!(std::fs::read_to_string(project.state_dir().join(".gitignore")).unwrap(), "*\n");
        project.create_state_dir().unwrap();
        std::fs::set_permissions(project.state_dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(project.create_state_dir(), Err(Error::Untrusted { .. })));
        assert!(check_private(&file).is_err());
    }
}
