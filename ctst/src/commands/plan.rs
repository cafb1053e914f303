//! `ctst plan`, and a plan as text, which `ctst run` shows too.

use std::fmt::Write as _;
use std::path::Path;

use anstyle::Style;
use containust_sdk::logs::escape;
use containust_sdk::{Action, Fetching, Grant, ImageState, Plan, Step};

use super::{load, one_file};
use crate::args::{self, Format};
use crate::failure::{Failure, Outcome};
use crate::output::{self, BAD, BOLD, Cell, DIM, GOOD, WARN, short_reference, table};

/// Exit codes with `--detailed-exitcode`, as Terraform's.
const NOTHING: i32 = 0;
const ERROR: i32 = 1;
const CHANGES: i32 = 2;

pub(crate) fn run(args: &args::Plan, file: Option<&Path>) -> Outcome {
    let result = make(args, file);
    if !args.detailed_exitcode {
        return result.map(|_| 0);
    }
    match result {
        Ok(changes) => Ok(if changes { CHANGES } else { NOTHING }),
        Err(Failure::BrokenPipe) => Err(Failure::BrokenPipe),
        Err(failure) => {
            failure.tell();
            Ok(ERROR)
        }
    }
}

fn make(args: &args::Plan, file: Option<&Path>) -> Result<bool, Failure> {
    let (project, composition) = load(one_file(file, args.file.as_deref())?, &args.inputs, Fetching::Never)?;
    let plan = project.plan(&composition)?;
    match args.format {
        Format::Json => output::json(&plan)?,
        Format::Text => output::print(&text(&plan, project.folder()))?,
    }
    Ok(plan.changes())
}

/// The whole plan.
pub(crate) fn text(plan: &Plan, folder: &Path) -> String {
    let mut text = format!("{BOLD}project {}{BOLD:#} {DIM}(ids: {}){DIM:#}\n\n", plan.project, safe(&plan.ids));
    let rows: Vec<[Cell; 3]> = plan.steps.iter().map(row).collect();
    // The symbol, the name and the action; images and causes have lines of their own below, being long.
    let lines = table(["", "COMPONENT", "ACTION"], &rows);
    let mut lines = lines.lines().skip(1);
    for step in &plan.steps {
        // Writing to a string cannot fail.
        writeln!(text, "  {}", lines.next().unwrap_or_default()).ok();
        if let Some(image) = &step.image {
            writeln!(text, "      {}", shown_image(image, folder)).ok();
        }
        for cause in &step.causes {
            writeln!(text, "      {DIM}because:{DIM:#} {}", safe(cause)).ok();
        }
    }
    if !plan.grants.is_empty() {
        write!(text, "\nof this host it is given\n{}", grants(plan.grants.iter())).ok();
    }
    for note in &plan.notes {
        write!(text, "\n{WARN}note{WARN:#}: {}\n", safe(note)).ok();
    }
    writeln!(text, "\n{}", summary(plan)).ok();
    text
}

fn row(step: &Step) -> [Cell; 3] {
    let (symbol, style) = symbol(step.action);
    [Cell(symbol.into(), style), Cell(step.component.clone(), BOLD), Cell(step.action.name().into(), style)]
}

fn symbol(action: Action) -> (&'static str, Style) {
    match action {
        Action::Create | Action::Start => ("+", GOOD),
        Action::Replace | Action::Update => ("~", WARN),
        Action::Unchanged => ("=", DIM),
        Action::Remove => ("-", BAD),
    }
}

fn shown_image(image: &ImageState, folder: &Path) -> String {
    match image {
        ImageState::Present { reference, digest, size } => {
            format!(
                "{} {DIM}{}, {}{DIM:#}",
                short_reference(reference, folder),
                output::short_digest(digest),
                output::size(*size)
            )
        }
        ImageState::Import { reference } => {
            format!("{} {WARN}will be imported{WARN:#}", short_reference(reference, folder))
        }
    }
}

/// One line for each; what wants consent stands out.
pub(crate) fn grants<'a>(grants: impl Iterator<Item = &'a Grant>) -> String {
    let mut text = String::new();
    for grant in grants {
        let style = if grant.wants_consent() { WARN } else { Style::new() };
        let line = match grant {
            Grant::Mount { component, source, target, readonly, .. } => {
                let how = if *readonly { "read-only" } else { "writable" };
                format!("{component}: {} at {}, {how}", safe(&source.to_string_lossy()), safe(target))
            }
            Grant::Publish { component, address, host_port, port, public, .. } => {
                let who = if *public { "for everyone who can reach this host" } else { "for this host only" };
                let address = std::net::SocketAddr::new(*address, *host_port);
                format!("{component}: port {address} to {port}, {who}")
            }
        };
        writeln!(text, "  {style}{line}{style:#}").ok();
    }
    text
}

/// `2 to create, 1 unchanged`.
pub(crate) fn summary(plan: &Plan) -> String {
    if plan.steps.is_empty() {
        return "nothing to do: the composition is empty".to_owned();
    }
    if !plan.changes() {
        return "nothing to do: everything is as the file says".to_owned();
    }
    let order = [Action::Create, Action::Start, Action::Replace, Action::Update, Action::Remove, Action::Unchanged];
    let counts = order.iter().filter_map(|action| {
        let count = plan.steps.iter().filter(|step| step.action == *action).count();
        let name = action.name();
        let text = if *action == Action::Unchanged { name.to_owned() } else { format!("to {name}") };
        (count > 0).then(|| format!("{count} {text}"))
    });
    counts.collect::<Vec<_>>().join(", ")
}

/// Texts of a file's author must not steer the terminal.
fn safe(text: &str) -> String {
    escape(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn step(component: &str, action: &str, causes: &[&str], image: Value) -> Value {
        json!({ "component": component, "action": action, "causes": causes, "image": image })
    }

    #[test]
    fn a_plan_as_text() {
        let plan = json!({
            "project": "shop",
            "ids": "single",
            "notes": ["files of other owners became yours"],
            "steps": [
                step("db", "unchanged", &[], json!({ "state": "present", "reference": "file:///srv/\u{1b}[2Jdb", "digest":
                    format!("sha256:{}", "ab".repeat(32)), "size": 1_500_000 })),
                step("web", "create", &[], json!({ "state": "import", "reference": "host:///bin/true" })),
                step("application", "replace", &["env", "image"], Value::Null),
                step("old", "remove", &[], Value::Null),
            ],
            "grants": [
                { "grant": "mount", "component": "db", "source": "/srv/data", "target": "/data", "readonly": false,
                  "new": true },
                { "grant": "publish", "component": "web", "address": "127.0.0.1", "host_port": 8080, "port": 80,
                  "public": false, "new": true },
            ],
        });
        let plan: Plan = serde_json::from_value(plan).unwrap();
        assert_eq!(
            anstream::adapter::strip_str(&text(&plan, Path::new("/srv"))).to_string(),
            "project shop (ids: single)\n\
             \n\
             \x20 =  db           unchanged\n\
             \x20     file://./\\x1b[2Jdb abababababab, 1.5 MB\n\
             \x20 +  web          create\n\
             \x20     host:///bin/true will be imported\n\
             \x20 ~  application  replace\n\
             \x20     because: env\n\
             \x20     because: image\n\
             \x20 -  old          remove\n\
             \n\
             of this host it is given\n\
             \x20 db: /srv/data at /data, writable\n\
             \x20 web: port 127.0.0.1:8080 to 80, for this host only\n\
             \n\
             note: files of other owners became yours\n\
             \n\
             1 to create, 1 to replace, 1 to remove, 1 unchanged\n"
        );
    }
}
