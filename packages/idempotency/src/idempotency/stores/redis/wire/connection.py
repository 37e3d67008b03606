"""
One connection that many callers share: replies come in the same order as the commands.

Redis answers strictly in order, so callers need not take turns. A command on an idle connection is written at once;
further commands are written together, once per turn of the loop, or when there are enough. If a caller gives up, its
place in the order stays, and its reply is dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from enum import Enum, auto
from itertools import chain
from typing import Any

from redis import exceptions as failures

from idempotency.stores.redis.errors import NeverSent
from idempotency.stores.redis.records import Answer, Command
from idempotency.stores.redis.settings import Settings, wait_command
from idempotency.stores.redis.wire.call import Call, Scripts
from idempotency.stores.redis.wire.replies import Replies, Reply

__all__ = ["Connection", "is_open"]

_WINDOW = 256  # the most commands under way: after a lost connection their effects are unknown
# So many waiting commands are written at once, so that the server works while the loop prepares more.
_SHARE = 16


class _Extra(Enum):
    """A reply that no caller gets."""

    ASKING = auto()
    ACKED_REPLICAS = auto()  # the number of replicas that have the earlier writes


class Connection(asyncio.Protocol):
    """
    A connection that redis-py has opened and authenticated; from here on the store writes and reads it itself.

    Args:
        connection: The driver's connection, open, with no reply outstanding.

    Attributes:
        lost: Whether the connection cannot be used any more. All its callers have got the error then.
    """

    def __init__(self, connection: Any, settings: Settings) -> None:
        self.lost: bool = False
        self._connection = connection  # kept, because its streams close the transport when they are collected
        self._transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001
        # Seconds of silence after which a call that is overdue closes the connection.
        self._patience = settings.deadline / 2
        self._wait = wait_command(settings) if settings.replicas else b""
        self._loop = asyncio.get_running_loop()
        self._replies = Replies()
        self._waiting: deque[Call] = deque()
        self._expected: deque[Call | _Extra] = deque()  # what the next replies belong to
        self._unconfirmed: list[Call] = []  # answered calls whose WAIT is not answered yet
        self._scripts = Scripts()
        self._silent_since = 0.0
        self._write_planned = False
        self._full = False
        self._alarm: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    def send(self, command: Command, due: float, *, asking: bool = False) -> asyncio.Future[Answer]:
        """
        A future for the script's answer, or for redis-py's exception for it.

        It fails with `TimeoutError` at *due* (seconds of the loop), and with redis-py's `ConnectionError` if the
        connection is lost before. If it is cancelled before the command is written, the command is never sent; after
        that the command may take effect.
        """
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.append(Call(command, due, asking, answer))
        if self._alarm is None or due < self._alarm.when():
            self._set_alarm(due)
        if len(self._waiting) >= _SHARE:
            self._write()
        elif self._expected or len(self._waiting) > 1:
            self._plan_write()
        else:
            self._write()
        return answer

    def close(self, error: Exception) -> None:
        """Close the connection at once; every caller gets *error*."""
        if self.lost:
            return
        self.lost = True
        self._transport.abort()
        # Mark it closed for the driver; its `disconnect` would wait for an event that its streams no longer get.
        self._connection._reader = self._connection._writer = None  # noqa: SLF001
        if self._alarm is not None:
            self._alarm.cancel()
        for call in chain(self._waiting, self._scripts.held()):
            # Calls that waited for a script had no effect, even if they were sent and refused for want of it.
            call.fail(NeverSent(*error.args) if type(error) is failures.ConnectionError else error)
        for call in self._open_calls():
            call.fail(error)

    def data_received(self, data: bytes) -> None:
        """Hand each reply to its caller."""
        self._silent_since = self._loop.time()
        try:
            for reply in self._replies.feed(data):
                self._take(reply)
        except (failures.InvalidResponse, failures.ReadOnlyError) as error:
            self.close(error)  # not a Redis server, or no longer a primary: the connection is useless
        if self._waiting:
            self._plan_write()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Fail every caller."""
        self.close(failures.ConnectionError("the connection was lost"))

    def pause_writing(self) -> None:
        """Stop writing while the server does not read; waiting commands can still be cancelled."""
        self._full = True

    def resume_writing(self) -> None:
        """Write again."""
        self._full = False
        self._plan_write()

    def _take(self, reply: Reply) -> None:
        if not self._expected:
            raise failures.InvalidResponse("a reply without a command")
        call = self._expected.popleft()
        if call is _Extra.ASKING:
            return
        if call is _Extra.ACKED_REPLICAS:
            for each in self._unconfirmed:
                each.settle(reply if isinstance(reply, int) else 0)
            self._unconfirmed.clear()
        elif isinstance(reply, failures.ReadOnlyError):
            call.fail(reply)
            raise reply
        elif isinstance(reply, failures.NoScriptError) and not call.with_text:
            # A server lacks the script after a restart, a failover or a flush.
            if self._scripts.missing(call):
                self._waiting.appendleft(call)
            else:
                self._waiting.append(call)
        else:
            self._waiting.extendleft(self._scripts.answered(call, worked=not isinstance(reply, Exception)))
            call.reply = reply
            if call.unconfirmed:
                self._unconfirmed.append(call)
            else:
                call.settle(0)

    def _plan_write(self) -> None:
        if not self._write_planned:
            self._write_planned = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._write_planned = False
        if self._full or self.lost:
            return
        if self._wait and self._expected:
            return  # a WAIT delays all later commands, so send one for all commands that came meanwhile
        if not self._expected:
            self._silent_since = self._loop.time()
        calls = []
        while self._waiting and len(self._expected) < _WINDOW:
            call = self._waiting.popleft()
            if call.answer.done():  # the caller has given up before the command was sent
                self._waiting.extendleft(self._scripts.answered(call, worked=False))
                continue
            if not self._scripts.may_go(call):
                continue
            if call.asking:
                self._expected.append(_Extra.ASKING)
            self._expected.append(call)
            calls.append(call)
        packed = [call.pack() for call in calls]
        if self._wait and any(call.command.writes for call in calls):
            packed.append(self._wait)  # WAIT covers only the writes of its own connection
            self._expected.append(_Extra.ACKED_REPLICAS)
            for call in calls:
                call.unconfirmed = True
        if packed:
            self._transport.write(b"".join(packed))

    def _open_calls(self) -> Iterator[Call]:
        for each in chain(self._unconfirmed, self._expected, self._waiting, self._scripts.held()):
            if isinstance(each, Call):
                yield each

    def _set_alarm(self, due: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(due, self._at_due)

    def _at_due(self) -> None:
        # One timer for all calls, set to the first deadline; a timer for each call would cost as much as its write.
        self._alarm = None
        now = self._loop.time()
        overdue = [call for call in self._open_calls() if call.due <= now]
        for call in overdue:
            call.fail(TimeoutError())
        if overdue and self._expected and now - self._silent_since >= self._patience:
            # The server is frozen or gone. Calls that still have time may try a new connection.
            self.close(failures.ConnectionError("no reply in time"))
            return
        dues = [call.due for call in self._open_calls() if not call.answer.done()]
        if dues:
            self._set_alarm(min(dues))


def is_open(connection: Any) -> bool:
    """Whether a connection of redis-py, idle since it was opened, is still open."""
    return not (connection._reader.at_eof() or connection._writer.is_closing())  # noqa: SLF001
