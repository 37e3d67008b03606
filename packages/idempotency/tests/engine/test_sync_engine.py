"""
The sync and the async engine behave alike: one suite over both, with a faulty store and a clock that the test moves.

The tests of the sync engine's thread follow below.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from patience import PATIENCE, until_sync

from idempotency import (
    Acquired,
    Claim,
    Completed,
    Fingerprint,
    FingerprintMismatch,
    InProgress,
    OutcomeUnknown,
    Policy,
    StorageKey,
    StoreUnavailable,
    UnknownRecordVersion,
)
from idempotency._core.actions import Bypass, Forgotten, Recorded, Refuse, Replay, Superseded, Unrecorded
from idempotency._core.types import State
from idempotency.engine import Ask, Engine, Run
from idempotency.engine.owner import new_owner
from idempotency.engine.scheduler import Scheduler
from idempotency.engine_sync import SyncEngine, SyncRun
from idempotency.events import Claimed, ClaimLost, Event, Settled, StoreFailed
from idempotency.stores.memory import SyncMemoryStore
from idempotency.testing import FakeClock

pytestmark = pytest.mark.anyio

KEY = StorageKey("orders:1")
SAME, OTHER = Fingerprint(b"\x01" * 32), Fingerprint(b"\x02" * 32)
OUTCOME, SUCCESSOR = b'{"n":1}', b'{"n":2}'
STEPS = ("acquire", "renew", "complete", "release", "get")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class FaultyMemoryStore:
    """A memory store that records its calls and, on demand, fails before or after a call took effect."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.inner = SyncMemoryStore(clock=clock)
        self.calls: list[str] = []
        self.before: dict[str, list[BaseException]] = {step: [] for step in STEPS}
        self.after: dict[str, list[BaseException]] = {step: [] for step in STEPS}

    def __getattr__(self, step: str) -> Any:
        if step not in STEPS:
            raise AttributeError(step)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(step)
            if self.before[step]:
                raise self.before[step].pop(0)
            answer = getattr(self.inner, step)(*args, **kwargs)
            if self.after[step]:
                raise self.after[step].pop(0)
            return answer

        return call

    def take_over(self, *, outcome: bytes | None) -> None:
        """A successor takes the key over and, with an outcome, completes it."""
        reply = self.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        assert isinstance(reply, Acquired)
        if outcome is not None:
            assert self.inner.complete(reply.claim, outcome, retention=60)


class Async:
    """The async engine over the faulty store."""

    def __init__(self, store: FaultyMemoryStore, hooks: tuple[Callable[[Event], None], ...]) -> None:
        self.engine = Engine(_Awaitable(store), hooks=hooks, random=lambda: 0.5)  # type: ignore[arg-type]

    async def begin(self, ask: Ask) -> Any:
        return await self.engine.begin(ask)

    async def begin_and(self, ask: Ask, meanwhile: Callable[[], object]) -> Any:
        """Begin, and call *meanwhile* once the request waits."""
        verdict: Any = None

        async def begin() -> None:
            nonlocal verdict
            verdict = await self.engine.begin(ask)

        async with anyio.create_task_group() as group:
            group.start_soon(begin)
            await anyio.wait_all_tasks_blocked()
            meanwhile()
        return verdict

    async def end(self, run: Run, how: str, *args: Any, **kwargs: Any) -> Any:
        answer = getattr(run, how)(*args, **kwargs)
        return answer if how == "abandon" else await answer

    async def renew_lease(self, run: Run) -> None:
        """Renew the lease if the heartbeat is due."""
        for registered in list(run._heartbeat.ticks):
            await registered.renew_lease()

    async def renew_now(self, run: Run) -> None:
        """Renew the lease, due or not."""
        await run.renew_lease()

    async def background(self) -> None:
        """Let background tasks run."""
        await anyio.wait_all_tasks_blocked()


