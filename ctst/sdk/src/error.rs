//! What can go wrong, as one enum with stable codes, a help line and an exit code.

use std::io;
use std::path::PathBuf;

use containust_image::build::Problem;
use containust_policy::conf::PATH as POLICY;
use containust_shared::exit;
use serde::{Deserialize, Serialize};

use crate::status::HostPort;

/// An error as it crosses the supervisor's socket, and as `--format json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Stable code, such as `S0301`.
    pub code: String,
    /// Lower-case fragment: what was tried on what, and the cause.
    pub message: String,
    /// One thing that fixes it.
    pub help: Option<String>,
    /// Exit code of `ctst` for it: 125, 126 or 127.
    pub exit: i32,
}

/// Everything that the SDK reports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a named thing failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried on what, such as `read /srv/stack.ctst`.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No composition was named and the folder has none.
    #[error("find a .ctst file in {}: there is none", folder.display())]
    NoFile {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// No composition was named and the folder has several.
    #[error("choose a .ctst file in {}: there are {}", folder.display(), names.join(", "))]
    ManyFiles {
        /// Where it was looked for.
        folder: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// A composition file that no one would write by hand.
    #[error("read {}: {size} bytes exceed the limit of {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// State that belongs to somebody else, or that others can change.
    #[error("use {}: {problem}", path.display())]
    Untrusted {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A path leaves, by a link, a folder that a component can write.
    #[error("use {}: it leads to {} by a link in {}, which component {component} can write", path.display(), to.display(), folder.display())]
    Led {
        /// As its author named it.
        path: PathBuf,
        /// Where it leads.
        to: PathBuf,
        /// What the component can write.
        folder: PathBuf,
        /// Which component.
        component: String,
    },
    /// State of a newer ctst.
    #[error("read {}: its schema {found} is newer than the {known} this ctst knows", path.display())]
    NewerState {
        /// The record.
        path: PathBuf,
        /// Its schema version.
        found: u64,
        /// The newest version understood.
        known: u64,
    },
    /// `containust.lock` is not what `ctst lock` writes.
    #[error("read {}: {problem}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Something that is only done with bundles.
    #[error("compare {} with the digest of a bundle: it is none", file.display())]
    NoBundle {
        /// The file.
        file: PathBuf,
    },
    /// Something that is not done with bundles.
    #[error("change {}: it is a bundle, in which everything stands fast", file.display())]
    IsBundle {
        /// The file.
        file: PathBuf,
    },
    /// Components that wait for each other.
    #[error("order the components: {} wait for each other", circle.join(" -> "))]
    Circle {
        /// The circle, its first name repeated at the end.
        circle: Vec<String>,
    },
    /// A name that the composition does not have.
    #[error("find component {name}: the project has {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    UnknownComponent {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Secrets that cannot be had.
    #[error("find secrets: {}", problems.iter().map(|(name, problem)| format!("{name}: {problem}")).collect::<Vec<_>>().join("; "))]
    Secrets {
        /// Their names, and why not.
        problems: Vec<(String, String)>,
        /// Those of them that no SECRET gives a source and that are at none of the usual places.
        absent: Vec<String>,
    },
    /// A volume that does not exist.
    #[error("find volume {name}: the project has {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    UnknownVolume {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A volume that containers have.
    #[error("remove volume {name}: {}", if by.is_empty() { "it is being made".to_owned() } else { format!("{} has it", by.join(", ")) })]
    VolumeInUse {
        /// The volume.
        name: String,
        /// Components of which there is a container with it.
        by: Vec<String>,
    },
    /// A value that the language would have refused, from a caller of the SDK.
    #[error("component {component}: {problem}")]
    Invalid {
        /// The component.
        component: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A host path of a component cannot be used.
    #[error("component {component}: open {}: {source}", path.display())]
    Source {
        /// The component.
        component: String,
        /// The host path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An image could not be looked up or imported.
    #[error("component {component}: {problem}")]
    Image {
        /// The component.
        component: String,
        /// The image crate's words.
        problem: String,
        /// Its help.
        help: Option<String>,
    },
    /// An image cannot be built as a file says.
    #[error("build {component} from {file}: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Dockerfile {
        /// The component.
        component: String,
        /// The Dockerfile, or the composition where its steps stand there.
        file: String,
        /// What is wrong with it.
        problems: Vec<Problem>,
    },
    /// A step of a build failed.
    #[error("build {component} from {file}: {problem}{}", output.iter().map(|line| format!("\n  {line}")).collect::<String>())]
    Step {
        /// The component.
        component: String,
        /// As above.
        file: String,
        /// Where, and how it ended.
        problem: Box<Problem>,
        /// What it wrote last, line by line.
        output: Vec<String>,
    },
    /// An image cannot be stripped to what its program needs.
    #[error("strip the image of {component}: {problem}{}", output.iter().map(|line| format!("\n  {line}")).collect::<String>())]
    Distroless {
        /// The component.
        component: String,
        /// Why not.
        problem: String,
        /// What its program wrote last, line by line.
        output: Vec<String>,
        /// What to do about it.
        help: Option<String>,
    },
    /// An image that containers were made of is to be removed.
    #[error("remove image {reference}: {} was made of it", users.join(", "))]
    ImageInUse {
        /// The image.
        reference: String,
        /// The components.
        users: Vec<String>,
    },
    /// A composition has errors.
    #[error("see what images {} names: it has errors", file.display())]
    Unchecked {
        /// The file.
        file: PathBuf,
    },
    /// The image store refused something.
    #[error("{0}")]
    Store(Box<containust_image::Error>),
    /// Several components cannot be had.
    #[error("make a plan: {} problems:\n{}", .0.len(), .0.iter().map(told).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Error>),
    /// Writable layers that hold files would be removed, and nobody allowed it.
    #[error("replace or remove {}: what was written into {} would be lost", components.join(", "), if components.len() == 1 { "it" } else { "them" })]
    DataLoss {
        /// Whose layers.
        components: Vec<String>,
    },
    /// A file that is no plan, or none that can be carried out as it stands.
    #[error("read {}: {problem}", path.display())]
    PlanFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What a plan was made from is not as it was.
    #[error("run a plan: {problem} since it was made")]
    PlanStale {
        /// What is otherwise.
        problem: String,
    },
    /// The kernel did not let us give up rights.
    #[error("give up rights that it does not need: {problem}")]
    Confine {
        /// Its answer.
        problem: String,
    },
    /// There is no supervisor to ask.
    #[error("ask the project's supervisor: nothing of {} is running", project.display())]
    NotRunning {
        /// The project's folder.
        project: PathBuf,
    },
    /// A supervisor of another version runs the project.
    #[error("ask the project's supervisor: it is ctst {theirs}, this is ctst {ours}")]
    OtherVersion {
        /// Its version.
        theirs: String,
        /// Our version.
        ours: String,
    },
    /// A frame that breaks the protocol.
    #[error("talk to the project's supervisor: {problem}")]
    Protocol {
        /// What was wrong.
        problem: String,
    },
    /// The supervisor's socket closed in the middle of something.
    #[error("talk to the project's supervisor: it ended (see {})", log.display())]
    Lost {
        /// Its own log.
        log: PathBuf,
    },
    /// `ctst-shim` is not there.
    #[error("find ctst-shim: it is neither {} nor /usr/libexec/ctst/ctst-shim", beside.display())]
    NoShim {
        /// The place beside the running executable.
        beside: PathBuf,
    },
    /// The kernel refused the project's namespaces.
    #[error("make the project's sandbox: {problem}")]
    NoSandbox {
        /// What was refused.
        problem: String,
        /// The setting of this host that does it, where that can be seen.
        help: String,
    },
    /// This host cannot hold a limit that a component asks for.
    #[error("component {component}: limit its {limits}: {problem}")]
    Limit {
        /// The component.
        component: String,
        /// Names of the limits, as the file has them.
        limits: String,
        /// What is missing: the controller, or the right to use it.
        problem: String,
        /// What would give it.
        help: String,
    },
    /// systemd did not make a scope in which limits can hold.
    #[error("start the project in a scope of its own: {problem}")]
    NoScope {
        /// What `systemd-run` said.
        problem: String,
    },
    /// A network has IPv6, and the kernel has none.
    #[error(
        "give {component} an IPv6 address on the network {network}: this kernel has no IPv6 (no /proc/sys/net/ipv6)"
    )]
    NoIpv6 {
        /// Of the component.
        component: String,
        /// Of the network.
        network: String,
    },
    /// A network has a way out of the project, and the program for it is not there.
    #[error(
        "give the project a way out, which a network with `internal = false` has: passt is not installed{}",
        if *.slirp4netns { ", and slirp4netns, which is, keeps this host's /run and its sockets in reach, and is not used" } else { "" }
    )]
    NoEgress {
        /// The other program for it is there.
        slirp4netns: bool,
    },
    /// A network has a way out of the project, and the program for it does not work here.
    #[error("give the project a way out: {problem}")]
    Egress {
        /// What it said.
        problem: String,
    },
    /// The host's policy cannot be read, or is not believed, so that no container starts.
    #[error("read {POLICY}: {problem}")]
    Policy {
        /// What is wrong, with its line, and what mends it.
        problem: String,
    },
    /// The host's policy forbids what a component asks for.
    #[error("{}{reasons}", component.as_ref().map(|name| format!("component {name}: ")).unwrap_or_default())]
    Denied {
        /// The component; none: any.
        component: Option<String>,
        /// Every reason, as the shim would say it.
        reasons: String,
    },
    /// A port that the kernel keeps from users cannot be had.
    #[error("publish {place} for {component}: {problem}")]
    LowPort {
        /// The component.
        component: String,
        /// Which.
        place: HostPort,
        /// Why not.
        problem: String,
        /// What would give it.
        help: String,
    },
    /// The sandbox or a container could not be made.
    #[error("{0}")]
    Sandbox(String),
    /// Reported by the supervisor.
    #[error("{}", .0.message)]
    Reported(Report),
}

