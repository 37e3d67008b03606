"""
Reads the body of a keyed request within its limits, or discards it so that the client can read the refusal.

It also repairs what a server may have done to the request: trailers merged into the headers, or a lost body.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from idempotency._core.errors import BodyLost, InvalidKey, RequestTooLarge
from idempotency._core.policy import Policy
from idempotency._runtime.event_loop import running
from idempotency.asgi.scope import is_http2
from idempotency.asgi.types import Message, Receive, Scope

__all__ = ["RequestBody", "drop_announced_trailers", "drop_late_trailers", "is_still_sent", "require_body"]


class RequestBody:
    """The part of a request body that has not been received yet."""

    __slots__ = ("_ended", "_policy", "_receive")

    def __init__(self, receive: Receive, policy: Policy) -> None:
        self._receive = receive
        self._policy = policy
        self._ended = False

    async def read(self, arrived: bool, first: Any) -> bytes | None:
        """
        The whole body; None if the client leaves before its end.

        Args:
            arrived: Whether *first* is the first message; else it is an awaitable for that message.
        Raises:
            RequestTooLarge: The body is longer than the policy allows.
        """
        limit, size = self._policy.max_request_bytes, 0
        chunks: list[bytes] = []
        message: Message = first if arrived else await first
        while message["type"] == "http.request":
            chunk, more_body = message.get("body", b""), message.get("more_body", False)
            self._ended = not more_body
            size += len(chunk)
            if size > limit:
                raise RequestTooLarge(limit=limit)
            chunks.append(chunk)
            if not more_body:
                return b"".join(chunks)
            message = await self._receive()
        self._ended = True
        return None

    async def discard(self) -> None:
        """
        Read and drop the rest of the body: at most `max_discard_bytes`, for at most `body_timeout` seconds.

        A server that closes a connection with unread data resets it, and the reset may overtake the answer (RFC 9112,
        9.6).
        """
        if self._ended:
            return
        try:
            await running().within(self._policy.body_timeout, self._drop)
        except TimeoutError:
            return

    async def _drop(self) -> None:
        left = self._policy.max_discard_bytes
        while left > 0:
            message = await self._receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
            left -= len(message.get("body", b""))


def is_still_sent(scope: Scope, *, asked: bool) -> bool:
    """
    Whether the client may still be sending its body.

    If so, the body has to be read: otherwise the client may see a connection reset instead of the refusal.

    Args:
        asked: Whether the body was asked for: then a client that waits for 100 (Continue) sends it.
    """
    if is_http2(scope):
        return False  # a server resets the stream, not the connection
    if asked:
        return True
    headers = dict(scope["headers"])
    has_body = b"transfer-encoding" in headers or bool(headers.get(b"content-length", b"").strip(b"0 "))
    return has_body and b"expect" not in headers


def drop_announced_trailers(scope: Scope, key_fields: Iterable[tuple[str, bytes]]) -> None:
    """
    Remove the headers that the request announces as trailers, in case the server has merged trailers into headers.

    Raises:
        InvalidKey: A header that carries a key is announced as a trailer, where it does not count (RFC 9110, 6.5.1).
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    announced = {
        field.strip().lower() for name, value in headers if name == b"trailer" for field in value.split(b",")
    }
    if not announced:
        return
    for header, name in key_fields:
        if name in announced:
            raise InvalidKey(
                f"the {header} must be a header, but the Trailer field announces it as a trailer"
            )
    own = [pair for pair in headers if pair[0] not in announced]
    if len(own) < len(headers):
        scope["headers"] = own


def drop_late_trailers(headers: Any, count: int) -> None:
    """Remove from *headers* what a server appended after the first *count* while the body was read."""
    if len(headers) > count and isinstance(headers, list):
        del headers[count:]


def require_body(scope: Scope, declared: int) -> None:
    """
    Refuse an empty body if the request announces one: the server lost it, as some do on `Upgrade: h2c`.

    Args:
        declared: The Content-Length, or 0.
    Raises:
        BodyLost: The body was announced, and is empty.
    """
    names = {name for name, _ in scope["headers"]}
    if declared or {b"upgrade", b"transfer-encoding"} <= names:
        raise BodyLost
