"""The rate limit: requests per minute, per caller and per worker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from ml_api.http.auth import caller
from ml_api.http.problems import problem_response

__all__ = ["RateLimit", "TokenBuckets"]


class TokenBuckets:
    """
    A token bucket for each name. A full bucket has the tokens of one minute, so that short bursts pass.

    Args:
        per_minute: Tokens that are added per minute.
        clock: Returns monotonic seconds.

    Memory grows with the number of names.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._capacity, self._per_second, self._clock = float(per_minute), per_minute / 60, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # name -> tokens, and when they were counted

    def take(self, name: str) -> int:
        """Take a token of *name* and return 0; if there is none, return the whole seconds until the next."""
        now = self._clock()
        tokens, then = self._buckets.get(name, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - then) * self._per_second)
        if tokens < 1:
            self._buckets[name] = tokens, now
            return math.ceil((1 - tokens) / self._per_second)
        self._buckets[name] = tokens - 1, now
        return 0


class RateLimit:
    """
    Answers 429, with the seconds to wait, to a caller that sends too many requests. Place it inside authentication.

    Args:
        buckets: The callers' tokens; routes with the same buckets share one limit.
    """

    def __init__(self, app: ASGIApp, *, buckets: TokenBuckets) -> None:
        self.app = app
        self._buckets = buckets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if wait := self._buckets.take(caller(scope)):
            detail = (
                f"More than {self._buckets.per_minute} requests a minute; send this one again in {wait} s"
            )
            refusal = problem_response(429, "rate-limited", detail, {"Retry-After": str(wait)})
            return await refusal(scope, receive, send)
        return await self.app(scope, receive, send)
