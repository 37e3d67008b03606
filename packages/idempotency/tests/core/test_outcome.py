"""The outcome codec: outcomes are decoded unchanged, and any other bytes are a typed error."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idempotency import CorruptRecord, IdempotencyError, Policy, Response, UnknownRecordVersion
from idempotency._core import outcome as outcomes
from idempotency._core._speedups import decode_response
from idempotency._core.outcome import (
    Unreplayable,
    Value,
    decode,
    encode_answer,
    encode_response,
    encode_unreplayable,
    encode_value,
    recorded_headers,
)
from idempotency._core.recorded import read_response
from idempotency._core.types import Completed, Fingerprint, StorageKey

HEADERS = st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=4)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
DROP = Policy().drop_headers


@given(
    st.integers(100, 999), HEADERS, st.binary(max_size=60), st.none() | st.text(st.characters(codec="ascii"))
)
def test_response_is_decoded_byte_for_byte(
    status: int, headers: list[tuple[bytes, bytes]], body: bytes, traceparent: str | None
) -> None:
    response = Response(status, headers, body, traceparent)
    assert decode(encode_response(response)) == response


@given(HEADERS, st.binary(max_size=60))
def test_outcome_is_one_json_object_in_utf_8(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    members = json.loads(encode_response(Response(200, headers, body)).decode())
    assert (members["format"], members["outcome"], members["status_code"]) == (1, "response", 200)


def test_text_body_is_encoded_as_plain_text() -> None:
    outcome = encode_response(Response(201, [(b"content-type", b"text/plain")], "größe".encode()))
    assert outcome.decode() == (
        '{"format":1,"outcome":"response","status_code":201,"headers":[["content-type","text/plain"]],"body":"größe"}'
    )


@given(JSON_VALUES)
def test_value_is_decoded_unchanged(value: Any) -> None:
    assert decode(encode_value(value)) == Value(value)


def test_unreplayable_outcome_has_a_reason() -> None:
    assert decode(encode_unreplayable("an event stream", 200)) == Unreplayable("an event stream")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", object(), {1, 2}])
def test_value_that_json_cannot_represent_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode_value(value)


@given(st.binary(max_size=80))
def test_decoding_arbitrary_bytes_is_a_typed_error(noise: bytes) -> None:
    with pytest.raises(IdempotencyError):
        decode(noise)


@pytest.mark.parametrize("version", [0, 2, 1.5, "1", None])
def test_other_format_version_is_an_unknown_record_version(version: Any) -> None:
    with pytest.raises(UnknownRecordVersion):
        decode(json.dumps({"format": version, "outcome": "response"}).encode())


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"outcome": "spell"},
        {"outcome": "response"},
        {"outcome": "response", "status_code": "200", "headers": [], "body": ""},
        {"outcome": "response", "status_code": True, "headers": [], "body": ""},
        {"outcome": "response", "status_code": 99, "headers": [], "body": ""},
        {"outcome": "response", "status_code": 200, "headers": [], "body": 3},
        {"outcome": "response", "status_code": 200, "headers": [["a"]], "body": ""},
        {"outcome": "response", "status_code": 200, "headers": [["a", "\u20ac"]], "body": ""},
        {"outcome": "response", "status_code": 200, "headers": [], "body_base64": "!"},
        {"outcome": "response", "status_code": 200, "headers": [], "body": "", "traceparent": [1]},
        {"outcome": "value"},
        {"outcome": "value", "value": 1, "traceparent": 5},
        {"outcome": "unreplayable"},
    ],
)
def test_outcome_with_missing_or_wrong_members_is_corrupt(members: dict[str, Any]) -> None:
    with pytest.raises(CorruptRecord):
        decode(json.dumps({"format": 1, **members}).encode())


def test_members_of_a_later_minor_version_are_ignored() -> None:
    outcome = encode_response(Response(200, [], b"x"))
    assert decode(outcome[:-1] + b',"later":[1]}') == Response(200, [], b"x")


TEXTS = st.text(max_size=5) | st.sampled_from(
    ["\x00", "\n", '"', "\\", "é", "\u20ac", "\U0001f600", "\ud800"]
)
WRITTEN = st.fixed_dictionaries(
    {
        "format": st.sampled_from([1, 1, 1, 1.0, True, "1"]),
        "outcome": st.just("response"),
        "status_code": st.integers(99, 1000) | st.sampled_from([200.0, "200", True, None]),
        "headers": st.lists(st.lists(TEXTS, min_size=1, max_size=3), max_size=2) | st.none(),
        "body": TEXTS | st.none() | st.integers(),
    },
    optional={"traceparent": TEXTS | st.none() | st.integers(), "body_base64": TEXTS, "later": JSON_VALUES},
)


def decoded(outcome: bytes) -> Any:
    try:
        return decode(outcome)
    except IdempotencyError as error:
        return type(error), str(error)


OUTCOMES = st.one_of(
    st.builds(
        lambda *parts: encode_response(Response(*parts)),
        st.integers(100, 999),
        HEADERS,
        st.binary(max_size=20) | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.none() | st.text(max_size=5),
    ),
    st.builds(
        lambda members, readable: json.dumps(
            members, ensure_ascii=not readable, separators=(",", ":")
        ).encode("utf-8", "surrogatepass"),
        WRITTEN,
        st.booleans(),
    ),
)


@settings(max_examples=500)
@given(
    OUTCOMES,
    st.none() | st.tuples(st.integers(0, 150), st.binary(max_size=2)),
    st.sampled_from([b"", b" ", b"x", b"}", b',"body":"twice"}']),
)
def test_decoding_gives_the_same_result_with_and_without_msgspec(
    outcome: bytes, damage: tuple[int, bytes] | None, behind: bytes
) -> None:
    if damage is not None:
        place, put = damage
        outcome = outcome[:place] + put + outcome[place + len(put) :]
    outcome += behind
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcomes, "_decode_quickly", decode_response)
        with_msgspec = decoded(outcome)
        patch.setattr(outcomes, "_decode_quickly", None)
        assert decoded(outcome) == with_msgspec


def test_msgspec_decodes_text_responses() -> None:
    response = Response(200, [(b"content-type", b"text/plain")], "größe".encode(), "00-trace")
    assert decode_response(encode_response(response)) == response
    assert decode_response(encode_response(Response(200, [], b"\xff"))) is None


def test_standard_library_decodes_if_msgspec_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_decode_quickly", None)
    monkeypatch.delitem(sys.modules, "idempotency._core._speedups")
    monkeypatch.setitem(sys.modules, "msgspec", None)

    outcomes.use_msgspec()

    assert outcomes._decode_quickly is None
    assert decode(encode_response(Response(200, [], b"x"))) == Response(200, [], b"x")


def test_headers_of_one_connection_or_one_caller_are_not_recorded() -> None:
    headers = [
        (b"Content-Type", b"text/plain"),
        (b"connection", b"close, X-Trace"),
        (b"x-trace", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"date", b"Mon"),
        (b"set-cookie", b"a=1"),
        (b"link", b"<a>"),
        (b"link", b"<b>"),
        (b"content-length", b"5"),
    ]
    assert recorded_headers(headers, drop=DROP, length=5) == [
        (b"content-type", b"text/plain"),
        (b"link", b"<a>"),
        (b"link", b"<b>"),
        (b"content-length", b"5"),
    ]


NAMES = st.sampled_from(
    [
        b"Content-Length",
        b"connection",
        b"x",
        b"X-Y",
        b"set-cookie",
        b"etag",
        b"date",
        b"a\n",
        b"a b",
        b"\xdc",
        b"",
    ]
)
VALUES = st.sampled_from([b"3", b"x, close", b'"e"', b"1\r\n2", b"\xe9", b"\\", b""])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=5), st.sampled_from([b"abc", b"", b"\xff"]))
def test_encode_answer_equals_encoding_the_recorded_headers(
    headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    kept = recorded_headers(headers, drop=DROP, length=len(body))
    written = encode_answer(Response(201, headers, body, "00-1"), DROP)
    assert written == encode_response(Response(201, kept, body, "00-1"))


@given(st.lists(st.tuples(NAMES | st.binary(max_size=4), VALUES), max_size=5), st.sampled_from([b"abc", b""]))
def test_whatever_headers_an_application_sends_its_record_can_be_replayed(
    headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    written = encode_answer(Response(201, headers, body), DROP)
    completed = Completed(Fingerprint(b"f"), written, 0.0, 60.0)
    assert read_response(completed, StorageKey("k"), policy=Policy()).body == body


@pytest.mark.parametrize("name", [b"x y", b"x:", b"", b"x-\xdc"])
def test_header_whose_name_no_server_can_send_is_not_recorded(name: bytes) -> None:
    assert recorded_headers([(name, b"1"), (b"x", b"2")], drop=DROP, length=0) == [(b"x", b"2")]


def test_repeated_content_length_is_recorded_once() -> None:
    headers = [(b"Content-Length", b"3"), (b"content-length", b"3")]
    assert recorded_headers(headers, drop=DROP, length=3) == [(b"content-length", b"3")]


def test_wrong_content_length_is_not_recorded() -> None:
    assert recorded_headers([(b"content-length", b"7")], drop=DROP, length=5) == []


def read_back(response: Response, policy: Policy = Policy()) -> Response:  # noqa: B008
    """*response*, recorded as it is, as a replay would send it."""
    completed = Completed(Fingerprint(b"f"), encode_response(response), 0.0, 60.0)
    return read_response(completed, StorageKey("k"), policy=policy)


@pytest.mark.parametrize("bad", [(b"a", b"1\r\nb: 2"), (b"a\n", b"1"), (b"a", b"\x00")])
def test_header_with_control_characters_is_neither_recorded_nor_replayed(
    bad: tuple[bytes, bytes],
) -> None:
    good = (b"x", b"\xe9")
    assert recorded_headers([bad, good], drop=DROP, length=0) == [good]
    with pytest.raises(CorruptRecord):
        read_back(Response(204, [bad, good], b""))


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"abc", [(b"content-length", b"3")]),
        (200, b"", [(b"content-length", b"0")]),
        (204, b"", []),
        (304, b"", []),
    ],
)
def test_replay_has_one_content_length_if_its_status_allows_a_body(
    status: int, body: bytes, expected: list[tuple[bytes, bytes]]
) -> None:
    assert read_back(Response(status, [], body)).headers == expected


def test_replay_does_not_double_a_recorded_content_length() -> None:
    response = Response(200, [(b"content-length", b"3")], b"abc")
    assert read_back(response).headers == [(b"content-length", b"3")]


def test_replay_computes_a_content_length_that_the_policy_drops() -> None:
    response = Response(200, [(b"content-length", b"3"), (b"x", b"1")], b"abc")
    stricter = Policy(drop_headers=DROP | {b"content-length"})
    assert read_back(response, stricter).headers == [(b"x", b"1"), (b"content-length", b"3")]
