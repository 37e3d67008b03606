"""The Django store has its own connections, which Django does not close at the end of a request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django
import django_project
import pytest
from django.db import connections, transaction

from idempotency import StorageKey
from idempotency._core.types import Acquired, Fingerprint, Owner
from idempotency.stores.django import SyncDjangoStore
from idempotency.stores.django import connections as module

KEY = StorageKey("nobody-has-it")


class Clock:
    """The machine's clock, which a test can set forward."""

    offset = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.offset


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture(params=[0, 1_000, None])
def max_age(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def store(tmp_path: Path, max_age: Any, clock: Clock) -> Iterator[SyncDjangoStore]:
    django_project.configure()
    alias = f"kept_{max_age}"
    connections.settings[alias] = {
        **connections.settings["default"],
        "NAME": tmp_path / "db.sqlite3",
        "CONN_MAX_AGE": max_age,
    }
    store = SyncDjangoStore(alias)
    store.create_schema()
    yield store
    store.close()
    del connections.settings[alias]


def connection_of(store: SyncDjangoStore) -> Any:
    """The driver's connection that the next call will use."""
    [(wrapper, _)] = store._connections._idle
    return wrapper.connection


def test_consecutive_calls_use_one_connection(store: SyncDjangoStore) -> None:
    store.get(KEY)
    first = connection_of(store)
    for _ in range(3):
        store.get(KEY)
        assert connection_of(store) is first


def test_a_connection_that_was_idle_for_a_minute_is_replaced(store: SyncDjangoStore, clock: Clock) -> None:
    store.get(KEY)
    first = connection_of(store)
    clock.offset += 59
    store.get(KEY)
    assert connection_of(store) is first
    clock.offset += 61
    store.get(KEY)
    assert connection_of(store) is not first


@pytest.mark.parametrize("max_age", [0.05])
def test_a_positive_max_age_bounds_the_age_of_a_connection(store: SyncDjangoStore) -> None:
    [(wrapper, _)] = store._connections._idle
    store.get(KEY)
    first = wrapper.connection
    # Django sets it when it connects; now the connection has reached its maximum age.
    wrapper.close_at = time.monotonic()
    store.get(KEY)
    assert wrapper.connection is not first


def test_a_claim_that_would_wait_for_the_callers_own_transaction_is_refused(
    store: SyncDjangoStore, max_age: Any
) -> None:
    """SQLite has one writer for a file; during a transaction in another database a claim may be made."""

    def claim() -> object:
        return store.acquire(
            KEY, fingerprint=Fingerprint(b"f"), owner=Owner(b"o" * 16), lease=30, retention=60
        )

    with transaction.atomic("default"):
        assert isinstance(claim(), Acquired)
    connections["default"].close()
    store.forget(KEY)
    with transaction.atomic(f"kept_{max_age}"), pytest.raises(RuntimeError, match="a separate file"):
        claim()
    connections[f"kept_{max_age}"].close()
    assert store.get(KEY) is None


def claim(store: SyncDjangoStore, key: StorageKey = KEY) -> object:
    return store.acquire(key, fingerprint=Fingerprint(b"f"), owner=Owner(b"o" * 16), lease=30, retention=60)


@contextmanager
def on_postgres(url: str, **settings: Any) -> Iterator[str]:
    """The alias of a PostgreSQL database with *settings*."""
    django_project.configure()
    alias = f"own_{len(connections.settings)}"
    django_project.add_database("postgresql", url, alias=alias)
    connections.settings[alias].update(settings)
    try:
        yield alias
    finally:
        connections[alias].close()
        if getattr(connections[alias], "pool", None) is not None:
            connections[alias].close_pool()
        del connections[alias]
        del connections.settings[alias]


def test_a_call_is_committed_although_the_projects_autocommit_is_off(postgres_url: str) -> None:
    """`AUTOCOMMIT: False` is for the project's own transactions; an uncommitted claim would protect nothing."""
    options = {"options": "-c lock_timeout=2000"}
    with on_postgres(postgres_url, AUTOCOMMIT=False, OPTIONS=options) as alias:
        store, other = SyncDjangoStore(alias), SyncDjangoStore(alias)
        try:
            store.create_schema()
            assert isinstance(claim(store), Acquired)
            assert other.get(KEY) is not None
            assert other.forget(KEY)
        finally:
            store.close()
            other.close()


@pytest.mark.skipif(django.VERSION < (5, 1), reason="Django has pools since 5.1")
def test_a_connection_of_djangos_pool_is_returned_after_the_call(postgres_url: str) -> None:
    """Otherwise the store would withhold it from the project's requests."""
    options = {"pool": {"min_size": 1, "max_size": 1, "timeout": 2}}
    with on_postgres(postgres_url, OPTIONS=options) as alias:
        store = SyncDjangoStore(alias)
        try:
            store.create_schema()
            assert isinstance(claim(store), Acquired)
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")
                assert cursor.fetchone() == (1,)
            connections[alias].close()
            assert store.forget(KEY)
        finally:
            store.close()
