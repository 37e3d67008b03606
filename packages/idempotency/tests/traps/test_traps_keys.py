"""Traps 35 to 42: the tenant of a key, the spellings of a key, and keys in stores and logs."""

from __future__ import annotations

import logging
from secrets import token_bytes
from typing import Any

import pytest
from asgi_driver import call
from effects import Charges, guard
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import serve
from wire import post

from idempotency import IdempotencyMiddleware, Policy, by_header, one_tenant, storage_key
from idempotency.errors import MissingTenant
from idempotency.events import Event
from idempotency.store import Store
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


def per_user(app: Any, store: Any, **settings: Any) -> IdempotencyMiddleware:
    return IdempotencyMiddleware(
        app, store=store, tenant=by_header("Authorization", stable=True), policy=Policy(**settings)
    )


def as_user(name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {name}")]


@pytest.mark.trap(35)
async def test_the_same_key_of_two_principals_is_two_operations(any_store: Store, key: str) -> None:
    charges = Charges()
    app = per_user(charges, any_store)
    alice = await call(app, key=key, headers=as_user("alice"))
    bob = await call(app, key=key, headers=as_user("bob"))
    assert (alice.body, bob.body) == (b'{"charge": 1}', b'{"charge": 2}')
    for user, first in (("alice", alice), ("bob", bob)):
        again = await call(app, key=key, headers=as_user(user))
        assert (again.replayed, again.body) == (True, first.body)


@pytest.mark.trap(35)
async def test_a_key_that_another_principal_used_is_answered_like_an_unused_one(
    any_store: Store, key: str
) -> None:
    app = per_user(Charges(status=202), any_store)
    await call(app, key=key, headers=as_user("alice"), body=b"secret")
    used = await call(app, key=key, headers=as_user("bob"), body=b"guess")
    unused = await call(app, key=f"{key}-unused", headers=as_user("carol"), body=b"guess")
    assert used.status == unused.status == 202
    assert not used.replayed
    assert {name for name, _ in used.headers} == {name for name, _ in unused.headers}


@pytest.mark.trap(35)
def test_a_middleware_without_a_tenant_function_is_refused() -> None:
    with pytest.raises(TypeError, match="tenant"):
        IdempotencyMiddleware(Charges(), store=MemoryStore())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="one_tenant"):
        IdempotencyMiddleware(Charges(), store=MemoryStore(), tenant="everybody")  # type: ignore[arg-type]


@pytest.mark.trap(35)
async def test_requests_without_the_tenants_header_are_refused(key: str) -> None:
    charges = Charges()
    for headers in ([], [("authorization", "")], [("authorization", " "), ("authorization", "")]):
        answer = await call(per_user(charges, MemoryStore()), key=key, headers=headers)
        assert (answer.status, charges.runs) == (400, 0)
        assert b"missing-tenant" in answer.body


@pytest.mark.trap(36)
async def test_the_tenant_does_not_depend_on_the_clients_address(key: str) -> None:
    charges = Charges()
    app = per_user(charges, MemoryStore())
    proxy, home = ("203.0.113.1", 1), ("198.51.100.7", 2)
    await call(app, key=key, headers=as_user("alice"), client=proxy)
    await call(app, key=key, headers=as_user("bob"), client=proxy)
    assert charges.runs == 2
    assert (await call(app, key=key, headers=as_user("alice"), client=home)).replayed


@pytest.mark.trap(37)
@pytest.mark.parametrize("wrong", [None, b"alice", 7])
async def test_a_tenant_that_is_not_a_string_raises_and_runs_nothing(wrong: Any, key: str) -> None:
    charges, store = Charges(), MemoryStore()
    app = IdempotencyMiddleware(charges, store=store, tenant=lambda scope: wrong)
    with pytest.raises(TypeError, match="tenant"):
        await call(app, key=key)
    assert charges.runs == 0
    assert not (await store.scan()).records


@pytest.mark.trap(37)
async def test_a_tenant_function_that_raises_gives_a_500_and_runs_nothing(key: str) -> None:
    def broken(scope: Any) -> str:
        raise KeyError("user")

    charges = Charges()
    async with serve(
        IdempotencyMiddleware(charges, store=MemoryStore(), tenant=broken), "uvicorn-h11"
    ) as port:
        assert (await post(port, key=key)).status == 500
        assert (await post(port)).status == 201, "keyless requests have no tenant"
    assert charges.runs == 1


@pytest.mark.trap(37)
async def test_a_tenant_function_may_refuse_with_its_own_message(key: str) -> None:
    def nobody(scope: Any) -> str:
        raise MissingTenant("sign in first")

    charges = Charges()
    answer = await call(IdempotencyMiddleware(charges, store=MemoryStore(), tenant=nobody), key=key)
    assert (answer.status, charges.runs) == (400, 0)
    assert b"sign in first" in answer.body


async def with_key(app: Any, *lines: bytes) -> Any:
    return await call(app, headers=[("idempotency-key", line) for line in lines])


@pytest.mark.trap(38)
@pytest.mark.parametrize("spelling", [b"%b", b' "%b" ', b'"%b";a=1;b', b'\t"%b"'])
async def test_every_valid_spelling_of_a_key_is_the_same_key(
    spelling: bytes, any_store: Store, key: str
) -> None:
    charges = Charges()
    app = guard(charges, any_store)
    assert (await with_key(app, b'"%b"' % key.encode())).status == 201
    assert (await with_key(app, spelling % key.encode())).replayed
    assert charges.runs == 1


@pytest.mark.trap(38)
async def test_strict_keys_refuses_a_key_without_quotes(key: str) -> None:
    charges = Charges()
    app = guard(charges, MemoryStore(), strict_keys=True)
    assert (await with_key(app, key.encode())).status == 400
    assert (await with_key(app, b'"%b"' % key.encode())).status == 201
    assert charges.runs == 1


