//! What is in the databases that the judge plays in, and how they come back to it after a script.
//!
//! A template is filled once; each worker gets two databases made from it, one for the direct side and one for the
//! router, so that what the sides write never meets, and all OIDs are the same.

use anyhow::Context;
use tokio_postgres::Client;

/// Who plays: a plain role, one that begins with another role, and one with settings of its own.
pub(super) const USERS: [&str; 3] = ["diff_app", "diff_app2", "diff_app3"];
/// Whose attributes and settings scripts change. Each worker has one, whose name has its number behind it.
pub(super) const ALTERED: &str = "diff_own";
/// Who may have replication connections.
pub(super) const REPLICATES: &str = "diff_rep";
/// A database that none of [`USERS`] may drop, rename or copy. Each worker has one, whose name has its number behind
/// it.
pub(super) const ALONE: &str = "diff_alone";
/// Somebody with a connection to it.
pub(super) const BYSTANDER: &str = "diff_by";
/// What stands for the database of each side.
pub(super) const HERE: &str = "diff_here";
const TEMPLATE: &str = "diff_template";

const ROLES: &str = "
CREATE ROLE grp;
CREATE ROLE own_r;
CREATE ROLE diff_app LOGIN IN ROLE grp, own_r;
CREATE ROLE diff_app2 LOGIN IN ROLE grp, own_r;
CREATE ROLE diff_app3 LOGIN IN ROLE grp, own_r;
CREATE ROLE diff_rep LOGIN REPLICATION IN ROLE grp, own_r;
CREATE ROLE diff_by LOGIN;
ALTER ROLE diff_app2 SET role = own_r;
ALTER ROLE diff_app3 SET work_mem = '5MB';
ALTER ROLE diff_app3 SET app.tenant = 'of the role';
";

