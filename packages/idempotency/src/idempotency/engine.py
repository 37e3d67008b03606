"""
The engine: performs what the core's machine asks for, with a store, a clock and the running event loop.

It is the shell between `idempotency._core.machine` and the world, shared by the ASGI middleware and the decorators for
coroutine functions; `engine_sync` is its only twin.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from idempotency._core import machine, pace
from idempotency._core.decide import Execute, Refuse, Replay
from idempotency._core.errors import StoreError, StoreUnavailable
from idempotency._core.machine import (
    RECORDED,
    Bypass,
    Ending,
    Forgotten,
    Recorded,
    Superseded,
    Unrecorded,
    Woken,
)
from idempotency._core.policy import Policy
from idempotency._core.types import Acquired, Claim, Completed, Fingerprint, Owner, StorageKey, key_id
from idempotency._flights import Flight, Flights, Promoted
from idempotency._owner import new_owner
from idempotency._pulse import Pulse
from idempotency._runtime import Runtime, running
from idempotency.events import Claimed, ClaimLost, Event, Hook, Settled, StoreFailed
from idempotency.store import Store, Waitable

__all__ = ["Ask", "Engine", "Run", "emit"]

_log = logging.getLogger("idempotency")

_MAX_LATE_RELEASES = 256  # per engine; past it the lease decides

Step: TypeAlias = Literal["acquire", "renew", "complete", "release"]


class Ask(NamedTuple):
    """
    One keyed request, as the engine sees it.

    Attributes:
        operation: Its name in events, such as "POST /charges".
        wait: Seconds it may wait for a running twin.
    """

    key: StorageKey
    fingerprint: Fingerprint
    policy: Policy
    operation: str
    wait: float


class Engine:
    """
    Begins runs for one store. Safe to share between requests and between loops; one per application is enough.

    Args:
        store: Where records live.
        hooks: Called with every event.
        chance: Draws from [0, 1); injected by tests.
        monotonic: A clock for durations in events, never for leases; injected by tests.
    """

    def __init__(
        self,
        store: Store,
        *,
        hooks: Sequence[Hook] = (),
        chance: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.hooks = tuple(hooks)
        self.chance = chance
        self.monotonic = monotonic
        self.flights = Flights()
        self._late_releases = 0
        self._pulses: tuple[object, dict[float, Pulse]] = (None, {})

    async def begin(self, ask: Ask) -> Run | Replay | Refuse | Bypass:
        """
        Claim the operation, or learn why not.

        Returns:
            `Run`: it is ours to run, under a heartbeat; end it by `keep`, `release` or `abandon`. `Replay`: answer
            with the outcome. `Refuse`: answer with the error. `Bypass`: run it unprotected.
        """
        runtime, owner = running(), new_owner()
        if ask.wait > 0 and self.flights.find(ask.key, ask.fingerprint, runtime.loop) is not None:
            return await _Attempt(self, ask, runtime, owner).drive(None)
        policy = ask.policy
        try:
            reply: machine.Event = await self.store.acquire(
                ask.key,
                fingerprint=ask.fingerprint,
                owner=owner,
                lease=policy.lease,
                retention=policy.retention,
                takeover=policy.takeover,
            )
        except StoreError as error:
            reply = error
        except BaseException:
            self.spawn_release(machine.unconfirmed(ask.key, owner), ask.operation)
            raise
        # Nearly every request is decided by the store's first reply: no machine is set in motion for it.
        if isinstance(reply, Acquired):
            return self.start(ask, reply.claim, runtime)
        if isinstance(reply, Completed) and reply.fingerprint == ask.fingerprint:
            return Replay(reply)
        return await _Attempt(self, ask, runtime, owner).drive(reply)

    def start(
        self, ask: Ask, claim: Claim, runtime: Runtime, *, waited: float = 0.0, flight: Flight | None = None
    ) -> Run:
        """A run under *claim*, leading the twins of this process unless another request does."""
        flight = flight or self.flights.lead(ask.key, ask.fingerprint, runtime.loop)
        if self.hooks:
            self.emit(
                Claimed(operation=ask.operation, key_id=key_id(ask.key), attempt=claim.attempt, waited=waited)
            )
        return Run(self, ask, claim, flight, runtime)

    def pulse(self, runtime: Runtime, lease: float) -> Pulse:
        """Where a run under *lease* shows signs of life in the running loop."""
        loop, pulses = self._pulses
        if loop is not runtime.loop:  # the pulses of another loop live on in its timers
            pulses = {}
            self._pulses = (runtime.loop, pulses)
        pulse = pulses.get(lease)
        if pulse is None:
            pulse = pulses[lease] = Pulse(runtime, pace.renew_interval(lease))
        return pulse

    def emit(self, event: Event) -> None:
        """Tell the hooks; with none installed, what must not go unseen is logged."""
        emit(self.hooks, event)

    def traceparent(self) -> str | None:
        """The trace context to record with an outcome, from the first hook that has one (`hooks.OpenTelemetryHook`)."""
        for hook in self.hooks:
            current = getattr(hook, "traceparent", None)
            if current is not None:
                value: str | None = current()
                return value
        return None

    async def release_late(self, claim: Claim, operation: str) -> None:
        """Try for a while to have the store forget *claim*; then its lease decides."""
        self._late_releases += 1
        try:
            for delay in (*pace.RELEASE_RETRIES, None):
                try:
                    await self.store.release(claim)
                except Exception as error:
                    if delay is None:
                        self.store_failed("release", "unrecorded", error, claim.key, operation)
                        return
                    await running().sleep(delay)
                else:
                    return
        finally:
            self._late_releases -= 1

    def spawn_release(self, claim: Claim, operation: str) -> None:
        """`release_late` in a task of its own."""
        if self._late_releases < _MAX_LATE_RELEASES:
            running().spawn(lambda: self.release_late(claim, operation))

    def store_failed(
        self,
        step: Step,
        action: Literal["refused", "bypassed", "retrying", "unrecorded"],
        error: BaseException,
        key: StorageKey,
        operation: str,
    ) -> None:
        """Tell of a store that gave no answer."""
        self.emit(
            StoreFailed(
                operation=operation, key_id=key_id(key), step=step, action=action, error=type(error).__name__
            )
        )


class _Attempt:
    """One request that the store's first reply did not decide, on its way to the verdict."""

    __slots__ = ("_ask", "_engine", "_flight", "_owner", "_runtime", "_since")

    def __init__(self, engine: Engine, ask: Ask, runtime: Runtime, owner: Owner) -> None:
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
            self._engine.spawn_release(machine.unconfirmed(self._ask.key, self._owner), self._ask.operation)
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


