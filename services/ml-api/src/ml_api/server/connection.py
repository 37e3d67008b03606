"""
Runs one connection: how long it may wait, how its responses are written, how it ends.

uvicorn's own connection has one timer, between an answer and the next byte, whatever that byte is. So one that says
nothing, or a blank line, or half a request, or that does not read its answer, stays open for ever. Here a timer runs
whenever no request does, another whenever the client does not read, and a connection that is to be closed is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ml_api.http.auth import let_in
from ml_api.http.refusals import EVENTS, ConnectionEvents, Refusal
from ml_api.server.connection_limits import ConnectionLimits
from ml_api.server.connection_table import ConnectionTable
from ml_api.server.one_write import OneWrite

__all__ = ["Connection", "Reading"]


class Reading(Enum):
    """The part of a request that was read last."""

    NOTHING = auto()  # the last one is whole, or there was none
    HEADERS = auto()
    BODY = auto()


_TOO_MANY = Refusal(
    503, "too-many-connections", "too-many-connections", "All connections are at work; send the request again"
)

_SEND_BUFFER = 262_144  # bytes; the kernel reserves as much again for itself


def _bound_what_the_kernel_holds(transport: asyncio.Transport, write_timeout: float) -> None:
    """
    Keep the kernel from taking megabytes of an answer that is not read, and from holding them after our close.

    By default Linux takes 4 MB a connection, and keeps them for minutes.
    """
    endpoint = transport.get_extra_info("socket")
    if endpoint is None or endpoint.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    with contextlib.suppress(OSError):
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(write_timeout * 1000))


class _ClientTransport(OneWrite):
    """The transport as uvicorn and the application see it: to close it is to end the connection in good order."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, leave: Callable[[], None]
    ) -> None:
        super().__init__(transport, loop)
        self._leave, self.left = leave, False
        self.is_closing = self._is_closing

    def close(self) -> None:
        self._leave()

    def _is_closing(self) -> bool:
        return self.left or self._transport.is_closing()


