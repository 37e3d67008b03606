"""Behaviour of coroutine functions only (cancellation, event loops) or of plain functions only (threads)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from decorated import Harness, charge
from patience import PATIENCE, until, until_sync

from idempotency import (
    IdempotencyMiddleware,
    InProgress,
    NotReplayable,
    Policy,
    current_claim,
    idempotent,
    storage_key,
)

pytestmark = pytest.mark.anyio


class TestAsync:
    """Coroutine functions: cancellation, duplicates in one loop, tasks that outlive their run."""

    async def test_cancelled_coroutine_function_leaves_its_key_to_its_lease(self) -> None:
        harness, started = Harness("async"), anyio.Event()

        @idempotent(store=harness.store, operation="slow", key=lambda order: order)
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
        record = await harness.record(operation="slow")
        assert record.attempt == 1

    async def test_twenty_concurrent_duplicates_run_once_and_all_get_the_value(self) -> None:
        harness, values = Harness("async"), []

        @idempotent(
            store=harness.store, operation="slow", key=lambda order: order, policy=Policy(wait=PATIENCE)
        )
        async def slow(order: str) -> str:
            harness.runs.append(order)
            await anyio.wait_all_tasks_blocked()  # the other calls wait for this one
            return order

        async def call() -> None:
            values.append(await slow("o-1"))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(call)
        assert values == ["o-1"] * 20
        assert harness.runs == ["o-1"]

    async def test_concurrent_duplicate_without_wait_raises_in_progress(self) -> None:
        harness, started, go = Harness("async"), anyio.Event(), anyio.Event()

        @idempotent(store=harness.store, operation="slow", key=lambda order: order)
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

    async def test_task_that_outlives_its_run_is_not_part_of_it(self) -> None:
        harness, go, late = Harness("async"), anyio.Event(), []

        async with anyio.create_task_group() as group:

            @idempotent(store=harness.store, operation="send", key=lambda order: order)
            async def send(order: str) -> int:
                harness.runs.append(order)

                async def retry_later() -> None:
                    await go.wait()
                    late.append(await send(order))

                group.start_soon(retry_later)
                return len(harness.runs)

            assert await send("o-1") == 1
            go.set()
        assert late == [1]
        assert harness.runs == ["o-1"]

    async def test_decorator_under_a_middleware_joins_its_run_only_if_the_storage_keys_are_equal(
        self,
    ) -> None:
        harness, guarded = Harness("async"), []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            guarded.append(await charge_once("k-1"))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"%d" % guarded[-1]})

        @idempotent(store=harness.store, operation="charges", key=lambda key: key)
        async def charge_once(key: str) -> int:
            current = current_claim()
            assert current is not None
            harness.runs.append(current.claim.key)
            return len(harness.runs)

        for tenant in ("alice", "charges"):
            harness.runs.clear()
            guard = IdempotencyMiddleware(app, store=harness.store, tenant=lambda _, tenant=tenant: tenant)
            if tenant == "charges":
                await harness.store.forget(storage_key("charges", "k-1"))
            bodies = [await _post(guard) for _ in range(2)]
            assert bodies == [b"1", b"1"]
            assert harness.runs == [storage_key("charges", "k-1")]
        records = (await harness.store.scan()).records
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
    """Plain functions: threads, and values that would be computed later."""

    def test_ten_threads_with_one_key_run_once(self) -> None:
        harness, asked, values = Harness("sync"), list[str](), list[str]()

        def key_of(order: str) -> str:
            asked.append(order)
            return order

        @idempotent(store=harness.store, operation="slow", key=key_of, policy=Policy(wait=PATIENCE))
        def slow(order: str) -> str:
            harness.runs.append(order)
            until_sync(lambda: len(asked) == 10)
            return order

        threads = [threading.Thread(target=lambda: values.append(slow("o-1"))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert values == ["o-1"] * 10
        assert harness.runs == ["o-1"]

    async def test_plain_function_can_be_called_in_a_running_loop_and_its_threads(self) -> None:
        harness = Harness("sync")
        guarded = harness.guard(charge)
        first = guarded("o-1")
        assert await anyio.to_thread.run_sync(guarded, "o-1") == first
        assert len(harness.runs) == 1

    def test_coroutine_returned_by_a_plain_function_is_a_type_error_and_never_runs(self) -> None:
        harness = Harness("sync")
        ran = []

        async def work(order: str) -> None:
            ran.append(order)

        guarded = harness.guard(work)
        for _ in range(2):
            with pytest.raises(TypeError, match="define it by `async def`"):
                guarded("o-1")
        assert ran == []

    async def test_awaitable_returned_by_a_plain_function_is_a_type_error(self) -> None:
        harness = Harness("sync")
        guarded = harness.guard(lambda order: _Future())
        with pytest.raises(TypeError, match="define it by `async def`"):
            guarded("o-1")

    @pytest.mark.parametrize("kind", ["sync", "async"])
    async def test_generator_returned_without_annotation_is_a_type_error_and_never_runs(
        self, kind: Any
    ) -> None:
        """It would be recorded as done before any of its work is."""
        harness = Harness(kind)
        ran: list[str] = []

        guarded = harness.guard(lambda order: (ran.append(item) for item in [order]))
        for _ in range(2):
            with pytest.raises(TypeError, match="collect it, inside"):
                await harness.call(guarded, "o-1")
        assert ran == []

    async def test_coroutine_returned_by_a_coroutine_function_is_a_type_error_and_never_runs(self) -> None:
        harness = Harness("async")
        ran = []

        async def work(order: str) -> None:
            ran.append(order)

        guarded = harness.guard(work)
        for _ in range(2):
            with pytest.raises(TypeError, match="await it"):
                await guarded("o-1")
        assert ran == []


class _Future:
    def __await__(self) -> Iterator[None]:
        yield


def test_task_returned_by_a_coroutine_function_is_recorded_as_unreplayable() -> None:
    harness = Harness("async")
    ran = []

    async def work(order: str) -> None:
        ran.append(order)

    async def call_twice() -> None:
        guarded = harness.guard(lambda order: asyncio.ensure_future(work(order)))
        await (await guarded("o-1"))
        with pytest.raises(NotReplayable):
            await guarded("o-1")

    asyncio.run(call_twice())
    assert ran == ["o-1"]


def test_cancelled_waiter_does_not_disturb_the_run_that_it_waits_for() -> None:
    """The waiter is a task of asyncio, cancelled by `Task.cancel`."""
    harness, go_on = Harness("async"), asyncio.Event()

    @idempotent(store=harness.store, operation="slow", key=lambda order: order, policy=Policy(wait=PATIENCE))
    async def slow(order: str) -> str:
        harness.runs.append(order)
        await go_on.wait()
        return order

    async def main() -> str:
        first = asyncio.create_task(slow("o-1"))
        await until(lambda: harness.runs)
        waiter = asyncio.create_task(slow("o-1"))
        await anyio.wait_all_tasks_blocked()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        go_on.set()
        return await first

    assert asyncio.run(main()) == "o-1"
    assert harness.runs == ["o-1"]
