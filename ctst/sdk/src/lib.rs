//! Containust for programs: build or load a composition, plan it, run it, watch it, talk to what runs. The `ctst`
//! command line has no door but this crate.
//!
//! ```text
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
//! The surface that is being filled in:
//! ```text
//! containust-sdk: what the CLI gets (all in crate root unless said)
//!
//! fn internal_main() -> Option<i32>      // call FIRST in main, before clap: `ctst supervise PATH`, `ctst worker …`; Some(code) => exit with it
//! Project::locate(Option<&Path>) -> Result<Project>; .file() .folder() -> &Path; .load() -> Result<Loaded{ name: String(file name), source: Vec<u8>, outcome: containust_lang::Outcome }>
//!   .plan(&Composition) -> Result<Plan>; .status() -> Result<Vec<ContainerStatus>>; .log_dir(&str) -> PathBuf (for logs::Reader::open); .store() -> containust_image::Store
//! run::up(&Project, &Composition, &Plan, &Options{wait: bool, only: Vec<String>}, &mut dyn FnMut(Progress)) -> Result<Session>
//!   (no `detach` field: detached = read until Notice::Settled, then drop the session)
//!   Progress::{Importing{component, reference, detail: containust_image::Progress}, Imported{component, reference, notes}}
//! Session: next_event(&mut self) -> Result<Option<Notice>> (blocks; None = the supervisor is gone),
//!   poll_event(&mut self) -> Result<Polled::{Notice(Notice), Empty, End}> (never blocks; call until Empty after fd is readable),
//!   AsFd (poll for reading), stop(&mut self, grace: Duration) -> Result<()>, kill(&mut self) -> Result<()>, listen(&mut self, &mut dyn EventListener) -> Result<i32>
//! enum Notice { Event(Event), Settled{failed: Vec<(String, Report)>}, Over{code: i32} }
//!   // Settled: everything asked for is started (with `wait`: healthy; a component that exited with 0 counts) or failed. Once.
//!   // Over: last container gone; code = exit code for a foreground run.
//! Client::connect(&Project) -> Result<Option<Client>>   // None: nothing runs
//!   .stop(&mut self, names: &[String] (empty = all), grace: Duration, on_event: &mut dyn FnMut(&Event)) -> Result<()>   // returns when they are gone
//!   .exec(self, &ExecRequest{component, argv, env: Vec<(String,String)>, user: Option<String>, workdir: Option<String>, tty: Option<(u16 rows, u16 cols)>}, stdio: [BorrowedFd; 3]) -> Result<ExecSession>
//!        // with tty the three stdio descriptors are not used; ExecSession::master() -> Option<&OwnedFd> is the pty
//!   .stats(&mut self) -> Result<Vec<Stats>>; .status(&mut self) -> Result<Vec<ContainerStatus>>; .attach(self) -> Result<Session>
//! ExecSession: AsFd (readable when there is news), wait(&mut self) -> Result<i32>, try_wait(&mut self) -> Result<Option<i32>>, signal(&mut self, i32) -> Result<()>
//! doctor::examine() -> Vec<doctor::Check{ name, status: doctor::Verdict::{Good,Limited,Bad}, found: String, fix: Option<String> }>
//! Error: code() help() exit() report(); Display
//! ```
#![forbid(unsafe_code)]

pub mod error;
pub mod event;
pub mod plan;
pub mod status;

mod builder;
mod graph;

pub use builder::ContainerBuilder;
pub use containust_lang as lang;
pub use error::{Error, Report, Result};
pub use event::{Event, EventKind, EventListener};
pub use graph::GraphResolver;
pub use plan::{Action, Grant, ImageState, Plan, Step};
pub use status::{ContainerStatus, Health, Published, State, Stats};
