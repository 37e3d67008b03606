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
_FILES = {
    "docs.js": (_ASSETS / "docs.js", "text/javascript"),
    "swagger-ui-bundle.js": (_ASSETS / "swagger-ui" / "swagger-ui-bundle.js", "text/javascript"),
    "swagger-ui.css": (_ASSETS / "swagger-ui" / "swagger-ui.css", "text/css"),
    "favicon-32x32.png": (_ASSETS / "swagger-ui" / "favicon-32x32.png", "image/png"),
}
_HEADERS = {
    # Swagger UI sets styles inline and draws its icons from data: addresses.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


async def _page(_: Request) -> Response:
    return FileResponse(_ASSETS / "docs.html", media_type="text/html", headers=_HEADERS)


def _file(name: str) -> Route:
    path, media_type = _FILES[name]

    async def file(_: Request) -> Response:
        return FileResponse(path, media_type=media_type, headers=_HEADERS | {"Cache-Control": "max-age=3600"})

    return Route(f"/docs/{name}", file, name=f"docs/{name}")


def docs_routes() -> list[Route]:
    """The page and its four files, each by its exact name; all public, for none tells more than the repository."""
    return [Route("/docs", _page), *map(_file, _FILES)]
