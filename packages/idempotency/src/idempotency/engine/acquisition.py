"""Acquires a key if the store's first reply did not decide: waits, asks again, and ends with a verdict."""

from __future__ import annotations

from collections.abc import Callable

from idempotency._core import actions, protocol
from idempotency._core.actions import Bypass, Execute, Refuse, Replay, Verdict, WaitEnded
from idempotency._core.errors import StoreError
from idempotency._core.types import Completed, Owner
from idempotency._runtime.event_loop import Runtime
from idempotency.engine.async_base import AsyncEngineBase
from idempotency.engine.request import OperationRequest
from idempotency.engine.run import Run
from idempotency.engine.single_flight import InFlight, Promoted
from idempotency.store import Waitable

__all__ = ["Acquisition"]


class Acquisition:
    """Takes one request, undecided after the store's first reply, to its verdict: run, replay, refuse or bypass."""

    __slots__ = ("_engine", "_in_flight", "_owner", "_request", "_runtime", "_since", "_start")

    def __init__(
        self,
        engine: AsyncEngineBase,
        start: Callable[..., Run],
        request: OperationRequest,
        runtime: Runtime,
        owner: Owner,
    ) -> None:
        self._engine = engine
        self._start = start  # `Engine.start`
        self._request = request
        self._runtime = runtime
        self._owner = owner
        self._in_flight: InFlight | None = None  # the duplicates that this request leads, if any
        self._since = engine.monotonic()

    async def drive(self, reply: actions.Event) -> Run | Replay | Refuse | Bypass:
        """
        Perform the actions of the protocol (`protocol.begin`).

        Args:
            reply: The store's reply to the first `acquire`; None if the store was not asked because a duplicate runs
                in this process.
        """
        try:
            return self._conclude(await self._walk(reply))
        except BaseException:
            self._hand_over()
            raise

    async def _walk(self, reply: actions.Event) -> Verdict:
        engine, request = self._engine, self._request
        steps = protocol.begin(
            request.key,
            request.fingerprint,
            policy=request.policy,
            wait=request.wait,
            random=engine.random,
            duplicate_here=reply is None,
        )
        action = next(steps)
        try:
            if reply is not None:
                action = steps.send(reply)
            while True:
                if action is actions.ACQUIRE:
                    action = steps.send(await self._acquire())
                elif isinstance(action, actions.Await):
                    action = steps.send(await self._await(action))
                else:
                    assert action is actions.RELEASE_LATER
                    engine.spawn_release(protocol.unconfirmed(request.key, self._owner), request.operation)
                    action = steps.send(None)
        except StopIteration as end:
            verdict: Verdict = end.value
            return verdict

    async def _acquire(self) -> actions.Event:
        request = self._request
        try:
            return await self._engine.store.acquire(
                request.key,
                fingerprint=request.fingerprint,
                owner=self._owner,
                lease=request.policy.lease,
                retention=request.policy.retention,
                takeover=request.policy.takeover,
            )
        except StoreError as error:
            return error
        except BaseException:  # cancelled, but the store may grant the claim all the same
            self._engine.spawn_release(protocol.unconfirmed(request.key, self._owner), request.operation)
            raise

    async def _await(self, action: actions.Await) -> WaitEnded:
        engine, request = self._engine, self._request
        learned: Completed | Promoted | None = None
        if self._in_flight is None:
            leader = engine.single_flight.find(request.key, request.fingerprint, self._runtime.loop)
            if leader is not None:
                learned = await engine.single_flight.follow(leader, request.key, self._runtime, action.limit)
                if isinstance(learned, Promoted):
                    self._in_flight = leader
                return self._wait_ended(learned if isinstance(learned, Completed) else None)
            self._in_flight = engine.single_flight.lead(request.key, request.fingerprint, self._runtime.loop)
        seconds = min(action.poll, action.limit)
        if isinstance(engine.store, Waitable):
            try:
                await engine.store.wait(request.key, timeout=seconds)
            except StoreError:  # only a hint failed: the next acquire shows whether the store works
                await self._runtime.sleep(seconds)
        else:
            await self._runtime.sleep(seconds)
        return self._wait_ended(None)

    def _wait_ended(self, completed: Completed | None) -> WaitEnded:
        return WaitEnded(self._engine.monotonic() - self._since, completed)

    def _hand_over(self) -> None:
        """If this request leads its duplicates, let one of them lead instead."""
        if self._in_flight is not None:
            self._engine.single_flight.hand_over(self._request.key, self._in_flight)
            self._in_flight = None

    def _conclude(self, verdict: Verdict) -> Run | Replay | Refuse | Bypass:
        engine, request = self._engine, self._request
        if isinstance(verdict, Execute):
            in_flight, self._in_flight = self._in_flight, None
            return self._start(request, verdict.claim, self._runtime, verdict.waited, in_flight)
        if isinstance(verdict, Replay) and self._in_flight is not None:
            in_flight, self._in_flight = self._in_flight, None
            engine.single_flight.resolve(request.key, in_flight, verdict.completed)
        engine.not_claimed(request, verdict)
        self._hand_over()
        return verdict
