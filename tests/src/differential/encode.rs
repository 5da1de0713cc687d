//! A script's messages as bytes, and how far an answer to them goes.

use super::script::{Message, bytes};
use super::wire::{self, Until};

/// What goes out at once, and is answered before more does.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) bytes: Vec<u8>,
    pub(super) until: Until,
}

/// The writes of a step: one for each Flush that isn't its last message's, so that what comes at a Flush is waited
/// for.
pub(super) fn writes(messages: &[Message], copies_by_parse: bool) -> Vec<Write> {
    let mut writes = Vec::new();
    let (mut out, mut readies, mut completed, mut flushed) = (Vec::new(), 0, 0, 0);
    let mut in_segment = false;
    // Whether a server may skip up to a Sync what would be answered otherwise, so that nobody can count.
    let mut uncertain = copies_by_parse || unbalanced_copies(messages);
    for (index, message) in messages.iter().enumerate() {
        out.extend(encode(message));
        match message {
            Message::Query(_) | Message::Call { .. } => {
                uncertain |= in_segment;
                (in_segment, readies, completed, flushed) = (false, readies + 1, 0, 0);
            }
            Message::Sync => (in_segment, readies, completed, flushed) = (false, readies + 1, 0, 0),
            Message::Flush => {
                flushed = completed;
                if !uncertain && index + 1 < messages.len() && in_segment {
                    writes.push(Write { bytes: std::mem::take(&mut out), until: Until::Counted { readies, completed } });
                    (readies, completed, flushed) = (0, 0, 0);
                }
            }
            Message::CopyData(_) | Message::CopyDone | Message::CopyFail => {}
            Message::Parse { .. }
            | Message::Bind { .. }
            | Message::DescribeStatement(_)
            | Message::DescribePortal(_)
            | Message::Execute { .. }
            | Message::CloseStatement(_)
            | Message::ClosePortal(_) => (in_segment, completed) = (true, completed + 1),
        }
    }
    let until = if uncertain || in_segment {
        out.extend(wire::mark());
        Until::Mark
    } else {
        Until::Counted { readies, completed: flushed }
    };
    writes.push(Write { bytes: out, until });
    writes
}

/// Everything in one, answered up to the connection's end.
pub(super) fn all(messages: &[Message]) -> Vec<u8> {
    messages.iter().flat_map(encode).collect()
}

fn unbalanced_copies(messages: &[Message]) -> bool {
    let mut left = 0_usize;
    for message in messages {
        match message {
            Message::Query(_) if left > 0 => return true,
            Message::Query(texts) => left = texts.iter().map(|text| text.matches("FROM STDIN").count()).sum(),
            Message::CopyDone | Message::CopyFail => left = left.saturating_sub(1),
            Message::Sync | Message::Call { .. } if left > 0 => return true,
            _ => {}
        }
    }
    left > 0
}

fn encode(message: &Message) -> Vec<u8> {
    let mut body = Vec::new();
    let text = |body: &mut Vec<u8>, text: &str| {
        body.extend(bytes(text));
        body.push(0);
    };
    let count = |body: &mut Vec<u8>, count: usize| body.extend((count as u16).to_be_bytes());
    let values = |body: &mut Vec<u8>, values: &[String]| {
        for value in values {
            let value = bytes(value);
            body.extend((value.len() as u32).to_be_bytes());
            body.extend(value);
        }
    };
    let tag = match message {
        Message::Query(texts) => {
            text(&mut body, &texts.join("; "));
            b'Q'
        }
        Message::Parse { name, text: statement } => {
            text(&mut body, name);
            text(&mut body, statement);
            count(&mut body, 0);
            b'P'
        }
        Message::Bind { portal, statement, values: bound } => {
            text(&mut body, portal);
            text(&mut body, statement);
            count(&mut body, 0);
            count(&mut body, bound.len());
            values(&mut body, bound);
            count(&mut body, 0);
            b'B'
        }
        Message::DescribeStatement(name) | Message::DescribePortal(name) | Message::CloseStatement(name) | Message::ClosePortal(name) => {
            let is_statement = matches!(message, Message::DescribeStatement(_) | Message::CloseStatement(_));
            body.push(if is_statement { b'S' } else { b'P' });
            text(&mut body, name);
            if matches!(message, Message::DescribeStatement(_) | Message::DescribePortal(_)) { b'D' } else { b'C' }
        }
        Message::Execute { portal, rows } => {
            text(&mut body, portal);
            body.extend(rows.to_be_bytes());
            b'E'
        }
        Message::Flush => b'H',
        Message::Sync => b'S',
        Message::Call { function, arguments } => {
            body.extend(function.to_be_bytes());
            count(&mut body, 1);
            count(&mut body, 1);
            count(&mut body, arguments.len());
            values(&mut body, arguments);
            count(&mut body, 1);
            b'F'
        }
        Message::CopyData(data) => {
            body.extend(bytes(data));
            b'd'
        }
        Message::CopyDone => b'c',
        Message::CopyFail => {
            text(&mut body, "given up");
            b'f'
        }
    };
    wire::message(tag, &body)
}
