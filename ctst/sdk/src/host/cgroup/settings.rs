//! What limits mean for the kernel, and what is said of those that cannot hold.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use containust_lang::model::{IoLimit, Limits};
use containust_shared::protocol::Limit;

use super::{CONTROLLERS, Lack};
use crate::error::Error;
use crate::status::UNHELD;

/// A limit that will not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unheld {
    /// Its name in a `.ctst` file.
    pub(crate) limit: &'static str,
    pub(crate) lack: Lack,
}

impl Unheld {
    /// For a person who asked for no more than what can be had.
    pub(crate) fn note(&self) -> String {
        format!("{UNHELD}{}` does not hold: {}", self.limit, self.lack.problem)
    }

    /// Why, in words that are the same for every controller that lacks for the same reason.
    pub(crate) fn reason(&self) -> String {
        let generic = |text: String, c: &str| text.replace(&format!("the {c} controller"), "its controller");
        CONTROLLERS.into_iter().fold(self.lack.problem.clone(), generic)
    }

    /// The refusal where it has to hold; none where nothing is missing.
    pub(crate) fn refuse(component: &str, unheld: &[Self]) -> Option<Error> {
        let first = unheld.first()?;
        let mut problems: Vec<&str> = Vec::new();
        let mut limits: Vec<&str> = Vec::new();
        for Self { limit, lack } in unheld {
            if !problems.contains(&lack.problem.as_str()) {
                problems.push(&lack.problem);
            }
            if !limits.contains(limit) {
                limits.push(limit);
            }
        }
        Some(Error::Limit {
            component: component.to_owned(),
            limits: limits.join(", "),
            problem: problems.join("; "),
            help: format!("{}; or do without: limits = \"best-effort\"", first.lack.fix),
        })
    }
}

/// Whether anything is limited.
pub(crate) fn any(limits: &Limits) -> bool {
    *limits != Limits { best_effort: limits.best_effort, ..Limits::default() }
}

/// A limit of the kernel's, and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) limit: &'static str,
    pub(super) what: Limit,
    /// It limits something, and does not only take a limit back.
    pub(super) wanted: bool,
}

impl Setting {
    pub(super) fn controller(&self) -> &'static str {
        let name = self.what.file().split('.').next().unwrap_or_default();
        CONTROLLERS.into_iter().find(|c| *c == name).unwrap_or_default()
    }
}

/// What limits mean for the kernel. `all`: also what is not limited, to take back what was.
pub(super) fn settings(limits: &Limits, folder: &Path, all: bool) -> (Vec<Setting>, Vec<Unheld>) {
    let mut settings = Vec::new();
    let mut set = |limit, wanted: bool, what| {
        if wanted || all {
            settings.push(Setting { limit, what, wanted });
        }
    };
    set("swap", limits.swap.is_some(), Limit::Swap(limits.swap));
    set("memory_high", limits.memory_high.is_some(), Limit::MemoryHigh(limits.memory_high));
    set("memory", limits.memory.is_some(), Limit::Memory(limits.memory));
    set("cpus", limits.cpu_millis.is_some(), Limit::Cpus(limits.cpu_millis));
    set("cpu", limits.cpu_weight.is_some(), Limit::CpuWeight(limits.cpu_weight.unwrap_or(100)));
    set("pids", limits.pids.is_some(), Limit::Pids(limits.pids));
    set("io", limits.io_weight.is_some(), Limit::IoWeight(limits.io_weight.unwrap_or(100)));
    let mut unheld = Vec::new();
    for io in &limits.io {
        match device(&folder.join(&io.path)) {
            Ok(device) => settings.push(Setting { limit: "io", what: rates(device, io), wanted: true }),
            Err(lack) => unheld.push(Unheld { limit: "io", lack }),
        }
    }
    (settings, unheld)
}

pub(super) fn rates((major, minor): (u32, u32), io: &IoLimit) -> Limit {
    Limit::Io { major, minor, rates: [io.read_bytes, io.write_bytes, io.read_operations, io.write_operations] }
}

