//! Requests and replies of `ctst-port`, as those of [`crate::protocol`]: records on descriptor [`crate::protocol::CHANNEL_FD`].
//! It is TCP that it is for, so that nothing in a request says so.

use std::net::IpAddr;

use bincode::{Decode, Encode};

use crate::protocol::Failure;

/// Their version. Both ends are built together; another version is refused.
pub const VERSION: u32 = 1;
/// The first port that `ctst-port` does not bind: those below are the ones that the kernel keeps from users by default
/// (`net.ipv4.ip_unprivileged_port_start`, `ip(7)`).
pub const LIMIT: u16 = 1024;

/// The one request. No descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ToPort {
    /// BIND: a port of this host to listen on.
    Bind {
        /// [`VERSION`] of the sender.
        version: u32,
        /// An address of the host, or the one that stands for all of its family.
        address: IpAddr,
        /// From 1 on, below [`LIMIT`].
        port: u16,
    },
    /// CHECK: whether it would bind a port that the policy grants, without binding one.
    Check {
        /// [`VERSION`] of the sender.
        version: u32,
    },
}

/// The one reply.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum FromPort {
    /// One descriptor: a TCP socket that listens there, non-blocking. One of IPv6 takes IPv6 only.
    Listening,
    /// CHECK found nothing in the way.
    Able,
    /// The host's policy does not grant it.
    Denied {
        /// Why, for a person.
        reasons: String,
    },
    /// It could not be had.
    Failed(Failure),
}
