"""
Code that inherits the context of a run is inside the run until the run ends, and no longer.

Every way to begin a run (the middleware, the decorator of either kind) is combined with every way to inherit a context:
tasks, task groups, callbacks, executors, threads, copied contexts.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
from asgi_driver import RequestDriver, call, http_scope, key_header
from effects import guard, read_body, respond
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from idempotency import (
    CurrentClaim,
    IdempotencyMiddleware,
    InProgress,
    Policy,
    Response,
    current_claim,
    idempotent,
)
from idempotency.engine.current_claim import active
from idempotency.errors import RunEnded
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


KEY = "k"
RUNS: dict[str, Callable[[Callable[[], Any]], Coroutine[Any, Any, None]]] = {}
"""Functions that call *function* inside a run with the storage key `shop:k`, and return once that run is over."""


def _run(function: Callable[..., Any]) -> Callable[..., Any]:
    RUNS[function.__name__] = function
    return function


@_run
async def async_decorator(function: Callable[[], Any]) -> None:
    @idempotent(store=MemoryStore(), operation="shop", key=lambda key: key)
    async def run(key: str) -> None:
        await _finish(function())

    await run(KEY)


@_run
async def sync_decorator(function: Callable[[], Any]) -> None:
    @idempotent(store=SyncMemoryStore(), operation="shop", key=lambda key: key)
    def run(key: str) -> None:
        function()

    run(KEY)


@_run
async def middleware(function: Callable[[], Any]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await _finish(function())
        await respond(send, b"done")

    await call(_shop(app), key=KEY)


@_run
async def middleware_and_decorator(function: Callable[[], Any]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await async_decorator(function)
        await respond(send, b"done")

    await call(_shop(app), key="another")


@_run
async def background_task_of_starlette(function: Callable[[], Any]) -> None:
    async def work() -> None:
        await _finish(function())

    async def charge(request: Request) -> PlainTextResponse:
        return PlainTextResponse("done", background=BackgroundTask(work))

    await call(_shop(Starlette(routes=[Route("/charges", charge, methods=["POST"])])), key=KEY)


@_run
async def streaming_endpoint(function: Callable[[], Any]) -> None:
    async def chunks() -> Any:
        yield b"first"
        await _finish(function())
        yield b"second"

    async def charge(request: Request) -> StreamingResponse:
        return StreamingResponse(chunks())

    await call(_shop(Starlette(routes=[Route("/charges", charge, methods=["POST"])])), key=KEY)


def _shop(app: Any, store: Any = None, **settings: Any) -> IdempotencyMiddleware:
    return IdempotencyMiddleware(
        app, store=store or MemoryStore(), tenant=lambda scope: "shop", policy=Policy(**settings)
    )


async def _finish(value: Any) -> None:
    if isinstance(value, Awaitable):
        await value


class Observer:
    """Observes code: its current claim, and whether a call with the run's storage key joins the run."""

    def __init__(self) -> None:
        self.claims: list[CurrentClaim | None] = []
        self.calls = 0
        self._same = idempotent(store=SyncMemoryStore(), operation="shop", key=lambda key: key)(self._count)

    def _count(self, key: str) -> None:
        self.calls += 1

    def observe(self) -> None:
        """Make the same call twice: inside the run both calls join it and run, outside the second is replayed."""
        self.claims.append(current_claim())
        self._same(KEY)
        self._same(KEY)

    @property
    def inside(self) -> bool:
        """Whether the code was inside the run; its claim and its calls must agree."""
        [claim] = self.claims
        assert self.calls == (1 if claim is None else 2)
        return claim is not None


