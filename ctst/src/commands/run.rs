//! `ctst run`

use std::collections::HashSet;
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use containust_sdk::lang::model::{Component, Composition, Restart};
use containust_sdk::logs::POLL;
use containust_sdk::logs::escape;
use containust_sdk::run::{self, Options};
use containust_sdk::{
    Action, Client, ContainerStatus, Drift, Error, Event, EventKind, Fetching, Grant, GraphResolver, Health, Notice,
    Plan, Polled, Project, Report, SavedPlan, Session, State, Step,
};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};

use super::{again_with, plan, read_held};
use crate::args::{self, Run};
use crate::events;
use crate::failure::{self, Failure, Outcome, TOOL};
use crate::output::{BOLD, DIM, WARN, talk};
use crate::printer::{self, Printer};
use crate::progress::Progress;
use crate::signals::Signals;

/// How a program ends that did not end by itself.
const KILLED: i32 = 128 + 9;

pub(crate) fn run(args: &Run, file: Option<PathBuf>) -> Outcome {
    let alone = "name nothing but the plan; ctst plan -o takes files and parameters".to_owned();
    if let Some(path) = args.saved().map_err(|problem| Failure::new(problem, alone.clone()))? {
        if file.is_some() {
            return Err(Failure::new(format!("run {}: the plan says which composition", path.display()), alone));
        }
        let saved = SavedPlan::read(&path)?;
        let project = saved.project()?;
        let leaves = saved.composition.components.iter().flat_map(|component| component.network.attachments());
        if let Some(on) = leaves.into_iter().find(|on| on.egress && containust_sdk::is_offline()) {
            let problem = format!("run {} offline: in it {} has a way out", path.display(), on.network);
            return Err(Failure::new(problem, "plan again: ctst plan --offline -o FILE".to_owned()));
        }
        let plan = saved.hold(&project)?;
        return carry_out(args, &project, &saved.composition, &plan, Vec::new(), &[]);
    }
    let (file, only) =
        args::split(&args.targets, file).map_err(|problem| Failure::new(problem, "name one".to_owned()))?;
    let (project, loaded) = read_held(file.as_deref(), &args.inputs, &args.pin, Fetching::Known)?;
    let composition = loaded.outcome.composition.as_ref().ok_or(Failure::Told(TOOL))?;
    let only: Vec<String> = only.into_iter().flat_map(|name| replicas(composition, name)).collect();
    let plan = project.plan_some(composition, &with_needs(composition, &only)?)?;
    carry_out(args, &project, composition, &plan, only, &loaded.taken)
}

/// Does what the plan says, for these components and what they need, or for all. `taken`: what stands in the composition of the host.
fn carry_out(
    args: &Run,
    project: &Project,
    composition: &Composition,
    plan: &Plan,
    only: Vec<String>,
    taken: &[String],
) -> Outcome {
    let chosen = with_needs(composition, &only)?;
    let mut end = End::new(args, composition, &chosen)?;
    let mut progress = Progress::new(project.folder());
    let settled = project.settle(composition, plan, &chosen, &mut |step| progress.show(&step));
    progress.clear();
    let settled = settled?;
    let plan = settled.as_ref().unwrap_or(plan);
    introduce(plan, &chosen, only.is_empty());
    for note in taken.iter().filter(|_| plan.changes()) {
        talk!("  {WARN}note{WARN:#}: {}", escape(note.as_bytes()));
    }
    spare_data(plan, &chosen, only.is_empty(), args.allow_destroy)?;
    consent(plan, &chosen, args.yes)?;

    let detached = args.detach || args.wait;
    let shown: Vec<String> =
        composition.components.iter().map(|c| c.name.clone()).filter(|name| chosen.contains(name)).collect();
    // Opened before anything starts, so that nothing is missed and nothing old is shown.
    let mut printer = if detached { None } else { Some(printer(project, composition, &shown, args)?) };
    let options = Options { wait: args.wait, only, allow_destroy: args.allow_destroy };
    let session = run::up(project, composition, plan, &options, &mut |step| progress.show(&step));
    progress.clear();
    let mut session = session?;
    match &mut printer {
        None => {
            let wait = args.wait.then_some(composition);
            let waiting = Waiting { project, chosen: &chosen, wait, began: Instant::now(), told: 0 };
            detach(&mut session, args.wait_timeout.map(Duration::from_secs), &plan.notes, waiting)
        }
        Some(printer) => foreground(project, &mut session, printer, &plan.notes, &mut end),
    }
}

/// What of the plan a run of these components does.
fn done<'a>(plan: &'a Plan, chosen: &HashSet<String>, all: bool) -> impl Iterator<Item = &'a Step> {
    plan.steps.iter().filter(move |step| match step.action {
        Action::Remove => all,
        _ => chosen.contains(&step.component),
    })
}