class Sync:
    """The sync engine over the same store; the test runs its scheduler and its sleeps."""

    def __init__(self, store: FaultyMemoryStore, hooks: tuple[Callable[[Event], None], ...]) -> None:
        self.now = FakeClock()
        self.scheduler = Scheduler(monotonic=self.now, threaded=False)
        self.meanwhile: Callable[[], object] = lambda: None
        self.engine = SyncEngine(
            store,  # type: ignore[arg-type]
            hooks=hooks,
            random=lambda: 0.5,
            monotonic=self.now,
            sleep=self.sleep,
            scheduler=self.scheduler,
        )

    def sleep(self, seconds: float) -> None:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        self.now.advance(seconds)

    async def begin(self, ask: Ask) -> Any:
        return self.engine.begin(ask)

    async def begin_and(self, ask: Ask, meanwhile: Callable[[], object]) -> Any:
        self.meanwhile = meanwhile
        return self.engine.begin(ask)

    async def end(self, run: SyncRun, how: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(run, how)(*args, **kwargs)

    async def renew_lease(self, run: SyncRun) -> None:
        self.now.advance(10)
        self.scheduler.run_due()

    async def renew_now(self, run: SyncRun) -> None:
        run.renew()

    async def background(self) -> None:
        self.scheduler.run_due()


class _Awaitable:
    def __init__(self, store: FaultyMemoryStore) -> None:
        self._store = store

    def __getattr__(self, step: str) -> Any:
        if step == "wait":  # not Waitable
            raise AttributeError(step)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._store, step)(*args, **kwargs)

        return call


def ask(fingerprint: Fingerprint = SAME, *, wait: float = 0.0, **policy: Any) -> Ask:
    return Ask(KEY, fingerprint, Policy(**({"lease": 30.0, "retention": 60.0} | policy)), "orders", wait)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FaultyMemoryStore:
    return FaultyMemoryStore(clock)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture(params=[Async, Sync], ids=["async", "sync"])
def engine(request: pytest.FixtureRequest, store: FaultyMemoryStore, events: list[Event]) -> Any:
    return request.param(store, (events.append,))


