"""The protocol of endpoints, their requirements on a body, and the endpoint of the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from ml_api.http.problems import Problem

__all__ = ["Endpoint", "openapi_endpoint", "read_model", "require_json", "route_path"]

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
"""What Starlette calls to answer a request."""

_MAX_VIOLATIONS = 20  # that an answer names

ModelT = TypeVar("ModelT", bound=BaseModel)


def openapi_endpoint(document: Callable[[], dict[str, Any]]) -> Endpoint:
    """The endpoint of GET /openapi.json; *document* is asked once, when somebody first wants to see it."""

    @cache
    def rendered() -> bytes:
        return json.dumps(document(), separators=(",", ":")).encode()

    async def openapi(_: Request) -> Response:
        return Response(rendered(), media_type="application/json")

    return openapi


def require_json(request: Request) -> None:
    """Refuse (415) a body that says it is no plain JSON; one that says nothing is read as JSON."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise Problem(415, "unsupported-media-type", "Send the body as application/json")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(415, "unsupported-media-type", "Send the body uncompressed")


def read_model(kind: type[ModelT], body: bytes) -> ModelT:
    """
    Read JSON as a model.

    Raises:
        Problem: 422 with the first `_MAX_VIOLATIONS` violations; nothing of the body is echoed.
    """
    try:
        return kind.model_validate(msgspec.json.decode(body))
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False, include_input=False)[:_MAX_VIOLATIONS]
        detail = [{"type": item["type"], "loc": ["body", *item["loc"]], "msg": item["msg"]} for item in items]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        detail = [{"type": "json_invalid", "loc": ["body"], "msg": f"Invalid JSON: {reason}"}]
    raise Problem(422, "malformed-body", detail)


def route_path(scope: Scope) -> str:
    """The path within this application: without the prefix that it is mounted under or that a proxy adds."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "").rstrip("/")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path
