"""
Checks that requests are valid HTTP/1.1 (RFC 9112) and within limits, and refuses others.

uvicorn's parser, httptools, accepts any number of headers, reports trailers as headers, and keeps blanks after a value.
Neither it nor uvicorn checks `Host`. A refused request gets a problem document, after the answers to the requests
before it, and then the connection is closed.
"""

from __future__ import annotations

import re
from typing import Any

import httptools

from ml_api.http.connection_refusals import Refusal
from ml_api.http.limits import BODY_COMPLETE
from ml_api.server.connection import Connection, Reading
from ml_api.server.upgrade import ContinuedParser

__all__ = ["LimitedProtocol"]

_MALFORMED = Refusal(400, "malformed", "bad-request", "The request is not valid HTTP/1.1; correct it")
_HOST = Refusal(400, "host", "bad-request", "Send one Host header, with a host name and perhaps a port")
_VERSION = Refusal(505, "version", "http-version-not-supported", "Send the request as HTTP/1.1")
_CODING = Refusal(
    501,
    "transfer-coding",
    "not-implemented",
    "Of the transfer codings, only chunked is known; send the body so",
)
_HEADERS_TOO_LARGE = Refusal(
    431,
    "headers-too-large",
    "headers-too-large",
    "The request line and headers are too large; send fewer or shorter ones",
)
_FRAMING_TOO_LARGE = Refusal(
    431,
    "framing-too-large",
    "headers-too-large",
    "The chunk sizes, extensions and trailers around the body are too large; send larger chunks, or a Content-Length",
)
_HEADERS_LATE = Refusal(
    408, "headers-late", "request-timeout", "The headers did not arrive in time; send the request again"
)
_TOO_MANY_PIPELINED = Refusal(
    503,
    "too-many-pipelined",
    "too-many-pipelined",
    "Too many requests wait on this connection; read answers before sending more",
)

# host [ ":" port ], RFC 3986, 3.2.2: a name, an IPv4 address, or an IP literal in brackets; it may be empty.
_HOST_VALUE = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|\[v[0-9A-Fa-f]+\.[!$&'()*+,;=:\w.~-]+\]|(?:[!$&'()*+;=\w.~-]|%[0-9A-Fa-f]{2})*)"
    rb"(?::[0-9]*)?",
    re.ASCII,
)
_BLANKS = b" \t"
_MAX_PIPELINED = 16  # requests that may wait on one connection behind the running one


class LimitedProtocol(Connection):
    """uvicorn's protocol over httptools, with the limits of the settings and the checks of RFC 9112."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun = False  # whether a request began in the current read
        self._line_bytes = self._fields = self._hosts = 0
        self._read_bytes = 0  # bytes of reads that contained only headers or blank lines
        self._host = b""
        self._framing: tuple[bytes, bytes] | None = None  # the header that declares a body
        self._body_bytes = 0  # bytes of the body in the current read
        self._overhead = 0  # bytes of chunk framing, less the bytes of the body
        self._keeps = False  # whether to keep the connection open once the request is complete
        self._body_behind_upgrade = False

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return self.discard(len(data))
        before, self._begun, self._body_bytes = self.reading, False, 0
        try:
            self._feed(data)
        except httptools.HttpParserError:
            return self.refuse(_MALFORMED)  # does nothing if a callback has refused the request already
        if self.left:
            return None
        # A part of a request that never ends causes no callback. So bytes are counted if a whole read belongs to one
        # part of one request. Most requests arrive in one read; then nothing is counted and no timer is set.
        same = self.reading is before and not self._begun
        if self.reading is Reading.HEADERS:
            if not self.waits:
                self.wait(self.settings.header_timeout)
            if same:
                self._count_read(len(data))
        elif same and self.reading is Reading.BODY:
            # Each byte of the body allows one byte of framing.
            self._overhead = max(0, self._overhead + len(data) - 2 * self._body_bytes)
            if self._overhead > self.settings.max_header_bytes:
                self.refuse(_FRAMING_TOO_LARGE)
        elif same:  # blank lines before a request
            self._count_read(len(data))
        return None

    def _count_read(self, size: int) -> None:
        self._read_bytes += size
        if self._read_bytes > self.settings.max_header_bytes:
            self.refuse(_HEADERS_TOO_LARGE)

    def _feed(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                return self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
            if self._body_behind_upgrade:
                assert self._framing is not None
                self._body_behind_upgrade = False
                self.parser = ContinuedParser(self, self._framing).parser
        return None

    # Called by the parser

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._stop(_TOO_MANY_PIPELINED)
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self.reading, self._begun = Reading.HEADERS, True
        self._line_bytes = self._fields = self._hosts = self._read_bytes = self._overhead = 0
        self._framing = None

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._count(len(name) + len(value) + 4)  # 4: ": " and the end of the line
        if self.reading is Reading.BODY:
            return  # a trailer, which is counted and otherwise ignored (RFC 9110, 6.5.1)
        name, value = name.lower(), value.strip(_BLANKS)
        match name:
            case b"host":
                self._hosts, self._host = self._hosts + 1, value
            case b"transfer-encoding":
                if value.lower() != b"chunked":
                    self._stop(_CODING)
                self._framing = (name, value)
            case b"content-length" if value != b"0":
                self._framing = (name, value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        if version not in {"1.1", "1.0"}:
            self._stop(_VERSION)
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            self._stop(_HOST)
        if not _HOST_VALUE.fullmatch(self._host):
            self._stop(_HOST)
        super().on_headers_complete()
        self.reading, self._host = Reading.BODY, b""
        self._line_bytes = self._fields = 0  # from here on, trailers are counted
        self.stop_waiting()
        self._body_behind_upgrade = self._framing is not None and self.parser.should_upgrade()
        # If the answer begins before the request is complete, it is the connection's last: the rest may never arrive.
        self._keeps, self.cycle.keep_alive = self.cycle.keep_alive, False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._body_behind_upgrade:
            return
        # A request that began in this read runs from the loop's next iteration on, so it sees this key.
        self.scope[BODY_COMPLETE] = True  # type: ignore[literal-required]
        self.reading, self._read_bytes = Reading.NOTHING, 0
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps and not self.stopping
        super().on_message_complete()

    def waited_too_long(self) -> None:
        if self.reading is Reading.HEADERS:
            self.refuse(_HEADERS_LATE)
        else:
            super().waited_too_long()  # no request was begun, so there is nothing to answer

    def _count(self, size: int) -> None:
        self._line_bytes += size
        if (
            self._line_bytes > self.settings.max_header_bytes
            or self._fields > self.settings.max_header_fields
        ):
            self._stop(_FRAMING_TOO_LARGE if self.reading is Reading.BODY else _HEADERS_TOO_LARGE)

    def _stop(self, refusal: Refusal) -> None:
        """Refuse the request, and stop the parser by an error."""
        self.refuse(refusal)
        raise httptools.HttpParserError(refusal.reason)
