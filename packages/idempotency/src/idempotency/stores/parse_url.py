"""
Parses the URL of a store, for the stores and for the doctor.

No error raised here quotes any part of a URL, or is chained to an error that does: in a malformed URL, a part of the
password may be anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["StoreURL", "hide_urls", "parse_store_url", "read_options", "refuse"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WITH_SERVERS = re.compile(r"(redis|rediss|valkey|valkeys|postgres|postgresql|mysql|mariadb)\b")
# The values of these options may contain an @ that is not percent-encoded; they are never shown.
_SECRET_OPTIONS = frozenset({"password", "sentinel_password", "sentinel_username", "sslpassword", "user"})
_URLS = re.compile(r"\S+://.*@\S*|\S*(?:://|@)\S*", re.DOTALL)


class StoreURL(NamedTuple):
    """
    Attributes:
        user: The user, or None. All parts except *path* are percent-decoded.
        hosts: Names and ports.
        path: As written, from its slash on.
        query: The options, in order.
    """

    scheme: str
    user: str | None
    password: str | None
    hosts: tuple[tuple[str, int | None], ...]
    path: str
    query: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        """Shows only the scheme."""
        return f"StoreURL({self.scheme}:...)"


def parse_store_url(url: str) -> StoreURL:
    """
    The parts of *url*.

    Raises:
        TypeError: *url* is not a str.
        ValueError: *url* cannot be read, or can be read in several ways. No error quotes any part of it.
    """
    if not isinstance(url, str):
        raise TypeError(f"a store's URL is a str, not a {type(url).__qualname__}")
    parts = _parts(url)
    if parts is None:  # raised here, not in `_parts`: no error that quotes a password may be its cause
        shown = _SCHEME.match(url)
        name = f"this {shown[1].lower()}: URL" if shown else "this store URL"
        raise ValueError(
            f"{name} cannot be read; check its hosts, ports and options, and percent-encode every character of user "
            "and password that is not a letter or a digit (urllib.parse.quote(text, safe=''))"
        )
    return parts


def _parts(url: str) -> StoreURL | None:
    try:
        split = urlsplit(url)
        user_info, _, hosts = split.netloc.rpartition("@")
        user, colon, password = user_info.partition(":")
        query = tuple(parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query)))
        if split.fragment or (_WITH_SERVERS.match(split.scheme) and _is_misplaced(split.path, split.query)):
            return None
        return StoreURL(
            split.scheme,
            unquote(user) or None,
            unquote(password) if colon else None,
            tuple(map(_host, hosts.split(","))) if hosts else (),
            split.path,
            query,
        )
    except ValueError:
        return None


def _is_misplaced(path: str, query: str) -> bool:
    """Whether the password seems to extend into the path or the query, since an @ follows there."""
    options = [option for option in query.split("&") if option.partition("=")[0] not in _SECRET_OPTIONS]
    return "@" in path or any("@" in option for option in options)


def _host(text: str) -> tuple[str, int | None]:
    bracketed = text.startswith("[")  # an IPv6 address
    host, _, port = text[1:].partition("]") if bracketed else text.partition(":")
    port = port.removeprefix(":") if bracketed else port
    if port and not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65_535):
        raise ValueError
    return unquote(host), int(port) if port else None


def read_options(parts: StoreURL, readers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The options in the query of *parts*; a value that cannot be read is not quoted."""
    options: dict[str, Any] = {}
    unreadable = None
    for name, value in parts.query:
        if name not in readers:
            known = ", ".join(sorted(readers))
            raise ValueError(f"unknown option {name!r} for a {parts.scheme}: store; there are {known}")
        try:
            options[name] = readers[name](value)
        except ValueError:
            unreadable = name
    if unreadable is not None:  # raised here: the reader's own error quotes the value
        raise ValueError(f"option {unreadable!r} of a {parts.scheme}: store has a value that cannot be read")
    return options


def refuse(parts: StoreURL, reason: str) -> NoReturn:
    """Raise `ValueError`: a store of this scheme *reason*."""
    raise ValueError(f"a {parts.scheme}: store {reason}")


def hide_urls(text: str) -> str:
    """
    *text* without anything that may be a URL with a password; for messages that quote the command line.

    >>> hide_urls("unrecognized arguments: redis://user:a b@host/0")
    'unrecognized arguments: [not shown]'
    """
    return _URLS.sub("[not shown]", text)
