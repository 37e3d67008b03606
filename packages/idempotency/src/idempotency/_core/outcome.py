"""
Encodes and decodes outcomes: the result of a run, as one UTF-8 JSON object that a person can read.

    {"format": 1, "outcome": "response", "status_code": 201, "headers": [["content-type", "text/plain"]], "body": "ok"}
    {"format": 1, "outcome": "value", "value": ...}
    {"format": 1, "outcome": "unreplayable", "reason": "streamed", "status_code": 200}

A body that is not UTF-8 is in `body_base64`. A store may write members of its own before these, never parses these, and
returns exactly the bytes it was given. The format is public (SemVer): version n reads the formats 1 to n.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any, NamedTuple, TypeAlias

from idempotency._core.errors import CorruptRecord, UnknownRecordVersion

__all__ = [
    "BODILESS",
    "FINAL",
    "Headers",
    "Outcome",
    "Response",
    "Unreplayable",
    "Value",
    "decode",
    "encode_answer",
    "encode_response",
    "encode_unreplayable",
    "encode_value",
    "is_name",
    "is_safe",
    "recorded_headers",
    "use_msgspec",
]

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""Ordered pairs, names in lower case; repeated names stay repeated (E7)."""

_FORMAT = 1
FINAL = frozenset(range(200, 600))
"""The statuses that can end an exchange (RFC 9110, 15); 1xx announce another one."""

BODILESS = frozenset({204, 304})
"""The final statuses whose answers never have a body (RFC 9110, 6.4.1)."""

# Control characters but the tab (RFC 9110, 5.5).
_find_unsafe = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_new = tuple.__new__  # builds a named tuple in half the time of its constructor, a Python function


class Response(NamedTuple):
    """
    A whole HTTP response.

    Attributes:
        traceparent: The trace context (W3C) of the run that made the response, if a hook supplied one.
    """

    status: int
    headers: Headers
    body: bytes
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """The return value of a decorated function, as its codec encoded it."""

    value: Any
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Unreplayable:
    """The operation is done and its response was not kept; it never runs again (E2)."""

    reason: str


Outcome: TypeAlias = Response | Value | Unreplayable

_parse: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_ascii = encode_basestring_ascii  # takes half to nine tenths of the time of `encode_basestring`


def _text(text: str) -> str:
    """*text* as a JSON string that a person can read."""
    return _ascii(text) if text.isascii() else encode_basestring(text)


def encode_response(response: Response) -> bytes:
    """The response as an outcome; headers are kept byte for byte (as latin-1), a UTF-8 body as text."""
    lines = [
        f"[{_ascii(name.decode('latin-1'))},{_ascii(value.decode('latin-1'))}]"
        for name, value in response.headers
    ]
    return _encode(response.status, ",".join(lines), response.body, response.traceparent)


def encode_answer(answer: Response, drop: frozenset[bytes]) -> bytes:
    """The same as `recorded_headers`, then `encode_response`, but in one pass over the headers of most answers."""
    status, headers, body, traceparent = answer
    if body and status in BODILESS:
        body = b""  # no server sends it (RFC 9110, 6.4.1)
    lines, has_length = [], False
    for name, value in headers:
        begun = _recorded_name(name, drop)
        if begun is None:
            if name.lower() == b"connection":
                break  # its value names other headers that are not recorded: take the general way below
        elif begun != _CONTENT_LENGTH:
            lines.append(f"{begun}{_ascii(value.decode('latin-1'))}]")
        elif not has_length and value == b"%d" % len(body):
            has_length = True
            lines.append(f"{begun}{_ascii(value.decode('latin-1'))}]")
    else:
        text = ",".join(lines)
        if "\\" not in text and "\x7f" not in text:  # no escape, so no control character to look for
            return _encode(status, text, body, traceparent)
    kept = recorded_headers(headers, drop=drop, length=len(body))
    return encode_response(Response(status, kept, body, traceparent))


_CONTENT_LENGTH = '["content-length",'


@lru_cache(maxsize=256)  # an application uses few names, the same in each answer
def _recorded_name(name: bytes, drop: frozenset[bytes]) -> str | None:
    """The beginning of a header's line in a record, up to its value; None if it is not recorded."""
    name = name.lower()
    return None if name in drop or not is_name(name) else f"[{_ascii(name.decode('latin-1'))},"


# Written member by member: a general encoder takes five times as long, and the client waits for it.
def _encode(status: int, headers: str, content: bytes, traceparent: str | None) -> bytes:
    try:
        text = content.decode()
        body = f'"body":{_ascii(text) if text.isascii() else encode_basestring(text)}'
    except UnicodeDecodeError:
        body = f'"body_base64":"{b64encode(content).decode()}"'
    trace = "" if traceparent is None else f',"traceparent":{_text(traceparent)}'
    return (
        f'{{"format":1,"outcome":"response","status_code":{status:d},"headers":[{headers}],{body}{trace}}}'
    ).encode()


