"""What `idempotency doctor` looks at: whether a store keeps its rules, how its server is set, what can be promised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from idempotency.doctor.finding import Finding
from idempotency.doctor.probe import probe
from idempotency.doctor.settings import postgres_settings, redis_settings, sqlite_settings
from idempotency.store import SyncStore

__all__ = ["Finding", "examine"]

_PROMISES: Final = {
    "memory": "at least once or at most once, among the requests that one process serves while it lives",
    "sqlite": "at least once, at most once, and effectively once for effects in the same file (complete_in)",
    "redis": "at least once or at most once, while no record is lost to eviction, a crash or a failover",
    "postgresql": "at least once, at most once, and effectively once for effects in the same database (complete_in)",
}
_GRAVITY: Final = ("ok", "info", "warn", "fail")
_AT_WORST: Final = {
    "ok": "{}",
    "info": "{}",
    "warn": "{}; what is warned of above can break them",
    "fail": "none that can be relied on before what failed above is put right; then {}",
}
_OURS: Final = frozenset({"prefix", "deadline", "wait_replicas", "on_eviction", "table", "pool_size"})
_SENTINELS_OWN: Final = frozenset({"sentinel_username", "sentinel_password"})
_SECONDS: Final = 2.0  # for each answer of a server


def examine(store: SyncStore, url: str) -> Iterator[Finding]:
    """
    Everything that can be found out about *store*, which `open_sync_store` opened from *url*.

    Raises:
        StoreError: The store did not answer.
    """
    worst = "ok"
    for finding in chain(probe(store), _settings(url)):
        yield finding
        worst = max(worst, finding.verdict, key=_GRAVITY.index)
    yield Finding("promises", "info", _AT_WORST[worst].format(_PROMISES[_kind(url)]))


def _kind(url: str) -> str:
    scheme = urlsplit(url).scheme.partition("+")[0]
    return {"rediss": "redis", "postgres": "postgresql"}.get(scheme, scheme)


def _settings(url: str) -> Iterator[Finding]:
    options = dict(parse_qsl(urlsplit(url).query))
    match _kind(url):
        case "memory":
            yield Finding("durability", "info", "nothing survives the process, and no other process sees it")
        case "sqlite":
            path = unquote(urlsplit(url).path.removeprefix("/"))
            yield from sqlite_settings(path, synchronous=options.get("synchronous", "FULL"))
        case "redis":
            yield from _redis(url, int(options.get("wait_replicas", 0)))
        case "postgresql":
            yield from _postgres(url, options.get("table", "idempotency_record"))


def _redis(url: str, wait_replicas: int) -> Iterator[Finding]:
    from redis.exceptions import RedisError

    try:
        for client in _redis_primaries(url):
            with client:
                yield from redis_settings(client, wait_replicas=wait_replicas)
    except RedisError as error:  # the store works: its user may do less than ours would have to
        yield Finding(
            "settings", "warn", f"not to be read ({type(error).__name__}); look at the server itself"
        )


def _redis_primaries(url: str) -> list[Any]:
    """A client for every server that takes writes."""
    import redis

    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    user, at, hosts = parts.netloc.rpartition("@")
    options = dict(parse_qsl(parts.query))
    tls = urlencode({name: value for name, value in options.items() if name not in _OURS | _SENTINELS_OWN})
    waits = {"socket_timeout": _SECONDS, "socket_connect_timeout": _SECONDS}

    def server(place: str, path: str = "", **more: Any) -> Any:
        return redis.Redis.from_url(urlunsplit((scheme, place, path, tls, "")), **waits, **more)

    if kind == "cluster":
        first = urlunsplit((scheme, user + at + hosts.partition(",")[0], "", tls, ""))
        cluster: Any = redis.RedisCluster.from_url(first, **waits)
        with closing(cluster):
            return [server(f"{user}{at}{node.host}:{node.port}") for node in cluster.get_primaries()]
    if kind == "sentinel":
        service, _, database = parts.path.removeprefix("/").partition("/")
        with server(
            hosts.partition(",")[0],
            decode_responses=True,
            username=options.get("sentinel_username"),
            password=options.get("sentinel_password"),
        ) as sentinel:
            address = sentinel.sentinel_get_master_addr_by_name(unquote(service))
        if address is None:
            raise redis.exceptions.RedisError("the first Sentinel knows no primary")
        return [server(f"{user}{at}{address[0]}:{address[1]}", f"/{database or 0}")]
    return [server(parts.netloc, parts.path)]


def _postgres(url: str, table: str) -> Iterator[Finding]:
    import psycopg

    parts = urlsplit(url)
    libpqs = urlencode([pair for pair in parse_qsl(parts.query) if pair[0] not in _OURS])
    try:
        with psycopg.connect(
            urlunsplit(parts._replace(query=libpqs)), autocommit=True, connect_timeout=int(_SECONDS)
        ) as connection:
            yield from postgres_settings(connection, table=table)
    except psycopg.Error as error:
        yield Finding(
            "settings", "warn", f"not to be read ({type(error).__name__}); look at the server itself"
        )
