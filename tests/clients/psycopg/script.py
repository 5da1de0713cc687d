"""psycopg 3: what an application does with it. Everything that it prints is compared."""

import logging
import sys
import threading
import time
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import dict_row, namedtuple_row
from psycopg.types.json import Jsonb
from psycopg.types.range import Range

DSN = sys.argv[1]
# How far a pipeline was when it ended is a matter of time.
logging.getLogger("psycopg").setLevel(logging.ERROR)


def show(what, *values):
    print(what, *(repr(value) for value in values))


def fails(what, work):
    """Runs what must fail, and shows how."""
    try:
        work()
        print(what, "didn't fail")
    except psycopg.Error as error:
        about = error.diag
        show(what, type(error).__name__, error.sqlstate, about.severity, about.message_primary, about.message_detail, about.message_hint,
             about.statement_position, about.constraint_name, about.table_name, about.source_function)


def connect(**options):
    connection = psycopg.connect(DSN, **options)
    connection.add_notice_handler(lambda notice: show("notice", notice.severity, notice.sqlstate, notice.message_primary))
    return connection


def basics():
    with connect(autocommit=True) as conn:
        info = conn.info
        show("session", info.encoding, info.server_version, info.transaction_status.name, info.user, info.dbname,
             sorted((name, info.parameter_status(name)) for name in (
                 "client_encoding", "DateStyle", "TimeZone", "IntervalStyle", "integer_datetimes", "standard_conforming_strings",
                 "in_hot_standby", "default_transaction_read_only", "is_superuser", "session_authorization", "server_version")))
        conn.execute("CREATE TABLE thing (id serial PRIMARY KEY, name text UNIQUE, price numeric, made timestamptz, extra jsonb)")
        cursor = conn.execute("INSERT INTO thing (name, price, extra) VALUES (%s, %s, %s) RETURNING id", ("pen", Decimal("1.50"), Jsonb({"a": [1, None]})))
        show("inserted", cursor.fetchone(), cursor.statusmessage, cursor.rowcount)
        show("selected", conn.execute("SELECT id, name, price, extra FROM thing").fetchall())
        cursor = conn.cursor(row_factory=dict_row)
        show("dict", cursor.execute("SELECT * FROM thing").fetchall(), [(c.name, c.type_code, c.internal_size, c.precision) for c in cursor.description])
        cursor = conn.cursor(row_factory=namedtuple_row, binary=True)
        show("binary", cursor.execute("SELECT id, price FROM thing WHERE name = %s", ["pen"]).fetchone())
        cursor = conn.cursor()
        cursor.executemany("INSERT INTO thing (name, price) VALUES (%s, %s) RETURNING id, name", [("ink", 3), ("cap", 4), ("box", 5)], returning=True)
        while True:
            show("many", cursor.fetchall())
            if not cursor.nextset():
                break
        cursor = psycopg.ClientCursor(conn)
        show("client side", cursor.execute("SELECT %s::text || %s; SELECT 2", ["it's", "\\"]).fetchall(), cursor.nextset(), cursor.fetchall())
        with psycopg.RawCursor(conn) as cursor:
            show("raw", cursor.execute("SELECT $1::int + $2::int", [40, 2]).fetchone())
        show("identifiers", conn.execute(sql.SQL("SELECT {} FROM {} ORDER BY id").format(sql.Identifier("name"), sql.Identifier("thing"))).fetchall())


def types():
    values = [
        (True, "bool"), (-32768, "int2"), (2**31 - 1, "int4"), (-(2**63), "int8"), (Decimal("123456789.000000001"), "numeric"), (1.5, "float4"),
        (-1e300, "float8"), ("snowman \u2603", "text"), ("x", "char(3)"), (b"\x00\xff\\", "bytea"), (date(1582, 10, 15), "date"),
        (datetime(2024, 2, 29, 12, 30, 15, 123456), "timestamp"), (datetime(2024, 2, 29, tzinfo=timezone.utc), "timestamptz"),
        (timedelta(days=3, seconds=7), "interval"), (UUID("12345678-1234-5678-1234-567812345678"), "uuid"), ([1, None, 3], "int[]"),
        ([["a", "b,"], ["c\"", "d\\"]], "text[]"), ([], "date[]"), (Range(1, 10), "int4range"), (Jsonb({"k": "v"}), "jsonb"), (None, "text"),
        ("192.168.0.1/24", "inet"), ("(1,2)", "point"), ("101", "bit(3)"), ("<a/>", "xml"), ("1 day 02:03:04", "interval"), ("{[1,3),[5,7)}", "int4multirange"),
    ]
    with connect(autocommit=True) as conn:
        for value, name in values:
            for binary in (False, True):
                placeholder = "%b" if binary and not isinstance(value, str) else "%s"
                try:
                    cursor = conn.cursor(binary=binary)
                    show(name, binary, cursor.execute(f"SELECT {placeholder}::{name}", [value]).fetchone())
                except psycopg.Error as error:
                    show(name, binary, type(error).__name__, error.sqlstate, str(error).splitlines()[0])


