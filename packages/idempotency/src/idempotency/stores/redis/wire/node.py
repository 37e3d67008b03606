"""Keeps one connection to a node for all callers: opens it when needed, and reopens it when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from redis import exceptions as failures

from idempotency.stores.redis.errors import NeverSent, closed, is_gone
from idempotency.stores.redis.records import Answer, Command, pack
from idempotency.stores.redis.settings import Settings, judge_eviction
from idempotency.stores.redis.wire.connection import Connection, is_open
from idempotency.stores.redis.wire.connector import Connector

__all__ = ["NodeConnection"]


class NodeConnection:
    """
    The store's connection to one place.

    Args:
        connect: Makes a connection of redis-py that is not open yet.
    """

    def __init__(self, connect: Callable[[], Any], settings: Settings) -> None:
        self._settings = settings
        self._late: list[Any] = []  # connections that opened after their callers had given up
        self._connector = Connector(connect, self._late.append)
        self._connection: Connection | None = None
        self._opening: asyncio.Task[Connection] | None = None
        self._may_evict: bool | None = None

    def send(self, command: Command, due: float, *, asking: bool = False) -> Awaitable[Answer]:
        """
        The answer to *command*; fails with the driver's exception, or `TimeoutError` at *due* (seconds of the loop).

        If it is cancelled before the command is written, the command is never sent; after that it may take effect.
        """
        shared = self._connection
        if shared is None or shared.lost:
            return self._open_and_send(command, due, asking)
        return shared.send(command, due, asking=asking)

    async def aclose(self) -> None:
        """Close the connection; calls under way fail."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        await self._connector.aclose()
        while self._late:
            await self._late.pop().disconnect(nowait=True)
        if self._connection is not None:
            self._connection.close(closed())
            await asyncio.sleep(0)  # the loop closes the socket in its next turn

    async def _open_and_send(self, command: Command, due: float, asking: bool) -> Answer:
        try:
            shared = await self._open(due)
        except failures.ConnectionError as error:
            if not is_gone(error):
                raise
            raise NeverSent(*error.args) from error
        return await shared.send(command, due, asking=asking)

    async def _open(self, due: float) -> Connection:
        """A new connection, the same for all that wait for it; opening it goes on if they are cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            # Asked, and not reset by the task: an eager task may be done before it is assigned here.
            if self._opening is None or self._opening.done():
                self._opening = loop.create_task(self._connected())
                self._opening.add_done_callback(_hear)
            opening = self._opening
            await asyncio.wait({opening}, timeout=due - loop.time())
            if not opening.done():
                raise TimeoutError
            if opening.cancelled():  # by `aclose`; the caller itself was not cancelled
                raise closed()
            if not isinstance(opening.exception(), TimeoutError) or loop.time() >= due:
                return opening.result()
            # It timed out for an earlier caller; this caller still has time, so begin again.

    async def _connected(self) -> Connection:
        async with asyncio.timeout(self._settings.deadline):
            connection = await self._take_late() or await self._connector.open()
            try:
                if self._may_evict is None:
                    self._may_evict = await self._ask_eviction(connection)
                self._connection = Connection(connection, self._settings)
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
        return self._connection

    async def _take_late(self) -> Any:
        while self._late:
            connection = self._late.pop()
            if is_open(connection):
                return connection
            await connection.disconnect(nowait=True)
        return None

    async def _ask_eviction(self, connection: Any) -> bool | None:
        await connection.send_packed_command(pack(b"INFO", b"memory"), check_health=False)
        try:
            info = await connection.read_response()
        except failures.ResponseError as refusal:
            info = refusal
        return judge_eviction(info, self._settings.on_eviction)


def _hear(opening: asyncio.Task[Connection]) -> None:
    if not opening.cancelled():
        opening.exception()  # marks it as seen, in case no caller waits any more
