-- What psql can do, in one session and then in others (\c). Everything that it prints is compared.
\set VERBOSITY verbose
\set SHOW_CONTEXT always
\pset pager off
\timing off

\echo === tables and meta-commands
CREATE TABLE people (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, born date CHECK (born > '1800-01-01'), tags text[]);
COMMENT ON TABLE people IS 'some people';
CREATE INDEX people_name ON people (lower(name));
CREATE VIEW grown_up AS SELECT * FROM people WHERE born < '2000-01-01';
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
CREATE FUNCTION noisy(n int) RETURNS int LANGUAGE plpgsql AS $$BEGIN RAISE NOTICE 'about %', n; RAISE WARNING 'careful' USING HINT = 'a hint', DETAIL = 'a detail'; RETURN n; END$$;
INSERT INTO people (name, born, tags) VALUES ('Ada', '1815-12-10', '{maths,"engine, analytical"}'), ('Grace', '1906-12-09', '{navy}'), ('Linus', '1969-12-28', NULL);
\d people
\d+ grown_up
\dt+ people
\di
\dv
\ds
\dT+ mood
\dD
\df+ twice
\sf noisy
\sv grown_up
\dn
\dp people
\du app
\l postgres
\encoding
\dconfig work_mem
\drds
\dx

\echo === results in several shapes
SELECT * FROM people ORDER BY id;
\x
SELECT * FROM people ORDER BY id;
\x
\a
SELECT * FROM people ORDER BY id;
\a
SELECT id, name, born FROM people ORDER BY id \g (format=csv)
SELECT name, 1 AS one, extract(century FROM born) AS century FROM people ORDER BY 1 \crosstabview name one
SELECT 'SELECT ' || g || ' AS generated' FROM generate_series(1, 3) g \gexec
SELECT name AS first_name, id AS first_id FROM people ORDER BY id LIMIT 1 \gset
\echo :first_name :first_id
SELECT :'first_name' = name FROM people WHERE id = :first_id;
SELECT 1 AS a, 'two'::text AS b, now() AS c \gdesc
SELECT count(*) FROM people \; SELECT max(id) FROM people \; SELECT 'third';
\set FETCH_COUNT 2
SELECT g, g * g AS square FROM generate_series(1, 5) g;
\unset FETCH_COUNT

\echo === errors
SELECT 1 / 0;
\errverbose
SELECT * FROM nowhere;
SELECT nonsense(1);
SELEC 1;
INSERT INTO people (name, born) VALUES ('Methuselah', '1000-01-01');
INSERT INTO people (name) VALUES (NULL);
\echo :LAST_ERROR_SQLSTATE :ERROR :ROW_COUNT
SELECT 101::percent;
SELECT noisy(7);
DO $$BEGIN PERFORM noisy(8); END$$;
SELECT 'it lives' AS still;

\echo === transactions
BEGIN;
UPDATE people SET name = upper(name);
SAVEPOINT one;
DELETE FROM people;
SELECT count(*) FROM people;
ROLLBACK TO one;
SELECT count(*) FROM people;
SELECT 1 / 0;
SELECT 'refused';
ROLLBACK TO one;
RELEASE one;
SELECT name FROM people ORDER BY id;
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;
SHOW transaction_isolation;
SELECT count(*) FROM people;
INSERT INTO people (name) VALUES ('Nobody');
COMMIT;
COMMIT;
ROLLBACK;
BEGIN;
BEGIN;
COMMIT AND CHAIN;
SELECT 2;
ROLLBACK AND CHAIN;
END;
SAVEPOINT outside;
\set AUTOCOMMIT off
SELECT 1;
INSERT INTO people (name) VALUES ('Edsger');
ROLLBACK;
\set AUTOCOMMIT on
\set ON_ERROR_ROLLBACK on
BEGIN;
INSERT INTO people (name) VALUES ('Barbara');
INSERT INTO people (name, born) VALUES ('Methuselah', '1000-01-01');
INSERT INTO people (name) VALUES ('Donald');
COMMIT;
\set ON_ERROR_ROLLBACK off
SELECT name FROM people ORDER BY name;

