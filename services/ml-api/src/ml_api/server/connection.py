"""
One connection: its timers, how its responses are written, and how it is closed.

uvicorn's own connection has only one timer, from an answer to the next byte. So a connection stays open for ever if the
client sends nothing at all, a blank line or half a request, or does not read its answer. Here one timer runs while no
request is being answered, another while the client does not read, and closing always ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from enum import Enum, auto
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ml_api.http.auth import is_authenticated
from ml_api.http.connection_refusals import EVENTS, ConnectionEvents, Refusal
from ml_api.server.connection_table import ConnectionTable
from ml_api.server.one_write import OneWrite
from ml_api.settings import Settings

__all__ = ["Connection", "Reading"]


class Reading(Enum):
    """The part of a request that is being read."""

    NOTHING = auto()  # the last request is complete, or there was none
    HEADERS = auto()
    BODY = auto()


_TOO_MANY = Refusal(
    503,
    "too-many-connections",
    "too-many-connections",
    "All connections are busy; send the request again later",
)

_SEND_BUFFER = 262_144  # bytes; the kernel reserves the same again for itself

# How long, and how much, to go on reading (and dropping) after a last answer that was sent before its request was
# complete. To close at once would reset the connection, and a reset can destroy an answer that the client has not read.
_LINGER_SECONDS = 2.0
_LINGER_BODIES = 8  # of the largest size


def _limit_send_buffer(transport: asyncio.Transport, write_timeout: float) -> None:
    """
    Limit how much of an answer the kernel buffers for a client that does not read, and for how long.

    By default Linux buffers up to 4 MB per connection, and keeps it for minutes, also after the connection is closed.
    """
    endpoint = transport.get_extra_info("socket")
    if endpoint is None or endpoint.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    with contextlib.suppress(OSError):
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(write_timeout * 1000))


class Connection(HttpToolsProtocol):
    """
    uvicorn's connection, with the limits of the settings, and counted in a `ConnectionTable`.

    Both come from uvicorn's configuration: `settings`, and `connections` if it has one. The `ConnectionEvents` in the
    lifespan state, if any, are told about refusals.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config: Any = self.config
        self.settings: Settings = config.settings
        if getattr(config, "connections", None) is None:
            config.connections = ConnectionTable(self.settings.max_connections)
        self.table: ConnectionTable = config.connections
        self.events: ConnectionEvents = self.app_state.get(EVENTS) or ConnectionEvents()
        self.timeout_keep_alive = self.settings.keep_alive_timeout
        self.reading = Reading.NOTHING
        # The request cycle that is being answered; uvicorn's `cycle` is the newest one.
        self._running: Any = None
        self._raw: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._last: Refusal | None = None  # the refusal to send after all earlier answers
        self.stopping = False  # whether the server is stopping, so that the running request is the last one
        self._lingered = 0

    # Called by asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._raw = transport
        _limit_send_buffer(transport, self.settings.write_timeout)
        self.transport = OneWrite(transport, self.loop, self._leave)  # type: ignore[assignment]
        self.events.opened(1)
        if self.table.admit(self):
            self.wait(self.settings.header_timeout)
        else:
            self.refuse(_TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        self.table.remove(self)
        self.events.opened(-1)
        super().connection_lost(exc)
        self.transport.lost()  # type: ignore[attr-defined]

    def pause_writing(self) -> None:
        super().pause_writing()
        self.table.stalls(self)
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.table.flows(self)
        if not self.left:
            self._stop_write_timer()

    # Called by uvicorn

    def on_response_complete(self) -> None:
        self.transport.flush()  # type: ignore[attr-defined]  # before the application logs and counts its answer
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
        self.stopping = True
        if self.left:
            self._raw.abort()
        else:
            super().shutdown()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    # Called by the table and by the parser's callbacks

    @property
    def runs(self) -> bool:
        """Whether a request is being answered, or waits for an earlier one to be answered."""
        return bool(self.cycle) and not self.cycle.response_complete

    @property
    def anonymous(self) -> bool:
        """Whether the running request had no valid key."""
        return self._running is None or not is_authenticated(self._running.scope)

    @property
    def left(self) -> bool:
        """Whether the connection is being closed; bytes that arrive now are dropped."""
        return bool(self.transport.is_closing())

    @property
    def refused(self) -> bool:
        """Whether bytes that arrive are dropped: the connection is being closed, or will be after earlier answers."""
        return self._last is not None or self.left

    def wait(self, seconds: float) -> None:
        """Call `waited_too_long` after *seconds*, unless `stop_waiting` is called before."""
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._time_is_over)

    def stop_waiting(self) -> None:
        """Stop the timer, because a request's headers are complete; body and answer have other timers."""
        self._stop_timer()
        self.table.works(self)

    @property
    def waits(self) -> bool:
        """Whether the timer for a request's headers is running."""
        return self._timer is not None

    def waited_too_long(self) -> None:
        """Close the connection, because the time for a request's headers is over."""
        self._leave()

    def refuse(self, refusal: Refusal) -> None:
        """Answer the earlier requests, then send *refusal* and close."""
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
        """Close at once, to make room for a new connection."""
        self.events.refused("too-many-connections")
        self._cut()

    def discard(self, size: int) -> None:
        """Count *size* bytes that arrived and were dropped."""
        self._lingered += size
        if self._lingered > _LINGER_BODIES * self.settings.max_body_bytes:
            if self.left:
                self._cut()
            else:
                self.flow.pause_reading()  # earlier answers are still being made; stop reading meanwhile

    # Closing

    def _give_up_unfinished(self) -> None:
        """Drop the request whose rest cannot be read; earlier requests are still answered."""
        cycle = self.cycle
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # the request before it
            return
        begun = cycle.response_started
        cycle.disconnected = cycle.response_complete = True
        cycle.message_event.set()
        if begun:
            self._cut()  # after half an answer no other can follow

    def _say_last(self, refusal: Refusal) -> None:
        self.transport.write(refusal.render(self.server_state.default_headers))
        self._leave()

    def _leave(self) -> None:
        """Close after all output is sent; if the client is still sending, read on for `linger_timeout`."""
        if self.left:
            return
        self._stop_timers()
        self.transport.flush()  # type: ignore[attr-defined]
        self.transport.left = True  # type: ignore[attr-defined]
        self.table.flows(self)
        self.table.waits(self)  # a lingering connection may be closed first to make room
        if self.reading is Reading.NOTHING and self._last is None:
            self._raw.close()
            self._expect_reading()
            return
        if self._last is None:
            self.events.refused("request-not-finished")
        self.flow.resume_reading()
        if self._raw.can_write_eof():
            self._raw.write_eof()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self._lingered_enough)

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
        """Cut the connection if the client does not read the output within `write_timeout`."""
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.write_timeout, self._not_read)

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
