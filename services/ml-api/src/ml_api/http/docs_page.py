"""
GET /docs: the OpenAPI document as a page to read and try, from files in the package and from nowhere else.

The content security policy holds the page to that: no script, style or request of another origin.
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
    # Swagger UI sets styles inline and draws its icons from data: addresses.
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
    """The page and its four files, each by its exact name; all public, for none tells more than the repository."""
    return [_route(*file) for file in _FILES]
