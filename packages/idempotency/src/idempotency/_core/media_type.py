"""Normalizes Content-Type and Content-Encoding, so that equal values compare equal (RFC 9110, 8.3 and 8.4)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

__all__ = ["MediaType", "media_type", "spelled_once", "tokens_spelled_once"]

_TYPE = re.compile(rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)/([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?=;|$)")
# A value without quotes may have characters that a token may not, such as the `=` and `/` of many boundaries.
_PARAMETER = re.compile(
    rb";[ \t]*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)="
    rb'(?:"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t -~\x80-\xff])*)"|([^\s";,\\]+)))?[ \t]*'
)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SIMPLE = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+/[!#$%&'*+.^_`|~0-9a-z-]+")
_LONGEST = 1_000  # bytes; a longer header is not parsed and keeps its spelling


class MediaType(NamedTuple):
    """
    A media type.

    Attributes:
        name: Type and subtype, in lower case.
        parameters: By name, in lower case; values as they are without quotes and escapes, a charset in lower case.
    """

    name: bytes
    parameters: dict[bytes, bytes]

    def spelled(self, *, without: bytes = b"") -> bytes:
        """The media type in its normal form, parameters sorted by name, leaving out the one named *without*."""
        parts = [self.name]
        for name in sorted(self.parameters):
            if name != without:
                value = self.parameters[name]
                if not _TOKEN.fullmatch(value):
                    value = b'"%b"' % value.replace(b"\\", rb"\\").replace(b'"', rb"\"")
                parts.append(b"%b=%b" % (name, value))
        return b"; ".join(parts)


def media_type(value: bytes) -> MediaType | None:
    """
    The media type in a Content-Type; None if the value is malformed or repeats a parameter.

    >>> media_type(b'Multipart/Form-Data; charset="UTF-8";BOUNDARY=b')
    MediaType(name=b'multipart/form-data', parameters={b'charset': b'utf-8', b'boundary': b'b'})
    """
    found = _TYPE.match(value)
    if found is None or len(value) > _LONGEST:
        return None
    parameters: dict[bytes, bytes] = {}
    end = found.end()
    while end < len(value):
        parameter = _PARAMETER.match(value, end)
        if parameter is None:
            return None
        end = parameter.end()
        if parameter[1] is None:  # nothing between two semicolons, which RFC 9110, 5.6.6 allows
            continue
        name = parameter[1].lower()
        text = parameter[3] if parameter[3] is not None else _ESCAPED.sub(rb"\1", parameter[2])
        if name in parameters:
            return None
        parameters[name] = text.lower() if name == b"charset" else text
    return MediaType(b"%b/%b" % (found[1].lower(), found[2].lower()), parameters)


@lru_cache(maxsize=128)
def spelled_once(value: bytes) -> bytes:
    """
    A Content-Type in its normal form: equal for all spellings of one media type. A malformed value is not changed.

    >>> spelled_once(b'Application/JSON;charset="UTF-8"')
    b'application/json; charset=utf-8'
    """
    if _SIMPLE.fullmatch(value):
        return value
    found = media_type(value)
    return value if found is None else found.spelled()


def tokens_spelled_once(value: bytes) -> bytes:
    """A list of codings, such as a Content-Encoding, in lower case and with one space after each comma."""
    return b", ".join([coding.strip(b" \t") for coding in value.lower().split(b",")])
