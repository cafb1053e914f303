//! What programs whose files have capabilities do alike: reading the administrator's policy, saying why their capabilities did
//! not arrive, taking one message and answering it.
#![forbid(unsafe_code)]

pub mod failure;
pub mod loss;
pub mod message;
pub mod policy;
