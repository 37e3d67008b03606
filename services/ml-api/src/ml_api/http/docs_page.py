"""
GET /docs: the OpenAPI document in Swagger UI, with only files of this package.

The content security policy forbids scripts, styles and requests of other origins.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

__all__ = ["docs_routes"]

_ASSETS = Path(str(files("ml_api"))) / "http" / "assets"
_KEPT = {"Cache-Control": "max-age=3600"}
_FILES: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("/docs", "docs.html", "text/html", {}),
    ("/docs/docs.js", "docs.js", "text/javascript", _KEPT),
    ("/docs/swagger-ui-bundle.js", "swagger-ui/swagger-ui-bundle.js", "text/javascript", _KEPT),
    ("/docs/swagger-ui.css", "swagger-ui/swagger-ui.css", "text/css", _KEPT),
    ("/docs/favicon-32x32.png", "swagger-ui/favicon-32x32.png", "image/png", _KEPT),
)
_HEADERS = {
    # Swagger UI sets inline styles, and has icons in data: URLs.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def _route(path: str, file: str, media_type: str, headers: dict[str, str]) -> Route:
    async def answer(_: Request) -> Response:
        return FileResponse(_ASSETS / file, media_type=media_type, headers=_HEADERS | headers)

    return Route(path, answer)


def docs_routes() -> list[Route]:
    """Return the routes of the page and its four files. They need no API key, because they contain no secret."""
    return [_route(*file) for file in _FILES]
