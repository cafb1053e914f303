//! What a container may do, as tables: the capabilities its root starts with and the system calls
//! it can make, each with a reason. Nothing here acts: the shim installs what these tables say.

#![forbid(unsafe_code)]

pub mod capabilities;
pub mod conf;
pub mod seccomp;
