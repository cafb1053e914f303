//! The hostile caller of a shim with file capabilities. Run as root, which alone can make one, for an ordinary user with
//! subordinate ids.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use containust_core::channel;
use containust_shared::exit;
use containust_shared::protocol::{FromSandbox, FromShim, IdMap, Sandbox, ToSandbox, ToShim, VERSION};
use containust_shared::wire;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::common::{FIRST, is_root, pair, receive, request, send};

const SHIM: &str = env!("CARGO_BIN_EXE_ctst-shim");

struct Installed {
    folder: tempfile::TempDir,
    uid: u32,
    gid: u32,
}

impl Installed {
    fn new() -> Option<Self> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f[0] == "ctst-test");
        let Some(fields) = fields.filter(|_| is_root()) else {
            eprintln!("SKIPPED: needs root and the user ctst-test, whom make test makes");
            return None;
        };
        let (uid, gid) = (fields[2].parse().unwrap(), fields[3].parse().unwrap());
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let made = Self { folder, uid, gid };
        fs::copy(SHIM, made.path()).unwrap();
        chown(made.path(), Some(0), Some(gid)).unwrap();
        fs::set_permissions(made.path(), fs::Permissions::from_mode(0o750)).unwrap();
        let set = Command::new("setcap").arg("cap_sys_admin,cap_setuid,cap_setgid+p").arg(made.path()).status();
        assert!(set.unwrap().success());
        Some(made)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("ctst-shim")
    }

    /// Starts it by way of these words, which have to execute what follows them.
    fn spawn(&self, before: &[&str], fd3: OwnedFd) -> Child {
        let path = self.path().display().to_string();
        let words: Vec<&str> = before.iter().copied().chain([path.as_str()]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).uid(self.uid).gid(self.gid);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LD_PRELOAD", "/nowhere.so").env("RUST_BACKTRACE", "full");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.fd_mappings(vec![FdMapping { parent_fd: fd3, child_fd: 3 }]).unwrap().spawn().unwrap()
    }

    /// Processes of this program that hold a capability over the host.
    fn privileged(&self) -> Vec<String> {
        let ours = fs::read_link("/proc/self/ns/user").unwrap();
        let found = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
            let here = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == self.path());
            let outside = fs::read_link(entry.path().join("ns/user")).is_ok_and(|theirs| theirs == ours);
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let none = |name: &str| {
                let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                value.is_none_or(|value| value.trim().trim_matches('0').is_empty())
            };
            here && outside && !(none("CapPrm") && none("CapEff") && none("CapInh") && none("CapAmb"))
        });
        found.map(|entry| entry.path().display().to_string()).collect()
    }

    /// What it says to one message.
    fn ask(&self, bytes: &[u8], fds: usize) -> (OwnedFd, Option<FromShim>, Vec<OwnedFd>) {
        // The socket has to be the caller's.
        let (ours, theirs) = self.pair();
        let mut shim = self.spawn(&["env"], theirs);
        channel::send(&ours, bytes, &vec![ours.as_fd(); fds]).unwrap();
        let answer = receive(&ours);
        let refused = !matches!(answer, Some((FromShim::Created { .. }, _)));
        assert_eq!(shim.wait().unwrap().code(), Some(if refused { exit::TOOL } else { 0 }));
        let (answer, fds) = answer.map_or((None, Vec::new()), |(answer, fds)| (Some(answer), fds));
        (ours, answer, fds)
    }

    /// A pair whose peer credentials are the user's: they are those of the thread that makes it.
    fn pair(&self) -> (OwnedFd, OwnedFd) {
        let uid = rustix::process::Uid::from_raw(self.uid);
        std::thread::spawn(move || {
            rustix::thread::set_thread_res_uid(None, uid, None).unwrap();
            pair()
        })
        .join()
        .unwrap()
    }
}

fn ends(init: &OwnedFd) -> bool {
    let five = Timespec { tv_sec: 5, tv_nsec: 0 };
    poll(&mut [PollFd::new(init, PollFlags::IN)], Some(&five)).unwrap() == 1
}

fn granted() -> ToShim {
    ToShim::Sandbox(Sandbox { map: IdMap::Granted, ..request() })
}

#[test]
fn takes_one_request_and_no_other_map_than_the_granted_one() {
    let Some(shim) = Installed::new() else { return };
    let good = wire::encode(&granted()).unwrap();
    let mut bad: Vec<Vec<u8>> = (1..good.len()).map(|n| good[..n].to_vec()).collect();
    bad.extend([[good.as_slice(), &[0]].concat(), vec![0xff; good.len()], vec![0; wire::MAX_MESSAGE]]);
    for map in
        [IdMap::Single, IdMap::Helper, IdMap::Range { first: FIRST, count: 1 }, IdMap::Range { first: 0, count: 1 }]
    {
        bad.push(wire::encode(&ToShim::Sandbox(Sandbox { map, ..request() })).unwrap());
    }
    for bytes in bad {
        let (channel, answer, fds) = shim.ask(&bytes, 0);
        assert!(matches!(answer, Some(FromShim::Failed(_))) && fds.is_empty(), "{answer:?} to {bytes:?}");
        assert!(receive::<FromShim>(&channel).is_none());
    }
    assert!(matches!(shim.ask(&good, 1).1, Some(FromShim::Failed(_))));

    let (channel, answer, _fds) = shim.ask(&good, 0);
    assert!(matches!(answer, Some(FromShim::Created { .. })), "{answer:?}");
    assert_eq!(receive(&channel).map(|(message, _)| message), Some(FromShim::Ready));
}

