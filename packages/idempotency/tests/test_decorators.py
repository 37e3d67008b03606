"""`@idempotent`: one effect per key for coroutine functions and for plain ones, by the same rules."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import pickle
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idempotency import (
    Acquired,
    Claim,
    FingerprintMismatch,
    FirstRunFailed,
    IdempotencyMiddleware,
    InProgress,
    InvalidKey,
    NotReplayable,
    OutcomeUnknown,
    Policy,
    StoreUnavailable,
    UnknownRecordVersion,
    current_claim,
    idempotent,
    storage_key,
)
from idempotency._call import CallReader
from idempotency._core.fingerprint import digest
from idempotency.events import Claimed, Event, Refused, Replayed, Settled
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.testing import FakeClock

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class World:
    """One kind of function over its kind of store; `call` is the same for both."""

    def __init__(self, kind: Literal["async", "sync"]) -> None:
        self.kind = kind
        self.clock = FakeClock()
        self.store: Any = (
            MemoryStore(clock=self.clock) if kind == "async" else SyncMemoryStore(clock=self.clock)
        )
        self.events: list[Event] = []
        self.runs: list[Any] = []

    def guard(self, body: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """*body* as a protected function of this kind; what it is called with is in `runs`."""
        if self.kind == "async":

            @functools.wraps(body)
            async def function(*args: Any, **kwargs: Any) -> Any:
                self.runs.append(args)
                return body(*args, **kwargs)
        else:

            @functools.wraps(body)
            def function(*args: Any, **kwargs: Any) -> Any:
                self.runs.append(args)
                return body(*args, **kwargs)

        settings: dict[str, Any] = {
            "store": self.store,
            "operation": "charge",
            "key": lambda order, *_, **__: order,
        }
        return idempotent(**(settings | {"hooks": (self.events.append,)} | options))(function)

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = function(*args, **kwargs)
        return await answer if inspect.isawaitable(answer) else answer

    async def record(self, order: str = "o-1", operation: str = "charge") -> Any:
        found = self.store.get(storage_key(operation, order))
        return await found if inspect.isawaitable(found) else found


@pytest.fixture(params=["async", "sync"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def charge(order: str, cents: int = 100) -> dict[str, Any]:
    return {"order": order, "cents": cents}


class TestOnce:
    async def test_the_second_call_gets_the_first_ones_value(self, world: World) -> None:
        guarded = world.guard(charge)
        first = await world.call(guarded, "o-1", 500)
        again = await world.call(guarded, "o-1", 500)
        assert first == again == {"order": "o-1", "cents": 500}
        assert world.runs == [("o-1", 500)]
        assert [type(event) for event in world.events] == [Claimed, Settled, Replayed]

    async def test_another_key_runs(self, world: World) -> None:
        guarded = world.guard(charge)
        await world.call(guarded, "o-1")
        await world.call(guarded, "o-2")
        assert len(world.runs) == 2

    async def test_one_key_of_two_operations_is_two_keys(self, world: World) -> None:
        await world.call(world.guard(charge, operation="charge"), "o-1")
        await world.call(world.guard(charge, operation="refund"), "o-1")
        assert len(world.runs) == 2

    async def test_one_key_with_other_arguments_is_a_mismatch(self, world: World) -> None:
        guarded = world.guard(charge)
        await world.call(guarded, "o-1", 100)
        with pytest.raises(FingerprintMismatch):
            await world.call(guarded, "o-1", 200)
        assert len(world.runs) == 1
        refused = world.events[-1]
        assert isinstance(refused, Refused)
        assert (refused.problem, refused.status, refused.operation) == ("key-reused", 422, "charge")

    async def test_a_default_given_or_left_out_is_the_same_call(self, world: World) -> None:
        guarded = world.guard(charge)
        await world.call(guarded, "o-1")
        assert await world.call(guarded, order="o-1", cents=100) == {"order": "o-1", "cents": 100}
        assert len(world.runs) == 1

    async def test_an_equal_default_counts_as_the_default_and_a_value_of_another_type_does_not(
        self, world: World
    ) -> None:
        guarded = world.guard(lambda order, weights=[1, 2.5]: order)
        await world.call(guarded, "o-1")
        assert await world.call(guarded, "o-1", [1, 2.5]) == "o-1"
        with pytest.raises(FingerprintMismatch):
            await world.call(guarded, "o-1", [True, 2.5])

    async def test_the_fingerprint_may_be_chosen(self, world: World) -> None:
        guarded = world.guard(lambda order, sent_at: order, fingerprint=lambda order, sent_at: order)
        await world.call(guarded, "o-1", datetime(2026, 1, 1, tzinfo=UTC))
        assert await world.call(guarded, "o-1", datetime(2026, 1, 2, tzinfo=UTC)) == "o-1"

    async def test_arguments_changed_by_the_function_change_nothing(self, world: World) -> None:
        def consume(order: str, lines: list[int]) -> int:
            total = sum(lines)
            lines.clear()
            return total

        guarded = world.guard(consume)
        assert await world.call(guarded, "o-1", [1, 2]) == 3
        assert await world.call(guarded, "o-1", [1, 2]) == 3

    async def test_after_the_retention_the_key_is_new(self, world: World) -> None:
        guarded = world.guard(charge, policy=Policy(retention=60))
        await world.call(guarded, "o-1")
        world.clock.advance(61)
        await world.call(guarded, "o-1")
        assert len(world.runs) == 2

    async def test_a_function_keeps_its_name_signature_and_kind(self, world: World) -> None:
        guarded = world.guard(charge)
        assert guarded.__name__ == "charge"
        assert inspect.signature(guarded) == inspect.signature(charge)
        assert inspect.iscoroutinefunction(guarded) == (world.kind == "async")

    async def test_the_claim_is_current_inside_and_gone_outside(self, world: World) -> None:
        seen: list[Claim] = []

        def look(order: str) -> str:
            current = current_claim()
            assert current is not None
            seen.append(current.claim)
            return current.derive("mail")

        guarded = world.guard(look)
        derived = await world.call(guarded, "o-1")
        assert derived == digest(b"derive", storage_key("charge", "o-1").encode(), b"mail").hex()[:32]
        assert seen[0].key == storage_key("charge", "o-1")
        assert current_claim() is None


class TestCalls:
    """What a call must bring, checked before anything runs."""

    @pytest.mark.parametrize("key", [None, 7, b"o-1"])
    async def test_a_key_that_is_no_string_is_a_type_error(self, world: World, key: object) -> None:
        guarded = world.guard(charge, key=lambda order: key)
        with pytest.raises(TypeError, match="must return a str"):
            await world.call(guarded, "o-1")
        assert world.runs == []

    @pytest.mark.parametrize("key", ["", "  ", "k" * 256, "\ud800"])
    async def test_a_key_nobody_can_mean_is_invalid(self, world: World, key: str) -> None:
        guarded = world.guard(charge)
        with pytest.raises(InvalidKey) as caught:
            await world.call(guarded, key)
        assert key not in str(caught.value) or not key.strip()
        assert world.runs == []

    @pytest.mark.parametrize(
        "argument",
        [datetime(2026, 1, 1, tzinfo=UTC), Decimal(1), b"x", {1, 2}, float("nan"), {1: 2}, object()],
    )
    async def test_an_argument_without_a_canonical_form_asks_for_a_fingerprint(
        self, world: World, argument: object
    ) -> None:
        guarded = world.guard(lambda order, extra: order)
        with pytest.raises(TypeError, match="pass fingerprint="):
            await world.call(guarded, "o-1", argument)
        assert world.runs == []
        assert await world.record() is None

    async def test_arguments_that_do_not_fit_are_a_type_error_before_any_claim(self, world: World) -> None:
        guarded = world.guard(charge, key=lambda *_, **__: "o-1")
        with pytest.raises(TypeError):
            await world.call(guarded, "o-1", 100, 200)
        assert await world.record() is None

    async def test_an_unserialisable_default_left_alone_is_no_matter(self, world: World) -> None:
        session = object()
        guarded = world.guard(lambda order, session=session: order)
        assert await world.call(guarded, "o-1") == "o-1"
        assert await world.call(guarded, "o-1", session=session) == "o-1"
        with pytest.raises(TypeError, match="pass fingerprint="):
            await world.call(guarded, "o-1", session=object())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def _frozen(value: Any) -> Any:
    """Equal iff the same, where Python's own `1 == 1.0 == True` is too generous."""
    match value:
        case list():
            return ("list", *map(_frozen, value))
        case dict():
            return ("dict", *sorted((name, _frozen(member)) for name, member in value.items()))
    return (type(value).__name__, repr(value))


