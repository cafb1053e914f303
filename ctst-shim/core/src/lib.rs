//! Safe, typed functions over what the kernel offers for isolation: namespaces, mounts, capabilities, seccomp,
//! landlock, network links. This crate knows nothing of requests, plans or policy, and decides nothing.
//!
//! `unsafe` is in [`sys`] only.
#![deny(unsafe_code)]

pub mod capability;
pub mod channel;
pub mod entry;
pub mod ids;
pub mod landlock;
pub mod link;
pub mod lock;
pub mod mount;
pub mod sys;
pub mod trusted;
pub mod weak;
