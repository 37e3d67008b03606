"""Traps 28 to 34: the same request gets a replay, and another request is a mismatch."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from asgi_driver import call
from effects import Charges, guard
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import until, until_lapsed

from idempotency import RequestView, StorageKey, canonical_json, ignoring, multipart_parts
from idempotency._core.fingerprint import digest
from idempotency.store import Store
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.mark.trap(28)
async def test_the_fingerprint_is_kept_in_a_completed_record(any_store: Store, key: str) -> None:
    charges = Charges()
    app = guard(charges, any_store)
    await call(app, key=key, body=b'{"sum": 5}')
    same, other = await call(app, key=key, body=b'{"sum": 5}'), await call(app, key=key, body=b'{"sum": 6}')
    assert (same.status, same.replayed) == (201, True)
    assert (other.status, other.replayed) == (422, False)
    assert b"key-reused" in other.body
    assert charges.runs == 1


@pytest.mark.trap(29)
@pytest.mark.parametrize("wait", [0.0, 60.0])
async def test_another_request_under_the_key_of_a_running_one_is_a_mismatch_at_once(
    wait: float, any_store: Store, key: str
) -> None:
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        await go_on.wait()

    charges = Charges(work)
    app = guard(charges, any_store, wait=wait)
    first = asyncio.create_task(call(app, key=key, body=b"one"))
    await until(lambda: charges.runs != 0)
    async with asyncio.timeout(30):
        other = await call(app, key=key, body=b"two")
    assert (other.status, other.header("retry-after")) == (422, None)
    go_on.set()
    assert (await first).status == 201
    assert charges.runs == 1


@pytest.mark.real_time("a lease runs out by the store's own clock")
@pytest.mark.trap(29)
async def test_another_request_is_a_mismatch_also_after_the_lease_of_the_first(
    any_store: Store, key: str
) -> None:
    async def work(number: int) -> None:
        await asyncio.Event().wait()

    charges = Charges(work)
    app = guard(charges, any_store, lease=0.2)
    first = asyncio.create_task(call(app, key=key, body=b"one"))
    await until(lambda: charges.runs != 0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await until_lapsed(any_store, StorageKey(key))
    assert (await call(app, key=key, body=b"two")).status == 422
    assert charges.runs == 1


@pytest.mark.trap(30)
async def test_the_query_is_part_of_the_fingerprint(any_store: Store, key: str) -> None:
    charges = Charges()
    app = guard(charges, any_store)
    await call(app, key=key, query=b"x=1")
    assert (await call(app, key=key, query=b"x=2")).status == 422
    assert (await call(app, key=key)).status == 422
    assert (await call(app, key=key, query=b"x=1")).replayed


@pytest.mark.trap(30)
@pytest.mark.parametrize(
    "fingerprint", [canonical_json, ignoring("requestId"), lambda view: digest(b"constant")]
)
async def test_method_path_and_query_count_under_every_fingerprint_function(
    fingerprint: object, key: str
) -> None:
    app = guard(Charges(), MemoryStore(), fingerprint=fingerprint)
    await call(app, "POST", "/a", key=key)
    assert (await call(app, "POST", "/b", key=key)).status == 422
    assert (await call(app, "PATCH", "/a", key=key)).status == 422
    assert (await call(app, "POST", "/a", key=key, query=b"x=1")).status == 422
    assert (await call(app, "POST", "/a", key=key)).replayed


@pytest.mark.trap(31)
async def test_headers_that_change_with_every_attempt_are_not_part_of_the_fingerprint(
    any_store: Store, key: str
) -> None:
    app = guard(Charges(), any_store)
    for attempt in range(2):
        answer = await call(
            app,
            key=key,
            headers=[
                ("traceparent", f"00-{attempt:032x}-{attempt:016x}-01"),
                ("user-agent", f"client/{attempt}"),
                ("date", f"Thu, 01 Jan 1970 00:00:0{attempt} GMT"),
                ("x-request-id", str(attempt)),
                ("accept-encoding", ["gzip", "br"][attempt]),
                ("authorization", f"Bearer fresh-{attempt}"),
                ("cookie", f"session={attempt}"),
            ],
        )
        assert (answer.status, answer.replayed) == (201, attempt == 1)


DIFFERENT = [
    (b'{"a": 1}', b'{"a": 1.0}'),
    (b'{"a": 1}', b'{"a": 1e0}'),
    (b'{"a": 1e400}', b'{"a": 1e500}'),
    (b'{"a": 0.0}', b'{"a": -0.0}'),
    (b'{"a": 1}', b'{"a": true}'),
    (b'{"a": 0}', b'{"a": false}'),
    (b'{"a": null}', b"{}"),
    (b'{"a": 9007199254740992}', b'{"a": 9007199254740993}'),
    (b'{"a": 0.1}', b'{"a": 0.1000000000000000055511151231257827}'),
    (b'{"a": 1, "a": 2}', b'{"a": 2}'),
    (b'{"a": 1, "a": 2}', b'{"a": 2, "a": 1}'),
    (b'{"a": NaN}', b'{"a": null}'),
    (b'{"a": NaN}', b'{"a": Infinity}'),
    (rb'{"a": "\ud800"}', rb'{"a": "\udc00"}'),
    (rb'{"a": "\ud800"}', rb'{"a": "?"}'),
    ('{"a": "\u00e9"}'.encode(), '{"a": "e\u0301"}'.encode()),  # NFC and NFD
    (b'{"a": [1, 2]}', b'{"a": [2, 1]}'),
    (b'{"a": "1"}', b'{"a": 1}'),
    (b'{"a": {"b": 1}}', b'{"a": ["b", 1]}'),
    (b"{}", b"[]"),
    (b"", b"null"),
]


@pytest.mark.trap(32)
@pytest.mark.parametrize("fingerprint", [canonical_json, ignoring("other")], ids=["canonical", "ignoring"])
@pytest.mark.parametrize(("one", "two"), DIFFERENT)
async def test_canonical_json_differs_for_bodies_that_a_handler_could_tell_apart(
    one: bytes, two: bytes, fingerprint: object, key: str
) -> None:
    charges = Charges()
    app = guard(charges, MemoryStore(), fingerprint=fingerprint)
    assert (await call(app, key=key, body=one)).status == 201
    assert (await call(app, key=key, body=two)).status == 422
    assert (await call(app, key=key, body=one)).replayed
    assert charges.bodies == [one]


@pytest.mark.trap(32)
@pytest.mark.parametrize(
    ("one", "two"),
    [
        (b'{"a": 1, "b": 2}', b'{ "b":2,\n"a":1 }'),
        (rb'{"a": "\u00e9\n"}', '{"a": "\u00e9\\u000a"}'.encode()),
    ],
)
async def test_canonical_json_is_the_same_for_bodies_that_no_handler_can_tell_apart(
    one: bytes, two: bytes, key: str
) -> None:
    app = guard(Charges(), MemoryStore(), fingerprint=canonical_json)
    await call(app, key=key, body=one)
    assert (await call(app, key=key, body=two)).replayed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def _distinguishable(one: object, two: object) -> bool:
    """Whether a handler that reads Python's JSON values can tell two of them apart."""
    if type(one) is not type(two):
        return True
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() != two.keys() or any(_distinguishable(one[name], two[name]) for name in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) != len(two) or any(map(_distinguishable, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return (one, math.copysign(1, one)) != (two, math.copysign(1, two))
    return one != two


@pytest.mark.trap(32)
@settings(max_examples=200, deadline=None)
@given(JSON, JSON)
def test_canonical_json_is_equal_exactly_for_equal_values(one: object, two: object) -> None:
    prints = [
        canonical_json(RequestView("POST", "/", b"", [], json.dumps(value).encode(), ""))
        for value in (one, two)
    ]
    if _distinguishable(one, two):
        assert prints[0] != prints[1]
    else:
        assert prints[0] == prints[1]


@pytest.mark.trap(33)
async def test_path_query_and_body_are_not_concatenated_in_the_fingerprint(key: str) -> None:
    app = guard(Charges(), MemoryStore())
    await call(app, path="/ab", key=key, query=b"c", body=b"d")
    for path, query, body in [
        ("/a", b"bc", b"d"),
        ("/ab", b"", b"cd"),
        ("/ab", b"cd", b""),
        ("/abc", b"", b"d"),
    ]:
        assert (await call(app, path=path, key=key, query=query, body=body)).status == 422


@pytest.mark.trap(33)
@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_digests_are_equal_exactly_for_equal_lists_of_parts(one: list[bytes], two: list[bytes]) -> None:
    assert (digest(*one) == digest(*two)) == (one == two)


def _multipart(boundary: str, *parts: bytes) -> tuple[list[tuple[str, str]], bytes]:
    delimiter = f"--{boundary}\r\n".encode()
    body = b"".join(
        delimiter + b'content-disposition: form-data; name="f"\r\n\r\n' + part + b"\r\n" for part in parts
    )
    headers = [("content-type", f"multipart/form-data; boundary={boundary}")]
    return headers, body + f"--{boundary}--\r\n".encode()


@pytest.mark.trap(34)
async def test_multipart_parts_ignores_the_boundary_of_a_repeated_upload(any_store: Store, key: str) -> None:
    app = guard(Charges(), any_store, fingerprint=multipart_parts)
    for number, boundary in enumerate(("boundary-1", "boundary-2")):
        headers, body = _multipart(boundary, b"one", b"two")
        assert (await call(app, key=key, headers=headers, body=body)).replayed == bool(number)
    for parts in ((b"two", b"one"), (b"one",), (b"one", b"two", b""), (b"onetwo",)):
        headers, body = _multipart("boundary-3", *parts)
        assert (await call(app, key=key, headers=headers, body=body)).status == 422


@pytest.mark.trap(34)
async def test_a_new_boundary_is_a_mismatch_under_the_default_fingerprint(key: str) -> None:
    app = guard(Charges(), MemoryStore())
    for boundary, status in (("boundary-1", 201), ("boundary-2", 422)):
        headers, body = _multipart(boundary, b"one")
        assert (await call(app, key=key, headers=headers, body=body)).status == status
