"""No path is redirected: a redirect would name the Host of the request, and clients would send key and body there."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from raw_http import Client, head

from ml_api.app import create_app
from ml_api.settings import Settings

PATHS = [
    "/predict/",
    "/health/",
    "/ready/",
    "/metrics/",
    "/docs/",
    "/openapi.json/",
    "/v2/",
    "/v2/health/live/",
    "/v2/models/btc-eth/",
    "/v2/models/btc-eth/infer/",
    "/admin/model/",
    "//predict",
    "//evil.example/predict/",
    "/",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_with_a_superfluous_slash_is_not_redirected(
    client: Client, wire: Any, method: str, path: str
) -> None:
    lines = (f"X-API-Key: {wire.api_key}", "Content-Type: application/json", "Content-Length: 0")
    answer = client.send(head(method, path, *lines, host="evil.example")).answer()
    assert answer.status in {404, 405}
    assert answer.header("location") is None
    assert b"evil.example" not in answer.body


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("root_path", ["", "/ml"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_path_with_a_superfluous_slash_is_not_redirected_under_a_root_path(
    root_path: str, path: str, tmp_path: Any
) -> None:
    settings = Settings.model_validate(
        {"api_key": "a-key-of-some-length", "admin_key": "an-other-key-of-some-length"}
        | {"store_path": tmp_path / "store.sqlite3"}
    )
    app = create_app(settings)
    transport = httpx.ASGITransport(app, root_path=root_path)
    async with (
        app.router.lifespan_context(app),  # closes the store
        httpx.AsyncClient(transport=transport, base_url="http://evil.example") as client,
    ):
        for method in ("GET", "POST"):
            headers = {"X-API-Key": "a-key-of-some-length"}
            answer = await client.request(method, root_path + path, headers=headers)
            assert not answer.has_redirect_location
            assert "evil.example" not in answer.text
