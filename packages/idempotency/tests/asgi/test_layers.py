"""Compression, CORS and BaseHTTPMiddleware around the middleware and inside it, on asyncio and trio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from asgi_driver import RequestDriver, call, http_scope, key_header
from effects import guard
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from idempotency import IdempotencyMiddleware
from idempotency.store import Store
from idempotency.stores.memory import MemoryStore
from idempotency.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """The stores that run on both loops."""
    store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "records.db")
    yield store
    await store.aclose()


def _site(streaming: bool) -> tuple[Any, list[int]]:
    runs: list[int] = []

    async def charge(request: Request) -> Any:
        body = await request.body()
        runs.append(len(body))
        if streaming:
            return StreamingResponse(iter([b"a" * 2000, b"b" * 2000]), 201)
        return PlainTextResponse("a" * 4000, 201)

    return Starlette(routes=[Route("/charges", charge, methods=["POST"])]), runs


async def _pass_on(request: Request, call_next: Any) -> Any:
    response = await call_next(request)
    response.headers["x-layer"] = "1"
    return response


LAYERS = {
    "gzip": lambda app: GZipMiddleware(app, minimum_size=100),
    "cors": lambda app: CORSMiddleware(app, allow_origins=["*"]),
    "base": lambda app: BaseHTTPMiddleware(app, dispatch=_pass_on),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("side", ["outside", "inside"])
@pytest.mark.parametrize("layer", LAYERS)
async def test_replay_works_with_another_middleware_outside_or_inside(
    layer: str, side: str, streaming: bool, store: Store
) -> None:
    site, runs = _site(streaming)
    wrap = LAYERS[layer]
    app = wrap(guard(site, store)) if side == "outside" else guard(wrap(site), store)
    headers = [("accept-encoding", "gzip"), ("origin", "https://shop.example")]
    first = await call(app, key="k", headers=headers)
    again = await call(app, key="k", headers=headers)
    assert (first.status, again.status, again.replayed) == (201, 201, True)
    assert runs == [2]
    for answer in (first, again):
        assert len(answer.values("content-encoding")) == (layer == "gzip")
        assert len(answer.values("access-control-allow-origin")) == (layer == "cors")
        assert len(answer.values("x-layer")) == (layer == "base")
        assert len(answer.values("content-length")) <= 1
        if layer != "gzip":
            assert len(answer.body) == 4000
    if layer == "gzip" and side == "inside":
        assert again.body == first.body, "inside, the compressed response is recorded"
    plain = await call(app, key="k")
    if layer == "gzip" and side == "outside":
        assert (plain.values("content-encoding"), len(plain.body)) == ([], 4000), (
            "outside, each response is compressed as its request accepts"
        )
    assert plain.replayed


@pytest.mark.parametrize("side", ["outside", "inside"])
async def test_run_completes_after_client_disconnect_under_base_http_middleware(
    side: str, store: Store
) -> None:
    """That middleware hides and invents disconnects; the run completes all the same."""
    go_on, done = anyio.Event(), anyio.Event()

    async def charge(request: Request) -> PlainTextResponse:
        await request.body()
        await go_on.wait()
        done.set()
        return PlainTextResponse("charged", 201)

    site = Starlette(routes=[Route("/charges", charge, methods=["POST"])])
    wrap = LAYERS["base"]
    app = wrap(guard(site, store)) if side == "outside" else guard(wrap(site), store)
    driver = RequestDriver(app, http_scope(headers=key_header("k")))
    driver.send_body(b"{}")
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(driver.run)
            await anyio.wait_all_tasks_blocked()
            driver.disconnect()
            await anyio.wait_all_tasks_blocked()
            go_on.set()
            await done.wait()
    again = await call(app, key="k")
    assert (again.status, again.body, again.replayed) == (201, b"charged", True)


async def test_inner_run_of_another_tenant_does_not_end_the_outer_run(store: Store) -> None:
    site, runs = _site(streaming=False)
    other_tenant = IdempotencyMiddleware(site, store=store, tenant=lambda _scope: "other")
    same_tenant = guard(site, store)

    async def both(scope: Any, receive: Any, send: Any) -> None:
        async def receive_empty() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def drop(_message: Any) -> None:
            pass

        await other_tenant(scope, receive_empty, drop)
        await same_tenant(scope, receive, send)  # joins the run of the outermost layer: its key is the same

    answer = await call(guard(both, store), key="k")
    assert (answer.status, answer.replayed, runs) == (201, False, [0, 2])
