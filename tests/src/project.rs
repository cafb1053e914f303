use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::caller::{Caller, is_root};
use crate::probe::Report;
use crate::raw::RawShim;
use crate::world::World;

/// Long enough for a busy machine and for an emulated one; nothing here is a measurement.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with a `stack.ctst`, of a caller who runs ctst in it.
pub struct Project {
    /// Who runs ctst here.
    pub caller: Caller,
    /// The folder with the `ctst` and the `ctst-shim` that it uses: [`programs`], unless something else is said.
    pub programs: PathBuf,
    folder: TempDir,
    runtime: TempDir,
    /// Processes seen while it ran, by pid and start time, with a name.
    seen: std::cell::RefCell<BTreeMap<(i32, u64), String>>,
    mounts: BTreeSet<String>,
    /// What its commands see at `/etc`, where that is not the host's.
    etc: Option<TempDir>,
    /// Supplementary groups of its commands, where they have an `/etc` of their own.
    groups: Vec<u32>,
    /// The network namespace of its host, where that is not the tests'.
    home: Option<String>,
    /// What a shell of root's does there before each of its commands.
    pub prelude: String,
}

/// What a finished command left.
#[derive(Debug)]
pub struct Done {
    /// Exit code, or 128 and the signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Done {
    /// Itself, if it exited with 0.
    ///
    /// # Panics
    /// Otherwise.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self}");
        self
    }

    /// Itself, if it exited with `code` and said all of `words` on standard error.
    ///
    /// # Panics
    /// Otherwise.
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in:\n{self}");
        }
        assert!(!self.stderr.contains("panicked"), "{self}");
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON ({error}):\n{self}"))
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

/// A process that was started and not yet waited for. Killed when dropped.
pub struct Running(Child);

impl Running {
    /// A process that somebody started otherwise.
    pub(crate) fn new(child: Child) -> Self {
        Self(child)
    }
}

impl Running {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("pids fit an i32")
    }

    /// The process, to write to it or read from it.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Waits for it, reading what it writes.
    ///
    /// # Panics
    /// If it does not end in time.
    #[must_use]
    pub fn wait(mut self, limit: Duration) -> Done {
        drop(self.0.stdin.take());
        let (stdout, stderr) = (reader(self.0.stdout.take()), reader(self.0.stderr.take()));
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().expect("wait for a child") {
                break status;
            }
            if start.elapsed() > limit {
                drop(self.0.kill());
                drop(self.0.wait());
                let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
                panic!("still running after {limit:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
            }
            thread::sleep(Duration::from_millis(2));
        };
        let code = status
            .code()
            .unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default());
        Done {
            code,
            stdout: stdout.join().expect("a reader does not panic"),
            stderr: stderr.join().expect("a reader does not panic"),
        }
    }
}

/// Reads a pipe to its end.
pub(crate) fn reader<R: Read + Send + 'static>(pipe: Option<R>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).expect("read a pipe");
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}

/// Starts `command` with pipes, and waits for it.
///
/// # Panics
/// If it cannot be started or does not end in time.
#[must_use]
pub fn finish(command: &mut Command) -> Done {
    start(command).wait(PATIENCE)
}

fn start(command: &mut Command) -> Running {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    Running(child.unwrap_or_else(|error| panic!("start {command:?}: {error}")))
}

/// Asks until the answer is yes.
///
/// # Panics
/// If it does not become yes in time.
pub fn eventually(what: &str, mut yes: impl FnMut() -> bool) {
    let start = Instant::now();
    while !yes() {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A port of 127.0.0.1 that was free a moment ago.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("find a free port").port()
}

/// What the published port answers to a GET, head and body.
///
/// # Panics
/// If it does not answer.
#[must_use]
pub fn get(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect to the published port");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a limit");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read the answer");
    answer
}

/// Cargo's target folder.
///
/// # Panics
/// If this is not a test that cargo built.
#[must_use]
pub fn target() -> PathBuf {
    // target/TUPLE/PROFILE/deps/TEST
    let me = std::env::current_exe().expect("find the test program");
    me.ancestors().nth(4).expect("test programs lie in deps").to_owned()
}

