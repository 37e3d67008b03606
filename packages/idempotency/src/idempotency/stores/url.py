"""
A store from one line of configuration.

    memory:                                              options: max_records
    sqlite:///relative.db  sqlite:////absolute.db        table, busy_timeout, synchronous
    redis://user:password@host:6379/0  rediss:// (TLS)   prefix, deadline, wait_replicas, on_eviction
    redis+sentinel://host:26379,host:26379/service/0     the same, sentinel_username, sentinel_password
    redis+cluster://host:6379,host:6379                  the same as redis://
    postgresql://user:password@host/database             table, deadline, pool_size, prepare_threshold, and libpq's own

Options are query parameters. `rediss+sentinel` and `rediss+cluster` use TLS, and every `rediss` scheme takes
ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_cert_reqs and ssl_check_hostname.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from idempotency.store import Store, SyncStore

__all__ = ["open_store", "open_sync_store"]


def open_store(url: str, *, adopt: Callable[[bytes], bytes | None] | None = None) -> Store:
    """
    The store that *url* names; nothing is connected yet. `aclose` closes everything it opens.

    Args:
        adopt: See `RedisStore`; for its schemes alone.
    Raises:
        ValueError: An unknown scheme or option, or a value that cannot be read. No password is ever quoted.
        ImportError: The driver is not installed; the message names the extra.

    >>> type(open_store("memory:?max_records=500")).__name__
    'MemoryStore'
    """
    store: Store = _open(url, sync=False, adopt=adopt)
    return store


def open_sync_store(url: str) -> SyncStore:
    """
    See `open_store`; for callers without an event loop.

    A cluster is asked for its slots at once, so `StoreUnavailable` may be raised here already.
    """
    store: SyncStore = _open(url, sync=True)
    return store


class _Parts(NamedTuple):
    url: str
    scheme: str
    user: str | None
    password: str | None
    hosts: tuple[tuple[str, int | None], ...]
    path: str
    query: tuple[tuple[str, str], ...]


def _open(url: str, *, sync: bool, adopt: Callable[[bytes], bytes | None] | None = None) -> Any:
    parts = _split(url)
    opener = _OPENERS.get(parts.scheme)
    if opener is None:
        raise ValueError(f"unknown store scheme {parts.scheme!r}; there are {', '.join(_OPENERS)}")
    extra = {"adopt": adopt} if adopt is not None else {}
    if extra and opener is not _open_redis:
        raise ValueError(f"a {parts.scheme}: store adopts nothing; only Redis holds values of others")
    try:
        return opener(parts, sync, **extra)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise ImportError(f"a {parts.scheme}: store needs asgi-idempotency[{_EXTRAS[error.name]}]") from error


_EXTRAS = {"redis": "redis", "hiredis": "redis", "psycopg": "postgres", "psycopg_pool": "postgres"}


def _split(url: str) -> _Parts:
    split = urlsplit(url)
    user_info, _, hosts = split.netloc.rpartition("@")
    user, colon, password = user_info.partition(":")
    try:
        query = tuple(parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query)))
        return _Parts(
            url,
            split.scheme,
            unquote(user) or None,
            unquote(password) if colon else None,
            tuple(map(_host, hosts.split(","))) if hosts else (),
            split.path,
            query,
        )
    except ValueError:
        # From nothing: the error that was met here may quote a password.
        raise ValueError(
            f"this {split.scheme}: URL cannot be read; check its hosts, ports and options"
        ) from None


def _host(text: str) -> tuple[str, int | None]:
    bracketed = text.startswith("[")  # an IPv6 address
    host, _, port = text[1:].partition("]") if bracketed else text.partition(":")
    port = port.removeprefix(":") if bracketed else port
    return unquote(host), int(port) if port else None


def _options(parts: _Parts, readers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parts.query:
        if name not in readers:
            known = ", ".join(sorted(readers))
            raise ValueError(f"unknown option {name!r} for a {parts.scheme}: store; there are {known}")
        try:
            options[name] = readers[name](value)
        except ValueError:
            raise ValueError(f"option {name!r} of a {parts.scheme}: store cannot be read") from None
    return options


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in allowed:
            raise ValueError
        return value

    return read


def _flag(value: str) -> bool:
    return _one_of("true", "false")(value) == "true"


def _open_memory(parts: _Parts, sync: bool) -> Any:
    from idempotency.stores.memory import MemoryStore, SyncMemoryStore

    if parts.hosts or parts.path:
        _refuse(parts, "takes neither a host nor a path")
    options = _options(parts, {"max_records": int})
    return (SyncMemoryStore if sync else MemoryStore)(**options)


def _open_sqlite(parts: _Parts, sync: bool) -> Any:
    from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore

    path = unquote(parts.path.removeprefix("/"))
    if parts.hosts or not path:
        _refuse(parts, "takes a path and no host: sqlite:///relative.db or sqlite:////absolute.db")
    options = _options(parts, {"table": str, "busy_timeout": float, "synchronous": str})
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


def _open_redis(parts: _Parts, sync: bool, **extra: Any) -> Any:
    from idempotency.stores.redis import RedisStore, SyncRedisStore

    kind = parts.scheme.partition("+")[2]
    tls = parts.scheme.startswith("rediss")
    readers = (
        _REDIS_OPTIONS | (_TLS_OPTIONS if tls else {}) | (_SENTINEL_OPTIONS if kind == "sentinel" else {})
    )
    options = _options(parts, readers)
    ours = {name: options.pop(name) for name in _REDIS_OPTIONS if name in options}
    deadline = ours.get("deadline", 1.0)
    # What the client itself does, finding the primary or the slots, must fit into a call as well.
    client_options = options | {
        "username": parts.user,
        "password": parts.password,
        "socket_timeout": deadline / 2,
        "socket_connect_timeout": deadline / 2,
    }
    if tls:
        client_options["ssl"] = True
    client = _REDIS_CLIENTS[kind](parts, client_options, sync)
    return (SyncRedisStore if sync else RedisStore)(client, owns_client=True, **ours, **extra)


def _node(parts: _Parts, options: dict[str, Any], sync: bool) -> Any:
    import redis
    import redis.asyncio

    if len(parts.hosts) != 1:
        _refuse(parts, "takes one host; for several use redis+sentinel or redis+cluster")
    ((host, port),) = parts.hosts
    database = _number(parts, parts.path.removeprefix("/"))
    return (redis if sync else redis.asyncio).Redis(host=host, port=port or 6379, db=database, **options)


def _sentinel(parts: _Parts, options: dict[str, Any], sync: bool) -> Any:
    import redis
    import redis.asyncio
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    service, _, database = parts.path.removeprefix("/").partition("/")
    if not parts.hosts or not service:
        _refuse(parts, "takes hosts and the name of the service: redis+sentinel://host:26379/service/0")
    guard = {
        "username": options.pop("sentinel_username", None),
        "password": options.pop("sentinel_password", None),
        "socket_timeout": options["socket_timeout"] / len(parts.hosts),  # the next must still have its turn
        "socket_connect_timeout": options["socket_timeout"] / len(parts.hosts),
        "retry": (Retry if sync else AsyncRetry)(NoBackoff(), 0),
    }
    # Who answers for a Sentinel says where the claims go: it has to show who it is, like the primary.
    guard |= {name: value for name, value in options.items() if name == "ssl" or name in _TLS_OPTIONS}
    hosts = [(host, port or 26379) for host, port in parts.hosts]
    sentinel = (redis if sync else redis.asyncio).Sentinel(hosts, sentinel_kwargs=guard)
    return sentinel.master_for(unquote(service), db=_number(parts, database), **options)


def _cluster(parts: _Parts, options: dict[str, Any], sync: bool) -> Any:
    import redis.asyncio.cluster
    import redis.cluster
    from redis.exceptions import RedisClusterException, RedisError

    from idempotency.stores.redis.errors import meaning_of

    if not parts.hosts:
        _refuse(parts, "takes one or more hosts")
    driver = redis.cluster if sync else redis.asyncio.cluster
    nodes = [driver.ClusterNode(host, port or 6379) for host, port in parts.hosts]
    try:
        return driver.RedisCluster(startup_nodes=nodes, **options)
    except (
        RedisError,
        RedisClusterException,
    ) as error:  # the one that is not async asks for the slots at once
        raise meaning_of(error) from error


_REDIS_CLIENTS = {"": _node, "sentinel": _sentinel, "cluster": _cluster}


def _open_postgres(parts: _Parts, sync: bool) -> Any:
    import psycopg
    from psycopg.conninfo import make_conninfo
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

    from idempotency.stores.postgres import PostgresStore, SyncPostgresStore

    readers: dict[str, Callable[[str], Any]] = {
        "table": str,
        "deadline": float,
        "pool_size": int,
        "prepare_threshold": lambda text: None if text == "none" else int(text),
    }
    options = _options(
        parts._replace(query=tuple(pair for pair in parts.query if pair[0] in readers)), readers
    )
    rest = urlencode([pair for pair in parts.query if pair[0] not in readers])
    split = urlsplit(parts.url)
    try:  # by hand: urlunsplit drops the slashes where there is no host, as with a socket
        conninfo = make_conninfo(f"{split.scheme}://{split.netloc}{split.path}?{rest}")
    except psycopg.ProgrammingError:
        names = ", ".join(sorted(readers))
        _refuse(parts, f"has an option that is neither {names}, nor one of libpq's")
    size = options.pop("pool_size", 8)
    prepare = {name: options.pop(name) for name in {"prepare_threshold"} & options.keys()}
    pool: Any = (ConnectionPool if sync else AsyncConnectionPool)(
        conninfo, min_size=1, max_size=size, open=False, kwargs=prepare
    )
    return (SyncPostgresStore if sync else PostgresStore)(pool, owns_pool=True, **options)


def _number(parts: _Parts, text: str) -> int:
    if text and not text.isdecimal():
        _refuse(parts, "ends with the number of a database, 0 by default")
    return int(text or 0)


def _refuse(parts: _Parts, reason: str) -> NoReturn:
    raise ValueError(f"a {parts.scheme}: store {reason}") from None


_OPENERS: dict[str, Callable[..., Any]] = {
    "memory": _open_memory,
    "sqlite": _open_sqlite,
    "redis": _open_redis,
    "rediss": _open_redis,
    "redis+sentinel": _open_redis,
    "rediss+sentinel": _open_redis,
    "redis+cluster": _open_redis,
    "rediss+cluster": _open_redis,
    "postgresql": _open_postgres,
}
