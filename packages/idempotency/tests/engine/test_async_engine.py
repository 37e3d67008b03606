"""The async engine where requests are cancelled, at every step of theirs, and duplicates follow one another."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from asgi_driver import Answer, call
from effects import Charges, PatchedStore, guard, respond, unavailable
from patience import PATIENCE, until

from idempotency import IdempotencyMiddleware, Policy, StorageKey
from idempotency._core.actions import Refuse, Replay
from idempotency._core.outcome import Response, encode_response
from idempotency._core.types import Acquired, Claim, Fingerprint, Reply, State
from idempotency._runtime.event_loop import running
from idempotency.engine import Ask, Engine, Run
from idempotency.engine.owner import new_owner
from idempotency.errors import FingerprintMismatch, StoreUnavailable
from idempotency.events import Claimed, Event, Settled
from idempotency.store import Store
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.stores.threaded import ThreadedStore
from idempotency.testing import FakeClock

pytestmark = pytest.mark.anyio

LEASE = 0.06  # s: a sign of life every 20 ms


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stepwise(store: MemoryStore) -> PatchedStore:
    """A store whose every call may be cancelled before and after it took effect."""

    def around(name: str) -> Any:
        async def method(real: Any, *args: Any, **kwargs: Any) -> Any:
            await anyio.lowlevel.checkpoint()
            result = await getattr(real, name)(*args, **kwargs)
            await anyio.lowlevel.checkpoint()
            return result

        return method

    return PatchedStore(
        store, **{name: around(name) for name in ("acquire", "renew", "complete", "release", "get")}
    )


class Steps(Charges):
    """
    Charges in several steps, with an answer in several parts.

    Attributes:
        starts: How often it was called; it may have been cancelled before its effect.
    """

    starts = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.starts += 1
        await receive()
        await anyio.lowlevel.checkpoint()
        self.bodies.append(b"")
        await anyio.lowlevel.checkpoint()
        await respond(send, [b"one", b"two"], status=self.status)
        await anyio.lowlevel.checkpoint()


async def background() -> None:
    """Let a claim that nobody heard of be released."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


