//! `ctst stats`

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use containust_sdk::{Client, Project, Stats};

use super::select;
use crate::args::{self, Format};
use crate::failure::{Failure, Outcome};
use crate::output::{self, BAD, BOLD, Cell, size, table};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &args::Stats, file: Option<&Path>) -> Outcome {
    let project = Project::locate(file)?;
    let mut status = project.status()?;
    status.retain(|s| s.state.is_live());
    let names = select(&project, file, &args.components, &status)?;
    let mut before: HashMap<String, (u64, Instant)> = HashMap::new();
    loop {
        let now = Instant::now();
        let mut stats = ask(&project)?;
        stats.retain(|s| names.contains(&s.component));
        match args.format {
            Format::Json => output::json(&stats)?,
            Format::Text => {
                let rows: Vec<_> = stats.iter().map(|s| row(s, share(s, &before, now))).collect();
                output::print(&table(["NAME", "MEMORY", "CPU", "CPU TIME", "PROCESSES", "READ", "WRITTEN"], &rows))?;
            }
        }
        if !args.watch || stats.is_empty() {
            return Ok(0);
        }
        before = stats.into_iter().map(|s| (s.component, (s.cpu_ms, now))).collect();
        std::thread::sleep(PAUSE);
    }
}

fn ask(project: &Project) -> Result<Vec<Stats>, Failure> {
    Ok(match Client::connect(project)? {
        None => Vec::new(),
        Some(mut client) => client.stats()?,
    })
}

/// The part of one processor that it used since it was last looked at.
fn share(stats: &Stats, before: &HashMap<String, (u64, Instant)>, now: Instant) -> Option<f64> {
    let (cpu, then) = before.get(&stats.component)?;
    let wall = now.duration_since(*then).as_secs_f64();
    (wall > 0.0).then(|| stats.cpu_ms.saturating_sub(*cpu) as f64 / 10.0 / wall)
}

fn of(now: String, limit: Option<String>) -> String {
    limit.map_or(now.clone(), |limit| format!("{now} of {limit}"))
}

/// `12.3 MB of 64.0 MB`.
pub(crate) fn memory(stats: &Stats) -> String {
    of(stats.memory.map(size).unwrap_or_default(), stats.memory_limit.map(size))
}

fn row(stats: &Stats, share: Option<f64>) -> [Cell; 7] {
    let bytes = |bytes: Option<u64>| bytes.map(size).unwrap_or_default();
    let processes = of(stats.processes.to_string(), stats.processes_limit.map(|n| n.to_string()));
    let refused = stats.refused_forks.filter(|n| *n > 0);
    let processes = match refused {
        Some(refused) => Cell(format!("{processes}, {refused} refused"), BAD),
        None => processes.into(),
    };
    [
        Cell(stats.component.clone(), BOLD),
        memory(stats).into(),
        share.map(|share| format!("{share:.0} %")).unwrap_or_default().into(),
        format!("{:.1} s", stats.cpu_ms as f64 / 1000.0).into(),
        processes,
        bytes(stats.read_bytes).into(),
        bytes(stats.written_bytes).into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows() {
        let mut stats: Stats = serde_json::from_value(json!({
            "component": "web", "measured": "cgroup", "processes": 3, "processes_limit": 10, "refused_forks": 7,
            "memory": 1_500_000, "memory_limit": 64_000_000, "cpu_ms": 2500, "throttled_ms": 0, "read_bytes": 0,
            "written_bytes": null,
        }))
        .unwrap();
        let text = |stats: &Stats, share| row(stats, share).map(|Cell(text, _)| text);
        assert_eq!(
            text(&stats, Some(49.6)),
            ["web", "1.5 MB of 64.0 MB", "50 %", "2.5 s", "3 of 10, 7 refused", "0 B", ""]
        );
        (stats.memory_limit, stats.refused_forks, stats.processes_limit) = (None, Some(0), None);
        assert_eq!(text(&stats, None), ["web", "1.5 MB", "", "2.5 s", "3", "0 B", ""]);
    }

    #[test]
    fn a_share_is_of_one_processor() {
        let now = Instant::now();
        let stats = |cpu_ms| {
            Stats { cpu_ms, ..serde_json::from_value(json!({
            "component": "web", "measured": "processes", "processes": 1, "processes_limit": null, "refused_forks": null,
            "memory": null, "memory_limit": null, "cpu_ms": 0, "throttled_ms": null, "read_bytes": null,
            "written_bytes": null,
        })).unwrap() }
        };
        let before = HashMap::from([("web".to_owned(), (1000, now))]);
        let share = |cpu| share(&stats(cpu), &before, now + Duration::from_secs(2)).unwrap();
        assert_eq!([share(2000), share(5000), share(0)].map(|s| s.round() as u64), [50, 200, 0]);
    }
}
