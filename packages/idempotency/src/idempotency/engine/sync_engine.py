"""
The engine for code without an event loop: performs the same protocol with a sync store, threads and a clock.

It takes the same steps as `async_engine`, but a call that waits for a duplicate blocks its thread, and one daemon
thread (`idempotency.engine.scheduler`) renews the leases of all runs and repeats failed releases.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal
from weakref import ref

from idempotency._core import actions, delays, protocol
from idempotency._core.actions import Bypass, Ending, Execute, Refuse, Replay, Sleep, Verdict, WaitEnded
from idempotency._core.errors import StoreError, as_store_error
from idempotency._core.types import Claim, Completed
from idempotency.engine.base import EngineBase, RunBase
from idempotency.engine.checks import checked_hooks
from idempotency.engine.overrides import overrides
from idempotency.engine.owner import new_owner
from idempotency.engine.request import OperationRequest
from idempotency.engine.scheduler import Scheduler
from idempotency.engine.sync_single_flight import SyncInFlight, SyncSingleFlight
from idempotency.events import Hook
from idempotency.store import SyncStore

__all__ = ["SyncEngine", "SyncRun"]

# At most so many at once per engine, because they share its thread; further claims stay until their leases end.
_MAX_LATE_RELEASES = 64


class SyncEngine(EngineBase[SyncInFlight]):
    """
    Begins runs for one store, from any thread.

    Args:
        store: Where records live.
        hooks: Called with every event; events of the heartbeat come from the engine's own thread.
        random: Returns a number in [0, 1); injected by tests.
        monotonic: A clock in seconds, for waits and for durations in events, never for leases; injected by tests.
        sleep: Sleeps for the given seconds; injected by tests.
        scheduler: Performs heartbeats and late releases; injected by tests.
    """

    single_flight: SyncSingleFlight

    def __init__(
        self,
        store: SyncStore,
        *,
        hooks: Sequence[Hook] = (),
        random: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        scheduler: Scheduler | None = None,
    ) -> None:
        self.store = store
        self.hooks: tuple[Hook, ...] = checked_hooks(hooks)
        self.random = random
        self.monotonic = monotonic
        self.sleep = sleep
        self.scheduler: Scheduler = Scheduler() if scheduler is None else scheduler
        self.single_flight = SyncSingleFlight()
        self._late: set[Claim] = set()
        overrides.adopt(self)

    def begin(self, request: OperationRequest) -> SyncRun | Replay | Refuse | Bypass:
        """
        Claim the operation, or say what to do instead.

        Returns:
            `SyncRun`: run the operation, under a heartbeat, and end it by `keep`, `release` or `abandon`. `Replay`:
            answer with the outcome. `Refuse`: answer with the error. `Bypass`: run it unprotected.
        """
        acquisition = _Acquisition(self, request)
        try:
            verdict = acquisition.drive()
        except BaseException:
            acquisition.cancel()
            raise
        return acquisition.conclude(verdict)

    def release_late(self, claim: Claim, operation: str) -> None:
        """Release *claim* in the engine's thread, with retries; if all fail, the key is taken until the lease ends."""
        if len(self._late) >= _MAX_LATE_RELEASES:
            return
        self._late.add(claim)
        steps = protocol.release_late(claim)

        def perform(action: actions.Action) -> None:
            try:
                while not isinstance(action, Sleep):
                    action = steps.send(self._release(claim))
            except StopIteration as end:
                self._late.discard(claim)
                if end.value is not None:
                    self.store_failed("release", "unrecorded", end.value, claim.key, operation)
            else:
                self.scheduler.after(action.seconds, lambda: perform(steps.send(None)))

        self.scheduler.after(0.0, lambda: perform(next(steps)))

    def _release(self, claim: Claim) -> bool | Exception:
        try:
            return self.store.release(claim)
        except Exception as error:
            return error


class _Acquisition:
    """Takes one request to its verdict: run, replay, refuse or bypass."""

    __slots__ = ("_asked", "_engine", "_in_flight", "_owner", "_request", "_since")

    def __init__(self, engine: SyncEngine, request: OperationRequest) -> None:
        self._in_flight: SyncInFlight | None = None  # the duplicates that this request leads, if any
        self._engine = engine
        self._request = request
        self._owner = new_owner()
        self._since = engine.monotonic()
        self._asked = False

    def drive(self) -> Verdict:
        request, engine = self._request, self._engine
        steps = protocol.begin(
            request.key,
            request.fingerprint,
            policy=request.policy,
            wait=request.wait,
            random=engine.random,
            duplicate_here=protocol.follows_duplicate(request.wait)
            and engine.single_flight.find(request.key, request.fingerprint) is not None,
        )
        action = next(steps)
        try:
            while True:
                if action is actions.ACQUIRE:
                    action = steps.send(self._acquire())
                elif isinstance(action, actions.Await):
                    completed = self._await(action)
                    action = steps.send(WaitEnded(engine.monotonic() - self._since, completed))
                else:
                    assert action is actions.RELEASE_LATER
                    engine.release_late(protocol.unconfirmed(request.key, self._owner), request.operation)
                    action = steps.send(None)
        except StopIteration as end:
            verdict: Verdict = end.value
            return verdict

    def _acquire(self) -> actions.Event:
        request = self._request
        self._asked = True
        try:
            return self._engine.store.acquire(
                request.key,
                fingerprint=request.fingerprint,
                owner=self._owner,
                lease=request.policy.lease,
                retention=request.policy.retention,
                takeover=request.policy.takeover,
            )
        except StoreError as error:
            return error

    def _await(self, action: actions.Await) -> Completed | None:
        engine, request = self._engine, self._request
        if self._in_flight is None:
            leader = engine.single_flight.find(request.key, request.fingerprint)
            if leader is not None:
                completed, promoted = engine.single_flight.follow(leader, request.key, action.limit)
                if promoted:
                    self._in_flight = leader
                return completed
            self._in_flight = engine.single_flight.lead(request.key, request.fingerprint)
        engine.sleep(min(action.poll, action.limit))
        return None

    def _hand_over(self) -> None:
        """If this request leads its duplicates, let one of them lead instead."""
        if self._in_flight is not None:
            self._engine.single_flight.hand_over(self._request.key, self._in_flight)
            self._in_flight = None

    def cancel(self) -> None:
        """End without a run: release the claim that the store may have granted."""
        self._hand_over()
        if self._asked:
            self._engine.release_late(
                protocol.unconfirmed(self._request.key, self._owner), self._request.operation
            )

    def conclude(self, verdict: Verdict) -> SyncRun | Replay | Refuse | Bypass:
        engine, request = self._engine, self._request
        if isinstance(verdict, Execute):
            if engine.hooks:
                engine.claimed(request, verdict.claim, verdict.waited)
            in_flight = self._in_flight or engine.single_flight.lead(request.key, request.fingerprint)
            return SyncRun(engine, request, verdict.claim, in_flight)
        if isinstance(verdict, Replay) and self._in_flight is not None:
            in_flight, self._in_flight = self._in_flight, None
            engine.single_flight.resolve(request.key, in_flight, verdict.completed)
        engine.not_claimed(request, verdict)
        self._hand_over()
        return verdict


