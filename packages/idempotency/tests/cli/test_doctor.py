"""The doctor: its probe passes correct stores and fails broken ones, and it judges the settings of each server."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from idempotency import Acquired, Completed, Fingerprint, Owner, Running, StorageKey, StoreUnavailable
from idempotency.cli.doctor.finding import Finding
from idempotency.cli.doctor.principals import principals
from idempotency.cli.doctor.probe import probe
from idempotency.cli.doctor.settings import postgres_settings, redis_settings, sqlite_settings
from idempotency.stores.memory import SyncMemoryStore
from idempotency.stores.sqlite import SyncSQLiteStore
from idempotency.testing import FakeClock


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in findings}


def probed(make: Callable[..., Any], *, speed: float = 1.0) -> list[Finding]:
    """The findings of the probe about a store whose clock runs *speed* times as fast as the local clock."""
    local, remote = FakeClock(), FakeClock()

    def sleep(seconds: float) -> None:
        local.advance(seconds)
        remote.advance(speed * seconds)

    return list(probe(make(clock=remote), sleep=sleep, monotonic=local))


# The probe.


def test_probe_passes_a_correct_store_and_leaves_no_record() -> None:
    store = SyncMemoryStore()
    found = verdicts(list(probe(store, sleep=lambda _: None, monotonic=FakeClock())))

    assert found | {"clock": "ok"} == {
        "claim": "ok",
        "clock": "ok",
        "record": "ok",
        "fence": "ok",
        "latency": "info",
    }
    assert store.scan().records == ()


def test_probe_passes_a_real_sqlite_file(tmp_path: Path) -> None:
    store = SyncSQLiteStore(tmp_path / "records.db")

    assert set(verdicts(list(probe(store))).values()) == {"ok", "info"}
    store.close()


@pytest.mark.parametrize(("speed", "verdict"), [(1.0, "ok"), (0.0, "fail"), (1.5, "fail"), (-3600.0, "fail")])
def test_probe_fails_a_clock_that_runs_at_another_speed(speed: float, verdict: str) -> None:
    assert verdicts(probed(SyncMemoryStore, speed=speed))["clock"] == verdict


class GrantsTwice(SyncMemoryStore):
    """Grants a key to every owner."""

    def acquire(self, key: Any, **given: Any) -> Any:
        reply = super().acquire(key, **given)
        if isinstance(reply, Running):
            self.forget(key)
            reply = super().acquire(key, **given)
        return reply


class ChangesOutcome(SyncMemoryStore):
    """Appends a space to the outcome."""

    def acquire(self, key: Any, **given: Any) -> Any:
        reply = super().acquire(key, **given)
        return reply._replace(outcome=reply.outcome + b" ") if isinstance(reply, Completed) else reply


class DecreasesFence(SyncMemoryStore):
    """Grants decreasing fences."""

    def acquire(self, key: Any, **given: Any) -> Any:
        reply = super().acquire(key, **given)
        if isinstance(reply, Acquired):
            return Acquired(reply.claim._replace(fence=-reply.claim.fence))
        return reply


class RefusesToComplete(SyncMemoryStore):
    """Refuses every outcome."""

    def complete(self, *_: Any, **__: Any) -> bool:
        return False


class AlwaysRunning(SyncMemoryStore):
    """Replies that every key is running."""

    def acquire(self, key: Any, **given: Any) -> Any:
        return Running(given["fingerprint"], 1.0)


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (GrantsTwice, "claim"),
        (ChangesOutcome, "record"),
        (DecreasesFence, "fence"),
        (RefusesToComplete, "record"),
        (AlwaysRunning, "claim"),
    ],
)
def test_probe_fails_the_check_whose_rule_the_store_breaks(make: Any, check: str) -> None:
    assert verdicts(probed(make))[check] == "fail"


def test_probe_removes_its_record_if_the_store_becomes_unavailable() -> None:
    class Breaking(SyncMemoryStore):
        def complete(self, *_: Any, **__: Any) -> bool:
            raise StoreUnavailable("away")

    store = Breaking()

    with pytest.raises(StoreUnavailable):
        list(probe(store, sleep=lambda _: None))
    assert store.scan().records == ()


def test_probe_works_with_a_store_without_forget() -> None:
    class Bare:
        """Only the methods of the protocol."""

        def __init__(self) -> None:
            inner = SyncMemoryStore()
            for name in ("acquire", "renew", "complete", "release", "get", "close"):
                setattr(self, name, getattr(inner, name))

    found = verdicts(list(probe(Bare(), sleep=lambda _: None, monotonic=FakeClock())))  # type: ignore[arg-type]
    assert (found["claim"], found["record"]) == ("ok", "ok")


# SQLite.


def test_sqlite_settings_pass_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "records #1?.db"
    SyncSQLiteStore(path).close()

    found = verdicts(list(sqlite_settings(path, synchronous="FULL")))
    assert found == {"file": "ok", "journal": "ok", "durability": "ok"}


def test_sqlite_settings_warn_of_synchronous_normal(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    SyncSQLiteStore(path).close()

    assert verdicts(list(sqlite_settings(path, synchronous="normal")))["durability"] == "warn"


def test_sqlite_settings_fail_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE some (thing)")
    connection.executemany("INSERT INTO some VALUES (?)", [("x" * 500,)] * 100)
    connection.commit()
    connection.close()
    content = bytearray(path.read_bytes())
    content[4096 + 8 : 4096 + 100] = b"\xff" * 92
    path.write_bytes(content)

    (file, *_) = sqlite_settings(path, synchronous="FULL")
    assert (file.check, file.verdict) == ("file", "fail")


def test_sqlite_settings_fail_a_file_that_is_no_database_and_warn_of_another_journal_mode(
    tmp_path: Path,
) -> None:
    garbage, plain = tmp_path / "garbage.db", tmp_path / "plain.db"
    garbage.write_bytes(b"not a database, but longer than its header would be" * 40)
    connection = sqlite3.connect(plain)
    connection.execute("CREATE TABLE some (thing)")
    connection.close()

    assert verdicts(list(sqlite_settings(garbage, synchronous="FULL"))) == {"file": "fail"}
    assert verdicts(list(sqlite_settings(plain, synchronous="FULL")))["journal"] == "warn"


# Redis.


def test_redis_settings_report_eviction_durability_and_failover_of_a_real_server(own_redis: Any) -> None:
    import redis

    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
        client.config_set("appendfsync", "always")
        assert verdicts(list(redis_settings(client, wait_replicas=0))) == {
            "version": "ok",
            "role": "ok",
            "eviction": "ok",
            "durability": "ok",
            "failover": "info",
            "wall clock": "info",
        }
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendfsync", "everysec")
        found = verdicts(list(redis_settings(client, wait_replicas=1)))
        assert (found["eviction"], found["durability"], found["failover"]) == ("warn", "warn", "fail")
        client.config_set("maxmemory", 50_000_000)
        client.config_set("appendonly", "no")
        found = verdicts(list(redis_settings(client, wait_replicas=0)))
        assert (found["eviction"], found["durability"]) == ("fail", "warn")


class Server:
    """A fake Redis, for settings that the tests' real server cannot have."""

    def __init__(self, **info: Any) -> None:
        self.given = {"redis_version": "7.2.0", "role": "master", "maxmemory_policy": "noeviction", **info}

    def info(self) -> dict[str, Any]:
        return self.given

    def time(self) -> tuple[int, int]:
        return (0, 0)

    def config_get(self, name: str) -> dict[str, str]:
        import redis

        raise redis.exceptions.NoPermissionError(
            "this user has no permissions to run the 'config|get' command"
        )


