//! What of two answers must be the same: all of it, but for what the servers themselves make different.
//!
//! Each exception stands in [`line`] or [`lines`], with its reason.

use std::fmt::Write;

use super::wire::{Answer, Stop, Told};

/// OIDs from here on are of objects that people made (FirstNormalObjectId). Temporary ones get new OIDs each time.
const FIRST_NORMAL_OBJECT: u32 = 16_384;

/// An answer in lines, for comparison and for people.
pub(super) fn lines(answer: &Answer) -> Vec<String> {
    let mut lines = Vec::new();
    // Reports and notifications are asynchronous: they count by what comes before which ReadyForQuery, not by their
    // place before it.
    let mut reports = Vec::new();
    for told in &answer.told {
        match told.tag {
            b'S' | b'A' => reports.push(line(told)),
            // Another process on each side, with another secret.
            b'K' => {}
            // A failed transaction that the router has begun anew has no portals any more (docs/sessions.md).
            b'N' if line(told).contains(" C:01000 M:skipping cleanup for portal ") => {}
            b'Z' => {
                reports.sort();
                lines.append(&mut reports);
                lines.push(line(told));
            }
            _ => lines.push(line(told)),
        }
    }
    reports.sort();
    lines.append(&mut reports);
    match answer.stop {
        Stop::Whole => {}
        Stop::Closed => lines.push("(the connection was closed)".to_owned()),
        Stop::Hung => lines.push("(no more came)".to_owned()),
    }
    lines
}

fn line(told: &Told) -> String {
    let mut out = String::from(char::from(told.tag));
    let mut body = Body(&told.body);
    match told.tag {
        b'E' | b'N' => {
            while let Some((&code, rest)) = body.0.split_first().filter(|(code, _)| **code != 0) {
                body.0 = rest;
                let text = body.text();
                // File, line and routine of PostgreSQL's source: an error that the router words has none.
                if !matches!(code, b'F' | b'L' | b'R' | b'S') {
                    let _ = write!(out, " {}:{text}", char::from(code));
                }
            }
        }
        b'D' => {
            for _ in 0..body.int16() {
                match body.int32() {
                    u32::MAX => out.push_str(" NULL"),
                    length => {
                        let _ = write!(out, " \"{}\"", body.bytes(length as usize).escape_ascii());
                    }
                }
            }
        }
        b'T' => {
            for _ in 0..body.int16() {
                let name = body.text();
                let (table, column, kind) = (object(body.int32()), body.int16(), object(body.int32()));
                let (size, modifier, format) = (body.int16(), body.int32(), body.int16());
                let _ = write!(out, " {name}:{table}.{column}:{kind}/{size}/{modifier}/{format}");
            }
        }
        b't' => {
            for _ in 0..body.int16() {
                let _ = write!(out, " {}", object(body.int32()));
            }
        }
        b'A' => {
            // The sender's process id differs from server to server.
            let _ = body.int32();
            let _ = write!(out, " {}", body.0.escape_ascii());
        }
        _ => {
            let _ = write!(out, " {}", body.0.strip_suffix(b"\0").unwrap_or(body.0).escape_ascii());
        }
    }
    // A session's temporary schema has the number of its process's slot.
    let numbered = ["pg_temp_", "pg_toast_temp_"].iter().fold(out, |out, name| {
        let mut parts = out.split(name);
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |out, part| out + name + "N" + part.trim_start_matches(|letter: char| letter.is_ascii_digit()))
    });
    if is_not_in_temporary_schema(&numbered) { format!("{} (no such thing in the temporary schema)", &numbered[..1]) } else { numbered }
}

/// Once made, a temporary schema stays as long as its server process, so that what isn't in it is missed in other
/// words than the schema itself. What `grammar.txt` asks for there: a function, and a table to drop if it exists.
fn is_not_in_temporary_schema(line: &str) -> bool {
    let words = [
        ("E ", " C:3F000 M:schema \\\"pg_temp\\\" does not exist"),
        ("E ", " C:42883 M:function pg_temp.f() does not exist"),
        ("N ", " C:00000 M:schema \\\"pg_temp\\\" does not exist, skipping"),
        ("N ", " C:00000 M:table \\\"t1\\\" does not exist, skipping"),
        ("N ", " C:00000 M:table \\\"t2\\\" does not exist, skipping"),
    ];
    words.iter().any(|(tag, words)| line.starts_with(tag) && line.contains(words))
}

/// The first lines that differ.
fn first_apart<'a>(direct: &'a [String], routed: &'a [String]) -> Option<(&'a str, &'a str)> {
    direct.iter().zip(routed).find(|(one, other)| one != other).map(|(one, other)| (&**one, &**other))
}

/// Whether the first thing that differs is the router's word that the session has no `lastval` or `currval`, where a
/// direct session has a value. Sequences' state doesn't go with a session that isn't pinned: another session has had
/// its connection meanwhile, and begun it with DISCARD SEQUENCES (docs/sessions.md). That it finds *another's* value is
/// never excused, nor is any other error.
pub(super) fn is_only_without_numbers(direct: &[String], routed: &[String]) -> bool {
    let differs = first_apart(direct, routed);
    let is_told = |line: &str| {
        line.starts_with("E ")
            && (line.contains(" C:55000 M:lastval is not yet defined in this session")
                || (line.contains(" C:55000 M:currval of sequence ") && line.contains(" is not yet defined in this session")))
    };
    differs.is_some_and(|(direct, routed)| direct.starts_with('D') && is_told(routed))
}

