//! What differs between what a container is and what it should be, and what follows from that.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::host::cgroup;
use crate::plan::Cause;
use crate::record::Record;
use crate::spec::ContainerSpec;
use containust_lang::model::Network;
use containust_lang::shown_size;

/// Fields of [`ContainerSpec`] that change while the container runs: the supervisor acts by them, or writes them to the
/// container's cgroup. Everything else went into namespaces, mounts and the program's memory when it was made.
const IN_PLACE: [&str; 8] = ["connect", "healthcheck", "image", "labels", "limits", "logs", "restart", "stop"];
/// Fields whose values are shown to nobody.
const HIDDEN: [&str; 2] = ["env", "secret_env"];
/// Longer values are cut, in characters.
const MAX_SHOWN: usize = 160;

/// What has to happen to a container to become what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    InPlace(Vec<Cause>),
    Replace(Vec<Cause>),
}

/// Compares what is wanted with what was made. `hash` is that of `wanted`.
pub(crate) fn judge(wanted: &ContainerSpec, hash: &str, record: &Record) -> Verdict {
    if record.hash == hash {
        return Verdict::Same;
    }
    // By field, because another version may have serialised the same into something else.
    let causes = differences(wanted, &record.spec);
    match causes.iter().all(|cause| cause.in_place) {
        true if causes.is_empty() => Verdict::Same,
        true => Verdict::InPlace(causes),
        false => Verdict::Replace(causes),
    }
}

/// The fields that differ, as the language names them, with what they were and will be where that may be shown.
pub(crate) fn differences(new: &ContainerSpec, old: &ContainerSpec) -> Vec<Cause> {
    let (Ok(Value::Object(new_fields)), Ok(Value::Object(old_fields))) =
        (serde_json::to_value(new), serde_json::to_value(old))
    else {
        return Vec::new();
    };
    // An index has a digest of its own.
    let how = match (&old.lazy, &new.lazy) {
        (Some(_), None) => Some("unpacked"),
        (None, Some(_)) => Some("read from its archive"),
        _ => None,
    };
    let mut causes = Vec::new();
    for (field, value) in &new_fields {
        let was = old_fields.get(field).unwrap_or(&Value::Null);
        if was == value {
            continue;
        }
        let name = match field.as_str() {
            "argv" => "command",
            "cwd" => "workdir",
            "after" => "connect",
            field => field,
        };
        // Who was born without limits is in no group of its own that could be given any.
        let in_place = IN_PLACE.contains(&name) && (name != "limits" || cgroup::any(&old.limits));
        let mut differ = Differ { causes: &mut causes, in_place, shown: !HIDDEN.contains(&name) };
        match name {
            // Told with the digest.
            "image" if new.digest != old.digest => {}
            // Follows from the digest; alone it says that ids are mapped in another way.
            "layers" if new.digest != old.digest => {}
            "layers" if new.lazy != old.lazy => {}
            "layers" => causes.push(Cause::of("image", "its files belong to other ids")),
            "lazy" if new.digest != old.digest => {}
            "lazy" if how.is_some() => {
                causes.push(Cause::of("image", format!("it is {} now", how.unwrap_or_default())));
            }
            "lazy" => causes.push(Cause::of("image", "its archive was indexed anew")),
            "kept" if new.digest != old.digest => {}
            "kept" => causes.push(Cause::of("image", "other of its volumes are in use")),
            "digest" => {
                let text = |spec: &ContainerSpec| match new.image == old.image {
                    true => spec.digest.clone(),
                    false => format!("{}@{}", spec.image, spec.digest),
                };
                let (old, new) = (Some(text(old)), Some(text(new)));
                let message = how.map_or("its image has other content".to_owned(), |how| format!("it is {how} now"));
                causes.push(Cause { old, new, ..Cause::of("image", message) });
            }
            "env" => differ.keyed("env", value, was, |entry| {
                let (name, value) = entry.as_str()?.split_once('=')?;
                Some((name.to_owned(), Value::from(value)))
            }),
            "labels" | "sysctls" | "hosts" => {
                differ.keyed(name, value, was, |pair| Some((pair.get(0)?.as_str()?.to_owned(), pair.get(1)?.clone())))
            }
            "volumes" | "tmpfs" | "devices" => differ.keyed(name, value, was, |mount| by(mount, "target")),
            "connect" => differ.keyed(name, value, was, |dependency| by(dependency, "on")),
            // A word for the one that everything is on; those that have names differ one by one.
            "network" if value.is_object() || was.is_object() => {
                differ.keyed("networks", &attachments(value), &attachments(was), |one| by(one, "network"));
            }
            "ulimits" | "secret_env" => differ.keyed(name, value, was, |entry| by(entry, "name")),
            "secrets" | "configs" => differ.keyed(name, value, was, |entry| by(entry, "target")),
            _ => differ.value(name, value, was),
        }
    }
    causes
}

