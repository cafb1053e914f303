//! What a run would do. Planning reads and never writes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use containust_image::model::Image;
use serde::{Deserialize, Serialize};

/// What `ctst run` would do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The project's name.
    pub project: String,
    /// Per component of the file, in start order; then those to remove.
    pub steps: Vec<Step>,
    /// What the composition is given of the host.
    pub grants: Vec<Grant>,
    /// How user ids will be mapped, such as `range (65536 ids from 100000)`.
    pub ids: String,
    /// What a person should know before it runs.
    pub notes: Vec<String>,
    /// The images that are in the store, by component: what was shown is what a run uses.
    #[serde(skip)]
    pub(crate) found: BTreeMap<String, Image>,
}

impl Plan {
    /// Whether a run would change anything.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.steps.iter().any(|step| step.action != Action::Unchanged)
    }
}

/// What happens to one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The component's name.
    pub component: String,
    /// What happens to it.
    pub action: Action,
    /// Why: the differing fields for a replacement, what was seen otherwise. Never values of the environment.
    pub causes: Vec<String>,
    /// Its image; none for a removal.
    pub image: Option<ImageState>,
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
    /// Its published ports change while it runs.
    Update,
    /// Nothing.
    Unchanged,
    /// Stopped and removed, because the file no longer has it.
    Remove,
}

impl Action {
    /// The name as shown and as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Replace => "replace",
            Self::Update => "update",
            Self::Unchanged => "unchanged",
            Self::Remove => "remove",
        }
    }
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
    },
    /// It will be imported first.
    Import {
        /// Its reference.
        reference: String,
    },
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
        /// Whether other machines may reach it: the address is not a loopback.
        public: bool,
        /// Whether it is not published yet.
        new: bool,
    },
}

impl Grant {
    /// Whether a person should agree first: new, and writable or reachable from elsewhere.
    #[must_use]
    pub fn wants_consent(&self) -> bool {
        match self {
            Self::Mount { readonly, new, .. } => *new && !readonly,
            Self::Publish { public, new, .. } => *new && *public,
        }
    }
}
