use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A user that calls ctst.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Login name.
    pub name: String,
    /// Home folder.
    pub home: PathBuf,
    /// Asks ctst for a single id although there may be more.
    pub single: bool,
    /// Calls a ctst whose shim has file capabilities.
    pub strict: bool,
}

impl Caller {
    /// An ordinary user with subordinate ids, whether the tests run as root or not. None, and said so, without any. For
    /// root it is `ctst-test`, or who is named in CTST_TEST_USER.
    #[must_use]
    pub fn ranges() -> Option<Self> {
        let name = std::env::var("CTST_TEST_USER");
        let name = name.as_deref().unwrap_or("ctst-test");
        let caller = if is_root() { Self::named(name) } else { Self::myself() };
        let found = caller.filter(|caller| caller.subordinate("/etc/subuid") && caller.subordinate("/etc/subgid"));
        if found.is_none() {
            skipped("a user with subordinate ids (make test makes one for root)");
        }
        found
    }

    /// An ordinary user whose only id is mapped: for want of subordinate ids if the tests run as root, else by request.
    ///
    /// # Panics
    /// If the users are not as `make test` makes them.
    #[must_use]
    pub fn single() -> Self {
        let caller = if is_root() { Self::named("ctst-single") } else { Self::myself() };
        let caller = caller.expect("make test makes the user ctst-single");
        assert!(!is_root() || !caller.subordinate("/etc/subuid"), "ctst-single has subordinate ids");
        Self { single: !is_root(), ..caller }
    }

    /// The user of [`Caller::ranges`], who may execute a shim in strict mode. None, and said so, where the tests do not run
    /// as root, who alone can make one.
    #[must_use]
    pub fn strict() -> Option<Self> {
        if !is_root() {
            skipped("root, to give the shim file capabilities");
            return None;
        }
        Some(Self { strict: true, ..Self::ranges()? })
    }

    /// An ordinary user, with subordinate ids where there is one: for tests of what is the same for everybody.
    #[must_use]
    pub fn ordinary() -> Self {
        Self::ranges().unwrap_or_else(Self::single)
    }

    /// Root.
    #[must_use]
    pub fn root() -> Option<Self> {
        if !is_root() {
            skipped("root");
            return None;
        }
        Self::myself()
    }

    /// Every way to call ctst that this run of the tests has: ranges, single id, root.
    #[must_use]
    pub fn all() -> Vec<Self> {
        [Self::ranges(), Some(Self::single()), Self::root()].into_iter().flatten().collect()
    }

    /// Runs a test as each of these at once: for tests that wait more than they work.
    ///
    /// # Panics
    /// If it does for any of them.
    pub fn at_once(callers: Vec<Self>, test: impl Fn(&Self) + Sync) {
        std::thread::scope(|scope| {
            for caller in callers {
                let test = &test;
                scope.spawn(move || test(&caller));
            }
        });
    }

    /// Makes `command` run as this user with an environment as after a login.
    pub fn login(&self, command: &mut Command) {
        self.environment(command);
        if is_root() && self.uid != 0 {
            // The standard library drops root's supplementary groups with this.
            command.uid(self.uid).gid(self.gid);
        }
    }

    /// Gives `command` the environment that this user has after a login.
    pub(crate) fn environment(&self, command: &mut Command) {
        command.env_clear().envs([
            ("HOME", self.home.as_os_str()),
            ("USER", self.name.as_ref()),
            ("LOGNAME", self.name.as_ref()),
            ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".as_ref()),
            ("LANG", "C.UTF-8".as_ref()),
        ]);
        if self.single {
            command.env("CTST_IDS", "single");
        }
    }

    /// The host's range of ids below this user: first and count.
    #[must_use]
    pub fn range(&self) -> Option<(u32, u32)> {
        let text = fs::read_to_string("/etc/subuid").ok()?;
        let mut fields = text.lines().map(|line| line.split(':')).find_map(|mut fields| {
            let who = fields.next()?;
            (who == self.name || who == self.uid.to_string()).then_some(fields)
        })?;
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    }

    fn subordinate(&self, file: &str) -> bool {
        let uid = self.uid.to_string();
        fs::read_to_string(file).is_ok_and(|text| {
            text.lines().filter_map(|line| line.split(':').next()).any(|who| who == self.name || who == uid)
        })
    }

    fn myself() -> Option<Self> {
        let uid = rustix::process::getuid().as_raw().to_string();
        Self::find(|fields| fields[2] == uid)
    }

    fn named(name: &str) -> Option<Self> {
        Self::find(|fields| fields[0] == name)
    }

    // Static programs have no getpwnam.
    fn find(matches: impl Fn(&[&str]) -> bool) -> Option<Self> {
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        let fields =
            passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f.len() == 7 && matches(f))?;
        Some(Self {
            uid: fields[2].parse().ok()?,
            gid: fields[3].parse().ok()?,
            name: fields[0].to_owned(),
            home: Path::new(fields[5]).to_owned(),
            single: false,
            strict: false,
        })
    }
}

/// Whether the tests themselves run as root.
pub(crate) fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// Says that a test did nothing for want of `what`, past the capture of the test harness.
pub(crate) fn skipped(what: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Nobody to tell if standard error is closed.
    drop(writeln!(std::io::stderr(), "SKIPPED in {test}: needs {what}"));
}
