//! A caller of the shim that can say anything: the protocol's types where it is well-behaved, raw bytes where not.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "test code"
)]

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use containust_core::channel;
use containust_shared::protocol::{
    Address, Bridge, Filter, FromContainer, FromSandbox, FromShim, IdMap, Plan, Process, Sandbox, Source, ToContainer,
    ToSandbox, ToShim, VERSION,
};
use containust_shared::wire::{self, Message};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// The shim that is attacked: another one than cargo's where the tests run without cargo, or as another user.
pub fn shim() -> PathBuf {
    std::env::var_os("CTST_SHIM").unwrap_or_else(|| env!("CARGO_BIN_EXE_ctst-shim").into()).into()
}
/// What root maps to; any range will do.
pub const FIRST: u32 = 1_879_048_192;

pub fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

pub fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

pub fn spawn_with(fd3: OwnedFd) -> Child {
    spawn_by(&[], fd3)
}

/// By a program that executes its arguments, as `env` does.
pub fn spawn_by(words: &[&str], fd3: OwnedFd) -> Child {
    let shim = shim();
    let mut words: Vec<&std::ffi::OsStr> = words.iter().map(|word| word.as_ref()).collect();
    words.push(shim.as_os_str());
    Command::new(words[0])
        .args(&words[1..])
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .fd_mappings(vec![FdMapping { parent_fd: fd3, child_fd: 3 }])
        .unwrap()
        .spawn()
        .unwrap()
}

pub fn send<T: Message>(to: &OwnedFd, message: &T, fds: &[BorrowedFd<'_>]) {
    channel::send(to, &wire::encode(message).unwrap(), fds).unwrap();
}

/// The next message; none: the other side is gone.
pub fn receive<T: Message>(from: &OwnedFd) -> Option<(T, Vec<OwnedFd>)> {
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    let (len, fds) = channel::receive(from, &mut buffer).unwrap()?;
    Some((wire::decode(&buffer[..len]).unwrap(), fds))
}

pub fn request() -> Sandbox {
    let map = if is_root() { IdMap::Range { first: FIRST, count: 65536 } } else { IdMap::Single };
    Sandbox { version: VERSION, map, grouped: false }
}

/// A network by its number.
pub fn network(number: u8) -> Bridge {
    Bridge { number, address: Address { ip: [10, 89, number, 1], prefix: 24 }, egress: false }
}

/// The same as it is sent.
pub fn first() -> ToShim {
    ToShim::Sandbox(request())
}

/// A project: P has exited, S takes requests.
pub struct Project {
    pub channel: OwnedFd,
    pub init: OwnedFd,
    /// What its containers are on, which takes the kernel longer than all the rest.
    pub networks: Vec<Bridge>,
    pub next: u32,
}

impl Project {
    pub fn new() -> Self {
        Self::by(&[])
    }

    /// One whose shim is started by these words ([`spawn_by`]).
    pub fn by(words: &[&str]) -> Self {
        let (channel, theirs) = pair();
        let mut shim = spawn_by(words, theirs);
        send(&channel, &first(), &[]);
        let Some((FromShim::Created { .. }, mut fds)) = receive(&channel) else { panic!("no S was created") };
        assert_eq!(receive(&channel).map(|(m, _)| m), Some(FromShim::Ready));
        assert!(shim.wait().unwrap().success(), "P ends once S runs");
        Self { channel, init: fds.remove(0), networks: vec![network(0)], next: 0 }
    }

    /// Whether S ends within five seconds.
    pub fn ends(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.init, rustix::event::PollFlags::IN)];
        let five = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&five)).unwrap() == 1
    }

    pub fn launch(&mut self) -> OwnedFd {
        self.launch_as(None)
    }

    pub fn launch_as(&mut self, alone: Option<(u32, u32)>) -> OwnedFd {
        let (ours, theirs) = pair();
        self.next += 1;
        let id = self.next;
        let launch = ToSandbox::Launch { id, networks: self.networks.clone(), grouped: false, alone };
        send(&self.channel, &launch, &[theirs.as_fd()]);
        drop(theirs);
        assert_eq!(receive(&self.channel).map(|(m, _)| m), Some(FromSandbox::Launched { id }));
        ours
    }

    /// Asks for a container in a cgroup: its channel, S's answer, and its pidfd.
    pub fn launch_in(&mut self, cgroup: BorrowedFd<'_>) -> (OwnedFd, FromSandbox, Vec<OwnedFd>) {
        let (ours, theirs) = pair();
        self.next += 1;
        let launch = ToSandbox::Launch { id: self.next, networks: vec![network(0)], grouped: true, alone: None };
        send(&self.channel, &launch, &[theirs.as_fd(), cgroup]);
        drop(theirs);
        let (answer, fds) = receive(&self.channel).unwrap();
        (ours, answer, fds)
    }

    /// Starts a container and returns the answer to its plan, and its channel.
    pub fn run(&mut self, plan: Plan) -> (FromContainer, OwnedFd) {
        let channel = self.launch();
        send_plan(&channel, plan);
        (receive(&channel).expect("an answer to the plan").0, channel)
    }
}

pub fn send_plan(channel: &OwnedFd, plan: Plan) {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    send(channel, &ToContainer::Plan(Box::new(plan)), &[null.as_fd(); 3]);
}

/// An image of one program, `/probe`, which is the shim itself: static, and it ends with 125 for want of a channel.
pub struct Image {
    pub folder: tempfile::TempDir,
}

impl Image {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["root", "upper", "work"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            own(&folder.path().join(name));
        }
        fs::copy(shim(), folder.path().join("root/probe")).unwrap();
        own(&folder.path().join("root/probe"));
        Self { folder }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    pub fn plan(&self) -> Plan {
        let at = |name: &str| source(&self.folder.path().join(name));
        Plan {
            hostname: b"inside".into(),
            layers: vec![at("root")],
            fuse: false,
            upper: Some(at("upper")),
            work: Some(at("work")),
            readonly: true,
            mounts: Vec::new(),
            addresses: vec![Address { ip: [10, 89, 0, 2], prefix: 24 }],
            addresses6: Vec::new(),
            filter: Filter::Default,
            profile: Vec::new(),
            landlock: None,
            capabilities: containust_policy::capabilities::DEFAULT,
            rlimits: Vec::new(),
            sysctls: Vec::new(),
            shm: 0,
            process: Process {
                argv: vec![b"/probe".into()],
                env: vec![b"PATH=/bin:/".into()],
                cwd: Vec::new(),
                user: Vec::new(),
                groups: Vec::new(),
                tty: false,
            },
        }
    }
}

/// Gives a file to root inside.
pub fn own(path: &Path) {
    if is_root() {
        chown(path, Some(FIRST), Some(FIRST)).unwrap();
    }
}

pub fn source(path: &Path) -> Source {
    let path = path.canonicalize().unwrap();
    let meta = fs::symlink_metadata(&path).unwrap();
    Source { path: path.as_os_str().as_bytes().into(), dev: meta.dev(), ino: meta.ino() }
}
