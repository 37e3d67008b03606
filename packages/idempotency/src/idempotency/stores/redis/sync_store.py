"""`SyncRedisStore`: the Redis store for callers without an event loop. The rules, layout and errors are the same."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Hashable
from typing import Any

import redis
from redis import exceptions as failures
from redis.backoff import NoBackoff
from redis.retry import Retry

from idempotency._core.errors import CorruptRecord, StoreUnavailable, UnknownRecordVersion
from idempotency._core.types import Acquired, Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency._runtime.fork import forget_in_child
from idempotency.store import Page
from idempotency.stores.redis import records
from idempotency.stores.redis.errors import closed, is_gone, may_have_worked, to_store_error, unreachable
from idempotency.stores.redis.records import Adopt, Answer, Command, Names
from idempotency.stores.redis.routes import Route, route_of_node, route_of_pool, sentinels_of
from idempotency.stores.redis.settings import OnEviction, Settings, too_few_acked_replicas
from idempotency.stores.redis.wire.sockets import Sockets

__all__ = ["SyncRedisStore"]

_REDIRECTS = 5  # as in `RedisStore`


class SyncRedisStore:
    """
    A store for many processes and threads.

    Args:
        client: `redis.Redis` (also from `Sentinel.master_for`) or `redis.RedisCluster`. The store opens its own
            connections, one for each thread that is in a call, and keeps them.
        prefix: See `RedisStore`.
        deadline: See `RedisStore`. If the server stalls in the middle of a reply, a call may take twice as long.
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
        self._names = Names(prefix, cluster=isinstance(client, redis.RedisCluster))
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
        self._sockets: dict[Hashable, Sockets] = {}
        self._renew_lock()
        forget_in_child(self, SyncRedisStore._renew_lock)
        self._closed = False
        self._has_stalled = False  # whether a node of the cluster did not answer in time

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
        command = records.acquire(
            self._name(key), fingerprint, owner, lease, retention, takeover, self._names.fence(key)
        )
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
        return self._write(records.release(self._name(claim.key), claim.owner, self._names.fence(claim.key)))

    def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`. An adopted value has an empty owner and fingerprint. 1 round trip."""
        return records.read_record(
            self._call(records.get(self._name(key)), self._end()).reply, key, self._adopt
        )

    def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`."""
        return self._write(records.forget(self._name(key), self._names.fence(key)))

    def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `RedisStore.scan`."""
        places = self._nodes_to_scan()
        at, position = records.read_cursor(cursor, len(places))
        next_position, names = self._call(
            records.scan(self._prefix, position, limit), self._end(), places[at]
        ).reply
        keys = self._names.keys(names)
        seen = map(self._get_or_none, keys)
        return Page(
            tuple(record for record in seen if record is not None),
            records.write_cursor(at, next_position, len(places)),
        )

    def create_schema(self) -> None:
        """Do nothing: there is no table."""

    def close(self) -> None:
        """
        Close the store's own connections; the client stays open unless the store owns it.

        Calls under way end first, and then their connections. All later calls raise `StoreUnavailable`.
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
        """Called in a forked child, where no thread would release a lock that was held."""
        self._lock = threading.Lock()

    def _name(self, key: StorageKey) -> bytes:
        return self._names.record(key)

    def _write(self, command: Command) -> bool:
        end = self._end()
        answer = self._call(command, end)
        if answer.reply == 1:
            self._confirm(answer, end)
        return bool(answer.reply)

    def _confirm(self, answer: Answer, end: float, granted: Claim | None = None) -> None:
        wanted = self._settings.replicas
        if answer.acked_replicas >= wanted:
            return
        if granted is not None:
            release = records.release(self._name(granted.key), granted.owner, self._names.fence(granted.key))
            with contextlib.suppress(StoreUnavailable):  # then the key is free when the lease ends
                self._call(release._replace(writes=False), end)
        raise too_few_acked_replicas(answer.acked_replicas, wanted)

    def _get_or_none(self, key: StorageKey) -> Record | None:
        try:
            return self.get(key)
        except (CorruptRecord, UnknownRecordVersion):
            return None

    def _end(self) -> float:
        """The deadline of a call that begins now, in monotonic seconds."""
        return time.monotonic() + self._settings.deadline

    def _call(self, command: Command, end: float, route: Route | None = None) -> Answer:
        """See `RedisStore._call`."""
        uncertain: list[Exception] = []  # of earlier tries, which may have had an effect
        try:
            if self._only is not None:
                answer = self._deliver(command, self._only, end, uncertain)
            else:
                answer = self._deliver_in_cluster(command, route, end, uncertain)
        except failures.TimeoutError as error:
            self._has_stalled = True
            raise unreachable(error) from error
        except (failures.RedisError, failures.RedisClusterException, OSError) as error:
            raise to_store_error(error) from error
        if command.removes and not answer.reply and uncertain:
            # An earlier try may have removed the record, so this is not a "no".
            raise unreachable(uncertain[-1])
        return answer

    def _deliver(
        self, command: Command, route: Route, end: float, uncertain: list[Exception], *, asking: bool = False
    ) -> Answer:
        try:
            return self._to(route).send(command, end, asking=asking)
        except failures.RedisError as error:
            if not is_gone(error):
                raise
            if may_have_worked(error):
                uncertain.append(error)
        return self._to(route).send(command, end, asking=asking)

    def _deliver_in_cluster(
        self, command: Command, route: Route | None, end: float, uncertain: list[Exception]
    ) -> Answer:
        """See `RedisStore._deliver_in_cluster`."""
        asking = False
        if self._has_stalled:  # that call had no time left to look for a new primary
            self._has_stalled = False
            self._client.nodes_manager.initialize()
        for _ in range(_REDIRECTS):
            try:
                return self._deliver(
                    command, route or self._route(command.key), end, uncertain, asking=asking
                )
            except failures.MovedError:
                route, asking = None, False
                self._client.nodes_manager.initialize()
            except failures.AskError as error:
                route, asking = self._route_to(error.host, error.port), True
            except failures.RedisError as error:
                if not is_gone(error) or route is not None:
                    raise
                if may_have_worked(error):
                    uncertain.append(error)
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

    def _nodes_to_scan(self) -> list[Route]:
        if self._only is not None:
            return [self._only]
        nodes = sorted(self._client.get_primaries(), key=lambda node: str(node.name))
        return [self._route_of(node) for node in nodes]

    def _to(self, route: Route) -> Sockets:
        with self._lock:
            if self._closed:
                raise closed()
            sockets = self._sockets.get(route.place)
            if sockets is None:
                sockets = self._sockets[route.place] = Sockets(route.connect, self._settings)
            return sockets
