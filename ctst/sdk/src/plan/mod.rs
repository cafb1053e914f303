//! What a run would do. Planning reads and never writes.

pub(crate) mod compare;
pub(crate) mod file;
pub(crate) mod graph;
pub(crate) mod layer;
pub(crate) mod planner;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use containust_image::model::Image;
use containust_lang::model::{Protocol, SecretSource};
use serde::{Deserialize, Serialize};

use crate::project::Loaded;

/// A JSON Schema (draft 2020-12) of [`Plan`] as it is serialised.
#[must_use]
pub fn plan_schema() -> &'static str {
    include_str!("schema.json")
}

/// What `ctst run` would do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The project's name.
    pub project: String,
    /// Per component of the file, in start order; then those to remove.
    pub steps: Vec<Step>,
    /// What the composition is given of the host.
    pub grants: Vec<Grant>,
    /// What is otherwise than the last run left it.
    pub drift: Vec<Drift>,
    /// How user ids will be mapped, such as `range (65536 ids from 100000)`.
    pub ids: String,
    /// What a person should know before it runs.
    pub notes: Vec<String>,
    /// The images that are in the store, by component: what was shown is what a run uses.
    #[serde(skip)]
    pub(crate) found: BTreeMap<String, Arc<Image>>,
    /// What the plan was made from, by component, for a plan that is kept in a file.
    #[serde(skip)]
    pub(crate) state: BTreeMap<String, String>,
}

impl Plan {
    /// Whether a run would change anything.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.steps.iter().any(|step| step.action != Action::Unchanged)
    }

    /// Notes what the composition that it was made from takes of the host, where it changes anything.
    pub fn tell(&mut self, loaded: &Loaded) {
        if self.changes() {
            self.notes.extend(loaded.taken.iter().cloned());
        }
    }
}

/// What happens to one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The component's name.
    pub component: String,
    /// What happens to it.
    pub action: Action,
    /// Why; empty for what is made for the first time or stays as it is.
    pub causes: Vec<Cause>,
    /// Whether its writable layer holds files that would be gone afterwards; not told of [`Action::Unknown`].
    pub data_loss: bool,
    /// Its image; none for a removal.
    pub image: Option<ImageState>,
}

/// Why something happens to a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// What it is about: a property such as `command`, `limits.memory` or `env.NAME`, else `image`, `ports`, `state`,
    /// `record`, `file`, or `dependency`.
    pub field: String,
    /// For a person, such as `db is replaced`.
    pub message: String,
    /// What it was, where that may be shown. Values of the environment, contents of files and whatever secrets stand in are
    /// not.
    pub old: Option<String>,
    /// What it will be, likewise.
    pub new: Option<String>,
    /// Whether this can be changed while the container runs.
    pub in_place: bool,
}

impl Cause {
    /// Something other than a property of the file.
    pub(crate) fn of(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.to_owned(), message: message.into(), old: None, new: None, in_place: false }
    }
}

/// What happens to a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Made for the first time.
    Create,
    /// Started again with its writable layer.
    Start,
    /// Stopped, its writable layer and log removed, made anew.
    Replace,
    /// Stopped and started again with its writable layer, because what it depends on is replaced.
    Restart,
    /// Changed while it runs.
    Update,
    /// Nothing.
    Unchanged,
    /// Stopped and removed, because the file no longer has it.
    Remove,
    /// Known once its image, or that of what it depends on, is imported: whether the content is another than what it was
    /// made from.
    Unknown,
}

impl Action {
    /// The name as shown and as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Replace => "replace",
            Self::Restart => "restart",
            Self::Update => "update",
            Self::Unchanged => "unchanged",
            Self::Remove => "remove",
            Self::Unknown => "unknown",
        }
    }

    /// Whether dependents have to be started again after it.
    pub(crate) fn renews(self) -> bool {
        matches!(self, Self::Replace | Self::Restart)
    }
}

/// Something that is otherwise than the last run left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// The component.
    pub component: String,
    /// What kind of.
    pub kind: DriftKind,
    /// For a person.
    pub message: String,
}

/// A kind of [`Drift`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriftKind {
    /// It was killed from outside, with its supervisor or alone.
    Killed,
    /// Its program ended by itself.
    Exited,
    /// It could not be started.
    Failed,
    /// Its health check fails.
    Unhealthy,
    /// Its record cannot be read, or was written by another supervisor than the one that serves the project.
    Record,
    /// The source of its image has changed since it was imported, or the store no longer has the image.
    Image,
    /// Another process holds a port that it publishes.
    Port,
}

