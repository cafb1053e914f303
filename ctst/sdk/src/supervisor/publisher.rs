//! Makes the sockets of published ports, in a thread of its own: no thread of the supervisor's can both make a socket of the
//! host's and connect it, so that nothing here can open a connection to the outside.

use std::io;
use std::sync::mpsc::{Sender, channel};

use crate::host::confine;

type Job = Box<dyn FnOnce() + Send>;

/// The thread; it ends when the last copy of this is gone.
#[derive(Debug, Clone)]
pub(crate) struct Publisher(Sender<Job>);

impl Publisher {
    /// Starts the thread, which this one must do before it gives up making sockets.
    ///
    /// # Errors
    /// Those of creating a thread, and where the kernel refuses to confine it.
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, jobs) = channel::<Job>();
        confine::on_ports("ports", move || jobs.into_iter().for_each(|job| job()))?;
        Ok(Self(sender))
    }

    /// What `make` returns there.
    ///
    /// # Errors
    /// Its own.
    pub(crate) fn make<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (answer, answered) = channel();
        let gone = || io::Error::other("the thread that publishes ports has ended");
        self.0.send(Box::new(move || drop(answer.send(make())))).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }
}