/// The folder with a `ctst` whose shim is in strict mode, as a package installs it: root's, with file capabilities, and
/// executable for a group that `caller` is in.
///
/// # Panics
/// If it cannot be made.
pub fn strict_programs(caller: &Caller) -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let (from, to) = (programs(), base().join("strict"));
        make_folder(&to);
        for name in ["ctst", "ctst-shim"] {
            copy(&from.join(name), &to.join(name));
        }
        install_strict(&to.join("ctst-shim"), caller);
        to
    })
}

/// Gives a shim what the package gives it, if it has not got it.
///
/// # Panics
/// If it cannot be given.
pub fn install_strict(shim: &Path, caller: &Caller) {
    if rustix::fs::getxattr(shim, "security.capability", &mut [0u8; 64][..]).is_ok() {
        return;
    }
    chown(shim, Some(0), Some(caller.gid)).expect("give the shim to the group");
    fs::set_permissions(shim, Permissions::from_mode(0o750)).expect("close the shim");
    // After chown, which takes capabilities away.
    let set = Command::new("setcap").arg("cap_sys_admin,cap_setuid,cap_setgid+p").arg(shim).status();
    assert!(set.expect("run setcap (Debian: libcap2-bin)").success(), "setcap failed");
}

/// The folder with `ctst` and `ctst-shim`, readable by every user, and beside it `rootfs`: busybox with its applets and
/// the probe.
///
/// # Panics
/// If they are not built.
pub fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let me = std::env::current_exe().expect("find the test program");
        // target/TUPLE/PROFILE/deps/TEST
        let built = me.ancestors().nth(2).expect("test programs lie in deps").to_owned();
        let bin = base().join("bin");
        make_folder(&bin);
        for name in ["ctst", "ctst-shim", "ctst-port"] {
            copy(&built.join(name), &bin.join(name));
        }
        let root = base().join("rootfs");
        for folder in ["bin", "dev", "etc", "proc", "root", "srv", "sys", "tmp", "usr", "var/tmp", "run"] {
            make_folder(&root.join(folder));
        }
        for probe in ["ctst-probe", "ctst-escape"] {
            copy(&built.join(probe), &root.join("bin").join(probe));
        }
        for outside in ["ctst-outsider", "ctst-onlooker"] {
            copy(&built.join(outside), &bin.join(outside));
        }
        copy(Path::new("/bin/busybox"), &root.join("bin/busybox"));
        let applets = Command::new("/bin/busybox").arg("--list").output().expect("run busybox");
        for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox") {
            let link = root.join("bin").join(applet);
            if link.symlink_metadata().is_err() {
                symlink("busybox", &link).unwrap_or_else(|error| panic!("link {}: {error}", link.display()));
            }
        }
        let passwd = "root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1000::/srv:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
        write(&root.join("etc/passwd"), passwd);
        write(&root.join("etc/group"), "root:x:0:\nsomebody:x:1000:\nextra:x:1001:somebody\nnogroup:x:65534:\n");
        // Neither busybox nor an executable, for the exit codes 126 and 127.
        write(&root.join("bin/not-executable"), "#!/bin/sh\n");
        bin
    })
}

/// A folder like [`programs`] with a shim that leaves out these layers of the confinement (ctst-shim/core/src/weak.rs).
///
/// # Panics
/// If there is no cargo to build it with.
#[must_use]
pub fn weakened(layers: &[&str]) -> PathBuf {
    static SHIM: OnceLock<Vec<u8>> = OnceLock::new();
    const MARK: &[u8] = b"ctst-weakened-shim:";
    const BLANKS: usize = 96 - MARK.len();
    let shim = SHIM.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let folder = target().join("weakened");
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--offline", "--package", "ctst-shim", "--target-dir"])
            .arg(&folder)
            .args(["--config", "profile.dev.opt-level=0", "--config", "profile.dev.package.\"*\".opt-level=0"])
            .env("RUSTFLAGS", "-C target-feature=+crt-static --cfg weaken")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent"))
            .output()
            .expect("run cargo");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        // target/TUPLE/PROFILE/deps/TEST, with the same tuple.
        let me = std::env::current_exe().expect("find the test program");
        let tuple = me.ancestors().nth(3).and_then(Path::file_name).expect("test programs lie in deps");
        fs::read(folder.join(tuple).join("debug/ctst-shim")).expect("read the weakened shim")
    });
    let at = shim.windows(MARK.len()).position(|bytes| bytes == MARK).expect("a weakened shim has the mark");
    let names = layers.join(" ");
    assert!(names.len() <= BLANKS, "too many layers: {names}");
    let mut patched = shim.clone();
    patched[at + MARK.len()..][..names.len()].copy_from_slice(names.as_bytes());

    let folder = base().join("weakened").join(layers.join("-"));
    make_folder(&base().join("weakened"));
    make_folder(&folder);
    copy(&programs().join("ctst"), &folder.join("ctst"));
    let new = folder.join("new");
    fs::write(&new, patched).expect("write a weakened shim");
    copy(&new, &folder.join("ctst-shim"));
    fs::remove_file(&new).expect("remove a file");
    folder
}