@pytest.mark.parametrize(
    ("info", "wait_replicas", "check", "verdict"),
    [
        ({"redis_version": "6.2.14"}, 0, "version", "fail"),
        ({"redis_version": "10.0.0"}, 0, "version", "ok"),
        ({"role": "slave"}, 0, "role", "fail"),
        ({"aof_enabled": 1}, 0, "durability", "info"),
        ({"connected_slaves": 2}, 0, "failover", "warn"),
        ({"connected_slaves": 2}, 1, "failover", "ok"),
    ],
)
def test_redis_settings_give_each_setting_its_verdict(
    info: dict[str, Any], wait_replicas: int, check: str, verdict: str
) -> None:
    found = verdicts(list(redis_settings(Server(**info), wait_replicas=wait_replicas)))

    assert found[check] == verdict


# PostgreSQL.


class Database:
    """A fake PostgreSQL, for settings that the tests' real server cannot have."""

    def __init__(self, **answers: object) -> None:
        self.answers = {
            "SHOW server_version": "18",
            "to_regclass": True,
            "pg_is_in_recovery": False,
            "SHOW fsync": "on",
            "SHOW synchronous_commit": "on",
            "pg_stat_replication": 0,
            "SHOW synchronous_standby_names": "",
            **answers,
        }

    def execute(self, query: str, values: tuple[object, ...] = ()) -> Any:
        (answer,) = (answer for part, answer in self.answers.items() if part in query)

        class Cursor:
            def fetchone(self) -> tuple[object]:
                return (answer,)

        return Cursor()


