//! `ctst plan`, and a plan as text, which `ctst run` shows too.

use std::fmt::Write as _;
use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anstyle::Style;
use containust_sdk::lang::model::SecretSource;
use containust_sdk::logs::escape;
use containust_sdk::{Action, Cause, Drift, Fetching, Grant, ImageState, Plan, Step};
use rustix::fs::OFlags;

use super::run::{replicas, with_needs};
use super::{command_line, read_held};
use crate::args::{self, Format};
use crate::failure::{Failure, Outcome, TOOL};
use crate::output::{self, BAD, BOLD, Cell, DIM, GOOD, WARN, short_reference, table};

/// Exit codes with `--detailed-exitcode`, as Terraform's.
const NOTHING: i32 = 0;
const ERROR: i32 = 1;
const CHANGES: i32 = 2;

pub(crate) fn run(args: &args::Plan, file: Option<&Path>, offline: bool) -> Outcome {
    let result = make(args, file, offline);
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

fn make(args: &args::Plan, file: Option<&Path>, offline: bool) -> Result<bool, Failure> {
    let (file, only) = args::split(&args.targets, file.map(Into::into))
        .map_err(|problem| Failure::new(problem, "name one".to_owned()))?;
    if let (Some(path), [name, ..]) = (&args.out, &only[..]) {
        let problem =
            format!("keep the plan of {name} in {}: a plan is kept and carried out as a whole", path.display());
        return Err(Failure::new(problem, "name no component, or leave out --out".to_owned()));
    }
    if let Some(path) = args.out.as_deref()
        && path.extension().is_none_or(|extension| extension != "json")
        && !path.metadata().is_ok_and(|meta| !meta.is_file())
    {
        let problem = format!("keep the plan in {}: `ctst run` knows a plan by its name in .json", path.display());
        return Err(Failure::new(problem, format!("name it {}.json", path.display())));
    }
    // The only thing that is written to, opened while that is allowed. An earlier plan in it stays until there is another.
    let out = args.out.as_deref().map(|path| create(path).map_err(|e| (path, e))).transpose();
    let mut out = out.map_err(|(path, e)| Failure::io(&format!("open {}", path.display()), e))?;
    containust_sdk::no_writes()?;
    if offline {
        containust_sdk::offline()?;
    }
    let (project, loaded) = read_held(file.as_deref(), &args.inputs, &args.pin, Fetching::Never)?;
    let plan = match &mut out {
        Some(out) => {
            let saved = project.plan_to_keep(&loaded)?;
            let bytes = saved.to_bytes()?;
            let write = out.set_len(0).and_then(|()| out.write_all(&bytes));
            write.map_err(|e| Failure::io("write the plan", e))?;
            saved.plan
        }
        None => {
            let composition = loaded.outcome.composition.as_ref().ok_or(Failure::Told(TOOL))?;
            let only: Vec<String> = only.into_iter().flat_map(|name| replicas(composition, name)).collect();
            let mut plan = match only.is_empty() {
                true => project.plan(composition)?,
                false => project.plan_some(composition, &with_needs(composition, &only)?)?,
            };
            if !only.is_empty() {
                // Nor does a run of some remove others, not even where the file has no others any more.
                plan.steps.retain(|step| step.action != Action::Remove);
            }
            plan.tell(&loaded);
            plan
        }
    };
    match args.format {
        Format::Json => output::json(&plan)?,
        Format::Text => output::print(&text(&plan, project.folder(), args.all))?,
    }
    if let Some(path) = &args.out {
        let path = path.to_string_lossy();
        talk!("kept; to carry it out: {}", command_line(["run", &path].into_iter()));
    }
    Ok(plan.changes())
}

/// A file for the caller alone: the environment of every component stands in it.
fn create(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    // A FIFO would wait for a reader.
    options.custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed());
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// The whole plan; what stays as it is only if `all`.
pub(crate) fn text(plan: &Plan, folder: &Path, all: bool) -> String {
    let mut text = format!("{BOLD}project {}{BOLD:#} {DIM}(ids: {}){DIM:#}\n", safe(&plan.project), safe(&plan.ids));
    let shown: Vec<&Step> = plan.steps.iter().filter(|step| all || step.action != Action::Unchanged).collect();
    let rows: Vec<[Cell; 4]> = shown.iter().map(|step| row(step, folder)).collect();
    let lines = table(["", "COMPONENT", "ACTION", "IMAGE"], &rows);
    // Writing to a string cannot fail.
    if !shown.is_empty() {
        text.push('\n');
    }
    for (line, step) in lines.lines().skip(1).zip(&shown) {
        writeln!(text, "  {line}").ok();
        if step.data_loss {
            writeln!(text, "      {BAD}what was written into it is lost; wants --allow-destroy{BAD:#}").ok();
        }
        for cause in &step.causes {
            writeln!(text, "      {}", because(cause)).ok();
        }
    }
    let grants: Vec<&Grant> = plan.grants.iter().filter(|grant| all || grant.is_new()).collect();
    if !grants.is_empty() {
        write!(text, "\nof this host it is given\n{}", self::grants(grants.into_iter())).ok();
    }
    if !plan.drift.is_empty() {
        write!(text, "\nto look at\n{}", drift(&plan.drift)).ok();
    }
    if !plan.notes.is_empty() {
        text.push('\n');
    }
    for note in &plan.notes {
        writeln!(text, "{WARN}note{WARN:#}: {}", safe(note)).ok();
    }
    writeln!(text, "\n{}", summary(&plan.steps)).ok();
    text
}

fn row(step: &Step, folder: &Path) -> [Cell; 4] {
    let (symbol, style) = symbol(step.action);
    let image = step.image.as_ref().map_or("".into(), |image| shown_image(image, folder));
    [
        Cell(format!("{symbol:>3}"), style),
        Cell(step.component.clone(), BOLD),
        Cell(step.action.name().into(), style),
        image,
    ]
}

fn symbol(action: Action) -> (&'static str, Style) {
    match action {
        Action::Create | Action::Start => ("+", GOOD),
        Action::Update | Action::Restart => ("~", WARN),
        Action::Replace => ("-/+", WARN),
        Action::Unknown => ("?", WARN),
        Action::Unchanged => ("=", DIM),
        Action::Remove => ("-", BAD),
    }
}

fn shown_image(image: &ImageState, folder: &Path) -> Cell {
    match image {
        ImageState::Present { reference, digest, size, lazy } => {
            let (digest, size) = (output::short_digest(digest), output::size(*size));
            let lazy = if *lazy { ", read from its archive" } else { "" };
            Cell(format!("{} {digest} {size}{lazy}", short_reference(reference, folder)), DIM)
        }
        ImageState::Import { reference, digest, lazy } => {
            let how = match (digest, reference.starts_with("oci://")) {
                _ if reference.starts_with("distroless://") => "will be stripped".to_owned(),
                _ if reference.starts_with("bundle://") => "will be unpacked".to_owned(),
                _ if *lazy => "will be indexed, and read from its archive".to_owned(),
                (Some(digest), _) => format!("will be pulled as {}", output::short_digest(digest)),
                (None, true) => "will be pulled, and locked".to_owned(),
                (None, false) if reference.starts_with("build://") => "will be built".to_owned(),
                (None, false) => "will be imported".to_owned(),
            };
            Cell(format!("{}, {how}", short_reference(reference, folder)), WARN)
        }
    }
}

/// `command changed: ["a"] -> ["b"]`.
pub(crate) fn because(cause: &Cause) -> String {
    let values = match (&cause.old, &cause.new) {
        (None, None) => String::new(),
        (Some(old), None) => format!(": {}", safe(old)),
        (None, Some(new)) => format!(": {}", safe(new)),
        (Some(old), Some(new)) => format!(": {} {DIM}->{DIM:#} {}", safe(old), safe(new)),
    };
    format!("{}{values}", safe(&cause.message))
}

/// One line for each; what wants consent stands out.
pub(crate) fn grants<'a>(grants: impl Iterator<Item = &'a Grant>) -> String {
    let mut text = String::new();
    for grant in grants {
        let style = if grant.wants_consent() { WARN } else { Style::new() };
        let new = if grant.is_new() { " (new)" } else { "" };
        let line = match grant {
            Grant::Mount { component, source, target, readonly, .. } => {
                let how = if *readonly { "read-only" } else { "writable" };
                format!("{component}: {} at {}, {how}", safe(&source.to_string_lossy()), safe(target))
            }
            Grant::Device { component, source, target, .. } => {
                format!("{component}: the device {} at {}", safe(&source.to_string_lossy()), safe(target))
            }
            Grant::Publish { component, address, host_port, port, protocol, public, .. } => {
                let who = if *public { "for everyone who can reach this host" } else { "for this host only" };
                let address = std::net::SocketAddr::new(*address, *host_port);
                format!("{component}: port {address} to {port}{}, {who}", protocol.suffix())
            }
            Grant::Egress { component, network, .. } => {
                format!("{component}: a way out by the network {}, to whatever this host reaches", safe(network))
            }
            Grant::Capability { component, capability, .. } => {
                format!("{component}: the capability {}, over the container only", safe(capability))
            }
            Grant::Filter { component, filter, .. } => {
                format!("{component}: the filter {}, which leaves more of the kernel than the usual one", safe(filter))
            }
            Grant::Secret { component, secret, source, .. } => {
                let from = match source {
                    SecretSource::File(path) => format!("the file {}", safe(path)),
                    SecretSource::Env(variable) => format!("the variable {}", safe(variable)),
                    SecretSource::Command(command) => format!("a command run here by every run: {}", safe(command)),
                };
                format!("{component}: the secret {} from {from}", safe(secret))
            }
        };
        writeln!(text, "  {style}{line}{new}{style:#}").ok();
    }
    text
}

