//! What a component may use of the host, and what the kernel is told for it.

use crate::codes::Code;
use crate::diagnostic::{Span, shown};
use crate::model::{IoLimit, Limits, Ulimit};
use crate::syntax::ValueKind;
use crate::units::{self, UnitError};

use super::Checker;
use super::inherit::{Setting, Settings};
use super::properties;
use super::resolve::{Bound, Scope};

/// Less than this, and the kernel kills the container while it starts. Docker has the same bound.
const LEAST_MEMORY: u64 = 6 << 20;
/// `PID_MAX_LIMIT` of a 64-bit kernel.
const MOST_PROCESSES: u64 = 1 << 22;
/// What the processor shares of docker reach from and to.
const SHARES: (u64, u64) = (2, 262_144);
/// Fewer shares than this are probably a number of processors.
const FEW_SHARES: u64 = 64;

/// The weight of cgroup v2 for processor shares as docker and cgroup v1 have them. Both are a range with a normal
/// value, 2 to 262144 with 1024 and 1 to 10000 with 100, and this curve of runc and crun goes through the three pairs. The
/// straight line that they had before makes 39 of 1024, so that what is normal loses.
fn weight(shares: u64) -> u64 {
    // Up to 18 bits, which 64-bit floats hold exactly.
    let bits = f64::log2(u32::try_from(shares).unwrap_or(u32::MAX).into());
    let exponent = (bits * bits + 125.0 * bits) / 612.0 - 7.0 / 34.0;
    let weight = f64::powf(10.0, exponent).round();
    (1..=10_000).find(|whole: &u32| f64::from(*whole) >= weight).unwrap_or(10_000).into()
}

