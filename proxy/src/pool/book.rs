//! The bookkeeping of one pool, under its lock: nothing here waits, and nothing here counts for people.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use switchyard_core::route::ServerRole;
use switchyard_core::session::{CustomNames, ServerState, Settings};
use switchyard_core::topology::Epoch;
use tokio::sync::oneshot;

use super::{Lease, Permit};
use crate::clients::Slot;
use crate::server::{Handle, Server};

/// What a client wants of a connection.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) client: Weak<Slot>,
    pub(super) epoch: Epoch,
    /// Only one that nobody has used will do.
    pub(super) fresh: bool,
    /// Only one will do on which no other custom settings were ever set.
    pub(super) known: Option<CustomNames>,
    /// Only one will do that is opened with these startup settings.
    pub(super) begins: Option<Arc<Settings>>,
}

impl Wanted {
    /// Whether no connection will do that is open already.
    pub(super) fn is_new(&self) -> bool {
        self.fresh || self.begins.is_some()
    }

    /// Whether what was set on a connection is nothing that its next session would wonder about.
    pub(super) fn may_see(&self, state: &ServerState) -> bool {
        self.known.as_ref().is_none_or(|known| state.custom.are_among(known))
    }
}

/// What a waiting client gets.
pub(super) enum Offer {
    Lease(Lease),
    Permit(Permit),
}

#[derive(Default)]
pub(super) struct Book {
    /// Last in, first out: the rest grow old and are closed.
    pub(super) idle: Vec<Box<Server>>,
    /// Open or being opened, idle ones included.
    pub(super) open: usize,
    /// Until then, no connection is kept idle.
    pub(super) leaving_until: Option<Instant>,
    /// Of them, being opened for clients.
    pub(super) opening: usize,
    pub(super) waiting: VecDeque<oneshot::Sender<Offer>>,
    /// Every open connection's handle.
    pub(super) handles: FxHashMap<u64, Arc<Handle>>,
}

impl Book {
    /// The idle connection for `client`: its own, else the last returned one that is nobody's, else the one kept longest for somebody
    /// else where `may_steal`. Connections of another epoch, or that have died, are put into `dead`.
    pub(super) fn take(&mut self, wanted: &Wanted, may_steal: bool, dead: &mut Vec<Box<Server>>) -> Option<Box<Server>> {
        let Wanted { client, epoch, .. } = wanted;
        loop {
            let own = self
                .idle
                .iter()
                .rposition(|server| server.owner.as_ref().is_some_and(|owner| owner.ptr_eq(client)) && wanted.may_see(&server.state));
            let nobodys = |owner: &Option<Weak<Slot>>| owner.as_ref().is_none_or(|owner| owner.strong_count() == 0);
            let free = || self.idle.iter().rposition(|server| nobodys(&server.owner) && wanted.may_see(&server.state));
            let any = || if may_steal { self.idle.iter().position(|server| wanted.may_see(&server.state)) } else { None };
            let index = own.or_else(free).or_else(any)?;
            let mut server = self.idle.remove(index);
            let current = server.state.role == ServerRole::Replica || server.state.epoch == *epoch;
            if current && server.is_alive() {
                return Some(server);
            }
            dead.push(server);
        }
    }

    /// Idle connections that have come to their end.
    pub(super) fn expired(&mut self, now: Instant, idle_timeout: Duration, max_lifetime: Duration, keep: usize) -> Vec<Box<Server>> {
        let mut expired = Vec::new();
        let mut index = 0;
        while index < self.idle.len() {
            let over_age = now.duration_since(self.idle[index].opened_at) >= max_lifetime;
            let unused = now.duration_since(self.idle[index].idle_since) >= idle_timeout && self.open - expired.len() > keep;
            if over_age || unused || !self.idle[index].is_alive() {
                expired.push(self.idle.remove(index));
            } else {
                index += 1;
            }
        }
        expired
    }
}
