//! What a container may do: as tables, the capabilities its root starts with and the system calls it can make, each with a
//! reason; and what an administrator says of it, with the verdict on a container. Nothing here acts: the shim does what this
//! says.

#![forbid(unsafe_code)]
// Linked into the shim, where nothing that somebody sends may end in a panic or be skipped.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::let_underscore_must_use
)]

pub mod capabilities;
pub mod conf;
pub mod judge;
pub mod seccomp;
pub mod subid;
pub mod trust;
pub mod window;
