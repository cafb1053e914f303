//! The properties there are.

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};

use super::Checker;

/// A property that is carried out.
#[derive(Debug)]
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
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// Replaced as a whole.
    Single,
    /// Replaced as a whole; `+=` adds to it.
    List,
    /// A block, merged key by key.
    Block(&'static Kind),
}

/// What a block is of.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) known: &'static [Property],
    /// What a key is that is not known, if that may be.
    pub(super) other: Option<(&'static Property, Keys)>,
}

/// Keys that the author chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    Variables,
    Labels,
    Sysctls,
    Hosts,
    Networks,
    Devices,
}

impl Keys {
    /// What a key is, for messages.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Keys::Variables => "the variable ",
            Keys::Labels => "the label ",
            Keys::Sysctls => "the setting ",
            Keys::Hosts => "the host ",
            Keys::Networks => "the network ",
            Keys::Devices => "the device ",
        }
    }

    /// What stands between key and value in the items of a list that is written instead of the block.
    pub(super) fn separator(self) -> Option<char> {
        match self {
            Keys::Labels => Some('='),
            Keys::Hosts => Some(':'),
            Keys::Variables | Keys::Sysctls | Keys::Networks | Keys::Devices => None,
        }
    }
}

const fn property(name: &'static str, wants: &'static str, example: &'static str) -> Property {
    Property { name, wants, example, shape: Shape::Single, slot: name }
}

const fn list(name: &'static str, wants: &'static str, example: &'static str) -> Property {
    Property { name, wants, example, shape: Shape::List, slot: name }
}

const fn block(name: &'static str, wants: &'static str, example: &'static str, kind: &'static Kind) -> Property {
    Property { name, wants, example, shape: Shape::Block(kind), slot: name }
}

/// A parameter that stands in a text.
pub(super) const PARAMETER: Property = property("a parameter", "a string, a number or a truth value", "port = 80");

const SIZE: &str = "a size such as `512MiB`";

