//! Starting programs that must not inherit what this process gave up: ctst-shim and who maps ids could not get the privileges
//! that their files give them, and containers not use the network of their project.

use std::io;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use super::{confine, policy};
use crate::error::{During, Error, Result};

type Job = (Command, Sender<io::Result<Child>>);

/// To the thread that has given up nothing, and only starts programs.
static LAUNCHER: OnceLock<Sender<Job>> = OnceLock::new();

/// What of the host's policy keeps this process offline.
static KEPT: OnceLock<String> = OnceLock::new();

/// Whether the administrator of this host keeps the user of this process offline, who is to call [`offline`] then.
#[must_use]
pub fn must_be_offline() -> bool {
    match policy::keeps_offline() {
        None => false,
        Some(why) => {
            // Once is enough.
            KEPT.set(why).ok();
            true
        }
    }
}

/// What of the host's policy keeps this process offline, once [`must_be_offline`] has looked.
#[must_use]
pub fn kept_offline() -> Option<&'static str> {
    KEPT.get().map(String::as_str)
}

/// Why this process is offline, for the end of a sentence that tells what it therefore does not.
pub(crate) fn being_offline() -> String {
    kept_offline().map_or_else(|| " with --offline".to_owned(), |why| format!(": {why}"))
}

/// Takes from this thread, and those that it will start, the means to reach anything beyond this host, for good: sockets of other
/// families than `AF_UNIX` and `AF_NETLINK` (`seccomp(2)`). What they start has them neither, but for the supervisor of a project and
/// ctst-shim, which have none of their own. Nothing is fetched any more, and networks have no way out.
///
/// To be called before threads are started: others keep their rights. Called again it does nothing.
///
/// # Errors
/// [`Error::Confine`] where the kernel refuses.
pub fn offline() -> Result<()> {
    if is_offline() {
        return Ok(());
    }
    // What a shell or CI left open in us, commands of secrets would have.
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    let (sender, jobs) = channel::<Job>();
    let start = move || {
        for (mut command, answer) in jobs {
            let child = command.spawn();
            // With it go our copies of what the program inherits.
            drop(command);
            answer.send(child).ok();
        }
    };
    std::thread::Builder::new().name("launch".into()).spawn(start).during(|| "start a thread".to_owned())?;
    confine::beyond()?;
    LAUNCHER.set(sender).map_err(|_| Error::Confine { problem: "two threads go offline at once".to_owned() })
}

/// Whether [`offline`] was called.
#[must_use]
pub fn is_offline() -> bool {
    LAUNCHER.get().is_some()
}

/// As `command.spawn()`, with all the rights that this process had in the beginning.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    let Some(launcher) = LAUNCHER.get() else { return command.spawn() };
    let (answer, answered) = channel();
    let gone = || io::Error::other("the thread that starts programs has ended");
    launcher.send((command, answer)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}
