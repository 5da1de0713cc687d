//! What a session must know of a server connection that it holds. Plain data, owned by the connection.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::settings::{Params, Settings};
use crate::route::ServerRole;
use crate::topology::Epoch;
use crate::wire::reply::TxStatus;

/// State of one server connection, as far as its next session must know it.
#[derive(Debug)]
pub struct ServerState {
    pub node: Arc<str>,
    pub role: ServerRole,
    /// The epoch under which it was opened. A leader connection of an older epoch is never used again.
    pub epoch: Epoch,
    pub tx: TxStatus,
    /// What the server has reported.
    pub params: Params,
    /// What the server has been brought to.
    pub settings: Arc<Settings>,
    /// Nothing is owed: the last thing that came is a ReadyForQuery.
    pub ready: bool,
    /// State that no session may inherit: it is discarded before the next lease, or the connection is closed.
    pub tainted: bool,
    /// Nobody has used it before the session that holds it.
    pub fresh: bool,
    prepared: Prepared,
    /// Parameters of extensions (`prefix.name`) that it has taken.
    accepted: Vec<Arc<str>>,
    /// The content of the server's unnamed statement.
    pub(super) unnamed: Option<StatementId>,
}

/// Names of parameters that are kept for one connection.
const ACCEPTED_MAX: usize = 64;

/// A statement's content: text, parameter types and the settings that analysis reads.
pub type StatementId = u128;

impl ServerState {
    pub fn new(node: Arc<str>, role: ServerRole, epoch: Epoch, params: Params, max_prepared: usize) -> ServerState {
        ServerState {
            node,
            role,
            epoch,
            tx: TxStatus::Idle,
            params,
            settings: Arc::default(),
            ready: true,
            tainted: false,
            fresh: true,
            prepared: Prepared { uses: FxHashMap::default(), clock: 0, max: max_prepared.max(1) },
            accepted: Vec::new(),
            unnamed: None,
        }
    }

    pub(super) fn accepted(&self) -> &[Arc<str>] {
        &self.accepted
    }

    /// It has taken this parameter. Beyond the limit it is asked again each time.
    pub(super) fn accepts(&mut self, name: &Arc<str>) {
        if name.contains('.') && self.accepted.len() < ACCEPTED_MAX && !self.accepted.contains(name) {
            self.accepted.push(name.clone());
        }
    }

    /// After a simple query of the owner's, such as a ROLLBACK: it has destroyed the unnamed statement, too.
    pub fn cleaned(&mut self, tx: TxStatus) {
        self.tx = tx;
        self.unnamed = None;
    }

    /// After DISCARD ALL: defaults, and no prepared statement.
    pub fn discarded(&mut self) {
        self.settings = Arc::default();
        self.forget_prepared();
    }

    pub(super) fn forget_prepared(&mut self) {
        self.prepared.uses.clear();
        self.unnamed = None;
    }

    pub(super) fn prepared(&mut self) -> &mut Prepared {
        &mut self.prepared
    }
}

/// The statements that a server connection has prepared, by content.
#[derive(Debug)]
pub(super) struct Prepared {
    uses: FxHashMap<StatementId, u64>,
    clock: u64,
    max: usize,
}

impl Prepared {
    /// Whether the statement is there; counts as a use.
    pub(super) fn has(&mut self, id: StatementId) -> bool {
        self.clock += 1;
        match self.uses.get_mut(&id) {
            Some(used) => {
                *used = self.clock;
                true
            }
            None => false,
        }
    }

    /// Notes a statement that is being prepared, and names one to close where there are too many.
    pub(super) fn add(&mut self, id: StatementId) -> Option<StatementId> {
        self.clock += 1;
        let evicted = if self.uses.len() >= self.max {
            let oldest = self.uses.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id);
            oldest.inspect(|oldest| {
                self.uses.remove(oldest);
            })
        } else {
            None
        };
        self.uses.insert(id, self.clock);
        evicted
    }

    /// Notes a statement whose Close the server has skipped.
    pub(super) fn restore(&mut self, id: StatementId) {
        self.clock += 1;
        self.uses.insert(id, self.clock);
    }

    /// All of them, which are to be closed.
    pub(super) fn take(&mut self) -> Vec<StatementId> {
        self.uses.drain().map(|(id, _)| id).collect()
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> impl Iterator<Item = StatementId> {
        self.uses.keys().copied()
    }

    pub(super) fn remove(&mut self, id: StatementId) {
        self.uses.remove(&id);
    }
}

/// A statement's name on servers. No client can collide with it: names that the router doesn't know pass through, but hardly
/// any client guesses 128 bits.
pub(super) fn server_name(id: StatementId) -> [u8; 35] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut name = *b"sy_00000000000000000000000000000000";
    for (index, byte) in name[3..].iter_mut().enumerate() {
        *byte = HEX[((id >> (4 * (31 - index))) & 15) as usize];
    }
    name
}
