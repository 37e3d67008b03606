"""Parses the replies of a Redis server with hiredis, as redis-py does: bytes in, whole replies out, no I/O."""

from __future__ import annotations

from typing import Any, TypeAlias

import hiredis
from redis import exceptions as failures

__all__ = ["Replies", "Reply"]

Reply: TypeAlias = Any
"""bytes, an int, None, a list of these, or for an error reply an exception of redis-py (returned, not raised)."""

_NONE_YET = object()

# The errors that the store reacts to; for the others the text is enough.
_ERRORS: dict[str, type[failures.ResponseError]] = {
    "ASK": failures.AskError,
    "MOVED": failures.MovedError,
    "NOSCRIPT": failures.NoScriptError,
    "READONLY": failures.ReadOnlyError,
}


class Replies:
    """The replies of one connection, in order, however the network splits them."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(
            protocolError=failures.InvalidResponse, replyError=_error, notEnoughData=_NONE_YET
        )

    def feed(self, data: bytes) -> list[Reply]:
        """
        The replies that *data* completes.

        Raises:
            redis.exceptions.InvalidResponse: The server is not Redis; later data cannot be trusted.
        """
        self._reader.feed(data)
        replies: list[Reply] = []
        try:
            while (reply := self._reader.gets()) is not _NONE_YET:
                replies.append(reply)
        except (MemoryError, SystemError) as error:
            # The reply announces a list that is too long for memory.
            raise failures.InvalidResponse("a reply announces an impossible size") from error
        return replies


def _error(text: str) -> failures.ResponseError:
    word, _, rest = text.partition(" ")
    kind = _ERRORS.get(word)
    if kind is None:
        return failures.ResponseError(text)
    try:
        return kind(rest)
    except (ValueError, IndexError):  # a redirect without a valid address
        return failures.ResponseError(text)
