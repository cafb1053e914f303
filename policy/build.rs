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
use table::{Arch, Base, Check, Clause, Errno, Instruction, Verdict};

#[expect(
    unreachable_pub,
    dead_code,
    reason = "the library re-exports this module, a build script has nobody to export to"
)]
#[path = "src/assemble.rs"]
mod assemble;
#[expect(unreachable_pub, reason = "the library re-exports this module, a build script has nobody to export to")]
#[path = "src/own.rs"]
mod own;
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
    println!("cargo::rerun-if-changed=src/own.rs");
    let bases = Base::ALL.map(|base| Tables { name: base.name(), changes: vec![base.changes()], rest: table::DEFAULT });
    let own = own::Own::ALL.map(|own| Tables {
        name: own.name(),
        changes: own.changes(),
        rest: if own.is_open() { &[] } else { table::DEFAULT },
    });
    write("filter.rs", &bases, "")?;
    let choice: Vec<String> = own::Own::ALL
        .iter()
        .flat_map(|own| {
            let name = own.name().to_uppercase();
            [("X86_64", "X86_64"), ("Aarch64", "AARCH64")]
                .map(|(arch, suffix)| format!("    (super::Own::{own:?}, super::Arch::{arch}) => &{name}_{suffix},"))
        })
        .collect();
    let choice = format!(
        "pub(super) fn filter(own: super::Own, arch: super::Arch) -> &'static [Instruction] {{\nmatch (own, arch) {{\n{}\n}}\n}}",
        choice.join("\n")
    );
    write("own.rs", &own, &choice)
}

/// What a filter is made of.
struct Tables {
    name: &'static str,
    /// What decides first.
    changes: Vec<&'static [table::Row]>,
    /// What decides the rest; empty: all of it is allowed.
    rest: &'static [table::Row],
}

/// `more` is behind them in the file.
fn write(file: &str, filters: &[Tables], more: &str) -> Result<()> {
    let mut source = String::new();
    for Tables { name: filter, changes, rest } in filters {
        for (name, arch) in [("X86_64", Arch::X86_64), ("AARCH64", Arch::Aarch64)] {
            let program = compile(filter, changes, rest, arch)?;
            let filter = filter.to_uppercase();
            writeln!(source, "pub(super) static {filter}_{name}: [Instruction; {}] = [", program.len())?;
            for Instruction { code, jt, jf, k } in program {
                writeln!(source, "    Instruction {{ code: {code:#x}, jt: {jt}, jf: {jf}, k: {k:#x} }},")?;
            }
            writeln!(source, "];")?;
        }
    }
    source.push_str(more);
    let path = Path::new(&env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join(file);
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
/// there. Of `changes` the first count most.
fn verdicts(
    filter: &str,
    changes: &[&[table::Row]],
    rest: &[table::Row],
    arch: Arch,
) -> Result<BTreeMap<u32, Verdict>> {
    let mut verdicts = match rest {
        [] => rows(table::DEFAULT)?.into_keys().map(|name| (name, Verdict::Allow)).collect(),
        rest => rows(rest)?,
    };
    for changes in changes.iter().rev() {
        for (name, verdict) in rows(changes)? {
            if verdicts.insert(name, verdict).is_none() {
                return Err(format!("{filter} changes {name}, which no row of the default names").into());
            }
        }
    }
    table::numbers(arch)
        .map(|(number, name)| match verdicts.get(name) {
            Some(&verdict) => Ok((number, verdict)),
            None => Err(format!("no row of the filter names {name}").into()),
        })
        .collect()
}

fn compile(filter: &str, changes: &[&[table::Row]], rest: &[table::Row], arch: Arch) -> Result<Vec<Instruction>> {
    let (mut programs, mut leaves) = (Vec::new(), BTreeMap::new());
    for (number, verdict) in verdicts(filter, changes, rest, arch)? {
        let leaf = match verdict {
            Verdict::Allow => Leaf::Return(ALLOW),
            Verdict::Refuse(errno) => Leaf::Return(FAIL | errno as u32),
            Verdict::AllowIf { argument, check, otherwise } => {
                let leaf = Leaf::Program(programs.len());
                programs.extend(clause(arch, number, &[(argument, check)], otherwise)?);
                leaf
            }
            Verdict::AllowIfAll(clauses) => {
                let leaf = Leaf::Program(programs.len());
                for (left, &Clause { any, otherwise }) in
                    clauses.iter().enumerate().map(|(at, c)| (clauses.len() - at - 1, c))
                {
                    let program = clause(arch, number, any, otherwise)?;
                    programs.extend(if left == 0 { program } else { go_on(program)? });
                }
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
fn clause(arch: Arch, number: u32, any: &[(u8, Check)], otherwise: Errno) -> Result<Vec<Instruction>> {
    let mut allowed = Vec::new();
    for &(argument, check) in any {
        let condition = |op, value: u32| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value.into());
        let each = |op: &dyn Fn(u32) -> (SeccompCmpOp, u32), values: &[u32]| {
            let rule = |value: &u32| {
                let (op, value) = op(*value);
                SeccompRule::new(vec![condition(op, value)?])
            };
            values.iter().map(rule).collect::<std::result::Result<Vec<_>, _>>()
        };
        match check {
            Check::WithoutBits(mask) => allowed.extend(each(&|_| (SeccompCmpOp::MaskedEq(mask.into()), 0), &[0])?),
            Check::BitsIn(mask, values) => {
                allowed.extend(each(&|value| (SeccompCmpOp::MaskedEq(mask.into()), value), values)?);
            }
            Check::In(values) => allowed.extend(each(&|value| (SeccompCmpOp::Eq, value), values)?),
            Check::NotIn(values) => allowed.push(SeccompRule::new(
                values
                    .iter()
                    .map(|&value| condition(SeccompCmpOp::Ne, value))
                    .collect::<std::result::Result<_, _>>()?,
            )?),
        }
    }
    let filter = SeccompFilter::new(
        BTreeMap::from([(number.into(), allowed)]),
        SeccompAction::Errno(otherwise as u32),
        SeccompAction::Allow,
        match arch {
            Arch::X86_64 => TargetArch::x86_64,
            Arch::Aarch64 => TargetArch::aarch64,
        },
    )?;
    let program: BpfProgram = filter.try_into()?;
    Ok(program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect())
}

/// The same, but where it would allow it goes on behind its end.
fn go_on(mut program: Vec<Instruction>) -> Result<Vec<Instruction>> {
    let length = program.len();
    let ends = program.iter_mut().enumerate().filter(|(_, i)| (i.code, i.k) == (assemble::RETURN, ALLOW));
    let mut found = 0;
    for (at, end) in ends {
        *end = assemble::op(assemble::JUMP, 0, 0, u32::try_from(length - at - 1)?);
        found += 1;
    }
    if found == 0 { Err("a clause that never holds".into()) } else { Ok(program) }
}
