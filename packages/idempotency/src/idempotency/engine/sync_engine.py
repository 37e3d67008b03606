"""
The engine for code without an event loop: the same machine, performed with a sync store, threads and the clock.

The twin of `engine`, step for step. What differs: who waits for a twin blocks its thread, and the signs of life of all
runs, like releases that nobody waits for, are the work of one daemon thread (`idempotency.engine.scheduler`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal
from weakref import ref

from idempotency._core import delays, machine
from idempotency._core.decide import Execute, Refuse, Replay
from idempotency._core.errors import StoreError, as_store_error
from idempotency._core.machine import Bypass, Ending, Woken
from idempotency._core.types import Claim, Completed, key_id
from idempotency.engine.base import EngineBase, RunBase
from idempotency.engine.checks import checked_hooks
from idempotency.engine.owner import new_owner
from idempotency.engine.request import Question
from idempotency.engine.scheduler import Beats
from idempotency.engine.sync_single_flight import SyncFlight, SyncFlights
from idempotency.events import Claimed, Hook
from idempotency.store import SyncStore

__all__ = ["SyncEngine", "SyncRun"]

_MAX_LATE_RELEASES = 64  # per engine, as they share its one thread; past it the lease decides


class SyncEngine(EngineBase[SyncFlight]):
    """
    Begins runs for one store, from any thread.

    Args:
        store: Where records live.
        hooks: Called with every event; those of a heartbeat in the engine's own thread.
        chance: Draws from [0, 1); injected by tests.
        monotonic: A clock for waits and for durations in events, never for leases; injected by tests.
        sleep: Lets seconds pass; injected by tests.
        beats: Performs heartbeats and late releases; injected by tests.
    """

    flights: SyncFlights

    def __init__(
        self,
        store: SyncStore,
        *,
        hooks: Sequence[Hook] = (),
        chance: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        beats: Beats | None = None,
    ) -> None:
        self.store = store
        self.hooks = checked_hooks(hooks)
        self.chance = chance
        self.monotonic = monotonic
        self.sleep = sleep
        self.beats = Beats() if beats is None else beats
        self.flights = SyncFlights()
        self._late: set[Claim] = set()

    def begin(self, ask: Question) -> SyncRun | Replay | Refuse | Bypass:
        """
        Claim the operation, or learn why not.

        Returns:
            `SyncRun`: it is ours to run, under a heartbeat; end it by `keep`, `release` or `abandon`. `Replay`: answer
            with the outcome. `Refuse`: answer with the error. `Bypass`: run it unprotected.
        """
        attempt = _Attempt(self, ask)
        try:
            verdict = attempt.drive()
        except BaseException:
            attempt.cancel()
            raise
        return attempt.conclude(verdict)

    def release_late(self, claim: Claim, operation: str) -> None:
        """Have the store forget *claim*, from the engine's thread, trying for a while; then its lease decides."""
        if len(self._late) >= _MAX_LATE_RELEASES:
            return
        self._late.add(claim)
        pauses = iter(delays.RELEASE_RETRIES)

        def release() -> None:
            try:
                over = self.store.release(claim) or machine.is_confirmed(claim)
                failure = None
            except Exception as error:
                over, failure = False, error
            delay = None if over else next(pauses, None)
            if delay is not None:
                return self.beats.after(delay, release)
            if failure is not None:
                self.store_failed("release", "unrecorded", failure, claim.key, operation)
            self._late.discard(claim)
            return None

        self.beats.after(0.0, release)


class _Attempt:
    """One call on its way from the question to the verdict."""

    __slots__ = ("_ask", "_asked", "_engine", "_flight", "_owner", "_since")

    def __init__(self, engine: SyncEngine, ask: Question) -> None:
        self._flight: SyncFlight | None = None  # the flight that this call leads
        self._engine = engine
        self._ask = ask
        self._owner = new_owner()
        self._since = engine.monotonic()
        self._asked = False

    def drive(self) -> machine.Verdict:
        ask, engine = self._ask, self._engine
        steps = machine.begin(
            ask.key,
            ask.fingerprint,
            policy=ask.policy,
            wait=ask.wait,
            chance=engine.chance,
            twin_here=ask.wait > 0 and engine.flights.find(ask.key, ask.fingerprint) is not None,
        )
        action = next(steps)
        try:
            while True:
                if action is machine.ACQUIRE:
                    action = steps.send(self._acquire())
                elif isinstance(action, machine.Await):
                    completed = self._await(action)
                    action = steps.send(Woken(engine.monotonic() - self._since, completed))
                else:
                    assert action is machine.RELEASE_LATER
                    engine.release_late(machine.unconfirmed(ask.key, self._owner), ask.operation)
                    action = steps.send(None)
        except StopIteration as end:
            verdict: machine.Verdict = end.value
            return verdict

    def _acquire(self) -> machine.Event:
        ask = self._ask
        self._asked = True
        try:
            return self._engine.store.acquire(
                ask.key,
                fingerprint=ask.fingerprint,
                owner=self._owner,
                lease=ask.policy.lease,
                retention=ask.policy.retention,
                takeover=ask.policy.takeover,
            )
        except StoreError as error:
            return error

    def _await(self, action: machine.Await) -> Completed | None:
        engine, ask = self._engine, self._ask
        if self._flight is None:
            twin = engine.flights.find(ask.key, ask.fingerprint)
            if twin is not None:
                completed, promoted = engine.flights.follow(twin, ask.key, action.limit)
                if promoted:
                    self._flight = twin
                return completed
            self._flight = engine.flights.lead(ask.key, ask.fingerprint)
        engine.sleep(min(action.poll, action.limit))
        return None

    def _leave(self) -> None:
        """Hand the lead to the next twin, if we have it."""
        if self._flight is not None:
            self._engine.flights.leave(self._ask.key, self._flight)
            self._flight = None

    def cancel(self) -> None:
        """Nothing will run: free what the store may have granted."""
        self._leave()
        if self._asked:
            self._engine.release_late(machine.unconfirmed(self._ask.key, self._owner), self._ask.operation)

    def conclude(self, verdict: machine.Verdict) -> SyncRun | Replay | Refuse | Bypass:
        engine, ask = self._engine, self._ask
        match verdict:
            case Execute(claim, waited):
                if engine.hooks:
                    engine.emit(
                        Claimed(
                            operation=ask.operation,
                            key_id=key_id(ask.key),
                            attempt=claim.attempt,
                            waited=waited,
                        )
                    )
                flight = self._flight or engine.flights.lead(ask.key, ask.fingerprint)
                return SyncRun(engine, ask, claim, flight)
            case Replay(completed):
                if self._flight is not None:
                    engine.flights.land(ask.key, self._flight, completed)
                return verdict
            case Bypass(error):
                engine.store_failed("acquire", "bypassed", error, ask.key, ask.operation)
            case Refuse(error) if isinstance(error, StoreError):
                engine.store_failed("acquire", "refused", error, ask.key, ask.operation)
        self._leave()
        return verdict


