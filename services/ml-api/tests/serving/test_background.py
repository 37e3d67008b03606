"""Work in a daemon thread: its result or exception is returned, and a cancelled caller does not wait for it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ml_api.serving.background import run_in_background

pytestmark = pytest.mark.anyio


async def test_results_and_exceptions_are_returned_from_a_daemon_thread() -> None:
    assert await run_in_background(lambda: threading.current_thread().daemon)
    with pytest.raises(ValueError, match="wrong"):
        await run_in_background(lambda: int("wrong"))


async def test_a_cancelled_caller_does_not_stop_the_work() -> None:
    release, done = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(30)
        done.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run_in_background(work)
    assert not done.is_set()
    release.set()
    assert await asyncio.to_thread(done.wait, 30)
