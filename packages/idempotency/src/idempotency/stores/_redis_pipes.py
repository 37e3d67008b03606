"""
Commands that are ready at once go out together: one write, one read, on a connection that nobody else uses.

A task of the store's own, not the caller, talks to the server. So a caller that is cancelled or gives up leaves no
half-read reply behind, and 64 callers cost a few writes instead of 64.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from redis import exceptions as failures

from idempotency.stores._redis_records import Command, pack
from idempotency.stores._redis_settings import Answer, Settings, judge_eviction

__all__ = ["Pipes"]

_LANES = 2  # batches under way at once: while one waits for its replies, the next need not wait for it
_BATCH = 256  # commands in one write: bounds what one slow reply holds up


class _Call(NamedTuple):
    command: Command
    asking: bool
    answer: asyncio.Future[Answer]


class Pipes:
    """
    The store's connections to one place.

    Args:
        connect: Makes a connection that is not open yet.
    """

    def __init__(self, connect: Callable[[], Any], settings: Settings) -> None:
        self._connect = connect
        self._settings = settings
        self._waiting: deque[_Call] = deque()
        self._idle: list[Any] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = False
        self._may_evict: bool | None = None

    def send(self, command: Command, *, asking: bool = False) -> asyncio.Future[Answer]:
        """
        The answer to *command*, to be awaited.

        Its exception is the driver's own. Cancelled before it is written, the command is never sent; after that it
        takes effect, and its reply is read and dropped.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(command, asking, answer))
        if not self._starting and len(self._tasks) < _LANES:
            self._starting = (
                True  # it starts with the loop's next turn, and takes what else comes in this one
            )
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return answer

    async def aclose(self) -> None:
        """Close every connection; what is under way fails."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._idle:
            await connection.disconnect()
        self._idle.clear()

    async def _work(self) -> None:
        self._starting = False
        while batch := self._take():
            try:
                await self._exchange(batch)
            except asyncio.CancelledError:
                for call in (*batch, *self._waiting):
                    call.answer.cancel()
                raise
            except Exception as error:  # each caller is handed it, and maps it
                for call in batch:
                    if not call.answer.done():
                        call.answer.set_exception(error)

    def _take(self) -> list[_Call]:
        batch: list[_Call] = []
        while self._waiting and len(batch) < _BATCH:
            call = self._waiting.popleft()
            if not call.answer.done():  # its caller has given up, and it was never sent
                batch.append(call)
        return batch

    async def _exchange(self, batch: list[_Call]) -> None:
        connection = self._idle.pop() if self._idle else self._connect()
        try:
            async with asyncio.timeout(self._settings.deadline):
                if not connection.is_connected:
                    await connection.connect()
                if self._may_evict is None:
                    self._may_evict = await self._ask_eviction(connection)
                unknown = await self._ask(connection, batch, whole=False)
                if unknown:  # a server that has not seen the scripts: restarted, failed over, flushed
                    await self._ask(connection, unknown, whole=True)
        except BaseException:
            await connection.disconnect(nowait=True)
            await self._drop_idle()
            raise
        self._idle.append(connection)

    async def _ask(self, connection: Any, batch: list[_Call], *, whole: bool) -> list[_Call]:
        """Send *batch* and settle its answers; returns the calls whose script the server does not know."""
        replicas = self._settings.replicas
        packed = [
            _ASKING + call.command.pack(whole=whole) if call.asking else call.command.pack(whole=whole)
            for call in batch
        ]
        if replicas:  # on this connection, or it would wait for somebody else's writes
            packed.append(pack(b"WAIT", b"%d" % replicas, b"%d" % (self._settings.deadline * 500)))
        await connection.send_packed_command(b"".join(packed), check_health=False)
        unknown: list[_Call] = []
        replies: list[tuple[_Call, Any]] = []
        for call in batch:
            if call.asking:
                await connection.read_response()
            reply = await _read(connection)
            if not whole and isinstance(reply, failures.NoScriptError):
                unknown.append(call)
            elif replicas:
                replies.append((call, reply))
            else:
                _settle(call, reply, 0)
        if replicas:
            copies = await connection.read_response()
            for call, reply in replies:
                _settle(call, reply, copies)
        return unknown

    async def _ask_eviction(self, connection: Any) -> bool:
        await connection.send_packed_command(pack(b"INFO", b"memory"), check_health=False)
        return judge_eviction(await _read(connection), self._settings.on_eviction)

    async def _drop_idle(self) -> None:
        # They lead to the server that has just failed: most likely they are dead as well.
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)


_ASKING = pack(b"ASKING")


async def _read(connection: Any) -> Any:
    """The next reply; an error reply is a value here, so that it fails its own command alone."""
    try:
        return await connection.read_response()
    except failures.ReadOnlyError:
        raise  # no longer a primary: this connection has no more to give
    except failures.ResponseError as error:
        return error


def _settle(call: _Call, reply: Any, copies: int) -> None:
    if call.answer.done():  # cancelled meanwhile
        return
    if isinstance(reply, Exception):
        call.answer.set_exception(reply)
    else:
        call.answer.set_result(Answer(reply, copies))
