"""
Commands that are ready at once go out together: one write, one read, on a connection that nobody else uses.

A command that comes alone is sent at once, by its caller. What comes while that is under way is gathered and sent by a
task of the store, so 64 callers cost a few writes instead of 64. A connection whose replies were not read to the end,
because somebody was cancelled or gave up, is closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from redis import exceptions as failures

from idempotency.stores._redis_openings import Openings
from idempotency.stores._redis_records import Command, pack
from idempotency.stores._redis_settings import Answer, Settings, judge_eviction, wait_command

__all__ = ["Pipes"]

_BATCH = 256  # commands in one write: bounds what one slow reply holds up


class _Call(NamedTuple):
    command: Command
    asking: bool
    due: float


class Pipes:
    """
    The store's connections to one place.

    Args:
        connect: Makes a connection that is not open yet.
    """

    def __init__(self, connect: Callable[[], Any], settings: Settings) -> None:
        self._settings = settings
        self._waiting: deque[tuple[_Call, asyncio.Future[Answer]]] = deque()
        self._idle: list[Any] = []
        self._openings = Openings(connect, self._idle.append)
        self._busy = False
        self._worker: asyncio.Task[None] | None = None
        self._may_evict: bool | None = None

    async def send(self, command: Command, due: float, *, asking: bool = False) -> Answer:
        """
        The answer to *command*, or the driver's own exception, or `TimeoutError` at *due* (seconds of the loop).

        Cancelled before the command is written, it is never sent; after that it may take effect.
        """
        call = _Call(command, asking, due)
        if not self._busy and self._worker is None:
            return await self._send_alone(call)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, answer))
        self._start_worker()
        return await answer

    async def aclose(self) -> None:
        """Close every connection; what is under way fails."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})
        await self._openings.aclose()
        for connection in self._idle:
            await connection.disconnect()
        self._idle.clear()

    async def _send_alone(self, call: _Call) -> Answer:
        # In the caller's own task: a lone command need not wait for the loop to start another.
        self._busy = True
        try:
            async with asyncio.timeout_at(call.due):
                (answer,) = await self._exchange([call])
        finally:
            self._busy = False
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start_worker(self) -> None:
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())  # takes what else comes in this turn of the loop

    async def _work(self) -> None:
        try:
            while batch := self._take():
                await self._send_together(batch)
        finally:
            self._worker = None

    async def _send_together(self, batch: list[tuple[_Call, asyncio.Future[Answer]]]) -> None:
        try:
            # No call waits longer than its own deadline for this: what went before it was due before it.
            async with asyncio.timeout_at(min(call.due for call, _ in batch)):
                answers = await self._exchange([call for call, _ in batch])
        except asyncio.CancelledError:
            for _, future in (*batch, *self._waiting):
                if not future.done():  # nobody cancelled these callers, so that is not what they are told
                    future.set_exception(failures.RedisError("the store was closed"))
            raise
        except Exception as error:  # each caller is handed it, and maps it
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # its caller has given up; the command took effect all the same
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _take(self) -> list[tuple[_Call, asyncio.Future[Answer]]]:
        batch: list[tuple[_Call, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < _BATCH:
            call, future = self._waiting.popleft()
            if not future.done():  # its caller has given up, and it was never sent
                batch.append((call, future))
        return batch

    async def _exchange(self, calls: list[_Call]) -> list[Answer | Exception]:
        connection = self._idle.pop() if self._idle else await self._openings.open()
        try:
            if self._may_evict is None:
                self._may_evict = await self._ask_eviction(connection)
            replies, copies = await self._ask(connection, calls, whole=False)
            unknown = [at for at, reply in enumerate(replies) if isinstance(reply, failures.NoScriptError)]
            if unknown:  # a server that has not seen the scripts: restarted, failed over, flushed
                again, copies = await self._ask(connection, [calls[at] for at in unknown], whole=True)
                for at, reply in zip(unknown, again, strict=True):
                    replies[at] = reply
        except (
            BaseException
        ) as error:  # cancelled too: a connection with unread replies is of no use to anybody
            await connection.disconnect(nowait=True)
            if not isinstance(error, asyncio.CancelledError):
                await self._drop_idle()
            raise
        self._idle.append(connection)
        return [reply if isinstance(reply, Exception) else Answer(reply, copies) for reply in replies]

    async def _ask(self, connection: Any, calls: list[_Call], *, whole: bool) -> tuple[list[Any], int]:
        """The reply to each call, and how many replicas have all writes up to them."""
        confirm = self._settings.replicas > 0 and any(call.command.writes for call in calls)
        packed = [
            _ASKING + command.pack(whole=whole) if asking else command.pack(whole=whole)
            for command, asking, _ in calls
        ]
        if confirm:  # on this connection, or it would wait for somebody else's writes
            packed.append(wait_command(self._settings))
        await connection.send_packed_command(b"".join(packed), check_health=False)
        replies: list[Any] = []
        for _, asking, _ in calls:
            if asking:
                await _read(connection)
            replies.append(await _read(connection))
        return replies, await connection.read_response() if confirm else 0

    async def _ask_eviction(self, connection: Any) -> bool:
        await connection.send_packed_command(pack(b"INFO", b"memory"), check_health=False)
        return judge_eviction(await _read(connection), self._settings.on_eviction)

    async def _drop_idle(self) -> None:
        # They lead to the server that has just failed: most likely they are dead as well.
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)


_ASKING = pack(b"ASKING")


async def _read(connection: Any) -> Any:
    """The next reply; an error reply is a value here, so that it fails its own command alone."""
    try:
        return await connection.read_response()
    except failures.ReadOnlyError:
        raise  # no longer a primary: this connection has no more to give
    except failures.ResponseError as error:
        return error
