"""
Requests that offer another protocol, served as if they did not: `Upgrade` may be ignored (RFC 9110, 7.8).

httptools ends such a request at its headers. What follows is to it no body but the other protocol, and it then reads
the next bytes as a new request: the body is lost, and a body that looks like a request would be run as one.
"""

from __future__ import annotations

from typing import Any

import httptools

__all__ = ["ContinuedParser"]


class ContinuedParser:
    """
    Builds a parser that goes on behind the headers of a request, with the body that they declare.

    It is given headers that declare the same body and no upgrade; of those *protocol* hears nothing.
    """

    def __init__(self, protocol: Any, framing: tuple[bytes, bytes]) -> None:
        self._protocol, self._begun = protocol, False
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"POST / HTTP/1.1\r\nhost: x\r\n%b: %b\r\n\r\n" % framing)
        self._begun = True

    def on_message_begin(self) -> None:
        """The next request on the connection begins."""
        if self._begun:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the next request's target."""
        if self._begun:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A trailer, or a header of a later request."""
        if self._begun:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        """The end of a later request's headers."""
        if self._begun:
            self._protocol.on_headers_complete()
