//! Names of components, projects and hosts.

/// The longest name of a component, network or volume, in bytes.
pub const MAX_NAME: usize = 63;

/// Whether `name` matches `[A-Za-z][A-Za-z0-9_-]{0,62}`.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && name.len() <= MAX_NAME
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// The host name of a component: its name with `-` for `_`, because RFC 1123 knows no underscore.
#[must_use]
pub fn host_name(name: &str) -> String {
    name.replace('_', "-")
}

/// Whether `name` is a host name that the kernel and a resolver both take: `[A-Za-z0-9.-]{1,63}` (`sethostname(2)`
/// allows 64 bytes, a DNS label 63).
#[must_use]
pub fn is_host_name(name: &[u8]) -> bool {
    (1..=63).contains(&name.len())
        && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'.' || *b == b'-')
        && !matches!(name.first(), Some(b'.' | b'-'))
}

/// Whether a kernel setting, with dots, is one of a container's own network or IPC namespace: what Documentation/admin-guide/sysctl
/// and namespaces(7) say of it. What is not could change the host.
#[must_use]
pub fn is_namespaced_sysctl(name: &[u8]) -> bool {
    const OF_IPC: [&[u8]; 8] = [
        b"kernel.msgmax",
        b"kernel.msgmnb",
        b"kernel.msgmni",
        b"kernel.sem",
        b"kernel.shmall",
        b"kernel.shmmax",
        b"kernel.shmmni",
        b"kernel.shm_rmid_forced",
    ];
    let plain =
        |part: &[u8]| !part.is_empty() && part.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let below = name.starts_with(b"net.") || name.starts_with(b"fs.mqueue.");
    (below && name.split(|b| *b == b'.').all(plain)) || OF_IPC.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "web", "A-b_c", &"x".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "1a", "_a", "a.b", "a b", "ä", "../x", &"x".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
        assert_eq!(host_name("my_db"), "my-db");
        for good in ["net.core.somaxconn", "net.ipv4.ip_unprivileged_port_start", "fs.mqueue.msg_max", "kernel.sem"] {
            assert!(is_namespaced_sysctl(good.as_bytes()), "{good}");
        }
        for bad in ["kernel.core_pattern", "net", "net.", "net..x", "net/../kernel", "net.a/b", "vm.swappiness", ""] {
            assert!(!is_namespaced_sysctl(bad.as_bytes()), "{bad}");
        }
        assert!(is_host_name(b"my-db.local") && !is_host_name(b"-rf") && !is_host_name(b"a_b"));
    }
}