@pytest.mark.parametrize(
    ("answers", "check", "verdict"),
    [
        ({"pg_is_in_recovery": True}, "role", "fail"),
        ({"SHOW fsync": "off"}, "durability", "fail"),
        ({"pg_stat_replication": 2}, "failover", "warn"),
        ({"pg_stat_replication": 2, "SHOW synchronous_standby_names": "a"}, "failover", "ok"),
    ],
)
def test_postgres_settings_give_each_setting_its_verdict(
    answers: dict[str, object], check: str, verdict: str
) -> None:
    assert verdicts(list(postgres_settings(Database(**answers), table="t")))[check] == verdict


def test_postgres_settings_pass_with_the_schema_and_advise_without_it(postgres_url: str) -> None:
    import psycopg

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        found = list(postgres_settings(connection, table="idempotency_record"))
        assert verdicts(found)["schema"] == "ok"
        assert verdicts(found)["role"] == "ok"
        connection.execute("SET synchronous_commit = off")
        missing = list(postgres_settings(connection, table="no_such_table"))
        assert verdicts(missing)["schema"] == "fail"
        assert verdicts(missing)["durability"] == "warn"
        assert "create_schema()" in next(finding.detail for finding in missing if finding.check == "schema")


# Principals.


def recorded(*names: str, outcome: bytes = b'{"format":1,"outcome":"response"}') -> SyncMemoryStore:
    """A store with one record of the same request under each name."""
    store = SyncMemoryStore()
    for name in names:
        granted = store.acquire(
            StorageKey(name),
            fingerprint=Fingerprint(b"f"),
            owner=Owner(name.encode()),
            lease=3600.0,
            retention=3600.0,
        )
        assert isinstance(granted, Acquired)
        assert store.complete(granted.claim, outcome, retention=3600.0)
    return store


KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"


@pytest.mark.parametrize(
    ("store", "verdict"),
    [
        (recorded(f"token-a:{KEY}", f"token-b:{KEY}"), {"principal": "warn"}),
        (recorded(f"alice:{KEY}", f"alice:{KEY[:-1]}5"), {"principal": "ok"}),
        (recorded("alice:order-1", "bob:order-1"), {}),  # two users may both number their orders
        (recorded(f"charge:{KEY}", f"ship:{KEY}", outcome=b'{"format":1,"outcome":"value"}'), {}),
        (recorded(KEY), {}),
    ],
)
def test_principals_warn_of_one_random_key_under_two_tenants(
    store: SyncMemoryStore, verdict: dict[str, str]
) -> None:
    findings = list(principals(store))
    assert verdicts(findings) == verdict
    assert all(KEY not in finding.detail for finding in findings)
