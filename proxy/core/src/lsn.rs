//! WAL positions and timelines.
//!
//! Source: PostgreSQL `src/include/access/xlogdefs.h` (`XLogRecPtr`, `TimeLineID`), text form as `pg_lsn_out` prints it.

use std::fmt;
use std::str::FromStr;

/// A position in the write-ahead log, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// No position; PostgreSQL's `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);

    /// Bytes from `earlier` to `self`; 0 where `earlier` is ahead.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// The text is not of the form `XXXXXXXX/XXXXXXXX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WAL position (expected hexadecimal HIGH/LOW)")]
pub struct BadLsn;

impl FromStr for Lsn {
    type Err = BadLsn;

    fn from_str(text: &str) -> Result<Lsn, BadLsn> {
        let (high, low) = text.split_once('/').ok_or(BadLsn)?;
        let part = |s: &str| match s.len() {
            1..=8 => u32::from_str_radix(s, 16).map_err(|_| BadLsn),
            _ => Err(BadLsn),
        };
        Ok(Lsn((u64::from(part(high)?) << 32) | u64::from(part(low)?)))
    }
}

/// A timeline: raised by one at each promotion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().map(|l| l.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "1", "1/", "/1", "x/1", "123456789/1", "1/1/1"] {
            assert_eq!(text.parse::<Lsn>(), Err(BadLsn), "{text}");
        }
    }
}
