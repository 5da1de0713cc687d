//! What the newest login of each user to each database has found, and what that means for the pools of older ones.
//!
//! Sessions go on with the pool of their login, as direct sessions go on with their server process. Invariant: what a
//! newer login has superseded gets no connection in the name of somebody else, and keeps none that rests once no
//! session is left that could use it.

use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::{FxHashMap, FxHashSet};
use switchyard_core::lsn::Lsn;
use switchyard_core::topology::Member;

use super::{Key, Pools};
use crate::auth::Identity;
use crate::auth::facts::Standing;
use crate::stats::PoolName;

/// The newest logins, of those that have pools.
#[derive(Default)]
pub(super) struct NewestLogins(RwLock<FxHashMap<Names, Newest>>);

/// Database and user.
type Names = (Arc<str>, Arc<str>);

#[derive(Clone, Copy)]
pub(super) struct Newest {
    pub(super) standing: Standing,
    /// Of the latest reading that found it, and of the first one since it was another.
    turn: u64,
    edition: u64,
    /// Where it was another one before: what shows at least this shows the new one.
    since: Option<Lsn>,
}

impl Newest {
    /// Whether the member has surely replayed what made it what it is. What it opens before is for one use only.
    pub(super) fn is_shown_by(&self, member: &Member) -> bool {
        self.since.is_none_or(|since| member.probed.as_ref().is_some_and(|probed| probed.replay_lsn >= since))
    }
}

impl NewestLogins {
    pub(super) fn of(&self, database: &Arc<str>, user: &Arc<str>) -> Option<Newest> {
        self.0.read().get(&(database.clone(), user.clone())).copied()
    }

    /// Whether newer logins use another pool than this one.
    pub(super) fn supersedes(&self, key: &Key) -> bool {
        self.of(&key.database, &key.user).is_some_and(|newest| (newest.standing, newest.edition) != (key.standing, key.edition))
    }

    /// Forgets the logins of which no pool is left.
    pub(super) fn forget_others(&self, left: &FxHashSet<PoolName>) {
        let names: FxHashSet<(&Arc<str>, &Arc<str>)> = left.iter().map(|name| (&name.database, &name.user)).collect();
        self.0.write().retain(|(database, user), _| names.contains(&(database, user)));
    }

    /// The login's edition, and whether that is news.
    fn learn(&self, identity: &Identity) -> (u64, bool) {
        let (standing, turn, position) = (identity.standing, identity.read.turn, identity.read.position);
        let mut all = self.0.write();
        let Some(known) = all.get_mut(&(identity.database.clone(), identity.user.clone())) else {
            all.insert((identity.database.clone(), identity.user.clone()), Newest { standing, turn, edition: turn, since: None });
            return (turn, true);
        };
        if known.standing == standing {
            known.turn = turn.max(known.turn);
            return (known.edition, false);
        }
        // What a replica says may be older than what the leader has said before.
        if turn > known.turn && position.is_some() {
            *known = Newest { standing, turn, edition: turn, since: position };
        }
        (turn, known.edition == turn)
    }
}

impl Pools {
    /// Somebody has logged in: this credential is the one to open connections of that role with from now on. The
    /// login's edition: a standing that comes back after another one doesn't bring the pool back, as sessions may have
    /// opened connections there meanwhile, of the other standing.
    pub(crate) fn logged_in(self: &Arc<Pools>, identity: &Identity) -> u64 {
        for (key, pool) in self.pools.read().iter() {
            if key.database == identity.database && key.user == identity.user && key.standing.role == identity.standing.role {
                pool.credential.store(identity.credential.clone());
            }
        }
        let (edition, news) = self.newest.learn(identity);
        if news {
            self.close_superseded();
        }
        edition
    }

    /// Closes what rests in superseded pools that no session uses.
    pub(super) fn close_superseded(&self) {
        for pool in self.all() {
            // The map's and this one aren't sessions.
            if Arc::strong_count(&pool) <= 2 && self.newest.supersedes(&pool.key) {
                let idle = std::mem::take(&mut pool.book.lock().idle);
                pool.discard_all(idle);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Credential;
    use crate::auth::facts::Reading;

    fn login(role: u32, settings: i64, turn: u64, position: Option<u64>) -> Identity {
        Identity {
            user: "ann".into(),
            database: "shop".into(),
            credential: Arc::new(Credential::Trust),
            standing: Standing { role, settings, ..Standing::default() },
            read: Reading { turn, position: position.map(Lsn) },
            edition: turn,
            settings: Vec::new(),
        }
    }

    #[test]
    fn the_leaders_newest_word_counts() {
        let newest = NewestLogins::default();
        let known = || newest.of(&"shop".into(), &"ann".into()).map(|known| (known.standing.settings, known.since));
        assert_eq!(newest.learn(&login(1, 10, 1, Some(100))), (1, true));
        assert_eq!(known(), Some((10, None)));
        assert_eq!(newest.learn(&login(1, 20, 3, Some(300))), (3, true));
        assert_eq!(known(), Some((20, Some(Lsn(300)))));
        // A login that took longer, and one that a replica has answered.
        assert_eq!(newest.learn(&login(1, 10, 2, Some(200))), (2, false));
        assert_eq!(newest.learn(&login(1, 10, 4, None)), (4, false));
        assert_eq!(known(), Some((20, Some(Lsn(300)))));
        assert_eq!(newest.learn(&login(1, 20, 5, Some(500))), (3, false));
        assert_eq!(known(), Some((20, Some(Lsn(300)))), "since it was so");
        // The first one again, and yet not the same.
        assert_eq!(newest.learn(&login(1, 10, 6, Some(600))), (6, true));
        assert_eq!(known(), Some((10, Some(Lsn(600)))));
    }

    #[test]
    fn others_of_the_same_names_are_told_from_the_same_with_other_settings() {
        let of = |role, database, settings| Standing { role, database, settings, ..Standing::default() };
        assert!(!of(1, 5, 10).is_of_others(of(1, 5, 20)));
        assert!(of(1, 5, 10).is_of_others(of(2, 5, 10)) && of(1, 5, 10).is_of_others(of(1, 6, 10)));
        assert!(!of(0, 0, 10).is_of_others(of(2, 5, 10)), "a function that tells no OIDs");
    }
}
