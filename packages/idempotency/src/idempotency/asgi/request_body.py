"""
Reads the body of a keyed request within its limits, or discards it so that the client can read the refusal.

Besides, what a server may have made of it: fields of the trailer section among the headers, and a body that it lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from idempotency._backends.base import running
from idempotency._core.errors import BodyLost, InvalidKey, RequestTooLarge
from idempotency._core.policy import Policy
from idempotency.asgi.scope import is_http2
from idempotency.asgi.types import Message, Receive, Scope

__all__ = ["RequestBody", "drop_announced_trailers", "drop_late_trailers", "is_still_sent", "require_body"]


class RequestBody:
    """The part of a request's body that has not been received."""

    __slots__ = ("_ended", "_policy", "_receive")

    def __init__(self, receive: Receive, policy: Policy) -> None:
        self._receive = receive
        self._policy = policy
        self._ended = False

    async def read(self, there: bool, first: Any) -> bytes | None:
        """
        The whole body; None where the client leaves before its end.

        Args:
            there: Whether *first* is the first message, or what to await for it.
        Raises:
            RequestTooLarge: It is longer than the policy allows.
        """
        limit, size = self._policy.max_request_bytes, 0
        chunks: list[bytes] = []
        message: Message = first if there else await first
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
        Read what still comes, and drop it.

        A server that closes a connection with data unread resets it, and that may overtake the answer (RFC 9112, 9.6).
        For at most `max_discard_bytes`, and at most `body_timeout` seconds.
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
    Whether a client may be sending its body, and would see a reset in place of a refusal unless that is read.

    Args:
        asked: Whether some of it was asked for, which invites a client that expects a 100 (Continue) first.
    """
    if is_http2(scope):
        return False  # one stream is reset without the connection
    if asked:
        return True
    headers = dict(scope["headers"])
    comes = b"transfer-encoding" in headers or bool(headers.get(b"content-length", b"").strip(b"0 "))
    return comes and b"expect" not in headers


def drop_announced_trailers(scope: Scope, key_fields: Iterable[tuple[str, bytes]]) -> None:
    """
    Take out of the headers what the request announces as trailers, in case the server has merged the two sections.

    Raises:
        InvalidKey: A header that carries a key is announced: a key in a trailer is none (RFC 9110, 6.5.1).
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
                f"the {header} must be a header, and the Trailer field announces it as a trailer"
            )
    own = [pair for pair in headers if pair[0] not in announced]
    if len(own) < len(headers):
        scope["headers"] = own


def drop_late_trailers(headers: Any, count: int) -> None:
    """Take out of *headers* what a server appended to the first *count* of them while the body was read."""
    if len(headers) > count and isinstance(headers, list):
        del headers[count:]


def require_body(scope: Scope, declared: int) -> None:
    """
    Refuse an empty body that the request says is not empty: a server lost it, as some do on `Upgrade: h2c`.

    Args:
        declared: The Content-Length, or 0.
    Raises:
        BodyLost: The body was announced, and is empty.
    """
    names = {name for name, _ in scope["headers"]}
    if declared or {b"upgrade", b"transfer-encoding"} <= names:
        raise BodyLost