#[test]
fn nothing_after_the_request_is_taken_for_one() {
    let Some(shim) = Installed::new() else { return };
    let again = wire::encode(&granted()).unwrap();
    // Ids of its own would need a user namespace, which would be the caller's.
    let alone = ToSandbox::Launch { id: 1, networks: Vec::new(), grouped: false, alone: Some((5, 5)) };
    let alone = wire::encode(&alone).unwrap();
    let gc = wire::encode(&ToShim::Gc { version: VERSION }).unwrap();
    let malformed = [vec![0], vec![0xff; 40], again[..again.len() - 1].to_vec(), [again.as_slice(), &[0]].concat()];
    let cases =
        [(again.clone(), 0), (again, 1), (alone, 1), (gc, 0)].into_iter().chain(malformed.map(|bytes| (bytes, 0)));
    for (bytes, fds) in cases {
        let (channel, answer, init) = shim.ask(&wire::encode(&granted()).unwrap(), 0);
        assert_eq!(receive(&channel).map(|(message, _)| message), Some(FromShim::Ready));
        let Some(FromShim::Created { pid }) = answer else { panic!("{answer:?}") };
        // P has ended (`ask` waits for it), and what S holds is worth nothing on the host.
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        assert_ne!(namespace(&pid.to_string()), namespace("self"));
        assert_eq!(shim.privileged(), Vec::<String>::new());
        channel::send(&channel, &bytes, &vec![channel.as_fd(); fds]).unwrap();
        assert!(ends(&init[0]), "S survived {bytes:?}");
        assert_eq!(shim.privileged(), Vec::<String>::new());
    }
    // Two at once, before there is a window: P takes one, and S ends by the other.
    let (ours, theirs) = shim.pair();
    let first = wire::encode(&granted()).unwrap();
    channel::send(&ours, &first, &[]).unwrap();
    channel::send(&ours, &first, &[]).unwrap();
    let mut child = shim.spawn(&["env"], theirs);
    let Some((FromShim::Created { .. }, init)) = receive(&ours) else { panic!("no S was created") };
    assert!(ends(&init[0]), "S survived a second first request");
    assert!(child.wait().unwrap().success());
    assert_eq!(shim.privileged(), Vec::<String>::new());
}

/// Requests about control groups in a project without: refused, and not the end of it.
#[test]
fn a_group_is_only_had_where_the_policy_names_a_place() {
    let Some(shim) = Installed::new() else { return };
    let (channel, _, _init) = shim.ask(&wire::encode(&granted()).unwrap(), 0);
    assert_eq!(receive(&channel).map(|(message, _)| message), Some(FromShim::Ready));
    let cgroup = ToSandbox::Cgroup { id: 1, limits: Vec::new() };
    for request in [cgroup, ToSandbox::Freeze { id: 1 }, ToSandbox::Thaw { id: 1 }, ToSandbox::Gc { id: 1 }] {
        channel::send(&channel, &wire::encode(&request).unwrap(), &[]).unwrap();
        let answer = receive::<FromSandbox>(&channel).map(|(message, _)| message);
        let Some(FromSandbox::GroupFailed { id: 1, failure }) = &answer else { panic!("{answer:?} to {request:?}") };
        assert!(failure.step.contains("has none of its own"), "{failure:?}");
    }
    // And there is nothing to collect.
    let gc = wire::encode(&ToShim::Gc { version: VERSION }).unwrap();
    let (ours, theirs) = shim.pair();
    let mut child = shim.spawn(&["env"], theirs);
    channel::send(&ours, &gc, &[]).unwrap();
    assert_eq!(receive(&ours).map(|(message, _)| message), Some(FromShim::Collected { removed: 0, left: 0 }));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_it_inherits_does_not_help_its_caller() {
    let Some(shim) = Installed::new() else { return };
    for (before, words) in [
        (&["prlimit", "--nofile=5:5"][..], "limit of open files"),
        (&["sh", "-c", "exec \"$0\" one"], "takes no arguments"),
        (&["sh", "-c", "exec \"$0\" 3<&-"], "descriptor 3 is not open"),
        (&["sh", "-c", "exec \"$0\" 3</dev/null"], "descriptor 3"),
    ] {
        let (ours, theirs) = shim.pair();
        let mut child = shim.spawn(before, theirs);
        // It may have ended before that.
        drop(channel::send(&ours, &wire::encode(&granted()).unwrap(), &[]));
        let told = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(exit::TOOL), "{before:?}: {told}");
        assert!(told.contains(words), "{before:?}: {told}");
        assert!(receive::<FromShim>(&ours).is_none());
    }
    // Root's socket in the hands of somebody else.
    let (ours, theirs) = pair();
    let mut child = shim.spawn(&["env"], theirs);
    assert_eq!(child.wait().unwrap().code(), Some(exit::TOOL));
    assert!(receive::<FromShim>(&ours).is_none());
}

