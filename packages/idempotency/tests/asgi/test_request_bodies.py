"""The limits on reading a keyed request's body, and the refusals."""

from __future__ import annotations

from typing import Any

import pytest
from asgi_driver import http_scope, key_header

from idempotency import IdempotencyMiddleware, Policy, one_tenant
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_body_declared_too_large_is_refused_before_it_is_asked_for() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the application ran")

    async def receive() -> Any:
        raise AssertionError("reading would have invited the body with 100 (Continue)")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    guarded = IdempotencyMiddleware(
        app, store=MemoryStore(), tenant=one_tenant(), policy=Policy(max_request_bytes=10)
    )
    scope = http_scope(
        "POST", "/upload", headers=[*key_header("k"), ("content-length", "11"), ("expect", "100-continue")]
    )
    await guarded(scope, receive, send)
    assert sent[0]["status"] == 413
