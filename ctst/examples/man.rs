//! Writes the manual pages of `ctst` and its commands, made from the command line's own descriptions, into a folder:
//! `cargo run -p ctst --example man FOLDER`.

#[expect(dead_code, reason = "only the descriptions are used here")]
#[path = "../src/args.rs"]
mod args;

use std::io;

use clap::CommandFactory as _;

fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("wanted: the folder for the pages"))?;
    clap_mangen::generate_to(args::Args::command().disable_help_subcommand(true), folder)
}
