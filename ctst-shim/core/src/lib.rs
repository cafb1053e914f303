//! Safe, typed functions over what the kernel offers for isolation: namespaces, mounts, capabilities, seccomp,
//! landlock, network links and what they forward. This crate knows nothing of requests, plans or policy, and decides nothing.
//!
//! `unsafe` is in [`sys`] only.
#![deny(unsafe_code)]
// Linked into the shim, where nothing that somebody sends may end in a panic or be skipped.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::let_underscore_must_use,
    clippy::disallowed_methods,
    clippy::disallowed_types
)]

pub mod capability;
pub mod channel;
pub mod entry;
pub mod ids;
pub mod landlock;
pub mod link;
pub mod lock;
pub mod mount;
pub mod nat;
mod netlink;
pub mod sys;
pub mod trusted;
pub mod weak;
