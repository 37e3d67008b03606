"""A table of an earlier version, without the column for the age of a claim."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from idempotency import Acquired, Fingerprint, Owner, StorageKey
from idempotency.errors import StoreError
from idempotency.stores.postgres import SyncPostgresStore, schema_sql

KEY, FINGERPRINT, OWNER = StorageKey("k"), Fingerprint(b"f" * 32), Owner(b"o" * 16)


@pytest.fixture
def table(postgres_url: str) -> Iterator[str]:
    name = f"earlier_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(schema_sql(name).encode())
        connection.execute(
            f"INSERT INTO {name} VALUES ('k', %s, %s, 1, 1, now() + interval '1 h', 60, NULL, NULL, "
            "now() + interval '1 h')".encode(),
            (FINGERPRINT, OWNER),
        )
        connection.execute(f"ALTER TABLE {name} DROP COLUMN claimed_at".encode())
        yield name
        connection.execute(f"DROP TABLE {name}; DROP SEQUENCE {name}_fence".encode())


def test_a_table_of_an_earlier_version_is_refused_until_create_schema_adds_its_column(
    postgres_url: str, table: str
) -> None:
    with ConnectionPool(postgres_url, min_size=1, open=False) as pool:
        pool.open(wait=True)
        store = SyncPostgresStore(pool, table=table, deadline=60.0)
        with pytest.raises(StoreError, match="earlier version, create_schema"):
            store.get(KEY)
        store.create_schema()
        again = store.acquire(KEY, fingerprint=FINGERPRINT, owner=OWNER, lease=60.0, retention=60.0)
        record = store.get(KEY)
        store.close()
    assert isinstance(again, Acquired), "the claim that the table had before"
    assert record is not None
    assert record.age >= 0.0
