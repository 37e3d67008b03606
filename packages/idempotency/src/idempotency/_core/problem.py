"""Builds problem documents (RFC 9457), which tell a client what went wrong and what to do next."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from idempotency._core.errors import IdempotencyError
from idempotency._core.outcome import Headers, Response

__all__ = ["PROBLEM_TYPE", "Problem", "Render", "handler_failed", "problem", "problem_type"]

PROBLEM_TYPE = "urn:problem:idempotency:"
"""What every problem's `type` begins with; its slug follows. Stable (SemVer)."""


class Problem(NamedTuple):
    """
    A refusal, as `Policy.render` gets it.

    Attributes:
        slug: The stable name of the problem, such as `in-progress`; `type` ends with it.
        title: A short, stable summary.
        status: The HTTP status that is sent; rendering does not change it.
        detail: What happened to this request, and what to do next.
        retry_after: Seconds to wait before a retry, or None; `Retry-After` is sent whatever `render` does with it.
        type: The URI that identifies the kind of problem (RFC 9457, 3.1.1).
    """

    slug: str
    title: str
    status: int
    detail: str
    retry_after: int | None
    type: str


Render: TypeAlias = Callable[[Problem], tuple[str, bytes]]
"""Makes the body of a refusal: its Content-Type, and its bytes."""


def problem_type(slug: str) -> str:
    """The `type` of a problem: a URI that identifies it and need not resolve (RFC 9457, 3.1.1)."""
    return PROBLEM_TYPE + slug


def problem(
    error: IdempotencyError, *, documentation_url: str | None = None, render: Render | None = None
) -> Response:
    """
    The answer for *error*: a problem document, Retry-After if waiting helps, and a link if one is configured.

    Raises:
        Exception: *render* raised; `TypeError` if it returned anything but a str and bytes.
    """
    return _answer(
        _problem(error.slug, error.title, error.status, str(error), error.retry_after),
        documentation_url,
        render,
    )


def handler_failed(documentation_url: str | None = None, render: Render | None = None) -> Response:
    """The response recorded for a handler that raised, if the policy keeps exceptions. Raises as `problem` does."""
    first_run_failed = _problem(
        "first-run-failed",
        "The first request with this Idempotency-Key failed",
        500,
        "the first request with this key ended in an error and will not be run again under it; find out whether it "
        "took effect before you send it with a new key",
        None,
    )
    return _answer(first_run_failed, documentation_url, render)


def _problem(slug: str, title: str, status: int, detail: str, retry_after: int | None) -> Problem:
    return Problem(slug, title, status, detail, retry_after, problem_type(slug))


def _answer(found: Problem, documentation_url: str | None, render: Render | None) -> Response:
    made: tuple[Any, Any] = (_document if render is None else render)(found)
    media_type, body = made
    if not isinstance(media_type, str) or not isinstance(body, bytes):
        raise TypeError("render must return a Content-Type and the bytes of a body")
    headers: Headers = [
        (b"content-type", media_type.encode("ascii")),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    if documentation_url is not None:
        headers.append((b"link", f'<{documentation_url}#{found.slug}>; rel="describedby"'.encode()))
    if found.retry_after is not None:
        headers.append((b"retry-after", b"%d" % found.retry_after))
    return Response(found.status, headers, body)


def _document(found: Problem) -> tuple[str, bytes]:
    members = {
        "type": found.type,
        "title": found.title,
        "status": found.status,
        "detail": found.detail,
    }
    return "application/problem+json", json.dumps(members).encode()
