"""asyncpg: what an application does with it. Everything that it prints is compared."""

import asyncio
import io
import sys
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import asyncpg

DSN = sys.argv[1]


def show(what, *values):
    print(what, *(repr(value) for value in values))


async def fails(what, work):
    try:
        await work
        print(what, "didn't fail")
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncio.TimeoutError, TypeError) as error:
        show(what, type(error).__name__, getattr(error, "sqlstate", None), str(error).splitlines()[:1], getattr(error, "detail", None), getattr(error, "hint", None))


async def basics(conn):
    show("server", conn.get_server_version()[:2], [(name, getattr(conn.get_settings(), name)) for name in ("client_encoding", "TimeZone", "DateStyle", "in_hot_standby")])
    show("status", await conn.execute("CREATE TABLE thing (id serial PRIMARY KEY, name text UNIQUE, price numeric, made timestamptz)"))
    show("status", await conn.execute("INSERT INTO thing (name, price) VALUES ($1, $2)", "pen", Decimal("1.5")))
    show("rows", [tuple(row) for row in await conn.fetch("SELECT id, name, price FROM thing")])
    show("value", await conn.fetchval("SELECT count(*) FROM thing WHERE name = $1", "pen"))
    show("row", dict(await conn.fetchrow("SELECT name, price FROM thing WHERE id = $1", 1)))
    show("script", await conn.execute("SELECT 1; SELECT 2; INSERT INTO thing (name) VALUES ('scripted')"))
    await conn.executemany("INSERT INTO thing (name, price) VALUES ($1, $2)", [(f"many {number}", number) for number in range(500)])
    show("many", await conn.fetchval("SELECT count(*) FROM thing"), await conn.fetchval("SELECT sum(price) FROM thing"))
    returned = await conn.fetchmany("INSERT INTO thing (name) VALUES ($1) RETURNING name", [("a",), ("b",)])
    show("fetchmany", [tuple(row) for row in returned])
    await fails("many, one bad", conn.executemany("INSERT INTO thing (name) VALUES ($1)", [("c",), ("a",), ("d",)]))
    show("nothing of it", await conn.fetchval("SELECT count(*) FROM thing WHERE name IN ('c', 'd')"))


async def types(conn):
    await conn.execute("CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (a int, b text)")
    for value, name in [
        (True, "bool"), (-32768, "int2"), (2**31 - 1, "int4"), (-(2**63), "int8"), (Decimal("1.000000001"), "numeric"), (1.5, "float4"), (-1e300, "float8"),
        ("\u2603", "text"), (b"\x00\xff", "bytea"), (date(1582, 10, 15), "date"), (datetime(2024, 2, 29, 1, 2, 3, 4), "timestamp"),
        (datetime(2024, 2, 29, tzinfo=timezone.utc), "timestamptz"), (timedelta(days=3, seconds=7), "interval"),
        (UUID("12345678-1234-5678-1234-567812345678"), "uuid"), ([1, None, 3], "int[]"), ([["a", "b,"], ["c\"", "d\\"]], "text[]"), ([], "date[]"),
        (asyncpg.Range(1, 10), "int4range"), ('{"k": 1}', "jsonb"), ("happy", "mood"), ((1, "one"), "pair"), ([(1, "one"), (2, None)], "pair[]"), (None, "text"),
        (asyncpg.Point(1, 2), "point"), (asyncpg.BitString("101"), "bit(3)"),
    ]:
        result = await conn.fetchval(f"SELECT $1::{name}", value)
        show(name, result, await conn.fetchval(f"SELECT ($1::{name})::text", value))
    await conn.set_type_codec("jsonb", encoder=str, decoder=lambda text: ("decoded", text), schema="pg_catalog")
    show("codec", await conn.fetchval("SELECT '{}'::jsonb"))
    await conn.reset_type_codec("jsonb", schema="pg_catalog")


