"""The OpenAPI document: valid, in agreement with the policy, and unchanged when it is extended again."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Header
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from idempotency import IdempotencyMiddleware, InvalidKey, Policy, always, by_header, parse_key
from idempotency.openapi import add_idempotency
from idempotency.stores.memory import MemoryStore

POLICIES = {
    "default": Policy(),
    "draft -07": Policy.draft_07(documentation_url="https://example.com/idempotency"),
    "at most once": Policy.at_most_once(),
    "Stripe v1": Policy.stripe_v1(on_store_error="bypass"),
}


class Charge(BaseModel):
    amount: int


def application(policy: Policy | None = None) -> FastAPI:
    app = FastAPI(title="Payments", version="1")

    @app.post("/charges", status_code=201)
    def charge(charge: Charge, idempotency_key: Annotated[str | None, Header()] = None) -> Charge:
        return charge

    @app.patch("/charges/{number}")
    def change(number: int, charge: Charge) -> Charge:
        return charge

    @app.get("/charges")
    def charges() -> list[Charge]:
        return []

    if policy is not None:
        app.add_middleware(
            IdempotencyMiddleware,
            store=MemoryStore(),
            tenant=by_header("authorization", stable=True),
            policy=policy,
        )
    return app


def minimal_document(**post: Any) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "Payments", "version": "1"},
        "paths": {"/charges": {"post": {"responses": {"201": {"description": "Charged"}}, **post}}},
    }


def problem_slugs(operation: dict[str, Any], status: str) -> set[str]:
    examples = operation["responses"][status]["content"]["application/problem+json"]["examples"]
    return set(examples)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_fastapis_document_stays_valid_openapi_3_1(policy: Policy) -> None:
    document = add_idempotency(application().openapi(), policy)

    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_every_example_is_valid_against_the_schema_beside_it(policy: Policy) -> None:
    document = add_idempotency(minimal_document(), policy)

    checked = 0
    for response in document["paths"]["/charges"]["post"]["responses"].values():
        for media in response.get("content", {}).values():
            validator = Draft202012Validator({**media["schema"], "components": document["components"]})
            for example in media["examples"].values():
                validator.validate(example["value"])
                assert not validator.is_valid({**example["value"], "type": "urn:another"})
                checked += 1
    assert checked >= 8


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@pytest.mark.parametrize(
    "document", [minimal_document(), application().openapi()], ids=["minimal", "FastAPI"]
)
def test_add_idempotency_twice_equals_once(document: dict[str, Any], policy: Policy) -> None:
    once = add_idempotency(document, policy)

    assert add_idempotency(once, policy) == once


def test_add_idempotency_does_not_modify_its_argument() -> None:
    document = application().openapi()
    before = deepcopy(document)
    add_idempotency(document, Policy())

    assert document == before


def test_adding_a_changed_policy_removes_problems_of_the_previous_one() -> None:
    document = add_idempotency(minimal_document(), Policy(required=True, takeover=False))
    changed = add_idempotency(document, Policy())["paths"]["/charges"]["post"]

    assert problem_slugs(changed, "409") == {"in-progress", "not-replayable"}
    assert problem_slugs(changed, "400") == {"invalid-key", "missing-tenant", "body-lost"}


def test_only_operations_with_a_method_of_the_policy_are_changed() -> None:
    before = application().openapi()
    after = add_idempotency(before, Policy())

    assert after["paths"]["/charges"]["get"] == before["paths"]["/charges"]["get"]
    for path, method in (("/charges", "post"), ("/charges/{number}", "patch")):
        names = [parameter["name"].lower() for parameter in after["paths"][path][method]["parameters"]]
        assert names.count("idempotency-key") == 1


def test_only_the_named_operations_are_changed() -> None:
    before = application().openapi()
    after = add_idempotency(before, Policy(), operations=[("post", "/charges")])

    assert after["paths"]["/charges/{number}"] == before["paths"]["/charges/{number}"]
    assert "409" in after["paths"]["/charges"]["post"]["responses"]


def test_error_names_every_missing_or_uncovered_operation() -> None:
    with pytest.raises(ValueError, match=r"there is no POST /refunds; the policy leaves GET /charges alone"):
        add_idempotency(
            application().openapi(), Policy(), operations=[("POST", "/refunds"), ("GET", "/charges")]
        )


@pytest.mark.parametrize("version", [None, "2.0", "3.0.3", "4.0.0"])
def test_other_openapi_versions_are_refused(version: str | None) -> None:
    with pytest.raises(ValueError, match=r"not an OpenAPI 3\.1 document"):
        add_idempotency({"openapi": version} if version else {}, Policy())


# In agreement with the policy.


def test_policy_settings_change_the_documented_parameter_problems_and_headers() -> None:
    default = add_idempotency(minimal_document(), Policy())["paths"]["/charges"]["post"]
    strict = add_idempotency(
        minimal_document(),
        Policy.at_most_once(
            required=True, on_store_error="bypass", documentation_url="https://example.com", keep=always
        ),
    )["paths"]["/charges"]["post"]

    assert (default["parameters"][0]["required"], strict["parameters"][0]["required"]) == (False, True)
    assert problem_slugs(strict, "400") - problem_slugs(default, "400") == {"missing-key"}
    assert problem_slugs(strict, "409") - problem_slugs(default, "409") == {"outcome-unknown"}
    assert problem_slugs(strict, "500") - problem_slugs(default, "500") == {"first-run-failed"}
    assert problem_slugs(default, "503") - problem_slugs(strict, "503") == {"store-unavailable"}
    assert "Link" in strict["responses"]["409"]["headers"]
    assert "Link" not in default["responses"]["409"]["headers"]


def test_retry_after_is_documented_for_409_and_503_only() -> None:
    responses = add_idempotency(minimal_document(), Policy())["paths"]["/charges"]["post"]["responses"]

    says = {status for status, response in responses.items() if "Retry-After" in response.get("headers", {})}
    assert says == {"409", "503"}


def test_replay_headers_are_documented_on_success_only_under_the_policys_names() -> None:
    document = minimal_document(
        responses={
            "2XX": {"description": "Done", "headers": {"X-Own": {"schema": {"type": "string"}}}},
            "404": {"description": "No such account"},
            "default": {"description": "Else"},
        }
    )
    responses = add_idempotency(document, Policy.stripe_v1())["paths"]["/charges"]["post"]["responses"]

    assert set(responses["2XX"]["headers"]) == {
        "X-Own",
        "Idempotent-Replayed",
        "Idempotency-Age",
        "Idempotency-Expires-In",
    }
    assert responses["404"] == {"description": "No such account"}
    assert responses["default"] == {"description": "Else"}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_real_responses_match_the_openapi_document(policy: Policy) -> None:
    client = TestClient(application(policy), headers={"authorization": "alice"})
    operation = add_idempotency(application().openapi(), policy)["paths"]["/charges"]["post"]
    key = {"idempotency-key": '"k-1"'}

    first = client.post("/charges", json={"amount": 1}, headers=key)
    again = client.post("/charges", json={"amount": 1}, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert {name.lower() for name in operation["responses"]["201"]["headers"]} <= set(again.headers)
    refused = [
        client.post("/charges", json={"amount": 2}, headers=key),
        client.post("/charges", json={"amount": 1}, headers={"idempotency-key": '"open'}),
        client.post("/charges", content=bytes(policy.max_request_bytes + 1), headers=key),
    ]
    assert [answer.status_code for answer in refused] == [422, 400, 413]
    for answer in refused:
        slug = answer.json()["type"].rpartition(":")[2]
        assert slug in problem_slugs(operation, str(answer.status_code))


# Merging with existing responses.


def test_existing_response_keeps_its_description_and_content() -> None:
    own = application().openapi()["paths"]["/charges"]["post"]["responses"]["422"]
    after = add_idempotency(application().openapi(), Policy())["paths"]["/charges"]["post"]["responses"][
        "422"
    ]

    assert after["description"] == own["description"]
    assert after["content"]["application/json"] == own["content"]["application/json"]
    assert "key-reused" in after["content"]["application/problem+json"]["examples"]


def test_existing_problem_schema_becomes_an_alternative() -> None:
    own = {"type": "object", "properties": {"balance": {"type": "integer"}}}
    problem_json = {"schema": own, "example": {"type": "urn:own", "balance": 3}}
    document = minimal_document(
        responses={
            "409": {"description": "Too little", "content": {"application/problem+json": problem_json}}
        }
    )
    after = add_idempotency(document, Policy())
    media = after["paths"]["/charges"]["post"]["responses"]["409"]["content"]["application/problem+json"]

    assert media["schema"]["anyOf"][0] == own
    assert len(media["schema"]["anyOf"]) == 2
    assert media["examples"]["application"] == {"value": problem_json["example"]}
    assert "example" not in media
    assert add_idempotency(after, Policy()) == after
    assert list(OpenAPIV31SpecValidator(after).iter_errors()) == []


def test_shared_components_are_left_unchanged() -> None:
    document = minimal_document(
        responses={
            "201": {"$ref": "#/components/responses/Done"},
            "409": {"$ref": "#/components/responses/Conflict"},
        },
        parameters=[{"$ref": "#/components/parameters/Key"}],
    )
    document["components"] = {
        "responses": {"Done": {"description": "Done"}, "Conflict": {"description": "Conflict"}},
        "parameters": {"Key": {"name": "idempotency-key", "in": "header", "schema": {"type": "string"}}},
    }
    after = add_idempotency(document, Policy())
    operation = after["paths"]["/charges"]["post"]

    assert after["components"]["responses"] == document["components"]["responses"]
    assert operation["responses"]["409"]["description"] == "Conflict"
    assert "Idempotency-Replayed" in operation["responses"]["201"]["headers"]
    assert [parameter["name"] for parameter in operation["parameters"]] == ["Idempotency-Key"]
    assert list(OpenAPIV31SpecValidator(after).iter_errors()) == []


def test_external_reference_is_refused_with_advice() -> None:
    document = minimal_document(responses={"201": {"$ref": "other.json#/Done"}})

    with pytest.raises(ValueError, match="bundle it first"):
        add_idempotency(document, Policy())


# The key's pattern.


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@given(data=st.data())
def test_every_key_that_matches_the_documented_pattern_is_accepted(
    policy: Policy, data: st.DataObject
) -> None:
    pattern = _pattern(policy)
    value = data.draw(st.from_regex(pattern, fullmatch=True))

    assert parse_key([value.encode("ascii")], max_chars=policy.max_key_chars, strict=policy.strict_keys)


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=12))
def test_key_that_does_not_match_the_documented_pattern_is_refused_or_unusual(value: str) -> None:
    """Unusual: parameters after the string, white space around the string, or a leading space inside it."""
    if re.search(_pattern(Policy()), value):
        return
    usual = value == value.strip() and ";" not in value and not value.startswith('" ')
    if usual and value:
        with pytest.raises(InvalidKey):
            parse_key([value.encode("ascii")])


def test_documented_example_is_a_valid_key() -> None:
    parameter = add_idempotency(minimal_document(), Policy())["paths"]["/charges"]["post"]["parameters"][0]

    assert re.search(parameter["schema"]["pattern"], parameter["example"])
    assert parse_key([parameter["example"].encode()], strict=True)


def _pattern(policy: Policy) -> str:
    document = add_idempotency(minimal_document(), policy)
    pattern: str = document["paths"]["/charges"]["post"]["parameters"][0]["schema"]["pattern"]
    return pattern
