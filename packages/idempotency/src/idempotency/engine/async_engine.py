"""
The engine performs the actions of the protocol, with a store, a clock and the running event loop.

It connects `idempotency._core.protocol` to a store, for the ASGI middleware and for decorated coroutine functions;
`sync_engine` does the same for plain functions. `acquisition` takes over if the store's first reply does not decide;
`run` is a claimed operation until its end.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from idempotency._core import protocol
from idempotency._core.actions import Bypass, Event, Refuse, Replay
from idempotency._core.errors import StoreError
from idempotency._core.types import Claim
from idempotency._runtime.event_loop import Runtime, running
from idempotency.engine.acquisition import Acquisition
from idempotency.engine.async_base import AsyncEngineBase
from idempotency.engine.checks import checked_hooks
from idempotency.engine.heartbeat import Heartbeat
from idempotency.engine.overrides import overrides
from idempotency.engine.owner import new_owner
from idempotency.engine.request import OperationRequest
from idempotency.engine.run import Run
from idempotency.engine.single_flight import InFlight, SingleFlight
from idempotency.events import Hook
from idempotency.store import Store

__all__ = ["Engine"]


class Engine(AsyncEngineBase):
    """
    Begins runs for one store. Safe to share between requests and between loops; one per application is enough.

    Args:
        store: Where records live.
        hooks: Called with every event.
        random: Returns a number in [0, 1); injected by tests.
        monotonic: A clock in seconds, for waits and for durations in events, never for leases; injected by tests.
    """

    def __init__(
        self,
        store: Store,
        *,
        hooks: Sequence[Hook] = (),
        random: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.hooks: tuple[Hook, ...] = checked_hooks(hooks)
        self.random = random
        self.monotonic = monotonic
        self.single_flight: SingleFlight = SingleFlight()
        self._heartbeats: tuple[object, dict[float, Heartbeat]] = (None, {})
        overrides.adopt(self)

    async def begin(self, request: OperationRequest) -> Run | Replay | Refuse | Bypass:
        """
        Claim the operation, or say what to do instead.

        Returns:
            `Run`: run the operation, under a heartbeat, and end it by `keep`, `release` or `abandon`. `Replay`: answer
            with the outcome. `Refuse`: answer with the error. `Bypass`: run it unprotected.
        """
        owner, key, fingerprint, policy = new_owner(), request.key, request.fingerprint, request.policy
        if protocol.follows_duplicate(request.wait) and key in self.single_flight:
            runtime = running()  # slow, but needed only here: duplicates are rare
            if self.single_flight.find(key, fingerprint, runtime.loop) is not None:
                return await Acquisition(self, self.start, request, runtime, owner).drive(None)
        try:
            reply: Event = await self.store.acquire(
                key,
                fingerprint=fingerprint,
                owner=owner,
                lease=policy.lease,
                retention=policy.retention,
                takeover=policy.takeover,
            )
        except StoreError as error:
            reply = error
        except BaseException:
            self.spawn_release(protocol.unconfirmed(key, owner), request.operation)
            raise
        decided = protocol.verdict_of(reply, fingerprint)
        if decided is None:
            return await Acquisition(self, self.start, request, running(), owner).drive(reply)
        if isinstance(decided, Replay):
            return decided
        try:
            runtime = running()  # not before, since a replay does not need it
        except RuntimeError:
            await self.store.release(decided)  # without a loop nothing can renew its lease
            raise
        return self.start(request, decided, runtime)

    def start(
        self,
        request: OperationRequest,
        claim: Claim,
        runtime: Runtime,
        waited: float = 0.0,
        in_flight: InFlight | None = None,
    ) -> Run:
        """A run under *claim*. It leads its duplicates in this process if they may wait and have no leader."""
        policy = request.policy
        if in_flight is None and protocol.leads_duplicates(request.wait, policy):
            in_flight = self.single_flight.lead(request.key, request.fingerprint, runtime.loop)
        if self.hooks:
            self.claimed(request, claim, waited)
        loop, heartbeats = self._heartbeats
        if loop is not runtime.loop:  # the heartbeats of another loop live on in its timers
            heartbeats = {}
            self._heartbeats = (runtime.loop, heartbeats)
        heartbeat = heartbeats.get(policy.lease)
        if heartbeat is None:
            heartbeat = heartbeats[policy.lease] = Heartbeat(runtime, policy.lease)
        return Run(self, request, claim, in_flight, heartbeat)
