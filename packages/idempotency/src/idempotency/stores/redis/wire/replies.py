"""Parses replies of a Redis server, by the parser that redis-py uses too: bytes in, whole replies out. No I/O."""

from __future__ import annotations

from typing import Any, TypeAlias

import hiredis
from redis import exceptions as failures

__all__ = ["Replies", "Reply"]

Reply: TypeAlias = Any
"""bytes, an int, None, a list of these, or an exception of redis-py, not raised, for an error reply."""

_NONE_YET = object()

# The errors that somebody acts on; of the others the text is enough.
_ERRORS: dict[str, type[failures.ResponseError]] = {
    "ASK": failures.AskError,
    "MOVED": failures.MovedError,
    "NOSCRIPT": failures.NoScriptError,
    "READONLY": failures.ReadOnlyError,
}


class Replies:
    """The replies on one connection, in order, however the network cuts them up."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(
            protocolError=failures.InvalidResponse, replyError=_error, notEnoughData=_NONE_YET
        )

    def feed(self, data: bytes) -> list[Reply]:
        """
        The replies that *data* completes.

        Raises:
            redis.exceptions.InvalidResponse: This is no server of Redis; nothing that follows can be trusted.
        """
        self._reader.feed(data)
        replies: list[Reply] = []
        try:
            while (reply := self._reader.gets()) is not _NONE_YET:
                replies.append(reply)
        except (MemoryError, SystemError) as error:
            # A list longer than any memory; hiredis 3.0 is confused by it.
            raise failures.InvalidResponse("a reply announces a size that cannot be") from error
        return replies


def _error(text: str) -> failures.ResponseError:
    word, _, rest = text.partition(" ")
    kind = _ERRORS.get(word)
    if kind is None:
        return failures.ResponseError(text)
    try:
        return kind(rest)
    except (ValueError, IndexError):  # a redirection to nowhere
        return failures.ResponseError(text)
