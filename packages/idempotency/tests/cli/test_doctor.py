"""The doctor: a store that keeps its rules passes, one that breaks a rule is named, and settings say what they cost."""

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
    """The findings about a store whose clock runs *speed* times as fast as ours."""
    ours, theirs = FakeClock(), FakeClock()

    def sleep(seconds: float) -> None:
        ours.advance(seconds)
        theirs.advance(speed * seconds)

    return list(probe(make(clock=theirs), sleep=sleep, monotonic=ours))


# The probe.


def test_a_store_that_keeps_its_rules_passes_and_keeps_nothing() -> None:
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


def test_a_real_file_passes(tmp_path: Path) -> None:
    store = SyncSQLiteStore(tmp_path / "records.db")

    assert set(verdicts(list(probe(store))).values()) == {"ok", "info"}
    store.close()


@pytest.mark.parametrize(("speed", "verdict"), [(1.0, "ok"), (0.0, "fail"), (1.5, "fail"), (-3600.0, "fail")])
def test_a_clock_that_runs_at_another_speed_is_named(speed: float, verdict: str) -> None:
    assert verdicts(probed(SyncMemoryStore, speed=speed))["clock"] == verdict


class Generous(SyncMemoryStore):
    """Grants a key to everybody who asks."""

    def acquire(self, key: Any, **given: Any) -> Any:
        reply = super().acquire(key, **given)
        if isinstance(reply, Running):
            self.forget(key)
            reply = super().acquire(key, **given)
        return reply


class Garbling(SyncMemoryStore):
    """Returns what was recorded with a space more."""

    def acquire(self, key: Any, **given: Any) -> Any:
        reply = super().acquire(key, **given)
        return reply._replace(outcome=reply.outcome + b" ") if isinstance(reply, Completed) else reply


class Backward(SyncMemoryStore):
    """Hands out smaller fences each time."""

    def acquire(self, key: Any, **given: Any) -> Any:
        reply = super().acquire(key, **given)
        if isinstance(reply, Acquired):
            return Acquired(reply.claim._replace(fence=-reply.claim.fence))
        return reply


class Deaf(SyncMemoryStore):
    """Refuses to record."""

    def complete(self, *_: Any, **__: Any) -> bool:
        return False


class Occupied(SyncMemoryStore):
    """Says of every key that it is held."""

    def acquire(self, key: Any, **given: Any) -> Any:
        return Running(given["fingerprint"], 1.0)


@pytest.mark.parametrize(
    ("make", "check"),
    [(Generous, "claim"), (Garbling, "record"), (Backward, "fence"), (Deaf, "record"), (Occupied, "claim")],
)
def test_a_store_that_breaks_a_rule_is_named(make: Any, check: str) -> None:
    assert verdicts(probed(make))[check] == "fail"


def test_a_store_that_breaks_down_half_way_is_left_clean() -> None:
    class Breaking(SyncMemoryStore):
        def complete(self, *_: Any, **__: Any) -> bool:
            raise StoreUnavailable("away")

    store = Breaking()

    with pytest.raises(StoreUnavailable):
        list(probe(store, sleep=lambda _: None))
    assert store.scan().records == ()


def test_a_store_that_cannot_forget_is_probed_too() -> None:
    class Bare:
        """The protocol and nothing more."""

        def __init__(self) -> None:
            inner = SyncMemoryStore()
            for name in ("acquire", "renew", "complete", "release", "get", "close"):
                setattr(self, name, getattr(inner, name))

    found = verdicts(list(probe(Bare(), sleep=lambda _: None, monotonic=FakeClock())))  # type: ignore[arg-type]
    assert (found["claim"], found["record"]) == ("ok", "ok")


# SQLite.


def test_a_store_file_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "records #1?.db"
    SyncSQLiteStore(path).close()

    found = verdicts(list(sqlite_settings(path, synchronous="FULL")))
    assert found == {"file": "ok", "journal": "ok", "durability": "ok"}


def test_a_setting_that_may_lose_the_last_records_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    SyncSQLiteStore(path).close()

    assert verdicts(list(sqlite_settings(path, synchronous="normal")))["durability"] == "warn"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
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


def test_a_file_that_is_no_database_or_has_another_journal_is_named(tmp_path: Path) -> None:
    garbage, plain = tmp_path / "garbage.db", tmp_path / "plain.db"
    garbage.write_bytes(b"not a database, but longer than its header would be" * 40)
    connection = sqlite3.connect(plain)
    connection.execute("CREATE TABLE some (thing)")
    connection.close()

    assert verdicts(list(sqlite_settings(garbage, synchronous="FULL"))) == {"file": "fail"}
    assert verdicts(list(sqlite_settings(plain, synchronous="FULL")))["journal"] == "warn"


# Redis.


def test_a_redis_that_evicts_forgets_or_fails_over_is_named(own_redis: Any) -> None:
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
    """A Redis that answers as told: what cannot be had as a real one here."""

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
def test_each_setting_of_redis_has_its_verdict(
    info: dict[str, Any], wait_replicas: int, check: str, verdict: str
) -> None:
    found = verdicts(list(redis_settings(Server(**info), wait_replicas=wait_replicas)))

    assert found[check] == verdict


# PostgreSQL.


class Database:
    """A PostgreSQL that answers as told: what cannot be had as a real one here."""

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
def test_each_setting_of_postgres_has_its_verdict(
    answers: dict[str, object], check: str, verdict: str
) -> None:
    assert verdicts(list(postgres_settings(Database(**answers), table="t")))[check] == verdict


def test_a_postgres_with_its_schema_is_sound_and_without_it_is_told_what_to_do(postgres_url: str) -> None:
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
        (recorded("alice:order-1", "bob:order-1"), {}),  # two users may well count their own orders
        (recorded(f"charge:{KEY}", f"ship:{KEY}", outcome=b'{"format":1,"outcome":"value"}'), {}),
        (recorded(KEY), {}),
    ],
)
def test_one_random_key_under_two_tenants_is_named_as_a_credential_that_was_replaced(
    store: SyncMemoryStore, verdict: dict[str, str]
) -> None:
    findings = list(principals(store))
    assert verdicts(findings) == verdict
    assert all(KEY not in finding.detail for finding in findings)