class SyncRun(RunBase[SyncInFlight]):
    """
    A claimed operation while it runs. Its lease is renewed every lease/3 (E3) until `keep`, `release` or `abandon` is
    called; call exactly one of them. A run that is garbage-collected before that is not renewed any more.
    """

    __slots__ = ("__weakref__",)

    _engine: SyncEngine

    def __init__(
        self, engine: SyncEngine, request: OperationRequest, claim: Claim, in_flight: SyncInFlight | None
    ) -> None:
        self.request = request
        self.claim = claim
        self._engine = engine
        self._in_flight = in_flight
        self._over = False
        self._lost = False
        self._began = engine.monotonic()
        self._renew_later()

    def keep(self, outcome: bytes, *, result: Literal["kept", "unreplayable"] = "kept") -> Ending:
        """
        Record the outcome (E1, E8).

        Returns:
            `Recorded`. `Superseded` or `Refuse`: give the answer that it holds instead. `Forgotten` or `Unrecorded`:
            give the caller's own answer, which retries will not get.
        """
        self._over = True
        steps = protocol.record(self.claim, self.request.fingerprint, random=self._engine.random)
        action = next(steps)
        try:
            while True:
                action = steps.send(self._perform(action, outcome))
        except StopIteration as end:
            ending: Ending = end.value
        except BaseException:  # interrupted during a call
            self.abandon()
            raise
        return self._conclude(ending, outcome, result)

    def release(self) -> None:
        """Free the key: the next call with it runs. A release that fails is repeated in the background."""
        self._over = True
        steps = protocol.release()
        action = next(steps)
        try:
            while True:
                action = steps.send(self._perform(action, b""))
        except StopIteration:
            self._resolve_followers(None)
            self._settled("released")
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Stop renewing without a release: the outcome is unknown (E4). A duplicate may take over after the lease."""
        self._over = True
        self._resolve_followers(None)
        self._settled("abandoned")

    def _perform(self, action: actions.Action, outcome: bytes) -> actions.Event:
        store, claim = self._engine.store, self.claim
        try:
            if action is actions.COMPLETE:
                return store.complete(claim, outcome, retention=self.request.policy.retention)
            if action is actions.GET_RECORD:
                return store.get(claim.key)
            if action is actions.RELEASE:
                return store.release(claim)
        except Exception as error:
            # After a run, any failure means that the effect of the call is unknown (E8).
            return as_store_error(error)
        if isinstance(action, actions.Sleep):
            self._engine.sleep(action.seconds)
        else:
            assert action is actions.RELEASE_LATER
            self._engine.release_late(claim, self.request.operation)
        return None

    def _renew_later(self) -> None:
        # A weak reference: nearly all runs end long before their first renewal, and should be freed then.
        self._engine.scheduler.after(
            delays.renew_interval(self.request.policy.lease), partial(_renew, ref(self))
        )

    def renew(self) -> None:
        """Renew the lease and schedule the next renewal. Runs in the engine's thread."""
        if self._over:
            return
        steps = protocol.renew(self.claim)
        action = next(steps)
        try:
            while True:
                action = steps.send(self._ask(action))
        except StopIteration as end:
            result: Literal["held", "lost", "settled"] = end.value
        except Exception as error:
            self._engine.store_failed("renew", "retrying", error, self.claim.key, self.request.operation)
            result = "held"
        if self._over:
            return
        if result == "held":
            self._renew_later()
        elif result == "lost":
            self._claim_lost()  # the run goes on, since its effect may be done; `keep` finds out what to answer

    def _ask(self, action: actions.Action) -> actions.Event:
        if action is actions.RENEW:
            return self._engine.store.renew(self.claim, lease=self.request.policy.lease)
        assert action is actions.GET_RECORD
        return self._engine.store.get(self.claim.key)


def _renew(alive: ref[SyncRun]) -> None:
    run = alive()
    if run is not None:
        run.renew()
