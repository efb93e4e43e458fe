"""psycopg 3 as applications use it. Arguments: the steps to go through; the connection is in PG*.

It prepares statements by the protocol from their first execution on.
"""
import datetime
import decimal
import hashlib
import os
import sys
import threading
import time
import traceback
import uuid

import psycopg
from psycopg import errors

NAME = "steps-psycopg"
TABLE = "steps_psycopg"
BIG = 4 * 1024 * 1024
LIMIT = 60


def connect(**options):
    options.setdefault("application_name", NAME)
    return psycopg.connect(autocommit=True, prepare_threshold=0, **options)


def one(connection, statement, parameters=None):
    return connection.execute(statement, parameters).fetchone()[0]


def show(connection, setting):
    return one(connection, f"SELECT current_setting('{setting}')")


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def fails(error, connection, statement, parameters=None):
    try:
        connection.execute(statement, parameters)
    except error as failure:
        return failure
    raise AssertionError(f"{statement} did not fail with {error.__name__}")


def startup():
    with connect(options="-c statement_timeout=54321 -c TimeZone=Asia/Tokyo") as client:
        for _ in range(5):
            equal(show(client, "application_name"), NAME)
            equal(show(client, "statement_timeout"), "54321ms")
            equal(show(client, "TimeZone"), "Asia/Tokyo")
        equal(client.info.parameter_status("TimeZone"), "Asia/Tokyo")
        equal(client.info.parameter_status("server_encoding"), "UTF8")
        assert client.info.server_version >= 140000, client.info.server_version
        assert client.info.backend_pid > 0


def settings():
    with connect() as client, connect() as other:
        client.execute("SET TimeZone = 'Asia/Tokyo'")
        other.execute("SET TimeZone TO 'America/Lima'")
        client.execute("SET search_path = pg_catalog, public")
        for _ in range(5):
            equal(show(client, "TimeZone"), "Asia/Tokyo")
            equal(show(other, "TimeZone"), "America/Lima")
            equal(show(client, "search_path"), "pg_catalog, public")
            assert "$user" in show(other, "search_path")
        equal(client.info.parameter_status("TimeZone"), "Asia/Tokyo")
        equal(other.info.parameter_status("TimeZone"), "America/Lima")
        client.execute("SET application_name = 'renamed'")
        equal(show(client, "application_name"), "renamed")
        equal(show(other, "application_name"), NAME)
        equal(client.info.parameter_status("application_name"), "renamed")
        client.execute("RESET search_path")
        assert "$user" in show(client, "search_path")
        client.execute("RESET ALL")
        equal(show(client, "application_name"), NAME)
        assert show(client, "TimeZone") != "Asia/Tokyo"


def prepared():
    with connect() as client, connect() as other:
        for number in range(10):
            for connection in client, other:
                equal(one(connection, "SELECT %s::int + 1", (number,)), number + 1)
                equal(one(connection, "SELECT %s::text || 'x'", ("a" * number,)), "a" * number + "x")
        fails(errors.DivisionByZero, client, "SELECT 1 / %s::int", (0,))
        equal(one(client, "SELECT 1 / %s::int", (1,)), 1)
        client.execute("DEALLOCATE ALL")
        equal(one(client, "SELECT %s::int + 1", (1,)), 2)
        equal(one(other, "SELECT %s::int + 1", (2,)), 3)
        client.execute("DISCARD ALL")
        # The driver does not know that its statements are gone.
        client._prepared.clear()
        equal(one(client, "SELECT %s::int + 1", (3,)), 4)


def binary():
    moment = datetime.datetime(2026, 2, 28, 23, 59, 59, 123456, datetime.timezone.utc)
    values = [
        ("int", 42), ("bigint", 2**40), ("float8", 1.5), ("bool", True), ("text", "žluť 漢字 \n"),
        ("numeric", decimal.Decimal("12345678901234567890.123456789")), ("timestamptz", moment),
        ("date", datetime.date(2026, 2, 28)), ("bytea", bytes(range(256))),
        ("uuid", uuid.UUID("12345678-1234-5678-1234-567812345678")), ("int[]", [1, 2, None]),
        ("text", None),
    ]
    statement = "SELECT " + ", ".join(f"%b::{kind}" for kind, _ in values)
    with connect() as client:
        for _ in range(3):
            cursor = client.cursor(binary=True)
            row = cursor.execute(statement, [value for _, value in values]).fetchone()
            for found, (_, expected) in zip(row, values, strict=True):
                equal(found, expected)


