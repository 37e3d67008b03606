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
# Headers by which a server allows or forbids a retry.
_SHOULD_RETRY = ("stripe-should-retry", "x-should-retry")


class Answer(NamedTuple):
    """
    The part of a response that decides about a retry.

    Attributes:
        headers: Look names up in lower case.
        content: The body as sent, if it was read ahead; otherwise empty.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """
    The limits on the retries of one logical call. All durations are in seconds.

    Attributes:
        attempts: The most requests sent for one call, including the first.
        timeout: The time for the whole call, to the last byte of its answer. When it is over, no attempt begins and
            none waits for the server any longer. For an event stream it ends with the headers.
        first_delay: The longest pause before the second attempt; it doubles for each later attempt.
        max_delay: The longest pause, unless the server asks for a longer one.
        statuses: The statuses after which the same request is sent again.
        max_retry_after: The longest Retry-After to wait for. An answer that asks for more is returned at once, because
            a client must not retry sooner than asked.
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
    Seconds until the next attempt, None if there is none: exponential back-off with full jitter.

    Full jitter draws from the whole of [0, longest), so that clients which failed together do not retry together. The
    Retry-After of the server is added, so no client retries sooner than asked.

    Args:
        attempt: How many requests were sent, from 1 on.
        elapsed: Seconds since the call began.
        chance: A random number, uniform in [0, 1).
        retry_after: Seconds that the server asked to wait.

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
    Whether the request should be sent again after this answer.

    `Retry.retry_if` decides first. Next, a replay is final, and so is the problem that says that the operation is done
    and its response was not kept. For an error, `Stripe-Should-Retry` or `x-should-retry` decides next; and last
    `Retry.statuses`.

    Args:
        headers: The response headers, in a mapping that finds them by names in lower case.
        content: The response body, if it was read.

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
    Seconds from a Retry-After (RFC 9110, 10.2.3), delay or date; None if it is missing or cannot be read.

    Args:
        now: The time to compare a date with: the Date of the response, if it has one.

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
    """The time of an HTTP-date (RFC 9110, 5.6.7); None if it is missing or cannot be read."""
    if value is None:
        return None
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