class SyncRun(RunBase[SyncFlight]):
    """
    A claimed operation while it runs: renewed every lease/3 (E3) until exactly one of the three ends is called.

    Nothing ends it by itself: a run that is dropped leaves its claim to the lease (E4), as `abandon` does.
    """

    __slots__ = ("__weakref__",)

    _engine: SyncEngine

    def __init__(self, engine: SyncEngine, ask: Question, claim: Claim, flight: SyncFlight | None) -> None:
        self.ask = ask
        self.claim = claim
        self._engine = engine
        self._flight = flight
        self._over = False
        self._lost = False
        self._began = engine.monotonic()
        self._renew_later()

    def keep(self, outcome: bytes, *, result: Literal["kept", "unreplayable"] = "kept") -> Ending:
        """
        Record the outcome (E1, E8).

        Returns:
            `Recorded`, or what to answer instead: `Superseded`, `Refuse`; or `Forgotten`, `Unrecorded`: the caller's
            own answer, which no retry will see.
        """
        self._over = True
        steps = machine.record(self.claim, self.ask.fingerprint, chance=self._engine.chance)
        action = next(steps)
        try:
            while True:
                action = steps.send(self._perform(action, outcome))
        except StopIteration as end:
            ending: Ending = end.value
        except BaseException:  # interrupted on the way to the store
            self.abandon()
            raise
        return self._conclude(ending, outcome, result)

    def release(self) -> None:
        """Free the key: the next call with it runs. Where the store gives no answer the attempt goes on behind."""
        self._over = True
        steps = machine.give_up(self.claim)
        action = next(steps)
        try:
            while True:
                action = steps.send(self._perform(action, b""))
        except StopIteration:
            self._land(None)
            self._settled("released")
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Leave the claim to its lease: the outcome is unknown (E4). Waiters go on and take over once it lapses."""
        self._over = True
        self._land(None)
        self._settled("abandoned")

    def _perform(self, action: machine.Action, outcome: bytes) -> machine.Event:
        store, claim = self._engine.store, self.claim
        try:
            if action is machine.COMPLETE:
                return store.complete(claim, outcome, retention=self.ask.policy.retention)
            if action is machine.LOOK:
                return store.get(claim.key)
            if action is machine.RELEASE:
                return store.release(claim)
        except Exception as error:  # after the run every failure of a store is one answer: unknown (E8)
            return as_store_error(error)
        if isinstance(action, machine.Pause):
            self._engine.sleep(action.seconds)
        else:
            assert action is machine.RELEASE_LATER
            self._engine.release_late(claim, self.ask.operation)
        return None

    def _renew_later(self) -> None:
        # Held weakly: nearly all runs are over, and gone, long before their first sign of life is due.
        self._engine.beats.after(delays.renew_interval(self.ask.policy.lease), partial(_renew, ref(self)))

    def renew(self) -> None:
        """Show a sign of life, and plan the next; for the engine's thread."""
        if self._over:
            return
        store, claim = self._engine.store, self.claim
        lost = False
        try:
            held = store.renew(claim, lease=self.ask.policy.lease)
            if not held:
                lost = machine.is_lost(claim, store.get(claim.key))
        except Exception as error:
            self._engine.store_failed("renew", "retrying", error, claim.key, self.ask.operation)
            held = True
        if self._over:
            return
        if held:
            self._renew_later()
        elif lost:
            self._claim_lost()  # go on: the effect may be done; `keep` will learn what to answer


def _renew(alive: ref[SyncRun]) -> None:
    run = alive()
    if run is not None:
        run.renew()
