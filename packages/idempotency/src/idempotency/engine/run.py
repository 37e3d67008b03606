"""A claimed operation while it runs, and its three possible ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from idempotency._backends.base import running
from idempotency._core import machine
from idempotency._core.errors import as_store_error
from idempotency._core.machine import RECORDED, Ending
from idempotency._core.types import Claim
from idempotency.engine.base import RunBase
from idempotency.engine.heartbeat import Pulse
from idempotency.engine.request import Question
from idempotency.engine.single_flight import Flight

if TYPE_CHECKING:
    from idempotency.engine.async_engine import Engine

__all__ = ["Run"]


class Run(RunBase[Flight]):
    """
    A claimed operation while it runs: renewed every lease/3 (E3) until exactly one of the three ends is called.

    Nothing ends it by itself: a run that is dropped leaves its claim to the lease (E4), as `abandon` does.
    """

    __slots__ = ("_pulse",)

    _engine: Engine

    def __init__(
        self, engine: Engine, ask: Question, claim: Claim, flight: Flight | None, pulse: Pulse
    ) -> None:
        self.ask = ask
        self.claim = claim
        self._engine = engine
        self._flight = flight
        self._over = self._lost = False
        self._began = engine.monotonic() if engine.hooks else 0.0
        self._pulse = pulse
        pulse.add(self)

    async def keep(self, outcome: bytes, *, result: Literal["kept", "unreplayable"] = "kept") -> Ending:
        """
        Record the outcome (E1, E8).

        Returns:
            `Recorded`, or what to answer instead: `Superseded`, `Refuse`; or `Forgotten`, `Unrecorded`: the caller's
            own answer, which no retry will see.
        """
        self._stop()
        ask, engine = self.ask, self._engine
        try:
            answer: machine.Event = await engine.store.complete(
                self.claim, outcome, retention=ask.policy.retention
            )
        except Exception as error:
            answer = as_store_error(error)
        except BaseException:  # cancelled on the way to the store
            self.abandon()
            raise
        # Nearly every record is made by the first question: no machine is set in motion for it.
        ending = RECORDED if answer is True else await self._walk_record(answer, outcome)
        return self._conclude(ending, outcome, result)

    async def _walk_record(self, answer: machine.Event, outcome: bytes) -> Ending:
        """Perform what the machine asks for, its first question answered by *answer*."""
        steps = machine.record(self.claim, self.ask.fingerprint, chance=self._engine.chance)
        next(steps)
        try:
            action = steps.send(answer)
            while True:
                action = steps.send(await self._perform(action, outcome))
        except StopIteration as end:
            ending: Ending = end.value
            return ending
        except BaseException:  # cancelled on the way to the store
            self.abandon()
            raise

    async def release(self) -> None:
        """Free the key: the next request with it runs. Where the store gives no answer the attempt goes on behind."""
        self._stop()
        steps = machine.give_up(self.claim)
        action = next(steps)
        try:
            while True:
                action = steps.send(await self._perform(action, b""))
        except StopIteration:
            self._land(None)
            self._settled("released")
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Leave the claim to its lease: the outcome is unknown (E4). Waiters go on and take over once it lapses."""
        self._stop()
        self._land(None)
        self._settled("abandoned")

    async def _perform(self, action: machine.Action, outcome: bytes) -> machine.Event:
        store, claim = self._engine.store, self.claim
        try:
            if action is machine.COMPLETE:
                return await store.complete(claim, outcome, retention=self.ask.policy.retention)
            if action is machine.LOOK:
                return await store.get(claim.key)
            if action is machine.RELEASE:
                return await store.release(claim)
        except Exception as error:  # after the run every failure of a store is one answer: unknown (E8)
            return as_store_error(error)
        if isinstance(action, machine.Pause):
            await running().sleep(action.seconds)
        else:
            assert action is machine.RELEASE_LATER
            self._engine.spawn_release(claim, self.ask.operation)
        return None

    async def beat(self) -> None:
        """Show a sign of life: called by the pulse."""
        if self._over:
            return
        store, claim = self._engine.store, self.claim
        try:
            if await store.renew(claim, lease=self.ask.policy.lease):
                return
            lost = machine.is_lost(claim, await store.get(claim.key))
        except Exception as error:
            self._engine.store_failed("renew", "retrying", error, claim.key, self.ask.operation)
            return
        if self._over:
            return
        self._pulse.remove(self)
        if lost:
            self._claim_lost()  # go on: the effect may be done; `keep` will learn what to answer

    def _stop(self) -> None:
        self._over = True
        self._pulse.remove(self)
