//! What is known of a container between runs: one JSON file in its folder.
//!
//! A record is written by the project's supervisor only, to a temporary file that is then renamed. It is not synced:
//! after a crash of the host nothing runs, and whatever the file says then is recognised as untrue or unreadable.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Report, Result};
use crate::project::Identity;
use crate::spec::ContainerSpec;
use crate::status::{ContainerStatus, Health, Published, State, Unpacked};

/// Version of [`Record`]. An older one would be migrated here; a newer one is refused.
const SCHEMA: u64 = 1;
/// No honest record is larger: the spec's process must fit one message of 64 KiB, and its configs 2 MiB.
const MAX_RECORD: u64 = 16 << 20;

/// A container's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) schema: u64,
    pub(crate) project: Identity,
    /// Name of the file in the project's folder whose run wanted it last.
    pub(crate) file: String,
    /// Other files of the folder whose runs wanted it before, and did not give it up.
    #[serde(default)]
    pub(crate) also: Vec<String>,
    pub(crate) hash: String,
    pub(crate) spec: ContainerSpec,
    pub(crate) published: Vec<Published>,
    /// What the last run had published for it, whether it runs or not.
    #[serde(default)]
    pub(crate) granted: Vec<Published>,
    pub(crate) state: State,
    pub(crate) health: Option<Health>,
    pub(crate) last_probe: Option<String>,
    pub(crate) pid: Option<u32>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) started: Option<u64>,
    pub(crate) finished: Option<u64>,
    pub(crate) restarts: u32,
    /// Its networks by name, with its addresses on each, that of IPv4 first, in their order, while it runs.
    #[serde(default)]
    pub(crate) addresses: Vec<(String, IpAddr)>,
    pub(crate) ids: String,
    pub(crate) failure: Option<Report>,
    #[serde(default)]
    pub(crate) notes: Vec<String>,
    /// How much of its archive is unpacked by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unpacked: Option<Unpacked>,
    /// Its cgroup, while it runs.
    #[serde(default)]
    pub(crate) group: Option<PathBuf>,
    pub(crate) supervisor: Incarnation,
}

/// One process among all that ever have its pid: field 22 of `proc_pid_stat(5)` beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Incarnation {
    pub(crate) pid: u32,
    pub(crate) start: u64,
}

impl Incarnation {
    /// The process that has this pid now; none where it has ended, whether or not its parent has noticed.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the command in parentheses and may hold anything; the third is the state.
        let end = stat.iter().rposition(|b| *b == b')')?;
        let mut fields = stat.get(end + 2..)?.split(|b| *b == b' ');
        let state = fields.next()?;
        let start = fields.nth(18)?;
        let start = std::str::from_utf8(start).ok()?.parse().ok()?;
        (!matches!(state, b"Z" | b"X")).then_some(Self { pid, start })
    }

    pub(crate) fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// What a record's file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    Record(Box<Record>),
    /// Cut off, garbage, or of another project: nothing can be said, and the next start replaces it.
    Unknown(String),
}

impl Record {
    pub(crate) fn new(
        project: Identity,
        file: String,
        spec: ContainerSpec,
        ids: String,
        supervisor: Incarnation,
    ) -> Self {
        Self {
            schema: SCHEMA,
            project,
            file,
            also: Vec::new(),
            hash: spec.hash(),
            spec,
            published: Vec::new(),
            granted: Vec::new(),
            state: State::Waiting,
            health: None,
            last_probe: None,
            pid: None,
            exit_code: None,
            started: None,
            finished: None,
            restarts: 0,
            addresses: Vec::new(),
            ids,
            failure: None,
            notes: Vec::new(),
            unpacked: None,
            group: None,
            supervisor,
        }
    }

