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
    The chunks of a body as they arrive, up to its end.

    Args:
        read: Returns at most the given number of bytes; none at the end of the body.
        most: The largest number of bytes to read.
        timeout: Seconds for the whole body, checked between two reads; only the server limits a single read.
    Raises:
        RequestTimeout: The body did not end in time.
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
    Read and drop the rest of a body that was refused; the arguments are those of `arriving`.

    A server that closes a connection with unread data resets it, and the reset may overtake the answer (RFC 9112, 9.6).
    """
    with suppress(Exception):  # the answer is sent: an error here has nobody to go to
        for _ in arriving(read, most, timeout=timeout, monotonic=monotonic):
            pass