class Connection(HttpToolsProtocol):
    """
    uvicorn's connection, with `ConnectionLimits` and a place in a `ConnectionTable`.

    Both are read from uvicorn's configuration, where it has them (`limits`, `connections`). Where the lifespan's state
    holds `ConnectionEvents`, they hear of what is refused.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config: Any = self.config
        self.limits: ConnectionLimits = getattr(config, "limits", None) or ConnectionLimits()
        if getattr(config, "connections", None) is None:
            config.connections = ConnectionTable(self.limits.max_connections)
        self.table: ConnectionTable = config.connections
        self.events: ConnectionEvents = self.app_state.get(EVENTS) or ConnectionEvents()
        self.timeout_keep_alive = self.limits.keep_alive_timeout  # type: ignore[assignment]
        self.reading = Reading.NOTHING
        self._running: Any = None  # the exchange that is being answered; uvicorn's `cycle` is the newest
        self._raw: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._last: Refusal | None = None  # what is answered once everything before it is
        self._stopping = False
        self._lingered = 0

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._raw = transport
        _bound_what_the_kernel_holds(transport, self.limits.write_timeout)
        self.transport = _ClientTransport(transport, self.loop, self._leave)  # type: ignore[assignment]
        self.events.opened(1)
        if self.table.admit(self):
            self.wait(self.limits.header_timeout)
        else:
            self.refuse(_TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        self.table.remove(self)
        self.events.opened(-1)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.table.stalls(self)
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.table.flows(self)
        if not self.left:
            self._stop_write_timer()

    # What uvicorn calls

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.left or self.runs:
            return
        if self._last is not None:
            self._say_last(self._last)
        else:
            self.table.waits(self)

    def timeout_keep_alive_handler(self) -> None:
        self._leave()

    def shutdown(self) -> None:
        self._stopping = True
        if self.left:
            self._raw.abort()
        else:
            super().shutdown()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    # What the table and the parser's callbacks call

    @property
    def runs(self) -> bool:
        """Whether a request is being answered, or waits for that behind another one."""
        return bool(self.cycle) and not self.cycle.response_complete

    @property
    def anonymous(self) -> bool:
        """Whether the request that runs was not let in with a key."""
        return self._running is None or not let_in(self._running.scope)

    @property
    def left(self) -> bool:
        """Whether the connection is being closed: nothing that arrives counts any more."""
        return bool(self.transport.is_closing())

    @property
    def refused(self) -> bool:
        """Whether what arrives is dropped: the connection is being closed, or will be behind the answers before."""
        return self._last is not None or self.left

    @property
    def stopping(self) -> bool:
        """Whether the server stops: the answer that is being made is the last one."""
        return self._stopping

    def wait(self, seconds: float) -> None:
        """Give the client *seconds* until `stop_waiting`; then `waited_too_long` is called."""
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._time_is_over)

    def stop_waiting(self) -> None:
        """A request's headers are complete: its body and its answer have clocks of their own."""
        self._stop_timer()
        self.table.works(self)

    @property
    def waits(self) -> bool:
        """Whether a timer runs for the next headers."""
        return self._timer is not None

    def waited_too_long(self) -> None:
        """The time for a request's headers is over."""
        self._leave()

    def refuse(self, refusal: Refusal) -> None:
        """Answer no more than what was asked before, then *refusal*, and close."""
        if self.refused:
            return
        self.events.refused(refusal.reason)
        self._last = refusal
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self.runs and self.reading is Reading.BODY:
            self._give_up_unfinished()
        if not self.left and not self.runs:
            self._say_last(refusal)

    def evict(self) -> None:
        """Close at once: the connection was open, and its place is needed."""
        self.events.refused("too-many-connections")
        self._cut()

    def discard(self, size: int) -> None:
        """Note that *size* bytes arrived and were dropped."""
        self._lingered += size
        if self._lingered > self.limits.linger_bytes:
            if self.left:
                self._cut()
            else:
                self.flow.pause_reading()  # answers are still being made; what waits stays with the client

    # How it ends

    def _give_up_unfinished(self) -> None:
        """Let go of the request whose rest cannot be read; the ones before it are answered."""
        cycle = self.cycle
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # what is answered before
            return
        begun = cycle.response_started
        cycle.disconnected = cycle.response_complete = True
        cycle.message_event.set()
        if begun:
            self._cut()  # half of an answer cannot be followed by another

    def _say_last(self, refusal: Refusal) -> None:
        self.transport.write(refusal.render(self.server_state.default_headers))
        self._leave()

    def _leave(self) -> None:
        """Close behind what was written; from a client that still sends, read on for a moment."""
        if self.left:
            return
        self._stop_timers()
        self.transport.flush()  # type: ignore[attr-defined]
        self.transport.left = True  # type: ignore[attr-defined]
        self.table.flows(self)
        self.table.waits(self)  # whoever lingers is the first to go where room is needed
        if self.reading is Reading.NOTHING and self._last is None:
            self._raw.close()
            self._expect_reading()
            return
        if self._last is None:
            self.events.refused("request-not-finished")
        self.flow.resume_reading()
        if self._raw.can_write_eof():
            self._raw.write_eof()
        self._timer = self.loop.call_later(self.limits.linger_timeout, self._lingered_enough)

    def _lingered_enough(self) -> None:
        self._timer = None
        if self._raw.get_write_buffer_size():
            self.flow.pause_reading()
            self._expect_reading()
        else:
            self._cut()

    def _time_is_over(self) -> None:
        self._timer = None
        if not self.left:
            self.waited_too_long()

    def _expect_reading(self) -> None:
        """Cut the connection unless the client reads what was written, in time."""
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_timeout, self._not_read)

    def _not_read(self) -> None:
        self._write_timer = None
        if self.flow.write_paused or self._raw.get_write_buffer_size():
            self.events.refused("answer-not-read")
            self._cut()

    def _cut(self) -> None:
        self._stop_timers()
        self.transport.left = True  # type: ignore[attr-defined]
        self._raw.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _stop_timers(self) -> None:
        self._stop_timer()
        self._stop_write_timer()
        self._unset_keepalive_if_required()
