"""
Decides about the retries of one logical call, from its first attempt to the response or error for the caller.

It performs no I/O. Each client is a loop around it: begin an attempt, send, report the result, then pause for the given
time or return the result. Clock readings and random numbers are passed in.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from idempotency.client.retry import Answer, Retry, next_delay, parse_date, parse_retry_after, worth_retrying

__all__ = ["LEAST", "READ_AHEAD", "Attempts"]

READ_AHEAD: Final = 1_048_576  # bytes; a longer answer, or one of unknown length, is streamed
LEAST: Final = 0.001  # s; never 0, which some libraries take as "no timeout"


class Attempts:
    """
    Counts the attempts of one call and decides whether there is another.

    Args:
        began: When the call began, in seconds by the same clock as every *now*.

    >>> attempts = Attempts(Retry(attempts=2, timeout=10.0), began=100.0)
    >>> attempts.begin(now=100.0)
    10.0
    >>> attempts.after_answer(Answer(503, {"retry-after": "2"}), now=101.0, chance=0.0, date=datetime(2026, 11, 23))
    2.0
    >>> attempts.begin(now=103.0)
    7.0
    >>> attempts.after_answer(Answer(503, {}), now=104.0, chance=0.0, date=datetime(2026, 11, 23)) is None
    True
    """

    def __init__(self, retry: Retry, *, began: float) -> None:
        self._retry = retry
        self._began = began
        self.count: int = 0

    def redirected(self) -> Attempts:
        """The attempts for the next request of a redirect: the same call, so the same deadline."""
        return Attempts(self._retry, began=self._began)

    def begin(self, *, now: float) -> float | None:
        """Count one more attempt; returns the seconds that it may take, None if the call's time is over."""
        seconds = self.left(now=now)
        if seconds <= LEAST:
            return None
        self.count += 1
        return seconds

    def left(self, *, now: float) -> float:
        """Seconds that the call may still take; `LEAST` if its time is over."""
        return max(LEAST, self._retry.timeout - (now - self._began))

    def after_answer(self, answer: Answer, *, now: float, chance: float, date: datetime) -> float | None:
        """
        Seconds until the next attempt; None: return *answer* to the caller.

        Args:
            chance: A random number, uniform in [0, 1).
            date: The client's wall clock, used for a Retry-After with a date if the answer has no Date.
        """
        headers = answer.headers
        if not worth_retrying(self._retry, answer.status, headers, answer.content):
            return None
        asked = parse_retry_after(headers.get("retry-after"), now=parse_date(headers.get("date")) or date)
        return self._next(now=now, chance=chance, retry_after=asked)

    def after_error(
        self, error: Exception, *, now: float, chance: float, transient: bool = True
    ) -> float | None:
        """
        Seconds until the next attempt; None: raise *error* to the caller, with a note that says how to go on.

        Args:
            transient: Whether another attempt may succeed, unless `Retry.retry_if` says otherwise; False if the request
                itself is wrong.
        """
        if self._retry.retry_if is not None:
            verdict = self._retry.retry_if(error)
            transient = transient if verdict is None else verdict
        if not transient:
            return None
        delay = self._next(now=now, chance=chance)
        if delay is None:
            error.add_note(
                f"gave up after {self.count} attempts under one Idempotency-Key, which the request now carries: "
                "the operation may have taken effect; send the same request object again to learn its outcome"
            )
        return delay

    def late(self) -> str:
        """The error message for a response that did not arrive in time."""
        return (
            f"no complete answer within {self._retry.timeout:g} s, the time for all attempts (Retry.timeout)"
        )

    def late_upload(self) -> str:
        """The error message for a request body that its caller did not produce in time."""
        return (
            f"the request body was not complete within {self._retry.timeout:g} s, the time for all attempts "
            "(Retry.timeout); nothing was sent"
        )

    def is_read_ahead(self, answer: Answer) -> bool:
        """Whether the whole body is read before the answer counts, because the connection may break during the body."""
        length = answer.headers.get("content-length") or ""
        return length.isascii() and length.isdecimal() and int(length[:20]) <= READ_AHEAD

    def is_bounded(self, answer: Answer) -> bool:
        """Whether the deadline covers the whole body; not for event streams, which are meant to last."""
        kind = answer.headers.get("content-type") or ""
        return self._retry.timeout < float("inf") and not kind.lower().startswith("text/event-stream")

    def _next(self, *, now: float, chance: float, retry_after: float | None = None) -> float | None:
        return next_delay(
            self._retry,
            attempt=self.count,
            elapsed=now - self._began,
            chance=chance,
            retry_after=retry_after,
        )
