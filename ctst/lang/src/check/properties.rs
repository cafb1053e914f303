//! The properties there are, and the reading of a body into them.

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};
use crate::syntax::{Action, Body, Entry, Value};

use super::Checker;

/// A property that is carried out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Property {
    pub(super) name: &'static str,
    /// Its value, for messages.
    pub(super) wants: &'static str,
    /// A correct use, for messages.
    pub(super) example: &'static str,
}

const fn property(name: &'static str, wants: &'static str, example: &'static str) -> Property {
    Property { name, wants, example }
}

/// What a component may set.
pub(super) const COMPONENT: &[Property] = &[
    property("image", "an image reference in quotes, or a list of `host://` ones", r#"image = "file://./rootfs""#),
    property("include", "a list of globs of files of this host", r#"include = ["/etc/nginx/**"]"#),
    property("port", "a port from 1 to 65535, or a list of them", "port = 80"),
    property("ports", "a port from 1 to 65535, or a list of them", "ports = [80, 443]"),
    property("env", "a block of variables", r#"env { MODE = "production" }"#),
    property(
        "command",
        "a list of words, or one string that is split into words",
        r#"command = ["serve", "--port", "80"]"#,
    ),
    property("entrypoint", "a list of words, or one string that is split into words", r#"entrypoint = ["/bin/app"]"#),
    property("readonly", "`true` or `false`", "readonly = false"),
    property("workdir", "an absolute path", r#"workdir = "/srv""#),
    property("user", "a user, with a group if wanted", r#"user = "1000:1000""#),
    property("hostname", "a host name", r#"hostname = "db""#),
    property("restart", "`never`, `on-failure`, `always` or `unless-stopped` in quotes", r#"restart = "on-failure""#),
    property("network", "`bridge` or `none` in quotes", r#"network = "none""#),
    property("healthcheck", "a block", r#"healthcheck { http = "/healthz" }"#),
    property(
        "volume",
        "`host:inside` in quotes, with `:ro` if wanted, or a list of these",
        r#"volume = "./data:/data""#,
    ),
    property(
        "volumes",
        "`host:inside` in quotes, with `:ro` if wanted, or a list of these",
        r#"volumes = ["./data:/data:ro"]"#,
    ),
    property(
        "tmpfs",
        "an absolute path in quotes, with `:size=…,mode=…` if wanted, or a list of these",
        r#"tmpfs = ["/tmp:size=64MiB"]"#,
    ),
];

/// What a health check may set.
pub(super) const HEALTHCHECK: &[Property] = &[
    property("command", "a list of words, or one string for `/bin/sh -c`", r#"command = ["redis-cli", "ping"]"#),
    property("http", "a path that begins with `/`, in quotes", r#"http = "/healthz""#),
    property("tcp", "a port from 1 to 65535", "tcp = 5432"),
    property("port", "a port from 1 to 65535", "port = 8080"),
    property("interval", "a duration", "interval = 30s"),
    property("timeout", "a duration", "timeout = 5s"),
    property("retries", "a whole number of 1 or more", "retries = 3"),
    property("start_period", "a duration", "start_period = 10s"),
];

/// Properties of the language that are not carried out yet.
const LATER: &[&str] = &[
    "annotate",
    "build",
    "cap_add",
    "cap_drop",
    "configs",
    "cpu",
    "cpus",
    "devices",
    "distroless",
    "dns",
    "env_file",
    "groups",
    "hosts",
    "init",
    "io",
    "labels",
    "landlock",
    "lazy",
    "limits",
    "logs",
    "memory",
    "memory_high",
    "networks",
    "no_new_privileges",
    "pids",
    "platform",
    "profiles",
    "replicas",
    "seccomp",
    "secrets",
    "shm",
    "stdin",
    "stop",
    "swap",
    "sysctls",
    "tty",
    "ulimits",
];

/// Words of docker compose for what is said otherwise here.
const COMPOSE: &[(&str, &str)] = &[
    ("container_name", "the component's own name"),
    ("depends_on", "a statement `CONNECT a -> b`"),
    ("environment", "`env { NAME = \"value\" }`"),
    ("expose", "`port`"),
    ("links", "a statement `CONNECT a -> b`"),
    ("mem_limit", "`memory`"),
    ("network_mode", "`network`"),
    ("read_only", "`readonly`"),
    ("shm_size", "`shm`"),
    ("working_dir", "`workdir`"),
];

/// The values that a body sets, by property.
#[derive(Debug, Default)]
pub(super) struct Settings<'a>(Vec<(&'static Property, Span, &'a Value)>);

impl<'a> Settings<'a> {
    pub(super) fn get(&self, name: &str) -> Option<(&'static Property, &'a Value)> {
        self.0.iter().find(|(property, ..)| property.name == name).map(|(property, _, value)| (*property, *value))
    }

    pub(super) fn key(&self, name: &str) -> Option<Span> {
        self.0.iter().find(|(property, ..)| property.name == name).map(|(_, key, _)| *key)
    }
}

impl Checker<'_, '_> {
    /// Reads a body of the given properties. Whether all of it could be read comes with it.
    pub(super) fn settings<'b>(
        &mut self,
        body: &'b Body,
        known: &'static [Property],
        owner: &str,
    ) -> (Settings<'b>, bool) {
        let mut settings = Settings::default();
        let mut complete = !body.partial;
        for entry in &body.entries {
            if self.report.full() {
                break;
            }
            complete &= self.setting(entry, known, owner, &mut settings);
        }
        for [one, other] in [["port", "ports"], ["volume", "volumes"]] {
            if let (Some(first), Some(second)) = (settings.key(one), settings.key(other)) {
                let (first, second) = (first.min(second), first.max(second));
                self.finding(Code::Exclusive, second, format!("`{one}` and `{other}` exclude each other"))
                    .label("the other one")
                    .related(first, "one of them")
                    .help(format!("write one list: `{other} = [ … ]`"));
                complete = false;
            }
        }
        (settings, complete)
    }

    fn setting<'b>(
        &mut self,
        entry: &'b Entry,
        known: &'static [Property],
        owner: &str,
        settings: &mut Settings<'b>,
    ) -> bool {
        let key = entry.key.text(self.source);
        let span = entry.key.span;
        let found = known.iter().find(|property| property.name == key);
        match &entry.action {
            Action::Annotate(_) => {
                self.not_supported(span, "`annotate`");
                return false;
            }
            _ if found.is_none() && LATER.contains(&key.as_ref()) => {
                self.not_supported(span, &shown(&key));
                return false;
            }
            _ if found.is_none() => {
                self.unknown_property(span, &key, known, owner);
                return true;
            }
            Action::Append(_) => {
                self.not_supported(span, "`+=`, which adds to what is inherited,");
                return false;
            }
            Action::Unset => {
                self.not_supported(span, "`UNSET`, which removes what is inherited,");
                return false;
            }
            Action::Set(value) => {
                let Some(property) = found else { return true };
                if let Some(first) = settings.key(property.name) {
                    self.finding(Code::DuplicateProperty, span, format!("{} is set twice", shown(&key)))
                        .label("set again")
                        .related(first, "set here first")
                        .help("keep one of them");
                    return true;
                }
                settings.0.push((property, span, value));
            }
        }
        true
    }

    fn unknown_property(&mut self, span: Span, key: &str, known: &'static [Property], owner: &str) {
        let lower = key.to_ascii_lowercase();
        let compose = COMPOSE.iter().find(|(word, _)| *word == lower).map(|(_, ours)| format!("here it is {ours}"));
        let names = known.iter().map(|property| property.name);
        let spelling =
            || nearest(key, names.clone().chain(LATER.iter().copied())).map(|meant| format!("did you mean `{meant}`?"));
        let list = names.clone().collect::<Vec<_>>().join(", ");
        self.finding(Code::UnknownProperty, span, format!("{owner} has no property {}", shown(key)))
            .label("unknown property")
            .expected(format!("one of {list}"))
            .help("remove it, or see LANGUAGE.md for the properties there are")
            .help_if(compose.or_else(spelling));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Code;

    const PAGE: &str = include_str!("../../LANGUAGE.md");

    #[test]
    fn the_reference_knows_every_property() {
        for property in COMPONENT.iter().chain(HEALTHCHECK) {
            assert!(PAGE.contains(&format!("`{}`", property.name)), "{} is not described", property.name);
            let (word, _) = property.example.split_once(' ').unwrap_or_default();
            assert_eq!(word, property.name, "the example is for another property");
        }
        for name in LATER {
            assert!(PAGE.contains(&format!("`{name}`")), "{name} is not listed");
        }
    }

    fn codes(source: &str) -> Vec<Code> {
        crate::check("f", source.as_bytes(), "p", &|_| None).diagnostics.iter().map(|found| found.code).collect()
    }

    #[test]
    fn the_examples_in_messages_are_right() {
        for Property { name, example, .. } in COMPONENT {
            let image = match *name {
                "image" => "command = \"x\"",
                _ => "image = \"host:///bin/x\"",
            };
            let port = if name.starts_with("port") { "" } else { "port = 80" };
            assert_eq!(codes(&format!("COMPONENT a {{ {image} {port} {example} }}")), [], "{example}");
        }
        for Property { name, example, .. } in HEALTHCHECK {
            let probe = match *name {
                "command" | "http" | "tcp" => "",
                _ => "http = \"/\"",
            };
            let source =
                format!("COMPONENT a {{ image = \"host:///bin/x\" port = 1 healthcheck {{ {probe} {example} }} }}");
            assert_eq!(codes(&source), [], "{example}");
        }
    }

    #[test]
    fn what_comes_later_is_not_unknown() {
        for name in LATER {
            assert_eq!(
                codes(&format!("COMPONENT a {{ image = \"host:///bin/x\" {name} = 1 }}")),
                [Code::NotSupported],
                "{name}"
            );
        }
        assert_eq!(codes("COMPONENT a { image = \"host:///bin/x\" later = 1 }"), [Code::UnknownProperty]);
    }
}
