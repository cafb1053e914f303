//! Requests and replies of `ctst-port`, as those of [`crate::protocol`]: records on descriptor [`crate::protocol::CHANNEL_FD`].

use std::net::IpAddr;

use bincode::{Decode, Encode};

use crate::protocol::Failure;

/// Their version. Both ends are built together; another version is refused.
pub const VERSION: u32 = 2;
/// The first port that `ctst-port` does not bind: those below are the ones that the kernel keeps from users by default
/// (`net.ipv4.ip_unprivileged_port_start`, `ip(7)`).
pub const LIMIT: u16 = 1024;

/// The one request. No descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ToPort {
    /// BIND: a port of this host.
    Bind {
        /// [`VERSION`] of the sender.
        version: u32,
        /// An address of the host, or the one that stands for all of its family.
        address: IpAddr,
        /// From 1 on, below [`LIMIT`].
        port: u16,
        /// UDP instead of TCP.
        udp: bool,
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
    /// One descriptor: a socket that is bound there, non-blocking; of TCP it listens. One of IPv6 takes IPv6 only.
    Bound,
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