\echo === prepared statements, cursors, settings
PREPARE by_name (text) AS SELECT count(*) FROM people WHERE name = $1;
EXECUTE by_name('Ada');
EXECUTE by_name('Nobody');
EXPLAIN (COSTS off) EXECUTE by_name('Ada');
SELECT name, statement, parameter_types FROM pg_prepared_statements;
DEALLOCATE by_name;
EXECUTE by_name('Ada');
BEGIN;
DECLARE few SCROLL CURSOR FOR SELECT g FROM generate_series(1, 10) g;
FETCH 3 FROM few;
FETCH BACKWARD 2 FROM few;
MOVE ABSOLUTE 8 IN few;
FETCH ALL FROM few;
CLOSE few;
COMMIT;
FETCH 1 FROM few;
DECLARE held CURSOR WITH HOLD FOR SELECT id FROM people ORDER BY id;
FETCH 2 FROM held;
CLOSE held;
SET DateStyle = 'German, DMY';
SELECT '31.12.1999'::date;
SET search_path = pg_catalog, public;
SHOW search_path;
SET work_mem = 'nonsense';
SET TimeZone = 'Asia/Tokyo';
SELECT '2024-01-01 00:00:00+00'::timestamptz;
BEGIN; SET LOCAL TimeZone = 'UTC'; SHOW TimeZone; COMMIT;
SHOW TimeZone;
SET app.tenant = '7';
SELECT current_setting('app.tenant'), current_setting('app.nothing', true);
SET client_encoding = 'LATIN1';
\encoding
SELECT 'é';
RESET ALL;
\encoding UTF8
SET client_min_messages = debug1;
CREATE TEMP TABLE scratch (a int PRIMARY KEY);
RESET client_min_messages;
INSERT INTO scratch SELECT g FROM generate_series(1, 3) g;
SELECT sum(a) FROM scratch;
DROP TABLE scratch;
SELECT set_config('app.tenant', 'nine', false);
SHOW app.tenant;
DISCARD ALL;
SHOW app.tenant;

\echo === copy
CREATE TABLE lines (a int, b text, c numeric(8, 2));
COPY lines FROM STDIN;
1	one	1.10
2	\N	2.20
3	tab\tin it	3.30
\.
COPY lines (a, b) FROM STDIN WITH (FORMAT csv);
4,"four, and ""more"""
5,
\.
COPY lines FROM STDIN;
6	six	6.60
seven	7	7
\.
SELECT count(*) FROM lines;
COPY lines TO STDOUT WITH (FORMAT csv, HEADER, NULL 'nothing');
COPY (SELECT a, c FROM lines WHERE a < 4 ORDER BY a) TO STDOUT;
\copy (SELECT * FROM lines ORDER BY a) TO 'lines.copy'
TRUNCATE lines;
\copy lines FROM 'lines.copy'
\copy lines FROM PROGRAM 'printf "8\\teight\\t8.8\\n"'
\copy lines TO PROGRAM 'wc -l'
SELECT * FROM lines ORDER BY a;
\copy nowhere FROM 'lines.copy'
COPY lines TO '/tmp/not-allowed';
SELECT 'it lives' AS still;

\echo === large objects
\set QUIET on
\lo_import script.sql 'a comment'
SELECT length(lo_get(:LASTOID)) > 1000 AS there;
\lo_export :LASTOID exported
\! cmp script.sql exported && echo the same
\lo_unlink :LASTOID
\set QUIET off
SELECT count(*) FROM pg_largeobject_metadata WHERE oid = :LASTOID;

\echo === notifications
LISTEN chat;
NOTIFY chat, 'to myself';
SELECT 1;
BEGIN;
NOTIFY chat, 'first';
NOTIFY chat, 'first';
NOTIFY chat, 'second';
COMMIT;
BEGIN; NOTIFY chat, 'never'; ROLLBACK;
SELECT 2;
UNLISTEN chat;
NOTIFY chat, 'unheard';
SELECT 3;

\echo === advisory locks, sequences, identity
SELECT pg_try_advisory_lock(42);
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SELECT pg_advisory_unlock(42);
SELECT pg_advisory_unlock(42);
CREATE SEQUENCE counter;
SELECT nextval('counter'), nextval('counter');
SELECT currval('counter'), lastval();
INSERT INTO people (name) VALUES ('Frances') RETURNING id - (SELECT max(id) FROM people) AS step;
SELECT currval(pg_get_serial_sequence('people', 'id')) = (SELECT max(id) FROM people) AS mine;

\echo === where psql knows them
SELECT :VERSION_NUM >= 160000 AS new_psql \gset
\if :new_psql
SELECT $1::int + $2::int AS sum \bind 20 22 \g
SELECT $1::int / $2::int \bind 1 0 \g
SELECT count(*) FROM people \watch c=3 i=0.05
\endif

\echo === other sessions of this psql
SET application_name = 'before';
\c -
SHOW application_name;
SELECT current_database() = :'DBNAME' AS same_database, current_user, session_user;
SELECT count(*) FROM people;
VACUUM people;
ANALYZE people;
EXPLAIN (COSTS off) SELECT * FROM people WHERE id = 1;
BEGIN; VACUUM people; ROLLBACK;
SELECT 'done' AS end;
