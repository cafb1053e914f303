//! What `ctst-probe report` says of the inside of a container, for both ends of the pipe.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One process's view of where it is, and what the kernel answers to attempts to leave it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Own pid.
    pub pid: i32,
    /// Fields of `/proc/self/status`, by name, such as `CapEff` or `NoNewPrivs` (`proc_pid_status(5)`).
    pub status: BTreeMap<String, String>,
    /// `/proc/self/limits` by name: soft and hard limit.
    pub limits: BTreeMap<String, (String, String)>,
    /// Lines of `/proc/self/uid_map`, in three numbers.
    pub uid_map: Vec<Vec<u32>>,
    /// Lines of `/proc/self/gid_map`, in three numbers.
    pub gid_map: Vec<Vec<u32>>,
    /// Links of `/proc/self/ns`.
    pub namespaces: BTreeMap<String, String>,
    /// `/proc/self/mountinfo`, in its order.
    pub mounts: Vec<Mount>,
    /// Open descriptors and what they are; the one that lists them is left out.
    pub descriptors: BTreeMap<i32, String>,
    /// Everything below `/dev`: path, and type with device number or link target.
    pub devices: BTreeMap<String, String>,
    /// Names of network interfaces.
    pub interfaces: Vec<String>,
    /// Pids that `/proc` shows.
    pub processes: Vec<i32>,
    /// Host name.
    pub hostname: String,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Arguments.
    pub args: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// What was tried, and the error number: 0 is a success.
    pub attempts: BTreeMap<String, i32>,
}

/// One line of `mountinfo`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mount {
    /// Where.
    pub target: String,
    /// Type of file system.
    pub kind: String,
    /// Options of this mount.
    pub options: Vec<String>,
    /// Which part of the file system.
    pub root: String,
}

impl Report {
    /// A capability set of `/proc/self/status`, such as `CapEff`.
    ///
    /// # Panics
    /// If there is no such set.
    #[must_use]
    pub fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(&self.status[set], 16).expect("capability sets are hexadecimal")
    }

    /// The mount that covers exactly this path, the last one if several do.
    #[must_use]
    pub fn mount(&self, target: &str) -> Option<&Mount> {
        self.mounts.iter().rev().find(|mount| mount.target == target)
    }
}
