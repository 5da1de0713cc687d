//! Cutting a byte stream into messages by their five header bytes.
//!
//! Invariant: nothing here looks behind the header.

/// Tag and length word.
pub const HEADER: usize = 5;

/// A message: its tag, and its whole length with tag and length word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub tag: u8,
    pub total: usize,
}

/// The length word is smaller than itself or larger than PostgreSQL allows (1 GiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid message length")]
pub struct BadLength;

/// PostgreSQL's `PQ_LARGE_MESSAGE_LIMIT` (`src/include/libpq/libpq.h`, `MaxAllocSize - 1`), in bytes.
pub const MESSAGE_MAX: usize = 0x3fff_ffff;

/// The header at the start of `bytes`; `None` while fewer than five bytes are there.
///
/// # Errors
/// [`BadLength`] where the length word can't be right.
pub fn header(bytes: &[u8]) -> Result<Option<Header>, BadLength> {
    let Some(head) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if !(4..=MESSAGE_MAX).contains(&length) {
        return Err(BadLength);
    }
    Ok(Some(Header { tag: head[0], total: length + 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_cut_or_refused() {
        assert_eq!(header(b"Z\0\0\0"), Ok(None));
        assert_eq!(header(b"Z\0\0\0\x05I"), Ok(Some(Header { tag: b'Z', total: 6 })));
        assert_eq!(header(b"Z\0\0\0\x03"), Err(BadLength));
        assert_eq!(header(b"Z\xff\xff\xff\xff"), Err(BadLength));
    }
}
