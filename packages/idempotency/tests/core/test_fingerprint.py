"""Fingerprints: equal if and only if no handler could tell two requests apart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotency import RequestView, canonical_json, exact_bytes, ignoring, multipart_parts
from idempotency._core.fingerprint import digest, operation_digest
from idempotency._core.media_type import spelled_once, tokens_spelled_once

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def view(
    body: bytes = b"",
    *,
    method: str = "POST",
    path: str = "/pay",
    query: bytes = b"",
    headers: list[tuple[bytes, bytes]] | None = None,
) -> RequestView:
    return RequestView(method, path, query, headers or [(b"content-type", b"application/json")], body, "")


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shuffled(value[name]) for name in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_digests_are_equal_only_for_equal_parts(one: list[bytes], other: list[bytes]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


@pytest.mark.parametrize(
    "other",
    [
        view(b"{}", method="PATCH"),
        view(b"{}", path="/pay/"),
        view(b"{}", query=b"x=1"),
        view(b"{} "),
        view(b"{}", headers=[(b"content-type", b"text/plain")]),
        view(b"{}", headers=[(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]),
    ],
)
@pytest.mark.rule("E9")
def test_fingerprint_depends_on_operation_representation_and_body(other: RequestView) -> None:
    assert operation_digest(view(b"{}"), exact_bytes) != operation_digest(other, exact_bytes)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"content-type", b"content-encoding", b"content-length", b"x"]), st.binary()
        ),
        max_size=4,
    ),
    st.binary(max_size=8),
)
def test_operation_digest_is_the_digest_of_its_six_parts(
    headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    request = view(body, path="/größe", query=b"x=1", headers=headers or [(b"x", b"")])
    encoding = tokens_spelled_once(request.header(b"content-encoding"))
    parts = (spelled_once(request.header(b"content-type")), encoding, body)
    if all(value.strip(b" \t") for _, value in headers):  # blank header lines are skipped
        expected = digest(b"POST", "/größe".encode(), b"x=1", *parts)
        assert operation_digest(request, exact_bytes) == expected


@pytest.mark.parametrize("name", [b"traceparent", b"user-agent", b"date", b"accept", b"authorization"])
def test_fingerprint_ignores_headers_that_change_between_retries(name: bytes) -> None:
    first = view(b"{}", headers=[(b"content-type", b"a/b"), (name, b"1")])
    retry = view(b"{}", headers=[(name, b"2"), (b"content-type", b"a/b")])
    assert operation_digest(first, exact_bytes) == operation_digest(retry, exact_bytes)


@given(JSON_VALUES)
def test_canonical_json_ignores_whitespace_member_order_and_escapes(value: Any) -> None:
    plain = json.dumps(value, ensure_ascii=True).encode()
    other = json.dumps(shuffled(value), ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass")
    try:
        other.decode()
    except UnicodeDecodeError:
        return  # a lone surrogate can be written only as an escape
    assert canonical_json(view(plain)) == canonical_json(view(other))


@given(JSON_VALUES, JSON_VALUES)
def test_canonical_json_distinguishes_different_values(one: Any, other: Any) -> None:
    spelled = [json.dumps(value, sort_keys=True) for value in (one, other)]
    digests = [canonical_json(view(text.encode())) for text in spelled]
    assert (digests[0] == digests[1]) == (spelled[0] == spelled[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"1", b"1.0"),
        (b"1e400", b"1e500"),
        (b"0", b"-0"),
        (b"9007199254740993", b"9007199254740992"),
        (b'"\\ud800"', b'"\\ud801"'),
        (b'"1"', b"1"),
        (b"[[],[]]", b"[[[]]]"),
        ('"\u00e9"'.encode(), '"e\u0301"'.encode()),
        (b"[true]", b"[1]"),
        (b"null", b'"null"'),
        (b'{"a":{"b":1}}', b'{"a":"b","c":1}'),
    ],
)
def test_canonical_json_distinguishes_values_that_naive_canonicalisation_confuses(
    one: bytes, other: bytes
) -> None:
    assert canonical_json(view(one)) != canonical_json(view(other))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"NaN", b"[Infinity]", b'{"a":1,"a":1}', b"\xff", b"[" * 100_000, b"\xef\xbb\xbf{}", b"1 2"],
)
def test_body_that_is_not_plain_json_is_compared_by_its_bytes(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        canonical_json(view(body))
    assert operation_digest(view(body), canonical_json) == operation_digest(view(body), exact_bytes)


def test_canonical_json_distinguishes_deeply_nested_values() -> None:
    deep = b"[" * 500 + b"]" * 500
    assert canonical_json(view(deep)) != canonical_json(view(deep[1:-1]))


def test_ignoring_skips_only_the_named_members() -> None:
    same = ignoring("requestId", "/meta/sentAt", "/items/0/nonce")
    body = {
        "requestId": 1,
        "sum": 5,
        "meta": {"sentAt": "now", "by": "x"},
        "items": [{"nonce": 1, "sku": "a"}],
    }
    first = same(view(json.dumps(body).encode()))
    body |= {"requestId": 2, "meta": {"by": "x"}, "items": [{"nonce": 9, "sku": "a"}]}
    assert same(view(json.dumps(body).encode())) == first
    assert same(view(json.dumps(body | {"sum": 6}).encode())) != first
    assert same(view(json.dumps(body | {"meta": {"by": "y"}}).encode())) != first


@pytest.mark.parametrize("body", [b"[]", b"3", b'{"meta": 3}', b'{"items": []}'])
def test_ignoring_accepts_absent_members(body: bytes) -> None:
    assert ignoring("/meta/sentAt", "/items/0/nonce")(view(body)) == ignoring("absent")(view(body))


def test_ignoring_reads_json_pointer_escapes() -> None:
    same = ignoring("/a~1b/m~0n")
    assert same(view(b'{"a/b":{"m~n":1}}')) == same(view(b'{"a/b":{}}'))


def test_ignoring_without_members_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        ignoring()


def multipart(boundary: bytes, *parts: bytes, end: bytes = b"--\r\n") -> RequestView:
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + end
    return view(body, headers=[(b"content-type", b"multipart/form-data; boundary=" + boundary)])


FIELD = b'Content-Disposition: form-data; name="a"\r\n\r\n'


def test_multipart_fingerprint_of_binary_parts_ignores_the_boundary() -> None:
    one = multipart(b"xxx", FIELD + b"1", FIELD + b"\x00\xff\r\n")
    assert multipart_parts(one) == multipart_parts(multipart(b"yyyy", FIELD + b"1", FIELD + b"\x00\xff\r\n"))


@pytest.mark.parametrize(
    "other",
    [
        multipart(b"xxx", FIELD + b"2"),
        multipart(b"xxx", FIELD + b"1", FIELD + b""),
        multipart(b"xxx", FIELD.replace(b'"a"', b'"b"') + b"1"),
        multipart(b"xxx"),
    ],
)
def test_multipart_fingerprint_depends_on_every_part(other: RequestView) -> None:
    assert multipart_parts(multipart(b"xxx", FIELD + b"1")) != multipart_parts(other)


@pytest.mark.parametrize(
    "malformed",
    [
        view(b"{}"),
        multipart(b"xxx", FIELD + b"1", end=b""),
        multipart(b"xxx", FIELD + b"1", end=b"--\r\nepilogue"),
        view(b"preamble\r\n--xxx--", headers=[(b"content-type", b"multipart/mixed; boundary=xxx")]),
        view(
            b"--xxx junk\r\nA: b\r\n\r\n1\r\n--xxx--",
            headers=[(b"content-type", b"multipart/mixed; boundary=xxx")],
        ),
    ],
)
def test_malformed_multipart_is_compared_by_its_bytes(malformed: RequestView) -> None:
    with pytest.raises(ValueError, match="multipart"):
        multipart_parts(malformed)
    assert operation_digest(malformed, multipart_parts) == operation_digest(malformed, exact_bytes)
