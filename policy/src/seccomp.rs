//! The base filter `default`: which system calls a container can make.
//!
//! It is compiled when this crate is built; installing it is handing [`base_filter`] to seccomp(2).
//! A program may stack further filters on it, of which the strictest verdict counts.

#[path = "table.rs"]
mod table;

pub use table::{Arch, Check, DEFAULT, Errno, Row, Verdict, X32_BIT, numbers};

/// One instruction of classic BPF, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to skip where the comparison holds.
    pub jt: u8,
    /// How many to skip where it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

mod compiled {
    use super::Instruction;

    include!(concat!(env!("OUT_DIR"), "/filter.rs"));
}

/// The filter for `arch`.
pub fn filter_for(arch: Arch) -> &'static [Instruction] {
    match arch {
        Arch::X86_64 => &compiled::X86_64,
        Arch::Aarch64 => &compiled::AARCH64,
    }
}

/// The filter for the processor this was built for.
pub fn base_filter() -> &'static [Instruction] {
    filter_for(HOST)
}

#[cfg(target_arch = "x86_64")]
pub(crate) const HOST: Arch = Arch::X86_64;
#[cfg(target_arch = "aarch64")]
pub(crate) const HOST: Arch = Arch::Aarch64;

/// `linux/audit.h`: how the kernel names a processor to a filter.
pub(crate) fn audit(arch: Arch) -> u32 {
    match arch {
        Arch::X86_64 => 0xc000_003e,
        Arch::Aarch64 => 0xc000_00b7,
    }
}

/// The table as text: each call with its numbers, its verdict and the reason, in the table's order.
pub fn describe() -> String {
    let mut out = String::from(
        "\
call from another processor's table (i386, 32-bit Arm): the process is killed
x32 call (number 0x40000000 and above): ENOSYS
number that no line below has: ENOSYS

  x86_64  aarch64  name                      verdict
",
    );
    for row in DEFAULT {
        out.push_str(&format!("\n{}\n", row.reason));
        let verdict = render(row.verdict);
        for name in row.calls.split_ascii_whitespace() {
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
    match verdict {
        Verdict::Allow => "allow".to_owned(),
        Verdict::Refuse(errno) => errno_name(errno).to_owned(),
        Verdict::AllowIf { argument, check, otherwise } => {
            let check = match check {
                Check::WithoutBits(mask) => format!("has no bit of {mask:#x}"),
                Check::In(values) => format!("is one of {}", list(values)),
                Check::NotIn(values) => format!("is none of {}", list(values)),
            };
            format!("allow if argument {argument} {check}, else {}", errno_name(otherwise))
        }
    }
}

fn errno_name(errno: Errno) -> &'static str {
    match errno {
        Errno::Eperm => "EPERM",
        Errno::Enosys => "ENOSYS",
        Errno::Eafnosupport => "EAFNOSUPPORT",
    }
}
