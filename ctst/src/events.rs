//! What happens to components, told on standard error.

use anstyle::Style;
use containust_sdk::logs::escape;
use containust_sdk::{Event, EventKind};

use crate::failure;
use crate::output::{BAD, BOLD, DIM, GOOD, WARN, size};

/// Tells of one event.
pub(crate) fn show(event: &Event) {
    match &event.kind {
        EventKind::Failed(report) | EventKind::Unchanged(report) => failure::tell(report, &event.component),
        _ => talk!("{}", line(event)),
    }
}

/// One event on one line.
pub(crate) fn line(event: &Event) -> String {
    let (style, text) = match &event.kind {
        EventKind::Failed(report) => (BAD, format!("failed: {}", report.message)),
        EventKind::Unchanged(report) => (BAD, format!("runs on as it was: {}", report.message)),
        EventKind::Waiting { on } => (DIM, format!("waits for {}", on.join(", "))),
        EventKind::Starting => (DIM, "starting".to_owned()),
        EventKind::Without { on, why } => (WARN, format!("starts without {on}: {}", why.message)),
        EventKind::Started => (Style::new(), "started".to_owned()),
        EventKind::Healthy => (GOOD, "healthy".to_owned()),
        EventKind::Unhealthy { output } => (BAD, format!("unhealthy: {}", first_line(output))),
        EventKind::Exited { code: 0 } => (Style::new(), "ended".to_owned()),
        EventKind::Exited { code } => (BAD, format!("ended with {code}{}", signal_name(*code))),
        EventKind::Restarting { after, count } => {
            (WARN, format!("starts again in {:.1} s (restart {count})", after.as_secs_f64()))
        }
        EventKind::Unheld { limit, problem } => (WARN, format!("its limit `{limit}` does not hold: {problem}")),
        EventKind::ForksRefused { limit } => (WARN, format!("was refused more processes than its limit of {limit}")),
        EventKind::OutOfMemory { limit: Some(limit) } => {
            (BAD, format!("out of memory: it needed more than its limit of {}", size(*limit)))
        }
        EventKind::OutOfMemory { limit: None } => (BAD, "out of memory: this host has no more".to_owned()),
        EventKind::CutOff { why } => (WARN, format!("nothing leaves its networks: {why}")),
        EventKind::EgressBack => (GOOD, "what leaves its networks gets through again".to_owned()),
        EventKind::ClientsWait { place, why } => (WARN, format!("clients of {place} wait: {why}")),
        EventKind::Unpacking => (DIM, "its archive is being unpacked in the background".to_owned()),
        EventKind::Unpacked => (DIM, "its archive is unpacked, for its next container".to_owned()),
        EventKind::NotUnpacked { why } => (WARN, format!("goes on to be read from its archive: {why}")),
        EventKind::Paused => (Style::new(), "paused".to_owned()),
        EventKind::Unpaused => (Style::new(), "goes on".to_owned()),
        EventKind::Stopping { grace } if grace.is_zero() => (DIM, "stopping at once".to_owned()),
        EventKind::Stopping { grace } => (DIM, format!("stopping, to be killed in {grace:?}")),
        EventKind::Stopped { .. } => (Style::new(), "stopped".to_owned()),
        EventKind::Updated { fields } => (Style::new(), format!("changed while it runs: {}", fields.join(", "))),
        EventKind::Removed => (DIM, "removed".to_owned()),
    };
    format!("{BOLD}{}{BOLD:#} {style}{}{style:#}", event.component, escape(text.as_bytes()))
}

fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or("no output")
}

/// ` (SIGKILL)` for 137.
fn signal_name(code: i32) -> String {
    let signal = nix::sys::signal::Signal::try_from(code - 128);
    signal.map(|signal| format!(" ({signal})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names() {
        assert_eq!(signal_name(137), " (SIGKILL)");
        assert_eq!(signal_name(1), "");
        assert_eq!(signal_name(i32::MIN + 200), "");
    }
}