/// Where tests keep their files: a file system that can be the upper layer of overlayfs, which a tmpfs became only with
/// Linux 6.6.
fn base() -> PathBuf {
    let temporary = std::env::var_os("CTST_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
    let base = Path::new(&temporary).join(format!("ctst-tests-{}", rustix::process::getuid().as_raw()));
    make_folder(&base);
    let owner = std::os::unix::fs::MetadataExt::uid(&base.metadata().expect("look at the test folder"));
    assert_eq!(owner, rustix::process::getuid().as_raw(), "{} belongs to somebody else", base.display());
    base
}

fn make_folder(path: &Path) {
    fs::create_dir_all(path).unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("set a mode");
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}

fn copy(from: &Path, to: &Path) {
    assert!(from.exists(), "{} is not there; make test builds it (cargo build --workspace --bins)", from.display());
    // By renaming, because a running program cannot be written to, and unchanged files keep their times, so that the
    // image made of them stays the same.
    let same = to.exists() && fs::read(from).ok() == fs::read(to).ok();
    if !same {
        let new = to.with_extension(format!("new-{}", std::process::id()));
        fs::copy(from, &new).unwrap_or_else(|error| panic!("copy {}: {error}", from.display()));
        fs::set_permissions(&new, Permissions::from_mode(0o755)).expect("set a mode");
        fs::rename(&new, to).expect("rename a program");
    }
}

impl Project {
    /// A project whose file is `text`, in which `ROOTFS` stands for the tests' root file system.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new(caller: &Caller, text: &str) -> Self {
        programs();
        let temporary = |prefix| {
            let made = tempfile::Builder::new().prefix(prefix).tempdir_in(base()).expect("make a folder");
            fs::set_permissions(made.path(), Permissions::from_mode(0o700)).expect("set a mode");
            chown(made.path(), Some(caller.uid), Some(caller.gid)).expect("give a folder away");
            made
        };
        let project = Self {
            caller: caller.clone(),
            programs: programs().to_owned(),
            folder: temporary("p"),
            runtime: temporary("r"),
            seen: std::cell::RefCell::default(),
            mounts: host_mounts(),
            etc: None,
            groups: Vec::new(),
            home: None,
            prelude: String::new(),
        };
        project.write("stack.ctst", text);
        project
    }

    /// A project on the host in this world. For tests that run as root.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn within(caller: &Caller, text: &str, world: &World) -> Self {
        let mut project = Self::new(caller, text);
        project.home = Some(world.home.clone());
        project
    }

    /// A project on a host with this policy: its commands run in a mount namespace in which a copy of the host's `/etc` takes
    /// its place. For tests that run as root, who makes it. `groups`: supplementary ones of its commands.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn governed(caller: &Caller, text: &str, policy: &str, groups: &[u32]) -> Self {
        assert!(is_root(), "only root mounts over /etc");
        let mut project = Self::new(caller, text);
        let etc = tempfile::Builder::new().prefix("etc").tempdir_in(base()).expect("make a folder");
        let copied = Command::new("cp").arg("-a").arg("/etc/.").arg(etc.path()).status().expect("run cp");
        assert!(copied.success(), "copy /etc");
        make_folder(&etc.path().join("containust"));
        project.groups = groups.to_vec();
        project.etc = Some(etc);
        project.set_policy(policy);
        project
    }

    /// Where its commands find the policy.
    ///
    /// # Panics
    /// If it has no `/etc` of its own.
    #[must_use]
    pub fn policy(&self) -> PathBuf {
        self.etc.as_ref().expect("a governed project").path().join("containust/policy.conf")
    }

    /// Puts another policy in the place of the one that is there, as an editor does.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn set_policy(&self, text: &str) {
        let (place, new) = (self.policy(), self.policy().with_extension("new"));
        fs::write(&new, text).expect("write a policy");
        fs::set_permissions(&new, Permissions::from_mode(0o644)).expect("set a mode");
        fs::rename(new, place).expect("rename a policy");
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file of the caller's into the project, `ROOTFS` replaced.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) {
        let root = base().join("rootfs");
        self.write_bytes(name, text.replace("ROOTFS", &root.display().to_string()).as_bytes());
    }

    /// Where its supervisors listen.
    #[must_use]
    pub fn sockets(&self) -> PathBuf {
        self.runtime.path().join("ctst")
    }

    /// Writes a file of the caller's into the project.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write_bytes(&self, name: &str, bytes: &[u8]) {
        let path = self.folder().join(name);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        chown(&path, Some(self.caller.uid), Some(self.caller.gid)).expect("give a file away");
    }

    /// Makes a folder of the caller's in the project.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn make_folder(&self, name: &str) {
        let path = self.folder().join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
        chown(&path, Some(self.caller.uid), Some(self.caller.gid)).expect("give a folder away");
    }

    /// `ctst` with these arguments, in the project's folder, as its caller; not started.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.by(&self.own_programs().join("ctst"));
        command.env("XDG_RUNTIME_DIR", self.runtime.path()).current_dir(self.folder()).args(args);
        command
    }

    fn own_programs(&self) -> &Path {
        if self.caller.strict { strict_programs(&self.caller) } else { &self.programs }
    }

    /// Starts the shim as this project's caller, who speaks to it himself.
    #[must_use]
    pub fn raw_shim(&self) -> RawShim {
        self.raw(&[], &self.own_programs().join("ctst-shim"))
    }

    /// Starts a program as this project's caller, who speaks to it himself as ctst would. `words`: what comes before it, of which
    /// each has to execute the rest.
    #[must_use]
    pub fn raw(&self, words: &[&str], program: &Path) -> RawShim {
        self.raw_as(&self.caller, words, program)
    }

    /// The same, where the words make it somebody else's: `user`'s, whose the socket is.
    #[must_use]
    pub fn raw_as(&self, user: &Caller, words: &[&str], program: &Path) -> RawShim {
        let first = words.first().copied().unwrap_or("/bin/sh");
        let mut command = self.by(Path::new(first));
        command.args(words.get(1..).unwrap_or_default());
        if !words.is_empty() {
            command.arg("/bin/sh");
        }
        command.args(["-c", "exec \"$0\" 3<&0 </dev/null"]).arg(program);
        RawShim::start(command, user.uid)
    }

    /// Runs a program as the caller on this project's host.
    fn prelude_or<'a>(&'a self, nothing: &'a str) -> &'a str {
        if self.prelude.is_empty() { nothing } else { &self.prelude }
    }

    fn by(&self, program: &Path) -> Command {
        match (&self.etc, &self.home) {
            (None, Some(home)) => {
                let mut command = Command::new("/sbin/ip");
                self.caller.environment(&mut command);
                let script = format!("{}\nexec /usr/bin/setpriv \"$@\"", self.prelude);
                command.args(["netns", "exec", home, "/bin/sh", "-c", &script, "sh"]);
                command.args([format!("--reuid={}", self.caller.uid), format!("--regid={}", self.caller.gid)]);
                command.arg("--clear-groups").arg(program);
                command
            }
            (None, None) => {
                let mut command = Command::new(program);
                self.caller.login(&mut command);
                command
            }
            (Some(etc), _) => {
                let enter = format!("mount --bind \"$0\" /etc && {{ {}\n}} && exec \"$@\"", self.prelude_or("true"));
                let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
                let groups = if groups.is_empty() {
                    "--clear-groups".to_owned()
                } else {
                    format!("--groups={}", groups.join(","))
                };
                let mut command = Command::new("unshare");
                self.caller.environment(&mut command);
                command.args(["--mount", "--propagation", "private", "sh", "-c", &enter]).arg(etc.path());
                let ids = [format!("--reuid={}", self.caller.uid), format!("--regid={}", self.caller.gid), groups];
                command.arg("setpriv").args(ids).arg(program);
                command
            }
        }
    }

    /// A shell that becomes `ctst` with these arguments once it has read a line.
    #[must_use]
    pub fn gate(&self, args: &[&str]) -> Command {
        let plain = self.command(args);
        let mut command = Command::new("/bin/sh");
        self.caller.login(&mut command);
        command.args(["-c", r#"read -r go && exec "$@""#, "gate"]).arg(plain.get_program()).args(plain.get_args());
        command.env("XDG_RUNTIME_DIR", self.runtime.path()).current_dir(self.folder());
        command
    }

    /// Runs a shell script, in which `$0` is `ctst`, below a `ctst-onlooker` that is called with `how` and `seed`.
    pub fn watched(&self, how: &str, seed: u64, script: &str) -> Done {
        let mut command = Command::new(programs().join("ctst-onlooker"));
        self.caller.login(&mut command);
        command.env("XDG_RUNTIME_DIR", self.runtime.path()).current_dir(self.folder());
        let done = finish(
            command.args([how, &seed.to_string(), "/bin/sh", "-c", script]).arg(self.own_programs().join("ctst")),
        );
        self.note();
        done
    }

    /// Runs `ctst` with these arguments.
    pub fn ctst<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        let done = finish(&mut self.command(args));
        self.note();
        done
    }

    /// Starts `ctst` with these arguments and goes on.
    pub fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        start(&mut self.command(args))
    }

    /// `ctst run -d --wait --yes`, which has to work.
    pub fn up(&self) -> Done {
        self.ctst(["run", "-d", "--wait", "--yes"]).ok()
    }

    /// The rows of `ctst ps -a`.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn ps(&self) -> Vec<Value> {
        let rows = self.ctst(["ps", "-a", "--format", "json"]).ok().json();
        rows.as_array().unwrap_or_else(|| panic!("not a list: {rows}")).clone()
    }

    /// The row of one component.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn status(&self, component: &str) -> Value {
        let rows = self.ps();
        rows.iter()
            .find(|row| row["component"] == component)
            .unwrap_or_else(|| panic!("no {component} in {rows:?}"))
            .clone()
    }

    /// What the probe says inside a running component, when started by exec with these options.
    ///
    /// # Panics
    /// If it says nothing.
    #[must_use]
    pub fn report(&self, options: &[&str], component: &str) -> Report {
        let args = [&["exec"], options, &[component, "/bin/ctst-probe", "report"]].concat();
        let done = self.ctst(args).ok();
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("not a report ({error}):\n{done}"))
    }

    /// The log of a component as `ctst logs` shows it, what it wrote to standard error last.
    #[must_use]
    pub fn logs(&self, component: &str) -> String {
        let done = self.ctst(["logs", component]).ok();
        done.stdout + &done.stderr
    }

    /// Remembers the processes that belong to the project now, for [`Project::left`].
    pub fn note(&self) {
        let now = self.processes();
        self.seen.borrow_mut().extend(now);
    }

    /// The living processes of the project: whatever names its folders in its arguments, working directory, root,
    /// mounts or descriptors, and everything below those.
    #[must_use]
    pub fn processes(&self) -> BTreeMap<(i32, u64), String> {
        let marks = [self.folder.path().display().to_string(), self.runtime.path().display().to_string()];
        let mut parents = BTreeMap::new();
        let mut found = BTreeMap::new();
        for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            if pid == rustix::process::getpid().as_raw_nonzero().get() {
                continue;
            }
            let Some(stat) = Stat::read(pid) else { continue };
            parents.insert(pid, stat.parent);
            if mentions(&entry.path(), &marks) {
                found.insert(pid, stat);
            }
        }
        let mut all: Vec<i32> = found.keys().copied().collect();
        while let Some(pid) = all.pop() {
            for (child, _) in parents.iter().filter(|(_, parent)| **parent == pid) {
                if !found.contains_key(child)
                    && let Some(stat) = Stat::read(*child)
                {
                    found.insert(*child, stat);
                    all.push(*child);
                }
            }
        }
        found.into_iter().filter(|(_, stat)| stat.alive).map(|(pid, stat)| ((pid, stat.started), stat.name)).collect()
    }

    /// The pids of the supervisor, of S, of every C and of what those started, each with its part.
    #[must_use]
    pub fn parts(&self) -> Vec<(i32, &'static str)> {
        let processes: Vec<i32> = self.processes().into_keys().map(|(pid, _)| pid).collect();
        let mut parts: BTreeMap<i32, &'static str> = BTreeMap::new();
        for pid in &processes {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if arguments.split(|byte| *byte == 0).nth(1) == Some(b"supervise") {
                parts.insert(*pid, "supervisor");
            }
        }
        for (above, part) in [("supervisor", "S"), ("S", "C"), ("C", "X")] {
            let below = |pid: &i32| Stat::read(*pid).is_some_and(|stat| parts.get(&stat.parent) == Some(&above));
            let found: Vec<i32> = processes.iter().copied().filter(below).collect();
            parts.extend(found.into_iter().map(|pid| (pid, part)));
        }
        parts.into_iter().collect()
    }

    /// What is still there of everything that ever ran here: processes and mounts. A stop returns once the containers
    /// are gone; what the kernel takes apart afterwards gets a moment.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let start = Instant::now();
        loop {
            let left = self.left_now();
            if left.is_empty() || start.elapsed() > Duration::from_secs(10) {
                return left;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn left_now(&self) -> Vec<String> {
        let mut processes = self.processes();
        for ((pid, started), name) in self.seen.borrow().iter() {
            if Stat::read(*pid).is_some_and(|stat| stat.started == *started && stat.alive) {
                processes.insert((*pid, *started), name.clone());
            }
        }
        let folder = self.folder.path().display().to_string();
        let mounts = host_mounts().into_iter().filter(|mount| !self.mounts.contains(mount) && mount.contains(&folder));
        processes.iter().map(|((pid, _), name)| format!("process {pid} ({name})")).chain(mounts).collect()
    }

    /// Stops everything and checks that nothing is left.
    ///
    /// # Panics
    /// If something is.
    pub fn stop(&self) {
        self.ctst(["stop"]).ok();
        self.assert_nothing_left();
    }

    /// # Panics
    /// If anything that ran here is still there.
    pub fn assert_nothing_left(&self) {
        let left = self.left();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        // A failed test must not leave containers to the next one. The pids are this project's own, by its paths.
        for ((pid, _), _) in self.processes() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                // It may be gone by now.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if !is_root() {
            // Files of subordinate ids can be removed only by who holds those ids.
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--map-auto", "rm", "-rf"]).arg(self.folder.path());
            drop(command.output());
        }
    }
}

struct Stat {
    name: String,
    parent: i32,
    started: u64,
    alive: bool,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may contain spaces and parentheses (proc_pid_stat(5)).
        let (head, tail) = text.rsplit_once(')')?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        Some(Self {
            name: head.split_once('(')?.1.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
            alive: !matches!(fields.first(), Some(&"Z" | &"X")),
        })
    }
}

fn mentions(process: &Path, marks: &[String]) -> bool {
    let has = |text: &str| marks.iter().any(|mark| text.contains(mark));
    let read = |name: &str| {
        fs::read(process.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    };
    let link = |path: PathBuf| fs::read_link(path).map(|path| path.display().to_string()).unwrap_or_default();
    has(&read("cmdline"))
        || ["cwd", "root"].iter().any(|name| has(&link(process.join(name))))
        // A mount that everybody sees says nothing about who sees it.
        || (link(process.join("ns/mnt")) != link("/proc/self/ns/mnt".into()) && has(&read("mountinfo")))
        || fs::read_dir(process.join("fd")).into_iter().flatten().flatten().any(|entry| has(&link(entry.path())))
}

fn host_mounts() -> BTreeSet<String> {
    fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo").lines().map(str::to_owned).collect()
}
