//! How a component runs and ends, and what it is told about the world.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};
use crate::model::{Logs, Stop};
use crate::syntax::ValueKind;

use super::Checker;
use super::inherit::Settings;
use super::resolve::Scope;
use super::values::Read;

/// `signal(7)`; the numbers are those of x86 and ARM.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// The first and the last real-time signal as the GNU C library counts them: it keeps 32 and 33 to itself.
const REAL_TIME: (i32, i32) = (34, 64);
/// A log file holds at least what a pipe takes in one piece (`pipe(7)`).
const LEAST_LOG: u64 = 4096;

/// The number of `SIGINT`, `INT` or `SIGRTMIN+3`.
fn signal_number(text: &str) -> Option<i32> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let (first, last) = REAL_TIME;
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => first,
        (_, Some("")) => last,
        (Some(more), _) => first.checked_add(more.strip_prefix('+')?.parse().ok()?)?,
        (_, Some(less)) => last.checked_sub(less.strip_prefix('-')?.parse().ok()?)?,
        _ => return None,
    };
    (first..=last).contains(&number).then_some(number)
}

impl<'a> Checker<'a, '_> {
    pub(super) fn groups(&mut self, settings: &Settings<'a>, scope: Scope) -> Vec<String> {
        let Some(setting) = settings.get("groups") else { return Vec::new() };
        let mut groups: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(group) = self.account((setting.property, item), scope) else { continue };
            let span = item.value.span;
            if group.contains(':') || !super::component::is_account(&group) {
                let shown = self.shown(span);
                self.finding(Code::BadUser, span, format!("{shown} is no group"))
                    .label("malformed group")
                    .expected("a name, or an id from 0 to 4294967294")
                    .help(format!("for example `{}`", setting.property.example));
            } else if !seen.insert(group.clone()) {
                self.duplicate(span, setting.property.name);
            } else {
                groups.push(group.into_owned());
            }
        }
        groups
    }

    pub(super) fn stop(&mut self, settings: &Settings<'a>, scope: Scope) -> Stop {
        let Some(block) = self.block_of(settings, "stop") else { return Stop::default() };
        Stop {
            signal: block.get("signal").and_then(|setting| self.signal(setting.read(), scope)),
            grace: block.get("grace").and_then(|setting| self.duration(setting.read(), true, scope)),
        }
    }

    fn signal(&mut self, (property, bound): Read<'a>, scope: Scope) -> Option<i32> {
        let bound = self.follow(bound, scope)?;
        let text = match bound.value.kind {
            ValueKind::Integer => self.raw(bound).into(),
            _ => self.filled((property, bound), scope)?,
        };
        let number = text.parse::<i32>().ok().filter(|number| (1..=REAL_TIME.1).contains(number));
        let signal = number.or_else(|| signal_number(&text));
        if signal.is_none() {
            let span = bound.value.span;
            let written = self.shown(span);
            let name = span.text(self.source).trim_matches('"');
            let names = SIGNALS.iter().map(|(name, _)| *name);
            let meant = nearest(name.strip_prefix("SIG").unwrap_or(name), names);
            self.finding(Code::UnknownChoice, span, format!("{written} is no signal"))
                .label("unknown signal")
                .expected("a name such as `SIGINT`, `INT` or `SIGRTMIN+3`, or a number from 1 to 64")
                .help(format!("for example `{}`", property.example))
                .help_if(meant.map(|meant| format!("did you mean `\"SIG{meant}\"`?")));
        }
        signal
    }

    pub(super) fn logs(&mut self, settings: &Settings<'a>, scope: Scope) -> Logs {
        let Some(block) = self.block_of(settings, "logs") else { return Logs::default() };
        Logs {
            max_size: block.get("max_size").and_then(|setting| self.size(setting.read(), LEAST_LOG, scope)),
            max_files: block.get("max_files").and_then(|setting| self.positive(setting.read(), 1000, scope)),
        }
    }

    /// Sorted by name.
    pub(super) fn labels(&mut self, settings: &Settings<'a>, scope: Scope) -> Vec<(String, String)> {
        let Some(block) = self.block_of(settings, "labels") else { return Vec::new() };
        let mut labels = Vec::new();
        for entry in block.iter() {
            if self.report.full() {
                break;
            }
            if let Some(text) = self.entry(entry, scope) {
                labels.push((entry.name.clone().into_owned(), text));
            }
        }
        labels.sort_unstable();
        labels
    }

    pub(super) fn hosts(&mut self, settings: &Settings<'a>, scope: Scope) -> Vec<(String, IpAddr)> {
        let Some(block) = self.block_of(settings, "hosts") else { return Vec::new() };
        let mut hosts = Vec::new();
        for entry in block.iter() {
            if self.report.full() {
                break;
            }
            let Some(text) = self.entry(entry, scope) else { continue };
            let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(&text);
            match bare.parse::<IpAddr>() {
                Ok(address) => hosts.push((entry.name.clone().into_owned(), address)),
                Err(_) => {
                    let span = entry.value.value.span;
                    let shown = self.shown(span);
                    self.finding(Code::BadAddress, span, format!("{shown} has no IP address"))
                        .label("malformed address")
                        .expected("an IPv4 or IPv6 address")
                        .help(format!("for example `{}`", entry.property.example));
                }
            }
        }
        hosts
    }

    pub(super) fn host_name(&mut self, span: Span, name: &str) {
        if !super::declare::is_host_name(name) {
            self.finding(Code::BadHostname, span, format!("{} is no host name", shown(name)))
                .label("malformed or reserved")
                .expected("letters, digits and inner `-`, in parts separated by `.`")
                .help("for example `hosts { \"db.example\" = \"192.0.2.7\" }`");
        }
    }

    /// What every container has, so that there is nothing to switch off: a first process that takes in orphans, and that no program gains
    /// rights by being executed.
    pub(super) fn always(&mut self, settings: &Settings<'a>, scope: Scope) {
        for (name, why) in [
            ("init", "every container has a process 1 that forwards signals and reaps, which cannot be switched off"),
            (
                "no_new_privileges",
                "in no container a program gains rights by being executed, whoever owns it, which cannot be switched off",
            ),
        ] {
            let Some(setting) = settings.get(name) else { continue };
            if self.boolean(setting.read(), scope) == Some(false) {
                self.finding(Code::UnknownChoice, setting.value.value.span, why)
                    .label("cannot be had")
                    .expected("`true`, which is always so")
                    .help("remove it");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals() {
        assert_eq!(
            ["SIGINT", "INT", "SIGRTMIN+3", "RTMAX-1", "RTMIN", "SIGRTMAX"].map(signal_number),
            [2, 2, 37, 63, 34, 64].map(Some)
        );
        assert_eq!(["SIG", "int", "RTMIN+31", "RTMIN-1", "RTMIN+99999999999", ""].map(signal_number), [None; 6]);
    }
}
