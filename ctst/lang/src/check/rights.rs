//! What a component's processes may do: capabilities, system calls, landlock.

use crate::codes::Code;
use crate::diagnostic::{nearest, shown};
use crate::model::{Filter, Landlock, Scope as LandlockScope, Seccomp};

use super::Checker;
use super::inherit::Settings;
use super::resolve::Scope;

/// `capabilities(7)`, in the order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// In `cap_drop`, instead of names.
const ALL: &str = "ALL";

impl<'a> Checker<'a, '_> {
    /// Names without `CAP_`, in alphabetical order: what is added, and what is taken away.
    pub(super) fn capabilities(&mut self, settings: &Settings<'a>, scope: Scope) -> (Vec<String>, Vec<String>) {
        let added = self.capability_list(settings, "cap_add", scope);
        let dropped = self.capability_list(settings, "cap_drop", scope);
        if let Some(both) = added.iter().find(|name| dropped.contains(*name))
            && let (Some(add), Some(drop)) = (settings.key("cap_add"), settings.key("cap_drop"))
        {
            self.finding(Code::Exclusive, drop, format!("{both} is added and dropped"))
                .label("taken away")
                .related(add, "given")
                .help("remove it from one of them; to have nothing but what is added write `cap_drop = [\"ALL\"]`");
        }
        (added, dropped)
    }

    fn capability_list(&mut self, settings: &Settings<'a>, name: &'static str, scope: Scope) -> Vec<String> {
        let Some(setting) = settings.get(name) else { return Vec::new() };
        let mut list: Vec<String> = Vec::new();
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(text) = self.filled((setting.property, item), scope) else { continue };
            let span = item.value.span;
            let upper = text.to_ascii_uppercase();
            let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if bare == ALL && name == "cap_add" {
                self.finding(Code::UnknownChoice, span, "`ALL` cannot be added")
                    .label("more than anything needs")
                    .expected("names of capabilities")
                    .help(format!("name those that are missed, for example `{}`", setting.property.example));
            } else if bare != ALL && !CAPABILITIES.contains(&bare) {
                let written = self.shown(span);
                // The spelling of a value that came from the environment stays unsaid.
                let name = span.text(self.source).trim_matches('"').to_ascii_uppercase();
                let meant = nearest(name.strip_prefix("CAP_").unwrap_or(&name), CAPABILITIES.iter().copied());
                self.finding(Code::UnknownChoice, span, format!("{written} is no capability"))
                    .label("unknown capability")
                    .expected(setting.property.wants)
                    .help("see capabilities(7) for the names there are")
                    .help_if(meant.map(|meant| format!("did you mean `\"{meant}\"`?")));
            } else if list.iter().any(|known| known == bare) {
                self.duplicate(span, setting.property.name);
            } else {
                list.push(bare.to_owned());
            }
        }
        if list.iter().any(|name| name == ALL) {
            list = vec![ALL.to_owned()];
        }
        list.sort_unstable();
        list
    }

    /// A filter's name, the path of a profile, or both.
    pub(super) fn seccomp(&mut self, settings: &Settings<'a>, scope: Scope) -> Seccomp {
        let mut seccomp = Seccomp::default();
        let Some(setting) = settings.get("seccomp") else { return seccomp };
        let filters = [Filter::Default, Filter::Strict, Filter::Compat];
        let words = filters.map(Filter::name);
        let mut first = [None, None];
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some((text, parts)) = self.filled_parts((setting.property, item), scope) else { continue };
            let span = item.value.span;
            let path = text.starts_with(['/', '.']);
            let chosen = filters.into_iter().find(|filter| filter.name() == text);
            match chosen {
                Some(filter) => seccomp.filter = filter,
                None if path => seccomp.profile = Some(self.seen_from_here(&text, &parts, 0)),
                None => {
                    let written = self.shown(span);
                    let name = span.text(self.source).trim_matches('"');
                    let meant =
                        nearest(name, words.iter().copied()).map(|meant| format!("did you mean `\"{meant}\"`?"));
                    let file = name.ends_with(".json").then(|| format!("a path begins with `./`: `\"./{name}\"`"));
                    let none = (name == "unconfined")
                        .then(|| "every container has a filter; the loosest is `seccomp = \"compat\"`".to_owned());
                    self.finding(Code::UnknownChoice, span, format!("{written} is neither a filter nor a path"))
                        .label("unknown filter")
                        .expected(setting.property.wants)
                        .help(format!("for example `{}`", setting.property.example))
                        .help_if(none.or(file).or(meant));
                    continue;
                }
            }
            let kind = usize::from(chosen.is_none());
            if let Some(first) = first[kind] {
                let what = ["a component has one filter", "a component has one profile"][kind];
                self.finding(Code::Exclusive, span, what)
                    .label("a second one")
                    .related(first, "the first one")
                    .help("keep one of them");
            }
            first[kind] = Some(span);
        }
        seccomp
    }

    pub(super) fn landlock(&mut self, settings: &Settings<'a>, scope: Scope) -> Option<Landlock> {
        let block = self.block_of(settings, "landlock")?;
        if block.iter().next().is_none() && !block.partial {
            let setting = settings.get("landlock")?;
            self.finding(Code::MissingProperty, setting.key, "`landlock` restricts nothing")
                .label("empty")
                .expected("`read`, `write`, `execute`, `bind`, `connect` or `scope`")
                .help(format!("for example `{}`", setting.property.example));
            return None;
        }
        let mut scopes = Vec::new();
        if let Some(setting) = block.get("scope") {
            for item in self.items(setting, scope).into_iter().flatten() {
                let words = &["abstract_sockets", "signals"];
                let choices = [LandlockScope::AbstractSockets, LandlockScope::Signals];
                let chosen = self.choice((setting.property, item), words, scope);
                let Some(chosen) = chosen.and_then(|chosen| choices.get(chosen).copied()) else { continue };
                if scopes.contains(&chosen) {
                    self.duplicate(item.value.span, setting.property.name);
                } else {
                    scopes.push(chosen);
                }
            }
        }
        scopes.sort_unstable();
        Some(Landlock {
            read: self.places(block, "read", scope),
            write: self.places(block, "write", scope),
            execute: self.places(block, "execute", scope),
            bind: self.allowed_ports(block, "bind", scope),
            connect: self.allowed_ports(block, "connect", scope),
            scope: scopes,
        })
    }

    /// Absolute paths inside, in alphabetical order.
    fn places(&mut self, block: &Settings<'a>, name: &str, scope: Scope) -> Option<Vec<String>> {
        let setting = block.get(name)?;
        let mut places: Vec<String> = Vec::new();
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(text) = self.filled((setting.property, item), scope) else { continue };
            let span = item.value.span;
            let Some(path) = self.absolute(span, setting.property.name, &text) else { continue };
            if places.contains(&path) {
                self.duplicate(span, setting.property.name);
            } else {
                places.push(path);
            }
        }
        places.sort_unstable();
        Some(places)
    }

    /// Ports in their order.
    fn allowed_ports(&mut self, block: &Settings<'a>, name: &str, scope: Scope) -> Option<Vec<u16>> {
        let setting = block.get(name)?;
        let mut ports: Vec<u16> = Vec::new();
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(port) = self.port((setting.property, item), scope) else { continue };
            if ports.contains(&port) {
                let (span, port) = (item.value.span, port.to_string());
                self.finding(Code::DuplicateValue, span, format!("{} is listed twice", shown(&port)))
                    .label("again")
                    .help("remove it");
            } else {
                ports.push(port);
            }
        }
        ports.sort_unstable();
        Some(ports)
    }
}
