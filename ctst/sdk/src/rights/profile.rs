//! Profiles in docker's JSON format, compiled to classic BPF. A profile is put on top of a base filter, of which the strictest
//! verdict counts, so that nothing in here can widen anything.

use std::collections::BTreeMap;

use containust_policy::capabilities;
use containust_policy::seccomp::assemble::{
    self, ALLOW, AND, FAIL, JUMP, JUMP_IF_ABOVE, JUMP_IF_AT_LEAST, JUMP_IF_EQUAL, KILL_PROCESS, LOAD_WORD, Leaf,
    RETURN, op,
};
use containust_policy::seccomp::{Arch, HOST, Instruction, numbers};
use containust_shared::protocol::{self, MAX_INSTRUCTIONS};
use rustix::system::uname;
use serde::Deserialize;

// linux/seccomp.h
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const LOG: u32 = 0x7ffc_0000;
const EPERM: u32 = 1;
/// The largest that the kernel gives back (`MAX_ERRNO`).
const MOST_ERRNO: u32 = 4095;

/// Offset of the first argument in `struct seccomp_data`; each has 8 bytes, the low word first.
const OFFSET_OF_ARGUMENTS: u32 = 16;

/// What a profile may ask about the host.
#[derive(Debug)]
pub(super) struct Host {
    arch: Arch,
    kernel: (u32, u32),
}

impl Host {
    pub(super) fn this() -> Self {
        let release = uname();
        let release = release.release().to_string_lossy();
        Self { arch: HOST, kernel: version(&release).unwrap_or((0, 0)) }
    }

    /// The name as Go and docker have it.
    fn name(&self) -> &'static str {
        match self.arch {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }
}

/// Major and minor number of a version of Linux.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    default_action: Action,
    default_errno_ret: Option<u32>,
    /// By name, as podman writes it; the number counts.
    #[serde(rename = "defaultErrno")]
    _default_errno: Option<String>,
    /// Calls by other processors' tables never get here, so that these two say nothing.
    #[serde(rename = "architectures")]
    _architectures: Option<Vec<String>>,
    #[serde(rename = "archMap")]
    _arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    #[serde(rename = "architecture")]
    _architecture: String,
    #[serde(rename = "subArchitectures")]
    _sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// Instead of `names`.
    name: Option<String>,
    action: Action,
    errno_ret: Option<u32>,
    #[serde(rename = "errno")]
    _errno: Option<String>,
    args: Option<Vec<Argument>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
enum Action {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
}

impl Action {
    fn verdict(self, errno: Option<u32>) -> u32 {
        match self {
            Self::Allow => ALLOW,
            Self::Log => LOG,
            Self::Errno => FAIL | errno.unwrap_or(EPERM),
            Self::Trap => TRAP,
            Self::KillThread => KILL_THREAD,
            Self::KillProcess => KILL_PROCESS,
        }
    }
}

/// How hard a verdict is, the hardest lowest: the kernel takes the action as a signed number (`seccomp(2)`).
fn order(verdict: u32) -> i32 {
    (verdict & 0xffff_0000).cast_signed()
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Comparison,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    #[serde(rename = "SCMP_CMP_NE")]
    Ne,
    #[serde(rename = "SCMP_CMP_LT")]
    Lt,
    #[serde(rename = "SCMP_CMP_LE")]
    Le,
    #[serde(rename = "SCMP_CMP_EQ")]
    Eq,
    #[serde(rename = "SCMP_CMP_GE")]
    Ge,
    #[serde(rename = "SCMP_CMP_GT")]
    Gt,
    /// The argument and `value` is `value_two`.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEq,
}

/// A rule of one call: its verdict where all comparisons hold.
struct Case {
    verdict: u32,
    args: Vec<Argument>,
}

