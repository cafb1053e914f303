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
        assert!(is_host_name(b"my-db.local") && !is_host_name(b"-rf") && !is_host_name(b"a_b"));
    }
}
