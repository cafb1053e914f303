//! How long the kernel takes to accept the base filter, and a linear one with the same allowed calls:
//! `cargo run --release -p containust-policy --example install_time`.

use std::error::Error;
use std::time::{Duration, Instant};

use containust_policy::seccomp::{Base, DEFAULT, HOST, Instruction, Verdict, base_filter, numbers};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

#[path = "../tests/kernel/mod.rs"]
mod kernel;

fn main() -> Result<(), Box<dyn Error>> {
    let allowed = |name: &str| {
        let row = DEFAULT.iter().find(|row| row.calls.split_ascii_whitespace().any(|call| call == name));
        row.is_some_and(|row| row.verdict == Verdict::Allow)
    };
    let rules = numbers(HOST).filter(|&(_, name)| allowed(name)).map(|(number, _)| (number.into(), vec![])).collect();
    let filter =
        SeccompFilter::new(rules, SeccompAction::Errno(1), SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    let list: BpfProgram = filter.try_into()?;
    let list: Vec<_> =
        list.into_iter().map(|op| Instruction { code: op.code, jt: op.jt, jf: op.jf, k: op.k }).collect();

    let bases = Base::ALL.map(|base| (base.name(), base_filter(base)));
    for (name, program) in bases.into_iter().chain([("default as a list", list.as_slice())]) {
        let mut times: Vec<Duration> = (0..100).map(|_| kernel::in_a_thread(|| time(program))).collect();
        times.sort();
        println!("{name}: {} instructions, median {:?}, fastest {:?}", program.len(), times[50], times[0]);
    }
    Ok(())
}

fn time(program: &[Instruction]) -> Duration {
    let start = Instant::now();
    kernel::install(program).expect("this kernel has seccomp filters");
    start.elapsed()
}