/// Each object named for the way by which it leaves something. A custom setting's name is a literal wherever code
/// sets it.
const OBJECTS: &str = r#"
CREATE TABLE t (i int PRIMARY KEY, v text DEFAULT 'd');
CREATE TABLE ser (id serial PRIMARY KEY, v text);
CREATE SEQUENCE seq;
CREATE TABLE late (i int CONSTRAINT once UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE VIEW plain AS SELECT i, v FROM t WHERE i < 3 ORDER BY i;
CREATE FUNCTION reads() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM t';
CREATE FUNCTION raises() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'raised' USING ERRCODE = 'P0042'; END $$;
CREATE FUNCTION notices() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'noticed'; RETURN 1; END $$;

CREATE FUNCTION sets() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', 'function', false) $$;
CREATE FUNCTION sets_mem() RETURNS text LANGUAGE plpgsql AS $$ BEGIN SET work_mem = '3MB'; RETURN 'done'; END $$;
CREATE FUNCTION sets_immutably(int) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('app.tenant', 'expression', false); RETURN 'x' || $1; END $$;
CREATE FUNCTION keeps_own() RETURNS text LANGUAGE sql SET work_mem = '2MB' AS $$ SELECT current_setting('work_mem') $$;
CREATE FUNCTION makes_temp() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE t1 (i int); INSERT INTO t1 VALUES (1); END $$;
CREATE PROCEDURE commits() LANGUAGE plpgsql AS
    $$ BEGIN SET my.x = 'procedure'; INSERT INTO ser (v) VALUES ('commits'); COMMIT; PERFORM 1; END $$;

CREATE FUNCTION trigger_role() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('role', 'grp', false); RETURN NEW; END $$;
CREATE FUNCTION trigger_tenant() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('app.tenant', 'trigger', false); RETURN NEW; END $$;
CREATE FUNCTION trigger_local() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('app.tenant', 'local', true); RETURN NEW; END $$;
CREATE FUNCTION trigger_mem() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('work_mem', '9MB', false); RETURN NEW; END $$;
CREATE FUNCTION trigger_temp() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN CREATE TEMP TABLE IF NOT EXISTS t2 (w text); INSERT INTO t2 VALUES ('secret'); RETURN NEW; END $$;
CREATE FUNCTION trigger_lock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(7); RETURN NEW; END $$;
CREATE FUNCTION trigger_listen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'LISTEN c1'; RETURN NEW; END $$;
CREATE FUNCTION trigger_prepare() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN EXECUTE 'PREPARE w AS SELECT ''of a trigger'''; RETURN NEW; END $$;
CREATE FUNCTION trigger_deallocate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'DEALLOCATE ALL'; RETURN NEW; END $$;
CREATE FUNCTION trigger_cursor() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN EXECUTE 'DECLARE k1 CURSOR WITH HOLD FOR SELECT i FROM t ORDER BY i'; RETURN NEW; END $$;
CREATE FUNCTION trigger_sequence() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('seq'); RETURN NEW; END $$;
CREATE FUNCTION trigger_path() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('search_path', 'pg_catalog, public', false); RETURN NEW; END $$;
CREATE FUNCTION trigger_replica() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('session_replication_role', 'replica', false); RETURN NEW; END $$;
DO $$ DECLARE what text; BEGIN
    FOREACH what IN ARRAY '{role,tenant,local,mem,temp,lock,listen,prepare,deallocate,cursor,sequence,path,replica}'::text[] LOOP
        EXECUTE format('CREATE TABLE on_%1$s (i int); CREATE TRIGGER leaves BEFORE INSERT ON on_%1$s FOR EACH ROW EXECUTE FUNCTION trigger_%1$s()', what);
    END LOOP;
END $$;
CREATE TABLE audited (i int, v text);
INSERT INTO audited VALUES (1, 'one');
CREATE FUNCTION audits() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO ser (v) VALUES ('audit'); RETURN NULL; END $$;
CREATE TRIGGER audits AFTER UPDATE OR DELETE ON audited FOR EACH ROW EXECUTE FUNCTION audits();
CREATE SEQUENCE of_others START 1000000;
CREATE VIEW others AS SELECT nextval('of_others') > 0 AS drawn;
CREATE VIEW numbers AS SELECT nextval('seq') AS n;
CREATE TABLE on_commit (i int);
CREATE CONSTRAINT TRIGGER leaves AFTER INSERT ON on_commit DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION trigger_tenant();

CREATE VIEW sees AS SELECT set_config('app.tenant', 'view', false) AS v;
CREATE VIEW sees_mem AS SELECT set_config('work_mem', '6MB', false) AS v;
CREATE VIEW sees_role AS SELECT set_config('role', 'grp', false) AS v;
CREATE VIEW sees_lock AS SELECT pg_advisory_lock(8)::text AS v;
CREATE TABLE defaults (i int, v text DEFAULT set_config('app.tenant', 'default', false));
CREATE TABLE checks (i int CHECK (set_config('app.tenant', 'check', false) IS NOT NULL));
CREATE TABLE guarded (i int);
INSERT INTO guarded VALUES (1);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY leaves ON guarded USING (set_config('app.tenant', 'policy', false) IS NOT NULL);
CREATE TABLE tenants (tenant int, v text);
INSERT INTO tenants VALUES (1, 'one'), (5, 'five');
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON tenants USING (tenant = coalesce(current_setting('my.x', true), '1')::int);
CREATE TABLE ruled (i int);
CREATE RULE leaves AS ON INSERT TO ruled DO ALSO SELECT set_config('work_mem', '7MB', false);
CREATE TABLE indexed (i int);
CREATE INDEX ON indexed (sets_immutably(i));
CREATE TABLE generated (i int, g text GENERATED ALWAYS AS (sets_immutably(i)) STORED);
CREATE DOMAIN dom AS int CHECK (set_config('app.tenant', 'domain', false) IS NOT NULL);
CREATE DOMAIN dom_mem AS int CHECK (set_config('work_mem', '8MB', false) IS NOT NULL);
CREATE DOMAIN dom_role AS int CHECK (set_config('role', 'grp', false) IS NOT NULL);
CREATE DOMAIN dom_lock AS int CHECK (pg_try_advisory_lock(9));
CREATE FUNCTION plus(int, int) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', 'operator', false) $$;
CREATE OPERATOR ### (LEFTARG = int, RIGHTARG = int, FUNCTION = plus);
CREATE TYPE pair AS (a int);
CREATE FUNCTION pair_text(pair) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', 'cast', false) $$;
CREATE CAST (pair AS text) WITH FUNCTION pair_text(pair);

INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three');
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC;

-- What the tables hold, and all that was changed made undone. The names begin with what no script says.
-- In PL/pgSQL, which keeps the plan.
CREATE FUNCTION judge_contents() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
    RETURN concat_ws(' / ',
        (SELECT string_agg(i || v, ',' ORDER BY i, v) FROM t), (SELECT string_agg(v, ',' ORDER BY v) FROM ser),
        (SELECT string_agg(i::text, ',' ORDER BY i) FROM late), (SELECT last_value || ' ' || is_called FROM seq),
        (SELECT last_value || ' ' || is_called FROM ser_id_seq), (SELECT string_agg(v, ',' ORDER BY tenant, v) FROM tenants),
        (SELECT string_agg(k || i, ',' ORDER BY k, i) FROM (
            SELECT 'role' k, i FROM on_role UNION ALL SELECT 'tenant', i FROM on_tenant UNION ALL SELECT 'local', i FROM on_local
            UNION ALL SELECT 'mem', i FROM on_mem UNION ALL SELECT 'temp', i FROM on_temp UNION ALL SELECT 'lock', i FROM on_lock
            UNION ALL SELECT 'listen', i FROM on_listen UNION ALL SELECT 'prepare', i FROM on_prepare
            UNION ALL SELECT 'deallocate', i FROM on_deallocate UNION ALL SELECT 'cursor', i FROM on_cursor
            UNION ALL SELECT 'sequence', i FROM on_sequence UNION ALL SELECT 'path', i FROM on_path
            UNION ALL SELECT 'replica', i FROM on_replica
            UNION ALL SELECT 'commit', i FROM on_commit UNION ALL SELECT 'default', i FROM defaults UNION ALL SELECT 'check', i FROM checks
            UNION ALL SELECT 'guarded', i FROM guarded UNION ALL SELECT 'ruled', i FROM ruled UNION ALL SELECT 'indexed', i FROM indexed
            UNION ALL SELECT 'generated', i FROM generated) all_of_them)); END $$;
CREATE FUNCTION judge_reset() RETURNS void LANGUAGE plpgsql AS $$ DECLARE name text; BEGIN
    DELETE FROM t; INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three');
    DELETE FROM tenants; INSERT INTO tenants VALUES (1, 'one'), (5, 'five');
    DELETE FROM guarded; INSERT INTO guarded VALUES (1);
    DELETE FROM audited; INSERT INTO audited VALUES (1, 'one');
    DELETE FROM ser; DELETE FROM late; DELETE FROM defaults; DELETE FROM checks; DELETE FROM ruled; DELETE FROM indexed; DELETE FROM generated;
    DELETE FROM on_commit;
    FOREACH name IN ARRAY '{role,tenant,local,mem,temp,lock,listen,prepare,deallocate,cursor,sequence,path,replica}'::text[] LOOP
        EXECUTE 'DELETE FROM on_' || name;
    END LOOP;
    PERFORM setval('seq', 1, false), setval('ser_id_seq', 1, false);
END $$;
CREATE TABLE judge_base AS SELECT judge_contents() AS contents;
REVOKE ALL ON judge_base FROM PUBLIC;
"#;

/// A worker's databases.
#[derive(Clone, Debug)]
pub(super) struct Databases {
    pub(super) direct: String,
    pub(super) routed: String,
    worker: usize,
}

impl Databases {
    /// A text of a script, with this worker's names.
    pub(super) fn named(&self, text: &str) -> String {
        [ALTERED, ALONE, "diff_gone"].iter().fold(text.to_owned(), |text, name| text.replace(name, &format!("{name}{}", self.worker)))
    }

    /// What takes back what scripts have set for the databases.
    pub(super) fn undo_database_alters(&self) -> [String; 2] {
        [&self.direct, &self.routed].map(|name| format!("ALTER DATABASE {name} RESET ALL"))
    }

    /// What brings the role that scripts alter back to what it was: another one of its name, as nobody has it any more.
    pub(super) fn undo_role_alters(&self) -> String {
        self.named("DROP ROLE IF EXISTS diff_gone, diff_own; CREATE ROLE diff_own LOGIN IN ROLE grp, own_r")
    }
}

/// Makes roles and databases, on the leader.
///
/// # Errors
/// If the server refuses.
pub(super) async fn prepare(postgres: &Client, template: &str, workers: usize) -> anyhow::Result<Vec<Databases>> {
    for statement in ROLES.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        postgres.batch_execute(statement).await.context("the roles")?;
    }
    postgres.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await?;
    {
        let (client, connection) = tokio_postgres::connect(&format!("{template}/{TEMPLATE}"), tokio_postgres::NoTls).await?;
        let driver = tokio::spawn(connection);
        client.batch_execute(OBJECTS).await.context("the objects")?;
        drop(client);
        let _ = driver.await;
    }
    let mut all = Vec::new();
    for worker in 0..workers {
        let databases = Databases { direct: format!("diff_d{worker}"), routed: format!("diff_r{worker}"), worker };
        for name in [&databases.direct, &databases.routed] {
            let copy = format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}");
            let copied = async || postgres.batch_execute(&copy).await.map(Some).map_err(Into::into);
            // The connection that filled the template may take a moment to be gone.
            crate::eventually(std::time::Duration::from_secs(20), name, copied).await?;
        }
        postgres.batch_execute(&databases.named("CREATE ROLE diff_own LOGIN IN ROLE grp, own_r")).await?;
        postgres.batch_execute(&databases.named("CREATE DATABASE diff_alone")).await?;
        all.push(databases);
    }
    Ok(all)
}
