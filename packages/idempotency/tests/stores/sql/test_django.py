"""The Django store: migration, store contract, races, and `complete_in` in Django's transactions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import django
import pytest
from django_project import database_settings

WAL = {"init_command": "PRAGMA journal_mode=WAL"} if django.VERSION >= (5, 1) else {}
PROJECT = Path(__file__).with_name("django_commands.py")


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(tmp_path / "db.sqlite3"),
            "OPTIONS": {"timeout": 20} | WAL,
        }
    server = "postgres_url" if request.param == "postgresql" else "mariadb_server_url"
    return database_settings(request.param, request.getfixturevalue(server))


def manage(database: dict[str, Any], command: str) -> Any:
    """What *command* prints, in a database that has been migrated."""
    done = subprocess.run(
        [sys.executable, str(PROJECT), json.dumps(database), "migrate", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_eight_threads_racing_for_two_hundred_keys_run_each_once(database: dict[str, Any]) -> None:
    assert manage(database, "race") == {"keys": 200, "runs": 200}


def test_effect_and_record_are_committed_together_in_djangos_transactions(database: dict[str, Any]) -> None:
    results = manage(database, "transactions")
    assert results["rolled back"] == [0, True]
    assert results["seen inside"] is True
    assert results["committed"] == [1, True]
    assert "commits every statement" in results["autocommit"]
    assert "savepoint" in results["savepoint"]
    assert results["untouched"] is True
    assert results.get("driver", True) is True
    assert (results["statements logged"], results["outcome logged"]) == (True, False)


def test_complete_in_accepts_a_test_cases_transaction_and_refuses_a_savepoint_in_it(
    database: dict[str, Any],
) -> None:
    if "sqlite" in database["ENGINE"]:
        pytest.skip("a TestCase holds SQLite's one write lock, so that no other connection can claim")
    assert manage(database, "testcase") == {"failures": []}


def test_unapplying_the_migration_drops_the_tables(database: dict[str, Any], tmp_path: Path) -> None:
    if "sqlite" not in database["ENGINE"]:
        pytest.skip("the other tests need their table")
    assert not [
        name for name in manage(database, "unmigrate")["tables"] if name.startswith("idempotency_record")
    ]


CONTRACT = """
import sys, json
from contextlib import contextmanager
from django.conf import settings
settings.configure(DATABASES={"default": json.loads(DATABASE)}, INSTALLED_APPS=[])
import pymysql; pymysql.install_as_MySQLdb()
import django; django.setup()
from idempotency.stores.django import SyncDjangoStore
from idempotency.testing import RealClock, StoreContract

class TestDjangoStore(StoreContract):
    max_examples = 2
    steps = 12
    def make_clock(self):
        return RealClock(unit=0.03, resolution=0.008)
    @contextmanager
    def open_store(self, clock):
        store = SyncDjangoStore()
        store.create_schema()
        yield store
        store.close()
"""


def test_the_store_contract_holds(database: dict[str, Any], tmp_path: Path) -> None:
    """In a process of its own, since Django is configured once a process."""
    test = tmp_path / "test_contract.py"
    test.write_text(CONTRACT.replace("DATABASE)", f"{json.dumps(database)!r})", 1))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(test)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
