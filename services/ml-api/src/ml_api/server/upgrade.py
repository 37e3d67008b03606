"""
Serves requests that offer another protocol as if they did not; a server may ignore `Upgrade` (RFC 9110, 7.8).

httptools ends such a request at its headers, because it expects the other protocol after them. It would read the body
as a new request. So the body would be lost, and a body that looks like a request would be run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httptools

__all__ = ["ContinuedParser"]


class ContinuedParser:
    """
    Builds a parser that continues after a request's headers, with the body that they declare.

    The parser is fed headers that declare the same body but no upgrade; *protocol* does not see these headers.
    """

    def __init__(self, protocol: Any, framing: tuple[bytes, bytes]) -> None:
        self._begun = False
        self.on_message_begin = self._once_begun(protocol.on_message_begin)
        self.on_url = self._once_begun(protocol.on_url)
        self.on_header = self._once_begun(protocol.on_header)
        self.on_headers_complete = self._once_begun(protocol.on_headers_complete)
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"POST / HTTP/1.1\r\nhost: x\r\n%b: %b\r\n\r\n" % framing)
        self._begun = True

    def _once_begun(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Return *callback* for trailers and later requests; it is not called for the headers that are fed here."""
        return lambda *parts: callback(*parts) if self._begun else None
