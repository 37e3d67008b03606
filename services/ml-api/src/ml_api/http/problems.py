"""
Errors as problem documents (RFC 9457), with the `detail` member that callers of the older service read.

For a body that breaks the schema, `detail` is a list of {type, loc, msg}, as in the older service. RFC 9457 tells
clients to ignore a member of an unexpected type. An error contains nothing of the request.
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
    An error answer, raised where the request is found to be wrong.

    Args:
        slug: The stable last part of the document's `type`.
        detail: What is wrong and what to do, for people; or the list of schema violations.
        headers: Further headers of the response.
    """

    def __init__(
        self, status: int, slug: str, detail: Detail, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(slug)
        self.status, self.slug, self.detail, self.headers = status, slug, detail, headers


def problem_document(status: int, slug: str, detail: Detail) -> dict[str, object]:
    """Return the members of a problem document; `title` is the reason phrase of *status*."""
    return {"type": TYPE_PREFIX + slug, "title": _phrase(status), "status": status, "detail": detail}


def problem_response(
    status: int,
    slug: str,
    detail: Detail,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a problem document as a response."""
    document = problem_document(status, slug, detail)
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, headers, media_type=MEDIA_TYPE)


async def render_problem(_: Request, error: Exception) -> Response:
    """Return the response for a `Problem` that was raised."""
    assert isinstance(error, Problem)
    return problem_response(error.status, error.slug, error.detail, error.headers)


async def render_http_exception(_: Request, error: Exception) -> Response:
    """Return the response for an error of Starlette: 404, or 405 with `Allow`."""
    assert isinstance(error, HTTPException)
    slug = _phrase(error.status_code).lower().replace(" ", "-")
    return problem_response(error.status_code, slug, error.detail, error.headers)


# The phrases of RFC 9110. Python's differ between its versions, and a title should be stable.
_PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}


def _phrase(status: int) -> str:
    return _PHRASES.get(status) or HTTPStatus(status).phrase
