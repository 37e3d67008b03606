"""Limits the bytes of recorded answers per caller, so that no caller can fill the store for all others."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml_api.http.auth import caller
from ml_api.http.problems import problem_response

__all__ = ["AnswerQuota", "StoredBytes"]

_RECORD_OVERHEAD = 512  # bytes of a record without the body: headers, fingerprint, owner
_SLOTS = 60  # the retention is divided into this many steps, so that memory per caller is bounded


class StoredBytes:
    """
    Counts the bytes of each caller's recorded answers until they expire.

    The counts are in memory, for the answers that this process recorded: each worker counts separately, and a restart
    begins at zero.

    Args:
        limit: Bytes per caller.
        retention: Seconds for which an answer is kept.
        clock: Returns monotonic seconds.
    """

    def __init__(self, limit: int, *, retention: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._retention, self._step, self._clock = retention, retention / _SLOTS, clock
        self._slots: dict[str, deque[tuple[float, int]]] = {}  # (time of expiry, bytes), oldest first

    def used(self, name: str) -> int:
        """Return the bytes that *name* uses now."""
        slots, now = self._slots.get(name, deque()), self._clock()
        while slots and slots[0][0] <= now:
            slots.popleft()
        return sum(size for _, size in slots)

    def add(self, name: str, size: int) -> None:
        """Count an answer of *size* bytes that is recorded now."""
        # Rounded up to the end of a step, so that no answer counts as expired too early.
        expires = (math.floor((self._clock() + self._retention) / self._step) + 1) * self._step
        slots = self._slots.setdefault(name, deque())
        if slots and slots[-1][0] == expires:
            slots[-1] = expires, slots[-1][1] + size
        else:
            slots.append((expires, size))

    def wait(self, name: str) -> int:
        """Return the whole seconds until the oldest answers of *name* expire, at least 1."""
        slots = self._slots.get(name)
        return max(1, math.ceil(slots[0][0] - self._clock())) if slots else 1


class AnswerQuota:
    """
    Answers 429 if the answer to record would exceed the caller's quota.

    Place it inside the idempotency middleware, which then releases the key, around endpoints that declare the length of
    their answers. Replays do not reach this layer, and requests without an idempotency key are not recorded, so both
    still work.
    """

    def __init__(self, app: ASGIApp, *, stored: StoredBytes) -> None:
        self.app = app
        self._stored = stored

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not any(name == b"idempotency-key" for name, _ in scope["headers"]):
            return await self.app(scope, receive, send)
        name, refused = caller(scope), False
        if self._exceeded(name, 0):
            return await self._refuse(name, scope, receive, send)

        async def send_within_quota(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and 200 <= message["status"] < 300:
                size = int(dict(message["headers"])[b"content-length"])
                if refused := self._exceeded(name, size):
                    await self._refuse(name, scope, receive, send)
                else:
                    self._stored.add(name, _RECORD_OVERHEAD + size)
            if not refused:
                await send(message)

        return await self.app(scope, receive, send_within_quota)

    def _exceeded(self, name: str, size: int) -> bool:
        return self._stored.used(name) + _RECORD_OVERHEAD + size > self._stored.limit

    async def _refuse(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        wait = self._stored.wait(name)
        detail = (
            f"The recorded answers of this API key's name use up their quota of {self._stored.limit} bytes; the oldest "
            f"expire in {wait} s. Until then, send requests without an Idempotency-Key"
        )
        refusal = problem_response(429, "answer-quota-used-up", detail, {"Retry-After": str(wait)})
        await refusal(scope, receive, send)
