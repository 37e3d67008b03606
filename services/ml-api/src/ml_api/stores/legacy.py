"""
Converts records that the older service left in Redis: one JSON object {status_code, headers, body} under the same key.

They have no fingerprint, so they are replayed for any request with the key, as the older service did. One hour after
the change they have expired. The result is an outcome in the idempotency library's public record format.
"""

from __future__ import annotations

import json

__all__ = ["adopt"]

# The older service stored all headers that its framework sent. These would contradict the replayed response.
_NOT_REPLAYED = frozenset(
    {"content-length", "transfer-encoding", "connection", "date", "server", "set-cookie"}
)


def adopt(record: bytes) -> bytes | None:
    """Return *record* as an outcome, or None if the older service did not write it."""
    try:
        members = json.loads(record)
        status, headers, body = members["status_code"], members["headers"], members["body"]
        pairs = [[str(name).lower(), str(value)] for name, value in headers.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if type(status) is not int or not 200 <= status < 300:
        return None  # the older service recorded only 2xx
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
