"""
The two engines behave alike: one suite over both, each with the same faulty store and a clock that moves when told.

What only the sync one has (its thread) follows below.
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


class Faults:
    """A memory store that counts its calls and, on demand, fails before or after it obeyed."""

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

    def settle_for_another(self, *, outcome: bytes | None) -> None:
        """A successor takes the key over and, with an outcome, completes it."""
        reply = self.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        assert isinstance(reply, Acquired)
        if outcome is not None:
            assert self.inner.complete(reply.claim, outcome, retention=60)


class Async:
    """The async engine over the faulty store."""

    def __init__(self, store: Faults, hooks: tuple[Callable[[Event], None], ...]) -> None:
        self.engine = Engine(_Awaitable(store), hooks=hooks, random=lambda: 0.5)  # type: ignore[arg-type]

    async def begin(self, ask: Ask) -> Any:
        return await self.engine.begin(ask)

    async def begin_and(self, ask: Ask, meanwhile: Callable[[], object]) -> Any:
        """Begin, and do something once that waits."""
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
        """Show a sign of life, if one is due."""
        for registered in list(run._heartbeat._ticks):
            await registered.renew_lease()

    async def sign(self, run: Run) -> None:
        """Show a sign of life, due or not."""
        await run.renew_lease()

    async def background(self) -> None:
        """Let work that nobody waits for be done."""
        await anyio.wait_all_tasks_blocked()


class Sync:
    """The sync engine over the same store; its thread and its sleeps are the test's."""

    def __init__(self, store: Faults, hooks: tuple[Callable[[Event], None], ...]) -> None:
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

    async def sign(self, run: SyncRun) -> None:
        run.renew()

    async def background(self) -> None:
        self.scheduler.run_due()


class _Awaitable:
    def __init__(self, store: Faults) -> None:
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
def store(clock: FakeClock) -> Faults:
    return Faults(clock)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture(params=[Async, Sync], ids=["async", "sync"])
def engine(request: pytest.FixtureRequest, store: Faults, events: list[Event]) -> Any:
    return request.param(store, (events.append,))