@given(left=JSON_VALUES, right=JSON_VALUES)
@settings(max_examples=200)
def test_two_calls_have_one_fingerprint_iff_their_arguments_are_the_same(left: Any, right: Any) -> None:
    def function(argument: Any, *more: Any, **named: Any) -> None: ...

    reader = CallReader(
        function, operation="op", key=lambda *_, **__: "k", fingerprint=None, max_key_chars=255
    )
    same = repr(_frozen(left)) == repr(_frozen(right))
    for one, other in (
        (((left,), {}), ((right,), {})),
        ((("a", left), {}), (("a", right), {})),
        ((("a",), {"x": left}), (("a",), {"x": right})),
    ):
        assert (reader.read(*one) == reader.read(*other)) is same
    assert reader.read((left, right), {}) != reader.read((left,), {"more": right})


class TestExceptions:
    async def test_by_default_an_exception_frees_the_key(self, world: World) -> None:
        answers = iter([ValueError("declined"), None])

        def fail_once(order: str) -> str:
            if (error := next(answers)) is not None:
                raise error
            return order

        guarded = world.guard(fail_once)
        with pytest.raises(ValueError, match="declined"):
            await world.call(guarded, "o-1")
        assert await world.call(guarded, "o-1") == "o-1"
        assert len(world.runs) == 2

    async def test_kept_an_exception_is_told_to_every_retry_by_its_class_alone(self, world: World) -> None:
        def fail(order: str) -> str:
            raise ValueError("card 4111111111111111 declined")

        guarded = world.guard(fail, policy=Policy.at_most_once())
        with pytest.raises(ValueError, match="4111"):
            await world.call(guarded, "o-1")
        with pytest.raises(FirstRunFailed, match="raised ValueError") as caught:
            await world.call(guarded, "o-1")
        assert len(world.runs) == 1
        record = await world.record()
        assert b"4111" not in record.outcome
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.error, again.key_id, str(again)) == (
            "ValueError",
            caught.value.key_id,
            str(caught.value),
        )

    async def test_an_interrupt_leaves_the_key_to_its_lease(self, world: World) -> None:
        class Interrupt(BaseException):
            pass

        def interrupted(order: str) -> str:
            if not world.runs[1:]:
                raise Interrupt
            return order

        guarded = world.guard(interrupted)
        with pytest.raises(Interrupt):
            await world.call(guarded, "o-1")
        with pytest.raises(InProgress) as caught:
            await world.call(guarded, "o-1")
        assert caught.value.retry_after >= 1
        world.clock.advance(31)
        assert await world.call(guarded, "o-1") == "o-1"
        claimed = [event.attempt for event in world.events if isinstance(event, Claimed)]
        assert claimed == [1, 2]

    async def test_at_most_once_an_interrupt_leaves_the_outcome_unknown(self, world: World) -> None:
        def interrupted(order: str) -> str:
            raise KeyboardInterrupt

        guarded = world.guard(interrupted, policy=Policy.at_most_once())
        with pytest.raises(KeyboardInterrupt):
            await world.call(guarded, "o-1")
        world.clock.advance(31)
        with pytest.raises(OutcomeUnknown):
            await world.call(guarded, "o-1")
        assert len(world.runs) == 1


