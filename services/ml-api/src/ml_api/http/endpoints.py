"""What endpoints share: their type, checks of media type and body, and the endpoint of the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from ml_api.http.problems import Problem

__all__ = ["Endpoint", "openapi_endpoint", "read_model", "require_json"]

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
"""An async function that answers a request, for a Starlette route."""

_MAX_VIOLATIONS = 20  # most violations in one answer

ModelT = TypeVar("ModelT", bound=BaseModel)


def openapi_endpoint(document: Callable[[], dict[str, Any]]) -> Endpoint:
    """Return the endpoint of GET /openapi.json; *document* is called once, at the first request."""

    @cache
    def rendered() -> bytes:
        return json.dumps(document(), separators=(",", ":")).encode()

    async def openapi(_: Request) -> Response:
        return Response(rendered(), media_type="application/json")

    return openapi


_NOT_A_NUMBER = re.compile(rb"[\[,:]\s*-?(?:NaN|Infinity)\b")  # as Python and NumPy clients write them


def require_json(request: Request) -> None:
    """Refuse (415) a body whose headers say that it is not plain JSON; without such headers it counts as JSON."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise Problem(415, "unsupported-media-type", "Send the body as application/json")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(415, "unsupported-media-type", "Send the body uncompressed")


def read_model(kind: type[ModelT], body: bytes) -> ModelT:
    """
    Read a JSON body as a pydantic model.

    Raises:
        Problem: 422 with the first `_MAX_VIOLATIONS` violations; it contains nothing of the body.
    """
    try:
        return kind.model_validate(msgspec.json.decode(body))
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False, include_input=False)[:_MAX_VIOLATIONS]
        detail = [{"type": item["type"], "loc": ["body", *item["loc"]], "msg": item["msg"]} for item in items]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        if _NOT_A_NUMBER.search(body):
            reason += "; JSON has no NaN and no Infinity: send null for a missing value"
        detail = [{"type": "json_invalid", "loc": ["body"], "msg": f"Invalid JSON: {reason}"}]
    raise Problem(422, "malformed-body", detail)
