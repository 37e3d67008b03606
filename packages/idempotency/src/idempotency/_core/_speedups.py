"""
Decodes a recorded response by msgspec, in a third of the time; `outcome.use_msgspec` switches it on.

It decodes only responses that this version writes. Everything else, errors included, is left to
`idempotency._core.outcome`, so that the meaning of an outcome never depends on what is installed.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["decode_response"]


class _Members(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    format: Literal[1]
    outcome: Literal["response"]
    status_code: Annotated[int, msgspec.Meta(ge=100, le=999)]
    headers: list[tuple[str, str]]
    body: str
    traceparent: str | None = None


_decode = msgspec.json.Decoder(_Members).decode


def decode_response(outcome: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes, str | None] | None:
    """Status, headers, body and trace context of a response; None for anything else."""
    if not (outcome.startswith(b'{"format":1,"outcome":"response",') and outcome.endswith(b"}")):
        return None
    try:
        members = _decode(outcome)
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in members.headers]
        return members.status_code, headers, members.body.encode(), members.traceparent
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
