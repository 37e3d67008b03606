"""`SyncRedisStore`: the Redis store for callers without an event loop. The rules, layout and errors are the same."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

import redis
from redis import exceptions as failures
from redis.backoff import NoBackoff
from redis.retry import Retry

from idempotency._core.errors import CorruptRecord, StoreUnavailable, UnknownRecordVersion
from idempotency._core.types import Acquired, Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency._fork import forget_in_child
from idempotency.store import Page
from idempotency.stores.redis import records
from idempotency.stores.redis.errors import closed, is_gone, meaning_of, unreachable
from idempotency.stores.redis.records import Adopt, Command, pack
from idempotency.stores.redis.routes import Route, route_of_node, route_of_pool, sentinels_of
from idempotency.stores.redis.settings import (
    Answer,
    OnEviction,
    Settings,
    judge_eviction,
    too_few_copies,
    wait_command,
)

__all__ = ["SyncRedisStore"]

_REDIRECTS = 5


class SyncRedisStore:
    """
    A store for many processes and threads.

    Args:
        client: `redis.Redis` (also from `Sentinel.master_for`) or `redis.RedisCluster`. The store opens connections
            of its own, one for each thread that is in a call, and keeps them.
        prefix: See `RedisStore`.
        deadline: See `RedisStore`. A server that stalls in the midst of a reply may take as long again.
        wait_replicas: See `RedisStore`.
        on_eviction: See `RedisStore`.
        adopt: See `RedisStore`.
        owns_client: Whether `close` closes *client* too.

    Atomic: one script per call. Safe from any thread, and after a fork.
    """

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster,
        *,
        prefix: str = "idempotency:",
        deadline: float = 1.0,
        wait_replicas: int = 0,
        on_eviction: OnEviction = "warn",
        adopt: Adopt | None = None,
        owns_client: bool = False,
    ) -> None:
        self._client: Any = client
        self._prefix = prefix
        self._adopt = adopt
        self._owns_client = owns_client
        self._settings = Settings.checked(deadline, wait_replicas, on_eviction)
        self._ours = {
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": deadline,
            "socket_connect_timeout": deadline,
        }
        self._only: Route | None = None
        if not isinstance(client, redis.RedisCluster):
            self._only = route_of_pool(client.connection_pool, **self._ours)
        self._sockets: dict[Hashable, _Sockets] = {}
        self._renew_lock()
        forget_in_child(self, SyncRedisStore._renew_lock)
        self._closed = False
        self._has_stalled = False  # a node of the cluster

    def acquire(
        self,
        key: StorageKey,
        *,
        fingerprint: Fingerprint,
        owner: Owner,
        lease: float,
        retention: float,
        takeover: bool = True,
    ) -> Reply:
        """See `Store.acquire`. 1 round trip."""
        command = records.acquire(self._name(key), fingerprint, owner, lease, retention, takeover)
        end = self._end()
        answer = self._call(command, end)
        reply = records.read_acquired(answer.reply, key, fingerprint, owner, self._adopt)
        if isinstance(reply, Acquired):
            self._confirm(answer, end, reply.claim)
        return reply

    def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`. 1 round trip."""
        return self._write(records.renew(self._name(claim.key), claim.owner, lease))

    def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`. 1 round trip. Raises `ValueError` if *outcome* is not a JSON object."""
        return self._write(records.complete(self._name(claim.key), claim.owner, outcome, retention))

    def release(self, claim: Claim) -> bool:
        """See `Store.release`. 1 round trip."""
        return self._write(records.release(self._name(claim.key), claim.owner))

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`. An adopted value has an empty owner and fingerprint. 1 round trip."""
        return records.read_record(
            self._call(records.get(self._name(key)), self._end()).reply, key, self._adopt
        )

    def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`."""
        return self._write(records.forget(self._name(key)))

    def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `RedisStore.scan`."""
        places = self._places()
        at, position = records.read_cursor(cursor, len(places))
        next_position, names = self._call(
            records.scan(self._prefix, position, limit), self._end(), places[at]
        ).reply
        keys = [StorageKey(name.decode()[len(self._prefix) :]) for name in names]
        seen = map(self._get_or_none, keys)
        return Page(
            tuple(record for record in seen if record is not None),
            records.write_cursor(at, next_position, len(places)),
        )

    def close(self) -> None:
        """
        Close the store's own connections; the client stays open unless the store owns it.

        A call under way ends first, and its connection with it. Every later call raises `StoreUnavailable`.
        """
        with self._lock:
            self._closed = True
            sockets, self._sockets = self._sockets, {}
        for each in sockets.values():
            each.close()
        if self._owns_client:
            for client in (self._client, *sentinels_of(self._client)):
                client.close()

    def _renew_lock(self) -> None:
        """In a forked child: a thread that only the parent has may have held the lock."""
        self._lock = threading.Lock()

    def _name(self, key: StorageKey) -> bytes:
        return (self._prefix + key).encode()

    def _write(self, command: Command) -> bool:
        end = self._end()
        answer = self._call(command, end)
        if answer.reply == 1:
            self._confirm(answer, end)
        return bool(answer.reply)

    def _confirm(self, answer: Answer, end: float, granted: Claim | None = None) -> None:
        wanted = self._settings.replicas
        if answer.copies >= wanted:
            return
        if granted is not None:
            release = records.release(self._name(granted.key), granted.owner)
            with contextlib.suppress(StoreUnavailable):  # then its lease frees it
                self._call(release._replace(writes=False), end)
        raise too_few_copies(answer.copies, wanted)

    def _get_or_none(self, key: StorageKey) -> Record | None:
        try:
            return self.get(key)
        except (CorruptRecord, UnknownRecordVersion):
            return None

    def _end(self) -> float:
        """When a call that begins now has to end, in monotonic seconds."""
        return time.monotonic() + self._settings.deadline

    def _call(self, command: Command, end: float, route: Route | None = None) -> Answer:
        try:
            if self._only is not None:
                return self._deliver(command, self._only, end)
            return self._deliver_in_cluster(command, route, end)
        except failures.TimeoutError as error:
            self._has_stalled = True
            raise unreachable(error) from error
        except (failures.RedisError, failures.RedisClusterException, OSError) as error:
            raise meaning_of(error) from error

    def _deliver(self, command: Command, route: Route, end: float, *, asking: bool = False) -> Answer:
        try:
            return self._to(route).send(command, end, asking=asking)
        except failures.RedisError as error:
            if not is_gone(error):
                raise
        return self._to(route).send(command, end, asking=asking)

    def _deliver_in_cluster(self, command: Command, route: Route | None, end: float) -> Answer:
        asking = False
        if self._has_stalled:  # the call that met it had no time left to ask who has taken its place
            self._has_stalled = False
            self._client.nodes_manager.initialize()
        for _ in range(_REDIRECTS):
            try:
                return self._deliver(command, route or self._route(command.key), end, asking=asking)
            except failures.MovedError:
                route, asking = None, False
                self._client.nodes_manager.initialize()
            except failures.AskError as error:
                route, asking = self._route_to(error.host, error.port), True
            except failures.RedisError as error:
                if not is_gone(error) or route is not None:
                    raise
                self._client.nodes_manager.initialize()
        raise StoreUnavailable("the cluster keeps redirecting; wait until its nodes agree on the slots")

    def _route(self, key: bytes) -> Route:
        return self._route_of(self._client.get_node_from_key(key))

    def _route_to(self, host: str, port: int) -> Route:
        node = self._client.get_node(host=host, port=port) or self._client.get_default_node()
        pool = self._client.get_redis_connection(node).connection_pool
        settings = {**pool.connection_kwargs, "host": host, "port": port}
        return route_of_node(pool.connection_class, settings, **self._ours)

    def _route_of(self, node: Any) -> Route:
        pool = self._client.get_redis_connection(node).connection_pool
        return route_of_node(pool.connection_class, pool.connection_kwargs, **self._ours)

    def _places(self) -> list[Route]:
        if self._only is not None:
            return [self._only]
        nodes = sorted(self._client.get_primaries(), key=lambda node: str(node.name))
        return [self._route_of(node) for node in nodes]

    def _to(self, route: Route) -> _Sockets:
        with self._lock:
            if self._closed:
                raise closed()
            sockets = self._sockets.get(route.place)
            if sockets is None:
                sockets = self._sockets[route.place] = _Sockets(route.connect, self._settings)
            return sockets


class _Sockets:
    """Connections to one place, each used by one thread at a time."""

    def __init__(self, connect: Callable[[], Any], settings: Settings) -> None:
        self._connect = connect
        self._settings = settings
        self._idle: list[Any] = []
        self._closed = False
        self._may_evict: bool | None = None
        # Its driver closes only the child's copies of the parent's sockets.
        forget_in_child(self, _Sockets._drop_idle)

    def send(self, command: Command, end: float, *, asking: bool) -> Answer:
        """The answer to *command*, or the driver's own exception; none later than *end* (monotonic seconds)."""
        connection = self._take()
        try:
            connection.connect()  # nothing to do where it is open
            if self._may_evict is None:
                info = self._ask(connection, [pack(b"INFO", b"memory")], end)[0]
                self._may_evict = judge_eviction(info, self._settings.on_eviction)
            answer = self._run(connection, command, end, asking=asking, whole=False)
            if isinstance(answer.reply, failures.NoScriptError):
                answer = self._run(connection, command, end, asking=asking, whole=True)
        except BaseException:
            connection.disconnect()
            self._drop_idle()  # they lead to the server that has just failed
            raise
        self._idle.append(connection)
        if self._closed:  # meanwhile
            self._drop_idle()
        if isinstance(answer.reply, Exception):
            raise answer.reply
        return answer

    def close(self) -> None:
        """Close every connection; those of calls under way, as soon as they are over."""
        self._closed = True
        self._drop_idle()

    def _drop_idle(self) -> None:
        with contextlib.suppress(IndexError):  # another thread may take the last
            while True:
                self._idle.pop().disconnect()

    def _take(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _run(self, connection: Any, command: Command, end: float, *, asking: bool, whole: bool) -> Answer:
        confirm = self._settings.replicas > 0 and command.writes
        packed = [command.pack(whole=whole)]
        if asking:
            packed.insert(0, pack(b"ASKING"))
        if confirm:  # on this connection, or it would wait for somebody else's writes
            packed.append(wait_command(self._settings))
        replies = self._ask(connection, packed, end)
        return Answer(replies[int(asking)], replies[-1] if confirm else 0)

    def _ask(self, connection: Any, packed: list[bytes], end: float) -> list[Any]:
        connection.send_packed_command([b"".join(packed)], check_health=False)
        replies: list[Any] = []
        for _ in packed:
            if not connection.can_read(timeout=max(0.0, end - time.monotonic())):
                raise failures.TimeoutError("no reply within the deadline")
            try:
                replies.append(connection.read_response())
            except failures.ReadOnlyError:
                raise  # no longer a primary: this connection has no more to give
            except failures.ResponseError as error:
                replies.append(error)
        return replies
