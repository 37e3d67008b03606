"""What a policy makes of response headers, worked out once for each policy and not for each request."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["AGE", "EXPIRES_IN", "Wire", "is_token", "wire"]

AGE: Final = b"idempotency-age"
EXPIRES_IN: Final = b"idempotency-expires-in"
_OURS = frozenset({b"idempotency-replayed", AGE, EXPIRES_IN})


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def is_token(name: str) -> bool:
    """Whether *name* can be the name of a header (RFC 9110, 5.6.2)."""
    return _TOKEN.fullmatch(name) is not None


class Wire(NamedTuple):
    """
    Attributes:
        ours: Names that only this library sets: an application does not speak for us.
        never_recorded: *ours*, and what the policy drops.
        mark: The header line of a replay.
        expires_in: The header line of a recorded first answer.
    """

    ours: frozenset[bytes]
    never_recorded: frozenset[bytes]
    mark: tuple[bytes, bytes]
    expires_in: tuple[bytes, bytes]


def wire(*, replay_header: str, drop_headers: frozenset[bytes], retention: float) -> Wire:
    """See `Wire`."""
    mark = replay_header.lower().encode("ascii")
    ours = _OURS | {mark}
    return Wire(ours, ours | drop_headers, (mark, b"true"), (EXPIRES_IN, b"%d" % retention))
