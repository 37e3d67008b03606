"""Reads a request's query, its form, and the path where the dashboard is mounted."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs

from starlette.requests import Request

__all__ = ["MAX_FORM_BYTES", "fields", "form", "is_from_elsewhere", "root"]

MAX_FORM_BYTES: Final = 16_384


def root(request: Request) -> str:
    """The path under which the dashboard is mounted, without a slash at its end."""
    path: str = request.scope.get("root_path", "")
    return path.rstrip("/")


def fields(encoded: str) -> dict[str, str]:
    """The first value of each field; bytes that are not UTF-8 become surrogates, as in the names of records."""
    try:
        found = parse_qs(encoded, errors="surrogateescape", max_num_fields=10)
    except ValueError:  # more fields than any form of the dashboard has
        return {}
    return {name: values[0] for name, values in found.items()}


async def form(request: Request) -> dict[str, str]:
    """The fields of a form; none if it is too long or has another content type."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        return {}
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return {}
    return fields(body.decode("ascii", "replace"))


def is_from_elsewhere(request: Request) -> bool:
    """Whether the browser says that another site caused the request (Fetch Metadata); "none" is a typed address."""
    return request.headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}