impl<'a> Checker<'a, '_> {
    pub(super) fn limits(&mut self, settings: &Settings<'a>, scope: Scope) -> Limits {
        let mut limits = Limits::default();
        let mut size =
            |name: &str, least| settings.get(name).and_then(|setting| self.size(setting.read(), least, scope));
        limits.memory = size("memory", LEAST_MEMORY);
        limits.memory_high = size("memory_high", LEAST_MEMORY);
        limits.swap = size("swap", 0);
        if let (Some(memory), Some(high), Some(setting)) =
            (limits.memory, limits.memory_high, settings.get("memory_high"))
            && high > memory
        {
            let finding = self.finding(
                Code::OutOfRange,
                setting.value.value.span,
                "`memory_high` is more than `memory`, so it would never be reached",
            );
            let finding = finding.label("too much").expected(format!("at most {}", units::shown(memory)));
            let finding = finding.help("slow down below the limit: `memory_high = 400MiB, memory = 512MiB`");
            if let Some(key) = settings.key("memory") {
                finding.related(key, "the limit");
            }
        }
        self.processors(settings, scope, &mut limits);
        limits.pids = settings.get("pids").and_then(|setting| self.whole(setting.read(), 1..=MOST_PROCESSES, scope));
        self.io(settings, scope, &mut limits);
        let choice = settings.get("limits").and_then(|s| self.choice(s.read(), &["strict", "best-effort"], scope));
        limits.best_effort = choice == Some(1);
        limits
    }

    fn processors(&mut self, settings: &Settings<'a>, scope: Scope, limits: &mut Limits) {
        let cpus = settings.get("cpus");
        limits.cpu_millis = cpus.and_then(|setting| self.thousandths(setting.read(), scope));
        let Some(cpu) = settings.get("cpu") else { return };
        let Some(bound) = self.follow(cpu.value, scope) else { return };
        let text = match bound.value.kind {
            ValueKind::Integer | ValueKind::Decimal => Some(self.raw(bound).into()),
            _ => self.text((cpu.property, bound), scope),
        };
        let Some(text) = text else { return };
        let (span, key) = (cpu.value.value.span, cpu.key);
        if text.contains('.') {
            if let Some(cpus) = cpus {
                self.finding(
                    Code::Exclusive,
                    key,
                    "`cpus` and a `cpu` with a decimal point both say how many processors",
                )
                .label("the other one")
                .related(cpus.key, "one of them")
                .help("keep `cpus`; a whole number at `cpu` is a weight");
                return;
            }
            limits.cpu_millis = self.thousandths(cpu.read(), scope);
            return;
        }
        if matches!(text.as_ref(), "0" | "1") {
            self.finding(
                Code::OutOfRange,
                span,
                format!("`cpu = {text}` is neither a number of processors nor a weight"),
            )
            .label("which of them?")
            .expected(cpu.property.wants)
            .help("for one processor write `cpus = 1`, for half of one `cpus = 0.5`");
            return;
        }
        let Some(shares) = self.whole(cpu.read(), SHARES.0..=SHARES.1, scope) else { return };
        if shares < FEW_SHARES {
            self.finding(Code::SmallWeight, span, format!("`cpu = {shares}` is a weight, of which 1024 is normal"))
                .label("next to nothing against others")
                .help(format!("for {shares} processors write `cpus = {shares}`"));
        }
        limits.cpu_weight = Some(weight(shares));
    }

    fn io(&mut self, settings: &Settings<'a>, scope: Scope, limits: &mut Limits) {
        let Some(block) = self.block_of(settings, "io") else { return };
        for entry in block.iter() {
            if self.report.full() {
                break;
            }
            if entry.property.name == "weight" {
                limits.io_weight = self.whole(entry.read(), 1..=10_000, scope);
                continue;
            }
            if !matches!(entry.value.value.kind, ValueKind::Body(_)) {
                self.wrong_type(entry.property, entry.value.value);
                continue;
            }
            let device = entry.block();
            let bytes = |checker: &mut Self, name: &str| {
                device.get(name).and_then(|setting| checker.size(setting.read(), 1, scope))
            };
            let operations = |checker: &mut Self, name: &str| {
                device.get(name).and_then(|setting| checker.whole(setting.read(), 1..=u64::from(u32::MAX), scope))
            };
            if device.iter().next().is_none() && !device.partial {
                self.finding(Code::MissingProperty, entry.key, "the device has no limit")
                    .label("nothing is limited")
                    .expected("`read`, `write`, `read_ops` or `write_ops`")
                    .help(format!("for example `{}`", entry.property.example));
            }
            let limit = IoLimit {
                path: entry.name.clone().into_owned(),
                read_bytes: bytes(self, "read"),
                write_bytes: bytes(self, "write"),
                read_operations: operations(self, "read_ops"),
                write_operations: operations(self, "write_ops"),
            };
            limits.io.push(limit);
        }
    }

    pub(super) fn ulimits(&mut self, settings: &Settings<'a>, scope: Scope) -> Vec<Ulimit> {
        let Some(block) = self.block_of(settings, "ulimits") else { return Vec::new() };
        block.iter().filter_map(|entry| self.ulimit(entry, scope)).collect()
    }

    fn ulimit(&mut self, entry: &Setting<'a>, scope: Scope) -> Option<Ulimit> {
        let text = self.entry(entry, scope)?;
        let (property, Bound { value, .. }) = entry.read();
        let (soft, hard) = text.split_once(':').unwrap_or((&text, &text));
        let bytes = properties::counts_bytes(property.name);
        let number = |text: &str| match text {
            "unlimited" | "-1" => Ok(u64::MAX),
            _ if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse::<u64>().map_err(|_| UnitError::TooLarge)
            }
            _ if bytes => units::size(text),
            _ => Err(UnitError::Malformed),
        };
        let (Ok(soft), Ok(hard)) = (number(soft), number(hard)) else {
            let shown = self.shown(value.span);
            self.finding(Code::WrongType, value.span, format!("{shown} is no limit for `{}`", property.name))
                .label("not understood")
                .expected(property.wants)
                .help(format!("for example `{}`", property.example));
            return None;
        };
        if soft > hard {
            self.finding(
                Code::OutOfRange,
                value.span,
                format!("the soft limit of `{}` is above the hard one", property.name),
            )
            .label("soft, then hard")
            .expected("the lower number first")
            .help(format!("for example `{}`", property.example));
            return None;
        }
        Some(Ulimit { name: property.name.to_owned(), soft, hard })
    }

    /// Sorted by name.
    pub(super) fn sysctls(&mut self, settings: &Settings<'a>, scope: Scope) -> Vec<(String, String)> {
        let Some(block) = self.block_of(settings, "sysctls") else { return Vec::new() };
        let mut all: Vec<(String, String)> = Vec::new();
        for entry in block.iter() {
            if matches!(entry.value.value.kind, ValueKind::Bool(_)) {
                self.wrong_type(entry.property, entry.value.value);
            } else if let Some(text) = self.entry(entry, scope) {
                all.push((entry.name.clone().into_owned(), text));
            }
        }
        all.sort_unstable();
        all
    }

    /// Only what a namespace of the container has by itself: anything else would be the host's, and is read-only to a
    /// container anyway (`namespaces(7)`, `ipc_namespaces(7)`).
    pub(super) fn sysctl_name(&mut self, span: Span, name: &str) {
        let parts = |name: &str| name.split('.').all(|part| !part.is_empty() && part != "..");
        let written = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) && parts(name);
        let own = ["net.", "fs.mqueue.", "kernel.shm", "kernel.msg"].iter().any(|prefix| name.starts_with(prefix))
            || name == "kernel.sem";
        if !written || !own {
            self.finding(
                Code::BadSysctl,
                span,
                format!("{} is not a setting that a container has for itself", shown(name)),
            )
            .label("the host's, or malformed")
            .expected("`net.…`, `kernel.shm…`, `kernel.msg…`, `kernel.sem` or `fs.mqueue.…`")
            .help("set it on the host, with `sysctl -w`, if it is to hold there");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::weight;

    #[test]
    fn weights() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 100, 10_000]);
        assert_eq!([512, 2048].map(weight), [58, 173]);
        assert!((2..5000).map(weight).is_sorted());
    }
}