class TestBothEngines:
    async def test_a_kept_outcome_is_replayed_byte_for_byte(
        self, engine: Any, store: Faults, events: list[Event]
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

    async def test_a_request_that_may_wait_runs_at_once_without_a_duplicate(
        self, engine: Any, store: Faults, events: list[Event]
    ) -> None:
        run = await engine.begin(ask(wait=10.0))
        assert [event.waited for event in events if isinstance(event, Claimed)] == [0.0]
        assert store.calls == ["acquire"]
        await engine.end(run, "release")

    async def test_a_released_key_runs_again_as_new(self, engine: Any, events: list[Event]) -> None:
        await engine.end(await engine.begin(ask()), "release")
        assert [event.result for event in events if isinstance(event, Settled)] == ["released"]
        again = await engine.begin(ask())
        assert again.claim.attempt == 1
        await engine.end(again, "release")

    async def test_an_abandoned_key_is_taken_over_once_its_lease_lapsed(
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

    async def test_another_fingerprint_is_a_mismatch_while_running_and_after(self, engine: Any) -> None:
        run = await engine.begin(ask())
        during = await engine.begin(ask(OTHER, wait=5.0))
        await engine.end(run, "keep", OUTCOME)
        after = await engine.begin(ask(OTHER))
        assert isinstance(during.error, FingerprintMismatch)
        assert isinstance(after.error, FingerprintMismatch)

    async def test_a_waiter_replays_what_its_duplicate_records(self, engine: Any, store: Faults) -> None:
        reply = store.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        assert isinstance(reply, Acquired)
        verdict = await engine.begin_and(
            ask(wait=10.0), lambda: store.inner.complete(reply.claim, OUTCOME, retention=60)
        )
        assert isinstance(verdict, Replay)
        assert verdict.completed.outcome == OUTCOME
        assert 0 < verdict.waited < 10

    async def test_a_waiter_takes_over_when_its_duplicate_gives_up(
        self, engine: Any, store: Faults, events: list[Event]
    ) -> None:
        reply = store.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        assert isinstance(reply, Acquired)
        run = await engine.begin_and(ask(wait=10.0), lambda: store.inner.release(reply.claim))
        assert run.claim.attempt == 1
        assert isinstance(events[0], Claimed)
        assert 0 < events[0].waited < 10
        await engine.end(run, "keep", OUTCOME)

    async def test_a_waiter_does_not_take_over_either_at_most_once(
        self, engine: Any, store: Faults, clock: FakeClock
    ) -> None:
        store.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        verdict = await engine.begin_and(ask(wait=10.0, takeover=False), lambda: clock.advance(31))
        assert isinstance(verdict.error, OutcomeUnknown)

    async def test_a_waiter_that_the_store_leaves_without_an_answer_may_hold_the_claim(
        self, engine: Any, store: Faults
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

    async def test_a_waiter_interrupted_as_it_asks_again_may_hold_the_claim(
        self, engine: Any, store: Faults
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

    async def test_waiting_ends_with_in_progress_and_a_hint_when_to_come_back(
        self, engine: Any, store: Faults, events: list[Event]
    ) -> None:
        store.inner.acquire(KEY, fingerprint=SAME, owner=new_owner(), lease=30, retention=60)
        verdict = await engine.begin(ask(wait=0.05))
        assert isinstance(verdict.error, InProgress)
        assert 1 <= verdict.error.retry_after <= 4
        assert store.calls.count("acquire") >= 2
        assert events == [], "a duplicate that runs is no failure of the store"

    async def test_a_store_without_an_answer_refuses_and_its_possible_grant_is_released(
        self, engine: Any, store: Faults, events: list[Event]
    ) -> None:
        store.after["acquire"] = [StoreUnavailable("reply lost")]
        verdict = await engine.begin(ask())
        assert isinstance(verdict, Refuse)
        await engine.background()
        assert store.inner.get(KEY) is None
        assert [(event.step, event.action) for event in events if isinstance(event, StoreFailed)] == [
            ("acquire", "refused")
        ]

    async def test_a_store_without_an_answer_is_bypassed_where_the_policy_says_so(
        self, engine: Any, store: Faults, events: list[Event]
    ) -> None:
        store.before["acquire"] = [StoreUnavailable("down")]
        assert isinstance(await engine.begin(ask(on_store_error="bypass")), Bypass)
        failed = [event for event in events if isinstance(event, StoreFailed)]
        assert [(event.step, event.action, event.reason) for event in failed] == [
            ("acquire", "bypassed", "down")
        ]
        await engine.background()

    async def test_an_unreadable_record_is_never_run_beside(self, engine: Any, store: Faults) -> None:
        store.before["acquire"] = [UnknownRecordVersion("from the future")]
        verdict = await engine.begin(ask(on_store_error="bypass"))
        assert isinstance(verdict.error, UnknownRecordVersion)

    async def test_an_interrupted_claim_is_released_behind(self, engine: Any, store: Faults) -> None:
        class Interrupt(BaseException):
            pass

        store.after["acquire"] = [Interrupt()]
        with pytest.raises(Interrupt):
            await engine.begin(ask())
        await engine.background()
        assert store.inner.get(KEY) is None

    async def test_a_lost_reply_to_complete_is_asked_again(self, engine: Any, store: Faults) -> None:
        run = await engine.begin(ask())
        store.after["complete"] = [StoreUnavailable("reply lost")]
        assert isinstance(await engine.end(run, "keep", OUTCOME), Recorded)
        assert store.calls.count("complete") == 2

    @pytest.mark.rule("E8")
    async def test_a_store_that_never_confirms_leaves_the_key_to_its_lease(
        self, engine: Any, store: Faults, events: list[Event]
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
    async def test_a_lost_claim_answers_with_its_successors_outcome(
        self, engine: Any, store: Faults, clock: FakeClock, events: list[Event]
    ) -> None:
        run = await engine.begin(ask())
        clock.advance(31)
        store.settle_for_another(outcome=SUCCESSOR)
        ending = await engine.end(run, "keep", OUTCOME)
        assert isinstance(ending, Superseded)
        assert ending.completed.outcome == SUCCESSOR
        assert sum(isinstance(event, ClaimLost) for event in events) == 1

    @pytest.mark.rule("E8")
    async def test_a_lost_claim_is_refused_while_its_successor_runs(
        self, engine: Any, store: Faults, clock: FakeClock
    ) -> None:
        run = await engine.begin(ask())
        clock.advance(31)
        store.settle_for_another(outcome=None)
        ending = await engine.end(run, "keep", OUTCOME)
        assert isinstance(ending, Refuse)
        assert isinstance(ending.error, InProgress)

    @pytest.mark.rule("E8")
    async def test_a_record_that_is_gone_leaves_the_callers_own_answer(
        self, engine: Any, store: Faults, events: list[Event]
    ) -> None:
        run = await engine.begin(ask())
        store.inner.forget(KEY)
        assert isinstance(await engine.end(run, "keep", OUTCOME), Forgotten)
        assert isinstance(events[-1], ClaimLost)

    async def test_a_handler_that_recorded_its_outcome_itself_has_lost_nothing(
        self, engine: Any, store: Faults, events: list[Event]
    ) -> None:
        """Between its own commit (`complete_in`) and the engine's, a sign of life finds the record completed."""
        run = await engine.begin(ask())
        assert store.inner.complete(run.claim, OUTCOME, retention=60)
        await engine.renew_lease(run)
        await engine.renew_lease(run)
        assert store.calls == ["acquire", "renew", "get"], "what is recorded needs no more signs of life"
        assert isinstance(await engine.end(run, "keep", OUTCOME), Recorded)
        assert [type(event) for event in events] == [Claimed, Settled]

    @pytest.mark.parametrize("taken_over", [True, False])
    async def test_a_claim_that_is_lost_while_the_handler_runs_is_told_at_once(
        self, taken_over: bool, engine: Any, store: Faults, clock: FakeClock, events: list[Event]
    ) -> None:
        run = await engine.begin(ask())
        if taken_over:
            clock.advance(31)
            store.settle_for_another(outcome=None)
        else:
            store.inner.forget(KEY)
        await engine.renew_lease(run)
        await engine.renew_lease(run)
        assert [type(event) for event in events] == [Claimed, ClaimLost]
        assert store.calls.count("renew") == 1
        await engine.end(run, "abandon")

    async def test_an_unanswered_question_about_a_claim_is_repeated(
        self, engine: Any, store: Faults, events: list[Event]
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
    async def test_an_interrupted_end_leaves_the_key_to_its_lease(
        self, how: str, step: str, failures: int, engine: Any, store: Faults, events: list[Event]
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
    async def test_a_finished_run_renews_no_lease(self, how: str, engine: Any, store: Faults) -> None:
        run = await engine.begin(ask())
        await engine.end(run, how, *([OUTCOME] if how == "keep" else []))
        await engine.sign(run)  # one that was on its way when the run ended
        await engine.renew_lease(run)
        assert "renew" not in store.calls

    async def test_a_run_that_ends_while_its_sign_of_life_is_on_the_way_has_lost_nothing(
        self, engine: Any, store: Faults, events: list[Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = await engine.begin(ask())

        def release_and_look(key: StorageKey) -> None:
            """Runs at the wake-up: the key is free, because the run has just freed it."""
            store.inner.release(run.claim)
            run._over = True

        monkeypatch.setattr(store.inner, "renew", lambda *_, **__: False)
        monkeypatch.setattr(store.inner, "get", release_and_look)
        await engine.sign(run)
        assert [type(event) for event in events] == [Claimed]

    async def test_a_release_without_an_answer_is_repeated_behind(self, engine: Any, store: Faults) -> None:
        run = await engine.begin(ask())
        store.before["release"] = [StoreUnavailable("down")]
        await engine.end(run, "release")
        await engine.background()
        assert store.inner.get(KEY) is None

    async def test_an_error_in_a_hook_changes_nothing(
        self, request: pytest.FixtureRequest, store: Faults, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(event: Event) -> None:
            raise RuntimeError("hook")

        for kind in (Async, Sync):
            engine = kind(store, (broken,))
            run = await engine.begin(ask())
            await engine.end(run, "release")
        assert "hook failed" in caplog.text


class TestHeartbeat:
    """The sync engine's signs of life, on a clock that the test moves."""

    @pytest.fixture
    def sync(self, store: Faults, events: list[Event]) -> Sync:
        return Sync(store, (events.append,))

    def pass_time(self, sync: Sync, clock: FakeClock, seconds: float) -> None:
        for _ in range(round(seconds)):
            clock.advance(1)
            sync.now.advance(1)
            sync.scheduler.run_due()

    @pytest.mark.rule("E3")
    def test_a_run_outlives_its_lease_while_it_shows_signs_of_life(
        self, sync: Sync, store: Faults, clock: FakeClock
    ) -> None:
        run = sync.engine.begin(ask())
        assert isinstance(run, SyncRun)
        self.pass_time(sync, clock, 100)
        assert "get" not in store.calls, "a sign that the store heard asks for no more"
        duplicate = sync.engine.begin(ask())
        assert isinstance(duplicate, Refuse)
        assert isinstance(run.keep(OUTCOME), Recorded)
        self.pass_time(sync, clock, 20)
        assert len(sync.scheduler) == 0

    def test_the_end_of_a_run_says_how_long_it_ran(self, sync: Sync, events: list[Event]) -> None:
        run = sync.engine.begin(ask())
        assert isinstance(run, SyncRun)
        sync.now.advance(2.5)
        run.release()
        assert [event.duration for event in events if isinstance(event, Settled)] == [2.5]

    @pytest.mark.rule("E8")
    def test_a_record_is_tried_again_after_a_pause(self, sync: Sync, store: Faults) -> None:
        run = sync.engine.begin(ask())
        assert isinstance(run, SyncRun)
        store.before["complete"] = [StoreUnavailable("down"), StoreUnavailable("down")]
        began = sync.now()
        assert isinstance(run.keep(OUTCOME), Recorded)
        assert sync.now() - began == pytest.approx(0.3)

    def test_a_run_that_is_dropped_shows_none(
        self, sync: Sync, store: Faults, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = sync.engine.begin(ask())
        del run
        self.pass_time(sync, clock, 31)
        assert ("renew" not in store.calls, caplog.text) == (True, "")
        successor = sync.engine.begin(ask())
        assert isinstance(successor, SyncRun)
        assert successor.claim.attempt == 2

    def test_a_failed_sign_is_repeated_at_the_next_beat(
        self, sync: Sync, store: Faults, clock: FakeClock, events: list[Event]
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
            "",  # what a driver says may hold what no log may
        ]
        assert store.calls.count("renew") == 3
        assert isinstance(run.keep(OUTCOME), Recorded)

    def test_a_lost_claim_is_told_once_and_beats_no_more(
        self, sync: Sync, store: Faults, clock: FakeClock, events: list[Event]
    ) -> None:
        run = sync.engine.begin(ask())
        assert isinstance(run, SyncRun)
        store.inner.forget(KEY)
        self.pass_time(sync, clock, 40)
        assert store.calls.count("renew") == 1
        assert isinstance(run.keep(OUTCOME), Forgotten)
        assert sum(isinstance(event, ClaimLost) for event in events) == 1

    def test_late_releases_end_with_an_event_and_are_bounded(
        self, sync: Sync, store: Faults, clock: FakeClock, events: list[Event]
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
        assert len(sync.scheduler) == 1, "there is room again"

    @pytest.mark.parametrize(("granted", "releases"), [(True, 1), (False, 4)])
    def test_a_claim_that_may_still_be_granted_is_released_again(
        self, granted: bool, releases: int, sync: Sync, store: Faults, clock: FakeClock, events: list[Event]
    ) -> None:
        """A store that knows no such claim may learn of it yet, from a call that is still on its way."""
        (store.after if granted else store.before)["acquire"] = [StoreUnavailable("down")]
        sync.engine.begin(ask())
        self.pass_time(sync, clock, 10)
        assert store.calls.count("release") == releases
        assert (len(sync.scheduler), store.inner.get(KEY)) == (0, None)
        assert not any(isinstance(event, StoreFailed) and event.step == "release" for event in events)

    def test_a_confirmed_claim_is_not_released_again_when_the_store_does_not_know_it(
        self, sync: Sync, store: Faults, clock: FakeClock
    ) -> None:
        """The release took effect, and its reply alone was lost."""
        run = sync.engine.begin(ask())
        assert isinstance(run, SyncRun)
        store.after["release"] = [StoreUnavailable("reply lost")]
        run.release()
        self.pass_time(sync, clock, 10)
        assert store.calls.count("release") == 2


class TestScheduler:
    def test_one_thread_serves_every_run_and_ends_when_idle(self) -> None:
        scheduler, ran = Scheduler(), threading.Semaphore(0)
        names: set[str] = set()

        def job() -> None:
            names.add(threading.current_thread().name)
            ran.release()

        for _ in range(20):
            scheduler.after(0.0, job)
        for _ in range(20):
            assert ran.acquire(timeout=PATIENCE)
        assert names == {"idempotency-scheduler"}
        thread = scheduler._thread
        if thread is not None:
            thread.join(timeout=PATIENCE)
        assert scheduler._thread is None

    def test_a_sooner_job_wakes_the_thread(self) -> None:
        scheduler, ran = Scheduler(), threading.Event()
        scheduler.after(3600.0, lambda: None)
        scheduler.after(0.01, ran.set)
        assert ran.wait(30)
        assert len(scheduler) == 1
        scheduler._start_anew()

    def test_an_error_in_a_job_is_logged_and_the_next_job_runs(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
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

    def test_a_heartbeat_thread_that_cannot_start_is_logged(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        scheduler, ran = Scheduler(), threading.Event()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            scheduler.after(0.0, ran.set)
        assert "no heartbeat" in caplog.text
        scheduler.after(0.0, lambda: None)  # the next one tries again
        assert ran.wait(30)

    @pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system has no fork")
    def test_a_forked_child_renews_its_own_runs_and_not_its_parents(self) -> None:
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
def test_a_thread_renews_while_the_handler_blocks() -> None:
    """Real time, once: a handler that works past its lease keeps its claim."""
    renewals: list[Claim] = []

    class Watched(SyncMemoryStore):
        def renew(self, claim: Claim, *, lease: float) -> bool:
            renewals.append(claim)
            return super().renew(claim, lease=lease)

    engine = SyncEngine(Watched())
    run = engine.begin(ask(lease=1.2))
    assert isinstance(run, SyncRun)
    until_sync(lambda: len(renewals) >= 4)  # one each third of the lease
    assert isinstance(engine.begin(ask(lease=1.2)), Refuse)
    assert isinstance(run.keep(OUTCOME), Recorded)


def test_many_threads_with_one_key_run_once() -> None:
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