class ContextInheritance:
    """Ways of asyncio to run a function later in the inherited context; each waits for `gate`."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.thread_gate = threading.Event()
        self.pending: list[Any] = []
        self.pool = ThreadPoolExecutor(1)

    def open(self) -> None:
        self.gate.set()
        self.thread_gate.set()

    async def task(self, function: Callable[[], None]) -> None:
        self.pending.append(asyncio.create_task(self._later(function)))

    async def call_soon(self, function: Callable[[], None]) -> None:
        self._poll(function, asyncio.get_running_loop().call_soon)

    async def call_later(self, function: Callable[[], None]) -> None:
        self._poll(function, functools.partial(asyncio.get_running_loop().call_later, 0.001))

    def _poll(self, function: Callable[[], None], schedule: Callable[[Callable[[], None]], object]) -> None:
        """Schedule a look at the gate, and again until it is open; then call *function*."""
        done = asyncio.get_running_loop().create_future()

        def poll() -> None:
            if self.gate.is_set():
                function()
                done.set_result(None)
            else:
                schedule(poll)

        schedule(poll)
        self.pending.append(done)

    async def done_callback(self, function: Callable[[], None]) -> None:
        waiting = asyncio.ensure_future(self.gate.wait())
        done = asyncio.get_running_loop().create_future()

        def ran(_: Any) -> None:
            function()
            done.set_result(None)

        waiting.add_done_callback(ran)
        self.pending.append(done)

    async def copied_context(self, function: Callable[[], None]) -> None:
        context = contextvars.copy_context()

        async def later() -> None:
            await self.gate.wait()
            context.run(function)

        self.pending.append(asyncio.create_task(later(), context=contextvars.Context()))

    async def run_in_executor(self, function: Callable[[], None]) -> None:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        self.pending.append(loop.run_in_executor(self.pool, context.run, self._in_thread, function))

    async def to_thread(self, function: Callable[[], None]) -> None:
        self.pending.append(asyncio.create_task(asyncio.to_thread(self._in_thread, function)))

    async def thread(self, function: Callable[[], None]) -> None:
        thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._in_thread, function), daemon=True
        )
        thread.start()
        self.pending.append(
            asyncio.create_task(asyncio.to_thread(thread.join), context=contextvars.Context())
        )

    async def task_of_a_task(self, function: Callable[[], None]) -> None:
        async def outer() -> None:
            await self.task(function)

        await asyncio.create_task(outer())

    async def _later(self, function: Callable[[], None]) -> None:
        await self.gate.wait()
        function()

    def _in_thread(self, function: Callable[[], None]) -> None:
        assert self.thread_gate.wait(30)
        function()


INHERITANCE_KINDS = [name for name in vars(ContextInheritance) if not name.startswith("_") and name != "open"]
ASYNC_RUNS = [name for name in RUNS if name != "sync_decorator"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("way", INHERITANCE_KINDS)
@pytest.mark.parametrize("run", ASYNC_RUNS)
async def test_task_that_inherits_the_context_is_inside_the_run_while_it_lasts(run: str, way: str) -> None:
    observer, inherited = Observer(), ContextInheritance()

    async def begin() -> None:
        await getattr(inherited, way)(observer.observe)
        inherited.open()
        async with asyncio.timeout(30):
            await asyncio.gather(*inherited.pending)

    await RUNS[run](begin)
    assert observer.inside


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("way", INHERITANCE_KINDS)
@pytest.mark.parametrize("run", ASYNC_RUNS)
async def test_task_that_outlives_the_run_is_outside_it(run: str, way: str) -> None:
    observer, inherited = Observer(), ContextInheritance()
    await RUNS[run](functools.partial(getattr(inherited, way), observer.observe))
    assert observer.claims == []
    inherited.open()
    async with asyncio.timeout(30):
        await asyncio.gather(*inherited.pending)
    assert not observer.inside


@pytest.mark.parametrize("run", RUNS)
async def test_context_copied_in_a_run_is_outside_it_afterwards(run: str) -> None:
    observer = Observer()
    contexts: list[contextvars.Context] = []
    await RUNS[run](lambda: contexts.append(contextvars.copy_context()))
    contexts[0].run(observer.observe)
    assert not observer.inside


@pytest.mark.parametrize("run", RUNS)
async def test_thread_started_in_a_run_is_outside_it_afterwards(run: str) -> None:
    observer, gate = Observer(), threading.Event()
    threads: list[threading.Thread] = []

    def look() -> None:
        assert gate.wait(30)
        observer.observe()

    def begin() -> None:
        threads.append(threading.Thread(target=contextvars.copy_context().run, args=(look,), daemon=True))
        threads[0].start()

    await RUNS[run](begin)
    gate.set()
    await anyio.to_thread.run_sync(threads[0].join)
    assert not observer.inside


@pytest.mark.parametrize("run", RUNS)
async def test_task_in_an_outer_task_group_is_outside_the_run_afterwards(run: str) -> None:
    """A TaskGroup of asyncio and a nursery of trio, both through anyio."""
    observer, gate = Observer(), anyio.Event()

    async def worker() -> None:
        await gate.wait()
        observer.observe()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:

            def begin() -> None:
                tasks.start_soon(worker)

            await RUNS[run](begin)
            gate.set()
    assert not observer.inside


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
@pytest.mark.parametrize("run", RUNS)
async def test_trio_system_task_with_the_context_of_a_run_is_outside_it_afterwards(run: str) -> None:
    observer, gate, done = Observer(), trio.Event(), trio.Event()

    async def worker() -> None:
        await gate.wait()
        observer.observe()
        done.set()

    def begin() -> None:
        trio.lowlevel.spawn_system_task(worker, context=contextvars.copy_context())

    await RUNS[run](begin)
    gate.set()
    with trio.fail_after(30):
        await done.wait()
    assert not observer.inside


FORKS = """
import asyncio, os, sys
from idempotency import IdempotencyMiddleware, current_claim, idempotent, one_tenant
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0 if current_claim() is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child is inside"
    assert current_claim() is not None, "the parent is not"
    print("forked")