/// The whole disk behind a device node or a folder: limits are kept where the requests are queued, and a partition has no
/// queue of its own.
fn device(path: &Path) -> Result<(u32, u32), Lack> {
    let shown = path.display();
    let meta =
        path.metadata().map_err(|error| Lack::new(format!("open {shown}: {error}"), format!("correct {shown}")))?;
    let number = if meta.file_type().is_block_device() { meta.rdev() } else { meta.dev() };
    let number = (rustix::fs::major(number), rustix::fs::minor(number));
    let dir = PathBuf::from(format!("/sys/dev/block/{}:{}", number.0, number.1));
    // File systems of no single device have numbers of no device.
    if number.0 == 0 || !dir.exists() {
        let problem = format!("{shown} is not on a block device of its own");
        return Err(Lack::new(problem, "name the device that is meant, such as /dev/sda"));
    }
    if !dir.join("partition").exists() {
        return Ok(number);
    }
    let disk = dir.canonicalize().ok().and_then(|dir| fs::read_to_string(dir.parent()?.join("dev")).ok());
    let disk = disk.as_deref().and_then(|text| text.trim().split_once(':'));
    let parsed = disk.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| Lack::new(format!("find the disk of {shown} in /sys"), "name the whole disk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_files() {
        let limits = Limits {
            memory: Some(64 << 20),
            swap: Some(0),
            cpu_millis: Some(1500),
            pids: Some(10),
            io_weight: Some(50),
            ..Limits::default()
        };
        let lines = |all| {
            let (settings, unheld) = settings(&limits, Path::new("/"), all);
            assert!(unheld.is_empty());
            settings
                .into_iter()
                .map(|s| format!("{} {}={}", s.controller(), s.what.file(), s.what.value()))
                .collect::<Vec<_>>()
        };
        let wanted = [
            "memory memory.swap.max=0",
            "memory memory.max=67108864",
            "cpu cpu.max=150000 100000",
            "pids pids.max=11",
            "io io.weight=default 50",
        ];
        assert_eq!(lines(false), wanted);
        let all = lines(true);
        assert!(wanted.iter().all(|line| all.contains(&(*line).to_owned())));
        assert!(all.contains(&"memory memory.high=max".to_owned()) && all.contains(&"cpu cpu.weight=100".to_owned()));
        // The kernel takes no part of a period below a millisecond, and no period above a second.
        assert_eq!(
            [1, 9, 10, 1000, 64_000].map(|millis| Limit::Cpus(Some(millis)).value()),
            ["1000 1000000", "9000 1000000", "1000 100000", "100000 100000", "6400000 100000"]
        );
    }

    #[test]
    fn a_limit_needs_a_disk() {
        let limits =
            |path: &str| Limits { io: vec![IoLimit { path: path.into(), ..IoLimit::default() }], ..Limits::default() };
        let lack = |path: &str| {
            let (settings, unheld) = settings(&limits(path), Path::new("/proc"), false);
            assert!(settings.is_empty());
            unheld.into_iter().next().unwrap().lack.problem
        };
        assert_eq!(lack("self"), "/proc/self is not on a block device of its own");
        assert!(lack("/nowhere").starts_with("open /nowhere: No such file"));
    }

    #[test]
    fn a_refusal_names_every_limit_and_each_cause_once() {
        let lack = |problem: &str| Lack::new(problem, "buy another");
        let unheld = [("memory", "no memory"), ("swap", "no memory"), ("io", "no disk")]
            .map(|(limit, problem)| Unheld { limit, lack: lack(problem) });
        let error = Unheld::refuse("db", &unheld).unwrap();
        assert_eq!(error.to_string(), "component db: limit its memory, swap, io: no memory; no disk");
        assert_eq!(error.help().unwrap(), "buy another; or do without: limits = \"best-effort\"");
        assert!(Unheld::refuse("db", &[]).is_none());
    }
}
