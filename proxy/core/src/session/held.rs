//! What a session holds of its server's by name: when the last one is gone, it needn't be pinned for it any more.
//!
//! Invariant: a session is unpinned only for what a server has confirmed, in a transaction that has committed. Where names aren't known (there
//! were too many, or a statement doesn't tell them), it stays pinned.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::Session;
use crate::sql::{Effect, PinReason, Verdict};

/// Names of one kind that are kept for one session. The server keeps all, but a session with that many isn't worth more memory.
const NAMES_MAX: usize = 256;

/// Names of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    known: FxHashSet<Arc<str>>,
    /// There are others that aren't known.
    others: bool,
}

impl Names {
    pub(super) fn add(&mut self, name: &Arc<str>) {
        if self.known.len() < NAMES_MAX && !name.is_empty() {
            self.known.insert(name.clone());
        } else {
            self.others |= !self.known.contains(name);
        }
    }

    /// True if none is left, which isn't known of names that nobody has added.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.known.remove(name) && self.known.is_empty() && !self.others
    }

    pub(super) fn contains(&self, name: &[u8]) -> bool {
        std::str::from_utf8(name).is_ok_and(|name| self.known.contains(name))
    }

    pub(super) fn clear(&mut self) {
        *self = Names::default();
    }
}

/// Something that is gone once the transaction has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Release {
    Channel(Arc<str>),
    Channels,
    Cursor(Arc<str>),
    Cursors,
    TempTable(Arc<str>),
    TempTables,
    Role,
    Authorization,
}

/// Releases in one transaction. Beyond, the session stays pinned.
const RELEASES_MAX: usize = 256;

/// All that a session holds by name, except what SQL has prepared, which is gone at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    channels: Names,
    cursors: Names,
    temp_tables: Names,
    role: bool,
    authorization: bool,
    releases: Vec<Release>,
}

impl Held {
    fn release(&mut self, release: Release) {
        if self.releases.len() < RELEASES_MAX {
            self.releases.push(release);
        }
    }

    /// SAVEPOINTs may undo some of it.
    pub(super) fn keep(&mut self) {
        self.releases.clear();
    }

    pub(super) fn clear(&mut self) {
        *self = Held::default();
    }
}

impl Session {
    /// A statement has succeeded: what it made, and what it will have released at its transaction's end.
    pub(super) fn hold_names(&mut self, effect: &Effect, verdict: &Verdict) {
        let held = &mut self.held;
        match effect {
            Effect::Listen { channel } => {
                held.channels.add(channel);
                held.releases.retain(|release| !matches!(release, Release::Channels) && *release != Release::Channel(channel.clone()));
            }
            Effect::Unlisten { channel } => held.release(Release::Channel(channel.clone())),
            Effect::UnlistenAll => held.release(Release::Channels),
            Effect::HoldCursor { name } => {
                held.cursors.add(name);
                held.releases.retain(|release| !matches!(release, Release::Cursors) && *release != Release::Cursor(name.clone()));
            }
            Effect::CloseCursor { name: Some(name) } => held.release(Release::Cursor(name.clone())),
            Effect::CloseCursor { name: None } => held.release(Release::Cursors),
            Effect::TempTable { on_commit_drop: true, .. } => {}
            Effect::TempTable { name, .. } => {
                held.temp_tables.add(name);
                held.releases.retain(|release| !matches!(release, Release::TempTables) && *release != Release::TempTable(name.clone()));
            }
            Effect::DropTable { name } => held.release(Release::TempTable(name.clone())),
            Effect::DiscardTemp => held.release(Release::TempTables),
            Effect::Pin(PinReason::TempTable) => {
                let named = |effect: &Effect| matches!(effect, Effect::TempTable { on_commit_drop: false, .. });
                held.temp_tables.others |= !verdict.effects.iter().any(named);
            }
            Effect::Ddl if verdict.command.starts_with("ALTER") || verdict.statements > 1 => {
                // It may have another name now.
                held.temp_tables.others |= !held.temp_tables.known.is_empty();
            }
            Effect::Set { name, local: false, to_default } if &**name == "role" => match to_default {
                true => held.release(Release::Role),
                false => {
                    held.role = true;
                    held.releases.retain(|release| *release != Release::Role);
                }
            },
            Effect::Set { name, local: false, to_default } if &**name == "session_authorization" => match to_default {
                true => held.release(Release::Authorization),
                false => {
                    held.authorization = true;
                    held.releases.retain(|release| *release != Release::Authorization);
                }
            },
            Effect::Reset { name } if &**name == "role" => held.release(Release::Role),
            Effect::Reset { name } if &**name == "session_authorization" => held.release(Release::Authorization),
            Effect::RollbackTo => held.keep(),
            _ => {}
        }
    }

    /// The transaction is over: what was released in it is gone, unless all of it was undone.
    pub(super) fn release_names(&mut self, committed: bool) {
        let releases = std::mem::take(&mut self.held.releases);
        if !committed {
            return;
        }
        // Where the search path names `pg_temp`, another table of that name may come first.
        let temp_first = self.settings.value("search_path").is_none();
        // To that its server would go back.
        let starts_as_another = ["role", "session_authorization"].iter().any(|name| self.startup.value(name).is_some());
        let held = &mut self.held;
        for release in releases {
            match release {
                Release::Channel(name) if held.channels.remove(&name) => self.pins.remove(PinReason::Listen),
                Release::Channels => {
                    held.channels.clear();
                    self.pins.remove(PinReason::Listen);
                }
                Release::Cursor(name) if held.cursors.remove(&name) => self.pins.remove(PinReason::WithHoldCursor),
                Release::Cursors => {
                    held.cursors.clear();
                    self.pins.remove(PinReason::WithHoldCursor);
                }
                Release::TempTable(name) if temp_first && held.temp_tables.remove(&name) => self.pins.remove(PinReason::TempTable),
                Release::TempTables => {
                    held.temp_tables.clear();
                    self.pins.remove(PinReason::TempTable);
                }
                Release::Role | Release::Authorization => {
                    match release {
                        Release::Role => held.role = false,
                        _ => held.authorization = false,
                    }
                    if !held.role && !held.authorization && !starts_as_another {
                        self.pins.remove(PinReason::SetRole);
                    }
                }
                Release::Channel(_) | Release::Cursor(_) | Release::TempTable(_) => {}
            }
        }
    }
}
