//! Whatever a peer sends is one message, written in the only way there is, or none.

use containust_shared::port::{FromPort, ToPort};
use containust_shared::protocol::{FromContainer, FromSandbox, FromShim, Mapped, ToContainer, ToSandbox, ToShim};
use containust_shared::wire::{Message, WireError, decode, encode};

pub(crate) fn run(bytes: &[u8]) {
    one::<ToShim>(bytes);
    one::<Mapped>(bytes);
    one::<ToSandbox>(bytes);
    one::<ToContainer>(bytes);
    one::<FromShim>(bytes);
    one::<FromSandbox>(bytes);
    one::<FromContainer>(bytes);
    one::<ToPort>(bytes);
    one::<FromPort>(bytes);
}

fn one<T: Message>(bytes: &[u8]) {
    match decode::<T>(bytes) {
        Ok(message) => assert_eq!(encode(&message).as_deref(), Ok(bytes), "two ways to write one message"),
        Err(WireError::Trailing(rest)) => {
            let (message, rest) = bytes.split_at(bytes.len() - rest);
            assert!(decode::<T>(message).is_ok() && !rest.is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
