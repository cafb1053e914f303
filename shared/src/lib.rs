//! What both sides of the privilege boundary agree on: requests and replies of the shim, the codec with its
//! limits, names and exit codes. This crate does no input or output.
#![forbid(unsafe_code)]

pub mod exit;
pub mod names;
pub mod protocol;
pub mod wire;
