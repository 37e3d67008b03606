"""
Errors as problem documents (RFC 9457), with the `detail` member that callers of this service already read.

For a body that breaks the schema, `detail` is a list of {type, loc, msg}, as it always was on this wire;
RFC 9457 asks readers to ignore a member whose type they do not expect. Nothing of the request is echoed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

__all__ = [
    "MEDIA_TYPE",
    "TYPE_PREFIX",
    "Problem",
    "problem_document",
    "problem_response",
    "render_http_exception",
    "render_problem",
]

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:problem:ml-api:"

Detail = str | Sequence[Mapping[str, object]]


class Problem(Exception):
    """
    An answer that is an error, raised wherever the request turned out bad.

    Args:
        slug: The stable last part of the document's `type`.
        detail: What to do next, for the person who reads it; or the list of schema violations.
        headers: Beside the content type.
    """

    def __init__(
        self, status: int, slug: str, detail: Detail, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(slug)
        self.status, self.slug, self.detail, self.headers = status, slug, detail, headers


def problem_document(status: int, slug: str, detail: Detail) -> dict[str, object]:
    """The members of a problem document; `title` is the status's own phrase."""
    return {"type": TYPE_PREFIX + slug, "title": _phrase(status), "status": status, "detail": detail}


def problem_response(
    status: int,
    slug: str,
    detail: Detail,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The document as a response."""
    document = problem_document(status, slug, detail)
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, headers, media_type=MEDIA_TYPE)


async def render_problem(_: Request, error: Exception) -> Response:
    """Answer a `Problem` that a route, or a guard around it, raised."""
    assert isinstance(error, Problem)
    return problem_response(error.status, error.slug, error.detail, error.headers)


async def render_http_exception(_: Request, error: Exception) -> Response:
    """Answer what Starlette itself refuses: 404, and 405 with its `Allow`."""
    assert isinstance(error, HTTPException)
    slug = _phrase(error.status_code).lower().replace(" ", "-")
    return problem_response(error.status_code, slug, error.detail, error.headers)


# RFC 9110's names; Python's own changed with its versions, and a title should not.
_PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}


def _phrase(status: int) -> str:
    return _PHRASES.get(status) or HTTPStatus(status).phrase
