"""Fingerprints compare Content-Type by its meaning: parameters in any order, case and spelling."""

from __future__ import annotations

from collections.abc import Callable
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotency import RequestView, canonical_json, exact_bytes, ignoring, multipart_parts
from idempotency._core.fingerprint import operation_digest, representation, unrepeated_representation
from idempotency._core.media_type import MediaType, media_type, spelled_once

ALL: dict[str, Callable[[RequestView], Any]] = {
    "exact_bytes": exact_bytes,
    "canonical_json": canonical_json,
    "ignoring": ignoring("requestId"),
    "multipart_parts": multipart_parts,
}


def view(content_type: bytes, body: bytes = b"{}", encoding: bytes = b"") -> RequestView:
    headers = [(b"content-type", content_type)] + ([(b"content-encoding", encoding)] if encoding else [])
    return RequestView("POST", "/uploads", b"", headers, body, "")


def upload(content_type: bytes, boundary: bytes, content: bytes = b"1") -> RequestView:
    part = b"--%b\r\nContent-Disposition: form-data; name=a\r\n\r\n%b\r\n--%b--\r\n"
    return view(content_type, part % (boundary, content, boundary))


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=b; charset=utf-8", b"b"),
        (b"multipart/form-data; charset=utf-8; boundary=other", b"other"),
        (b"multipart/form-data;charset=UTF-8;boundary=b", b"b"),
        (b'Multipart/Form-Data ; Charset="utf-8" ; Boundary="b c"', b"b c"),
        (b'multipart/form-data; boundary="a\\"b"; charset=utf-8', b'a"b'),
        (b"multipart/form-data; boundary=--=_Part/1?:2; charset=utf-8;", b"--=_Part/1?:2"),
        (b"multipart/form-data; boundary=UPPER;; charset=utf-8", b"UPPER"),
    ],
)
def test_multipart_fingerprint_ignores_boundary_and_order_of_parameters(
    content_type: bytes, boundary: bytes
) -> None:
    first = upload(b"multipart/form-data; charset=utf-8; boundary=first", b"first")
    assert multipart_parts(upload(content_type, boundary)) == multipart_parts(first)
    assert multipart_parts(upload(content_type, boundary, b"2")) != multipart_parts(first)


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data; charset=latin-1; boundary=b",
        b"multipart/mixed; charset=utf-8; boundary=b",
        b"multipart/form-data; boundary=b",
        b"multipart/form-data; charset=utf-8; profile=x; boundary=b",
    ],
)
def test_multipart_fingerprint_depends_on_type_and_parameters(content_type: bytes) -> None:
    first = upload(b"multipart/form-data; charset=utf-8; boundary=b", b"b")
    assert multipart_parts(upload(content_type, b"b")) != multipart_parts(first)


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b'multipart/form-data; boundary="b "',
        b"multipart/form-data; boundary=b; boundary=c",
        b"multipart/form-data; boundary=b; Boundary=b",
        b"multipart/form-data; boundary=b, multipart/form-data; boundary=b",
        b"multipart/form-data; boundary=b; broken",
        b'multipart/form-data; boundary="b',
        b"multipart/form-data boundary=b",
        b"multipart/form-data; boundary=" + b"b" * 71,
        b"text/plain; boundary=b",
        b"",
    ],
)
def test_multipart_without_exactly_one_boundary_is_compared_by_its_bytes(content_type: bytes) -> None:
    with pytest.raises(ValueError, match="multipart with one boundary"):
        multipart_parts(upload(content_type, b"b"))
    assert operation_digest(upload(content_type, b"b"), multipart_parts) != operation_digest(
        upload(content_type, b"b", b"2"), multipart_parts
    )


SPELLINGS = (
    b'application/json; charset=utf-8; profile="a b"',
    b'application/json;charset=utf-8;profile="a b"',
    b'Application/JSON ;\tPROFILE="a b" ; CharSet="UTF-8"',
    b'application/json; profile="a\\ b"; charset=utf-8;',
)


@pytest.mark.parametrize("name", ["exact_bytes", "canonical_json", "ignoring"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_fingerprint_ignores_the_spelling_of_a_content_type(name: str, spelling: bytes) -> None:
    assert operation_digest(view(spelling), ALL[name]) == operation_digest(view(SPELLINGS[0]), ALL[name])


@pytest.mark.parametrize("name", ["exact_bytes", "canonical_json", "ignoring"])
@pytest.mark.parametrize(
    "other",
    [
        b'application/json; charset=utf-8; profile="A b"',
        b'application/json; charset=utf-16; profile="a b"',
        b"application/json; charset=utf-8",
        b'application/json+x; charset=utf-8; profile="a b"',
        b'application/json; charset=utf-8; profile="a b", text/plain',
    ],
)
def test_fingerprint_depends_on_the_content_type(name: str, other: bytes) -> None:
    assert operation_digest(view(other), ALL[name]) != operation_digest(view(SPELLINGS[0]), ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_fingerprint_ignores_the_case_of_content_encodings(name: str) -> None:
    def of(encoding: bytes) -> Any:
        given = upload(b"multipart/form-data; boundary=b", b"b")
        if name != "multipart_parts":
            given = view(b"application/json")
        return operation_digest(
            given._replace(headers=[*given.headers, (b"content-encoding", encoding)]), ALL[name]
        )

    assert of(b"GZIP,br") == of(b"gzip , BR")
    assert of(b"gzip") != of(b"br")


def test_usual_content_types_are_their_own_canonical_spelling() -> None:
    assert spelled_once(b"application/json") == b"application/json"
    assert spelled_once(b"application/json; charset=utf-8") == b"application/json; charset=utf-8"
    assert spelled_once(b"not a media type") == b"not a media type"


def test_content_length_of_thousands_of_digits_is_read_as_a_large_number() -> None:
    assert representation([(b"content-length", b"9" * 5_000)])[2] >= 10**20


FIELDS = st.dictionaries(
    st.sampled_from([b"content-type", b"content-encoding", b"content-length", b"accept"]),
    st.sampled_from(
        [b"", b" ", b"a/b", b" A/b;Charset=UTF-8\t", b"gzip,  BR", b"12", b" 12 ", b"-1", b"9" * 5_000]
    ),
)


@given(FIELDS)
def test_headers_without_repetition_are_read_by_name_as_they_are_line_by_line(
    fields: dict[bytes, bytes],
) -> None:
    assert unrepeated_representation(fields) == representation(fields.items())


TOKEN = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)


@given(
    st.dictionaries(
        TOKEN.map(str.lower), st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)), max_size=4
    )
)
def test_media_type_reads_what_the_standard_library_writes(parameters: dict[str, str]) -> None:
    parameters.pop("charset", None)
    message = EmailMessage()
    message.add_header("X", "text/plain", **parameters)
    found = media_type(message["X"].encode())
    expected = {name.encode(): value.encode() for name, value in parameters.items() if value}
    if all(parameters.values()):  # the standard library writes an empty value as no parameter at all
        assert found == MediaType(b"text/plain", expected)


@given(st.binary(max_size=80))
def test_canonical_spelling_is_idempotent(value: bytes) -> None:
    assert spelled_once(spelled_once(value)) == spelled_once(value)
    assert spelled_once(b"a/b;" + value) == spelled_once(spelled_once(b"a/b;" + value))