class TestValues:
    @pytest.mark.parametrize(
        "value", [None, True, 0, -0.0, 2**53 + 1, -(2**200), 1e308, "é\x00\u2028", [[], {}], {"": None}]
    )
    async def test_json_values_come_back_exactly(self, world: World, value: Any) -> None:
        guarded = world.guard(lambda order: value)
        await world.call(guarded, "o-1")
        again = await world.call(guarded, "o-1")
        assert _frozen(again) == _frozen(value)
        assert len(world.runs) == 1

    @pytest.mark.parametrize(
        "value",
        [
            float("nan"),
            float("-inf"),
            Decimal("1.10"),
            datetime(2026, 1, 1, tzinfo=UTC),
            b"bytes",
            {1, 2},
            (1, 2),
            {1: "a"},
            "\ud800",
            object(),
            functools.reduce(lambda inner, _: [inner], range(200), []),
        ],
        ids=lambda value: type(value).__name__,
    )
    async def test_a_value_that_would_change_is_returned_once_and_never_run_again(
        self, world: World, value: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        guarded = world.guard(lambda order: value)
        with caplog.at_level(logging.ERROR, "idempotency"):
            assert await world.call(guarded, "o-1") is value
        assert "its retries will raise NotReplayable" in caplog.text
        with pytest.raises(NotReplayable):
            await world.call(guarded, "o-1")
        assert len(world.runs) == 1
        settled = [event.result for event in world.events if isinstance(event, Settled)]
        assert settled == ["unreplayable"]

    async def test_a_value_over_the_limit_is_recorded_as_done(self, world: World) -> None:
        guarded = world.guard(lambda order: "x" * 1000, policy=Policy(max_response_bytes=500))
        await world.call(guarded, "o-1")
        with pytest.raises(NotReplayable, match="larger than 500 bytes"):
            await world.call(guarded, "o-1")

    async def test_a_record_is_json_that_a_person_can_read(self, world: World) -> None:
        await world.call(world.guard(charge), "o-1", 5)
        record = await world.record()
        assert record.outcome == (
            b'{"format":1,"outcome":"value","value":{"returned":{"order":"o-1","cents":5}}}'
        )

    async def test_a_replay_names_the_trace_of_the_run_that_made_it(self, world: World) -> None:
        class Hook:
            def __call__(self, event: Event) -> None:
                world.events.append(event)

            def traceparent(self) -> str:
                return "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

        guarded = world.guard(charge, hooks=(Hook(),))
        await world.call(guarded, "o-1")
        await world.call(guarded, "o-1")
        assert isinstance(world.events[-1], Replayed)
        assert world.events[-1].traceparent == Hook().traceparent()

    async def test_a_hook_that_cannot_name_its_trace_costs_nobody_a_value(self, world: World) -> None:
        class Hook:
            def __call__(self, event: Event) -> None: ...

            def traceparent(self) -> str:
                raise RuntimeError("no trace")

        guarded = world.guard(charge, hooks=(Hook(),))
        first = await world.call(guarded, "o-1")
        assert await world.call(guarded, "o-1") == first

    async def test_a_response_under_the_same_name_is_never_taken_for_a_value(self, world: World) -> None:
        guarded = world.guard(charge, fingerprint=lambda *_: b"same")
        await world.call(guarded, "o-1")
        record = await world.record()
        response = b'{"format":1,"outcome":"response","status_code":200,"headers":[],"body":""}'
        inner = world.store if world.kind == "sync" else world.store._store
        inner.forget(record.key)
        reply = inner.acquire(
            record.key, fingerprint=record.fingerprint, owner=b"o" * 16, lease=1.0, retention=60.0
        )
        assert isinstance(reply, Acquired)
        inner.complete(reply.claim, response, retention=60.0)
        with pytest.raises(UnknownRecordVersion):
            await world.call(guarded, "o-1")
        assert len(world.runs) == 1


class TestStoreFailures:
    @pytest.fixture
    def broken(self, world: World, monkeypatch: pytest.MonkeyPatch) -> World:
        inner = world.store if world.kind == "sync" else world.store._store

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise StoreUnavailable("down")

        monkeypatch.setattr(inner, "acquire", fail)
        return world

    async def test_without_a_confirmed_claim_nothing_runs(self, broken: World) -> None:
        guarded = broken.guard(charge)
        with pytest.raises(StoreUnavailable):
            await broken.call(guarded, "o-1")
        assert broken.runs == []

    async def test_the_policy_may_prefer_an_answer(self, broken: World) -> None:
        guarded = broken.guard(charge, policy=Policy(on_store_error="bypass"))
        assert await broken.call(guarded, "o-1") == {"order": "o-1", "cents": 100}
        assert current_claim() is None

    async def test_a_lost_claim_answers_with_the_successors_value(self, world: World) -> None:
        def stall(order: str) -> str:
            if not world.runs[1:]:
                world.clock.advance(31)
                inner = world.store if world.kind == "sync" else world.store._store
                entry = inner.get(storage_key("charge", "o-1"))
                reply = inner.acquire(
                    entry.key, fingerprint=entry.fingerprint, owner=b"o" * 16, lease=30.0, retention=60.0
                )
                outcome = b'{"format":1,"outcome":"value","value":{"returned":"successor"}}'
                inner.complete(reply.claim, outcome, retention=60.0)
            return "late"

        assert await world.call(world.guard(stall), "o-1") == "successor"


class TestNesting:
    async def test_a_call_inside_a_run_with_its_own_key_joins_it(self, world: World) -> None:
        guarded: Callable[..., Any]

        if world.kind == "async":

            @idempotent(
                store=world.store, operation="walk", key=lambda node, depth: node, fingerprint=_nothing
            )
            async def walk(node: str, depth: int) -> int:
                world.runs.append(depth)
                return depth if depth == 0 else await walk(node, depth - 1)

            guarded = walk
        else:

            @idempotent(
                store=world.store, operation="walk", key=lambda node, depth: node, fingerprint=_nothing
            )
            def walk_sync(node: str, depth: int) -> int:
                world.runs.append(depth)
                return depth if depth == 0 else walk_sync(node, depth - 1)

            guarded = walk_sync
        assert await world.call(guarded, "n", 2) == 0
        assert world.runs == [2, 1, 0]

    async def test_a_call_inside_with_another_key_is_an_operation_of_its_own(self, world: World) -> None:
        inner = world.guard(charge, operation="inner")
        if world.kind == "async":

            @idempotent(store=world.store, operation="outer", key=lambda order: order)
            async def outer(order: str) -> Any:
                return await inner(order)

            await outer("o-1")
        else:

            @idempotent(store=world.store, operation="outer", key=lambda order: order)
            def outer_sync(order: str) -> Any:
                return inner(order)

            outer_sync("o-1")
        assert await world.record(operation="inner") is not None
        assert await world.record(operation="outer") is not None


def _nothing(*args: object) -> bytes:
    return b""


class TestAsync:
    """What only coroutine functions have: cancellation, twins in one loop, tasks that outlive their run."""

    async def test_a_cancelled_run_leaves_its_key_to_the_lease(self) -> None:
        world, started = World("async"), anyio.Event()

        @idempotent(store=world.store, operation="slow", key=lambda order: order)
        async def slow(order: str) -> str:
            started.set()
            await anyio.sleep_forever()
            return order

        async with anyio.create_task_group() as group:
            group.start_soon(slow, "o-1")
            await started.wait()
            group.cancel_scope.cancel()
        with pytest.raises(InProgress):
            await slow("o-1")
        record = await world.record(operation="slow")
        assert record.attempt == 1

    async def test_twenty_twins_run_once_and_all_get_the_value(self) -> None:
        world, values = World("async"), []

        @idempotent(store=world.store, operation="slow", key=lambda order: order, policy=Policy(wait=10.0))
        async def slow(order: str) -> str:
            world.runs.append(order)
            await anyio.sleep(0.02)
            return order

        async def call() -> None:
            values.append(await slow("o-1"))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(call)
        assert values == ["o-1"] * 20
        assert world.runs == ["o-1"]

    async def test_without_a_wait_a_twin_is_told_to_come_back(self) -> None:
        world, started, go = World("async"), anyio.Event(), anyio.Event()

        @idempotent(store=world.store, operation="slow", key=lambda order: order)
        async def slow(order: str) -> str:
            started.set()
            await go.wait()
            return order

        async with anyio.create_task_group() as group:
            group.start_soon(slow, "o-1")
            await started.wait()
            with pytest.raises(InProgress):
                await slow("o-1")
            go.set()
        assert await slow("o-1") == "o-1"

    async def test_a_task_that_outlives_its_run_is_no_part_of_it(self) -> None:
        world, go, late = World("async"), anyio.Event(), []

        async with anyio.create_task_group() as group:

            @idempotent(store=world.store, operation="send", key=lambda order: order)
            async def send(order: str) -> int:
                world.runs.append(order)

                async def retry_later() -> None:
                    await go.wait()
                    late.append(await send(order))

                group.start_soon(retry_later)
                return len(world.runs)

            assert await send("o-1") == 1
            go.set()
        assert late == [1]
        assert world.runs == ["o-1"]

    async def test_a_decorator_under_a_middleware_is_another_operation_unless_the_names_are_equal(
        self,
    ) -> None:
        world, guarded = World("async"), []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            guarded.append(await charge_once("k-1"))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"%d" % guarded[-1]})

        @idempotent(store=world.store, operation="charges", key=lambda key: key)
        async def charge_once(key: str) -> int:
            current = current_claim()
            assert current is not None
            world.runs.append(current.claim.key)
            return len(world.runs)

        for tenant in ("alice", "charges"):
            world.runs.clear()
            guard = IdempotencyMiddleware(app, store=world.store, tenant=lambda _, tenant=tenant: tenant)
            if tenant == "charges":
                await world.store.forget(storage_key("charges", "k-1"))
            bodies = [await _post(guard) for _ in range(2)]
            assert bodies == [b"1", b"1"]
            assert world.runs == [storage_key("charges", "k-1")]
        records = (await world.store.scan()).records
        assert sorted(record.key for record in records) == ["alice:k-1", "charges:k-1"]