/// Whether the first thing that differs is 25P02, in a failed transaction, of a statement that was prepared on another server: nothing can be prepared
/// there, and so nobody tells that a Bind has too few values, or describes what gives no rows (docs/sessions.md).
pub(super) fn is_only_unprepared(direct: &[String], routed: &[String]) -> bool {
    let differs = first_apart(direct, routed);
    differs.is_some_and(|(direct, routed)| {
        let told = direct.contains(" C:08P01 M:bind message supplies ") || direct.starts_with('t');
        told && routed.starts_with("E ") && routed.contains(" C:25P02 ")
    })
}

/// Whether the first thing that differs is that a statement can't be prepared any more on another server, as a table of it is gone or out of sight by
/// now: no server describes its parameters before it says so there, or counts a Bind's values, and lists it (docs/sessions.md).
pub(super) fn is_only_gone(direct: &[String], routed: &[String]) -> bool {
    let Some((told, instead)) = first_apart(direct, routed) else { return false };
    let is_listed = |line: &str| ["a", "w"].iter().any(|name| line == format!("D \"{name}\" \"f\""));
    let is_first = told.starts_with('t') || told.contains(" C:08P01 M:bind message supplies ");
    let describes = is_first && instead.starts_with("E ") && instead.contains(" C:42P01 ");
    let lists = is_listed(told) && (is_listed(instead) || instead.starts_with("C SELECT"));
    describes || (lists && routed.iter().filter(|line| is_listed(line)).all(|row| direct.contains(row)))
}

/// Whether the first thing that differs is that a failed transaction has no portal of before any more: the router may have begun it anew
/// (docs/sessions.md).
pub(super) fn is_only_without_portal(direct: &[String], routed: &[String]) -> bool {
    let differs = first_apart(direct, routed);
    differs.is_some_and(|(direct, routed)| {
        let has_none = direct.contains(" C:25P02 ") && routed.starts_with("E ") && routed.contains(" C:34000 M:portal ");
        has_none || (direct.contains(" C:42P03 M:cursor ") && routed.starts_with('2'))
    })
}

/// Whether the first thing that differs is a replica's refusal to write, of a session that has made state there which keeps it, in a transaction with
/// one snapshot (docs/sessions.md). In other READ ONLY transactions, what a leader runs in one and a replica doesn't.
pub(super) fn is_only_pinned_to_replica(direct: &[String], routed: &[String], one_snapshot: bool) -> bool {
    let differs = first_apart(direct, routed);
    differs.is_some_and(|(_, routed)| {
        routed.starts_with("E ") && routed.contains(" C:25006 ") && (one_snapshot || routed.contains(" during recovery"))
    })
}

/// Whether the first thing that differs is whether a transaction's modes can still be set: a Parse with a Flush behind it is ended by the router with a
/// Sync, and where SQL is about to see the names of the session's statements, these are prepared first, which takes a snapshot.
pub(super) fn is_only_of_modes(direct: &[String], routed: &[String], flushes: bool) -> bool {
    let differs = first_apart(direct, routed);
    let is_told = |line: &str| {
        let by_isolation = line.contains(" C:25001 M:SET TRANSACTION ") && line.contains(" must be called before any query");
        by_isolation || line.contains(" C:25001 M:transaction read-write mode must be set before any query")
    };
    // On a replica, what may still be set may not be set all the same.
    let is_in_recovery = |line: &str| line.contains(" C:0A000 M:cannot set transaction read-write mode during recovery");
    let is_refused = |line: &str| line.starts_with('E') && !is_in_recovery(line);
    differs.is_some_and(|(direct, routed)| match is_told(direct) {
        true => flushes && !is_refused(routed),
        false => is_told(routed) || is_in_recovery(routed),
    })
}

/// Whether the first thing that differs is that a statement can't be prepared any more, or isn't listed: one that was prepared under a `search_path` of
/// its own transaction, which has another one by now (docs/sessions.md).
pub(super) fn is_only_of_another_path(direct: &[String], routed: &[String]) -> bool {
    let lists_no_more = routed.iter().filter(|line| line.starts_with('D')).all(|row| direct.contains(row));
    let differs = first_apart(direct, routed);
    differs.is_some_and(|(direct, routed)| {
        let is_missing = direct.starts_with("D \"") && (routed.starts_with("D \"") || routed.starts_with("C SELECT"));
        (is_missing && lists_no_more) || (routed.starts_with("E ") && routed.contains(" C:42P01 "))
    })
}

fn object(oid: u32) -> String {
    if oid < FIRST_NORMAL_OBJECT { oid.to_string() } else { "own".to_owned() }
}

/// What of a message hasn't been read yet. Behind its end there are zeros and nothing.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn int16(&mut self) -> u16 {
        self.bytes(2).try_into().map(u16::from_be_bytes).unwrap_or_default()
    }

    fn int32(&mut self) -> u32 {
        self.bytes(4).try_into().map(u32::from_be_bytes).unwrap_or_default()
    }

    fn text(&mut self) -> String {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        let text = self.bytes(end).escape_ascii().to_string();
        self.bytes(1);
        text
    }
}
