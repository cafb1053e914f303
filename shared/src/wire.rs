//! The codec: bincode with fixed-size integers, a byte limit and no trailing bytes. Both ends go through these two
//! functions, so that replacing the unmaintained crate (RUSTSEC-2025-0141) would touch this file only.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

/// The largest message in bytes. One message is one `SOCK_SEQPACKET` record.
pub const MAX_MESSAGE: usize = 65_536;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_MESSAGE>> =
    bincode::config::legacy().with_limit::<MAX_MESSAGE>();

/// Why a message could not be encoded or decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireError {
    /// The encoded message would exceed [`MAX_MESSAGE`].
    TooLarge(usize),
    /// The bytes are not a message of the expected type.
    Malformed,
    /// The message is followed by this many bytes that belong to nothing.
    Trailing(usize),
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLarge(n) => write!(f, "message of {n} bytes exceeds {MAX_MESSAGE}"),
            Self::Malformed => f.write_str("malformed message"),
            Self::Trailing(n) => write!(f, "{n} bytes after the message"),
        }
    }
}

impl std::error::Error for WireError {}

/// What can be sent: every type of [`crate::protocol`].
pub trait Message: Encode + Decode<()> {}
impl<T: Encode + Decode<()>> Message for T {}

/// Encodes `message`. bincode applies its limit to decoding only, so the length is checked here.
///
/// # Errors
/// [`WireError::TooLarge`] when the result would not fit one message.
pub fn encode<T: Message>(message: &T) -> Result<Vec<u8>, WireError> {
    let bytes = bincode::encode_to_vec(message, CONFIG).map_err(|_| WireError::Malformed)?;
    if bytes.len() > MAX_MESSAGE { Err(WireError::TooLarge(bytes.len())) } else { Ok(bytes) }
}

/// Decodes exactly one message that fills `bytes`.
///
/// # Errors
/// [`WireError::Malformed`] or [`WireError::Trailing`].
pub fn decode<T: Message>(bytes: &[u8]) -> Result<T, WireError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(WireError::TooLarge(bytes.len()));
    }
    let (message, used) = bincode::decode_from_slice(bytes, CONFIG).map_err(|_| WireError::Malformed)?;
    match bytes.len().checked_sub(used) {
        Some(0) => Ok(message),
        Some(rest) => Err(WireError::Trailing(rest)),
        None => Err(WireError::Malformed),
    }
}
