//! `ctst doctor`

use std::fmt::Write as _;
use std::path::Path;

use containust_sdk::doctor::{Verdict, examine};
use containust_sdk::logs::escape;
use containust_sdk::{Project, doctor_net};

use crate::args::{Doctor, DoctorCommand, Format};
use crate::failure::{Outcome, TOOL};
use crate::output::{self, BAD, BOLD, Cell, GOOD, WARN, table};

pub(crate) fn run(args: &Doctor, file: Option<&Path>) -> Outcome {
    if let Some(DoctorCommand::Net { format }) = args.command {
        return net(format, &Project::locate(file)?);
    }
    let checks = examine();
    let bad = checks.iter().any(|check| check.status == Verdict::Bad);
    match args.format {
        Format::Json => output::json(&checks)?,
        Format::Text => {
            let rows: Vec<[Cell; 3]> = checks
                .iter()
                .map(|check| {
                    [Cell(check.name.to_string(), BOLD), verdict(check.status), escape(check.found.as_bytes()).into()]
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
    Ok(if bad { TOOL } else { 0 })
}

fn verdict(verdict: Verdict) -> Cell {
    match verdict {
        Verdict::Good => Cell("good".into(), GOOD),
        Verdict::Limited => Cell("limited".into(), WARN),
        Verdict::Bad => Cell("bad".into(), BAD),
    }
}

/// `ctst doctor net`
fn net(format: Format, project: &Project) -> Outcome {
    let checks = doctor_net::examine(project)?;
    match format {
        Format::Json => output::json(&checks)?,
        Format::Text => {
            let rows: Vec<[Cell; 4]> = checks
                .iter()
                .map(|check| {
                    let name = Cell(check.component.clone(), BOLD);
                    [name, check.about.clone().into(), verdict(check.status), escape(check.found.as_bytes()).into()]
                })
                .collect();
            let mut text = table(["COMPONENT", "ABOUT", "VERDICT", "FOUND"], &rows);
            for check in &checks {
                if let Some(fix) = &check.fix {
                    let (component, about) = (&check.component, &check.about);
                    writeln!(text, "\n{BOLD}{component}, {about}{BOLD:#}: {}", escape(fix.as_bytes())).ok();
                }
            }
            output::print(&text)?;
        }
    }
    Ok(if checks.iter().any(|check| check.status == Verdict::Bad) { TOOL } else { 0 })
}