    /// Replaces the record in `dir`.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let json = serde_json::to_vec(self).map_err(|e| Error::protocol(e.to_string()))?;
        let (temporary, place) = (dir.join("record.tmp"), dir.join("record.json"));
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = File::options();
        options
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .custom_flags(flags)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&json))
            .and_then(|()| std::fs::rename(&temporary, &place))
            .during(|| format!("write {}", place.display()))
    }

    /// Whether this file of the folder declares it, as far as runs told.
    pub(crate) fn is_of(&self, file: &str) -> bool {
        self.file == file || self.also.iter().any(|also| also == file)
    }

    /// Whether a file other than this one declares it, too.
    pub(crate) fn is_of_others(&self, file: &str) -> bool {
        self.file != file || !self.also.is_empty()
    }

    /// A run of this file wants it.
    pub(crate) fn belong(&mut self, file: String) {
        if self.file != file {
            self.also.retain(|also| *also != file);
            let before = std::mem::replace(&mut self.file, file);
            self.also.push(before);
        }
    }

    /// A run of this file does not want it any more. `false`: nor does any other file.
    pub(crate) fn leave(&mut self, file: &str) -> bool {
        self.also.retain(|also| also != file);
        if self.file != file {
            return true;
        }
        let Some(next) = self.also.pop() else { return false };
        self.file = next;
        true
    }

    /// Where it is reached.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        match self.addresses.first()?.1 {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        }
    }

    /// As a person sees it, if the record is true.
    pub(crate) fn status(&self) -> ContainerStatus {
        ContainerStatus {
            component: self.spec.name.clone(),
            state: self.state,
            health: self.health,
            last_probe: self.last_probe.clone(),
            pid: self.pid,
            exit_code: self.exit_code,
            started: self.started,
            finished: self.finished,
            restarts: self.restarts,
            image: self.spec.image.clone(),
            digest: self.spec.digest.clone(),
            lazy: self.spec.lazy.is_some(),
            unpacked: self.unpacked,
            command: self.spec.argv.clone(),
            address: self.address(),
            addresses: self.addresses.clone(),
            ports: self.published.clone(),
            ids: self.ids.clone(),
            replica_of: self.spec.replica.as_ref().map(|replica| replica.of.clone()),
            labels: self.spec.labels.iter().cloned().collect(),
            notes: self.notes.clone(),
            usage: None,
            failure: self.failure.clone(),
        }
    }

    /// The same where its supervisor is gone.
    pub(crate) fn dead(&self) -> ContainerStatus {
        let mut status = self.status();
        // Nobody goes on with it.
        status.unpacked = status.unpacked.filter(|unpacked| unpacked.is_done());
        if status.state.is_live() {
            status.state = State::Dead;
            (status.health, status.pid, status.address) = (None, None, None);
            status.addresses.clear();
        }
        status
    }
}

/// Reads the record in `dir`; `None`: there is none.
///
/// # Errors
/// [`Error::NewerState`], and [`Error::Io`] where reading is refused.
pub(crate) fn read(dir: &Path, project: Identity) -> Result<Option<Stored>> {
    let path = dir.join("record.json");
    let content = std::fs::metadata(&path).and_then(|meta| {
        let honest = meta.is_file() && meta.len() <= MAX_RECORD;
        honest.then(|| std::fs::read(&path)).transpose()
    });
    match content {
        Ok(Some(bytes)) => parse(&bytes, &path, project).map(Some),
        Ok(None) => Ok(Some(Stored::Unknown("its record is not one".to_owned()))),
        // Also where its supervisor removed it since it was looked at.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            Ok(Some(Stored::Unknown("its folder is a file".to_owned())))
        }
        Err(e) => Err(Error::io(format!("read {}", path.display()), e)),
    }
}

fn parse(bytes: &[u8], path: &Path, project: Identity) -> Result<Stored> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u64,
    }
    let damaged = |e: serde_json::Error| Ok(Stored::Unknown(format!("its record cannot be read ({e})")));
    match serde_json::from_slice::<Schema>(bytes) {
        Ok(Schema { schema }) if schema > SCHEMA => {
            return Err(Error::NewerState { path: path.to_owned(), found: schema, known: SCHEMA });
        }
        Ok(_) => {}
        Err(e) => return damaged(e),
    }
    match serde_json::from_slice::<Record>(bytes) {
        Ok(record) if record.project != project => {
            Ok(Stored::Unknown("its record was copied from another place".to_owned()))
        }
        Ok(record) => Ok(Stored::Record(Box::new(record))),
        Err(e) => damaged(e),
    }
}

/// The containers of a project, by folder, in alphabetical order. A missing folder is an empty one.
pub(crate) fn list(containers: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(containers) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(format!("list {}", containers.display()), e)),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| containust_shared::names::is_name(name))
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
pub(crate) mod tests {
    use containust_lang::model::{Dns, Healthcheck, Limits, Logs, Network, Probe, Restart, Stop};
    use std::time::Duration;

    use super::*;
    use crate::rights::Seccomp;

    pub(crate) const PROJECT: Identity = Identity { dev: 1, ino: 2 };

    pub(crate) fn spec(name: &str) -> ContainerSpec {
        ContainerSpec {
            name: name.into(),
            hostname: name.into(),
            image: "file:///srv".into(),
            digest: "sha256:0".into(),
            layers: vec!["/srv".into()],
            lazy: None,
            argv: vec!["/bin/true".into()],
            env: vec!["A=é\n\"".into()],
            cwd: String::new(),
            user: String::new(),
            readonly: true,
            network: Network::Bridge,
            volumes: vec![],
            tmpfs: vec![],
            devices: vec![],
            restart: Restart::Never,
            healthcheck: Some(Healthcheck {
                probe: Probe::Tcp(1),
                interval: Duration::from_millis(1500),
                timeout: Duration::from_secs(1),
                retries: 3,
                start_period: Duration::ZERO,
            }),
            after: vec![],
            job: false,
            replica: None,
            secret_env: vec![],
            secrets: vec![],
            configs: vec![],
            limits: Limits::default(),
            ulimits: vec![],
            sysctls: vec![],
            groups: vec![],
            shm: None,
            stop: Stop::default(),
            labels: vec![],
            hosts: vec![],
            dns: Dns::default(),
            logs: Logs::default(),
            kept: vec![],
            cap_add: vec![],
            cap_drop: vec![],
            seccomp: Seccomp::default(),
            landlock: None,
        }
    }

