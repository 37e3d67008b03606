"""Which errors the refusals of a MySQL server raise, and that a lock wait timeout is not retried."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import django_project
import pytest
import sqlalchemy as sa
from django.db import connections

from idempotency import Acquired, Claim, Fingerprint, Owner, StorageKey
from idempotency.errors import StoreError, StoreUnavailable
from idempotency.store import SyncStore
from idempotency.stores._sql.records import conflict_of, to_store_error
from idempotency.stores._sql.steps import Steps
from idempotency.stores.django import SyncDjangoStore
from idempotency.stores.django.connections import Connections
from idempotency.stores.sqlalchemy import SyncSQLAlchemyStore

T = TypeVar("T")

NO_LOCK_WAIT = "SET innodb_lock_wait_timeout = 0"  # a lock that is held is a timeout at once


@pytest.fixture
def engine(mariadb_server_url: str) -> Iterator[sa.Engine]:
    url = f"mysql+pymysql://{mariadb_server_url}"
    engine = sa.create_engine(url, connect_args={"init_command": NO_LOCK_WAIT})
    yield engine
    engine.dispose()


def granted(store: SyncStore) -> Claim:
    reply = store.acquire(
        StorageKey(f"refused-{secrets.token_hex(6)}"),
        fingerprint=Fingerprint(b"f" * 32),
        owner=Owner(secrets.token_bytes(16)),
        lease=30.0,
        retention=60.0,
    )
    assert isinstance(reply, Acquired)
    return reply.claim


def lock(connection: sa.Connection, claim: Claim) -> None:
    found = connection.exec_driver_sql(
        "SELECT attempt FROM idempotency_record WHERE record_key = %s FOR UPDATE", (claim.key.encode(),)
    )
    assert found.scalars().all() == [1]


def test_a_lock_wait_timeout_is_not_retried(engine: sa.Engine) -> None:
    store = SyncSQLAlchemyStore(engine)
    store.create_schema()
    claim = granted(store)
    failures = []

    @sa.event.listens_for(engine, "handle_error")
    def count(context: sa.ExceptionContext) -> None:
        failures.append(context.original_exception)

    with engine.connect() as holder:
        lock(holder, claim)
        with pytest.raises(StoreUnavailable, match="innodb_lock_wait_timeout"):
            store.complete(claim, b"{}", retention=60.0)
    assert len(failures) == 1
    assert store.complete(claim, b"{}", retention=60.0)


def test_a_lock_wait_timeout_is_not_retried_over_django(engine: sa.Engine, mariadb_server_url: str) -> None:
    django_project.configure()
    django_project.add_database("mysql", mariadb_server_url, alias="impatient")
    connections.settings["impatient"]["OPTIONS"] = {"init_command": NO_LOCK_WAIT}
    tries = []

    class Counted(Connections):
        def run(self, steps: Steps[T]) -> T:
            tries.append(steps)
            return super().run(steps)

    store = SyncDjangoStore("impatient")
    store._connections = Counted("impatient")
    store.create_schema()
    claim = granted(store)
    tries.clear()
    with engine.connect() as holder:
        lock(holder, claim)
        with pytest.raises(StoreUnavailable, match="innodb_lock_wait_timeout"):
            store.complete(claim, b"{}", retention=60.0)
    assert len(tries) == 1
    store.close()


@contextmanager
def packets_of_one_mebibyte(engine: sa.Engine) -> Iterator[None]:
    with engine.connect() as connection:
        usual = connection.exec_driver_sql("SELECT @@global.max_allowed_packet").scalar_one()
        connection.exec_driver_sql("SET GLOBAL max_allowed_packet = 1048576")
        engine.dispose()  # an open connection keeps its earlier value
        try:
            yield
        finally:
            connection.exec_driver_sql("SET GLOBAL max_allowed_packet = %s", (usual,))
            engine.dispose()


def test_an_outcome_over_max_allowed_packet_raises_a_permanent_store_error(engine: sa.Engine) -> None:
    store = SyncSQLAlchemyStore(engine)
    store.create_schema()
    claim = granted(store)
    message = r"nothing was written.*max_allowed_packet, 1048576"
    with packets_of_one_mebibyte(engine), pytest.raises(StoreError, match=message) as caught:
        store.complete(claim, b"x" * 1_500_000, retention=60.0)
    assert not isinstance(caught.value, StoreUnavailable), "repeating does not help"
    record = store.get(claim.key)
    assert record is not None
    assert record.outcome is None


def test_a_statement_over_max_allowed_packet_raises_a_store_error_that_names_it(engine: sa.Engine) -> None:
    """The driver escapes each quote with a second byte, so that only the statement exceeds a packet."""
    store = SyncSQLAlchemyStore(engine)
    store.create_schema()
    claim = granted(store)
    with packets_of_one_mebibyte(engine), pytest.raises(StoreError, match="max_allowed_packet"):
        store.complete(claim, b'"' * 900_000, retention=60.0)


@pytest.mark.parametrize(
    ("number", "advice"), [(1153, "max_allowed_packet"), (1665, "set it to ROW or MIXED")]
)
def test_a_permanent_refusal_is_a_store_error_that_says_what_to_do(number: int, advice: str) -> None:
    error = Exception(number, "the server's text")
    for meaning in (to_store_error("mysql", error), conflict_of("mysql", error)):
        assert type(meaning) is StoreError
        assert advice in str(meaning)
        assert "nothing was written" in str(meaning)