/// What a component has on networks, one by one.
fn attachments(network: &Value) -> Value {
    let network = Network::deserialize(network).unwrap_or_default();
    let mut list = serde_json::to_value(network.attachments()).unwrap_or_default();
    for one in list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        // As authors say it.
        if one.remove("egress").is_some() {
            one.insert("internal".to_owned(), Value::from(false));
        }
    }
    list
}

/// An object by one of its fields, and the rest.
fn by(object: &Value, key: &str) -> Option<(String, Value)> {
    let mut rest = object.as_object()?.clone();
    let key = rest.remove(key)?;
    Some((key.as_str()?.to_owned(), Value::Object(rest)))
}

struct Differ<'a> {
    causes: &'a mut Vec<Cause>,
    in_place: bool,
    shown: bool,
}

impl Differ<'_> {
    fn push(&mut self, field: String, old: Option<&Value>, new: Option<&Value>) {
        let none = |value: Option<&Value>| value.is_none_or(|value| value.is_null() || value == "");
        let what = match (none(old), none(new)) {
            (true, _) => "added",
            (_, true) => "removed",
            _ => "changed",
        };
        let words = field.replacen('.', " ", 1);
        // Of lists the one entry that is meant.
        let words = words.strip_prefix("volumes ").map_or(words.clone(), |target| format!("volume {target}"));
        let message = format!("{words} {what}");
        let text =
            |value: Option<&Value>| value.filter(|value| self.shown && !none(Some(value))).map(|v| told(&field, v));
        // What is the same in a file with other content says nothing.
        let (old, new) = match (text(old), text(new)) {
            (old, new) if old == new => (None, None),
            told => told,
        };
        self.causes.push(Cause { field, message, old, new, in_place: self.in_place });
    }

    fn value(&mut self, field: &str, new: &Value, old: &Value) {
        let (Value::Object(new_map), Value::Object(old_map)) = (new, old) else {
            return self.push(field.to_owned(), Some(old), Some(new));
        };
        if duration(new_map).is_some() || !new_map.keys().eq(old_map.keys()) || new_map.len() == 1 {
            return self.push(field.to_owned(), Some(old), Some(new));
        }
        for (name, value) in new_map {
            let was = old_map.get(name).unwrap_or(&Value::Null);
            if was != value {
                let field = match (field, name.as_str()) {
                    ("limits", "cpu_millis") => "limits.cpus".to_owned(),
                    ("limits", "cpu_weight") => "limits.cpu".to_owned(),
                    ("dns", "servers") => "dns".to_owned(),
                    ("dns", name) => format!("dns_{name}"),
                    (_, name) => format!("{field}.{name}"),
                };
                self.push(field, Some(was), Some(value));
            }
        }
    }

    /// Lists whose entries have names.
    fn keyed(&mut self, field: &str, new: &Value, old: &Value, split: impl Fn(&Value) -> Option<(String, Value)>) {
        let map = |list: &Value| -> BTreeMap<String, Value> {
            list.as_array().into_iter().flatten().filter_map(&split).collect()
        };
        let (new, old) = (map(new), map(old));
        let before = self.causes.len();
        for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
            if old.get(name) != new.get(name) {
                self.push(format!("{field}.{name}"), old.get(name), new.get(name));
            }
        }
        if self.causes.len() == before {
            let message = format!("order of {field} changed");
            self.causes.push(Cause { in_place: self.in_place, ..Cause::of(field, message) });
        }
    }
}

