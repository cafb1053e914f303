//! Compiles the table of `src/table.rs` to classic BPF for each processor.
//!
//! When a filter is installed the kernel runs it once for every system call number it knows, so a
//! linear list of comparisons, which is what libraries emit, costs more than a millisecond per
//! container. Here the number is looked up in a binary tree over ranges with equal verdicts. Behind
//! the tree stand the programs that look at an argument, as seccompiler makes them.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::{env, fs, path::Path};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use table::{Arch, Check, Errno, Verdict};

#[expect(unreachable_pub, reason = "the library re-exports this module, a build script has nobody to export to")]
#[path = "src/table.rs"]
mod table;

// linux/bpf_common.h, linux/seccomp.h, linux/audit.h
const LOAD_WORD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const OFFSET_OF_NUMBER: u32 = 0;
const OFFSET_OF_ARCH: u32 = 4;
const KILL_PROCESS: u32 = 0x8000_0000;
const FAIL: u32 = 0x0005_0000;
const ALLOW: u32 = 0x7fff_0000;
const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_AARCH64: u32 = 0xc000_00b7;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/table.rs");
    let mut source = String::new();
    for (name, arch) in [("X86_64", Arch::X86_64), ("AARCH64", Arch::Aarch64)] {
        let program = compile(arch)?;
        writeln!(source, "pub(super) static {name}: [Instruction; {}] = [", program.len())?;
        for sock_filter { code, jt, jf, k } in program {
            writeln!(source, "    Instruction {{ code: {code:#x}, jt: {jt}, jf: {jf}, k: {k:#x} }},")?;
        }
        writeln!(source, "];")?;
    }
    let path = Path::new(&env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("filter.rs");
    Ok(fs::write(path, source)?)
}

/// Every known number with its verdict. A call that no row names, or two, or a row without a reason
/// stops the build.
fn verdicts(arch: Arch) -> Result<BTreeMap<u32, Verdict>> {
    let mut rows = BTreeMap::new();
    for row in table::DEFAULT {
        if row.reason.is_empty() {
            return Err(format!("no reason is given for {}", row.calls).into());
        }
        for name in row.calls.split_ascii_whitespace() {
            if rows.insert(name, row.verdict).is_some() {
                return Err(format!("two rows of the filter name {name}").into());
            }
        }
    }
    table::numbers(arch)
        .map(|(number, name)| match rows.get(name) {
            Some(&verdict) => Ok((number, verdict)),
            None => Err(format!("no row of the filter names {name}").into()),
        })
        .collect()
}

fn compile(arch: Arch) -> Result<Vec<sock_filter>> {
    let verdicts = verdicts(arch)?;

    // Programs that look at an argument, with the offset of each from the end of the tree.
    let (mut programs, mut entry) = (Vec::new(), BTreeMap::new());
    for (&number, &verdict) in &verdicts {
        if let Verdict::AllowIf { argument, check, otherwise } = verdict {
            entry.insert(number, programs.len());
            programs.extend(argument_program(arch, number, argument, check, otherwise)?);
        }
    }

    // Ranges of numbers with the same end, each given by its first number. Whatever lies between or
    // behind the known ones is unknown.
    let unknown = Leaf::Return(FAIL | Errno::Enosys as u32);
    let leaf = |number: u32| match verdicts.get(&number) {
        Some(Verdict::Allow) => Leaf::Return(ALLOW),
        Some(&Verdict::Refuse(errno)) => Leaf::Return(FAIL | errno as u32),
        Some(Verdict::AllowIf { .. }) => Leaf::Program(entry[&number]),
        None => unknown,
    };
    let end = verdicts.last_key_value().map_or(0, |(&last, _)| last + 1);
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
        program.push(op(JUMP_IF_AT_LEAST, 0, 1, table::X32_BIT));
        program.push(op(RETURN, 0, 0, FAIL | Errno::Enosys as u32));
    }
    program.extend(tree(&ranges, 0)?);
    program.extend(programs);
    Ok(program)
}

#[derive(Clone, Copy, PartialEq)]
enum Leaf {
    Return(u32),
    /// Jump to the program at this offset from the end of the tree.
    Program(usize),
}

/// The search over `ranges`, with `behind` instructions between its end and the end of the whole
/// tree.
fn tree(ranges: &[(u32, Leaf)], behind: usize) -> Result<Vec<sock_filter>> {
    if let [(_, leaf)] = ranges {
        return Ok(vec![match *leaf {
            Leaf::Return(value) => op(RETURN, 0, 0, value),
            Leaf::Program(offset) => op(JUMP, 0, 0, u32::try_from(behind + offset)?),
        }]);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let middle = high[0].0;
    let high = tree(high, behind)?;
    let low = tree(low, behind + high.len())?;
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

/// A whole filter for one call. It checks processor and number once more, which costs four
/// instructions, and so stands on what seccompiler documents instead of on the order of what it
/// emits.
fn argument_program(arch: Arch, number: u32, argument: u8, check: Check, otherwise: Errno) -> Result<BpfProgram> {
    let condition = |op, value: u32| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value.into());
    let allowed = match check {
        Check::WithoutBits(mask) => {
            vec![SeccompRule::new(vec![condition(SeccompCmpOp::MaskedEq(mask.into()), 0)?])?]
        }
        Check::In(values) => values
            .iter()
            .map(|&value| SeccompRule::new(vec![condition(SeccompCmpOp::Eq, value)?]))
            .collect::<std::result::Result<_, _>>()?,
        Check::NotIn(values) => vec![SeccompRule::new(
            values.iter().map(|&value| condition(SeccompCmpOp::Ne, value)).collect::<std::result::Result<_, _>>()?,
        )?],
    };
    let filter = SeccompFilter::new(
        BTreeMap::from([(number.into(), allowed)]),
        SeccompAction::Errno(otherwise as u32),
        SeccompAction::Allow,
        match arch {
            Arch::X86_64 => TargetArch::x86_64,
            Arch::Aarch64 => TargetArch::aarch64,
        },
    )?;
    Ok(filter.try_into()?)
}

fn op(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}
