//! The processes inside of containers, as procfs shows them to the caller.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Report, Result};
use crate::ipc::client::Client;
use crate::record::Incarnation;
use crate::status::State;

/// A process of a container. The container's own pid 1, which belongs to Containust, is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The component's name.
    pub component: String,
    /// Its id on the host.
    pub pid: u32,
    /// Its id in the container.
    pub inside: u32,
    /// Its effective user id in the container; none: it has an id that is not mapped there.
    pub user: Option<u32>,
    /// User and system CPU time in milliseconds, of children that were waited for not counted.
    pub cpu_ms: u64,
    /// Resident set size in bytes, pages that it shares with others included.
    pub memory: u64,
    /// When it was started, in milliseconds since 1970.
    pub started: u64,
    /// The letter of `proc_pid_stat(5)` for its state: R runs, S sleeps, Z has ended and nobody has asked.
    pub state: char,
    /// Program and arguments, as the process itself says; of one that has none its name in brackets.
    pub command: Vec<String>,
}

/// What `proc_pid_stat(5)` has of a process.
struct Stat {
    name: String,
    state: char,
    parent: u32,
    /// In clock ticks.
    cpu: u64,
    /// In clock ticks since the host was started.
    start: u64,
    /// In pages.
    resident: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name may hold spaces and parentheses.
        let (head, tail) = text.rsplit_once(')')?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            name: head.split_once('(')?.1.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: u32::try_from(number(4)?).ok()?,
            cpu: number(14)?.saturating_add(number(15)?),
            start: number(22)?,
            resident: number(24)?,
        })
    }
}

/// How `user_namespaces(7)` maps the ids of a container: first id inside, first outside, count.
struct UserMap(Vec<(u32, u32, u32)>);

impl UserMap {
    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut fields = line.split_whitespace().map(|field| field.parse().ok());
            Some((fields.next()??, fields.next()??, fields.next()??))
        };
        Self(text.lines().filter_map(line).collect())
    }

    fn inside(&self, id: u32) -> Option<u32> {
        let holds = |(_, outside, count): &&(u32, u32, u32)| id.checked_sub(*outside).is_some_and(|n| n < *count);
        self.0.iter().find(holds).map(|(inside, outside, _)| inside + (id - outside))
    }
}

impl Client {
    /// The processes of all containers that run, by component and then by their ids inside.
    ///
    /// Looks from outside and asks nobody inside: what is below a container's pid 1 is its own, as long as that is below this
    /// project's supervisor. A process that is born or ends meanwhile may be missing.
    ///
    /// # Errors
    /// [`Error::Lost`]; [`Error::Reported`] where procfs hides other users' processes.
    pub fn processes(&mut self) -> Result<Vec<Process>> {
        let roots: BTreeMap<String, u32> = self.roots()?;
        let stats = stats()?;
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for (pid, stat) in &stats {
            children.entry(stat.parent).or_default().push(*pid);
        }
        let supervisor = self.supervisor();
        let boot = boot_time()?;
        let mut found = Vec::new();
        let mut hidden = Vec::new();
        for (component, root) in roots {
            if !stats.contains_key(&root) {
                hidden.push(component);
                continue;
            }
            // A pid is believed only as far as it is ours: the container may have ended, and its number be another's.
            let above = std::iter::successors(Some(root), |pid| stats.get(pid).map(|stat| stat.parent));
            if !above.take(MAX_DEPTH).any(|pid| Some(pid) == supervisor) {
                continue;
            }
            let Ok(map) = fs::read_to_string(format!("/proc/{root}/uid_map")) else { continue };
            let map = UserMap::parse(&map);
            let before = found.len();
            let mut open: Vec<u32> = children.get(&root).cloned().unwrap_or_default();
            while let Some(pid) = open.pop() {
                open.extend(children.get(&pid).into_iter().flatten());
                if let Some(stat) = stats.get(&pid) {
                    found.extend(process(&component, pid, stat, &map, boot));
                }
            }
            found[before..].sort_by_key(|process| process.inside);
        }
        // One that has ended since is in no need of processes.
        if !hidden.is_empty() {
            let now = self.roots()?;
            if let Some((component, pid)) =
                now.iter().find(|(name, pid)| hidden.contains(name) && Incarnation::of(**pid).is_none())
            {
                return Err(Error::Reported(Report {
                    code: "S0412".to_owned(),
                    message: format!("list the processes of {component}: /proc shows none of its pid 1, {pid}"),
                    help: Some("mount /proc without hidepid: sudo mount -o remount,hidepid=0 /proc".to_owned()),
                    exit: containust_shared::exit::TOOL,
                }));
            }
        }
        Ok(found)
    }

    /// The pid 1 of each container that runs.
    fn roots(&mut self) -> Result<BTreeMap<String, u32>> {
        let running = self.status()?.into_iter().filter(|s| matches!(s.state, State::Running | State::Paused));
        Ok(running.filter_map(|status| Some((status.component, status.pid?))).collect())
    }
}

/// Supervisor, pid 1 of the project, pid 1 of the container; and some, because a cycle could come of reading while pids are used
/// again.
const MAX_DEPTH: usize = 8;

/// Every process of the host that can be seen.
fn stats() -> Result<HashMap<u32, Stat>> {
    let list = fs::read_dir("/proc").during(|| "list /proc".to_owned())?;
    let pids = list.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // One that ended since it was listed is none.
    let stat = |pid: u32| {
        let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, Stat::parse(&String::from_utf8_lossy(&bytes))?))
    };
    Ok(pids.filter_map(stat).collect())
}

/// When the host was started, in milliseconds since 1970 (`proc_stat(5)`).
fn boot_time() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").during(|| "read /proc/stat".to_owned())?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
    Ok(seconds.unwrap_or(0).saturating_mul(1000))
}

/// None where it has ended.
fn process(component: &str, pid: u32, stat: &Stat, map: &UserMap, boot: u64) -> Option<Process> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let effective = field("Uid")?.split_whitespace().nth(1)?.parse().ok()?;
    // From the namespace of this procfs inwards: the host's, the project's, the container's, and those that it made itself.
    let own = field("NSpid")?.split_whitespace().nth(2)?.parse().ok()?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = words.strip_suffix(b"\0").unwrap_or(&words);
    let command = if words.is_empty() {
        vec![format!("[{}]", stat.name)]
    } else {
        words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    };
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    Some(Process {
        component: component.to_owned(),
        pid,
        inside: own,
        user: map.inside(effective),
        cpu_ms: stat.cpu.saturating_mul(1000) / ticks,
        memory: stat.resident.saturating_mul(page),
        started: boot.saturating_add(stat.start.saturating_mul(1000) / ticks),
        state: stat.state,
        command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_procfs_says() {
        let text = "42 (a) b) (c) S 7 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 12345 1000 33 1844 1 1 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.state, stat.parent), ("a) b) (c", 'S', 7));
        assert_eq!((stat.cpu, stat.start, stat.resident), (300, 12345, 33));
        for bad in ["", "42 (x", "42 (x) S", "42 (x) S 1 2 3"] {
            assert!(Stat::parse(bad).is_none(), "{bad}");
        }
        let own = Stat::parse(&fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
    }

    #[test]
    fn maps_ids_from_outside_to_inside() {
        let map = UserMap::parse("         0       1000          1\n         1     100000      65535\n");
        let inside = [1000, 100_000, 165_534, 165_535, 999, 0].map(|id| map.inside(id));
        assert_eq!(inside, [Some(0), Some(1), Some(65535), None, None, None]);
        assert_eq!(UserMap::parse("x\n\n1 2").0, []);
    }
}
