"""The Idempotency-Key header (draft -07, 2.1; RFC 9651, 3.3.3) and the name of its record."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idempotency import InvalidKey, parse_key, storage_key

UUID = "8e03978e-40d5-43dd-bc93-6894a57f9324"
VISIBLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255).filter(
    str.strip
)
BARE = st.text(
    st.sampled_from([chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"\\,;']), min_size=1, max_size=255
)


def quoted(key: str) -> bytes:
    return b'"' + key.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'


def test_no_header_gives_no_key() -> None:
    assert parse_key([]) is None


def test_quoted_and_unquoted_key_are_the_same_key() -> None:
    assert parse_key([b'"%b"' % UUID.encode()]) == parse_key([UUID.encode()]) == UUID


def test_whitespace_around_the_key_header_is_ignored() -> None:
    assert parse_key([b' \t"k" ']) == "k"


@given(VISIBLE)
def test_quoted_key_is_read_back_unchanged(key: str) -> None:
    assert parse_key([quoted(key)], strict=True) == key


@given(BARE)
def test_every_visible_token_is_accepted_without_quotes(key: str) -> None:
    assert parse_key([key.encode()]) == key


@given(BARE)
def test_strict_refuses_a_key_without_quotes(key: str) -> None:
    with pytest.raises(InvalidKey, match="quotes"):
        parse_key([key.encode()], strict=True)


@pytest.mark.parametrize(
    "value",
    [
        b'"k";created=1',
        b'"k"; a; b=?1;c="x"',
        b'"k";t=@1659578233',
        b'"k";n=-1.5;b=:aGk=:;s=tok/en',
        b'"k";d=%"f%c3%bc"',
    ],
)
def test_parameters_after_a_string_are_ignored(value: bytes) -> None:
    assert parse_key([value]) == "k"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b'""',
        b'"  "',
        b'"open',
        b'open"',
        b'"a"b',
        b'"a" b',
        b'"a", "b"',
        b'"a","a"',
        b"a,b",
        b"a;b",
        b"a b",
        b'"\\q"',
        b'"a\\',
        b'"k";',
        b'"k";A=1',
        b'"k";a=',
        b"caf\xc3\xa9",
        b'"caf\xe9"',
        b'"a\x00b"',
        b"a\x7fb",
        b'"a\r\nb"',
        b"a\nb",
        b"('a' 'b')" + b" x",
    ],
)
def test_malformed_key_header_is_an_error(value: bytes) -> None:
    with pytest.raises(InvalidKey):
        parse_key([value])


@given(st.lists(st.binary(max_size=20), min_size=2, max_size=3))
def test_more_than_one_key_header_is_an_error(values: list[bytes]) -> None:
    with pytest.raises(InvalidKey, match="more than one"):
        parse_key(values)


@given(st.binary(max_size=300))
@example(b'"' + b"\\" * 255)
def test_arbitrary_bytes_give_a_key_within_the_limit_or_a_typed_error(value: bytes) -> None:
    try:
        key = parse_key([value])
    except InvalidKey:
        return
    assert key is not None
    assert 1 <= len(key) <= 255
    assert key.isascii()
    assert key.isprintable()


@pytest.mark.parametrize(("length", "accepted"), [(255, True), (256, False)])
def test_limit_counts_the_characters_of_the_key_without_its_escapes(length: int, accepted: bool) -> None:
    spelled = quoted('"' * length)
    if accepted:
        assert parse_key([spelled]) == '"' * length
    else:
        with pytest.raises(InvalidKey, match="256 characters"):
            parse_key([spelled])


def test_key_error_does_not_quote_the_key() -> None:
    with pytest.raises(InvalidKey) as refused:
        parse_key([b'"secret-of-a-customer'])
    assert "secret" not in str(refused.value)


@given(
    st.tuples(st.text(max_size=9), st.text(min_size=1, max_size=9)),
    st.tuples(st.text(max_size=9), st.text(min_size=1, max_size=9)),
)
@example(("a", "b:x"), ("a:b", "x"))
@example(("", "a:b"), ("a", "b"))
@example(("%3A", "x"), (":", "x"))
def test_different_tenant_and_key_pairs_have_different_storage_keys(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    try:
        names = storage_key(*one), storage_key(*other)
    except UnicodeEncodeError:
        return  # a lone surrogate cannot come from a header, and is refused
    assert (names[0] == names[1]) == (one == other)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), VISIBLE)
def test_storage_key_is_unreserved_ascii_and_can_be_decoded(tenant: str, key: str) -> None:
    name = storage_key(tenant, key)
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-%:")
    parts = [unquote(part) for part in name.split(":")]
    assert parts == ([tenant, key] if tenant else [key])


@pytest.mark.parametrize("part", ["t" * 801, "\u00e9" * 134], ids=["plain", "encoded"])
def test_storage_key_replaces_a_part_too_long_for_an_index_by_its_digest(part: str) -> None:
    name = storage_key(part, "k")
    assert len(name) < 100
    assert name.endswith(":k")
    assert len({name, storage_key(part + "t", "k"), storage_key(name.removesuffix(":k"), "k")}) == 3
    assert storage_key("", part) == name.removesuffix(":k")


def test_storage_key_keeps_every_key_that_a_client_may_send() -> None:
    assert len(storage_key("", "{" * 255)) == 765
    assert storage_key("t" * 800, "k") == "t" * 800 + ":k"
