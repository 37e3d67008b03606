"""Reads the body of a request part by part within a time limit, or drops it so that the client can read a refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from idempotency._core.errors import RequestTimeout

__all__ = ["arriving", "discard"]

_CHUNK: Final = 65_536  # bytes asked of the server at a time


def arriving(
    read: Callable[[int], bytes], most: int, *, timeout: float, monotonic: Callable[[], float]
) -> Iterator[bytes]:
    """
    The parts of a body as they arrive, to its end.

    Args:
        read: Gives at most so many bytes, and none at the end of the body.
        most: Bytes in all.
        timeout: Seconds, looked at between two reads; a single read is bounded by the server alone.
    Raises:
        RequestTimeout: It was not whole in time.
    """
    until = monotonic() + timeout
    while most > 0:
        if monotonic() > until:
            raise RequestTimeout(seconds=timeout)
        chunk = read(min(most, _CHUNK))
        if not chunk:
            return
        yield chunk
        most -= len(chunk)


def discard(
    read: Callable[[int], bytes], most: int, *, timeout: float, monotonic: Callable[[], float]
) -> None:
    """
    Read what still comes of a body that was refused, and drop it; the arguments are those of `arriving`.

    A server that closes a connection with data unread resets it, and that may overtake the answer (RFC 9112, 9.6).
    """
    with suppress(Exception):  # the answer is sent: nobody is left to tell that the client went away
        for _ in arriving(read, most, timeout=timeout, monotonic=monotonic):
            pass
