"""
Opens a store from its URL, so that one line of configuration selects the store.

    memory:                                              options: max_records
    sqlite:///relative.db  sqlite:////absolute.db        table, busy_timeout, synchronous
    redis://user:password@host:6379/0  rediss:// (TLS)   prefix, deadline, wait_replicas, on_eviction
    redis+sentinel://host:26379,host:26379/service/0     the same, sentinel_username, sentinel_password
    redis+cluster://host:6379,host:6379                  the same as redis://
    postgresql://user:password@host/database             table, deadline, pool_size, prepare_threshold, and libpq's own
    mysql://user:password@host/database                  table, deadline, pool_size, and the driver's own
    postgresql+asyncpg://...  sqlite+aiosqlite:///...    the same, over SQLAlchemy and that driver
    dynamodb://table                                     region, endpoint, deadline, max_clock_skew

`postgres` is `postgresql`, and `valkey` is `redis` in every scheme. `mysql` and `mariadb` take a driver too
(`mysql+asyncmy`); of a pair such as asyncmy and PyMySQL, an async store uses the async driver and a sync store the
other one.

Options are query parameters. `rediss+sentinel` and `rediss+cluster` use TLS, and every `rediss` scheme takes
ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_cert_reqs and ssl_check_hostname.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import closing
from typing import Any
from urllib.parse import unquote

from idempotency._runtime.extras import missing
from idempotency.store import ManagedStore, SyncManagedStore
from idempotency.stores.parse_url import StoreURL, parse_store_url, read_options, refuse

__all__ = ["open_store", "open_sync_store", "postgres_conninfo", "redis_primaries"]


def open_store(url: str, *, adopt: Callable[[bytes], bytes | None] | None = None) -> ManagedStore:
    """
    The store that *url* names, not connected yet. Its `aclose` closes everything that it opens.

    Args:
        adopt: See `RedisStore`; only for URLs of Redis stores.
    Raises:
        ValueError: An unknown scheme or option, or a value that cannot be read. The error never quotes a password.
        ImportError: The driver is not installed; the message names the extra.

    >>> type(open_store("memory:?max_records=500")).__name__
    'MemoryStore'
    """
    store: ManagedStore = _open(url, sync=False, adopt=adopt)
    return store


def open_sync_store(url: str) -> SyncManagedStore:
    """
    `open_store` for callers without an event loop.

    For a Redis Cluster it reads the slots at once, so it may raise `StoreUnavailable`.
    """
    store: SyncManagedStore = _open(url, sync=True)
    return store


def _open(url: str, *, sync: bool, adopt: Callable[[bytes], bytes | None] | None = None) -> Any:
    parts = parse_store_url(url)
    opener = _opener(parts.scheme)
    if opener is None:
        # A scheme before "://" contains no password, but before a colon alone it may: "user:secret@host".
        shown = f" {parts.scheme!r}" if url.lower().startswith(f"{parts.scheme}://") and parts.scheme else ""
        raise ValueError(f"unknown store scheme{shown}; there are {', '.join(_OPENERS)}")
    extra = {"adopt": adopt} if adopt is not None else {}
    if extra and opener is not _open_redis:
        raise ValueError(
            f"a {parts.scheme}: store does not take adopt; pass it only with the URL of a Redis store"
        )
    try:
        return opener(parts, sync, **extra)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise missing(_EXTRAS[error.name], f"a {parts.scheme}: store", error) from error


_EXTRAS = {
    "redis": "redis",
    "hiredis": "redis",
    "psycopg": "postgres",
    "psycopg_pool": "postgres",
    "sqlalchemy": "sqlalchemy",
    "boto3": "dynamodb",
    "botocore": "dynamodb",
}


def _opener(scheme: str) -> Callable[..., Any] | None:
    dialect, plus, _ = scheme.partition("+")
    if dialect in {"mysql", "mariadb"} or (plus and dialect in {"postgresql", "sqlite"}):
        return _open_sqlalchemy
    return _OPENERS.get(scheme)


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in allowed:
            raise ValueError
        return value

    return read


def _flag(value: str) -> bool:
    return _one_of("true", "false")(value) == "true"


def _open_memory(parts: StoreURL, sync: bool) -> Any:
    from idempotency.stores.memory import MemoryStore, SyncMemoryStore

    if parts.hosts or parts.path:
        refuse(parts, "takes neither a host nor a path")
    options = read_options(parts, {"max_records": int})
    return (SyncMemoryStore if sync else MemoryStore)(**options)


def _open_sqlite(parts: StoreURL, sync: bool) -> Any:
    from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore

    path = unquote(parts.path.removeprefix("/"))
    if parts.hosts or not path:
        refuse(parts, "takes a path and no host: sqlite:///relative.db or sqlite:////absolute.db")
    options = read_options(parts, {"table": str, "busy_timeout": float, "synchronous": str})
    return (SyncSQLiteStore if sync else SQLiteStore)(path, **options)


_REDIS_OPTIONS: dict[str, Callable[[str], Any]] = {
    "prefix": str,
    "deadline": float,
    "wait_replicas": int,
    "on_eviction": _one_of("warn", "refuse"),
}
_TLS_OPTIONS: dict[str, Callable[[str], Any]] = {
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": _one_of("required", "optional", "none"),
    "ssl_check_hostname": _flag,
}
_SENTINEL_OPTIONS: dict[str, Callable[[str], Any]] = {"sentinel_username": str, "sentinel_password": str}


def _open_redis(parts: StoreURL, sync: bool, **extra: Any) -> Any:
    from idempotency.stores.redis import RedisStore, SyncRedisStore

    options = _redis_options(parts)
    ours = {name: options.pop(name) for name in _REDIS_OPTIONS if name in options}
    client = _redis_client(parts, options, sync, timeout=ours.get("deadline", 1.0) / 2)
    return (SyncRedisStore if sync else RedisStore)(client, owns_client=True, **ours, **extra)


def _redis_options(parts: StoreURL) -> dict[str, Any]:
    tls, sentinel = parts.scheme.startswith("rediss"), parts.scheme.endswith("+sentinel")
    return read_options(
        parts, _REDIS_OPTIONS | (_TLS_OPTIONS if tls else {}) | (_SENTINEL_OPTIONS if sentinel else {})
    )


def _redis_client(parts: StoreURL, options: dict[str, Any], sync: bool, *, timeout: float) -> Any:
    # The client's own work, such as finding the primary or the slots, must also fit into the deadline of a call.
    options = options | {
        "username": parts.user,
        "password": parts.password,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
    }
    if parts.scheme.startswith("rediss"):
        options["ssl"] = True
    return _REDIS_CLIENTS[parts.scheme.partition("+")[2]](parts, options, sync)


def redis_primaries(parts: StoreURL, *, timeout: float) -> list[Any]:
    """
    A blocking client for every primary server of *parts*, for the doctor.

    Args:
        timeout: Seconds for each answer.
    Raises:
        redis.exceptions.RedisError, StoreError: A server did not answer.
    """
    options = {name: value for name, value in _redis_options(parts).items() if name not in _REDIS_OPTIONS}
    client = _redis_client(parts, dict(options), True, timeout=timeout)
    if not parts.scheme.endswith("+cluster"):
        return [client]
    with closing(client):
        nodes = tuple((node.host, node.port) for node in client.get_primaries())
    single = parts._replace(scheme=parts.scheme.partition("+")[0], path="")
    return [
        _redis_client(single._replace(hosts=(node,)), dict(options), True, timeout=timeout) for node in nodes
    ]


def _node(parts: StoreURL, options: dict[str, Any], sync: bool) -> Any:
    import redis
    import redis.asyncio

    if len(parts.hosts) != 1:
        refuse(parts, "takes one host; for several use redis+sentinel or redis+cluster")
    ((host, port),) = parts.hosts
    database = _number(parts, parts.path.removeprefix("/"))
    return (redis if sync else redis.asyncio).Redis(host=host, port=port or 6379, db=database, **options)


def _sentinel(parts: StoreURL, options: dict[str, Any], sync: bool) -> Any:
    import redis
    import redis.asyncio
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    service, _, database = parts.path.removeprefix("/").partition("/")
    if not parts.hosts or not service:
        refuse(parts, "takes hosts and the name of the service: redis+sentinel://host:26379/service/0")
    timeout = options["socket_timeout"] / len(parts.hosts)  # leaves time to ask the next Sentinel
    guard = {
        "username": options.pop("sentinel_username", None),
        "password": options.pop("sentinel_password", None),
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": (Retry if sync else AsyncRetry)(NoBackoff(), 0),
    }
    # A Sentinel says where the primary is, so its certificate is verified like the primary's.
    guard |= {name: value for name, value in options.items() if name == "ssl" or name in _TLS_OPTIONS}
    hosts = [(host, port or 26379) for host, port in parts.hosts]
    sentinel = (redis if sync else redis.asyncio).Sentinel(hosts, sentinel_kwargs=guard)
    return sentinel.master_for(unquote(service), db=_number(parts, database), **options)


def _cluster(parts: StoreURL, options: dict[str, Any], sync: bool) -> Any:
    import redis.asyncio.cluster
    import redis.cluster
    from redis.exceptions import RedisClusterException, RedisError

    from idempotency.stores.redis.errors import to_store_error

    if not parts.hosts:
        refuse(parts, "takes one or more hosts")
    driver = redis.cluster if sync else redis.asyncio.cluster
    nodes = [driver.ClusterNode(host, port or 6379) for host, port in parts.hosts]
    try:
        return driver.RedisCluster(startup_nodes=nodes, **options)
    except (RedisError, RedisClusterException) as error:  # the sync client reads the slots at once
        raise to_store_error(error) from error


_REDIS_CLIENTS = {"": _node, "sentinel": _sentinel, "cluster": _cluster}


def _open_postgres(parts: StoreURL, sync: bool) -> Any:
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

    from idempotency.stores.postgres import PostgresStore, SyncPostgresStore

    readers: dict[str, Callable[[str], Any]] = {
        "table": str,
        "deadline": float,
        "pool_size": int,
        "prepare_threshold": lambda text: None if text == "none" else int(text),
    }
    options = read_options(
        parts._replace(query=tuple(pair for pair in parts.query if pair[0] in readers)), readers
    )
    conninfo = postgres_conninfo(parts, without=readers)
    if conninfo is None:
        refuse(parts, f"has an option that is neither {', '.join(sorted(readers))}, nor one of libpq's")
    size = options.pop("pool_size", 8)
    prepare = {name: options.pop(name) for name in {"prepare_threshold"} & options.keys()}
    pool: Any = (ConnectionPool if sync else AsyncConnectionPool)(
        conninfo, min_size=1, max_size=size, open=False, kwargs=prepare
    )
    return (SyncPostgresStore if sync else PostgresStore)(pool, owns_pool=True, **options)


def postgres_conninfo(parts: StoreURL, *, without: Collection[str]) -> str | None:
    """
    The connection string in libpq's keywords, because libpq reads unusual passwords in a URL differently.

    Args:
        without: Options of this library, which libpq does not get.
    Returns:
        None if libpq does not know one of the other options.
    """
    import psycopg
    from psycopg.conninfo import make_conninfo

    keywords: dict[str, Any] = {"user": parts.user, "password": parts.password}
    if parts.hosts:
        keywords["host"] = ",".join(host for host, _ in parts.hosts)
        if any(port is not None for _, port in parts.hosts):
            keywords["port"] = ",".join("" if port is None else str(port) for _, port in parts.hosts)
    keywords["dbname"] = unquote(parts.path.removeprefix("/")) or None
    keywords |= {name: value for name, value in parts.query if name not in without}
    try:
        return make_conninfo(**{name: value for name, value in keywords.items() if value is not None})
    except psycopg.ProgrammingError:
        return None


def _open_sqlalchemy(parts: StoreURL, sync: bool) -> Any:
    from idempotency.stores.sqlalchemy.url import open_sqlalchemy

    return open_sqlalchemy(parts, sync)


def _open_dynamodb(parts: StoreURL, sync: bool) -> Any:
    from idempotency.stores.dynamodb.url import open_dynamodb

    return open_dynamodb(parts, sync)


def _number(parts: StoreURL, text: str) -> int:
    if text and not text.isdecimal():
        refuse(parts, "ends with the number of a database, 0 by default")
    return int(text or 0)


_OPENERS: dict[str, Callable[..., Any]] = {
    "memory": _open_memory,
    "sqlite": _open_sqlite,
    "redis": _open_redis,
    "rediss": _open_redis,
    "redis+sentinel": _open_redis,
    "rediss+sentinel": _open_redis,
    "redis+cluster": _open_redis,
    "rediss+cluster": _open_redis,
    "valkey": _open_redis,
    "valkeys": _open_redis,
    "valkey+sentinel": _open_redis,
    "valkeys+sentinel": _open_redis,
    "valkey+cluster": _open_redis,
    "valkeys+cluster": _open_redis,
    "postgresql": _open_postgres,
    "postgres": _open_postgres,
    "mysql": _open_sqlalchemy,
    "mariadb": _open_sqlalchemy,
    "dynamodb": _open_dynamodb,
}