/// Starts S and gives his own end of S's channel to a container, so that it is open for as long as S lives. None: the
/// container was faster in reading S's answer to that, which ends both.
fn embraced(shim: &Installed) -> Option<u32> {
    let (ours, theirs) = shim.pair();
    let mut child = shim.spawn(&["env"], theirs);
    send(&ours, &granted(), &[]);
    let Some((FromShim::Created { pid }, init)) = receive(&ours) else { panic!("no S was created") };
    assert_eq!(receive(&ours).map(|(message, _)| message), Some(FromShim::Ready));
    assert!(child.wait().unwrap().success());
    send(&ours, &ToSandbox::Launch { id: 1, networks: Vec::new(), grouped: false, alone: None }, &[ours.as_fd()]);
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    let answer = channel::receive(&ours, &mut buffer).ok().flatten();
    let launched =
        answer.is_some_and(|(len, _)| matches!(wire::decode(&buffer[..len]), Ok(FromSandbox::Launched { id: 1 })));
    std::thread::sleep(std::time::Duration::from_millis(300));
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let lives = poll(&mut [PollFd::new(&init[0], PollFlags::IN)], Some(&now)).unwrap() == 0;
    (launched && lives).then_some(pid)
}

/// The caller of [`a_project_ends_with_its_caller_whoever_holds_its_channel`].
#[test]
#[ignore = "a process that another test starts and kills"]
fn caller_of_a_deadly_embrace() {
    let Some(shim) = Installed::new() else { return };
    // Once at least the caller is faster than a container.
    let pid = (0..50).find_map(|_| embraced(&shim)).unwrap();
    // A child's wish for a signal at its parent's end is granted with the rights of the thread that ends: this one's, which
    // has started it.
    let nobody = rustix::process::Uid::from_raw(65_534);
    rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
    println!("\nS is {pid}");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_project_ends_with_its_caller_whoever_holds_its_channel() {
    if Installed::new().is_none() {
        return;
    }
    let mut caller = Command::new(std::env::current_exe().unwrap())
        .args(["strict::caller_of_a_deadly_embrace", "--exact", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(caller.stdout.take().unwrap()));
    let pid = lines.map(Result::unwrap).find_map(|line| line.strip_prefix("S is ")?.parse().ok()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let init = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    caller.kill().unwrap();
    caller.wait().unwrap();
    let ended = ends(&init);
    if !ended {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    assert!(ended, "S has survived its caller");
}

/// The caller of [`a_pid_of_a_killed_init_is_not_mapped`].
#[test]
#[ignore = "a process that another test starts"]
fn caller_who_kills_what_is_made() {
    let Some(shim) = std::env::var_os("CTST_SHIM_KILLED") else { return };
    let (ours, theirs) = pair();
    let mut command = Command::new(shim);
    command.fd_mappings(vec![FdMapping { parent_fd: theirs, child_fd: 3 }]).unwrap();
    let mut child = command.spawn().unwrap();
    send(&ours, &granted(), &[]);
    let children = format!("/proc/self/task/{}/children", rustix::thread::gettid().as_raw_nonzero());
    let init = loop {
        let pids = fs::read_to_string(&children).unwrap();
        let other = pids.split_whitespace().find_map(|pid| pid.parse().ok().filter(|pid: &u32| *pid != child.id()));
        if let Some(pid) = other {
            break pid;
        }
        assert!(child.try_wait().unwrap().is_none(), "the shim made nothing");
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    let init = rustix::process::Pid::from_raw(i32::try_from(init).unwrap()).unwrap();
    // Not waited for: its pid is nobody else's yet, but could be.
    rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
    println!("\nit answers {:?}", receive::<FromShim>(&ours).map(|(answer, _)| answer));
}

/// P waits after the clone, so that S is dead when the maps are written.
#[test]
fn a_pid_of_a_killed_init_is_not_mapped() {
    let Some(shim) = Installed::new() else { return };
    let caller = shim.folder.path().join("caller");
    fs::copy(std::env::current_exe().unwrap(), &caller).unwrap();
    fs::set_permissions(&caller, fs::Permissions::from_mode(0o755)).unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-u", "ctst-test", "-e", "trace=clone3"]);
    strace.args(["-e", "inject=clone3:delay_exit=500000"]).arg(caller).env("CTST_SHIM_KILLED", shim.path());
    strace.args(["strict::caller_who_kills_what_is_made", "--exact", "--ignored", "--nocapture"]);
    let done = strace.output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(told.contains("the project's pid 1 was killed"), "{told}{}", String::from_utf8_lossy(&done.stderr));
}
