//! From verdicts to classic BPF. The build script compiles the base filters with it, and `ctst` the profiles of authors.
//!
//! When a filter is installed the kernel runs it once for every system call number it knows, so a
//! linear list of comparisons, which is what libraries emit, costs more than a millisecond per
//! container. Here the number is looked up in a binary tree over ranges with equal verdicts. Behind
//! the tree stand the programs that look at an argument.

use std::collections::BTreeMap;
use std::num::TryFromIntError;

use super::table::{Arch, Errno, Instruction, X32_BIT};

// linux/bpf_common.h, linux/seccomp.h, linux/audit.h
/// `BPF_LD | BPF_W | BPF_ABS`: load a word of `struct seccomp_data`.
pub const LOAD_WORD: u16 = 0x20;
/// `BPF_JMP | BPF_JA`.
pub const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub const JUMP_IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
pub const JUMP_IF_ABOVE: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
pub const JUMP_IF_AT_LEAST: u16 = 0x35;
/// `BPF_ALU | BPF_AND | BPF_K`.
pub const AND: u16 = 0x54;
/// `BPF_RET | BPF_K`.
pub const RETURN: u16 = 0x06;
/// `SECCOMP_RET_KILL_PROCESS`.
pub const KILL_PROCESS: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO`, without the number.
pub const FAIL: u32 = 0x0005_0000;
/// `SECCOMP_RET_ALLOW`.
pub const ALLOW: u32 = 0x7fff_0000;

const OFFSET_OF_NUMBER: u32 = 0;
const OFFSET_OF_ARCH: u32 = 4;
const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_AARCH64: u32 = 0xc000_00b7;

/// One instruction.
pub const fn op(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// The filter answers this.
    Return(u32),
    /// The program at this offset in what stands behind the tree decides.
    Program(usize),
}

/// A whole filter. A call by another processor's table kills the process, x32 calls fail with ENOSYS, and a number that
/// `leaves` does not have gets `other`.
///
/// # Errors
/// If it is too long for a jump.
pub fn filter(
    arch: Arch,
    leaves: &BTreeMap<u32, Leaf>,
    other: Leaf,
    programs: Vec<Instruction>,
) -> Result<Vec<Instruction>, TryFromIntError> {
    // Ranges of numbers with the same end, each given by its first number.
    let leaf = |number: u32| leaves.get(&number).copied().unwrap_or(other);
    let end = leaves.last_key_value().map_or(0, |(&last, _)| last.saturating_add(1));
    let mut ranges: Vec<(u32, Leaf)> = (0..=end).map(|number| (number, leaf(number))).collect();
    ranges.dedup_by_key(|&mut (_, leaf)| leaf);

    let audit_arch = match arch {
        Arch::X86_64 => AUDIT_X86_64,
        Arch::Aarch64 => AUDIT_AARCH64,
    };
    let mut program = vec![
        op(LOAD_WORD, 0, 0, OFFSET_OF_ARCH),
        op(JUMP_IF_EQUAL, 1, 0, audit_arch),
        op(RETURN, 0, 0, KILL_PROCESS),
        op(LOAD_WORD, 0, 0, OFFSET_OF_NUMBER),
    ];
    if arch == Arch::X86_64 {
        program.push(op(JUMP_IF_AT_LEAST, 0, 1, X32_BIT));
        program.push(op(RETURN, 0, 0, FAIL | Errno::Enosys as u32));
    }
    program.extend(tree(&ranges, 0)?);
    program.extend(programs);
    Ok(program)
}

/// The search over `ranges`, with `behind` instructions between its end and the end of the whole
/// tree.
fn tree(ranges: &[(u32, Leaf)], behind: usize) -> Result<Vec<Instruction>, TryFromIntError> {
    if let [(_, leaf)] = ranges {
        return Ok(vec![match *leaf {
            Leaf::Return(value) => op(RETURN, 0, 0, value),
            Leaf::Program(offset) => op(JUMP, 0, 0, u32::try_from(behind.saturating_add(offset))?),
        }]);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let middle = high.first().map_or(0, |(first, _)| *first);
    let high = tree(high, behind)?;
    let low = tree(low, behind.saturating_add(high.len()))?;
    // A conditional jump reaches 255 instructions; `JUMP` reaches all of them.
    let mut out = match u8::try_from(low.len()) {
        Ok(skip) => vec![op(JUMP_IF_AT_LEAST, skip, 0, middle)],
        Err(_) => {
            vec![op(JUMP_IF_AT_LEAST, 0, 1, middle), op(JUMP, 0, 0, u32::try_from(low.len())?)]
        }
    };
    out.extend(low);
    out.extend(high);
    Ok(out)
}
