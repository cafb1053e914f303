//! Typed messages on the channels.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use containust_core::channel;
use containust_shared::protocol::Failure;
use containust_shared::wire;

use crate::failure::{Step, refusal};

/// The one message of type `T` that may come now, without descriptors.
///
/// # Errors
/// Anything else, and the kernel's.
pub fn receive_one<T: wire::Message>(channel: &OwnedFd) -> Result<T, Failure> {
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    match channel::receive(channel, &mut buffer).step("receive the request", "")? {
        Some((len, fds)) if fds.is_empty() => wire::decode(buffer.get(..len).unwrap_or_default())
            .map_err(|error| refusal(&format!("read the request ({error})"), "")),
        Some(_) => Err(refusal("take a request with descriptors", "")),
        None => Err(refusal("wait for a request: the caller is gone", "")),
    }
}

/// Encodes and sends one message.
///
/// # Errors
/// As [`channel::send`], and a message that is too large.
pub fn send<T: wire::Message>(channel: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = wire::encode(message).map_err(io::Error::other)?;
    channel::send(channel, &bytes, fds)
}

/// Whether the kernel lets no more descriptors of this user be on their way (`unix(7)`, ETOOMANYREFS). A container whose root
/// is the same user on the host can use all of them up: that is refused to whoever asked, and ends nobody.
#[must_use]
pub fn is_crowded(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::TOOMANYREFS.raw_os_error())
}

/// What to say then.
#[must_use]
pub fn crowded(error: &io::Error) -> Failure {
    let errno = error.raw_os_error().unwrap_or(0);
    Failure {
        step: "hand over descriptors, of which this user has too many on their way".into(),
        subject: Vec::new(),
        errno,
    }
}
