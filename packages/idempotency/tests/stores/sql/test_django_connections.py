"""The Django store keeps connections of its own, whatever Django closes with each request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django_project
import pytest
from django.db import connections, transaction

from idempotency import StorageKey
from idempotency._core.types import Acquired, Fingerprint, Owner
from idempotency.stores.django import SyncDjangoStore
from idempotency.stores.django import connections as module

KEY = StorageKey("nobody-has-it")


class Clock:
    """The machine's clock, put forward by hand."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


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


def test_calls_one_after_another_use_one_connection(store: SyncDjangoStore) -> None:
    store.get(KEY)
    first = connection_of(store)
    for _ in range(3):
        store.get(KEY)
        assert connection_of(store) is first


def test_a_connection_that_was_idle_for_a_minute_is_opened_anew(store: SyncDjangoStore, clock: Clock) -> None:
    store.get(KEY)
    first = connection_of(store)
    clock.ahead += 59
    store.get(KEY)
    assert connection_of(store) is first
    clock.ahead += 61
    store.get(KEY)
    assert connection_of(store) is not first


@pytest.mark.parametrize("max_age", [0.05])
def test_a_positive_max_age_bounds_the_age_of_a_connection(store: SyncDjangoStore) -> None:
    [(wrapper, _)] = store._connections._idle
    store.get(KEY)
    first = wrapper.connection
    wrapper.close_at = time.monotonic()  # as Django sets it when it connects: now it is as old as it may be
    store.get(KEY)
    assert wrapper.connection is not first


def test_a_claim_that_would_wait_for_its_callers_own_transaction_says_so_at_once(
    store: SyncDjangoStore, max_age: Any
) -> None:
    """SQLite has one writer; elsewhere, and in another file, a claim may be made in the middle of a transaction."""

    def claim() -> object:
        return store.acquire(
            KEY, fingerprint=Fingerprint(b"f"), owner=Owner(b"o" * 16), lease=30, retention=60
        )

    with transaction.atomic("default"):
        assert isinstance(claim(), Acquired)
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
        if connections[alias].pool is not None:
            connections[alias].close_pool()
        del connections[alias]
        del connections.settings[alias]


def test_a_call_is_committed_where_the_project_commits_by_itself(postgres_url: str) -> None:
    """`AUTOCOMMIT: False` is for the project's own transactions; a claim that nobody commits is none."""
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


def test_a_connection_of_djangos_pool_goes_back_to_it_after_the_call(postgres_url: str) -> None:
    """Else the store would keep it from the project's requests."""
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