impl Error {
    /// Stable code: a script may depend on it, and `ctst explain` knows it.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Io { .. } => "S0101",
            Self::NoFile { .. } => "S0102",
            Self::ManyFiles { .. } => "S0103",
            Self::TooLarge { .. } => "S0104",
            Self::Untrusted { .. } => "S0105",
            Self::Led { .. } => "S0109",
            Self::NewerState { .. } => "S0106",
            Self::Lock { .. } => "S0108",
            Self::NoBundle { .. } | Self::IsBundle { .. } => "S0110",
            Self::Circle { .. } => "S0201",
            Self::UnknownComponent { .. } => "S0202",
            Self::Invalid { .. } => "S0203",
            Self::Source { .. } => "S0204",
            Self::Image { .. } => "S0205",
            Self::UnknownVolume { .. } => "S0206",
            Self::VolumeInUse { .. } => "S0207",
            Self::ImageInUse { .. } => "S0208",
            Self::Unchecked { .. } => "S0209",
            Self::Store(error) => error.code(),
            Self::Secrets { .. } => "S0210",
            Self::Dockerfile { .. } => "S0211",
            Self::Step { .. } => "S0212",
            Self::Distroless { .. } => "S0213",
            Self::Several(_) => "S0601",
            Self::DataLoss { .. } => "S0602",
            Self::PlanFile { .. } => "S0603",
            Self::PlanStale { .. } => "S0604",
            Self::Confine { .. } => "S0407",
            Self::NotRunning { .. } => "S0301",
            Self::OtherVersion { .. } => "S0302",
            Self::Protocol { .. } => "S0303",
            Self::Lost { .. } => "S0304",
            Self::NoShim { .. } => "S0401",
            Self::Sandbox(_) => "S0402",
            Self::NoSandbox { .. } => "S0406",
            Self::Limit { .. } => "S0407",
            Self::NoScope { .. } => "S0408",
            Self::NoEgress { .. } | Self::Egress { .. } => "S0411",
            Self::NoIpv6 { .. } => "S0413",
            Self::Policy { .. } => "S0409",
            Self::Denied { .. } => "S0410",
            Self::LowPort { .. } => "S0501",
            Self::Reported(report) => &report.code,
        }
    }

    /// One thing that fixes it, where there is one.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NoFile { .. } => Some("name the file: ctst -f FILE COMMAND".to_owned()),
            Self::ManyFiles { names, .. } => Some(format!("name one: ctst -f {} COMMAND", names[0])),
            Self::Untrusted { path, .. } => {
                let path = path.display();
                Some(format!("make it yours alone (chown $(id -u) {path}; chmod 700 {path}); or look into it, and remove it if it is a stranger's"))
            }
            Self::Led { to, .. } => {
                Some(format!("see who made the link; if it is meant, name {} itself", to.display()))
            }
            Self::NewerState { .. } => Some("use the ctst that wrote it".to_owned()),
            Self::Lock { path, .. } => {
                Some(format!("take {} from version control, or remove it and run: ctst lock", path.display()))
            }
            Self::NoBundle { .. } => Some("name the bundle, or leave out --sha256".to_owned()),
            Self::IsBundle { .. } => Some("do it where the composition is, and bundle that again".to_owned()),
            Self::Source { source, .. } if source.kind() == io::ErrorKind::InvalidData => Some("write it in UTF-8".to_owned()),
            Self::Source { path, .. } => Some(format!("create {}, or correct the path", path.display())),
            Self::Image { help, .. } | Self::Distroless { help, .. } => help.clone(),
            Self::Step { problem, .. } => problem.help.clone(),
            Self::Dockerfile { problems, .. } => problems.iter().find_map(|problem| problem.help.clone()),
            Self::ImageInUse { users, .. } => Some(format!("first: ctst stop {0} && ctst rm {0}", users.join(" "))),
            Self::Unchecked { .. } => Some("see them: ctst check".to_owned()),
            Self::Store(error) => error.help(),
            Self::NoSandbox { help, .. } | Self::Limit { help, .. } | Self::LowPort { help, .. } => Some(help.clone()),
            Self::NoScope { .. } => {
                Some("see whether systemd serves this user: systemctl --user status; or do without: limits = \"best-effort\"".to_owned())
            }
            Self::PlanFile { .. } | Self::PlanStale { .. } => Some("plan again: ctst plan -o FILE".to_owned()),
            Self::DataLoss { .. } => {
                let help = "copy out what matters while it runs (ctst cp; to start one that is stopped, undo what changed), then \
                            allow it: --allow-destroy";
                Some(help.to_owned())
            }
            Self::NotRunning { .. } => Some("start it: ctst run -d".to_owned()),
            Self::OtherVersion { .. } => {
                Some("stop the project with the ctst that started it, then run it again".to_owned())
            }
            Self::Secrets { absent, .. } => (!absent.is_empty()).then(|| {
                let given: String = absent.iter().map(|name| format!("; cat > .containust/secrets/{name}")).collect();
                format!("give {}: (umask 077; mkdir -p .containust/secrets{given})", absent.join(", "))
            }),
            Self::VolumeInUse { by, .. } if !by.is_empty() => {
                Some(format!("remove them first: ctst stop {0} && ctst rm {0}", by.join(" ")))
            }
            Self::NoShim { .. } => Some("install ctst-shim beside ctst".to_owned()),
            Self::Egress { .. } => Some("mend what it says, or go without: ctst run --offline".to_owned()),
            Self::NoEgress { .. } => Some("install it: apt install passt; or let the network have no way out: internal = true".to_owned()),
            Self::NoIpv6 { .. } => Some(
                "boot it without ipv6.disable=1, or leave `ipv6` and the IPv6 subnet out of its NETWORK".to_owned(),
            ),
            Self::Sandbox(_) => Some("see what is missing: ctst doctor".to_owned()),
            Self::Reported(report) => report.help.clone(),
            Self::Io { .. }
            | Self::TooLarge { .. }
            | Self::Circle { .. }
            | Self::UnknownComponent { .. }
            | Self::UnknownVolume { .. }
            | Self::VolumeInUse { .. }
            | Self::Invalid { .. }
            | Self::Several(_)
            | Self::Policy { .. }
            | Self::Denied { .. }
            | Self::Confine { .. }
            | Self::Protocol { .. }
            | Self::Lost { .. } => None,
        }
    }

    /// Exit code of `ctst` for it (`containust_shared::exit`).
    #[must_use]
    pub fn exit(&self) -> i32 {
        match self {
            Self::Reported(report) => report.exit,
            _ => exit::TOOL,
        }
    }

    /// The same as data.
    #[must_use]
    pub fn report(&self) -> Report {
        Report { code: self.code().to_owned(), message: self.to_string(), help: self.help(), exit: self.exit() }
    }

    /// One error of all; `None` if there is none.
    pub(crate) fn several(mut errors: Vec<Self>) -> Option<Self> {
        match errors.len() {
            0 | 1 => errors.pop(),
            _ => Some(Self::Several(errors)),
        }
    }

    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }

    pub(crate) fn protocol(problem: impl Into<String>) -> Self {
        Self::Protocol { problem: problem.into() }
    }
}

/// An error among others, with its code and its way out on the same line.
fn told(error: &Error) -> String {
    let help = error.help().map(|help| format!(" ({help})")).unwrap_or_default();
    format!("{}: {error}{help}", error.code())
}

/// The SDK's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names what was being done when the kernel said no.
pub(crate) trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::io(what(), source))
    }
}
