"""Answers, counts and logs requests that the server refuses before the application sees them."""

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
"""Where a lifespan's state holds the `ConnectionEvents` of the application."""

REASONS = (
    "malformed",
    "host",
    "version",
    "headers-too-large",
    "framing-too-large",
    "headers-late",
    "answer-not-read",
    "request-not-finished",
    "too-many-pipelined",
    "too-many-connections",
)
"""Every value of the label `reason`."""

_LOG_EVERY = 60.0  # s: a stranger must not be able to fill the log


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    The last answer on a connection.

    Args:
        reason: One of `REASONS`, for metrics and logs.
        slug: The last part of the problem document's type.
        detail: What to do next, for the person who reads it; nothing of the request is in it.
    """

    status: int
    reason: str
    slug: str
    detail: str

    def render(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The answer's bytes, with *headers* beside its own."""
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
    Counts what is refused, and logs each reason at most once a minute.

    Args:
        refused: Called with a reason for each refusal.
        opened: Called with 1 for a connection that opens, with -1 for one that closes.
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
        self._unsaid: dict[str, int] = {}

    def refused(self, reason: str) -> None:
        self._refused(reason)
        count, now = self._unsaid.get(reason, 0) + 1, self._clock()
        if now >= self._next_line.get(reason, now):
            _log.warning("connection refused or cut", extra={"reason": reason, "count": count})
            self._next_line[reason], count = now + _LOG_EVERY, 0
        self._unsaid[reason] = count
