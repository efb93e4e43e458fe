"""asyncpg as applications use it. Arguments: the steps to go through; the connection is in PG*.

It speaks the binary formats only, keeps a cache of prepared statements, and its pool resets each
connection that comes back.
"""
import asyncio
import datetime
import decimal
import hashlib
import io
import os
import sys
import traceback
import uuid

import asyncpg

NAME = "steps-asyncpg"
TABLE = "steps_asyncpg"
BIG = 4 * 1024 * 1024
LIMIT = 60


async def connect(**settings):
    settings.setdefault("application_name", NAME)
    return await asyncpg.connect(server_settings=settings)


async def show(client, setting):
    return await client.fetchval("SELECT current_setting($1)", setting)


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


async def fails(error, work):
    try:
        await work
    except error as failure:
        return failure
    raise AssertionError(f"it did not fail with {error.__name__}")


async def startup():
    client = await connect(statement_timeout="54321", TimeZone="Asia/Tokyo")
    for _ in range(5):
        equal(await show(client, "application_name"), NAME)
        equal(await show(client, "statement_timeout"), "54321ms")
        equal(await show(client, "TimeZone"), "Asia/Tokyo")
    equal(client.get_settings().TimeZone, "Asia/Tokyo")
    assert client.get_server_pid() > 0
    assert client.get_server_version().major >= 14
    await client.close()


async def settings():
    client, other = await connect(), await connect()
    await client.execute("SET TimeZone = 'Asia/Tokyo'")
    await other.execute("SET TimeZone TO 'America/Lima'")
    await client.execute("SET search_path = pg_catalog, public")
    for _ in range(5):
        equal(await show(client, "TimeZone"), "Asia/Tokyo")
        equal(await show(other, "TimeZone"), "America/Lima")
        equal(await show(client, "search_path"), "pg_catalog, public")
    equal(client.get_settings().TimeZone, "Asia/Tokyo")
    equal(other.get_settings().TimeZone, "America/Lima")
    await client.execute("RESET ALL")
    assert await show(client, "TimeZone") != "Asia/Tokyo"
    equal(await show(other, "TimeZone"), "America/Lima")
    await client.close()
    await other.close()


async def prepared():
    client, other = await connect(), await connect()
    for number in range(10):
        for connection in client, other:
            equal(await connection.fetchval("SELECT $1::int + 1", number), number + 1)
    sum_, text = await client.prepare("SELECT $1::int + 2"), await other.prepare("SELECT $1::text")
    for number in range(10):
        equal(await sum_.fetchval(number), number + 2)
        equal(await text.fetchval("a" * number), "a" * number)
    equal([a.type.name for a in text.get_attributes()], ["text"])
    quotient = await client.prepare("SELECT 1 / $1::int")
    await fails(asyncpg.DivisionByZeroError, quotient.fetchval(0))
    equal(await quotient.fetchval(1), 1)
    await client.close()
    await other.close()


async def binary():
    moment = datetime.datetime(2026, 2, 28, 23, 59, 59, 123456, datetime.timezone.utc)
    values = [
        ("int", 42), ("bigint", 2**40), ("float8", 1.5), ("bool", True), ("text", "žluť 漢字 \n"),
        ("numeric", decimal.Decimal("12345678901234567890.123456789")), ("timestamptz", moment),
        ("date", datetime.date(2026, 2, 28)), ("bytea", bytes(range(256))),
        ("uuid", uuid.UUID("12345678-1234-5678-1234-567812345678")), ("int[]", [1, 2, None]),
        ("text", None),
    ]
    columns = [f"${number}::{kind}" for number, (kind, _) in enumerate(values, 1)]
    client = await connect()
    for _ in range(3):
        row = await client.fetchrow("SELECT " + ", ".join(columns), *[v for _, v in values])
        for found, (_, expected) in zip(row.values(), values, strict=True):
            equal(found, expected)
    # A type that it does not know makes it ask the catalogues, each time a statement is new.
    await client.execute(f"DROP TYPE IF EXISTS {TABLE}_mood")
    await client.execute(f"CREATE TYPE {TABLE}_mood AS ENUM ('calm', 'wild')")
    equal(await client.fetchval(f"SELECT $1::{TABLE}_mood[]", ["calm", "wild"]), ["calm", "wild"])
    await client.execute(f"DROP TYPE {TABLE}_mood")
    await client.close()


