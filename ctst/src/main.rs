//! `ctst`: containers from one declarative file, by an ordinary user, without a daemon.
//!
//! This crate is what a person sees: arguments, one module a command, and text on the terminal. What the commands do is
//! done by the SDK, which is its only door. Standard output is data, standard error is talk.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};
use failure::{Outcome, TOOL};

// First, because of its macro.
#[macro_use]
mod output;

mod args;
mod commands;
mod complete;
mod events;
mod failure;
mod printer;
mod progress;
mod signals;
mod terminal;

fn main() -> ExitCode {
    // The supervisor and its workers are this program, too.
    if let Some(code) = containust_sdk::internal_main() {
        return exit(code);
    }
    if let Some(code) = complete::answer() {
        return exit(code);
    }
    exit(match Args::try_parse() {
        Ok(args) => {
            let code = run(args).unwrap_or_else(|failure| failure.tell());
            if let Err(error) = containust_sdk::tidy() {
                // The command is done, and this is tried again with the next.
                talk!("{error}");
            }
            code
        }
        Err(error) => {
            let printed = error.print();
            if error.use_stderr() || printed.is_err() { TOOL } else { 0 }
        }
    })
}

fn run(args: Args) -> Outcome {
    let named = args::meant_file(args.project, args.file);
    let file = named.as_deref();
    let offline = args.offline || containust_sdk::must_be_offline();
    // These two start no program, and go offline when they have given up the rest.
    if offline && !matches!(args.command, Command::Check(_) | Command::Plan(_)) {
        containust_sdk::offline()?;
    }
    match args.command {
        Command::Check(check) => commands::check::run(&check, file, offline),
        Command::Plan(plan) => commands::plan::run(&plan, file, offline),
        Command::Run(run) => commands::run::run(&run, named),
        Command::Up(up) => commands::run::run(&up.into(), named),
        Command::Down(args) => commands::down::run(&args, file),
        Command::Ps(args) => commands::ps::run(&args, file),
        Command::Inspect(args) => commands::inspect::run(&args, file),
        Command::Cp(args) => commands::cp::run(&args, file),
        Command::Exec(args) => commands::exec::run(args, file),
        Command::Logs(args) => commands::logs::run(&args, file),
        Command::Port(args) => commands::port::run(&args, file),
        Command::Top(args) => commands::top::run(&args, file),
        Command::Events(args) => commands::events::run(&args, file),
        Command::Stats(args) => commands::stats::run(&args, file),
        Command::Pause(args) => commands::pause::run(&args, file, true),
        Command::Unpause(args) => commands::pause::run(&args, file, false),
        Command::Wait(args) => commands::wait::run(&args, file),
        Command::Restart(args) => commands::restart::run(&args, file),
        Command::Stop(args) => commands::stop::run(&args, file),
        Command::Rm(args) => commands::rm::run(&args, file),
        Command::Build(args) => commands::build::run(&args, file),
        Command::Bundle(args) => commands::bundle::run(&args, file),
        Command::Pull(args) => commands::pull::run(&args, file),
        Command::Push(args) => commands::push::run(&args, file),
        Command::Login(args) => commands::login::run(&args),
        Command::Logout(args) => commands::login::logout(&args),
        Command::Lock(args) => commands::lock::run(&args, file),
        Command::Images(args) => commands::images::run(&args, file),
        Command::Volumes(args) => commands::volumes::run(&args, file),
        Command::Fmt(args) => commands::fmt::run(&args, file),
        Command::Explain(args) => commands::explain::run(&args),
        Command::Schema(args) => commands::schema::run(&args),
        Command::Completions(args) => commands::completions::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args, file),
    }
}

/// Codes of containers are 0 to 255, as `wait` gives them.
fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