class Run:
    """
    A claimed operation while it runs: renewed every lease/3 (E3) until exactly one of the three ends is called.

    Nothing ends it by itself: a run that is dropped leaves its claim to the lease (E4), as `abandon` does.
    """

    __slots__ = ("_began", "_engine", "_flight", "_lost", "_over", "_pulse", "_runtime", "ask", "claim")

    def __init__(
        self, engine: Engine, ask: Ask, claim: Claim, flight: Flight | None, runtime: Runtime
    ) -> None:
        self.ask = ask
        self.claim = claim
        self._engine = engine
        self._flight = flight
        self._runtime = runtime
        self._over = False
        self._lost = False
        self._began = engine.monotonic() if engine.hooks else 0.0
        self._pulse = engine.pulse(runtime, ask.policy.lease)
        self._pulse.add(self._renew)

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
            try:
                answer: machine.Event = await engine.store.complete(
                    self.claim, outcome, retention=ask.policy.retention
                )
            except Exception as error:
                answer = as_store_error(error)
            if answer is True:
                self._land(Completed(ask.fingerprint, outcome, 0.0, ask.policy.retention))
                self._settled(result)
                return RECORDED
            ending = await self._walk_record(answer, outcome)
        except BaseException:
            self._land(None)
            raise
        match ending:
            case Recorded():
                self._land(Completed(ask.fingerprint, outcome, 0.0, ask.policy.retention))
                self._settled(result)
            case Superseded(completed):
                self._land(completed)
                self._claim_lost()
            case Forgotten() | Refuse():
                self._land(None)
                self._claim_lost()
            case Unrecorded(unanswered):
                self._land(None)
                engine.store_failed("complete", "unrecorded", unanswered, self.claim.key, ask.operation)
        return ending

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

    async def release(self) -> None:
        """Free the key: the next request with it runs. Where the store gives no answer the attempt goes on behind."""
        self._stop()
        steps = machine.give_up(self.claim)
        action = next(steps)
        try:
            while True:
                action = steps.send(await self._perform(action, b""))
        except StopIteration:
            pass
        finally:
            self._land(None)
        self._settled("released")

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
            await self._runtime.sleep(action.seconds)
        else:
            assert action is machine.RELEASE_LATER
            self._engine.spawn_release(claim, self.ask.operation)
        return None

    async def _renew(self) -> None:
        if self._over:
            return
        try:
            held = await self._engine.store.renew(self.claim, lease=self.ask.policy.lease)
        except Exception as error:
            self._engine.store_failed("renew", "retrying", error, self.claim.key, self.ask.operation)
            held = True
        if self._over:
            return
        if not held:
            self._pulse.remove(self._renew)
            self._claim_lost()  # go on: the effect may be done; `keep` will learn what to answer

    def _stop(self) -> None:
        self._over = True
        self._pulse.remove(self._renew)

    def _land(self, completed: Completed | None) -> None:
        flight, self._flight = self._flight, None
        if flight is None:
            return
        if completed is None:
            self._engine.flights.leave(self.claim.key, flight)
        else:
            self._engine.flights.land(self.claim.key, flight, completed)

    def _claim_lost(self) -> None:
        if not self._lost:
            self._lost = True
            self._engine.emit(
                ClaimLost(
                    operation=self.ask.operation, key_id=key_id(self.claim.key), attempt=self.claim.attempt
                )
            )

    def _settled(self, result: Literal["kept", "unreplayable", "released", "abandoned"]) -> None:
        if self._engine.hooks:
            self._engine.emit(
                Settled(
                    operation=self.ask.operation,
                    key_id=key_id(self.claim.key),
                    attempt=self.claim.attempt,
                    result=result,
                    duration=self._engine.monotonic() - self._began,
                )
            )


def as_store_error(error: Exception) -> StoreError:
    """A StoreError as it is; anything else a store raised is a store that could not answer."""
    if isinstance(error, StoreError):
        return error
    return StoreUnavailable(f"the store raised {type(error).__name__}")


def emit(hooks: Sequence[Hook], event: Event) -> None:
    """Tell every hook; what one raises is logged. With no hook a lost claim and a failed store are logged."""
    for hook in hooks:
        try:
            hook(event)
        except Exception:
            _log.exception("an idempotency hook failed")
    if not hooks:
        match event:
            case ClaimLost(operation=operation, key_id=name):
                _log.error("claim lost: %s may have run twice (key %s)", operation, name)
            case StoreFailed(operation=operation, key_id=name, step=step, action=action, error=error):
                _log.warning("store failed at %s: %s, %s (key %s, %s)", step, operation, action, name, error)
