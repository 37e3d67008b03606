"""The async engine: requests cancelled at every step, and concurrent duplicates that follow one request."""

from __future__ import annotations

import asyncio
import itertools
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

LEASE = 0.06  # s: the heartbeat renews it every 20 ms


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stepwise(store: MemoryStore) -> PatchedStore:
    """A store each of whose calls can be cancelled before and after it takes effect."""

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
    """Let background tasks run, such as the late release of a claim."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


class EventLog:
    """A hook that keeps its events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)


async def cancelled_after(steps: int, app: IdempotencyMiddleware) -> bool:
    """Run a request for so many steps and cancel it; whether it had not ended by then."""
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
    """For each step in turn: a middleware with application, store and clock, whose one request was cancelled there."""
    for steps in range(100):
        clock = FakeClock()
        store = stepwise(MemoryStore(clock=clock))
        charges = Steps(status=status)
        app = guard(charges, store, policy=policy)
        app.engine.hooks = (EventLog(),)
        if not await cancelled_after(steps, app):
            assert steps > 6, "the request ended before it could be cancelled at all"
            return
        yield app, charges, store, clock
    raise AssertionError("the request never ended")


@pytest.mark.real_time("a lease is renewed by a real timer")
@pytest.mark.parametrize("status", [201, 503])
@pytest.mark.rule("E4")
async def test_request_cancelled_at_any_step_leaves_no_run_and_no_heartbeat(status: int) -> None:
    stores = []
    async for app, _, store, _ in every_step(Policy(lease=LEASE), status):
        assert len(app.engine.single_flight) == 0
        begun, ended = (
            [event for event in app.engine.hooks[0].events if isinstance(event, kind)]  # type: ignore[attr-defined]
            for kind in (Claimed, Settled)
        )
        assert len(begun) == len(ended), "every run that begins has a settled event"
        stores.append(store)
    renewals = [store.calls.get("renew", 0) for store in stores]
    renewing = PatchedStore(MemoryStore())
    run = await Engine(renewing).begin(ask(lease=LEASE))
    assert isinstance(run, Run)
    await until(lambda: renewing.calls.get("renew", 0) >= 3)  # for the length of a lease
    await run.keep(b"done")
    assert [store.calls.get("renew", 0) for store in stores] == renewals, (
        "a run that has ended renews no lease"
    )


@pytest.mark.parametrize("status", [201, 503])
async def test_request_cancelled_at_any_step_runs_again_after_its_lease_unless_recorded(status: int) -> None:
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
async def test_duplicates_of_a_request_cancelled_at_any_step_all_get_a_response(
    status: int, victim: str
) -> None:
    for steps in range(30):
        clock = FakeClock()
        charges = Steps(status=status)
        app = guard(charges, stepwise(MemoryStore(clock=clock)), lease=LEASE, wait=PATIENCE)
        log = EventLog()
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
                    clock: Any = clock, log: EventLog = log, answers: list[Answer] = answers
                ) -> bool:
                    for _ in range(50):  # each task runs until it waits: the store is in memory
                        await anyio.lowlevel.checkpoint()
                    begun, ended = (
                        sum(isinstance(one, kind) for one in log.events) for kind in (Claimed, Settled)
                    )
                    if begun == ended:
                        clock.advance(LEASE + 0.001)  # nothing runs: let abandoned leases end
                    return len(answers) >= 3

                await until(are_answered)
        assert len(answers) >= 3
        assert {(answer.status, answer.body) for answer in answers} == {(status, b"onetwo")}
        assert len(app.engine.single_flight) == 0
        if status == 201:
            assert charges.runs <= 2, "one run that was cancelled, and one that took over"


def ask(wait: float = 0.0, **policy: Any) -> Ask:
    return Ask(StorageKey("k"), Fingerprint(b"f"), Policy(**policy), "POST /charges", wait)


