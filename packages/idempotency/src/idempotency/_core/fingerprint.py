"""
Computes fingerprints, which decide whether two requests under one key are the same operation.

A fingerprint function gets the request and returns a digest. The engine adds method, path and query (E9), so the
function need only cover the body. If it raises ValueError because it cannot read the body, the exact bytes are used,
and the application answers with its own error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from struct import Struct, pack
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote_plus

from idempotency._core.media_type import media_type, spelled_once, tokens_spelled_once
from idempotency._core.types import Fingerprint

__all__ = [
    "RequestView",
    "canonical_json",
    "counted_query",
    "digest",
    "exact_bytes",
    "exact_operation_digest",
    "ignoring",
    "multipart_parts",
    "operation_digest",
    "representation",
    "unrepeated_representation",
]


class RequestView(NamedTuple):
    """
    The request as a fingerprint function sees it.

    Attributes:
        path: As the client sent it, including the prefix of a mounted application.
        query: The raw query string, without its question mark.
        headers: Ordered pairs, names in lower case.
        body: The whole body as sent; a Content-Encoding is not decoded.
        tenant: What the middleware's `tenant` callable returned.
    """

    method: str
    path: str
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    tenant: str

    def header(self, name: bytes) -> bytes:
        """All values of a header, joined by commas (RFC 9110, 5.3); empty if it is absent."""
        return b", ".join([value.strip(b" \t") for key, value in self.headers if key == name])


def digest(*parts: bytes) -> Fingerprint:
    """
    SHA-256 of the parts and their lengths, so that different lists of parts never give the same input to SHA-256.

    >>> digest(b"ab", b"c") == digest(b"a", b"bc")
    False
    """
    lengths = pack(f">{len(parts)}Q", *map(len, parts))  # all lengths come first, then all parts
    return Fingerprint(sha256(b"".join((lengths, *parts))).digest())


def counted_query(query: bytes, ignored: Collection[str]) -> bytes:
    """
    *query* without its *ignored* parameters; names are decoded before they are compared.

    >>> counted_query(b"order=1&sent%5Fat=9&x", {"sent_at"})
    b'order=1&x'
    """
    if not ignored or not query:
        return query
    kept = [
        pair
        for pair in query.split(b"&")
        if unquote_plus(pair.partition(b"=")[0].decode("latin-1")) not in ignored
    ]
    return b"&".join(kept)


def operation_digest(
    view: RequestView,
    function: Callable[[RequestView], Fingerprint],
    *,
    ignored_query: Collection[str] = (),
) -> Fingerprint:
    """
    The stored fingerprint: a digest of the operation (method, path, query) and of the digest from *function* (E9).

    Args:
        ignored_query: Query parameters to leave out; *function* still sees them.
    """
    query = counted_query(view.query, ignored_query)
    if function is not exact_bytes:
        try:
            return digest(
                view.method.encode(), view.path.encode("utf-8", "surrogatepass"), query, function(view)
            )
        except ValueError:
            pass
    return exact_operation_digest(view.method, view.path, query, *_representation(view), view.body)


_six_lengths = Struct(">6Q").pack


def exact_operation_digest(
    method: str, path: str, query: bytes, content_type: bytes, content_encoding: bytes, body: bytes
) -> Fingerprint:
    """The `operation_digest` of the default policy, whose fingerprint function is `exact_bytes`."""
    # `digest` of six parts, written out: it was the slowest step of the default policy.
    verb, target = method.encode(), path.encode("utf-8", "surrogatepass")
    lengths = _six_lengths(
        len(verb), len(target), len(query), len(content_type), len(content_encoding), len(body)
    )
    parts = (lengths, verb, target, query, content_type, content_encoding, body)
    return Fingerprint(sha256(b"".join(parts)).digest())


def exact_bytes(view: RequestView) -> Fingerprint:
    """The body byte for byte, with the two headers that say how to read it: Content-Type and Content-Encoding."""
    return digest(b"bytes", *_representation(view), view.body)


def canonical_json(view: RequestView) -> Fingerprint:
    """
    The JSON value: white space, the order of members and the escapes in strings do not count.

    Everything else does. Numbers count as they are written (`1`, `1.0` and `1e0` differ, as do `1e400` and `1e500`).

    Raises:
        ValueError: Not JSON in UTF-8 (RFC 8259), NaN or Infinity, a repeated member name, or nested too deeply.
    """
    return digest(b"json", *_representation(view), _encode(_parse(view.body)))


def ignoring(*members: str) -> Callable[[RequestView], Fingerprint]:
    """
    `canonical_json` without some members, for clients that change a member such as `requestId` in each attempt.

    Args:
        members: Names of members of the top-level object, or JSON Pointers (RFC 6901) such as `/meta/sentAt`.
    Raises:
        ValueError: Without any member.

    >>> def order(body: bytes) -> RequestView:
    ...     return RequestView("POST", "/orders", b"", [], body, "")
    >>> same = ignoring("requestId")
    >>> same(order(b'{"requestId": 1, "sum": 5}')) == same(order(b'{"requestId": 2, "sum": 5}'))
    True
    """
    if not members:
        raise ValueError("ignoring() needs the name of at least one member")
    paths = [_pointer(member) for member in members]

    def fingerprint(view: RequestView) -> Fingerprint:
        value = _parse(view.body)
        for path in paths:
            _remove(value, path)
        return digest(b"json-ignoring", *_representation(view), _encode(value))

    return fingerprint


def multipart_parts(view: RequestView) -> Fingerprint:
    """
    The parts of a multipart body in order, with headers and content, but without the boundary (RFC 2046, 5.1).

    Clients draw a new boundary for each attempt, so the exact bytes of a repeated upload differ. The rest of the
    Content-Type counts, with its other parameters, in any order and spelling.

    Raises:
        ValueError: Not a well-formed multipart body, or one with a preamble or an epilogue.
    """
    found = media_type(view.header(b"content-type"))
    boundary = b"" if found is None else found.parameters.get(b"boundary", b"")
    if found is None or not found.name.startswith(b"multipart/") or not _BOUNDARY.fullmatch(boundary):
        raise ValueError("the Content-Type is not multipart with one boundary")
    delimiter = b"\r\n--" + boundary
    head, *parts = (b"\r\n" + view.body).split(delimiter)
    if head or not parts or parts[-1] not in {b"--", b"--\r\n"}:
        raise ValueError("the body is not well-formed multipart")
    contents = [_part(part) for part in parts[:-1]]
    return digest(b"multipart", found.spelled(without=b"boundary"), _representation(view)[1], *contents)


# 1 to 70 characters, no space at either end (RFC 2046, 5.1.1).
_BOUNDARY = re.compile(rb"[!-~](?:[ -~]{0,68}[!-~])?")


def _part(part: bytes) -> bytes:
    padding, line_end, content = part.partition(b"\r\n")
    if padding.strip(b" \t") or not line_end:
        raise ValueError("a multipart delimiter is followed by text")
    return content


_OF_THE_BODY = frozenset({b"content-type", b"content-encoding", b"content-length"})


def representation(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes, int]:
    """
    Reads Content-Type, Content-Encoding and Content-Length (0 if absent) from headers.

    Content-Type and Content-Encoding are normalized, since a proxy may spell them differently in two attempts (RFC
    9110, 8.3.1: type, parameter names and charset in any case, values quoted or not).
    """
    content_type = content_encoding = b""
    length = 0
    for name, field in headers:
        if name not in _OF_THE_BODY:
            continue
        value = field.strip(b" \t")  # some servers leave the blanks around a field value (RFC 9110, 5.5)
        if name == b"content-type":
            content_type = value if not content_type else content_type + b", " + value
        elif name == b"content-encoding":
            content_encoding = value if not content_encoding else content_encoding + b", " + value
        elif value.isdigit():
            length = _number(value)
    if content_encoding:
        content_encoding = tokens_spelled_once(content_encoding)
    return spelled_once(content_type), content_encoding, length


def unrepeated_representation(fields: Mapping[bytes, bytes]) -> tuple[bytes, bytes, int]:
    """`representation` of headers with different names, by name: the usual case, without a pass over the headers."""
    content_encoding = fields.get(b"content-encoding")
    return (
        spelled_once(fields.get(b"content-type", b"").strip(b" \t")),
        tokens_spelled_once(content_encoding) if content_encoding else b"",
        _number(fields.get(b"content-length", b"")),
    )


@lru_cache(maxsize=128)
def _number(field: bytes) -> int:
    """A Content-Length; 0 if it is absent or malformed."""
    digits = field.strip(b" \t")
    if not digits.isdigit():
        return 0
    return int(digits) if len(digits) < 20 else 10**20  # int() refuses thousands of digits


def _representation(view: RequestView) -> tuple[bytes, bytes]:
    return representation(view.headers)[:2]


class _Number(str):
    """A JSON number as it was written."""

    __slots__ = ()


def _parse(body: bytes) -> Any:
    try:
        return json.loads(
            body.decode(),
            object_pairs_hook=_object,
            parse_float=_Number,
            parse_int=_Number,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member name is repeated")  # parsers differ in which value they take
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _encode(value: Any) -> bytes:
    return b"".join(_tokens(value))


def _tokens(value: Any) -> Iterator[bytes]:
    """Encodes each value differently: a letter for its type first, then the length of a text or a container."""
    # An explicit stack, because nested generators fail at a smaller depth than the parser.
    stack = [value]
    while stack:
        match stack.pop():
            case _Number() as number:
                yield b"n%d:%b" % (len(number), number.encode())
            case str() as text:
                encoded = text.encode("utf-8", "surrogatepass")
                yield b"s%d:%b" % (len(encoded), encoded)
            case dict() as members:
                yield b"o%d:" % len(members)
                for name in sorted(members, reverse=True):
                    stack += (members[name], name)
            case list() as items:
                yield b"a%d:" % len(items)
                stack += reversed(items)
            case True:
                yield b"t"
            case False:
                yield b"f"
            case None:
                yield b"z"


def _pointer(member: str) -> list[str]:
    if not member.startswith("/"):
        return [member]
    return [step.replace("~1", "/").replace("~0", "~") for step in member[1:].split("/")]


def _remove(value: Any, path: list[str]) -> None:
    *parents, last = path
    for step in parents:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return
    if isinstance(value, dict):
        value.pop(last, None)
