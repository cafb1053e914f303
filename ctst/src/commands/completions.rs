//! `ctst completions`

use clap_complete::env::Shells;

use crate::args::Completions;
use crate::complete::VARIABLE;
use crate::failure::{Failure, Outcome};
use crate::output;

/// Where the script of zsh is found by its name in `$fpath`, it is read when somebody first wants a completion, and has to give it.
const ZSH: &str = "\n[[ $funcstack[1] != _ctst ]] || _clap_dynamic_completer_ctst \"$@\"\n";

pub(crate) fn run(args: &Completions) -> Outcome {
    let shells = Shells::builtins();
    let shell = shells.completer(&args.shell).ok_or_else(|| Failure::new("find the shell: it is not known", None))?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "ctst", "ctst", "ctst", &mut script)?;
    if args.shell == "zsh" {
        script.extend(ZSH.as_bytes());
    }
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
