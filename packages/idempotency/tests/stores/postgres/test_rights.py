"""The rights that docs/stores.md lists suffice, without CREATE."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from patience import PATIENCE
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from idempotency import Acquired, Completed, Fingerprint, Owner, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.stores.postgres import PostgresStore, SyncPostgresStore, schema_sql

pytestmark = pytest.mark.anyio

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}
DOCUMENTED = Path(__file__).parents[5] / "docs" / "stores.md"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class RestrictedRole:
    """A schema, and a role with only the rights that it is granted."""

    schema: str
    role: str
    admin: psycopg.Connection[Any]
    url: str

    def grant(self) -> None:
        """Grant the rights exactly as docs/stores.md prints them, with these names."""
        text = (
            DOCUMENTED.read_text().partition("<!-- grants -->")[2].partition("```sql")[2].partition("```")[0]
        )
        assert "GRANT" in text
        self.admin.execute(
            text.replace("app.", f"{self.schema}.")
            .replace(" app ", f" {self.schema} ")
            .replace("idempotency_user", self.role)
            .encode()
        )


@pytest.fixture
def restricted(postgres_url: str) -> Iterator[RestrictedRole]:
    suffix = secrets.token_hex(6)
    schema, role = f"s_{suffix}", f"r_{suffix}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE SCHEMA {schema}; CREATE ROLE {role} LOGIN PASSWORD 'p'".encode())
        yield RestrictedRole(schema, role, admin, make_conninfo(postgres_url, user=role, password="p"))
        admin.execute(f"DROP SCHEMA {schema} CASCADE; DROP OWNED BY {role}; DROP ROLE {role}".encode())


def call_everything(store: SyncPostgresStore, key: str = "k") -> None:
    """Make every call of the store."""
    name = StorageKey(key)
    reply = store.acquire(name, owner=Owner(b"o" * 16), **ACQUIRE)
    assert isinstance(reply, Acquired)
    assert store.renew(reply.claim, lease=30.0)
    assert store.complete(reply.claim, b"{}", retention=60.0)
    assert isinstance(store.acquire(name, owner=Owner(b"x" * 16), **ACQUIRE), Completed)
    assert [record.key for record in store.scan().records] == [name]
    assert store.get(name) is not None
    assert store.purge() == 0
    assert store.forget(name)
    reply = store.acquire(name, owner=Owner(b"o" * 16), **ACQUIRE)
    assert store.release(reply.claim)


@pytest.mark.parametrize("found_by", ["its schema", "the search path"])
def test_a_role_without_create_can_use_an_existing_table(restricted: RestrictedRole, found_by: str) -> None:
    table = f"{restricted.schema}.idempotency_record"
    restricted.admin.execute(schema_sql(table).encode())
    restricted.grant()
    kwargs: dict[str, Any] = {}
    if found_by == "the search path":
        table, kwargs = "idempotency_record", {"options": f"-c search_path={restricted.schema}"}
    with ConnectionPool(restricted.url, min_size=1, max_size=2, open=False, kwargs=kwargs) as pool:
        store = SyncPostgresStore(pool, table=table, deadline=PATIENCE)
        store.create_schema()
        call_everything(store)
        with pool.connection() as connection:
            reply = store.acquire(StorageKey("in"), owner=Owner(b"o" * 16), **ACQUIRE)
            assert store.complete_in(connection, reply.claim, b"{}", retention=60.0)
        store.close()


async def test_a_role_without_create_can_use_an_existing_table_through_the_async_store(
    restricted: RestrictedRole,
) -> None:
    table = f"{restricted.schema}.idempotency_record"
    restricted.admin.execute(schema_sql(table).encode())
    restricted.grant()
    async with AsyncConnectionPool(restricted.url, min_size=1, max_size=2, open=False) as pool:
        store = PostgresStore(pool, table=table, deadline=PATIENCE)
        await store.create_schema()
        assert isinstance(await store.acquire(StorageKey("k"), owner=Owner(b"o" * 16), **ACQUIRE), Acquired)
        await store.aclose()


def test_a_table_of_the_same_name_in_another_schema_is_not_used(restricted: RestrictedRole) -> None:
    """The search path finds a table of that name in `public`, but the qualified one is missing."""
    with ConnectionPool(restricted.url, min_size=1, max_size=1, open=False) as pool:
        store = SyncPostgresStore(pool, table=f"{restricted.schema}.idempotency_record", deadline=PATIENCE)
        restricted.admin.execute(f"GRANT USAGE ON SCHEMA {restricted.schema} TO {restricted.role}".encode())
        with pytest.raises(StoreUnavailable, match=r"may not create.*schema_sql"):
            store.create_schema()
        store.close()


@pytest.mark.parametrize("without", ["INSERT", "UPDATE", "DELETE", "SELECT", "sequence", "schema"])
def test_the_error_for_a_missing_right_lists_the_needed_grants(
    restricted: RestrictedRole, without: str
) -> None:
    table = f"{restricted.schema}.idempotency_record"
    restricted.admin.execute(schema_sql(table).encode())
    restricted.grant()
    what = {
        "sequence": f"USAGE ON SEQUENCE {table}_fence",
        "schema": f"USAGE ON SCHEMA {restricted.schema}",
    }.get(without, f"{without} ON {table}")
    restricted.admin.execute(f"REVOKE {what} FROM {restricted.role}".encode())
    with ConnectionPool(restricted.url, min_size=1, max_size=1, open=False) as pool:
        store = SyncPostgresStore(pool, table=table, deadline=PATIENCE)
        with pytest.raises(StoreUnavailable, match=r"GRANT SELECT, INSERT, UPDATE, DELETE"):
            call_everything(store)
        store.close()


def test_create_schema_takes_no_lock_where_the_schema_exists(
    restricted: RestrictedRole, postgres_url: str
) -> None:
    """Another transaction holds locks that creating the table would wait for."""
    table = f"{restricted.schema}.idempotency_record"
    restricted.admin.execute(schema_sql(table).encode())
    with (
        psycopg.connect(postgres_url) as other,
        ConnectionPool(postgres_url, min_size=1, max_size=1, open=False) as pool,
    ):
        other.execute(f"INSERT INTO {table} VALUES ('k', '', '', 1, 1, now(), 1, NULL, NULL, now())".encode())
        other.execute(f"SELECT pg_advisory_xact_lock(hashtextextended('{table}', 1))".encode())
        store = SyncPostgresStore(pool, table=table, deadline=PATIENCE)
        store.create_schema()
        store.close()
        other.rollback()


def test_create_schema_creates_a_missing_index(restricted: RestrictedRole, postgres_url: str) -> None:
    table = f"{restricted.schema}.idempotency_record"
    restricted.admin.execute(schema_sql(table).encode())
    restricted.admin.execute(f"DROP INDEX {table}_expires_at".encode())
    with ConnectionPool(postgres_url, min_size=1, max_size=1, open=False) as pool:
        store = SyncPostgresStore(pool, table=table, deadline=PATIENCE)
        store.create_schema()
        store.close()
    row = restricted.admin.execute("SELECT to_regclass(%s)", [f"{table}_expires_at"]).fetchone()
    assert row != (None,)
