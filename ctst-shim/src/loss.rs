//! Why the capabilities of this file did not arrive. The kernel takes them away without a word (`execve(2)`,
//! `capabilities(7)`), and a mode with less isolation must not follow from that by itself.

use containust_core::capability;
use containust_policy::window::{CAPABILITIES, REASONS};
use containust_shared::protocol::Failure;
use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::failure::{Step, refusal};

/// Everything of the host: the initial user namespace (`user_namespaces(7)`).
const ALL: [&str; 3] = ["0", "0", "4294967295"];

/// The one cause, with what changes it.
pub(crate) fn explain(held: u64, in_file: bool) -> Failure {
    match cause(held, in_file) {
        Ok(cause) => refusal(&format!("run in strict mode: {cause}"), ""),
        Err(failure) => failure,
    }
}

fn cause(held: u64, in_file: bool) -> Result<String, Failure> {
    let names: Vec<&str> = REASONS.iter().filter(|(mask, ..)| held & mask == 0).map(|(_, name, _)| *name).collect();
    let names = names.join(", ");
    if !in_file {
        return Ok("ctst-shim has no file capabilities; set them as root: \
                   setcap cap_sys_admin,cap_setuid,cap_setgid+p ctst-shim"
            .to_owned());
    }
    if rustix::thread::no_new_privs().step("read", "no_new_privs")? {
        return Ok(format!(
            "the caller has no_new_privs, by which ctst-shim lost {names}; start ctst outside of what sets it \
             (NoNewPrivileges= of a service, a sandbox)"
        ));
    }
    let mount = statvfs("/proc/self/exe").step("inspect the mount of", "/proc/self/exe")?;
    if mount.f_flag.contains(StatVfsMountFlags::NOSUID) {
        return Ok(format!(
            "ctst-shim is on a file system mounted nosuid, by which it lost {names}; install it on another, such as /usr"
        ));
    }
    #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
    let map = std::fs::read_to_string("/proc/self/uid_map").step("read", "/proc/self/uid_map")?;
    if !map.split_ascii_whitespace().eq(ALL) {
        return Ok(format!(
            "ctst runs in a user namespace, in which ctst-shim has no {names}; start it outside of the container"
        ));
    }
    for (mask, name, _) in REASONS {
        if !capability::is_bounded_in(mask.trailing_zeros()).step("read the bounding set", "")? {
            return Ok(format!(
                "the caller's bounding set lacks {name}; start ctst outside of what lowers it (CapabilityBoundingSet= of a \
                 service, a container)"
            ));
        }
    }
    if held & CAPABILITIES != 0 {
        return Ok(format!("the file capabilities of ctst-shim lack {names}; reinstall it"));
    }
    Ok(format!("ctst-shim lost {names}, as it does under a tracer (strace, gdb); start ctst without"))
}
