"""Read by type checkers, never run: what a URL opens has a schema to create; which connections `complete_in` takes."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import sqlite3
from typing import Any, assert_type

import psycopg
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from idempotency import Claim, Store, SyncStore
from idempotency.stores.postgres import PostgresStore
from idempotency.stores.sqlalchemy import SQLAlchemyStore, SyncSQLAlchemyStore
from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore
from idempotency.stores.url import open_store, open_sync_store


async def start() -> Store:
    store = open_store("postgresql://localhost/app")
    await store.create_schema()
    return store


def start_sync() -> SyncStore:
    store = open_sync_store("mysql://localhost/app")
    store.create_schema()
    store.missing()  # type: ignore[attr-defined]
    return store


async def in_postgres(
    store: PostgresStore, claim: Claim, session: AsyncSession, raw: psycopg.AsyncConnection[Any]
) -> None:
    assert_type(await store.complete_in(session, claim, b"{}", retention=1.0), bool)
    assert_type(await store.complete_in(raw, claim, b"{}", retention=1.0), bool)


async def in_sqlite(store: SQLiteStore, claim: Claim, session: AsyncSession, raw: sqlite3.Connection) -> None:
    assert_type(await store.complete_in(session, claim, b"{}", retention=1.0), bool)
    assert_type(store.complete_in(raw, claim, b"{}", retention=1.0), bool)


def in_sync_sqlite(store: SyncSQLiteStore, claim: Claim, session: Session) -> None:
    assert_type(store.complete_in(session, claim, b"{}", retention=1.0), bool)
    store.complete_in("shop.db", claim, b"{}", retention=1.0)  # type: ignore[arg-type]


async def over_engines(
    store: SQLAlchemyStore, sync: SyncSQLAlchemyStore, claim: Claim, later: AsyncSession, now: Session
) -> None:
    assert_type(await store.complete_in(later, claim, b"{}", retention=1.0), bool)
    assert_type(sync.complete_in(now, claim, b"{}", retention=1.0), bool)
