"""
Adds to any OpenAPI 3.1 document what a protected operation takes and answers.

The middleware acts before the framework sees a request, so the framework cannot document it. This module documents the
same `Policy` that the middleware enforces: the header parameter, the possible problems, and the headers of a replay.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any, Final, NamedTuple

from idempotency._core.errors import (
    BodyLost,
    CorruptRecord,
    FingerprintMismatch,
    FirstRunFailed,
    IdempotencyError,
    InProgress,
    InvalidKey,
    MissingTenant,
    NotReplayable,
    OutcomeUnknown,
    RequestTimeout,
    RequestTooLarge,
    StoreUnavailable,
    UnknownRecordVersion,
)
from idempotency._core.outcome import Response
from idempotency._core.policy import Policy
from idempotency._core.problem import PROBLEM_TYPE
from idempotency._http.keyed_request import missing_key
from idempotency._http.refusal import first_run_failed, refusal

__all__ = ["add_idempotency"]

_METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_SCHEMA_NAME: Final = "IdempotencyProblem"
_SCHEMA_REF: Final = f"#/components/schemas/{_SCHEMA_NAME}"
_MEDIA_TYPE: Final = "application/problem+json"
_KEY_ID: Final = "0bafe22156d2"  # stands for a key in examples, as in every log line and problem

_SCHEMA: Final = {
    "type": "object",
    "title": _SCHEMA_NAME,
    "description": "A problem document (RFC 9457): nothing ran, and `detail` says what to do next.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "Which problem it is; stable."},
        "title": {"type": "string", "description": "The problem in short, for people."},
        "status": {"type": "integer", "description": "The HTTP status, again."},
        "detail": {"type": "string", "description": "What happened here, and what to do next."},
    },
}


_RENDERED: Final[dict[str, Any]] = {
    "title": "Refusal",
    "description": "Nothing ran; `status` and the headers say what to do next.",
}


def add_idempotency(
    document: dict[str, Any], policy: Policy, *, operations: Iterable[tuple[str, str]] | None = None
) -> dict[str, Any]:
    """
    A copy of *document* that documents *policy* in the operations that it protects.

    Each such operation gets the headers that carry the key (`Policy.key_headers`); the responses 400, 408, 409, 413,
    422, 500 and 503 with the problems that this policy can give, or with examples from `Policy.render`, beside the
    application's own answers with the same status; and the headers of a replay in its 2xx responses. Adding the same
    policy again changes nothing.

    Args:
        document: An OpenAPI 3.1 document, such as FastAPI's `app.openapi()`; not changed.
        policy: The policy of the middleware.
        operations: (method, path) pairs, with paths as in the document. None: every operation with one of the policy's
            methods. If routes have different policies, call this once for each policy.
    Raises:
        ValueError: The document is not OpenAPI 3.1 or has no such operation, or the policy does not cover its method.

    >>> document = {"openapi": "3.1.0", "info": {"title": "Payments", "version": "1"}, "paths": {"/charges": {
    ...     "post": {"responses": {"201": {"description": "Charged"}}}}}}
    >>> charges = add_idempotency(document, Policy(required=True))["paths"]["/charges"]["post"]
    >>> charges["parameters"][0]["name"], charges["parameters"][0]["required"]
    ('Idempotency-Key', True)
    >>> sorted(charges["responses"])
    ['201', '400', '408', '409', '413', '422', '500', '503']
    """
    version = str(document.get("openapi", ""))
    if not version.startswith("3.1."):
        raise ValueError(f"this is not an OpenAPI 3.1 document: openapi is {version or 'missing'}")
    document = deepcopy(document)
    problems = _problems(policy)
    for operation in _selected(document, policy, operations):
        _add_parameter(document, operation, policy)
        responses: dict[str, Any] = operation.setdefault("responses", {})
        for status, response in responses.items():
            if str(status).startswith("2"):
                responses[status] = _with_replay_headers(_resolved(document, response), policy)
        for code, examples in problems.items():
            responses[code] = _with_problems(_resolved(document, responses.get(code, {})), examples, policy)
    if policy.render is None:
        document.setdefault("components", {}).setdefault("schemas", {})[_SCHEMA_NAME] = deepcopy(_SCHEMA)
    return document


def _selected(
    document: dict[str, Any], policy: Policy, operations: Iterable[tuple[str, str]] | None
) -> list[dict[str, Any]]:
    there = {
        (method.upper(), path): item[method]
        for path, item in document.get("paths", {}).items()
        for method in _METHODS
        if method in item
    }
    if operations is None:
        return [operation for (method, _), operation in there.items() if method in policy.methods]
    wanted = [(method.upper(), path) for method, path in operations]
    wrong = [f"there is no {method} {path}" for method, path in wanted if (method, path) not in there]
    wrong += [
        f"the policy leaves {method} {path} alone: its methods are {', '.join(sorted(policy.methods))}"
        for method, path in wanted
        if method not in policy.methods
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
    return [there[pair] for pair in wanted]


# The parameter.


def _add_parameter(document: dict[str, Any], operation: dict[str, Any], policy: Policy) -> None:
    parameters: list[dict[str, Any]] = operation.setdefault("parameters", [])
    for header in policy.key_headers:
        ours = _parameter(header, policy)
        for index, parameter in enumerate(parameters):
            if _is_header(_resolved(document, parameter), header):
                parameters[index] = ours  # replaces the application's own, or that of an earlier call
                break
        else:
            parameters.append(ours)


def _is_header(parameter: dict[str, Any], name: str) -> bool:
    return parameter.get("in") == "header" and str(parameter.get("name", "")).lower() == name.lower()


def _parameter(header: str, policy: Policy) -> dict[str, Any]:
    several = len(policy.key_headers) > 1
    names = " or ".join(policy.key_headers)
    one_of = f"One of {names} is required. " if several and policy.required else ""
    return {
        "name": header,
        "in": "header",
        "required": policy.required and not several,  # OpenAPI cannot say "one of these"
        "description": (
            f"{one_of}"
            "A new UUID for each new operation, and the same one when it is sent again. For "
            f"{policy.retention:g} s after the first answer a repetition gets that answer, and nothing runs a second "
            "time. Another request under the same key is refused (422)."
        ),
        "schema": {"type": "string", "pattern": _key_pattern(policy)},
        "example": '"8e03978e-40d5-43dd-bc93-6894a57f9324"',
    }


def _key_pattern(policy: Policy) -> str:
    """A pattern that matches only keys which `parse_key` accepts; no look-around, so any validator can run it."""
    more = policy.max_key_chars - 1
    # RFC 9651, 3.3.3; the first character is not a space, because a blank key is refused.
    quoted = rf'"(?:[!#-\[\]-~]|\\["\\])(?:[ !#-\[\]-~]|\\["\\]){{0,{more}}}"'
    bare = rf"[!#-+\--:<-\[\]-~]{{1,{policy.max_key_chars}}}"
    return f"^{quoted}$" if policy.strict_keys else f"^(?:{quoted}|{bare})$"


# The responses.


def _with_replay_headers(response: dict[str, Any], policy: Policy) -> dict[str, Any]:
    seconds = {"type": "integer", "minimum": 0}
    headers = {
        policy.replay_header: {
            "description": "Present on a repetition: this is the first answer, and nothing ran.",
            "schema": {"type": "string", "enum": ["true"]},
        },
        "Idempotency-Age": {
            "description": "Seconds since the first answer was recorded; on repetitions only.",
            "schema": seconds,
        },
        "Idempotency-Expires-In": {
            "description": "Seconds until the key is forgotten; the same request then is a new operation.",
            "schema": seconds,
        },
    }
    return {**response, "headers": {**response.get("headers", {}), **deepcopy(headers)}}


class _Refusal(NamedTuple):
    """A response that the middleware may send instead of the application."""

    slug: str
    title: str
    answer: Response


def _with_problems(response: dict[str, Any], refusals: list[_Refusal], policy: Policy) -> dict[str, Any]:
    response = {"description": " / ".join(refusal.title for refusal in refusals), **response}
    if policy.render is None:
        response["content"] = {**response.get("content", {}), **_problem_content(response, refusals)}
    else:
        response["content"] = {**response.get("content", {}), **_rendered_content(response, refusals)}
    headers = dict(response.get("headers", {}))
    if any(name == b"retry-after" for one in refusals for name, _ in one.answer.headers):
        headers["Retry-After"] = {
            "description": "Whole seconds to wait before the same request is sent again.",
            "schema": {"type": "integer", "minimum": 0},
        }
    if policy.documentation_url is not None:
        headers["Link"] = {
            "description": 'Where the problem is explained, with rel="describedby".',
            "schema": {"type": "string"},
        }
    return {**response, **({"headers": headers} if headers else {})}


def _problem_content(response: dict[str, Any], refusals: list[_Refusal]) -> dict[str, Any]:
    documents = [json.loads(one.answer.body) for one in refusals]
    schema = {
        "allOf": [{"$ref": _SCHEMA_REF}],
        "properties": {"type": {"enum": [document["type"] for document in documents]}},
    }
    media = dict(response.get("content", {}).get(_MEDIA_TYPE, {}))
    others = _not_ours(media.get("schema"))
    media["schema"] = {"anyOf": [*others, schema]} if others else schema
    named = {
        one.slug: {"summary": one.title, "value": document}
        for one, document in zip(refusals, documents, strict=True)
    }
    media["examples"] = {**_examples(media), **named}
    media.pop("example", None)
    return {_MEDIA_TYPE: media}


def _rendered_content(response: dict[str, Any], refusals: list[_Refusal]) -> dict[str, Any]:
    """Refusals in the application's own format, whose schema is not known here: one example for each."""
    found: dict[str, Any] = {}
    for one in refusals:
        media_type = dict(one.answer.headers)[b"content-type"].decode("ascii")
        if media_type not in found:
            media = dict(response.get("content", {}).get(media_type, {}))
            others = [schema for schema in _alternatives(media.get("schema")) if schema != _RENDERED]
            media["schema"] = {"anyOf": [*others, _RENDERED]} if others else _RENDERED
            media["examples"] = _examples(media)
            media.pop("example", None)
            found[media_type] = media
        found[media_type]["examples"][one.slug] = {"summary": one.title, "value": _readable(one.answer.body)}
    return found


