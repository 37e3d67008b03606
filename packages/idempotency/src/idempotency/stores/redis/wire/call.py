"""One command until its reply, and the scripts that the server is known to have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import chain

from idempotency.stores.redis.records import Answer, Command, pack
from idempotency.stores.redis.wire.replies import Reply

__all__ = ["Call", "Scripts"]

_ASKING = pack(b"ASKING")


class Call:
    """One command, until its caller gets the answer."""

    __slots__ = ("answer", "asking", "command", "due", "reply", "unconfirmed", "with_text")

    def __init__(self, command: Command, due: float, asking: bool, answer: asyncio.Future[Answer]) -> None:
        self.command: Command = command
        self.due: float = due
        self.asking: bool = asking
        self.answer: asyncio.Future[Answer] = answer
        self.with_text: bool = False  # whether the script's text has to be sent
        self.unconfirmed: bool = False  # whether a WAIT was sent after it and is not answered
        self.reply: Reply = None

    def pack(self) -> bytes:
        """The bytes to write for this call."""
        packed = self.command.pack(with_text=self.with_text)
        return _ASKING + packed if self.asking else packed

    def settle(self, acked_replicas: int) -> None:
        """Give the caller the reply, and the number of replicas that have the write."""
        if self.answer.done():  # the caller has given up, but the command took effect
            return
        if isinstance(self.reply, Exception):
            self.answer.set_exception(self.reply)
        else:
            self.answer.set_result(Answer(self.reply, acked_replicas))

    def fail(self, error: Exception) -> None:
        """Give the caller *error*, unless it already has an answer."""
        if not self.answer.done():
            own = type(error)(*error.args)  # one copy per caller, because raising adds a traceback
            self.answer.set_exception(own)


class Scripts:
    """
    The scripts that the server is known to have, from its replies.

    Of several calls of an unknown script only one is sent, if necessary with the script's text; the others wait for its
    reply. So the text is sent only once.
    """

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._ahead: dict[bytes, Call] = {}
        self._held: dict[bytes, list[Call]] = {}

    def may_go(self, call: Call) -> bool:
        """Whether *call* may be written now; otherwise it is held until the call ahead of it is answered."""
        script = call.command.script
        if script is None or script.sha in self._known:
            return True
        ahead = self._ahead.setdefault(script.sha, call)
        if ahead is not call:
            self._held.setdefault(script.sha, []).append(call)
        return ahead is call

    def missing(self, call: Call) -> bool:
        """Note that the server lacks the script of *call*; returns whether *call* is to send the text."""
        script = call.command.script
        assert script is not None, "only a script can be missing"
        self._known.discard(script.sha)
        call.with_text = self._ahead.setdefault(script.sha, call) is call
        return call.with_text

    def answered(self, call: Call, *, worked: bool) -> Iterable[Call]:
        """Note that *call* is over; returns the calls that waited for it, the last one first."""
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