async def statements(conn):
    statement = await conn.prepare("SELECT name, $1::int + 1 AS next FROM thing WHERE id = $1")
    show("parameters", [p.name for p in statement.get_parameters()], [(a.name, a.type.name) for a in statement.get_attributes()])
    show("fetched", [tuple(row) for row in await statement.fetch(1)], await statement.fetchval(2), statement.get_statusmsg())
    show("prepared", [tuple(row) for row in await conn.fetch("SELECT statement, parameter_types::text FROM pg_prepared_statements WHERE statement LIKE 'SELECT name%'")])
    await fails("no such column", conn.prepare("SELECT nothing FROM thing"))
    await fails("wrong argument", conn.fetch("SELECT $1::int", "text"))
    await fails("division", conn.fetch("SELECT 1 / $1::int", 0))
    await fails("missing", conn.fetch("SELECT * FROM nowhere"))
    show("it lives", await conn.fetchval("SELECT 1"))
    await conn.execute("CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)")
    for _ in range(3):
        await conn.fetch("SELECT * FROM changing")
    await conn.execute("ALTER TABLE changing ADD COLUMN b text DEFAULT 'new'")
    show("changed", [tuple(row) for row in await conn.fetch("SELECT * FROM changing")])
    async with conn.transaction():
        await conn.fetch("SELECT * FROM changing")
    await conn.execute("ALTER TABLE changing ALTER COLUMN a TYPE text USING a::text || '!'")
    show("changed again", [tuple(row) for row in await conn.fetch("SELECT * FROM changing WHERE a = $1", "1!")])
    explained = await (await conn.prepare("SELECT 1")).explain()
    show("explained", explained[0]["Plan"]["Node Type"])


async def transactions(conn):
    async with conn.transaction():
        await conn.execute("INSERT INTO thing (name) VALUES ('outer')")
        try:
            async with conn.transaction():
                await conn.execute("INSERT INTO thing (name) VALUES ('outer')")
        except asyncpg.UniqueViolationError as error:
            show("savepoint", error.sqlstate, error.constraint_name, error.detail)
        show("inside", conn.is_in_transaction(), await conn.fetchval("SELECT count(*) FROM thing WHERE name = 'outer'"))
    transaction = conn.transaction(isolation="repeatable_read", readonly=True)
    await transaction.start()
    show("levels", await conn.fetchval("SHOW transaction_isolation"), await conn.fetchval("SHOW transaction_read_only"))
    show("counted", await conn.fetchval("SELECT count(*) FROM thing WHERE name = 'outer'"))
    await fails("read only", conn.execute("DELETE FROM thing"))
    await fails("failed", conn.fetchval("SELECT 1"))
    await transaction.rollback()
    async with conn.transaction(isolation="serializable", readonly=True, deferrable=True):
        show("deferrable", await conn.fetchval("SELECT count(*) FROM thing WHERE name = 'outer'"))
    show("outside", conn.is_in_transaction())


async def cursors(conn):
    async with conn.transaction():
        rows = [row[0] async for row in conn.cursor("SELECT g FROM generate_series(1, $1) g", 230, prefetch=50)]
        show("iterated", len(rows), rows[-1])
        cursor = await conn.cursor("SELECT g FROM generate_series(1, 20) g")
        show("fetched", [row[0] for row in await cursor.fetch(5)], await cursor.forward(10), (await cursor.fetchrow())[0], [row[0] for row in await cursor.fetch(100)])
        statement = await conn.prepare("SELECT name FROM thing ORDER BY id LIMIT 7")
        show("prepared", [row[0] async for row in statement.cursor(prefetch=2)])
        one, two = await conn.cursor("SELECT 1 UNION SELECT 2 ORDER BY 1"), await conn.cursor("SELECT 'x' UNION SELECT 'y' ORDER BY 1")
        show("two at once", (await one.fetchrow())[0], (await two.fetchrow())[0], (await one.fetchrow())[0], (await two.fetchrow())[0])
    await fails("outside a transaction", anext(aiter(conn.cursor("SELECT 1"))))


async def copies(conn):
    await conn.execute("CREATE TABLE copied (a int, b text, c date)")
    show("status", await conn.copy_records_to_table("copied", records=[(number, None if number % 5 == 0 else "x" * (number % 50), date(2024, 1, 1)) for number in range(2000)]))
    show("sums", tuple(await conn.fetchrow("SELECT count(*), count(b), sum(a), sum(length(b)) FROM copied")))
    out = io.BytesIO()
    show("status", await conn.copy_from_query("SELECT a, b FROM copied WHERE a < $1 ORDER BY a", 12, output=out, format="csv", header=True))
    show("csv", out.getvalue())
    show("status", await conn.copy_to_table("copied", source=io.BytesIO(b"1,one,2024-02-29\n2,,\n"), format="csv"))
    await fails("bad line", conn.copy_to_table("copied", source=io.BytesIO(b"1,one,2024-02-30\n"), format="csv"))
    await fails("bad type", conn.copy_records_to_table("copied", records=[("text", "b", None)]))
    show("counted", await conn.fetchval("SELECT count(*) FROM copied"))
    out = io.BytesIO()
    await conn.copy_from_table("copied", output=out, format="binary")
    show("bytes", len(out.getvalue()))