def _alternatives(schema: Any) -> list[Any]:
    if schema is None:
        return []
    members = schema.get("anyOf") if isinstance(schema, dict) else None
    return members if isinstance(members, list) and _RENDERED in members else [schema]


def _readable(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def _not_ours(schema: Any) -> list[Any]:
    """The alternatives of *schema* that an earlier call did not add."""
    if schema is None or _is_ours(schema):
        return []
    if isinstance(schema, dict) and any(_is_ours(one) for one in schema.get("anyOf", ())):
        return [one for one in schema["anyOf"] if not _is_ours(one)]
    return [schema]


def _is_ours(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("allOf") == [{"$ref": _SCHEMA_REF}]


def _examples(media: dict[str, Any]) -> dict[str, Any]:
    """The application's own examples; `example` moves into `examples`, because the two exclude each other."""
    own = {
        name: example
        for name, example in media.get("examples", {}).items()
        if not str(example.get("value", {}).get("type", "")).startswith(PROBLEM_TYPE)
    }
    return {"application": {"value": media["example"]}, **own} if "example" in media else own


def _problems(policy: Policy) -> dict[str, list[_Refusal]]:
    """The problems that the middleware may send under *policy*, by status; real answers, used as examples."""
    found = [_Refusal(error.slug, error.title, refusal(error, policy)) for error in _errors(policy)]
    if policy.on_exception == "keep":
        found.append(_Refusal(FirstRunFailed.slug, FirstRunFailed.title, first_run_failed(policy)))
    by_status: defaultdict[str, list[_Refusal]] = defaultdict(list)
    for one in found:
        by_status[str(one.answer.status)].append(one)
    return dict(sorted(by_status.items()))


def _errors(policy: Policy) -> Iterator[IdempotencyError]:
    yield InvalidKey("the value is neither a quoted string nor a plain token; send one key in double quotes")
    if policy.required:
        yield missing_key(policy)
    yield MissingTenant("the request has no Authorization header, which says whose Idempotency-Key this is")
    yield RequestTimeout(seconds=policy.body_timeout)
    yield BodyLost()
    yield InProgress(key_id=_KEY_ID, retry_after=1)
    if not policy.takeover:
        yield OutcomeUnknown(key_id=_KEY_ID)
    yield NotReplayable(key_id=_KEY_ID, reason=f"larger than {policy.max_response_bytes} bytes")
    yield RequestTooLarge(limit=policy.max_request_bytes)
    yield FingerprintMismatch(key_id=_KEY_ID)
    yield CorruptRecord("the stored outcome was not written by this library; look at it before deleting it")
    if policy.on_store_error == "refuse":
        yield StoreUnavailable("the store did not answer in time; send the request again with the same key")
    yield UnknownRecordVersion("the stored record was written by a newer version; upgrade")


def _resolved(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """*value*, or the target of its local `$ref`: additions belong to this operation, not to a shared component."""
    reference = value.get("$ref")
    if not isinstance(reference, str):
        return value
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    if not reference.startswith("#/") or not isinstance(found, dict):
        raise ValueError(f"{reference} is not in this document; bundle it first")
    return _resolved(document, found)
