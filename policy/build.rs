//! Compiles the tables of `src/table.rs` to classic BPF for each processor. What looks at an argument is compiled by
//! seccompiler and stands behind the tree that `src/assemble.rs` makes.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::{env, fs, path::Path};

use assemble::{ALLOW, FAIL, Leaf};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use table::{Arch, Base, Check, Errno, Instruction, Verdict};

#[expect(
    unreachable_pub,
    dead_code,
    reason = "the library re-exports this module, a build script has nobody to export to"
)]
#[path = "src/assemble.rs"]
mod assemble;
#[expect(
    unreachable_pub,
    dead_code,
    reason = "the library re-exports this module, a build script has nobody to export to"
)]
#[path = "src/table.rs"]
mod table;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/table.rs");
    println!("cargo::rerun-if-changed=src/assemble.rs");
    let mut source = String::new();
    for base in Base::ALL {
        for (name, arch) in [("X86_64", Arch::X86_64), ("AARCH64", Arch::Aarch64)] {
            let program = compile(base, arch)?;
            let base = base.name().to_uppercase();
            writeln!(source, "pub(super) static {base}_{name}: [Instruction; {}] = [", program.len())?;
            for Instruction { code, jt, jf, k } in program {
                writeln!(source, "    Instruction {{ code: {code:#x}, jt: {jt}, jf: {jf}, k: {k:#x} }},")?;
            }
            writeln!(source, "];")?;
        }
    }
    let path = Path::new(&env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("filter.rs");
    Ok(fs::write(path, source)?)
}

/// Verdicts by name. A row without a reason, or two rows that name one call, stop the build.
fn rows(table: &[table::Row]) -> Result<BTreeMap<&'static str, Verdict>> {
    let mut rows = BTreeMap::new();
    for row in table {
        if row.reason.is_empty() {
            return Err(format!("no reason is given for {}", row.calls).into());
        }
        for name in row.calls.split_ascii_whitespace() {
            if rows.insert(name, row.verdict).is_some() {
                return Err(format!("two rows of the filter name {name}").into());
            }
        }
    }
    Ok(rows)
}

/// Every known number with its verdict. A call that no row names stops the build, and so does a change of what is not
/// there.
fn verdicts(base: Base, arch: Arch) -> Result<BTreeMap<u32, Verdict>> {
    let mut verdicts = rows(table::DEFAULT)?;
    for (name, verdict) in rows(base.changes())? {
        if verdicts.insert(name, verdict).is_none() {
            return Err(format!("{} changes {name}, which no row of the default names", base.name()).into());
        }
    }
    table::numbers(arch)
        .map(|(number, name)| match verdicts.get(name) {
            Some(&verdict) => Ok((number, verdict)),
            None => Err(format!("no row of the filter names {name}").into()),
        })
        .collect()
}

fn compile(base: Base, arch: Arch) -> Result<Vec<Instruction>> {
    let (mut programs, mut leaves) = (Vec::new(), BTreeMap::new());
    for (number, verdict) in verdicts(base, arch)? {
        let leaf = match verdict {
            Verdict::Allow => Leaf::Return(ALLOW),
            Verdict::Refuse(errno) => Leaf::Return(FAIL | errno as u32),
            Verdict::AllowIf { argument, check, otherwise } => {
                let leaf = Leaf::Program(programs.len());
                let program = argument_program(arch, number, argument, check, otherwise)?;
                programs.extend(program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }));
                leaf
            }
        };
        leaves.insert(number, leaf);
    }
    let unknown = Leaf::Return(FAIL | Errno::Enosys as u32);
    Ok(assemble::filter(arch, &leaves, unknown, programs)?)
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