async def notices(conn):
    heard, notes = asyncio.Queue(), []
    conn.add_log_listener(lambda _, message: notes.append((message.severity, message.sqlstate, message.message)))
    await conn.execute("DO $$BEGIN RAISE NOTICE 'hello'; RAISE WARNING 'careful'; END$$")
    await conn.execute("DROP TABLE IF EXISTS nowhere")
    await conn.execute("ROLLBACK")
    await asyncio.sleep(0)
    show("notices", notes)
    await conn.add_listener("news", lambda c, pid, channel, payload: heard.put_nowait((pid == c.get_server_pid(), channel, payload)))
    await conn.execute("NOTIFY news, 'mine'")
    show("heard", await asyncio.wait_for(heard.get(), 20))
    other = await asyncpg.connect(DSN)
    await other.execute("SELECT pg_notify('news', $1)", "theirs")
    show("heard", await asyncio.wait_for(heard.get(), 20))
    await other.close()
    async with conn.transaction():
        await conn.execute("NOTIFY news, 'committed'")
        show("not yet", heard.qsize())
    show("heard", await asyncio.wait_for(heard.get(), 20))


async def interruptions(conn):
    await fails("timeout", conn.fetchval("SELECT pg_sleep(30)", timeout=0.3))
    show("it lives", await conn.fetchval("SELECT 1"))
    task = asyncio.ensure_future(conn.execute("SELECT pg_sleep(30)"))
    await asyncio.sleep(0.2)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        show("canceled")
    show("it lives", await conn.fetchval("SELECT 2"))
    async with conn.transaction():
        await conn.execute("CREATE TEMP TABLE scratch (a int) ON COMMIT DROP")
        await conn.execute("INSERT INTO scratch VALUES (1), (2)")
        show("scratch", await conn.fetchval("SELECT sum(a) FROM scratch"))
    await fails("dropped", conn.fetch("SELECT * FROM scratch"))
    await fails("busy", asyncio.wait_for(asyncio.gather(conn.fetch("SELECT pg_sleep(0.1)"), conn.fetch("SELECT 1")), 20))


async def pools():
    async with asyncpg.create_pool(DSN, min_size=2, max_size=5) as pool:
        async def one(number):
            async with pool.acquire() as conn:
                await conn.execute(f"SET app.number = '{number}'")
                await asyncio.sleep(0)
                return await conn.fetchval("SELECT current_setting('app.number')::int + $1", number)

        show("pool", await asyncio.gather(*(one(number) for number in range(40))))
        async with pool.acquire() as conn:
            show("reset", await conn.fetchval("SELECT nullif(current_setting('app.number', true), '')"))


async def settings():
    conn = await asyncpg.connect(DSN, server_settings={"application_name": "a script", "search_path": "other, public", "app.start": "yes"})
    show("startup", [await conn.fetchval(f"SHOW {name}") for name in ("application_name", "search_path", "app.start")])
    await conn.execute("SET TimeZone = 'Asia/Tokyo'")
    show("reported", conn.get_settings().TimeZone, await conn.fetchval("SELECT '2024-01-01 00:00Z'::timestamptz::text"))
    await conn.reset()
    show("reset", conn.get_settings().TimeZone == (await conn.fetchval("SHOW TimeZone")), await conn.fetchval("SHOW search_path"))
    await conn.close()
    await fails("bad startup", asyncpg.connect(DSN, server_settings={"work_mem": "much"}))
    await fails("no such database", asyncpg.connect(DSN, database="nowhere_at_all"))


async def main():
    conn = await asyncpg.connect(DSN)
    for section in (basics, types, statements, transactions, cursors, copies, notices, interruptions):
        print("===", section.__name__)
        await section(conn)
    await conn.close()
    for section in (pools, settings):
        print("===", section.__name__)
        await section()
    print("done")


asyncio.run(main())
