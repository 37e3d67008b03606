"""Read by mypy, never run: one transport class serves the clients of both libraries."""

from __future__ import annotations

from typing import assert_type

import httpx
import httpx2

from idempotency.client import AsyncIdempotencyTransport, IdempotencyTransport, Retry

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
