//! What happens to components, as data: for terminals, for programs and for whoever embeds the SDK.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Report;

/// Something happened to a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// The component's name.
    pub component: String,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum EventKind {
    /// It waits for these components.
    Waiting {
        /// Names that are not up yet.
        on: Vec<String>,
    },
    /// Its container is being made.
    Starting,
    /// It starts although this component, which it can do without, is not up.
    Without {
        /// The other component.
        on: String,
        /// Why that is not up.
        why: Report,
    },
    /// Its program runs.
    Started,
    /// Its health check succeeded for the first time, or again after failures.
    Healthy,
    /// Its health check failed as often as `retries` says.
    Unhealthy {
        /// The last probe's output or error.
        output: String,
    },
    /// Its program ended by itself.
    Exited {
        /// Exit code as shells give it.
        code: i32,
    },
    /// It will be started again after this time.
    Restarting {
        /// The pause.
        #[serde(rename = "in_ms", with = "millis")]
        after: Duration,
        /// Count of restarts, this one included.
        count: u32,
    },
    /// A limit of it does not hold on this host, and its author is content with that.
    Unheld {
        /// Its name in the file.
        limit: String,
        /// Why.
        problem: String,
    },
    /// It was refused a process, and may be again and again.
    ForksRefused {
        /// The most that it may have.
        limit: u64,
    },
    /// The kernel killed its processes, because they needed more memory than there is for them.
    OutOfMemory {
        /// What it may have, in bytes; none: this host itself has no more.
        limit: Option<u64>,
    },
    /// Nothing leaves its networks that have a way out, until [`EventKind::EgressBack`].
    CutOff {
        /// Why.
        why: String,
    },
    /// What leaves its networks gets through again.
    EgressBack,
    /// Clients of one of its published ports wait to be connected. Told once a minute at most, however long it lasts.
    ClientsWait {
        /// The place on this host, such as `127.0.0.1:8080`.
        place: String,
        /// Why.
        why: String,
    },
    /// The archive that it is read from is being unpacked in the background.
    Unpacking,
    /// That is done: its next container is made of layers.
    Unpacked,
    /// That was not done, or not to the end. It goes on to be read from its archive.
    NotUnpacked {
        /// Why.
        why: String,
    },
    /// It was frozen.
    Paused,
    /// It goes on.
    Unpaused,
    /// It has other properties and runs on.
    Updated {
        /// Which, such as `restart` or `limits.memory`.
        fields: Vec<String>,
    },
    /// It runs on as it was, because something that was wanted of it could not be done.
    Unchanged(Report),
    /// It could not be started, or will not be because what it needs is not up.
    Failed(Report),
    /// It is being stopped.
    Stopping {
        /// From asking it to end to SIGKILL. It is asked once those that need it are gone.
        #[serde(rename = "grace_ms", with = "millis")]
        grace: Duration,
    },
    /// It was stopped by a person or because the file no longer has it.
    Stopped {
        /// Exit code of its program, where it ended by itself within the grace.
        code: Option<i32>,
    },
    /// Its container, its writable layer and its log are gone.
    Removed,
}

/// For programs that embed the SDK: is told of every event of a run, in order.
///
/// ```
/// use containust_sdk::{Event, EventKind, EventListener};
///
/// struct Count(usize);
/// impl EventListener for Count {
///     fn on_event(&mut self, event: &Event) {
///         if matches!(event.kind, EventKind::Started) {
///             self.0 += 1;
///         }
///     }
/// }
/// let mut count = Count(0);
/// count.on_event(&Event { at: 0, component: "web".into(), kind: EventKind::Started });
/// assert_eq!(count.0, 1);
/// ```
pub trait EventListener {
    /// Called once for each event, from the thread that drives the session.
    fn on_event(&mut self, event: &Event);
}

impl<F: FnMut(&Event)> EventListener for F {
    fn on_event(&mut self, event: &Event) {
        self(event);
    }
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
