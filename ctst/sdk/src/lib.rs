//! Containust for programs: build or load a composition, plan it, run it, watch it, talk to what runs. The `ctst`
//! command line has no door but this crate.
//!
//! ```no_run
//! use containust_sdk::{Options, Project, run};
//!
//! let project = Project::locate(None)?;
//! let loaded = project.load()?;
//! let composition = loaded.outcome.composition.expect("an error-free file");
//! let plan = project.plan(&composition)?;
//! let mut session = run::up(&project, &composition, &plan, &Options::default(), &mut |_| {})?;
//! while let Some(notice) = session.next_event()? {
//!     println!("{notice:?}");
//! }
//! # Ok::<(), containust_sdk::Error>(())
//! ```
//!
//! A program that embeds this crate calls [`internal_main`] first in its `main`: the supervisor and its workers are
//! the same executable.
#![forbid(unsafe_code)]

pub mod codes;
pub mod doctor_net;
pub mod error;
pub mod event;
pub mod logs;
pub mod projects;
pub mod run;
pub mod status;

mod builder;
mod bundle;
mod down;
mod egress;
mod host;
mod images;
mod ipc;
mod plan;
mod processes;
mod project;
mod record;
mod rights;
mod secrets;
mod shim;
mod spec;
mod supervisor;
mod volumes;
mod workers;

pub use builder::ContainerBuilder;
pub use bundle::Bundled;
pub use containust_image as image;
pub use containust_lang as lang;
pub use down::{Down, Downed};
pub use error::{Error, Report, Result};
pub use event::{Event, EventKind, EventListener};
pub use host::confine::no_writes;
pub use host::doctor;
pub use host::launch::{is_offline, kept_offline, must_be_offline, offline};
pub use images::Progress;
pub use images::imports::Fetching;
pub use images::pull::{Pulled, of_registries};
pub use images::registry::{login, logout};
pub use images::stock::{Removed, Verified};
pub use ipc::client::{Client, ExecSession};
pub use plan::file::SavedPlan;
pub use plan::graph::GraphResolver;
pub use plan::planner::Inspection;
pub use plan::{Action, Cause, Drift, DriftKind, Grant, ImageState, Plan, Step, plan_schema};
pub use processes::Process;
pub use project::{Identity, Loaded, Project};
pub use projects::RunningProject;
pub use run::{ExecRequest, Notice, Options, Polled, Session};
pub use status::{ContainerStatus, Health, Measured, Published, State, Stats, Unpacked};
pub use volumes::VolumeStatus;
pub use workers::transfer;

/// Runs this process as a supervisor or a worker where it was started as one, and returns its exit code. To be called
/// before anything else: both must be small and quick to start.
#[must_use]
pub fn internal_main() -> Option<i32> {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next()?;
    if verb == supervisor::VERB {
        let file = arguments.next().unwrap_or_default();
        let scoped = arguments.next().is_some_and(|word| word == supervisor::SCOPED);
        Some(supervisor::main(std::path::Path::new(&file), scoped))
    } else if verb == egress::VERB {
        let program = arguments.next().unwrap_or_default();
        let resolver = arguments.next().unwrap_or_default();
        Some(egress::main(std::path::Path::new(&program), &resolver.to_string_lossy()))
    } else if verb == workers::VERB {
        Some(workers::main(&arguments.collect::<Vec<_>>()))
    } else if verb == images::registry::VERB {
        Some(images::registry::main())
    } else {
        None
    }
}

/// Removes control groups of the caller's projects that ended, where in strict mode only the shim can.
///
/// # Errors
/// The shim's, and [`Error::Policy`].
pub fn tidy() -> Result<()> {
    host::cgroup::collect()
}
