//! `ctst completions`

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::{Args, Completions};
use crate::failure::{Failure, Outcome};
use crate::output;

pub(crate) fn run(args: &Completions) -> Outcome {
    let shell: Shell = args.shell.parse().map_err(|problem: String| Failure::new(problem, None))?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "ctst", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
