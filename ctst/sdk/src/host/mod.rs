//! What this host gives: ids, control groups, kernel settings, folders to be mounted, and what of it is missing.

pub(crate) mod cgroup;
pub(crate) mod confine;
pub(crate) mod devices;
pub mod doctor;
pub(crate) mod fuse;
pub(crate) mod getsubids;
pub(crate) mod ids;
pub(crate) mod kernel;
pub(crate) mod launch;
pub(crate) mod listening;
pub(crate) mod low_port;
pub(crate) mod places;
pub(crate) mod policy;
pub(crate) mod strict;
pub(crate) mod ways;
