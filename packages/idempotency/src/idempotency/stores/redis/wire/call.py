"""Holds one command until its reply, and notes from the reply which scripts the server has loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import chain

from idempotency.stores.redis.records import Command, pack
from idempotency.stores.redis.settings import Answer
from idempotency.stores.redis.wire.replies import Reply

__all__ = ["Call", "Scripts"]

_ASKING = pack(b"ASKING")


class Call:
    """One command, until its caller has the answer."""

    __slots__ = ("answer", "asking", "command", "due", "reply", "unconfirmed", "whole")

    def __init__(self, command: Command, due: float, asking: bool, answer: asyncio.Future[Answer]) -> None:
        self.command: Command = command
        self.due: float = due
        self.asking: bool = asking
        self.answer: asyncio.Future[Answer] = answer
        self.whole: bool = False  # whether the script's text has to be sent
        self.unconfirmed: bool = False  # whether a WAIT was sent behind it
        self.reply: Reply = None

    def pack(self) -> bytes:
        """The bytes to write for this call."""
        packed = self.command.pack(whole=self.whole)
        return _ASKING + packed if self.asking else packed

    def settle(self, acked_replicas: int) -> None:
        """Give its caller the reply, and how many replicas have what it wrote."""
        if self.answer.done():  # its caller has given up; the command took effect all the same
            return
        if isinstance(self.reply, Exception):
            self.answer.set_exception(self.reply)
        else:
            self.answer.set_result(Answer(self.reply, acked_replicas))

    def fail(self, error: Exception) -> None:
        """Give its caller *error*, unless it has an answer already."""
        if not self.answer.done():
            own = type(error)(*error.args)  # an exception collects where it was raised
            self.answer.set_exception(own)


class Scripts:
    """
    The scripts that a connection's server has loaded, as far as its replies tell.

    Of the calls of a script that is not known to be there, one goes ahead and finds out, with the text if it has to;
    the others wait for its answer, so that the text is sent once and not once for each.
    """

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._ahead: dict[bytes, Call] = {}
        self._held: dict[bytes, list[Call]] = {}

    def may_go(self, call: Call) -> bool:
        """Whether *call* may be written now; else it is held until the one ahead of it is answered."""
        script = call.command.script
        if script is None or script.sha in self._known:
            return True
        ahead = self._ahead.setdefault(script.sha, call)
        if ahead is not call:
            self._held.setdefault(script.sha, []).append(call)
        return ahead is call

    def missing(self, call: Call) -> bool:
        """The server has not seen the script of *call*; whether that is the one to take the text there."""
        script = call.command.script
        assert script is not None, "only a script can be missing"
        self._known.discard(script.sha)
        call.whole = self._ahead.setdefault(script.sha, call) is call
        return call.whole

    def answered(self, call: Call, *, worked: bool) -> Iterable[Call]:
        """*call* is over; those that waited for it, the last of them first."""
        script = call.command.script
        if script is None:
            return ()
        if worked:
            self._known.add(script.sha)
        if self._ahead.get(script.sha) is not call:
            return ()
        del self._ahead[script.sha]
        return reversed(self._held.pop(script.sha, ()))

    def held(self) -> Iterable[Call]:
        """The calls that wait for another call's answer."""
        return chain.from_iterable(self._held.values())