class Log:
    """A hook that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)


async def cancelled_after(steps: int, app: IdempotencyMiddleware) -> bool:
    """Whether a request was still under way after so many steps; it is cancelled then."""
    answered = False

    async def request() -> None:
        nonlocal answered
        await call(app, key="k")
        answered = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(request)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    return not answered


async def every_step(
    policy: Policy, status: int
) -> AsyncIterator[tuple[IdempotencyMiddleware, Any, Any, Any]]:
    """A middleware with its application, store and clock, whose one request was cancelled: at each step in turn."""
    for steps in range(100):
        clock = FakeClock()
        store = stepwise(MemoryStore(clock=clock))
        charges = Steps(status=status)
        app = guard(charges, store, policy=policy)
        app.engine.hooks = (Log(),)
        if not await cancelled_after(steps, app):
            assert steps > 6, "the request ended before it could be cancelled at all"
            return
        yield app, charges, store, clock
    raise AssertionError("the request never ended")


@pytest.mark.real_time("a lease is renewed by a real timer")
@pytest.mark.parametrize("status", [201, 503])
@pytest.mark.rule("E4")
async def test_request_cancelled_at_any_step_holds_on_to_nothing(status: int) -> None:
    stores = []
    async for app, _, store, _ in every_step(Policy(lease=LEASE), status):
        assert len(app.engine.single_flight) == 0
        begun, ended = (
            [event for event in app.engine.hooks[0].events if isinstance(event, kind)]  # type: ignore[attr-defined]
            for kind in (Claimed, Settled)
        )
        assert len(begun) == len(ended), "of every run that begins an end is told"
        stores.append(store)
    renewals = [store.calls.get("renew", 0) for store in stores]
    living = PatchedStore(MemoryStore())
    run = await Engine(living).begin(question(lease=LEASE))
    assert isinstance(run, Run)
    await until(lambda: living.calls.get("renew", 0) >= 3)  # as long as a lease
    await run.keep(b"done")
    assert [store.calls.get("renew", 0) for store in stores] == renewals, "what is over shows no sign of life"


@pytest.mark.parametrize("status", [201, 503])
async def test_request_cancelled_at_any_step_is_repeated_once_its_lease_is_over(status: int) -> None:
    async for app, charges, store, clock in every_step(Policy(lease=LEASE), status):
        await background()
        record = await store.get(StorageKey("k"))
        kept = record is not None and record.state is State.COMPLETED
        before = charges.runs
        if not charges.starts:
            assert record is None, "nothing ran, so the key is free at once"
        clock.advance(LEASE + 0.001)
        again = await call(app, key="k")
        assert (again.status, again.replayed, charges.runs) == (status, kept, before + (not kept))


async def test_request_cancelled_at_any_step_never_runs_twice_at_most_once() -> None:
    seen = set()
    async for app, charges, _, clock in every_step(Policy.at_most_once(lease=LEASE), 201):
        await background()
        started = charges.starts == 1
        clock.advance(LEASE + 0.001)
        again = await call(app, key="k")
        assert charges.starts == 1
        seen.add((started, again.status, again.replayed))
    # Not started: it runs now. Started: its answer, or that its outcome is unknown.
    assert seen == {(False, 201, False), (True, 201, True), (True, 409, False)}


@pytest.mark.parametrize("victim", ["the leader", "the first follower"])
@pytest.mark.parametrize("status", [201, 503])
async def test_duplicates_of_a_request_cancelled_at_any_step_are_all_answered(
    status: int, victim: str
) -> None:
    for steps in range(30):
        clock = FakeClock()
        charges = Steps(status=status)
        app = guard(charges, stepwise(MemoryStore(clock=clock)), lease=LEASE, wait=PATIENCE)
        log = Log()
        app.engine.hooks = (log,)
        answers: list[Answer] = []

        async def duplicate(
            scope: anyio.CancelScope, app: Any = app, answers: list[Answer] = answers
        ) -> None:
            with scope:
                answers.append(await call(app, key="k"))

        scopes = [anyio.CancelScope() for _ in range(4)]
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for scope in scopes:
                    tasks.start_soon(duplicate, scope)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                scopes[0 if victim == "the leader" else 1].cancel()

                async def are_answered(
                    clock: Any = clock, log: Log = log, answers: list[Answer] = answers
                ) -> bool:
                    for _ in range(50):  # each task goes on as far as it can: the store is in memory
                        await anyio.lowlevel.checkpoint()
                    begun, ended = (
                        sum(isinstance(one, kind) for one in log.events) for kind in (Claimed, Settled)
                    )
                    if begun == ended:
                        clock.advance(LEASE + 0.001)  # nothing runs: what was abandoned lapses
                    return len(answers) >= 3

                await until(are_answered)
        assert len(answers) >= 3
        assert {(answer.status, answer.body) for answer in answers} == {(status, b"onetwo")}
        assert len(app.engine.single_flight) == 0
        if status == 201:
            assert charges.runs <= 2, "one that was cancelled, one that took over"


def question(wait: float = 0.0, **policy: Any) -> Ask:
    return Ask(StorageKey("k"), Fingerprint(b"f"), Policy(**policy), "POST /charges", wait)


async def test_duplicates_in_one_process_replay_without_asking_the_store() -> None:
    store, verdicts = PatchedStore(MemoryStore()), []
    engine = Engine(store)
    run = await engine.begin(question(wait=PATIENCE, retention=60))
    assert isinstance(run, Run)

    async def duplicate() -> None:
        verdicts.append(await engine.begin(question(wait=PATIENCE)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(duplicate)
            await background()
            await run.keep(encode_response(Response(201, (), b"done")))
    assert [type(verdict) for verdict in verdicts] == [Replay] * 8
    assert {(verdict.completed.age, verdict.completed.expires_in) for verdict in verdicts} == {(0.0, 60.0)}
    assert store.calls == {"acquire": 1, "complete": 1}


async def test_an_outcome_found_by_a_watcher_is_shared_with_all_followers() -> None:
    store, verdicts = PatchedStore(MemoryStore()), []
    here, elsewhere = Engine(store), Engine(store)
    run = await elsewhere.begin(question())
    assert isinstance(run, Run)

    async def duplicate() -> None:
        verdicts.append(await here.begin(question(wait=PATIENCE)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(duplicate)
            await background()
            asked = store.calls["acquire"]
            await run.keep(encode_response(Response(201, [], b"done")))
    assert [type(verdict) for verdict in verdicts] == [Replay] * 8
    assert store.calls["acquire"] == asked + 1
    assert len(here.single_flight) == 0


@pytest.mark.parametrize(
    ("fate", "heard"),
    [
        ("settled by another", ["Replay", "Replay", "Replay"]),
        ("taken by another", ["Refuse", "Refuse", "Refuse"]),
        ("forgotten", ["Replay", "Replay", "Run"]),
        ("unrecorded", ["Refuse", "Refuse", "Refuse"]),
    ],
)
async def test_duplicates_of_a_run_that_lost_its_claim_or_its_store_wait_no_longer_than_it(
    fate: str, heard: list[str]
) -> None:
    records, verdicts = MemoryStore(), []
    store = PatchedStore(records, **({"complete": unavailable} if fate == "unrecorded" else {}))
    engine = Engine(store)
    run = await engine.begin(question(wait=0.6))
    assert isinstance(run, Run)

    async def duplicate() -> None:
        verdict = await engine.begin(question(wait=0.6))
        verdicts.append(type(verdict).__name__)
        if isinstance(verdict, Run):
            await verdict.keep(encode_response(Response(201, [], b"mine")))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(duplicate)
            await background()
            if fate != "unrecorded":
                await records.forget(run.claim.key)
            if fate in {"settled by another", "taken by another"}:
                reply = await records.acquire(
                    run.claim.key,
                    fingerprint=run.request.fingerprint,
                    owner=new_owner(),
                    lease=30.0,
                    retention=60.0,
                )
                assert isinstance(reply, Acquired)
                if fate == "settled by another":
                    await records.complete(reply.claim, b"theirs", retention=60.0)
            await run.keep(encode_response(Response(201, [], b"done")))
    assert sorted(verdicts) == heard
    assert len(engine.single_flight) == 0
    if fate == "settled by another":
        assert store.calls["acquire"] == 1, "they were told what the store told their leader"


@pytest.mark.rule("E8")
async def test_record_is_tried_again_after_a_pause() -> None:
    tried: list[float] = []

    async def fail_once(real: Store, *args: Any, **kwargs: Any) -> bool:
        tried.append(time.monotonic())
        if len(tried) == 1:
            raise StoreUnavailable("down")
        return await real.complete(*args, **kwargs)

    run = await Engine(PatchedStore(MemoryStore(), complete=fail_once)).begin(question())
    assert isinstance(run, Run)
    await run.keep(b"done")
    assert tried[1] - tried[0] >= 0.04


async def test_another_request_under_a_running_key_is_refused_without_a_wait() -> None:
    def random() -> float:
        raise AssertionError("delays are drawn by who waits")

    engine = Engine(MemoryStore(), random=random)
    run = await engine.begin(question(wait=PATIENCE))
    assert isinstance(run, Run)
    verdict = await engine.begin(question(wait=5)._replace(fingerprint=Fingerprint(b"another")))
    assert isinstance(verdict, Refuse)
    assert isinstance(verdict.error, FingerprintMismatch)
    await run.release()


@pytest.mark.parametrize("policy", [{"wait": 5.0}, {"prefer_wait": 5.0}])
async def test_a_request_that_does_not_wait_can_lead_requests_that_do(policy: dict[str, float]) -> None:
    store, verdicts = PatchedStore(MemoryStore()), []
    engine = Engine(store)

    def ask(wait: float) -> Ask:
        return question()._replace(policy=Policy(**policy), wait=wait)

    run = await engine.begin(ask(0.0))  # as with `Prefer: wait=0`, or without a preference
    assert isinstance(run, Run)

    async def duplicate() -> None:
        verdicts.append(await engine.begin(ask(5.0)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(duplicate)
            await background()
            await run.keep(b"done")
    assert (type(verdicts[0]), store.calls["acquire"]) == (Replay, 1)


async def test_late_releases_are_bounded_and_make_room_for_the_next() -> None:
    go_on, asked = anyio.Event(), 0

    async def stall(real: Store, claim: Claim) -> bool:
        nonlocal asked
        asked += 1
        await go_on.wait()
        return True

    engine = Engine(PatchedStore(MemoryStore(), release=stall))
    claim = Claim(StorageKey("k"), new_owner(), 1, 1)
    for _ in range(300):
        engine.spawn_release(claim, "POST /charges")
    await anyio.wait_all_tasks_blocked()
    assert asked == 256, "past that the lease decides"
    go_on.set()
    await anyio.wait_all_tasks_blocked()
    engine.spawn_release(claim, "POST /charges")
    await anyio.wait_all_tasks_blocked()
    assert asked == 257


@pytest.mark.real_time("a lease is renewed by a real timer")
def test_an_engine_keeps_runs_alive_in_each_loop_that_it_serves() -> None:
    store = PatchedStore(MemoryStore())
    engine = Engine(store)

    async def serve(key: str) -> None:
        run = await engine.begin(question(lease=LEASE)._replace(key=StorageKey(key)))
        assert isinstance(run, Run)
        before = store.calls.get("renew", 0)
        await until(lambda: store.calls.get("renew", 0) > before)
        await run.keep(b"done")

    for number in range(1, 4):
        anyio.run(serve, f"k-{number}")


async def test_runs_that_are_over_are_not_remembered() -> None:
    engine = Engine(MemoryStore())
    for end in ("keep", "release", "abandon"):
        run = await engine.begin(question(lease=LEASE))
        assert isinstance(run, Run)
        ended = getattr(run, end)(*([b"done"] if end == "keep" else []))
        if ended is not None:
            await ended
        assert len(run._heartbeat._ticks) == 0
        await engine.store.forget(run.claim.key)  # type: ignore[attr-defined]


async def test_follower_whose_patience_ends_leaves_the_lead_where_it_is() -> None:
    store = PatchedStore(MemoryStore())
    engine = Engine(store)
    run = await engine.begin(question(wait=PATIENCE))
    assert isinstance(run, Run)
    assert isinstance(await engine.begin(question(wait=0.01)), Refuse)
    asked, verdicts = store.calls["acquire"], []

    async def duplicate() -> None:
        verdicts.append(await engine.begin(question(wait=PATIENCE)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(duplicate)
            await background()
            await run.keep(encode_response(Response(201, [], b"done")))
    assert isinstance(verdicts[0], Replay)
    assert store.calls["acquire"] == asked, "it followed, and asked the store for nothing"


async def test_watcher_whose_patience_ends_hands_the_lead_on() -> None:
    store, verdicts = MemoryStore(), []
    here, elsewhere = Engine(store), Engine(store)
    run = await elsewhere.begin(question())
    assert isinstance(run, Run)
    gone = anyio.Event()

    async def leader() -> None:
        verdicts.append(await here.begin(question(wait=0.03)))
        gone.set()

    async def follower() -> None:
        verdicts.append(await here.begin(question(wait=PATIENCE)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leader)
            await background()
            tasks.start_soon(follower)
            await gone.wait()
            await run.keep(encode_response(Response(201, [], b"done")))
    assert [type(verdict) for verdict in verdicts] == [Refuse, Replay]
    assert len(here.single_flight) == 0


async def test_followers_that_gave_up_are_not_remembered() -> None:
    engine = Engine(MemoryStore())
    run = await engine.begin(question(wait=0.001))
    assert isinstance(run, Run)
    for _ in range(20):
        await engine.begin(question(wait=0.001))
    in_flight = engine.single_flight.find(run.request.key, run.request.fingerprint, running().loop)
    assert in_flight is not None
    assert len(in_flight.followers) == 0
    await run.release()
    assert len(engine.single_flight) == 0


def test_a_claim_is_given_back_where_no_loop_could_keep_it_alive() -> None:
    store = MemoryStore()
    beginning = Engine(store).begin(question())
    with pytest.raises(RuntimeError, match=r"asyncio or trio|async"):
        beginning.send(None)
    assert store._store.get(StorageKey("k")) is None


class GrantsLate(SyncMemoryStore):
    """Grants nothing before a release was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.released: list[bool] = []

    def acquire(self, key: StorageKey, **asked: Any) -> Reply:
        self.asked.wait(30)
        return super().acquire(key, **asked)

    def release(self, claim: Claim) -> bool:
        self.released.append(super().release(claim))
        self.asked.set()
        return self.released[-1]


async def test_claim_granted_after_its_caller_left_is_released_all_the_same() -> None:
    """The thread of a cancelled call goes on: a first release may come before the claim that it is to release."""
    records = GrantsLate()
    engine = Engine(ThreadedStore(records))
    with anyio.move_on_after(0.05):
        await engine.begin(question(takeover=False))
    with anyio.fail_after(30):
        await until(lambda: True in records.released)
    assert records.released[0] is False
    assert records.get(StorageKey("k")) is None


async def test_waiter_that_is_cancelled_asks_the_store_for_nothing() -> None:
    waiting = anyio.Event()

    class Waited(PatchedStore):
        async def wait(self, _key: StorageKey, *, timeout: float) -> None:
            waiting.set()
            await anyio.sleep_forever()

    watched = Waited(MemoryStore())
    first = await Engine(watched).begin(question())
    assert isinstance(first, Run)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Engine(watched).begin, question(wait=5))
        with anyio.fail_after(30):
            await waiting.wait()
        tasks.cancel_scope.cancel()
    await anyio.lowlevel.checkpoint()
    assert watched.calls == {"acquire": 2}, "it held nothing that could be released"
    await first.release()
