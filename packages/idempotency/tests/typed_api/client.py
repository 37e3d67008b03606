"""Read by type checkers, never run: one transport class serves both httpx libraries; requests and aiohttp beside it."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import assert_type

import aiohttp
import httpx
import httpx2
import requests
from requests.adapters import HTTPAdapter

from idempotency.client import Answer, AsyncIdempotencyTransport, IdempotencyTransport, Retry
from idempotency.client.aiohttp import idempotency_middleware
from idempotency.client.requests import IdempotencyAdapter

transport = IdempotencyTransport(
    httpx.HTTPTransport(), retry=Retry(attempts=2, timeout=5.0), new_key=lambda: "k"
)
httpx.Client(transport=transport)
httpx2.Client(transport=IdempotencyTransport(httpx2.HTTPTransport()))
httpx.AsyncClient(transport=AsyncIdempotencyTransport(httpx.AsyncHTTPTransport()))
httpx2.AsyncClient(transport=AsyncIdempotencyTransport(httpx2.AsyncHTTPTransport()))
httpx.AsyncClient(transport=transport)  # type: ignore[arg-type]
IdempotencyTransport(httpx.AsyncHTTPTransport())  # type: ignore[arg-type]

assert_type(transport.handle_request(httpx.Request("POST", "/")), httpx.Response)
assert_type(transport.handle_request(httpx2.Request("POST", "/")), httpx2.Response)


def rule(outcome: Answer | Exception) -> bool | None:
    return outcome.status == 423 if isinstance(outcome, Answer) else None


with requests.Session() as session:
    IdempotencyAdapter(retry=Retry(retry_if=rule, max_retry_after=5.0), header="X-Key").mount_on(session)
    session.mount("https://", IdempotencyAdapter(HTTPAdapter(), trusted_origins=["https://a.example"]))
    assert_type(session.post("https://shop.example").status_code, int)
IdempotencyAdapter(retry=5)  # type: ignore[arg-type]
Retry(retry_if=lambda outcome: "yes")  # type: ignore[arg-type, return-value]


async def pay() -> int:
    async with (
        aiohttp.ClientSession(middlewares=[idempotency_middleware(retry=Retry(attempts=2))]) as session,
        session.post("https://shop.example") as answer,
    ):
        return answer.status
