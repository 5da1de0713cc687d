//! Who may have a database for itself, asked of the leader when somebody is about to.
//!
//! One connection as the router's own role is kept for it, and questions take turns on it. Invariant: without the
//! leader's word, nobody may.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_postgres::Client;

use super::Source;
use crate::auth::Target;
use crate::auth::facts::{AskError, Purpose, connect_as_router};

/// For everything, from waiting for a turn to the answer. The statement of whoever asks waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// Of these databases, those that a role may empty by one statement or another: DROP, RENAME and SET TABLESPACE are
/// the owner's; a template may be copied by whoever may create databases. What counts is what the role can become by
/// SET ROLE.
const MAY_EMPTY: &str = "\
    SELECT d.datname::pg_catalog.text \
    FROM pg_catalog.pg_database AS d \
    CROSS JOIN pg_catalog.pg_roles AS u \
    WHERE d.datname = ANY ($1::pg_catalog.text[]::pg_catalog.name[]) \
      AND CASE WHEN $3::pg_catalog.oid = 0 THEN u.rolname = $2::pg_catalog.text::pg_catalog.name ELSE u.oid = $3 END \
      AND (pg_catalog.pg_has_role(u.oid, d.datdba, 'MEMBER') \
           OR EXISTS (SELECT FROM pg_catalog.pg_roles AS r \
                      WHERE (r.rolsuper OR r.rolcreatedb AND d.datistemplate) AND pg_catalog.pg_has_role(u.oid, r.oid, 'MEMBER')))";

#[derive(Debug, thiserror::Error)]
pub(super) enum RightsError {
    #[error("there is no leader to ask")]
    NoLeader,
    #[error(transparent)]
    Ask(#[from] AskError),
}

#[derive(Default)]
pub(super) struct Rights {
    kept: Mutex<Option<(Target, Client)>>,
}

impl Rights {
    /// Those of `databases` that `user`, whose OID is `role` (0: not known), may empty.
    pub(super) async fn may_empty(
        &self,
        source: &Source,
        user: &str,
        role: u32,
        databases: &[Arc<str>],
    ) -> Result<Vec<String>, RightsError> {
        let asking = async {
            let target = {
                let topology = source.topology.load();
                let (_, leader) = topology.leader_at(Instant::now()).ok_or(RightsError::NoLeader)?;
                Target::new(leader.host.clone(), leader.port)
            };
            let mut kept = self.kept.lock().await;
            // Taken out: a question that is given up takes its connection with it.
            let client = match kept.take().filter(|(known, client)| *known == target && !client.is_closed()) {
                Some((_, client)) => client,
                None => {
                    let config = source.config.load_full();
                    let (database, application_name) = (config.postgres.database.as_str(), "switchyard rights");
                    let purpose = Purpose { database, application_name, statement_timeout: PATIENCE };
                    connect_as_router(&config.postgres, &target, &source.pools.tls.load_full(), purpose).await?
                }
            };
            let names: Vec<&str> = databases.iter().map(|name| &**name).collect();
            let answer = client.query(MAY_EMPTY, &[&names, &user, &role]).await;
            *kept = Some((target, client));
            let rows = answer.map_err(AskError::from)?;
            rows.iter().map(|row| Ok(row.try_get(0).map_err(AskError::from)?)).collect()
        };
        timeout(PATIENCE, asking).await.map_err(|_| AskError::Timeout(PATIENCE))?
    }
}
