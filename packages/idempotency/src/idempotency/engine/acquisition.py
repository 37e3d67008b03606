"""A request on its way to the verdict, where the store's first reply does not settle it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idempotency._backends.base import Runtime
from idempotency._core import machine
from idempotency._core.decide import Execute, Refuse, Replay
from idempotency._core.errors import StoreError
from idempotency._core.machine import Bypass, Woken
from idempotency._core.types import Completed, Owner
from idempotency.engine.request import Question
from idempotency.engine.run import Run
from idempotency.engine.single_flight import Flight, Promoted
from idempotency.store import Waitable

if TYPE_CHECKING:
    from idempotency.engine.async_engine import Engine

__all__ = ["Attempt"]


class Attempt:
    """One request that the store's first reply did not decide, on its way to the verdict."""

    __slots__ = ("_ask", "_engine", "_flight", "_owner", "_runtime", "_since")

    def __init__(self, engine: Engine, ask: Question, runtime: Runtime, owner: Owner) -> None:
        self._engine = engine
        self._ask = ask
        self._runtime = runtime
        self._owner = owner
        self._flight: Flight | None = None  # the flight that this request leads
        self._since = engine.monotonic()

    async def drive(self, reply: machine.Event) -> Run | Replay | Refuse | Bypass:
        """
        Perform what the machine asks for.

        Args:
            reply: The answer to its first question; None where a twin is running here, so that none was asked.
        """
        try:
            return self._conclude(await self._walk(reply))
        except BaseException:
            self._leave()
            raise

    async def _walk(self, reply: machine.Event) -> machine.Verdict:
        engine, ask = self._engine, self._ask
        steps = machine.begin(
            ask.key,
            ask.fingerprint,
            policy=ask.policy,
            wait=ask.wait,
            chance=engine.chance,
            twin_here=reply is None,
        )
        action = next(steps)
        try:
            if reply is not None:
                action = steps.send(reply)
            while True:
                if action is machine.ACQUIRE:
                    action = steps.send(await self._acquire())
                elif isinstance(action, machine.Await):
                    action = steps.send(await self._await(action))
                else:
                    assert action is machine.RELEASE_LATER
                    engine.spawn_release(machine.unconfirmed(ask.key, self._owner), ask.operation)
                    action = steps.send(None)
        except StopIteration as end:
            verdict: machine.Verdict = end.value
            return verdict

    async def _acquire(self) -> machine.Event:
        ask = self._ask
        try:
            return await self._engine.store.acquire(
                ask.key,
                fingerprint=ask.fingerprint,
                owner=self._owner,
                lease=ask.policy.lease,
                retention=ask.policy.retention,
                takeover=ask.policy.takeover,
            )
        except StoreError as error:
            return error
        except BaseException:  # cancelled: the claim may be granted all the same
            self._engine.spawn_release(machine.unconfirmed(ask.key, self._owner), ask.operation)
            raise

    async def _await(self, action: machine.Await) -> Woken:
        engine, ask = self._engine, self._ask
        learned: Completed | Promoted | None = None
        if self._flight is None:
            twin = engine.flights.find(ask.key, ask.fingerprint, self._runtime.loop)
            if twin is not None:
                learned = await engine.flights.follow(twin, ask.key, self._runtime, action.limit)
                if isinstance(learned, Promoted):
                    self._flight = twin
                return self._woken(learned if isinstance(learned, Completed) else None)
            self._flight = engine.flights.lead(ask.key, ask.fingerprint, self._runtime.loop)
        seconds = min(action.poll, action.limit)
        if isinstance(engine.store, Waitable):
            try:
                await engine.store.wait(ask.key, timeout=seconds)
            except StoreError:  # only a hint failed; what the store can answer, the next acquire will show
                await self._runtime.sleep(seconds)
        else:
            await self._runtime.sleep(seconds)
        return self._woken(None)

    def _woken(self, completed: Completed | None) -> Woken:
        return Woken(self._engine.monotonic() - self._since, completed)

    def _leave(self) -> None:
        """Hand the lead to the next twin, if we have it."""
        if self._flight is not None:
            self._engine.flights.leave(self._ask.key, self._flight)
            self._flight = None

    def _conclude(self, verdict: machine.Verdict) -> Run | Replay | Refuse | Bypass:
        engine, ask = self._engine, self._ask
        match verdict:
            case Execute(claim, waited):
                flight, self._flight = self._flight, None
                return engine.start(ask, claim, self._runtime, waited=waited, flight=flight)
            case Replay(completed):
                if self._flight is not None:
                    engine.flights.land(ask.key, self._flight, completed)
                return verdict
            case Bypass(error):
                engine.store_failed("acquire", "bypassed", error, ask.key, ask.operation)
            case Refuse(error):
                if isinstance(error, StoreError):
                    engine.store_failed("acquire", "refused", error, ask.key, ask.operation)
        self._leave()
        return verdict
