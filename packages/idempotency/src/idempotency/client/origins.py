"""Decides where a keyed request may be redirected: to its own origin, and to the origins its caller trusts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

__all__ = ["SAFE_HEADERS", "Origin", "default_port", "is_allowed", "origin_of", "read_origins"]

_PORTS: Final = {"http": 80, "https": 443}

SAFE_HEADERS: Final = frozenset(
    {
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "connection",
        "host",
        "user-agent",
    }
)
"""The headers that a request redirected to another origin keeps: none that identifies the sender, and no key."""


class Origin(NamedTuple):
    """Scheme, host and port (RFC 6454, 4)."""

    scheme: str
    host: str
    port: int | None


def default_port(scheme: str) -> int | None:
    """The default port of *scheme*."""
    return _PORTS.get(scheme)


def origin_of(url: Any) -> Origin:
    """The origin of *url*, a URL of httpx or yarl; the host is in ASCII, as DNS has it (RFC 5891, 4.4)."""
    host = url.raw_host
    ascii_host = host.decode("ascii") if isinstance(host, bytes) else host
    return Origin(url.scheme, ascii_host, url.port or _PORTS.get(url.scheme))


def read_origins(texts: Collection[str]) -> frozenset[Origin]:
    """
    The origins that *texts* name, such as `https://api.example:8443`.

    Raises:
        ValueError: One of them is not an origin.
        TypeError: *texts* is a str.
    """
    if isinstance(texts, str):
        raise TypeError("trusted_origins must be a collection of origins, not one text")
    found = set()
    for text in texts:
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if (
            not parts.scheme
            or not parts.hostname
            or parts.path not in {"", "/"}
            or parts.query
            or "@" in parts.netloc
            or not text.isascii()
        ):
            raise ValueError(
                "each of trusted_origins must be a scheme and a host in ASCII, such as https://api.example:8443 "
                "or https://xn--mller-kva.example"
            )
        found.add(Origin(parts.scheme, parts.hostname, port or _PORTS.get(parts.scheme)))
    return frozenset(found)


def is_allowed(first: Origin, next_one: Origin, trusted: Collection[Origin]) -> bool:
    """
    Whether a request for *first* may be redirected to *next_one*: the same origin, a trusted one, or the same host
    over TLS.

    >>> first = Origin("http", "a.example", 80)
    >>> is_allowed(first, Origin("https", "a.example", 443), ()), is_allowed(first, Origin("http", "b.example", 80), ())
    (True, False)
    """
    upgraded = first == Origin("http", next_one.host, 80) and next_one == Origin("https", first.host, 443)
    return first == next_one or upgraded or next_one in trusted