async def _post(app: Any) -> bytes:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"idempotency-key", b'"k-1"')]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return b"".join(message.get("body", b"") for message in sent)


class TestSync:
    """What only plain functions have: threads, and loops they may block."""

    def test_threads_with_one_key_run_once(self) -> None:
        world, values = World("sync"), []

        @idempotent(store=world.store, operation="slow", key=lambda order: order, policy=Policy(wait=10.0))
        def slow(order: str) -> str:
            world.runs.append(order)
            time.sleep(0.02)
            return order

        threads = [threading.Thread(target=lambda: values.append(slow("o-1"))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert values == ["o-1"] * 10
        assert world.runs == ["o-1"]

    async def test_a_plain_function_works_inside_a_running_loop_and_in_its_threads(self) -> None:
        world = World("sync")
        guarded = world.guard(charge)
        first = guarded("o-1")
        assert await anyio.to_thread.run_sync(guarded, "o-1") == first
        assert len(world.runs) == 1

    def test_an_awaitable_that_no_annotation_announced_is_the_functions_own_error(self) -> None:
        world = World("sync")
        ran = []

        async def work(order: str) -> None:
            ran.append(order)

        guarded = world.guard(work)
        for _ in range(2):
            with pytest.raises(TypeError, match="define it by `async def`"):
                guarded("o-1")
        assert ran == []

    async def test_a_future_is_no_value_either(self) -> None:
        world = World("sync")
        guarded = world.guard(lambda order: _Future())
        with pytest.raises(TypeError, match="define it by `async def`"):
            guarded("o-1")


class _Future:
    def __await__(self) -> Iterator[None]:
        yield


class _CallableObject:
    async def __call__(self, order: str) -> str:
        return order


class TestDecoration:
    """What can be known to go wrong is refused where it is written."""

    def decorate(self, function: Any, *, store: Any = None, **options: Any) -> Any:
        settings: dict[str, Any] = {"operation": "op", "key": lambda *_: "k"}
        return idempotent(store=store or SyncMemoryStore(), **(settings | options))(function)

    def test_async_over_a_sync_store_and_the_reverse(self) -> None:
        async def coroutine(order: str) -> str:
            return order

        with pytest.raises(TypeError, match="`async def` needs a Store, and SyncMemoryStore is none"):
            self.decorate(coroutine)
        with pytest.raises(TypeError, match="`def` needs a SyncStore, and MemoryStore is none"):
            self.decorate(charge, store=MemoryStore())

    async def test_partials_and_objects_are_what_they_call(self) -> None:
        async def coroutine(prefix: str, order: str) -> str:
            return prefix + order

        partial = self.decorate_partial(functools.partial(coroutine, "a"))
        assert await partial("b") == "ab"
        with pytest.raises(TypeError, match="needs a Store"):
            self.decorate(functools.partial(coroutine, "a"))
        with pytest.raises(TypeError, match="needs a Store"):
            self.decorate(_CallableObject())

    def decorate_partial(self, function: Any) -> Any:
        return self.decorate(function, store=MemoryStore())

    def test_generators(self) -> None:
        def generator(order: str) -> Any:
            yield order

        async def async_generator(order: str) -> Any:
            yield order

        for function, store in ((generator, SyncMemoryStore()), (async_generator, MemoryStore())):
            with pytest.raises(TypeError, match="return a list"):
                self.decorate(function, store=store)

    @pytest.mark.parametrize(
        "returns",
        [
            Awaitable[int],
            Coroutine[Any, Any, int],
            Iterator[int],
            AsyncIterator[int],
            Generator[int, None, None],
        ],
    )
    def test_functions_that_announce_to_work_later(self, returns: Any) -> None:
        def function(order: str) -> Any: ...

        function.__annotations__["return"] = returns
        with pytest.raises(TypeError, match="before its work is done"):
            self.decorate(function)

    def test_static_and_class_methods_from_above(self) -> None:
        with pytest.raises(TypeError, match="below any other decorator"):
            self.decorate(staticmethod(charge))

    def test_an_operation_without_a_name(self) -> None:
        with pytest.raises(ValueError, match="operation must be a name"):
            self.decorate(charge, operation="")

    def test_a_key_that_is_no_plain_function(self) -> None:
        async def key(order: str) -> str:
            return order

        for wrong in (key, "order"):
            with pytest.raises(TypeError, match="key= must be a plain function"):
                self.decorate(charge, key=wrong)

    def test_a_return_annotation_that_json_would_change(self) -> None:
        def when(order: str) -> datetime: ...

        with pytest.raises(TypeError, match="datetime does not come back from JSON"):
            self.decorate(when)

    def test_a_method_is_protected_with_a_fingerprint_of_its_own(self) -> None:
        class Till:
            runs = 0

            @idempotent(
                store=SyncMemoryStore(),
                operation="charge",
                key=lambda self, order: order,
                fingerprint=lambda self, order: order,
            )
            def charge(self, order: str) -> int:
                self.runs += 1
                return self.runs

        till = Till()
        assert (till.charge("o-1"), till.charge("o-1"), till.charge("o-2")) == (1, 1, 2)


def test_asyncio_cancellation_of_the_wait_frees_nothing_of_the_twin() -> None:
    """A waiter that is cancelled neither runs nor disturbs the run it waited for."""
    world = World("async")

    @idempotent(store=world.store, operation="slow", key=lambda order: order, policy=Policy(wait=10.0))
    async def slow(order: str) -> str:
        world.runs.append(order)
        await asyncio.sleep(0.05)
        return order

    async def main() -> str:
        first = asyncio.create_task(slow("o-1"))
        await asyncio.sleep(0.01)
        waiter = asyncio.create_task(slow("o-1"))
        await asyncio.sleep(0.01)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        return await first

    assert asyncio.run(main()) == "o-1"
    assert world.runs == ["o-1"]
