"""
Records in Redis (7.0 or newer) or Valkey: one node, Sentinel, or a cluster.

A replay takes one round trip and a first run two. All callers share a connection, and commands that are ready in the
same turn of the loop share a write. Each operation is one Lua script, so it is atomic and uses only the server's clock.

Redis has one limit: a failover may lose the last writes, among them a claim, and the operation may then run twice. With
`wait_replicas` a claim counts only when that many replicas have it; see `docs/failure-modes.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable
from typing import Any

from idempotency._runtime.extras import missing

try:
    import hiredis  # noqa: F401
    import redis
except ModuleNotFoundError as _error:
    raise missing("redis", "RedisStore", _error) from _error

import redis.asyncio
from redis import exceptions as failures
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from idempotency._core.errors import CorruptRecord, StoreUnavailable, UnknownRecordVersion
from idempotency._core.types import Acquired, Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency._runtime.asyncio_only import asyncio_loop, other_loop
from idempotency._runtime.fork import forget_in_child
from idempotency.store import Page
from idempotency.stores.redis import records
from idempotency.stores.redis.errors import closed, is_gone, may_have_worked, to_store_error, unreachable
from idempotency.stores.redis.records import Adopt, Answer, Command, Names
from idempotency.stores.redis.routes import Route, route_of_node, route_of_pool, sentinels_of
from idempotency.stores.redis.settings import OnEviction, Settings, too_few_acked_replicas
from idempotency.stores.redis.sync_store import SyncRedisStore
from idempotency.stores.redis.wire.node import NodeConnection
from idempotency.stores.redis.wire.topology import ClusterTopology

__all__ = ["Adopt", "OnEviction", "RedisStore", "SyncRedisStore"]

# A node redirects calls for a slot that is moving; after more redirects than this the nodes disagree.
_REDIRECTS = 5


class RedisStore:
    """
    A store for many processes, in one event loop of asyncio.

    Args:
        client: `redis.asyncio.Redis` (also from `Sentinel.master_for`) or `RedisCluster`; it says where Redis is. The
            store opens its own connection to each node (a second one if the first is slow to open) with the client's
            address, credentials and TLS; the client's retries, timeouts and decoding do not apply to them.
        prefix: The beginning of every key.
        deadline: Seconds for a whole call: connecting, sending, one repeat after a lost connection. If connecting takes
            longer, because a name is slow to look up, it goes on in the background for a later call. Queries to
            Sentinels do not go on, and those to the nodes of a cluster only within the client's own timeouts, so give
            these by address.
        wait_replicas: How many replicas must confirm a write (WAIT) before it counts. If fewer confirm within a third
            of the deadline, the call raises `StoreUnavailable`, and a claim that was just granted is released.
        on_eviction: What to do if the server's maxmemory-policy, read at the first connection, is not noeviction:
            "warn" in the log, or "refuse" with `StoreUnavailable`.
        adopt: Turns a value that another program (such as an older service) wrote under one of our keys into an
            outcome, which is then replayed for that key, or returns None if it cannot. Without *adopt* such a value
            raises `CorruptRecord`.
        owns_client: Whether `aclose` closes *client* too.

    Every method raises `StoreUnavailable` if there was no answer, and `RuntimeError` in another event loop.
    Atomic: one script per call. Fences are the server's time in microseconds, and at least the last one + 1. The last
    fence of a key is in its record; after a release or `forget` it is kept in a key of its own, for the retention (in a
    cluster, unless the prefix has braces that make no hash tag).
    """

    def __init__(
        self,
        client: redis.asyncio.Redis | redis.asyncio.RedisCluster,
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
        self._names = Names(prefix, cluster=isinstance(client, redis.asyncio.RedisCluster))
        self._adopt = adopt
        self._owns_client = owns_client
        self._settings = Settings.checked(deadline, wait_replicas, on_eviction)
        self._ours = {"retry": Retry(NoBackoff(), 0), "socket_timeout": None, "socket_connect_timeout": None}
        self._only: Route | None = None
        if not isinstance(client, redis.asyncio.RedisCluster):
            self._only = route_of_pool(client.connection_pool, **self._ours)
        self._topology = ClusterTopology(client)
        self._connections: dict[Hashable, NodeConnection] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._of_parent: list[dict[Hashable, NodeConnection]] = []
        forget_in_child(self, RedisStore._forget_connections)

    async def acquire(
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
        due = self._due()
        answer = await self._call(command, due)
        reply = records.read_acquired(answer.reply, key, fingerprint, owner, self._adopt)
        if isinstance(reply, Acquired):
            await self._confirm(answer, due, reply.claim)
        return reply

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """See `Store.renew`. 1 round trip."""
        return await self._write(records.renew(self._name(claim.key), claim.owner, lease))

    async def complete(self, claim: Claim, outcome: bytes, *, retention: float) -> bool:
        """See `Store.complete`. 1 round trip. Raises `ValueError` if *outcome* is not a JSON object."""
        return await self._write(records.complete(self._name(claim.key), claim.owner, outcome, retention))

    async def release(self, claim: Claim) -> bool:
        """See `Store.release`. 1 round trip."""
        return await self._write(
            records.release(self._name(claim.key), claim.owner, self._names.fence(claim.key))
        )

    async def get(self, key: StorageKey) -> Record | None:
        """See `Store.get`. An adopted value has an empty owner and fingerprint. 1 round trip."""
        answer = await self._call(records.get(self._name(key)), self._due())
        return records.read_record(answer.reply, key, self._adopt)

    async def forget(self, key: StorageKey) -> bool:
        """See `Inspectable.forget`."""
        return await self._write(records.forget(self._name(key), self._names.fence(key)))

    async def scan(self, *, limit: int = 100, cursor: str | None = None) -> Page:
        """
        See `Inspectable.scan`. A page may have more or fewer than *limit* records; other values are left out.

        It reads the server's whole keyspace in steps (SCAN), in a cluster one primary after another.
        """
        due = self._due()
        places = await self._nodes_to_scan(due)
        at, position = records.read_cursor(cursor, len(places))
        found = await self._call(records.scan(self._prefix, position, limit), due, places[at])
        next_position, names = found.reply
        keys = self._names.keys(names)
        seen = await asyncio.gather(*map(self._get_or_none, keys))
        return Page(
            tuple(record for record in seen if record is not None),
            records.write_cursor(at, next_position, len(places)),
        )

    async def create_schema(self) -> None:
        """Do nothing: there is no table."""

    async def aclose(self) -> None:
        """
        Close the store's own connections; the client stays open unless the store owns it.

        Calls under way and all later calls raise `StoreUnavailable`, including a late release of the engine.
        """
        self._closed = True
        await self._topology.aclose()
        for connection in self._connections.values():
            await connection.aclose()
        self._connections.clear()
        if self._owns_client:
            for client in (self._client, *sentinels_of(self._client)):
                await client.aclose()

    def _name(self, key: StorageKey) -> bytes:
        return self._names.record(key)

    async def _write(self, command: Command) -> bool:
        due = self._due()
        answer = await self._call(command, due)
        if answer.reply == 1:
            await self._confirm(answer, due)
        return bool(answer.reply)

    async def _confirm(self, answer: Answer, due: float, granted: Claim | None = None) -> None:
        wanted = self._settings.replicas
        if answer.acked_replicas >= wanted:
            return
        if granted is not None:
            release = records.release(self._name(granted.key), granted.owner, self._names.fence(granted.key))
            with contextlib.suppress(StoreUnavailable):  # then the key is free when the lease ends
                await self._call(release._replace(writes=False), due)
        raise too_few_acked_replicas(answer.acked_replicas, wanted)

    async def _get_or_none(self, key: StorageKey) -> Record | None:
        try:
            return await self.get(key)
        except (CorruptRecord, UnknownRecordVersion):
            return None

    def _due(self) -> float:
        """The deadline of a call that begins now, in seconds of the loop's clock."""
        return self._bind().time() + self._settings.deadline

    async def _call(self, command: Command, due: float, route: Route | None = None) -> Answer:
        """Deliver *command* to the node of its key, or to *route*, until *due*; again after a lost connection (R8)."""
        uncertain: list[Exception] = []  # of earlier tries, which may have had an effect
        try:
            if self._only is not None:
                answer = await self._deliver(command, self._only, due, uncertain)
            else:
                async with asyncio.timeout_at(due):  # also covers the client's own calls to the cluster
                    answer = await self._deliver_in_cluster(command, route, due, uncertain)
        except TimeoutError as error:
            if self._only is None:
                self._topology.renew_in_background()
            raise unreachable(error) from error
        except (failures.RedisError, failures.RedisClusterException, OSError) as error:
            raise to_store_error(error) from error
        if command.removes and not answer.reply and uncertain:
            # An earlier try may have removed the record, so this is not a "no".
            raise unreachable(uncertain[-1])
        return answer

    async def _deliver(
        self, command: Command, route: Route, due: float, uncertain: list[Exception], *, asking: bool = False
    ) -> Answer:
        try:
            return await self._to(route).send(command, due, asking=asking)
        except failures.RedisError as error:
            if not is_gone(error):
                raise
            if may_have_worked(error):
                uncertain.append(error)
        # Every call may be repeated (R8), and the connection may have been lost long before this call.
        return await self._to(route).send(command, due, asking=asking)

    async def _deliver_in_cluster(
        self, command: Command, route: Route | None, due: float, uncertain: list[Exception]
    ) -> Answer:
        """Deliver *command* by the slots that the client knows; follow MOVED and ASK, and a failover."""
        await self._topology.learn()
        asking = False
        for _ in range(_REDIRECTS):
            try:
                return await self._deliver(
                    command, route or self._route(command.key), due, uncertain, asking=asking
                )
            except failures.MovedError:
                route, asking = None, False
                await self._topology.renew()
            except failures.AskError as error:  # send this one command to the other node
                route, asking = self._route_to(error.host, error.port), True
            except failures.RedisError as error:
                if not is_gone(error) or route is not None:
                    raise
                if may_have_worked(error):
                    uncertain.append(error)
                await self._topology.renew()  # finds the new primary after a failover
        raise StoreUnavailable("the cluster keeps redirecting; wait until its nodes agree on the slots")

    def _route(self, key: bytes) -> Route:
        node = self._client.get_node_from_key(key)
        return route_of_node(node.connection_class, node.connection_kwargs, **self._ours)

    def _route_to(self, host: str, port: int) -> Route:
        node = self._client.get_node(host=host, port=port) or self._client.get_default_node()
        settings = {**node.connection_kwargs, "host": host, "port": port}
        return route_of_node(node.connection_class, settings, **self._ours)

    async def _nodes_to_scan(self, due: float) -> list[Route]:
        if self._only is not None:
            return [self._only]
        try:
            async with asyncio.timeout_at(due):
                await self._topology.learn()
        except (failures.RedisError, failures.RedisClusterException, OSError) as error:  # also TimeoutError
            raise to_store_error(error) from error
        nodes = sorted(self._client.get_primaries(), key=lambda node: str(node.name))
        return [route_of_node(node.connection_class, node.connection_kwargs, **self._ours) for node in nodes]

    def _to(self, route: Route) -> NodeConnection:
        if self._closed:
            raise closed()
        connection = self._connections.get(route.place)
        if connection is None:
            connection = self._connections[route.place] = NodeConnection(route.connect, self._settings)
        return connection

    def _bind(self) -> asyncio.AbstractEventLoop:
        """The running loop. Another loop is refused, because a call would hang; a forked child may use a new loop."""
        loop = asyncio_loop(self)
        if self._loop is not loop:
            if self._loop is not None:
                raise RuntimeError(other_loop(self, "client and one store"))
            self._loop = loop
        return loop

    def _forget_connections(self) -> None:
        """
        Called in a forked child, which then opens new connections, in any event loop.

        The old sockets are shared with the parent: closing or collecting them would remove them from the parent's
        selector, so they are kept unused.
        """
        self._of_parent.append(self._connections)
        self._connections, self._loop = {}, None
        self._topology = ClusterTopology(self._client)