def encode_value(value: Any, traceparent: str | None = None) -> bytes:
    """
    A JSON value as an outcome.

    Raises:
        TypeError: Not made of JSON types.
        ValueError: NaN or an infinity, or a text that is not Unicode (a lone surrogate).
    """
    members: dict[str, Any] = {"format": _FORMAT, "outcome": "value", "value": value}
    if traceparent is not None:
        members["traceparent"] = traceparent
    return _dumps(members).encode()


def encode_unreplayable(reason: str, status: int) -> bytes:
    """A tombstone: the operation is done, its response was not kept, and *reason* says why."""
    return _dumps(
        {"format": _FORMAT, "outcome": "unreplayable", "reason": reason, "status_code": status}
    ).encode()


_decode_quickly: Callable[[bytes], tuple[int, Headers, bytes, str | None] | None] | None = None


def use_msgspec() -> None:
    """From now on, decode most responses by msgspec, if it is installed."""
    global _decode_quickly  # noqa: PLW0603
    with suppress(ImportError):
        from idempotency._core._speedups import decode_response

        _decode_quickly = decode_response


def decode(outcome: bytes) -> Outcome:
    """
    Decodes an outcome; members that this version does not know are ignored.

    Raises:
        UnknownRecordVersion: Written by a newer version of this library.
        CorruptRecord: Not an outcome.
    """
    if _decode_quickly is not None and (quick := _decode_quickly(outcome)) is not None:
        return _new(Response, quick)
    try:
        text = outcome.decode()
        members, end = _parse(text, 0)
        if end != len(text):
            raise ValueError("something follows the outcome")
        version = members["format"]
    except (ValueError, KeyError, TypeError, RecursionError, StopIteration):
        raise CorruptRecord(
            "the stored outcome was not written by this library; look at it before deleting it"
        ) from None
    if version != _FORMAT:
        named = version if type(version) is int and 0 <= version < 1_000_000 else "of an unknown kind"
        raise UnknownRecordVersion(
            f"the stored outcome has format {named}, this version reads {_FORMAT}; upgrade"
        )
    try:
        if members["outcome"] == "response":
            return _decode_response(members)
        if members["outcome"] == "value":
            return Value(members["value"], _traceparent(members))
        if members["outcome"] == "unreplayable":
            return Unreplayable(members["reason"] + "")  # raises TypeError unless it is a str
        raise ValueError("outcome")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CorruptRecord("the stored outcome lacks a member or has one of a wrong type") from None


def _decode_response(members: dict[str, Any]) -> Response:
    body = members.get("body")
    content = body.encode() if body is not None else b64decode(members["body_base64"], validate=True)
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in members["headers"]]
    status = members["status_code"]
    if type(status) is not int or not 100 <= status <= 999:  # any three digits, defined by HTTP or not
        raise ValueError("status_code")
    return _new(Response, (status, headers, content, _traceparent(members)))


def _traceparent(members: dict[str, Any]) -> str | None:
    traceparent = members.get("traceparent")
    if traceparent is not None and type(traceparent) is not str:
        raise TypeError("traceparent")  # hooks rely on a str
    return traceparent


def recorded_headers(
    headers: Iterable[tuple[bytes, bytes]], *, drop: frozenset[bytes], length: int
) -> Headers:
    """
    The headers of a response that are recorded.

    Left out: those in *drop*, those that `Connection` names (RFC 9110, 7.6.1), those whose name is no token, those with
    a control character, which could split a message, a Content-Length other than *length* (the size of the body in
    bytes), and a repeated one.
    """
    kept: Headers = []
    has_length = False
    nominated: set[bytes] = set()
    for name, value in headers:
        name = name.lower()  # noqa: PLW2901
        if name not in drop:
            if name != b"content-length":
                if is_name(name):
                    kept.append((name, value))
            elif not has_length and value == b"%d" % length:
                has_length = True
                kept.append((name, value))
        elif name == b"connection":
            nominated.update(token.strip().lower() for token in value.split(b","))
    if nominated:
        kept = [pair for pair in kept if pair[0] not in nominated]
    return _safe(kept)


def _safe(headers: Headers) -> Headers:
    """Drops headers with a control character, which could split a message."""
    if not is_safe([name + value for name, value in headers]):
        return [(name, value) for name, value in headers if _find_unsafe(name + value) is None]
    return headers


is_name = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch
"""Whether these bytes are the name of a header (a token, RFC 9110, 5.1) in lower case, as names are recorded."""


def is_safe(values: Iterable[bytes]) -> bool:
    """Whether a server can send each of *values* in a header: no control character but the tab."""
    return _find_unsafe(b"".join(values)) is None
