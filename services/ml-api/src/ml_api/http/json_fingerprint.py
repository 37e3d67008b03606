"""
Computes fingerprints of JSON bodies without blocking the event loop.

`idempotency.canonical_json` visits every value in Python, which takes 1.5 s for a megabyte of empty lists. Here msgspec
does that in C, and for a large body the exact bytes are compared instead.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from idempotency import Fingerprint, RequestView, exact_bytes

__all__ = ["as_written", "json_fingerprint"]

_MAX_BYTES = 65_536


def json_fingerprint(
    *, ignoring: str | None = None, length_header: str | None = None
) -> Callable[[RequestView], Fingerprint]:
    """
    Return a fingerprint function for JSON that ignores white space, the order of members, and escapes in strings.

    Numbers are compared by their text. Of a repeated member the last one counts, as for the service's parsers. A body
    above 64 KiB is compared byte for byte.

    Args:
        ignoring: A member of the top-level object that is not part of the fingerprint.
        length_header: A header with the number of bytes that are JSON; the bytes after them are compared exactly.

    The function raises ValueError if the body is not JSON. Then the idempotency engine uses the exact bytes, and the
    route refuses the body.
    """

    def fingerprint(view: RequestView) -> Fingerprint:
        length = view.header(length_header.encode()) if length_header is not None else b""
        if not length.isdigit():
            size, behind = len(view.body), b""
        else:
            size = int(length[:10])
            behind = b"%d bytes and " % (len(view.body) - size) + view.body[size:]
        if size > _MAX_BYTES:
            return exact_bytes(view)
        try:
            value = _decode(view.body[:size])
            if ignoring is not None and isinstance(value, dict):
                value.pop(ignoring, None)
            canonical = _encode(value)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError("not JSON") from error
        return exact_bytes(view._replace(body=behind + canonical))

    return fingerprint


def as_written(number: str) -> msgspec.Raw:
    """Return a JSON number so that msgspec encodes it with the same digits; a `float_hook`."""
    return msgspec.Raw(number.encode())


_decode = msgspec.json.Decoder(float_hook=as_written).decode
_encode = msgspec.json.Encoder(order="sorted").encode
