"""The types of connections that `complete_in` takes, for type checkers; nothing is imported here at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import sqlite3

    import aiosqlite
    import asyncpg
    import psycopg
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    DjangoConnection: TypeAlias = Any
    SyncFramework: TypeAlias = Session | scoped_session[Any] | Connection
    AsyncFramework: TypeAlias = AsyncSession | async_scoped_session[Any] | AsyncConnection

    SyncPostgresConnection: TypeAlias = psycopg.Connection[Any] | SyncFramework | DjangoConnection
    AsyncPostgresConnection: TypeAlias = psycopg.AsyncConnection[Any] | AsyncFramework | asyncpg.Connection
    SyncSqliteConnection: TypeAlias = sqlite3.Connection | SyncFramework
    AsyncSqliteConnection: TypeAlias = aiosqlite.Connection | AsyncFramework