async def pipeline():
    client = await connect()
    await client.execute(f"DROP TABLE IF EXISTS {TABLE}_pipeline")
    await client.execute(f"CREATE TABLE {TABLE}_pipeline (id int PRIMARY KEY)")
    insert = f"INSERT INTO {TABLE}_pipeline VALUES ($1)"
    await client.executemany(insert, [(number,) for number in range(2000)])
    await fails(asyncpg.UniqueViolationError, client.executemany(insert, [(5000,), (1,)]))
    equal(await client.fetchval(f"SELECT count(*) FROM {TABLE}_pipeline"), 2000)
    await client.execute(f"DROP TABLE {TABLE}_pipeline")
    await client.close()


async def errors():
    client = await connect()
    for _ in range(3):
        await fails(asyncpg.UndefinedColumnError, client.fetch("SELECT no_such_column"))
        await fails(asyncpg.PostgresSyntaxError, client.execute("SELEC 1"))
        equal(await client.fetchval("SELECT 1"), 1)
    raised = "DO $$ BEGIN RAISE 'a message' USING HINT = 'a hint'; END $$"
    failure = await fails(asyncpg.RaiseError, client.execute(raised))
    equal((failure.message, failure.hint), ("a message", "a hint"))
    noticed = asyncio.get_running_loop().create_future()
    client.add_log_listener(lambda _, message: noticed.set_result(message.message))
    await client.execute("DO $$ BEGIN RAISE NOTICE 'noticed'; END $$")
    equal(await asyncio.wait_for(noticed, LIMIT), "noticed")
    await client.close()


async def transactions():
    client = await connect()
    await client.execute(f"DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} (id int PRIMARY KEY)")
    insert = f"INSERT INTO {TABLE} VALUES ($1)"
    async with client.transaction():
        await client.execute(insert, 1)
        await client.execute("SET LOCAL TimeZone = 'Asia/Tokyo'")
        equal(await show(client, "TimeZone"), "Asia/Tokyo")
    assert await show(client, "TimeZone") != "Asia/Tokyo"
    transaction = client.transaction()
    await transaction.start()
    await client.execute(insert, 2)
    await fails(asyncpg.UniqueViolationError, client.execute(insert, 1))
    await fails(asyncpg.InFailedSQLTransactionError, client.execute("SELECT 1"))
    await transaction.rollback()
    async with client.transaction():
        inner = client.transaction()
        await inner.start()
        await client.execute(insert, 3)
        await inner.rollback()
        await client.execute(insert, 4)
    ids = await client.fetch(f"SELECT id FROM {TABLE} ORDER BY id")
    equal([row["id"] for row in ids], [1, 4])
    await client.execute(f"DROP TABLE {TABLE}")
    await client.close()


async def cancel():
    client, other = await connect(), await connect()
    sleeping = asyncio.create_task(client.execute("SELECT pg_sleep(60) /* cancel-asyncpg */"))
    async with asyncio.timeout(LIMIT):
        while not await other.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' "
            "AND query LIKE '%cancel-asyncpg%'"
        ):
            pass
    sleeping.cancel()
    await asyncio.gather(sleeping, return_exceptions=True)
    equal(sleeping.cancelled(), True)
    equal(await client.fetchval("SELECT 1"), 1)
    await fails(asyncio.TimeoutError, client.execute("SELECT pg_sleep(60)", timeout=0.2))
    equal(await client.fetchval("SELECT 1"), 1)
    await client.close()
    await other.close()


async def copy():
    rows = 20_000
    client = await connect()
    await client.execute(f"DROP TABLE IF EXISTS {TABLE}_copy")
    await client.execute(f"CREATE TABLE {TABLE}_copy (id int, what text)")
    records = [(number, f"row {number}\twith a tab") for number in range(rows)]
    await client.copy_records_to_table(f"{TABLE}_copy", records=records)
    out = io.BytesIO()
    await client.copy_from_query(f"SELECT * FROM {TABLE}_copy WHERE id >= $1", 10, output=out)
    equal(out.getvalue().count(b"\n"), rows - 10)
    bad = client.copy_to_table(f"{TABLE}_copy", source=io.BytesIO(b"no number\tx\n"))
    await fails(asyncpg.InvalidTextRepresentationError, bad)

    async def gives_up():
        yield b"1\tx\n"
        raise KeyError("the application gives up")

    await fails(KeyError, client.copy_to_table(f"{TABLE}_copy", source=gives_up()))
    equal(await client.fetchval(f"SELECT count(*) FROM {TABLE}_copy"), rows)
    await client.execute(f"DROP TABLE {TABLE}_copy")
    await client.close()


