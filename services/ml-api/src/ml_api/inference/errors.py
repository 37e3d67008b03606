"""
Adds the member `error` to errors under /v2, where clients of the Open Inference Protocol look for the message.

Authentication, limits and the idempotency middleware do not know that protocol. If a client found no `error` in their
answers, it would report an error of its own instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml_api.http.problems import MEDIA_TYPE

__all__ = ["InferenceErrors"]


class InferenceErrors:
    """Adds to every problem document under /v2 its `detail` as the text `error`. Place it outside the other layers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not f"{_route_path(scope)}/".startswith("/v2/"):
            return await self.app(scope, receive, send)
        start: Message | None = None
        document = b""

        async def send_with_error(message: Message) -> None:
            nonlocal start, document
            if message["type"] == "http.response.start" and _is_problem(message):
                start = message  # sent later, because the content-length changes
            elif start is None:
                await send(message)
            else:
                document += message.get("body", b"")
                if not message.get("more_body", False):
                    body = _with_error(document)
                    headers = MutableHeaders(raw=list(start["headers"]))
                    headers["content-length"] = str(len(body))
                    await send({**start, "headers": headers.raw})
                    await send({"type": "http.response.body", "body": body})

        return await self.app(scope, receive, send_with_error)


def _route_path(scope: Scope) -> str:
    """Return the path within this application: without the prefix of a mount or a proxy."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "").rstrip("/")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


def _is_problem(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(MEDIA_TYPE.encode())
        for name, value in start["headers"]
    )


def _with_error(document: bytes) -> bytes:
    problem = json.loads(document)
    return json.dumps(problem | {"error": _text(problem)}, ensure_ascii=False, separators=(",", ":")).encode()


def _text(problem: Mapping[str, Any]) -> str:
    detail = problem.get("detail", problem["title"])
    if isinstance(detail, str):
        return detail
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in detail)
