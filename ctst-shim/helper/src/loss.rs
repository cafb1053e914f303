//! Why the capabilities of this file did not arrive. The kernel takes them away without a word (`execve(2)`,
//! `capabilities(7)`), and a mode with less isolation must not follow from that by itself.

use containust_core::capability;
use containust_shared::protocol::Failure;
use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::failure::Step;

/// Everything of the host: the initial user namespace (`user_namespaces(7)`).
const ALL: [&str; 3] = ["0", "0", "4294967295"];

/// A program whose file has capabilities.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Of its file.
    pub name: &'static str,
    /// Its capabilities, each with its name and what it is for.
    pub capabilities: &'static [(u64, &'static str, &'static str)],
}

/// The one cause, with what changes it. `held`: what is permitted still. `in_file`: the file has capabilities.
///
/// # Errors
/// The kernel's.
pub fn cause(program: &Program, held: u64, in_file: bool) -> Result<String, Failure> {
    let Program { name: own, capabilities } = program;
    let lost = capabilities.iter().filter(|(mask, ..)| held & mask == 0).map(|(_, name, _)| *name);
    let names = lost.collect::<Vec<_>>().join(", ");
    if !in_file {
        let all = capabilities.iter().map(|(_, name, _)| *name).collect::<Vec<_>>().join(",");
        return Ok(format!("{own} has no file capabilities; set them as root: setcap {all}+p {own}"));
    }
    if rustix::thread::no_new_privs().step("read", "no_new_privs")? {
        return Ok(format!(
            "the caller has no_new_privs, by which {own} lost {names}; start ctst outside of what sets it \
             (NoNewPrivileges= of a service, a sandbox)"
        ));
    }
    let mount = statvfs("/proc/self/exe").step("inspect the mount of", "/proc/self/exe")?;
    if mount.f_flag.contains(StatVfsMountFlags::NOSUID) {
        return Ok(format!(
            "{own} is on a file system mounted nosuid, by which it lost {names}; install it on another, such as /usr"
        ));
    }
    if !is_of_the_host()? {
        return Ok(format!(
            "ctst runs in a user namespace, in which {own} has no {names}; start it outside of the container"
        ));
    }
    for (mask, name, _) in *capabilities {
        if !capability::is_bounded_in(mask.trailing_zeros()).step("read the bounding set", "")? {
            return Ok(format!(
                "the caller's bounding set lacks {name}; start ctst outside of what lowers it (CapabilityBoundingSet= of a \
                 service, a container)"
            ));
        }
    }
    if held != 0 {
        return Ok(format!("the file capabilities of {own} lack {names}; reinstall it"));
    }
    Ok(format!("{own} lost {names}, as it does under a tracer (strace, gdb); start ctst without"))
}

/// Whether this process is in the host's user namespace.
///
/// # Errors
/// The kernel's.
pub fn is_of_the_host() -> Result<bool, Failure> {
    #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
    let map = std::fs::read_to_string("/proc/self/uid_map").step("read", "/proc/self/uid_map")?;
    Ok(map.split_ascii_whitespace().eq(ALL))
}