def pipeline():
    with connect() as client:
        with client.pipeline():
            cursors = [client.execute("SELECT %s::int", (number,)) for number in range(300)]
        equal([cursor.fetchone()[0] for cursor in cursors], list(range(300)))
        try:
            with client.pipeline():
                for divisor in (1, 0, 1):
                    client.execute("SELECT 1 / %s::int", (divisor,))
        except errors.DivisionByZero:
            pass
        else:
            raise AssertionError("nothing was divided by zero")
        equal(one(client, "SELECT 1"), 1)


def errors_():
    with connect() as client:
        for _ in range(3):
            fails(errors.UndefinedColumn, client, "SELECT no_such_column")
            fails(errors.SyntaxError, client, "SELEC 1")
            equal(one(client, "SELECT 1"), 1)
        failure = fails(errors.RaiseException, client, "DO $$ BEGIN RAISE 'a message' USING "
                        "HINT = 'a hint', DETAIL = 'a detail'; END $$")
        equal(failure.diag.message_primary, "a message")
        equal(failure.diag.message_hint, "a hint")
        equal(failure.diag.message_detail, "a detail")
        notices = []
        client.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        client.execute("DO $$ BEGIN RAISE NOTICE 'noticed'; END $$")
        equal(notices, ["noticed"])


def transactions():
    with connect() as client:
        client.execute(f"DROP TABLE IF EXISTS {TABLE}")
        client.execute(f"CREATE TABLE {TABLE} (id int PRIMARY KEY)")
        with client.transaction():
            client.execute(f"INSERT INTO {TABLE} VALUES (1)")
            client.execute("SET LOCAL TimeZone = 'Asia/Tokyo'")
            equal(show(client, "TimeZone"), "Asia/Tokyo")
        assert show(client, "TimeZone") != "Asia/Tokyo"
        try:
            with client.transaction():
                client.execute(f"INSERT INTO {TABLE} VALUES (2)")
                fails(errors.UniqueViolation, client, f"INSERT INTO {TABLE} VALUES (1)")
                fails(errors.InFailedSqlTransaction, client, "SELECT 1")
                raise psycopg.Rollback()
        except psycopg.Rollback:
            pass
        with client.transaction():
            try:
                with client.transaction():
                    client.execute(f"INSERT INTO {TABLE} VALUES (3)")
                    client.execute(f"INSERT INTO {TABLE} VALUES (1)")
            except errors.UniqueViolation:
                pass
            client.execute(f"INSERT INTO {TABLE} VALUES (4)")
        rows = client.execute(f"SELECT id FROM {TABLE} ORDER BY id").fetchall()
        equal(rows, [(1,), (4,)])
        client.execute(f"DROP TABLE {TABLE}")


def cancel():
    with connect() as client, connect() as other:
        def strike():
            until = time.monotonic() + LIMIT
            while time.monotonic() < until:
                if one(other, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' "
                              "AND query LIKE '%%cancel-psycopg%%'", ()) == 1:
                    client.cancel()
                    return
        thread = threading.Thread(target=strike)
        thread.start()
        fails(errors.QueryCanceled, client, "SELECT pg_sleep(60) /* cancel-psycopg */")
        thread.join()
        equal(one(client, "SELECT 1"), 1)
        equal(one(other, "SELECT 1"), 1)


def copy():
    rows = 20_000
    with connect() as client:
        client.execute(f"DROP TABLE IF EXISTS {TABLE}_copy")
        client.execute(f"CREATE TABLE {TABLE}_copy (id int, what text)")
        with client.cursor() as cursor:
            with cursor.copy(f"COPY {TABLE}_copy FROM STDIN") as into:
                for number in range(rows):
                    into.write_row((number, f"row {number}\twith a tab"))
            with cursor.copy(f"COPY {TABLE}_copy TO STDOUT (FORMAT BINARY)") as out:
                out.set_types(["int4", "text"])
                read = list(out.rows())
        equal(len(read), rows)
        equal(read[7], (7, "row 7\twith a tab"))
        try:
            with client.cursor() as cursor, cursor.copy(f"COPY {TABLE}_copy FROM STDIN") as into:
                into.write("no number\tx\n")
        except errors.InvalidTextRepresentation:
            pass
        else:
            raise AssertionError("words were taken for a number")
        try:
            with client.cursor() as cursor, cursor.copy(f"COPY {TABLE}_copy FROM STDIN") as into:
                into.write_row((1, "x"))
                raise KeyError("the application gives up")
        except KeyError:
            pass
        equal(one(client, f"SELECT count(*) FROM {TABLE}_copy"), rows)
        client.execute(f"DROP TABLE {TABLE}_copy")


