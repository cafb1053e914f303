//! The base filters: which system calls a container can make.
//!
//! They are compiled when this crate is built; installing one is handing [`base_filter`] to seccomp(2).
//! A program may stack further filters on it, of which the strictest verdict counts.

#[cfg(feature = "assemble")]
#[path = "assemble.rs"]
pub mod assemble;
#[cfg(feature = "assemble")]
#[path = "own.rs"]
mod own;
#[path = "table.rs"]
mod table;

#[cfg(feature = "assemble")]
pub use own::Own;

pub use table::{
    Arch, Base, COMPAT, Check, Clause, DEFAULT, Errno, Instruction, Row, STRICT, Verdict, X32_BIT, numbers,
};

mod compiled {
    use super::Instruction;

    include!(concat!(env!("OUT_DIR"), "/filter.rs"));
}

#[cfg(feature = "assemble")]
mod compiled_own {
    use super::Instruction;

    include!(concat!(env!("OUT_DIR"), "/own.rs"));
}

/// The filter of this process of ctst's own for `arch`.
#[cfg(feature = "assemble")]
pub fn own_filter_for(own: Own, arch: Arch) -> &'static [Instruction] {
    compiled_own::filter(own, arch)
}

/// The filter of this name for `arch`.
pub fn filter_for(base: Base, arch: Arch) -> &'static [Instruction] {
    match (base, arch) {
        (Base::Default, Arch::X86_64) => &compiled::DEFAULT_X86_64,
        (Base::Default, Arch::Aarch64) => &compiled::DEFAULT_AARCH64,
        (Base::Strict, Arch::X86_64) => &compiled::STRICT_X86_64,
        (Base::Strict, Arch::Aarch64) => &compiled::STRICT_AARCH64,
        (Base::Compat, Arch::X86_64) => &compiled::COMPAT_X86_64,
        (Base::Compat, Arch::Aarch64) => &compiled::COMPAT_AARCH64,
    }
}

/// The filter of this name for the processor this was built for.
pub fn base_filter(base: Base) -> &'static [Instruction] {
    filter_for(base, HOST)
}

/// The processor this was built for.
#[cfg(target_arch = "x86_64")]
pub const HOST: Arch = Arch::X86_64;
/// The processor this was built for.
#[cfg(target_arch = "aarch64")]
pub const HOST: Arch = Arch::Aarch64;

/// `linux/audit.h`: how the kernel names a processor to a filter.
pub(crate) fn audit(arch: Arch) -> u32 {
    match arch {
        Arch::X86_64 => 0xc000_003e,
        Arch::Aarch64 => 0xc000_00b7,
    }
}

/// What a base filter does, as text: each call with its numbers, its verdict and the reason, in the table's order. Rows that
/// are otherwise than in `default` come first.
pub fn describe(base: Base) -> String {
    describe_as(&[base.changes(), DEFAULT], |arch| filter_for(base, arch).len())
}

/// The same of the filter of one of ctst's own processes.
#[cfg(feature = "assemble")]
pub fn describe_own(own: Own) -> String {
    let rest = (!own.is_open()).then_some(DEFAULT);
    let tables: Vec<_> = own.changes().into_iter().chain(rest).collect();
    let mut out = describe_as(&tables, |arch| own_filter_for(own, arch).len());
    if own.is_open() {
        out = out.replace(
            "number that no line below has: ENOSYS",
            "number that no line below has: allow, or ENOSYS if it is not known",
        );
    }
    out
}

fn describe_as(tables: &[&'static [Row]], size: impl Fn(Arch) -> usize) -> String {
    let rows = || tables.iter().copied().flatten();
    let row = |call: &str| rows().find(|row| row.calls.split_ascii_whitespace().any(|name| name == call));
    let mut out = format!(
        "\
instructions: {} on x86_64, {} on aarch64
call from another processor's table (i386, 32-bit Arm): the process is killed
x32 call (number 0x40000000 and above): ENOSYS
number that no line below has: ENOSYS

  x86_64  aarch64  name                      verdict
",
        size(Arch::X86_64),
        size(Arch::Aarch64)
    );
    for own in rows() {
        let decides = |name: &&str| row(name).is_some_and(|decisive| std::ptr::eq(decisive, own));
        let calls: Vec<&str> = own.calls.split_ascii_whitespace().filter(decides).collect();
        if calls.is_empty() {
            continue;
        }
        out.push_str(&format!("\n{}\n", own.reason));
        let verdict = render(own.verdict);
        for name in calls {
            let number = |arch| {
                numbers(arch)
                    .find(|&(_, known)| known == name)
                    .map_or_else(|| "-".to_owned(), |(number, _)| number.to_string())
            };
            let (x86, arm) = (number(Arch::X86_64), number(Arch::Aarch64));
            out.push_str(&format!("  {x86:>6}  {arm:>7}  {name:<24}  {verdict}\n"));
        }
    }
    out
}

fn render(verdict: Verdict) -> String {
    let list = |values: &[u32]| {
        let words: Vec<String> = values.iter().map(|value| format!("{value:#x}")).collect();
        words.join(" ")
    };
    let test = |argument: u8, check: Check| match check {
        Check::WithoutBits(mask) => format!("argument {argument} has no bit of {mask:#x}"),
        Check::BitsIn(mask, values) => format!("argument {argument} is in {mask:#x} one of {}", list(values)),
        Check::In(values) => format!("argument {argument} is one of {}", list(values)),
        Check::NotIn(values) => format!("argument {argument} is none of {}", list(values)),
    };
    match verdict {
        Verdict::Allow => "allow".to_owned(),
        Verdict::Refuse(errno) => errno_name(errno).to_owned(),
        Verdict::AllowIf { argument, check, otherwise } => {
            format!("allow if {}, else {}", test(argument, check), errno_name(otherwise))
        }
        Verdict::AllowIfAll(clauses) => {
            let clause = |clause: &Clause| {
                let tests: Vec<_> = clause.any.iter().map(|&(argument, check)| test(argument, check)).collect();
                format!("if {}, else {}", tests.join(" or "), errno_name(clause.otherwise))
            };
            let clauses: Vec<_> = clauses.iter().map(clause).collect();
            format!("allow {}", clauses.join("; and "))
        }
    }
}

fn errno_name(errno: Errno) -> &'static str {
    match errno {
        Errno::Eperm => "EPERM",
        Errno::Enosys => "ENOSYS",
        Errno::Eprotonosupport => "EPROTONOSUPPORT",
        Errno::Esocktnosupport => "ESOCKTNOSUPPORT",
        Errno::Eafnosupport => "EAFNOSUPPORT",
    }
}
