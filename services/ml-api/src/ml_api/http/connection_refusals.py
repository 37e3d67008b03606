"""Answers, counts and logs requests that the server refuses before the application gets them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ml_api.http.problems import problem_document

__all__ = ["EVENTS", "REASONS", "ConnectionEvents", "Refusal"]

_log = logging.getLogger("ml_api.server")

EVENTS = "ml_api.connection_events"
"""The key of the application's `ConnectionEvents` in the lifespan state."""

REASONS = (
    "malformed",
    "host",
    "version",
    "transfer-coding",
    "headers-too-large",
    "framing-too-large",
    "headers-late",
    "answer-not-read",
    "request-not-finished",
    "too-many-pipelined",
    "too-many-connections",
)
"""Every value of the metric label `reason`."""

_LOG_EVERY = 60.0  # s, so that strangers cannot fill the log


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    The answer to a refused request; the connection is closed after it.

    Args:
        reason: One of `REASONS`, for metrics and logs.
        slug: The last part of the problem document's type.
        detail: What is wrong and what to do, for people; without anything of the request.
    """

    status: int
    reason: str
    slug: str
    detail: str

    def render(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the bytes of the response, with the further *headers*."""
        document = problem_document(self.status, self.slug, self.detail)
        body = json.dumps(document, separators=(",", ":")).encode()
        lines = [
            b"HTTP/1.1 %d %b" % (self.status, str(document["title"]).encode()),
            *(b"%b: %b" % field for field in headers),
            b"content-type: application/problem+json",
            b"content-length: %d" % len(body),
            b"cache-control: no-store",
            b"x-content-type-options: nosniff",
            b"connection: close",
        ]
        if self.status == 503:
            lines.append(b"retry-after: 1")
        return b"\r\n".join([*lines, b"", body])


class ConnectionEvents:
    """
    Counts refusals, and logs each reason at most once a minute.

    Args:
        refused: Called with the reason of each refusal.
        opened: Called with 1 when a connection opens, and with -1 when one closes.
    """

    def __init__(
        self,
        refused: Callable[[str], None] = lambda _: None,
        opened: Callable[[int], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._refused, self.opened, self._clock = refused, opened, clock
        self._next_line: dict[str, float] = {}
        self._unlogged: dict[str, int] = {}

    def refused(self, reason: str) -> None:
        self._refused(reason)
        count, now = self._unlogged.get(reason, 0) + 1, self._clock()
        if now >= self._next_line.get(reason, now):
            _log.warning("connection refused or cut", extra={"reason": reason, "count": count})
            self._next_line[reason], count = now + _LOG_EVERY, 0
        self._unlogged[reason] = count
