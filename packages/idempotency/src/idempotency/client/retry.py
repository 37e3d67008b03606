"""Computes when a client should retry: pure arithmetic, with the time and the random number passed in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from idempotency._core.errors import NotReplayable
from idempotency._core.problem import problem_type

__all__ = ["Answer", "Retry", "next_delay", "parse_date", "parse_retry_after", "worth_retrying"]

_NOT_REPLAYABLE = problem_type(NotReplayable.slug)
_SECONDS = re.compile(r"[0-9]+")
_SHOULD_RETRY = ("stripe-should-retry", "x-should-retry")  # the server's own word, in its two spellings


class Answer(NamedTuple):
    """
    The part of a response that `Retry.retry_if` and the retry core see.

    Attributes:
        headers: Look a name up in lower case.
        content: The body as it was sent, where it was read ahead; else empty.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """
    The limits on the repeats of one logical call. All durations are in seconds.

    Attributes:
        attempts: The most requests sent for one call, the first included.
        timeout: The time that the call may take in all, to the last byte of its answer, however slowly that comes: no
            attempt begins, and none waits for the server, after it. An event stream is bounded up to its headers.
        first_delay: The longest pause before the second attempt; it doubles for each one after that.
        max_delay: The longest pause, except where the server asks for more.
        statuses: The answers after which the same request is worth sending again.
        max_retry_after: The longest Retry-After that is waited for. An answer that asks for more is returned at once,
            since a client must not retry sooner than asked.
        retry_if: Your own rule. It is called with each `Answer` and each exception of the HTTP library. True sends the
            request again, False makes the result final, None leaves the decision to the other rules. `attempts` and
            `timeout` apply in any case.
    Raises:
        ValueError: Numbers that cannot work; the message names all of them.
    """

    attempts: int = 4
    timeout: float = 30.0
    first_delay: float = 0.25
    max_delay: float = 8.0
    statuses: frozenset[int] = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
    max_retry_after: float = 60.0
    retry_if: Callable[[Answer | Exception], bool | None] | None = None

    def __post_init__(self) -> None:
        wrong = [f"{name} must be > 0" for name in ("timeout", "first_delay") if not getattr(self, name) > 0]
        if self.attempts < 1:
            wrong.append("attempts must be at least 1")
        if not self.max_delay >= self.first_delay:
            wrong.append("max_delay must be at least first_delay")
        if not self.max_retry_after >= 0:
            wrong.append("max_retry_after must be >= 0")
        if wrong:
            raise ValueError("; ".join(wrong))


def next_delay(
    retry: Retry, *, attempt: int, elapsed: float, chance: float, retry_after: float | None = None
) -> float | None:
    """
    Seconds to pause before the next attempt, None where there is none: exponential back-off with full jitter.

    Full jitter draws from the whole of [0, longest), so that clients which failed together do not return together. What
    the server asks for comes on top: nobody is back sooner.

    Args:
        attempt: How many requests were sent already, from 1 on.
        elapsed: Seconds since the call began.
        chance: Uniform in [0, 1).
        retry_after: Seconds the server asked to wait.

    >>> next_delay(Retry(), attempt=3, elapsed=1.0, chance=0.5), next_delay(Retry(), attempt=4, elapsed=1.0, chance=0.5)
    (0.5, None)
    >>> next_delay(Retry(), attempt=1, elapsed=29.9, chance=0.5, retry_after=1.0) is None
    True
    >>> next_delay(Retry(timeout=900), attempt=1, elapsed=0.0, chance=0.5, retry_after=61.0) is None
    True
    """
    if attempt >= retry.attempts or (retry_after or 0.0) > retry.max_retry_after:
        return None
    longest = min(retry.max_delay, retry.first_delay * 2.0 ** min(attempt - 1, 60))
    delay = longest * chance + (retry_after or 0.0)
    return delay if elapsed + delay < retry.timeout else None


def worth_retrying(retry: Retry, status: int, headers: Mapping[str, str], content: bytes = b"") -> bool:
    """
    Whether the same request may be answered otherwise.

    `Retry.retry_if` decides first. Then these are final: a replay, and the problem which says that the operation is
    done and its response was not kept. Then the server's own word counts, `Stripe-Should-Retry` or `x-should-retry`, on
    an error; and last `Retry.statuses`.

    Args:
        headers: Of the response; names in any case, looked up in lower case.
        content: Its body, where it was read.

    >>> worth_retrying(Retry(), 503, {}), worth_retrying(Retry(), 400, {}), worth_retrying(Retry(), 200, {})
    (True, False, False)
    >>> [worth_retrying(Retry(), 503, {"x-should-retry": word}) for word in ("true", "false")]
    [True, False]
    """
    if retry.retry_if is not None:
        verdict = retry.retry_if(Answer(status, headers, content))
        if verdict is not None:
            return verdict
    replayed = headers.get("idempotency-replayed") or headers.get("idempotent-replayed") or ""
    if replayed.strip().lower() == "true" or _says_done(headers.get("content-type", ""), content):
        return False
    if status >= 400:
        for name in _SHOULD_RETRY:
            word = (headers.get(name) or "").strip().lower()
            if word in {"true", "false"}:
                return word == "true"
    return status in retry.statuses


def _says_done(content_type: str, content: bytes) -> bool:
    if not content_type.lower().startswith("application/problem+json"):
        return False
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("type") == _NOT_REPLAYABLE


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """
    Seconds from a Retry-After (RFC 9110, 10.2.3), delay or date; None where there is none or it cannot be read.

    Args:
        now: By the clock that made the date: the response's own Date where it has one.

    >>> now = datetime(2026, 11, 23, 1, 0, tzinfo=UTC)
    >>> parse_retry_after("120", now=now), parse_retry_after("Mon, 23 Nov 2026 01:00:30 GMT", now=now)
    (120.0, 30.0)
    """
    if value is None:
        return None
    if _SECONDS.fullmatch(value.strip()):
        return float(value)
    date = parse_date(value)
    return None if date is None else max(0.0, (date - now).total_seconds())


def parse_date(value: str | None) -> datetime | None:
    """An HTTP-date (RFC 9110, 5.6.7), None where there is none or it cannot be read."""
    if value is None:
        return None
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
