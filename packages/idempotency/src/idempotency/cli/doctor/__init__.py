"""Runs the checks of `idempotency doctor`: the store's rules, its server's settings, and the promises that hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from typing import Final
from urllib.parse import unquote

from idempotency._core.errors import StoreError
from idempotency.cli.doctor.finding import Finding
from idempotency.cli.doctor.principals import principals
from idempotency.cli.doctor.probe import probe
from idempotency.cli.doctor.settings import postgres_settings, redis_settings, sqlite_settings
from idempotency.store import SyncStore
from idempotency.stores.parse_url import StoreURL, parse_store_url
from idempotency.stores.url import postgres_conninfo, redis_primaries

__all__ = ["Finding", "examine"]

_PROMISES: Final = {
    "memory": "at least once or at most once, among the requests that one process serves while it lives",
    "sqlite": "at least once, at most once, and effectively once for effects in the same file (complete_in)",
    "redis": "at least once or at most once, while no record is lost to eviction, a crash or a failover",
    "postgresql": "at least once, at most once, and effectively once for effects in the same database (complete_in)",
    "dynamodb": "at least once or at most once, while the clocks of all callers agree to within max_clock_skew",
    "mysql": "at least once, at most once, and effectively once for effects in the same database (complete_in)",
}
_KINDS: Final = {
    "rediss": "redis",
    "valkey": "redis",
    "valkeys": "redis",
    "postgres": "postgresql",
    "mariadb": "mysql",
}
_SEVERITY: Final = ("ok", "info", "warn", "fail")  # in ascending order
_CONCLUSIONS: Final = {  # by the worst verdict
    "ok": "{}",
    "info": "{}",
    "warn": "{}; the warnings above can break them",
    "fail": "none, until the failures above are corrected; then {}",
}
_OWN_OPTIONS: Final = frozenset({"table", "deadline", "pool_size", "prepare_threshold"})  # not PostgreSQL's
_SECONDS: Final = 2.0  # to wait for each answer of a server


def examine(store: SyncStore, url: str) -> Iterator[Finding]:
    """
    Check *store*, which `open_sync_store` opened from *url*.

    Raises:
        StoreError: The store did not answer.
    """
    worst = "ok"
    parts = parse_store_url(url)
    for finding in chain(probe(store), principals(store), _settings(parts)):
        yield finding
        worst = max(worst, finding.verdict, key=_SEVERITY.index)
    yield Finding("promises", "info", _CONCLUSIONS[worst].format(_PROMISES[_kind(parts)]))


def _kind(parts: StoreURL) -> str:
    scheme = parts.scheme.partition("+")[0]
    return _KINDS.get(scheme, scheme)


def _settings(parts: StoreURL) -> Iterator[Finding]:
    options = dict(parts.query)
    driver = parts.scheme.partition("+")[2]
    if _kind(parts) == "mysql" or (driver and _kind(parts) in {"sqlite", "postgresql"}):
        yield Finding(
            "durability",
            "info",
            "not examined over SQLAlchemy; a commit should be on disk when it returns "
            "(innodb_flush_log_at_trx_commit=1, synchronous_commit=on, synchronous=FULL)",
        )
        return
    match _kind(parts):
        case "memory":
            yield Finding(
                "durability", "info", "records end with the process, and no other process sees them"
            )
        case "sqlite":
            path = unquote(parts.path.removeprefix("/"))
            yield from sqlite_settings(path, synchronous=options.get("synchronous", "FULL"))
        case "dynamodb":
            yield Finding(
                "clock",
                "info",
                "the callers' clocks measure leases, since DynamoDB has no clock for them: max_clock_skew must be the "
                "same for all callers; this machine's clock agrees with the server's",
            )
        case "redis":
            yield from _redis(parts, int(options.get("wait_replicas", 0)))
        case "postgresql":
            yield from _postgres(parts, options.get("table", "idempotency_record"))


def _redis(parts: StoreURL, wait_replicas: int) -> Iterator[Finding]:
    from redis.exceptions import RedisError

    try:
        for client in redis_primaries(parts, timeout=_SECONDS):
            with closing(client):
                yield from redis_settings(client, wait_replicas=wait_replicas)
    except (RedisError, StoreError) as error:  # the store works, but its user may not read settings
        yield _unread(error)


def _postgres(parts: StoreURL, table: str) -> Iterator[Finding]:
    import psycopg

    try:
        with psycopg.connect(
            postgres_conninfo(parts, without=_OWN_OPTIONS) or "",
            autocommit=True,
            connect_timeout=int(_SECONDS),
        ) as connection:
            yield from postgres_settings(connection, table=table)
    except psycopg.Error as error:
        yield _unread(error)


def _unread(error: Exception) -> Finding:
    return Finding("settings", "warn", f"cannot be read ({type(error).__name__}); look at the server itself")
