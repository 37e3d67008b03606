"""
Records that the older service left in Redis: one JSON object {status_code, headers, body} under the same key.

They carry no fingerprint, so they replay to whoever presents the key, as they always did; within an hour of
the change they have expired. The result is an outcome in the idempotency library's public record format.
"""

from __future__ import annotations

import json

__all__ = ["adopt"]

# The older service stored what its framework sent; these would contradict the message that carries the
# replay.
_NOT_REPLAYED = frozenset(
    {"content-length", "transfer-encoding", "connection", "date", "server", "set-cookie"}
)


def adopt(record: bytes) -> bytes | None:
    """The outcome that *record* stands for, or None if the older service did not write it."""
    try:
        members = json.loads(record)
        status, headers, body = members["status_code"], members["headers"], members["body"]
        pairs = [[str(name).lower(), str(value)] for name, value in headers.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if type(status) is not int or not 200 <= status < 300:
        return None  # it kept nothing else
    outcome = {
        "format": 1,
        "outcome": "response",
        "status_code": status,
        "headers": [pair for pair in pairs if pair[0] not in _NOT_REPLAYED],
        "body": body
        if isinstance(body, str)
        else json.dumps(body, ensure_ascii=False, separators=(",", ":")),
    }
    return json.dumps(outcome, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
