//! Images that are built: from a Dockerfile, or from steps.
//!
//! What is done is found without a file being touched ([`Recipe`]); where files come from is found within a build's folder
//! ([`Folder`]); what a step does happens in containers, which whoever calls has; and what it wrote becomes a layer of the
//! store, kept under a key of everything that it depends on ([`Building`]).

mod dockerfile;
mod ignore;
mod kept;
mod pick;
mod place;
mod recipe;
mod seal;
mod words;

pub use dockerfile::Problem;
pub use ignore::Ignore;
pub use kept::{Building, Built, Kept};
pub use pick::{Folder, Picked, is_one_file, pour};
pub use place::{GatherJob, PlaceJob};
pub use recipe::{Base, Cache, Copy, Evaluated, Native, Origin, Recipe, SCRIPT, Stage, Step, Work};
pub use seal::{SealJob, Sealed};

pub(crate) use kept::prune;
pub(crate) use place::{gather, make_folder, own, place};
pub(crate) use seal::seal;
