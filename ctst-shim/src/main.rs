//! `ctst-shim`: the only program of Containust that may ever hold privilege. It is started by `ctst` with one end of a
//! socket pair as descriptor 3 and nothing else: no arguments, no environment, no configuration.
//!
//! Three processes come out of it, told apart by what they may still do (README.md beside this crate):
//! - P reads one fixed-size request, clones the project's namespaces, writes their id maps, and exits;
//! - S, pid 1 of the project, forks containers and makes sockets, and has no capability outside the project;
//! - C, pid 1 of a container, builds its root, drops what the container shall not have, and starts processes.
#![forbid(unsafe_code)]

mod container;
mod group;
mod network;
mod process;
mod project;
mod root;
mod sandbox;
mod user;
mod window;

use containust_core::{entry, sys};
use containust_policy::window::CAPABILITIES;
use containust_shared::{exit, protocol};

fn main() {
    #[expect(clippy::disallowed_methods, reason = "counted, not read")]
    if std::env::args_os().count() > 1 {
        refuse("takes no arguments; it is started by ctst");
    }
    let entered = match entry::sanitise(protocol::CHANNEL_FD, CAPABILITIES) {
        Ok(entered) => entered,
        Err(error) => refuse(&error.to_string()),
    };
    // Started from a sealed copy it would be called by the number of a descriptor.
    if let Err(error) = rustix::thread::set_name(c"ctst-shim") {
        refuse(&error.to_string());
    }
    match sys::Alone::check() {
        Ok(alone) => std::process::exit(sandbox::serve(&alone, &entered)),
        Err(error) => refuse(&error.to_string()),
    }
}

fn refuse(why: &str) -> ! {
    eprintln!("ctst-shim: {why}");
    std::process::exit(exit::TOOL)
}
