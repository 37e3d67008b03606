"""
Copies the CORS headers of the application's answer to the answer that is sent instead.

A framework's CORS extension adds them to every answer of the application, but a late claim replaces that answer by a
replay or a refusal. A browser hides an answer that lacks these headers, or has those of the first caller's origin.
"""

from __future__ import annotations

from idempotency._core.outcome import Headers

__all__ = ["with_origin_of"]


def with_origin_of(own: Headers, headers: Headers) -> Headers:
    """*headers* with the CORS headers of *own*, the application's headers, if it has any."""
    for_origin = [pair for pair in own if pair[0].lower().startswith(b"access-control-")]
    if not for_origin:
        return headers
    for_origin += [pair for pair in own if pair[0].lower() == b"vary"]
    names = {name.lower() for name, _ in for_origin}
    return [pair for pair in headers if pair[0].lower() not in names] + for_origin
