"""
A Django project that the tests run in a process of its own; its last command prints JSON for the test.

    python django_commands.py DATABASE COMMAND ...      DATABASE: JSON of settings.DATABASES["default"]
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import django
import pymysql
import pytest
from django.conf import settings

pymysql.install_as_MySQLdb()  # Django asks for mysqlclient, which needs a compiler

settings.configure(
    DATABASES={"default": json.loads(sys.argv[1])},
    INSTALLED_APPS=["idempotency.stores.django"],
    DEBUG=True,
    USE_TZ=True,
)
django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection, connections, transaction  # noqa: E402
from django.test import TestCase  # noqa: E402

from idempotency import Acquired, Completed, Fingerprint, Owner, Running, StorageKey  # noqa: E402
from idempotency.stores.django import SyncDjangoStore  # noqa: E402

ASK: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}


def claimed(store: SyncDjangoStore, key: str) -> Any:
    reply = store.acquire(StorageKey(key), owner=Owner(secrets.token_bytes(16)), **ASK)
    assert isinstance(reply, Acquired), reply
    return reply.claim


def migrate() -> None:
    call_command("migrate", verbosity=0)
    call_command("migrate", verbosity=0)
    SyncDjangoStore().create_schema()


def race() -> None:
    store, batch = SyncDjangoStore(), secrets.token_hex(6)
    keys = [StorageKey(f"race-{batch}-{number}") for number in range(200)]
    completed = {key: threading.Event() for key in keys}

    def work(_: int) -> list[StorageKey]:
        won = []
        for key in keys:
            while True:
                reply = store.acquire(key, owner=Owner(secrets.token_bytes(16)), **ASK)
                if isinstance(reply, Completed):
                    break
                if isinstance(reply, Running):
                    assert completed[key].wait(30.0)
                    continue
                won.append(key)
                assert store.complete(reply.claim, b"{}", retention=60.0)
                completed[key].set()
        return won

    with ThreadPoolExecutor(8) as threads:
        runs = [key for won in threads.map(work, range(8)) for key in won]
    store.close()
    print(json.dumps({"keys": len(set(runs)), "runs": len(runs)}))


def transactions() -> None:
    store, results = SyncDjangoStore(), {}
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS charge_django")
        cursor.execute("CREATE TABLE charge_django (cents INTEGER)")

    def charges() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM charge_django")
            return int(cursor.fetchone()[0])

    def charge() -> None:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO charge_django VALUES (5)")

    key = f"in-{secrets.token_hex(6)}"
    claim = claimed(store, key)
    try:
        with transaction.atomic():
            charge()
            assert store.complete_in(connection, claim, b'{"n":1}', retention=60.0)
            raise RuntimeError
    except RuntimeError:
        results["rolled back"] = [charges(), store.get(claim.key).outcome is None]
    with transaction.atomic():
        charge()
        results["seen inside"] = store.complete_in(connections["default"], claim, b'{"n":1}', retention=60.0)
    results["committed"] = [charges(), store.get(claim.key).outcome == b'{"n":1}']
    other = claimed(store, f"{key}-other")
    try:
        store.complete_in(connection, other, b"{}", retention=60.0)
    except ValueError as error:
        results["autocommit"] = str(error)
    with transaction.atomic():
        try:
            with transaction.atomic():
                store.complete_in(connection, other, b"{}", retention=60.0)
        except ValueError as error:
            results["savepoint"] = str(error)
    results["untouched"] = store.get(other.key).outcome is None
    driver = connection.connection
    if connection.vendor == "postgresql":  # the driver's own connection, which has Django's cursor class
        from idempotency.stores._sql.callers import sync_caller

        with transaction.atomic():
            caller = sync_caller(driver, "postgresql")
            results["driver"] = caller.drive(
                store._records.complete_in(caller, other, b"{}", retention=60.0)  # type: ignore[arg-type]
            )
    logged = [query["sql"].lower().replace("\\", "") for query in connections["default"].queries]
    results["statements logged"] = any("insert into charge_django" in sql for sql in logged)
    results["outcome logged"] = any(shown in sql for sql in logged for shown in ('"n":1', b'"n":1'.hex()))
    store.close()
    print(json.dumps(results))


def testcase() -> None:
    class Inside(TestCase):
        def runTest(self) -> None:
            store = SyncDjangoStore()
            claim = claimed(store, f"tc-{secrets.token_hex(6)}")
            with transaction.atomic():
                assert store.complete_in(connection, claim, b"{}", retention=60.0) is True
            with transaction.atomic(), pytest.raises(ValueError, match="savepoint"), transaction.atomic():
                store.complete_in(connection, claim, b"{}", retention=60.0)
            store.close()

    Inside.databases = {"default"}
    result = unittest.TestResult()
    unittest.TestSuite([Inside()]).run(result)
    print(json.dumps({"failures": [trace for _, trace in (*result.failures, *result.errors)]}))


def unmigrate() -> None:
    call_command("migrate", "idempotency_records", "zero", verbosity=0)
    print(json.dumps({"tables": connection.introspection.table_names()}))


if __name__ == "__main__":
    commands = {each.__name__: each for each in (migrate, race, transactions, testcase, unmigrate)}
    for name in sys.argv[2:]:
        commands[name]()