/// These components and what they need; all if none is named.
pub(super) fn with_needs(composition: &Composition, only: &[String]) -> Result<HashSet<String>, Error> {
    if only.is_empty() {
        return Ok(composition.components.iter().map(|c| c.name.clone()).collect());
    }
    Ok(GraphResolver::new(composition)?.closure(only)?.into_iter().map(str::to_owned).collect())
}

/// The components that a name stands for: all replicas of one, or itself.
pub(super) fn replicas(composition: &Composition, name: String) -> Vec<String> {
    let of = |component: &&Component| component.replica.as_ref().is_some_and(|replica| replica.of == name);
    let found: Vec<String> = composition.components.iter().filter(of).map(|component| component.name.clone()).collect();
    if found.is_empty() { vec![name] } else { found }
}

/// The plan in short: what changes and why, and what it is newly given of the host.
fn introduce(plan: &Plan, chosen: &HashSet<String>, all: bool) {
    let steps: Vec<Step> = done(plan, chosen, all).cloned().collect();
    // From a plan's file it may be anything.
    talk!("{BOLD}{}{BOLD:#}: {}", escape(plan.project.as_bytes()), plan::summary(&steps));
    for step in steps.iter().filter(|step| step.action != Action::Unchanged) {
        let causes: Vec<String> = step.causes.iter().map(plan::because).collect();
        let causes = if causes.is_empty() { String::new() } else { format!(" {DIM}({}){DIM:#}", causes.join("; ")) };
        talk!("  {} {}{causes}", step.action.name(), step.component);
    }
    let new = new_grants(plan, chosen);
    if !new.is_empty() {
        talk(&format!("of this host it is given\n{}", plan::grants(new.into_iter())));
    }
    let drift: Vec<Drift> = plan.drift.iter().filter(|drift| chosen.contains(&drift.component)).cloned().collect();
    if !drift.is_empty() {
        talk(&format!("to look at\n{}", plan::drift(&drift)));
    }
    for note in &plan.notes {
        talk!("{WARN}note{WARN:#}: {}", containust_sdk::logs::escape(note.as_bytes()));
    }
}

/// What is lost with a container has to be allowed, before anything is touched.
fn spare_data(plan: &Plan, chosen: &HashSet<String>, all: bool, allowed: bool) -> Result<(), Failure> {
    let components: Vec<String> =
        done(plan, chosen, all).filter(|step| step.data_loss).map(|step| step.component.clone()).collect();
    if allowed || components.is_empty() { Ok(()) } else { Err(Error::DataLoss { components }.into()) }
}

fn new_grants<'a>(plan: &'a Plan, chosen: &HashSet<String>) -> Vec<&'a Grant> {
    plan.grants.iter().filter(|grant| grant.is_new() && chosen.contains(grant.component())).collect()
}

/// A person agrees to what changes the host or opens it to others.
fn consent(plan: &Plan, chosen: &HashSet<String>, yes: bool) -> Result<(), Failure> {
    let asked: Vec<&Grant> = new_grants(plan, chosen).into_iter().filter(|g| g.wants_consent()).collect();
    if yes || asked.is_empty() {
        return Ok(());
    }
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        talk("Allow what is marked? [y/N] ");
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map_err(|e| Failure::io("read your answer", e))?;
        if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            return Ok(());
        }
        return Err(Failure::new("run: not allowed by you", None));
    }
    let list = anstream::adapter::strip_str(&plan::grants(asked.into_iter())).to_string();
    let message = format!("run {}: a person has to allow\n{}", plan.project, list.trim_end());
    Err(Failure::new(message, format!("allow it: {}", again_with("--yes"))))
}

/// What ends a run in the foreground beside Ctrl-C and the end of all: `--abort-on-failure` and `--exit-code-from`.
struct End<'a> {
    composition: &'a Composition,
    on_failure: bool,
    /// The component of `--exit-code-from`, or its replicas.
    from: Vec<String>,
    /// The exit code, once it is known.
    code: Option<i32>,
}

impl<'a> End<'a> {
    fn new(args: &Run, composition: &'a Composition, chosen: &HashSet<String>) -> Result<Self, Failure> {
        let from = args.exit_code_from.iter().flat_map(|name| replicas(composition, name.clone()));
        let from: Vec<String> = from.collect();
        if let Some(name) = from.iter().find(|name| !chosen.contains(*name)) {
            let problem = format!("take the exit code from {name}: this run does not start it");
            let mut known: Vec<&str> = chosen.iter().map(String::as_str).collect();
            known.sort_unstable();
            return Err(Failure::new(problem, format!("name one of {}", known.join(", "))));
        }
        Ok(Self { composition, on_failure: args.abort_on_failure, from, code: None })
    }

