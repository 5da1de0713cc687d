//! The messages that the router authors.

/// ReadyForQuery's transaction status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TxStatus {
    #[default]
    Idle,
    InTransaction,
    Failed,
}

impl TxStatus {
    pub fn from_byte(byte: u8) -> Option<TxStatus> {
        match byte {
            b'I' => Some(TxStatus::Idle),
            b'T' => Some(TxStatus::InTransaction),
            b'E' => Some(TxStatus::Failed),
            _ => None,
        }
    }

    pub fn byte(self) -> u8 {
        match self {
            TxStatus::Idle => b'I',
            TxStatus::InTransaction => b'T',
            TxStatus::Failed => b'E',
        }
    }
}

/// Appends a message made of `parts`.
///
/// Bodies stay below the protocol's limit: their parts come from messages that were within it.
pub fn message(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let length = 4 + parts.iter().map(|part| part.len()).sum::<usize>();
    out.reserve(length + 1);
    out.push(tag);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

pub fn ready_for_query(out: &mut Vec<u8>, status: TxStatus) {
    message(out, b'Z', &[&[status.byte()]]);
}

pub fn command_complete(out: &mut Vec<u8>, tag: &[u8]) {
    message(out, b'C', &[tag, b"\0"]);
}

pub fn parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    message(out, b'S', &[name, b"\0", value, b"\0"]);
}

/// Parse, Bind and Execute of a statement without parameters, as the unnamed statement and portal.
pub fn run(out: &mut Vec<u8>, sql: &[u8]) {
    parse(out, b"", &[sql, b"\0\0\0"].concat());
    message(out, b'B', &[&[0; 8]]);
    message(out, b'E', &[&[0; 5]]);
}

pub fn query(out: &mut Vec<u8>, text: &[u8]) {
    message(out, b'Q', &[text, b"\0"]);
}

pub fn parse(out: &mut Vec<u8>, name: &[u8], tail: &[u8]) {
    message(out, b'P', &[name, b"\0", tail]);
}

pub fn close_statement(out: &mut Vec<u8>, name: &[u8]) {
    message(out, b'C', &[b"S", name, b"\0"]);
}

pub fn sync(out: &mut Vec<u8>) {
    message(out, b'S', &[]);
}

/// A string literal that means the same under either setting of `standard_conforming_strings`: quotes doubled, and an
/// E'' form where there is a backslash.
pub fn literal(out: &mut Vec<u8>, value: &[u8]) {
    if value.contains(&b'\\') {
        out.extend_from_slice(b" E");
    }
    out.push(b'\'');
    for byte in value {
        if matches!(byte, b'\'' | b'\\') {
            out.push(*byte);
        }
        out.push(*byte);
    }
    out.push(b'\'');
}