class TestBothEngines:
    async def test_kept_outcome_is_replayed_byte_for_byte(
        self, engine: Any, store: FaultyMemoryStore, events: list[Event]
    ) -> None:
        run = await engine.begin(ask())
        assert isinstance(await engine.end(run, "keep", OUTCOME), Recorded)
        again = await engine.begin(ask())
        assert isinstance(again, Replay)
        assert again.completed.outcome == OUTCOME
        assert store.calls == ["acquire", "complete", "acquire"]
        assert [type(event) for event in events] == [Claimed, Settled]
        assert isinstance(events[1], Settled)
        assert events[1].result == "kept"

    async def test_request_that_may_wait_runs_at_once_if_there_is_no_duplicate(
        self, engine: Any, store: FaultyMemoryStore, events: list[Event]
    ) -> None:
        run = await engine.begin(ask(wait=10.0))
        assert [event.waited for event in events if isinstance(event, Claimed)] == [0.0]
        assert store.calls == ["acquire"]
        await engine.end(run, "release")

    async def test_released_key_runs_again_with_attempt_1(self, engine: Any, events: list[Event]) -> None:
        await engine.end(await engine.begin(ask()), "release")
        assert [event.result for event in events if isinstance(event, Settled)] == ["released"]
        again = await engine.begin(ask())
        assert again.claim.attempt == 1
        await engine.end(again, "release")

    async def test_abandoned_key_is_taken_over_once_its_lease_has_ended(
        self, engine: Any, clock: FakeClock, events: list[Event]
    ) -> None:
        await engine.end(await engine.begin(ask()), "abandon")
        refused = await engine.begin(ask())
        assert isinstance(refused, Refuse)
        assert isinstance(refused.error, InProgress)
        clock.advance(31)
        successor = await engine.begin(ask())
        assert successor.claim.attempt == 2
        await engine.end(successor, "keep", OUTCOME)
        assert [event.result for event in events if isinstance(event, Settled)] == ["abandoned", "kept"]

    async def test_at_most_once_never_takes_over(self, engine: Any, clock: FakeClock) -> None:
        await engine.end(await engine.begin(ask(takeover=False)), "abandon")
        clock.advance(31)
        verdict = await engine.begin(ask(takeover=False))
        assert isinstance(verdict, Refuse)
        assert isinstance(verdict.error, OutcomeUnknown)

    async def test_other_fingerprint_is_a_mismatch_during_and_after_the_run(self, engine: Any) -> None:
        run = await engine.begin(ask())
        during = await engine.begin(ask(OTHER, wait=5.0))
        await engine.end(run, "keep", OUTCOME)
        after = await engine.begin(ask(OTHER))
        assert isinstance(during.error, FingerprintMismatch)
        assert isinstance(after.error, FingerprintMismatch)

    async def test_waiter_replays_the_outcome_of_the_running_duplicate(
        self, engine: Any, store: FaultyMemoryStore
    ) -> None:
        reply = store.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        assert isinstance(reply, Acquired)
        verdict = await engine.begin_and(
            ask(wait=10.0), lambda: store.inner.complete(reply.claim, OUTCOME, retention=60)
        )
        assert isinstance(verdict, Replay)
        assert verdict.completed.outcome == OUTCOME
        assert 0 < verdict.waited < 10

    async def test_waiter_runs_when_the_running_duplicate_releases_the_key(
        self, engine: Any, store: FaultyMemoryStore, events: list[Event]
    ) -> None:
        reply = store.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        assert isinstance(reply, Acquired)
        run = await engine.begin_and(ask(wait=10.0), lambda: store.inner.release(reply.claim))
        assert run.claim.attempt == 1
        assert isinstance(events[0], Claimed)
        assert 0 < events[0].waited < 10
        await engine.end(run, "keep", OUTCOME)

    async def test_waiter_never_takes_over_at_most_once(
        self, engine: Any, store: FaultyMemoryStore, clock: FakeClock
    ) -> None:
        store.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        verdict = await engine.begin_and(ask(wait=10.0, takeover=False), lambda: clock.advance(31))
        assert isinstance(verdict.error, OutcomeUnknown)

    async def test_claim_of_a_waiter_whose_reply_was_lost_is_released(
        self, engine: Any, store: FaultyMemoryStore
    ) -> None:
        reply = store.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        assert isinstance(reply, Acquired)

        def free_the_key_and_lose_the_next_reply() -> None:
            store.inner.release(reply.claim)
            store.after["acquire"] = [StoreUnavailable("reply lost")]

        verdict = await engine.begin_and(ask(wait=10.0), free_the_key_and_lose_the_next_reply)
        assert isinstance(verdict.error, StoreUnavailable)
        await engine.background()
        assert store.inner.get(KEY) is None

    async def test_claim_of_a_waiter_interrupted_while_polling_is_released(
        self, engine: Any, store: FaultyMemoryStore
    ) -> None:
        class Interrupt(BaseException):
            pass

        reply = store.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        assert isinstance(reply, Acquired)

        def free_the_key_and_interrupt_the_next_call() -> None:
            store.inner.release(reply.claim)
            store.after["acquire"] = [Interrupt()]

        with pytest.raises((Interrupt, BaseExceptionGroup)):
            await engine.begin_and(ask(wait=10.0), free_the_key_and_interrupt_the_next_call)
        await engine.background()
        assert store.inner.get(KEY) is None

    async def test_wait_that_ends_is_refused_with_in_progress_and_retry_after(
        self, engine: Any, store: FaultyMemoryStore, events: list[Event]
    ) -> None:
        store.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        verdict = await engine.begin(ask(wait=0.05))
        assert isinstance(verdict.error, InProgress)
        assert 1 <= verdict.error.retry_after <= 4
        assert store.calls.count("acquire") >= 2
        assert events == [], "a running duplicate is not a store failure"

    async def test_lost_reply_to_acquire_refuses_the_request_and_releases_its_claim(
        self, engine: Any, store: FaultyMemoryStore, events: list[Event]
    ) -> None:
        store.after["acquire"] = [StoreUnavailable("reply lost")]
        verdict = await engine.begin(ask())
        assert isinstance(verdict, Refuse)
        await engine.background()
        assert store.inner.get(KEY) is None
        assert [(event.step, event.action) for event in events if isinstance(event, StoreFailed)] == [
            ("acquire", "refused")
        ]

    async def test_unavailable_store_is_bypassed_if_the_policy_says_so(
        self, engine: Any, store: FaultyMemoryStore, events: list[Event]
    ) -> None:
        store.before["acquire"] = [StoreUnavailable("down")]
        assert isinstance(await engine.begin(ask(on_store_error="bypass")), Bypass)
        failed = [event for event in events if isinstance(event, StoreFailed)]
        assert [(event.step, event.action, event.reason) for event in failed] == [
            ("acquire", "bypassed", "down")
        ]
        await engine.background()

    async def test_unreadable_record_is_refused_even_if_the_policy_bypasses(
        self, engine: Any, store: FaultyMemoryStore
    ) -> None:
        store.before["acquire"] = [UnknownRecordVersion("from the future")]
        verdict = await engine.begin(ask(on_store_error="bypass"))
        assert isinstance(verdict.error, UnknownRecordVersion)

    async def test_claim_of_an_interrupted_acquire_is_released_later(
        self, engine: Any, store: FaultyMemoryStore
    ) -> None:
        class Interrupt(BaseException):
            pass

        store.after["acquire"] = [Interrupt()]
        with pytest.raises(Interrupt):
            await engine.begin(ask())
        await engine.background()
        assert store.inner.get(KEY) is None

    async def test_complete_is_retried_after_a_lost_reply(
        self, engine: Any, store: FaultyMemoryStore
    ) -> None:
        run = await engine.begin(ask())
        store.after["complete"] = [StoreUnavailable("reply lost")]
        assert isinstance(await engine.end(run, "keep", OUTCOME), Recorded)
        assert store.calls.count("complete") == 2

    @pytest.mark.rule("E8")
    async def test_complete_that_is_never_confirmed_leaves_the_key_to_its_lease(
        self, engine: Any, store: FaultyMemoryStore, events: list[Event]
    ) -> None:
        run = await engine.begin(ask())
        store.before["complete"] = [
            StoreUnavailable("down"),
            OSError("driver's own"),
            StoreUnavailable("down"),
        ]
        assert isinstance(await engine.end(run, "keep", OUTCOME), Unrecorded)
        assert [(event.step, event.action) for event in events if isinstance(event, StoreFailed)] == [
            ("complete", "unrecorded")
        ]
        refused = await engine.begin(ask())
        assert isinstance(refused.error, InProgress)

    @pytest.mark.rule("E8")
    async def test_lost_claim_is_superseded_by_its_successors_outcome(
        self, engine: Any, store: FaultyMemoryStore, clock: FakeClock, events: list[Event]
    ) -> None:
        run = await engine.begin(ask())
        clock.advance(31)
        store.take_over(outcome=SUCCESSOR)
        ending = await engine.end(run, "keep", OUTCOME)
        assert isinstance(ending, Superseded)
        assert ending.completed.outcome == SUCCESSOR
        assert sum(isinstance(event, ClaimLost) for event in events) == 1

    @pytest.mark.rule("E8")
    async def test_lost_claim_is_refused_while_its_successor_runs(
        self, engine: Any, store: FaultyMemoryStore, clock: FakeClock
    ) -> None:
        run = await engine.begin(ask())
        clock.advance(31)
        store.take_over(outcome=None)
        ending = await engine.end(run, "keep", OUTCOME)
        assert isinstance(ending, Refuse)
        assert isinstance(ending.error, InProgress)

    @pytest.mark.rule("E8")
    async def test_lost_claim_without_a_record_gives_the_verdict_forgotten(
        self, engine: Any, store: FaultyMemoryStore, events: list[Event]
    ) -> None:
        run = await engine.begin(ask())
        store.inner.forget(KEY)
        assert isinstance(await engine.end(run, "keep", OUTCOME), Forgotten)
        assert isinstance(events[-1], ClaimLost)

    async def test_outcome_recorded_by_the_handler_is_not_a_lost_claim(
        self, engine: Any, store: FaultyMemoryStore, events: list[Event]
    ) -> None:
        """Between `complete_in` of the handler and the engine's complete, a heartbeat finds the record completed."""
        run = await engine.begin(ask())
        assert store.inner.complete(run.claim, OUTCOME, retention=60)
        await engine.renew_lease(run)
        await engine.renew_lease(run)
        assert store.calls == ["acquire", "renew", "get"], "a completed record is not renewed"
        assert isinstance(await engine.end(run, "keep", OUTCOME), Recorded)
        assert [type(event) for event in events] == [Claimed, Settled]

    @pytest.mark.parametrize("taken_over", [True, False])
    async def test_claim_lost_during_the_run_is_reported_at_the_next_heartbeat(
        self, taken_over: bool, engine: Any, store: FaultyMemoryStore, clock: FakeClock, events: list[Event]
    ) -> None:
        run = await engine.begin(ask())
        if taken_over:
            clock.advance(31)
            store.take_over(outcome=None)
        else:
            store.inner.forget(KEY)
        await engine.renew_lease(run)
        await engine.renew_lease(run)
        assert [type(event) for event in events] == [Claimed, ClaimLost]
        assert store.calls.count("renew") == 1
        await engine.end(run, "abandon")

    async def test_heartbeat_without_a_reply_is_repeated(
        self, engine: Any, store: FaultyMemoryStore, events: list[Event]
    ) -> None:
        run = await engine.begin(ask())
        store.inner.forget(KEY)
        store.before["get"] = [StoreUnavailable("down")]
        await engine.renew_lease(run)
        assert [type(event) for event in events] == [Claimed, StoreFailed]
        assert (events[1].step, events[1].action) == ("renew", "retrying")  # type: ignore[union-attr]
        await engine.renew_lease(run)
        assert isinstance(events[-1], ClaimLost)
        await engine.end(run, "abandon")

    @pytest.mark.parametrize(
        ("how", "step", "failures"),
        [("keep", "complete", 0), ("keep", "complete", 1), ("release", "release", 0)],
    )
    @pytest.mark.rule("E4")
    async def test_interrupt_while_ending_a_run_leaves_the_key_to_its_lease(
        self, how: str, step: str, failures: int, engine: Any, store: FaultyMemoryStore, events: list[Event]
    ) -> None:
        class Interrupt(BaseException):
            pass

        run = await engine.begin(ask())
        store.before[step] = [*[StoreUnavailable("down")] * failures, Interrupt()]
        with pytest.raises(Interrupt):
            await engine.end(run, how, *([OUTCOME] if how == "keep" else []))
        assert [event.result for event in events if isinstance(event, Settled)] == ["abandoned"]
        record = store.inner.get(KEY)
        assert record is not None
        assert record.state is State.RUNNING

    @pytest.mark.parametrize("how", ["keep", "release", "abandon"])
    async def test_ended_run_renews_no_lease(self, how: str, engine: Any, store: FaultyMemoryStore) -> None:
        run = await engine.begin(ask())
        await engine.end(run, how, *([OUTCOME] if how == "keep" else []))
        await engine.renew_now(run)  # a heartbeat that was in progress when the run ended
        await engine.renew_lease(run)
        assert "renew" not in store.calls

    async def test_run_that_ends_during_its_heartbeat_is_not_a_lost_claim(
        self, engine: Any, store: FaultyMemoryStore, events: list[Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = await engine.begin(ask())

        def release_and_get(key: StorageKey) -> None:
            """End the run during its heartbeat: the key is free when the record is read."""
            store.inner.release(run.claim)
            run._over = True

        monkeypatch.setattr(store.inner, "renew", lambda *_, **__: False)
        monkeypatch.setattr(store.inner, "get", release_and_get)
        await engine.renew_now(run)
        assert [type(event) for event in events] == [Claimed]

    async def test_release_without_a_reply_is_repeated_later(
        self, engine: Any, store: FaultyMemoryStore
    ) -> None:
        run = await engine.begin(ask())
        store.before["release"] = [StoreUnavailable("down")]
        await engine.end(run, "release")
        await engine.background()
        assert store.inner.get(KEY) is None

    async def test_error_in_a_hook_is_logged_and_ignored(
        self, request: pytest.FixtureRequest, store: FaultyMemoryStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(event: Event) -> None:
            raise RuntimeError("hook")

        for kind in (Async, Sync):
            engine = kind(store, (broken,))
            run = await engine.begin(ask())
            await engine.end(run, "release")
        assert "hook failed" in caplog.text


class TestHeartbeat:
    """The heartbeat of the sync engine, on a clock that the test moves."""

    @pytest.fixture
    def sync(self, store: FaultyMemoryStore, events: list[Event]) -> Sync:
        return Sync(store, (events.append,))

    def pass_time(self, sync: Sync, clock: FakeClock, seconds: float) -> None:
        for _ in range(round(seconds)):
            clock.advance(1)
            sync.now.advance(1)
            sync.scheduler.run_due()

    @pytest.mark.rule("E3")
    def test_run_outlives_its_lease_while_its_heartbeat_renews_it(
        self, sync: Sync, store: FaultyMemoryStore, clock: FakeClock
    ) -> None:
        run = sync.engine.begin(ask())
        assert isinstance(run, SyncRun)
        self.pass_time(sync, clock, 100)
        assert "get" not in store.calls, "a renewal that succeeded needs no further call"
        duplicate = sync.engine.begin(ask())
        assert isinstance(duplicate, Refuse)
        assert isinstance(run.keep(OUTCOME), Recorded)
        self.pass_time(sync, clock, 20)
        assert len(sync.scheduler) == 0

    def test_settled_event_has_the_duration_of_the_run(self, sync: Sync, events: list[Event]) -> None:
        run = sync.engine.begin(ask())
        assert isinstance(run, SyncRun)
        sync.now.advance(2.5)
        run.release()
        assert [event.duration for event in events if isinstance(event, Settled)] == [2.5]

    @pytest.mark.rule("E8")
    def test_complete_is_retried_after_a_delay(self, sync: Sync, store: FaultyMemoryStore) -> None:
        run = sync.engine.begin(ask())
        assert isinstance(run, SyncRun)
        store.before["complete"] = [StoreUnavailable("down"), StoreUnavailable("down")]
        began = sync.now()
        assert isinstance(run.keep(OUTCOME), Recorded)
        assert sync.now() - began == pytest.approx(0.3)

    def test_garbage_collected_run_is_not_renewed(
        self, sync: Sync, store: FaultyMemoryStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = sync.engine.begin(ask())
        del run
        self.pass_time(sync, clock, 31)
        assert ("renew" not in store.calls, caplog.text) == (True, "")
        successor = sync.engine.begin(ask())
        assert isinstance(successor, SyncRun)
        assert successor.claim.attempt == 2

    def test_failed_renewal_is_repeated_at_the_next_heartbeat(
        self, sync: Sync, store: FaultyMemoryStore, clock: FakeClock, events: list[Event]
    ) -> None:
        run = sync.engine.begin(ask())
        assert isinstance(run, SyncRun)
        store.before["renew"] = [StoreUnavailable("down"), OSError("driver's own")]
        self.pass_time(sync, clock, 35)
        assert [event.action for event in events if isinstance(event, StoreFailed)] == [
            "retrying",
            "retrying",
        ]
        assert [event.reason for event in events if isinstance(event, StoreFailed)] == [
            "down",
            "",  # the text of a driver's error may contain secrets
        ]
        assert store.calls.count("renew") == 3
        assert isinstance(run.keep(OUTCOME), Recorded)

    def test_lost_claim_is_reported_once_and_not_renewed_again(
        self, sync: Sync, store: FaultyMemoryStore, clock: FakeClock, events: list[Event]
    ) -> None:
        run = sync.engine.begin(ask())
        assert isinstance(run, SyncRun)
        store.inner.forget(KEY)
        self.pass_time(sync, clock, 40)
        assert store.calls.count("renew") == 1
        assert isinstance(run.keep(OUTCOME), Forgotten)
        assert sum(isinstance(event, ClaimLost) for event in events) == 1

    def test_late_releases_end_with_an_event_and_are_bounded(
        self, sync: Sync, store: FaultyMemoryStore, clock: FakeClock, events: list[Event]
    ) -> None:
        store.before["acquire"] = [StoreUnavailable("down") for _ in range(100)]
        store.before["release"] = [StoreUnavailable("down") for _ in range(1000)]
        for _ in range(100):
            sync.engine.begin(ask())
        assert len(sync.scheduler) == 64
        self.pass_time(sync, clock, 10)
        assert len(sync.scheduler) == 0
        failed = [event for event in events if isinstance(event, StoreFailed) and event.step == "release"]
        assert len(failed) == 64
        assert store.calls.count("release") == 64 * 4
        store.before["acquire"] = [StoreUnavailable("down")]
        sync.engine.begin(ask())
        assert len(sync.scheduler) == 1, "another late release is accepted"

    @pytest.mark.parametrize(("granted", "releases"), [(True, 1), (False, 4)])
    def test_late_release_of_an_unconfirmed_claim_is_repeated_until_it_succeeds(
        self,
        granted: bool,
        releases: int,
        sync: Sync,
        store: FaultyMemoryStore,
        clock: FakeClock,
        events: list[Event],
    ) -> None:
        """The store may grant the claim after its release, by a call that is still in progress."""
        (store.after if granted else store.before)["acquire"] = [StoreUnavailable("down")]
        sync.engine.begin(ask())
        self.pass_time(sync, clock, 10)
        assert store.calls.count("release") == releases
        assert (len(sync.scheduler), store.inner.get(KEY)) == (0, None)
        assert not any(isinstance(event, StoreFailed) and event.step == "release" for event in events)

    def test_late_release_of_a_confirmed_claim_ends_if_the_store_does_not_know_it(
        self, sync: Sync, store: FaultyMemoryStore, clock: FakeClock
    ) -> None:
        """The release took effect, and only its reply was lost."""
        run = sync.engine.begin(ask())
        assert isinstance(run, SyncRun)
        store.after["release"] = [StoreUnavailable("reply lost")]
        run.release()
        self.pass_time(sync, clock, 10)
        assert store.calls.count("release") == 2


class TestScheduler:
    def test_one_thread_runs_every_job_and_ends_when_idle(self) -> None:
        scheduler, ran, scheduled = Scheduler(), threading.Semaphore(0), threading.Event()
        threads: set[threading.Thread] = set()

        def job() -> None:
            assert scheduled.wait(PATIENCE)  # so that the thread is not idle before all jobs are there
            threads.add(threading.current_thread())
            ran.release()

        for _ in range(20):
            scheduler.after(0.0, job)
        scheduled.set()
        for _ in range(20):
            assert ran.acquire(timeout=PATIENCE)
        (thread,) = threads
        assert thread.name == "idempotency-scheduler"
        thread.join(timeout=PATIENCE)
        assert not thread.is_alive()
        assert scheduler._thread is None

    def test_earlier_job_wakes_the_thread(self) -> None:
        scheduler, ran = Scheduler(), threading.Event()
        scheduler.after(3600.0, lambda: None)
        scheduler.after(0.01, ran.set)
        assert ran.wait(30)
        assert len(scheduler) == 1
        scheduler._start_anew()

    def test_a_job_that_is_due_in_a_thousand_years_does_not_end_the_thread(self) -> None:
        """Longer than a thread can wait in one go; a renewal of an endless lease is such a job."""
        waited: list[float] = []

        class Changed(threading.Condition):
            def wait(self, timeout: float | None = None) -> bool:
                assert timeout is not None
                waited.append(timeout)
                return super().wait(timeout)

        scheduler = Scheduler()
        scheduler._changed = Changed()
        scheduler.after(3e10, lambda: None)
        until_sync(lambda: waited)
        assert waited == [threading.TIMEOUT_MAX]
        thread = scheduler._thread
        ran = threading.Event()
        scheduler.after(0.0, ran.set)
        assert ran.wait(PATIENCE)
        assert scheduler._thread is thread
        scheduler._start_anew()

    def test_error_in_a_job_is_logged_and_the_next_job_runs(self, caplog: pytest.LogCaptureFixture) -> None:
        clock, ran = FakeClock(), []
        scheduler = Scheduler(monotonic=clock, threaded=False)
        scheduler.after(1.0, lambda: 1 / 0)
        scheduler.after(2.0, lambda: ran.append("later"))
        scheduler.after(1.0, lambda: ran.append("same instant"))
        clock.advance(2)
        with caplog.at_level(logging.ERROR, "idempotency"):
            scheduler.run_due()
        assert ran == ["same instant", "later"]
        assert "ZeroDivisionError" in caplog.text

    def test_thread_that_cannot_start_is_logged_and_started_with_the_next_job(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        scheduler, ran = Scheduler(), threading.Event()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            scheduler.after(0.0, ran.set)
        assert "no heartbeat" in caplog.text
        scheduler.after(0.0, lambda: None)  # the next job starts the thread
        assert ran.wait(30)

    @pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system has no fork")
    def test_forked_child_runs_its_own_jobs_and_not_its_parents(self) -> None:
        program = """
import os, sys, threading, warnings
from idempotency.engine.scheduler import Scheduler
warnings.simplefilter("ignore", DeprecationWarning)
scheduler = Scheduler()
scheduler.after(0.3, lambda: print("parent's job", os.getpid() == parent, flush=True))
parent = os.getpid()
child = os.fork()
if child == 0:
    assert len(scheduler) == 0
    ran = threading.Event()
    scheduler.after(0.0, ran.set)
    os._exit(0 if ran.wait(30) else 1)
_, status = os.waitpid(child, 0)
scheduler._thread.join(30)
sys.exit(status != 0)
"""
        done = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "parent's job True\n"


@pytest.mark.real_time("a lease is renewed by a real thread")
def test_lease_is_renewed_while_the_handler_blocks() -> None:
    """A handler that works longer than its lease keeps its claim, in real time."""
    renewals: list[Claim] = []

    class CountsRenewals(SyncMemoryStore):
        def renew(self, claim: Claim, *, lease: float) -> bool:
            renewals.append(claim)
            return super().renew(claim, lease=lease)

    engine = SyncEngine(CountsRenewals())
    run = engine.begin(ask(lease=1.2))
    assert isinstance(run, SyncRun)
    until_sync(lambda: len(renewals) >= 4)  # one each third of the lease
    assert isinstance(engine.begin(ask(lease=1.2)), Refuse)
    assert isinstance(run.keep(OUTCOME), Recorded)


def test_sixteen_threads_with_one_key_run_once() -> None:
    engine = SyncEngine(SyncMemoryStore())
    runs: list[Claim] = []
    outcomes: list[bytes] = []

    def call() -> None:
        verdict = engine.begin(ask(wait=PATIENCE))
        if isinstance(verdict, SyncRun):
            runs.append(verdict.claim)
            verdict.keep(OUTCOME)
        elif isinstance(verdict, Replay):
            assert isinstance(verdict.completed, Completed)
            outcomes.append(verdict.completed.outcome)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1
    assert outcomes == [OUTCOME] * 15