    /// Takes note of an event. `true`: everything is to be stopped now.
    fn is_reached(&mut self, event: &Event) -> bool {
        let name = &event.component;
        let code = match &event.kind {
            EventKind::Exited { code } if !self.starts_again(name, *code) => *code,
            EventKind::Failed(report) => if_failed(report),
            // By us, or by somebody else.
            EventKind::Stopped { code } if self.from.contains(name) => code.unwrap_or(KILLED),
            _ => return false,
        };
        self.take(name, code)
    }

    /// Takes note of what ended before this run, such as a job that is not run again.
    fn look(&mut self, status: &[ContainerStatus]) -> bool {
        let ended = status.iter().find(|status| self.from.contains(&status.component) && !status.state.is_live());
        ended.is_some_and(|status| self.take(&status.component, super::wait::code(Some(status))))
    }

    fn take(&mut self, name: &String, code: i32) -> bool {
        let counts = self.from.contains(name) || (self.on_failure && code != 0);
        if !counts || self.code.is_some() {
            return false;
        }
        self.code = Some(code);
        true
    }

    /// As its supervisor decides it.
    fn starts_again(&self, name: &str, code: i32) -> bool {
        let component = self.composition.components.iter().find(|component| component.name == name);
        component.is_some_and(|component| match component.restart {
            Restart::Never => false,
            Restart::OnFailure => code != 0,
            Restart::Always | Restart::UnlessStopped => code != 0 || !component.job,
        })
    }
}

fn printer(project: &Project, composition: &Composition, shown: &[String], args: &Run) -> Result<Printer, Failure> {
    let all = composition.components.iter().map(|c| c.name.clone()).collect();
    let mut printer = Printer::new(all, shown, args.timestamps, !args.no_log_prefix);
    for name in shown {
        printer.add(name, printer::open(project, name, Some(0), None)?);
    }
    Ok(printer)
}

/// When a wait tells what it waits for, in seconds since it began; then every minute.
const TELL_AT: [u64; 4] = [3, 10, 20, 40];

/// What a run in the background waits for.
struct Waiting<'a> {
    project: &'a Project,
    chosen: &'a HashSet<String>,
    /// The composition, where all has to be healthy, and jobs completed.
    wait: Option<&'a Composition>,
    began: Instant,
    /// How often it was told.
    told: usize,
}

impl Waiting<'_> {
    /// When to tell next.
    fn due(&self) -> Instant {
        let minutes = u64::try_from(self.told + 1).unwrap_or(u64::MAX).saturating_sub(TELL_AT.len() as u64);
        let seconds = TELL_AT.get(self.told).copied().unwrap_or(minutes.saturating_mul(60));
        self.began + Duration::from_secs(seconds)
    }

    fn tell(&mut self) {
        self.told += 1;
        for line in self.lines() {
            talk!("{DIM}after {} s: waits for {line}{DIM:#}", self.began.elapsed().as_secs());
        }
    }

    /// Who is not what is waited for, and what the last probe said. The supervisor itself is asked, because failures of one who
    /// starts are in no record.
    fn lines(&self) -> Vec<String> {
        let status = Client::connect(self.project).ok().flatten().and_then(|mut client| client.status().ok());
        let chosen = status.into_iter().flatten().filter(|status| self.chosen.contains(&status.component));
        chosen.filter_map(|status| self.line(&status)).collect()
    }

    fn line(&self, status: &ContainerStatus) -> Option<String> {
        let name = &status.component;
        let job = || self.wait?.components.iter().find(|component| component.name == *name).map(|found| found.job);
        Some(match (status.state, status.health) {
            (State::Starting, _) => format!("{name} to start"),
            (State::Stopping, _) => format!("{name} to stop"),
            (State::Restarting, _) => {
                format!("{name} to start again: it ended with {}", status.exit_code.unwrap_or_default())
            }
            (State::Running, Some(Health::Starting)) if self.wait.is_some() => match &status.last_probe {
                Some(output) => format!("{name} to be healthy; its last probe: {}", escape(output.trim().as_bytes())),
                None => format!("{name} to be healthy; no probe has ended yet"),
            },
            (State::Running, _) if job() == Some(true) => format!("{name} to complete"),
            // Those that wait themselves wait for one of these.
            _ => return None,
        })
    }
}