MALFORMED = [
    b'"open',
    b'open"',
    b'"a" b',
    b'"a"b',
    rb'"\q"',
    b'"a", "b"',
    b"a, b",
    b"a;b",
    b"a b",
    b"a\\b",
    "\u00e9".encode(),
    "\u00e9".encode("latin-1"),
    '"\u00e9"'.encode(),
    b'"a\x00"',
    b"a\x7f",
    b'"a\r\nx: y"',
    b"('a')\x01",
    b"k" * 10_240,
    b'"%b"' % (b"k" * 256),
]


@pytest.mark.trap(39)
@pytest.mark.parametrize("line", MALFORMED, ids=lambda line: ascii(line[:16]))
async def test_a_malformed_key_is_refused_and_not_ignored(line: bytes) -> None:
    charges = Charges()
    answer = await with_key(guard(charges, MemoryStore()), line)
    assert (answer.status, charges.runs) == (400, 0)
    assert answer.header("content-type") == b"application/problem+json"
    assert b"invalid-key" in answer.body


@pytest.mark.trap(39)
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24))
def test_any_header_value_is_a_printable_key_or_refused(line: bytes) -> None:
    from idempotency import parse_key
    from idempotency.errors import InvalidKey

    try:
        key = parse_key([line])
    except InvalidKey:
        return
    assert key is not None
    assert key.strip(), "a key is not blank"
    assert key.isascii()
    assert key.isprintable()


@pytest.mark.trap(40)
@pytest.mark.parametrize(
    "lines",
    [
        (b'"a"', b'"a"'),
        (b'"a"', b'"b"'),
        (b'"a","b"',),
        (b"",),
        (b"  ",),
        (b'""',),
        (b'"  "',),
        (b"", b'"a"'),
    ],
)
async def test_several_keys_or_an_empty_key_are_refused(lines: tuple[bytes, ...]) -> None:
    charges = Charges()
    answer = await with_key(guard(charges, MemoryStore()), *lines)
    assert (answer.status, charges.runs) == (400, 0)


@pytest.mark.trap(41)
async def test_the_longest_key_of_a_long_tenant_is_stored_whole(any_store: Store, key: str) -> None:
    long_key = (key + "/" * 255)[:255]  # each slash takes three characters in a record's name
    app = IdempotencyMiddleware(Charges(), store=any_store, tenant=lambda scope: key + "\u00e9" * 100)
    assert (await call(app, key=long_key)).status == 201
    assert (await call(app, key=long_key)).replayed
    assert (await call(app, key=long_key[:-1] + ".")).status == 201, (
        "two long keys that differ at the end are two"
    )


@pytest.mark.trap(41)
async def test_tenants_of_8_kb_are_stored_and_distinct(any_store: Store, key: str) -> None:
    """Such as a whole token, which does not compress and is longer than a database index allows."""
    tenants = iter(["token-" + token_bytes(4000).hex(), "token-" + token_bytes(4000).hex()] * 2)
    app = IdempotencyMiddleware(Charges(), store=any_store, tenant=lambda scope: next(tenants))
    answers = [await call(app, key=key) for _ in range(4)]
    assert [(answer.status, answer.replayed) for answer in answers] == [(201, False)] * 2 + [(201, True)] * 2
    assert answers[0].body != answers[1].body


SPECIAL_KEYS = [
    "a:b",
    "a%3Ab",
    "{a}",
    "a*",
    "a'b",
    "a/../b",
    "a;DROP",
    "a\\",
    'a"b',
    "A",
    "a",
    "a\u0020b".strip(),
]


@pytest.mark.trap(42)
async def test_keys_with_special_characters_are_distinct_in_a_store(any_store: Store, key: str) -> None:
    charges = Charges()
    app = guard(charges, any_store)
    spelled = [key + text.replace("\\", "\\\\").replace('"', '\\"') for text in SPECIAL_KEYS]
    for text in spelled:
        assert (await call(app, key=text)).status == 201
    assert charges.runs == len(spelled)
    for text in spelled:
        assert (await call(app, key=text)).replayed


@pytest.mark.trap(42)
@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.text(max_size=6), st.text(max_size=6)), st.tuples(st.text(max_size=6), st.text(max_size=6))
)
def test_storage_keys_are_equal_exactly_for_equal_pairs_of_tenant_and_key(
    one: tuple[str, str], two: tuple[str, str]
) -> None:
    assert (storage_key(*one) == storage_key(*two)) == (one == two)
    assert storage_key(*one).isascii()
    assert storage_key(*one).isprintable()
    assert not set(storage_key(*one)) & set("{}*'\"\\;/ ")


@pytest.mark.trap(42)
async def test_no_log_line_event_or_answer_shows_a_key_or_a_credential(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    from effects import PatchedStore, unavailable

    events: list[Event] = []
    for store in (MemoryStore(), PatchedStore(MemoryStore(), complete=unavailable)):
        for hooks in ([events.append], []):
            app = IdempotencyMiddleware(
                Charges(), store=store, tenant=by_header("Authorization", stable=True), hooks=hooks
            )
            for body in (b"the-body", b"the-body", b"another-body"):
                answer = await call(app, key=key, headers=as_user("the-secret"), body=body)
                assert key.encode() not in answer.body
    app = IdempotencyMiddleware(Charges(), store=MemoryStore(), tenant=one_tenant())
    assert key.encode() not in (await with_key(app, b'"%b' % key.encode())).body
    logged = caplog.text + repr(events)
    assert len(events) > 4
    for secret in (key, "the-secret", "the-body", "another-body"):
        assert secret not in logged
