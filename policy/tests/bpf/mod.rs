//! Classic BPF as seccomp runs it (linux: net/core/filter.c, kernel/seccomp.c), for what our
//! filters use.

use containust_policy::seccomp::{Arch, Errno, Instruction};

pub(crate) const AUDIT_X86_64: u32 = 0xc000_003e;
pub(crate) const AUDIT_I386: u32 = 0x4000_0003;
pub(crate) const AUDIT_AARCH64: u32 = 0xc000_00b7;
pub(crate) const AUDIT_ARM: u32 = 0x4000_0028;

pub(crate) const ALLOW: u32 = 0x7fff_0000;
pub(crate) const KILL_PROCESS: u32 = 0x8000_0000;

/// What a filter answers for a call that fails with `errno`.
pub(crate) fn fails(errno: Errno) -> u32 {
    0x0005_0000 | errno as u32
}

pub(crate) fn audit(arch: Arch) -> u32 {
    match arch {
        Arch::X86_64 => AUDIT_X86_64,
        Arch::Aarch64 => AUDIT_AARCH64,
    }
}

/// The answer of `program` and how many instructions it took.
pub(crate) fn run(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> (u32, usize) {
    // struct seccomp_data: number, arch, instruction pointer, arguments, low word first.
    let mut data = vec![number, arch, 0, 0];
    data.extend(args.iter().flat_map(|&arg| [arg as u32, (arg >> 32) as u32]));
    let (mut accumulator, mut at) = (0, 0);
    for steps in 1.. {
        let Instruction { code, jt, jf, k } = program[at];
        let branch = |holds: bool| usize::from(if holds { jt } else { jf });
        at += 1;
        match code {
            0x20 => accumulator = data[k as usize / 4],
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x06 => return (k, steps),
            _ => panic!("instruction {}: no filter of ours needs code {code:#x}", at - 1),
        }
    }
    unreachable!("jumps only go forwards")
}
