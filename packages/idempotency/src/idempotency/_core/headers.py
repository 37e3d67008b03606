"""Names the response headers that are not recorded, and computes the rules of a policy for headers, once."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["AGE", "EXPIRES_IN", "FIRST_CALLER_ONLY", "HOP_BY_HOP", "HeaderRules", "header_rules", "is_token"]

AGE: Final = b"idempotency-age"
EXPIRES_IN: Final = b"idempotency-expires-in"
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"date",  # not hop-by-hop, but it says when *this* message was made (RFC 9110, 6.6.1)
    }
)
"""Headers that belong to one connection or one message (RFC 9110, 7.6.1) and are never recorded."""

FIRST_CALLER_ONLY: Final = frozenset({b"set-cookie", b"www-authenticate", b"clear-site-data"})
"""Headers meant for the first caller only; not recorded unless a policy says otherwise."""

_OURS = frozenset({b"idempotency-replayed", AGE, EXPIRES_IN})


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def is_token(name: str) -> bool:
    """Whether *name* can be the name of a header (RFC 9110, 5.6.2)."""
    return _TOKEN.fullmatch(name) is not None


class HeaderRules(NamedTuple):
    """
    Attributes:
        ours: Names that only this library may set; removed from an application's answer.
        never_recorded: *ours*, and the names that the policy drops.
        forbidden: Names in *never_recorded* that earlier policies hardly recorded either: a record that has one is
            corrupt.
        mark: The header that marks a replay.
        expires_in: The `Idempotency-Expires-In` header of a first answer that was recorded.
    """

    ours: frozenset[bytes]
    never_recorded: frozenset[bytes]
    forbidden: frozenset[bytes]
    mark: tuple[bytes, bytes]
    expires_in: tuple[bytes, bytes]


def header_rules(*, replay_header: str, drop_headers: frozenset[bytes], retention: float) -> HeaderRules:
    """See `HeaderRules`."""
    mark = replay_header.lower().encode("ascii")
    ours = _OURS | {mark}
    forbidden = _OURS | (drop_headers & (HOP_BY_HOP | FIRST_CALLER_ONLY))
    return HeaderRules(ours, ours | drop_headers, forbidden, (mark, b"true"), (EXPIRES_IN, b"%d" % retention))
