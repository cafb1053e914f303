//! `ctst doctor`

use std::fmt::Write as _;

use containust_sdk::doctor::{Verdict, examine};
use containust_sdk::logs::escape;

use crate::args::{Doctor, Format};
use crate::failure::Outcome;
use crate::output::{self, BAD, BOLD, Cell, GOOD, WARN, table};

pub(crate) fn run(args: &Doctor) -> Outcome {
    let checks = examine();
    let bad = checks.iter().any(|check| check.status == Verdict::Bad);
    match args.format {
        Format::Json => output::json(&checks)?,
        Format::Text => {
            let rows: Vec<[Cell; 3]> = checks
                .iter()
                .map(|check| {
                    let verdict = match check.status {
                        Verdict::Good => Cell("good".into(), GOOD),
                        Verdict::Limited => Cell("limited".into(), WARN),
                        Verdict::Bad => Cell("bad".into(), BAD),
                    };
                    [Cell(check.name.to_string(), BOLD), verdict, escape(check.found.as_bytes()).into()]
                })
                .collect();
            let mut text = table(["CHECK", "VERDICT", "FOUND"], &rows);
            for check in checks.iter() {
                if let Some(fix) = &check.fix {
                    // Writing to a string cannot fail.
                    write!(text, "\n{BOLD}{}{BOLD:#}: {}\n", check.name, escape(fix.as_bytes())).ok();
                }
            }
            output::print(&text)?;
        }
    }
    Ok(if bad { crate::failure::TOOL } else { 0 })
}