/// What a component may set.
pub(super) static COMPONENT: Kind = Kind {
    name: "a component",
    known: &[
        list("image", "an image reference in quotes, or a list of `host://` ones", r#"image = "file://./rootfs""#),
        block("build", "a block with a `dockerfile` or with steps", r#"build { dockerfile = "Dockerfile" }"#, &BUILD),
        list("include", "a list of globs of files of this host", r#"include = ["/etc/nginx/**"]"#),
        list("port", "a port from 1 to 65535, or a list of them", "port = 80"),
        Property { slot: "port", ..list("ports", "a port from 1 to 65535, or a list of them", "ports = [80, 443]") },
        block("env", "a block of variables", r#"env { MODE = "production" }"#, &VARIABLES),
        list("env_file", "a path in quotes, or a list of paths", r#"env_file = ["./common.env", "./web.env"]"#),
        list(
            "command",
            "a list of words, or one string that is split into words",
            r#"command = ["serve", "--port", "80"]"#,
        ),
        list("entrypoint", "a list of words, or one string that is split into words", r#"entrypoint = ["/bin/app"]"#),
        property("readonly", "`true` or `false`", "readonly = false"),
        property("lazy", "`true` or `false`, or `always` in quotes", "lazy = false"),
        block("distroless", "`true`, `false`, or a block", r#"distroless { keep = ["/etc/app/**"] }"#, &DISTROLESS),
        property("workdir", "an absolute path", r#"workdir = "/srv""#),
        property("user", "a user, with a group if wanted", r#"user = "1000:1000""#),
        list("groups", "a group's name or number, or a list of them", r#"groups = ["video", 1001]"#),
        property("hostname", "a host name", r#"hostname = "db""#),
        property(
            "restart",
            "`never`, `on-failure`, `always` or `unless-stopped` in quotes",
            r#"restart = "on-failure""#,
        ),
        property("network", "a network's name, or `none`, in quotes", r#"network = "none""#),
        Property {
            slot: "network",
            ..block(
                "networks",
                "a list of networks' names in quotes, or a block with a block for each",
                r#"networks { bridge { aliases = ["db"] } }"#,
                &NETWORKS,
            )
        },
        block("healthcheck", "a block, or `none` in quotes", r#"healthcheck { http = "/healthz" }"#, &HEALTHCHECK),
        list("volume", VOLUME, r#"volume = "./data:/data""#),
        Property { slot: "volume", ..list("volumes", VOLUME, r#"volumes = ["./data:/data:ro", "cache:/cache"]"#) },
        list("profiles", "a name in quotes, or a list of names", r#"profiles = ["debug"]"#),
        list(
            "tmpfs",
            "an absolute path in quotes, with `:size=…,mode=…` if wanted, or a list of these",
            r#"tmpfs = ["/tmp:size=64MiB"]"#,
        ),
        list(
            "devices",
            "a device's absolute path in quotes, with `:/inside` if wanted, or a list of these",
            r#"devices = ["/dev/ttyUSB0"]"#,
        ),
        list(
            "secrets",
            "a secret's name in quotes, with `:/path` and `:0440` if wanted, or a list of these",
            r#"secrets = ["token", "key:/etc/key.pem:0440"]"#,
        ),
        list(
            "configs",
            "a config's name in quotes, with `:/path` and `:0440` if wanted, or a list of these",
            r#"configs = ["motd:/etc/motd"]"#,
        ),
        property("replicas", "a whole number from 0 to 100", "replicas = 3"),
        property("shm", SIZE, "shm = 256MiB"),
        property("memory", SIZE, "memory = 512MiB"),
        property("memory_high", SIZE, "memory_high = 400MiB"),
        property("swap", "a size, or 0 for none", "swap = 256MiB"),
        property("cpus", "a number of processors", "cpus = 1.5"),
        property(
            "cpu",
            "a number of processors with a decimal point, or a whole number from 2 to 262144 as a weight",
            r#"cpu = "0.5""#,
        ),
        property("pids", "a whole number of 1 or more", "pids = 200"),
        block("io", "a block with a weight and with devices", r#"io { "/dev/sda" { read = 10MiB } }"#, &IO),
        property("limits", "`strict` or `best-effort` in quotes", r#"limits = "best-effort""#),
        block("ulimits", "a block of limits", "ulimits { nofile = 1024 }", &ULIMITS),
        block(
            "sysctls",
            "a block of kernel settings, their names in quotes",
            r#"sysctls { "net.core.somaxconn" = 1024 }"#,
            &SYSCTLS,
        ),
        block("stop", "a block", r#"stop { signal = "SIGINT", grace = 30s }"#, &STOP),
        block(
            "labels",
            "a block of labels, or a list of `name=value` in quotes",
            r#"labels { team = "storage" }"#,
            &LABELS,
        ),
        block(
            "hosts",
            "a block of host names with their addresses, or a list of `name:address` in quotes",
            r#"hosts { "db.example" = "192.0.2.7" }"#,
            &HOSTS,
        ),
        list("dns", "an IPv4 address in quotes, or a list of them", r#"dns = ["192.0.2.53"]"#),
        list("dns_search", "a domain in quotes, or a list of them", r#"dns_search = ["corp.example"]"#),
        list("dns_options", "an option of resolv.conf(5) in quotes, or a list of them", r#"dns_options = ["ndots:1"]"#),
        block("logs", "a block", "logs { max_size = 10MiB, max_files = 3 }", &LOGS),
        property("init", "`true`", "init = true"),
        property("no_new_privileges", "`true`", "no_new_privileges = true"),
        list("cap_add", "a capability's name in quotes, or a list of them", r#"cap_add = ["NET_RAW"]"#),
        list("cap_drop", "a capability's name in quotes, `ALL`, or a list of them", r#"cap_drop = ["ALL"]"#),
        list(
            "seccomp",
            "`default`, `strict`, `compat` or the path of a profile in quotes, or a list of a name and a path",
            r#"seccomp = ["strict", "./seccomp.json"]"#,
        ),
        block(
            "landlock",
            "a block",
            r#"landlock { read = ["/etc"], execute = ["/usr", "/bin", "/lib"], write = "/data" }"#,
            &LANDLOCK,
        ),
    ],
    other: None,
};

/// What is kept of an image beside what its program is known to need.
static DISTROLESS: Kind = Kind {
    name: "`distroless`",
    known: &[list("keep", "a list of globs of files of the image", r#"keep = ["/etc/app/**"]"#)],
    other: None,
};

const VOLUME: &str = "`host:inside` or `name:inside` in quotes, with `:ro` if wanted, or a list of these";
const SCALAR: &str = "a string, a number or a truth value";

/// A variable in `env`.
pub(super) const VARIABLE: &Property = &property("env", SCALAR, r#"env { MODE = "production" }"#);

static VARIABLES: Kind = Kind { name: "the environment", known: &[], other: Some((VARIABLE, Keys::Variables)) };

static LABELS: Kind = Kind {
    name: "a set of labels",
    known: &[],
    other: Some((&property("labels", SCALAR, r#"labels { team = "storage" }"#), Keys::Labels)),
};

static SYSCTLS: Kind = Kind {
    name: "a set of kernel settings",
    known: &[],
    other: Some((
        &property("sysctls", "a number, or a string", r#"sysctls { "net.core.somaxconn" = 1024 }"#),
        Keys::Sysctls,
    )),
};

static HOSTS: Kind = Kind {
    name: "a set of hosts",
    known: &[],
    other: Some((
        &property("hosts", "an IP address in quotes", r#"hosts { "db.example" = "192.0.2.7" }"#),
        Keys::Hosts,
    )),
};

static NETWORKS: Kind = Kind {
    name: "a set of networks",
    known: &[],
    other: Some((
        &block("networks", "a block", r#"networks { bridge { aliases = ["db"] } }"#, &ATTACHMENT),
        Keys::Networks,
    )),
};

static ATTACHMENT: Kind = Kind {
    name: "a network of `networks`",
    known: &[
        list("aliases", "a host name in quotes, or a list of them", r#"aliases = ["db"]"#),
        list(
            "address",
            "an IPv4 or an IPv6 address in quotes, or a list of one of each",
            r#"address = ["10.1.2.5", "fd12:3456:789a::5"]"#,
        ),
    ],
    other: None,
};

/// The block of a NETWORK statement.
pub(super) static NETWORK: Kind = Kind {
    name: "a NETWORK",
    known: &[
        property("internal", "`true` or `false`", "internal = false"),
        property("ipv6", "`true` or `false`", "ipv6 = true"),
        list(
            "subnet",
            "an IPv4 or an IPv6 subnet in quotes, or a list of one of each",
            r#"subnet = ["10.1.2.0/24", "fd12:3456:789a::/64"]"#,
        ),
    ],
    other: None,
};

/// What a health check may set.
pub(super) static HEALTHCHECK: Kind = Kind {
    name: "a health check",
    known: &[
        list("command", "a list of words, or one string for `/bin/sh -c`", r#"command = ["redis-cli", "ping"]"#),
        property("http", "a path that begins with `/`, in quotes", r#"http = "/healthz""#),
        property("tcp", "a port from 1 to 65535", "tcp = 5432"),
        property("port", "a port from 1 to 65535", "port = 8080"),
        property("interval", "a duration", "interval = 30s"),
        property("timeout", "a duration", "timeout = 5s"),
        property("retries", "a whole number of 1 or more", "retries = 3"),
        property("start_period", "a duration", "start_period = 10s"),
    ],
    other: None,
};

static STOP: Kind = Kind {
    name: "`stop`",
    known: &[
        property("signal", "a signal's name in quotes, or its number", r#"signal = "SIGINT""#),
        property("grace", "a duration", "grace = 30s"),
    ],
    other: None,
};

static LOGS: Kind = Kind {
    name: "`logs`",
    known: &[
        property("max_size", SIZE, "max_size = 10MiB"),
        property("max_files", "a whole number from 1 to 1000", "max_files = 3"),
    ],
    other: None,
};

const PLACES: &str = "an absolute path inside in quotes, or a list of them";

static LANDLOCK: Kind = Kind {
    name: "`landlock`",
    known: &[
        list("read", PLACES, r#"read = ["/etc", "/srv"]"#),
        list("write", PLACES, r#"write = ["/data"]"#),
        list("execute", PLACES, r#"execute = ["/usr", "/bin", "/lib"]"#),
        list("bind", "a port from 1 to 65535, or a list of them", "bind = [8080]"),
        list("connect", "a port from 1 to 65535, or a list of them", "connect = [5432]"),
        list(
            "scope",
            "`abstract_sockets` or `signals` in quotes, or a list of both",
            r#"scope = ["abstract_sockets", "signals"]"#,
        ),
    ],
    other: None,
};

static IO: Kind = Kind {
    name: "`io`",
    known: &[property("weight", "a whole number from 1 to 10000", "weight = 200")],
    other: Some((&block("io", "a block", r#"io { "/dev/sda" { read = 10MiB } }"#, &DEVICE), Keys::Devices)),
};

static DEVICE: Kind = Kind {
    name: "a device of `io`",
    known: &[
        property("read", "bytes a second, as a size", "read = 10MiB"),
        property("write", "bytes a second, as a size", "write = 10MiB"),
        property("read_ops", "operations a second, a whole number", "read_ops = 1000"),
        property("write_ops", "operations a second, a whole number", "write_ops = 1000"),
    ],
    other: None,
};

const LIMIT: &str = "a whole number, `\"unlimited\"`, or `\"soft:hard\"` of these";
const BYTES: &str = "a number of bytes, a size, `\"unlimited\"`, or `\"soft:hard\"` of these";

/// The names of `RLIMIT_*` (`getrlimit(2)`).
static ULIMITS: Kind = Kind {
    name: "`ulimits`",
    known: &[
        property("as", BYTES, "as = 4GiB"),
        property("core", BYTES, "core = 0"),
        property("cpu", LIMIT, "cpu = 3600"),
        property("data", BYTES, "data = 1GiB"),
        property("fsize", BYTES, "fsize = 1GiB"),
        property("locks", LIMIT, "locks = 1024"),
        property("memlock", BYTES, "memlock = \"unlimited\""),
        property("msgqueue", BYTES, "msgqueue = 800KiB"),
        property("nice", LIMIT, "nice = 20"),
        property("nofile", LIMIT, "nofile = \"1024:65536\""),
        property("nproc", LIMIT, "nproc = 512"),
        property("rss", BYTES, "rss = 1GiB"),
        property("rtprio", LIMIT, "rtprio = 0"),
        property("rttime", LIMIT, "rttime = 200000"),
        property("sigpending", LIMIT, "sigpending = 1024"),
        property("stack", BYTES, "stack = \"8MiB:unlimited\""),
    ],
    other: None,
};

/// Whether a limit counts bytes, so that a size may be given.
pub(super) fn counts_bytes(ulimit: &str) -> bool {
    ["as", "core", "data", "fsize", "memlock", "msgqueue", "rss", "stack"].contains(&ulimit)
}

/// What the block of a STACK and that of a VOLUME may set.
pub(super) static LABELLED: Kind = Kind {
    name: "this block",
    known: &[block(
        "labels",
        "a block of labels, or a list of `name=value` in quotes",
        r#"labels { team = "storage" }"#,
        &LABELS,
    )],
    other: None,
};

/// The value of a CONFIG statement.
pub(super) const CONTENT: Property =
    property("CONFIG", "a string, or a block with a path", r#"CONFIG motd = { file = "./motd" }"#);

pub(super) static CONFIG: Kind =
    Kind { name: "a CONFIG", known: &[property("file", "a path in quotes", r#"file = "./nginx.conf""#)], other: None };

/// An entry of `secrets` or `configs`.
pub(super) static MOUNTED: Kind = Kind {
    name: "this entry",
    known: &[
        property("source", "a name in quotes", r#"source = "token""#),
        property("target", "an absolute path in quotes", r#"target = "/etc/token""#),
        property("mode", "an octal number", r#"mode = "0440""#),
        property("owner", "a user, with a group if wanted", r#"owner = "redis""#),
    ],
    other: None,
};

/// An entry of `env_file`.
pub(super) static ENV_FILE: Kind = Kind {
    name: "this entry",
    known: &[
        property("path", "a path in quotes", r#"path = "./web.env""#),
        property("required", "`true` or `false`", "required = false"),
    ],
    other: None,
};

/// What an image is built from.
pub(super) static BUILD: Kind = Kind {
    name: "a build",
    known: &[
        property("context", "a path in quotes", r#"context = "./app""#),
        property("dockerfile", "a path in quotes, from the context on", r#"dockerfile = "Dockerfile""#),
        property("target", "a stage's name in quotes", r#"target = "release""#),
        block("args", "a block of values", r#"args { VERSION = "1.2" }"#, &ARGUMENTS),
        property("from", "an image reference in quotes", r#"from = "oci://docker.io/library/debian:12""#),
        block("env", "a block of variables", r#"env { MODE = "production" }"#, &VARIABLES),
        list("copy", "`source:/place` in quotes, or a list of these", r#"copy = ["app:/srv/app"]"#),
        list("run", "a shell's command in quotes, or a list of them", r#"run = ["make install"]"#),
        property("workdir", "an absolute path", r#"workdir = "/srv""#),
        property("user", "a user, with a group if wanted", r#"user = "1000:1000""#),
        list("entrypoint", "a list of words, or one string that is split into words", r#"entrypoint = ["/bin/app"]"#),
        list("command", "a list of words, or one string that is split into words", r#"command = ["serve"]"#),
    ],
    other: None,
};

/// A value in `args` of a build.
const ARGUMENT: &Property = &property("args", SCALAR, r#"args { VERSION = "1.2" }"#);

static ARGUMENTS: Kind = Kind { name: "the arguments", known: &[], other: Some((ARGUMENT, Keys::Variables)) };

/// Properties of the language that are not carried out yet.
const LATER: &[&str] = &["annotate", "platform", "stdin", "tty"];

/// Words of docker compose for what is said otherwise here.
const COMPOSE: &[(&str, &str)] = &[
    ("container_name", "the component's own name"),
    ("depends_on", "a statement `CONNECT a -> b`"),
    ("dns_opt", "`dns_options`"),
    ("environment", "`env { NAME = \"value\" }`"),
    ("expose", "`port`"),
    ("extra_hosts", "`hosts`"),
    ("group_add", "`groups`"),
    ("links", "a statement `CONNECT a -> b`"),
    ("mem_limit", "`memory`"),
    ("network_mode", "`network`"),
    ("pids_limit", "`pids`"),
    ("read_only", "`readonly`"),
    ("security_opt", "`seccomp`"),
    ("shm_size", "`shm`"),
    ("stop_grace_period", "`stop { grace = 10s }`"),
    ("stop_signal", "`stop { signal = \"SIGINT\" }`"),
    ("working_dir", "`workdir`"),
];

/// Whether the name is of the language and not carried out.
pub(super) fn comes_later(name: &str) -> bool {
    LATER.contains(&name)
}

impl Checker<'_, '_> {
    pub(super) fn unknown_property(&mut self, span: Span, key: &str, kind: &Kind) {
        let lower = key.to_ascii_lowercase();
        let test =
            (lower == "test" && std::ptr::eq(kind, &raw const HEALTHCHECK)).then(|| "here it is `command`".to_owned());
        let compose = COMPOSE.iter().find(|(word, _)| *word == lower).map(|(_, ours)| format!("here it is {ours}"));
        let Kind { name: owner, known, .. } = kind;
        let names = known.iter().map(|property| property.name);
        let spelling =
            || nearest(key, names.clone().chain(LATER.iter().copied())).map(|meant| format!("did you mean `{meant}`?"));
        let mut list = names.clone().collect::<Vec<_>>().join(", ");
        if kind.other.is_some() {
            list.push_str(", or a path in quotes");
        }
        self.finding(Code::UnknownProperty, span, format!("{owner} has no property {}", shown(key)))
            .label("unknown property")
            .expected(format!("one of {list}"))
            .help("remove it, or see LANGUAGE.md for the properties there are")
            .help_if(test.or(compose).or_else(spelling));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Code;
    use crate::{Inputs, Loader};

    static KINDS: [&Kind; 16] = [
        &COMPONENT,
        &DISTROLESS,
        &BUILD,
        &HEALTHCHECK,
        &ATTACHMENT,
        &NETWORK,
        &STOP,
        &LOGS,
        &LANDLOCK,
        &IO,
        &DEVICE,
        &ULIMITS,
        &LABELLED,
        &CONFIG,
        &MOUNTED,
        &ENV_FILE,
    ];

    const PAGE: &str = include_str!("../../LANGUAGE.md");

    #[test]
    fn the_reference_knows_every_property() {
        for property in KINDS.iter().flat_map(|kind| kind.known) {
            assert!(PAGE.contains(&format!("`{}`", property.name)), "{} is not described", property.name);
            let (word, _) = property.example.split_once(' ').unwrap_or_default();
            assert_eq!(word, property.name, "the example is for another property");
        }
        for name in LATER {
            assert!(PAGE.contains(&format!("`{name}`")), "{name} is not listed");
        }
    }

    /// Every file is there and empty.
    struct Empty;

    impl Loader for Empty {
        fn load(&self, _: &str, path: &str) -> Result<(String, Vec<u8>), String> {
            Ok((path.to_owned(), Vec::new()))
        }

        fn read(&self, _: &str) -> Result<Option<Vec<u8>>, String> {
            Ok(Some(Vec::new()))
        }
    }

    fn codes(source: &str) -> Vec<Code> {
        let inputs = Inputs { loader: Some(&Empty), ..Inputs::default() };
        let outcome = crate::check_with("f", source.as_bytes(), "p", &|_| None, &inputs);
        outcome.diagnostics.iter().map(|found| found.code).collect()
    }

    #[test]
    fn the_examples_in_messages_are_right() {
        for Property { name, example, .. } in COMPONENT.known {
            let image = match *name {
                "image" | "build" => "command = \"x\"",
                "distroless" => "image = \"image://x\"",
                _ => "image = \"host:///bin/x\"",
            };
            // Servers are asked by a way out.
            let network = if *name == "dns" { "NETWORK bridge { internal = false }" } else { "" };
            let others = "image = \"host:///bin/x\" configs = \"motd\"";
            let port = if name.starts_with("port") { "" } else { "port = 80" };
            assert_eq!(
                codes(&format!(
                    "{network} CONFIG motd = \"\" COMPONENT a {{ {image} {port} {example} }} COMPONENT z {{ {others} }}"
                )),
                [],
                "{example}"
            );
        }
        for Property { name, example, .. } in HEALTHCHECK.known {
            let probe = match *name {
                "command" | "http" | "tcp" => "",
                _ => "http = \"/\"",
            };
            let source =
                format!("COMPONENT a {{ image = \"host:///bin/x\" port = 1 healthcheck {{ {probe} {example} }} }}");
            assert_eq!(codes(&source), [], "{example}");
        }
        for Property { name, example, .. } in BUILD.known {
            let recipe = match *name {
                "context" | "from" | "dockerfile" => "",
                "target" | "args" => "dockerfile = \"Dockerfile\"",
                _ => "from = \"file:///x\"",
            };
            assert_eq!(codes(&format!("COMPONENT a {{ build {{ {recipe} {example} }} }}")), [], "{example}");
        }
        for Property { example, .. } in DISTROLESS.known {
            assert_eq!(codes(&format!("COMPONENT a {{ image = \"image://x\" distroless {{ {example} }} }}")), []);
        }
        let nested = [
            ("stop {", &STOP),
            ("logs {", &LOGS),
            ("landlock {", &LANDLOCK),
            ("io {", &IO),
            ("io { \"/dev/sda\" {", &DEVICE),
            ("ulimits {", &ULIMITS),
            ("env_file { path = \"x\"", &ENV_FILE),
            ("secrets { source = \"x\"", &MOUNTED),
        ];
        for (before, kind) in nested {
            for Property { name, example, .. } in kind.known {
                let before = before.split(&format!("{name} =")).next().unwrap_or_default();
                let after = "}".repeat(before.matches('{').count());
                let source = format!("COMPONENT a {{ image = \"host:///bin/x\" {before} {example} {after} }}");
                assert_eq!(codes(&source), [], "{example}");
            }
        }
    }

    #[test]
    fn the_examples_about_networks_are_right() {
        let example = |kind: &Kind, name: &str| {
            kind.known
                .iter()
                .find(|property| property.name == name)
                .map(|property| property.example)
                .unwrap_or_default()
        };
        let [internal, ipv6, subnet] = ["internal", "ipv6", "subnet"].map(|name| example(&NETWORK, name));
        let (aliases, address) = (example(&ATTACHMENT, "aliases"), example(&ATTACHMENT, "address"));
        let source = format!(
            "NETWORK n {{ {internal} {ipv6} {subnet} }} \
             COMPONENT a {{ image = \"host:///bin/x\" networks {{ n {{ {aliases} {address} }} }} }}"
        );
        assert_eq!(codes(&source), [], "{source}");
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