def big_values():
    text, raw = "ž" * (BIG // 2), os.urandom(BIG)
    with connect() as client:
        for _ in range(2):
            row = client.execute("SELECT %s::text, md5(%s::text)", (text, text)).fetchone()
            equal(row[0] == text, True)
            equal(row[1], hashlib.md5(text.encode()).hexdigest())
            row = client.execute("SELECT %b::bytea, md5(%b::bytea)", (raw, raw)).fetchone()
            equal(row[0] == raw, True)
            equal(row[1], hashlib.md5(raw).hexdigest())


def large_objects():
    data = os.urandom(300_000)
    with connect() as client:
        with client.transaction():
            oid = one(client, "SELECT lo_create(0)")
            handle = one(client, "SELECT lo_open(%s, 131072)", (oid,))
            for begin in range(0, len(data), 50_000):
                client.execute("SELECT lowrite(%s, %b)", (handle, data[begin:begin + 50_000]))
            client.execute("SELECT lo_lseek64(%s, 100000, 0)", (handle,))
            equal(one(client, "SELECT loread(%s, 1000)", (handle,)), data[100_000:101_000])
            client.execute("SELECT lo_close(%s)", (handle,))
        equal(one(client, "SELECT lo_get(%s)", (oid,)) == data, True)
        client.execute("SELECT lo_unlink(%s)", (oid,))


def listen():
    with connect() as client, connect() as other:
        client.execute("LISTEN steps_psycopg")
        equal(one(client, "SELECT 1"), 1)
        for number in range(3):
            other.execute("SELECT pg_notify('steps_psycopg', %s)", (f"payload {number}",))
            [notice] = list(client.notifies(timeout=LIMIT, stop_after=1))
            equal((notice.channel, notice.payload), ("steps_psycopg", f"payload {number}"))
        client.execute("UNLISTEN *")


def state():
    with connect() as client, connect() as other:
        client.execute("CREATE TEMPORARY TABLE steps_temporary (id int)")
        for number in range(5):
            client.execute("INSERT INTO steps_temporary VALUES (%s)", (number,))
            equal(one(other, "SELECT to_regclass('steps_temporary') IS NULL"), True)
        equal(one(client, "SELECT count(*) FROM steps_temporary"), 5)
        client.execute("DROP TABLE steps_temporary")
        cursor = client.cursor("held", withhold=True)
        cursor.execute("SELECT generate_series(1, 10)")
        equal(one(client, "SELECT 1"), 1)
        equal([row[0] for row in cursor.fetchmany(3)], [1, 2, 3])
        cursor.close()
        client.execute("SELECT pg_advisory_lock(4711)")
        equal(one(client, "SELECT 1"), 1)
        equal(one(other, "SELECT pg_try_advisory_lock(4711)"), False)
        equal(one(client, "SELECT pg_advisory_unlock(4711)"), True)
        equal(one(other, "SELECT pg_try_advisory_lock(4711)"), True)
        equal(one(other, "SELECT pg_advisory_unlock(4711)"), True)


def cursor():
    with connect() as client, client.transaction():
        with client.cursor("steps_cursor") as served:
            served.itersize = 10
            served.execute("SELECT generate_series(1, 1000)")
            equal(sum(row[0] for row in served), 500_500)
        equal(one(client, "SELECT 1"), 1)


def many():
    zones = ["UTC", "Asia/Tokyo", "America/Lima", "Europe/Prague", "Africa/Cairo", "Asia/Kolkata",
             "Australia/Perth", "America/Bogota"]
    clients = [connect(application_name=f"many-{zone}") for zone in zones]
    for client, zone in zip(clients, zones):
        client.execute(f"SET TimeZone = '{zone}'")
    for number in range(10):
        for client, zone in zip(clients, zones):
            equal(show(client, "TimeZone"), zone)
            equal(show(client, "application_name"), f"many-{zone}")
            equal(one(client, "SELECT %s::int * 2", (number,)), number * 2)
            equal(one(client, f"SELECT %s::text || '{zone}'", ("a",)), "a" + zone)
    for client in clients:
        client.close()


def main():
    status = 0
    for name in sys.argv[1:]:
        try:
            globals()[{"errors": "errors_"}.get(name, name)]()
            print("passed", name, flush=True)
        except Exception:
            traceback.print_exc()
            print("failed", name, flush=True)
            status = 1
    sys.exit(status)


main()
