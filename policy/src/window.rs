//! What the shim may hold over the host, for how long, and what it may still do afterwards: data for
//! `ctst-shim/src/window.rs`.

use crate::seccomp::{HOST, Instruction, audit, numbers};

/// `capabilities(7)`: CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN.
pub const CAPABILITIES: u64 = CAP_SETGID | CAP_SETUID | CAP_SYS_ADMIN;
const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Each with its name and the only thing that it is for.
pub const REASONS: [(u64, &str, &str); 3] = [
    (CAP_SYS_ADMIN, "cap_sys_admin", "clone a user namespace where the host lets nobody else"),
    (CAP_SETUID, "cap_setuid", "own that namespace by another id, act on its map files as root, map the granted users"),
    (CAP_SETGID, "cap_setgid", "map the granted groups"),
];

/// System calls that P may make once it has given everything up, with a reason per row; any other kills it.
pub const AFTERWARDS: [(&str, &str); 6] = [
    ("sendmsg", "tell the caller of S"),
    ("write", "release S"),
    ("close fcntl", "let go of descriptors; a debug build looks whether they are open"),
    ("exit_group exit", "end"),
    ("brk mmap munmap mremap madvise", "the memory of a message"),
    (
        "rt_sigprocmask rt_sigaction rt_sigreturn sigaltstack futex restart_syscall",
        "what libc and a signal's arrival need",
    ),
];

/// The filter of [`AFTERWARDS`] for the processor that this was built for.
#[must_use]
pub fn filter() -> Vec<Instruction> {
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const KILL: u32 = 0x8000_0000;
    let op = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let names: Vec<&str> = AFTERWARDS.iter().flat_map(|(names, _)| names.split(' ')).collect();
    let mut filter = vec![op(LOAD, 0, 0, 4), op(EQUAL, 1, 0, audit(HOST)), op(RETURN, 0, 0, KILL), op(LOAD, 0, 0, 0)];
    for (number, _) in numbers(HOST).filter(|(_, name)| names.contains(name)) {
        filter.extend([op(EQUAL, 0, 1, number), op(RETURN, 0, 0, ALLOW)]);
    }
    filter.push(op(RETURN, 0, 0, KILL));
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_every_capability_and_knows_every_call() {
        assert_eq!(REASONS.iter().fold(0, |all, (mask, ..)| all | mask), CAPABILITIES);
        for (names, reason) in AFTERWARDS {
            assert!(!reason.is_empty());
            for name in names.split(' ') {
                assert!(numbers(HOST).any(|(_, known)| known == name), "{name}");
            }
        }
        let calls: usize = AFTERWARDS.iter().map(|(names, _)| names.split(' ').count()).sum();
        assert_eq!(filter().len(), 5 + 2 * calls);
    }
}