/// Compiles a profile for a container whose root has these capabilities. An error names the line, or the field.
pub(super) fn compile(json: &[u8], capabilities: u64, host: &Host) -> Result<Vec<protocol::Instruction>, String> {
    let file: File = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let errno = |field: String, errno: Option<u32>| match errno {
        Some(number) if number > MOST_ERRNO => Err(format!("{field} is {number}, and {MOST_ERRNO} is the most")),
        other => Ok(other),
    };
    let default = file.default_action.verdict(errno("defaultErrnoRet".to_owned(), file.default_errno_ret)?);

    let known: BTreeMap<&str, u32> = numbers(host.arch).map(|(number, name)| (name, number)).collect();
    let mut cases: BTreeMap<u32, Vec<Case>> = BTreeMap::new();
    for (at, rule) in file.syscalls.iter().flatten().enumerate() {
        let field = |rest: &str| format!("syscalls[{at}].{rest}");
        let verdict = rule.action.verdict(errno(field("errnoRet"), rule.errno_ret)?);
        let args = rule.args.as_deref().unwrap_or_default();
        for (number, argument) in args.iter().enumerate() {
            if argument.index > 5 {
                let field = field(&format!("args[{number}].index"));
                return Err(format!("{field} is {}, and a system call has the arguments 0 to 5", argument.index));
            }
        }
        let mut applies = true;
        for (condition, wanted) in [(&rule.includes, true), (&rule.excludes, false)] {
            let name = if wanted { "includes" } else { "excludes" };
            let Some(condition) = condition else { continue };
            applies &= holds(condition, wanted, capabilities, host).map_err(|why| format!("{}{why}", field(name)))?;
        }
        if rule.names.is_empty() && rule.name.is_none() {
            return Err(format!("{} is missing", field("names")));
        }
        for (place, name) in rule.names.iter().chain(&rule.name).enumerate() {
            match known.get(name.as_str()) {
                Some(number) if applies => {
                    cases.entry(*number).or_default().push(Case { verdict, args: args.to_vec() });
                }
                Some(_) => {}
                // What no table knows the base filter refuses, so that leaving it out allows nothing. But a slip in what is to
                // be refused must not pass for a refusal.
                None if order(verdict) < order(default) && !elsewhere(name, host.arch) => {
                    let field = field(&format!("names[{place}]"));
                    return Err(format!("{field} is `{}`, and there is no such system call", name.escape_debug()));
                }
                None => {}
            }
        }
    }

    let (mut programs, mut leaves) = (Vec::new(), BTreeMap::new());
    for (number, mut cases) in cases {
        // The hardest of those that hold counts, and of equally hard ones the first.
        cases.sort_by_key(|case| order(case.verdict));
        if let Some(end) = cases.iter().position(|case| case.args.is_empty()) {
            cases.truncate(end + 1);
        }
        let leaf = match cases.as_slice() {
            [only] if only.args.is_empty() => Leaf::Return(only.verdict),
            _ => {
                let leaf = Leaf::Program(programs.len());
                programs.extend(decide(&cases, default)?);
                leaf
            }
        };
        leaves.insert(number, leaf);
    }
    let program = assemble::filter(host.arch, &leaves, Leaf::Return(default), programs).map_err(|e| e.to_string())?;
    if program.len() > MAX_INSTRUCTIONS {
        return Err(format!("it takes {} instructions, and the kernel takes {MAX_INSTRUCTIONS}", program.len()));
    }
    let as_sent = |Instruction { code, jt, jf, k }| protocol::Instruction { code, jt, jf, k };
    Ok(program.into_iter().map(as_sent).collect())
}

/// Whether a rule with this condition counts. `wanted`: of `includes` all must be there, of `excludes` none.
fn holds(condition: &Condition, wanted: bool, capabilities: u64, host: &Host) -> Result<bool, String> {
    let mut has = Vec::new();
    for (at, name) in condition.caps.iter().flatten().enumerate() {
        let Some(capability) = capabilities::find(name) else {
            return Err(format!(".caps[{at}] is `{}`, and there is no such capability", name.escape_debug()));
        };
        has.push(capabilities & capability.bit() != 0);
    }
    if let Some(arches) = condition.arches.as_ref().filter(|arches| !arches.is_empty()) {
        has.push(arches.iter().any(|arch| arch == host.name()));
    }
    if let Some(kernel) = &condition.min_kernel {
        let Some(version) = version(kernel) else {
            return Err(format!(".minKernel is `{}`, and no version such as 4.8", kernel.escape_debug()));
        };
        has.push(host.kernel >= version);
    }
    Ok(has.iter().all(|has| *has == wanted))
}

