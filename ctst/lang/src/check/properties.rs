//! The properties there are.

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};

use super::Checker;

/// A property that is carried out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Property {
    pub(super) name: &'static str,
    /// Its value, for messages.
    pub(super) wants: &'static str,
    /// A correct use, for messages.
    pub(super) example: &'static str,
    pub(super) shape: Shape,
    /// The name, or that of the other word for the same thing: `port` for `ports`, `volume` for `volumes`.
    pub(super) slot: &'static str,
}

/// How a value is inherited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Replaced as a whole.
    Single,
    /// Replaced as a whole; `+=` adds to it.
    List,
    /// Merged variable by variable.
    Variables,
    /// Merged property by property of a health check.
    Healthcheck,
}

const fn property(name: &'static str, wants: &'static str, example: &'static str) -> Property {
    Property { name, wants, example, shape: Shape::Single, slot: name }
}

const fn list(name: &'static str, wants: &'static str, example: &'static str) -> Property {
    Property { name, wants, example, shape: Shape::List, slot: name }
}

/// A variable in `env`.
pub(super) const VARIABLE: Property =
    property("env", "a string, a number or a truth value", r#"env { MODE = "production" }"#);

/// A parameter that stands in a text.
pub(super) const PARAMETER: Property = property("a parameter", "a string, a number or a truth value", "port = 80");

/// What a component may set.
pub(super) const COMPONENT: &[Property] = &[
    list("image", "an image reference in quotes, or a list of `host://` ones", r#"image = "file://./rootfs""#),
    list("include", "a list of globs of files of this host", r#"include = ["/etc/nginx/**"]"#),
    list("port", "a port from 1 to 65535, or a list of them", "port = 80"),
    Property { slot: "port", ..list("ports", "a port from 1 to 65535, or a list of them", "ports = [80, 443]") },
    Property { shape: Shape::Variables, ..property("env", "a block of variables", r#"env { MODE = "production" }"#) },
    list(
        "command",
        "a list of words, or one string that is split into words",
        r#"command = ["serve", "--port", "80"]"#,
    ),
    list("entrypoint", "a list of words, or one string that is split into words", r#"entrypoint = ["/bin/app"]"#),
    property("readonly", "`true` or `false`", "readonly = false"),
    property("workdir", "an absolute path", r#"workdir = "/srv""#),
    property("user", "a user, with a group if wanted", r#"user = "1000:1000""#),
    property("hostname", "a host name", r#"hostname = "db""#),
    property("restart", "`never`, `on-failure`, `always` or `unless-stopped` in quotes", r#"restart = "on-failure""#),
    property("network", "`bridge` or `none` in quotes", r#"network = "none""#),
    Property {
        shape: Shape::Healthcheck,
        ..property("healthcheck", "a block", r#"healthcheck { http = "/healthz" }"#)
    },
    list("volume", "`host:inside` in quotes, with `:ro` if wanted, or a list of these", r#"volume = "./data:/data""#),
    Property {
        slot: "volume",
        ..list(
            "volumes",
            "`host:inside` in quotes, with `:ro` if wanted, or a list of these",
            r#"volumes = ["./data:/data:ro"]"#,
        )
    },
    list("profiles", "a name in quotes, or a list of names", r#"profiles = ["debug"]"#),
    list(
        "tmpfs",
        "an absolute path in quotes, with `:size=…,mode=…` if wanted, or a list of these",
        r#"tmpfs = ["/tmp:size=64MiB"]"#,
    ),
];

/// What a health check may set.
pub(super) const HEALTHCHECK: &[Property] = &[
    list("command", "a list of words, or one string for `/bin/sh -c`", r#"command = ["redis-cli", "ping"]"#),
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

/// Whether the name is of the language and not carried out.
pub(super) fn comes_later(name: &str) -> bool {
    LATER.contains(&name)
}

impl Checker<'_, '_> {
    pub(super) fn unknown_property(&mut self, span: Span, key: &str, known: &'static [Property], owner: &str) {
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
            assert_eq!(
                codes(&format!(
                    "COMPONENT a {{ {image} {port} {example} }} COMPONENT z {{ image = \"host:///bin/x\" }}"
                )),
                [],
                "{example}"
            );
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
