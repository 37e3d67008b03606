"""The OpenAPI document: valid, complete, and confirmed by requests generated from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from openapi_spec_validator import validate
from starlette.applications import Starlette
from starlette.routing import Route

from idempotency.stores.memory import MemoryStore
from ml_api.__main__ import main
from ml_api.app import create_app
from ml_api.http.failed_attempts import FailedAttempts
from ml_api.predict.contract import parse_request
from ml_api.settings import Settings
from ml_api.stores.backend import Backend

Service = Callable[..., httpx.AsyncClient]

API_KEY = "the-api-key-of-the-tests"


def application() -> Starlette:
    chosen = Settings.model_validate({"api_key": API_KEY, "store_path": "unused"})
    store = MemoryStore()
    return create_app(chosen, backend=Backend("sqlite", store))


@pytest.mark.anyio
async def test_the_served_openapi_document_is_valid_and_equals_the_printed_one(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    async with service() as client:
        served = (await client.get("/openapi.json")).json()
    assert main(["openapi"]) == 0
    assert json.loads(capsys.readouterr().out) == served
    validate(served)
    assert served["openapi"] == "3.1.0"


@pytest.mark.anyio
async def test_the_openapi_document_lists_exactly_the_routes(service: Service) -> None:
    async with service() as client:
        document = (await client.get("/openapi.json")).json()
    routes = {route.path for route in application().routes if isinstance(route, Route)}
    assert set(document["paths"]) == {path for path in routes if not path.startswith(("/docs", "/openapi"))}


@pytest.mark.anyio
@pytest.mark.parametrize("admin_key", [None, "an-admin-key-of-the-tests"])
async def test_the_admin_route_is_documented_only_with_an_admin_key(
    service: Service, admin_key: str | None
) -> None:
    async with service(admin_key=admin_key) as client:
        document = (await client.get("/openapi.json")).json()
    validate(document)
    assert ("AdminKey" in document["components"]["securitySchemes"]) == (admin_key is not None)
    assert ("/admin/model" in document["paths"]) == (admin_key is not None)


@pytest.mark.anyio
async def test_the_example_of_the_openapi_document_is_a_valid_request(service: Service) -> None:
    async with service() as client:
        document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert parse_request(json.dumps(content["example"]).encode()).agent_id == "demo-agent"


@pytest.mark.anyio
async def test_predict_documents_the_idempotency_key_and_every_status(service: Service) -> None:
    async with service(rate_limit=100) as client:
        predict = (await client.get("/openapi.json")).json()["paths"]["/predict"]["post"]
    assert [parameter["name"] for parameter in predict["parameters"]] == ["Idempotency-Key"]
    assert {"400", "401", "408", "409", "413", "415", "422", "429", "500", "503", "504"} <= set(
        predict["responses"]
    )
    assert "Idempotency-Replayed" in predict["responses"]["200"]["headers"]


with pytest.MonkeyPatch.context() as patch:
    # Hundreds of these requests have no valid key and would be delayed; test_failed_attempts.py tests the delays.
    patch.setattr("ml_api.app.FailedAttempts", partial(FailedAttempts, delay=0.0))
    document = schemathesis.openapi.from_asgi("/openapi.json", application())
# The check of unsupported methods is left out: an unknown method without a key is 401, not 405.
checks = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.CHECKS.get_one("status_code_conformance"),
    schemathesis.checks.CHECKS.get_one("content_type_conformance"),
    schemathesis.checks.CHECKS.get_one("response_schema_conformance"),
    schemathesis.checks.CHECKS.get_one("response_headers_conformance"),
    schemathesis.checks.CHECKS.get_one("negative_data_rejection"),
]


@document.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_get_documented_answers(case: schemathesis.Case) -> None:
    case.call_and_validate(headers={"X-API-Key": API_KEY}, checks=checks)


@pytest.mark.anyio
async def test_the_docs_page_loads_only_its_own_files(service: Service) -> None:
    async with service() as client:
        page = await client.get("/docs")
        files = [
            await client.get(f"/docs/{name}")
            for name in ("docs.js", "swagger-ui-bundle.js", "swagger-ui.css")
        ]
        outside = await client.get("/docs/%2e%2e/settings.py")
    assert page.text.startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in page.text
    assert "//" not in page.text.replace("</", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert [file.status_code for file in files] == [200, 200, 200]
    assert outside.status_code in {401, 404}