def transactions():
    with connect() as conn:
        conn.execute("INSERT INTO thing (name) VALUES ('gone')")
        show("in transaction", conn.info.transaction_status.name)
        conn.rollback()
        show("rolled back", conn.execute("SELECT count(*) FROM thing WHERE name = 'gone'").fetchone())
        conn.commit()
        with conn.transaction():
            conn.execute("INSERT INTO thing (name) VALUES ('outer')")
            try:
                with conn.transaction():
                    conn.execute("INSERT INTO thing (name) VALUES ('inner')")
                    conn.execute("INSERT INTO thing (name) VALUES ('outer')")
            except psycopg.errors.UniqueViolation as error:
                show("savepoint", error.sqlstate, error.diag.constraint_name)
            with conn.transaction(force_rollback=True):
                conn.execute("DELETE FROM thing")
                show("deleted", conn.execute("SELECT count(*) FROM thing").fetchone())
        show("names", conn.execute("SELECT name FROM thing ORDER BY name").fetchall())
        conn.commit()
        fails("division", lambda: conn.execute("SELECT 1/0"))
        show("failed", conn.info.transaction_status.name)
        fails("refused", lambda: conn.execute("SELECT 1"))
        conn.rollback()
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.read_only = True
        conn.deferrable = True
        show("levels", conn.execute("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'), current_setting('transaction_deferrable')").fetchone())
        fails("read only", lambda: conn.execute("INSERT INTO thing (name) VALUES ('x')"))
        conn.rollback()
        conn.isolation_level = conn.read_only = conn.deferrable = None
        conn.autocommit = True
        xid = conn.xid(1, "gtrid", "bqual")
        fails("two phases", lambda: conn.tpc_begin(xid) or conn.execute("INSERT INTO thing (name) VALUES ('2pc')") and conn.tpc_prepare())


def prepared():
    with connect(autocommit=True, prepare_threshold=2) as conn:
        for round in range(6):
            show("threshold", round, conn.execute("SELECT name FROM thing WHERE id = %s", [round]).fetchall())
        show("explicit", conn.execute("SELECT count(*) FROM thing", prepare=True).fetchone())
        show("statements", conn.execute("SELECT name, statement, from_sql FROM pg_prepared_statements ORDER BY name").fetchall())
        conn.execute("CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)")
        for _ in range(4):
            conn.execute("SELECT * FROM changing")
        conn.execute("ALTER TABLE changing ADD COLUMN b text DEFAULT 'new'")
        fails("cached plan", lambda: conn.execute("SELECT * FROM changing"))
        conn.execute("DEALLOCATE ALL")
        conn.prepare_threshold = None
        show("after it", conn.execute("SELECT * FROM changing").fetchall())
        conn.execute("DISCARD ALL")
        conn.prepare_threshold = 0
        conn.prepared_max = 3
        for number in range(12):
            show("evicted", conn.execute(f"SELECT {number} + %s::int", [number]).fetchone())
        show("left", conn.execute("SELECT count(*) FROM pg_prepared_statements", prepare=False).fetchone())
        for number in range(3):
            show("again", conn.execute(f"SELECT {number} + %s::int", [number]).fetchone())