/// Until everything is started, or with `--wait` healthy; then everything goes on without us.
fn detach(session: &mut Session, limit: Option<Duration>, notes: &[String], mut waiting: Waiting<'_>) -> Outcome {
    let end = limit.map(|limit| Instant::now() + limit);
    let mut told = HashSet::new();
    loop {
        match session.poll_event()? {
            Polled::Notice(Notice::Event(event)) => {
                if matches!(event.kind, EventKind::Failed(_) | EventKind::Unchanged(_)) {
                    told.insert(event.component.clone());
                }
                if !is_noted(&event, notes) {
                    events::show(&event);
                }
            }
            Polled::Notice(Notice::Settled { failed }) => return Ok(settled(&failed, &told)),
            Polled::Notice(Notice::Over { code }) => return Ok(code),
            Polled::End => return Ok(0),
            Polled::Empty => {
                let left = end.map(|end| end.saturating_duration_since(Instant::now()));
                if left == Some(Duration::ZERO) {
                    let seconds = limit.unwrap_or_default().as_secs();
                    let lines: String = waiting.lines().iter().map(|line| format!("\nit waited for {line}")).collect();
                    let message = format!("wait until everything is healthy: it is not after {seconds} s{lines}");
                    return Err(Failure::new(message, "what was started goes on: ctst ps, ctst logs".to_owned()));
                }
                let next = waiting.due().saturating_duration_since(Instant::now());
                if next.is_zero() {
                    waiting.tell();
                    continue;
                }
                wait(&[PollFd::new(session, PollFlags::IN)], Some(left.map_or(next, |left| left.min(next))))?;
            }
        }
    }
}

/// Whether the plan's notes say already that a limit does not hold: `memory (db, web): …`.
fn is_noted(event: &Event, notes: &[String]) -> bool {
    let EventKind::Unheld { limit, .. } = &event.kind else { return false };
    let named = |note: &String| {
        let list = note.split_once(&format!(" {limit} (")).and_then(|(_, rest)| rest.split_once(')'));
        list.is_some_and(|(list, _)| list.split(", ").any(|component| component == event.component))
    };
    notes.iter().any(named)
}

/// The exit code for an error, which is never that of success.
fn if_failed(report: &Report) -> i32 {
    if report.exit == 0 { TOOL } else { report.exit }
}

/// Tells of what was not told by an event, and gives the exit code.
fn settled(failed: &[(String, Report)], told: &HashSet<String>) -> i32 {
    for (component, report) in failed.iter().filter(|(component, _)| !told.contains(component)) {
        failure::tell(report, component);
    }
    failed.first().map_or(0, |(_, report)| if_failed(report))
}

/// Shows logs and events until everything is over. Ctrl-C stops, a second one kills.
///
/// Containers that run in our foreground are not to be left alone by us: what cannot be shown stops them, too.
fn foreground(
    project: &Project,
    session: &mut Session,
    printer: &mut Printer,
    notes: &[String],
    end: &mut End<'_>,
) -> Outcome {
    let signals = Signals::take(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])?;
    let (mut stopping, mut hung_up) = (false, false);
    let mut shown = Ok(());
    let code = loop {
        match session.poll_event()? {
            Polled::Notice(Notice::Over { code }) => break code,
            Polled::End => break 0,
            Polled::Notice(Notice::Event(event)) if is_noted(&event, notes) => continue,
            Polled::Notice(Notice::Event(event)) => {
                // What it printed before belongs before, and an unfinished line must not be gone on with by ours.
                shown = shown.and_then(|()| printer.drain()).and_then(|()| printer.finish());
                events::show(&event);
                if end.is_reached(&event) && !std::mem::replace(&mut stopping, true) {
                    session.stop(None).ok();
                }
                continue;
            }
            Polled::Notice(Notice::Settled { .. }) => {
                if end.look(&project.status()?) && !std::mem::replace(&mut stopping, true) {
                    session.stop(None).ok();
                }
                continue;
            }
            Polled::Empty => {}
        }
        // Before anything is printed: the terminal may be what is gone. A supervisor that cannot be told is at its end,
        // which the next notice tells.
        while let Some(signal) = signals.next()? {
            hung_up |= signal == Signal::SIGHUP;
            if std::mem::replace(&mut stopping, true) {
                session.kill().ok();
                talk!("killing");
            } else {
                session.stop(None).ok();
                let again = if signal == Signal::SIGINT { " (Ctrl-C again kills)" } else { "" };
                talk!("stopping{again}");
            }
        }
        shown = shown.and_then(|()| printer.drain());
        if shown.is_err() && !std::mem::replace(&mut stopping, true) {
            session.stop(None).ok();
        }
        wait(&[PollFd::new(session, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)], Some(POLL))?;
    };
    match shown.and_then(|()| printer.drain()).and_then(|()| printer.finish()) {
        // Where a terminal hung up, it takes no text any more.
        Err(failure) if !hung_up => Err(failure),
        _ => Ok(end.code.unwrap_or(code)),
    }
}

fn wait(fds: &[PollFd<'_>], within: Option<Duration>) -> Result<(), Failure> {
    let timeout = within.and_then(|within| within.try_into().ok());
    match poll(&mut fds.to_vec(), timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(Failure::io("wait for the project's supervisor", e)),
    }
}
