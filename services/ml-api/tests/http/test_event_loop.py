"""No body within the limit blocks the event loop for long, measured in CPU time of its thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from anyio import to_thread
from patience import PATIENCE, until

from ml_api.http.limits import run_within

pytestmark = pytest.mark.anyio

LIMIT = 1_048_576
LONGEST = 0.25  # s of CPU between two turns of the loop; parsing such a body in one turn takes 1.5 s and more

MARKET = b'{"agentId":"a","portfolio":{"cash":1,"totalValue":2},"candles":['
CANDLE = b'{"symbol":"BTC","timestamp":"2026-02-20T14:00:00Z","open":1,"high":1,"low":1,"close":1,"volume":1}'
TENSOR = b'{"inputs":[{"name":"rows","shape":[1,11],"datatype":"FP64","data":['


def filled(head: bytes, unit: bytes, tail: bytes, size: int = LIMIT) -> bytes:
    """*head*, as many *unit*s as fit into *size*, and *tail*."""
    return head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail


PREDICT = {
    "empty lists for candles": filled(MARKET, b"[],", b"[]]}"),
    "empty objects for candles": filled(MARKET, b"{},", b"{}]}"),
    "candles of one unknown member": filled(MARKET, b'{"":0},', b"{}]}"),
    "candles of one time": filled(MARKET, CANDLE + b",", CANDLE + b"]}"),
    "an unknown member of empty lists": filled(MARKET + b'],"x":[', b"[],", b"[]]}"),
    "empty lists in as much as is canonicalized": filled(MARKET + b'],"x":[', b"[],", b"[]]}", 65_536),
    "lists in lists": b"[" * LIMIT,
}
INFER = {
    "empty lists": filled(TENSOR, b"[],", b"0]}]}"),
    "empty objects": filled(TENSOR, b"{},", b"0]}]}"),
    "zeros": filled(TENSOR, b"0,", b"0]}]}"),
    "empty lists in as much as is canonicalized": filled(TENSOR, b"[],", b"0]}]}", 65_536),
    "many members": b"{" + b",".join(b'"%d":[]' % number for number in range(80_000)) + b"}",
    "lists in lists": b"[" * LIMIT,
}


@pytest.mark.parametrize("fingerprint", ["decision", "body"])
@pytest.mark.parametrize(
    ("path", "content"),
    [
        *(pytest.param("/predict", content, id=f"predict: {name}") for name, content in PREDICT.items()),
        *(
            pytest.param("/v2/models/btc-eth/infer", content, id=f"v2: {name}")
            for name, content in INFER.items()
        ),
    ],
)
async def test_the_most_expensive_bodies_block_the_event_loop_for_less_than_a_quarter_second(
    service: Callable[..., httpx.AsyncClient],
    headers: Callable[..., dict[str, str]],
    body: Callable[..., bytes],
    path: str,
    content: bytes,
    fingerprint: str,
) -> None:
    longest = 0.0

    async def turn() -> None:
        nonlocal longest
        while True:
            begun = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - begun)

    async with service(fingerprint=fingerprint, handler_timeout=60) as client:
        await client.post("/predict", content=body(), headers=headers())  # imports are not measured
        turning = asyncio.create_task(turn())
        for key in ("k", None):
            answer = await client.post(path, content=content, headers=headers(key))
            assert answer.status_code in {200, 400, 422}
        turning.cancel()
    assert longest < LONGEST


async def test_two_threads_work_at_once_and_the_rest_of_the_work_waits(
    service: Callable[..., httpx.AsyncClient],
) -> None:
    """With more, the event loop waits too long for the lock of the interpreter."""
    begun: list[None] = []
    go_on = threading.Event()

    def work() -> None:
        begun.append(None)
        go_on.wait(PATIENCE)

    async with service() as client:
        application: Any = client._transport.app  # type: ignore[attr-defined]
        async with application.router.lifespan_context(application), asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(run_within(PATIENCE, work))
            threads = to_thread.current_default_thread_limiter()
            try:
                await until(lambda: len(begun) == threads.borrowed_tokens > 1)
                assert (threads.borrowed_tokens, threads.statistics().tasks_waiting) == (2, 3)
            finally:
                go_on.set()
    assert len(begun) == 5