async def test_local_duplicates_replay_without_calling_the_store() -> None:
    store, verdicts = PatchedStore(MemoryStore()), []
    engine = Engine(store)
    run = await engine.begin(ask(wait=PATIENCE, retention=60))
    assert isinstance(run, Run)

    async def duplicate() -> None:
        verdicts.append(await engine.begin(ask(wait=PATIENCE)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(duplicate)
            await background()
            await run.keep(encode_response(Response(201, (), b"done")))
    assert [type(verdict) for verdict in verdicts] == [Replay] * 8
    assert {(verdict.completed.age, verdict.completed.expires_in) for verdict in verdicts} == {(0.0, 60.0)}
    assert store.calls == {"acquire": 1, "complete": 1}


async def test_outcome_found_by_the_polling_leader_is_shared_with_all_local_followers() -> None:
    store, verdicts = PatchedStore(MemoryStore()), []
    here, elsewhere = Engine(store), Engine(store)
    run = await elsewhere.begin(ask())
    assert isinstance(run, Run)

    async def duplicate() -> None:
        verdicts.append(await here.begin(ask(wait=PATIENCE)))

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
    ("fate", "verdicts_of_followers"),
    [
        ("completed by another", ["Replay", "Replay", "Replay"]),
        ("held by another", ["Refuse", "Refuse", "Refuse"]),
        ("forgotten", ["Replay", "Replay", "Run"]),
        ("unrecorded", ["Refuse", "Refuse", "Refuse"]),
    ],
)
async def test_follower_verdicts_after_a_run_lost_its_claim_or_its_store(
    fate: str, verdicts_of_followers: list[str]
) -> None:
    records, verdicts = MemoryStore(), []
    store = PatchedStore(records, **({"complete": unavailable} if fate == "unrecorded" else {}))
    engine = Engine(store)
    run = await engine.begin(ask(wait=0.6))
    assert isinstance(run, Run)

    async def duplicate() -> None:
        verdict = await engine.begin(ask(wait=0.6))
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
            if fate in {"completed by another", "held by another"}:
                reply = await records.acquire(
                    run.claim.key,
                    fingerprint=run.request.fingerprint,
                    owner=new_owner(),
                    lease=30.0,
                    retention=60.0,
                )
                assert isinstance(reply, Acquired)
                if fate == "completed by another":
                    await records.complete(reply.claim, b"theirs", retention=60.0)
            await run.keep(encode_response(Response(201, [], b"done")))
    assert sorted(verdicts) == verdicts_of_followers
    assert len(engine.single_flight) == 0
    if fate == "completed by another":
        assert store.calls["acquire"] == 1, "the followers share the reply that the leader got"


@pytest.mark.rule("E8")
async def test_async_complete_is_retried_after_a_delay() -> None:
    tried: list[float] = []

    async def fail_once(real: Store, *args: Any, **kwargs: Any) -> bool:
        tried.append(time.monotonic())
        if len(tried) == 1:
            raise StoreUnavailable("down")
        return await real.complete(*args, **kwargs)

    run = await Engine(PatchedStore(MemoryStore(), complete=fail_once)).begin(ask())
    assert isinstance(run, Run)
    await run.keep(b"done")
    assert tried[1] - tried[0] >= 0.04


async def test_other_request_under_a_running_key_is_refused_without_drawing_a_delay() -> None:
    def random() -> float:
        raise AssertionError("only a waiting request draws a delay")

    engine = Engine(MemoryStore(), random=random)
    run = await engine.begin(ask(wait=PATIENCE))
    assert isinstance(run, Run)
    verdict = await engine.begin(ask(wait=5)._replace(fingerprint=Fingerprint(b"another")))
    assert isinstance(verdict, Refuse)
    assert isinstance(verdict.error, FingerprintMismatch)
    await run.release()


@pytest.mark.parametrize("policy", [{"wait": 5.0}, {"prefer_wait": 5.0}])
async def test_request_that_does_not_wait_can_lead_requests_that_do(policy: dict[str, float]) -> None:
    store, verdicts = PatchedStore(MemoryStore()), []
    engine = Engine(store)

    def ask_under_policy(wait: float) -> Ask:
        return ask()._replace(policy=Policy(**policy), wait=wait)

    run = await engine.begin(ask_under_policy(0.0))  # as with `Prefer: wait=0`, or without a preference
    assert isinstance(run, Run)

    async def duplicate() -> None:
        verdicts.append(await engine.begin(ask_under_policy(5.0)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(duplicate)
            await background()
            await run.keep(b"done")
    assert (type(verdicts[0]), store.calls["acquire"]) == (Replay, 1)


async def test_pending_late_releases_are_bounded_at_256() -> None:
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
    assert asked == 256, "further claims are left to their leases"
    go_on.set()
    await anyio.wait_all_tasks_blocked()
    engine.spawn_release(claim, "POST /charges")
    await anyio.wait_all_tasks_blocked()
    assert asked == 257


@pytest.mark.real_time("a lease is renewed by a real timer")
def test_engine_renews_leases_in_each_of_several_event_loops() -> None:
    store = PatchedStore(MemoryStore())
    engine = Engine(store)

    async def serve(key: str) -> None:
        run = await engine.begin(ask(lease=LEASE)._replace(key=StorageKey(key)))
        assert isinstance(run, Run)
        before = store.calls.get("renew", 0)
        await until(lambda: store.calls.get("renew", 0) > before)
        await run.keep(b"done")

    for number in range(1, 4):
        anyio.run(serve, f"k-{number}")


async def test_lease_of_a_lost_claim_is_not_renewed_again() -> None:
    store = MemoryStore()
    run = await Engine(store).begin(ask())
    assert isinstance(run, Run)
    await run.renew_lease()
    assert list(run._heartbeat.ticks) == [run]
    await store.forget(run.claim.key)
    await run.renew_lease()
    assert not run._heartbeat.ticks


async def test_ended_run_leaves_no_heartbeat_entry() -> None:
    engine = Engine(MemoryStore())
    for end in ("keep", "release", "abandon"):
        run = await engine.begin(ask(lease=LEASE))
        assert isinstance(run, Run)
        ended = getattr(run, end)(*([b"done"] if end == "keep" else []))
        if ended is not None:
            await ended
        assert len(run._heartbeat.ticks) == 0
        await engine.store.forget(run.claim.key)  # type: ignore[attr-defined]


def test_heartbeat_due_in_the_last_turn_of_a_loop_leaves_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async def one_run() -> None:
        run = await Engine(MemoryStore()).begin(ask(lease=60))
        assert isinstance(run, Run)
        await run.keep(b"done")

    async def nothing() -> None:
        pass

    # asyncio's own loop, also if a server has made uvloop the default.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(one_run())
        loop, turns = runner.get_loop(), itertools.count()
        now = loop.time()
        # asyncio asks for the time once a turn, and runs `nothing` in two: the timer is due in the second one.
        monkeypatch.setattr(loop, "time", lambda: now + 60 * next(turns))
        loop.run_until_complete(nothing())
        assert next(turns) == 2
        assert not asyncio.all_tasks(loop)


async def test_follower_that_times_out_leaves_the_leader_in_place() -> None:
    store = PatchedStore(MemoryStore())
    engine = Engine(store)
    run = await engine.begin(ask(wait=PATIENCE))
    assert isinstance(run, Run)
    assert isinstance(await engine.begin(ask(wait=0.01)), Refuse)
    asked, verdicts = store.calls["acquire"], []

    async def duplicate() -> None:
        verdicts.append(await engine.begin(ask(wait=PATIENCE)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(duplicate)
            await background()
            await run.keep(encode_response(Response(201, [], b"done")))
    assert isinstance(verdicts[0], Replay)
    assert store.calls["acquire"] == asked, "a follower does not call the store"


async def test_polling_leader_that_times_out_promotes_a_local_follower() -> None:
    store, verdicts = MemoryStore(), []
    here, elsewhere = Engine(store), Engine(store)
    run = await elsewhere.begin(ask())
    assert isinstance(run, Run)
    gone = anyio.Event()

    async def leader() -> None:
        verdicts.append(await here.begin(ask(wait=0.03)))
        gone.set()

    async def follower() -> None:
        verdicts.append(await here.begin(ask(wait=PATIENCE)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leader)
            await background()
            tasks.start_soon(follower)
            await gone.wait()
            await run.keep(encode_response(Response(201, [], b"done")))
    assert [type(verdict) for verdict in verdicts] == [Refuse, Replay]
    assert len(here.single_flight) == 0


async def test_followers_that_time_out_are_removed() -> None:
    engine = Engine(MemoryStore())
    run = await engine.begin(ask(wait=0.001))
    assert isinstance(run, Run)
    for _ in range(20):
        await engine.begin(ask(wait=0.001))
    in_flight = engine.single_flight.find(run.request.key, run.request.fingerprint, running().loop)
    assert in_flight is not None
    assert len(in_flight.followers) == 0
    await run.release()
    assert len(engine.single_flight) == 0


def test_claim_is_released_if_there_is_no_supported_event_loop() -> None:
    store = MemoryStore()
    beginning = Engine(store).begin(ask())
    with pytest.raises(RuntimeError, match=r"asyncio or trio|async"):
        beginning.send(None)
    assert store._store.get(StorageKey("k")) is None


class GrantsAfterRelease(SyncMemoryStore):
    """Blocks acquire until release has been called."""

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


async def test_claim_granted_after_its_caller_was_cancelled_is_released() -> None:
    """The thread of a cancelled call goes on: a first release may arrive before the claim is granted."""
    records = GrantsAfterRelease()
    engine = Engine(ThreadedStore(records))
    with anyio.move_on_after(0.05):
        await engine.begin(ask(takeover=False))
    with anyio.fail_after(30):
        await until(lambda: True in records.released)
    assert records.released[0] is False
    assert records.get(StorageKey("k")) is None


async def test_cancelled_waiter_calls_the_store_no_more() -> None:
    waiting = anyio.Event()

    class StoreWithWait(PatchedStore):
        async def wait(self, _key: StorageKey, *, timeout: float) -> None:
            waiting.set()
            await anyio.sleep_forever()

    watched = StoreWithWait(MemoryStore())
    first = await Engine(watched).begin(ask())
    assert isinstance(first, Run)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Engine(watched).begin, ask(wait=5))
        with anyio.fail_after(30):
            await waiting.wait()
        tasks.cancel_scope.cancel()
    await anyio.lowlevel.checkpoint()
    assert watched.calls == {"acquire": 2}, "the waiter held no claim to release"
    await first.release()
