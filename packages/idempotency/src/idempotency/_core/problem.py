"""Problem documents (RFC 9457): what a client is told, and what to do next."""

from __future__ import annotations

import json

from idempotency._core.errors import IdempotencyError
from idempotency._core.outcome import Headers, Response

__all__ = ["PROBLEM_TYPE", "handler_failed", "problem", "problem_type"]

PROBLEM_TYPE = "urn:problem:idempotency:"
"""What every problem's `type` begins with; its slug follows. Stable (SemVer)."""


def problem_type(slug: str) -> str:
    """The `type` of a problem, a URI that stands for it and need not resolve (RFC 9457, 3.1.1)."""
    return PROBLEM_TYPE + slug


def problem(error: IdempotencyError, *, documentation_url: str | None = None) -> Response:
    """The answer for *error*: a document, Retry-After where waiting helps, a link where one is configured."""
    response = _document(error.status, error.slug, error.title, str(error), documentation_url)
    if error.retry_after is not None:
        response.headers.append((b"retry-after", b"%d" % error.retry_after))
    return response


def handler_failed(documentation_url: str | None = None) -> Response:
    """What is recorded for a handler that raised, where the policy keeps exceptions."""
    return _document(
        500,
        "first-run-failed",
        "The first request with this Idempotency-Key failed",
        "the first request with this key ended in an error and will not be run again under it; find out whether it "
        "took effect before you send it with a new key",
        documentation_url,
    )


def _document(status: int, slug: str, title: str, detail: str, documentation_url: str | None) -> Response:
    members = {"type": problem_type(slug), "title": title, "status": status, "detail": detail}
    body = json.dumps(members).encode()
    headers: Headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    if documentation_url is not None:
        headers.append((b"link", f'<{documentation_url}#{slug}>; rel="describedby"'.encode()))
    return Response(status, headers, body)