@idempotent(store=MemoryStore(), operation="a", key=str)
async def in_loop(number):
    fork()

@idempotent(store=SyncMemoryStore(), operation="a", key=str)
def plain(number):
    fork()

async def app(scope, receive, send):
    fork()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})

async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}

async def send(message):
    pass

async def main():
    await in_loop(1)
    plain(1)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"idempotency-key", b"k")]}
    await IdempotencyMiddleware(app, store=MemoryStore(), tenant=one_tenant())(scope, receive, send)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_is_outside_its_parents_run() -> None:
    """The child cannot know when the parent's run ends. The test forks in a new process: this one has threads."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == "" or "DeprecationWarning" in done.stderr
    assert done.stdout.split() == ["forked"] * 3


@pytest.mark.parametrize("run", RUNS)
async def test_context_of_a_run_that_raised_is_outside_it(run: str) -> None:
    observer = Observer()
    contexts: list[contextvars.Context] = []

    def fail() -> None:
        contexts.append(contextvars.copy_context())
        raise LookupError("declined")

    with pytest.raises((LookupError, ExceptionGroup)):  # a task group of Starlette wraps the error
        await RUNS[run](fail)
    contexts[0].run(observer.observe)
    assert not observer.inside


@pytest.mark.parametrize("run", ASYNC_RUNS)
async def test_context_of_a_cancelled_run_is_outside_it(run: str) -> None:
    observer = Observer()
    contexts: list[contextvars.Context] = []

    async def hang() -> None:
        contexts.append(contextvars.copy_context())
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(RUNS[run], hang)
        with anyio.fail_after(30):
            while not contexts:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    contexts[0].run(observer.observe)
    assert not observer.inside


# A worker task that the first run starts, and that handles the jobs of later runs.


@pytest.mark.parametrize("shell", ["decorator", "middleware"])
async def test_worker_task_started_by_a_run_has_no_claim(shell: str) -> None:
    give, take = anyio.create_memory_object_stream[str](10)
    seen: list[tuple[str, CurrentClaim | None]] = []

    def serve(job: str) -> None:
        seen.append((job, current_claim()))

    async def worker() -> None:
        with take:
            async for job in take:
                serve(job)

    async with anyio.create_task_group() as tasks:
        started: list[bool] = []

        async def order(name: str) -> None:
            if not started:
                started.append(True)
                tasks.start_soon(worker)
            give.send_nowait(name)

        if shell == "decorator":
            guarded = idempotent(store=MemoryStore(), operation="order", key=lambda name: name)(order)
            for name in ("a", "b"):
                await guarded(name)
        else:

            async def app(scope: Any, receive: Any, send: Any) -> None:
                await order(scope["path"])
                await respond(send, b"")

            site = guard(app, MemoryStore())
            await call(site, path="a", key="k")
            await call(site, path="b")  # without a key of its own
        give.close()
    assert seen == [(name, None) for name in ("a", "b")]


async def test_request_without_key_has_no_claim_even_inside_another_run() -> None:
    """The server, or its worker task, was started inside a run that has not ended."""
    claims: list[CurrentClaim | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        claims.append(current_claim())
        await respond(send, b"")

    site = guard(app, MemoryStore())
    for name, run in RUNS.items():
        if name != "sync_decorator":
            await run(lambda: call(site))
    assert claims == [None] * len(ASYNC_RUNS)


async def test_request_with_key_has_its_own_claim_even_inside_another_run() -> None:
    keys: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        claim = current_claim()
        assert claim is not None
        keys.append(claim.claim.key)
        await respond(send, b"")

    site = guard(app, MemoryStore())
    for number, name in enumerate(ASYNC_RUNS):
        await RUNS[name](functools.partial(call, site, key=str(number)))
    assert keys == [str(number) for number in range(len(ASYNC_RUNS))]


async def test_receive_and_send_of_the_server_run_outside_the_claim() -> None:
    """A server may begin the connection's next request in them, which then inherits the context."""
    seen: list[CurrentClaim | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await respond(send, b"done")
        await receive()

    class Server(RequestDriver):
        async def _receive(self) -> Any:
            seen.append(current_claim())
            return await super()._receive()

        async def _send(self, message: Any) -> None:
            seen.append(current_claim())
            await super()._send(message)

    driver = Server(guard(app, MemoryStore()), http_scope(headers=key_header("k")))
    driver.send_body(b"{}")
    await driver.run()
    assert seen == [None] * 4


# A current claim that is used after its run.


@pytest.mark.parametrize("run", RUNS)
async def test_current_claim_used_after_its_run_raises_run_ended(run: str) -> None:
    kept: list[CurrentClaim] = []

    def keep() -> None:
        claim = current_claim()
        assert claim is not None
        assert claim.derive("card")
        kept.append(claim)

    await RUNS[run](keep)
    [claim] = kept
    for use in (
        lambda: claim.derive("card"),
        lambda: claim.outcome(Response(200, [], b"")),
        lambda: claim.claim,
        lambda: claim.retention,
    ):
        with pytest.raises(RunEnded, match="is over") as caught:
            use()
        assert "shop" not in str(caught.value)
    assert (claim.attempt, claim.fence > 0) == (1, True)


async def test_repr_of_the_current_claim_shows_no_key_or_owner() -> None:
    said: list[str] = []
    await async_decorator(lambda: said.append(repr(current_claim())))
    assert "shop" not in said[0]
    assert said[0].startswith("CurrentClaim(")
    assert "owner" not in said[0]


# Which calls join a run (E10).


class Recursion:
    """`place` calls `notify`, which calls `place` for the same order: functions of one kind."""

    def __init__(self, kind: str, **policy: Any) -> None:
        self.ran: list[str] = []
        self.keys: list[str] = []
        settings: dict[str, Any] = {"key": lambda order: order, "policy": Policy(**policy)}
        if kind == "async":
            store: Any = MemoryStore()

            @idempotent(store=store, operation="place", **settings)
            async def place(order: str) -> str:
                if self._begin("place") < 2:
                    await notify(order)
                return order

            @idempotent(store=store, operation="notify", **settings)
            async def notify(order: str) -> None:
                self._begin("notify")
                await place(order)

            self.place: Any = place
            self.notify: Any = notify
        else:
            sync_store = SyncMemoryStore()

            @idempotent(store=sync_store, operation="place", **settings)
            def place_sync(order: str) -> str:
                if self._begin("place") < 2:
                    notify_sync(order)
                return order

            @idempotent(store=sync_store, operation="notify", **settings)
            def notify_sync(order: str) -> None:
                self._begin("notify")
                place_sync(order)

            self.place, self.notify = place_sync, notify_sync

    def _begin(self, name: str) -> int:
        claim = current_claim()
        assert claim is not None
        self.ran.append(name)
        self.keys.append(claim.claim.key)
        return self.ran.count(name)


@pytest.mark.parametrize("wait", [0, 30])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_indirect_recursion_joins_the_enclosing_run(kind: str, wait: float) -> None:
    recursion = Recursion(kind, wait=wait)
    with anyio.fail_after(30):
        await _finish(recursion.place("o-1"))
    assert recursion.ran == ["place", "notify", "place"]
    assert recursion.keys == ["place:o-1", "notify:o-1", "place:o-1"], (
        "each call has the claim of the run that it joined"
    )
    await _finish(recursion.place("o-1"))
    assert recursion.ran == ["place", "notify", "place"], "it was recorded"


@pytest.mark.parametrize("wait", [0, 30])
async def test_indirect_recursion_through_a_thread_joins_the_enclosing_run(wait: float) -> None:
    ran: list[str] = []
    settings: dict[str, Any] = {"key": lambda order: order, "policy": Policy(wait=wait)}

    @idempotent(store=(store := SyncMemoryStore()), operation="place", **settings)
    def place(order: str) -> None:
        ran.append("place")

    @idempotent(store=store, operation="notify", **settings)
    def notify(order: str) -> None:
        ran.append("notify")
        place(order)

    @idempotent(store=MemoryStore(), operation="place", **settings)
    async def begin(order: str) -> None:
        await anyio.to_thread.run_sync(notify, order)

    with anyio.fail_after(30):
        await begin("o-1")
        await begin("o-1")
    assert ran == ["notify", "place"]


@pytest.mark.parametrize("between", [0, 1, 3])
async def test_function_joins_the_middlewares_run_through_other_decorated_functions(between: int) -> None:
    ran: list[str] = []

    @idempotent(store=(store := MemoryStore()), operation="shop", key=lambda key: key)
    async def innermost(key: str) -> None:
        claim = current_claim()
        assert claim is not None
        ran.append(claim.claim.key)

    function: Any = innermost
    for number in range(between):

        def wrap(inner: Any, operation: str) -> Any:
            @idempotent(store=store, operation=operation, key=lambda key: key)
            async def layer(key: str) -> None:
                await inner(key)

            return layer

        function = wrap(function, f"layer-{number}")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await function(KEY)
        await respond(send, b"done")

    with anyio.fail_after(30):
        answer = await call(_shop(app, store), key=KEY)
    assert (answer.status, ran) == (200, ["shop:k"])


@pytest.mark.parametrize("copy", [False, True], ids=["same scope", "copied scope"])
async def test_mounted_middleware_joins_the_run_of_its_request(copy: bool) -> None:
    """Three middlewares, the middle one of another tenant, and a mount."""
    store, keys = MemoryStore(), []

    async def charge(request: Request) -> PlainTextResponse:
        claim = current_claim()
        assert claim is not None
        keys.append(claim.claim.key)
        return PlainTextResponse("done")

    site: Any = _shop(Starlette(routes=[Route("/charges", charge, methods=["POST"])]), store)
    between = IdempotencyMiddleware(site, store=store, tenant=lambda scope: "another")

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await between(dict(scope) if copy else scope, receive, send)

    outer = _shop(Starlette(routes=[Mount("/v1", app=mounted)]), store)
    with anyio.fail_after(30):
        answer = await call(outer, path="/v1/charges", key=KEY)
    assert (answer.status, keys) == (200, ["shop:k"])
    assert (await call(outer, path="/v1/charges", key=KEY)).replayed


async def test_middleware_joins_the_run_of_a_decorated_app_around_it() -> None:
    store = MemoryStore()
    ran: list[str] = []

    async def charge(scope: Any, receive: Any, send: Any) -> None:
        claim = current_claim()
        assert claim is not None
        ran.append(claim.claim.key)
        await respond(send, b"done")

    inner = _shop(charge, store)

    @idempotent(
        store=store, operation="shop", key=lambda scope, *_: KEY, fingerprint=lambda *_: b"one request"
    )
    async def decorated(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    outer = IdempotencyMiddleware(decorated, store=store, tenant=lambda scope: "another")
    answer = await call(outer, key=KEY)
    assert (answer.status, ran) == (200, ["shop:k"])


async def test_scope_served_again_after_its_run_is_a_new_request() -> None:
    """A worker keeps a request's scope, or a copy, and sends it to the application again."""
    scopes: list[Any] = []
    runs: list[CurrentClaim | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        runs.append(current_claim())
        scopes.append(dict(scope))
        await respond(send, b"done")

    site = guard(app, MemoryStore())
    first = http_scope(headers=key_header("k"))
    for scope in (first, first):
        driver = RequestDriver(site, scope)
        driver.send_body(b"{}")
        await driver.run()
    again = RequestDriver(site, scopes[0])
    again.send_body(b"{}")
    assert (await again.run()).replayed
    assert len(runs) == 1


async def test_concurrent_call_with_a_running_key_does_not_join() -> None:
    """Only nested calls join: a concurrent duplicate is refused."""
    go_on = anyio.Event()

    @idempotent(store=MemoryStore(), operation="order", key=lambda name: name)
    async def order(name: str) -> None:
        await go_on.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(order, "a")
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(InProgress):
            await order("a")
        go_on.set()


async def test_chain_of_tasks_does_not_keep_ended_runs_alive() -> None:
    depth: list[int] = []

    @idempotent(store=MemoryStore(), operation="measure", key=str)
    async def measure(number: int) -> None:
        frame, length = active.get(), 0
        while frame is not None:
            length, frame = length + 1, frame.enclosing
        depth.append(length)
        if number < 50:
            tasks.start_soon(measure, number + 1)

    async with anyio.create_task_group() as tasks:
        await measure(0)
    assert len(depth) == 51
    assert max(depth) <= 2
