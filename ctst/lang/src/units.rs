//! Sizes and durations.

use std::time::Duration;

use nom::Parser;
use nom::character::complete::digit1;
use nom::combinator::all_consuming;
use nom::multi::fold_many1;

use crate::lex;

/// Why a text is no size or duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnitError {
    /// Only digits.
    NoUnit,
    /// A unit that does not exist.
    UnknownUnit,
    /// More than the kernel or the clock can count.
    TooLarge,
    /// No number at all.
    Malformed,
}

/// Longest duration that is accepted: a year. Adding it to a clock never overflows.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
];

/// The units of sizes, for messages.
pub(crate) const KNOWN_SIZES: &str = "a number with B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, k, m or g";

/// A number of bytes for a message, in the largest unit that it is a whole number of: `64MiB`.
#[must_use]
pub fn shown(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// In nanoseconds.
const DURATIONS: &[(&str, u64)] = &[
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// A size in bytes: one number with a unit. A fraction of a byte is dropped.
pub(crate) fn size(text: &str) -> Result<u64, UnitError> {
    match added(text, SIZES)? {
        // File sizes are signed in the kernel.
        (1, bytes) => i64::try_from(bytes?).map(i64::cast_unsigned).map_err(|_| UnitError::TooLarge),
        _ => Err(UnitError::Malformed),
    }
}

/// A duration: numbers with units, added up.
pub(crate) fn duration(text: &str) -> Result<Duration, UnitError> {
    let (_, nanoseconds) = added(text, DURATIONS)?;
    let duration = u64::try_from(nanoseconds?).map(Duration::from_nanos).map_err(|_| UnitError::TooLarge)?;
    if duration > LONGEST { Err(UnitError::TooLarge) } else { Ok(duration) }
}

type Quantity<'a> = (&'a str, Option<&'a str>, &'a str);

/// How many numbers with units there are in a text, and what they add up to.
fn added(text: &str, units: &[(&str, u64)]) -> Result<(usize, Result<u128, UnitError>), UnitError> {
    if all_consuming(digit1::<_, ()>).parse(text).is_ok() {
        return Err(UnitError::NoUnit);
    }
    let add = |(count, sum): (usize, Result<u128, UnitError>), one| {
        (count + 1, sum.and_then(|sum| Ok(sum.saturating_add(scaled(one, units)?))))
    };
    let all = all_consuming(fold_many1(lex::quantity, || (0, Ok(0)), add)).parse(text);
    all.map(|(_, sum)| sum).map_err(|_| UnitError::Malformed)
}

fn scaled((whole, fraction, unit): Quantity<'_>, units: &[(&str, u64)]) -> Result<u128, UnitError> {
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or(UnitError::UnknownUnit)?;
    let factor = u128::from(*factor);
    // With 18 digits of fraction and a factor below 2^64 nothing here leaves 128 bits.
    let part = fraction.map_or(0, |digits| {
        let digits = &digits[..digits.len().min(18)];
        let divisor = 10u128.pow(u32::try_from(digits.len()).unwrap_or_default());
        digits.parse::<u128>().unwrap_or_default() * factor / divisor
    });
    let whole = whole.parse::<u64>().map_err(|_| UnitError::TooLarge)?;
    Ok(u128::from(whole) * factor + part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            ("64MiB", Ok(64 << 20)),
            ("1k", Ok(1024)),
            ("1KB", Ok(1000)),
            ("1.5GiB", Ok(3 << 29)),
            ("0.1k", Ok(102)),
            ("7B", Ok(7)),
            ("64", Err(UnitError::NoUnit)),
            ("64mb", Err(UnitError::UnknownUnit)),
            ("1k1k", Err(UnitError::Malformed)),
            ("9999999TiB", Err(UnitError::TooLarge)),
            ("99999999999999999999B", Err(UnitError::TooLarge)),
            ("-1k", Err(UnitError::Malformed)),
            ("", Err(UnitError::Malformed)),
        ];
        for (text, expected) in cases {
            assert_eq!(size(text), expected, "{text}");
        }
    }

    #[test]
    fn sizes_in_messages() {
        assert_eq!([0, 1000, 6 << 20, 1 << 40].map(shown), ["0B", "1000B", "6MiB", "1TiB"]);
    }

    #[test]
    fn durations() {
        let cases = [
            ("500ms", Ok(Duration::from_millis(500))),
            ("1m30s", Ok(Duration::from_secs(90))),
            ("1.5s", Ok(Duration::from_millis(1500))),
            ("0s", Ok(Duration::ZERO)),
            ("365d", Ok(LONGEST)),
            ("366d", Err(UnitError::TooLarge)),
            ("30", Err(UnitError::NoUnit)),
            ("5 s", Err(UnitError::Malformed)),
            ("5sec", Err(UnitError::UnknownUnit)),
            ("0.00000000000000000000000000000000000000000001s", Ok(Duration::ZERO)),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text), expected, "{text}");
        }
    }
}