def cursors():
    with connect() as conn:
        with conn.cursor(name="rows", scrollable=True) as cursor:
            cursor.execute("SELECT g, md5(g::text) FROM generate_series(1, %s) g", [500])
            cursor.itersize = 64
            show("some", cursor.fetchmany(3), cursor.fetchone())
            cursor.scroll(-2)
            show("back", cursor.fetchone())
            cursor.scroll(490, mode="absolute")
            show("rest", len(cursor.fetchall()))
        with conn.cursor(name="all") as cursor:
            cursor.itersize = 100
            show("sum", sum(row[0] for row in cursor.execute("SELECT g FROM generate_series(1, 1234) g")))
        fails("no such", lambda: conn.execute("FETCH 1 FROM rows"))
        conn.rollback()
        conn.autocommit = True
        with conn.cursor(name="held", withhold=True) as cursor:
            cursor.execute("SELECT name FROM thing ORDER BY name")
            conn.execute("SELECT 1")
            show("held", cursor.fetchmany(2), cursor.fetchall())
        streamed = conn.cursor().stream("SELECT g FROM generate_series(1, 10) g")
        show("stream", [row[0] for row in streamed])


def copies():
    with connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE copied (a int, b text, c timestamptz)")
        with conn.cursor().copy("COPY copied FROM STDIN") as copy:
            for number in range(1000):
                copy.write_row((number, None if number % 7 == 0 else f"line\t{number}\\", datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(minutes=number)))
        show("sums", conn.execute("SELECT count(*), count(b), sum(a), max(c) FROM copied").fetchone())
        with conn.cursor().copy("COPY copied (a, b) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            for number in range(10):
                copy.write_row((-number, "binary"))
        with conn.cursor().copy("COPY (SELECT a, b FROM copied ORDER BY a, b LIMIT 15) TO STDOUT") as copy:
            copy.set_types(["int4", "text"])
            show("rows", list(copy.rows()))
        with conn.cursor().copy("COPY (SELECT a FROM copied ORDER BY a LIMIT 3) TO STDOUT (FORMAT binary)") as copy:
            show("bytes", b"".join(bytes(part) for part in copy))

        def broken():
            with conn.cursor().copy("COPY copied (a) FROM STDIN") as copy:
                copy.write("1\n2\nthree\n4\n")

        fails("bad line", broken)

        def given_up():
            with conn.cursor().copy("COPY copied (a) FROM STDIN") as copy:
                copy.write("1\n")
                raise ValueError("the application's own")

        try:
            given_up()
        except ValueError as error:
            show("given up", error)
        fails("no table", lambda: conn.cursor().copy("COPY nowhere FROM STDIN").__enter__())
        show("same sums", conn.execute("SELECT count(*), sum(a) FROM copied").fetchone())


def pipelines():
    with connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE piped (a int PRIMARY KEY)")
        with conn.pipeline():
            cursors = [conn.execute("INSERT INTO piped VALUES (%s) RETURNING a", [number]) for number in range(50)]
            show("piped", [cursor.fetchone()[0] for cursor in cursors])
        with conn.pipeline() as pipeline:
            first = conn.execute("SELECT 1")
            pipeline.sync()
            second = conn.execute("SELECT count(*) FROM piped")
            pipeline.sync()
            show("synced", second.fetchone(), first.fetchone())

        def failing():
            with conn.pipeline():
                conn.execute("INSERT INTO piped VALUES (100)")
                conn.execute("INSERT INTO piped VALUES (1)")
                conn.execute("INSERT INTO piped VALUES (101)")

        fails("in a pipeline", failing)
        show("nothing of it", conn.execute("SELECT count(*), max(a) FROM piped").fetchone(), conn.info.transaction_status.name)

        def fails_behind():
            with conn.pipeline() as pipeline:
                conn.execute("INSERT INTO piped VALUES (200)")
                pipeline.sync()
                conn.execute("SELECT 1 FROM nowhere")
                conn.execute("INSERT INTO piped VALUES (201)")
                pipeline.sync()
                conn.execute("INSERT INTO piped VALUES (202)")

        fails("behind a sync", fails_behind)
        show("what is left", conn.execute("SELECT a FROM piped WHERE a >= 100 ORDER BY a").fetchall())
        with conn.pipeline():
            with conn.transaction():
                conn.execute("INSERT INTO piped VALUES (300)")
                try:
                    with conn.transaction():
                        conn.execute("INSERT INTO piped VALUES (301)")
                        conn.execute("INSERT INTO piped VALUES (300)")
                except psycopg.errors.UniqueViolation as error:
                    show("savepoint in a pipeline", error.sqlstate)
                last = conn.execute("SELECT count(*) FROM piped")
            show("counted", last.fetchone())
        cursor = conn.cursor()
        cursor.executemany("INSERT INTO piped VALUES (%s)", [(number,) for number in range(1000, 3000)])
        show("batch", cursor.rowcount, conn.execute("SELECT count(*) FROM piped").fetchone())


def settings():
    with connect(autocommit=True, options="-c DateStyle=SQL,DMY -c app.startup=yes", application_name="a script") as conn:
        one = lambda query: conn.execute(query).fetchone()[0]
        show("startup", one("SHOW DateStyle"), one("SHOW app.startup"), one("SHOW application_name"), one("SELECT '2024-12-31'::date::text"))
        conn.execute("SET TimeZone TO 'America/Lima'")
        show("reported", conn.info.parameter_status("TimeZone"), one("SELECT '2024-01-01 12:00+00'::timestamptz::text"))
        conn.execute("RESET DateStyle")
        show("reset", one("SHOW DateStyle"), conn.info.parameter_status("DateStyle"))
        with conn.transaction():
            conn.execute("SET LOCAL statement_timeout = '5s'")
            show("local", one("SHOW statement_timeout"))
        show("after", one("SHOW statement_timeout"))
        try:
            with conn.transaction():
                conn.execute("SET TimeZone TO 'Asia/Tokyo'")
                raise ValueError
        except ValueError:
            show("rolled back", conn.info.parameter_status("TimeZone"), one("SHOW TimeZone"))
        conn.execute("SET client_encoding TO 'LATIN1'")
        show("latin", one("SELECT 'é'"), conn.info.encoding)
        fails("not in it", lambda: conn.execute("SELECT chr(9731)"))
    fails("bad startup", lambda: psycopg.connect(DSN, options="-c work_mem=much"))
    fails("no such database", lambda: psycopg.connect(DSN, dbname="nowhere_at_all"))


def interruptions():
    with connect(autocommit=True) as conn:
        threading.Timer(0.3, conn.cancel_safe).start()
        fails("canceled", lambda: conn.execute("SELECT pg_sleep(30)"))
        show("it lives", conn.execute("SELECT 1").fetchone())
        conn.cancel_safe()
        conn.execute("SET statement_timeout = '100ms'")
        fails("timeout", lambda: conn.execute("SELECT pg_sleep(30)"))
        conn.execute("RESET statement_timeout")
        conn.execute("CREATE FUNCTION shout() RETURNS int LANGUAGE plpgsql AS $$BEGIN FOR i IN 1..5 LOOP RAISE NOTICE 'number %', i; END LOOP; RETURN 5; END$$")
        show("shouted", conn.execute("SELECT shout()").fetchone())
        with conn.transaction():
            conn.execute("INSERT INTO thing (name) VALUES ('canceled')")
            threading.Timer(0.3, conn.cancel_safe).start()
            fails("canceled in a transaction", lambda: conn.execute("SELECT pg_sleep(30)"))
            show("status", conn.info.transaction_status.name)
            raise psycopg.Rollback()
        show("status", conn.info.transaction_status.name, conn.execute("SELECT count(*) FROM thing WHERE name = 'canceled'").fetchone())


def notifications():
    with connect(autocommit=True) as listener, connect(autocommit=True) as speaker:
        listener.execute("LISTEN news")
        speaker.execute("NOTIFY news, 'one'")
        speaker.execute("SELECT pg_notify('news', 'two')")
        with speaker.transaction():
            speaker.execute("NOTIFY news, 'three'")
        got = [notify for notify in listener.notifies(timeout=20, stop_after=3)]
        show("heard", [(notify.channel, notify.payload) for notify in got])
        listener.execute("NOTIFY news, 'mine'")
        mine = next(listener.notifies(timeout=20, stop_after=1))
        show("mine", mine.payload, mine.pid == listener.info.backend_pid)
        listener.execute("UNLISTEN *")
        speaker.execute("NOTIFY news, 'unheard'")
        show("silence", list(listener.notifies(timeout=0.2)))


for section in (basics, types, transactions, prepared, cursors, copies, pipelines, settings, interruptions, notifications):
    print("===", section.__name__)
    section()
print("done")
