//! Images: where root file systems come from and where they are kept.
//!
//! A [`Store`] holds unpacked root file systems by the digest of their content, and a catalogue that knows by which
//! reference each was imported. Nothing here runs with a privilege or starts a process: what is better done in a container,
//! such as unpacking a stranger's archive, a [`Runner`] does.
#![forbid(unsafe_code)]

mod archive;
pub mod build;
mod bundle;
mod catalogue;
mod copy;
mod distroless;
mod duplicate;
mod elf;
mod error;
mod flatten;
mod hash;
mod host;
mod lazy;
mod ldcache;
mod lookup;
pub mod model;
mod pack;
pub mod registry;
mod remove;
mod source;
mod store;
mod tree;
mod unpack;
mod worker;

pub use archive::Limits;
pub use bundle::{Bundle, Carried, Fetched, Imported, Manifest, Packed, Read, Written, member_of};
pub use distroless::{Dropped, Kept, StripJob, Stripped};
pub use duplicate::copy_folder;
pub use error::Error;
pub use flatten::flatten;
pub use hash::Algorithm;
pub use lazy::{IndexJob, Indexed, Lazy, serve};
pub use lookup::has;
pub use remove::remove_tree;
pub use source::{Request, Source, name};
pub use store::{Damage, Fetch, How, Progress, Store, Usage};
pub use unpack::{Direct, Layer, Made, Owners, Report, Runner, UnpackJob};
pub use worker::{Answer, Job, read_answer, worker_main};
