"""The record of a call: its arguments as a fingerprint, its value as JSON."""

from __future__ import annotations

import functools
import logging
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from decorated import Harness, charge
from hypothesis import given, settings
from hypothesis import strategies as st

from idempotency import (
    Acquired,
    InvalidKey,
    NotReplayable,
    Policy,
    UnknownRecordVersion,
)
from idempotency.decorators.call import CallReader
from idempotency.events import Event, Replayed, Settled

pytestmark = pytest.mark.anyio


class TestCalls:
    """Requirements on a call that are checked before anything runs."""

    @pytest.mark.parametrize("key", [None, 7, b"o-1"])
    async def test_key_that_is_not_a_string_is_a_type_error(self, harness: Harness, key: object) -> None:
        guarded = harness.guard(charge, key=lambda order: key)
        with pytest.raises(TypeError, match="must return a str"):
            await harness.call(guarded, "o-1")
        assert harness.runs == []

    @pytest.mark.parametrize("key", ["", "  ", "k" * 256, "\ud800"])
    async def test_blank_overlong_or_unencodable_key_is_invalid(self, harness: Harness, key: str) -> None:
        guarded = harness.guard(charge)
        with pytest.raises(InvalidKey) as caught:
            await harness.call(guarded, key)
        assert key not in str(caught.value) or not key.strip()
        assert harness.runs == []

    @pytest.mark.parametrize(
        "argument",
        [float("nan"), float("inf"), Decimal("nan"), object(), [object()], len, int, memoryview(b"x")],
        ids=["nan", "inf", "decimal-nan", "object", "list-of-object", "function", "class", "memoryview"],
    )
    async def test_argument_without_a_canonical_form_is_an_error_that_suggests_fingerprint(
        self, harness: Harness, argument: object
    ) -> None:
        guarded = harness.guard(lambda order, extra: order)
        with pytest.raises(TypeError, match="pass fingerprint="):
            await harness.call(guarded, "o-1", argument)
        assert harness.runs == []
        assert await harness.record() is None

    async def test_arguments_that_do_not_match_the_signature_are_a_type_error_before_the_claim(
        self, harness: Harness
    ) -> None:
        guarded = harness.guard(charge, key=lambda *_, **__: "o-1")
        with pytest.raises(TypeError):
            await harness.call(guarded, "o-1", 100, 200)
        assert await harness.record() is None

    async def test_default_without_a_canonical_form_is_accepted(self, harness: Harness) -> None:
        session = object()
        guarded = harness.guard(lambda order, session=session: order)
        assert await harness.call(guarded, "o-1") == "o-1"
        assert await harness.call(guarded, "o-1", session=session) == "o-1"
        with pytest.raises(TypeError, match="pass fingerprint="):
            await harness.call(guarded, "o-1", session=object())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def _frozen(value: Any) -> Any:
    """Equal iff the values are equal and of the same types, unlike Python's `1 == 1.0 == True`."""
    match value:
        case list():
            return ("list", *map(_frozen, value))
        case dict():
            return ("dict", *sorted((name, _frozen(member)) for name, member in value.items()))
    return (type(value).__name__, repr(value))


@given(left=JSON_VALUES, right=JSON_VALUES)
@settings(max_examples=200)
def test_fingerprints_are_equal_iff_the_arguments_are(left: Any, right: Any) -> None:
    def function(argument: Any, *more: Any, **named: Any) -> None: ...

    reader = CallReader(function, operation="op", key=lambda *_, **__: "k", fingerprint=None)
    read = partial(reader.read, max_key_chars=255)
    same = repr(_frozen(left)) == repr(_frozen(right))
    for one, other in (
        (((left,), {}), ((right,), {})),
        ((("a", left), {}), (("a", right), {})),
        ((("a",), {"x": left}), (("a",), {"x": right})),
    ):
        assert (read(*one) == read(*other)) is same
    assert read((left, right), {}) != read((left,), {"more": right})


