"""The rate limit: so many requests a minute for each caller, in one worker; off unless it is set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from ml_api.http.auth import caller
from ml_api.http.problems import problem_response

__all__ = ["RateLimit"]


class RateLimit:
    """
    Answers 429 to a caller that asks faster than *per_minute*, with the whole seconds to wait.

    A bucket of tokens for each name of an API key: full it holds a minute's worth, so short bursts pass. It belongs
    inside authentication; there are as many buckets as names.
    """

    def __init__(self, app: ASGIApp, *, per_minute: int, clock: Callable[[], float] | None = None) -> None:
        self.app = app
        self._capacity, self._per_second = float(per_minute), per_minute / 60
        self._clock = clock or time.monotonic
        self._buckets: dict[str, tuple[float, float]] = {}  # name -> tokens, and when they were counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard HTTP; pass everything else."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        name, now = caller(scope), self._clock()
        tokens, then = self._buckets.get(name, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - then) * self._per_second)
        if tokens < 1:
            self._buckets[name] = tokens, now
            wait = math.ceil((1 - tokens) / self._per_second)
            detail = f"More than {self._capacity:g} requests a minute; send this one again in {wait} s"
            refusal = problem_response(429, "rate-limited", detail, {"Retry-After": str(wait)})
            return await refusal(scope, receive, send)
        self._buckets[name] = tokens - 1, now
        return await self.app(scope, receive, send)
