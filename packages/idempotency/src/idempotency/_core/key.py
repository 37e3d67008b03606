"""
Parses the Idempotency-Key header strictly, and derives the name of its record in a store.

draft-ietf-httpapi-idempotency-key-header-07, 2.1: the value is an Item Structured Header whose bare item is a String
(RFC 9651, 3.3.3). Most clients send the text without its quotes, so that form is read too unless *strict*; `"k"` and
`k` are one key. Any other value is an error; it never counts as a missing key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from urllib.parse import quote

from idempotency._core.errors import InvalidKey
from idempotency._core.types import StorageKey

__all__ = ["key_lines", "parse_key", "parse_key_fields", "parse_line", "storage_key"]

# Visible ASCII without the characters of a string, a list or parameters: " , ; \
_is_bare = re.compile(rb"[!#-+\--:<-\[\]-~]+").fullmatch
# sf-string (RFC 9651, 3.3.3); a backslash escapes only a quote or a backslash.
_QUOTED = re.compile(rb'"((?:[ !#-\[\]-~]|\\["\\])*)"')
# parameters (RFC 9651, 3.1.2), with any bare item as a value (3.3); parsed only to refuse anything else after the key.
_PARAMETERS = re.compile(
    rb"(?:; *[a-z*][a-z0-9_.*-]*"
    rb'(?:=(?:-?[0-9]{1,15}(?:\.[0-9]{1,3})?|"(?:[ !#-\[\]-~]|\\["\\])*"|[A-Za-z*][!#$%&\'*+.^_`|~0-9A-Za-z:/-]*'
    rb'|:[A-Za-z0-9+/=]*:|\?[01]|@-?[0-9]{1,15}|%"(?:[ !#$&-~]|%[0-9a-f]{2})*"))?)*'
)
_UNESCAPE = re.compile(rb"\\(.)")
_LONGEST = 800  # characters of each part of a name: room for 255, each percent-encoded
_is_safe = re.compile(r"[A-Za-z0-9._~-]{0,800}").fullmatch


def parse_key(
    values: Sequence[bytes], *, max_chars: int = 255, strict: bool = False, header: str = "Idempotency-Key"
) -> str | None:
    r"""
    The one key in the Idempotency-Key field lines of a request, or None where there is no such line.

    Args:
        values: The value of every Idempotency-Key field line, in order.
        max_chars: The longest key, in characters after unquoting.
        strict: Refuse the form without quotes.
        header: The name of the field, for error messages.
    Raises:
        InvalidKey: More than one line, a list, empty or blank, too long, not ASCII, or not a String.

    >>> parse_key([b'"8e03978e-40d5"']), parse_key([b"8e03978e-40d5"]), parse_key([])
    ('8e03978e-40d5', '8e03978e-40d5', None)
    >>> parse_key([b'"open'])
    Traceback (most recent call last):
        ...
    idempotency._core.errors.InvalidKey: the value is neither a quoted string nor a plain token; ...
    """
    if not values:
        return None
    if len(values) > 1:
        raise InvalidKey(f"there is more than one {header} header; send exactly one")
    return parse_line(values[0], max_chars, strict, header)


def parse_line(line: bytes, max_chars: int, strict: bool, header: str) -> str:
    """The key in the only Idempotency-Key field line of a request; see `parse_key`."""
    value = line.strip(b" \t")
    if not value:
        raise InvalidKey(f"the {header} header is empty; send a new UUID for each new operation")
    if _is_bare(value):
        if strict:
            raise InvalidKey(
                'the value must be a quoted string (RFC 9651, 3.3.3): send "..." in double quotes'
            )
        key = value.decode()
    else:
        key = _unquote(value)
    if len(key) > max_chars:
        raise InvalidKey(f"the key has {len(key)} characters; at most {max_chars} are accepted")
    return key


def key_lines(
    headers: Iterable[tuple[bytes, bytes]], key_fields: Iterable[tuple[str, bytes]]
) -> list[tuple[str, list[bytes]]]:
    """The `fields` of `parse_key_fields`: of each header in *key_fields* that is present, its name and its lines."""
    return [
        (header, lines)
        for header, wanted in key_fields
        if (lines := [value for name, value in headers if name == wanted])
    ]


def parse_key_fields(
    fields: Sequence[tuple[str, Sequence[bytes]]], *, max_chars: int = 255, strict: bool = False
) -> str | None:
    """
    The one key of a request that may carry it in headers of several names, or None where it has none.

    Args:
        fields: The headers' names, each with the values of its field lines.
    Raises:
        InvalidKey: See `parse_key`; or two headers hold different keys: a retry with only one of them might count as
            another operation.

    >>> parse_key_fields([("webhook-id", [b"msg_1"]), ("svix-id", [b"msg_1"])])
    'msg_1'
    """
    found: str | None = None
    named = ""
    for header, values in fields:
        key = parse_key(values, max_chars=max_chars, strict=strict, header=header)
        if found is None:
            found, named = key, header
        elif key is not None and key != found:
            raise InvalidKey(f"{named} and {header} hold two different keys; send one key")
    return found


def _unquote(value: bytes) -> str:
    quoted = _QUOTED.match(value)
    if quoted is None:
        raise InvalidKey(
            "the value is neither a quoted string nor a plain token; send one key in double quotes"
        )
    if not _PARAMETERS.fullmatch(value, quoted.end()):
        raise InvalidKey("something follows the quoted string; send one key and nothing else")
    key = _UNESCAPE.sub(rb"\1", quoted[1]).decode("ascii")
    if not key.strip():
        raise InvalidKey("the key is blank; send a new UUID for each new operation")
    return key


def storage_key(tenant: str, key: str) -> StorageKey:
    """
    The name of a record: `key`, or `tenant:key` if there is a tenant, each percent-encoded.

    Both parts encode all but unreserved characters (RFC 3986, 2.3). So no two pairs share a name, a name contains no
    control character, and a client cannot make a Redis hash tag with braces. A part longer than 800 characters, such
    as a whole token as a tenant, is replaced by its SHA-256, because databases limit what they index.

    Args:
        tenant: The principal whose key it is; "" if all callers are the same principal.

    >>> storage_key("", "k-1"), storage_key("a:b", "x/{y}")
    ('k-1', 'a%3Ab:x%2F%7By%7D')
    """
    name = key if _is_safe(key) else _encoded(key)
    if not tenant:
        return StorageKey(name)
    return StorageKey(f"{tenant if _is_safe(tenant) else _encoded(tenant)}:{name}")


def _encoded(part: str) -> str:
    text = quote(part, safe="")
    # Encoded text contains no equals sign, so no key or tenant can have this name.
    return text if len(text) <= _LONGEST else f"sha256={sha256(text.encode()).hexdigest()}"