/// Whether an image is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum ImageState {
    /// It is there and matches its source.
    Present {
        /// Its reference.
        reference: String,
        /// `sha256:…` of its content.
        digest: String,
        /// Size of all files in bytes.
        size: u64,
        /// Whether it is read from its archive, which is not unpacked.
        #[serde(default, skip_serializing_if = "is_false")]
        lazy: bool,
    },
    /// It will be imported first.
    Import {
        /// Its reference.
        reference: String,
        /// `sha256:…` that an image of a registry will have, because it is pinned or locked. Without it the registry is asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
        /// Whether it is only indexed, and read from its archive.
        #[serde(default, skip_serializing_if = "is_false")]
        lazy: bool,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Something of the host that a component is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "grant")]
pub enum Grant {
    /// A host path mounted inside.
    Mount {
        /// The component.
        component: String,
        /// The canonical path on the host.
        source: PathBuf,
        /// Where it is seen inside.
        target: String,
        /// Whether it cannot be written.
        readonly: bool,
        /// Whether the container that exists does not have it yet.
        new: bool,
    },
    /// A device of the host that can be opened inside.
    Device {
        /// The component.
        component: String,
        /// The canonical path on the host.
        source: PathBuf,
        /// Where it is seen inside.
        target: String,
        /// Whether the container that exists does not have it yet.
        new: bool,
    },
    /// A port published on the host.
    Publish {
        /// The component.
        component: String,
        /// Address on the host.
        address: IpAddr,
        /// Port on the host.
        host_port: u16,
        /// Port of the container.
        port: u16,
        /// What goes there.
        #[serde(default)]
        protocol: Protocol,
        /// Whether other machines may reach it: the address is not a loopback.
        public: bool,
        /// Whether no run has published it yet for the container that exists.
        new: bool,
    },
    /// A network with a way out of the project: connections of the caller's to whatever this host reaches.
    Egress {
        /// The component.
        component: String,
        /// The network.
        network: String,
        /// Whether the container that exists does not have it yet.
        new: bool,
    },
    /// A capability beyond the usual ones, over the container only.
    Capability {
        /// The component.
        component: String,
        /// Its name without `CAP_`.
        capability: String,
        /// Whether the container that exists does not have it yet.
        new: bool,
    },
    /// A looser filter of system calls than the usual one.
    Filter {
        /// The component.
        component: String,
        /// Its name: `compat`.
        filter: String,
        /// Whether the container that exists does not have it yet.
        new: bool,
    },
    /// A secret that comes from the caller's files or environment, or from a command that is run on the host as the caller.
    Secret {
        /// The component.
        component: String,
        /// The secret's name.
        secret: String,
        /// Where SECRET says that it comes from.
        source: SecretSource,
        /// Whether the component is made for the first time; of a command: always, because every run runs it.
        new: bool,
    },
}

impl Grant {
    /// Whose it is.
    #[must_use]
    pub fn component(&self) -> &str {
        match self {
            Self::Mount { component, .. }
            | Self::Device { component, .. }
            | Self::Publish { component, .. }
            | Self::Egress { component, .. }
            | Self::Capability { component, .. }
            | Self::Filter { component, .. }
            | Self::Secret { component, .. } => component,
        }
    }

    /// Whether it comes with this run.
    #[must_use]
    pub fn is_new(&self) -> bool {
        match self {
            Self::Mount { new, .. }
            | Self::Device { new, .. }
            | Self::Publish { new, .. }
            | Self::Egress { new, .. }
            | Self::Capability { new, .. }
            | Self::Filter { new, .. }
            | Self::Secret { new, .. } => *new,
        }
    }

    /// Whether a person should agree first: new, and writable, a device, reachable from elsewhere, a way out, more of the kernel than usual, or a
    /// command on the host.
    #[must_use]
    pub fn wants_consent(&self) -> bool {
        match self {
            Self::Mount { readonly, new, .. } => *new && !readonly,
            Self::Publish { public, new, .. } => *new && *public,
            Self::Device { new, .. } | Self::Egress { new, .. } => *new,
            Self::Capability { new, .. } | Self::Filter { new, .. } => *new,
            Self::Secret { source, new, .. } => *new && matches!(source, SecretSource::Command(_)),
        }
    }
}
