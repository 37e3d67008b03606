"""
Reads the settings of a store's server, and reports the promises that they weaken.

It uses a connection of its own. Settings that its user may not read are reported as unknown.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from idempotency.cli.doctor.finding import Finding
from idempotency.stores._sql.identifiers import quoted

__all__ = ["postgres_settings", "redis_settings", "sqlite_settings"]

_OLDEST_REDIS: Final = 7


def sqlite_settings(path: str | Path, *, synchronous: str) -> Iterator[Finding]:
    """Checks the file at *path*; *synchronous* is the store's setting, which belongs to a connection, not the file."""
    connection = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
    try:
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        (integrity,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        yield Finding("file", "fail", f"SQLite cannot read it: {error}")
        return
    finally:
        connection.close()
    if integrity == "ok":
        yield Finding("file", "ok", f"SQLite {sqlite3.sqlite_version} finds the file sound")
    else:
        yield Finding("file", "fail", f"the file is damaged: {integrity}")
    if mode == "wal":
        yield Finding("journal", "ok", "write-ahead log: readers do not wait for writers")
    else:
        yield Finding(
            "journal",
            "warn",
            f"journal mode {mode}: readers wait for writers; a store sets wal when it opens the file",
        )
    if synchronous.upper() in {"FULL", "EXTRA"}:
        yield Finding("durability", "ok", f"synchronous={synchronous}: a record survives a power failure")
    else:
        yield Finding(
            "durability", "warn", f"synchronous={synchronous}: a power failure may undo the last records"
        )


def redis_settings(client: Any, *, wait_replicas: int) -> Iterator[Finding]:
    """
    Reads the settings of one Redis or Valkey server.

    Args:
        client: `redis.Redis`, connected to the server to check.
        wait_replicas: How many replicas must confirm each write of the store.
    """
    began = time.time()
    seconds, microseconds = client.time()
    offset = seconds + microseconds / 1e6 - (began + time.time()) / 2
    info = client.info()
    yield _redis_version(info)
    yield _redis_role(info)
    yield _redis_eviction(info)
    yield _redis_durability(info, _redis_config(client, "appendfsync"))
    yield _redis_replicas(info, wait_replicas)
    yield Finding(
        "wall clock",
        "info",
        f"the server's clock is {abs(offset):.3f} s {'ahead of' if offset > 0 else 'behind'} this machine's, which "
        "does no harm; setting it while claims are held would move the ends of their leases",
    )


def _redis_version(info: dict[str, Any]) -> Finding:
    version = str(info.get("redis_version", "0"))
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"
    if int(version.partition(".")[0]) >= _OLDEST_REDIS:
        return Finding("version", "ok", name)
    return Finding("version", "fail", f"{name}: 7.0 or newer is needed")


def _redis_role(info: dict[str, Any]) -> Finding:
    if info.get("role") == "master":
        return Finding("role", "ok", "this server is a primary")
    return Finding(
        "role", "fail", f"this server is a {info.get('role')}: it takes no writes; connect to the primary"
    )


def _redis_eviction(info: dict[str, Any]) -> Finding:
    policy, limit = info.get("maxmemory_policy", "unknown"), info.get("maxmemory", 0)
    if policy == "noeviction":
        return Finding("eviction", "ok", "maxmemory-policy noeviction: no live record is evicted")
    if not limit:
        return Finding(
            "eviction",
            "warn",
            f"maxmemory-policy {policy}: nothing is evicted while maxmemory is unset; set noeviction before you set it",
        )
    return Finding(
        "eviction",
        "fail",
        f"maxmemory-policy {policy} with maxmemory {limit}: live claims may be evicted, and operations then run twice; "
        "set noeviction, or keep the records on a separate server",
    )


def _redis_durability(info: dict[str, Any], appendfsync: str | None) -> Finding:
    if not info.get("aof_enabled"):
        return Finding(
            "durability",
            "warn",
            "no append-only file: a restart loses the records made since the last snapshot; set appendonly yes",
        )
    if appendfsync is None:
        return Finding("durability", "info", "append-only file; this user may not read appendfsync")
    if appendfsync == "always":
        return Finding("durability", "ok", "append-only file, appendfsync always: a restart loses nothing")
    return Finding(
        "durability",
        "warn",
        f"append-only file, appendfsync {appendfsync}: a crash may lose the last second or more",
    )


def _redis_replicas(info: dict[str, Any], wait_replicas: int) -> Finding:
    replicas = info.get("connected_slaves", 0)
    if not replicas:
        if wait_replicas:
            return Finding("failover", "fail", f"wait_replicas={wait_replicas}, but no replica is connected")
        return Finding("failover", "info", "no replica is connected, so there is no failover")
    if wait_replicas:
        return Finding(
            "failover", "ok", f"{wait_replicas} of {replicas} replicas confirm each write before it counts"
        )
    return Finding(
        "failover",
        "warn",
        f"{replicas} replicas, but writes do not wait for them: a failover may lose granted claims; set wait_replicas",
    )


def _redis_config(client: Any, name: str) -> str | None:
    from redis.exceptions import RedisError

    try:
        value = client.config_get(name).get(name)
    except RedisError:  # managed servers refuse CONFIG
        return None
    return str(value) if value is not None else None


def postgres_settings(connection: Any, *, table: str) -> Iterator[Finding]:
    """Reads the settings of a PostgreSQL server; *connection* is psycopg's, in autocommit mode."""
    (version,) = connection.execute("SHOW server_version").fetchone()
    yield Finding("version", "info", f"PostgreSQL {version}")
    (found,) = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (quoted(table),)).fetchone()
    if found:
        yield Finding("schema", "ok", f"the table {table} exists")
    else:
        yield Finding("schema", "fail", f"there is no table {table}: call create_schema()")
    (standby,) = connection.execute("SELECT pg_is_in_recovery()").fetchone()
    if standby:
        yield Finding("role", "fail", "this server is a standby: it takes no writes; connect to the primary")
    else:
        yield Finding("role", "ok", "this server is a primary")
    (fsync,) = connection.execute("SHOW fsync").fetchone()
    (commit,) = connection.execute("SHOW synchronous_commit").fetchone()
    if fsync != "on":
        yield Finding("durability", "fail", "fsync is off: a crash may damage the whole database")
    elif commit == "off":
        yield Finding("durability", "warn", "synchronous_commit is off: a crash may undo the last records")
    else:
        yield Finding("durability", "ok", f"fsync on, synchronous_commit {commit}: a record survives a crash")
    (standbys,) = connection.execute("SELECT count(*) FROM pg_stat_replication").fetchone()
    (names,) = connection.execute("SHOW synchronous_standby_names").fetchone()
    if standbys and not names:
        yield Finding(
            "failover",
            "warn",
            f"{standbys} standbys, none of them synchronous: a promotion may lose committed records; set "
            "synchronous_standby_names",
        )
    elif standbys:
        yield Finding("failover", "ok", f"synchronous standbys: {names}")
    else:
        yield Finding("failover", "info", "no standby is connected, so there is no failover")