class TestValues:
    @pytest.mark.parametrize(
        "value", [None, True, 0, -0.0, 2**53 + 1, -(2**200), 1e308, "é\x00\u2028", [[], {}], {"": None}]
    )
    async def test_json_values_are_replayed_exactly(self, harness: Harness, value: Any) -> None:
        guarded = harness.guard(lambda order: value)
        await harness.call(guarded, "o-1")
        again = await harness.call(guarded, "o-1")
        assert _frozen(again) == _frozen(value)
        assert len(harness.runs) == 1

    @pytest.mark.parametrize(
        "value",
        [
            float("nan"),
            float("-inf"),
            Decimal("1.10"),
            datetime(2026, 1, 1, tzinfo=UTC),
            b"bytes",
            {1, 2},
            (1, 2),
            {1: "a"},
            "\ud800",
            object(),
            functools.reduce(lambda inner, _: [inner], range(200), []),
        ],
        ids=lambda value: type(value).__name__,
    )
    @pytest.mark.rule("E2")
    async def test_value_that_json_would_change_is_returned_once_and_makes_the_call_unreplayable(
        self, harness: Harness, value: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        guarded = harness.guard(lambda order: value)
        with caplog.at_level(logging.ERROR, "idempotency"):
            assert await harness.call(guarded, "o-1") is value
        assert "its retries will raise NotReplayable" in caplog.text
        with pytest.raises(NotReplayable):
            await harness.call(guarded, "o-1")
        assert len(harness.runs) == 1
        settled = [event.result for event in harness.events if isinstance(event, Settled)]
        assert settled == ["unreplayable"]

    @pytest.mark.rule("E2")
    async def test_value_over_the_limit_makes_the_call_unreplayable(self, harness: Harness) -> None:
        guarded = harness.guard(lambda order: "x" * 1000, policy=Policy(max_response_bytes=500))
        await harness.call(guarded, "o-1")
        with pytest.raises(NotReplayable, match="larger than 500 bytes"):
            await harness.call(guarded, "o-1")

    async def test_record_is_readable_json(self, harness: Harness) -> None:
        await harness.call(harness.guard(charge), "o-1", 5)
        record = await harness.record()
        assert record.outcome == (
            b'{"format":1,"outcome":"value","value":{"returned":{"order":"o-1","cents":5}}}'
        )

    async def test_replay_event_has_the_traceparent_of_the_first_run(self, harness: Harness) -> None:
        class Hook:
            def __call__(self, event: Event) -> None:
                harness.events.append(event)

            def traceparent(self) -> str:
                return "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

        guarded = harness.guard(charge, hooks=(Hook(),))
        await harness.call(guarded, "o-1")
        await harness.call(guarded, "o-1")
        assert isinstance(harness.events[-1], Replayed)
        assert harness.events[-1].traceparent == Hook().traceparent()

    async def test_traceparent_error_of_a_hook_is_ignored(self, harness: Harness) -> None:
        class Hook:
            def __call__(self, event: Event) -> None: ...

            def traceparent(self) -> str:
                raise RuntimeError("no trace")

        guarded = harness.guard(charge, hooks=(Hook(),))
        first = await harness.call(guarded, "o-1")
        assert await harness.call(guarded, "o-1") == first

    async def test_recorded_response_under_the_key_is_not_taken_for_a_value(self, harness: Harness) -> None:
        guarded = harness.guard(charge, fingerprint=lambda *_: b"same")
        await harness.call(guarded, "o-1")
        record = await harness.record()
        response = b'{"format":1,"outcome":"response","status_code":200,"headers":[],"body":""}'
        inner = harness.store if harness.kind == "sync" else harness.store._store
        inner.forget(record.key)
        reply = inner.acquire(
            record.key, fingerprint=record.fingerprint, owner=b"o" * 16, lease=1.0, retention=60.0
        )
        assert isinstance(reply, Acquired)
        inner.complete(reply.claim, response, retention=60.0)
        with pytest.raises(UnknownRecordVersion):
            await harness.call(guarded, "o-1")
        assert len(harness.runs) == 1