    fn record() -> Record {
        let mut record =
            Record::new(PROJECT, "stack.ctst".into(), spec("web"), "single".into(), Incarnation { pid: 1, start: 2 });
        record.state = State::Running;
        record.addresses = vec![("bridge".into(), Ipv4Addr::new(10, 89, 1, 2).into())];
        record
    }

    #[test]
    fn survives_truncation_at_every_byte_and_garbage() {
        let json = serde_json::to_vec(&record()).unwrap();
        for end in 0..json.len() {
            let stored = parse(&json[..end], Path::new("r"), PROJECT).unwrap();
            assert!(matches!(stored, Stored::Unknown(_)), "{end}");
        }
        for (at, byte) in json.iter().enumerate() {
            let mut bad = json.clone();
            bad[at] = byte ^ 0x15;
            // A flipped bit may leave a valid record or a newer schema, but never a panic.
            drop(parse(&bad, Path::new("r"), PROJECT));
        }
        assert_eq!(parse(&json, Path::new("r"), PROJECT).unwrap(), Stored::Record(Box::new(record())));
    }

    #[test]
    fn refuses_newer_and_foreign_records() {
        let newer = br#"{"schema": 2, "whatever": []}"#;
        assert!(matches!(parse(newer, Path::new("r"), PROJECT), Err(Error::NewerState { found: 2, .. })));
        let json = serde_json::to_vec(&record()).unwrap();
        let elsewhere = parse(&json, Path::new("r"), Identity { dev: 1, ino: 3 }).unwrap();
        assert!(matches!(elsewhere, Stored::Unknown(why) if why.contains("copied")));
    }

    #[test]
    fn writes_and_reads() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), PROJECT).unwrap(), None);
        record().write(dir.path()).unwrap();
        assert_eq!(read(dir.path(), PROJECT).unwrap(), Some(Stored::Record(Box::new(record()))));
        assert_eq!(record().dead().state, State::Dead);
        std::fs::remove_file(dir.path().join("record.json")).unwrap();
        std::fs::create_dir(dir.path().join("record.json")).unwrap();
        assert!(matches!(read(dir.path(), PROJECT).unwrap(), Some(Stored::Unknown(_))));
    }

    #[test]
    fn a_stray_file_is_no_container() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("notes"), "").unwrap();
        std::fs::create_dir(dir.path().join("web")).unwrap();
        assert_eq!(list(dir.path()).unwrap(), ["web"]);
        assert!(matches!(read(&dir.path().join("notes"), PROJECT), Ok(Some(Stored::Unknown(_)))));
        // Whatever is at the temporary name, nothing is written through it.
        let victim = dir.path().join("notes");
        std::os::unix::fs::symlink(&victim, dir.path().join("web/record.tmp")).unwrap();
        assert!(record().write(&dir.path().join("web")).is_err());
        assert_eq!(std::fs::read(&victim).unwrap(), b"");
    }

    #[test]
    fn belongs_to_every_file_that_wants_it() {
        let own = Incarnation { pid: 1, start: 0 };
        let mut record = Record::new(PROJECT, "a".into(), spec("web"), String::new(), own);
        record.belong("a".into());
        assert_eq!((record.file.as_str(), record.also.len()), ("a", 0));
        record.belong("b".into());
        record.belong("a".into());
        record.belong("b".into());
        assert_eq!((record.file.as_str(), &record.also[..]), ("b", &["a".to_owned()][..]));
        assert!(record.is_of("a") && record.is_of("b") && !record.is_of("c"));
        assert!(record.leave("c") && record.leave("b") && record.is_of("a") && !record.is_of("b"));
        assert!(!record.leave("a"));
    }

    #[test]
    fn knows_processes_apart() {
        let own = Incarnation::of(std::process::id()).unwrap();
        assert!(own.lives());
        assert!(!Incarnation { start: own.start + 1, ..own }.lives());
        let mut child = std::process::Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Incarnation::of(child.id()).unwrap();
        assert!(process.lives());
        drop(child.stdin.take());
        // A zombie until it is waited for.
        let pid = rustix::process::Pid::from_child(&child);
        let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
        assert!(!process.lives());
        child.wait().unwrap();
    }
}