fn duration(map: &Map<String, Value>) -> Option<Duration> {
    (map.len() == 2 && map.contains_key("secs")).then(|| Duration::deserialize(Value::Object(map.clone())).ok())?
}

/// A field's value as a person writes it.
fn told(field: &str, value: &Value) -> String {
    match (field, value.as_u64()) {
        ("limits.memory" | "limits.memory_high" | "limits.swap", Some(bytes)) => shown_size(bytes),
        ("limits.cpus", Some(millis)) => format!("{}", millis as f64 / 1000.0),
        ("seccomp.profile", _) => {
            let part = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
            let digest = part("sha256");
            format!("{} (sha256 {})", part("path"), digest.get(..12).unwrap_or(digest))
        }
        // What stands in one is shown to nobody.
        _ if field.starts_with("configs.") => {
            let mut rest = value.as_object().cloned().unwrap_or_default();
            rest.remove("content");
            shown(&Value::Object(rest))
        }
        _ if field.starts_with("volumes.") => {
            let source = value.get("source").and_then(Value::as_str).unwrap_or_default();
            let how = if value.get("readonly") == Some(&Value::Bool(true)) { ", read-only" } else { "" };
            format!("{source}{how}")
        }
        _ => shown(value),
    }
}

/// A value as a person reads it.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => match duration(map) {
            Some(duration) => format!("{duration:?}"),
            None => {
                let fields = map.iter().filter(|(_, value)| !value.is_null());
                let field = |(name, value): (&String, &Value)| match value.as_u64() {
                    Some(mode) if name == "mode" => format!("{name} {mode:04o}"),
                    _ => format!("{name} {}", shown(value)),
                };
                fields.map(field).collect::<Vec<_>>().join(", ")
            }
        },
        other => other.to_string(),
    };
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use containust_lang::model::{ConfigFile, Filter, Healthcheck, Landlock, Part, Probe, Restart, Tmpfs};

    use super::*;
    use crate::record::tests::spec;
    use crate::rights::Profile;
    use crate::spec::Bind;

    fn told(change: impl FnOnce(&mut ContainerSpec)) -> Vec<String> {
        let old = spec("web");
        let mut new = old.clone();
        change(&mut new);
        assert_ne!(new.hash(), old.hash());
        let text = |cause: Cause| {
            let values = [cause.old, cause.new].map(|value| value.unwrap_or_else(|| "-".to_owned())).join(" -> ");
            format!("{}{}: {} ({values})", if cause.in_place { "~" } else { "" }, cause.field, cause.message)
        };
        differences(&new, &old).into_iter().map(text).collect()
    }

    #[test]
    fn names_what_differs_with_values() {
        assert_eq!(differences(&spec("web"), &spec("web")), []);
        assert_eq!(
            told(|s| s.argv.push("x".into())),
            [r#"command: command changed (["/bin/true"] -> ["/bin/true","x"])"#]
        );
        assert_eq!(told(|s| s.cwd = "/srv".into()), ["workdir: workdir added (- -> /srv)"]);
        assert_eq!(told(|s| s.readonly = !s.readonly).len(), 1);
        assert_eq!(
            told(|s| s.digest = "sha256:1".into()),
            ["image: its image has other content (sha256:0 -> sha256:1)"]
        );
        assert_eq!(told(|s| s.layers.push("/x".into())), ["image: its files belong to other ids (- -> -)"]);
        assert_eq!(told(|s| s.image = "file:///new".into()), ["~image: image changed (file:///srv -> file:///new)"]);
        assert_eq!(told(|s| s.restart = Restart::Always), ["~restart: restart changed (never -> always)"]);
        assert_eq!(told(|s| s.limits.memory = Some(5 << 20)), ["limits.memory: limits memory added (- -> 5MiB)"]);
        assert_eq!(told(|s| s.limits.cpu_millis = Some(1500)), ["limits.cpus: limits cpus added (- -> 1.5)"]);
        let tmpfs = Tmpfs { target: "/t".into(), size: None, mode: 0o1777 };
        assert_eq!(told(|s| s.tmpfs = vec![tmpfs]), ["tmpfs./t: tmpfs /t added (- -> mode 1777)"]);
        let volume = |readonly| Bind { source: "cache".into(), target: "/cache".into(), readonly, named: true };
        assert_eq!(
            told(|s| s.volumes = vec![volume(true)]),
            ["volumes./cache: volume /cache added (- -> cache, read-only)"]
        );
        assert_eq!(told(|s| s.stop.grace = Some(Duration::from_secs(3))), ["~stop.grace: stop grace added (- -> 3s)"]);
        assert_eq!(told(|s| s.cap_add = vec!["NET_RAW".into()]), [r#"cap_add: cap_add changed ([] -> ["NET_RAW"])"#]);
        assert_eq!(
            told(|s| s.seccomp.filter = Filter::Strict),
            ["seccomp.filter: seccomp filter changed (default -> strict)"]
        );
        let profile = Profile { path: "./p.json".into(), sha256: "ab".repeat(32), program: "0006".into() };
        assert_eq!(
            told(|s| s.seccomp.profile = Some(profile)),
            ["seccomp.profile: seccomp profile added (- -> ./p.json (sha256 abababababab))"]
        );
        let landlock = Landlock { bind: Some(vec![80]), ..Landlock::default() };
        assert_eq!(told(|s| s.landlock = Some(landlock)), ["landlock: landlock added (- -> bind [80], scope [])"]);
        let server = ["192.0.2.53".parse().unwrap()];
        assert_eq!(told(|s| s.dns.servers = server.to_vec()), [r#"dns: dns changed ([] -> ["192.0.2.53"])"#]);
        assert_eq!(
            told(|s| s.dns.search = vec!["x.example".into()]),
            [r#"dns_search: dns_search changed ([] -> ["x.example"])"#]
        );
        let labels = told(|s| s.labels = vec![("a".into(), "1".into())]);
        assert_eq!(labels, ["~labels.a: labels a added (- -> 1)"]);
        assert_eq!(told(|s| s.argv = vec!["x".repeat(1000)])[0].chars().filter(|c| *c == 'x').count(), MAX_SHOWN - 2);
    }

    #[test]
    fn limits_change_in_place_where_there_were_some() {
        let (mut old, mut new) = (spec("web"), spec("web"));
        (old.limits.memory, new.limits.memory, new.limits.pids) = (Some(5), Some(6), Some(7));
        assert_eq!(differences(&new, &old).len(), 2);
        assert!(differences(&new, &old).iter().all(|cause| cause.in_place));
    }

    #[test]
    fn a_health_check_is_compared_by_its_parts() {
        let check = |interval| Healthcheck {
            probe: Probe::Tcp(1),
            interval: Duration::from_secs(interval),
            timeout: Duration::from_secs(1),
            retries: 1,
            start_period: Duration::ZERO,
        };
        let (mut old, mut new) = (spec("web"), spec("web"));
        (old.healthcheck, new.healthcheck) = (Some(check(1)), Some(check(90)));
        let causes = differences(&new, &old);
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert_eq!(causes[0].field, "healthcheck.interval");
        assert_eq!((causes[0].old.as_deref(), causes[0].new.as_deref()), (Some("1s"), Some("90s")));
    }

    #[test]
    fn values_that_may_be_secret_are_not_shown() {
        let mut all = told(|s| s.env = vec!["B=hunter2".into()]);
        assert_eq!(all, ["env.A: env A removed (- -> -)", "env.B: env B added (- -> -)"]);
        all = told(|s| s.env = vec!["A=hunter2".into()]);
        assert_eq!(all, ["env.A: env A changed (- -> -)"]);
        let content = vec![Part::Text("hunter2".into())];
        all = told(|s| {
            s.configs = vec![ConfigFile { config: "c".into(), target: "/c".into(), mode: 0o444, owner: None, content }];
        });
        assert_eq!(all, ["configs./c: configs /c added (- -> config c, mode 0444)"]);
    }
}