async def big_values():
    text, raw = "ž" * (BIG // 2), os.urandom(BIG)
    client = await connect()
    for _ in range(2):
        row = await client.fetchrow("SELECT $1::text, md5($1::text)", text)
        equal(row[0] == text, True)
        equal(row[1], hashlib.md5(text.encode()).hexdigest())
        row = await client.fetchrow("SELECT $1::bytea, md5($1::bytea)", raw)
        equal(row[0] == raw, True)
        equal(row[1], hashlib.md5(raw).hexdigest())
    await client.close()


async def large_objects():
    data = os.urandom(300_000)
    client = await connect()
    async with client.transaction():
        oid = await client.fetchval("SELECT lo_create(0)")
        handle = await client.fetchval("SELECT lo_open($1, 131072)", oid)
        await client.fetchval("SELECT lowrite($1, $2)", handle, data)
        await client.fetchval("SELECT lo_lseek64($1, 100000, 0)", handle)
        equal(await client.fetchval("SELECT loread($1, 1000)", handle), data[100_000:101_000])
    equal(await client.fetchval("SELECT lo_get($1)", oid) == data, True)
    await client.fetchval("SELECT lo_unlink($1)", oid)
    await client.close()


async def listen():
    client, other = await connect(), await connect()
    heard = asyncio.Queue()
    await client.add_listener(TABLE, lambda *notice: heard.put_nowait(notice[2:]))
    for number in range(3):
        await other.execute("SELECT pg_notify($1, $2)", TABLE, f"payload {number}")
        equal(await asyncio.wait_for(heard.get(), LIMIT), (TABLE, f"payload {number}"))
    await client.reset()
    await client.close()
    await other.close()


async def state():
    client, other = await connect(), await connect()
    await client.execute("CREATE TEMPORARY TABLE steps_temporary (id int)")
    for number in range(5):
        await client.execute("INSERT INTO steps_temporary VALUES ($1)", number)
        equal(await other.fetchval("SELECT to_regclass('steps_temporary') IS NULL"), True)
    equal(await client.fetchval("SELECT count(*) FROM steps_temporary"), 5)
    await client.execute("DROP TABLE steps_temporary")
    await client.execute("SELECT pg_advisory_lock(4712)")
    equal(await client.fetchval("SELECT 1"), 1)
    equal(await other.fetchval("SELECT pg_try_advisory_lock(4712)"), False)
    equal(await client.fetchval("SELECT pg_advisory_unlock(4712)"), True)
    equal(await other.fetchval("SELECT pg_try_advisory_lock(4712)"), True)
    await client.close()
    await other.close()


async def cursor():
    client = await connect()
    async with client.transaction():
        total = 0
        async for row in client.cursor("SELECT generate_series(1, 1000)", prefetch=10):
            total += row[0]
        equal(total, 500_500)
        served = await client.cursor("SELECT generate_series(1, $1::int)", 20)
        equal([row[0] for row in await served.fetch(5)], [1, 2, 3, 4, 5])
        await served.forward(10)
        equal((await served.fetchrow())[0], 16)
    await client.close()


async def many():
    settings = {"application_name": "many-asyncpg"}
    pool = await asyncpg.create_pool(min_size=8, max_size=8, server_settings=settings)

    async def work(number):
        for turn in range(20):
            async with pool.acquire() as client:
                await client.execute(f"SET work_mem = '{number + 1}MB'")
                equal(await show(client, "work_mem"), f"{number + 1}MB")
                equal(await show(client, "application_name"), "many-asyncpg")
                equal(await client.fetchval("SELECT $1::int * 2", turn), turn * 2)
                equal(await client.fetchval(f"SELECT $1::text || '{number}'", "a"), f"a{number}")

    await asyncio.gather(*[work(number) for number in range(16)])
    async with pool.acquire() as client:
        equal(await show(client, "work_mem"), "4MB")
    await pool.close()


def main():
    status = 0
    for name in sys.argv[1:]:
        try:
            asyncio.run(globals()[name]())
            print("passed", name, flush=True)
        except Exception:
            traceback.print_exc()
            print("failed", name, flush=True)
            status = 1
    sys.exit(status)


main()
