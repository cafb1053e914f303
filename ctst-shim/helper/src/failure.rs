//! Errors that name the step and the object, on their way to a person.

use std::io;

use containust_shared::protocol::Failure;

/// Turns an error of the kernel into a [`Failure`].
pub trait Step<T> {
    /// Says which step failed on which object.
    ///
    /// # Errors
    /// What the call failed with, and where.
    fn step(self, step: &str, subject: impl AsRef<[u8]>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &str, subject: impl AsRef<[u8]>) -> Result<T, Failure> {
        self.map_err(|error| {
            let error = error.into();
            match error.raw_os_error() {
                Some(errno) => Failure { step: step.into(), subject: subject.as_ref().into(), errno },
                None => Failure { step: format!("{step} ({error})"), subject: subject.as_ref().into(), errno: 0 },
            }
        })
    }
}

/// A refusal of ours, without the kernel's part.
#[must_use]
pub fn refusal(step: &str, subject: impl AsRef<[u8]>) -> Failure {
    Failure { step: step.into(), subject: subject.as_ref().into(), errno: 0 }
}