/// Whether another processor than `arch` has a call of this name: profiles are written for all of them.
fn elsewhere(name: &str, arch: Arch) -> bool {
    /// Of 32-bit processors only, and of those that this program does not run on.
    const FOREIGN: &str = "_llseek _newselect arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush fadvise64_64 \
        fcntl64 fstat64 fstatat64 fstatfs64 ftruncate64 idle ipc lstat64 mmap2 nice oldfstat oldlstat oldolduname oldstat \
        olduname recv s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr riscv_flush_icache send sendfile64 set_tls \
        sgetmask sigaction signal sigpending sigprocmask sigreturn sigsuspend socketcall ssetmask stat64 statfs64 stime \
        swapcontext sync_file_range2 truncate64 ugetrlimit umount vm86 vm86old waitpid bdflush ftime gtty stty prof profil \
        ulimit lock mpx break pciconfig_iobase pciconfig_read pciconfig_write switch_endian spu_create spu_run \
        sys_debug_setcontext subpage_prot rtas multiplexer getpagesize timerfd vserver";
    let other = match arch {
        Arch::X86_64 => Arch::Aarch64,
        Arch::Aarch64 => Arch::X86_64,
    };
    // The 32-bit forms of newer calls have a suffix: chown32, futex_time64.
    let bare = ["32", "_time64", "64"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    numbers(other).chain(numbers(arch)).any(|(_, known)| known == name || known == bare)
        || FOREIGN.split_ascii_whitespace().any(|known| known == name)
}

/// The program of one call: each case in turn, and what is left is the default.
fn decide(cases: &[Case], default: u32) -> Result<Vec<Instruction>, String> {
    let mut program = Vec::new();
    for Case { verdict, args } in cases {
        // Where a comparison fails it goes on behind the case, so that this is put together from its end.
        let mut case = vec![op(RETURN, 0, 0, *verdict)];
        for argument in args.iter().rev() {
            let mut whole = compare(*argument, order(*verdict) < order(default), case.len())?;
            whole.append(&mut case);
            case = whole;
        }
        program.extend(case);
    }
    if cases.last().is_none_or(|case| !case.args.is_empty()) {
        program.push(op(RETURN, 0, 0, default));
    }
    Ok(program)
}

/// A comparison: it falls through where it holds, and jumps over `behind` further instructions where not.
///
/// The kernel looks at the low 32 bits only of an argument that is an `int` to it, and which are, no profile says. Where the
/// value has no more than 32 bits both readings are compared: a refusal holds if either does, anything else if both do.
fn compare(argument: Argument, refuses: bool, behind: usize) -> Result<Vec<Instruction>, String> {
    let Argument { index, value, value_two, op: comparison } = argument;
    let low = OFFSET_OF_ARGUMENTS + 8 * index;
    let fits = value >> 32 == 0 && value_two >> 32 == 0;
    let narrow = |behind| narrow(low, value as u32, value_two as u32, comparison, behind);
    // A reading of all bits that says the same as the low ones where the rest is zero.
    let wide = |behind| wide(low, value, value_two, comparison, behind);
    match (fits, refuses) {
        (false, _) => wide(behind),
        (true, false) => {
            let second = narrow(behind)?;
            let mut program = wide(behind + second.len())?;
            program.extend(second);
            Ok(program)
        }
        (true, true) => {
            // The first that holds jumps over the second.
            let second = narrow(behind)?;
            let mut program = wide(1)?;
            program.push(op(JUMP, 0, 0, offset(second.len())?));
            program.extend(second);
            Ok(program)
        }
    }
}

fn offset(instructions: usize) -> Result<u32, String> {
    u32::try_from(instructions).map_err(|error| error.to_string())
}

/// `test` with what follows: straight on where it says `holds`, else over `behind` further instructions.
fn branch(code: u16, k: u32, holds: bool, behind: usize) -> Result<[Instruction; 2], String> {
    let (jt, jf) = if holds { (1, 0) } else { (0, 1) };
    Ok([op(code, jt, jf, k), op(JUMP, 0, 0, offset(behind)?)])
}

/// A comparison of the low 32 bits.
fn narrow(low: u32, value: u32, two: u32, comparison: Comparison, behind: usize) -> Result<Vec<Instruction>, String> {
    let mut program = vec![op(LOAD_WORD, 0, 0, low)];
    let (code, k, holds) = match comparison {
        Comparison::Eq => (JUMP_IF_EQUAL, value, true),
        Comparison::Ne => (JUMP_IF_EQUAL, value, false),
        Comparison::Lt => (JUMP_IF_AT_LEAST, value, false),
        Comparison::Ge => (JUMP_IF_AT_LEAST, value, true),
        Comparison::Gt => (JUMP_IF_ABOVE, value, true),
        Comparison::Le => (JUMP_IF_ABOVE, value, false),
        Comparison::MaskedEq => {
            program.push(op(AND, 0, 0, value));
            (JUMP_IF_EQUAL, two, true)
        }
    };
    program.extend(branch(code, k, holds, behind)?);
    Ok(program)
}

/// A comparison of all 64 bits: of the high word, and where that is equal of the low one.
fn wide(low: u32, value: u64, two: u64, comparison: Comparison, behind: usize) -> Result<Vec<Instruction>, String> {
    let (high_value, high_two) = ((value >> 32) as u32, (two >> 32) as u32);
    let last = narrow(low, value as u32, two as u32, comparison, behind)?;
    let (rest, over) = (offset(last.len())?, offset(last.len() + behind)?);
    let load = op(LOAD_WORD, 0, 0, low + 4);
    let mut program = match comparison {
        Comparison::Eq => vec![load, op(JUMP_IF_EQUAL, 1, 0, high_value), op(JUMP, 0, 0, over)],
        Comparison::MaskedEq => {
            vec![load, op(AND, 0, 0, high_value), op(JUMP_IF_EQUAL, 1, 0, high_two), op(JUMP, 0, 0, over)]
        }
        // Another high word decides that it holds.
        Comparison::Ne => vec![load, op(JUMP_IF_EQUAL, 1, 0, high_value), op(JUMP, 0, 0, rest)],
        Comparison::Gt | Comparison::Ge => vec![
            load,
            op(JUMP_IF_ABOVE, 0, 1, high_value),
            op(JUMP, 0, 0, rest + 2),
            op(JUMP_IF_EQUAL, 1, 0, high_value),
            op(JUMP, 0, 0, over),
        ],
        Comparison::Lt | Comparison::Le => vec![
            load,
            op(JUMP_IF_ABOVE, 0, 1, high_value),
            op(JUMP, 0, 0, over + 2),
            op(JUMP_IF_EQUAL, 1, 0, high_value),
            op(JUMP, 0, 0, rest),
        ],
    };
    program.extend(last);
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86: Host = Host { arch: Arch::X86_64, kernel: (6, 1) };
    const ARM: Host = Host { arch: Arch::Aarch64, kernel: (6, 1) };

    fn number(name: &str) -> u32 {
        numbers(Arch::X86_64).find(|(_, known)| *known == name).unwrap().0
    }

    /// What a program answers, as seccomp runs it (linux: net/core/filter.c).
    fn run(program: &[protocol::Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = vec![number, arch, 0, 0];
        data.extend(args.iter().flat_map(|&arg| [arg as u32, (arg >> 32) as u32]));
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let protocol::Instruction { code, jt, jf, k } = program[at];
            let branch = |holds: bool| usize::from(if holds { jt } else { jf });
            at += 1;
            match code {
                LOAD_WORD => accumulator = data[k as usize / 4],
                AND => accumulator &= k,
                JUMP => at += k as usize,
                JUMP_IF_EQUAL => at += branch(accumulator == k),
                JUMP_IF_ABOVE => at += branch(accumulator > k),
                JUMP_IF_AT_LEAST => at += branch(accumulator >= k),
                RETURN => return k,
                _ => panic!("code {code:#x}"),
            }
        }
    }

    fn ask(json: &str, name: &str, args: [u64; 6]) -> u32 {
        let program = compile(json.as_bytes(), 0, &X86).unwrap_or_else(|error| panic!("{error}: {json}"));
        run(&program, 0xc000_003e, number(name), args)
    }

    fn rules(default: &str, rules: &str) -> String {
        format!(r#"{{ "defaultAction": "SCMP_ACT_{default}", "syscalls": [{rules}] }}"#)
    }

    fn refused(json: &str) -> String {
        compile(json.as_bytes(), 0, &X86).unwrap_err()
    }

    #[test]
    fn actions_and_defaults() {
        let json = rules(
            "ERRNO",
            r#"{ "names": ["read", "write", "socketcall", "chown32"], "action": "SCMP_ACT_ALLOW", "comment": "x" },
               { "names": ["ptrace"], "action": "SCMP_ACT_KILL" }, { "name": "reboot", "action": "SCMP_ACT_KILL_PROCESS" },
               { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
               { "names": ["getpid"], "action": "SCMP_ACT_LOG", "args": null, "includes": {}, "excludes": {} },
               { "names": ["getppid"], "action": "SCMP_ACT_TRAP" }"#,
        );
        for (name, answer) in [
            ("read", ALLOW),
            ("write", ALLOW),
            ("ptrace", KILL_THREAD),
            ("reboot", KILL_PROCESS),
            ("clone3", FAIL | 38),
            ("getpid", LOG),
            ("getppid", TRAP),
            ("open", FAIL | 1),
        ] {
            assert_eq!(ask(&json, name, [0; 6]), answer, "{name}");
        }
        let program = compile(json.as_bytes(), 0, &X86).unwrap();
        assert_eq!(run(&program, 0xc000_003e, 9999, [0; 6]), FAIL | 1, "a call of the future");
        assert_eq!(run(&program, 0xc000_003e, 0x4000_0000, [0; 6]), FAIL | 38, "x32");
        assert_eq!(run(&program, 0x4000_0003, 3, [0; 6]), KILL_PROCESS, "i386");
        let arm = compile(json.as_bytes(), 0, &ARM).unwrap();
        assert_eq!(run(&arm, 0xc000_00b7, 63, [0; 6]), ALLOW, "read on arm");
        assert_eq!(
            ask(r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":95,"syscalls":null}"#, "read", [0; 6]),
            FAIL | 95
        );
    }

    #[test]
    fn the_hardest_rule_that_holds_counts() {
        let json = rules(
            "ERRNO",
            r#"{ "names": ["socket"], "action": "SCMP_ACT_ALLOW" },
               { "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22,
                 "args": [{ "index": 0, "value": 16, "op": "SCMP_CMP_EQ" }, { "index": 2, "value": 9, "op": "SCMP_CMP_EQ" }] },
               { "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 3 },
               { "names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 1, "value": 0, "op": "SCMP_CMP_EQ" }] }"#,
        );
        assert_eq!(ask(&json, "socket", [16, 0, 9, 0, 0, 0]), FAIL | 22);
        assert_eq!(ask(&json, "socket", [16, 0, 8, 0, 0, 0]), ALLOW);
        assert_eq!(ask(&json, "socket", [15, 0, 9, 0, 0, 0]), ALLOW);
        assert_eq!(ask(&json, "kill", [1, 0, 0, 0, 0, 0]), FAIL | 3);
    }

    /// Every comparison against what it says, with values on both sides of 32 bits; and with high bits set nothing that is to
    /// be refused passes, and nothing else is allowed more.
    #[test]
    fn comparisons_hold_for_all_bits_and_for_the_low_ones() {
        let values = [0_u64, 1, 39, 40, 41, 0xffff_ffff, 1 << 32, (1 << 32) + 40, u64::MAX];
        for value in values {
            for two in [0, 40, 1 << 32] {
                for name in ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"] {
                    let holds = |argument: u64, value: u64, two: u64| match name {
                        "NE" => argument != value,
                        "LT" => argument < value,
                        "LE" => argument <= value,
                        "EQ" => argument == value,
                        "GE" => argument >= value,
                        "GT" => argument > value,
                        _ => argument & value == two,
                    };
                    let args = format!(
                        r#""args": [{{ "index": 3, "value": {value}, "valueTwo": {two}, "op": "SCMP_CMP_{name}" }}]"#
                    );
                    let allow =
                        rules("ERRNO", &format!(r#"{{ "names": ["ioctl"], "action": "SCMP_ACT_ALLOW", {args} }}"#));
                    let refuse =
                        rules("ALLOW", &format!(r#"{{ "names": ["ioctl"], "action": "SCMP_ACT_ERRNO", {args} }}"#));
                    for argument in values {
                        let whole = holds(argument, value, two);
                        let low = holds(argument & 0xffff_ffff, value, two);
                        let short = value >> 32 == 0 && two >> 32 == 0;
                        let args = [7, 7, 7, argument, 7, 7];
                        let allowed = ask(&allow, "ioctl", args) == ALLOW;
                        assert_eq!(allowed, whole && (low || !short), "{name} {value:#x} {two:#x} {argument:#x}");
                        let allowed = ask(&refuse, "ioctl", args) == ALLOW;
                        assert_eq!(allowed, !(whole || low && short), "not {name} {value:#x} {two:#x} {argument:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn conditions() {
        let rule = |condition: &str| {
            let json = rules("ERRNO", &format!(r#"{{ "names": ["read"], "action": "SCMP_ACT_ALLOW", {condition} }}"#));
            let raw = capabilities::find("NET_RAW").unwrap().bit();
            let program = compile(json.as_bytes(), raw, &X86).unwrap();
            run(&program, 0xc000_003e, 0, [0; 6]) == ALLOW
        };
        for (condition, counts) in [
            (r#""includes": { "caps": ["CAP_NET_RAW"] }"#, true),
            (r#""includes": { "caps": ["CAP_NET_RAW", "CAP_CHOWN"] }"#, false),
            (r#""excludes": { "caps": ["CAP_CHOWN", "CAP_NET_RAW"] }"#, false),
            (r#""excludes": { "caps": ["CAP_CHOWN"], "arches": ["s390x"] }"#, true),
            (r#""includes": { "arches": ["arm64", "amd64"] }"#, true),
            (r#""includes": { "arches": ["arm64"] }"#, false),
            (r#""includes": { "arches": [], "caps": [] }"#, true),
            (r#""includes": { "minKernel": "4.8" }"#, true),
            (r#""includes": { "minKernel": "6.2" }"#, false),
            (r#""excludes": { "minKernel": "6.2" }"#, true),
        ] {
            assert_eq!(rule(condition), counts, "{condition}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let rule = |rule: &str| refused(&rules("ALLOW", rule));
        for (told, words) in [
            (refused("{\n  \"defaultAction\": \"SCMP_ACT_ALOW\"\n}"), &["SCMP_ACT_ALOW", "line 2"][..]),
            (refused("{"), &["line 1"]),
            (refused("{}"), &["defaultAction"]),
            (refused(r#"{"defaultAction":"SCMP_ACT_ALLOW","sycalls":[]}"#), &["sycalls", "syscalls"]),
            (refused(r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}"#), &["flags"]),
            (rule(r#"{ "names": ["x"], "action": "SCMP_ACT_NOTIFY" }"#), &["SCMP_ACT_NOTIFY"]),
            (rule(r#"{ "names": ["x"], "action": "SCMP_ACT_TRACE" }"#), &["SCMP_ACT_TRACE"]),
            (
                rule(r#"{ "names": ["read", "kexex_load"], "action": "SCMP_ACT_ERRNO" }"#),
                &["syscalls[0].names[1]", "kexex_load"],
            ),
            (rule(r#"{ "action": "SCMP_ACT_ERRNO" }"#), &["syscalls[0].names"]),
            (
                rule(r#"{ "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096 }"#),
                &["syscalls[0].errnoRet", "4095"],
            ),
            (
                rule(
                    r#"{ "names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }] }"#,
                ),
                &["syscalls[0].args[0].index"],
            ),
            (
                rule(
                    r#"{ "names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 0, "value": -1, "op": "SCMP_CMP_EQ" }] }"#,
                ),
                &["-1", "line 1"],
            ),
            (
                rule(r#"{ "names": ["read"], "action": "SCMP_ACT_ERRNO", "includes": { "caps": ["CAP_X"] } }"#),
                &["syscalls[0].includes.caps[0]", "CAP_X"],
            ),
            (
                rule(r#"{ "names": ["read"], "action": "SCMP_ACT_ERRNO", "excludes": { "minKernel": "new" } }"#),
                &["syscalls[0].excludes.minKernel"],
            ),
        ] {
            assert!(words.iter().all(|word| told.contains(word)), "{words:?}: {told}");
        }
        let args: Vec<String> = (0..1000)
            .map(|n| format!(r#"{{ "names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{{ "index": 0, "value": {n}, "op": "SCMP_CMP_EQ" }}] }}"#))
            .collect();
        let told = rule(&args.join(","));
        assert!(told.contains("instructions") && told.contains("4096"), "{told}");
    }

    /// No bytes make it panic, and what it accepts ends on every path.
    #[test]
    fn programs_are_well_formed() {
        let names: Vec<String> = numbers(Arch::X86_64).map(|(_, name)| format!("{name:?}")).collect();
        let json =
            rules("KILL_PROCESS", &format!(r#"{{ "names": [{}], "action": "SCMP_ACT_ALLOW" }}"#, names.join(",")));
        let program = compile(json.as_bytes(), 0, &X86).unwrap();
        assert!(program.len() < 100, "{} instructions for a list without a gap", program.len());
        for end in 0..json.len() {
            compile(&json.as_bytes()[..end], 0, &X86).unwrap_err();
        }
        assert!((0..2000).all(|number| [ALLOW, KILL_PROCESS].contains(&run(&program, 0xc000_003e, number, [0; 6]))));
    }
}
