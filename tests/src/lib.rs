//! Containust from outside: everything here spawns the programs that a person would, as the user that a person would
//! be, and looks at what the kernel and other programs see.
//!
//! `make test` builds the programs and makes the users first. Called by root, tests run as `ctst-test` (which has
//! subordinate ids) and `ctst-single` (which has none); called by anybody else, as that user, and what needs root says
//! on standard error that it was skipped.
#![forbid(unsafe_code)]

pub mod archive;
mod caller;
pub mod escapes;
pub mod probe;
mod project;
mod raw;
pub mod registry;
// Of which registers make up a system call.
#[cfg(target_arch = "x86_64")]
pub mod tracer;
mod world;

pub use caller::Caller;
pub use project::{
    Done, Project, Running, eventually, finish, free_port, get, install_strict, programs, strict_programs, target,
    weakened,
};
pub use raw::RawShim;
pub use world::{Asked, World, inside};