/// One line for each.
pub(crate) fn drift(drift: &[Drift]) -> String {
    let lines = drift.iter().map(|drift| format!("  {WARN}{}: {}{WARN:#}\n", drift.component, safe(&drift.message)));
    lines.collect()
}

/// `2 to create, 1 unchanged`.
pub(crate) fn summary(steps: &[Step]) -> String {
    if steps.is_empty() {
        return "nothing to do: the composition is empty".to_owned();
    }
    if steps.iter().all(|step| step.action == Action::Unchanged) {
        return "nothing to do: everything is as the file says".to_owned();
    }
    let order = [
        Action::Create,
        Action::Start,
        Action::Replace,
        Action::Restart,
        Action::Update,
        Action::Remove,
        Action::Unknown,
        Action::Unchanged,
    ];
    let counts = order.iter().filter_map(|action| {
        let count = steps.iter().filter(|step| step.action == *action).count();
        let name = action.name();
        let text = match action {
            Action::Unchanged => name.to_owned(),
            Action::Unknown => "unknown until import".to_owned(),
            _ => format!("to {name}"),
        };
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

    fn step(component: &str, action: &str, causes: &[(&str, Option<&str>)], image: Value) -> Value {
        let cause = |(message, new): &(&str, Option<&str>)| json!({ "field": "x", "message": message, "old": new.map(|_| "old"), "new": new, "in_place": false });
        let causes: Vec<Value> = causes.iter().map(cause).collect();
        json!({ "component": component, "action": action, "causes": causes, "data_loss": action == "remove", "image": image })
    }

    #[test]
    fn a_plan_as_text() {
        let plan = json!({
            "project": "sh\u{1b}[2Jop",
            "ids": "single",
            "notes": ["files of other owners became yours"],
            "drift": [{ "component": "web", "kind": "unhealthy", "message": "its health check fails" }],
            "steps": [
                step("db", "unchanged", &[], json!({ "state": "present", "reference": "file:///srv/\u{1b}[2Jdb", "digest":
                    format!("sha256:{}", "ab".repeat(32)), "size": 1_500_000 })),
                step("web", "create", &[], json!({ "state": "import", "reference": "host:///bin/true" })),
                step("application", "replace", &[("env A added", None), ("command changed", Some("\u{1b}[2J"))], Value::Null),
                step("old", "remove", &[], Value::Null),
            ],
            "grants": [
                { "grant": "mount", "component": "db", "source": "/srv/data", "target": "/data", "readonly": false,
                  "new": false },
                { "grant": "publish", "component": "web", "address": "127.0.0.1", "host_port": 8080, "port": 80,
                  "public": false, "new": true },
            ],
        });
        let plan: Plan = serde_json::from_value(plan).unwrap();
        let plain = |all| anstream::adapter::strip_str(&text(&plan, Path::new("/srv"), all)).to_string();
        assert_eq!(
            plain(false),
            "project sh\\x1b[2Jop (ids: single)\n\
             \n\
             \x20   +  web          create   host:///bin/true, will be imported\n\
             \x20 -/+  application  replace\n\
             \x20     env A added\n\
             \x20     command changed: old -> \\x1b[2J\n\
             \x20   -  old          remove\n\
             \x20     what was written into it is lost; wants --allow-destroy\n\
             \n\
             of this host it is given\n\
             \x20 web: port 127.0.0.1:8080 to 80, for this host only (new)\n\
             \n\
             to look at\n\
             \x20 web: its health check fails\n\
             \n\
             note: files of other owners became yours\n\
             \n\
             1 to create, 1 to replace, 1 to remove, 1 unchanged\n"
        );
        let all = plain(true);
        assert!(all.contains("  =  db           unchanged  file://./\\x1b[2Jdb abababababab 1.5 MB\n"), "{all}");
        assert!(all.contains("  db: /srv/data at /data, writable\n"), "{all}");
    }
}
