"""
Serves requests that offer another protocol as if they did not; a server may ignore `Upgrade` (RFC 9110, 7.8).

httptools ends such a request at its headers, because it expects the other protocol after them. It would read the body
as a new request. So the body would be lost, and a body that looks like a request would be run.
"""

from __future__ import annotations

from typing import Any

import httptools

__all__ = ["ContinuedParser"]


class ContinuedParser:
    """
    Builds a parser that continues after a request's headers, with the body that they declare.

    The parser is fed headers that declare the same body but no upgrade; *protocol* does not see these headers.
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
        """Pass on the beginning of the next request."""
        if self._begun:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Pass on a part of the next request's target."""
        if self._begun:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Pass on a trailer, or a header of a later request."""
        if self._begun:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        """Pass on the end of a later request's headers."""
        if self._begun:
            self._protocol.on_headers_complete()
