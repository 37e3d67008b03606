"""Rows in MySQL that this library did not write: none is replayed, and none hides the other records."""

from __future__ import annotations

import secrets
from contextlib import closing

import pytest
from sqlalchemy import create_engine

from idempotency import CorruptRecord, Fingerprint, Owner, StorageKey, idempotent
from idempotency.stores.url import open_sync_store


@pytest.fixture
def key() -> str:
    return f"k-{secrets.token_hex(8)}"


@pytest.mark.parametrize(
    "change",
    [
        "expires_at = 9223372036854775807",
        "completed_at = 9223372036854775807",
        "retention = -9223372036854775807",
        "lease_until = 9223372036854775807",
        "fence = 9223372036854775807",
    ],
)
def test_a_mysql_row_with_an_impossible_number_is_corrupt(
    mariadb_server_url: str, key: str, change: str
) -> None:
    runs: list[str] = []
    with closing(open_sync_store(f"mysql+pymysql://{mariadb_server_url}")) as store:
        store.create_schema()

        @idempotent(store=store, operation="mysql-row", key=lambda key: key)
        def run(key: str) -> None:
            runs.append(key)

        run(key)
        stored = StorageKey(f"mysql-row:{key}")
        engine = create_engine(f"mysql+pymysql://{mariadb_server_url}")
        with engine.begin() as connection:
            connection.exec_driver_sql(
                f"UPDATE idempotency_record SET {change} WHERE record_key = %s", (stored.encode(),)
            )
        engine.dispose()
        with pytest.raises(CorruptRecord):
            run(key)
        with pytest.raises(CorruptRecord):
            store.get(stored)
        page = store.scan(limit=1, cursor=stored[:-1])
        assert (page.records, page.cursor) == ((), stored)
        assert store.forget(stored)
        run(key)
    assert runs == [key, key]


def test_a_mysql_key_that_is_not_utf_8_is_listed_and_forgotten(mariadb_server_url: str, key: str) -> None:
    with closing(open_sync_store(f"mysql+pymysql://{mariadb_server_url}")) as store:
        store.create_schema()
        asked = {
            "fingerprint": Fingerprint(b"f" * 32),
            "owner": Owner(b"o" * 16),
            "lease": 30,
            "retention": 30,
        }
        store.acquire(StorageKey(key), **asked)
        engine = create_engine(f"mysql+pymysql://{mariadb_server_url}")
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE idempotency_record SET record_key = %s WHERE record_key = %s",
                (key.encode() + b"\xff", key.encode()),
            )
        engine.dispose()
        page = store.scan(limit=1, cursor=key)
        assert page.cursor is not None
        assert [record.key for record in page.records] == [page.cursor]
        store.scan(limit=1, cursor=page.cursor)
        assert store.forget(StorageKey(page.cursor))
