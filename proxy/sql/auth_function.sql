-- The one thing that the router's role may do beyond probing members, where it is no superuser: read what a login needs to know.
--
-- Run as a superuser, in the database of the router's configuration (postgres.database), with the router's role in :router_role:
--
--     psql -d postgres -v router_role=switchyard -f auth_function.sql
--
-- and set, in the configuration:
--
--     [postgres]
--     user = "switchyard"
--     auth_function = "switchyard.login_facts"
--
-- It returns verifiers (pg_authid.rolpassword), never passwords. Whoever may run it can try passwords offline, so nobody else may.
-- To keep superusers out of the router altogether, add: AND NOT r.rolsuper  to the join with pg_authid.

\set ON_ERROR_STOP on

BEGIN;

CREATE SCHEMA IF NOT EXISTS switchyard;
REVOKE ALL ON SCHEMA switchyard FROM PUBLIC;
GRANT USAGE ON SCHEMA switchyard TO :"router_role";

-- An earlier version gave fewer columns, which CREATE OR REPLACE can't change. (A function that gives the first nine only goes on working; what
-- ALTER ROLE and ALTER DATABASE set then counts for new logins when the pool's connections have come to their end.)
DROP FUNCTION IF EXISTS switchyard.login_facts(text, text);

CREATE FUNCTION switchyard.login_facts(asked_role text, asked_database text)
    RETURNS TABLE (
        role_exists boolean,
        verifier text,
        can_login boolean,
        expired boolean,
        is_superuser boolean,
        connection_limit integer,
        database_exists boolean,
        accepts_connections boolean,
        may_connect boolean,
        role_oid oid,
        database_oid oid,
        database_connection_limit integer,
        settings bigint
    )
    LANGUAGE sql STABLE STRICT PARALLEL RESTRICTED SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT r.oid IS NOT NULL, r.rolpassword, r.rolcanlogin,
           r.rolvaliduntil < pg_catalog.now(), r.rolsuper, r.rolconnlimit,
           d.oid IS NOT NULL, d.datallowconn,
           pg_catalog.has_database_privilege(r.oid, d.oid, 'CONNECT'),
           r.oid, d.oid, d.datconnlimit,
           (SELECT pg_catalog.hashtextextended(pg_catalog.string_agg(s::pg_catalog.text, '' ORDER BY s.setdatabase, s.setrole)
                                               COLLATE pg_catalog."C", 0)
            FROM pg_catalog.pg_db_role_setting AS s
            WHERE s.setdatabase IN (0, d.oid) AND s.setrole IN (0, r.oid))
    FROM (SELECT 1) AS one
    LEFT JOIN pg_catalog.pg_authid AS r ON r.rolname = asked_role::pg_catalog.name
    LEFT JOIN pg_catalog.pg_database AS d ON d.datname = asked_database::pg_catalog.name
$$;

REVOKE ALL ON FUNCTION switchyard.login_facts(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION switchyard.login_facts(text, text) TO :"router_role";

COMMIT;
