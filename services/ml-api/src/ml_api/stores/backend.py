"""Opens the store of recorded answers: Redis if it is enabled, else a SQLite file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from idempotency import Store, StoreError
from ml_api import Unusable
from ml_api.observability.metrics import Metrics
from ml_api.settings import PREFIX, Settings
from ml_api.stores.legacy import adopt
from ml_api.stores.redis_monitor import PROBE, RedisMonitor

__all__ = ["Backend", "StoreUnusable", "check_store", "open_backend"]


class StoreUnusable(Unusable):
    """The store cannot be used with these settings; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Backend:
    """
    The store, and the monitor that checks it.

    Attributes:
        monitor: None for SQLite, which is always there.
    """

    kind: Literal["redis", "sqlite"]
    store: Store
    monitor: RedisMonitor | None = None

    @property
    def up(self) -> bool | None:
        """Whether the store answered the last check; None before the first check."""
        return self.monitor.up if self.monitor is not None else True


def open_backend(settings: Settings, metrics: Metrics) -> Backend:
    """
    Make the store of *settings*, without connecting yet.

    Raises:
        StoreUnusable: The SQLite file cannot be made, or the Redis URL is malformed.
    """
    if settings.redis is None:
        return Backend("sqlite", _open_sqlite(settings))
    return _open_redis(settings.redis, settings.store_deadline, metrics)


async def check_store(settings: Settings, metrics: Metrics) -> tuple[bool, str]:
    """
    Call the store once, before the service starts.

    Returns:
        Whether it answered, and a sentence about it. The service starts also if Redis is away, and keeps trying.
    Raises:
        StoreUnusable: Waiting would not help: the path cannot be written, or the password is wrong.
    """
    backend = open_backend(settings, metrics)
    try:
        await backend.store.get(PROBE)
    except StoreError as error:
        if backend.kind == "sqlite":
            raise StoreUnusable(f"{PREFIX}STORE_PATH={settings.store_path}: {error}") from error
        if _is_refusal(error):
            raise StoreUnusable(f"Redis refuses this service: {error}; check {PREFIX}REDIS_*") from error
        return False, f"Redis is not reachable yet: {error}"
    finally:
        await backend.store.aclose()
    usable = "Redis answers" if backend.kind == "redis" else f"SQLite file {settings.store_path} is usable"
    return True, usable


def _open_redis(url: str, deadline: float, metrics: Metrics) -> Backend:
    from idempotency.stores.url import open_store

    try:
        store = open_store(f"{url}{'&' if '?' in url else '?'}deadline={deadline:g}", adopt=adopt)
    except ValueError as error:
        raise StoreUnusable(f"{PREFIX}REDIS_URL cannot be used: {error}") from error
    return Backend("redis", store, RedisMonitor(store, metrics))


def _is_refusal(error: StoreError) -> bool:
    """Whether Redis refuses the password, the user or the number of the database."""
    from redis.exceptions import AuthenticationError, NoPermissionError

    cause = error.__cause__
    return isinstance(cause, AuthenticationError | NoPermissionError) or "DB index" in str(cause)


def _open_sqlite(settings: Settings) -> Store:
    from idempotency.stores.sqlite import SQLiteStore

    path = settings.store_path.expanduser()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The file contains answers, so only its owner may read it, whatever the umask.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreUnusable(f"{PREFIX}STORE_PATH={path} cannot be written: {error.strerror}") from error
    try:
        return SQLiteStore(path)
    except StoreError as error:
        raise StoreUnusable(f"{PREFIX}STORE_PATH={path} cannot be used: {error}") from error
