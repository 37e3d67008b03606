"""
The HTTP/1.1 protocol with limits on headers: their size, and the time they may take to arrive.

uvicorn's own protocol starts its only timer after a first answer, so a client that opens connections and
says nothing, or says its headers a byte at a time, would hold them for ever; and it reads headers without
end.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from itertools import chain
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ml_api.http.limits import BODY_IS_HERE
from ml_api.http.problems import problem_response
from ml_api.server.one_write import OneWrite

__all__ = ["LimitedProtocol"]


class LimitedProtocol(HttpToolsProtocol):
    """
    uvicorn's protocol over httptools, with two limits that it reads from its configuration.

    `config.max_header_bytes` bounds the request line and headers together: more is answered 431.
    `config.header_timeout` bounds, in seconds, the time from the connection, or from the first byte of a
    later request, to the end of the headers: then 408 where a request had begun, and the connection is
    closed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_header_bytes: int = self.config.max_header_bytes  # type: ignore[attr-defined]
        self.header_timeout: float = self.config.header_timeout  # type: ignore[attr-defined]
        self._header_bytes = 0
        self._in_headers = False
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = OneWrite(transport, self.loop)  # type: ignore[assignment]
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        were_in_headers = self._in_headers
        super().data_received(data)
        # A header that never ends shows in no callback, so reads are counted while the headers stay open. Most come
        # in one read, and no timer was armed for those.
        if self._in_headers and not self.transport.is_closing():
            if self._header_timer is None:
                self._start_header_timer()
            self._header_bytes += len(data) if were_in_headers else 0
            if self._header_bytes > self.max_header_bytes:
                self._break_off(431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers, self._header_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_header_timer()
        separators = 4 * len(self.headers)  # ": " and the end of the line
        size = len(self.url) + separators + sum(map(len, chain.from_iterable(self.headers)))
        if size <= self.max_header_bytes:
            return super().on_headers_complete()
        # Through an ordinary cycle, so that body bytes behind these headers find one to be dropped by.
        app, self.app = self.app, _headers_too_large
        try:
            super().on_headers_complete()
        finally:
            self.app = app

    def on_message_complete(self) -> None:
        # What began in this read is answered from the next turn on, and so sees it.
        self.scope[BODY_IS_HERE] = True  # type: ignore[literal-required]
        super().on_message_complete()

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.header_timeout, self._headers_late)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_late(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if self._in_headers:
            self._break_off(408)
        else:
            self.transport.close()  # a connection that never asked anything gets no answer

    def _break_off(self, status: int) -> None:
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode())
        self.transport.close()


async def _headers_too_large(scope: Scope, receive: Receive, send: Send) -> None:
    detail = "The request line and headers are too large; send fewer or shorter ones"
    await problem_response(431, "headers-too-large", detail, {"Connection": "close"})(scope, receive, send)
