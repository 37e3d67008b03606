"""
Takes the headers for a browser's origin (CORS) from the answer that an application gives, for the one sent instead.

A framework's extension adds them to every answer; a late claim drops that answer for a replay or a refusal. A browser
hides an answer without these headers, or with those of the origin that asked first.
"""

from __future__ import annotations

from idempotency._core.outcome import Headers

__all__ = ["with_origin_of"]


def with_origin_of(own: Headers, headers: Headers) -> Headers:
    """*headers*, with those for the origin from *own*, the application's, if it has any."""
    for_origin = [pair for pair in own if pair[0].lower().startswith(b"access-control-")]
    if not for_origin:
        return headers
    for_origin += [pair for pair in own if pair[0].lower() == b"vary"]
    names = {name.lower() for name, _ in for_origin}
    return [pair for pair in headers if pair[0].lower() not in names] + for_origin
