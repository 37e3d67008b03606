"""
Builds the OpenAPI 3.1 document from the request and response types and the idempotency policy.

Only descriptions, and which route gives which answers, are written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import msgspec
from pydantic import TypeAdapter

from idempotency import Policy
from idempotency.openapi import add_idempotency
from ml_api.demo import example_request
from ml_api.http.problems import MEDIA_TYPE, TYPE_PREFIX
from ml_api.inference.outputs import InferResponse
from ml_api.inference.requests import InferRequest
from ml_api.observability.telemetry import REQUEST_ID_HEADER
from ml_api.predict.answer import PredictResponse
from ml_api.predict.contract import ErrorItem, PredictRequest
from ml_api.predict.types import PATTERN_END, money_schema
from ml_api.serving.admin import SwapRequest, SwapResponse

__all__ = ["openapi_document"]

Schema = dict[str, Any]

_REQUEST_ID = {
    REQUEST_ID_HEADER: {"description": "Finds this request in the log.", "schema": {"type": "string"}},
}
_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}
}


def openapi_document(predict: Policy | None, infer: Policy, *, admin: bool = False) -> Schema:
    """
    Build the document.

    Args:
        predict: The idempotency policy of POST /predict; None if there is no such route.
        infer: The idempotency policy of the Open Inference Protocol.
        admin: Whether there is a route to swap models.
    """
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "ml-api",
            "version": version("ml-api"),
            "summary": "Trading decisions that are safe to retry.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            **({"/predict": {"post": _predict()}} if predict is not None else {}),
            "/health": {"get": _plain("health", "Whether the service runs, and with which model", _HEALTH)},
            "/ready": {"get": _plain("ready", "Whether the service is ready for requests", _READY)},
            "/metrics": {"get": _metrics()},
            **_inference(),
            **({"/admin/model": {"post": _swap()}} if admin else {}),
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                **({"AdminKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"}} if admin else {}),
            },
        },
    }
    for path, item in document["paths"].items():
        for method in ("get", "post"):
            if method in item:
                item[method]["tags"] = [_tag(path)]
    if predict is not None:
        document = add_idempotency(document, predict, operations=[("POST", "/predict")])
    operations = [("POST", path) for path in document["paths"] if path.endswith(("/infer", "/explain"))]
    return add_idempotency(document, infer, operations=operations)


def _tag(path: str) -> str:
    if path == "/predict":
        return "Decisions"
    return "Open Inference Protocol" if path.startswith("/v2") else "Operations"


def _predict() -> Schema:
    return _post(
        "predict",
        "Decide on orders",
        "PredictRequest",
        "PredictResponse",
        answered="The decision.",
        refusals={
            "400": _problem("The body nests too deep.", "nested-too-deep", violations=True),
            "422": _problem("The body breaks the schema.", "malformed-body", violations=True),
        },
        example=json.loads(example_request()),
        description="An `Idempotency-Key` stands for the decision of one agent at the minute of the newest candle. A "
        "retry may have another requestId and another portfolio; it gets the first answer with the same orders: place "
        "them only once.",
    )


def _post(
    operation: str,
    summary: str,
    request: str,
    response: str,
    *,
    refusals: Schema,
    answered: str,
    key: str = "ApiKey",
    example: Any = None,
    **members: Any,
) -> Schema:
    """Return a POST operation with an API key. *request* and *response* name schemas; *refusals* are further errors."""
    body: Schema = {"schema": _reference(request)} | ({"example": example} if example is not None else {})
    return {
        "operationId": operation,
        "summary": summary,
        **members,
        "security": [{key: []}],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": _refusals()
        | {
            "200": {
                "description": answered,
                "headers": _REQUEST_ID,
                "content": {"application/json": {"schema": _reference(response)}},
            }
        }
        | refusals,
    }


def _inference() -> Schema:
    open_to_all = {
        "/v2": _plain(
            "serverMetadata", "Open Inference Protocol: the server", {"name": "string", "version": "string"}
        ),
        "/v2/health/live": _plain("serverLive", "Open Inference Protocol: whether the server runs"),
        "/v2/health/ready": _plain(
            "serverReady", "Open Inference Protocol: whether the server is ready for requests"
        ),
    }
    paths: Schema = {path: {"get": operation} for path, operation in open_to_all.items()}
    for stem, suffix in (("/v2/models/{name}", ""), ("/v2/models/{name}/versions/{version}", "OfVersion")):
        names = [name for name in ("name", "version") if f"{{{name}}}" in stem]
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
        metadata = _plain(
            f"modelMetadata{suffix}", "A model's tensors", {"name": "string", "platform": "string"}
        )
        metadata["description"] = (
            "`inputs` are the tensors of the usual request; `features` has each feature's datatype, whether it may be "
            "missing, and the labels of a category; `classes` the labels of the outputs."
        )
        ready = _plain(f"modelReady{suffix}", "Whether a model is served")
        config = _plain(
            f"modelConfig{suffix}", "A model's configuration for Triton's clients", {"name": "string"}
        )
        for operation in (metadata, ready, config):
            _guard(operation)
            operation["responses"]["404"] = _problem("There is no such model.", "not-found")
        paths[stem] = {"parameters": parameters, "get": metadata}
        paths[f"{stem}/ready"] = {"parameters": parameters, "get": ready}
        paths[f"{stem}/config"] = {"parameters": parameters, "get": config}
        paths[f"{stem}/infer"] = {"parameters": parameters, "post": _infer(f"infer{suffix}", _INFER)}
        paths[f"{stem}/explain"] = {"parameters": parameters, "post": _infer(f"explain{suffix}", _EXPLAIN)}
    index = _plain("repositoryIndex", "Every model that is served, with its version")
    index["responses"]["200"]["content"] = {"application/json": {"schema": {"type": "array"}}}
    _guard(index)
    return paths | {"/v2/repository/index": {"post": index}}


def _guard(operation: Schema) -> None:
    operation["security"] = [{"ApiKey": []}]
    operation["responses"] |= {
        "401": _problem("The API key is missing or wrong.", "unauthorized"),
        "429": _problem(
            "Many wrong API keys came from this address.", "too-many-failures", headers=_RETRY_AFTER
        ),
    }


_INFER = "Predict with a model (Open Inference Protocol)"
_EXPLAIN = "Explain a model's predictions: each feature's contribution to the raw scores (SHAP)"
_BINARY = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "With the binary tensor extension: how many bytes of the body are JSON. The bytes of tensors with a "
    "`binary_data_size` follow, in the order of the tensors.",
    "schema": {"type": "integer", "minimum": 0},
}


def _infer(operation: str, summary: str) -> Schema:
    values = [65800.0, 65500.0, 55.0, 40.0, 35.0, 5.0, 0.05, 0.001, 0.01, 0.008, 1.1]
    tensor = {"name": "rows", "shape": [1, 11], "datatype": "FP64", "data": values}
    post = _post(
        operation,
        summary,
        "InferRequest",
        "InferResponse",
        answered="The model's outputs for each row.",
        refusals={
            "404": _problem("There is no such model.", "not-found"),
            "422": _unfit("The body breaks the schema, or its tensors do not fit the model."),
        },
        example={"id": "1", "inputs": [tensor]},
        parameters=[_BINARY],
    )
    answer = post["responses"]["200"]
    answer["headers"] = _REQUEST_ID | {
        _BINARY["name"]: {key: _BINARY[key] for key in ("description", "schema")}
    }
    for message in (post["requestBody"], answer):
        message["content"]["application/octet-stream"] = {}
    return post


def _swap() -> Schema:
    return _post(
        "swapModel",
        "Serve another model, in every worker or in none",
        "SwapRequest",
        "SwapResponse",
        answered="The version that every worker serves now.",
        refusals={
            "409": _problem("Another swap is running.", "swap-busy", headers=_RETRY_AFTER),
            "422": _unfit("The body breaks the schema, or the model was refused; nothing changed."),
        },
        key="AdminKey",
        description="With the admin key. Every worker loads and checks the model before any of them serves it.",
    )


def _unfit(description: str) -> Schema:
    either = {"anyOf": [_reference("Problem"), _reference("Violations")]}
    return {
        "description": description,
        "headers": _REQUEST_ID,
        "content": {MEDIA_TYPE: {"schema": either}},
    }


def _refusals() -> Schema:
    """Return the error responses of any POST with an API key."""
    return {
        "401": _problem("The API key is missing or wrong.", "unauthorized"),
        "408": _problem("The body did not arrive in time.", "request-timeout"),
        "413": _problem("The body is too large.", "content-too-large"),
        "415": _problem("The body is not JSON.", "unsupported-media-type"),
        "500": _problem("The service failed; nothing was decided.", "internal-error"),
        "504": _problem("The answer took too long.", "handler-timeout", headers=_RETRY_AFTER),
        "429": _problem(
            "Too many requests, too many recorded answers of this caller, or many wrong API keys from this address.",
            "rate-limited",
            "answer-quota-used-up",
            "too-many-failures",
            headers=_RETRY_AFTER,
        ),
    }


def _plain(operation: str, summary: str, members: Mapping[str, str] | None = None) -> Schema:
    ok: Schema = {"description": "Yes.", "headers": _REQUEST_ID}
    if members is not None:
        properties = {name: {"type": kind} for name, kind in members.items()}
        schema = {"type": "object", "required": list(members), "properties": properties}
        ok["content"] = {"application/json": {"schema": schema}}
    return {"operationId": operation, "summary": summary, "security": [], "responses": {"200": ok}}


_HEALTH = {
    "status": "string",
    "model_loaded": "boolean",
    "model_version": "string",
    "schema_version": "string",
    "modelLoaded": "boolean",
    "modelVersion": "string",
    "schemaVersion": "string",
}
_READY = {"status": "string", "modelVersion": "string", "store": "string"}


def _metrics() -> Schema:
    text = {
        "description": "Prometheus text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    return _plain("metrics", "Prometheus metrics") | {"responses": {"200": text}}


def _problem(
    description: str, *slugs: str, violations: bool = False, headers: Mapping[str, Any] | None = None
) -> Schema:
    schema = {
        "allOf": [_reference("Violations" if violations else "Problem")],
        "properties": {"type": {"enum": [TYPE_PREFIX + slug for slug in slugs]}},
    }
    return {
        "description": description,
        "headers": _REQUEST_ID | dict(headers or {}),
        "content": {MEDIA_TYPE: {"schema": schema}},
    }


def _schemas() -> Schema:
    _, generated = TypeAdapter.json_schemas(
        [
            ("infer", "validation", TypeAdapter(InferRequest)),
            ("swap", "validation", TypeAdapter(SwapRequest)),
            ("swap", "serialization", TypeAdapter(SwapResponse)),
        ],
        ref_template="#/components/schemas/{model}",
    )
    _, read = msgspec.json.schema_components(
        [PredictRequest, PredictResponse, InferResponse, ErrorItem],
        schema_hook=money_schema,
        ref_template="#/components/schemas/{name}",
    )
    schemas: Schema = generated["$defs"] | read
    for schema in schemas.values():
        for member in schema.get("properties", {}).values():
            # pydantic's generated title, such as "Agentid", adds nothing to the name.
            member.pop("title", None)
    _publish(read)
    document: Schema = {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri", "description": "Identifies the problem; stable."},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What is wrong and what to do."},
            "error": {"type": "string", "description": "The detail as text; only under /v2."},
        },
    }
    detail = {
        "type": "array",
        "minItems": 1,
        "items": _reference("ErrorItem"),
        "description": "Where the body is wrong.",
    }
    schemas["Problem"] = document | {"description": "A problem document (RFC 9457)."}
    schemas["Violations"] = document | {
        "description": "A problem document whose detail lists the violations of the schema, without values.",
        "properties": document["properties"] | {"detail": detail},
    }
    return schemas


def _publish(schema: Any) -> None:
    """
    Remove from a schema what only the parser needs.

    A pattern needs no `PATTERN_END`, because `$` in JSON Schema is the very end. Unknown members are allowed: the
    parser drops them before it checks types.
    """
    if isinstance(schema, dict):
        if isinstance(pattern := schema.get("pattern"), str):
            schema["pattern"] = pattern.removesuffix(PATTERN_END)
        schema.pop("additionalProperties", None)
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            _publish(part)


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
