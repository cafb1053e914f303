//! What both sides of the privilege boundary agree on: requests and replies of the shim, the codec with its
//! limits, names and exit codes. This crate does no input or output.
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

pub mod exit;
pub mod names;
pub mod port;
pub mod protocol;
pub mod wire;
